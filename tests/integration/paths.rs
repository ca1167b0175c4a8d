//! Paths, query strings and headers: what could be read in two ways is refused, and what goes on is exactly what was
//! decided on, encoded anew.

use reqwest::Method;
use serde_json::json;

use crate::{
    probe::{self, PLANTED},
    support::{World, send},
    wire::Wire,
};

#[tokio::test]
async fn a_path_with_a_second_reading_is_refused() {
    let world = World::shipped().await;
    let refused: &[(&str, u16, &str)] = &[
        ("/desk/../desk/customers/c_1001", 400, "malformed_body"),
        ("/desk/./customers/c_1001", 400, "malformed_body"),
        ("/desk/customers/../customers/c_1001", 400, "malformed_body"),
        (
            "/desk/customers/%2e%2e/customers/c_1001",
            400,
            "malformed_body",
        ),
        ("/desk/customers/.%2E/c_1001", 400, "malformed_body"),
        ("/desk/customers/%2e", 400, "malformed_body"),
        ("/desk/customers/..;/c_1001", 400, "malformed_body"),
        ("/desk/customers%2fc_1001", 400, "malformed_body"),
        ("/desk/customers/x%2F..%2Fc_1001", 400, "malformed_body"),
        ("/desk/customers/x%5C..%5Cc_1001", 400, "malformed_body"),
        ("/desk//customers/c_1001", 400, "malformed_body"),
        ("/desk/customers//c_1001", 400, "malformed_body"),
        ("/desk/customers/c_1001//", 400, "malformed_body"),
        ("/desk/customers/c_1001;x=1", 400, "malformed_body"),
        ("/desk/customers/c_1001%3Bx=1", 400, "malformed_body"),
        ("/desk/customers;x=1/c_1001", 400, "malformed_body"),
        ("/desk/customers/c_1001%00", 400, "malformed_body"),
        (
            "/desk/customers/c_1001%0d%0aX-Evil:%201",
            400,
            "malformed_body",
        ),
        ("/desk/customers/c_1001%0A", 400, "malformed_body"),
        ("/desk/customers/c_1001%C2%85", 400, "malformed_body"),
        ("/desk/customers/%c0%ae%c0%ae", 400, "malformed_body"),
        ("/desk/customers/%ff", 400, "malformed_body"),
        ("/desk/customers/%ed%a0%80", 400, "malformed_body"),
        ("/desk/customers/%u0063_1001", 400, "malformed_body"),
        ("/desk/customers/c_1001%", 400, "malformed_body"),
        ("/desk/customers/c_1001%4", 400, "malformed_body"),
        // Decoded once: what is left then is an id that the contract does not take.
        ("/desk/customers/%252e%252e", 422, "invalid_arguments"),
        ("/desk/customers/c_1001%252f..", 422, "invalid_arguments"),
        ("/desk/customers/c_1001%23x", 422, "invalid_arguments"),
        ("/desk/customers/c_1001%3Fx=1", 422, "invalid_arguments"),
        ("/desk/customers/c_1001%20", 422, "invalid_arguments"),
        ("/desk/customers/c_1001+", 422, "invalid_arguments"),
        ("/desk/customers/%EF%BD%83_1001", 422, "invalid_arguments"),
        // Names are compared as they stand.
        ("/desk/customers/c_1001/", 404, "unknown_tool"),
        ("/desk/customers/", 404, "unknown_tool"),
        ("/desk/Customers/c_1001", 404, "unknown_tool"),
        ("/Desk/customers/c_1001", 404, "unknown_tool"),
        ("/d%65sk/customers/c_1001", 404, "unknown_tool"),
        ("/desk%2Fcustomers/c_1001", 404, "unknown_tool"),
        ("//desk/customers/c_1001", 404, "unknown_tool"),
        ("/./desk/customers/c_1001", 404, "unknown_tool"),
        ("/desk/_received", 404, "unknown_tool"),
        ("/desk/", 404, "unknown_tool"),
        ("/desk", 404, "unknown_tool"),
        ("/", 404, "unknown_tool"),
        ("/v1", 404, "unknown_tool"),
        ("/v1/tools/", 404, "unknown_tool"),
        ("/v1/approvals", 404, "unknown_tool"),
        ("/v1/kill-switches", 404, "unknown_tool"),
    ];
    let mut wire = Wire::open(world.gateway.agents).await;
    for (path, status, code) in refused {
        wire.send(world.head(&format!("GET {path}")) + "\r\n").await;
        let answer = wire
            .answer()
            .await
            .unwrap_or_else(|| panic!("{path}: no answer"));
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (*status, *code),
            "{path}: {answer:?}"
        );
        world.refused_raw(&answer, *status, code).await;
    }
    assert_eq!(world.desk_requests(), 0);
    // Characters that no target may hold do not even get that far.
    for target in [
        "/desk/customers/c_1001\\",
        "/desk/customers/\"",
        "/desk/customers/<",
        "/desk/customers/c\u{e4}",
    ] {
        let answer = Wire::ask(
            world.gateway.agents,
            world.head(&format!("GET {target}")) + "\r\n",
        )
        .await;
        assert!([400, 422].contains(&answer.status), "{target}: {answer:?}");
    }
    assert_eq!(world.desk_requests(), 0);
    // An encoded letter is that letter, and a fragment is no part of a request.
    for (times, target) in [
        (1, "/desk/customers/%63_1001"),
        (2, "/desk/customers/c_1001#/../x"),
    ] {
        wire.send(world.head(&format!("GET {target}")) + "\r\n")
            .await;
        assert_eq!(wire.answer().await.unwrap().status, 200, "{target}");
        assert_eq!(world.received("GET /customers/{id}"), times);
    }
}

