//! Cursors of lists: where a page ended, bound by a keyed digest to the list and the filter that it came from. Whoever has not
//! been given one cannot make one, and one list's cursor says nothing to another.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::{
    clock::Timestamp,
    reason::{Reason, Refusal},
    secrets::Keyring,
    store::entries::Position,
};

/// The longest cursor that is looked at.
const LONGEST: usize = 512;
/// Bytes of HMAC-SHA-256.
const TAG: usize = 32;

/// Where to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Cursor {
    /// The end of what the first page saw: what was recorded since is not part of this walk, so that it ends.
    pub until: Timestamp,
    /// The last entry of the page before.
    at: Timestamp,
    instance: String,
    seq: i64,
}

impl Cursor {
    pub fn new(until: Timestamp, last: Position) -> Self {
        Self {
            until,
            at: last.recorded_at,
            instance: last.instance_id,
            seq: last.seq,
        }
    }

    pub fn position(&self) -> Position {
        Position {
            recorded_at: self.at,
            instance_id: self.instance.clone(),
            seq: self.seq,
        }
    }

    /// As it is handed out. `list` says which list with which filter in which order.
    pub fn encode(&self, keys: &Keyring, list: &str) -> String {
        let mut bytes = serde_json::to_vec(self).unwrap_or_default();
        let tag = keys.cursor_tag(&signed(&bytes, list));
        bytes.extend_from_slice(&tag);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Reads one that this list has handed out.
    ///
    /// # Errors
    /// `malformed_body` for every other text.
    pub fn decode(text: &str, keys: &Keyring, list: &str) -> Result<Self, Refusal> {
        let read = || {
            let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
            let (body, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG)?)?;
            keys.is_cursor_tag(&signed(body, list), tag)
                .then(|| serde_json::from_slice(body).ok())?
        };
        let cursor = if text.len() <= LONGEST { read() } else { None };
        cursor.ok_or_else(|| {
            Refusal::new(
                Reason::MalformedBody,
                "\"cursor\" is none that this list gave for this filter and order. Begin without one, or send the filter unchanged.",
            )
        })
    }
}

/// What the tag is over: no text of a list holds U+0000.
fn signed(body: &[u8], list: &str) -> Vec<u8> {
    [body, b"\0", list.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, secrets::Secret};

    #[test]
    fn a_cursor_is_read_back_by_its_own_list_and_by_no_other() {
        let keys = Keyring::new(&Secret::new("0123456789abcdef0123456789abcdef")).unwrap();
        let cursor = Cursor::new(
            clock::now(),
            Position {
                recorded_at: clock::now(),
                instance_id: "inst_x".to_owned(),
                seq: 7,
            },
        );
        let text = cursor.encode(&keys, "entries newest {}");
        assert_eq!(
            Cursor::decode(&text, &keys, "entries newest {}").unwrap(),
            cursor
        );
        let other = Keyring::new(&Secret::new("another master secret, just as long")).unwrap();
        assert!(Cursor::decode(&text, &other, "entries newest {}").is_err());
        assert!(Cursor::decode(&text, &keys, "entries oldest {}").is_err());
        assert!(Cursor::decode("", &keys, "entries newest {}").is_err());
        let mut bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            let forged = URL_SAFE_NO_PAD.encode(&bytes);
            assert!(
                Cursor::decode(&forged, &keys, "entries newest {}").is_err(),
                "byte {at}"
            );
            bytes[at] ^= 1;
        }
    }
}
