//! A signing key that was rotated beside the running gateway signs from its entry in the chain on.

use std::sync::Arc;

use crate::{app::App, signing, store::StoreError};

pub(super) async fn turn(app: Arc<App>) -> Result<(), StoreError> {
    let file = app.config.checkpoints.key_file.clone();
    let loaded = tokio::task::spawn_blocking(move || signing::load(&file)).await;
    let held = match loaded {
        Ok(Ok(held)) => held,
        Ok(Err(error)) => return Err(StoreError::Refused(error.to_string())),
        Err(_panicked) => return Ok(()),
    };
    let is_new = app.recorder.signs_with_another(held.key.verifier());
    // One under another name waits for the start that gives it this installation's.
    if is_new && held.key.verifier().name() == app.config.checkpoints.installation {
        app.recorder
            .take_up(held)
            .await
            .map_err(|error| StoreError::Unavailable(error.to_string()))?;
    }
    Ok(())
}
