//! Runs the server as a child that cannot outlive the gateway, and starts it again when it dies by itself.
//!
//! One thread owns the child from spawn to end. It has to be a thread of its own: the kernel sends the
//! parent's death signal when the *thread* that spawned is gone, and a worker of the async runtime may go
//! at any time.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::{
        fs::OpenOptionsExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use tokio::sync::watch;

use super::{Error, State, user::User};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A server that ran this long is taken to be healthy, and its next pause is short again.
const HEALTHY_AFTER: Duration = Duration::from_secs(60);
/// How long processes of a killed server may keep a new one from starting.
const LEFTOVERS_END_WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(20);
const LOG_MAX_BYTES: u64 = 10 * 1024 * 1024;
/// As much of the log's end as is worth reading for an error.
const TAIL_BYTES: u64 = 16 * 1024;
const TAIL_LINES: usize = 20;

/// A command that runs as the database's user, in a session of its own so that Ctrl-C in the terminal does
/// not reach it, with nothing of the gateway's environment (its secrets, or `PG…` variables that would
/// change what the programs do), and that gets `death_signal` when the calling thread ends.
pub(super) fn confined(program: &Path, user: User, death_signal: Signal) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        .current_dir("/");
    if user.switch {
        // Supplementary groups are dropped too: the standard library clears them when it sets a user.
        command.uid(user.uid).gid(user.gid);
    }
    let gateway = rustix::process::getpid();
    let prepare = move || {
        rustix::process::setsid()?;
        // After the change of user, which would undo it: the standard library runs this part last.
        rustix::process::set_parent_process_death_signal(Some(death_signal))?;
        // The gateway may have died before the line above, and nobody would ever tell.
        if rustix::process::getppid() != Some(gateway) {
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        Ok(())
    };
    #[expect(
        unsafe_code,
        reason = "only the child itself can ask for its parent's death signal, between fork and exec"
    )]
    // SAFETY: the closure makes three system calls and neither allocates, locks nor panics, which is all
    // that is allowed in the child of a process with several threads.
    unsafe {
        command.pre_exec(prepare);
    }
    command
}

/// What the supervisor runs, again and again.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) program: PathBuf,
    pub(super) arguments: Vec<std::ffi::OsString>,
    pub(super) user: User,
    pub(super) data: PathBuf,
    pub(super) log: PathBuf,
}

/// The thread that owns the server, seen from the gateway.
#[derive(Debug)]
pub(super) struct Supervisor {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    run: Mutex<Run>,
    stop_asked: Condvar,
    state: watch::Sender<State>,
}

#[derive(Debug, Default)]
struct Run {
    /// INVARIANT: set only while the child is not collected, so a signal cannot hit a stranger.
    child: Option<Pid>,
    stopping: bool,
    /// From then on the server is started again when it ends.
    confirmed: bool,
    /// Where this run's part of the log starts.
    log_start: u64,
    /// How the last run ended.
    ended: Option<String>,
}

impl Supervisor {
    /// Starts the thread, and the server in it.
    pub(super) fn start(server: Server) -> Result<Self, Error> {
        let shared = Arc::new(Shared {
            run: Mutex::default(),
            stop_asked: Condvar::new(),
            state: watch::Sender::new(State::Restarting),
        });
        let in_thread = Arc::clone(&shared);
        let program = server.program.clone();
        thread::Builder::new()
            .name("postgres".to_owned())
            .spawn(move || supervise(&server, &in_thread))
            .map_err(|source| Error::io("start a thread for", &program, source))?;
        Ok(Self { shared })
    }

    pub(super) fn state(&self) -> State {
        *self.shared.state.borrow()
    }

