//! Standing permissions: approvals that were given for the next identical calls too, counted and until a moment. Their ends
//! are compared on the database's clock, and a use is one statement, so that no two calls have the same one.

use sqlx::PgConnection;

use super::StoreError;
use crate::{
    clock::Timestamp,
    ids::{PermissionId, RunId},
};

/// A standing permission as it is kept.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct PermissionRow {
    pub permission_id: String,
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
    pub given_by: Vec<String>,
    pub calls: i32,
    pub used: i32,
    pub created_at: Timestamp,
    pub ends_at: Timestamp,
    pub last_used_at: Option<Timestamp>,
    pub revoked_at: Option<Timestamp>,
    pub revoked_by: Option<String>,
    /// The database's own word on whether a call may use it.
    pub in_force: bool,
}

/// A standing permission to be kept.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct NewPermission<'a> {
    pub permission_id: &'a PermissionId,
    pub approval_id: &'a str,
    pub given_by: &'a [String],
    pub calls: i32,
    pub seconds: i32,
}

/// Adds one for the calls that are as the one behind the approval; gives its end. It ends no later than any delegation on which
/// the votes rest; none is added where one of those is over already.
///
/// # Errors
/// When the database is away.
pub async fn add(
    connection: &mut PgConnection,
    new: &NewPermission<'_>,
) -> Result<Option<Timestamp>, StoreError> {
    let ends_at = sqlx::query_scalar!(
        "INSERT INTO toolgate.standing_permissions (permission_id, approval_id, run_id, agent, api, tool, consequence, digest,
                                                    given_by, calls, ends_at)
         SELECT $1, a.approval_id, a.run_id, a.agent, a.api, a.tool, a.consequence, a.digest, $3, $4, bound.ends_at
         FROM toolgate.approvals AS a
         CROSS JOIN LATERAL (
             SELECT least(now() + make_interval(secs => $5), min(d.ends_at)) AS ends_at
             FROM toolgate.votes AS v JOIN toolgate.delegations AS d ON d.delegation_id = ANY (v.delegations)
             WHERE v.approval_id = a.approval_id) AS bound
         WHERE a.approval_id = $2 AND a.state = 'approved' AND bound.ends_at > now()
         RETURNING ends_at",
        new.permission_id.as_str(),
        new.approval_id,
        new.given_by,
        new.calls,
        f64::from(new.seconds)
    )
    .fetch_optional(connection)
    .await?;
    Ok(ends_at)
}

