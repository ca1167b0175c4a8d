//! Sends a call that was decided and recorded to its API, and says for certain whether it was sent.
//!
//! Two promises rest on this module. *Nothing is sent after a halt was acknowledged*: the bytes of a request leave
//! only inside [`Gate::with_permission`]. *One knows whether a request was sent*: every error says so, and only a
//! request that was handed back unsent by a connection that had died while idle is tried again, once.
//!
//! The path of a request:
//! 1. `pool`: wait for the right to a connection, take the most recently used idle one or have one opened;
//! 2. `connect`: resolve, connect to just those addresses, TLS;
//! 3. `exchange`: past the gate, write the request in one synchronous step; then drive the connection until the
//!    answer's head is there;
//! 4. `answer` and `headers`: refuse what is not a plain HTTP/1.1 answer, strip what is not the agent's;
//! 5. `exchange::collect` or `body`: the whole body, or a stream of it; then the connection goes back to the pool.
//!
//! It never follows a redirect, reads a proxy variable, decompresses, or repeats a request that may have been sent.

mod addresses;
mod answer;
mod base;
mod body;
mod connect;
mod error;
mod exchange;
mod headers;
mod pool;
#[cfg(test)]
mod tests;
mod wire;

use std::{borrow::Cow, future::Future, pin::Pin, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::TlsConnector;

pub use self::{
    addresses::{Addresses, is_public},
    answer::Answer,
    base::{Base, BaseError},
    body::{StreamError, StreamingBody},
    connect::{TlsError, tls_config},
    error::{SendError, SettingsError},
    headers::strip_hop_by_hop,
};
use self::{
    answer::check,
    connect::Target,
    error::not_sent,
    exchange::{Failure, Live, Outgoing},
    pool::{Lease, Pool},
};

/// Below the 5 s after which Node's HTTP server closes an idle connection.
pub const DEFAULT_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Lets a request out, or not. Implemented by the kill switch.
pub trait Gate: Sync {
    /// Runs `send` with permission held for as long as it runs, or refuses without running it. A halt may be
    /// acknowledged only after every `send` that began before it has returned. `send` is short and never blocks;
    /// it may be called several times for one large request, and a refusal then cuts the request off.
    fn with_permission<R>(&self, send: impl FnOnce() -> R) -> Result<R, Halted>;
}

/// The gate refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Halted;

/// What an [`Upstream`] is made of.
#[derive(Debug, Clone)]
pub struct UpstreamSettings {
    /// Where the API is.
    pub base: Base,
    /// Where it may be.
    pub addresses: Addresses,
    /// How long resolving, connecting and the TLS handshake may take together.
    pub connect_timeout: Duration,
    /// After this long without use a connection is closed; must be shorter than the API's own such time.
    pub idle_timeout: Duration,
    /// How many connections are kept for later at most.
    pub max_idle: usize,
    /// How many connections are open at most; further requests wait.
    pub max_connections: usize,
    /// Needed for https; see [`tls_config`].
    pub tls: Option<Arc<ClientConfig>>,
}

/// Bounds of one buffered exchange.
#[derive(Debug, Clone, Copy)]
pub struct SendLimits {
    /// From the call until the whole answer is there, waiting for a connection included.
    pub timeout: Duration,
    /// The largest body that is accepted.
    pub max_answer_bytes: usize,
}

/// Bounds of one streamed exchange.
#[derive(Debug, Clone, Copy)]
pub struct StreamLimits {
    /// From the call until the head of the answer is there.
    pub head_timeout: Duration,
    /// The longest silence between two frames while somebody reads.
    pub idle_timeout: Duration,
    /// The largest body that is passed on.
    pub max_bytes: u64,
}

/// How a streamed body ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamEnd {
    /// The API sent it whole.
    Complete,
    /// The API broke it off, fell silent, or sent too much; the reason is safe for logs.
    Truncated(Cow<'static, str>),
    /// Whoever read it went away first.
    DroppedByReader,
}

/// The client of one API. Clones share their connections. Connections live on the runtime that opened them, so each
/// runtime has an `Upstream` of its own.
#[derive(Clone)]
pub struct Upstream {
    shared: Arc<Shared>,
}

struct Shared {
    target: Target,
    base_path: String,
    host_header: HeaderValue,
    pool: Arc<Pool>,
}

/// A connection in use. Dropped, it is closed: only [`Connected::give_back`] keeps it. The fields' order matters: the
/// socket is closed before the right to it is given up.
struct Connected {
    live: Live,
    lease: Lease,
}

impl Connected {
    fn give_back(self) {
        self.lease.give_back(self.live);
    }
}

impl Upstream {
    /// Checks the settings. Connects to nothing yet.
    pub fn new(settings: UpstreamSettings) -> Result<Self, SettingsError> {
        let base = settings.base;
        let tls = match (base.https, settings.tls) {
            (false, _) => None,
            (true, None) => return Err(SettingsError::TlsMissing),
            (true, Some(config)) => {
                let name = ServerName::try_from(base.host.clone())
                    .map_err(|_| SettingsError::ServerName(base.host.clone()))?;
                Some((TlsConnector::from(config), name))
            }
        };
        let host_header = HeaderValue::try_from(base.host_header())
            .map_err(|_| SettingsError::HostHeader(base.host.clone()))?;
        Ok(Self {
            shared: Arc::new(Shared {
                target: Target {
                    host: base.host,
                    port: base.port,
                    addresses: settings.addresses,
                    tls,
                    connect_timeout: settings.connect_timeout,
                },
                base_path: base.base_path,
                host_header,
                pool: Arc::new(Pool::new(
                    settings.idle_timeout,
                    settings.max_idle,
                    settings.max_connections,
                )),
            }),
        })
    }

    /// Sends a request and reads the whole answer. Of the request's URI only path and query count; they follow the
    /// base URL's path. Dropping the future closes the connection; what was sent by then stays sent.
    pub async fn send(
        &self,
        request: Request<Full<Bytes>>,
        limits: SendLimits,
        gate: &impl Gate,
    ) -> Result<Answer<Bytes>, SendError> {
        let mut deadline = pin!(sleep(limits.timeout));
        let (mut connected, response) = self.begin(request, gate, deadline.as_mut()).await?;
        let limit = limits.max_answer_bytes;
        let (status, headers, body) = check(response, limit as u64)?;
        let body = exchange::collect(&mut connected.live, body, limit, gate, deadline)
            .await?
            .ok_or(SendError::AnswerTooLarge { status })?;
        connected.give_back();
        Ok(Answer {
            status,
            headers,
            body,
        })
    }

    /// Sends a request and returns as soon as the head of the answer is there. `on_end` is called exactly once, when
    /// the end of the body is known or the body is dropped; where this returns an error it is never called.
    pub async fn send_streaming(
        &self,
        request: Request<Full<Bytes>>,
        limits: StreamLimits,
        gate: &impl Gate,
        on_end: impl FnOnce(StreamEnd) + Send + 'static,
    ) -> Result<Answer<StreamingBody>, SendError> {
        let deadline = pin!(sleep(limits.head_timeout));
        let (connected, response) = self.begin(request, gate, deadline).await?;
        let (status, headers, body) = check(response, limits.max_bytes)?;
        let body = StreamingBody::new(
            body,
            connected,
            limits.idle_timeout,
            limits.max_bytes,
            Box::new(on_end),
        );
        Ok(Answer {
            status,
            headers,
            body,
        })
    }

    /// Closes connections that have been idle for too long. Worth calling now and then: otherwise only use does it.
    pub fn close_stale(&self) {
        self.shared.pool.sweep();
    }

    /// How many connections are in use or being opened.
    pub fn used_connections(&self) -> usize {
        self.shared.pool.used_count()
    }

    /// How many connections wait for use.
    pub fn idle_connections(&self) -> usize {
        self.shared.pool.idle_count()
    }

    /// Everything up to the head of the answer.
    async fn begin(
        &self,
        mut request: Outgoing,
        gate: &impl Gate,
        mut deadline: Pin<&mut Sleep>,
    ) -> Result<(Connected, Response<Incoming>), SendError> {
        self.address(&mut request)?;
        let lease = before(deadline.as_mut(), self.shared.pool.lease())
            .await
            .flatten()
            .ok_or(not_sent("no connection became free in time"))?;

        if let Some(live) = lease.take_idle() {
            let mut connected = Connected { live, lease };
            let sent =
                exchange::exchange(&mut connected.live, request, gate, deadline.as_mut()).await;
            let unsent = match settle(sent, connected)? {
                Settled::Answered(connected, response) => return Ok((connected, response)),
                Settled::Unsent(unsent) => unsent,
            };
            // The one retry: the connection had died while idle, and the request came back whole.
            let (lease, request) = unsent;
            return self.begin_fresh(lease, *request, gate, deadline).await;
        }
        self.begin_fresh(lease, request, gate, deadline).await
    }

    async fn begin_fresh(
        &self,
        lease: Lease,
        request: Outgoing,
        gate: &impl Gate,
        mut deadline: Pin<&mut Sleep>,
    ) -> Result<(Connected, Response<Incoming>), SendError> {
        // Boxed: the handshakes make a large future, and most requests never open a connection.
        let connecting = Box::pin(connect::connect(&self.shared.target));
        let live = before(deadline.as_mut(), connecting)
            .await
            .unwrap_or_else(|| Err("no connection was open in time".to_owned()))
            .map_err(|reason| SendError::NotSent {
                reason: reason.into(),
            })?;
        let mut connected = Connected { live, lease };
        let sent = exchange::exchange(&mut connected.live, request, gate, deadline).await;
        match settle(sent, connected)? {
            Settled::Answered(connected, response) => Ok((connected, response)),
            Settled::Unsent(_) => Err(not_sent("the API closed a new connection")),
        }
    }

    /// Puts the API's address into the request.
    fn address(&self, request: &mut Outgoing) -> Result<(), SendError> {
        if request.method() == http::Method::CONNECT {
            return Err(not_sent("CONNECT is not a call"));
        }
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str());
        let slash = if path.starts_with('/') { "" } else { "/" };
        let is_final = slash.is_empty()
            && self.shared.base_path.is_empty()
            && request.uri().authority().is_none();
        if !is_final {
            let uri = format!("{}{slash}{path}", self.shared.base_path);
            *request.uri_mut() =
                Uri::try_from(uri).map_err(|_| not_sent("the request's path is not valid"))?;
        }
        *request.version_mut() = http::Version::HTTP_11;
        headers::prepare(request, &self.shared.host_header);
        Ok(())
    }
}

enum Settled {
    Answered(Connected, Response<Incoming>),
    Unsent((Lease, Box<Outgoing>)),
}

/// What becomes of the connection after an exchange: kept while the answer is read, kept if the gate refused before
/// anything was sent, otherwise closed.
fn settle(
    sent: Result<Response<Incoming>, Failure>,
    connected: Connected,
) -> Result<Settled, SendError> {
    match sent {
        Ok(response) => Ok(Settled::Answered(connected, response)),
        Err(Failure::Halted) => {
            connected.give_back();
            Err(SendError::Halted)
        }
        Err(Failure::Unsent {
            request: Some(request),
            ..
        }) => Ok(Settled::Unsent((connected.lease, request))),
        Err(Failure::Unsent {
            request: None,
            reason,
        }) => Err(SendError::NotSent { reason }),
        Err(Failure::Sent(error)) => Err(error),
    }
}

/// The future's output, or `None` if the deadline came first: what is sent without any time left can only become a call
/// of which nobody knows what became.
async fn before<F: Future>(deadline: Pin<&mut Sleep>, future: F) -> Option<F::Output> {
    let end = deadline.deadline();
    tokio::select! {
        biased;
        output = future => (Instant::now() < end).then_some(output),
        () = deadline => None,
    }
}
