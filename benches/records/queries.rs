//! Whether the records answer what is documented to be asked of them when there are very many: each query's plan and time, cold and
//! warm. A sample is made through the writer; PostgreSQL multiplies it, over three months and this one, so the chains hold nothing.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use crate::{
    Database,
    world::{Step, World},
};

/// Entries in the sample.
const SAMPLE: u64 = 20_000;
/// Rows that a plan may read and throw away, for each that it gives, before it is called out; and below which nobody minds.
const WASTE: f64 = 100.0;
const FEW: f64 = 20_000.0;

pub async fn run(
    mut database: Database,
    world: &Arc<World>,
    rows: u64,
    aloud: bool,
) -> anyhow::Result<(Database, Value)> {
    let began = Instant::now();
    sample(&database, world).await?;
    fill(&database, &world.token(0), rows).await?;
    if aloud {
        println!(
            "{rows} rows filled in {:.0} s",
            began.elapsed().as_secs_f64()
        );
        println!(
            "\n{:<34} {:>9} {:>9} {:>7}  indexes",
            "query", "cold ms", "warm ms", "rows"
        );
    }
    let queries = queries(&database, world).await?;
    let mut figures = Vec::new();
    for (name, query) in queries {
        database = database.restarted().await?;
        let mut auditor = PgConnection::connect_with(&database.role("toolgate_auditor")).await?;
        // Planning a first query reads the catalogue, which is no part of the query's own cost.
        sqlx::raw_sql("SET statement_timeout = '120s'; SELECT count(*) FROM audit.versions; EXPLAIN SELECT * FROM audit.calls")
            .execute(&mut auditor)
            .await?;
        let cold = explained(&mut auditor, &query).await;
        let Ok(cold) = cold else {
            if aloud {
                println!("{name:<34}   TAKES LONGER THAN TWO MINUTES");
            }
            figures.push(json!({"query": name, "sql": query, "cold_ms": null}));
            continue;
        };
        let mut warm = f64::INFINITY;
        for _ in 0..3 {
            warm = warm.min(explained(&mut auditor, &query).await?.milliseconds);
        }
        auditor.close().await?;
        let waste = if cold.wasted > FEW && cold.wasted > WASTE * cold.rows.max(1.0) {
            format!("  READS {:.0} ROWS FOR NOTHING", cold.wasted)
        } else {
            String::new()
        };
        let indexes = cold.indexes.iter().cloned().collect::<Vec<_>>().join(", ");
        if aloud {
            println!(
                "{name:<34} {:>9.1} {warm:>9.2} {:>7.0}  {indexes}{waste}",
                cold.milliseconds, cold.rows
            );
        }
        figures.push(json!({
            "query": name, "sql": query, "cold_ms": cold.milliseconds, "warm_ms": warm, "rows": cold.rows,
            "indexes": cold.indexes, "wasted_rows": cold.wasted,
        }));
    }
    Ok((database, json!({ "rows": rows, "queries": figures })))
}

async fn sample(database: &Database, world: &World) -> anyhow::Result<()> {
    let recorder = database.recorder(world).await?;
    let (mut count, mut number) = (0, 0);
    let bar = ProgressBar::new(SAMPLE);
    while count < SAMPLE {
        let (run, opened) = world.run(number);
        let steps = std::iter::once(opened)
            .chain((number..number + 50).flat_map(|number| world.call(number, &run)));
        // In order within a run; nobody waits for one before the next is handed over.
        let waiting: Vec<_> = steps
            .map(|step| match step {
                Step::Commit(entry) | Step::Note(entry) | Step::Act(entry) => recorder.note(entry),
            })
            .collect();
        count += u64::try_from(waiting.len())?;
        futures::future::try_join_all(waiting).await?;
        number += 50;
        bar.set_position(count);
    }
    bar.finish_and_clear();
    recorder.close().await;
    Ok(())
}

