//! What a vote rests on, part by part: each may be missing when the vote is cast, go between two looks at it, or be gone when the
//! call would be sent. Where everything else holds, that one part alone decides.

use std::time::Duration;

use serde_json::json;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection};
use toolgate::{
    ids::{CallId, KillSwitchId},
    store::{self, composition::Claim},
};

use crate::{
    composition::{TIER, delegate, lend, lending, setup, start, vote},
    composition_sending::halt_elsewhere,
    support::{World, options},
};

const TIA: &str = "  tia: { roles: [auditor] }\n";

#[tokio::test]
async fn who_has_come_to_answer_for_the_agent_does_not_count_when_the_call_would_be_sent() {
    // The one who voted, and the one on whose right.
    for owner in ["tia", "bob"] {
        let world = start(setup(TIER, TIA), &["tia"]).await;
        lend(&world, "bob", "tia").await;
        let (call, approval) = world.parked(None, 25_000).await;
        let (other, others) = world.parked(None, 26_000).await;
        let halt = halt_elsewhere(&world).await;
        for (who, approval) in [("tia", &approval), ("ada", &others)] {
            let voted = vote(&world, who, approval, "approve", None)
                .await
                .expect(200);
            assert_eq!(voted.body["state"], "approved");
        }
        let world = world
            .restart(|setup| {
                setup.config(
                    "owner: grace\n    groups: [support]",
                    &format!("owner: {owner}\n    groups: [support]"),
                )
            })
            .await;
        world.resume(&halt).await;
        let state = world.ended(&call).await;
        assert_eq!(state["state"], "voided", "{owner}: {state}");
        assert_eq!(world.ended(&other).await["state"], "completed");
        assert_eq!(world.received("POST /refunds"), 1);
    }
}

#[tokio::test]
async fn who_answered_for_the_agent_when_it_asked_has_no_say_afterwards_either() {
    let setup = setup(TIER, TIA).config("roles: [auditor]\n", "roles: [auditor, finance]\n");
    let world = start(setup, &["tia"]).await;
    let (_, approval) = world.parked(None, 25_000).await;
    let mut world = world
        .restart(|setup| {
            setup.config(
                "owner: grace\n    groups: [support]",
                "owner: bob\n    groups: [support]",
            )
        })
        .await;
    world.key(toolgate::keys::KeyKind::Operator, "grace").await;
    // Then, and now.
    for who in ["grace", "bob"] {
        for verb in ["approve", "deny"] {
            vote(&world, who, &approval, verb, None)
                .await
                .problem(403, "self_approval");
        }
    }
    vote(&world, "ada", &approval, "approve", None)
        .await
        .expect(200);
}

#[tokio::test]
async fn what_policies_and_config_say_then_is_what_votes_are_worth() {
    let operators =
        "  tia: { roles: [auditor] }\n  tom: { roles: [auditor] }\n  fay: { roles: [finance] }\n";
    let world = start(setup(TIER, operators), &["tia", "tom", "fay"]).await;
    lend(&world, "bob", "tia").await;
    lend(&world, "bob", "tom").await;
    let mut calls = Vec::new();
    for (at, who) in ["ada", "tia", "tom", "fay", "bob"].into_iter().enumerate() {
        let amount = 25_000 + u32::try_from(at).unwrap();
        let (call, approval) = world.parked(None, amount).await;
        calls.push((who, call, approval));
    }
    let halt = halt_elsewhere(&world).await;
    for (who, _, approval) in &calls {
        vote(&world, who, approval, "approve", None)
            .await
            .expect(200);
    }
    let world = world
        .restart(|setup| {
            setup
                // Whoever only lent their voice is gone; whose right it was is as before.
                .config("  tom: { roles: [auditor] }\n", "")
                .policy(
                    "operators.cedar",
                    "",
                    r#"
@id("ada-no-more")
forbid (principal == Operator::"ada", action == Action::"approve", resource);
@id("tia-no-more")
forbid (principal == Operator::"tia", action == Action::"approve", resource);
@id("fay-all-the-same")
permit (principal == Operator::"fay", action == Action::"approve", resource);
"#,
                )
                // The policies let her speak, and the tier does not ask for her.
                .config(
                    "  fay: { roles: [finance] }\n",
                    "  fay: { roles: [auditor] }\n",
                )
        })
        .await;
    world.resume(&halt).await;
    for (who, call, _) in &calls {
        let state = world.ended(call).await["state"].clone();
        let expected = if *who == "bob" { "completed" } else { "voided" };
        assert_eq!(state, expected, "{who}");
    }
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test]
async fn a_group_is_no_role_of_the_same_name() {
    let finance = "requires: [{ role: finance, approvals: 1 }, { group: finance, approvals: 1 }]\n    expires_in_seconds: 3600";
    let operators = "  tia: { roles: [auditor], groups: [finance] }\n  eve: { roles: [auditor] }\n";
    let setup = setup(finance, operators).policy(
        "operators.cedar",
        "",
        r#"
@id("eve-may-speak")
permit (principal == Operator::"eve", action == Action::"approve", resource);
"#,
    );
    let world = start(setup, &["tia", "eve"]).await;
    let (call, approval) = world.parked(None, 25_000).await;
    // Who may speak by the policies and is nothing that the tier asks for.
    let refused = vote(&world, "eve", &approval, "approve", None)
        .await
        .problem(403, "denied_by_policy");
    let detail = refused.body["detail"].as_str().unwrap();
    assert!(detail.contains("hold none of the roles"), "{detail}");
    for who in ["ada", "bob"] {
        let counted = vote(&world, who, &approval, "approve", None)
            .await
            .expect(200);
        assert_eq!(counted.body["state"], "pending", "{who}");
    }
    let last = vote(&world, "tia", &approval, "approve", None)
        .await
        .expect(200);
    assert_eq!(last.body["state"], "approved");
    assert_eq!(world.ended(&call).await["state"], "completed");
}

