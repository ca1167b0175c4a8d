//! Whether the process lives, and whether it can take calls.

use std::sync::{Arc, atomic::Ordering};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;

use crate::app::App;

/// Whether the process lives
#[utoipa::path(get, path = "/livez", operation_id = "livez", tag = "gateway", security(()),
    responses((status = 200, description = "`ok`.", body = String, content_type = "text/plain")))]
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// Whether it can take calls
///
/// With the checkpoint sinks that fail, which stop no call.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "gateway", security(()),
    responses((status = 200, description = "`ok`, and what an operator should know.", body = String, content_type = "text/plain"),
        (status = 503, description = "Why not.", body = String, content_type = "text/plain")))]
// The same with what an operator should know beside it: sinks of checkpoints that fail. Calls go on, so it stays ready.
pub(super) async fn readyz_in_detail(State(app): State<Arc<App>>) -> Response {
    let status = app.recorder.sinks().status();
    let response = readyz(State(app)).await;
    let failing: String = status
        .iter()
        .filter_map(|sink| {
            let (since, reason) = sink.failing.as_ref()?;
            Some(format!(
                "checkpoint sink {} has failed since {}: {reason}; {} wait, {} were given up\n",
                sink.name,
                since.to_rfc3339_opts(chrono::SecondsFormat::Secs, true),
                sink.waiting,
                sink.given_up
            ))
        })
        .collect();
    if response.status() == StatusCode::OK && !failing.is_empty() {
        return format!("ok\n{failing}").into_response();
    }
    response
}

/// Whether it can take calls
///
/// Not while the records are away, nor from the moment in which it begins to stop.
#[utoipa::path(get, path = "/readyz", operation_id = "readyz", tag = "gateway", security(()),
    responses((status = 200, description = "`ok`.", body = String, content_type = "text/plain"),
        (status = 503, description = "Why not.", body = String, content_type = "text/plain")))]
// Not ready while the records are away, and from the moment shutdown begins.
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
