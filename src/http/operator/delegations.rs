//! `/v1/delegations`: who lent whom their right to vote, and until when.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Because, allow, identify,
    paging::{self, Page, Paging},
    reading, reason,
};
use crate::{
    app::App,
    approvals::delegations::{self, Lending},
    clock::Timestamp,
    http::input::{self, Named},
    policy::{OperatorAction, OperatorContext},
    reason::{Reason, Refusal},
    store::{self, StoreError, delegations::DelegationRow},
};

/// Names in one delegation, of each kind.
const NAMES_MOST: usize = 50;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Granting {
    to: String,
    #[serde(default)]
    roles: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
    #[serde(default)]
    tiers: Vec<String>,
    until: Timestamp,
    reason: String,
}

pub(in crate::http) async fn grant(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let operator = identify(&app, &headers)?;
    let granting: Granting =
        input::json(&headers, body, app.config.limits.client_read_timeout).await?;
    let lists = [&granting.roles, &granting.groups, &granting.tiers];
    if lists.iter().any(|names| names.len() > NAMES_MOST) {
        return Err(Refusal::new(
            Reason::MalformedBody,
            format!("Nothing was lent: name at most {NAMES_MOST} roles, groups and tiers each."),
        ));
    }
    let reason = reason(&app, &granting.reason)?;
    let context = OperatorContext::Delegation {
        from: &operator,
        to: &granting.to,
    };
    allow(&app, &operator, OperatorAction::Delegate, context).await?;
    let lending = Lending {
        from: operator,
        to: granting.to,
        roles: granting.roles,
        groups: granting.groups,
        tiers: granting.tiers,
        until: granting.until,
        reason,
    };
    let row = delegations::grant(&app, lending).await?;
    Ok((StatusCode::CREATED, Json(to_json(&row))).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Listing {
    limit: Option<i64>,
    cursor: Option<String>,
}

/// Everybody sees what they lent and what was lent to them; who may read approvals sees all.
pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Page<Value>>, Refusal> {
    let operator = identify(&app, &headers)?;
    let listing = paging::query(listing)?;
    let reads_all = app
        .policies
        .decide_operator(
            &operator,
            OperatorAction::ReadApprovals,
            crate::policy::OperatorResource::Gateway,
            OperatorContext::Empty,
        )
        .permitted;
    let page = (listing.limit, listing.cursor.as_deref());
    let paging = Paging::<String>::read(&app.keyring, "delegations", &json!({}), page)?;
    let after = paging.after.as_deref().unwrap_or_default();
    let of = (!reads_all).then_some(&*operator);
    let rows = async {
        let mut connection = app.pool.acquire().await?;
        store::delegations::list(&mut connection, of, after, paging.wanted()).await
    };
    let mut rows = rows.await.map_err(|error: StoreError| {
        tracing::warn!(%error, "delegations could not be read");
        Refusal::record_unavailable()
    })?;
    let cursor = paging.cut(&mut rows, |last| last.delegation_id.clone());
    let data: Vec<Value> = rows.iter().map(to_json).collect();
    let what = json!({"rows": data.len()});
    reading::told(&app, &operator, "GET /v1/delegations", what).await?;
    Ok(Json(Page::new(data, cursor)))
}

pub(in crate::http) async fn revoke(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    let because: Because =
        input::json(&headers, body, app.config.limits.client_read_timeout).await?;
    let reason = reason(&app, &because.reason)?;
    let row = delegations::find(&app, &id).await?;
    if *operator != *row.from_operator && *operator != *row.to_operator {
        let context = OperatorContext::Delegation {
            from: &row.from_operator,
            to: &row.to_operator,
        };
        allow(&app, &operator, OperatorAction::RevokeDelegation, context).await?;
    }
    delegations::revoke(&app, row, &operator, reason).await?;
    Ok(Json(to_json(&delegations::find(&app, &id).await?)))
}

fn to_json(row: &DelegationRow) -> Value {
    json!({
        "delegation": row.delegation_id,
        "from": row.from_operator,
        "to": row.to_operator,
        "roles": row.roles,
        "groups": row.groups,
        "tiers": row.tiers,
        "reason": row.reason,
        "created_at": row.created_at,
        "until": row.ends_at,
        "in_force": row.in_force,
        "revoked_at": row.revoked_at,
        "revoked_by": row.revoked_by,
    })
}
