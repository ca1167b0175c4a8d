//! What the record says of how a call went.

use serde_json::{Value, json};

use crate::{entry::Outcome, ids::KillSwitchId, reason::Reason, upstream::StreamEnd};

use super::super::{forward::Received, seen::Seen};

/// What the record says of how a call went.
pub(super) struct Told {
    pub outcome: Outcome,
    pub executed: Option<bool>,
    pub status: Option<u16>,
    pub reasons: Vec<&'static str>,
    pub kill_switch: Option<KillSwitchId>,
    pub explanation: Option<String>,
    pub detail: Option<Value>,
    /// What the same request gets when it comes again.
    pub answer: Option<Vec<u8>>,
    /// What is recorded of the API's answer.
    pub seen: Seen,
}

impl Told {
    /// `kept` calls keep their answer for the same request to come; the others need no copy.
    pub fn of(received: &Received, kept: bool) -> Self {
        match received {
            Received::Whole(answer) => Self {
                outcome: Outcome::Completed,
                executed: Some(true),
                status: Some(answer.status.as_u16()),
                reasons: answer
                    .violation
                    .iter()
                    .map(|_| Reason::UpstreamAnswerInvalid.code())
                    .collect(),
                kill_switch: None,
                explanation: None,
                detail: answer.violation.clone(),
                answer: kept.then(|| answer.to_bytes()),
                seen: answer.seen.clone(),
            },
            Received::Failed {
                refusal,
                outcome,
                status,
                seen,
            } => Self {
                outcome: *outcome,
                executed: refusal.executed,
                status: *status,
                reasons: vec![refusal.reason.code()],
                kill_switch: refusal.kill_switch.clone(),
                explanation: Some(refusal.detail.clone()),
                detail: refusal.audit_detail.clone(),
                answer: None,
                seen: seen.clone(),
            },
            Received::Stream { status, .. } => {
                Self::of_stream(*status, &StreamEnd::DroppedByReader)
            }
        }
    }

    /// Adds how often it was tried, where that was more than once.
    pub fn with_tries(mut self, tries: Option<Value>) -> Self {
        if let Some(tries) = tries {
            let mut detail = match self.detail {
                Some(Value::Object(detail)) => detail,
                _ => serde_json::Map::new(),
            };
            detail.insert("tries".to_owned(), tries);
            self.detail = Some(Value::Object(detail));
        }
        self
    }

    pub fn of_stream(status: http::StatusCode, end: &StreamEnd) -> Self {
        let whole = *end == StreamEnd::Complete;
        let why = match end {
            StreamEnd::Complete => None,
            StreamEnd::Truncated(why) => {
                Some(json!({"why": format!("the answer broke off: {why}")}))
            }
            StreamEnd::DroppedByReader => {
                Some(json!({"why": "the agent went away before the end of the answer"}))
            }
        };
        Self {
            outcome: if whole {
                Outcome::Completed
            } else {
                Outcome::Indeterminate
            },
            executed: whole.then_some(true),
            status: Some(status.as_u16()),
            reasons: if whole {
                Vec::new()
            } else {
                vec![Reason::Indeterminate.code()]
            },
            kill_switch: None,
            explanation: None,
            detail: why,
            answer: None,
            seen: Seen::default(),
        }
    }
}
