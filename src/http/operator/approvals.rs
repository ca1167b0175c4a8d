//! `/v1/approvals`: the calls that wait for people, whole, and the decisions on them. Who looks is recorded, because
//! what is shown is the real thing.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema};

use self::document::{Approval, Decided, states};
use super::{
    allow, filter, identify,
    paging::{Page, Paging},
    reason, refused,
};
use crate::{
    app::App,
    approvals::{self, Ballot, Next, Vote},
    call::Consequence,
    entry::{Entry, Kind},
    http::{
        input::{self, Named},
        openapi::{dictionary::made_of, schemas},
    },
    ids::RunId,
    policy::{OperatorAction, OperatorContext},
    reason::{Reason, Refusal},
    store::{
        self, StoreError,
        approvals::{Filter, Listed, STATES},
    },
    visible,
};

mod document;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Listing {
    /// Only approvals in this state.
    #[param(inline, value_type = Option<States>)]
    state: Option<String>,
    /// Only calls of this agent.
    #[param(inline, value_type = Option<schemas::Name>)]
    agent: Option<String>,
    /// Only calls in this run.
    #[param(inline, value_type = Option<schemas::Run>)]
    run: Option<String>,
    /// Only calls of this tool.
    #[param(inline, value_type = Option<schemas::Name>)]
    tool: Option<String>,
    /// Only what waits, or waited, in this tier.
    #[param(inline, value_type = Option<schemas::Name>)]
    tier: Option<String>,
    /// Only calls of tools with this consequence.
    #[param(inline, value_type = Option<schemas::ConsequenceName>)]
    consequence: Option<String>,
    /// Only what the caller may approve now. A page may then be short, or empty, and still have a `cursor`.
    #[serde(default)]
    mine: bool,
    /// Rows of the page.
    #[param(inline, value_type = Option<schemas::Limit>)]
    limit: Option<i64>,
    /// Where the page before ended: its `cursor`.
    #[param(inline, value_type = Option<schemas::Cursor>)]
    cursor: Option<String>,
}

struct States;
made_of!(States, states().into());

/// The same, understood.
struct Question {
    state: Option<&'static str>,
    agent: Option<String>,
    run: Option<String>,
    tool: Option<String>,
    tier: Option<String>,
    consequence: Option<&'static str>,
}

impl Listing {
    /// Reads the filters.
    ///
    /// # Errors
    /// `malformed_body` that names the filter.
    fn read(&self) -> Result<Question, Refusal> {
        let state = filter::one_of("state", self.state.as_deref(), &STATES, |known| known)?;
        if self.mine && state.is_some_and(|state| state != "pending") {
            return Err(Refusal::new(
                Reason::MalformedBody,
                "With \"mine\", \"state\" can only be pending: nothing else can be approved.",
            ));
        }
        let consequence = filter::one_of(
            "consequence",
            self.consequence.as_deref(),
            &Consequence::ALL,
            Consequence::as_str,
        )?;
        Ok(Question {
            state,
            agent: filter::name("agent", self.agent.as_deref())?,
            run: filter::id::<RunId>("run", self.run.as_deref())?,
            tool: filter::name("tool", self.tool.as_deref())?,
            tier: filter::name("tier", self.tier.as_deref())?,
            consequence: consequence.map(Consequence::as_str),
        })
    }
}

impl Question {
    /// What was asked for, as it is recorded.
    fn told(&self, mine: bool) -> Value {
        let mut told = filter::given(&[
            ("state", self.state),
            ("agent", self.agent.as_deref()),
            ("run", self.run.as_deref()),
            ("tool", self.tool.as_deref()),
            ("tier", self.tier.as_deref()),
            ("consequence", self.consequence),
        ]);
        if mine {
            told.insert("mine".to_owned(), json!(true));
        }
        told.into()
    }
}

/// Lists approvals
///
/// In the order in which they were made. That they were shown is recorded.
#[utoipa::path(get, path = "/v1/approvals", operation_id = "list_approvals", tag = "approvals", params(Listing),
    responses((status = 200, description = "A page of approvals.", body = Page<Approval>)))]
pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<visible::Document<Page<Approval>>>, Refusal> {
    let operator = identify(&app, &headers)?;
    allow(
        &app,
        &operator,
        OperatorAction::ReadApprovals,
        OperatorContext::Empty,
    )?;
    let listing = input::query(listing)?;
    let asked = listing.read()?;
    let told = asked.told(listing.mine);
    let wanted = (listing.limit, listing.cursor.as_deref());
    let paging = Paging::<String>::read(&app.keyring, "approvals", &told, wanted)?;
    let states: Vec<String> = asked.state.map(str::to_owned).into_iter().collect();
    let tiers: Option<Vec<String>> = asked.tier.clone().map(|tier| vec![tier]);
    let filter = Filter {
        states: &states,
        agent: asked.agent.as_deref(),
        run: asked.run.as_deref(),
        tool: asked.tool.as_deref(),
        consequence: asked.consequence,
        tiers: tiers.as_deref(),
        after: paging.after.as_deref(),
    };
    let page = if listing.mine {
        approvals::decidable(&app, &operator, &filter, paging.limit).await
    } else {
        page(&app, &filter, paging.limit).await
    };
    let Listed { rows, after } = page.map_err(|error| away(&error))?;
    let cursor = after.map(|last| paging.cursor(&last));
    let shown = approvals::shown_all(&app, &operator, rows)
        .await
        .map_err(|error| away(&error))?;
    let seen: Vec<(String, BTreeSet<String>)> = shown
        .iter()
        .map(|shown| (shown.row.approval_id.clone(), shown.seen.clone()))
        .collect();
    let data = shown.into_iter().map(Approval::from).collect();
    viewed(&app, &operator, &seen, Some(told)).await?;
    Ok(Json(visible::Document(Page::new(data, cursor))))
}

async fn page(app: &App, filter: &Filter<'_>, limit: i64) -> Result<Listed, StoreError> {
    let mut connection = app.pool.acquire().await?;
    store::approvals::list(&mut connection, filter, limit).await
}

/// Shows one approval
///
/// That it was shown, and values of which classes, is recorded.
#[utoipa::path(get, path = "/v1/approvals/{approval}", operation_id = "show_approval", tag = "approvals",
    params(("approval" = String, Path, description = "The approval's id.")),
    responses((status = 200, description = "The approval.", body = Approval)))]
pub(in crate::http) async fn show(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<visible::Document<Approval>>, Refusal> {
    let operator = identify(&app, &headers)?;
    allow(
        &app,
        &operator,
        OperatorAction::ReadApprovals,
        OperatorContext::Empty,
    )?;
    let row = approvals::find(&app, &id).await?;
    let shown = approvals::shown(&app, &operator, row)
        .await
        .map_err(|error| away(&error))?;
    viewed(
        &app,
        &operator,
        &[(shown.row.approval_id.clone(), shown.seen.clone())],
        None,
    )
    .await?;
    Ok(Json(visible::Document(shown.into())))
}

fn away(error: &StoreError) -> Refusal {
    tracing::warn!(%error, "approvals could not be read");
    Refusal::record_unavailable()
}

/// Nothing is shown without a record of who saw it, and values of which classes in clear.
async fn viewed(
    app: &App,
    operator: &Arc<str>,
    seen: &[(String, BTreeSet<String>)],
    filter: Option<Value>,
) -> Result<(), Refusal> {
    let approvals: Vec<&str> = seen.iter().map(|(id, _)| id.as_str()).collect();
    let classes: serde_json::Map<String, Value> = seen
        .iter()
        .filter(|(_, classes)| !classes.is_empty())
        .map(|(id, classes)| (id.clone(), json!(classes)))
        .collect();
    let mut detail = json!({ "approvals": approvals, "seen": classes });
    if let (Some(filter), Some(detail)) = (filter, detail.as_object_mut()) {
        detail.insert("filter".to_owned(), filter);
    }
    let entry = Entry {
        operator: Some(Arc::clone(operator)),
        approval_id: match approvals.as_slice() {
            [only] => only.parse().ok(),
            _ => None,
        },
        detail: Some(detail),
        ..Entry::new(Kind::ApprovalViewed)
    };
    app.recorder
        .commit(entry)
        .await
        .map_err(|_unrecorded| Refusal::record_unavailable())
}

/// A vote.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Deciding {
    /// The `digest` of what was seen.
    digest: String,
    /// Why, in words; it is kept, shown and recorded.
    #[schema(min_length = 1, max_length = 2000)]
    reason: String,
    /// Whose right to use: one's own or that of an operator who lent it.
    r#for: Option<String>,
    /// How many calls were shown, where they are more than one: `calls` of the approval.
    calls: Option<u32>,
    /// For which identical calls to come it is too.
    next: Option<Next>,
}

