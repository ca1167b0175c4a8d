//! The database goes away, stands still, and comes back: nothing is done without its record, the halt works, and
//! nobody has to do anything for the calls to go on. Each test has a PostgreSQL of its own.

use std::{
    collections::BTreeSet,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use futures::future::join_all;
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection, Row as _};
use toolgate::{demo::desk, store::provision};

use crate::support::{Setup, World, options, send, start_gateway};

/// A server of one test's own; dies with it.
struct Postgres {
    programs: PathBuf,
    directory: PathBuf,
    server: Child,
}

impl Postgres {
    /// A new one, with the roles, and a database `gate` with all tables. `database()` names it.
    async fn start() -> Self {
        let mut versions: Vec<_> = std::fs::read_dir("/usr/lib/postgresql")
            .unwrap()
            .map(|entry| entry.unwrap().path().join("bin"))
            .collect();
        versions.sort();
        let programs = versions.pop().unwrap();
        let name = toolgate::ids::CallId::generate().to_string();
        let directory = PathBuf::from(format!("/tmp/toolgate-{name}"));
        std::fs::create_dir(&directory).unwrap();
        if is_root() {
            let directory = directory.to_str().unwrap();
            let done = Command::new("chown").args(["postgres", directory]).status();
            assert!(done.unwrap().success());
        }
        let data = directory.join("data");
        let made = program(&programs.join("initdb"))
            .arg("-D")
            .arg(&data)
            .args([
                "-U",
                "superuser",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C",
            ])
            .arg("--no-sync")
            .stdout(Stdio::null())
            .status();
        assert!(made.unwrap().success());
        let server = launch(&programs, &directory);
        let postgres = Self {
            programs,
            directory,
            server,
        };
        let mut superuser = postgres.answers().await;
        for statement in [
            "CREATE ROLE toolgate_owner LOGIN CREATEDB CREATEROLE",
            "CREATE ROLE toolgate_gateway LOGIN",
            "CREATE ROLE toolgate_auditor LOGIN",
            "CREATE DATABASE gate OWNER toolgate_owner",
        ] {
            sqlx::query(statement)
                .execute(&mut superuser)
                .await
                .unwrap();
        }
        let database = postgres.database();
        provision::migrate(&options("toolgate_owner", &database))
            .await
            .unwrap();
        postgres
    }

    fn database(&self) -> String {
        format!("{}/gate", self.directory.display())
    }

    async fn answers(&self) -> PgConnection {
        let options = options(
            "superuser",
            &format!("{}/postgres", self.directory.display()),
        );
        for _ in 0..500 {
            if let Ok(connection) = PgConnection::connect_with(&options).await {
                return connection;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = std::fs::read_to_string(self.directory.join("log"));
        panic!("PostgreSQL does not answer: {log:?}");
    }

    /// Every process of it, the first one first.
    fn processes(&self) -> Vec<Pid> {
        let first = self.server.id().to_string();
        let children = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let pid: i32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            // Behind the name, which is in parentheses: state, parent.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?;
            (parent == first).then_some(pid)
        });
        std::iter::once(i32::try_from(self.server.id()).unwrap())
            .chain(children)
            .filter_map(Pid::from_raw)
            .collect()
    }

    fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            // One that has ended meanwhile is as good.
            let _ = kill_process(pid, signal);
        }
    }

    /// Stands still from here on, all of it.
    fn freeze(&self) {
        kill_process(
            Pid::from_raw(i32::try_from(self.server.id()).unwrap()).unwrap(),
            Signal::STOP,
        )
        .unwrap();
        self.signal(Signal::STOP);
    }

    fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// kill -9 of all of it.
    fn crash(&mut self) {
        self.freeze();
        let mut processes = self.processes();
        processes.rotate_left(1);
        for pid in processes {
            let _ = kill_process(pid, Signal::KILL);
        }
        self.server.wait().unwrap();
    }

    async fn again(&mut self) {
        self.server = launch(&self.programs, &self.directory);
        self.answers().await.close().await.unwrap();
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.crash();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program of PostgreSQL, which refuses to run as root. Ends when the test does, however that ends.
fn program(path: &std::path::Path) -> Command {
    let mut command = Command::new("setpriv");
    command.arg("--pdeathsig=KILL");
    if is_root() {
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
    }
    command.arg(path);
    command
}

fn launch(programs: &std::path::Path, directory: &std::path::Path) -> Child {
    let log = std::fs::File::create(directory.join("log")).unwrap();
    program(&programs.join("postgres"))
        .arg("-D")
        .arg(directory.join("data"))
        .arg("-k")
        .arg(directory)
        .args(["-c", "listen_addresses=", "-c", "shared_buffers=16MB"])
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

async fn world() -> (Postgres, World) {
    let postgres = Postgres::start().await;
    let desk = desk::start("desk-token".to_owned()).await.unwrap();
    let world = World::start(Setup::shipped(), postgres.database(), Arc::new(desk)).await;
    (postgres, world)
}

async fn ready(world: &World) -> u16 {
    let url = format!("http://{}/readyz", world.gateway.operators);
    send(world.anybody(Method::GET, &url)).await.status
}

/// Until `/readyz` says this; gives how long that took.
async fn until_ready(world: &World, status: u16) -> Duration {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(30) {
        if ready(world).await == status {
            return began.elapsed();
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("/readyz does not come to {status}");
}

/// Until what was handed over is recorded: as many rows of `audit.calls` have an outcome as there are calls.
async fn all_told(world: &World) -> Vec<Value> {
    let mut rows = Vec::new();
    for _ in 0..20 {
        let read = world
            .audit("SELECT to_jsonb(c) FROM audit.calls AS c")
            .await;
        rows = read.iter().map(|row| row.get(0)).collect();
        if rows.iter().all(|row: &Value| row["outcome"].is_string()) {
            return rows;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    rows.retain(|row| row["outcome"].is_null());
    panic!("calls without an outcome: {rows:#?}");
}

#[tokio::test]
async fn without_the_database_nothing_goes_but_the_halt_and_it_comes_back_by_itself() {
    let (mut postgres, world) = world().await;
    let run = world.run().await;
    send(world.refund(None, 10)).await.expect(201);
    let (parked, approval) = world.parked(Some(&run), 25_000).await;
    let digest = world.shown("ada", &approval).await["digest"].clone();
    assert_eq!(ready(&world).await, 200);
    postgres.crash();
    let mut refused = Vec::new();
    let keyed = world.refund(None, 11).header("idempotency-key", "k");
    let requests = [
        world.refund(None, 10),
        world.refund(Some(&run), 10),
        world.refund(Some(&run), 26_000),
        keyed,
        world.agent(Method::GET, "/desk/customers/c_1001"),
    ];
    for request in requests {
        let answer = send(request).await.problem(503, "record_unavailable");
        assert!(answer.header("retry-after").parse::<u32>().unwrap() > 0);
        assert_eq!(answer.body["executed"], false);
        refused.push(answer.header("toolgate-call").to_owned());
    }
    let gone = format!("/v1/calls/{parked}");
    send(world.agent(Method::GET, &gone))
        .await
        .problem(503, "record_unavailable");
    let path = format!("/v1/approvals/{approval}/approve");
    let body = json!({"digest": digest, "reason": "test"});
    send(world.operator("ada", Method::POST, &path).json(&body))
        .await
        .problem(503, "record_unavailable");
    assert_eq!(world.received("POST /refunds"), 1);
    assert_eq!(ready(&world).await, 503);
    let alive = format!("http://{}/livez", world.gateway.operators);
    send(world.anybody(Method::GET, &alive)).await.expect(200);

    // The halt is in force at once; letting go needs the record.
    let body = json!({"scope": {"kind": "tool", "id": "desk.refunds.create"}, "reason": "test"});
    let pulled = send(
        world
            .operator("ada", Method::POST, "/v1/kill-switches")
            .json(&body),
    )
    .await
    .expect(201);
    assert_eq!(pulled.body["recorded"], false);
    let halt = pulled.body["kill_switch"].as_str().unwrap().to_owned();
    let stopped = send(world.refund(Some(&run), 10))
        .await
        .problem(503, "halted");
    refused.push(stopped.header("toolgate-call").to_owned());
    let path = format!("/v1/kill-switches/{halt}");
    send(
        world
            .operator("ada", Method::DELETE, &path)
            .json(&json!({"reason": "test"})),
    )
    .await
    .problem(503, "record_unavailable");
    send(world.refund(Some(&run), 10))
        .await
        .problem(503, "halted");

    postgres.again().await;
    let took = until_ready(&world, 200).await;
    assert!(took < Duration::from_secs(5), "{took:?}");
    let answer = send(world.agent(Method::GET, "/desk/customers/c_1001")).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    send(world.refund(None, 10)).await.problem(503, "halted");
    // What was refused and halted meanwhile is told now.
    for call in &refused {
        let rows = world
            .audit(&format!(
                "SELECT to_jsonb(c) FROM audit.calls AS c WHERE call_id = '{call}'"
            ))
            .await;
        assert_eq!(rows.len(), 1);
        let row: Value = rows[0].get(0);
        let why = row["reasons"].clone();
        assert!(
            why == json!(["record_unavailable"]) || why == json!(["halted"]),
            "{row}"
        );
        assert_eq!(row["executed"], false);
        assert!(row["forwarded_at"].is_null());
    }
    let halts = world
        .audit("SELECT kill_switch_id, recorded_at > pulled_at FROM audit.halts")
        .await;
    assert_eq!(halts.len(), 1);
    assert_eq!(halts[0].get::<String, _>(0), halt);
    assert!(halts[0].get::<bool, _>(1));
    let world = world.restart(|setup| setup).await;
    send(world.refund(None, 10)).await.problem(503, "halted");
    world.resume(&halt).await;
    send(world.refund(None, 10)).await.expect(201);
    world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&parked).await["state"], "completed");
    assert_eq!(world.received("POST /refunds"), 3);
    world.gateway.stop().await;
}

#[tokio::test]
async fn an_idle_gateway_notices_by_itself() {
    let (mut postgres, world) = world().await;
    postgres.crash();
    let took = until_ready(&world, 503).await;
    assert!(took < Duration::from_secs(8), "{took:?}");
    postgres.again().await;
    until_ready(&world, 200).await;
    send(world.refund(None, 10)).await.expect(201);
}

#[tokio::test]
async fn a_second_gateway_on_the_same_database_does_not_start() {
    let world = World::shipped().await;
    let second = start_gateway(&world.setup, &world.database, &world.desk).await;
    let why = second.err().unwrap();
    assert!(
        why.contains("another gateway serves this database"),
        "{why}"
    );
    send(world.refund(None, 10)).await.expect(201);
    let gateway = world.gateway;
    gateway.stop().await;
    start_gateway(&world.setup, &world.database, &world.desk)
        .await
        .unwrap()
        .stop()
        .await;
}

/// Agents that call all the time, one in three with a key, one in three parked, while `happens` happens. Then: what
/// reached the API had its intent, what was answered is recorded, what was refused was not sent.
async fn under_load(world: &World, happens: impl Future<Output = ()>) {
    let over = AtomicBool::new(false);
    let numbers = AtomicU32::new(0);
    let answers = Mutex::new(Vec::new());
    let agent = |at: u32| {
        let (over, numbers, answers) = (&over, &numbers, &answers);
        async move {
            while !over.load(Ordering::Relaxed) {
                let number = numbers.fetch_add(1, Ordering::Relaxed);
                let amount = number % 4_000 + 1;
                let request = match at % 3 {
                    0 => world.refund(None, amount),
                    1 => world
                        .refund(None, amount)
                        .header("idempotency-key", format!("k{number}")),
                    _ => world
                        .agent(Method::PATCH, &format!("/desk/tickets/t{amount}"))
                        .json(&json!({"status": "open"})),
                };
                let answer = send(request).await;
                let call = answer.header("toolgate-call").to_owned();
                // A little of what Retry-After asks for: what waits for the database has its bound.
                if answer.status == 503 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                answers
                    .lock()
                    .unwrap()
                    .push((answer.status, answer.code().to_owned(), call));
            }
        }
    };
    let happens = async {
        happens.await;
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all((0..24).map(agent)), happens);

    let rows = all_told(world).await;
    let by_call: std::collections::BTreeMap<&str, &Value> = rows
        .iter()
        .map(|row| (row["call_id"].as_str().unwrap(), row))
        .collect();
    assert_eq!(by_call.len(), rows.len(), "a call has two rows");
    let received = world.desk.received();
    let received: Vec<&str> = received["requests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|request| request["call"].as_str().unwrap())
        .collect();
    let distinct: BTreeSet<&str> = received.iter().copied().collect();
    assert_eq!(distinct.len(), received.len(), "a call was sent twice");
    for call in &distinct {
        let row = by_call[call];
        assert!(row["intent_at"].is_string(), "sent without intent: {row}");
        assert!(row["forwarded_at"].is_string(), "{row}");
        assert_eq!(row["outcome"], "completed", "{row}");
    }
    let answers = answers.into_inner().unwrap();
    let mut refused = 0;
    for (status, code, call) in &answers {
        let row = by_call
            .get(&**call)
            .unwrap_or_else(|| panic!("no row: {status} {code} {call}"));
        match (*status, &**code) {
            (200 | 201, _) => assert_eq!(row["outcome"], "completed", "{row}"),
            (503, "record_unavailable") => {
                refused += 1;
                assert!(!distinct.contains(&**call), "refused and sent: {row}");
                assert_eq!(row["executed"], false, "{row}");
            }
            other => panic!("{other:?} {row}"),
        }
    }
    assert!(refused > 0, "the outage was not noticed");
    // And the one call from before.
    assert_eq!(answers.len() + 1, rows.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_database_that_stands_still_lets_nothing_through_and_nothing_is_lost() {
    let (postgres, world) = world().await;
    send(world.refund(None, 10)).await.expect(201);
    under_load(&world, async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        postgres.freeze();
        // What was committed before may still be sent.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let sent = world.desk.received()["total"].clone();
        let halt = world.halt(json!({"kind": "api", "id": "etcd"})).await;
        // Longer than a commit may take, so that the writer gives its connection up.
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert_eq!(world.desk.received()["total"], sent);
        assert_eq!(ready(&world).await, 503);
        postgres.thaw();
        until_ready(&world, 200).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_ne!(world.desk.received()["total"], sent, "no call goes on");
        world.resume(&halt).await;
    })
    .await;
    world.gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_database_that_is_killed_again_and_again_loses_nothing() {
    let (mut postgres, world) = world().await;
    send(world.refund(None, 10)).await.expect(201);
    under_load(&world, async {
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(600)).await;
            postgres.crash();
            tokio::time::sleep(Duration::from_millis(300)).await;
            postgres.again().await;
            until_ready(&world, 200).await;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
    })
    .await;
    world.gateway.stop().await;
}
