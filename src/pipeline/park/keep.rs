//! The transaction in which a call is parked: the same request finds the call that waits, an identical one joins its line, one
//! that a standing permission is for is approved in the same moment, and only then does one more wait.

use std::{sync::Arc, time::Duration};

use futures::FutureExt as _;
use serde_json::{Value, json};
use sqlx::PgConnection;

use super::{Parked, older, standing::Standing};
use crate::{
    app::App,
    clock::Timestamp,
    entry::{Decision, Entry, Kind},
    ids::ApprovalId,
    pipeline::{ToolCall, record::unrecorded},
    reason::{Reason, Refusal},
    store::{
        self, StoreError, approvals::NewApproval, calls::NewCall, composition::NewTier, lines,
    },
};

/// What approvers will be shown of a call.
pub(super) struct Shown {
    pub sealed: Vec<u8>,
    /// What they approve.
    pub digest: Arc<str>,
    /// For the record, what it will touch.
    pub preview: Option<Value>,
    /// The digests, under every master secret, of what approvers of the same would have seen.
    pub same: Vec<String>,
}

/// What is kept with the call.
pub(super) struct Keeping {
    pub approval: ApprovalId,
    pub shown: Shown,
    pub tiers: Vec<NewTier>,
    pub policies: Vec<String>,
    pub decided_at: Timestamp,
    pub expires_in: Duration,
}

/// Parks the call, in one transaction with the entries that tell of it.
pub(super) async fn keep(
    app: &Arc<App>,
    call: ToolCall,
    keeping: Keeping,
) -> Result<(ToolCall, Parked), Refusal> {
    let same_as = same_as(app, &call, &keeping);
    let call = Arc::new(call);
    let (kept, shared) = (Arc::clone(&call), Arc::clone(app));
    let mut digests = vec![call.digest.to_string()];
    digests.extend(older(app, &call));
    let parked = app
        .recorder
        .act(move |connection| {
            async move {
                // The writer runs one transaction after the other, so nobody parks the same request in between.
                if kept.idempotency_key.is_none()
                    && let Some(row) = store::calls::same_request(
                        connection,
                        &kept.caller.agent.name,
                        None,
                        &kept.caller.run.id,
                        &digests,
                    )
                    .await?
                {
                    return Ok((Vec::new(), Parked::Existing(Box::new(row))));
                }
                let standing =
                    Standing::covering(connection, &shared, &kept, &keeping.tiers, &keeping.shown)
                        .await?;
                add(connection, &shared, &kept, &keeping, (&same_as, standing)).await
            }
            .boxed()
        })
        .await
        .map_err(unrecorded)?;
    // The work is done and has let go of its share.
    match Arc::try_unwrap(call) {
        Ok(call) => Ok((call, parked)),
        Err(_shared) => Err(Refusal::new(
            Reason::Internal,
            "The call was kept, but its answer could not be made.",
        )),
    }
}

/// Keyed digest over everything that an approver is shown of the call and that is sent: of two calls with the same one nobody
/// could tell which is which, but for their ids and the time they came.
fn same_as(app: &App, call: &ToolCall, keeping: &Keeping) -> String {
    let tiers: Vec<Value> = keeping
        .tiers
        .iter()
        .map(|tier| {
            let escalations: Vec<Value> = tier
                .escalations
                .iter()
                .map(|step| json!([step.to_tier, step.requires, step.after_seconds]))
                .collect();
            json!([tier.tier, tier.requires, tier.denials, escalations])
        })
        .collect();
    let text = json!([
        "line",
        keeping.shown.digest,
        call.words,
        call.format.map(|format| format.to_string()),
        call.caller.agent.owner,
        call.caller.run.triggered_by,
        keeping.policies,
        tiers,
        keeping.expires_in.as_secs(),
    ]);
    app.keyring.call_digest(text.to_string().as_bytes())
}

