//! Idempotency keys and the sealed answers of ended calls are erased when the config's time is over. The history keeps what was
//! recorded of them.

use std::sync::Arc;

use crate::{
    app::App,
    store::{self, StoreError},
};

/// Rows in one statement, so that no lock is held for long.
const BATCH: i64 = 500;
/// Statements in one turn.
const TURNS: usize = 20;

pub(super) async fn turn(app: Arc<App>) -> Result<(), StoreError> {
    let after_seconds = app.config.limits.answer_retention.as_secs_f64();
    let mut connection = app.pool.acquire().await?;
    for _ in 0..TURNS {
        let forgotten = store::calls::forget(&mut connection, after_seconds, BATCH).await?;
        if forgotten < BATCH.unsigned_abs() {
            break;
        }
    }
    Ok(())
}
