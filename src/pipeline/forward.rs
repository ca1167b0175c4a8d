//! Step five: send a recorded call to its API, with the API's credential and nothing of the agent's, and hold the answer
//! to the contract. The kill switch is looked at in the very moment of sending.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::{Surface, ToolCall, authorize, record::Recorded, seen::Seen, shown, tries::Tries};
use crate::{
    app::{ApiClient, App},
    clock::{self, Timestamp},
    config::Credential,
    contracts::OnOutputViolation,
    entry::Outcome,
    json,
    killswitch::Sending,
    reason::{Reason, Refusal},
    upstream::{Gate, Halted, SendError, SendLimits, StreamEnd, StreamLimits, StreamingBody},
};

/// The longest streamed answer.
const STREAM_BYTES: u64 = 1 << 30;

/// A call that was sent, or could not be.
pub(super) struct Exchange {
    pub recorded: Recorded,
    /// When it was handed to the API; `None` if it certainly was not.
    pub forwarded_at: Option<Timestamp>,
    pub received: Received,
    /// For the record, where it was tried more than once.
    pub tries: Option<Value>,
}

/// What came of sending.
pub(super) enum Received {
    /// The API's whole answer.
    Whole(ApiAnswer),
    /// The head of an answer whose body is passed on as it comes.
    Stream {
        status: StatusCode,
        headers: HeaderMap,
        body: StreamingBody,
        ended: Option<oneshot::Receiver<StreamEnd>>,
    },
    /// No answer that the agent may have.
    Failed {
        refusal: Refusal,
        outcome: Outcome,
        status: Option<u16>,
        /// What the record says of an answer that is withheld.
        seen: Seen,
    },
}

/// An API's answer, without what belongs to the connection.
#[derive(Debug, Clone)]
pub struct ApiAnswer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// For the record: how it breaks the contract, where the contract only reports that.
    pub violation: Option<Value>,
    /// For the record: what it holds.
    pub seen: Seen,
}

/// Notes when the permission to send was given, which is when the bytes went out.
struct Timed<'a> {
    sending: Sending<'a>,
    at: parking_lot::Mutex<Option<Timestamp>>,
}

impl Gate for Timed<'_> {
    fn with_permission<R>(&self, send: impl FnOnce() -> R) -> Result<R, Halted> {
        self.sending.with_permission(|| {
            self.at.lock().get_or_insert_with(clock::now);
            send()
        })
    }
}

pub(super) async fn forward(app: &App, recorded: Recorded) -> Exchange {
    let call = recorded.call();
    let gate = Timed {
        sending: Sending::new(&app.kill_switches, call.target()),
        at: parking_lot::Mutex::new(None),
    };
    let (received, tries) = exchange(app, &recorded, &gate).await;
    let received = hold_to_halt(app, call, received);
    let unsent =
        matches!(&received, Received::Failed { refusal, .. } if refusal.executed == Some(false));
    let forwarded_at = (*gate.at.lock()).filter(|_| !unsent);
    Exchange {
        recorded,
        forwarded_at,
        received,
        tries,
    }
}

/// A call that was begun and certainly is not sent.
pub(super) fn withheld(recorded: Recorded, refusal: Refusal) -> Exchange {
    Exchange {
        recorded,
        forwarded_at: None,
        received: Received::Failed {
            refusal,
            outcome: Outcome::Failed,
            status: None,
            seen: Seen::default(),
        },
        tries: None,
    }
}

/// Sends until there is an answer, or no further try is allowed.
async fn exchange(app: &App, recorded: &Recorded, gate: &Timed<'_>) -> (Received, Option<Value>) {
    let call = recorded.call();
    // A kept answer must be whole, so that the same request to come gets it; and so must one that rules are applied to.
    let stream = call.tool.contract.stream
        && call.tool.answer_rules.is_none()
        && call.surface == Surface::Transparent
        && !recorded.is_kept();
    let mut tries = Tries::of(recorded);
    loop {
        let (client, request) = match prepare(app, call) {
            Ok(prepared) => prepared,
            Err(refusal) => {
                let failed = Received::Failed {
                    refusal,
                    outcome: Outcome::Failed,
                    status: None,
                    seen: Seen::default(),
                };
                return (failed, None);
            }
        };
        let error = match send(app, client, call, request, stream, tries.time_left(), gate).await {
            Ok(received) => return (received, tries.told(true)),
            Err(error) => error,
        };
        tracing::warn!(call = %call.id, tool = %call.tool.name, %error, "no answer from the API");
        app.metrics.upstream_failed(&error);
        match tries.after(error.clone()) {
            Some(pause) => tokio::time::sleep(pause).await,
            None => {
                let counts = tries.worst().unwrap_or(&error);
                return (lost(counts), tries.told(false));
            }
        }
    }
}

