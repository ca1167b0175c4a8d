//! What the chains themselves tell of months that were dropped: where the entries ended that are gone. A chain whose beginning is
//! missing is whole exactly when such an entry leads to its first one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{KeyTold, Month, Part, from_hex, tree_of};
use crate::{
    audit::verify::{Checked, Fault, Wrong},
    checkpoint::Frontier,
    clock::Timestamp,
    entry::chain::Hash,
    ids::InstanceId,
    store::{
        StoreError,
        audit_log::{self, Extent, KeyChange},
        keeping,
    },
};

/// The detail of an entry that says that a month is about to be dropped.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Detail {
    pub month: Month,
    pub partition: String,
    pub entries: u64,
    /// The ends of what is dropped.
    pub instances: Vec<Part>,
    /// The ends that stand in entries of this kind which are dropped with the month.
    pub earlier: Vec<Earlier>,
    /// Every entry of kind `signing_key_changed` up to the end of the month.
    pub signing_keys: Vec<KeyTold>,
    pub export: Export,
    pub by: By,
}

/// Where an instance ended that was dropped earlier.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Earlier {
    pub instance: String,
    pub last: i64,
    pub hash: String,
    pub tree: Vec<String>,
}

/// The export that was checked before.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Export {
    pub file_sha256: String,
    pub file_bytes: u64,
    pub contents_sha256: String,
}

/// Who did it: the user of the operating system, and the role in the database.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct By {
    pub os_user: Option<String>,
    pub os_uid: u32,
    pub database_role: String,
}

/// An end that one such entry names.
#[derive(Debug, Clone)]
pub(in crate::audit) struct End {
    /// The number of the last entry that is gone.
    pub seq: i64,
    /// Its hash, in hexadecimal.
    pub hash: String,
    /// The tree over all up to it; none where what is told is none.
    pub tree: Option<Frontier>,
    /// The instance and the number of the entry that says so.
    by: (String, i64),
}

/// One such entry.
pub(super) struct Record {
    /// The instance and the number of the entry.
    pub by: (String, i64),
    pub recorded_at: Timestamp,
    pub detail: Detail,
}

/// Everything that is known of what was dropped.
#[derive(Default)]
pub(in crate::audit) struct Drops {
    ends: BTreeMap<String, Vec<End>>,
    pub(super) records: Vec<Record>,
}

/// Reads it from the entries. An entry that cannot be understood tells nothing.
///
/// # Errors
/// When the database is away.
pub(in crate::audit) async fn known(connection: &mut PgConnection) -> Result<Drops, StoreError> {
    let mut drops = Drops::default();
    for row in keeping::drops(connection).await? {
        let detail = row.detail.as_deref().map(serde_json::from_str::<Detail>);
        let Some(Ok(detail)) = detail else { continue };
        for end in detail.ends() {
            drops.ends.entry(end.instance).or_default().push(End {
                seq: end.last,
                hash: end.hash,
                tree: tree_of(end.last, &end.tree),
                by: (row.instance_id.clone(), row.seq),
            });
        }
        drops.records.push(Record {
            by: (row.instance_id, row.seq),
            recorded_at: row.recorded_at,
            detail,
        });
    }
    Ok(drops)
}

/// Every change of the key that signs checkpoints, in order: those that stand, and those that went with a month.
///
/// # Errors
/// When the database is away.
pub(in crate::audit) async fn key_changes(
    connection: &mut PgConnection,
) -> Result<Vec<KeyChange>, StoreError> {
    // In this order: whatever goes in between was told of before it went.
    let standing = audit_log::signing_keys(connection).await?;
    let drops = known(connection).await?;
    let mut all: BTreeMap<(String, i64), KeyChange> = BTreeMap::new();
    for record in &drops.records {
        let recorded_at = record.detail.month.ends();
        for told in &record.detail.signing_keys {
            let at = (told.instance.clone(), told.seq);
            let change = KeyChange {
                instance_id: told.instance.clone(),
                seq: told.seq,
                recorded_at,
                detail: Some(told.detail.to_string()),
            };
            // Each later record tells it again; the first is the nearest.
            all.entry(at).or_insert(change);
        }
    }
    for change in standing {
        all.insert((change.instance_id.clone(), change.seq), change);
    }
    Ok(all.into_values().collect())
}

