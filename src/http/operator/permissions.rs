//! `/v1/permissions`: for which calls to come people have approved ahead, what is left of that, and taking it back.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
};
use http::HeaderMap;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use super::{
    Because, allow, filter, identify,
    paging::{Page, Paging},
    reading, reason,
};
use crate::{
    app::App,
    approvals::permissions,
    clock::Timestamp as DateTime,
    http::{
        input::{self, Named},
        openapi::schemas,
    },
    ids::RunId,
    policy::{ApprovalFacts, OperatorAction, OperatorContext},
    reason::Refusal,
    store::{
        self, StoreError,
        permissions::{Filter, PermissionRow},
    },
};

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Listing {
    /// Only for calls in this run.
    #[param(inline, value_type = Option<schemas::Run>)]
    run: Option<String>,
    /// Only for calls of this agent.
    #[param(inline, value_type = Option<schemas::Name>)]
    agent: Option<String>,
    /// Only what a call may use now.
    #[serde(default)]
    in_force: bool,
    /// Rows of the page.
    #[param(inline, value_type = Option<schemas::Limit>)]
    limit: Option<i64>,
    /// Where the page before ended: its `cursor`.
    #[param(inline, value_type = Option<schemas::Cursor>)]
    cursor: Option<String>,
}

/// For which calls to come people have approved ahead, and what is left of that.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Permission {
    permission: String,
    /// The approval that it came of.
    approval: String,
    /// The call that was approved then.
    call: String,
    /// The run in which it holds.
    run: String,
    agent: String,
    api: String,
    tool: String,
    #[schema(schema_with = schemas::consequence)]
    consequence: String,
    /// The keyed digest over exactly the call that was approved: it is for identical ones.
    digest: String,
    /// The operators on whose votes it rests.
    given_by: Vec<String>,
    /// How many calls it was given for.
    calls: i32,
    /// How many of them are left.
    left: i32,
    created_at: DateTime,
    /// When it ends by itself.
    until: DateTime,
    /// Whether a call may use it now.
    in_force: bool,
    #[schema(required)]
    last_used_at: Option<DateTime>,
    #[schema(required)]
    revoked_at: Option<DateTime>,
    #[schema(required)]
    revoked_by: Option<String>,
}

/// Lists what people have approved ahead
///
/// In the order in which it was given.
#[utoipa::path(get, path = "/v1/permissions", operation_id = "list_permissions", tag = "permissions", params(Listing),
    responses((status = 200, description = "A page of standing permissions.", body = Page<Permission>)))]
pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Page<Permission>>, Refusal> {
    let operator = identify(&app, &headers)?;
    let action = OperatorAction::ReadApprovals;
    allow(&app, &operator, action, OperatorContext::Empty)?;
    let listing = input::query(listing)?;
    let run = filter::id::<RunId>("run", listing.run.as_deref())?;
    let agent = filter::name("agent", listing.agent.as_deref())?;
    let mut told = filter::given(&[("run", run.as_deref()), ("agent", agent.as_deref())]);
    if listing.in_force {
        told.insert("in_force".to_owned(), json!(true));
    }
    let told = Value::Object(told);
    let page = (listing.limit, listing.cursor.as_deref());
    let paging = Paging::<String>::read(&app.keyring, "permissions", &told, page)?;
    let filter = Filter {
        run: run.as_deref(),
        agent: agent.as_deref(),
        in_force: listing.in_force,
        after: paging.after.as_deref().unwrap_or_default(),
    };
    let rows = async {
        let mut connection = app.pool.acquire().await?;
        store::permissions::list(&mut connection, &filter, paging.wanted()).await
    };
    let mut rows = rows.await.map_err(|error: StoreError| {
        tracing::warn!(%error, "standing permissions could not be read");
        Refusal::record_unavailable()
    })?;
    let cursor = paging.cut(&mut rows, |last| last.permission_id.clone());
    let data: Vec<Permission> = rows.into_iter().map(Permission::from).collect();
    let what = json!({"rows": data.len(), "filter": told});
    reading::told(&app, &operator, "GET /v1/permissions", what).await?;
    Ok(Json(Page::new(data, cursor)))
}

/// Shows one standing permission
#[utoipa::path(get, path = "/v1/permissions/{permission}", operation_id = "show_permission", tag = "permissions",
    params(("permission" = String, Path, description = "The standing permission's id.")),
    responses((status = 200, description = "The standing permission.", body = Permission)))]
pub(in crate::http) async fn show(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<Permission>, Refusal> {
    let operator = identify(&app, &headers)?;
    let action = OperatorAction::ReadApprovals;
    allow(&app, &operator, action, OperatorContext::Empty)?;
    let row = permissions::find(&app, &id).await?;
    let what = json!({"permission": row.permission_id});
    reading::told(&app, &operator, "GET /v1/permissions/{permission}", what).await?;
    Ok(Json(row.into()))
}

/// Takes a standing permission back
///
/// Whoever gave it can, and others as far as the policies let them. Nothing that it approved is begun any more.
#[utoipa::path(delete, path = "/v1/permissions/{permission}", operation_id = "revoke_permission", tag = "permissions",
    params(("permission" = String, Path, description = "The standing permission's id.")),
    request_body(content = Because, example = json!({"reason": "the customer has called it off"})),
    responses((status = 200, description = "It is over.", body = Permission), (status = 409, description = "See the codes.")))]
pub(in crate::http) async fn revoke(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Permission>, Refusal> {
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
    Ok(Json(permissions::find(&app, &id).await?.into()))
}

impl From<PermissionRow> for Permission {
    fn from(row: PermissionRow) -> Self {
        Self {
            permission: row.permission_id,
            approval: row.approval_id,
            call: row.call_id,
            run: row.run_id,
            agent: row.agent,
            api: row.api,
            tool: row.tool,
            consequence: row.consequence,
            digest: row.digest,
            given_by: row.given_by,
            calls: row.calls,
            left: row.calls.saturating_sub(row.used),
            created_at: row.created_at,
            until: row.ends_at,
            in_force: row.in_force,
            last_used_at: row.last_used_at,
            revoked_at: row.revoked_at,
            revoked_by: row.revoked_by,
        }
    }
}
