//! Prefixed, time-ordered ids (`call_…`, `run_…`), each its own type so that one kind can never stand
//! where another is meant. The part behind the prefix is a UUIDv7 (RFC 9562) in Crockford base32.

use std::{fmt, str::FromStr, sync::Arc};

use uuid::Uuid;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const LENGTH: usize = 26;

/// Why a text is not an id of the wanted kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id of the form {prefix}_ followed by 26 characters of Crockford base32")]
pub struct NotAnId {
    /// The prefix that was expected.
    pub prefix: &'static str,
}

fn new_uuid() -> Uuid {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the place that the ban points to"
    )]
    Uuid::now_v7()
}

fn encode(prefix: &str, id: Uuid) -> Arc<str> {
    let value = id.as_u128();
    let mut text = String::with_capacity(prefix.len() + 1 + LENGTH);
    text.push_str(prefix);
    text.push('_');
    for place in (0..LENGTH).rev() {
        let digit = usize::try_from((value >> (5 * place)) & 31).unwrap_or(0);
        text.push(char::from(ALPHABET.get(digit).copied().unwrap_or(b'0')));
    }
    text.into()
}

/// Exactly the canonical spelling, so that one id has one text and a comparison of texts is enough.
fn is_canonical(prefix: &str, text: &str) -> bool {
    let Some(rest) = text
        .strip_prefix(prefix)
        .and_then(|rest| rest.strip_prefix('_'))
    else {
        return false;
    };
    rest.len() == LENGTH
        && matches!(rest.as_bytes().first(), Some(b'0'..=b'7'))
        && rest.bytes().all(|byte| ALPHABET.contains(&byte))
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// A new id, later in order than every id made before it by this process.
            pub fn generate() -> Self {
                Self(encode($prefix, new_uuid()))
            }

            /// The id as it is written everywhere.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = NotAnId;

            fn from_str(text: &str) -> Result<Self, NotAnId> {
                if is_canonical($prefix, text) {
                    Ok(Self(text.into()))
                } else {
                    Err(NotAnId { prefix: $prefix })
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }
    };
}

id!(
    /// One tool call.
    CallId, "call"
);
id!(
    /// One execution of an agent.
    RunId, "run"
);
id!(
    /// One parked call waiting for people.
    ApprovalId, "appr"
);
id!(
    /// One lending of the right to vote.
    DelegationId, "dele"
);
id!(
    /// One approval that counts for the next identical calls too.
    PermissionId, "perm"
);
id!(
    /// One API key of an agent or an operator; never the key itself.
    KeyId, "key"
);
id!(
    /// One pull of the kill switch.
    KillSwitchId, "halt"
);
id!(
    /// One event on its way to one destination.
    DeliveryId, "dlv"
);
id!(
    /// One start of a gateway process; names the sequence its audit entries belong to.
    InstanceId, "inst"
);

impl InstanceId {
    /// A new id, later in order than `newest`, also where the clock was set back since that was made: then it says a moment after
    /// that one's.
    pub fn generate_after(newest: &Self) -> Self {
        let made = Self::generate();
        if made.as_str() > newest.as_str() {
            return made;
        }
        let ms = u64::try_from(newest.unix_ms()).unwrap_or(0) + 1;
        let nanos = u32::try_from(ms % 1_000).unwrap_or(0) * 1_000_000;
        let moment = uuid::Timestamp::from_unix(uuid::NoContext, ms / 1_000, nanos);
        Self(encode("inst", Uuid::new_v7(moment)))
    }

    /// When it was made, in milliseconds since the beginning of 1970 (RFC 9562, section 5.7).
    pub fn unix_ms(&self) -> i64 {
        let digits = self.0.bytes().rev().take(LENGTH).zip((0..).step_by(5));
        let value = digits.fold(0_u128, |value, (letter, bits)| {
            let digit = ALPHABET.iter().position(|known| *known == letter);
            value | u128::try_from(digit.unwrap_or(0)).unwrap_or(0) << bits
        });
        i64::try_from(value >> 80).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_prefixed_ordered_and_read_back() {
        let first = CallId::generate();
        let second = CallId::generate();
        assert!(first < second, "{first} should sort before {second}");
        assert!(first.as_str().starts_with("call_"));
        assert_eq!(first.as_str().len(), "call_".len() + LENGTH);
        assert_eq!(first.as_str().parse(), Ok(first.clone()));
    }

    #[test]
    fn an_instance_comes_after_the_newest_whatever_the_clock_says() {
        let now = InstanceId::generate();
        let ahead = u64::try_from(now.unix_ms()).unwrap() + 3_600_000;
        let moment = uuid::Timestamp::from_unix(uuid::NoContext, ahead / 1_000, 0);
        let ahead = InstanceId(encode("inst", Uuid::new_v7(moment)));
        let next = InstanceId::generate_after(&ahead);
        assert!(next.as_str() > ahead.as_str());
        assert_eq!(next.unix_ms(), ahead.unix_ms() + 1);
        assert!(InstanceId::generate_after(&now).unix_ms() < ahead.unix_ms());
    }

    #[test]
    fn an_instance_says_when_it_was_made() {
        let before = crate::clock::now().timestamp_millis();
        let made = InstanceId::generate().unix_ms();
        // Ids of one process never fall back, so one that was made ahead of the clock may push this one on.
        assert!((before..before + 1_000).contains(&made), "{made}");
    }

    #[test]
    fn anything_but_the_canonical_spelling_is_refused() {
        let good = RunId::generate();
        let lower = good.as_str().to_lowercase();
        let short = &good.as_str()[..good.as_str().len() - 1];
        let other_kind = good.as_str().replace("run_", "call_");
        let too_large = "run_ZZZZZZZZZZZZZZZZZZZZZZZZZZ";
        for bad in [&lower, short, other_kind.as_str(), too_large, "run_", ""] {
            assert!(bad.parse::<RunId>().is_err(), "{bad:?} was taken");
        }
    }
}
