//! Following the approvals as they come and go. A follower holds a place in the outbox, signed, so that it can come back to it;
//! one that was away for too long, or cannot keep up, is told to list again rather than left to believe it has seen everything.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use chrono::SecondsFormat;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

use super::Delivery;
use crate::store::{self, StoreError, outbox::EventRow};

/// Followers at the same time, of everybody and of one operator.
const MOST: usize = 64;
const MOST_OF_ONE: usize = 8;
/// Events that are told again to a follower that comes back.
const LOOK_BACK: i64 = 1_000;
/// What a follower is shown of an event: never an argument, never the agent's words.
const SHOWN: [&str; 14] = [
    "approval",
    "call",
    "run",
    "agent",
    "api",
    "tool",
    "consequence",
    "digest",
    "expires_at",
    "decided_by",
    "executed_by",
    "calls",
    "attached_to",
    "permission",
];

/// What a follower wants to see; nothing given is everything.
#[derive(Debug, Default)]
pub struct Filter {
    /// Approvals that wait in this tier.
    pub tier: Option<String>,
    /// Of this agent.
    pub agent: Option<String>,
    /// Of this tool.
    pub tool: Option<String>,
}

impl Filter {
    fn wants(&self, event: &EventRow) -> bool {
        let is = |name: &str, wanted: &Option<String>| {
            wanted
                .as_deref()
                .is_none_or(|wanted| event.data.get(name).and_then(Value::as_str) == Some(wanted))
        };
        !event.kind.starts_with("halt.")
            && is("agent", &self.agent)
            && is("tool", &self.tool)
            && self
                .tier
                .as_ref()
                .is_none_or(|tier| event.tiers.contains(tier))
    }
}

/// Why nobody follows.
#[derive(Debug, thiserror::Error)]
pub enum Opening {
    /// As many follow as may.
    #[error("too many follow the approvals")]
    TooMany,
    /// A place that this gateway did not give to this operator.
    #[error("not a place of this operator")]
    Forged,
    /// The database is away.
    #[error(transparent)]
    Away(#[from] StoreError),
}

/// Who follows, counted.
#[derive(Debug, Clone, Default)]
pub(super) struct Places {
    taken: Arc<Mutex<HashMap<Arc<str>, usize>>>,
}

/// The right to follow; given back when dropped.
#[derive(Debug)]
struct Place {
    places: Places,
    operator: Arc<str>,
}

impl Places {
    fn take(&self, operator: &Arc<str>) -> Option<Place> {
        let mut taken = self.taken.lock();
        let all: usize = taken.values().sum();
        let own = taken.get(operator).copied().unwrap_or(0);
        if all >= MOST || own >= MOST_OF_ONE {
            return None;
        }
        taken.insert(Arc::clone(operator), own + 1);
        drop(taken);
        Some(Place {
            places: self.clone(),
            operator: Arc::clone(operator),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        if let Some(count) = taken.get_mut(&self.operator) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.operator);
            }
        }
    }
}

/// An event as a follower is shown it.
#[derive(Debug)]
pub struct Shown {
    /// Where to go on after it.
    pub id: String,
    /// For instance `approval.created`.
    pub kind: String,
    /// On one line.
    pub json: String,
}

/// A follower.
pub struct Following {
    place: Place,
    delivery: Arc<Delivery>,
    filter: Filter,
    backlog: VecDeque<EventRow>,
    live: broadcast::Receiver<Arc<EventRow>>,
    last: i64,
    /// True when events before the first one shown are missing.
    pub missed: bool,
}

impl Delivery {
    /// Begins to follow, from now on or from a place given before.
    ///
    /// # Errors
    /// See [`Opening`].
    pub async fn follow(
        self: &Arc<Self>,
        operator: &Arc<str>,
        from: Option<&str>,
        filter: Filter,
    ) -> Result<Following, Opening> {
        let from = match from {
            None => None,
            Some(id) => Some(self.place_of(operator, id).ok_or(Opening::Forged)?),
        };
        let place = self.places.take(operator).ok_or(Opening::TooMany)?;
        // Listening begins before reading, so that nothing falls in between; what comes twice is known by its number.
        let live = self.followers.subscribe();
        let mut connection = self.pool.acquire().await.map_err(StoreError::from)?;
        let (oldest, newest) = store::deliveries::bounds(&mut connection)
            .await?
            .unwrap_or((1, 0));
        let mut backlog = VecDeque::new();
        let mut missed = false;
        let mut last = newest;
        if let Some(seq) = from {
            let events =
                store::deliveries::events_after(&mut connection, seq, LOOK_BACK + 1).await?;
            let too_many = i64::try_from(events.len()).unwrap_or(i64::MAX) > LOOK_BACK;
            missed = too_many || seq + 1 < oldest || seq > newest;
            if !missed {
                last = seq;
                backlog = events.into();
            }
        }
        Ok(Following {
            place,
            delivery: Arc::clone(self),
            filter,
            backlog,
            live,
            last,
            missed,
        })
    }

    fn place_id(&self, operator: &str, seq: i64) -> String {
        let tag = self.keys.place_token(&format!("{operator} {seq}"));
        format!("{seq}-{tag}")
    }

    fn place_of(&self, operator: &str, id: &str) -> Option<i64> {
        let (seq, _tag) = id.split_once('-')?;
        let seq: i64 = seq.parse().ok()?;
        let right = self.place_id(operator, seq);
        aws_lc_rs::constant_time::verify_slices_are_equal(right.as_bytes(), id.as_bytes())
            .is_ok()
            .then_some(seq)
    }
}

impl Following {
    /// Where this follower is.
    pub fn place(&self) -> String {
        self.delivery.place_id(&self.place.operator, self.last)
    }

    /// The next event that passes the filter; nothing when too many have passed unseen. Nothing is lost when the future is
    /// dropped.
    pub async fn next(&mut self) -> Option<Shown> {
        loop {
            let event = match self.backlog.pop_front() {
                Some(event) => Arc::new(event),
                None => self.live.recv().await.ok()?,
            };
            if event.seq <= self.last {
                continue;
            }
            self.last = event.seq;
            if self.filter.wants(&event) {
                return Some(self.show(&event));
            }
        }
    }

    fn show(&self, event: &EventRow) -> Shown {
        let mut data: Map<String, Value> = SHOWN
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), event.data.get(*name)?.clone())))
            .collect();
        data.insert("tiers".to_owned(), json!(event.tiers));
        let json = json!({
            "event": event.event_id,
            "type": event.kind,
            "timestamp": event.occurred_at.to_rfc3339_opts(SecondsFormat::Micros, true),
            "data": data,
        });
        Shown {
            id: self.place(),
            kind: event.kind.clone(),
            json: json.to_string(),
        }
    }
}
