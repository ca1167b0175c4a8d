//! Whether a request is one that came before: by the agent's key, or by its digest, under whichever master secret.

use super::{Kept, ToolCall, contract::older_digests, park::standing};
use crate::{
    app::App,
    json,
    reason::{Reason, Refusal},
    store::{self, calls::CallRow},
};

/// An agent's key for a request, as it is kept: by a digest, because an agent may put anything into it. The digest is not keyed,
/// so that no key is forgotten, and nothing done twice, when a master secret is dropped.
#[derive(Debug, Clone)]
pub struct IdempotencyKey {
    /// What is kept of it.
    pub kept: String,
    /// What was kept of it before only digests were.
    before: Option<String>,
}

impl IdempotencyKey {
    /// From what the agent sent.
    pub(super) fn of(agent: &str, key: &str) -> Self {
        const PREFIX: &str = "sha256:";
        Self {
            kept: format!(
                "{PREFIX}{}",
                json::sha256_hex(format!("idempotency key\n{agent}\n{key}"))
            ),
            // No agent can name a row by its digest.
            before: (!key.starts_with(PREFIX)).then(|| key.to_owned()),
        }
    }

    /// Everything by which a row of it may be found.
    fn all(&self) -> Vec<String> {
        std::iter::once(&self.kept)
            .chain(&self.before)
            .cloned()
            .collect()
    }
}

/// The call that this agent began with the same idempotency key, if it sent one.
pub(super) async fn same_key(app: &App, call: &ToolCall) -> Result<Option<Kept>, Refusal> {
    let Some(key) = &call.idempotency_key else {
        return Ok(None);
    };
    let away = |error: store::StoreError| {
        tracing::warn!(%error, "a kept call could not be looked up");
        Refusal::record_unavailable()
    };
    let mut connection = app
        .pool
        .acquire()
        .await
        .map_err(|error| away(error.into()))?;
    let found = store::calls::same_request(
        &mut connection,
        &call.caller.agent.name,
        Some(&key.all()),
        &call.caller.run.id,
        &[],
    )
    .await
    .map_err(away)?;
    drop(connection);
    match found {
        None => Ok(None),
        Some(row) if *row.digest == *call.digest || older(app, call).contains(&row.digest) => {
            standing(app, row).map(Some)
        }
        Some(row) if made_under_a_lost_secret(app, &row) => Err(Refusal::new(
            Reason::IdempotencyKeyReused,
            format!(
                "This Idempotency-Key was used under a master secret that the gateway no longer has, so nobody can say whether this is the same request. Nothing was sent: ask GET /v1/calls/{}, and use a new key for a new call.",
                row.call_id
            ),
        )),
        Some(_) => Err(Refusal::new(
            Reason::IdempotencyKeyReused,
            "This Idempotency-Key was used for another request (tool, arguments or run differ). Nothing was sent: use a new key for a new call.",
        )),
    }
}

/// The call that came before with the same arguments in the same run, has no key either, and was kept because it had to wait, for
/// people's votes or for their hands. Whatever has become of it, this one must not be sent as well. Only a tool whose calls may have
/// to wait is looked for.
pub(super) async fn waited_before(app: &App, call: &ToolCall) -> Result<Option<Kept>, Refusal> {
    if call.idempotency_key.is_some() || !call.tool.calls_may_wait {
        return Ok(None);
    }
    let away = |error: store::StoreError| {
        tracing::warn!(%error, "a kept call could not be looked up");
        Refusal::record_unavailable()
    };
    let mut digests = vec![call.digest.to_string()];
    digests.extend(older(app, call));
    let mut connection = app
        .pool
        .acquire()
        .await
        .map_err(|error| away(error.into()))?;
    let found = store::calls::same_request(
        &mut connection,
        &call.caller.agent.name,
        None,
        &call.caller.run.id,
        &digests,
    )
    .await
    .map_err(away)?;
    drop(connection);
    found.map(|row| standing(app, row)).transpose()
}

/// The digests that this call would have had before the rotations.
pub(super) fn older(app: &App, call: &ToolCall) -> Vec<String> {
    older_digests(app, &call.caller, &call.tool, &call.arguments)
}

fn made_under_a_lost_secret(app: &App, row: &CallRow) -> bool {
    row.secret_id
        .as_ref()
        .is_some_and(|id| !app.keyring.secret_ids().contains(id))
}
