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

use super::{allow, identify, reason, refused};
use crate::{
    app::App,
    approvals::{self, Ballot, Decidable, Decided, Next, Shown, Vote},
    entry::{Entry, Kind},
    http::input::{self, Named},
    policy::{OperatorAction, OperatorContext},
    reason::{Reason, Refusal},
    store::{
        self, StoreError,
        approvals::{Filter, STATES},
    },
    visible,
};

const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MOST: i64 = 200;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Listing {
    state: Option<String>,
    agent: Option<String>,
    run: Option<String>,
    tool: Option<String>,
    tier: Option<String>,
    consequence: Option<String>,
    /// Only what the caller may approve now.
    #[serde(default)]
    mine: bool,
    limit: Option<i64>,
    cursor: Option<String>,
}

pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    allow(
        &app,
        &operator,
        OperatorAction::ReadApprovals,
        OperatorContext::Empty,
    )?;
    let listing = input::query(listing)?;
    if listing
        .state
        .as_deref()
        .is_some_and(|state| !STATES.contains(&state))
    {
        return Err(Refusal::new(
            Reason::MalformedBody,
            format!("\"state\" must be one of {}.", STATES.join(", ")),
        ));
    }
    let names = [
        &listing.agent,
        &listing.run,
        &listing.tool,
        &listing.tier,
        &listing.consequence,
        &listing.cursor,
    ];
    // PostgreSQL has no text with this character, and its error would read as if it were away.
    if names.into_iter().flatten().any(|name| name.contains('\0')) {
        return Err(Refusal::new(
            Reason::MalformedBody,
            "A filter holds the character U+0000, which is in no name.",
        ));
    }
    let limit = listing.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MOST);
    let states: Vec<String> = listing.state.clone().into_iter().collect();
    let tiers: Option<Vec<String>> = listing.tier.clone().map(|tier| vec![tier]);
    let filter = Filter {
        states: &states,
        agent: listing.agent.as_deref(),
        run: listing.run.as_deref(),
        tool: listing.tool.as_deref(),
        consequence: listing.consequence.as_deref(),
        tiers: tiers.as_deref(),
        after: listing.cursor.as_deref(),
    };
    let page = if listing.mine {
        if listing
            .state
            .as_deref()
            .is_some_and(|state| state != "pending")
        {
            return Err(Refusal::new(
                Reason::MalformedBody,
                "With \"mine\", \"state\" can only be pending: nothing else can be approved.",
            ));
        }
        approvals::decidable(&app, &operator, &filter, limit).await
    } else {
        page(&app, &filter, limit).await
    };
    let Decidable { rows, cursor } = page.map_err(|error| away(&error))?;
    let has_more = cursor.is_some();
    let shown = approvals::shown_all(&app, &operator, rows)
        .await
        .map_err(|error| away(&error))?;
    let seen: Vec<(String, BTreeSet<String>)> = shown
        .iter()
        .map(|shown| (shown.row.approval_id.clone(), shown.seen.clone()))
        .collect();
    let data: Vec<Value> = shown.iter().map(to_json).collect();
    let given = [
        ("state", &listing.state),
        ("agent", &listing.agent),
        ("run", &listing.run),
        ("tool", &listing.tool),
        ("tier", &listing.tier),
        ("consequence", &listing.consequence),
    ];
    let mut filter: serde_json::Map<String, Value> = given
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))))
        .collect();
    if listing.mine {
        filter.insert("mine".to_owned(), json!(true));
    }
    viewed(&app, &operator, &seen, Some(filter.into())).await?;
    Ok(Json(
        json!({"data": data, "has_more": has_more, "cursor": cursor}),
    ))
}

/// A page, and where the next one begins.
async fn page(app: &App, filter: &Filter<'_>, limit: i64) -> Result<Decidable, StoreError> {
    let mut connection = app.pool.acquire().await?;
    let mut rows = store::approvals::list(&mut connection, filter, limit + 1).await?;
    let has_more = i64::try_from(rows.len()).unwrap_or(i64::MAX) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let cursor = rows
        .last()
        .filter(|_| has_more)
        .map(|row| row.approval_id.clone());
    Ok(Decidable { rows, cursor })
}

pub(in crate::http) async fn show(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
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
    Ok(Json(to_json(&shown)))
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

/// As people read it: nothing in it hides, whatever its agent wrote.
fn to_json(shown: &Shown) -> Value {
    let row = &shown.row;
    let mut document = json!({
        "approval": row.approval_id,
        "call": row.call_id,
        "run": row.run_id,
        "agent": row.agent,
        "owner": row.owner,
        "triggered_by": row.triggered_by,
        "purpose": shown.purpose,
        "agent_words": shown.words,
        "api": row.api,
        "tool": row.tool,
        "consequence": row.consequence,
        "amount": shown.amount,
        "arguments": shown.arguments,
        "preview": shown.preview,
        "unreadable": shown.unreadable.then_some(approvals::UNREADABLE),
        "digest": row.digest,
        "tiers": shown.tiers,
        "needs": shown.needs,
        "votes": shown.votes,
        "policies": row.policies,
        "policy_texts": shown.policy_texts,
        "state": row.state,
        // How many calls a decision is on: this one and those attached to it.
        "calls": shown.attached.len().saturating_add(1),
        "attached": shown.attached,
        "attached_to": row.attached_to,
        "permission": row.permission_id,
        "next_at_most": shown.next_at_most,
        "explanation": shown.explanation,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "frozen_at": row.frozen_at,
        "decided_at": row.decided_at,
    });
    if let (Some(calls), Some(document)) = (&shown.last_calls, document.as_object_mut()) {
        document.insert("last_calls".to_owned(), json!(calls));
    }
    visible::document(&mut document);
    document
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Deciding {
    digest: String,
    reason: String,
    /// Whose right to use: one's own or that of an operator who lent it.
    r#for: Option<String>,
    /// How many calls were shown, where they are more than one.
    calls: Option<u32>,
    /// For which identical calls to come it is too.
    next: Option<Next>,
}

pub(in crate::http) async fn approve(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    decide(app, id, headers, body, Vote::Approve).await
}

pub(in crate::http) async fn deny(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    decide(app, id, headers, body, Vote::Deny).await
}

async fn decide(
    app: Arc<App>,
    id: String,
    headers: HeaderMap,
    body: Body,
    vote: Vote,
) -> Result<Json<Value>, Refusal> {
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
        Ok(Decided {
            row,
            calls,
            permission,
            tiers: _,
        }) => Ok(Json(json!({
            "approval": row.approval_id,
            "call": row.call_id,
            "calls": calls.len(),
            "state": row.state,
            "decided_at": row.decided_at,
            "permission": permission,
        }))),
        Err(refusal) => {
            let action = match vote {
                Vote::Approve => "approve",
                Vote::Deny => "deny",
            };
            Err(refused(action, refusal))
        }
    }
}
