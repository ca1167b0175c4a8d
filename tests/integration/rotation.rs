//! The master secret is replaced: what was made under the old one goes on to work, until the old one is dropped, and then what no
//! longer works says so.

use std::process::{Command, Output};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use toolgate::{
    redaction::tokens_of,
    secrets::{Keyring, Secret},
};

use crate::{
    sensitive,
    support::{Answer, MASTER, Setup, World, send, url},
};

const NEW: &str = "another master secret, newer, long enough";
const OLD: &str = "${env:OLD_MASTER_SECRET}";

/// With the new secret, and the old one behind it.
fn rotated(setup: Setup) -> Setup {
    setup
        .config(
            "\ntools: tools",
            &format!("\nprevious_master_secrets: ['{OLD}']\ntools: tools"),
        )
        .variable("TOOLGATE_MASTER_SECRET", NEW)
        .variable("OLD_MASTER_SECRET", MASTER)
}

/// Without the old one.
fn dropped(setup: Setup) -> Setup {
    setup.config(&format!("previous_master_secrets: ['{OLD}']\n"), "")
}

/// A request that bears this key, whoever's it is.
fn with_key(world: &World, key: &Secret, method: Method, path: &str) -> RequestBuilder {
    let address = if key.expose().starts_with("tg_operator_") {
        world.gateway.operators
    } else {
        world.gateway.agents
    };
    world
        .anybody(method, &format!("http://{address}{path}"))
        .bearer_auth(key.expose())
}

async fn keyed(world: &World, run: &str, amount: u32, key: &str) -> Answer {
    send(
        world
            .refund(Some(run), amount)
            .header("idempotency-key", key),
    )
    .await
}

/// The program beside the gateway, on its database.
fn toolgate(world: &World, arguments: &[&str], secrets: &str) -> Output {
    let scratch = std::env::temp_dir().join(format!("{}.yaml", toolgate::ids::CallId::generate()));
    let mut config = world.setup.config.clone();
    let built_in = "database:\n  built_in:\n    home: ${env:TOOLGATE_HOME:-./.toolgate}\n";
    assert!(config.contains(built_in));
    config = config.replace(
        built_in,
        "database:\n  external:\n    url: ${env:DATABASE_URL}\n",
    );
    std::fs::write(&scratch, config).unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_toolgate"))
        .args(arguments)
        .args(["--json", "--config"])
        .arg(&scratch)
        .env("DATABASE_URL", url("toolgate_gateway", &world.database))
        .env("TOOLGATE_MASTER_SECRET", secrets)
        .env("OLD_MASTER_SECRET", MASTER)
        .env("DESK_URL", "http://127.0.0.1:1")
        .env("DESK_TOKEN", "t")
        .output()
        .unwrap();
    std::fs::remove_file(scratch).unwrap();
    output
}

