//! The request path, top to bottom. Every surface and the resumption of an approved call go through here; every step
//! that can refuse is one line. The types keep the order: only `authorize` makes a [`Permit`], only
//! `record` turns it into a [`Recorded`], and `forward` takes nothing else.

use std::{
    net::IpAddr,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::Arc,
};

use axum::body::Body;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, Method};
use serde_json::Value;

use crate::{
    app::{App, Tool},
    clock::Timestamp,
    config::Agent,
    contracts::{BodyFormat, UpstreamRequest},
    entry::Redacted,
    ids::CallId,
    killswitch::Target,
    metrics::{Lap, Step},
    reason::{Reason, Refusal},
    runs::Run,
};

pub mod answer;
mod authorize;
mod before;
mod by_hand;
mod contract;
mod forward;
mod identify;
mod park;
mod preview;
mod reading;
mod record;
mod references;
mod resume;
mod same;
mod seen;
mod shown;
mod telling;
mod tries;

pub use answer::Reply;
pub use authorize::Permit;
pub use by_hand::{ByHandAnswer, answer_by_hand};
pub(crate) use contract::is_json;
pub(crate) use identify::{agent, owner_of_key};
pub use park::{BY_OPERATOR, FOUND_EXECUTED, Kept, Standing, standing};
pub(crate) use record::known_method;
pub use record::{Held, NotClaimed, Recorded};
pub use resume::{may_claim, not_claimed, resume};
pub use same::IdempotencyKey;
pub(crate) use telling::WAITS_FOR_HAND;

/// How a call came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Surface {
    /// On the API's own path: answered exactly as the API did.
    Transparent,
    /// `POST /v1/tools/{tool}/calls`: answered as a JSON object about the call.
    ToolCall,
    /// Made by the gateway itself, to read the state before another call.
    Before,
    /// Made by the gateway itself, to show approvers what another call will touch.
    Preview,
}

impl Surface {
    /// The name in audit rows.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Transparent => "transparent",
            Self::ToolCall => "tool_call",
            Self::Before => "before",
            Self::Preview => "preview",
        }
    }

    /// Whether it is the gateway's own, for which no agent gets an answer.
    pub const fn is_own(self) -> bool {
        matches!(self, Self::Before | Self::Preview)
    }
}

/// What the caller asks for, not yet looked at.
#[derive(Debug)]
pub enum Wanted {
    /// A request on the API's own path.
    Request {
        /// Its method.
        method: Method,
        /// `/{api}/{path…}`, percent-encoded as it came.
        raw_path: String,
        /// The query string, as it came.
        raw_query: Option<String>,
    },
    /// A tool by its name.
    Tool {
        /// The name.
        name: String,
    },
}

/// A request as a surface hands it over.
#[derive(Debug)]
pub struct Arrival {
    /// The id of the call that it becomes.
    pub call: CallId,
    /// When it came.
    pub received_at: Timestamp,
    /// From where, as its connection says.
    pub source: Option<IpAddr>,
    /// Where it came in.
    pub surface: Surface,
    /// All its headers.
    pub headers: HeaderMap,
    /// What it asks for.
    pub wanted: Wanted,
    /// Its body, not yet read.
    pub body: Body,
}

/// Who calls, and in which run.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The agent.
    pub agent: Arc<Agent>,
    /// The run.
    pub run: Arc<Run>,
}

/// What the caller wants to happen while a call is parked (RFC 7240).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Prefer {
    /// Hold the connection for this many seconds.
    pub wait_seconds: Option<u64>,
    /// Answer 202 instead of 403.
    pub respond_async: bool,
}

