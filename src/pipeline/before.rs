//! The state before: where a contract names a read, it is made just before the call is sent, as a call of its own through the
//! same steps, and what it found stands in the intent.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    Prefer, Surface, ToolCall,
    authorize::{self, Earned, Verdict},
    contract,
    forward::{self, Received},
    record::{self, Begun, Trail},
    seen::Seen,
};
use crate::{
    app::App,
    clock,
    contracts::{Before, OnFailure},
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
    match attempt(app, call, wanted, id.clone()).await {
        Ok((status, seen)) => {
            let state = seen.answer.as_ref().map_or("null", Redacted::as_json);
            let tokens = seen.answer.as_ref().map_or(&[][..], Redacted::tokens);
            let parts = [
                ("call", &*json!(id).to_string()),
                ("state", state),
                ("status", &status.to_string()),
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
                    "The contract wants the state before to be read, and {} (call {id}) brought no answer: {}. The call itself was not sent.",
                    wanted.tool,
                    refusal.reason.code()
                ),
            )
            .retry_after(5);
            because.audit_detail = Some(json!({ "before": id, "why": refusal.reason.code() }));
            Err(because)
        }
    }
}

async fn attempt(
    app: &Arc<App>,
    call: &ToolCall,
    wanted: &Before,
    id: CallId,
) -> Result<(u16, Seen), Refusal> {
    let reading = the_read(app, call, wanted, id)?;
    let mut trail = Trail::resumed(&reading);
    trail.arguments = Some(reading.redacted.clone());
    match steps(app, reading, &mut trail).await {
        Ok(found) => Ok(found),
        // What was begun has its outcome; what was not is recorded as refused.
        Err(Stopped::Begun(refusal)) => Err(refusal),
        Err(Stopped::Refused(refusal)) => Err(record::refusal(app, &trail, refusal).await),
    }
}

enum Stopped {
    Refused(Refusal),
    Begun(Refusal),
}

async fn steps(
    app: &Arc<App>,
    reading: ToolCall,
    trail: &mut Trail,
) -> Result<(u16, Seen), Stopped> {
    let internal = || {
        Refusal::new(
            Reason::Internal,
            "The read before came to something that it cannot come to. Nothing was sent.",
        )
    };
    let permit = match authorize::authorize(app, reading, &Earned::none(), trail) {
        Ok(Verdict::Permit(permit)) => permit,
        Ok(Verdict::Park(_)) => {
            return Err(Stopped::Refused(Refusal::new(
                Reason::ApprovalRequired,
                "The read before would need an approval of its own, which it cannot wait for.",
            )));
        }
        Ok(Verdict::ByHand(by_hand)) => {
            return Err(Stopped::Refused(authorize::halted(by_hand.kill_switch)));
        }
        Err(refusal) => return Err(Stopped::Refused(refusal)),
    };
    let recorded = match record::intent(app, permit, None).await {
        Ok(Begun::Now(recorded)) => recorded,
        Ok(Begun::Before(..)) => return Err(Stopped::Refused(internal())),
        Err(refusal) => return Err(Stopped::Refused(refusal)),
    };
    let exchange = forward::forward(app, recorded).await;
    match record::outcome(app, exchange).await.received {
        Received::Whole(answer) => Ok((answer.status.as_u16(), answer.seen)),
        Received::Failed { refusal, .. } => Err(Stopped::Begun(refusal)),
        Received::Stream { .. } => Err(Stopped::Begun(internal())),
    }
}

/// The read as a call of the same agent in the same run.
fn the_read(app: &App, call: &ToolCall, wanted: &Before, id: CallId) -> Result<ToolCall, Refusal> {
    let tool = app.tools.get(&wanted.tool).cloned().ok_or_else(|| {
        Refusal::new(
            Reason::UnknownTool,
            "The tool that reads the state before does not exist.",
        )
    })?;
    let arguments: Value = wanted.arguments_from(&call.arguments);
    tool.contract
        .validate(&arguments)
        .map_err(contract::invalid)?;
    let format = tool.contract.body_formats().first().copied();
    let request = contract::build(&tool, &arguments, format)?;
    let digest = contract::digest(app, &call.caller, &tool, &arguments);
    // The read's own contract may not mark what the call's does.
    let taken = wanted
        .arguments
        .iter()
        .map(|(name, pointer)| (name.as_str(), pointer.as_str()));
    let marks = tool.marks.with_those_of(&call.tool.marks, taken);
    let redacted = app.redactor.redact(&marks, &arguments);
    Ok(ToolCall {
        id,
        surface: Surface::Before,
        caller: call.caller.clone(),
        tool,
        arguments,
        format,
        request,
        redacted,
        digest,
        words: None,
        idempotency_key: None,
        before_of: Some(call.id.clone()),
        prefer: Prefer::default(),
        traceparent: call.traceparent.clone(),
        received_at: clock::now(),
    })
}
