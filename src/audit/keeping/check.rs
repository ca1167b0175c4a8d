//! Checking an export with nothing but its two files: the digest of the file, its manifest, each entry's hash over the one before
//! it, and the texts of contracts and policies against their digests. Reads line by line, in memory that does not grow with them.

use std::{
    borrow::Cow,
    collections::BTreeSet,
    fs::File,
    io::{BufRead, BufReader, Read as _},
    path::Path,
};

use flate2::read::GzDecoder;
use serde::Deserialize;

use super::{
    Contents, FORMAT, INSTANCES, KeepingError, KeyTold, Manifest, Month, Part,
    export::{Digesting, first_line},
    from_hex, manifest_path, shown, tree_of,
};
use crate::{
    checkpoint::Frontier,
    clock::Timestamp,
    entry::{
        Kind,
        chain::{self, Hash},
    },
    json, secrets,
};

/// The longest line that is read, in bytes: several times what the largest body and answer can bring.
const LINE: u64 = 256 << 20;
/// The largest manifest, in bytes: what its instances at their most take.
const MANIFEST: u64 = 256 << 20;

/// Checks the export in `path` and gives its manifest. `progress` hears of each thousand entries.
///
/// # Errors
/// [`KeepingError::Export`] says what is wrong with it, and with which entry.
pub fn check(path: &Path, progress: impl Fn(u64)) -> Result<Manifest, KeepingError> {
    let manifest = manifest(&manifest_path(path))?;
    let file = File::open(path).map_err(KeepingError::file(path))?;
    let mut lines = BufReader::with_capacity(
        1 << 20,
        GzDecoder::new(BufReader::with_capacity(1 << 20, Digesting::new(file))),
    );
    let found = read(&mut lines, &manifest.contents, &progress);
    // Also what stands behind the compressed lines is part of the file.
    let mut file = lines.into_inner().into_inner();
    let drained = std::io::copy(&mut file, &mut std::io::sink());
    drained.map_err(KeepingError::file(path))?;
    let file = file.into_inner();
    // Whatever else is wrong: a file whose digest fits was made so.
    if file.bytes != manifest.file_bytes || file.hex() != manifest.file_sha256 {
        let why = found
            .err()
            .map_or(String::new(), |error| format!(" ({error})"));
        return Err(KeepingError::Export(format!(
            "the file has {} bytes with SHA-256 {}, its manifest says {} bytes with {}{why}",
            file.bytes,
            file.hex(),
            manifest.file_bytes,
            manifest.file_sha256
        )));
    }
    let found = found?;
    if found != manifest.contents {
        return Err(KeepingError::Export(
            "its entries are not those that the manifest tells of".to_owned(),
        ));
    }
    Ok(manifest)
}

fn manifest(path: &Path) -> Result<Manifest, KeepingError> {
    let file = File::open(path).map_err(KeepingError::file(path))?;
    let mut text = Vec::new();
    file.take(MANIFEST)
        .read_to_end(&mut text)
        .map_err(KeepingError::file(path))?;
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| {
        KeepingError::Export(format!("{} cannot be understood: {error}", path.display()))
    })?;
    if manifest.toolgate_export != FORMAT {
        return Err(KeepingError::Export(format!(
            "it has the form {}, this program reads {FORMAT}",
            manifest.toolgate_export
        )));
    }
    Ok(manifest)
}

/// What an entry's line says that is needed here; its hash holds the rest.
#[derive(Deserialize)]
struct Told<'a> {
    #[serde(borrow)]
    instance_id: Cow<'a, str>,
    seq: i64,
    recorded_at: Timestamp,
    kind: Cow<'a, str>,
    contract_digest: Option<String>,
    policy_digest: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct VersionLine {
    version: Text,
}

#[derive(Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
struct Text {
    content: String,
    digest: String,
    kind: String,
    name: String,
}

/// What was read so far.
struct Reading<'a> {
    month: Month,
    /// What the manifest tells of each instance. Of what lies before the month, an export itself holds only a hash.
    told: &'a [Part],
    entries: u64,
    parts: Vec<Part>,
    head: Hash,
    tree: Frontier,
    signing_keys: Vec<KeyTold>,
    latest: Timestamp,
    named: BTreeSet<String>,
    versions: Vec<String>,
}

