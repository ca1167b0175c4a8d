//! The records over HTTP: each filter against the same question in SQL, walks by cursor while calls go on, exports, and that
//! whoever reads is read of.

use std::{collections::BTreeSet, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Executor as _, Row as _};
use toolgate::keys::KeyKind;

use crate::support::{Answer, Setup, World, send};

/// A world in which a little of everything has happened.
struct Recorded {
    world: World,
    run: String,
    call: String,
    approval: String,
    digest: String,
    halt: String,
}

async fn recorded() -> Recorded {
    let world = World::shipped().await;
    let run = world.run().await;
    send(world.refund(Some(&run), 1_200)).await.expect(201);
    send(world.refund(None, 900)).await.expect(201);
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
    send(world.refund(Some(&run), 1_300))
        .await
        .problem(503, "halted");
    world.resume(&halt).await;
    let mail = json!({"to": "planted-reader@example.org", "subject": "s", "body": "b"});
    send(
        world
            .agent(Method::POST, "/desk/mail")
            .json(&mail)
            .header("toolgate-run", &run),
    )
    .await;
    Recorded {
        world,
        run,
        call,
        approval,
        digest,
        halt,
    }
}

impl World {
    async fn entries_of(&self, operator: &str, query: &str) -> Answer {
        let path = format!("/v1/audit/entries{query}");
        send(self.operator(operator, Method::GET, &path)).await
    }

    async fn tokens(&self, value: &str) -> String {
        let answer = send(
            self.operator("ada", Method::POST, "/v1/audit/hash")
                .json(&json!({"value": value})),
        )
        .await
        .expect(200);
        answer.body["value"].as_str().unwrap().to_owned()
    }

    async fn numbers(&self, condition: &str) -> Vec<(String, i64)> {
        let query = format!(
            "SELECT instance_id, seq FROM audit.entries WHERE {condition} ORDER BY recorded_at DESC, instance_id DESC, seq DESC"
        );
        let rows = self.audit(&query).await;
        rows.iter().map(|row| (row.get(0), row.get(1))).collect()
    }

    async fn last_read(&self) -> Value {
        let rows = self
            .audit(
                "SELECT to_jsonb(e) FROM audit.entries AS e WHERE kind = 'audit_read' ORDER BY recorded_at DESC, seq DESC LIMIT 1",
            )
            .await;
        rows[0].get(0)
    }
}

fn numbers(answer: &Answer) -> Vec<(String, i64)> {
    let data = answer.body["data"].as_array().unwrap();
    data.iter().map(number).collect()
}

fn number(entry: &Value) -> (String, i64) {
    (
        entry["instance_id"].as_str().unwrap().to_owned(),
        entry["seq"].as_i64().unwrap(),
    )
}

