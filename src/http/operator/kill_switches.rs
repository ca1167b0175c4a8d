//! `/v1/kill-switches`: stop at one request, with or without the database; resume only with a record.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use futures::FutureExt as _;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{ToSchema, openapi::Object};

use super::{Because, allow, identify, reading, reason};
use crate::{
    app::App,
    audit::ActError,
    clock::{self, Timestamp as DateTime},
    entry::{Entry, Kind},
    http::{
        input::{self, Named},
        openapi::schemas,
    },
    ids::KillSwitchId,
    killswitch::{KillSwitch, Scope},
    policy::{OperatorAction, OperatorContext},
    reason::{Reason, Refusal},
    store, workers,
};

/// What is to be halted, and why.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Pulling {
    scope: HaltScope,
    /// Why, in words; it is kept, shown and recorded.
    #[schema(min_length = 1, max_length = 2000)]
    reason: String,
}

/// What a halt covers.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct HaltScope {
    #[schema(schema_with = kinds)]
    kind: String,
    /// Which one; nothing with `everything`.
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
}

fn kinds() -> Object {
    schemas::one_of(["everything", "api", "tool", "consequence", "agent", "run"])
}

impl From<&Scope> for HaltScope {
    fn from(scope: &Scope) -> Self {
        Self {
            kind: scope.kind().to_owned(),
            id: scope.id().map(str::to_owned),
        }
    }
}

/// A halt that holds.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Halt {
    #[schema(value_type = String)]
    kill_switch: KillSwitchId,
    scope: HaltScope,
    reason: String,
    /// Who pulled it.
    #[schema(value_type = String)]
    operator: Arc<str>,
    pulled_at: DateTime,
    /// Just pulled: whether the database has it. Else its record follows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    recorded: Option<bool>,
    /// Just pulled: whether it holds over a restart.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    kept: Option<bool>,
}

/// Everything that is halted, in one page.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Halts {
    data: Vec<Halt>,
    /// Never.
    has_more: bool,
}

/// A halt that is over.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Released {
    #[schema(value_type = String)]
    kill_switch: KillSwitchId,
    scope: HaltScope,
    released_at: DateTime,
}

/// Lists what is halted
///
/// Also while the database is away; the record of who looked follows then.
#[utoipa::path(get, path = "/v1/kill-switches", operation_id = "list_kill_switches", tag = "kill switches",
    responses((status = 200, description = "Everything that is halted.", body = Halts)))]
pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Json<Halts>, Refusal> {
    let operator = identify(&app, &headers)?;
    allow(
        &app,
        &operator,
        OperatorAction::ReadKillSwitches,
        OperatorContext::Empty,
    )?;
    let data: Vec<Halt> = app.kill_switches.all().iter().map(Halt::from).collect();
    reading::noted(
        &app,
        &operator,
        "GET /v1/kill-switches",
        json!({"rows": data.len()}),
    )
    .await?;
    Ok(Json(Halts {
        data,
        has_more: false,
    }))
}

impl From<&KillSwitch> for Halt {
    fn from(kill_switch: &KillSwitch) -> Self {
        Self {
            kill_switch: kill_switch.id.clone(),
            scope: HaltScope::from(&kill_switch.scope),
            reason: kill_switch.reason.clone(),
            operator: Arc::clone(&kill_switch.operator),
            pulled_at: kill_switch.pulled_at,
            recorded: None,
            kept: None,
        }
    }
}

/// Halts calls
///
/// Once this has been answered, nothing that it covers is sent, with or without the database.
#[utoipa::path(post, path = "/v1/kill-switches", operation_id = "halt", tag = "kill switches",
    request_body(content = Pulling, example = json!({"scope": {"kind": "tool", "id": "desk.refunds.create"}, "reason": "refunds go to the wrong account"})),
    responses((status = 201, description = "It holds.", body = Halt)))]
