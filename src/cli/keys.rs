//! `toolgate keys`.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use chrono::TimeDelta;
use clap::Args;

use crate::{
    audit::CommandError,
    clock,
    config::{self, Variables},
    database, issuing,
    keys::KeyKind,
    signing,
};

use super::check;

#[derive(Debug, Args)]
pub(super) struct CreateArgs {
    /// The agent that the key is for.
    #[arg(
        long,
        value_name = "NAME",
        required_unless_present = "operator",
        conflicts_with = "operator"
    )]
    agent: Option<String>,
    /// The operator that the key is for.
    #[arg(long, value_name = "NAME")]
    operator: Option<String>,
    /// After how many seconds it opens nothing any more.
    #[arg(long, value_name = "SECONDS")]
    expires_in_seconds: Option<u32>,
    /// The config file.
    #[arg(long, value_name = "FILE", default_value = "config/toolgate.yaml")]
    config: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct SecretsArgs {
    /// The config file.
    #[arg(long, value_name = "FILE", default_value = "config/toolgate.yaml")]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Exit code 0 when nothing depends on any master secret but the newest, else 1.
pub(super) async fn secrets(args: SecretsArgs) -> anyhow::Result<ExitCode> {
    let file = config::read_file(args.config).map_err(anyhow::Error::msg)?;
    let (config, findings) = config::load(&file, &Variables::default());
    let Some(config) = config else {
        check::print(&findings);
        anyhow::bail!("the config has problems");
    };
    let ids = config.keyring()?.secret_ids();
    let found = issuing::dependents(&database::beside(&config.database)?).await?;
    let place = |id: Option<&str>| match ids.iter().position(|known| Some(known.as_str()) == id) {
        Some(0) => "newest",
        Some(_) => "previous",
        None if id.is_some() => "not in the config",
        None => "not known: from before ids",
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(
            out,
            "{}",
            serde_json::json!({"secrets": ids, "dependents": found})
        )?;
    } else {
        for row in &found {
            let id = row.secret.as_deref();
            writeln!(
                out,
                "{} ({}): {} keys, {} parked calls, {} kept answers, {} references",
                id.unwrap_or("-"),
                place(id),
                row.keys,
                row.waiting,
                row.answers,
                row.references
            )?;
        }
    }
    let settled = found.iter().all(|row| row.secret.as_ref() == ids.first());
    Ok(if settled {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

pub(super) async fn create(args: CreateArgs) -> anyhow::Result<ExitCode> {
    let file = config::read_file(args.config.clone()).map_err(anyhow::Error::msg)?;
    let (config, findings) = config::load(&file, &Variables::default());
    let Some(config) = config else {
        check::print(&findings);
        anyhow::bail!("the config has problems");
    };
    let (kind, owner, known) = match (&args.agent, &args.operator) {
        (Some(agent), _) => (
            KeyKind::Agent,
            agent,
            config.agents.contains_key(agent.as_str()),
        ),
        (None, Some(operator)) => (
            KeyKind::Operator,
            operator,
            config.operators.contains_key(operator.as_str()),
        ),
        (None, None) => anyhow::bail!("say whose key it is: --agent NAME or --operator NAME"),
    };
    anyhow::ensure!(
        known,
        "{} has no {} {owner:?}",
        args.config.display(),
        kind.as_str()
    );
    let expires_at = args
        .expires_in_seconds
        .map(|seconds| clock::now() + TimeDelta::seconds(i64::from(seconds)));
    let options = database::beside(&config.database)?;
    let ring = config.keyring()?;
    let held = signing::load(&config.checkpoints.key_file).map_err(CommandError::from)?;
    let (_, key) = issuing::issue(&options, &held, &ring, kind, owner, expires_at).await?;
    writeln!(std::io::stdout().lock(), "{}", key.expose())?;
    Ok(ExitCode::SUCCESS)
}
