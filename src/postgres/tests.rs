//! The whole thing against a real PostgreSQL: a database that keeps what was committed, whatever is killed.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use sqlx::{Connection, PgConnection, postgres::PgConnectOptions};

use super::{BuiltIn, Error, Search, State, start, start_with};

/// A directory under `/tmp` that every user can pass through, removed at the end.
pub(super) struct Scratch {
    pub(super) path: PathBuf,
}

impl Scratch {
    pub(super) fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/tmp/tg-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { path }
    }

    fn home(&self) -> PathBuf {
        self.path.join("home")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

async fn connect(database: &BuiltIn) -> PgConnection {
    PgConnection::connect_with(&database.superuser_options())
        .await
        .unwrap()
}

async fn show(connection: &mut PgConnection, setting: &str) -> String {
    sqlx::query_scalar("SELECT current_setting($1)")
        .bind(setting)
        .fetch_one(connection)
        .await
        .unwrap()
}

async fn write_row(database: &BuiltIn) {
    let mut connection = connect(database).await;
    for statement in ["CREATE TABLE kept (n int)", "INSERT INTO kept VALUES (42)"] {
        sqlx::query(statement)
            .execute(&mut connection)
            .await
            .unwrap();
    }
}

async fn read_row(database: &BuiltIn) -> i32 {
    sqlx::query_scalar("SELECT n FROM kept")
        .fetch_one(&mut connect(database).await)
        .await
        .unwrap()
}

/// The server's process number, as the server itself wrote it down.
fn server_pid(home: &Path) -> Pid {
    let text = fs::read_to_string(home.join("postgres/data/postmaster.pid")).unwrap();
    Pid::from_raw(text.lines().next().unwrap().parse().unwrap()).unwrap()
}

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn is_gone(pid: Pid) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    test_kill_process(pid).is_err() || stat.contains(") Z ")
}

#[tokio::test]
async fn a_new_database_is_safe_and_keeps_its_rows() {
    let scratch = Scratch::new("new");
    let began = Instant::now();
    let database = start(&scratch.home()).await.unwrap();
    println!("first start: {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(database.state(), State::Running);
    let mut connection = connect(&database).await;
    for (setting, expected) in [
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("data_checksums", "on"),
        ("listen_addresses", ""),
        ("unix_socket_permissions", "0700"),
        ("server_encoding", "UTF8"),
        ("TimeZone", "UTC"),
    ] {
        assert_eq!(show(&mut connection, setting).await, expected, "{setting}");
    }
    connection.close().await.unwrap();
    let socket = database.socket_dir().to_path_buf();
    let data = fs::metadata(scratch.home().join("postgres/data")).unwrap();
    assert_ne!(data.uid(), 0);
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o7777, 0o700);
    assert!(!scratch.home().join("postgres/initdb.password").exists());
    assert!(!format!("{database:?}").contains(&database.password));

    write_row(&database).await;
    let running = start(&scratch.home()).await.unwrap_err();
    assert!(matches!(running, Error::Locked { .. }), "{running}");
    database.stop().await;
    assert!(!scratch.home().join("postgres/data/postmaster.pid").exists());

    let began = Instant::now();
    let database = start(&scratch.home()).await.unwrap();
    println!("second start: {:?}", began.elapsed());
    assert_eq!(read_row(&database).await, 42);
    database.stop().await;
}

#[tokio::test]
async fn the_url_works_for_psql_and_for_sqlx() {
    let scratch = Scratch::new("url");
    let home = scratch.path.join("a home: 100% & more?");
    let database = start(&home).await.unwrap();
    let password = "p@ss/w:rd?&=% ü'";
    sqlx::query("CREATE ROLE \"an: auditor@x\" LOGIN PASSWORD 'p@ss/w:rd?&=% ü'''")
        .execute(&mut connect(&database).await)
        .await
        .unwrap();
    let url = database.url("an: auditor@x", password, "postgres");
    let options: PgConnectOptions = url.parse().unwrap();
    let mut connection = PgConnection::connect_with(&options).await.unwrap();
    let who: String = sqlx::query_scalar("SELECT current_user::text")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(who, "an: auditor@x");
    if let Ok(psql) = Command::new("psql")
        .args([&url, "-XAtc", "SELECT current_user"])
        .env("PGHOST", "elsewhere.invalid")
        .env("PGPORT", "1")
        .env("PGSSLMODE", "require")
        .output()
    {
        let said = String::from_utf8_lossy(&psql.stdout);
        assert_eq!(said.trim(), "an: auditor@x", "{psql:?}");
    }
    let wrong = database.connect_options("an: auditor@x", "wrong", "postgres");
    assert!(PgConnection::connect_with(&wrong).await.is_err());
    database.stop().await;
}

