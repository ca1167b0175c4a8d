//! The gateway as a process: the database, the two listeners with their transport limits, the workers, and the end in good
//! order.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    body::Body,
    extract::Request,
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, header};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use sqlx::postgres::PgPoolOptions;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app::{App, Rules},
    audit::Recorder,
    config::Config,
    database::{self, Opened},
    entry::{Entry, Kind},
    http as routes,
    postgres::BuiltIn,
    reason::{Reason, Refusal},
    workers,
};

/// Connections for reading. Few: calls read only when they are parked, keyed, or name a run for the first time.
const READERS: u32 = 8;
/// How long a client may take to send a request's head, and may keep a connection without sending one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The largest head of a request, in bytes.
const HEAD_BYTES: usize = 64 * 1024;

/// A gateway that serves.
pub struct Gateway {
    /// Where agents connect: the address that was bound.
    pub agents: SocketAddr,
    /// Where operators connect.
    pub operators: SocketAddr,
    app: Arc<App>,
    built_in: Option<BuiltIn>,
    stop: CancellationToken,
    connections: TaskTracker,
}

/// Opens the database and both listeners and serves until [`Gateway::stop`].
///
/// # Errors
/// When anything that a call would need is not there: a gateway that starts can serve.
pub async fn start(config: Config, rules: Rules) -> anyhow::Result<Gateway> {
    // Bound first, so that a taken address is told at once; nothing is accepted before all else stands.
    let agents = bind(config.agents_address, "agents").await?;
    let operators = bind(config.operators_address, "operators").await?;
    let Opened { gateway, built_in } = database::open(&config.database).await?;
    let recorder = Recorder::start(gateway.clone(), config.limits.record_timeout)
        .await
        .context("the records cannot be opened")?;
    let pool = PgPoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(config.limits.record_timeout)
        .connect_lazy_with(gateway.application_name("toolgate reader"));
    let app = Arc::new(App::new(config, rules, pool, recorder).await?);
    let stop = CancellationToken::new();
    let connections = TaskTracker::new();
    workers::start(&app, &stop);
    let started = Gateway {
        agents: agents.local_addr()?,
        operators: operators.local_addr()?,
        app: Arc::clone(&app),
        built_in,
        stop: stop.clone(),
        connections: connections.clone(),
    };
    let most = app.config.limits.max_connections;
    let listen =
        |listener, router| accept(listener, router, most, stop.clone(), connections.clone());
    tokio::spawn(listen(agents, transport(routes::agents(Arc::clone(&app)))));
    tokio::spawn(listen(operators, transport(routes::operators(app))));
    tracing::info!(agents = %started.agents, operators = %started.operators, "serving");
    Ok(started)
}

/// Returns at Ctrl-C or SIGTERM.
///
/// # Errors
/// When signals cannot be waited for.
pub async fn ended() -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminate.recv() => {}
    }
    Ok(())
}

async fn bind(address: SocketAddr, whose: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen for {whose} on {address}: choose another address, or stop what is there"
        )
    })
}

impl Gateway {
    /// Takes no new calls, lets those in flight finish or records what is known of them, then closes the database.
    pub async fn stop(self) {
        self.app.stopping.store(true, Ordering::Release);
        self.stop.cancel();
        self.connections.close();
        self.app.tasks.close();
        let patience = self.app.config.limits.shutdown_timeout;
        let all = async {
            self.app.tasks.wait().await;
            self.connections.wait().await;
        };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::warn!(
                "calls were still under way; their intents are recorded and the next start closes them"
            );
        }
        let _ = self
            .app
            .recorder
            .note(Entry::new(Kind::GatewayStopped))
            .await;
        if self
            .app
            .recorder
            .flush(Duration::from_secs(5))
            .await
            .is_err()
        {
            tracing::error!("not everything could be recorded before the end");
        }
        self.app.pool.close().await;
        if let Some(server) = self.built_in {
            server.stop().await;
        }
        tracing::info!("stopped");
    }
}

/// Transport only: nothing here knows a call.
fn transport(router: Router) -> Router {
    router.layer(axum::middleware::from_fn(one_length))
}

/// A request that says its length in two ways, or in a way that the next server might read differently, is how requests
/// are smuggled (RFC 9112 section 6.1): refused, and the connection is not used again.
async fn one_length(request: Request<Body>, next: Next) -> Response {
    let headers = request.headers();
    let both = headers.contains_key(header::TRANSFER_ENCODING)
        && headers.contains_key(header::CONTENT_LENGTH);
    let lengths = headers.get_all(header::CONTENT_LENGTH).iter().count();
    let codings = headers.get_all(header::TRANSFER_ENCODING);
    let odd = codings.iter().count() > 1
        || codings
            .iter()
            .any(|coding| !coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if both || lengths > 1 || odd {
        let mut response = Refusal::new(
            Reason::MalformedBody,
            "The request gives its length in more than one way, or in an unusual one. Send either Content-Length or Transfer-Encoding: chunked.",
        )
        .into_response();
        response
            .headers_mut()
            .insert(header::CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    next.run(request).await
}

/// Our own accept loop: axum's has no timer, so its header timeout would do nothing, and no cap on connections.
async fn accept(
    listener: TcpListener,
    router: Router,
    most: usize,
    stop: CancellationToken,
    connections: TaskTracker,
) {
    let room = Arc::new(Semaphore::new(most));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _peer)) => {
                let serving = connection(stream, router.clone(), stop.clone());
                connections.spawn(async move {
                    serving.await;
                    drop(place);
                });
            }
            Err(error) => {
                // Out of file descriptors, most likely: let some be given back.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, router: Router, stop: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps its delay");
    }
    let service = TowerToHyperService::new(router);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection ended early");
            }
            return;
        }
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}
