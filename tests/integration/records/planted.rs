//! Values of marked fields stand in no table, no log line and no answer but the API's own and what an approver is shown:
//! known values are planted everywhere a call can end, and every sink is searched for them.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use base64::Engine as _;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;

use super::texts;
use crate::support::{Answer, Setup, World, send};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Everything the process logs from here on, as verbose as it can be set.
fn log() -> Log {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::new("trace"))
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    log
}

/// The spellings in which a value could stand somewhere.
fn spellings(value: &str) -> [String; 5] {
    let hex = value.bytes().map(|byte| format!("{byte:02x}")).collect();
    let base64 = base64::engine::general_purpose::STANDARD.encode(value);
    // Without its end, which depends on what follows.
    let base64 = base64[..base64.len() - 4].to_owned();
    let encoded = value.replace('@', "%40");
    let escaped = value.replace('@', "\\u0040");
    [value.to_owned(), hex, base64, encoded, escaped]
}

/// Every row of every table of both schemas, as text.
async fn all_rows(world: &World) -> Vec<(String, String)> {
    let mut superuser = world.connect("superuser").await;
    let tables = texts(
        &mut superuser,
        "SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
         WHERE schemaname IN ('audit', 'toolgate', 'migrations', 'public') ORDER BY 1",
    )
    .await;
    assert!(tables.len() > 10, "{tables:?}");
    let mut found = Vec::new();
    for table in tables {
        let query = format!("SELECT to_jsonb(t)::text FROM {table} AS t");
        let rows: Vec<String> = sqlx::query_scalar(AssertSqlSafe(query))
            .fetch_all(&mut superuser)
            .await
            .unwrap();
        found.extend(rows.into_iter().map(|row| (table.clone(), row)));
    }
    found
}

struct Planting {
    world: World,
    run: String,
    answers: Vec<(String, Answer)>,
}

impl Planting {
    async fn call(&mut self, what: &str, request: RequestBuilder, status: u16) -> String {
        let answer = send(request.header("toolgate-run", &self.run))
            .await
            .expect(status);
        let call = answer.header("toolgate-call").to_owned();
        self.answers.push((what.to_owned(), answer));
        call
    }

    fn tool(&self, tool: &str, arguments: Value) -> RequestBuilder {
        self.world
            .agent(Method::POST, &format!("/v1/tools/{tool}/calls"))
            .json(&json!({"arguments": arguments, "reason": "test"}))
    }

    fn mail(&self, to: &str, body: &str) -> RequestBuilder {
        self.world
            .agent(Method::POST, "/desk/mail")
            .json(&json!({"to": to, "subject": "hello", "body": body}))
    }

    fn refund(&self, amount_cents: u32, note: &str) -> RequestBuilder {
        self.world.agent(Method::POST, "/desk/refunds").json(
            &json!({"customer": "c_1001", "amount_cents": amount_cents, "currency": "EUR", "note": note}),
        )
    }

    /// The approval of the last answer.
    fn approval(&self) -> String {
        let (_, answer) = self.answers.last().unwrap();
        answer.body["approval"].as_str().unwrap().to_owned()
    }
}

const TO: &str = "planted-address@example.org";
const BODY: &str = "planted-body-of-a-letter";
const NOTE: &str = "planted-note-on-money";

