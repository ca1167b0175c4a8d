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

use super::{
    Because, allow, filter, identify,
    paging::{self, Page, Paging},
    reading, reason,
};
use crate::{
    app::App,
    delivery::ActRefused,
    http::input::{self, Named},
    policy::{OperatorAction, OperatorContext},
    reason::{Reason, Refusal},
    store::{self, StoreError, deliveries::DeliveryRow},
};

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
) -> Result<Json<Page<DeliveryRow>>, Refusal> {
    let operator = identify(&app, &headers)?;
    may(&app, &operator, OperatorAction::ReadDeliveries).await?;
    let listing = paging::query(listing)?;
    let state = filter::one_of("state", listing.state.as_deref(), &STATES, |known| known)?;
    let destination = filter::name("destination", listing.destination.as_deref())?;
    let told = filter::given(&[("state", state), ("destination", destination.as_deref())]).into();
    let page = (listing.limit, listing.cursor.as_deref());
    let paging = Paging::<String>::read(&app.keyring, "deliveries", &told, page)?;
    let rows = async {
        let mut connection = app.pool.acquire().await?;
        store::deliveries::list(
            &mut connection,
            state,
            destination.as_deref(),
            paging.after.as_deref(),
            paging.wanted(),
        )
        .await
    };
    let mut rows = rows.await.map_err(|error: StoreError| away(&error))?;
    let cursor = paging.cut(&mut rows, |last| last.delivery_id.clone());
    let what = json!({"rows": rows.len(), "filter": told});
    reading::told(&app, &operator, "GET /v1/deliveries", what).await?;
    Ok(Json(Page::new(rows, cursor)))
}

pub(in crate::http) async fn destinations(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    may(&app, &operator, OperatorAction::ReadDeliveries).await?;
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
    may(&app, &operator, OperatorAction::Redeliver).await?;
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
    may(&app, &operator, OperatorAction::Redeliver).await?;
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

async fn may(app: &App, operator: &Arc<str>, action: OperatorAction) -> Result<(), Refusal> {
    allow(app, operator, action, OperatorContext::Empty).await
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
