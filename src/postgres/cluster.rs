//! What has to be so before the server may start: a complete database directory, and no server of an
//! earlier gateway still working in it.

use std::{
    fs,
    io::ErrorKind,
    path::Path,
    process::Output,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{
    Error, SUPERUSER,
    home::{Home, sync_directory},
    process::confined,
    programs::Programs,
};

/// How long an earlier server gets to end in good order, and then by force.
const OLD_SERVER_GRACE: [(Signal, Duration); 2] = [
    (Signal::INT, Duration::from_secs(60)),
    (Signal::QUIT, Duration::from_secs(10)),
];
/// How long a process that has ended may wait to be collected by its new parent.
const COLLECTED_WITHIN: Duration = Duration::from_secs(3);
/// How long what a killed `initdb` started may go on.
const LEFTOVERS_END_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The major version of the database in `data`, or none when there is no database yet.
pub(super) fn version(data: &Path) -> Result<Option<u32>, Error> {
    let path = data.join("PG_VERSION");
    match fs::read_to_string(&path) {
        Ok(text) => match text.trim().parse() {
            Ok(major) => Ok(Some(major)),
            Err(_) => Err(Error::NotADatabase {
                data: data.to_path_buf(),
            }),
        },
        Err(missing) if missing.kind() == ErrorKind::NotFound => {
            if data.exists() {
                return Err(Error::NotADatabase {
                    data: data.to_path_buf(),
                });
            }
            Ok(None)
        }
        Err(source) => Err(Error::io("read", &path, source)),
    }
}

/// Makes a new database. It appears under its name only when it is complete and on disk, so an interrupted
/// attempt is never taken for a database.
pub(super) fn create(home: &Home, programs: &Programs, password: &str) -> Result<(), Error> {
    let password_file = home.path.join("postgres/initdb.password");
    home.private_file(&password_file, password)?;
    let made = make(home, programs, &password_file);
    let removed = fs::remove_file(&password_file);
    made?;
    removed.map_err(|source| Error::io("remove", &password_file, source))?;

    let (side, data) = (home.side(), home.data());
    fs::rename(&side, &data).map_err(|source| Error::io("rename", &side, source))?;
    let above = home.path.join("postgres");
    sync_directory(&above).map_err(|source| Error::io("write", &above, source))
}

fn make(home: &Home, programs: &Programs, password_file: &Path) -> Result<(), Error> {
    // C.UTF-8 knows letters beyond ASCII and sorts by code point; a system without it has at least C.
    let mut failure = String::new();
    for locale in ["C.UTF-8", "C"] {
        let output = run_initdb(home, programs, password_file, locale)?;
        if output.status.success() {
            return Ok(());
        }
        failure = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if !failure.contains("invalid locale") {
            break;
        }
    }
    Err(Error::Initdb {
        data: home.data(),
        output: failure,
    })
}

fn run_initdb(
    home: &Home,
    programs: &Programs,
    password_file: &Path,
    locale: &str,
) -> Result<Output, Error> {
    for unfinished in home.sides()? {
        remove(&unfinished)?;
    }
    let side = home.side();
    home.private_directory(&side)?;
    confined(&programs.initdb, home.user, Signal::KILL)
        .arg("--pgdata")
        .arg(&side)
        .arg("--pwfile")
        .arg(password_file)
        .arg(format!("--username={SUPERUSER}"))
        .arg(format!("--locale={locale}"))
        .args([
            "--auth=scram-sha-256",
            "--data-checksums",
            "--encoding=UTF8",
            "--lc-messages=C",
            "--no-instructions",
        ])
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|source| Error::io("run", &programs.initdb, source))
}

/// Removes a directory in which what a killed `initdb` left running may still be writing, but not for long.
fn remove(directory: &Path) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(_) if began.elapsed() < LEFTOVERS_END_WITHIN => thread::sleep(LOOK_EVERY),
            Err(error) => return Err(Error::io("remove", directory, error)),
            Ok(()) => return Ok(()),
        }
    }
}

/// Ends the server that a killed gateway left behind, and returns when it is gone. Its settings and its
/// health are unknown, so it is never used.
pub(super) fn end_old_server(data: &Path) -> Result<(), Error> {
    let Some(pid) = named_process(data) else {
        return Ok(());
    };
    let raw = pid.as_raw_pid();
    for (signal, grace) in OLD_SERVER_GRACE {
        if look_at(pid, data) != Found::Server {
            break;
        }
        tracing::info!(
            database.pid = raw,
            database.signal = ?signal,
            "waiting for the built-in PostgreSQL of an earlier gateway to end"
        );
        // It may end between the look and the signal, which is what is wanted.
        let _ = kill_process(pid, signal);
        wait_while(grace, || look_at(pid, data) == Found::Server);
    }
    if look_at(pid, data) == Found::Server {
        return Err(Error::OldServer {
            pid: raw,
            data: data.to_path_buf(),
        });
    }
    collect(pid, data)
}