#[tokio::test]
async fn tools_are_named_exactly() {
    let world = World::shipped().await;
    let body = "Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    for name in [
        "nothing",
        "desk.refunds.create%00",
        "desk.refunds.create%20",
        "Desk.Refunds.Create",
        "desk.refunds",
        "%ff",
        "%c0%ae",
        "..%2f",
        "desk.refunds.creat%D0%B5",
    ] {
        let line = format!("POST /v1/tools/{name}/calls");
        let answer = Wire::ask(world.gateway.agents, world.head(&line) + body).await;
        let row = world.refused_raw(&answer, 404, "unknown_tool").await;
        assert_eq!(row["tool"], json!(null), "{name}");
        assert_eq!(row["surface"], "tool_call");
    }
    for path in [
        "/v1/calls/%ff",
        "/v1/calls/%00",
        "/v1/calls/x",
        "/v1/calls/call_00000000000000000000000000",
    ] {
        let answer = Wire::ask(
            world.gateway.agents,
            world.head(&format!("GET {path}")) + "\r\n",
        )
        .await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (404, "not_found"),
            "{path}"
        );
    }
    for id in ["%ff", "%00", "x", "appr_00000000000000000000000000"] {
        let path = format!("/v1/approvals/{id}");
        send(world.operator("ada", Method::GET, &path))
            .await
            .problem(404, "not_found");
        let path = format!("/v1/kill-switches/{id}");
        let release = world
            .operator("ada", Method::DELETE, &path)
            .json(&json!({"reason": "x"}));
        send(release).await.problem(404, "not_found");
    }
    for query in [
        "cursor=%00",
        "agent=%00",
        "limit=x",
        "limit=99999999999999999999",
        "nothing=1",
        "state=gone",
        "agent=%ff",
    ] {
        let path = format!("/v1/approvals?{query}");
        let answer = send(world.operator("ada", Method::GET, &path)).await;
        assert!([200, 400].contains(&answer.status), "{query}: {answer:?}");
        if answer.status == 400 {
            answer.problem(400, "malformed_body");
        }
    }
    // The path is one of the gateway's own and the method is not.
    for (method, path, allow) in [
        (Method::GET, "/v1/tools/desk.refunds.create/calls", "POST"),
        (Method::DELETE, "/v1/tools", "GET,HEAD"),
        (Method::PUT, "/v1/runs", "POST"),
    ] {
        let answer = send(world.agent(method, path))
            .await
            .problem(405, "not_found");
        assert_eq!(answer.header("allow"), allow, "{path}");
    }
    let answer = send(world.operator("ada", Method::PUT, "/v1/kill-switches")).await;
    let answer = answer.problem(405, "not_found");
    assert_eq!(answer.header("allow"), "GET,HEAD,POST");
}

