//! The state before: where a contract names a read, it is made just before the call is sent, and what it found stands in the
//! intent.

use std::sync::Arc;

use serde_json::json;

use super::{Surface, ToolCall, reading};
use crate::{
    app::App,
    contracts::OnFailure,
    entry::Redacted,
    ids::CallId,
    reason::{Reason, Refusal},
};

/// Reads the state before, if the contract wants that. What it found, as it is recorded with the intent:
/// `{"call", "state", "status"}`, or `{"call", "unknown"}` with the reason.
///
/// # Errors
/// When there is no answer and the contract does not say to go on without one. Nothing was sent then.
pub(super) async fn read(app: &Arc<App>, call: &ToolCall) -> Result<Option<Redacted>, Refusal> {
    let Some(wanted) = &call.tool.contract.before else {
        return Ok(None);
    };
    let id = CallId::generate();
    let tool = &wanted.reading.tool;
    match reading::make(app, call, &wanted.reading, Surface::Before, id.clone()).await {
        Ok(answer) => {
            let seen = answer.seen;
            let state = seen.answer.as_ref().map_or("null", Redacted::as_json);
            let tokens = seen.answer.as_ref().map_or(&[][..], Redacted::tokens);
            let parts = [
                ("call", &*json!(id).to_string()),
                ("state", state),
                ("status", &answer.status.as_u16().to_string()),
            ];
            Ok(Some(Redacted::joined(&parts, tokens)))
        }
        Err(refusal) if wanted.on_failure == OnFailure::Proceed => {
            let parts = [
                ("call", &*json!(id).to_string()),
                ("unknown", &json!(refusal.reason.code()).to_string()),
            ];
            Ok(Some(Redacted::joined(&parts, &[])))
        }
        Err(refusal) if refusal.reason == Reason::Halted => Err(refusal),
        Err(refusal) => {
            let mut because = Refusal::new(
                Reason::StateBeforeUnavailable,
                format!(
                    "The contract wants the state before to be read, and {tool} (call {id}) brought no answer: {}. The call itself was not sent.",
                    refusal.reason.code()
                ),
            )
            .retry_after(5);
            because.audit_detail = Some(json!({ "before": id, "why": refusal.reason.code() }));
            Err(because)
        }
    }
}
