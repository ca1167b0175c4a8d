//! Delegations: the right to vote, lent until a moment. Their ends are compared on the database's clock.

use sqlx::PgConnection;

use super::StoreError;
use crate::{clock::Timestamp, ids::DelegationId};

/// A delegation as it is kept.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct DelegationRow {
    pub delegation_id: String,
    pub from_operator: String,
    pub to_operator: String,
    pub roles: Vec<String>,
    pub groups: Vec<String>,
    pub tiers: Vec<String>,
    pub reason: String,
    pub created_at: Timestamp,
    pub ends_at: Timestamp,
    pub revoked_at: Option<Timestamp>,
    pub revoked_by: Option<String>,
    /// The database's own word on whether it is in force.
    pub in_force: bool,
}

/// A delegation to be kept.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct NewDelegation<'a> {
    pub delegation_id: &'a DelegationId,
    pub from_operator: &'a str,
    pub to_operator: &'a str,
    pub roles: &'a [String],
    pub groups: &'a [String],
    pub tiers: &'a [String],
    pub reason: &'a str,
    pub ends_at: Timestamp,
    pub longest_seconds: f64,
    /// How many delegations of one person may be in force at a time.
    pub most: i64,
}

/// What adding a delegation came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// It stands.
    Yes,
    /// Its end is past, or further away than may be, by the database's clock.
    WrongEnd,
    /// As many as may be are in force.
    TooMany,
}

/// Adds a delegation.
///
/// # Errors
/// When the database is away.
pub async fn add(
    connection: &mut PgConnection,
    new: &NewDelegation<'_>,
) -> Result<Added, StoreError> {
    let in_force = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM (
               SELECT FROM toolgate.delegations
               WHERE from_operator = $1 AND revoked_at IS NULL AND ends_at > now() LIMIT $2) AS held"#,
        new.from_operator,
        new.most
    )
    .fetch_one(&mut *connection)
    .await?;
    if in_force >= new.most {
        return Ok(Added::TooMany);
    }
    let added = sqlx::query!(
        "INSERT INTO toolgate.delegations (delegation_id, from_operator, to_operator, roles, groups, tiers, reason, ends_at)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8
         WHERE $8 > now() AND $8 <= now() + make_interval(secs => $9)",
        new.delegation_id.as_str(),
        new.from_operator,
        new.to_operator,
        new.roles,
        new.groups,
        new.tiers,
        new.reason,
        new.ends_at,
        new.longest_seconds
    )
    .execute(connection)
    .await?;
    Ok(if added.rows_affected() == 1 {
        Added::Yes
    } else {
        Added::WrongEnd
    })
}

/// The delegations to an operator that are in force now; at most 1,000, the newest.
///
/// # Errors
/// When the database is away.
pub async fn to(
    connection: &mut PgConnection,
    operator: &str,
) -> Result<Vec<DelegationRow>, StoreError> {
    let rows = sqlx::query_as!(
        DelegationRow,
        r#"SELECT delegation_id, from_operator, to_operator, roles, groups, tiers, reason, created_at, ends_at, revoked_at,
                  revoked_by, true AS "in_force!"
           FROM toolgate.delegations
           WHERE to_operator = $1 AND revoked_at IS NULL AND ends_at > now()
           ORDER BY delegation_id DESC LIMIT 1000"#,
        operator
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Which of these are in force at this moment.
///
/// # Errors
/// When the database is away.
pub async fn in_force(
    connection: &mut PgConnection,
    ids: &[String],
) -> Result<Vec<String>, StoreError> {
    let rows = sqlx::query_scalar!(
        "SELECT delegation_id FROM toolgate.delegations
         WHERE delegation_id = ANY ($1) AND revoked_at IS NULL AND ends_at > now()",
        ids
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Delegations in the order in which they were made, of everybody or from or to one person.
///
/// # Errors
/// When the database is away.
pub async fn list(
    connection: &mut PgConnection,
    of: Option<&str>,
    after: &str,
    limit: i64,
) -> Result<Vec<DelegationRow>, StoreError> {
    let rows = sqlx::query_as!(
        DelegationRow,
        r#"SELECT delegation_id, from_operator, to_operator, roles, groups, tiers, reason, created_at, ends_at, revoked_at,
                  revoked_by, (revoked_at IS NULL AND ends_at > now()) AS "in_force!"
           FROM toolgate.delegations
           WHERE ($1::text IS NULL OR from_operator = $1 OR to_operator = $1) AND delegation_id > $2
           ORDER BY delegation_id LIMIT $3"#,
        of,
        after,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// The delegation of that id.
///
/// # Errors
/// When the database is away.
pub async fn find(
    connection: &mut PgConnection,
    id: &str,
) -> Result<Option<DelegationRow>, StoreError> {
    let row = sqlx::query_as!(
        DelegationRow,
        r#"SELECT delegation_id, from_operator, to_operator, roles, groups, tiers, reason, created_at, ends_at, revoked_at,
                  revoked_by, (revoked_at IS NULL AND ends_at > now()) AS "in_force!"
           FROM toolgate.delegations WHERE delegation_id = $1"#,
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(row)
}

/// Ends a delegation before its time. False when it is over.
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
        "UPDATE toolgate.delegations SET revoked_at = now(), revoked_by = $2, revoke_reason = $3
         WHERE delegation_id = $1 AND revoked_at IS NULL AND ends_at > now()",
        id,
        operator,
        reason
    )
    .execute(connection)
    .await?;
    Ok(revoked.rows_affected() == 1)
}
