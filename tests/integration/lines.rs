//! Identical calls that wait are one line for approvers: they decide on as many as they were shown, each goes at most once, and
//! what comes after they looked is not among them.

use std::time::Duration;

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row as _;

use crate::support::{Answer, Setup, World, send};

pub const FINANCE: &str =
    "requires: [{ role: finance, approvals: 1 }]\n    expires_in_seconds: 3600 # one hour";

/// A refund under an idempotency key of its own.
pub async fn keyed(world: &World, run: Option<&str>, amount: u32, key: &str) -> Answer {
    send(world.refund(run, amount).header("idempotency-key", key)).await
}

/// Parks one; gives the call and the approval.
async fn parked(world: &World, run: Option<&str>, amount: u32, key: &str) -> (String, String) {
    let answer = keyed(world, run, amount, key)
        .await
        .problem(403, "approval_required");
    let text = |name: &str| answer.body[name].as_str().unwrap().to_owned();
    (text("call"), text("approval"))
}

pub async fn pending(world: &World) -> Vec<Value> {
    send(world.operator("ada", Method::GET, "/v1/approvals?state=pending"))
        .await
        .expect(200)
        .body["data"]
        .as_array()
        .unwrap()
        .clone()
}

/// Decides with the right digest and whatever else is given.
pub async fn decide(world: &World, who: &str, approval: &str, verb: &str, more: Value) -> Answer {
    let mut body = more;
    body["digest"] = world.shown("ada", approval).await["digest"].clone();
    body["reason"] = json!("test");
    let path = format!("/v1/approvals/{approval}/{verb}");
    send(world.operator(who, Method::POST, &path).json(&body)).await
}

