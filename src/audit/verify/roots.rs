//! The Merkle trees over whole chains, put together from their stretches.

use super::{
    LEVEL, STRETCH,
    stretch::{Piece, Stretch},
};
use crate::checkpoint::{Frontier, Hash};

/// The tree of the instance whose stretches come in now; they come in order, one instance after the other.
#[derive(Default)]
pub(super) struct Roots {
    /// What lies to the left of the next stretch; none from where an entry is missing.
    left: Option<Frontier>,
}

impl Roots {
    /// Takes up the next stretch and tells the roots at the sizes that were asked for; none where there can be no root.
    pub fn take(
        &mut self,
        piece: &Piece<'_>,
        stretch: &Stretch,
        found: &mut Vec<(String, u64, Option<Hash>)>,
    ) {
        if let Some(before) = &piece.before {
            self.left = before.left.clone();
        }
        for (size, tail) in &stretch.tails {
            let root = match (&self.left, tail) {
                (Some(left), Some(tail)) => Some(left.root_with(Some(*tail))),
                _ => None,
            };
            found.push((piece.extent.instance_id.clone(), *size, root));
        }
        let whole = stretch
            .tree
            .as_ref()
            .filter(|tree| i64::try_from(tree.size()) == Ok(STRETCH));
        self.left = match (self.left.take(), whole) {
            (Some(mut left), Some(whole)) => {
                left.push_subtree(whole.root(), LEVEL);
                Some(left)
            }
            // The last stretch of an instance, or one with a gap.
            _ => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::verify::stretch::Before, store::audit_log::Extent};

    /// Wherever the beginning was cut off, the roots behind it are those of the whole tree.
    #[test]
    fn roots_go_on_behind_a_cut_at_any_place() {
        let last = 2 * STRETCH + 9;
        let leaf = |seq: i64| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&seq.to_be_bytes());
            hash
        };
        let asked = [STRETCH, STRETCH + 1, 2 * STRETCH - 3, 2 * STRETCH, last];
        let cuts = [0, 1, 77, STRETCH - 1, STRETCH, STRETCH + 5, 2 * STRETCH];
        let (mut whole, mut roots, mut trees) = (Frontier::default(), Vec::new(), Vec::new());
        trees.push(whole.clone());
        for seq in 1..=last {
            whole.push(&leaf(seq));
            if asked.contains(&seq) {
                roots.push((seq, whole.root()));
            }
            if cuts.contains(&seq) {
                trees.push(whole.clone());
            }
        }
        let extent = Extent {
            instance_id: "inst_".to_owned(),
            first: 1,
            last,
        };
        for (cut, tree) in cuts.into_iter().zip(trees) {
            let told = Frontier::from_peaks(tree.size(), tree.peaks().to_vec()).unwrap();
            let (left, behind) = told.split(LEVEL);
            let (mut found, mut sums) = (Vec::new(), Roots::default());
            for number in cut / STRETCH..=(last - 1) / STRETCH {
                let from = (number * STRETCH + 1).max(cut + 1);
                let to = ((number + 1) * STRETCH).min(last);
                let before = (from == cut + 1).then(|| Before {
                    hash: [0; 32],
                    left: Some(left.clone()),
                    tree: Some(behind.clone()),
                });
                let tree = before
                    .as_ref()
                    .map_or_else(|| Some(Frontier::default()), |before| before.tree.clone());
                let mut stretch = Stretch::default();
                stretch.tree = tree;
                for seq in from..=to {
                    let tree = stretch.tree.as_mut().unwrap();
                    tree.push(&leaf(seq));
                    if asked.contains(&seq) {
                        stretch.tails.push((seq.unsigned_abs(), tree.tail()));
                    }
                }
                let piece = Piece {
                    extent: &extent,
                    from,
                    to,
                    before,
                };
                sums.take(&piece, &stretch, &mut found);
            }
            let expected: Vec<_> = roots
                .iter()
                .filter(|(seq, _)| *seq > cut)
                .map(|(seq, root)| ("inst_".to_owned(), seq.unsigned_abs(), Some(*root)))
                .collect();
            assert_eq!(found, expected, "{cut}");
        }
        assert!(Frontier::from_peaks(3, vec![[0; 32]]).is_none());
    }
}
