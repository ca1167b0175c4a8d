//! Which keys may sign checkpoints, and from which entry to which: the chain of keys as the entries tell of it, anchored in the
//! keys that whoever verifies was given, or else in the first one.

use std::collections::BTreeSet;

use super::{Fault, Wrong};
use crate::{
    audit::signing_keys::told, checkpoint::VerifierKey, clock::Timestamp,
    store::audit_log::KeyChange,
};

#[derive(Default)]
pub(in crate::audit) struct Keys {
    /// From which entry on each is in force: instance, number, key.
    timeline: Vec<(String, i64, VerifierKey)>,
    /// When each of those was recorded.
    times: Vec<Timestamp>,
    /// Those whose checkpoints count.
    pub trusted: BTreeSet<VerifierKey>,
    /// Those and all others that the records name.
    pub known: BTreeSet<VerifierKey>,
    /// Entries that name a key without proof, with their instance.
    pub wrong: Vec<(String, Wrong)>,
}

impl Keys {
    /// Follows the entries, which are in order.
    pub fn follow(changes: &[KeyChange], given: &[VerifierKey]) -> Self {
        let mut keys = Self {
            known: given.iter().cloned().collect(),
            ..Self::default()
        };
        let mut proved: Vec<(VerifierKey, VerifierKey)> = Vec::new();
        let mut unproved: Vec<(&KeyChange, VerifierKey)> = Vec::new();
        for change in changes {
            let told = change.detail.as_deref().and_then(told);
            let Some((told, new)) = told.and_then(|told| {
                let new = told.new.clone()?;
                Some((told, new))
            }) else {
                keys.accuse(change, "it names no key");
                continue;
            };
            let before = keys.timeline.last().map(|(_, _, key)| key);
            let follows = before.is_none() || before == told.old.as_ref();
            match told.handover {
                Some(handover) if follows => proved.push((handover.old, handover.new)),
                // Nothing comes before the first; who vouches for that one is seen below.
                _ if before.is_none() => {}
                _ => unproved.push((change, new.clone())),
            }
            keys.known.insert(new.clone());
            keys.times.push(change.recorded_at);
            keys.timeline
                .push((change.instance_id.clone(), change.seq, new));
        }
        keys.trust(given, &proved);
        for (change, new) in unproved {
            if !given.contains(&new) {
                keys.accuse(
                    change,
                    "the key before has not signed over to the one that it names",
                );
            }
        }
        if let (Some(first), Some((_, _, key))) = (changes.first(), keys.timeline.first())
            && !keys.trusted.contains(key)
        {
            keys.accuse(
                first,
                "the key that it names is none of those given, and leads to none",
            );
        }
        keys
    }

    /// Both keys signed each handover: who believes one of them may believe what it says of the other.
    fn trust(&mut self, given: &[VerifierKey], proved: &[(VerifierKey, VerifierKey)]) {
        self.trusted = given.iter().cloned().collect();
        if given.is_empty() {
            self.trusted
                .extend(self.timeline.first().map(|(_, _, key)| key.clone()));
        }
        // Each turn but the last one adds a key.
        for _ in 0..=proved.len() {
            let before = self.trusted.len();
            for (old, new) in proved {
                if self.trusted.contains(old) || self.trusted.contains(new) {
                    self.trusted.insert(old.clone());
                    self.trusted.insert(new.clone());
                }
            }
            if self.trusted.len() == before {
                break;
            }
        }
    }

    fn accuse(&mut self, change: &KeyChange, words: &str) {
        self.wrong.push((
            change.instance_id.clone(),
            Wrong::new(change.seq, Fault::UnprovedKey, words),
        ));
    }

    /// Whether no other key had followed this one by then. One that the records do not name was never replaced.
    pub fn was_in_force(&self, key: &VerifierKey, at: Timestamp) -> bool {
        let mut of_it = self
            .timeline
            .iter()
            .enumerate()
            .filter(|(_, (_, _, known))| known == key)
            .map(|(number, _)| self.times.get(number + 1))
            .peekable();
        of_it.peek().is_none() || of_it.any(|until| until.is_none_or(|until| at <= *until))
    }

    /// The key that signs a checkpoint of an instance at a size; none where the records name none yet.
    pub fn in_force(&self, instance: &str, size: u64) -> Option<&VerifierKey> {
        let size = i64::try_from(size).unwrap_or(i64::MAX);
        let behind = self
            .timeline
            .partition_point(|(at, seq, _)| (at.as_str(), *seq) <= (instance, size));
        let (_, _, key) = self.timeline.get(behind.checked_sub(1)?)?;
        Some(key)
    }
}
