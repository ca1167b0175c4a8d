//! Refusals outside calls are entries too: whoever is known by name, whoever is not by where they come from.

use std::{net::IpAddr, sync::Arc};

use axum::{
    body::Body,
    extract::State,
    http::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

use super::operator;
use crate::{
    app::App,
    clock,
    entry::{Decision, Entry, Kind},
    keys::KeyKind,
    pipeline,
    problem::Told,
    reason::{Reason, Refusal},
};

tokio::task_local! {
    /// From where the connection comes that this task serves. Not an extension of each request: nearly none needs it.
    pub static PEER: IpAddr;
}

/// From where the request comes that is looked at now.
pub(super) fn source() -> Option<IpAddr> {
    PEER.try_with(|peer| *peer).ok()
}

/// Around the agents' routes that are no calls: a call's own refusal is an entry of the call.
pub(super) async fn by_agents(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let asked = Asked::of(&request);
    let agent = pipeline::agent(&app, request.headers(), clock::now()).ok();
    let response = next.run(request).await;
    let Some(told) = response.extensions().get::<Told>() else {
        return response;
    };
    let Some(agent) = agent else {
        pipeline::stranger(&app, KeyKind::Agent, asked.request, asked.source).await;
        return response;
    };
    let entry = Entry {
        agent: Some(Arc::clone(&agent.name)),
        ..asked.entry(Kind::AgentRefused, told)
    };
    if app.recorder.note(entry).await.is_err() {
        tracing::error!(agent = %agent.name, request = asked.request, "a refused agent could not be recorded");
        return Refusal::record_unavailable().into_response();
    }
    response
}

/// Around everything on the operators' listener: whatever an operator is refused, whether they may not, the state does not let
/// them, or what they sent cannot be read. Not where the records themselves are away: that is no refusal of theirs, and whoever
/// tries again and again must not fill the queue in which refused calls wait.
pub(super) async fn by_operators(
    State(app): State<Arc<App>>,
    request: Request<Body>,
    next: Next,
) -> Response {
    let asked = Asked::of(&request);
    let operator = operator::identify(&app, request.headers()).ok();
    let response = next.run(request).await;
    let asked = asked.answered(&response);
    let Some(told) = response.extensions().get::<Told>() else {
        return response;
    };
    let Some(operator) = operator else {
        pipeline::stranger(&app, KeyKind::Operator, asked.request, asked.source).await;
        return response;
    };
    if told.reason == Reason::RecordUnavailable {
        return response;
    }
    let entry = Entry {
        operator: Some(Arc::clone(&operator)),
        policies: told.policies.clone(),
        policy_digest: Some(Arc::clone(&app.policy_digest)),
        ..asked.entry(Kind::OperatorRefused, told)
    };
    if app.recorder.note(entry).await.is_err() {
        tracing::error!(operator = %operator, request = asked.request, "a refused operator could not be recorded");
        return Refusal::record_unavailable().into_response();
    }
    response
}

/// Stands beside the answer where the path is none of this listener's.
#[derive(Debug, Clone, Copy)]
pub(super) struct NoRoute;

/// What was asked for, without anything that somebody may have put there.
struct Asked {
    /// Method and route. A path as it came may hold anything, and so may a method.
    request: String,
    source: Option<IpAddr>,
    /// What the path names, where that is an id.
    named: String,
}

impl Asked {
    fn of(request: &Request<Body>) -> Self {
        let path = request.uri().path();
        Self {
            request: route(pipeline::known_method(request.method()), path),
            source: source(),
            named: path.split('/').nth(3).unwrap_or_default().to_owned(),
        }
    }

    /// The same, once it is known whether there is such a route.
    fn answered(mut self, response: &Response) -> Self {
        if response.extensions().get::<NoRoute>().is_some() {
            let method = self.request.split(' ').next().unwrap_or_default();
            self.request = format!("{method} another path");
        }
        self
    }

    fn entry(&self, kind: Kind, told: &Told) -> Entry {
        let mut detail = json!({"request": self.request, "detail": told.detail});
        if let (Some(detail), Some(Value::Object(more))) = (detail.as_object_mut(), &told.more) {
            detail.extend(more.clone());
        }
        Entry {
            run_id: self.named.parse().ok(),
            call_id: self.named.parse().ok(),
            approval_id: self.named.parse().ok(),
            kill_switch_id: self.named.parse().ok(),
            decision: Some(Decision::Deny),
            reasons: vec![told.reason.code()],
            decided_at: Some(clock::now()),
            detail: Some(detail),
            ..Entry::new(kind)
        }
    }
}

/// The route without what stands in it.
fn route(method: &str, path: &str) -> String {
    if !path.starts_with("/v1/") {
        // Whoever came to a route of another form; what is none is told as such (`NoRoute`).
        return match path {
            "/metrics" => format!("{method} /metrics"),
            _ => format!("{method} another path"),
        };
    }
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