#[tokio::test]
async fn each_filter_gives_what_the_same_question_in_sql_gives() {
    let recorded = recorded().await;
    let Recorded {
        world,
        run,
        call,
        approval,
        digest,
        halt,
    } = &recorded;
    let token = world.tokens("planted-reader@example.org").await;
    let first = token.split(',').next_back().unwrap();
    let middle: String = world
        .audit("SELECT to_jsonb(recorded_at) #>> '{}' FROM audit.entries WHERE kind = 'halt'")
        .await[0]
        .get(0);
    let encoded = middle.replace('+', "%2B");
    let cases = [
        (
            "agent=support-bot".to_owned(),
            "agent = 'support-bot'".to_owned(),
        ),
        (format!("run={run}"), format!("run_id = '{run}'")),
        (format!("call={call}"), format!("call_id = '{call}'")),
        (
            format!("approval={approval}"),
            format!("approval_id = '{approval}'"),
        ),
        (
            format!("kill_switch={halt}"),
            format!("kill_switch_id = '{halt}'"),
        ),
        (
            "tool=desk.refunds.create".to_owned(),
            "tool = 'desk.refunds.create'".to_owned(),
        ),
        ("api=desk".to_owned(), "api = 'desk'".to_owned()),
        (
            "consequence=money_movement".to_owned(),
            "consequence = 'money_movement'".to_owned(),
        ),
        ("kind=refusal".to_owned(), "kind = 'refusal'".to_owned()),
        ("kind=parked".to_owned(), "kind = 'parked'".to_owned()),
        ("kind=intent".to_owned(), "kind = 'intent'".to_owned()),
        (
            "kind=approval_vote".to_owned(),
            "kind = 'approval_vote'".to_owned(),
        ),
        ("kind=halt".to_owned(), "kind = 'halt'".to_owned()),
        ("decision=deny".to_owned(), "decision = 'deny'".to_owned()),
        (
            "decision=permit".to_owned(),
            "decision = 'permit'".to_owned(),
        ),
        ("decision=park".to_owned(), "decision = 'park'".to_owned()),
        (
            "reason=halted".to_owned(),
            "'halted' = ANY (reasons)".to_owned(),
        ),
        ("operator=bob".to_owned(), "operator = 'bob'".to_owned()),
        (
            format!("digest={digest}"),
            format!("arguments_digest = '{digest}'"),
        ),
        (
            format!("value={token}"),
            format!("value_tokens && ARRAY['{first}']"),
        ),
        (
            format!("from={encoded}"),
            format!("recorded_at >= '{middle}' AND kind <> 'audit_read'"),
        ),
        (format!("to={encoded}"), format!("recorded_at < '{middle}'")),
        (
            format!(
                "run={run}&tool=desk.refunds.create&decision=deny&reason=halted&from={encoded}&agent=support-bot"
            ),
            format!(
                "run_id = '{run}' AND decision = 'deny' AND 'halted' = ANY (reasons) AND recorded_at >= '{middle}'"
            ),
        ),
        (
            format!("consequence=money_movement&kind=intent&api=desk&to={encoded}&call={call}"),
            format!("call_id = '{call}' AND kind = 'intent'"),
        ),
        (format!("run={run}&operator=grace"), "false".to_owned()),
    ];
    for (query, condition) in cases {
        let answer = world
            .entries_of("ada", &format!("?{query}&limit=500"))
            .await
            .expect(200);
        let mut found = numbers(&answer);
        if query.starts_with("from=") {
            let reads: BTreeSet<_> = world
                .numbers("kind = 'audit_read'")
                .await
                .into_iter()
                .collect();
            found.retain(|one| !reads.contains(one));
        }
        let wanted = world.numbers(&condition).await;
        assert_eq!(found, wanted, "{query}");
        assert!(
            !found.is_empty() || condition == "false",
            "{query} tests nothing"
        );
        let newest_last = world
            .entries_of("ada", &format!("?{query}&limit=500&order=oldest"))
            .await
            .expect(200);
        let mut found = numbers(&newest_last);
        found.reverse();
        if !query.starts_with("from=") {
            assert_eq!(found, wanted, "{query}, oldest first");
        }
    }
    // An entry is told whole, as it stands in the table.
    let answer = world
        .entries_of("ada", &format!("?call={call}&kind=parked"))
        .await;
    let row: Value = world
        .audit(&format!(
            "SELECT to_jsonb(e) || jsonb_build_object('hash', encode(hash, 'hex')) FROM audit.entries AS e
             WHERE call_id = '{call}' AND kind = 'parked'"
        ))
        .await[0]
        .get(0);
    let mut row = row.as_object().unwrap().clone();
    row.retain(|_, value| !value.is_null());
    assert_eq!(answer.body["data"][0], Value::Object(row));
}

