//! `toolgate audit verify`. Exit codes: 0 nothing is wrong, 1 something is, or it could not be checked.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Args;

use super::{Records, counting};
use crate::audit::{
    keeping,
    verify::{self, Checked},
};

#[derive(Debug, Args)]
pub(in crate::cli) struct VerifyArgs {
    #[command(flatten)]
    records: Records,
    /// Check this export of a month on its own, without a database.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["home", "url", "jobs"])]
    export: Option<PathBuf>,
    /// How many connections read at the same time.
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    jobs: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let bar = counting("entries checked")?;
    if let Some(export) = &args.export {
        let checked = keeping::check(export, |entries| bar.inc(entries));
        bar.finish_and_clear();
        return told(export, checked, args.json);
    }
    let options = args.records.options()?;
    let began = Instant::now();
    let checked =
        verify::verify(&options, args.jobs.clamp(1, 32), |entries| bar.inc(entries)).await?;
    bar.finish_and_clear();
    let wrong = checked.iter().any(|one| one.wrong.is_some());
    let mut out = std::io::stdout().lock();
    if args.json {
        let whole = serde_json::json!({ "right": !wrong, "instances": checked });
        writeln!(out, "{whole}")?;
    } else {
        tell(&mut out, &checked, began)?;
    }
    Ok(if wrong {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn told(
    export: &Path,
    checked: Result<keeping::Manifest, keeping::KeepingError>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    if as_json {
        let wrong = checked.as_ref().err().map(ToString::to_string);
        let whole = serde_json::json!({ "right": checked.is_ok(), "wrong": wrong, "manifest": checked.as_ref().ok() });
        writeln!(out, "{whole}")?;
    } else {
        match &checked {
            Ok(manifest) => writeln!(
                out,
                "right: {} entries of {}, SHA-256 {}",
                manifest.contents.entries, manifest.contents.month, manifest.file_sha256
            )?,
            Err(error) => writeln!(out, "WRONG: {}: {error}", export.display())?,
        }
    }
    Ok(if checked.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn tell(out: &mut impl std::io::Write, checked: &[Checked], began: Instant) -> anyhow::Result<()> {
    let entries: u64 = checked.iter().map(|one| one.entries).sum();
    for one in checked {
        let Some(wrong) = &one.wrong else {
            if one.entries > 1 {
                let head = one.head.as_deref().unwrap_or_default();
                let head = head.get(..16).unwrap_or(head);
                writeln!(
                    out,
                    "  right  {}  {:>9} entries  head {head}…",
                    one.instance, one.entries
                )?;
            }
            continue;
        };
        let fault = serde_json::to_value(wrong.fault)?;
        writeln!(
            out,
            "  WRONG  {}  entry {}: {} ({})",
            one.instance,
            wrong.seq,
            fault.as_str().unwrap_or_default().replace('_', " "),
            wrong.words
        )?;
        if one.faults > 1 {
            writeln!(
                out,
                "         and {} more of this instance do not fit",
                one.faults - 1
            )?;
        }
    }
    let wrong = checked.iter().filter(|one| one.wrong.is_some()).count();
    let seconds = began.elapsed().as_secs_f64();
    writeln!(
        out,
        "\n{entries} entries of {} instances checked in {seconds:.1} s.",
        checked.len()
    )?;
    if wrong == 0 {
        writeln!(
            out,
            "Every chain is whole, and each start knows the ends of those before it."
        )?;
    } else {
        writeln!(
            out,
            "{wrong} of them are not as they were written. Keep the database as it is, and compare with a backup from before."
        )?;
    }
    Ok(())
}
