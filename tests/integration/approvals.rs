//! Who may decide on a parked call, how votes are counted, and that of any two decisions one wins.

use reqwest::Method;
use serde_json::{Value, json};
use toolgate::keys::KeyKind;

use crate::support::{Answer, Setup, World, send};

/// Finance asks for two people.
fn two_people(setup: Setup) -> Setup {
    setup.config(
        "requires: [{ role: finance, approvals: 1 }]",
        "requires: [{ role: finance, approvals: 2 }]",
    )
}

/// Adds operators with these roles.
fn operators(setup: Setup, names: &[String], roles: &str) -> Setup {
    let more: String = names
        .iter()
        .map(|name| format!("  {name}:\n    roles: [{roles}]\n"))
        .collect();
    setup.config("\noperators:\n", &format!("\noperators:\n{more}"))
}

async fn vote(world: &World, who: &str, approval: &str, verb: &str, body: Value) -> Answer {
    let path = format!("/v1/approvals/{approval}/{verb}");
    send(world.operator(who, Method::POST, &path).json(&body)).await
}

#[tokio::test]
async fn a_quorum_is_two_people_and_one_person_counts_once() {
    let world = two_people(Setup::shipped()).start().await;
    let (call, approval) = world.parked(None, 25_000).await;
    let first = world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(first.body["state"], "pending", "one of two is not enough");
    world
        .decide("ada", &approval, "approve")
        .await
        .problem(409, "conflict");
    world
        .decide("ada", &approval, "deny")
        .await
        .problem(409, "conflict");
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(world.received("POST /refunds"), 0);
    assert_eq!(world.state(&call).await["state"], "parked");
    let shown = world.shown("bob", &approval).await;
    assert_eq!(
        shown["needs"],
        json!([{
            "tier": "finance",
            "requires": [{"role": "finance", "approvals": 2}],
            "denials": 1,
            "escalations": [],
        }])
    );
    assert_eq!(shown["votes"].as_array().unwrap().len(), 1);
    let second = world.decide("bob", &approval, "approve").await.expect(200);
    assert_eq!(second.body["state"], "approved");
    assert_eq!(world.ended(&call).await["state"], "completed");
    assert_eq!(world.received("POST /refunds"), 1);
    let votes = format!("kind = 'approval_vote' AND approval_id = '{approval}'");
    assert_eq!(world.entries(&votes).await, 2);
}

#[tokio::test]
async fn one_denial_ends_a_quorum() {
    let world = two_people(Setup::shipped()).start().await;
    let (call, approval) = world.parked(None, 25_000).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    world.decide("bob", &approval, "deny").await.expect(200);
    assert_eq!(world.state(&call).await["state"], "denied");
    assert_eq!(world.received("POST /refunds"), 0);
}

#[tokio::test]
async fn tiers_add_up_and_one_person_with_both_roles_counts_for_one() {
    let rule = r#"
@id("large-refunds-need-security")
@description("Refunds above 50,000 cents wait for security as well.")
@approval("security")
forbid (principal is Agent, action == Action::"desk.refunds.create", resource)
when { context.input.amount_cents > 50000 }
unless { context.approvals.contains("security") };
"#;
    let fay = "fay".to_owned();
    let mut world = operators(
        Setup::shipped().policy("desk.cedar", "", rule),
        std::slice::from_ref(&fay),
        "finance",
    )
    .start()
    .await;
    world.keys(KeyKind::Operator, &[fay]).await;
    let (call, approval) = world.parked(None, 60_000).await;
    let shown = world.shown("ada", &approval).await;
    assert_eq!(shown["tiers"], json!(["finance", "security"]));
    let first = world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(
        first.body["state"], "pending",
        "ada has both roles and is one person"
    );
    // Fay has finance only, so that ada is what security has.
    let second = world.decide("fay", &approval, "approve").await.expect(200);
    assert_eq!(second.body["state"], "approved");
    assert_eq!(world.ended(&call).await["state"], "completed");
    let (call, approval) = world.parked(None, 40_000).await;
    assert_eq!(
        world.shown("ada", &approval).await["tiers"],
        json!(["finance"])
    );
    world.decide("fay", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&call).await["state"], "completed");
}

