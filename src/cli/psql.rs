//! `toolgate psql`: the auditor's way in.

use std::{
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Command, ExitCode},
};

use anyhow::Context as _;

use crate::{database::AUDITOR_URL, postgres};

pub(super) fn run(home: Option<PathBuf>, arguments: &[String]) -> anyhow::Result<ExitCode> {
    let home = match home {
        Some(home) => home,
        None => postgres::default_home(&std::env::current_dir()?),
    };
    let path = home.join(AUDITOR_URL);
    let url = std::fs::read_to_string(&path).with_context(|| {
        format!(
            "cannot read {}: start the gateway with this home first",
            path.display()
        )
    })?;
    // Replaces this process, so that the terminal and its signals are psql's.
    let failed = Command::new("psql").arg(url.trim()).args(arguments).exec();
    Err(anyhow::Error::new(failed).context("psql did not start: apt-get install postgresql-client"))
}
