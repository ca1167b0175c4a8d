//! Runs of agents.

use sqlx::PgConnection;

use super::StoreError;
use crate::{clock::Timestamp, ids::RunId};

/// One run as it stands.
#[derive(Debug, Clone)]
pub struct RunRow {
    /// Its agent.
    pub agent: String,
    /// Who or what started it.
    pub triggered_by: String,
    /// What for.
    pub purpose: String,
    /// Its scopes.
    pub scopes: Vec<String>,
    /// True when the gateway opened it by itself.
    pub implicit: bool,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    /// When it was ended.
    pub ended_at: Option<Timestamp>,
}

/// Adds a run.
///
/// # Errors
/// When the database is away.
pub async fn add(
    connection: &mut PgConnection,
    id: &RunId,
    run: &RunRow,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO toolgate.runs (run_id, agent, triggered_by, purpose, scopes, implicit, opened_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
        id.as_str(),
        run.agent,
        run.triggered_by,
        run.purpose,
        &run.scopes,
        run.implicit,
        now,
        run.expires_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The run, if there is one of that id.
///
/// # Errors
/// When the database is away.
pub async fn find(connection: &mut PgConnection, id: &RunId) -> Result<Option<RunRow>, StoreError> {
    let found = sqlx::query_as!(
        RunRow,
        "SELECT agent, triggered_by, purpose, scopes, implicit, expires_at, ended_at
         FROM toolgate.runs WHERE run_id = $1",
        id.as_str()
    )
    .fetch_optional(connection)
    .await?;
    Ok(found)
}

/// Ends a run that has not ended yet. False when it had.
///
/// # Errors
/// When the database is away.
pub async fn end(
    connection: &mut PgConnection,
    id: &RunId,
    agent: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE toolgate.runs SET ended_at = $3 WHERE run_id = $1 AND agent = $2 AND ended_at IS NULL",
        id.as_str(),
        agent,
        now
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}
