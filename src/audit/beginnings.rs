//! How each chain begins, for whoever checks it: with what, when, under whose signature, and which ends before it a start names. A
//! chain that nobody signed counts only if it is older than the first that was signed, and that one knows of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use sqlx::PgConnection;

use super::{
    signed::{PROMPT, signers},
    verify::{Fault, Followed, Keys, Wrong, followed},
};
use crate::{
    clock::Timestamp,
    entry::{Kind, chain::Hash},
    ids::InstanceId,
    store::{
        StoreError,
        audit_log::{self, Extent, Stored},
    },
};

/// Instances whose beginnings are read at once.
const AT_ONCE: usize = 256;
/// What commands beside a gateway record, each in a chain of its own.
const COMMANDS: [Kind; 3] = [Kind::KeyCreated, Kind::PartitionDropped, Kind::WorkViewed];
/// How far the time of a beginning that nobody signed may lie before that of its id: earlier versions read the clock first.
const CLOCK: chrono::TimeDelta = chrono::TimeDelta::seconds(1);

/// Whose word a beginning is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Standing {
    /// A key that is trusted signed it.
    Signed,
    /// Nobody signed it, and it is older than the first start that was signed, which leads to it.
    FromBefore,
    /// It is not as anything begins that the installation wrote.
    Wrong(Wrong),
}

/// How one chain begins.
pub(super) struct Begun {
    /// Whether it is that of a gateway, and not of a command.
    pub is_start: bool,
    /// Whether it tells of a drop.
    is_drop: bool,
    /// When its first entry was recorded.
    pub recorded_at: Timestamp,
    /// The ends before it that it names.
    pub follows: Vec<Followed>,
    pub standing: Standing,
}

/// How the chains begin whose first entry is there.
pub(super) struct Beginnings(pub BTreeMap<String, Begun>);

impl Beginnings {
    /// Reads and judges them.
    pub async fn read(
        connection: &mut PgConnection,
        extents: &[Extent],
        keys: &Keys,
    ) -> Result<Self, StoreError> {
        let mut all = BTreeMap::new();
        let mut unsigned = BTreeSet::new();
        let whole: Vec<&Extent> = extents.iter().filter(|extent| extent.first == 1).collect();
        for some in whole.chunks(AT_ONCE) {
            let names: Vec<String> = some.iter().map(|one| one.instance_id.clone()).collect();
            let mut rows = audit_log::beginnings(connection, &names)
                .await?
                .into_iter()
                .peekable();
            for extent in some {
                let mut own = Vec::new();
                while let Some(row) = rows.next_if(|row| row.instance_id == extent.instance_id) {
                    own.push(row);
                }
                let mut own = own.into_iter();
                let Some(first) = own.next().filter(|first| first.seq == 1) else {
                    continue;
                };
                let second = own.find(|row| row.seq == 2);
                let (begun, is_signed) = judged(&first, second.as_ref(), extent.last, keys);
                if !is_signed && begun.standing == Standing::FromBefore {
                    unsigned.insert(extent.instance_id.clone());
                }
                all.insert(extent.instance_id.clone(), begun);
            }
        }
        let mut found = Self(all);
        found.hold_unsigned(unsigned);
        Ok(found)
    }

    /// Of what nobody signed, only that may stand which the first signed start leads to. Where nothing is signed yet, earlier versions
    /// wrote it all, and only a record of a drop, under which a beginning would go, must wait for the first start that signs.
    fn hold_unsigned(&mut self, mut unsigned: BTreeSet<String>) {
        let is_signed = |begun: &Begun| begun.standing == Standing::Signed;
        let mut signed = self.0.iter().filter(|(_, begun)| is_signed(begun));
        let first = signed.clone().find(|(_, begun)| begun.is_start);
        let first = first.map(|(instance, _)| instance.clone());
        if signed.next().is_none() {
            unsigned.retain(|instance| self.0.get(instance).is_some_and(|begun| begun.is_drop));
        }
        let mut leads: VecDeque<String> = first.iter().cloned().collect();
        while let Some(begun) = leads.pop_front().and_then(|by| self.0.get(&by)) {
            let older = |end: &&Followed| first.as_ref().is_some_and(|first| end.instance < *first);
            for known in begun.follows.iter().filter(older) {
                if unsigned.remove(&known.instance) {
                    leads.push_back(known.instance.clone());
                }
            }
        }
        for instance in unsigned {
            if let Some(begun) = self.0.get_mut(&instance) {
                let words = "nobody signed that it begins, and the first start that was signed does not lead to it";
                begun.standing = Standing::Wrong(Wrong::new(1, Fault::Unsigned, words));
            }
        }
    }