/// Copies the sample until there are enough rows: other calls, runs, approvals and values each time, and as many of the names.
async fn fill(database: &Database, common: &str, rows: u64) -> anyhow::Result<()> {
    let mut superuser = database.superuser().await?;
    sqlx::raw_sql("ALTER SYSTEM SET max_wal_size = '4GB'")
        .execute(&mut superuser)
        .await?;
    sqlx::raw_sql(
        "SELECT pg_reload_conf(); SET synchronous_commit = off; CREATE TABLE public.sample AS TABLE audit.entries;
         SET session_replication_role = replica; TRUNCATE audit.entries;
         DO $$ DECLARE month date; BEGIN
             FOR ago IN 1..3 LOOP
                 month := date_trunc('month', now() AT TIME ZONE 'UTC') - make_interval(months => ago);
                 EXECUTE format('CREATE TABLE audit.%I PARTITION OF audit.entries FOR VALUES FROM (%L) TO (%L)',
                     'entries_' || to_char(month, 'YYYY_MM'), month::text || ' 00:00:00+00',
                     (month + interval '1 month')::date::text || ' 00:00:00+00');
                 EXECUTE format('GRANT SELECT ON audit.%I TO toolgate_auditor', 'entries_' || to_char(month, 'YYYY_MM'));
             END LOOP; END $$",
    )
    .execute(&mut superuser)
    .await?;
    let sampled: i64 = sqlx::query_scalar("SELECT count(*) FROM public.sample")
        .fetch_one(&mut superuser)
        .await?;
    let copies = (i64::try_from(rows)? + sampled - 1) / sampled;
    let bar = ProgressBar::new(rows);
    bar.set_style(ProgressStyle::with_template(
        "{bar:30} {pos}/{len} rows, {per_sec}, {eta} left",
    )?);
    for copy in 0..copies {
        sqlx::query(AssertSqlSafe(COPY.to_owned()))
            .bind(copy)
            .bind(copies)
            .bind(common)
            .execute(&mut superuser)
            .await?;
        bar.inc(u64::try_from(sampled)?);
    }
    bar.set_message("VACUUM ANALYZE");
    sqlx::raw_sql("DROP TABLE public.sample")
        .execute(&mut superuser)
        .await?;
    sqlx::raw_sql("VACUUM ANALYZE audit.entries")
        .execute(&mut superuser)
        .await?;
    bar.finish_and_clear();
    superuser.close().await?;
    Ok(())
}

/// One copy ($1 of $2): the columns in the table's order. `$3` is the token of the one common value, which stays common.
const COPY: &str = r"
INSERT INTO audit.entries
SELECT copied.* FROM public.sample AS s
CROSS JOIN LATERAL jsonb_populate_record(s, jsonb_build_object(
    'instance_id', 'inst_' || lpad($1::text, 26, '0'),
    'recorded_at', date_trunc('month', now()) - interval '2 months 20 days'
        + ($1 + s.seq::float8 / 30000) / $2 * (now() - date_trunc('month', now()) + interval '2 months 20 days'),
    'call_id', 'call_' || lpad($1::text, 10, '0') || substr(s.call_id, 16),
    'run_id', 'run_' || lpad($1::text, 10, '0') || substr(s.run_id, 15),
    'approval_id', 'appr_' || lpad($1::text, 10, '0') || substr(s.approval_id, 16),
    'agent', CASE WHEN $1 = $2 / 3 AND s.seq % 1000 = 7 AND s.agent IS NOT NULL THEN 'seldom-bot' ELSE s.agent END,
    'tool', CASE WHEN $1 = $2 / 3 AND s.seq % 1000 = 7 AND s.tool IS NOT NULL THEN 'api0.seldom' ELSE s.tool END,
    'operator', CASE WHEN $1 = $2 / 3 AND s.seq % 100 = 7 AND s.operator IS NOT NULL THEN 'yvonne' ELSE s.operator END,
    'arguments_digest', 'hmac-sha256:' || md5($1::text || s.arguments_digest) || md5(s.arguments_digest),
    'value_tokens', CASE WHEN s.value_tokens IS NULL OR $3 = ANY (s.value_tokens) THEN to_jsonb(s.value_tokens)
        ELSE jsonb_build_array(md5(s.value_tokens[1] || ($1 % 50)::text) || md5(s.value_tokens[1])) END)) AS copied
