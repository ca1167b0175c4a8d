//! The sample world end to end: what passes, what is parked, what is denied, and how each is answered on both surfaces.

use reqwest::Method;
use serde_json::json;

use crate::support::{World, send};

#[tokio::test]
async fn a_small_refund_is_answered_exactly_as_the_api_did() {
    let world = World::shipped().await;
    let answer = send(world.refund(None, 1_200)).await.expect(201);
    assert_eq!(answer.body["status"], "succeeded");
    assert_eq!(answer.body["amount_cents"], 1_200);
    let call = answer.header("toolgate-call").to_owned();
    let row = world.call_row(&call).await;
    assert_eq!(row["decision"], "permit");
    assert_eq!(row["outcome"], "completed");
    assert_eq!(row["status"], 201);
    assert_eq!(row["tool"], "desk.refunds.create");
    assert_eq!(row["arguments"]["amount_cents"], 1_200);
    assert!(
        row["intent_at"].as_str() <= row["forwarded_at"].as_str(),
        "{row}"
    );
    assert!(
        row["forwarded_at"].as_str() <= row["finished_at"].as_str(),
        "{row}"
    );
}

#[tokio::test]
async fn the_tool_call_route_says_what_became_of_the_call() {
    let world = World::shipped().await;
    let body = json!({
        "arguments": {"customer": "c_1001", "amount_cents": 700, "currency": "EUR"},
        "reason": "the parcel was late"
    });
    let answer = send(
        world
            .agent(Method::POST, "/v1/tools/desk.refunds.create/calls")
            .json(&body),
    )
    .await
    .expect(200);
    assert_eq!(answer.body["executed"], true);
    assert_eq!(answer.body["status"], 201);
    assert_eq!(answer.body["result"]["amount_cents"], 700);
    assert_eq!(answer.body["call"], answer.header("toolgate-call"));
    let row = world.call_row(answer.body["call"].as_str().unwrap()).await;
    assert_eq!(row["agent_words"], "the parcel was late");
    assert_eq!(row["surface"], "tool_call");
}

#[tokio::test]
async fn a_form_is_taken_and_sent_as_a_form() {
    let world = World::shipped().await;
    let form = [
        ("customer", "c_1001"),
        ("amount_cents", "900"),
        ("currency", "EUR"),
    ];
    let answer = send(world.agent(Method::POST, "/desk/refunds").form(&form))
        .await
        .expect(201);
    assert_eq!(answer.body["amount_cents"], 900);
    let row = world.call_row(answer.header("toolgate-call")).await;
    assert_eq!(
        row["arguments"]["amount_cents"], 900,
        "the policy decides on a number, not on a text"
    );
    let large = [
        ("customer", "c_1001"),
        ("amount_cents", "900000"),
        ("currency", "EUR"),
    ];
    send(world.agent(Method::POST, "/desk/refunds").form(&large))
        .await
        .problem(403, "denied_by_policy");
}

#[tokio::test]
async fn a_parked_refund_is_executed_once_after_approval_and_its_answer_kept() {
    let world = World::shipped().await;
    let run = world.run().await;
    let (call, approval) = world.parked(Some(&run), 25_000).await;
    assert_eq!(world.received("POST /refunds"), 0);
    let waiting = world.state(&call).await;
    assert_eq!(waiting["state"], "parked");
    assert_eq!(waiting["executed"], false);
    assert_eq!(waiting["approval"], json!(approval));
    let shown = world.shown("ada", &approval).await;
    assert_eq!(shown["arguments"]["amount_cents"], 25_000);
    assert_eq!(shown["tiers"], json!(["finance"]));
    assert_eq!(shown["run"], json!(run));
    world.decide("ada", &approval, "approve").await.expect(200);
    let done = world.ended(&call).await;
    assert_eq!(done["state"], "completed");
    assert_eq!(done["executed"], true);
    assert_eq!(done["status"], 201);
    assert_eq!(done["result"]["amount_cents"], 25_000);
    let again = send(world.refund(Some(&run), 25_000)).await.expect(201);
    assert_eq!(again.body, done["result"]);
    assert_eq!(again.header("toolgate-call"), call);
    assert_eq!(world.received("POST /refunds"), 1);
    let row = world.call_row(&call).await;
    assert_eq!(row["decision"], "park");
    assert_eq!(row["outcome"], "completed");
    assert_eq!(row["approval_id"], json!(approval));
}
