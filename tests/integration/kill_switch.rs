//! The kill switch: what it stops, from when on, that it outlives a restart, and that only those who may let it go do.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Row as _};
use toolgate::{clock, ids::RunId, keys::KeyKind};

use crate::support::{Answer, Setup, World, send};

const OTHER_BOT: &str = "  other-bot:\n    owner: grace\n    groups: [support]\n    \
    scopes: [desk.refunds:write, desk.customers:read]\n  support-bot:\n    owner: grace\n";

async fn with_two_agents() -> World {
    let mut world = Setup::shipped()
        .config("  support-bot:\n    owner: grace\n", OTHER_BOT)
        .start()
        .await;
    world.key(KeyKind::Agent, "other-bot").await;
    world
}

async fn refund(world: &World, agent: &str, run: Option<&str>) -> Answer {
    let body = json!({"customer": "c_1001", "amount_cents": 10, "currency": "EUR"});
    let mut request = world
        .agent_named(agent, Method::POST, "/desk/refunds")
        .json(&body);
    if let Some(run) = run {
        request = request.header("toolgate-run", run);
    }
    send(request).await
}

async fn customer(world: &World, agent: &str) -> Answer {
    let path = "/v1/tools/desk.customers.get/calls";
    let body = json!({"arguments": {"id": "c_1001"}});
    send(world.agent_named(agent, Method::POST, path).json(&body)).await
}

#[tokio::test]
async fn each_scope_stops_what_it_names_and_nothing_else() {
    let world = with_two_agents().await;
    let run = world.run().await;
    // Whether a refund in the run, a refund outside of it, a look-up, and another agent's refund are stopped.
    let cases = [
        (json!({"kind": "everything"}), [true, true, true, true]),
        (
            json!({"kind": "api", "id": "desk"}),
            [true, true, true, true],
        ),
        (
            json!({"kind": "api", "id": "etcd"}),
            [false, false, false, false],
        ),
        (
            json!({"kind": "tool", "id": "desk.refunds.create"}),
            [true, true, false, true],
        ),
        (
            json!({"kind": "consequence", "id": "read"}),
            [false, false, true, false],
        ),
        (
            json!({"kind": "agent", "id": "support-bot"}),
            [true, true, true, false],
        ),
        (
            json!({"kind": "run", "id": run}),
            [true, false, false, false],
        ),
    ];
    for (scope, stops) in cases {
        let halt = world.halt(scope.clone()).await;
        let before = world.desk.received()["total"].as_u64().unwrap();
        let answers = [
            refund(&world, "support-bot", Some(&run)).await,
            refund(&world, "support-bot", None).await,
            customer(&world, "support-bot").await,
            refund(&world, "other-bot", None).await,
        ];
        for (at, (answer, stopped)) in answers.into_iter().zip(stops).enumerate() {
            if stopped {
                let answer = answer.problem(503, "halted");
                assert_eq!(answer.body["kill_switch"], json!(halt), "{scope} {at}");
                assert_eq!(answer.body["executed"], false);
                assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
                let row = world.call_row(answer.header("toolgate-call")).await;
                assert_eq!(row["decision"], "deny");
                assert_eq!(row["reasons"], json!(["halted"]));
                assert_eq!(row["kill_switch_id"], json!(halt));
            } else {
                assert!(answer.status < 300, "{scope} {at} {}", answer.body);
            }
        }
        let let_through = stops.iter().filter(|stopped| !**stopped).count() as u64;
        let after = world.desk.received()["total"].as_u64().unwrap();
        assert_eq!(after - before, let_through, "{scope}");
        world.resume(&halt).await;
        refund(&world, "support-bot", Some(&run)).await.expect(201);
    }
}

#[tokio::test]
async fn a_halt_that_would_stop_nothing_is_refused() {
    let world = World::shipped().await;
    let unknown_run = RunId::generate().to_string();
    let wrong = [
        json!({"kind": "api", "id": "desks"}),
        json!({"kind": "tool", "id": "desk.refunds"}),
        json!({"kind": "tool", "id": "desk.refunds.*"}),
        json!({"kind": "agent", "id": "Support-Bot"}),
        json!({"kind": "consequence", "id": "money"}),
        json!({"kind": "run", "id": "run_1"}),
        json!({"kind": "run", "id": unknown_run}),
        json!({"kind": "tool"}),
        json!({"kind": "everything", "id": "desk"}),
        json!({"kind": "planet", "id": "earth"}),
        json!({"id": "desk"}),
        json!("everything"),
    ];
    for scope in wrong {
        let body = json!({"scope": scope, "reason": "test"});
        send(
            world
                .operator("ada", Method::POST, "/v1/kill-switches")
                .json(&body),
        )
        .await
        .problem(400, "malformed_body");
    }
    for body in [
        json!({"scope": {"kind": "everything"}}),
        json!({"scope": {"kind": "everything"}, "reason": ""}),
        json!({"scope": {"kind": "everything"}, "reason": "test", "for": 5}),
    ] {
        send(
            world
                .operator("ada", Method::POST, "/v1/kill-switches")
                .json(&body),
        )
        .await
        .problem(400, "malformed_body");
    }
    let held = send(world.operator("ada", Method::GET, "/v1/kill-switches"))
        .await
        .expect(200);
    assert_eq!(held.body["data"], json!([]));
    send(world.refund(None, 10)).await.expect(201);
}

