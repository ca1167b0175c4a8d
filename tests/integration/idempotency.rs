//! The same request again: one execution, one answer, whether it comes with a key, at the same time, or later.

use std::collections::BTreeSet;

use futures::future::join_all;
use reqwest::Method;
use serde_json::json;
use toolgate::keys::KeyKind;

use crate::support::{Setup, World, send};

#[tokio::test]
async fn the_same_key_gets_the_same_answer_and_executes_once() {
    let world = World::shipped().await;
    let keyed =
        |amount, key: &'static str| send(world.refund(None, amount).header("idempotency-key", key));
    let first = keyed(700, "k1").await.expect(201);
    let second = keyed(700, "k1").await.expect(201);
    assert_eq!(first.bytes, second.bytes);
    assert_eq!(
        first.header("toolgate-call"),
        second.header("toolgate-call")
    );
    assert_eq!(first.header("content-type"), second.header("content-type"));
    assert_eq!(world.received("POST /refunds"), 1);
    let other = keyed(701, "k1")
        .await
        .problem(422, "idempotency_key_reused");
    assert_eq!(other.body["executed"], false);
    keyed(700, "k2").await.expect(201);
    assert_eq!(world.received("POST /refunds"), 2);
    // A refusal by the API is an answer as well.
    let customer = || {
        send(
            world
                .agent(Method::GET, "/desk/customers/nobody")
                .header("idempotency-key", "k3"),
        )
    };
    let first = customer().await.expect(404);
    let second = customer().await.expect(404);
    assert_eq!(first.bytes, second.bytes);
    assert_eq!(world.received("GET /customers/{id}"), 1);
    for key in ["", "x".repeat(300).as_str()] {
        send(world.refund(None, 700).header("idempotency-key", key))
            .await
            .problem(400, "malformed_body");
    }
    assert_eq!(world.received("POST /refunds"), 2);
}

