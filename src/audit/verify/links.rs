//! How the chains hang together: the first entry of each start names the ends of those before.

use std::collections::BTreeMap;

use futures::TryStreamExt as _;
use serde_json::Value;
use sqlx::PgConnection;

use super::{Checked, Fault, Wrong};
use crate::{
    audit::keeping::Drops,
    ids::InstanceId,
    secrets,
    store::{
        StoreError,
        audit_log::{self, Stored},
    },
};

/// A head that the first entry of a later instance names.
#[derive(Debug, Clone)]
pub(super) struct Followed {
    instance: String,
    seq: i64,
    hash: Option<String>,
    by: String,
}

/// The heads that a first entry names.
pub(super) fn followed(stored: &Stored, by: &str) -> Vec<Followed> {
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
pub(super) async fn links(
    connection: &mut PgConnection,
    checked: &mut BTreeMap<String, Checked>,
    follows: &[Followed],
    drops: &Drops,
) -> Result<(), StoreError> {
    ends(checked, follows);
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

/// What stands behind the ends that later starts know, and instances that no later start knows.
fn ends(checked: &mut BTreeMap<String, Checked>, follows: &[Followed]) {
    let newest: Option<&String> = follows.iter().map(|known| &known.by).max();
    for one in checked.values_mut() {
        let known = follows
            .iter()
            .filter(|known| known.instance == one.instance);
        let end = known.clone().map(|known| known.seq).max();
        let wrong = match end {
            Some(end) if one.last > end => Wrong::new(
                end + 1,
                Fault::Inserted,
                format!("its instance had ended with number {end}"),
            ),
            None if newest.is_some_and(|newest| one.instance < *newest)
                && is_instance(&one.instance) =>
            {
                Wrong::new(1, Fault::Unlinked, "no later start knows of this instance")
            }
            _ => continue,
        };
        one.accuse(wrong);
    }
}

fn is_instance(id: &str) -> bool {
    id.parse::<InstanceId>().is_ok()
}
