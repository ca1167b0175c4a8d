//! A commit whose answer is lost, or comes too late: the one moment in which neither side knows. Whatever the gateway then
//! does, each call is one row, no intent stays open unnoticed, and nothing is sent twice.

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixListener, UnixStream},
};

use super::texts;
use crate::support::{Setup, World, send, server_directory};

/// What to do to the next commit of the gateway's writer.
#[derive(Clone, Copy)]
enum Plan {
    /// Hand it on, lose the answer with the connection, and let nobody in for a while.
    Lose { away: Duration },
    /// Hand on the answer late.
    Late { by: Duration },
}

/// Which message of the writer is meant.
#[derive(Clone, Copy, PartialEq)]
enum Which {
    /// An insert that is a transaction of its own. Its statement must be prepared by an earlier one.
    Entries,
    /// The COMMIT of a transaction that holds an intent.
    CommitOfIntent,
    /// The next COMMIT.
    Commit,
}

#[derive(Default)]
struct State {
    armed: Option<(Which, Plan)>,
    done: usize,
    away_until: Option<Instant>,
}

/// Stands between the gateway and PostgreSQL.
struct Proxy {
    directory: PathBuf,
    state: Arc<Mutex<State>>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Proxy {
    fn start() -> Self {
        let name = format!("toolgate-proxy-{}", toolgate::ids::CallId::generate());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let listener = UnixListener::bind(directory.join(".s.PGSQL.5432")).unwrap();
        let state = Arc::<Mutex<State>>::default();
        let shared = Arc::clone(&state);
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let away = shared.lock().unwrap().away_until;
                if away.is_none_or(|until| until <= Instant::now()) {
                    tokio::spawn(relay(client, Arc::clone(&shared)));
                }
            }
        });
        Self { directory, state }
    }

    fn arm(&self, which: Which, plan: Plan) {
        self.state.lock().unwrap().armed = Some((which, plan));
    }

    async fn has_struck(&self) {
        for _ in 0..500 {
            if self.state.lock().unwrap().done > 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no commit came by");
    }

    async fn world(&self, setup: Setup) -> World {
        let mut setup = setup;
        setup.through = Some(self.directory.display().to_string());
        setup.start().await
    }
}

