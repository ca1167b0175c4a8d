//! What the views tell: each call, run, approval and halt as one row that a person can read.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use toolgate::keys::KeyKind;

use super::texts;
use crate::support::{Setup, World, send};

/// Stands for any value but null.
const SET: &str = "<set>";

/// Holds a row against what is expected of some of its columns.
#[track_caller]
fn expect(what: &str, row: &Value, expected: &Value) {
    for (column, value) in expected.as_object().unwrap() {
        let found = row
            .get(column)
            .unwrap_or_else(|| panic!("{what}: no column {column}"));
        if value == SET {
            assert!(!found.is_null(), "{what}: {column} is not set in {row:#}");
        } else {
            assert_eq!(found, value, "{what}: {column} in {row:#}");
        }
    }
}

/// The columns that the interface promises, and those that every call has.
const COLUMNS: [&str; 17] = [
    "call_id",
    "run_id",
    "agent",
    "tool",
    "consequence",
    "decision",
    "reasons",
    "policies",
    "received_at",
    "decided_at",
    "forwarded_at",
    "finished_at",
    "status",
    "outcome",
    "approval_id",
    "arguments",
    "executed",
];

async fn one_row_each(world: &World) -> usize {
    let mut auditor = world.connect("toolgate_auditor").await;
    let rows = texts(
        &mut auditor,
        "SELECT to_jsonb(c)::text FROM audit.calls AS c ORDER BY call_id",
    )
    .await;
    let mut ids = std::collections::BTreeSet::new();
    for row in &rows {
        let row: Value = serde_json::from_str(row).unwrap();
        for column in COLUMNS {
            assert!(row.get(column).is_some(), "no column {column}");
        }
        assert!(ids.insert(row["call_id"].to_string()), "twice: {row:#}");
        // What is told in order happened in order.
        let times: Vec<&str> = [
            "received_at",
            "decided_at",
            "intent_at",
            "forwarded_at",
            "finished_at",
            "outcome_at",
        ]
        .iter()
        .filter_map(|column| row[column].as_str())
        .collect();
        // A parked call's intent follows its decision; a refusal ends when it is decided.
        assert!(times.is_sorted(), "{row:#}");
    }
    rows.len()
}

async fn view(world: &World, view: &str, column: &str, id: &str) -> Value {
    let mut auditor = world.connect("toolgate_auditor").await;
    let rows = texts(
        &mut auditor,
        &format!("SELECT to_jsonb(v)::text FROM audit.{view} AS v WHERE {column} = '{id}'"),
    )
    .await;
    assert_eq!(rows.len(), 1, "{view} {id}: {rows:?}");
    serde_json::from_str(&rows[0]).unwrap()
}

