//! Writing a month's entries out, checked against their hashes as they are read, in memory that does not grow with them.

use std::{
    collections::BTreeSet,
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

use aws_lc_rs::digest;
use flate2::{Compression, write::GzEncoder};
use futures::TryStreamExt as _;
use sqlx::PgConnection;

use super::{
    Contents, Drops, FORMAT, INSTANCES, KeepingError, KeyTold, Manifest, Month, Part, dropped,
    from_hex, manifest_path, shown, tree_of,
};
use crate::{
    checkpoint::Frontier,
    clock,
    entry::{Kind, chain},
    json, secrets,
    store::{
        audit_log::{self, Extent, Stored},
        keeping,
    },
};

/// Writes a month into the new file `to` and its manifest beside it; both are on disk when this returns. `progress` hears of
/// each thousand entries.
///
/// # Errors
/// When an entry is not as it was written, the file exists already or cannot be written, or the database is away.
pub async fn export(
    connection: &mut PgConnection,
    month: Month,
    to: &Path,
    progress: impl Fn(u64),
) -> Result<Manifest, KeepingError> {
    for path in [to, &manifest_path(to)] {
        if path.exists() {
            return Err(KeepingError::Refused(format!(
                "{} exists already: choose another name, an export is never written over",
                path.display()
            )));
        }
    }
    let beside = to.with_extension(format!("part-{}", std::process::id()));
    let file = new_file(&beside)?;
    let written = write_out(connection, month, file, progress).await;
    let whole = match written {
        Ok(whole) => whole,
        Err(error) => {
            // What is left of a failed export is of no use to anybody.
            let _ = std::fs::remove_file(&beside);
            return Err(error);
        }
    };
    std::fs::rename(&beside, to).map_err(KeepingError::file(to))?;
    let path = manifest_path(to);
    let mut file = new_file(&path)?;
    let text = serde_json::to_string_pretty(&whole)
        .map_err(|error| KeepingError::Export(error.to_string()))?;
    writeln!(file, "{text}").map_err(KeepingError::file(&path))?;
    file.sync_all().map_err(KeepingError::file(&path))?;
    // The names of both are on disk with the directory.
    let directory = to.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(KeepingError::file(directory))?;
    Ok(whole)
}

/// Entries hold what the organisation's agents did: nobody else's to read.
fn new_file(path: &Path) -> Result<File, KeepingError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(KeepingError::file(path))
}

async fn write_out(
    connection: &mut PgConnection,
    month: Month,
    file: File,
    progress: impl Fn(u64),
) -> Result<Manifest, KeepingError> {
    let out = BufWriter::with_capacity(1 << 20, Digesting::new(file));
    let mut out = GzEncoder::new(out, Compression::new(6));
    let contents = contents(connection, month, &mut out, progress).await?;
    let digesting = out
        .finish()?
        .into_inner()
        .map_err(std::io::IntoInnerError::into_error)?;
    digesting.inner.sync_all()?;
    Ok(Manifest {
        toolgate_export: FORMAT,
        exported_at: clock::now(),
        contents,
        file_bytes: digesting.bytes,
        file_sha256: digesting.hex(),
    })
}

/// Writes a month's lines to `out` and tells what they hold. The same entries give the same lines.
///
/// # Errors
/// When an entry is not as it was written, or the database is away.
pub async fn contents(
    connection: &mut PgConnection,
    month: Month,
    out: &mut impl Write,
    progress: impl Fn(u64),
) -> Result<Contents, KeepingError> {
    keeping::begin_reading(connection).await?;
    let contents = read(connection, month, out, progress).await;
    // A transaction that read only has nothing to lose; the first error is the one to tell.
    let ended = keeping::end_reading(connection).await;
    let contents = contents?;
    ended?;
    Ok(contents)
}

async fn read(
    connection: &mut PgConnection,
    month: Month,
    out: &mut impl Write,
    progress: impl Fn(u64),
) -> Result<Contents, KeepingError> {
    let mut parts = parts(connection, month).await?;
    let mut out = Digesting::new(out);
    writeln!(out, "{}", first_line(month))?;
    let (mut named, mut signing_keys) = (BTreeSet::new(), Vec::new());
    let mut entries = 0;
    let mut buffer = Vec::with_capacity(4_096);
    let mut awaited = parts.iter_mut();
    let mut current: Option<Chained<'_>> = None;
    let mut rows = audit_log::rows_between(connection, month.begins(), month.ends());
    while let Some(stored) = rows.try_next().await? {
        let broken = |words: &str| KeepingError::Broken {
            instance: stored.instance_id.clone(),
            seq: stored.seq,
            words: words.to_owned(),
        };
        if current
            .as_ref()
            .is_none_or(|chained| chained.part.instance != stored.instance_id)
        {
            if let Some(chained) = current.take() {
                chained.end();
            }
            current = awaited.next().and_then(Chained::begin);
        }
        let chained = current
            .as_mut()
            .filter(|chained| chained.part.instance == stored.instance_id)
            .ok_or_else(|| broken("what was recorded before it is not known"))?;
        if stored.seq != chained.next {
            return Err(broken("its number does not follow the one before it"));
        }
        let (hash, text) = chain::hash_and_text(&chained.head, &stored.row(), &mut buffer);
        if stored.hash.as_deref() != Some(&hash) {
            return Err(broken("its columns do not give its hash"));
        }
        out.write_all(b"{\"entry\":")?;
        out.write_all(text)?;
        if stored.seq == chained.part.first {
            write!(out, ",\"before\":\"{}\"", chained.part.before)?;
        }
        writeln!(out, ",\"hash\":\"{}\"}}", secrets::hex(&hash))?;
        chained.head = hash;
        chained.next += 1;
        chained.tree.push(&hash);
        signing_keys.extend(key_told(&stored));
        for digest in [stored.contract_digest, stored.policy_digest] {
            if let Some(digest) = digest.filter(|digest| !named.contains(digest)) {
                named.insert(digest);
            }
        }
        entries += 1;
        if u64::is_multiple_of(entries, 1_000) {
            progress(1_000);
        }
    }
    if let Some(chained) = current.take() {
        chained.end();
    }
    drop(rows);
    let (mut versions, mut missing_versions) = (Vec::new(), Vec::new());
    for digest in named {
        let Some(version) = keeping::version(connection, &digest).await? else {
            missing_versions.push(digest);
            continue;
        };
        let value = serde_json::json!({ "version": version });
        writeln!(out, "{}", json::canonical_text(&value))?;
        versions.push(digest);
    }
    out.flush()?;
    Ok(Contents {
        month,
        entries,
        instances: parts,
        signing_keys,
        versions,
        missing_versions,
        sha256: out.hex(),
    })
}

