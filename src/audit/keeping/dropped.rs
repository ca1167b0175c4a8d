//! What the chains themselves tell of months that were dropped: where the entries ended that are gone. A chain whose beginning is
//! missing is whole exactly when such an entry leads to its first one.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sqlx::PgConnection;

use super::{Month, Part, from_hex};
use crate::{
    audit::verify::{Checked, Fault, Wrong},
    clock::Timestamp,
    entry::chain::Hash,
    store::{StoreError, audit_log::Extent, keeping},
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
    /// The instance and the number of the entry that says so.
    by: (String, i64),
}

/// One such entry.
pub(super) struct Record {
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
        let now = detail
            .instances
            .iter()
            .map(|part| (&part.instance, part.last, &part.hash));
        let before = detail
            .earlier
            .iter()
            .map(|end| (&end.instance, end.last, &end.hash));
        for (instance, seq, hash) in now.chain(before) {
            drops.ends.entry(instance.clone()).or_default().push(End {
                seq,
                hash: hash.clone(),
                by: (row.instance_id.clone(), row.seq),
            });
        }
        drops.records.push(Record {
            recorded_at: row.recorded_at,
            detail,
        });
    }
    Ok(drops)
}

impl Drops {
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

    /// Every end that is told of by entries recorded before `until`, each instance's last.
    pub(super) fn told_before(&self, until: Timestamp) -> Vec<Earlier> {
        let mut last: BTreeMap<&str, (i64, &str)> = BTreeMap::new();
        let records = self.records.iter();
        for record in records.filter(|record| record.recorded_at < until) {
            let detail = &record.detail;
            let now = detail
                .instances
                .iter()
                .map(|part| (&part.instance, part.last, &part.hash));
            let before = detail
                .earlier
                .iter()
                .map(|end| (&end.instance, end.last, &end.hash));
            for (instance, seq, hash) in now.chain(before) {
                let known = last.entry(instance).or_insert((seq, hash));
                if known.0 < seq {
                    *known = (seq, hash);
                }
            }
        }
        last.into_iter()
            .map(|(instance, (last, hash))| Earlier {
                instance: instance.to_owned(),
                last,
                hash: hash.to_owned(),
            })
            .collect()
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

    fn is_right(&self, checked: &BTreeMap<String, Checked>) -> bool {
        let (instance, seq) = &self.by;
        checked
            .get(instance)
            .is_some_and(|one| one.wrong.as_ref().is_none_or(|wrong| wrong.seq > *seq))
    }
}

/// Where the first stretch of an instance begins, and the hash before it.
pub(in crate::audit) fn begins(drops: &Drops, extent: &Extent) -> (i64, Hash) {
    let end = drops.before(&extent.instance_id, extent.first);
    match end.and_then(End::hash) {
        Some(hash) if extent.first > 1 => (extent.first, hash),
        // From 1, so that what is missing before the first entry is seen.
        _ => (1, crate::entry::chain::START),
    }
}
