//! Of any number of decisions on one call one wins, and the call goes at most once: over HTTP, at the moment of expiry, and
//! against a process that shares nothing with the gateway but the rows.

use std::time::Duration;

use futures::future::join_all;
use reqwest::Method;
use serde_json::json;
use sqlx::{Connection as _, PgConnection};
use toolgate::{
    clock,
    entry::Outcome,
    ids::CallId,
    keys::KeyKind,
    parked,
    store::{
        self,
        composition::{Claim, NewVote},
    },
};

use crate::support::{Answer, Setup, World, options, send};

/// Each has finance.
async fn with_many(setup: Setup, count: usize) -> (World, Vec<String>) {
    let names: Vec<String> = (0..count).map(|at| format!("op{at}")).collect();
    let more: String = names
        .iter()
        .map(|name| format!("  {name}: {{ roles: [finance] }}\n"))
        .collect();
    let mut world = setup
        .config("\noperators:\n", &format!("\noperators:\n{more}"))
        .start()
        .await;
    world.keys(KeyKind::Operator, &names).await;
    (world, names)
}

/// One person's vote and what they were told last.
struct Said {
    name: String,
    verb: &'static str,
    answer: Answer,
    /// The gateway was too busy to say what became of it, and was asked again.
    again: bool,
}

async fn say(
    world: &World,
    name: &str,
    approval: &str,
    verb: &'static str,
    digest: &serde_json::Value,
) -> Said {
    let path = format!("/v1/approvals/{approval}/{verb}");
    let body = json!({"digest": digest, "reason": "test"});
    let mut again = false;
    loop {
        let answer = send(world.operator(name, Method::POST, &path).json(&body)).await;
        if answer.status != 503 {
            let name = name.to_owned();
            return Said {
                name,
                verb,
                answer,
                again,
            };
        }
        again = true;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// How many approved and denied, by what the approval shows. Everybody who was told so is among them, and nobody who was told
/// otherwise.
async fn voters(world: &World, approval: &str, said: &[Said]) -> (usize, usize) {
    let shown = world.shown("ada", approval).await;
    let votes = shown["votes"].as_array().unwrap();
    for one in said {
        let voted = votes
            .iter()
            .any(|vote| vote["operator"] == json!(one.name) && vote["vote"] == one.verb);
        match (one.answer.status, one.answer.code()) {
            (200, _) => assert!(voted, "{}", one.name),
            (409, "conflict" | "approval_expired") | (403, "approval_expired") => {
                assert!(!voted || one.again, "{} {}", one.name, one.answer.body);
            }
            _ => panic!("{} {}", one.name, one.answer.body),
        }
    }
    let count = |verb: &str| votes.iter().filter(|vote| vote["vote"] == verb).count();
    (count("approve"), count("deny"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_two_hundred_people_at_once_as_many_count_as_are_needed_and_one_transition_happens() {
    let setup = Setup::shipped().config(
        "requires: [{ role: finance, approvals: 1 }]\n    expires_in_seconds: 3600 # one hour",
        "requires: [{ role: finance, approvals: 3 }]\n    denials: 3\n    expires_in_seconds: 3600",
    );
    let (world, names) = with_many(setup, 200).await;
    let mut executed = 0;
    for round in 0..2_u32 {
        let (call, approval) = world.parked(None, 25_000 + round).await;
        let digest = world.shown("ada", &approval).await["digest"].clone();
        let says = names.iter().enumerate().map(|(at, name)| {
            let verb = if at % 2 == 0 { "approve" } else { "deny" };
            let (world, approval, digest) = (&world, &approval, &digest);
            say(world, name, approval, verb, digest)
        });
        let answers = join_all(says).await;
        let (approved, denied) = voters(&world, &approval, &answers).await;
        let state = world.ended(&call).await["state"]
            .as_str()
            .unwrap()
            .to_owned();
        match state.as_str() {
            "completed" => {
                executed += 1;
                assert_eq!(approved, 3, "{denied}");
                assert!(denied < 3);
            }
            "denied" => {
                assert_eq!(denied, 3, "{approved}");
                assert!(approved < 3);
            }
            other => panic!("{other}"),
        }
        assert_eq!(world.received("POST /refunds"), executed);
        let votes = format!("kind = 'approval_vote' AND approval_id = '{approval}'");
        assert_eq!(
            world.entries(&votes).await,
            i64::try_from(approved + denied).unwrap()
        );
        let intents = format!("kind = 'intent' AND call_id = '{call}'");
        assert_eq!(
            world.entries(&intents).await,
            i64::from(state == "completed")
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn hundreds_of_votes_at_the_moment_of_expiry_leave_one_end() {
    let setup = Setup::shipped().config(
        "requires: [{ role: finance, approvals: 1 }]\n    expires_in_seconds: 3600 # one hour",
        "requires: [{ role: finance, approvals: 120 }]\n    expires_in_seconds: 3",
    );
    let (world, names) = with_many(setup, 200).await;
    let (call, approval) = world.parked(None, 25_000).await;
    let shown = world.shown("ada", &approval).await;
    let expires: clock::Timestamp = serde_json::from_value(shown["expires_at"].clone()).unwrap();
    let says = names.iter().enumerate().map(|(at, name)| {
        let (world, approval, digest) = (&world, &approval, &shown["digest"]);
        async move {
            // Before and after it; the worker looks once a second.
            let moment =
                expires + chrono::TimeDelta::milliseconds(i64::try_from(at).unwrap() * 3 - 400);
            let wait = (moment - clock::now()).to_std().unwrap_or_default();
            tokio::time::sleep(wait).await;
            say(world, name, approval, "approve", digest).await
        }
    });
    let answers = join_all(says).await;
    let (counted, _) = voters(&world, &approval, &answers).await;
    let state = world.ended(&call).await;
    let votes = format!("kind = 'approval_vote' AND approval_id = '{approval}'");
    assert_eq!(world.entries(&votes).await, i64::try_from(counted).unwrap());
    if counted >= 120 {
        assert_eq!(counted, 120);
        // Approved in time; sent if that was in time as well.
        assert!(
            matches!(state["state"].as_str(), Some("completed" | "expired")),
            "{state}"
        );
    } else {
        assert_eq!(state["state"], "expired", "{state}");
    }
    let done = u64::from(state["state"] == "completed");
    assert_eq!(world.received("POST /refunds"), done);
    let ends = format!("kind IN ('ended', 'outcome') AND call_id = '{call}'");
    assert_eq!(world.entries(&ends).await, 1);
}

/// What another gateway would do that knows nothing of this one: its own transaction on the same rows.
async fn approve_elsewhere(
    connection: &mut PgConnection,
    approval: &str,
    call: &str,
    who: &str,
) -> bool {
    let mut transaction = connection.begin().await.unwrap();
    let row = store::approvals::lock(&mut transaction, approval)
        .await
        .unwrap()
        .unwrap();
    if row.state != "pending" {
        return false;
    }
    let vote = NewVote {
        approval_id: approval,
        operator: who,
        authority: who,
        vote: "approve",
        tiers: &["finance".to_owned()],
        seats: &[],
        delegations: &[],
        digest: &row.digest,
        reason: "elsewhere",
        calls: 1,
        next_calls: None,
        next_seconds: None,
    };
    assert!(
        store::composition::add_vote(&mut transaction, &vote)
            .await
            .unwrap()
    );
    let approved = store::approvals::approve(&mut transaction, approval, call, false, None)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    approved
}

async fn deny_elsewhere(connection: &mut PgConnection, approval: &str, call: &CallId) -> bool {
    let mut transaction = connection.begin().await.unwrap();
    store::approvals::lock(&mut transaction, approval)
        .await
        .unwrap();
    let ending = parked::unsent(call.clone(), Outcome::Denied, "NOT executed. Elsewhere.");
    let denied = store::calls::finish(&mut transaction, &ending)
        .await
        .unwrap();
    transaction.commit().await.unwrap();
    denied
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn transactions_that_share_only_the_rows_make_one_transition_and_one_claim() {
    let world = World::shipped().await;
    let mut rounds = Vec::new();
    for amount in 0..10 {
        rounds.push(world.parked(None, 25_000 + amount).await);
    }
    let World {
        database, gateway, ..
    } = world;
    gateway.stop().await;
    let mut approved_rounds = 0;
    for (call, approval) in rounds {
        let call: CallId = call.parse().unwrap();
        let one = |at: usize| {
            let (database, call, approval) = (&database, &call, &approval);
            async move {
                let mut connection =
                    PgConnection::connect_with(&options("toolgate_gateway", database))
                        .await
                        .unwrap();
                if at.is_multiple_of(2) {
                    approve_elsewhere(&mut connection, approval, call.as_str(), &format!("op{at}"))
                        .await
                } else {
                    deny_elsewhere(&mut connection, approval, call).await
                }
            }
        };
        let won: Vec<usize> = join_all((0..24).map(one))
            .await
            .into_iter()
            .enumerate()
            .filter_map(|(at, won)| won.then_some(at))
            .collect();
        // Approve, then deny before anything was begun, is the one way in which two may happen; nothing comes after a denial.
        let approvals = won.iter().filter(|at| *at % 2 == 0).count();
        let denials = won.len() - approvals;
        assert!(approvals <= 1 && denials <= 1 && !won.is_empty(), "{won:?}");
        let mut connection = PgConnection::connect_with(&options("toolgate_gateway", &database))
            .await
            .unwrap();
        let row = store::calls::find(&mut connection, call.as_str())
            .await
            .unwrap()
            .unwrap();
        let claims = (0..12).map(|_| {
            let (database, row, call) = (&database, &row, &call);
            async move {
                let mut connection =
                    PgConnection::connect_with(&options("toolgate_gateway", database))
                        .await
                        .unwrap();
                let claim = Claim {
                    call,
                    digest: &row.digest,
                    approved_digest: &row.digest,
                    contract_digest: &row.contract_digest,
                    api: "desk",
                    tool: &row.tool,
                    consequence: "money_movement",
                    agent: &row.agent,
                    run: &row.run_id,
                };
                store::composition::claim(&mut connection, &claim)
                    .await
                    .unwrap()
            }
        });
        let claimed = join_all(claims)
            .await
            .into_iter()
            .filter(|won| *won)
            .count();
        assert_eq!(claimed, usize::from(denials == 0), "{won:?}");
        approved_rounds += approvals;
    }
    assert!(approved_rounds > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_denial_by_another_process_and_an_approval_here_never_both_happen() {
    let world = World::shipped().await;
    let mut connections = Vec::new();
    for _ in 0..12 {
        connections.push(world.connect("toolgate_gateway").await);
    }
    let mut completed = 0;
    for (at, mut connection) in connections.into_iter().enumerate() {
        let (call, approval) = world
            .parked(None, 25_000 + u32::try_from(at).unwrap())
            .await;
        let digest = world.shown("ada", &approval).await["digest"].clone();
        let id: CallId = call.parse().unwrap();
        let elsewhere = async {
            tokio::time::sleep(Duration::from_millis(u64::try_from(at).unwrap() / 2)).await;
            deny_elsewhere(&mut connection, &approval, &id).await
        };
        let here = say(&world, "ada", &approval, "approve", &digest);
        let (denied, said) = tokio::join!(elsewhere, here);
        let here = said.answer;
        let state = world.ended(&call).await["state"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(denied, state == "denied", "{state} {}", here.body);
        if state == "completed" {
            completed += 1;
            assert_eq!(here.status, 200);
        }
        assert_eq!(world.received("POST /refunds"), completed);
        let intents = format!("kind = 'intent' AND call_id = '{call}'");
        assert_eq!(world.entries(&intents).await, i64::from(!denied));
    }
}
