//! Checkpoints of a log in the C2SP form (c2sp.org/tlog-checkpoint): how large it is, and the root of the RFC 6962 Merkle tree
//! over its entries, signed. Kept outside the database, one of them shows what was changed inside. Knows nothing of where logs
//! and checkpoints are kept.
//!
//! Each start of the gateway is a log of its own. Its origin is `<installation>/<instance>`; the key's name is the installation
//! alone, because one key signs for all its starts. Leaf number n is the 32-byte hash of entry n + 1 in the chain.

use base64::{Engine as _, engine::general_purpose::STANDARD};

mod handover;
mod key;
mod note;
mod split;
mod tree;

pub use handover::Handover;
pub use key::{KeyError, SigningKey, VerifierKey};
pub use note::{Note, Refused};
pub use split::{MAX_NOTE_BYTES, Split, notes};
pub use tree::{Frontier, Hash};

/// What a checkpoint says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// How many entries it has.
    pub size: u64,
    /// The root of the tree over them.
    pub root: Hash,
}

impl Checkpoint {
    /// The origin of one start's log.
    pub fn origin_of(installation: &str, instance: &str) -> String {
        format!("{installation}/{instance}")
    }

    /// Installation and instance, from the origin.
    pub fn log(&self) -> Option<(&str, &str)> {
        self.origin.rsplit_once('/')
    }

    /// The note's text.
    pub fn text(&self) -> String {
        format!(
            "{}\n{}\n{}\n",
            self.origin,
            self.size,
            STANDARD.encode(self.root)
        )
    }

    /// The whole signed note.
    pub fn signed(&self, key: &SigningKey) -> String {
        let text = self.text();
        let line = key.signature_line(&text);
        format!("{text}\n{line}")
    }

    /// Reads a note's text: exactly what [`Checkpoint::text`] makes. Extension lines are refused, as no log of ours has any.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        let mut lines = text.split('\n');
        let (Some(origin), Some(size), Some(root), Some(""), None) = (
            lines.next(),
            lines.next(),
            lines.next(),
            lines.next(),
            lines.next(),
        ) else {
            return Err(Refused::Malformed(
                "its text is not origin, size and root hash in three lines",
            ));
        };
        if origin.is_empty() {
            return Err(Refused::Malformed("its origin is empty"));
        }
        let canonical = size == "0" || !size.starts_with('0');
        if !canonical || size.is_empty() || !size.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(Refused::Malformed("its size is no decimal number"));
        }
        Ok(Self {
            origin: origin.to_owned(),
            size: size
                .parse()
                .map_err(|_error| Refused::Malformed("its size is too large"))?,
            root: STANDARD
                .decode(root)
                .ok()
                .and_then(|bytes| bytes.try_into().ok())
                .ok_or(Refused::Malformed(
                    "its root hash is not 32 bytes in base64",
                ))?,
        })
    }
}

#[cfg(test)]
mod tests;