#[tokio::test]
async fn the_wrong_role_decides_nothing_and_is_recorded() {
    let sam = "sam".to_owned();
    let mut world = operators(Setup::shipped(), std::slice::from_ref(&sam), "security")
        .start()
        .await;
    world.keys(KeyKind::Operator, &[sam]).await;
    let (call, approval) = world.parked(None, 25_000).await;
    for verb in ["approve", "deny"] {
        let refused = world
            .decide("sam", &approval, verb)
            .await
            .problem(403, "denied_by_policy");
        assert!(refused.body["policies"].is_array(), "{}", refused.body);
    }
    assert_eq!(world.state(&call).await["state"], "parked");
    let recorded = format!(
        "kind = 'operator_refused' AND operator = 'sam' AND approval_id = '{approval}' AND reasons = '{{denied_by_policy}}'"
    );
    assert_eq!(world.entries(&recorded).await, 2);
    assert_eq!(world.received("POST /refunds"), 0);
}

#[tokio::test]
async fn nobody_decides_on_what_they_asked_for_whatever_their_roles() {
    let all = "roles: [finance, security, communications, data-steward, on-call]";
    let mut world = Setup::shipped()
        .config("roles: [auditor]", &all.replace('[', "[auditor, "))
        .start()
        .await;
    world.key(KeyKind::Operator, "grace").await;
    let (_, approval) = world.parked(None, 25_000).await;
    for verb in ["approve", "deny"] {
        world
            .decide("grace", &approval, verb)
            .await
            .problem(403, "self_approval");
    }
    for (at, who) in ["ada", "operator:ada", "user: Ada", "Operator:ada"]
        .iter()
        .enumerate()
    {
        let body = json!({"triggered_by": who, "purpose": "a test"});
        let run = send(world.agent(Method::POST, "/v1/runs").json(&body))
            .await
            .expect(201);
        let run = run.body["run"].as_str().unwrap().to_owned();
        let amount = 30_000 + u32::try_from(at).unwrap();
        let (call, approval) = world.parked(Some(&run), amount).await;
        world
            .decide("ada", &approval, "approve")
            .await
            .problem(403, "self_approval");
        assert_eq!(world.state(&call).await["state"], "parked");
        world.decide("bob", &approval, "approve").await.expect(200);
        assert_eq!(world.ended(&call).await["state"], "completed");
    }
    let by = |who: &str| {
        format!(
            "kind = 'operator_refused' AND operator = '{who}' AND reasons = '{{self_approval}}' AND approval_id IS NOT NULL"
        )
    };
    assert_eq!(world.entries(&by("grace")).await, 2);
    assert_eq!(world.entries(&by("ada")).await, 4);
    assert_eq!(world.received("POST /refunds"), 4);
}

#[tokio::test]
async fn a_decision_names_what_was_shown() {
    let world = World::shipped().await;
    let (call, approval) = world.parked(None, 25_000).await;
    let (_, other) = world.parked(None, 26_000).await;
    let digest = world.shown("ada", &other).await["digest"].clone();
    for verb in ["approve", "deny"] {
        let body = json!({"digest": digest, "reason": "test"});
        vote(&world, "ada", &approval, verb, body)
            .await
            .problem(409, "stale_digest");
    }
    let digest = world.shown("ada", &approval).await["digest"].clone();
    let malformed = [
        json!({"reason": "test"}),
        json!({"digest": digest}),
        json!({"digest": digest, "reason": ""}),
        json!({"digest": digest, "reason": "  "}),
        json!({"digest": digest, "reason": 7}),
        json!({"digest": digest, "reason": "x".repeat(2_001)}),
        json!({"digest": digest, "reason": "test", "force": true}),
        json!([digest, "test"]),
        Value::Null,
    ];
    for body in malformed {
        vote(&world, "ada", &approval, "approve", body)
            .await
            .problem(400, "malformed_body");
    }
    let path = format!("/v1/approvals/{approval}/approve");
    let raw = |text: &'static str, media_type: &'static str| {
        world
            .operator("ada", Method::POST, &path)
            .header("content-type", media_type)
            .body(text)
    };
    send(raw(
        "{\"digest\":\"a\",\"digest\":\"b\",\"reason\":\"c\"}",
        "application/json",
    ))
    .await
    .problem(400, "malformed_body");
    send(raw("{}", "text/plain"))
        .await
        .problem(415, "unsupported_media_type");
    let body = json!({"digest": digest, "reason": "test"});
    let unknown = toolgate::ids::ApprovalId::generate().to_string();
    for id in [&*unknown, "appr_nonsense", &*call, "%00"] {
        vote(&world, "ada", id, "approve", body.clone())
            .await
            .problem(404, "not_found");
        let path = format!("/v1/approvals/{id}");
        send(world.operator("ada", Method::GET, &path))
            .await
            .problem(404, "not_found");
    }
    // An agent's key opens nothing here, and nobody's neither.
    let url = format!("http://{}{path}", world.gateway.operators);
    send(world.anybody(Method::POST, &url).json(&body))
        .await
        .problem(401, "unauthenticated");
    let agent = world.keys["support-bot"].clone();
    send(
        world
            .anybody(Method::POST, &url)
            .bearer_auth(agent.expose())
            .json(&body),
    )
    .await
    .problem(401, "unauthenticated");
    assert_eq!(world.state(&call).await["state"], "parked");
    assert_eq!(world.received("POST /refunds"), 0);
    assert_eq!(world.entries("kind = 'approval_vote'").await, 0);
}

