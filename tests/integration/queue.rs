//! A long queue of approvals: each page, however it is narrowed, reads a bounded number of rows, and a new call counts no
//! further than its agent's limit.

use std::{collections::BTreeSet, time::Instant};

use reqwest::Method;
use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use toolgate::store::{
    self,
    approvals::{Filter, Listed, STATES},
};

use crate::support::{World, send};

const PENDING: i64 = 100_000;
/// Of each state in which a call was decided.
const DECIDED: i64 = 10_000;

/// A queue of other agents' calls, one in a thousand of them rare in every way, and some that are decided already: one state
/// lies before all the others, one behind them, and two among them, so that no guess at where the next row lies is right.
async fn fill(world: &World) {
    let (call, _) = world.parked(None, 25_000).await;
    let mut owner = world.connect("superuser").await;
    let names = format!(
        "CREATE TEMPORARY TABLE made AS
         SELECT n, state, n % 1000 = 7 AS rare,
                'call_' || place || lpad(n::text, 24, '0') || s AS call_id,
                'appr_' || place || lpad(n::text, 24, '0') || s AS approval_id
         FROM generate_series(1, {PENDING}) AS n,
              (VALUES ('P', 'pending', 7), ('D', 'denied', 7), ('E', 'expired', 7), ('V', 'voided', 6), ('A', 'approved', 8))
                  AS states (s, state, place)
         WHERE s = 'P' OR n <= {DECIDED}"
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

async fn listed(connection: &mut PgConnection, filter: &Filter<'_>) -> (Listed, i64) {
    let mut transaction = connection.begin().await.unwrap();
    let before = rows_read(&mut transaction).await;
    let found = store::approvals::list(&mut transaction, filter, LIMIT)
        .await
        .unwrap();
    let read = rows_read(&mut transaction).await - before;
    transaction.rollback().await.unwrap();
    (found, read)
}

const LIMIT: i64 = 50;
/// What a page looks at in each state and tier where filters are combined.
const LOOK: i64 = 1_000;

/// One of each filter: many rows have it, few, none.
struct Choice {
    agent: Option<&'static str>,
    run: Option<&'static str>,
    tool: Option<&'static str>,
    consequence: Option<&'static str>,
    tiers: Option<Vec<String>>,
}

/// Each filter alone and each two of them, common, rare and mixed; all of them; none; and what nothing has.
fn choices() -> Vec<Choice> {
    // 0: left out, 1: common, 2: rare.
    let mut picks = vec![[0; 5], [1; 5], [2; 5]];
    for one in 0..5 {
        for of_one in 1..3 {
            let mut pick = [0; 5];
            pick[one] = of_one;
            picks.push(pick);
            for other in one + 1..5 {
                pick[other] = 3 - of_one;
                picks.push(pick);
                pick[other] = 0;
            }
        }
    }
    let pick = |which: usize, common, rare| [None, Some(common), Some(rare)][which];
    let mut choices: Vec<Choice> = picks
        .into_iter()
        .map(|[agent, run, tool, consequence, tier]| Choice {
            agent: pick(agent, "bulk-bot", "rare-bot"),
            run: pick(run, "run_bulk", "run_rare"),
            tool: pick(tool, "desk.refunds.create", "desk.users.promote"),
            consequence: pick(consequence, "money_movement", "permission_change"),
            tiers: pick(tier, "finance", "security").map(|tier| vec![tier.to_owned()]),
        })
        .collect();
    let both = ["finance".to_owned(), "security".to_owned()];
    for (agent, tiers) in [
        (None, Some(both.to_vec())),
        (Some("no-bot"), Some(both.to_vec())),
        (Some("no-bot"), None),
    ] {
        choices.push(Choice {
            agent,
            run: None,
            tool: None,
            consequence: None,
            tiers,
        });
    }
    choices
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_of_a_hundred_thousand_is_read_a_page_at_a_time_however_it_is_narrowed() {
    let world = World::shipped().await;
    fill(&world).await;
    let mut gateway = world.connect("toolgate_gateway").await;
    let states = STATES.map(str::to_owned);
    let places = [
        "".to_owned(),
        format!("appr_7{:024}P", PENDING / 2),
        "appr_9".to_owned(),
    ];
    let narrowings = states.iter().map(std::slice::from_ref).chain([&[][..]]);
    for states in narrowings {
        for (choice, place) in choices()
            .iter()
            .flat_map(|choice| places.iter().map(move |place| (choice, place)))
        {
            let filter = Filter {
                states,
                agent: choice.agent,
                run: choice.run,
                tool: choice.tool,
                consequence: choice.consequence,
                tiers: choice.tiers.as_deref(),
                after: Some(place),
            };
            let (found, read) = listed(&mut gateway, &filter).await;
            let names = [filter.agent, filter.run, filter.tool, filter.consequence];
            let filters = names.iter().flatten().count() + usize::from(filter.tiers.is_some());
            let look = if filters > 1 { LOOK } else { LIMIT + 1 };
            let tiers = filter.tiers.map_or(1, <[String]>::len);
            let ways = if states.is_empty() { STATES.len() } else { 1 } * tiers;
            // Each row that is looked at counts once in its index and once when it is read.
            let most = i64::try_from(ways).unwrap() * look * 2;
            assert!(read <= most, "{filter:?} read {read} rows, not {most}");
            // With filters that have an index a page is full as long as there are rows.
            if filters <= 1 && found.after.is_some() {
                assert_eq!(found.rows.len(), 50, "{filter:?}");
            }
        }
    }
    // Page by page everything comes once, also where most pages are empty.
    let rare = i64::try_from(STATES.len() - 1).unwrap() * DECIDED / 1_000 + PENDING / 1_000;
    for (agent, tier, count) in [("rare-bot", "security", rare), ("rare-bot", "finance", 0)] {
        let tiers = [tier.to_owned()];
        let mut seen = BTreeSet::new();
        let mut after = None;
        loop {
            let filter = Filter {
                agent: Some(agent),
                tiers: Some(&tiers),
                after: after.as_deref(),
                ..Filter::default()
            };
            let (found, _) = listed(&mut gateway, &filter).await;
            for row in found.rows {
                assert!(seen.insert(row.approval_id));
            }
            after = found.after;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(i64::try_from(seen.len()).unwrap(), count, "{tier}");
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
    let mut seen = BTreeSet::new();
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
