//! The operators' side: who they are, and that what they may do is decided by the policies. A refused operator is
//! recorded too.

use std::sync::Arc;

use http::HeaderMap;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    app::App,
    clock,
    entry::{Decision, Entry, Kind},
    keys::KeyKind,
    pipeline,
    policy::{OperatorAction, OperatorContext, OperatorResource},
    reason::{Reason, Refusal},
    store::StoreError,
};

pub(super) mod approvals;
pub(super) mod delegations;
pub(super) mod deliveries;
pub(super) mod entries;
mod filter;
pub(super) mod history;
pub(super) mod kill_switches;
mod paging;
mod reading;
pub(super) mod stream;
pub(super) mod work;

pub(super) use paging::LIMITS;

/// The longest reason an operator may give.
const REASON_BYTES: usize = 2_000;

/// The operator whose key the request carries.
fn identify(app: &App, headers: &HeaderMap) -> Result<Arc<str>, Refusal> {
    pipeline::owner_of_key(app, KeyKind::Operator, headers, clock::now())
        .filter(|name| app.config.operators.contains_key(name))
        .ok_or_else(|| {
            Refusal::new(
                Reason::Unauthenticated,
                "No operator key that is in force: send it as \"Authorization: Bearer tg_operator_…\".",
            )
        })
}

/// Asks the policies whether an operator may do something to the gateway.
async fn allow(
    app: &App,
    operator: &Arc<str>,
    action: OperatorAction,
    context: OperatorContext<'_>,
) -> Result<(), Refusal> {
    let decision =
        app.policies
            .decide_operator(operator, action, OperatorResource::Gateway, context);
    if decision.permitted {
        return Ok(());
    }
    let mut refusal = Refusal::new(
        Reason::DeniedByPolicy,
        format!(
            "None of your roles may {}.",
            action.as_str().replace('_', " ")
        ),
    );
    refusal.policies = decision.policies;
    Err(refused(app, operator, action.as_str(), None, refusal).await)
}

/// The operator, if they may read the records.
async fn allow_reading(app: &App, headers: &HeaderMap) -> Result<Arc<str>, Refusal> {
    let operator = identify(app, headers)?;
    allow(
        app,
        &operator,
        OperatorAction::ReadAudit,
        OperatorContext::Empty,
    )
    .await?;
    Ok(operator)
}

/// The records cannot be read, or not in the time that a question may take.
fn away(error: &StoreError) -> Refusal {
    tracing::warn!(%error, "the records could not be read");
    let mut refusal = Refusal::record_unavailable();
    "The records could not be read in time. Try again later; if it stays so, narrow the filter, for instance with \"from\"."
        .clone_into(&mut refusal.detail);
    refusal
}

/// Records that an operator was refused.
async fn refused(
    app: &App,
    operator: &Arc<str>,
    action: &str,
    approval: Option<&str>,
    refusal: Refusal,
) -> Refusal {
    let entry = Entry {
        operator: Some(Arc::clone(operator)),
        approval_id: approval.and_then(|id| id.parse().ok()),
        decision: Some(Decision::Deny),
        reasons: vec![refusal.reason.code()],
        policies: refusal.policies.clone(),
        policy_digest: Some(Arc::clone(&app.policy_digest)),
        decided_at: Some(clock::now()),
        detail: Some(serde_json::json!({ "action": action })),
        ..Entry::new(Kind::OperatorRefused)
    };
    if app.recorder.note(entry).await.is_err() {
        tracing::error!(operator = %operator, action, "a refused operator could not be recorded");
    }
    refusal
}

/// Why an operator does something.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Because {
    /// In words; it is kept, shown and recorded.
    #[schema(min_length = 1, max_length = 2000)]
    reason: String,
}

/// What an operator gave as the reason, without what the detectors know: it is kept, shown and recorded in clear.
fn reason(app: &App, text: &str) -> Result<String, Refusal> {
    if text.trim().is_empty() || text.len() > REASON_BYTES {
        return Err(Refusal::new(
            Reason::MalformedBody,
            format!("\"reason\" must say why, in at most {REASON_BYTES} bytes."),
        ));
    }
    Ok(app.redactor.text(text))
}
