//! Everything that can keep the built-in database from running, each with what a person can do about it.

use std::{
    io,
    path::{Path, PathBuf},
};

/// Why the built-in database does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine has no fitting PostgreSQL.
    #[error(
        "the built-in database needs PostgreSQL's programs `initdb` and `postgres`, {wanted} and found {found} \
         (searched: the directories on PATH, {}/*/bin and {}); install them, on Debian or Ubuntu with \
         `apt-get install {package}`, or give the URL of a PostgreSQL that runs elsewhere",
        versions.display(), last.display()
    )]
    Programs {
        /// The version that is needed.
        wanted: String,
        /// What is there instead.
        found: String,
        /// The Debian package that has it.
        package: String,
        /// The directory with one subdirectory for each version.
        versions: PathBuf,
        /// The directory searched last.
        last: PathBuf,
    },
    /// Another gateway uses the home.
    #[error("another toolgate already runs in this home, {} (pid {holder}); stop it, or use another home", home.display())]
    Locked {
        /// The home.
        home: PathBuf,
        /// The other gateway's process number, or `unknown`.
        holder: String,
    },
    /// There is no user to run the database as, or the wrong one.
    #[error("cannot run the database in {}: {reason}", data.display())]
    User {
        /// The database's directory.
        data: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The database's user cannot get to its directory.
    #[error(
        "the database runs as user {uid}, who may not enter {} on the way to the home {}; use another home, \
         such as /var/lib/toolgate, or allow it with `chmod o+x`", closed.display(), home.display()
    )]
    Unreachable {
        /// The home.
        home: PathBuf,
        /// The first directory that is closed.
        closed: PathBuf,
        /// The database's user.
        uid: u32,
    },
    /// The socket's directory cannot be trusted.
    #[error("{} cannot hold the database's socket: {reason}; remove it, or use a home with a shorter path", path.display())]
    SocketDirectory {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is a database, but not the password that belongs to it.
    #[error("{} is missing or empty, and the database in {} cannot be opened without it; restore it from a backup", path.display(), data.display())]
    PasswordLost {
        /// Where the password should be.
        path: PathBuf,
        /// The database's directory.
        data: PathBuf,
    },
    /// Something that is no database stands in the database's place.
    #[error("{} is not a PostgreSQL database; move it away, or use another home", data.display())]
    NotADatabase {
        /// The database's directory.
        data: PathBuf,
    },
    /// `initdb` failed.
    #[error("initdb could not create the database {}: {output}", data.display())]
    Initdb {
        /// The database's directory.
        data: PathBuf,
        /// What `initdb` said.
        output: String,
    },
    /// The server of an earlier gateway does not end.
    #[error("an earlier PostgreSQL (pid {pid}) still works in {} and does not end; end it by hand and start again", data.display())]
    OldServer {
        /// Its process number.
        pid: i32,
        /// The database's directory.
        data: PathBuf,
    },
    /// The server ended while starting.
    #[error("the built-in PostgreSQL did not start: {how}. The end of {}:\n{tail}\n{}", log.display(), advice(tail))]
    Ended {
        /// How it ended.
        how: String,
        /// The server's log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
    },
    /// The server runs but cannot be used.
    #[error("the built-in PostgreSQL runs, but does not let the gateway in. The end of {}:\n{tail}", log.display())]
    NotReady {
        /// The server's log.
        log: PathBuf,
        /// The last lines of the log.
        tail: String,
        /// The last attempt's error.
        source: Option<sqlx::Error>,
    },
    /// The system's random number generator failed.
    #[error("the system has no random numbers to make a password of")]
    NoRandomness,
    /// A thread that did the work broke down.
    #[error("starting the database was interrupted")]
    Interrupted,
    /// The file system, or the system itself, refused something.
    #[error("could not {doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            doing,
            path: path.to_path_buf(),
            source,
        }
    }
}

/// What a person can do about a server that ended while starting.
fn advice(tail: &str) -> &'static str {
    const KNOWN: [(&str, &str); 4] = [
        (
            "No space left on device",
            "Make room on the disk and start again; nothing that was committed is lost.",
        ),
        (
            "shared memory",
            "The system gives PostgreSQL too little shared memory: in a container, allow more with \
             `--shm-size=256m`; otherwise see whether another server still uses this database.",
        ),
        (
            "lock file",
            "If no other process uses this database, remove `postmaster.pid` from its directory.",
        ),
        (
            "Permission denied",
            "Give the database's user access to the files named above.",
        ),
    ];
    KNOWN.iter().find(|(sign, _)| tail.contains(sign)).map_or(
        "Start again when the cause named there is gone; nothing that was committed is lost.",
        |(_, advice)| advice,
    )
}
