//! API keys: how one looks, how a caller's key is recognised. A key is 256 random bits behind a prefix
//! that says whose it is and before a checksum that catches typing errors without a look-up; only its
//! HMAC is kept (DESIGN section 5).

use std::{collections::HashMap, sync::Arc};

use crate::{
    clock::Timestamp,
    ids::KeyId,
    secrets::{Keyring, Secret, SecretError, hex, random_bytes},
};

/// Which side of the gateway a key opens. The two never mix: an agent's key says nothing to the
/// operators' listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    /// For the agents' listener.
    Agent,
    /// For the operators' listener.
    Operator,
}

impl KeyKind {
    /// The name used in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Agent => "agent",
            Self::Operator => "operator",
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Agent => "tg_agent_",
            Self::Operator => "tg_operator_",
        }
    }
}

/// One known key, without the key.
#[derive(Debug, Clone)]
pub struct KnownKey {
    /// The key's public id.
    pub id: KeyId,
    /// Which listener it opens.
    pub kind: KeyKind,
    /// The agent's or operator's name.
    pub owner: Arc<str>,
    /// From when on it opens nothing any more.
    pub expires_at: Option<Timestamp>,
    /// HMAC-SHA-256 of the key.
    pub hash: [u8; 32],
    /// The id of the master secret under which that was made; unknown for keys from before ids.
    pub secret_id: Option<String>,
}

/// A key that opens.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// The key.
    pub key: &'a KnownKey,
    /// Its hash was made under an older master secret: it must be made anew before that secret can be retired.
    pub outdated: bool,
}

/// A new random key.
///
/// # Errors
/// When the operating system gives no random bytes.
pub fn generate(kind: KeyKind) -> Result<Secret, SecretError> {
    let random = hex(&random_bytes::<32>()?);
    let body = format!("{}{random}", kind.prefix());
    Ok(Secret::new(format!("{body}{}", checksum(&body))))
}

/// True when the text has the form of a key of this kind, checksum included.
pub fn is_well_formed(kind: KeyKind, key: &str) -> bool {
    let Some(rest) = key.strip_prefix(kind.prefix()) else {
        return false;
    };
    if rest.len() != 72
        || !rest
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        return false;
    }
    key.split_at_checked(key.len() - 8)
        .is_some_and(|(body, sum)| checksum(body) == sum)
}

/// Eight hexadecimal characters of SHA-256: enough to catch a typing error, and no secret.
fn checksum(body: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body.as_bytes());
    hex(digest.as_ref().get(..4).unwrap_or_default())
}

/// The keys in force, looked up by their HMAC: the place of an entry depends on a secret, so the time a
/// look-up takes says nothing about how close a guess was.
#[derive(Debug, Default)]
pub struct KnownKeys {
    by_hash: HashMap<[u8; 32], KnownKey>,
}

impl KnownKeys {
    /// Takes the keys that the store holds and that are not revoked.
    pub fn new(keys: Vec<KnownKey>) -> Self {
        Self {
            by_hash: keys.into_iter().map(|key| (key.hash, key)).collect(),
        }
    }

    /// The owner of a key, if it is in force now.
    pub fn find(
        &self,
        ring: &Keyring,
        kind: KeyKind,
        key: &str,
        now: Timestamp,
    ) -> Option<Found<'_>> {
        if !is_well_formed(kind, key) {
            return None;
        }
        let opens = |hash: &[u8; 32], outdated| {
            self.by_hash
                .get(hash)
                .filter(|known| known.kind == kind)
                .filter(|known| known.expires_at.is_none_or(|end| now < end))
                .map(|key| Found { key, outdated })
        };
        opens(&ring.api_key_hash(key), false).or_else(|| {
            ring.older_api_key_hashes(key)
                .find_map(|hash| opens(&hash, true))
        })
    }

    /// How many keys were hashed under a master secret that is none of these, and open nothing.
    pub fn lost(&self, secret_ids: &[String]) -> usize {
        self.by_hash
            .values()
            .filter_map(|key| key.secret_id.as_ref())
            .filter(|id| !secret_ids.contains(id))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    #[test]
    fn only_the_very_key_of_the_right_kind_opens() {
        let ring = Keyring::new(&Secret::new("0123456789abcdef0123456789abcdef")).unwrap();
        let key = generate(KeyKind::Agent).unwrap();
        let now = clock::now();
        let known = |expires_at| {
            KnownKeys::new(vec![KnownKey {
                id: KeyId::generate(),
                kind: KeyKind::Agent,
                owner: "support-bot".into(),
                expires_at,
                hash: ring.api_key_hash(key.expose()),
                secret_id: None,
            }])
        };
        let keys = known(None);
        assert!(
            keys.find(&ring, KeyKind::Agent, key.expose(), now)
                .is_some()
        );
        assert!(
            keys.find(&ring, KeyKind::Operator, key.expose(), now)
                .is_none()
        );
        let other = generate(KeyKind::Agent).unwrap();
        assert!(
            keys.find(&ring, KeyKind::Agent, other.expose(), now)
                .is_none()
        );
        assert!(
            known(Some(now))
                .find(&ring, KeyKind::Agent, key.expose(), now)
                .is_none()
        );
        let later = now + chrono::TimeDelta::seconds(1);
        assert!(
            known(Some(later))
                .find(&ring, KeyKind::Agent, key.expose(), now)
                .is_some()
        );
    }

    #[test]
    fn a_mistyped_key_is_seen_without_a_look_up() {
        let key = generate(KeyKind::Operator).unwrap();
        assert!(is_well_formed(KeyKind::Operator, key.expose()));
        let mut typed: Vec<char> = key.expose().chars().collect();
        typed[20] = if typed[20] == 'a' { 'b' } else { 'a' };
        let typed: String = typed.into_iter().collect();
        assert!(!is_well_formed(KeyKind::Operator, &typed));
        assert!(!is_well_formed(KeyKind::Agent, key.expose()));
    }
}
