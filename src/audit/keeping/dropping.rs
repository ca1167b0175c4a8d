//! Dropping a month, as the owner: only what an export holds that verifies against the table as it stands now, only when nobody needs
//! it any more, and only after an entry in the chains says so. Each step can be made again: a drop that was interrupted goes on where
//! it stopped when the same command is given again.

use std::{path::Path, time::Duration};

use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};

use super::{
    INSTANCES, KeepingError, Manifest, Month, check, contents,
    dropped::{self, By, Detail, Export},
};
use crate::{
    audit::{beginnings::Beginnings, record_command, verify::Keys},
    clock,
    entry::{Entry, Kind, chain},
    signing::Held,
    store::{
        StoreError, audit_log,
        keeping::{self, Partition},
    },
};

/// How long one attempt waits for a lock, in milliseconds.
const PATIENCE_MS: u32 = 1_000;
/// How many attempts are made before somebody has to be told that another session stands in the way.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_millis(500);

/// Who asks for it, as the operating system knows them.
#[derive(Debug, Clone)]
pub struct Operator {
    /// The user's name, if there is one.
    pub os_user: Option<String>,
    /// The user's number.
    pub os_uid: u32,
}

/// What came of it.
#[derive(Debug)]
pub enum Dropped {
    /// The partition is gone.
    Now(Manifest),
    /// It was gone already, and the chains say so with the digest of this very export.
    Before(Manifest),
}

/// Drops the partition of a month that `export` holds. `owner` is the role that owns the tables, and `held` signs what is
/// recorded of it; `keep_for_days` counts from the end
/// of the month. `said` hears what is being done, `progress` of each thousand entries that were read.
///
/// # Errors
/// [`KeepingError::Refused`] says why the month must stay and what to do about it; nothing was changed then, unless the message
/// says so.
pub async fn drop_month(
    (owner, held): (&PgConnectOptions, &Held),
    month: Month,
    export: &Path,
    keep_for_days: u32,
    by: Operator,
    said: impl Fn(&str),
    progress: impl Fn(u64),
) -> Result<Dropped, KeepingError> {
    said("checking the export");
    let manifest = check(export, &progress)?;
    if manifest.contents.month != month {
        return refused(format!(
            "{} is an export of {}, not of {month}",
            export.display(),
            manifest.contents.month
        ));
    }
    let mut connection = connect(owner).await?;
    if !keeping::lock_dropping(&mut connection).await? {
        return refused("another toolgate audit drop is at work; wait for it".to_owned());
    }
    let name = month.partition();
    let partitions = keeping::partitions(&mut connection).await?;
    let begun = begun(&mut connection, held).await?;
    let is_recorded = is_recorded(&mut connection, &manifest, &begun).await?;
    let partition = partitions.iter().find(|partition| partition.name == name);
    let partition = match (partition, is_recorded) {
        (None, true) => return Ok(Dropped::Before(manifest)),
        (None, false) => return refused(format!("there is no partition for {month}")),
        (Some(found), false) if !found.attached || found.pending => {
            return refused(format!(
                "audit.{name} was detached by somebody else, and no entry tells of it: attach it again first"
            ));
        }
        (Some(found), _) => found,
    };
    if partition.attached && !partition.pending {
        may_go(&mut connection, month, keep_for_days, &partitions).await?;
        said("comparing the table with the export");
        let now = contents(&mut connection, month, &mut std::io::sink(), progress).await?;
        if now != manifest.contents {
            return refused(format!(
                "the table holds {} entries of {month} with digest {}, the export {} with {}: export it again",
                now.entries, now.sha256, manifest.contents.entries, manifest.contents.sha256
            ));
        }
        if !is_recorded {
            said("recording that it will be dropped");
            record(&mut connection, &manifest, held, &begun, by).await?;
        }
    }
    said("dropping the partition");
    detach(&mut connection, &name).await?;
    let removed = remove(&mut connection, &name, manifest.contents.entries).await?;
    if removed != manifest.contents.entries {
        keeping::attach(&mut connection, &name, month.begins(), month.ends()).await?;
        return refused(format!(
            "something was added to {month} at the last moment: it has {removed} entries and stays; export it again"
        ));
    }
    connection.close().await.map_err(StoreError::from)?;
    Ok(Dropped::Now(manifest))
}

fn refused<T>(words: String) -> Result<T, KeepingError> {
    Err(KeepingError::Refused(words))
}

async fn connect(owner: &PgConnectOptions) -> Result<PgConnection, KeepingError> {
    let options = owner
        .clone()
        .application_name("toolgate audit drop")
        .options([
            ("synchronous_commit", "on"),
            ("lock_timeout", &PATIENCE_MS.to_string()),
            ("timezone", "UTC"),
        ]);
    let mut connection = PgConnection::connect_with(&options)
        .await
        .map_err(StoreError::from)?;
    if !keeping::owns_entries(&mut connection).await? {
        return refused(
            "only the role that owns the tables can drop a month: give database.external.owner_url"
                .to_owned(),
        );
    }
    Ok(connection)
}

/// How the chains begin that stand now, for whoever holds this key.
async fn begun(connection: &mut PgConnection, held: &Held) -> Result<Beginnings, KeepingError> {
    let changes = dropped::key_changes(connection).await?;
    let keys = Keys::follow(&changes, std::slice::from_ref(held.key.verifier()));
    let extents = audit_log::extents(connection).await?;
    Ok(Beginnings::read(connection, &extents, &keys).await?)
}

