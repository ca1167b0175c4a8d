//! What is counted: that it agrees with what happened, that whoever asks is asked for a key, and that how quickly each person
//! decides can be read from the records.

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Setup, World, send};

/// Every sample by its name and labels.
pub async fn scrape(world: &World) -> BTreeMap<String, f64> {
    let answer = send(world.operator("ada", Method::GET, "/metrics"))
        .await
        .expect(200);
    assert_eq!(
        answer.header("content-type"),
        "text/plain; version=0.0.4; charset=utf-8"
    );
    let text = String::from_utf8(answer.bytes.to_vec()).unwrap();
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        })
        .collect()
}

#[tokio::test]
async fn counts_agree_with_what_happened() {
    let world = World::shipped().await;
    let before = scrape(&world).await;
    assert_eq!(before["toolgate_pending_calls{tier=\"finance\"}"], 0.0);
    for amount in [100, 200, 300] {
        send(world.refund(None, amount)).await.expect(201);
    }
    send(world.refund(None, 250_000)).await.expect(403);
    let (waiting, _) = world.parked(None, 26_000).await;
    let (approved, approval) = world.parked(None, 25_000).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    world.ended(&approved).await;
    let (_, approval) = world.parked(None, 27_000).await;
    world.decide("bob", &approval, "deny").await.expect(200);
    let halt = world
        .halt(json!({"kind": "tool", "id": "desk.mail.send"}))
        .await;

    let now = scrape(&world).await;
    for (name, difference) in [
        ("toolgate_calls_total{decision=\"permit\",reason=\"\"}", 3.0),
        ("toolgate_calls_total{decision=\"park\",reason=\"\"}", 3.0),
        (
            "toolgate_calls_total{decision=\"deny\",reason=\"denied_by_policy\"}",
            1.0,
        ),
        ("toolgate_outcomes_total{outcome=\"completed\"}", 4.0),
        ("toolgate_outcomes_total{outcome=\"denied\"}", 1.0),
        ("toolgate_outcomes_total{outcome=\"expired\"}", 0.0),
        ("toolgate_step_seconds_count{step=\"contract\"}", 7.0),
        ("toolgate_step_seconds_count{step=\"forward\"}", 3.0),
        ("toolgate_step_seconds_count{step=\"park\"}", 3.0),
        (
            "toolgate_approval_votes_total{operator=\"ada\",vote=\"approve\"}",
            1.0,
        ),
        (
            "toolgate_approval_votes_under_five_seconds_total{operator=\"ada\",vote=\"approve\"}",
            1.0,
        ),
        (
            "toolgate_approval_votes_total{operator=\"bob\",vote=\"deny\"}",
            1.0,
        ),
        (
            "toolgate_approval_decision_seconds_count{tier=\"finance\"}",
            2.0,
        ),
        ("toolgate_pending_calls{tier=\"finance\"}", 1.0),
        ("toolgate_halts{kind=\"tool\"}", 1.0),
    ] {
        assert_eq!(now[name] - before[name], difference, "{name}");
    }
    assert_eq!(now["toolgate_records_available"], 1.0);
    assert!(now["toolgate_oldest_pending_seconds{tier=\"finance\"}"] > 0.0);
    assert!(now["toolgate_open_connections{listener=\"agents\"}"] >= 1.0);
    assert!(now["toolgate_commit_entries_sum"] > before["toolgate_commit_entries_sum"]);
    assert!(
        now.keys()
            .any(|name| { name.starts_with("toolgate_build_info{version=\"0.1.0\",schema=\"") })
    );

    // The counts and the records tell of the same entries.
    let recorded: i64 = {
        let mut owner = world.connect("toolgate_owner").await;
        let outcomes = "SELECT count(*) FROM audit.entries WHERE outcome IS NOT NULL";
        sqlx::query_scalar(outcomes)
            .fetch_one(&mut owner)
            .await
            .unwrap()
    };
    let counted: f64 = now
        .iter()
        .filter(|(name, _)| name.starts_with("toolgate_outcomes_total"))
        .map(|(_, count)| count)
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "a handful of entries")]
    let recorded = recorded as f64;
    assert_eq!(counted, recorded);
    world.resume(&halt).await;
    world.state(&waiting).await;
}

