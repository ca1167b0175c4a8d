//! The gateway as a process: the database, the two listeners with their transport limits, the workers, and the end in good
//! order.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::Context as _;
use axum::{
    Router,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, Method, Request, header};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use sqlx::postgres::PgPoolOptions;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::ServiceExt as _;

use self::watched::{Ambiguous, Watched};

use crate::{
    app::{App, Reading, Rules},
    audit::{Checkpoints, Recorder},
    config::{Config, Limits},
    database::{self, Opened},
    entry::{Entry, Kind},
    http as routes,
    metrics::{Listener, Open},
    postgres::BuiltIn,
    reason::{Reason, Refusal},
    redaction::{self, Redactor},
    signing,
    sinks::Sinks,
    store, workers,
};

mod descriptors;
mod watched;

/// Connections for reading. Few: calls read only when they are parked, keyed, or name a run for the first time.
const READERS: u32 = 8;
/// Connections for operators who read the records.
const RECORD_READERS: u32 = 4;
/// Exports at the same time. Fewer than the connections, so that they never take the last one.
const EXPORTS: usize = 2;
/// The largest head of a request, in bytes. hyper asks before it reads, so one may be nearly twice as large.
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
    let upstream = config.apis.values().map(|api| api.max_connections).sum();
    let shares = descriptors::share(config.limits.max_connections, upstream)?;
    // Bound first, so that a taken address is told at once; nothing is accepted before all else stands.
    let agents = bind(config.agents_address, "agents").await?;
    let operators = bind(config.operators_address, "operators").await?;
    let Opened { gateway, built_in } = database::open(&config.database).await?;
    anyhow::ensure!(
        redaction::detectors::ready(),
        "the detectors of sensitive values do not work"
    );
    let keyring = Arc::new(config.keyring()?);
    let redactor = Arc::new(Redactor::new(Arc::clone(&keyring), config.limits.recorded));
    let recorder = Recorder::start(
        gateway.clone(),
        config.limits.record_timeout,
        Arc::clone(&redactor),
        checkpoints(&config)?,
    )
    .await
    .context("the records cannot be opened")?;
    let pool = PgPoolOptions::new()
        .max_connections(READERS)
        .acquire_timeout(config.limits.record_timeout)
        .connect_lazy_with(gateway.clone().application_name("toolgate reader"));
    let reading = Reading {
        pool: PgPoolOptions::new()
            .max_connections(RECORD_READERS)
            .acquire_timeout(config.limits.record_timeout)
            .connect_lazy_with(store::reading(gateway)),
        exports: Arc::new(Semaphore::new(EXPORTS)),
    };
    let app = Arc::new(App::new(config, rules, pool, reading, recorder, keyring, redactor).await?);
    let stop = CancellationToken::new();
    let connections = TaskTracker::new();
    workers::start(&app, &stop);
    app.delivery.start(&stop);
    let started = Gateway {
        agents: agents.local_addr()?,
        operators: operators.local_addr()?,
        app: Arc::clone(&app),
        built_in,
        stop: stop.clone(),
        connections: connections.clone(),
    };
    let listen = |listener, router, whose, most| {
        let limits = Limits {
            max_connections: most,
            ..app.config.limits.clone()
        };
        let metrics = Arc::clone(&app.metrics);
        let counting = move || metrics.connected(whose);
        accept(
            listener,
            router,
            limits,
            stop.clone(),
            (connections.clone(), counting),
        )
    };
    tokio::spawn(listen(
        agents,
        routes::agents(Arc::clone(&app)),
        Listener::Agents,
        shares.agents,
    ));
    tokio::spawn(listen(
        operators,
        routes::operators(Arc::clone(&app)),
        Listener::Operators,
        shares.operators,
    ));
    tracing::info!(agents = %started.agents, operators = %started.operators, "serving");
    Ok(started)
}

/// The signing key, made on the first start, and the sinks.
fn checkpoints(config: &Config) -> anyhow::Result<Checkpoints> {
    let settings = &config.checkpoints;
    Ok(Checkpoints {
        held: signing::open(&settings.key_file, &settings.installation)?,
        every_entries: settings.every_entries,
        every: settings.every,
        sinks: Sinks::start(&settings.sinks)?,
    })
}

async fn bind(address: SocketAddr, whose: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!(
            "cannot listen for {whose} on {address}: choose another address, or stop what is there"
        )
    })
}

impl Gateway {
    /// Returns at Ctrl-C or SIGTERM. [`Gateway::stop`] is to be called then, and after an error too.
    ///
    /// # Errors
    /// When another gateway has taken this one's place, or signals cannot be waited for.
    pub async fn ended(&self) -> anyhow::Result<()> {
        let mut terminate =
            tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            _ = terminate.recv() => {}
            () = self.app.recorder.tenure().superseded() => anyhow::bail!(
                "another gateway has served this database while this one was cut off from it, so this one stopped; start it again if both were not meant"
            ),
        }
        Ok(())
    }

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
        // INVARIANT: before the lock goes. The next gateway may halt everything from that moment on.
        self.app.kill_switches.close();
        for entry in self.app.strangers.turn() {
            let _ = self.app.recorder.note(entry).await;
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
        self.app.recorder.close().await;
        // The last checkpoint was made just now.
        self.app
            .recorder
            .sinks()
            .finish(Duration::from_secs(5))
            .await;
        self.app.delivery.close().await;
        self.app.pool.close().await;
        self.app.reading.pool.close().await;
        if let Some(server) = self.built_in {
            server.stop().await;
        }
        tracing::info!("stopped");
    }
}

/// Our own accept loop: axum's has no timer, so its header timeout would do nothing, and no cap on connections.
async fn accept(
    listener: TcpListener,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
    (connections, counting): (TaskTracker, impl Fn() -> Open),
) {
    let room = Arc::new(Semaphore::new(limits.max_connections));
    loop {
        let Ok(place) = Arc::clone(&room).acquire_owned().await else {
            return;
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let serving = routes::PEER.scope(
                    peer.ip(),
                    connection(stream, router.clone(), limits.clone(), stop.clone()),
                );
                let open = counting();
                connections.spawn(async move {
                    serving.await;
                    drop((place, open));
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

/// One connection, one request after the other. Transport only: nothing here knows a call.
async fn connection(stream: TcpStream, router: Router, limits: Limits, stop: CancellationToken) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection keeps its delay");
    }
    let ambiguous = Ambiguous::default();
    let stream = Watched::new(
        stream,
        2 * HEAD_BYTES,
        limits.client_write_timeout,
        ambiguous.clone(),
    );
    let service = service_fn(|request| answer(router.clone(), ambiguous.clone(), request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
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

/// A request with two readings is refused before anything looks at it. After it, and after one that asks for another
/// protocol, the bytes that follow are nobody's: the connection is not used again.
async fn answer(
    router: Router,
    ambiguous: Ambiguous,
    request: Request<Incoming>,
) -> Result<Response, Infallible> {
    let is_ambiguous = ambiguous.is_set();
    let is_last = is_ambiguous
        || request.headers().contains_key(header::UPGRADE)
        || *request.method() == Method::CONNECT;
    let mut response = if is_ambiguous {
        Refusal::new(
            Reason::MalformedBody,
            "The request can be read in more than one way. Send one Host, either one Content-Length or Transfer-Encoding: chunked, and CR LF at the end of each line.",
        )
        .into_response()
    } else {
        router.oneshot(request).await?
    };
    if is_last {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    Ok(response)
}
