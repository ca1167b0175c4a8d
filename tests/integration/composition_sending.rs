//! What is asked again in the moment in which an approved call would be sent.

use std::time::Duration;

use sqlx::AssertSqlSafe;
use toolgate::ids::KillSwitchId;

use crate::{
    composition::{TIER, lend, revoke, setup, start, vote},
    support::World,
};

/// Keeps an approved call from being sent, as another gateway's halt would: in the table, and not in this process's memory.
pub async fn halt_elsewhere(world: &World) -> String {
    let id = KillSwitchId::generate().to_string();
    let mut gateway = world.connect("toolgate_gateway").await;
    sqlx::query(
        "INSERT INTO toolgate.kill_switches (kill_switch_id, kind, target, reason, operator, pulled_at)
         VALUES ($1, 'tool', 'desk.refunds.create', 'elsewhere', 'bob', now())",
    )
    .bind(&id)
    .execute(&mut gateway)
    .await
    .unwrap();
    id
}

async fn release_elsewhere(world: &World, id: &str) {
    let mut gateway = world.connect("toolgate_gateway").await;
    sqlx::query(
        "UPDATE toolgate.kill_switches SET released_at = now(), released_by = 'bob' WHERE kill_switch_id = $1",
    )
    .bind(id)
    .execute(&mut gateway)
    .await
    .unwrap();
}

#[tokio::test]
async fn a_halt_that_only_the_database_knows_holds_an_approved_call_and_its_end_sends_it_once() {
    let world = World::shipped().await;
    let (call, approval) = world.parked(None, 25_000).await;
    let halt = halt_elsewhere(&world).await;
    let vote = world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(vote.body["state"], "approved");
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(world.received("POST /refunds"), 0);
    assert_eq!(world.state(&call).await["executed"], false);
    release_elsewhere(&world, &halt).await;
    assert_eq!(world.ended(&call).await["state"], "completed");
    assert_eq!(world.received("POST /refunds"), 1);
    let intents = format!("kind = 'intent' AND call_id = '{call}'");
    assert_eq!(world.entries(&intents).await, 1);
}

#[tokio::test]
async fn whoever_no_longer_holds_the_role_or_is_gone_does_not_count_when_the_call_would_be_sent() {
    let fin = "  fin: { roles: [finance] }\n  tia: { roles: [auditor] }\n";
    let world = start(setup(TIER, fin), &["fin", "tia"]).await;
    let lent = lend(&world, "bob", "tia").await;
    let halted = world.parked(None, 24_000).await;
    let by_ada = world.parked(None, 25_000).await;
    let by_fin = world.parked(None, 26_000).await;
    let by_tia = world.parked(None, 27_000).await;
    let by_bob = world.parked(None, 28_000).await;
    let halt = halt_elsewhere(&world).await;
    for (who, (_, approval)) in [
        ("ada", &by_ada),
        ("fin", &by_fin),
        ("tia", &by_tia),
        ("bob", &by_bob),
    ] {
        let answer = vote(&world, who, approval, "approve", None)
            .await
            .expect(200);
        assert_eq!(answer.body["state"], "approved", "{who}");
    }
    revoke(&world, "bob", &lent).await.expect(200);
    let world = world
        .restart(|setup| {
            setup.config("  fin: { roles: [finance] }\n", "").config(
                "ada:\n    roles: [finance, security",
                "ada:\n    roles: [security",
            )
        })
        .await;
    assert_eq!(world.received("POST /refunds"), 0);
    world.resume(&halt).await;
    for (call, approval) in [&by_ada, &by_fin, &by_tia] {
        let state = world.ended(call).await;
        assert_eq!(state["state"], "voided", "{state}");
        assert_eq!(state["executed"], false);
        assert_eq!(state["code"], "approval_voided");
        let shown = world.shown("bob", approval).await;
        assert!(
            shown["explanation"]
                .as_str()
                .unwrap()
                .contains("no longer hold"),
            "approvers are told too: {shown}"
        );
    }
    assert_eq!(world.ended(&by_bob.0).await["state"], "completed");
    assert_eq!(world.state(&halted.0).await["state"], "parked");
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test]
async fn an_approved_call_that_waits_longer_than_its_time_is_not_sent() {
    let finance = "requires: [{ role: finance, approvals: 1 }]\n    expires_in_seconds: 2";
    let world = setup(finance, "").start().await;
    let (call, approval) = world.parked(None, 25_000).await;
    let halt = halt_elsewhere(&world).await;
    let vote = world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(vote.body["state"], "approved");
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    release_elsewhere(&world, &halt).await;
    let state = world.ended(&call).await;
    assert_eq!(state["state"], "expired", "{state}");
    assert_eq!(state["executed"], false);
    assert_eq!(world.received("POST /refunds"), 0);
    assert_eq!(world.shown("ada", &approval).await["state"], "expired");
}

#[tokio::test]
async fn what_was_changed_behind_the_gateways_back_is_not_sent() {
    let world = World::shipped().await;
    let mut owner = world.connect("superuser").await;
    for (amount, change) in [
        (25_000, "UPDATE toolgate.votes SET seats = '[]'"),
        (26_000, "UPDATE toolgate.votes SET vote = 'deny'"),
        // Somebody's right without anybody who lent it.
        (29_000, "UPDATE toolgate.votes SET authority = 'bob'"),
        (
            30_000,
            "UPDATE toolgate.votes SET authority = 'bob', operator = 'grace'",
        ),
        (
            27_000,
            "UPDATE toolgate.approval_tiers SET requires = '[{\"role\": \"finance\", \"approvals\": 2}]', needed = 2",
        ),
        (28_000, "UPDATE toolgate.approvals SET digest = 'another'"),
    ] {
        let (call, approval) = world.parked(None, amount).await;
        let halt = halt_elsewhere(&world).await;
        world.decide("ada", &approval, "approve").await.expect(200);
        let change = format!("{change} WHERE approval_id = '{approval}'");
        sqlx::query(AssertSqlSafe(change.clone()))
            .execute(&mut owner)
            .await
            .unwrap();
        release_elsewhere(&world, &halt).await;
        assert_eq!(world.ended(&call).await["state"], "voided", "{change}");
    }
    assert_eq!(world.received("POST /refunds"), 0);
}