#[tokio::test]
async fn whoever_reads_the_metrics_has_a_key_and_the_right() {
    let mut world = Setup::shipped()
        .config(
            "\noperators:\n",
            "\noperators:\n  scraper: { roles: [metrics] }\n",
        )
        .policy(
            "operators.cedar",
            "principal in Role::\"on-call\",\n  action == Action::\"read_metrics\"",
            "principal in Role::\"metrics\",\n  action == Action::\"read_metrics\"",
        )
        .start()
        .await;
    world
        .keys(
            toolgate::keys::KeyKind::Operator,
            &["scraper".to_owned(), "grace".to_owned()],
        )
        .await;
    let url = format!("http://{}/metrics", world.gateway.operators);
    send(world.anybody(Method::GET, &url))
        .await
        .problem(401, "unauthenticated");
    send(world.operator("grace", Method::GET, "/metrics"))
        .await
        .problem(403, "denied_by_policy");
    send(world.operator("scraper", Method::GET, "/metrics"))
        .await
        .expect(200);
    send(world.operator("scraper", Method::GET, "/v1/approvals"))
        .await
        .problem(403, "denied_by_policy");
    // A scrape every few seconds is no entry, and a refused one is.
    assert_eq!(
        world
            .audit("SELECT 1 FROM audit.entries WHERE operator = 'scraper' AND kind = 'audit_read'")
            .await
            .len(),
        0
    );
    assert_eq!(
        world
            .audit(
                "SELECT 1 FROM audit.entries WHERE operator = 'grace' AND kind = 'operator_refused'"
            )
            .await
            .len(),
        1
    );
}

#[tokio::test]
async fn how_quickly_each_person_decides_is_read_from_the_records() {
    let world = World::shipped().await;
    let mut owner = world.connect("superuser").await;
    for (amount, who, verb, waited) in [
        (25_000, "ada", "approve", 2),
        (26_000, "ada", "approve", 60),
        (27_000, "ada", "deny", 3),
        (28_000, "bob", "approve", 600),
    ] {
        let (_, approval) = world.parked(None, amount).await;
        sqlx::query(
            "UPDATE toolgate.approvals SET created_at = now() - make_interval(secs => $2) WHERE approval_id = $1",
        )
        .bind(&approval)
        .bind(f64::from(waited))
        .execute(&mut owner)
        .await
        .unwrap();
        world.decide(who, &approval, verb).await.expect(200);
    }
    let read = async |query: &str| {
        let path = format!("/v1/approvals/statistics{query}");
        send(world.operator("ada", Method::GET, &path)).await
    };
    let answer = read("").await.expect(200).body;
    let of = |name: &str| -> Value {
        let all = answer["operators"].as_array().unwrap();
        all.iter()
            .find(|row| row["operator"] == name)
            .unwrap()
            .clone()
    };
    let (ada, bob) = (of("ada"), of("bob"));
    assert_eq!(ada["approvals"], 2);
    assert_eq!(ada["denials"], 1);
    assert_eq!(ada["calls_approved"], 2);
    assert_eq!(ada["approvals_under_five_seconds"], 1);
    let median = |row: &Value| row["median_seconds"].as_f64().unwrap();
    assert!((3.0..5.0).contains(&median(&ada)), "{ada}");
    assert!((600.0..602.0).contains(&median(&bob)), "{bob}");
    assert_eq!(bob["approvals_under_five_seconds"], 0);

    let past = "?from=2020-01-01T00:00:00Z&to=2020-01-02T00:00:00Z";
    assert_eq!(read(past).await.expect(200).body["operators"], json!([]));
    for wrong in [
        "?from=2020-01-02T00:00:00Z&to=2020-01-01T00:00:00Z",
        "?from=2020-01-01T00:00:00Z&to=2021-01-01T00:00:00Z",
        "?from=yesterday",
    ] {
        read(wrong).await.problem(400, "malformed_body");
    }

    // Along the index of votes by time.
    let plan = "EXPLAIN SELECT v.operator FROM toolgate.votes AS v WHERE v.voted_at >= now() - interval '1 day' AND v.voted_at < now()";
    sqlx::query("SET enable_seqscan = off")
        .execute(&mut owner)
        .await
        .unwrap();
    let plan: Vec<String> = sqlx::query_scalar(plan)
        .fetch_all(&mut owner)
        .await
        .unwrap();
    assert!(
        plan.iter().any(|line| line.contains("votes_by_time")),
        "{plan:?}"
    );
}

#[tokio::test]
async fn without_the_database_the_rest_is_still_counted() {
    let world = World::shipped().await;
    let mut superuser = world.connect("superuser").await;
    sqlx::query("REVOKE SELECT ON toolgate.approval_tiers FROM toolgate_gateway")
        .execute(&mut superuser)
        .await
        .unwrap();
    let now = scrape(&world).await;
    assert!(now.contains_key("toolgate_calls_total{decision=\"permit\",reason=\"\"}"));
    assert!(!now.contains_key("toolgate_pending_calls{tier=\"finance\"}"));
}