#[tokio::test]
async fn planted_values_are_found_in_no_table_log_or_answer() {
    let log = log();
    let world = World::shipped().await;
    let run = world.run().await;
    let mut planting = Planting {
        world,
        run,
        answers: Vec::new(),
    };
    let p = &mut planting;

    let ticket = json!({"note": NOTE, "status": "open"});
    let request = p
        .world
        .agent(Method::PATCH, "/desk/tickets/tkt_1")
        .json(&ticket);
    let first = p.call("permitted", request, 200).await;
    let request = p.refund(100, NOTE);
    let second = p.call("permitted refund", request, 201).await;
    let request = p.refund(100, NOTE).header("idempotency-key", "key-1");
    p.call("keyed", request, 201).await;
    let request = p.tool(
        "desk.tickets.update",
        json!({"id": "tkt_2", "note": format!("{NOTE} and more")}),
    );
    let other = p.call("permitted tool call", request, 200).await;
    let form = [
        ("customer", "c_1001"),
        ("amount_cents", "100"),
        ("currency", "EUR"),
        ("note", NOTE),
    ];
    let request = p.world.agent(Method::POST, "/desk/refunds").form(&form);
    p.call("permitted form", request, 201).await;

    // Parked and approved, denied, left waiting.
    let request = p.mail(TO, BODY);
    let approved = p.call("parked mail", request, 403).await;
    let approval = p.approval();
    let shown = p.world.shown("ada", &approval).await;
    assert_eq!(shown["arguments"]["to"], TO, "whoever decides must see it");
    let decided = p
        .world
        .decide("ada", &approval, "approve")
        .await
        .expect(200);
    p.answers.push(("approve".to_owned(), decided));
    assert_eq!(p.world.ended(&approved).await["state"], "completed");
    let request = p.refund(25_000, NOTE);
    let denied = p.call("parked refund", request, 403).await;
    let approval = p.approval();
    let decided = p.world.decide("bob", &approval, "deny").await.expect(200);
    p.answers.push(("deny".to_owned(), decided));
    p.world.ended(&denied).await;
    let request = p
        .mail(TO, &format!("{BODY}, again"))
        .header("prefer", "respond-async");
    let waiting = p.call("parked for good", request, 202).await;
    for call in [&first, &approved, &denied, &waiting] {
        let path = format!("/v1/calls/{call}");
        let request = p.world.agent(Method::GET, &path);
        let answer = send(request).await.expect(200);
        p.answers.push((path, answer));
    }
    for path in ["/v1/kill-switches", "/v1/approvals/appr_unknown"] {
        let answer = send(p.world.operator("ada", Method::GET, path)).await;
        p.answers.push((path.to_owned(), answer));
    }

    let request = p.refund(250_000, NOTE);
    p.call("denied", request, 403).await;
    let halt = p.world.halt(json!({"kind": "api", "id": "desk"})).await;
    let request = p.refund(200, NOTE);
    p.call("halted", request, 503).await;
    p.world.resume(&halt).await;

    // Whatever can be wrong with a value.
    for (what, request, status) in [
        ("no address", p.mail("planted-body-of-a-letter", BODY), 422),
        (
            "an address too long",
            p.mail(&format!("{}{TO}", "x".repeat(260)), BODY),
            422,
        ),
        (
            "a body too long",
            p.mail(TO, &format!("{BODY}{}", "x".repeat(20_000))),
            422,
        ),
        ("a note too long", p.refund(100, &NOTE.repeat(40)), 422),
        (
            "a note of the wrong type",
            p.tool("desk.tickets.update", json!({"id": "t", "note": [NOTE]})),
            422,
        ),
        (
            "a note inside of a note",
            p.tool(
                "desk.refunds.create",
                json!({"customer": "c", "amount_cents": 1, "currency": "EUR", "note": {"a": NOTE}}),
            ),
            422,
        ),
        (
            "another argument missing",
            p.tool("desk.mail.send", json!({"to": TO, "body": BODY})),
            422,
        ),
        (
            "a body that is no JSON",
            p.world
                .agent(Method::POST, "/desk/mail")
                .header("content-type", "application/json")
                .body(format!("{{\"to\": \"{TO}\", \"body\": {BODY}")),
            400,
        ),
        (
            "twice the same key",
            p.world
                .agent(Method::POST, "/desk/mail")
                .header("content-type", "application/json")
                .body(format!(
                    "{{\"to\": \"{TO}\", \"to\": \"{TO}\", \"body\": \"{BODY}\"}}"
                )),
            400,
        ),
        (
            "in the query",
            p.world
                .agent(Method::GET, &format!("/desk/customers/c_1001?note={NOTE}")),
            422,
        ),
        (
            "in a path of no tool",
            p.world.agent(Method::GET, &format!("/desk/{NOTE}")),
            404,
        ),
    ] {
        p.call(what, request, status).await;
    }

    // The same value gives the same token, another one another.
    let note = async |call: &str| p.world.call_row(call).await["arguments"]["note"].clone();
    let token = note(&first).await;
    assert!(
        token.as_str().unwrap().starts_with("confidential:"),
        "{token}"
    );
    assert_eq!(note(&second).await, token);
    assert_eq!(note(&denied).await, token);
    assert_ne!(note(&other).await, token);

    let counted = send(p.world.operator("ada", Method::GET, "/metrics")).await;
    p.answers.push(("metrics".to_owned(), counted.expect(200)));

    let written = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(written.contains("toolgate"), "nothing was logged");
    let rows = all_rows(&p.world).await;
    assert!(rows.len() > 40, "{}", rows.len());
    for value in [TO, BODY, NOTE] {
        for spelling in spellings(value) {
            for (table, row) in &rows {
                assert!(!row.contains(&spelling), "{spelling} in {table}: {row}");
            }
            for line in written.lines() {
                assert!(!line.contains(&spelling), "{spelling} in the log: {line}");
            }
            for (what, answer) in &p.answers {
                let body = String::from_utf8_lossy(&answer.bytes);
                assert!(!body.contains(&spelling), "{spelling} in {what}: {body}");
                let headers = format!("{:?}", answer.headers);
                assert!(
                    !headers.contains(&spelling),
                    "{spelling} in {what}: {headers}"
                );
            }
        }
    }
}

