//! Pending approvals whose time is over become *not executed*, on the database's clock.

use std::sync::Arc;

use crate::{
    app::App,
    approvals::EXPIRED,
    entry::Outcome,
    parked,
    store::{self, StoreError},
};

pub(super) async fn turn(app: Arc<App>) -> Result<(), StoreError> {
    let mut connection = app.pool.acquire().await?;
    let overdue = store::approvals::overdue(&mut connection).await?;
    drop(connection);
    for approval in overdue {
        parked::end_unsent(
            &app.recorder,
            &app.waiters,
            &approval,
            Outcome::Expired,
            EXPIRED,
        )
        .await
        .map_err(|error| StoreError::Unavailable(error.to_string()))?;
    }
    Ok(())
}
