//! Steps four and six: the intent stands before anything is sent, the outcome before anything is answered. A refusal at
//! any step is recorded too.

use std::{net::IpAddr, sync::Arc};

use futures::FutureExt as _;
use http::Method;
use serde_json::{Value, json};

use super::{
    Arrival, ToolCall, Wanted,
    authorize::Permit,
    forward::{Exchange, Received},
    park::Kept,
};
use crate::{
    app::{App, Tool},
    audit::{ActError, Change, Recorder},
    clock::{self, Timestamp},
    entry::{Decision, Entry, Kind, Outcome, Redacted},
    ids::{ApprovalId, CallId, RunId},
    reason::{FieldError, Reason, Refusal},
    redaction::Marks,
    store::{
        self,
        calls::{Ending, NewCall},
    },
    strangers::Called,
    upstream::StreamEnd,
};

mod claim;
mod told;

pub(super) use claim::{ApprovedAs, Found, claim, claimed_before};
pub use claim::{Held, NotClaimed};
use told::Told;

/// What is known so far of a call, for the record of its refusal.
#[derive(Debug)]
pub(super) struct Trail {
    pub call: CallId,
    pub received_at: Timestamp,
    pub decided_at: Option<Timestamp>,
    pub surface: &'static str,
    pub agent: Option<Arc<str>>,
    pub run: Option<RunId>,
    pub tool: Option<Arc<Tool>>,
    pub arguments: Option<Redacted>,
    pub digest: Option<Arc<str>>,
    pub words: Option<String>,
    /// Its opening entry was handed over: a fault from here on must not make a second one.
    pub has_begun: bool,
    /// From where it came.
    source: Option<IpAddr>,
    /// Method and API of a request that matched no tool. Never its path or query, which may hold anything.
    request: Option<Value>,
}

/// A method by its name, unless the caller made it up.
pub(crate) fn known_method(method: &Method) -> &'static str {
    [
        "GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT",
    ]
    .into_iter()
    .find(|name| method == *name)
    .unwrap_or("another")
}

impl Trail {
    pub fn new(arrival: &Arrival) -> Self {
        let request = match &arrival.wanted {
            Wanted::Request { method, .. } => Some(json!({"method": known_method(method)})),
            Wanted::Tool { .. } => None,
        };
        Self {
            call: arrival.call.clone(),
            received_at: arrival.received_at,
            decided_at: None,
            surface: arrival.surface.as_str(),
            agent: None,
            run: None,
            tool: None,
            arguments: None,
            digest: None,
            words: None,
            has_begun: false,
            source: arrival.source,
            request,
        }
    }

    /// For a call that is taken up again.
    pub fn resumed(call: &ToolCall) -> Self {
        Self {
            call: call.id.clone(),
            received_at: call.received_at,
            decided_at: None,
            surface: call.surface.as_str(),
            agent: Some(Arc::clone(&call.caller.agent.name)),
            run: Some(call.caller.run.id.clone()),
            tool: Some(Arc::clone(&call.tool)),
            arguments: None,
            digest: Some(Arc::clone(&call.digest)),
            words: call.words.clone(),
            has_begun: true,
            source: None,
            request: None,
        }
    }
}

/// Violations as they may be recorded: within a value that is marked as a whole, names are part of what is marked.
fn violations(marks: Option<&Marks>, errors: &[FieldError]) -> Vec<Value> {
    errors
        .iter()
        .map(|error| match marks.and_then(|marks| marks.cover(&error.pointer)) {
            Some(cover) => json!({"pointer": cover, "message": "does not fit the contract within a value that is marked as a whole"}),
            None => json!(error),
        })
        .collect()
}

/// Records a refusal. Gives the refusal that the caller gets: the same one, unless it cannot be recorded at all.
pub(super) async fn refusal(app: &App, trail: &Trail, refusal: Refusal) -> Refusal {
    let now = clock::now();
    let is_stranger = trail.agent.is_none() && refusal.reason == Reason::Unauthenticated;
    if is_stranger && let Called::Counted(first) = app.strangers.called(trail.source, now) {
        if let Some(entry) = first
            && app.recorder.note(entry).await.is_err()
        {
            tracing::error!("calls without a key could not be recorded");
        }
        return refusal;
    }
    let mut detail = refusal.audit_detail.clone();
    if is_stranger {
        let method = trail.request.as_ref().and_then(|it| it.get("method"));
        detail = Some(json!({ "method": method, "source": trail.source }));
    } else if !refusal.errors.is_empty() {
        let marks = trail.tool.as_ref().map(|tool| &tool.marks);
        detail = Some(json!({ "errors": violations(marks, &refusal.errors) }));
    } else if trail.tool.is_none() && detail.is_none() {
        detail.clone_from(&trail.request);
    }
    let entry = Entry {
        opens_call: true,
        call_id: Some(trail.call.clone()),
        run_id: trail.run.clone(),
        kill_switch_id: refusal.kill_switch.clone(),
        agent: trail.agent.clone(),
        surface: Some(trail.surface),
        api: trail.tool.as_ref().map(|tool| Arc::clone(&tool.api)),
        tool: trail.tool.as_ref().map(|tool| Arc::clone(&tool.name)),
        consequence: trail.tool.as_ref().map(|tool| tool.contract.consequence),
        contract_digest: trail.tool.as_ref().map(|tool| Arc::clone(&tool.digest)),
        policy_digest: Some(Arc::clone(&app.policy_digest)),
        arguments: trail.arguments.clone(),
        arguments_digest: trail.digest.clone(),
        decision: Some(Decision::Deny),
        reasons: vec![refusal.reason.code()],
        policies: refusal.policies.clone(),
        received_at: Some(trail.received_at),
        decided_at: Some(trail.decided_at.unwrap_or(now)),
        finished_at: Some(now),
        words: trail.words.clone(),
        detail,
        ..Entry::new(Kind::Refusal)
    };
    match app.recorder.note(entry).await {
        Ok(()) => refusal,
        Err(_unrecorded) => {
            tracing::error!(
                call = %trail.call,
                reason = refusal.reason.code(),
                "a refusal could not be recorded: too much waits for the database"
            );
            Refusal::record_unavailable()
        }
    }
}

