//! Refusals that are no call's: an agent that may not, somebody without a key, and a fault of the gateway's own. Each is an entry.

use std::sync::Arc;

use axum::body::Body;
use futures::stream;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Row as _, postgres::PgPoolOptions};
use tokio::sync::Semaphore;
use toolgate::{
    app::{App, Reading},
    audit::{Checkpoints, Recorder},
    clock,
    demo::desk,
    ids::CallId,
    pipeline::{self, Arrival, Surface, Wanted},
    redaction::Redactor,
    secrets::{Keyring, Secret},
    signing,
    sinks::Sinks,
    store,
};

use crate::support::{self, MASTER, Setup, World, send};

impl World {
    /// Entries of a kind as objects, oldest first.
    pub async fn told(&self, kind: &str) -> Vec<Value> {
        let query = format!(
            "SELECT to_jsonb(e) FROM audit.entries AS e WHERE kind = '{kind}' ORDER BY recorded_at, seq"
        );
        let rows = self.audit(&query).await;
        rows.iter().map(|row| row.get(0)).collect()
    }
}

#[tokio::test]
async fn what_an_agent_is_refused_outside_calls_is_an_entry() {
    let world = World::shipped().await;
    let run = "run_01M836DMDRE8JA51EV49058M8N";
    let call = "call_01M836DMDRE8JA51EV49058M8N";
    let opening = |scopes: &str| json!({"triggered_by": "x", "purpose": "y", "scopes": [scopes]});
    let cases = [
        (
            world
                .agent(Method::POST, "/v1/runs")
                .json(&opening("root:all")),
            (403, "scope_missing", "POST /v1/runs"),
        ),
        (
            world
                .agent(Method::POST, "/v1/runs")
                .json(&json!({"purpose": 1})),
            (400, "malformed_body", "POST /v1/runs"),
        ),
        (
            world.agent(Method::POST, &format!("/v1/runs/{run}/end")),
            (404, "not_found", "POST /v1/runs/{id}/end"),
        ),
        (
            world.agent(Method::GET, &format!("/v1/calls/{call}")),
            (404, "not_found", "GET /v1/calls/{id}"),
        ),
        (
            world.agent(Method::GET, "/v1/calls/planted-plain"),
            (404, "not_found", "GET /v1/calls/{id}"),
        ),
    ];
    let mut wanted = Vec::new();
    for (request, (status, code, asked)) in cases {
        send(request).await.problem(status, code);
        wanted.push((code, asked));
    }
    let told = world.told("agent_refused").await;
    let found: Vec<_> = told
        .iter()
        .filter(|entry| entry["agent"] == "support-bot")
        .map(|entry| {
            (
                entry["reasons"][0].as_str().unwrap(),
                entry["detail"]["request"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(found, wanted);
    assert!(told.iter().any(|entry| entry["run_id"] == run));
    assert!(told.iter().any(|entry| entry["call_id"] == call));
    let scope = told
        .iter()
        .find(|entry| entry["reasons"][0] == "scope_missing");
    let detail = scope.unwrap()["detail"]["detail"].as_str().unwrap();
    assert!(detail.contains("root:all"), "{detail}");
    assert!(!world.whole_audit().await.contains("planted-plain"));
    // What is not refused is none, and a call's refusal is the call's own.
    let before = told.len();
    send(world.agent(Method::GET, "/v1/tools"))
        .await
        .expect(200);
    send(world.refund(None, 250_000))
        .await
        .problem(403, "denied_by_policy");
    assert_eq!(world.told("agent_refused").await.len(), before);
}

#[tokio::test]
async fn attempts_without_a_key_are_told_at_once_and_then_by_their_number() {
    let world = World::shipped().await;
    let of = |entries: Vec<Value>, request: &str| -> Vec<Value> {
        let mine = |entry: &Value| entry["detail"]["request"] == request;
        entries.into_iter().filter(mine).collect()
    };
    let cases = [
        (
            world.gateway.agents,
            "/v1/calls/planted-plain",
            "GET /v1/calls/{id}",
            "agent_refused",
        ),
        (
            world.gateway.operators,
            "/v1/audit/entries?agent=planted-plain",
            "GET /v1/audit/entries",
            "operator_refused",
        ),
    ];
    for (address, path, request, kind) in cases {
        for _ in 0..40 {
            let knock = world.anybody(Method::GET, &format!("http://{address}{path}"));
            send(knock.bearer_auth("tg_agent_planted-plain"))
                .await
                .problem(401, "unauthenticated");
        }
        let told = of(world.told(kind).await, request);
        assert_eq!(told.len(), 1, "{told:#?}");
        assert_eq!(told[0]["agent"], Value::Null);
        assert_eq!(told[0]["operator"], Value::Null);
        assert_eq!(told[0]["detail"]["source"], "127.0.0.1");
        assert_eq!(told[0]["reasons"], json!(["unauthenticated"]));
    }
    // The end of the gateway ends the turn.
    let world = world.restart(|setup| setup).await;
    for (_, _, request, kind) in cases {
        let told = of(world.told(kind).await, request);
        let attempts: u64 = told
            .iter()
            .map(|entry| entry["detail"]["attempts"].as_u64().unwrap())
            .sum();
        assert_eq!((told.len(), attempts), (2, 40), "{told:#?}");
    }
    assert!(!world.whole_audit().await.contains("planted-plain"));
}

#[tokio::test]
async fn a_flood_of_calls_without_a_key_has_some_rows_and_each_is_counted() {
    const CALLS: usize = 600;
    let world = World::shipped().await;
    let routes = [
        "/desk/refunds",
        "/v1/tools/desk.refunds.create/calls",
        "/nothing/planted-plain",
    ];
    for first in (0..CALLS).step_by(50) {
        let calls = (first..first + 50).map(|at| {
            let url = format!("http://{}{}", world.gateway.agents, routes[at % 3]);
            let call = world.anybody(Method::POST, &url).json(&json!({}));
            send(call.bearer_auth("tg_agent_planted-plain"))
        });
        for answer in futures::future::join_all(calls).await {
            let answer = answer.problem(401, "unauthenticated");
            assert!(answer.header("toolgate-call").starts_with("call_"));
        }
    }
    let rows: Vec<Value> = world
        .told("refusal")
        .await
        .into_iter()
        .filter(|entry| entry["reasons"] == json!(["unauthenticated"]))
        .collect();
    assert_eq!(rows.len(), 256);
    for row in &rows {
        assert_eq!(row["detail"]["source"], "127.0.0.1", "{row}");
        assert_eq!(row["agent"], Value::Null);
    }
    let counted = |entries: Vec<Value>| -> Vec<u64> {
        entries
            .iter()
            .filter(|entry| entry["detail"]["request"] == "a call")
            .map(|entry| entry["detail"]["attempts"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(
        counted(world.told("agent_refused").await),
        [1],
        "that they are counted is told at once"
    );
    // Whoever has a key is as well off as before, and a refusal of theirs is a row of its own.
    send(world.refund(None, 100)).await.expect(201);
    let denied = send(world.refund(None, 250_000)).await;
    world.refused(denied, 403, "denied_by_policy").await;
    let world = world.restart(|setup| setup).await;
    let told = counted(world.told("agent_refused").await);
    assert_eq!(
        told,
        [1, u64::try_from(CALLS - rows.len() - 1).unwrap()],
        "rows and numbers add up"
    );
    assert!(!world.whole_audit().await.contains("planted-plain"));
}

/// Whoever holds an operator's key and tries what is not there, cannot be read or is too late: each is an entry with their name.
#[tokio::test]
async fn what_an_operator_is_refused_is_an_entry_whatever_the_reason() {
    let world = World::shipped().await;
    let (_, approval) = world.parked(None, 25_000).await;
    let halt = "halt_01M836DMDRE8JA51EV49058M8N";
    let ada = |method: &str, path: &str| world.operator("ada", method.parse().unwrap(), path);
    let because = json!({"reason": "planted-plain"});
    let stale = json!({"reason": "x", "digest": "hmac-sha256:planted-plain"});
    let approve = format!("/v1/approvals/{approval}/approve");
    let release = format!("/v1/kill-switches/{halt}");
    let cases = [
        (
            ada("POST", "/v1/kill-switches")
                .header("content-type", "application/json")
                .body("{\"planted-plain"),
            (400, "malformed_body", "POST /v1/kill-switches"),
        ),
        (
            ada("POST", "/v1/kill-switches").json(&json!({"planted-plain": 1})),
            (400, "malformed_body", "POST /v1/kill-switches"),
        ),
        (
            ada("POST", "/v1/kill-switches").body("planted-plain"),
            (415, "unsupported_media_type", "POST /v1/kill-switches"),
        ),
        (
            ada("POST", "/v1/audit/hash").json(&json!({"value": "x".repeat(70_000)})),
            (413, "body_too_large", "POST /v1/audit/hash"),
        ),
        (
            ada("GET", "/v1/audit/entries?agent=planted%20plain"),
            (400, "malformed_body", "GET /v1/audit/entries"),
        ),
        (
            ada("GET", "/v1/approvals?planted-plain=1"),
            (400, "malformed_body", "GET /v1/approvals"),
        ),
        (
            ada("POST", &approve).json(&stale),
            (409, "stale_digest", "POST /v1/approvals/{id}/approve"),
        ),
        (
            ada("DELETE", &release).json(&because),
            (404, "not_found", "DELETE /v1/kill-switches/{id}"),
        ),
        (
            ada("PUT", "/v1/approvals"),
            (405, "not_found", "PUT /v1/approvals"),
        ),
        (
            ada("PLANTED-PLAIN", "/v1/approvals"),
            (405, "not_found", "another /v1/approvals"),
        ),
        (
            ada("GET", "/v1/planted-plain/x"),
            (404, "not_found", "GET another path"),
        ),
    ];
    let mut wanted = Vec::new();
    for (request, (status, code, asked)) in cases {
        send(request).await.problem(status, code);
        wanted.push((code, asked));
    }
    let told = world.told("operator_refused").await;
    let of_ada: Vec<&Value> = told
        .iter()
        .filter(|entry| entry["operator"] == "ada")
        .collect();
    let found: Vec<_> = of_ada
        .iter()
        .map(|entry| {
            assert_eq!(entry["decision"], "deny");
            assert!(entry["detail"]["detail"].as_str().unwrap().len() > 20);
            (
                entry["reasons"][0].as_str().unwrap(),
                entry["detail"]["request"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(found, wanted);
    let late = of_ada
        .iter()
        .find(|entry| entry["reasons"][0] == "stale_digest");
    assert_eq!(late.unwrap()["approval_id"], json!(approval));
    assert_eq!(late.unwrap()["detail"]["action"], "approve");
    assert!(of_ada.iter().any(|entry| entry["kill_switch_id"] == halt));
    let story = crate::stories::told(&world, &["approval", &approval]);
    assert!(
        story.contains("ada was refused to approve: stale_digest"),
        "{story}"
    );
    // An agent too, where its route is known; and what is asked without any key is counted.
    send(world.agent(Method::PUT, "/v1/runs"))
        .await
        .problem(405, "not_found");
    let agents = world.told("agent_refused").await;
    let last = agents.last().unwrap();
    assert_eq!(
        (&last["agent"], &last["detail"]["request"]),
        (&json!("support-bot"), &json!("PUT /v1/runs"))
    );
    let url = format!("http://{}/planted-plain", world.gateway.operators);
    send(world.anybody(Method::GET, &url))
        .await
        .problem(404, "not_found");
    let told = world.told("operator_refused").await;
    let stranger = told.last().unwrap();
    assert_eq!(
        (&stranger["operator"], &stranger["detail"]["request"]),
        (&Value::Null, &json!("GET another path"))
    );
    // What is granted is no refusal.
    let before = told.len();
    world.shown("ada", &approval).await;
    send(ada("GET", "/livez")).await.expect(200);
    assert_eq!(world.told("operator_refused").await.len(), before);
    assert!(!world.whole_audit().await.contains("planted-plain"));
}

#[tokio::test]
async fn a_fault_before_the_intent_is_a_refusal_of_that_call() {
    let database = support::new_database().await;
    let desk = desk::start("desk-token".to_owned()).await.unwrap();
    let world = World::start(Setup::shipped(), database.clone(), Arc::new(desk)).await;
    let key = world.keys["support-bot"].clone();
    let World {
        gateway,
        desk,
        setup,
        ..
    } = world;
    gateway.stop().await;
    let (config, rules) = support::load(&setup, &database, &desk).unwrap();
    let options = support::options("toolgate_gateway", &database);
    let keys = Arc::new(Keyring::new(&Secret::new(MASTER)).unwrap());
    let redactor = Arc::new(Redactor::new(Arc::clone(&keys), config.limits.recorded));
    let settings = &config.checkpoints;
    let checkpoints = Checkpoints {
        held: signing::open(&settings.key_file, &settings.installation).unwrap(),
        every_entries: settings.every_entries,
        every: settings.every,
        sinks: Sinks::start(&[]).unwrap(),
    };
    let recorder = Recorder::start(
        options.clone(),
        config.limits.record_timeout,
        Arc::clone(&redactor),
        checkpoints,
    )
    .await
    .unwrap();
    let pool = PgPoolOptions::new().connect_lazy_with(options.clone());
    let reading = Reading {
        pool: PgPoolOptions::new().connect_lazy_with(store::reading(options)),
        exports: Arc::new(Semaphore::new(1)),
    };
    let app = Arc::new(
        App::new(config, rules, pool, reading, recorder, keys, redactor)
            .await
            .unwrap(),
    );
    let call = CallId::generate();
    let mut headers = http::HeaderMap::new();
    headers.insert(
        "authorization",
        format!("Bearer {}", key.expose()).parse().unwrap(),
    );
    headers.insert("content-type", "application/json".parse().unwrap());
    let faulty = stream::poll_fn(
        |_| -> std::task::Poll<Option<Result<Vec<u8>, std::io::Error>>> {
            panic!("a fault that a test has put here")
        },
    );
    let arrival = Arrival {
        call: call.clone(),
        received_at: clock::now(),
        source: None,
        surface: Surface::ToolCall,
        headers,
        wanted: Wanted::Tool {
            name: "desk.refunds.create".to_owned(),
        },
        body: Body::from_stream(faulty),
    };
    let reply = pipeline::handle(app, arrival).await;
    let answer = axum::response::IntoResponse::into_response(reply);
    assert_eq!(answer.status(), 500);
    let mut auditor = crate::records::connect("toolgate_auditor", &database).await;
    let row: Value =
        sqlx::query_scalar("SELECT to_jsonb(c) FROM audit.calls AS c WHERE call_id = $1")
            .bind(call.as_str())
            .fetch_one(&mut auditor)
            .await
            .unwrap();
    assert_eq!(
        (
            &row["decision"],
            &row["reasons"],
            &row["executed"],
            &row["agent"]
        ),
        (
            &json!("deny"),
            &json!(["internal"]),
            &json!(false),
            &json!("support-bot")
        )
    );
}
