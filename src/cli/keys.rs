//! `toolgate keys`.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use chrono::TimeDelta;
use clap::Args;

use crate::{
    clock,
    config::{self, Variables},
    database, issuing,
    keys::KeyKind,
    secrets::Keyring,
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
    let ring = Keyring::new(&config.master_secret)?;
    let (_, key) = issuing::issue(&options, &ring, kind, owner, expires_at).await?;
    writeln!(std::io::stdout().lock(), "{}", key.expose())?;
    Ok(ExitCode::SUCCESS)
}