#[tokio::test]
async fn only_what_was_lent_is_lent_and_only_while_it_is_held() {
    let operators = "  tia: { roles: [auditor] }\n  tom: { roles: [auditor] }\n  una: { roles: [auditor] }\n  uma: { roles: [auditor] }\n  len: { roles: [finance], groups: [finance] }\n  lou: { roles: [finance] }\n  max: { roles: [finance] }\n";
    let setup = setup(TIER, operators).policy(
        "operators.cedar",
        "",
        r#"
@id("lou-may-speak")
permit (principal == Operator::"lou", action == Action::"approve", resource);
@id("max-never")
forbid (principal == Operator::"max", action == Action::"approve", resource);
"#,
    );
    let delegates = ["tia", "tom", "una", "uma"];
    let mut world = start(setup, &["len", "lou", "max"]).await;
    let lent = |to: &str, what: &str, name: &str| {
        let mut body = lending(to, 3_600);
        body.as_object_mut().unwrap().remove("roles");
        body[what] = json!([name]);
        body
    };
    for (from, body) in [
        // Another role; the right one comes from somebody else.
        ("ada", lent("tia", "roles", "security")),
        ("bob", lent("tia", "roles", "finance")),
        // A group of the same name.
        ("len", lent("tom", "groups", "finance")),
        // What will not be held any more.
        ("lou", lent("una", "roles", "finance")),
        // What the lender may not use.
        ("max", lent("uma", "roles", "finance")),
    ] {
        delegate(&world, from, body).await.expect(201);
    }
    let (_, approval) = world.parked(None, 25_000).await;
    world = world
        .restart(|setup| setup.config("lou: { roles: [finance] }", "lou: { roles: [auditor] }"))
        .await;
    let names = delegates.map(str::to_owned);
    world.keys(toolgate::keys::KeyKind::Operator, &names).await;
    for (who, authority) in [
        ("tia", "ada"),
        ("tom", "len"),
        ("una", "lou"),
        ("uma", "max"),
    ] {
        for named in [None, Some(authority)] {
            if who == "tia" && named.is_none() {
                continue;
            }
            let refused = vote(&world, who, &approval, "approve", named).await;
            assert_eq!(
                (refused.status, refused.code()),
                (403, "denied_by_policy"),
                "{who} for {authority}: {}",
                refused.body
            );
        }
    }
    assert_eq!(world.entries("kind = 'approval_vote'").await, 0);
    let last = vote(&world, "tia", &approval, "approve", Some("bob"))
        .await
        .expect(200);
    assert_eq!(last.body["state"], "approved");
}

