//! Approvals, the tiers they wait in, and votes. Times are compared on the database's clock.

use sqlx::PgConnection;

use super::{StoreError, composition::NewTier};
use crate::{
    clock::Timestamp,
    ids::{ApprovalId, CallId, PermissionId},
};

mod pages;

pub use pages::{Filter, Listed, list};

/// An approval as it is kept.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct ApprovalRow {
    pub approval_id: String,
    pub call_id: String,
    pub run_id: String,
    pub agent: String,
    pub owner: String,
    pub triggered_by: String,
    pub api: String,
    pub tool: String,
    pub consequence: String,
    pub digest: String,
    pub policies: Vec<String>,
    pub state: String,
    pub created_at: Timestamp,
    pub expires_at: Timestamp,
    pub frozen_at: Option<Timestamp>,
    pub decided_at: Option<Timestamp>,
    /// The head of the line that this one waits in or was decided in; none for a head.
    pub attached_to: Option<String>,
    /// The standing permission that approved it.
    pub permission_id: Option<String>,
    /// The database's own word on whether the time is over: to decide, and once approved, to send. For that there is as long again
    /// from the approval on, so that what was approved in the last moment is sent.
    pub overdue: bool,
}

/// An approval to be kept.
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct NewApproval<'a> {
    pub approval_id: &'a ApprovalId,
    pub call_id: &'a CallId,
    pub run_id: &'a str,
    pub agent: &'a str,
    pub owner: &'a str,
    pub triggered_by: &'a str,
    pub api: &'a str,
    pub tool: &'a str,
    pub consequence: &'a str,
    pub digest: &'a str,
    pub policies: &'a [String],
    pub same_as: &'a str,
    pub expires_in_seconds: f64,
    pub tiers: &'a [NewTier],
}

/// Adds an approval with its tiers; gives the time at which it expires. Its clock stands still from the beginning where a
/// kill switch was recorded between the decision to park and this.
///
/// # Errors
/// When the database is away.
pub async fn add(
    connection: &mut PgConnection,
    new: &NewApproval<'_>,
) -> Result<Timestamp, StoreError> {
    let expires_at = sqlx::query_scalar!(
        "INSERT INTO toolgate.approvals (approval_id, call_id, run_id, agent, owner, triggered_by, api, tool,
                                         consequence, digest, policies, same_as, state, expires_at, frozen_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $13, 'pending', now() + make_interval(secs => $12),
                 (SELECT now() FROM toolgate.kill_switches AS k
                  WHERE k.released_at IS NULL
                    AND CASE k.kind WHEN 'everything' THEN true WHEN 'api' THEN k.target = $7
                                    WHEN 'tool' THEN k.target = $8 WHEN 'consequence' THEN k.target = $9
                                    WHEN 'agent' THEN k.target = $4 WHEN 'run' THEN k.target = $3
                                    ELSE false END
                  LIMIT 1))
         RETURNING expires_at",
        new.approval_id.as_str(),
        new.call_id.as_str(),
        new.run_id,
        new.agent,
        new.owner,
        new.triggered_by,
        new.api,
        new.tool,
        new.consequence,
        new.digest,
        new.policies,
        new.expires_in_seconds,
        new.same_as
    )
    .fetch_one(&mut *connection)
    .await?;
    super::composition::add(connection, new.approval_id, new.tiers).await?;
    Ok(expires_at)
}

/// How many calls of this agent wait for approval; counts no further than `most`.
///
/// # Errors
/// When the database is away.
pub async fn pending_of(
    connection: &mut PgConnection,
    agent: &str,
    most: i64,
) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM (
               SELECT FROM toolgate.approvals WHERE agent = $1 AND state = 'pending' LIMIT $2) AS waiting"#,
        agent,
        most
    )
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// Every state that an approval can be in.
pub const STATES: [&str; 5] = ["pending", "approved", "denied", "expired", "voided"];

/// The approval of that id.
///
/// # Errors
/// When the database is away.
pub async fn find(
    connection: &mut PgConnection,
    id: &str,
) -> Result<Option<ApprovalRow>, StoreError> {
    let row = sqlx::query_as!(
        ApprovalRow,
        r#"SELECT approval_id, call_id, run_id, agent, owner, triggered_by, api, tool, consequence, digest, policies,
                  state, created_at, expires_at, frozen_at, decided_at,
                  attached_to, permission_id, (state IN ('pending', 'approved') AND frozen_at IS NULL AND GREATEST(expires_at, decided_at + (expires_at - created_at)) <= now()) AS "overdue!"
           FROM toolgate.approvals WHERE approval_id = $1"#,
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(row)
}

/// The same, and nobody else changes it until the transaction ends.
///
/// # Errors
/// When the database is away.
pub async fn lock(
    connection: &mut PgConnection,
    id: &str,
) -> Result<Option<ApprovalRow>, StoreError> {
    sqlx::query!(
        "SELECT approval_id FROM toolgate.approvals WHERE approval_id = $1 FOR UPDATE",
        id
    )
    .fetch_optional(&mut *connection)
    .await?;
    find(connection, id).await
}

/// Turns a pending approval whose time is not over into an approved one, and its call with it. False when it is
/// not pending (any more), frozen (unless `may_be_frozen`) or overdue. `permission` is the standing permission that approves it. The time that a clock stood still is added to what is left.
///
/// # Errors
/// When the database is away.
pub async fn approve(
    connection: &mut PgConnection,
    id: &str,
    call_id: &str,
    may_be_frozen: bool,
    permission: Option<&PermissionId>,
) -> Result<bool, StoreError> {
    let approved = sqlx::query!(
        "UPDATE toolgate.approvals
         SET state = 'approved', decided_at = now(), frozen_at = NULL, permission_id = $3,
             expires_at = expires_at + COALESCE(greatest(now(), frozen_at) - frozen_at, interval '0')
         WHERE approval_id = $1 AND state = 'pending'
           AND CASE WHEN frozen_at IS NULL THEN expires_at > now() ELSE $2 END",
        id,
        may_be_frozen,
        permission.map(PermissionId::as_str)
    )
    .execute(&mut *connection)
    .await?;
    if approved.rows_affected() == 0 {
        return Ok(false);
    }
    let moved = sqlx::query!(
        "UPDATE toolgate.calls SET state = 'approved', updated_at = now() WHERE call_id = $1 AND state = 'parked'",
        call_id
    )
    .execute(connection)
    .await?;
    if moved.rows_affected() == 1 {
        Ok(true)
    } else {
        Err(StoreError::Conflict(
            "the call behind this approval is not parked".to_owned(),
        ))
    }
}

/// Pending approvals whose time is over and whose clock runs, with their calls.
///
/// # Errors
/// When the database is away.
pub async fn overdue(connection: &mut PgConnection) -> Result<Vec<ApprovalRow>, StoreError> {
    let rows = sqlx::query_as!(
        ApprovalRow,
        r#"SELECT approval_id, call_id, run_id, agent, owner, triggered_by, api, tool, consequence, digest, policies,
                  state, created_at, expires_at, frozen_at, decided_at, attached_to, permission_id, true AS "overdue!"
           FROM toolgate.approvals
           WHERE state = 'pending' AND frozen_at IS NULL AND expires_at <= now()
           ORDER BY expires_at LIMIT 500"#
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
