//! Whose turn it is: a gateway that was cut off from its database, or is stopping, sends nothing once another may have begun, and
//! never goes on with what it remembers.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::Row as _;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::Notify,
};
use toolgate::tenure::TENURE;

use crate::{
    crash::{Place, Running},
    support::{Setup, World, send, server_directory, start_gateway},
};

/// The way to the database, which can be cut and mended.
struct Cable {
    directory: PathBuf,
    is_cut: Arc<AtomicBool>,
    cut: Arc<Notify>,
}

impl Cable {
    fn lay() -> Self {
        let name = format!("toolgate-cable-{}", toolgate::ids::CallId::generate());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory).unwrap();
        let listener = UnixListener::bind(directory.join(".s.PGSQL.5432")).unwrap();
        let (is_cut, cut) = (Arc::new(AtomicBool::new(false)), Arc::new(Notify::new()));
        tokio::spawn({
            let (is_cut, cut) = (Arc::clone(&is_cut), Arc::clone(&cut));
            async move {
                loop {
                    let (mut client, _) = listener.accept().await.unwrap();
                    if is_cut.load(Ordering::Acquire) {
                        continue;
                    }
                    let cut = Arc::clone(&cut);
                    tokio::spawn(async move {
                        let path = format!("{}/.s.PGSQL.5432", server_directory());
                        let mut server = UnixStream::connect(path).await.unwrap();
                        tokio::select! {
                            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                            () = cut.notified() => {}
                        }
                    });
                }
            }
        });
        Self {
            directory,
            is_cut,
            cut,
        }
    }

    fn cut(&self) {
        self.is_cut.store(true, Ordering::Release);
        self.cut.notify_waiters();
    }

    fn mend(&self) {
        self.is_cut.store(false, Ordering::Release);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// An API that answers nobody before it is told to, and remembers what it was asked.
struct Slow {
    url: String,
    amounts: Arc<Mutex<Vec<u64>>>,
    go: Arc<tokio::sync::Semaphore>,
}

impl Slow {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let amounts: Arc<Mutex<Vec<u64>>> = Arc::default();
        let go = Arc::new(tokio::sync::Semaphore::new(0));
        tokio::spawn({
            let (amounts, go) = (Arc::clone(&amounts), Arc::clone(&go));
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(answer(stream, Arc::clone(&amounts), Arc::clone(&go)));
                }
            }
        });
        Self { url, amounts, go }
    }

    async fn has(&self, count: usize) {
        until("the API has the requests", async || {
            self.amounts.lock().len() >= count
        })
        .await;
    }

    fn release(&self) {
        self.go.add_permits(100);
    }

    fn amounts(&self) -> Vec<u64> {
        self.amounts.lock().clone()
    }
}