async fn send(
    app: &App,
    client: &ApiClient,
    call: &ToolCall,
    request: Request<Full<Bytes>>,
    stream: bool,
    timeout: Duration,
    gate: &Timed<'_>,
) -> Result<Received, SendError> {
    let contract = &call.tool.contract;
    if stream {
        let limits = StreamLimits {
            head_timeout: timeout,
            idle_timeout: contract.limits.timeout(),
            max_bytes: STREAM_BYTES,
        };
        let (end, ended) = oneshot::channel();
        let answer = client
            .upstream
            .send_streaming(request, limits, gate, move |how| {
                let _ = end.send(how);
            })
            .await?;
        return Ok(Received::Stream {
            status: answer.status,
            headers: answer.headers,
            body: answer.body,
            ended: Some(ended),
        });
    }
    let limits = SendLimits {
        timeout,
        max_answer_bytes: contract.limits.answer_bytes,
    };
    let answer = client.upstream.send(request, limits, gate).await?;
    let answer = ApiAnswer {
        status: answer.status,
        headers: answer.headers,
        body: answer.body,
        violation: None,
        seen: Seen::default(),
    };
    Ok(match hold_to_contract(app, call, answer) {
        (Received::Whole(mut answer), value) => {
            shown::show(app, shown::Asker::of(call), &mut answer, value).await;
            Received::Whole(answer)
        }
        (other, _) => other,
    })
}

/// The request, built anew from the checked arguments alone.
fn prepare<'a>(
    app: &'a App,
    call: &ToolCall,
) -> Result<(&'a ApiClient, Request<Full<Bytes>>), Refusal> {
    let internal = |what: &str| {
        tracing::error!(call = %call.id, tool = %call.tool.name, what, "a checked call could not be built");
        Refusal::new(
            Reason::Internal,
            "The request to the API could not be built. Nothing was sent; tell an operator.",
        )
    };
    let client = app
        .apis
        .get(&call.tool.api)
        .ok_or_else(|| internal("no client for the API"))?;
    let built = call.request.clone();
    let mut path = built.path_and_query;
    if let Some(Credential::Query { name, value }) = &client.credential {
        path.push(if path.contains('?') { '&' } else { '?' });
        path.push_str(
            &form_urlencoded::Serializer::new(String::new())
                .append_pair(name, value.expose())
                .finish(),
        );
    }
    let mut request = Request::new(Full::new(built.body));
    *request.method_mut() = built.method;
    *request.uri_mut() = path
        .parse()
        .map_err(|_invalid| internal("the path is no path"))?;
    let headers = request.headers_mut();
    headers.extend(built.headers);
    if let Some(traceparent) = &call.traceparent {
        headers.insert("traceparent", traceparent.clone());
    }
    if let Some(content_type) = built.content_type {
        headers.insert(header::CONTENT_TYPE, content_type);
    }
    headers.insert(
        header::USER_AGENT,
        HeaderValue::from_static(concat!("toolgate/", env!("CARGO_PKG_VERSION"))),
    );
    let id = HeaderValue::from_str(call.id.as_str())
        .map_err(|_invalid| internal("the id is no header"))?;
    // The same on every try of one call: the API knows by it what it has had before.
    if let Some(name) = &call.tool.contract.idempotency_header {
        headers.insert(name.clone(), id.clone());
    }
    headers.insert("toolgate-call", id);
    // Last, so that nothing an agent sends can stand in its place.
    if let Some(Credential::Header { name, value }) = &client.credential {
        headers.insert(name.clone(), value.clone());
    }
    Ok((client, request))
}

/// A halt in the moment of sending names the kill switch that caused it.
fn hold_to_halt(app: &App, call: &ToolCall, received: Received) -> Received {
    match received {
        Received::Failed {
            refusal,
            outcome,
            status,
            seen,
        } if refusal.reason == Reason::Halted => {
            let refusal = match app.kill_switches.covering(&call.target()) {
                Some(kill_switch) => authorize::halted(kill_switch),
                None if !app.kill_switches.may_send() => not_ours(),
                None => refusal,
            };
            Received::Failed {
                refusal,
                outcome,
                status,
                seen,
            }
        }
        other => other,
    }
}

/// The gateway lost the right to send between the record and the moment of sending.
fn not_ours() -> Refusal {
    let mut refusal = Refusal::record_unavailable();
    "This gateway is stopping, or was cut off from its database. Nothing was sent; the call may be made again."
        .clone_into(&mut refusal.detail);
    refusal.executed = Some(false);
    refusal
}