    /// Whether the chain is one that the installation began, or is known to have begun before it signed anything.
    pub fn is_right(&self, instance: &str) -> bool {
        let begun = self.0.get(instance);
        begun.is_some_and(|begun| !matches!(begun.standing, Standing::Wrong(_)))
    }
}

/// One beginning, and whether it is signed. What nobody signed counts as from before, until the others are known.
fn judged(first: &Stored, second: Option<&Stored>, last: i64, keys: &Keys) -> (Begun, bool) {
    let is_start = first.kind == Kind::GatewayStarted.as_str();
    let signature = second.filter(|second| second.kind == Kind::ChainSigned.as_str());
    let standing = match kind_of(first, signature.is_some(), last)
        .and_then(|()| dated(first, is_start, signature.is_some()))
    {
        Err(wrong) => Standing::Wrong(wrong),
        Ok(()) => match signature {
            None => Standing::FromBefore,
            Some(second) => match is_signed(first, second, keys) {
                Ok(()) => Standing::Signed,
                Err(wrong) => Standing::Wrong(wrong),
            },
        },
    };
    let begun = Begun {
        is_start,
        is_drop: first.kind == Kind::PartitionDropped.as_str(),
        recorded_at: first.recorded_at,
        follows: if is_start {
            followed(first)
        } else {
            Vec::new()
        },
        standing,
    };
    (begun, signature.is_some())
}

/// A chain is that of a gateway, or of a command, which records one thing.
fn kind_of(first: &Stored, is_signed: bool, last: i64) -> Result<(), Wrong> {
    if first.kind == Kind::GatewayStarted.as_str() {
        return Ok(());
    }
    if !COMMANDS.iter().any(|kind| kind.as_str() == first.kind) {
        let words = format!(
            "no chain begins with {}: a gateway begins with gateway_started, and a command records nothing of the kind",
            first.kind
        );
        return Err(Wrong::new(1, Fault::Inserted, words));
    }
    let end = if is_signed { 2 } else { 1 };
    if last > end {
        let words = "a command had recorded what it did, and records nothing more".to_owned();
        return Err(Wrong::new(end + 1, Fault::Inserted, words));
    }
    Ok(())
}

/// The id says when it was made.
fn dated(first: &Stored, is_start: bool, is_signed: bool) -> Result<(), Wrong> {
    let wrong = |words: String| Wrong::new(1, Fault::Misdated, words);
    let made = first.instance_id.parse::<InstanceId>().ok();
    let made = made.and_then(|id| Timestamp::from_timestamp_millis(id.unix_ms()));
    let Some(made) = made else {
        return Err(wrong("its instance's name is no id".to_owned()));
    };
    let earliest = if is_signed { made } else { made - CLOCK };
    if first.recorded_at < earliest {
        return Err(wrong(format!(
            "it says that it was recorded before {}, when its instance's id was made",
            made.to_rfc3339()
        )));
    }
    if !is_start && first.recorded_at > made + PROMPT {
        return Err(wrong(format!(
            "it says that it was recorded long after {}, when its command ran",
            made.to_rfc3339()
        )));
    }
    Ok(())
}

fn is_signed(first: &Stored, second: &Stored, keys: &Keys) -> Result<(), Wrong> {
    let hash: Option<Hash> = first.hash.as_deref().and_then(|hash| hash.try_into().ok());
    let detail = second.detail.as_deref().unwrap_or_default();
    let signers = signers(
        detail,
        &first.instance_id,
        &hash.unwrap_or_default(),
        keys.known.iter(),
    )
    .map_err(|refused| {
        let words = format!("the signature in its second entry does not hold: {refused}");
        Wrong::new(1, Fault::Unsigned, words)
    })?;
    let mut trusted = signers
        .into_iter()
        .filter(|key| keys.trusted.contains(*key))
        .peekable();
    if trusted.peek().is_none() {
        let words = "its second entry is signed with a key of which nothing proves that it is the installation's";
        return Err(Wrong::new(1, Fault::UnprovedKey, words));
    }
    if !trusted.any(|key| keys.was_in_force(key, first.recorded_at - PROMPT)) {
        let words = "its second entry is signed with a key that had been replaced by then";
        return Err(Wrong::new(1, Fault::Unsigned, words));
    }
    Ok(())
}
