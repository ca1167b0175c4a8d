//! What a call will touch, for those who are to approve it. Where a contract names a read, it is made before the call is parked:
//! what it answered is sealed with the arguments and shown to approvers, and its digest is part of what they approve. It is made
//! once more before the call is sent. If what is there is no longer what they saw, the approval is void.
//!
//! Without an answer nothing is parked: nobody would know what they approve, and nothing could be held against it later.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::{Map, Value, json};

use super::{
    Kept, Surface, ToolCall,
    forward::ApiAnswer,
    park::{queue_is_full, standing},
    reading,
    same::older,
};
use crate::{
    app::App,
    clock,
    contracts::Preview,
    ids::CallId,
    json,
    parked::Previewed,
    pipeline::authorize::Parking,
    reason::{Reason, Refusal},
    store::{self, StoreError},
};

/// The largest answer that is shown, as RFC 8785 text.
const MAX_BYTES: usize = 65_536;
/// How long a look is good for. What is not sent by then, because it could not be recorded, is looked at again.
pub(super) const GOOD_FOR: Duration = Duration::from_secs(2);

/// What must be known before a call is parked.
pub(super) enum Look {
    /// The same request waits already, or has been answered.
    Kept(Kept),
    /// What its approvers will see, where the contract wants that.
    Now(Option<Previewed>),
}

/// Reads what a call will touch that is about to be parked.
///
/// # Errors
/// When there is no answer that can be shown: nothing is parked then.
pub(super) async fn look(app: &Arc<App>, parking: &Parking) -> Result<Look, Refusal> {
    let call = &parking.call;
    let Some(wanted) = &call.tool.contract.preview else {
        return Ok(Look::Now(None));
    };
    if let Some(kept) = kept_already(app, call).await? {
        return standing(app, kept).map(Look::Kept);
    }
    let id = CallId::generate();
    match read(app, call, wanted, id.clone()).await {
        Ok(previewed) => Ok(Look::Now(Some(previewed))),
        Err(Unread::Halted(refusal) | Unread::Unrecorded(refusal)) => Err(refusal),
        Err(Unread::Because(why)) => {
            let mut refusal = Refusal::new(
                Reason::PreviewUnavailable,
                format!(
                    "The call would wait for a person, who must see what it will touch, and {} (call {id}) could not show it: {why}. Nothing was kept or sent.",
                    wanted.reading.tool
                ),
            )
            .retry_after(5);
            refusal.audit_detail = Some(json!({ "preview": id, "why": why }));
            Err(refusal)
        }
    }
}

/// The call that the same request has made before. An agent that asks again, or has as many calls waiting as may, does not set off
/// a read each time.
async fn kept_already(
    app: &App,
    call: &ToolCall,
) -> Result<Option<store::calls::CallRow>, Refusal> {
    let agent = &call.caller.agent;
    let most = i64::from(agent.max_pending_approvals);
    let mut digests = vec![call.digest.to_string()];
    digests.extend(older(app, call));
    let looked = async {
        let mut connection = app.pool.acquire().await?;
        if call.idempotency_key.is_none() {
            let run = &call.caller.run.id;
            let same =
                store::calls::same_request(&mut connection, &agent.name, None, run, &digests);
            if let Some(same) = same.await? {
                return Ok((Some(same), 0));
            }
        }
        let waiting = store::approvals::pending_of(&mut connection, &agent.name, most).await?;
        Ok((None, waiting))
    };
    let (same, waiting) = looked.await.map_err(|error: StoreError| {
        tracing::warn!(%error, call = %call.id, "a kept call could not be looked up");
        Refusal::record_unavailable()
    })?;
    if waiting >= most {
        return Err(queue_is_full(call));
    }
    Ok(same)
}

/// Why there is nothing to show.
enum Unread {
    Halted(Refusal),
    /// The database is away.
    Unrecorded(Refusal),
    /// In words that hold nothing of an answer.
    Because(&'static str),
}

async fn read(
    app: &Arc<App>,
    call: &ToolCall,
    wanted: &Preview,
    id: CallId,
) -> Result<Previewed, Unread> {
    let surface = Surface::Preview;
    let answer = reading::make(app, call, &wanted.reading, surface, id.clone())
        .await
        .map_err(|refusal| match refusal.reason {
            Reason::Halted => Unread::Halted(refusal),
            Reason::RecordUnavailable => Unread::Unrecorded(refusal),
            reason => Unread::Because(reason.code()),
        })?;
    previewed(app, wanted, &id, &answer).map_err(Unread::Because)
}

/// What an answer shows: that of a 2xx which fits its contract, cut to it, or that there is nothing there.
fn previewed(
    app: &App,
    wanted: &Preview,
    id: &CallId,
    answer: &ApiAnswer,
) -> Result<Previewed, &'static str> {
    let status = answer.status.as_u16();
    let value = match status {
        200..300 if answer.violation.is_some() => {
            return Err("its answer does not fit its contract");
        }
        200..300 => json::parse(&answer.body).map_err(|_no_json| "its answer is no JSON")?,
        404 | 410 => Value::Null,
        _ => return Err("it was answered with a status that shows nothing"),
    };
    let compared = if wanted.compare.is_empty() {
        json!({ "status": status, "answer": value })
    } else {
        let parts: Map<String, Value> = wanted
            .compare
            .iter()
            .filter_map(|pointer| Some((pointer.clone(), value.pointer(pointer)?.clone())))
            .collect();
        json!({ "status": status, "parts": parts })
    };
    let text = json::canonical_text(&value);
    if text.len() > MAX_BYTES {
        return Err("its answer is too large to be shown");
    }
    let whole = json!({ "answer": value, "status": status, "tool": wanted.reading.tool });
    Ok(Previewed {
        call: id.to_string(),
        tool: wanted.reading.tool.clone(),
        read_at: clock::now(),
        status,
        answer: text,
        compared: json::canonical_text(&compared),
        digest: app.keyring.call_digest(&json::canonical(&whole)),
    })
}

