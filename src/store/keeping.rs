//! Partitions: where a month's entries begin and end, what still needs them, what is recorded of months that were dropped, and
//! dropping one. The last part works as the owner only; the gateway's role has no right to any of it.

use futures::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};

use super::{StoreError, audit_log::Extent};
use crate::clock::Timestamp;

/// Number of the advisory lock of whoever drops a month, so that two never do at once. It never changes.
const DROP_LOCK: i64 = 0x746f_6f6c_6472_6f70;

/// Begins a transaction in which every statement sees the same rows and none can change any.
///
/// # Errors
/// When the database is away.
pub async fn begin_reading(connection: &mut PgConnection) -> Result<(), StoreError> {
    connection
        .execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET LOCAL TIME ZONE 'UTC'; SET LOCAL jit = off")
        .await?;
    Ok(())
}

/// Ends it.
///
/// # Errors
/// When the database is away.
pub async fn end_reading(connection: &mut PgConnection) -> Result<(), StoreError> {
    connection.execute("COMMIT").await?;
    Ok(())
}

/// The instances that have entries from `from` on and before `to`, with the first and the last number of those.
///
/// # Errors
/// When the database is away.
pub async fn extents_between(
    connection: &mut PgConnection,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<Extent>, StoreError> {
    let found = sqlx::query_as!(
        Extent,
        r#"WITH RECURSIVE instance AS (
               SELECT (SELECT min(instance_id) FROM audit.entries WHERE recorded_at >= $1 AND recorded_at < $2) AS id
               UNION ALL
               SELECT (SELECT min(instance_id) FROM audit.entries
                       WHERE instance_id > instance.id AND recorded_at >= $1 AND recorded_at < $2)
               FROM instance WHERE instance.id IS NOT NULL
           )
           SELECT id AS "instance_id!",
                  (SELECT min(seq) FROM audit.entries
                   WHERE instance_id = id AND recorded_at >= $1 AND recorded_at < $2) AS "first!",
                  (SELECT max(seq) FROM audit.entries
                   WHERE instance_id = id AND recorded_at >= $1 AND recorded_at < $2) AS "last!"
           FROM instance WHERE id IS NOT NULL ORDER BY 1"#,
        from,
        to
    )
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// The lowest number below `seq` that an entry of an instance has.
///
/// # Errors
/// When the database is away.
pub async fn first_before(
    connection: &mut PgConnection,
    instance: &str,
    seq: i64,
) -> Result<Option<i64>, StoreError> {
    let found = sqlx::query_scalar!(
        "SELECT min(seq) FROM audit.entries WHERE instance_id = $1 AND seq < $2",
        instance,
        seq
    )
    .fetch_one(connection)
    .await?;
    Ok(found)
}

/// Number and hash of an entry.
pub struct Hashed {
    /// Its number.
    pub seq: i64,
    /// Its hash, if it has one.
    pub hash: Option<Vec<u8>>,
}

/// Numbers and hashes of the entries of one instance from `first` on and before `end`, in order, as they are read.
pub fn hashes<'c>(
    connection: &'c mut PgConnection,
    instance: &'c str,
    first: i64,
    end: i64,
) -> BoxStream<'c, Result<Hashed, StoreError>> {
    sqlx::query_as!(
        Hashed,
        "SELECT seq, hash FROM audit.entries WHERE instance_id = $1 AND seq >= $2 AND seq < $3 ORDER BY seq, recorded_at",
        instance,
        first,
        end
    )
    .fetch(connection)
    .map_err(StoreError::from)
    .boxed()
}

/// A contract or policies, as they stand in `audit.versions`.
#[derive(serde::Serialize)]
pub struct Version {
    /// The whole text.
    pub content: String,
    /// Its digest.
    pub digest: String,
    /// `contract` or `policies`.
    pub kind: String,
    /// The tool, or `policies`.
    pub name: String,
}

