//! The form codec: `application/x-www-form-urlencoded` with bracketed nesting, as payment APIs use it.
//!
//! A form is text without types, so the schema decides what a value is and whether `[0]` is the first
//! item of a list or a key. Everything that two servers could read differently (a name given twice, a
//! value that is also a group, lists with holes) is refused instead of guessed.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use super::{
    schema::{self, Types},
    template::{Undecodable, decode, encode},
};
use crate::json::folded;

/// How many brackets deep a name may go, its first part included.
const MAX_DEPTH: usize = 8;

/// How many pairs a form or a query may have.
const MAX_PAIRS: usize = 1_000;

/// Why a form or a query cannot be read, in words that quote nothing of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct FormError(pub(super) &'static str);

/// Cuts `a=1&b=2` into decoded pairs.
pub(super) fn pairs(text: &str) -> Result<Vec<(String, String)>, FormError> {
    let mut pairs = Vec::new();
    for pair in text.split('&').filter(|pair| !pair.is_empty()) {
        if pairs.len() == MAX_PAIRS {
            return Err(FormError("there are more than 1000 pairs: send fewer"));
        }
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((component(name)?, component(value)?));
    }
    Ok(pairs)
}

fn component(text: &str) -> Result<String, FormError> {
    let text = decode(text, true).map_err(|problem| match problem {
        Undecodable::Percent => {
            FormError("a percent sign is not followed by two hexadecimal digits")
        }
        Undecodable::Utf8 => FormError("the decoded text is not UTF-8"),
    })?;
    if text.contains('\0') {
        return Err(FormError(
            "the character U+0000 cannot be stored: leave it out",
        ));
    }
    Ok(text)
}

/// A form before its schema is known: names are grouped, values are text.
enum Raw {
    Text(String),
    Group(BTreeMap<String, Raw>),
    Appended(Vec<String>),
}

/// Reads a form's bytes into an object, by the schema of that object.
pub(super) fn parse(
    body: &[u8],
    root: &Value,
    schemas: &[&Value],
) -> Result<Map<String, Value>, FormError> {
    let text = std::str::from_utf8(body).map_err(|_| FormError("the form is not UTF-8"))?;
    let mut tree = BTreeMap::new();
    for (name, value) in pairs(text)? {
        insert(&mut tree, &path(&name)?, value)?;
    }
    object(tree, root, schemas)
}

/// The parts of `a[b][0][]`: `a`, `b`, `0` and an empty part for "append".
fn path(name: &str) -> Result<Vec<&str>, FormError> {
    let (first, mut rest) = match name.find('[') {
        Some(at) => name.split_at(at),
        None => (name, ""),
    };
    if first.is_empty() || first.contains(']') {
        return Err(FormError("a name is empty or its brackets do not match"));
    }
    let mut parts = vec![first];
    while !rest.is_empty() {
        let inner = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let Some((part, after)) = inner.filter(|(part, _)| !part.contains('[')) else {
            return Err(FormError("the brackets of a name do not match"));
        };
        if part.is_empty() && !after.is_empty() {
            return Err(FormError(
                "`[]` stands within a name: write the index, as in items[0][name]",
            ));
        }
        parts.push(part);
        rest = after;
        if parts.len() > MAX_DEPTH {
            return Err(FormError("a name is nested deeper than 8 levels"));
        }
    }
    Ok(parts)
}

fn insert(
    group: &mut BTreeMap<String, Raw>,
    path: &[&str],
    value: String,
) -> Result<(), FormError> {
    const CONFLICT: FormError =
        FormError("a name is used both for a value and for a group of values");
    let Some((first, rest)) = path.split_first() else {
        return Err(CONFLICT);
    };
    match rest {
        [] if group.contains_key(*first) => Err(FormError(
            "a name is given twice: for a list, write name[0], name[1]",
        )),
        [] => {
            group.insert((*first).to_owned(), Raw::Text(value));
            Ok(())
        }
        [""] => match group
            .entry((*first).to_owned())
            .or_insert_with(|| Raw::Appended(Vec::new()))
        {
            Raw::Appended(items) => {
                items.push(value);
                Ok(())
            }
            Raw::Text(_) | Raw::Group(_) => Err(CONFLICT),
        },
        rest => match group
            .entry((*first).to_owned())
            .or_insert_with(|| Raw::Group(BTreeMap::new()))
        {
            Raw::Group(inner) => insert(inner, rest, value),
            Raw::Text(_) | Raw::Appended(_) => Err(CONFLICT),
        },
    }
}

