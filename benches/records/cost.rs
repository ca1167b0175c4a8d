//! Recording: how fast, what of it is the chain, what an entry takes on disk and in processor time, and how fast and in how much
//! memory the chains are checked.

use std::{
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::try_join_all;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _};
use toolgate::{
    audit::Recorder,
    clock,
    entry::{Entry, chain},
    ids::InstanceId,
    store,
};

use crate::{
    Database, indexes,
    proc::{own_seconds, peak_bytes, server_seconds},
    world::{Step, World},
};

const CALLERS: [u64; 3] = [1, 64, 256];
/// Calls in one run.
const RUN: u64 = 50;
const ROUNDS: usize = 7;

pub async fn run(
    database: &Database,
    world: &Arc<World>,
    entries: u64,
    aloud: bool,
) -> anyhow::Result<Value> {
    let parts = parts_cost(database, world, aloud).await?;
    let mut figures = Vec::new();
    let mut checks = Vec::new();
    let mut recorded = 0;
    let numbers = Arc::new(AtomicU64::new(0));
    if aloud {
        println!(
            "\nthrough the writer   entries/s   wall µs   gateway CPU µs (of which making entries)   PostgreSQL CPU µs   WAL bytes"
        );
    }
    // A tenth first, so that checking is measured at two sizes; one caller alone is slow and gets a small share.
    for (callers, share) in [(1, 0.01), (64, 0.09), (64, 0.3), (256, 0.6)] {
        let count = share_of(entries, share);
        let one = through_writer(database, world, &numbers, callers, count).await?;
        recorded += one["entries"].as_u64().unwrap_or(0);
        if aloud {
            println!(
                "{callers:>4} callers {:>19.0} {:>9.1} {:>15.1} ({:.1}) {:>37.1} {:>11.0}",
                number(&one, "entries_per_second"),
                number(&one, "wall_us"),
                number(&one, "gateway_cpu_us"),
                number(&one, "making_us"),
                number(&one, "postgres_cpu_us"),
                number(&one, "wal_bytes"),
            );
        }
        figures.push(one);
        if checks.is_empty() && callers > 1 || callers == CALLERS[2] {
            checks.push(check(database, aloud)?);
        }
    }
    let bytes = bytes(database, recorded, aloud).await?;
    Ok(json!({"parts": parts, "writer": figures, "bytes_per_entry": bytes, "verify": checks}))
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a count"
)]
fn share_of(entries: u64, share: f64) -> u64 {
    (entries as f64 * share) as u64
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or(0.0)
}

/// Each caller makes one call after the other, as an agent does, until enough is recorded.
async fn through_writer(
    database: &Database,
    world: &Arc<World>,
    numbers: &Arc<AtomicU64>,
    callers: u64,
    entries: u64,
) -> anyhow::Result<Value> {
    let making = making_seconds(world);
    let recorder = database.recorder(world).await?;
    let mut superuser = database.superuser().await?;
    let bar = ProgressBar::new(entries);
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} entries, {per_sec}, {eta} left",
    )?);
    let wal = wal(&mut superuser).await?;
    let (own, server) = (own_seconds(), server_seconds(&database.home));
    let began = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    let tasks = (0..callers).map(|_| {
        let (recorder, world, done) = (recorder.clone(), Arc::clone(world), Arc::clone(&done));
        let (numbers, bar) = (Arc::clone(numbers), bar.clone());
        tokio::spawn(async move {
            while done.load(Ordering::Relaxed) < entries {
                let first = numbers.fetch_add(RUN, Ordering::Relaxed);
                let (run, opened) = world.run(first);
                record(&recorder, opened).await?;
                let mut count = 1;
                for number in first..first + RUN {
                    for step in world.call(number, &run) {
                        record(&recorder, step).await?;
                        count += 1;
                    }
                }
                done.fetch_add(count, Ordering::Relaxed);
                bar.inc(count);
            }
            anyhow::Ok(())
        })
    });
    for result in try_join_all(tasks).await? {
        result?;
    }
    let wall = began.elapsed().as_secs_f64();
    let own = own_seconds() - own;
    let server = server_seconds(&database.home) - server;
    let wal = self::wal(&mut superuser).await? - wal;
    bar.finish_and_clear();
    recorder.close().await;
    superuser.close().await?;
    let count = done.load(Ordering::Relaxed);
    #[expect(clippy::cast_precision_loss, reason = "figures to be read by people")]
    let per = |amount: f64| amount / count as f64;
    Ok(json!({
        "callers": callers, "entries": count, "entries_per_second": 1.0 / per(wall), "wall_us": per(wall) * 1e6,
        "gateway_cpu_us": per(own) * 1e6, "making_us": making * 1e6, "postgres_cpu_us": per(server) * 1e6,
        "wal_bytes": per(wal),
    }))
}

