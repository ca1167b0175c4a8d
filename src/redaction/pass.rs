//! The one pass over a value on its way to the records: what is marked and what the detectors know becomes a token, and what is
//! too long is cut, in this order, so that no cut leaves half a secret.

use serde_json::Value;

use super::{
    Redactor, detectors,
    marks::{Mark, Marks},
};
use crate::json;

/// The longest name of a property, in bytes. Longer ones are the agent's or the API's own making.
const NAME_BYTES: usize = 128;

/// The most digests that are kept of one value, so that a document full of addresses does not become a row full of digests.
const MAX_TOKENS: usize = 256;

/// Keyed digests of what stood in a value, each once.
#[derive(Debug, Default)]
pub(super) struct Tokens(pub Vec<String>);

impl Tokens {
    pub fn push(&mut self, token: String) {
        if self.0.len() < MAX_TOKENS && !self.0.contains(&token) {
            self.0.push(token);
        }
    }

    /// Whether a whole value is one of these. A value that only looks like one may be a secret.
    fn made(&self, text: &str) -> bool {
        detectors::digest_of_token(text)
            .is_some_and(|digest| self.0.iter().any(|made| made == digest))
    }
}

/// Whether a value can be recorded as it is, but for its length as a whole.
pub(super) fn is_clean(name: Option<&str>, value: &Value, longest: usize) -> bool {
    match value {
        Value::String(text) => text.len() <= longest && detectors::find(name, text).is_empty(),
        Value::Number(number) => {
            !may_be_sensitive(name, number) || detectors::find(name, &number.to_string()).is_empty()
        }
        Value::Array(items) => items.iter().all(|item| is_clean(name, item, longest)),
        Value::Object(object) => object.iter().all(|(name, child)| {
            name.len() <= NAME_BYTES
                && detectors::find(None, name).is_empty()
                && is_clean(Some(name), child, longest)
        }),
        Value::Null | Value::Bool(_) => true,
    }
}

/// Thirteen digits or more before the point, or anything under the name of a secret.
pub(super) fn may_be_sensitive(name: Option<&str>, number: &serde_json::Number) -> bool {
    const THIRTEEN_DIGITS: f64 = 1e12;
    number
        .as_f64()
        .is_some_and(|number| number.abs() >= THIRTEEN_DIGITS)
        || name.is_some_and(detectors::is_secret_name)
}

/// A copy of the value without anything sensitive and without texts that are too long.
pub(super) fn cleaned(marks: &Marks, value: &Value, with: &Redactor, tokens: &mut Tokens) -> Value {
    let mut copy = value.clone();
    apply(&marks.root, &mut copy, with, tokens);
    scan(None, &mut copy, with, tokens);
    copy
}

