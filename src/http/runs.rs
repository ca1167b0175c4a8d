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
use serde::Deserialize;
use serde_json::json;

use super::input::{self, Named};
use crate::{
    app::App,
    clock,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Opening {
    triggered_by: String,
    purpose: String,
    #[serde(default, deserialize_with = "said")]
    scopes: Option<Vec<String>>,
    expires_in_seconds: Option<i64>,
}

/// Left out is the agent's own; `null` says nothing clear and is refused.
fn said<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<String>>, D::Error> {
    Vec::deserialize(deserializer).map(Some)
}

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
    let body = Json(json!({
        "run": run.id,
        "agent": run.agent,
        "triggered_by": run.triggered_by,
        "purpose": run.purpose,
        "scopes": run.scopes,
        "expires_at": run.expires_at,
    }));
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

pub(super) async fn end(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<serde_json::Value>, Refusal> {
    let now = clock::now();
    let agent = pipeline::agent(&app, &headers, now)?;
    let unknown = || Refusal::new(Reason::NotFound, "This agent has no open run of this id.");
    let run: RunId = id.parse().map_err(|_not_an_id| unknown())?;
    match app.runs.end(&run, &agent, now).await {
        Ok(()) => Ok(Json(json!({"run": run, "ended_at": now}))),
        Err(RunError::NotOpen) => Err(unknown()),
        Err(error) => Err(unavailable(&error)),
    }
}

fn unavailable(error: &RunError) -> Refusal {
    tracing::warn!(%error, "a run could not be recorded");
    Refusal::record_unavailable()
}
