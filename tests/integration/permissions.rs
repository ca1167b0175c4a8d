//! Approving ahead: exactly so many calls, exactly such calls, no longer than was given, and never past what holds for an
//! approval.

use std::time::Duration;

use futures::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row as _;
use toolgate::{keys::KeyKind, store};

use crate::{
    composition::{lend, revoke as revoke_delegation},
    lines::{FINANCE, decide, keyed, pending},
    support::{Answer, Setup, World, send},
};

pub const ALLOWED: &str = "requires: [{ role: finance, approvals: 1 }]\n    standing_permissions: { max_calls: 200, max_seconds: 600 }\n    expires_in_seconds: 3600";
const BY_TWO: &str = "requires: [{ role: finance, approvals: 2 }]\n    standing_permissions: { max_calls: 10, max_seconds: 600 }\n    expires_in_seconds: 3600";

fn setup() -> Setup {
    Setup::shipped().config(FINANCE, ALLOWED)
}

/// A run, and a permission for the next calls of 250 euros in it.
async fn permitted(world: &World, calls: u32, seconds: u32) -> (String, String) {
    let run = world.run().await;
    let answer = keyed(world, Some(&run), 25_000, "first")
        .await
        .problem(403, "approval_required");
    let approval = answer.body["approval"].as_str().unwrap();
    let next = json!({"next": {"calls": calls, "seconds": seconds}});
    let decided = decide(world, "ada", approval, "approve", next)
        .await
        .expect(200);
    let permission = decided.body["permission"].as_str().unwrap().to_owned();
    world.ended(answer.body["call"].as_str().unwrap()).await;
    (run, permission)
}

async fn shown(world: &World, permission: &str) -> Value {
    let path = format!("/v1/permissions/{permission}");
    send(world.operator("bob", Method::GET, &path))
        .await
        .expect(200)
        .body
}

async fn revoke(world: &World, who: &str, permission: &str) -> Answer {
    let path = format!("/v1/permissions/{permission}");
    let body = json!({"reason": "enough"});
    send(world.operator(who, Method::DELETE, &path).json(&body)).await
}

#[tokio::test]
async fn so_many_identical_calls_go_at_once_and_the_next_one_waits() {
    let world = setup().start().await;
    let (run, permission) = permitted(&world, 2, 600).await;
    for key in ["k1", "k2"] {
        let answer = keyed(&world, Some(&run), 25_000, key).await.expect(201);
        let call = answer.header("toolgate-call").to_owned();
        // Parked like every such call, and approved by name.
        let row = world.call_row(&call).await;
        assert_eq!(row["decision"], "park");
        assert_eq!(row["outcome"], "completed");
        let shown = world
            .shown("ada", row["approval_id"].as_str().unwrap())
            .await;
        assert_eq!(shown["permission"], json!(permission));
        assert_eq!(shown["state"], "approved");
        assert_eq!(shown["votes"][0]["operator"], "ada");
        assert_eq!(
            shown["votes"][0]["next"],
            json!({"calls": 2, "seconds": 600})
        );
        // The same request is answered as before, and uses nothing.
        keyed(&world, Some(&run), 25_000, key).await.expect(201);
    }
    keyed(&world, Some(&run), 25_000, "k3")
        .await
        .problem(403, "approval_required");
    assert_eq!(world.received("POST /refunds"), 3);

    let shown = shown(&world, &permission).await;
    assert_eq!(shown["left"], 0);
    assert_eq!(shown["in_force"], false);
    assert_eq!(shown["given_by"], json!(["ada"]));
    let listed = send(world.operator("bob", Method::GET, &format!("/v1/permissions?run={run}")))
        .await
        .expect(200);
    assert_eq!(listed.body["data"], json!([shown]));
    let listed = send(world.operator("bob", Method::GET, "/v1/permissions?in_force=true"))
        .await
        .expect(200);
    assert_eq!(listed.body["data"], json!([]));
    let row = &world.audit("SELECT * FROM audit.permissions").await[0];
    assert_eq!(row.get::<String, _>("permission"), permission);
    assert_eq!(row.get::<i64, _>("used"), 2);
    assert_eq!(
        row.get::<Value, _>("used_by").as_array().map(Vec::len),
        Some(2)
    );
    let used = world
        .audit("SELECT detail FROM audit.entries WHERE kind = 'permission_used' ORDER BY seq")
        .await;
    let left: Vec<Value> = used
        .iter()
        .map(|row| row.get::<Value, _>("detail")["left"].clone())
        .collect();
    assert_eq!(left, [json!(1), json!(0)]);

    // Nobody was told that these waited.
    let mut owner = world.connect("toolgate_owner").await;
    let told: Vec<(String, i64)> =
        sqlx::query_as("SELECT type, count(*) FROM toolgate.outbox GROUP BY type ORDER BY type")
            .fetch_all(&mut owner)
            .await
            .unwrap();
    let told: Vec<(&str, i64)> = told
        .iter()
        .map(|(kind, count)| (kind.as_str(), *count))
        .collect();
    assert_eq!(
        told,
        [
            ("approval.approved", 3),
            ("approval.created", 2),
            ("call.completed", 3)
        ]
    );
}

