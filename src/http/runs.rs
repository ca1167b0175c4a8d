//! `/v1/runs`: an agent says who or what triggered it, for what purpose, and with which of its scopes.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use chrono::TimeDelta;
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::input::{self, Named};
use crate::{
    app::App,
    clock::{self, Timestamp as DateTime},
    config::Agent,
    ids::RunId,
    pipeline,
    reason::{Reason, Refusal},
    runs::{NewRun, RunError},
};

/// The longest text of who and what for.
const TEXT_BYTES: usize = 1_000;
/// The longest run.
const LONGEST_SECONDS: i64 = 30 * 24 * 3_600;

/// Who or what started an agent, and what for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Opening {
    /// For instance a ticket, a schedule or a person.
    #[schema(min_length = 1, max_length = 1000)]
    triggered_by: String,
    #[schema(min_length = 1, max_length = 1000)]
    purpose: String,
    /// Fewer scopes than the agent has; `[]` is none, left out is all of them.
    #[serde(default, deserialize_with = "said")]
    #[schema(nullable = false)]
    scopes: Option<Vec<String>>,
    /// Left out: it does not end by itself.
    #[schema(minimum = 1, maximum = 2_592_000)]
    expires_in_seconds: Option<i64>,
}

/// A run that was opened. Send `run` back as `Toolgate-Run`.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenedRun {
    run: String,
    agent: String,
    triggered_by: String,
    purpose: String,
    scopes: Vec<String>,
    #[schema(required)]
    expires_at: Option<DateTime>,
}

/// A run in which no more calls are made.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EndedRun {
    run: String,
    ended_at: DateTime,
}

/// Left out is the agent's own; `null` says nothing clear and is refused.
fn said<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    Vec::deserialize(deserializer).map(Some)
}

/// Opens a run
#[utoipa::path(post, path = "/v1/runs", operation_id = "open_run", tag = "runs",
    request_body(content = Opening, example = json!({"triggered_by": "ticket:4711", "purpose": "settle a complaint", "scopes": ["desk.refunds:write"]})),
    responses((status = 201, description = "The run.", body = OpenedRun)))]
pub(super) async fn open(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let now = clock::now();
    let agent = pipeline::agent(&app, &headers, now)?;
    let opening: Opening =
        input::json(&headers, body, app.config.limits.client_read_timeout).await?;
    let mut new = checked(&agent, opening)?;
    // Both are kept, shown and recorded in clear. Who started a run is looked for by a name, which may be an address.
    new.triggered_by = app.redactor.identity(&new.triggered_by);
    new.purpose = app.redactor.text(&new.purpose);
    let run = app
        .runs
        .open(&agent, new, now)
        .await
        .map_err(|error| unavailable(&error))?;
    let body = Json(OpenedRun {
        run: run.id.to_string(),
        agent: run.agent.to_string(),
        triggered_by: run.triggered_by.clone(),
        purpose: run.purpose.clone(),
        scopes: run.scopes.clone(),
        expires_at: run.expires_at,
    });
    Ok((StatusCode::CREATED, body).into_response())
}

fn checked(agent: &Agent, opening: Opening) -> Result<NewRun, Refusal> {
    let malformed = |detail: String| Refusal::new(Reason::MalformedBody, detail);
    for (name, text) in [
        ("triggered_by", &opening.triggered_by),
        ("purpose", &opening.purpose),
    ] {
        if text.trim().is_empty() || text.len() > TEXT_BYTES {
            return Err(malformed(format!(
                "\"{name}\" must say something, in at most {TEXT_BYTES} bytes."
            )));
        }
    }
    let scopes = match opening.scopes {
        None => agent.scopes.iter().map(ToString::to_string).collect(),
        Some(mut wanted) => {
            if let Some(missing) = wanted
                .iter()
                .find(|scope| !agent.scopes.contains(scope.as_str()))
            {
                let shown: String = missing.chars().take(128).collect();
                return Err(Refusal::new(
                    Reason::ScopeMissing,
                    format!(
                        "The agent does not hold the scope {shown:?}, so a run of it cannot either. No run was opened."
                    ),
                ));
            }
            wanted.sort();
            wanted.dedup();
            wanted
        }
    };
    let expires_in = match opening.expires_in_seconds {
        None => None,
        Some(seconds) if (1..=LONGEST_SECONDS).contains(&seconds) => {
            Some(TimeDelta::seconds(seconds))
        }
        Some(_) => {
            return Err(malformed(format!(
                "\"expires_in_seconds\" must be between 1 and {LONGEST_SECONDS}."
            )));
        }
    };
    Ok(NewRun {
        triggered_by: opening.triggered_by,
        purpose: opening.purpose,
        scopes,
        expires_in,
    })
}

/// Ends a run
///
/// No more calls are made in it; what was approved and not sent yet is voided.
#[utoipa::path(post, path = "/v1/runs/{run}/end", operation_id = "end_run", tag = "runs",
    params(("run" = String, Path, description = "The run's id.")),
    responses((status = 200, description = "It is over.", body = EndedRun)))]
pub(super) async fn end(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<EndedRun>, Refusal> {
    let now = clock::now();
    let agent = pipeline::agent(&app, &headers, now)?;
    let unknown = || Refusal::new(Reason::NotFound, "This agent has no open run of this id.");
    let run: RunId = id.parse().map_err(|_not_an_id| unknown())?;
    match app.runs.end(&run, &agent, now).await {
        Ok(()) => Ok(Json(EndedRun {
            run: run.to_string(),
            ended_at: now,
        })),
        Err(RunError::NotOpen) => Err(unknown()),
        Err(error) => Err(unavailable(&error)),
    }
}

fn unavailable(error: &RunError) -> Refusal {
    tracing::warn!(%error, "a run could not be recorded");
    Refusal::record_unavailable()
}
