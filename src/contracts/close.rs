//! Closing a schema: an object that a contract describes has the properties it describes and no others.
//!
//! JSON Schema leaves objects open, so a property that the contract's author never thought of would be
//! forwarded unchecked. Here the default is turned around; `additionalProperties` says otherwise.

use serde_json::{Map, Value};

use super::schema::{self, APPLICATORS, About, Shape};

/// Keywords by which a schema speaks about an object's properties.
const OBJECT_KEYWORDS: [&str; 8] = [
    "properties",
    "required",
    "patternProperties",
    "propertyNames",
    "minProperties",
    "maxProperties",
    "dependentRequired",
    "dependentSchemas",
];

/// Keywords that apply further schemas to the same value.
const IN_PLACE: [&str; 9] = [
    "allOf",
    "anyOf",
    "oneOf",
    "if",
    "then",
    "else",
    "dependentSchemas",
    "$ref",
    "$dynamicRef",
];

/// Closes every object that an input schema describes and does not open itself.
///
/// Each place where a new value is described is closed on its own. What combining keywords (`allOf`,
/// `then`, …) and `$defs` hold describes the value of the place that uses them and is covered by that
/// place, so it is not closed itself, only the places inside of it. What stands in `if`, `not`,
/// `contains` and `propertyNames` asks questions: closing it would change the answers.
pub(super) fn close(schema: &mut Value) {
    let root = schema.clone();
    walk(schema, &root, &root, Place::New);
}

/// What a schema stands for on the way down.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// The first description of a value.
    New,
    /// One more description of a value that is described, and closed, by the schema given.
    Covered(&'a Value),
    /// A definition, closed wherever it is used.
    Defined,
}

fn walk(schema: &mut Value, original: &Value, root: &Value, place: Place<'_>) {
    let closing = match place {
        Place::New => closing_keyword(original, root),
        Place::Covered(_) | Place::Defined => None,
    };
    let (Some(map), Some(before)) = (schema.as_object_mut(), original.as_object()) else {
        return;
    };
    let cover = match place {
        Place::New => Some(original),
        Place::Covered(cover) => Some(cover),
        Place::Defined => None,
    };
    for (keyword, shape, about) in APPLICATORS {
        let (Some(value), Some(before)) = (map.get_mut(*keyword), before.get(*keyword)) else {
            continue;
        };
        match about {
            About::AskedSame | About::AskedInside => {}
            About::Defined => each(value, before, *shape, |_, schema, before| {
                walk(schema, before, root, Place::Defined);
            }),
            About::Same => each(value, before, *shape, |_, schema, before| {
                walk(
                    schema,
                    before,
                    root,
                    cover.map_or(Place::Defined, Place::Covered),
                );
            }),
            About::Inside => each(value, before, *shape, |name, schema, before| {
                let covered = match place {
                    Place::Covered(cover) if *keyword == "properties" => {
                        described_by(cover, name, root)
                    }
                    _ => None,
                };
                walk(
                    schema,
                    before,
                    root,
                    covered.map_or(Place::New, Place::Covered),
                );
            }),
        }
    }
    if let Some(keyword) = closing {
        map.insert(keyword.to_owned(), Value::Bool(false));
    }
}

/// The covering schema's own description of a property, if that gets closed or is open on purpose.
fn described_by<'a>(cover: &'a Value, name: &str, root: &Value) -> Option<&'a Value> {
    let schema = cover.get("properties")?.get(name)?;
    describes_object(schema, root).then_some(schema)
}

fn each(
    value: &mut Value,
    before: &Value,
    shape: Shape,
    mut visit: impl FnMut(&str, &mut Value, &Value),
) {
    match (shape, value) {
        (Shape::One, schema) => visit("", schema, before),
        (Shape::List, Value::Array(schemas)) => {
            for (index, schema) in schemas.iter_mut().enumerate() {
                if let Some(before) = before.get(index) {
                    visit("", schema, before);
                }
            }
        }
        (Shape::Named, Value::Object(schemas)) => {
            for (name, schema) in schemas.iter_mut() {
                if let Some(before) = before.get(name) {
                    visit(name, schema, before);
                }
            }
        }
        _ => {}
    }
}

