//! Reading the files that a person wrote, with the path in every error.

use std::path::{Path, PathBuf};

use crate::diagnostics::SourceFile;

/// Every file of a directory with the given extension, sorted by name.
///
/// # Errors
/// When the directory or a file in it cannot be read, or the directory holds none.
pub fn read_directory(directory: &Path, extension: &str) -> Result<Vec<SourceFile>, String> {
    let unreadable =
        |error: std::io::Error| format!("cannot read {}: {error}", directory.display());
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)
        .map_err(unreadable)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()
        .map_err(unreadable)?;
    paths.retain(|path| path.extension().is_some_and(|found| found == extension));
    paths.sort();
    if paths.is_empty() {
        return Err(format!(
            "{} holds no *.{extension} file",
            directory.display()
        ));
    }
    paths.into_iter().map(read_file).collect()
}

/// One file, with the path in the error.
///
/// # Errors
/// When it cannot be read or is not UTF-8.
pub fn read_file(path: PathBuf) -> Result<SourceFile, String> {
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(SourceFile::new(path, text)),
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}
