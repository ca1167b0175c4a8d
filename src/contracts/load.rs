//! Reading contract files into a catalog, with every problem of all of them reported at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use http::Method;
use serde_json::Value;

use super::{
    Catalog, Limits, OnOutputViolation,
    assemble::{Compiled, assemble},
    close,
    effects::{self, Unchecked},
    fallback::{self, Fallback},
    heading::{self, Heading},
    lint,
    reader::{Reader, Spot},
    source::{Node, Yaml},
    template::Template,
    wiring::{self, Parts},
};
use crate::diagnostics::{Finding, SourceFile};

const FIELDS: [&str; 23] = [
    "name",
    "description",
    "api",
    "method",
    "path",
    "scope",
    "consequence",
    "query",
    "headers",
    "body",
    "input",
    "output",
    "on_output_violation",
    "stream",
    "idempotent",
    "idempotency_header",
    "while_halted",
    "limits",
    "before",
    "preview",
    "changed",
    "amount",
    "answers",
];

const MAX_BODY_BYTES: u64 = 16 << 20;
const MAX_ANSWER_BYTES: u64 = 64 << 20;
const MAX_TIMEOUT_MS: u64 = 600_000;

/// Reads contract files. `apis` are the names that the configuration knows.
///
/// The catalog holds the tools without errors; with any finding that is not a note it must not be
/// served. Findings come in the order of their places.
pub fn load(files: &[SourceFile], apis: &BTreeSet<String>) -> (Catalog, Vec<Finding>) {
    let mut loading = Loading {
        apis,
        catalog: Catalog::default(),
        findings: Vec::new(),
        names: BTreeMap::new(),
        routes: Vec::new(),
        readings: Vec::new(),
    };
    for (number, file) in files.iter().enumerate() {
        loading.file(number, file);
    }
    loading.check_readings(files);
    if loading.names.is_empty() && loading.findings.is_empty() {
        let nowhere = SourceFile::new("contracts", "");
        let finding = Finding::error(
            files.first().unwrap_or(&nowhere),
            0..0,
            "there is no tool in any contract file",
        );
        loading.findings.push(finding.with_help(
            "a contract file holds a list under `tools:`; without tools there is nothing to serve",
        ));
    }
    loading.findings.sort_by_cached_key(Finding::place);
    (loading.catalog, loading.findings)
}

struct Loading<'a> {
    apis: &'a BTreeSet<String>,
    catalog: Catalog,
    findings: Vec<Finding>,
    /// Where each tool's name stands, in words.
    names: BTreeMap<String, String>,
    routes: Vec<Route>,
    readings: Vec<Unchecked>,
}

/// One path template, for finding those that share a request.
struct Route {
    api: String,
    method: Method,
    template: Template,
    tool: String,
    place: String,
}

impl Loading<'_> {
    fn file(&mut self, number: usize, file: &SourceFile) {
        let mut reader = Reader::new(file);
        match Node::read(file) {
            Ok(Node {
                value: Yaml::Null, ..
            }) => {}
            Ok(root) => {
                if reader.mapping(&root, "a contract file", &["tools"])
                    && let Some(tools) = reader.required(&root, "tools", &root.at)
                {
                    if !matches!(tools.value, Yaml::List(_)) {
                        reader.error(
                            &tools.at,
                            format!("`tools` must be a list, and is {}", tools.kind()),
                        );
                    }
                    for tool in tools.items() {
                        self.tool(number, &mut reader, tool);
                    }
                }
            }
            Err(finding) => reader.findings.push(*finding),
        }
        self.findings.append(&mut reader.findings);
    }

    fn tool(&mut self, file: usize, reader: &mut Reader<'_>, node: &Node) {
        let before = reader.findings.len();
        if !reader.mapping(node, "a tool", &FIELDS) {
            return;
        }
        let heading = heading::read(reader, node, self.apis, &mut self.names);
        let at = heading
            .name
            .as_ref()
            .map_or(&node.at, |name| &name.at)
            .clone();
        let input = reader.required(node, "input", &at).and_then(|schema| {
            let closed = input_schema(reader, schema)?;
            Some((schema, closed))
        });
        let output = node
            .get("output")
            .and_then(|(_, schema)| schema_of(reader, schema).map(|value| (schema, value)));
        let template = heading
            .path
            .as_ref()
            .and_then(|path| template(reader, path));
        self.route(reader, &heading, template.as_ref());
        let options = options(reader, node);
        let effects = effects::read(reader, node, input.as_ref().map(|(_, closed)| closed));
        self.readings.extend(effects.unchecked(file, node));
        let binding = match (&input, heading.method.clone(), template) {
            (Some((schema, input)), Some(method), Some(template)) => wiring::bind(
                reader,
                &Parts {
                    tool: node,
                    method,
                    template,
                    schema,
                    input,
                },
            ),
            _ => None,
        };
        if reader.failed_since(before) {
            return;
        }
        let (Some((schema, input)), Some(binding)) = (input, binding) else {
            return;
        };
        let compiled = Compiled {
            validator: lint::compile(reader, schema, &input),
            output_validator: match &output {
                Some((schema, value)) => lint::compile(reader, schema, value).map(Some),
                None => Some(None),
            },
        };
        let output = output.map(|(_, value)| value);
        if let Some(contract) =
            assemble(heading, input, output, options, effects, binding, compiled)
        {
            let contract = Arc::new(contract);
            if let Err(problem) = self.catalog.add(contract) {
                reader.error(
                    &at,
                    format!("the path cannot be told from others: {problem}"),
                );
            }
        }
    }

    /// The tools that read for others, once all are known. A tool that has been reported itself is not looked for.
    fn check_readings(&mut self, files: &[SourceFile]) {
        for unchecked in &self.readings {
            let name = &unchecked.reading.tool;
            let reading = self.catalog.tool(name);
            if reading.is_none() && self.names.contains_key(name) {
                continue;
            }
            if let (Some(problem), Some(file)) = (
                unchecked.problem(reading.map(AsRef::as_ref)),
                files.get(unchecked.file),
            ) {
                self.findings.push(
                    Finding::error(file, unchecked.at.clone(), problem).with_help(format!(
                        "`{}` names a tool of these contracts that only reads, and the arguments that it takes",
                        unchecked.field
                    )),
                );
            }
        }
    }

    /// Reports the templates that one request could match together with this one.
    fn route(
        &mut self,
        reader: &mut Reader<'_>,
        heading: &Heading,
        template: Option<&Spot<Template>>,
    ) {
        let (Some(api), Some(method), Some(template)) = (&heading.api, &heading.method, template)
        else {
            return;
        };
        let tool = heading
            .name
            .as_ref()
            .map_or("?", |name| name.value.as_str());
        for other in &self.routes {
            if other.api == api.value
                && other.method == method.value
                && other.template.overlaps(&template.value)
            {
                reader.error_with_help(
                    &template.at,
                    format!(
                        "one {} request could mean `{tool}` and `{}` ({})",
                        method.value, other.tool, other.place
                    ),
                    "a parameter matches any text, so another tool's fixed segment cannot stand in its place",
                );
            }
        }
        self.routes.push(Route {
            api: api.value.clone(),
            method: method.value.clone(),
            template: template.value.clone(),
            tool: tool.to_owned(),
            place: reader.place(&template.at),
        });
    }
}

