//! The file that holds the key for checkpoints: made on the first start, outside the database, readable by its owner alone, with
//! the public key in a file beside it. Behind the key stand the handovers that led to it, so that a gateway that was down can
//! still prove in its records how one key came to follow another.

use std::{
    fs::OpenOptions,
    io,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

use crate::{
    checkpoint::{self, Handover, KeyError, SigningKey, VerifierKey},
    secrets,
};

/// Handovers that a file keeps: the newest, more than a gateway could miss.
const HANDOVERS: usize = 64;

/// Why there is no key to sign with.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    /// The file cannot be read or written.
    #[error("cannot use the signing key in {path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: io::Error,
    },
    /// Somebody else can read it.
    #[error(
        "{path} can be read by others (mode {mode:o}): whoever has read it can sign checkpoints. Run chmod 600 on it, and toolgate audit rotate-key if it may have been read"
    )]
    Exposed {
        /// The file.
        path: String,
        /// Its permissions.
        mode: u32,
    },
    /// It holds something else.
    #[error("{path} holds no signing key: {reason}; restore it from a backup")]
    NoKey {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The installation's name is no key's name.
    #[error("checkpoints.installation: {0}")]
    Name(KeyError),
}

/// How the key in the file came to follow the one that the records name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The records name none yet.
    First(VerifierKey),
    /// The key before has signed over.
    Proved(Handover),
    /// The file was replaced: nothing proves that whoever did it held the key before.
    Unproved {
        /// The key that the records name.
        old: VerifierKey,
        /// The key in the file.
        new: VerifierKey,
    },
}

/// A key as its file holds it.
#[derive(Debug)]
pub struct Held {
    /// The key.
    pub key: SigningKey,
    handovers: Vec<Handover>,
}

impl Held {
    /// What must be recorded so that the records name this key, when they name `recorded` now.
    pub fn steps_from(&self, recorded: Option<&VerifierKey>) -> Vec<Step> {
        let new = self.key.verifier();
        let Some(old) = recorded else {
            return vec![Step::First(new.clone())];
        };
        let (mut at, mut steps) = (old, Vec::new());
        for handover in &self.handovers {
            if at != new && handover.old == *at {
                at = &handover.new;
                steps.push(Step::Proved(handover.clone()));
            }
        }
        if at == new {
            return steps;
        }
        vec![Step::Unproved {
            old: old.clone(),
            new: new.clone(),
        }]
    }

    /// Hands over to the next key.
    fn succeeded_by(mut self, next: SigningKey) -> Self {
        self.handovers.push(Handover::sign(&self.key, &next));
        let surplus = self.handovers.len().saturating_sub(HANDOVERS);
        self.handovers.drain(..surplus);
        Self {
            key: next,
            handovers: self.handovers,
        }
    }
}

/// The key of this installation; a new one where there is no file yet, and the same key under the new name where the
/// installation is called something else now.
///
/// # Errors
/// When the file cannot be read or written, is open to others, or holds no key.
pub fn open(path: &Path, installation: &str) -> Result<Held, SigningError> {
    let _lock = lock(path)?;
    let held = match load(path) {
        Err(SigningError::File { reason, .. }) if reason.kind() == io::ErrorKind::NotFound => {
            let key = SigningKey::generate(installation).map_err(SigningError::Name)?;
            Held {
                key,
                handovers: Vec::new(),
            }
        }
        Ok(held) if held.key.verifier().name() == installation => return Ok(held),
        Ok(held) => {
            let renamed = held.key.renamed(installation);
            held.succeeded_by(renamed.map_err(SigningError::Name)?)
        }
        Err(error) => return Err(error),
    };
    save(path, &held)?;
    Ok(held)
}

/// Replaces the key by a new one to which the old one has signed over. Gives the old and the new public key.
///
/// # Errors
/// As for [`open`]; a file must be there.
pub fn rotate(path: &Path, installation: &str) -> Result<(VerifierKey, VerifierKey), SigningError> {
    let _lock = lock(path)?;
    let held = load(path)?;
    let old = held.key.verifier().clone();
    let next = SigningKey::generate(installation).map_err(SigningError::Name)?;
    let held = held.succeeded_by(next);
    save(path, &held)?;
    Ok((old, held.key.verifier().clone()))
}

