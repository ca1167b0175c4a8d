//! What is told of an intent that stands although its caller has been told that nothing was recorded and nothing sent.

use super::{Change, Queued};
use crate::{
    clock,
    entry::{Entry, Kind, Outcome},
    store::calls::Ending,
};

/// The outcome of an intent that was committed too late for its caller.
pub(super) fn not_sent(intent: &Entry) -> Queued {
    const WHY: &str = "The record came too late: the call was refused and not sent.";
    let entry = Entry {
        outcome: Some(Outcome::Failed),
        executed: Some(false),
        reasons: vec!["record_unavailable"],
        finished_at: Some(clock::now()),
        detail: Some(serde_json::json!({ "why": WHY })),
        call_id: intent.call_id.clone(),
        run_id: intent.run_id.clone(),
        agent: intent.agent.clone(),
        api: intent.api.clone(),
        tool: intent.tool.clone(),
        approval_id: intent.approval_id.clone(),
        ..Entry::new(Kind::Outcome)
    };
    // Of use for calls that are kept; the others have no row.
    let change = intent.call_id.clone().map(|call_id| {
        Change::Finish(Ending {
            call_id,
            outcome: Outcome::Failed,
            executed: Some(false),
            status: None,
            answer: None,
            code: Some("record_unavailable"),
            explanation: Some(WHY.to_owned()),
        })
    });
    Queued {
        entry,
        change,
        done: None,
    }
}
