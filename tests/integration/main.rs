//! The gateway from outside: real HTTP against a real PostgreSQL and real APIs. One binary, because linking is what takes
//! time.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test that meets what it did not expect should fail at once"
)]

mod answers;
mod approvals;
mod approvals_waiting;
mod bodies;
mod cli;
mod crash;
mod desk;
mod effects;
mod etcd;
mod faults;
mod http;
mod idempotency;
mod identity;
mod kill_switch;
mod layers;
mod load;
mod outage;
mod paths;
mod probe;
mod reading;
mod records;
mod runs;
mod support;
mod tampering;
mod wire;
mod work;
