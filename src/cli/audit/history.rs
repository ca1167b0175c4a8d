//! `toolgate audit call | run | approval | halt`: what happened, as a person would tell it, or as one JSON document. Read with
//! the auditor's own rights, beside the gateway.

use std::{io::Write as _, process::ExitCode};

use anyhow::Context as _;
use clap::Args;
use serde_json::Value;
use sqlx::{Connection as _, PgConnection};

use super::{Records, story};
use crate::store::{self, history};

/// Calls of a run or a halt that are told at the most.
const CALLS: i64 = 1_000;

/// The four things that have a story, by the prefix of their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Thing {
    Call,
    Run,
    Approval,
    Halt,
}

impl Thing {
    const ALL: [Self; 4] = [Self::Call, Self::Run, Self::Approval, Self::Halt];

    const fn command(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Run => "run",
            Self::Approval => "approval",
            Self::Halt => "halt",
        }
    }

    const fn prefix(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Run => "run",
            Self::Approval => "appr",
            Self::Halt => "halt",
        }
    }

    fn is_id(self, id: &str) -> bool {
        use crate::ids::{ApprovalId, CallId, KillSwitchId, RunId};
        match self {
            Self::Call => id.parse::<CallId>().is_ok(),
            Self::Run => id.parse::<RunId>().is_ok(),
            Self::Approval => id.parse::<ApprovalId>().is_ok(),
            Self::Halt => id.parse::<KillSwitchId>().is_ok(),
        }
    }
}

#[derive(Debug, Args)]
pub(in crate::cli) struct HistoryArgs {
    /// Its id.
    id: String,
    #[command(flatten)]
    records: Records,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(thing: Thing, args: HistoryArgs) -> anyhow::Result<ExitCode> {
    let id = args.id.trim();
    if !thing.is_id(id) {
        if let Some(other) = Thing::ALL.into_iter().find(|other| other.is_id(id)) {
            anyhow::bail!(
                "{id} is the id of {}: toolgate audit {} {id}",
                article(other.command()),
                other.command()
            );
        }
        anyhow::bail!(
            "this is no id of {}: it begins {}_ and has 26 characters behind that",
            article(thing.command()),
            thing.prefix()
        );
    }
    let options = store::reading(args.records.options()?);
    let mut connection = PgConnection::connect_with(&options)
        .await
        .context("the records cannot be reached: is the gateway, or the database, running?")?;
    let found = match thing {
        Thing::Call => history::call(&mut connection, id).await,
        Thing::Run => history::run(&mut connection, id, CALLS).await,
        Thing::Approval => history::approval(&mut connection, id).await,
        Thing::Halt => history::halt(&mut connection, id, CALLS).await,
    };
    let _ = connection.close().await;
    let found: Value = found?.with_context(|| {
        format!(
            "nothing is recorded of {id}: is it of this database ({})?",
            args.records.words()
        )
    })?;
    let mut out = std::io::stdout().lock();
    if args.json {
        writeln!(out, "{found}")?;
    } else {
        let text = match thing {
            Thing::Call => story::call(&found),
            Thing::Run => story::run(&found),
            Thing::Approval => story::approval(&found),
            Thing::Halt => story::halt(&found),
        };
        out.write_all(text.as_bytes())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn article(word: &str) -> String {
    let article = if word.starts_with('a') { "an" } else { "a" };
    format!("{article} {word}")
}
