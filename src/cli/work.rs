//! `toolgate work`: the work list straight from the database, for when the gateway is down.

use std::{collections::HashMap, io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::{Args, Subcommand, ValueEnum};
use sqlx::{Connection as _, PgConnection};

use super::check;
use crate::{
    app::{RuleFiles, Rules, Setting, load_rules},
    audit::CommandError,
    config::{self, Config, Database, ListFormat, Variables},
    database, resolving,
    resolving::export::{self, Pages, Printer, WorkItem},
    signing,
    store::work::WorkRow,
};

#[derive(Debug, Subcommand)]
pub(super) enum Work {
    /// Print what waits for people: calls whose answer was lost, and calls to be done by hand.
    Export(ExportArgs),
}

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    /// How to print it.
    #[arg(long, value_enum, default_value = "json")]
    format: Format,
    /// One kind alone: `reconcile` or `manual`.
    #[arg(long, value_parser = ["reconcile", "manual"])]
    kind: Option<String>,
    /// With the real arguments of what is to be done by hand, as far as this operator may do it. That they were shown is
    /// recorded under this name.
    #[arg(long, value_name = "OPERATOR")]
    arguments_for: Option<String>,
    /// The config file.
    #[arg(long, value_name = "FILE", default_value = "config/toolgate.yaml")]
    config: PathBuf,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Json,
    Csv,
}

pub(super) async fn run(command: Work) -> anyhow::Result<ExitCode> {
    match command {
        Work::Export(args) => export(args).await,
    }
}

async fn export(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let file = config::read_file(args.config.clone()).map_err(anyhow::Error::msg)?;
    let (config, findings) = config::load(&file, &Variables::default());
    let Some(config) = config else {
        check::print(&findings);
        anyhow::bail!("the config has problems");
    };
    // Beside a running gateway, else on a server that is started just for this.
    let beside = match database::beside(&config.database) {
        Ok(options) => PgConnection::connect_with(&options).await.ok(),
        Err(_never_started) => None,
    };
    let (mut connection, built_in) = match beside {
        Some(connection) => (connection, None),
        None => {
            let Database::BuiltIn { .. } = config.database else {
                anyhow::bail!("cannot reach the database that the config names");
            };
            let opened = database::open(&config.database).await?;
            let connection = PgConnection::connect_with(&opened.gateway)
                .await
                .context("the built-in database does not answer")?;
            (connection, opened.built_in)
        }
    };
    let printed = print(&args, &config, &mut connection).await;
    let _ = connection.close().await;
    if let Some(server) = built_in {
        server.stop().await;
    }
    printed.map(|()| ExitCode::SUCCESS)
}

async fn print(
    args: &ExportArgs,
    config: &Config,
    connection: &mut PgConnection,
) -> anyhow::Result<()> {
    let mut rows: Vec<WorkRow> = Vec::new();
    let mut pages = Pages::of(args.kind.as_deref());
    while let Some(page) = pages.next(connection).await? {
        rows.extend(page);
    }
    let mut shown = HashMap::new();
    if let Some(operator) = &args.arguments_for {
        let rules = rules(config, operator)?;
        let setting = Setting {
            config,
            policies: &rules.policies,
        };
        let may: Vec<&WorkRow> = rows
            .iter()
            .filter(|row| row.kind == "manual")
            .filter(|row| resolving::may(setting, row, operator).is_ok())
            .collect();
        let (world, keyring) = ((setting, &rules), config.keyring()?);
        let held = signing::load(&config.checkpoints.key_file).map_err(CommandError::from)?;
        let keys = (&held, &keyring);
        shown.extend(export::real_arguments(connection, world, keys, operator, &may).await?);
    }
    let items: Vec<WorkItem> = rows
        .iter()
        .map(|row| WorkItem {
            arguments: shown.remove(&row.call_id),
            ..WorkItem::of(row)
        })
        .collect();
    let mut printer = Printer::new(match args.format {
        Format::Json => ListFormat::Json,
        Format::Csv => ListFormat::Csv,
    });
    let text = printer.items(&items) + &printer.end();
    std::io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// The contracts and policies, for an operator that the config knows.
fn rules(config: &Config, operator: &str) -> anyhow::Result<Rules> {
    anyhow::ensure!(
        config.operators.contains_key(operator),
        "the config has no operator {operator:?}"
    );
    let files = RuleFiles::read(config).map_err(anyhow::Error::msg)?;
    let (rules, findings) = load_rules(config, &files);
    rules.ok_or_else(|| {
        check::print(&findings);
        anyhow::anyhow!("contracts or policies have problems, so nobody may see the arguments")
    })
}
