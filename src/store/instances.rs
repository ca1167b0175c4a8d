//! Gateway starts, and up to when each has told the outcome of everything it began.

use sqlx::PgConnection;

use super::StoreError;
use crate::{clock::Timestamp, ids::InstanceId};

/// Adds this start.
///
/// # Errors
/// When the database is away.
pub async fn add(
    connection: &mut PgConnection,
    instance: &InstanceId,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO toolgate.instances (instance_id, started_at, settled_until) VALUES ($1, $2, $2)
         ON CONFLICT (instance_id) DO NOTHING",
        instance.as_str(),
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Every intent of this instance recorded before `until` has its outcome.
///
/// # Errors
/// When the database is away.
pub async fn settle(
    connection: &mut PgConnection,
    instance: &InstanceId,
    until: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE toolgate.instances SET settled_until = $2 WHERE instance_id = $1 AND settled_until < $2",
        instance.as_str(),
        until
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Every instance but this one has been looked through.
///
/// # Errors
/// When the database is away.
pub async fn settle_others(
    connection: &mut PgConnection,
    this: &InstanceId,
    until: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE toolgate.instances SET settled_until = $2 WHERE instance_id <> $1 AND settled_until < $2",
        this.as_str(),
        until
    )
    .execute(connection)
    .await?;
    Ok(())
}
