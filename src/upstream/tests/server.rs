//! A server whose every byte the test decides, on threads of its own: it goes on while a client's task is stuck.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

pub(super) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[derive(Default)]
pub(super) struct Seen {
    connections: AtomicUsize,
    begun: AtomicUsize,
    requests: AtomicUsize,
}

pub(super) struct Server {
    pub(super) port: u16,
    seen: Arc<Seen>,
}

pub(super) struct Client {
    pub(super) stream: TcpStream,
    /// Which connection this is, from 0.
    pub(super) index: usize,
    seen: Arc<Seen>,
}

impl Server {
    /// Runs `handle` for every connection, each on its thread.
    pub(super) fn start(handle: impl Fn(Client) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::new(Seen::default());
        let handle = Arc::new(handle);
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let client = Client {
                    stream: stream.unwrap(),
                    index: shared.connections.fetch_add(1, Ordering::SeqCst),
                    seen: Arc::clone(&shared),
                };
                let handle = Arc::clone(&handle);
                thread::spawn(move || handle(client));
            }
        });
        Self { port, seen }
    }

    /// Answers every request on every connection with the same bytes.
    pub(super) fn always(answer: &'static str) -> Self {
        Self::start(move |mut client| {
            while client.request().is_some() {
                client.say(answer);
            }
        })
    }

    /// Answers one request per connection and closes it.
    pub(super) fn once(answer: &'static str) -> Self {
        Self::start(move |mut client| {
            client.request();
            client.say(answer);
        })
    }

    pub(super) fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Requests of which at least one byte arrived.
    pub(super) fn begun(&self) -> usize {
        self.seen.begun.load(Ordering::SeqCst)
    }

    /// Requests that arrived whole.
    pub(super) fn requests(&self) -> usize {
        self.seen.requests.load(Ordering::SeqCst)
    }
}

impl Client {
    /// The next whole request, head and body; `None` at the connection's end.
    pub(super) fn request(&mut self) -> Option<String> {
        let mut text = Vec::new();
        let mut byte = [0_u8];
        while !text.ends_with(b"\r\n\r\n") {
            if self.stream.read(&mut byte).ok()? == 0 {
                return None;
            }
            if text.is_empty() {
                self.seen.begun.fetch_add(1, Ordering::SeqCst);
            }
            text.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&text).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).ok()?;
        self.seen.requests.fetch_add(1, Ordering::SeqCst);
        text.extend(body);
        Some(String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits until a request begins, and leaves it unread.
    pub(super) fn await_first_byte(&self) {
        let _ = self.stream.peek(&mut [0]);
    }

    pub(super) fn say(&mut self, bytes: &str) {
        // The other side may be gone; the test will say what it makes of that.
        let _ = self.stream.write_all(bytes.as_bytes());
    }

    /// Keeps the connection open, silently, until the other side closes it.
    pub(super) fn hold(&mut self) {
        let mut rest = [0_u8; 4096];
        while self.stream.read(&mut rest).is_ok_and(|length| length > 0) {}
    }
}

pub(super) fn pause(millis: u64) {
    thread::sleep(Duration::from_millis(millis));
}