impl Detail {
    /// The ends that it tells of.
    fn ends(&self) -> impl Iterator<Item = Earlier> {
        let now = self.instances.iter().map(|part| Earlier {
            instance: part.instance.clone(),
            last: part.last,
            hash: part.hash.clone(),
            tree: part.tree.clone(),
        });
        now.chain(self.earlier.iter().cloned())
    }
}

/// What is gone of an instance and truly told of.
pub(in crate::audit) struct Gone {
    /// The number of the last entry.
    pub last: i64,
    /// The roots of its tree at the sizes at which a month ended.
    pub roots: Vec<(u64, Hash)>,
}

impl Drops {
    /// What is truly told of, by instance; after [`Drops::judge`].
    pub fn gone(
        &self,
        checked: &BTreeMap<String, Checked>,
        extents: &[Extent],
    ) -> BTreeMap<String, Gone> {
        let stand: BTreeMap<&str, i64> = extents
            .iter()
            .map(|extent| (extent.instance_id.as_str(), extent.first))
            .collect();
        let mut gone = BTreeMap::new();
        for (instance, ends) in &self.ends {
            let first = stand.get(instance.as_str()).copied();
            let unled = first.is_some_and(|first| {
                let wrong = checked.get(instance).and_then(|one| one.wrong.as_ref());
                wrong.is_some_and(|wrong| wrong.seq < first)
            });
            let right = || ends.iter().filter(|end| end.is_right(checked));
            let last = right()
                .map(|end| end.seq)
                .filter(|seq| first.is_none_or(|first| *seq < first))
                .max();
            let Some(last) =
                last.filter(|last| !unled && first.is_none_or(|first| *last + 1 == first))
            else {
                continue;
            };
            let roots = right()
                .filter(|end| end.seq <= last)
                .filter_map(|end| end.tree.as_ref())
                .map(|tree| (tree.size(), tree.root()))
                .collect();
            gone.insert(instance.clone(), Gone { last, roots });
        }
        gone
    }

    /// The changes of keys that entries tell of which were recorded before `until`, and those that go now, in order.
    pub(super) fn keys_told(&self, until: Timestamp, now: &[KeyTold]) -> Vec<KeyTold> {
        let records = self.records.iter();
        let all: BTreeMap<(&str, i64), &KeyTold> = records
            .filter(|record| record.recorded_at < until)
            .flat_map(|record| &record.detail.signing_keys)
            .chain(now)
            .map(|told| ((told.instance.as_str(), told.seq), told))
            .collect();
        all.into_values().cloned().collect()
    }

    /// The end that leads to entry `first` of an instance, if one is told of.
    pub fn before(&self, instance: &str, first: i64) -> Option<&End> {
        let ends = self.ends.get(instance)?;
        ends.iter().rev().find(|end| end.seq + 1 == first)
    }

    /// Whether an instance that has no entry left is known to have ended so, by an entry that is right itself.
    pub fn ended(
        &self,
        checked: &BTreeMap<String, Checked>,
        instance: &str,
        seq: i64,
        hash: Option<&str>,
    ) -> bool {
        self.ends.get(instance).is_some_and(|ends| {
            ends.iter().any(|end| {
                end.seq == seq && Some(end.hash.as_str()) == hash && end.is_right(checked)
            })
        })
    }

    /// Holds what is told against times that are known: a month is over when it is dropped, whatever is left of an instance was
    /// recorded after it, and nothing of it was recorded in an instance that was made later.
    pub fn hold_times(&self, checked: &mut BTreeMap<String, Checked>) {
        for record in &self.records {
            let end = record.detail.month.ends();
            let first = |instance: &str| checked.get(instance).and_then(|one| one.first);
            let is_left_over = |part: &&Part| {
                first(&part.instance).is_some_and(|(seq, at)| seq == part.last + 1 && at < end)
            };
            let made = |instance: &str| {
                let id = instance.parse::<InstanceId>().ok();
                id.map_or(i64::MAX, |id| id.unix_ms())
            };
            let mut ends = record.detail.ends();
            let month = record.detail.month;
            let why = if record.recorded_at < end {
                format!("it says that {month} is dropped, which was not over")
            } else if let Some(part) = record.detail.instances.iter().find(is_left_over) {
                format!(
                    "it says that {} ended {month} with entry {}, and the one after that was recorded in it, too",
                    part.instance, part.last
                )
            } else if let Some(end) = ends.find(|one| made(&one.instance) >= end.timestamp_millis())
            {
                format!(
                    "it says that {month} held entries of {}, which is later",
                    end.instance
                )
            } else {
                continue;
            };
            if let Some(one) = checked.get_mut(&record.by.0) {
                one.accuse(Wrong::new(record.by.1, Fault::Misdated, why));
            }
        }
    }

