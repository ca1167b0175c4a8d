//! Reading the bodies of the gateway's own routes: strict JSON, bounded, with problems that say what to send instead.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequestParts, Path, Query, rejection::QueryRejection},
};
use bytes::Bytes;
use http::{HeaderMap, request::Parts};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::{
    json, pipeline,
    reason::{Reason, Refusal},
};

/// The largest body of the gateway's own routes.
const LIMIT: usize = 64 * 1024;

/// The one decoded segment of a path that names something: an id, or a tool. What is not UTF-8, and what PostgreSQL
/// cannot hold as text, names nothing; the handler says so in its own words, after it has looked who asks.
pub(super) struct Named(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Named {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Infallible> {
        let named = Path::<String>::from_request_parts(parts, state).await;
        Ok(Self(match named {
            Ok(Path(text)) if !text.contains('\0') => text,
            _ => String::new(),
        }))
    }
}

/// A JSON body as a type. Unknown fields are refused where the type says so.
///
/// # Errors
/// 400, 413 or 415.
pub(super) async fn json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    patience: Duration,
) -> Result<T, Refusal> {
    pipeline::is_json(headers)?;
    let bytes = read(body, patience).await?;
    let malformed = |detail: String| Refusal::new(Reason::MalformedBody, detail);
    let value = json::parse(&bytes).map_err(|error| malformed(error.to_string()))?;
    if !value.is_object() {
        // A list of the fields' values would do for the type, and nobody could read what it says.
        return Err(malformed("The body must be a JSON object.".to_owned()));
    }
    serde_json::from_value(value).map_err(|error| malformed(misfit(&error)))
}

/// The query string as a type.
///
/// # Errors
/// 400, without anything that stood in it.
pub(super) fn query<T>(read: Result<Query<T>, QueryRejection>) -> Result<T, Refusal> {
    read.map(|Query(asked)| asked).map_err(|error| {
        let text = error.body_text();
        let expected = text.rsplit_once(", expected ").map_or_else(
            || "names and values that this path takes".to_owned(),
            |(_, expected)| expected.to_owned(),
        );
        Refusal::new(
            Reason::MalformedBody,
            format!("The query string does not have the expected form: it should have {expected}."),
        )
    })
}

/// What serde says, without the value that it quotes.
fn misfit(error: &serde_json::Error) -> String {
    let text = error.to_string();
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => {
            format!("The body does not have the expected form: it should have {expected}.")
        }
        None => format!("The body does not have the expected form: {text}."),
    }
}

async fn read(body: Body, patience: Duration) -> Result<Bytes, Refusal> {
    let whole = Limited::new(body, LIMIT).collect();
    match tokio::time::timeout(patience, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::new(
            Reason::BodyTooLarge,
            format!("The body is larger than {LIMIT} bytes."),
        )),
        _ => Err(Refusal::new(
            Reason::MalformedBody,
            "The body did not arrive whole and in time. Send the request again.",
        )),
    }
}
