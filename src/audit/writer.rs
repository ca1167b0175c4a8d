//! The one writer: drains what has queued, commits it in one statement, wakes the waiters. When the database goes
//! away it keeps what must be told, comes back by itself, and finds out whether its last commit happened.

use std::{
    collections::{HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::sync::{mpsc, oneshot};

use super::{
    ActError, Change, Job, Queued, Work, late::not_sent, link::Chain, open_calls::OpenCalls,
    publishing::Publisher,
};
use crate::{
    clock::{self, Timestamp},
    entry::{Entry, Kind, chain::Hash},
    ids::{CallId, InstanceId},
    metrics::Metrics,
    redaction::Redactor,
    store::{self, StoreError},
    tenure::Tenure,
};

mod begin;
mod recover;

/// Entries in one statement at the most: what 256 callers and their outcomes can bring, twice over.
const BATCH: usize = 1_024;
/// How long the database may take for one commit before the connection is given up.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(6);
/// How often the database is asked whether it is there while there is nothing to record.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// How often it is noted up to when everything is settled.
const SETTLE_EVERY: Duration = Duration::from_secs(5);

/// Calls in [`Writer::given_up`] at the most: more than can wait at the same time.
const GIVEN_UP: usize = 2 * super::QUEUE;

/// What became of a transaction of its own.
enum Acted {
    /// It stands.
    Done(Vec<Entry>),
    /// The database said no; nothing of it stands.
    Refused(StoreError),
    /// The connection broke before it was to be committed; nothing of it stands.
    Undone,
    /// The connection broke while it was being committed.
    Unknown(Asked),
}

/// What a COMMIT was asked for.
struct Asked {
    entries: Vec<Entry>,
    at: Timestamp,
    hashes: Vec<Hash>,
    since: Instant,
}

pub(super) struct Writer {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    healthy: Arc<AtomicBool>,
    chain: Chain,
    redactor: Arc<Redactor>,
    /// What must be committed next, in order. Empty while all is well and nobody calls.
    pending: VecDeque<Queued>,
    /// When the first of them was last tried: the time that it bears if that try happened after all.
    tried_at: Timestamp,
    /// When that try began, by a clock that only rises.
    tried_since: Instant,
    /// The hashes that the entries of that try bear.
    tried: Vec<Hash>,
    /// The time of the last entry that stands. Times only ever rise, whatever the clock does; a clock that jumped ahead and came
    /// back leaves no trace unless something was recorded meanwhile.
    latest: Timestamp,
    /// Calls whose opening entry stands although their caller was told that it does not. Their refusal, which is on its way,
    /// must not open them a second time.
    given_up: HashSet<CallId>,
    open: OpenCalls,
    /// Confirmed by every answer of the database; where it is superseded, this writer is over.
    tenure: Arc<Tenure>,
    /// Makes checkpoints of what stands; none before this instance has begun.
    publisher: Option<Publisher>,
    metrics: Arc<Metrics>,
}

impl Writer {
    pub(super) fn new(
        options: PgConnectOptions,
        connection: PgConnection,
        instance: InstanceId,
        healthy: Arc<AtomicBool>,
        redactor: Arc<Redactor>,
        metrics: Arc<Metrics>,
        tenure: Arc<Tenure>,
    ) -> Self {
        Self {
            options,
            connection: Some(connection),
            healthy,
            chain: Chain::new(instance),
            redactor,
            pending: VecDeque::new(),
            tried_at: clock::now(),
            tried_since: Instant::now(),
            tried: Vec::new(),
            latest: clock::now(),
            given_up: HashSet::new(),
            open: OpenCalls::default(),
            tenure,
            publisher: None,
            metrics,
        }
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut settle = tokio::time::interval(SETTLE_EVERY);
        settle.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut ask = tokio::time::interval(ASK_EVERY);
        ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !self.tenure.is_superseded() {
            let due = self.publisher.as_ref().and_then(Publisher::due);
            let job = tokio::select! {
                biased;
                job = queue.recv() => job,
                () = until(due) => {
                    self.publish();
                    continue;
                }
                _ = settle.tick() => {
                    self.note_settled().await;
                    continue;
                }
                _ = ask.tick() => {
                    self.ask().await;
                    continue;
                }
            };
            let Some(job) = job else { break };
            let mut next = Some(job);
            while let Some(job) = next.take() {
                match job {
                    Job::Entry(queued) => {
                        self.take_in(*queued);
                        next = self.drain(&mut queue);
                        self.commit_pending().await;
                    }
                    Job::Act { work, done } => {
                        // Whoever asked has given up: nothing may happen behind their back.
                        if done.is_closed() {
                            continue;
                        }
                        match self.act(work).await {
                            Acted::Done(entries) => self.tell(done, &entries),
                            Acted::Refused(error) => {
                                let _ = done.send(Err(ActError::Store(error)));
                            }
                            Acted::Undone => {
                                let _ = done.send(Err(ActError::Unrecorded));
                                self.back("a transaction broke").await;
                            }
                            Acted::Unknown(asked) => {
                                self.reconnect("the answer to a commit is lost").await;
                                if self.stands(asked.hashes.len()).await {
                                    self.asked_stands(&asked);
                                    self.tell(done, &asked.entries);
                                } else {
                                    let _ = done.send(Err(ActError::Unrecorded));
                                }
                            }
                        }
                        self.commit_pending().await;
                    }
                    Job::Flush(done) => {
                        let _ = done.send(());
                    }
                    Job::Close(done) => {
                        self.publish();
                        if let Some(mut connection) = self.connection.take() {
                            // Without it the next start waits until this one certainly sends nothing more.
                            let _ =
                                store::instances::end(&mut connection, self.chain.instance()).await;
                            let _ = connection.close().await;
                        }
                        let _ = done.send(());
                        return;
                    }
                }
            }
        }
        queue.close();
        while let Ok(job) = queue.try_recv() {
            if let Job::Entry(queued) = job {
                self.pending.push_back(*queued);
            }
        }
        self.tell_log();
    }

    /// Takes an entry for the next commit. Nothing that is pending has been tried yet.
    fn take_in(&mut self, mut queued: Queued) {
        let given_up = |queued: &Queued| {
            queued.entry.kind == Some(Kind::Intent)
                && queued.done.as_ref().is_some_and(|done| done.is_closed())
        };
        // Its caller was told that nothing happened; the refusal tells of it.
        if given_up(&queued) {
            return;
        }
        let late = queued.entry.kind == Some(Kind::Refusal)
            && queued.entry.reasons == ["record_unavailable"];
        if let Some(call) = queued.entry.call_id.as_ref().filter(|_| late) {
            self.pending
                .retain(|other| !given_up(other) || other.entry.call_id.as_ref() != Some(call));
            if self.given_up.remove(call) {
                queued.entry.opens_call = false;
            }
        }
        // The gateway's own public keys, which must stand as they are.
        if queued.entry.kind != Some(Kind::SigningKeyChanged) {
            self.redactor.scrub(&mut queued.entry);
        }
        self.pending.push_back(queued);
    }

    /// Tells whoever asked for a transaction of its own that it stands. If they have gone, they were told that it does not.
    fn tell(&mut self, done: oneshot::Sender<Result<(), ActError>>, entries: &[Entry]) {
        if done.send(Ok(())).is_ok() {
            return;
        }
        // A claim of an approved call opens none: its task is still there and looks at the call again.
        for entry in entries.iter().filter(|entry| entry.opens_call) {
            let follow_up = self.give_up(entry);
            self.pending.extend(follow_up);
        }
    }

    /// An entry stands that its caller was told does not. INVARIANT: an intent that nobody waits for is never forwarded,
    /// and says so.
    fn give_up(&mut self, opening: &Entry) -> Option<Queued> {
        if self.given_up.len() >= GIVEN_UP {
            self.given_up.clear();
        }
        self.given_up.extend(opening.call_id.clone());
        (opening.kind == Some(Kind::Intent)).then(|| not_sent(opening))
    }

    /// Takes the entries that have queued meanwhile; stops at the first job of another kind and gives that back.
    fn drain(&mut self, queue: &mut mpsc::Receiver<Job>) -> Option<Job> {
        while self.pending.len() < BATCH {
            match queue.try_recv() {
                Ok(Job::Entry(queued)) => self.take_in(*queued),
                Ok(other) => return Some(other),
                Err(_nothing) => break,
            }
        }
        None
    }

    /// Returns when everything pending stands (or was refused row by row).
    async fn commit_pending(&mut self) {
        while !self.pending.is_empty() && !self.tenure.is_superseded() {
            let count = self.pending.len().min(BATCH);
            match self.commit_first(count).await {
                Ok(at) => self.committed(count, at),
                Err(StoreError::Unavailable(reason)) => {
                    self.reconnect(&reason).await;
                    self.skip_committed().await;
                }
                Err(StoreError::Refused(reason) | StoreError::Conflict(reason)) => {
                    self.commit_one_by_one(count, &reason).await;
                }
            }
        }
    }

    /// Commits the first `count` pending entries, with their changes, in one transaction.
    async fn commit_first(&mut self, count: usize) -> Result<Timestamp, StoreError> {
        if self.connection.is_none() {
            return Err(StoreError::Unavailable("not connected".to_owned()));
        }
        let (at, asked_at) = (risen(self.latest), Instant::now());
        self.tried_at = at;
        self.tried_since = asked_at;
        let pending = &self.pending;
        let entries = pending.iter().take(count).map(|queued| &queued.entry);
        let (rows, hashes) = self.chain.linked(at, entries);
        self.tried = hashes;
        let hashes = &self.tried;
        let connection = self
            .connection
            .as_mut()
            .ok_or_else(|| StoreError::Unavailable("not connected".to_owned()))?;
        let work = async {
            if pending
                .iter()
                .take(count)
                .all(|queued| queued.change.is_none())
            {
                // One statement is one transaction: no BEGIN and COMMIT of its own, no round trips for them.
                return store::audit::insert(connection, &rows, hashes).await;
            }
            let mut transaction = connection.begin().await?;
            for queued in pending.iter().take(count) {
                match &queued.change {
                    Some(Change::Finish(ending)) => {
                        store::calls::finish(&mut transaction, ending).await?;
                    }
                    Some(Change::Pull(row)) => {
                        store::kill_switches::pull(&mut transaction, row).await?
                    }
                    Some(Change::SignWith(_)) | None => {}
                }
            }
            store::audit::insert(&mut transaction, &rows, hashes).await?;
            transaction.commit().await?;
            Ok(())
        };
        match tokio::time::timeout(COMMIT_TIMEOUT, work).await {
            Ok(result) => result.map(|()| {
                self.tenure.confirm(asked_at);
                at
            }),
            Err(_elapsed) => Err(StoreError::Unavailable("a commit took too long".to_owned())),
        }
    }

    /// The first `count` pending entries stand: wake their waiters.
    fn committed(&mut self, count: usize, at: Timestamp) {
        let hashes = std::mem::take(&mut self.tried);
        self.latest = at;
        self.chain.advance(hashes.get(..count).unwrap_or(&hashes));
        let mut follow_up = Vec::new();
        let stand: Vec<Queued> = self.pending.drain(..count).collect();
        let entries = stand.iter().map(|queued| &queued.entry);
        self.metrics.committed(entries, self.tried_since.elapsed());
        for queued in stand {
            self.open.track(&queued.entry, at);
            if let (Some(Change::SignWith(key)), Some(publisher)) =
                (queued.change, &mut self.publisher)
            {
                publisher.sign_with(*key);
            }
            let heard = queued.done.map(|done| done.send(()).is_ok());
            if heard == Some(false) && queued.entry.kind == Some(Kind::Intent) {
                follow_up.extend(self.give_up(&queued.entry));
            }
        }
        self.pending.extend(follow_up);
        self.healthy.store(true, Ordering::Release);
        self.grown();
    }

    /// A transaction of its own stands.
    fn asked_stands(&mut self, asked: &Asked) {
        self.latest = asked.at;
        self.chain.advance(&asked.hashes);
        self.open.track_all(&asked.entries, asked.at);
        let took = asked.since.elapsed();
        self.metrics.committed(asked.entries.iter(), took);
        self.grown();
    }

    /// More stands than before: a checkpoint may be due.
    fn grown(&mut self) {
        if let Some(publisher) = &mut self.publisher {
            publisher.grown(self.chain.tree());
        }
    }

    fn publish(&mut self) {
        if let Some(publisher) = &mut self.publisher {
            publisher.publish(self.chain.tree());
        }
    }

    /// One row is not acceptable to the database: the others must not suffer for it.
    async fn commit_one_by_one(&mut self, count: usize, reason: &str) {
        if count == 1 {
            if let Some(queued) = self.pending.pop_front() {
                tracing::error!(
                    reason,
                    kind = queued.entry.kind.map_or("", Kind::as_str),
                    call = queued.entry.call_id.as_ref().map_or("", |id| id.as_str()),
                    "the database refuses an audit entry; whoever waits for it is refused too"
                );
            }
            return;
        }
        for _ in 0..count {
            match self.commit_first(1).await {
                Ok(at) => self.committed(1, at),
                Err(StoreError::Unavailable(reason)) => {
                    // It may stand all the same: that is found out before anything is tried again.
                    tracing::warn!(reason, "a commit broke");
                    self.connection = None;
                    return;
                }
                Err(StoreError::Refused(reason) | StoreError::Conflict(reason)) => {
                    Box::pin(self.commit_one_by_one(1, &reason)).await;
                }
            }
        }
    }

    /// Runs work and commits it with its entries.
    async fn act(&mut self, work: Work) -> Acted {
        let Some(connection) = self.connection.as_mut() else {
            return Acted::Undone;
        };
        let (chain, redactor, latest) = (&self.chain, &self.redactor, self.latest);
        let asked_at = Instant::now();
        // What COMMIT was asked for: from then on it may have happened without our learning of it.
        let mut asked = None;
        let all = async {
            let mut transaction = connection.begin().await?;
            let mut entries = work(&mut transaction).await?;
            for entry in &mut entries {
                redactor.scrub(entry);
            }
            let at = risen(latest);
            let (rows, hashes) = chain.linked(at, entries.iter());
            store::audit::insert(&mut transaction, &rows, &hashes).await?;
            drop(rows);
            asked = Some(Asked {
                entries,
                at,
                hashes,
                since: asked_at,
            });
            transaction.commit().await?;
            Ok(())
        };
        let result: Result<(), StoreError> = tokio::time::timeout(COMMIT_TIMEOUT, all)
            .await
            .unwrap_or_else(|_elapsed| {
                Err(StoreError::Unavailable("a commit took too long".to_owned()))
            });
        if result.is_ok() {
            self.tenure.confirm(asked_at);
        }
        match (result, asked) {
            (Ok(()), Some(asked)) => {
                self.asked_stands(&asked);
                Acted::Done(asked.entries)
            }
            (Ok(()), None) => Acted::Done(Vec::new()),
            (Err(StoreError::Unavailable(reason)), asked) => {
                tracing::warn!(reason, "a transaction broke");
                asked.map_or(Acted::Undone, Acted::Unknown)
            }
            (Err(error), _) => Acted::Refused(error),
        }
    }
}

/// For ever where there is no such moment.
async fn until(moment: Option<tokio::time::Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// A time for the next entries: now, or the last one's where the clock was set back.
fn risen(latest: Timestamp) -> Timestamp {
    clock::now().max(latest)
}
