//! What of an answer the output contract names. The rest is neither passed on nor recorded: nobody has said what it is.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// The names in one output schema, prepared at load.
#[derive(Debug, Clone, Default)]
pub struct Cut {
    /// The schema itself, and every place that a reference leads to.
    places: Vec<Named>,
}

/// One place of the schema.
#[derive(Debug, Clone, Default)]
struct Named {
    /// The properties that are named here, if any are.
    names: Option<HashMap<String, Named>>,
    /// The schema says itself what becomes of the others.
    open: bool,
    /// What holds for them.
    rest: Vec<Named>,
    /// What holds for items of an array.
    items: Vec<Named>,
    /// What holds here as well: branches of combinators.
    also: Vec<Named>,
    /// And what references lead to, as numbers of [`Cut::places`].
    references: Vec<usize>,
}

impl Cut {
    /// Reads the names of a JSON Schema. A reference that leads nowhere names nothing.
    pub fn of(schema: &Value) -> Self {
        let mut reading = Reading {
            root: schema,
            numbers: HashMap::from([(String::new(), 0)]),
            waiting: vec![schema],
        };
        let mut places = Vec::new();
        // Each place once, so that a schema that leads back to itself ends.
        while let Some(place) = reading.waiting.get(places.len()).copied() {
            places.push(reading.named(place));
        }
        Self { places }
    }

    /// Takes out of objects what the schema does not name. An object whose schema names no property at all, or says what other
    /// properties are, is left whole. True if anything was taken out.
    pub fn apply(&self, value: &mut Value) -> bool {
        self.cut(self.places.first().into_iter().collect(), value)
    }

    fn cut(&self, here: Vec<&Named>, value: &mut Value) -> bool {
        let here = self.all(here);
        let mut cut = false;
        match value {
            Value::Object(object) => {
                let named = |name: &str| {
                    here.iter()
                        .any(|place| place.names.as_ref().is_some_and(|n| n.contains_key(name)))
                };
                let naming = here.iter().any(|place| place.names.is_some());
                if naming && !here.iter().any(|place| place.open) {
                    let before = object.len();
                    object.retain(|name, _| named(name));
                    cut = object.len() < before;
                }
                for (name, child) in object.iter_mut() {
                    let mut below: Vec<&Named> = here
                        .iter()
                        .filter_map(|place| place.names.as_ref()?.get(name))
                        .collect();
                    if below.is_empty() {
                        below.extend(here.iter().flat_map(|place| &place.rest));
                    }
                    if !below.is_empty() {
                        cut |= self.cut(below, child);
                    }
                }
            }
            Value::Array(items) => {
                let below: Vec<&Named> = here.iter().flat_map(|place| &place.items).collect();
                if !below.is_empty() {
                    for item in items {
                        cut |= self.cut(below.clone(), item);
                    }
                }
            }
            _ => {}
        }
        cut
    }

    /// With everything that holds in the same place.
    fn all<'a>(&'a self, mut here: Vec<&'a Named>) -> Vec<&'a Named> {
        let mut followed = Vec::new();
        let mut at = 0;
        while let Some(place) = here.get(at).copied() {
            here.extend(&place.also);
            for number in &place.references {
                if !followed.contains(number) {
                    followed.push(*number);
                    here.extend(self.places.get(*number));
                }
            }
            at += 1;
        }
        here
    }
}

struct Reading<'a> {
    root: &'a Value,
    /// Numbers of the places by the pointer that leads there.
    numbers: HashMap<String, usize>,
    waiting: Vec<&'a Value>,
}

impl<'a> Reading<'a> {
    fn named(&mut self, schema: &'a Value) -> Named {
        let Some(object) = schema.as_object() else {
            return Named::default();
        };
        let mut found = Named::default();
        if let Some(Value::Object(properties)) = object.get("properties") {
            found.names = Some(
                properties
                    .iter()
                    .map(|(name, child)| (name.clone(), self.named(child)))
                    .collect(),
            );
        }
        for keyword in ["additionalProperties", "unevaluatedProperties"] {
            match object.get(keyword) {
                None | Some(Value::Bool(false)) => {}
                Some(child) => {
                    found.open = true;
                    found.rest.push(self.named(child));
                }
            }
        }
        for child in members(object, "patternProperties") {
            found.open = true;
            found.rest.push(self.named(child));
        }
        for keyword in ["items", "contains", "unevaluatedItems"] {
            found
                .items
                .extend(object.get(keyword).map(|child| self.named(child)));
        }
        for child in list(object, "prefixItems") {
            found.items.push(self.named(child));
        }
        for child in ["allOf", "anyOf", "oneOf"]
            .iter()
            .flat_map(|keyword| list(object, keyword))
            .chain(members(object, "dependentSchemas"))
            .chain(
                ["if", "then", "else"]
                    .iter()
                    .filter_map(|keyword| object.get(*keyword)),
            )
        {
            found.also.push(self.named(child));
        }
        let reference = object.get("$ref").and_then(Value::as_str);
        if let Some(pointer) = reference.and_then(|reference| reference.strip_prefix('#'))
            && let Some(target) = self.root.pointer(pointer)
        {
            let next = self.waiting.len();
            let number = *self.numbers.entry(pointer.to_owned()).or_insert(next);
            if number == next {
                self.waiting.push(target);
            }
            found.references.push(number);
        }
        found
    }
}

fn members<'a>(object: &'a Map<String, Value>, keyword: &str) -> impl Iterator<Item = &'a Value> {
    object
        .get(keyword)
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::values)
}

fn list<'a>(object: &'a Map<String, Value>, keyword: &str) -> impl Iterator<Item = &'a Value> {
    object
        .get(keyword)
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_the_contract_does_not_name_is_taken_out() {
        let schema = json!({
            "$defs": {"person": {"properties": {"id": {}, "team": {"properties": {"name": {}}}}}},
            "type": "object",
            "properties": {
                "owner": {"$ref": "#/$defs/person"},
                "people": {"items": {"allOf": [{"$ref": "#/$defs/person"}, {"properties": {"role": {}}}]}},
                "free": {"type": "object"},
                "open": {"properties": {"a": {}}, "additionalProperties": {"properties": {"b": {}}}},
                "either": {"oneOf": [{"properties": {"x": {}}}, {"properties": {"y": {}}}]}
            }
        });
        let mut value = json!({
            "owner": {"id": 1, "planted": 1, "team": {"name": "n", "planted": 1}},
            "people": [{"id": 1, "role": "r", "planted": 1}],
            "free": {"anything": 1},
            "open": {"a": 1, "other": {"b": 1, "planted": 1}},
            "either": {"x": 1, "y": 1, "planted": 1},
            "planted": 1
        });
        assert!(Cut::of(&schema).apply(&mut value));
        assert_eq!(
            value,
            json!({
                "owner": {"id": 1, "team": {"name": "n"}},
                "people": [{"id": 1, "role": "r"}],
                "free": {"anything": 1},
                "open": {"a": 1, "other": {"b": 1}},
                "either": {"x": 1, "y": 1}
            })
        );
        assert!(!Cut::of(&schema).apply(&mut value));
    }

    #[test]
    fn a_schema_that_goes_round_ends() {
        let schema =
            json!({"properties": {"next": {"$ref": "#"}, "other": {"$ref": "#/properties/other"}}});
        let mut value = json!({"next": {"next": {"planted": 1}}});
        assert!(Cut::of(&schema).apply(&mut value));
        assert_eq!(value, json!({"next": {"next": {}}}));
    }
}