fn read(
    lines: &mut impl BufRead,
    told: &Contents,
    progress: &impl Fn(u64),
) -> Result<Contents, KeepingError> {
    let mut lines = Lines {
        lines,
        number: 0,
        line: Vec::new(),
        context: Digesting::new(std::io::sink()),
    };
    let month = told.month;
    if lines.next()? != Some(first_line(month).as_bytes()) {
        return Err(KeepingError::Export(format!(
            "its first line does not say that it is an export of {month}"
        )));
    }
    let mut reading = Reading {
        month,
        told: &told.instances,
        entries: 0,
        parts: Vec::new(),
        head: chain::START,
        tree: Frontier::default(),
        signing_keys: Vec::new(),
        latest: month.begins(),
        named: BTreeSet::new(),
        versions: Vec::new(),
    };
    // An entry does not say what stood before it: the manifest does, which is held against the whole afterwards. The first
    // entry's own hash tells whether that is so.
    while let Some(line) = lines.next()? {
        let taken = if line.starts_with(b"{\"version\":") {
            reading.version(line)
        } else {
            reading.entry(line)
        };
        if let Err(words) = taken {
            let number = lines.number;
            return Err(KeepingError::Export(format!("line {number}: {words}")));
        }
        if reading.entries.is_multiple_of(1_000) && reading.versions.is_empty() {
            progress(1_000);
        }
    }
    reading.end();
    let Reading {
        entries,
        parts,
        signing_keys,
        named,
        versions,
        ..
    } = reading;
    let missing_versions = named
        .into_iter()
        .filter(|digest| versions.binary_search(digest).is_err())
        .collect();
    Ok(Contents {
        month,
        entries,
        instances: parts,
        signing_keys,
        versions,
        missing_versions,
        sha256: lines.context.hex(),
    })
}

impl Reading<'_> {
    fn entry(&mut self, line: &[u8]) -> Result<(), String> {
        if !self.versions.is_empty() {
            return Err("an entry stands behind the contracts and policies".to_owned());
        }
        let (text, before, hash) = split(line).ok_or("this is no entry with its hashes")?;
        let told: Told<'_> = serde_json::from_slice(text)
            .map_err(|error| format!("the entry cannot be understood: {error}"))?;
        let follows = self
            .parts
            .last()
            .filter(|part| part.instance == told.instance_id);
        match follows {
            Some(part) => {
                if told.seq != part.last + 1 {
                    return Err(format!(
                        "entry {} of {} stands behind entry {}",
                        told.seq, told.instance_id, part.last
                    ));
                }
            }
            None => self.begin(
                &told,
                before.ok_or("nothing says which hash stood before it")?,
            )?,
        }
        if told.recorded_at < self.latest || told.recorded_at >= self.month.ends() {
            return Err(format!(
                "entry {} of {} was not recorded after the one before it and within {}",
                told.seq, told.instance_id, self.month
            ));
        }
        self.latest = told.recorded_at;
        if chain::hash_of_text(&self.head, text) != hash {
            return Err(format!(
                "entry {} of {} does not give its hash",
                told.seq, told.instance_id
            ));
        }
        self.head = hash;
        self.tree.push(&hash);
        if told.kind == Kind::SigningKeyChanged.as_str() {
            self.signing_keys.push(KeyTold {
                instance: told.instance_id.clone().into_owned(),
                seq: told.seq,
                detail: detail(text)?,
            });
        }
        if let Some(part) = self.parts.last_mut() {
            part.last = told.seq;
        }
        self.named.extend(told.contract_digest);
        self.named.extend(told.policy_digest);
        self.entries += 1;
        Ok(())
    }

    /// There are no more entries of the instance.
    fn end(&mut self) {
        if let Some(part) = self.parts.last_mut() {
            part.hash = secrets::hex(&self.head);
            part.tree = shown(&self.tree);
        }
    }

    /// The first entry of an instance in this month.
    fn begin(&mut self, told: &Told<'_>, before: Hash) -> Result<(), String> {
        let last = self.parts.last().map(|part| part.instance.as_str());
        if last.is_some_and(|last| last >= told.instance_id.as_ref()) {
            return Err(format!("{} stands out of order", told.instance_id));
        }
        if (told.seq == 1) != (before == chain::START) || told.seq < 1 {
            return Err(format!(
                "entry {} of {} cannot stand behind this hash",
                told.seq, told.instance_id
            ));
        }
        if self.parts.len() >= INSTANCES {
            return Err(KeepingError::too_many().to_string());
        }
        let known = self
            .told
            .binary_search_by(|part| part.instance.as_str().cmp(&told.instance_id))
            .ok()
            .and_then(|at| self.told.get(at));
        let tree = known.and_then(|part| tree_of(told.seq - 1, &part.tree_before));
        let tree = tree.ok_or_else(|| {
            format!(
                "the manifest tells no tree over the entries of {} before {}",
                told.instance_id, told.seq
            )
        })?;
        self.end();
        self.tree = tree;
        self.head = before;
        self.latest = self.month.begins();
        self.parts.push(Part {
            instance: told.instance_id.clone().into_owned(),
            first: told.seq,
            last: told.seq,
            before: secrets::hex(&before),
            hash: String::new(),
            tree_before: shown(&self.tree),
            tree: Vec::new(),
        });
        Ok(())
    }

    fn version(&mut self, line: &[u8]) -> Result<(), String> {
        let VersionLine { version } = serde_json::from_slice(line)
            .map_err(|error| format!("the version cannot be understood: {error}"))?;
        if version.digest != format!("sha256:{}", json::sha256_hex(&version.content)) {
            return Err(format!("the text of {} does not give it", version.digest));
        }
        if self
            .versions
            .last()
            .is_some_and(|last| *last >= version.digest)
        {
            return Err(format!("{} stands out of order", version.digest));
        }
        if !self.named.contains(&version.digest) {
            return Err(format!("no entry names {}", version.digest));
        }
        self.versions.push(version.digest);
        Ok(())
    }
}

