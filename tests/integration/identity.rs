//! Who calls: every route of both listeners against every credential that is none, and one answer for all of them.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use toolgate::{
    clock, issuing,
    keys::KeyKind,
    secrets::{Keyring, Secret},
};

use crate::{
    conformity::Side,
    support::{Answer, MASTER, World, held, options, send},
};

/// Routes that ask for an agent's key, as they stand in `src/http.rs`; the transparent route behind them.
const AGENT_ROUTES: [(&str, &str); 8] = [
    ("GET", "/v1/tools"),
    ("POST", "/v1/tools/{tool}/calls"),
    ("GET", "/v1/calls/{call}"),
    ("POST", "/v1/runs"),
    ("POST", "/v1/runs/{run}/end"),
    ("POST", "/desk/refunds"),
    ("GET", "/desk/customers/c_1001"),
    ("GET", "/nothing/here"),
];

/// Routes that ask for an operator's key.
const OPERATOR_ROUTES: [(&str, &str); 30] = [
    ("GET", "/v1/approvals"),
    ("GET", "/v1/approvals/statistics"),
    ("GET", "/metrics"),
    ("GET", "/v1/approvals/stream"),
    ("GET", "/v1/approvals/{approval}"),
    ("POST", "/v1/approvals/{approval}/approve"),
    ("POST", "/v1/approvals/{approval}/deny"),
    ("GET", "/v1/delegations"),
    ("POST", "/v1/delegations"),
    ("DELETE", "/v1/delegations/{delegation}"),
    ("GET", "/v1/permissions"),
    ("GET", "/v1/permissions/{permission}"),
    ("DELETE", "/v1/permissions/{permission}"),
    ("GET", "/v1/deliveries"),
    ("POST", "/v1/deliveries/{delivery}/redeliver"),
    ("GET", "/v1/destinations"),
    ("POST", "/v1/destinations/{destination}/enable"),
    ("GET", "/v1/kill-switches"),
    ("POST", "/v1/kill-switches"),
    ("DELETE", "/v1/kill-switches/{kill_switch}"),
    ("GET", "/v1/runs"),
    ("GET", "/v1/runs/{run}"),
    ("GET", "/v1/calls/{call}"),
    ("GET", "/v1/audit/entries"),
    ("POST", "/v1/audit/hash"),
    ("GET", "/v1/work"),
    ("GET", "/v1/work/{work}"),
    ("POST", "/v1/work/{work}/claim"),
    ("POST", "/v1/work/{work}/release"),
    ("POST", "/v1/work/{work}/resolve"),
];

/// Paths that stand on both listeners, and what each says to the other side's key: nobody, or that it has no such method.
const SHARED_PATHS: [&str; 2] = ["/v1/runs", "/v1/calls/{call}"];

/// Routes that say the same to everybody.
const OPEN_ROUTES: [&str; 2] = ["/livez", "/readyz"];

/// The same on one of the listeners alone: what it takes and gives.
const OPEN_TO_AGENTS: [&str; 2] = ["/v1/openapi.json", "/v1/docs"];
const OPEN_TO_OPERATORS: [&str; 2] = ["/openapi.json", "/docs"];

/// The documents are made from the routers, so what stands in both is every route there is.
#[tokio::test]
async fn no_route_is_left_out_of_the_tables() {
    let world = World::shipped().await;
    for (side, routes, own) in [
        (Side::Agents, &AGENT_ROUTES[..5], OPEN_TO_AGENTS),
        (Side::Operators, &OPERATOR_ROUTES[..], OPEN_TO_OPERATORS),
    ] {
        let closed = routes.iter().map(|(method, path)| (*method, *path, true));
        let open = OPEN_ROUTES
            .into_iter()
            .chain(own)
            .map(|path| ("GET", path, false));
        let tables: BTreeSet<(String, String, bool)> = closed
            .chain(open)
            .map(|(method, path, takes_key)| (method.to_owned(), path.to_owned(), takes_key))
            .collect();
        assert_eq!(tables, world.documented(side).await);
    }
    // Routes that are added by hand stand in no document.
    for part in include_str!("../../src/http.rs").split('.') {
        let by_hand = part.starts_with("route(")
            || part.starts_with("nest")
            || part.starts_with("route_service");
        assert!(!by_hand, "{part}");
    }
}

/// What exists and could be had with the right key.
struct Things {
    run: String,
    call: String,
    approval: String,
    digest: Value,
    kill_switch: String,
}

impl Things {
    async fn made(world: &World) -> Self {
        let run = world.run().await;
        let (call, approval) = world.parked(Some(&run), 25_000).await;
        let digest = world.shown("ada", &approval).await["digest"].clone();
        let kill_switch = world
            .halt(json!({"kind": "tool", "id": "desk.mail.send"}))
            .await;
        Self {
            run,
            call,
            approval,
            digest,
            kill_switch,
        }
    }

