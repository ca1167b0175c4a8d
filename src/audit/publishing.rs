//! When checkpoints are made: every so many entries and after so much time, but only of what stands, and only when there is
//! something new. The writer makes them between two commits; whoever keeps them never holds it up.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    checkpoint::{Checkpoint, Frontier, SigningKey},
    ids::InstanceId,
    signing::Held,
    sinks::{Outgoing, Sinks},
};

/// Who signs what is recorded, how often, and who keeps that.
pub struct Checkpoints {
    /// The key, with the handovers that led to it.
    pub held: Held,
    /// Entries after which there is a new checkpoint.
    pub every_entries: u64,
    /// Time after which there is one, if anything is new.
    pub every: Duration,
    /// Who keeps them.
    pub sinks: Sinks,
}

pub(super) struct Publisher {
    instance: String,
    key: SigningKey,
    every_entries: u64,
    every: Duration,
    sinks: Sinks,
    /// How many entries the last checkpoint covers.
    told: u64,
    /// Since when there have been entries that it does not cover.
    new_since: Option<Instant>,
}

impl Publisher {
    pub fn new(checkpoints: Checkpoints, instance: &InstanceId) -> Self {
        Self {
            instance: instance.as_str().to_owned(),
            key: checkpoints.held.key,
            every_entries: checkpoints.every_entries.max(1),
            every: checkpoints.every,
            sinks: checkpoints.sinks,
            told: 0,
            new_since: None,
        }
    }

    /// This key signs from here on.
    pub fn sign_with(&mut self, key: SigningKey) {
        tracing::info!(key = %key.verifier(), "checkpoints are signed with a new key");
        self.key = key;
    }

    /// By when a checkpoint must be made; none while nothing is new.
    pub fn due(&self) -> Option<Instant> {
        Some(self.new_since? + self.every)
    }

    /// More stands than before. Under load this, and not the clock, is where a checkpoint that is due is made.
    pub fn grown(&mut self, tree: &Frontier) {
        if tree.size() <= self.told {
            return;
        }
        let since = *self.new_since.get_or_insert_with(Instant::now);
        if tree.size() - self.told >= self.every_entries || since.elapsed() >= self.every {
            self.publish(tree);
        }
    }

    /// Makes one of all that stands, if anything is new. INVARIANT: `tree` covers only entries that are committed.
    pub fn publish(&mut self, tree: &Frontier) {
        self.new_since = None;
        if tree.size() <= self.told {
            return;
        }
        self.told = tree.size();
        if self.sinks.is_empty() {
            return;
        }
        let checkpoint = Checkpoint {
            origin: Checkpoint::origin_of(self.key.verifier().name(), &self.instance),
            size: tree.size(),
            root: tree.root(),
        };
        self.sinks.send(Outgoing {
            instance: self.instance.clone(),
            size: checkpoint.size,
            note: checkpoint.signed(&self.key),
        });
    }
}