#[tokio::test]
async fn a_question_that_is_none_is_refused_and_quotes_nothing() {
    let world = World::shipped().await;
    for query in [
        "value=planted-plain@example.org",
        "value=4111111111111111",
        "value=",
        "run=call_01M836DMDRE8JA51EV49058M8N",
        "call=planted-plain",
        "kind=everything",
        "decision=maybe",
        "reason=planted-plain",
        "consequence=bad",
        "agent=planted-plain%20x",
        "agent=a%00b",
        "digest=sha256:00",
        "from=yesterday",
        "from=2026-01-02T00:00:00Z&to=2026-01-01T00:00:00Z",
        "order=planted-plain",
        "limit=0",
        "limit=-1",
        "limit=501",
        "limit=planted-plain",
        "unknown=planted-plain",
        "agent=a&agent=b",
    ] {
        let answer = world
            .entries_of("ada", &format!("?{query}"))
            .await
            .problem(400, "malformed_body");
        let told = answer.body.to_string();
        assert!(!told.contains("planted-plain"), "{query}: {told}");
        assert!(!told.contains("4111"), "{query}: {told}");
    }
    let big = "x".repeat(5_000);
    for body in [
        json!({}),
        json!({"value": ""}),
        json!({"value": big}),
        json!({"value": 1}),
    ] {
        send(
            world
                .operator("ada", Method::POST, "/v1/audit/hash")
                .json(&body),
        )
        .await
        .problem(400, "malformed_body");
    }
    let audit = world.whole_audit().await;
    assert!(!audit.contains("planted-plain"), "{audit}");
}

#[tokio::test]
async fn a_value_is_found_by_its_digest_and_never_recorded_in_clear() {
    let recorded = recorded().await;
    let world = &recorded.world;
    let tokens = world.tokens("planted-reader@example.org").await;
    let read = world.last_read().await;
    assert_eq!(read["operator"], "ada");
    let told: Vec<&str> = tokens.split(',').collect();
    assert_eq!(read["detail"]["filter"]["value"], json!(told));
    let answer = world
        .entries_of("ada", &format!("?value={tokens}"))
        .await
        .expect(200);
    assert!(!answer.body["data"].as_array().unwrap().is_empty());
    let read = world.last_read().await;
    assert_eq!(
        read["detail"],
        json!({
            "request": "GET /v1/audit/entries",
            "filter": {"value": told},
            "rows": answer.body["data"].as_array().unwrap().len(),
        })
    );
    let audit = world.whole_audit().await;
    assert!(!audit.contains("planted-reader"));
}

async fn walked(world: &World, filter: &str, limit: u32) -> Vec<(String, i64)> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    for _ in 0..200 {
        let query = format!("?{filter}&limit={limit}{cursor}");
        let answer = world.entries_of("ada", &query).await.expect(200);
        all.extend(numbers(&answer));
        let Some(next) = answer.body["cursor"].as_str() else {
            assert_eq!(answer.body["has_more"], false);
            return all;
        };
        assert_eq!(answer.body["has_more"], true);
        cursor = format!("&cursor={next}");
    }
    panic!("a walk does not end");
}

#[tokio::test]
async fn a_walk_by_cursor_sees_each_entry_once_while_calls_go_on() {
    let world = World::shipped().await;
    for amount in 0..30 {
        send(world.refund(None, 100 + amount)).await.expect(201);
    }
    let before: Vec<_> = world.numbers("true").await;
    let writing = async {
        for amount in 0..60 {
            send(world.refund(None, 100 + amount)).await.expect(201);
        }
    };
    // Each page is itself recorded, so a walk without an end of its own would never end at this limit.
    let reading = async {
        let newest = walked(&world, "order=newest", 7).await;
        let oldest = walked(&world, "order=oldest", 7).await;
        let ones = walked(&world, "order=oldest&kind=intent", 1).await;
        (newest, oldest, ones)
    };
    let ((), (newest, oldest, ones)) = tokio::join!(writing, reading);
    for walk in [&newest, &oldest, &ones] {
        let distinct: BTreeSet<_> = walk.iter().collect();
        assert_eq!(distinct.len(), walk.len(), "an entry came twice");
    }
    let newest: BTreeSet<_> = newest.into_iter().collect();
    assert!(before.iter().all(|one| newest.contains(one)));
    let oldest_set: BTreeSet<_> = oldest.iter().cloned().collect();
    assert!(before.iter().all(|one| oldest_set.contains(one)));
    // No gap within: what came last was preceded by all that stands before it.
    let (instance, last) = oldest.last().unwrap();
    let wanted = world
        .numbers(&format!("instance_id = '{instance}' AND seq <= {last}"))
        .await;
    assert!(wanted.iter().all(|one| oldest_set.contains(one)));
    assert!(ones.len() >= 30);
}

