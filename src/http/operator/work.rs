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
use serde_json::{Value, json};
use utoipa::{IntoParams, ToSchema, openapi::Object};

use super::{
    allow, filter, identify,
    paging::{Page, Paging},
    refused,
};
use crate::{
    app::App,
    clock,
    entry::{Entry, Kind},
    http::{
        input::{self, Named},
        openapi::{dictionary::made_of, schemas},
    },
    ids::CallId,
    policy::{OperatorAction, OperatorContext, OperatorResource},
    reason::{Reason, Refusal},
    resolving::{
        self, Finding,
        export::{self, WorkItem},
    },
    store::work::{Filter, WorkRow},
};

const KINDS: [&str; 2] = ["reconcile", "manual"];
const STATES: [&str; 6] = ["waiting", "open", "claimed", "resolved", "withdrawn", "all"];
const FORMATS: [&str; 2] = ["json", "csv"];
/// The longest evidence and note, in bytes.
const TEXT_BYTES: usize = 2_000;

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Listing {
    /// Only items of this kind: `reconcile` for calls whose answer was lost, `manual` for calls to be done by hand.
    #[param(inline, value_type = Option<Kinds>)]
    kind: Option<String>,
    /// Only items in this state; `waiting`, which is `open` or `claimed`, where nothing is said.
    #[param(inline, value_type = Option<States>)]
    state: Option<String>,
    /// Only calls of this agent.
    #[param(inline, value_type = Option<schemas::Name>)]
    agent: Option<String>,
    /// Only calls of this tool.
    #[param(inline, value_type = Option<schemas::Name>)]
    tool: Option<String>,
    /// Rows of the page.
    #[param(inline, value_type = Option<schemas::Limit>)]
    limit: Option<i64>,
    /// Where the page before ended: its `cursor`.
    #[param(inline, value_type = Option<schemas::Cursor>)]
    cursor: Option<String>,
    /// In which form; `json` where nothing is said.
    #[param(inline, value_type = Option<Formats>)]
    format: Option<String>,
}

fn kinds() -> Object {
    schemas::one_of(KINDS)
}

struct Kinds;
made_of!(Kinds, kinds().into());

fn states() -> Object {
    schemas::one_of(STATES)
}

struct States;
made_of!(States, states().into());

fn formats() -> Object {
    schemas::one_of(FORMATS)
}

struct Formats;
made_of!(Formats, formats().into());

/// Lists what waits for people
///
/// Calls whose answer was lost, and calls to be done by hand, in the order in which they were made. That they were shown is recorded.
#[utoipa::path(get, path = "/v1/work", operation_id = "list_work", tag = "work", params(Listing),
    responses((status = 200, description = "A page of items; as CSV with a heading line.",
        content((Page<WorkItem> = "application/json"), (String = "text/csv")),
        headers(("Link" = String, description = "With CSV: the next page, as RFC 8288 has it.")))))]
pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    listing: Result<Query<Listing>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refusal> {
    let operator = identify(&app, &headers)?;
    let context = OperatorContext::Empty;
    allow(&app, &operator, OperatorAction::ReadWork, context)?;
    let listing = input::query(listing)?;
    let kind = filter::one_of("kind", listing.kind.as_deref(), &KINDS, |known| known)?;
    let state = filter::one_of("state", listing.state.as_deref(), &STATES, |known| known)?;
    let format = filter::one_of("format", listing.format.as_deref(), &FORMATS, |known| known)?;
    let agent = filter::name("agent", listing.agent.as_deref())?;
    let tool = filter::name("tool", listing.tool.as_deref())?;
    let mut told = filter::given(&[
        ("kind", kind),
        ("state", state),
        ("agent", agent.as_deref()),
        ("tool", tool.as_deref()),
    ]);
    let list = Value::Object(told.clone());
    let page = (listing.limit, listing.cursor.as_deref());
    let paging = Paging::<String>::read(&app.keyring, "work", &list, page)?;
    let filter = Filter {
        kind,
        state: Some(state.unwrap_or("waiting")).filter(|state| *state != "all"),
        agent: agent.as_deref(),
        tool: tool.as_deref(),
        call: None,
        after: paging.after.as_deref(),
    };
    let mut rows = resolving::list(&app, &filter, paging.wanted()).await?;
    let cursor = paging.cut(&mut rows, |last| last.call_id.clone());
    let seen: Vec<&str> = rows.iter().map(|row| row.call_id.as_str()).collect();
    told.extend(filter::given(&[("format", format)]));
    let entry = Entry {
        operator: Some(operator),
        decided_at: Some(clock::now()),
        detail: Some(json!({ "work": seen, "filter": told, "request": "GET /v1/work" })),
        ..Entry::new(Kind::WorkViewed)
    };
    viewed(&app, entry).await?;
    let data: Vec<WorkItem> = rows.iter().map(WorkItem::of).collect();
    if format == Some("csv") {
        let next = cursor.map(|cursor| listing.next(&cursor));
        return Ok(as_csv(&data, next.as_deref()));
    }
    Ok(Json(Page::new(data, cursor)).into_response())
}