async fn answer(
    mut stream: TcpStream,
    amounts: Arc<Mutex<Vec<u64>>>,
    go: Arc<tokio::sync::Semaphore>,
) {
    let mut read = Vec::new();
    let mut part = [0; 4_096];
    loop {
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => return,
            Ok(count) => read.extend_from_slice(&part[..count]),
        }
        let text = String::from_utf8_lossy(&read).into_owned();
        let Some((_, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let Ok(body) = serde_json::from_str::<Value>(body) else {
            continue;
        };
        read.clear();
        amounts.lock().push(body["amount_cents"].as_u64().unwrap());
        go.acquire().await.unwrap().forget();
        let body = json!({"refund": "rf_1", "customer": "c_1001", "amount_cents": 1, "currency": "EUR", "status": "succeeded"}).to_string();
        let whole = format!(
            "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        if stream.write_all(whole.as_bytes()).await.is_err() {
            return;
        }
    }
}

async fn until(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    for _ in 0..6_000 {
        if is_so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("waited in vain until {what}");
}

/// One connection to the API, so that a second call waits with its intent recorded.
fn one_connection(api: &Slow) -> Setup {
    Setup::shipped()
        .variable("DESK_URL", api.url.clone())
        .config(
            "    base_url: ${env:DESK_URL}\n",
            "    base_url: ${env:DESK_URL}\n    max_connections: 1\n",
        )
        .tool(
            "desk.yaml",
            "  - name: desk.refunds.create\n",
            "  - name: desk.refunds.create\n    limits: { timeout_ms: 60000 }\n",
        )
}

/// A call that is being answered, and one that is recorded and waits to be sent.
async fn one_sent_one_waiting(
    world: &World,
    api: &Slow,
) -> [tokio::task::JoinHandle<crate::support::Answer>; 2] {
    let first = tokio::spawn(send(world.refund(None, 10)));
    api.has(1).await;
    let second = tokio::spawn(send(world.refund(None, 11)));
    until("both intents stand", async || {
        let rows = world
            .audit("SELECT count(*) AS count FROM audit.entries WHERE kind = 'intent'")
            .await;
        rows[0].get::<i64, _>("count") == 2
    })
    .await;
    [first, second]
}

#[tokio::test]
async fn a_gateway_whose_place_was_taken_sends_nothing_more_and_ends() {
    let (api, cable) = (Slow::start().await, Cable::lay());
    let direct = one_connection(&api);
    let mut through = direct.clone();
    through.through = Some(cable.directory.display().to_string());
    let world = through.start().await;
    let [first, second] = one_sent_one_waiting(&world, &api).await;

    cable.cut();
    let began = Instant::now();
    let next = start_gateway(&direct, &world.database, &world.desk)
        .await
        .unwrap();
    // It cannot know that the one before, which lives, has noticed.
    assert!(began.elapsed() >= TENURE, "{:?}", began.elapsed());
    let halts = format!("http://{}/v1/kill-switches", next.operators);
    let halt = |method: Method, path: &str| {
        let request = world.http.request(method, format!("{halts}{path}"));
        request.bearer_auth(world.keys["ada"].expose())
    };
    let everything = json!({"scope": {"kind": "everything"}, "reason": "stop it all"});
    let halted = send(halt(Method::POST, "").json(&everything)).await;
    assert_eq!(halted.status, 201, "{}", halted.body);
    assert_eq!(halted.body["recorded"], true);

    // The connection is free now, and what waited for it must not take it.
    api.release();
    let second = second.await.unwrap().problem(503, "record_unavailable");
    assert_eq!(second.body["executed"], false, "{}", second.body);
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(api.amounts(), [10]);

    // The other one goes, and the lock is there to be had again: but not for what was before the halt.
    next.stop().await;
    cable.mend();
    let ended = tokio::time::timeout(Duration::from_secs(20), world.gateway.ended()).await;
    let why = ended.unwrap().unwrap_err().to_string();
    assert!(why.contains("another gateway has served"), "{why}");
    send(world.refund(None, 12))
        .await
        .problem(503, "record_unavailable");
    assert_eq!(api.amounts(), [10]);
    world.gateway.stop().await;

    let again = start_gateway(&direct, &world.database, &world.desk)
        .await
        .unwrap();
    let held = format!("http://{}/v1/kill-switches", again.operators);
    let held = world.http.get(held).bearer_auth(world.keys["ada"].expose());
    let held = send(held).await.expect(200);
    assert_eq!(held.body["data"].as_array().unwrap().len(), 1);
    again.stop().await;
}

#[tokio::test]
async fn a_gateway_that_was_stopped_sends_nothing_of_what_it_left_behind() {
    let api = Slow::start().await;
    let mut setup = one_connection(&api);
    setup
        .config
        .push_str("\nlimits: { shutdown_timeout_seconds: 1 }\n");
    let world = setup.start().await;
    let [first, second] = one_sent_one_waiting(&world, &api).await;
    let World {
        gateway,
        setup,
        database,
        desk,
        ..
    } = world;
    gateway.stop().await;
    let began = Instant::now();
    let next = start_gateway(&setup, &database, &desk).await.unwrap();
    // The one before has said that it sends nothing more.
    assert!(began.elapsed() < TENURE, "{:?}", began.elapsed());
    api.release();
    let second = second.await.unwrap();
    assert_eq!(second.status, 503, "{}", second.body);
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(api.amounts(), [10]);
    next.stop().await;
}

#[tokio::test]
async fn an_agent_that_holds_as_many_connections_as_it_may_is_answered_at_once() {
    let mut setup = Setup::shipped();
    setup
        .config
        .push_str("\nlimits: { max_waits_per_agent: 2 }\n");
    let world = setup.start().await;
    let run = world.run().await;
    let wait = || {
        let request = world.refund(Some(&run), 60_000);
        send(request.header("prefer", "wait=60"))
    };
    let (first, second) = (tokio::spawn(wait()), tokio::spawn(wait()));
    tokio::time::sleep(Duration::from_secs(1)).await;
    for waits in [&first, &second] {
        assert!(!waits.is_finished(), "it does not wait");
    }
    let began = Instant::now();
    let third = wait().await.problem(403, "approval_required");
    assert!(began.elapsed() < Duration::from_secs(20));
    let approval = third.body["approval"].as_str().unwrap();
    world.decide("ada", approval, "approve").await.expect(200);
    for waited in [first, second] {
        waited.await.unwrap().expect(201);
    }
    // Their places are free again.
    let again = tokio::spawn(wait());
    assert_eq!(again.await.unwrap().status, 201);
}

#[tokio::test]
async fn agents_connections_leave_operators_their_file_descriptors() {
    let place = Place::new();
    place.write_config();
    let variables = place.variables("http://127.0.0.1:9".to_owned());
    let config = place.config();
    let running = Running::start_under(
        &["prlimit", "--nofile=700:700"],
        &["serve", "--config", config.to_str().unwrap()],
        &variables,
    )
    .await;
    let mut idle = Vec::new();
    // As many as are accepted, and those that the system keeps waiting.
    while let Ok(Ok(stream)) = tokio::time::timeout(
        Duration::from_millis(500),
        TcpStream::connect(running.agents),
    )
    .await
    {
        idle.push(stream);
        assert!(idle.len() < 2_000, "nothing is refused");
    }
    let began = Instant::now();
    let lives = reqwest::Client::builder()
        .no_proxy()
        .build()
        .unwrap()
        .get(format!("http://{}/livez", running.operators))
        .timeout(Duration::from_secs(10))
        .send()
        .await
        .unwrap();
    assert_eq!(lives.status(), 200);
    assert!(began.elapsed() < Duration::from_secs(5));
    assert!(idle.len() > 100, "{}", idle.len());
}
