//! Keeping the records and letting go of them: a month is exported, the export is checked, and only then may its partition be
//! dropped. What an export is stands here: its form, and the manifest beside it.
//!
//! An export is a gzip file of lines. The first is `{"toolgate_export":1,"month":"2026-01"}`. Then comes each entry of the month, by
//! instance and number, as `{"entry":…,"hash":"…"}`, where `entry` is the RFC 8785 text that was hashed (see [`crate::entry::chain`]);
//! the first of each instance has `"before":"…"`, the hash ahead of it, between the two. Then come the contracts and policies that the
//! entries name, as `{"version":{"content","digest","kind","name"}}`, by digest. So two exports of the same entries have the same
//! content, byte for byte.

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use chrono::{Datelike as _, Months, NaiveDate};
use serde::{Deserialize, Serialize};

use super::CommandError;
use crate::{checkpoint::Frontier, clock::Timestamp, secrets, store::StoreError};

mod check;
mod dropped;
mod dropping;
mod export;

pub use check::check;
pub(super) use dropped::{Beginning, Drops, Gone, key_changes, known};
pub use dropping::{Dropped, Operator, drop_month};
pub use export::{contents, export};

/// The form that this program writes and reads.
const FORMAT: u32 = 1;
/// Instances in one month at the most: their ends are held in memory and stand in one entry.
const INSTANCES: usize = 100_000;

/// A month of UTC: what one partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Month(NaiveDate);

/// Why a text is no month.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a month of the form YYYY-MM")]
pub struct NotAMonth;

impl Month {
    /// Its first moment.
    pub fn begins(self) -> Timestamp {
        self.0.and_time(chrono::NaiveTime::MIN).and_utc()
    }

    /// The first moment after it.
    pub fn ends(self) -> Timestamp {
        self.0
            .checked_add_months(Months::new(1))
            .unwrap_or(NaiveDate::MAX)
            .and_time(chrono::NaiveTime::MIN)
            .and_utc()
    }

    /// The name of its partition.
    fn partition(self) -> String {
        format!("entries_{:04}_{:02}", self.0.year(), self.0.month())
    }
}

impl fmt::Display for Month {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}", self.0.year(), self.0.month())
    }
}

impl FromStr for Month {
    type Err = NotAMonth;

    fn from_str(text: &str) -> Result<Self, NotAMonth> {
        let (year, month) = text.split_once('-').ok_or(NotAMonth)?;
        let digits = |text: &str, count| {
            text.len() == count && text.bytes().all(|byte| byte.is_ascii_digit())
        };
        if !digits(year, 4) || !digits(month, 2) {
            return Err(NotAMonth);
        }
        let (year, month) = (year.parse().ok(), month.parse().ok());
        year.zip(month)
            .and_then(|(year, month)| NaiveDate::from_ymd_opt(year, month, 1))
            .map(Self)
            .ok_or(NotAMonth)
    }
}

impl TryFrom<String> for Month {
    type Error = NotAMonth;

    fn try_from(text: String) -> Result<Self, NotAMonth> {
        text.parse()
    }
}

impl From<Month> for String {
    fn from(month: Month) -> Self {
        month.to_string()
    }
}

/// The entries of one instance in a month: numbers `first` to `last`, without a gap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// The instance.
    pub instance: String,
    /// The number of its first entry in the month.
    pub first: i64,
    /// The number of its last.
    pub last: i64,
    /// The hash before the first, in hexadecimal: zeros where that is the very first of the instance.
    pub before: String,
    /// The hash of the last.
    pub hash: String,
    /// The RFC 6962 tree over its entries before the first, as the roots of its complete subtrees, the largest first: what the tree
    /// over the others goes on from.
    pub tree_before: Vec<String>,
    /// The same at the last: from here on the tree goes on without this month.
    pub tree: Vec<String>,
}

/// An entry that names the key which signs checkpoints. Without it nobody could follow the keys from the first one on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyTold {
    /// The instance.
    pub instance: String,
    /// Its number.
    pub seq: i64,
    /// Its detail, as it stands there: keys, and the note by which one hands over to the other.
    pub detail: serde_json::Value,
}

/// What an export holds. Equal for the same entries, and different where one byte of one entry differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contents {
    /// The month.
    pub month: Month,
    /// How many entries.
    pub entries: u64,
    /// The ends of each instance's entries, by instance.
    pub instances: Vec<Part>,
    /// Its entries of kind `signing_key_changed`, by instance and number.
    pub signing_keys: Vec<KeyTold>,
    /// Digests of the contracts and policies whose texts are in it.
    pub versions: Vec<String>,
    /// Those that the entries name and `audit.versions` does not have.
    pub missing_versions: Vec<String>,
    /// SHA-256 over the lines, before compression.
    pub sha256: String,
}

/// The file beside an export.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub toolgate_export: u32,
    /// When it was made.
    pub exported_at: Timestamp,
    /// What is in the file.
    pub contents: Contents,
    /// SHA-256 over the file.
    pub file_sha256: String,
    /// How many bytes it has.
    pub file_bytes: u64,
}

/// Where the manifest of an export stands.
pub fn manifest_path(export: &Path) -> PathBuf {
    let mut name = export.as_os_str().to_owned();
    name.push(".manifest.json");
    name.into()
}

/// Why a month was not exported, an export does not verify, or a month was not dropped.
#[derive(Debug, thiserror::Error)]
pub enum KeepingError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file.
    #[error("{}: {error}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        error: std::io::Error,
    },
    /// Compressing failed, which only the file behind it can cause.
    #[error(transparent)]
    Write(#[from] std::io::Error),
    /// The table's entries are not as they were written.
    #[error(
        "{instance}, entry {seq}: {words}; nothing is exported or dropped before `toolgate audit verify` is content"
    )]
    Broken {
        /// The instance.
        instance: String,
        /// The number.
        seq: i64,
        /// What is wrong.
        words: String,
    },
    /// The export is not what it should be.
    #[error("the export does not verify: {0}")]
    Export(String),
    /// There is no signature to drop it under.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The month may not be dropped.
    #[error("{0}")]
    Refused(String),
}

impl KeepingError {
    fn file(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { path, error }
    }

    fn too_many() -> Self {
        Self::Refused(format!(
            "more than {INSTANCES} starts and commands recorded in this month; this version cannot export it"
        ))
    }
}

/// A tree as it is told.
fn shown(tree: &Frontier) -> Vec<String> {
    tree.peaks().iter().map(|peak| secrets::hex(peak)).collect()
}

/// The tree over the entries up to `last` that is told so; none where it can be none.
fn tree_of(last: i64, peaks: &[String]) -> Option<Frontier> {
    let peaks: Option<Vec<_>> = peaks.iter().map(|peak| from_hex(peak)).collect();
    Frontier::from_peaks(u64::try_from(last).ok()?, peaks?)
}

fn from_hex(text: &str) -> Option<crate::entry::chain::Hash> {
    let mut hash = crate::entry::chain::START;
    if text.len() != 2 * hash.len() || !text.is_ascii() {
        return None;
    }
    for (byte, at) in hash.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
    }
    (secrets::hex(&hash) == text).then_some(hash)
}