fn closing_keyword(schema: &Value, root: &Value) -> Option<&'static str> {
    let map = schema.as_object()?;
    let opened =
        map.contains_key("additionalProperties") || map.contains_key("unevaluatedProperties");
    if opened || !describes_object(schema, root) {
        return None;
    }
    // Only `unevaluatedProperties` sees what the combining keywords describe.
    if IN_PLACE.iter().any(|keyword| map.contains_key(*keyword)) {
        Some("unevaluatedProperties")
    } else {
        Some("additionalProperties")
    }
}

fn describes_object(schema: &Value, root: &Value) -> bool {
    schema::in_place(root, &[schema])
        .into_iter()
        .any(says_object)
}

fn says_object(map: &Map<String, Value>) -> bool {
    let typed = match map.get("type") {
        Some(Value::String(name)) => name == "object",
        Some(Value::Array(names)) => names.iter().any(|name| name == "object"),
        _ => false,
    };
    typed
        || OBJECT_KEYWORDS
            .iter()
            .any(|keyword| map.contains_key(*keyword))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn closed(mut schema: Value) -> Value {
        close(&mut schema);
        schema
    }

    #[test]
    fn every_described_object_is_closed() {
        assert_eq!(
            closed(json!({
                "type": "object",
                "properties": {
                    "a": {"type": ["object", "null"]},
                    "b": {"type": "array", "items": {"properties": {}}, "prefixItems": [{"required": ["x"]}]},
                    "c": {"type": "object", "additionalProperties": {"type": "object"}},
                    "d": {"type": "object", "additionalProperties": true},
                    "e": {"type": "object", "patternProperties": {"^x": {"minProperties": 1}}},
                    "f": {"type": "string"},
                    "g": true,
                },
            })),
            json!({
                "type": "object",
                "properties": {
                    "a": {"type": ["object", "null"], "additionalProperties": false},
                    "b": {
                        "type": "array",
                        "items": {"properties": {}, "additionalProperties": false},
                        "prefixItems": [{"required": ["x"], "additionalProperties": false}],
                    },
                    "c": {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": false}},
                    "d": {"type": "object", "additionalProperties": true},
                    "e": {
                        "type": "object",
                        "patternProperties": {"^x": {"minProperties": 1, "additionalProperties": false}},
                        "additionalProperties": false,
                    },
                    "f": {"type": "string"},
                    "g": true,
                },
                "additionalProperties": false,
            })
        );
    }

    #[test]
    fn combined_schemas_are_closed_where_they_are_used() {
        assert_eq!(
            closed(json!({
                "$defs": {"base": {"type": "object", "properties": {"in": {"type": "object"}}}},
                "type": "object",
                "allOf": [{"$ref": "#/$defs/base"}, {"properties": {"x": {"properties": {}}}}],
                "properties": {"deep": {"$ref": "#/$defs/base"}},
            })),
            json!({
                "$defs": {"base": {
                    "type": "object",
                    "properties": {"in": {"type": "object", "additionalProperties": false}},
                }},
                "type": "object",
                "allOf": [
                    {"$ref": "#/$defs/base"},
                    {"properties": {"x": {"properties": {}, "additionalProperties": false}}},
                ],
                "properties": {"deep": {"$ref": "#/$defs/base", "unevaluatedProperties": false}},
                "unevaluatedProperties": false,
            })
        );
    }

    #[test]
    fn a_condition_on_a_closed_object_is_neither_closed_nor_changed() {
        let closed = closed(json!({
            "properties": {"a": {"type": "object", "properties": {"k": true, "z": true}}},
            "if": {"properties": {"a": {"required": ["k"]}}},
            "then": {"properties": {"a": {"required": ["z"]}, "b": {"type": "object"}}},
            "not": {"properties": {"a": {"properties": {"bad": true}}}},
        }));
        assert_eq!(
            closed["if"],
            json!({"properties": {"a": {"required": ["k"]}}})
        );
        assert_eq!(
            closed["not"],
            json!({"properties": {"a": {"properties": {"bad": true}}}})
        );
        assert_eq!(
            closed["then"]["properties"]["a"],
            json!({"required": ["z"]})
        );
        assert_eq!(
            closed["then"]["properties"]["b"]["additionalProperties"],
            json!(false)
        );
        assert_eq!(
            closed["properties"]["a"]["additionalProperties"],
            json!(false)
        );
    }
}
