//! Who counts for what on a parked call: requirements, denials, makers, delegations, escalations.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row as _;
use toolgate::{clock, keys::KeyKind};

use crate::support::{Answer, Setup, World, send};

pub const TIER: &str =
    "requires: [{ role: finance, approvals: 1 }]\n    expires_in_seconds: 3600 # one hour";

/// The shipped world with another finance tier and more operators.
pub fn setup(finance: &str, operators: &str) -> Setup {
    Setup::shipped()
        .config(TIER, finance)
        .config("\noperators:\n", &format!("\noperators:\n{operators}"))
}

pub async fn start(setup: Setup, operators: &[&str]) -> World {
    let mut world = setup.start().await;
    let names: Vec<String> = operators.iter().map(|&name| name.to_owned()).collect();
    world.keys(KeyKind::Operator, &names).await;
    world
}

/// Votes with the digest as the operator sees it. `authority` is whose right to use.
pub async fn vote(
    world: &World,
    who: &str,
    approval: &str,
    verb: &str,
    authority: Option<&str>,
) -> Answer {
    let digest = world.shown("ada", approval).await["digest"].clone();
    let mut body = json!({"digest": digest, "reason": "test"});
    if let Some(authority) = authority {
        body["for"] = json!(authority);
    }
    let path = format!("/v1/approvals/{approval}/{verb}");
    send(world.operator(who, Method::POST, &path).json(&body)).await
}

pub async fn delegate(world: &World, from: &str, body: Value) -> Answer {
    send(
        world
            .operator(from, Method::POST, "/v1/delegations")
            .json(&body),
    )
    .await
}

pub fn lending(to: &str, seconds: i64) -> Value {
    let until = clock::now() + chrono::TimeDelta::seconds(seconds);
    json!({"to": to, "roles": ["finance"], "until": until, "reason": "on holiday"})
}

pub async fn lend(world: &World, from: &str, to: &str) -> String {
    let answer = delegate(world, from, lending(to, 3_600)).await.expect(201);
    answer.body["delegation"].as_str().unwrap().to_owned()
}

pub async fn revoke(world: &World, who: &str, delegation: &str) -> Answer {
    let path = format!("/v1/delegations/{delegation}");
    send(
        world
            .operator(who, Method::DELETE, &path)
            .json(&json!({"reason": "back again"})),
    )
    .await
}

