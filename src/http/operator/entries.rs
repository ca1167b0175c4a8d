//! `/v1/audit`: the entries by filter, a page at a time or all of them as a stream, and the digest by which a known value is
//! found. Who read what is recorded before the answer leaves.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    Json,
    body::Body,
    extract::{Query, State, rejection::QueryRejection},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use chrono::TimeDelta;
use futures::stream;
use http::{HeaderMap, StatusCode, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::OwnedSemaphorePermit;
use utoipa::ToSchema;

use super::{
    allow_reading, away,
    filter::{Asked, Question},
    paging::{Page, Paging},
    reading,
};
use crate::{
    app::App,
    clock::{self, Timestamp},
    http::{input, openapi::dictionary},
    reason::{Reason, Refusal},
    redaction,
    store::{
        StoreError,
        entries::{self, Filter, Order, Position, Room, Walk},
    },
};

const NDJSON: &str = "application/x-ndjson";
/// The largest page, but for its last entry.
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// The longest export. It holds a connection for as long.
const EXPORT_LONGEST: TimeDelta = TimeDelta::hours(1);
/// The longest value whose digest is asked for.
const VALUE_BYTES: usize = 4 * 1024;

/// An entry of the records, with its columns that are not null.
pub(in crate::http) struct EntryRecord;

dictionary::filled_schema!(
    EntryRecord,
    "audit.entries",
    [
        "instance_id",
        "seq",
        "recorded_at",
        "kind",
        "opens_call",
        "hash"
    ]
);

/// Lists entries of the records
///
/// With `Accept: application/x-ndjson` everything that matches as it stood at one moment, an entry a line, without `limit` and
/// `cursor`; one that breaks off does so without the end of its chunks.
#[utoipa::path(get, path = "/v1/audit/entries", operation_id = "list_entries", tag = "records", params(Asked),
    responses((status = 200, description = "A page of entries, or all of them.",
        content((Page<EntryRecord> = "application/json"), (String = "application/x-ndjson"))),
        (status = 429, description = "See the codes.")))]
pub(in crate::http) async fn list(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Response, Refusal> {
    let operator = allow_reading(&app, &headers).await?;
    let asked = input::query(asked)?;
    let question = asked.question()?;
    let wants_stream = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains(NDJSON));
    if wants_stream {
        if asked.limit.is_some() || asked.cursor.is_some() {
            return Err(Refusal::new(
                Reason::MalformedBody,
                "An export takes neither \"limit\" nor \"cursor\": it gives everything that matches. Narrow it with filters.",
            ));
        }
        return export(app, operator, question).await;
    }
    page(&app, &operator, &asked, question).await
}

/// Where a page of entries ended.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    /// The end of what the first page saw: what was recorded since is not part of this walk, so that it ends.
    until: Timestamp,
    /// The last entry of the page.
    at: Timestamp,
    instance: String,
    seq: i64,
}

impl Place {
    fn new(until: Timestamp, last: &Position) -> Self {
        Self {
            until,
            at: last.recorded_at,
            instance: last.instance_id.clone(),
            seq: last.seq,
        }
    }

    fn position(&self) -> Position {
        Position {
            recorded_at: self.at,
            instance_id: self.instance.clone(),
            seq: self.seq,
        }
    }
}

