//! `toolgate audit`: what an auditor does with the records, beside a running gateway and with the auditor's own rights.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use sqlx::postgres::PgConnectOptions;

use crate::{database::AUDITOR_URL, postgres};

mod drop;
mod export;
mod hash;
mod history;
mod rotate_key;
mod story;
mod verify;
mod words;

#[derive(Debug, Subcommand)]
pub(super) enum Audit {
    /// Tell what happened to a call: who and what for, what decided, what it changed, and how long each step took.
    Call(history::HistoryArgs),
    /// Tell what happened in a run, in order.
    Run(history::HistoryArgs),
    /// Tell who was asked about a parked call, what they saw, and what they said.
    Approval(history::HistoryArgs),
    /// Tell who pulled a kill switch and why, and what it stopped.
    Halt(history::HistoryArgs),
    /// Check that no entry was changed, removed, added or put into another order.
    Verify(verify::VerifyArgs),
    /// Write a month's entries into a file that can be checked without a database.
    Export(export::ExportArgs),
    /// Drop a month whose export verifies, as the owner of the tables.
    Drop(drop::DropArgs),
    /// Print the keyed digest of a value, by which it is found in the records.
    Hash(hash::HashArgs),
    /// Replace the key that signs checkpoints by a new one to which the old one signs over.
    RotateKey(rotate_key::RotateKeyArgs),
}

/// Where the records are.
#[derive(Debug, Args)]
struct Records {
    /// The gateway's home, for a built-in database.
    #[arg(long, value_name = "DIR")]
    home: Option<PathBuf>,
    /// The database, for any other: a postgres:// URL of a role that may read the schema audit.
    #[arg(
        long,
        value_name = "URL",
        conflicts_with = "home",
        env = "TOOLGATE_AUDIT_URL",
        hide_env_values = true
    )]
    url: Option<String>,
}

impl Records {
    /// Which database that is, without its password.
    fn words(&self) -> String {
        match (&self.url, &self.home) {
            (Some(_), _) => "the one of --url".to_owned(),
            (None, Some(home)) => format!("the one of {}", home.display()),
            (None, None) => "the one of the gateway started here".to_owned(),
        }
    }

    /// How to connect.
    fn options(&self) -> anyhow::Result<PgConnectOptions> {
        let url = match &self.url {
            Some(url) => url.clone(),
            None => {
                let home = match &self.home {
                    Some(home) => home.clone(),
                    None => postgres::default_home(&std::env::current_dir()?),
                };
                let path = home.join(AUDITOR_URL);
                std::fs::read_to_string(&path).with_context(|| {
                    format!(
                        "cannot read {}: start the gateway with this home, or give --url",
                        path.display()
                    )
                })?
            }
        };
        // The error of the parser may quote the URL, password and all.
        url.trim()
            .parse()
            .map_err(|_error: sqlx::Error| anyhow::anyhow!("this is no postgres:// URL"))
    }
}

pub(super) async fn run(command: Audit) -> anyhow::Result<ExitCode> {
    use history::Thing;
    match command {
        Audit::Call(args) => history::run(Thing::Call, args).await,
        Audit::Run(args) => history::run(Thing::Run, args).await,
        Audit::Approval(args) => history::run(Thing::Approval, args).await,
        Audit::Halt(args) => history::run(Thing::Halt, args).await,
        Audit::Verify(args) => verify::run(args).await,
        Audit::Export(args) => export::run(args).await,
        Audit::Drop(args) => drop::run(args).await,
        Audit::Hash(args) => hash::run(args),
        Audit::RotateKey(args) => rotate_key::run(args),
    }
}

/// Counts entries; draws itself on a terminal and nowhere else.
fn counting(what: &str) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template(&format!(
        "{{spinner}} {{prefix}} {{pos}} {what}"
    ))?);
    Ok(bar)
}