#[tokio::test]
async fn requirements_add_up_and_each_person_takes_one_seat() {
    let finance = "requires: [{ role: finance, approvals: 1 }, { group: treasury, approvals: 2 }]\n    expires_in_seconds: 3600";
    let operators = "  tia: { roles: [auditor], groups: [treasury] }\n  max: { roles: [finance], groups: [treasury] }\n  tom: { roles: [auditor], groups: [treasury] }\n";
    let world = start(setup(finance, operators), &["tia", "max", "tom"]).await;
    let (call, approval) = world.parked(None, 25_000).await;
    for who in ["max", "tia"] {
        let counted = world.decide(who, &approval, "approve").await.expect(200);
        assert_eq!(counted.body["state"], "pending", "{who}");
    }
    world
        .decide("max", &approval, "approve")
        .await
        .problem(409, "conflict");
    let shown = world.shown("ada", &approval).await;
    assert_eq!(
        shown["needs"][0]["requires"],
        json!([{"role": "finance", "approvals": 1}, {"group": "treasury", "approvals": 2}])
    );
    // Tom is the second of treasury and max stands for finance.
    let last = world.decide("tom", &approval, "approve").await.expect(200);
    assert_eq!(last.body["state"], "approved");
    assert_eq!(world.ended(&call).await["state"], "completed");
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test]
async fn fewer_denials_than_a_tier_asks_for_only_count() {
    let finance =
        "requires: [{ role: finance, approvals: 1 }]\n    denials: 2\n    expires_in_seconds: 3600";
    let world = start(setup(finance, "  fay: { roles: [finance] }\n"), &["fay"]).await;
    let (call, approval) = world.parked(None, 25_000).await;
    let first = world.decide("ada", &approval, "deny").await.expect(200);
    assert_eq!(first.body["state"], "pending");
    world
        .decide("ada", &approval, "approve")
        .await
        .problem(409, "conflict");
    let second = world.decide("bob", &approval, "deny").await.expect(200);
    assert_eq!(second.body["state"], "denied");
    assert_eq!(world.state(&call).await["state"], "denied");
    world
        .decide("fay", &approval, "approve")
        .await
        .problem(409, "conflict");
    let (call, approval) = world.parked(None, 26_000).await;
    world.decide("ada", &approval, "deny").await.expect(200);
    world.decide("fay", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&call).await["state"], "completed");
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test]
async fn a_maker_decides_neither_for_nor_through_anybody() {
    let setup = setup(TIER, "  tia: { roles: [auditor] }\n").config(
        "grace:\n    roles: [auditor]",
        "grace:\n    roles: [auditor, finance, security, on-call]",
    );
    let world = start(setup, &["tia", "grace"]).await;
    // The owner lends, and is lent to.
    lend(&world, "grace", "tia").await;
    lend(&world, "ada", "grace").await;
    let (_, approval) = world.parked(None, 25_000).await;
    for verb in ["approve", "deny"] {
        for authority in [None, Some("grace")] {
            vote(&world, "tia", &approval, verb, authority)
                .await
                .problem(403, "self_approval");
        }
        for authority in [None, Some("ada")] {
            vote(&world, "grace", &approval, verb, authority)
                .await
                .problem(403, "self_approval");
        }
    }
    // Whoever triggered the run lends, in whatever spelling the agent named them.
    lend(&world, "ada", "tia").await;
    for (at, who) in [
        "ada",
        "user/ADA",
        "Ada@example.com",
        "\u{ff41}da",
        "human:operator:ada",
    ]
    .into_iter()
    .enumerate()
    {
        let body = json!({"triggered_by": who, "purpose": "a test"});
        let run = send(world.agent(Method::POST, "/v1/runs").json(&body))
            .await
            .expect(201);
        let run = run.body["run"].as_str().unwrap().to_owned();
        let (call, approval) = world
            .parked(Some(&run), 30_000 + u32::try_from(at).unwrap())
            .await;
        for who in ["ada", "tia"] {
            vote(&world, who, &approval, "approve", None)
                .await
                .problem(403, "self_approval");
        }
        assert_eq!(world.state(&call).await["state"], "parked");
    }
    assert!(
        world
            .entries("kind = 'operator_refused' AND reasons = '{self_approval}'")
            .await
            >= 18
    );
    assert_eq!(world.entries("kind = 'approval_vote'").await, 0);
    assert_eq!(world.received("POST /refunds"), 0);
}

