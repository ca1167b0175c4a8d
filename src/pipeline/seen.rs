//! What is recorded of an API's answer, and what of it goes on to the agent: what the contract names and no more.

use std::sync::Arc;

use http::{HeaderMap, header};
use serde_json::{Map, Value};

use super::{forward::ApiAnswer, shown};
use crate::{
    app::{App, Tool},
    entry::Redacted,
};

/// An answer as the record may know it.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// The answer, where it fits an output schema: cut to what that names, without sensitive values. Nobody has said what
    /// any other answer holds, so of that there is only the digest.
    pub answer: Option<Redacted>,
    /// Keyed digest over the bytes of the body as they came.
    pub digest: Option<Arc<str>>,
    /// Where the contract's pointers led, by pointer.
    pub changed: Option<Redacted>,
}

impl Seen {
    /// Only that there was an answer, and which.
    pub(super) fn digest_of(app: &App, body: &[u8]) -> Self {
        Self {
            digest: (!body.is_empty()).then(|| app.keyring.call_digest(body).into()),
            ..Self::default()
        }
    }

    /// An answer that fits its contract: notes it, and cuts it and `value`, which it was read as, to what the contract names.
    pub(super) fn fitting(app: &App, tool: &Tool, answer: &mut ApiAnswer, value: &mut Value) {
        answer.seen = Self::digest_of(app, &answer.body);
        let cut = tool
            .output_names
            .as_ref()
            .is_some_and(|names| names.apply(value));
        if cut {
            shown::replace(answer, value.to_string().into());
        }
        let changed: Map<_, _> = tool
            .contract
            .changed
            .iter()
            .filter_map(|pointer| Some((pointer.clone(), value.pointer(pointer)?.clone())))
            .collect();
        let marks = &tool.output_marks;
        answer.seen.answer = Some(app.redactor.redact(marks, value));
        answer.seen.changed =
            (!changed.is_empty()).then(|| app.redactor.redact_parts(marks, &changed));
    }
}

/// Headers that were made over the body as it came.
pub(super) const NOT_OF_ANOTHER_BODY: [&str; 5] = [
    "etag",
    "digest",
    "content-digest",
    "repr-digest",
    "content-md5",
];

/// Whether the headers of an answer say that its body is JSON.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| {
            let kind = value
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_ascii_lowercase();
            kind == "application/json" || kind.ends_with("+json")
        })
}
