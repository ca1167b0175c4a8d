//! The fields that every tool has: its name, what it is, and where it belongs.

use std::collections::{BTreeMap, BTreeSet};

use http::Method;

use super::{
    reader::{Reader, Spot},
    source::Node,
};
use crate::{call::Consequence, diagnostics::Finding};

/// The fields that every tool has, as far as they are right.
pub(super) struct Heading {
    pub(super) name: Option<Spot<String>>,
    pub(super) description: Option<Spot<String>>,
    pub(super) api: Option<Spot<String>>,
    pub(super) method: Option<Spot<Method>>,
    pub(super) path: Option<Spot<String>>,
    pub(super) scope: Option<Spot<String>>,
    pub(super) consequence: Option<Consequence>,
}

/// Reads and checks the heading. `apis` are the known ones; `names` are those taken, with their places.
pub(super) fn read(
    reader: &mut Reader<'_>,
    node: &Node,
    apis: &BTreeSet<String>,
    names: &mut BTreeMap<String, String>,
) -> Heading {
    let name = reader.required_text(node, "name", &node.at);
    let at = name.as_ref().map_or(&node.at, |name| &name.at).clone();
    let heading = Heading {
        description: reader.required_text(node, "description", &at),
        api: reader.required_text(node, "api", &at),
        method: reader
            .required_text(node, "method", &at)
            .and_then(|text| method(reader, &text)),
        path: reader.required_text(node, "path", &at),
        scope: reader.required_text(node, "scope", &at),
        consequence: reader
            .required_text(node, "consequence", &at)
            .and_then(|text| {
                let choices =
                    Consequence::ALL.map(|consequence| (consequence.as_str(), consequence));
                reader.choice(&text, "consequence", &choices)
            }),
        name,
    };
    if let Some(api) = &heading.api
        && !apis.contains(&api.value)
    {
        let known: Vec<_> = apis.iter().map(String::as_str).collect();
        reader.error_with_help(
            &api.at,
            format!("there is no API `{}` in the configuration", api.value),
            format!("known are: {}", known.join(", ")),
        );
    }
    if let Some(scope) = &heading.scope {
        check_scope(reader, scope);
    }
    if let Some(name) = &heading.name {
        check_name(reader, name, heading.api.as_ref(), names);
    }
    if let (Some(Consequence::Read), Some(method)) = (heading.consequence, &heading.method)
        && !matches!(method.value, Method::GET | Method::HEAD)
    {
        let text = format!(
            "a {} is called a `read`: make sure that it changes nothing",
            method.value
        );
        reader
            .findings
            .push(Finding::note(reader.file, method.at.clone(), text));
    }
    heading
}

fn check_name(
    reader: &mut Reader<'_>,
    name: &Spot<String>,
    api: Option<&Spot<String>>,
    names: &mut BTreeMap<String, String>,
) {
    let segments: Vec<&str> = name.value.split('.').collect();
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
    let well_formed = segments.len() >= 2
        && name.value.len() <= 128
        && segments
            .iter()
            .all(|segment| !segment.is_empty() && segment.bytes().all(plain));
    if !well_formed {
        reader.error_with_help(
            &name.at,
            format!("`{}` is not the name of a tool", name.value),
            "at least two parts joined by dots, each of a-z, 0-9, `_` and `-`, at most 128 characters: api.thing.verb",
        );
    } else if let Some(api) = api
        && segments.first() != Some(&api.value.as_str())
    {
        reader.error(
            &name.at,
            format!("the name must start with the tool's API: `{}.…`", api.value),
        );
    }
    let place = reader.place(&name.at);
    if let Some(first) = names.get(&name.value) {
        reader.error(
            &name.at,
            format!("the name `{}` is taken by the tool at {first}", name.value),
        );
    } else {
        names.insert(name.value.clone(), place);
    }
}

fn method(reader: &mut Reader<'_>, text: &Spot<String>) -> Option<Spot<Method>> {
    let choices = [
        ("GET", &Method::GET),
        ("HEAD", &Method::HEAD),
        ("POST", &Method::POST),
        ("PUT", &Method::PUT),
        ("PATCH", &Method::PATCH),
        ("DELETE", &Method::DELETE),
    ];
    reader.choice(text, "method", &choices).map(|method| Spot {
        value: method.clone(),
        at: text.at.clone(),
    })
}

fn check_scope(reader: &mut Reader<'_>, scope: &Spot<String>) {
    let plain = |part: &str| {
        let byte =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.".contains(&byte);
        !part.is_empty() && part.bytes().all(byte)
    };
    let well_formed = scope
        .value
        .split_once(':')
        .is_some_and(|(thing, right)| plain(thing) && plain(right));
    if !well_formed || scope.value.len() > 128 {
        reader.error_with_help(
            &scope.at,
            format!("`{}` is not a scope", scope.value),
            "what it is about and the right to it, such as desk.refunds:write, in a-z, 0-9, `_`, `-` and `.`",
        );
    }
}
