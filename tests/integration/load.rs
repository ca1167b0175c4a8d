//! Clients that take their time, take all room, take nothing of their answers, or go away in the middle.

use std::time::{Duration, Instant};

use reqwest::Method;

use crate::{
    probe::{self, with_limits},
    support::{Setup, World, send},
    wire::{Act, RawApi, Wire, json_answer},
};

#[tokio::test]
async fn heads_that_are_too_large_are_refused_without_being_kept() {
    let world = World::shipped().await;
    let large = "x".repeat(200_000);
    let many: String = (0..200)
        .map(|number| format!("X-{number}: y\r\n"))
        .collect();
    let key = world.authorization();
    for (name, head, status) in [
        (
            "a large header",
            format!(
                "GET /desk/customers/c_1001 HTTP/1.1\r\nHost: gateway\r\n{key}\r\nX-Large: {large}\r\n\r\n"
            ),
            431,
        ),
        (
            "many headers",
            format!("GET /desk/customers/c_1001 HTTP/1.1\r\nHost: gateway\r\n{key}\r\n{many}\r\n"),
            431,
        ),
        (
            "a long target",
            format!(
                "GET /desk/customers/c_1001?{large} HTTP/1.1\r\nHost: gateway\r\n{key}\r\n\r\n"
            ),
            431,
        ),
        ("a long method", format!("{large} / HTTP/1.1\r\n\r\n"), 431),
    ] {
        for address in [world.gateway.agents, world.gateway.operators] {
            let mut wire = Wire::open(address).await;
            wire.send(&head).await;
            let answer = wire
                .answer()
                .await
                .unwrap_or_else(|| panic!("{name}: no answer"));
            assert_eq!(answer.status, status, "{name}: {answer:?}");
            assert!(wire.ends().await, "{name}");
        }
    }
    assert_eq!(world.desk_requests(), 0);
}

