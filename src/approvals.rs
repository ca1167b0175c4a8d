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
    composition::{Case, Voice, is_maker},
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

pub use listing::{Decidable, Shown, decidable, shown, shown_all};

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
    let row = find(app, id).await?;
    let voice = voice(app, &row, &ballot).await?;
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
        Counted::TooEarly => {
            return Err(Refusal::new(
                Reason::DeniedByPolicy,
                "This approval has not been opened to your tier yet; it shows when it will be.",
            ));
        }
        Counted::TakenBack => {
            return Err(Refusal::new(
                Reason::DeniedByPolicy,
                "The delegation that this vote would use is no longer in force; nothing was changed.",
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

fn halted(app: &App, row: &ApprovalRow) -> Option<crate::ids::KillSwitchId> {
    let consequence = Consequence::ALL
        .into_iter()
        .find(|consequence| consequence.as_str() == row.consequence)?;
    app.kill_switches.covering(&Target {
        api: &row.api,
        tool: &row.tool,
        consequence,
        agent: &row.agent,
        run: &row.run_id,
    })
}

const SELF_APPROVAL: &str = "This call was asked for by your own agent or in a run that you triggered. Somebody else must decide.";

/// On whose right this operator speaks, and for what: their own where they have any and name nobody else, else that of the one
/// who lent them theirs.
///
/// # Errors
/// When there is none, and for what is one's own: the agent's owner and whoever triggered the run never decide, not even as
/// administrators, and neither through somebody else nor for somebody else.
async fn voice(app: &App, row: &ApprovalRow, ballot: &Ballot) -> Result<Voice, Refusal> {
    let operator = &*ballot.operator;
    if is_maker(app, row, operator) {
        return Err(Refusal::new(Reason::SelfApproval, SELF_APPROVAL));
    }
    let read = async {
        let mut connection = app.pool.acquire().await?;
        let case = Case::load(&mut connection, vec![row.clone()]).await?.pop();
        let lent = store::delegations::to(&mut connection, operator).await?;
        Ok((case, lent))
    };
    let (case, lent) = read.await.map_err(|error: StoreError| {
        tracing::warn!(%error, "what an approval asks for could not be read");
        Refusal::record_unavailable()
    })?;
    let case = case.ok_or_else(|| Refusal::new(Reason::NotFound, "There is no such approval."))?;
    let action = ballot.vote.action();
    let named = ballot.authority.as_deref().filter(|name| *name != operator);
    if named.is_none() {
        let own = case.own_voice(app, action, operator);
        if counts(&own, ballot.vote) {
            return Ok(own);
        }
        if ballot.authority.is_some() {
            return Err(nothing_to_say(app, &case, ballot));
        }
    }
    let mut froms: Vec<&str> = lent
        .iter()
        .map(|lent| lent.from_operator.as_str())
        .collect();
    froms.sort_unstable();
    froms.dedup();
    froms.retain(|from| named.is_none_or(|named| named == *from));
    let mut voices: Vec<Voice> = Vec::new();
    let mut of_makers = false;
    for from in froms {
        let voice = case.lent_voice(app, action, (operator, from), &lent);
        if counts(&voice, ballot.vote) {
            if is_maker(app, row, from) {
                of_makers = true;
            } else {
                voices.push(voice);
            }
        }
    }
    match (voices.pop(), voices.as_slice()) {
        (Some(voice), []) => Ok(voice),
        (Some(last), others) => {
            let names: Vec<&str> = others
                .iter()
                .chain(std::iter::once(&last))
                .map(|voice| voice.authority.as_str())
                .collect();
            Err(Refusal::new(
                Reason::Conflict,
                format!(
                    "Several operators lent you a right to decide on this ({}): say in \"for\" whose you use. Nothing was changed.",
                    names.join(", ")
                ),
            ))
        }
        (None, _) if of_makers => Err(Refusal::new(
            Reason::SelfApproval,
            "Whoever lent you this right asked for the call, so it cannot be used here. Somebody else must decide.",
        )),
        (None, _) => Err(nothing_to_say(app, &case, ballot)),
    }
}

/// An approval needs a seat; a denial only a say.
fn counts(voice: &Voice, vote: Vote) -> bool {
    match vote {
        Vote::Approve => !voice.seats.is_empty(),
        Vote::Deny => !voice.tiers.is_empty(),
    }
}

fn nothing_to_say(app: &App, case: &Case, ballot: &Ballot) -> Refusal {
    let own = case.own_voice(app, ballot.vote.action(), &ballot.operator);
    let words = if own.tiers.is_empty() {
        "None of your roles, groups and delegations may decide on this approval."
    } else {
        "The policies let you speak on this approval, but you hold none of the roles and groups that it asks for."
    };
    let mut refusal = Refusal::new(Reason::DeniedByPolicy, words);
    refusal.policies = case.forbidding(app, ballot.vote.action(), &ballot.operator);
    refusal
}

async fn count(
    app: &Arc<App>,
    row: &ApprovalRow,
    call: &CallId,
    voice: Voice,
    ballot: Ballot,
) -> Result<Counted, Refusal> {
    let (id, call, shared) = (row.approval_id.clone(), call.clone(), Arc::clone(app));
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
                if row.frozen_at.is_some() && ballot.vote == Vote::Approve {
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
                    &ballot,
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
    ballot: &Ballot,
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
            Ok(Counted::Denied)
        }
        Vote::Approve if case.is_fulfilled(app) => {
            if store::approvals::approve(connection, &id, call.as_str()).await? {
                Ok(Counted::Approved)
            } else {
                // Its time ran out between the two looks: the whole transaction is undone.
                Err(StoreError::Conflict(
                    "the approval is not pending any more".to_owned(),
                ))
            }
        }
        Vote::Deny | Vote::Approve => Ok(Counted::Waiting),
    }
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
