//! Requests to whoever keeps checkpoints, over the same client that talks to APIs.

use std::{path::PathBuf, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri, header::CONTENT_TYPE};
use http_body_util::Full;

use crate::upstream::{self, Base, Gate, Halted, SendLimits, Upstream, UpstreamSettings};

/// The longest answer that is read; nothing in it matters.
const ANSWER_BYTES: usize = 64 * 1024;
pub(super) const NOTE_TYPE: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");

/// One server.
pub(super) struct Client {
    upstream: Upstream,
    timeout: Duration,
}

/// A kill switch stops calls; what became of them is told all the same.
struct Open;

impl Gate for Open {
    fn with_permission<R>(&self, send: impl FnOnce() -> R) -> Result<R, Halted> {
        Ok(send())
    }
}

impl Client {
    /// `base` is scheme, host and port.
    pub fn new(base: Base, ca_file: Option<&PathBuf>, timeout: Duration) -> Result<Self, String> {
        let tls = if base.https {
            let config = upstream::tls_config(ca_file.map(PathBuf::as_path));
            Some(config.map_err(|error| error.to_string())?)
        } else {
            None
        };
        let upstream = Upstream::new(UpstreamSettings {
            base,
            connect_timeout: timeout,
            idle_timeout: upstream::DEFAULT_IDLE_TIMEOUT,
            max_idle: 1,
            max_connections: 1,
            tls,
            addresses: upstream::Addresses::Any,
        });
        Ok(Self {
            upstream: upstream.map_err(|error| error.to_string())?,
            timeout,
        })
    }

    /// Sends a note and returns when the answer says that it is kept. `uri` is path and query. Sent twice, a note is the same
    /// note, so whatever failed may be tried again.
    pub async fn send(
        &self,
        method: Method,
        uri: Uri,
        mut headers: HeaderMap,
        note: &str,
    ) -> Result<(), String> {
        headers.insert(CONTENT_TYPE, NOTE_TYPE);
        let mut request = Request::new(Full::new(Bytes::copy_from_slice(note.as_bytes())));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let limits = SendLimits {
            timeout: self.timeout,
            max_answer_bytes: ANSWER_BYTES,
        };
        let answer = self.upstream.send(request, limits, &Open).await;
        let status = answer.map_err(|error| error.to_string())?.status;
        if status.is_success() {
            Ok(())
        } else {
            Err(format!("it answers with {status}"))
        }
    }
}