/// Whether an entry that is as it was written, by whom it may be, tells of this very export.
async fn is_recorded(
    connection: &mut PgConnection,
    manifest: &Manifest,
    begun: &Beginnings,
) -> Result<bool, KeepingError> {
    use futures::TryStreamExt as _;
    for row in keeping::drops(connection).await? {
        let detail = row.detail.as_deref().map(serde_json::from_str::<Detail>);
        let Some(Ok(detail)) = detail else { continue };
        if !begun.is_right(&row.instance_id)
            || detail.month != manifest.contents.month
            || detail.instances != manifest.contents.instances
            || detail.export.file_sha256 != manifest.file_sha256
            || detail.export.contents_sha256 != manifest.contents.sha256
        {
            continue;
        }
        let stored = audit_log::rows(connection, &row.instance_id, row.seq, row.seq)
            .try_next()
            .await?;
        let is_right = stored.is_some_and(|stored| {
            let hash = chain::hash(&chain::START, &stored.row());
            stored.seq == 1 && stored.hash.as_deref() == Some(&hash)
        });
        if is_right {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether nobody needs the month any more.
async fn may_go(
    connection: &mut PgConnection,
    month: Month,
    keep_for_days: u32,
    partitions: &[Partition],
) -> Result<(), KeepingError> {
    // Whichever clock is behind: neither may make a month old before its time.
    let now = keeping::now(connection).await?.min(clock::now());
    if now < month.ends() {
        return refused(format!("{month} is not over"));
    }
    let until = month.ends() + chrono::TimeDelta::days(i64::from(keep_for_days));
    if now < until {
        return refused(format!(
            "{month} is kept until {}: records.keep_for_days is {keep_for_days}, counted from the end of the month",
            until.format("%Y-%m-%d")
        ));
    }
    let name = month.partition();
    if let Some(older) = partitions.iter().find(|partition| partition.name < name) {
        return refused(format!(
            "audit.{} is older and still there: the oldest month goes first, so that every chain only loses its beginning",
            older.name
        ));
    }
    let calls = keeping::unfinished(connection, month.begins(), month.ends()).await?;
    if !calls.is_empty() {
        return refused(format!(
            "calls of {month} or before have not ended: {}; let them end (approve or deny what is parked; a start of the gateway closes what a stopped one left open; resolve what is on the work list)",
            calls.join(", ")
        ));
    }
    let halts = keeping::held_since(connection, month.ends()).await?;
    if !halts.is_empty() {
        return refused(format!(
            "kill switches that were pulled in {month} or before still hold: {}; release them first",
            halts.join(", ")
        ));
    }
    Ok(())
}

/// Commits the entry that tells of the drop: a chain of its own, which the next gateway to start names in its first entry.
async fn record(
    connection: &mut PgConnection,
    manifest: &Manifest,
    held: &Held,
    begun: &Beginnings,
    by: Operator,
) -> Result<(), KeepingError> {
    let contents = &manifest.contents;
    // What was told of by entries that now go themselves must be told again.
    let drops = dropped::known(connection).await?;
    let until = contents.month.ends();
    if let Some(forged) = drops.tellers(until).find(|by| !begun.is_right(by)) {
        return refused(format!(
            "the first entry of {forged} tells of a drop and was not written by this installation: toolgate audit verify says more. Nothing goes that would have it told again under a signature"
        ));
    }
    let earlier = drops.told_before(until);
    let signing_keys = drops.keys_told(until, &contents.signing_keys);
    if earlier.len() > INSTANCES || signing_keys.len() > INSTANCES {
        return Err(KeepingError::too_many());
    }
    let detail = Detail {
        month: contents.month,
        partition: contents.month.partition(),
        entries: contents.entries,
        instances: contents.instances.clone(),
        earlier,
        signing_keys,
        export: Export {
            file_sha256: manifest.file_sha256.clone(),
            file_bytes: manifest.file_bytes,
            contents_sha256: contents.sha256.clone(),
        },
        by: By {
            os_user: by.os_user,
            os_uid: by.os_uid,
            database_role: keeping::role(connection).await?,
        },
    };
    let detail =
        serde_json::to_value(detail).map_err(|error| KeepingError::Refused(error.to_string()))?;
    let entry = Entry {
        detail: Some(detail),
        ..Entry::new(Kind::PartitionDropped)
    };
    // Both entries of it are one statement, which stands or does not.
    Ok(record_command(connection, held, entry).await?)
}

/// Detaches the partition, or ends what an earlier attempt began, without stopping whoever records meanwhile.
async fn detach(connection: &mut PgConnection, name: &str) -> Result<(), KeepingError> {
    for _ in 0..TRIES {
        let partitions = keeping::partitions(connection).await?;
        let found = partitions.iter().find(|partition| partition.name == name);
        let Some(partition) = found.filter(|partition| partition.attached) else {
            return Ok(());
        };
        match keeping::detach(connection, partition, PATIENCE_MS).await {
            Ok(()) => return Ok(()),
            Err(StoreError::Unavailable(reason)) => {
                tracing::info!(reason, "another session reads the month; trying again");
                tokio::time::sleep(PAUSE).await;
            }
            Err(other) => return Err(other.into()),
        }
    }
    refused(in_the_way(name))
}

async fn remove(
    connection: &mut PgConnection,
    name: &str,
    entries: u64,
) -> Result<u64, KeepingError> {
    for _ in 0..TRIES {
        match keeping::drop_detached(connection, name, entries).await {
            Ok(held) => return Ok(held),
            Err(StoreError::Unavailable(reason)) => {
                tracing::info!(reason, "another session reads the month; trying again");
                tokio::time::sleep(PAUSE).await;
            }
            Err(other) => return Err(other.into()),
        }
    }
    refused(in_the_way(name))
}

fn in_the_way(name: &str) -> String {
    format!(
        "another session has held audit.{name} all the time (see pg_stat_activity). That it is dropped is recorded already; end that session and give the same command again"
    )
}
