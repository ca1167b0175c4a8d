//! Deciding on parked calls: who may vote, what a vote is on, and when enough people have spoken. One person counts once,
//! and for one tier.

use std::sync::Arc;

use futures::FutureExt as _;
use serde_json::{Value, json};

use crate::{
    app::App,
    audit::ActError,
    call::Consequence,
    clock,
    contracts::WhileHalted,
    entry::{Entry, Kind, Outcome},
    ids::{ApprovalId, CallId},
    killswitch::Target,
    parked::{self, Sealed},
    policy::{ApprovalFacts, OperatorAction, OperatorContext, OperatorResource},
    reason::{Reason, Refusal},
    store::{
        self, StoreError,
        approvals::{ApprovalRow, TierRow, VoteRow},
    },
};

mod quorum;

use quorum::enough;

/// What an operator says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Vote {
    /// Execute it.
    Approve,
    /// Do not.
    Deny,
}

impl Vote {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Deny => "deny",
        }
    }

    const fn action(self) -> OperatorAction {
        match self {
            Self::Approve => OperatorAction::Approve,
            Self::Deny => OperatorAction::Deny,
        }
    }
}

/// An approval with everything an approver is shown.
#[derive(Debug)]
pub struct Shown {
    /// As it is kept.
    pub row: ApprovalRow,
    /// The tiers it waits in.
    pub tiers: Vec<TierRow>,
    /// Who has voted.
    pub votes: Vec<VoteRow>,
    /// The real arguments; gone once the call has ended.
    pub arguments: Option<Value>,
    /// The agent's justification: the agent's words, not a fact.
    pub words: Option<String>,
    /// What the run is for.
    pub purpose: Option<String>,
}

/// Reads an approval as an approver is shown it.
///
/// # Errors
/// When the database is away.
pub async fn shown(app: &App, row: ApprovalRow) -> Result<Shown, StoreError> {
    let mut connection = app.pool.acquire().await?;
    let tiers = store::approvals::tiers(&mut connection, &row.approval_id).await?;
    let votes = store::approvals::votes(&mut connection, &row.approval_id).await?;
    let call = store::calls::find(&mut connection, &row.call_id).await?;
    drop(connection);
    let sealed = call
        .and_then(|call| call.sealed)
        .and_then(|sealed| app.keyring.open(&row.call_id, &sealed).ok())
        .and_then(|plain| serde_json::from_slice::<Sealed>(&plain).ok());
    let purpose = match row.run_id.parse() {
        Ok(run) => app
            .runs
            .find(&run)
            .await
            .ok()
            .flatten()
            .map(|run| run.purpose.clone()),
        Err(_) => None,
    };
    let (arguments, words) = match sealed {
        Some(sealed) => (Some(Value::Object(sealed.arguments)), sealed.words),
        None => (None, None),
    };
    Ok(Shown {
        row,
        tiers,
        votes,
        arguments,
        words,
        purpose,
    })
}

/// One decision of one operator.
#[derive(Debug)]
pub struct Ballot {
    /// Who.
    pub operator: Arc<str>,
    /// What.
    pub vote: Vote,
    /// Digest of what they were shown.
    pub digest: String,
    /// Why.
    pub reason: String,
}

/// What became of a vote.
#[derive(Debug)]
enum Counted {
    /// More people are needed.
    Waiting,
    /// Enough: the call goes on.
    Approved,
    /// The call ends.
    Denied,
    /// The state had changed before.
    TooLate { state: String },
    /// It ran out of time before.
    Overdue,
    /// Its clock is stopped.
    Frozen,
    /// This person has voted already.
    Again,
    /// It is not what the operator saw.
    Stale,
}

/// Counts an operator's vote. When it is the last one needed, the call goes on by itself.
///
/// # Errors
/// A refusal: not found, not allowed, stale, too late, halted, or the database is away.
pub async fn vote(app: &Arc<App>, id: &str, ballot: Ballot) -> Result<ApprovalRow, Refusal> {
    let row = find(app, id).await?;
    let tiers = eligible(app, &row, &ballot).await?;
    if ballot.digest != row.digest {
        return Err(stale());
    }
    if ballot.vote == Vote::Approve
        && let Some(kill_switch) = halted(app, &row)
    {
        let mut refusal = Refusal::new(
            Reason::Halted,
            "A kill switch covers this call, so it cannot be approved now; its time stands still. Resume first, or deny it.",
        );
        refusal.kill_switch = Some(kill_switch);
        return Err(refusal);
    }
    let call: CallId = row.call_id.parse().map_err(|_not_an_id| {
        Refusal::new(
            Reason::Internal,
            "The approval names no valid call; tell an operator.",
        )
    })?;
    let counted = count(app, &row, &call, tiers, ballot).await?;
    match counted {
        Counted::Waiting => {}
        Counted::Approved => {
            let app = Arc::clone(app);
            app.tasks.clone().spawn(crate::pipeline::resume(app, call));
        }
        Counted::Denied => app.waiters.wake(&call),
        Counted::Overdue => {
            // Nobody has come by to say so yet.
            let _ =
                parked::end_unsent(&app.recorder, &app.waiters, &row, Outcome::Expired, EXPIRED)
                    .await;
            return Err(Refusal::new(
                Reason::ApprovalExpired,
                "This approval has expired; the call was not executed and cannot be any more.",
            ));
        }
        Counted::TooLate { state } => {
            return Err(Refusal::new(
                Reason::Conflict,
                format!("This approval is {state} already; nothing was changed."),
            ));
        }
        Counted::Frozen => {
            return Err(Refusal::new(
                Reason::Halted,
                "A kill switch covers this call, so it cannot be approved now; its time stands still. Resume first, or deny it.",
            ));
        }
        Counted::Again => {
            return Err(Refusal::new(
                Reason::Conflict,
                "You have voted on this approval already; one person counts once.",
            ));
        }
        Counted::Stale => return Err(stale()),
    }
    find(app, id).await
}