#[tokio::test]
async fn an_answer_is_kept_sealed_and_never_quoted_by_what_is_wrong_with_it() {
    let setup = Setup::shipped().tool(
        "desk.yaml",
        "email: { type: string, x-sensitivity: pii }",
        "email: { type: integer, x-sensitivity: pii }",
    );
    let world = setup.start().await;
    let read = |id: &str| world.agent(Method::GET, &format!("/desk/customers/{id}"));
    let answer = send(read("c_1001").header("idempotency-key", "key-1"))
        .await
        .problem(502, "upstream_answer_invalid");
    let world_of_texts = Setup::shipped().start().await;
    let request = world_of_texts.agent(Method::GET, "/desk/customers/c_1001");
    let kept = send(request.header("idempotency-key", "key-1"))
        .await
        .expect(200);
    assert_eq!(kept.body["email"], "ines@example.com");
    let again = world_of_texts
        .agent(Method::GET, "/desk/customers/c_1001")
        .header("idempotency-key", "key-1");
    assert_eq!(send(again).await.expect(200).body, kept.body);
    assert_eq!(world_of_texts.received("GET /customers/{id}"), 1);
    let mut rows = all_rows(&world).await;
    rows.extend(all_rows(&world_of_texts).await);
    for value in ["ines@example.com", "Ines Duarte"] {
        for spelling in spellings(value) {
            assert!(!String::from_utf8_lossy(&answer.bytes).contains(&spelling));
            for (table, row) in &rows {
                assert!(!row.contains(&spelling), "{spelling} in {table}: {row}");
            }
        }
    }
}

