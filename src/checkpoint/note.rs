//! Signed notes (c2sp.org/signed-note): a text, a blank line, and lines that sign the text.

use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::{VerifierKey, key::is_name, split::MAX_NOTE_BYTES};

/// The em dash and space before a signature.
pub(super) const SIGNATURE: &str = "— ";
/// Signatures that one note may bear: more than the 16 that every verifier must accept.
const MAX_SIGNATURES: usize = 32;

/// Why a note is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It is no note of the form.
    #[error("{0}")]
    Malformed(&'static str),
    /// No known key signed it.
    #[error("no key that is known signed it")]
    UnknownKey,
    /// A signature says that it is a known key's, and is not.
    #[error("its signature is not by the key that it names")]
    Forged,
}

/// A note whose form is right. INVARIANT: its text is not to be believed before [`Note::signers`] has named who signed it.
#[derive(Debug, Clone)]
pub struct Note {
    text: String,
    signatures: Vec<Signature>,
}

#[derive(Debug, Clone)]
struct Signature {
    name: String,
    id: [u8; 4],
    bytes: Vec<u8>,
}

impl Note {
    /// Reads a whole note.
    ///
    /// # Errors
    /// What is wrong with its form.
    pub fn parse(bytes: &[u8]) -> Result<Self, Refused> {
        use Refused::Malformed;
        if bytes.len() > MAX_NOTE_BYTES {
            return Err(Malformed("it is too long"));
        }
        let whole = std::str::from_utf8(bytes).map_err(|_error| Malformed("it is not UTF-8"))?;
        if whole.chars().any(|letter| letter < ' ' && letter != '\n') {
            return Err(Malformed("it has control characters"));
        }
        let (text, lines) = whole
            .rsplit_once("\n\n")
            .ok_or(Malformed("it has no blank line before its signatures"))?;
        let lines = lines
            .strip_suffix('\n')
            .ok_or(Malformed("it does not end with a newline"))?;
        let mut signatures: Vec<Signature> = Vec::new();
        for line in lines.split('\n') {
            let signature = signature(line)?;
            // One key signs once: two signatures of one key are two chances for one of them to be looked at alone.
            if signatures
                .iter()
                .any(|other| other.name == signature.name && other.id == signature.id)
            {
                return Err(Malformed("one key signed it twice"));
            }
            if signatures.len() == MAX_SIGNATURES {
                return Err(Malformed("it has too many signatures"));
            }
            signatures.push(signature);
        }
        Ok(Self {
            text: format!("{text}\n"),
            signatures,
        })
    }

    /// The text that was signed.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Which of these keys signed it: at least one, in their order. Signatures of other keys count for nothing.
    ///
    /// # Errors
    /// When none did, or a signature in the name of one of them is not by it.
    pub fn signers<'k>(
        &self,
        keys: impl Iterator<Item = &'k VerifierKey>,
    ) -> Result<Vec<&'k VerifierKey>, Refused> {
        let mut signers = Vec::new();
        for key in keys {
            let mut own = self
                .signatures
                .iter()
                .filter(|signature| signature.name == key.name() && signature.id == key.id());
            if let Some(signature) = own.next() {
                if !key.verifies(&self.text, &signature.bytes) {
                    return Err(Refused::Forged);
                }
                signers.push(key);
            }
        }
        if signers.is_empty() {
            return Err(Refused::UnknownKey);
        }
        Ok(signers)
    }
}

fn signature(line: &str) -> Result<Signature, Refused> {
    const FORM: Refused = Refused::Malformed("a line below its text is no signature");
    let (name, encoded) = line
        .strip_prefix(SIGNATURE)
        .and_then(|rest| rest.split_once(' '))
        .ok_or(FORM)?;
    let bytes = STANDARD.decode(encoded).map_err(|_error| FORM)?;
    let (id, signature) = bytes.split_first_chunk::<4>().ok_or(FORM)?;
    if !is_name(name) || signature.is_empty() {
        return Err(FORM);
    }
    Ok(Signature {
        name: name.to_owned(),
        id: *id,
        bytes: signature.to_vec(),
    })
}
