//! What may be recorded of arguments, answers and words: values that the contract marks with `x-sensitivity`, and whatever the
//! detectors know as a credential or as personal data, are replaced by their class and a keyed digest, so that an auditor can
//! look for a known value and see no other.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::{
    entry::{Entry, Redacted},
    secrets::Keyring,
};

mod cut;
pub mod detectors;

pub use cut::Cut;

/// How deep references may lead into each other before a schema counts as recursive.
const MAX_REFERENCES: usize = 16;

/// Where sensitive values stand in one contract's arguments, prepared at load.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    root: Mark,
}

#[derive(Debug, Clone, Default)]
struct Mark {
    /// `secret`, `pii` or `confidential`: the whole value is replaced.
    class: Option<String>,
    properties: HashMap<String, Mark>,
    additional: Option<Box<Mark>>,
    items: Option<Box<Mark>>,
    /// Marks from combinators (`allOf` and its kin): each holds, whichever branch applied.
    also: Vec<Mark>,
}

impl Mark {
    fn is_empty(&self) -> bool {
        self.class.is_none()
            && self.properties.is_empty()
            && self.additional.is_none()
            && self.items.is_none()
            && self.also.is_empty()
    }
}

impl Marks {
    /// Reads the marks of a JSON Schema. A reference that leads nowhere or around in a circle counts as `secret`:
    /// what is not understood is not recorded.
    pub fn of(schema: &Value) -> Self {
        Self {
            root: mark(schema, schema, 0),
        }
    }

    /// The value without anything sensitive.
    pub fn redact(&self, value: &Value, keys: &Keyring) -> Redacted {
        // Nearly every value is clean, and is not copied then.
        if self.root.is_empty() && is_clean(None, value) {
            return Redacted::vouched(value, Vec::new());
        }
        let mut copy = value.clone();
        let mut tokens = Vec::new();
        apply(&self.root, &mut copy, keys, &mut tokens);
        scan(None, &mut copy, keys, &mut tokens);
        Redacted::vouched(&copy, tokens)
    }

    /// Parts of a value, each under the JSON pointer that leads to it, without anything sensitive.
    pub fn redact_parts(&self, parts: &Map<String, Value>, keys: &Keyring) -> Redacted {
        let mut copy = parts.clone();
        let mut tokens = Vec::new();
        for (pointer, part) in &mut copy {
            let mut marks = vec![&self.root];
            let mut name = String::new();
            for token in pointer.split('/').skip(1) {
                name = token.replace("~1", "/").replace("~0", "~");
                marks = marks
                    .into_iter()
                    .flat_map(|mark| below(mark, &name))
                    .collect();
            }
            for mark in marks {
                apply(mark, part, keys, &mut tokens);
            }
            scan(Some(&name), part, keys, &mut tokens);
        }
        Redacted::vouched(&Value::Object(copy), tokens)
    }
}

/// A text without what the detectors know, and the keyed digests of what stood there.
pub fn redact_text(text: &str, keys: &Keyring) -> (String, Vec<String>) {
    let mut tokens = Vec::new();
    let text = replaced(None, text, keys, &mut tokens).unwrap_or_else(|| text.to_owned());
    (text, tokens)
}

/// Takes what the detectors know out of an entry's free text. Every entry goes through here on its way to the table.
pub fn scrub(entry: &mut Entry, keys: &Keyring) {
    let mut tokens = std::mem::take(&mut entry.value_tokens);
    if let Some(words) = &mut entry.words
        && let Some(clean) = replaced(None, words, keys, &mut tokens)
    {
        *words = clean;
    }
    if let Some(detail) = &mut entry.detail
        && !is_clean(None, detail)
    {
        // Who started a run is an identity that people look for by its name, which may be an address; a credential is none.
        let identity = detail
            .get("triggered_by")
            .filter(|value| {
                let text = value.as_str().unwrap_or_default();
                detectors::find(None, text)
                    .iter()
                    .all(|finding| finding.class != "secret")
            })
            .cloned();
        scan(None, detail, keys, &mut tokens);
        if let (Some(identity), Some(detail)) = (identity, detail.as_object_mut()) {
            detail.insert("triggered_by".to_owned(), identity);
        }
    }
    entry.value_tokens = tokens;
}

/// Every form in which `value` can stand in the records, with its keyed digest: as it is, and as each kind of thing that the
/// detectors take it for. Under every master secret, newest first.
pub fn tokens_of(value: &str, keys: &Keyring) -> Vec<(&'static str, String)> {
    tokens_by_secret(value, keys)
        .into_iter()
        .flatten()
        .collect()
}

