//! On whose right an operator speaks.

use super::{Ballot, Vote};
use crate::{
    app::App,
    composition::{Case, Voice, is_maker},
    ids::ApprovalId,
    reason::{Reason, Refusal},
    store::{self, StoreError, delegations::DelegationRow},
};

const SELF_APPROVAL: &str = "This call was asked for by your own agent or in a run that you triggered. Somebody else must decide.";

/// What a vote is on, and what was lent to the voter.
///
/// # Errors
/// `not_found`, or the database is away.
pub(super) async fn read(
    app: &App,
    id: &str,
    operator: &str,
) -> Result<(Case, Vec<DelegationRow>), Refusal> {
    let unknown = || Refusal::new(Reason::NotFound, "There is no approval of this id.");
    if id.parse::<ApprovalId>().is_err() {
        return Err(unknown());
    }
    let read = async {
        let mut connection = app.pool.acquire().await?;
        let row = store::approvals::find(&mut connection, id).await?;
        let case = Case::load(&mut connection, row.into_iter().collect())
            .await?
            .pop();
        let lent = store::delegations::to(&mut connection, operator).await?;
        Ok(case.map(|case| (case, lent)))
    };
    let found = read.await.map_err(|error: StoreError| {
        tracing::warn!(%error, "what a vote is on could not be read");
        Refusal::record_unavailable()
    })?;
    found.ok_or_else(unknown)
}

/// On whose right this operator speaks, and for what: their own where they have any and name nobody else, else that of the one
/// who lent them theirs.
///
/// # Errors
/// When there is none, and for what is one's own: the agent's owner and whoever triggered the run never decide, not even as
/// administrators, and neither through somebody else nor for somebody else.
pub(super) fn voice(
    app: &App,
    case: &Case,
    lent: &[DelegationRow],
    ballot: &Ballot,
) -> Result<Voice, Refusal> {
    let (row, operator) = (&case.row, &*ballot.operator);
    if is_maker(app, row, operator) {
        return Err(Refusal::new(Reason::SelfApproval, SELF_APPROVAL));
    }
    let action = ballot.vote.action();
    let named = ballot.authority.as_deref().filter(|name| *name != operator);
    if named.is_none() {
        let own = case.own_voice(app, action, operator);
        if counts(&own, ballot.vote) {
            return Ok(own);
        }
        if ballot.authority.is_some() {
            return Err(nothing_to_say(app, case, ballot));
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
        let voice = case.lent_voice(app, action, (operator, from), lent);
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
        (None, _) => Err(nothing_to_say(app, case, ballot)),
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