#[tokio::test]
async fn values_arrive_encoded_anew_in_the_place_the_contract_gives_them() {
    let (world, api) = probe::agreeable().await;
    for (target, sent) in [
        (
            "/probe/things/a%20b%26c%3D%25%2e%C3%A4/parts/7",
            "/base/things/a%20b%26c%3D%25.%C3%A4/parts/7",
        ),
        (
            "/probe/things/%61%7Eb+c/parts/7",
            "/base/things/a~b%2Bc/parts/7",
        ),
        (
            "/probe/things/a%252e%252e/parts/7",
            "/base/things/a%252e%252e/parts/7",
        ),
        (
            "/probe/things/a%23b%3Fc/parts/7",
            "/base/things/a%23b%3Fc/parts/7",
        ),
        (
            "/probe/things/a/parts/7?q=x+y",
            "/base/things/a/parts/7?q=x%20y",
        ),
        (
            "/probe/things/a/parts/7?q=x%2By&n=5",
            "/base/things/a/parts/7?q=x%2By&n=5",
        ),
        (
            "/probe/things/a/parts/7?n=5&q=%0d%0aX-Evil:%201%26n%3D6",
            "/base/things/a/parts/7?q=%0D%0AX-Evil%3A%201%26n%3D6&n=5",
        ),
        (
            "/probe/things/a/parts/7?tag=one&tag=two%26q%3D3",
            "/base/things/a/parts/7?tag=one&tag=two%26q%3D3",
        ),
        (
            "/probe/things/a/parts/7?tag[]=one&tag%5B%5D=two",
            "/base/things/a/parts/7?tag=one&tag=two",
        ),
        ("/probe/things/a/parts/7?&&q=&", "/base/things/a/parts/7?q="),
        (
            "/probe/things/a/parts/7?q=a%23b/../%2e%2e;c",
            "/base/things/a/parts/7?q=a%23b%2F..%2F..%3Bc",
        ),
    ] {
        let head = world.head(&format!("PUT {target}"));
        let answer = Wire::ask(world.gateway.agents, head + "\r\n").await;
        assert_eq!(answer.status, 200, "{target}: {answer:?}");
        let request = api.request();
        let line = request.lines().next().unwrap();
        assert_eq!(line, format!("PUT {sent} HTTP/1.1"), "{target}");
    }
    for (target, status, code) in [
        ("/probe/things/a/parts/7?q=1&q=2", 422, "invalid_arguments"),
        ("/probe/things/a/parts/7?q=1&Q=2", 422, "invalid_arguments"),
        (
            "/probe/things/a/parts/7?n=1&n[]=2",
            422,
            "invalid_arguments",
        ),
        ("/probe/things/a/parts/7?n=0x1", 422, "invalid_arguments"),
        ("/probe/things/a/parts/7?n=+1", 422, "invalid_arguments"),
        (
            "/probe/things/a/parts/7?n=9007199254740993",
            422,
            "invalid_arguments",
        ),
        ("/probe/things/a/parts/7?other=1", 422, "invalid_arguments"),
        ("/probe/things/a/parts/7?id=other", 422, "invalid_arguments"),
        (
            "/probe/things/a/parts/7?text=body",
            422,
            "invalid_arguments",
        ),
        (
            "/probe/things/a/parts/7?_method=DELETE",
            422,
            "invalid_arguments",
        ),
        ("/probe/things/a/parts/7?q", 200, ""),
        ("/probe/things/a/parts/x", 422, "invalid_arguments"),
        ("/probe/things/a/parts/07", 422, "invalid_arguments"),
        ("/probe/things/a/parts/7?q=%zz", 400, "malformed_body"),
        ("/probe/things/a/parts/7?q=%ff", 400, "malformed_body"),
        ("/probe/things/a/parts/7?q=%00", 400, "malformed_body"),
        ("/probe/things/a/parts/7?%00=1", 400, "malformed_body"),
    ] {
        let head = world.head(&format!("PUT {target}"));
        let answer = Wire::ask(world.gateway.agents, head + "\r\n").await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{target}: {answer:?}"
        );
        assert_eq!(api.requests().len(), usize::from(status == 200), "{target}");
    }
    // The same through the tool's name, where no decoding stands between.
    for (id, sent) in [
        ("a%2F b", Some("a%252F%20b")),
        ("a/b", None),
        ("..", None),
        ("", None),
        ("a;b", None),
        ("a\r\nb", None),
        ("a\\b", None),
    ] {
        let body = json!({"arguments": {"id": id, "part": 1}});
        let answer = send(
            world
                .agent(Method::POST, "/v1/tools/probe.things.put/calls")
                .json(&body),
        )
        .await;
        match sent {
            Some(sent) => {
                answer.expect(200);
                assert!(
                    api.request()
                        .starts_with(&format!("PUT /base/things/{sent}/parts/1 "))
                );
            }
            None => {
                let answer = answer.problem(422, "invalid_arguments");
                assert_eq!(answer.body["errors"][0]["pointer"], "/id", "{id:?}");
                assert!(api.requests().is_empty());
            }
        }
    }
}

