//! The one writer: drains what has queued, commits it in one statement, wakes the waiters. When the database goes
//! away it keeps what must be told, comes back by itself, and finds out whether its last commit happened.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};
use tokio::sync::mpsc;

use super::{ActError, Change, Job, Queued, Work};
use crate::{
    clock::{self, Timestamp},
    entry::{Entry, Kind, Outcome},
    ids::{CallId, InstanceId},
    reason::Reason,
    store::{self, StoreError, calls::Ending},
};

/// Entries in one statement at the most: what 256 callers and their outcomes can bring, twice over.
const BATCH: usize = 1_024;
/// How long the database may take for one commit before the connection is given up.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(6);
/// How often it is noted up to when everything is settled.
const SETTLE_EVERY: Duration = Duration::from_secs(5);
const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_LAST: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    instance: InstanceId,
    healthy: Arc<AtomicBool>,
    /// Number of the last row known to stand.
    seq: i64,
    /// What must be committed next, in order. Empty while all is well and nobody calls.
    pending: VecDeque<Queued>,
    /// Intents that stand and have no outcome yet.
    open: HashMap<CallId, Timestamp>,
    open_since: BTreeSet<(Timestamp, CallId)>,
    /// Calls whose first entry stands although whoever asked for it was told that nothing is certain. Their refusal
    /// follows and opens no second row.
    late: HashSet<CallId>,
}

impl Writer {
    pub(super) fn new(
        options: PgConnectOptions,
        connection: PgConnection,
        instance: InstanceId,
        healthy: Arc<AtomicBool>,
    ) -> Self {
        Self {
            options,
            connection: Some(connection),
            instance,
            healthy,
            seq: 0,
            pending: VecDeque::new(),
            open: HashMap::new(),
            open_since: BTreeSet::new(),
            late: HashSet::new(),
        }
    }

