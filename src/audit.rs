//! Recording: the handle through which everything reaches the one durable history. Concurrent calls share a
//! commit; one caller alone never waits for company. Never decides what is recorded.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::BoxFuture;
use parking_lot::Mutex;
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::sync::{mpsc, oneshot};

use crate::{
    checkpoint::{SigningKey, VerifierKey},
    clock::Timestamp,
    entry::Entry,
    ids::InstanceId,
    metrics::Metrics,
    redaction::Redactor,
    sinks::Sinks,
    store::{self, StoreError, calls::Ending, kill_switches::KillSwitchRow},
    tenure::Tenure,
};

mod beginnings;
pub mod keeping;
mod late;
mod link;
mod open_calls;
mod opening;
mod orphans;
mod publishing;
mod signed;
mod signing_keys;
pub mod verify;
mod writer;

use opening::opening;
pub use orphans::orphaned;
pub use publishing::Checkpoints;
pub use signed::CommandError;
pub(crate) use signed::record_command;

/// Entries that may wait for the database at the same time. Beyond it calls are refused at once.
const QUEUE: usize = 8_192;

/// How long a transaction of its own may wait for its turn and take.
const ACT_TIMEOUT: Duration = Duration::from_secs(10);

/// The record could not be committed in time. The caller must not act.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the record could not be committed in time")]
pub struct Unrecorded;

/// Why a transaction of its own ([`Recorder::act`]) did not happen, or may not have.
#[derive(Debug, thiserror::Error)]
pub enum ActError {
    /// The database is away, or went away: nothing is known for certain, and nothing may be done.
    #[error("the database is not available")]
    Unrecorded,
    /// The database was asked and said no.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A change to what stands that is committed together with an entry and, like it, repeated until it is.
#[derive(Debug)]
pub(crate) enum Change {
    /// Ends a kept call; nothing happens for calls that are not kept.
    Finish(Ending),
    /// Keeps a kill switch.
    Pull(KillSwitchRow),
    /// Signs checkpoints with this key from here on.
    SignWith(Box<SigningKey>),
}

/// What runs inside a transaction on the writer's connection. Gives the entries to be committed with it.
type Work = Box<
    dyn for<'c> FnOnce(&'c mut PgConnection) -> BoxFuture<'c, Result<Vec<Entry>, StoreError>>
        + Send,
>;

enum Job {
    /// One entry, in the next shared commit.
    Entry(Box<Queued>),
    /// A transaction of its own.
    Act {
        work: Work,
        done: oneshot::Sender<Result<(), ActError>>,
    },
    /// Everything before this is committed, or given up.
    Flush(oneshot::Sender<()>),
    /// The last job: the connection is closed, and the gateway's lock with it.
    Close(oneshot::Sender<()>),
}

struct Queued {
    entry: Entry,
    change: Option<Change>,
    /// Woken when the entry stands. A waiter that has gone means: an intent of it must not be acted on.
    done: Option<oneshot::Sender<()>>,
}

/// The handle to the writer. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    jobs: mpsc::Sender<Job>,
    healthy: Arc<AtomicBool>,
    instance: InstanceId,
    timeout: Duration,
    sinks: Sinks,
    /// The key that checkpoints are signed with, or will be once its entry stands.
    signing: Arc<Mutex<VerifierKey>>,
    metrics: Arc<Metrics>,
    tenure: Arc<Tenure>,
}

impl Recorder {
    /// Starts the writer on its own connection: takes the gateway's lock, closes what an earlier gateway left
    /// open, and begins to record. `timeout` is how long a call waits for its record; `redactor` takes what is sensitive out of free
    /// text; `checkpoints` says who signs what is recorded, how often, and who keeps that.
    ///
    /// # Errors
    /// When the database is away, or another gateway serves it.
    pub async fn start(
        options: PgConnectOptions,
        timeout: Duration,
        redactor: Arc<Redactor>,
        checkpoints: Checkpoints,
    ) -> Result<Self, StoreError> {
        let mut connection = open_patiently(&options).await?;
        // After the lock: so the ids of gateways rise in the order in which they served.
        let instance = signed::new_instance(&mut connection).await?;
        let (jobs, queue) = mpsc::channel(QUEUE);
        let healthy = Arc::new(AtomicBool::new(true));
        let metrics = Arc::new(Metrics::default());
        let tenure = Arc::new(Tenure::default());
        let sinks = checkpoints.sinks.clone();
        let signing = Arc::new(Mutex::new(checkpoints.held.key.verifier().clone()));
        let writer = writer::Writer::new(
            options,
            connection,
            instance.clone(),
            Arc::clone(&healthy),
            redactor,
            Arc::clone(&metrics),
            Arc::clone(&tenure),
        );
        let writer = writer.begin(checkpoints).await?;
        tokio::spawn(writer.run(queue));
        Ok(Self {
            jobs,
            healthy,
            instance,
            timeout,
            sinks,
            signing,
            metrics,
            tenure,
        })
    }