/// A call whose intent stands. Only this module makes one; only `forward` takes one. Dropped without an outcome (a
/// fault of our own), it records that nobody knows.
#[must_use]
pub struct Recorded {
    call: ToolCall,
    approval: Option<ApprovalId>,
    /// True when the call has a row of its own that its outcome must end.
    kept: bool,
    recorder: Recorder,
    settled: bool,
}

impl Recorded {
    /// The call.
    pub const fn call(&self) -> &ToolCall {
        &self.call
    }

    /// True when people approved the call.
    pub(super) const fn is_parked(&self) -> bool {
        self.approval.is_some()
    }

    /// True when the call has a row of its own, which keeps its answer.
    pub(super) const fn is_kept(&self) -> bool {
        self.kept
    }

    fn entry(&self, kind: Kind) -> Entry {
        let call = &self.call;
        Entry {
            call_id: Some(call.id.clone()),
            run_id: Some(call.caller.run.id.clone()),
            approval_id: self.approval.clone(),
            agent: Some(Arc::clone(&call.caller.agent.name)),
            surface: Some(call.surface.as_str()),
            api: Some(Arc::clone(&call.tool.api)),
            tool: Some(Arc::clone(&call.tool.name)),
            ..Entry::new(kind)
        }
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        tracing::error!(call = %self.call.id, "a call was given up after its intent was recorded");
        let entry = Entry {
            outcome: Some(Outcome::Indeterminate),
            reasons: vec![Reason::Indeterminate.code()],
            finished_at: Some(clock::now()),
            ..self.entry(Kind::Outcome)
        };
        let change = self.kept.then(|| {
            Change::Finish(Ending {
                call_id: self.call.id.clone(),
                outcome: Outcome::Indeterminate,
                executed: None,
                status: None,
                answer: None,
                code: Some(Reason::Indeterminate.code()),
                explanation: None,
            })
        });
        self.recorder.keep_now(entry, change);
    }
}

/// What came of recording an intent.
#[expect(
    clippy::large_enum_variant,
    reason = "the large one is nearly every call, and a box for it would be an allocation on the hot path"
)]
pub(super) enum Begun {
    /// It stands; this call may be forwarded.
    Now(Recorded),
    /// The agent used the same idempotency key before: here is what became of that.
    Before(Box<ToolCall>, Kept),
}

fn intent_entry(
    app: &App,
    permit: &Permit,
    approval: Option<ApprovalId>,
    before: Option<Redacted>,
) -> Entry {
    let call = permit.call();
    Entry {
        opens_call: true,
        call_id: Some(call.id.clone()),
        run_id: Some(call.caller.run.id.clone()),
        approval_id: approval,
        agent: Some(Arc::clone(&call.caller.agent.name)),
        surface: Some(call.surface.as_str()),
        api: Some(Arc::clone(&call.tool.api)),
        tool: Some(Arc::clone(&call.tool.name)),
        consequence: Some(call.tool.contract.consequence),
        contract_digest: Some(Arc::clone(&call.tool.digest)),
        policy_digest: Some(Arc::clone(&app.policy_digest)),
        arguments: Some(call.redacted.clone()),
        arguments_digest: Some(Arc::clone(&call.digest)),
        decision: Some(Decision::Permit),
        policies: permit.policies().to_vec(),
        received_at: Some(call.received_at),
        decided_at: Some(permit.decided_at()),
        words: call.words.clone(),
        detail: call
            .before_of
            .as_ref()
            .map(|call| json!({ "before_of": call })),
        before,
        ..Entry::new(Kind::Intent)
    }
}

/// Commits the intent of a call that is sent at once.
pub(super) async fn intent(
    app: &App,
    permit: Permit,
    before: Option<Redacted>,
) -> Result<Begun, Refusal> {
    let entry = intent_entry(app, &permit, None, before);
    let keyed = permit.call().idempotency_key.is_some();
    if keyed {
        return keyed_intent(app, permit, entry).await;
    }
    app.recorder
        .commit(entry)
        .await
        .map_err(|_unrecorded| Refusal::record_unavailable())?;
    Ok(Begun::Now(recorded(app, permit, None, false)))
}