    fn request(
        &self,
        world: &World,
        method: &str,
        path: &str,
        is_operators: bool,
    ) -> RequestBuilder {
        let address = if is_operators {
            world.gateway.operators
        } else {
            world.gateway.agents
        };
        let refund = json!({"customer": "c_1001", "amount_cents": 100, "currency": "EUR"});
        let body = match path {
            "/v1/tools/{tool}/calls" => json!({"arguments": refund}),
            "/v1/runs" => json!({"triggered_by": "x", "purpose": "y"}),
            "/desk/refunds" => refund,
            "/v1/kill-switches" => json!({"scope": {"kind": "everything"}, "reason": "x"}),
            "/v1/audit/hash" => json!({"value": "x"}),
            _ => json!({"digest": self.digest, "reason": "x"}),
        };
        let path = path
            .replace("{tool}", "desk.refunds.create")
            .replace("{call}", &self.call)
            .replace("{run}", &self.run)
            .replace("{approval}", &self.approval)
            .replace("{kill_switch}", &self.kill_switch);
        let method: Method = method.parse().unwrap();
        let request = world.anybody(method.clone(), &format!("http://{address}{path}"));
        if method == Method::GET {
            request
        } else {
            request.json(&body)
        }
    }
}

/// Keys that are none, by what is wrong with them.
async fn useless_keys(world: &mut World, kind: KeyKind) -> Vec<(String, Vec<Vec<u8>>)> {
    let (owner, other) = match kind {
        KeyKind::Agent => ("support-bot", "ada"),
        KeyKind::Operator => ("ada", "support-bot"),
    };
    let good = world.keys[owner].expose().to_owned();
    let ring = Keyring::new(&Secret::new(MASTER)).unwrap();
    let gateway = options("toolgate_gateway", &world.database);
    let past = clock::now() - TimeDelta::seconds(1);
    let held = held(&world.database);
    let issue = |owner, expires_at| issuing::issue(&gateway, &held, &ring, kind, owner, expires_at);
    let (_, expired) = issue(owner, Some(past)).await.unwrap();
    let (_, ghost) = issue("ghost", None).await.unwrap();
    let (revoked_id, revoked) = issue(owner, None).await.unwrap();
    let mut table_owner = world.connect("toolgate_owner").await;
    sqlx::query("UPDATE toolgate.keys SET revoked_at = now() WHERE key_id = $1")
        .bind(revoked_id.as_str())
        .execute(&mut table_owner)
        .await
        .unwrap();
    let elsewhere = Keyring::new(&Secret::new("another master secret, just as long")).unwrap();
    let (_, foreign) = issuing::issue(&gateway, &held, &elsewhere, kind, owner, None)
        .await
        .unwrap();
    let unknown = toolgate::keys::generate(kind).unwrap();
    // Whatever was made before it is known to the gateway when this one is.
    world
        .key(
            kind,
            if kind == KeyKind::Agent {
                "platform-bot"
            } else {
                "bob"
            },
        )
        .await;
    let at = good.len() - 20;
    let flipped: String = good
        .chars()
        .enumerate()
        .map(|(place, letter)| match (place == at, letter) {
            (true, 'a') => 'b',
            (true, _) => 'a',
            (false, letter) => letter,
        })
        .collect();
    let one = |name: &str, value: String| (name.to_owned(), vec![value.into_bytes()]);
    let bearer =
        |name: &str, key: &str| (name.to_owned(), vec![format!("Bearer {key}").into_bytes()]);
    vec![
        ("nothing".to_owned(), Vec::new()),
        one("empty", String::new()),
        one("a scheme alone", "Bearer".to_owned()),
        one("a scheme and a space", "Bearer ".to_owned()),
        one("garbage", "\u{e4}\t%00".to_owned()),
        (
            "bytes that are no text".to_owned(),
            vec![b"Bearer \xff\xfe".to_vec()],
        ),
        bearer("a word", "undefined"),
        bearer("null", "null"),
        bearer(
            "a JWT without a signature",
            "eyJhbGciOiJub25lIn0.eyJzdWIiOiJzdXBwb3J0LWJvdCJ9.",
        ),
        bearer("the other side's key", world.keys[other].expose()),
        one("a wrong scheme", format!("Basic {good}")),
        one("no scheme", good.clone()),
        one("two keys in one", format!("Bearer {good}, Bearer {good}")),
        one("a parameter", format!("Bearer token={good}")),
        (
            "two headers".to_owned(),
            vec![format!("Bearer {good}").into_bytes(); 2],
        ),
        (
            "a good and a bad header".to_owned(),
            vec![format!("Bearer {good}").into_bytes(), b"Bearer x".to_vec()],
        ),
        bearer("cut short", &good[..good.len() - 1]),
        bearer("without its checksum", &good[..good.len() - 8]),
        bearer("made longer", &format!("{good}0")),
        bearer("upper case", &good.to_uppercase()),
        bearer("one letter changed", &flipped),
        bearer("well-formed and unknown", unknown.expose()),
        bearer("expired", expired.expose()),
        bearer("revoked", revoked.expose()),
        bearer("of somebody the config does not know", ghost.expose()),
        bearer("of another gateway", foreign.expose()),
    ]
}

