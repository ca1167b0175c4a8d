//! The `body` field of a tool, as the file describes it.

use std::ops::Range;

use super::{
    binding::BodyFormat,
    reader::{Reader, Spot},
    source::Node,
};

/// The body as the file describes it.
pub(super) struct Described {
    pub(super) at: Range<usize>,
    pub(super) formats: Vec<Spot<&'static str>>,
    pub(super) argument: Option<Spot<String>>,
    pub(super) media_types: Vec<Spot<String>>,
}

/// Reads and checks the field.
pub(super) fn read(reader: &mut Reader<'_>, node: &Node) -> Option<Described> {
    let before = reader.findings.len();
    if !reader.mapping(node, "`body`", &["formats", "argument", "media_types"]) {
        return None;
    }
    let names = reader.texts(node, "formats");
    let formats: Vec<Spot<&'static str>> = names
        .iter()
        .filter_map(|name| {
            let choices = ["json", "form", "opaque"].map(|choice| (choice, choice));
            let value = reader.choice(name, "body format", &choices)?;
            Some(Spot {
                value,
                at: name.at.clone(),
            })
        })
        .collect();
    let argument = match node.get("argument") {
        Some((_, value)) => reader.text(value, "`argument`"),
        None => None,
    };
    let media_types = reader.texts(node, "media_types");
    let described = Described {
        at: node.at.clone(),
        formats,
        argument,
        media_types,
    };
    check(reader, &described);
    (!reader.failed_since(before)).then_some(described)
}

fn check(reader: &mut Reader<'_>, described: &Described) {
    let at = &described.at;
    if described.formats.is_empty() {
        reader.error(at, "`body` needs `formats`: json, form or opaque");
    }
    let opaque = described
        .formats
        .iter()
        .find(|format| format.value == "opaque");
    if let Some(opaque) = opaque {
        if described.formats.len() > 1 {
            reader.error(
                &opaque.at,
                "`opaque` stands alone: its body is bytes, not fields",
            );
        }
        if described.argument.is_none() {
            reader.error(
                at,
                "an opaque body needs `argument`: the property that is the whole body",
            );
        }
        if described.media_types.is_empty() || described.media_types.len() > 16 {
            reader.error(
                at,
                "an opaque body needs `media_types`, such as [text/plain], and at most 16 of them",
            );
        }
    } else if let Some(first) = described.media_types.first() {
        reader.error(&first.at, "only an opaque body has `media_types`");
    }
    for media_type in &described.media_types {
        if let Some(problem) = media_type_problem(&media_type.value.to_ascii_lowercase()) {
            reader.error(&media_type.at, format!("`{}` {problem}", media_type.value));
        }
    }
}

/// The formats of a body of fields.
pub(super) fn formats(formats: &[Spot<&'static str>]) -> Vec<BodyFormat> {
    formats
        .iter()
        .map(|format| match format.value {
            "form" => BodyFormat::Form,
            _ => BodyFormat::Json,
        })
        .collect()
}

fn media_type_problem(text: &str) -> Option<&'static str> {
    let token = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"!#$&-^_.+".contains(&byte))
    };
    match text.split_once('/') {
        Some((kind, subtype)) if token(kind) && token(subtype) => {}
        _ => return Some("is no media type (type/subtype, without parameters)"),
    }
    if text == "application/json" || text.ends_with("+json") {
        return Some("is JSON: use `formats: [json]`, so that what is inside is checked");
    }
    if text == "application/x-www-form-urlencoded" {
        return Some("is a form: use `formats: [form]`, so that what is inside is checked");
    }
    text.starts_with("multipart/")
        .then_some("needs a boundary, which an opaque body cannot carry")
}
