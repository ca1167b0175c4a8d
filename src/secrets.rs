//! Secrets as types: text that `Debug` never shows, keyed digests that let an auditor search for a
//! known value without seeing others, and the sealing of what a parked call will send.

use std::fmt;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hkdf, hmac,
    rand::{SecureRandom, SystemRandom},
};

mod file;

pub use file::{write_private, write_public};

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
        "a sealed value does not open with any master secret of the config: it was sealed with another one, or changed"
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

/// How bytes begin that were sealed with the id of their key. Older ones begin with their nonce.
const SEALED: [u8; 4] = *b"tgs1";

/// Bytes of a key id.
const ID: usize = 4;

/// The keys that are derived from the master secrets of an installation: everything new is made with those of the newest, and
/// what was made with an older one is still recognised and opened.
pub struct Keyring {
    newest: Keys,
    /// Newest first.
    older: Vec<Keys>,
}

/// The keys of one master secret. Each use has a key of its own (HKDF-SHA-256, RFC 5869), so that a digest of one kind says
/// nothing about another.
struct Keys {
    /// Says which master secret made something, and nothing about it.
    id: [u8; ID],
    api_keys: hmac::Key,
    arguments: hmac::Key,
    values: hmac::Key,
    references: hmac::Key,
    cursors: hmac::Key,
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

impl Keys {
    fn of(master: &Secret) -> Result<Self, SecretError> {
        if master.expose().trim().len() < 32 {
            return Err(SecretError::TooShort);
        }
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"toolgate master secret v1");
        let extracted = salt.extract(master.expose().trim().as_bytes());
        let derive = |purpose: &'static [u8]| -> Result<[u8; 32], SecretError> {
            let mut key = [0; 32];
            extracted
                .expand(&[purpose], KeyLength)
                .and_then(|material| material.fill(&mut key))
                .map_err(|_unspecified| SecretError::TooShort)?;
            Ok(key)
        };
        let mac = |purpose| derive(purpose).map(|key| hmac::Key::new(hmac::HMAC_SHA256, &key));
        let sealing = UnboundKey::new(&AES_256_GCM, &derive(b"sealing")?)
            .map_err(|_unspecified| SecretError::TooShort)?;
        let [a, b, c, d, ..] = derive(b"key id")?;
        Ok(Self {
            id: [a, b, c, d],
            api_keys: mac(b"api keys")?,
            arguments: mac(b"arguments digests")?,
            values: mac(b"redacted values")?,
            references: mac(b"reference tokens")?,
            cursors: mac(b"list cursors")?,
            places: mac(b"places in streams")?,
            sealing: LessSafeKey::new(sealing),
        })
    }

    fn call_digest(&self, canonical: &[u8]) -> String {
        format!("hmac-sha256:{}", hex(&tag(&self.arguments, canonical)))
    }

    fn value_token(&self, value: &[u8]) -> String {
        let full = tag(&self.values, value);
        hex(full.get(..16).unwrap_or(&full))
    }

    fn is_cursor_tag(&self, bytes: &[u8], tag: &[u8]) -> bool {
        hmac::verify(&self.cursors, bytes, tag).is_ok()
    }

    /// `None` unless nonce and bytes are as this key sealed them.
    fn open(&self, context: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>()?;
        let mut plain = rest.to_vec();
        let length = self
            .sealing
            .open_in_place(
                Nonce::assume_unique_for_key(*nonce),
                Aad::from(context.as_bytes()),
                &mut plain,
            )
            .ok()?
            .len();
        plain.truncate(length);
        Some(plain)
    }
}

impl Keyring {
    /// The keys of one master secret, with none before it.
    ///
    /// # Errors
    /// When the secret is shorter than 32 characters.
    pub fn new(master: &Secret) -> Result<Self, SecretError> {
        Self::rotated(master, &[])
    }

    /// The keys of the newest master secret and of those before it, newest first.
    ///
    /// # Errors
    /// When one is shorter than 32 characters.
    pub fn rotated(newest: &Secret, previous: &[Secret]) -> Result<Self, SecretError> {
        Ok(Self {
            newest: Keys::of(newest)?,
            older: previous.iter().map(Keys::of).collect::<Result<_, _>>()?,
        })
    }

    fn all(&self) -> impl Iterator<Item = &Keys> {
        std::iter::once(&self.newest).chain(&self.older)
    }

    /// Whether there is a master secret before the newest.
    pub const fn has_older(&self) -> bool {
        !self.older.is_empty()
    }

    /// The ids of the master secrets, newest first: eight hexadecimal digits that say which made something.
    pub fn secret_ids(&self) -> Vec<String> {
        self.all().map(|keys| hex(&keys.id)).collect()
    }

    /// The id of the newest master secret.
    pub fn secret_id(&self) -> String {
        hex(&self.newest.id)
    }

    /// HMAC-SHA-256 of an API key, the only form in which a key is stored.
    pub fn api_key_hash(&self, key: &str) -> [u8; 32] {
        tag(&self.newest.api_keys, key.as_bytes())
    }

    /// The same under the older master secrets, newest first.
    pub fn older_api_key_hashes(&self, key: &str) -> impl Iterator<Item = [u8; 32]> {
        self.older
            .iter()
            .map(move |keys| tag(&keys.api_keys, key.as_bytes()))
    }

    /// `hmac-sha256:…` over the text that says what exactly a call asks for.
    pub fn call_digest(&self, canonical: &[u8]) -> String {
        self.newest.call_digest(canonical)
    }

