//! `ANY /{api}/{path…}`: an API's own paths. The agent changes its base URL and nothing else.

use std::sync::Arc;

use axum::{
    body::Body,
    extract::State,
    http::Request,
    response::{IntoResponse, Response},
};

use super::{calls::run, refused::source};
use crate::{
    app::App,
    clock,
    ids::CallId,
    pipeline::{Arrival, Surface, Wanted},
};

pub(super) async fn call(State(app): State<Arc<App>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let arrival = Arrival {
        call: CallId::generate(),
        received_at: clock::now(),
        source: source(),
        surface: Surface::Transparent,
        wanted: Wanted::Request {
            method: parts.method,
            raw_path: parts.uri.path().to_owned(),
            raw_query: parts.uri.query().map(str::to_owned),
        },
        headers: parts.headers,
        body,
    };
    run(app, arrival).await.into_response()
}