#[tokio::test]
async fn a_halt_outlives_the_gateway_and_only_those_who_may_let_it_go() {
    let mut world = World::shipped().await;
    world.key(KeyKind::Operator, "grace").await;
    let body = json!({"scope": {"kind": "everything"}, "reason": "test"});
    send(
        world
            .operator("grace", Method::POST, "/v1/kill-switches")
            .json(&body),
    )
    .await
    .problem(403, "denied_by_policy");
    send(world.refund(None, 10)).await.expect(201);
    let halt = world.halt(json!({"kind": "api", "id": "desk"})).await;
    let mut world = world.restart(|setup| setup).await;
    send(world.refund(None, 10)).await.problem(503, "halted");
    world.key(KeyKind::Operator, "grace").await;
    let path = format!("/v1/kill-switches/{halt}");
    let release = |who: &'static str, body: Value| {
        send(world.operator(who, Method::DELETE, &path).json(&body))
    };
    release("grace", json!({"reason": "let me"}))
        .await
        .problem(403, "denied_by_policy");
    release("ada", json!({"reason": " "}))
        .await
        .problem(400, "malformed_body");
    send(world.refund(None, 10)).await.problem(503, "halted");
    for action in ["halt", "resume"] {
        let recorded = format!(
            "kind = 'operator_refused' AND operator = 'grace' AND detail ->> 'action' = '{action}'"
        );
        assert_eq!(world.entries(&recorded).await, 1, "{action}");
    }
    release("bob", json!({"reason": "it is over"}))
        .await
        .expect(200);
    release("bob", json!({"reason": "twice"}))
        .await
        .problem(404, "not_found");
    send(world.refund(None, 10)).await.expect(201);
    let halts = world
        .audit("SELECT to_jsonb(h) FROM audit.halts AS h")
        .await;
    let halt_row: Value = halts[0].get(0);
    assert_eq!(halts.len(), 1);
    assert_eq!(halt_row["kill_switch_id"], json!(halt));
    assert_eq!(halt_row["pulled_by"], "ada");
    assert_eq!(halt_row["released_by"], "bob");
    assert_eq!(halt_row["release_reason"], "it is over");
    assert_eq!(halt_row["calls_stopped"], 2);
    let world = world.restart(|setup| setup).await;
    send(world.refund(None, 10)).await.expect(201);
}

#[tokio::test]
async fn of_two_halts_the_second_holds_when_the_first_is_released() {
    let world = World::shipped().await;
    let (_, approval) = world.parked(None, 25_000).await;
    let all = world.halt(json!({"kind": "everything"})).await;
    let tool = world
        .halt(json!({"kind": "tool", "id": "desk.refunds.create"}))
        .await;
    world.resume(&all).await;
    let stopped = send(world.refund(None, 10)).await.problem(503, "halted");
    assert_eq!(stopped.body["kill_switch"], json!(tool));
    assert!(world.shown("ada", &approval).await["frozen_at"].is_string());
    customer(&world, "support-bot").await.expect(200);
    world.resume(&tool).await;
    send(world.refund(None, 10)).await.expect(201);
    assert!(world.shown("ada", &approval).await["frozen_at"].is_null());
}

#[tokio::test]
async fn while_halted_nothing_is_approved_and_no_clock_runs() {
    let world = Setup::shipped()
        .config(
            "expires_in_seconds: 3600 # one hour",
            "expires_in_seconds: 2",
        )
        .start()
        .await;
    let (call, approval) = world.parked(None, 25_000).await;
    let time = |shown: &Value| -> clock::Timestamp {
        serde_json::from_value(shown["expires_at"].clone()).unwrap()
    };
    let before = time(&world.shown("ada", &approval).await);
    let halted_at = std::time::Instant::now();
    let halt = world.halt(json!({"kind": "everything"})).await;
    world
        .decide("ada", &approval, "approve")
        .await
        .problem(503, "halted");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.shown("ada", &approval).await["state"], "pending");
    world.resume(&halt).await;
    let stood = halted_at.elapsed();
    let shown = world.shown("ada", &approval).await;
    assert_eq!(shown["state"], "pending");
    let moved = (time(&shown) - before).to_std().unwrap();
    assert!(
        moved >= Duration::from_secs(3) && moved <= stood,
        "{moved:?} of {stood:?}"
    );
    world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&call).await["state"], "completed");
    assert_eq!(world.received("POST /refunds"), 1);
    // A denial is possible while halted: it sends nothing.
    let (call, approval) = world.parked(None, 26_000).await;
    world.halt(json!({"kind": "everything"})).await;
    world.decide("ada", &approval, "deny").await.expect(200);
    assert_eq!(world.state(&call).await["state"], "denied");
}

