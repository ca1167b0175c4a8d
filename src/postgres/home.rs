//! The directory the built-in database lives in: who may enter which part of it, the lock that keeps a
//! second gateway out, the superuser's password and the place of the socket.
//!
//! Everything directly in the home belongs to the gateway's user; when that is root, the database's user
//! owns only `postgres/data` and the socket directory, and passes through the rest. Root therefore never
//! creates or renames anything inside a directory that the database's user could tamper with.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{ErrorKind, Read, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::{digest, rand};

use super::{Error, user::User};

/// The longest socket path that every system and client library takes, in bytes.
const SOCKET_PATH_MAX: usize = 103;

/// What the names of unfinished databases begin with.
const SIDE_PREFIX: &str = "data.new-";

/// A home that this process has for itself.
#[derive(Debug)]
pub(super) struct Home {
    /// Absolute, links resolved.
    pub(super) path: PathBuf,
    pub(super) user: User,
    /// Held open for its lock, which ends with the process at the latest.
    _lock: File,
}

impl Home {
    /// Creates the home where it is missing, and takes its lock.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let root = rustix::process::geteuid().is_root();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|source| Error::io("create", parent, source))?;
        }
        let passable = if root { 0o711 } else { 0o700 };
        directory(path, passable, false)?;
        let path = path
            .canonicalize()
            .map_err(|source| Error::io("find", path, source))?;
        let lock = lock(&path)?;
        let user = User::for_data(&path.join("postgres/data"))?;
        if let Some(closed) = user.stopped_at(&path) {
            return Err(Error::Unreachable {
                home: path,
                closed,
                uid: user.uid,
            });
        }
        directory(&path.join("postgres"), passable, true)?;
        directory(&path.join("secrets"), 0o700, true)?;
        Ok(Self {
            path,
            user,
            _lock: lock,
        })
    }

    /// Where the database's files are.
    pub(super) fn data(&self) -> PathBuf {
        self.path.join("postgres/data")
    }

    /// Where this process makes a new database, before it is complete and renamed. No two processes share
    /// the name, because what a killed one left running may still write to its own.
    pub(super) fn side(&self) -> PathBuf {
        let name = format!("{SIDE_PREFIX}{}", std::process::id());
        self.path.join("postgres").join(name)
    }

    /// Unfinished databases, of this and of earlier processes.
    pub(super) fn sides(&self) -> Result<Vec<PathBuf>, Error> {
        let above = self.path.join("postgres");
        let entries = fs::read_dir(&above).map_err(|source| Error::io("list", &above, source))?;
        Ok(entries
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().starts_with(SIDE_PREFIX))
            .map(|entry| entry.path())
            .collect())
    }

    /// Where the server writes its log.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join("postgres/server.log")
    }

    /// A directory of the database's user that nobody else can enter.
    pub(super) fn private_directory(&self, path: &Path) -> Result<(), Error> {
        directory(path, 0o700, false)?;
        if self.user.switch {
            std::os::unix::fs::lchown(path, Some(self.user.uid), Some(self.user.gid))
                .map_err(|source| Error::io("give away", path, source))?;
        }
        Ok(())
    }

    /// A new file that only the database's user (and root) can read.
    pub(super) fn private_file(&self, path: &Path, text: &str) -> Result<(), Error> {
        let written = fresh(path).and_then(|mut file| {
            if self.user.switch {
                std::os::unix::fs::fchown(&file, Some(self.user.uid), Some(self.user.gid))?;
            }
            file.write_all(text.as_bytes())
        });
        written.map_err(|source| Error::io("write", path, source))
    }

    /// The superuser's password, made on first use.
    pub(super) fn superuser_password(&self) -> Result<String, Error> {
        let path = self.path.join("secrets/superuser.password");
        match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
            Ok(_) => {}
            Err(missing) if missing.kind() == ErrorKind::NotFound => {}
            Err(source) => return Err(Error::io("read", &path, source)),
        }
        if self.data().exists() {
            return Err(Error::PasswordLost {
                path,
                data: self.data(),
            });
        }
        let password = random_password()?;
        // Written beside and renamed, so that a crash leaves either no password or a whole one.
        let side = path.with_extension("new");
        fresh(&side)
            .and_then(|mut file| {
                writeln!(file, "{password}")?;
                file.sync_all()
            })
            .and_then(|()| fs::rename(&side, &path))
            .and_then(|()| sync_directory(&self.path.join("secrets")))
            .map_err(|source| Error::io("write", &path, source))?;
        Ok(password)
    }

    /// Creates the directory of the socket: in the home, or in `/tmp` when clients could not name that.
    pub(super) fn socket_directory(&self) -> Result<PathBuf, Error> {
        let at_home = self.path.join("postgres/socket");
        if can_hold_socket(&at_home) {
            self.private_directory(&at_home)?;
            return Ok(at_home);
        }
        let hash = digest::digest(&digest::SHA256, self.path.as_os_str().as_bytes());
        let name = format!(
            "/tmp/toolgate-{}-{}",
            self.user.uid,
            hex(hash.as_ref().iter().take(8))
        );
        let path = PathBuf::from(name);
        self.claim_in_public(&path)?;
        Ok(path)
    }

    /// Creates a private directory where everybody may create one, or takes an earlier one of our own.
    fn claim_in_public(&self, path: &Path) -> Result<(), Error> {
        match DirBuilder::new().mode(0o700).create(path) {
            Ok(()) => {}
            Err(taken) if taken.kind() == ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::io("create", path, source)),
        }
        let found =
            fs::symlink_metadata(path).map_err(|source| Error::io("look at", path, source))?;
        let own = rustix::process::geteuid().as_raw();
        let reason = if !found.is_dir() {
            "it is not a directory".to_owned()
        } else if found.uid() != own && found.uid() != self.user.uid {
            format!("it belongs to user {}", found.uid())
        } else if found.mode() & 0o7777 != 0o700 {
            format!("its mode is {:o} and not 700", found.mode() & 0o7777)
        } else {
            // INVARIANT: from here on only root and the database's user can replace it: /tmp is sticky.
            return self.private_directory(path);
        };
        Err(Error::SocketDirectory {
            path: path.to_path_buf(),
            reason,
        })
    }
}

