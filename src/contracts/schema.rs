//! Walking JSON Schemas: which keywords hold schemas, what a reference means, which types a value may
//! have, and what a property's or an item's schema is.
//!
//! Validation itself is the `jsonschema` crate's. This is for what has to be known around it: how text
//! from a query string or a form is to be read, where marks stand, and which objects have to be closed.

use serde_json::{Map, Value};

/// How a keyword holds its sub-schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    One,
    List,
    Named,
}

/// What a sub-schema speaks about, seen from the schema that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    /// The same value, as a demand.
    Same,
    /// A value inside of it, as a demand.
    Inside,
    /// The same value, as a question or a negation.
    AskedSame,
    /// A value inside of it, as a question.
    AskedInside,
    /// Nothing until it is referred to.
    Defined,
}

/// Every keyword of draft 2020-12 that holds schemas.
pub(super) const APPLICATORS: &[(&str, Shape, About)] = &[
    ("allOf", Shape::List, About::Same),
    ("anyOf", Shape::List, About::Same),
    ("oneOf", Shape::List, About::Same),
    ("then", Shape::One, About::Same),
    ("else", Shape::One, About::Same),
    ("dependentSchemas", Shape::Named, About::Same),
    ("if", Shape::One, About::AskedSame),
    ("not", Shape::One, About::AskedSame),
    ("properties", Shape::Named, About::Inside),
    ("patternProperties", Shape::Named, About::Inside),
    ("additionalProperties", Shape::One, About::Inside),
    ("unevaluatedProperties", Shape::One, About::Inside),
    ("prefixItems", Shape::List, About::Inside),
    ("items", Shape::One, About::Inside),
    ("unevaluatedItems", Shape::One, About::Inside),
    ("contains", Shape::One, About::AskedInside),
    ("propertyNames", Shape::One, About::AskedInside),
    ("$defs", Shape::Named, About::Defined),
];

/// How many schemas may apply to one value before looking further is given up.
const MAX_IN_PLACE: usize = 256;

/// The schema that a reference within `root` (`#`, `#/$defs/…`) leads to.
pub fn resolve<'a>(root: &'a Value, reference: &str) -> Option<&'a Value> {
    let fragment = reference.strip_prefix('#')?;
    let pointer = percent_encoding::percent_decode_str(fragment)
        .decode_utf8()
        .ok()?;
    root.pointer(&pointer)
}

/// Every schema that makes demands on the same value as `schemas` do: they themselves, and what they
/// reach through `$ref`, `allOf`, `anyOf`, `oneOf`, `then`, `else` and `dependentSchemas`.
pub fn in_place<'a>(root: &'a Value, schemas: &[&'a Value]) -> Vec<&'a Map<String, Value>> {
    reached(root, schemas, &[About::Same])
}

/// The same, and with them what asks about the same value: `if` and `not`. A property that only an `if`
/// names counts as described when the `if` holds.
pub(super) fn in_place_and_asked<'a>(
    root: &'a Value,
    schema: &'a Value,
) -> Vec<&'a Map<String, Value>> {
    reached(root, &[schema], &[About::Same, About::AskedSame])
}

fn reached<'a>(
    root: &'a Value,
    schemas: &[&'a Value],
    about: &[About],
) -> Vec<&'a Map<String, Value>> {
    let mut found: Vec<&Map<String, Value>> = Vec::new();
    let mut open: Vec<&Value> = schemas.iter().rev().copied().collect();
    while let Some(schema) = open.pop() {
        let Some(map) = schema.as_object() else {
            continue;
        };
        if found.len() >= MAX_IN_PLACE || found.iter().any(|known| std::ptr::eq(*known, map)) {
            continue;
        }
        found.push(map);
        open.extend(next_in_place(root, map, about));
    }
    found
}

/// One step of [`in_place`].
pub(super) fn next_in_place<'a>(
    root: &'a Value,
    map: &'a Map<String, Value>,
    about: &[About],
) -> impl Iterator<Item = &'a Value> {
    let reference = map
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|reference| resolve(root, reference));
    APPLICATORS
        .iter()
        .filter(|(_, _, relation)| about.contains(relation))
        .filter_map(|(keyword, shape, _)| map.get(*keyword).map(|value| (value, *shape)))
        .flat_map(|(value, shape)| held(value, shape))
        .map(|(_, schema)| schema)
        .chain(reference)
        .collect::<Vec<_>>()
        .into_iter()
}

