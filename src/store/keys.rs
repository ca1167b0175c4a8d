//! API keys by their hash.

use sqlx::PgConnection;

use super::StoreError;
use crate::{
    clock::Timestamp,
    ids::KeyId,
    keys::{KeyKind, KnownKey},
};

/// Every key that is not revoked.
///
/// # Errors
/// When the database is away, or holds a row that no gateway wrote.
pub async fn all(connection: &mut PgConnection) -> Result<Vec<KnownKey>, StoreError> {
    let rows = sqlx::query!(
        "SELECT key_id, kind, owner, hash, secret_id, expires_at FROM toolgate.keys WHERE revoked_at IS NULL ORDER BY key_id"
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
                secret_id: row.secret_id,
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
        "INSERT INTO toolgate.keys (key_id, kind, owner, hash, secret_id, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
        key.id.as_str(),
        key.kind.as_str(),
        &*key.owner,
        key.hash.as_slice(),
        key.secret_id,
        now,
        key.expires_at
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Keeps a key's hash under another master secret in the place of the one that stood there. False when it did not stand there
/// any more.
///
/// # Errors
/// When the database is away.
pub async fn rehash(
    connection: &mut PgConnection,
    id: &KeyId,
    from: &[u8; 32],
    to: &[u8; 32],
    secret_id: &str,
) -> Result<bool, StoreError> {
    let changed = sqlx::query!(
        "UPDATE toolgate.keys SET hash = $3, secret_id = $4 WHERE key_id = $1 AND hash = $2",
        id.as_str(),
        from.as_slice(),
        to.as_slice(),
        secret_id
    )
    .execute(connection)
    .await?;
    Ok(changed.rows_affected() == 1)
}

/// What depends on one master secret.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Dependent {
    /// The id of the secret; unknown for what was made before ids.
    pub secret: Option<String>,
    /// API keys in force that are hashed under it.
    pub keys: i64,
    /// Calls that wait for approval, whose arguments it sealed.
    pub waiting: i64,
    /// Calls whose answer it sealed.
    pub answers: i64,
    /// References in open runs, whose values it sealed.
    pub references: i64,
}

/// What depends on which master secret.
///
/// # Errors
/// When the database is away.
pub async fn dependents(connection: &mut PgConnection) -> Result<Vec<Dependent>, StoreError> {
    let rows = sqlx::query_as!(
        Dependent,
        r#"SELECT secret, sum(keys)::bigint AS "keys!", sum(waiting)::bigint AS "waiting!",
                  sum(answers)::bigint AS "answers!", sum(refs)::bigint AS "references!"
           FROM (
               SELECT secret_id AS secret, 1 AS keys, 0 AS waiting, 0 AS answers, 0 AS refs FROM toolgate.keys
               WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > now())
               UNION ALL
               SELECT CASE WHEN substr(sealed, 1, 4) = '\x74677331' THEN encode(substr(sealed, 5, 4), 'hex') END, 0, 1, 0, 0
               FROM toolgate.calls WHERE state IN ('parked', 'approved')
               UNION ALL
               SELECT CASE WHEN substr(answer, 1, 4) = '\x74677331' THEN encode(substr(answer, 5, 4), 'hex') END, 0, 0, 1, 0
               FROM toolgate.calls WHERE answer IS NOT NULL
               UNION ALL
               SELECT CASE WHEN substr(sealed, 1, 4) = '\x74677331' THEN encode(substr(sealed, 5, 4), 'hex') END, 0, 0, 0, 1
               FROM toolgate.value_references
           ) AS found
           GROUP BY secret ORDER BY secret"#
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
