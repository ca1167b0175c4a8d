//! `toolgate.yaml` as it is written: names with units, defaults stated here, unknown fields refused.

use std::{collections::BTreeMap, net::SocketAddr, num::NonZeroU64, path::PathBuf};

use serde::Deserialize;

use super::{destinations, links, work_list};
use crate::{call::ClassRules, yaml::Spanned};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Config {
    pub listeners: Listeners,
    pub database: Database,
    pub master_secret: Spanned<String>,
    #[serde(default)]
    pub previous_master_secrets: Vec<Spanned<String>>,
    pub tools: PathBuf,
    pub policies: PathBuf,
    #[serde(default)]
    pub limits: Limits,
    #[serde(default)]
    pub checkpoints: Checkpoints,
    #[serde(default)]
    pub answers: ClassRules,
    #[serde(default)]
    pub records: Records,
    pub apis: BTreeMap<String, Spanned<Api>>,
    pub agents: BTreeMap<String, Spanned<Agent>>,
    pub operators: BTreeMap<String, Spanned<Operator>>,
    pub tiers: BTreeMap<String, Spanned<Tier>>,
    pub public_url: Option<Spanned<String>>,
    #[serde(default)]
    pub links: links::Written,
    #[serde(default)]
    pub destinations: BTreeMap<String, Spanned<destinations::Written>>,
    pub state_directory: Option<Spanned<String>>,
    pub work_list_copy: Option<Spanned<work_list::Written>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listeners {
    #[serde(default = "default_agents")]
    pub agents: SocketAddr,
    #[serde(default = "default_operators")]
    pub operators: SocketAddr,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Database {
    BuiltIn {
        home: Spanned<String>,
    },
    External {
        url: Spanned<String>,
        owner_url: Option<Spanned<String>>,
    },
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Records {
    /// Left out: for ever.
    pub keep_for_days: Option<Spanned<u32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Limits {
    pub max_connections: usize,
    pub head_timeout_ms: u64,
    pub client_read_timeout_ms: u64,
    pub client_write_timeout_ms: u64,
    pub max_wait_seconds: u64,
    pub max_waits_per_agent: usize,
    pub record_timeout_ms: u64,
    pub shutdown_timeout_seconds: u64,
    pub max_recorded_text_bytes: Option<Spanned<usize>>,
    pub max_recorded_document_bytes: Option<Spanned<usize>>,
    pub max_references_per_run: u32,
    pub longest_delegation_seconds: u64,
    pub answer_retention_seconds: u64,
    pub work_lease_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_connections: 4096,
            head_timeout_ms: 30_000,
            client_read_timeout_ms: 10_000,
            client_write_timeout_ms: 30_000,
            max_wait_seconds: 300,
            max_waits_per_agent: 64,
            record_timeout_ms: 2_000,
            shutdown_timeout_seconds: 20,
            max_recorded_text_bytes: None,
            max_recorded_document_bytes: None,
            max_references_per_run: 1_000,
            longest_delegation_seconds: 30 * 86_400,
            answer_retention_seconds: 86_400,
            work_lease_seconds: 1_800,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Checkpoints {
    pub installation: Option<Spanned<String>>,
    pub key_file: Option<Spanned<String>>,
    pub every_entries: NonZeroU64,
    pub every_seconds: NonZeroU64,
    pub sinks: BTreeMap<String, Spanned<Sink>>,
}

impl Default for Checkpoints {
    fn default() -> Self {
        Self {
            installation: None,
            key_file: None,
            every_entries: NonZeroU64::MIN.saturating_add(999),
            every_seconds: NonZeroU64::MIN.saturating_add(59),
            sinks: BTreeMap::new(),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Sink {
    File {
        path: Spanned<String>,
    },
    Webhook {
        url: Spanned<String>,
        credential: Option<Spanned<Credential>>,
        ca_file: Option<PathBuf>,
        #[serde(default = "default_sink_timeout")]
        timeout_ms: u64,
    },
    S3 {
        endpoint: Option<Spanned<String>>,
        region: Spanned<String>,
        bucket: Spanned<String>,
        #[serde(default)]
        prefix: String,
        access_key_id: Spanned<String>,
        secret_access_key: Spanned<String>,
        ca_file: Option<PathBuf>,
        #[serde(default = "default_sink_timeout")]
        timeout_ms: u64,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Api {
    pub base_url: Spanned<String>,
    pub credential: Option<Credential>,
    pub ca_file: Option<PathBuf>,
    #[serde(default = "default_connect_timeout")]
    pub connect_timeout_ms: u64,
    #[serde(default = "default_idle_timeout")]
    pub idle_timeout_ms: u64,
    #[serde(default = "default_upstream_connections")]
    pub max_connections: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub(super) enum Credential {
    Header {
        name: Spanned<String>,
        value: Spanned<String>,
    },
    Query {
        name: String,
        value: Spanned<String>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Agent {
    pub owner: Spanned<String>,
    #[serde(default)]
    pub groups: Vec<String>,
    pub scopes: Vec<Spanned<String>>,
    #[serde(default = "default_pending")]
    pub max_pending_approvals: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Operator {
    pub roles: Vec<String>,
    #[serde(default)]
    pub groups: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Tier {
    pub requires: Vec<Spanned<Requirement>>,
    #[serde(default = "default_denials")]
    pub denials: u32,
    pub expires_in_seconds: u64,
    pub shows: Option<Vec<Spanned<String>>>,
    pub escalates: Option<Spanned<Escalates>>,
    #[serde(default)]
    pub execution: super::Execution,
    pub standing_permissions: Option<Spanned<StandingPermissions>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StandingPermissions {
    pub max_calls: u32,
    pub max_seconds: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Requirement {
    pub role: Option<String>,
    pub group: Option<String>,
    pub approvals: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Escalates {
    pub to: String,
    pub after_seconds: u64,
}

fn default_agents() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8080))
}

fn default_operators() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 8081))
}

const fn default_connect_timeout() -> u64 {
    3_000
}

/// Below the five seconds after which Node.js closes an idle connection.
const fn default_idle_timeout() -> u64 {
    4_000
}

const fn default_upstream_connections() -> usize {
    256
}

const fn default_sink_timeout() -> u64 {
    10_000
}

/// One person with a say ends the call.
const fn default_denials() -> u32 {
    1
}

const fn default_pending() -> u32 {
    100
}
