//! Calls that people do instead of the gateway: those that a kill switch covers and whose contract says so, and those that were
//! approved in a tier whose calls are done by hand. They have passed everything that a call passes before it is sent, and
//! stand in the state `approved`: whoever takes one first, an operator or (once the halt is released) the gateway, has it.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde_json::{Value, json};

use super::{
    Permit, ToolCall,
    authorize::ByHand,
    contract,
    forward::ApiAnswer,
    park::{self, Kept, Parked},
    record::unrecorded,
    same::older,
    seen::Seen,
    shown,
};
use crate::{
    app::{App, Tool},
    clock,
    config::Execution,
    entry::{Decision, Entry, Kind, Outcome},
    ids::{ApprovalId, CallId, KillSwitchId},
    parked,
    reason::{Reason, Refusal},
    store::{
        self, StoreError,
        calls::{CallRow, NewCall},
        work::NewWork,
    },
};

/// Whether a call that these tiers have approved is done by hand, halted or not.
pub(super) fn is_for_people(app: &App, tiers: &[String]) -> bool {
    tiers.iter().any(|name| {
        app.config
            .tiers
            .get(name.as_str())
            .is_some_and(|tier| tier.execution == Execution::WorkList)
    })
}

/// Keeps a call that just came in, on the work list. The same request finds the call that waits already.
pub(super) async fn list_new(app: &App, by_hand: ByHand) -> Result<(ToolCall, Kept), Refusal> {
    let ByHand {
        permit,
        kill_switch,
    } = by_hand;
    let sealed = park::seal(app, permit.call(), None)?;
    let entry = Entry {
        opens_call: true,
        ..listed_entry(app, &permit, None, Some(&kill_switch))
    };
    let mut digests = vec![permit.call().digest.to_string()];
    digests.extend(older(app, permit.call()));
    let secret_id = app.keyring.secret_id();
    let permit = Arc::new(permit);
    let kept = Arc::clone(&permit);
    let listed = app
        .recorder
        .act(move |connection| {
            async move {
                let call = kept.call();
                let (agent, tool) = (&call.caller.agent, &call.tool);
                // The writer runs one transaction after the other, so nobody lists the same request in between.
                if call.idempotency_key.is_none()
                    && let Some(row) = store::calls::same_request(
                        connection,
                        &agent.name,
                        None,
                        &call.caller.run.id,
                        &digests,
                    )
                    .await?
                {
                    return Ok((Vec::new(), Parked::Existing(Box::new(row))));
                }
                let waiting = store::work::waiting_of(connection, &agent.name).await?;
                if waiting >= i64::from(agent.max_pending_approvals) {
                    return Ok((Vec::new(), Parked::QueueFull));
                }
                let added = store::calls::add(
                    connection,
                    &NewCall {
                        call_id: &call.id,
                        run_id: &call.caller.run.id,
                        agent: &agent.name,
                        tool: &tool.name,
                        digest: &call.digest,
                        contract_digest: &tool.digest,
                        secret_id: &secret_id,
                        idempotency_key: call.idempotency_key.as_ref().map(|key| key.kept.as_str()),
                        sealed: Some(&sealed),
                        state: "approved",
                        received_at: call.received_at,
                    },
                )
                .await?;
                if !added {
                    return Ok((Vec::new(), Parked::KeyTaken));
                }
                store::work::add(connection, &new_work(call, Some(&kill_switch))).await?;
                Ok((vec![entry], Parked::New))
            }
            .boxed()
        })
        .await
        .map_err(unrecorded)?;
    // The work is done and has let go of its share.
    let permit = Arc::try_unwrap(permit).map_err(|_shared| {
        Refusal::new(
            Reason::Internal,
            "The call was kept, but its answer could not be made.",
        )
    })?;
    let (call, _, _) = permit.into_parts();
    park::found(app, call, listed, None).await
}

/// Puts a call that was kept before on the work list, once.
pub(super) async fn list_approved(
    app: &App,
    permit: Permit,
    approval: Option<ApprovalId>,
    kill_switch: Option<KillSwitchId>,
) -> Result<(), StoreError> {
    let id = &permit.call().id;
    let mut connection = app.pool.acquire().await?;
    // It is looked at again every few seconds for as long as it waits.
    if store::work::is_listed(&mut connection, id).await? {
        return Ok(());
    }
    drop(connection);
    let entry = listed_entry(app, &permit, approval, kill_switch.as_ref());
    app.recorder
        .act(move |connection| {
            async move {
                let work = new_work(permit.call(), kill_switch.as_ref());
                let added = store::work::add(connection, &work).await?;
                Ok((if added { vec![entry] } else { Vec::new() }, ()))
            }
            .boxed()
        })
        .await
        .map_err(|error| StoreError::Unavailable(error.to_string()))
}

fn new_work<'a>(call: &'a ToolCall, kill_switch: Option<&'a KillSwitchId>) -> NewWork<'a> {
    NewWork {
        call_id: &call.id,
        because: if kill_switch.is_some() {
            "halted"
        } else {
            "tier"
        },
        run_id: call.caller.run.id.as_str(),
        agent: &call.caller.agent.name,
        api: &call.tool.api,
        tool: &call.tool.name,
        kill_switch_id: kill_switch.map(KillSwitchId::as_str),
    }
}

