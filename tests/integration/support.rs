//! What every test stands on: a gateway of its own on a database of its own, with the shipped world or a changed one, and
//! clients that play agent and operator.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe, Connection as _, PgConnection,
    postgres::{PgConnectOptions, PgRow},
};
use toolgate::{
    app::{RuleFiles, Rules, load_rules},
    config::{self, Config, Database, Variables},
    demo::desk::{self, Desk},
    diagnostics::SourceFile,
    issuing,
    keys::KeyKind,
    secrets::{Keyring, Secret},
    server::{self, Gateway},
    signing,
    store::provision,
};

use crate::conformity::{self, Sent, Side};

/// The master secret of every test's world.
pub const MASTER: &str = "a master secret for tests only, long enough";

/// Config, contracts and policies as texts, to be changed before the start.
#[derive(Clone)]
pub struct Setup {
    pub config: String,
    pub tools: BTreeMap<String, String>,
    pub policies: BTreeMap<String, String>,
    pub variables: BTreeMap<String, String>,
    /// The directory of the socket through which the gateway reaches the database, where it is not the server's own.
    pub through: Option<String>,
}

impl Setup {
    /// What ships in `config/` and `policies/`.
    pub fn shipped() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let read = |directory: &str, extension: &str| {
            config::read_directory(&root.join(directory), extension)
                .unwrap()
                .into_iter()
                .map(|file| {
                    let name = file
                        .path
                        .file_name()
                        .unwrap()
                        .to_string_lossy()
                        .into_owned();
                    (name, file.text.to_string())
                })
                .collect()
        };
        Self {
            config: std::fs::read_to_string(root.join("config/toolgate.yaml")).unwrap(),
            tools: read("config/tools", "yaml"),
            policies: read("policies", "cedar"),
            variables: BTreeMap::new(),
            through: None,
        }
    }

    /// Replaces a text in the config; it must be there.
    pub fn config(mut self, from: &str, to: &str) -> Self {
        assert!(self.config.contains(from), "the config has no {from:?}");
        self.config = self.config.replace(from, to);
        self
    }

    /// Replaces a text in one of the contract files; it must be there. An empty `from` appends.
    pub fn tool(mut self, file: &str, from: &str, to: &str) -> Self {
        replace(&mut self.tools, file, from, to);
        self
    }

    /// The same for a policy file.
    pub fn policy(mut self, file: &str, from: &str, to: &str) -> Self {
        replace(&mut self.policies, file, from, to);
        self
    }

    /// What `${env:NAME}` gives.
    pub fn variable(mut self, name: &str, value: impl Into<String>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// Starts it on a new database, with the sample API behind it.
    pub async fn start(self) -> World {
        let database = new_database().await;
        let desk = desk::start("desk-token".to_owned()).await.unwrap();
        World::start(self, database, Arc::new(desk)).await
    }
}

fn replace(files: &mut BTreeMap<String, String>, file: &str, from: &str, to: &str) {
    let text = files.entry(file.to_owned()).or_default();
    if from.is_empty() {
        text.push_str(to);
        return;
    }
    assert!(text.contains(from), "{file} has no {from:?}");
    *text = text.replace(from, to);
}

/// A gateway under test.
pub struct World {
    pub setup: Setup,
    pub desk: Arc<Desk>,
    pub database: String,
    pub gateway: Gateway,
    /// Keys by the name of their owner.
    pub keys: BTreeMap<String, Secret>,
    pub http: reqwest::Client,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub bytes: Vec<u8>,
    /// The body as JSON; null where it is none.
    pub body: Value,
}

impl Answer {
    /// The problem's code.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .map_or("", |value| value.to_str().unwrap())
    }

    /// Fails with the whole answer when the status is another.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(
            self.status,
            status,
            "{}",
            String::from_utf8_lossy(&self.bytes)
        );
        self
    }

    /// The same for a problem.
    #[track_caller]
    pub fn problem(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        assert_eq!(answer.code(), code, "{}", answer.body);
        assert_eq!(answer.header("content-type"), "application/problem+json");
        assert_eq!(answer.body["status"], json!(status), "{}", answer.body);
        assert!(
            answer.body["detail"]
                .as_str()
                .is_some_and(|detail| detail.len() > 20),
            "{}",
            answer.body
        );
        answer
    }
}

