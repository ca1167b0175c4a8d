//! Bytes on a socket: requests that no client library would send, and an API whose every byte the test decides.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Notify,
    time::timeout,
};

/// Longer than anything that is to happen takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client's connection.
pub struct Wire {
    stream: TcpStream,
    unread: Vec<u8>,
}

/// One answer as it stood on the wire.
#[derive(Debug)]
pub struct Raw {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Raw {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .filter_map(|line| line.split_once(':'))
            .find(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim())
    }

    /// The problem's code; empty where the body is no problem document.
    pub fn code(&self) -> String {
        serde_json::from_str::<serde_json::Value>(&self.body)
            .ok()
            .and_then(|body| Some(body.get("code")?.as_str()?.to_owned()))
            .unwrap_or_default()
    }
}

impl Wire {
    pub async fn open(address: SocketAddr) -> Self {
        Self {
            stream: TcpStream::connect(address).await.unwrap(),
            unread: Vec::new(),
        }
    }

    /// Opens a connection, sends, and reads the first answer.
    pub async fn ask(address: SocketAddr, bytes: impl AsRef<[u8]>) -> Raw {
        let mut wire = Self::open(address).await;
        wire.send(bytes).await;
        wire.answer().await.expect("an answer")
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        // The other side may have closed already; what it said will tell.
        let _ = self.stream.write_all(bytes.as_ref()).await;
    }

    async fn more(&mut self) -> bool {
        let mut part = [0; 16_384];
        let read = timeout(PATIENCE, self.stream.read(&mut part))
            .await
            .expect("an answer or an end in time");
        let length = read.unwrap_or(0);
        self.unread.extend_from_slice(&part[..length]);
        length > 0
    }

    /// The next answer; `None` at the end of the connection.
    pub async fn answer(&mut self) -> Option<Raw> {
        let end = loop {
            let found = self.unread.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(at) = found {
                break at + 4;
            }
            if !self.more().await {
                return None;
            }
        };
        let head = String::from_utf8_lossy(&self.unread[..end]).into_owned();
        self.unread.drain(..end);
        let raw = Raw {
            status: head[9..12].parse().unwrap(),
            head,
            body: String::new(),
        };
        let length: usize = raw
            .header("content-length")
            .map_or(0, |text| text.parse().unwrap());
        while self.unread.len() < length && self.more().await {}
        let body: Vec<u8> = self.unread.drain(..length.min(self.unread.len())).collect();
        Some(Raw {
            body: String::from_utf8_lossy(&body).into_owned(),
            ..raw
        })
    }

    /// Waits until the text has come, and takes everything up to its end.
    pub async fn until(&mut self, text: &str) {
        loop {
            let found = self
                .unread
                .windows(text.len())
                .position(|part| part == text.as_bytes());
            if let Some(at) = found {
                self.unread.drain(..at + text.len());
                return;
            }
            assert!(self.more().await, "the connection ended before {text:?}");
        }
    }

    /// Everything up to the connection's end.
    pub async fn rest(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.unread)).into_owned()
    }

    /// Waits for the connection's end. False if anything more comes first.
    pub async fn ends(&mut self) -> bool {
        self.unread.is_empty() && !self.more().await
    }

    /// Whether nothing at all comes for a while.
    pub async fn is_silent_for(&mut self, while_: Duration) -> bool {
        let mut part = [0; 1];
        self.unread.is_empty() && timeout(while_, self.stream.peek(&mut part)).await.is_err()
    }
}

/// What the API does with one request.
#[derive(Clone)]
pub enum Act {
    /// Answers, and takes the next request.
    Say(String),
    /// Answers, and closes.
    SayAndClose(String),
    /// Closes without a word.
    Close,
    /// Never answers.
    Silence,
    /// Answers the first part; the second once it is told to, and closes.
    Halves(String, Arc<Notify>, String),
}

/// An answer with a JSON body.
pub fn json_answer(status: &str, headers: &str, body: &str) -> Act {
    let length = body.len();
    Act::Say(format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
    ))
}

/// An API that keeps what it got, to the byte.
pub struct RawApi {
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for RawApi {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl RawApi {
    /// `act` is asked with each whole request.
    pub async fn start(act: impl Fn(&str) -> Act + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (kept, act) = (Arc::clone(&requests), Arc::new(act));
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, Arc::clone(&kept), Arc::clone(&act)));
            }
        });
        Self {
            address,
            requests,
            serving,
        }
    }

    /// Takes every request that has come since the last time.
    pub fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    /// The one request that has come since the last time.
    #[track_caller]
    pub fn request(&self) -> String {
        let mut requests = self.requests();
        assert_eq!(requests.len(), 1, "{requests:#?}");
        requests.remove(0)
    }
}

async fn serve(
    mut stream: TcpStream,
    kept: Arc<Mutex<Vec<String>>>,
    act: Arc<impl Fn(&str) -> Act>,
) {
    while let Some(request) = request(&mut stream).await {
        let next = act(&request);
        kept.lock().unwrap().push(request);
        let goes_on = match next {
            Act::Say(text) => stream.write_all(text.as_bytes()).await.is_ok(),
            Act::SayAndClose(text) => {
                let _ = stream.write_all(text.as_bytes()).await;
                false
            }
            Act::Close => false,
            Act::Silence => {
                tokio::time::sleep(PATIENCE).await;
                false
            }
            Act::Halves(first, told, second) => {
                let _ = stream.write_all(first.as_bytes()).await;
                told.notified().await;
                let _ = stream.write_all(second.as_bytes()).await;
                false
            }
        };
        if !goes_on {
            return;
        }
    }
}

/// One whole request: what the gateway sends is plain, so a length or nothing says where it ends.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n\r\n") {
        bytes.push(stream.read_u8().await.ok()?);
    }
    let head = String::from_utf8_lossy(&bytes).to_lowercase();
    assert!(!head.contains("transfer-encoding"), "{head}");
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.ok()?;
    bytes.extend(body);
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