    /// What must be done before the first call: this instance is known, partitions stand, and whatever an earlier
    /// gateway left without an outcome is told to be indeterminate.
    pub(super) async fn begin(mut self) -> Result<Self, StoreError> {
        let connection = self
            .connection
            .as_mut()
            .ok_or_else(|| StoreError::Unavailable("not connected".to_owned()))?;
        let now = clock::now();
        store::audit::ensure_partitions(connection).await?;
        store::instances::add(connection, &self.instance, now).await?;
        let mut transaction = connection.begin().await?;
        let orphans = store::audit::orphans(&mut transaction, &self.instance).await?;
        let mut entries: Vec<Entry> = orphans.into_iter().map(orphan_outcome).collect();
        if !entries.is_empty() {
            tracing::warn!(
                calls = entries.len(),
                "calls were under way when the last gateway stopped; they are recorded as indeterminate"
            );
        }
        entries.push(Entry::new(Kind::GatewayStarted));
        store::audit::insert(&mut transaction, &self.instance, 1, now, entries.iter()).await?;
        store::calls::close_executing(&mut transaction).await?;
        store::instances::settle_others(&mut transaction, &self.instance, now).await?;
        transaction.commit().await?;
        self.seq = i64::try_from(entries.len()).unwrap_or(i64::MAX);
        Ok(self)
    }

    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut settle = tokio::time::interval(SETTLE_EVERY);
        settle.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let job = tokio::select! {
                biased;
                job = queue.recv() => job,
                _ = settle.tick() => {
                    self.note_settled().await;
                    continue;
                }
            };
            let Some(job) = job else { break };
            let mut next = Some(job);
            while let Some(job) = next.take() {
                match job {
                    Job::Entry(queued) => {
                        self.take(*queued);
                        next = self.drain(&mut queue);
                        self.commit_pending().await;
                    }
                    Job::Act { work, done } => {
                        // Whoever asked has given up: nothing may happen behind their back.
                        if done.is_closed() {
                            continue;
                        }
                        let mut entries = Vec::new();
                        let result = self.act(work, &mut entries).await;
                        let (stands, lost) =
                            (result.is_ok(), matches!(result, Err(ActError::Unrecorded)));
                        let heard = done.send(result).is_ok();
                        if lost {
                            self.reconnect("a transaction broke").await;
                            self.resume_count(&entries).await;
                        } else if stands && !heard {
                            self.stands_unheard(&entries);
                        }
                        self.commit_pending().await;
                    }
                    Job::Flush(done) => {
                        let _ = done.send(());
                    }
                }
            }
        }
    }

    fn take(&mut self, mut queued: Queued) {
        let entry = &mut queued.entry;
        if entry.kind == Some(Kind::Refusal)
            && entry.reasons == [Reason::RecordUnavailable.code()]
            && let Some(call) = &entry.call_id
        {
            // INVARIANT: one entry opens a call. Where the record came too late, it is not this one.
            let opened = self.late.remove(call)
                || self.pending.iter().any(|before| {
                    before.entry.opens_call && before.entry.call_id.as_ref() == Some(call)
                });
            entry.opens_call = !opened;
        }
        self.pending.push_back(queued);
    }

    /// These stand, and whoever asked for them was told that this is not certain: a call that was to be sent never
    /// will be, and says so. A claim of an approved call is taken up again by its own task.
    fn stands_unheard(&mut self, entries: &[Entry]) {
        for entry in entries.iter().filter(|entry| entry.opens_call) {
            let Some(call) = entry.call_id.clone() else {
                continue;
            };
            if entry.kind == Some(Kind::Intent) {
                self.pending.push_back(Queued {
                    entry: not_sent(entry),
                    change: Some(Change::Finish(Ending {
                        call_id: call.clone(),
                        outcome: Outcome::Failed,
                        executed: Some(false),
                        status: None,
                        answer: None,
                        code: Some(Reason::RecordUnavailable.code()),
                        explanation: Some(TOO_LATE.to_owned()),
                    })),
                    done: None,
                });
            }
            self.late.insert(call);
        }
    }

    /// Takes the entries that have queued meanwhile; stops at the first job of another kind and gives that back.
    fn drain(&mut self, queue: &mut mpsc::Receiver<Job>) -> Option<Job> {
        while self.pending.len() < BATCH {
            match queue.try_recv() {
                Ok(Job::Entry(queued)) => self.take(*queued),
                Ok(other) => return Some(other),
                Err(_nothing) => break,
            }
        }
        None
    }

    /// Returns when everything pending stands (or was refused row by row).
    async fn commit_pending(&mut self) {
        while !self.pending.is_empty() {
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
        let at = clock::now();
        let first = self.seq + 1;
        let instance = &self.instance;
        let pending = &self.pending;
        let connection = self
            .connection
            .as_mut()
            .ok_or_else(|| StoreError::Unavailable("not connected".to_owned()))?;
        let work = async {
            let entries = pending.iter().take(count).map(|queued| &queued.entry);
            if pending
                .iter()
                .take(count)
                .all(|queued| queued.change.is_none())
            {
                // One statement is one transaction: no BEGIN and COMMIT of its own, no round trips for them.
                return store::audit::insert(connection, instance, first, at, entries).await;
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
                    None => {}
                }
            }
            store::audit::insert(&mut transaction, instance, first, at, entries).await?;
            transaction.commit().await?;
            Ok(())
        };
        match tokio::time::timeout(COMMIT_TIMEOUT, work).await {
            Ok(result) => result.map(|()| at),
            Err(_elapsed) => Err(StoreError::Unavailable("a commit took too long".to_owned())),
        }
    }

    /// The first `count` pending entries stand: wake their waiters.
    fn committed(&mut self, count: usize, at: Timestamp) {
        self.seq += i64::try_from(count).unwrap_or(0);
        let mut follow_up = Vec::new();
        let stand: Vec<Queued> = self.pending.drain(..count).collect();
        for queued in stand {
            self.track(&queued.entry, at);
            let heard = queued.done.map(|done| done.send(()).is_ok());
            // INVARIANT: an intent that nobody waits for is never forwarded, and says so.
            if heard == Some(false) && queued.entry.kind == Some(Kind::Intent) {
                self.late.extend(queued.entry.call_id.clone());
                follow_up.push(Queued {
                    entry: not_sent(&queued.entry),
                    change: None,
                    done: None,
                });
            }
        }
        self.pending.extend(follow_up);
        self.healthy.store(true, Ordering::Release);
    }

    fn track(&mut self, entry: &Entry, at: Timestamp) {
        let Some(call) = &entry.call_id else { return };
        match entry.kind {
            Some(Kind::Intent) => {
                self.open.insert(call.clone(), at);
                self.open_since.insert((at, call.clone()));
            }
            Some(Kind::Outcome | Kind::Ended) => {
                if let Some(since) = self.open.remove(call) {
                    self.open_since.remove(&(since, call.clone()));
                }
            }
            Some(Kind::Refusal) => {
                self.late.remove(call);
            }
            _ => {}
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
                Err(StoreError::Unavailable(_)) => {
                    // Connect again, and find out whether this one stands.
                    self.connection = None;
                    return;
                }
                Err(StoreError::Refused(reason) | StoreError::Conflict(reason)) => {
                    Box::pin(self.commit_one_by_one(1, &reason)).await;
                }
            }
        }
    }

    /// Connects again, with the lock, however long it takes. Calls are refused meanwhile.
    async fn reconnect(&mut self, reason: &str) {
        self.healthy.store(false, Ordering::Release);
        self.connection = None;
        tracing::error!(
            reason,
            "the database is away; calls are refused until it is back"
        );
        let mut pause = RECONNECT_FIRST;
        loop {
            match tokio::time::timeout(COMMIT_TIMEOUT, store::open_writer(&self.options)).await {
                Ok(Ok(connection)) => {
                    self.connection = Some(connection);
                    tracing::info!("the database is back");
                    return;
                }
                Ok(Err(error)) => tracing::warn!(%error, "no connection to the database yet"),
                Err(_elapsed) => {
                    tracing::warn!("no connection to the database yet: it does not answer")
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_LAST);
        }
    }

    /// After a broken connection: drops from the pending entries those that stand already, because the commit had
    /// happened and only its answer was lost.
    async fn skip_committed(&mut self) {
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        match store::audit::last_seq(connection, &self.instance).await {
            Ok(last) => {
                let stand = usize::try_from(last - self.seq)
                    .unwrap_or(0)
                    .min(self.pending.len());
                if stand > 0 {
                    self.committed(stand, clock::now());
                }
                if self.pending.is_empty() {
                    self.healthy.store(true, Ordering::Release);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the database went away again");
                self.connection = None;
            }
        }
    }

    /// Runs work and commits it with its entries, which are given back in any case.
    async fn act(&mut self, work: Work, entries: &mut Vec<Entry>) -> Result<(), ActError> {
        let at = clock::now();
        let first = self.seq + 1;
        let Some(connection) = self.connection.as_mut() else {
            return Err(ActError::Unrecorded);
        };
        let instance = &self.instance;
        let all = async {
            let mut transaction = connection.begin().await?;
            *entries = work(&mut transaction).await?;
            store::audit::insert(&mut transaction, instance, first, at, entries.iter()).await?;
            transaction.commit().await?;
            Ok(())
        };
        let result: Result<(), StoreError> = tokio::time::timeout(COMMIT_TIMEOUT, all)
            .await
            .unwrap_or_else(|_elapsed| {
                Err(StoreError::Unavailable("a commit took too long".to_owned()))
            });
        match result {
            Ok(()) => {
                self.seq += i64::try_from(entries.len()).unwrap_or(0);
                for entry in entries.iter() {
                    self.track(entry, at);
                }
                Ok(())
            }
            Err(StoreError::Unavailable(reason)) => {
                tracing::warn!(reason, "a transaction broke");
                Err(ActError::Unrecorded)
            }
            Err(error) => Err(ActError::Store(error)),
        }
    }

    /// After a broken connection without pending entries: go on counting where the table is. `uncertain` is what the
    /// broken transaction was to commit; where it was committed after all, that is made good.
    async fn resume_count(&mut self, uncertain: &[Entry]) {
        while let Some(connection) = self.connection.as_mut() {
            match store::audit::last_seq(connection, &self.instance).await {
                Ok(last) => {
                    if last > self.seq {
                        let at = clock::now();
                        for entry in uncertain {
                            self.track(entry, at);
                        }
                        self.stands_unheard(uncertain);
                    }
                    self.seq = last;
                    self.healthy.store(true, Ordering::Release);
                    return;
                }
                Err(error) => self.reconnect(&error.to_string()).await,
            }
        }
    }

    async fn note_settled(&mut self) {
        let until = self
            .open_since
            .first()
            .map_or_else(clock::now, |(since, _)| *since);
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        let work = store::instances::settle(connection, &self.instance, until);
        let result = tokio::time::timeout(COMMIT_TIMEOUT, work)
            .await
            .unwrap_or_else(|_elapsed| Err(StoreError::Unavailable("no answer".to_owned())));
        if let Err(error) = result {
            self.reconnect(&error.to_string()).await;
            self.resume_count(&[]).await;
        }
    }
}

const TOO_LATE: &str = "the record came too late; the call was refused and not sent";

/// The outcome of an intent that was committed too late for its caller.
fn not_sent(intent: &Entry) -> Entry {
    Entry {
        outcome: Some(Outcome::Failed),
        executed: Some(false),
        reasons: vec![Reason::RecordUnavailable.code()],
        finished_at: Some(clock::now()),
        detail: Some(serde_json::json!({ "why": TOO_LATE })),
        call_id: intent.call_id.clone(),
        run_id: intent.run_id.clone(),
        agent: intent.agent.clone(),
        api: intent.api.clone(),
        tool: intent.tool.clone(),
        approval_id: intent.approval_id.clone(),
        ..Entry::new(Kind::Outcome)
    }
}

/// The outcome of an intent whose gateway is gone.
fn orphan_outcome(orphan: store::audit::Orphan) -> Entry {
    Entry {
        call_id: orphan.call_id.parse().ok(),
        run_id: orphan.run_id.and_then(|id| id.parse().ok()),
        approval_id: orphan.approval_id.and_then(|id| id.parse().ok()),
        agent: orphan.agent.map(Into::into),
        api: orphan.api.map(Into::into),
        tool: orphan.tool.map(Into::into),
        outcome: Some(Outcome::Indeterminate),
        reasons: vec!["indeterminate"],
        finished_at: Some(clock::now()),
        detail: Some(
            serde_json::json!({"why": "the gateway stopped between sending the call and recording its outcome"}),
        ),
        ..Entry::new(Kind::Outcome)
    }
}
