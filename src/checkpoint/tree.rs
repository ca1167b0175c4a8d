//! The Merkle tree of RFC 6962, section 2.1, as it grows: only the roots of the complete subtrees are kept, one for each set bit
//! of the size, so that a log of any length takes at most 64 hashes.

use aws_lc_rs::digest;

/// A hash of the tree, and what its leaves are made of.
pub type Hash = [u8; 32];

/// The tree over the entries so far.
#[derive(Debug, Clone, Default)]
pub struct Frontier {
    size: u64,
    /// Roots of complete subtrees, the largest first.
    peaks: Vec<Hash>,
}

impl Frontier {
    /// How many entries it covers.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The tree over this many entries whose complete subtrees have these roots, the largest first; none where so many entries have
    /// another number of complete subtrees.
    pub fn from_peaks(size: u64, peaks: Vec<Hash>) -> Option<Self> {
        (u32::try_from(peaks.len()) == Ok(size.count_ones())).then_some(Self { size, peaks })
    }

    /// The roots of the complete subtrees, the largest first: all that it takes to go on.
    pub fn peaks(&self) -> &[Hash] {
        &self.peaks
    }

    /// The tree over the last whole multiple of 2^`level` entries, and the one over the entries behind them.
    pub fn split(mut self, level: u32) -> (Self, Self) {
        let size = self.size >> level << level;
        let at = usize::try_from(size.count_ones()).unwrap_or(usize::MAX);
        let behind = Self {
            size: self.size - size,
            peaks: self.peaks.split_off(at.min(self.peaks.len())),
        };
        (Self { size, ..self }, behind)
    }

    /// One more entry, with this hash.
    pub fn push(&mut self, entry: &Hash) {
        self.push_subtree(leaf(entry), 0);
    }

    /// A complete subtree over the next 2^`level` entries. INVARIANT: the size so far is a multiple of that.
    pub fn push_subtree(&mut self, root: Hash, level: u32) {
        let (mut hash, mut rest) = (root, self.size >> level);
        while rest & 1 == 1 {
            if let Some(left) = self.peaks.pop() {
                hash = node(&left, &hash);
            }
            rest >>= 1;
        }
        self.peaks.push(hash);
        self.size += 1 << level;
    }

    /// The right-hand part of the root: what a tree whose last part this is has to put behind what comes before. None when empty.
    pub fn tail(&self) -> Option<Hash> {
        fold(&self.peaks, None)
    }

    /// The root of the tree.
    pub fn root(&self) -> Hash {
        self.root_with(None)
    }

    /// The root of the tree that has this one on its left and `tail` on its right.
    pub fn root_with(&self, tail: Option<Hash>) -> Hash {
        fold(&self.peaks, tail).unwrap_or_else(|| sha256(&[]))
    }
}

fn fold(peaks: &[Hash], tail: Option<Hash>) -> Option<Hash> {
    peaks.iter().rev().fold(tail, |right, left| {
        Some(right.map_or(*left, |right| node(left, &right)))
    })
}

fn leaf(entry: &Hash) -> Hash {
    sha256(&[&[0], entry])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

/// SHA-256 over the parts.
pub(super) fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    for (to, from) in hash.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    hash
}
