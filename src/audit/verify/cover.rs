//! What nothing vouches for but the chain itself: entries that no checkpoint covers which was given, that no start which is vouched
//! for names, and that are not signed in themselves.

use std::collections::BTreeMap;

use futures::TryStreamExt as _;
use serde::Serialize;
use sqlx::PgConnection;

use super::Checked;
use crate::{
    audit::beginnings::{Beginnings, Standing},
    clock::Timestamp,
    store::{StoreError, audit_log},
};

/// How much that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Uncovered {
    /// How many entries.
    pub entries: u64,
    /// When the first of them says that it was recorded.
    pub since: Option<Timestamp>,
}

/// Counts them; none where everything is covered.
pub(super) async fn uncovered(
    connection: &mut PgConnection,
    checked: &BTreeMap<String, Checked>,
    beginnings: &Beginnings,
) -> Result<Option<Uncovered>, StoreError> {
    let mut known: BTreeMap<&str, i64> = BTreeMap::new();
    // From the newest on: each names only what is older.
    for (instance, begun) in beginnings.0.iter().rev() {
        let own = checked.get(instance);
        let is_vouched = begun.standing == Standing::Signed
            || own.is_some_and(|one| one.checkpointed.is_some())
            || known.contains_key(instance.as_str());
        if is_vouched && beginnings.is_right(instance) {
            for end in &begun.follows {
                let seq = known.entry(&end.instance).or_default();
                *seq = end.seq.max(*seq);
            }
        }
    }
    let mut found = Uncovered {
        entries: 0,
        since: None,
    };
    for (instance, one) in checked.iter().filter(|(_, one)| one.entries > 0) {
        let signed = match beginnings.0.get(instance) {
            Some(begun) if begun.standing == Standing::Signed => {
                if begun.is_start {
                    1
                } else {
                    one.last
                }
            }
            _ => 0,
        };
        let by_checkpoint = one.checkpointed.and_then(|size| i64::try_from(size).ok());
        let by_start = known.get(instance.as_str()).copied();
        let covered = [by_checkpoint, by_start, one.first.map(|(seq, _)| seq - 1)];
        let covered = covered.into_iter().flatten().fold(signed, i64::max);
        if covered >= one.last {
            continue;
        }
        found.entries += u64::try_from(one.last - covered).unwrap_or(0);
        let mut rows = audit_log::rows(connection, instance, covered + 1, covered + 1);
        if let Some(first) = rows.try_next().await? {
            let at = first.recorded_at;
            found.since = Some(found.since.map_or(at, |since| since.min(at)));
        }
    }
    Ok((found.entries > 0).then_some(found))
}
