//! Working off the work list: who may see, claim and resolve an item, once, and what its agent gets. What an operator says here
//! ends a call for good: it is never sent afterwards.
//!
//! A call that waits to be done by hand must be claimed before it is done. The claim and the gateway's own taking of the call
//! change the same row, so exactly one of them has it; once claimed, the gateway never sends it, whatever becomes of the claim.

use std::sync::Arc;

use futures::FutureExt as _;
use serde_json::{Value, json};

use crate::{
    app::{App, Setting},
    audit::ActError,
    clock,
    composition::{Origin, asked_for},
    entry::{Entry, Kind, Outcome},
    ids::CallId,
    pipeline::{self, ByHandAnswer, Held, NotClaimed},
    policy::{ApprovalFacts, OperatorAction, OperatorContext, OperatorDecision, OperatorResource},
    reason::{Reason, Refusal},
    store::{
        self, StoreError,
        work::{Filter, Resolution, WorkRow},
    },
};

pub mod export;
mod shown;

pub use shown::{Opened, real_arguments};

/// What an operator found out about a call, or did.
#[derive(Debug)]
pub struct Finding {
    /// Whether the call was executed.
    pub executed: bool,
    /// Status of the API's answer, if it was and that is known.
    pub status: Option<u16>,
    /// The API's answer as JSON, if it was and that is known.
    pub result: Option<Value>,
    /// Where it can be seen: a text or a URL, without sensitive values.
    pub evidence: String,
    /// What else is to be said, without sensitive values.
    pub note: String,
}

fn away(error: &StoreError) -> Refusal {
    tracing::warn!(%error, "the work list could not be read");
    Refusal::record_unavailable()
}

/// Items of the work list.
///
/// # Errors
/// When the database is away.
pub async fn list(app: &App, filter: &Filter<'_>, limit: i64) -> Result<Vec<WorkRow>, Refusal> {
    let mut connection = app
        .pool
        .acquire()
        .await
        .map_err(|error| away(&error.into()))?;
    store::work::list(&mut connection, filter, limit)
        .await
        .map_err(|error| away(&error))
}

/// The item of that call.
///
/// # Errors
/// `not_found`, or the database is away.
pub async fn find(app: &App, id: &str) -> Result<(CallId, WorkRow), Refusal> {
    let unknown = || Refusal::new(Reason::NotFound, "There is no work item of this id.");
    let call: CallId = id.parse().map_err(|_not_an_id| unknown())?;
    let filter = Filter {
        call: Some(id),
        ..Filter::default()
    };
    let row = list(app, &filter, 1).await?.pop().ok_or_else(unknown)?;
    Ok((call, row))
}

/// Whether the policies let an operator do something to an item.
fn decide(
    setting: Setting<'_>,
    row: &WorkRow,
    operator: &str,
    action: OperatorAction,
) -> OperatorDecision {
    let facts = ApprovalFacts {
        agent: row.agent.as_deref().unwrap_or_default(),
        owner: owner(setting, row),
        triggered_by: row.triggered_by.as_deref().unwrap_or_default(),
        tool: row.tool.as_deref().unwrap_or_default(),
        api: row.api.as_deref().unwrap_or_default(),
        consequence: row.consequence.as_deref().unwrap_or_default(),
        run: row.run_id.as_deref().unwrap_or_default(),
    };
    let context = OperatorContext::Approval(facts);
    setting
        .policies
        .decide_operator(operator, action, OperatorResource::Gateway, context)
}

fn owner<'a>(setting: Setting<'a>, row: &WorkRow) -> &'a str {
    row.agent
        .as_deref()
        .and_then(|agent| setting.config.agents.get(agent))
        .map_or("", |agent| &agent.owner)
}

/// Whether an operator may work off an item.
///
/// # Errors
/// For who may not resolve, and for what is one's own: nobody works off what their agent or their run asked for.
pub fn may(setting: Setting<'_>, row: &WorkRow, operator: &str) -> Result<(), Refusal> {
    let origin = Origin {
        agent: row.agent.as_deref().unwrap_or_default(),
        owner: row.owner.as_deref(),
        triggered_by: row.triggered_by.as_deref().unwrap_or_default(),
    };
    if asked_for(setting, origin, operator) {
        return Err(Refusal::new(
            Reason::SelfApproval,
            "This call was asked for by your own agent or in a run that you triggered. Somebody else must look into it.",
        ));
    }
    let action = OperatorAction::Resolve;
    let decision = decide(setting, row, operator, action);
    if decision.permitted {
        return Ok(());
    }
    let mut refusal = Refusal::new(
        Reason::DeniedByPolicy,
        "None of your roles may resolve items of the work list.",
    );
    refusal.policies = decision.policies;
    Err(refusal)
}

fn may_take_over(app: &App, row: &WorkRow, operator: &str) -> bool {
    decide(app.setting(), row, operator, OperatorAction::TakeOver).permitted
}

