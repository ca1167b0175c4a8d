//! Whether the process lives, and whether it can take calls.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;

use crate::app::App;

pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Not ready while the records are away, and from the moment shutdown begins.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let because = if app.stopping.load(Ordering::Acquire) {
        "stopping\n"
    } else if !app.recorder.is_healthy() {
        "the records are not available\n"
    } else {
        return "ok\n".into_response();
    };
    (StatusCode::SERVICE_UNAVAILABLE, because).into_response()
}