    /// The entries that tell of what was dropped, as they stand before `until`.
    pub(super) fn tellers(&self, until: Timestamp) -> impl Iterator<Item = &str> {
        let records = self.records.iter();
        records
            .filter(move |record| record.recorded_at < until)
            .map(|record| record.by.0.as_str())
    }

    /// Every end that is told of by entries recorded before `until`, each instance's last.
    pub(super) fn told_before(&self, until: Timestamp) -> Vec<Earlier> {
        let mut last: BTreeMap<String, Earlier> = BTreeMap::new();
        let records = self.records.iter();
        for record in records.filter(|record| record.recorded_at < until) {
            for end in record.detail.ends() {
                let known = last.get(&end.instance);
                if known.is_none_or(|known| known.last < end.last) {
                    last.insert(end.instance.clone(), end);
                }
            }
        }
        last.into_values().collect()
    }

    /// Names what is missing without an entry that tells of it truly: an end that does not lead to the first entry that is left,
    /// or that is told of by an entry which is wrong itself.
    pub fn judge(&self, checked: &mut BTreeMap<String, Checked>, extents: &[Extent]) {
        for extent in extents.iter().filter(|extent| extent.first > 1) {
            let Some(end) = self.before(&extent.instance_id, extent.first) else {
                // Found missing like any other gap.
                continue;
            };
            let is_right = end.is_right(checked);
            let Some(one) = checked.get_mut(&extent.instance_id) else {
                continue;
            };
            let leads = one.wrong.as_ref().is_none_or(|wrong| {
                wrong.seq > extent.first || !matches!(wrong.fault, Fault::Changed)
            });
            let why = match (leads, is_right) {
                (true, true) => continue,
                (false, _) => "does not lead to",
                (true, false) => "is not itself as it was written, though it leads to",
            };
            one.faults += u64::from(leads);
            one.wrong = Some(Wrong::new(
                1,
                Fault::Missing,
                format!(
                    "{} missing, and entry {} of {}, which tells of their dropping, {why} entry {}",
                    crate::audit::verify::count(extent.first - 1),
                    end.by.1,
                    end.by.0,
                    extent.first
                ),
            ));
        }
    }
}

impl End {
    /// Its hash, if it is one.
    pub fn hash(&self) -> Option<Hash> {
        from_hex(&self.hash)
    }

    /// Whether what it tells can be, and the entry that tells it is as it was written.
    fn is_right(&self, checked: &BTreeMap<String, Checked>) -> bool {
        let (instance, seq) = &self.by;
        self.tree.is_some()
            && checked
                .get(instance)
                .is_some_and(|one| one.wrong.as_ref().is_none_or(|wrong| wrong.seq > *seq))
    }
}

/// Where an instance begins that is checked.
#[derive(Clone)]
pub(in crate::audit) struct Beginning {
    /// With which number.
    pub first: i64,
    /// The hash before it.
    pub before: Hash,
    /// The tree over all before it; none where nothing tells one.
    pub tree: Option<Frontier>,
}

impl Beginning {
    /// Of an instance.
    pub fn of(extent: &Extent, drops: &Drops) -> Self {
        let end = drops.before(&extent.instance_id, extent.first);
        match end.and_then(|end| Some((end.hash()?, end.tree.clone()))) {
            Some((before, tree)) if extent.first > 1 => Self {
                first: extent.first,
                before,
                tree,
            },
            // From 1, so that what is missing before the first entry is seen.
            _ => Self {
                first: 1,
                before: crate::entry::chain::START,
                tree: Some(Frontier::default()),
            },
        }
    }
}
