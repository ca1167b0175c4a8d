//! What the schema compiler finds out about a tool's arguments: the plan by which a JSON value becomes a
//! Cedar value, and the notes on what Cedar has no type for. The Cedar schema and the values in a call's
//! context are both made from the plan, so that they cannot disagree.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A part of a tool's arguments that policies cannot read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    /// The tool's name.
    pub tool: String,
    /// JSON Pointer into the tool's input schema.
    pub pointer: String,
    /// Why it cannot be read, as the end of a sentence that starts with the place.
    pub why: String,
}

/// How a JSON value becomes a Cedar value of one type.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Plan {
    Text,
    Long,
    Bool,
    Decimal,
    Set(Box<Plan>),
    Record(RecordPlan),
}

/// How a JSON object becomes a Cedar record.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct RecordPlan {
    pub(super) fields: BTreeMap<String, Field>,
    /// How many of `fields` the schema demands.
    pub(super) required: usize,
    /// False when the contract accepts properties beyond `fields`, which policies then do not see.
    pub(super) closed: bool,
}

/// One property of an object.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Field {
    /// `None` for a property that Cedar has no type for.
    pub(super) plan: Option<Plan>,
    /// Whether the schema demands it.
    pub(super) required: bool,
    /// Whether `null` is allowed; it counts as absent.
    pub(super) nullable: bool,
}

impl Plan {
    /// The type in Cedar's JSON schema format.
    pub(super) fn cedar_type(&self) -> Value {
        match self {
            Self::Text => json!({"type": "String"}),
            Self::Long => json!({"type": "Long"}),
            Self::Bool => json!({"type": "Boolean"}),
            Self::Decimal => json!({"type": "Extension", "name": "decimal"}),
            Self::Set(element) => json!({"type": "Set", "element": element.cedar_type()}),
            Self::Record(record) => record.cedar_type(),
        }
    }
}

impl RecordPlan {
    /// The record type in Cedar's JSON schema format.
    pub(super) fn cedar_type(&self) -> Value {
        let mut attributes = Map::new();
        for (name, field) in &self.fields {
            let Some(plan) = &field.plan else { continue };
            let mut attribute = plan.cedar_type();
            if let Value::Object(attribute) = &mut attribute {
                let required = field.required && !field.nullable;
                attribute.insert("required".to_owned(), Value::Bool(required));
            }
            attributes.insert(name.clone(), attribute);
        }
        json!({"type": "Record", "attributes": attributes})
    }
}
