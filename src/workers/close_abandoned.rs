//! Intents that a gateway which is gone left open are closed as `indeterminate`. A start does so first thing; this looks again,
//! so that nothing that a start could not see stays open.

use std::sync::Arc;

use futures::FutureExt as _;

use crate::{
    app::App,
    audit::{self, ActError},
    clock,
    store::StoreError,
};

pub(super) async fn turn(app: Arc<App>) -> Result<(), StoreError> {
    let this = app.recorder.instance().clone();
    app.recorder
        .act(move |connection| {
            async move {
                let entries = audit::orphaned(connection, &this, clock::now()).await?;
                Ok((entries, ()))
            }
            .boxed()
        })
        .await
        .map_err(|error| match error {
            ActError::Store(error) => error,
            ActError::Unrecorded => StoreError::Unavailable(error.to_string()),
        })
}
