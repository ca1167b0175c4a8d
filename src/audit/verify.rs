//! Checking the chains: every hash anew from the stored rows, in stretches side by side and row by row, so that neither time nor
//! memory grows with one long chain. Says which entry is the first wrong one of each instance, and what is wrong with it.

use std::collections::BTreeMap;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::Serialize;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};

use super::keeping::{self, Drops};
use crate::{
    entry::{Kind, chain},
    ids::InstanceId,
    secrets,
    store::{
        StoreError,
        audit_log::{self, Extent, Stored},
    },
};

/// Entries in one stretch.
const STRETCH: i64 = 50_000;
/// Wrong entries that are kept of one stretch, for telling how many there are and whether they were put into another order.
const KEPT: usize = 64;

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
    /// It and all behind it are gone, though a later start knows of them.
    TailCut,
    /// The chain fits in itself, but a later start knows another hash.
    Rewritten,
    /// Its whole instance is gone, though a later start knows of it, or is known to none.
    Unlinked,
    /// It has no hash, though entries before it have.
    Unchained,
}

/// The first wrong entry of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Wrong {
    /// Its number.
    pub seq: i64,
    /// What is wrong.
    pub fault: Fault,
    /// In words.
    pub words: String,
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
    /// Its first wrong entry.
    pub wrong: Option<Wrong>,
    /// How many were found wrong.
    pub faults: u64,
}

/// A head that the first entry of a later instance names.
#[derive(Debug, Clone)]
struct Followed {
    instance: String,
    seq: i64,
    hash: Option<String>,
    by: String,
}

/// What came of one stretch.
#[derive(Default)]
struct Stretch {
    entries: u64,
    wrong: Vec<Wrong>,
    faults: u64,
    head: Option<Vec<u8>>,
    follows: Vec<Followed>,
    suspects: Vec<Suspect>,
}

/// A row whose hash does not fit its place.
struct Suspect {
    seq: i64,
    stored: Stored,
    /// The hash before its place.
    before: chain::Hash,
}

/// Checks every instance. `jobs` connections read at the same time; `progress` hears how many entries each stretch had.
///
/// # Errors
/// When the database is away.
pub async fn verify(
    options: &PgConnectOptions,
    jobs: usize,
    progress: impl Fn(u64) + Sync,
) -> Result<Vec<Checked>, StoreError> {
    let mut connection = PgConnection::connect_with(options).await?;
    let extents = audit_log::extents(&mut connection).await?;
    let drops = keeping::known(&mut connection).await?;
    let mut checked: BTreeMap<String, Checked> = BTreeMap::new();
    let mut follows: Vec<Followed> = Vec::new();
    let work = extents.iter().flat_map(|extent| {
        let (first, before) = keeping::begins(&drops, extent);
        let stretches = (extent.last - first) / STRETCH + 1;
        (0..stretches).map(move |number| {
            let from = first + number * STRETCH;
            let before = (number == 0).then_some(before);
            (extent, from, (from + STRETCH - 1).min(extent.last), before)
        })
    });
    let progress = &progress;
    let mut results = stream::iter(work)
        .map(|(extent, from, to, before)| async move {
            let mut connection = PgConnection::connect_with(options).await?;
            let stretch = stretch(&mut connection, extent, from, to, before).await?;
            connection.close().await?;
            progress(stretch.entries);
            Ok::<_, StoreError>((extent, to, stretch))
        })
        .buffered(jobs.max(1));
    while let Some((extent, to, stretch)) = results.try_next().await? {
        let one = checked
            .entry(extent.instance_id.clone())
            .or_insert_with(|| Checked {
                instance: extent.instance_id.clone(),
                entries: 0,
                last: extent.last,
                head: None,
                wrong: None,
                faults: 0,
            });
        one.entries += stretch.entries;
        one.faults += stretch.faults;
        if one.wrong.is_none() {
            one.wrong = stretch.wrong.into_iter().next();
        }
        if to == extent.last {
            one.head = stretch.head.as_deref().map(secrets::hex);
        }
        follows.extend(stretch.follows);
    }
    drop(results);
    ends(&mut checked, &follows);
    links(&mut connection, &mut checked, &follows, &drops).await?;
    drops.judge(&mut checked, &extents);
    connection.close().await?;
    Ok(checked.into_values().collect())
}

