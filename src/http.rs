//! The two listeners' routes. Agents cannot reach an operator's route: it does not exist on their side.

use std::sync::Arc;

use axum::{
    Extension, Router,
    http::Method,
    middleware,
    response::Response,
    routing::{delete, get, post},
};

use crate::{
    app::App,
    problem,
    reason::{Reason, Refusal},
};

mod calls;
mod health;
mod input;
mod operator;
mod refused;
mod runs;
mod transparent;

pub use refused::PEER;

/// What agents can reach.
pub fn agents(app: Arc<App>) -> Router {
    let refused = middleware::from_fn_with_state(Arc::clone(&app), refused::by_agents);
    Router::new()
        .route("/v1/tools", get(calls::tools))
        .route("/v1/calls/{call}", get(calls::state))
        .route("/v1/runs", post(runs::open))
        .route("/v1/runs/{run}/end", post(runs::end))
        .method_not_allowed_fallback(wrong_method)
        .route_layer(refused)
        .route("/v1/tools/{tool}/calls", post(calls::call))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .fallback(transparent::call)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

/// What operators can reach.
pub fn operators(app: Arc<App>) -> Router {
    let refused = middleware::from_fn_with_state(Arc::clone(&app), refused::by_operators);
    Router::new()
        .route("/v1/approvals", get(operator::approvals::list))
        .route("/v1/approvals/stream", get(operator::stream::follow))
        .route(
            "/v1/approvals/statistics",
            get(operator::statistics::approvals),
        )
        .route("/metrics", get(operator::statistics::metrics))
        .route("/v1/approvals/{approval}", get(operator::approvals::show))
        .route(
            "/v1/approvals/{approval}/approve",
            post(operator::approvals::approve),
        )
        .route(
            "/v1/approvals/{approval}/deny",
            post(operator::approvals::deny),
        )
        .route("/v1/deliveries", get(operator::deliveries::list))
        .route(
            "/v1/deliveries/{delivery}/redeliver",
            post(operator::deliveries::redeliver),
        )
        .route("/v1/destinations", get(operator::deliveries::destinations))
        .route(
            "/v1/destinations/{destination}/enable",
            post(operator::deliveries::enable),
        )
        .route(
            "/v1/delegations",
            get(operator::delegations::list).post(operator::delegations::grant),
        )
        .route(
            "/v1/delegations/{delegation}",
            delete(operator::delegations::revoke),
        )
        .route("/v1/permissions", get(operator::permissions::list))
        .route(
            "/v1/permissions/{permission}",
            get(operator::permissions::show).delete(operator::permissions::revoke),
        )
        .route(
            "/v1/kill-switches",
            get(operator::kill_switches::list).post(operator::kill_switches::pull),
        )
        .route(
            "/v1/kill-switches/{kill_switch}",
            delete(operator::kill_switches::release),
        )
        .route("/v1/work", get(operator::work::list))
        .route("/v1/work/{work}", get(operator::work::show))
        .route("/v1/work/{work}/claim", post(operator::work::claim))
        .route("/v1/work/{work}/release", post(operator::work::release))
        .route("/v1/work/{work}/resolve", post(operator::work::resolve))
        .route("/v1/runs", get(operator::history::runs))
        .route("/v1/runs/{run}", get(operator::history::run))
        .route("/v1/calls/{call}", get(operator::history::call))
        .route("/v1/audit/entries", get(operator::entries::list))
        .route("/v1/audit/hash", post(operator::entries::hash))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz_in_detail))
        .fallback(nothing_here)
        .method_not_allowed_fallback(wrong_method)
        .layer(refused)
        .with_state(app)
}

async fn nothing_here() -> (Extension<refused::NoRoute>, Refusal) {
    let refusal = Refusal::new(
        Reason::NotFound,
        "There is nothing under this path on the operators' listener.",
    );
    (Extension(refused::NoRoute), refusal)
}

/// axum adds the methods that the path has.
async fn wrong_method(method: Method) -> Response {
    let detail = format!("This path does not take {method}; the header Allow names what it takes.");
    problem::method_not_allowed(&Refusal::new(Reason::NotFound, detail))
}
