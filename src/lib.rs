//! Toolgate: the gateway between AI agents and the tool APIs they call.
//!
//! A call passes through one function, [`pipeline::handle`], from top to bottom:
//!
//! 1. identify: from a credential to an agent and a run;
//! 2. contract: to a tool, and arguments that fit its JSON Schema;
//! 3. authorize: kill switch, scopes, policies; permit, park or deny;
//! 4. record: the intent is committed in PostgreSQL;
//! 5. forward: sent to the API, with credentials that the agent never sees;
//! 6. record: the outcome is committed;
//! 7. answer.
//!
//! ARCHITECTURE.md draws the modules, what each never does, and the invariants.

pub mod app;
pub mod approvals;
pub mod audit;
pub mod call;
pub mod checkpoint;
pub mod cli;
pub mod clock;
pub mod composition;
pub mod config;
pub mod contracts;
pub mod database;
pub mod delivery;
pub mod demo;
pub mod diagnostics;
pub mod entry;
pub mod http;
pub mod ids;
pub mod issuing;
pub mod json;
pub mod keys;
pub mod killswitch;
pub mod metrics;
pub mod parked;
pub mod pipeline;
pub mod policy;
pub mod postgres;
pub mod problem;
pub mod quorum;
pub mod reason;
pub mod redaction;
pub mod resolving;
pub mod runs;
pub mod secrets;
pub mod server;
pub mod signing;
pub mod sinks;
pub mod store;
pub mod strangers;
pub mod tenure;
pub mod upstream;
pub mod visible;
pub mod workers;
pub mod yaml;