#[tokio::test]
async fn a_delegation_lends_what_one_holds_until_it_ends() {
    let operators = "  tia: { roles: [auditor] }\n  tom: { roles: [auditor] }\n";
    let world = start(setup(TIER, operators), &["tia", "tom"]).await;
    let run = world.run().await;
    let (call, approval) = world.parked(Some(&run), 25_000).await;
    world
        .decide("tia", &approval, "approve")
        .await
        .problem(403, "denied_by_policy");
    let wrong = [
        json!({"to": "tia", "roles": ["finance"], "reason": "no end"}),
        lending("tia", -1),
        lending("tia", 31 * 86_400),
        lending("ada", 60),
        lending("nobody", 60),
        {
            let mut none = lending("tia", 60);
            none["roles"] = json!([]);
            none
        },
        {
            let mut not_held = lending("tia", 60);
            not_held["roles"] = json!(["auditor"]);
            not_held
        },
        {
            let mut not_held = lending("tia", 60);
            not_held["tiers"] = json!(["nowhere"]);
            not_held
        },
    ];
    for body in wrong {
        let answer = delegate(&world, "ada", body.clone()).await;
        assert_eq!(answer.status, 400, "{body} {}", answer.body);
    }
    let id = lend(&world, "ada", "tia").await;
    // What was lent cannot be lent on.
    delegate(&world, "tia", lending("tom", 60))
        .await
        .problem(400, "malformed_body");
    let listed = send(world.operator("tia", Method::GET, "/v1/delegations"))
        .await
        .expect(200);
    assert_eq!(listed.body["data"].as_array().unwrap().len(), 1);
    assert_eq!(listed.body["data"][0]["from"], "ada");
    assert_eq!(listed.body["data"][0]["in_force"], true);
    let mine = send(world.operator("tia", Method::GET, "/v1/approvals?mine=true"))
        .await
        .expect(200);
    assert_eq!(mine.body["data"][0]["approval"], json!(approval));
    world.decide("tia", &approval, "approve").await.expect(200);
    let shown = world.shown("bob", &approval).await;
    assert_eq!(shown["votes"][0]["operator"], "tia");
    assert_eq!(shown["votes"][0]["for"], "ada");
    let voted = world
        .audit("SELECT operator, on_authority_of, seats::text FROM audit.votes")
        .await;
    assert_eq!(voted.len(), 1);
    assert_eq!(voted[0].get::<String, _>(0), "tia");
    assert_eq!(voted[0].get::<String, _>(1), "ada");
    assert!(voted[0].get::<String, _>(2).contains(&id));
    // Wherever votes are shown, it stands there on whose right.
    for view in ["audit.approvals", "audit.calls"] {
        let rows = world
            .audit(&format!(
                "SELECT votes FROM {view} WHERE approval_id = '{approval}'"
            ))
            .await;
        let votes: Value = rows[0].get(0);
        assert_eq!(
            (&votes[0]["operator"], &votes[0]["on_authority_of"]),
            (&json!("tia"), &json!("ada")),
            "{view}"
        );
    }
    for (thing, id) in [("approval", &approval), ("call", &call), ("run", &run)] {
        let told = crate::stories::told(&world, &[thing, id]);
        assert!(
            told.contains("tia, on the right of ada, approved"),
            "{told}"
        );
    }
    // Somebody else's business, which tom may not end; the delegate gives it back.
    revoke(&world, "tom", &id)
        .await
        .problem(403, "denied_by_policy");
    revoke(&world, "tia", &id).await.expect(200);
    revoke(&world, "ada", &id).await.problem(409, "conflict");
    let (_, approval) = world.parked(None, 26_000).await;
    vote(&world, "tia", &approval, "approve", None)
        .await
        .problem(403, "denied_by_policy");
    vote(&world, "tia", &approval, "approve", Some("ada"))
        .await
        .problem(403, "denied_by_policy");
    // One that runs out by itself.
    delegate(&world, "bob", lending("tom", 1)).await.expect(201);
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    vote(&world, "tom", &approval, "deny", Some("bob"))
        .await
        .problem(403, "denied_by_policy");
    assert_eq!(world.entries("kind = 'delegation_granted'").await, 2);
    assert_eq!(world.entries("kind = 'delegation_revoked'").await, 1);
    let rows = world
        .audit("SELECT from_operator, to_operator, revoked_by FROM audit.delegations ORDER BY granted_at")
        .await;
    assert_eq!(rows[0].get::<String, _>(2), "tia");
    assert_eq!(rows[1].get::<Option<String>, _>(2), None);
}

#[tokio::test]
async fn lending_is_a_right_of_its_own() {
    let setup = setup(TIER, "  tia: { roles: [auditor] }\n").policy(
        "operators.cedar",
        "",
        r#"
@id("bob-keeps-his")
forbid (principal == Operator::"bob", action == Action::"delegate", resource);
@id("tia-never")
forbid (principal == Operator::"tia", action == Action::"approve", resource);
"#,
    );
    let world = start(setup, &["tia"]).await;
    delegate(&world, "bob", lending("tia", 60))
        .await
        .problem(403, "denied_by_policy");
    assert_eq!(
        world.entries("kind = 'operator_refused' AND operator = 'bob' AND detail ->> 'action' = 'delegate'").await,
        1
    );
    // A forbid on the delegate holds, whatever was lent.
    lend(&world, "ada", "tia").await;
    let (_, approval) = world.parked(None, 25_000).await;
    let refused = vote(&world, "tia", &approval, "approve", None)
        .await
        .problem(403, "denied_by_policy");
    assert_eq!(refused.body["policies"], json!(["tia-never"]));
    vote(&world, "tia", &approval, "deny", None)
        .await
        .expect(200);
}

#[tokio::test]
async fn one_authority_counts_once_through_however_many_people() {
    let finance = "requires: [{ role: finance, approvals: 2 }]\n    expires_in_seconds: 3600";
    let operators = "  tia: { roles: [auditor] }\n  tom: { roles: [auditor] }\n";
    let world = start(setup(finance, operators), &["tia", "tom"]).await;
    lend(&world, "ada", "tia").await;
    lend(&world, "ada", "tom").await;
    lend(&world, "bob", "tom").await;
    let (call, approval) = world.parked(None, 25_000).await;
    for who in ["ada", "tia"] {
        let counted = vote(&world, who, &approval, "approve", None)
            .await
            .expect(200);
        assert_eq!(counted.body["state"], "pending", "{who}");
    }
    // Tom must say whose.
    let asked = vote(&world, "tom", &approval, "approve", None)
        .await
        .problem(409, "conflict");
    assert!(asked.body["detail"].as_str().unwrap().contains("ada, bob"));
    let last = vote(&world, "tom", &approval, "approve", Some("bob"))
        .await
        .expect(200);
    assert_eq!(last.body["state"], "approved");
    assert_eq!(world.ended(&call).await["state"], "completed");
    assert_eq!(world.received("POST /refunds"), 1);
}

