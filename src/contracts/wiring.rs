//! Deciding, when a contract is loaded, where each property travels, and reporting what cannot.

use std::{
    collections::{BTreeSet, HashMap},
    ops::Range,
};

use http::Method;
use serde_json::Value;

use super::{
    binding::{self, Binding, Body, BodyFormat, Outside, Parameter},
    body::{self, Described},
    inbound::item_types,
    reader::{Reader, Spot},
    schema::{self, Types},
    source::{Node, Yaml},
    template::Template,
};

/// What the binding of a tool is made from.
pub(super) struct Parts<'n> {
    pub(super) tool: &'n Node,
    pub(super) method: Spot<Method>,
    pub(super) template: Spot<Template>,
    pub(super) schema: &'n Node,
    /// The input schema in closed form.
    pub(super) input: &'n Value,
}

/// Binds every property, or reports why that cannot be done.
pub(super) fn bind(reader: &mut Reader<'_>, parts: &Parts<'_>) -> Option<Binding> {
    let before = reader.findings.len();
    let mut wiring = Wiring {
        reader,
        parts,
        outside: HashMap::new(),
    };
    let path = wiring.path();
    let query = wiring.query();
    let headers = wiring.headers();
    let body = wiring.body();
    let outside = wiring.outside;
    if reader.failed_since(before) {
        return None;
    }
    Some(Binding {
        template: parts.template.value.clone(),
        path,
        query,
        headers,
        body: body?,
        outside,
    })
}

struct Wiring<'r, 'a, 'n> {
    reader: &'r mut Reader<'a>,
    parts: &'r Parts<'n>,
    outside: HashMap<String, Outside>,
}

