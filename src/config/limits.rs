//! Bounds that hold for every call, from the file's units to times.

use std::time::Duration;

use super::file;
use crate::entry::Caps;

/// Bounds on what one caller can make the gateway hold.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections a listener holds at the same time.
    pub max_connections: usize,
    /// How long a client may take to send a request's head, and may keep a connection without sending one.
    pub head_timeout: Duration,
    /// How long a client may take to send a request's body.
    pub client_read_timeout: Duration,
    /// How long a client may read nothing of an answer that waits for it.
    pub client_write_timeout: Duration,
    /// The longest that `Prefer: wait=N` holds a connection.
    pub max_wait: Duration,
    /// Connections of one agent that it holds at the same time; further ones are answered at once.
    pub max_waits_per_agent: usize,
    /// How long a call waits for its record before it is refused.
    pub record_timeout: Duration,
    /// How long shutdown waits for calls in flight.
    pub shutdown_timeout: Duration,
    /// How much of a value is recorded.
    pub recorded: Caps,
    /// Values that one run may know by reference; what is beyond is masked.
    pub max_references_per_run: u32,
    /// The longest for which an operator may lend their right to vote.
    pub longest_delegation: Duration,
    /// For how long an ended call keeps its idempotency key and its answer.
    pub answer_retention: Duration,
    /// For how long nobody else may claim what an operator has claimed of the work list.
    pub work_lease: Duration,
}

impl Limits {
    /// `recorded` are the caps, which are checked on their own.
    pub(super) fn new(written: &file::Limits, recorded: Caps) -> Self {
        Self {
            max_connections: written.max_connections,
            head_timeout: Duration::from_millis(written.head_timeout_ms),
            client_read_timeout: Duration::from_millis(written.client_read_timeout_ms),
            client_write_timeout: Duration::from_millis(written.client_write_timeout_ms),
            max_wait: Duration::from_secs(written.max_wait_seconds),
            max_waits_per_agent: written.max_waits_per_agent,
            record_timeout: Duration::from_millis(written.record_timeout_ms),
            shutdown_timeout: Duration::from_secs(written.shutdown_timeout_seconds),
            recorded,
            max_references_per_run: written.max_references_per_run,
            longest_delegation: Duration::from_secs(written.longest_delegation_seconds),
            answer_retention: Duration::from_secs(written.answer_retention_seconds),
            work_lease: Duration::from_secs(written.work_lease_seconds),
        }
    }
}
