//! Keys that were made or revoked elsewhere (`toolgate keys`) take effect within a second.

use std::sync::Arc;

use crate::{
    app::App,
    keys::KnownKeys,
    store::{self, StoreError},
};

pub(super) async fn turn(app: Arc<App>) -> Result<(), StoreError> {
    let mut connection = app.pool.acquire().await?;
    let keys = store::keys::all(&mut connection).await?;
    *app.keys.write() = Arc::new(KnownKeys::new(keys));
    Ok(())
}
