//! `/v1/tools` and `/v1/calls`: calling a tool by its name, and asking what became of a call.

use std::{panic::AssertUnwindSafe, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::Request,
    response::{IntoResponse, Response},
};
use futures::FutureExt as _;
use http::HeaderMap;
use serde_json::{Value, json};

use super::{Peer, input::Named};
use crate::{
    app::App,
    clock,
    ids::CallId,
    pipeline::{self, Arrival, Reply, Standing, Surface, Wanted},
    reason::{Reason, Refusal},
    store::{self, StoreError},
};

/// Runs a call in a task of its own: an agent that hangs up does not stop what was begun.
pub(super) async fn run(app: Arc<App>, arrival: Arrival) -> Reply {
    let call = arrival.call.clone();
    let faulty = |call: &CallId| {
        let mut refusal = Refusal::new(
            Reason::Internal,
            "The gateway failed on this call. Ask GET /v1/calls/{call} what became of it before you repeat it; tell an operator.",
        );
        refusal.executed = None;
        Reply::refused(&refusal, call)
    };
    let task = app
        .tasks
        .spawn(AssertUnwindSafe(pipeline::handle(Arc::clone(&app), arrival)).catch_unwind());
    match task.await {
        Ok(Ok(reply)) => reply,
        _ => {
            tracing::error!(%call, "a call ended in a panic");
            faulty(&call)
        }
    }
}

pub(super) async fn call(
    State(app): State<Arc<App>>,
    Named(tool): Named,
    request: Request<Body>,
) -> Response {
    let (parts, body) = request.into_parts();
    let arrival = Arrival {
        call: CallId::generate(),
        received_at: clock::now(),
        surface: Surface::ToolCall,
        wanted: Wanted::Tool { name: tool },
        headers: parts.headers,
        body,
        source: parts.extensions.get::<Peer>().map(|peer| peer.0),
    };
    run(app, arrival).await.into_response()
}

/// The tools that the caller's scopes let it use, with their schemas.
pub(super) async fn tools(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let agent = pipeline::agent(&app, &headers, clock::now())?;
    let data: Vec<Value> = app
        .catalog
        .iter()
        .filter(|contract| agent.scopes.contains(contract.scope.as_str()))
        .map(|contract| {
            json!({
                "name": contract.name,
                "description": contract.description,
                "api": contract.api,
                "method": contract.method.as_str(),
                "path": format!("/{}{}", contract.api, contract.path),
                "scope": contract.scope,
                "consequence": contract.consequence,
                "contract": contract.digest,
                "input": contract.input,
                "output": app.tools.get(&contract.name).and_then(|tool| tool.shown_output.as_ref()),
            })
        })
        .collect();
    Ok(Json(json!({ "data": data, "has_more": false })))
}

/// What became of a call, for the agent that made it.
pub(super) async fn state(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let agent = pipeline::agent(&app, &headers, clock::now())?;
    let unknown = || Refusal::new(Reason::NotFound, "This agent has made no call of this id.");
    let call: CallId = id.parse().map_err(|_not_an_id| unknown())?;
    let away = |error: StoreError| {
        tracing::warn!(%error, "a call could not be looked up");
        Refusal::record_unavailable()
    };
    let mut connection = app
        .pool
        .acquire()
        .await
        .map_err(|error| away(error.into()))?;
    let kept = store::calls::find(&mut connection, call.as_str())
        .await
        .map_err(away)?;
    if let Some(row) = kept {
        if *row.agent != *agent.name {
            return Err(unknown());
        }
        let kept = pipeline::standing(&app, row)?;
        return Ok(Json(kept_state(&kept)));
    }
    let row = store::audit::call(&mut connection, call.as_str(), &agent.name)
        .await
        .map_err(away)?
        .ok_or_else(unknown)?;
    let refused = row.decision.as_deref() == Some("deny");
    let codes = row.reasons.unwrap_or_default();
    Ok(Json(json!({
        "call": call,
        "state": row.outcome.as_deref().unwrap_or("executing"),
        "executed": if refused { Some(false) } else { row.executed },
        "approval": null,
        "status": row.status,
        "result": null,
        "code": codes.last(),
        "detail": "The answer was given when the call was made and is not kept; send an Idempotency-Key to have it kept.",
    })))
}

fn kept_state(kept: &pipeline::Kept) -> Value {
    let mut state = json!({
        "call": kept.call,
        "state": kept.state,
        "executed": kept.executed,
        "approval": kept.approval,
        "status": null,
        "result": null,
    });
    let more = match &kept.standing {
        Standing::Completed(answer) => json!({
            "status": answer.status.as_u16(),
            "result": pipeline::answer::result_of(answer),
        }),
        Standing::Ended(refusal) => json!({
            "code": refusal.reason.code(),
            "detail": refusal.detail,
        }),
        Standing::Parked { approval: None } => json!({ "detail": pipeline::WAITS_FOR_HAND }),
        Standing::Parked { .. } => json!({
            "detail": "NOT executed. The call waits for a person's approval; the gateway will execute it when that is given. Do not make it again.",
        }),
        Standing::ByHand => json!({
            "detail": "An operator is doing the call by hand; it has no answer yet. Do not make it again.",
        }),
        Standing::Executing => json!({
            "detail": "The call is being executed and has no answer yet. Do not make it again.",
        }),
    };
    if let (Some(state), Value::Object(more)) = (state.as_object_mut(), more) {
        state.extend(more);
        if let Some(whose) = kept.executed_by {
            state.insert("executed_by".to_owned(), json!(whose));
        }
    }
    state
}
