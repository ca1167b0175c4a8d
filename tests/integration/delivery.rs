//! What waits for people gets to them: signed, at least once, in order, past receivers that fail; and never with more in it than
//! they need.

use std::time::Duration;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row as _;

use crate::{
    receiver::{Behaviour, Receiver, now},
    support::{Answer, Setup, World, send},
};

pub const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const OLD_SECRET: &str = "whsec_ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=";

/// A config with these destinations below `destinations:`.
pub fn with(destinations: &str) -> Setup {
    let mut setup = Setup::shipped().variable("HOOK_SECRET", SECRET);
    setup.config.push_str(&format!(
        "\npublic_url: https://gate.example.com/\ndestinations:\n{destinations}"
    ));
    setup
}

/// A destination with a webhook to this receiver, and further lines.
pub fn hook(name: &str, receiver: &Receiver, more: &str) -> String {
    format!(
        "  {name}:\n    webhook:\n      url: {}\n      secrets: [\"${{env:HOOK_SECRET}}\"]\n      allow_private_addresses: true\n{more}",
        receiver.url()
    )
}

async fn deliveries(world: &World, query: &str) -> Vec<Value> {
    let path = format!("/v1/deliveries?{query}");
    let answer = send(world.operator("ada", Method::GET, &path))
        .await
        .expect(200);
    answer.body["data"].as_array().unwrap().clone()
}

