//! Step two: from a request to a tool and arguments that fit its contract. From here on only the parsed value counts.

use std::sync::Arc;

use axum::body::{Body, HttpBody as _};
use http::{HeaderMap, HeaderValue, header};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Map, Value};

use super::{Arrival, Caller, Prefer, ToolCall, Wanted, record::Trail, references};
use crate::{
    app::{App, Tool},
    contracts::{BodyFormat, RequestError, RouteError, UpstreamRequest, Violation},
    json,
    reason::{FieldError, Reason, Refusal},
};

/// Room for the envelope of a tool call beside its arguments.
const ENVELOPE_BYTES: usize = 8 * 1024;
/// The longest justification, and the longest idempotency key, in bytes.
const WORDS_BYTES: usize = 2_000;
const IDEMPOTENCY_KEY_BYTES: usize = 255;

pub(super) async fn check(
    app: &App,
    caller: Caller,
    arrival: Arrival,
    trail: &mut Trail,
) -> Result<ToolCall, Refusal> {
    no_upgrade(&arrival.headers)?;
    let idempotency_key = idempotency_key(&arrival.headers)?
        .map(|key| super::IdempotencyKey::of(&caller.agent.name, key));
    let traceparent = traceparent(&arrival.headers);
    let prefer = prefer(&arrival.headers, app.config.limits.max_wait.as_secs());
    let (tool, mut arguments, format, words) = match arrival.wanted {
        Wanted::Request {
            method,
            raw_path,
            raw_query,
        } => {
            let (api, path) = split_api(&raw_path);
            let matched = app
                .catalog
                .match_request(api, &method, path)
                .map_err(|error| no_route(&error))?;
            let tool = known(app, &matched.contract.name, trail)?;
            let body = read(app, arrival.body, matched.contract.limits.body_bytes).await?;
            let (arguments, format) = matched
                .contract
                .arguments_from_http(
                    &matched.params,
                    raw_query.as_deref(),
                    &arrival.headers,
                    &body,
                )
                .map_err(unreadable)?;
            let words = reason_header(&arrival.headers)?;
            (tool, Value::Object(arguments), format, words)
        }
        Wanted::Tool { name } => {
            let tool = known(app, &name, trail)?;
            let limit = tool
                .contract
                .limits
                .body_bytes
                .saturating_add(ENVELOPE_BYTES);
            is_json(&arrival.headers)?;
            let body = read(app, arrival.body, limit).await?;
            let (arguments, words) = envelope(&body)?;
            let format = tool.contract.body_formats().first().copied();
            (tool, Value::Object(arguments), format, words)
        }
    };
    references::resolve(app, &caller, &tool, &mut arguments).await?;
    if let Err(violations) = tool.contract.validate(&arguments) {
        return Err(invalid(violations));
    }
    let request = build(&tool, &arguments, format)?;
    let digest = digest(app, &caller, &tool, &arguments);
    let redacted = app.redactor.redact(&tool.marks, &arguments);
    trail.arguments = Some(redacted.clone());
    trail.digest = Some(Arc::clone(&digest));
    trail.words.clone_from(&words);
    Ok(ToolCall {
        id: arrival.call,
        surface: arrival.surface,
        caller,
        tool,
        arguments,
        format,
        request,
        redacted,
        digest,
        words,
        idempotency_key,
        before_of: None,
        prefer,
        traceparent,
        received_at: arrival.received_at,
    })
}

/// The request to the API, from the checked arguments alone. What cannot be written down in the body's format does not fit
/// either, and is refused before anything is decided.
pub(super) fn build(
    tool: &Tool,
    arguments: &Value,
    format: Option<BodyFormat>,
) -> Result<UpstreamRequest, Refusal> {
    let empty = Map::new();
    tool.contract
        .request(arguments.as_object().unwrap_or(&empty), format)
        .map_err(|error| invalid(vec![error.violation()]))
}

