//! Secrets as types: text that `Debug` never shows, keyed digests that let an auditor search for a
//! known value without seeing others, and the sealing of what a parked call will send.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf, hmac,
    rand::{SecureRandom, SystemRandom},
};

/// A text that must not be shown: credentials, keys, passwords.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Why a secret could not be made, sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The operating system gave no random bytes.
    #[error("the operating system gave no random bytes")]
    NoRandomness,
    /// The master secret is too short to protect anything.
    #[error("the master secret needs at least 32 characters of random text")]
    TooShort,
    /// A sealed value could not be opened.
    #[error(
        "a sealed value does not open with this master secret: it was sealed with another one, or changed"
    )]
    DoesNotOpen,
}

/// `count` random bytes from the operating system.
pub fn random_bytes<const COUNT: usize>() -> Result<[u8; COUNT], SecretError> {
    let mut bytes = [0; COUNT];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_unspecified| SecretError::NoRandomness)?;
    Ok(bytes)
}

/// 256 random bits as 64 hexadecimal characters: what `demo` and `keys` write as a master secret.
pub fn random_hex() -> Result<String, SecretError> {
    Ok(hex(&random_bytes::<32>()?))
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write as _;
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// The keys that are derived from the one master secret of an installation. Each use has a key of its own
/// (HKDF-SHA-256, RFC 5869), so that a digest of one kind says nothing about another.
pub struct Keyring {
    api_keys: hmac::Key,
    arguments: hmac::Key,
    values: hmac::Key,
    places: hmac::Key,
    sealing: LessSafeKey,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keyring")
    }
}

struct KeyLength;

impl hkdf::KeyType for KeyLength {
    fn len(&self) -> usize {
        32
    }
}

impl Keyring {
    /// Derives every key from the master secret.
    ///
    /// # Errors
    /// When the secret is shorter than 32 characters.
    pub fn new(master: &Secret) -> Result<Self, SecretError> {
        if master.expose().trim().len() < 32 {
            return Err(SecretError::TooShort);
        }
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"toolgate master secret v1");
        let extracted = salt.extract(master.expose().trim().as_bytes());
        let derive = |purpose: &'static [u8]| -> Result<[u8; 32], SecretError> {
            let mut key = [0; 32];
            extracted
                .expand(&[purpose], KeyLength)
                .and_then(|okm| okm.fill(&mut key))
                .map_err(|_unspecified| SecretError::TooShort)?;
            Ok(key)
        };
        let mac = |purpose| derive(purpose).map(|key| hmac::Key::new(hmac::HMAC_SHA256, &key));
        let sealing = UnboundKey::new(&AES_256_GCM, &derive(b"sealing")?)
            .map_err(|_unspecified| SecretError::TooShort)?;
        Ok(Self {
            api_keys: mac(b"api keys")?,
            arguments: mac(b"arguments digests")?,
            values: mac(b"redacted values")?,
            places: mac(b"places in streams")?,
            sealing: LessSafeKey::new(sealing),
        })
    }

    /// HMAC-SHA-256 of an API key, the only form in which a key is stored.
    pub fn api_key_hash(&self, key: &str) -> [u8; 32] {
        tag(&self.api_keys, key.as_bytes())
    }

    /// `hmac-sha256:…` over the text that says what exactly a call asks for.
    pub fn call_digest(&self, canonical: &[u8]) -> String {
        format!("hmac-sha256:{}", hex(&tag(&self.arguments, canonical)))
    }

    /// 128 bits of HMAC-SHA-256 over one sensitive value, as hexadecimal: stands in the audit rows where
    /// the value stood.
    pub fn value_token(&self, value: &[u8]) -> String {
        let full = tag(&self.values, value);
        hex(full.get(..16).unwrap_or(&full))
    }

    /// 128 bits of HMAC-SHA-256 over a place in a stream of events, as hexadecimal: nobody can make up a place.
    pub fn place_token(&self, place: &str) -> String {
        let full = tag(&self.places, place.as_bytes());
        hex(full.get(..16).unwrap_or(&full))
    }

    /// Seals bytes with AES-256-GCM under a random nonce; `context` (say, the call's id) must be the same
    /// when opening, so that a sealed value cannot be moved to another row.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, SecretError> {
        let nonce_bytes = random_bytes::<NONCE_LEN>()?;
        let mut sealed = plain.to_vec();
        self.sealing
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce_bytes),
                Aad::from(context.as_bytes()),
                &mut sealed,
            )
            .map_err(|_unspecified| SecretError::NoRandomness)?;
        let mut whole = nonce_bytes.to_vec();
        whole.append(&mut sealed);
        Ok(whole)
    }

    /// Opens what [`Keyring::seal`] made.
    ///
    /// # Errors
    /// When the bytes, the context or the master secret differ from those at sealing.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, SecretError> {
        let (nonce, rest) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or(SecretError::DoesNotOpen)?;
        let mut plain = rest.to_vec();
        let length = self
            .sealing
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(context.as_bytes()),
                &mut plain,
            )
            .map_err(|_unspecified| SecretError::DoesNotOpen)?
            .len();
        plain.truncate(length);
        Ok(plain)
    }
}

fn tag(key: &hmac::Key, bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    let tag = hmac::sign(key, bytes);
    for (to, from) in out.iter_mut().zip(tag.as_ref()) {
        *to = *from;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring() -> Keyring {
        Keyring::new(&Secret::new("0123456789abcdef0123456789abcdef")).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_only_in_its_own_context() {
        let keys = keyring();
        let sealed = keys.seal("call_A", b"refund 200").unwrap();
        assert!(!sealed.windows(6).any(|window| window == b"refund"));
        assert_eq!(keys.open("call_A", &sealed).unwrap(), b"refund 200");
        assert_eq!(keys.open("call_B", &sealed), Err(SecretError::DoesNotOpen));
        let mut changed = sealed.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(keys.open("call_A", &changed), Err(SecretError::DoesNotOpen));
        assert_eq!(keys.open("call_A", b"short"), Err(SecretError::DoesNotOpen));
        let other = Keyring::new(&Secret::new("another master secret of enough length")).unwrap();
        assert_eq!(other.open("call_A", &sealed), Err(SecretError::DoesNotOpen));
    }

    #[test]
    fn digests_differ_by_purpose_and_secret() {
        let keys = keyring();
        assert_ne!(
            hex(&keys.api_key_hash("x")),
            keys.call_digest(b"x").replace("hmac-sha256:", "")
        );
        let other = Keyring::new(&Secret::new("another master secret of enough length")).unwrap();
        assert_ne!(keys.value_token(b"x"), other.value_token(b"x"));
        assert_eq!(keys.value_token(b"x"), keys.value_token(b"x"));
    }

    #[test]
    fn a_secret_never_shows_itself_and_a_short_master_is_refused() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "[secret]");
        assert_eq!(
            Keyring::new(&Secret::new("too short")).unwrap_err(),
            SecretError::TooShort
        );
    }
}