/// One checked call. What is decided on, recorded, approved and sent is `arguments` and nothing else.
#[derive(Debug)]
pub struct ToolCall {
    /// Its id.
    pub id: CallId,
    /// Where it came in.
    pub surface: Surface,
    /// Who calls.
    pub caller: Caller,
    /// The tool.
    pub tool: Arc<Tool>,
    /// The arguments: always an object.
    pub arguments: Value,
    /// The format in which the body is sent on.
    pub format: Option<BodyFormat>,
    /// The request to the API, made from the arguments and nothing else.
    pub request: UpstreamRequest,
    /// The arguments as they may be recorded.
    pub redacted: Redacted,
    /// Keyed digest over agent, run, tool, contract and arguments.
    pub digest: Arc<str>,
    /// The agent's own justification.
    pub words: Option<String>,
    /// The agent's key for this request.
    pub idempotency_key: Option<IdempotencyKey>,
    /// The call for which the gateway makes this one.
    pub before_of: Option<CallId>,
    /// What to do while it is parked.
    pub prefer: Prefer,
    /// The trace that the call belongs to (W3C Trace Context), passed on to the API.
    pub traceparent: Option<HeaderValue>,
    /// When it came.
    pub received_at: Timestamp,
}

impl ToolCall {
    /// What kill switches look at.
    pub fn target(&self) -> Target<'_> {
        Target {
            api: &self.tool.api,
            tool: &self.tool.name,
            consequence: self.tool.contract.consequence,
            agent: &self.caller.agent.name,
            run: self.caller.run.id.as_str(),
        }
    }
}

/// One call from arrival to answer. Runs to its end whether or not the caller is still there.
pub async fn handle(app: Arc<App>, arrival: Arrival) -> Reply {
    let mut trail = record::Trail::new(&arrival);
    let steps = AssertUnwindSafe(steps(&app, arrival, &mut trail)).catch_unwind();
    let refusal = match steps.await {
        Ok(Ok(reply)) => return reply,
        Ok(Err(refusal)) => refusal,
        // From here on the call has an entry of its own, and whoever holds it tells what became of it.
        Err(panic) if trail.has_begun => resume_unwind(panic),
        Err(_panic) => Refusal::new(
            Reason::Internal,
            "The gateway failed on this call before anything was sent. Tell an operator.",
        ),
    };
    let refusal = record::refusal(&app, &trail, refusal).await;
    Reply::refused(&refusal, &trail.call)
}

async fn steps(
    app: &Arc<App>,
    arrival: Arrival,
    trail: &mut record::Trail,
) -> Result<Reply, Refusal> {
    let mut lap = Lap::begin(&app.metrics, Step::Identify);
    let caller = identify::identify(app, &arrival.headers, arrival.received_at, trail).await?;
    lap.then(Step::Contract);
    let call = contract::check(app, caller, arrival, trail).await?;
    lap.then(Step::Same);
    if let Some(kept) = same::same_key(app, &call).await? {
        lap.end();
        return Ok(telling::reply(app, &call, kept).await);
    }
    lap.then(Step::Authorize);
    match authorize::authorize(app, call, &authorize::Earned::none(), trail)? {
        authorize::Verdict::Permit(permit) => {
            lap.then(Step::Before);
            let before = before::read(app, permit.call()).await?;
            trail.has_begun = true;
            lap.then(Step::RecordIntent);
            let recorded = match record::intent(app, permit, before).await? {
                record::Begun::Now(recorded) => recorded,
                record::Begun::Before(call, kept) => {
                    lap.end();
                    return Ok(telling::reply(app, &call, kept).await);
                }
            };
            lap.then(Step::Forward);
            let exchange = forward::forward(app, recorded).await;
            lap.then(Step::RecordOutcome);
            let settled = record::outcome(app, exchange).await;
            lap.end();
            Ok(answer::reply(settled))
        }
        authorize::Verdict::Park(parking) => {
            let previewed = match preview::look(app, &parking).await? {
                preview::Look::Kept(kept) => {
                    return Ok(telling::reply(app, &parking.call, kept).await);
                }
                preview::Look::Now(previewed) => previewed,
            };
            trail.has_begun = true;
            lap.then(Step::Park);
            let came = park::park(app, parking, previewed).await?;
            lap.end();
            match came {
                park::Came::Kept(call, kept) => Ok(telling::reply(app, &call, kept).await),
                park::Came::Sent(settled) => Ok(answer::reply(settled)),
            }
        }
        authorize::Verdict::ByHand(halted) => {
            lap.then(Step::Park);
            let (call, kept) = by_hand::list_new(app, halted).await?;
            lap.end();
            Ok(telling::reply(app, &call, kept).await)
        }
    }
}
