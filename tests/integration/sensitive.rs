//! What agents get of sensitive values, what they can do with those that they know only by reference, and what operators see.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use toolgate::{
    keys::KeyKind,
    redaction::tokens_of,
    secrets::{Keyring, Secret},
};

use crate::{
    probe,
    support::{Answer, MASTER, Setup, World, send},
    wire::{RawApi, json_answer},
};

const EMAIL: &str = "planted.person@example.org";
const CARD: &str = "4111 1111 1111 1111";
const KEY: &str = "planted-key-of-a-person";

const TOOLS: &str = r"
  - name: probe.people.get
    description: Reads a person.
    api: probe
    method: GET
    path: /people/{id}
    scope: probe.things:use
    consequence: read
    input: { type: object, required: [id], properties: { id: { type: string } } }
    output:
      type: object
      required: [id, email, card, key]
      properties:
        id: { type: string }
        email: { type: string, x-sensitivity: pii }
        card: { type: string, x-sensitivity: pii }
        key: { type: string, x-sensitivity: secret }
        note: { type: string }
    answers: { pii: RULE, secret: drop }
  - name: probe.letters.send
    description: Sends a letter.
    api: probe
    method: POST
    path: /letters/{to}
    scope: probe.things:use
    consequence: write
    query: [copy]
    headers: { X-Reply-To: reply }
    body: { formats: [json, form] }
    input:
      type: object
      required: [to]
      properties:
        to: { type: string, format: email, x-sensitivity: pii }
        copy: { type: string, format: email, x-sensitivity: pii }
        reply: { type: string, format: email, x-sensitivity: pii }
        blind: { type: array, items: { type: string, format: email, x-sensitivity: pii } }
        text: { type: string, x-sensitivity: confidential }
        subject: { type: string }
        free: { type: object, additionalProperties: true }
    output: { type: object, required: [ok], properties: { ok: { type: boolean }, to: { type: string, x-sensitivity: pii } } }
    answers: { pii: RULE }
";

const WAITING: &str = r#"
@id("letters-wait")
@description("Some letters wait for a person.")
@approval("communications")
forbid (principal, action == Action::"probe.letters.send", resource)
when { context.input has subject && context.input.subject == "wait" }
unless { context.approvals.contains("communications") };
"#;

/// An API that tells what it knows of people, and repeats addresses in its errors.
pub async fn api() -> RawApi {
    let person = json!({"id": "1", "email": EMAIL, "card": CARD, "key": KEY, "note": format!("call {EMAIL}")}).to_string();
    let third =
        json!({"id": "3", "email": "somebody@example.com", "card": CARD, "key": KEY}).to_string();
    let letter = json!({"ok": true, "to": EMAIL}).to_string();
    RawApi::start(move |request| {
        let line = request.lines().next().unwrap_or_default();
        let headers = "ETag: \"v1\"\r\nRepr-Digest: sha-256=:x:\r\n";
        if line.contains("/people/1 ") {
            json_answer("200 OK", headers, &person)
        } else if line.contains("/people/3 ") {
            json_answer("200 OK", headers, &third)
        } else if line.contains("/letters/") {
            json_answer("200 OK", headers, &letter)
        } else {
            json_answer(
                "404 Not Found",
                headers,
                &format!("{{\"error\": \"no person {EMAIL}\"}}"),
            )
        }
    })
    .await
}

pub fn setup(api: &RawApi, rule: &str) -> Setup {
    probe::setup(api)
        .tool("probe.yaml", "", &TOOLS.replace("RULE", rule))
        .policy("probe.cedar", "", WAITING)
}

impl World {
    pub async fn person(&self, run: &str) -> Answer {
        let path = "/probe/people/1";
        send(self.agent(Method::GET, path).header("toolgate-run", run)).await
    }

    pub fn letter(&self, run: &str, arguments: &Value) -> RequestBuilder {
        self.agent(Method::POST, "/v1/tools/probe.letters.send/calls")
            .header("toolgate-run", run)
            .json(&json!({ "arguments": arguments }))
    }

    async fn references(&self) -> i64 {
        let mut superuser = self.connect("superuser").await;
        sqlx::query_scalar("SELECT count(*) FROM toolgate.value_references")
            .fetch_one(&mut superuser)
            .await
            .unwrap()
    }
}