#[tokio::test]
async fn a_server_that_dies_is_started_again() {
    let scratch = Scratch::new("dies");
    let database = start(&scratch.home()).await.unwrap();
    write_row(&database).await;
    for _ in 0..2 {
        let killed = database.supervisor.child().unwrap();
        let _open = connect(&database).await;
        kill_process(killed, Signal::KILL).unwrap();
        wait_until("another server", || {
            database.supervisor.child().is_some_and(|pid| pid != killed)
                && database.state() == State::Running
        });
        assert_eq!(read_row(&database).await, 42);
    }
    database.stop().await;
}

#[tokio::test]
async fn dropping_ends_the_server_and_the_next_start_waits_for_it() {
    let scratch = Scratch::new("drop");
    let database = start(&scratch.home()).await.unwrap();
    write_row(&database).await;
    let first = server_pid(&scratch.home());
    drop(database);
    let database = start(&scratch.home()).await.unwrap();
    assert!(is_gone(first));
    assert_eq!(read_row(&database).await, 42);
    database.stop().await;
}

#[tokio::test]
async fn a_long_path_gets_its_socket_elsewhere() {
    let scratch = Scratch::new("long");
    let home = scratch.path.join("long,".repeat(30));
    let database = start(&home).await.unwrap();
    let socket = database.socket_dir().to_path_buf();
    assert!(socket.starts_with("/tmp"), "{socket:?}");
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o7777, 0o700);
    write_row(&database).await;
    database.stop().await;
    let database = start(&home).await.unwrap();
    assert_eq!(database.socket_dir(), socket);
    assert_eq!(read_row(&database).await, 42);
    database.stop().await;
    fs::remove_dir(&socket).unwrap();
}

#[tokio::test]
async fn an_interrupted_first_start_is_done_over() {
    let scratch = Scratch::new("side");
    let side = scratch.home().join("postgres/data.new-1");
    fs::create_dir_all(side.join("base")).unwrap();
    fs::write(side.join("PG_VERSION"), "15\n").unwrap();
    fs::set_permissions(scratch.home(), fs::Permissions::from_mode(0o755)).unwrap();
    let database = start(&scratch.home()).await.unwrap();
    assert!(!side.exists());
    database.stop().await;
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let scratch = Scratch::new("broken");
    let database = start(&scratch.home()).await.unwrap();
    database.stop().await;
    fs::write(
        scratch.home().join("postgres/data/postgresql.auto.conf"),
        "no_such_setting = 1\n",
    )
    .unwrap();
    let said = start(&scratch.home()).await.unwrap_err();
    assert!(matches!(said, Error::Ended { .. }), "{said}");
    assert!(said.to_string().contains("no_such_setting"), "{said}");
}

#[tokio::test]
async fn a_machine_without_postgresql_is_told_what_to_install() {
    let scratch = Scratch::new("missing");
    let search = Search {
        path: None,
        versions: scratch.path.join("none"),
        last: scratch.path.join("none"),
    };
    let said = start_with(&scratch.home(), search).await.unwrap_err();
    let said = said.to_string();
    assert!(said.contains("apt-get install postgresql"), "{said}");
}

/// Not a test by itself: run by other tests as a gateway of its own, which they kill.
#[tokio::test]
async fn helper_gateway() {
    let Some(home) = std::env::var_os("TOOLGATE_TEST_GATEWAY_HOME").map(PathBuf::from) else {
        return;
    };
    let database = start(&home).await.unwrap();
    write_row(&database).await;
    println!("\nready {}", server_pid(&home).as_raw_pid());
    tokio::time::sleep(Duration::from_secs(60)).await;
    database.stop().await;
}

