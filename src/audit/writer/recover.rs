//! After a broken connection: back to the database, however long it takes, and what stands there.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{COMMIT_TIMEOUT, Queued, Writer, risen};
use crate::{
    audit::{Opened, open_for},
    entry::{Kind, Outcome},
    store::{self, StoreError},
};

const RECONNECT_FIRST: Duration = Duration::from_millis(50);
const RECONNECT_LAST: Duration = Duration::from_secs(1);

impl Writer {
    /// Connects again, with the lock, however long it takes. Calls are refused meanwhile. Where another gateway has served the
    /// database in between, this one is over: there is no connection then.
    pub(super) async fn reconnect(&mut self, reason: &str) {
        self.healthy.store(false, Ordering::Release);
        self.connection = None;
        if self.tenure.is_superseded() {
            return;
        }
        tracing::error!(
            reason,
            "the database is away; calls are refused until it is back"
        );
        let mut pause = RECONNECT_FIRST;
        loop {
            let (at, asked_at) = (risen(self.latest), Instant::now());
            let open = open_for(&self.options, self.chain.instance(), at);
            match tokio::time::timeout(COMMIT_TIMEOUT, open).await {
                Ok(Ok(Opened::Ready(connection))) => {
                    self.tenure.confirm(asked_at);
                    self.connection = Some(connection);
                    tracing::info!("the database is back");
                    return;
                }
                Ok(Ok(Opened::Superseded)) => return self.superseded(),
                Ok(Ok(Opened::NoPartition)) => tracing::error!(
                    month = %at.format("%Y-%m"),
                    "audit.entries has no partition for this month and none could be made: hold this machine's clock against the database's, and let the tables' owner try SELECT audit.ensure_partitions(3)"
                ),
                Ok(Err(error)) => tracing::warn!(%error, "no connection to the database yet"),
                Err(_elapsed) => {
                    tracing::warn!("no connection to the database yet: it does not answer")
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_LAST);
        }
    }

    /// What this gateway remembers of halts, runs and calls is not what stands, and its chain has been closed by the next: it
    /// sends and records nothing more. The calls that it had begun are with the next gateway, which has told of each that nobody
    /// knows what became of it; what this one knows goes to the log.
    fn superseded(&mut self) {
        self.tenure.supersede();
        tracing::error!(
            "another gateway has served this database while this one was cut off from it; this one stops"
        );
    }

    /// What can no longer be recorded.
    pub(super) fn tell_log(&mut self) {
        for Queued { entry, .. } in self.pending.drain(..) {
            tracing::error!(
                kind = entry.kind.map_or("", Kind::as_str),
                call = entry.call_id.as_ref().map_or("", |id| id.as_str()),
                outcome = entry.outcome.map_or("", Outcome::as_str),
                status = entry.status,
                "an entry could not be recorded: resolve the call with what this line says"
            );
        }
    }

    /// After a broken connection: drops from the pending entries those that stand already, because the commit had
    /// happened and only its answer was lost.
    pub(super) async fn skip_committed(&mut self) {
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        match store::audit::last_seq(connection, self.chain.instance()).await {
            Ok(last) => {
                let stand = usize::try_from(last - self.chain.seq())
                    .unwrap_or(0)
                    .min(self.pending.len());
                if stand > 0 {
                    self.committed(stand, self.tried_at);
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

    /// After a broken connection without pending entries: whether the last `count` entries that were asked for stand. However
    /// long it takes to learn.
    pub(super) async fn stands(&mut self, count: usize) -> bool {
        loop {
            let Some(connection) = self.connection.as_mut() else {
                return false;
            };
            match store::audit::last_seq(connection, self.chain.instance()).await {
                Ok(last) => {
                    self.healthy.store(true, Ordering::Release);
                    return count > 0 && last > self.chain.seq();
                }
                Err(error) => self.reconnect(&error.to_string()).await,
            }
        }
    }

    /// The tenure of a gateway that has nothing to record goes on as long as the database answers.
    pub(super) async fn ask(&mut self) {
        let asked_at = Instant::now();
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        match tokio::time::timeout(COMMIT_TIMEOUT, store::ping(connection)).await {
            Ok(Ok(())) => self.tenure.confirm(asked_at),
            Ok(Err(error)) => self.back(&error.to_string()).await,
            Err(_elapsed) => self.back("no answer").await,
        }
    }

    /// Connects again where nothing was being committed.
    pub(super) async fn back(&mut self, reason: &str) {
        self.reconnect(reason).await;
        self.stands(0).await;
    }

    pub(super) async fn note_settled(&mut self) {
        // No later than the last entry: what follows may bear its time, and never an earlier one.
        let until = self.open.oldest().unwrap_or(self.latest);
        let Some(connection) = self.connection.as_mut() else {
            return;
        };
        let work = store::instances::settle(connection, self.chain.instance(), until);
        let result = tokio::time::timeout(COMMIT_TIMEOUT, work)
            .await
            .unwrap_or_else(|_elapsed| Err(StoreError::Unavailable("no answer".to_owned())));
        if let Err(error) = result {
            self.back(&error.to_string()).await;
        }
    }
}
