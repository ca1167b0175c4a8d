//! What a parked call is while it waits and how it ends: its caller's answers, its time, what is shown of it and what is
//! kept, and that it is held against the rules of the moment in which it goes.

use std::{collections::BTreeSet, time::Duration};

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row as _;
use toolgate::{clock, keys::KeyKind};

use crate::support::{Setup, World, send};

/// How long a call waits for finance, in seconds.
fn finance_waits(seconds: u32) -> Setup {
    Setup::shipped().config(
        "expires_in_seconds: 3600 # one hour",
        &format!("expires_in_seconds: {seconds}"),
    )
}

#[tokio::test]
async fn a_held_caller_gets_what_became_of_the_call() {
    let world = World::shipped().await;
    let hold = |amount, seconds: u32| {
        tokio::spawn(send(
            world
                .refund(None, amount)
                .header("prefer", format!("wait={seconds}")),
        ))
    };
    let held = hold(25_000, 30);
    let approval = world.only_pending().await;
    world.decide("ada", &approval, "approve").await.expect(200);
    let answer = held.await.unwrap().expect(201);
    assert_eq!(answer.body["amount_cents"], 25_000);
    assert_eq!(answer.body["status"], "succeeded");

    let held = hold(26_000, 30);
    let approval = world.only_pending().await;
    world.decide("ada", &approval, "deny").await.expect(200);
    let answer = held.await.unwrap().problem(403, "approval_denied");
    assert_eq!(answer.body["executed"], false);
    assert_eq!(answer.body["approval"], json!(approval));

    let began = std::time::Instant::now();
    let answer = hold(27_000, 1)
        .await
        .unwrap()
        .problem(403, "approval_required");
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(answer.body["executed"], false);
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test]
async fn a_held_caller_is_told_of_expiry_and_the_same_request_waits_anew() {
    let world = finance_waits(1).start().await;
    let answer = send(world.refund(None, 25_000).header("prefer", "wait=30"))
        .await
        .problem(403, "approval_expired");
    assert_eq!(answer.body["executed"], false);
    let expired = answer.header("toolgate-call").to_owned();
    let state = world.state(&expired).await;
    assert_eq!(state["state"], "expired");
    assert_eq!(state["executed"], false);
    assert_eq!(state["code"], "approval_expired");
    let row = world.call_row(&expired).await;
    assert_eq!(row["outcome"], "expired");
    assert_eq!(row["executed"], false);
    let approval = state["approval"].as_str().unwrap();
    let late = world.decide("ada", approval, "approve").await.expect(409);
    assert_eq!(late.code(), "conflict");
    let (again, _) = world.parked(None, 25_000).await;
    assert_ne!(again, expired);
    assert_eq!(world.received("POST /refunds"), 0);
}

#[tokio::test]
async fn callers_who_do_not_wait_are_told_so_that_no_model_takes_it_for_done() {
    let world = World::shipped().await;
    let answer = send(world.refund(None, 25_000).header("prefer", "respond-async"))
        .await
        .expect(202);
    let call = answer.header("toolgate-call").to_owned();
    assert_eq!(answer.header("location"), format!("/v1/calls/{call}"));
    assert!(answer.header("retry-after").parse::<u32>().is_ok());
    assert_eq!(answer.header("preference-applied"), "respond-async");
    assert_eq!(answer.body["executed"], false);
    assert_eq!(answer.body["call"], json!(call));
    assert!(
        answer.body["detail"]
            .as_str()
            .unwrap()
            .starts_with("NOT executed")
    );
    let answer = send(world.refund(None, 25_000))
        .await
        .problem(403, "approval_required");
    assert_eq!(answer.header("toolgate-call"), call, "the same call");
    assert_eq!(answer.body["executed"], false);
    assert!(
        answer.body["detail"]
            .as_str()
            .unwrap()
            .starts_with("NOT executed")
    );
    // The tool-call route tells it in the same way.
    let body = json!({"arguments": {"id": "r_1"}});
    let path = "/v1/tools/desk.records.delete/calls";
    let answer = send(world.agent(Method::POST, path).json(&body))
        .await
        .problem(403, "approval_required");
    assert_eq!(answer.body["executed"], false);
    assert_eq!(world.received("DELETE /records/{id}"), 0);
}