/// Starts a gateway in `home` as another process, and returns it with its server's process number.
fn gateway(home: &Path, before: &[&str]) -> (Child, Pid) {
    gateway_by(&std::env::current_exe().unwrap(), home, before)
}

fn gateway_by(program: &Path, home: &Path, before: &[&str]) -> (Child, Pid) {
    let mut words = before.iter().map(std::ffi::OsStr::new).collect::<Vec<_>>();
    words.push(program.as_os_str());
    let mut child = Command::new(words[0])
        .args(&words[1..])
        .args(["--exact", "postgres::tests::helper_gateway", "--nocapture"])
        .env("TOOLGATE_TEST_GATEWAY_HOME", home)
        .env("PGDATA", "/nonexistent")
        .current_dir("/tmp")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok)
        .find_map(|line| line.strip_prefix("ready ")?.parse().ok())
        .expect("the gateway did not start");
    (child, Pid::from_raw(pid).unwrap())
}

#[tokio::test]
async fn a_killed_gateway_takes_its_server_along_and_loses_nothing() {
    let scratch = Scratch::new("killed");
    let (mut child, server) = gateway(&scratch.home(), &[]);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the server ends with its gateway", || is_gone(server));
    let database = start(&scratch.home()).await.unwrap();
    assert_eq!(read_row(&database).await, 42);
    database.stop().await;
}

#[tokio::test]
async fn a_start_right_after_a_kill_waits_for_the_old_server() {
    let scratch = Scratch::new("rightafter");
    let (mut child, server) = gateway(&scratch.home(), &[]);
    child.kill().unwrap();
    child.wait().unwrap();
    let database = start(&scratch.home()).await.unwrap();
    assert!(is_gone(server));
    assert_eq!(read_row(&database).await, 42);
    database.stop().await;
}

#[tokio::test]
async fn everything_killed_at_once_is_recovered() {
    let scratch = Scratch::new("all");
    let (mut child, server) = gateway(&scratch.home(), &[]);
    kill_process(server, Signal::STOP).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    kill_process(server, Signal::KILL).unwrap();
    let database = start(&scratch.home()).await.unwrap();
    let log = fs::read_to_string(scratch.home().join("postgres/server.log")).unwrap();
    assert!(log.contains("automatic recovery in progress"), "{log}");
    assert_eq!(read_row(&database).await, 42);
    database.stop().await;
}

/// The gateway is killed at various moments of its very first start.
#[tokio::test]
async fn a_first_start_can_be_killed_at_any_moment() {
    for after_ms in [50, 150, 250, 350, 500, 700] {
        let scratch = Scratch::new("moment");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "postgres::tests::helper_gateway"])
            .env("TOOLGATE_TEST_GATEWAY_HOME", scratch.home())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        child.kill().unwrap();
        child.wait().unwrap();
        let database = match start(&scratch.home()).await {
            Ok(database) => database,
            Err(error) => panic!("killed after {after_ms} ms: {error:?}"),
        };
        assert_eq!(
            show(&mut connect(&database).await, "data_checksums").await,
            "on"
        );
        database.stop().await;
    }
}

/// Only root can become somebody else; run by anybody else, the other tests are this test.
#[test]
fn works_without_being_root() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let scratch = Scratch::new("nobody");
    fs::set_permissions(&scratch.path, fs::Permissions::from_mode(0o1777)).unwrap();
    let nobody = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    // The build directory may be in root's own home, where nobody else can run anything.
    let program = scratch.path.join("gateway");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let (mut child, server) = gateway_by(&program, &scratch.home(), &nobody);
    let owner = |path: &str| fs::metadata(scratch.home().join(path)).unwrap().uid();
    assert_eq!(owner("postgres/data"), 65534);
    assert_eq!(owner("secrets/superuser.password"), 65534);
    let mode = fs::metadata(scratch.home()).unwrap().mode();
    assert_eq!(mode & 0o777, 0o700);
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the server ends with its gateway", || is_gone(server));
}
