//! Pages of lists, by one rule for all of them: how many rows at once, the cursor that leads to the next page, and the form of the
//! answer. A cursor says where a page ended, bound by a keyed digest to the list and the filter that it came from: whoever has not
//! been given one cannot make one, and one list's cursor says nothing to another.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use utoipa::ToSchema;

use super::filter::wrong;
use crate::{
    reason::{Reason, Refusal},
    secrets::Keyring,
};

/// Rows of a page: without `limit`, and with it at the most.
pub(in crate::http) const LIMITS: (i64, i64) = (50, 500);
/// The longest cursor that is looked at.
const CURSOR_BYTES: usize = 512;
/// Bytes of HMAC-SHA-256.
const TAG: usize = 32;

/// The page that is asked for. `P` is where a page ends: what the list is ordered by.
pub(super) struct Paging<'k, P> {
    keys: &'k Keyring,
    /// Which list, with which filter in which order.
    list: String,
    /// Rows at the most.
    pub limit: i64,
    /// Where the page before ended, if there was one.
    pub after: Option<P>,
}

impl<'k, P: Serialize + DeserializeOwned> Paging<'k, P> {
    /// Reads `limit` and `cursor`. `list` names the list and its order, `told` is its filter as it is recorded.
    ///
    /// # Errors
    /// `malformed_body` for a limit that is out of bounds, and for every cursor that this list has not handed out for this filter.
    pub fn read(
        keys: &'k Keyring,
        list: &str,
        told: &Value,
        (limit, cursor): (Option<i64>, Option<&str>),
    ) -> Result<Self, Refusal> {
        let list = format!("{list} {told}");
        let limit = match limit {
            None => LIMITS.0,
            Some(limit) if (1..=LIMITS.1).contains(&limit) => limit,
            Some(_) => return Err(wrong("limit", &format!("between 1 and {}", LIMITS.1))),
        };
        let after = cursor
            .map(|cursor| decode(cursor, keys, &list))
            .transpose()?;
        Ok(Self {
            keys,
            list,
            limit,
            after,
        })
    }

    /// How many rows to ask for: one more than are shown tells whether there are more.
    pub fn wanted(&self) -> i64 {
        self.limit + 1
    }

    /// Cuts what was found to the page, and gives the cursor to the next one if more was found.
    pub fn cut<R>(&self, rows: &mut Vec<R>, place: impl FnOnce(&R) -> P) -> Option<String> {
        let most = usize::try_from(self.limit).unwrap_or(usize::MAX);
        if rows.len() <= most {
            return None;
        }
        rows.truncate(most);
        rows.last().map(|last| self.cursor(&place(last)))
    }

    /// The cursor to the page behind a place.
    pub fn cursor(&self, place: &P) -> String {
        let mut bytes = serde_json::to_vec(place).unwrap_or_default();
        let tag = self.keys.cursor_tag(&signed(&bytes, &self.list));
        bytes.extend_from_slice(&tag);
        URL_SAFE_NO_PAD.encode(bytes)
    }
}

fn decode<P: DeserializeOwned>(text: &str, keys: &Keyring, list: &str) -> Result<P, Refusal> {
    let read = || {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (body, tag) = bytes.split_at_checked(bytes.len().checked_sub(TAG)?)?;
        keys.is_cursor_tag(&signed(body, list), tag)
            .then(|| serde_json::from_slice(body).ok())?
    };
    let place = if text.len() <= CURSOR_BYTES {
        read()
    } else {
        None
    };
    place.ok_or_else(|| {
        Refusal::new(
            Reason::MalformedBody,
            "\"cursor\" is none that this list gave for this filter and order. Begin without one, or send the filter unchanged.",
        )
    })
}

/// What the tag is over: no text of a list holds U+0000.
fn signed(body: &[u8], list: &str) -> Vec<u8> {
    [body, b"\0", list.as_bytes()].concat()
}

/// A page of a list.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Page<T> {
    /// The rows, in the order of the list.
    pub data: Vec<T>,
    /// Whether more may follow.
    pub has_more: bool,
    /// Send it back, with the same filter, for the next page; null where nothing follows.
    #[schema(required)]
    pub cursor: Option<String>,
}

impl<T> Page<T> {
    pub fn new(data: Vec<T>, cursor: Option<String>) -> Self {
        Self {
            data,
            has_more: cursor.is_some(),
            cursor,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::secrets::Secret;

    fn read<'k>(
        keys: &'k Keyring,
        list: &str,
        told: &Value,
        cursor: &str,
    ) -> Result<Paging<'k, (i64, String)>, Refusal> {
        Paging::read(keys, list, told, (None, Some(cursor)))
    }

    #[test]
    fn a_cursor_is_read_back_by_its_own_list_and_by_no_other() {
        let keys = Keyring::new(&Secret::new("0123456789abcdef0123456789abcdef")).unwrap();
        let told = json!({"agent": "x"});
        let place = (7, "call_x".to_owned());
        let first = Paging::read(&keys, "entries newest", &told, (None, None)).unwrap();
        let text = first.cursor(&place);
        let next = read(&keys, "entries newest", &told, &text).unwrap();
        assert_eq!(next.after, Some(place));
        let other = Keyring::new(&Secret::new("another master secret, just as long")).unwrap();
        assert!(read(&other, "entries newest", &told, &text).is_err());
        assert!(read(&keys, "entries oldest", &told, &text).is_err());
        assert!(read(&keys, "entries newest", &json!({}), &text).is_err());
        assert!(read(&keys, "entries newest", &told, "").is_err());
        let mut bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
        for at in 0..bytes.len() {
            bytes[at] ^= 1;
            let forged = URL_SAFE_NO_PAD.encode(&bytes);
            assert!(
                read(&keys, "entries newest", &told, &forged).is_err(),
                "byte {at}"
            );
            bytes[at] ^= 1;
        }
    }

    #[test]
    fn a_page_is_cut_to_its_limit_and_leads_on_only_where_more_was_found() {
        let keys = Keyring::new(&Secret::new("0123456789abcdef0123456789abcdef")).unwrap();
        let paging = Paging::<i64>::read(&keys, "numbers", &Value::Null, (Some(2), None)).unwrap();
        assert_eq!(paging.wanted(), 3);
        let mut rows = vec![1, 2, 3];
        let cursor = paging.cut(&mut rows, |last| *last).unwrap();
        assert_eq!(rows, [1, 2]);
        let next = (Some(2), Some(cursor.as_str()));
        let next = Paging::<i64>::read(&keys, "numbers", &Value::Null, next).unwrap();
        assert_eq!(next.after, Some(2));
        assert!(next.cut(&mut vec![3, 4], |last| *last).is_none());
        for limit in [0, -1, LIMITS.1 + 1] {
            let asked = (Some(limit), None);
            assert!(Paging::<i64>::read(&keys, "numbers", &Value::Null, asked).is_err());
        }
    }
}
