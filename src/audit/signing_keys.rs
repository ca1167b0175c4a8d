//! The keys that sign checkpoints, as the chain tells of them: which one is in force, from which entry on, and what proves that
//! it follows the one before.

use serde_json::{Value, json};
use sqlx::PgConnection;

use super::{Change, Recorder, keeping};
use crate::{
    checkpoint::{Handover, VerifierKey},
    entry::{Entry, Kind},
    signing::{Held, Step},
    store::StoreError,
};

/// The key that the records name last.
pub(super) async fn recorded(
    connection: &mut PgConnection,
) -> Result<Option<VerifierKey>, StoreError> {
    let last = keeping::key_changes(connection).await?.pop();
    Ok(last
        .and_then(|change| told(&change.detail?))
        .and_then(|told| told.new))
}

/// What an entry of kind `signing_key_changed` says, as it stands there.
pub(super) struct Told {
    pub old: Option<VerifierKey>,
    pub new: Option<VerifierKey>,
    /// The proof, if there is one and it holds for just these two.
    pub handover: Option<Handover>,
}

/// Reads the detail of such an entry.
pub(super) fn told(detail: &str) -> Option<Told> {
    let detail: Value = serde_json::from_str(detail).ok()?;
    let text = |name: &str| detail.get(name).and_then(Value::as_str);
    let key = |name: &str| text(name).and_then(|text| text.parse::<VerifierKey>().ok());
    let (old, new) = (key("old"), key("new"));
    let handover = text("handover")
        .and_then(|note| Handover::parse(note).ok())
        .filter(|proof| Some(&proof.old) == old.as_ref() && Some(&proof.new) == new.as_ref());
    Some(Told { old, new, handover })
}

/// The entry that tells of one step.
pub(super) fn entry(step: &Step) -> Entry {
    let detail = match step {
        Step::First(new) => json!({ "new": new.to_string() }),
        Step::Proved(handover) => json!({
            "old": handover.old.to_string(),
            "new": handover.new.to_string(),
            "handover": handover.note(),
        }),
        Step::Unproved { old, new } => {
            tracing::error!(
                %old, %new,
                "the signing key was replaced, and the old one has not signed over to it: that is recorded, and whoever verifies must be given the new key"
            );
            json!({ "old": old.to_string(), "new": new.to_string() })
        }
    };
    Entry {
        detail: Some(detail),
        ..Entry::new(Kind::SigningKeyChanged)
    }
}

impl Recorder {
    /// Takes up the key that stands in its file now. From its entry on it signs.
    ///
    /// # Errors
    /// When the records are away; the entry follows when they are back.
    pub async fn take_up(&self, held: Held) -> Result<(), super::Unrecorded> {
        let steps = {
            let mut signing = self.signing.lock();
            let steps = held.steps_from(Some(&signing));
            *signing = held.key.verifier().clone();
            steps
        };
        let mut key = Some(Box::new(held.key));
        let last = steps.len().saturating_sub(1);
        let mut all = Ok(());
        for (number, step) in steps.iter().enumerate() {
            let change = (number == last)
                .then(|| key.take().map(Change::SignWith))
                .flatten();
            // Handed over either way: the writer repeats it until it stands.
            all = all.and(self.settle(entry(step), change).await);
        }
        all
    }

    /// Whether checkpoints are, or soon will be, signed with another key than this.
    pub fn signs_with_another(&self, key: &VerifierKey) -> bool {
        *self.signing.lock() != *key
    }
}
