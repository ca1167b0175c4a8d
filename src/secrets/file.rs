//! Files that hold secrets: written whole or not at all, and readable by their owner alone.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::Path,
};

/// Writes a line into a file that only its owner can read, whole or not at all, and makes its directory where there is none.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    replace(path, text, 0o600)
}

/// The same for a file that everybody may read.
///
/// # Errors
/// When the directory cannot be written.
pub fn write_public(path: &Path, text: &str) -> io::Result<()> {
    replace(path, text, 0o644)
}

fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(directory)?;
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&beside)?;
    file.set_permissions(Permissions::from_mode(mode))?;
    writeln!(file, "{text}")?;
    file.sync_all()?;
    std::fs::rename(&beside, path)?;
    // The name is on disk only when its directory is.
    File::open(directory)?.sync_all()
}