#[tokio::test]
async fn what_is_decided_stays_decided() {
    let world = World::shipped().await;
    let (denied, approval) = world.parked(None, 25_000).await;
    world.decide("ada", &approval, "deny").await.expect(200);
    for who in ["ada", "bob"] {
        world
            .decide(who, &approval, "approve")
            .await
            .problem(409, "conflict");
    }
    let (done, approval) = world.parked(None, 26_000).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&done).await["state"], "completed");
    for (who, verb) in [("ada", "approve"), ("bob", "approve"), ("bob", "deny")] {
        world
            .decide(who, &approval, verb)
            .await
            .problem(409, "conflict");
    }
    assert_eq!(world.state(&denied).await["state"], "denied");
    assert_eq!(world.state(&denied).await["executed"], false);
    assert_eq!(world.state(&done).await["state"], "completed");
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_fifty_decisions_at_once_one_wins_and_the_call_goes_at_most_once() {
    let names: Vec<String> = (0..50).map(|at| format!("op{at}")).collect();
    let mut world = operators(Setup::shipped(), &names, "finance").start().await;
    world.keys(KeyKind::Operator, &names).await;
    let mut executed = 0;
    for round in 0..4_u32 {
        let (call, approval) = world.parked(None, 25_000 + round).await;
        let digest = world.shown("ada", &approval).await["digest"].clone();
        let body = json!({"digest": digest, "reason": "test"});
        let votes = names.iter().enumerate().map(|(at, name)| {
            let verb = if at % 2 == 0 { "approve" } else { "deny" };
            vote(&world, name, &approval, verb, body.clone())
        });
        let answers = futures::future::join_all(votes).await;
        let won: Vec<usize> = (0..answers.len())
            .filter(|at| answers[*at].status == 200)
            .collect();
        assert_eq!(won.len(), 1, "{won:?}");
        for (at, answer) in answers.into_iter().enumerate() {
            if at != won[0] {
                answer.problem(409, "conflict");
            }
        }
        let ended = world.ended(&call).await;
        if won[0].is_multiple_of(2) {
            executed += 1;
            assert_eq!(ended["state"], "completed");
        } else {
            assert_eq!(ended["state"], "denied");
        }
        assert_eq!(world.received("POST /refunds"), executed);
        let votes = format!("kind = 'approval_vote' AND approval_id = '{approval}'");
        assert_eq!(world.entries(&votes).await, 1);
        let intents = format!("kind = 'intent' AND call_id = '{call}'");
        assert_eq!(
            world.entries(&intents).await,
            i64::from(won[0].is_multiple_of(2)),
            "round {round}"
        );
    }
}

#[tokio::test]
async fn approving_one_call_approves_no_other() {
    let world = World::shipped().await;
    let (call, approval) = world.parked(None, 25_000).await;
    let (same_tool, _) = world.parked(None, 25_001).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&call).await["state"], "completed");
    world.parked(None, 25_002).await;
    assert_eq!(world.state(&same_tool).await["state"], "parked");
    assert_eq!(world.received("POST /refunds"), 1);
}
