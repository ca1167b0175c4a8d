//! Following the approvals: each event once, from a place that cannot be made up, for as long as the key is in force and the
//! reader reads.

use std::time::Duration;

use reqwest::{Method, Response};
use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::io::AsyncWriteExt as _;

use crate::support::{Setup, World, send};

/// One event of a stream.
#[derive(Debug, Clone)]
struct Event {
    id: String,
    kind: String,
    data: Value,
}

/// A reader of server-sent events.
struct Reader {
    response: Response,
    text: String,
}

impl Reader {
    async fn open(world: &World, operator: &str, query: &str, last: Option<&str>) -> Self {
        let path = format!("/v1/approvals/stream{query}");
        let mut request = world.operator(operator, Method::GET, &path);
        if let Some(last) = last {
            request = request.header("last-event-id", last);
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            response,
            text: String::new(),
        }
    }

    /// The next event; none at the end of the stream.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some((block, rest)) = self.text.split_once("\n\n") {
                let block = block.to_owned();
                self.text = rest.to_owned();
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(name));
                    line.map(str::to_owned)
                };
                let Some(kind) = field("event: ") else {
                    continue;
                };
                return Some(Event {
                    id: field("id: ").unwrap(),
                    kind,
                    data: serde_json::from_str(&field("data: ").unwrap()).unwrap(),
                });
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.response.chunk());
            match chunk.await.expect("nothing comes") {
                Ok(Some(bytes)) => self.text.push_str(std::str::from_utf8(&bytes).unwrap()),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    async fn of(&mut self, kind: &str) -> Event {
        let event = self.next().await.unwrap();
        assert_eq!(event.kind, kind, "{event:?}");
        event
    }
}

#[tokio::test]
async fn approvals_are_followed_and_a_lost_connection_goes_on_where_it_was() {
    let world = World::shipped().await;
    world.parked(None, 24_999).await;
    let mut reader = Reader::open(&world, "ada", "", None).await;
    let open = reader.of("open").await;
    let (call, approval) = world.parked(None, 25_000).await;
    let created = reader.of("approval.created").await;
    assert_eq!(created.data["data"]["approval"], json!(approval));
    assert_eq!(created.data["data"]["call"], json!(call));
    assert_eq!(created.data["data"]["agent"], "support-bot");
    assert_eq!(created.data["data"]["tool"], "desk.refunds.create");
    assert_eq!(created.data["data"]["consequence"], "money_movement");
    assert_eq!(created.data["data"]["tiers"], json!(["finance"]));
    let shown = world.shown("ada", &approval).await;
    assert_eq!(created.data["data"]["digest"], shown["digest"]);
    let text = created.data.to_string();
    for hidden in ["25000", "c_1001", "a test", "arguments"] {
        assert!(!text.contains(hidden), "{hidden}: {text}");
    }
    drop(reader);
    world.decide("bob", &approval, "approve").await.expect(200);
    world.ended(&call).await;
    let mut reader = Reader::open(&world, "ada", "", Some(&created.id)).await;
    reader.of("open").await;
    let approved = reader.of("approval.approved").await;
    assert_eq!(approved.data["data"]["decided_by"], json!(["bob"]));
    reader.of("call.completed").await;
    // From the beginning of the first stream, everything again, and then what is new; after a restart as well.
    let world = world.restart(|setup| setup).await;
    let mut reader = Reader::open(&world, "ada", "", Some(&open.id)).await;
    reader.of("open").await;
    let again = reader.of("approval.created").await;
    assert_eq!(again.data, created.data);
    reader.of("approval.approved").await;
    reader.of("call.completed").await;
    world.parked(None, 25_001).await;
    reader.of("approval.created").await;
    let opened = world
        .audit("SELECT operator, detail FROM audit.entries WHERE kind = 'stream_opened' ORDER BY recorded_at, seq")
        .await;
    assert_eq!(opened.len(), 3);
    assert_eq!(opened[0].get::<String, _>("operator"), "ada");
    assert_eq!(opened[2].get::<Value, _>("detail")["resumed"], true);
}

