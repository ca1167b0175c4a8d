//! What an approver is shown: nothing hidden, the money in its unit, the policies as they stood, and what the agent did last.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    sensitive,
    support::{Setup, World, send},
};

/// A character of each kind that hides, turns around or passes for another.
const HIDDEN: [char; 12] = [
    '\u{202E}',
    '\u{2066}',
    '\u{200B}',
    '\u{200D}',
    '\u{2060}',
    '\u{FEFF}',
    '\u{AD}',
    '\u{A0}',
    '\u{3164}',
    '\u{E0041}',
    '\u{85}',
    '\u{E000}',
];

/// What a JSON document says, with every text and name in it.
fn texts(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::String(text) => found.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| texts(item, found)),
        Value::Object(members) => {
            for (name, member) in members {
                found.push(name.clone());
                texts(member, found);
            }
        }
        _ => {}
    }
}

#[tokio::test]
async fn nothing_that_an_agent_writes_hides_from_an_approver_and_what_is_sent_is_as_it_was() {
    let api = sensitive::api().await;
    let world = sensitive::setup(&api, "pass").start().await;
    let hidden: String = HIDDEN.iter().collect();
    let open =
        json!({"triggered_by": format!("ticket:1{hidden}"), "purpose": format!("re{hidden}fund")});
    let run = send(world.agent(Method::POST, "/v1/runs").json(&open))
        .await
        .expect(201);
    let run = run.body["run"].as_str().unwrap().to_owned();
    let arguments = json!({
        "to": "someone@example.org",
        "subject": "wait",
        "text": format!("first\nsecond{hidden}"),
        "free": {format!("na{hidden}me"): [format!("val{hidden}ue"), "p\u{430}ypal", "\\u{202E}", "Gr\u{fc}\u{df}e"]},
    });
    let call = world
        .agent(Method::POST, "/v1/tools/probe.letters.send/calls")
        .header("toolgate-run", &run)
        .json(&json!({"arguments": arguments, "reason": format!("be{hidden}cause")}));
    let parked = send(call).await.expect(403);
    let approval = parked.body["approval"].as_str().unwrap().to_owned();

    let one = world.shown("ada", &approval).await;
    let list = send(world.operator("ada", Method::GET, "/v1/approvals?state=pending"))
        .await
        .expect(200);
    let written: String = HIDDEN
        .iter()
        .map(|letter| format!("\\u{{{:X}}}", u32::from(*letter)))
        .collect();
    for shown in [&one, &list.body["data"][0]] {
        let mut all = Vec::new();
        texts(shown, &mut all);
        for text in &all {
            assert!(
                !text.contains(|letter| HIDDEN.contains(&letter)),
                "{text:?}"
            );
        }
        assert_eq!(
            shown["arguments"],
            json!({
                "to": "someone@example.org",
                "subject": "wait",
                "text": format!("first\nsecond{written}"),
                "free": {format!("na{written}me"): [
                    format!("val{written}ue"), "p\\u{430}ypal", "\\u{5C}u{202E}", "Gr\u{fc}\u{df}e",
                ]},
            })
        );
        assert_eq!(shown["agent_words"], format!("be{written}cause"));
        assert_eq!(shown["purpose"], format!("re{written}fund"));
        assert_eq!(shown["triggered_by"], format!("ticket:1{written}"));
    }
    world.decide("ada", &approval, "approve").await.expect(200);
    let call = parked.body["call"].as_str().unwrap();
    assert_eq!(world.ended(call).await["state"], "completed");
    let request = api.requests().concat();
    assert!(request.contains(&format!("val{hidden}ue")), "{request}");
}

async fn amount_of(world: &World, body: Value) -> Value {
    let refund = world.agent(Method::POST, "/desk/refunds").json(&body);
    let parked = send(refund).await.problem(403, "approval_required");
    let approval = parked.body["approval"].as_str().unwrap();
    world.shown("ada", approval).await["amount"].clone()
}

fn refund(amount_cents: u32, currency: &str) -> Value {
    json!({"customer": "c_1001", "amount_cents": amount_cents, "currency": currency})
}