/// The detail of an entry.
fn detail(text: &[u8]) -> Result<serde_json::Value, String> {
    #[derive(Deserialize)]
    struct Detail {
        #[serde(default)]
        detail: serde_json::Value,
    }
    let told: Detail = serde_json::from_slice(text)
        .map_err(|error| format!("the entry cannot be understood: {error}"))?;
    Ok(told.detail)
}

/// `{"entry":TEXT,"hash":"HEX"}`, and in the first of an instance `,"before":"HEX"` ahead of the hash.
fn split(line: &[u8]) -> Option<(&[u8], Option<Hash>, Hash)> {
    let rest = line.strip_prefix(b"{\"entry\":")?.strip_suffix(b"\"}")?;
    let (rest, hash) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
    let rest = rest.strip_suffix(b",\"hash\":\"")?;
    let hash = from_hex(std::str::from_utf8(hash).ok()?)?;
    let begins = rest.strip_suffix(b"\"").and_then(|rest| {
        let (rest, before) = rest.split_at_checked(rest.len().checked_sub(64)?)?;
        let text = rest.strip_suffix(b",\"before\":\"")?;
        Some((text, from_hex(std::str::from_utf8(before).ok()?)?))
    });
    Some(match begins {
        Some((text, before)) => (text, Some(before), hash),
        None => (rest, None, hash),
    })
}

struct Lines<'a, T> {
    lines: &'a mut T,
    number: u64,
    line: Vec<u8>,
    context: Digesting<std::io::Sink>,
}

impl<T: BufRead> Lines<'_, T> {
    /// The next line without its end.
    fn next(&mut self) -> Result<Option<&[u8]>, KeepingError> {
        use std::io::Write as _;
        self.number += 1;
        let wrong = |words: String| KeepingError::Export(words);
        self.line.clear();
        let count = self
            .lines
            .by_ref()
            .take(LINE)
            .read_until(b'\n', &mut self.line)
            .map_err(|error| wrong(format!("line {}: {error}", self.number)))?;
        if count == 0 {
            return Ok(None);
        }
        self.context.write_all(&self.line)?;
        match self.line.strip_suffix(b"\n") {
            Some(line) => Ok(Some(line)),
            None => Err(wrong(format!("line {} has no end", self.number))),
        }
    }
}