#[tokio::test]
async fn a_cursor_is_only_what_this_list_gave_for_this_filter() {
    let recorded = recorded().await;
    let world = &recorded.world;
    let first = world
        .entries_of("ada", "?limit=2&agent=support-bot")
        .await
        .expect(200);
    let cursor = first.body["cursor"].as_str().unwrap().to_owned();
    let mut changed: Vec<char> = cursor.chars().collect();
    let at = changed.len() / 2;
    changed[at] = if changed[at] == 'A' { 'B' } else { 'A' };
    let changed: String = changed.into_iter().collect();
    let longer = format!("{cursor}AAAA");
    let huge = "A".repeat(4_000);
    let good = format!("?limit=3&agent=support-bot&cursor={cursor}");
    world.entries_of("bob", &good).await.expect(200);
    for query in [
        format!("?limit=2&cursor={cursor}"),
        format!("?agent=support-bot&order=oldest&cursor={cursor}"),
        format!("?agent=platform-bot&cursor={cursor}"),
        format!("?agent=support-bot&cursor={changed}"),
        format!("?agent=support-bot&cursor={longer}"),
        format!("?agent=support-bot&cursor={huge}"),
        "?agent=support-bot&cursor=".to_owned(),
        "?agent=support-bot&cursor=eyJ1bnRpbCI6IjIwMjYtMDEtMDFUMDA6MDA6MDBaIn0".to_owned(),
        "?agent=support-bot&cursor=%27%20OR%201%3D1".to_owned(),
    ] {
        world
            .entries_of("ada", &query)
            .await
            .problem(400, "malformed_body");
    }
    send(world.operator("ada", Method::GET, &format!("/v1/runs?cursor={cursor}")))
        .await
        .problem(400, "malformed_body");
}

/// Puts many entries into the table, as a gateway that is gone would have left them.
async fn filled(world: &World, count: u32) {
    let mut superuser = world.connect("superuser").await;
    let statement = format!(
        "INSERT INTO audit.entries (instance_id, seq, recorded_at, kind, opens_call, call_id, run_id, agent, tool, api,
                                    consequence, contract_digest, policy_digest, arguments, arguments_digest, decision,
                                    answer, hash)
         SELECT 'inst_00000000000000000000000000', n, now() - interval '1 second' * (1 + ({count} - n) * 0.0001), 'intent', true,
                'call_' || n, 'run_filled', 'filler', 'desk.refunds.create', 'desk', 'money_movement', 'c', 'p',
                jsonb_build_object('n', n), 'hmac-sha256:' || n, 'permit',
                jsonb_build_object('text', repeat('x', 3000)), decode(repeat('00', 32), 'hex')
         FROM generate_series(1, {count}) AS n"
    );
    superuser
        .execute(sqlx::AssertSqlSafe(statement))
        .await
        .unwrap();
}

/// The most memory that this process has ever held, in KiB.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn export(world: &World, query: &str) -> reqwest::RequestBuilder {
    world
        .operator("ada", Method::GET, &format!("/v1/audit/entries?{query}"))
        .header("accept", "application/x-ndjson")
}