#[tokio::test]
async fn a_place_that_was_not_given_to_this_operator_is_refused() {
    let mut world = World::shipped().await;
    let mut reader = Reader::open(&world, "ada", "", None).await;
    let id = reader.of("open").await.id;
    let (seq, tag) = id.split_once('-').unwrap();
    let elsewhere = format!("{}-{tag}", seq.parse::<i64>().unwrap() + 1);
    let flipped = format!("{seq}-{}", tag.chars().rev().collect::<String>());
    for forged in [
        "0",
        "1-",
        "-1-x",
        "9223372036854775807-0",
        &elsewhere,
        &flipped,
    ] {
        let request = world
            .operator("ada", Method::GET, "/v1/approvals/stream")
            .header("last-event-id", forged);
        send(request).await.problem(400, "malformed_body");
    }
    let request = world
        .operator("bob", Method::GET, "/v1/approvals/stream")
        .header("last-event-id", &id);
    send(request).await.problem(400, "malformed_body");
    world.key(toolgate::keys::KeyKind::Operator, "grace").await;
    Reader::open(&world, "grace", "", None).await;
    let unknown = world.operator("ada", Method::GET, "/v1/approvals/stream?run=x");
    send(unknown).await.problem(400, "malformed_body");
}

#[tokio::test]
async fn who_may_not_see_approvals_may_not_follow_them() {
    let world = Setup::shipped()
        .policy("operators.cedar", "    Action::\"read_approvals\",\n", "")
        .start()
        .await;
    send(world.operator("ada", Method::GET, "/v1/approvals/stream"))
        .await
        .problem(403, "denied_by_policy");
    let opened = world
        .audit("SELECT 1 FROM audit.entries WHERE kind = 'stream_opened'")
        .await;
    assert!(opened.is_empty());
}

#[tokio::test]
async fn filters_let_through_what_they_name() {
    let world = World::shipped().await;
    let mut all = Reader::open(&world, "ada", "", None).await;
    let mut finance = Reader::open(&world, "ada", "?tier=finance&agent=support-bot", None).await;
    let mut mail = Reader::open(&world, "ada", "?tool=desk.mail.send", None).await;
    for reader in [&mut all, &mut finance, &mut mail] {
        reader.of("open").await;
    }
    world.parked(None, 25_000).await;
    let request = world
        .agent(Method::POST, "/v1/tools/desk.mail.send/calls")
        .json(&json!({"arguments": {"to": "anna@example.com", "subject": "x", "body": "y"}}));
    send(request).await.problem(403, "approval_required");
    assert_eq!(
        all.of("approval.created").await.data["data"]["tool"],
        "desk.refunds.create"
    );
    assert_eq!(
        all.of("approval.created").await.data["data"]["tool"],
        "desk.mail.send"
    );
    assert_eq!(
        mail.of("approval.created").await.data["data"]["tool"],
        "desk.mail.send"
    );
    world.parked(None, 25_001).await;
    for _ in 0..2 {
        let event = finance.of("approval.created").await;
        assert_eq!(event.data["data"]["tool"], "desk.refunds.create");
    }
}

#[tokio::test]
async fn whoever_was_away_for_too_long_is_told_to_list_again() {
    let world = World::shipped().await;
    let mut reader = Reader::open(&world, "ada", "", None).await;
    let old = reader.of("open").await.id;
    many(&world, 1_100, 10).await;
    let mut reader = Reader::open(&world, "ada", "", Some(&old)).await;
    let missed = reader.of("missed").await;
    let detail = missed.data["detail"].as_str().unwrap().to_owned();
    assert!(detail.contains("GET /v1/approvals"), "{detail}");
    world.parked(None, 25_000).await;
    reader.of("approval.created").await;
    // What has been cleared away is missed too, however little it was.
    let mut reader = Reader::open(&world, "ada", "", None).await;
    let place = reader.of("open").await.id;
    world.parked(None, 25_001).await;
    world.parked(None, 25_002).await;
    let mut owner = world.connect("superuser").await;
    sqlx::query("DELETE FROM toolgate.outbox WHERE seq < (SELECT max(seq) FROM toolgate.outbox)")
        .execute(&mut owner)
        .await
        .unwrap();
    let mut reader = Reader::open(&world, "ada", "", Some(&place)).await;
    reader.of("missed").await;
}

