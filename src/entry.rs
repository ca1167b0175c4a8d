//! One audit entry: an intent, an outcome, a refusal or an operator's act, as it goes to the one durable
//! history. Only a [`Redacted`] value fits into its arguments.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    call::Consequence,
    clock::Timestamp,
    ids::{ApprovalId, CallId, KillSwitchId, RunId},
    json,
};

pub mod chain;
mod row;

pub use row::Row;

/// A value in which nothing sensitive is left, as RFC 8785 JSON text, so that it is written down once however often it is
/// needed, and the keyed digests of what stood there. Only `crate::redaction` makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Redacted {
    json: Arc<str>,
    tokens: Option<Arc<[String]>>,
}

impl Redacted {
    /// For `crate::redaction` alone.
    pub(crate) fn vouched(value: &Value, tokens: Vec<String>) -> Self {
        Self {
            json: json::canonical_text(value).into(),
            tokens: (!tokens.is_empty()).then(|| tokens.into()),
        }
    }

    /// An object of parts that are safe already: names in order, each with its RFC 8785 JSON text.
    pub(crate) fn joined(parts: &[(&str, &str)], tokens: &[String]) -> Self {
        let members: Vec<String> = parts
            .iter()
            .map(|(name, json)| format!("\"{name}\":{json}"))
            .collect();
        Self {
            json: format!("{{{}}}", members.join(",")).into(),
            tokens: (!tokens.is_empty()).then(|| tokens.into()),
        }
    }

    /// The value as JSON text, safe to store and to show.
    pub fn as_json(&self) -> &str {
        &self.json
    }

    /// The keyed digests of the sensitive values that stood in it, by which an auditor finds a value that they know.
    pub fn tokens(&self) -> &[String] {
        self.tokens.as_deref().unwrap_or_default()
    }
}

/// How much of a value is recorded.
#[derive(Debug, Clone, Copy)]
pub struct Caps {
    /// The longest text, in bytes. Of a longer one the beginning is recorded, with its length and the keyed digest of the whole.
    pub text_bytes: usize,
    /// The longest value of a column, in bytes of RFC 8785 JSON, but for the markers that say what was left out.
    pub document_bytes: usize,
}

impl Caps {
    /// The smallest cap: below it nobody could tell what was recorded.
    pub const LEAST_BYTES: usize = 256;
    /// The largest: a row of five such values is still one that PostgreSQL and a reader can hold.
    pub const MOST_BYTES: usize = 1_048_576;
}

impl Default for Caps {
    fn default() -> Self {
        Self {
            text_bytes: 4_096,
            document_bytes: 32_768,
        }
    }
}

/// What an entry tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call was refused before anything was sent.
    Refusal,
    /// A call was parked until people approve.
    Parked,
    /// A call is about to be sent.
    Intent,
    /// What became of a call whose intent was recorded.
    Outcome,
    /// A parked call ended without being sent.
    Ended,
    /// A run began.
    RunOpened,
    /// A run was ended.
    RunEnded,
    /// An operator voted on a parked call.
    ApprovalVote,
    /// An operator was shown the real arguments of parked calls.
    ApprovalViewed,
    /// A parked call was opened to the people of the next tier.
    ApprovalEscalated,
    /// An operator lent their right to vote.
    DelegationGranted,
    /// A delegation was ended before its time.
    DelegationRevoked,
    /// A kill switch was pulled.
    Halt,
    /// A kill switch was released.
    Resume,
    /// An API key was made.
    KeyCreated,
    /// A gateway started.
    GatewayStarted,
    /// A gateway stopped in good order.
    GatewayStopped,
    /// An operator was refused.
    OperatorRefused,
    /// An operator read what was recorded or what is halted.
    AuditRead,
    /// An agent was refused something other than a call.
    AgentRefused,
    /// Checkpoints are signed with another key from here on.
    SigningKeyChanged,
    /// An operator began to follow the approvals.
    StreamOpened,
    /// A message to people was given up.
    DeliveryDead,
    /// An operator had it tried again.
    DeliveryRedelivered,
    /// A destination wants nothing more.
    DestinationDisabled,
    /// It is sent to again.
    DestinationEnabled,
    /// A month's entries are about to be dropped, after an export that verifies.
    PartitionDropped,
    /// A call that may not be sent goes to the work list, to be done by hand.
    WorkListed,
    /// An operator was shown the work list, or the real arguments of an item that they have claimed.
    WorkViewed,
    /// An operator took an item of the work list.
    WorkClaimed,
    /// An operator gave it back.
    WorkReleased,
    /// An approval was given for the next identical calls too.
    PermissionGranted,
    /// A call that was parked was approved by it at once.
    PermissionUsed,
    /// It was taken back before its time.
    PermissionRevoked,
    /// The second entry of a chain: the installation's key has signed the first.
    ChainSigned,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 35] = [
        Self::Refusal,
        Self::Parked,
        Self::Intent,
        Self::Outcome,
        Self::Ended,
        Self::RunOpened,
        Self::RunEnded,
        Self::ApprovalVote,
        Self::ApprovalViewed,
        Self::ApprovalEscalated,
        Self::DelegationGranted,
        Self::DelegationRevoked,
        Self::Halt,
        Self::Resume,
        Self::KeyCreated,
        Self::GatewayStarted,
        Self::GatewayStopped,
        Self::OperatorRefused,
        Self::AuditRead,
        Self::AgentRefused,
        Self::SigningKeyChanged,
        Self::StreamOpened,
        Self::DeliveryDead,
        Self::DeliveryRedelivered,
        Self::DestinationDisabled,
        Self::DestinationEnabled,
        Self::PartitionDropped,
        Self::WorkListed,
        Self::WorkViewed,
        Self::WorkClaimed,
        Self::WorkReleased,
        Self::PermissionGranted,
        Self::PermissionUsed,
        Self::PermissionRevoked,
        Self::ChainSigned,
    ];

    /// The name in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Refusal => "refusal",
            Self::Parked => "parked",
            Self::Intent => "intent",
            Self::Outcome => "outcome",
            Self::Ended => "ended",
            Self::RunOpened => "run_opened",
            Self::RunEnded => "run_ended",
            Self::ApprovalVote => "approval_vote",
            Self::ApprovalViewed => "approval_viewed",
            Self::ApprovalEscalated => "approval_escalated",
            Self::DelegationGranted => "delegation_granted",
            Self::DelegationRevoked => "delegation_revoked",
            Self::Halt => "halt",
            Self::Resume => "resume",
            Self::KeyCreated => "key_created",
            Self::GatewayStarted => "gateway_started",
            Self::GatewayStopped => "gateway_stopped",
            Self::OperatorRefused => "operator_refused",
            Self::AuditRead => "audit_read",
            Self::AgentRefused => "agent_refused",
            Self::SigningKeyChanged => "signing_key_changed",
            Self::StreamOpened => "stream_opened",
            Self::DeliveryDead => "delivery_dead",
            Self::DeliveryRedelivered => "delivery_redelivered",
            Self::DestinationDisabled => "destination_disabled",
            Self::DestinationEnabled => "destination_enabled",
            Self::PartitionDropped => "partition_dropped",
            Self::WorkListed => "work_listed",
            Self::WorkViewed => "work_viewed",
            Self::WorkClaimed => "work_claimed",
            Self::WorkReleased => "work_released",
            Self::PermissionGranted => "permission_granted",
            Self::PermissionUsed => "permission_used",
            Self::PermissionRevoked => "permission_revoked",
            Self::ChainSigned => "chain_signed",
        }
    }
}