async fn record(recorder: &Recorder, step: Step) -> anyhow::Result<()> {
    match step {
        Step::Commit(entry) => recorder.commit(entry).await?,
        Step::Note(entry) => recorder.note(entry).await?,
        Step::Act(entry) => {
            recorder
                .act(move |_connection| Box::pin(async move { Ok((vec![entry], ())) }))
                .await?;
        }
    }
    Ok(())
}

/// Processor seconds that making an entry takes, redaction and all, without recording it.
fn making_seconds(world: &World) -> f64 {
    let (run, _) = world.run(0);
    let began = own_seconds();
    let mut entries: u32 = 0;
    for number in 0..20_000 {
        entries += u32::try_from(std::hint::black_box(world.call(number, &run)).len()).unwrap_or(0);
    }
    (own_seconds() - began) / f64::from(entries)
}

async fn wal(superuser: &mut PgConnection) -> anyhow::Result<f64> {
    Ok(
        sqlx::query_scalar("SELECT (pg_current_wal_insert_lsn() - '0/0')::float8")
            .fetch_one(superuser)
            .await?,
    )
}

/// The writer's own statement as it is and with one thing left out, in turns: what each costs of a commit.
async fn parts_cost(database: &Database, world: &World, aloud: bool) -> anyhow::Result<Vec<Value>> {
    let mut connection = PgConnection::connect_with(&database.role("toolgate_gateway")).await?;
    let mut superuser = database.superuser().await?;
    store::audit::ensure_partitions(&mut connection).await?;
    let indexes = indexes::of_entries(&mut superuser).await?;
    if aloud {
        println!("entries/s of the writer's statement (medians of {ROUNDS} rounds in turns)");
        print!("{:<14}", "rows a commit");
        Without::ALL
            .iter()
            .for_each(|one| print!(" {:>26}", one.name()));
        println!();
    }
    let mut figures = Vec::new();
    let (run, _) = world.run(1);
    for size in [1_u32, 64, 256] {
        let entries: Vec<Entry> = (1..)
            .flat_map(|number| world.call(number, &run))
            .map(|step| match step {
                Step::Commit(entry) | Step::Note(entry) | Step::Act(entry) => entry,
            })
            .take(usize::try_from(size)?)
            .collect();
        let commits = (4_096 / size).clamp(16, 200);
        let mut rates = Without::ALL.map(|_| Vec::new());
        for round in 0..ROUNDS {
            // Whoever goes second finds a warmer cache: so they take turns at that, too.
            for turn in 0..Without::ALL.len() {
                let which = (round + turn) % Without::ALL.len();
                let without = Without::ALL[which];
                indexes::keep(&mut superuser, &indexes, |name| without.keeps(name)).await?;
                let is_chained = without != Without::Chain;
                let took = commits_of(&mut connection, &entries, commits, is_chained).await?;
                rates[which].push(f64::from(commits * size) / took.as_secs_f64());
            }
        }
        let rates = rates.map(median);
        if aloud {
            print!("{size:>13} ");
            for rate in rates {
                print!(" {:>17.0} ({:.3})", rate, rates[0] / rate);
            }
            println!();
        }
        let named = Without::ALL.iter().zip(rates);
        let named: serde_json::Map<_, _> = named
            .map(|(without, rate)| (without.name().to_owned(), rate.into()))
            .collect();
        figures.push(json!({"rows": size, "entries_per_second": named}));
    }
    connection.close().await?;
    // They are no part of any chain that holds, and nothing is checked with them there.
    indexes::keep(&mut superuser, &indexes, |_| true).await?;
    superuser.close().await?;
    Ok(figures)
}

/// What is left out of the writer's work to see what it costs.
#[derive(Clone, Copy, PartialEq)]
enum Without {
    Nothing,
    Chain,
    /// The indexes by which people look for something other than a call or a run.
    IndexesOfFilters,
    EveryIndexButTheKey,
}

