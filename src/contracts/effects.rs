//! What a contract says about the traces of a call: the read that fetches the state before, the parts of the answer that tell
//! what was changed, the money that people read of, and what agents get of sensitive values in it.

use std::{collections::BTreeMap, ops::Range};

use serde::Serialize;
use serde_json::Value;

use super::{
    Amount, Contract, amount,
    reader::{Reader, Spot},
    source::{Node, Yaml},
};
use crate::call::{ByClass, ClassRule};

/// The most pointers in `changed`.
const MAX_CHANGED: usize = 32;

/// A read that is made, as a call of its own, just before the call itself is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Before {
    /// The tool that reads; its consequence is `read`.
    pub tool: String,
    /// Its arguments, each a JSON pointer (RFC 6901) into the arguments of the call.
    pub arguments: BTreeMap<String, String>,
    /// What happens to the call when the read brings no answer.
    pub on_failure: OnFailure,
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
    pub changed: Vec<String>,
    pub amount: Option<Amount>,
    pub answers: BTreeMap<String, ClassRule>,
}

/// A before read whose tool must be looked at once every file is read.
pub(super) struct Unchecked {
    pub file: usize,
    pub at: Range<usize>,
    pub before: Before,
}

impl Before {
    /// The arguments of the read. What the call does not have, the read does not get.
    pub fn arguments_from(&self, call: &Value) -> Value {
        self.arguments
            .iter()
            .filter_map(|(name, pointer)| Some((name.clone(), call.pointer(pointer)?.clone())))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }

    /// Why the tool that it names cannot be the one that reads, if so.
    pub(super) fn problem(&self, reading: Option<&Contract>) -> Option<String> {
        let Some(reading) = reading else {
            return Some(format!("there is no tool `{}`", self.tool));
        };
        if reading.consequence != crate::call::Consequence::Read {
            return Some(format!(
                "`{}` has the consequence {}: only a read can come before",
                self.tool, reading.consequence
            ));
        }
        if reading.before.is_some() || reading.stream {
            return Some(format!(
                "`{}` streams or has a `before` of its own",
                self.tool
            ));
        }
        let properties = reading.input.get("properties").and_then(Value::as_object);
        self.arguments
            .keys()
            .find(|name| !properties.is_some_and(|known| known.contains_key(*name)))
            .map(|name| format!("`{}` takes no argument `{name}`", self.tool))
    }
}

pub(super) fn read(reader: &mut Reader<'_>, tool: &Node, input: Option<&Value>) -> Effects {
    Effects {
        before: tool
            .get("before")
            .and_then(|(_, node)| before(reader, node)),
        changed: changed(reader, tool),
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
            if let Some(text) = reader.text(value, "an argument of `before`")
                && pointer(reader, &text)
            {
                arguments.insert(name.name.clone(), text.value);
            }
        }
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
        tool,
        arguments,
        on_failure: on_failure.unwrap_or_default(),
    })
}

fn changed(reader: &mut Reader<'_>, tool: &Node) -> Vec<String> {
    let pointers = reader.texts(tool, "changed");
    if let Some(first_too_many) = pointers.get(MAX_CHANGED) {
        reader.error(
            &first_too_many.at,
            format!("`changed` names more than {MAX_CHANGED} parts of the answer"),
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