/// `before` is the hash before its first entry, where that is not the hash of a row that still stands.
async fn stretch(
    connection: &mut PgConnection,
    extent: &Extent,
    from: i64,
    to: i64,
    before: Option<chain::Hash>,
) -> Result<Stretch, StoreError> {
    let mut found = Stretch::default();
    let mut previous = before;
    let mut expected = from;
    let mut last_time = None;
    let mut buffer = Vec::with_capacity(1_024);
    // One row earlier, whose hash this stretch goes on from.
    let mut rows = audit_log::rows(connection, &extent.instance_id, (from - 1).max(1), to);
    while let Some(stored) = rows.try_next().await? {
        if stored.seq < from {
            previous = hash_of(&stored);
            last_time = Some(stored.recorded_at);
            continue;
        }
        found.entries += 1;
        if stored.seq < expected {
            found.fault(
                stored.seq,
                Fault::Inserted,
                "a second entry with this number",
            );
            continue;
        }
        if stored.seq > expected {
            let words = format!(
                "{} missing before number {}",
                count(stored.seq - expected),
                stored.seq
            );
            found.fault(expected, Fault::Missing, &words);
            previous = None;
        }
        expected = stored.seq + 1;
        let own = hash_of(&stored);
        found.head = stored.hash.clone();
        if let Some(before) = previous {
            let computed = chain::hash_with(&before, &stored.row(), &mut buffer);
            if own != Some(computed) {
                found.suspect(stored, before);
                previous = own;
                continue;
            }
        }
        if last_time.is_some_and(|last| stored.recorded_at < last) {
            found.fault(
                stored.seq,
                Fault::Reordered,
                "its time lies before that of the entry before it",
            );
        }
        last_time = Some(stored.recorded_at);
        if stored.kind == Kind::GatewayStarted.as_str() {
            found.follows.extend(followed(&stored, &extent.instance_id));
        }
        previous = own;
    }
    found.name_suspects();
    Ok(found)
}

fn hash_of(stored: &Stored) -> Option<chain::Hash> {
    stored.hash.as_deref()?.try_into().ok()
}

pub(super) fn count(entries: i64) -> String {
    match entries {
        1 => "one entry is".to_owned(),
        more => format!("{more} entries are"),
    }
}

impl Stretch {
    fn fault(&mut self, seq: i64, fault: Fault, words: &str) {
        self.faults += 1;
        if self.wrong.len() < KEPT {
            self.wrong.push(Wrong {
                seq,
                fault,
                words: words.to_owned(),
            });
        }
    }

    fn suspect(&mut self, stored: Stored, before: chain::Hash) {
        let seq = stored.seq;
        if stored.hash.is_none() {
            self.fault(seq, Fault::Unchained, "it has no hash");
        } else if self.suspects.len() < KEPT {
            self.suspects.push(Suspect {
                seq,
                stored,
                before,
            });
        } else {
            self.faults += 1;
        }
    }

    /// Rows that do not fit their places: an entry that fits the place of another one was moved, the others were changed.
    fn name_suspects(&mut self) {
        let suspects = std::mem::take(&mut self.suspects);
        // What stood before an entry at home: what stands before that place now, or one that was moved as well.
        let hashes: Vec<chain::Hash> = suspects
            .iter()
            .flat_map(|suspect| [Some(suspect.before), hash_of(&suspect.stored)])
            .flatten()
            .collect();
        for suspect in &suspects {
            let own = hash_of(&suspect.stored);
            let home = suspects.iter().find(|place| {
                place.seq != suspect.seq && {
                    let row = crate::entry::Row {
                        seq: place.seq,
                        ..suspect.stored.row()
                    };
                    hashes
                        .iter()
                        .any(|before| Some(chain::hash(before, &row)) == own)
                }
            });
            match home {
                Some(place) => {
                    let words = format!("the entry that stood at number {} stands here", place.seq);
                    self.fault(suspect.seq, Fault::Reordered, &words);
                }
                None => self.fault(
                    suspect.seq,
                    Fault::Changed,
                    "its columns do not give its hash, or its hash was changed",
                ),
            }
        }
        self.wrong.sort_by_key(|wrong| wrong.seq);
    }
}

