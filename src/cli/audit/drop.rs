//! `toolgate audit drop`: lets a month go that an export holds.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::Args;

use super::counting;
use crate::{
    audit::{
        CommandError,
        keeping::{self, Dropped, KeepingError, Month, Operator},
    },
    cli::check,
    config::{self, Variables},
    database, signing,
    store::StoreError,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct DropArgs {
    /// The month, in UTC.
    #[arg(long, value_name = "YYYY-MM")]
    month: Month,
    /// Its export, with the manifest beside it.
    #[arg(long, value_name = "FILE")]
    export: PathBuf,
    /// The config file, for the database and for how long records are kept.
    #[arg(long, value_name = "FILE", default_value = "config/toolgate.yaml")]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: DropArgs) -> anyhow::Result<ExitCode> {
    let file = config::read_file(args.config.clone()).map_err(anyhow::Error::msg)?;
    let (config, findings) = config::load(&file, &Variables::default());
    let Some(config) = config else {
        check::print(&findings);
        anyhow::bail!("the config has problems");
    };
    let Some(keep_for_days) = config.records.keep_for_days else {
        anyhow::bail!(
            "records are kept for ever: say in {} how long they are kept (records.keep_for_days)",
            args.config.display()
        );
    };
    let owner = database::owner(&config.database)?;
    let held = signing::load(&config.checkpoints.key_file).map_err(CommandError::from)?;
    let bar = counting("entries read")?;
    let done = keeping::drop_month(
        (&owner, &held),
        args.month,
        &args.export,
        keep_for_days,
        operator(),
        |doing| bar.set_prefix(doing.to_owned()),
        |entries| bar.inc(entries),
    )
    .await
    .map_err(|error| match error {
        KeepingError::Store(error @ StoreError::Unavailable(_)) => {
            anyhow::Error::from(error).context("cannot reach the database: is the gateway running?")
        }
        error => error.into(),
    })?;
    bar.finish_and_clear();
    let (was, manifest) = match &done {
        Dropped::Now(manifest) => ("dropped", manifest),
        Dropped::Before(manifest) => ("already dropped", manifest),
    };
    let mut out = std::io::stdout().lock();
    if args.json {
        let whole = serde_json::json!({
            "month": args.month, "now": matches!(done, Dropped::Now(_)), "entries": manifest.contents.entries,
            "file_sha256": manifest.file_sha256,
        });
        writeln!(out, "{whole}")?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{}: {was}, {} entries; they are in {} alone now (SHA-256 {}).",
        args.month,
        manifest.contents.entries,
        args.export.display(),
        manifest.file_sha256
    )?;
    Ok(ExitCode::SUCCESS)
}

/// Who gives this command.
fn operator() -> Operator {
    let os_uid = rustix::process::getuid().as_raw();
    let accounts = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let os_user = accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(os_uid)).then(|| name.to_owned())
    });
    Operator { os_user, os_uid }
}
