//! What the caller of a kept call gets: the call's own answer if it ends while they wait, else how it stands, in words that nobody
//! can mistake.

use std::time::Duration;

use http::{HeaderValue, StatusCode, header};
use serde_json::json;

use super::{Kept, Reply, Standing, Surface, ToolCall, park::standing};
use crate::{
    app::App,
    ids::{ApprovalId, CallId},
    reason::{Reason, Refusal},
    store,
};

/// What the caller gets: the call's own answer if it ends while they wait, else how it stands.
pub(super) async fn reply(app: &App, call: &ToolCall, mut kept: Kept) -> Reply {
    // A preference (RFC 7240): an agent that holds as many connections as it may is answered at once.
    if let Some(seconds) = call.prefer.wait_seconds
        && !kept.standing.is_over()
        && let Some(_holding) = app.waiters.hold(&call.caller.agent.name)
    {
        kept = wait(app, kept, Duration::from_secs(seconds)).await;
    }
    let (executed_by, is_replayed) = (kept.executed_by, kept.call != call.id);
    let mut reply = tell(kept, call.surface, call.prefer.respond_async);
    if let Some(whose) = executed_by {
        reply = reply.with(EXECUTED_BY, HeaderValue::from_static(whose));
    }
    if is_replayed {
        // The answer of an earlier call, for the same request.
        reply = reply.with(REPLAYED, HeaderValue::from_static("true"));
    }
    reply
}

const EXECUTED_BY: http::HeaderName = http::HeaderName::from_static("toolgate-executed-by");
const REPLAYED: http::HeaderName = http::HeaderName::from_static("idempotency-replayed");

async fn wait(app: &App, mut kept: Kept, patience: Duration) -> Kept {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let waiting = app.waiters.on(&kept.call);
        let notified = waiting.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        // Looked at after enlisting, so that an end in between is not missed.
        let looked = look(app, &kept.call).await;
        let is_away = looked.is_none();
        kept = looked.unwrap_or(kept);
        let is_over = kept.standing.is_over() || is_away;
        if is_over || tokio::time::timeout_at(deadline, notified).await.is_err() {
            app.waiters.forget(&kept.call, &waiting);
            return kept;
        }
    }
}

pub(super) async fn look(app: &App, call: &CallId) -> Option<Kept> {
    let mut connection = app.pool.acquire().await.ok()?;
    let row = store::calls::find(&mut connection, call.as_str())
        .await
        .ok()??;
    standing(app, row).ok()
}

fn tell(kept: Kept, surface: Surface, respond_async: bool) -> Reply {
    let call = kept.call;
    let location = format!("/v1/calls/{call}");
    match kept.standing {
        Standing::Completed(answer) => Reply::answered(*answer, surface, &call, kept.executed_by),
        Standing::Ended(refusal) => Reply::refused(&refusal, &call),
        Standing::Parked { approval: None } if respond_async => {
            accepted(&call, &location, "parked", None, WAITS_FOR_HAND)
        }
        Standing::Parked { approval: None } => {
            let mut refusal = Refusal::new(
                Reason::ByHand,
                format!("{WAITS_FOR_HAND} Ask GET {location} for its state and answer."),
            )
            .retry_after(10);
            refusal.call = Some(call.clone());
            Reply::refused(&refusal, &call)
        }
        Standing::ByHand => {
            let mut refusal = Refusal::new(
                Reason::ByHand,
                format!("An operator is doing this call by hand; it has no answer yet. Do not make it again: ask GET {location}."),
            )
            .retry_after(10);
            refusal.call = Some(call.clone());
            refusal.executed = None;
            Reply::refused(&refusal, &call)
        }
        Standing::Parked { approval } if respond_async => accepted(
            &call,
            &location,
            "parked",
            approval.as_ref(),
            "NOT executed. The call waits for a person's approval and will be executed by the gateway when it is given. Ask Location for its state; do not make the call again.",
        ),
        Standing::Parked { approval } => {
            let mut refusal = Refusal::new(
                Reason::ApprovalRequired,
                format!("NOT executed. The call waits for a person's approval; the gateway will execute it when that is given. Ask GET {location} for its state and answer."),
            )
            .retry_after(10);
            refusal.approval = approval;
            refusal.call = Some(call.clone());
            Reply::refused(&refusal, &call)
        }
        Standing::Executing if respond_async => accepted(
            &call,
            &location,
            "executing",
            None,
            "The call is being executed and has no answer yet. Ask Location for its state; do not make the call again.",
        ),
        Standing::Executing => {
            let mut refusal = Refusal::new(
                Reason::Conflict,
                format!("This call is being executed and has no answer yet. Do not make it again: ask GET {location}."),
            )
            .retry_after(1);
            refusal.call = Some(call.clone());
            refusal.executed = None;
            Reply::refused(&refusal, &call)
        }
    }
}

/// What an agent is told of a call on the work list.
pub(crate) const WAITS_FOR_HAND: &str = "NOT executed. An operator has halted this, and the call waits on a list to be done by hand, or to be executed by the gateway when the halt is released. Do not make it again.";

fn accepted(
    call: &CallId,
    location: &str,
    state: &str,
    approval: Option<&ApprovalId>,
    words: &str,
) -> Reply {
    let body = json!({
        "call": call,
        "state": state,
        "executed": false,
        "approval": approval,
        "detail": words,
    });
    let reply = Reply::json(StatusCode::ACCEPTED, &body, call)
        .with(header::RETRY_AFTER, HeaderValue::from_static("10"))
        .with(
            http::HeaderName::from_static("preference-applied"),
            HeaderValue::from_static("respond-async"),
        );
    match HeaderValue::from_str(location) {
        Ok(location) => reply.with(header::LOCATION, location),
        Err(_) => reply,
    }
}
