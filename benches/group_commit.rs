//! One batch of audit entries, one commit: `INSERT … SELECT FROM unnest(…)`, as the writer does it, against binary `COPY`.
//!
//! `cargo bench --bench group_commit` starts a PostgreSQL of its own with fsync on, interleaves the two, and prints medians of
//! microseconds per commit. With `TOOLGATE_BENCH_URL` (a database that `toolgate` has migrated) it measures that one as well,
//! which is how the difference between a Unix socket and TCP shows.
#![expect(clippy::print_stdout, reason = "a benchmark prints its figures")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use serde_json::json;
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use toolgate::{
    call::Consequence,
    clock,
    entry::{Caps, Decision, Entry, Kind, Row, chain},
    ids::{CallId, InstanceId, RunId},
    postgres,
    redaction::{Marks, Redactor},
    secrets::{Keyring, Secret},
    store::{self, provision},
};

const ROUNDS: usize = 5;
const SIZES: [usize; 5] = [1, 8, 64, 256, 1024];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let home = std::env::temp_dir().join(format!("toolgate-group-commit-{}", std::process::id()));
    std::fs::create_dir_all(&home)?;
    let server = postgres::start(&home).await?;
    let secret = || Secret::new("only for this benchmark");
    provision::roles_and_database(
        &server.superuser_options(),
        &provision::Passwords([secret(), secret(), secret()]),
    )
    .await?;
    let role = |name| server.connect_options(name, secret().expose(), "toolgate");
    provision::migrate(&role("toolgate_owner")).await?;
    measure("built-in, Unix socket", &role("toolgate_gateway")).await?;
    if let Ok(url) = std::env::var("TOOLGATE_BENCH_URL") {
        measure("TOOLGATE_BENCH_URL", &url.parse()?).await?;
    }
    server.stop().await;
    std::fs::remove_dir_all(&home)?;
    Ok(())
}

async fn measure(name: &str, options: &PgConnectOptions) -> anyhow::Result<()> {
    let mut connection = PgConnection::connect_with(options).await?;
    store::audit::ensure_partitions(&mut connection).await?;
    println!("{name}: microseconds per commit, medians of {ROUNDS} interleaved rounds");
    println!(
        "{:>6} {:>10} {:>10} {:>12}",
        "rows", "unnest", "copy", "copy/unnest"
    );
    let instance = InstanceId::generate();
    let mut seq = 1;
    for size in SIZES {
        let commits = (2_000 / size).clamp(10, 400);
        let (mut unnest, mut copy) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let batch: Vec<Entry> = (0..size).map(|_| entry()).collect();
            let began = Instant::now();
            for _ in 0..commits {
                let (rows, hashes) = linked(&batch, &instance, seq);
                store::audit::insert(&mut connection, &rows, &hashes).await?;
                seq += i64::try_from(size)?;
            }
            unnest.push(began.elapsed() / u32::try_from(commits)?);
            let began = Instant::now();
            for _ in 0..commits {
                let (rows, hashes) = linked(&batch, &instance, seq);
                copy_in(&mut connection, &rows, &hashes, &batch).await?;
                seq += i64::try_from(size)?;
            }
            copy.push(began.elapsed() / u32::try_from(commits)?);
        }
        let (unnest, copy) = (median(unnest), median(copy));
        println!(
            "{size:>6} {:>10} {:>10} {:>12.2}",
            unnest.as_micros(),
            copy.as_micros(),
            copy.as_secs_f64() / unnest.as_secs_f64()
        );
    }
    connection.close().await?;
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// An intent like those of the sample world.
fn entry() -> Entry {
    let arguments = json!({"customer": "c_1001", "amount_cents": 1200, "currency": "EUR", "note": "the parcel was late"});
    let redacted = Keyring::new(&Secret::new("a master secret for this benchmark only"))
        .ok()
        .map(|keys| {
            Redactor::new(Arc::new(keys), Caps::default()).redact(&Marks::default(), &arguments)
        });
    Entry {
        opens_call: true,
        call_id: Some(CallId::generate()),
        run_id: Some(RunId::generate()),
        agent: Some("support-bot".into()),
        surface: Some("transparent"),
        api: Some("desk".into()),
        tool: Some("desk.refunds.create".into()),
        consequence: Some(Consequence::MoneyMovement),
        contract_digest: Some(format!("sha256:{}", "a".repeat(64)).into()),
        policy_digest: Some(format!("sha256:{}", "b".repeat(64)).into()),
        arguments: redacted,
        arguments_digest: Some(format!("hmac-sha256:{}", "c".repeat(64)).into()),
        decision: Some(Decision::Permit),
        policies: vec!["support-refunds".to_owned()],
        received_at: Some(clock::now()),
        decided_at: Some(clock::now()),
        ..Entry::new(Kind::Intent)
    }
}

