//! However much an agent or an API sends, a row of the records is bounded, and says what the whole was.

use reqwest::Method;
use serde_json::{Value, json};
use toolgate::{
    redaction::tokens_of,
    secrets::{Keyring, Secret},
};

use crate::{
    probe,
    support::{MASTER, send},
    wire::{RawApi, json_answer},
};

#[tokio::test]
async fn a_row_is_bounded_whatever_an_agent_or_an_api_sends() {
    const EMAIL: &str = "planted.person@example.org";
    let said = format!("{}{EMAIL}", "words ".repeat(30_000));
    let answered = json!({
        "ok": true,
        "text": "é".repeat(200_000),
        "list": (0..20_000).collect::<Vec<_>>(),
        "names": {"n".repeat(5_000): EMAIL},
        "addresses": (0..3_000).map(|n| format!("person{n}@example.org")).collect::<Vec<_>>(),
    });
    let body = answered.to_string();
    let api = RawApi::start(move |_| json_answer("200 OK", "", &body)).await;
    let setup = probe::setup(&api)
        .tool(
            "probe.yaml",
            "limits: { timeout_ms: 700, answer_bytes: 4096, body_bytes: 4096 }",
            "limits: { timeout_ms: 5000, answer_bytes: 4194304, body_bytes: 1048576 }\n    changed: [/text, /list]",
        )
        .tool(
            "probe.yaml",
            "    output: { type: object, required: [ok], properties: { ok: { type: boolean } } }\n  - name: probe.reports",
            "    output: { type: object, required: [ok], additionalProperties: true, properties: { ok: { type: boolean } } }\n  - name: probe.reports",
        );
    let small = "max_recorded_text_bytes: 300, max_recorded_document_bytes: 1000";
    for (setup, text, largest) in [
        (setup.clone(), 4_096, 180_000),
        (probe::with_limits(setup, small), 300, 60_000),
    ] {
        let world = setup.start().await;
        let tags: Vec<String> = (0..300).map(|n| format!("{n}")).collect();
        let answer = send(
            world
                .agent(Method::POST, "/v1/tools/probe.things.put/calls")
                .json(&json!({"reason": "because ".repeat(200), "arguments": {
                    "id": "a", "part": 1, "text": said, "tag": tags,
                }})),
        )
        .await
        .expect(200);
        assert_eq!(answer.body["result"], answered, "the agent has all of it");
        let call = answer.header("toolgate-call");
        let row = world.call_row(call).await;
        let note = row["arguments"]["text"].as_str().unwrap();
        let (kept, marker) = note.split_once('…').unwrap();
        assert!(
            kept.len() <= text && said.starts_with(kept),
            "{}",
            kept.len()
        );
        let ring = Keyring::new(&Secret::new(MASTER)).unwrap();
        let whole = &tokens_of(&said, &ring)[0].1;
        assert_eq!(marker, format!("[cut: {} bytes, {whole}]", said.len()));
        // Found by the whole, and by what stood behind the cut.
        for token in [whole, &tokens_of(EMAIL, &ring)[1].1] {
            let found = world
                .audit(&format!(
                    "SELECT 1 FROM audit.entries WHERE value_tokens @> ARRAY['{token}'] AND call_id = '{call}'"
                ))
                .await;
            assert!(!found.is_empty(), "{token}");
        }
        for column in ["answer", "changed"] {
            assert!(row[column].to_string().contains("the whole: "), "{column}");
        }
        let rows = world
            .audit("SELECT octet_length(to_jsonb(e)::text) FROM audit.entries AS e")
            .await;
        for row in rows {
            let bytes: i32 = sqlx::Row::get(&row, 0);
            assert!(bytes < largest, "{bytes}");
        }
        let audit = world.whole_audit().await;
        assert!(!audit.contains("@example.org") && audit.contains("gateway_started"));
        assert_ne!(row["answer_digest"], Value::Null);
    }
}
