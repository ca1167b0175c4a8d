//! Compiles the JSON Schema of a tool's arguments into a conversion plan. What Cedar has no type for is
//! left out of the plan and named in a [`Note`], so that nothing is dropped in silence.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use super::kinds::{decimal, kind_of, long, optional_union};
use super::plan::{Field, Note, Plan, RecordPlan};

/// Deeper schemas are not mapped: a policy does not read that far down, and evaluation recurses.
const MAX_DEPTH: usize = 24;
/// Nodes mapped per tool, so that references to references cannot multiply without end.
const MAX_NODES: usize = 4096;
/// Keywords that may add properties to an object which its own `properties` does not name.
const ADDING_PROPERTIES: [&str; 7] = [
    "allOf",
    "anyOf",
    "oneOf",
    "then",
    "else",
    "dependentSchemas",
    "$dynamicRef",
];

/// The plan for a tool's arguments (a JSON Schema 2020-12 for an object), and what it leaves out.
pub(super) fn compile(tool: &str, schema: &Value) -> (RecordPlan, Vec<Note>) {
    let mut compiler = Compiler {
        root: schema,
        tool,
        notes: BTreeSet::new(),
        // The root is being mapped already.
        open_references: vec![String::new()],
        nodes_left: MAX_NODES,
    };
    let plan = match compiler.node(schema, "", 0) {
        Ok(Mapped {
            plan: Plan::Record(record),
            ..
        }) => record,
        Ok(_) => {
            compiler.note("", "is not an object");
            RecordPlan::default()
        }
        Err(why) => {
            compiler.note("", &why);
            RecordPlan::default()
        }
    };
    (plan, compiler.notes.into_iter().collect())
}

struct Mapped {
    plan: Plan,
    nullable: bool,
}

impl Mapped {
    const fn always(plan: Plan) -> Self {
        Self {
            plan,
            nullable: false,
        }
    }
}

struct Compiler<'a> {
    root: &'a Value,
    tool: &'a str,
    notes: BTreeSet<Note>,
    /// The references being followed, to notice one that comes back to itself.
    open_references: Vec<String>,
    nodes_left: usize,
}

impl<'a> Compiler<'a> {
    fn note(&mut self, pointer: &str, why: &str) {
        self.notes.insert(Note {
            tool: self.tool.to_owned(),
            pointer: pointer.to_owned(),
            why: why.to_owned(),
        });
    }

    fn node(&mut self, schema: &'a Value, pointer: &str, depth: usize) -> Result<Mapped, String> {
        let schema = match schema {
            Value::Object(schema) => schema,
            Value::Bool(false) => return Err("accepts no value at all".to_owned()),
            Value::Bool(true) => return Err("has no type: it accepts anything".to_owned()),
            _ => return Err("is not a JSON Schema".to_owned()),
        };
        self.nodes_left = self
            .nodes_left
            .checked_sub(1)
            .ok_or("comes after more parts than are mapped for one tool")?;
        if depth > MAX_DEPTH {
            return Err("is nested too deeply".to_owned());
        }
        let is_root = depth == 0 && pointer.is_empty();
        if schema.contains_key("$id") && !is_root {
            return Err("has an `$id` of its own".to_owned());
        }
        if let Some(reference) = schema.get("$ref") {
            return self.reference(schema, reference, pointer, depth);
        }
        // Arguments are always an object, so that the root needs no `type` to be one.
        if is_root && !schema.contains_key("type") {
            return self.object(schema, pointer, depth).map(Mapped::always);
        }
        if let Some((branch, at)) = optional_union(schema) {
            let inner = self.node(branch, &format!("{pointer}/{at}"), depth + 1)?;
            return Ok(Mapped {
                nullable: true,
                ..inner
            });
        }
        let (kind, nullable) = kind_of(schema)?;
        let plan = match kind {
            "string" => Plan::Text,
            "boolean" => Plan::Bool,
            "integer" => long(schema)?,
            "number" => decimal(schema)?,
            "array" => self.array(schema, pointer, depth)?,
            "object" => self.object(schema, pointer, depth)?,
            other => return Err(format!("has the unknown type `{other}`")),
        };
        Ok(Mapped { plan, nullable })
    }

