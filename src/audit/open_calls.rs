//! The intents that stand and have no outcome yet: from where a restart must look for what was left open.

use std::collections::{BTreeSet, HashMap};

use crate::{
    clock::Timestamp,
    entry::{Entry, Kind},
    ids::CallId,
};

#[derive(Default)]
pub(super) struct OpenCalls {
    since: HashMap<CallId, Timestamp>,
    by_time: BTreeSet<(Timestamp, CallId)>,
}

impl OpenCalls {
    /// An entry stands since `at`.
    pub fn track(&mut self, entry: &Entry, at: Timestamp) {
        let Some(call) = &entry.call_id else { return };
        match entry.kind {
            Some(Kind::Intent) => {
                self.since.insert(call.clone(), at);
                self.by_time.insert((at, call.clone()));
            }
            Some(Kind::Outcome | Kind::Ended) => {
                if let Some(since) = self.since.remove(call) {
                    self.by_time.remove(&(since, call.clone()));
                }
            }
            _ => {}
        }
    }

    pub fn track_all(&mut self, entries: &[Entry], at: Timestamp) {
        for entry in entries {
            self.track(entry, at);
        }
    }

    /// When the oldest of them was recorded.
    pub fn oldest(&self) -> Option<Timestamp> {
        self.by_time.first().map(|(since, _)| *since)
    }
}
