//! `/v1/deliveries` and `/v1/destinations`: what got through to people and what did not, and having it tried again.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema, openapi::Object};

use super::{
    Because, allow, filter, identify,
    paging::{Page, Paging},
    reading, reason,
};
use crate::{
    app::App,
    clock::Timestamp as DateTime,
    delivery::ActRefused,
    http::{
        input::{self, Named},
        openapi::{dictionary::made_of, schemas},
    },
    policy::{OperatorAction, OperatorContext},
    reason::{Reason, Refusal},
    store::{self, StoreError, deliveries::DeliveryRow},
};

const STATES: [&str; 3] = ["pending", "delivered", "dead"];

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Listing {
    /// Only messages in this state; `dead` ones were given up.
    #[param(inline, value_type = Option<States>)]
    state: Option<String>,
    /// Only messages to this destination.
    #[param(inline, value_type = Option<schemas::Name>)]
    destination: Option<String>,
    /// Rows of the page.
    #[param(inline, value_type = Option<schemas::Limit>)]
    limit: Option<i64>,
    /// Where the page before ended: its `cursor`.
    #[param(inline, value_type = Option<schemas::Cursor>)]
    cursor: Option<String>,
}

fn states() -> Object {
    schemas::one_of(STATES)
}

struct States;
made_of!(States, states().into());

/// Whom the gateway tells, and how that stands.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct DestinationStanding {
    #[schema(value_type = String)]
    destination: Arc<str>,
    /// `webhook`, `slack` or `email`.
    channel: &'static str,
    /// The events it gets.
    events: Vec<String>,
    /// The tiers it is limited to; none for all.
    tiers: Vec<String>,
    /// Since when nothing is sent to it.
    #[schema(required)]
    disabled_at: Option<DateTime>,
    /// Why.
    #[schema(required)]
    disabled_because: Option<String>,
    /// Messages that wait.
    pending: i64,
    /// Messages that were given up.
    dead: i64,
}

/// Everything there is, in one page.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Destinations {
    data: Vec<DestinationStanding>,
    /// Never.
    has_more: bool,
}

/// A message that is tried again.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Redelivered {
    delivery: String,
    /// `pending`.
    state: &'static str,
}

/// A destination that is sent to again.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Enabled {
    destination: String,
    /// Null.
    #[schema(required)]
    disabled_at: Option<DateTime>,
}

fn away(error: &StoreError) -> Refusal {
    tracing::warn!(%error, "deliveries could not be read");
    Refusal::record_unavailable()
}

/// Lists messages to people
///
/// In the order in which they were made. Those that were given up stay for 14 days.
#[utoipa::path(get, path = "/v1/deliveries", operation_id = "list_deliveries", tag = "deliveries", params(Listing),
    responses((status = 200, description = "A page of messages.", body = Page<DeliveryRow>)))]
pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Page<DeliveryRow>>, Refusal> {
    let operator = identify(&app, &headers)?;
    may(&app, &operator, OperatorAction::ReadDeliveries)?;
    let listing = input::query(listing)?;
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

/// Lists whom the gateway tells
#[utoipa::path(get, path = "/v1/destinations", operation_id = "list_destinations", tag = "deliveries",
    responses((status = 200, description = "The destinations of the config.", body = Destinations)))]
pub(in crate::http) async fn destinations(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Json<Destinations>, Refusal> {
    let operator = identify(&app, &headers)?;
    may(&app, &operator, OperatorAction::ReadDeliveries)?;
    let rows = async {
        let mut connection = app.pool.acquire().await?;
        store::deliveries::destinations(&mut connection).await
    };
    let rows = rows.await.map_err(|error: StoreError| away(&error))?;
    let rows: HashMap<&str, _> = rows.iter().map(|row| (row.name.as_str(), row)).collect();
    let data: Vec<DestinationStanding> = app
        .delivery
        .described()
        .into_iter()
        .map(|described| {
            let row = rows.get(&*described.name);
            DestinationStanding {
                destination: described.name,
                channel: described.channel,
                events: described.events,
                tiers: described.tiers,
                disabled_at: row.and_then(|row| row.disabled_at),
                disabled_because: row.and_then(|row| row.disabled_because.clone()),
                pending: row.map_or(0, |row| row.pending),
                dead: row.map_or(0, |row| row.dead),
            }
        })
        .collect();
    let what = json!({"rows": data.len()});
    reading::told(&app, &operator, "GET /v1/destinations", what).await?;
    Ok(Json(Destinations {
        data,
        has_more: false,
    }))
}

/// Sends a message again that was given up
///
/// With the same id, so that its receiver knows it for the same.
#[utoipa::path(post, path = "/v1/deliveries/{delivery}/redeliver", operation_id = "redeliver", tag = "deliveries",
    params(("delivery" = String, Path, description = "The delivery's id.")),
    request_body(content = Because, example = json!({"reason": "the receiver is back"})),
    responses((status = 200, description = "It waits to be sent.", body = Redelivered), (status = 409, description = "See the codes.")))]
pub(in crate::http) async fn redeliver(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Redelivered>, Refusal> {
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
    Ok(Json(Redelivered {
        delivery: id,
        state: "pending",
    }))
}

/// Enables a destination that is disabled
///
/// One that has answered 410 Gone is disabled until then, or until its config changes.
#[utoipa::path(post, path = "/v1/destinations/{destination}/enable", operation_id = "enable_destination", tag = "deliveries",
    params(("destination" = String, Path, description = "The destination's name.")),
    request_body(content = Because, example = json!({"reason": "the receiver is back"})),
    responses((status = 200, description = "It is sent to again.", body = Enabled), (status = 409, description = "See the codes.")))]
pub(in crate::http) async fn enable(
    State(app): State<Arc<App>>,
    Named(name): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Enabled>, Refusal> {
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
    Ok(Json(Enabled {
        destination: name,
        disabled_at: None,
    }))
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
