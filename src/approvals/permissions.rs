//! Approving ahead: an approver may approve the next identical calls of the run too, so many and for so long as the tiers allow.
//! It comes of an approval only if everybody whose vote made it gave that, with the smallest number and the shortest time; it
//! rests on those votes, and is held against them at each use and again before each call is sent.

use std::sync::Arc;

use futures::FutureExt as _;
use serde::{Deserialize, Serialize};
use serde_json::json;
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::{Ballot, Vote, counting::only};
use crate::{
    app::App,
    audit::ActError,
    clock,
    composition::Case,
    entry::{Entry, Kind},
    ids::PermissionId,
    quorum::StandingLimits,
    reason::{Reason, Refusal},
    store::{
        self, StoreError,
        approvals::ApprovalRow,
        permissions::{NewPermission, PermissionRow},
    },
};

/// For which identical calls to come in the same run an approver approves too: so many, and for so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Next {
    /// How many.
    #[schema(minimum = 1)]
    calls: u32,
    /// For so many seconds from the approval on.
    #[schema(minimum = 1)]
    seconds: u32,
}

impl Next {
    /// As far as an approval may reach.
    pub(super) fn at_most(limits: StandingLimits) -> Self {
        Self {
            calls: limits.max_calls,
            seconds: limits.max_seconds,
        }
    }

    /// As a vote has it in the table.
    pub(super) fn given(calls: Option<i32>, seconds: Option<i32>) -> Option<Self> {
        Some(Self {
            calls: calls?.try_into().ok()?,
            seconds: seconds?.try_into().ok()?,
        })
    }

    /// As many as these, as the table has it.
    pub(super) fn calls(self) -> i32 {
        i32::try_from(self.calls).unwrap_or(i32::MAX)
    }

    /// For so many seconds from the approval on.
    pub(super) fn seconds(self) -> i32 {
        i32::try_from(self.seconds).unwrap_or(i32::MAX)
    }

    fn is_within(self, limits: StandingLimits) -> bool {
        (1..=limits.max_calls).contains(&self.calls)
            && (1..=limits.max_seconds).contains(&self.seconds)
    }
}

/// How far an approval of this case may reach; none where one of its tiers does not allow it.
pub(super) fn limits(app: &App, case: &Case) -> Option<StandingLimits> {
    let tiers = case.tiers.iter().map(|tier| tier.tier.as_str());
    app.config.standing_limits(tiers)
}

/// Whether a ballot approves ahead no further than the tiers allow.
///
/// # Errors
/// `malformed_body`, with how far it may.
pub(super) fn may_give(app: &App, case: &Case, ballot: &Ballot) -> Result<(), Refusal> {
    let Some(next) = ballot.next else {
        return Ok(());
    };
    let why = match limits(app, case) {
        _ if ballot.vote == Vote::Deny => {
            "a denial is of the calls that wait, and takes no \"next\"".to_owned()
        }
        None => {
            "not every tier that this call waits in lets people approve calls to come: leave \"next\" out"
                .to_owned()
        }
        Some(limits) if !next.is_within(limits) => format!(
            "\"next\" may name from 1 to {} calls and from 1 to {} seconds here",
            limits.max_calls, limits.max_seconds
        ),
        Some(_) => return Ok(()),
    };
    Err(Refusal::new(
        Reason::MalformedBody,
        format!("Nothing was decided: {why}."),
    ))
}

