//! The last step: what the caller gets. The transparent route answers exactly as the API did; the tool-call route says in
//! words what became of the call. Every answer names the call.

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use base64::Engine as _;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::{
    Surface,
    forward::{ApiAnswer, Received},
    record::Settled,
    seen::is_json,
};
use crate::{ids::CallId, problem, reason::Refusal};

/// The header that names the call.
pub const CALL_HEADER: &str = "toolgate-call";

/// An answer, ready to be sent.
#[derive(Debug)]
pub struct Reply(Response);

impl Reply {
    /// The answer of a refused call.
    pub fn refused(refusal: &Refusal, call: &CallId) -> Self {
        let named = refusal.call.as_ref().unwrap_or(call);
        Self::of(problem::response(refusal, Some(call)), named)
    }

    fn of(mut response: Response, call: &CallId) -> Self {
        if let Ok(value) = HeaderValue::from_str(call.as_str()) {
            response.headers_mut().insert(CALL_HEADER, value);
        }
        Self(response)
    }

    /// A JSON object about a call.
    pub(super) fn json(status: StatusCode, body: &Value, call: &CallId) -> Self {
        let mut response = Response::new(Body::from(body.to_string()));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Self::of(response, call)
    }

    /// Adds a header.
    pub(super) fn with(mut self, name: http::HeaderName, value: HeaderValue) -> Self {
        self.0.headers_mut().insert(name, value);
        self
    }

    /// The API's whole answer, for one surface.
    pub(super) fn answered(
        answer: ApiAnswer,
        surface: Surface,
        call: &CallId,
        executed_by: Option<&str>,
    ) -> Self {
        match surface {
            Surface::Transparent => {
                let mut response = Response::new(Body::from(answer.body));
                *response.status_mut() = answer.status;
                *response.headers_mut() = answer.headers;
                Self::of(response, call)
            }
            Surface::ToolCall | Surface::Before | Surface::Preview => {
                let mut body = json!({
                    "call": call,
                    "executed": true,
                    "status": answer.status.as_u16(),
                    "result": result_of(&answer),
                });
                if let (Some(body), Some(whose)) = (body.as_object_mut(), executed_by) {
                    body.insert("executed_by".to_owned(), json!(whose));
                }
                Self::json(StatusCode::OK, &body, call)
            }
        }
    }
}

impl IntoResponse for Reply {
    fn into_response(self) -> Response {
        self.0
    }
}

/// The body of an API's answer as a JSON value: what it is where it is JSON, a text where it is text, else base64.
pub(crate) fn result_of(answer: &ApiAnswer) -> Value {
    if answer.body.is_empty() {
        return Value::Null;
    }
    if is_json(&answer.headers)
        && let Ok(value) = serde_json::from_slice(&answer.body)
    {
        return value;
    }
    match std::str::from_utf8(&answer.body) {
        Ok(text) => Value::String(text.to_owned()),
        Err(_) => json!({"base64": base64::engine::general_purpose::STANDARD.encode(&answer.body)}),
    }
}

pub(super) fn reply(settled: Settled) -> Reply {
    match settled.received {
        Received::Whole(answer) => Reply::answered(answer, settled.surface, &settled.call, None),
        Received::Stream {
            status,
            headers,
            body,
            ..
        } => {
            let mut response = Response::new(Body::new(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            Reply::of(response, &settled.call)
        }
        Received::Failed { refusal, .. } => Reply::refused(&refusal, &settled.call),
    }
}
