//! What each listener takes and gives, as an OpenAPI 3.1 document that is made from the routes themselves, and as a page that is
//! made from the document. Both are the same for every gateway of this version and say nothing of its config, tools or people;
//! so they are open to whoever reaches the listener, as a browser that follows a link cannot send a key.

use std::sync::OnceLock;

use aws_lc_rs::digest::{SHA256, digest};
use axum::response::{IntoResponse, Response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use serde_json::{Value, json};
use utoipa::openapi::OpenApi;

pub(super) mod dictionary;
mod page;
mod problems;
pub(super) mod schemas;

/// A listener, as its document begins.
pub(super) struct Listener {
    pub title: &'static str,
    /// In Markdown.
    pub about: &'static str,
    /// Name and form of the key that opens it.
    pub key: (&'static str, &'static str),
    /// Names of the groups of operations and what they are.
    pub tags: &'static [(&'static str, &'static str)],
    /// The operations that are calls of tools, by path: whatever can become of a call can be their answer.
    pub calls: &'static [&'static str],
}

/// What agents can reach.
pub(super) const AGENTS: Listener = Listener {
    title: "Toolgate for agents",
    about: "The gateway's own routes. Beside them every API behind the gateway has its own paths below its name: `POST /refunds` of the API `desk` is `POST /desk/refunds` here, with this gateway's key instead of the API's, and its answer is the API's own. `GET /v1/tools` says which there are. Every answer about a call carries `Toolgate-Call`.",
    key: ("agent_key", "tg_agent_…"),
    tags: &[
        (
            "tools",
            "What may be called, calling it, and what became of it.",
        ),
        ("runs", "Who or what started the agent, and what for."),
        ("gateway", "The gateway itself."),
    ],
    calls: &["/v1/tools/{tool}/calls"],
};

/// What operators can reach.
pub(super) const OPERATORS: Listener = Listener {
    title: "Toolgate for operators",
    about: "Approving, stopping, reading the records, and doing by hand what waits. What an operator may do is decided by the policies; whoever reads is recorded before the answer leaves. Lists give `limit` rows and a `cursor` to the next page, which is good for the same list with the same filter.",
    key: ("operator_key", "tg_operator_…"),
    tags: &[
        (
            "approvals",
            "Calls that wait for people, the decisions on them, and how much is asked of whom.",
        ),
        (
            "permissions",
            "Approvals that were given for calls to come, and taking them back.",
        ),
        ("delegations", "Lending one's right to vote."),
        ("kill switches", "Stopping calls, and letting them go on."),
        (
            "work",
            "Calls whose answer was lost, and calls that people do by hand.",
        ),
        (
            "deliveries",
            "Messages to people, and what did not get through.",
        ),
        ("records", "What happened."),
        ("gateway", "The gateway itself."),
    ],
    calls: &[],
};

/// A document and its page, as they are sent.
pub(super) struct Published {
    json: Bytes,
    page: Bytes,
    /// The page's Content-Security-Policy.
    policy: HeaderValue,
}

/// The two listeners' documents: made when their routes are.
pub(super) static OF_AGENTS: OnceLock<Published> = OnceLock::new();
pub(super) static OF_OPERATORS: OnceLock<Published> = OnceLock::new();