#[tokio::test]
async fn each_way_a_call_can_go_is_one_row_that_tells_it_all() {
    let setup = Setup::shipped().config(
        "requires: [{ role: security, approvals: 1 }]\n    expires_in_seconds: 3600",
        "requires: [{ role: security, approvals: 1 }]\n    expires_in_seconds: 1",
    );
    let world = setup.start().await;
    let run = world.run().await;
    let in_run = |request: reqwest::RequestBuilder| request.header("toolgate-run", &run);
    let common = json!({
        "run_id": run, "agent": "support-bot", "api": "desk", "surface": "transparent", "received_at": SET,
        "decided_at": SET, "contract_digest": SET, "policy_digest": SET, "arguments": SET, "arguments_digest": SET,
        "finished_at": SET,
    });

    let answer = send(world.refund(Some(&run), 1_200)).await.expect(201);
    let row = world.call_row(answer.header("toolgate-call")).await;
    expect("permit", &row, &common);
    expect(
        "permit",
        &row,
        &json!({
            "tool": "desk.refunds.create", "consequence": "money_movement", "decision": "permit", "reasons": null,
            "policies": ["support-refunds"], "permitted_by": ["support-refunds"], "intent_at": SET, "outcome_at": SET,
            "forwarded_at": SET, "status": 201, "outcome": "completed", "executed": true, "approval_id": null,
            "kill_switch_id": null,
            "arguments": {"customer": "c_1001", "amount_cents": 1_200, "currency": "EUR"},
        }),
    );

    let (call, approval) = world.parked(Some(&run), 25_000).await;
    let waiting = json!({
        "decision": "park", "reasons": ["approval_required"], "policies": ["money-needs-finance"], "intent_at": null,
        "forwarded_at": null, "finished_at": null, "status": null, "outcome": null, "executed": null,
        "approval_id": approval,
    });
    expect("parked", &world.call_row(&call).await, &waiting);
    world.decide("ada", &approval, "approve").await.expect(200);
    world.ended(&call).await;
    let row = world.call_row(&call).await;
    expect("approved", &row, &common);
    expect(
        "approved",
        &row,
        &json!({
            "decision": "park", "policies": ["money-needs-finance"], "permitted_by": ["support-refunds"],
            "intent_at": SET, "forwarded_at": SET, "status": 201, "outcome": "completed", "executed": true,
            "approval_id": approval,
        }),
    );
    let row = view(&world, "approvals", "approval_id", &approval).await;
    expect(
        "approval",
        &row,
        &json!({
            "call_id": call, "run_id": run, "agent": "support-bot", "tool": "desk.refunds.create", "digest": SET,
            "arguments": SET, "policies": ["money-needs-finance"],
            "tiers": [{"tier": "finance", "requires": [{"role": "finance", "approvals": 1}], "denials": 1}],
            "parked_at": SET, "expires_at": SET, "decided_by": ["ada"], "outcome": "completed", "executed": true,
            "ended_at": SET,
        }),
    );
    expect(
        "vote",
        &row["votes"][0],
        &json!({"operator": "ada", "vote": "approve", "reason": "test", "digest": row["digest"], "at": SET}),
    );

    let (call, approval) = world.parked(Some(&run), 26_000).await;
    world.decide("bob", &approval, "deny").await.expect(200);
    let unsent = json!({
        "decision": "park", "intent_at": null, "forwarded_at": null, "status": null, "executed": false,
        "permitted_by": null,
    });
    let row = world.call_row(&call).await;
    expect("denied by a person", &row, &common);
    expect("denied by a person", &row, &unsent);
    expect(
        "denied by a person",
        &row,
        &json!({"outcome": "denied", "reasons": ["approval_required", "approval_denied"]}),
    );
    let row = view(&world, "approvals", "approval_id", &approval).await;
    expect(
        "denied by a person",
        &row,
        &json!({"decided_by": ["bob"], "outcome": "denied", "executed": false}),
    );

    let role =
        in_run(world.agent(Method::PUT, "/desk/users/u_1/role")).json(&json!({"role": "admin"}));
    let answer = send(role).await.problem(403, "approval_required");
    let call = answer.header("toolgate-call").to_owned();
    assert_eq!(world.ended(&call).await["state"], "expired");
    let row = world.call_row(&call).await;
    expect("expired", &row, &common);
    expect("expired", &row, &unsent);
    expect(
        "expired",
        &row,
        &json!({"outcome": "expired", "reasons": ["approval_required", "approval_expired"]}),
    );

    let refused = json!({
        "decision": "deny", "outcome": "denied", "executed": false, "intent_at": null, "forwarded_at": null,
        "status": null, "approval_id": null, "finished_at": SET, "received_at": SET, "decided_at": SET,
    });
    let answer = send(world.refund(Some(&run), 250_000))
        .await
        .problem(403, "denied_by_policy");
    let row = world.call_row(answer.header("toolgate-call")).await;
    expect("denied", &row, &common);
    expect("denied", &row, &refused);
    expect(
        "denied",
        &row,
        &json!({"reasons": ["denied_by_policy"], "policies": ["money-needs-finance", "refunds-above-limit"]}),
    );

    let invalid =
        in_run(world.agent(Method::POST, "/desk/refunds")).json(&json!({"amount_cents": 5}));
    let answer = send(invalid).await.problem(422, "invalid_arguments");
    let row = world.call_row(answer.header("toolgate-call")).await;
    expect("invalid", &row, &refused);
    expect(
        "invalid",
        &row,
        &json!({
            "reasons": ["invalid_arguments"], "run_id": run, "agent": "support-bot", "tool": "desk.refunds.create",
            "contract_digest": SET, "arguments": null,
        }),
    );

    let unknown = in_run(world.agent(Method::GET, "/desk/nothing/here"));
    let answer = send(unknown).await.problem(404, "unknown_tool");
    let row = world.call_row(answer.header("toolgate-call")).await;
    expect("unknown tool", &row, &refused);
    expect(
        "unknown tool",
        &row,
        &json!({"reasons": ["unknown_tool"], "tool": null, "agent": "support-bot", "run_id": run}),
    );

    let url = format!("http://{}/desk/refunds", world.gateway.agents);
    let answer = send(world.anybody(Method::POST, &url).json(&json!({})))
        .await
        .problem(401, "unauthenticated");
    // Nobody's agent makes no call.
    assert_eq!(answer.header("toolgate-call"), "");

    let kill_switch = world
        .halt(json!({"kind": "tool", "id": "desk.refunds.create"}))
        .await;
    let answer = send(world.refund(Some(&run), 1_300))
        .await
        .problem(503, "halted");
    let row = world.call_row(answer.header("toolgate-call")).await;
    expect("halted", &row, &common);
    expect("halted", &row, &refused);
    expect(
        "halted",
        &row,
        &json!({"reasons": ["halted"], "kill_switch_id": kill_switch}),
    );
    let halt = json!({
        "kind": "tool", "target": "desk.refunds.create", "pulled_by": "ada", "reason": "test", "pulled_at": SET,
        "recorded_at": SET, "calls_stopped": 1, "released_at": null, "released_by": null, "release_reason": null,
    });
    let row = view(&world, "halts", "kill_switch_id", &kill_switch).await;
    expect("halt", &row, &halt);
    world.resume(&kill_switch).await;
    let row = view(&world, "halts", "kill_switch_id", &kill_switch).await;
    expect(
        "released",
        &row,
        &json!({"released_at": SET, "released_by": "ada", "release_reason": "test", "calls_stopped": 1}),
    );

    let everything = world.halt(json!({"kind": "everything"})).await;
    let row = view(&world, "halts", "kill_switch_id", &everything).await;
    expect(
        "everything",
        &row,
        &json!({"kind": "everything", "target": null, "calls_stopped": 0}),
    );
    world.resume(&everything).await;

    let end = world.agent(Method::POST, &format!("/v1/runs/{run}/end"));
    send(end).await.expect(200);
    let row = view(&world, "runs", "run_id", &run).await;
    expect(
        "run",
        &row,
        &json!({
            "agent": "support-bot", "triggered_by": "ticket:1", "purpose": "a test", "implicit": false, "scopes": SET,
            "opened_at": SET, "expires_at": null, "ended_at": SET, "calls": 8, "refused": 4, "parked": 3,
            "last_call_at": SET,
        }),
    );
    assert_eq!(one_row_each(&world).await, 8);
    assert_eq!(world.received("POST /refunds"), 2);

    let answer = send(world.refund(None, 100)).await.expect(201);
    let row = world.call_row(answer.header("toolgate-call")).await;
    let implicit = view(&world, "runs", "run_id", row["run_id"].as_str().unwrap()).await;
    expect(
        "implicit run",
        &implicit,
        &json!({"implicit": true, "triggered_by": "agent:support-bot", "calls": 1, "ended_at": null, "expires_at": SET}),
    );
}