/// What an expired call says.
pub const EXPIRED: &str =
    "NOT executed. Nobody approved the call in time. Make it again if it is still wanted.";

fn stale() -> Refusal {
    Refusal::new(
        Reason::StaleDigest,
        "The digest is not that of this approval: read it again and decide on what it shows.",
    )
}

/// The approval of that id.
///
/// # Errors
/// `not_found`, or the database is away.
pub async fn find(app: &App, id: &str) -> Result<ApprovalRow, Refusal> {
    let unknown = || Refusal::new(Reason::NotFound, "There is no approval of this id.");
    if id.parse::<ApprovalId>().is_err() {
        return Err(unknown());
    }
    let away = |error: StoreError| {
        tracing::warn!(%error, "an approval could not be read");
        Refusal::record_unavailable()
    };
    let mut connection = app
        .pool
        .acquire()
        .await
        .map_err(|error| away(error.into()))?;
    store::approvals::find(&mut connection, id)
        .await
        .map_err(away)?
        .ok_or_else(unknown)
}

/// The kill switch for which this call cannot be approved now. None where the call is done by hand while it is halted: that needs
/// the approval first.
fn halted(app: &App, row: &ApprovalRow) -> Option<crate::ids::KillSwitchId> {
    let consequence = Consequence::ALL
        .into_iter()
        .find(|consequence| consequence.as_str() == row.consequence)?;
    let target = Target {
        api: &row.api,
        tool: &row.tool,
        consequence,
        agent: &row.agent,
        run: &row.run_id,
    };
    let by_hand = is_done_by_hand(app, row) && !app.kill_switches.stops_caller(&target);
    app.kill_switches.covering(&target).filter(|_| !by_hand)
}

fn is_done_by_hand(app: &App, row: &ApprovalRow) -> bool {
    app.tools
        .get(&row.tool)
        .is_some_and(|tool| tool.contract.while_halted == WhileHalted::WorkList)
}

/// The tiers for which this operator may speak.
///
/// # Errors
/// When there is none, and for what is one's own: the agent's owner and whoever triggered the run never decide, not
/// even as administrators.
async fn eligible(app: &App, row: &ApprovalRow, ballot: &Ballot) -> Result<Vec<String>, Refusal> {
    let operator = &*ballot.operator;
    let own = is_person(&row.triggered_by, operator) || row.owner == operator;
    if own {
        return Err(Refusal::new(
            Reason::SelfApproval,
            "This call was asked for by your own agent or in a run that you triggered. Somebody else must decide.",
        ));
    }
    let tiers = async {
        let mut connection = app.pool.acquire().await?;
        store::approvals::tiers(&mut connection, &row.approval_id).await
    }
    .await
    .map_err(|error: StoreError| {
        tracing::warn!(%error, "the tiers of an approval could not be read");
        Refusal::record_unavailable()
    })?;
    let facts = ApprovalFacts {
        agent: &row.agent,
        owner: &row.owner,
        triggered_by: &row.triggered_by,
        tool: &row.tool,
        api: &row.api,
        consequence: &row.consequence,
        run: &row.run_id,
    };
    let mut may = Vec::new();
    let mut policies = Vec::new();
    for tier in tiers {
        let decision = app.policies.decide_operator(
            operator,
            ballot.vote.action(),
            OperatorResource::Tier(&tier.tier),
            OperatorContext::Approval(facts),
        );
        if decision.permitted {
            may.push(tier.tier);
        } else {
            policies.extend(decision.policies);
        }
    }
    if may.is_empty() {
        let mut refusal = Refusal::new(
            Reason::DeniedByPolicy,
            "None of your roles may decide on this approval.",
        );
        refusal.policies = policies;
        return Err(refusal);
    }
    Ok(may)
}

