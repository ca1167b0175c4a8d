//! Making API keys: the row and the entry that tells of it in one transaction, beside a running gateway, which takes the
//! key up within a second.

use anyhow::Context as _;
use serde_json::json;
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};

use crate::{
    audit::record_command,
    clock::{self, Timestamp},
    entry::{Entry, Kind},
    ids::KeyId,
    keys::{self, KeyKind, KnownKey},
    secrets::{Keyring, Secret},
    signing::Held,
    store,
};

/// Makes a key for an agent or an operator and keeps its HMAC. The key itself is only in what this returns. `held` signs what is
/// recorded of it.
///
/// # Errors
/// When the database is away, or `held` is not the key that the gateway signs with.
pub async fn issue(
    options: &PgConnectOptions,
    held: &Held,
    ring: &Keyring,
    kind: KeyKind,
    owner: &str,
    expires_at: Option<Timestamp>,
) -> anyhow::Result<(KeyId, Secret)> {
    let key = keys::generate(kind)?;
    let known = KnownKey {
        id: KeyId::generate(),
        kind,
        owner: owner.into(),
        expires_at,
        hash: ring.api_key_hash(key.expose()),
        secret_id: Some(ring.secret_id()),
    };
    let entry = Entry {
        agent: (kind == KeyKind::Agent).then(|| owner.into()),
        operator: (kind == KeyKind::Operator).then(|| owner.into()),
        detail: Some(json!({"key": known.id, "kind": kind.as_str(), "expires_at": expires_at})),
        ..Entry::new(Kind::KeyCreated)
    };
    let mut connection = PgConnection::connect_with(options)
        .await
        .context("cannot reach the database: is the gateway running?")?;
    let mut transaction = connection.begin().await?;
    store::keys::add(&mut transaction, &known, clock::now()).await?;
    record_command(&mut transaction, held, entry).await?;
    transaction.commit().await?;
    connection.close().await?;
    Ok((known.id, key))
}

/// What depends on which master secret.
///
/// # Errors
/// When the database is away.
pub async fn dependents(options: &PgConnectOptions) -> anyhow::Result<Vec<store::keys::Dependent>> {
    let mut connection = PgConnection::connect_with(options)
        .await
        .context("cannot reach the database: is the gateway running?")?;
    let found = store::keys::dependents(&mut connection).await?;
    connection.close().await?;
    Ok(found)
}

/// Whether a key is in force.
///
/// # Errors
/// When the database is away.
pub async fn is_known(
    options: &PgConnectOptions,
    ring: &Keyring,
    kind: KeyKind,
    key: &Secret,
) -> anyhow::Result<bool> {
    let mut connection = PgConnection::connect_with(options).await?;
    let known = keys::KnownKeys::new(store::keys::all(&mut connection).await?);
    connection.close().await?;
    Ok(known.find(ring, kind, key.expose(), clock::now()).is_some())
}