fn entry(row: &WorkRow, call: &CallId, operator: &Arc<str>, kind: Kind) -> Entry {
    Entry {
        call_id: Some(call.clone()),
        run_id: row.run_id.as_deref().and_then(|id| id.parse().ok()),
        agent: row.agent.as_deref().map(Into::into),
        operator: Some(Arc::clone(operator)),
        api: row.api.as_deref().map(Into::into),
        tool: row.tool.as_deref().map(Into::into),
        decided_at: Some(clock::now()),
        ..Entry::new(kind)
    }
}

fn conflict(row: &WorkRow) -> Refusal {
    let words = match row.state.as_str() {
        "resolved" => format!(
            "{} has resolved this item already; nothing was changed.",
            row.resolved_by.as_deref().unwrap_or("Somebody")
        ),
        "withdrawn" => "This item is no work any more: the gateway has taken the call, or it has ended. Nothing was changed; read the call.".to_owned(),
        "claimed" => format!(
            "{} has claimed this item; nothing was changed.",
            row.claimed_by.as_deref().unwrap_or("Somebody")
        ),
        _ => "Claim this item before you do the call and say what became of it; nothing was changed.".to_owned(),
    };
    Refusal::new(Reason::Conflict, words)
}

fn unrecorded(error: ActError) -> Refusal {
    match error {
        ActError::Store(StoreError::Conflict(why)) => {
            Refusal::new(Reason::Conflict, format!("Nothing was changed: {why}."))
        }
        error => {
            tracing::warn!(%error, "an act on the work list could not be recorded");
            let mut refusal = Refusal::record_unavailable();
            "It could not be recorded. Read the item before you try again."
                .clone_into(&mut refusal.detail);
            refusal
        }
    }
}

/// Takes an item for an operator, for as long as the config's lease lasts.
///
/// # Errors
/// Not found, not allowed, claimed by somebody else, taken by the gateway, or the database is away.
pub async fn claim(
    app: &Arc<App>,
    id: &str,
    operator: &Arc<str>,
) -> Result<(CallId, WorkRow), Refusal> {
    let (call, row) = find(app, id).await?;
    may(app.setting(), &row, operator)?;
    // Held against what was approved once more in the transaction that takes it.
    let held = if row.kind == "manual" && row.state == "open" {
        pipeline::may_claim(app, &call).await?
    } else {
        None
    };
    let claimed = take(app, &row, &call, operator, held).await?;
    match claimed {
        Claimed::Yes => find(app, id).await,
        Claimed::No => Err(conflict(&find(app, id).await?.1)),
        Claimed::NotAny(why) => Err(pipeline::not_claimed(app, &call, why).await),
    }
}

enum Claimed {
    Yes,
    /// Somebody else has it.
    No,
    /// What was approved no longer holds.
    NotAny(NotClaimed),
}

async fn take(
    app: &Arc<App>,
    row: &WorkRow,
    call: &CallId,
    operator: &Arc<str>,
    held: Option<Held>,
) -> Result<Claimed, Refusal> {
    let lease_seconds = app.config.limits.work_lease.as_secs_f64();
    let entry = Entry {
        detail: Some(json!({ "kind": row.kind, "because": row.because })),
        ..entry(row, call, operator, Kind::WorkClaimed)
    };
    let (call, operator, shared) = (call.clone(), Arc::clone(operator), Arc::clone(app));
    app.recorder
        .act(move |connection| {
            async move {
                if let Some(held) = held
                    && let Some(why) = held.against_hands(connection, &shared).await?
                {
                    return Ok((Vec::new(), Claimed::NotAny(why)));
                }
                let claimed =
                    store::work::claim(connection, &call, &operator, lease_seconds).await?;
                Ok(if claimed {
                    (vec![entry], Claimed::Yes)
                } else {
                    (Vec::new(), Claimed::No)
                })
            }
            .boxed()
        })
        .await
        .map_err(unrecorded)
}

/// Gives an item back. `note` says how far it got. The call stays for people to do.
///
/// # Errors
/// Not found, not allowed, not claimed by this operator, or the database is away.
pub async fn release(
    app: &Arc<App>,
    id: &str,
    operator: &Arc<str>,
    note: String,
) -> Result<WorkRow, Refusal> {
    let (call, row) = find(app, id).await?;
    may(app.setting(), &row, operator)?;
    let takes_over = may_take_over(app, &row, operator);
    let entry = Entry {
        words: Some(note),
        detail: Some(json!({ "claimed_by": row.claimed_by })),
        ..entry(&row, &call, operator, Kind::WorkReleased)
    };
    let operator = Arc::clone(operator);
    let released = app
        .recorder
        .act(move |connection| {
            async move {
                let released =
                    store::work::release(connection, &call, &operator, takes_over).await?;
                Ok((if released { vec![entry] } else { Vec::new() }, released))
            }
            .boxed()
        })
        .await
        .map_err(unrecorded)?;
    let (_, row) = find(app, id).await?;
    if released {
        Ok(row)
    } else {
        Err(conflict(&row))
    }
}

