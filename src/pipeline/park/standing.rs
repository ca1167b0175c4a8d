//! A call for which people have approved ahead. It is parked like every call that the policies park, and approved in the same
//! transaction by the votes of the approval that reached further; from there it goes the way of every approved call.

use std::sync::Arc;

use serde_json::json;
use sqlx::{PgConnection, types::Json};

use super::keep::Shown;
use crate::{
    app::App,
    clock,
    composition::Case,
    entry::{Entry, Kind},
    ids::{ApprovalId, PermissionId},
    pipeline::ToolCall,
    quorum,
    store::{
        self, StoreError,
        approvals::ApprovalRow,
        composition::{NewTier, TierRow},
        permissions::PermissionRow,
    },
};

/// A standing permission that this very call may use: locked, so that it stays so until the transaction ends.
pub(super) struct Standing {
    id: PermissionId,
    row: PermissionRow,
}

impl Standing {
    /// The one that covers a call, if there is one: for what its approvers would see, in its run, in force, and with votes that fulfil the tiers as
    /// they are now, by what the voters are now. Escalations do not count: what was opened to more people was that one call.
    pub async fn covering(
        connection: &mut PgConnection,
        app: &App,
        call: &ToolCall,
        tiers: &[NewTier],
        shown: &Shown,
    ) -> Result<Option<Self>, StoreError> {
        // Most tiers allow none, and cost no query.
        let names = tiers.iter().map(|tier| tier.tier.as_str());
        if app.config.standing_limits(names).is_none() {
            return Ok(None);
        }
        let run = &call.caller.run.id;
        for row in store::permissions::in_force(connection, run, &shown.same).await? {
            let Ok(id) = row.permission_id.parse() else {
                continue;
            };
            let source = std::slice::from_ref(&row.approval_id);
            let votes = store::composition::votes(connection, source).await?;
            let case = Case {
                row: as_parked(call, shown),
                tiers: tiers.iter().map(as_kept).collect(),
                escalations: Vec::new(),
                votes,
            };
            if case.is_fulfilled(app) {
                return Ok(Some(Self { id, row }));
            }
        }
        Ok(None)
    }

    pub const fn id(&self) -> &PermissionId {
        &self.id
    }

    /// Approves the call that was just parked; gives how many uses are left. None where a kill switch that is recorded covers it:
    /// then it waits, and nothing was used.
    pub async fn approve(
        &self,
        connection: &mut PgConnection,
        approval: &ApprovalId,
        call: &str,
    ) -> Result<Option<i32>, StoreError> {
        let (approval, id) = (approval.as_str(), Some(&self.id));
        if !store::approvals::approve(connection, approval, call, false, id).await? {
            return Ok(None);
        }
        let left = store::permissions::take(connection, self.id.as_str()).await?;
        // Undoes the approval too.
        left.map(Some).ok_or_else(|| {
            StoreError::Conflict("the standing permission is used up or over".to_owned())
        })
    }

    /// The entry that tells of the use.
    pub fn used(&self, call: &ToolCall, approval: &ApprovalId, left: i32) -> Entry {
        Entry {
            call_id: Some(call.id.clone()),
            run_id: Some(call.caller.run.id.clone()),
            approval_id: Some(approval.clone()),
            agent: Some(Arc::clone(&call.caller.agent.name)),
            api: Some(Arc::clone(&call.tool.api)),
            tool: Some(Arc::clone(&call.tool.name)),
            arguments_digest: Some(Arc::clone(&call.digest)),
            decided_at: Some(clock::now()),
            detail: Some(json!({
                "permission": self.id,
                "given_with": self.row.approval_id,
                "given_by": self.row.given_by,
                "left": left,
                "until": self.row.ends_at,
            })),
            ..Entry::new(Kind::PermissionUsed)
        }
    }
}

/// The call as its approval will be kept: what is asked of it is who asked for the call.
fn as_parked(call: &ToolCall, shown: &Shown) -> ApprovalRow {
    let (agent, tool, run) = (&call.caller.agent, &call.tool, &call.caller.run);
    ApprovalRow {
        approval_id: String::new(),
        call_id: call.id.to_string(),
        run_id: run.id.to_string(),
        agent: agent.name.to_string(),
        owner: agent.owner.to_string(),
        triggered_by: run.triggered_by.clone(),
        api: tool.api.to_string(),
        tool: tool.name.to_string(),
        consequence: tool.contract.consequence.as_str().to_owned(),
        digest: shown.digest.to_string(),
        policies: Vec::new(),
        state: "pending".to_owned(),
        created_at: call.received_at,
        expires_at: call.received_at,
        frozen_at: None,
        decided_at: None,
        attached_to: None,
        permission_id: None,
        overdue: false,
    }
}

fn as_kept(tier: &NewTier) -> TierRow {
    TierRow {
        approval_id: String::new(),
        tier: tier.tier.clone(),
        needed: i32::try_from(quorum::seats(&tier.requires)).unwrap_or(i32::MAX),
        requires: Json(tier.requires.clone()),
        denials: i32::try_from(tier.denials).unwrap_or(i32::MAX),
    }
}