/// Events that nobody caused, each with so many characters.
async fn many(world: &World, count: i32, length: i32) {
    let mut owner = world.connect("superuser").await;
    sqlx::query(
        "INSERT INTO toolgate.outbox (type, subject, tiers, data)
         SELECT 'approval.created', 'appr_' || n, '{finance}', jsonb_build_object('tool', repeat('x', $2))
         FROM generate_series(1, $1) AS n",
    )
    .bind(count)
    .bind(length)
    .execute(&mut owner)
    .await
    .unwrap();
}

#[tokio::test]
async fn streams_are_counted() {
    let world = World::shipped().await;
    let mut readers = Vec::new();
    for _ in 0..8 {
        readers.push(Reader::open(&world, "ada", "", None).await);
    }
    let one_more = || world.operator("ada", Method::GET, "/v1/approvals/stream");
    let refused = send(one_more()).await.problem(429, "rate_limited");
    assert_eq!(refused.header("retry-after"), "10");
    Reader::open(&world, "bob", "", None).await.of("open").await;
    readers.pop();
    for _ in 0..250 {
        let response = one_more().send().await.unwrap();
        if response.status() == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("a closed stream keeps its place");
}

#[tokio::test]
async fn a_stream_ends_with_its_key_and_with_the_gateway() {
    let world = World::shipped().await;
    let mut revoked = Reader::open(&world, "ada", "", None).await;
    let mut other = Reader::open(&world, "bob", "", None).await;
    revoked.of("open").await;
    other.of("open").await;
    let mut owner = world.connect("toolgate_owner").await;
    sqlx::query("UPDATE toolgate.keys SET revoked_at = now() WHERE owner = 'ada'")
        .execute(&mut owner)
        .await
        .unwrap();
    let end = revoked.of("end").await;
    assert!(end.data["detail"].as_str().unwrap().contains("key"));
    assert!(revoked.next().await.is_none());
    let began = std::time::Instant::now();
    let stopping = tokio::spawn(world.gateway.stop());
    let end = other.of("end").await;
    assert!(end.data["detail"].as_str().unwrap().contains("stops"));
    assert!(other.next().await.is_none());
    stopping.await.unwrap();
    assert!(
        began.elapsed() < Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test]
async fn a_stream_ends_when_its_key_expires() {
    let mut world = World::shipped().await;
    let mut owner = world.connect("toolgate_owner").await;
    world.key(toolgate::keys::KeyKind::Operator, "bob").await;
    let mut reader = Reader::open(&world, "bob", "", None).await;
    reader.of("open").await;
    sqlx::query(
        "UPDATE toolgate.keys SET expires_at = now() + interval '2 seconds' WHERE owner = 'bob'",
    )
    .execute(&mut owner)
    .await
    .unwrap();
    reader.of("end").await;
    assert!(reader.next().await.is_none());
}

/// Opens a stream and reads nothing of it, so that what is sent piles up.
#[tokio::test]
async fn whoever_does_not_read_is_dropped() {
    // Long before the connection itself would be given up.
    let world = Setup::shipped()
        .config(
            "\nagents:",
            "\nlimits:\n  client_write_timeout_ms: 600000\nagents:",
        )
        .start()
        .await;
    let mut lazy = tokio::net::TcpStream::connect(world.gateway.operators)
        .await
        .unwrap();
    let request = format!(
        "GET /v1/approvals/stream HTTP/1.1\r\nHost: gate\r\nAuthorization: Bearer {}\r\n\r\n",
        world.keys["ada"].expose()
    );
    lazy.write_all(request.as_bytes()).await.unwrap();
    let mut quick = Reader::open(&world, "bob", "", None).await;
    quick.of("open").await;
    many(&world, 900, 40_000).await;
    for _ in 0..900 {
        quick.of("approval.created").await;
    }
    // Its place is given back, and whoever reads keeps theirs.
    let mut readers = Vec::new();
    for _ in 0..7 {
        readers.push(Reader::open(&world, "ada", "", None).await);
    }
    let one_more = || world.operator("ada", Method::GET, "/v1/approvals/stream");
    for _ in 0..600 {
        let response = one_more().send().await.unwrap();
        if response.status() == 200 {
            many(&world, 1, 1).await;
            quick.of("approval.created").await;
            drop(lazy);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("whoever does not read keeps a stream");
}