    /// The same under the older master secrets, newest first.
    pub fn older_call_digests(&self, canonical: &[u8]) -> impl Iterator<Item = String> {
        self.older
            .iter()
            .map(move |keys| keys.call_digest(canonical))
    }

    /// 128 bits of HMAC-SHA-256 over one sensitive value, as hexadecimal: stands in the audit rows where
    /// the value stood.
    pub fn value_token(&self, value: &[u8]) -> String {
        self.newest.value_token(value)
    }

    /// The same under every master secret, newest first: one for each of [`Keyring::secret_ids`].
    pub fn value_tokens(&self, value: &[u8]) -> Vec<String> {
        self.all().map(|keys| keys.value_token(value)).collect()
    }

    /// HMAC-SHA-256 over a list's cursor and whatever the cursor belongs to.
    pub fn cursor_tag(&self, bytes: &[u8]) -> [u8; 32] {
        tag(&self.newest.cursors, bytes)
    }

    /// Whether a tag is one that [`Keyring::cursor_tag`] makes or made; compared in constant time.
    pub fn is_cursor_tag(&self, bytes: &[u8], tag: &[u8]) -> bool {
        self.all().any(|keys| keys.is_cursor_tag(bytes, tag))
    }

    /// 128 bits of HMAC-SHA-256 over a place in a stream of events, as hexadecimal: nobody can make up a place.
    pub fn place_token(&self, place: &str) -> String {
        let full = tag(&self.newest.places, place.as_bytes());
        hex(full.get(..16).unwrap_or(&full))
    }

    /// 160 bits of HMAC-SHA-256, as hexadecimal, by which a value is referred to within one run.
    pub fn reference(&self, run: &str, class: &str, value: &[u8]) -> String {
        let mut text = Vec::with_capacity(run.len() + class.len() + value.len() + 2);
        for part in [run.as_bytes(), class.as_bytes()] {
            text.extend_from_slice(part);
            // In none of the two.
            text.push(0);
        }
        text.extend_from_slice(value);
        let full = tag(&self.newest.references, &text);
        hex(full.get(..20).unwrap_or(&full))
    }

    /// Seals bytes with AES-256-GCM under a random nonce, behind the id of the key; `context` (say, the call's id) must be the
    /// same when opening, so that a sealed value cannot be moved to another row.
    ///
    /// # Errors
    /// When there is no randomness.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, SecretError> {
        let nonce_bytes = random_bytes::<NONCE_LEN>()?;
        let mut sealed = plain.to_vec();
        self.newest
            .sealing
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce_bytes),
                Aad::from(context.as_bytes()),
                &mut sealed,
            )
            .map_err(|_unspecified| SecretError::NoRandomness)?;
        let mut whole = Vec::with_capacity(SEALED.len() + ID + NONCE_LEN + sealed.len());
        whole.extend_from_slice(&SEALED);
        whole.extend_from_slice(&self.newest.id);
        whole.extend_from_slice(&nonce_bytes);
        whole.append(&mut sealed);
        Ok(whole)
    }

    /// Opens what [`Keyring::seal`] made, now or before keys had ids.
    ///
    /// # Errors
    /// When the bytes or the context differ from those at sealing, or none of the master secrets sealed them.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, SecretError> {
        let with_id = sealed
            .strip_prefix(&SEALED)
            .and_then(|rest| rest.split_first_chunk::<ID>());
        let opened = with_id.and_then(|(id, rest)| {
            self.all()
                .filter(|keys| keys.id == *id)
                .find_map(|keys| keys.open(context, rest))
        });
        // A nonce from before the ids may begin like one of ours.
        opened
            .or_else(|| self.all().find_map(|keys| keys.open(context, sealed)))
            .ok_or(SecretError::DoesNotOpen)
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
    fn what_an_older_secret_made_is_recognised_and_new_things_are_made_with_the_newest() {
        let old = Secret::new("0123456789abcdef0123456789abcdef");
        let new = Secret::new("another master secret of enough length");
        let before = Keyring::new(&old).unwrap();
        let rotated = Keyring::rotated(&new, std::slice::from_ref(&old)).unwrap();
        let after = Keyring::new(&new).unwrap();
        let sealed = before.seal("call_A", b"refund 200").unwrap();
        assert_eq!(rotated.open("call_A", &sealed).unwrap(), b"refund 200");
        assert_eq!(after.open("call_A", &sealed), Err(SecretError::DoesNotOpen));
        let sealed = rotated.seal("call_A", b"refund 200").unwrap();
        assert_eq!(after.open("call_A", &sealed).unwrap(), b"refund 200");
        assert_eq!(
            before.open("call_A", &sealed),
            Err(SecretError::DoesNotOpen)
        );
        // As it was sealed before keys had ids.
        let bare = before.seal("call_A", b"refund 200").unwrap().split_off(8);
        for keys in [&before, &rotated] {
            assert_eq!(keys.open("call_A", &bare).unwrap(), b"refund 200");
        }
        assert_eq!(after.open("call_A", &bare), Err(SecretError::DoesNotOpen));
        assert_eq!(rotated.call_digest(b"x"), after.call_digest(b"x"));
        let older: Vec<_> = rotated.older_call_digests(b"x").collect();
        assert_eq!(older, [before.call_digest(b"x")]);
        let both = [after.value_token(b"x"), before.value_token(b"x")];
        assert_eq!(rotated.value_tokens(b"x"), both);
        let older: Vec<_> = rotated.older_api_key_hashes("x").collect();
        assert_eq!(older, [before.api_key_hash("x")]);
        assert_eq!(
            rotated.secret_ids(),
            [after.secret_id(), before.secret_id()]
        );
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
