//! What has waited for people is not done a second time: the same request in the same run gets the answer of whoever did it.

use reqwest::Method;
use serde_json::{Value, json};
use toolgate::keys::KeyKind;

use crate::{
    support::{Setup, World, send},
    work::{act, executed},
};

const TOOL: &str = "desk.refunds.create";

fn by_hand() -> Setup {
    Setup::shipped().tool(
        "desk.yaml",
        "body: { formats: [json, form] }",
        "while_halted: work_list\n    body: { formats: [json, form] }",
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_by_hand_is_not_sent_after_the_halt() {
    let world = by_hand().start().await;
    let run = world.run().await;
    let halt = world.halt(json!({"kind": "tool", "id": TOOL})).await;
    let listed = send(world.refund(Some(&run), 700))
        .await
        .problem(403, "by_hand");
    let call = listed.header("toolgate-call").to_owned();
    act(&world, "ada", &call, "claim", json!({}))
        .await
        .expect(200);
    world.resume(&halt).await;
    // While it is being done, and afterwards.
    let meanwhile = send(world.refund(Some(&run), 700))
        .await
        .problem(403, "by_hand");
    assert_eq!(meanwhile.header("toolgate-call"), call);
    act(&world, "ada", &call, "resolve", executed(700))
        .await
        .expect(200);
    for surface in ["/desk/refunds", "/v1/tools/desk.refunds.create/calls"] {
        let arguments = json!({"customer": "c_1001", "amount_cents": 700, "currency": "EUR"});
        let request = world
            .agent(Method::POST, surface)
            .header("toolgate-run", &run);
        let again = if surface.starts_with("/v1") {
            send(request.json(&json!({ "arguments": arguments })))
                .await
                .expect(200)
        } else {
            send(request.json(&arguments)).await.expect(201)
        };
        assert_eq!(again.header("toolgate-call"), call);
        assert_eq!(again.header("toolgate-executed-by"), "operator");
        assert_eq!(again.header("idempotency-replayed"), "true");
    }
    assert_eq!(world.received("POST /refunds"), 0);
    // Another request, and the same one in another run, are calls of their own.
    send(world.refund(Some(&run), 701)).await.expect(201);
    let other = world.run().await;
    send(world.refund(Some(&other), 700)).await.expect(201);
    assert_eq!(world.received("POST /refunds"), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_approved_is_not_sent_again_when_it_needs_no_approval_any_more() {
    let world = World::shipped().await;
    let run = world.run().await;
    let (call, approval) = world.parked(Some(&run), 9_000).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    world.ended(&call).await;
    assert_eq!(world.received("POST /refunds"), 1);
    // Other policies permit it at once; first some that still hold other calls of the tool back, then none.
    let world = world
        .restart(|setup| {
            setup.policy(
                "defaults.cedar",
                "amount_cents <= 5000",
                "amount_cents <= 50000",
            )
        })
        .await;
    let again = send(world.refund(Some(&run), 9_000)).await.expect(201);
    assert_eq!(again.header("toolgate-call"), call);
    let world = world
        .restart(|setup| {
            setup.policy(
                "defaults.cedar",
                "action in Action::\"consequence:money_movement\"",
                "action in Action::\"consequence:destructive\"",
            )
            .policy(
                "defaults.cedar",
                "  context.approvals.contains(\"finance\") ||\n  // The one exception. It names its tool, so that another API's small amounts are not let through by it.\n  (action == Action::\"desk.refunds.create\" && context.input.amount_cents <= 50000)\n",
                "  context.approvals.contains(\"finance\")\n",
            )
        })
        .await;
    let again = send(world.refund(Some(&run), 9_000)).await.expect(201);
    assert_eq!(again.header("toolgate-call"), call);
    assert_eq!(again.header("idempotency-replayed"), "true");
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_read_the_work_list_learns_nothing_of_what_is_on_it() {
    let setup = by_hand().config("  grace:\n", "  mallory:\n    roles: [visitor]\n  grace:\n");
    let mut world = setup.start().await;
    let people = ["mallory", "grace"].map(str::to_owned);
    world.keys(KeyKind::Operator, &people).await;
    let run = world.run().await;
    world.halt(json!({"kind": "tool", "id": TOOL})).await;
    let listed = send(world.refund(Some(&run), 700))
        .await
        .problem(403, "by_hand");
    let call = listed.header("toolgate-call").to_owned();
    let absent = "call_01000000000000000000000000";
    let note = json!({"note": "x"});
    for (verb, body) in [
        ("claim", json!({})),
        ("release", note),
        ("resolve", executed(700)),
    ] {
        let of = async |id: &str| -> (u16, Value) {
            let answer = act(&world, "mallory", id, verb, body.clone()).await;
            (answer.status, answer.body)
        };
        let (there, not_there) = (of(&call).await, of(absent).await);
        assert_eq!(there, not_there, "{verb}");
        assert_eq!(there.0, 404, "{verb}");
    }
    let there = send(world.operator("mallory", Method::GET, &format!("/v1/work/{call}"))).await;
    let not_there =
        send(world.operator("mallory", Method::GET, &format!("/v1/work/{absent}"))).await;
    assert_eq!(
        (there.status, &there.body),
        (not_there.status, &not_there.body)
    );
    // What was refused is recorded as what it was; whoever may read is told.
    let refused = "SELECT 1 FROM audit.entries WHERE kind = 'operator_refused' AND operator = 'mallory' AND reasons = '{denied_by_policy}' AND detail->>'action' = 'resolve'";
    assert_eq!(world.audit(refused).await.len(), 3);
    act(&world, "grace", &call, "claim", json!({}))
        .await
        .problem(403, "self_approval");
}
