//! From one signing key to the next: a note that names both and that both have signed. The old key's signature says that the new
//! one may speak for the log from here on, the new key's that whoever made it holds it.

use super::{KeyError, Note, Refused, SigningKey, VerifierKey};

/// The first line. A checkpoint has a number in the second, so neither can pass for the other.
const TITLE: &str = "toolgate signing key handover";

/// A proved change of keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handover {
    /// The key so far.
    pub old: VerifierKey,
    /// The key from here on.
    pub new: VerifierKey,
    note: String,
}

impl Handover {
    /// Signs over from one key to the other.
    pub fn sign(old: &SigningKey, new: &SigningKey) -> Self {
        let text = format!("{TITLE}\n{}\n{}\n", old.verifier(), new.verifier());
        let note = format!(
            "{text}\n{}{}",
            old.signature_line(&text),
            new.signature_line(&text)
        );
        Self {
            old: old.verifier().clone(),
            new: new.verifier().clone(),
            note,
        }
    }

    /// Reads and checks what [`Handover::sign`] made.
    ///
    /// # Errors
    /// When it is no such note, or one of the two keys did not sign it.
    pub fn parse(note: &str) -> Result<Self, Refused> {
        const FORM: Refused = Refused::Malformed("it is no handover of signing keys");
        let parsed = Note::parse(note.as_bytes())?;
        let mut lines = parsed.text().split('\n');
        let (Some(TITLE), Some(old), Some(new), Some(""), None) = (
            lines.next(),
            lines.next(),
            lines.next(),
            lines.next(),
            lines.next(),
        ) else {
            return Err(FORM);
        };
        let key = |text: &str| text.parse().map_err(|_error: KeyError| FORM);
        let (old, new): (VerifierKey, VerifierKey) = (key(old)?, key(new)?);
        if parsed.signers([&old, &new].into_iter())?.len() != 2 {
            return Err(Refused::UnknownKey);
        }
        Ok(Self {
            old,
            new,
            note: note.to_owned(),
        })
    }

    /// The whole note.
    pub fn note(&self) -> &str {
        &self.note
    }
}
