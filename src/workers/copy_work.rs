//! Copies the work list to a file, so that people can go on when even the gateway is down. It is what `toolgate work export`
//! prints without real arguments. A copy takes the place of the one before it whole, or not at all.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    fs::{self, File, OpenOptions},
    io::AsyncWriteExt as _,
};

use crate::{
    app::App,
    config::WorkListCopy,
    resolving::export::{Pages, Printer},
    store::StoreError,
};

/// A copy may take as long as until the next one is due, and at least so long.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
enum NotCopied {
    #[error(transparent)]
    Away(#[from] StoreError),
    #[error("it could not be written")]
    Unwritten(#[from] io::Error),
}

pub(super) async fn turn(app: Arc<App>) -> Result<(), StoreError> {
    let Some(settings) = &app.config.work_list_copy else {
        return Ok(());
    };
    let copying = copy(&app, settings);
    let told = match tokio::time::timeout(settings.every.max(PATIENCE), copying).await {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(NotCopied::Away(error))) => return Err(error),
        Ok(Err(NotCopied::Unwritten(error))) => error.to_string(),
        Err(_elapsed) => "it takes too long".to_owned(),
    };
    tracing::error!(
        file = %settings.file.display(),
        error = told,
        "the work list could not be copied; the copy that is there is an older one"
    );
    Ok(())
}

async fn copy(app: &App, settings: &WorkListCopy) -> Result<(), NotCopied> {
    let mut connection = app.reading.pool.acquire().await.map_err(StoreError::from)?;
    let unfinished = unfinished(&settings.file)?;
    let mut file = private(&unfinished).await?;
    let mut printer = Printer::new(settings.format);
    let mut pages = Pages::of(None);
    while let Some(rows) = pages.next(&mut connection).await? {
        file.write_all(printer.page(&rows).as_bytes()).await?;
    }
    file.write_all(printer.end().as_bytes()).await?;
    file.sync_all().await?;
    fs::rename(&unfinished, &settings.file).await?;
    // The name must be on disk as well.
    let directory = settings.file.parent().filter(|path| *path != Path::new(""));
    File::open(directory.unwrap_or(Path::new(".")))
        .await?
        .sync_all()
        .await?;
    if !pages.are_all() {
        tracing::warn!(
            file = %settings.file.display(),
            "the work list is longer than its copy: only the oldest items are in it"
        );
    }
    Ok(())
}

/// Beside the file, so that renaming it is one step.
fn unfinished(file: &Path) -> io::Result<PathBuf> {
    let name = file.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(file.with_file_name(format!(".{}.tmp", name.to_string_lossy())))
}

/// A new file for its owner alone; what a copy that broke off has left goes first.
async fn private(path: &Path) -> io::Result<File> {
    match fs::remove_file(path).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .await
}
