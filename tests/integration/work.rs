//! The work list: calls of which nobody knows the end, and calls that people do by hand, each once and never by the gateway too.

use std::{sync::Arc, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use toolgate::keys::KeyKind;

use crate::{
    faults::{self, Fault, Faulty},
    support::{Answer, Setup, World, send},
};

pub async fn act(world: &World, who: &str, call: &str, verb: &str, body: Value) -> Answer {
    let path = format!("/v1/work/{call}/{verb}");
    send(world.operator(who, Method::POST, &path).json(&body)).await
}

pub async fn waiting(world: &World, query: &str) -> Vec<Value> {
    let path = format!("/v1/work?{query}");
    let listed = send(world.operator("ada", Method::GET, &path))
        .await
        .expect(200);
    listed.body["data"].as_array().unwrap().clone()
}

fn refund(amount_cents: u32) -> Value {
    json!({"refund": "rf_hand", "customer": "c_1001", "amount_cents": amount_cents, "currency": "EUR", "status": "succeeded"})
}

pub fn executed(amount_cents: u32) -> Value {
    json!({"found": "executed", "status": 201, "result": refund(amount_cents),
           "evidence": "https://desk.example/refunds/rf_hand", "note": "done in the back office"})
}

fn not_executed() -> Value {
    json!({"found": "not_executed", "evidence": "the desk's list of refunds", "note": "it is not there"})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_lost_call_is_an_item_that_one_operator_resolves_once() {
    let api = Faulty::start(&[Fault::Close]).await;
    let world = faults::setup(api.address).start().await;
    let run = world.run().await;
    let keyed = || send(world.refund(Some(&run), 5).header("idempotency-key", "k"));
    // One that is kept for its key, one that is not kept, one that was parked.
    let with_key = keyed().await.problem(502, "indeterminate");
    let plain = send(world.refund(Some(&run), 6))
        .await
        .problem(502, "indeterminate");
    let (parked, approval) = world.parked(Some(&run), 20_000).await;
    world.decide("bob", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&parked).await["state"], "indeterminate");
    let [with_key, plain] = [&with_key, &plain].map(|answer| answer.header("toolgate-call"));
    let items = waiting(&world, "kind=reconcile").await;
    let calls: Vec<&str> = items
        .iter()
        .map(|item| item["work"].as_str().unwrap())
        .collect();
    assert_eq!(calls, [with_key, plain, parked.as_str()]);
    assert_eq!(items[1]["recorded_arguments"]["amount_cents"], 6);
    assert_eq!(items[1]["triggered_by"], "ticket:1");
    assert!(items[1]["outcome_detail"]["why"].is_string());
    let first = "/v1/work?kind=reconcile&limit=1&format=json";
    let first = send(world.operator("ada", Method::GET, first))
        .await
        .expect(200);
    assert_eq!(first.body["data"][0]["work"], with_key);
    let cursor = first.body["cursor"].as_str().unwrap();
    let page = waiting(&world, &format!("kind=reconcile&limit=1&cursor={cursor}")).await;
    assert_eq!(page[0]["work"], plain);

    // Two at once: one wins.
    let both = futures::future::join(
        act(&world, "ada", with_key, "resolve", executed(5)),
        act(&world, "bob", with_key, "resolve", not_executed()),
    )
    .await;
    let mut statuses = [both.0.status, both.1.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    let again = act(&world, "ada", with_key, "resolve", executed(5)).await;
    again.problem(409, "conflict");

    // Not executed: the agent is told so, and the same request is never sent again.
    act(&world, "ada", &parked, "resolve", not_executed())
        .await
        .expect(200);
    let state = world.state(&parked).await;
    assert_eq!(state["state"], "failed");
    assert_eq!(state["executed"], false);
    assert_eq!(state["code"], "not_executed");
    let same = send(world.refund(Some(&run), 20_000))
        .await
        .problem(409, "not_executed");
    assert_eq!(same.header("toolgate-call"), parked);
    assert_eq!(same.header("idempotency-replayed"), "true");

    // Executed, with the answer; and executed without anybody knowing the answer.
    act(&world, "bob", plain, "resolve", executed(6))
        .await
        .expect(200);
    let state = world.state(plain).await;
    assert_eq!(state["state"], "completed");
    assert_eq!(state["result"], refund(6));
    assert_eq!(state["executed_by"], "unknown, found executed by operator");
    let row = world.call_row(plain).await;
    assert_eq!(row["outcome"], "completed");
    assert_eq!(
        row["outcome_detail"]["evidence"],
        "https://desk.example/refunds/rf_hand"
    );
    assert_eq!(row["outcome_detail"]["resolved_by"], "bob");
    assert_eq!(row["answer"]["refund"], "rf_hand");
    assert!(waiting(&world, "kind=reconcile").await.is_empty());
    let unknown = send(world.refund(Some(&run), 7).header("idempotency-key", "u")).await;
    let unknown = unknown.header("toolgate-call");
    let body = json!({"found": "executed", "evidence": "seen in the ledger", "note": "no details"});
    act(&world, "ada", unknown, "resolve", body)
        .await
        .expect(200);
    let same = send(world.refund(Some(&run), 7).header("idempotency-key", "u"))
        .await
        .problem(409, "conflict");
    assert_eq!(same.body["executed"], true);
    assert_eq!(
        same.header("toolgate-executed-by"),
        "unknown, found executed by operator"
    );
    // The winner's word stands for the first, and the API has had each call once.
    assert_eq!(keyed().await.header("toolgate-call"), with_key);
    assert_eq!(api.requests(), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_may_not_say_changes_nothing() {
    let api = Faulty::start(&[Fault::Close]).await;
    let mut world = faults::setup(api.address).start().await;
    world.key(KeyKind::Operator, "grace").await;
    let by_ada = json!({"triggered_by": "user:ada", "purpose": "a test"});
    let run = send(world.agent(Method::POST, "/v1/runs").json(&by_ada))
        .await
        .expect(201);
    let run = run.body["run"].as_str().unwrap();
    let lost = send(world.refund(Some(run), 5)).await;
    let lost = lost.header("toolgate-call");
    // Nobody resolves what they asked for: not who triggered the run, not the agent's owner.
    for who in ["ada", "grace"] {
        act(&world, who, lost, "resolve", executed(5))
            .await
            .problem(403, "self_approval");
        act(&world, who, lost, "claim", json!({}))
            .await
            .problem(403, "self_approval");
    }
    let refused = "SELECT 1 FROM audit.entries WHERE kind = 'operator_refused' AND reasons = '{self_approval}'";
    assert_eq!(world.audit(refused).await.len(), 4);
    let mut wrong = executed(5);
    wrong["result"] = json!({"refund": 1});
    let invalid = act(&world, "bob", lost, "resolve", wrong).await;
    let invalid = invalid.problem(422, "invalid_arguments");
    assert!(!invalid.body["errors"].as_array().unwrap().is_empty());
    for (field, value) in [
        ("evidence", json!("")),
        ("evidence", json!("x".repeat(2_001))),
        ("note", json!("  ")),
        ("status", json!(99)),
        ("status", json!(199)),
        ("found", json!("perhaps")),
        ("extra", json!(1)),
    ] {
        let mut body = executed(5);
        body[field] = value;
        act(&world, "bob", lost, "resolve", body)
            .await
            .problem(400, "malformed_body");
    }
    let mut contradiction = not_executed();
    contradiction["status"] = json!(200);
    act(&world, "bob", lost, "resolve", contradiction)
        .await
        .problem(400, "malformed_body");
    // Who has claimed it has it; with the right to take over, somebody else may.
    act(&world, "bob", "call_nothing", "claim", json!({}))
        .await
        .problem(404, "not_found");
    assert_eq!(waiting(&world, "kind=reconcile").await.len(), 1);
    assert_eq!(world.state(lost).await["state"], "indeterminate");
}

#[tokio::test]
async fn what_a_gone_gateway_left_open_is_on_the_list() {
    let api = Faulty::start(&[Fault::Silence]).await;
    let setup = Setup::shipped().variable("DESK_URL", format!("http://{}", api.address));
    let world = setup
        .config(
            "agents:\n  support-bot",
            "limits: { shutdown_timeout_seconds: 1 }\nagents:\n  support-bot",
        )
        .start()
        .await;
    let request = world.refund(None, 9);
    let calling = tokio::spawn(async move { request.send().await.is_ok() });
    api.has(1).await;
    let world = world.restart(|setup| setup).await;
    let items = waiting(&world, "kind=reconcile").await;
    assert_eq!(items.len(), 1, "{items:?}");
    assert_eq!(items[0]["recorded_arguments"]["amount_cents"], 9);
    calling.abort();
}

/// The shipped world, in which refunds are done by hand while they are halted.
fn by_hand() -> Setup {
    Setup::shipped().tool(
        "desk.yaml",
        "body: { formats: [json, form] }",
        "while_halted: work_list\n    body: { formats: [json, form] }",
    )
}

const TOOL: &str = "desk.refunds.create";

fn the_tool() -> Value {
    json!({"kind": "tool", "id": TOOL})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halted_call_is_done_by_hand_and_never_by_the_gateway() {
    let world = by_hand().start().await;
    let run = world.run().await;
    let halt = world.halt(the_tool()).await;
    let listed = send(world.refund(Some(&run), 700))
        .await
        .problem(403, "by_hand");
    assert_eq!(listed.body["executed"], false);
    let call = listed.header("toolgate-call").to_owned();
    // The same request is the same call.
    let same = send(world.refund(Some(&run), 700))
        .await
        .problem(403, "by_hand");
    assert_eq!(same.header("toolgate-call"), call);
    let state = world.state(&call).await;
    assert_eq!(state["state"], "parked");
    assert_eq!(state["executed"], false);
    // What policies deny, scopes lack and contracts refuse is refused as ever, and other tools are halted as ever.
    send(world.refund(Some(&run), 200_000))
        .await
        .problem(403, "denied_by_policy");
    send(world.refund(Some(&run), 0))
        .await
        .problem(422, "invalid_arguments");
    let item = &waiting(&world, "kind=manual").await[0];
    assert_eq!(item["work"], json!(call));
    assert_eq!(item["because"], "halted");
    assert_eq!(item["kill_switch"], json!(halt));
    assert!(item.get("arguments").is_none());

    // It must be claimed before anybody says what became of it.
    act(&world, "ada", &call, "resolve", executed(700))
        .await
        .problem(409, "conflict");
    let held = tokio::spawn(send(
        world.refund(Some(&run), 700).header("prefer", "wait=30"),
    ));
    let claimed = act(&world, "bob", &call, "claim", json!({}))
        .await
        .expect(200);
    assert_eq!(claimed.body["arguments"]["amount_cents"], 700);
    assert_eq!(claimed.body["claimed_by"], "bob");
    let seen = format!(
        "SELECT 1 FROM audit.entries WHERE kind = 'work_viewed' AND call_id = '{call}' AND operator = 'bob'"
    );
    assert_eq!(world.audit(&seen).await.len(), 1);
    act(&world, "ada", &call, "claim", json!({}))
        .await
        .problem(409, "conflict");
    let path = format!("/v1/work/{call}");
    let shown = send(world.operator("ada", Method::GET, &path))
        .await
        .expect(200);
    assert!(
        shown.body.get("arguments").is_none(),
        "shown to who has not claimed it"
    );
    let state = world.state(&call).await;
    assert_eq!(state["state"], "executing");
    assert_eq!(state["executed_by"], "operator");
    assert_eq!(state["executed"], Value::Null);

    // The halt ends: what is claimed stays with people.
    world.resume(&halt).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.received("POST /refunds"), 0);
    act(&world, "bob", &call, "resolve", executed(700))
        .await
        .expect(200);
    let answer = held.await.unwrap().expect(201);
    assert_eq!(answer.body, refund(700));
    assert_eq!(answer.header("toolgate-executed-by"), "operator");
    let state = world.state(&call).await;
    assert_eq!(state["executed_by"], "operator");
    assert_eq!(state["result"], refund(700));
    let path = format!("/v1/tools/{TOOL}/calls");
    let as_tool = send(
        world
            .agent(Method::POST, &path)
            .header("toolgate-run", &run)
            .header("idempotency-key", "other")
            .json(&json!({"arguments": {"customer": "c_1001", "amount_cents": 701, "currency": "EUR"}})),
    )
    .await
    .expect(200);
    assert!(as_tool.body.get("executed_by").is_none());
    let again = send(
        world
            .refund(Some(&run), 700)
            .header("prefer", "respond-async"),
    )
    .await
    .expect(201);
    assert_eq!(again.header("toolgate-executed-by"), "operator");
    assert_eq!(world.received("POST /refunds"), 1, "{}", again.body);
    let row = world.call_row(&call).await;
    assert_eq!(row["outcome"], "completed");
    assert_eq!(row["outcome_detail"]["executed_by"], "operator");
    assert_eq!(row["forwarded_at"], Value::Null);
    assert_eq!(row["kill_switch_id"], json!(halt));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_needs_approval_needs_it_before_it_is_done_by_hand() {
    let world = by_hand().start().await;
    let run = world.run().await;
    let (before, approval_before) = world.parked(Some(&run), 20_000).await;
    let halt = world.halt(the_tool()).await;
    let (during, approval) = world.parked(Some(&run), 30_000).await;
    assert!(waiting(&world, "kind=manual").await.is_empty());
    act(&world, "ada", &during, "claim", json!({}))
        .await
        .problem(404, "not_found");
    for approval in [&approval_before, &approval] {
        let until = async || {
            let ends = world.shown("ada", approval).await["expires_at"].clone();
            serde_json::from_value::<toolgate::clock::Timestamp>(ends).unwrap()
        };
        let ends = until().await;
        let decided = world.decide("ada", approval, "approve").await.expect(200);
        assert_eq!(decided.body["state"], "approved");
        assert!(until().await > ends, "the time that stood still is added");
    }
    let mut items = Vec::new();
    for _ in 0..200 {
        items = waiting(&world, "kind=manual").await;
        if items.len() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(items.len(), 2);
    assert_eq!(world.received("POST /refunds"), 0);
    act(&world, "bob", &before, "claim", json!({}))
        .await
        .expect(200);
    act(&world, "bob", &before, "resolve", not_executed())
        .await
        .expect(200);
    send(world.refund(Some(&run), 20_000))
        .await
        .problem(409, "not_executed");
    // What nobody has claimed goes on as it would have.
    world.resume(&halt).await;
    assert_eq!(world.ended(&during).await["state"], "completed");
    assert_eq!(world.received("POST /refunds"), 1);
    act(&world, "bob", &during, "claim", json!({}))
        .await
        .problem(409, "conflict");
    assert!(waiting(&world, "kind=manual").await.is_empty());
    let row = world.call_row(&during).await;
    assert_eq!(row["outcome"], "completed");
    assert!(row["outcome_detail"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halt_of_the_caller_and_a_contract_that_says_nothing_refuse() {
    let world = by_hand().start().await;
    let run = world.run().await;
    let halt = world
        .halt(json!({"kind": "agent", "id": "support-bot"}))
        .await;
    send(world.refund(Some(&run), 700))
        .await
        .problem(503, "halted");
    world.resume(&halt).await;
    let halt = world.halt(json!({"kind": "run", "id": run})).await;
    world.halt(the_tool()).await;
    send(world.refund(Some(&run), 700))
        .await
        .problem(503, "halted");
    world.resume(&halt).await;
    send(world.refund(Some(&run), 700))
        .await
        .problem(403, "by_hand");
    let world = Setup::shipped().start().await;
    world.halt(the_tool()).await;
    send(world.refund(None, 700)).await.problem(503, "halted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_can_say_that_people_do_what_it_approves() {
    let world = Setup::shipped()
        .config(
            "finance:\n    requires: [{ role: finance, approvals: 1 }]\n",
            "finance:\n    requires: [{ role: finance, approvals: 1 }]\n    execution: work_list\n",
        )
        .start()
        .await;
    let (call, approval) = world.parked(None, 20_000).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    for _ in 0..200 {
        if !waiting(&world, "kind=manual").await.is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(waiting(&world, "kind=manual").await[0]["because"], "tier");
    let world = world.restart(|setup| setup).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.received("POST /refunds"), 0);
    act(&world, "ada", &call, "claim", json!({}))
        .await
        .expect(200);
    act(&world, "ada", &call, "resolve", executed(20_000))
        .await
        .expect(200);
    assert_eq!(world.state(&call).await["executed_by"], "operator");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_for_others_and_never_for_the_gateway() {
    let world = by_hand()
        .config("agents:\n  support-bot", "limits: { work_lease_seconds: 1 }\nagents:\n  support-bot")
        .config("bob: # the second pair of eyes: with one person alone, no tier could ask for two approvals\n    roles: [finance, security,", "bob:\n    roles: [finance,")
        .start()
        .await;
    let halt = world.halt(the_tool()).await;
    let listed = send(world.refund(None, 700)).await.problem(403, "by_hand");
    let call = listed.header("toolgate-call");
    act(&world, "ada", call, "claim", json!({}))
        .await
        .expect(200);
    // bob may not take over, so he waits for the end of the lease; ada may.
    act(&world, "bob", call, "resolve", not_executed())
        .await
        .problem(409, "conflict");
    act(&world, "bob", call, "release", json!({"note": "?"}))
        .await
        .problem(409, "conflict");
    act(&world, "bob", call, "claim", json!({}))
        .await
        .problem(409, "conflict");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    world.resume(&halt).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(
        world.received("POST /refunds"),
        0,
        "sent although somebody may have done it"
    );
    act(&world, "bob", call, "claim", json!({}))
        .await
        .expect(200);
    act(&world, "bob", call, "release", json!({"note": "not begun"}))
        .await
        .expect(200);
    act(&world, "bob", call, "claim", json!({}))
        .await
        .expect(200);
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(world.received("POST /refunds"), 0);
    act(&world, "ada", call, "resolve", executed(700))
        .await
        .expect(200);
    assert_eq!(world.state(call).await["executed_by"], "operator");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn claiming_against_the_release_of_the_halt_gives_each_call_to_one() {
    const ROUNDS: usize = 10;
    const CALLS: u32 = 25;
    let world = Arc::new(by_hand().start().await);
    let (mut by_people, mut by_gateway) = (0, 0);
    for round in 0..ROUNDS {
        let run = world.run().await;
        let halt = world.halt(the_tool()).await;
        let listed = futures::future::join_all((0..CALLS).map(|number| {
            let request = world
                .refund(Some(&run), 1 + number)
                .header("idempotency-key", format!("{round}-{number}"));
            async move {
                send(request)
                    .await
                    .problem(403, "by_hand")
                    .header("toolgate-call")
                    .to_owned()
            }
        }))
        .await;
        let before = world.received("POST /refunds");
        // One claim after the other, and the release of the halt in between: those before it race with nobody, those after it
        // come too late, and some meet it.
        let claims = listed.iter().zip(0..).map(|(call, number)| {
            let (world, call) = (Arc::clone(&world), call.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(number * 6)).await;
                let answer = act(&world, "ada", &call, "claim", json!({})).await;
                if answer.status == 200 {
                    act(&world, "ada", &call, "resolve", not_executed())
                        .await
                        .expect(200);
                    return true;
                }
                answer.problem(409, "conflict");
                false
            })
        });
        let claims: Vec<_> = claims.collect();
        let releasing = {
            let (world, halt) = (Arc::clone(&world), halt.clone());
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(u64::try_from(round).unwrap() * 12)).await;
                world.resume(&halt).await;
            })
        };
        let mut claimed = Vec::new();
        for claim in claims {
            claimed.push(claim.await.unwrap());
        }
        releasing.await.unwrap();
        let mut sent = 0;
        for (call, claimed) in listed.iter().zip(&claimed) {
            let state = world.ended(call).await;
            if *claimed {
                assert_eq!(state["code"], "not_executed", "{state}");
            } else {
                assert_eq!(state["state"], "completed", "{state}");
                assert!(state.get("executed_by").is_none());
                sent += 1;
            }
        }
        assert_eq!(
            world.received("POST /refunds") - before,
            sent,
            "round {round}"
        );
        by_gateway += sent;
        by_people += u64::from(CALLS) - sent;
    }
    println!("{by_people} claimed by people, {by_gateway} sent by the gateway");
    assert!(
        by_people > 0 && by_gateway > 0,
        "{by_people} {by_gateway}: no race"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_agent_does_not_fill_the_list() {
    let world = by_hand()
        .config(
            "groups: [support]",
            "groups: [support]\n    max_pending_approvals: 2",
        )
        .start()
        .await;
    world.halt(the_tool()).await;
    for amount in [1, 2] {
        send(world.refund(None, amount))
            .await
            .problem(403, "by_hand");
    }
    send(world.refund(None, 3))
        .await
        .problem(429, "rate_limited");
}

#[tokio::test]
async fn the_list_as_csv_holds_no_formula() {
    let world = by_hand().start().await;
    world.halt(the_tool()).await;
    let body = json!({"triggered_by": "=cmd|' /C calc'!A0", "purpose": "@SUM(1)"});
    let run = send(world.agent(Method::POST, "/v1/runs").json(&body))
        .await
        .expect(201);
    send(world.refund(run.body["run"].as_str(), 700))
        .await
        .problem(403, "by_hand");
    let csv = send(world.operator("ada", Method::GET, "/v1/work?format=csv"))
        .await
        .expect(200);
    assert_eq!(
        csv.header("content-type"),
        "text/csv; charset=utf-8; header=present"
    );
    let text = String::from_utf8(csv.bytes).unwrap();
    assert!(
        text.contains("\"'=cmd|") && text.contains("\"'@SUM(1)\""),
        "{text}"
    );
    for bad in ["kind=x", "state=x", "format=xml", "agent=%00"] {
        let path = format!("/v1/work?{bad}");
        send(world.operator("ada", Method::GET, &path))
            .await
            .problem(400, "malformed_body");
    }
}
