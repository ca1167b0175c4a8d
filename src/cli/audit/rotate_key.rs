//! `toolgate audit rotate-key`: a new key for checkpoints, to which the old one signs over.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use clap::Args;

use crate::{
    cli::check,
    config::{self, Variables},
    signing,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct RotateKeyArgs {
    /// The config file, for the place of the key.
    #[arg(long, value_name = "FILE", default_value = "config/toolgate.yaml")]
    config: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: RotateKeyArgs) -> anyhow::Result<ExitCode> {
    let file = config::read_file(args.config).map_err(anyhow::Error::msg)?;
    let (config, findings) = config::load(&file, &Variables::default());
    let Some(config) = config else {
        check::print(&findings);
        anyhow::bail!("the config has problems");
    };
    let settings = &config.checkpoints;
    let (old, new) = signing::rotate(&settings.key_file, &settings.installation)?;
    let mut out = std::io::stdout().lock();
    if args.json {
        let said = serde_json::json!({"old": old.to_string(), "new": new.to_string()});
        writeln!(out, "{said}")?;
    } else {
        writeln!(
            out,
            "old  {old}\nnew  {new}\n\nThe old key has signed over to the new one. A running gateway records that within seconds and signs with the new key\nfrom there on; any other does at its next start. Whoever has the old public key can verify with it as before."
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
