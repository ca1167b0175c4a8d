//! `toolgate audit export`: a month's entries in a file that can be checked without a database.

use std::{io::Write as _, path::PathBuf, process::ExitCode};

use anyhow::Context as _;
use clap::Args;
use sqlx::{Connection as _, PgConnection};

use super::{Records, counting};
use crate::audit::keeping::{self, Month};

#[derive(Debug, Args)]
pub(in crate::cli) struct ExportArgs {
    #[command(flatten)]
    records: Records,
    /// The month, in UTC.
    #[arg(long, value_name = "YYYY-MM")]
    month: Month,
    /// The file to make, gzip; its manifest is made beside it with .manifest.json behind the name.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Print the manifest as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: ExportArgs) -> anyhow::Result<ExitCode> {
    let options = args
        .records
        .options()?
        .options([("statement_timeout", "0")]);
    let mut connection = PgConnection::connect_with(&options)
        .await
        .context("cannot reach the database: is the gateway running?")?;
    let bar = counting("entries exported")?;
    let made = keeping::export(&mut connection, args.month, &args.to, |entries| {
        bar.inc(entries);
    })
    .await?;
    bar.finish_and_clear();
    connection.close().await?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&made)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    writeln!(
        out,
        "{}: {} entries of {} starts and commands in {}, {} bytes\nSHA-256 {}\n\nKeep {} with it. toolgate audit verify --export {} checks both.",
        args.to.display(),
        made.contents.entries,
        made.contents.instances.len(),
        made.contents.month,
        made.file_bytes,
        made.file_sha256,
        keeping::manifest_path(&args.to).display(),
        args.to.display(),
    )?;
    Ok(ExitCode::SUCCESS)
}