impl Wiring<'_, '_, '_> {
    fn path(&mut self) -> Vec<Parameter> {
        let required = required(self.parts.input);
        let at = self.parts.template.at.clone();
        let mut parameters = Vec::new();
        for name in self.parts.template.value.parameters() {
            if !required.contains(name) && self.declared(name) {
                self.reader.error_with_help(
                    &at,
                    format!("the path's parameter `{name}` is not required"),
                    format!("add `{name}` to the input schema's `required`"),
                );
            }
            parameters.extend(self.parameter(name, &at, Outside::Path));
        }
        parameters
    }

    fn query(&mut self) -> Vec<Parameter> {
        let names = self.reader.texts(self.parts.tool, "query");
        names
            .iter()
            .filter_map(|name| self.parameter(&name.value, &name.at, Outside::Query))
            .collect()
    }

    fn headers(&mut self) -> Vec<(http::HeaderName, Parameter)> {
        let Some((_, node)) = self.parts.tool.get("headers") else {
            return Vec::new();
        };
        if !matches!(node.value, Yaml::Map(_)) {
            self.reader.error(
                &node.at,
                format!(
                    "`headers` must map names of headers to properties, and is {}",
                    node.kind()
                ),
            );
        }
        let mut bound: Vec<(http::HeaderName, Parameter)> = Vec::new();
        for (key, value) in node.entries() {
            let header = binding::check_header(&key.name).map_err(|problem| {
                self.reader
                    .error(&key.at, format!("`{}`: {problem}", key.name))
            });
            let property = self.reader.text(value, "a header's property");
            let (Ok(header), Some(property)) = (header, property) else {
                continue;
            };
            if bound.iter().any(|(known, _)| *known == header) {
                self.reader
                    .error(&key.at, format!("the header `{header}` is bound twice"));
            }
            let parameter = self.parameter(&property.value, &property.at, Outside::Header);
            bound.extend(parameter.map(|parameter| (header, parameter)));
        }
        bound
    }

    /// Whether the input schema knows a property.
    fn declared(&self, name: &str) -> bool {
        properties(self.parts.input).contains(name)
    }

    /// Binds one property outside of the body.
    fn parameter(&mut self, name: &str, at: &Range<usize>, place: Outside) -> Option<Parameter> {
        if !self.declared(name) {
            self.reader
                .error(at, format!("the input schema has no property `{name}`"));
            return None;
        }
        if let Some(other) = self.outside.insert(name.to_owned(), place) {
            self.reader.error(
                at,
                format!(
                    "`{name}` is bound twice: to {} and to {}",
                    other.in_words(),
                    place.in_words()
                ),
            );
            return None;
        }
        let schemas = schema::property(self.parts.input, &[self.parts.input], name);
        let types = schema::types_of_any(self.parts.input, &schemas);
        let is_list = types == Types::ARRAY && place == Outside::Query;
        let items = is_list.then(|| item_types(self.parts.input, &schemas));
        let carried = items.unwrap_or(types);
        if carried == Types::NONE || !carried.within(Types::SCALAR) {
            let list = if place == Outside::Query {
                ", or a list of these"
            } else {
                ""
            };
            self.reader.error_with_help(
                at,
                format!("`{name}` cannot be carried in {}", place.in_words()),
                format!(
                    "its schema must have a `type` of string, integer, number or boolean{list}"
                ),
            );
            return None;
        }
        Some(Parameter {
            property: name.to_owned(),
            types,
            items,
        })
    }

    fn body(&mut self) -> Option<Body> {
        let described = match self.parts.tool.get("body") {
            Some((_, node)) => Some(body::read(self.reader, node)?),
            None => None,
        };
        let method = &self.parts.method.value;
        if let Some(described) = &described
            && matches!(*method, Method::GET | Method::HEAD)
        {
            self.reader.error_with_help(
                &described.at,
                format!("a {method} request has no body"),
                "bind the properties under `query`, `headers` or in the path",
            );
            return None;
        }
        let takes_body = matches!(*method, Method::POST | Method::PUT | Method::PATCH);
        let loose: Vec<String> = properties(self.parts.input)
            .into_iter()
            .filter(|name| !self.outside.contains_key(*name))
            .map(str::to_owned)
            .collect();
        let open = is_open(self.parts.input);
        match described {
            None if takes_body && (open || !loose.is_empty()) => {
                Some(Body::Fields(vec![BodyFormat::Json]))
            }
            None => self
                .all_bound(&loose, open, "the tool has no body")
                .then_some(Body::None),
            Some(Described {
                argument: None,
                formats,
                ..
            }) => Some(Body::Fields(body::formats(&formats))),
            Some(described) => self.whole_body(&described, loose, open),
        }
    }

    /// A body that is one argument.
    fn whole_body(
        &mut self,
        described: &Described,
        mut loose: Vec<String>,
        open: bool,
    ) -> Option<Body> {
        let argument = described.argument.as_ref()?;
        let name = &argument.value;
        let Some(position) = loose.iter().position(|known| known == name) else {
            let problem = if self.declared(name) {
                "is bound twice"
            } else {
                "is not in the input schema"
            };
            self.reader.error(
                &argument.at,
                format!("the body's argument `{name}` {problem}"),
            );
            return None;
        };
        loose.remove(position);
        self.all_bound(&loose, open, "the whole body is one argument")
            .then_some(())?;
        let schemas = schema::property(self.parts.input, &[self.parts.input], name);
        let types = schema::types_of_any(self.parts.input, &schemas);
        if !described
            .formats
            .iter()
            .any(|format| format.value == "opaque")
        {
            let formats = body::formats(&described.formats);
            if formats.contains(&BodyFormat::Form) && types != Types::OBJECT {
                self.reader.error(
                    &argument.at,
                    format!("a form is an object, so `{name}` must have `type: object`"),
                );
            }
            return Some(Body::Argument {
                property: name.clone(),
                formats,
            });
        }
        if types != Types::STRING {
            self.reader.error(
                &argument.at,
                format!("an opaque body is text, so `{name}` must have `type: string`"),
            );
        }
        let encodings: Vec<_> = schema::in_place(self.parts.input, &schemas)
            .into_iter()
            .filter_map(|map| map.get("contentEncoding"))
            .collect();
        if encodings.iter().any(|encoding| *encoding != "base64") {
            self.reader.error(
                &argument.at,
                format!("the only `contentEncoding` of `{name}` can be base64"),
            );
        }
        Some(Body::Opaque {
            property: name.clone(),
            media_types: described
                .media_types
                .iter()
                .map(|spot| spot.value.to_ascii_lowercase())
                .collect(),
            base64: !encodings.is_empty(),
        })
    }

    /// Whether nothing is left that only a body could carry.
    fn all_bound(&mut self, loose: &[String], open: bool, why: &str) -> bool {
        for name in loose {
            let at = self
                .parts
                .schema
                .place_of(&format!("/properties/{}", schema::token(name)));
            self.reader.error_with_help(
                &at,
                format!("`{name}` is bound nowhere, and {why}"),
                "bind it in the path, under `query` or under `headers`, or give the tool a body of fields",
            );
        }
        if open {
            let at = self.parts.schema.at.clone();
            self.reader.error(
                &at,
                format!("the input schema allows properties that it does not name, and {why}"),
            );
        }
        loose.is_empty() && !open
    }
}

/// The names of all properties that the root of an input schema describes.
fn properties(input: &Value) -> BTreeSet<&str> {
    schema::in_place_and_asked(input, input)
        .into_iter()
        .filter_map(|map| map.get("properties").and_then(Value::as_object))
        .flat_map(|properties| properties.keys().map(String::as_str))
        .collect()
}

/// Whether the root of an input schema allows properties that it does not name.
fn is_open(input: &Value) -> bool {
    let says_so = |map: &serde_json::Map<String, Value>| {
        let open = |keyword: &str| {
            map.get(keyword)
                .is_some_and(|schema| *schema != Value::Bool(false))
        };
        let patterns = map.get("patternProperties").and_then(Value::as_object);
        open("additionalProperties")
            || open("unevaluatedProperties")
            || patterns.is_some_and(|patterns| !patterns.is_empty())
    };
    schema::in_place_and_asked(input, input)
        .into_iter()
        .any(says_so)
}

/// The properties that an input always has: required by the root itself or by what always applies to it.
fn required(input: &Value) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    let mut open = vec![input];
    let mut steps = 0_usize;
    while let Some(schema) = open.pop() {
        steps += 1;
        if steps > 256 {
            break;
        }
        let listed = schema.get("required").and_then(Value::as_array);
        names.extend(listed.into_iter().flatten().filter_map(Value::as_str));
        open.extend(
            schema
                .get("allOf")
                .and_then(Value::as_array)
                .into_iter()
                .flatten(),
        );
        let reference = schema.get("$ref").and_then(Value::as_str);
        open.extend(reference.and_then(|reference| schema::resolve(input, reference)));
    }
    names
}
