//! Checking the records: every hash anew from the stored rows, in stretches side by side and row by row, so that neither time nor
//! memory grows with one long chain; and the chains against whatever is known of them elsewhere: later starts, and checkpoints
//! that are kept outside the database. Says which entry is the first wrong one of each instance, and what is wrong with it.
//!
//! 1. `keys`: which keys may sign, as the chain tells of them and as the caller was told;
//! 2. `checkpoints`: the files, read and judged as far as they can be without the entries;
//! 3. `stretch`: hashes, order, and the parts of the Merkle trees;
//! 4. `beginnings` (beside this module): who began each chain;
//! 5. `links`: what each start knows of those before it;
//! 6. `versions`: the texts of the contracts and policies that entries name;
//! 7. `roots`: the trees against the checkpoints;
//! 8. `cover`: what nothing outside the chain itself vouches for yet.

use std::{collections::BTreeMap, path::PathBuf};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};

use super::{
    beginnings::{Beginnings, Standing},
    keeping::{self, Beginning, Drops},
};
use crate::{
    checkpoint::VerifierKey,
    clock::Timestamp,
    secrets,
    store::{
        StoreError,
        audit_log::{self, Extent},
    },
};

mod checkpoints;
mod cover;
mod keys;
mod links;
mod roots;
mod stretch;
mod versions;

use self::{
    checkpoints::Claims,
    roots::Roots,
    stretch::{Before, Piece, Stretch, stretch},
    versions::Named,
};
pub use self::{cover::Uncovered, versions::WrongVersion};
pub(super) use self::{
    keys::Keys,
    links::{Followed, followed},
    stretch::count,
};

/// Two to this power entries are one stretch, so that each whole one is a subtree of the Merkle tree.
const LEVEL: u32 = 16;
const STRETCH: i64 = 1 << LEVEL;
/// How often the keys are read again because the gateway changed its own while the files were read.
const ATTEMPTS: usize = 3;

/// What is wrong with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Its columns do not give its hash.
    Changed,
    /// There is none with this number, though there are later ones.
    Missing,
    /// It stands where another one stood.
    Reordered,
    /// It was not written by the gateway: a second one with the same number, or one behind the known end.
    Inserted,
    /// It and all behind it are gone, though a later start or a checkpoint knows of them.
    TailCut,
    /// The chain fits in itself, but a later start or a checkpoint knows another hash.
    Rewritten,
    /// Its whole instance is gone, though a later start or a checkpoint knows of it; or the first start after it does not know of it.
    Unlinked,
    /// It has no hash, though entries before it have.
    Unchained,
    /// It begins a chain, and no key of the installation has signed that, as it has all since the first that it signed.
    Unsigned,
    /// Its time contradicts its instance's id, or the month that it says was dropped.
    Misdated,
    /// It names a key for checkpoints, and nothing proves that this follows the one before or is one that the caller gave.
    UnprovedKey,
}

/// The first wrong entry of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// Its number.
    pub seq: i64,
    /// Where only a range is known: the number of the last entry that can be the first wrong one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<i64>,
    /// What is wrong.
    pub fault: Fault,
    /// In words.
    pub words: String,
}

impl Wrong {
    pub(super) fn new(seq: i64, fault: Fault, words: impl Into<String>) -> Self {
        Self {
            seq,
            until: None,
            fault,
            words: words.into(),
        }
    }
}

/// One instance, checked.
#[derive(Debug, Clone, Serialize)]
pub struct Checked {
    /// The instance.
    pub instance: String,
    /// How many entries it has.
    pub entries: u64,
    /// The number of its last entry.
    pub last: i64,
    /// The hash of that, in hexadecimal.
    pub head: Option<String>,
    /// Whether a key of the installation signed its beginning; none where that was dropped.
    pub signed: Option<bool>,
    /// Up to which entry a checkpoint that was given vouches for it.
    pub checkpointed: Option<u64>,
    /// Its first wrong entry.
    pub wrong: Option<Wrong>,
    /// How many were found wrong.
    pub faults: u64,
    /// Number and time of the first entry that is left.
    #[serde(skip)]
    pub(super) first: Option<(i64, Timestamp)>,
}

impl Checked {
    fn new(instance: &str, last: i64) -> Self {
        Self {
            instance: instance.to_owned(),
            entries: 0,
            last,
            head: None,
            signed: None,
            checkpointed: None,
            wrong: None,
            faults: 0,
            first: None,
        }
    }

