//! Whoever knocks without a key that is in force: the first attempt of a source is told at once, the others are counted and told
//! together once a minute. A call without a key is a refused call with a row of its own, until there are many. So nobody is
//! forgotten, and a flood of bad keys fills neither the memory nor the table.

use std::{collections::HashMap, net::IpAddr};

use parking_lot::Mutex;
use serde_json::json;

use crate::{
    clock::Timestamp,
    entry::{Decision, Entry, Kind},
    keys::KeyKind,
};

/// Requests from sources that are told apart in one turn. All others are one number.
const SOURCES: usize = 64;

/// Calls in one turn, from everywhere together, that are told each by its own. The others are counted.
const CALLS: usize = 256;

/// What was tried, and from where.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Attempt {
    listener: KeyKind,
    /// Method and route, never a path as it came; none for all that is not told apart.
    request: Option<String>,
    source: Option<IpAddr>,
}

#[derive(Debug, Clone, Copy)]
struct Tally {
    untold: u64,
    first: Timestamp,
    last: Timestamp,
}

/// How a call without a key is told of.
#[derive(Debug)]
pub enum Called {
    /// By its own row, as every refused call.
    Alone,
    /// By its number; the first of a source by this entry at once. Its id leads nowhere.
    Counted(Option<Entry>),
}

/// The attempts since the last turn.
#[derive(Debug, Default)]
struct Seen {
    attempts: HashMap<Attempt, Tally>,
    /// Calls that were told each by its own.
    calls: usize,
}

/// Who knocks.
#[derive(Debug, Default)]
pub struct Strangers {
    seen: Mutex<Seen>,
}

impl Strangers {
    /// Takes note of a call.
    pub fn called(&self, source: Option<IpAddr>, now: Timestamp) -> Called {
        {
            let mut seen = self.seen.lock();
            if seen.calls < CALLS {
                seen.calls += 1;
                return Called::Alone;
            }
        }
        Called::Counted(self.knocked(KeyKind::Agent, "a call".to_owned(), source, now))
    }

    /// Takes note of an attempt; gives the entry of one that is to be told at once. `listener` says whose key was missing.
    pub fn knocked(
        &self,
        listener: KeyKind,
        request: String,
        source: Option<IpAddr>,
        now: Timestamp,
    ) -> Option<Entry> {
        let attempt = Attempt {
            listener,
            request: Some(request),
            source,
        };
        let mut seen = self.seen.lock();
        let seen = &mut seen.attempts;
        if let Some(tally) = seen.get_mut(&attempt) {
            tally.untold += 1;
            tally.last = now;
            return None;
        }
        let one = Tally {
            untold: 1,
            first: now,
            last: now,
        };
        if seen.len() < SOURCES {
            let entry = entry(&attempt, one);
            seen.insert(attempt, Tally { untold: 0, ..one });
            return Some(entry);
        }
        let others = Attempt {
            listener,
            request: None,
            source: None,
        };
        seen.entry(others)
            .and_modify(|tally| {
                tally.untold += 1;
                tally.last = now;
            })
            .or_insert(one);
        None
    }

    /// Begins the next turn; gives the entries of what was counted in this one.
    pub fn turn(&self) -> Vec<Entry> {
        let seen = std::mem::take(&mut *self.seen.lock());
        seen.attempts
            .iter()
            .filter(|(_, tally)| tally.untold > 0)
            .map(|(attempt, tally)| entry(attempt, *tally))
            .collect()
    }
}

fn entry(attempt: &Attempt, tally: Tally) -> Entry {
    let kind = match attempt.listener {
        KeyKind::Agent => Kind::AgentRefused,
        KeyKind::Operator => Kind::OperatorRefused,
    };
    Entry {
        decision: Some(Decision::Deny),
        reasons: vec!["unauthenticated"],
        detail: Some(json!({
            "request": attempt.request,
            "source": attempt.source,
            "attempts": tally.untold,
            "from": tally.first,
            "until": tally.last,
        })),
        ..Entry::new(kind)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::clock;

    fn attempts(entry: &Entry) -> u64 {
        entry.detail.as_ref().unwrap()["attempts"].as_u64().unwrap()
    }

    #[test]
    fn a_flood_is_one_entry_at_once_and_one_a_turn() {
        let strangers = Strangers::default();
        let source = Some(IpAddr::from(Ipv4Addr::LOCALHOST));
        let knock = || {
            strangers.knocked(
                KeyKind::Agent,
                "GET /v1/tools".to_owned(),
                source,
                clock::now(),
            )
        };
        assert_eq!(attempts(&knock().unwrap()), 1);
        for _ in 0..100_000 {
            assert!(knock().is_none());
        }
        let told = strangers.turn();
        assert_eq!(told.iter().map(attempts).collect::<Vec<_>>(), [100_000]);
        assert!(strangers.turn().is_empty());
        assert!(
            knock().is_some(),
            "a new turn tells the first one at once again"
        );
    }

    #[test]
    fn many_sources_take_no_more_room_than_some() {
        let strangers = Strangers::default();
        let mut told = 0;
        for source in 0..100_000_u32 {
            let source = Some(IpAddr::from(Ipv4Addr::from(source)));
            let entry = strangers.knocked(
                KeyKind::Operator,
                "GET /v1/runs".to_owned(),
                source,
                clock::now(),
            );
            told += entry.iter().map(attempts).sum::<u64>();
        }
        assert_eq!(told, SOURCES as u64);
        assert_eq!(strangers.seen.lock().attempts.len(), SOURCES + 1);
        let rest = strangers.turn();
        assert_eq!(rest.len(), 1);
        told += rest.iter().map(attempts).sum::<u64>();
        assert_eq!(told, 100_000, "each is counted");
    }
    #[test]
    fn a_flood_of_calls_has_some_rows_and_each_is_counted() {
        let strangers = Strangers::default();
        let (mut rows, mut told) = (0, 0);
        for call in 0..10_000_u32 {
            let source = Some(IpAddr::from(Ipv4Addr::from(call % 200)));
            match strangers.called(source, clock::now()) {
                Called::Alone => rows += 1,
                Called::Counted(entry) => told += entry.iter().map(attempts).sum::<u64>(),
            }
        }
        assert_eq!((rows, told), (CALLS as u64, SOURCES as u64));
        let rest = strangers.turn();
        assert!(rest.len() <= SOURCES + 1);
        told += rest.iter().map(attempts).sum::<u64>();
        assert_eq!(rows + told, 10_000);
        assert!(matches!(
            strangers.called(None, clock::now()),
            Called::Alone
        ));
    }
}
