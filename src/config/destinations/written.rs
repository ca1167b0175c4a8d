//! Destinations as they are written, with the defaults stated.

use std::path::PathBuf;

use serde::Deserialize;

use super::Encryption;
use crate::yaml::Spanned;

/// Four days: longer than all tries take.
const MAX_AGE_SECONDS: u64 = 345_600;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::config) struct Written {
    pub(super) webhook: Option<Webhook>,
    pub(super) slack: Option<Slack>,
    pub(super) email: Option<Mail>,
    #[serde(default)]
    pub(super) events: Vec<Spanned<String>>,
    #[serde(default)]
    pub(super) tiers: Vec<Spanned<String>>,
    #[serde(default = "default_timeout")]
    pub(super) timeout_seconds: u64,
    pub(super) retry_seconds: Option<Vec<u64>>,
    #[serde(default = "default_max_age")]
    pub(super) max_age_seconds: u64,
    #[serde(default = "default_max_pending")]
    pub(super) max_pending: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Webhook {
    pub(super) url: Spanned<String>,
    pub(super) secrets: Vec<Spanned<String>>,
    pub(super) ca_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) allow_private_addresses: bool,
    #[serde(default)]
    pub(super) allow_unencrypted: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Slack {
    pub(super) url: Spanned<String>,
    pub(super) ca_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) allow_private_addresses: bool,
    #[serde(default)]
    pub(super) allow_unencrypted: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mail {
    pub(super) host: Spanned<String>,
    pub(super) port: Option<u16>,
    #[serde(default = "default_encryption")]
    pub(super) encryption: Encryption,
    pub(super) username: Option<Spanned<String>>,
    pub(super) password: Option<Spanned<String>>,
    pub(super) from: Spanned<String>,
    pub(super) to: Vec<Spanned<String>>,
    pub(super) ca_file: Option<PathBuf>,
    #[serde(default)]
    pub(super) allow_unencrypted: bool,
}

/// What Standard Webhooks 1.0.0 recommends at the least.
const fn default_timeout() -> u64 {
    15
}

const fn default_max_age() -> u64 {
    MAX_AGE_SECONDS
}

const fn default_max_pending() -> u32 {
    10_000
}

const fn default_encryption() -> Encryption {
    Encryption::Starttls
}