/// Keyed digest over everything that makes two calls the same call.
pub(super) fn digest(app: &App, caller: &Caller, tool: &Tool, arguments: &Value) -> Arc<str> {
    let text = identity(
        &caller.agent.name,
        arguments,
        &tool.digest,
        caller.run.id.as_str(),
        &tool.name,
    );
    app.keyring.call_digest(&text).into()
}

/// The digests of a call under the older master secrets, newest first: a call that was kept before a rotation bears one of them.
pub(super) fn older_digests(
    app: &App,
    caller: &Caller,
    tool: &Tool,
    arguments: &Value,
) -> Vec<String> {
    if !app.keyring.has_older() {
        return Vec::new();
    }
    let text = identity(
        &caller.agent.name,
        arguments,
        &tool.digest,
        caller.run.id.as_str(),
        &tool.name,
    );
    app.keyring.older_call_digests(&text).collect()
}

/// RFC 8785 JSON of `{"agent", "arguments", "contract", "run", "tool"}`, put together from its parts so that the arguments are
/// not copied.
fn identity(agent: &str, arguments: &Value, contract: &str, run: &str, tool: &str) -> Vec<u8> {
    let text = |text: &str| json::canonical(&Value::from(text));
    let mut whole = Vec::with_capacity(512);
    for (name, value) in [
        ("{\"agent\":", text(agent)),
        (",\"arguments\":", json::canonical(arguments)),
        (",\"contract\":", text(contract)),
        (",\"run\":", text(run)),
        (",\"tool\":", text(tool)),
    ] {
        whole.extend_from_slice(name.as_bytes());
        whole.extend_from_slice(&value);
    }
    whole.push(b'}');
    whole
}

fn known(app: &App, name: &str, trail: &mut Trail) -> Result<Arc<Tool>, Refusal> {
    let tool = app.tools.get(name).cloned().ok_or_else(|| {
        Refusal::new(
            Reason::UnknownTool,
            "There is no tool of this name. GET /v1/tools lists those you may use.",
        )
    })?;
    trail.tool = Some(Arc::clone(&tool));
    Ok(tool)
}

/// `/{api}` and the rest of the path, which begins with `/` unless it is empty.
fn split_api(raw_path: &str) -> (&str, &str) {
    let path = raw_path.strip_prefix('/').unwrap_or(raw_path);
    match path.find('/') {
        Some(at) => path.split_at(at),
        None => (path, ""),
    }
}

fn no_route(error: &RouteError) -> Refusal {
    match error {
        RouteError::BadPath { .. } => Refusal::new(
            Reason::MalformedBody,
            format!(
                "The path is refused: {error}. Send each value as one percent-encoded segment."
            ),
        ),
        RouteError::MethodNotAllowed { allowed } => {
            let allow: Vec<String> = allowed.iter().map(ToString::to_string).collect();
            let mut refusal = Refusal::new(
                Reason::UnknownTool,
                format!(
                    "No tool has this path under this method; it has {}.",
                    allow.join(", ")
                ),
            );
            refusal.allow = allow;
            refusal
        }
        RouteError::UnknownApi | RouteError::Unknown => Refusal::new(
            Reason::UnknownTool,
            format!("No tool has this path: {error}. GET /v1/tools lists those you may use."),
        ),
    }
}

async fn read(app: &App, body: Body, limit: usize) -> Result<bytes::Bytes, Refusal> {
    let too_large = || {
        Refusal::new(
            Reason::BodyTooLarge,
            format!("The body is larger than the {limit} bytes that this tool takes."),
        )
    };
    if body.size_hint().lower() > limit as u64 {
        return Err(too_large());
    }
    if body.is_end_stream() {
        return Ok(bytes::Bytes::new());
    }
    let whole = Limited::new(body, limit).collect();
    match tokio::time::timeout(app.config.limits.client_read_timeout, whole).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(Refusal::new(
            Reason::MalformedBody,
            "The body ended before it was complete. Send the request again.",
        )),
        Err(_elapsed) => Err(Refusal::new(
            Reason::MalformedBody,
            "The body did not arrive in time. Send the request again.",
        )),
    }
}

