//! A file to which checkpoints are appended: on another disk, on a share that the database's owner cannot write, or where a log
//! shipper reads.

use std::{
    fs::OpenOptions,
    io::{self, Write as _},
    path::PathBuf,
    time::Duration,
};

/// How long one append may take: a share may hang.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where the file is. Its directory must be there.
#[derive(Debug, Clone)]
pub struct FileSettings {
    /// The file.
    pub path: PathBuf,
}

pub(super) struct FileSink {
    path: PathBuf,
}

impl FileSink {
    pub fn new(settings: &FileSettings) -> Self {
        Self {
            path: settings.path.clone(),
        }
    }

    /// Returns when it is on disk.
    pub async fn append(&self, note: &str) -> Result<(), String> {
        let (path, note) = (self.path.clone(), note.to_owned());
        let appending = tokio::task::spawn_blocking(move || append(&path, &note));
        match tokio::time::timeout(TIMEOUT, appending).await {
            Ok(Ok(result)) => {
                result.map_err(|error| format!("cannot append to {}: {error}", self.path.display()))
            }
            Ok(Err(_panicked)) => Err("appending broke off".to_owned()),
            Err(_elapsed) => Err(format!(
                "appending to {} takes too long",
                self.path.display()
            )),
        }
    }
}

fn append(path: &std::path::Path, note: &str) -> io::Result<()> {
    // Opened each time: a file that was moved away by a log rotation is begun anew.
    let mut file = OpenOptions::new().append(true).create(true).open(path)?;
    let before = file.metadata()?.len();
    let written = file
        .write_all(note.as_bytes())
        .and_then(|()| file.sync_all());
    if written.is_err() {
        // Half a note would spoil the one behind it.
        file.set_len(before)?;
    }
    written
}