pub(in crate::http) async fn pull(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let operator = identify(&app, &headers)?;
    let pulling: Pulling =
        input::json(&headers, body, app.config.limits.client_read_timeout).await?;
    let reason = reason(&app, &pulling.reason)?;
    let refused = |detail: String| {
        Refusal::new(
            Reason::MalformedBody,
            format!("{detail}. Nothing was halted."),
        )
    };
    let scope = Scope::parse(&pulling.scope.kind, pulling.scope.id.as_deref()).map_err(refused)?;
    let scope = known(&app, scope).await.map_err(refused)?;
    let context = OperatorContext::KillSwitch {
        kind: scope.kind(),
        id: scope.id().unwrap_or_default(),
    };
    allow(&app, &operator, OperatorAction::Halt, context)?;
    let kill_switch = KillSwitch {
        id: KillSwitchId::generate(),
        scope,
        reason,
        operator,
        pulled_at: clock::now(),
    };
    // From here on nothing it covers is sent; the record follows, now or when the database is back.
    app.kill_switches.pull(kill_switch.clone());
    tracing::warn!(
        kill_switch = %kill_switch.id,
        kind = kill_switch.scope.kind(),
        operator = %kill_switch.operator,
        "kill switch pulled"
    );
    // In a task of its own, so that an operator who hangs up does not take the record along.
    let keeping = tokio::spawn({
        let (app, kill_switch) = (Arc::clone(&app), kill_switch.clone());
        async move { keep(&app, kill_switch).await }
    });
    let (recorded, journaled) = keeping.await.unwrap_or_default();
    let body = Halt {
        recorded: Some(recorded),
        kept: Some(recorded || journaled),
        ..Halt::from(&kill_switch)
    };
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

/// Keeps a halt that holds already: in the journal, then in the database. Whether each has it.
async fn keep(app: &Arc<App>, kill_switch: KillSwitch) -> (bool, bool) {
    let journaled = match app.journal.clone() {
        None => false,
        Some(journal) => {
            let kept = kill_switch.clone();
            let written = tokio::task::spawn_blocking(move || journal.keep(&kept)).await;
            if let Ok(Err(error)) = &written {
                tracing::error!(%error, kill_switch = %kill_switch.id, "a halt could not be written to the journal");
            }
            matches!(written, Ok(Ok(())))
        }
    };
    let (entry, change) = workers::journal::record_of(&kill_switch);
    let recorded = app.recorder.settle(entry, Some(change)).await.is_ok();
    // Else the worker does so once the database has it.
    if recorded
        && let Some(journal) = &app.journal
        && let Err(error) = journal.forget(&kill_switch.id)
    {
        tracing::warn!(%error, kill_switch = %kill_switch.id, "a recorded halt stays in the journal for now");
    }
    (recorded, journaled)
}

/// How long to look for a run before it is halted unseen.
const LOOK_FOR_RUN: Duration = Duration::from_millis(500);

/// A halt of something that does not exist would stop nothing, and whoever pulled it would believe otherwise. Of a run
/// that cannot be looked for now it is not known: the halt must not wait for the database.
async fn known(app: &App, scope: Scope) -> Result<Scope, String> {
    let exists = match &scope {
        Scope::Everything | Scope::Consequence(_) => true,
        Scope::Api(id) => app.config.apis.contains_key(id),
        Scope::Tool(id) => app.tools.contains_key(&**id),
        Scope::Agent(id) => app.config.agents.contains_key(id),
        Scope::Run(id) => match id.parse() {
            Ok(run) => {
                let found = tokio::time::timeout(LOOK_FOR_RUN, app.runs.find(&run)).await;
                !matches!(found, Ok(Ok(None)))
            }
            Err(_not_an_id) => false,
        },
    };
    if exists {
        Ok(scope)
    } else {
        Err(format!(
            "there is no {} {:?}",
            scope.kind(),
            scope.id().unwrap_or_default()
        ))
    }
}

/// Lets go on what was halted
#[utoipa::path(delete, path = "/v1/kill-switches/{kill_switch}", operation_id = "resume", tag = "kill switches",
    params(("kill_switch" = String, Path, description = "The kill switch's id.")),
    request_body(content = Because, example = json!({"reason": "the account is mended"})),
    responses((status = 200, description = "It no longer holds.", body = Released)))]
pub(in crate::http) async fn release(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Released>, Refusal> {
    let operator = identify(&app, &headers)?;
    let because: Because =
        input::json(&headers, body, app.config.limits.client_read_timeout).await?;
    let reason = reason(&app, &because.reason)?;
    let unknown = || Refusal::new(Reason::NotFound, "No kill switch of this id is held.");
    let id: KillSwitchId = id.parse().map_err(|_not_an_id| unknown())?;
    let held = app
        .kill_switches
        .all()
        .into_iter()
        .find(|kill_switch| kill_switch.id == id)
        .ok_or_else(unknown)?;
    let context = OperatorContext::KillSwitch {
        kind: held.scope.kind(),
        id: held.scope.id().unwrap_or_default(),
    };
    allow(&app, &operator, OperatorAction::Resume, context)?;
    let now = clock::now();
    let task = tokio::spawn(let_go(Arc::clone(&app), id.clone(), operator, reason, now));
    match task.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, kill_switch = %id, "a kill switch could not be released");
            let mut refusal = Refusal::record_unavailable();
            "The release could not be recorded, so the halt still holds. Try again later."
                .clone_into(&mut refusal.detail);
            return Err(refusal);
        }
        Err(_panic) => {
            return Err(Refusal::new(
                Reason::Internal,
                "The gateway failed; the halt still holds.",
            ));
        }
    }
    Ok(Json(Released {
        kill_switch: id,
        scope: HaltScope::from(&held.scope),
        released_at: now,
    }))
}

/// The record first, then the memory: a halt that is not recorded as released still holds.
async fn let_go(
    app: Arc<App>,
    id: KillSwitchId,
    operator: Arc<str>,
    reason: String,
    now: clock::Timestamp,
) -> Result<(), ActError> {
    let kept = id.clone();
    app.recorder
        .act(move |connection| {
            async move {
                let released =
                    store::kill_switches::release(connection, &kept, &operator, &reason, now)
                        .await?;
                let entry = Entry {
                    kill_switch_id: Some(kept),
                    operator: Some(operator),
                    words: Some(reason),
                    decided_at: Some(now),
                    ..Entry::new(Kind::Resume)
                };
                // Released already where the answer of an earlier try was lost.
                Ok((if released { vec![entry] } else { Vec::new() }, ()))
            }
            .boxed()
        })
        .await?;
    app.kill_switches.release(&id);
    tracing::warn!(kill_switch = %id, "kill switch released");
    if let Err(error) = workers::resume_approved::turn(Arc::clone(&app)).await {
        tracing::warn!(%error, "approved calls go on with the next turn");
    }
    Ok(())
}