/// The version with this digest.
///
/// # Errors
/// When the database is away.
pub async fn version(
    connection: &mut PgConnection,
    digest: &str,
) -> Result<Option<Version>, StoreError> {
    let found = sqlx::query_as!(
        Version,
        "SELECT content, digest, kind, name FROM audit.versions WHERE digest = $1",
        digest
    )
    .fetch_optional(connection)
    .await?;
    Ok(found)
}

/// An entry that says that a month is about to be dropped.
pub struct DropRow {
    /// Its instance.
    pub instance_id: String,
    /// Its number.
    pub seq: i64,
    /// When it was recorded.
    pub recorded_at: Timestamp,
    /// What it says, as JSON.
    pub detail: Option<String>,
}

/// All of them, oldest first.
///
/// # Errors
/// When the database is away.
pub async fn drops(connection: &mut PgConnection) -> Result<Vec<DropRow>, StoreError> {
    let found = sqlx::query_as!(
        DropRow,
        "SELECT instance_id, seq, recorded_at, detail::text AS detail FROM audit.entries
         WHERE kind = 'partition_dropped' ORDER BY recorded_at, instance_id, seq"
    )
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// A table for the entries of a month.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    /// `entries_YYYY_MM`.
    pub name: String,
    /// Whether it is a partition of `audit.entries`, or only bears the name of one.
    pub attached: bool,
    /// Whether its detaching was begun and not finished.
    pub pending: bool,
}