#[tokio::test]
async fn an_approved_call_goes_although_the_agent_hung_up() {
    let world = World::shipped().await;
    let gone = world
        .refund(None, 25_000)
        .header("prefer", "wait=30")
        .timeout(Duration::from_millis(400))
        .send()
        .await;
    assert!(gone.is_err());
    let approval = world.only_pending().await;
    let call = world.shown("ada", &approval).await["call"].clone();
    world.decide("ada", &approval, "approve").await.expect(200);
    let ended = world.ended(call.as_str().unwrap()).await;
    assert_eq!(ended["state"], "completed");
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn at_the_moment_of_expiry_either_it_was_approved_in_time_or_it_never_runs() {
    let world = finance_waits(1).start().await;
    let one = |at: u32| {
        let world = &world;
        async move {
            let (call, approval) = world.parked(None, 20_000 + at).await;
            let shown = world.shown("ada", &approval).await;
            let expires: clock::Timestamp =
                serde_json::from_value(shown["expires_at"].clone()).unwrap();
            // Around the end, from 60 ms before it to 60 ms after it; the worker looks once a second.
            let moment = expires + chrono::TimeDelta::milliseconds(i64::from(at) * 4 - 60);
            let wait = (moment - clock::now()).to_std().unwrap_or_default();
            tokio::time::sleep(wait).await;
            let path = format!("/v1/approvals/{approval}/approve");
            let body = json!({"digest": shown["digest"], "reason": "test"});
            let answer = send(world.operator("ada", Method::POST, &path).json(&body)).await;
            (call, answer)
        }
    };
    let answers = join_all((0..30).map(one)).await;
    let mut approved = 0;
    for (call, answer) in answers {
        let state = world.ended(&call).await;
        match answer.status {
            200 => {
                approved += 1;
                assert_eq!(state["state"], "completed");
            }
            _ => {
                assert!(
                    matches!(answer.code(), "approval_expired" | "conflict"),
                    "{}",
                    answer.body
                );
                assert_eq!(state["state"], "expired");
                assert_eq!(state["executed"], false);
            }
        }
    }
    assert_eq!(world.received("POST /refunds"), approved);
    let late = "SELECT count(*) FROM toolgate.approvals WHERE state = 'approved' AND decided_at >= expires_at";
    let mut owner = world.connect("toolgate_owner").await;
    let late: i64 = sqlx::query_scalar(late)
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert_eq!(late, 0);
}

/// Parks, restarts with a change, approves; gives what became of the call.
async fn approved_after(change: impl FnOnce(Setup) -> Setup) -> (World, Value) {
    let world = World::shipped().await;
    let (call, approval) = world.parked(None, 25_000).await;
    let world = world.restart(change).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    let state = world.ended(&call).await;
    let row = world.call_row(&call).await;
    assert_eq!(row["outcome"], state["state"], "{row}");
    (world, state)
}

#[track_caller]
fn assert_voided(world: &World, state: &Value, because: &str) {
    assert_eq!(state["state"], "voided", "{state}");
    assert_eq!(state["executed"], false);
    assert_eq!(state["code"], "approval_voided");
    let detail = state["detail"].as_str().unwrap();
    assert!(detail.starts_with("NOT executed"), "{detail}");
    assert!(detail.contains(because), "{detail}");
    assert_eq!(world.received("POST /refunds"), 0);
}

#[tokio::test]
async fn a_restart_alone_changes_nothing() {
    let (world, state) = approved_after(|setup| setup).await;
    assert_eq!(state["state"], "completed");
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test]
async fn a_changed_contract_voids_the_approval() {
    let (world, state) = approved_after(|setup| {
        setup.tool(
            "desk.yaml",
            "amount_cents: { type: integer, minimum: 1,",
            "amount_cents: { type: integer, minimum: 2,",
        )
    })
    .await;
    assert_voided(&world, &state, "contract has changed");
}

#[tokio::test]
async fn a_policy_that_denies_now_voids_the_approval() {
    let (world, state) = approved_after(|setup| {
        setup.policy(
            "desk.cedar",
            "context.input.amount_cents > 100000",
            "context.input.amount_cents > 20000",
        )
    })
    .await;
    assert_voided(&world, &state, "refunds-above-limit");
}

#[tokio::test]
async fn a_further_tier_asked_for_now_voids_the_approval() {
    let rule = r#"
@id("security-too")
@description("Refunds wait for security as well.")
@approval("security")
forbid (principal is Agent, action == Action::"desk.refunds.create", resource)
unless { context.approvals.contains("security") };
"#;
    let (world, state) = approved_after(|setup| setup.policy("desk.cedar", "", rule)).await;
    assert_voided(&world, &state, "security");
}

#[tokio::test]
async fn a_scope_that_the_agent_lost_voids_the_approval() {
    let (world, state) =
        approved_after(|setup| setup.config("      - desk.refunds:write\n", "")).await;
    assert_voided(&world, &state, "scope");
}

#[tokio::test]
async fn another_master_secret_voids_the_approval_and_breaks_nothing() {
    let (world, state) = approved_after(|setup| {
        setup.variable(
            "TOOLGATE_MASTER_SECRET",
            "quite another master secret, also long enough",
        )
    })
    .await;
    assert_voided(&world, &state, "master secret");
    send(world.refund(None, 500)).await.expect(201);
}

#[tokio::test]
async fn one_agent_cannot_fill_the_queue_of_all() {
    let setup = Setup::shipped().config(
        "  support-bot:\n    owner: grace\n",
        "  other-bot:\n    owner: grace\n    groups: [support]\n    scopes: [desk.refunds:write]\n  \
         support-bot:\n    max_pending_approvals: 3\n    owner: grace\n",
    );
    let mut world = setup.start().await;
    world.key(KeyKind::Agent, "other-bot").await;
    let (_, approval) = world.parked(None, 20_000).await;
    let more = (1..10_u32).map(|more| send(world.refund(None, 20_000 + more)));
    let answers = join_all(more).await;
    let (full, parked): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 429);
    assert_eq!(parked.len(), 2, "three in all, however many come at once");
    for answer in full {
        let answer = answer.problem(429, "rate_limited");
        assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
        assert_eq!(answer.body["executed"], false);
    }
    let refused = "kind = 'refusal' AND reasons = '{rate_limited}' AND agent = 'support-bot' AND NOT coalesce(executed, false)";
    assert_eq!(world.entries(refused).await, 7, "each is told");
    // What waits already is found again, and what need not wait goes on.
    world.parked(None, 20_000).await;
    send(world.refund(None, 700)).await.expect(201);
    let body = json!({"customer": "c_1001", "amount_cents": 20_000, "currency": "EUR"});
    send(
        world
            .agent_named("other-bot", Method::POST, "/desk/refunds")
            .json(&body),
    )
    .await
    .problem(403, "approval_required");
    world.decide("ada", &approval, "deny").await.expect(200);
    world.parked(None, 29_000).await;
}