async fn relay(mut client: UnixStream, state: Arc<Mutex<State>>) {
    let path = format!("{}/.s.PGSQL.5432", server_directory());
    let mut server = UnixStream::connect(path).await.unwrap();
    let (mut from_client, mut from_server) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    let mut is_writer = false;
    loop {
        tokio::select! {
            read = client.read(&mut from_client) => {
                let Ok(read @ 1..) = read else { return };
                let bytes = &from_client[..read];
                is_writer |= contains(bytes, b"toolgate writer");
                let plan = if is_writer { taken(&state, bytes) } else { None };
                server.write_all(bytes).await.unwrap();
                match plan {
                    None => {}
                    Some(Plan::Late { by }) => tokio::time::sleep(by).await,
                    Some(Plan::Lose { .. }) => {
                        // The answer is there, so the commit has happened.
                        let _ = server.read(&mut from_server).await;
                        return;
                    }
                }
            }
            read = server.read(&mut from_server) => {
                let Ok(read @ 1..) = read else { return };
                if client.write_all(&from_server[..read]).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn contains(bytes: &[u8], what: &[u8]) -> bool {
    bytes.windows(what.len()).any(|window| window == what)
}

fn taken(state: &Mutex<State>, bytes: &[u8]) -> Option<Plan> {
    let mut state = state.lock().unwrap();
    let (which, plan) = state.armed?;
    let found = match which {
        Which::Commit => contains(bytes, b"COMMIT\0"),
        // The arrays of a batch hold the kinds of its entries.
        Which::Entries | Which::CommitOfIntent => contains(bytes, b"intent"),
    };
    if found && which == Which::CommitOfIntent {
        state.armed = Some((Which::Commit, plan));
        return None;
    }
    if !found {
        return None;
    }
    state.armed = None;
    state.done += 1;
    if let Plan::Lose { away } = plan {
        state.away_until = Some(Instant::now() + away);
    }
    Some(plan)
}

const AT_ONCE: Plan = Plan::Lose {
    away: Duration::ZERO,
};

/// Fails unless each call is one row, and every intent has an outcome.
async fn all_is_told(world: &World) {
    let mut auditor = world.connect("toolgate_auditor").await;
    for query in [
        "SELECT call_id FROM audit.calls GROUP BY call_id HAVING count(*) <> 1",
        "SELECT call_id FROM audit.entries WHERE kind = 'outcome' GROUP BY call_id HAVING count(*) <> 1",
        "SELECT call_id FROM audit.entries WHERE kind = 'intent'
         EXCEPT SELECT call_id FROM audit.entries WHERE kind = 'outcome'",
        "SELECT instance_id FROM audit.entries GROUP BY instance_id
         HAVING count(DISTINCT seq) <> count(*) OR max(seq) <> count(*)",
    ] {
        let wrong = texts(&mut auditor, query).await;
        assert!(wrong.is_empty(), "{query}: {wrong:?}");
    }
    let mut superuser = world.connect("superuser").await;
    let open = "SELECT call_id FROM toolgate.calls WHERE state = 'executing'";
    assert!(texts(&mut superuser, open).await.is_empty());
}

/// The calls, of which there is one, as the auditor sees it.
async fn only_call(world: &World, amount_cents: u32) -> Value {
    let mut auditor = world.connect("toolgate_auditor").await;
    let query = format!(
        "SELECT to_jsonb(c)::text FROM audit.calls AS c WHERE arguments ->> 'amount_cents' = '{amount_cents}'"
    );
    let rows = texts(&mut auditor, &query).await;
    assert_eq!(rows.len(), 1, "{rows:#?}");
    serde_json::from_str(&rows[0]).unwrap()
}

#[tokio::test]
async fn a_call_whose_commit_was_answered_into_the_void_is_sent_once() {
    let proxy = Proxy::start();
    let world = proxy.world(Setup::shipped()).await;
    send(world.refund(None, 100)).await.expect(201);
    proxy.arm(Which::Entries, AT_ONCE);
    send(world.refund(None, 101)).await.expect(201);
    proxy.has_struck().await;
    assert_eq!(world.received("POST /refunds"), 2);
    all_is_told(&world).await;
}

#[tokio::test]
async fn a_keyed_call_whose_commit_was_answered_into_the_void_is_sent_once() {
    let proxy = Proxy::start();
    let world = proxy.world(Setup::shipped()).await;
    send(world.refund(None, 100)).await.expect(201);
    proxy.arm(Which::CommitOfIntent, AT_ONCE);
    let keyed = || world.refund(None, 101).header("idempotency-key", "key-1");
    send(keyed()).await.expect(201);
    proxy.has_struck().await;
    send(keyed()).await.expect(201);
    assert_eq!(world.received("POST /refunds"), 2);
    all_is_told(&world).await;
}

#[tokio::test]
async fn a_keyed_call_that_was_given_up_before_its_commit_was_known_says_so() {
    let proxy = Proxy::start();
    let world = proxy.world(Setup::shipped()).await;
    send(world.refund(None, 100)).await.expect(201);
    let away = Duration::from_secs(13);
    proxy.arm(Which::CommitOfIntent, Plan::Lose { away });
    let keyed = || world.refund(None, 101).header("idempotency-key", "key-1");
    let answer = send(keyed()).await.problem(503, "record_unavailable");
    let call = answer.header("toolgate-call").to_owned();
    proxy.has_struck().await;
    tokio::time::sleep(away).await;
    let row = settled(&world, &call).await;
    assert_eq!(row["outcome"], "failed", "{row:#}");
    assert_eq!(row["executed"], false, "{row:#}");
    assert_eq!(row["reasons"], json!(["record_unavailable"]), "{row:#}");
    assert_eq!(world.state(&call).await["state"], "failed");
    // It certainly was not sent, so its key was given back: trying again is what the key is for.
    send(keyed()).await.expect(201);
    send(keyed()).await.expect(201);
    assert_eq!(world.received("POST /refunds"), 2);
    all_is_told(&world).await;
}

/// The call's row once it has an outcome.
async fn settled(world: &World, call: &str) -> Value {
    let mut auditor = world.connect("toolgate_auditor").await;
    let query = format!(
        "SELECT to_jsonb(c)::text FROM audit.calls AS c WHERE call_id = '{call}' AND outcome IS NOT NULL"
    );
    for _ in 0..500 {
        let rows = texts(&mut auditor, &query).await;
        if let [row] = &rows[..] {
            return serde_json::from_str(row).unwrap();
        }
        assert!(rows.is_empty(), "{rows:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{call} has no outcome");
}

#[tokio::test]
async fn an_approved_call_whose_claim_was_answered_into_the_void_is_sent_once() {
    let proxy = Proxy::start();
    let world = proxy.world(Setup::shipped()).await;
    send(world.refund(None, 100)).await.expect(201);
    let long = Duration::from_secs(12);
    for (number, which, away) in [
        (1, Which::Entries, Duration::ZERO),
        (2, Which::CommitOfIntent, Duration::ZERO),
        (3, Which::CommitOfIntent, long),
    ] {
        let (call, approval) = world.parked(None, 25_000 + number).await;
        let shown = world.shown("ada", &approval).await;
        let vote = world.operator(
            "ada",
            reqwest::Method::POST,
            &format!("/v1/approvals/{approval}/approve"),
        );
        let vote = vote.json(&json!({"digest": shown["digest"], "reason": "test"}));
        proxy.arm(which, Plan::Lose { away });
        let _ = send(vote).await;
        proxy.has_struck().await;
        tokio::time::sleep(away).await;
        for _ in 0..100 {
            let request = world.agent(reqwest::Method::GET, &format!("/v1/calls/{call}"));
            if send(request).await.body["state"] == "completed" {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(world.state(&call).await["state"], "completed");
        assert_eq!(world.received("POST /refunds"), u64::from(number) + 1);
        settled(&world, &call).await;
        all_is_told(&world).await;
        proxy.state.lock().unwrap().done = 0;
    }
}

#[tokio::test]
async fn a_call_whose_record_came_too_late_is_one_row_and_not_sent() {
    let proxy = Proxy::start();
    let world = proxy.world(Setup::shipped()).await;
    send(world.refund(None, 100)).await.expect(201);
    let by = Duration::from_secs(4);
    proxy.arm(Which::Entries, Plan::Late { by });
    let answer = send(world.refund(None, 101))
        .await
        .problem(503, "record_unavailable");
    proxy.has_struck().await;
    tokio::time::sleep(by).await;
    let row = settled(&world, answer.header("toolgate-call")).await;
    assert_eq!(row["executed"], false, "{row:#}");
    assert_eq!(row["reasons"], json!(["record_unavailable"]), "{row:#}");
    assert_eq!(only_call(&world, 101).await["call_id"], row["call_id"]);
    assert_eq!(world.received("POST /refunds"), 1);
    all_is_told(&world).await;
}

#[tokio::test]
async fn an_open_intent_is_looked_for_even_when_its_commit_was_learnt_of_late() {
    let proxy = Proxy::start();
    // An API that takes a call and never answers.
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", silent.local_addr().unwrap());
    let world = proxy
        .world(Setup::shipped().variable("DESK_URL", address))
        .await;
    // One that is lost, so that the statement is prepared; then the one that stays open.
    let warm_up = tokio::spawn(send(world.refund(None, 100)));
    drop(silent.accept().await.unwrap());
    warm_up.await.unwrap().problem(502, "indeterminate");
    let away = Duration::from_millis(1_200);
    proxy.arm(Which::Entries, Plan::Lose { away });
    let open = tokio::spawn(send(world.refund(None, 101)));
    let _held = silent.accept().await.unwrap();
    proxy.has_struck().await;
    let mut superuser = world.connect("superuser").await;
    let passed = "SELECT e.call_id FROM audit.entries AS e JOIN toolgate.instances AS i USING (instance_id)
                  WHERE e.kind = 'intent' AND i.settled_until > e.recorded_at
                    AND NOT EXISTS (SELECT FROM audit.entries AS o WHERE o.call_id = e.call_id AND o.kind = 'outcome')";
    for _ in 0..28 {
        let wrong = texts(&mut superuser, passed).await;
        assert!(
            wrong.is_empty(),
            "a restart would not look for {wrong:?}, which is still open"
        );
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    assert!(!open.is_finished());
    open.abort();
}
