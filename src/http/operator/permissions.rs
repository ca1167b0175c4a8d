//! `/v1/permissions`: for which calls to come people have approved ahead, what is left of that, and taking it back.

use std::sync::Arc;

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
    approvals::permissions,
    http::input::{self, Named},
    policy::{ApprovalFacts, OperatorAction, OperatorContext},
    reason::{Reason, Refusal},
    store::{
        self, StoreError,
        permissions::{Filter, PermissionRow},
    },
};

const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MOST: i64 = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Listing {
    run: Option<String>,
    agent: Option<String>,
    /// Only what a call may use now.
    #[serde(default)]
    in_force: bool,
    limit: Option<i64>,
    cursor: Option<String>,
}

pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    let action = OperatorAction::ReadApprovals;
    allow(&app, &operator, action, OperatorContext::Empty)?;
    let Query(listing) =
        listing.map_err(|error| Refusal::new(Reason::MalformedBody, error.body_text()))?;
    let names = [&listing.run, &listing.agent, &listing.cursor];
    if names.into_iter().flatten().any(|name| name.contains('\0')) {
        return Err(Refusal::new(
            Reason::MalformedBody,
            "A filter holds the character U+0000, which is in no name.",
        ));
    }
    let limit = listing.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MOST);
    let filter = Filter {
        run: listing.run.as_deref(),
        agent: listing.agent.as_deref(),
        in_force: listing.in_force,
        after: listing.cursor.as_deref().unwrap_or_default(),
    };
    let rows = async {
        let mut connection = app.pool.acquire().await?;
        store::permissions::list(&mut connection, &filter, limit + 1).await
    };
    let mut rows = rows.await.map_err(|error: StoreError| {
        tracing::warn!(%error, "standing permissions could not be read");
        Refusal::record_unavailable()
    })?;
    let has_more = i64::try_from(rows.len()).unwrap_or(i64::MAX) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let cursor = rows
        .last()
        .filter(|_| has_more)
        .map(|row| row.permission_id.clone());
    let data: Vec<Value> = rows.iter().map(to_json).collect();
    let what = json!({"rows": data.len(), "run": listing.run, "agent": listing.agent});
    reading::told(&app, &operator, "GET /v1/permissions", what).await?;
    Ok(Json(
        json!({"data": data, "has_more": has_more, "cursor": cursor}),
    ))
}

pub(in crate::http) async fn show(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    let action = OperatorAction::ReadApprovals;
    allow(&app, &operator, action, OperatorContext::Empty)?;
    let row = permissions::find(&app, &id).await?;
    let what = json!({"permission": row.permission_id});
    reading::told(&app, &operator, "GET /v1/permissions/{permission}", what).await?;
    Ok(Json(to_json(&row)))
}

/// Those who gave it, and whom the policies let.
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
    let row = permissions::find(&app, &id).await?;
    if !row.given_by.iter().any(|giver| **giver == *operator) {
        let context = OperatorContext::Approval(ApprovalFacts {
            agent: &row.agent,
            owner: &row.owner,
            triggered_by: &row.triggered_by,
            tool: &row.tool,
            api: &row.api,
            consequence: &row.consequence,
            run: &row.run_id,
        });
        allow(&app, &operator, OperatorAction::RevokePermission, context)?;
    }
    permissions::revoke(&app, row, &operator, reason).await?;
    Ok(Json(to_json(&permissions::find(&app, &id).await?)))
}

fn to_json(row: &PermissionRow) -> Value {
    json!({
        "permission": row.permission_id,
        "approval": row.approval_id,
        "call": row.call_id,
        "run": row.run_id,
        "agent": row.agent,
        "api": row.api,
        "tool": row.tool,
        "consequence": row.consequence,
        "digest": row.digest,
        "given_by": row.given_by,
        "calls": row.calls,
        "left": row.calls.saturating_sub(row.used),
        "created_at": row.created_at,
        "until": row.ends_at,
        "in_force": row.in_force,
        "last_used_at": row.last_used_at,
        "revoked_at": row.revoked_at,
        "revoked_by": row.revoked_by,
    })
}