ORDER BY s.seq";

struct Explained {
    milliseconds: f64,
    rows: f64,
    indexes: BTreeSet<String>,
    /// Rows that were read and thrown away.
    wasted: f64,
}

async fn explained(auditor: &mut PgConnection, query: &str) -> anyhow::Result<Explained> {
    let told: Value = sqlx::query_scalar(AssertSqlSafe(format!(
        "EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {query}"
    )))
    .fetch_one(auditor)
    .await?;
    let whole = &told[0];
    let mut found = Explained {
        milliseconds: whole["Execution Time"].as_f64().unwrap_or(0.0)
            + whole["Planning Time"].as_f64().unwrap_or(0.0),
        rows: whole["Plan"]["Actual Rows"].as_f64().unwrap_or(0.0),
        indexes: BTreeSet::new(),
        wasted: 0.0,
    };
    walk(&whole["Plan"], &mut found);
    Ok(found)
}

fn walk(node: &Value, found: &mut Explained) {
    let text = |name: &str| node[name].as_str().unwrap_or_default();
    let number = |name: &str| node[name].as_f64().unwrap_or(0.0);
    let loops = number("Actual Loops");
    for removed in ["Rows Removed by Filter", "Rows Removed by Index Recheck"] {
        found.wasted += number(removed) * loops;
    }
    // The months ahead are empty, and read so.
    let read = (number("Actual Rows") + number("Rows Removed by Filter")) * loops;
    if text("Node Type") == "Seq Scan" && text("Relation Name").starts_with("entries") && read > FEW
    {
        found.indexes.insert("NO INDEX".to_owned());
    }
    if loops > 0.0 && !text("Index Name").is_empty() {
        // entries_2026_01_call_id_idx: the month says nothing.
        let name = text("Index Name");
        let parts: Vec<&str> = name.split('_').collect();
        let short = match parts.as_slice() {
            ["entries", _, _, rest @ ..] => rest.join("_"),
            _ => name.to_owned(),
        };
        found.indexes.insert(short);
    }
    for child in node["Plans"].as_array().into_iter().flatten() {
        walk(child, found);
    }
}

