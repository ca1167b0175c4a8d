//! What an API answers: what can be used goes through, what cannot is said in words, and what nobody knows is called so.

use std::{sync::Arc, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    probe::{self, PLANTED},
    support::{Answer, World, send},
    wire::{Act, RawApi, Wire, json_answer},
};

/// Sends one call and holds answer, record and state to each other. Gives the record.
async fn failed(world: &World, status: u16, code: &str, outcome: &str, executed: &Value) -> Value {
    let request = world.agent(Method::PUT, "/probe/things/a/parts/1");
    let answer = send(request).await.problem(status, code);
    assert_eq!(&answer.body["executed"], executed, "{}", answer.body);
    let call = answer.header("toolgate-call").to_owned();
    let row = world.recorded(&call).await;
    assert_eq!(row["decision"], "permit", "{row}");
    assert_eq!(row["outcome"], outcome, "{row}");
    assert_eq!(&row["executed"], executed, "{row}");
    assert_eq!(row["reasons"], json!([code]), "{row}");
    assert_ne!(row["forwarded_at"], Value::Null, "{row}");
    let state = world.state(&call).await;
    assert_eq!(state["state"], outcome, "{state}");
    assert_eq!(&state["executed"], executed, "{state}");
    row
}

#[tokio::test]
async fn an_answer_that_cannot_be_used_is_withheld() {
    let say = |text: &str| Act::SayAndClose(text.to_owned());
    let large = "x".repeat(5_000);
    let table = [
        (
            "gzip",
            say("HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n\x1f\x08"),
            "indeterminate",
            Value::Null,
        ),
        (
            "twice encoded",
            say(
                "HTTP/1.1 200 OK\r\nContent-Encoding: identity\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\n{}",
            ),
            "indeterminate",
            Value::Null,
        ),
        (
            "101",
            say(
                "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            ),
            "indeterminate",
            Value::Null,
        ),
        (
            "no HTTP",
            say("SSH-2.0-OpenSSH\r\n\r\n"),
            "indeterminate",
            Value::Null,
        ),
        (
            "a malformed head",
            say("HTTP/1.1 200 OK\r\nno colon\r\n\r\n"),
            "indeterminate",
            Value::Null,
        ),
        (
            "a malformed status",
            say("HTTP/1.1 2x0 OK\r\n\r\n"),
            "indeterminate",
            Value::Null,
        ),
        (
            "two lengths",
            say("HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"),
            "indeterminate",
            Value::Null,
        ),
        (
            "an odd coding",
            say("HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"),
            "indeterminate",
            Value::Null,
        ),
        (
            "too large",
            say(&format!(
                "HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{large}"
            )),
            "failed",
            json!(true),
        ),
        (
            "too large by its own words",
            say("HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n"),
            "failed",
            json!(true),
        ),
        (
            "too large in chunks",
            say(&format!(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1388\r\n{large}\r\n0\r\n\r\n"
            )),
            "failed",
            json!(true),
        ),
        (
            "too large without a length",
            say(&format!("HTTP/1.1 200 OK\r\n\r\n{large}")),
            "failed",
            json!(true),
        ),
        (
            "no JSON",
            json_answer("200 OK", "", PLANTED),
            "failed",
            json!(true),
        ),
        (
            "empty",
            json_answer("200 OK", "", ""),
            "failed",
            json!(true),
        ),
        (
            "duplicate keys",
            json_answer("200 OK", "", r#"{"ok":true,"ok":false}"#),
            "failed",
            json!(true),
        ),
        (
            "a wrong type",
            json_answer("200 OK", "", &format!(r#"{{"ok":"{PLANTED}"}}"#)),
            "failed",
            json!(true),
        ),
    ];
    let current = Arc::new(std::sync::Mutex::new(Act::Close));
    let acting = Arc::clone(&current);
    let api = RawApi::start(move |_| acting.lock().unwrap().clone()).await;
    let world = probe::setup(&api).start().await;
    for (name, act, outcome, executed) in table {
        *current.lock().unwrap() = act;
        println!("{name}");
        failed(&world, 502, "upstream_answer_invalid", outcome, &executed).await;
        assert_eq!(api.requests().len(), 1, "{name}: sent once");
    }
    assert!(!world.whole_audit().await.contains(PLANTED));
}

#[tokio::test]
async fn a_sent_call_without_an_answer_is_indeterminate_and_not_sent_again() {
    let current = Arc::new(std::sync::Mutex::new(Act::Silence));
    let acting = Arc::clone(&current);
    let api = RawApi::start(move |_| acting.lock().unwrap().clone()).await;
    let world = probe::setup(&api).start().await;
    let never = Arc::new(Notify::new());
    let head = "HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n";
    for (name, act, status, code) in [
        ("silence", Act::Silence, 504, "upstream_timeout"),
        (
            "silence within the head",
            Act::Halves("HTTP/1.1 200".to_owned(), Arc::clone(&never), String::new()),
            504,
            "upstream_timeout",
        ),
        (
            "silence within the body",
            Act::Halves(format!("{head}{{\"ok\""), never, String::new()),
            504,
            "upstream_timeout",
        ),
        (
            "an end instead of an answer",
            Act::Close,
            502,
            "indeterminate",
        ),
        (
            "an end within the head",
            Act::SayAndClose("HTTP/1.1 200 OK\r\nContent-Le".to_owned()),
            502,
            "indeterminate",
        ),
        (
            "an end within the body",
            Act::SayAndClose(format!("{head}{{\"ok\"")),
            502,
            "indeterminate",
        ),
        (
            "an end within a chunk",
            Act::SayAndClose(
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nc\r\n{\"ok\"".to_owned(),
            ),
            502,
            "indeterminate",
        ),
    ] {
        *current.lock().unwrap() = act;
        println!("{name}");
        failed(&world, status, code, "indeterminate", &Value::Null).await;
        assert_eq!(api.requests().len(), 1, "{name}: sent once");
    }
    // Nobody there: certainly not sent.
    let address = api.address;
    drop(api);
    let answer = loop {
        let answer = send(world.agent(Method::PUT, "/probe/things/a/parts/1")).await;
        if answer.code() == "upstream_unreachable" {
            break answer.problem(502, "upstream_unreachable");
        }
        assert!(
            tokio::net::TcpStream::connect(address).await.is_ok(),
            "{}",
            answer.body
        );
    };
    assert_eq!(answer.body["executed"], false);
    let row = world.recorded(answer.header("toolgate-call")).await;
    assert_eq!(
        (&row["outcome"], &row["forwarded_at"]),
        (&json!("failed"), &Value::Null)
    );
}

#[tokio::test]
async fn a_contract_that_only_reports_lets_the_answer_through_and_says_so() {
    let body = format!(r#"{{"ok":"{PLANTED}"}}"#);
    let (world, _api) = probe::world(json_answer("200 OK", "", &body)).await;
    let answer = send(world.agent(Method::GET, "/probe/reports/1"))
        .await
        .expect(200);
    assert_eq!(answer.bytes, body.as_bytes());
    let row = world.recorded(answer.header("toolgate-call")).await;
    assert_eq!(row["outcome"], "completed");
    assert_eq!(row["reasons"], json!(["upstream_answer_invalid"]));
    let detail = row["outcome_detail"].to_string();
    assert!(detail.contains("/ok"), "{detail}");
    assert!(!world.whole_audit().await.contains(PLANTED));
}

#[tokio::test]
async fn an_answer_comes_through_as_it_is_but_for_what_is_the_connections_own() {
    let headers = "Set-Cookie: session=1; Path=/\r\nSet-Cookie2: a=b\r\nConnection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                   Proxy-Authenticate: Basic\r\nTrailer: X-T\r\nTE: trailers\r\nUpgrade: h2c\r\nAlt-Svc: h3=\":443\"\r\nToolgate-Call: call_forged\r\n\
                   Toolgate-Run: run_forged\r\nX-Kept: one\r\nX-Kept: two\r\nETag: \"v1\"\r\nRetry-After: 7\r\n";
    let current = Arc::new(std::sync::Mutex::new(Act::Close));
    let acting = Arc::clone(&current);
    let api = RawApi::start(move |_| acting.lock().unwrap().clone()).await;
    let world = probe::setup(&api).start().await;
    for (status, body) in [
        ("200 OK", "{ \"ok\" : true }"),
        ("404 Not Found", "{\"error\":\"no such thing\"}"),
        ("422 Unprocessable Content", "plain words"),
        ("500 Internal Server Error", ""),
        ("503 Service Unavailable", "{}"),
    ] {
        *current.lock().unwrap() = json_answer(status, headers, body);
        let answer = send(world.agent(Method::PUT, "/probe/things/a/parts/1")).await;
        assert_eq!(answer.status.to_string(), status[..3]);
        assert_eq!(answer.bytes, body.as_bytes());
        let call = answer.header("toolgate-call").to_owned();
        assert_ne!(call, "call_forged");
        let mut names: Vec<_> = answer
            .headers
            .keys()
            .map(|name| name.as_str().to_owned())
            .collect();
        names.sort();
        assert_eq!(
            names,
            [
                "content-length",
                "content-type",
                "date",
                "etag",
                "retry-after",
                "toolgate-call",
                "x-kept"
            ],
            "{status}"
        );
        assert_eq!(answer.headers.get_all("x-kept").iter().count(), 2);
        let row = world.recorded(&call).await;
        assert_eq!(
            (&row["outcome"], &row["executed"]),
            (&json!("completed"), &json!(true))
        );
        assert_eq!(row["status"].to_string(), status[..3]);
        assert_eq!(api.requests().len(), 1, "{status}: sent once");
    }
}

#[tokio::test]
async fn a_redirect_is_passed_on_and_not_followed() {
    let elsewhere = RawApi::start(|_| json_answer("200 OK", "", r#"{"ok": true}"#)).await;
    let location = format!("Location: http://{}/other\r\n", elsewhere.address);
    for status in [
        "301 Moved",
        "302 Found",
        "303 See Other",
        "307 Temporary Redirect",
        "308 Permanent Redirect",
    ] {
        let (world, api) = probe::world(json_answer(status, &location, "")).await;
        let head = world.head("PUT /probe/things/a/parts/1");
        let answer = Wire::ask(world.gateway.agents, head + "\r\n").await;
        assert_eq!(answer.status.to_string(), status[..3]);
        assert_eq!(
            answer.header("location").unwrap(),
            &location[10..location.len() - 2]
        );
        assert_eq!(api.requests().len(), 1);
    }
    assert!(elsewhere.requests().is_empty());
}

#[tokio::test]
async fn a_stream_is_passed_on_as_it_comes_and_recorded_at_its_end() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\nSet-Cookie: a=b\r\n\r\n";
    let first = format!("{head}a\r\ndata: one\n\r\n");
    for (second, outcome, executed) in [
        ("a\r\ndata: two\n\r\n0\r\n\r\n", "completed", json!(true)),
        ("a\r\ndata: ", "indeterminate", Value::Null),
        ("", "indeterminate", Value::Null),
    ] {
        let told = Arc::new(Notify::new());
        let act = Act::Halves(first.clone(), Arc::clone(&told), second.to_owned());
        let (world, api) = probe::world(act).await;
        let mut wire = Wire::open(world.gateway.agents).await;
        wire.send(world.head("GET /probe/streams/1") + "\r\n").await;
        let answer = wire.answer().await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.header("set-cookie"), None);
        let call = answer.header("toolgate-call").unwrap();
        wire.until("data: one\n").await;
        // The API has not said the rest: nothing was held back, and nothing is decided.
        let row = world.recorded(call).await;
        assert_eq!(
            (&row["decision"], &row["outcome"]),
            (&json!("permit"), &Value::Null)
        );
        assert_eq!(world.state(call).await["state"], "executing");
        told.notify_one();
        if outcome == "completed" {
            wire.until("data: two\n").await;
            wire.until("0\r\n\r\n").await;
        } else {
            // An end of the connection without the last chunk: the agent sees that it is not whole.
            let rest = wire.rest().await;
            assert!(!rest.ends_with("0\r\n\r\n"), "{rest}");
        }
        let row = world.last_call_ended().await;
        assert_eq!(row["outcome"], outcome, "{row}");
        assert_eq!(row["executed"], executed, "{row}");
        assert_eq!(world.state(call).await["state"], outcome);
        assert_eq!(api.requests().len(), 1);
    }
}

#[tokio::test]
async fn a_stream_whose_reader_goes_away_is_indeterminate() {
    let told = Arc::new(Notify::new());
    let first = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n".to_owned();
    let (world, _api) = probe::world(Act::Halves(first, told, String::new())).await;
    let mut wire = Wire::open(world.gateway.agents).await;
    wire.send(world.head("GET /probe/streams/1") + "\r\n").await;
    wire.until("one").await;
    drop(wire);
    let row = world.last_call_ended().await;
    assert_eq!(row["outcome"], "indeterminate", "{row}");
    // By its name the same tool gives its answer whole, and so it needs an end.
    let start = std::time::Instant::now();
    let path = "/v1/tools/probe.streams.get/calls";
    let body = json!({"arguments": {"id": "1"}});
    let answer: Answer = tokio::time::timeout(
        Duration::from_secs(15),
        send(world.agent(Method::POST, path).json(&body)),
    )
    .await
    .unwrap();
    answer.problem(504, "upstream_timeout");
    assert!(start.elapsed() > Duration::from_secs(9));
}
