//! API keys by their hash.

use sqlx::PgConnection;

use super::StoreError;
use crate::{
    clock::Timestamp,
    keys::{KeyKind, KnownKey},
};

/// Every key that is not revoked.
///
/// # Errors
/// When the database is away, or holds a row that no gateway wrote.
pub async fn all(connection: &mut PgConnection) -> Result<Vec<KnownKey>, StoreError> {
    let rows = sqlx::query!(
        "SELECT key_id, kind, owner, hash, expires_at FROM toolgate.keys WHERE revoked_at IS NULL ORDER BY key_id"
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let wrong = || {
                StoreError::Refused(format!(
                    "key {} is not one that a gateway wrote",
                    row.key_id
                ))
            };
            Ok(KnownKey {
                id: row.key_id.parse().map_err(|_not_an_id| wrong())?,
                kind: match row.kind.as_str() {
                    "agent" => KeyKind::Agent,
                    "operator" => KeyKind::Operator,
                    _ => return Err(wrong()),
                },
                owner: row.owner.as_str().into(),
                expires_at: row.expires_at,
                hash: row.hash.as_slice().try_into().map_err(|_length| wrong())?,
            })
        })
        .collect()
}

/// Adds a key.
///
/// # Errors
/// When the database is away.
pub async fn add(
    connection: &mut PgConnection,
    key: &KnownKey,
    now: Timestamp,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO toolgate.keys (key_id, kind, owner, hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5, $6)",
        key.id.as_str(),
        key.kind.as_str(),
        &*key.owner,
        key.hash.as_slice(),
        now,
        key.expires_at
    )
    .execute(connection)
    .await?;
    Ok(())
}
