//! `/v1/runs` and `/v1/calls` for operators: what happened in a run, and to a call, from the records.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use http::HeaderMap;
use serde_json::{Map, Value, json};
use utoipa::ToSchema;

use super::{
    allow_reading, away,
    filter::RunsAsked,
    paging::{Page, Paging},
    reading::{told, told_of},
};
use crate::{
    app::App,
    clock::{Timestamp, Timestamp as DateTime},
    http::{
        input::{self, Named},
        openapi::dictionary,
    },
    ids::{CallId, RunId},
    reason::{Reason, Refusal},
    store::{
        StoreError,
        history::{self, RunFilter},
    },
};

/// Calls of a run that its timeline holds at the most. `GET /v1/audit/entries?run=` has them all.
const CALLS: i64 = 1_000;

/// A row of the view `audit.runs`.
pub(in crate::http) struct RunRecord;

/// A run with what happened in it.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = RunStory)]
#[expect(dead_code, reason = "PostgreSQL makes it; this is how it looks")]
pub(in crate::http) struct RunStory {
    run: RunRecord,
    /// Whether calls were left out of the timeline.
    has_more: bool,
    /// What happened, in order: each with `at` and `event`, and with what belongs to such an event.
    timeline: Vec<RunEvent>,
}

/// Something that happened in a run. Beside `at` and `event` it has, for a `call`, columns of `audit.calls`; for an
/// `approval_vote` who voted, how and why; for `halt` and `resume` a row of `audit.halts`.
#[derive(ToSchema)]
#[expect(dead_code, reason = "PostgreSQL makes it; this is how it looks")]
pub(in crate::http) struct RunEvent {
    at: DateTime,
    /// `run_opened`, `call`, `approval_vote`, `halt`, `resume` or `run_ended`.
    event: String,
}

/// A row of the view `audit.calls`.
pub(in crate::http) struct CallRecord;

/// A row of the view `audit.approvals`.
pub(in crate::http) struct ApprovalRecord;

/// A row of the view `audit.halts`.
pub(in crate::http) struct HaltRecord;

/// A call with all that is known of it.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "PostgreSQL makes it; this is how it looks")]
pub(in crate::http) struct CallStory {
    call: CallRecord,
    /// The approval that it waited for, if it did.
    #[schema(required)]
    approval: Option<ApprovalRecord>,
    /// The halt that stopped it, if one did.
    #[schema(required)]
    halt: Option<HaltRecord>,
    /// Its entries in order: columns of `audit.entries`, of what was parked also who was shown it.
    #[schema(required)]
    timeline: Option<Vec<Map<String, Value>>>,
}

dictionary::row_schema!(RunRecord, "audit.runs");
dictionary::row_schema!(CallRecord, "audit.calls");
dictionary::row_schema!(ApprovalRecord, "audit.approvals");
dictionary::row_schema!(HaltRecord, "audit.halts");

/// Tells the story of a call
#[utoipa::path(get, path = "/v1/calls/{call}", operation_id = "call_story", tag = "records",
    params(("call" = String, Path, description = "The call's id.")),
    responses((status = 200, description = "The call.", body = CallStory)))]
pub(in crate::http) async fn call(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let operator = allow_reading(&app, &headers).await?;
    let unknown = || Refusal::new(Reason::NotFound, "There is no call of this id.");
    let call: CallId = id.parse().map_err(|_not_an_id| unknown())?;
    let read = async {
        let mut connection = app.reading.pool.acquire().await?;
        history::call(&mut connection, call.as_str()).await
    };
    let found = read.await.map_err(|error: StoreError| away(&error))?;
    let what = json!({"rows": u8::from(found.is_some())});
    told_of(&app, &operator, "GET /v1/calls/{call}", what, |entry| {
        entry.call_id = Some(call);
    })
    .await?;
    found.map(Json).ok_or_else(unknown)
}

/// Tells the story of a run
///
/// With its calls (the first thousand), the votes on them and the halts that touched it, in order.
#[utoipa::path(get, path = "/v1/runs/{run}", operation_id = "run_story", tag = "records",
    params(("run" = String, Path, description = "The run's id.")),
    responses((status = 200, description = "The run.", body = RunStory)))]
pub(in crate::http) async fn run(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let operator = allow_reading(&app, &headers).await?;
    let unknown = || Refusal::new(Reason::NotFound, "There is no run of this id.");
    let run: RunId = id.parse().map_err(|_not_an_id| unknown())?;
    let read = async {
        let mut connection = app.reading.pool.acquire().await?;
        history::run(&mut connection, run.as_str(), CALLS).await
    };
    let found = read.await.map_err(|error: StoreError| away(&error))?;
    let what = json!({"rows": u8::from(found.is_some())});
    told_of(&app, &operator, "GET /v1/runs/{run}", what, |entry| {
        entry.run_id = Some(run);
    })
    .await?;
    found.map(Json).ok_or_else(unknown)
}

/// Lists runs
///
/// Newest first.
#[utoipa::path(get, path = "/v1/runs", operation_id = "list_runs", tag = "records", params(RunsAsked),
    responses((status = 200, description = "A page of runs.", body = Page<RunRecord>)))]
pub(in crate::http) async fn runs(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    asked: Result<Query<RunsAsked>, QueryRejection>,
) -> Result<Json<Page<Value>>, Refusal> {
    let operator = allow_reading(&app, &headers).await?;
    let asked = input::query(asked)?;
    let question = asked.question()?;
    let page = (asked.limit, asked.cursor.as_deref());
    let paging = Paging::<(Timestamp, String)>::read(&app.keyring, "runs", &question.told, page)?;
    let filter = RunFilter {
        agent: question.agent.as_deref(),
        from: question.from,
        to: question.to,
        after: paging
            .after
            .as_ref()
            .map(|(opened_at, run)| (*opened_at, run.as_str())),
    };
    let read = async {
        let mut connection = app.reading.pool.acquire().await?;
        history::runs(&mut connection, &filter, paging.wanted()).await
    };
    let mut found = read.await.map_err(|error: StoreError| away(&error))?;
    let cursor = paging.cut(&mut found, |last| (last.opened_at, last.run_id.clone()));
    let what = json!({"filter": question.told, "rows": found.len()});
    told(&app, &operator, "GET /v1/runs", what).await?;
    let data = found.into_iter().map(|found| found.row).collect();
    Ok(Json(Page::new(data, cursor)))
}
