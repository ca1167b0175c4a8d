//! Halts that the database does not have yet, in small files beside it: one for each, flushed to disk before the halt is
//! acknowledged, removed once it is recorded. A gateway that stops in between starts halted.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use super::{KillSwitch, Scope};
use crate::ids::KillSwitchId;

/// More files than this are an error: nobody pulls so many kill switches during one outage of the database.
const MOST: usize = 10_000;

/// The directory with the files.
#[derive(Debug, Clone)]
pub struct Journal {
    directory: PathBuf,
}

impl Journal {
    /// Below the gateway's state directory. Makes it, open to its owner alone.
    ///
    /// # Errors
    /// When it cannot be made or written to.
    pub fn open(state: &Path) -> io::Result<Self> {
        let directory = state.join("halts");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)?;
        // A directory that cannot be written to is found out now and not at the first halt.
        let probe = directory.join("probe.tmp");
        drop(private(&probe)?);
        fs::remove_file(&probe)?;
        Ok(Self { directory })
    }

    /// Keeps a halt. When this returns it is on disk.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn keep(&self, kill_switch: &KillSwitch) -> io::Result<()> {
        let text = json!({
            "kill_switch": kill_switch.id,
            "scope": kill_switch.scope.to_json(),
            "reason": kill_switch.reason,
            "operator": kill_switch.operator,
            "pulled_at": kill_switch.pulled_at,
        });
        let unfinished = self.directory.join(format!("{}.tmp", kill_switch.id));
        let mut file = private(&unfinished)?;
        file.write_all(text.to_string().as_bytes())?;
        file.sync_all()?;
        fs::rename(&unfinished, self.path(&kill_switch.id))?;
        // The name must be on disk as well.
        File::open(&self.directory)?.sync_all()
    }

    /// Forgets a halt that is recorded.
    ///
    /// # Errors
    /// When its file cannot be removed.
    pub fn forget(&self, id: &KillSwitchId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Every halt that is kept, oldest first.
    ///
    /// # Errors
    /// For a file that cannot be read or understood: it must not be taken for *not halted*.
    pub fn all(&self) -> Result<Vec<KillSwitch>, String> {
        let told = |error: &dyn std::fmt::Display, path: &Path| {
            format!(
                "{}: {error}. It keeps a halt that was not recorded. Read it, pull the halt again if it still must hold once the gateway runs, and move the file away",
                path.display()
            )
        };
        let mut found = Vec::new();
        let entries =
            fs::read_dir(&self.directory).map_err(|error| told(&error, &self.directory))?;
        for (at, entry) in entries.enumerate() {
            if at >= MOST {
                return Err(told(&format!("more than {MOST} files"), &self.directory));
            }
            let path = entry.map_err(|error| told(&error, &self.directory))?.path();
            // One that was not finished was not acknowledged either.
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            let text = fs::read(&path).map_err(|error| told(&error, &path))?;
            found.push(read(&text).map_err(|problem| told(&problem, &path))?);
        }
        found.sort_by(|one: &KillSwitch, other| one.id.cmp(&other.id));
        Ok(found)
    }

    fn path(&self, id: &KillSwitchId) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}

fn read(text: &[u8]) -> Result<KillSwitch, String> {
    let value: Value = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let text = |pointer: &str| {
        value
            .pointer(pointer)
            .and_then(Value::as_str)
            .ok_or_else(|| format!("{pointer} is missing"))
    };
    Ok(KillSwitch {
        id: text("/kill_switch")?
            .parse()
            .map_err(|_not_an_id| "its id is none".to_owned())?,
        scope: Scope::parse(text("/scope/kind")?, text("/scope/id").ok())?,
        reason: text("/reason")?.to_owned(),
        operator: text("/operator")?.into(),
        pulled_at: text("/pulled_at")?
            .parse()
            .map_err(|_not_a_time| "its time is none".to_owned())?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::clock;

    #[test]
    fn what_is_kept_is_read_back_private_and_what_is_unclear_is_an_error() {
        let state = std::env::temp_dir().join(format!("tg-journal-{}", KillSwitchId::generate()));
        let journal = Journal::open(&state).unwrap();
        assert!(journal.all().unwrap().is_empty());
        let pulled = |scope| KillSwitch {
            id: KillSwitchId::generate(),
            scope,
            reason: "a \"reason\"\nof two lines".to_owned(),
            operator: "ada".into(),
            pulled_at: clock::now(),
        };
        let (first, second) = (
            pulled(Scope::Everything),
            pulled(Scope::Tool("desk.refunds.create".into())),
        );
        journal.keep(&second).unwrap();
        journal.keep(&first).unwrap();
        let read = journal.all().unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].id, first.id);
        assert_eq!(read[1].scope, second.scope);
        assert_eq!(read[1].reason, second.reason);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&journal.path(&first.id)), 0o600);
        assert_eq!(mode(&journal.directory), 0o700);
        journal.forget(&first.id).unwrap();
        journal.forget(&first.id).unwrap();
        assert_eq!(journal.all().unwrap().len(), 1);
        // Not finished: nobody was told that it holds.
        fs::write(journal.directory.join("halt_X.tmp"), "{").unwrap();
        assert_eq!(journal.all().unwrap().len(), 1);
        fs::write(journal.directory.join("halt_X.json"), "{").unwrap();
        assert!(journal.all().unwrap_err().contains("halt_X.json"));
        fs::remove_dir_all(&state).unwrap();
    }
}
