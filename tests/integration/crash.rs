//! The real program, killed with SIGKILL at moments that nobody chose, in front of an API that lives in the test and keeps
//! a log of its own: what that API received is held against what the records say.

use std::{
    collections::{BTreeMap, HashMap},
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::post,
};
use parking_lot::Mutex;
use reqwest::{Method, RequestBuilder};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};
use tokio::sync::{mpsc, watch};
use toolgate::ids::CallId;

use crate::{
    receiver::{self, Behaviour, Receiver},
    support::{Answer, MASTER, Setup, send},
};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_toolgate");

pub fn random(below: u64) -> u64 {
    RandomState::new().build_hasher().finish() % below
}

/// Looks until it is so.
pub async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..6_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited in vain until {what}");
}

/// A directory below /tmp that the database's user may pass through; gone when dropped.
pub struct Place {
    pub path: PathBuf,
}

impl Place {
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt as _;
        let path = PathBuf::from(format!("/tmp/tg-crash-{}", CallId::generate()));
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o711)).unwrap();
        Self { path }
    }

    pub fn home(&self) -> PathBuf {
        self.path.join("home")
    }

    /// Where a config, the contracts and the policies stand as shipped, but for addresses and paths.
    pub fn config(&self) -> PathBuf {
        self.path.join("toolgate.yaml")
    }

    pub fn write_config(&self) {
        let setup = Setup::shipped()
            .config("agents: 127.0.0.1:8080", "agents: 127.0.0.1:0")
            .config("operators: 127.0.0.1:8081", "operators: 127.0.0.1:0")
            .config("policies: ../policies", "policies: policies");
        std::fs::write(self.config(), &setup.config).unwrap();
        for (directory, files) in [("tools", &setup.tools), ("policies", &setup.policies)] {
            let directory = self.path.join(directory);
            std::fs::create_dir(&directory).unwrap();
            for (name, text) in files {
                std::fs::write(directory.join(name), text).unwrap();
            }
        }
    }

    pub fn variables(&self, desk_url: String) -> [(&'static str, String); 4] {
        [
            ("TOOLGATE_HOME", self.home().display().to_string()),
            ("TOOLGATE_MASTER_SECRET", MASTER.to_owned()),
            ("DESK_URL", desk_url),
            ("DESK_TOKEN", "desk-token".to_owned()),
        ]
    }

    /// Process number of the database's server.
    fn postgres(&self) -> u32 {
        let path = self.home().join("postgres/data/postmaster.pid");
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().next().unwrap().trim().parse().unwrap()
    }

    /// The server with the processes that it has made.
    fn all_of_postgres(&self) -> Vec<u32> {
        let server = self.postgres();
        let is_child = |number: &u32| {
            let text = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
            // After the name in brackets: state, parent.
            let parent = text
                .rsplit(") ")
                .next()
                .and_then(|rest| rest.split(' ').nth(1));
            parent == Some(&server.to_string())
        };
        let processes = std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        std::iter::once(server)
            .chain(processes.filter(is_child))
            .collect()
    }

    /// Whether that process is (still) this place's database.
    fn is_alive(&self, postgres: u32) -> bool {
        let line = std::fs::read(format!("/proc/{postgres}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*self.path.to_string_lossy())
    }

    pub async fn auditor(&self) -> PgConnection {
        let url = std::fs::read_to_string(self.home().join("auditor.url")).unwrap();
        PgConnection::connect(url.trim()).await.unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.path));
    }
}

/// The program, running. Killed when dropped.
pub struct Running {
    child: Child,
    pub agents: SocketAddr,
    pub operators: SocketAddr,
    said: Arc<Mutex<Vec<String>>>,
}

impl Running {
    /// Starts it and waits for the line of output that names both addresses. `setpriv` becomes the program, which then
    /// ends with this process whatever happens to that.
    pub async fn start(arguments: &[&str], variables: &[(&str, String)]) -> Self {
        Self::start_under(&[], arguments, variables).await
    }

