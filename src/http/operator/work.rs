//! `/v1/work`: calls whose answer was lost, and calls that people do by hand. Who looks is recorded.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, header};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{allow, identify, refused};
use crate::{
    app::App,
    clock,
    entry::{Entry, Kind},
    http::input::{self, Named},
    ids::CallId,
    policy::{OperatorAction, OperatorContext, OperatorResource},
    reason::{Reason, Refusal},
    resolving::{self, Finding, export},
    store::work::{Filter, WorkRow},
};

const LIMIT_DEFAULT: i64 = 50;
const LIMIT_MOST: i64 = 500;
/// The longest evidence and note, in bytes.
const TEXT_BYTES: usize = 2_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Listing {
    kind: Option<String>,
    state: Option<String>,
    agent: Option<String>,
    tool: Option<String>,
    limit: Option<i64>,
    cursor: Option<String>,
    format: Option<String>,
}

fn one_of(name: &str, value: Option<&str>, known: &[&str]) -> Result<(), Refusal> {
    if value.is_none_or(|value| known.contains(&value)) {
        return Ok(());
    }
    Err(Refusal::new(
        Reason::MalformedBody,
        format!("\"{name}\" must be one of {}.", known.join(", ")),
    ))
}

pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refusal> {
    let operator = identify(&app, &headers)?;
    let context = OperatorContext::Empty;
    allow(&app, &operator, OperatorAction::ReadWork, context)?;
    let listing = input::query(listing)?;
    one_of("kind", listing.kind.as_deref(), &["reconcile", "manual"])?;
    let states = ["waiting", "open", "claimed", "resolved", "withdrawn", "all"];
    one_of("state", listing.state.as_deref(), &states)?;
    one_of("format", listing.format.as_deref(), &["json", "csv"])?;
    let names = [&listing.agent, &listing.tool, &listing.cursor];
    // PostgreSQL has no text with this character, and its error would read as if it were away.
    if names.into_iter().flatten().any(|name| name.contains('\0')) {
        return Err(Refusal::new(
            Reason::MalformedBody,
            "A filter holds the character U+0000, which is in no name.",
        ));
    }
    let limit = listing.limit.unwrap_or(LIMIT_DEFAULT).clamp(1, LIMIT_MOST);
    let filter = Filter {
        kind: listing.kind.as_deref(),
        state: Some(listing.state.as_deref().unwrap_or("waiting")).filter(|state| *state != "all"),
        agent: listing.agent.as_deref(),
        tool: listing.tool.as_deref(),
        call: None,
        after: listing.cursor.as_deref(),
    };
    let mut rows = resolving::list(&app, &filter, limit + 1).await?;
    let has_more = i64::try_from(rows.len()).unwrap_or(i64::MAX) > limit;
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    let cursor = rows
        .last()
        .filter(|_| has_more)
        .map(|row| row.call_id.clone());
    let seen: Vec<&str> = rows.iter().map(|row| row.call_id.as_str()).collect();
    let given = [
        ("kind", &listing.kind),
        ("state", &listing.state),
        ("agent", &listing.agent),
        ("tool", &listing.tool),
        ("format", &listing.format),
    ];
    let asked: Map<String, Value> = given
        .into_iter()
        .filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?))))
        .collect();
    let entry = Entry {
        operator: Some(operator),
        decided_at: Some(clock::now()),
        detail: Some(json!({ "work": seen, "filter": asked, "request": "GET /v1/work" })),
        ..Entry::new(Kind::WorkViewed)
    };
    viewed(&app, entry).await?;
    let data: Vec<Value> = rows.iter().map(export::to_json).collect();
    if listing.format.as_deref() == Some("csv") {
        return Ok(as_csv(&data, cursor.as_deref()));
    }
    Ok(Json(json!({"data": data, "has_more": has_more, "cursor": cursor})).into_response())
}

