//! What a contract says about the traces of a call: the reads that fetch the state before, and that show approvers what it will
//! touch, the parts of the answer that tell what was changed, the money that people read of, and what agents get of sensitive values in it.

use std::{collections::BTreeMap, ops::Range};

use serde::Serialize;
use serde_json::Value;

use super::{
    Amount, Contract, amount,
    reader::{Reader, Spot},
    schema,
    source::{Node, Yaml},
};
use crate::call::{ByClass, ClassRule};

/// The most pointers in `changed`, and in `compare`.
const MAX_POINTERS: usize = 32;

/// A read that the gateway makes for another call, as a call of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// The tool that reads; its consequence is `read`.
    pub tool: String,
    /// Its arguments, each a JSON pointer (RFC 6901) into the arguments of the call.
    pub arguments: BTreeMap<String, String>,
}

/// A read that is made just before the call itself is sent, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Before {
    /// The read.
    #[serde(flatten)]
    pub reading: Reading,
    /// What happens to the call when the read brings no answer.
    pub on_failure: OnFailure,
}

/// A read that shows those who approve a call what it will touch. It is made when the call is parked, and once more before it is
/// sent, which it is only if both agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Preview {
    /// The read.
    #[serde(flatten)]
    pub reading: Reading,
    /// JSON pointers into its answer, to what must not have changed; none for all of it.
    pub compare: Vec<String>,
}

/// What happens to a call whose state before could not be read. An answer of any status counts as read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OnFailure {
    /// It is not sent.
    #[default]
    Refuse,
    /// It is sent, and the record says that the state before is not known.
    Proceed,
}

/// The fields together.
#[derive(Debug, Clone, Default)]
pub(super) struct Effects {
    pub before: Option<Before>,
    pub preview: Option<Preview>,
    pub changed: Vec<String>,
    pub amount: Option<Amount>,
    pub answers: BTreeMap<String, ClassRule>,
}

/// A read whose tool must be looked at once every file is read.
pub(super) struct Unchecked {
    pub file: usize,
    /// Where `before` or `preview` stands.
    pub at: Range<usize>,
    pub field: &'static str,
    pub reading: Reading,
    /// What of its answer is compared, for a preview.
    pub compare: Option<Vec<String>>,
}

