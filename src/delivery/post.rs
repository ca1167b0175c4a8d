//! One POST to one receiver, through the gateway's own HTTP client: the address that a name resolved to is checked and connected
//! to, no redirect is followed, nothing is sent twice by itself.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;

use super::Failed;
use crate::{
    config::Endpoint,
    upstream::{self, Gate, Halted, SendError, SendLimits, Upstream, UpstreamSettings},
};

/// Of what a receiver answers only the status counts.
const MAX_ANSWER_BYTES: usize = 64 * 1024;
/// The longest pause that a receiver may ask for, in seconds.
const RETRY_AFTER_MOST: u64 = 86_400;

/// A client for one URL.
pub(super) struct Post {
    upstream: Upstream,
    path: Uri,
    timeout: Duration,
}

/// Messages tell people of a halt, so no halt stops them.
struct Open;

impl Gate for Open {
    fn with_permission<R>(&self, send: impl FnOnce() -> R) -> Result<R, Halted> {
        Ok(send())
    }
}

impl Post {
    /// Connects to nothing yet.
    ///
    /// # Errors
    /// A sentence, without the URL's path, which may be a secret.
    pub(super) fn new(
        endpoint: &Endpoint,
        timeout: Duration,
        connections: usize,
    ) -> Result<Self, String> {
        let tls = if endpoint.base.https {
            let config = upstream::tls_config(endpoint.ca_file.as_deref());
            Some(config.map_err(|error| error.to_string())?)
        } else {
            None
        };
        let upstream = Upstream::new(UpstreamSettings {
            base: endpoint.base.clone(),
            addresses: endpoint.addresses,
            connect_timeout: timeout,
            // Each message connects anew, so that each time the address is looked at.
            idle_timeout: Duration::ZERO,
            max_idle: 1,
            max_connections: connections,
            tls,
        })
        .map_err(|error| error.to_string())?;
        let path = Uri::try_from(endpoint.path.expose())
            .map_err(|_invalid| "the path of the URL cannot be sent".to_owned())?;
        Ok(Self {
            upstream,
            path,
            timeout,
        })
    }

    pub(super) async fn send(&self, headers: HeaderMap, body: Bytes) -> Result<(), Failed> {
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = headers;
        let headers = request.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/json"),
        );
        headers.insert(header::USER_AGENT, HeaderValue::from_static("toolgate"));
        let limits = SendLimits {
            timeout: self.timeout,
            max_answer_bytes: MAX_ANSWER_BYTES,
        };
        let sent = self.upstream.send(request, limits, &Open).await;
        self.upstream.close_stale();
        match sent {
            Ok(answer) => judge(answer.status, &answer.headers),
            // The receiver has it; what it said besides the status is nobody's concern.
            Err(
                SendError::AnswerTooLarge { status }
                | SendError::AnswerInvalid {
                    status: Some(status),
                    ..
                },
            ) => judge(status, &HeaderMap::new()),
            Err(error) => Err(Failed::because(error.to_string())),
        }
    }
}

/// What a status means, by Standard Webhooks 1.0.0: 2xx is success, everything else is not, 410 wants nothing more.
fn judge(status: StatusCode, headers: &HeaderMap) -> Result<(), Failed> {
    if status.is_success() {
        return Ok(());
    }
    let error = if status.is_redirection() {
        format!(
            "the receiver answered {}: redirects are not followed",
            status.as_u16()
        )
    } else {
        format!("the receiver answered {}", status.as_u16())
    };
    let retry_after = headers
        .get(header::RETRY_AFTER)
        .and_then(|value| value.to_str().ok()?.trim().parse().ok())
        .map(|seconds: u64| Duration::from_secs(seconds.min(RETRY_AFTER_MOST)));
    Err(Failed {
        error,
        retry_after,
        is_gone: status == StatusCode::GONE,
    })
}
