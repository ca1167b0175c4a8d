//! Refusals as HTTP answers: problem documents (RFC 9457), one table from reasons to statuses and titles.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Map, Value, json};

use crate::{
    ids::CallId,
    reason::{Reason, Refusal},
    redaction::detectors::named,
};

/// Status and title of each reason.
pub const fn status_and_title(reason: Reason) -> (StatusCode, &'static str) {
    match reason {
        Reason::Unauthenticated => (StatusCode::UNAUTHORIZED, "Not authenticated"),
        Reason::UnknownTool => (StatusCode::NOT_FOUND, "No such tool"),
        Reason::InvalidArguments => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "The arguments do not fit the tool's contract",
        ),
        Reason::MalformedBody => (StatusCode::BAD_REQUEST, "The request cannot be read"),
        Reason::UnsupportedMediaType => (
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "The tool does not take this media type",
        ),
        Reason::BodyTooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "The body is too large"),
        Reason::ScopeMissing => (StatusCode::FORBIDDEN, "A scope is missing"),
        Reason::DeniedByPolicy => (StatusCode::FORBIDDEN, "Denied by policy"),
        Reason::SelfApproval => (
            StatusCode::FORBIDDEN,
            "Nobody decides on what they or their own run asked for",
        ),
        Reason::ApprovalRequired => (
            StatusCode::FORBIDDEN,
            "NOT executed: the call waits for a person's approval",
        ),
        Reason::ApprovalDenied => (StatusCode::FORBIDDEN, "NOT executed: approval was denied"),
        Reason::ApprovalExpired => (StatusCode::FORBIDDEN, "NOT executed: the approval expired"),
        Reason::ApprovalVoided => (
            StatusCode::FORBIDDEN,
            "NOT executed: what was approved no longer holds",
        ),
        Reason::ByHand => (
            StatusCode::FORBIDDEN,
            "NOT executed: the call waits to be done by hand",
        ),
        Reason::NotExecuted => (
            StatusCode::CONFLICT,
            "NOT executed: an operator has looked, and says so",
        ),
        Reason::Halted => (StatusCode::SERVICE_UNAVAILABLE, "Halted by the kill switch"),
        Reason::RecordUnavailable => (
            StatusCode::SERVICE_UNAVAILABLE,
            "The records are not available",
        ),
        Reason::UpstreamUnreachable => (StatusCode::BAD_GATEWAY, "The API cannot be reached"),
        Reason::UpstreamTimeout => (
            StatusCode::GATEWAY_TIMEOUT,
            "The API did not answer in time",
        ),
        Reason::UpstreamAnswerInvalid => (
            StatusCode::BAD_GATEWAY,
            "The API's answer does not fit its contract",
        ),
        Reason::StateBeforeUnavailable => (
            StatusCode::BAD_GATEWAY,
            "The state before could not be read",
        ),
        Reason::PreviewUnavailable => (
            StatusCode::BAD_GATEWAY,
            "What the call will touch could not be read",
        ),
        Reason::Indeterminate => (StatusCode::BAD_GATEWAY, "It is not known what the API did"),
        Reason::StaleDigest => (
            StatusCode::CONFLICT,
            "The decision was made on something else",
        ),
        Reason::NotFound => (StatusCode::NOT_FOUND, "Not found"),
        Reason::Conflict => (StatusCode::CONFLICT, "Not possible in this state"),
        Reason::IdempotencyKeyReused => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "The idempotency key belongs to another request",
        ),
        Reason::RateLimited => (StatusCode::TOO_MANY_REQUESTS, "Too much at a time"),
        Reason::Internal => (
            StatusCode::INTERNAL_SERVER_ERROR,
            "A fault of the gateway's own",
        ),
    }
}

/// What an answer refuses and why, beside its document, for whoever records it.
#[derive(Debug, Clone)]
pub struct Told {
    /// Why.
    pub reason: Reason,
    /// The same in words.
    pub detail: String,
    /// Ids of the policies that decided.
    pub policies: Vec<String>,
    /// More for the audit row.
    pub more: Option<Value>,
}

/// The document of a refusal, as an object.
pub fn document(refusal: &Refusal, call: Option<&CallId>) -> Value {
    let (status, title) = status_and_title(refusal.reason);
    let mut document = Map::new();
    let mut put = |key: &str, value: Value| {
        document.insert(key.to_owned(), value);
    };
    put(
        "type",
        json!(format!("urn:toolgate:problem:{}", refusal.reason.code())),
    );
    put("title", json!(title));
    put("status", json!(status.as_u16()));
    put("code", json!(refusal.reason.code()));
    // Whatever a message was made of, nothing that the detectors know stands in it.
    put("detail", json!(named(&refusal.detail)));
    if let Some(call) = refusal.call.as_ref().or(call) {
        put("call", json!(call));
        put("executed", json!(refusal.executed));
    }
    if !refusal.errors.is_empty() {
        let errors: Vec<Value> = refusal
            .errors
            .iter()
            .map(
                |error| json!({"pointer": named(&error.pointer), "message": named(&error.message)}),
            )
            .collect();
        put("errors", json!(errors));
    }
    if !refusal.policies.is_empty() || refusal.reason == Reason::DeniedByPolicy {
        put("policies", json!(refusal.policies));
    }
    if let Some(approval) = &refusal.approval {
        put("approval", json!(approval));
    }
    if let Some(kill_switch) = &refusal.kill_switch {
        put("kill_switch", json!(kill_switch));
    }
    Value::Object(document)
}

/// The answer of a refusal.
pub fn response(refusal: &Refusal, call: Option<&CallId>) -> Response {
    let (status, _) = status_and_title(refusal.reason);
    if refusal.allow.is_empty() {
        with_status(status, refusal, call)
    } else {
        with_status(StatusCode::METHOD_NOT_ALLOWED, refusal, call)
    }
}

/// The answer where the path is known and the method is not. Whoever knows the path's methods adds `Allow`.
pub fn method_not_allowed(refusal: &Refusal) -> Response {
    with_status(StatusCode::METHOD_NOT_ALLOWED, refusal, None)
}

fn with_status(status: StatusCode, refusal: &Refusal, call: Option<&CallId>) -> Response {
    let mut document = document(refusal, call);
    if let Some(object) = document.as_object_mut() {
        object.insert("status".to_owned(), json!(status.as_u16()));
    }
    let mut response = Response::new(Body::from(document.to_string()));
    *response.status_mut() = status;
    response.extensions_mut().insert(Told {
        reason: refusal.reason,
        detail: refusal.detail.clone(),
        policies: refusal.policies.clone(),
        more: refusal.audit_detail.clone(),
    });
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if refusal.reason == Reason::Unauthenticated {
        headers.insert(
            header::WWW_AUTHENTICATE,
            HeaderValue::from_static("Bearer realm=\"toolgate\""),
        );
    }
    if let Some(seconds) = refusal.retry_after_seconds {
        headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Ok(allow) = HeaderValue::from_str(&refusal.allow.join(", "))
        && !refusal.allow.is_empty()
    {
        headers.insert(header::ALLOW, allow);
    }
    response
}

/// A refusal outside any call.
impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        response(&self, None)
    }
}