fn recorded(app: &App, permit: Permit, approval: Option<ApprovalId>, kept: bool) -> Recorded {
    let (call, _, _) = permit.into_parts();
    Recorded {
        call,
        approval,
        kept,
        recorder: app.recorder.clone(),
        settled: false,
    }
}

/// The same, for a call with an idempotency key: its row and its intent are one transaction, and of two with one key
/// only one gets through.
async fn keyed_intent(app: &App, permit: Permit, entry: Entry) -> Result<Begun, Refusal> {
    let call = permit.call();
    let (id, run) = (call.id.clone(), call.caller.run.id.clone());
    let (agent, tool) = (Arc::clone(&call.caller.agent.name), Arc::clone(&call.tool));
    let (digest, key) = (Arc::clone(&call.digest), call.idempotency_key.clone());
    let received_at = call.received_at;
    let secret_id = app.keyring.secret_id();
    let added = app
        .recorder
        .act(move |connection| {
            async move {
                let new = NewCall {
                    call_id: &id,
                    run_id: &run,
                    agent: &agent,
                    tool: &tool.name,
                    digest: &digest,
                    contract_digest: &tool.digest,
                    secret_id: &secret_id,
                    idempotency_key: key.as_ref().map(|key| key.kept.as_str()),
                    sealed: None,
                    state: "executing",
                    received_at,
                };
                let added = store::calls::add(connection, &new).await?;
                Ok((if added { vec![entry] } else { Vec::new() }, added))
            }
            .boxed()
        })
        .await
        .map_err(unrecorded)?;
    if added {
        return Ok(Begun::Now(recorded(app, permit, None, true)));
    }
    let (call, _, _) = permit.into_parts();
    match super::same::same_key(app, &call).await? {
        Some(kept) => Ok(Begun::Before(Box::new(call), kept)),
        None => Err(Refusal::record_unavailable()),
    }
}

pub(super) fn unrecorded(error: ActError) -> Refusal {
    tracing::warn!(%error, "a transaction did not happen");
    Refusal::record_unavailable()
}

/// A call whose outcome stands (or is on its way, where the database went away), with what the caller gets.
pub(super) struct Settled {
    pub call: CallId,
    pub surface: super::Surface,
    pub received: Received,
}

/// Commits the outcome. The answer waits for it, but not for ever: an outcome that cannot be written yet is written
/// when the database is back. The outcome of a streamed answer is committed at its end.
pub(super) async fn outcome(app: &Arc<App>, exchange: Exchange) -> Settled {
    let Exchange {
        recorded,
        forwarded_at,
        mut received,
        tries,
    } = exchange;
    let (call, surface) = (recorded.call.id.clone(), recorded.call.surface);
    if let Received::Stream { status, ended, .. } = &mut received {
        let (status, ended) = (*status, ended.take());
        let app_of_stream = Arc::clone(app);
        app.tasks.spawn(async move {
            let end = match ended {
                Some(ended) => ended.await.unwrap_or(StreamEnd::DroppedByReader),
                None => StreamEnd::DroppedByReader,
            };
            let told = Told::of_stream(status, &end).with_tries(tries);
            settle(&app_of_stream, recorded, forwarded_at, told).await;
        });
    } else {
        let told = Told::of(&received, recorded.kept).with_tries(tries);
        settle(app, recorded, forwarded_at, told).await;
    }
    Settled {
        call,
        surface,
        received,
    }
}

async fn settle(app: &App, mut recorded: Recorded, forwarded_at: Option<Timestamp>, told: Told) {
    recorded.settled = true;
    let id = recorded.call.id.clone();
    let change = recorded.kept.then(|| {
        let answer = told.answer.as_deref().and_then(|plain| {
            app.keyring
                .seal(id.as_str(), plain)
                .map_err(|error| tracing::error!(%error, call = %id, "an answer could not be kept"))
                .ok()
        });
        Change::Finish(Ending {
            call_id: id.clone(),
            outcome: told.outcome,
            executed: told.executed,
            status: told.status,
            answer,
            code: told
                .reasons
                .first()
                .copied()
                .filter(|_| told.outcome != Outcome::Completed),
            explanation: told.explanation.clone(),
        })
    });
    let entry = Entry {
        kill_switch_id: told.kill_switch,
        forwarded_at,
        finished_at: Some(clock::now()),
        status: told.status,
        executed: told.executed,
        outcome: Some(told.outcome),
        reasons: told.reasons,
        detail: told.detail,
        answer: told.seen.answer,
        answer_digest: told.seen.digest,
        changed: told.seen.changed,
        ..recorded.entry(Kind::Outcome)
    };
    if app.recorder.settle(entry, change).await.is_err() {
        tracing::warn!(call = %id, "an outcome is not recorded yet; it will be when the database is back");
    }
    app.waiters.wake(&id);
}
