//! Who began a chain: its second entry, `chain_signed`, holds a checkpoint of the first one, signed with the installation's key. A
//! gateway signs its start so, and with it the ends of the chains before that the start names; a command beside a gateway signs the
//! one thing that it did. So nobody without the key can begin a chain, whatever they may insert.

use chrono::TimeDelta;
use serde_json::json;
use sqlx::PgConnection;

use super::signing_keys;
use crate::{
    checkpoint::{Checkpoint, Frontier, Note, Refused, SigningKey, VerifierKey},
    clock::{self, Timestamp},
    entry::{
        Entry, Kind,
        chain::{self, Hash},
    },
    ids::InstanceId,
    signing::{Held, SigningError},
    store::{self, StoreError},
};

/// Why a command did not record what it was to do. Nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is no key to sign with.
    #[error(
        "{0}. What this command does is recorded under a signature: give it where the gateway runs, as the user who runs it, with the same config"
    )]
    Key(#[from] SigningError),
    /// The key in the file is another one than the gateway signs with.
    #[error(
        "the signing key in checkpoints.key_file is {held}, and the records name {recorded}. Give this command where the gateway runs, with the same config; after a change of the key, once the gateway has taken it up"
    )]
    OtherKey {
        /// The one in the file.
        held: Box<VerifierKey>,
        /// The one in the records.
        recorded: String,
    },
}

/// How far the clock may have been set back since the newest instance began. What says to be later was made up, or by a clock that
/// nobody would follow.
const SET_BACK: TimeDelta = TimeDelta::days(31);

/// The id of an instance that is about to begin: later than all that have recorded something, for by their ids the chains stand in
/// order.
///
/// # Errors
/// When the database is away.
pub(crate) async fn new_instance(connection: &mut PgConnection) -> Result<InstanceId, StoreError> {
    let newest = store::audit::newest_instance(connection).await?;
    let newest = newest.and_then(|id| id.parse::<InstanceId>().ok());
    let latest = (clock::now() + SET_BACK).timestamp_millis();
    Ok(newest
        .filter(|newest| newest.unix_ms() < latest)
        .map_or_else(InstanceId::generate, |newest| {
            InstanceId::generate_after(&newest)
        }))
}

/// When what this instance begins with is recorded: now, and never before its id was made, which a clock that is set back between the
/// two could otherwise say.
pub(super) fn beginning_of(instance: &InstanceId) -> Timestamp {
    let made = Timestamp::from_timestamp_millis(instance.unix_ms());
    let now = clock::now();
    made.map_or(now, |made| made.max(now))
}

/// The second entry of an instance whose first one has this hash.
pub(super) fn entry(key: &SigningKey, instance: &InstanceId, first: &Hash) -> Entry {
    let checkpoint = of_first(key.verifier().name(), instance.as_str(), first);
    Entry {
        detail: Some(json!({ "checkpoint": checkpoint.signed(key) })),
        ..Entry::new(Kind::ChainSigned)
    }
}

/// The checkpoint of a log that has its first entry only.
fn of_first(installation: &str, instance: &str, first: &Hash) -> Checkpoint {
    let mut tree = Frontier::default();
    tree.push(first);
    Checkpoint {
        origin: Checkpoint::origin_of(installation, instance),
        size: tree.size(),
        root: tree.root(),
    }
}

/// Records what a command does, in a chain of its own that the next gateway to start names.
///
/// # Errors
/// When the database is away, or `held` is not the key that the records name; then nothing is recorded.
pub(crate) async fn record_command(
    connection: &mut PgConnection,
    held: &Held,
    entry: Entry,
) -> Result<(), CommandError> {
    let recorded = signing_keys::recorded(connection).await?;
    if recorded.as_ref() != Some(held.key.verifier()) {
        return Err(CommandError::OtherKey {
            held: Box::new(held.key.verifier().clone()),
            recorded: recorded.map_or_else(|| "none yet".to_owned(), |key| key.to_string()),
        });
    }
    let instance = new_instance(connection).await?;
    let at = beginning_of(&instance);
    let first = entry.row(instance.as_str(), 1, at);
    let hash = chain::hash(&chain::START, &first);
    let signed = self::entry(&held.key, &instance, &hash);
    let second = signed.row(instance.as_str(), 2, at);
    let hashes = [hash, chain::hash(&hash, &second)];
    store::audit::insert(connection, &[first, second], &hashes).await?;
    Ok(())
}

/// Which of these keys have signed that an instance begins with the entry of this hash; `detail` is that of its second entry.
///
/// # Errors
/// What is wrong with the signature.
pub(super) fn signers<'k>(
    detail: &str,
    instance: &str,
    first: &Hash,
    keys: impl Iterator<Item = &'k VerifierKey>,
) -> Result<Vec<&'k VerifierKey>, Refused> {
    const FORM: Refused = Refused::Malformed("it holds no checkpoint of the first entry");
    let detail: serde_json::Value = serde_json::from_str(detail).map_err(|_error| FORM)?;
    let note = detail.get("checkpoint").and_then(serde_json::Value::as_str);
    let note = Note::parse(note.ok_or(FORM)?.as_bytes())?;
    let checkpoint = Checkpoint::parse(note.text())?;
    let mut signers = note.signers(keys)?;
    signers.retain(|key| checkpoint == of_first(key.name(), instance, first));
    if signers.is_empty() {
        return Err(FORM);
    }
    Ok(signers)
}

/// How long a command takes at the most from making its id to recording, and a gateway that starts to see what was recorded before.
pub(super) const PROMPT: TimeDelta = TimeDelta::seconds(60);
