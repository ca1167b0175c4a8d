//! What is wrong with a contract's JSON Schema, all of it, each at its own line.
//!
//! The `jsonschema` crate ignores keywords that it does not know and stops at the first error. A
//! misspelt `maximum` would then guard nothing, so here everything in a schema has to mean something.

use std::{collections::HashSet, ops::Range};

use jsonschema::Draft;
use serde_json::{Value, json};

use super::{
    reader::Reader,
    schema::{self, APPLICATORS, About, Shape},
    source::{Key, Node, Yaml},
    violation,
};

/// Keywords of draft 2020-12 that hold no schemas.
const PLAIN_KEYWORDS: [&str; 34] = [
    "$schema",
    "$ref",
    "$comment",
    "type",
    "enum",
    "const",
    "multipleOf",
    "maximum",
    "exclusiveMaximum",
    "minimum",
    "exclusiveMinimum",
    "maxLength",
    "minLength",
    "pattern",
    "maxItems",
    "minItems",
    "uniqueItems",
    "maxContains",
    "minContains",
    "maxProperties",
    "minProperties",
    "required",
    "dependentRequired",
    "format",
    "contentEncoding",
    "contentMediaType",
    "title",
    "description",
    "default",
    "deprecated",
    "readOnly",
    "writeOnly",
    "examples",
    "x-sensitivity",
];

/// Keywords that would make a reference mean something else than a place in the same schema.
const NAMING_KEYWORDS: [&str; 6] = [
    "$id",
    "$anchor",
    "$dynamicAnchor",
    "$dynamicRef",
    "$recursiveRef",
    "$recursiveAnchor",
];

/// Property names that mean something else to the policy engine.
const RESERVED: [&str; 2] = ["__entity", "__extn"];

/// How many errors against the meta-schema are looked at.
const MAX_META_ERRORS: usize = 500;

/// Reports everything that is wrong with a schema. `value` is the same schema as JSON.
pub(super) fn lint(reader: &mut Reader<'_>, node: &Node, value: &Value) {
    let before = reader.findings.len();
    Lint {
        reader,
        root: value,
    }
    .schema(node, value);
    if !reader.failed_since(before) {
        against_meta_schema(reader, node, value);
    }
}

/// Compiles a schema that has no findings; what the compiler still refuses is reported.
pub(super) fn compile(
    reader: &mut Reader<'_>,
    node: &Node,
    value: &Value,
) -> Option<jsonschema::Validator> {
    match violation::options().build(value) {
        Ok(validator) => Some(validator),
        Err(error) => {
            let at = node.place_of(error.instance_path().as_str());
            reader.error(&at, format!("the schema cannot be used: {error}"));
            None
        }
    }
}

fn against_meta_schema(reader: &mut Reader<'_>, node: &Node, value: &Value) {
    let meta = jsonschema::draft202012::meta::validator();
    // The meta-schema refers to itself from several sides and says the same thing once for each.
    let mut said = HashSet::new();
    for error in meta.iter_errors(value).take(MAX_META_ERRORS) {
        let pointer = error.instance_path().as_str();
        let message = if pointer.ends_with("/type") || pointer.contains("/type/") {
            "not a type: null, boolean, integer, number, string, array and object are".to_owned()
        } else {
            format!("the schema's `{pointer}` {}", violation::rule(error.kind()))
        };
        let at = node.place_of(pointer);
        if said.insert((at.start, message.clone())) {
            reader.error(&at, message);
        }
    }
}

struct Lint<'r, 'a, 'v> {
    reader: &'r mut Reader<'a>,
    root: &'v Value,
}

