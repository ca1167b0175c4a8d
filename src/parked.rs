//! Parked calls: what is sealed of them, who waits for them, and how they end without being sent.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures::FutureExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

use crate::{
    audit::{ActError, Recorder},
    clock::{self, Timestamp},
    entry::{Entry, Kind, Outcome},
    ids::{ApprovalId, CallId},
    reason::Reason,
    redaction::{Marks, View},
    store::{self, approvals::ApprovalRow, calls::Ending},
};

/// What a parked call will send, as it is sealed: enough to send it without the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sealed {
    /// The checked arguments.
    pub arguments: Map<String, Value>,
    /// The body's format.
    pub format: Option<String>,
    /// The surface it came in on.
    pub surface: String,
    /// The agent's words.
    pub words: Option<String>,
    /// What its approvers see of what it will touch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preview: Option<Previewed>,
}

/// What a read found of what a call will touch, when the call was parked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Previewed {
    /// The read, a call of its own.
    pub call: String,
    /// Its tool.
    pub tool: String,
    /// When it was answered.
    pub read_at: Timestamp,
    /// With which status.
    pub status: u16,
    /// With what, cut to its contract, as RFC 8785 text. As text, so that no number is read and written once more.
    pub answer: String,
    /// What of it must be the same when the call is sent, as RFC 8785 text.
    pub compared: String,
    /// Keyed digest over tool, status and answer.
    pub digest: String,
}

impl Previewed {
    /// What somebody is shown of it. Without marks, where its contract is gone, nobody can say what in it is sensitive.
    pub fn shown(&self, marks: Option<&Marks>, view: &mut View<'_>) -> Value {
        let answer = marks.and_then(|marks| {
            let mut answer = serde_json::from_str(&self.answer).ok()?;
            view.apply(marks, &mut answer);
            Some(answer)
        });
        json!({
            "tool": self.tool,
            "call": self.call,
            "read_at": self.read_at,
            "status": self.status,
            "answer": answer,
        })
    }
}

/// Connections that wait for the end of a parked call.
#[derive(Debug)]
pub struct Waiters {
    by_call: Mutex<HashMap<CallId, Arc<Notify>>>,
    by_agent: Mutex<HashMap<Arc<str>, usize>>,
    most_per_agent: usize,
}

impl Waiters {
    /// Nobody waits yet; of one agent's connections at most so many will at the same time.
    pub fn new(most_per_agent: usize) -> Self {
        Self {
            by_call: Mutex::default(),
            by_agent: Mutex::default(),
            most_per_agent,
        }
    }

    /// The right to hold a connection of an agent; `None` where it holds as many as it may.
    pub fn hold(self: &Arc<Self>, agent: &Arc<str>) -> Option<Holding> {
        let mut by_agent = self.by_agent.lock();
        let held = by_agent.entry(Arc::clone(agent)).or_default();
        if *held >= self.most_per_agent {
            return None;
        }
        *held += 1;
        Some(Holding {
            waiters: Arc::clone(self),
            agent: Arc::clone(agent),
        })
    }

    /// Something to wait on. Look at the call's state after asking for it, or its end may be missed.
    pub fn on(&self, call: &CallId) -> Arc<Notify> {
        Arc::clone(self.by_call.lock().entry(call.clone()).or_default())
    }

    /// The call has ended.
    pub fn wake(&self, call: &CallId) {
        if let Some(waiting) = self.by_call.lock().remove(call) {
            waiting.notify_waiters();
        }
    }

    /// Forgets a call for which nobody waits any more.
    pub fn forget(&self, call: &CallId, waited: &Arc<Notify>) {
        let mut by_call = self.by_call.lock();
        // Ours, the map's, and nobody else's.
        if Arc::strong_count(waited) <= 2
            && by_call
                .get(call)
                .is_some_and(|held| Arc::ptr_eq(held, waited))
        {
            by_call.remove(call);
        }
    }
}

/// The right to hold one connection of an agent; given back when dropped.
#[derive(Debug)]
pub struct Holding {
    waiters: Arc<Waiters>,
    agent: Arc<str>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        let mut by_agent = self.waiters.by_agent.lock();
        if let Some(held) = by_agent.get_mut(&self.agent) {
            *held -= 1;
            if *held == 0 {
                by_agent.remove(&self.agent);
            }
        }
    }
}