/// The same, a list for each of [`Keyring::secret_ids`].
pub fn tokens_by_secret(value: &str, keys: &Keyring) -> Vec<Vec<(&'static str, String)>> {
    let mut forms = vec![("as it is", keys.value_tokens(value.as_bytes()))];
    for finding in detectors::find(None, value) {
        if finding.range == (0..value.len()) {
            let form = detectors::normal_form(finding.kind, value);
            forms.push((finding.kind, keys.value_tokens(form.as_bytes())));
        }
    }
    (0..keys.secret_ids().len())
        .map(|secret| {
            forms
                .iter()
                .filter_map(|(form, tokens)| Some((*form, tokens.get(secret)?.clone())))
                .collect()
        })
        .collect()
}

fn is_clean(name: Option<&str>, value: &Value) -> bool {
    match value {
        Value::String(text) => detectors::find(name, text).is_empty(),
        Value::Number(number) => {
            !may_be_card(number) || detectors::find(name, &number.to_string()).is_empty()
        }
        Value::Array(items) => items.iter().all(|item| is_clean(name, item)),
        Value::Object(object) => object.iter().all(|(name, child)| {
            detectors::find(None, name).is_empty() && is_clean(Some(name), child)
        }),
        Value::Null | Value::Bool(_) => true,
    }
}

/// Thirteen digits or more.
fn may_be_card(number: &serde_json::Number) -> bool {
    number
        .as_u64()
        .is_some_and(|number| number >= 1_000_000_000_000)
}

/// Replaces what the detectors find in every string, number and name.
fn scan(name: Option<&str>, value: &mut Value, keys: &Keyring, tokens: &mut Vec<String>) {
    match value {
        Value::String(text) => {
            if let Some(clean) = replaced(name, text, keys, tokens) {
                *text = clean;
            }
        }
        Value::Number(number) if may_be_card(number) => {
            if let Some(clean) = replaced(name, &number.to_string(), keys, tokens) {
                *value = Value::String(clean);
            }
        }
        Value::Array(items) => {
            for item in items {
                scan(name, item, keys, tokens);
            }
        }
        Value::Object(object) => {
            let sensitive: Vec<String> = object
                .keys()
                .filter(|name| !detectors::find(None, name).is_empty())
                .cloned()
                .collect();
            for name in sensitive {
                if let Some(child) = object.remove(&name) {
                    let clean = replaced(None, &name, keys, tokens).unwrap_or(name);
                    object.insert(clean, child);
                }
            }
            for (name, child) in object.iter_mut() {
                scan(Some(name), child, keys, tokens);
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// The text with a token in the place of each finding; `None` if there is none.
fn replaced(
    name: Option<&str>,
    text: &str,
    keys: &Keyring,
    tokens: &mut Vec<String>,
) -> Option<String> {
    let found = detectors::find(name, text);
    if found.is_empty() {
        return None;
    }
    let mut clean = String::with_capacity(text.len());
    let mut at = 0;
    for finding in found {
        clean.push_str(text.get(at..finding.range.start).unwrap_or_default());
        at = finding.range.end;
        let part = text.get(finding.range).unwrap_or_default();
        let token = keys.value_token(detectors::normal_form(finding.kind, part).as_bytes());
        clean.push_str(&format!("{}:{}:{token}", finding.class, finding.kind));
        tokens.push(token);
    }
    clean.push_str(text.get(at..).unwrap_or_default());
    Some(clean)
}

/// The marks that hold for a member or item of what `mark` holds for. A marked whole marks each of its parts.
fn below<'a>(mark: &'a Mark, token: &str) -> Vec<&'a Mark> {
    let mut found = Vec::new();
    if mark.class.is_some() {
        found.push(mark);
    }
    match mark.properties.get(token) {
        Some(property) => found.push(property),
        None => found.extend(mark.additional.as_deref()),
    }
    found.extend(mark.items.as_deref());
    for also in &mark.also {
        found.extend(below(also, token));
    }
    found
}

fn mark(schema: &Value, root: &Value, references: usize) -> Mark {
    let Some(object) = schema.as_object() else {
        return Mark::default();
    };
    let secret = || Mark {
        class: Some("secret".to_owned()),
        ..Mark::default()
    };
    let mut found = Mark::default();
    if let Some(class) = object.get("x-sensitivity").and_then(Value::as_str)
        && class != "none"
    {
        found.class = Some(class.to_owned());
        return found;
    }
    if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
        let target = reference
            .strip_prefix('#')
            .and_then(|pointer| root.pointer(pointer));
        match target {
            Some(target) if references < MAX_REFERENCES => {
                found.also.push(mark(target, root, references + 1));
            }
            _ => return secret(),
        }
    }
    let keep = |mark: Mark| (!mark.is_empty()).then_some(mark);
    for keyword in ["properties", "patternProperties"] {
        for (name, child) in object
            .get(keyword)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let Some(child) = keep(mark(child, root, references)) else {
                continue;
            };
            if keyword == "properties" {
                found.properties.insert(name.clone(), child);
            } else {
                found.additional = Some(Box::new(merged(found.additional.take(), child)));
            }
        }
    }
    for keyword in ["additionalProperties", "unevaluatedProperties"] {
        if let Some(child) = object
            .get(keyword)
            .and_then(|child| keep(mark(child, root, references)))
        {
            found.additional = Some(Box::new(merged(found.additional.take(), child)));
        }
    }
    for keyword in ["items", "contains", "unevaluatedItems"] {
        if let Some(child) = object
            .get(keyword)
            .and_then(|child| keep(mark(child, root, references)))
        {
            found.items = Some(Box::new(merged(found.items.take(), child)));
        }
    }
    for keyword in ["prefixItems", "allOf", "anyOf", "oneOf"] {
        for child in object
            .get(keyword)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let Some(child) = keep(mark(child, root, references)) else {
                continue;
            };
            if keyword == "prefixItems" {
                found.items = Some(Box::new(merged(found.items.take(), child)));
            } else {
                found.also.push(child);
            }
        }
    }
    for keyword in ["if", "then", "else"] {
        if let Some(child) = object
            .get(keyword)
            .and_then(|child| keep(mark(child, root, references)))
        {
            found.also.push(child);
        }
    }
    for child in object
        .get("dependentSchemas")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::values)
    {
        if let Some(child) = keep(mark(child, root, references)) {
            found.also.push(child);
        }
    }
    found.also.retain(|also| !also.is_empty());
    found
}