impl Reading {
    /// The arguments of the read. What the call does not have, the read does not get.
    pub fn arguments_from(&self, call: &Value) -> Value {
        self.arguments
            .iter()
            .filter_map(|(name, pointer)| Some((name.clone(), call.pointer(pointer)?.clone())))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

impl Effects {
    /// What must be looked at once every file is read.
    pub fn unchecked(&self, file: usize, tool: &Node) -> Vec<Unchecked> {
        let at = |field: &str| tool.get(field).map(|(key, _)| key.at.clone());
        let before = self.before.as_ref().map(|before| (&before.reading, None));
        let preview = self.preview.as_ref();
        let preview = preview.map(|preview| (&preview.reading, Some(preview.compare.clone())));
        [("before", before), ("preview", preview)]
            .into_iter()
            .filter_map(|(field, what)| {
                let (reading, compare) = what?;
                Some(Unchecked {
                    file,
                    at: at(field)?,
                    field,
                    reading: reading.clone(),
                    compare,
                })
            })
            .collect()
    }
}

impl Unchecked {
    /// Why the tool that it names cannot be the one that reads, if so.
    pub fn problem(&self, reading: Option<&Contract>) -> Option<String> {
        let tool = &self.reading.tool;
        let Some(reading) = reading else {
            return Some(format!("there is no tool `{tool}`"));
        };
        if reading.consequence != crate::call::Consequence::Read {
            return Some(format!(
                "`{tool}` has the consequence {}: only a read can come before",
                reading.consequence
            ));
        }
        if reading.before.is_some() || reading.preview.is_some() || reading.stream {
            return Some(format!(
                "`{tool}` streams, or has a `before` or a `preview` of its own"
            ));
        }
        let given = &self.reading.arguments;
        let properties = reading.input.get("properties").and_then(Value::as_object);
        let unknown = given
            .keys()
            .find(|name| !properties.is_some_and(|known| known.contains_key(*name)));
        if let Some(name) = unknown {
            return Some(format!("`{tool}` takes no argument `{name}`"));
        }
        let required = reading.input.get("required").and_then(Value::as_array);
        let mut required = required.into_iter().flatten().filter_map(Value::as_str);
        if let Some(missing) = required.find(|name| !given.contains_key(*name)) {
            return Some(format!("`{tool}` needs the argument `{missing}`"));
        }
        let compare = self.compare.as_ref()?;
        let Some(output) = &reading.output else {
            return Some(format!(
                "`{tool}` has no `output`, so nobody can say what in its answer is sensitive"
            ));
        };
        compare
            .iter()
            .find(|pointer| schema::at(output, pointer).is_empty())
            .map(|pointer| format!("`{pointer}` leads to nothing in the output schema of `{tool}`"))
    }
}

pub(super) fn read(reader: &mut Reader<'_>, tool: &Node, input: Option<&Value>) -> Effects {
    Effects {
        before: tool
            .get("before")
            .and_then(|(_, node)| before(reader, node)),
        preview: tool
            .get("preview")
            .and_then(|(_, node)| preview(reader, node, input)),
        changed: pointers(reader, tool, "changed"),
        amount: amount::read(reader, tool, input),
        answers: tool
            .get("answers")
            .map(|(_, node)| answers(reader, node))
            .unwrap_or_default(),
    }
}

fn answers(reader: &mut Reader<'_>, node: &Node) -> BTreeMap<String, ClassRule> {
    let mut found = BTreeMap::new();
    if !reader.mapping(node, "`answers`", &ByClass::CLASSES) {
        return found;
    }
    let choices = [
        ("pass", ClassRule::Pass),
        ("mask", ClassRule::Mask),
        ("drop", ClassRule::Drop),
        ("token", ClassRule::Token),
    ];
    for (class, value) in node.entries() {
        if let Some(text) = reader.text(value, "a rule of `answers`")
            && let Some(rule) = reader.choice(&text, "rule for answers", &choices)
        {
            found.insert(class.name.clone(), rule);
        }
    }
    found
}

fn before(reader: &mut Reader<'_>, node: &Node) -> Option<Before> {
    if !reader.mapping(node, "`before`", &["tool", "arguments", "on_failure"]) {
        return None;
    }
    let on_failure = node
        .get("on_failure")
        .and_then(|(_, value)| reader.text(value, "`on_failure`"))
        .and_then(|text| {
            let choices = [
                ("refuse", OnFailure::Refuse),
                ("proceed", OnFailure::Proceed),
            ];
            reader.choice(&text, "way to go on without the state before", &choices)
        });
    Some(Before {
        reading: reading(reader, node, "an argument of `before`", None)?,
        on_failure: on_failure.unwrap_or_default(),
    })
}

fn preview(reader: &mut Reader<'_>, node: &Node, input: Option<&Value>) -> Option<Preview> {
    if !reader.mapping(node, "`preview`", &["tool", "arguments", "compare"]) {
        return None;
    }
    Some(Preview {
        compare: pointers(reader, node, "compare"),
        reading: reading(reader, node, "an argument of `preview`", input)?,
    })
}

/// `tool` and `arguments`. Where the call's input schema is given, the pointers must lead somewhere in it.
fn reading(
    reader: &mut Reader<'_>,
    node: &Node,
    what: &str,
    input: Option<&Value>,
) -> Option<Reading> {
    let tool = reader.required_text(node, "tool", &node.at)?.value;
    let mut arguments = BTreeMap::new();
    if let Some((_, from)) = node.get("arguments") {
        if !matches!(from.value, Yaml::Map(_)) {
            reader.error(
                &from.at,
                format!("`arguments` must be a mapping, and is {}", from.kind()),
            );
        }
        for (name, value) in from.entries() {
            let Some(text) = reader.text(value, what) else {
                continue;
            };
            if !pointer(reader, &text) {
                continue;
            }
            if input.is_some_and(|input| schema::at(input, &text.value).is_empty()) {
                reader.error(
                    &text.at,
                    format!("`{}` leads to nothing in the input schema", text.value),
                );
            }
            arguments.insert(name.name.clone(), text.value);
        }
    }
    Some(Reading { tool, arguments })
}

/// A list of JSON pointers into an answer.
fn pointers(reader: &mut Reader<'_>, node: &Node, field: &str) -> Vec<String> {
    let pointers = reader.texts(node, field);
    if let Some(first_too_many) = pointers.get(MAX_POINTERS) {
        reader.error(
            &first_too_many.at,
            format!("`{field}` names more than {MAX_POINTERS} parts of the answer"),
        );
    }
    pointers
        .into_iter()
        .filter(|text| pointer(reader, text))
        .map(|text| text.value)
        .collect()
}

/// RFC 6901: empty, or a slash before each token, in which `~` stands only before 0 and 1.
pub(super) fn pointer(reader: &mut Reader<'_>, text: &Spot<String>) -> bool {
    let escapes = text
        .value
        .split('~')
        .skip(1)
        .all(|rest| rest.starts_with(['0', '1']));
    let fits = text.value.starts_with('/') && escapes;
    if !fits {
        reader.error_with_help(
            &text.at,
            format!("`{}` is no JSON pointer", text.value),
            "write a slash before each name, such as /customer/id",
        );
    }
    fits
}