/// Holds an answer against the contract and notes what is recorded of it. With the value of the body, where that was read.
fn hold_to_contract(
    app: &App,
    call: &ToolCall,
    mut answer: ApiAnswer,
) -> (Received, Option<Value>) {
    let contract = &call.tool.contract;
    if contract.output.is_none() || !answer.status.is_success() {
        answer.seen = Seen::digest_of(app, &answer.body);
        return (Received::Whole(answer), None);
    }
    let violations = match json::parse(&answer.body) {
        Err(error) => vec![json!({"pointer": "", "message": error.to_string()})],
        Ok(mut body) => match contract.validate_output(answer.status.as_u16(), &body) {
            Ok(()) => {
                Seen::fitting(app, &call.tool, &mut answer, &mut body);
                return (Received::Whole(answer), Some(body));
            }
            Err(violations) => violations
                .into_iter()
                .map(|violation| match call.tool.output_marks.cover(&violation.pointer) {
                    Some(cover) => json!({"pointer": cover, "message": "does not fit within a value that is marked as a whole"}),
                    None => json!({"pointer": violation.pointer, "message": violation.message}),
                })
                .collect(),
        },
    };
    answer.seen = Seen::digest_of(app, &answer.body);
    let violation = json!({ "output": violations });
    if contract.on_output_violation == OnOutputViolation::Report {
        answer.violation = Some(violation);
        return (Received::Whole(answer), None);
    }
    let mut refusal = Refusal::new(
        Reason::UpstreamAnswerInvalid,
        "The API executed the call, but its answer does not fit the tool's contract and is withheld. Do not repeat the call; tell an operator.",
    );
    refusal.executed = Some(true);
    refusal.audit_detail = Some(violation);
    let failed = Received::Failed {
        refusal,
        outcome: Outcome::Failed,
        status: Some(answer.status.as_u16()),
        seen: answer.seen,
    };
    (failed, None)
}

/// What it means that there is no answer.
fn lost(error: &SendError) -> Received {
    let why = Some(json!({ "why": error.to_string() }));
    let failed = |reason, detail: &str, executed, outcome, status| {
        let mut refusal = Refusal::new(reason, detail);
        refusal.executed = executed;
        refusal.audit_detail.clone_from(&why);
        Received::Failed {
            refusal,
            outcome,
            status,
            seen: Seen::default(),
        }
    };
    match error {
        SendError::Halted => failed(
            Reason::Halted,
            "An operator has halted this. Nothing was sent; try again after it is resumed.",
            Some(false),
            Outcome::Failed,
            None,
        ),
        SendError::NotSent { .. } => failed(
            Reason::UpstreamUnreachable,
            "The API could not be reached. Nothing was sent; the call may be made again.",
            Some(false),
            Outcome::Failed,
            None,
        ),
        SendError::Lost { timeout: true, .. } => failed(
            Reason::UpstreamTimeout,
            "The API did not answer in time. Nobody knows whether it executed the call: do not repeat it before somebody has looked.",
            None,
            Outcome::Indeterminate,
            None,
        ),
        SendError::Lost { timeout: false, .. } => failed(
            Reason::Indeterminate,
            "The call was sent and its answer was lost. Nobody knows whether the API executed it: do not repeat it before somebody has looked.",
            None,
            Outcome::Indeterminate,
            None,
        ),
        SendError::AnswerTooLarge { status } => failed(
            Reason::UpstreamAnswerInvalid,
            "The API executed the call, but its answer is larger than the contract allows and is withheld. Do not repeat the call.",
            Some(true),
            Outcome::Failed,
            Some(status.as_u16()),
        ),
        SendError::AnswerInvalid { status, .. } => failed(
            Reason::UpstreamAnswerInvalid,
            "The API's answer cannot be used. It may have executed the call: do not repeat it before somebody has looked.",
            None,
            Outcome::Indeterminate,
            status.map(|status| status.as_u16()),
        ),
    }
}

impl ApiAnswer {
    /// As it is kept (sealed) for the same request to come: status, headers, body.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        use base64::Engine as _;
        let headers: Vec<(&str, String)> = self
            .headers
            .iter()
            .map(|(name, value)| {
                (
                    name.as_str(),
                    base64::engine::general_purpose::STANDARD.encode(value.as_bytes()),
                )
            })
            .collect();
        json!({
            "status": self.status.as_u16(),
            "headers": headers,
            "body": base64::engine::general_purpose::STANDARD.encode(&self.body),
        })
        .to_string()
        .into_bytes()
    }

    /// The reverse. `None` for what no gateway wrote.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        use base64::Engine as _;
        let decode = |value: &Value| {
            base64::engine::general_purpose::STANDARD
                .decode(value.as_str()?)
                .ok()
        };
        let kept: Value = serde_json::from_slice(bytes).ok()?;
        let mut headers = HeaderMap::new();
        for pair in kept.get("headers")?.as_array()? {
            let name = pair.get(0)?.as_str()?.parse::<http::HeaderName>().ok()?;
            headers.append(name, HeaderValue::from_bytes(&decode(pair.get(1)?)?).ok()?);
        }
        let status = u16::try_from(kept.get("status")?.as_u64()?).ok()?;
        Some(Self {
            status: StatusCode::from_u16(status).ok()?,
            headers,
            body: decode(kept.get("body")?)?.into(),
            violation: None,
            seen: Seen::default(),
        })
    }
}
