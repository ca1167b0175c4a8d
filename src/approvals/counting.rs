//! Counting a vote: one transaction in which the line is locked, everything that a vote rests on is asked once more, and what it
//! comes to is changed and told.

use std::sync::Arc;

use futures::FutureExt as _;
use serde_json::json;
use sqlx::PgConnection;

use super::{Ballot, Counted, Decided, Next, Vote, escalation, is_done_by_hand, line, permissions};
use crate::{
    app::App,
    audit::ActError,
    clock,
    composition::{Case, Voice},
    entry::{Entry, Kind, Outcome},
    ids::CallId,
    parked,
    reason::{Reason, Refusal},
    store::{self, StoreError, approvals::ApprovalRow, composition::NewVote},
};

pub(super) async fn count(
    app: &Arc<App>,
    row: &ApprovalRow,
    voice: Voice,
    ballot: Ballot,
) -> Result<Counted, Refusal> {
    let (id, shared) = (row.approval_id.clone(), Arc::clone(app));
    // Its time stands still all the same. A kill switch on its caller was looked for before this.
    let may_be_frozen = is_done_by_hand(app, row);
    app.recorder
        .act(move |connection| {
            async move {
                let line = store::lines::lock(connection, &id).await?;
                let Some(row) = line.first() else {
                    return Ok((
                        Vec::new(),
                        Counted::TooLate {
                            state: "gone".to_owned(),
                        },
                    ));
                };
                if row.state != "pending" {
                    let state = row.state.clone();
                    return Ok((Vec::new(), Counted::TooLate { state }));
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
                if !line::is_as_seen(&ballot, line.len()) {
                    let calls = line.len();
                    return Ok((Vec::new(), Counted::OtherCount { calls }));
                }
                let mut entries = Vec::new();
                let counted = cast_all(
                    connection,
                    &shared,
                    line,
                    &voice,
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

/// Counts one vote on every approval of a line, whose head comes first: on each by itself, and on all or none. An error undoes
/// the whole transaction.
async fn cast_all(
    connection: &mut PgConnection,
    app: &App,
    line: Vec<ApprovalRow>,
    voice: &Voice,
    (ballot, may_be_frozen): (&Ballot, bool),
    entries: &mut Vec<Entry>,
) -> Result<Counted, StoreError> {
    let calls = line
        .iter()
        .map(|row| row.call_id.parse().map_err(|_not_an_id| no_call()))
        .collect::<Result<Vec<CallId>, StoreError>>()?;
    let size = i32::try_from(line.len()).unwrap_or(i32::MAX);
    let mut head: Option<ApprovalRow> = None;
    for (row, call) in line.into_iter().zip(&calls) {
        let id = row.approval_id.clone();
        let escalated = store::composition::escalate(connection, Some(&id)).await?;
        entries.extend(escalated.iter().map(escalation::entry));
        let counted = cast(
            connection,
            app,
            (row, call, size),
            voice.clone(),
            (ballot, may_be_frozen),
            entries,
        )
        .await?;
        match (counted, &head) {
            (Ok(row), None) => head = Some(row),
            // INVARIANT: what is attached has the times, tiers and votes of its head, so that it comes to the same.
            (Ok(row), Some(head)) if row.state == head.state => {}
            (Err(not_counted), None) => return Ok(not_counted),
            (Ok(_) | Err(_), Some(_)) => {
                return Err(StoreError::Conflict(
                    "the calls of this line do not stand alike".to_owned(),
                ));
            }
        }
    }
    let row = head.ok_or_else(no_call)?;
    let permission = match row.state.as_str() {
        "approved" => permissions::give(connection, app, &row, entries).await?,
        _ => None,
    };
    let ids = std::slice::from_ref(&row.approval_id);
    let tiers = store::composition::tiers(connection, ids).await?;
    Ok(Counted::Yes(Box::new(Decided {
        row,
        calls,
        permission,
        tiers: tiers.into_iter().map(|tier| tier.tier).collect(),
    })))
}

fn no_call() -> StoreError {
    StoreError::Conflict("the approval names no valid call; tell an operator".to_owned())
}

/// Counts one vote on an approval that is pending and locked; gives it as it stands with it, or why it does not count.
async fn cast(
    connection: &mut PgConnection,
    app: &App,
    (row, call, size): (ApprovalRow, &CallId, i32),
    mut voice: Voice,
    (ballot, may_be_frozen): (&Ballot, bool),
    entries: &mut Vec<Entry>,
) -> Result<Result<ApprovalRow, Counted>, StoreError> {
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
            return Ok(Err(Counted::TakenBack));
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
        return Ok(Err(Counted::TooEarly));
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
            calls: size,
            next_calls: ballot.next.map(Next::calls),
            next_seconds: ballot.next.map(Next::seconds),
        },
    )
    .await?;
    if !added {
        return Ok(Err(Counted::Again));
    }
    entries.push(vote_entry(&case.row, call, (ballot, size), &voice));
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
            if !store::approvals::approve(connection, &id, call.as_str(), may_be_frozen, None)
                .await?
            {
                // Its time ran out between the two looks: the whole transaction is undone.
                return Err(StoreError::Conflict(
                    "the approval is not pending any more".to_owned(),
                ));
            }
        }
        Vote::Deny | Vote::Approve => {}
    }
    let row = store::approvals::find(connection, &id).await?;
    row.map(Ok)
        .ok_or_else(|| StoreError::Conflict("the approval is gone".to_owned()))
}

pub(super) fn only(cases: Vec<Case>) -> Result<Case, StoreError> {
    let mut cases = cases.into_iter();
    cases
        .next()
        .ok_or_else(|| StoreError::Conflict("the approval is gone".to_owned()))
}

fn vote_entry(
    row: &ApprovalRow,
    call: &CallId,
    (ballot, size): (&Ballot, i32),
    voice: &Voice,
) -> Entry {
    let mut detail = json!({
        "vote": ballot.vote.as_str(),
        "tiers": voice.tiers,
        "seats": voice.seats,
    });
    if let Some(detail) = detail.as_object_mut() {
        if voice.authority != *ballot.operator {
            detail.insert("for".to_owned(), json!(voice.authority));
        }
        if size > 1 {
            detail.insert("calls".to_owned(), json!(size));
        }
        if let Some(next) = ballot.next {
            detail.insert("next".to_owned(), json!(next));
        }
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