/// Those that a call with one of these digests may use in its run now, the one that ends first before the others; at
/// most 16. Nobody else uses or revokes them until the transaction ends.
///
/// # Errors
/// When the database is away.
pub async fn in_force(
    connection: &mut PgConnection,
    run: &RunId,
    digests: &[String],
) -> Result<Vec<PermissionRow>, StoreError> {
    let rows = sqlx::query_as!(
        PermissionRow,
        r#"SELECT p.permission_id, p.approval_id, a.call_id, p.run_id, p.agent, a.owner, a.triggered_by, p.api, p.tool,
                  p.consequence, p.digest, p.given_by, p.calls, p.used, p.created_at, p.ends_at, p.last_used_at,
                  p.revoked_at, p.revoked_by, true AS "in_force!"
           FROM toolgate.standing_permissions AS p JOIN toolgate.approvals AS a USING (approval_id)
           WHERE p.digest = ANY ($2) AND p.run_id = $1
             AND p.revoked_at IS NULL AND p.used < p.calls AND p.ends_at > now()
           ORDER BY p.ends_at, p.permission_id LIMIT 16 FOR UPDATE OF p"#,
        run.as_str(),
        digests
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Takes one of the calls that a permission is for; gives how many are left. None where none was, or it is over.
///
/// # Errors
/// When the database is away.
pub async fn take(connection: &mut PgConnection, id: &str) -> Result<Option<i32>, StoreError> {
    let left = sqlx::query_scalar!(
        r#"UPDATE toolgate.standing_permissions SET used = used + 1, last_used_at = now()
           WHERE permission_id = $1 AND revoked_at IS NULL AND used < calls AND ends_at > now()
           RETURNING calls - used AS "left!""#,
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(left)
}

/// Whether one was taken back: then nothing that it approved is sent any more. Nobody takes it back until the transaction ends.
///
/// # Errors
/// When the database is away.
pub async fn is_revoked(connection: &mut PgConnection, id: &str) -> Result<bool, StoreError> {
    let revoked = sqlx::query_scalar!(
        r#"SELECT revoked_at IS NOT NULL AS "revoked!"
           FROM toolgate.standing_permissions WHERE permission_id = $1 FOR UPDATE"#,
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(revoked.unwrap_or(true))
}

/// What a list shows.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each narrows the list to rows with that value")]
pub struct Filter<'a> {
    pub run: Option<&'a str>,
    pub agent: Option<&'a str>,
    /// Only what a call may use now.
    pub in_force: bool,
    /// Rows behind this id.
    pub after: &'a str,
}

/// Standing permissions in the order in which they were given.
///
/// # Errors
/// When the database is away.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter<'_>,
    limit: i64,
) -> Result<Vec<PermissionRow>, StoreError> {
    let rows = sqlx::query_as!(
        PermissionRow,
        r#"SELECT p.permission_id, p.approval_id, a.call_id, p.run_id, p.agent, a.owner, a.triggered_by, p.api, p.tool,
                  p.consequence, p.digest, p.given_by, p.calls, p.used, p.created_at, p.ends_at, p.last_used_at,
                  p.revoked_at, p.revoked_by,
                  (p.revoked_at IS NULL AND p.used < p.calls AND p.ends_at > now()) AS "in_force!"
           FROM toolgate.standing_permissions AS p JOIN toolgate.approvals AS a USING (approval_id)
           WHERE p.permission_id > $4
             AND ($1::text IS NULL OR p.run_id = $1) AND ($2::text IS NULL OR p.agent = $2)
             AND (NOT $3 OR (p.revoked_at IS NULL AND p.used < p.calls AND p.ends_at > now()))
           ORDER BY p.permission_id LIMIT $5"#,
        filter.run,
        filter.agent,
        filter.in_force,
        filter.after,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// The standing permission of that id.
///
/// # Errors
/// When the database is away.
pub async fn find(
    connection: &mut PgConnection,
    id: &str,
) -> Result<Option<PermissionRow>, StoreError> {
    let row = sqlx::query_as!(
        PermissionRow,
        r#"SELECT p.permission_id, p.approval_id, a.call_id, p.run_id, p.agent, a.owner, a.triggered_by, p.api, p.tool,
                  p.consequence, p.digest, p.given_by, p.calls, p.used, p.created_at, p.ends_at, p.last_used_at,
                  p.revoked_at, p.revoked_by,
                  (p.revoked_at IS NULL AND p.used < p.calls AND p.ends_at > now()) AS "in_force!"
           FROM toolgate.standing_permissions AS p JOIN toolgate.approvals AS a USING (approval_id)
           WHERE p.permission_id = $1"#,
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(row)
}

/// Takes one back, also from calls that it approved and that are not sent yet; so one that is used up or over can be taken back
/// too. False where it is revoked already.
///
/// # Errors
/// When the database is away.
pub async fn revoke(
    connection: &mut PgConnection,
    id: &str,
    operator: &str,
    reason: &str,
) -> Result<bool, StoreError> {
    let revoked = sqlx::query!(
        "UPDATE toolgate.standing_permissions SET revoked_at = now(), revoked_by = $2, revoke_reason = $3
         WHERE permission_id = $1 AND revoked_at IS NULL",
        id,
        operator,
        reason
    )
    .execute(connection)
    .await?;
    Ok(revoked.rows_affected() == 1)
}