impl Listing {
    /// The query string of the next page.
    fn next(&self, cursor: &str) -> String {
        let limit = self.limit.map(|limit| limit.to_string());
        let given = [
            ("format", self.format.as_deref()),
            ("kind", self.kind.as_deref()),
            ("state", self.state.as_deref()),
            ("agent", self.agent.as_deref()),
            ("tool", self.tool.as_deref()),
            ("limit", limit.as_deref()),
            ("cursor", Some(cursor)),
        ];
        let given = given
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        form_urlencoded::Serializer::new(String::new())
            .extend_pairs(given)
            .finish()
    }
}

/// What does not fit into one page is named by the header `Link` (RFC 8288), because CSV has no place for it.
fn as_csv(data: &[WorkItem], next: Option<&str>) -> Response {
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
    let link = next.map(|query| format!("</v1/work?{query}>; rel=\"next\""));
    if let Some(Ok(link)) = link.as_deref().map(HeaderValue::from_str) {
        headers.insert(header::LINK, link);
    }
    response
}

/// Shows one item
#[utoipa::path(get, path = "/v1/work/{work}", operation_id = "show_work", tag = "work",
    params(("work" = String, Path, description = "The call's id.")),
    responses((status = 200, description = "The item.", body = WorkItem)))]
pub(in crate::http) async fn show(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<WorkItem>, Refusal> {
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
) -> Result<WorkItem, Refusal> {
    let opened = resolving::real_arguments(app, call, row, operator).await?;
    let (arguments, preview) = opened.map_or((None, None), |opened| {
        (Some(opened.arguments), opened.preview)
    });
    Ok(WorkItem {
        arguments,
        preview,
        ..WorkItem::of(row)
    })
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
            hidden.recorded_as = Some(refusal.reason);
            return refused("resolve", hidden);
        }
        refused("resolve", refusal)
    })
}

/// Claims an item
///
/// Nobody else can claim it until its lease is over, and the gateway never sends what was claimed. The answer has the real arguments.
#[utoipa::path(post, path = "/v1/work/{work}/claim", operation_id = "claim_work", tag = "work",
    params(("work" = String, Path, description = "The call's id.")),
    responses((status = 200, description = "It is the caller's.", body = WorkItem), (status = 409, description = "See the codes.")))]
pub(in crate::http) async fn claim(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
) -> Result<Json<WorkItem>, Refusal> {
    let operator = identify(&app, &headers)?;
    let work = {
        let (app, id, operator) = (Arc::clone(&app), id.clone(), Arc::clone(&operator));
        async move { resolving::claim(&app, &id, &operator).await }
    };
    let (call, row) = act(&app, &operator, work).await?;
    whole(&app, &call, &row, &operator).await.map(Json)
}

/// Why an item is given back.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Releasing {
    /// In words; it is kept, shown and recorded.
    #[schema(min_length = 1, max_length = 2000)]
    note: String,
}

/// Gives an item back
///
/// A call that was to be done by hand stays so.
#[utoipa::path(post, path = "/v1/work/{work}/release", operation_id = "release_work", tag = "work",
    params(("work" = String, Path, description = "The call's id.")),
    request_body(content = Releasing, example = json!({"note": "the desk is closed today"})),
    responses((status = 200, description = "It is open again.", body = WorkItem), (status = 409, description = "See the codes.")))]
pub(in crate::http) async fn release(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<WorkItem>, Refusal> {
    let operator = identify(&app, &headers)?;
    let releasing: Releasing =
        input::json(&headers, body, app.config.limits.client_read_timeout).await?;
    let note = text(&app, "note", &releasing.note)?;
    let work = {
        let (app, id, operator) = (Arc::clone(&app), id.clone(), Arc::clone(&operator));
        async move { resolving::release(&app, &id, &operator, note).await }
    };
    let row = act(&app, &operator, work).await?;
    Ok(Json(WorkItem::of(&row)))
}

/// What an operator says became of a call.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Resolving {
    found: Found,
    /// Of an executed call: the status with which the API answered, if that is known.
    status: Option<u16>,
    /// Of an executed call: the API's answer, held to the contract. The agent gets it.
    result: Option<Value>,
    /// Where it can be seen.
    #[schema(min_length = 1, max_length = 2000)]
    evidence: String,
    /// In words; it is kept, shown and recorded.
    #[schema(min_length = 1, max_length = 2000)]
    note: String,
}

/// Whether the API has executed a call.
#[derive(Deserialize, ToSchema, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Found {
    Executed,
    NotExecuted,
}

/// Says what became of a call
///
/// Once. The agent gets that answer, marked, and the gateway never sends the call.
#[utoipa::path(post, path = "/v1/work/{work}/resolve", operation_id = "resolve_work", tag = "work",
    params(("work" = String, Path, description = "The call's id.")),
    request_body(content = Resolving, example = json!({"found": "executed", "status": 201, "result": {"refund": "rf_7", "status": "succeeded"},
        "evidence": "https://desk.example.com/refunds/rf_7", "note": "done in the back office"})),
    responses((status = 200, description = "It is resolved.", body = WorkItem), (status = 409, description = "See the codes."),
        (status = 422, description = "See the codes.")))]
pub(in crate::http) async fn resolve(
    State(app): State<Arc<App>>,
    Named(id): Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<WorkItem>, Refusal> {
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
    Ok(Json(WorkItem::of(&row)))
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
