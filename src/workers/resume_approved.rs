//! Approved calls that nobody has taken up: after a start, after a kill switch was released, after the database was away.

use std::sync::Arc;

use crate::{
    app::App,
    pipeline,
    store::{self, StoreError},
};

pub(crate) async fn turn(app: Arc<App>) -> Result<(), StoreError> {
    let mut connection = app.pool.acquire().await?;
    let approved = store::calls::approved(&mut connection).await?;
    drop(connection);
    for call in approved {
        if let Ok(call) = call.parse() {
            app.tasks.spawn(pipeline::resume(Arc::clone(&app), call));
        }
    }
    Ok(())
}