fn listed_entry(
    app: &App,
    permit: &Permit,
    approval: Option<ApprovalId>,
    kill_switch: Option<&KillSwitchId>,
) -> Entry {
    let call = permit.call();
    Entry {
        call_id: Some(call.id.clone()),
        run_id: Some(call.caller.run.id.clone()),
        approval_id: approval,
        kill_switch_id: kill_switch.cloned(),
        agent: Some(Arc::clone(&call.caller.agent.name)),
        surface: Some(call.surface.as_str()),
        api: Some(Arc::clone(&call.tool.api)),
        tool: Some(Arc::clone(&call.tool.name)),
        consequence: Some(call.tool.contract.consequence),
        contract_digest: Some(Arc::clone(&call.tool.digest)),
        policy_digest: Some(Arc::clone(&app.policy_digest)),
        arguments: Some(call.redacted.clone()),
        arguments_digest: Some(Arc::clone(&call.digest)),
        decision: Some(Decision::Permit),
        reasons: vec![Reason::ByHand.code()],
        policies: permit.policies().to_vec(),
        received_at: Some(call.received_at),
        decided_at: Some(permit.decided_at()),
        words: call.words.clone(),
        ..Entry::new(Kind::WorkListed)
    }
}

/// Ends a call of the work list that nobody had to approve and that may not be done any more.
pub(super) async fn void(app: &App, row: &CallRow, because: &str) -> Result<(), StoreError> {
    let Ok(call) = row.call_id.parse::<CallId>() else {
        return Ok(());
    };
    let ending = parked::unsent(call.clone(), Outcome::Voided, because);
    let entry = Entry {
        call_id: Some(call.clone()),
        run_id: row.run_id.parse().ok(),
        agent: Some(row.agent.as_str().into()),
        tool: Some(row.tool.as_str().into()),
        reasons: vec![Reason::ApprovalVoided.code()],
        outcome: Some(Outcome::Voided),
        executed: Some(false),
        finished_at: Some(clock::now()),
        detail: Some(json!({ "why": because })),
        ..Entry::new(Kind::Ended)
    };
    app.recorder
        .act(move |connection| {
            async move {
                let ended = store::calls::finish(connection, &ending).await?;
                Ok((if ended { vec![entry] } else { Vec::new() }, ()))
            }
            .boxed()
        })
        .await
        .map_err(|error| StoreError::Unavailable(error.to_string()))?;
    app.waiters.wake(&call);
    Ok(())
}

/// The answer of a call that an operator found or brought about, as the agent will get it and as the record may know it.
#[derive(Debug)]
pub struct ByHandAnswer {
    /// Sealed, for the agent.
    pub sealed: Vec<u8>,
    /// Status of the answer.
    pub status: u16,
    /// For the record.
    pub seen: Seen,
}

/// Makes an answer of what an operator gives as the result, held to the contract as the API's own answer would be, recorded as that
/// would be, and shown to the agent of `run` by the same rules.
///
/// # Errors
/// 422 where it claims success and does not fit the contract; `record_unavailable` where the run cannot be read.
pub async fn answer_by_hand(
    app: &App,
    tool: &Arc<Tool>,
    (call, run): (&CallId, Option<&str>),
    status: u16,
    result: &Value,
) -> Result<ByHandAnswer, Refusal> {
    tool.contract
        .validate_output(status, result)
        .map_err(contract::invalid)?;
    let malformed = || {
        Refusal::new(
            Reason::MalformedBody,
            "\"status\" must be a status that an API answers with, from 200 to 599.",
        )
    };
    let code = StatusCode::from_u16(status).map_err(|_invalid| malformed())?;
    if !(200..600).contains(&status) {
        return Err(malformed());
    }
    let mut value = result.clone();
    let mut headers = HeaderMap::new();
    let body = if result.is_null() {
        Bytes::new()
    } else {
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        Bytes::from(result.to_string())
    };
    let mut answer = ApiAnswer {
        status: code,
        headers,
        seen: Seen::digest_of(app, &body),
        body,
        violation: None,
    };
    if tool.contract.output.is_some() && code.is_success() {
        Seen::fitting(app, tool, &mut answer, &mut value);
    }
    let run = match run.and_then(|run| run.parse().ok()) {
        Some(run) => app.runs.find(&run).await.map_err(|error| {
            tracing::warn!(%error, %call, "the run of a call could not be read");
            Refusal::record_unavailable()
        })?,
        None => None,
    };
    let asker = shown::Asker {
        tool,
        run: run.as_deref(),
        is_agent: true,
    };
    shown::show(app, asker, &mut answer, (!value.is_null()).then_some(value)).await;
    let sealed = app
        .keyring
        .seal(call.as_str(), &answer.to_bytes())
        .map_err(|error| {
            tracing::error!(%error, %call, "an answer could not be sealed");
            Refusal::new(Reason::Internal, "The answer could not be kept.")
        })?;
    Ok(ByHandAnswer {
        sealed,
        status,
        seen: answer.seen,
    })
}