impl Published {
    /// Makes both from the routes.
    pub(super) fn of(routes: &OpenApi, listener: &Listener) -> Self {
        let document = document(routes, listener);
        let hash = STANDARD.encode(digest(&SHA256, page::STYLE.as_bytes()));
        let policy = format!(
            "default-src 'none'; style-src 'sha256-{hash}'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        );
        Self {
            json: document.to_string().into(),
            page: page::render(&document).into(),
            policy: HeaderValue::try_from(policy)
                .unwrap_or(HeaderValue::from_static("default-src 'none'")),
        }
    }
}

/// The document of the routes, with what holds for all of them.
fn document(routes: &OpenApi, listener: &Listener) -> Value {
    let mut document = serde_json::to_value(routes).unwrap_or_default();
    let (name, form) = listener.key;
    let tags: Vec<Value> = listener
        .tags
        .iter()
        .map(|(name, about)| json!({"name": name, "description": about}))
        .collect();
    let Some(root) = document.as_object_mut() else {
        return document;
    };
    root.insert(
        "info".to_owned(),
        json!({
            "title": listener.title,
            "version": env!("CARGO_PKG_VERSION"),
            "description": listener.about,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        }),
    );
    root.insert("tags".to_owned(), tags.into());
    root.insert("security".to_owned(), json!([{ name: [] }]));
    if let Some(paths) = root.get_mut("paths").and_then(Value::as_object_mut) {
        for (path, item) in paths {
            let is_call = listener.calls.contains(&path.as_str());
            let operations = item.as_object_mut().into_iter().flatten();
            for operation in operations.filter_map(|(_, operation)| operation.as_object_mut()) {
                problems::add(operation, is_call);
            }
        }
    }
    let components = root.entry("components").or_insert_with(|| json!({}));
    if let Some(components) = components.as_object_mut() {
        components.insert("responses".to_owned(), problems::responses().into());
        components.insert(
            "securitySchemes".to_owned(),
            json!({ name: {
                "type": "http", "scheme": "bearer", "bearerFormat": form,
                "description": "A key that `toolgate keys create` has made.",
            }}),
        );
        let schemas = components.entry("schemas").or_insert_with(|| json!({}));
        if let Some(schemas) = schemas.as_object_mut() {
            schemas.insert("Problem".to_owned(), schemas::problem());
            schemas.insert("FieldError".to_owned(), schemas::field_error());
        }
    }
    keep_used(&mut document);
    document
}

/// Leaves out components that nothing refers to.
fn keep_used(document: &mut Value) {
    for kind in ["responses", "schemas"] {
        loop {
            let text = document.to_string();
            let pointer = format!("/components/{kind}");
            let Some(all) = document
                .pointer_mut(&pointer)
                .and_then(Value::as_object_mut)
            else {
                break;
            };
            let before = all.len();
            all.retain(|name, _| text.contains(&format!("\"#/components/{kind}/{name}\"")));
            if all.len() == before {
                break;
            }
        }
    }
}

const NOSNIFF: (HeaderName, HeaderValue) = (
    header::X_CONTENT_TYPE_OPTIONS,
    HeaderValue::from_static("nosniff"),
);

/// The answer with the document.
pub(super) fn json_of(published: &OnceLock<Published>) -> Response {
    let Some(published) = published.get() else {
        return http::StatusCode::NOT_FOUND.into_response();
    };
    let kind = HeaderValue::from_static("application/json");
    (
        [(header::CONTENT_TYPE, kind), NOSNIFF],
        published.json.clone(),
    )
        .into_response()
}

/// The answer with the page.
pub(super) fn page_of(published: &OnceLock<Published>) -> Response {
    let Some(published) = published.get() else {
        return http::StatusCode::NOT_FOUND.into_response();
    };
    let kind = HeaderValue::from_static("text/html; charset=utf-8");
    let referrer = HeaderValue::from_static("no-referrer");
    (
        [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, published.policy.clone()),
            (header::REFERRER_POLICY, referrer),
            NOSNIFF,
        ],
        published.page.clone(),
    )
        .into_response()
}

/// This document
///
/// OpenAPI 3.1, the same for every gateway of this version.
#[utoipa::path(get, path = "/openapi.json", operation_id = "openapi", tag = "gateway", security(()),
    responses((status = 200, description = "The document.", body = Object)))]
pub(super) async fn operators_document() -> Response {
    json_of(&OF_OPERATORS)
}

/// This document as a page
#[utoipa::path(get, path = "/docs", operation_id = "docs", tag = "gateway", security(()),
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
pub(super) async fn operators_page() -> Response {
    page_of(&OF_OPERATORS)
}

/// This document
///
/// OpenAPI 3.1, the same for every gateway of this version.
#[utoipa::path(get, path = "/v1/openapi.json", operation_id = "openapi", tag = "gateway", security(()),
    responses((status = 200, description = "The document.", body = Object)))]
pub(super) async fn agents_document() -> Response {
    json_of(&OF_AGENTS)
}

/// This document as a page
#[utoipa::path(get, path = "/v1/docs", operation_id = "docs", tag = "gateway", security(()),
    responses((status = 200, description = "The page.", body = String, content_type = "text/html")))]
pub(super) async fn agents_page() -> Response {
    page_of(&OF_AGENTS)
}