/// An instance whose entries are being read.
struct Chained<'a> {
    part: &'a mut Part,
    next: i64,
    head: chain::Hash,
    tree: Frontier,
}

impl<'a> Chained<'a> {
    fn begin(part: &'a mut Part) -> Option<Self> {
        let head = from_hex(&part.before)?;
        let tree = tree_of(part.first - 1, &part.tree_before)?;
        Some(Self {
            next: part.first,
            part,
            head,
            tree,
        })
    }

    /// There are no more of it.
    fn end(self) {
        self.part.hash = secrets::hex(&self.head);
        self.part.tree = shown(&self.tree);
    }
}

/// What an entry that names a signing key tells; none of any other.
fn key_told(stored: &Stored) -> Option<KeyTold> {
    let names_one = stored.kind == Kind::SigningKeyChanged.as_str();
    names_one.then(|| KeyTold {
        instance: stored.instance_id.clone(),
        seq: stored.seq,
        detail: stored
            .detail
            .as_deref()
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default(),
    })
}

/// The instances of a month, with the hashes before their first entries and the trees over all before them.
async fn parts(connection: &mut PgConnection, month: Month) -> Result<Vec<Part>, KeepingError> {
    let extents = keeping::extents_between(connection, month.begins(), month.ends()).await?;
    if extents.len() > INSTANCES {
        return Err(KeepingError::too_many());
    }
    let mut drops: Option<Drops> = None;
    let mut parts = Vec::with_capacity(extents.len());
    for extent in extents {
        let Some((before, tree)) = ahead(connection, &extent, &mut drops).await? else {
            return Err(KeepingError::Broken {
                instance: extent.instance_id,
                seq: extent.first,
                words: "an entry before it is missing".to_owned(),
            });
        };
        parts.push(Part {
            instance: extent.instance_id,
            first: extent.first,
            last: extent.last,
            before: secrets::hex(&before),
            hash: String::new(),
            tree_before: shown(&tree),
            tree: Vec::new(),
        });
    }
    Ok(parts)
}

/// The hash before the first entry, and the tree over all before it: over those that still stand, behind those of which only the
/// record of a drop is left. None where one is missing.
async fn ahead(
    connection: &mut PgConnection,
    extent: &Extent,
    drops: &mut Option<Drops>,
) -> Result<Option<(chain::Hash, Frontier)>, KeepingError> {
    let (instance, first) = (&extent.instance_id, extent.first);
    let begin = keeping::first_before(connection, instance, first).await?;
    let mut next = begin.unwrap_or(first);
    let (mut head, mut tree) = (chain::START, Frontier::default());
    if next != 1 {
        if drops.is_none() {
            *drops = Some(dropped::known(connection).await?);
        }
        let end = drops
            .as_ref()
            .and_then(|drops| drops.before(instance, next));
        let Some(known) = end.and_then(|end| end.hash().zip(end.tree.clone())) else {
            return Ok(None);
        };
        (head, tree) = known;
    }
    let mut rows = keeping::hashes(connection, instance, next, first);
    while let Some(row) = rows.try_next().await? {
        let hash = row.hash.and_then(|hash| chain::Hash::try_from(hash).ok());
        let Some(hash) = hash.filter(|_| row.seq == next) else {
            return Ok(None);
        };
        tree.push(&hash);
        head = hash;
        next += 1;
    }
    Ok((next == first).then_some((head, tree)))
}

pub(super) fn first_line(month: Month) -> String {
    format!("{{\"toolgate_export\":{FORMAT},\"month\":\"{month}\"}}")
}

/// Takes the SHA-256 of everything that goes through.
pub(super) struct Digesting<T> {
    pub(super) inner: T,
    context: digest::Context,
    pub(super) bytes: u64,
}

impl<T> Digesting<T> {
    pub(super) fn new(inner: T) -> Self {
        Self {
            inner,
            context: digest::Context::new(&digest::SHA256),
            bytes: 0,
        }
    }

    fn seen(&mut self, bytes: &[u8]) {
        self.context.update(bytes);
        self.bytes += u64::try_from(bytes.len()).unwrap_or(0);
    }

    /// The digest of what went through so far.
    pub(super) fn hex(&self) -> String {
        secrets::hex(self.context.clone().finish().as_ref())
    }
}

impl<T: Write> Write for Digesting<T> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.seen(bytes.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}

impl<T: std::io::Read> std::io::Read for Digesting<T> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.seen(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }
}