/// What does not fit into one page is named by the header `Link` (RFC 8288), because CSV has no place for it.
fn as_csv(data: &[Value], cursor: Option<&str>) -> Response {
    let mut response = Response::new(Body::from(export::csv(data)));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/csv; charset=utf-8; header=present"),
    );
    headers.insert(
        header::CONTENT_DISPOSITION,
        HeaderValue::from_static("attachment; filename=\"work.csv\""),
    );
    headers.insert(
        header::X_CONTENT_TYPE_OPTIONS,
        HeaderValue::from_static("nosniff"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let link = cursor.map(|cursor| format!("</v1/work?format=csv&cursor={cursor}>; rel=\"next\""));
    if let Some(Ok(link)) = link.as_deref().map(HeaderValue::from_str) {
        headers.insert(header::LINK, link);
    }
    response
}

pub(in crate::http) async fn show(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    let context = OperatorContext::Empty;
    allow(&app, &operator, OperatorAction::ReadWork, context)?;
    let found = resolving::find(&app, &id).await;
    // Also that somebody looked for what is not there.
    if !matches!(&found, Err(refusal) if refusal.reason != Reason::NotFound) {
        let entry = Entry {
            call_id: found.as_ref().ok().map(|(call, _)| call.clone()),
            operator: Some(Arc::clone(&operator)),
            decided_at: Some(clock::now()),
            detail: Some(
                json!({ "request": "GET /v1/work/{work}", "rows": u8::from(found.is_ok()) }),
            ),
            ..Entry::new(Kind::WorkViewed)
        };
        viewed(&app, entry).await?;
    }
    let (call, row) = found?;
    whole(&app, &call, &row, &operator).await.map(Json)
}

fn may_read(app: &App, operator: &str) -> bool {
    app.policies
        .decide_operator(
            operator,
            OperatorAction::ReadWork,
            OperatorResource::Gateway,
            OperatorContext::Empty,
        )
        .permitted
}

/// No record, no reading.
async fn viewed(app: &App, entry: Entry) -> Result<(), Refusal> {
    app.recorder.commit(entry).await.map_err(|_unrecorded| {
        let mut refusal = Refusal::record_unavailable();
        "That you read this could not be recorded, so nothing is shown. Try again later."
            .clone_into(&mut refusal.detail);
        refusal
    })
}

async fn whole(
    app: &App,
    call: &CallId,
    row: &WorkRow,
    operator: &Arc<str>,
) -> Result<Value, Refusal> {
    let mut item = export::to_json(row);
    let opened = resolving::real_arguments(app, call, row, operator).await?;
    if let (Some(item), Some(opened)) = (item.as_object_mut(), opened) {
        item.insert("arguments".to_owned(), opened.arguments);
        if let Some(preview) = opened.preview {
            item.insert("preview".to_owned(), preview);
        }
    }
    Ok(item)
}

/// Runs an act in a task of its own, so that an operator who hangs up does not stop it half-way.
async fn act<T: Send + 'static>(
    app: &App,
    operator: &str,
    work: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::spawn(work).await.unwrap_or_else(|_panic| {
        Err(Refusal::new(
            Reason::Internal,
            "The gateway failed on this. Read the item before you try again.",
        ))
    });
    done.map_err(|refusal| {
        let is_denied = matches!(
            refusal.reason,
            Reason::DeniedByPolicy | Reason::SelfApproval
        );
        // Whoever may not read the list does not learn from a refusal what is on it. The entry tells why.
        if is_denied && !may_read(app, operator) {
            let mut hidden = resolving::unknown();
            hidden.policies = refusal.policies.clone();
            hidden.audit_detail =
                Some(json!({"action": "resolve", "because": refusal.reason.code()}));
            return hidden;
        }
        refused("resolve", refusal)
    })
}

pub(in crate::http) async fn claim(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    let work = {
        let (app, id, operator) = (Arc::clone(&app), id.clone(), Arc::clone(&operator));
        async move { resolving::claim(&app, &id, &operator).await }
    };
    let (call, row) = act(&app, &operator, work).await?;
    whole(&app, &call, &row, &operator).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Releasing {
    note: String,
}

pub(in crate::http) async fn release(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    let releasing: Releasing =
        input::json(&headers, body, app.config.limits.client_read_timeout).await?;
    let note = text(&app, "note", &releasing.note)?;
    let work = {
        let (app, id, operator) = (Arc::clone(&app), id.clone(), Arc::clone(&operator));
        async move { resolving::release(&app, &id, &operator, note).await }
    };
    let row = act(&app, &operator, work).await?;
    Ok(Json(export::to_json(&row)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Resolving {
    found: Found,
    status: Option<u16>,
    result: Option<Value>,
    evidence: String,
    note: String,
}

#[derive(Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Found {
    Executed,
    NotExecuted,
}

pub(in crate::http) async fn resolve(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Refusal> {
    let operator = identify(&app, &headers)?;
    let given: Resolving =
        input::json(&headers, body, app.config.limits.client_read_timeout).await?;
    let finding = Finding {
        executed: given.found == Found::Executed,
        status: given.status,
        result: given.result,
        evidence: text(&app, "evidence", &given.evidence)?,
        note: text(&app, "note", &given.note)?,
    };
    let work = {
        let (app, id, operator) = (Arc::clone(&app), id.clone(), Arc::clone(&operator));
        async move { resolving::resolve(&app, &id, &operator, finding).await }
    };
    let row = act(&app, &operator, work).await?;
    Ok(Json(export::to_json(&row)))
}

/// What an operator gives as evidence or note, without what the detectors know: it is kept, shown and recorded in clear.
fn text(app: &App, name: &str, given: &str) -> Result<String, Refusal> {
    if given.trim().is_empty() || given.len() > TEXT_BYTES || given.contains('\0') {
        return Err(Refusal::new(
            Reason::MalformedBody,
            format!(
                "\"{name}\" must say something, in at most {TEXT_BYTES} bytes and without U+0000."
            ),
        ));
    }
    Ok(app.redactor.text(given))
}
