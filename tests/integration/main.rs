//! The gateway from outside: real HTTP against a real PostgreSQL and real APIs. One binary, because linking is what takes
//! time.

mod approvals;
mod approvals_waiting;
mod desk;
mod idempotency;
mod kill_switch;
mod outage;
mod reading;
mod support;