/// Every table that is or was a partition of the entries, by name, which is by month.
///
/// # Errors
/// When the database is away.
pub async fn partitions(connection: &mut PgConnection) -> Result<Vec<Partition>, StoreError> {
    let found = sqlx::query_as!(
        Partition,
        r#"SELECT part.relname AS "name!", inherits.inhrelid IS NOT NULL AS "attached!",
                  COALESCE(inherits.inhdetachpending, false) AS "pending!"
           FROM pg_class AS part
           LEFT JOIN pg_inherits AS inherits
             ON inherits.inhrelid = part.oid AND inherits.inhparent = 'audit.entries'::regclass
           WHERE part.relnamespace = 'audit'::regnamespace AND part.relkind = 'r'
             AND part.relname ~ '^entries_[0-9]{4}_[0-9]{2}$'
           ORDER BY 1"#
    )
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// What time it is for the database.
///
/// # Errors
/// When the database is away.
pub async fn now(connection: &mut PgConnection) -> Result<Timestamp, StoreError> {
    let now = sqlx::query_scalar!(r#"SELECT now() AS "now!""#)
        .fetch_one(connection)
        .await?;
    Ok(now)
}

/// Some of the calls that were recorded before `to` and have not ended, from `from` on or among those that are kept. One of which nobody
/// knows what became has not ended before somebody has found out: that takes the entry that opened it.
///
/// # Errors
/// When the database is away.
pub async fn unfinished(
    connection: &mut PgConnection,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<String>, StoreError> {
    let found = sqlx::query_scalar!(
        r#"(SELECT begun.call_id AS "call_id!" FROM audit.entries AS begun
            WHERE begun.recorded_at >= $1 AND begun.recorded_at < $2 AND begun.kind IN ('intent', 'parked')
              AND NOT EXISTS (
                  SELECT FROM audit.entries AS ending
                  WHERE ending.call_id = begun.call_id AND ending.kind IN ('outcome', 'ended')
                    AND ending.outcome <> 'indeterminate')
            LIMIT 5)
           UNION
           (SELECT call_id FROM toolgate.calls
            WHERE received_at < $2 AND state IN ('parked', 'approved', 'executing') LIMIT 5)
           UNION
           (SELECT item.call_id FROM toolgate.work AS item
            WHERE item.state IN ('open', 'claimed')
              AND EXISTS (SELECT FROM audit.entries AS of_it WHERE of_it.call_id = item.call_id AND of_it.recorded_at < $2)
            LIMIT 5)
           ORDER BY 1"#,
        from,
        to
    )
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// Kill switches that were pulled before `to` and still hold.
///
/// # Errors
/// When the database is away.
pub async fn held_since(
    connection: &mut PgConnection,
    to: Timestamp,
) -> Result<Vec<String>, StoreError> {
    let found = sqlx::query_scalar!(
        "SELECT kill_switch_id FROM toolgate.kill_switches
         WHERE released_at IS NULL AND pulled_at < $1 ORDER BY 1 LIMIT 5",
        to
    )
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// Whether this connection now is the one that drops, until it is closed.
///
/// # Errors
/// When the database is away.
pub async fn lock_dropping(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let locked = sqlx::query_scalar!(r#"SELECT pg_try_advisory_lock($1) AS "locked!""#, DROP_LOCK)
        .fetch_one(connection)
        .await?;
    Ok(locked)
}

/// Whether the connection's role owns the entries, which is what dropping takes.
///
/// # Errors
/// When the database is away.
pub async fn owns_entries(connection: &mut PgConnection) -> Result<bool, StoreError> {
    let owns = sqlx::query_scalar!(
        r#"SELECT pg_has_role(relowner, 'MEMBER') AS "owns!" FROM pg_class WHERE oid = 'audit.entries'::regclass"#
    )
    .fetch_one(connection)
    .await?;
    Ok(owns)
}

/// The role that this connection works as.
///
/// # Errors
/// When the database is away.
pub async fn role(connection: &mut PgConnection) -> Result<String, StoreError> {
    let role = sqlx::query_scalar!(r#"SELECT current_user::text AS "role!""#)
        .fetch_one(connection)
        .await?;
    Ok(role)
}

/// Takes a partition out of the entries without standing in anybody's way: `CONCURRENTLY` takes no lock on the whole that an
/// INSERT would have to wait behind, and waits itself for whoever still reads. What it waits for is bounded by `patience_ms`;
/// when that is over, the partition may be left half detached, and the next try ends it.
///
/// # Errors
/// [`StoreError::Unavailable`] when somebody held it for too long: try again.
pub async fn detach(
    connection: &mut PgConnection,
    partition: &Partition,
    patience_ms: u32,
) -> Result<(), StoreError> {
    let how = if partition.pending {
        "FINALIZE"
    } else {
        "CONCURRENTLY"
    };
    // The name was matched against `entries_YYYY_MM` where it was made or read.
    let name = &partition.name;
    connection
        .execute(AssertSqlSafe(format!("SET lock_timeout = {patience_ms}")))
        .await?;
    connection
        .execute(AssertSqlSafe(format!(
            "ALTER TABLE audit.entries DETACH PARTITION audit.{name} {how}"
        )))
        .await?;
    Ok(())
}

/// Drops a table that was detached, if it holds exactly `entries` rows; gives the number that it holds.
///
/// # Errors
/// When the database is away, or somebody holds the table for longer than the connection's `lock_timeout`.
pub async fn drop_detached(
    connection: &mut PgConnection,
    name: &str,
    entries: u64,
) -> Result<u64, StoreError> {
    let mut transaction = connection.begin().await?;
    transaction
        .execute(AssertSqlSafe(format!(
            "LOCK TABLE audit.{name} IN ACCESS EXCLUSIVE MODE"
        )))
        .await?;
    let held: i64 = sqlx::query_scalar(AssertSqlSafe(format!("SELECT count(*) FROM audit.{name}")))
        .fetch_one(&mut *transaction)
        .await?;
    let held = u64::try_from(held).unwrap_or(0);
    if held == entries {
        transaction
            .execute(AssertSqlSafe(format!("DROP TABLE audit.{name}")))
            .await?;
    }
    transaction.commit().await?;
    Ok(held)
}

/// Makes a detached table a partition again.
///
/// # Errors
/// When the database is away or refuses.
pub async fn attach(
    connection: &mut PgConnection,
    name: &str,
    from: Timestamp,
    to: Timestamp,
) -> Result<(), StoreError> {
    let (from, to) = (from.to_rfc3339(), to.to_rfc3339());
    connection
        .execute(AssertSqlSafe(format!(
            "ALTER TABLE audit.entries ATTACH PARTITION audit.{name} FOR VALUES FROM ('{from}') TO ('{to}')"
        )))
        .await?;
    Ok(())
}
