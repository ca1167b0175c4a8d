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
use serde::Serialize;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::{input::Named, openapi::schemas, refused::source};
use crate::{
    app::App,
    call::Consequence,
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

/// A call of a tool.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the pipeline reads it; this is how it looks")]
struct ToolCalling {
    /// As the tool's `input` schema has them.
    arguments: Map<String, Value>,
    /// Why the call is made. Whoever approves it reads this.
    reason: Option<String>,
}

/// What became of a call.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the pipeline makes it; this is how it looks")]
struct CallAnswer {
    call: String,
    /// True: the API has executed it.
    executed: bool,
    /// The status with which the API answered.
    status: u16,
    /// The API's answer: JSON as it is, text as a string, other bytes as `{"base64": …}`.
    result: Value,
    /// Who did it instead of the gateway, where somebody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    executed_by: Option<String>,
}

/// A call that has no answer yet.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "the pipeline makes it; this is how it looks")]
struct CallAccepted {
    call: String,
    /// `parked` or `executing`.
    state: String,
    executed: bool,
    /// The approval that it waits for.
    #[schema(required)]
    approval: Option<String>,
    /// What happens next.
    detail: String,
}

/// Calls a tool
///
/// Any 4xx or 5xx says in `executed` whether the API has executed the call; `null` is that nobody knows.
#[utoipa::path(post, path = "/v1/tools/{tool}/calls", operation_id = "call_tool", tag = "tools",
    params(("tool" = String, Path, description = "The tool's name."),
        ("Toolgate-Run" = Option<String>, Header, description = "The run in which the call is made; without it, one that the gateway opens."),
        ("Idempotency-Key" = Option<String>, Header, description = "The same key gets the stored answer; another request under it is 422."),
        ("Prefer" = Option<String>, Header, description = "RFC 7240: `wait=N` holds the connection for up to N seconds while the call waits for people, `respond-async` is answered 202 then. Without it such a call is 403 `approval_required`.")),
    request_body(content = ToolCalling, example = json!({"arguments": {"customer": "c_1001", "amount_cents": 1200, "currency": "EUR"}, "reason": "double charge"})),
    responses(
        (status = 200, description = "The API has answered, with whatever status.", body = CallAnswer, headers(
            ("Toolgate-Call" = String, description = "The call."),
            ("Idempotency-Replayed" = String, description = "`true` where this is the stored answer of an earlier call."),
            ("Toolgate-Executed-By" = String, description = "Who did it instead of the gateway, where somebody did."))),
        (status = 202, description = "NOT executed yet: it waits for people, or is under way.", body = CallAccepted, headers(
            ("Toolgate-Call" = String, description = "The call."),
            ("Location" = String, description = "Where to ask what became of it."),
            ("Retry-After" = u64, description = "Seconds after which asking makes sense."),
            ("Preference-Applied" = String, description = "`respond-async`."),
            ("Idempotency-Replayed" = String, description = "`true` where the call is an earlier one."),
            ("Toolgate-Executed-By" = String, description = "Who does it instead of the gateway, where somebody does.")))))]
pub(super) async fn call(
    State(app): State<Arc<App>>,
    Named(tool): Named,
    request: Request<Body>,
) -> Response {
    let (parts, body) = request.into_parts();
    let arrival = Arrival {
        call: CallId::generate(),
        received_at: clock::now(),
        source: source(),
        surface: Surface::ToolCall,
        wanted: Wanted::Tool { name: tool },
        headers: parts.headers,
        body,
    };
    run(app, arrival).await.into_response()
}

/// What an agent may call.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tool {
    name: String,
    description: String,
    api: String,
    /// Of the API's own operation, which is also reached at `path`.
    method: String,
    path: String,
    scope: String,
    #[schema(schema_with = schemas::consequence)]
    consequence: Consequence,
    /// The digest of the contract as it stands.
    contract: String,
    /// JSON Schema 2020-12 of the arguments. `x-sensitivity` marks where a reference may stand.
    input: Value,
    /// JSON Schema 2020-12 of the answer, as far as the contract says anything of it.
    #[schema(required)]
    output: Option<Value>,
}

/// Everything that the caller may call, in one page.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Tools {
    data: Vec<Tool>,
    /// Never.
    has_more: bool,
}