/// What is documented, with values that are common, rare and absent.
async fn queries(
    database: &Database,
    world: &World,
) -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut superuser = database.superuser().await?;
    // Somewhere in the middle of it all.
    let picked: Value = sqlx::query_scalar(
        "SELECT to_jsonb(e) FROM audit.entries AS e
         WHERE recorded_at > now() - interval '40 days' AND kind = 'parked' AND value_tokens IS NOT NULL
         ORDER BY recorded_at LIMIT 1",
    )
    .fetch_one(&mut superuser)
    .await?;
    superuser.close().await?;
    let of = |name: &str| picked[name].as_str().unwrap_or_default().to_owned();
    let token = picked["value_tokens"][0]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let (call, run, approval, at) = (
        of("call_id"),
        of("run_id"),
        of("approval_id"),
        of("recorded_at"),
    );
    let common = world.token(0);
    let mut queries = vec![
        ("calls by id", format!("SELECT * FROM audit.calls WHERE call_id = '{call}'")),
        ("calls of a run", format!("SELECT * FROM audit.calls WHERE run_id = '{run}' ORDER BY received_at")),
        ("a run", format!("SELECT * FROM audit.runs WHERE run_id = '{run}'")),
        ("an approval", format!("SELECT * FROM audit.approvals WHERE approval_id = '{approval}'")),
        ("halts", "SELECT * FROM audit.halts ORDER BY pulled_at DESC LIMIT 100".to_owned()),
        ("README: what did this run do", format!(
            "SELECT triggered_by, purpose, received_at, tool, arguments, decision, outcome, status, votes
             FROM audit.calls WHERE run_id = '{run}' ORDER BY received_at")),
        ("README: money this week", "SELECT c.received_at, c.agent, c.tool, c.arguments ->> 'amount_cents' AS cents, c.permitted_by, c.approval_id
             FROM audit.entries AS e JOIN audit.calls AS c USING (call_id)
             WHERE e.opens_call AND e.consequence = 'money_movement' AND e.recorded_at > now() - interval '7 days' AND c.executed".to_owned()),
        ("README: nobody is sure", "SELECT c.call_id, c.agent, c.tool, c.arguments, c.forwarded_at, c.outcome_detail
             FROM audit.entries AS e JOIN audit.calls AS c USING (call_id)
             WHERE e.outcome = 'indeterminate' AND c.outcome = 'indeterminate' ORDER BY c.received_at".to_owned()),
        ("README: refused, by hour", "SELECT date_trunc('hour', recorded_at) AS hour, agent, reasons, count(*) FROM audit.entries
             WHERE kind = 'refusal' AND decision = 'deny' AND recorded_at > now() - interval '7 days'
             GROUP BY 1, 2, 3 ORDER BY 1 DESC, 4 DESC".to_owned()),
        ("README: the policy texts", format!("SELECT policy_texts FROM audit.calls WHERE call_id = '{call}'")),
    ];
    for (name, token) in [
        ("README: a value, rare", &token),
        ("README: a value, common", &common),
    ] {
        queries.push((
            name,
            format!(
            "SELECT recorded_at, kind, agent, tool, call_id, decision, outcome FROM audit.entries
             WHERE value_tokens && ARRAY['{token}'] ORDER BY recorded_at"),
        ));
    }
    let absent = "0".repeat(64);
    let filters = [
        ("no filter, newest", "true".to_owned()),
        (
            "an hour",
            format!(
                "recorded_at >= '{at}' AND recorded_at < '{at}'::timestamptz + interval '1 hour'"
            ),
        ),
        ("agent, common", "agent = 'agent-3'".to_owned()),
        ("agent, one in a thousand", "agent = 'rare-bot'".to_owned()),
        ("agent, rare", "agent = 'seldom-bot'".to_owned()),
        ("agent, absent", "agent = 'nobody'".to_owned()),
        ("tool, common", "tool = 'api0.things0.act'".to_owned()),
        ("tool, rare", "tool = 'api0.seldom'".to_owned()),
        ("tool, absent", "tool = 'none'".to_owned()),
        ("run", format!("run_id = '{run}'")),
        ("call", format!("call_id = '{call}'")),
        ("approval", format!("approval_id = '{approval}'")),
        ("consequence, common", "consequence = 'read'".to_owned()),
        (
            "consequence, rarest",
            "consequence = 'permission_change'".to_owned(),
        ),
        ("consequence, absent", "consequence = 'none'".to_owned()),
        ("decision permit", "decision = 'permit'".to_owned()),
        ("decision park", "decision = 'park'".to_owned()),
        ("decision deny", "decision = 'deny'".to_owned()),
        (
            "reason, common",
            "reasons @> ARRAY['denied_by_policy']".to_owned(),
        ),
        ("reason, rare", "reasons @> ARRAY['halted']".to_owned()),
        (
            "reason, absent",
            "reasons @> ARRAY['rate_limited']".to_owned(),
        ),
        ("operator, common", "operator = 'ada'".to_owned()),
        ("operator, rare", "operator = 'yvonne'".to_owned()),
        ("operator, absent", "operator = 'nobody'".to_owned()),
        (
            "digest",
            format!(
                "arguments_digest = '{}' AND opens_call",
                of("arguments_digest")
            ),
        ),
        (
            "value, common",
            format!("value_tokens && ARRAY['{common}']"),
        ),
        ("value, rare", format!("value_tokens && ARRAY['{token}']")),
        (
            "value, absent",
            format!("value_tokens && ARRAY['{absent}']"),
        ),
    ];
    for (name, filter) in filters {
        queries.push((
            name,
            format!(
                "SELECT * FROM audit.entries WHERE {filter}
             AND (recorded_at, instance_id, seq) < (now() - interval '1 day', 'inst_', 0)
             ORDER BY recorded_at DESC, instance_id DESC, seq DESC LIMIT 100"
            ),
        ));
    }
    Ok(queries)
}