    /// Changes of the state, as they come.
    pub(super) fn changes(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// Says that the server was reached: from now on it is kept running. False if it has ended already.
    pub(super) fn confirm(&self) -> bool {
        let mut run = self.shared.run.lock();
        run.confirmed = run.child.is_some();
        if run.confirmed {
            self.shared.state.send_replace(State::Running);
        }
        run.confirmed
    }

    /// How the last run ended, and where in the log it began.
    pub(super) fn last_end(&self) -> (String, u64) {
        let run = self.shared.run.lock();
        let how = run.ended.clone();
        (
            how.unwrap_or_else(|| "still running".to_owned()),
            run.log_start,
        )
    }

    /// Sends a signal that makes the server end, and lets it stay ended.
    pub(super) fn end(&self, signal: Signal) {
        let mut run = self.shared.run.lock();
        run.stopping = true;
        if let Some(child) = run.child {
            // It may have ended just now, which is what was wanted.
            let _ = kill_process(child, signal);
        }
        self.shared.stop_asked.notify_all();
    }

    #[cfg(test)]
    pub(super) fn child(&self) -> Option<Pid> {
        self.shared.run.lock().child
    }
}

fn supervise(server: &Server, shared: &Shared) {
    let began = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let ended = run_once(server, shared);
        let mut run = shared.run.lock();
        if run.stopping {
            break;
        }
        let how = match ended {
            Ok(status) => describe(status),
            Err(error) => format!("it could not be started: {error}"),
        };
        run.ended = Some(how.clone());
        if run.confirmed {
            tracing::warn!(
                database.ended = how,
                database.log = %server.log.display(),
                database.pause_ms = pause.as_millis(),
                "the built-in PostgreSQL ended by itself and is started again"
            );
        } else if !leftovers_in_the_way(server, run.log_start)
            || began.elapsed() > LEFTOVERS_END_WITHIN
        {
            break;
        }
        shared.state.send_replace(State::Restarting);
        if started.elapsed() > HEALTHY_AFTER {
            pause = FIRST_PAUSE;
        }
        let stop_waiting = Instant::now() + pause;
        while !run.stopping
            && !shared
                .stop_asked
                .wait_until(&mut run, stop_waiting)
                .timed_out()
        {}
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    shared.state.send_replace(State::Stopped);
}

/// Spawns the server and waits for its end.
fn run_once(server: &Server, shared: &Shared) -> io::Result<ExitStatus> {
    let mut child = {
        let mut run = shared.run.lock();
        if run.stopping {
            return Ok(ExitStatus::default());
        }
        let log = open_log(server)?;
        run.log_start = log.metadata()?.len();
        let child = spawn(server, log)?;
        run.child = Some(Pid::from_child(&child));
        child
    };
    wait_for_end(server, shared, &child);
    let mut run = shared.run.lock();
    run.child = None;
    child.wait()
}

fn spawn(server: &Server, log: File) -> io::Result<Child> {
    confined(&server.program, server.user, Signal::INT)
        .args(&server.arguments)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
}

/// Returns when the child has ended, and leaves it uncollected. On the way it notices when the server
/// accepts connections.
fn wait_for_end(server: &Server, shared: &Shared, child: &Child) {
    let pid = Pid::from_child(child);
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let mut ready = false;
    loop {
        let options = if ready {
            ended
        } else {
            ended | WaitIdOptions::NOHANG
        };
        match waitid(WaitId::Pid(pid), options) {
            Ok(None) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Ok(Some(_)) | Err(_) => return,
        }
        if accepts_connections(&server.data, pid) {
            ready = true;
            shared.state.send_replace(State::Running);
        } else {
            thread::sleep(LOOK_EVERY);
        }
    }
}

/// Whether the server says in its own `postmaster.pid` (process number in line 1, status in line 8) that
/// it is ready.
fn accepts_connections(data: &Path, pid: Pid) -> bool {
    let text = fs::read_to_string(data.join("postmaster.pid")).unwrap_or_default();
    let mut lines = text.lines().map(str::trim);
    lines.next() == Some(pid.as_raw_pid().to_string().as_str()) && lines.nth(6) == Some("ready")
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("it ended with exit code {code}"),
        (None, Some(signal)) => format!("it was killed by signal {signal}"),
        (None, None) => "it ended".to_owned(),
    }
}

/// Whether the server refused to start because processes of a killed one still use its memory. They
/// notice within moments that their parent is gone, and end.
fn leftovers_in_the_way(server: &Server, log_start: u64) -> bool {
    tail(&server.log, log_start).contains("pre-existing shared memory block")
}

/// Opens the log for appending; a large one is first put aside (and replaces the one put aside before).
fn open_log(server: &Server) -> io::Result<File> {
    if fs::metadata(&server.log).is_ok_and(|found| found.len() > LOG_MAX_BYTES) {
        fs::rename(&server.log, server.log.with_extension("log.1"))?;
    }
    let log = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&server.log)?;
    Ok(log)
}

/// The last lines of the log, from `start` on at most.
pub(super) fn tail(log: &Path, start: u64) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(log)?;
        let from = file.metadata()?.len().saturating_sub(TAIL_BYTES).max(start);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let text = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    let skipped = lines.len().saturating_sub(TAIL_LINES);
    lines.get(skipped..).unwrap_or_default().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::tests::Scratch;

    #[test]
    fn the_tail_is_short_and_of_this_run() {
        let scratch = Scratch::new("process-tail");
        let log = scratch.path.join("log");
        assert_eq!(tail(&log, 0), "");
        fs::write(&log, "old\nnew 1\nnew 2\n").unwrap();
        assert_eq!(tail(&log, 4), "new 1\nnew 2");
        let many: String = (0..10_000).map(|line| format!("line {line}\n")).collect();
        fs::write(&log, many).unwrap();
        let end = tail(&log, 0);
        assert_eq!(end.lines().count(), TAIL_LINES);
        assert!(end.ends_with("line 9999"));
    }

    #[test]
    fn a_large_log_is_put_aside() {
        let scratch = Scratch::new("process-log");
        let server = Server {
            program: PathBuf::new(),
            arguments: Vec::new(),
            user: User::for_data(&scratch.path.join("data")).unwrap(),
            data: scratch.path.join("data"),
            log: scratch.path.join("server.log"),
        };
        let first = open_log(&server).unwrap();
        first.set_len(LOG_MAX_BYTES + 1).unwrap();
        let second = open_log(&server).unwrap();
        assert_eq!(second.metadata().unwrap().len(), 0);
        assert!(scratch.path.join("server.log.1").exists());
    }
}
