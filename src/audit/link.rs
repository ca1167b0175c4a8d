//! This instance's chain as it grows: entries become rows with numbers and hashes, and count only once they stand.

use crate::{
    checkpoint::Frontier,
    clock::Timestamp,
    entry::{
        Entry, Row,
        chain::{self, Hash},
    },
    ids::InstanceId,
};

pub(super) struct Chain {
    instance: InstanceId,
    /// Number of the last row known to stand.
    seq: i64,
    /// Its hash.
    head: Hash,
    /// The Merkle tree over the hashes of all of them.
    tree: Frontier,
}

impl Chain {
    pub fn new(instance: InstanceId) -> Self {
        Self {
            instance,
            seq: 0,
            head: chain::START,
            tree: Frontier::default(),
        }
    }

    pub const fn instance(&self) -> &InstanceId {
        &self.instance
    }

    pub const fn seq(&self) -> i64 {
        self.seq
    }

    /// The tree over what stands.
    pub const fn tree(&self) -> &Frontier {
        &self.tree
    }

    /// The rows that entries become next, and their hashes. Nothing counts before [`Chain::advance`].
    pub fn linked<'a>(
        &'a self,
        at: Timestamp,
        entries: impl Iterator<Item = &'a Entry>,
    ) -> (Vec<Row<'a>>, Vec<Hash>) {
        let (mut rows, mut hashes) = (Vec::new(), Vec::new());
        let (mut head, mut buffer) = (self.head, Vec::with_capacity(1_024));
        for (seq, entry) in (self.seq + 1..).zip(entries) {
            let row = entry.row(self.instance.as_str(), seq, at);
            head = chain::hash_with(&head, &row, &mut buffer);
            hashes.push(head);
            rows.push(row);
        }
        (rows, hashes)
    }

    /// These stand, and the chain goes on from the last of them.
    pub fn advance(&mut self, hashes: &[Hash]) {
        self.seq += i64::try_from(hashes.len()).unwrap_or(0);
        if let Some(last) = hashes.last() {
            self.head = *last;
        }
        for hash in hashes {
            self.tree.push(hash);
        }
    }
}
