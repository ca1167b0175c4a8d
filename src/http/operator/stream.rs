//! `/v1/approvals/stream`: the approvals as they come and go, as server-sent events (the WHATWG's HTML standard, section 9.2).
//! Who opens one is recorded. It ends when the gateway stops, when its key is no longer in force, and when it is not read.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    response::Response,
};
use futures::stream;
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;
use serde_json::json;
use tokio::sync::mpsc;
use utoipa::IntoParams;

use super::{allow, identify};
use crate::{
    app::App,
    delivery::{Filter, Following, Opening},
    entry::{Entry, Kind},
    http::{input, openapi::schemas},
    policy::{OperatorAction, OperatorContext},
    reason::{Reason, Refusal},
};

/// How often something is sent, so that whatever stands in between keeps the connection.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often it is asked whether the stream may go on.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Events that may wait for a reader …
const UNREAD: usize = 64;
/// … and how long a full queue may stay full.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Wanted {
    /// Only approvals that wait, or waited, in this tier.
    #[param(inline, value_type = Option<schemas::Name>)]
    tier: Option<String>,
    /// Only calls of this agent.
    #[param(inline, value_type = Option<schemas::Name>)]
    agent: Option<String>,
    /// Only calls of this tool.
    #[param(inline, value_type = Option<schemas::Name>)]
    tool: Option<String>,
}

/// Follows the approvals
///
/// Server-sent events, without arguments: `open` first, then each as it comes. After `missed`, list what waits again. `end` says why
/// the stream is over.
#[utoipa::path(get, path = "/v1/approvals/stream", operation_id = "follow_approvals", tag = "approvals",
    params(Wanted, ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event that was seen: what came after it is told first.")),
    responses((status = 200, description = "Events without an end.", body = String, content_type = "text/event-stream"),
        (status = 429, description = "See the codes.")))]
pub(in crate::http) async fn follow(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refusal> {
    let operator = identify(&app, &headers)?;
    allow(
        &app,
        &operator,
        OperatorAction::ReadApprovals,
        OperatorContext::Empty,
    )?;
    let wanted = input::query(wanted)?;
    let from = match headers.get("last-event-id") {
        None => None,
        Some(value) => Some(value.to_str().map_err(|_not_ascii| forged())?),
    };
    let detail = json!({
        "tier": wanted.tier, "agent": wanted.agent, "tool": wanted.tool, "resumed": from.is_some(),
    });
    let filter = Filter {
        tier: wanted.tier,
        agent: wanted.agent,
        tool: wanted.tool,
    };
    let following = app
        .delivery
        .follow(&operator, from.filter(|id| !id.is_empty()), filter)
        .await
        .map_err(|error| match error {
            Opening::Forged => forged(),
            Opening::TooMany => Refusal::new(
                Reason::RateLimited,
                "As many streams are open as may be: 8 of one operator, 64 of all. Close one first.",
            )
            .retry_after(10),
            Opening::Away(error) => {
                tracing::warn!(%error, "the approvals cannot be followed");
                Refusal::record_unavailable()
            }
        })?;
    let entry = Entry {
        operator: Some(Arc::clone(&operator)),
        detail: Some(detail),
        ..Entry::new(Kind::StreamOpened)
    };
    app.recorder
        .commit(entry)
        .await
        .map_err(|_unrecorded| Refusal::record_unavailable())?;
    let (lines, unread) = mpsc::channel(UNREAD);
    app.tasks
        .spawn(tell(Arc::clone(&app), operator, headers, following, lines));
    let body = stream::unfold(unread, |mut unread| async move {
        let line = unread.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(line), unread))
    });
    let mut response = Response::new(Body::from_stream(body));
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Ok(response)
}

fn forged() -> Refusal {
    Refusal::new(
        Reason::MalformedBody,
        "Last-Event-ID is none that this gateway gave to you. Leave it out and list what waits: GET /v1/approvals?state=pending.",
    )
}

/// Writes to one reader until it goes, cannot keep up, or may not go on.
async fn tell(
    app: Arc<App>,
    operator: Arc<str>,
    headers: HeaderMap,
    mut following: Following,
    lines: mpsc::Sender<Bytes>,
) {
    let opening = if following.missed {
        event(
            "missed",
            &following.place(),
            r#"{"detail":"Some events before this are not told any more. List what waits: GET /v1/approvals?state=pending."}"#,
        )
    } else {
        event("open", &following.place(), "{}")
    };
    let mut next = Some(Bytes::from(format!("retry: 2000\n{opening}")));
    let mut looks = tokio::time::interval(LOOK_EVERY);
    let mut heartbeats = tokio::time::interval(HEARTBEAT);
    loop {
        // A reader that is too slow is dropped: it comes back with its Last-Event-ID.
        if let Some(line) = next.take()
            && lines.send_timeout(line, PATIENCE).await.is_err()
        {
            return;
        }
        tokio::select! {
            () = lines.closed() => return,
            shown = following.next() => match shown {
                Some(shown) => next = Some(event(&shown.kind, &shown.id, &shown.json).into()),
                // It fell too far behind. It comes back, and learns what it missed.
                None => return,
            },
            _ = looks.tick() => {
                if let Some(why) = over(&app, &operator, &headers) {
                    let _ = lines.try_send(event("end", &following.place(), &json!({"detail": why}).to_string()).into());
                    return;
                }
            }
            _ = heartbeats.tick() => next = Some(Bytes::from_static(b": still here\n\n")),
        }
    }
}

/// Why a stream may not go on.
fn over(app: &App, operator: &Arc<str>, headers: &HeaderMap) -> Option<&'static str> {
    if app.stopping.load(Ordering::Acquire) {
        return Some("The gateway stops. Come back with Last-Event-ID.");
    }
    let still = identify(app, headers).is_ok_and(|name| name == *operator);
    (!still).then_some("The key of this stream is no longer in force.")
}

/// None of the three holds a line break: ids and kinds are the gateway's own, data is JSON.
fn event(kind: &str, id: &str, data: &str) -> String {
    format!("id: {id}\nevent: {kind}\ndata: {data}\n\n")
}
