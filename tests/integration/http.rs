//! HTTP as an attacker writes it: requests with two readings, with strange targets, and that ask for another protocol.

use serde_json::json;

use crate::{
    probe,
    support::World,
    wire::{Raw, Wire},
};

const REFUND: &str = r#"{"customer":"c_1001","amount_cents":100,"currency":"EUR"}"#;

fn chunk(text: &str) -> String {
    format!("{:x}\r\n{text}\r\n0\r\n\r\n", text.len())
}

/// A refund that hides behind another request.
fn smuggled(world: &World) -> String {
    format!(
        "POST /desk/refunds HTTP/1.1\r\nHost: gateway\r\n{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{REFUND}",
        world.authorization(),
        REFUND.len()
    )
}

/// A refund with these lines for its length, and nothing else amiss.
fn refund(world: &World, version: &str, lines: &str, body: &str) -> String {
    format!(
        "POST /desk/refunds {version}\r\nHost: gateway\r\n{}\r\nContent-Type: application/json\r\n{lines}\r\n{body}",
        world.authorization()
    )
}

async fn refused_and_closed(world: &World, name: &str, bytes: &[u8]) {
    let mut wire = Wire::open(world.gateway.agents).await;
    wire.send(bytes).await;
    let answer = wire
        .answer()
        .await
        .unwrap_or_else(|| panic!("{name}: no answer"));
    assert_eq!(answer.status, 400, "{name}: {answer:?}");
    assert!(wire.ends().await, "{name}: the connection goes on");
    assert_eq!(world.desk_requests(), 0, "{name}");
}

#[tokio::test]
async fn a_request_with_two_readings_is_refused_and_its_connection_closed() {
    let world = World::shipped().await;
    let length = REFUND.len();
    let (cl, te) = (
        format!("Content-Length: {length}\r\n"),
        "Transfer-Encoding: chunked\r\n",
    );
    let chunked = chunk(REFUND);
    let table: Vec<(&str, String, &str)> = vec![
        ("CL then TE", format!("{cl}{te}"), &chunked),
        ("TE then CL", format!("{te}{cl}"), &chunked),
        ("CL.TE", format!("Content-Length: 4\r\n{te}"), &chunked),
        ("CL twice", format!("{cl}{cl}"), REFUND),
        (
            "CL and another CL",
            format!("{cl}Content-Length: 4\r\n"),
            REFUND,
        ),
        (
            "CL with a sign",
            format!("Content-Length: +{length}\r\n"),
            REFUND,
        ),
        ("CL below zero", "Content-Length: -1\r\n".to_owned(), REFUND),
        (
            "CL in hexadecimal",
            format!("Content-Length: 0x{length:x}\r\n"),
            REFUND,
        ),
        (
            "CL as a list",
            format!("Content-Length: {length}, {length}\r\n"),
            REFUND,
        ),
        (
            "CL with a space",
            "Content-Length: 5 7\r\n".to_owned(),
            REFUND,
        ),
        (
            "CL beyond 64 bits",
            "Content-Length: 99999999999999999999\r\n".to_owned(),
            REFUND,
        ),
        ("CL empty", "Content-Length:\r\n".to_owned(), ""),
        (
            "TE twice in one",
            "Transfer-Encoding: chunked, chunked\r\n".to_owned(),
            &chunked,
        ),
        ("TE twice", format!("{te}{te}"), &chunked),
        (
            "TE xchunked",
            "Transfer-Encoding: xchunked\r\n".to_owned(),
            &chunked,
        ),
        (
            "TE identity",
            "Transfer-Encoding: identity\r\n".to_owned(),
            &chunked,
        ),
        (
            "TE identity, chunked",
            "Transfer-Encoding: identity, chunked\r\n".to_owned(),
            &chunked,
        ),
        (
            "TE gzip, chunked",
            "Transfer-Encoding: gzip, chunked\r\n".to_owned(),
            &chunked,
        ),
        (
            "TE with a tab",
            "Transfer-Encoding:\tchunked\r\n".to_owned(),
            &chunked,
        ),
        (
            "TE with a trailing tab",
            "Transfer-Encoding: chunked\t\r\n".to_owned(),
            &chunked,
        ),
        (
            "TE with a space before the colon",
            "Transfer-Encoding : chunked\r\n".to_owned(),
            &chunked,
        ),
        (
            "TE in quotes",
            "Transfer-Encoding: \"chunked\"\r\n".to_owned(),
            &chunked,
        ),
        (
            "TE folded",
            "Transfer-Encoding:\r\n chunked\r\n".to_owned(),
            &chunked,
        ),
        ("a folded line", format!("{cl}X-A: b\r\n c\r\n"), REFUND),
        ("a bare LF", format!("{cl}X-A: b\nX-C: d\r\n"), REFUND),
        (
            "a bare LF that hides TE",
            format!("{cl}X-A: b\nTransfer-Encoding: chunked\r\n"),
            &chunked,
        ),
        ("a bare CR", format!("{cl}X-A: b\rX-C: d\r\n"), REFUND),
        ("NUL in a value", format!("{cl}X-A: b\0c\r\n"), REFUND),
        ("NUL in a name", format!("{cl}X\0A: b\r\n"), REFUND),
        ("no colon", format!("{cl}X-A\r\n"), REFUND),
        ("no name", format!("{cl}: b\r\n"), REFUND),
        ("two hosts", format!("{cl}Host: other\r\n"), REFUND),
    ];
    for (name, lines, body) in table {
        let bytes = refund(&world, "HTTP/1.1", &lines, body) + &smuggled(&world);
        refused_and_closed(&world, name, bytes.as_bytes()).await;
    }
    let plain = refund(&world, "HTTP/1.1", &cl, REFUND);
    for (name, bytes) in [
        ("TE in HTTP/1.0", refund(&world, "HTTP/1.0", te, &chunked)),
        ("no host", plain.replace("Host: gateway\r\n", "")),
        ("nothing but bare LF", plain.replace("\r\n", "\n")),
        ("an unknown version", plain.replace("HTTP/1.1", "HTTP/1.2")),
        (
            "a space in the target",
            plain.replace("/desk/refunds", "/desk/ refunds"),
        ),
        (
            "a control character in the target",
            plain.replace("/desk/refunds", "/desk/\u{1}refunds"),
        ),
    ] {
        refused_and_closed(&world, name, (bytes + &smuggled(&world)).as_bytes()).await;
    }
}

