//! Nothing is lost and nothing stands twice: what a gateway that is gone left open, and many calls at once.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{connect, texts};
use crate::support::{Setup, World, new_database, send};

/// What an earlier gateway has left: an instance, and an intent of it without an outcome.
async fn abandoned(database: &str, call: &str, kept: bool) {
    let mut gateway = connect("toolgate_gateway", database).await;
    let row = json!({
        "instance_id": "inst_gone", "seq": 2, "recorded_at": toolgate::clock::now(), "kind": "intent", "opens_call": true,
        "call_id": call, "run_id": "run_gone", "agent": "support-bot", "api": "desk", "tool": "desk.refunds.create",
        "consequence": "money_movement", "arguments": {}, "arguments_digest": "d", "contract_digest": "c",
        "policy_digest": "p", "decision": "permit", "received_at": toolgate::clock::now(), "decided_at": toolgate::clock::now(),
        "hash": format!("\\x{}", "ab".repeat(32)),
    });
    sqlx::query("INSERT INTO toolgate.instances (instance_id, started_at, settled_until, ended_at)
         VALUES ('inst_gone', now() - interval '1 hour', now() - interval '1 minute', now()) ON CONFLICT DO NOTHING")
        .execute(&mut gateway)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO audit.entries SELECT * FROM jsonb_populate_record(NULL::audit.entries, $1)",
    )
    .bind(row)
    .execute(&mut gateway)
    .await
    .unwrap();
    if kept {
        sqlx::query(
            "INSERT INTO toolgate.runs VALUES ('run_gone', 'support-bot', 'x', 'x', '{}', false, now(), NULL, NULL)",
        )
        .execute(&mut gateway)
        .await
        .unwrap();
        sqlx::query(
            "INSERT INTO toolgate.calls (call_id, run_id, agent, tool, digest, contract_digest, idempotency_key, state, received_at)
             VALUES ($1, 'run_gone', 'support-bot', 'desk.refunds.create', 'd', 'c', 'key-gone', 'executing', now())",
        )
        .bind(call)
        .execute(&mut gateway)
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn what_a_gone_gateway_left_open_becomes_indeterminate_exactly_once() {
    let database = new_database().await;
    let plain = toolgate::ids::CallId::generate();
    let kept = toolgate::ids::CallId::generate();
    abandoned(&database, plain.as_str(), false).await;
    abandoned(&database, kept.as_str(), true).await;
    let desk = toolgate::demo::desk::start("desk-token".to_owned())
        .await
        .unwrap();
    let mut world = World::start(Setup::shipped(), database, desk.into()).await;
    for starts in 1..=3 {
        for call in [&plain, &kept] {
            let row = world.call_row(call.as_str()).await;
            assert_eq!(row["outcome"], "indeterminate", "{row:#}");
            assert_eq!(row["reasons"], json!(["indeterminate"]));
            assert_eq!(row["executed"], Value::Null);
            assert_eq!(row["forwarded_at"], Value::Null);
            let state = world.state(call.as_str()).await;
            assert_eq!(state["state"], "indeterminate", "{state}");
            assert_eq!(state["executed"], Value::Null);
            let outcomes = format!(
                "SELECT * FROM audit.entries WHERE call_id = '{call}' AND kind = 'outcome'"
            );
            assert_eq!(
                world.audit(&outcomes).await.len(),
                1,
                "after {starts} starts"
            );
        }
        world = world.restart(|setup| setup).await;
    }
    assert_eq!(world.desk.received()["total"], 0, "nothing is sent again");
}

#[tokio::test]
async fn many_calls_at_once_are_each_recorded_and_numbered_without_a_gap() {
    const CALLS: usize = 200;
    let world = World::shipped().await;
    let run = world.run().await;
    let requests = (0..CALLS).map(|_| send(world.refund(Some(&run), 100)));
    let answers = futures::future::join_all(requests).await;
    let mut called: Vec<String> = answers
        .into_iter()
        .map(|answer| answer.expect(201).header("toolgate-call").to_owned())
        .collect();
    called.sort();
    let mut auditor = world.connect("toolgate_auditor").await;
    let started = "SELECT instance_id FROM audit.entries WHERE kind = 'gateway_started'";
    let instances = texts(&mut auditor, started).await;
    let [instance] = &instances[..] else {
        panic!("{instances:?}")
    };
    let rows = texts(
        &mut auditor,
        &format!("SELECT to_jsonb(e)::text FROM audit.entries AS e WHERE instance_id = '{instance}' ORDER BY seq"),
    )
    .await;
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| serde_json::from_str(row).unwrap())
        .collect();
    let numbers: Vec<u64> = rows
        .iter()
        .map(|row| row["seq"].as_u64().unwrap())
        .collect();
    let expected: Vec<u64> = (1..=rows.len() as u64).collect();
    assert_eq!(numbers, expected);
    let mut by_call: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for row in &rows {
        if let Some(call) = row["call_id"].as_str() {
            by_call
                .entry(call)
                .or_default()
                .push(row["kind"].as_str().unwrap());
        }
    }
    assert_eq!(by_call.keys().copied().collect::<Vec<_>>(), called);
    for (call, kinds) in by_call {
        assert_eq!(kinds, ["intent", "outcome"], "{call}");
    }
    // Calls did share commits, or this shows nothing.
    let commits: std::collections::BTreeSet<&str> = rows
        .iter()
        .map(|row| row["recorded_at"].as_str().unwrap())
        .collect();
    assert!(
        commits.len() < rows.len(),
        "{} commits for {} entries",
        commits.len(),
        rows.len()
    );
    assert_eq!(world.received("POST /refunds"), CALLS as u64);
}
