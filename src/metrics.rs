//! What the gateway counts of itself. Everything is counted in atomics that are made at the start, found by an enum or a name of
//! the config: no lock, no allocation and no text of an agent's on the way. Whatever is recorded is counted where it comes to
//! stand, so that the counts and the records agree.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crate::{
    entry::{Decision, Entry, Kind, Outcome},
    reason::Reason,
    upstream::SendError,
};

mod text;

pub use text::{CONTENT_TYPE, Gauge, exposition};

/// A step of the request path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The credential and the run.
    Identify,
    /// Tool and arguments.
    Contract,
    /// Whether it came before.
    Same,
    /// Kill switch, scopes, policies.
    Authorize,
    /// Reading the state before.
    Before,
    /// Committing the intent.
    RecordIntent,
    /// Keeping what waits for people.
    Park,
    /// The API.
    Forward,
    /// Committing the outcome.
    RecordOutcome,
}

impl Step {
    const ALL: [Self; 9] = [
        Self::Identify,
        Self::Contract,
        Self::Same,
        Self::Authorize,
        Self::Before,
        Self::RecordIntent,
        Self::Park,
        Self::Forward,
        Self::RecordOutcome,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Identify => "identify",
            Self::Contract => "contract",
            Self::Same => "same",
            Self::Authorize => "authorize",
            Self::Before => "before",
            Self::RecordIntent => "record_intent",
            Self::Park => "park",
            Self::Forward => "forward",
            Self::RecordOutcome => "record_outcome",
        }
    }
}

/// Why there was no answer from an API.
#[derive(Debug, Clone, Copy)]
enum UpstreamError {
    Halted,
    NotSent,
    Lost,
    Timeout,
    TooLarge,
    Invalid,
}

impl UpstreamError {
    const ALL: [Self; 6] = [
        Self::Halted,
        Self::NotSent,
        Self::Lost,
        Self::Timeout,
        Self::TooLarge,
        Self::Invalid,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Halted => "halted",
            Self::NotSent => "not_sent",
            Self::Lost => "lost",
            Self::Timeout => "timeout",
            Self::TooLarge => "answer_too_large",
            Self::Invalid => "answer_invalid",
        }
    }

    const fn of(error: &SendError) -> Self {
        match error {
            SendError::Halted => Self::Halted,
            SendError::NotSent { .. } => Self::NotSent,
            SendError::Lost { timeout: false, .. } => Self::Lost,
            SendError::Lost { timeout: true, .. } => Self::Timeout,
            SendError::AnswerTooLarge { .. } => Self::TooLarge,
            SendError::AnswerInvalid { .. } => Self::Invalid,
        }
    }
}

/// Whose connections are open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    /// The agents'.
    Agents,
    /// The operators'.
    Operators,
}

/// Bounds in nanoseconds, from 25 µs to 10 s.
const STEP_BOUNDS: [u64; 16] = [
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    1_000_000_000,
    2_500_000_000,
    10_000_000_000,
];
/// Bounds in entries.
const BATCH_BOUNDS: [u64; 8] = [1, 2, 4, 16, 64, 256, 512, 1_024];
/// Bounds in nanoseconds, from 1 s to a day; 5 s is where a decision was hardly one.
const DECISION_BOUNDS: [u64; 11] = [
    1_000_000_000,
    5_000_000_000,
    15_000_000_000,
    60_000_000_000,
    300_000_000_000,
    900_000_000_000,
    1_800_000_000_000,
    3_600_000_000_000,
    14_400_000_000_000,
    43_200_000_000_000,
    86_400_000_000_000,
];
/// Less than this from the parking to the vote, and nobody has read much.
pub const HASTY: Duration = Duration::from_secs(5);

/// How often values fell between bounds that are fixed.
#[derive(Debug)]
struct Histogram {
    bounds: &'static [u64],
    /// One more than there are bounds.
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
    /// What one is worth where it is shown: 1e-9 for nanoseconds shown as seconds.
    scale: f64,
}

impl Histogram {
    fn new(bounds: &'static [u64], scale: f64) -> Self {
        Self {
            bounds,
            buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
            scale,
        }
    }

    fn of_time(bounds: &'static [u64]) -> Self {
        Self::new(bounds, 1e-9)
    }

    fn observe(&self, value: u64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
            self.sum.fetch_add(value, Ordering::Relaxed);
        }
    }

    fn time(&self, took: Duration) {
        self.observe(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// One counter for each of the members of a closed set.
#[derive(Debug)]
struct Counters<const COUNT: usize>([AtomicU64; COUNT]);

impl<const COUNT: usize> Counters<COUNT> {
    const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; COUNT])
    }

    fn add(&self, which: usize) {
        if let Some(counter) = self.0.get(which) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn get(&self, which: usize) -> u64 {
        self.0
            .get(which)
            .map_or(0, |counter| counter.load(Ordering::Relaxed))
    }
}

