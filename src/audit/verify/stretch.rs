//! One stretch of one chain: every hash anew, row by row, and the part of the Merkle tree that lies over it.

use std::iter::Peekable;

use futures::TryStreamExt as _;
use sqlx::PgConnection;

use super::{Fault, Wrong, versions::Named};
use crate::{
    checkpoint::{Frontier, Hash},
    clock::Timestamp,
    entry::{Kind, chain},
    store::{
        StoreError,
        audit_log::{self, Extent, Stored},
    },
};

/// Wrong entries that are kept of one stretch, for telling how many there are and whether they were put into another order.
const KEPT: usize = 64;

/// What came of one stretch.
#[derive(Default)]
pub(super) struct Stretch {
    pub entries: u64,
    pub wrong: Vec<Wrong>,
    pub faults: u64,
    pub head: Option<Vec<u8>>,
    /// Number and time of its first entry.
    pub first: Option<(i64, Timestamp)>,
    /// The contracts and policies that its entries name.
    pub named: Named,
    /// The tree over its hashes; none from where one is missing.
    pub tree: Option<Frontier>,
    /// For each size that was asked for: the tree's right-hand part at that size.
    pub tails: Vec<(u64, Option<Hash>)>,
    suspects: Vec<Suspect>,
}

/// A row whose hash does not fit its place.
struct Suspect {
    seq: i64,
    stored: Stored,
    /// The hash before its place.
    before: chain::Hash,
}

/// Which entries a stretch is.
pub(super) struct Piece<'e> {
    pub extent: &'e Extent,
    /// The number of its first entry.
    pub from: i64,
    /// The number of its last.
    pub to: i64,
    /// What lies before the first one of an instance. The others go on from the row before them.
    pub before: Option<Before>,
}

/// What lies before the first entry that is left of an instance.
pub(super) struct Before {
    pub hash: chain::Hash,
    /// The tree up to where whole stretches end; none where nothing tells it.
    pub left: Option<Frontier>,
    /// The tree behind that.
    pub tree: Option<Frontier>,
}

/// Reads and checks one stretch. `sizes` are those at which somebody knows a root, in order.
pub(super) async fn stretch(
    connection: &mut PgConnection,
    piece: &Piece<'_>,
    sizes: &[u64],
) -> Result<Stretch, StoreError> {
    let (extent, from, to) = (piece.extent, piece.from, piece.to);
    let before = piece.before.as_ref();
    let mut found = Stretch {
        tree: before.map_or_else(|| Some(Frontier::default()), |before| before.tree.clone()),
        ..Stretch::default()
    };
    let mut sizes = sizes.iter().copied().peekable();
    let mut previous = before.map(|before| before.hash);
    let mut expected = from;
    let mut last_time = None;
    let mut buffer = Vec::with_capacity(1_024);
    // One row earlier, whose hash this stretch goes on from.
    let mut rows = audit_log::rows(connection, &extent.instance_id, (from - 1).max(1), to);
    while let Some(stored) = rows.try_next().await? {
        if stored.seq < from {
            previous = hash_of(&stored);
            last_time = Some(stored.recorded_at);
            continue;
        }
        found.entries += 1;
        found.first.get_or_insert((stored.seq, stored.recorded_at));
        if stored.seq < expected {
            found.fault(
                stored.seq,
                Fault::Inserted,
                "a second entry with this number",
            );
            continue;
        }
        if stored.seq > expected {
            let words = format!(
                "{} missing before number {}",
                count(stored.seq - expected),
                stored.seq
            );
            found.fault(expected, Fault::Missing, &words);
            previous = None;
            found.tree = None;
        }
        expected = stored.seq + 1;
        let own = hash_of(&stored);
        found.grow(own, stored.seq, &mut sizes);
        found.head = stored.hash.clone();
        if let Some(before) = previous {
            let computed = chain::hash_with(&before, &stored.row(), &mut buffer);
            if own != Some(computed) {
                found.suspect(stored, before);
                previous = own;
                continue;
            }
        }
        if last_time.is_some_and(|last| stored.recorded_at < last) {
            found.fault(
                stored.seq,
                Fault::Reordered,
                "its time lies before that of the entry before it",
            );
        }
        last_time = Some(stored.recorded_at);
        found.named.take(&stored);
        if let Some(words) = misplaced(&stored) {
            found.fault(stored.seq, Fault::Inserted, words);
        }
        previous = own;
    }
    found.name_suspects();
    Ok(found)
}

