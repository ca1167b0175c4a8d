//! An approved call goes on by itself: it enters the pipeline again at `authorize`, under the policies, kill switches and
//! contract of this moment, and is sent at most once, whether or not its agent is still there.

use std::{sync::Arc, time::Duration};

use super::{
    Caller, Prefer, Surface, ToolCall,
    authorize::{self, ByHand, Earned, Verdict},
    before, by_hand, contract, forward,
    preview::{self, Differs, Unchanged},
    record::{self, ApprovedAs, Found, Held, NotClaimed, Settled},
};
use crate::{
    app::App,
    entry::Outcome,
    ids::{ApprovalId, CallId, RunId},
    parked::{self, OnlyOne, Previewed, Sealed},
    reason::{Reason, Refusal},
    store::{self, StoreError, approvals::ApprovalRow, calls::CallRow},
};

/// How long to wait before looking again when the database is away.
const PAUSE: Duration = Duration::from_millis(200);

/// Executes a call that is approved. Does nothing for a call that is not (any more), or that a kill switch covers now:
/// that one waits for the release.
pub async fn resume(app: Arc<App>, call: CallId) {
    if let Some(only_one) = app.resuming.begin(&call) {
        resume_alone(app, call, only_one).await;
    }
}

/// The same for whoever has the call already. Gives what the API answered, if the call was sent.
pub(super) async fn resume_alone(
    app: Arc<App>,
    call: CallId,
    _only_one: OnlyOne,
) -> Option<Settled> {
    loop {
        match attempt(&app, &call).await {
            Ok(settled) => return settled,
            Err(error) => {
                tracing::warn!(%error, %call, "an approved call waits for the database");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// What must be known to go on.
struct Approved {
    row: CallRow,
    /// None where nobody had to approve it: a call that came while it was halted.
    approval: Option<ApprovalRow>,
    tiers: Vec<String>,
}

async fn load(app: &App, call: &CallId) -> Result<Option<Approved>, StoreError> {
    let mut connection = app.pool.acquire().await?;
    let Some(row) = store::calls::find(&mut connection, call.as_str()).await? else {
        return Ok(None);
    };
    if row.state != "approved" {
        return Ok(None);
    }
    let Some(id) = row.approval_id.clone() else {
        return Ok(Some(Approved {
            row,
            approval: None,
            tiers: Vec::new(),
        }));
    };
    let Some(approval) = store::approvals::find(&mut connection, &id).await? else {
        return Ok(None);
    };
    let tiers = store::composition::tiers(&mut connection, std::slice::from_ref(&id)).await?;
    Ok(Some(Approved {
        row,
        approval: Some(approval),
        tiers: tiers.into_iter().map(|row| row.tier).collect(),
    }))
}

async fn attempt(app: &Arc<App>, id: &CallId) -> Result<Option<Settled>, StoreError> {
    let Some(approved) = load(app, id).await? else {
        return Ok(None);
    };
    let approval = match &approved.approval {
        None => None,
        Some(row) => match row.approval_id.parse::<ApprovalId>() {
            Ok(approval) => Some(approval),
            Err(_not_an_id) => return Ok(None),
        },
    };
    if let Some(overdue) = approved.approval.as_ref().filter(|row| row.overdue) {
        return expire(app, overdue).await.map(unsent);
    }
    let (call, previewed) = match rebuild(app, id, &approved).await? {
        Ok(rebuilt) => rebuilt,
        Err(because) => return void(app, &approved, &because).await.map(unsent),
    };
    let mut trail = record::Trail::resumed(&call);
    let earned = Earned::of(approved.tiers.iter().cloned());
    let permit = match authorize::authorize(app, call, &earned, &mut trail) {
        Ok(Verdict::Permit(permit)) if by_hand::is_for_people(app, &approved.tiers) => {
            let listed = by_hand::list_approved(app, permit, approval, None).await;
            return listed.map(unsent);
        }
        Ok(Verdict::Permit(permit)) => permit,
        Ok(Verdict::ByHand(ByHand {
            permit,
            kill_switch,
        })) => {
            let halted = Some(kill_switch);
            let listed = by_hand::list_approved(app, permit, approval, halted).await;
            return listed.map(unsent);
        }
        Err(refusal) if refusal.reason == Reason::Halted => return Ok(None),
        Ok(Verdict::Park(parking)) => {
            let because = asks_for_more(&parking.tiers);
            return void(app, &approved, &because).await.map(unsent);
        }
        Err(refusal) => {
            let because = no_longer(&refusal);
            return void(app, &approved, &because).await.map(unsent);
        }
    };
    let before = match before::read(app, permit.call()).await {
        Ok(before) => before,
        Err(refusal) if refusal.reason == Reason::Halted => return Ok(None),
        Err(_unread) => {
            let because = "the state before could not be read, which its contract wants".to_owned();
            return void(app, &approved, &because).await.map(unsent);
        }
    };
    // What nobody had to approve nobody was shown.
    let previewed = approved.approval.as_ref().map(|_| previewed);
    // Last, so that as little time as can be lies between this look and the sending.
    let unchanged = match preview::unchanged(app, permit.call(), previewed.as_ref()).await {
        Ok(unchanged) => unchanged,
        Err(Differs::Halted) => return Ok(None),
        Err(Differs::Away) => return Err(StoreError::Unavailable(UNRECORDED_LOOK.to_owned())),
        Err(Differs::Void(because)) => return void(app, &approved, because).await.map(unsent),
    };
    let found = Found {
        before,
        preview: unchanged.as_ref().map(|unchanged| unchanged.call.clone()),
    };
    let approval = approved_as(&approved, approval);
    let recorded = match claim(app, id, permit, approval, found).await {
        Ok(recorded) => recorded,
        Err(NotClaimed::Overdue) => {
            return match &approved.approval {
                Some(approval) => expire(app, approval).await.map(unsent),
                None => Ok(None),
            };
        }
        Err(NotClaimed::Void(because)) => return void(app, &approved, because).await.map(unsent),
        Err(NotClaimed::Taken | NotClaimed::Halted | NotClaimed::Unrecorded) => return Ok(None),
    };
    Ok(Some(
        send(app, recorded, previewed.as_ref(), unchanged).await,
    ))
}

/// Nothing was sent.
fn unsent<T>((): ()) -> Option<T> {
    None
}

/// Sends a call that was claimed, unless too long ago was looked whether what its approvers saw is still there, and it is not.
async fn send(
    app: &Arc<App>,
    recorded: super::Recorded,
    previewed: Option<&Option<Previewed>>,
    unchanged: Option<Unchanged>,
) -> Settled {
    let differs = match unchanged {
        Some(unchanged) if unchanged.is_stale() => {
            let again = preview::unchanged(app, recorded.call(), previewed).await;
            again.err()
        }
        _ => None,
    };
    let exchange = match differs {
        None => forward::forward(app, recorded).await,
        Some(differs) => forward::withheld(recorded, differs.after_claim()),
    };
    record::outcome(app, exchange).await
}

const UNRECORDED_LOOK: &str = "a look at what a call will touch could not be recorded";

/// An approval as its call is held against it. `rebuild` has found its digest right.
fn approved_as(approved: &Approved, id: Option<ApprovalId>) -> Option<ApprovedAs> {
    let row = approved.approval.as_ref()?;
    Some(ApprovedAs {
        id: id?,
        digest: row.digest.as_str().into(),
    })
}

fn asks_for_more(tiers: &[String]) -> String {
    format!(
        "the policies now ask for the approval of {} as well",
        tiers.join(", ")
    )
}

fn no_longer(refusal: &Refusal) -> String {
    match refusal.reason {
        Reason::ScopeMissing => "the agent no longer has the scope".to_owned(),
        _ => format!(
            "the policies no longer permit it: {}",
            refusal.policies.join(", ")
        ),
    }
}

/// Whether a call that waits on the work list may still be done, by the policies, scopes and contract of this moment, as
/// `resume` would ask. What comes back is to be held against the votes in the transaction of the claim; nothing comes back for a
/// call that was claimed before, or is over. One that may not be done any more is ended.
///
/// # Errors
/// The refusal for the operator who wants to claim it.
pub async fn may_claim(app: &Arc<App>, id: &CallId) -> Result<Option<Held>, Refusal> {
    let Some(approved) = load(app, id).await.map_err(|error| away(&error, id))? else {
        return Ok(None);
    };
    let approval = approved.approval.as_ref();
    let approval_id = approval.and_then(|row| row.approval_id.parse::<ApprovalId>().ok());
    if approval.is_some() != approval_id.is_some() {
        return Err(Refusal::new(
            Reason::Internal,
            "The call's approval has no valid id; tell an operator.",
        ));
    }
    let because = match rebuild(app, id, &approved)
        .await
        .map_err(|error| away(&error, id))?
    {
        Err(because) => because,
        Ok((call, _previewed)) => {
            let held = Held::of(&call, approved_as(&approved, approval_id));
            let mut trail = record::Trail::resumed(&call);
            let earned = Earned::of(approved.tiers.iter().cloned());
            match authorize::authorize(app, call, &earned, &mut trail) {
                Ok(Verdict::Permit(_) | Verdict::ByHand(_)) => return Ok(Some(held)),
                Ok(Verdict::Park(parking)) => asks_for_more(&parking.tiers),
                Err(refusal) if refusal.reason == Reason::Halted => return Err(refusal),
                Err(refusal) => no_longer(&refusal),
            }
        }
    };
    void(app, &approved, &because)
        .await
        .map_err(|error| away(&error, id))?;
    Err(taken_off(&because))
}

/// Ends a call that an operator wanted to do by hand and that did not hold against what was approved; what to tell them.
pub async fn not_claimed(app: &Arc<App>, id: &CallId, why: NotClaimed) -> Refusal {
    let ended = async {
        match (why, load(app, id).await?) {
            (NotClaimed::Void(because), Some(approved)) => void(app, &approved, because).await,
            (
                NotClaimed::Overdue,
                Some(Approved {
                    approval: Some(approval),
                    ..
                }),
            ) => expire(app, &approval).await,
            _ => Ok(()),
        }
    };
    if let Err(error) = ended.await {
        return away(&error, id);
    }
    match why {
        NotClaimed::Void(because) => taken_off(because),
        NotClaimed::Overdue => taken_off("the time of its approval is over"),
        NotClaimed::Halted => Refusal::new(
            Reason::Halted,
            "A kill switch covers this call, so nobody may do it now; nothing was changed. Resume first.",
        ),
        NotClaimed::Taken | NotClaimed::Unrecorded => Refusal::new(
            Reason::Conflict,
            "This call was taken or has ended meanwhile; nothing was changed. Read the item.",
        ),
    }
}

fn away(error: &StoreError, id: &CallId) -> Refusal {
    tracing::warn!(%error, call = %id, "a call of the work list could not be looked at again");
    Refusal::record_unavailable()
}

fn taken_off(because: &str) -> Refusal {
    Refusal::new(
        Reason::Conflict,
        format!("This call may not be done any more: {because}. It has been taken off the list."),
    )
}

/// Takes the call, through any number of lost connections. INVARIANT: only one task of this process is here for one
/// call (`App::resuming`), only one gateway serves a database, and one that has been superseded learns nothing more from it
/// (`Recorder::is_healthy`), so a row that turns from `approved` to `executing` while we ask is our own claim.
async fn claim(
    app: &Arc<App>,
    id: &CallId,
    mut permit: super::Permit,
    approval: Option<ApprovedAs>,
    found: Found,
) -> Result<super::Recorded, NotClaimed> {
    let mut in_doubt = false;
    loop {
        let (back, why) = match record::claim(app, permit, approval.clone(), found.clone()).await {
            Ok(recorded) => return Ok(recorded),
            Err(refused) => refused,
        };
        permit = back;
        // Whoever took it may have been ourselves, by an earlier try that was given up and happened after all.
        match why {
            NotClaimed::Unrecorded => {}
            NotClaimed::Taken if in_doubt => {}
            why => return Err(why),
        }
        in_doubt = true;
        loop {
            tokio::time::sleep(PAUSE).await;
            match state(app, id).await.as_deref() {
                None => {}
                Some("approved") => break,
                Some("executing") => {
                    let id = approval.map(|approval| approval.id);
                    return Ok(record::claimed_before(app, permit, id));
                }
                Some(_) => return Err(NotClaimed::Taken),
            }
        }
    }
}

/// `None` while the database does not answer.
async fn state(app: &App, id: &CallId) -> Option<String> {
    if !app.recorder.is_healthy() {
        return None;
    }
    let mut connection = app.pool.acquire().await.ok()?;
    let row = store::calls::find(&mut connection, id.as_str())
        .await
        .ok()??;
    Some(row.state)
}

/// What an approved call says that was not sent in its time.
const TOO_LATE: &str = "NOT executed. It was approved, but could not be sent before its time was over. Make it again if it is still wanted.";

async fn expire(app: &App, approval: &ApprovalRow) -> Result<(), StoreError> {
    tracing::warn!(approval = %approval.approval_id, "an approved call has expired");
    parked::end_unsent(
        &app.recorder,
        &app.waiters,
        approval,
        Outcome::Expired,
        TOO_LATE,
    )
    .await
    .map(|_ended| ())
    .map_err(|error| StoreError::Unavailable(error.to_string()))
}

async fn void(app: &App, approved: &Approved, because: &str) -> Result<(), StoreError> {
    tracing::warn!(call = %approved.row.call_id, because, "a call that waited is voided");
    let Some(approval) = &approved.approval else {
        let because = format!("NOT executed. It waited to be done by hand, but {because}.");
        return by_hand::void(app, &approved.row, &because).await;
    };
    let because = format!("NOT executed. It was approved, but {because}.");
    parked::end_unsent(
        &app.recorder,
        &app.waiters,
        approval,
        Outcome::Voided,
        &because,
    )
    .await
    .map(|_ended| ())
    .map_err(|error| StoreError::Unavailable(error.to_string()))
}

/// The call as it was parked, with what its approvers saw of what it will touch, from what was sealed; or why it no longer is that
/// call.
async fn rebuild(
    app: &App,
    id: &CallId,
    approved: &Approved,
) -> Result<Result<(ToolCall, Option<Previewed>), String>, StoreError> {
    let row = &approved.row;
    let Some(agent) = app.config.agents.get(row.agent.as_str()) else {
        return Ok(Err("its agent is no longer known".to_owned()));
    };
    let Some(tool) = app.tools.get(&row.tool) else {
        return Ok(Err("its tool no longer exists".to_owned()));
    };
    if *tool.digest != *row.contract_digest {
        return Ok(Err("the tool's contract has changed since".to_owned()));
    }
    let sealed = row
        .sealed
        .as_deref()
        .and_then(|sealed| app.keyring.open(id.as_str(), sealed).ok())
        .and_then(|plain| serde_json::from_slice::<Sealed>(&plain).ok());
    let Some(sealed) = sealed else {
        return Ok(Err(
            "what was sealed of it does not open with any master secret of the config".to_owned(),
        ));
    };
    let Ok(run_id) = row.run_id.parse::<RunId>() else {
        return Ok(Err("its run is unknown".to_owned()));
    };
    let run = match app.runs.find(&run_id).await {
        Ok(Some(run)) => run,
        Ok(None) => return Ok(Err("its run is unknown".to_owned())),
        Err(error) => return Err(StoreError::Unavailable(error.to_string())),
    };
    let caller = Caller {
        agent: Arc::clone(agent),
        run,
    };
    let arguments = serde_json::Value::Object(sealed.arguments);
    // What was approved keeps its digest, whichever master secret made it.
    let digest: Arc<str> = row.digest.as_str().into();
    let same = *contract::digest(app, &caller, tool, &arguments) == *digest
        || contract::older_digests(app, &caller, tool, &arguments).contains(&row.digest);
    let previewed = sealed.preview;
    let is_approved = approved.approval.as_ref().is_none_or(|approval| {
        preview::is_approval_digest(app, &approval.digest, &digest, previewed.as_ref())
    });
    if !same || !is_approved {
        return Ok(Err("its digest is not the one that was approved".to_owned()));
    }
    let redacted = app.redactor.redact(&tool.marks, &arguments);
    let format = contract::format_from(sealed.format.as_deref());
    let Ok(request) = contract::build(tool, &arguments, format) else {
        return Ok(Err("its arguments no longer fit the contract".to_owned()));
    };
    let call = ToolCall {
        id: id.clone(),
        surface: match sealed.surface.as_str() {
            "transparent" => Surface::Transparent,
            _ => Surface::ToolCall,
        },
        caller,
        tool: Arc::clone(tool),
        arguments,
        format,
        request,
        redacted,
        digest,
        words: sealed.words,
        idempotency_key: None,
        before_of: None,
        prefer: Prefer::default(),
        traceparent: None,
        received_at: row.received_at,
    };
    Ok(Ok((call, previewed)))
}