fn merged(existing: Option<Box<Mark>>, more: Mark) -> Mark {
    match existing {
        None => more,
        Some(mut existing) => {
            existing.also.push(more);
            *existing
        }
    }
}

fn apply(mark: &Mark, value: &mut Value, keys: &Keyring, tokens: &mut Vec<String>) {
    if let Some(class) = &mark.class {
        replace(class, value, keys, tokens);
        return;
    }
    match value {
        Value::Object(object) => {
            for (name, child) in object.iter_mut() {
                if let Some(mark) = mark.properties.get(name) {
                    apply(mark, child, keys, tokens);
                } else if let Some(mark) = &mark.additional {
                    apply(mark, child, keys, tokens);
                }
            }
        }
        Value::Array(items) => {
            if let Some(mark) = &mark.items {
                for item in items {
                    apply(mark, item, keys, tokens);
                }
            }
        }
        _ => {}
    }
    for also in &mark.also {
        apply(also, value, keys, tokens);
    }
}

/// `pii:email:8c1f…`, or `pii:8c1f…` where no detector knows the value: the class and 128 bits of HMAC over its normal form.
fn replace(class: &str, value: &mut Value, keys: &Keyring, tokens: &mut Vec<String>) {
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
    let token = keys.value_token(form.as_bytes());
    *value = Value::String(format!("{class}:{kind}{token}"));
    tokens.push(token);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::secrets::Secret;

    fn redact(schema: &Value, arguments: &Value) -> String {
        let keys = Keyring::new(&Secret::new("0123456789abcdef0123456789abcdef")).unwrap();
        Marks::of(schema)
            .redact(arguments, &keys)
            .as_json()
            .to_owned()
    }

    #[test]
    fn marked_values_leave_a_searchable_token_and_nothing_else() {
        let schema = json!({
            "$defs": {"address": {"type": "string", "x-sensitivity": "pii"}},
            "properties": {
                "to": {"items": {"$ref": "#/$defs/address"}},
                "card": {"properties": {"number": {"x-sensitivity": "secret"}, "brand": {}}},
                "notes": {"additionalProperties": {"x-sensitivity": "confidential"}},
                "choice": {"oneOf": [{"properties": {"pin": {"x-sensitivity": "secret"}}}, {"type": "string"}]},
                "plain": {"type": "string"}
            }
        });
        let arguments = json!({
            "to": ["planted-1@example.org"],
            "card": {"number": 4_111_111_111_111_111_u64, "brand": "visa"},
            "notes": {"any": "planted-2"},
            "choice": {"pin": "planted-3"},
            "plain": "stays"
        });
        let text = redact(&schema, &arguments);
        assert!(
            !text.contains("planted") && !text.contains("4111"),
            "{text}"
        );
        assert!(text.contains("stays") && text.contains("visa"), "{text}");
        assert!(text.contains("\"pii:"), "{text}");
        let again = redact(&schema, &arguments);
        assert_eq!(text, again, "the same value must give the same token");
    }

    #[test]
    fn what_is_not_understood_is_not_recorded() {
        let schema = json!({"properties": {
            "lost": {"$ref": "#/$defs/nowhere"},
            "far": {"$ref": "https://example.org/schema"},
            "round": {"$ref": "#/properties/round"}
        }});
        let text = redact(
            &schema,
            &json!({"lost": "planted-1", "far": "planted-2", "round": "planted-3"}),
        );
        assert!(!text.contains("planted"), "{text}");
    }
}
