//! Partitions for the months to come, values that ended runs knew by reference, connections to APIs that nobody uses, and
//! attempts without a key that were counted.

use std::sync::Arc;

use crate::{
    app::App,
    store::{self, StoreError},
};

pub(super) async fn ensure_partitions(app: Arc<App>) -> Result<(), StoreError> {
    let mut connection = app.pool.acquire().await?;
    store::audit::ensure_partitions(&mut connection).await
}

/// The values of runs that ended by themselves; an agent's own ending erases them at once.
pub(super) async fn erase_references(app: Arc<App>) -> Result<(), StoreError> {
    let mut connection = app.pool.acquire().await?;
    let erased = store::references::erase(&mut connection).await?;
    if erased > 0 {
        tracing::info!(erased, "values of ended runs are erased");
    }
    Ok(())
}

pub(super) async fn close_stale(app: Arc<App>) -> Result<(), StoreError> {
    for client in app.apis.values() {
        client.upstream.close_stale();
    }
    Ok(())
}

pub(super) async fn tell_of_strangers(app: Arc<App>) -> Result<(), StoreError> {
    for entry in app.strangers.turn() {
        if app.recorder.note(entry).await.is_err() {
            tracing::error!("attempts without a key could not be recorded");
        }
    }
    Ok(())
}
