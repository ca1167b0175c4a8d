//! A read that the gateway makes for another call: a call of the same agent in the same run, through the same steps, with entries
//! of its own.

use std::sync::Arc;

use serde_json::Value;

use super::{
    Prefer, Surface, ToolCall,
    authorize::{self, Earned, Verdict},
    contract,
    forward::{self, ApiAnswer, Received},
    record::{self, Begun, Trail},
};
use crate::{
    app::App,
    clock,
    contracts::Reading,
    ids::CallId,
    reason::{Reason, Refusal},
};

/// Makes the read under an id. `surface` says what for.
///
/// # Errors
/// Why there is no answer. Whatever that is, it is recorded of the read.
pub(super) async fn make(
    app: &Arc<App>,
    call: &ToolCall,
    wanted: &Reading,
    surface: Surface,
    id: CallId,
) -> Result<ApiAnswer, Refusal> {
    let reading = the_read(app, call, wanted, surface, id)?;
    let mut trail = Trail::resumed(&reading);
    trail.arguments = Some(reading.redacted.clone());
    match steps(app, reading, &mut trail).await {
        Ok(answer) => Ok(answer),
        // What was begun has its outcome; what was not is recorded as refused.
        Err(Stopped::Begun(refusal)) => Err(refusal),
        Err(Stopped::Refused(refusal)) => Err(record::refusal(app, &trail, refusal).await),
    }
}

enum Stopped {
    Refused(Refusal),
    Begun(Refusal),
}

async fn steps(app: &Arc<App>, reading: ToolCall, trail: &mut Trail) -> Result<ApiAnswer, Stopped> {
    let internal = || {
        Refusal::new(
            Reason::Internal,
            "The read came to something that it cannot come to. Nothing was sent.",
        )
    };
    let permit = match authorize::authorize(app, reading, &Earned::none(), trail) {
        Ok(Verdict::Permit(permit)) => permit,
        Ok(Verdict::Park(_)) => {
            return Err(Stopped::Refused(Refusal::new(
                Reason::ApprovalRequired,
                "The read would need an approval of its own, which it cannot wait for.",
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
        Received::Whole(answer) => Ok(answer),
        Received::Failed { refusal, .. } => Err(Stopped::Begun(refusal)),
        Received::Stream { .. } => Err(Stopped::Begun(internal())),
    }
}

/// The read as a call of the same agent in the same run.
fn the_read(
    app: &App,
    call: &ToolCall,
    wanted: &Reading,
    surface: Surface,
    id: CallId,
) -> Result<ToolCall, Refusal> {
    let tool = app.tools.get(&wanted.tool).cloned().ok_or_else(|| {
        Refusal::new(
            Reason::UnknownTool,
            "The tool that reads for this one does not exist.",
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
        surface,
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
