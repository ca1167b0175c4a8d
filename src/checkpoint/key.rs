//! Ed25519 keys in the forms that tools for signed notes share: `name+id+base64` for verifiers, and the same behind
//! `PRIVATE+KEY+` for signers.

use std::{fmt, str::FromStr};

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::STANDARD};

use super::tree::sha256;
use crate::secrets::{Secret, SecretError, hex, random_bytes};

/// The signature type of Ed25519 (c2sp.org/signed-note).
const ED25519_TYPE: u8 = 1;
const PRIVATE: &str = "PRIVATE+KEY+";

/// Why a text is no key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not of the form.
    #[error("not of the form name+id+base64 of an Ed25519 key")]
    Form,
    /// The name cannot be a key's name.
    #[error("a key's name is not empty and has neither spaces nor +")]
    Name,
    /// The id belongs to another name or key.
    #[error("its id does not belong to its name and key")]
    Id,
    /// No randomness.
    #[error(transparent)]
    Random(#[from] SecretError),
}

/// A public key with its name.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct VerifierKey {
    name: String,
    public: [u8; 32],
}

impl VerifierKey {
    fn new(name: &str, public: [u8; 32]) -> Result<Self, KeyError> {
        if !is_name(name) {
            return Err(KeyError::Name);
        }
        Ok(Self {
            name: name.to_owned(),
            public,
        })
    }

    /// Whose key it is.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// By which a signature line names it, together with the name.
    pub fn id(&self) -> [u8; 4] {
        let hash = sha256(&[self.name.as_bytes(), b"\n", &[ED25519_TYPE], &self.public]);
        let [a, b, c, d, ..] = hash;
        [a, b, c, d]
    }

    /// Whether this key made the signature over the text (RFC 8032).
    pub fn verifies(&self, text: &str, signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ED25519, &self.public)
            .verify(text.as_bytes(), signature)
            .is_ok()
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&keyed(&self.name, self.id(), &self.public))
    }
}

impl fmt::Debug for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for VerifierKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (name, id, public) = parts(text)?;
        let key = Self::new(name, public)?;
        if hex(&key.id()) == id {
            Ok(key)
        } else {
            Err(KeyError::Id)
        }
    }
}

/// A key that signs.
pub struct SigningKey {
    verifier: VerifierKey,
    pair: Ed25519KeyPair,
    seed: [u8; 32],
}

impl SigningKey {
    /// A new one.
    ///
    /// # Errors
    /// When the name cannot be one, or there is no randomness.
    pub fn generate(name: &str) -> Result<Self, KeyError> {
        Self::from_seed(name, random_bytes()?)
    }

    fn from_seed(name: &str, seed: [u8; 32]) -> Result<Self, KeyError> {
        let pair =
            Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|_rejected| KeyError::Form)?;
        let public = pair.public_key().as_ref().try_into();
        let public = public.map_err(|_length| KeyError::Form)?;
        Ok(Self {
            verifier: VerifierKey::new(name, public)?,
            pair,
            seed,
        })
    }

    /// The same key under another name.
    ///
    /// # Errors
    /// When the name cannot be one.
    pub fn renamed(&self, name: &str) -> Result<Self, KeyError> {
        Self::from_seed(name, self.seed)
    }

    /// Reads what [`SigningKey::to_text`] made.
    ///
    /// # Errors
    /// When it is no such text.
    pub fn parse(text: &str) -> Result<Self, KeyError> {
        let (name, id, seed) = parts(text.strip_prefix(PRIVATE).ok_or(KeyError::Form)?)?;
        let key = Self::from_seed(name, seed)?;
        if hex(&key.verifier.id()) == id {
            Ok(key)
        } else {
            Err(KeyError::Id)
        }
    }

    /// The whole key, for the file that holds it.
    pub fn to_text(&self) -> Secret {
        let verifier = &self.verifier;
        let rest = keyed(&verifier.name, verifier.id(), &self.seed);
        Secret::new(format!("{PRIVATE}{rest}"))
    }

    /// Its public half.
    pub const fn verifier(&self) -> &VerifierKey {
        &self.verifier
    }

    /// The line that signs a note's text, with its newline.
    pub fn signature_line(&self, text: &str) -> String {
        let mut bytes = self.verifier.id().to_vec();
        bytes.extend_from_slice(self.pair.sign(text.as_bytes()).as_ref());
        format!("— {} {}\n", self.verifier.name, STANDARD.encode(bytes))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.verifier)
    }
}

/// Neither empty nor with spaces or plus signs (c2sp.org/signed-note), and no control characters.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name
            .chars()
            .any(|letter| letter == '+' || letter.is_whitespace() || letter.is_control())
}

fn keyed(name: &str, id: [u8; 4], key: &[u8; 32]) -> String {
    let mut bytes = vec![ED25519_TYPE];
    bytes.extend_from_slice(key);
    format!("{name}+{}+{}", hex(&id), STANDARD.encode(bytes))
}

/// Name, id in hexadecimal and key.
fn parts(text: &str) -> Result<(&str, &str, [u8; 32]), KeyError> {
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(id), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(KeyError::Form);
    };
    let bytes = STANDARD.decode(key).map_err(|_error| KeyError::Form)?;
    match bytes.split_first() {
        Some((&ED25519_TYPE, key)) => {
            Ok((name, id, key.try_into().map_err(|_length| KeyError::Form)?))
        }
        _ => Err(KeyError::Form),
    }
}
