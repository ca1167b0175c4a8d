//! Whether a call that got no answer is sent once more: after a failure that certainly sent nothing, or where the API recognises
//! what it has had before. Few times, within the call's own time, and past the kill switch each time.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::record::Recorded;
use crate::{
    call::Consequence,
    clock::{self, Timestamp},
    contracts::Contract,
    upstream::SendError,
};

/// How long to wait before each further try. Their number bounds the tries.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// What is known of the tries of one call so far.
pub(super) struct Tries {
    deadline: Instant,
    /// Whether it may be sent again although it may have been executed.
    is_repeatable: bool,
    /// Whether it may be sent again at all.
    is_retried: bool,
    failed: Vec<(Timestamp, SendError)>,
}

impl Tries {
    /// Nothing sent yet. The call's time begins now.
    pub fn of(recorded: &Recorded) -> Self {
        let contract = &recorded.call().tool.contract;
        Self {
            deadline: Instant::now() + contract.limits.timeout(),
            is_repeatable: is_repeatable(contract),
            // People approved one payment: without a header by which the API knows it again, one try is all it gets.
            is_retried: !(recorded.is_parked()
                && contract.consequence == Consequence::MoneyMovement
                && contract.idempotency_header.is_none()),
            failed: Vec::new(),
        }
    }

    /// What is left of the call's time.
    pub fn time_left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// Notes a failure. After which pause the call is sent again, if it is.
    pub fn after(&mut self, error: SendError) -> Option<Duration> {
        let may = self.is_retried
            && match &error {
                SendError::NotSent { .. } => true,
                SendError::Lost { timeout: false, .. } => self.is_repeatable,
                SendError::Lost { timeout: true, .. }
                | SendError::Halted
                | SendError::AnswerTooLarge { .. }
                | SendError::AnswerInvalid { .. } => false,
            };
        let pause = PAUSES.get(self.failed.len()).copied();
        self.failed.push((clock::now(), error));
        pause.filter(|pause| may && *pause < self.time_left())
    }

    /// The failure that counts: the last, unless that sent nothing and an earlier one may have.
    ///
    /// INVARIANT: a call of which any try may have arrived is never said not to have been sent.
    pub fn worst(&self) -> Option<&SendError> {
        let (_, last) = self.failed.last()?;
        if !last.certainly_not_sent() {
            return Some(last);
        }
        let sent = self
            .failed
            .iter()
            .rev()
            .find(|(_, error)| !error.certainly_not_sent());
        Some(sent.map_or(last, |(_, error)| error))
    }

    /// For the record, where there was more than one try: when each that failed did, and why.
    pub fn told(&self, is_answered: bool) -> Option<Value> {
        let count = self.failed.len() + usize::from(is_answered);
        (count > 1).then(|| {
            let failed: Vec<Value> = self
                .failed
                .iter()
                .map(|(at, error)| json!({ "failed_at": at, "why": error.to_string() }))
                .collect();
            json!({ "count": count, "failed": failed })
        })
    }
}

fn is_repeatable(contract: &Contract) -> bool {
    contract.idempotent || contract.idempotency_header.is_some()
}