#[tokio::test]
async fn an_export_of_many_entries_is_whole_in_order_and_bounded_in_memory() {
    let world = World::shipped().await;
    filled(&world, 16_000).await;
    let before = peak_kib();
    let response = export(&world, "agent=filler&order=oldest")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/x-ndjson");
    let mut response = response;
    let mut line = Vec::new();
    let (mut rows, mut bytes) = (0_i64, 0_usize);
    while let Some(part) = response.chunk().await.unwrap() {
        bytes += part.len();
        line.extend_from_slice(&part);
        while let Some(end) = line.iter().position(|byte| *byte == b'\n') {
            let entry: Value = serde_json::from_slice(&line[..end]).unwrap();
            line.drain(..=end);
            rows += 1;
            assert_eq!(entry["seq"], rows, "in order and none left out");
        }
    }
    assert!(line.is_empty(), "the last line is whole");
    assert_eq!(rows, 16_000);
    assert!(bytes > 48_000_000, "only {bytes} bytes");
    let grown = peak_kib() - before;
    assert!(grown < 20 * 1024, "{grown} KiB for {bytes} bytes");
    let read = world.last_read().await;
    assert_eq!(read["detail"]["export"], "ended");
    assert_eq!(read["detail"]["rows"], 16_000);
    assert_eq!(read["detail"]["complete"], true);
    assert_eq!(read["detail"]["filter"], json!({"agent": "filler"}));
    let begun = world
        .entries("kind = 'audit_read' AND detail ->> 'export' = 'begun'")
        .await;
    assert_eq!(begun, 1);
}