/// Everything an answer tells, but for the time.
fn told(answer: &Answer) -> String {
    let body = &answer.body;
    let mut headers: Vec<String> = answer
        .headers
        .iter()
        .filter(|(name, _)| name.as_str() != "date")
        .map(|(name, value)| format!("{name}: {value:?}"))
        .collect();
    headers.sort();
    format!("{} {headers:?} {body}", answer.status)
}

async fn all_refused(world: &mut World, kind: KeyKind, routes: &[(&str, &str)]) {
    let things = Things::made(world).await;
    let is_operators = kind == KeyKind::Operator;
    let keys = useless_keys(world, kind).await;
    for (method, path) in routes {
        let mut seen: Option<String> = None;
        for (name, values) in &keys {
            let mut request = things.request(world, method, path, is_operators);
            for value in values {
                request = request.header("authorization", value.as_slice());
            }
            let answer = send(request).await;
            let what = format!("{method} {path} with {name}");
            assert_eq!(
                (answer.status, answer.code()),
                (401, "unauthenticated"),
                "{what}: {}",
                answer.body
            );
            assert_eq!(
                answer.header("www-authenticate"),
                "Bearer realm=\"toolgate\"",
                "{what}"
            );
            assert_eq!(
                answer.header("content-type"),
                "application/problem+json",
                "{what}"
            );
            let told = told(&answer);
            assert_eq!(seen.get_or_insert_with(|| told.clone()), &told, "{what}");
            assert_eq!(answer.header("toolgate-call"), "", "{what}");
        }
    }
    // Nothing has come of all this.
    assert_eq!(world.desk_requests(), 0);
    let after = world.shown("ada", &things.approval).await;
    assert_eq!(after["state"], "pending");
    assert_eq!(world.state(&things.call).await["state"], "parked");
    let held = send(world.operator("ada", Method::GET, "/v1/kill-switches"))
        .await
        .expect(200);
    assert_eq!(held.body["data"].as_array().unwrap().len(), 1);
    assert_eq!(
        held.body["data"][0]["kill_switch"],
        json!(things.kill_switch)
    );
    let runs = world
        .audit("SELECT FROM audit.runs WHERE ended_at IS NOT NULL OR run_id IS NULL")
        .await;
    assert!(runs.is_empty());
    assert_eq!(world.audit("SELECT FROM audit.runs").await.len(), 1);
    let audit = world.whole_audit().await;
    for (name, values) in &keys {
        for value in values {
            let text = String::from_utf8_lossy(value);
            let key = text.trim_start_matches("Bearer ").trim();
            assert!(key.len() < 40 || !audit.contains(key), "{name} is recorded");
        }
    }
    // And with the right key each of these routes is open.
    let owner = if is_operators { "ada" } else { "support-bot" };
    for (method, path) in routes {
        let request = things.request(world, method, path, is_operators);
        // Of a stream's answer there is no end to be read.
        let answer = request.bearer_auth(world.keys[owner].expose()).send().await;
        assert_ne!(answer.unwrap().status(), 401, "{method} {path}");
    }
}

#[tokio::test]
async fn what_is_no_agent_key_opens_no_agents_route() {
    let mut world = World::shipped().await;
    all_refused(&mut world, KeyKind::Agent, &AGENT_ROUTES).await;
}

#[tokio::test]
async fn what_is_no_operator_key_opens_no_operators_route() {
    let mut world = World::shipped().await;
    all_refused(&mut world, KeyKind::Operator, &OPERATOR_ROUTES).await;
}

