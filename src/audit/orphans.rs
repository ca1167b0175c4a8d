//! Intents whose gateway is gone before it could tell their outcome: nobody knows what became of them, and that is what is
//! recorded. They become work for a person, never a silent retry.

use sqlx::PgConnection;

use crate::{
    clock::{self, Timestamp},
    entry::{Entry, Kind, Outcome},
    ids::InstanceId,
    store::{self, StoreError},
};

/// The outcomes of every intent that an instance other than this one left open, to be committed in the transaction that this
/// runs in. After it those instances count as settled.
///
/// # Errors
/// When the database is away.
pub async fn orphaned(
    connection: &mut PgConnection,
    this: &InstanceId,
    now: Timestamp,
) -> Result<Vec<Entry>, StoreError> {
    let orphans = store::audit::orphans(connection, this).await?;
    if !orphans.is_empty() {
        tracing::warn!(
            calls = orphans.len(),
            "calls were under way when their gateway stopped; they are recorded as indeterminate"
        );
    }
    store::instances::settle_others(connection, this, now).await?;
    Ok(orphans.into_iter().map(outcome).collect())
}

fn outcome(orphan: store::audit::Orphan) -> Entry {
    Entry {
        call_id: orphan.call_id.parse().ok(),
        run_id: orphan.run_id.and_then(|id| id.parse().ok()),
        approval_id: orphan.approval_id.and_then(|id| id.parse().ok()),
        agent: orphan.agent.map(Into::into),
        api: orphan.api.map(Into::into),
        tool: orphan.tool.map(Into::into),
        outcome: Some(Outcome::Indeterminate),
        reasons: vec!["indeterminate"],
        finished_at: Some(clock::now()),
        detail: Some(
            serde_json::json!({"why": "the gateway stopped between sending the call and recording its outcome"}),
        ),
        ..Entry::new(Kind::Outcome)
    }
}
