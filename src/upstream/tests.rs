//! The client against real sockets: hand-written servers that answer well, badly, late or not at all.

mod answers;
mod gates;
mod pooling;
mod server;
mod streaming;
mod tls;

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;

use super::{
    Answer, Base, DEFAULT_IDLE_TIMEOUT, Gate, Halted, SendError, SendLimits, StreamLimits,
    Upstream, UpstreamSettings,
};

/// Lets everything through.
struct Open;

impl Gate for Open {
    fn with_permission<R>(&self, send: impl FnOnce() -> R) -> Result<R, Halted> {
        Ok(send())
    }
}

const LIMITS: SendLimits = SendLimits {
    timeout: Duration::from_secs(5),
    max_answer_bytes: 1000,
};

const STREAM_LIMITS: StreamLimits = StreamLimits {
    head_timeout: Duration::from_secs(5),
    idle_timeout: Duration::from_secs(5),
    max_bytes: 1000,
};

fn settings(base: &str) -> UpstreamSettings {
    UpstreamSettings {
        addresses: super::Addresses::Any,
        base: Base::parse(base).unwrap(),
        connect_timeout: Duration::from_secs(2),
        idle_timeout: DEFAULT_IDLE_TIMEOUT,
        max_idle: 16,
        max_connections: 64,
        tls: None,
    }
}

fn upstream(port: u16) -> Upstream {
    Upstream::new(settings(&format!("http://127.0.0.1:{port}/base"))).unwrap()
}

fn post(body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::POST)
        .uri("/things?a=b")
        .body(Full::new(body.into()))
        .unwrap()
}

async fn send(upstream: &Upstream) -> Result<Answer<Bytes>, SendError> {
    upstream.send(post("{}"), LIMITS, &Open).await
}

/// Long enough for the other side's packets to have been noticed.
async fn settle_down() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

#[test]
fn futures_can_move_between_threads() {
    fn is_send<T: Send>(_: T) {}
    let upstream = upstream(1);
    is_send(upstream.send(post(""), LIMITS, &Open));
    is_send(upstream.send_streaming(post(""), STREAM_LIMITS, &Open, |_| ()));
}
