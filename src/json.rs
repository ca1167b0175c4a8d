//! Strict JSON: one reading of every document that decides, is recorded or is sent.
//!
//! Two parsers that disagree about a document are how a request gets past a gateway: the one that
//! checks keeps the last of two equal keys, the one that acts keeps the first. So everything with more
//! than one reading is refused here, and what is accepted has exactly one RFC 8785 text.

use std::{borrow::Cow, collections::HashSet, fmt};

use aws_lc_rs::digest;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// The largest integer that every JSON implementation holds exactly (2^53 − 1).
pub const MAX_INTEGER: i64 = 9_007_199_254_740_991;

/// How many arrays and objects may stand inside each other.
pub const MAX_DEPTH: usize = 64;

const TOO_LARGE: &str =
    "an integer beyond ±9007199254740991 is not exact in JSON: send it as a string";
const NEGATIVE_ZERO: &str = "negative zero has two readings: send 0";
const NUL: &str = "the character U+0000 cannot be stored: leave it out";

/// Why a document was refused, in words that are safe to show to whoever sent it: no value is quoted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not acceptable as JSON at line {line}, column {column}: {reason}")]
pub struct ParseError {
    /// What is wrong and what to send instead.
    pub reason: String,
    /// 1-based line.
    pub line: usize,
    /// 1-based column, as serde_json counts it: the byte at which the parser stopped.
    pub column: usize,
}

/// Reads one document.
///
/// # Errors
///
/// Refused are: invalid UTF-8, a byte order mark, syntax errors (lone surrogates and bytes after the
/// value among them), keys of one object that are equal or differ only in case, integers beyond
/// ±(2^53 − 1), negative zero, numbers that overflow, U+0000, and nesting deeper than [`MAX_DEPTH`].
pub fn parse(bytes: &[u8]) -> Result<Value, ParseError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
        let line_start = valid
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        ParseError {
            reason: "the bytes are not UTF-8: encode the document as UTF-8".to_owned(),
            line: valid.iter().filter(|byte| **byte == b'\n').count() + 1,
            column: valid.len() - line_start + 1,
        }
    })?;
    if text.starts_with('\u{feff}') {
        return Err(ParseError {
            reason: "a byte order mark stands before the document: leave it out".to_owned(),
            line: 1,
            column: 1,
        });
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    Strict { depth: 0 }
        .deserialize(&mut deserializer)
        .and_then(|value| deserializer.end().map(|()| value))
        .map_err(|error| parse_error(&error))
}

fn parse_error(error: &serde_json::Error) -> ParseError {
    let (line, column) = (error.line(), error.column());
    let full = error.to_string();
    let bare = full
        .strip_suffix(&format!(" at line {line} column {column}"))
        .unwrap_or(&full);
    let reason = if error.is_data() {
        bare.to_owned()
    } else {
        format!("{bare}: send one valid JSON document (RFC 8259)")
    };
    ParseError {
        reason,
        line,
        column,
    }
}

/// An integer as JSON holds it exactly.
///
/// # Errors
///
/// Says what to do when it is beyond ±(2^53 − 1).
pub fn integer(value: i128) -> Result<Number, &'static str> {
    let limit = i128::from(MAX_INTEGER);
    if (-limit..=limit).contains(&value) {
        i64::try_from(value)
            .map(Number::from)
            .map_err(|_| TOO_LARGE)
    } else {
        Err(TOO_LARGE)
    }
}

/// A float as a JSON number; an integral one becomes an integer, so that 1.0 and 1 are one value.
///
/// # Errors
///
/// Says what to do about negative zero, an integral float beyond ±(2^53 − 1) and what is not finite.
pub fn float(value: f64) -> Result<Number, &'static str> {
    if value == 0.0 && value.is_sign_negative() {
        return Err(NEGATIVE_ZERO);
    }
    if value.fract() == 0.0 {
        #[expect(
            clippy::cast_precision_loss,
            reason = "2^53 - 1 is exact as a float, which is why it is the limit"
        )]
        let limit = MAX_INTEGER as f64;
        if value.abs() > limit {
            return Err(TOO_LARGE);
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "integral and within ±(2^53 - 1), as just checked"
        )]
        return Ok(Number::from(value as i64));
    }
    Number::from_f64(value).ok_or("the number is not finite: send a smaller one")
}

