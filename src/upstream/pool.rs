//! Connections that wait for their next request, and the bound on how many are open.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::exchange::Live;

struct Idle {
    live: Live,
    since: Instant,
}

/// The idle connections of one API, newest last.
///
/// INVARIANT: no more than `max_connections` are open at once. Every connection in use or being opened holds
/// a permit, a new one is opened only where none was idle, and a permit is given back after its connection.
pub(super) struct Pool {
    idle: Mutex<VecDeque<Idle>>,
    permits: Arc<Semaphore>,
    limit: usize,
    idle_timeout: Duration,
    max_idle: usize,
}

/// The right to one connection. Held as long as the connection is used.
pub(super) struct Lease {
    pool: Arc<Pool>,
    _permit: OwnedSemaphorePermit,
}

impl Pool {
    pub(super) fn new(idle_timeout: Duration, max_idle: usize, max_connections: usize) -> Self {
        let permits = max_connections.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            idle: Mutex::new(VecDeque::new()),
            permits: Arc::new(Semaphore::new(permits)),
            limit: permits,
            idle_timeout,
            max_idle: max_idle.min(permits),
        }
    }

    /// Waits for the right to a connection. `None` never happens while the pool lives: nobody closes it.
    pub(super) async fn lease(self: &Arc<Self>) -> Option<Lease> {
        let permits = Arc::clone(&self.permits);
        let permit = match Arc::clone(&permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => permits.acquire_owned().await.ok()?,
        };
        Some(Lease {
            pool: Arc::clone(self),
            _permit: permit,
        })
    }

    /// Closes the connections that have been idle for too long.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let stale: Vec<Idle> = {
            let mut idle = self.idle.lock();
            let fresh_from = idle.partition_point(|idle| self.is_stale(idle, now));
            idle.drain(..fresh_from).collect()
        };
        // Closing sockets takes system calls: not under the lock.
        drop(stale);
    }

    /// How many connections are in use or being opened.
    pub(super) fn used_count(&self) -> usize {
        self.limit.saturating_sub(self.permits.available_permits())
    }

    /// How many connections wait.
    pub(super) fn idle_count(&self) -> usize {
        self.idle.lock().len()
    }

    fn is_stale(&self, idle: &Idle, now: Instant) -> bool {
        now.saturating_duration_since(idle.since) >= self.idle_timeout
    }
}

impl Lease {
    /// The most recently used connection that is still good. Those found ended or misbehaving are closed.
    pub(super) fn take_idle(&self) -> Option<Live> {
        loop {
            let Idle { mut live, since } = self.pool.idle.lock().pop_back()?;
            if since.elapsed() >= self.pool.idle_timeout {
                // Whatever lies below was used even longer ago.
                drop(live);
                self.pool.sweep();
                return None;
            }
            if live.is_idle() {
                return Some(live);
            }
        }
    }

    /// Gives the connection back if hyper holds it fit for another request, and closes it otherwise.
    pub(super) fn give_back(self, mut live: Live) {
        if !live.is_idle() {
            return;
        }
        let mut idle = self.pool.idle.lock();
        let surplus = if idle.len() >= self.pool.max_idle {
            idle.pop_front()
        } else {
            None
        };
        if idle.len() < self.pool.max_idle {
            idle.push_back(Idle {
                live,
                since: Instant::now(),
            });
        }
        drop(idle);
        drop(surplus);
    }
}
