//! `/v1/runs` and `/v1/calls` for operators: what happened in a run, and to a call, from the records.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State, rejection::QueryRejection},
};
use http::HeaderMap;
use serde_json::{Value, json};

use super::{
    allow_reading, away,
    filter::RunsAsked,
    paging::{self, Page, Paging},
    reading::{told, told_of},
};
use crate::{
    app::App,
    clock::Timestamp,
    http::input::Named,
    ids::{CallId, RunId},
    reason::{Reason, Refusal},
    store::{
        StoreError,
        history::{self, RunFilter},
    },
};

/// Calls of a run that its timeline holds at the most. `GET /v1/audit/entries?run=` has them all.
const CALLS: i64 = 1_000;

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

pub(in crate::http) async fn runs(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    asked: Result<Query<RunsAsked>, QueryRejection>,
) -> Result<Json<Page<Value>>, Refusal> {
    let operator = allow_reading(&app, &headers).await?;
    let asked = paging::query(asked)?;
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