#[tokio::test]
async fn a_hundred_and_twenty_parked_calls_are_listed_whole_and_once() {
    let setup = Setup::shipped().config(
        "  support-bot:\n    owner: grace\n",
        "  other-bot:\n    owner: grace\n    groups: [support]\n    scopes: [desk.refunds:write]\n  \
         support-bot:\n    max_pending_approvals: 500\n    owner: grace\n",
    );
    let mut world = setup.start().await;
    world.key(KeyKind::Agent, "other-bot").await;
    let run = world.run().await;
    let mut all = BTreeSet::new();
    for at in 0..116_u32 {
        let run = (at % 4 == 0).then_some(&*run);
        all.insert(world.parked(run, 10_000 + at).await.1);
    }
    for at in 0..4_u32 {
        let path = format!("/desk/records/r{at}");
        let answer = send(world.agent(Method::DELETE, &path))
            .await
            .problem(403, "approval_required");
        all.insert(answer.body["approval"].as_str().unwrap().to_owned());
    }
    let body = json!({"customer": "c_1001", "amount_cents": 20_000, "currency": "EUR"});
    let other = world.agent_named("other-bot", Method::POST, "/desk/refunds");
    let other = send(other.json(&body)).await.expect(403);
    all.insert(other.body["approval"].as_str().unwrap().to_owned());

    for (filter, count) in [
        ("state=pending", 121),
        ("", 121),
        ("state=denied", 0),
        ("agent=other-bot", 1),
        ("agent=nobody", 0),
        (&*format!("run={run}"), 29),
        ("tool=desk.records.delete", 4),
        ("tier=data", 4),
        ("tier=finance", 117),
        ("tier=finance&agent=other-bot&state=pending", 1),
    ] {
        for limit in [7, 50, 200] {
            let mut found = Vec::new();
            let mut cursor = String::new();
            loop {
                let path = format!("/v1/approvals?{filter}&limit={limit}{cursor}");
                let page = send(world.operator("ada", Method::GET, &path))
                    .await
                    .expect(200);
                let data = page.body["data"].as_array().unwrap();
                assert!(data.len() <= limit);
                found.extend(
                    data.iter()
                        .map(|row| row["approval"].as_str().unwrap().to_owned()),
                );
                if page.body["has_more"] == json!(false) {
                    break;
                }
                assert_eq!(data.len(), limit);
                cursor = format!("&cursor={}", page.body["cursor"].as_str().unwrap());
            }
            assert_eq!(found.len(), count, "{filter} by {limit}");
            let distinct: BTreeSet<_> = found.into_iter().collect();
            assert_eq!(distinct.len(), count, "{filter} by {limit}");
            assert!(distinct.is_subset(&all));
        }
    }
    for wrong in ["state=open", "limit=many", "colour=blue"] {
        let path = format!("/v1/approvals?{wrong}");
        send(world.operator("ada", Method::GET, &path))
            .await
            .problem(400, "malformed_body");
    }
}