/// An API that does to each customer what their id says.
async fn moody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap();
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                if head.contains("/customers/slow") {
                    tokio::time::sleep(Duration::from_secs(30)).await;
                } else if head.contains("/customers/odd") {
                    let body = r#"{"id":"odd"}"#;
                    let answer = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    url
}

#[tokio::test]
async fn each_way_an_api_can_fail_is_one_row_that_tells_it() {
    let setup = Setup::shipped()
        .variable("DESK_URL", moody().await)
        .variable("ETCD_URL", "http://127.0.0.1:1")
        .tool(
            "desk.yaml",
            "consequence: read\n",
            "consequence: read\n    limits: { timeout_ms: 400 }\n",
        );
    let mut world = setup.start().await;
    world.key(KeyKind::Agent, "platform-bot").await;
    let cases = [
        (
            "slow",
            504,
            "upstream_timeout",
            json!({"outcome": "indeterminate", "executed": null, "status": null, "forwarded_at": SET}),
        ),
        (
            "lost",
            502,
            "indeterminate",
            json!({"outcome": "indeterminate", "executed": null, "status": null, "forwarded_at": SET}),
        ),
        (
            "odd",
            502,
            "upstream_answer_invalid",
            json!({"outcome": "failed", "executed": true, "status": 200, "forwarded_at": SET}),
        ),
    ];
    for (id, status, code, expected) in cases {
        let request = world.agent(Method::GET, &format!("/desk/customers/{id}"));
        let answer = send(request).await.problem(status, code);
        let row = world.call_row(answer.header("toolgate-call")).await;
        expect(id, &row, &expected);
        expect(
            id,
            &row,
            &json!({"decision": "permit", "reasons": [code], "intent_at": SET, "finished_at": SET, "outcome_detail": SET}),
        );
    }
    let request = world
        .agent_named("platform-bot", Method::POST, "/etcd/v3/maintenance/status")
        .json(&json!({}));
    let answer = send(request).await.problem(502, "upstream_unreachable");
    let row = world.call_row(answer.header("toolgate-call")).await;
    expect(
        "unreachable",
        &row,
        &json!({
            "decision": "permit", "reasons": ["upstream_unreachable"], "outcome": "failed", "executed": false,
            "status": null, "forwarded_at": null, "finished_at": SET,
        }),
    );
    assert_eq!(one_row_each(&world).await, 4);
}

