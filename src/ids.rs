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
