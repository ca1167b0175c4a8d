//! What waited long enough is opened to the people of the next tier: the seats stay as many as they were, and more people may
//! take them. On the database's clock, by the worker or by a vote, whichever comes first.

use futures::FutureExt as _;
use serde_json::json;

use crate::{
    app::App,
    audit::ActError,
    clock,
    entry::{Entry, Kind},
    store::{self, StoreError, composition::Escalated},
};

/// Carries out what is due.
///
/// # Errors
/// When the database is away.
pub async fn escalate_due(app: &App) -> Result<(), StoreError> {
    app.recorder
        .act(|connection| {
            async move {
                let escalated = store::composition::escalate(connection, None).await?;
                Ok((escalated.iter().map(entry).collect(), ()))
            }
            .boxed()
        })
        .await
        .map_err(|error| match error {
            ActError::Store(error) => error,
            ActError::Unrecorded => StoreError::Unavailable(error.to_string()),
        })
}

/// The entry that tells of an escalation.
pub(super) fn entry(escalated: &Escalated) -> Entry {
    Entry {
        call_id: escalated.call_id.parse().ok(),
        run_id: escalated.run_id.parse().ok(),
        approval_id: escalated.approval_id.parse().ok(),
        agent: Some(escalated.agent.as_str().into()),
        api: Some(escalated.api.as_str().into()),
        tool: Some(escalated.tool.as_str().into()),
        decided_at: Some(clock::now()),
        detail: Some(json!({
            "tier": escalated.tier,
            "to": escalated.to_tier,
            "due_at": escalated.escalates_at,
        })),
        ..Entry::new(Kind::ApprovalEscalated)
    }
}