/// The digest that people approve: that of the call, and where they saw a preview that of the call and the preview together.
pub(super) fn approval_digest(app: &App, call: &str, previewed: Option<&Previewed>) -> Arc<str> {
    match previewed {
        None => call.into(),
        Some(previewed) => app.keyring.call_digest(&together(call, previewed)).into(),
    }
}

/// What approvers of the same have approved, under whichever master secret; `calls` are the digests of the call itself.
pub(super) fn approval_digests(
    app: &App,
    calls: Vec<String>,
    previewed: Option<&Previewed>,
) -> Vec<String> {
    let Some(seen) = previewed else {
        return calls;
    };
    calls
        .iter()
        .flat_map(|call| {
            let text = together(call, seen);
            let mut digests = vec![app.keyring.call_digest(&text)];
            digests.extend(app.keyring.older_call_digests(&text));
            digests
        })
        .collect()
}

/// Whether that is the digest of an approval, under whichever master secret.
pub(super) fn is_approval_digest(
    app: &App,
    digest: &str,
    call: &str,
    previewed: Option<&Previewed>,
) -> bool {
    let Some(seen) = previewed else {
        return digest == call;
    };
    let is_newest = *digest == *approval_digest(app, call, previewed);
    is_newest
        || app
            .keyring
            .older_call_digests(&together(call, seen))
            .any(|older| older == digest)
}

fn together(call: &str, previewed: &Previewed) -> Vec<u8> {
    json::canonical(&json!({ "call": call, "preview": previewed.digest }))
}

/// That what people approved is still there, and since when.
pub(super) struct Unchanged {
    /// The call that looked.
    pub call: CallId,
    seen_at: Instant,
}

impl Unchanged {
    /// Whether that was too long ago to be sure of it.
    pub fn is_stale(&self) -> bool {
        self.seen_at.elapsed() > GOOD_FOR
    }
}

/// Why an approved call may not be sent now.
pub(super) enum Differs {
    /// A kill switch covers the read: it is looked at again when that is released.
    Halted,
    /// The database is away.
    Away,
    /// It may never be sent: why, as the end of a sentence.
    Void(&'static str),
}

impl Differs {
    /// What the agent gets of a call that was begun before this was known, and that was not sent.
    pub fn after_claim(&self) -> Refusal {
        match self {
            Self::Halted => Refusal::new(
                Reason::Halted,
                "NOT executed. An operator halted this while the call was about to be sent. Make it again if it is still wanted.",
            ),
            Self::Away => Refusal::record_unavailable(),
            Self::Void(because) => Refusal::new(
                Reason::ApprovalVoided,
                format!("NOT executed. It was approved, but {because}."),
            ),
        }
    }
}

/// Reads once more what a call will touch, and holds it against what its approvers saw, if there were any. Nothing to hold where
/// its contract shows them nothing.
pub(super) async fn unchanged(
    app: &Arc<App>,
    call: &ToolCall,
    approved: Option<&Option<Previewed>>,
) -> Result<Option<Unchanged>, Differs> {
    let (wanted, approved) = match (&call.tool.contract.preview, approved) {
        (_, None) | (None, Some(None)) => return Ok(None),
        (Some(wanted), Some(Some(approved))) => (wanted, approved),
        // INVARIANT: what has a preview and was approved is not sent without one that was approved with it.
        (Some(_), Some(None)) | (None, Some(Some(_))) => {
            return Err(Differs::Void("what it will touch was never shown"));
        }
    };
    let seen_at = Instant::now();
    let id = CallId::generate();
    match read(app, call, wanted, id.clone()).await {
        Ok(now) if now.compared == approved.compared => Ok(Some(Unchanged { call: id, seen_at })),
        Ok(_another) => Err(Differs::Void(CHANGED)),
        Err(Unread::Halted(_)) => Err(Differs::Halted),
        Err(Unread::Unrecorded(_)) => Err(Differs::Away),
        Err(Unread::Because(_)) => Err(Differs::Void(
            "what it will touch could not be read once more before it was to be sent",
        )),
    }
}

const CHANGED: &str = "what it will touch is no longer what was shown to those who approved it";