/// The decision on a call (DESIGN section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may be sent.
    Permit,
    /// It waits for people.
    Park,
    /// It is refused.
    Deny,
}

impl Decision {
    /// Every decision.
    pub const ALL: [Self; 3] = [Self::Permit, Self::Park, Self::Deny];

    /// The name in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Permit => "permit",
            Self::Park => "park",
            Self::Deny => "deny",
        }
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The API answered; its status says what.
    Completed,
    /// Certainly not executed, or executed with an answer that cannot be used.
    Failed,
    /// Sent, and nobody knows what became of it.
    Indeterminate,
    /// An operator denied it.
    Denied,
    /// Nobody approved it in time.
    Expired,
    /// What was approved no longer holds.
    Voided,
}

impl Outcome {
    /// Every outcome, in the order in which they are declared.
    pub const ALL: [Self; 6] = [
        Self::Completed,
        Self::Failed,
        Self::Indeterminate,
        Self::Denied,
        Self::Expired,
        Self::Voided,
    ];

    /// The name in the table and in `GET /v1/calls/{id}`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Indeterminate => "indeterminate",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Voided => "voided",
        }
    }
}

/// One row of `audit.entries`, but for the instance, the number and the time, which the writer gives.
#[derive(Debug, Clone, Default)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct Entry {
    pub kind: Option<Kind>,
    pub opens_call: bool,
    pub call_id: Option<CallId>,
    pub run_id: Option<RunId>,
    pub approval_id: Option<ApprovalId>,
    pub kill_switch_id: Option<KillSwitchId>,
    pub agent: Option<Arc<str>>,
    pub operator: Option<Arc<str>>,
    pub surface: Option<&'static str>,
    pub api: Option<Arc<str>>,
    pub tool: Option<Arc<str>>,
    pub consequence: Option<Consequence>,
    pub contract_digest: Option<Arc<str>>,
    pub policy_digest: Option<Arc<str>>,
    pub arguments: Option<Redacted>,
    pub arguments_digest: Option<Arc<str>>,
    pub decision: Option<Decision>,
    pub reasons: Vec<&'static str>,
    pub policies: Vec<String>,
    pub received_at: Option<Timestamp>,
    pub decided_at: Option<Timestamp>,
    pub forwarded_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub status: Option<u16>,
    pub executed: Option<bool>,
    pub outcome: Option<Outcome>,
    pub words: Option<String>,
    pub detail: Option<Value>,
    pub answer: Option<Redacted>,
    pub answer_digest: Option<Arc<str>>,
    pub before: Option<Redacted>,
    pub changed: Option<Redacted>,
    pub value_tokens: Vec<String>,
}

impl Entry {
    /// An entry of a kind with nothing else said yet.
    pub fn new(kind: Kind) -> Self {
        Self {
            kind: Some(kind),
            ..Self::default()
        }
    }
}
