//! Halts that stand in the journal are recorded, and leave it once they are.

use std::sync::Arc;

use serde_json::json;

use crate::{
    app::App,
    audit::Change,
    entry::{Entry, Kind},
    killswitch::KillSwitch,
    store::{self, StoreError},
};

/// What is recorded of a halt.
pub(crate) fn record_of(kill_switch: &KillSwitch) -> (Entry, Change) {
    let mut detail = kill_switch.scope.to_json();
    if let Some(detail) = detail.as_object_mut() {
        detail.insert("pulled_at".to_owned(), json!(kill_switch.pulled_at));
    }
    let entry = Entry {
        kill_switch_id: Some(kill_switch.id.clone()),
        operator: Some(Arc::clone(&kill_switch.operator)),
        words: Some(kill_switch.reason.clone()),
        decided_at: Some(kill_switch.pulled_at),
        detail: Some(detail),
        ..Entry::new(Kind::Halt)
    };
    (entry, Change::Pull(kill_switch.to_row()))
}

pub(super) async fn turn(app: Arc<App>) -> Result<(), StoreError> {
    let Some(journal) = &app.journal else {
        return Ok(());
    };
    let kept = journal.all().map_err(StoreError::Unavailable)?;
    if kept.is_empty() {
        return Ok(());
    }
    let mut connection = app.pool.acquire().await?;
    for kill_switch in kept {
        if store::kill_switches::is_known(&mut connection, &kill_switch.id).await? {
            journal
                .forget(&kill_switch.id)
                .map_err(|error| StoreError::Unavailable(error.to_string()))?;
        } else if app.recorder.is_healthy() && app.unrecorded.lock().remove(&kill_switch.id) {
            // Kept by a gateway that is gone; the halts of this one are on their way.
            let (entry, change) = record_of(&kill_switch);
            let _ = app.recorder.settle(entry, Some(change)).await;
        }
    }
    Ok(())
}