#[tokio::test]
async fn a_head_that_does_not_come_in_time_ends_the_connection() {
    let world = with_limits(Setup::shipped(), "head_timeout_ms: 400")
        .start()
        .await;
    let silent = Wire::open(world.gateway.agents).await;
    let mut begun = Wire::open(world.gateway.agents).await;
    begun
        .send("GET /desk/customers/c_1001 HTTP/1.1\r\nHost: g")
        .await;
    let mut used = Wire::open(world.gateway.agents).await;
    used.send(world.head("GET /desk/customers/c_1001") + "\r\n")
        .await;
    assert_eq!(used.answer().await.unwrap().status, 200);
    let mut dripping = Wire::open(world.gateway.operators).await;
    let start = Instant::now();
    let drip = async {
        dripping.send("GET /readyz HTTP/1.1\r\nX: ").await;
        while start.elapsed() < Duration::from_secs(3) {
            dripping.send("y").await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        start.elapsed()
    };
    let others = async {
        for mut wire in [silent, begun, used] {
            assert!(wire.ends().await);
        }
        start.elapsed()
    };
    let (_, took) = tokio::join!(drip, others);
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(dripping.ends().await, "byte after byte does not help");
}

#[tokio::test]
async fn a_body_that_does_not_come_in_time_is_refused() {
    let world = with_limits(Setup::shipped(), "client_read_timeout_ms: 300")
        .start()
        .await;
    let json = "Content-Type: application/json\r\n";
    for (line, lines) in [
        (
            "POST /desk/refunds",
            "Content-Length: 50\r\n\r\n{\"customer\"",
        ),
        (
            "POST /desk/refunds",
            "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"cus",
        ),
        (
            "POST /v1/tools/desk.refunds.create/calls",
            "Content-Length: 50\r\n\r\n{",
        ),
    ] {
        let mut wire = Wire::open(world.gateway.agents).await;
        wire.send(world.head(line) + json + lines).await;
        let answer = wire.answer().await.unwrap();
        world.refused_raw(&answer, 400, "malformed_body").await;
        assert!(wire.ends().await, "{line}");
    }
    let mut wire = Wire::open(world.gateway.agents).await;
    wire.send(world.head("POST /v1/runs") + json + "Content-Length: 50\r\n\r\n{")
        .await;
    assert_eq!(wire.answer().await.unwrap().status, 400);
    // Who has no key is not even waited for.
    let start = Instant::now();
    let keyless = "POST /desk/refunds HTTP/1.1\r\nHost: g\r\nContent-Length: 100000000\r\n\r\n{";
    let answer = Wire::ask(world.gateway.agents, keyless).await;
    assert_eq!(
        (answer.status, answer.code().as_str()),
        (401, "unauthenticated")
    );
    assert!(start.elapsed() < Duration::from_millis(250));
    assert_eq!(world.desk_requests(), 0);
}

#[tokio::test]
async fn agents_that_take_all_connections_leave_the_operators_theirs() {
    let world = with_limits(Setup::shipped(), "max_connections: 4")
        .start()
        .await;
    let request = world.head("GET /desk/customers/c_1001") + "\r\n";
    let mut held = Vec::new();
    // The client of the fixture keeps one connection of its own.
    while held.len() < 4 {
        let mut wire = Wire::open(world.gateway.agents).await;
        wire.send("GET").await;
        held.push(wire);
    }
    let mut next = Wire::open(world.gateway.agents).await;
    next.send(&request).await;
    assert!(next.is_silent_for(Duration::from_millis(500)).await);
    for path in ["/livez", "/readyz", "/v1/kill-switches"] {
        send(world.operator("ada", Method::GET, path))
            .await
            .expect(200);
    }
    held.clear();
    assert_eq!(next.answer().await.unwrap().status, 200);
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answer_is_let_go() {
    let body = format!("\"{}\"", "x".repeat(24 << 20));
    let act = json_answer("200 OK", "", &body);
    let api = RawApi::start(move |_| act.clone()).await;
    let setup = with_limits(
        probe::setup(&api),
        "client_write_timeout_ms: 400, max_connections: 3",
    );
    let world = setup.start().await;
    let request = world.head("GET /probe/blobs/1") + "\r\n";
    let mut slow = Vec::new();
    while slow.len() < 3 {
        let mut wire = Wire::open(world.gateway.agents).await;
        wire.send(&request).await;
        slow.push(wire);
    }
    // Their places become free although none of them has gone away.
    let mut next = Wire::open(world.gateway.agents).await;
    next.send(world.head("GET /desk/customers/c_1001") + "\r\n")
        .await;
    assert_eq!(next.answer().await.unwrap().status, 200);
    drop(slow);
}

#[tokio::test]
async fn a_call_whose_client_hangs_up_is_still_brought_to_its_end() {
    let api = RawApi::start(|_| {
        std::thread::sleep(Duration::from_millis(400));
        json_answer("200 OK", "", r#"{"ok": true}"#)
    })
    .await;
    let world = probe::setup(&api).start().await;
    let put = |length: usize, body: &str| {
        let head = world.head("PUT /probe/things/a/parts/1");
        format!("{head}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}")
    };
    let mut wire = Wire::open(world.gateway.agents).await;
    wire.send(put(12, r#"{"text":"x"}"#)).await;
    tokio::time::sleep(Duration::from_millis(150)).await;
    drop(wire);
    let row = world.last_call_ended().await;
    assert_eq!(row["outcome"], "completed", "{row}");
    assert_eq!(row["executed"], true);
    assert!(api.request().ends_with(r#"{"text":"x"}"#));
    // One that goes away within its request has made no call that could be carried out.
    let mut wire = Wire::open(world.gateway.agents).await;
    wire.send(put(13, r#"{"text":"x"}"#)).await;
    drop(wire);
    for _ in 0..100 {
        if world.last_call_ended().await["decision"] == "deny" {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let row = world.last_call_ended().await;
    assert_eq!(
        row["reasons"],
        serde_json::json!(["malformed_body"]),
        "{row}"
    );
    assert!(api.requests().is_empty());
}

#[tokio::test]
async fn an_api_that_keeps_connections_half_open_delays_its_own_calls_only() {
    let api = RawApi::start(|_| Act::Silence).await;
    let setup = probe::setup(&api).config(
        "    base_url: ${env:PROBE_URL}\n",
        "    base_url: ${env:PROBE_URL}\n    max_connections: 2\n",
    );
    let world = setup.start().await;
    let stuck: Vec<_> = (0..6)
        .map(|_| tokio::spawn(send(world.agent(Method::PUT, "/probe/things/a/parts/1"))))
        .collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let start = Instant::now();
    send(world.agent(Method::GET, "/desk/customers/c_1001"))
        .await
        .expect(200);
    assert!(start.elapsed() < Duration::from_millis(500));
    let mut timeouts = 0;
    for answer in stuck {
        let answer = answer.await.unwrap();
        match answer.code() {
            "upstream_timeout" => timeouts += 1,
            code => assert_eq!(code, "upstream_unreachable"),
        }
    }
    // What waited for a connection in vain was certainly not sent, and what was sent is not said to be unsent.
    assert!(timeouts >= 2, "{timeouts}");
    assert_eq!(api.requests().len(), timeouts);
}