/// Replaces what the detectors find in every string, number and name.
pub(super) fn scan(name: Option<&str>, value: &mut Value, with: &Redactor, tokens: &mut Tokens) {
    match value {
        // What a mark has made a token of already.
        Value::String(text) if tokens.made(text) => {}
        Value::String(text) => {
            if let Some(clean) = replaced(name, text, with, tokens, with.caps.text_bytes) {
                *text = clean;
            }
        }
        Value::Number(number) if may_be_sensitive(name, number) => {
            let text = number.to_string();
            if let Some(clean) = replaced(name, &text, with, tokens, with.caps.text_bytes) {
                *value = Value::String(clean);
            }
        }
        Value::Array(items) => {
            for item in items {
                scan(name, item, with, tokens);
            }
        }
        Value::Object(object) => {
            let wanting: Vec<String> = object
                .keys()
                .filter(|name| name.len() > NAME_BYTES || !detectors::find(None, name).is_empty())
                .cloned()
                .collect();
            for (name, child) in object.iter_mut() {
                scan(Some(name), child, with, tokens);
            }
            for name in wanting {
                if let Some(child) = object.remove(&name) {
                    let clean = replaced(None, &name, with, tokens, NAME_BYTES).unwrap_or(name);
                    object.insert(clean, child);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The text with a token in the place of each finding, and cut where it is still longer than `longest` bytes; `None` if it can
/// stay as it is.
pub(super) fn replaced(
    name: Option<&str>,
    text: &str,
    with: &Redactor,
    tokens: &mut Tokens,
    longest: usize,
) -> Option<String> {
    let found = detectors::find(name, text);
    if found.is_empty() && text.len() <= longest {
        return None;
    }
    let mut clean = String::with_capacity(text.len().min(longest) + 64);
    let mut at = 0;
    let mut end = None;
    for finding in found {
        let part = text.get(finding.range.clone()).unwrap_or_default();
        let form = detectors::normal_form(finding.kind, part);
        let token = with.keys.value_token(form.as_bytes());
        if end.is_none() {
            clean.push_str(text.get(at..finding.range.start).unwrap_or_default());
            end = beyond(&clean, longest);
            let before = clean.len();
            clean.push_str(&format!("{}:{}:{token}", finding.class, finding.kind));
            // A token stands whole or not at all.
            end = end.or_else(|| (clean.len() > longest).then_some(before));
        }
        at = finding.range.end;
        tokens.push(token);
    }
    if end.is_none() {
        clean.push_str(text.get(at..).unwrap_or_default());
        end = beyond(&clean, longest);
    }
    if let Some(end) = end {
        clean.truncate(end);
        let whole = with.keys.value_token(text.as_bytes());
        clean.push_str(&format!("…[cut: {} bytes, {whole}]", text.len()));
        tokens.push(whole);
    }
    Some(clean)
}

/// The last place at or before `longest` bytes at which a text can be cut, if it is longer.
fn beyond(text: &str, longest: usize) -> Option<usize> {
    (text.len() > longest).then(|| text.floor_char_boundary(longest))
}

/// Cuts a clean document that is longer than the cap: what comes after the first so many bytes is left out, and a marker in each
/// array and object that lost something says how much, how long the whole was and its keyed digest.
pub(super) fn bound(copy: &mut Value, whole: &Value, with: &Redactor, tokens: &mut Tokens) {
    let bytes = json::canonical(whole);
    let digest = with.keys.value_token(&bytes);
    let of = format!("the whole: {} bytes, {digest}", bytes.len());
    let mut left = with.caps.document_bytes;
    keep(copy, &mut left, &of);
    // Whatever else there is: by this one the whole is found.
    tokens.0.push(digest);
}

fn keep(value: &mut Value, left: &mut usize, of: &str) {
    match value {
        Value::Array(items) => {
            spend(left, 2);
            let mut kept = 0;
            for item in items.iter_mut() {
                if *left == 0 {
                    break;
                }
                spend(left, 1);
                keep(item, left, of);
                kept += 1;
            }
            let lost = items.len() - kept;
            if lost > 0 {
                items.truncate(kept);
                items.push(Value::String(format!("…[cut: {lost} more items; {of}]")));
            }
        }
        Value::Object(object) => {
            spend(left, 2);
            let mut lost = Vec::new();
            for (name, child) in object.iter_mut() {
                if *left == 0 {
                    lost.push(name.clone());
                    continue;
                }
                spend(left, json::canonical(&Value::from(name.as_str())).len() + 2);
                keep(child, left, of);
            }
            for name in &lost {
                object.remove(name);
            }
            if !lost.is_empty() {
                let marker = format!("[cut: {} more members; {of}]", lost.len());
                object.insert("…".to_owned(), Value::String(marker));
            }
        }
        scalar => spend(left, json::canonical(scalar).len()),
    }
}

const fn spend(left: &mut usize, bytes: usize) {
    *left = left.saturating_sub(bytes);
}

pub(super) fn apply(mark: &Mark, value: &mut Value, with: &Redactor, tokens: &mut Tokens) {
    if let Some(class) = &mark.class {
        replace(class, value, with, tokens);
        return;
    }
    match value {
        Value::Object(object) => {
            for (name, child) in object.iter_mut() {
                if let Some(mark) = mark.properties.get(name) {
                    apply(mark, child, with, tokens);
                } else if let Some(mark) = &mark.additional {
                    apply(mark, child, with, tokens);
                }
            }
        }
        Value::Array(items) => {
            if let Some(mark) = &mark.items {
                for item in items {
                    apply(mark, item, with, tokens);
                }
            }
        }
        _ => {}
    }
    for also in &mark.also {
        apply(also, value, with, tokens);
    }
}

/// `pii:email:8c1f…`, or `pii:8c1f…` where no detector knows the value: the class and 128 bits of HMAC over its normal form.
fn replace(class: &str, value: &mut Value, with: &Redactor, tokens: &mut Tokens) {
    let text = match &*value {
        Value::Null => return,
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let known = detectors::find(None, &text)
        .into_iter()
        .find(|finding| finding.range == (0..text.len()));
    let (kind, form) = match &known {
        Some(finding) => (
            format!("{}:", finding.kind),
            detectors::normal_form(finding.kind, &text),
        ),
        None => (String::new(), text.as_str().into()),
    };
    let token = with.keys.value_token(form.as_bytes());
    *value = Value::String(format!("{class}:{kind}{token}"));
    tokens.push(token);
}