/// A call can pass the halt's first look and be kept after the halt stands: its clock must not run either.
#[tokio::test]
async fn a_call_that_is_parked_under_a_halt_has_its_clock_stopped() {
    let world = World::shipped().await;
    let mut owner = world.connect("toolgate_owner").await;
    let halt = toolgate::ids::KillSwitchId::generate();
    // What the record holds, before this gateway's memory would have refused the call.
    let pull = format!(
        "INSERT INTO toolgate.kill_switches (kill_switch_id, kind, target, reason, operator, pulled_at)
         VALUES ('{halt}', 'agent', 'support-bot', 'test', 'ada', now())"
    );
    sqlx::query(AssertSqlSafe(pull))
        .execute(&mut owner)
        .await
        .unwrap();
    let (_, approval) = world.parked(None, 25_000).await;
    assert!(world.shown("ada", &approval).await["frozen_at"].is_string());
    let world = world.restart(|setup| setup).await;
    world.resume(halt.as_str()).await;
    assert!(world.shown("ada", &approval).await["frozen_at"].is_null());
}

/// As if the gateway had stopped between the last vote and the execution.
#[tokio::test]
async fn an_approved_call_that_meets_a_halt_waits_and_goes_once() {
    let world = World::shipped().await;
    let (call, approval) = world.parked(None, 25_000).await;
    let halt = world
        .halt(json!({"kind": "consequence", "id": "money_movement"}))
        .await;
    let mut owner = world.connect("toolgate_owner").await;
    for statement in [
        format!(
            "UPDATE toolgate.approvals SET state = 'approved', decided_at = now(), frozen_at = NULL
             WHERE approval_id = '{approval}'"
        ),
        format!("UPDATE toolgate.calls SET state = 'approved' WHERE call_id = '{call}'"),
        format!(
            r#"INSERT INTO toolgate.votes (approval_id, operator, authority, vote, tiers, seats, digest, reason)
               VALUES ('{approval}', 'bob', 'bob', 'approve', '{{finance}}',
                       '[{{"tier": "finance", "role": "finance"}}]', 'seen', 'test')"#
        ),
    ] {
        sqlx::query(AssertSqlSafe(statement))
            .execute(&mut owner)
            .await
            .unwrap();
    }
    // The worker comes by every two seconds.
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.state(&call).await["state"], "parked");
    assert_eq!(world.received("POST /refunds"), 0);
    let world = world.restart(|setup| setup).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.received("POST /refunds"), 0);
    world.resume(&halt).await;
    assert_eq!(world.ended(&call).await["state"], "completed");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_the_acknowledgement_nothing_is_sent() {
    let world = World::shipped().await;
    send(world.refund(None, 10)).await.expect(201);
    let over = AtomicBool::new(false);
    let (answered, stopped) = (AtomicU64::new(0), AtomicU64::new(0));
    let agent = || async {
        while !over.load(Ordering::Relaxed) {
            let answer = send(world.refund(None, 10)).await;
            if answer.status == 201 {
                answered.fetch_add(1, Ordering::Relaxed);
            } else {
                answer.problem(503, "halted");
                stopped.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let operator = async {
        for _ in 0..5 {
            tokio::time::sleep(Duration::from_millis(300)).await;
            let halt = world.halt(json!({"kind": "everything"})).await;
            let acknowledged = clock::now();
            // What had been sent may still be on its way to the API.
            tokio::time::sleep(Duration::from_millis(150)).await;
            let arrived = world.received("POST /refunds");
            let refused = stopped.load(Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(300)).await;
            assert_eq!(world.received("POST /refunds"), arrived);
            assert!(stopped.load(Ordering::Relaxed) > refused, "nobody tried");
            let resumed = clock::now();
            world.resume(&halt).await;
            let after = format!(
                "forwarded_at > '{}' AND forwarded_at < '{}'",
                acknowledged.to_rfc3339(),
                resumed.to_rfc3339()
            );
            assert_eq!(world.entries(&after).await, 0);
        }
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all((0..32).map(|_| agent())), operator);
    let answered = answered.load(Ordering::Relaxed);
    assert!(answered > 100, "{answered}");
    assert_eq!(world.received("POST /refunds"), answered + 1);
}
