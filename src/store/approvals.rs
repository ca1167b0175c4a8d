//! Approvals, the tiers they wait in, and votes. Times are compared on the database's clock.

use sqlx::{Connection as _, PgConnection};

use super::{StoreError, composition::NewTier};
use crate::{
    clock::Timestamp,
    ids::{ApprovalId, CallId, PermissionId},
};

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

/// What a list shows.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each narrows the list to rows with that value")]
pub struct Filter<'a> {
    /// Any of these; none for all.
    pub states: &'a [String],
    pub agent: Option<&'a str>,
    pub run: Option<&'a str>,
    pub tool: Option<&'a str>,
    pub consequence: Option<&'a str>,
    /// Waiting in any of these.
    pub tiers: Option<&'a [String]>,
    /// Rows behind this id.
    pub after: Option<&'a str>,
}

/// Approvals in the order in which they were made; of those that wait in one line only its head. Each state (and tier) is read along an index of its own and no further than
/// the limit; the statement is planned for the filters it has, every time.
///
/// # Errors
/// When the database is away.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter<'_>,
    limit: i64,
) -> Result<Vec<ApprovalRow>, StoreError> {
    let all = STATES.map(str::to_owned);
    let states = if filter.states.is_empty() {
        &all
    } else {
        filter.states
    };
    let after = filter.after.unwrap_or_default();
    let mut transaction = connection.begin().await?;
    // One plan for all filters would read along none of the indexes.
    sqlx::query!("SET LOCAL plan_cache_mode = force_custom_plan")
        .execute(&mut *transaction)
        .await?;
    // State by state, so that each is planned for how many there are of it.
    let mut rows = Vec::new();
    for state in states {
        rows.extend(match filter.tiers {
            Some(tiers) => {
                list_in_tiers(&mut transaction, filter, (state, tiers), after, limit).await?
            }
            None => list_all(&mut transaction, filter, state, after, limit).await?,
        });
    }
    rows.sort_by(|a, b| a.approval_id.cmp(&b.approval_id));
    // Decided between two of the queries.
    rows.dedup_by(|a, b| a.approval_id == b.approval_id);
    rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    transaction.commit().await?;
    Ok(rows)
}

/// `OFFSET 0` keeps the two tables from being merged, which would read all approvals between those of a rare tier.
async fn list_in_tiers(
    connection: &mut PgConnection,
    filter: &Filter<'_>,
    (state, tiers): (&str, &[String]),
    after: &str,
    limit: i64,
) -> Result<Vec<ApprovalRow>, StoreError> {
    let rows = sqlx::query_as!(
        ApprovalRow,
        r#"SELECT DISTINCT ON (a.approval_id) approval_id, call_id, run_id, agent, owner, triggered_by, api, tool,
                  consequence, digest, policies, a.state, created_at, expires_at, frozen_at, decided_at,
                  attached_to, permission_id, (a.state IN ('pending', 'approved') AND frozen_at IS NULL AND GREATEST(expires_at, decided_at + (expires_at - created_at)) <= now()) AS "overdue!"
           FROM unnest($2::text[]) AS w (tier)
           CROSS JOIN LATERAL (
               SELECT a.* FROM toolgate.approval_tiers AS t CROSS JOIN LATERAL (
                   SELECT * FROM toolgate.approvals AS a
                   WHERE a.approval_id = t.approval_id
                     AND ($4::text IS NULL OR a.agent = $4) AND ($5::text IS NULL OR a.run_id = $5)
                     AND ($6::text IS NULL OR a.tool = $6) AND ($7::text IS NULL OR a.consequence = $7)
                   OFFSET 0) AS a
               WHERE t.tier = w.tier AND t.state = $1 AND t.approval_id > $3
                 AND (a.attached_to IS NULL OR t.state <> 'pending')
               ORDER BY t.approval_id LIMIT $8) AS a
           ORDER BY a.approval_id LIMIT $8"#,
        state,
        tiers,
        after,
        filter.agent,
        filter.run,
        filter.tool,
        filter.consequence,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Every state that an approval can be in.
pub const STATES: [&str; 5] = ["pending", "approved", "denied", "expired", "voided"];

async fn list_all(
    connection: &mut PgConnection,
    filter: &Filter<'_>,
    state: &str,
    after: &str,
    limit: i64,
) -> Result<Vec<ApprovalRow>, StoreError> {
    let rows = sqlx::query_as!(
        ApprovalRow,
        r#"SELECT approval_id, call_id, run_id, agent, owner, triggered_by, api, tool, consequence, digest, policies,
                  state, created_at, expires_at, frozen_at, decided_at,
                  attached_to, permission_id, (state IN ('pending', 'approved') AND frozen_at IS NULL AND GREATEST(expires_at, decided_at + (expires_at - created_at)) <= now()) AS "overdue!"
           FROM toolgate.approvals
           WHERE state = $1 AND approval_id > $2 AND (attached_to IS NULL OR state <> 'pending')
             AND ($3::text IS NULL OR agent = $3) AND ($4::text IS NULL OR run_id = $4)
             AND ($5::text IS NULL OR tool = $5) AND ($6::text IS NULL OR consequence = $6)
           ORDER BY approval_id LIMIT $7"#,
        state,
        after,
        filter.agent,
        filter.run,
        filter.tool,
        filter.consequence,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

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