/// The heads that a first entry names.
fn followed(stored: &Stored, by: &str) -> Vec<Followed> {
    let detail: Value = stored
        .detail
        .as_deref()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or_default();
    let heads = detail.get("follows").and_then(Value::as_array);
    heads
        .into_iter()
        .flatten()
        .filter_map(|head| {
            Some(Followed {
                instance: head.get("instance")?.as_str()?.to_owned(),
                seq: head.get("seq")?.as_i64()?,
                hash: head.get("hash").and_then(Value::as_str).map(str::to_owned),
                by: by.to_owned(),
            })
        })
        .collect()
}

/// Holds the chains against what later starts know of their ends.
async fn links(
    connection: &mut PgConnection,
    checked: &mut BTreeMap<String, Checked>,
    follows: &[Followed],
    drops: &Drops,
) -> Result<(), StoreError> {
    for known in follows {
        // An end whose row may be gone, because nothing or only what came later is left of its instance.
        let may_be_gone = checked
            .get(&known.instance)
            .is_none_or(|one| one.last > known.seq);
        let hash = known.hash.as_deref();
        if may_be_gone && drops.ended(checked, &known.instance, known.seq, hash) {
            continue;
        }
        let Some(one) = checked.get_mut(&known.instance) else {
            let wrong = Wrong {
                seq: 1,
                fault: Fault::Unlinked,
                words: format!(
                    "all {} of its entries are gone; {} knows of them",
                    known.seq, known.by
                ),
            };
            checked.insert(
                known.instance.clone(),
                Checked {
                    instance: known.instance.clone(),
                    entries: 0,
                    last: 0,
                    head: None,
                    wrong: Some(wrong),
                    faults: 1,
                },
            );
            continue;
        };
        let problem = if one.last < known.seq {
            Some((
                one.last + 1,
                Fault::TailCut,
                format!("cut off here; {} knows {} entries", known.by, known.seq),
            ))
        } else {
            let mut rows = audit_log::rows(connection, &known.instance, known.seq, known.seq);
            let stands = rows.try_next().await?.and_then(|stored| stored.hash);
            let fits = stands.as_deref().map(secrets::hex) == known.hash;
            (!fits).then(|| {
                (
                    known.seq,
                    Fault::Rewritten,
                    format!("{} knows another hash of it", known.by),
                )
            })
        };
        if let Some((seq, fault, words)) = problem {
            one.faults += 1;
            if one.wrong.as_ref().is_none_or(|wrong| wrong.seq > seq) {
                one.wrong = Some(Wrong { seq, fault, words });
            }
        }
    }
    Ok(())
}

/// What stands behind the ends that later starts know, and instances that no later start knows.
fn ends(checked: &mut BTreeMap<String, Checked>, follows: &[Followed]) {
    let newest: Option<&String> = follows.iter().map(|known| &known.by).max();
    for one in checked.values_mut() {
        let known = follows
            .iter()
            .filter(|known| known.instance == one.instance);
        let end = known.clone().map(|known| known.seq).max();
        let wrong = match end {
            Some(end) if one.last > end => Wrong {
                seq: end + 1,
                fault: Fault::Inserted,
                words: format!("its instance had ended with number {end}"),
            },
            None if newest.is_some_and(|newest| one.instance < *newest)
                && is_instance(&one.instance) =>
            {
                Wrong {
                    seq: 1,
                    fault: Fault::Unlinked,
                    words: "no later start knows of this instance".to_owned(),
                }
            }
            _ => continue,
        };
        one.faults += 1;
        if one.wrong.as_ref().is_none_or(|first| first.seq > wrong.seq) {
            one.wrong = Some(wrong);
        }
    }
}

fn is_instance(id: &str) -> bool {
    id.parse::<InstanceId>().is_ok()
}