fn unreadable(error: RequestError) -> Refusal {
    match error {
        RequestError::Invalid(violations) => invalid(violations),
        RequestError::UnsupportedMediaType(detail) => {
            Refusal::new(Reason::UnsupportedMediaType, detail)
        }
        RequestError::TooLarge { limit_bytes } => Refusal::new(
            Reason::BodyTooLarge,
            format!("The body is larger than the {limit_bytes} bytes that this tool takes."),
        ),
        RequestError::Malformed(detail) => Refusal::new(Reason::MalformedBody, detail),
    }
}

pub(super) fn invalid(violations: Vec<Violation>) -> Refusal {
    let mut refusal = Refusal::new(
        Reason::InvalidArguments,
        "The arguments do not fit the tool's contract; \"errors\" names each. Nothing was sent: correct them and call again.",
    );
    refusal.errors = violations
        .into_iter()
        .map(|violation| FieldError {
            pointer: violation.pointer,
            message: violation.message,
        })
        .collect();
    refusal
}

/// `{"arguments": {…}, "reason": "…"}`, nothing else.
fn envelope(body: &[u8]) -> Result<(Map<String, Value>, Option<String>), Refusal> {
    let malformed = |detail: String| Refusal::new(Reason::MalformedBody, detail);
    let Value::Object(mut object) =
        json::parse(body).map_err(|error| malformed(error.to_string()))?
    else {
        return Err(malformed(
            "The body must be a JSON object {\"arguments\": {…}, \"reason\": \"…\"}.".to_owned(),
        ));
    };
    let arguments = match object.remove("arguments") {
        Some(Value::Object(arguments)) => arguments,
        None => Map::new(),
        Some(_) => return Err(malformed("\"arguments\" must be an object.".to_owned())),
    };
    let words = match object.remove("reason") {
        None | Some(Value::Null) => None,
        Some(Value::String(words)) if words.len() <= WORDS_BYTES => Some(words),
        Some(_) => {
            return Err(malformed(format!(
                "\"reason\" must be a text of at most {WORDS_BYTES} bytes."
            )));
        }
    };
    if object.is_empty() {
        Ok((arguments, words))
    } else {
        Err(malformed(
            "Beside \"arguments\" and \"reason\" the body may hold nothing.".to_owned(),
        ))
    }
}

/// The agent's justification on the transparent route.
fn reason_header(headers: &HeaderMap) -> Result<Option<String>, Refusal> {
    match headers.get("toolgate-reason") {
        None => Ok(None),
        Some(value) => value
            .to_str()
            .ok()
            .filter(|text| text.len() <= WORDS_BYTES)
            .map(|text| Some(text.to_owned()))
            .ok_or_else(|| {
                Refusal::new(
                    Reason::MalformedBody,
                    format!(
                        "Toolgate-Reason must be visible ASCII of at most {WORDS_BYTES} bytes."
                    ),
                )
            }),
    }
}

pub(crate) fn is_json(headers: &HeaderMap) -> Result<(), Refusal> {
    let refused = |detail: &str| Err(Refusal::new(Reason::UnsupportedMediaType, detail));
    if headers.contains_key(header::CONTENT_ENCODING) {
        return refused("Send the body without Content-Encoding.");
    }
    let mut values = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return refused("Send the body as Content-Type: application/json.");
    };
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let (kind, parameters) = text.split_once(';').unwrap_or((&text, ""));
    let parameters = parameters.trim().replace('"', "");
    if kind.trim() == "application/json" && (parameters.is_empty() || parameters == "charset=utf-8")
    {
        Ok(())
    } else {
        refused("Send the body as Content-Type: application/json.")
    }
}

