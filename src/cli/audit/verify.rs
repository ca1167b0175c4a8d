//! `toolgate audit verify`. Exit codes: 0 nothing is wrong, 1 something is, or it could not be checked.

use std::{io::Write as _, process::ExitCode, time::Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::Records;
use crate::audit::verify::{self, Checked};

#[derive(Debug, Args)]
pub(in crate::cli) struct VerifyArgs {
    #[command(flatten)]
    records: Records,
    /// How many connections read at the same time.
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    jobs: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let options = args.records.options()?;
    let began = Instant::now();
    // Draws itself on a terminal and nowhere else.
    let bar = ProgressBar::new_spinner();
    bar.set_style(ProgressStyle::with_template(
        "{spinner} {pos} entries checked",
    )?);
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