/// The rows of a batch with their hashes; where the chain before them stood makes no difference to the cost.
fn linked<'a>(
    batch: &'a [Entry],
    instance: &'a InstanceId,
    first_seq: i64,
) -> (Vec<Row<'a>>, Vec<chain::Hash>) {
    let now = clock::now();
    let mut head = chain::START;
    (first_seq..)
        .zip(batch)
        .map(|(seq, entry)| {
            let row = entry.row(instance.as_str(), seq, now);
            head = chain::hash(&head, &row);
            (row, head)
        })
        .unzip()
}

/// The same columns by binary COPY.
async fn copy_in(
    connection: &mut PgConnection,
    rows: &[Row<'_>],
    hashes: &[chain::Hash],
    entries: &[Entry],
) -> anyhow::Result<()> {
    let mut bytes = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for ((entry, linked), hash) in entries.iter().zip(rows).zip(hashes) {
        row(&mut bytes, linked, hash, entry)?;
    }
    bytes.extend((-1_i16).to_be_bytes());
    let mut copy = connection
        .copy_in_raw(
            "COPY audit.entries (instance_id, seq, recorded_at, kind, opens_call, call_id, run_id, agent, surface, api, tool,
             consequence, contract_digest, policy_digest, arguments, arguments_digest, decision, policies, received_at,
             decided_at, hash) FROM STDIN WITH (FORMAT binary)",
        )
        .await?;
    copy.send(bytes).await?;
    copy.finish().await?;
    Ok(())
}

fn row(
    bytes: &mut Vec<u8>,
    row: &Row<'_>,
    hash: &chain::Hash,
    entry: &Entry,
) -> anyhow::Result<()> {
    let text = |value: Option<&str>| value.map(|value| value.as_bytes().to_vec());
    let moment = |value: Option<DateTime<Utc>>| {
        // PostgreSQL counts microseconds from the year 2000.
        value.map(|value| {
            (value.timestamp_micros() - 946_684_800_000_000)
                .to_be_bytes()
                .to_vec()
        })
    };
    let arguments = entry.arguments.as_ref().map(|value| {
        let mut jsonb = vec![1];
        jsonb.extend(value.as_json().as_bytes());
        jsonb
    });
    let fields: [Option<Vec<u8>>; 21] = [
        text(Some(row.instance_id)),
        Some(row.seq.to_be_bytes().to_vec()),
        moment(Some(row.recorded_at)),
        text(entry.kind.map(Kind::as_str)),
        Some(vec![u8::from(entry.opens_call)]),
        text(entry.call_id.as_ref().map(CallId::as_str)),
        text(entry.run_id.as_ref().map(RunId::as_str)),
        text(entry.agent.as_deref()),
        text(entry.surface),
        text(entry.api.as_deref()),
        text(entry.tool.as_deref()),
        text(entry.consequence.map(Consequence::as_str)),
        text(entry.contract_digest.as_deref()),
        text(entry.policy_digest.as_deref()),
        arguments,
        text(entry.arguments_digest.as_deref()),
        text(entry.decision.map(Decision::as_str)),
        Some(text_array(&entry.policies)?),
        moment(entry.received_at),
        moment(entry.decided_at),
        Some(hash.to_vec()),
    ];
    bytes.extend(i16::try_from(fields.len())?.to_be_bytes());
    for field in &fields {
        match field {
            None => bytes.extend((-1_i32).to_be_bytes()),
            Some(value) => {
                bytes.extend(i32::try_from(value.len())?.to_be_bytes());
                bytes.extend(value);
            }
        }
    }
    Ok(())
}

fn text_array(items: &[String]) -> anyhow::Result<Vec<u8>> {
    const TEXT: i32 = 25;
    let mut bytes = Vec::new();
    for number in [1, 0, TEXT, i32::try_from(items.len())?, 1] {
        bytes.extend(number.to_be_bytes());
    }
    for item in items {
        bytes.extend(i32::try_from(item.len())?.to_be_bytes());
        bytes.extend(item.as_bytes());
    }
    Ok(bytes)
}
