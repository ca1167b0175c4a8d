//! What may be recorded of a call's arguments: values that the contract marks with `x-sensitivity` are replaced by
//! their class and a keyed digest, so that an auditor can look for a known value and see no other.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::{entry::Redacted, secrets::Keyring};

mod cut;

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

    /// The arguments without any marked value.
    pub fn redact(&self, arguments: &Value, keys: &Keyring) -> Redacted {
        if self.root.is_empty() {
            return Redacted::vouched(arguments);
        }
        let mut copy = arguments.clone();
        apply(&self.root, &mut copy, keys);
        Redacted::vouched(&copy)
    }

    /// Parts of a value, each under the JSON pointer that leads to it, without any marked value.
    pub fn redact_parts(&self, parts: &Map<String, Value>, keys: &Keyring) -> Redacted {
        let mut copy = parts.clone();
        for (pointer, part) in &mut copy {
            let mut marks = vec![&self.root];
            for token in pointer.split('/').skip(1) {
                let token = token.replace("~1", "/").replace("~0", "~");
                marks = marks
                    .into_iter()
                    .flat_map(|mark| below(mark, &token))
                    .collect();
            }
            for mark in marks {
                apply(mark, part, keys);
            }
        }
        Redacted::vouched(&Value::Object(copy))
    }
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

fn apply(mark: &Mark, value: &mut Value, keys: &Keyring) {
    if let Some(class) = &mark.class {
        replace(class, value, keys);
        return;
    }
    match value {
        Value::Object(object) => {
            for (name, child) in object.iter_mut() {
                if let Some(mark) = mark.properties.get(name) {
                    apply(mark, child, keys);
                } else if let Some(mark) = &mark.additional {
                    apply(mark, child, keys);
                }
            }
        }
        Value::Array(items) => {
            if let Some(mark) = &mark.items {
                for item in items {
                    apply(mark, item, keys);
                }
            }
        }
        _ => {}
    }
    for also in &mark.also {
        apply(also, value, keys);
    }
}

/// `pii:8c1f…`: the class and 128 bits of HMAC over the value's own text.
fn replace(class: &str, value: &mut Value, keys: &Keyring) {
    let token = match &*value {
        Value::Null => return,
        Value::String(text) => keys.value_token(text.as_bytes()),
        other => keys.value_token(other.to_string().as_bytes()),
    };
    *value = Value::String(format!("{class}:{token}"));
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
