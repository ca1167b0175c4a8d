//! Approvals as they stand in answers, and what became of a vote.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use utoipa::{ToSchema, openapi::Object};

use crate::{
    approvals::{self, Attached, CastVote, LastCall, Need, Next, Shown},
    clock::Timestamp as DateTime,
    http::openapi::schemas,
    store::approvals::STATES,
};

/// The states that an approval can be in.
pub(super) fn states() -> Object {
    schemas::one_of(STATES)
}

/// A parked call as an approver is shown it. Arguments are real, but for classes that its tiers do not show to the caller.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Approval {
    approval: String,
    call: String,
    run: String,
    agent: String,
    /// The operator who answers for the agent.
    owner: String,
    /// Who or what started the run, as the agent says.
    triggered_by: String,
    /// What the run is for, as the agent says.
    #[schema(required)]
    purpose: Option<String>,
    /// Why the agent makes the call: its words, not a fact.
    #[schema(required)]
    agent_words: Option<String>,
    api: String,
    tool: String,
    #[schema(schema_with = schemas::consequence)]
    consequence: String,
    /// The money that it is about, in its currency, where its contract says where that stands.
    #[schema(required)]
    amount: Option<String>,
    /// As they would be sent; null once the call has ended.
    #[schema(required)]
    arguments: Option<Value>,
    /// What it will touch, as it was read when it was parked, where its contract wants that; null once the call has ended.
    #[schema(required)]
    preview: Option<Value>,
    /// Why nobody can be shown what it is; such a call can only be denied, or expire.
    #[schema(required)]
    unreadable: Option<&'static str>,
    /// What a decision must name: the keyed digest over exactly this call.
    digest: String,
    tiers: Vec<String>,
    /// What each tier asks for.
    needs: Vec<Need>,
    votes: Vec<CastVote>,
    /// Ids of the policies that parked it.
    policies: Vec<String>,
    /// Their texts, by id, as they stood then.
    policy_texts: BTreeMap<String, String>,
    /// What the agent did last in the same run, newest first; of one approval alone, not in a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    last_calls: Option<Vec<LastCall>>,
    #[schema(schema_with = states)]
    state: String,
    /// How many calls a decision is on: this one and those attached to it.
    calls: usize,
    /// The identical calls that are decided with it, in the order in which they came.
    attached: Vec<Attached>,
    /// The approval at the head of the line in which this one waits or waited; null for a head.
    #[schema(required)]
    attached_to: Option<String>,
    /// The standing permission that approved it.
    #[schema(required)]
    permission: Option<String>,
    /// How far an approval may reach beyond it; null where its tiers do not allow that.
    #[schema(required)]
    next_at_most: Option<Next>,
    /// Why it ended without being sent, if it did.
    #[schema(required)]
    explanation: Option<String>,
    created_at: DateTime,
    expires_at: DateTime,
    /// Since when a halt stops its time.
    #[schema(required)]
    frozen_at: Option<DateTime>,
    #[schema(required)]
    decided_at: Option<DateTime>,
}

/// What became of a vote.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Decided {
    pub(super) approval: String,
    pub(super) call: String,
    /// How many calls the vote is on.
    pub(super) calls: usize,
    /// Still `pending` where more people are needed.
    #[schema(schema_with = states)]
    pub(super) state: String,
    #[schema(required)]
    pub(super) decided_at: Option<DateTime>,
    /// The standing permission that came of it.
    #[schema(required)]
    pub(super) permission: Option<String>,
}

impl From<Shown> for Approval {
    fn from(shown: Shown) -> Self {
        let row = shown.row;
        Self {
            approval: row.approval_id,
            call: row.call_id,
            run: row.run_id,
            agent: row.agent,
            owner: row.owner,
            triggered_by: row.triggered_by,
            purpose: shown.purpose,
            agent_words: shown.words,
            api: row.api,
            tool: row.tool,
            consequence: row.consequence,
            amount: shown.amount,
            arguments: shown.arguments,
            preview: shown.preview,
            unreadable: shown.unreadable.then_some(approvals::UNREADABLE),
            digest: row.digest,
            tiers: shown.tiers,
            needs: shown.needs,
            votes: shown.votes,
            policies: row.policies,
            policy_texts: shown.policy_texts,
            last_calls: shown.last_calls,
            state: row.state,
            calls: shown.attached.len().saturating_add(1),
            attached: shown.attached,
            attached_to: row.attached_to,
            permission: row.permission_id,
            next_at_most: shown.next_at_most,
            explanation: shown.explanation,
            created_at: row.created_at,
            expires_at: row.expires_at,
            frozen_at: row.frozen_at,
            decided_at: row.decided_at,
        }
    }
}