    /// This start of the gateway.
    pub const fn instance(&self) -> &InstanceId {
        &self.instance
    }

    /// False while the database does not answer.
    pub fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire)
    }

    /// What is counted where it comes to stand; the rest of the gateway counts beside it.
    pub const fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Entries and transactions that wait for the writer.
    pub fn waiting(&self) -> usize {
        self.jobs
            .max_capacity()
            .saturating_sub(self.jobs.capacity())
    }

    /// The right to send, confirmed by every answer of the database.
    pub const fn tenure(&self) -> &Arc<Tenure> {
        &self.tenure
    }

    /// Where checkpoints are kept.
    pub const fn sinks(&self) -> &Sinks {
        &self.sinks
    }

    /// Commits an entry and returns when it is on disk.
    ///
    /// # Errors
    /// When that did not happen in time. An intent that is committed after all is followed by an outcome that
    /// says it was not sent.
    pub async fn commit(&self, entry: Entry) -> Result<(), Unrecorded> {
        if !self.is_healthy() {
            return Err(Unrecorded);
        }
        let (done, mut committed) = oneshot::channel();
        let job = Job::Entry(Box::new(Queued {
            entry,
            change: None,
            done: Some(done),
        }));
        self.jobs.try_send(job).map_err(|_full| Unrecorded)?;
        match tokio::time::timeout(self.timeout, &mut committed).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_writer_gone)) => Err(Unrecorded),
            Err(_elapsed) => {
                // The commit may have happened in this very moment: close first, then look.
                committed.close();
                committed.try_recv().map_err(|_none| Unrecorded)
            }
        }
    }

    /// Commits the entry of something that was refused. While the database is away it is queued and told of later: a
    /// refusal needs no record to be safe, but it must not be lost.
    ///
    /// # Errors
    /// When too much waits already, and goes on waiting for as long as a call waits for its record. Whoever is refused all
    /// the time is slowed down by that rather than forgotten.
    pub async fn note(&self, entry: Entry) -> Result<(), Unrecorded> {
        let (done, committed) = oneshot::channel();
        let job = Job::Entry(Box::new(Queued {
            entry,
            change: None,
            done: Some(done),
        }));
        self.jobs
            .send_timeout(job, self.timeout)
            .await
            .map_err(|_full| Unrecorded)?;
        if self.is_healthy() {
            // Late is good enough: it is in the queue.
            let _ = tokio::time::timeout(self.timeout, committed).await;
        }
        Ok(())
    }

    /// Hands over an entry with its change, which are repeated until they stand, and waits for them no longer than
    /// a call waits for its record.
    pub(crate) async fn settle(
        &self,
        entry: Entry,
        change: Option<Change>,
    ) -> Result<(), Unrecorded> {
        let (done, committed) = oneshot::channel();
        let all = async {
            self.enqueue(entry, change, Some(done)).await;
            committed.await
        };
        match tokio::time::timeout(self.timeout, all).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Unrecorded),
        }
    }

    async fn enqueue(
        &self,
        entry: Entry,
        change: Option<Change>,
        done: Option<oneshot::Sender<()>>,
    ) {
        let job = Job::Entry(Box::new(Queued {
            entry,
            change,
            done,
        }));
        if let Err(error) = self.jobs.try_send(job) {
            let job = match error {
                mpsc::error::TrySendError::Full(job) | mpsc::error::TrySendError::Closed(job) => {
                    job
                }
            };
            // The queue is full: wait for room in a task of our own, so that a caller that goes away does not
            // take the entry with it. Bounded by the calls in flight, each of which has one outcome.
            let jobs = self.jobs.clone();
            let waiting = tokio::spawn(async move { jobs.send(job).await.is_ok() });
            if !matches!(waiting.await, Ok(true)) {
                tracing::error!("an audit entry could not be handed to the writer: it has stopped");
            }
        }
    }

    /// Hands over an entry from a place that cannot wait (a `Drop`).
    pub(crate) fn keep_now(&self, entry: Entry, change: Option<Change>) {
        let job = Job::Entry(Box::new(Queued {
            entry,
            change,
            done: None,
        }));
        if let Err(mpsc::error::TrySendError::Full(job)) = self.jobs.try_send(job) {
            let jobs = self.jobs.clone();
            match tokio::runtime::Handle::try_current() {
                Ok(runtime) => {
                    runtime.spawn(async move { jobs.send(job).await.is_ok() });
                }
                Err(_none) => tracing::error!("an audit entry could not be handed to the writer"),
            }
        }
    }

    /// Runs work in a transaction of its own; its entries are committed with it. `work` gives the entries and
    /// whatever the caller wants to know.
    ///
    /// # Errors
    /// When the work fails or the database is away; then nothing of it stands, unless the connection broke at the
    /// very commit, in which case nobody knows and [`ActError::Unrecorded`] says so.
    pub async fn act<T, W>(&self, work: W) -> Result<T, ActError>
    where
        T: Send + 'static,
        W: for<'c> FnOnce(
                &'c mut PgConnection,
            ) -> BoxFuture<'c, Result<(Vec<Entry>, T), StoreError>>
            + Send
            + 'static,
    {
        if !self.is_healthy() {
            return Err(ActError::Unrecorded);
        }
        let (give, take) = std::sync::mpsc::sync_channel(1);
        let (done, mut finished) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            Box::pin(async move {
                let (entries, value) = work(connection).await?;
                // The other end waits until the commit is done, so there is room.
                let _ = give.try_send(value);
                Ok(entries)
            })
        });
        self.jobs
            .try_send(Job::Act { work, done })
            .map_err(|_full| ActError::Unrecorded)?;
        match tokio::time::timeout(ACT_TIMEOUT, &mut finished).await {
            Ok(answer) => answer.map_err(|_writer_gone| ActError::Unrecorded)??,
            Err(_elapsed) => {
                finished.close();
                finished
                    .try_recv()
                    .map_err(|_none| ActError::Unrecorded)??;
            }
        }
        take.try_recv().map_err(|_nothing| ActError::Unrecorded)
    }

    /// Says that nothing more is sent, closes the connection and gives the gateway's lock back, so that the next gateway can
    /// start. Nothing is recorded afterwards. The caller has ended the tenure before.
    pub async fn close(&self) {
        let (done, closed) = oneshot::channel();
        let all = async {
            if self.jobs.send(Job::Close(done)).await.is_ok() {
                let _ = closed.await;
            }
        };
        let _ = tokio::time::timeout(self.timeout, all).await;
    }

    /// Waits until everything handed over so far is committed.
    ///
    /// # Errors
    /// When that does not happen within `patience`.
    pub async fn flush(&self, patience: Duration) -> Result<(), Unrecorded> {
        let (done, flushed) = oneshot::channel();
        let all = async {
            self.jobs
                .send(Job::Flush(done))
                .await
                .map_err(|_closed| Unrecorded)?;
            flushed.await.map_err(|_closed| Unrecorded)
        };
        tokio::time::timeout(patience, all)
            .await
            .map_err(|_elapsed| Unrecorded)?
    }
}

