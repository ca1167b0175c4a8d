//! Places outside the database where checkpoints are kept. Each sink has a queue and a task of its own: one that fails is tried
//! again with growing pauses, keeps no other from its checkpoints, and never stops a call. What waits for it is bounded, and the
//! oldest gives way, because a later checkpoint says all that an earlier one of the same log says.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::clock::{self, Timestamp};

mod client;
mod file;
mod s3;
mod webhook;

pub use self::{
    file::FileSettings,
    s3::{S3Settings, default_endpoint},
    webhook::WebhookSettings,
};

/// Checkpoints that wait for one sink at the most.
const KEPT: usize = 1_024;
/// How often one checkpoint is tried while others wait behind it. The last one is tried for as long as it takes.
const TRIES: u32 = 8;
const PAUSE_FIRST: Duration = Duration::from_secs(1);
const PAUSE_LAST: Duration = Duration::from_secs(60);
/// The pause while the gateway stops.
const PAUSE_STOPPING: Duration = Duration::from_millis(200);

/// A signed checkpoint on its way out.
#[derive(Debug)]
pub struct Outgoing {
    /// The start of the gateway whose log it is of.
    pub instance: String,
    /// How many entries it covers.
    pub size: u64,
    /// The note.
    pub note: String,
}

/// What a sink is made of.
#[derive(Debug, Clone)]
pub enum SinkSettings {
    /// Appended to a file.
    File(FileSettings),
    /// Posted to an address.
    Webhook(WebhookSettings),
    /// Put into a bucket, each under a name of its own.
    S3(S3Settings),
}

/// Why a sink could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("the checkpoint sink {name}: {reason}")]
pub struct SinkError {
    /// The sink.
    pub name: String,
    /// What is wrong.
    pub reason: String,
}

/// How a sink is doing.
#[derive(Debug, Clone)]
pub struct SinkStatus {
    /// Its name in the config.
    pub name: String,
    /// Checkpoints that wait.
    pub waiting: usize,
    /// Since when it has failed, and with what; none while it works.
    pub failing: Option<(Timestamp, String)>,
    /// Checkpoints that were given up since the start.
    pub given_up: u64,
}

enum Target {
    File(file::FileSink),
    Webhook(webhook::Webhook),
    S3(Box<s3::S3>),
}

impl Target {
    /// Returns when it is kept there. The error names no credential.
    async fn deliver(&self, checkpoint: &Outgoing) -> Result<(), String> {
        match self {
            Self::File(sink) => sink.append(&checkpoint.note).await,
            Self::Webhook(sink) => sink.post(&checkpoint.note).await,
            Self::S3(sink) => sink.put(checkpoint).await,
        }
    }
}

/// All sinks. Clones share them.
#[derive(Clone, Default)]
pub struct Sinks {
    all: Arc<[Arc<Sink>]>,
    tasks: TaskTracker,
    stopping: CancellationToken,
    ended: CancellationToken,
}

struct Sink {
    name: String,
    target: Target,
    queue: Mutex<Queue>,
    more: Notify,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Arc<Outgoing>>,
    failing: Option<(Timestamp, String)>,
    given_up: u64,
}

impl Sinks {
    /// Sets all of them up and starts their tasks. Connects to nothing yet.
    ///
    /// # Errors
    /// When one can never work.
    pub fn start(settings: &[(String, SinkSettings)]) -> Result<Self, SinkError> {
        let all = settings
            .iter()
            .map(|(name, settings)| {
                let target = match settings {
                    SinkSettings::File(settings) => Ok(Target::File(file::FileSink::new(settings))),
                    SinkSettings::Webhook(settings) => {
                        webhook::Webhook::new(settings).map(Target::Webhook)
                    }
                    SinkSettings::S3(settings) => {
                        s3::S3::new(settings).map(|sink| Target::S3(Box::new(sink)))
                    }
                };
                Ok(Arc::new(Sink {
                    name: name.clone(),
                    target: target.map_err(|reason| SinkError {
                        name: name.clone(),
                        reason,
                    })?,
                    queue: Mutex::default(),
                    more: Notify::new(),
                }))
            })
            .collect::<Result<_, _>>()?;
        let sinks = Self {
            all,
            ..Self::default()
        };
        for sink in sinks.all.iter() {
            let (stopping, ended) = (sinks.stopping.clone(), sinks.ended.clone());
            let sink = Arc::clone(sink);
            sinks.tasks.spawn(async move {
                tokio::select! {
                    () = sink.run(stopping) => {}
                    () = ended.cancelled() => {}
                }
            });
        }
        Ok(sinks)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Hands a checkpoint to every sink. Never waits.
    pub fn send(&self, checkpoint: Outgoing) {
        let checkpoint = Arc::new(checkpoint);
        for sink in self.all.iter() {
            let mut queue = sink.queue.lock();
            if queue.waiting.len() >= KEPT {
                queue.waiting.pop_front();
                queue.given_up += 1;
            }
            queue.waiting.push_back(Arc::clone(&checkpoint));
            drop(queue);
            sink.more.notify_one();
        }
    }

    /// How each of them is doing.
    pub fn status(&self) -> Vec<SinkStatus> {
        let status = |sink: &Arc<Sink>| {
            let queue = sink.queue.lock();
            SinkStatus {
                name: sink.name.clone(),
                waiting: queue.waiting.len(),
                failing: queue.failing.clone(),
                given_up: queue.given_up,
            }
        };
        self.all.iter().map(status).collect()
    }

    /// Waits until nothing waits for any sink any more, no longer than `patience`, and ends their tasks.
    pub async fn finish(&self, patience: Duration) {
        self.stopping.cancel();
        self.tasks.close();
        if tokio::time::timeout(patience, self.tasks.wait())
            .await
            .is_err()
        {
            for sink in self.status() {
                if sink.waiting > 0 {
                    tracing::error!(
                        sink = sink.name,
                        waiting = sink.waiting,
                        "checkpoints could not be handed to a sink before the end"
                    );
                }
            }
        }
        self.ended.cancel();
    }
}

impl Sink {
    /// Until the gateway stops and nothing waits any more.
    async fn run(&self, stopping: CancellationToken) {
        let (mut tries, mut pause) = (0, PAUSE_FIRST);
        loop {
            let next = self.queue.lock().waiting.front().cloned();
            let Some(checkpoint) = next else {
                tokio::select! {
                    biased;
                    () = self.more.notified() => continue,
                    () = stopping.cancelled() => return,
                }
            };
            match self.target.deliver(&checkpoint).await {
                Ok(()) => {
                    self.done(&checkpoint);
                    (tries, pause) = (0, PAUSE_FIRST);
                }
                Err(reason) => {
                    tries += 1;
                    if self.failed(&checkpoint, reason, tries) {
                        tries = 0;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause) => {}
                        () = stopping.cancelled() => tokio::time::sleep(PAUSE_STOPPING).await,
                    }
                    pause = (pause * 2).min(PAUSE_LAST);
                }
            }
        }
    }

