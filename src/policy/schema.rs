//! The Cedar schema of one configuration, generated from the tools' contracts. Policies are validated
//! against it, and `toolgate policy schema` prints it for those who write policies.

use std::collections::BTreeSet;

use cedar_policy::Schema;
use serde_json::{Map, Value, json};

use super::operators::OperatorAction;
use super::plan::{Note, RecordPlan};
use super::shape;
use super::world::{ToolShape, World};
use crate::call::Consequence;

/// The prefix of the action group of an API's tools.
pub(super) const API_GROUP: &str = "api:";
/// The prefix of the action group of all tools with one consequence.
pub(super) const CONSEQUENCE_GROUP: &str = "consequence:";

/// A generated schema, before any policy was read.
#[derive(Debug, Clone)]
pub struct GeneratedSchema {
    /// The schema in Cedar's JSON format.
    pub json: Value,
    /// What policies cannot read of the tools' arguments, ordered by tool and place.
    pub notes: Vec<Note>,
    /// The plan of each tool, in the order of `World::tools`.
    pub(super) plans: Vec<RecordPlan>,
    /// Names that cannot become actions, as whole sentences.
    pub(super) problems: Vec<String>,
}

impl GeneratedSchema {
    /// Generates the schema of a world. It never fails: what is wrong with the world's names is reported
    /// by [`super::load`].
    pub fn of(world: &World<'_>) -> Self {
        let mut actions = groups(world);
        for action in OperatorAction::ALL {
            actions.insert(action.as_str().to_owned(), operator_action(action));
        }
        let mut notes = Vec::new();
        let mut plans = Vec::with_capacity(world.tools.len());
        let mut problems = Vec::new();
        for tool in &world.tools {
            let (plan, of_tool) = shape::compile(tool.name, tool.input);
            notes.extend(of_tool);
            if actions.contains_key(tool.name) {
                problems.push(format!(
                    "the tool name `{}` is taken by another action",
                    tool.name
                ));
            } else {
                actions.insert(tool.name.to_owned(), tool_action(tool, &plan));
            }
            plans.push(plan);
        }
        notes.sort();
        let json = json!({"": {
            "commonTypes": {"Run": run_type(), "Approval": approval_type()},
            "entityTypes": entity_types(),
            "actions": actions,
        }});
        Self {
            json,
            notes,
            plans,
            problems,
        }
    }

    /// The schema in Cedar's own syntax, or as indented JSON should Cedar not be able to write it.
    pub fn text(&self) -> String {
        schema_text(&self.json)
    }
}

impl GeneratedSchema {
    /// The schema with only these actions and their groups, or `None` if one of them does not exist.
    pub(super) fn only(&self, actions: &BTreeSet<String>) -> Option<Schema> {
        let whole = self.json.get("")?;
        let all = whole.get("actions")?;
        let mut kept = Map::new();
        for name in actions {
            let action = all.get(name)?;
            let groups = action.get("memberOf").and_then(Value::as_array);
            for group in groups.into_iter().flatten() {
                let group = group.get("id")?.as_str()?;
                kept.insert(group.to_owned(), all.get(group)?.clone());
            }
            kept.insert(name.clone(), action.clone());
        }
        let part = json!({"": {
            "commonTypes": whole.get("commonTypes")?,
            "entityTypes": whole.get("entityTypes")?,
            "actions": kept,
        }});
        Schema::from_json_value(part).ok()
    }
}

/// A schema in Cedar's own syntax, or as indented JSON should Cedar not be able to write it.
pub(super) fn schema_text(json: &Value) -> String {
    cedar_policy::SchemaFragment::from_json_value(json.clone())
        .ok()
        .and_then(|fragment| fragment.to_cedarschema().ok())
        // No type of ours hides one of Cedar's, so that the short names are right as well.
        .map(|text| text.replace(": __cedar::", ": ").replace("<__cedar::", "<"))
        .unwrap_or_else(|| format!("{json:#}"))
}

/// Every API and every consequence is a group, whether or not it has tools.
fn groups(world: &World<'_>) -> Map<String, Value> {
    let apis: BTreeSet<&str> = world.names().remove("Api").unwrap_or_default();
    let apis = apis.into_iter().map(|api| format!("{API_GROUP}{api}"));
    let consequences =
        Consequence::ALL.map(|consequence| format!("{CONSEQUENCE_GROUP}{consequence}"));
    apis.chain(consequences)
        .map(|group| (group, json!({})))
        .collect()
}

fn entity_types() -> Value {
    json!({
        "Agent": {"memberOfTypes": ["AgentGroup"]},
        "AgentGroup": {},
        "Api": {},
        "Gateway": {},
        "Operator": {"memberOfTypes": ["Role", "OperatorGroup"]},
        "OperatorGroup": {},
        "Role": {},
        "Tier": {"shape": {"type": "Record", "attributes": {
            "roles": {"type": "Set", "element": {"type": "Entity", "name": "Role"}},
            "groups": {"type": "Set", "element": {"type": "Entity", "name": "OperatorGroup"}},
        }}},
    })
}

fn run_type() -> Value {
    json!({"type": "Record", "attributes": {
        "id": {"type": "String"},
        "triggered_by": {"type": "String"},
        "purpose": {"type": "String"},
        "implicit": {"type": "Boolean"},
        "scopes": {"type": "Set", "element": {"type": "String"}},
    }})
}

fn approval_type() -> Value {
    let names = [
        "agent",
        "owner",
        "triggered_by",
        "tool",
        "api",
        "consequence",
        "run",
    ];
    let attributes: Map<String, Value> = names
        .into_iter()
        .map(|name| (name.to_owned(), json!({"type": "String"})))
        .collect();
    json!({"type": "Record", "attributes": attributes})
}

fn tool_action(tool: &ToolShape<'_>, plan: &RecordPlan) -> Value {
    json!({
        "memberOf": [
            {"id": format!("{API_GROUP}{}", tool.api)},
            {"id": format!("{CONSEQUENCE_GROUP}{}", tool.consequence)},
        ],
        "appliesTo": {
            "principalTypes": ["Agent"],
            "resourceTypes": ["Api"],
            "context": {"type": "Record", "attributes": {
                "input": plan.cedar_type(),
                "run": {"type": "Run"},
                "approvals": {"type": "Set", "element": {"type": "String"}},
                "now": {"type": "Extension", "name": "datetime"},
            }},
        },
    })
}

fn operator_action(action: OperatorAction) -> Value {
    let (resource, context) = match action {
        OperatorAction::Approve | OperatorAction::Deny => ("Tier", json!({"type": "Approval"})),
        OperatorAction::Resolve | OperatorAction::TakeOver | OperatorAction::RevokePermission => {
            ("Gateway", json!({"type": "Approval"}))
        }
        OperatorAction::Halt | OperatorAction::Resume => (
            "Gateway",
            json!({"type": "Record", "attributes": {"kind": {"type": "String"}, "id": {"type": "String"}}}),
        ),
        OperatorAction::Delegate | OperatorAction::RevokeDelegation => (
            "Gateway",
            json!({"type": "Record", "attributes": {"from": {"type": "String"}, "to": {"type": "String"}}}),
        ),
        OperatorAction::ReadApprovals
        | OperatorAction::ReadAudit
        | OperatorAction::ReadKillSwitches
        | OperatorAction::ReadDeliveries
        | OperatorAction::Redeliver
        | OperatorAction::ReadWork
        | OperatorAction::ReadMetrics => ("Gateway", json!({"type": "Record", "attributes": {}})),
    };
    json!({"appliesTo": {"principalTypes": ["Operator"], "resourceTypes": [resource], "context": context}})
}