/// Waits until so many deliveries are in this state.
async fn until(world: &World, query: &str, count: usize) -> Vec<Value> {
    for _ in 0..500 {
        let found = deliveries(world, query).await;
        if found.len() == count {
            return found;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{query}: {:#?}", deliveries(world, "").await);
}

async fn destination(world: &World, name: &str) -> Value {
    let answer = send(world.operator("ada", Method::GET, "/v1/destinations"))
        .await
        .expect(200);
    let data = answer.body["data"].as_array().unwrap();
    let found = data.iter().find(|one| one["destination"] == name);
    found.unwrap().clone()
}

async fn act(world: &World, operator: &str, path: &str) -> Answer {
    let request = world.operator(operator, Method::POST, path);
    send(request.json(&json!({"reason": "the receiver is back"}))).await
}

async fn entries(world: &World, kind: &str) -> Vec<Value> {
    let rows = world
        .audit(&format!(
            "SELECT jsonb_build_object('operator', operator, 'words', words, 'detail', detail) AS entry
             FROM audit.entries WHERE kind::text = '{kind}' ORDER BY recorded_at, seq"
        ))
        .await;
    rows.iter().map(|row| row.get("entry")).collect()
}

#[tokio::test]
async fn each_event_is_told_once_signed_and_in_order() {
    let receiver = Receiver::start().await;
    let world = with(&hook("people", &receiver, "")).start().await;
    let (call, approval) = world.parked(None, 25_000).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    world.ended(&call).await;
    let got = receiver.has(3).await;
    let kinds: Vec<String> = got.iter().map(|one| one.kind()).collect();
    assert_eq!(
        kinds,
        ["approval.created", "approval.approved", "call.completed"]
    );
    for one in &got {
        assert!(one.verifies(SECRET, now()), "{one:?}");
        assert!(!one.verifies(OLD_SECRET, now()), "a wrong secret");
        assert!(!one.verifies(SECRET, now() + 301), "a replay");
        let mut forged = one.clone();
        forged.body = forged.body.replace("support-bot", "support-bit");
        assert_ne!(forged.body, one.body);
        assert!(!forged.verifies(SECRET, now()), "another body");
        forged = one.clone();
        forged
            .headers
            .insert("webhook-timestamp".to_owned(), (now() + 1).to_string());
        assert!(!forged.verifies(SECRET, now()), "another time");
        assert_eq!(one.path, "/hook?to=people");
        assert_eq!(one.headers["content-type"], "application/json");
        assert!(
            one.id().starts_with("evt_") && one.id().len() == 30,
            "{}",
            one.id()
        );
        assert!(!one.id().contains('.'));
        let data = &one.json()["data"];
        assert_eq!(data["approval"], json!(approval));
        assert_eq!(data["call"], json!(call));
        assert_eq!(data["agent"], "support-bot");
        assert_eq!(data["consequence"], "money_movement");
        assert_eq!(
            data["link"],
            format!("https://gate.example.com/v1/approvals/{approval}")
        );
    }
    assert_eq!(got[1].json()["data"]["decided_by"], json!(["ada"]));
    let halt = world.halt(json!({"kind": "api", "id": "desk"})).await;
    world.resume(&halt).await;
    let got = receiver.has(5).await;
    assert_eq!(got[3].kind(), "halt.pulled");
    assert_eq!(got[4].kind(), "halt.released");
    assert_eq!(got[4].json()["data"]["kill_switch"], json!(halt));
    // Nothing comes twice, and calls that were never parked are nobody's concern.
    send(world.refund(None, 1_200)).await.expect(201);
    tokio::time::sleep(Duration::from_millis(800)).await;
    assert_eq!(receiver.got().len(), 5);
    assert_eq!(deliveries(&world, "state=delivered").await.len(), 5);
}

#[tokio::test]
async fn denied_expired_and_failed_calls_are_told_too() {
    let receiver = Receiver::start().await;
    let world = with(&hook("people", &receiver, ""))
        .config(
            "expires_in_seconds: 3600 # one hour",
            "expires_in_seconds: 2",
        )
        // Nobody is there.
        .variable("DESK_URL", "http://127.0.0.1:1")
        .start()
        .await;
    let run = world.run().await;
    let (_, first) = world.parked(Some(&run), 25_000).await;
    world.decide("ada", &first, "deny").await.expect(200);
    let denied = receiver.of("approval.denied").await;
    assert_eq!(denied.json()["data"]["decided_by"], json!(["ada"]));
    world.parked(Some(&run), 25_001).await;
    receiver.of("approval.expired").await;
    let (call, last) = world.parked(Some(&run), 25_002).await;
    world.decide("ada", &last, "approve").await.expect(200);
    let ended = world.ended(&call).await;
    assert_eq!(ended["state"], "failed");
    receiver.of("call.failed").await;
}

#[tokio::test]
async fn a_receiver_that_fails_is_tried_again_until_it_has_the_same_message() {
    let receiver = Receiver::start().await;
    receiver.script(&[
        Behaviour::Answer("500 Internal Server Error"),
        Behaviour::HangUp,
        Behaviour::Late(Duration::from_secs(3)),
        Behaviour::Answer("302 Found\r\nLocation: http://127.0.0.1:1/elsewhere"),
    ]);
    let more =
        "    timeout_seconds: 1\n    retry_seconds: [1, 1, 1, 1]\n    events: [approval.created]\n";
    let world = with(&hook("people", &receiver, more)).start().await;
    world.parked(None, 25_000).await;
    let got = receiver.has(5).await;
    for one in &got[1..] {
        assert_eq!(one.id(), got[0].id());
        assert_eq!(one.body, got[0].body);
        assert!(one.verifies(SECRET, now()));
        let timestamp = |one: &crate::receiver::Got| -> i64 {
            one.headers["webhook-timestamp"].parse().unwrap()
        };
        assert!(
            timestamp(one) > timestamp(&got[0]),
            "each try has its own time"
        );
    }
    let done = until(&world, "state=delivered", 1).await;
    assert_eq!(done[0]["attempts"], 5);
    assert_eq!(done[0]["last_error"], Value::Null);
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(receiver.got().len(), 5);
}

#[tokio::test]
async fn what_finally_fails_is_listed_recorded_and_can_be_redelivered() {
    let receiver = Receiver::start().await;
    receiver.always(Some(Behaviour::Answer("503 Service Unavailable")));
    let more = "    retry_seconds: [1]\n    events: [approval.created]\n";
    let mut world = with(&hook("people", &receiver, more)).start().await;
    world.key(toolgate::keys::KeyKind::Operator, "grace").await;
    world.parked(None, 25_000).await;
    let dead = until(&world, "state=dead", 1).await;
    assert_eq!(dead[0]["attempts"], 2);
    assert_eq!(dead[0]["last_error"], "the receiver answered 503");
    assert_eq!(dead[0]["destination"], "people");
    let recorded = entries(&world, "delivery_dead").await;
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0]["detail"]["delivery"], dead[0]["delivery"]);
    assert_eq!(recorded[0]["detail"]["event"], dead[0]["event"]);

    let id = dead[0]["delivery"].as_str().unwrap().to_owned();
    let path = format!("/v1/deliveries/{id}/redeliver");
    // An auditor reads them and may do nothing.
    let listed = send(world.operator("grace", Method::GET, "/v1/deliveries?state=dead")).await;
    assert_eq!(listed.status, 200);
    act(&world, "grace", &path)
        .await
        .problem(403, "denied_by_policy");
    act(&world, "ada", "/v1/deliveries/dlv_0/redeliver")
        .await
        .problem(404, "not_found");
    receiver.always(None);
    act(&world, "ada", &path).await.expect(200);
    until(&world, "state=delivered", 1).await;
    let got = receiver.got();
    assert_eq!(got.len(), 3);
    assert_eq!(got[2].id(), got[0].id(), "a receiver knows it for the same");
    act(&world, "ada", &path).await.problem(409, "conflict");
    let recorded = entries(&world, "delivery_redelivered").await;
    assert_eq!(recorded.len(), 1);
    assert_eq!(recorded[0]["operator"], "ada");
    assert_eq!(recorded[0]["words"], "the receiver is back");
    assert_eq!(recorded[0]["detail"]["delivery"], json!(id));
    // Attempts with a key that was not taken up yet are told too, of nobody.
    let refused = entries(&world, "operator_refused").await;
    let graces = refused.iter().filter(|entry| entry["operator"] == "grace");
    assert_eq!(graces.count(), 1);
}

#[tokio::test]
async fn a_receiver_that_is_gone_is_left_alone_until_somebody_says_otherwise() {
    let receiver = Receiver::start().await;
    receiver.always(Some(Behaviour::Answer("410 Gone")));
    let more = "    retry_seconds: [1]\n    events: [approval.created]\n";
    let world = with(&hook("people", &receiver, more)).start().await;
    world.parked(None, 25_000).await;
    receiver.has(1).await;
    for _ in 0..100 {
        if destination(&world, "people").await["disabled_at"] != Value::Null {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let stands = destination(&world, "people").await;
    assert_eq!(stands["disabled_because"], "the receiver answered 410");
    world.parked(None, 25_001).await;
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    assert_eq!(receiver.got().len(), 1, "nothing is sent to it any more");
    assert_eq!(destination(&world, "people").await["pending"], 2);
    receiver.always(None);
    act(&world, "ada", "/v1/destinations/people/enable")
        .await
        .expect(200);
    receiver.has(3).await;
    act(&world, "ada", "/v1/destinations/people/enable")
        .await
        .problem(409, "conflict");
    act(&world, "ada", "/v1/destinations/nobody/enable")
        .await
        .problem(404, "not_found");
    assert_eq!(entries(&world, "destination_disabled").await.len(), 1);
    assert_eq!(entries(&world, "destination_enabled").await.len(), 1);

    // Disabled again, and enabled by a restart with another config; one with the same config leaves it disabled.
    receiver.always(Some(Behaviour::Answer("410 Gone")));
    world.parked(None, 25_002).await;
    receiver.has(4).await;
    let world = world.restart(|setup| setup).await;
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(receiver.got().len(), 4);
    receiver.always(None);
    let world = world
        .restart(|setup| setup.config("/hook?to=people", "/other"))
        .await;
    let got = receiver.has(5).await;
    assert_eq!(got[4].path, "/other");
    assert_eq!(entries(&world, "destination_enabled").await.len(), 2);
}

#[tokio::test]
async fn a_dead_receiver_holds_up_neither_another_one_nor_a_call() {
    let (slow, quick) = (Receiver::start().await, Receiver::start().await);
    slow.always(Some(Behaviour::Late(Duration::from_secs(30))));
    let events = "    events: [approval.created]\n";
    let both = hook("slow", &slow, events) + &hook("quick", &quick, events);
    let world = with(&both).start().await;
    let began = std::time::Instant::now();
    for amount in 0..12 {
        world.parked(None, 25_000 + amount).await;
    }
    quick.has(12).await;
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "{:?}",
        began.elapsed()
    );
    assert!(slow.got().len() <= 4, "a few at a time");
    assert_eq!(quick.got().len(), 12);
}

#[tokio::test]
async fn what_follows_on_one_approval_waits_for_what_was_before() {
    let receiver = Receiver::start().await;
    receiver.script(&[Behaviour::Answer("500 Oops"), Behaviour::Answer("500 Oops")]);
    let more = "    retry_seconds: [1, 1]\n";
    let world = with(&hook("people", &receiver, more)).start().await;
    let (_, approval) = world.parked(None, 25_000).await;
    world.decide("ada", &approval, "deny").await.expect(200);
    let got = receiver.has(4).await;
    let kinds: Vec<String> = got.iter().map(|one| one.kind()).collect();
    assert_eq!(
        kinds,
        [
            "approval.created",
            "approval.created",
            "approval.created",
            "approval.denied"
        ]
    );
}

#[tokio::test]
async fn the_queue_of_a_destination_is_bounded_in_number_and_age() {
    let receiver = Receiver::start().await;
    receiver.always(Some(Behaviour::Answer("500 Oops")));
    let more = "    retry_seconds: [60]\n    events: [approval.created]\n    max_pending: 2\n    max_age_seconds: 4\n";
    let world = with(&hook("people", &receiver, more)).start().await;
    for amount in 0..4 {
        world.parked(None, 25_000 + amount).await;
    }
    let dead = until(&world, "state=dead", 2).await;
    for one in &dead {
        let why = one["last_error"].as_str().unwrap();
        assert!(why.contains("max_pending"), "{why}");
    }
    let all = until(&world, "state=dead", 4).await;
    let old = all.iter().filter(|one| {
        one["last_error"]
            .as_str()
            .unwrap()
            .contains("max_age_seconds")
    });
    assert_eq!(old.count(), 2);
    assert_eq!(entries(&world, "delivery_dead").await.len(), 4);
}

#[tokio::test]
async fn a_destination_gets_the_events_and_tiers_that_it_asks_for() {
    let (security, finance) = (Receiver::start().await, Receiver::start().await);
    let both = hook("security", &security, "    tiers: [security]\n")
        + &hook(
            "finance",
            &finance,
            "    tiers: [finance]\n    events: [approval.created]\n",
        );
    let world = with(&both).start().await;
    let (_, approval) = world.parked(None, 25_000).await;
    world.decide("ada", &approval, "deny").await.expect(200);
    let halt = world.halt(json!({"kind": "everything"})).await;
    world.resume(&halt).await;
    let got = security.has(2).await;
    assert_eq!(got[0].kind(), "halt.pulled", "a halt has no tier");
    finance.has(1).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(security.got().len(), 2);
    assert_eq!(finance.got().len(), 1);
    assert_eq!(finance.got()[0].kind(), "approval.created");
}

#[tokio::test]
async fn two_secrets_sign_while_one_takes_the_place_of_the_other() {
    let receiver = Receiver::start().await;
    let both = hook("people", &receiver, "").replace(
        "[\"${env:HOOK_SECRET}\"]",
        "[\"${env:HOOK_SECRET}\", \"${env:OLD_SECRET}\"]",
    );
    let world = with(&both).variable("OLD_SECRET", OLD_SECRET).start().await;
    world.parked(None, 25_000).await;
    let got = receiver.has(1).await;
    assert!(got[0].verifies(SECRET, now()));
    assert!(got[0].verifies(OLD_SECRET, now()));
}

#[tokio::test]
async fn a_name_that_leads_to_a_private_address_is_not_connected_to() {
    let receiver = Receiver::start().await;
    let url = format!("http://localhost:{}/hook", receiver.address.port());
    let destination = format!(
        "  people:\n    webhook:\n      url: {url}\n      secrets: [\"${{env:HOOK_SECRET}}\"]\n    retry_seconds: []\n    events: [approval.created]\n"
    );
    let world = with(&destination).start().await;
    world.parked(None, 25_000).await;
    let dead = until(&world, "state=dead", 1).await;
    let why = dead[0]["last_error"].as_str().unwrap();
    assert!(why.contains("no public address"), "{why}");
    assert!(receiver.got().is_empty());
}

#[tokio::test]
async fn what_was_not_delivered_before_a_stop_is_delivered_after_the_start() {
    let receiver = Receiver::start().await;
    receiver.always(Some(Behaviour::Answer("500 Oops")));
    let more = "    retry_seconds: [1, 1, 1, 1, 1, 1]\n    events: [approval.created]\n";
    let world = with(&hook("people", &receiver, more)).start().await;
    world.parked(None, 25_000).await;
    receiver.has(1).await;
    let world = world.restart(|setup| setup).await;
    receiver.always(None);
    until(&world, "state=delivered", 1).await;
}

#[tokio::test]
async fn no_message_holds_arguments_or_what_is_sensitive() {
    const PLANTED: &str = "anna.planted@example.com";
    let (hooked, slack) = (Receiver::start().await, Receiver::start().await);
    let both = hook("people", &hooked, "")
        + "  chat:\n    slack:\n      url: ${env:SLACK_URL}\n      allow_private_addresses: true\n";
    let world = with(&both).variable("SLACK_URL", slack.url()).start().await;
    let body = json!({"triggered_by": format!("mail from {PLANTED}"), "purpose": format!("write to {PLANTED}")});
    let run = send(world.agent(Method::POST, "/v1/runs").json(&body))
        .await
        .expect(201);
    let run = run.body["run"].as_str().unwrap();
    let request = world
        .agent(Method::POST, "/desk/refunds")
        .header("toolgate-run", run)
        .json(&json!({"customer": "c_1001", "amount_cents": 24_680, "currency": "EUR"}));
    let parked = send(request).await.problem(403, "approval_required");
    let approval = parked.body["approval"].as_str().unwrap();
    let digest = world.shown("ada", approval).await["digest"].clone();
    let denial = json!({"digest": digest, "reason": format!("ask {PLANTED}")});
    let path = format!("/v1/approvals/{approval}/deny");
    send(world.operator("ada", Method::POST, &path).json(&denial))
        .await
        .expect(200);
    hooked.of("approval.denied").await;
    slack.has(2).await;
    for got in hooked.got().iter().chain(&slack.got()) {
        for planted in [PLANTED, "c_1001", "24680", "246.80"] {
            assert!(!got.body.contains(planted), "{planted}: {}", got.body);
        }
    }
    let mut owner = world.connect("superuser").await;
    let outbox: String =
        sqlx::query_scalar("SELECT string_agg(o::text, ' ') FROM toolgate.outbox AS o")
            .fetch_one(&mut owner)
            .await
            .unwrap();
    for planted in ["c_1001", "24680"] {
        assert!(!outbox.contains(planted), "{planted}: {outbox}");
    }
}

/// Slack reads `<…>` as links and mentions; everything of the agent's must come as text.
#[tokio::test]
async fn a_message_for_slack_has_a_link_and_no_link_of_the_agents() {
    let slack = Receiver::start().await;
    let chat = "  chat:\n    slack:\n      url: ${env:SLACK_URL}\n      allow_private_addresses: true\n    events: [approval.created, halt.pulled]\n";
    let world = with(chat).variable("SLACK_URL", slack.url()).start().await;
    let body = json!({
        "triggered_by": "ticket:<@U123> & co",
        "purpose": "<!channel> approve <https://evil.example/|here>\n*APPROVED*\u{202E}\u{200B}",
    });
    let run = send(world.agent(Method::POST, "/v1/runs").json(&body))
        .await
        .expect(201);
    let run = run.body["run"].as_str().unwrap().to_owned();
    let (_, approval) = world.parked(Some(&run), 25_000).await;
    let got = slack.has(1).await;
    let message = got[0].json();
    let mut links = 0;
    let mut words = String::new();
    for text in texts(&message) {
        for part in text.split('<').skip(1) {
            let inside = part.split('>').next().unwrap();
            assert_eq!(
                inside,
                format!("https://gate.example.com/v1/approvals/{approval}|Open it in Toolgate")
            );
            links += 1;
        }
        if text.contains("purpose") {
            words.clone_from(&text);
        }
    }
    assert_eq!(links, 1);
    assert!(words.starts_with("The agent's own words"), "{words}");
    assert!(words.contains("&lt;!channel&gt; approve &lt;https://evil.example/|here&gt;\\u{A}*APPROVED*\\u{202E}\\u{200B}"), "{words}");
    assert!(words.contains("ticket:&lt;@U123&gt; &amp; co"), "{words}");
    assert!(
        words.lines().skip(1).all(|line| line.starts_with('>')),
        "{words}"
    );
    let fallback = message["text"].as_str().unwrap();
    assert!(
        fallback.contains("support-bot asks for desk.refunds.create"),
        "{fallback}"
    );
    assert!(!fallback.contains("channel"), "{fallback}");
    assert_eq!(message["parse"], "none");
    for block in message["blocks"].as_array().unwrap() {
        for text in block["fields"]
            .as_array()
            .into_iter()
            .flatten()
            .chain([&block["text"]])
        {
            assert!(text.is_null() || text["verbatim"] == true, "{text}");
        }
    }
    let all = message.to_string();
    for told in ["money_movement", "finance", "Expires", "UTC"] {
        assert!(all.contains(told), "{told}: {all}");
    }
    let halt = json!({"scope": {"kind": "everything"}, "reason": "<!here> stop"});
    send(
        world
            .operator("ada", Method::POST, "/v1/kill-switches")
            .json(&halt),
    )
    .await
    .expect(201);
    let got = slack.has(2).await;
    assert!(
        got[1].body.contains("&lt;!here&gt; stop"),
        "{}",
        got[1].body
    );
}

/// Every text in a Slack message that Slack formats.
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, value)| match value {
                Value::String(text) if name == "text" => vec![text.clone()],
                other => texts(other),
            })
            .collect(),
        Value::Array(items) => items.iter().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// What is wrong with a config that has these destinations: messages with the text at their place.
