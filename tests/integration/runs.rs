//! Runs: what they narrow, when they end, and whose they are.

use chrono::TimeDelta;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row as _;
use toolgate::{
    clock::{self, Timestamp},
    keys::KeyKind,
};

use crate::support::{Answer, World, send};

async fn open(world: &World, more: Value) -> Answer {
    let mut body = json!({"triggered_by": "ticket:1", "purpose": "a test"});
    body.as_object_mut()
        .unwrap()
        .extend(more.as_object().unwrap().clone());
    send(world.agent(Method::POST, "/v1/runs").json(&body)).await
}

async fn row(world: &World, run: &str) -> Value {
    let query = format!("SELECT to_jsonb(r)::text FROM audit.runs AS r WHERE run_id = '{run}'");
    let rows = world.audit(&query).await;
    assert_eq!(rows.len(), 1, "{run}");
    serde_json::from_str(rows[0].get(0)).unwrap()
}

#[tokio::test]
async fn a_run_has_the_scopes_that_were_asked_for_and_no_others() {
    let world = World::shipped().await;
    let own = [
        "desk.customers:read",
        "desk.mail:send",
        "desk.records:delete",
        "desk.refunds:write",
        "desk.tickets:write",
        "desk.users:admin",
    ];
    for (asked, granted, refund) in [
        (json!({}), json!(own), 201),
        (json!({"scopes": []}), json!([]), 403),
        (
            json!({"scopes": ["desk.customers:read"]}),
            json!(["desk.customers:read"]),
            403,
        ),
        (
            json!({"scopes": ["desk.refunds:write", "desk.customers:read", "desk.refunds:write"]}),
            json!(["desk.customers:read", "desk.refunds:write"]),
            201,
        ),
    ] {
        let answer = open(&world, asked.clone()).await.expect(201);
        assert_eq!(answer.body["scopes"], granted, "{asked}");
        let run = answer.body["run"].as_str().unwrap();
        let answer = send(world.refund(Some(run), 100)).await;
        if refund == 403 {
            let call = world.refused(answer, 403, "scope_missing").await;
            assert_eq!(call["run_id"], json!(run));
        } else {
            answer.expect(refund);
        }
        let row = row(&world, run).await;
        assert_eq!(row["scopes"], granted);
        assert_eq!(row["implicit"], false);
        assert_eq!(row["agent"], "support-bot");
        assert_eq!(
            (&row["triggered_by"], &row["purpose"]),
            (&json!("ticket:1"), &json!("a test"))
        );
        assert_eq!(row["calls"], 1);
    }
    assert_eq!(world.received("POST /refunds"), 2);
}

#[tokio::test]
async fn a_run_that_asks_for_too_much_is_not_opened() {
    let world = World::shipped().await;
    for more in [
        json!({"scopes": ["etcd.keys:read"]}),
        json!({"scopes": ["desk.customers:read", "desk.customers:write"]}),
        json!({"scopes": ["*"]}),
        json!({"scopes": [""]}),
        json!({"scopes": ["desk.customers:READ"]}),
    ] {
        open(&world, more.clone())
            .await
            .problem(403, "scope_missing");
    }
    for more in [
        json!({"scopes": "desk.customers:read"}),
        json!({"scopes": [1]}),
        json!({"scopes": null}),
        json!({"purpose": ""}),
        json!({"purpose": " "}),
        json!({"purpose": 1}),
        json!({"triggered_by": null}),
        json!({"triggered_by": "x".repeat(1_001)}),
        json!({"expires_in_seconds": 0}),
        json!({"expires_in_seconds": -1}),
        json!({"expires_in_seconds": 1.5}),
        json!({"expires_in_seconds": 1_000_000_000}),
        json!({"agent": "platform-bot"}),
        json!({"implicit": true}),
    ] {
        open(&world, more.clone())
            .await
            .problem(400, "malformed_body");
    }
    let missing = world
        .agent(Method::POST, "/v1/runs")
        .json(&json!({"purpose": "x"}));
    send(missing).await.problem(400, "malformed_body");
    assert!(world.audit("SELECT FROM audit.runs").await.is_empty());
}

