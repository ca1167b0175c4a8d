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
mod audit_api;
mod bodies;
mod checkpoint_sinks;
mod checkpoints;
mod cli;
mod clock_jumps;
mod composition;
mod composition_races;
mod composition_sending;
mod conformity;
mod crash;
mod crash_hand;
mod delivery;
mod delivery_mail;
mod delivery_stream;
mod delivery_tls;
mod desk;
mod dictionary;
mod effects;
mod etcd;
mod faults;
mod forgery;
mod http;
mod idempotency;
mod identity;
mod keeping;
mod keeping_built_in;
mod keeping_roots;
mod kill_switch;
mod knocking;
mod layers;
mod lines;
mod lists;
mod load;
mod long_chain;
mod metrics;
mod once;
mod openapi;
mod outage;
mod outbox;
mod paths;
mod permissions;
mod preview;
mod probe;
mod queue;
mod reading;
mod receiver;
mod records;
mod refused;
mod rotation;
mod runs;
mod sensitive;
mod shown;
mod standing;
mod stories;
mod support;
mod tampering;
mod tenure;
mod wire;
mod withheld;
mod work;
mod work_approved;
mod work_copy;
