//! How long a gateway may send after the database last answered it. Only one gateway serves a database, and the lock that says
//! which is lost with the connection, unseen by the one that lost it. So a gateway sends only for [`TENURE`] after an answer that
//! came while it had the lock, and a successor that cannot know its predecessor dead waits for as long before it begins.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

pub mod process;

/// How long the right to send outlives the question that the database answered. Longer than one commit may take, so that a slow
/// database does not end it.
pub const TENURE: Duration = Duration::from_secs(10);

/// The right of this process to send calls.
#[derive(Debug)]
pub struct Tenure {
    origin: Instant,
    /// Milliseconds after `origin`.
    until: AtomicU64,
    over: AtomicBool,
    superseded: CancellationToken,
}

impl Default for Tenure {
    /// Not yet begun: nothing may be sent.
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            until: AtomicU64::new(0),
            over: AtomicBool::new(false),
            superseded: CancellationToken::new(),
        }
    }
}

impl Tenure {
    /// The database has answered what it was asked at this moment, over the connection that holds the lock.
    pub fn confirm(&self, asked_at: Instant) {
        let until = asked_at + TENURE;
        self.until
            .fetch_max(self.since_origin(until), Ordering::AcqRel);
    }

    /// Whether something may be sent now.
    pub fn holds(&self) -> bool {
        !self.over.load(Ordering::Acquire)
            && self.since_origin(Instant::now()) < self.until.load(Ordering::Acquire)
    }

    /// Ends it for good.
    pub fn end(&self) {
        self.over.store(true, Ordering::Release);
    }

    /// Another gateway has served the database meanwhile: what this one remembers is no longer what stands. Ends it for good and
    /// wakes whoever waits in [`Tenure::superseded`].
    pub fn supersede(&self) {
        self.end();
        self.superseded.cancel();
    }

    /// Returns once another gateway is known to have served the database.
    pub async fn superseded(&self) {
        self.superseded.cancelled().await;
    }

    /// Whether another gateway is known to have served the database.
    pub fn is_superseded(&self) -> bool {
        self.superseded.is_cancelled()
    }

    fn since_origin(&self, moment: Instant) -> u64 {
        let passed = moment.saturating_duration_since(self.origin).as_millis();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_an_answer_and_is_counted_from_the_question() {
        let tenure = Tenure::default();
        assert!(!tenure.holds(), "before the database said anything");
        let Some(long_ago) = Instant::now().checked_sub(TENURE) else {
            return;
        };
        tenure.confirm(long_ago);
        assert!(!tenure.holds(), "an answer to a question of too long ago");
        tenure.confirm(Instant::now());
        assert!(tenure.holds());
        tenure.confirm(long_ago);
        assert!(tenure.holds(), "a late answer took back what a newer gave");
    }

    #[test]
    fn once_over_nothing_brings_it_back() {
        let tenure = Tenure::default();
        tenure.confirm(Instant::now());
        tenure.end();
        assert!(!tenure.holds());
        tenure.confirm(Instant::now());
        assert!(!tenure.holds());
        assert!(!tenure.is_superseded());
        tenure.supersede();
        assert!(tenure.is_superseded());
    }
}
