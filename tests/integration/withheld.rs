//! Rules for sensitive values in answers hold for every body: what cannot be read is withheld, and what is told is what happened.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    sensitive,
    support::{World, send},
    wire::{Act, RawApi},
};

const NAME: &str = "Planted Lovelace";
const PIN: &str = "planted-zebra";

fn answer(status: &str, kind: &str, body: &str) -> Act {
    let length = body.len();
    Act::Say(format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
    ))
}

fn answers(request: &str) -> Act {
    let person = format!(r#""email":"{NAME}","key":"{PIN}""#);
    let line = request.lines().next().unwrap_or_default();
    let json = "application/json";
    match () {
        _ if line.contains("/large ") => answer(
            "404 Not Found",
            json,
            &format!("{{{person},\"n\":9007199254740993}}"),
        ),
        _ if line.contains("/twice ") => answer(
            "404 Not Found",
            json,
            &format!("{{{person},\"n\":1,\"n\":2}}"),
        ),
        _ if line.contains("/bom ") => {
            answer("404 Not Found", json, &format!("\u{feff}{{{person}}}"))
        }
        _ if line.contains("/cut ") => answer("404 Not Found", json, &format!("{{{person}")),
        _ if line.contains("/words ") => {
            answer("404 Not Found", "text/plain", &format!("{NAME} has {PIN}"))
        }
        _ if line.contains("/wide ") => {
            let wide: String = PIN.chars().flat_map(|letter| [letter, '\0']).collect();
            answer("404 Not Found", "text/plain; charset=utf-16le", &wide)
        }
        _ if line.contains("/reported ") => answer(
            "200 OK",
            json,
            &format!("{{{person},\"id\":9007199254740993}}"),
        ),
        _ if line.contains("/text ") => answer(
            "404 Not Found",
            "text/plain",
            &format!("{{{person},\"id\":\"1\"}}"),
        ),
        _ if line.contains("/nested ") => answer(
            "409 Conflict",
            json,
            &format!("{{\"error\":{{\"of\":[{{{person}}}]}},\"id\":\"1\"}}"),
        ),
        _ if line.contains("/misfit ") => answer(
            "200 OK",
            json,
            &format!("{{\"data\":{{{person}}},\"id\":\"1\"}}"),
        ),
        // Of a tool whose contract marks nothing.
        _ if line.contains("/note ") => answer(
            "404 Not Found",
            "text/plain",
            r#"ask "ada\u0040example.org" or 4111\u0031111 11111111"#,
        ),
        _ if line.contains("/broken ") => {
            answer("404 Not Found", json, r#"{"a":"ada@example.org","a":1}"#)
        }
        _ => answer("200 OK", json, r#"{"ok":true}"#),
    }
}

async fn world() -> (World, RawApi) {
    let api = RawApi::start(answers).await;
    let setup = sensitive::setup(&api, "drop").tool(
        "probe.yaml",
        "    answers: { pii: drop, secret: drop }",
        "    on_output_violation: report\n    answers: { pii: drop, secret: drop }",
    );
    let setup = setup.config("apis:\n", "answers: { detected: { pii: mask } }\napis:\n");
    (setup.start().await, api)
}

#[tokio::test]
async fn an_answer_to_which_the_rules_cannot_be_applied_is_withheld() {
    let (world, _api) = world().await;
    for (id, status) in [
        ("large", 404),
        ("twice", 404),
        ("bom", 404),
        ("cut", 404),
        ("words", 404),
        ("wide", 404),
        ("reported", 200),
    ] {
        let path = format!("/probe/people/{id}");
        let got = send(world.agent(Method::GET, &path))
            .await
            .problem(502, "upstream_answer_invalid");
        let told = String::from_utf8_lossy(&got.bytes).into_owned();
        assert!(
            !told.contains("lanted") && !told.contains("p\0l\0a"),
            "{id}: {told}"
        );
        assert_eq!(got.body["executed"], true, "{id}: {told}");
        let row = world.recorded(got.header("toolgate-call")).await;
        assert_eq!(
            (&row["outcome"], &row["executed"], &row["status"]),
            (&json!("failed"), &json!(true), &json!(status)),
            "{id}: {row}"
        );
        assert_eq!(
            row["outcome_detail"]["withheld_under_rules"], true,
            "{id}: {row}"
        );
        let detail = got.body["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("status {status},")), "{detail}");
        assert!(
            detail.contains(row["answer_digest"].as_str().unwrap()),
            "{detail} {row}"
        );

        let by_name = world
            .agent(Method::POST, "/v1/tools/probe.people.get/calls")
            .json(&json!({"arguments": {"id": id}}));
        send(by_name).await.problem(502, "upstream_answer_invalid");
        for _ in 0..2 {
            let kept = world
                .agent(Method::GET, &path)
                .header("idempotency-key", id);
            let kept = send(kept).await.problem(502, "upstream_answer_invalid");
            assert_eq!(kept.body["executed"], true, "{id}");
            let state = world.state(kept.header("toolgate-call")).await;
            assert_eq!(
                (&state["state"], &state["executed"]),
                (&json!("failed"), &json!(true))
            );
        }
    }
    assert!(!world.whole_audit().await.contains("lanted"));
}

#[tokio::test]
async fn what_a_contract_marks_is_hidden_wherever_an_answer_has_it() {
    let (world, _api) = world().await;
    for (id, status, body) in [
        ("text", 404, json!({"id": "1"})),
        ("nested", 409, json!({"error": {"of": [{}]}, "id": "1"})),
        ("misfit", 200, json!({"data": {}, "id": "1"})),
    ] {
        let got = send(world.agent(Method::GET, &format!("/probe/people/{id}")))
            .await
            .expect(status);
        let seen: Value = serde_json::from_slice(&got.bytes).unwrap();
        assert_eq!(seen, body, "{id}");
        let row = world.recorded(got.header("toolgate-call")).await;
        assert_eq!(
            (&row["outcome"], &row["executed"]),
            (&json!("completed"), &json!(true))
        );
    }
}

#[tokio::test]
async fn where_nothing_is_marked_a_text_is_searched_and_broken_json_is_withheld() {
    let (world, _api) = world().await;
    let note = send(world.agent(Method::GET, "/probe/reports/note"))
        .await
        .expect(404);
    assert_eq!(
        String::from_utf8(note.bytes).unwrap(),
        r#"ask "****@example.org" or ****1111"#
    );
    send(world.agent(Method::GET, "/probe/reports/broken"))
        .await
        .problem(502, "upstream_answer_invalid");
    send(world.agent(Method::GET, "/probe/reports/fine"))
        .await
        .expect(200);
}