fn printed(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

/// What depends on a secret, as `toolgate keys secrets` tells: keys, parked calls, kept answers.
fn depends(told: &Value, id: &str) -> [i64; 3] {
    let row = told["dependents"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["secret"] == id);
    ["keys", "waiting", "answers"].map(|name| row.map_or(0, |row| row[name].as_i64().unwrap()))
}

async fn hash_of(world: &World, owner: &str) -> Vec<Vec<u8>> {
    use sqlx::Row as _;
    let mut superuser = world.connect("superuser").await;
    sqlx::query("SELECT hash FROM toolgate.keys WHERE owner = $1 ORDER BY key_id")
        .bind(owner)
        .fetch_all(&mut superuser)
        .await
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect()
}

#[tokio::test]
async fn a_rotated_world_goes_on_and_a_dropped_secret_says_what_it_took_along() {
    let ring = |master: &str| Keyring::new(&Secret::new(master)).unwrap();
    let (old_ring, new_ring) = (ring(MASTER), ring(NEW));
    let world = World::shipped().await;
    let (agent, operator) = (world.keys["support-bot"].clone(), world.keys["bob"].clone());
    let run = world.run().await;
    let kept = keyed(&world, &run, 700, "k1").await.expect(201);
    let (waiting, approval) = world.parked(Some(&run), 25_000).await;
    let (left, left_approval) = world.parked(Some(&run), 26_000).await;
    let (shown, shown_approval) = world.parked(Some(&run), 27_000).await;
    // Shown before the rotation, decided on after it.
    let seen = world.shown("ada", &shown_approval).await["digest"].clone();
    let mail = json!({"to": "someone@example.org", "subject": "s", "body": "b"});
    let mail = send(world.agent(Method::POST, "/desk/mail").json(&mail))
        .await
        .expect(403);
    let mail = mail.header("toolgate-call").to_owned();

    let world = world.restart(rotated).await;
    // Keys of before open, and are hashed anew when used.
    assert_eq!(
        hash_of(&world, "support-bot").await[0],
        old_ring.api_key_hash(agent.expose())
    );
    send(with_key(&world, &agent, Method::GET, "/v1/tools"))
        .await
        .expect(200);
    for _ in 0..200 {
        if hash_of(&world, "support-bot").await[0] == new_ring.api_key_hash(agent.expose()) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(
        hash_of(&world, "support-bot").await[0],
        new_ring.api_key_hash(agent.expose())
    );
    assert_eq!(
        hash_of(&world, "bob").await[0],
        old_ring.api_key_hash(operator.expose())
    );

    // The same requests are known for the same.
    let again = keyed(&world, &run, 700, "k1").await.expect(201);
    assert_eq!(again.bytes, kept.bytes);
    assert_eq!(again.header("toolgate-call"), kept.header("toolgate-call"));
    keyed(&world, &run, 701, "k1")
        .await
        .problem(422, "idempotency_key_reused");
    assert_eq!(
        world.parked(Some(&run), 25_000).await,
        (waiting.clone(), approval.clone())
    );
    // Parked calls are shown, approved and executed, by the digest that was shown before, too.
    assert_eq!(
        world.shown("ada", &approval).await["arguments"]["amount_cents"],
        25_000
    );
    world.decide("ada", &approval, "approve").await.expect(200);
    let path = format!("/v1/approvals/{shown_approval}/approve");
    let decision = json!({"digest": seen, "reason": "seen before"});
    send(world.operator("bob", Method::POST, &path).json(&decision))
        .await
        .expect(200);
    for call in [&waiting, &shown] {
        assert_eq!(world.ended(call).await["state"], "completed");
    }
    assert_eq!(world.received("POST /refunds"), 3);
    let row = world.call_row(&waiting).await;
    assert_eq!(row["arguments_digest"], row["votes"][0]["digest"], "{row}");
    // What was parked before is sent once, also when it is asked for again.
    send(world.refund(Some(&run), 25_000)).await.expect(201);
    assert_eq!(world.received("POST /refunds"), 3);

    // The digests of a value under both secrets, the newest first, find entries from before and from after.
    send(
        world
            .agent(Method::POST, "/desk/mail")
            .header("toolgate-run", &run)
            .json(&json!({"to": "someone@example.org", "subject": "s", "body": "b"})),
    )
    .await
    .expect(403);
    let printed_tokens = printed(&toolgate(
        &world,
        &["audit", "hash", "someone@example.org"],
        NEW,
    ));
    let token = |at: usize| printed_tokens[at]["token"].as_str().unwrap().to_owned();
    let newest = tokens_of("someone@example.org", &new_ring);
    let oldest = tokens_of("someone@example.org", &old_ring);
    assert_eq!(
        [token(0), token(2)],
        [newest[0].1.clone(), oldest[0].1.clone()]
    );
    let both = printed_tokens.as_array().unwrap().iter();
    let both: Vec<_> = both
        .map(|form| format!("'{}'", form["token"].as_str().unwrap()))
        .collect();
    let found = world
        .audit(&format!(
            "SELECT DISTINCT call_id FROM audit.entries WHERE value_tokens && ARRAY[{}]",
            both.join(", ")
        ))
        .await;
    assert_eq!(found.len(), 2, "the mail before and the mail after");

    // What still needs the old secret.
    let output = toolgate(&world, &["keys", "secrets"], NEW);
    assert_eq!(output.status.code(), Some(1));
    let old_id = old_ring.secret_id();
    let told = printed(&output);
    // bob's and ada's keys of before; the calls left waiting; the answer from before.
    assert_eq!(depends(&told, &old_id), [2, 2, 1], "{told}");

    let world = world.restart(dropped).await;
    send(with_key(&world, &agent, Method::GET, "/v1/tools"))
        .await
        .expect(200);
    send(with_key(
        &world,
        &operator,
        Method::GET,
        "/v1/kill-switches",
    ))
    .await
    .problem(401, "unauthenticated");
    // The kept answer does not open, the call is not made again, and the words say why.
    let again = keyed(&world, &run, 700, "k1")
        .await
        .problem(422, "idempotency_key_reused");
    assert!(
        again.body["detail"]
            .as_str()
            .unwrap()
            .contains("master secret"),
        "{}",
        again.body
    );
    let path = format!("/v1/calls/{}", kept.header("toolgate-call"));
    let state = send(world.agent(Method::GET, &path)).await.expect(200).body;
    assert_eq!(
        (&state["state"], &state["result"]),
        (&json!("completed"), &Value::Null)
    );
    assert!(
        state["detail"].as_str().unwrap().contains("master secret"),
        "{state}"
    );
    // What nobody can see is said to be that, and is voided when it is approved all the same.
    let unreadable = world.shown("ada", &left_approval).await;
    assert_eq!(unreadable["arguments"], Value::Null);
    let told = unreadable["unreadable"].as_str().unwrap();
    assert!(told.contains("previous_master_secrets"), "{told}");
    world
        .decide("ada", &left_approval, "approve")
        .await
        .expect(200);
    let state = world.ended(&left).await;
    assert_eq!(state["state"], "voided", "{state}");
    assert!(state["detail"].as_str().unwrap().contains("master secret"));
    assert_eq!(world.received("POST /refunds"), 3);
    assert_eq!(world.state(&mail).await["state"], "parked");

    // Named again, the old secret opens everything again.
    let world = world.restart(rotated).await;
    let again = keyed(&world, &run, 700, "k1").await.expect(201);
    assert_eq!(again.bytes, kept.bytes);
    send(with_key(
        &world,
        &operator,
        Method::GET,
        "/v1/kill-switches",
    ))
    .await
    .expect(200);
}

/// Approved, and the gateway restarted without the secret before it could be sent.
#[tokio::test]
async fn an_approved_call_that_no_longer_opens_is_voided() {
    let world = World::shipped().await;
    let run = world.run().await;
    let (call, _) = world.parked(Some(&run), 25_000).await;
    // Approved, and kept from being sent until the secret is gone.
    world.halt(json!({"kind": "everything"})).await;
    let mut superuser = world.connect("superuser").await;
    for statement in [
        "UPDATE toolgate.approvals SET state = 'approved', decided_at = now(), frozen_at = NULL",
        "UPDATE toolgate.calls SET state = 'approved'",
    ] {
        sqlx::query(statement)
            .execute(&mut superuser)
            .await
            .unwrap();
    }
    let world = world
        .restart(|setup| setup.variable("TOOLGATE_MASTER_SECRET", NEW))
        .await;
    let state = world.ended(&call).await;
    assert_eq!(state["state"], "voided", "{state}");
    let detail = state["detail"].as_str().unwrap();
    assert!(
        detail.starts_with("NOT executed") && detail.contains("master secret"),
        "{detail}"
    );
    assert_eq!(world.received("POST /refunds"), 0);
}

/// References are sealed and named under the master secret, and outlive its change within their run.
#[tokio::test]
async fn a_reference_outlives_a_rotation_in_its_run_and_says_when_its_secret_is_gone() {
    let api = sensitive::api().await;
    let world = sensitive::setup(&api, "token").start().await;
    let run = world.run().await;
    let email = |answer: &Answer| answer.body["email"].as_str().unwrap().to_owned();
    let before = email(&world.person(&run).await.expect(200));
    let parked = send(world.letter(&run, &json!({"to": before, "subject": "wait"})))
        .await
        .problem(403, "approval_required");

    let world = world.restart(rotated).await;
    api.requests();
    let letter = |world: &World, reference: &str| {
        send(world.letter(&run, &json!({"to": "x@example.org", "copy": reference})))
    };
    letter(&world, &before).await.expect(200);
    let sent = api.requests().concat();
    assert!(
        sent.contains("planted.person") && !sent.contains("tg_ref_"),
        "{sent}"
    );
    let after = email(&world.person(&run).await.expect(200));
    assert!(after.starts_with("tg_ref_"), "{after}");
    assert_ne!(before, after, "another secret names it otherwise");
    letter(&world, &after).await.expect(200);
    // In another run the new one is worth as little as ever.
    let other = world.run().await;
    for reference in [&before, &after] {
        send(world.letter(&other, &json!({"to": reference})))
            .await
            .problem(422, "invalid_arguments");
    }
    let approval = parked.body["approval"].as_str().unwrap();
    world.decide("ada", approval, "approve").await.expect(200);
    let state = world.ended(parked.body["call"].as_str().unwrap()).await;
    assert_eq!(state["state"], "completed", "{state}");

    let world = world.restart(dropped).await;
    api.requests();
    let refused = letter(&world, &before)
        .await
        .problem(422, "invalid_arguments");
    let told = refused.body["errors"][0]["message"].as_str().unwrap();
    assert!(
        told.contains("master secret") && told.contains("Read the value again"),
        "{told}"
    );
    assert!(api.requests().is_empty(), "nothing was sent");
    letter(&world, &after).await.expect(200);
    let again = email(&world.person(&run).await.expect(200));
    assert_eq!(again, after, "the same value, the same reference");
    assert!(!world.whole_audit().await.contains("planted.person"));
}