    fn reference(
        &mut self,
        schema: &'a Map<String, Value>,
        reference: &Value,
        pointer: &str,
        depth: usize,
    ) -> Result<Mapped, String> {
        let target = reference
            .as_str()
            .and_then(|reference| reference.strip_prefix('#'))
            .and_then(|fragment| {
                percent_encoding::percent_decode_str(fragment)
                    .decode_utf8()
                    .ok()
            })
            .filter(|target| target.is_empty() || target.starts_with('/'))
            .ok_or("refers to something that is not a place in the same schema")?
            .into_owned();
        if self.open_references.contains(&target) {
            return Err("is recursive: Cedar has no recursive types".to_owned());
        }
        let found = self
            .resolve(&target)
            .ok_or_else(|| format!("refers to `#{target}`, which is not there"))?;
        for keyword in ["properties", "items"].into_iter().chain(ADDING_PROPERTIES) {
            if schema.contains_key(keyword) {
                let place = format!("{pointer}/{keyword}");
                self.note(
                    &place,
                    "stands beside a `$ref`, and only the `$ref` is mapped",
                );
            }
        }
        self.open_references.push(target.clone());
        let mapped = self.node(found, &target, depth + 1);
        self.open_references.pop();
        mapped
    }

    /// Follows a JSON Pointer from the root, but not into a schema whose `$id` gives it another base.
    fn resolve(&self, pointer: &str) -> Option<&'a Value> {
        let mut at = self.root;
        for (index, token) in pointer.split('/').enumerate() {
            if index == 0 {
                continue;
            }
            if index > 1 && at.get("$id").is_some_and(Value::is_string) {
                return None;
            }
            let token = token.replace("~1", "/").replace("~0", "~");
            at = match at {
                Value::Object(map) => map.get(&token)?,
                Value::Array(list) => list.get(token.parse::<usize>().ok()?)?,
                _ => return None,
            };
        }
        Some(at)
    }

    fn array(
        &mut self,
        schema: &'a Map<String, Value>,
        pointer: &str,
        depth: usize,
    ) -> Result<Plan, String> {
        if schema.contains_key("prefixItems") {
            return Err("has `prefixItems`: Cedar has no tuples".to_owned());
        }
        let items = schema
            .get("items")
            .ok_or("is an array whose `items` have no type")?;
        let place = format!("{pointer}/items");
        let item = self
            .node(items, &place, depth + 1)
            .map_err(|why| format!("is an array, and each of its `items` {why}"))?;
        if item.nullable {
            return Err(
                "is an array whose `items` may be null, which a Cedar set cannot hold".to_owned(),
            );
        }
        self.note(
            pointer,
            "is read as a set: without order and without repetitions",
        );
        Ok(Plan::Set(Box::new(item.plan)))
    }

    fn object(
        &mut self,
        schema: &'a Map<String, Value>,
        pointer: &str,
        depth: usize,
    ) -> Result<Plan, String> {
        let is_false = |keyword: &str| schema.get(keyword) == Some(&Value::Bool(false));
        let properties = match schema.get("properties") {
            Some(Value::Object(properties)) => Some(properties),
            Some(_) => return Err("has `properties` that are not an object".to_owned()),
            None if depth == 0 || is_false("additionalProperties") => None,
            None => return Err("is a free map: it names no `properties`".to_owned()),
        };
        let mut adding = false;
        for keyword in ADDING_PROPERTIES {
            if schema.contains_key(keyword) {
                adding = true;
                let place = format!("{pointer}/{keyword}");
                self.note(&place, "may add or narrow properties, which is not mapped");
            }
        }
        let patterns = schema.contains_key("patternProperties");
        if patterns {
            let place = format!("{pointer}/patternProperties");
            self.note(
                &place,
                "accepts properties by pattern, which policies cannot read",
            );
        }
        let additional = is_false("additionalProperties");
        let unevaluated = is_false("unevaluatedProperties");
        if !additional && !unevaluated {
            self.note(
                pointer,
                "accepts properties that it does not name, which policies cannot read",
            );
        }
        let required: BTreeSet<&str> = schema
            .get("required")
            .and_then(Value::as_array)
            .map(|names| names.iter().filter_map(Value::as_str).collect())
            .unwrap_or_default();
        let mut fields = BTreeMap::new();
        for (name, property) in properties.into_iter().flatten() {
            let token = name.replace('~', "~0").replace('/', "~1");
            let place = format!("{pointer}/properties/{token}");
            let (plan, nullable) = match self.node(property, &place, depth + 1) {
                Ok(mapped) => (Some(mapped.plan), mapped.nullable),
                Err(why) => {
                    self.note(&place, &why);
                    (None, false)
                }
            };
            let required = required.contains(name.as_str());
            let field = Field {
                plan,
                required,
                nullable,
            };
            fields.insert(name.clone(), field);
        }
        let closed = !patterns && (additional || (unevaluated && !adding));
        let required = fields.values().filter(|field| field.required).count();
        Ok(Plan::Record(RecordPlan {
            fields,
            required,
            closed,
        }))
    }
}
