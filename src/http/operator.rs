//! The operators' side: who they are, and that what they may do is decided by the policies.

use std::sync::Arc;

use http::HeaderMap;
use serde::Deserialize;
use utoipa::ToSchema;

use crate::{
    app::App,
    clock,
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
pub(super) mod permissions;
mod reading;
pub(super) mod statistics;
pub(super) mod stream;
pub(super) mod work;

pub(super) use paging::LIMITS;

/// The longest reason an operator may give.
const REASON_BYTES: usize = 2_000;

/// The operator whose key the request carries.
pub(super) fn identify(app: &App, headers: &HeaderMap) -> Result<Arc<str>, Refusal> {
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
fn allow(
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
    Err(refused(action.as_str(), refusal))
}

/// The operator, if they may read the records.
async fn allow_reading(app: &App, headers: &HeaderMap) -> Result<Arc<str>, Refusal> {
    let operator = identify(app, headers)?;
    allow(
        app,
        &operator,
        OperatorAction::ReadAudit,
        OperatorContext::Empty,
    )?;
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

/// What was refused, for the entry that tells of it (`http/refused`).
fn refused(action: &str, mut refusal: Refusal) -> Refusal {
    refusal.audit_detail = Some(serde_json::json!({ "action": action }));
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