/// A gateway that has just ended may hold the lock for a moment longer than it lives.
async fn open_patiently(options: &PgConnectOptions) -> Result<sqlx::PgConnection, StoreError> {
    const TRIES: u32 = 20;
    for _ in 0..TRIES {
        match store::open_writer(options).await {
            Err(StoreError::Conflict(_)) => tokio::time::sleep(Duration::from_millis(250)).await,
            other => return other,
        }
    }
    store::open_writer(options).await
}

/// A connection that was opened again.
enum Opened {
    /// Entries of this moment can be recorded on it.
    Ready(PgConnection),
    /// They have no partition to go to.
    NoPartition,
    /// Another gateway has started since.
    Superseded,
}

/// A connection with the lock, if this is still the newest gateway.
async fn open_for(
    options: &PgConnectOptions,
    this: &InstanceId,
    at: Timestamp,
) -> Result<Opened, StoreError> {
    let mut connection = store::open_writer(options).await?;
    let opened = if !store::instances::is_newest(&mut connection, this).await? {
        Opened::Superseded
    } else if store::audit::has_partition(&mut connection, at).await? {
        return Ok(Opened::Ready(connection));
    } else {
        Opened::NoPartition
    };
    // The lock goes with it, before the next try wants it.
    let _ = connection.close().await;
    Ok(opened)
}