#[tokio::test]
async fn the_texts_that_decided_stand_under_the_digests_that_calls_name() {
    let world = World::shipped().await;
    let answer = send(world.refund(None, 250_000))
        .await
        .problem(403, "denied_by_policy");
    let row = world.call_row(answer.header("toolgate-call")).await;
    let contract = view(
        &world,
        "versions",
        "digest",
        row["contract_digest"].as_str().unwrap(),
    )
    .await;
    expect(
        "contract",
        &contract,
        &json!({"kind": "contract", "name": "desk.refunds.create"}),
    );
    assert!(
        contract["content"]
            .as_str()
            .unwrap()
            .contains("amount_cents")
    );
    let policies = view(
        &world,
        "versions",
        "digest",
        row["policy_digest"].as_str().unwrap(),
    )
    .await;
    expect("policies", &policies, &json!({"kind": "policies"}));
    let content = policies["content"].as_str().unwrap();
    assert!(content.contains("refunds-above-limit") && content.contains("amount_cents > 100000"));
    let world = world
        .restart(|setup| {
            let setup = setup.tool("desk.yaml", "maxLength: 500,", "maxLength: 400,");
            setup.policy(
                "desk.cedar",
                "more than 100,000 cents",
                "more than 1,000.00",
            )
        })
        .await;
    let answer = send(world.refund(None, 250_000))
        .await
        .problem(403, "denied_by_policy");
    let after = world.call_row(answer.header("toolgate-call")).await;
    for column in ["contract_digest", "policy_digest"] {
        assert_ne!(after[column], row[column], "{column}");
        for digest in [&after[column], &row[column]] {
            view(&world, "versions", "digest", digest.as_str().unwrap()).await;
        }
    }
}
