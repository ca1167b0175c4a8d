//! An API that breaks connections at every step, over real TCP: what was certainly not sent, what nobody knows, and what is
//! tried again.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::support::{Setup, World, send};

/// What the API does with one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answers as it should.
    None,
    /// Resets before it has read anything.
    ResetUnread,
    /// Resets after this many bytes.
    ResetAfter(usize),
    /// Reads the whole request and resets.
    ResetAfterAll,
    /// Reads the whole request and closes in good order.
    Close,
    /// Reads the whole request and says nothing.
    Silence,
    /// Answers with the head and says nothing more.
    SilenceAfterHead,
    /// Says how long the answer is and sends less.
    Truncated,
    /// Sends more than the contract allows.
    TooLong,
    /// Sends more than the contract allows without saying so first.
    TooLongChunked,
    /// Interim answers before the real one.
    Interim,
    /// Interim answers and no real one.
    InterimAlone,
    /// No HTTP.
    Garbage,
}

/// The API, with everything that it received.
pub struct Faulty {
    pub address: SocketAddr,
    faults: Arc<Mutex<Vec<Fault>>>,
    /// Heads of requests, lower case, as far as they were read.
    pub heads: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Faulty {
    /// `faults` are those of the first connections that carry a request; the last one stays.
    pub async fn start(faults: &[Fault]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let faults = Arc::new(Mutex::new(faults.to_vec()));
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let serving = tokio::spawn({
            let (faults, heads) = (Arc::clone(&faults), Arc::clone(&heads));
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    tokio::spawn(serve(stream, Arc::clone(&faults), Arc::clone(&heads)));
                }
            }
        });
        Self {
            address,
            faults,
            heads,
            serving,
        }
    }

    pub fn set(&self, faults: &[Fault]) {
        *self.faults.lock() = faults.to_vec();
    }

    pub fn requests(&self) -> usize {
        self.heads.lock().len()
    }

    pub async fn has(&self, count: usize) {
        for _ in 0..2_000 {
            if self.requests() >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("{} requests", self.requests());
    }

    /// The values of one header in the order of the requests.
    pub fn header(&self, name: &str) -> Vec<String> {
        let heads = self.heads.lock();
        heads
            .iter()
            .map(|head| {
                head.lines()
                    .find_map(|line| line.strip_prefix(&format!("{name}: ")))
                    .unwrap_or_default()
                    .to_owned()
            })
            .collect()
    }

    /// Nobody listens there any more.
    pub async fn stop(&self) {
        self.serving.abort();
        while TcpStream::connect(self.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn reset(stream: TcpStream) {
    stream.set_zero_linger().unwrap();
    drop(stream);
}

fn next(faults: &Mutex<Vec<Fault>>) -> Fault {
    let mut faults = faults.lock();
    if faults.len() > 1 {
        faults.remove(0)
    } else {
        faults[0]
    }
}

async fn serve(
    mut stream: TcpStream,
    faults: Arc<Mutex<Vec<Fault>>>,
    heads: Arc<Mutex<Vec<String>>>,
) {
    loop {
        if *faults.lock().first().unwrap() == Fault::ResetUnread {
            next(&faults);
            return reset(stream);
        }
        let mut read = Vec::new();
        let mut part = [0; 4_096];
        // The head, then as much of the body as it says.
        let (head_ends, length) = loop {
            match stream.read(&mut part).await {
                Ok(0) | Err(_) => return,
                Ok(count) => read.extend_from_slice(&part[..count]),
            }
            // A TLS handshake, which this API does not speak.
            if read[0] == 0x16 {
                drop(stream.write_all(b"220 mail.example ESMTP\r\n").await);
                return;
            }
            if let Some(Fault::ResetAfter(count)) = faults.lock().first().copied()
                && read.len() >= count
            {
                break (0, 0);
            }
            let text = String::from_utf8_lossy(&read).to_lowercase();
            if let Some(end) = text.find("\r\n\r\n") {
                let length = text
                    .split("content-length: ")
                    .nth(1)
                    .map_or(0, |rest| rest.lines().next().unwrap().parse().unwrap());
                break (end + 4, length);
            }
        };
        let fault = next(&faults);
        while !matches!(fault, Fault::ResetAfter(_)) && read.len() < head_ends + length {
            match stream.read(&mut part).await {
                Ok(0) | Err(_) => return,
                Ok(count) => read.extend_from_slice(&part[..count]),
            }
        }
        heads
            .lock()
            .push(String::from_utf8_lossy(&read).to_lowercase());
        let body = json!({"refund": "rf_1", "customer": "c_1001", "amount_cents": 1, "currency": "EUR", "status": "succeeded"})
            .to_string();
        let whole = format!(
            "HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let text = match fault {
            Fault::None => whole,
            Fault::ResetUnread | Fault::ResetAfter(_) | Fault::ResetAfterAll => {
                return reset(stream);
            }
            Fault::Close => return,
            Fault::Silence => String::new(),
            Fault::SilenceAfterHead => {
                "HTTP/1.1 201 Created\r\ncontent-length: 100\r\n\r\n".to_owned()
            }
            Fault::Truncated => {
                "HTTP/1.1 201 Created\r\ncontent-length: 100\r\n\r\n{\"refund\":".to_owned()
            }
            Fault::TooLong => format!(
                "HTTP/1.1 201 Created\r\ncontent-length: 5000\r\n\r\n{}",
                " ".repeat(5_000)
            ),
            Fault::TooLongChunked => format!(
                "HTTP/1.1 201 Created\r\ntransfer-encoding: chunked\r\n\r\n1388\r\n{}\r\n0\r\n\r\n",
                " ".repeat(5_000)
            ),
            Fault::Interim => format!(
                "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </x>\r\n\r\n{whole}"
            ),
            Fault::InterimAlone => "HTTP/1.1 102 Processing\r\n\r\n".to_owned(),
            Fault::Garbage => "220 mail.example ESMTP\r\n".to_owned(),
        };
        if stream.write_all(text.as_bytes()).await.is_err() {
            return;
        }
        match fault {
            Fault::None | Fault::Interim => {}
            Fault::Silence | Fault::SilenceAfterHead => {
                tokio::time::sleep(Duration::from_secs(30)).await;
                return;
            }
            _ => return,
        }
    }
}

/// The desk's refunds behind that API, with a short time and a short answer.
pub fn setup(address: SocketAddr) -> Setup {
    Setup::shipped()
        .variable("DESK_URL", format!("http://{address}"))
        .tool(
            "desk.yaml",
            "body: { formats: [json, form] }",
            "limits: { timeout_ms: 1500, answer_bytes: 4096 }\n    body: { formats: [json, form] }",
        )
}

async fn outcome(world: &World, call: &str) -> Value {
    for _ in 0..500 {
        let row = world.call_row(call).await;
        if !row["outcome"].is_null() {
            return row;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{call} has no outcome");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_way_to_break_off_is_told_for_what_it_is() {
    use Fault::{
        Close, Garbage, Interim, InterimAlone, ResetAfter, ResetAfterAll, Silence,
        SilenceAfterHead, TooLong, TooLongChunked, Truncated,
    };
    let api = Faulty::start(&[Fault::None]).await;
    let world = setup(api.address).start().await;
    let unknown = (502, "indeterminate", "indeterminate", Value::Null);
    let late = (504, "upstream_timeout", "indeterminate", Value::Null);
    let too_long = (502, "upstream_answer_invalid", "failed", json!(true));
    let cases = [
        (Fault::None, (201, "", "completed", json!(true))),
        (Interim, (201, "", "completed", json!(true))),
        (ResetAfter(1), unknown.clone()),
        (ResetAfter(60), unknown.clone()),
        (ResetAfterAll, unknown.clone()),
        (Close, unknown.clone()),
        (InterimAlone, unknown.clone()),
        (Truncated, unknown),
        (Silence, late.clone()),
        (SilenceAfterHead, late),
        (TooLong, too_long.clone()),
        (TooLongChunked, too_long),
        (
            Garbage,
            (502, "upstream_answer_invalid", "indeterminate", Value::Null),
        ),
    ];
    for (number, (fault, (status, code, ended, executed))) in cases.into_iter().enumerate() {
        api.set(&[fault, Fault::None]);
        let answer = send(world.refund(None, 1)).await;
        assert_eq!(answer.status, status, "{fault:?} {}", answer.body);
        assert_eq!(answer.code(), code, "{fault:?}");
        let row = outcome(&world, answer.header("toolgate-call")).await;
        assert_eq!(row["outcome"], ended, "{fault:?} {row}");
        assert_eq!(row["executed"], executed, "{fault:?} {row}");
        // Money, and the API does not know it again: nothing that may have arrived is sent a second time.
        assert_eq!(api.requests(), number + 1, "{fault:?}");
        assert!(row["outcome_detail"]["tries"].is_null(), "{fault:?} {row}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_reached_is_certainly_not_sent_and_tried_again() {
    let api = Faulty::start(&[Fault::None]).await;
    let world = setup(api.address).start().await;
    api.stop().await;
    let answer = send(world.refund(None, 1))
        .await
        .problem(502, "upstream_unreachable");
    assert_eq!(answer.body["executed"], false);
    let row = outcome(&world, answer.header("toolgate-call")).await;
    assert_eq!(row["outcome"], "failed");
    assert_eq!(row["executed"], false);
    assert_eq!(row["forwarded_at"], Value::Null);
    let tries = &row["outcome_detail"]["tries"];
    assert_eq!(tries["count"], 3, "{row}");
    assert_eq!(tries["failed"].as_array().unwrap().len(), 3);
    assert!(tries["failed"][0]["failed_at"].is_string());

    // A payment that people approved, which the API would not know again: one try.
    let (call, approval) = world.parked(None, 20_000).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    let state = world.ended(&call).await;
    assert_eq!(state["code"], "upstream_unreachable");
    let row = outcome(&world, &call).await;
    assert!(row["outcome_detail"]["tries"].is_null(), "{row}");
    assert_eq!(api.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reset_before_anything_was_read_is_never_told_as_more_than_is_known() {
    let api = Faulty::start(&[Fault::ResetUnread]).await;
    let world = setup(api.address).start().await;
    for _ in 0..20 {
        let answer = send(world.refund(None, 1)).await.expect(502);
        let row = outcome(&world, answer.header("toolgate-call")).await;
        // Not one byte was read; whether one was written depends on who was faster.
        assert!(
            matches!(answer.code(), "upstream_unreachable" | "indeterminate"),
            "{}",
            answer.body
        );
        let certain = answer.code() == "upstream_unreachable";
        assert_eq!(
            row["executed"],
            if certain { json!(false) } else { Value::Null }
        );
        assert_eq!(api.requests(), 0);
    }
}

#[tokio::test]
async fn a_tls_handshake_that_fails_sent_nothing() {
    let api = Faulty::start(&[Fault::Garbage]).await;
    let directory =
        std::env::temp_dir().join(format!("tg-tls-{}", toolgate::ids::CallId::generate()));
    std::fs::create_dir(&directory).unwrap();
    let (key, ca) = (directory.join("key.pem"), directory.join("ca.pem"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ])
        .args(["-days", "2", "-subj", "/CN=localhost", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&ca)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let world = setup(api.address)
        .variable("DESK_URL", format!("https://{}", api.address))
        .config(
            "base_url: ${env:DESK_URL}",
            &format!("base_url: ${{env:DESK_URL}}\n    ca_file: {}", ca.display()),
        )
        .start()
        .await;
    let answer = send(world.refund(None, 1))
        .await
        .problem(502, "upstream_unreachable");
    let row = outcome(&world, answer.header("toolgate-call")).await;
    assert_eq!(row["executed"], false);
    assert_eq!(row["outcome_detail"]["tries"]["count"], 3);
    std::fs::remove_dir_all(directory).unwrap();
}

/// The same, with a header by which the API knows a request again.
fn recognised(address: SocketAddr) -> Setup {
    setup(address).tool(
        "desk.yaml",
        "body: { formats: [json, form] }",
        "idempotency_header: Idempotency-Key\n    body: { formats: [json, form] }",
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_api_knows_again_is_sent_again_with_the_same_key() {
    let api = Faulty::start(&[Fault::ResetAfterAll, Fault::Close, Fault::None]).await;
    let world = recognised(api.address).start().await;
    let answer = send(world.refund(None, 1)).await.expect(201);
    let call = answer.header("toolgate-call");
    assert_eq!(api.header("idempotency-key"), vec![call.to_lowercase(); 3]);
    let row = outcome(&world, call).await;
    assert_eq!(row["outcome"], "completed");
    assert_eq!(row["outcome_detail"]["tries"]["count"], 3, "{row}");

    // Each call has a key of its own, whatever key its agent uses, and a parked payment is tried again as well.
    api.set(&[Fault::Close, Fault::None]);
    let (parked, approval) = world.parked(None, 20_000).await;
    world.decide("ada", &approval, "approve").await.expect(200);
    assert_eq!(world.ended(&parked).await["state"], "completed");
    assert_eq!(
        api.header("idempotency-key")[3..],
        vec![parked.to_lowercase(); 2]
    );

    // The tries are bounded, and what may have arrived once is never said not to have been sent.
    api.set(&[Fault::Close]);
    send(world.refund(None, 1))
        .await
        .problem(502, "indeterminate");
    assert_eq!(api.requests(), 8);
    // What took all of the time is not tried again.
    api.set(&[Fault::Silence]);
    send(world.refund(None, 1))
        .await
        .problem(504, "upstream_timeout");
    assert_eq!(api.requests(), 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_may_have_arrived_stays_unknown_although_the_next_try_found_nobody() {
    let api = Faulty::start(&[Fault::Close]).await;
    let world = recognised(api.address).start().await;
    let calling = tokio::spawn(send(world.refund(None, 1)));
    api.has(1).await;
    api.stop().await;
    let answer = calling.await.unwrap().problem(502, "indeterminate");
    assert_eq!(answer.body["executed"], Value::Null);
    let row = outcome(&world, answer.header("toolgate-call")).await;
    assert_eq!(row["outcome"], "indeterminate");
    assert!(row["forwarded_at"].is_string());
    let why = row["outcome_detail"]["tries"]["failed"].to_string();
    assert!(why.contains("not sent") && why.contains("lost"), "{row}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_halt_stops_the_next_try() {
    let api = Faulty::start(&[Fault::Close]).await;
    let world = recognised(api.address).start().await;
    let calling = tokio::spawn(send(world.refund(None, 1)));
    api.has(1).await;
    // The pause before the second try is longer than a halt takes.
    world.halt(json!({"kind": "everything"})).await;
    let arrived = api.requests();
    let answer = calling.await.unwrap().problem(502, "indeterminate");
    assert_eq!(api.requests(), arrived, "sent after a halt");
    assert!(arrived < 3);
    let row = outcome(&world, answer.header("toolgate-call")).await;
    assert_eq!(row["outcome"], "indeterminate", "{row}");
}
