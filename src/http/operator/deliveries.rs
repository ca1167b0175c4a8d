//! `/v1/deliveries` and `/v1/destinations`: what got through to people and what did not, and having it tried again.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Because, allow, identify, reading, reason};
use crate::{
    app::App,
    delivery::ActRefused,
    http::input::{self, Named},
    policy::{OperatorAction, OperatorContext},
    reason::{Reason, Refusal},
    store::{self, StoreError},
};

const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MOST: i64 = 200;
const STATES: [&str; 3] = ["pending", "delivered", "dead"];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Listing {
    state: Option<String>,
    destination: Option<String>,
    limit: Option<i64>,
    cursor: Option<String>,
}

fn away(error: &StoreError) -> Refusal {
    tracing::warn!(%error, "deliveries could not be read");
    Refusal::record_unavailable()
}

pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    may(&app, &operator, OperatorAction::ReadDeliveries)?;
    let malformed = |detail: String| Refusal::new(Reason::MalformedBody, detail);
    let listing = input::query(listing)?;
    if let Some(state) = &listing.state
        && !STATES.contains(&state.as_str())
    {
        return Err(malformed(format!(
            "\"state\" must be one of {}.",
            STATES.join(", ")
        )));
    }
    if [&listing.destination, &listing.cursor]
        .into_iter()
        .flatten()
        .any(|name| name.contains('\0'))
    {
        return Err(malformed(
            "A filter holds the character U+0000, which is in no name.".to_owned(),
        ));
    }
    let limit = listing.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MOST);
    let rows = async {
        let mut connection = app.pool.acquire().await?;
        store::deliveries::list(
            &mut connection,
            listing.state.as_deref(),
            listing.destination.as_deref(),
            listing.cursor.as_deref(),
            limit + 1,
        )
        .await
    };
    let mut rows = rows.await.map_err(|error: StoreError| away(&error))?;
    let has_more = i64::try_from(rows.len()).unwrap_or(i64::MAX) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let cursor = rows
        .last()
        .filter(|_| has_more)
        .map(|row| row.delivery_id.clone());
    let what = json!({
        "rows": rows.len(),
        "filter": {"state": listing.state, "destination": listing.destination},
    });
    reading::told(&app, &operator, "GET /v1/deliveries", what).await?;
    Ok(Json(
        json!({"data": rows, "has_more": has_more, "cursor": cursor}),
    ))
}

pub(in crate::http) async fn destinations(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    may(&app, &operator, OperatorAction::ReadDeliveries)?;
    let rows = async {
        let mut connection = app.pool.acquire().await?;
        store::deliveries::destinations(&mut connection).await
    };
    let rows = rows.await.map_err(|error: StoreError| away(&error))?;
    let rows: HashMap<&str, _> = rows.iter().map(|row| (row.name.as_str(), row)).collect();
    let data: Vec<Value> = app
        .delivery
        .described()
        .into_iter()
        .map(|described| {
            let row = rows.get(&*described.name);
            json!({
                "destination": described.name,
                "channel": described.channel,
                "events": described.events,
                "tiers": described.tiers,
                "disabled_at": row.and_then(|row| row.disabled_at),
                "disabled_because": row.and_then(|row| row.disabled_because.as_deref()),
                "pending": row.map_or(0, |row| row.pending),
                "dead": row.map_or(0, |row| row.dead),
            })
        })
        .collect();
    let what = json!({"rows": data.len()});
    reading::told(&app, &operator, "GET /v1/destinations", what).await?;
    Ok(Json(json!({"data": data, "has_more": false})))
}

pub(in crate::http) async fn redeliver(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    let reason = because(&app, &headers, body).await?;
    may(&app, &operator, OperatorAction::Redeliver)?;
    app.delivery
        .redeliver(&id, &operator, reason)
        .await
        .map_err(|error| {
            refusal(
                error,
                "There is no delivery of this id to a destination of the config.",
                "This delivery is not given up; nothing was changed.",
            )
        })?;
    Ok(Json(json!({"delivery": id, "state": "pending"})))
}

pub(in crate::http) async fn enable(
    State(app): State<Arc<App>>,
    Named(name): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    let reason = because(&app, &headers, body).await?;
    may(&app, &operator, OperatorAction::Redeliver)?;
    app.delivery
        .enable(&name, &operator, reason)
        .await
        .map_err(|error| {
            refusal(
                error,
                "The config has no destination of this name.",
                "This destination is not disabled; nothing was changed.",
            )
        })?;
    Ok(Json(json!({"destination": name, "disabled_at": null})))
}

fn may(app: &App, operator: &Arc<str>, action: OperatorAction) -> Result<(), Refusal> {
    allow(app, operator, action, OperatorContext::Empty)
}

async fn because(app: &App, headers: &HeaderMap, body: Body) -> Result<String, Refusal> {
    let because: Because =
        input::json(headers, body, app.config.limits.client_read_timeout).await?;
    reason(app, &because.reason)
}

fn refusal(error: ActRefused, unknown: &str, conflict: &str) -> Refusal {
    match error {
        ActRefused::Unknown => Refusal::new(Reason::NotFound, unknown),
        ActRefused::Conflict => Refusal::new(Reason::Conflict, conflict),
        ActRefused::Away(error) => away(&error),
    }
}
