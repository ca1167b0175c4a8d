//! What a call did to the world, as its contract lets the record know: the state before, what the answer says was changed, and
//! the answer itself, cut to what the contract names.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    probe::{self, PLANTED},
    support::{Setup, World, send},
    wire::{Act, RawApi, json_answer},
};

const TOOLS: &str = r"
tools:
  - name: probe.users.get
    description: Reads a user.
    api: probe
    method: GET
    path: /users/{id}
    scope: probe.things:use
    consequence: read
    input: { type: object, required: [id], properties: { id: { type: string } } }
    output:
      type: object
      required: [id]
      properties: { id: { type: string }, role: { type: string }, email: { type: string, x-sensitivity: pii } }
  - name: probe.users.set
    description: Sets the role of a user.
    api: probe
    method: PUT
    path: /users/{id}
    scope: probe.things:use
    consequence: write
    before: { tool: probe.users.get, arguments: { id: /id } }
    changed: [ /user/id, /user/role, /user/email, /nowhere ]
    input: { type: object, required: [id, role], properties: { id: { type: string }, role: { type: string } } }
    output:
      type: object
      required: [user]
      properties:
        user:
          type: object
          properties: { id: { type: string }, role: { type: string }, email: { type: string, x-sensitivity: pii } }
";

const BEFORE: &str =
    r#"{"id":"u1","role":"viewer","email":"planted-before@example.org","internal":"INTERNAL"}"#;
const AFTER: &str = r#"{"user":{"id":"u1","role":"admin","email":"planted-after@example.org","internal":"INTERNAL"},"trace":"INTERNAL"}"#;

fn world_of(api: &RawApi) -> Setup {
    probe::setup(api).tool("users.yaml", "", TOOLS)
}

async fn acting(read: Act, write: Act) -> RawApi {
    RawApi::start(move |head| {
        if head.starts_with("GET") {
            read.clone()
        } else {
            write.clone()
        }
    })
    .await
}

async fn set_role(world: &World) -> crate::support::Answer {
    send(
        world
            .agent(Method::PUT, "/probe/users/u1")
            .json(&json!({"role": "admin"})),
    )
    .await
}

/// Entries of a kind, oldest first, as objects.
async fn entries(world: &World, kind: &str) -> Vec<Value> {
    use sqlx::Row as _;
    let query = format!(
        "SELECT to_jsonb(e) FROM audit.entries AS e WHERE kind = '{kind}' ORDER BY recorded_at, seq"
    );
    world
        .audit(&query)
        .await
        .iter()
        .map(|row| row.get::<Value, _>(0))
        .collect()
}

#[tokio::test]
async fn the_record_knows_the_state_before_what_was_changed_and_what_was_answered() {
    let api = acting(
        json_answer("200 OK", "", BEFORE),
        json_answer("200 OK", "", AFTER),
    )
    .await;
    let world = world_of(&api).start().await;
    let answer = set_role(&world).await.expect(200);
    assert_eq!(
        answer.body,
        json!({"user": {"id": "u1", "role": "admin", "email": "planted-after@example.org"}}),
        "the agent gets what the contract names and no more"
    );
    let intents = entries(&world, "intent").await;
    let [reading, writing] = &intents[..] else {
        panic!("{intents:#?}");
    };
    assert_eq!(reading["surface"], "before");
    assert_eq!(reading["tool"], "probe.users.get");
    assert_eq!(reading["detail"]["before_of"], writing["call_id"]);
    assert_eq!(reading["run_id"], writing["run_id"]);
    assert_eq!(writing["before"]["call"], reading["call_id"]);
    assert_eq!(writing["before"]["status"], 200);
    assert_eq!(writing["before"]["state"]["role"], "viewer");
    let outcomes = entries(&world, "outcome").await;
    assert!(outcomes[0]["recorded_at"].as_str() <= writing["recorded_at"].as_str());
    let outcome = &outcomes[1];
    assert_eq!(outcome["changed"]["/user/id"], "u1");
    assert_eq!(outcome["changed"]["/user/role"], "admin");
    let email = outcome["changed"]["/user/email"].as_str().unwrap();
    assert!(email.starts_with("pii:"), "{email}");
    assert_eq!(outcome["answer"]["user"]["email"], email);
    assert_eq!(outcome["changed"].as_object().unwrap().len(), 3);
    let digest = outcome["answer_digest"].as_str().unwrap();
    assert!(digest.starts_with("hmac-sha256:"), "{digest}");
    let audit = world.whole_audit().await;
    for planted in ["planted-before", "planted-after", "INTERNAL"] {
        assert!(!audit.contains(planted), "{planted}");
    }
    let requests = api.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
}

