//! Why something was refused: the one enum behind problem codes, audit reasons and metric labels.

use serde_json::Value;

use crate::ids::{ApprovalId, CallId, KillSwitchId};

/// Why a call or an operator's request was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// No credential that opens this listener, or a run that the caller does not have.
    Unauthenticated,
    /// No contract for this tool, method and path.
    UnknownTool,
    /// The arguments do not fit the contract.
    InvalidArguments,
    /// The request could not be read.
    MalformedBody,
    /// A body in a format that the contract does not take.
    UnsupportedMediaType,
    /// A body larger than the contract's limit.
    BodyTooLarge,
    /// The tool's scope is not among the agent's and the run's.
    ScopeMissing,
    /// The policies deny it.
    DeniedByPolicy,
    /// Nobody decides on what they or their own run asked for.
    SelfApproval,
    /// It waits for people.
    ApprovalRequired,
    /// People said no.
    ApprovalDenied,
    /// Nobody said yes in time.
    ApprovalExpired,
    /// What was approved no longer holds.
    ApprovalVoided,
    /// It waits to be done by hand.
    ByHand,
    /// An operator says that it was not executed and will not be.
    NotExecuted,
    /// A kill switch covers it.
    Halted,
    /// The record could not be committed.
    RecordUnavailable,
    /// The API could not be reached; nothing was sent.
    UpstreamUnreachable,
    /// The API did not answer in time; what it did is not known.
    UpstreamTimeout,
    /// The API answered what its contract does not allow.
    UpstreamAnswerInvalid,
    /// The state before could not be read, and the contract wants it.
    StateBeforeUnavailable,
    /// What approvers are to see of what the call will touch could not be read.
    PreviewUnavailable,
    /// Sent, and the answer is lost.
    Indeterminate,
    /// The decision was made on something else than what stands now.
    StaleDigest,
    /// No such thing, or not for this caller.
    NotFound,
    /// It is not in a state in which this can be done.
    Conflict,
    /// An idempotency key that belongs to another request.
    IdempotencyKeyReused,
    /// Too much at a time.
    RateLimited,
    /// A fault of the gateway's own.
    Internal,
}

impl Reason {
    /// Every reason.
    pub const ALL: [Self; 29] = [
        Self::Unauthenticated,
        Self::UnknownTool,
        Self::InvalidArguments,
        Self::MalformedBody,
        Self::UnsupportedMediaType,
        Self::BodyTooLarge,
        Self::ScopeMissing,
        Self::DeniedByPolicy,
        Self::SelfApproval,
        Self::ApprovalRequired,
        Self::ApprovalDenied,
        Self::ApprovalExpired,
        Self::ApprovalVoided,
        Self::ByHand,
        Self::NotExecuted,
        Self::Halted,
        Self::RecordUnavailable,
        Self::UpstreamUnreachable,
        Self::UpstreamTimeout,
        Self::UpstreamAnswerInvalid,
        Self::StateBeforeUnavailable,
        Self::PreviewUnavailable,
        Self::Indeterminate,
        Self::StaleDigest,
        Self::NotFound,
        Self::Conflict,
        Self::IdempotencyKeyReused,
        Self::RateLimited,
        Self::Internal,
    ];

    /// The stable code in problem documents, audit rows and labels.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unauthenticated => "unauthenticated",
            Self::UnknownTool => "unknown_tool",
            Self::InvalidArguments => "invalid_arguments",
            Self::MalformedBody => "malformed_body",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::BodyTooLarge => "body_too_large",
            Self::ScopeMissing => "scope_missing",
            Self::DeniedByPolicy => "denied_by_policy",
            Self::SelfApproval => "self_approval",
            Self::ApprovalRequired => "approval_required",
            Self::ApprovalDenied => "approval_denied",
            Self::ApprovalExpired => "approval_expired",
            Self::ApprovalVoided => "approval_voided",
            Self::ByHand => "by_hand",
            Self::NotExecuted => "not_executed",
            Self::Halted => "halted",
            Self::RecordUnavailable => "record_unavailable",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::UpstreamAnswerInvalid => "upstream_answer_invalid",
            Self::StateBeforeUnavailable => "state_before_unavailable",
            Self::PreviewUnavailable => "preview_unavailable",
            Self::Indeterminate => "indeterminate",
            Self::StaleDigest => "stale_digest",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::RateLimited => "rate_limited",
            Self::Internal => "internal",
        }
    }

    /// The reason of a code that was kept in the database.
    pub fn from_code(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.code() == code)
    }
}

/// One argument that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FieldError {
    /// JSON Pointer (RFC 6901) into the arguments.
    pub pointer: String,
    /// What is wrong, without the value.
    pub message: String,
}

/// A refusal as the caller may know it. What only the log may know goes to the log where it happens. Boxed, because
/// nearly every step returns one and nearly no call has one.
#[derive(Debug, Clone)]
#[must_use]
pub struct Refusal(Box<Grounds>);

impl std::ops::Deref for Refusal {
    type Target = Grounds;

    fn deref(&self) -> &Grounds {
        &self.0
    }
}

impl std::ops::DerefMut for Refusal {
    fn deref_mut(&mut self) -> &mut Grounds {
        &mut self.0
    }
}

/// What a refusal says.
#[derive(Debug, Clone)]
pub struct Grounds {
    /// Why.
    pub reason: Reason,
    /// What happened and what to do next, in words.
    pub detail: String,
    /// Arguments that do not fit.
    pub errors: Vec<FieldError>,
    /// Ids of the policies that decided.
    pub policies: Vec<String>,
    /// The approval that the call waits for.
    pub approval: Option<ApprovalId>,
    /// The call that an earlier identical request began.
    pub call: Option<CallId>,
    /// The kill switch that stopped it.
    pub kill_switch: Option<KillSwitchId>,
    /// Whether the API executed the call: `None` where nobody knows.
    pub executed: Option<bool>,
    /// After how many seconds trying again makes sense.
    pub retry_after_seconds: Option<u64>,
    /// Methods that the path has, for a wrong one.
    pub allow: Vec<String>,
    /// What the audit row says instead of `reason`, where whoever is refused must not learn why.
    pub recorded_as: Option<Reason>,
    /// More for the audit row, already free of sensitive values.
    pub audit_detail: Option<Value>,
}

impl Refusal {
    /// A refusal of something that was certainly not executed.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self(Box::new(Grounds {
            reason,
            detail: detail.into(),
            errors: Vec::new(),
            policies: Vec::new(),
            approval: None,
            call: None,
            kill_switch: None,
            executed: Some(false),
            retry_after_seconds: None,
            allow: Vec::new(),
            recorded_as: None,
            audit_detail: None,
        }))
    }

    /// Says when to try again.
    pub fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// The refusal of a call whose record cannot be committed.
    pub fn record_unavailable() -> Self {
        Self::new(
            Reason::RecordUnavailable,
            "The gateway's records are not available, and nothing is done without a record. Nothing was sent; try again later.",
        )
        .retry_after(2)
    }
}