/// Sends a request and reads the answer, which must fit what its listener documents.
pub async fn send(request: RequestBuilder) -> Answer {
    let (client, request) = request.build_split();
    let request = request.unwrap();
    let sent = Sent::of(&request);
    let response = client.execute(request).await.unwrap();
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let bytes = response.bytes().await.unwrap().to_vec();
    conformity::hold(&sent, status, &headers, &bytes);
    let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    Answer {
        status,
        headers,
        bytes,
        body,
    }
}

impl World {
    /// The shipped world.
    pub async fn shipped() -> Self {
        Setup::shipped().start().await
    }

    /// A gateway on a given database: a new one, or one that another gateway has left.
    pub async fn start(setup: Setup, database: String, desk: Arc<Desk>) -> Self {
        let gateway = start_gateway(&setup, &database, &desk).await.unwrap();
        let mut world = Self {
            setup,
            desk,
            database,
            gateway,
            keys: BTreeMap::new(),
            http: reqwest::Client::builder()
                .no_proxy()
                .timeout(Duration::from_secs(60))
                .build()
                .unwrap(),
        };
        conformity::know(&world.http, world.gateway.agents, Side::Agents).await;
        conformity::know(&world.http, world.gateway.operators, Side::Operators).await;
        let owners = [
            (KeyKind::Agent, "support-bot"),
            (KeyKind::Operator, "ada"),
            (KeyKind::Operator, "bob"),
        ];
        for (kind, owner) in owners {
            world.issue(kind, owner).await;
        }
        for (kind, owner) in owners {
            world.taken_up(kind, owner).await;
        }
        world
    }

    async fn issue(&mut self, kind: KeyKind, owner: &str) {
        let master = self.setup.variables.get("TOOLGATE_MASTER_SECRET");
        let ring = Keyring::new(&Secret::new(master.map_or(MASTER, String::as_str))).unwrap();
        let options = options("toolgate_gateway", &self.database);
        let held = held(&self.database);
        let (_, key) = issuing::issue(&options, &held, &ring, kind, owner, None)
            .await
            .unwrap();
        self.keys.insert(owner.to_owned(), key);
    }

    async fn taken_up(&self, kind: KeyKind, owner: &str) {
        let path = match kind {
            KeyKind::Agent => format!("http://{}/v1/tools", self.gateway.agents),
            KeyKind::Operator => format!("http://{}/v1/kill-switches", self.gateway.operators),
        };
        for _ in 0..300 {
            let answer = send(self.http.get(&path).bearer_auth(self.keys[owner].expose())).await;
            if answer.status != 401 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the key of {owner} is not taken up");
    }

    /// Makes a key and waits until it opens.
    pub async fn key(&mut self, kind: KeyKind, owner: &str) -> Secret {
        self.issue(kind, owner).await;
        self.taken_up(kind, owner).await;
        self.keys[owner].clone()
    }

    /// The same for several of one kind, at once.
    pub async fn keys(&mut self, kind: KeyKind, owners: &[String]) {
        for owner in owners {
            self.issue(kind, owner).await;
        }
        for owner in owners {
            self.taken_up(kind, owner).await;
        }
    }

    /// Stops the gateway in good order and starts another on the same database, with a changed setup.
    pub async fn restart(self, change: impl FnOnce(Setup) -> Setup) -> Self {
        let Self {
            setup,
            desk,
            database,
            gateway,
            ..
        } = self;
        gateway.stop().await;
        Self::start(change(setup), database, desk).await
    }

    /// A request of the agent `support-bot`. `path` begins with `/`.
    pub fn agent(&self, method: Method, path: &str) -> RequestBuilder {
        self.agent_named("support-bot", method, path)
    }

    pub fn agent_named(&self, name: &str, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("http://{}{path}", self.gateway.agents))
            .bearer_auth(self.keys[name].expose())
    }