fn wrong(text: &str) -> Vec<(String, String)> {
    let setup = with(text);
    let file = toolgate::diagnostics::SourceFile::new("config/toolgate.yaml", &*setup.config);
    let variables = toolgate::config::Variables::default()
        .with("TOOLGATE_MASTER_SECRET", crate::support::MASTER)
        .with("DESK_URL", "http://127.0.0.1:1")
        .with("DESK_TOKEN", "x")
        .with("HOOK_SECRET", SECRET)
        .with("SHORT", "whsec_c2hvcnQ=")
        .with(
            "SLACK_URL",
            "https://hooks.slack.example/services/planted-path",
        )
        .with("MAIL_PASSWORD", "planted-password");
    let (config, findings) = toolgate::config::load(&file, &variables);
    let shown = format!("{config:?} {findings:?}");
    for secret in [SECRET, "planted-path", "planted-password"] {
        assert!(!shown.contains(secret), "{secret} is shown");
    }
    findings
        .iter()
        .map(|finding| {
            let (_, line, _) = finding.place();
            let line = setup.config.lines().nth(line - 1).unwrap();
            (finding.message.clone(), line.trim().to_owned())
        })
        .collect()
}

#[test]
fn what_is_wrong_with_a_destination_is_told_at_its_place_and_without_its_secrets() {
    let good = "  a:\n    webhook:\n      url: https://hook.example.com/x\n      secrets: [\"${env:HOOK_SECRET}\"]\n    events: [halt.pulled]\n    tiers: [finance]\n  b:\n    slack:\n      url: ${env:SLACK_URL}\n  c:\n    email:\n      host: mail.example.com\n      username: gate\n      password: ${env:MAIL_PASSWORD}\n      from: gate@example.com\n      to: [Ada <ada@example.com>]\n";
    assert_eq!(wrong(good), []);
    for (from, to, message, place) in [
        ("halt.pulled", "halt.pushed", "no event", "events:"),
        ("[finance]", "[finances]", "no tier", "tiers:"),
        (
            "https://hook",
            "http://hook",
            "read on the way",
            "url: http://hook",
        ),
        (
            "hook.example.com",
            "169.254.169.254",
            "no public address",
            "url:",
        ),
        (
            "hook.example.com",
            "[::ffff:10.0.0.1]",
            "no public address",
            "url:",
        ),
        (
            "hook.example.com",
            "ada:pw@hook.example.com",
            "user name",
            "url:",
        ),
        (
            "hook.example.com/x",
            "hook.example.com/x#y",
            "fragment",
            "url:",
        ),
        (
            "\"${env:HOOK_SECRET}\"",
            "whsec_b3Blbg==",
            "config file itself",
            "secrets:",
        ),
        (
            "${env:HOOK_SECRET}",
            "${env:SHORT}",
            "24 to 64 random bytes",
            "secrets:",
        ),
        ("[\"${env:HOOK_SECRET}\"]", "[]", "not be signed", "url:"),
        (
            "${env:SLACK_URL}",
            "https://hooks.slack.example/services/T",
            "config file itself",
            "url:",
        ),
        (
            "      host: mail",
            "      encryption: none\n      host: mail",
            "read on the way",
            "host:",
        ),
        ("      username: gate\n", "", "without a password", "host:"),
        (
            "${env:MAIL_PASSWORD}",
            "open",
            "config file itself",
            "password:",
        ),
        (
            "from: gate@example.com",
            "from: \"gate@example.com\\r\\nBcc: x@example.com\"",
            "no mail address",
            "from:",
        ),
        ("[Ada <ada@example.com>]", "[]", "nobody would get", "from:"),
        ("[Ada <ada@example.com>]", "[ada]", "no mail address", "to:"),
        (
            "    tiers: [finance]\n",
            "    max_age_seconds: 604801\n",
            "seven days",
            "webhook:",
        ),
        (
            "    tiers: [finance]\n",
            "    retry_seconds: [0]\n",
            "1 second or more",
            "webhook:",
        ),
        (
            "  b:\n    slack:",
            "  b:\n    email: {host: x, from: a@b.example, to: [a@b.example]}\n    slack:",
            "one of webhook, slack and email",
            "email:",
        ),
        ("  b:\n", "  B!:\n", "destination's name", "slack:"),
    ] {
        assert!(good.contains(from), "{from}");
        let found = wrong(&good.replacen(from, to, 1));
        assert!(
            found
                .iter()
                .any(|(said, line)| said.contains(message) && line.starts_with(place)),
            "{to}: {found:#?}"
        );
    }
    let mut without = with(good);
    without.config = without
        .config
        .replace("public_url: https://gate.example.com/\n", "");
    let file = toolgate::diagnostics::SourceFile::new("c", &*without.config);
    let (_, findings) = toolgate::config::load(&file, &toolgate::config::Variables::default());
    let links = findings
        .iter()
        .filter(|finding| finding.message.contains("no link"));
    assert_eq!(links.count(), 2, "Slack and mail lead people somewhere");
}