/// Whether a run's `triggered_by` names this person: by the bare name, or as `operator:name` or `user:name`.
pub fn is_person(triggered_by: &str, operator: &str) -> bool {
    let name = triggered_by
        .split_once(':')
        .filter(|(kind, _)| {
            ["operator", "user", "person", "human"]
                .iter()
                .any(|known| kind.trim().eq_ignore_ascii_case(known))
        })
        .map_or(triggered_by, |(_, name)| name);
    name.trim().eq_ignore_ascii_case(operator)
}

async fn count(
    app: &App,
    row: &ApprovalRow,
    call: &CallId,
    tiers: Vec<String>,
    ballot: Ballot,
) -> Result<Counted, Refusal> {
    let (id, call) = (row.approval_id.clone(), call.clone());
    // Its time stands still all the same. A kill switch on its caller was looked for before this.
    let may_be_frozen = is_done_by_hand(app, row);
    app.recorder
        .act(move |connection| {
            async move {
                let Some(row) = store::approvals::lock(connection, &id).await? else {
                    return Ok((
                        Vec::new(),
                        Counted::TooLate {
                            state: "gone".to_owned(),
                        },
                    ));
                };
                if row.state != "pending" {
                    return Ok((Vec::new(), Counted::TooLate { state: row.state }));
                }
                if row.overdue {
                    return Ok((Vec::new(), Counted::Overdue));
                }
                if row.frozen_at.is_some() && ballot.vote == Vote::Approve && !may_be_frozen {
                    return Ok((Vec::new(), Counted::Frozen));
                }
                if row.digest != ballot.digest {
                    return Ok((Vec::new(), Counted::Stale));
                }
                let added = store::approvals::add_vote(
                    connection,
                    &id,
                    &ballot.operator,
                    ballot.vote.as_str(),
                    &tiers,
                    &ballot.digest,
                    &ballot.reason,
                )
                .await?;
                if !added {
                    return Ok((Vec::new(), Counted::Again));
                }
                let mut entries = vec![vote_entry(&row, &call, &ballot)];
                let counted = match ballot.vote {
                    Vote::Deny => {
                        let because = format!(
                            "NOT executed. {} denied the call: {}",
                            ballot.operator, ballot.reason
                        );
                        let ending = parked::unsent(call.clone(), Outcome::Denied, &because);
                        store::calls::finish(connection, &ending).await?;
                        entries.push(parked::ended_entry(&row, &call, Outcome::Denied, &because));
                        Counted::Denied
                    }
                    Vote::Approve => {
                        let needed = store::approvals::tiers(connection, &id).await?;
                        let votes = store::approvals::votes(connection, &id).await?;
                        if !enough(&needed, &votes) {
                            Counted::Waiting
                        } else if store::approvals::approve(
                            connection,
                            &id,
                            call.as_str(),
                            may_be_frozen,
                        )
                        .await?
                        {
                            Counted::Approved
                        } else {
                            // Its time ran out between the two looks: the whole transaction is undone.
                            return Err(StoreError::Conflict(
                                "the approval is not pending any more".to_owned(),
                            ));
                        }
                    }
                };
                Ok((entries, counted))
            }
            .boxed()
        })
        .await
        .map_err(|error| match error {
            ActError::Store(StoreError::Conflict(why)) => {
                Refusal::new(Reason::Conflict, format!("Nothing was changed: {why}."))
            }
            error => {
                tracing::warn!(%error, "a vote could not be recorded");
                let mut refusal = Refusal::record_unavailable();
                "The vote could not be recorded. Read the approval before you vote again."
                    .clone_into(&mut refusal.detail);
                refusal
            }
        })
}

fn vote_entry(row: &ApprovalRow, call: &CallId, ballot: &Ballot) -> Entry {
    Entry {
        call_id: Some(call.clone()),
        run_id: row.run_id.parse().ok(),
        approval_id: row.approval_id.parse().ok(),
        agent: Some(row.agent.as_str().into()),
        operator: Some(Arc::clone(&ballot.operator)),
        api: Some(row.api.as_str().into()),
        tool: Some(row.tool.as_str().into()),
        arguments_digest: Some(ballot.digest.as_str().into()),
        decided_at: Some(clock::now()),
        words: Some(ballot.reason.clone()),
        detail: Some(json!({"vote": ballot.vote.as_str()})),
        ..Entry::new(Kind::ApprovalVote)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_triggered_the_run_is_recognised_in_every_spelling() {
        for text in ["ada", "Ada", "operator:ada", "user:ada", "Human : ada"] {
            assert!(is_person(text, "ada"), "{text}");
        }
        for text in ["schedule:nightly", "adam", "ticket:ada"] {
            assert!(!is_person(text, "ada"), "{text}");
        }
    }
}
