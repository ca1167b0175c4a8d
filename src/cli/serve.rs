//! `toolgate serve`.

use std::{path::PathBuf, process::ExitCode};

use super::check;
use crate::{config::Variables, server};

pub(super) async fn run(config: PathBuf) -> anyhow::Result<ExitCode> {
    let loaded = check::load(&config, &Variables::default());
    let (Some(config), Some(rules)) = (loaded.config, loaded.rules) else {
        check::print(&loaded.findings);
        anyhow::bail!(
            "the gateway does not start with these problems; run toolgate check after mending them"
        );
    };
    let gateway = server::start(config, rules).await?;
    let ended = gateway.ended().await;
    gateway.stop().await;
    ended?;
    Ok(ExitCode::SUCCESS)
}