#[tokio::test]
async fn of_the_clients_headers_only_those_of_the_contract_go_on() {
    let (world, api) = probe::agreeable().await;
    let lines = [
        "X-HTTP-Method-Override: DELETE",
        "X-HTTP-Method: DELETE",
        "X-Method-Override: DELETE",
        "Toolgate-Call: call_forged",
        "Toolgate-Reason: because",
        "Toolgate-Approval: appr_forged",
        "X-Forwarded-For: 127.0.0.1",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Proto: https",
        "X-Real-IP: 127.0.0.1",
        "X-Original-URL: /admin",
        "X-Rewrite-URL: /admin",
        "Forwarded: for=127.0.0.1",
        "Via: 1.1 evil",
        "Connection: keep-alive, X-Probe-Key, If-Match, x-secret",
        "Keep-Alive: timeout=100",
        "TE: trailers",
        "x-secret: 1",
        "X-Probe-Key: mine",
        "Proxy-Authorization: Basic YTpi",
        "Proxy-Connection: keep-alive",
        "Cookie: session=1",
        "Origin: https://evil.example",
        "Referer: https://evil.example",
        "Accept-Encoding: gzip",
        "Accept: text/html",
        "User-Agent: agent",
        "Range: bytes=0-1",
        "Expect: 100-continue",
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "If-Match: \"v1\"",
        "X-Note: a note",
        "Idempotency-Key: k-1",
    ];
    let head = world.head("PUT /probe/things/a/parts/1?q=z");
    let body = r#" {"count":1.0, "text" : "\u0061\/"} "#;
    let bytes = format!(
        "{head}{}\r\nContent-Type: application/json; charset=UTF-8\r\nContent-Length: {}\r\n\r\n{body}",
        lines.join("\r\n"),
        body.len()
    );
    let mut wire = Wire::open(world.gateway.agents).await;
    wire.send(bytes).await;
    wire.until("HTTP/1.1 100 Continue\r\n\r\n").await;
    let answer = wire.answer().await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    let call = answer.header("toolgate-call").unwrap();
    assert!(call.starts_with("call_") && call != "call_forged");
    let request = api.request();
    let (head, sent) = request.split_once("\r\n\r\n").unwrap();
    assert_eq!(
        sent, r#"{"count":1,"text":"a/"}"#,
        "written anew from what was read"
    );
    let mut found: Vec<_> = head.lines().map(str::to_owned).collect();
    assert_eq!(found.remove(0), "PUT /base/things/a/parts/1?q=z HTTP/1.1");
    found.sort();
    let mut expected = [
        "accept-encoding: identity".to_owned(),
        format!("content-length: {}", sent.len()),
        "content-type: application/json".to_owned(),
        format!("host: {}", api.address),
        "if-match: \"v1\"".to_owned(),
        format!("toolgate-call: {call}"),
        // The one header that goes on without a contract, because nothing but hexadecimal digits fits into it.
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
        format!("user-agent: toolgate/{}", env!("CARGO_PKG_VERSION")),
        "x-note: a note".to_owned(),
        "x-probe-key: probe-secret".to_owned(),
    ];
    expected.sort();
    assert_eq!(found, expected);
}

