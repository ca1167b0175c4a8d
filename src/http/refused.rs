//! Refusals outside calls are entries too: whoever is known by name, whoever is not by where they come from.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::Method;
use serde_json::json;

use crate::{
    app::App,
    clock,
    entry::{Decision, Entry, Kind},
    keys::KeyKind,
    pipeline,
    problem::Told,
    reason::{Reason, Refusal},
};

/// Where a request came from, as its connection says.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

/// Around the agents' routes that are no calls: a call's own refusal is an entry of the call.
pub(super) async fn by_agents(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let asked = route(request.method(), request.uri().path());
    let source = request.extensions().get::<Peer>().map(|peer| peer.0);
    let named = request
        .uri()
        .path()
        .split('/')
        .nth(3)
        .unwrap_or_default()
        .to_owned();
    let headers = request.headers().clone();
    let response = next.run(request).await;
    let Some(told) = response.extensions().get::<Told>() else {
        return response;
    };
    if told.reason == Reason::Unauthenticated {
        pipeline::stranger(&app, KeyKind::Agent, asked, source).await;
        return response;
    }
    let Ok(agent) = pipeline::agent(&app, &headers, clock::now()) else {
        return response;
    };
    let entry = Entry {
        agent: Some(Arc::clone(&agent.name)),
        run_id: named.parse().ok(),
        call_id: named.parse().ok(),
        decision: Some(Decision::Deny),
        reasons: vec![told.reason.code()],
        decided_at: Some(clock::now()),
        detail: Some(json!({"request": asked, "detail": told.detail})),
        ..Entry::new(Kind::AgentRefused)
    };
    if app.recorder.note(entry).await.is_err() {
        tracing::error!(agent = %agent.name, request = asked, "a refused agent could not be recorded");
        return Refusal::record_unavailable().into_response();
    }
    response
}

/// Around the operators' routes. Whoever is known and may not is recorded where that is decided.
pub(super) async fn by_operators(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let asked = route(request.method(), request.uri().path());
    let source = request.extensions().get::<Peer>().map(|peer| peer.0);
    let response = next.run(request).await;
    let is_stranger = response
        .extensions()
        .get::<Told>()
        .is_some_and(|told| told.reason == Reason::Unauthenticated);
    if is_stranger {
        pipeline::stranger(&app, KeyKind::Operator, asked, source).await;
    }
    response
}

/// The route without what stands in it: a path as it came may hold anything.
fn route(method: &Method, path: &str) -> String {
    let mut segments = path.split('/').skip(2);
    let (list, thing, act) = (
        segments.next().unwrap_or_default(),
        segments.next(),
        segments.next(),
    );
    match (thing, act) {
        (None, _) => format!("{method} /v1/{list}"),
        (Some(thing), _) if list == "audit" => format!("{method} /v1/audit/{thing}"),
        (Some(_), None) => format!("{method} /v1/{list}/{{id}}"),
        (Some(_), Some(act)) => format!("{method} /v1/{list}/{{id}}/{act}"),
    }
}