#[tokio::test]
async fn approvers_see_the_real_thing_and_seeing_is_recorded() {
    let world = World::shipped().await;
    let note = "nothing \u{202e}hidden\u{200b} ".repeat(20);
    let body =
        json!({"customer": "c_1001", "amount_cents": 25_000, "currency": "EUR", "note": note});
    let answer = send(world.agent(Method::POST, "/desk/refunds").json(&body))
        .await
        .problem(403, "approval_required");
    let (approval, call) = (
        answer.body["approval"].as_str().unwrap().to_owned(),
        answer.header("toolgate-call").to_owned(),
    );
    let shown = world.shown("bob", &approval).await;
    assert_eq!(shown["arguments"], body, "whole, and as they will be sent");
    let text = shown["policy_texts"]["money-needs-finance"]
        .as_str()
        .unwrap();
    assert!(text.contains("@approval(\"finance\")"), "{text}");
    assert!(
        text.contains("context.input.amount_cents <= 5000"),
        "{text}"
    );
    world.shown("bob", &approval).await;
    let seen =
        format!("kind = 'approval_viewed' AND operator = 'bob' AND approval_id = '{approval}'");
    assert_eq!(world.entries(&seen).await, 2);
    world.approvals("pending").await;
    let seen = format!(
        "kind = 'approval_viewed' AND operator = 'ada' AND detail -> 'approvals' ? '{approval}'"
    );
    assert_eq!(world.entries(&seen).await, 1);

    // What waits lies sealed, and goes with the end.
    let mut owner = world.connect("toolgate_owner").await;
    let rows = "SELECT sealed, calls::text AS whole FROM toolgate.calls WHERE call_id = $1";
    let row = sqlx::query(rows)
        .bind(&call)
        .fetch_one(&mut owner)
        .await
        .unwrap();
    let sealed: Vec<u8> = row.get("sealed");
    assert!(!String::from_utf8_lossy(&sealed).contains("hidden"));
    assert!(!row.get::<String, _>("whole").contains("hidden"));
    let told = "SELECT count(*) FROM audit.entries AS e WHERE e::text LIKE '%hidden%'";
    let told: i64 = sqlx::query_scalar(told)
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert_eq!(told, 0, "a confidential argument stands in the records");
    world.decide("bob", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&call).await["state"], "completed");
    let row = sqlx::query(rows)
        .bind(&call)
        .fetch_one(&mut owner)
        .await
        .unwrap();
    assert!(row.get::<Option<Vec<u8>>, _>("sealed").is_none());
    assert_eq!(
        world.shown("bob", &approval).await["arguments"],
        Value::Null
    );
}

#[tokio::test]
async fn what_is_sealed_goes_with_a_denial_and_with_expiry_too() {
    let world = finance_waits(1).start().await;
    let (expired, _) = world.parked(None, 25_000).await;
    world.ended(&expired).await;
    let (denied, approval) = world.parked(None, 26_000).await;
    world.decide("ada", &approval, "deny").await.expect(200);
    let mut owner = world.connect("toolgate_owner").await;
    for (call, state) in [(expired, "expired"), (denied, "denied")] {
        let row = sqlx::query("SELECT state, sealed FROM toolgate.calls WHERE call_id = $1")
            .bind(&call)
            .fetch_one(&mut owner)
            .await
            .unwrap();
        assert_eq!(row.get::<String, _>("state"), state);
        assert!(row.get::<Option<Vec<u8>>, _>("sealed").is_none());
    }
}