/// Makes entries of a directory survive a power cut.
pub(super) fn sync_directory(path: &Path) -> std::io::Result<()> {
    File::open(path)?.sync_all()
}

/// Creates a directory with exactly this mode, whatever the umask. An existing one is left as it is unless
/// `enforce` says that it is ours alone.
fn directory(path: &Path, mode: u32, enforce: bool) -> Result<(), Error> {
    let created = match DirBuilder::new().mode(mode).create(path) {
        Ok(()) => true,
        Err(_) if path.is_dir() => false,
        Err(source) => return Err(Error::io("create", path, source)),
    };
    let differs = || fs::metadata(path).is_ok_and(|found| found.mode() & 0o777 != mode);
    if (created || enforce) && differs() {
        fs::set_permissions(path, Permissions::from_mode(mode))
            .map_err(|source| Error::io("set the mode of", path, source))?;
    }
    Ok(())
}

/// A file that did not exist before, for its owner only. A leftover of the same name is removed.
fn fresh(path: &Path) -> std::io::Result<File> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// A child that was being started when its gateway was killed holds the lock until it has become another program.
fn try_for_a_moment(file: &File) -> Result<(), TryLockError> {
    const TRIES: u32 = 10;
    for _ in 0..TRIES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(50)),
            other => return other,
        }
    }
    file.try_lock()
}

fn lock(home: &Path) -> Result<File, Error> {
    let path = home.join("lock");
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|source| Error::io("open", &path, source))?;
    match try_for_a_moment(&file) {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let known = file.read_to_string(&mut holder).is_ok() && !holder.trim().is_empty();
            return Err(Error::Locked {
                home: home.to_path_buf(),
                holder: if known {
                    holder.trim().to_owned()
                } else {
                    "unknown".to_owned()
                },
            });
        }
        Err(TryLockError::Error(source)) => return Err(Error::io("lock", &path, source)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(|source| Error::io("write", &path, source))?;
    Ok(file)
}

/// Whether clients can name a socket in this directory. libpq takes a comma for the start of a second
/// host, and PostgreSQL for the start of a second directory, so such paths do not count.
fn can_hold_socket(directory: &Path) -> bool {
    let longest = SOCKET_PATH_MAX - "/.s.PGSQL.5432".len();
    directory
        .to_str()
        .is_some_and(|path| path.len() <= longest && !path.contains([',', '"']))
}