impl Without {
    const ALL: [Self; 4] = [
        Self::Nothing,
        Self::Chain,
        Self::IndexesOfFilters,
        Self::EveryIndexButTheKey,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "whole (whole ÷ this)",
            Self::Chain => "without the chain",
            Self::IndexesOfFilters => "without filters' indexes",
            Self::EveryIndexButTheKey => "with the key's index only",
        }
    }

    fn keeps(self, index: &str) -> bool {
        match self {
            Self::Nothing | Self::Chain => true,
            Self::IndexesOfFilters => {
                matches!(index, "entries_recorded" | "entries_call" | "entries_run")
            }
            Self::EveryIndexButTheKey => false,
        }
    }
}

async fn commits_of(
    connection: &mut PgConnection,
    entries: &[Entry],
    commits: u32,
    is_chained: bool,
) -> anyhow::Result<Duration> {
    let instance = InstanceId::generate();
    let (mut seq, mut head, mut buffer) = (0, chain::START, Vec::new());
    let began = Instant::now();
    for _ in 0..commits {
        let at = clock::now();
        let (mut rows, mut hashes) = (Vec::new(), Vec::new());
        for entry in entries {
            seq += 1;
            let row = entry.row(instance.as_str(), seq, at);
            if is_chained {
                head = chain::hash_with(&head, &row, &mut buffer);
            }
            hashes.push(head);
            rows.push(row);
        }
        store::audit::insert(connection, &rows, &hashes).await?;
    }
    Ok(began.elapsed())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or_default()
}

/// What an entry takes on disk: the table with what is kept aside, and each index.
async fn bytes(database: &Database, entries: u64, aloud: bool) -> anyhow::Result<Value> {
    let mut superuser = database.superuser().await?;
    let rows = sqlx::query(AssertSqlSafe(
        "SELECT 'the table' AS name, sum(pg_table_size(inhrelid))::float8 AS bytes FROM pg_inherits
         WHERE inhparent = 'audit.entries'::regclass
         UNION ALL
         (SELECT parent.relname, sum(pg_relation_size(part.inhrelid))::float8 FROM pg_index AS whole
          JOIN pg_class AS parent ON parent.oid = whole.indexrelid
          JOIN pg_inherits AS part ON part.inhparent = whole.indexrelid
          WHERE whole.indrelid = 'audit.entries'::regclass GROUP BY 1 ORDER BY 2 DESC)",
    ))
    .fetch_all(&mut superuser)
    .await?;
    superuser.close().await?;
    let mut figures = serde_json::Map::new();
    let mut sum = 0.0;
    #[expect(clippy::cast_precision_loss, reason = "figures to be read by people")]
    for row in rows {
        let bytes = row.try_get::<f64, _>("bytes")? / entries as f64;
        sum += bytes;
        figures.insert(row.try_get("name")?, bytes.into());
    }
    figures.insert("together".to_owned(), sum.into());
    if aloud {
        println!("\nbytes an entry:");
        for (name, bytes) in &figures {
            println!("  {name:<20} {:>7.1}", bytes.as_f64().unwrap_or(0.0));
        }
    }
    Ok(figures.into())
}

/// `toolgate audit verify` as a command of its own, its memory watched.
fn check(database: &Database, aloud: bool) -> anyhow::Result<Value> {
    let url = database
        .server
        .url("toolgate_auditor", crate::password().expose(), "toolgate");
    let server = server_seconds(&database.home);
    let began = Instant::now();
    let mut command = Command::new(env!("CARGO_BIN_EXE_toolgate"))
        .args(["audit", "verify", "--json"])
        .env("TOOLGATE_AUDIT_URL", url)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut peak = 0;
    while command.try_wait()?.is_none() {
        peak = peak_bytes(command.id()).unwrap_or(0).max(peak);
        std::thread::sleep(Duration::from_millis(20));
    }
    let seconds = began.elapsed().as_secs_f64();
    let output = command.wait_with_output()?;
    let said: Value = serde_json::from_slice(&output.stdout)?;
    anyhow::ensure!(said["right"] == true, "the chains do not verify: {said}");
    let entries: u64 = said["instances"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|one| one["entries"].as_u64())
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "figures to be read by people")]
    let rate = entries as f64 / seconds;
    let server = server_seconds(&database.home) - server;
    if aloud {
        println!(
            "toolgate audit verify: {entries} entries, {rate:.0} entries/s, peak memory {} MB, PostgreSQL {server:.1} CPU s",
            peak / 1_000_000
        );
    }
    Ok(
        json!({"entries": entries, "entries_per_second": rate, "peak_bytes": peak, "postgres_cpu_s": server}),
    )
}