/// The counts of one start of the gateway.
#[derive(Debug)]
pub struct Metrics {
    permitted: Counters<1>,
    parked: Counters<1>,
    denied: Counters<{ Reason::ALL.len() }>,
    outcomes: Counters<{ Outcome::ALL.len() }>,
    permissions_used: Counters<1>,
    steps: [Histogram; Step::ALL.len()],
    batch_entries: Histogram,
    commit: Histogram,
    upstream_errors: Counters<{ UpstreamError::ALL.len() }>,
    connections: [AtomicI64; 2],
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            permitted: Counters::new(),
            parked: Counters::new(),
            denied: Counters::new(),
            outcomes: Counters::new(),
            permissions_used: Counters::new(),
            steps: Step::ALL.map(|_| Histogram::of_time(&STEP_BOUNDS)),
            batch_entries: Histogram::new(&BATCH_BOUNDS, 1.0),
            commit: Histogram::of_time(&STEP_BOUNDS),
            upstream_errors: Counters::new(),
            connections: [const { AtomicI64::new(0) }; 2],
        }
    }
}

impl Metrics {
    /// Entries stand since one commit, which took so long.
    pub fn committed<'e>(&self, entries: impl Iterator<Item = &'e Entry>, took: Duration) {
        let mut count = 0_u64;
        for entry in entries {
            count = count.saturating_add(1);
            self.recorded(entry);
        }
        if count > 0 {
            self.batch_entries.observe(count);
            self.commit.time(took);
        }
    }

    fn recorded(&self, entry: &Entry) {
        // A read that the gateway made for another call is no call of an agent.
        if entry.surface == Some("before") {
            return;
        }
        if entry.opens_call {
            match entry.decision {
                Some(Decision::Permit) => self.permitted.add(0),
                Some(Decision::Park) => self.parked.add(0),
                Some(Decision::Deny) => {
                    let code = entry.reasons.first().copied().unwrap_or_default();
                    let known = Reason::ALL.iter().position(|reason| reason.code() == code);
                    self.denied.add(known.unwrap_or(Reason::ALL.len()));
                }
                None => {}
            }
        }
        if let Some(outcome) = entry.outcome {
            self.outcomes.add(outcome as usize);
        }
        if entry.kind == Some(Kind::PermissionUsed) {
            self.permissions_used.add(0);
        }
    }

    /// An API gave no answer.
    pub fn upstream_failed(&self, error: &SendError) {
        self.upstream_errors.add(UpstreamError::of(error) as usize);
    }

    /// A connection is open until what comes back is dropped.
    pub fn connected(self: &Arc<Self>, listener: Listener) -> Open {
        if let Some(count) = self.connections.get(listener as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        Open {
            metrics: Arc::clone(self),
            listener,
        }
    }
}

/// One open connection.
#[derive(Debug)]
pub struct Open {
    metrics: Arc<Metrics>,
    listener: Listener,
}

impl Drop for Open {
    fn drop(&mut self) {
        if let Some(count) = self.metrics.connections.get(self.listener as usize) {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Times the steps of one call, one after the other. A step that refuses ends when this is dropped.
pub struct Lap<'a> {
    metrics: &'a Metrics,
    /// What is under way, and since when.
    step: Option<(Step, Instant)>,
}

impl<'a> Lap<'a> {
    /// The first step begins.
    pub fn begin(metrics: &'a Metrics, step: Step) -> Self {
        Self {
            metrics,
            step: Some((step, Instant::now())),
        }
    }

    /// The step before has ended, and this one begins.
    pub fn then(&mut self, step: Step) {
        let now = Instant::now();
        self.took(now);
        self.step = Some((step, now));
    }

    /// The last step has ended; what follows is none.
    pub fn end(&mut self) {
        self.took(Instant::now());
    }

    fn took(&mut self, now: Instant) {
        if let Some((step, since)) = self.step.take()
            && let Some(histogram) = self.metrics.steps.get(step as usize)
        {
            histogram.time(now.saturating_duration_since(since));
        }
    }
}

impl Drop for Lap<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

#[derive(Debug)]
struct Voter {
    /// Approvals and denials.
    votes: Counters<2>,
    /// Those among them that came sooner than [`HASTY`].
    hasty: Counters<2>,
}

/// How much is asked of people: by tier and operator, as the config names them.
#[derive(Debug)]
pub struct People {
    /// From the parking to the decision.
    decisions: BTreeMap<Arc<str>, Histogram>,
    voters: BTreeMap<Arc<str>, Voter>,
}

impl People {
    /// Nothing counted yet.
    pub fn new(
        tiers: impl Iterator<Item = Arc<str>>,
        operators: impl Iterator<Item = Arc<str>>,
    ) -> Self {
        Self {
            decisions: tiers
                .map(|tier| (tier, Histogram::of_time(&DECISION_BOUNDS)))
                .collect(),
            voters: operators
                .map(|operator| {
                    let voter = Voter {
                        votes: Counters::new(),
                        hasty: Counters::new(),
                    };
                    (operator, voter)
                })
                .collect(),
        }
    }

    /// An operator voted on a line of calls, so long after it began to wait.
    pub fn voted(&self, operator: &str, approves: bool, waited: Duration) {
        let Some(voter) = self.voters.get(operator) else {
            return;
        };
        let which = usize::from(!approves);
        voter.votes.add(which);
        if waited < HASTY {
            voter.hasty.add(which);
        }
    }

    /// People have decided on a line of calls that waited in a tier.
    pub fn decided(&self, tier: &str, waited: Duration) {
        if let Some(histogram) = self.decisions.get(tier) {
            histogram.time(waited);
        }
    }
}
