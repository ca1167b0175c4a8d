//! An API that nobody here wrote: the real etcd behind the shipped contracts and policies. What arrived there is read
//! from etcd's own counters and its revision, which rises with every change and with nothing else.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use toolgate::{ids::CallId, keys::KeyKind};

use crate::support::{Answer, Setup, World, send};

const BOT: &str = "platform-bot";
const RANGE: &str = "/v3/kv/range";
const PUT: &str = "/v3/kv/put";
const DELETE: &str = "/v3/kv/deleterange";

/// A real etcd with a data directory of its own, gone when dropped.
struct Etcd {
    child: Child,
    name: String,
    directory: PathBuf,
    port: u16,
    http: reqwest::Client,
}

impl Etcd {
    async fn start() -> Self {
        // Between finding a free port and taking it somebody else may have it: then there is another.
        for _ in 0..10 {
            let name = CallId::generate().to_string();
            let directory = std::env::temp_dir().join(format!("toolgate-etcd-{name}"));
            std::fs::create_dir(&directory).unwrap();
            let port = TcpListener::bind("127.0.0.1:0")
                .and_then(|listener| listener.local_addr())
                .unwrap()
                .port();
            let mut etcd = Self {
                child: spawn(&name, &directory, port),
                name,
                directory,
                port,
                http: reqwest::Client::builder().no_proxy().build().unwrap(),
            };
            if etcd.answers().await {
                return etcd;
            }
        }
        panic!("etcd does not start");
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// True once it answers; false once it is clear that it will not. Asks for its name, because another etcd may have
    /// taken the port.
    async fn answers(&mut self) -> bool {
        for _ in 0..1_000 {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            let asked = self
                .http
                .post(format!("{}/v3/cluster/member/list", self.url()))
                .body("{}")
                .send()
                .await;
            if let Ok(answer) = asked
                && let Ok(body) = answer.json::<Value>().await
                && let Some(name) = body["members"][0]["name"].as_str()
                && !name.is_empty()
            {
                return name == self.name;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    /// Kills it; its data stays.
    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again where it was.
    async fn start_again(&mut self) {
        self.child = spawn(&self.name, &self.directory, self.port);
        assert!(self.answers().await, "etcd does not start again");
    }

    /// A request past the gateway.
    async fn direct(&self, path: &str, body: &Value) -> Answer {
        let request = self.http.post(format!("{}{path}", self.url()));
        send(request.json(body)).await
    }

    async fn put(&self, key: &str, value: &str) {
        let body = json!({"key": STANDARD.encode(key), "value": STANDARD.encode(value)});
        self.direct(PUT, &body).await.expect(200);
    }

    async fn has(&self, key: &str) -> bool {
        let body = json!({"key": STANDARD.encode(key), "count_only": true});
        self.direct(RANGE, &body).await.expect(200).body["count"] == "1"
    }

    /// How many calls of each kind etcd has taken, and its revision. Asking changes nothing.
    async fn arrived(&self) -> BTreeMap<String, u64> {
        let answer = send(self.http.get(format!("{}/metrics", self.url())))
            .await
            .expect(200);
        let text = String::from_utf8(answer.bytes).unwrap();
        let counted: BTreeMap<_, _> = text
            .lines()
            .filter_map(|line| {
                let (name, value) = line.rsplit_once(' ')?;
                let name = match name.strip_prefix("grpc_server_started_total{grpc_method=\"") {
                    Some(rest) => rest.split('"').next()?,
                    None if name == "etcd_debugging_mvcc_current_revision" => "revision",
                    None => return None,
                };
                Some((name.to_owned(), value.parse::<f64>().ok()? as u64))
            })
            .collect();
        for name in ["Range", "Put", "DeleteRange", "LeaseRevoke", "revision"] {
            assert!(counted.contains_key(name), "etcd does not count {name}");
        }
        counted
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        // It may have been killed before.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

/// `setpriv` becomes etcd, which then ends with this process whatever happens to that.
fn spawn(name: &str, directory: &std::path::Path, port: u16) -> Child {
    let url = format!("http://127.0.0.1:{port}");
    Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "/usr/bin/etcd", "--name", name])
        .args(["--data-dir", "data", "--unsafe-no-fsync"])
        .args([
            "--listen-client-urls",
            &url,
            "--advertise-client-urls",
            &url,
        ])
        // Nobody else is in the cluster: a socket in the directory saves looking for a second port.
        .args(["--listen-peer-urls", "unix://peer:0"])
        .args(["--initial-advertise-peer-urls", "http://127.0.0.1:1"])
        .args(["--initial-cluster", &format!("{name}=http://127.0.0.1:1")])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Etcd with a gateway in front of it, both as shipped.
async fn started() -> (Etcd, World) {
    started_with(Setup::shipped()).await
}

async fn started_with(setup: Setup) -> (Etcd, World) {
    let etcd = Etcd::start().await;
    let mut world = setup.variable("ETCD_URL", etcd.url()).start().await;
    world.key(KeyKind::Agent, BOT).await;
    (etcd, world)
}

impl World {
    /// A call by `platform-bot` on etcd's own path.
    fn etcd(&self, path: &str, body: &Value) -> RequestBuilder {
        self.agent_named(BOT, Method::POST, &format!("/etcd{path}"))
            .json(body)
    }

    /// The same call by the tool's name.
    fn etcd_tool(&self, path: &str, arguments: &Value) -> RequestBuilder {
        let tool = path.replace("/v3/", "etcd.").replace('/', ".");
        self.agent_named(BOT, Method::POST, &format!("/v1/tools/{tool}/calls"))
            .json(&json!({ "arguments": arguments }))
    }

    async fn etcd_run(&self, scopes: &[&str]) -> String {
        let body = json!({"triggered_by": "ticket:7", "purpose": "a test", "scopes": scopes});
        send(self.agent_named(BOT, Method::POST, "/v1/runs").json(&body))
            .await
            .expect(201)
            .body["run"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

/// Approval and call of an answer.
fn waiting(answer: &Answer) -> (String, String) {
    let text = |name: &str| answer.body[name].as_str().unwrap().to_owned();
    (text("approval"), text("call"))
}

#[tokio::test]
async fn permitted_calls_arrive_unchanged() {
    let (etcd, world) = started().await;
    let every_byte: Vec<u8> = (0..=255).collect();
    let large = vec![0xa5_u8; 1_000_000];
    let cases: [(&[u8], &[u8]); 5] = [
        (b"plain", b"value"),
        (b"\x00\xff\xfe /?#%2F..;=&\r\n", &every_byte),
        (
            "ключ-键".as_bytes(),
            "Grüße, 世界 🦀 e\u{301} \u{202e}txt\u{200b}\0".as_bytes(),
        ),
        (b"nothing", b""),
        (b"large", &large),
    ];
    for (key, value) in cases {
        let (key, value) = (STANDARD.encode(key), STANDARD.encode(value));
        let put = json!({"key": key, "value": value});
        let get = json!({ "key": key });
        let before = etcd.arrived().await["revision"];

        let answer = send(world.etcd(PUT, &put)).await.expect(200);
        assert_eq!(
            answer.body["header"]["revision"],
            json!((before + 1).to_string())
        );
        let stored = etcd.direct(RANGE, &get).await.expect(200);
        let pair = &stored.body["kvs"][0];
        assert_eq!(pair["key"], json!(key));
        // What is empty etcd leaves out.
        assert_eq!(pair["value"].as_str().unwrap_or_default(), value);
        let through = send(world.etcd(RANGE, &get)).await.expect(200);
        assert!(through.bytes == stored.bytes, "{key} is answered otherwise");
        assert_eq!(
            through.header("content-type"),
            stored.header("content-type")
        );
        assert!(through.header("toolgate-call").starts_with("call_"));

        let answer = send(world.etcd_tool(PUT, &put)).await.expect(200);
        assert_eq!(answer.body["executed"], true);
        assert_eq!(answer.body["status"], 200);
        let stored = etcd.direct(RANGE, &get).await.expect(200);
        assert_eq!(stored.body["kvs"][0]["version"], "2");
        let through = send(world.etcd_tool(RANGE, &get)).await.expect(200);
        assert_eq!(through.body["status"], 200);
        assert!(through.body["result"] == stored.body, "{key} by its tool");
        assert_eq!(etcd.arrived().await["revision"], before + 2);
    }
}

#[tokio::test]
async fn etcds_own_errors_arrive_as_they_are() {
    let (etcd, world) = started().await;
    let key = STANDARD.encode("k");
    for (path, body, status) in [
        (RANGE, json!({"key": key, "revision": "999"}), 400),
        (PUT, json!({"key": key, "value": "", "lease": "77"}), 404),
    ] {
        let direct = etcd.direct(path, &body).await.expect(status);
        let through = send(world.etcd(path, &body)).await.expect(status);
        assert_eq!(through.bytes, direct.bytes);
        assert_eq!(
            through.header("content-type"),
            direct.header("content-type")
        );
        let row = world.call_row(through.header("toolgate-call")).await;
        assert_eq!(row["outcome"], "completed");
        assert_eq!(row["status"], status);
        let by_tool = send(world.etcd_tool(path, &body)).await.expect(200);
        assert_eq!(by_tool.body["status"], status);
        assert_eq!(by_tool.body["result"], direct.body);
    }
}

#[tokio::test]
async fn ids_beyond_what_a_double_holds_arrive_exactly_or_not_at_all() {
    let (etcd, world) = started().await;
    let grant = "/v3/lease/grant";
    let before = etcd.arrived().await;
    let number = json!({"TTL": 600, "ID": 7_587_848_390_000_000_001_i64});
    for request in [world.etcd(grant, &number), world.etcd_tool(grant, &number)] {
        send(request).await.problem(400, "malformed_body");
    }
    assert_eq!(etcd.arrived().await, before);
    let text = json!({"TTL": "600", "ID": "7587848390000000003"});
    let one = send(world.etcd(grant, &text)).await.expect(200);
    assert_eq!(one.body["ID"], "7587848390000000003");
    let small = json!({"TTL": 600, "ID": 9_007_199_254_740_991_i64});
    let two = send(world.etcd_tool(grant, &small)).await.expect(200);
    assert_eq!(two.body["result"]["ID"], "9007199254740991");
    let leases = etcd
        .direct("/v3/lease/leases", &json!({}))
        .await
        .expect(200);
    let text = leases.body["leases"].to_string();
    assert!(text.contains("\"7587848390000000003\""), "{text}");
    assert!(text.contains("\"9007199254740991\""), "{text}");
    assert_eq!(leases.body["leases"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn what_the_policies_deny_never_arrives() {
    let (etcd, world) = started().await;
    etcd.put("/registry/pods/web", "kept").await;
    etcd.put("app", "kept").await;
    let key = |text: &str| STANDARD.encode(text);
    let registry = "registry-is-off-limits";
    let single = "single-deletions-only";
    let cases = [
        (
            PUT,
            json!({"key": key("/registry/pods/web"), "value": "AA=="}),
            vec![registry],
        ),
        (
            PUT,
            json!({"key": key("/registry"), "value": ""}),
            vec![registry],
        ),
        (
            DELETE,
            json!({"key": key("/registry/pods/web")}),
            vec![registry],
        ),
        (
            DELETE,
            json!({"key": key("app"), "range_end": key("apq")}),
            vec![single],
        ),
        (
            DELETE,
            json!({"key": "AA==", "range_end": "AA=="}),
            vec![single],
        ),
        (
            DELETE,
            json!({"key": key("/registry/"), "range_end": key("/registry0"), "prev_kv": true}),
            vec![registry, single],
        ),
    ];
    let before = etcd.arrived().await;
    for (path, body, policies) in cases {
        for request in [world.etcd(path, &body), world.etcd_tool(path, &body)] {
            let answer = send(request.header("prefer", "wait=5"))
                .await
                .problem(403, "denied_by_policy");
            // Beside the rule that holds every deletion back, where it is one.
            let mut named = answer.body["policies"].as_array().unwrap().clone();
            named.retain(|policy| policy != "destruction-needs-data-steward");
            assert_eq!(json!(named), json!(policies), "{body}");
            assert_eq!(answer.body["executed"], false);
            let row = world.call_row(answer.header("toolgate-call")).await;
            assert_eq!(row["decision"], "deny");
            assert_eq!(row["outcome"], "denied");
            assert_eq!(row["intent_at"], Value::Null);
            assert_eq!(row["forwarded_at"], Value::Null);
        }
    }
    assert_eq!(etcd.arrived().await, before);
}

#[tokio::test]
async fn what_does_not_fit_the_contract_never_arrives() {
    let (etcd, world) = started().await;
    etcd.put("app", "kept").await;
    let k = STANDARD.encode("app");
    let invalid = [
        (PUT, json!({"value": "AA=="})),
        (PUT, json!({ "key": k })),
        (PUT, json!({"key": "", "value": "AA=="})),
        (PUT, json!({"key": k, "value": 7})),
        (PUT, json!({"key": k, "value": "no base64"})),
        // Bits that etcd ignores: this would be /registry, spelt so that no policy sees it.
        (PUT, json!({"key": "L3JlZ2lzdHJ5L2==", "value": "AA=="})),
        (PUT, json!({"key": "L3JlZ2lz\ndHJ5", "value": "AA=="})),
        (PUT, json!({"key": "L3JlZ2lz\r\ndHJ5", "value": "AA=="})),
        (PUT, json!({"key": "_-8=", "value": "AA=="})),
        // Names that etcd takes although its own documentation spells them otherwise.
        (RANGE, json!({"key": k, "rangeEnd": "AA=="})),
        (DELETE, json!({"key": k, "rangeEnd": "AA=="})),
        (DELETE, json!({"key": k, "prevKv": true})),
        (DELETE, json!({"key": k, "Range_end": "AA=="})),
        (PUT, json!({"key": k, "value": "AA==", "ignoreValue": true})),
        (RANGE, json!({"key": k, "sort_order": "SIDEWAYS"})),
        (RANGE, json!({"key": k, "limit": 1.5})),
        (RANGE, json!({"key": k, "limit": "01"})),
        (RANGE, json!({"key": k, "limit": "99999999999999999999"})),
        (RANGE, json!({"key": k, "keys_only": "true"})),
        ("/v3/lease/grant", json!({"ttl": 60})),
        ("/v3/lease/grant", json!({"TTL": 0})),
        ("/v3/lease/grant", json!({"TTL": -1})),
        ("/v3/maintenance/status", json!({"key": k})),
    ];
    let before = etcd.arrived().await;
    for (path, body) in invalid {
        for request in [world.etcd(path, &body), world.etcd_tool(path, &body)] {
            let answer = send(request).await.problem(422, "invalid_arguments");
            assert!(answer.body["errors"][0]["pointer"].is_string(), "{body}");
        }
    }
    let double = format!(
        r#"{{"key":"{k}","value":"AA==","key":"{}"}}"#,
        "L3JlZ2lzdHJ5"
    );
    let raw = |path: &str, text: String| {
        world
            .agent_named(BOT, Method::POST, path)
            .header("content-type", "application/json")
            .body(text)
    };
    send(raw("/etcd/v3/kv/put", double.clone()))
        .await
        .problem(400, "malformed_body");
    let double = format!(r#"{{"arguments":{double}}}"#);
    send(raw("/v1/tools/etcd.kv.put/calls", double))
        .await
        .problem(400, "malformed_body");
    assert_eq!(etcd.arrived().await, before);
}

#[tokio::test]
async fn what_no_contract_names_never_arrives() {
    let (etcd, world) = started().await;
    etcd.put("app", "kept").await;
    let key = json!({"key": STANDARD.encode("app")});
    let before = etcd.arrived().await;
    for path in [
        "/v3/kv/txn",
        "/v3/kv/compaction",
        "/v3/auth/enable",
        "/v3/kv/DeleteRange",
        "/v3beta/kv/deleterange",
        "/v3/kv/deleterange/",
        "/metrics",
    ] {
        send(world.etcd(path, &key))
            .await
            .problem(404, "unknown_tool");
    }
    // Dot segments are resolved by the client itself; the tests of paths send them as they are.
    let answer = send(world.etcd("//v3/kv/deleterange", &key)).await;
    assert!(matches!(answer.status, 400 | 404), "{answer:?}");
    send(
        world
            .agent_named(BOT, Method::GET, "/etcd/v3/kv/range")
            .json(&key),
    )
    .await
    .problem(405, "unknown_tool");
    send(world.etcd_tool("/v3/kv/txn", &key))
        .await
        .problem(404, "unknown_tool");
    assert_eq!(etcd.arrived().await, before);
}

#[tokio::test]
async fn what_the_run_or_the_agent_may_not_do_never_arrives() {
    // An agent that has every scope here and stands in no group that a policy permits anything.
    let setup = Setup::shipped().config(
        "      - desk.customers:read\n",
        "      - desk.customers:read\n      - etcd.keys:read\n      - etcd.keys:write\n      - etcd.keys:delete\n",
    );
    let (etcd, world) = started_with(setup).await;
    etcd.put("app", "kept").await;
    let key = STANDARD.encode("app");
    let calls = [
        (RANGE, json!({ "key": key })),
        (PUT, json!({"key": key, "value": "AA=="})),
        (DELETE, json!({ "key": key })),
    ];
    let none = world.etcd_run(&[]).await;
    let reading = world.etcd_run(&["etcd.keys:read"]).await;
    let deleting = world.etcd_run(&["etcd.keys:delete"]).await;
    let ended = world.etcd_run(&["etcd.keys:read"]).await;
    send(world.agent_named(BOT, Method::POST, &format!("/v1/runs/{ended}/end")))
        .await
        .expect(200);
    let foreign = world.run().await;
    let before = etcd.arrived().await;
    for (place, (path, body)) in calls.iter().enumerate() {
        let has_scope = [vec![], vec![0], vec![2]];
        for (run, held) in [&none, &reading, &deleting].into_iter().zip(has_scope) {
            if held.contains(&place) {
                continue;
            }
            for request in [world.etcd(path, body), world.etcd_tool(path, body)] {
                send(request.header("toolgate-run", run.as_str()))
                    .await
                    .problem(403, "scope_missing");
            }
        }
        for run in [&ended, &foreign] {
            send(world.etcd(path, body).header("toolgate-run", run.as_str()))
                .await
                .problem(401, "unauthenticated");
        }
        let other = world
            .agent(Method::POST, &format!("/etcd{path}"))
            .json(body);
        let answer = send(other).await.problem(403, "denied_by_policy");
        assert!(
            !answer.body["policies"]
                .to_string()
                .contains("platform-reads")
        );
        let url = format!("http://{}/etcd{path}", world.gateway.agents);
        send(world.anybody(Method::POST, &url).json(body))
            .await
            .problem(401, "unauthenticated");
    }
    let halt = world.halt(json!({"kind": "api", "id": "etcd"})).await;
    for (path, body) in &calls {
        for request in [world.etcd(path, body), world.etcd_tool(path, body)] {
            let answer = send(request).await.problem(503, "halted");
            assert_eq!(answer.body["kill_switch"], json!(halt));
        }
    }
    assert_eq!(etcd.arrived().await, before);
    world.resume(&halt).await;
    send(world.etcd(RANGE, &calls[0].1)).await.expect(200);
}

#[tokio::test]
async fn a_delete_happens_exactly_once_and_only_after_approval() {
    let (etcd, world) = started().await;
    etcd.put("job", "first").await;
    let run = world.etcd_run(&["etcd.keys:delete"]).await;
    let body = json!({"key": STANDARD.encode("job"), "prev_kv": true});
    let ask = || world.etcd(DELETE, &body).header("toolgate-run", &run);
    let before = etcd.arrived().await;

    let parked = send(ask()).await.problem(403, "approval_required");
    assert_eq!(parked.body["executed"], false);
    let (approval, call) = waiting(&parked);
    let again = send(ask()).await.problem(403, "approval_required");
    assert_eq!(waiting(&again), (approval.clone(), call.clone()));
    assert_eq!(world.shown("ada", &approval).await["arguments"], body);
    assert_eq!(etcd.arrived().await, before);

    world.decide("ada", &approval, "approve").await.expect(200);
    let done = world.ended_of(BOT, &call).await;
    assert_eq!(done["state"], "completed");
    assert_eq!(done["executed"], true);
    assert_eq!(done["status"], 200);
    assert_eq!(done["result"]["deleted"], "1");
    assert_eq!(
        done["result"]["prev_kvs"][0]["value"],
        STANDARD.encode("first")
    );
    let after = etcd.arrived().await;
    assert_eq!(after["revision"], before["revision"] + 1);
    assert_eq!(after["DeleteRange"], before["DeleteRange"] + 1);
    assert!(!etcd.has("job").await);

    etcd.put("job", "second").await;
    let kept = send(ask()).await.expect(200);
    assert_eq!(kept.body, done["result"]);
    assert_eq!(kept.header("toolgate-call"), call);
    assert_eq!(kept.header("content-type"), "application/json");
    let kept = send(world.etcd_tool(DELETE, &body).header("toolgate-run", &run))
        .await
        .expect(200);
    assert_eq!(kept.body["call"], json!(call));
    assert_eq!(kept.body["result"], done["result"]);
    world
        .decide("bob", &approval, "approve")
        .await
        .problem(409, "conflict");
    assert_eq!(
        etcd.arrived().await["DeleteRange"],
        before["DeleteRange"] + 1
    );
    assert!(etcd.has("job").await, "it was deleted a second time");

    // In another run it is another call, and waits for its own approval.
    let other = world.etcd_run(&["etcd.keys:delete"]).await;
    let parked = send(world.etcd(DELETE, &body).header("toolgate-run", &other))
        .await
        .problem(403, "approval_required");
    assert_ne!(waiting(&parked).1, call);
    assert!(etcd.has("job").await);
}

#[tokio::test]
async fn two_who_approve_at_once_delete_once() {
    let (etcd, world) = started().await;
    etcd.put("job", "first").await;
    let body = json!({"key": STANDARD.encode("job")});
    let parked = send(world.etcd(DELETE, &body))
        .await
        .problem(403, "approval_required");
    let (approval, call) = waiting(&parked);
    let before = etcd.arrived().await["DeleteRange"];
    let (one, two) = tokio::join!(
        world.decide("ada", &approval, "approve"),
        world.decide("bob", &approval, "approve"),
    );
    let mut statuses = [one.status, two.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 409]);
    assert_eq!(world.ended_of(BOT, &call).await["state"], "completed");
    assert_eq!(etcd.arrived().await["DeleteRange"], before + 1);
}

#[tokio::test]
async fn a_lease_is_revoked_after_approval_and_takes_its_keys_along() {
    let (etcd, world) = started().await;
    let grant = send(world.etcd("/v3/lease/grant", &json!({"TTL": 600})))
        .await
        .expect(200);
    let lease = grant.body["ID"].clone();
    let put = json!({"key": STANDARD.encode("leased"), "value": "", "lease": lease});
    send(world.etcd(PUT, &put)).await.expect(200);
    let before = etcd.arrived().await;
    let parked = send(world.etcd("/v3/lease/revoke", &json!({ "ID": lease })))
        .await
        .problem(403, "approval_required");
    let (approval, call) = waiting(&parked);
    assert_eq!(etcd.arrived().await, before);
    world.decide("bob", &approval, "approve").await.expect(200);
    assert_eq!(world.ended_of(BOT, &call).await["state"], "completed");
    assert!(!etcd.has("leased").await);
    assert_eq!(
        etcd.arrived().await["LeaseRevoke"],
        before["LeaseRevoke"] + 1
    );
}

#[tokio::test]
async fn whoever_waits_gets_etcds_own_answer() {
    let (etcd, world) = started().await;
    for by_tool in [false, true] {
        let key = format!("waited-for-{by_tool}");
        etcd.put(&key, "v").await;
        let body = json!({"key": STANDARD.encode(&key)});
        let request = if by_tool {
            world.etcd_tool(DELETE, &body)
        } else {
            world.etcd(DELETE, &body)
        };
        let held = tokio::spawn(send(request.header("prefer", "wait=30")));
        let approval = pending(&world).await;
        assert!(!held.is_finished());
        world.decide("ada", &approval, "approve").await.expect(200);
        let answer = held.await.unwrap().expect(200);
        let result = if by_tool {
            assert_eq!(answer.body["executed"], true);
            assert_eq!(answer.body["status"], 200);
            &answer.body["result"]
        } else {
            assert_eq!(answer.header("content-type"), "application/json");
            assert!(answer.header("toolgate-call").starts_with("call_"));
            &answer.body
        };
        assert_eq!(result["deleted"], "1");
        assert_eq!(
            result["header"]["revision"],
            json!(etcd.arrived().await["revision"].to_string())
        );
        assert!(!etcd.has(&key).await);
    }
    // Nobody decides: the answer comes when the caller's patience is over, and says that nothing happened.
    etcd.put("left", "v").await;
    let before = etcd.arrived().await;
    let body = json!({"key": STANDARD.encode("left")});
    let began = std::time::Instant::now();
    let answer = send(world.etcd(DELETE, &body).header("prefer", "wait=1"))
        .await
        .problem(403, "approval_required");
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert_eq!(answer.body["executed"], false);
    assert_eq!(etcd.arrived().await, before);
}

/// The one approval that waits.
async fn pending(world: &World) -> String {
    for _ in 0..500 {
        let listed = send(world.operator("ada", Method::GET, "/v1/approvals?state=pending"))
            .await
            .expect(200);
        if let Some(approval) = listed.body["data"][0]["approval"].as_str() {
            return approval.to_owned();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("nothing is parked");
}

#[tokio::test]
async fn an_asynchronous_caller_gets_202_and_asks_later() {
    let (etcd, world) = started().await;
    etcd.put("later", "v").await;
    let body = json!({"key": STANDARD.encode("later")});
    let before = etcd.arrived().await;
    let ask = || world.etcd(DELETE, &body).header("prefer", "respond-async");
    let answer = send(ask()).await.expect(202);
    assert_eq!(answer.body["executed"], false);
    assert_eq!(answer.body["state"], "parked");
    assert!(
        answer.body["detail"]
            .as_str()
            .unwrap()
            .starts_with("NOT executed")
    );
    let (approval, call) = waiting(&answer);
    assert_eq!(answer.header("location"), format!("/v1/calls/{call}"));
    assert_eq!(answer.header("preference-applied"), "respond-async");
    assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
    assert_eq!(etcd.arrived().await, before);
    world.decide("ada", &approval, "approve").await.expect(200);
    let done = world.ended_of(BOT, &call).await;
    assert_eq!(done["state"], "completed");
    assert_eq!(done["result"]["deleted"], "1");
    assert_eq!(send(ask()).await.expect(200).body, done["result"]);
    assert_eq!(
        etcd.arrived().await["DeleteRange"],
        before["DeleteRange"] + 1
    );
}

#[tokio::test]
async fn a_delete_that_was_denied_never_happens() {
    let (etcd, world) = started().await;
    etcd.put("safe", "v").await;
    let body = json!({"key": STANDARD.encode("safe")});
    let before = etcd.arrived().await;
    let held = tokio::spawn(send(world.etcd(DELETE, &body).header("prefer", "wait=30")));
    let approval = pending(&world).await;
    world.decide("ada", &approval, "deny").await.expect(200);
    let answer = held.await.unwrap().problem(403, "approval_denied");
    assert_eq!(answer.body["executed"], false);
    let call = answer.header("toolgate-call").to_owned();
    let state = world.state_of(BOT, &call).await;
    assert_eq!(state["state"], "denied");
    assert_eq!(state["executed"], false);
    world
        .decide("bob", &approval, "approve")
        .await
        .problem(409, "conflict");
    let again = send(world.etcd(DELETE, &body))
        .await
        .problem(403, "approval_denied");
    assert_eq!(again.header("toolgate-call"), call);
    assert_eq!(etcd.arrived().await, before);
    let row = world.call_row(&call).await;
    assert_eq!(row["outcome"], "denied");
    assert_eq!(row["intent_at"], Value::Null);
}

#[tokio::test]
async fn without_etcd_calls_fail_as_not_executed_and_recover_by_themselves() {
    let (mut etcd, world) = started().await;
    etcd.put("k", "v").await;
    let key = STANDARD.encode("k");
    let get = json!({ "key": key });
    let put = json!({"key": key, "value": "AA=="});
    // Connections that etcd will close are open now.
    send(world.etcd(RANGE, &get)).await.expect(200);
    let parked = send(world.etcd(DELETE, &get))
        .await
        .problem(403, "approval_required");
    let (approval, parked_call) = waiting(&parked);
    let revision = etcd.arrived().await["revision"];
    etcd.kill();

    for request in [
        world.etcd(PUT, &put),
        world.etcd(RANGE, &get),
        world.etcd_tool(PUT, &put),
        world.etcd_tool(RANGE, &get),
    ] {
        let answer = send(request).await.problem(502, "upstream_unreachable");
        assert_eq!(answer.body["executed"], false);
        let call = answer.header("toolgate-call");
        let state = world.state_of(BOT, call).await;
        assert_eq!(state["state"], "failed");
        assert_eq!(state["executed"], false);
        let row = world.call_row(call).await;
        assert_eq!(row["outcome"], "failed");
        assert_eq!(row["executed"], false);
        assert_eq!(row["reasons"], json!(["upstream_unreachable"]));
        assert!(row["intent_at"].is_string());
        assert_eq!(row["forwarded_at"], Value::Null);
    }
    world.decide("ada", &approval, "approve").await.expect(200);
    let failed = world.ended_of(BOT, &parked_call).await;
    assert_eq!(failed["state"], "failed");
    assert_eq!(failed["executed"], false);
    assert_eq!(failed["code"], "upstream_unreachable");

    etcd.start_again().await;
    let back = etcd.arrived().await;
    assert_eq!(back["revision"], revision);
    assert!(etcd.has("k").await, "a call that failed was made after all");
    send(world.etcd(PUT, &put)).await.expect(200);
    assert_eq!(
        send(world.etcd(RANGE, &get)).await.expect(200).bytes,
        etcd.direct(RANGE, &get).await.bytes
    );
    assert_eq!(etcd.arrived().await["DeleteRange"], 0);
}