#[tokio::test]
async fn what_is_attached_takes_no_place_of_a_page() {
    let world = World::shipped().await;
    let mut heads = Vec::new();
    for amount in [25_000, 25_001, 25_002] {
        let mut approvals = Vec::new();
        for key in 0..4 {
            let parked = parked(&world, None, amount, &format!("{amount}-{key}")).await;
            approvals.push(parked.1);
        }
        heads.push(json!(approvals[0]));
    }
    for narrowed in ["", "&tier=finance", "&agent=support-bot&tier=finance"] {
        let path = format!("/v1/approvals?state=pending&limit=3{narrowed}");
        let page = send(world.operator("ada", Method::GET, &path))
            .await
            .expect(200);
        let data = page.body["data"].as_array().unwrap();
        let listed: Vec<&Value> = data.iter().map(|row| &row["approval"]).collect();
        assert_eq!(listed, heads.iter().collect::<Vec<_>>(), "{narrowed}");
        assert_eq!(page.body["has_more"], false, "{narrowed}");
    }
    // Page by page each comes once, though a page may lead on to an empty one.
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("/v1/approvals?state=pending&limit=1{cursor}");
        let page = send(world.operator("ada", Method::GET, &path))
            .await
            .expect(200);
        let data = page.body["data"].as_array().unwrap();
        listed.extend(data.iter().map(|row| row["approval"].clone()));
        let Some(next) = page.body["cursor"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(listed, heads);
}

#[tokio::test]
async fn identical_calls_are_one_line_and_are_approved_as_many_as_were_shown() {
    let world = World::shipped().await;
    let run = world.run().await;
    let (first, head) = parked(&world, Some(&run), 25_000, "k1").await;
    let (second, attached) = parked(&world, Some(&run), 25_000, "k2").await;
    assert_ne!(first, second, "two calls");
    assert_ne!(head, attached, "each with an approval of its own");
    // The same request again is no third one.
    assert_eq!(parked(&world, Some(&run), 25_000, "k2").await.0, second);

    let listed = pending(&world).await;
    assert_eq!(listed.len(), 1, "one line");
    assert_eq!(listed[0]["approval"], json!(head));
    assert_eq!(listed[0]["calls"], 2);
    let shown = world.shown("ada", &head).await;
    assert_eq!(
        shown["attached"],
        json!([{"approval": attached, "call": second}])
    );
    let shown = world.shown("ada", &attached).await;
    assert_eq!(shown["attached_to"], json!(head));

    // Not without saying how many, nor on another number, nor on what is attached.
    for wrong in [json!({}), json!({"calls": 1}), json!({"calls": 3})] {
        decide(&world, "ada", &head, "approve", wrong)
            .await
            .problem(409, "stale_digest");
    }
    let refused = decide(&world, "ada", &attached, "approve", json!({"calls": 2}))
        .await
        .problem(409, "conflict");
    assert!(refused.body["detail"].as_str().unwrap().contains(&head));
    assert_eq!(world.received("POST /refunds"), 0);

    let decided = decide(&world, "ada", &head, "approve", json!({"calls": 2}))
        .await
        .expect(200);
    assert_eq!(decided.body["calls"], 2);
    for call in [&first, &second] {
        assert_eq!(world.ended(call).await["state"], "completed");
        let row = world.call_row(call).await;
        assert_eq!(row["votes"].as_array().unwrap().len(), 1, "{row}");
        assert_eq!(row["votes"][0]["operator"], "ada");
    }
    assert_eq!(world.received("POST /refunds"), 2);
    assert_eq!(world.call_row(&first).await["approval_id"], json!(head));
    assert_eq!(
        world.call_row(&second).await["approval_id"],
        json!(attached)
    );
    decide(&world, "bob", &head, "approve", json!({"calls": 2}))
        .await
        .problem(409, "conflict");

    // People were told once that something waits, and once that it was approved.
    let mut owner = world.connect("toolgate_owner").await;
    let told = sqlx::query("SELECT type, subject, data FROM toolgate.outbox ORDER BY seq")
        .fetch_all(&mut owner)
        .await
        .unwrap();
    let of = |kind: &str| -> Vec<Value> {
        told.iter()
            .filter(|row| row.get::<String, _>("type") == kind)
            .map(|row| row.get::<Value, _>("data"))
            .collect()
    };
    assert_eq!(of("approval.created").len(), 1);
    let approved = of("approval.approved");
    assert_eq!(approved.len(), 1);
    assert_eq!(approved[0]["calls"], 2);
    assert_eq!(approved[0]["decided_by"], json!(["ada"]));
    let completed = of("call.completed");
    assert_eq!(completed.len(), 2);
    assert!(
        completed
            .iter()
            .any(|data| data["attached_to"] == json!(head))
    );
}

#[tokio::test]
async fn what_comes_after_the_look_is_not_approved_and_a_denial_is_of_all() {
    let world = World::shipped().await;
    let (first, head) = parked(&world, None, 25_000, "k1").await;
    let (second, _) = parked(&world, None, 25_000, "k2").await;
    let seen = world.shown("ada", &head).await["calls"].clone();
    let (third, _) = parked(&world, None, 25_000, "k3").await;
    decide(&world, "ada", &head, "approve", json!({"calls": seen}))
        .await
        .problem(409, "stale_digest");
    decide(&world, "ada", &head, "deny", json!({"calls": seen}))
        .await
        .problem(409, "stale_digest");
    for call in [&first, &second, &third] {
        assert_eq!(world.state(call).await["state"], "parked");
    }
    let denied = decide(&world, "ada", &head, "deny", json!({}))
        .await
        .expect(200);
    assert_eq!(denied.body["calls"], 3);
    for call in [&first, &second, &third] {
        assert_eq!(world.state(call).await["state"], "denied");
    }
    assert_eq!(world.received("POST /refunds"), 0);
}

#[tokio::test]
async fn a_line_on_which_somebody_has_voted_does_not_grow() {
    let setup = Setup::shipped().config(
        FINANCE,
        "requires: [{ role: finance, approvals: 2 }]\n    expires_in_seconds: 3600",
    );
    let world = setup.start().await;
    let (first, head) = parked(&world, None, 25_000, "k1").await;
    let (second, _) = parked(&world, None, 25_000, "k2").await;
    let counted = decide(&world, "ada", &head, "approve", json!({"calls": 2}))
        .await
        .expect(200);
    assert_eq!(counted.body["state"], "pending");
    let (third, other) = parked(&world, None, 25_000, "k3").await;
    let (fourth, _) = parked(&world, None, 25_000, "k4").await;
    let listed = pending(&world).await;
    assert_eq!(listed.len(), 2, "{listed:?}");
    assert_eq!(listed[1]["approval"], json!(other));
    assert_eq!(listed[1]["calls"], 2);
    decide(&world, "bob", &head, "approve", json!({"calls": 2}))
        .await
        .expect(200);
    for call in [&first, &second] {
        assert_eq!(world.ended(call).await["state"], "completed");
    }
    for call in [&third, &fourth] {
        assert_eq!(world.state(call).await["state"], "parked");
    }
    assert_eq!(world.received("POST /refunds"), 2);
}

#[tokio::test]
async fn calls_that_an_approver_could_tell_apart_are_lines_of_their_own() {
    let world = World::shipped().await;
    let (one, other) = (world.run().await, world.run().await);
    let said = |key: &'static str, words: &str| {
        let body = json!({"arguments": {"customer": "c_1001", "amount_cents": 25_000, "currency": "EUR"},
                          "reason": words});
        send(
            world
                .agent(Method::POST, "/v1/tools/desk.refunds.create/calls")
                .header("toolgate-run", &*one)
                .header("idempotency-key", key)
                .json(&body),
        )
    };
    parked(&world, Some(&one), 25_000, "k1").await;
    parked(&world, Some(&other), 25_000, "k2").await;
    parked(&world, Some(&one), 26_000, "k3").await;
    said("k4", "the customer asked")
        .await
        .problem(403, "approval_required");
    said("k5", "quite another story")
        .await
        .problem(403, "approval_required");
    let listed = pending(&world).await;
    assert_eq!(listed.len(), 5);
    assert!(listed.iter().all(|line| line["calls"] == 1), "{listed:?}");
    said("k6", "the customer asked")
        .await
        .problem(403, "approval_required");
    let calls: Vec<u64> = pending(&world)
        .await
        .iter()
        .map(|line| line["calls"].as_u64().unwrap())
        .collect();
    assert_eq!(calls, [1, 1, 1, 2, 1]);
}