/// The sub-schemas in a keyword's value, each with the JSON pointer from the keyword on.
pub(super) fn held(value: &Value, shape: Shape) -> Vec<(String, &Value)> {
    match (shape, value) {
        (Shape::One, _) => vec![(String::new(), value)],
        (Shape::List, Value::Array(items)) => items
            .iter()
            .enumerate()
            .map(|(index, item)| (format!("/{index}"), item))
            .collect(),
        (Shape::Named, Value::Object(named)) => named
            .iter()
            .map(|(name, schema)| (format!("/{}", token(name)), schema))
            .collect(),
        _ => Vec::new(),
    }
}

/// A key as one token of a JSON pointer.
pub fn token(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The schemas that speak about the property `name` of an object that `schemas` speak about.
pub fn property<'a>(root: &'a Value, schemas: &[&'a Value], name: &str) -> Vec<&'a Value> {
    let mut found = Vec::new();
    for map in in_place(root, schemas) {
        let named = map
            .get("properties")
            .and_then(|properties| properties.get(name));
        if let Some(schema) = named {
            found.push(schema);
            continue;
        }
        // Which pattern a name matches only decides how text is read, so each of them is asked.
        if let Some(Value::Object(patterns)) = map.get("patternProperties") {
            found.extend(patterns.values());
        }
        found.extend(
            ["additionalProperties", "unevaluatedProperties"]
                .iter()
                .filter_map(|key| map.get(*key)),
        );
    }
    found.retain(|schema| !matches!(schema, Value::Bool(false)));
    found
}

/// The schemas that speak about the item at `index` of an array that `schemas` speak about.
pub fn item<'a>(root: &'a Value, schemas: &[&'a Value], index: usize) -> Vec<&'a Value> {
    in_place(root, schemas)
        .into_iter()
        .filter_map(|map| {
            map.get("prefixItems")
                .and_then(|items| items.get(index))
                .or_else(|| map.get("items"))
                .or_else(|| map.get("unevaluatedItems"))
        })
        .filter(|schema| !matches!(schema, Value::Bool(false)))
        .collect()
}

/// The schemas that speak about the place to which a JSON pointer into a value leads; none where a value that fits has nothing there.
pub fn at<'a>(root: &'a Value, pointer: &str) -> Vec<&'a Value> {
    pointer
        .split('/')
        .skip(1)
        .fold(vec![root], |schemas, token| {
            let name = token.replace("~1", "/").replace("~0", "~");
            let mut found = property(root, &schemas, &name);
            if let Ok(index) = name.parse() {
                found.extend(item(root, &schemas, index));
            }
            found
        })
}

/// A set of JSON types. Integers count apart from other numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Types(u8);

impl Types {
    pub(super) const NONE: Self = Self(0);
    pub(super) const NULL: Self = Self(1);
    pub(super) const BOOLEAN: Self = Self(2);
    pub(super) const INTEGER: Self = Self(4);
    pub(super) const NUMBER: Self = Self(4 | 8);
    pub(super) const STRING: Self = Self(16);
    pub(super) const ARRAY: Self = Self(32);
    pub(super) const OBJECT: Self = Self(64);
    pub(super) const ALL: Self = Self(127);
    /// What can stand in a path, a query string or a header.
    pub(super) const SCALAR: Self = Self(2 | 4 | 8 | 16);

    pub(super) const fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) const fn within(self, other: Self) -> bool {
        self.0 & !other.0 == 0
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn named(name: &str) -> Self {
        match name {
            "null" => Self::NULL,
            "boolean" => Self::BOOLEAN,
            "integer" => Self::INTEGER,
            "number" => Self::NUMBER,
            "string" => Self::STRING,
            "array" => Self::ARRAY,
            "object" => Self::OBJECT,
            _ => Self::NONE,
        }
    }

    fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(number) if number.is_f64() => Self::NUMBER,
            Value::Number(_) => Self::INTEGER,
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }
}

/// The types that a schema leaves open, as far as its type, value and combining keywords say.
pub(super) fn types(root: &Value, schema: &Value) -> Types {
    types_within(root, schema, 0)
}

fn types_within(root: &Value, schema: &Value, depth: usize) -> Types {
    const MAX_STEPS: usize = 16;
    let map = match schema {
        Value::Bool(false) => return Types::NONE,
        Value::Object(map) if depth < MAX_STEPS => map,
        _ => return Types::ALL,
    };
    let mut types = match map.get("type") {
        Some(Value::String(name)) => Types::named(name),
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .fold(Types::NONE, |types, name| types.or(Types::named(name))),
        _ => Types::ALL,
    };
    if let Some(value) = map.get("const") {
        types = types.and(Types::of_value(value));
    }
    if let Some(Value::Array(values)) = map.get("enum") {
        types = types.and(
            values
                .iter()
                .fold(Types::NONE, |types, value| types.or(Types::of_value(value))),
        );
    }
    let below = |schema: &Value| types_within(root, schema, depth + 1);
    if let Some(target) = map
        .get("$ref")
        .and_then(Value::as_str)
        .and_then(|name| resolve(root, name))
    {
        types = types.and(below(target));
    }
    if let Some(Value::Array(all)) = map.get("allOf") {
        types = all
            .iter()
            .fold(types, |types, schema| types.and(below(schema)));
    }
    for keyword in ["anyOf", "oneOf"] {
        if let Some(Value::Array(any)) = map.get(keyword) {
            types = types.and(
                any.iter()
                    .fold(Types::NONE, |types, schema| types.or(below(schema))),
            );
        }
    }
    types
}

