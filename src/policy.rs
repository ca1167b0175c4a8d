//! Decides what agents may call and what operators may do, by Cedar policies.
//!
//! [`load`] checks the policy files strictly against a schema generated from the tools' contracts and
//! either finds an error or gives [`Policies`], which never change afterwards: a new configuration is a
//! new load. [`Policies::decide`] answers for an agent's call, [`Policies::decide_operator`] for an
//! operator's act. Both deny by default, let `forbid` win, and deny when any policy cannot be evaluated,
//! which Cedar by itself would skip.
//!
//! Nothing here knows HTTP, SQL or the configuration's format, and nothing waits.

mod context;
mod draft;
mod kinds;
mod load;
mod operators;
mod parking;
mod plan;
mod reads;
mod rules;
mod schema;
mod shape;
mod slices;
#[cfg(test)]
mod tests;
mod validation;
mod world;

use std::collections::{BTreeMap, HashMap};

use cedar_policy::{Authorizer, Entities, EntityUid, Request};

pub use load::load;
pub use operators::{
    ApprovalFacts, OperatorAction, OperatorContext, OperatorDecision, OperatorResource,
};
pub use parking::{CallRequest, Decision, RunFacts};
pub use plan::Note;
pub use schema::GeneratedSchema;
pub use world::{AgentShape, GATEWAY, OperatorShape, TierShape, ToolShape, World};

/// The policies of one configuration, checked and ready to decide.
///
/// INVARIANT: every policy has a unique id, names only what exists, and is valid in Cedar's strict mode
/// against the schema that the contexts of requests are built by.
pub struct Policies {
    digest: String,
    canonical: String,
    schema: serde_json::Value,
    notes: Vec<Note>,
    /// The policies' own texts, by id.
    texts: BTreeMap<String, String>,
    /// The tier of each policy with `@approval`, by the policy's id.
    approvals: HashMap<String, String>,
    entities: Entities,
    slices: slices::Slices,
    agents: HashMap<String, Party>,
    operators: HashMap<String, Party>,
    tools: HashMap<String, Callable>,
    operator_actions: HashMap<OperatorAction, Acting>,
    tiers: HashMap<String, EntityUid>,
    gateway: EntityUid,
    authorizer: Authorizer,
}

/// An agent or operator, and the rows of the slices that can apply to them.
struct Party {
    uid: EntityUid,
    rows: Vec<usize>,
}

/// A tool, and the columns of the slices that can apply to it.
struct Callable {
    uid: EntityUid,
    columns: Vec<usize>,
    api: String,
    resource: EntityUid,
    plan: plan::RecordPlan,
}

/// An operators' action, and the columns of the slices that can apply to it.
struct Acting {
    uid: EntityUid,
    columns: Vec<usize>,
}

impl Policies {
    /// `sha256:…` over the policies' ids and texts and the generated schema: the version that a decision
    /// was made under.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What the digest is over: the policies' ids and texts and the generated schema, as RFC 8785 JSON.
    pub fn canonical(&self) -> &str {
        &self.canonical
    }

    /// The generated schema in Cedar's JSON format.
    pub const fn schema_json(&self) -> &serde_json::Value {
        &self.schema
    }

    /// The generated schema in Cedar's own syntax.
    pub fn schema_text(&self) -> String {
        schema::schema_text(&self.schema)
    }

    /// What policies cannot read of the tools' arguments, ordered by tool and place.
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The text of a policy as it stands in its file, annotations included.
    pub fn text_of(&self, id: &str) -> Option<&str> {
        self.texts.get(id).map(String::as_str)
    }

    /// The ids of all policies, sorted.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        self.texts.keys().map(String::as_str)
    }

    /// Whether any agent's call of this tool may be parked: whether a policy with `@approval` can apply to it.
    pub fn may_park(&self, tool: &str) -> bool {
        self.tools
            .get(tool)
            .is_some_and(|tool| self.slices.park(&tool.columns))
    }

    fn evaluate<'s>(
        &self,
        request: &Request,
        slices: impl Iterator<Item = &'s slices::Slice>,
    ) -> slices::Verdict {
        slices::evaluate(&self.authorizer, &self.entities, request, slices)
    }
}

impl std::fmt::Debug for Policies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Policies")
            .field("digest", &self.digest)
            .field("policies", &self.texts.len())
            .finish_non_exhaustive()
    }
}