#[tokio::test]
async fn a_link_leads_to_what_it_is_about() {
    let receiver = Receiver::start().await;
    let world = with(&hook("people", &receiver, "")).start().await;
    world.parked(None, 25_000).await;
    let halt = world.halt(json!({"kind": "api", "id": "desk"})).await;
    for (kind, member) in [
        ("approval.created", "approval"),
        ("halt.pulled", "kill_switch"),
    ] {
        let told = receiver.of(kind).await.json()["data"].clone();
        let link = told["link"].as_str().unwrap();
        let path = link.strip_prefix("https://gate.example.com").unwrap();
        let answer = send(world.operator("ada", Method::GET, path))
            .await
            .expect(200);
        assert!(
            answer
                .body
                .to_string()
                .contains(told[member].as_str().unwrap()),
            "{link}"
        );
        // Whoever follows it without a key is told what it takes.
        let url = format!("http://{}{path}", world.gateway.operators);
        let answer = send(world.anybody(Method::GET, &url)).await;
        answer.problem(401, "unauthenticated");
    }
    world.resume(&halt).await;

    // People with a page of their own are led there.
    let world = world
        .restart(|mut setup| {
            setup.config.push_str(
                "links:\n  approval: https://people.example.com/calls/{call}?a={approval}&r={run}\n  halt: https://people.example.com/halts/{kill_switch}\n",
            );
            setup
        })
        .await;
    let before = receiver.got().len();
    let run = world.run().await;
    let (call, approval) = world.parked(Some(&run), 25_001).await;
    let halt = world.halt(json!({"kind": "api", "id": "desk"})).await;
    let got = receiver.has(before + 2).await;
    let links: Vec<Value> = got[before..]
        .iter()
        .map(|one| one.json()["data"]["link"].clone())
        .collect();
    assert!(
        links.contains(&json!(format!(
            "https://people.example.com/calls/{call}?a={approval}&r={run}"
        ))),
        "{links:?}"
    );
    assert!(
        links.contains(&json!(format!("https://people.example.com/halts/{halt}"))),
        "{links:?}"
    );
}