/// A number written in exactly JSON's grammar, held to the same rules as in a document. `None` for
/// any other text, white space around the number included.
pub fn number(text: &str) -> Option<Number> {
    let starts_as_number = text.starts_with(|first: char| first == '-' || first.is_ascii_digit());
    let ends_as_number = text.ends_with(|last: char| last.is_ascii_digit());
    if !starts_as_number || !ends_as_number {
        return None;
    }
    match parse(text.as_bytes()) {
        Ok(Value::Number(number)) => Some(number),
        _ => None,
    }
}

/// What two keys have in common when a person or a careless program takes them for one: the text
/// without its case. Upper-casing in between catches letters with several lower-case forms, such as ſ.
pub fn folded(key: &str) -> Cow<'_, str> {
    if key
        .bytes()
        .all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase())
    {
        return Cow::Borrowed(key);
    }
    Cow::Owned(
        key.chars()
            .flat_map(char::to_lowercase)
            .flat_map(char::to_uppercase)
            .flat_map(char::to_lowercase)
            .collect(),
    )
}

/// A key or name from outside as it may stand in a message: escaped, at most 64 characters.
pub fn shown(key: &str) -> String {
    const LIMIT: usize = 64;
    let mut text: String = key
        .chars()
        .take(LIMIT)
        .flat_map(|character| {
            let plain =
                character == ' ' || character.is_ascii_graphic() || character.is_alphanumeric();
            let escaped = (!plain).then(|| character.escape_unicode());
            plain
                .then_some(character)
                .into_iter()
                .chain(escaped.into_iter().flatten())
        })
        .collect();
    if key.chars().nth(LIMIT).is_some() {
        text.push('…');
    }
    text
}

/// The RFC 8785 text of a value: equal values have equal bytes, whatever order their keys came in.
pub fn canonical(value: &Value) -> Vec<u8> {
    // The serializer fails on non-finite floats and on keys that are not text, and a `Value` holds
    // neither. Should that ever change, the plain text is still the same for the same value.
    serde_json_canonicalizer::to_vec(value).unwrap_or_else(|_| value.to_string().into_bytes())
}

/// The same as text.
pub fn canonical_text(value: &Value) -> String {
    String::from_utf8(canonical(value)).unwrap_or_else(|_| value.to_string())
}

/// SHA-256 in lower-case hexadecimal digits.
pub fn sha256_hex(bytes: impl AsRef<[u8]>) -> String {
    use fmt::Write as _;
    let digest = digest::digest(&digest::SHA256, bytes.as_ref());
    digest
        .as_ref()
        .iter()
        .fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[derive(Clone, Copy)]
struct Strict {
    depth: usize,
}

impl Strict {
    fn inside<E: serde::de::Error>(self) -> Result<Self, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom(format_args!(
                "arrays and objects are nested deeper than {MAX_DEPTH}: send a flatter document"
            )));
        }
        Ok(Self {
            depth: self.depth + 1,
        })
    }
}

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        integer(value.into()).map(Value::Number).map_err(E::custom)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        integer(value.into()).map(Value::Number).map_err(E::custom)
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        float(value).map(Value::Number).map_err(E::custom)
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.visit_string(value.to_owned())
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        if value.contains('\0') {
            return Err(E::custom(NUL));
        }
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(inside)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let inside = self.inside()?;
        let mut object = Map::new();
        let mut seen = HashSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if key.contains('\0') {
                return Err(A::Error::custom(NUL));
            }
            if !seen.insert(folded(&key).into_owned()) {
                let problem = if object.contains_key(&key) {
                    "stands twice in one object: send it once"
                } else {
                    "differs only in case from another key of the object: send one of them"
                };
                return Err(A::Error::custom(format_args!(
                    "the key `{}` {problem}",
                    shown(&key)
                )));
            }
            let value = entries.next_value_seed(inside)?;
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests;