#[tokio::test]
async fn a_key_ends_when_it_expires_or_is_revoked() {
    let mut world = World::shipped().await;
    let read = |world: &World, key: &Secret| {
        let url = format!("http://{}/desk/customers/c_1001", world.gateway.agents);
        let request = world.anybody(Method::GET, &url).bearer_auth(key.expose());
        async { send(request).await.status }
    };
    let ring = Keyring::new(&Secret::new(MASTER)).unwrap();
    let gateway = options("toolgate_gateway", &world.database);
    let end = clock::now() + TimeDelta::seconds(4);
    let held = held(&world.database);
    let issuing = issuing::issue(
        &gateway,
        &held,
        &ring,
        KeyKind::Agent,
        "support-bot",
        Some(end),
    );
    let (_, expiring) = issuing.await.unwrap();
    let other = world.key(KeyKind::Agent, "platform-bot").await;
    assert_eq!(read(&world, &expiring).await, 200);
    // Within the second in which keys are read again.
    let mut owner = world.connect("toolgate_owner").await;
    sqlx::query("UPDATE toolgate.keys SET revoked_at = now() WHERE owner = 'platform-bot'")
        .execute(&mut owner)
        .await
        .unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(1_500)).await;
    assert_eq!(read(&world, &other).await, 401);
    let left = end - clock::now() + TimeDelta::milliseconds(50);
    tokio::time::sleep(left.to_std().unwrap_or_default()).await;
    assert_eq!(read(&world, &expiring).await, 401);
    assert_eq!(read(&world, &world.keys["support-bot"]).await, 200);
    // The scheme's case is free (RFC 9110 section 11.1).
    let url = format!("http://{}/v1/tools", world.gateway.agents);
    let value = format!("bEARER {}", world.keys["support-bot"].expose());
    send(
        world
            .anybody(Method::GET, &url)
            .header("authorization", value),
    )
    .await
    .expect(200);
}

#[tokio::test]
async fn operators_routes_do_not_exist_for_agents_and_the_reverse() {
    let world = World::shipped().await;
    for path in SHARED_PATHS {
        let named = path.replace(['{', '}'], "");
        let url = |address| format!("http://{address}{named}");
        for (address, key, method) in [
            (world.gateway.agents, "ada", "GET"),
            (world.gateway.operators, "support-bot", "GET"),
            (world.gateway.operators, "support-bot", "POST"),
        ] {
            let key = world.keys[key].expose();
            let request = world.anybody(method.parse().unwrap(), &url(address));
            let answer = send(request.bearer_auth(key)).await;
            assert!(matches!(answer.status, 401 | 405), "{method} {path}");
        }
    }
    let not_shared = |route: &(&str, &str)| !SHARED_PATHS.contains(&route.1);
    for (method, path) in OPERATOR_ROUTES.into_iter().filter(not_shared) {
        let path = path.replace(['{', '}'], "");
        let answer = send(world.agent(method.parse().unwrap(), &path)).await;
        world.refused(answer, 404, "unknown_tool").await;
    }
    for (method, path) in AGENT_ROUTES.into_iter().filter(not_shared) {
        let path = path.replace(['{', '}'], "");
        send(world.operator("ada", method.parse().unwrap(), &path))
            .await
            .problem(404, "not_found");
    }
    for path in OPEN_ROUTES {
        for address in [world.gateway.agents, world.gateway.operators] {
            send(world.anybody(Method::GET, &format!("http://{address}{path}")))
                .await
                .expect(200);
        }
    }
    // An operator who has an agent's name, or an agent's key on the operators' side, is nobody.
    let url = format!("http://{}/v1/tools", world.gateway.agents);
    let key = world.keys["ada"].expose();
    send(world.anybody(Method::GET, &url).bearer_auth(key))
        .await
        .problem(401, "unauthenticated");
}

#[tokio::test]
async fn what_an_agent_made_is_not_there_for_another() {
    let mut world = World::shipped().await;
    world.key(KeyKind::Agent, "platform-bot").await;
    let (parked, _) = world.parked(None, 25_000).await;
    let done = send(world.refund(None, 100)).await.expect(201);
    for call in [parked.as_str(), done.header("toolgate-call")] {
        let path = format!("/v1/calls/{call}");
        send(world.agent(Method::GET, &path)).await.expect(200);
        send(world.agent_named("platform-bot", Method::GET, &path))
            .await
            .problem(404, "not_found");
    }
    let names = |answer: Answer| -> Vec<String> {
        let data = answer.body["data"].as_array().unwrap().clone();
        data.iter()
            .map(|tool| tool["api"].as_str().unwrap().to_owned())
            .collect()
    };
    for (agent, api) in [("support-bot", "desk"), ("platform-bot", "etcd")] {
        let answer = send(world.agent_named(agent, Method::GET, "/v1/tools"))
            .await
            .expect(200);
        assert!(names(answer).iter().all(|found| found == api), "{agent}");
    }
    let answer =
        send(world.agent_named("platform-bot", Method::GET, "/desk/customers/c_1001")).await;
    let row = world.refused(answer, 403, "scope_missing").await;
    assert_eq!(row["agent"], "platform-bot");
}