/// Votes while somebody else has the row, changes what the vote rests on meanwhile, and lets go.
async fn meanwhile(
    world: &World,
    (who, verb): (&str, &str),
    approval: &str,
    change: &str,
) -> crate::support::Answer {
    let mut other = world.connect("superuser").await;
    let mut held = other.begin().await.unwrap();
    held.execute(AssertSqlSafe(format!(
        "SELECT FROM toolgate.approvals WHERE approval_id = '{approval}' FOR UPDATE"
    )))
    .await
    .unwrap();
    let digest = world.shown("ada", approval).await["digest"].clone();
    let path = format!("/v1/approvals/{approval}/{verb}");
    let request = world
        .operator(who, reqwest::Method::POST, &path)
        .json(&json!({"digest": digest, "reason": "test"}));
    let voting = tokio::spawn(crate::support::send(request));
    let mut superuser = world.connect("superuser").await;
    for _ in 0..250 {
        let waits: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT FROM pg_stat_activity
                            WHERE datname = current_database() AND wait_event_type = 'Lock')",
        )
        .fetch_one(&mut superuser)
        .await
        .unwrap();
        if waits {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    held.execute(AssertSqlSafe(change.to_owned()))
        .await
        .unwrap();
    held.commit().await.unwrap();
    voting.await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_vote_rests_on_is_looked_at_in_the_transaction_that_counts_it() {
    let two =
        "requires: [{ role: finance, approvals: 2 }]\n    denials: 2\n    expires_in_seconds: 3600";
    let world = start(setup(two, TIA), &["tia"]).await;
    let lent = lend(&world, "bob", "tia").await;
    let of = |approval: &str, set: &str| {
        format!("UPDATE toolgate.approvals SET {set} WHERE approval_id = '{approval}'")
    };
    let cases = [
        ("tia", "approve", "", (403, "denied_by_policy")),
        ("tia", "deny", "", (403, "denied_by_policy")),
        ("ada", "approve", "frozen_at = now()", (503, "halted")),
        (
            "ada",
            "deny",
            "expires_at = now() - interval '1 second'",
            (403, "approval_expired"),
        ),
        (
            "ada",
            "approve",
            "expires_at = now() - interval '1 second'",
            (403, "approval_expired"),
        ),
        (
            "ada",
            "approve",
            "state = 'voided', decided_at = now()",
            (409, "conflict"),
        ),
        (
            "ada",
            "deny",
            "state = 'voided', decided_at = now()",
            (409, "conflict"),
        ),
        (
            "ada",
            "approve",
            "digest = 'another'",
            (409, "stale_digest"),
        ),
        ("ada", "deny", "digest = 'another'", (409, "stale_digest")),
    ];
    let mut superuser = world.connect("superuser").await;
    for (at, (who, verb, set, (status, code))) in cases.into_iter().enumerate() {
        let amount = 25_000 + u32::try_from(at).unwrap();
        let (_, approval) = world.parked(None, amount).await;
        let change = if set.is_empty() {
            format!(
                "UPDATE toolgate.delegations SET revoked_at = now(), revoked_by = 'bob' WHERE delegation_id = '{lent}'"
            )
        } else {
            of(&approval, set)
        };
        let answer = meanwhile(&world, (who, verb), &approval, &change).await;
        assert_eq!(
            (answer.status, answer.code()),
            (status, code),
            "{who} {verb} {set}: {}",
            answer.body
        );
        let votes: i64 =
            sqlx::query_scalar("SELECT count(*) FROM toolgate.votes WHERE approval_id = $1")
                .bind(&approval)
                .fetch_one(&mut superuser)
                .await
                .unwrap();
        assert_eq!(votes, 0, "{who} {verb} {set}");
        // In force again for the next one.
        superuser
            .execute("UPDATE toolgate.delegations SET revoked_at = NULL, revoked_by = NULL")
            .await
            .unwrap();
    }
    assert_eq!(world.entries("kind = 'approval_vote'").await, 0);
}

/// Whether the gateway may begin the call, and whether an operator may do it by hand.
async fn may(connection: &mut PgConnection, claim: &Claim<'_>, while_halted: bool) -> (bool, bool) {
    let mut inner = connection.begin().await.unwrap();
    let by_hand = store::composition::may_be_done(&mut inner, claim, while_halted)
        .await
        .unwrap();
    let sent = store::composition::claim(&mut inner, claim).await.unwrap();
    inner.rollback().await.unwrap();
    (sent, by_hand)
}

#[tokio::test]
async fn a_claim_names_everything_that_must_still_hold() {
    let world = World::shipped().await;
    let (call, approval) = world.parked(None, 25_000).await;
    halt_elsewhere(&world).await;
    vote(&world, "ada", &approval, "approve", None)
        .await
        .expect(200);
    let database = world.database.clone();
    world.gateway.stop().await;
    let mut owner = PgConnection::connect_with(&options("superuser", &database))
        .await
        .unwrap();
    owner
        .execute("UPDATE toolgate.kill_switches SET released_at = now(), released_by = 'bob'")
        .await
        .unwrap();
    let id: CallId = call.parse().unwrap();
    let row = store::calls::find(&mut owner, &call)
        .await
        .unwrap()
        .unwrap();
    let claim = Claim {
        call: &id,
        digest: &row.digest,
        approved_digest: &row.digest,
        contract_digest: &row.contract_digest,
        api: "desk",
        tool: &row.tool,
        consequence: "money_movement",
        agent: &row.agent,
        run: &row.run_id,
    };
    assert_eq!(may(&mut owner, &claim, false).await, (true, true));
    let of_call = format!("WHERE call_id = '{call}'");
    let halt = |kind: &str, target: &str| {
        let target = if target.is_empty() {
            "NULL".to_owned()
        } else {
            format!("'{target}'")
        };
        format!(
            "INSERT INTO toolgate.kill_switches (kill_switch_id, kind, target, reason, operator, pulled_at)
             VALUES ('{}', '{kind}', {target}, 'elsewhere', 'bob', now())",
            KillSwitchId::generate()
        )
    };
    let work = |state: &str| {
        let more = match state {
            "claimed" => {
                "claimed_by = 'ada', claimed_at = now(), lease_until = now() + interval '1 hour'"
            }
            "resolved" => {
                "found = 'executed', evidence = 'x', note = 'x', resolved_by = 'ada', resolved_at = now()"
            }
            _ => "kind = 'manual'",
        };
        format!(
            "INSERT INTO toolgate.work (call_id, kind, because, state) VALUES ('{call}', 'manual', 'halted', 'open');
             UPDATE toolgate.work SET state = '{state}', {more} {of_call}"
        )
    };
    // The change, whether the gateway may, and whether hands may: without and with a tool that people do while it is halted.
    let cases: Vec<(String, (bool, bool, bool))> = vec![
        (
            format!("UPDATE toolgate.calls SET digest = 'x' {of_call}"),
            (false, false, false),
        ),
        (
            format!("UPDATE toolgate.calls SET contract_digest = 'x' {of_call}"),
            (false, false, false),
        ),
        (
            format!("UPDATE toolgate.calls SET state = 'parked' {of_call}"),
            (false, false, false),
        ),
        (
            format!("UPDATE toolgate.calls SET state = 'executing' {of_call}"),
            (false, false, false),
        ),
        (
            format!("UPDATE toolgate.calls SET state = 'by_hand' {of_call}"),
            (false, false, false),
        ),
        (
            format!("UPDATE toolgate.approvals SET digest = 'x' {of_call}"),
            (false, false, false),
        ),
        (
            format!("UPDATE toolgate.approvals SET state = 'pending', decided_at = NULL {of_call}"),
            (false, false, false),
        ),
        (
            format!("UPDATE toolgate.approvals SET state = 'denied' {of_call}"),
            (false, false, false),
        ),
        (
            format!(
                "UPDATE toolgate.approvals SET created_at = now() - interval '2 hours', decided_at = now() - interval '61 minutes', expires_at = now() - interval '1 hour' {of_call}"
            ),
            (false, false, false),
        ),
        // As long again as it had to be approved, it has to be begun.
        (
            format!(
                "UPDATE toolgate.approvals SET created_at = now() - interval '2 hours', decided_at = now() - interval '59 minutes', expires_at = now() - interval '1 hour' {of_call}"
            ),
            (true, true, true),
        ),
        (
            format!(
                "DELETE FROM toolgate.approval_escalations; DELETE FROM toolgate.votes; DELETE FROM toolgate.approval_tiers; DELETE FROM toolgate.approvals {of_call}"
            ),
            (false, true, true),
        ),
        (work("open"), (true, true, true)),
        (work("claimed"), (false, true, true)),
        (work("resolved"), (false, true, true)),
        (halt("everything", ""), (false, false, true)),
        (halt("api", "desk"), (false, false, true)),
        (halt("tool", &row.tool), (false, false, true)),
        (halt("consequence", "money_movement"), (false, false, true)),
        (halt("agent", &row.agent), (false, false, false)),
        (halt("run", &row.run_id), (false, false, false)),
        (halt("api", "etcd"), (true, true, true)),
        (halt("tool", "desk.mail.send"), (true, true, true)),
        (halt("agent", "platform-bot"), (true, true, true)),
    ];
    for (change, (sent, by_hand, by_hand_while_halted)) in cases {
        let mut changed = owner.begin().await.unwrap();
        changed
            .execute(AssertSqlSafe(change.clone()))
            .await
            .unwrap();
        assert_eq!(
            may(&mut changed, &claim, false).await,
            (sent, by_hand),
            "{change}"
        );
        assert_eq!(
            may(&mut changed, &claim, true).await,
            (sent, by_hand_while_halted),
            "{change}"
        );
        changed.rollback().await.unwrap();
    }
    // And once.
    assert!(store::composition::claim(&mut owner, &claim).await.unwrap());
    assert!(!store::composition::claim(&mut owner, &claim).await.unwrap());
}