#[tokio::test]
async fn a_later_request_of_a_connection_is_held_to_the_same() {
    let world = World::shipped().await;
    let cl = format!("Content-Length: {}\r\n", REFUND.len());
    let te = "Transfer-Encoding: chunked\r\n";
    let mut wire = Wire::open(world.gateway.agents).await;
    // A body that looks like a bad request is still a body.
    let inner = refund(&world, "HTTP/1.1", &format!("{te}{cl}"), &chunk(REFUND));
    wire.send(refund(
        &world,
        "HTTP/1.1",
        &format!("Content-Length: {}\r\n", inner.len()),
        &inner,
    ))
    .await;
    let answer = wire.answer().await.unwrap();
    world.refused_raw(&answer, 400, "malformed_body").await;
    for (lines, body) in [(cl.as_str(), REFUND.to_owned()), (te, chunk(REFUND))] {
        wire.send(refund(&world, "HTTP/1.1", lines, &body)).await;
        assert_eq!(wire.answer().await.unwrap().status, 201);
    }
    wire.send(refund(
        &world,
        "HTTP/1.1",
        &format!("{te}{cl}"),
        &chunk(REFUND),
    ))
    .await;
    wire.send(smuggled(&world)).await;
    assert_eq!(wire.answer().await.unwrap().status, 400);
    assert!(wire.ends().await);
    assert_eq!(world.received("POST /refunds"), 2);
}