/// Reads the file as it is.
///
/// # Errors
/// When it cannot be read, is open to others, or holds no key.
pub fn load(path: &Path) -> Result<Held, SigningError> {
    let failed = |reason| file_error(path, reason);
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(SigningError::Exposed {
            path: path.display().to_string(),
            mode,
        });
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut file, &mut text).map_err(failed)?;
    let no_key = |reason: String| SigningError::NoKey {
        path: path.display().to_string(),
        reason,
    };
    let (key, rest) = text.split_once('\n').unwrap_or((&text, ""));
    let key = SigningKey::parse(key).map_err(|error| no_key(error.to_string()))?;
    let handovers = checkpoint::notes(rest.as_bytes())
        .map(|split| {
            let bytes = split.map_err(failed)?.bytes;
            Handover::parse(&String::from_utf8_lossy(&bytes))
                .map_err(|error| no_key(error.to_string()))
        })
        .collect::<Result<_, _>>()?;
    Ok(Held { key, handovers })
}

fn save(path: &Path, held: &Held) -> Result<(), SigningError> {
    let failed = |reason| file_error(path, reason);
    let notes: Vec<&str> = held.handovers.iter().map(Handover::note).collect();
    let text = format!("{}\n{}", held.key.to_text().expose(), notes.concat());
    secrets::write_private(path, text.trim_end()).map_err(failed)?;
    secrets::write_public(&public(path), &held.key.verifier().to_string()).map_err(failed)
}

/// The file with the public key.
pub fn public(path: &Path) -> PathBuf {
    path.with_extension("vkey")
}

/// Two who change the file at the same time would lose one of the changes, and the proof of it.
fn lock(path: &Path) -> Result<std::fs::File, SigningError> {
    let failed = |reason| file_error(path, reason);
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(failed)?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path.with_extension("lock"))
        .map_err(failed)?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| failed(error.into()))?;
    Ok(file)
}

fn file_error(path: &Path, reason: io::Error) -> SigningError {
    SigningError::File {
        path: path.display().to_string(),
        reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn home() -> PathBuf {
        let name = format!("toolgate-signing-{}", crate::secrets::random_hex().unwrap());
        std::env::temp_dir().join(name)
    }

    #[test]
    fn a_key_is_made_once_and_follows_its_handovers() {
        let home = home();
        let path = home.join("secrets/signing.key");
        let first = open(&path, "a").unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o600);
        let written = std::fs::read_to_string(public(&path)).unwrap();
        assert_eq!(written.trim(), first.key.verifier().to_string());
        assert_eq!(
            open(&path, "a").unwrap().key.verifier(),
            first.key.verifier()
        );
        assert!(matches!(
            first.steps_from(None).as_slice(),
            [Step::First(_)]
        ));
        assert_eq!(first.steps_from(Some(first.key.verifier())), []);

        let (old, second) = rotate(&path, "a").unwrap();
        assert_eq!(old, *first.key.verifier());
        let (_, third) = rotate(&path, "a").unwrap();
        let held = open(&path, "a").unwrap();
        assert_eq!(*held.key.verifier(), third);
        assert_eq!(mode(&path), 0o600);
        let steps = held.steps_from(Some(&old));
        assert!(
            matches!(steps.as_slice(), [Step::Proved(one), Step::Proved(two)]
                if one.new == second && two.new == third),
            "{steps:?}"
        );
        assert_eq!(held.steps_from(Some(&second)).len(), 1);

        let renamed = open(&path, "b").unwrap();
        assert_eq!(renamed.key.verifier().name(), "b");
        assert!(matches!(
            renamed.steps_from(Some(&third)).as_slice(),
            [Step::Proved(_)]
        ));

        std::fs::remove_file(&path).unwrap();
        let other = open(&path, "b").unwrap();
        let steps = other.steps_from(Some(renamed.key.verifier()));
        assert!(
            matches!(steps.as_slice(), [Step::Unproved { .. }]),
            "{steps:?}"
        );
        std::fs::remove_dir_all(&home).unwrap();
    }

    #[test]
    fn a_key_that_others_can_read_is_refused_and_so_is_anything_else() {
        let home = home();
        let path = home.join("signing.key");
        open(&path, "a").unwrap();
        for mode in [0o640, 0o604, 0o660] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let error = open(&path, "a").unwrap_err();
            assert!(matches!(error, SigningError::Exposed { .. }), "{error}");
            assert!(rotate(&path, "a").is_err());
        }
        std::fs::remove_file(&path).unwrap();
        assert!(rotate(&path, "a").is_err(), "there is nothing to rotate");
        secrets::write_private(&path, "something else").unwrap();
        assert!(matches!(
            open(&path, "a").unwrap_err(),
            SigningError::NoKey { .. }
        ));
        std::fs::remove_dir_all(&home).unwrap();
    }
}