#[tokio::test]
async fn only_such_calls_in_that_run_and_time() {
    let world = setup().start().await;
    let (run, _) = permitted(&world, 100, 2).await;
    let other = world.run().await;
    for (run, amount, key) in [(&other, 25_000, "other run"), (&run, 25_001, "other sum")] {
        keyed(&world, Some(run), amount, key)
            .await
            .problem(403, "approval_required");
    }
    keyed(&world, Some(&run), 25_000, "in time")
        .await
        .expect(201);
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    keyed(&world, Some(&run), 25_000, "too late")
        .await
        .problem(403, "approval_required");
    assert_eq!(world.received("POST /refunds"), 2);
}

#[tokio::test]
async fn no_further_than_the_tier_allows_and_by_default_not_at_all() {
    let world = setup().start().await;
    let (_, approval) = world.parked(None, 25_000).await;
    assert_eq!(
        world.shown("ada", &approval).await["next_at_most"],
        json!({"calls": 200, "seconds": 600})
    );
    for (verb, next) in [
        ("approve", json!({"calls": 201, "seconds": 600})),
        ("approve", json!({"calls": 200, "seconds": 601})),
        ("approve", json!({"calls": 0, "seconds": 600})),
        ("approve", json!({"calls": 1, "seconds": 0})),
        ("approve", json!({"calls": 1})),
        ("deny", json!({"calls": 1, "seconds": 1})),
    ] {
        decide(&world, "ada", &approval, verb, json!({"next": next}))
            .await
            .problem(400, "malformed_body");
    }
    assert_eq!(world.shown("ada", &approval).await["votes"], json!([]));

    let world = World::shipped().await;
    let (_, approval) = world.parked(None, 25_000).await;
    assert_eq!(
        world.shown("ada", &approval).await["next_at_most"],
        Value::Null
    );
    let next = json!({"next": {"calls": 1, "seconds": 1}});
    decide(&world, "ada", &approval, "approve", next)
        .await
        .problem(400, "malformed_body");
}

