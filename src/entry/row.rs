//! One row of the table `audit.entries`, column by column in the form in which it is hashed and stored: what the writer makes
//! of an entry and what a verifier reads back.

use std::borrow::Cow;

use super::{Decision, Entry, Kind, Outcome, Redacted};
use crate::{call::Consequence, clock::Timestamp, json};

/// Every column but `hash`. JSON columns are RFC 8785 texts; lists are empty where the column is null.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct Row<'a> {
    pub instance_id: &'a str,
    pub seq: i64,
    pub recorded_at: Timestamp,
    pub kind: &'a str,
    pub opens_call: bool,
    pub call_id: Option<&'a str>,
    pub run_id: Option<&'a str>,
    pub approval_id: Option<&'a str>,
    pub kill_switch_id: Option<&'a str>,
    pub agent: Option<&'a str>,
    pub operator: Option<&'a str>,
    pub surface: Option<&'a str>,
    pub api: Option<&'a str>,
    pub tool: Option<&'a str>,
    pub consequence: Option<&'a str>,
    pub contract_digest: Option<&'a str>,
    pub policy_digest: Option<&'a str>,
    pub arguments: Option<Cow<'a, str>>,
    pub arguments_digest: Option<&'a str>,
    pub decision: Option<&'a str>,
    pub reasons: Vec<&'a str>,
    pub policies: Vec<&'a str>,
    pub received_at: Option<Timestamp>,
    pub decided_at: Option<Timestamp>,
    pub forwarded_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub status: Option<i16>,
    pub executed: Option<bool>,
    pub outcome: Option<&'a str>,
    pub words: Option<&'a str>,
    pub detail: Option<Cow<'a, str>>,
    pub answer: Option<Cow<'a, str>>,
    pub answer_digest: Option<&'a str>,
    pub before: Option<Cow<'a, str>>,
    pub changed: Option<Cow<'a, str>>,
    pub value_tokens: Vec<&'a str>,
}

impl Entry {
    /// The keyed digests of every sensitive value that stood in this entry, each once, in order.
    fn all_tokens(&self) -> Vec<&str> {
        let parts = [&self.arguments, &self.answer, &self.before, &self.changed];
        let mut tokens: Vec<&str> = parts
            .into_iter()
            .flatten()
            .flat_map(Redacted::tokens)
            .chain(&self.value_tokens)
            .map(String::as_str)
            .collect();
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }

    /// The row that this entry becomes.
    pub fn row<'a>(&'a self, instance_id: &'a str, seq: i64, recorded_at: Timestamp) -> Row<'a> {
        let json = |value: &'a Option<Redacted>| {
            value
                .as_ref()
                .map(|redacted| Cow::Borrowed(redacted.as_json()))
        };
        Row {
            instance_id,
            seq,
            recorded_at,
            kind: self.kind.map_or("", Kind::as_str),
            opens_call: self.opens_call,
            call_id: self.call_id.as_ref().map(|id| id.as_str()),
            run_id: self.run_id.as_ref().map(|id| id.as_str()),
            approval_id: self.approval_id.as_ref().map(|id| id.as_str()),
            kill_switch_id: self.kill_switch_id.as_ref().map(|id| id.as_str()),
            agent: self.agent.as_deref(),
            operator: self.operator.as_deref(),
            surface: self.surface,
            api: self.api.as_deref(),
            tool: self.tool.as_deref(),
            consequence: self.consequence.map(Consequence::as_str),
            contract_digest: self.contract_digest.as_deref(),
            policy_digest: self.policy_digest.as_deref(),
            arguments: json(&self.arguments),
            arguments_digest: self.arguments_digest.as_deref(),
            decision: self.decision.map(Decision::as_str),
            reasons: self.reasons.clone(),
            policies: self.policies.iter().map(String::as_str).collect(),
            received_at: self.received_at,
            decided_at: self.decided_at,
            forwarded_at: self.forwarded_at,
            finished_at: self.finished_at,
            status: self.status.and_then(|status| i16::try_from(status).ok()),
            executed: self.executed,
            outcome: self.outcome.map(Outcome::as_str),
            words: self.words.as_deref(),
            detail: self
                .detail
                .as_ref()
                .map(|value| Cow::Owned(json::canonical_text(value))),
            answer: json(&self.answer),
            answer_digest: self.answer_digest.as_deref(),
            before: json(&self.before),
            changed: json(&self.changed),
            value_tokens: self.all_tokens(),
        }
    }
}
