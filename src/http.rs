//! The two listeners' routes. Agents cannot reach an operator's route: it does not exist on their side.

use std::sync::Arc;

use axum::{Extension, Router, http::Method, middleware, response::Response};
use utoipa_axum::{router::OpenApiRouter, routes};

use self::openapi::Published;
use crate::{
    app::App,
    problem,
    reason::{Reason, Refusal},
};

mod calls;
mod health;
mod input;
mod openapi;
mod operator;
mod refused;
mod runs;
mod transparent;

pub use refused::PEER;

/// What agents can reach.
pub fn agents(app: Arc<App>) -> Router {
    let refused = middleware::from_fn_with_state(Arc::clone(&app), refused::by_agents);
    // No calls: their refusals are entries of their own, a wrong method's too.
    let (own, documented) = OpenApiRouter::default()
        .routes(routes!(calls::tools))
        .routes(routes!(calls::state))
        .routes(routes!(runs::open))
        .routes(routes!(runs::end))
        .split_for_parts();
    let own = own
        .method_not_allowed_fallback(wrong_method)
        .route_layer(refused);
    let (routes, documented) = OpenApiRouter::with_openapi(documented)
        .routes(routes!(calls::call))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
        .routes(routes!(openapi::agents_document))
        .routes(routes!(openapi::agents_page))
        .split_for_parts();
    openapi::OF_AGENTS.get_or_init(|| Published::of(&documented, &openapi::AGENTS));
    routes
        .merge(own)
        .fallback(transparent::call)
        .method_not_allowed_fallback(wrong_method)
        .with_state(app)
}

/// What operators can reach.
pub fn operators(app: Arc<App>) -> Router {
    use operator::{
        approvals, delegations, deliveries, entries, history, kill_switches, permissions,
        statistics, stream, work,
    };
    let refused = middleware::from_fn_with_state(Arc::clone(&app), refused::by_operators);
    let (routes, documented) = OpenApiRouter::default()
        .routes(routes!(approvals::list))
        .routes(routes!(stream::follow))
        .routes(routes!(statistics::approvals))
        .routes(routes!(approvals::show))
        .routes(routes!(approvals::approve))
        .routes(routes!(approvals::deny))
        .routes(routes!(permissions::list))
        .routes(routes!(permissions::show, permissions::revoke))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::redeliver))
        .routes(routes!(deliveries::destinations))
        .routes(routes!(deliveries::enable))
        .routes(routes!(delegations::list, delegations::grant))
        .routes(routes!(delegations::revoke))
        .routes(routes!(kill_switches::list, kill_switches::pull))
        .routes(routes!(kill_switches::release))
        .routes(routes!(work::list))
        .routes(routes!(work::show))
        .routes(routes!(work::claim))
        .routes(routes!(work::release))
        .routes(routes!(work::resolve))
        .routes(routes!(history::runs))
        .routes(routes!(history::run))
        .routes(routes!(history::call))
        .routes(routes!(entries::list))
        .routes(routes!(entries::hash))
        .routes(routes!(statistics::metrics))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz_in_detail))
        .routes(routes!(openapi::operators_document))
        .routes(routes!(openapi::operators_page))
        .split_for_parts();
    openapi::OF_OPERATORS.get_or_init(|| Published::of(&documented, &openapi::OPERATORS));
    routes
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
