//! Bodies: one reading or none, nothing beyond the contract, and no value in what is answered or recorded of a refusal.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    probe::PLANTED,
    support::{World, send},
    wire::Wire,
};

const TOOL: &str = "/v1/tools/desk.refunds.create/calls";

/// A refund with `note` as it stands.
fn noted(note: &str) -> Vec<u8> {
    format!(r#"{{"customer":"c_1001","amount_cents":100,"currency":"EUR","note":{note}}}"#)
        .into_bytes()
}

fn amount(amount: &str) -> Vec<u8> {
    format!(r#"{{"customer":"c_1001","amount_cents":{amount},"currency":"EUR"}}"#).into_bytes()
}

fn within(before: &str, body: &[u8], after: &str) -> Vec<u8> {
    [before.as_bytes(), body, after.as_bytes()].concat()
}

#[tokio::test]
async fn a_body_with_two_readings_or_none_is_refused_on_both_surfaces() {
    let world = World::shipped().await;
    let deep = |open: &str, close: &str, depth| open.repeat(depth) + "1" + &close.repeat(depth);
    let table: Vec<(&str, Vec<u8>)> = vec![
        ("a key twice", amount("1,\"amount_cents\":100000")),
        (
            "a key twice, escaped",
            amount("1,\"\\u0061mount_cents\":100000"),
        ),
        ("a key twice, deep", noted(r#"[{"a":{"b":1,"b":2}}]"#)),
        (
            "keys that differ in case",
            amount("1,\"Amount_cents\":100000"),
        ),
        ("keys that differ in case, deep", noted(r#"{"a":1,"A":1}"#)),
        (
            "keys that differ by a long s",
            noted(r#"{"customers":1,"customer\u017f":1}"#),
        ),
        ("2^53 + 1", amount("9007199254740993")),
        ("beyond 64 bits", amount("18446744073709551617")),
        ("beyond 64 bits, negative", amount("-9223372036854775809")),
        ("a float beyond 2^53", amount("1e16")),
        ("-0", amount("-0")),
        ("-0.0", amount("-0.0")),
        ("-0e5", amount("-0e5")),
        ("1e400", amount("1e400")),
        ("NaN", amount("NaN")),
        ("Infinity", amount("-Infinity")),
        ("a leading zero", amount("0100")),
        ("a plus", amount("+100")),
        ("hexadecimal", amount("0x64")),
        ("a trailing comma", amount("100,")),
        ("a comment", amount("100/**/")),
        ("single quotes", amount("'100'")),
        ("depth", noted(&deep("[", "]", 100))),
        ("depth of objects", noted(&deep("{\"a\":", "}", 100))),
        ("great depth", noted(&"[".repeat(30_000))),
        (
            "invalid UTF-8",
            within(
                "",
                &[&noted("\"")[..noted("\"").len() - 1], b"\xff\"}"].concat(),
                "",
            ),
        ),
        (
            "overlong UTF-8",
            within(
                "",
                &[&noted("\"")[..noted("\"").len() - 1], b"\xc0\xaf\"}"].concat(),
                "",
            ),
        ),
        (
            "an encoded surrogate",
            within(
                "",
                &[&noted("\"")[..noted("\"").len() - 1], b"\xed\xa0\x80\"}"].concat(),
                "",
            ),
        ),
        ("a byte order mark", within("\u{feff}", &noted("\"x\""), "")),
        (
            "UTF-16",
            noted("\"x\"").iter().flat_map(|byte| [*byte, 0]).collect(),
        ),
        ("a lone surrogate", noted(r#""\ud800""#)),
        ("surrogates in the wrong order", noted(r#""\udc00\ud800""#)),
        ("NUL, escaped", noted(r#""a\u0000b""#)),
        ("NUL, bare", noted("\"a\0b\"")),
        ("NUL in a key", noted(r#"{"a\u0000":1}"#)),
        ("a bare line break in a text", noted("\"a\nb\"")),
        ("garbage behind it", within("", &noted("\"x\""), "x")),
        ("a second document", within("", &noted("\"x\""), "{}")),
        ("cut short", noted("\"x\"")[..30].to_vec()),
        ("blank", b" \r\n".to_vec()),
        ("no JSON", b"customer: c_1001".to_vec()),
    ];
    for (name, body) in table {
        for (path, bytes) in [
            ("/desk/refunds", body.clone()),
            (TOOL, within("{\"arguments\":", &body, "}")),
        ] {
            if path == TOOL && name == "blank" {
                continue;
            }
            let request = world
                .agent(Method::POST, path)
                .header("content-type", "application/json")
                .body(bytes);
            let answer = send(request).await;
            assert_eq!(
                (answer.status, answer.code()),
                (400, "malformed_body"),
                "{name} on {path}: {}",
                answer.body
            );
            let row = world.refused(answer, 400, "malformed_body").await;
            assert_eq!(row["tool"], "desk.refunds.create", "{name} on {path}");
            assert_eq!(row["arguments"], Value::Null, "{name} on {path}");
        }
    }
    for body in [
        "[]",
        "1",
        "null",
        "\"x\"",
        r#"{"arguments":[]}"#,
        r#"{"arguments":null}"#,
        r#"{"arguments":{},"more":1}"#,
        r#"{"arguments":{},"reason":1}"#,
    ] {
        let request = world
            .agent(Method::POST, TOOL)
            .header("content-type", "application/json");
        let answer = send(request.body(body)).await;
        world.refused(answer, 400, "malformed_body").await;
    }
    for form in [
        "customer=a&customer=b",
        "customer=%zz",
        "customer=%ff",
        "customer=%00",
        "customer[=a",
        "customer=a&customer[b]=c",
        "=a",
        "a[b][][c]=d",
    ] {
        let request = world
            .agent(Method::POST, "/desk/refunds")
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        let answer = send(request).await;
        world.refused(answer, 400, "malformed_body").await;
    }
    assert_eq!(world.desk_requests(), 0);
    // The same value is decided on, recorded and sent, however it was written.
    let written = within(" ", &amount("1.2e2"), "\n");
    let request = world
        .agent(Method::POST, "/desk/refunds")
        .header("content-type", "application/json");
    let answer = send(request.body(written)).await.expect(201);
    assert_eq!(answer.body["amount_cents"], 120);
    let row = world.recorded(answer.header("toolgate-call")).await;
    assert_eq!(row["arguments"]["amount_cents"], json!(120));
    let sent = &world.desk.received()["requests"][0]["body"];
    assert_eq!(
        sent,
        &json!({"customer": "c_1001", "amount_cents": 120, "currency": "EUR"})
    );
}

#[tokio::test]
async fn arguments_beyond_the_contract_are_named_and_never_quoted() {
    let world = World::shipped().await;
    let planted = json!(PLANTED);
    let table: Vec<(&str, Value)> = vec![
        ("", json!({})),
        (
            "/customer",
            json!({"customer": 1, "amount_cents": 1, "currency": "EUR"}),
        ),
        (
            "/customer",
            json!({"customer": format!("{PLANTED} x"), "amount_cents": 1, "currency": "EUR"}),
        ),
        (
            "/amount_cents",
            json!({"customer": "c", "amount_cents": planted, "currency": "EUR"}),
        ),
        (
            "/amount_cents",
            json!({"customer": "c", "amount_cents": "100", "currency": "EUR"}),
        ),
        (
            "/amount_cents",
            json!({"customer": "c", "amount_cents": 0, "currency": "EUR"}),
        ),
        (
            "/amount_cents",
            json!({"customer": "c", "amount_cents": 1.5, "currency": "EUR"}),
        ),
        (
            "/amount_cents",
            json!({"customer": "c", "amount_cents": null, "currency": "EUR"}),
        ),
        (
            "/amount_cents",
            json!({"customer": "c", "amount_cents": true, "currency": "EUR"}),
        ),
        (
            "/amount_cents",
            json!({"customer": "c", "amount_cents": [planted], "currency": "EUR"}),
        ),
        (
            "/currency",
            json!({"customer": "c", "amount_cents": 1, "currency": planted}),
        ),
        (
            "/note",
            json!({"customer": "c", "amount_cents": 1, "currency": "EUR", "note": {"a": planted}}),
        ),
        (
            "/note",
            json!({"customer": "c", "amount_cents": 1, "currency": "EUR", "note": PLANTED.repeat(20)}),
        ),
        (
            "/api_key",
            json!({"customer": "c", "amount_cents": 1, "currency": "EUR", "api_key": planted}),
        ),
        (
            "/__proto__",
            json!({"customer": "c", "amount_cents": 1, "currency": "EUR", "__proto__": {"admin": planted}}),
        ),
        (
            "/__entity",
            json!({"customer": "c", "amount_cents": 1, "currency": "EUR", "__entity": {"type": "Agent", "id": planted}}),
        ),
        (
            "/AMOUNT_CENTS",
            json!({"customer": "c", "AMOUNT_CENTS": 1, "currency": "EUR"}),
        ),
    ];
    let mut answers = String::new();
    for (pointer, arguments) in table {
        for (path, body) in [
            ("/desk/refunds", arguments.clone()),
            (TOOL, json!({"arguments": arguments})),
        ] {
            let answer = send(world.agent(Method::POST, path).json(&body)).await;
            let what = format!("{arguments} on {path}");
            let errors = answer.body["errors"]
                .as_array()
                .unwrap_or_else(|| panic!("{what}: {}", answer.body))
                .clone();
            let pointers: Vec<_> = errors
                .iter()
                .map(|error| error["pointer"].as_str().unwrap())
                .collect();
            assert!(pointers.contains(&pointer), "{what}: {errors:?}");
            for error in &errors {
                assert!(
                    error["message"].as_str().is_some_and(|text| text.len() > 5),
                    "{what}: {error}"
                );
                assert_eq!(error.as_object().unwrap().len(), 2, "{what}");
            }
            answers.push_str(&String::from_utf8_lossy(&answer.bytes));
            let row = world.refused(answer, 422, "invalid_arguments").await;
            assert_eq!(row["arguments"], Value::Null, "{what}");
        }
    }
    // In every other place of a request, too, and where the body cannot even be read.
    let form = format!("customer=c&amount_cents={PLANTED}&currency=EUR");
    let twice = format!(r#"{{"note":"{PLANTED}","note":"{PLANTED}"}}"#);
    let typed = |request: reqwest::RequestBuilder, kind: &str, body: String| {
        request.header("content-type", kind).body(body)
    };
    let refund = || world.agent(Method::POST, "/desk/refunds");
    for (name, status, request) in [
        ("a form", 422, typed(refund(), "application/x-www-form-urlencoded", form)),
        ("a path", 422, world.agent(Method::GET, &format!("/desk/customers/{PLANTED}%20"))),
        ("a query", 422, world.agent(Method::GET, &format!("/desk/customers/c_1001?q={PLANTED}"))),
        ("an unknown path", 404, world.agent(Method::GET, &format!("/desk/{PLANTED}"))),
        ("an unknown API", 404, world.agent(Method::GET, &format!("/{PLANTED}/x?{PLANTED}"))),
        ("an unknown tool", 404, world.agent(Method::POST, &format!("/v1/tools/{PLANTED}/calls")).json(&json!({}))),
        ("a wrong method", 405, world.agent(Method::DELETE, &format!("/desk/customers/{PLANTED}"))),
        ("a bad path", 400, world.agent(Method::GET, &format!("/desk/customers/{PLANTED};x"))),
        ("a key twice", 400, typed(refund(), "application/json", twice.clone())),
        ("a key twice by name", 400, typed(world.agent(Method::POST, TOOL), "application/json", format!("{{\"arguments\":{twice}}}"))),
        ("a media type", 415, typed(refund(), &format!("text/{PLANTED}"), "x".to_owned())),
        ("a key for repeating", 400, refund().header("idempotency-key", PLANTED.repeat(9)).json(&json!({}))),
        ("a run", 401, refund().header("toolgate-run", PLANTED)),
        ("a key", 401, world.anybody(Method::POST, &format!("http://{}/desk/refunds", world.gateway.agents)).bearer_auth(PLANTED)),
        ("a run that is opened", 400, world.agent(Method::POST, "/v1/runs").json(&json!({"triggered_by": [PLANTED], "purpose": "x"}))),
        ("scopes of a run", 400, world.agent(Method::POST, "/v1/runs").json(&json!({"triggered_by": "x", "purpose": "x", "scopes": format!("{PLANTED}, expected {PLANTED}")}))),
        ("a call that is asked for", 404, world.agent(Method::GET, &format!("/v1/calls/{PLANTED}"))),
        ("an approval", 404, world.operator("ada", Method::GET, &format!("/v1/approvals/{PLANTED}"))),
        ("a halt", 400, world.operator("ada", Method::POST, "/v1/kill-switches").json(&json!({"scope": {"kind": [PLANTED]}, "reason": "x"}))),
    ] {
        let answer = send(request).await;
        assert_eq!(answer.status, status, "{name}: {}", answer.body);
        assert_eq!(answer.header("content-type"), "application/problem+json", "{name}");
        answers.push_str(&String::from_utf8_lossy(&answer.bytes));
    }
    let at = answers.find(PLANTED);
    assert!(
        at.is_none(),
        "{}",
        &answers[at.unwrap_or(0).saturating_sub(300)..]
    );
    assert!(!world.whole_audit().await.contains(PLANTED));
    assert_eq!(world.desk_requests(), 0);
}

#[tokio::test]
async fn a_body_must_say_that_it_is_what_the_tool_takes() {
    let world = World::shipped().await;
    let refund = String::from_utf8(amount("100")).unwrap();
    let call = format!("{{\"arguments\":{refund}}}");
    let json = "Content-Type: application/json\r\n";
    for (path, body) in [("/desk/refunds", &refund), (TOOL, &call)] {
        let post = |lines: &str| {
            let head = world.head(&format!("POST {path}"));
            let bytes = format!("{head}{lines}Content-Length: {}\r\n\r\n{body}", body.len());
            Wire::ask(world.gateway.agents, bytes)
        };
        for lines in [
            "",
            "Content-Type:\r\n",
            "Content-Type: text/plain\r\n",
            "Content-Type: application/jsonp\r\n",
            "Content-Type: application/json, text/plain\r\n",
            "Content-Type: application/json+evil\r\n",
            "Content-Type: application/vnd.api+json\r\n",
            "Content-Type: multipart/form-data; boundary=x\r\n",
            "Content-Type: application/json; charset=utf-16\r\n",
            "Content-Type: application/json; charset=utf-7\r\n",
            "Content-Type: application/json; charset=iso-8859-1\r\n",
            "Content-Type: application/json; charset=utf-8; charset=utf-16\r\n",
            "Content-Type: application/json; boundary=x\r\n",
            "Content-Type: application/json\r\nContent-Type: application/json\r\n",
            "Content-Type: application/json\r\nContent-Type: application/x-www-form-urlencoded\r\n",
            "Content-Type: application/json\r\nContent-Encoding: gzip\r\n",
            "Content-Type: application/json\r\nContent-Encoding: identity, gzip\r\n",
            "Content-Type: application/json\r\nContent-Encoding: br\r\nContent-Encoding: identity\r\n",
        ] {
            let answer = post(lines).await;
            assert_eq!(answer.status, 415, "{lines} on {path}: {answer:?}");
            world
                .refused_raw(&answer, 415, "unsupported_media_type")
                .await;
        }
    }
    // Said to be a form, it is read as one.
    let head = world.head("POST /desk/refunds");
    let form = "Content-Type: application/x-www-form-urlencoded\r\n";
    let bytes = format!(
        "{head}{form}Content-Length: {}\r\n\r\n{refund}",
        refund.len()
    );
    let answer = Wire::ask(world.gateway.agents, bytes).await;
    world.refused_raw(&answer, 422, "invalid_arguments").await;
    assert_eq!(world.desk_requests(), 0);
    for kind in [json, "Content-Type: Application/JSON;charset=\"UTF-8\"\r\n"] {
        let bytes = format!(
            "{head}{kind}Content-Length: {}\r\n\r\n{refund}",
            refund.len()
        );
        assert_eq!(
            Wire::ask(world.gateway.agents, bytes).await.status,
            201,
            "{kind}"
        );
    }
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_before_it_is_read() {
    let world = World::shipped().await;
    let json = "Content-Type: application/json\r\n";
    let limit = 65_536;
    for (line, limit) in [
        ("POST /desk/refunds", limit),
        ("POST /v1/tools/desk.refunds.create/calls", limit + 8_192),
    ] {
        for lines in [
            format!("Content-Length: {}\r\n\r\n", limit + 1),
            "Content-Length: 18446744073709551610\r\n\r\n".to_owned(),
            format!(
                "Expect: 100-continue\r\nContent-Length: {}\r\n\r\n",
                limit + 1
            ),
            // Neither the chunk nor the body ends.
            format!(
                "Transfer-Encoding: chunked\r\n\r\n{:x}\r\n{}",
                limit * 2,
                "x".repeat(limit + 1)
            ),
            format!(
                "Transfer-Encoding: chunked\r\n\r\n{}",
                format!("1000\r\n{}\r\n", "x".repeat(4_096)).repeat(limit / 4_096 + 1)
            ),
        ] {
            let mut wire = Wire::open(world.gateway.agents).await;
            wire.send(world.head(line) + json + &lines).await;
            let answer = wire.answer().await.unwrap();
            world.refused_raw(&answer, 413, "body_too_large").await;
            assert!(wire.ends().await, "{line}: the rest is nobody's");
        }
        let whole = format!("Content-Length: {limit}\r\n\r\n{}", "x".repeat(limit));
        let answer = Wire::ask(world.gateway.agents, world.head(line) + json + &whole).await;
        world.refused_raw(&answer, 400, "malformed_body").await;
    }
    let large = json!({"triggered_by": "x", "purpose": "y".repeat(70_000)});
    send(world.agent(Method::POST, "/v1/runs").json(&large))
        .await
        .problem(413, "body_too_large");
    let large = json!({"scope": {"kind": "everything"}, "reason": "y".repeat(70_000)});
    send(
        world
            .operator("ada", Method::POST, "/v1/kill-switches")
            .json(&large),
    )
    .await
    .problem(413, "body_too_large");
    // Arguments that make a larger request than the contract takes, in a smaller body.
    assert_eq!(world.desk_requests(), 0);
}

#[tokio::test]
async fn a_tool_without_a_body_takes_none() {
    let world = World::shipped().await;
    for (method, path) in [
        (Method::GET, "/desk/customers/c_1001"),
        (Method::DELETE, "/desk/records/r_1"),
    ] {
        for body in ["{}", "x", " ", "{\"id\":\"c_1002\"}"] {
            let request = world
                .agent(method.clone(), path)
                .header("content-type", "application/json");
            let answer = send(request.body(body)).await;
            world.refused(answer, 400, "malformed_body").await;
        }
    }
    let head = world.head("GET /desk/customers/c_1001");
    for lines in [
        "Content-Length: 0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ] {
        let answer = Wire::ask(world.gateway.agents, format!("{head}{lines}")).await;
        assert_eq!(answer.status, 200, "{lines}: {answer:?}");
    }
    assert_eq!(world.desk_requests(), 2);
}

#[tokio::test]
async fn what_no_tool_is_called_by_is_refused_on_both_surfaces() {
    let world = World::shipped().await;
    for path in [
        "/nothing/here",
        "/desk/nothing",
        "/desk/refunds/1",
        "/desk/refunds/",
    ] {
        let answer = send(world.agent(Method::POST, path).json(&json!({}))).await;
        let row = world.refused(answer, 404, "unknown_tool").await;
        assert_eq!(row["surface"], "transparent");
    }
    let path = "/v1/tools/desk.refunds.undo/calls";
    let answer = send(world.agent(Method::POST, path).json(&json!({}))).await;
    world.refused(answer, 404, "unknown_tool").await;
    for (method, path, allow) in [
        (Method::GET, "/desk/refunds", "POST"),
        (Method::POST, "/desk/customers/c_1001", "GET"),
        (Method::GET, "/desk/records/r_1", "DELETE"),
        (Method::POST, "/desk/users/u_1/role", "PUT"),
    ] {
        let request = world
            .agent(method, path)
            .header("x-http-method-override", allow);
        let answer = send(request).await;
        assert_eq!(answer.header("allow"), allow, "{path}");
        world.refused(answer, 405, "unknown_tool").await;
    }
    assert_eq!(world.desk_requests(), 0);
}
