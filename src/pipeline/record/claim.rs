//! The last look at an approved call, in the transaction in which it is begun, by the gateway or by an operator's hand.

use std::sync::Arc;

use futures::FutureExt as _;
use serde_json::json;
use sqlx::PgConnection;

use super::{Permit, Recorded};
use crate::{
    app::{App, Tool},
    composition::Case,
    contracts::WhileHalted,
    entry::{Entry, Redacted},
    ids::{ApprovalId, CallId, RunId},
    pipeline::ToolCall,
    store::{self, StoreError, composition::Claim},
};

/// Why an approved call is not begun now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotClaimed {
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

/// Whose hands a call goes into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hands {
    Gateway,
    Operator,
}

/// The approval that a call has, and the digest that people approved.
#[derive(Debug, Clone)]
pub(in crate::pipeline) struct ApprovedAs {
    /// The approval.
    pub id: ApprovalId,
    /// The digest.
    pub digest: Arc<str>,
}

/// A call as the policies, scopes and contract of this moment permit it, to be held against what was approved.
#[derive(Debug, Clone)]
pub struct Held {
    call: CallId,
    digest: Arc<str>,
    tool: Arc<Tool>,
    agent: Arc<str>,
    run: RunId,
    approval: Option<ApprovedAs>,
}

impl Held {
    pub(in crate::pipeline) fn of(call: &ToolCall, approval: Option<ApprovedAs>) -> Self {
        Self {
            call: call.id.clone(),
            digest: Arc::clone(&call.digest),
            tool: Arc::clone(&call.tool),
            agent: Arc::clone(&call.caller.agent.name),
            run: call.caller.run.id.clone(),
            approval,
        }
    }

    /// In the transaction in which an operator takes the call to do it by hand: why not, where what was approved no longer holds.
    /// Otherwise nobody changes the call until the transaction ends.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn against_hands(
        &self,
        connection: &mut PgConnection,
        app: &App,
    ) -> Result<Option<NotClaimed>, StoreError> {
        self.against(connection, app, Hands::Operator).await
    }

    fn approved_digest(&self) -> &str {
        let approval = self.approval.as_ref();
        approval.map_or(&self.digest, |approval| &approval.digest)
    }

    fn wanted(&self) -> Claim<'_> {
        Claim {
            call: &self.call,
            digest: &self.digest,
            approved_digest: self.approved_digest(),
            contract_digest: &self.tool.digest,
            api: &self.tool.api,
            tool: &self.tool.name,
            consequence: self.tool.contract.consequence.as_str(),
            agent: &self.agent,
            run: self.run.as_str(),
        }
    }

    async fn against(
        &self,
        connection: &mut PgConnection,
        app: &App,
        hands: Hands,
    ) -> Result<Option<NotClaimed>, StoreError> {
        let mut case = None;
        if let Some(approval) = &self.approval {
            let Some(row) = store::approvals::lock(connection, approval.id.as_str()).await? else {
                return Ok(Some(NotClaimed::Taken));
            };
            // In this transaction, so that nothing is begun after the taking back was acknowledged.
            if let Some(permission) = &row.permission_id
                && store::permissions::is_revoked(connection, permission).await?
            {
                return Ok(Some(NotClaimed::Void(
                    "the standing permission that approved it was taken back",
                )));
            }
            case = Case::load(connection, vec![row]).await?.pop();
            if !case.as_ref().is_some_and(|case| case.is_fulfilled(app)) {
                let call = store::calls::find(connection, self.call.as_str()).await?;
                return Ok(Some(match call {
                    Some(call) if call.state == "approved" => NotClaimed::Void(
                        "those who approved it no longer hold what its tiers ask for, or a delegation was taken back",
                    ),
                    _ => NotClaimed::Taken,
                }));
            }
        }
        let wanted = self.wanted();
        let has_it = match hands {
            Hands::Gateway => store::composition::claim(connection, &wanted).await?,
            Hands::Operator => {
                let while_halted = self.tool.contract.while_halted == WhileHalted::WorkList;
                store::composition::may_be_done(connection, &wanted, while_halted).await?
            }
        };
        if has_it {
            return Ok(None);
        }
        let call = store::calls::find(connection, self.call.as_str()).await?;
        Ok(Some(match call {
            Some(call) if call.state == "approved" => {
                if *call.digest != *self.digest
                    || case
                        .as_ref()
                        .is_some_and(|case| case.row.digest != self.approved_digest())
                    || *call.contract_digest != *self.tool.digest
                {
                    NotClaimed::Void("it is no longer what was approved")
                } else if case.is_some_and(|case| case.row.overdue) {
                    NotClaimed::Overdue
                } else {
                    // A kill switch, or the end of its time between the two looks: the next turn tells them apart.
                    NotClaimed::Halted
                }
            }
            _ => NotClaimed::Taken,
        }))
    }
}

/// What was read just before, for the record.
#[derive(Debug, Clone, Default)]
pub(in crate::pipeline) struct Found {
    /// The state before.
    pub before: Option<Redacted>,
    /// The call that looked whether what approvers saw is still there.
    pub preview: Option<CallId>,
}

/// Takes an approved call for execution and commits its intent, in one transaction: for exactly one caller, only if the votes
/// still fulfil the tiers as they stood, by what the voters are now, and only if no operator has it.
pub(in crate::pipeline) async fn claim(
    app: &Arc<App>,
    permit: Permit,
    approval: Option<ApprovedAs>,
    found: Found,
) -> Result<Recorded, (Permit, NotClaimed)> {
    let id = approval.as_ref().map(|approval| approval.id.clone());
    let entry = Entry {
        // It was opened when it was parked or listed.
        opens_call: false,
        detail: found.preview.map(|call| json!({ "preview": call })),
        ..super::intent_entry(app, &permit, id.clone(), found.before)
    };
    let held = Held::of(permit.call(), approval);
    let shared = Arc::clone(app);
    let claimed = app
        .recorder
        .act(move |connection| {
            async move {
                let why_not = held.against(connection, &shared, Hands::Gateway).await?;
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
        Ok(None) => Ok(super::recorded(app, permit, id, true)),
        Ok(Some(why_not)) => Err((permit, why_not)),
        Err(error) => {
            tracing::warn!(%error, "an approved call could not be claimed yet");
            Err((permit, NotClaimed::Unrecorded))
        }
    }
}

/// Takes up a claim of our own that was committed although its answer was lost: the row says `executing`, nothing
/// was sent, and no other gateway can have claimed it.
pub(in crate::pipeline) fn claimed_before(
    app: &App,
    permit: Permit,
    approval: Option<ApprovalId>,
) -> Recorded {
    super::recorded(app, permit, approval, true)
}
