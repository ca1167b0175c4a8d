//! The Merkle trees over whole chains, put together from their stretches.

use super::{LEVEL, STRETCH, stretch::Stretch};
use crate::checkpoint::{Frontier, Hash};

/// The tree of the instance whose stretches come in now; they come in order, one instance after the other.
#[derive(Default)]
pub(super) struct Roots {
    instance: String,
    /// What lies to the left of the next stretch; none from where an entry is missing.
    left: Option<Frontier>,
}

impl Roots {
    /// Takes up the next stretch and tells the roots at the sizes that were asked for; none where there can be no root.
    pub fn take(
        &mut self,
        instance: &str,
        stretch: &Stretch,
        found: &mut Vec<(String, u64, Option<Hash>)>,
    ) {
        if self.instance != instance {
            instance.clone_into(&mut self.instance);
            self.left = Some(Frontier::default());
        }
        for (size, tail) in &stretch.tails {
            let root = match (&self.left, tail) {
                (Some(left), Some(tail)) => Some(left.root_with(Some(*tail))),
                _ => None,
            };
            found.push((instance.to_owned(), *size, root));
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
