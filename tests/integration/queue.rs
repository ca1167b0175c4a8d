//! A long queue of approvals: each page, however it is narrowed, reads a bounded number of rows, and a new call counts no
//! further than its agent's limit.

use std::time::Instant;

use reqwest::Method;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use toolgate::store::{self, approvals::Filter};

use crate::support::{World, send};

const PENDING: i64 = 100_000;

/// A queue of other agents' calls, one in a thousand of them rare in every way, and some that are decided already.
async fn fill(world: &World) {
    let (call, _) = world.parked(None, 25_000).await;
    let mut owner = world.connect("superuser").await;
    let names = format!(
        "CREATE TEMPORARY TABLE made AS
         SELECT n, state, n % 1000 = 7 AS rare,
                'call_7' || lpad(n::text, 24, '0') || s AS call_id, 'appr_7' || lpad(n::text, 24, '0') || s AS approval_id
         FROM generate_series(1, {PENDING}) AS n, (VALUES ('P', 'pending'), ('D', 'denied')) AS states (s, state)
         WHERE s = 'P' OR n <= 20000"
    );
    let calls = format!(
        "INSERT INTO toolgate.calls (call_id, run_id, agent, tool, digest, contract_digest, sealed, state, executed, received_at)
         SELECT m.call_id, c.run_id, 'bulk-bot', c.tool, m.call_id, c.contract_digest,
                CASE m.state WHEN 'pending' THEN c.sealed END,
                CASE m.state WHEN 'pending' THEN 'parked' ELSE 'denied' END, false, now()
         FROM made AS m, toolgate.calls AS c WHERE c.call_id = '{call}'"
    );
    let approvals = "INSERT INTO toolgate.approvals (approval_id, call_id, run_id, agent, owner, triggered_by, api, tool, consequence,
                                         digest, policies, state, expires_at, decided_at)
         SELECT approval_id, call_id, CASE WHEN rare THEN 'run_rare' ELSE 'run_bulk' END,
                CASE WHEN rare THEN 'rare-bot' ELSE 'bulk-bot' END, 'grace', 'schedule:nightly', 'desk',
                CASE WHEN rare THEN 'desk.users.promote' ELSE 'desk.refunds.create' END,
                CASE WHEN rare THEN 'permission_change' ELSE 'money_movement' END, 'digest', '{}', state,
                now() + interval '1 hour', CASE state WHEN 'pending' THEN NULL ELSE now() END
         FROM made";
    let tiers = r#"INSERT INTO toolgate.approval_tiers (approval_id, tier, needed, requires, state)
         SELECT approval_id, CASE WHEN rare THEN 'security' ELSE 'finance' END, 1,
                CASE WHEN rare THEN '[{"role": "security", "approvals": 1}]'
                     ELSE '[{"role": "finance", "approvals": 1}]' END::jsonb, state
         FROM made"#;
    for statement in [
        names.as_str(),
        calls.as_str(),
        approvals,
        tiers,
        "ANALYZE toolgate.calls, toolgate.approvals, toolgate.approval_tiers",
    ] {
        sqlx::query(AssertSqlSafe(statement.to_owned()))
            .execute(&mut owner)
            .await
            .unwrap();
    }
}

/// Rows that this connection has read of the gateway's tables and not reported yet, by whatever plan: nothing is reported within
/// a transaction, so the difference is what was read between.
async fn rows_read(connection: &mut PgConnection) -> i64 {
    sqlx::query_scalar(
        "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint FROM pg_stat_xact_user_tables
         WHERE schemaname = 'toolgate'",
    )
    .fetch_one(connection)
    .await
    .unwrap()
}