/// Waits until a process that has ended is collected: until then PostgreSQL takes its number in
/// `postmaster.pid` for a running server. Where nobody ever collects it (a container whose first process
/// does not), the file goes, which is safe because that number cannot be a server's any more.
fn collect(pid: Pid, data: &Path) -> Result<(), Error> {
    wait_while(COLLECTED_WITHIN, || look_at(pid, data) == Found::Ended);
    if look_at(pid, data) != Found::Ended {
        return Ok(());
    }
    let file = data.join("postmaster.pid");
    match fs::remove_file(&file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("remove", &file, error)),
        _ => Ok(()),
    }
}

fn wait_while(at_most: Duration, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while began.elapsed() < at_most && holds() {
        thread::sleep(LOOK_EVERY);
    }
}

/// The process whose number stands in `postmaster.pid`, whoever that is by now.
fn named_process(data: &Path) -> Option<Pid> {
    let text = fs::read_to_string(data.join("postmaster.pid")).ok()?;
    let raw: i32 = text.lines().next()?.trim().parse().ok()?;
    // A negative number would be a process group to `kill`.
    (raw > 0).then(|| Pid::from_raw(raw)).flatten()
}

#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// A PostgreSQL server of this directory.
    Server,
    /// A PostgreSQL server that has ended, of whatever directory, and is not collected yet.
    Ended,
    /// Nobody, or somebody else. The stale file is left for PostgreSQL to judge.
    Other,
}

/// What a process is to this database. A server works in its data directory; what has ended works nowhere,
/// but keeps its name until it is collected.
fn look_at(pid: Pid, data: &Path) -> Found {
    let process = Path::new("/proc").join(pid.as_raw_pid().to_string());
    let name = fs::read_to_string(process.join("comm")).unwrap_or_default();
    if !matches!(name.trim(), "postgres" | "postmaster") {
        return Found::Other;
    }
    match fs::read_link(process.join("cwd")) {
        Ok(directory) if directory == data => Found::Server,
        Err(nowhere) if nowhere.kind() == ErrorKind::NotFound => Found::Ended,
        _ => Found::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::tests::Scratch;

    #[test]
    fn only_a_real_server_counts_as_an_old_one() {
        let scratch = Scratch::new("cluster-old");
        let data = scratch.path.canonicalize().unwrap();
        for text in ["", "-1\n", "0\n", "rubbish\n"] {
            fs::write(data.join("postmaster.pid"), text).unwrap();
            assert_eq!(named_process(&data), None, "{text:?}");
        }
        // A number that is somebody else's by now: this test's own.
        let own = format!("{}\n", std::process::id());
        fs::write(data.join("postmaster.pid"), own).unwrap();
        assert_eq!(look_at(named_process(&data).unwrap(), &data), Found::Other);
        end_old_server(&data).unwrap();
        assert!(data.join("postmaster.pid").exists());
    }

    #[test]
    fn a_server_that_nobody_collects_does_not_block_the_next() {
        let scratch = Scratch::new("cluster-zombie");
        let data = scratch.path.canonicalize().unwrap();
        let program = data.join("postgres");
        fs::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program)
            .arg("60")
            .current_dir(&data)
            .spawn()
            .unwrap();
        let pid = Pid::from_child(&child);
        fs::write(data.join("postmaster.pid"), format!("{}\n", child.id())).unwrap();
        // The kernel renames a process a moment after `spawn` has returned.
        wait_while(COLLECTED_WITHIN, || look_at(pid, &data) == Found::Other);
        assert_eq!(look_at(pid, &data), Found::Server);
        assert_eq!(look_at(pid, Path::new("/elsewhere")), Found::Other);
        // Ends it, but only this test could collect it.
        end_old_server(&data).unwrap();
        assert!(!data.join("postmaster.pid").exists());
        child.wait().unwrap();
        assert_eq!(look_at(pid, &data), Found::Other);
    }

    #[test]
    fn a_directory_of_something_else_is_left_alone() {
        let scratch = Scratch::new("cluster-foreign");
        let data = scratch.path.join("data");
        assert_eq!(version(&data).unwrap(), None);
        fs::create_dir(&data).unwrap();
        assert!(matches!(version(&data), Err(Error::NotADatabase { .. })));
        fs::write(data.join("PG_VERSION"), "15\n").unwrap();
        assert_eq!(version(&data).unwrap(), Some(15));
    }
}