/// The standing permission that comes of an approval, in the transaction that approves it: if all who voted gave it, nobody
/// denied, and the votes fulfil the tiers without people of other tiers to which it had escalated.
pub(super) async fn give(
    connection: &mut PgConnection,
    app: &App,
    row: &ApprovalRow,
    entries: &mut Vec<Entry>,
) -> Result<Option<PermissionId>, StoreError> {
    let mut case = only(Case::load(connection, vec![row.clone()]).await?)?;
    let given: Option<Vec<(i32, i32)>> = case
        .votes
        .iter()
        .map(|vote| vote.next_calls.zip(vote.next_seconds))
        .collect();
    let (Some(given), Some(limits)) = (given, limits(app, &case)) else {
        return Ok(None);
    };
    let calls = given.iter().map(|(calls, _)| *calls).min();
    let seconds = given.iter().map(|(_, seconds)| *seconds).min();
    let (Some(calls), Some(seconds)) = (calls, seconds) else {
        return Ok(None);
    };
    // The first voters may have been asked under another config.
    let calls = calls.min(i32::try_from(limits.max_calls).unwrap_or(i32::MAX));
    let seconds = seconds.min(i32::try_from(limits.max_seconds).unwrap_or(i32::MAX));
    case.escalations.clear();
    if !case.is_fulfilled(app) {
        return Ok(None);
    }
    let id = PermissionId::generate();
    let given_by: Vec<String> = case
        .votes
        .iter()
        .map(|vote| vote.operator.clone())
        .collect();
    let new = NewPermission {
        permission_id: &id,
        approval_id: &row.approval_id,
        given_by: &given_by,
        calls,
        seconds,
    };
    let Some(until) = store::permissions::add(connection, &new).await? else {
        return Ok(None);
    };
    entries.push(Entry {
        call_id: row.call_id.parse().ok(),
        run_id: row.run_id.parse().ok(),
        approval_id: row.approval_id.parse().ok(),
        agent: Some(row.agent.as_str().into()),
        api: Some(row.api.as_str().into()),
        tool: Some(row.tool.as_str().into()),
        arguments_digest: Some(row.digest.as_str().into()),
        operator: case.votes.last().map(|vote| vote.operator.as_str().into()),
        decided_at: Some(clock::now()),
        detail: Some(json!({
            "permission": id,
            "given_by": given_by,
            "calls": calls,
            "until": until,
        })),
        ..Entry::new(Kind::PermissionGranted)
    });
    Ok(Some(id))
}

/// The standing permission of that id.
///
/// # Errors
/// `not_found`, or the database is away.
pub async fn find(app: &App, id: &str) -> Result<PermissionRow, Refusal> {
    let unknown = || {
        Refusal::new(
            Reason::NotFound,
            "There is no standing permission of this id.",
        )
    };
    if id.parse::<PermissionId>().is_err() {
        return Err(unknown());
    }
    let found = async {
        let mut connection = app.pool.acquire().await?;
        store::permissions::find(&mut connection, id).await
    };
    found
        .await
        .map_err(|error| unrecorded(&ActError::Store(error)))?
        .ok_or_else(unknown)
}

/// Takes one back. Once this returns, nothing more is begun that it approved.
///
/// # Errors
/// `conflict` when it was taken back before, or the database is away.
pub async fn revoke(
    app: &App,
    row: PermissionRow,
    operator: &Arc<str>,
    reason: String,
) -> Result<(), Refusal> {
    let operator = Arc::clone(operator);
    let revoked = app
        .recorder
        .act(move |connection| {
            async move {
                let id = &row.permission_id;
                if !store::permissions::revoke(connection, id, &operator, &reason).await? {
                    return Ok((Vec::new(), false));
                }
                let entry = Entry {
                    run_id: row.run_id.parse().ok(),
                    approval_id: row.approval_id.parse().ok(),
                    agent: Some(row.agent.as_str().into()),
                    api: Some(row.api.as_str().into()),
                    tool: Some(row.tool.as_str().into()),
                    arguments_digest: Some(row.digest.as_str().into()),
                    operator: Some(operator),
                    decided_at: Some(clock::now()),
                    words: Some(reason),
                    detail: Some(json!({ "permission": id })),
                    ..Entry::new(Kind::PermissionRevoked)
                };
                Ok((vec![entry], true))
            }
            .boxed()
        })
        .await
        .map_err(|error| unrecorded(&error))?;
    if revoked {
        Ok(())
    } else {
        Err(Refusal::new(
            Reason::Conflict,
            "This standing permission was taken back before; nothing was changed.",
        ))
    }
}

fn unrecorded(error: &ActError) -> Refusal {
    tracing::warn!(%error, "standing permissions could not be read or changed");
    Refusal::record_unavailable()
}