    fn done(&self, checkpoint: &Arc<Outgoing>) {
        let mut queue = self.queue.lock();
        queue.take(checkpoint);
        if let Some((since, _)) = queue.failing.take() {
            tracing::info!(sink = self.name, %since, "a checkpoint sink works again");
        }
    }

    /// Whether this checkpoint is given up for a newer one.
    fn failed(&self, checkpoint: &Arc<Outgoing>, reason: String, tries: u32) -> bool {
        let mut queue = self.queue.lock();
        let since = match &queue.failing {
            Some((since, _)) => *since,
            None => {
                tracing::warn!(
                    sink = self.name,
                    reason,
                    "a checkpoint sink fails; it is tried again, and calls go on"
                );
                clock::now()
            }
        };
        queue.failing = Some((since, reason));
        let gives_up = tries >= TRIES && queue.waiting.len() > 1 && queue.take(checkpoint);
        if gives_up {
            queue.given_up += 1;
        }
        gives_up
    }
}

impl Queue {
    /// Takes out the first one, if it still is this one and has not given way meanwhile.
    fn take(&mut self, checkpoint: &Arc<Outgoing>) -> bool {
        let still = self
            .waiting
            .front()
            .is_some_and(|first| Arc::ptr_eq(first, checkpoint));
        if still {
            self.waiting.pop_front();
        }
        still
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(size: u64) -> Outgoing {
        Outgoing {
            instance: "inst_1".to_owned(),
            size,
            note: format!("{size}\n"),
        }
    }

    fn file(path: &std::path::Path) -> (String, SinkSettings) {
        let settings = FileSettings {
            path: path.to_owned(),
        };
        ("file".to_owned(), SinkSettings::File(settings))
    }

    #[tokio::test(start_paused = true)]
    async fn a_sink_that_fails_keeps_the_newest_and_says_so() {
        let directory = std::env::temp_dir().join(crate::secrets::random_hex().unwrap());
        let path = directory.join("checkpoints");
        let sinks = Sinks::start(&[file(&path)]).unwrap();
        let many = u64::try_from(KEPT).unwrap() + 10;
        for size in 1..=many {
            sinks.send(checkpoint(size));
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let status = &sinks.status()[0];
        assert_eq!(status.waiting, KEPT);
        assert_eq!(status.given_up, 10);
        assert!(status.failing.is_some(), "{status:?}");
        std::fs::create_dir(&directory).unwrap();
        // Longer than any pause.
        tokio::time::sleep(2 * PAUSE_LAST).await;
        sinks.finish(Duration::from_secs(60)).await;
        let status = &sinks.status()[0];
        assert_eq!((status.waiting, status.failing.is_none()), (0, true));
        let kept = std::fs::read_to_string(&path).unwrap();
        assert!(kept.starts_with("11\n12\n"), "{}", &kept[..20]);
        assert!(kept.ends_with(&format!("{many}\n")));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn tries_are_bounded_where_newer_ones_wait_and_the_end_is_not_held_up() {
        let path = std::env::temp_dir()
            .join(crate::secrets::random_hex().unwrap())
            .join("checkpoints");
        let sinks = Sinks::start(&[file(&path)]).unwrap();
        for size in 1..=3 {
            sinks.send(checkpoint(size));
        }
        tokio::time::sleep(3 * TRIES * PAUSE_LAST).await;
        let status = &sinks.status()[0];
        assert_eq!((status.waiting, status.given_up), (1, 2), "{status:?}");
        let began = tokio::time::Instant::now();
        sinks.finish(Duration::from_secs(5)).await;
        assert!(began.elapsed() < Duration::from_secs(6));
    }
}
