//! The first entry of an instance: it names the ends of the chains before it, so that no instance can be taken out, cut or
//! added to without leaving a contradiction.

use serde_json::{Value, json};
use sqlx::PgConnection;

use crate::{
    entry::{Entry, Kind},
    ids::InstanceId,
    secrets,
    store::{self, StoreError},
};

/// The entry that says that a gateway has started.
pub(super) async fn opening(
    connection: &mut PgConnection,
    this: &InstanceId,
) -> Result<Entry, StoreError> {
    let follows: Vec<Value> = store::audit::heads_before(connection, this)
        .await?
        .into_iter()
        .map(|head| {
            json!({
                "instance": head.instance_id,
                "seq": head.seq,
                "hash": head.hash.as_deref().map(secrets::hex),
            })
        })
        .collect();
    Ok(Entry {
        detail: Some(json!({ "follows": follows })),
        ..Entry::new(Kind::GatewayStarted)
    })
}
