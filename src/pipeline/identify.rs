//! Step one: from a credential to an agent and a run. All failures are one answer, so that nothing can be learnt by
//! trying.

use std::{net::IpAddr, sync::Arc};

use http::{HeaderMap, header};

use super::{Caller, record::Trail};
use crate::{
    app::App,
    clock::{self, Timestamp},
    config::Agent,
    ids::RunId,
    keys::KeyKind,
    killswitch::Target,
    reason::{Reason, Refusal},
    runs::{Run, RunError},
};

/// The header that names a run.
pub const RUN_HEADER: &str = "toolgate-run";

/// Who calls, and in which run.
pub(super) async fn identify(
    app: &App,
    headers: &HeaderMap,
    now: Timestamp,
    trail: &mut Trail,
) -> Result<Caller, Refusal> {
    let agent = agent(app, headers, now)?;
    trail.agent = Some(Arc::clone(&agent.name));
    let run = run(app, &agent, headers, now).await?;
    trail.run = Some(run.id.clone());
    Ok(Caller { agent, run })
}

/// The agent whose key the request carries.
///
/// # Errors
/// One refusal for everything: no key, a malformed, unknown, revoked or expired one, one of an operator, or of an
/// agent that the config no longer knows.
pub(crate) fn agent(app: &App, headers: &HeaderMap, now: Timestamp) -> Result<Arc<Agent>, Refusal> {
    let refused = || {
        Refusal::new(
            Reason::Unauthenticated,
            "No agent key that is in force: send it as \"Authorization: Bearer tg_agent_…\".",
        )
    };
    let owner = owner_of_key(app, KeyKind::Agent, headers, now).ok_or_else(refused)?;
    app.config.agents.get(&owner).cloned().ok_or_else(refused)
}

/// Takes note of an attempt without a key that is in force. `asked` is method and route, never a path as it came.
pub(crate) async fn stranger(app: &App, listener: KeyKind, asked: String, source: Option<IpAddr>) {
    let Some(entry) = app.strangers.knocked(listener, asked, source, clock::now()) else {
        return;
    };
    if app.recorder.note(entry).await.is_err() {
        tracing::error!("an attempt without a key could not be recorded");
    }
}

/// The name behind the bearer key of a request (RFC 6750), if it is in force and of this kind. Two
/// `Authorization` headers are no credential.
pub(crate) fn owner_of_key(
    app: &App,
    kind: KeyKind,
    headers: &HeaderMap,
    now: Timestamp,
) -> Option<Arc<str>> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let (value, None) = (values.next()?, values.next()) else {
        return None;
    };
    let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let keys = Arc::clone(&app.keys.read());
    let key = key.trim();
    let found = keys.find(&app.keyring, kind, key, now)?;
    if found.outdated {
        app.rehash(found.key, key);
    }
    Some(Arc::clone(&found.key.owner))
}

async fn run(
    app: &App,
    agent: &Arc<Agent>,
    headers: &HeaderMap,
    now: Timestamp,
) -> Result<Arc<Run>, Refusal> {
    let mut values = headers.get_all(RUN_HEADER).iter();
    let found = match (values.next(), values.next()) {
        (None, _) => {
            // A halt on the run that calls without one share must not end with the silence that follows it.
            let halted = |run: &Run| {
                let target = Target {
                    api: "",
                    tool: "",
                    consequence: crate::call::Consequence::Read,
                    agent: "",
                    run: run.id.as_str(),
                };
                app.kill_switches.covering(&target).is_some()
            };
            app.runs.implicit_run(agent, now, halted).await
        }
        (Some(value), None) => match value
            .to_str()
            .ok()
            .and_then(|text| text.parse::<RunId>().ok())
        {
            Some(id) => app.runs.open_run(&id, &agent.name, now).await,
            None => Err(RunError::NotOpen),
        },
        (Some(_), Some(_)) => Err(RunError::NotOpen),
    };
    found.map_err(|error| match error {
        RunError::NotOpen => Refusal::new(
            Reason::Unauthenticated,
            "Toolgate-Run names no open run of this agent: it is unknown, ended or expired. Open one with POST /v1/runs, or leave the header out.",
        ),
        RunError::Act(error) => {
            tracing::warn!(%error, "a run could not be looked up or opened");
            Refusal::record_unavailable()
        }
    })
}