#[tokio::test]
async fn a_line_expires_as_one_and_stands_still_as_one() {
    let setup = Setup::shipped().config(
        "expires_in_seconds: 3600 # one hour",
        "expires_in_seconds: 2",
    );
    let world = setup.start().await;
    let (first, head) = parked(&world, None, 25_000, "k1").await;
    let halt = world
        .halt(json!({"kind": "tool", "id": "desk.refunds.create"}))
        .await;
    let expiry = async |approval: &str| {
        let shown = world.shown("ada", approval).await;
        (shown["expires_at"].clone(), shown["frozen_at"].clone())
    };
    assert_ne!(expiry(&head).await.1, Value::Null);
    world.resume(&halt).await;
    let (second, attached) = parked(&world, None, 25_000, "k2").await;
    assert_eq!(expiry(&head).await, expiry(&attached).await);
    for call in [&first, &second] {
        assert_eq!(world.ended(call).await["state"], "expired");
    }
    // What comes then waits by itself.
    let (_, late) = parked(&world, None, 25_000, "k3").await;
    assert_eq!(world.shown("ada", &late).await["calls"], 1);
    assert_eq!(world.received("POST /refunds"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn while_more_come_exactly_as_many_go_as_were_approved() {
    let world = World::shipped().await;
    let (_, head) = parked(&world, None, 25_000, "k0").await;
    let calls = (1..40).map(|at| {
        let world = &world;
        async move {
            tokio::time::sleep(Duration::from_millis(at * 5)).await;
            parked(world, None, 25_000, &format!("k{at}")).await.0
        }
    });
    let approving = async {
        for _ in 0..500 {
            let seen = world.shown("bob", &head).await["calls"].clone();
            let answer = decide(&world, "bob", &head, "approve", json!({"calls": seen})).await;
            if answer.status == 200 {
                return answer.body["calls"].as_u64().unwrap();
            }
            answer.problem(409, "stale_digest");
        }
        panic!("never approved");
    };
    let (mut calls, approved) = futures::future::join(join_all(calls), approving).await;
    let shown = world.shown("ada", &head).await;
    assert_eq!(shown["calls"].as_u64(), Some(approved));
    calls.push(shown["call"].as_str().unwrap().to_owned());
    let mut executed = 0;
    for call in &calls {
        let state = world.state(call).await;
        if state["state"] == "executing" || state["approval"].is_null() {
            assert_eq!(world.ended(call).await["state"], "completed");
        }
        let row = world.shown("ada", &approval_of(&world, call).await).await;
        let in_line = row["approval"] == json!(head) || row["attached_to"] == json!(head);
        if in_line {
            executed += 1;
            assert_eq!(world.ended(call).await["state"], "completed");
        } else {
            assert_eq!(world.state(call).await["state"], "parked");
        }
    }
    assert_eq!(executed, approved);
    assert_eq!(world.received("POST /refunds"), approved);
}

async fn approval_of(world: &World, call: &str) -> String {
    let row = world.call_row(call).await;
    row["approval_id"].as_str().unwrap().to_owned()
}