async fn listed(connection: &mut PgConnection, filter: &Filter<'_>) -> (usize, i64) {
    let mut transaction = connection.begin().await.unwrap();
    let before = rows_read(&mut transaction).await;
    let rows = store::approvals::list(&mut transaction, filter, 51)
        .await
        .unwrap();
    let read = rows_read(&mut transaction).await - before;
    transaction.rollback().await.unwrap();
    (rows.len(), read)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_a_hundred_thousand_is_read_a_page_at_a_time() {
    let world = World::shipped().await;
    fill(&world).await;
    let mut gateway = world.connect("toolgate_gateway").await;
    let pending = ["pending".to_owned()];
    let [finance, security, both] = [
        vec!["finance".to_owned()],
        vec!["security".to_owned()],
        vec!["finance".to_owned(), "security".to_owned()],
    ];
    let late = format!("appr_7{:024}P", PENDING / 2);
    {
        let states = &pending[..];
        let any = || Filter {
            states,
            ..Filter::default()
        };
        let filters = [
            ("all", any()),
            (
                "late",
                Filter {
                    after: Some(&late),
                    ..any()
                },
            ),
            (
                "agent",
                Filter {
                    agent: Some("bulk-bot"),
                    ..any()
                },
            ),
            (
                "rare agent",
                Filter {
                    agent: Some("rare-bot"),
                    ..any()
                },
            ),
            (
                "no agent",
                Filter {
                    agent: Some("no-bot"),
                    ..any()
                },
            ),
            (
                "run",
                Filter {
                    run: Some("run_rare"),
                    ..any()
                },
            ),
            (
                "tool",
                Filter {
                    tool: Some("desk.users.promote"),
                    ..any()
                },
            ),
            (
                "consequence",
                Filter {
                    consequence: Some("permission_change"),
                    ..any()
                },
            ),
            (
                "tier",
                Filter {
                    tiers: Some(&finance),
                    ..any()
                },
            ),
            (
                "rare tier",
                Filter {
                    tiers: Some(&security),
                    ..any()
                },
            ),
            (
                "both tiers",
                Filter {
                    tiers: Some(&both),
                    after: Some(&late),
                    ..any()
                },
            ),
            (
                "rare agent and tool",
                Filter {
                    agent: Some("rare-bot"),
                    tool: Some("desk.users.promote"),
                    ..any()
                },
            ),
        ];
        for (what, filter) in filters {
            let (rows, read) = listed(&mut gateway, &filter).await;
            assert_eq!(rows, if what == "no agent" { 0 } else { 51 }, "{what}");
            // A page of each state and tier, from two tables.
            let most = 51 * 2 * i64::try_from(states.len()).unwrap() * 2 + 51;
            assert!(
                read <= most,
                "{what} of {} states read {read} rows",
                states.len()
            );
        }
    }
    let mut transaction = gateway.begin().await.unwrap();
    let before = rows_read(&mut transaction).await;
    let waiting = store::approvals::pending_of(&mut transaction, "bulk-bot", 100)
        .await
        .unwrap();
    assert_eq!(waiting, 100);
    let read = rows_read(&mut transaction).await - before;
    // The statistics count what an index finds in the index and in the table.
    assert!(read <= 2 * (100 + 1), "{read}");
    transaction.rollback().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute; a measurement rather than a test"]
async fn how_long_a_queue_of_a_hundred_thousand_takes() {
    let world = World::shipped().await;
    fill(&world).await;
    by_http(&world).await;
}

#[expect(
    clippy::print_stdout,
    reason = "how long it took on this machine, for whoever asks with --no-capture"
)]
async fn by_http(world: &World) {
    let mut times = Vec::new();
    for (query, count) in [
        ("state=pending", 50),
        ("state=pending&limit=200", 200),
        ("state=pending&agent=rare-bot", 50),
        ("state=pending&tier=security", 50),
        ("consequence=permission_change", 50),
        ("mine=true", 50),
        ("mine=true&tier=security&limit=200", 100),
    ] {
        let path = format!("/v1/approvals?{query}");
        let began = Instant::now();
        let page = send(world.operator("ada", Method::GET, &path))
            .await
            .expect(200);
        times.push(format!("{query} {:?}", began.elapsed()));
        assert_eq!(
            page.body["data"].as_array().unwrap().len(),
            count,
            "{query}"
        );
        assert_eq!(page.body["has_more"], json!(count != 100), "{query}");
    }
    // Every one of the rare ones comes once, page by page.
    let mut seen = std::collections::BTreeSet::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/approvals?mine=true&agent=rare-bot&limit=30{cursor}");
        let page = send(world.operator("ada", Method::GET, &path))
            .await
            .expect(200);
        for row in page.body["data"].as_array().unwrap() {
            assert!(seen.insert(row["approval"].as_str().unwrap().to_owned()));
        }
        match page.body["cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(seen.len(), 100);
    let began = Instant::now();
    let (call, approval) = world.parked(None, 27_000).await;
    times.push(format!("a new call {:?}", began.elapsed()));
    let began = Instant::now();
    world.decide("bob", &approval, "approve").await.expect(200);
    times.push(format!("shown and decided {:?}", began.elapsed()));
    assert_eq!(world.ended(&call).await["state"], "completed");
    // A halt stops all their clocks, and its end sets them going.
    let began = Instant::now();
    let halt = world.halt(json!({"kind": "everything"})).await;
    times.push(format!("halt {:?}", began.elapsed()));
    let began = Instant::now();
    world.resume(&halt).await;
    times.push(format!("resume {:?}", began.elapsed()));
    let mut gateway = world.connect("toolgate_gateway").await;
    let stopped: i64 =
        sqlx::query_scalar("SELECT count(*) FROM toolgate.approvals WHERE frozen_at IS NOT NULL")
            .fetch_one(&mut gateway)
            .await
            .unwrap();
    assert_eq!(stopped, 0);
    println!("{}", times.join("\n"));
}