async fn page(
    app: &App,
    operator: &Arc<str>,
    asked: &Asked,
    mut question: Question,
) -> Result<Response, Refusal> {
    let list = format!("entries {:?}", question.order);
    let page = (asked.limit, asked.cursor.as_deref());
    let paging = Paging::<Place>::read(&app.keyring, &list, &question.told, page)?;
    let room = Room {
        entries: paging.limit,
        bytes: PAGE_BYTES,
    };
    let begun = paging.after.as_ref();
    let until = begun.map_or_else(clock::now, |begun| begun.until);
    // Each page is itself recorded: without an end, a walk towards now would go on for ever.
    if question.order == Order::OldestFirst {
        end_at(&mut question.filter, until);
    }
    let after = begun.map(Place::position);
    let read = async {
        let mut connection = app.reading.pool.acquire().await?;
        let (filter, order) = (&question.filter, question.order);
        entries::page(&mut connection, filter, order, after.as_ref(), room).await
    };
    let (found, has_more) = read.await.map_err(|error: StoreError| away(&error))?;
    let cursor = found
        .last()
        .filter(|_| has_more)
        .map(|last| paging.cursor(&Place::new(until, &last.position)));
    reading::told(
        app,
        operator,
        "GET /v1/audit/entries",
        json!({"filter": question.told, "rows": found.len()}),
    )
    .await?;
    // Put together as text, so that every number stays as it was recorded.
    let data: Vec<String> = found.into_iter().map(|found| found.json).collect();
    let body = format!(
        r#"{{"data":[{}],"has_more":{has_more},"cursor":{}}}"#,
        data.join(","),
        json!(cursor)
    );
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

fn end_at(filter: &mut Filter, until: Timestamp) {
    filter.to = Some(filter.to.map_or(until, |to| to.min(until)));
}

/// An export under way. Reads on only as the client takes what was read.
struct Export {
    app: Arc<App>,
    operator: Arc<str>,
    told: Value,
    walk: Walk,
    began: Timestamp,
    rows: u64,
    is_over: bool,
    _place: OwnedSemaphorePermit,
}

async fn export(
    app: Arc<App>,
    operator: Arc<str>,
    mut question: Question,
) -> Result<Response, Refusal> {
    let Ok(place) = Arc::clone(&app.reading.exports).try_acquire_owned() else {
        return Err(Refusal::new(
            Reason::RateLimited,
            "As many exports as may run at a time are under way. Try again when one has ended, or read page by page.",
        )
        .retry_after(10));
    };
    // What was recorded up to here is committed once this reading is: the export is of exactly that.
    let began = clock::now();
    reading::told(
        &app,
        &operator,
        "GET /v1/audit/entries",
        json!({"filter": question.told, "export": "begun", "began_at": began}),
    )
    .await?;
    end_at(&mut question.filter, began);
    let walk = Walk::begin(&app.reading.pool, &question.filter, question.order)
        .await
        .map_err(|error| away(&error))?;
    let export = Export {
        app,
        operator,
        told: question.told,
        walk,
        began,
        rows: 0,
        is_over: false,
        _place: place,
    };
    let body = Body::from_stream(stream::try_unfold(export, next));
    Ok((StatusCode::OK, [(header::CONTENT_TYPE, NDJSON)], body).into_response())
}

/// The next stretch. The answer ends once it is recorded how many entries there were; an error breaks the connection, so that
/// nobody takes a part for the whole.
async fn next(mut export: Export) -> std::io::Result<Option<(Bytes, Export)>> {
    if export.app.stopping.load(Ordering::Acquire) {
        return Err(std::io::Error::other("the gateway stops"));
    }
    if clock::now() - export.began > EXPORT_LONGEST {
        return Err(std::io::Error::other("the export takes too long"));
    }
    let found = export.walk.next().await.map_err(|error| {
        tracing::warn!(%error, "an export broke off");
        std::io::Error::other("the records could not be read on")
    })?;
    export.rows += u64::try_from(found.len()).unwrap_or_default();
    let mut lines = String::with_capacity(found.iter().map(|one| one.json.len() + 1).sum());
    for one in &found {
        lines.push_str(&one.json);
        lines.push('\n');
    }
    if found.is_empty() {
        let ended = export.ended(true);
        if reading::told(
            &export.app,
            &export.operator,
            "GET /v1/audit/entries",
            ended,
        )
        .await
        .is_err()
        {
            return Err(std::io::Error::other("the export could not be recorded"));
        }
        export.is_over = true;
        return Ok(None);
    }
    Ok(Some((lines.into(), export)))
}

impl Export {
    fn ended(&self, is_complete: bool) -> Value {
        json!({
            "filter": self.told,
            "export": "ended",
            "began_at": self.began,
            "rows": self.rows,
            "complete": is_complete,
        })
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        if !self.is_over {
            let ended = self.ended(false);
            reading::told_late(&self.app, &self.operator, "GET /v1/audit/entries", ended);
        }
    }
}

/// A value whose digests are asked for.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Hashing {
    /// As one knows it; it is not kept.
    #[schema(min_length = 1, max_length = 4096)]
    value: String,
}

/// The digests under which a value may stand in the records.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Digests {
    data: Vec<FormDigest>,
    /// All of them, for the parameter `value` of the list of entries.
    value: String,
}

/// One of the ways in which a value is written, and its digest.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct FormDigest {
    form: String,
    token: String,
}

/// Gives the digests of a known value
///
/// From a value that the operator knows to what stands in its place in the records. It comes in a body, which is in no list of
/// requests, and is not kept.
#[utoipa::path(post, path = "/v1/audit/hash", operation_id = "hash", tag = "records",
    request_body(content = Hashing, example = json!({"value": "jane@example.com"})),
    responses((status = 200, description = "Its digests.", body = Digests)))]
pub(in crate::http) async fn hash(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Digests>, Refusal> {
    let operator = allow_reading(&app, &headers).await?;
    let hashing: Hashing =
        input::json(&headers, body, app.config.limits.client_read_timeout).await?;
    if hashing.value.is_empty() || hashing.value.len() > VALUE_BYTES {
        return Err(Refusal::new(
            Reason::MalformedBody,
            format!("\"value\" must be a text of at most {VALUE_BYTES} bytes."),
        ));
    }
    let tokens = redaction::tokens_of(&hashing.value, &app.keyring);
    let digests: Vec<&str> = tokens.iter().map(|(_, token)| token.as_str()).collect();
    reading::told(
        &app,
        &operator,
        "POST /v1/audit/hash",
        json!({"filter": {"value": digests}, "rows": 0}),
    )
    .await?;
    let value = digests.join(",");
    let data = tokens
        .into_iter()
        .map(|(form, token)| FormDigest {
            form: form.to_string(),
            token,
        })
        .collect();
    Ok(Json(Digests { data, value }))
}