/// The approved calls that a task of this process is taking up, so that no second one does.
#[derive(Debug, Clone, Default)]
pub struct Resuming {
    calls: Arc<Mutex<HashSet<CallId>>>,
    looked_up_to: Arc<Mutex<String>>,
}

/// The right to take up one call; given back when dropped.
#[derive(Debug)]
pub struct OnlyOne {
    resuming: Resuming,
    call: CallId,
}

impl Resuming {
    /// How many calls are being taken up.
    pub fn count(&self) -> usize {
        self.calls.lock().len()
    }

    /// The id up to which approved calls were looked at this time around; empty when it begins anew.
    pub fn looked_up_to(&self) -> String {
        self.looked_up_to.lock().clone()
    }

    /// Where to go on next time.
    pub fn look_on_after(&self, call: String) {
        *self.looked_up_to.lock() = call;
    }

    /// `None` while another task has the call.
    pub fn begin(&self, call: &CallId) -> Option<OnlyOne> {
        self.calls.lock().insert(call.clone()).then(|| OnlyOne {
            resuming: self.clone(),
            call: call.clone(),
        })
    }
}

impl Drop for OnlyOne {
    fn drop(&mut self) {
        self.resuming.calls.lock().remove(&self.call);
    }
}

/// Ends a parked call that will not be sent: expired or voided. `because` is for the agent, the approvers and the
/// record. False when it had ended or was begun meanwhile.
///
/// # Errors
/// When the database is away.
pub async fn end_unsent(
    recorder: &Recorder,
    waiters: &Waiters,
    approval: &ApprovalRow,
    outcome: Outcome,
    because: &str,
) -> Result<bool, ActError> {
    let Ok(call) = approval.call_id.parse::<CallId>() else {
        return Ok(false);
    };
    let id = call.clone();
    let entry = ended_entry(approval, &call, outcome, because);
    let ending = unsent(call.clone(), outcome, because);
    let approval_id = approval.approval_id.clone();
    let must_be_overdue = outcome == Outcome::Expired;
    let ended = recorder
        .act(move |connection| {
            async move {
                let row = store::approvals::lock(connection, &approval_id).await?;
                // On the database's clock, and not while a kill switch stops it.
                if must_be_overdue && !row.is_some_and(|row| row.overdue) {
                    return Ok((Vec::new(), false));
                }
                let ended = store::calls::finish(connection, &ending).await?;
                Ok((if ended { vec![entry] } else { Vec::new() }, ended))
            }
            .boxed()
        })
        .await?;
    if ended {
        waiters.wake(&id);
    }
    Ok(ended)
}

/// The problem code that goes with an ending without execution.
pub const fn code_of(outcome: Outcome) -> Option<Reason> {
    match outcome {
        Outcome::Denied => Some(Reason::ApprovalDenied),
        Outcome::Expired => Some(Reason::ApprovalExpired),
        Outcome::Voided => Some(Reason::ApprovalVoided),
        Outcome::Completed | Outcome::Failed | Outcome::Indeterminate => None,
    }
}

/// The row's change when a parked call ends without being sent.
pub fn unsent(call: CallId, outcome: Outcome, because: &str) -> Ending {
    Ending {
        call_id: call,
        outcome,
        executed: Some(false),
        status: None,
        answer: None,
        code: code_of(outcome).map(Reason::code),
        explanation: Some(because.to_owned()),
    }
}

/// The entry that tells of it.
pub fn ended_entry(
    approval: &ApprovalRow,
    call: &CallId,
    outcome: Outcome,
    because: &str,
) -> Entry {
    Entry {
        call_id: Some(call.clone()),
        run_id: approval.run_id.parse().ok(),
        approval_id: approval.approval_id.parse::<ApprovalId>().ok(),
        agent: Some(approval.agent.as_str().into()),
        api: Some(approval.api.as_str().into()),
        tool: Some(approval.tool.as_str().into()),
        reasons: code_of(outcome).map(Reason::code).into_iter().collect(),
        outcome: Some(outcome),
        executed: Some(false),
        finished_at: Some(clock::now()),
        detail: Some(json!({ "why": because })),
        ..Entry::new(Kind::Ended)
    }
}