#[tokio::test]
async fn a_run_that_is_not_open_to_the_agent_is_refused() {
    let mut world = World::shipped().await;
    world.key(KeyKind::Agent, "platform-bot").await;
    let body = json!({"triggered_by": "x", "purpose": "y"});
    let others = send(
        world
            .agent_named("platform-bot", Method::POST, "/v1/runs")
            .json(&body),
    )
    .await
    .expect(201)
    .body["run"]
        .as_str()
        .unwrap()
        .to_owned();
    let ended = world.run().await;
    let end = |run: &str| world.agent(Method::POST, &format!("/v1/runs/{run}/end"));
    send(end(&ended)).await.expect(200);
    send(end(&ended)).await.problem(404, "not_found");
    send(end(&others)).await.problem(404, "not_found");
    send(end("run_x")).await.problem(404, "not_found");
    send(end("%ff")).await.problem(404, "not_found");
    let answer = open(&world, json!({"expires_in_seconds": 1}))
        .await
        .expect(201);
    let expiring = answer.body["run"].as_str().unwrap().to_owned();
    send(world.refund(Some(&expiring), 100)).await.expect(201);
    let expires_at: Timestamp = answer.body["expires_at"].as_str().unwrap().parse().unwrap();
    let left = expires_at - clock::now() + TimeDelta::milliseconds(50);
    tokio::time::sleep(left.to_std().unwrap_or_default()).await;
    let open_run = world.run().await;
    let unknown = "run_01000000000000000000000000";
    let lower = open_run.to_lowercase();
    let twice = format!("{open_run}, {open_run}");
    let spaced = format!("{open_run} x");
    let mut bodies = Vec::new();
    for run in [
        unknown,
        "run_",
        "x",
        "",
        &ended,
        &expiring,
        &others,
        &lower,
        &twice,
        &spaced,
        "null",
        "call_01000000000000000000000000",
    ] {
        let answer = send(world.refund(Some(run), 100)).await;
        bodies.push(without_call(&answer));
        let row = world.refused(answer, 401, "unauthenticated").await;
        assert_eq!(row["agent"], "support-bot", "{run:?}");
        assert_eq!(row["run_id"], Value::Null, "{run:?}");
    }
    let two = world
        .refund(Some(&open_run), 100)
        .header("toolgate-run", &open_run);
    let answer = send(two).await;
    bodies.push(without_call(&answer));
    world.refused(answer, 401, "unauthenticated").await;
    let bytes = world
        .refund(None, 100)
        .header("toolgate-run", &b"run_\xff"[..]);
    let answer = send(bytes).await;
    bodies.push(without_call(&answer));
    world.refused(answer, 401, "unauthenticated").await;
    bodies.dedup();
    assert_eq!(bodies.len(), 1, "one answer for all: {bodies:#?}");
    // The tool's own route asks the same.
    let body = json!({"arguments": {"customer": "c_1001", "amount_cents": 100, "currency": "EUR"}});
    let request = world.agent(Method::POST, "/v1/tools/desk.refunds.create/calls");
    let answer = send(request.header("toolgate-run", &others).json(&body)).await;
    world.refused(answer, 401, "unauthenticated").await;
    assert_eq!(world.received("POST /refunds"), 1);
    let row = row(&world, &ended).await;
    assert_ne!(row["ended_at"], Value::Null);
    assert_eq!(row["calls"], 0);
}

fn without_call(answer: &Answer) -> Value {
    let mut body = answer.body.clone();
    body.as_object_mut().unwrap().remove("call");
    body
}

#[tokio::test]
async fn calls_without_a_run_share_one_for_each_agent_that_says_so() {
    let mut world = World::shipped().await;
    world.key(KeyKind::Agent, "platform-bot").await;
    let read = |agent: &str| {
        let request = world.agent_named(agent, Method::GET, "/desk/customers/c_1001");
        async { send(request).await.header("toolgate-call").to_owned() }
    };
    // The first ones at the same time.
    let first = futures::future::join_all((0..8).map(|_| read("support-bot"))).await;
    let other = read("platform-bot").await;
    let mut runs = Vec::new();
    for call in first.iter().chain([&other]) {
        let row = world.recorded(call).await;
        runs.push(row["run_id"].as_str().unwrap().to_owned());
    }
    let other = runs.pop().unwrap();
    runs.dedup();
    assert_eq!(runs.len(), 1, "{runs:?}");
    assert_ne!(runs[0], other);
    for (run, agent, calls) in [(&runs[0], "support-bot", 8), (&other, "platform-bot", 1)] {
        let row = row(&world, run).await;
        assert_eq!(row["implicit"], true);
        assert_eq!(row["agent"], agent);
        assert_eq!(row["calls"], calls);
        assert_eq!(row["triggered_by"], format!("agent:{agent}"));
        assert_ne!(row["expires_at"], Value::Null);
    }
    assert_eq!(world.audit("SELECT FROM audit.runs").await.len(), 2);
    // An implicit run can be named, by its own agent alone, and ended; the next call opens another.
    send(world.refund(Some(&runs[0]), 100)).await.expect(201);
    let answer = send(world.refund(Some(&other), 100)).await;
    world.refused(answer, 401, "unauthenticated").await;
    let end = format!("/v1/runs/{}/end", runs[0]);
    send(world.agent(Method::POST, &end)).await.expect(200);
    let row = world.recorded(&read("support-bot").await).await;
    assert_ne!(row["run_id"], json!(runs[0]));
    assert_eq!(row["decision"], "permit");
}