#[tokio::test]
async fn money_is_shown_in_its_currency_and_not_in_the_unit_of_the_wire() {
    let world = World::shipped().await;
    for (body, shown) in [
        (refund(19_990, "USD"), "199.90 USD"),
        (refund(5_001, "eur"), "50.01 EUR"),
        (refund(19_990, "JPY"), "19990 JPY"),
        (refund(19_990, "KWD"), "19.990 KWD"),
        (
            refund(19_990, "ZZZ"),
            "19990 in minor units of ZZZ, which ISO 4217 does not divide",
        ),
    ] {
        assert_eq!(amount_of(&world, body).await, shown);
    }
    let mail = json!({"to": "someone@example.org", "subject": "hello", "body": "text"});
    let mail = world.agent(Method::POST, "/desk/mail").json(&mail);
    let parked = send(mail).await.problem(403, "approval_required");
    let shown = world
        .shown("ada", parked.body["approval"].as_str().unwrap())
        .await;
    assert_eq!(shown["amount"], Value::Null, "no money is in a mail");
}

#[tokio::test]
async fn an_amount_that_a_tier_does_not_show_is_not_told_in_other_words() {
    let world = Setup::shipped()
        .tool(
            "desk.yaml",
            "amount_cents: { type: integer, minimum: 1,",
            "amount_cents: { type: integer, minimum: 1, x-sensitivity: confidential,",
        )
        .config(
            "requires: [{ role: finance, approvals: 1 }]\n",
            "requires: [{ role: finance, approvals: 1 }]\n    shows: [pii]\n",
        )
        .start()
        .await;
    assert_eq!(amount_of(&world, refund(19_990, "USD")).await, Value::Null);
}

#[tokio::test]
async fn the_policies_that_parked_a_call_are_shown_as_they_stood() {
    let world = World::shipped().await;
    let (_, approval) = world.parked(None, 25_000).await;
    let before = world.shown("ada", &approval).await["policy_texts"].clone();
    let text = before["money-needs-finance"].as_str().unwrap();
    assert!(text.contains("<= 5000"), "{text}");
    let world = world
        .restart(|setup| setup.policy("defaults.cedar", "<= 5000", "<= 4000"))
        .await;
    let (_, later) = world.parked(None, 26_000).await;
    let list = send(world.operator("ada", Method::GET, "/v1/approvals?state=pending"))
        .await
        .expect(200);
    assert_eq!(list.body["data"][0]["approval"], *approval);
    assert_eq!(list.body["data"][0]["policy_texts"], before);
    assert_eq!(world.shown("ada", &approval).await["policy_texts"], before);
    let now = world.shown("ada", &later).await["policy_texts"].clone();
    let text = now["money-needs-finance"].as_str().unwrap();
    assert!(text.contains("<= 4000"), "{text}");
}

#[tokio::test]
async fn beside_a_call_stands_what_its_agent_did_last_in_the_run_and_no_more() {
    let world = World::shipped().await;
    let run = world.run().await;
    let in_run = |path: &str| world.agent(Method::GET, path).header("toolgate-run", &run);
    for _ in 0..9 {
        send(in_run("/desk/customers/c_1001")).await.expect(200);
    }
    send(world.refund(Some(&run), 1_200)).await.expect(201);
    send(world.refund(Some(&run), 250_000))
        .await
        .problem(403, "denied_by_policy");
    let other = world.run().await;
    world.parked(Some(&other), 31_000).await;
    let (call, approval) = world.parked(Some(&run), 25_000).await;
    let (later, _) = world.parked(Some(&run), 26_000).await;

    let shown = world.shown("ada", &approval).await;
    let calls = shown["last_calls"].as_array().unwrap();
    assert_eq!(calls.len(), 10, "{calls:#?}");
    assert!(calls.iter().all(|one| one["call"] != *call));
    let told = |at: usize, name: &str| calls[at][name].clone();
    assert_eq!(told(0, "call"), *later);
    assert_eq!(told(0, "decision"), "park");
    assert_eq!(told(0, "outcome"), Value::Null);
    assert_eq!(told(1, "decision"), "deny");
    assert_eq!(told(1, "reasons"), json!(["denied_by_policy"]));
    assert_eq!(told(2, "tool"), "desk.refunds.create");
    assert_eq!(told(2, "outcome"), "completed");
    assert_eq!(told(2, "status"), 201);
    assert_eq!(told(3, "tool"), "desk.customers.get");
    let times: Vec<&str> = calls
        .iter()
        .map(|one| one["received_at"].as_str().unwrap())
        .collect();
    assert!(
        times.is_sorted_by(|newer, older| newer >= older),
        "{times:?}"
    );
    for one in calls {
        let mut members: Vec<&str> = one
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        members.sort_unstable();
        assert_eq!(
            members,
            [
                "call",
                "decision",
                "outcome",
                "reasons",
                "received_at",
                "status",
                "tool"
            ],
            "nothing of what was in a call"
        );
    }
}
