//! Refusals as HTTP answers: problem documents (RFC 9457), one table from reasons to statuses and titles.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header};
use serde::Serialize;
use serde_json::Value;
use utoipa::{
    ToSchema,
    openapi::{Object, ObjectBuilder, schema::Type},
};

use crate::{
    ids::{ApprovalId, CallId, KillSwitchId},
    reason::{FieldError, Reason, Refusal},
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
    /// Why, as it is recorded.
    pub reason: Reason,
    /// What whoever was refused is told.
    pub detail: String,
    /// Ids of the policies that decided.
    pub policies: Vec<String>,
    /// More for the audit row.
    pub more: Option<Value>,
}

/// A problem document (RFC 9457).
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Problem {
    /// `urn:toolgate:problem:` and the code.
    #[schema(examples("urn:toolgate:problem:approval_required"))]
    pub r#type: String,
    /// The code in words.
    pub title: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// Stable: what a program looks at.
    #[schema(schema_with = codes)]
    pub code: &'static str,
    /// What happened and what to do next.
    pub detail: String,
    /// The call that this is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub call: Option<CallId>,
    /// With `call`: whether the API executed it; null where nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<bool>)]
    pub executed: Option<Option<bool>>,
    /// The arguments that do not fit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
    /// Ids of the policies that decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub policies: Option<Vec<String>>,
    /// The approval that the call waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub approval: Option<ApprovalId>,
    /// The kill switch that stopped it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    pub kill_switch: Option<KillSwitchId>,
}

fn codes() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::String)
        .enum_values(Some(Reason::ALL.map(Reason::code)))
        .build()
}

/// The document of a refusal.
fn document(status: StatusCode, refusal: &Refusal, call: Option<&CallId>) -> Problem {
    let (_, title) = status_and_title(refusal.reason);
    let call = refusal.call.as_ref().or(call).cloned();
    let errors = refusal.errors.iter().map(|error| FieldError {
        pointer: named(&error.pointer).into(),
        message: named(&error.message).into(),
    });
    let decided = !refusal.policies.is_empty() || refusal.reason == Reason::DeniedByPolicy;
    Problem {
        r#type: format!("urn:toolgate:problem:{}", refusal.reason.code()),
        title,
        status: status.as_u16(),
        code: refusal.reason.code(),
        // Whatever a message was made of, nothing that the detectors know stands in it.
        detail: named(&refusal.detail).into(),
        executed: call.is_some().then_some(refusal.executed),
        call,
        errors: errors.collect(),
        policies: decided.then(|| refusal.policies.clone()),
        approval: refusal.approval.clone(),
        kill_switch: refusal.kill_switch.clone(),
    }
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
    let document = document(status, refusal, call);
    let text = serde_json::to_string(&document).unwrap_or_default();
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.extensions_mut().insert(Told {
        reason: refusal.recorded_as.unwrap_or(refusal.reason),
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