/// Approves a parked call
///
/// Once all that its tiers ask for is there, the gateway executes the call, once, and each call that is attached to it. A vote on something else than what stands is 409 `stale_digest`.
#[utoipa::path(post, path = "/v1/approvals/{approval}/approve", operation_id = "approve_approval", tag = "approvals",
    params(("approval" = String, Path, description = "The approval's id.")),
    request_body(content = Deciding, example = json!({"digest": "hmac-sha256:41d0…", "reason": "the customer has called back"})),
    responses((status = 200, description = "The vote counts.", body = Decided), (status = 409, description = "See the codes.")))]
pub(in crate::http) async fn approve(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Decided>, Refusal> {
    decide(app, id, headers, body, Vote::Approve).await
}

/// Denies a parked call
///
/// One denial ends the call, unless its tier asks for more. A vote on something else than what stands is 409 `stale_digest`.
#[utoipa::path(post, path = "/v1/approvals/{approval}/deny", operation_id = "deny_approval", tag = "approvals",
    params(("approval" = String, Path, description = "The approval's id.")),
    request_body(content = Deciding, example = json!({"digest": "hmac-sha256:41d0…", "reason": "the agent misread the ticket"})),
    responses((status = 200, description = "The vote counts.", body = Decided), (status = 409, description = "See the codes.")))]
pub(in crate::http) async fn deny(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Decided>, Refusal> {
    decide(app, id, headers, body, Vote::Deny).await
}

async fn decide(
    app: Arc<App>,
    id: String,
    headers: HeaderMap,
    body: Body,
    vote: Vote,
) -> Result<Json<Decided>, Refusal> {
    let operator = identify(&app, &headers)?;
    let deciding: Deciding =
        input::json(&headers, body, app.config.limits.client_read_timeout).await?;
    let reason = reason(&app, &deciding.reason)?;
    let ballot = Ballot {
        operator: Arc::clone(&operator),
        vote,
        digest: deciding.digest,
        reason,
        authority: deciding.r#for,
        calls: deciding.calls,
        next: deciding.next,
    };
    // In a task of its own: an operator who hangs up does not stop a decision half-way.
    let task = tokio::spawn({
        let (app, id) = (Arc::clone(&app), id.clone());
        async move { approvals::vote(&app, &id, ballot).await }
    });
    let voted = task.await.unwrap_or_else(|_panic| {
        Err(Refusal::new(
            Reason::Internal,
            "The gateway failed on this decision. Read the approval before you decide again.",
        ))
    });
    match voted {
        Ok(approvals::Decided {
            row,
            calls,
            permission,
            tiers: _,
        }) => Ok(Json(Decided {
            approval: row.approval_id,
            call: row.call_id,
            calls: calls.len(),
            state: row.state,
            decided_at: row.decided_at,
            permission: permission.map(|permission| permission.to_string()),
        })),
        Err(refusal) => {
            let action = match vote {
                Vote::Approve => "approve",
                Vote::Deny => "deny",
            };
            Err(refused(action, refusal))
        }
    }
}