fn random_password() -> Result<String, Error> {
    let mut bytes = [0_u8; 32];
    rand::fill(&mut bytes).map_err(|_| Error::NoRandomness)?;
    Ok(hex(bytes.iter()))
}

fn hex<'a>(bytes: impl Iterator<Item = &'a u8>) -> String {
    bytes.map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{default_home, tests::Scratch};

    fn mode(path: &Path) -> u32 {
        fs::symlink_metadata(path).unwrap().mode() & 0o7777
    }

    #[test]
    fn only_the_passage_is_open() {
        let scratch = Scratch::new("home-modes");
        let home = Home::open(&scratch.path.join("deep/home")).unwrap();
        let passable = if home.user.switch { 0o711 } else { 0o700 };
        assert_eq!(mode(&home.path), passable);
        assert_eq!(mode(&home.path.join("postgres")), passable);
        assert_eq!(mode(&home.path.join("secrets")), 0o700);
        assert_eq!(mode(&home.path.join("lock")), 0o600);
        let socket = home.socket_directory().unwrap();
        assert_eq!(mode(&socket), 0o700);
        assert_eq!(fs::metadata(&socket).unwrap().uid(), home.user.uid);
    }

    #[test]
    fn a_second_one_is_told_who_has_it() {
        let scratch = Scratch::new("home-lock");
        let first = Home::open(&scratch.path).unwrap();
        let said = Home::open(&scratch.path).unwrap_err().to_string();
        let expected = format!("(pid {})", std::process::id());
        assert!(said.contains("another toolgate already runs"), "{said}");
        assert!(said.contains(&expected), "{said}");
        drop(first);
        Home::open(&scratch.path).unwrap();
    }

    #[test]
    fn the_password_is_made_once_and_never_replaced_under_a_database() {
        let scratch = Scratch::new("home-password");
        let home = Home::open(&scratch.path).unwrap();
        let first = home.superuser_password().unwrap();
        assert_eq!(first.len(), 64);
        assert_eq!(home.superuser_password().unwrap(), first);
        let path = scratch.path.join("secrets/superuser.password");
        assert_eq!(mode(&path), 0o600);
        fs::remove_file(&path).unwrap();
        fs::create_dir(home.data()).unwrap();
        let said = home.superuser_password().unwrap_err();
        assert!(matches!(said, Error::PasswordLost { .. }), "{said}");
    }

    #[test]
    fn a_directory_in_tmp_is_taken_only_when_it_is_ours_and_closed() {
        let scratch = Scratch::new("home-claim");
        let home = Home::open(&scratch.path.join("home")).unwrap();
        let place = scratch.path.join("claimed");
        home.claim_in_public(&place).unwrap();
        home.claim_in_public(&place).unwrap();
        fs::set_permissions(&place, Permissions::from_mode(0o755)).unwrap();
        assert!(home.claim_in_public(&place).is_err());
        let link = scratch.path.join("link");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(home.claim_in_public(&link).is_err());
        if home.user.switch {
            let other = scratch.path.join("other");
            DirBuilder::new().mode(0o700).create(&other).unwrap();
            std::os::unix::fs::chown(&other, Some(12_345), None).unwrap();
            assert!(home.claim_in_public(&other).is_err());
        }
    }

    #[test]
    fn knows_which_socket_paths_clients_can_name() {
        assert!(can_hold_socket(Path::new("/home/me/my project/.toolgate")));
        assert!(can_hold_socket(Path::new(&format!("/{}", "a".repeat(88)))));
        assert!(!can_hold_socket(Path::new(&format!("/{}", "a".repeat(89)))));
        assert!(!can_hold_socket(Path::new("/a,b")));
    }

    #[test]
    fn root_does_not_use_a_directory_that_is_closed_to_the_database() {
        let scratch = Scratch::new("closed");
        assert_eq!(default_home(&scratch.path), scratch.path.join(".toolgate"));
        fs::set_permissions(&scratch.path, Permissions::from_mode(0o700)).unwrap();
        let home = default_home(&scratch.path);
        if rustix::process::geteuid().is_root() {
            assert_eq!(home, Path::new("/var/lib/toolgate"));
            let said = Home::open(&scratch.path.join("home")).unwrap_err();
            assert!(matches!(said, Error::Unreachable { .. }), "{said}");
            assert!(said.to_string().contains("chmod o+x"), "{said}");
        } else {
            assert_eq!(home, scratch.path.join(".toolgate"));
        }
    }
}