#[tokio::test]
async fn exports_that_nobody_takes_are_few_end_and_stop_nothing_else() {
    let world = Setup::shipped()
        .config(
            "\nagents:",
            "\nlimits:\n  client_write_timeout_ms: 2000\nagents:",
        )
        .start()
        .await;
    filled(&world, 12_000).await;
    for query in ["limit=5", "cursor=x"] {
        send(export(&world, query))
            .await
            .problem(400, "malformed_body");
    }
    let first = export(&world, "").send().await.unwrap();
    let second = export(&world, "").send().await.unwrap();
    assert_eq!(
        (first.status(), second.status()),
        (200.try_into().unwrap(), 200.try_into().unwrap())
    );
    let third = send(export(&world, "")).await.problem(429, "rate_limited");
    assert_eq!(third.header("retry-after"), "10");
    // Both stand still, and nothing else does.
    send(world.refund(None, 100)).await.expect(201);
    world.entries_of("ada", "?limit=1").await.expect(200);
    // One goes away, one only takes nothing.
    drop(first);
    for _ in 0..300 {
        let broken = world
            .entries("kind = 'audit_read' AND detail ->> 'complete' = 'false'")
            .await;
        if broken == 2 {
            drop(second);
            let read = send(export(&world, "agent=support-bot")).await.expect(200);
            assert!(!read.bytes.is_empty());
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it is not recorded that both exports broke off");
}

const READS: [&str; 12] = [
    "/v1/deliveries",
    "/v1/destinations",
    "/v1/permissions",
    "/v1/approvals/statistics",
    "/v1/audit/entries",
    "/v1/runs",
    "/v1/runs/{run}",
    "/v1/calls/{call}",
    "/v1/approvals",
    "/v1/approvals/{approval}",
    "/v1/kill-switches",
    "/v1/approvals?state=voided",
];

/// What else is read by operators, with entries of other kinds.
const MORE_READS: [&str; 3] = ["/v1/delegations", "/v1/work", "/v1/approvals/stream"];

fn path(recorded: &Recorded, route: &str) -> String {
    route
        .replace("{run}", &recorded.run)
        .replace("{call}", &recorded.call)
        .replace("{approval}", &recorded.approval)
}

#[tokio::test]
async fn every_reading_is_an_entry_and_so_is_every_refused_one() {
    let mut recorded = recorded().await;
    recorded.world.key(KeyKind::Operator, "grace").await;
    let world = &recorded.world;
    for route in READS {
        let by_grace = "operator = 'grace' AND kind IN ('audit_read', 'approval_viewed')";
        let before = world.entries(by_grace).await;
        send(world.operator("grace", Method::GET, &path(&recorded, route)))
            .await
            .expect(200);
        assert_eq!(world.entries(by_grace).await, before + 1, "{route}");
    }
    // To whoever may not see all of them it shows one's own.
    let before = world.entries("kind = 'audit_read'").await;
    send(world.operator("grace", Method::GET, "/v1/delegations"))
        .await
        .expect(200);
    assert_eq!(world.entries("kind = 'audit_read'").await, before + 1);
    let of_call = format!("kind = 'audit_read' AND call_id = '{}'", recorded.call);
    assert_eq!(world.entries(&of_call).await, 1);
    // What is not there was asked for all the same.
    let unknown = "call_01M836DMDRE8JA51EV49058M8N";
    send(world.operator("grace", Method::GET, &format!("/v1/calls/{unknown}")))
        .await
        .problem(404, "not_found");
    let read = world.last_read().await;
    assert_eq!(
        (&read["call_id"], &read["detail"]["rows"]),
        (&json!(unknown), &json!(0))
    );

    let Recorded {
        world,
        run,
        call,
        approval,
        digest,
        halt,
    } = recorded;
    let world = world
        .restart(|setup| {
            setup
                .policy("operators.cedar", "Role::\"auditor\",", "")
                .config("roles: [auditor]", "roles: [nobody]")
        })
        .await;
    let mut recorded = Recorded {
        world,
        run,
        call,
        approval,
        digest,
        halt,
    };
    recorded.world.key(KeyKind::Operator, "grace").await;
    let world = &recorded.world;
    for (method, route) in READS
        .iter()
        .map(|route| (Method::GET, *route))
        .chain([(Method::POST, "/v1/audit/hash")])
    {
        let condition =
            "kind = 'operator_refused' AND operator = 'grace' AND reasons = '{denied_by_policy}'";
        let before = world.entries(condition).await;
        let request = world.operator("grace", method.clone(), &path(&recorded, route));
        let request = if method == Method::POST {
            request.json(&json!({"value": "planted-plain"}))
        } else {
            request
        };
        send(request).await.problem(403, "denied_by_policy");
        assert_eq!(world.entries(condition).await, before + 1, "{route}");
    }
    let export = world
        .operator("grace", Method::GET, "/v1/audit/entries")
        .header("accept", "application/x-ndjson");
    send(export).await.problem(403, "denied_by_policy");
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_read() {
    let recorded = recorded().await;
    let world = &recorded.world;
    let mut owner = world.connect("toolgate_owner").await;
    // The records can be read and nothing can be added to them.
    owner
        .execute("REVOKE INSERT ON audit.entries FROM toolgate_gateway")
        .await
        .unwrap();
    let reads = READS.iter().chain(&MORE_READS);
    for route in reads.filter(|route| **route != "/v1/kill-switches") {
        send(world.operator("ada", Method::GET, &path(&recorded, route)))
            .await
            .problem(503, "record_unavailable");
    }
    send(export(world, ""))
        .await
        .problem(503, "record_unavailable");
    send(
        world
            .operator("ada", Method::POST, "/v1/audit/hash")
            .json(&json!({"value": "x"})),
    )
    .await
    .problem(503, "record_unavailable");
    owner
        .execute("GRANT INSERT ON audit.entries TO toolgate_gateway")
        .await
        .unwrap();
    world.entries_of("ada", "").await.expect(200);

    // The database is away: what is halted is seen all the same, and told of when it is back.
    let read = "kind = 'audit_read' AND operator = 'bob' AND detail ->> 'request' = 'GET /v1/kill-switches'";
    let before = world.entries(read).await;
    let halt = world
        .halt(json!({"kind": "agent", "id": "support-bot"}))
        .await;
    let mut superuser = crate::records::connect("superuser", "postgres").await;
    let database = &world.database;
    let away = format!(
        "ALTER DATABASE {database} ALLOW_CONNECTIONS false;
         SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
    );
    superuser.execute(sqlx::AssertSqlSafe(away)).await.unwrap();
    let reads = READS.iter().chain(&MORE_READS);
    for route in reads.filter(|route| **route != "/v1/kill-switches") {
        send(world.operator("ada", Method::GET, &path(&recorded, route)))
            .await
            .problem(503, "record_unavailable");
    }
    let held = send(world.operator("bob", Method::GET, "/v1/kill-switches"))
        .await
        .expect(200);
    assert_eq!(held.body["data"][0]["kill_switch"], json!(halt));
    let back = format!("ALTER DATABASE {database} ALLOW_CONNECTIONS true");
    superuser.execute(sqlx::AssertSqlSafe(back)).await.unwrap();
    for _ in 0..500 {
        if world.entries(read).await == before + 1 {
            // What the gateway could not do is no refusal of an operator's, and does not queue up in front of what was refused.
            let away = "kind = 'operator_refused' AND reasons = '{record_unavailable}'";
            assert_eq!(world.entries(away).await, 0);
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the reading of what is halted is not told of");
}

#[tokio::test]
async fn a_run_and_a_call_tell_their_story_over_http() {
    let recorded = recorded().await;
    let world = &recorded.world;
    let run = send(world.operator("ada", Method::GET, &format!("/v1/runs/{}", recorded.run)))
        .await
        .expect(200)
        .body;
    assert_eq!(run["run"]["triggered_by"], "ticket:1");
    assert_eq!(run["has_more"], false);
    let events: Vec<&str> = run["timeline"]
        .as_array()
        .unwrap()
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .collect();
    assert_eq!(
        events,
        [
            "run_opened",
            "call",
            "call",
            "call",
            "approval_vote",
            "halt",
            "call",
            "resume",
            "call"
        ]
    );
    assert_eq!(run["timeline"][4]["digest"], json!(recorded.digest));
    assert_eq!(run["timeline"][5]["kill_switch_id"], json!(recorded.halt));
    let call = send(world.operator("ada", Method::GET, &format!("/v1/calls/{}", recorded.call)))
        .await
        .expect(200)
        .body;
    assert_eq!(call["call"]["outcome"], "completed");
    assert_eq!(call["approval"]["decided_by"], json!(["ada"]));
    let kinds: Vec<&str> = call["timeline"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["kind"].as_str().unwrap())
        .collect();
    assert_eq!(
        kinds,
        [
            "parked",
            "approval_viewed",
            "approval_viewed",
            "approval_vote",
            "intent",
            "outcome"
        ]
    );
    for path in [
        "/v1/runs/x",
        "/v1/calls/x",
        "/v1/runs/run_01M836DMDRE8JA51EV49058M8N",
    ] {
        send(world.operator("ada", Method::GET, path))
            .await
            .problem(404, "not_found");
    }
    let mut seen = Vec::new();
    let mut cursor = String::new();
    loop {
        let path = format!("/v1/runs?agent=support-bot&limit=1{cursor}");
        let page = send(world.operator("ada", Method::GET, &path))
            .await
            .expect(200)
            .body;
        seen.extend(
            page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|run| run["run_id"].clone()),
        );
        let Some(next) = page["cursor"].as_str() else {
            break;
        };
        cursor = format!("&cursor={next}");
    }
    let all = world
        .audit("SELECT run_id FROM audit.runs ORDER BY opened_at DESC")
        .await;
    let all: Vec<Value> = all
        .iter()
        .map(|row| json!(row.get::<String, _>(0)))
        .collect();
    assert_eq!(seen, all);
    assert!(all.len() >= 2);
}