#[tokio::test]
async fn a_trace_that_is_not_well_formed_does_not_go_on() {
    let (world, api) = probe::agreeable().await;
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    let zero = "0".repeat(32);
    for lines in [
        format!("traceparent: 01-{trace}-{parent}-01\r\n"),
        format!("traceparent: 00-{trace}-{parent}-01-{PLANTED}\r\n"),
        format!("traceparent: 00-{trace}-{parent}\r\n"),
        format!("traceparent: 00-{zero}-{parent}-01\r\n"),
        format!("traceparent: 00-{}-{parent}-01\r\n", trace.to_uppercase()),
        format!("traceparent: 00-{trace}-{parent}-0x\r\n"),
        format!("traceparent: {PLANTED}\r\n"),
        format!("traceparent: 00-{trace}-{parent}-01\r\n").repeat(2),
        format!("tracestate: a={PLANTED}\r\n"),
        format!("baggage: a={PLANTED}\r\n"),
    ] {
        let head = world.head("PUT /probe/things/a/parts/1");
        let answer = Wire::ask(world.gateway.agents, format!("{head}{lines}\r\n")).await;
        assert_eq!(answer.status, 200, "{lines}: {answer:?}");
        let request = api.request().to_lowercase();
        assert!(
            !request.contains("trace") && !request.contains("baggage"),
            "{lines}: {request}"
        );
    }
}

#[tokio::test]
async fn a_declared_header_carries_one_value_and_no_more() {
    let (world, api) = probe::agreeable().await;
    let put = |lines: &str| {
        let head = world.head("PUT /probe/things/a/parts/1");
        Wire::ask(world.gateway.agents, format!("{head}{lines}\r\n"))
    };
    for lines in ["X-Note: a\r\nX-Note: b\r\n", "X-Note: a\r\nx-note: a\r\n"] {
        world
            .refused_raw(&put(lines).await, 422, "invalid_arguments")
            .await;
    }
    let answer = put("X-Note:  caf\u{e9} \r\n").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert!(api.request().contains("\r\nx-note: caf\u{e9}\r\n"));
    for note in [
        "a\r\nX-Evil: 1",
        "a\nb",
        "a\rb",
        "a\u{0}",
        "a\u{7f}",
        " a",
        "a\t",
    ] {
        let note = format!("{PLANTED}{note}{PLANTED}");
        let note = if note.contains(" a") || note.contains('\t') {
            note.replace(PLANTED, "")
        } else {
            note
        };
        let body = json!({"arguments": {"id": "a", "part": 1, "note": note}});
        let request = world
            .agent(Method::POST, "/v1/tools/probe.things.put/calls")
            .json(&body);
        let answer = send(request).await;
        assert!([400, 422].contains(&answer.status), "{note:?}: {answer:?}");
        assert!(!String::from_utf8_lossy(&answer.bytes).contains(PLANTED));
    }
    assert!(api.requests().is_empty());
    assert!(!world.whole_audit().await.contains(PLANTED));
}
