//! `toolgate audit verify`. Exit codes: 0 nothing is wrong, 1 something is, or it could not be checked.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use clap::Args;

use super::{Records, counting};
use crate::{
    audit::{
        keeping,
        verify::{self, Checked, CheckpointsChecked, Given, Report},
    },
    checkpoint::VerifierKey,
};

/// Checkpoints that do not fit, shown to a person.
const SHOWN: usize = 20;

#[derive(Debug, Args)]
pub(in crate::cli) struct VerifyArgs {
    #[command(flatten)]
    records: Records,
    /// A file with checkpoints that was kept outside the database; may be given again.
    #[arg(long, value_name = "FILE")]
    checkpoint: Vec<PathBuf>,
    /// The public key of the installation, as its first start wrote it into signing.vkey; may be given again. Without it the
    /// first key that the records name is believed, which the database's owner could have put there.
    #[arg(long, value_name = "VKEY")]
    key: Vec<VerifierKey>,
    /// Check this export of a month on its own, without a database.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["home", "url", "jobs", "checkpoint", "key"])]
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
    let given = Given {
        checkpoints: args.checkpoint,
        keys: args.key,
    };
    let jobs = args.jobs.clamp(1, 32);
    let report = verify::verify(&options, jobs, &given, |entries| bar.inc(entries)).await?;
    bar.finish_and_clear();
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        tell(&mut out, &report, &given, began)?;
    }
    Ok(if report.right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
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

fn tell(
    out: &mut impl std::io::Write,
    report: &Report,
    given: &Given,
    began: Instant,
) -> anyhow::Result<()> {
    let checked = &report.instances;
    for one in checked {
        tell_instance(out, one)?;
    }
    if !given.checkpoints.is_empty() {
        tell_checkpoints(out, &report.checkpoints)?;
    }
    tell_versions(out, report)?;
    let entries: u64 = checked.iter().map(|one| one.entries).sum();
    let wrong = checked.iter().filter(|one| one.wrong.is_some()).count();
    let seconds = began.elapsed().as_secs_f64();
    writeln!(
        out,
        "\n{entries} entries of {} instances checked in {seconds:.1} s.",
        checked.len()
    )?;
    if let Some(uncovered) = &report.uncovered {
        let since = uncovered.since.map_or_else(String::new, |since| {
            format!(", from {} on,", since.to_rfc3339())
        });
        writeln!(
            out,
            "{} of them{since} are not yet covered: by no checkpoint that was given, and by no later start. Until they are, the database's owner can cut them or make them anew.",
            uncovered.entries
        )?;
    }
    if given.keys.is_empty()
        && let (Some(key), false) = (report.keys.first(), given.checkpoints.is_empty())
    {
        writeln!(
            out,
            "Believed for want of --key, because the records name it: {key}"
        )?;
    }
    if report.right {
        writeln!(
            out,
            "Every chain is whole, and each start knows the ends of those before it."
        )?;
    } else if wrong > 0 {
        writeln!(
            out,
            "{wrong} of them are not as they were written. Keep the database as it is, and compare with a backup from before."
        )?;
    } else if !report.versions.is_empty() {
        writeln!(
            out,
            "The chains are whole, but not the texts that decided. The digests are right: look for the texts in an export or a backup."
        )?;
    } else {
        writeln!(
            out,
            "The chains are whole, but checkpoints that were given are not this installation's."
        )?;
    }
    Ok(())
}

fn tell_instance(out: &mut impl std::io::Write, one: &Checked) -> anyhow::Result<()> {
    let Some(wrong) = &one.wrong else {
        if one.entries > 0 {
            let head = one.head.as_deref().unwrap_or_default();
            let head = head.get(..16).unwrap_or(head);
            let vouched = one
                .checkpointed
                .map_or(String::new(), |size| format!("  checkpointed to {size}"));
            let unsigned = if one.signed == Some(false) {
                "  unsigned, from before chains were signed"
            } else {
                ""
            };
            writeln!(
                out,
                "  right  {}  {:>9} entries  head {head}…{vouched}{unsigned}",
                one.instance, one.entries
            )?;
        }
        return Ok(());
    };
    let until = wrong
        .until
        .filter(|until| *until > wrong.seq)
        .map_or(String::new(), |until| format!(" to {until}"));
    writeln!(
        out,
        "  WRONG  {}  entry {}{until}: {} ({})",
        one.instance,
        wrong.seq,
        word(&wrong.fault)?,
        wrong.words
    )?;
    if one.faults > 1 {
        writeln!(
            out,
            "         and {} more of this instance do not fit",
            one.faults - 1
        )?;
    }
    Ok(())
}

fn tell_versions(out: &mut impl std::io::Write, report: &Report) -> anyhow::Result<()> {
    for wrong in &report.versions {
        writeln!(
            out,
            "  WRONG  {} {} {}: {}",
            wrong.kind.as_deref().unwrap_or("version"),
            wrong.name.as_deref().unwrap_or_default(),
            wrong.digest,
            wrong.words
        )?;
    }
    Ok(())
}

fn tell_checkpoints(
    out: &mut impl std::io::Write,
    checked: &CheckpointsChecked,
) -> anyhow::Result<()> {
    writeln!(
        out,
        "\n{} checkpoints read: {} fit, {} do not.",
        checked.read, checked.fit, checked.wrong
    )?;
    if checked.dropped > 0 {
        writeln!(
            out,
            "{} more lie within months that were dropped: only the exports of those hold what they cover.",
            checked.dropped
        )?;
    }
    for refused in checked.refused.iter().take(SHOWN) {
        writeln!(
            out,
            "  WRONG  {}, line {}: {} ({})",
            refused.file,
            refused.line,
            word(&refused.problem)?,
            refused.words
        )?;
    }
    let more = checked.wrong.saturating_sub(SHOWN as u64);
    if more > 0 {
        writeln!(out, "         and {more} more; --json has up to a thousand")?;
    }
    Ok(())
}

/// The name of a fault or problem, in words.
fn word(name: &impl serde::Serialize) -> anyhow::Result<String> {
    let name = serde_json::to_value(name)?;
    Ok(name.as_str().unwrap_or_default().replace('_', " "))
}
