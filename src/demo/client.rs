//! The few lines of an HTTP client that the demo plays agent and operator with.

use std::net::SocketAddr;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::TokioIo;
use serde_json::Value;

/// An answer.
pub(super) struct Answer {
    pub status: u16,
    pub body: Value,
}

/// GET with a bearer key.
pub(super) async fn get(address: SocketAddr, path: &str, key: &str) -> anyhow::Result<Answer> {
    send(address, Method::GET, path, key, &[], None).await
}

/// Any request with a bearer key and a JSON body.
pub(super) async fn send(
    address: SocketAddr,
    method: Method,
    path: &str,
    key: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> anyhow::Result<Answer> {
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .with_context(|| format!("nothing listens on {address}"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let driving = tokio::spawn(connection);
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", address.to_string())
        .header("authorization", format!("Bearer {key}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map(ToString::to_string).unwrap_or_default();
    let response = sender
        .send_request(request.body(Full::new(Bytes::from(body)))?)
        .await?;
    let (parts, body) = response.into_parts();
    let bytes = body.collect().await?.to_bytes();
    drop(sender);
    driving.abort();
    let body = serde_json::from_slice(&bytes)
        .unwrap_or_else(|_not_json| Value::String(String::from_utf8_lossy(&bytes).into_owned()));
    Ok(Answer {
        status: parts.status.as_u16(),
        body,
    })
}