#[tokio::test]
async fn every_voter_must_have_given_it_and_the_smallest_holds() {
    let world = Setup::shipped().config(FINANCE, BY_TWO).start().await;
    let run = world.run().await;
    let both = async |key: &str, ada: Value, bob: Value| {
        let answer = keyed(&world, Some(&run), 25_000, key).await.expect(403);
        let approval = answer.body["approval"].as_str().unwrap().to_owned();
        decide(&world, "ada", &approval, "approve", ada)
            .await
            .expect(200);
        let decided = decide(&world, "bob", &approval, "approve", bob)
            .await
            .expect(200);
        world.ended(answer.body["call"].as_str().unwrap()).await;
        decided.body["permission"].clone()
    };
    let next = |calls: u32, seconds: u32| json!({"next": {"calls": calls, "seconds": seconds}});
    assert_eq!(both("a", next(5, 60), json!({})).await, Value::Null);
    assert_eq!(both("b", json!({}), next(5, 60)).await, Value::Null);
    let permission = both("c", next(1, 600), next(5, 60)).await;
    let shown = shown(&world, permission.as_str().unwrap()).await;
    assert_eq!(shown["calls"], 1);
    assert_eq!(shown["given_by"], json!(["ada", "bob"]));
    let lasts = |name: &str| {
        chrono::DateTime::parse_from_rfc3339(shown[name].as_str().unwrap())
            .unwrap()
            .timestamp_millis()
    };
    assert_eq!(lasts("until") - lasts("created_at"), 60_000);
    keyed(&world, Some(&run), 25_000, "d").await.expect(201);
    keyed(&world, Some(&run), 25_000, "e").await.expect(403);
    assert_eq!(world.received("POST /refunds"), 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_hundred_at_once_exactly_five_go() {
    let setup = setup().config(
        "  support-bot:\n    owner: grace\n",
        "  support-bot:\n    max_pending_approvals: 500\n    owner: grace\n",
    );
    let world = setup.start().await;
    let (run, permission) = permitted(&world, 5, 600).await;
    let calls = (0..200).map(|at| {
        let (world, run) = (&world, &run);
        async move { keyed(world, Some(run), 25_000, &format!("k{at}")).await }
    });
    let answers = join_all(calls).await;
    let count = |status: u16| {
        answers
            .iter()
            .filter(|answer| answer.status == status)
            .count()
    };
    assert_eq!((count(201), count(403)), (5, 195));
    assert_eq!(world.received("POST /refunds"), 6);
    assert_eq!(shown(&world, &permission).await["left"], 0);
    let lines = pending(&world).await;
    assert_eq!(lines.len(), 1);
    assert_eq!(lines[0]["calls"], 195);
    let used = "SELECT count(*) FROM audit.entries WHERE kind = 'permission_used'";
    assert_eq!(world.audit(used).await[0].get::<i64, _>(0), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn once_it_is_taken_back_nothing_more_is_begun() {
    let world = setup().start().await;
    let (run, permission) = permitted(&world, 200, 600).await;
    // Six that call one after the other until one must wait, and somebody who takes it back in the midst of it.
    let callers = (0..6).map(|caller| {
        let (world, run) = (&world, &run);
        async move {
            for at in 0..30 {
                let key = format!("k{caller}-{at}");
                let answer = keyed(world, Some(run), 25_000, &key).await;
                if answer.status != 201 {
                    assert!(
                        matches!(answer.code(), "approval_required" | "approval_voided"),
                        "{}",
                        answer.body
                    );
                    return at;
                }
            }
            30
        }
    });
    let revoking = async {
        while world.received("POST /refunds") < 9 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        revoke(&world, "ada", &permission).await.expect(200)
    };
    let (sent, revoked) = futures::future::join(join_all(callers), revoking).await;
    assert_eq!(revoked.body["in_force"], false);
    let sent: u64 = sent.into_iter().sum();
    assert!((8..180).contains(&sent), "{sent}: the race was none");
    assert_eq!(world.received("POST /refunds"), 1 + sent);
    // By the order of the one chain: no intent behind the taking back.
    let late = "SELECT count(*) FROM audit.entries AS i, audit.entries AS r
                WHERE r.kind = 'permission_revoked' AND i.kind = 'intent' AND i.instance_id = r.instance_id AND i.seq > r.seq";
    assert_eq!(world.audit(late).await[0].get::<i64, _>(0), 0);
    revoke(&world, "ada", &permission)
        .await
        .problem(409, "conflict");
    keyed(&world, Some(&run), 25_000, "after")
        .await
        .problem(403, "approval_required");
}

#[tokio::test]
async fn what_it_approved_and_what_was_not_sent_yet_is_voided_when_it_is_taken_back() {
    let mut world = setup()
        .config(
            "\noperators:\n",
            "\noperators:\n  carl: { roles: [finance] }\n",
        )
        .start()
        .await;
    world.key(KeyKind::Operator, "carl").await;
    let (run, permission) = permitted(&world, 5, 600).await;
    // Approved, and held where it cannot be claimed: a row of the claim is locked by somebody else.
    let mut owner = world.connect("toolgate_owner").await;
    sqlx::query(
        "CREATE FUNCTION public.hold() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN IF NEW.state = 'executing' THEN RAISE EXCEPTION 'not now' USING ERRCODE = '57P03'; END IF; RETURN NEW; END $$",
    )
    .execute(&mut owner)
    .await
    .unwrap();
    sqlx::query("CREATE TRIGGER hold BEFORE UPDATE ON toolgate.calls FOR EACH ROW EXECUTE FUNCTION public.hold()")
        .execute(&mut owner)
        .await
        .unwrap();
    let held = tokio::spawn(send(
        world
            .refund(Some(&run), 25_000)
            .header("idempotency-key", "held"),
    ));
    let used = "SELECT call_id FROM audit.entries WHERE kind = 'permission_used'";
    let call = loop {
        if let Some(row) = world.audit(used).await.first() {
            break row.get::<String, _>("call_id");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // Neither a giver nor on call.
    revoke(&world, "carl", &permission)
        .await
        .problem(403, "denied_by_policy");
    loop {
        let answer = revoke(&world, "bob", &permission).await;
        if answer.status == 200 {
            break;
        }
        answer.problem(503, "record_unavailable");
    }
    sqlx::query("DROP TRIGGER hold ON toolgate.calls")
        .execute(&mut owner)
        .await
        .unwrap();
    let ended = world.ended(&call).await;
    assert_eq!(ended["state"], "voided");
    held.await.unwrap().problem(403, "approval_voided");
    assert_eq!(world.received("POST /refunds"), 1);
}

#[tokio::test]
async fn it_counts_only_as_long_as_the_votes_behind_it() {
    let finance = "requires: [{ role: finance, approvals: 1 }]\n    standing_permissions: { max_calls: 10, max_seconds: 600 }\n    expires_in_seconds: 3600";
    let world = setup()
        .config("max_calls: 200", "max_calls: 10")
        .start()
        .await;
    let (run, _) = permitted(&world, 10, 600).await;
    keyed(&world, Some(&run), 25_000, "k1").await.expect(201);

    // Used up to here, and the rest outlives the process.
    let world = world.restart(|setup| setup).await;
    keyed(&world, Some(&run), 25_000, "k2").await.expect(201);

    let original = world.setup.clone();
    // The voter has lost the role, has become the agent's owner; the tier asks for more, or does not allow it any more.
    let parks = async |world: World, key: &str, change: &dyn Fn(Setup) -> Setup| {
        let world = world.restart(|_| change(original.clone())).await;
        keyed(&world, Some(&run), 25_000, key)
            .await
            .problem(403, "approval_required");
        world
    };
    let world = parks(world, "role", &|setup| {
        setup.config(
            "ada:\n    roles: [finance, security",
            "ada:\n    roles: [security",
        )
    })
    .await;
    let world = parks(world, "owner", &|setup| {
        setup.config(
            "support-bot:\n    owner: grace",
            "support-bot:\n    owner: ada",
        )
    })
    .await;
    let world = parks(world, "quorum", &|setup| setup.config(finance, BY_TWO)).await;
    let world = parks(world, "allowed", &|setup| {
        setup.config(
            "standing_permissions: { max_calls: 10, max_seconds: 600 }\n",
            "denials: 1\n",
        )
    })
    .await;
    let world = parks(world, "contract", &|setup| {
        setup.tool(
            "desk.yaml",
            "name: desk.refunds.create\n",
            "name: desk.refunds.create\n    limits: { timeout_ms: 9000 }\n",
        )
    })
    .await;
    let world = world.restart(|_| original.clone()).await;
    keyed(&world, Some(&run), 25_000, "k3").await.expect(201);
    assert_eq!(world.received("POST /refunds"), 4);
}

#[tokio::test]
async fn it_ends_with_the_delegation_it_rests_on() {
    let mut world = setup()
        .config(
            "\noperators:\n",
            "\noperators:\n  carl: { roles: [auditor] }\n",
        )
        .start()
        .await;
    world.key(KeyKind::Operator, "carl").await;
    let run = world.run().await;
    let give = async |key: &str, delegation_seconds: Option<i64>| {
        let delegation = match delegation_seconds {
            None => lend(&world, "ada", "carl").await,
            Some(seconds) => {
                let body = crate::composition::lending("carl", seconds);
                let answer = crate::composition::delegate(&world, "ada", body).await;
                answer.expect(201).body["delegation"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            }
        };
        let answer = keyed(&world, Some(&run), 25_000, key).await.expect(403);
        let approval = answer.body["approval"].as_str().unwrap().to_owned();
        let next = json!({"next": {"calls": 5, "seconds": 600}});
        let decided = decide(&world, "carl", &approval, "approve", next)
            .await
            .expect(200);
        world.ended(answer.body["call"].as_str().unwrap()).await;
        (delegation, decided.body["permission"].clone())
    };
    let (delegation, permission) = give("a", None).await;
    assert_ne!(permission, Value::Null);
    keyed(&world, Some(&run), 25_000, "b").await.expect(201);
    revoke_delegation(&world, "ada", &delegation)
        .await
        .expect(200);
    let waits = keyed(&world, Some(&run), 25_000, "c").await.expect(403);
    let approval = waits.body["approval"].as_str().unwrap();
    decide(&world, "bob", approval, "deny", json!({}))
        .await
        .expect(200);

    // One that ends by itself takes the permission with it.
    let (_, permission) = give("d", Some(30)).await;
    let shown = shown(&world, permission.as_str().unwrap()).await;
    let until = chrono::DateTime::parse_from_rfc3339(shown["until"].as_str().unwrap()).unwrap();
    let left = until.timestamp() - toolgate::clock::now().timestamp();
    assert!((20..=30).contains(&left), "{left}");
}

#[tokio::test]
async fn a_halt_holds_against_it_and_a_full_queue_does_not() {
    let setup = setup().config(
        "  support-bot:\n    owner: grace\n",
        "  support-bot:\n    max_pending_approvals: 2\n    owner: grace\n",
    );
    let world = setup.start().await;
    let (run, permission) = permitted(&world, 5, 600).await;
    let halt = world.halt(json!({"kind": "run", "id": run})).await;
    keyed(&world, Some(&run), 25_000, "k1")
        .await
        .problem(503, "halted");
    assert_eq!(shown(&world, &permission).await["left"], 5);
    world.resume(&halt).await;
    world.parked(None, 26_000).await;
    world.parked(None, 27_000).await;
    send(world.refund(None, 28_000))
        .await
        .problem(429, "rate_limited");
    keyed(&world, Some(&run), 25_000, "k2").await.expect(201);
    assert_eq!(shown(&world, &permission).await["left"], 4);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn processes_that_share_only_the_rows_take_no_more_than_was_given() {
    let world = setup().start().await;
    let (run, permission) = permitted(&world, 5, 600).await;
    let elsewhere = (0..4).map(|_| async {
        let mut connection = world.connect("toolgate_gateway").await;
        let mut taken = 0;
        for _ in 0..5 {
            let left = store::permissions::take(&mut connection, &permission).await;
            taken += usize::from(left.unwrap().is_some());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        taken
    });
    let calls = (0..20).map(|at| {
        let (world, run) = (&world, &run);
        async move { keyed(world, Some(run), 25_000, &format!("k{at}")).await }
    });
    let (elsewhere, answers) = futures::future::join(join_all(elsewhere), join_all(calls)).await;
    let here = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(elsewhere.iter().sum::<usize>() + here, 5);
    assert_eq!(
        world.received("POST /refunds"),
        1 + u64::try_from(here).unwrap()
    );
}
