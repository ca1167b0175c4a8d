//! Kill switches, and the clocks of the approvals that they stop.

use sqlx::PgConnection;

use super::StoreError;
use crate::{clock::Timestamp, ids::KillSwitchId};

/// A kill switch as it is kept.
#[derive(Debug, Clone)]
pub struct KillSwitchRow {
    /// Its id.
    pub kill_switch_id: String,
    /// What kind of thing it stops.
    pub kind: String,
    /// Which one; null for everything.
    pub target: Option<String>,
    /// Why.
    pub reason: String,
    /// Who pulled it.
    pub operator: String,
    /// Since when.
    pub pulled_at: Timestamp,
}

/// Every kill switch that holds.
///
/// # Errors
/// When the database is away.
pub async fn active(connection: &mut PgConnection) -> Result<Vec<KillSwitchRow>, StoreError> {
    let rows = sqlx::query_as!(
        KillSwitchRow,
        "SELECT kill_switch_id, kind, target, reason, operator, pulled_at
         FROM toolgate.kill_switches WHERE released_at IS NULL ORDER BY kill_switch_id"
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Whether a kill switch is kept, held or released.
///
/// # Errors
/// When the database is away.
pub async fn is_known(
    connection: &mut PgConnection,
    id: &KillSwitchId,
) -> Result<bool, StoreError> {
    let known = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM toolgate.kill_switches WHERE kill_switch_id = $1) AS "known!""#,
        id.as_str()
    )
    .fetch_one(connection)
    .await?;
    Ok(known)
}

/// Keeps a pulled kill switch and stops the clocks of the approvals it covers. Doing it twice is doing it once.
///
/// # Errors
/// When the database is away.
pub async fn pull(connection: &mut PgConnection, row: &KillSwitchRow) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO toolgate.kill_switches (kill_switch_id, kind, target, reason, operator, pulled_at)
         VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (kill_switch_id) DO NOTHING",
        row.kill_switch_id,
        row.kind,
        row.target,
        row.reason,
        row.operator,
        row.pulled_at
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "UPDATE toolgate.approvals SET frozen_at = greatest($3, created_at)
         WHERE state = 'pending' AND frozen_at IS NULL AND expires_at > $3
           AND CASE $1 WHEN 'everything' THEN true WHEN 'api' THEN api = $2 WHEN 'tool' THEN tool = $2
                       WHEN 'consequence' THEN consequence = $2 WHEN 'agent' THEN agent = $2
                       WHEN 'run' THEN run_id = $2 ELSE false END",
        row.kind,
        row.target,
        row.pulled_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Releases a kill switch, and sets the clocks going again, with the time they stood still added, of the
/// approvals that no other kill switch covers. False when it is not held (any more).
///
/// # Errors
/// When the database is away.
pub async fn release(
    connection: &mut PgConnection,
    id: &KillSwitchId,
    operator: &str,
    reason: &str,
    now: Timestamp,
) -> Result<bool, StoreError> {
    let released = sqlx::query!(
        "UPDATE toolgate.kill_switches SET released_at = $4, released_by = $2, release_reason = $3
         WHERE kill_switch_id = $1 AND released_at IS NULL",
        id.as_str(),
        operator,
        reason,
        now
    )
    .execute(&mut *connection)
    .await?;
    if released.rows_affected() == 0 {
        return Ok(false);
    }
    // Escalations stand still for the same time.
    sqlx::query!(
        "WITH thawed AS (
             SELECT a.approval_id, greatest(now(), a.frozen_at) - a.frozen_at AS stood
             FROM toolgate.approvals AS a
             WHERE a.state = 'pending' AND a.frozen_at IS NOT NULL
               AND NOT EXISTS (
                   SELECT FROM toolgate.kill_switches AS k
                   WHERE k.released_at IS NULL
                     AND CASE k.kind WHEN 'everything' THEN true WHEN 'api' THEN a.api = k.target
                                     WHEN 'tool' THEN a.tool = k.target WHEN 'consequence' THEN a.consequence = k.target
                                     WHEN 'agent' THEN a.agent = k.target WHEN 'run' THEN a.run_id = k.target
                                     ELSE false END)),
         waiting AS (
             UPDATE toolgate.approval_escalations AS e SET escalates_at = e.escalates_at + thawed.stood
             FROM thawed WHERE e.approval_id = thawed.approval_id AND e.open)
         UPDATE toolgate.approvals AS a SET expires_at = a.expires_at + thawed.stood, frozen_at = NULL
         FROM thawed WHERE a.approval_id = thawed.approval_id"
    )
    .execute(connection)
    .await?;
    Ok(true)
}
