//! The last look at an approved call, in the transaction in which it is begun.

use std::sync::Arc;

use futures::FutureExt as _;
use sqlx::PgConnection;

use super::{Permit, Recorded};
use crate::{
    app::App,
    composition::Case,
    entry::Redacted,
    ids::ApprovalId,
    store::{self, StoreError, composition::Claim},
};

/// Why an approved call is not begun now.
pub(in crate::pipeline) enum NotClaimed {
    /// Somebody else has, or it is over.
    Taken,
    /// A kill switch that is recorded covers it, whatever this process knows.
    Halted,
    /// It has waited longer than its time.
    Overdue,
    /// What was approved no longer holds: this is why.
    Void(&'static str),
    /// The database went away; whether the claim stands is not known.
    Unrecorded,
}

/// Takes an approved call for execution and commits its intent, in one transaction: for exactly one caller, and only if the
/// votes still fulfil the tiers as they stood, by what the voters are now.
pub(in crate::pipeline) async fn claim(
    app: &Arc<App>,
    permit: Permit,
    approval: ApprovalId,
    before: Option<Redacted>,
) -> Result<Recorded, (Permit, NotClaimed)> {
    let entry = super::intent_entry(app, &permit, Some(approval.clone()), before);
    let call = permit.call();
    let (id, digest) = (call.id.clone(), Arc::clone(&call.digest));
    let contract = Arc::clone(&call.tool.digest);
    let (shared, of) = (Arc::clone(app), approval.clone());
    let claimed = app
        .recorder
        .act(move |connection| {
            async move {
                let wanted = Claim {
                    call: &id,
                    digest: &digest,
                    contract_digest: &contract,
                };
                let why_not = held_against(connection, &shared, of.as_str(), &wanted).await?;
                let entries = if why_not.is_none() {
                    vec![entry]
                } else {
                    Vec::new()
                };
                Ok((entries, why_not))
            }
            .boxed()
        })
        .await;
    match claimed {
        Ok(None) => Ok(super::recorded(app, permit, Some(approval), true)),
        Ok(Some(why_not)) => Err((permit, why_not)),
        Err(error) => {
            tracing::warn!(%error, "an approved call could not be claimed yet");
            Err((permit, NotClaimed::Unrecorded))
        }
    }
}

/// The claim itself; why not, where it is not made.
async fn held_against(
    connection: &mut PgConnection,
    app: &App,
    approval: &str,
    wanted: &Claim<'_>,
) -> Result<Option<NotClaimed>, StoreError> {
    let Some(row) = store::approvals::lock(connection, approval).await? else {
        return Ok(Some(NotClaimed::Taken));
    };
    if row.state != "approved" {
        return Ok(Some(NotClaimed::Taken));
    }
    let case = Case::load(connection, vec![row]).await?.pop();
    let Some(case) = case.filter(|case| case.is_fulfilled(app)) else {
        let call = store::calls::find(connection, wanted.call.as_str()).await?;
        return Ok(Some(match call {
            Some(call) if call.state == "approved" => NotClaimed::Void(
                "those who approved it no longer hold what its tiers ask for, or a delegation was taken back",
            ),
            _ => NotClaimed::Taken,
        }));
    };
    if store::composition::claim(connection, wanted).await? {
        return Ok(None);
    }
    let call = store::calls::find(connection, wanted.call.as_str()).await?;
    Ok(Some(match call {
        Some(call) if call.state == "approved" => {
            if *call.digest != *wanted.digest
                || *case.row.digest != *wanted.digest
                || *call.contract_digest != *wanted.contract_digest
            {
                NotClaimed::Void("it is no longer what was approved")
            } else if case.row.overdue {
                NotClaimed::Overdue
            } else {
                // A kill switch, or the end of its time between the two looks: the next turn tells them apart.
                NotClaimed::Halted
            }
        }
        _ => NotClaimed::Taken,
    }))
}

/// Takes up a claim of our own that was committed although its answer was lost: the row says `executing`, nothing
/// was sent, and no other gateway can have claimed it.
pub(in crate::pipeline) fn claimed_before(
    app: &App,
    permit: Permit,
    approval: ApprovalId,
) -> Recorded {
    super::recorded(app, permit, Some(approval), true)
}