fn template(reader: &mut Reader<'_>, path: &Spot<String>) -> Option<Spot<Template>> {
    match Template::parse(&path.value) {
        Ok(value) => Some(Spot {
            value,
            at: path.at.clone(),
        }),
        Err(problem) => {
            reader.error(&path.at, problem);
            None
        }
    }
}

/// A schema as JSON, if nothing is wrong with it.
fn schema_of(reader: &mut Reader<'_>, node: &Node) -> Option<Value> {
    let before = reader.findings.len();
    let value = node.to_json(reader.file, &mut reader.findings);
    if !reader.failed_since(before) {
        lint::lint(reader, node, &value);
    }
    (!reader.failed_since(before)).then_some(value)
}

/// An input schema in closed form, if nothing is wrong with it.
fn input_schema(reader: &mut Reader<'_>, node: &Node) -> Option<Value> {
    let root_is_object = node.get("type").and_then(|(_, kind)| kind.text()) == Some("object");
    if !root_is_object {
        reader.error(
            &node.place_of("/type"),
            "the input schema must have `type: object` at its root",
        );
    }
    let mut value = schema_of(reader, node)?;
    close::close(&mut value);
    root_is_object.then_some(value)
}

/// The optional fields.
pub(super) struct Options {
    pub(super) on_output_violation: OnOutputViolation,
    pub(super) stream: bool,
    pub(super) idempotent: bool,
    pub(super) fallback: Fallback,
    pub(super) limits: Limits,
}

fn options(reader: &mut Reader<'_>, node: &Node) -> Options {
    let on_output_violation = node
        .get("on_output_violation")
        .and_then(|(_, value)| reader.text(value, "`on_output_violation`"))
        .and_then(|text| {
            let choices = [
                ("refuse", OnOutputViolation::Refuse),
                ("report", OnOutputViolation::Report),
            ];
            reader.choice(&text, "way to handle an answer", &choices)
        });
    Options {
        on_output_violation: on_output_violation.unwrap_or_default(),
        stream: reader.flag(node, "stream"),
        idempotent: reader.flag(node, "idempotent"),
        fallback: fallback::read(reader, node),
        limits: limits(reader, node),
    }
}

fn limits(reader: &mut Reader<'_>, node: &Node) -> Limits {
    let defaults = Limits::default();
    let Some((_, node)) = node.get("limits") else {
        return defaults;
    };
    if !reader.mapping(
        node,
        "`limits`",
        &["body_bytes", "answer_bytes", "timeout_ms"],
    ) {
        return defaults;
    }
    let mut bytes = |field, default: usize, largest| {
        let default = u64::try_from(default).unwrap_or(largest);
        usize::try_from(reader.bounded(node, field, default, largest)).unwrap_or(usize::MAX)
    };
    Limits {
        body_bytes: bytes("body_bytes", defaults.body_bytes, MAX_BODY_BYTES),
        answer_bytes: bytes("answer_bytes", defaults.answer_bytes, MAX_ANSWER_BYTES),
        timeout_ms: reader.bounded(node, "timeout_ms", defaults.timeout_ms, MAX_TIMEOUT_MS),
    }
}
