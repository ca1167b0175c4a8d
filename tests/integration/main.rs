//! The gateway from outside: real HTTP against a real PostgreSQL and real APIs. One binary, because linking is what takes
//! time.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should fail at once"
)]

mod approvals;
mod approvals_waiting;
mod cli;
mod desk;
mod idempotency;
mod kill_switch;
mod layers;
mod outage;
mod records;
mod support;
