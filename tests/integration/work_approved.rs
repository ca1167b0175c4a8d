//! Where the work list meets approvals, rules for sensitive values, the record of readings and what people are told.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use toolgate::ids::KillSwitchId;

use crate::{
    composition::{lend, revoke, setup, start, vote},
    sensitive,
    support::{World, send},
    work::{act, executed, waiting},
};

const BY_PEOPLE: &str = "requires: [{ role: finance, approvals: 1 }]\n    expires_in_seconds: 3600\n    execution: work_list";
const TIA: &str = "  tia: { roles: [auditor] }\n";

/// Waits until so many calls are there to be done by hand.
async fn listed(world: &World, count: usize) {
    for _ in 0..250 {
        if waiting(world, "kind=manual").await.len() == count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not {count} calls are on the work list");
}

async fn told(world: &World, call: &str) -> Vec<Value> {
    let mut superuser = world.connect("superuser").await;
    sqlx::query_scalar(
        "SELECT data || jsonb_build_object('type', type) FROM toolgate.outbox WHERE data ->> 'call' = $1 ORDER BY seq",
    )
    .bind(call)
    .fetch_all(&mut superuser)
    .await
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_whose_votes_no_longer_hold_is_not_given_to_hands() {
    let world = start(setup(BY_PEOPLE, TIA), &["tia"]).await;
    let lent = lend(&world, "bob", "tia").await;
    let (call, approval) = world.parked(None, 20_000).await;
    let (other, other_approval) = world.parked(None, 21_000).await;
    vote(&world, "tia", &approval, "approve", None)
        .await
        .expect(200);
    vote(&world, "ada", &other_approval, "approve", None)
        .await
        .expect(200);
    listed(&world, 2).await;
    revoke(&world, "bob", &lent).await.expect(200);
    let refused = act(&world, "ada", &call, "claim", json!({}))
        .await
        .problem(409, "conflict");
    let detail = refused.body["detail"].as_str().unwrap();
    assert!(detail.contains("no longer hold"), "{detail}");
    let state = world.state(&call).await;
    assert_eq!(state["state"], "voided");
    assert_eq!(state["executed"], false);
    let claims =
        format!("SELECT 1 FROM audit.entries WHERE kind = 'work_claimed' AND call_id = '{call}'");
    assert!(world.audit(&claims).await.is_empty());
    // The one whose votes hold is done, and who is told of the approval is told by whom.
    act(&world, "ada", &other, "claim", json!({}))
        .await
        .expect(200);
    assert_eq!(waiting(&world, "kind=manual").await.len(), 1);
    act(&world, "ada", &other, "resolve", executed(21_000))
        .await
        .expect(200);
    let events = told(&world, &other).await;
    let kinds: Vec<&str> = events
        .iter()
        .map(|event| event["type"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        ["approval.created", "approval.approved", "call.completed"]
    );
    assert_eq!(events[2]["executed_by"], "operator");
    assert_eq!(world.received("POST /refunds"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_is_not_given_to_hands_after_its_time_or_under_a_halt_that_only_the_database_knows()
{
    let world = start(setup(BY_PEOPLE, TIA), &["tia"]).await;
    let (late, late_approval) = world.parked(None, 20_000).await;
    let (halted, approval) = world.parked(None, 21_000).await;
    for approval in [&late_approval, &approval] {
        vote(&world, "ada", approval, "approve", None)
            .await
            .expect(200);
    }
    listed(&world, 2).await;
    let mut gateway = world.connect("toolgate_gateway").await;
    let id = KillSwitchId::generate().to_string();
    sqlx::query(
        "INSERT INTO toolgate.kill_switches (kill_switch_id, kind, target, reason, operator, pulled_at)
         VALUES ($1, 'tool', 'desk.refunds.create', 'elsewhere', 'bob', now())",
    )
    .bind(&id)
    .execute(&mut gateway)
    .await
    .unwrap();
    act(&world, "ada", &halted, "claim", json!({}))
        .await
        .problem(503, "halted");
    let over = format!(
        "UPDATE toolgate.approvals SET expires_at = now() - interval '1 second' WHERE call_id = '{late}'"
    );
    sqlx::query(AssertSqlSafe(over))
        .execute(&mut gateway)
        .await
        .unwrap();
    act(&world, "ada", &late, "claim", json!({}))
        .await
        .problem(409, "conflict");
    assert_eq!(world.ended(&late).await["state"], "expired");
    assert_eq!(world.state(&halted).await["state"], "parked");
    // An operator's claim holds against the end of the time as against everything else.
    sqlx::query("UPDATE toolgate.kill_switches SET released_at = now(), released_by = 'bob' WHERE kill_switch_id = $1")
        .bind(&id)
        .execute(&mut gateway)
        .await
        .unwrap();
    act(&world, "ada", &halted, "claim", json!({}))
        .await
        .expect(200);
    sqlx::query("UPDATE toolgate.approvals SET expires_at = now() - interval '1 second'")
        .execute(&mut gateway)
        .await
        .unwrap();
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(world.state(&halted).await["executed_by"], "operator");
    act(&world, "ada", &halted, "resolve", executed(21_000))
        .await
        .expect(200);
    assert_eq!(world.received("POST /refunds"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_enters_reaches_agents_and_records_by_the_rules_for_answers() {
    let api = sensitive::api().await;
    let world = sensitive::setup(&api, "mask")
        .tool(
            "probe.yaml",
            "    path: /people/{id}\n",
            "    path: /people/{id}\n    while_halted: work_list\n",
        )
        .start()
        .await;
    let run = world.run().await;
    world
        .halt(json!({"kind": "tool", "id": "probe.people.get"}))
        .await;
    let person = || {
        send(
            world
                .agent(Method::GET, "/probe/people/1")
                .header("toolgate-run", &run),
        )
    };
    let call = person().await.problem(403, "by_hand");
    let call = call.header("toolgate-call");
    act(&world, "ada", call, "claim", json!({}))
        .await
        .expect(200);
    let email = "planted.by.hand@example.org";
    let body = json!({
        "found": "executed", "status": 200, "evidence": "asked them", "note": format!("wrote to {email}"),
        "result": {"id": "1", "email": email, "card": "none", "key": "a-key", "note": "called", "unnamed": 1},
    });
    act(&world, "ada", call, "resolve", body).await.expect(200);
    let answer = person().await.expect(200);
    assert_eq!(answer.header("toolgate-executed-by"), "operator");
    assert_eq!(answer.header("idempotency-replayed"), "true");
    assert_eq!(answer.body["email"], "****@example.org");
    assert_eq!(answer.body.get("key"), None, "dropped");
    assert_eq!(
        answer.body.get("unnamed"),
        None,
        "the contract does not name it"
    );
    let mut superuser = world.connect("superuser").await;
    for table in ["audit.entries", "toolgate.work", "toolgate.calls"] {
        let all = format!("SELECT coalesce(string_agg(t::text, ' '), '') FROM {table} AS t");
        let all: String = sqlx::query_scalar(AssertSqlSafe(all))
            .fetch_one(&mut superuser)
            .await
            .unwrap();
        assert!(!all.contains("planted.by.hand"), "{table}: {all}");
    }
    assert!(
        api.requests()
            .iter()
            .all(|request| !request.contains("/people/1"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hands_see_what_the_tier_shows_and_every_reading_is_recorded() {
    let shows = format!("{BY_PEOPLE}\n    shows: [pii]");
    let world = start(setup(&shows, TIA), &["tia"]).await;
    let refund = world
        .agent(Method::POST, "/desk/refunds")
        .json(&json!({"customer": "c_1001", "amount_cents": 20_000, "currency": "EUR", "note": "a secret note"}));
    let parked = send(refund).await.problem(403, "approval_required");
    let approval = parked.body["approval"].as_str().unwrap();
    let call = parked.header("toolgate-call");
    vote(&world, "ada", approval, "approve", None)
        .await
        .expect(200);
    listed(&world, 1).await;
    let claimed = act(&world, "bob", call, "claim", json!({}))
        .await
        .expect(200);
    assert_eq!(claimed.body["arguments"]["amount_cents"], 20_000);
    assert_eq!(claimed.body["arguments"]["note"], "****");
    let seen = format!(
        "SELECT detail -> 'seen' FROM audit.entries WHERE kind = 'work_viewed' AND call_id = '{call}' AND detail ? 'seen'"
    );
    let seen = world.audit(&seen).await;
    assert_eq!(seen.len(), 1);
    assert_eq!(sqlx::Row::get::<Value, _>(&seen[0], 0), json!([]));

    let count = "SELECT 1 FROM audit.entries WHERE operator = 'tia' AND kind = 'work_viewed' AND detail ? 'request'";
    let path = format!("/v1/work/{call}");
    for (path, status) in [
        ("/v1/work?state=all&format=csv", 200),
        (path.as_str(), 200),
        ("/v1/work/call_nothing", 404),
    ] {
        let before = world.audit(count).await.len();
        assert_eq!(
            send(world.operator("tia", Method::GET, path)).await.status,
            status
        );
        assert_eq!(world.audit(count).await.len(), before + 1, "{path}");
    }
}