#[tokio::test]
async fn a_reference_is_turned_back_in_its_own_run_and_place_and_nowhere_else() {
    let api = api().await;
    let mut world = setup(&api, "token").start().await;
    world.key(KeyKind::Agent, "platform-bot").await;
    let run = world.run().await;
    let person = world.person(&run).await.expect(200);
    let text = |answer: &Answer, name: &str| answer.body[name].as_str().unwrap().to_owned();
    let (email, card) = (text(&person, "email"), text(&person, "card"));
    for reference in [&email, &card] {
        assert!(
            reference.starts_with("tg_ref_") && reference.len() == 47,
            "{reference}"
        );
    }
    assert_ne!(email, card);
    assert_eq!(
        text(&person, "note"),
        format!("call {email}"),
        "the same value, the same reference"
    );
    assert_eq!(person.body.get("key"), None);
    assert_eq!(world.person(&run).await.expect(200).body, person.body);
    let row = world.call_row(person.header("toolgate-call")).await;
    let ring = Keyring::new(&Secret::new(MASTER)).unwrap();
    let known = format!("pii:email:{}", tokens_of(EMAIL, &ring)[1].1);
    assert_eq!(
        row["answer"]["email"], known,
        "what is recorded is of the value"
    );
    api.requests();

    // In the path, the query, a header and the body, on both surfaces and in a form: the API gets the value, the records its token.
    let request = world
        .agent(
            Method::POST,
            &format!("/probe/letters/{email}?copy={email}"),
        )
        .header("toolgate-run", &run)
        .header("x-reply-to", &email)
        .json(&json!({"blind": [email]}));
    let sent = send(request).await.expect(200);
    assert_eq!(
        text(&sent, "to"),
        email,
        "and what comes back is a reference again"
    );
    let received = api.requests().concat();
    assert!(
        !received.contains("tg_ref_") && received.matches("planted.person").count() == 4,
        "{received}"
    );
    let row = world.call_row(sent.header("toolgate-call")).await;
    for place in ["/to", "/copy", "/reply", "/blind/0"] {
        assert_eq!(
            row["arguments"].pointer(place),
            Some(&json!(known)),
            "{row}"
        );
    }
    let form = world
        .agent(Method::POST, "/probe/letters/a%40b.example")
        .header("toolgate-run", &run)
        .form(&[("blind[0]", &email)]);
    send(form).await.expect(200);
    let by_name = send(world.letter(&run, &json!({"to": email})))
        .await
        .expect(200);
    assert_eq!(by_name.body["result"]["to"], email);
    assert!(!api.requests().concat().contains("tg_ref_"));

    // Parked: the approver sees the value, and the same request by the value itself is the same call.
    let parked = send(world.letter(&run, &json!({"to": email, "subject": "wait"})))
        .await
        .problem(403, "approval_required");
    let approval = text(&parked, "approval");
    assert_eq!(
        world.shown("ada", &approval).await["arguments"]["to"],
        EMAIL
    );
    let again = send(world.letter(&run, &json!({"to": EMAIL, "subject": "wait"})))
        .await
        .expect(403);
    assert_eq!(text(&again, "call"), text(&parked, "call"));

    // A restart takes nothing away.
    let world = world.restart(|setup| setup).await;
    send(world.letter(&run, &json!({"to": email})))
        .await
        .expect(200);
    world.decide("ada", &approval, "approve").await.expect(200);
    let state = world.ended(&text(&parked, "call")).await;
    assert_eq!(
        (&state["state"], &state["result"]["to"]),
        (&json!("completed"), &json!(email))
    );
    api.requests();

    let other_run = world.run().await;
    let forged = format!("tg_ref_{}", "0".repeat(40));
    for (what, run, arguments) in [
        ("of another run", &other_run, json!({"to": email})),
        ("forged", &run, json!({"to": forged})),
        (
            "within a longer text",
            &run,
            json!({"to": format!("<{email}>")}),
        ),
        ("cut", &run, json!({"to": &email[..46]})),
        (
            "with more behind it",
            &run,
            json!({"to": format!("{email}0")}),
        ),
        (
            "of a class that is not accepted",
            &run,
            json!({"to": EMAIL, "text": email}),
        ),
        (
            "where nothing is marked",
            &run,
            json!({"to": EMAIL, "subject": email}),
        ),
        (
            "in an open object",
            &run,
            json!({"to": EMAIL, "free": {"a": [email]}}),
        ),
        ("as a name", &run, json!({"to": EMAIL, "free": {&email: 1}})),
        (
            "a card where an address is wanted",
            &run,
            json!({"to": card}),
        ),
    ] {
        let refused = send(world.letter(run, &arguments))
            .await
            .problem(422, "invalid_arguments");
        let told = refused.body["errors"].to_string();
        assert!(
            !told.contains(EMAIL) && !told.contains(&email),
            "{what}: {told}"
        );
        let message = refused.body["errors"][0]["message"].as_str().unwrap();
        assert!(message.len() > 15, "{what}");
        if matches!(what, "of another run" | "forged") {
            assert!(message.contains("no reference of this run"), "{message}");
        }
        if matches!(what, "within a longer text" | "cut" | "with more behind it") {
            assert!(
                message.contains("stands only for the whole"),
                "{what}: {message}"
            );
        }
        world.refused(refused, 422, "invalid_arguments").await;
    }
    assert!(api.requests().is_empty(), "nothing was sent");
    let audit = world.whole_audit().await;
    // Not shorter: four digits stand in many a hash.
    assert!(!audit.contains("planted.person"));
    assert!(!audit.contains("4111 1111") && !audit.contains("41111111"));

    // Whoever writes into the table cannot move a value into another run, nor under another name.
    let mut superuser = world.connect("superuser").await;
    for change in [
        format!("INSERT INTO toolgate.value_references (run_id, reference, class, sealed)
                 SELECT '{other_run}', reference, class, sealed FROM toolgate.value_references WHERE reference = '{email}'"),
        format!("UPDATE toolgate.value_references SET sealed = (SELECT sealed FROM toolgate.value_references WHERE reference = '{card}')
                 WHERE reference = '{email}' AND run_id = '{other_run}'"),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(change)).execute(&mut superuser).await.unwrap();
        send(world.letter(&other_run, &json!({"to": email})))
            .await
            .problem(422, "invalid_arguments");
    }
    sqlx::query("DELETE FROM toolgate.value_references WHERE run_id = $1")
        .bind(&other_run)
        .execute(&mut superuser)
        .await
        .unwrap();
    assert!(api.requests().is_empty(), "nothing was sent");

    // Another agent, in a run of its own.
    let mut world = world;
    world.key(KeyKind::Agent, "platform-bot").await;
    let request = world
        .agent_named(
            "platform-bot",
            Method::POST,
            "/v1/tools/probe.letters.send/calls",
        )
        .json(&json!({"arguments": {"to": email}}));
    send(request).await.problem(422, "invalid_arguments");

    // With the run the values are gone.
    assert_eq!(world.references().await, 2);
    let path = format!("/v1/runs/{run}/end");
    assert!(send(world.agent(Method::POST, &path)).await.status < 300);
    assert_eq!(world.references().await, 0);
    send(world.letter(&run, &json!({"to": email})))
        .await
        .problem(401, "unauthenticated");
    let refused = send(world.letter(&other_run, &json!({"to": email})))
        .await
        .problem(422, "invalid_arguments");
    let told = refused.body["errors"][0]["message"].as_str().unwrap();
    assert!(
        told.contains("ended") && told.contains("Read the value again"),
        "{told}"
    );
}

#[tokio::test]
async fn what_cannot_be_given_a_reference_is_masked() {
    let api = api().await;
    let setup = probe::with_limits(setup(&api, "token"), "max_references_per_run: 2");
    let world = setup
        .tool(
            "probe.yaml",
            "answers: { pii: token, secret: drop }",
            "answers: { pii: token, secret: token }",
        )
        .start()
        .await;
    let run = world.run().await;
    // The third value of one answer.
    let person = world.person(&run).await.expect(200);
    let given = person.body.to_string();
    assert!(
        given.contains("tg_ref_") && given.contains("****") && !given.contains(KEY),
        "{given}"
    );
    assert!(
        !given.contains("planted.person") && !given.contains("4111 1111"),
        "{given}"
    );
    assert_eq!(world.references().await, 2);
    // One more of another answer in the same run, and none of that answer is kept.
    let other = send(
        world
            .agent(Method::GET, "/probe/people/3")
            .header("toolgate-run", &run),
    )
    .await
    .expect(200);
    assert_eq!(other.body["email"], "****@example.com", "{}", other.body);
    assert_eq!(world.references().await, 2);

    // A run that is over when the answer comes.
    let run = world.run().await;
    let parked = send(world.letter(&run, &json!({"to": EMAIL, "subject": "wait"})))
        .await
        .expect(403);
    let path = format!("/v1/runs/{run}/end");
    assert!(send(world.agent(Method::POST, &path)).await.status < 300);
    let approval = parked.body["approval"].as_str().unwrap();
    world.decide("ada", approval, "approve").await.expect(200);
    let state = world.ended(parked.body["call"].as_str().unwrap()).await;
    assert_eq!(state["result"]["to"], "****@example.org", "{state}");
    assert_eq!(world.references().await, 2);
}

#[tokio::test]
async fn masks_and_gaps_are_the_same_on_every_surface_and_the_schema_says_so() {
    let api = api().await;
    let world = setup(&api, "mask")
        .config("apis:\n", "answers: { detected: { pii: mask } }\napis:\n")
        .start()
        .await;
    let run = world.run().await;
    let masked = json!({"id": "1", "email": "****@example.org", "card": "****1111", "note": "call ****@example.org"});
    let person = world.person(&run).await.expect(200);
    assert_eq!(person.body, masked);
    assert_eq!(
        person.header("content-length"),
        person.bytes.len().to_string()
    );
    assert_eq!(
        (person.header("etag"), person.header("repr-digest")),
        ("", "")
    );
    let by_name = world
        .agent(Method::POST, "/v1/tools/probe.people.get/calls")
        .json(&json!({"arguments": {"id": "1"}}));
    assert_eq!(send(by_name).await.expect(200).body["result"], masked);
    for _ in 0..2 {
        let kept = world
            .agent(Method::GET, "/probe/people/1")
            .header("idempotency-key", "k1");
        assert_eq!(send(kept).await.expect(200).body, masked);
    }
    let parked = send(world.letter(&run, &json!({"to": EMAIL, "subject": "wait"})))
        .await
        .expect(403);
    world
        .decide("ada", parked.body["approval"].as_str().unwrap(), "approve")
        .await
        .expect(200);
    let state = world.ended(parked.body["call"].as_str().unwrap()).await;
    assert_eq!(
        state["result"],
        json!({"ok": true, "to": "****@example.org"})
    );
    // An error of the API's, which no contract describes.
    let missing = send(world.agent(Method::GET, "/probe/people/2"))
        .await
        .expect(404);
    assert_eq!(missing.body, json!({"error": "no person ****@example.org"}));
    // What is recorded is still found by the value.
    let row = world.call_row(person.header("toolgate-call")).await;
    assert!(
        row["answer"]["key"]
            .as_str()
            .unwrap()
            .starts_with("secret:"),
        "{row}"
    );

    let tools = send(world.agent(Method::GET, "/v1/tools"))
        .await
        .expect(200);
    let list = tools.body["data"].as_array().unwrap();
    let tool = list
        .iter()
        .find(|tool| tool["name"] == "probe.people.get")
        .unwrap();
    assert_eq!(tool["output"]["properties"].get("key"), None);
    assert_eq!(tool["output"]["required"], json!(["id", "email", "card"]));
    assert_eq!(
        tool["output"]["properties"]["card"]["description"],
        "Masked by the gateway."
    );
}

#[tokio::test]
async fn an_operator_sees_what_their_roles_let_them_see_and_that_is_recorded() {
    let api = api().await;
    let mut world = setup(&api, "pass")
        .config(
            "requires: [{ role: communications, approvals: 1 }]\n",
            "requires: [{ role: communications, approvals: 1 }]\n    shows: [pii]\n",
        )
        .start()
        .await;
    world.key(KeyKind::Operator, "grace").await;
    let run = world.run().await;
    let text = format!("secret words, card {CARD}");
    let arguments = json!({"to": EMAIL, "subject": "wait", "text": text, "free": {"reply": format!("to {EMAIL}")}});
    let parked = send(world.letter(&run, &arguments)).await.expect(403);
    let approval = parked.body["approval"].as_str().unwrap();
    let shown = world.shown("ada", approval).await;
    assert_eq!(
        shown["arguments"],
        json!({"to": EMAIL, "subject": "wait", "text": "****", "free": {"reply": format!("to {EMAIL}")}})
    );
    // An auditor may read approvals, and has no role in the tier.
    let masked = world.shown("grace", approval).await;
    assert_eq!(
        masked["arguments"],
        json!({"to": "****@example.org", "subject": "wait", "text": "****", "free": {"reply": "to ****@example.org"}})
    );
    assert_eq!(
        masked["digest"], shown["digest"],
        "it is over what will be sent"
    );
    let list = send(world.operator("grace", Method::GET, "/v1/approvals?state=pending"))
        .await
        .expect(200);
    assert!(!String::from_utf8_lossy(&list.bytes).contains("planted.person"));
    let seen = world
        .audit("SELECT operator, detail -> 'seen' FROM audit.entries WHERE kind = 'approval_viewed' ORDER BY seq")
        .await;
    let seen: Vec<(String, Value)> = seen
        .iter()
        .map(|row| (sqlx::Row::get(row, 0), sqlx::Row::get(row, 1)))
        .collect();
    assert_eq!(seen[0], ("ada".to_owned(), json!({approval: ["pii"]})));
    assert_eq!(seen[1], ("grace".to_owned(), json!({})));
    assert_eq!(seen[2], ("grace".to_owned(), json!({})));
    world.decide("ada", approval, "approve").await.expect(200);
    assert_eq!(
        world.ended(parked.body["call"].as_str().unwrap()).await["state"],
        "completed"
    );
    let request = api.requests().concat();
    assert!(
        request.contains("secret words") && request.contains(CARD),
        "{request}"
    );
}