/// The types that any of several schemas about one value leaves open. A schema that says nothing about
/// types says nothing here either.
pub(super) fn types_of_any(root: &Value, schemas: &[&Value]) -> Types {
    let told = schemas
        .iter()
        .map(|schema| types(root, schema))
        .filter(|types| *types != Types::ALL)
        .reduce(Types::or);
    told.unwrap_or(Types::ALL)
}

/// Reads text by the types that a value may have. What is allowed to be text stays text; what cannot be
/// read otherwise stays text as well, so that validation says what was expected.
pub(super) fn read_text(text: String, types: Types) -> Value {
    if types.has(Types::STRING) {
        return Value::String(text);
    }
    if types.has(Types::NUMBER)
        && let Some(number) = crate::json::number(&text)
    {
        return Value::Number(number);
    }
    match text.as_str() {
        "true" if types.has(Types::BOOLEAN) => Value::Bool(true),
        "false" if types.has(Types::BOOLEAN) => Value::Bool(false),
        _ => Value::String(text),
    }
}

/// The text of a scalar, as [`read_text`] reads it back. `None` for null, arrays and objects.
pub(super) fn scalar_text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(flag) => Some(flag.to_string()),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn references_and_combinations_are_followed() {
        let root = json!({
            "$defs": {"a/b": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}},
            "properties": {
                "id": {"$ref": "#/$defs/a~1b"},
                "same": {"$ref": "#/$defs/a%7E1b"},
                "any": {"anyOf": [{"type": "integer"}, {"type": "string"}]},
                "all": {"allOf": [{"type": ["integer", "string"]}, {"type": "number"}]},
                "fixed": {"enum": [1, true]},
                "loop": {"$ref": "#/$defs/loop"},
            }
        });
        let of = |name: &str| types_of_any(&root, &property(&root, &[&root], name));
        assert_eq!(of("id"), Types::INTEGER);
        assert_eq!(of("same"), Types::INTEGER);
        assert_eq!(of("any"), Types::INTEGER.or(Types::STRING));
        assert_eq!(of("all"), Types::INTEGER);
        assert_eq!(of("fixed"), Types::INTEGER.or(Types::BOOLEAN));
        assert_eq!(of("loop"), Types::ALL);
        assert_eq!(of("unknown"), Types::ALL);
        assert!(resolve(&root, "https://example.com/#/$defs/loop").is_none());
    }

    #[test]
    fn text_is_read_by_type_and_only_in_jsons_own_grammar() {
        let read = |text: &str, types| read_text(text.to_owned(), types);
        assert_eq!(read("42", Types::INTEGER), json!(42));
        assert_eq!(read("42", Types::STRING), json!("42"));
        assert_eq!(read("42", Types::ALL), json!("42"));
        assert_eq!(read("true", Types::BOOLEAN), json!(true));
        assert_eq!(read("1.5", Types::NUMBER), json!(1.5));
        for text in [
            "042",
            "+1",
            "1_0",
            "0x1",
            "1 ",
            "-0",
            "9007199254740993",
            "1e999",
            "",
            "True",
            "true",
        ] {
            assert_eq!(read(text, Types::NUMBER), json!(text));
        }
        for text in ["True", "1", "yes", ""] {
            assert_eq!(read(text, Types::BOOLEAN), json!(text));
        }
    }

    #[test]
    fn properties_and_items_are_found_through_combinations() {
        let root = json!({
            "$defs": {"base": {"properties": {"x": {"type": "integer"}}}},
            "allOf": [{"$ref": "#/$defs/base"}],
            "properties": {"list": {"prefixItems": [{"type": "string"}], "items": {"type": "boolean"}}},
            "additionalProperties": {"type": "number"},
        });
        assert_eq!(property(&root, &[&root], "x").len(), 2);
        let list = property(&root, &[&root], "list");
        assert_eq!(item(&root, &list, 0), [&json!({"type": "string"})]);
        assert_eq!(item(&root, &list, 3), [&json!({"type": "boolean"})]);
    }
}
