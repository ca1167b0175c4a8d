//! A call that must wait: it is kept, sealed, with its approval, and its caller gets the answer they can live with. The
//! same request again finds the same call, and never makes a second one.

use std::{sync::Arc, time::Duration};

use serde_json::json;

use super::{
    ToolCall,
    authorize::Parking,
    forward::ApiAnswer,
    preview,
    record::Settled,
    resume::resume_alone,
    same::{older, same_key},
    telling,
};
use crate::{
    app::App,
    ids::{ApprovalId, CallId},
    parked::{OnlyOne, Previewed, Sealed},
    reason::{Reason, Refusal},
    store::{
        calls::CallRow,
        composition::{NewEscalation, NewTier},
    },
};

mod keep;
mod standing;

/// How a kept call stands, as its own agent may know it.
#[derive(Debug)]
pub enum Standing {
    /// It waits for people.
    Parked {
        /// For what.
        approval: Option<ApprovalId>,
    },
    /// It is being sent.
    Executing,
    /// An operator is doing it by hand.
    ByHand,
    /// The API answered.
    Completed(Box<ApiAnswer>),
    /// It ended in another way.
    Ended(Box<Refusal>),
}

/// A kept call with its id and how it stands.
#[derive(Debug)]
pub struct Kept {
    /// The call.
    pub call: CallId,
    /// The state's name in `GET /v1/calls/{id}`.
    pub state: String,
    /// Whether the API executed it.
    pub executed: Option<bool>,
    /// The approval it waits or waited for.
    pub approval: Option<String>,
    /// Who executed it, where that was not the gateway.
    pub executed_by: Option<&'static str>,
    /// How it stands.
    pub standing: Standing,
}

/// What `executed_by` says of a call that an operator did by hand.
pub const BY_OPERATOR: &str = "operator";
/// What it says of a call whose answer was lost and which an operator found executed.
pub const FOUND_EXECUTED: &str = "unknown, found executed by operator";

impl Standing {
    pub(super) const fn is_over(&self) -> bool {
        !matches!(self, Self::Parked { .. } | Self::Executing | Self::ByHand)
    }
}

/// Reads how a kept call stands.
pub fn standing(app: &App, row: CallRow) -> Result<Kept, Refusal> {
    let call: CallId = row.call_id.parse().map_err(|_not_an_id| {
        Refusal::new(
            Reason::Internal,
            "The kept call has no valid id; tell an operator.",
        )
    })?;
    let approval = row.approval_id.as_deref().and_then(|id| id.parse().ok());
    let (state, standing) = match row.state.as_str() {
        "parked" | "approved" => ("parked", Standing::Parked { approval }),
        "executing" => ("executing", Standing::Executing),
        "by_hand" => ("executing", Standing::ByHand),
        "completed" => {
            let answer = row
                .answer
                .as_deref()
                .and_then(|sealed| app.keyring.open(call.as_str(), sealed).ok())
                .and_then(|plain| ApiAnswer::from_bytes(&plain));
            let standing = match answer {
                Some(answer) => Standing::Completed(Box::new(answer)),
                None => Standing::Ended(Box::new(ended(&call, &row, Reason::Conflict))),
            };
            ("completed", standing)
        }
        other => (
            other,
            Standing::Ended(Box::new(ended(&call, &row, Reason::Indeterminate))),
        ),
    };
    Ok(Kept {
        state: state.to_owned(),
        executed: match row.state.as_str() {
            "parked" | "approved" => Some(false),
            _ => row.executed,
        },
        approval: row.approval_id.clone(),
        executed_by: match (row.state.as_str(), row.resolved_as.as_deref()) {
            ("by_hand", _) | ("completed", Some("by_hand")) => Some(BY_OPERATOR),
            ("completed", Some(_)) => Some(FOUND_EXECUTED),
            _ => None,
        },
        standing,
        call,
    })
}

fn ended(call: &CallId, row: &CallRow, otherwise: Reason) -> Refusal {
    let reason = row
        .code
        .as_deref()
        .and_then(Reason::from_code)
        .unwrap_or(otherwise);
    let words = match row.state.as_str() {
        "completed" if row.answer.is_some() => {
            tracing::error!(%call, "a kept answer does not open with the master secrets of the config");
            "The call was executed, but its answer was sealed with a master secret that the gateway no longer has. Do not repeat it; tell an operator.".to_owned()
        }
        "completed" if row.resolved_as.is_none() || row.explanation.is_none() => {
            "The call was executed, but its answer is no longer kept. Do not repeat it.".to_owned()
        }
        _ => row
            .explanation
            .clone()
            .unwrap_or_else(|| "The call ended without an answer.".to_owned()),
    };
    let mut refusal = Refusal::new(reason, words);
    refusal.call = Some(call.clone());
    refusal.approval = row.approval_id.as_deref().and_then(|id| id.parse().ok());
    refusal.executed = row.executed;
    refusal
}

/// What parking came to.
pub(super) enum Parked {
    New,
    /// A standing permission has approved it: it can be sent, by nobody else.
    Approved(OnlyOne),
    Existing(Box<CallRow>),
    KeyTaken,
    QueueFull,
}

/// How much longer than the API may take a caller waits for a call that a standing permission has approved: for the records.
const RECORDING: Duration = Duration::from_secs(10);

/// What became of a call that the policies park.
pub(super) enum Came {
    /// It is kept, and this is how it stands.
    Kept(Box<ToolCall>, Kept),
    /// People had approved it ahead, and it was sent.
    Sent(Settled),
}