/// Lists the tools that the caller's scopes let it use, with their schemas
#[utoipa::path(get, path = "/v1/tools", operation_id = "list_tools", tag = "tools",
    responses((status = 200, description = "The tools.", body = Tools)))]
pub(super) async fn tools(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Json<Tools>, Refusal> {
    let agent = pipeline::agent(&app, &headers, clock::now())?;
    let data = app
        .catalog
        .iter()
        .filter(|contract| agent.scopes.contains(contract.scope.as_str()))
        .map(|contract| {
            let tool = app.tools.get(&contract.name);
            Tool {
                name: contract.name.clone(),
                description: contract.description.clone(),
                api: contract.api.clone(),
                method: contract.method.as_str().to_owned(),
                path: format!("/{}{}", contract.api, contract.path),
                scope: contract.scope.clone(),
                consequence: contract.consequence,
                contract: contract.digest.clone(),
                input: contract.input.clone(),
                output: tool.and_then(|tool| tool.shown_output.clone()),
            }
        })
        .collect();
    Ok(Json(Tools {
        data,
        has_more: false,
    }))
}

/// How a call stands.
#[derive(Default, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CallState {
    call: String,
    /// `parked`, `executing`, or how it ended: `completed`, `failed`, `denied`, `expired`, `voided` or `indeterminate`.
    state: String,
    /// Whether the API has executed it; null where nobody knows, or not yet.
    #[schema(required)]
    executed: Option<bool>,
    /// The approval that it waits for, or waited for.
    #[schema(required)]
    approval: Option<String>,
    /// The status with which the API answered.
    #[schema(required)]
    status: Option<u16>,
    /// The API's answer: JSON as it is, text as a string, other bytes as `{"base64": …}`.
    result: Value,
    /// Why it was not executed, or has no answer: a problem code.
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    /// The same in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    detail: Option<String>,
    /// Who did it instead of the gateway, where somebody did.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    executed_by: Option<&'static str>,
}

/// Says what became of a call
///
/// To the agent that made it.
#[utoipa::path(get, path = "/v1/calls/{call}", operation_id = "call_state", tag = "tools",
    params(("call" = String, Path, description = "The call's id, as `Toolgate-Call` names it.")),
    responses((status = 200, description = "How it stands.", body = CallState)))]
pub(super) async fn state(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<CallState>, Refusal> {
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
    Ok(Json(CallState {
        call: call.as_str().to_owned(),
        state: row.outcome.unwrap_or("executing".to_owned()),
        executed: if refused { Some(false) } else { row.executed },
        status: row.status.and_then(|status| status.try_into().ok()),
        code: codes.last().cloned(),
        detail: Some("The answer was given when the call was made and is not kept; send an Idempotency-Key to have it kept.".to_owned()),
        ..CallState::default()
    }))
}

fn kept_state(kept: &pipeline::Kept) -> CallState {
    let state = CallState {
        call: kept.call.as_str().to_owned(),
        state: kept.state.clone(),
        executed: kept.executed,
        approval: kept.approval.clone(),
        executed_by: kept.executed_by,
        ..CallState::default()
    };
    let said = |detail: &str| Some(detail.to_owned());
    match &kept.standing {
        Standing::Completed(answer) => CallState {
            status: Some(answer.status.as_u16()),
            result: pipeline::answer::result_of(answer),
            ..state
        },
        Standing::Ended(refusal) => CallState {
            code: Some(refusal.reason.code().to_owned()),
            detail: Some(refusal.detail.clone()),
            ..state
        },
        Standing::Parked { approval: None } => CallState {
            detail: said(pipeline::WAITS_FOR_HAND),
            ..state
        },
        Standing::Parked { .. } => CallState {
            detail: said(
                "NOT executed. The call waits for a person's approval; the gateway will execute it when that is given. Do not make it again.",
            ),
            ..state
        },
        Standing::ByHand => CallState {
            detail: said(
                "An operator is doing the call by hand; it has no answer yet. Do not make it again.",
            ),
            ..state
        },
        Standing::Executing => CallState {
            detail: said("The call is being executed and has no answer yet. Do not make it again."),
            ..state
        },
    }
}
