//! The built-in database: a private PostgreSQL, made and run from the machine's own programs, so that the
//! gateway can be tried and operated without setting a database up first.
//!
//! It is a full PostgreSQL with everything that keeps records on, reachable only through a Unix socket in a
//! directory that nobody else may enter. It runs as the gateway's supervised child: it ends with the
//! gateway however that ends, and what was committed is there at the next start.
//!
//! ```text
//! <home>/lock                          held by the one gateway that runs here
//!        secrets/superuser.password    made on first start
//!        postgres/data                 the database; owned by the database's user
//!        postgres/socket               the socket's directory (in /tmp when the path is too long)
//!        postgres/server.log           what the server says
//! ```

mod cluster;
mod error;
mod home;
mod process;
mod programs;
#[cfg(test)]
mod tests;
mod user;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustix::process::Signal;
use sqlx::{
    Connection,
    postgres::{PgConnectOptions, PgConnection, PgSslMode},
};

pub use error::Error;
use home::Home;
use process::{Server, Supervisor};
use programs::Search;
use user::User;

/// The database's own administrator, which owns everything that no migration has given away.
const SUPERUSER: &str = "toolgate_superuser";
/// Only a name here: the socket file carries it, and nothing listens on TCP.
const PORT: u16 = 5432;
/// A gateway that runs as root keeps its data here when the current directory is closed to the database.
const SYSTEM_HOME: &str = "/var/lib/toolgate";

const ASK_EVERY: Duration = Duration::from_millis(20);
/// Without an answer for so long, the start has failed. "Starting up" is an answer.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// A recovery that takes longer than this needs a person.
const RECOVERY_MAX: Duration = Duration::from_secs(60 * 60);
/// SQLSTATE `cannot_connect_now`: starting up, recovering or shutting down.
const NOT_YET: &str = "57P03";
/// How a server is ended, and how long each way gets.
const ENDINGS: [(Signal, Duration); 3] = [
    (Signal::INT, Duration::from_secs(30)),
    (Signal::QUIT, Duration::from_secs(10)),
    (Signal::KILL, Duration::from_secs(5)),
];

/// How the server is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// It accepts connections.
    Running,
    /// It died by itself and is being started again.
    Restarting,
    /// It has ended and stays so.
    Stopped,
}

/// A running private PostgreSQL. Dropping it asks the server to end without waiting for it;
/// [`BuiltIn::stop`] waits.
pub struct BuiltIn {
    // Fields drop in this order: the server is told to end before the home is let go.
    supervisor: Supervisor,
    socket: PathBuf,
    password: String,
    home: Home,
}

impl fmt::Debug for BuiltIn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BuiltIn")
            .field("home", &self.home.path)
            .field("socket", &self.socket)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Drop for BuiltIn {
    fn drop(&mut self) {
        self.supervisor.end(Signal::INT);
    }
}

/// Where the built-in database lives when nobody says otherwise: `.toolgate` in the current directory; for
/// root, `/var/lib/toolgate` when the database's user may not enter the current directory.
pub fn default_home(current_dir: &Path) -> PathBuf {
    let here = current_dir.join(".toolgate");
    let closed = User::for_data(&here.join("postgres/data"))
        .is_ok_and(|user| user.switch && user.stopped_at(current_dir).is_some());
    if closed {
        PathBuf::from(SYSTEM_HOME)
    } else {
        here
    }
}

/// Starts the database in `home`, making it on first use, and returns when it answers.
///
/// # Errors
/// Every [`Error`] says what a person can do. When it fails, no server is left running.
pub async fn start(home: &Path) -> Result<BuiltIn, Error> {
    start_with(home, Search::of_this_machine()).await
}

async fn start_with(home: &Path, search: Search) -> Result<BuiltIn, Error> {
    let began = Instant::now();
    let home = home.to_path_buf();
    let built_in = tokio::task::spawn_blocking(move || launch(&home, &search))
        .await
        .map_err(|_| Error::Interrupted)??;
    // Dropped on failure, which ends the server.
    built_in.until_ready().await?;
    tracing::info!(
        database.home = %built_in.home.path.display(),
        database.start_ms = began.elapsed().as_millis(),
        "the built-in PostgreSQL is ready"
    );
    Ok(built_in)
}

/// Everything up to the spawn; blocks for as long as `initdb` or an earlier server takes.
fn launch(home: &Path, search: &Search) -> Result<BuiltIn, Error> {
    let home = Home::open(home)?;
    let data = home.data();
    let version = cluster::version(&data)?;
    let programs = programs::find(search, version)?;
    let password = home.superuser_password()?;
    if version.is_none() {
        cluster::create(&home, &programs, &password)?;
    }
    cluster::end_old_server(&data)?;
    let socket = home.socket_directory()?;
    let server = Server {
        program: programs.postgres,
        arguments: arguments(&data, &socket),
        user: home.user,
        data,
        log: home.log(),
    };
    Ok(BuiltIn {
        supervisor: Supervisor::start(server)?,
        socket,
        password,
        home,
    })
}

