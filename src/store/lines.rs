//! Lines: identical calls that wait for people and are decided as one. Each keeps an approval of its own, so that each is held
//! against votes, tiers and time by itself before it is sent.

use sqlx::PgConnection;

use super::{
    StoreError,
    approvals::{self, ApprovalRow},
};
use crate::ids::{ApprovalId, CallId};

/// The head of the line that a call with this digest over everything an approver is shown joins. None where no such call
/// waits, its time is over, or somebody has voted on it: what they voted on must not grow. Nobody else decides on it until the
/// transaction ends.
///
/// # Errors
/// When the database is away.
pub async fn head(
    connection: &mut PgConnection,
    same_as: &str,
) -> Result<Option<String>, StoreError> {
    let found = sqlx::query_scalar!(
        "SELECT a.approval_id FROM toolgate.approvals AS a
         WHERE a.same_as = $1 AND a.state = 'pending' AND a.attached_to IS NULL
           AND (a.frozen_at IS NOT NULL OR a.expires_at > now())
           AND NOT EXISTS (SELECT FROM toolgate.votes AS v WHERE v.approval_id = a.approval_id)
         ORDER BY a.approval_id DESC LIMIT 1 FOR UPDATE OF a",
        same_as
    )
    .fetch_optional(connection)
    .await?;
    Ok(found)
}

/// Adds an approval to the line of `head`, which [`head`] has just given: with the times, tiers and escalations of that one.
///
/// # Errors
/// When the database is away.
pub async fn attach(
    connection: &mut PgConnection,
    (approval, call): (&ApprovalId, &CallId),
    head: &str,
) -> Result<(), StoreError> {
    let added = sqlx::query!(
        "INSERT INTO toolgate.approvals (approval_id, call_id, run_id, agent, owner, triggered_by, api, tool, consequence,
                                         digest, policies, same_as, state, created_at, expires_at, frozen_at, attached_to)
         SELECT $1, $2, run_id, agent, owner, triggered_by, api, tool, consequence,
                digest, policies, same_as, state, created_at, expires_at, frozen_at, approval_id
         FROM toolgate.approvals WHERE approval_id = $3 AND state = 'pending' AND attached_to IS NULL",
        approval.as_str(),
        call.as_str(),
        head
    )
    .execute(&mut *connection)
    .await?;
    if added.rows_affected() != 1 {
        return Err(StoreError::Conflict(
            "the line that this call was to join is over".to_owned(),
        ));
    }
    sqlx::query!(
        "INSERT INTO toolgate.approval_tiers (approval_id, tier, needed, requires, denials, state)
         SELECT $1, tier, needed, requires, denials, state FROM toolgate.approval_tiers WHERE approval_id = $2",
        approval.as_str(),
        head
    )
    .execute(&mut *connection)
    .await?;
    sqlx::query!(
        "INSERT INTO toolgate.approval_escalations (approval_id, tier, step, to_tier, requires, escalates_at, escalated_at, open)
         SELECT $1, tier, step, to_tier, requires, escalates_at, escalated_at, open
         FROM toolgate.approval_escalations WHERE approval_id = $2",
        approval.as_str(),
        head
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The approval of that id and those attached to it, in the order in which they came. Nobody else changes them until the
/// transaction ends.
///
/// # Errors
/// When the database is away.
pub async fn lock(
    connection: &mut PgConnection,
    head: &str,
) -> Result<Vec<ApprovalRow>, StoreError> {
    let Some(first) = approvals::lock(connection, head).await? else {
        return Ok(Vec::new());
    };
    let mut line = vec![first];
    let attached = sqlx::query_scalar!(
        "SELECT approval_id FROM toolgate.approvals WHERE attached_to = $1 ORDER BY approval_id FOR UPDATE",
        head
    )
    .fetch_all(&mut *connection)
    .await?;
    for id in attached {
        line.extend(approvals::find(connection, &id).await?);
    }
    Ok(line)
}

/// One call of a line beside its head.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct AttachedRow {
    pub head: String,
    pub approval_id: String,
    pub call_id: String,
}

/// What is attached to these approvals, in the order in which it came.
///
/// # Errors
/// When the database is away.
pub async fn attached(
    connection: &mut PgConnection,
    heads: &[String],
) -> Result<Vec<AttachedRow>, StoreError> {
    let rows = sqlx::query_as!(
        AttachedRow,
        r#"SELECT attached_to AS "head!", approval_id, call_id
           FROM toolgate.approvals WHERE attached_to = ANY ($1) ORDER BY approval_id"#,
        heads
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