    /// One more fault. What is known to lie in a range gives way to an entry within it that is named.
    pub(super) fn accuse(&mut self, wrong: Wrong) {
        self.faults += 1;
        let is_first = match &self.wrong {
            None => true,
            Some(first) if wrong.until.is_some() => {
                wrong.until.is_some_and(|until| until < first.seq)
            }
            Some(first) => wrong.seq < first.seq,
        };
        if is_first {
            self.wrong = Some(wrong);
        }
    }
}

/// What is wrong with a checkpoint, or shown by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Problem {
    /// It is no checkpoint of the form.
    Malformed,
    /// No key that is known signed it.
    UnknownKey,
    /// A signature in it is not by the key that it names.
    ForgedSignature,
    /// The records name its key, but nothing proves that this is the installation's.
    UntrustedKey,
    /// Its key was not in force at its size.
    RetiredKey,
    /// The records know nothing of its log.
    UnknownInstance,
    /// It covers more entries than there are.
    BeyondEnd,
    /// The entries give another root.
    RootDiffers,
}

/// A checkpoint that does not fit.
#[derive(Debug, Clone, Serialize)]
pub struct Refused {
    /// Its file.
    pub file: String,
    /// Where it begins there.
    pub line: u64,
    /// Of which instance it says to be, where it is that well formed.
    pub instance: Option<String>,
    /// How many entries it says to cover.
    pub size: Option<u64>,
    /// What is wrong.
    pub problem: Problem,
    /// In words.
    pub words: String,
}

/// What came of the checkpoints.
#[derive(Debug, Clone, Default, Serialize)]
pub struct CheckpointsChecked {
    /// How many were read.
    pub read: u64,
    /// How many fit the entries.
    pub fit: u64,
    /// How many do not.
    pub wrong: u64,
    /// How many cover only what was dropped since, so that no entry tells whether they fit.
    pub dropped: u64,
    /// The first of those.
    pub refused: Vec<Refused>,
}

impl CheckpointsChecked {
    /// Refused checkpoints that are kept for telling.
    const KEPT: usize = 1_000;

    fn refuse(&mut self, refused: Refused) {
        self.wrong += 1;
        if self.refused.len() < Self::KEPT {
            self.refused.push(refused);
        }
    }
}

/// What whoever verifies has from elsewhere.
#[derive(Debug, Clone, Default)]
pub struct Given {
    /// Files with checkpoints.
    pub checkpoints: Vec<PathBuf>,
    /// Keys that are known to be the installation's. Without any, the first one that the records name is believed.
    pub keys: Vec<VerifierKey>,
}

/// Everything that was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether nothing is wrong.
    pub right: bool,
    /// Each instance.
    pub instances: Vec<Checked>,
    /// The checkpoints that were given.
    pub checkpoints: CheckpointsChecked,
    /// The keys whose checkpoints were believed.
    pub keys: Vec<String>,
    /// Contracts and policies that entries name and whose texts are not the ones that decided.
    pub versions: Vec<WrongVersion>,
    /// What only the chain itself vouches for.
    pub uncovered: Option<Uncovered>,
}

/// Why it could not be checked.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file.
    #[error("cannot read {path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: std::io::Error,
    },
}

/// Checks every instance. `jobs` connections read at the same time; `progress` hears how many entries each stretch had.
///
/// # Errors
/// When the database is away or a file cannot be read.
pub async fn verify(
    options: &PgConnectOptions,
    jobs: usize,
    given: &Given,
    progress: impl Fn(u64) + Sync,
) -> Result<Report, VerifyError> {
    let mut connection = PgConnection::connect_with(options)
        .await
        .map_err(StoreError::from)?;
    let (keys, mut claims) = read(&mut connection, given).await?;
    // After the files: what they speak of was committed before.
    let extents = audit_log::extents(&mut connection).await?;
    let drops = keeping::known(&mut connection).await?;
    let beginnings = Beginnings::read(&mut connection, &extents, &keys).await?;
    let (mut checked, named) =
        chains(options, &extents, &drops, jobs, &mut claims, &progress).await?;
    begun(&mut checked, &beginnings);
    drops.hold_times(&mut checked);
    links::links(&mut connection, &mut checked, &beginnings, &drops).await?;
    drops.judge(&mut checked, &extents);
    let gone = drops.gone(&checked, &extents);
    let versions = versions::wrong(&mut connection, &named).await?;
    for (instance, wrong) in &keys.wrong {
        // Also where nothing is left of its instance: a key that nothing proves does not become right with its entry's end.
        let one = checked
            .entry(instance.clone())
            .or_insert_with(|| Checked::new(instance, 0));
        one.accuse(wrong.clone());
    }
    let checkpoints = claims.settle(&mut checked, &gone);
    let uncovered = cover::uncovered(&mut connection, &checked, &beginnings).await?;
    connection.close().await.map_err(StoreError::from)?;
    let instances: Vec<Checked> = checked.into_values().collect();
    Ok(Report {
        right: checkpoints.wrong == 0
            && versions.is_empty()
            && instances.iter().all(|one| one.wrong.is_none()),
        instances,
        checkpoints,
        keys: keys.trusted.iter().map(ToString::to_string).collect(),
        versions,
        uncovered,
    })
}

