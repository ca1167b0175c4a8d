//! A receiver of webhooks, written on sockets so that it can misbehave: it is slow, fails, hangs up. It checks signatures with
//! an HMAC of its own.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// What it does with a request.
#[derive(Debug, Clone)]
pub enum Behaviour {
    /// Answers with this status line and these header lines.
    Answer(&'static str),
    /// Answers 200 after a while.
    Late(Duration),
    /// Closes the connection without an answer.
    HangUp,
}

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Got {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Got {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub fn id(&self) -> &str {
        self.headers.get("webhook-id").map_or("", String::as_str)
    }

    pub fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap_or_default().to_owned()
    }

    /// Whether one of the signatures is that of this secret, and the time of the try lies within five minutes of `now` (seconds
    /// since 1970), as Standard Webhooks has receivers look.
    pub fn verifies(&self, secret: &str, now: i64) -> bool {
        let timestamp = &self.headers["webhook-timestamp"];
        if (timestamp.parse::<i64>().unwrap() - now).abs() > 300 {
            return false;
        }
        let key = STANDARD
            .decode(secret.strip_prefix("whsec_").unwrap())
            .unwrap();
        let signed = format!("{}.{timestamp}.{}", self.id(), self.body);
        let right = format!("v1,{}", STANDARD.encode(hmac(&key, signed.as_bytes())));
        self.headers["webhook-signature"]
            .split(' ')
            .any(|signature| signature == right)
    }
}

/// HMAC-SHA-256 as RFC 2104 writes it down.
fn hmac(key: &[u8], text: &[u8]) -> Vec<u8> {
    assert!(key.len() <= 64);
    let pad = |with: u8| -> Vec<u8> {
        (0..64)
            .map(|at| key.get(at).copied().unwrap_or(0) ^ with)
            .collect()
    };
    let mut inner = pad(0x36);
    inner.extend_from_slice(text);
    let mut outer = pad(0x5c);
    outer.extend_from_slice(digest(&SHA256, &inner).as_ref());
    digest(&SHA256, &outer).as_ref().to_vec()
}

pub fn now() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    i64::try_from(now.unwrap().as_secs()).unwrap()
}

#[derive(Default)]
struct Shared {
    got: Mutex<Vec<Got>>,
    script: Mutex<VecDeque<Behaviour>>,
    otherwise: Mutex<Option<Behaviour>>,
}

pub struct Receiver {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Receiver {
    pub async fn start() -> Self {
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    pub async fn at(address: SocketAddr) -> Self {
        Self::listen(address, None).await
    }

    /// One that speaks TLS, with this certificate.
    pub async fn with_tls(config: Arc<rustls::ServerConfig>) -> Self {
        let tls = TlsAcceptor::from(config);
        Self::listen("127.0.0.1:0".parse().unwrap(), Some(tls)).await
    }

    async fn listen(address: SocketAddr, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let serving = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let (tls, shared) = (tls.clone(), Arc::clone(&shared));
                    tokio::spawn(async move {
                        match tls {
                            None => serve(stream, shared).await,
                            Some(tls) => {
                                // Whoever does not like the certificate goes.
                                if let Ok(stream) = tls.accept(stream).await {
                                    serve(stream, shared).await;
                                }
                            }
                        }
                    });
                }
            }
        });
        Self {
            address,
            shared,
            serving,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/hook?to=people", self.address)
    }

    /// What it does with the next requests; afterwards it answers 204 again.
    pub fn script(&self, behaviours: &[Behaviour]) {
        self.shared.script.lock().extend(behaviours.iter().cloned());
    }

    /// What it does when there is no script.
    pub fn always(&self, behaviour: Option<Behaviour>) {
        *self.shared.otherwise.lock() = behaviour;
    }

    pub fn got(&self) -> Vec<Got> {
        self.shared.got.lock().clone()
    }

    /// Waits for so many requests.
    pub async fn has(&self, count: usize) -> Vec<Got> {
        for _ in 0..1_000 {
            if self.got().len() >= count {
                return self.got();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!(
            "{} of {count} requests came: {:#?}",
            self.got().len(),
            self.got()
        );
    }

    /// Waits for the first request of a kind of event.
    pub async fn of(&self, kind: &str) -> Got {
        for _ in 0..1_000 {
            if let Some(got) = self.got().into_iter().find(|got| got.kind() == kind) {
                return got;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no {kind} came: {:#?}", self.got());
    }
}

async fn serve(mut stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let Some(got) = read(&mut stream).await else {
        return;
    };
    shared.got.lock().push(got);
    let scripted = shared.script.lock().pop_front();
    let behaviour = scripted.or_else(|| shared.otherwise.lock().clone());
    let answer = match behaviour {
        None => "204 No Content",
        Some(Behaviour::Answer(answer)) => answer,
        Some(Behaviour::Late(pause)) => {
            tokio::time::sleep(pause).await;
            "200 OK"
        }
        Some(Behaviour::HangUp) => return,
    };
    let length = if answer.starts_with("204") {
        ""
    } else {
        "\r\nContent-Length: 0"
    };
    let text = format!("HTTP/1.1 {answer}{length}\r\nConnection: close\r\n\r\n");
    // The gateway may have gone by now.
    drop(stream.write_all(text.as_bytes()).await);
    drop(stream.shutdown().await);
}

async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Option<Got> {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut lines = head.split("\r\n");
            let path = lines.next()?.split(' ').nth(1)?.to_owned();
            let headers: BTreeMap<String, String> = lines
                .filter_map(|line| line.split_once(": "))
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect();
            let length: usize = headers["content-length"].parse().unwrap();
            if body.len() >= length {
                return Some(Got {
                    path,
                    headers,
                    body: body.to_owned(),
                });
            }
        }
        let mut part = [0; 4096];
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
        }
    }
}
