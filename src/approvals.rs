//! Deciding on parked calls: who may vote, on whose right, what a vote is on, and what it comes to. Who counts for what is
//! decided in `composition`.

use std::sync::Arc;

use futures::FutureExt as _;
use serde_json::json;
use sqlx::PgConnection;

use crate::{
    app::App,
    audit::ActError,
    call::Consequence,
    clock,
    composition::{Case, Voice},
    contracts::WhileHalted,
    entry::{Entry, Kind, Outcome},
    ids::{ApprovalId, CallId},
    killswitch::Target,
    parked,
    policy::OperatorAction,
    reason::{Reason, Refusal},
    store::{self, StoreError, approvals::ApprovalRow, composition::NewVote},
};

pub mod delegations;
pub mod escalation;
mod listing;
mod shown;
mod voice;

pub use listing::{CastVote, EscalationStep, Need, Shown, decidable, shown, shown_all};
pub use shown::UNREADABLE;

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
    /// Whose right to use, where it is not the operator's own and more than one lent theirs.
    pub authority: Option<String>,
}

/// What became of a vote.
#[derive(Debug)]
enum Counted {
    /// It is: the approval as it stands with it.
    Yes(Box<ApprovalRow>),
    /// The state had changed before.
    TooLate { state: String },
    /// It ran out of time before.
    Overdue,
    /// Its clock is stopped.
    Frozen,
    /// It has not been opened to the voter's tier yet.
    TooEarly,
    /// What the vote would rest on was taken back or has run out.
    TakenBack,
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
    let (case, lent) = voice::read(app, id, &ballot.operator).await?;
    let voice = voice::voice(app, &case, &lent, &ballot)?;
    let row = case.row;
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
    let counted = count(app, &row, &call, voice, ballot).await?;
    match counted {
        Counted::Yes(row) => {
            match row.state.as_str() {
                "approved" => {
                    let app = Arc::clone(app);
                    app.tasks.clone().spawn(crate::pipeline::resume(app, call));
                }
                "denied" => app.waiters.wake(&call),
                _ => {}
            }
            Ok(*row)
        }
        Counted::Overdue => {
            // Nobody has come by to say so yet.
            let _ =
                parked::end_unsent(&app.recorder, &app.waiters, &row, Outcome::Expired, EXPIRED)
                    .await;
            Err(Refusal::new(
                Reason::ApprovalExpired,
                "This approval has expired; the call was not executed and cannot be any more.",
            ))
        }
        Counted::TooLate { state } => Err(Refusal::new(
            Reason::Conflict,
            format!("This approval is {state} already; nothing was changed."),
        )),
        Counted::Frozen => Err(Refusal::new(
            Reason::Halted,
            "A kill switch covers this call, so it cannot be approved now; its time stands still. Resume first, or deny it.",
        )),
        Counted::TooEarly => Err(Refusal::new(
            Reason::DeniedByPolicy,
            "This approval has not been opened to your tier yet; it shows when it will be.",
        )),
        Counted::TakenBack => Err(Refusal::new(
            Reason::DeniedByPolicy,
            "The delegation that this vote would use is no longer in force; nothing was changed.",
        )),
        Counted::Again => Err(Refusal::new(
            Reason::Conflict,
            "You have voted on this approval already; one person counts once.",
        )),
        Counted::Stale => Err(stale()),
    }
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

async fn count(
    app: &Arc<App>,
    row: &ApprovalRow,
    call: &CallId,
    voice: Voice,
    ballot: Ballot,
) -> Result<Counted, Refusal> {
    let (id, call, shared) = (row.approval_id.clone(), call.clone(), Arc::clone(app));
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
                let escalated = store::composition::escalate(connection, Some(&id)).await?;
                let mut entries: Vec<Entry> = escalated.iter().map(escalation::entry).collect();
                let counted = cast(
                    connection,
                    &shared,
                    row,
                    &call,
                    voice,
                    (&ballot, may_be_frozen),
                    &mut entries,
                )
                .await?;
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

/// Counts one vote on an approval that is pending and locked. An error undoes the whole transaction.
async fn cast(
    connection: &mut PgConnection,
    app: &App,
    row: ApprovalRow,
    call: &CallId,
    mut voice: Voice,
    (ballot, may_be_frozen): (&Ballot, bool),
    entries: &mut Vec<Entry>,
) -> Result<Counted, StoreError> {
    let id = row.approval_id.clone();
    let lent: Vec<String> = voice
        .seats
        .iter()
        .filter_map(|seat| seat.delegation.clone())
        .collect();
    if !lent.is_empty() {
        // On the database's clock, in the moment of the vote.
        let in_force = store::delegations::in_force(connection, &lent).await?;
        voice.seats.retain(|seat| {
            let lent = seat.delegation.as_ref();
            lent.is_none_or(|id| in_force.contains(id))
        });
        if voice.seats.is_empty() {
            return Ok(Counted::TakenBack);
        }
        let seats = &voice.seats;
        voice
            .tiers
            .retain(|tier| seats.iter().any(|seat| seat.tier == *tier));
    }
    let mut case = only(Case::load(connection, vec![row]).await?)?;
    let may_now = {
        let open = case.open_tiers();
        match ballot.vote {
            Vote::Approve => voice
                .seats
                .iter()
                .any(|seat| open.contains(seat.tier.as_str())),
            Vote::Deny => voice.tiers.iter().any(|tier| open.contains(tier.as_str())),
        }
    };
    if !may_now {
        return Ok(Counted::TooEarly);
    }
    let mut delegations: Vec<String> = voice
        .seats
        .iter()
        .filter_map(|seat| seat.delegation.clone())
        .collect();
    delegations.sort_unstable();
    delegations.dedup();
    let added = store::composition::add_vote(
        connection,
        &NewVote {
            approval_id: &id,
            operator: &ballot.operator,
            authority: &voice.authority,
            vote: ballot.vote.as_str(),
            tiers: &voice.tiers,
            seats: &voice.seats,
            delegations: &delegations,
            digest: &ballot.digest,
            reason: &ballot.reason,
        },
    )
    .await?;
    if !added {
        return Ok(Counted::Again);
    }
    entries.push(vote_entry(&case.row, call, ballot, &voice));
    case.votes = store::composition::votes(connection, std::slice::from_ref(&id)).await?;
    match ballot.vote {
        Vote::Deny if case.is_denied() => {
            let because = format!(
                "NOT executed. {} denied the call: {}",
                ballot.operator, ballot.reason
            );
            let ending = parked::unsent(call.clone(), Outcome::Denied, &because);
            if !store::calls::finish(connection, &ending).await? {
                return Err(StoreError::Conflict(
                    "the call behind this approval is not parked".to_owned(),
                ));
            }
            entries.push(parked::ended_entry(
                &case.row,
                call,
                Outcome::Denied,
                &because,
            ));
        }
        Vote::Approve if case.is_fulfilled(app) => {
            if !store::approvals::approve(connection, &id, call.as_str(), may_be_frozen).await? {
                // Its time ran out between the two looks: the whole transaction is undone.
                return Err(StoreError::Conflict(
                    "the approval is not pending any more".to_owned(),
                ));
            }
        }
        Vote::Deny | Vote::Approve => {}
    }
    let row = store::approvals::find(connection, &id).await?;
    row.map(|row| Counted::Yes(Box::new(row)))
        .ok_or_else(|| StoreError::Conflict("the approval is gone".to_owned()))
}

fn only(cases: Vec<Case>) -> Result<Case, StoreError> {
    let mut cases = cases.into_iter();
    cases
        .next()
        .ok_or_else(|| StoreError::Conflict("the approval is gone".to_owned()))
}

fn vote_entry(row: &ApprovalRow, call: &CallId, ballot: &Ballot, voice: &Voice) -> Entry {
    let mut detail = json!({
        "vote": ballot.vote.as_str(),
        "tiers": voice.tiers,
        "seats": voice.seats,
    });
    if voice.authority != *ballot.operator
        && let Some(detail) = detail.as_object_mut()
    {
        detail.insert("for".to_owned(), json!(voice.authority));
    }
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
        detail: Some(detail),
        ..Entry::new(Kind::ApprovalVote)
    }
}