fn no_upgrade(headers: &HeaderMap) -> Result<(), Refusal> {
    if headers.contains_key(header::UPGRADE) {
        return Err(Refusal::new(
            Reason::MalformedBody,
            "Protocol upgrades are refused: a tool call is one request and one answer.",
        ));
    }
    Ok(())
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Refusal> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let key = value
        .to_str()
        .ok()
        .filter(|key| !key.is_empty() && key.len() <= IDEMPOTENCY_KEY_BYTES);
    match (key, values.next()) {
        (Some(key), None) => Ok(Some(key)),
        _ => Err(Refusal::new(
            Reason::MalformedBody,
            format!(
                "Idempotency-Key must be one header of 1 to {IDEMPOTENCY_KEY_BYTES} visible ASCII characters."
            ),
        )),
    }
}

/// The caller's trace, if it is exactly of the form that W3C Trace Context gives version 00: lower-case hexadecimal, ids not
/// zero. Anything else is left out, as that specification says, and never passed on.
fn traceparent(headers: &HeaderMap) -> Option<HeaderValue> {
    let mut values = headers.get_all("traceparent").iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    let hex = |part: &str, length: usize| {
        part.len() == length
            && part
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let id = |part: &str, length| hex(part, length) && part.bytes().any(|byte| byte != b'0');
    let mut parts = value.to_str().ok()?.split('-');
    let fits = parts.next() == Some("00")
        && parts.next().is_some_and(|trace| id(trace, 32))
        && parts.next().is_some_and(|parent| id(parent, 16))
        && parts.next().is_some_and(|flags| hex(flags, 2))
        && parts.next().is_none();
    fits.then(|| value.clone())
}

/// What is understood of RFC 7240 preferences; the others are ignored, as that RFC says.
fn prefer(headers: &HeaderMap, max_wait_seconds: u64) -> Prefer {
    let mut prefer = Prefer::default();
    for value in headers.get_all("prefer") {
        for preference in value.to_str().unwrap_or_default().split(',') {
            let preference = preference.split(';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" => prefer.respond_async = true,
                "wait" => {
                    let seconds = value.trim().trim_matches('"').parse::<u64>().ok();
                    prefer.wait_seconds = seconds.map(|seconds| seconds.min(max_wait_seconds));
                }
                _ => {}
            }
        }
    }
    prefer
}

/// The format a sealed call was to be sent in.
pub(super) fn format_from(text: Option<&str>) -> Option<BodyFormat> {
    text.and_then(|text| text.parse().ok())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_digest_is_over_is_the_canonical_form_of_the_whole() {
        let arguments =
            json!({"z": 1, "a": {"nested": [true, null, "\u{e9}\n\""]}, "amount": 12.5});
        let whole = json!({
            "tool": "desk.refunds.create", "run": "run_1", "agent": "a \"quoted\" one",
            "contract": "sha256:0", "arguments": arguments,
        });
        let put_together = identity(
            "a \"quoted\" one",
            &arguments,
            "sha256:0",
            "run_1",
            "desk.refunds.create",
        );
        assert_eq!(put_together, json::canonical(&whole));
    }

    #[test]
    fn only_a_trace_of_exactly_the_specified_form_is_passed_on() {
        const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let passed = |values: &[&str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append("traceparent", HeaderValue::from_str(value).unwrap());
            }
            traceparent(&headers).is_some()
        };
        assert!(passed(&[GOOD]));
        let zero_trace = GOOD.replace("0af7651916cd43dd8448eb211c80319c", &"0".repeat(32));
        let zero_parent = GOOD.replace("b7ad6b7169203331", &"0".repeat(16));
        for bad in [
            "",
            "00",
            &GOOD.replacen("00", "ff", 1),
            &GOOD.to_uppercase(),
            &format!("{GOOD}-more"),
            &GOOD.replace("-01", "-1"),
            &zero_trace,
            &zero_parent,
        ] {
            assert!(!passed(&[bad]), "{bad}");
        }
        assert!(!passed(&[GOOD, GOOD]));
        assert!(!passed(&[]));
    }
}
