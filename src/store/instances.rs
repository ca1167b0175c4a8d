//! Gateway starts, and up to when each has told the outcome of everything it began.

use sqlx::PgConnection;

use super::StoreError;
use crate::{clock::Timestamp, ids::InstanceId};

/// Adds this start, by the process that it is. After it [`is_newest`] holds for this instance alone.
///
/// # Errors
/// When the database is away.
pub async fn add(
    connection: &mut PgConnection,
    instance: &InstanceId,
    process: Option<&str>,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO toolgate.instances (instance_id, started_at, settled_until, process) VALUES ($1, $2, $2, $3)
         ON CONFLICT (instance_id) DO NOTHING",
        instance.as_str(),
        now,
        process
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Whether no gateway has started after this one.
///
/// # Errors
/// When the database is away.
pub async fn is_newest(
    connection: &mut PgConnection,
    instance: &InstanceId,
) -> Result<bool, StoreError> {
    let newest = sqlx::query_scalar!(
        r#"SELECT instance_id = $1 AS "newest!" FROM toolgate.instances ORDER BY epoch DESC LIMIT 1"#,
        instance.as_str()
    )
    .fetch_optional(connection)
    .await?;
    Ok(newest.unwrap_or(true))
}

/// The processes of the instances that have not said that they send nothing more; `None` for one that did not know its own.
///
/// # Errors
/// When the database is away.
pub async fn unended(connection: &mut PgConnection) -> Result<Vec<Option<String>>, StoreError> {
    let found =
        sqlx::query_scalar!("SELECT process FROM toolgate.instances WHERE ended_at IS NULL")
            .fetch_all(connection)
            .await?;
    Ok(found)
}

/// Every instance but this one certainly sends nothing more.
///
/// # Errors
/// When the database is away.
pub async fn end_others(
    connection: &mut PgConnection,
    this: &InstanceId,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE toolgate.instances SET ended_at = now() WHERE ended_at IS NULL AND instance_id <> $1",
        this.as_str()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// This instance sends nothing more.
///
/// # Errors
/// When the database is away.
pub async fn end(connection: &mut PgConnection, this: &InstanceId) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE toolgate.instances SET ended_at = now() WHERE instance_id = $1",
        this.as_str()
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