/// Names the chains that the installation did not begin.
fn begun(checked: &mut BTreeMap<String, Checked>, beginnings: &Beginnings) {
    for (instance, begun) in &beginnings.0 {
        let Some(one) = checked.get_mut(instance) else {
            continue;
        };
        one.signed = Some(begun.standing == Standing::Signed);
        if let Standing::Wrong(wrong) = &begun.standing {
            one.accuse(wrong.clone());
        }
    }
}

/// Keys and checkpoints. A key that was changed meanwhile makes both be read again, so that no new checkpoint meets old keys.
async fn read(connection: &mut PgConnection, given: &Given) -> Result<(Keys, Claims), VerifyError> {
    let mut changes = keeping::key_changes(connection).await?;
    let mut left = ATTEMPTS;
    loop {
        let keys = Keys::follow(&changes, &given.keys);
        let claims = Claims::read(&given.checkpoints, &keys)?;
        let again = keeping::key_changes(connection).await?;
        left -= 1;
        if again == changes || left == 0 {
            return Ok((keys, claims));
        }
        changes = again;
    }
}

/// Every chain in itself, and the roots of its tree where a checkpoint claims one.
async fn chains(
    options: &PgConnectOptions,
    extents: &[Extent],
    drops: &Drops,
    jobs: usize,
    claims: &mut Claims,
    progress: &(impl Fn(u64) + Sync),
) -> Result<(BTreeMap<String, Checked>, Named), StoreError> {
    let mut checked: BTreeMap<String, Checked> = BTreeMap::new();
    let mut named = Named::default();
    let mut found: Vec<(String, u64, Option<crate::checkpoint::Hash>)> = Vec::new();
    {
        let claims = &*claims;
        let work = extents.iter().flat_map(|extent| pieces(extent, drops));
        let mut results = stream::iter(work)
            .map(|piece| async move {
                let sizes = claims.sizes(&piece.extent.instance_id, piece.from, piece.to);
                let mut connection = PgConnection::connect_with(options).await?;
                let stretch = stretch(&mut connection, &piece, &sizes).await?;
                connection.close().await?;
                progress(stretch.entries);
                Ok::<_, StoreError>((piece, stretch))
            })
            .buffered(jobs.max(1));
        let mut roots = Roots::default();
        while let Some((piece, stretch)) = results.try_next().await? {
            roots.take(&piece, &stretch, &mut found);
            let extent = piece.extent;
            let one = checked
                .entry(extent.instance_id.clone())
                .or_insert_with(|| Checked::new(&extent.instance_id, extent.last));
            named.join(one.take(stretch, piece.to == extent.last));
        }
    }
    for (instance, size, root) in found {
        claims.found(&instance, size, root);
    }
    Ok((checked, named))
}

/// The stretches of an instance, each but the first from one multiple of [`STRETCH`] to the next.
fn pieces<'e>(extent: &'e Extent, drops: &Drops) -> impl Iterator<Item = Piece<'e>> {
    let Beginning {
        first,
        before: hash,
        tree,
    } = Beginning::of(extent, drops);
    let (left, tree) = tree.map(|tree| tree.split(LEVEL)).unzip();
    let mut before = Some(Before { hash, left, tree });
    let numbers = (first - 1) / STRETCH..=(extent.last - 1) / STRETCH;
    numbers.map(move |number| Piece {
        extent,
        from: (number * STRETCH + 1).max(first),
        to: ((number + 1) * STRETCH).min(extent.last),
        before: before.take(),
    })
}

impl Checked {
    /// Takes up one stretch, in order; gives which contracts and policies its entries name.
    fn take(&mut self, stretch: Stretch, is_last: bool) -> Named {
        self.entries += stretch.entries;
        self.faults += stretch.faults;
        if self.wrong.is_none() {
            self.wrong = stretch.wrong.into_iter().next();
        }
        if is_last {
            self.head = stretch.head.as_deref().map(secrets::hex);
        }
        self.first = self.first.or(stretch.first);
        stretch.named
    }
}