/// What only a beginning is.
fn misplaced(stored: &Stored) -> Option<&'static str> {
    if stored.kind == Kind::GatewayStarted.as_str() && stored.seq != 1 {
        return Some("a gateway's start stands within a chain");
    }
    (stored.kind == Kind::ChainSigned.as_str() && stored.seq != 2)
        .then_some("the signature of a beginning stands elsewhere")
}

fn hash_of(stored: &Stored) -> Option<chain::Hash> {
    stored.hash.as_deref()?.try_into().ok()
}

pub(in crate::audit) fn count(entries: i64) -> String {
    match entries {
        1 => "one entry is".to_owned(),
        more => format!("{more} entries are"),
    }
}

impl Stretch {
    /// One more leaf. Whether it is right is the chain's affair.
    fn grow(
        &mut self,
        leaf: Option<Hash>,
        seq: i64,
        sizes: &mut Peekable<impl Iterator<Item = u64>>,
    ) {
        match (&mut self.tree, leaf) {
            (Some(tree), Some(leaf)) => tree.push(&leaf),
            _ => self.tree = None,
        }
        let size = u64::try_from(seq).unwrap_or(0);
        while let Some(asked) = sizes.next_if(|asked| *asked <= size) {
            // One that was jumped over has no root here.
            let tree = self.tree.as_ref().filter(|_| asked == size);
            self.tails.push((asked, tree.and_then(Frontier::tail)));
        }
    }

    fn fault(&mut self, seq: i64, fault: Fault, words: &str) {
        self.faults += 1;
        if self.wrong.len() < KEPT {
            self.wrong.push(Wrong::new(seq, fault, words));
        }
    }

    fn suspect(&mut self, stored: Stored, before: chain::Hash) {
        let seq = stored.seq;
        if stored.hash.is_none() {
            self.fault(seq, Fault::Unchained, "it has no hash");
        } else if self.suspects.len() < KEPT {
            self.suspects.push(Suspect {
                seq,
                stored,
                before,
            });
        } else {
            self.faults += 1;
        }
    }

    /// Rows that do not fit their places: an entry that fits the place of another one was moved, the others were changed.
    fn name_suspects(&mut self) {
        let suspects = std::mem::take(&mut self.suspects);
        // What stood before an entry at home: what stands before that place now, or one that was moved as well.
        let hashes: Vec<chain::Hash> = suspects
            .iter()
            .flat_map(|suspect| [Some(suspect.before), hash_of(&suspect.stored)])
            .flatten()
            .collect();
        for suspect in &suspects {
            let own = hash_of(&suspect.stored);
            let home = suspects.iter().find(|place| {
                place.seq != suspect.seq && {
                    let row = crate::entry::Row {
                        seq: place.seq,
                        ..suspect.stored.row()
                    };
                    hashes
                        .iter()
                        .any(|before| Some(chain::hash(before, &row)) == own)
                }
            });
            match home {
                Some(place) => {
                    let words = format!("the entry that stood at number {} stands here", place.seq);
                    self.fault(suspect.seq, Fault::Reordered, &words);
                }
                None => self.fault(
                    suspect.seq,
                    Fault::Changed,
                    "its columns do not give its hash, or its hash was changed",
                ),
            }
        }
        self.wrong.sort_by_key(|wrong| wrong.seq);
    }
}
