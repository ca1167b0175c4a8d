//! A second API beside the desk, `probe`, with a contract that uses every place an argument can travel in, and what tests
//! of refusals have in common.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    support::{Answer, Setup, World},
    wire::{Act, Raw, RawApi, json_answer},
};

/// A value that must not turn up anywhere.
pub const PLANTED: &str = "sk_live_51Hplanted4242424242424242";

const TOOLS: &str = r"
tools:
  - name: probe.things.put
    description: Puts a part of a thing.
    api: probe
    method: PUT
    path: /things/{id}/parts/{part}
    scope: probe.things:use
    consequence: write
    query: [q, tag, n]
    headers: { If-Match: version, X-Note: note }
    limits: { timeout_ms: 700, answer_bytes: 4096, body_bytes: 4096 }
    input:
      type: object
      required: [id, part]
      properties:
        id: { type: string, maxLength: 200 }
        part: { type: integer }
        q: { type: string }
        tag: { type: array, items: { type: string } }
        n: { type: integer }
        version: { type: string }
        note: { type: string }
        text: { type: string }
        count: { type: integer }
    output: { type: object, required: [ok], properties: { ok: { type: boolean } } }
  - name: probe.reports.get
    description: Reads a report.
    api: probe
    method: GET
    path: /reports/{id}
    scope: probe.things:use
    consequence: read
    on_output_violation: report
    input: { type: object, required: [id], properties: { id: { type: string } } }
    output: { type: object, required: [ok], properties: { ok: { type: boolean } } }
  - name: probe.streams.get
    description: Follows a stream.
    api: probe
    method: GET
    path: /streams/{id}
    scope: probe.things:use
    consequence: read
    stream: true
    input: { type: object, required: [id], properties: { id: { type: string } } }
  - name: probe.blobs.get
    description: Reads something large.
    api: probe
    method: GET
    path: /blobs/{id}
    scope: probe.things:use
    consequence: read
    limits: { answer_bytes: 33554432 }
    input: { type: object, required: [id], properties: { id: { type: string } } }
";

const POLICY: &str = r#"
@id("probe")
@description("The probe is open.")
permit (principal is Agent, action, resource == Api::"probe");
"#;

/// The shipped world with the probe behind it.
pub fn setup(api: &RawApi) -> Setup {
    Setup::shipped()
        .config(
            "  etcd: # without",
            "  probe:\n    base_url: ${env:PROBE_URL}\n    credential: { header: { name: X-Probe-Key, value: probe-secret } }\n  etcd: # without",
        )
        .config(
            "      - desk.records:delete\n",
            "      - desk.records:delete\n      - probe.things:use\n",
        )
        .tool("probe.yaml", "", TOOLS)
        .policy("probe.cedar", "", POLICY)
        .variable("PROBE_URL", format!("http://{}/base", api.address))
}

/// A gateway in front of an API that does the same with every request.
pub async fn world(act: Act) -> (World, RawApi) {
    let api = RawApi::start(move |_| act.clone()).await;
    (setup(&api).start().await, api)
}

/// The shipped setup with limits of one's own.
pub fn with_limits(setup: Setup, limits: &str) -> Setup {
    setup.config("apis:\n", &format!("limits: {{ {limits} }}\napis:\n"))
}

impl World {
    /// The authorization header of `support-bot`.
    pub fn authorization(&self) -> String {
        format!(
            "Authorization: Bearer {}",
            self.keys["support-bot"].expose()
        )
    }

    /// A request of `support-bot` as bytes, without its end.
    pub fn head(&self, request_line: &str) -> String {
        format!(
            "{request_line} HTTP/1.1\r\nHost: gateway\r\n{}\r\n",
            self.authorization()
        )
    }

    /// How many requests reached the desk.
    pub fn desk_requests(&self) -> u64 {
        self.desk.received()["total"].as_u64().unwrap()
    }

    /// The row of a call, which a refusal's may follow a moment after the answer.
    pub async fn recorded(&self, call: &str) -> Value {
        assert!(call.starts_with("call_"), "no call: {call:?}");
        let query = format!("SELECT call_id FROM audit.calls WHERE call_id = '{call}'");
        for _ in 0..250 {
            if !self.audit(&query).await.is_empty() {
                return self.call_row(call).await;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{call} is not recorded");
    }

    /// Holds an answer to everything a refused call must be: a problem document, the call's id in header and body, and a
    /// row that says the same. Gives the row.
    pub async fn refused(&self, answer: Answer, status: u16, code: &str) -> Value {
        let answer = answer.problem(status, code);
        let body = &answer.body;
        assert_eq!(body["type"], format!("urn:toolgate:problem:{code}"));
        assert!(
            body["title"].as_str().is_some_and(|text| !text.is_empty()),
            "{body}"
        );
        assert_eq!(body["executed"], json!(false), "{body}");
        let call = answer.header("toolgate-call");
        assert_eq!(body["call"], call);
        self.denied(call, code).await
    }

    /// The same for an answer read from the wire.
    pub async fn refused_raw(&self, raw: &Raw, status: u16, code: &str) -> Value {
        assert_eq!((raw.status, raw.code().as_str()), (status, code), "{raw:?}");
        assert_eq!(
            raw.header("content-type"),
            Some("application/problem+json"),
            "{raw:?}"
        );
        let body: Value = serde_json::from_str(&raw.body).unwrap();
        assert_eq!(body["status"], status, "{body}");
        self.denied(body["call"].as_str().unwrap(), code).await
    }

    async fn denied(&self, call: &str, code: &str) -> Value {
        let row = self.recorded(call).await;
        assert_eq!(row["decision"], "deny", "{row}");
        assert_eq!(row["reasons"], json!([code]), "{row}");
        assert_eq!(row["outcome"], "denied", "{row}");
        assert_eq!(row["executed"], false, "{row}");
        assert_eq!(row["forwarded_at"], Value::Null, "{row}");
        row
    }

    /// Every audit entry as one text.
    pub async fn whole_audit(&self) -> String {
        use sqlx::Row as _;
        let rows = self
            .audit("SELECT to_jsonb(e)::text FROM audit.entries AS e")
            .await;
        rows.iter()
            .map(|row| row.get::<String, _>(0))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The last call that the records know, once its outcome stands.
    pub async fn last_call_ended(&self) -> Value {
        use sqlx::Row as _;
        let query =
            "SELECT to_jsonb(c)::text FROM audit.calls AS c ORDER BY received_at DESC LIMIT 1";
        for _ in 0..500 {
            let rows = self.audit(query).await;
            let row = rows
                .first()
                .map(|row| serde_json::from_str::<Value>(row.get(0)).unwrap());
            if let Some(row) = row.filter(|row| row["outcome"] != Value::Null) {
                return row;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no call has ended");
    }
}

/// A gateway in front of an API that answers `{"ok": true}` to everything.
pub async fn agreeable() -> (World, RawApi) {
    world(json_answer("200 OK", "", r#"{"ok": true}"#)).await
}