#[tokio::test]
async fn the_answer_survives_a_restart() {
    let world = World::shipped().await;
    let run = world.run().await;
    let request = |world: &World| {
        send(
            world
                .refund(Some(&run), 700)
                .header("idempotency-key", "k1"),
        )
    };
    let first = request(&world).await.expect(201);
    let world = world.restart(|setup| setup).await;
    let second = request(&world).await.expect(201);
    assert_eq!(first.bytes, second.bytes);
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_at_once_with_one_key_execute_once() {
    let world = World::shipped().await;
    send(world.refund(None, 1)).await.expect(201);
    for round in 0..4_u32 {
        let key = format!("key-{round}");
        let requests = (0..50).map(|_| {
            send(
                world
                    .refund(None, 800 + round)
                    .header("idempotency-key", &key),
            )
        });
        let answers = join_all(requests).await;
        let mut calls = BTreeSet::new();
        let mut done = 0;
        for answer in answers {
            calls.insert(answer.header("toolgate-call").to_owned());
            if answer.status == 201 {
                done += 1;
            } else {
                let answer = answer.problem(409, "conflict");
                assert_eq!(answer.body["executed"], json!(null), "nobody knows yet");
                assert!(answer.header("retry-after").parse::<u32>().is_ok());
            }
        }
        assert!(done >= 1);
        assert_eq!(calls.len(), 1, "all are told of the one call: {calls:?}");
        assert_eq!(world.received("POST /refunds"), u64::from(round) + 2);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn one_key_for_different_requests_at_once_executes_one_of_them() {
    let world = World::shipped().await;
    let requests =
        (0..20).map(|at| send(world.refund(None, 100 + at).header("idempotency-key", "k")));
    let answers = join_all(requests).await;
    let done = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(done, 1);
    for answer in answers {
        if answer.status != 201 {
            answer.problem(422, "idempotency_key_reused");
        }
    }
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test]
async fn two_agents_may_use_the_same_key() {
    let mut world = Setup::shipped()
        .config(
            "  support-bot:\n    owner: grace\n",
            "  other-bot:\n    owner: grace\n    groups: [support]\n    scopes: [desk.refunds:write]\n  \
             support-bot:\n    owner: grace\n",
        )
        .start()
        .await;
    world.key(KeyKind::Agent, "other-bot").await;
    let body = json!({"customer": "c_1001", "amount_cents": 900, "currency": "EUR"});
    let request = |agent: &'static str| {
        send(
            world
                .agent_named(agent, Method::POST, "/desk/refunds")
                .header("idempotency-key", "same")
                .json(&body),
        )
    };
    let first = request("support-bot").await.expect(201);
    let second = request("other-bot").await.expect(201);
    assert_ne!(
        first.header("toolgate-call"),
        second.header("toolgate-call")
    );
    assert_eq!(world.received("POST /refunds"), 2);
    // Nor does one see the other's call.
    let path = format!("/v1/calls/{}", first.header("toolgate-call"));
    send(world.agent_named("other-bot", Method::GET, &path))
        .await
        .problem(404, "not_found");
}

#[tokio::test]
async fn a_parked_call_is_found_again_by_its_key() {
    let world = World::shipped().await;
    let keyed =
        |amount, key: &'static str| world.refund(None, amount).header("idempotency-key", key);
    let parked = send(keyed(25_000, "k1"))
        .await
        .problem(403, "approval_required");
    let again = send(keyed(25_000, "k1"))
        .await
        .problem(403, "approval_required");
    assert_eq!(parked.body["call"], again.body["call"]);
    assert_eq!(parked.body["approval"], again.body["approval"]);
    send(keyed(25_001, "k1"))
        .await
        .problem(422, "idempotency_key_reused");
    let other = send(keyed(25_000, "k2"))
        .await
        .problem(403, "approval_required");
    assert_ne!(
        parked.body["call"], other.body["call"],
        "another key is another call"
    );
    let held = tokio::spawn(send(keyed(25_000, "k1").header("prefer", "wait=30")));
    let approval = parked.body["approval"].as_str().unwrap();
    // The two are identical and wait in one line, so whoever approves says that it is two calls.
    let digest = world.shown("ada", approval).await["digest"].clone();
    let both = json!({"digest": digest, "reason": "test", "calls": 2});
    let path = format!("/v1/approvals/{approval}/approve");
    send(world.operator("ada", Method::POST, &path).json(&both))
        .await
        .expect(200);
    let held = held.await.unwrap().expect(201);
    for call in [&parked.body["call"], &other.body["call"]] {
        let state = world.ended(call.as_str().unwrap()).await;
        assert_eq!(state["state"], "completed");
    }
    let kept = send(keyed(25_000, "k1")).await.expect(201);
    assert_eq!(kept.bytes, held.bytes);
    assert_eq!(world.received("POST /refunds"), 2, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_key_the_same_parked_request_is_one_call_in_its_run() {
    let world = World::shipped().await;
    let (run, other) = (world.run().await, world.run().await);
    let requests = (0..30).map(|_| world.parked(Some(&run), 25_000));
    let calls: BTreeSet<_> = join_all(requests).await.into_iter().collect();
    assert_eq!(calls.len(), 1, "{calls:?}");
    let (call, approval) = calls.into_iter().next().unwrap();
    let (elsewhere, _) = world.parked(Some(&other), 25_000).await;
    assert_ne!(elsewhere, call, "another run is another call");
    world.decide("ada", &approval, "deny").await.expect(200);
    let denied = send(world.refund(Some(&run), 25_000))
        .await
        .problem(403, "approval_denied");
    assert_eq!(denied.body["call"], json!(call));
    assert_eq!(denied.body["executed"], false);
    assert_eq!(world.approvals("pending").await.len(), 1);
    assert_eq!(world.state(&elsewhere).await["state"], "parked");
    assert_eq!(world.received("POST /refunds"), 0);
}

/// Nothing was sent, so the key has done no work: trying again must be able to.
#[tokio::test]
async fn a_key_is_not_used_up_by_a_call_that_certainly_was_not_sent() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap();
    drop(closed);
    let world = Setup::shipped()
        .variable("DESK_URL", format!("http://{address}"))
        .start()
        .await;
    let run = world.run().await;
    let keyed = |world: &World| {
        send(
            world
                .refund(Some(&run), 700)
                .header("idempotency-key", "k1"),
        )
    };
    let failed = keyed(&world).await.problem(502, "upstream_unreachable");
    assert_eq!(failed.body["executed"], false);
    let (call, approval) = world.parked(Some(&run), 25_000).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    let ended = world.ended(&call).await;
    assert_eq!(ended["state"], "failed");
    assert_eq!(ended["executed"], false);
    let world = world
        .restart(|mut setup| {
            setup.variables.clear();
            setup
        })
        .await;
    keyed(&world).await.expect(201);
    keyed(&world).await.expect(201);
    assert_eq!(world.received("POST /refunds"), 1);
    // The approval was for a call that is over: the next one waits for its own.
    let (next, _) = world.parked(Some(&run), 25_000).await;
    assert_ne!(next, call);
    let gone = failed.header("toolgate-call");
    assert_eq!(world.state(gone).await["state"], "failed");
}

#[tokio::test]
async fn a_stored_answer_says_so_and_keys_are_each_agents_own() {
    let mut world = World::shipped().await;
    world.key(KeyKind::Agent, "platform-bot").await;
    let keyed = || send(world.refund(None, 700).header("idempotency-key", "k1"));
    let first = keyed().await.expect(201);
    assert_eq!(first.header("idempotency-replayed"), "");
    let second = keyed().await.expect(201);
    assert_eq!(second.header("idempotency-replayed"), "true");
    assert_eq!(first.bytes, second.bytes);
    let parked = || {
        send(
            world
                .refund(None, 20_000)
                .header("idempotency-key", "parked"),
        )
    };
    let first = parked().await.problem(403, "approval_required");
    assert_eq!(first.header("idempotency-replayed"), "");
    let second = parked().await.problem(403, "approval_required");
    assert_eq!(second.header("idempotency-replayed"), "true");
    // Another agent's key of the same name is another key.
    let other = world
        .agent_named("platform-bot", Method::POST, "/desk/refunds")
        .header("idempotency-key", "k1")
        .json(&json!({"customer": "c_1001", "amount_cents": 700, "currency": "EUR"}));
    let other = send(other).await.problem(403, "scope_missing");
    assert_eq!(other.header("idempotency-replayed"), "");
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test]
async fn keys_and_answers_are_erased_after_their_time() {
    let api = crate::faults::Faulty::start(&[crate::faults::Fault::None]).await;
    let world = crate::faults::setup(api.address)
        .config(
            "agents:\n  support-bot",
            "limits: { answer_retention_seconds: 3 }\nagents:\n  support-bot",
        )
        .start()
        .await;
    let run = world.run().await;
    let keyed = |world: &World, key: &'static str| {
        send(world.refund(Some(&run), 700).header("idempotency-key", key))
    };
    let first = keyed(&world, "k1").await.expect(201);
    let call = first.header("toolgate-call");
    api.set(&[crate::faults::Fault::Close]);
    let lost = keyed(&world, "lost").await.problem(502, "indeterminate");
    api.set(&[crate::faults::Fault::None]);
    // Not yet: the worker's turn at a start finds nothing to erase.
    let world = world.restart(|setup| setup).await;
    assert_eq!(
        keyed(&world, "k1")
            .await
            .expect(201)
            .header("toolgate-call"),
        call
    );
    tokio::time::sleep(std::time::Duration::from_millis(3_100)).await;
    let world = world.restart(|setup| setup).await;
    for _ in 0..200 {
        if world.state(call).await["state"] == "completed"
            && world.state(call).await["result"].is_null()
        {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let state = world.state(call).await;
    assert_eq!(state["result"], serde_json::Value::Null, "{state}");
    assert_eq!(state["executed"], true);
    let mut gateway = world.connect("toolgate_gateway").await;
    let left: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM toolgate.calls WHERE answer IS NOT NULL OR idempotency_key = 'k1'",
    )
    .fetch_one(&mut gateway)
    .await
    .unwrap();
    assert_eq!(left, 0);
    // The key is free again; one of which nobody knows the end is not.
    let again = keyed(&world, "k1").await.expect(201);
    assert_ne!(again.header("toolgate-call"), call);
    let same = keyed(&world, "lost").await.problem(502, "indeterminate");
    assert_eq!(same.header("toolgate-call"), lost.header("toolgate-call"));
    assert_eq!(api.requests(), 3);
}