/// Settings on the command line win over every file, so no `ALTER SYSTEM` can weaken them.
fn arguments(data: &Path, socket: &Path) -> Vec<OsString> {
    const SETTINGS: [&str; 15] = [
        "listen_addresses=",
        "port=5432",
        "ssl=off",
        "unix_socket_permissions=0700",
        "fsync=on",
        "full_page_writes=on",
        "synchronous_commit=on",
        "password_encryption=scram-sha-256",
        "logging_collector=off",
        "log_destination=stderr",
        "log_line_prefix=%m [%p] ",
        "lc_messages=C",
        "timezone=UTC",
        "log_timezone=UTC",
        "cluster_name=toolgate",
    ];
    let mut arguments = vec![
        OsString::from("-D"),
        data.as_os_str().to_owned(),
        OsString::from("-k"),
        socket.as_os_str().to_owned(),
    ];
    for setting in SETTINGS {
        arguments.push(OsString::from("-c"));
        arguments.push(OsString::from(setting));
    }
    arguments
}

impl BuiltIn {
    /// How the server is doing now.
    pub fn state(&self) -> State {
        self.supervisor.state()
    }

    /// The directory the socket is in; nobody but the database's user (and root) may enter it.
    pub fn socket_dir(&self) -> &Path {
        &self.socket
    }

    /// The port, which is part of the socket's name.
    pub fn port(&self) -> u16 {
        PORT
    }

    /// Connects as the superuser to the database `postgres`: for creating roles and databases, not for
    /// the gateway's daily work.
    pub fn superuser_options(&self) -> PgConnectOptions {
        self.connect_options(SUPERUSER, &self.password, "postgres")
    }

    /// Connects as any user. Nothing in the environment (`PGHOST`, `PGSSLMODE`, …) changes where to.
    pub fn connect_options(&self, user: &str, password: &str, database: &str) -> PgConnectOptions {
        PgConnectOptions::new_without_pgpass()
            .socket(&self.socket)
            .port(PORT)
            .ssl_mode(PgSslMode::Disable)
            .username(user)
            .password(password)
            .database(database)
            .application_name("toolgate")
            // A stray `PGOPTIONS` cannot be cleared here, but it does not get the last word on durability.
            .options([("synchronous_commit", "on")])
    }

    /// The same as a URL, for `psql` and other libpq programs as well as for sqlx. It holds the password.
    pub fn url(&self, user: &str, password: &str, database: &str) -> String {
        let socket = self.socket.to_string_lossy();
        let [user, password, socket, database] = [user, password, &socket, database]
            .map(|part| utf8_percent_encode(part, NON_ALPHANUMERIC));
        format!("postgres://{user}:{password}@{socket}:{PORT}/{database}?sslmode=disable")
    }

    /// Ends the server: open transactions are rolled back, everything committed is on disk. Returns when
    /// it is gone, by force after half a minute.
    pub async fn stop(self) {
        let mut changes = self.supervisor.changes();
        for (signal, grace) in ENDINGS {
            self.supervisor.end(signal);
            let stopped = changes.wait_for(|state| *state == State::Stopped);
            // The sender lives as long as `self`, so the wait can only end in time or too late.
            if tokio::time::timeout(grace, stopped).await.is_ok() {
                tracing::info!("the built-in PostgreSQL has ended");
                return;
            }
            tracing::warn!(
                database.signal = ?signal,
                database.waited_s = grace.as_secs(),
                "the built-in PostgreSQL has not ended yet"
            );
        }
    }

    async fn until_ready(&self) -> Result<(), Error> {
        let options = self.superuser_options();
        let latest = Instant::now() + RECOVERY_MAX;
        let mut deadline = Instant::now() + READY_WITHIN;
        let mut last = None;
        while Instant::now() < deadline.min(latest) {
            if self.state() == State::Stopped {
                return Err(self.ended());
            }
            match tokio::time::timeout(Duration::from_secs(5), ask(&options)).await {
                Ok(Ok(())) if self.supervisor.confirm() => return Ok(()),
                Ok(Err(sqlx::Error::Database(said))) if said.code().as_deref() == Some(NOT_YET) => {
                    deadline = Instant::now() + READY_WITHIN;
                }
                Ok(Err(refused @ sqlx::Error::Database(_))) => {
                    return Err(self.not_ready(Some(refused)));
                }
                Ok(Err(error)) => last = Some(error),
                Ok(Ok(())) | Err(_) => {}
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
        Err(self.not_ready(last))
    }

    fn ended(&self) -> Error {
        let (how, log_start) = self.supervisor.last_end();
        let log = self.home.log();
        let tail = process::tail(&log, log_start);
        Error::Ended { how, log, tail }
    }

    fn not_ready(&self, source: Option<sqlx::Error>) -> Error {
        let (_, log_start) = self.supervisor.last_end();
        let log = self.home.log();
        let tail = process::tail(&log, log_start);
        Error::NotReady { log, tail, source }
    }
}

/// One round trip as the given user.
async fn ask(options: &PgConnectOptions) -> Result<(), sqlx::Error> {
    let mut connection = PgConnection::connect_with(options).await?;
    sqlx::query("SELECT 1").execute(&mut connection).await?;
    connection.close().await
}
