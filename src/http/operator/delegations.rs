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
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::{
    Because, allow, identify,
    paging::{Page, Paging},
    reading, reason,
};
use crate::{
    app::App,
    approvals::delegations::{self, Lending},
    clock::Timestamp as DateTime,
    http::{
        input::{self, Named},
        openapi::schemas,
    },
    policy::{OperatorAction, OperatorContext},
    reason::{Reason, Refusal},
    store::{self, StoreError, delegations::DelegationRow},
};

/// Names in one delegation, of each kind.
const NAMES_MOST: usize = 50;

/// What is lent: at least one role, group or tier that one holds oneself.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Granting {
    /// The operator to whom.
    to: String,
    /// Roles of one's own.
    #[serde(default)]
    #[schema(max_items = 50)]
    roles: Vec<String>,
    /// Groups of one's own.
    #[serde(default)]
    #[schema(max_items = 50)]
    groups: Vec<String>,
    /// Tiers in which all that one holds is lent.
    #[serde(default)]
    #[schema(max_items = 50)]
    tiers: Vec<String>,
    /// When it ends; later than now, and not later than the config allows.
    until: DateTime,
    /// Why, in words; it is kept, shown and recorded.
    #[schema(min_length = 1, max_length = 2000)]
    reason: String,
}

/// Who lent whom what, and until when.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Delegation {
    delegation: String,
    from: String,
    to: String,
    roles: Vec<String>,
    groups: Vec<String>,
    tiers: Vec<String>,
    reason: String,
    created_at: DateTime,
    until: DateTime,
    /// Whether it can be used now.
    in_force: bool,
    #[schema(required)]
    revoked_at: Option<DateTime>,
    #[schema(required)]
    revoked_by: Option<String>,
}

/// Lends one's right to vote
#[utoipa::path(post, path = "/v1/delegations", operation_id = "grant_delegation", tag = "delegations",
    request_body(content = Granting, example = json!({"to": "bob", "roles": ["finance"], "until": "2026-12-24T18:00:00Z", "reason": "on holiday"})),
    responses((status = 201, description = "It is in force.", body = Delegation), (status = 429, description = "See the codes.")))]
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
    allow(&app, &operator, OperatorAction::Delegate, context)?;
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
    Ok((StatusCode::CREATED, Json(Delegation::from(row))).into_response())
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Listing {
    /// Rows of the page.
    #[param(inline, value_type = Option<schemas::Limit>)]
    limit: Option<i64>,
    /// Where the page before ended: its `cursor`.
    #[param(inline, value_type = Option<schemas::Cursor>)]
    cursor: Option<String>,
}

/// Lists delegations
///
/// Everybody sees what they lent and what was lent to them; who may read approvals sees all.
#[utoipa::path(get, path = "/v1/delegations", operation_id = "list_delegations", tag = "delegations", params(Listing),
    responses((status = 200, description = "A page of delegations.", body = Page<Delegation>)))]
pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Page<Delegation>>, Refusal> {
    let operator = identify(&app, &headers)?;
    let listing = input::query(listing)?;
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
    let data: Vec<Delegation> = rows.into_iter().map(Delegation::from).collect();
    let what = json!({"rows": data.len()});
    reading::told(&app, &operator, "GET /v1/delegations", what).await?;
    Ok(Json(Page::new(data, cursor)))
}

/// Ends a delegation
///
/// Whoever lent it or may use it can, and others as far as the policies let them. Votes that used it no longer count.
#[utoipa::path(delete, path = "/v1/delegations/{delegation}", operation_id = "revoke_delegation", tag = "delegations",
    params(("delegation" = String, Path, description = "The delegation's id.")),
    request_body(content = Because, example = json!({"reason": "back at work"})),
    responses((status = 200, description = "It is over.", body = Delegation), (status = 409, description = "See the codes.")))]
pub(in crate::http) async fn revoke(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Delegation>, Refusal> {
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
        allow(&app, &operator, OperatorAction::RevokeDelegation, context)?;
    }
    delegations::revoke(&app, row, &operator, reason).await?;
    Ok(Json(delegations::find(&app, &id).await?.into()))
}

impl From<DelegationRow> for Delegation {
    fn from(row: DelegationRow) -> Self {
        Self {
            delegation: row.delegation_id,
            from: row.from_operator,
            to: row.to_operator,
            roles: row.roles,
            groups: row.groups,
            tiers: row.tiers,
            reason: row.reason,
            created_at: row.created_at,
            until: row.ends_at,
            in_force: row.in_force,
            revoked_at: row.revoked_at,
            revoked_by: row.revoked_by,
        }
    }
}