    /// A request of an operator.
    pub fn operator(&self, name: &str, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("http://{}{path}", self.gateway.operators))
            .bearer_auth(self.keys[name].expose())
    }

    /// A request with no credential at all, to either listener.
    pub fn anybody(&self, method: Method, url: &str) -> RequestBuilder {
        self.http.request(method, url)
    }

    /// Opens a run of `support-bot`.
    pub async fn run(&self) -> String {
        let body = json!({"triggered_by": "ticket:1", "purpose": "a test"});
        let answer = send(self.agent(Method::POST, "/v1/runs").json(&body))
            .await
            .expect(201);
        answer.body["run"].as_str().unwrap().to_owned()
    }

    /// A refund by `support-bot` on the transparent route.
    pub fn refund(&self, run: Option<&str>, amount_cents: u32) -> RequestBuilder {
        let request = self
            .agent(Method::POST, "/desk/refunds")
            .json(&json!({"customer": "c_1001", "amount_cents": amount_cents, "currency": "EUR"}));
        match run {
            Some(run) => request.header("toolgate-run", run),
            None => request,
        }
    }

    /// Parks a refund; gives the call and the approval.
    pub async fn parked(&self, run: Option<&str>, amount_cents: u32) -> (String, String) {
        let answer = send(self.refund(run, amount_cents))
            .await
            .problem(403, "approval_required");
        let text = |name: &str| answer.body[name].as_str().unwrap().to_owned();
        (text("call"), text("approval"))
    }

    /// What an operator is shown of an approval.
    pub async fn shown(&self, operator: &str, approval: &str) -> Value {
        let path = format!("/v1/approvals/{approval}");
        send(self.operator(operator, Method::GET, &path))
            .await
            .expect(200)
            .body
    }

    /// Decides with the right digest. `verb` is `approve` or `deny`.
    pub async fn decide(&self, operator: &str, approval: &str, verb: &str) -> Answer {
        let digest = self.shown(operator, approval).await["digest"].clone();
        let path = format!("/v1/approvals/{approval}/{verb}");
        send(
            self.operator(operator, Method::POST, &path)
                .json(&json!({"digest": digest, "reason": "test"})),
        )
        .await
    }

    /// The state of a call of `support-bot` once it is none of `parked` and `executing`.
    pub async fn ended(&self, call: &str) -> Value {
        self.ended_of("support-bot", call).await
    }

    /// The same for any agent.
    pub async fn ended_of(&self, agent: &str, call: &str) -> Value {
        for _ in 0..500 {
            let state = self.state_of(agent, call).await;
            if !matches!(state["state"].as_str(), Some("parked" | "executing")) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{call} does not end: {}", self.state_of(agent, call).await);
    }

    pub async fn state(&self, call: &str) -> Value {
        self.state_of("support-bot", call).await
    }

    pub async fn state_of(&self, agent: &str, call: &str) -> Value {
        send(self.agent_named(agent, Method::GET, &format!("/v1/calls/{call}")))
            .await
            .expect(200)
            .body
    }

    /// Pulls a kill switch as `ada`; gives its id.
    pub async fn halt(&self, scope: Value) -> String {
        let body = json!({"scope": scope, "reason": "test"});
        let answer = send(
            self.operator("ada", Method::POST, "/v1/kill-switches")
                .json(&body),
        )
        .await
        .expect(201);
        answer.body["kill_switch"].as_str().unwrap().to_owned()
    }

    /// Releases it again.
    pub async fn resume(&self, kill_switch: &str) {
        let path = format!("/v1/kill-switches/{kill_switch}");
        send(
            self.operator("ada", Method::DELETE, &path)
                .json(&json!({"reason": "test"})),
        )
        .await
        .expect(200);
    }

    /// Requests of one route that reached the sample API, for instance `POST /refunds`.
    pub fn received(&self, route: &str) -> u64 {
        self.desk.received()["by_route"][route]
            .as_u64()
            .unwrap_or(0)
    }

    /// A connection as one of the roles: `toolgate_owner`, `toolgate_gateway`, `toolgate_auditor`, `superuser`.
    pub async fn connect(&self, role: &str) -> PgConnection {
        PgConnection::connect_with(&options(role, &self.database))
            .await
            .unwrap()
    }

    /// Rows of a query as the auditor.
    pub async fn audit(&self, query: &str) -> Vec<PgRow> {
        let mut auditor = self.connect("toolgate_auditor").await;
        sqlx::query(AssertSqlSafe(query.to_owned()))
            .fetch_all(&mut auditor)
            .await
            .unwrap()
    }

    /// One row of `audit.calls` as JSON.
    pub async fn call_row(&self, call: &str) -> Value {
        let mut auditor = self.connect("toolgate_auditor").await;
        sqlx::query_scalar("SELECT to_jsonb(c) FROM audit.calls AS c WHERE call_id = $1")
            .bind(call)
            .fetch_one(&mut auditor)
            .await
            .unwrap()
    }
}