#[tokio::test]
async fn one_row_tells_who_why_what_was_seen_and_which_texts_decided() {
    let world = crate::support::World::shipped().await;
    let run = world.run().await;
    let (call, approval) = world.parked(Some(&run), 25_000).await;
    let shown = world.shown("ada", &approval).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&call).await["state"], "completed");
    let row = world.call_row(&call).await;
    let opened = &world
        .audit("SELECT triggered_by, purpose FROM audit.runs")
        .await[0];
    use sqlx::Row as _;
    assert_eq!(row["triggered_by"], opened.get::<String, _>(0));
    assert_eq!(row["purpose"], opened.get::<String, _>(1));
    assert_eq!(row["votes"][0]["operator"], "ada");
    assert_eq!(row["votes"][0]["digest"], shown["digest"]);
    for policy in row["policies"].as_array().unwrap() {
        let text = row["policy_texts"][policy.as_str().unwrap()]
            .as_str()
            .unwrap();
        assert!(text.contains("@approval"), "{text}");
    }
    assert_eq!(row["contract"]["name"], "desk.refunds.create");
    assert_eq!(row["changed"]["/status"], row["answer"]["status"]);
    for step in [
        "deciding_took",
        "waiting_took",
        "recording_took",
        "api_took",
    ] {
        assert!(row[step].is_string(), "{step} {row}");
    }
}

#[tokio::test]
async fn without_the_state_before_nothing_is_sent_unless_the_contract_says_so() {
    let api = acting(Act::Close, json_answer("200 OK", "", AFTER)).await;
    let world = world_of(&api).start().await;
    let answer = set_role(&world).await;
    world.refused(answer, 502, "state_before_unavailable").await;
    assert!(
        api.requests()
            .iter()
            .all(|request| request.starts_with("GET")),
        "sent although the state before is not known"
    );

    let world = world
        .restart(|setup| {
            setup.tool(
                "users.yaml",
                "arguments: { id: /id } }",
                "arguments: { id: /id }, on_failure: proceed }",
            )
        })
        .await;
    set_role(&world).await.expect(200);
    let intents = entries(&world, "intent").await;
    let before = &intents.last().unwrap()["before"];
    assert!(before["unknown"].is_string(), "{before}");
}

#[tokio::test]
async fn a_state_that_the_api_does_not_have_is_a_state() {
    let api = acting(
        json_answer("404 Not Found", "", &format!(r#"{{"error":"{PLANTED}"}}"#)),
        json_answer("200 OK", "", AFTER),
    )
    .await;
    let world = world_of(&api).start().await;
    set_role(&world).await.expect(200);
    let intents = entries(&world, "intent").await;
    assert_eq!(intents[1]["before"]["status"], 404);
    assert_eq!(intents[1]["before"]["state"], Value::Null);
    assert!(!world.whole_audit().await.contains(PLANTED));
}

#[tokio::test]
async fn the_read_before_goes_through_the_same_steps() {
    let api = acting(
        json_answer("200 OK", "", BEFORE),
        json_answer("200 OK", "", AFTER),
    )
    .await;
    let world = world_of(&api)
        .policy(
            "no-reading.cedar",
            "",
            "@id(\"no-reading\") @description(\"Nobody reads users.\")\nforbid (principal, action == Action::\"probe.users.get\", resource);",
        )
        .start()
        .await;
    let answer = set_role(&world).await;
    world.refused(answer, 502, "state_before_unavailable").await;
    assert_eq!(api.requests().len(), 0, "read although it is forbidden");
    let refusals = entries(&world, "refusal").await;
    assert_eq!(refusals[0]["reasons"], json!(["denied_by_policy"]));
    assert_eq!(refusals[0]["surface"], "before");
}
