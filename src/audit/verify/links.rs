//! How the chains hang together: the first entry of each start names the ends of those before.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use futures::TryStreamExt as _;
use serde_json::Value;
use sqlx::PgConnection;

use super::{Checked, Fault, Wrong};
use crate::{
    audit::{
        beginnings::{Beginnings, Begun},
        keeping::Drops,
        signed::PROMPT,
    },
    secrets,
    store::{
        StoreError,
        audit_log::{self, Stored},
    },
};

/// A head that the first entry of a later instance names.
#[derive(Debug, Clone)]
pub(in crate::audit) struct Followed {
    pub instance: String,
    pub seq: i64,
    pub hash: Option<String>,
    by: String,
}

/// The heads that a first entry names.
pub(in crate::audit) fn followed(stored: &Stored) -> Vec<Followed> {
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
                by: stored.instance_id.clone(),
            })
        })
        .collect()
}

/// Holds the chains against what later starts know of their ends. Only what a start says counts that is right itself.
pub(super) async fn links(
    connection: &mut PgConnection,
    checked: &mut BTreeMap<String, Checked>,
    beginnings: &Beginnings,
    drops: &Drops,
) -> Result<(), StoreError> {
    let starts: BTreeMap<&str, &Begun> = beginnings
        .0
        .iter()
        .filter(|(instance, begun)| begun.is_start && is_first_right(checked, instance))
        .map(|(instance, begun)| (instance.as_str(), begun))
        .collect();
    ends(checked, beginnings, &starts);
    let all = beginnings.0.values().flat_map(|begun| &begun.follows);
    for known in all {
        // A start that is not right itself tells only of what is gone, and accuses nothing that stands.
        if !starts.contains_key(known.by.as_str()) && checked.contains_key(&known.instance) {
            continue;
        }
        // An end whose row may be gone, because nothing or only what came later is left of its instance.
        let may_be_gone = checked
            .get(&known.instance)
            .is_none_or(|one| one.last > known.seq);
        let hash = known.hash.as_deref();
        if may_be_gone && drops.ended(checked, &known.instance, known.seq, hash) {
            continue;
        }
        let Some(one) = checked.get_mut(&known.instance) else {
            let words = format!(
                "all {} of its entries are gone; {} knows of them",
                known.seq, known.by
            );
            let mut gone = Checked::new(&known.instance, 0);
            gone.accuse(Wrong::new(1, Fault::Unlinked, words));
            checked.insert(known.instance.clone(), gone);
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
            one.accuse(Wrong::new(seq, fault, words));
        }
    }
    Ok(())
}

/// Whether the first entry of an instance is as it was written, by whom it may be.
fn is_first_right(checked: &BTreeMap<String, Checked>, instance: &str) -> bool {
    checked
        .get(instance)
        .is_some_and(|one| one.wrong.as_ref().is_none_or(|wrong| wrong.seq > 1))
}

/// What stands behind the ends that later starts know, and instances that the start after them does not know.
fn ends(
    checked: &mut BTreeMap<String, Checked>,
    beginnings: &Beginnings,
    starts: &BTreeMap<&str, &Begun>,
) {
    let mut named: BTreeMap<&str, (i64, BTreeSet<&str>)> = BTreeMap::new();
    for known in starts.values().flat_map(|begun| &begun.follows) {
        let (end, by) = named.entry(&known.instance).or_default();
        *end = known.seq.max(*end);
        by.insert(&known.by);
    }
    for (instance, one) in checked.iter_mut().filter(|(_, one)| one.entries > 0) {
        let behind = (Bound::Excluded(instance.as_str()), Bound::Unbounded);
        let mut later = starts.range::<str, _>(behind);
        let Some((next, start)) = later.next() else {
            continue;
        };
        let known = named.get(instance.as_str());
        let is_named = |by: &str| known.is_some_and(|(_, all)| all.contains(by));
        // A command may commit while a gateway starts, too late for that one to see it.
        let came_late = beginnings.0.get(instance).is_some_and(|begun| {
            !begun.is_start && begun.recorded_at + PROMPT >= start.recorded_at
        });
        let is_known = is_named(next)
            || came_late
                && later
                    .next()
                    .is_none_or(|(after_next, _)| is_named(after_next));
        if !is_known {
            let words = format!("{next}, the first start after it, does not know of this instance");
            one.accuse(Wrong::new(1, Fault::Unlinked, words));
        } else if let Some((end, _)) = known.filter(|(end, _)| one.last > *end) {
            let words = format!("its instance had ended with number {end}");
            one.accuse(Wrong::new(end + 1, Fault::Inserted, words));
        }
    }
}