/// A gateway of a setup, on a database, in front of a sample API; the problems if there are any.
pub async fn start_gateway(setup: &Setup, database: &str, desk: &Desk) -> Result<Gateway, String> {
    let (config, rules) = load(setup, database, desk)?;
    server::start(config, rules)
        .await
        .map_err(|error| format!("{error:#}"))
}

/// Config and rules of a setup.
pub fn load(setup: &Setup, database: &str, desk: &Desk) -> Result<(Config, Rules), String> {
    let mut variables = Variables::default()
        .with("TOOLGATE_MASTER_SECRET", MASTER)
        .with("DESK_URL", format!("http://{}", desk.address))
        .with("DESK_TOKEN", "desk-token")
        .with("TOOLGATE_HOME", home(database).display().to_string());
    for (name, value) in &setup.variables {
        variables = variables.with(name, value);
    }
    let (config, findings) = config::load(
        &SourceFile::new("config/toolgate.yaml", setup.config.as_str()),
        &variables,
    );
    let Some(mut config) = config else {
        return Err(format!("{findings:#?}"));
    };
    config.agents_address = ([127, 0, 0, 1], 0).into();
    config.operators_address = ([127, 0, 0, 1], 0).into();
    config.database = Database::External {
        url: Secret::new(match &setup.through {
            Some(directory) => url_at(directory, "toolgate_gateway", database),
            None => url("toolgate_gateway", database),
        }),
        owner_url: None,
    };
    let sources = |files: &BTreeMap<String, String>| {
        files
            .iter()
            .map(|(name, text)| SourceFile::new(name.as_str(), text.as_str()))
            .collect()
    };
    let files = RuleFiles {
        tools: sources(&setup.tools),
        policies: sources(&setup.policies),
    };
    let (rules, findings) = load_rules(&config, &files);
    let Some(rules) = rules else {
        return Err(format!("{findings:#?}"));
    };
    Ok((config, rules))
}

/// Where the gateway on a database keeps its signing key and its checkpoints; gone with the throw-away server.
/// The key that the gateway of this database signs with.
pub fn held(database: &str) -> signing::Held {
    signing::open(&home(database).join("secrets/signing.key"), "toolgate").unwrap()
}

pub fn home(database: &str) -> PathBuf {
    let home = Path::new(&server_directory())
        .join("homes")
        .join(database.replace('/', "_"));
    std::fs::create_dir_all(&home).unwrap();
    home
}

pub fn server_directory() -> String {
    std::env::var("TOOLGATE_TEST_SERVER")
        .expect("run the tests with tests/run, which starts a PostgreSQL for them")
}

/// How a role connects to a database of the throw-away server.
pub fn options(role: &str, database: &str) -> PgConnectOptions {
    url(role, database).parse().unwrap()
}

/// `database` is a name on the shared server, or `directory/name` on another one.
pub fn url(role: &str, database: &str) -> String {
    match database.rsplit_once('/') {
        Some((directory, name)) => url_at(directory, role, name),
        None => url_at(&server_directory(), role, database),
    }
}

/// The same through a socket in another directory.
fn url_at(directory: &str, role: &str, database: &str) -> String {
    let host = directory.replace('/', "%2F");
    format!("postgres://{role}@{host}:5432/{database}?sslmode=disable")
}

/// A new database with all tables.
pub async fn new_database() -> String {
    let name = format!(
        "t_{}",
        toolgate::ids::CallId::generate().as_str().to_lowercase()
    );
    let mut superuser = PgConnection::connect_with(&options("superuser", "postgres"))
        .await
        .unwrap();
    sqlx::query(AssertSqlSafe(format!(
        "CREATE DATABASE {name} OWNER toolgate_owner"
    )))
    .execute(&mut superuser)
    .await
    .unwrap();
    provision::migrate(&options("toolgate_owner", &name))
        .await
        .unwrap();
    name
}
