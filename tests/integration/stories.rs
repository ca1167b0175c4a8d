//! `toolgate audit call | run | approval | halt`, and the queries that the README shows: each against a world in which something
//! has happened.

use std::process::{Command, Output};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor as _};

use crate::support::{World, send, url};

fn audit(world: &World, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_toolgate"))
        .arg("audit")
        .args(arguments)
        .args(["--url", &url("toolgate_auditor", &world.database)])
        .output()
        .unwrap()
}

#[track_caller]
pub fn told(world: &World, arguments: &[&str]) -> String {
    let output = audit(world, arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn refused(world: &World, arguments: &[&str], says: &str) {
    let output = audit(world, arguments);
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{arguments:?}");
    assert!(errors.contains(says), "{arguments:?}: {errors}");
    assert!(output.stdout.is_empty());
}

/// Each of these stands in the text, one behind the other.
#[track_caller]
fn in_order(text: &str, parts: &[&str]) {
    let mut rest = text;
    for part in parts {
        let Some(at) = rest.find(part) else {
            panic!("{part:?} does not follow in:\n{text}");
        };
        rest = &rest[at + part.len()..];
    }
}

struct Happened {
    world: World,
    run: String,
    call: String,
    approval: String,
    digest: String,
    halt: String,
    stopped: String,
}

async fn happened() -> Happened {
    let world = World::shipped().await;
    let body = json!({"triggered_by": "ticket:T-1", "purpose": "a \u{1b}[31mcomplaint\u{202e}"});
    let run = send(world.agent(Method::POST, "/v1/runs").json(&body))
        .await
        .expect(201)
        .body["run"]
        .as_str()
        .unwrap()
        .to_owned();
    send(world.refund(Some(&run), 1_200)).await.expect(201);
    send(world.refund(Some(&run), 250_000))
        .await
        .problem(403, "denied_by_policy");
    let (call, approval) = world.parked(Some(&run), 25_000).await;
    let digest = world.shown("bob", &approval).await["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    world.decide("ada", &approval, "approve").await.expect(200);
    world.ended(&call).await;
    let halt = world.halt(json!({"kind": "everything"})).await;
    let stopped = send(world.refund(Some(&run), 1_300))
        .await
        .problem(503, "halted");
    let stopped = stopped.header("toolgate-call").to_owned();
    world.resume(&halt).await;
    let mail = json!({"to": "planted-story@example.org", "subject": "s", "body": "b"});
    let request = world.agent(Method::POST, "/desk/mail").json(&mail);
    send(request.header("toolgate-run", &run)).await;
    Happened {
        world,
        run,
        call,
        approval,
        digest,
        halt,
        stopped,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_command_tells_what_happened_to_a_call_a_run_an_approval_and_a_halt() {
    let one = happened().await;
    let world = &one.world;
    let digest = format!("ada approved what has the digest {}", one.digest);
    let call = told(world, &["call", &one.call]);
    in_order(
        &call,
        &[
            &one.call,
            "desk.refunds.create completed 201",
            "support-bot",
            &one.run,
            "ticket:T-1",
            "complaint",
            "money_movement",
            r#""amount_cents":25000"#,
            &one.digest,
            "the request arrived",
            "parked by",
            "approved by finance",
            "bob was shown it",
            "ada was shown it",
            &digest,
            "\u{201c}test\u{201d}",
            "permitted by",
            "its intent was recorded",
            "sent to the API",
            "completed, status 201: the API executed it",
            "@approval(\"finance\")",
            "Took: deciding",
            "waiting",
            "the API",
        ],
    );
    let run = told(world, &["run", &one.run]);
    in_order(
        &run,
        &[
            &one.run,
            "support-bot for ticket:T-1",
            "5, of which",
            "the run was opened",
            "desk.refunds.create completed 201",
            "desk.refunds.create denied",
            "denied_by_policy, by",
            "desk.refunds.create parked, then completed 201",
            &one.call,
            "parked by",
            "then permitted by",
            &digest,
            "ada pulled the kill switch, halt of everything",
            "desk.refunds.create denied",
            &format!("halted, {}", one.halt),
            "ada released it",
            "desk.mail.send",
        ],
    );
    let approval = told(world, &["approval", &one.approval]);
    in_order(
        &approval,
        &[
            &one.approval,
            "completed",
            &one.digest,
            "parked by",
            "bob was shown it",
            &digest,
            "executed: completed 201",
        ],
    );
    let halt = told(world, &["halt", &one.halt]);
    in_order(
        &halt,
        &[
            &one.halt,
            "halt of everything",
            "1 call",
            "ada pulled",
            "desk.refunds.create of support-bot not sent",
            &one.stopped,
            "ada released it",
        ],
    );
    for text in [&call, &run, &approval, &halt] {
        assert!(
            !text.contains('\u{1b}') && !text.contains('\u{202e}'),
            "{text}"
        );
        assert!(!text.contains("planted-story"), "{text}");
    }
    for (thing, id) in [
        ("call", &one.call),
        ("run", &one.run),
        ("approval", &one.approval),
        ("halt", &one.halt),
    ] {
        let document: Value = serde_json::from_str(&told(world, &[thing, id, "--json"])).unwrap();
        assert!(document.to_string().contains(id.as_str()), "{thing}");
        assert!(document[thing].is_object(), "{thing}");
    }
    let over_http = send(world.operator("ada", Method::GET, &format!("/v1/runs/{}", one.run)))
        .await
        .expect(200);
    let document: Value = serde_json::from_str(&told(world, &["run", &one.run, "--json"])).unwrap();
    assert_eq!(document, over_http.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_of_nothing_or_of_something_else_says_what_to_do() {
    let world = World::shipped().await;
    let run = world.run().await;
    refused(
        &world,
        &["call", &run],
        &format!("toolgate audit run {run}"),
    );
    refused(&world, &["run", "x"], "it begins run_");
    refused(&world, &["approval", "x"], "an approval: it begins appr_");
    let unknown = "halt_01M836DMDRE8JA51EV49058M8N";
    refused(&world, &["halt", unknown], "nothing is recorded of halt_");
}

/// The statements of a section of the README.
fn statements(section: &str) -> Vec<String> {
    let readme = include_str!("../../README.md");
    let from = readme.find(&format!("\n## {section}\n")).unwrap();
    let rest = &readme[from + 4..];
    let text = &rest[..rest.find("\n## ").unwrap()];
    text.split("```sql\n")
        .skip(1)
        .flat_map(|block| block.split("```").next().unwrap().split(";\n"))
        .map(str::trim)
        .filter(|statement| !statement.is_empty())
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn the_queries_of_the_readme_find_what_happened() {
    let one = happened().await;
    let mail = send(
        one.world
            .operator("ada", Method::POST, "/v1/audit/hash")
            .json(&json!({"value": "planted-story@example.org"})),
    )
    .await
    .expect(200);
    let token = mail.body["data"].as_array().unwrap().last().unwrap()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let mut auditor = one.world.connect("toolgate_auditor").await;
    let all = statements("For the security team");
    assert!(all.len() >= 5, "{all:#?}");
    for statement in all {
        let filled = statement
            .replace("run_…", &one.run)
            .replace("call_…", &one.call)
            .replace("halt_…", &one.halt)
            .replace("<digest>", &token);
        assert!(
            !filled.contains('…') && !filled.contains('<') || filled.contains("<="),
            "{filled}"
        );
        let rows = auditor
            .fetch_all(AssertSqlSafe(filled.clone()))
            .await
            .unwrap();
        let may_be_empty = filled.contains("indeterminate");
        assert!(
            may_be_empty || !rows.is_empty(),
            "nothing found by: {filled}"
        );
    }
}