impl Lint<'_, '_, '_> {
    fn schema(&mut self, node: &Node, value: &Value) {
        for (key, inner) in node.entries() {
            let Some(held) = value.get(&key.name) else {
                continue;
            };
            self.keyword(key, inner, value);
            if let Some((_, shape, _)) = APPLICATORS
                .iter()
                .find(|(keyword, ..)| *keyword == key.name)
            {
                for (pointer, schema) in schema::held(held, *shape) {
                    if let Some(node) = within(inner, *shape, &pointer) {
                        self.schema(node, schema);
                    }
                }
            }
        }
    }

    fn keyword(&mut self, key: &Key, inner: &Node, schema: &Value) {
        match key.name.as_str() {
            "$ref" => self.reference(inner, schema),
            "$schema" => self.dialect(inner),
            "pattern" => {
                if let Some(pattern) = inner.text() {
                    self.pattern(pattern, &inner.at);
                }
            }
            "patternProperties" => {
                for (pattern, _) in inner.entries() {
                    self.pattern(&pattern.name, &pattern.at);
                }
            }
            "properties" | "dependentSchemas" | "dependentRequired" => {
                for (property, _) in inner.entries() {
                    self.property_name(&property.name, &property.at);
                }
            }
            "required" => {
                for item in inner.items() {
                    self.property_name(item.text().unwrap_or_default(), &item.at);
                }
            }
            "format" => self.format(inner),
            "x-sensitivity" => self.sensitivity(inner),
            name if NAMING_KEYWORDS.contains(&name) => self.reader.error_with_help(
                &key.at,
                format!("`{name}` is not supported in a contract's schema"),
                "define shared parts under $defs and refer to them as `$ref: '#/$defs/name'`",
            ),
            name => self.known(name, &key.at),
        }
    }

    fn known(&mut self, name: &str, at: &Range<usize>) {
        let known = PLAIN_KEYWORDS.contains(&name)
            || APPLICATORS.iter().any(|(keyword, ..)| *keyword == name);
        if !known && !name.starts_with("x-") {
            let help = match name {
                "definitions" => "draft 2020-12 calls it `$defs`",
                "nullable" => "add \"null\" to `type`",
                "dependencies" => {
                    "draft 2020-12 calls it `dependentSchemas` or `dependentRequired`"
                }
                "example" => "draft 2020-12 calls it `examples`",
                _ => {
                    "a keyword that nobody reads guards nothing; names of your own start with `x-`"
                }
            };
            self.reader.error_with_help(
                at,
                format!("`{name}` is no keyword of JSON Schema draft 2020-12"),
                help,
            );
        }
    }

    fn reference(&mut self, inner: &Node, schema: &Value) {
        let Some(reference) = inner.text() else {
            return;
        };
        if !reference.starts_with('#') {
            self.reader.error_with_help(
                &inner.at,
                format!("`{reference}` leads out of the contract, and nothing is ever fetched"),
                "copy what it refers to under $defs and refer to it as `$ref: '#/$defs/name'`",
            );
        } else if schema::resolve(self.root, reference).is_none() {
            self.reader.error(
                &inner.at,
                format!("`{reference}` leads nowhere in this schema"),
            );
        } else if leads_back(self.root, schema) {
            self.reader.error_with_help(
                &inner.at,
                format!(
                    "`{reference}` leads back to itself without going into a property or an item"
                ),
                "such a schema would be applied to the same value for ever",
            );
        }
    }

    fn dialect(&mut self, inner: &Node) {
        const DIALECT: &str = "https://json-schema.org/draft/2020-12/schema";
        if inner
            .text()
            .is_none_or(|text| text.trim_end_matches('#') != DIALECT)
        {
            self.reader.error(
                &inner.at,
                format!("the only dialect is draft 2020-12: {DIALECT}"),
            );
        }
    }

    fn pattern(&mut self, pattern: &str, at: &Range<usize>) {
        if violation::options()
            .build(&json!({ "pattern": pattern }))
            .is_ok()
        {
            return;
        }
        let looks_around = ["(?=", "(?!", "(?<=", "(?<!"]
            .iter()
            .any(|part| pattern.contains(part));
        if looks_around {
            self.reader.error_with_help(
                at,
                "the pattern uses look-around, which cannot be matched in linear time",
                "say it without, or with several schemas under `allOf` and `not`",
            );
        } else {
            self.reader.error_with_help(
                at,
                "the pattern cannot be used: it is no regular expression, refers back to a group, or is too large",
                "patterns are matched by an engine with linear time and a memory bound of 1 MiB",
            );
        }
    }

    fn property_name(&mut self, name: &str, at: &Range<usize>) {
        if RESERVED.contains(&name) {
            self.reader.error(
                at,
                format!("a property cannot be called `{name}`: the policy engine reads such objects as something else"),
            );
        }
    }

    fn format(&mut self, inner: &Node) {
        let Some(format) = inner.text() else { return };
        if !violation::options().is_known_format(Draft::Draft202012, format) {
            self.reader.error_with_help(
                &inner.at,
                format!("nothing checks the format `{format}`"),
                "formats are asserted, so only those of draft 2020-12 are taken (date-time, email, uuid, uri, ipv4 …)",
            );
        }
    }

    fn sensitivity(&mut self, inner: &Node) {
        if !matches!(inner.text(), Some("secret" | "pii" | "confidential")) {
            self.reader.error(
                &inner.at,
                "`x-sensitivity` is one of secret, pii and confidential",
            );
        }
    }
}

/// The node of a sub-schema, from the node of the keyword that holds it.
fn within<'n>(node: &'n Node, shape: Shape, pointer: &str) -> Option<&'n Node> {
    let token = pointer.get(1..).unwrap_or_default();
    match (shape, &node.value) {
        (Shape::One, _) => Some(node),
        (Shape::List, Yaml::List(items)) => token
            .parse::<usize>()
            .ok()
            .and_then(|index| items.get(index)),
        (Shape::Named, Yaml::Map(_)) => node
            .get(&token.replace("~1", "/").replace("~0", "~"))
            .map(|(_, schema)| schema),
        _ => None,
    }
}

/// Whether a schema is reached again from itself while the value stays the same.
fn leads_back(root: &Value, start: &Value) -> bool {
    let mut seen: Vec<&Value> = Vec::new();
    let mut open: Vec<&Value> = vec![start];
    while let Some(schema) = open.pop() {
        let Some(map) = schema.as_object() else {
            continue;
        };
        for next in schema::next_in_place(root, map, &[About::Same, About::AskedSame]) {
            if std::ptr::eq(next, start) {
                return true;
            }
            if !seen.iter().any(|known| std::ptr::eq(*known, next)) {
                seen.push(next);
                open.push(next);
            }
        }
    }
    false
}
