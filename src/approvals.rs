//! Deciding on parked calls: who may vote, on whose right, what a vote is on, and what it comes to. Who counts for what is
//! decided in `composition`.

use std::sync::Arc;

use crate::{
    app::App,
    call::Consequence,
    clock,
    contracts::WhileHalted,
    entry::Outcome,
    ids::{ApprovalId, CallId, PermissionId},
    killswitch::Target,
    parked,
    policy::OperatorAction,
    reason::{Reason, Refusal},
    store::{self, StoreError, approvals::ApprovalRow},
};

mod counting;
pub mod delegations;
pub mod escalation;
mod line;
mod listing;
pub mod permissions;
mod shown;
mod voice;

pub use listing::{
    Attached, CastVote, EscalationStep, LastCall, Need, Shown, decidable, shown, shown_all,
};
pub use permissions::Next;
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
    /// How many calls they were shown in the line; one where they say nothing of it.
    pub calls: Option<u32>,
    /// For which calls to come they approve too.
    pub next: Option<Next>,
}

/// What a vote has come to.
#[derive(Debug)]
pub struct Decided {
    /// The approval as it stands with it: the head of its line.
    pub row: ApprovalRow,
    /// The calls of the line, all of them in the same state.
    pub calls: Vec<CallId>,
    /// The standing permission that came of it.
    pub permission: Option<PermissionId>,
    /// The tiers it waits or waited in.
    pub tiers: Vec<String>,
}

/// What became of a vote.
#[derive(Debug)]
enum Counted {
    /// It is.
    Yes(Box<Decided>),
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
    /// The line holds another number of calls than they saw.
    OtherCount { calls: usize },
}

/// Counts an operator's vote. When it is the last one needed, the call goes on by itself.
///
/// # Errors
/// A refusal: not found, not allowed, stale, too late, halted, or the database is away.
pub async fn vote(app: &Arc<App>, id: &str, ballot: Ballot) -> Result<Decided, Refusal> {
    let (case, lent) = voice::read(app, id, &ballot.operator).await?;
    let voice = voice::voice(app, &case, &lent, &ballot)?;
    line::is_head(&case.row)?;
    permissions::may_give(app, &case, &ballot)?;
    let row = case.row;
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
    let (operator, vote) = (Arc::clone(&ballot.operator), ballot.vote);
    let counted = counting::count(app, &row, voice, ballot).await?;
    match counted {
        Counted::Yes(decided) => {
            measure(app, &decided, &operator, vote);
            for call in &decided.calls {
                match decided.row.state.as_str() {
                    "approved" => {
                        let resumed = crate::pipeline::resume(Arc::clone(app), call.clone());
                        app.tasks.spawn(resumed);
                    }
                    "denied" => app.waiters.wake(call),
                    _ => {}
                }
            }
            Ok(*decided)
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
        Counted::OtherCount { calls } => Err(line::other_count(calls)),
    }
}

/// Counts how long the line had waited for this vote, and for its decision.
fn measure(app: &App, decided: &Decided, operator: &str, vote: Vote) {
    let row = &decided.row;
    let waited = (clock::now() - row.created_at).to_std().unwrap_or_default();
    app.people.voted(operator, vote == Vote::Approve, waited);
    if row.state != "pending" {
        for tier in &decided.tiers {
            app.people.decided(tier, waited);
        }
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
