//! Approved calls that nobody has taken up: after a start, after a kill switch was released, after the database was away.

use std::sync::Arc;

use crate::{
    app::App,
    pipeline,
    store::{self, StoreError},
};

/// Looked at in one turn. Those that must wait, because they are halted or done by hand, are looked at again each time around.
const PAGE: usize = 1_000;

/// Goes on after the last one of the turn before, so that however many must wait, none of the others does.
pub(crate) async fn turn(app: Arc<App>) -> Result<(), StoreError> {
    let after = app.resuming.looked_up_to();
    let mut connection = app.pool.acquire().await?;
    let limit = i64::try_from(PAGE).unwrap_or(i64::MAX);
    let approved = store::calls::approved(&mut connection, &after, limit).await?;
    drop(connection);
    let last = approved.last().filter(|_| approved.len() == PAGE);
    app.resuming
        .look_on_after(last.cloned().unwrap_or_default());
    for call in approved {
        if let Ok(call) = call.parse() {
            app.tasks.spawn(pipeline::resume(Arc::clone(&app), call));
        }
    }
    Ok(())
}