/// Keeps a call until people approve, with what they are to see of what it will touch. The same request in the same run finds the
/// call that waits already. What people have approved ahead is sent, and answered as what nobody had to approve.
pub(super) async fn park(
    app: &Arc<App>,
    parking: Parking,
    previewed: Option<Previewed>,
) -> Result<Came, Refusal> {
    let Parking {
        call,
        tiers,
        policies,
        decided_at,
    } = parking;
    let approval = ApprovalId::generate();
    let mut same = vec![call.digest.to_string()];
    same.extend(older(app, &call));
    let shown = keep::Shown {
        same: preview::approval_digests(app, same, previewed.as_ref()),
        digest: preview::approval_digest(app, &call.digest, previewed.as_ref()),
        preview: previewed
            .as_ref()
            .map(|seen| json!({"call": seen.call, "status": seen.status, "digest": seen.digest})),
        sealed: seal(app, &call, previewed)?,
    };
    let (tiers, expires_in) = tiers_needed(app, &tiers)?;
    let keeping = keep::Keeping {
        approval: approval.clone(),
        shown,
        tiers,
        policies,
        decided_at,
        expires_in,
    };
    let (call, parked) = keep::keep(app, call, keeping).await?;
    let (parked, only_one) = match parked {
        Parked::Approved(only_one) => (Parked::New, Some(only_one)),
        parked => (parked, None),
    };
    let (call, mut kept) = found(app, call, parked, Some(approval)).await?;
    if let Some(only_one) = only_one {
        let sending = resume_alone(Arc::clone(app), call.id.clone(), only_one);
        let sending = app.tasks.spawn(sending);
        // Where the database goes away meanwhile, it goes on without its caller.
        let patience = call.tool.contract.limits.timeout() + RECORDING;
        if let Ok(Ok(Some(settled))) = tokio::time::timeout(patience, sending).await {
            return Ok(Came::Sent(settled));
        }
        kept = telling::look(app, &call.id).await.unwrap_or(kept);
    }
    Ok(Came::Kept(Box::new(call), kept))
}

/// The call that is kept now, or was before. `approval` is what a new one waits for; without it, for a person's hand.
pub(super) async fn found(
    app: &App,
    call: ToolCall,
    parked: Parked,
    approval: Option<ApprovalId>,
) -> Result<(ToolCall, Kept), Refusal> {
    match parked {
        Parked::New | Parked::Approved(_) => {
            let kept = Kept {
                call: call.id.clone(),
                state: "parked".to_owned(),
                executed: Some(false),
                approval: approval.as_ref().map(ApprovalId::to_string),
                executed_by: None,
                standing: Standing::Parked { approval },
            };
            Ok((call, kept))
        }
        Parked::Existing(row) => {
            let kept = standing(app, *row)?;
            Ok((call, kept))
        }
        Parked::KeyTaken => match same_key(app, &call).await? {
            Some(kept) => Ok((call, kept)),
            None => Err(Refusal::record_unavailable()),
        },
        Parked::QueueFull => Err(queue_is_full(&call)),
    }
}

pub(super) fn queue_is_full(call: &ToolCall) -> Refusal {
    Refusal::new(
        Reason::RateLimited,
        format!(
            "{} calls of this agent wait for people already, which is as many as may (max_pending_approvals). Nothing was kept or sent: make this call again once people have decided on some of them.",
            call.caller.agent.max_pending_approvals
        ),
    )
    .retry_after(60)
}

pub(super) fn seal(
    app: &App,
    call: &ToolCall,
    preview: Option<Previewed>,
) -> Result<Vec<u8>, Refusal> {
    let internal = |error: String| {
        tracing::error!(%error, call = %call.id, "a call could not be sealed");
        Refusal::new(
            Reason::Internal,
            "The call could not be kept. Nothing was sent; tell an operator.",
        )
    };
    let plain = serde_json::to_vec(&Sealed {
        arguments: call.arguments.as_object().cloned().unwrap_or_default(),
        format: call.format.map(|format| format.to_string()),
        surface: call.surface.as_str().to_owned(),
        words: call.words.clone(),
        preview,
    })
    .map_err(|error| internal(error.to_string()))?;
    app.keyring
        .seal(call.id.as_str(), &plain)
        .map_err(|error| internal(error.to_string()))
}

/// What the tiers ask for now, and the shortest of their lifetimes. A tier that the config does not know cannot be parked in.
fn tiers_needed(app: &App, names: &[String]) -> Result<(Vec<NewTier>, Duration), Refusal> {
    let mut tiers = Vec::with_capacity(names.len());
    let mut shortest: Option<Duration> = None;
    for name in names {
        let Some(tier) = app.config.tiers.get(name.as_str()) else {
            tracing::error!(tier = %name, "a policy parks in a tier that the config does not have");
            return Err(Refusal::new(
                Reason::Internal,
                "The call would wait in a tier that does not exist. Nothing was sent; tell an operator.",
            ));
        };
        let escalations = tier
            .escalations(&app.config.tiers)
            .into_iter()
            .filter_map(|step| {
                Some(NewEscalation {
                    requires: app.config.tiers.get(&step.to)?.requires.clone(),
                    to_tier: step.to.to_string(),
                    after_seconds: step.after.as_secs_f64(),
                })
            })
            .collect();
        tiers.push(NewTier {
            tier: name.clone(),
            requires: tier.requires.clone(),
            denials: tier.denials,
            escalations,
        });
        shortest = Some(shortest.map_or(tier.expires_in, |so_far| so_far.min(tier.expires_in)));
    }
    Ok((tiers, shortest.unwrap_or_default()))
}