    /// The same by a program that becomes the one named after its own arguments.
    pub async fn start_under(
        under: &[&str],
        arguments: &[&str],
        variables: &[(&str, String)],
    ) -> Self {
        let mut words = under.to_vec();
        words.extend(["setpriv", "--pdeathsig", "KILL", PROGRAM]);
        words.extend(arguments);
        let mut child = Command::new(words[0])
            .args(&words[1..])
            .envs(variables.iter().map(|(name, value)| (name, value)))
            .env("TOOLGATE_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let (lines, mut heard) = mpsc::unbounded_channel();
        read(child.stdout.take().unwrap(), &said, lines.clone());
        read(child.stderr.take().unwrap(), &said, lines);
        let mut running = Self {
            child,
            agents: SocketAddr::from(([0, 0, 0, 0], 0)),
            operators: SocketAddr::from(([0, 0, 0, 0], 0)),
            said,
        };
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while let Ok(Some(line)) = tokio::time::timeout_at(deadline, heard.recv()).await {
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            let ready = line["message"] == "serving" && !arguments.contains(&"demo")
                || line["event"] == "ready";
            if ready {
                let address = |name: &str| {
                    let text = line[name].as_str().unwrap();
                    text.trim_start_matches("http://").parse().unwrap()
                };
                running.agents = address("agents");
                running.operators = address("operators");
                return running;
            }
        }
        panic!("it does not start: {:#?}", running.said.lock());
    }

    pub fn kill_9(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(&self) {
        let pid = Pid::from_raw(self.child.id().try_into().unwrap()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
    }

    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("it has ended", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended before.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Reads to the end, so that the program never waits for room in a pipe.
fn read(
    from: impl std::io::Read + Send + 'static,
    said: &Arc<Mutex<Vec<String>>>,
    lines: mpsc::UnboundedSender<String>,
) {
    let said = Arc::clone(said);
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            said.lock().push(line.clone());
            // Nobody listens any more once it is ready.
            drop(lines.send(line));
        }
    });
}

/// The API behind the gateway: it notes each refund when the head of the request arrives, and answers when its gate is
/// open, a few milliseconds later.
pub struct Upstream {
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    gate: watch::Sender<bool>,
    /// How many answers were begun.
    answered: Arc<AtomicU32>,
    serving: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Handler {
    log: Arc<Mutex<Vec<String>>>,
    gate: watch::Receiver<bool>,
    answered: Arc<AtomicU32>,
}

impl Upstream {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::default();
        let gate = watch::Sender::new(true);
        let answered: Arc<AtomicU32> = Arc::default();
        let router = Router::new()
            .route("/refunds", post(refund))
            .with_state(Handler {
                log: Arc::clone(&log),
                gate: gate.subscribe(),
                answered: Arc::clone(&answered),
            });
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self {
            address,
            log,
            gate,
            answered,
            serving,
        }
    }

    /// How many requests have arrived.
    fn count(&self) -> usize {
        self.log.lock().len()
    }

    /// How often each call has arrived.
    pub fn by_call(&self) -> BTreeMap<String, usize> {
        let mut counted = BTreeMap::new();
        for call in &*self.log.lock() {
            *counted.entry(call.clone()).or_default() += 1;
        }
        counted
    }

    async fn has(&self, count: usize) {
        until("the API has received enough", async || {
            self.count() >= count
        })
        .await;
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn refund(State(mut handler): State<Handler>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let call = head.headers["toolgate-call"].to_str().unwrap().to_owned();
    let number = {
        let mut log = handler.log.lock();
        log.push(call);
        log.len()
    };
    let Ok(body) = axum::body::to_bytes(body, 65_536).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let body: Value = serde_json::from_slice(&body).unwrap();
    handler.gate.wait_for(|open| *open).await.unwrap();
    // What an API takes to answer, so that calls are caught at every step.
    tokio::time::sleep(Duration::from_micros(random(8_000))).await;
    let answer = json!({
        "refund": format!("rf_{number}"), "customer": body["customer"],
        "amount_cents": body["amount_cents"], "currency": body["currency"], "status": "succeeded",
    });
    handler.answered.fetch_add(1, Ordering::SeqCst);
    (StatusCode::CREATED, Json(answer)).into_response()
}

/// `toolgate serve` with its home, in front of that API.
pub struct Stand {
    pub place: Place,
    pub upstream: Upstream,
    agent_key: String,
    pub operator_key: String,
    http: reqwest::Client,
}

impl Stand {
    /// The stand with its keys made, and the gateway running.
    pub async fn new() -> (Self, Running) {
        let place = Place::new();
        place.write_config();
        let mut stand = Self {
            place,
            upstream: Upstream::start().await,
            agent_key: String::new(),
            operator_key: String::new(),
            http: client(),
        };
        let running = stand.start().await;
        stand.agent_key = stand.key("--agent", "support-bot");
        stand.operator_key = stand.key("--operator", "ada");
        until("the keys are taken up", async || {
            let agent = stand.agent(&running, Method::GET, "/v1/tools");
            let operator = stand.operator(&running, Method::GET, "/v1/kill-switches");
            send(agent).await.status == 200 && send(operator).await.status == 200
        })
        .await;
        (stand, running)
    }

    fn variables(&self) -> [(&'static str, String); 4] {
        let url = format!("http://{}", self.upstream.address);
        self.place.variables(url)
    }

    pub async fn start(&self) -> Running {
        let config = self.place.config();
        let arguments = ["serve", "--config", config.to_str().unwrap()];
        Running::start(&arguments, &self.variables()).await
    }

    fn key(&self, whose: &str, name: &str) -> String {
        let made = Command::new(PROGRAM)
            .args(["keys", "create", whose, name, "--config"])
            .arg(self.place.config())
            .envs(self.variables())
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        String::from_utf8(made.stdout).unwrap().trim().to_owned()
    }

    pub fn agent(&self, running: &Running, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("http://{}{path}", running.agents))
            .bearer_auth(&self.agent_key)
    }

    pub fn operator(&self, running: &Running, method: Method, path: &str) -> RequestBuilder {
        self.http
            .request(method, format!("http://{}{path}", running.operators))
            .bearer_auth(&self.operator_key)
    }

    pub fn refund(&self, running: &Running, amount_cents: u32) -> RequestBuilder {
        self.agent(running, Method::POST, "/desk/refunds")
            .json(&refund_of(amount_cents))
    }

    pub async fn open_run(&self, running: &Running) -> String {
        let body = json!({"triggered_by": "ticket:9", "purpose": "a test"});
        send(self.agent(running, Method::POST, "/v1/runs").json(&body))
            .await
            .expect(201)
            .body["run"]
            .as_str()
            .unwrap()
            .to_owned()
    }

    /// Parks a refund; gives its call.
    pub async fn park(&self, running: &Running, run: &str, amount_cents: u32) -> String {
        let request = self
            .refund(running, amount_cents)
            .header("toolgate-run", run);
        let answer = send(request).await.problem(403, "approval_required");
        answer.body["call"].as_str().unwrap().to_owned()
    }

    /// The same on a machine so busy that a record comes too late: what was refused for that is asked for again.
    async fn park_patiently(&self, running: &Running, run: &str, amount_cents: u32) -> String {
        let mut call = String::new();
        until("the refund is parked", async || {
            let request = self
                .refund(running, amount_cents)
                .header("toolgate-run", run);
            let answer = send(request).await;
            let code = answer.code();
            assert!(
                matches!(code, "approval_required" | "record_unavailable"),
                "{}",
                answer.body
            );
            call = answer.header("toolgate-call").to_owned();
            code == "approval_required"
        })
        .await;
        call
    }

    /// Up to eight approvals that wait, each with its digest.
    async fn pending(&self, running: &Running) -> Vec<(String, String)> {
        let path = "/v1/approvals?state=pending&limit=8";
        let mut listed = send(self.operator(running, Method::GET, path)).await;
        // On a busy machine the record of who looks can come too late.
        for _ in 0..20 {
            if listed.code() != "record_unavailable" {
                break;
            }
            listed = send(self.operator(running, Method::GET, path)).await;
        }
        let listed = listed.expect(200);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let data = listed.body["data"].as_array().unwrap();
        data.iter()
            .map(|row| (text(&row["approval"]), text(&row["digest"])))
            .collect()
    }

    fn approve(&self, running: &Running, approval: &str, digest: &str) -> RequestBuilder {
        let path = format!("/v1/approvals/{approval}/approve");
        self.operator(running, Method::POST, &path)
            .json(&json!({"digest": digest, "reason": "test"}))
    }

    async fn state(&self, running: &Running, call: &str) -> Value {
        let path = format!("/v1/calls/{call}");
        send(self.agent(running, Method::GET, &path))
            .await
            .expect(200)
            .body
    }

    async fn ended(&self, running: &Running, call: &str) -> Value {
        let mut state = Value::Null;
        until("the call has ended", async || {
            state = self.state(running, call).await;
            !matches!(state["state"].as_str(), Some("parked" | "executing"))
        })
        .await;
        state
    }

    /// Everything that the records say of calls to the desk. Holds them to what must be so whenever nothing is under
    /// way: each intent has exactly one outcome, and no call was begun twice.
    async fn records(&self) -> HashMap<String, Recorded> {
        let mut auditor = self.place.auditor().await;
        let twice = sqlx::query(
            "SELECT call_id, kind FROM audit.entries WHERE kind IN ('intent', 'outcome')
             GROUP BY call_id, kind HAVING count(*) > 1",
        )
        .fetch_all(&mut auditor)
        .await
        .unwrap();
        assert!(twice.is_empty(), "{} calls are told of twice", twice.len());
        let rows = sqlx::query(
            "SELECT call_id, intent_at IS NOT NULL AS intended, outcome, executed FROM audit.calls
             WHERE api = 'desk'",
        )
        .fetch_all(&mut auditor)
        .await
        .unwrap();
        let records: HashMap<String, Recorded> = rows
            .iter()
            .map(|row| {
                let record = Recorded {
                    intended: row.get("intended"),
                    outcome: row.get("outcome"),
                    executed: row.get("executed"),
                };
                (row.get("call_id"), record)
            })
            .collect();
        for (call, record) in &records {
            assert!(
                !record.intended || record.outcome.is_some(),
                "the intent of {call} has no outcome"
            );
        }
        records
    }

    /// What the API received, held against the records.
    async fn compare(&self) -> HashMap<String, Recorded> {
        let records = self.records().await;
        let received = self.upstream.by_call();
        for (call, times) in &received {
            assert_eq!(*times, 1, "{call} reached the API more than once");
            let record = records
                .get(call)
                .unwrap_or_else(|| panic!("{call} reached the API and has no record"));
            assert!(record.intended, "{call} reached the API without an intent");
            assert!(
                matches!(
                    record.outcome.as_deref(),
                    Some("completed" | "indeterminate")
                ),
                "{call} reached the API: {record:?}"
            );
        }
        for (call, record) in &records {
            if record.executed == Some(true) {
                assert!(received.contains_key(call), "{call} never arrived");
            }
        }
        records
    }
}

#[derive(Debug)]
struct Recorded {
    intended: bool,
    outcome: Option<String>,
    executed: Option<bool>,
}

fn client() -> reqwest::Client {
    reqwest::Client::builder()
        .no_proxy()
        .timeout(Duration::from_secs(60))
        .build()
        .unwrap()
}

fn refund_of(amount_cents: u32) -> Value {
    json!({"customer": "c_1001", "amount_cents": amount_cents, "currency": "EUR"})
}

fn outcomes(records: &HashMap<String, Recorded>, outcome: &str) -> usize {
    records
        .values()
        .filter(|record| record.outcome.as_deref() == Some(outcome))
        .count()
}

/// Sends; `None` when the gateway is killed before the answer is whole.
async fn try_send(request: RequestBuilder) -> Option<(u16, String)> {
    let response = request.send().await.ok()?;
    let call = response.headers().get("toolgate-call")?;
    let call = call.to_str().unwrap().to_owned();
    let status = response.status().as_u16();
    response.bytes().await.ok()?;
    Some((status, call))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_no_intent_of_a_call_that_reached_the_api() {
    const ROUNDS: usize = 6;
    let (stand, mut running) = Stand::new().await;
    let stand = Arc::new(stand);
    let mut answered = Vec::new();
    let amounts = Arc::new(AtomicU32::new(0));
    for round in 0..ROUNDS {
        let agents: Vec<_> = (0..16)
            .map(|_| {
                let (stand, amounts) = (Arc::clone(&stand), Arc::clone(&amounts));
                let url = format!("http://{}/desk/refunds", running.agents);
                tokio::spawn(async move {
                    let mut answers = Vec::new();
                    loop {
                        let amount = amounts.fetch_add(1, Ordering::Relaxed) % 5_000 + 1;
                        let request = stand
                            .http
                            .post(&url)
                            .bearer_auth(&stand.agent_key)
                            .json(&refund_of(amount));
                        match try_send(request).await {
                            Some(answer) => answers.push(answer),
                            None => return answers,
                        }
                    }
                })
            })
            .collect();
        let moment = 20 + usize::try_from(random(150)).unwrap();
        stand.upstream.has(stand.upstream.count() + moment).await;
        tokio::time::sleep(Duration::from_micros(random(4_000))).await;
        let postgres = stand.place.postgres();
        running.kill_9();
        for agent in agents {
            answered.extend(agent.await.unwrap());
        }
        if round % 2 == 0 {
            // It ends without anybody's help, as the next start finds it, and is helped where that is sooner.
            until("the database has ended with its gateway", async || {
                !stand.place.is_alive(postgres)
            })
            .await;
        }
        running = stand.start().await;
        assert!(!stand.place.is_alive(postgres));
        assert_ne!(stand.place.postgres(), postgres);
        stand.compare().await;
    }
    let records = stand.compare().await;
    assert!(answered.len() > ROUNDS * 4, "{}", answered.len());
    for (status, call) in &answered {
        assert_eq!(*status, 201, "{call}");
        // Who got an answer finds it in the records: the outcome is committed first.
        assert_eq!(
            records[call].outcome.as_deref(),
            Some("completed"),
            "{call} was answered"
        );
    }
    let orphans = outcomes(&records, "indeterminate");
    assert!(orphans > 0, "nothing was under way in any of the kills");
    println!(
        "{} refunds arrived, {} were answered, {orphans} are indeterminate",
        stand.upstream.count(),
        answered.len()
    );
}

/// How often the gateway is killed in the test below: few times in every run, hundreds with `TOOLGATE_CRASH_ROUNDS`.
fn crash_rounds() -> u32 {
    std::env::var("TOOLGATE_CRASH_ROUNDS").map_or(7, |text| text.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_between_approval_and_record_executes_nothing_twice_and_loses_nothing() {
    let rounds = crash_rounds();
    let (stand, mut running) = Stand::new().await;
    let run = stand.open_run(&running).await;
    let mut parked: Vec<(u32, String)> = Vec::new();
    for round in 0..rounds {
        // Some that an earlier kill left undecided are decided in this round; so few wait that the agent's cap is far.
        let room = 8 - stand.pending(&running).await.len().min(8);
        let first = 5_001 + u32::try_from(parked.len()).unwrap();
        let fresh = futures::future::join_all((0..4.min(u32::try_from(room).unwrap())).map(
            async |number| {
                let amount = first + number;
                (amount, stand.park_patiently(&running, &run, amount).await)
            },
        ))
        .await;
        parked.extend(fresh);
        let before = stand.upstream.count();
        let answered = stand.upstream.answered.load(Ordering::SeqCst);
        // Every step has something that can be seen from outside, and the kill comes upon that.
        let step = round % 7;
        stand.upstream.gate.send_replace(step != 3);
        let votes: Vec<_> = stand
            .pending(&running)
            .await
            .iter()
            .map(|(approval, digest)| {
                let request = stand.approve(&running, approval, digest);
                tokio::spawn(async move { request.send().await.is_ok() })
            })
            .collect();
        let some = usize::try_from(random(4)).unwrap().min(votes.len());
        match step {
            // While the votes are on their way or being counted.
            0 => tokio::time::sleep(Duration::from_micros(random(12_000))).await,
            // When one vote is acknowledged: the approval stands, the call is about to be taken up.
            1 => {
                until("a vote is answered", async || {
                    votes.iter().any(tokio::task::JoinHandle::is_finished)
                })
                .await;
            }
            // When some calls have reached the API.
            2 => stand.upstream.has(before + some).await,
            // While the API has them and says nothing.
            3 => {
                stand.upstream.has(before + 1).await;
                tokio::time::sleep(Duration::from_micros(random(6_000))).await;
            }
            // When the API has answered and the outcome is about to be recorded.
            4 | 5 => {
                until("the API has answered", async || {
                    stand.upstream.answered.load(Ordering::SeqCst) > answered
                })
                .await;
                tokio::time::sleep(Duration::from_micros(random(u64::from(step - 3) * 1_500)))
                    .await;
            }
            // At any moment.
            _ => tokio::time::sleep(Duration::from_micros(random(60_000))).await,
        }
        running.kill_9();
        for vote in votes {
            // Some of them were answered and some were not.
            vote.await.unwrap();
        }
        stand.upstream.gate.send_replace(true);
        running = stand.start().await;
    }
    // What is still undecided is decided without a kill.
    loop {
        let pending = stand.pending(&running).await;
        if pending.is_empty() {
            break;
        }
        for (approval, digest) in pending {
            // One that could not be recorded in time is decided in the next turn.
            send(stand.approve(&running, &approval, &digest)).await;
        }
    }
    let mut states = BTreeMap::new();
    for (_, call) in &parked {
        let state = stand.ended(&running, call).await;
        let received = stand.upstream.by_call().get(call).copied().unwrap_or(0);
        match state["state"].as_str().unwrap() {
            "completed" => {
                assert_eq!(received, 1, "{state}");
                assert_eq!(state["status"], 201, "{state}");
            }
            "indeterminate" => assert_eq!(state["executed"], Value::Null, "{state}"),
            _ => panic!("{state}"),
        }
        states.insert(call.clone(), state);
    }
    let records = stand.compare().await;
    let received = stand.upstream.count();

    // Neither another start nor the same request sends any of them again.
    running.kill_9();
    running = stand.start().await;
    for (amount, call) in &parked {
        let again = stand.refund(&running, *amount).header("toolgate-run", &run);
        let again = send(again).await;
        assert_eq!(again.header("toolgate-call"), call);
        if states[call]["state"] == "completed" {
            assert_eq!(again.expect(201).body, states[call]["result"]);
        } else {
            again.problem(502, "indeterminate");
        }
    }
    let last = stand.park(&running, &run, 90_000).await;
    let (approval, digest) = stand.pending(&running).await.remove(0);
    send(stand.approve(&running, &approval, &digest))
        .await
        .expect(200);
    assert_eq!(stand.ended(&running, &last).await["state"], "completed");
    assert_eq!(stand.upstream.count(), received + 1);
    stand.compare().await;
    println!(
        "{rounds} kills, {} approved: {} completed, {} indeterminate",
        parked.len(),
        outcomes(&records, "completed"),
        outcomes(&records, "indeterminate"),
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halt_that_the_database_never_had_holds_over_kill_9() {
    let (stand, running) = Stand::new().await;
    send(stand.refund(&running, 100)).await.expect(201);
    // The database stands still in all its processes: it takes nothing in, and refuses nothing.
    let processes = stand.place.all_of_postgres();
    assert!(processes.len() > 3, "{processes:?}");
    let signal = |signal| {
        for process in &processes {
            let process = Pid::from_raw((*process).try_into().unwrap()).unwrap();
            // One of its helpers may have ended.
            let _ = kill_process(process, signal);
        }
    };
    signal(Signal::STOP);
    let halt = json!({"scope": {"kind": "everything"}, "reason": "test"});
    let pulled = stand.operator(&running, Method::POST, "/v1/kill-switches");
    let pulled = send(pulled.json(&halt)).await.expect(201);
    assert_eq!(pulled.body["recorded"], false);
    assert_eq!(pulled.body["kept"], true);
    let kill_switch = pulled.body["kill_switch"].as_str().unwrap();
    let file = stand
        .place
        .home()
        .join(format!("state/halts/{kill_switch}.json"));
    assert!(file.exists());
    running.kill_9();
    // What waits in its sockets is gone with it.
    signal(Signal::KILL);

    let running = stand.start().await;
    let refused = send(stand.refund(&running, 100))
        .await
        .problem(503, "halted");
    assert_eq!(refused.body["kill_switch"], kill_switch);
    until("the halt is recorded and the file gone", async || {
        !file.exists()
    })
    .await;
    let mut auditor = stand.place.auditor().await;
    let told: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit.entries WHERE kind = 'halt' AND kill_switch_id = $1 AND operator = 'ada'",
    )
    .bind(kill_switch)
    .fetch_one(&mut auditor)
    .await
    .unwrap();
    assert_eq!(told, 1);
    // Released, it stays so; and from the database it holds as well as from the file.
    running.kill_9();
    let running = stand.start().await;
    send(stand.refund(&running, 100))
        .await
        .problem(503, "halted");
    let path = format!("/v1/kill-switches/{kill_switch}");
    let release = stand.operator(&running, Method::DELETE, &path);
    send(release.json(&json!({"reason": "test"})))
        .await
        .expect(200);
    running.kill_9();
    let running = stand.start().await;
    send(stand.refund(&running, 100)).await.expect(201);
    assert_eq!(stand.upstream.count(), 2);
}

#[tokio::test]
async fn what_was_under_way_at_kill_9_is_indeterminate_and_never_sent_again() {
    let (stand, running) = Stand::new().await;
    let run = stand.open_run(&running).await;
    stand.upstream.gate.send_replace(false);
    let parked = stand.park(&running, &run, 20_000).await;
    let (approval, digest) = stand.pending(&running).await.remove(0);
    send(stand.approve(&running, &approval, &digest))
        .await
        .expect(200);
    let keyed = |running: &Running| {
        stand
            .refund(running, 300)
            .header("toolgate-run", &run)
            .header("idempotency-key", "the one and only")
    };
    let plain = tokio::spawn(stand.refund(&running, 400).send());
    let with_key = tokio::spawn(keyed(&running).send());
    stand.upstream.has(3).await;
    assert_eq!(stand.state(&running, &parked).await["state"], "executing");
    running.kill_9();
    assert!(plain.await.unwrap().is_err());
    assert!(with_key.await.unwrap().is_err());
    stand.upstream.gate.send_replace(true);

    let running = stand.start().await;
    let records = stand.compare().await;
    assert_eq!(outcomes(&records, "indeterminate"), 3);
    for call in stand.upstream.by_call().keys() {
        let state = stand.state(&running, call).await;
        assert_eq!(state["state"], "indeterminate");
        assert_eq!(state["executed"], Value::Null);
    }
    let again = send(keyed(&running)).await.problem(502, "indeterminate");
    assert_eq!(again.body["executed"], Value::Null);
    let again = stand.refund(&running, 20_000).header("toolgate-run", &run);
    let again: Answer = send(again.header("prefer", "wait=2"))
        .await
        .problem(502, "indeterminate");
    assert_eq!(again.header("toolgate-call"), parked);
    send(stand.approve(&running, &approval, &digest))
        .await
        .problem(409, "conflict");
    assert_eq!(stand.upstream.count(), 3);
}

#[tokio::test]
async fn sigterm_finishes_what_is_under_way() {
    let (stand, mut running) = Stand::new().await;
    let run = stand.open_run(&running).await;
    stand.upstream.gate.send_replace(false);
    let parked = stand.park(&running, &run, 20_000).await;
    let (approval, digest) = stand.pending(&running).await.remove(0);
    send(stand.approve(&running, &approval, &digest))
        .await
        .expect(200);
    let waiting = tokio::spawn(send(stand.refund(&running, 1_234)));
    stand.upstream.has(2).await;

    running.terminate();
    until("nobody is let in any more", async || {
        let agents = tokio::net::TcpStream::connect(running.agents).await;
        let operators = tokio::net::TcpStream::connect(running.operators).await;
        agents.is_err() && operators.is_err()
    })
    .await;
    assert!(running.child.try_wait().unwrap().is_none());
    assert!(!waiting.is_finished());
    stand.upstream.gate.send_replace(true);
    let answer = waiting.await.unwrap().expect(201);
    assert_eq!(answer.body["amount_cents"], 1_234);
    let call = answer.header("toolgate-call").to_owned();
    let postgres = stand.place.postgres();
    assert_eq!(running.ended().await.code(), Some(0));
    assert!(!stand.place.is_alive(postgres));

    let running = stand.start().await;
    let records = stand.compare().await;
    assert_eq!(records[&call].outcome.as_deref(), Some("completed"));
    assert_eq!(records[&parked].outcome.as_deref(), Some("completed"));
    assert_eq!(outcomes(&records, "indeterminate"), 0);
    let state = stand.state(&running, &parked).await;
    assert_eq!(state["result"]["amount_cents"], 20_000);
    assert_eq!(stand.upstream.count(), 2);
    let mut auditor = stand.place.auditor().await;
    let stopped: i64 =
        sqlx::query_scalar("SELECT count(*) FROM audit.entries WHERE kind = 'gateway_stopped'")
            .fetch_one(&mut auditor)
            .await
            .unwrap();
    assert_eq!(stopped, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_work_list_is_read_while_the_gateway_runs_and_while_it_is_gone() {
    let (stand, running) = Stand::new().await;
    running.kill_9();
    let contracts = stand.place.path.join("tools/desk.yaml");
    let text = std::fs::read_to_string(&contracts).unwrap();
    let body = "body: { formats: [json, form] }";
    let text = text.replace(body, &format!("while_halted: work_list\n    {body}"));
    std::fs::write(&contracts, text).unwrap();
    let running = stand.start().await;
    let halt = json!({"scope": {"kind": "everything"}, "reason": "test"});
    let pull = stand.operator(&running, Method::POST, "/v1/kill-switches");
    send(pull.json(&halt)).await.expect(201);
    let listed = send(stand.refund(&running, 1_234))
        .await
        .problem(403, "by_hand");
    let call = listed.header("toolgate-call").to_owned();
    let export = |more: &[&str]| {
        Command::new(PROGRAM)
            .args(["work", "export", "--config"])
            .arg(stand.place.config())
            .args(more)
            .envs(stand.variables())
            .output()
            .unwrap()
    };
    let parsed = |output: std::process::Output| -> Value {
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let beside = parsed(export(&[]));
    assert_eq!(beside[0]["work"], json!(call));
    assert_eq!(beside[0]["recorded_arguments"]["amount_cents"], 1_234);
    assert!(beside[0].get("arguments").is_none());
    let postgres = stand.place.postgres();
    running.kill_9();
    until("the database has ended", async || {
        !stand.place.is_alive(postgres)
    })
    .await;

    // The server is started just for this, and ended again.
    let alone = parsed(export(&["--kind", "manual", "--arguments-for", "ada"]));
    assert_eq!(alone[0]["arguments"]["amount_cents"], 1_234);
    // The agent's owner may not do its calls, and so does not see them here either.
    let own = parsed(export(&["--arguments-for", "grace"]));
    assert_eq!(own.as_array().unwrap().len(), 1);
    assert!(own[0].get("arguments").is_none());
    assert!(!export(&["--arguments-for", "nobody"]).status.success());
    let csv = export(&["--format", "csv", "--arguments-for", "ada"]);
    let csv = String::from_utf8(csv.stdout).unwrap();
    assert_eq!(csv.lines().count(), 2);
    assert!(csv.contains("\"\"amount_cents\"\":1234"), "{csv}");
    let running = stand.start().await;
    let mut auditor = stand.place.auditor().await;
    let seen: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit.entries
         WHERE kind = 'work_viewed' AND operator = 'ada' AND detail -> 'work' ? $1",
    )
    .bind(&call)
    .fetch_one(&mut auditor)
    .await
    .unwrap();
    assert_eq!(seen, 2);
    drop(running);
}

/// The demo, on its home.
async fn demo(home: &Path) -> Running {
    let home = home.to_str().unwrap();
    let any = "127.0.0.1:0";
    let arguments = [
        "demo",
        "--home",
        home,
        "--agents",
        any,
        "--operators",
        any,
        "--json",
    ];
    Running::start(&arguments, &[]).await
}

#[tokio::test]
async fn halts_and_keys_of_the_demo_survive_kill_9() {
    let place = Place::new();
    let home = place.home();
    let running = demo(&home).await;
    let keys = || {
        ["agent.key", "operator.key", "second-operator.key"].map(|name| {
            let text = std::fs::read_to_string(home.join(name)).unwrap();
            text.trim().to_owned()
        })
    };
    let before = keys();
    let [agent, operator, second] = &before;
    let http = client();
    let refund = |running: &Running| {
        http.post(format!("http://{}/desk/refunds", running.agents))
            .bearer_auth(agent)
            .json(&refund_of(700))
    };
    let switches = |running: &Running, method: Method, id: &str| {
        let url = format!("http://{}/v1/kill-switches{id}", running.operators);
        http.request(method, url).bearer_auth(operator)
    };
    send(refund(&running)).await.expect(201);
    let halt = json!({"scope": {"kind": "tool", "id": "desk.refunds.create"}, "reason": "test"});
    let pulled = send(switches(&running, Method::POST, "").json(&halt))
        .await
        .expect(201);
    assert_eq!(pulled.body["recorded"], true);
    let kill_switch = pulled.body["kill_switch"].as_str().unwrap().to_owned();
    running.kill_9();

    let running = demo(&home).await;
    assert_eq!(keys(), before, "the demo made new keys");
    let refused = send(refund(&running)).await.problem(503, "halted");
    assert_eq!(refused.body["kill_switch"], json!(kill_switch));
    assert_eq!(refused.body["executed"], false);
    let customers = format!("http://{}/desk/customers/c_1001", running.agents);
    send(http.get(&customers).bearer_auth(agent))
        .await
        .expect(200);
    let seen = http.get(format!(
        "http://{}/v1/approvals?state=pending",
        running.operators
    ));
    send(seen.bearer_auth(second)).await.expect(200);
    let released = switches(&running, Method::DELETE, &format!("/{kill_switch}"));
    send(released.json(&json!({"reason": "test"})))
        .await
        .expect(200);
    running.kill_9();

    // What was released stays so.
    let running = demo(&home).await;
    send(refund(&running)).await.expect(201);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kill_9_loses_no_message_to_people() {
    let (stand, running) = Stand::new().await;
    running.kill_9();
    // Nobody listens there yet.
    let address = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let secret = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
    std::fs::write(stand.place.path.join("hook.secret"), secret).unwrap();
    let mut config = std::fs::read_to_string(stand.place.config()).unwrap();
    config.push_str(&format!(
        "\ndestinations:\n  people:\n    webhook:\n      url: http://{address}/hook\n      secrets: [\"${{file:hook.secret}}\"]\n      allow_private_addresses: true\n    retry_seconds: [1, 1, 1, 1, 1, 1]\n"
    ));
    std::fs::write(stand.place.config(), config).unwrap();
    let running = stand.start().await;
    let run = stand.open_run(&running).await;
    // The answer says that the call is parked: that is committed, and nothing more can have happened.
    let call = stand.park(&running, &run, 5_001).await;
    running.kill_9();
    let receiver = Receiver::at(address).await;
    let running = stand.start().await;
    let first = receiver.of("approval.created").await;
    assert_eq!(first.json()["data"]["call"], json!(call));
    assert!(first.verifies(secret, receiver::now()));

    // Killed while the receiver has it and the gateway does not know: it comes again, and is known for the same.
    receiver.always(Some(Behaviour::Late(Duration::from_secs(60))));
    let before = receiver.got().len();
    stand.park(&running, &run, 5_002).await;
    receiver.has(before + 1).await;
    running.kill_9();
    receiver.always(None);
    let _running = stand.start().await;
    let got = receiver.has(before + 2).await;
    assert_eq!(got[before].id(), got[before + 1].id());
    assert_eq!(got[before].body, got[before + 1].body);
}