async fn add(
    connection: &mut PgConnection,
    app: &App,
    call: &ToolCall,
    keeping: &Keeping,
    (same_as, standing): (&str, Option<Standing>),
) -> Result<(Vec<Entry>, Parked), StoreError> {
    let (agent, tool) = (&call.caller.agent, &call.tool);
    let most = i64::from(agent.max_pending_approvals);
    let is_full = store::approvals::pending_of(connection, &agent.name, most).await? >= most;
    if is_full && standing.is_none() {
        return Ok((Vec::new(), Parked::QueueFull));
    }
    let secret_id = app.keyring.secret_id();
    let added = store::calls::add(
        connection,
        &NewCall {
            call_id: &call.id,
            run_id: &call.caller.run.id,
            agent: &agent.name,
            tool: &tool.name,
            digest: &call.digest,
            contract_digest: &tool.digest,
            secret_id: &secret_id,
            idempotency_key: call.idempotency_key.as_ref().map(|key| key.kept.as_str()),
            sealed: Some(&keeping.shown.sealed),
            state: "parked",
            received_at: call.received_at,
        },
    )
    .await?;
    if !added {
        return Ok((Vec::new(), Parked::KeyTaken));
    }
    let head = match standing {
        Some(_) => None,
        None => lines::head(connection, same_as).await?,
    };
    let expires_at = match &head {
        Some(head) => {
            lines::attach(connection, (&keeping.approval, &call.id), head).await?;
            let row = store::approvals::find(connection, keeping.approval.as_str()).await?;
            row.map(|row| row.expires_at)
        }
        None => Some(waiting(connection, call, keeping, same_as).await?),
    };
    let mut entries = vec![entry(
        app,
        call,
        keeping,
        expires_at,
        head.as_deref(),
        standing.as_ref(),
    )];
    let Some(standing) = standing else {
        return Ok((entries, Parked::New));
    };
    let (approval, call_id) = (&keeping.approval, &call.id);
    match standing
        .approve(connection, approval, call_id.as_str())
        .await?
    {
        Some(left) => {
            entries.push(standing.used(call, approval, left));
            // Before it stands, so that nobody who looks for approved calls takes it up first.
            let only_one = app.resuming.begin(&call.id).ok_or_else(|| {
                StoreError::Conflict("the call is being taken up already".to_owned())
            })?;
            Ok((entries, Parked::Approved(only_one)))
        }
        None if is_full => Err(StoreError::Conflict(
            "a kill switch stops what the standing permission is for, and the agent's queue is full"
                .to_owned(),
        )),
        // A kill switch was recorded in between: the call waits for people, and nothing was used.
        None => Ok((entries, Parked::New)),
    }
}

/// Adds an approval that waits by itself; gives its end.
async fn waiting(
    connection: &mut PgConnection,
    call: &ToolCall,
    keeping: &Keeping,
    same_as: &str,
) -> Result<Timestamp, StoreError> {
    let (agent, tool) = (&call.caller.agent, &call.tool);
    store::approvals::add(
        connection,
        &NewApproval {
            approval_id: &keeping.approval,
            call_id: &call.id,
            run_id: call.caller.run.id.as_str(),
            agent: &agent.name,
            owner: &agent.owner,
            triggered_by: &call.caller.run.triggered_by,
            api: &tool.api,
            tool: &tool.name,
            consequence: tool.contract.consequence.as_str(),
            digest: &keeping.shown.digest,
            policies: &keeping.policies,
            same_as,
            expires_in_seconds: keeping.expires_in.as_secs_f64(),
            tiers: &keeping.tiers,
        },
    )
    .await
}

fn entry(
    app: &App,
    call: &ToolCall,
    keeping: &Keeping,
    expires_at: Option<Timestamp>,
    head: Option<&str>,
    standing: Option<&Standing>,
) -> Entry {
    let (agent, tool) = (&call.caller.agent, &call.tool);
    let tiers: Vec<Value> = keeping
        .tiers
        .iter()
        .map(|tier| json!({"tier": tier.tier, "requires": tier.requires, "denials": tier.denials}))
        .collect();
    let mut detail = json!({"tiers": tiers, "expires_at": expires_at});
    if let Some(detail) = detail.as_object_mut() {
        if let Some(head) = head {
            detail.insert("attached_to".to_owned(), json!(head));
        }
        if let Some(preview) = &keeping.shown.preview {
            detail.insert("preview".to_owned(), preview.clone());
            detail.insert("digest".to_owned(), json!(keeping.shown.digest));
        }
        if let Some(standing) = standing {
            detail.insert("permission".to_owned(), json!(standing.id()));
        }
    }
    Entry {
        opens_call: true,
        call_id: Some(call.id.clone()),
        run_id: Some(call.caller.run.id.clone()),
        approval_id: Some(keeping.approval.clone()),
        agent: Some(Arc::clone(&agent.name)),
        surface: Some(call.surface.as_str()),
        api: Some(Arc::clone(&tool.api)),
        tool: Some(Arc::clone(&tool.name)),
        consequence: Some(tool.contract.consequence),
        contract_digest: Some(Arc::clone(&tool.digest)),
        policy_digest: Some(Arc::clone(&app.policy_digest)),
        arguments: Some(call.redacted.clone()),
        arguments_digest: Some(Arc::clone(&call.digest)),
        decision: Some(Decision::Park),
        reasons: vec![Reason::ApprovalRequired.code()],
        policies: keeping.policies.clone(),
        received_at: Some(call.received_at),
        decided_at: Some(keeping.decided_at),
        words: call.words.clone(),
        detail: Some(detail),
        ..Entry::new(Kind::Parked)
    }
}
