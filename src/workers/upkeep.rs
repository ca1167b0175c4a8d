//! Partitions for the months to come, and connections to APIs that nobody uses.

use std::sync::Arc;

use crate::{
    app::App,
    store::{self, StoreError},
};

pub(super) async fn ensure_partitions(app: Arc<App>) -> Result<(), StoreError> {
    let mut connection = app.pool.acquire().await?;
    store::audit::ensure_partitions(&mut connection).await
}

pub(super) async fn close_stale(app: Arc<App>) -> Result<(), StoreError> {
    for client in app.apis.values() {
        client.upstream.close_stale();
    }
    Ok(())
}