/// Detectable values in every place where somebody can put a text that no contract describes.
#[tokio::test]
async fn what_is_planted_in_odd_places_stands_in_no_table_log_problem_or_list() {
    let log = log();
    let body = format!(r#"{{"ok":"{EMAIL}","{KEY}":"{CARD}"}}"#);
    let api = crate::wire::RawApi::start(move |request| {
        let status = if request.contains("/reports/") {
            "200 OK"
        } else {
            "404 Not Found"
        };
        crate::wire::json_answer(status, &format!("X-Thing: {EMAIL}\r\n"), &body)
    })
    .await;
    let mut world = crate::probe::setup(&api).start().await;
    world.key(toolgate::keys::KeyKind::Operator, "grace").await;
    let mut answers = Vec::new();
    for value in [EMAIL, KEY, CARD] {
        let encoded: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let json_of = |request: RequestBuilder, body: Value| request.json(&body);
        let refund = |note: Value| {
            let mut body = json!({"customer": "c_1001", "amount_cents": 100, "currency": "EUR"});
            body.as_object_mut()
                .unwrap()
                .extend(note.as_object().unwrap().clone());
            json_of(world.agent(Method::POST, "/desk/refunds"), body)
        };
        let raw = |text: String| {
            let request = world.agent(Method::POST, "/desk/refunds");
            request
                .header("content-type", "application/json")
                .body(text)
        };
        // An address is a name by which people look for whoever started a run.
        let trigger = if value == EMAIL { "ticket 7" } else { value };
        let runs = || world.agent(Method::POST, "/v1/runs");
        let by_name = |body: Value| {
            json_of(
                world.agent(Method::POST, "/v1/tools/desk.refunds.create/calls"),
                body,
            )
        };
        let halt = |scope: Value| {
            let request = world.operator("ada", Method::POST, "/v1/kill-switches");
            json_of(
                request,
                json!({"scope": scope, "reason": format!("because {value}")}),
            )
        };
        for (what, request, status) in [
            (
                "run",
                json_of(runs(), json!({"triggered_by": trigger, "purpose": value})),
                201,
            ),
            (
                "scope",
                json_of(
                    runs(),
                    json!({"triggered_by": "t", "purpose": "p", "scopes": [value]}),
                ),
                403,
            ),
            (
                "field of a run",
                json_of(
                    runs(),
                    json!({"triggered_by": "t", "purpose": "p", value: 1}),
                ),
                400,
            ),
            (
                "key",
                refund(json!({})).header("idempotency-key", value),
                201,
            ),
            (
                "key again",
                refund(json!({"note": "other"})).header("idempotency-key", value),
                422,
            ),
            (
                "reason",
                refund(json!({})).header("toolgate-reason", value),
                201,
            ),
            (
                "words",
                by_name(
                    json!({"reason": value, "arguments": {"customer": "c_1001", "amount_cents": 100, "currency": "EUR"}}),
                ),
                200,
            ),
            ("envelope", by_name(json!({"arguments": {}, value: 1})), 400),
            (
                "run id",
                refund(json!({})).header("toolgate-run", value),
                401,
            ),
            (
                "preferences",
                refund(json!({}))
                    .header("prefer", value)
                    .header("traceparent", value),
                201,
            ),
            (
                "type",
                world
                    .agent(Method::POST, "/desk/refunds")
                    .header("content-type", value)
                    .body("{}"),
                415,
            ),
            ("property", refund(json!({value: 1})), 422),
            ("value", refund(json!({"customer": value})), 422),
            (
                "twice",
                raw(format!("{{\"{value}\": 1, \"{value}\": 1}}")),
                400,
            ),
            ("no JSON", raw(format!("{{\"{value}\": {value}")), 400),
            (
                "form",
                world
                    .agent(Method::POST, "/desk/refunds")
                    .form(&[(value, value)]),
                422,
            ),
            (
                "path",
                world.agent(Method::GET, &format!("/desk/{encoded}/x")),
                404,
            ),
            (
                "API",
                world.agent(Method::GET, &format!("/{encoded}/x")),
                404,
            ),
            (
                "parameter",
                world.agent(Method::GET, &format!("/desk/customers/c_1001?{encoded}=1")),
                422,
            ),
            (
                "path argument",
                world.agent(Method::GET, &format!("/desk/customers/{encoded}")),
                422,
            ),
            (
                "tool",
                json_of(
                    world.agent(Method::POST, &format!("/v1/tools/{encoded}/calls")),
                    json!({}),
                ),
                404,
            ),
            (
                "call id",
                world.agent(Method::GET, &format!("/v1/calls/{encoded}")),
                404,
            ),
            (
                "approval id",
                world.operator("ada", Method::GET, &format!("/v1/approvals/{encoded}")),
                404,
            ),
            (
                "filter",
                world.operator(
                    "ada",
                    Method::GET,
                    &format!("/v1/approvals?state={encoded}"),
                ),
                400,
            ),
            (
                "parameter of a list",
                world.operator("ada", Method::GET, &format!("/v1/approvals?{encoded}=1")),
                400,
            ),
            (
                "unknown scope",
                halt(json!({"kind": "agent", "id": value})),
                400,
            ),
            ("halt", halt(json!({"kind": "api", "id": "etcd"})), 201),
        ] {
            let answer = send(request).await;
            // The form of a key is that of a customer's id: such a call goes to the API, whose answer is its own.
            let status = match (what, value == KEY) {
                ("value", true) => 201,
                ("path argument", true) => 404,
                _ => status,
            };
            assert_eq!(answer.status, status, "{what}: {}", answer.body);
            if answer.header("content-type") == "application/problem+json"
                || status != 404 && what != "value"
            {
                answers.push((what, answer));
            }
        }
        if value == KEY {
            let method = Method::from_bytes(KEY.as_bytes()).unwrap();
            answers.push(("method", send(world.agent(method, "/desk/refunds")).await));
        }
        // Words of the people who decide.
        for (verb, amount) in [("approve", 25_000), ("deny", 26_000)] {
            let parked = refund(json!({"amount_cents": amount, "note": value}));
            let parked = send(parked.header("toolgate-reason", value))
                .await
                .expect(403);
            let approval = parked.body["approval"].as_str().unwrap();
            let digest = world.shown("ada", approval).await["digest"].clone();
            // Who has no role in the tier sees no more than the records do.
            let list = world.operator("grace", Method::GET, "/v1/approvals?state=pending");
            answers.push(("list", send(list).await.expect(200)));
            let path = format!("/v1/approvals/{approval}/{verb}");
            let decision = json!({"digest": digest, "reason": value});
            answers.push((
                "vote",
                send(world.operator("ada", Method::POST, &path).json(&decision))
                    .await
                    .expect(200),
            ));
            let call = parked.body["call"].as_str().unwrap();
            world.ended(call).await;
            answers.push((
                "state",
                send(world.agent(Method::GET, &format!("/v1/calls/{call}"))).await,
            ));
        }
    }
    // What the API says goes to the agent alone.
    let said = send(world.agent(Method::PUT, "/probe/things/a/parts/1"))
        .await
        .expect(404);
    assert_eq!(said.body["ok"], EMAIL);
    let reported = send(world.agent(Method::GET, "/probe/reports/1"))
        .await
        .expect(200);
    assert_eq!(
        world.recorded(reported.header("toolgate-call")).await["reasons"],
        json!(["upstream_answer_invalid"])
    );

    let written = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(written.contains("toolgate"), "nothing was logged");
    let rows = all_rows(&world).await;
    for value in [EMAIL, KEY, CARD, "4111111111111111"] {
        for spelling in spellings(value) {
            for (table, row) in &rows {
                assert!(!row.contains(&spelling), "{spelling} in {table}: {row}");
            }
            // The test's own client logs here as well.
            for line in written.lines().filter(|line| !line.contains("reqwest")) {
                assert!(!line.contains(&spelling), "{spelling} in the log: {line}");
            }
            for (what, answer) in &answers {
                let text = String::from_utf8_lossy(&answer.bytes);
                assert!(!text.contains(&spelling), "{spelling} in {what}: {text}");
                let headers = format!("{:?}", answer.headers);
                assert!(
                    !headers.contains(&spelling),
                    "{spelling} in {what}: {headers}"
                );
            }
        }
    }
}

const EMAIL: &str = "planted.person@example.org";
const CARD: &str = "4111 1111 1111 1111";
const KEY: &str = "AKIAPLANTED234567890";

/// Values that no contract marks, but anybody knows for what they are.
#[tokio::test]
async fn what_the_detectors_know_is_found_in_no_table() {
    const IBAN: &str = "DE89 3704 0044 0532 0130 00";
    let body = format!(r#"{{"ok":true,"note":"paid with {CARD}","{EMAIL}":1}}"#);
    let api =
        crate::wire::RawApi::start(move |_| crate::wire::json_answer("200 OK", "", &body)).await;
    let world = crate::probe::setup(&api)
        .tool(
            "probe.yaml",
            "    output: { type: object, required: [ok], properties: { ok: { type: boolean } } }\n  - name: probe.reports",
            "    output: { type: object, required: [ok], additionalProperties: true, properties: { ok: { type: boolean } } }\n  - name: probe.reports",
        )
        .start()
        .await;
    let run = send(world.agent(Method::POST, "/v1/runs").json(&json!({
        "triggered_by": "ticket 7", "purpose": format!("answer {EMAIL}, password: hunter2!x")
    })))
    .await
    .expect(201)
    .body["run"]
        .clone();
    let request = world
        .agent(
            Method::PUT,
            "/probe/things/planted.person%40example.org/parts/1?q=iban%20DE89370400440532013000&tag=a&tag=AKIAPLANTED234567890",
        )
        .header("toolgate-run", run.as_str().unwrap())
        .header("toolgate-reason", format!("because {EMAIL} asked"))
        .header("x-note", format!("card {CARD}"))
        .json(&json!({"text": format!("{KEY} and {IBAN}"), "count": 4_111_111_111_111_111_u64}));
    let answer = send(request).await.expect(200);
    assert_eq!(
        answer.body["note"],
        format!("paid with {CARD}"),
        "the agent has it"
    );
    let halt = world.halt(json!({"kind": "api", "id": "etcd"})).await;
    world.resume(&halt).await;
    let request = world
        .operator("ada", Method::POST, "/v1/kill-switches")
        .json(&json!({"scope": {"kind": "agent", "id": "platform-bot"}, "reason": format!("{EMAIL} called, {KEY}")}));
    send(request).await.expect(201);

    let row = world.call_row(answer.header("toolgate-call")).await;
    let arguments = row["arguments"].to_string();
    for kind in ["pii:email:", "pii:iban:", "pii:card:", "secret:credential:"] {
        assert!(arguments.contains(kind), "{kind} {arguments}");
    }
    let plain = |text: &str| text.replace([' ', '-'], "").to_lowercase();
    for (table, row) in all_rows(&world).await {
        for planted in [EMAIL, CARD, KEY, IBAN, "hunter2!x"] {
            assert!(
                !plain(&row).contains(&plain(planted)),
                "{planted} in {table}: {row}"
            );
        }
    }

    // One value has one digest, however and wherever it was written, and the digest finds it.
    let keys =
        toolgate::secrets::Keyring::new(&toolgate::secrets::Secret::new(crate::support::MASTER))
            .unwrap();
    for value in [
        EMAIL,
        "Planted.Person@EXAMPLE.org",
        CARD,
        "4111-1111-1111-1111",
        KEY,
        IBAN,
    ] {
        let tokens = toolgate::redaction::tokens_of(value, &keys);
        let (_, token) = tokens.last().unwrap();
        let query = format!(
            "SELECT DISTINCT call_id FROM audit.entries WHERE value_tokens @> ARRAY['{token}'] AND call_id IS NOT NULL"
        );
        assert_eq!(world.audit(&query).await.len(), 1, "{value}");
    }
}