#[tokio::test]
async fn pipelined_requests_are_answered_each_for_itself() {
    let world = World::shipped().await;
    let cl = format!("Content-Length: {}\r\n", REFUND.len());
    let keyless = "GET /desk/customers/c_1001 HTTP/1.1\r\nHost: gateway\r\n\r\n";
    let mut wire = Wire::open(world.gateway.agents).await;
    let extended = REFUND.len();
    let chunked = format!("{extended:X};ext=\"a;b\"\r\n{REFUND}\r\n0\r\nX-Trailer: 1\r\n\r\n");
    wire.send(
        refund(&world, "HTTP/1.1", &cl, REFUND)
            + keyless
            + &refund(
                &world,
                "HTTP/1.1",
                "Transfer-Encoding: Chunked\r\n",
                &chunked,
            )
            + keyless,
    )
    .await;
    for status in [201, 401, 201, 401] {
        assert_eq!(wire.answer().await.unwrap().status, status);
    }
    // HTTP/1.0 as old proxies speak it: understood, and one request a connection.
    let mut old = Wire::open(world.gateway.agents).await;
    old.send(refund(&world, "HTTP/1.0", &cl, REFUND) + keyless)
        .await;
    assert_eq!(old.answer().await.unwrap().status, 201);
    assert!(old.ends().await);
    assert_eq!(world.received("POST /refunds"), 3);
}

#[tokio::test]
async fn whatever_form_its_target_has_a_request_goes_where_its_path_says() {
    let (world, api) = probe::agreeable().await;
    let ask = |line: &str| {
        let head = world.head(line);
        Wire::ask(world.gateway.agents, head + "\r\n")
    };
    // The absolute form names a host, which is not where anything is sent.
    let answer = ask("GET http://evil.example:99/probe/reports/1").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let request = api.request();
    assert!(
        request.starts_with("GET /base/reports/1 HTTP/1.1\r\n"),
        "{request}"
    );
    assert!(
        request
            .to_lowercase()
            .contains(&format!("\r\nhost: {}\r\n", api.address)),
        "{request}"
    );
    for line in [
        "OPTIONS *",
        "GET *",
        "GET http://evil.example",
        "GET http://evil.example/http://probe/reports/1",
        "GET //evil.example/probe/reports/1",
        "GET ///probe/reports/1",
        "GET probe.example:80",
        "CONNECT probe.example:80",
    ] {
        let answer = ask(line).await;
        assert!(
            answer.status == 404 && answer.code() == "unknown_tool" || answer.status == 400,
            "{line}: {answer:?}"
        );
        if answer.status == 404 {
            world.refused_raw(&answer, 404, "unknown_tool").await;
        }
    }
    assert_eq!(api.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn methods_that_no_tool_has_are_refused_with_those_it_has() {
    let (world, api) = probe::agreeable().await;
    for method in [
        "TRACE", "OPTIONS", "HEAD", "POST", "PROPFIND", "get", "CONNECT",
    ] {
        let head = world.head(&format!("{method} /probe/reports/1"));
        let mut wire = Wire::open(world.gateway.agents).await;
        wire.send(head + "Connection: close\r\n\r\n").await;
        let answer = wire.answer().await.unwrap();
        assert_eq!(answer.status, 405, "{method}: {answer:?}");
        assert_eq!(answer.header("allow"), Some("GET"), "{method}: {answer:?}");
        let row = world
            .recorded(answer.header("toolgate-call").unwrap())
            .await;
        assert_eq!(row["reasons"], json!(["unknown_tool"]), "{method}");
    }
    assert_eq!(api.requests(), Vec::<String>::new());
}

#[tokio::test]
async fn an_upgrade_is_refused_and_the_bytes_after_it_are_nobodys() {
    let world = World::shipped().await;
    let length = REFUND.len();
    for lines in [
        format!("Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: {length}\r\n"),
        format!(
            "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\nContent-Length: {length}\r\n"
        ),
        format!("Upgrade: TLS/1.0\r\nContent-Length: {length}\r\n"),
    ] {
        let mut wire = Wire::open(world.gateway.agents).await;
        wire.send(refund(&world, "HTTP/1.1", &lines, REFUND) + &smuggled(&world))
            .await;
        let answer = wire.answer().await.unwrap();
        world.refused_raw(&answer, 400, "malformed_body").await;
        assert!(wire.ends().await, "{lines}");
    }
    // What HTTP/2 with prior knowledge begins with.
    let mut wire = Wire::open(world.gateway.agents).await;
    wire.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
    let answer: Option<Raw> = wire.answer().await;
    assert!(answer.is_none_or(|answer| answer.status == 400));
    assert!(wire.ends().await);
    assert_eq!(world.desk_requests(), 0);
}