/// Ends the call of an item by what an operator says, once, and gives its agent the answer.
///
/// # Errors
/// Not found, not allowed, an answer that does not fit the contract, resolved or claimed by somebody else, or the database is
/// away.
pub async fn resolve(
    app: &Arc<App>,
    id: &str,
    operator: &Arc<str>,
    finding: Finding,
) -> Result<WorkRow, Refusal> {
    let (call, row) = find(app, id).await?;
    may(app.setting(), &row, operator)?;
    if matches!(row.state.as_str(), "resolved" | "withdrawn") {
        return Err(conflict(&row));
    }
    let answer = answer(app, &row, &call, &finding).await?;
    let takes_over = may_take_over(app, &row, operator);
    let resolved = commit(app, &row, &call, operator, takes_over, finding, answer).await?;
    if resolved {
        app.waiters.wake(&call);
    }
    let (_, row) = find(app, id).await?;
    if resolved {
        Ok(row)
    } else {
        Err(conflict(&row))
    }
}

/// What the agent will get, held to the contract.
async fn answer(
    app: &App,
    row: &WorkRow,
    call: &CallId,
    finding: &Finding,
) -> Result<Option<ByHandAnswer>, Refusal> {
    let malformed = |detail: &str| Err(Refusal::new(Reason::MalformedBody, detail));
    if !finding.executed {
        return if finding.result.is_some() || finding.status.is_some() {
            malformed("What was not executed has no \"status\" and no \"result\".")
        } else {
            Ok(None)
        };
    }
    let tool = row.tool.as_deref().and_then(|tool| app.tools.get(tool));
    let Some(tool) = tool.filter(|tool| Some(&*tool.digest) == row.contract_digest.as_deref())
    else {
        return if finding.result.is_some() {
            malformed(
                "The tool or its contract is not there any more, so no \"result\" can be held against it: leave it out and describe it in \"note\".",
            )
        } else {
            Ok(None)
        };
    };
    match (&finding.result, finding.status) {
        (None, None) if row.kind == "reconcile" => Ok(None),
        (result, status) => {
            let result = result.clone().unwrap_or(Value::Null);
            let status = status.unwrap_or(200);
            let whose = (call, row.run_id.as_deref());
            let answer = pipeline::answer_by_hand(app, tool, whose, status, &result).await?;
            Ok(Some(answer))
        }
    }
}

async fn commit(
    app: &Arc<App>,
    row: &WorkRow,
    call: &CallId,
    operator: &Arc<str>,
    takes_over: bool,
    finding: Finding,
    answer: Option<ByHandAnswer>,
) -> Result<bool, Refusal> {
    let executed_by = match (finding.executed, row.kind.as_str()) {
        (false, _) => None,
        (true, "manual") => Some(pipeline::BY_OPERATOR),
        (true, _) => Some(pipeline::FOUND_EXECUTED),
    };
    let code = (!finding.executed).then(|| Reason::NotExecuted.code());
    let seen = answer.as_ref().map(|answer| answer.seen.clone());
    let status = answer.as_ref().map(|answer| answer.status);
    let seen = seen.unwrap_or_default();
    let outcome = Entry {
        outcome: Some(if finding.executed {
            Outcome::Completed
        } else {
            Outcome::Failed
        }),
        executed: Some(finding.executed),
        status,
        reasons: code.into_iter().collect(),
        finished_at: Some(clock::now()),
        words: Some(finding.note.clone()),
        detail: Some(json!({
            "executed_by": executed_by,
            "resolved_by": operator,
            "kind": row.kind,
            "evidence": finding.evidence,
        })),
        answer: seen.answer,
        answer_digest: seen.digest,
        changed: seen.changed,
        ..entry(row, call, operator, Kind::Outcome)
    };
    let explanation = match (finding.executed, row.kind.as_str()) {
        (false, "manual") => format!(
            "NOT executed: {operator} was to do the call by hand and did not. If it is still wanted, make it as a new call. {}",
            finding.note
        ),
        (false, _) => format!(
            "NOT executed: the answer was lost, and {operator} found that the API had not executed the call. If it is still wanted, make it as a new call. {}",
            finding.note
        ),
        (true, _) => format!(
            "Executed, as {operator} says; its answer is not known. Do not repeat it. {}",
            finding.note
        ),
    };
    let (call, operator) = (call.clone(), Arc::clone(operator));
    app.recorder
        .act(move |connection| {
            async move {
                let status = status.and_then(|status| i16::try_from(status).ok());
                let resolution = Resolution {
                    call_id: &call,
                    operator: &operator,
                    takes_over,
                    executed: finding.executed,
                    status,
                    evidence: &finding.evidence,
                    note: &finding.note,
                };
                if !store::work::resolve(connection, &resolution).await? {
                    return Ok((Vec::new(), false));
                }
                let answer = store::work::Answer {
                    call_id: &call,
                    executed: finding.executed,
                    status,
                    answer: answer.as_ref().map(|answer| &*answer.sealed),
                    code,
                    explanation: &explanation,
                };
                store::work::answer(connection, &answer).await?;
                Ok((vec![outcome], true))
            }
            .boxed()
        })
        .await
        .map_err(unrecorded)
}
