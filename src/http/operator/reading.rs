//! That an operator read something is an entry like everything else, committed before the answer leaves: no record, no reading.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    app::App,
    entry::{Entry, Kind},
    reason::Refusal,
};

fn entry(operator: &Arc<str>, route: &str, mut what: Value) -> Entry {
    if let Some(what) = what.as_object_mut() {
        what.insert("request".to_owned(), route.into());
    }
    Entry {
        operator: Some(Arc::clone(operator)),
        detail: Some(what),
        ..Entry::new(Kind::AuditRead)
    }
}

/// Records a reading: which request, with which filter, and how many rows it gave.
///
/// # Errors
/// `record_unavailable`; then nothing may be shown.
pub(super) async fn told(
    app: &App,
    operator: &Arc<str>,
    route: &str,
    what: Value,
) -> Result<(), Refusal> {
    commit(app, entry(operator, route, what)).await
}

/// The same of one thing with an id, under which it is found.
///
/// # Errors
/// `record_unavailable`; then nothing may be shown.
pub(super) async fn told_of(
    app: &App,
    operator: &Arc<str>,
    route: &str,
    what: Value,
    thing: impl FnOnce(&mut Entry),
) -> Result<(), Refusal> {
    let mut entry = entry(operator, route, what);
    thing(&mut entry);
    commit(app, entry).await
}

async fn commit(app: &App, entry: Entry) -> Result<(), Refusal> {
    app.recorder
        .commit(entry)
        .await
        .map_err(|_unrecorded| unrecorded())
}

/// Records a reading of what is halted. It stands in memory and must be seen while the database is away: then the entry waits
/// for its return, as a refusal's does.
///
/// # Errors
/// `record_unavailable` when too much waits already.
pub(super) async fn noted(
    app: &App,
    operator: &Arc<str>,
    route: &str,
    what: Value,
) -> Result<(), Refusal> {
    app.recorder
        .note(entry(operator, route, what))
        .await
        .map_err(|_unrecorded| unrecorded())
}

/// From where nothing can be waited for.
pub(super) fn told_late(app: &App, operator: &Arc<str>, route: &str, what: Value) {
    app.recorder.keep_now(entry(operator, route, what), None);
}

fn unrecorded() -> Refusal {
    let mut refusal = Refusal::record_unavailable();
    "That you read this could not be recorded, so nothing is shown. Try again later."
        .clone_into(&mut refusal.detail);
    refusal
}