fn object(
    group: BTreeMap<String, Raw>,
    root: &Value,
    schemas: &[&Value],
) -> Result<Map<String, Value>, FormError> {
    let mut seen = HashSet::new();
    let mut object = Map::new();
    for (name, raw) in group {
        if !seen.insert(folded(&name).into_owned()) {
            return Err(FormError("two names differ only in case: send one of them"));
        }
        let inner = schema::property(root, schemas, &name);
        object.insert(name, typed(raw, root, &inner)?);
    }
    Ok(object)
}

fn typed(raw: Raw, root: &Value, schemas: &[&Value]) -> Result<Value, FormError> {
    match raw {
        Raw::Text(text) => Ok(schema::read_text(text, schema::types_of_any(root, schemas))),
        Raw::Appended(items) => Ok(items
            .into_iter()
            .enumerate()
            .map(|(index, text)| {
                let inner = schema::item(root, schemas, index);
                schema::read_text(text, schema::types_of_any(root, &inner))
            })
            .collect()),
        Raw::Group(group) => {
            let types = schema::types_of_any(root, schemas);
            let numbered = group
                .keys()
                .all(|key| key.bytes().all(|byte| byte.is_ascii_digit()));
            // Where the schema leaves both open, numbers are indexes.
            let is_list = numbered && types.has(Types::ARRAY);
            if is_list {
                list(group, root, schemas)
            } else {
                object(group, root, schemas).map(Value::Object)
            }
        }
    }
}

fn list(
    mut group: BTreeMap<String, Raw>,
    root: &Value,
    schemas: &[&Value],
) -> Result<Value, FormError> {
    (0..group.len())
        .map(|index| {
            let raw = group.remove(&index.to_string()).ok_or(FormError(
                "a list has holes: number its items from 0 without gaps",
            ))?;
            typed(raw, root, &schema::item(root, schemas, index))
        })
        .collect()
}

/// Why a value cannot be written as a form, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unwritable {
    pub(super) pointer: String,
    pub(super) reason: &'static str,
}

/// Writes an object as a form: keys sorted, list items numbered.
pub(super) fn serialise(object: &Map<String, Value>) -> Result<String, Unwritable> {
    let mut writer = Writer {
        text: String::new(),
        pairs: 0,
    };
    for (name, value) in sorted(object) {
        let pointer = format!("/{}", schema::token(name));
        check_name(name, &pointer)?;
        writer.write(name, &pointer, value, 1)?;
    }
    Ok(writer.text)
}

struct Writer {
    text: String,
    pairs: usize,
}

impl Writer {
    fn write(
        &mut self,
        name: &str,
        pointer: &str,
        value: &Value,
        depth: usize,
    ) -> Result<(), Unwritable> {
        let refuse = |reason| {
            Err(Unwritable {
                pointer: pointer.to_owned(),
                reason,
            })
        };
        if depth > MAX_DEPTH {
            return refuse("a form cannot be nested deeper than 8 levels");
        }
        match value {
            Value::Null => refuse("a form cannot carry null: leave the property out"),
            Value::Array(items) if items.is_empty() => {
                refuse("a form cannot carry an empty list: leave the property out")
            }
            Value::Object(inner) if inner.is_empty() => {
                refuse("a form cannot carry an empty object: leave the property out")
            }
            Value::Array(items) => items.iter().enumerate().try_for_each(|(index, item)| {
                self.write(
                    &format!("{name}[{index}]"),
                    &format!("{pointer}/{index}"),
                    item,
                    depth + 1,
                )
            }),
            Value::Object(inner) => sorted(inner).into_iter().try_for_each(|(key, value)| {
                let pointer = format!("{pointer}/{}", schema::token(key));
                check_name(key, &pointer)?;
                self.write(&format!("{name}[{key}]"), &pointer, value, depth + 1)
            }),
            Value::String(_) | Value::Number(_) | Value::Bool(_) => {
                self.pairs += 1;
                if self.pairs > MAX_PAIRS {
                    return refuse("a form cannot have more than 1000 values");
                }
                if !self.text.is_empty() {
                    self.text.push('&');
                }
                encode(name, &mut self.text);
                self.text.push('=');
                encode(
                    &schema::scalar_text(value).unwrap_or_default(),
                    &mut self.text,
                );
                Ok(())
            }
        }
    }
}

fn check_name(name: &str, pointer: &str) -> Result<(), Unwritable> {
    if name.is_empty() || name.contains(['[', ']', '\0']) {
        return Err(Unwritable {
            pointer: pointer.to_owned(),
            reason: "a form cannot carry a property whose name is empty or has brackets",
        });
    }
    Ok(())
}

fn sorted(object: &Map<String, Value>) -> Vec<(&String, &Value)> {
    let mut entries: Vec<_> = object.iter().collect();
    entries.sort_unstable_by_key(|(name, _)| name.as_str());
    entries
}