const CHIEFS: &str = "\ntiers:\n  chiefs:\n    requires: [{ role: chief, approvals: 1 }]\n    expires_in_seconds: 3600\n";

fn escalating(after_seconds: u32) -> Setup {
    let finance = format!(
        "requires: [{{ role: finance, approvals: 1 }}]\n    escalates: {{ to: chiefs, after_seconds: {after_seconds} }}\n    expires_in_seconds: 3600"
    );
    setup(
        &finance,
        "  cho: { roles: [chief, auditor] }\n  chi: { roles: [chief, auditor] }\n",
    )
    .config("\ntiers:\n", CHIEFS)
}

#[tokio::test]
async fn after_its_time_a_call_is_open_to_the_people_of_the_next_tier() {
    let world = start(escalating(8), &["cho"]).await;
    let (call, approval) = world.parked(None, 25_000).await;
    let early = vote(&world, "cho", &approval, "approve", None)
        .await
        .problem(403, "denied_by_policy");
    assert!(
        early.body["detail"]
            .as_str()
            .unwrap()
            .contains("not been opened")
    );
    vote(&world, "cho", &approval, "deny", None)
        .await
        .problem(403, "denied_by_policy");
    let mine = send(world.operator("cho", Method::GET, "/v1/approvals?mine=true"))
        .await
        .expect(200);
    assert_eq!(mine.body["data"], json!([]));
    let shown = world.shown("cho", &approval).await;
    assert_eq!(shown["needs"][0]["escalations"][0]["to"], "chiefs");
    assert_eq!(
        shown["needs"][0]["escalations"][0]["escalated_at"],
        Value::Null
    );
    until_due(&shown).await;
    let last = vote(&world, "cho", &approval, "approve", None)
        .await
        .expect(200);
    assert_eq!(last.body["state"], "approved");
    assert_eq!(world.ended(&call).await["state"], "completed");
    // By a vote or by the worker, and once.
    let told = "kind = 'approval_escalated' AND detail ->> 'tier' = 'finance' AND detail ->> 'to' = 'chiefs'";
    assert_eq!(world.entries(told).await, 1);
    let (_, other) = world.parked(None, 26_000).await;
    until_due(&world.shown("cho", &other).await).await;
    // Nobody votes: the worker comes by every second.
    for _ in 0..100 {
        if world.entries(told).await == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let shown = world.shown("cho", &other).await;
    assert_ne!(
        shown["needs"][0]["escalations"][0]["escalated_at"],
        Value::Null
    );
    assert_eq!(world.entries(told).await, 2);
    world.decide("ada", &other, "approve").await.expect(200);
}

fn due(shown: &Value) -> clock::Timestamp {
    serde_json::from_value(shown["needs"][0]["escalations"][0]["escalates_at"].clone()).unwrap()
}

/// Until an approval is to be opened to the next tier.
async fn until_due(shown: &Value) {
    let wait = due(shown) - clock::now() + chrono::TimeDelta::milliseconds(50);
    tokio::time::sleep(wait.to_std().unwrap_or_default()).await;
}

#[tokio::test]
async fn a_halt_stops_the_time_until_the_escalation() {
    let world = start(escalating(8), &["cho"]).await;
    let (_, approval) = world.parked(None, 25_000).await;
    let before = due(&world.shown("cho", &approval).await);
    let halt = world
        .halt(json!({"kind": "tool", "id": "desk.refunds.create"}))
        .await;
    // Beyond its first time, and so for at least two seconds more.
    let wait = before - clock::now() + chrono::TimeDelta::seconds(1);
    tokio::time::sleep(wait.to_std().unwrap()).await;
    assert_eq!(world.entries("kind = 'approval_escalated'").await, 0);
    world.resume(&halt).await;
    let shown = world.shown("cho", &approval).await;
    assert!(
        due(&shown) > before + chrono::TimeDelta::seconds(1),
        "{shown}"
    );
    assert_eq!(world.entries("kind = 'approval_escalated'").await, 0);
    until_due(&shown).await;
    vote(&world, "cho", &approval, "approve", None)
        .await
        .expect(200);
    assert_eq!(world.entries("kind = 'approval_escalated'").await, 1);
}
