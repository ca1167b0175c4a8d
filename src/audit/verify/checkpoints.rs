//! Checkpoints from files: taken apart, their signatures checked, and what is left of each, a size and a root, held against the
//! entries. A few dozen bytes are kept of each, however many there are.

use std::{collections::BTreeMap, fs::File, io::BufReader, path::PathBuf};

use super::{Checked, CheckpointsChecked, Fault, Problem, Refused, VerifyError, Wrong, keys::Keys};
use crate::{
    audit::keeping::Gone,
    checkpoint::{self, Checkpoint, Hash, Note, VerifierKey},
    ids::InstanceId,
};

/// What one checkpoint claims.
#[derive(Debug, Clone)]
struct Claim {
    size: u64,
    root: Hash,
    file: u32,
    line: u64,
    /// Whether the entries give this root; none before that was looked at.
    fits: Option<bool>,
}

/// What all of them claim.
#[derive(Default)]
pub(super) struct Claims {
    files: Vec<String>,
    /// By instance, in the order of sizes.
    by_instance: BTreeMap<String, Vec<Claim>>,
    result: CheckpointsChecked,
}

/// Why a checkpoint does not count: the problem, its words, and what is known of it.
type NotCounted = (Problem, String, Option<(String, u64)>);

impl Claims {
    /// Reads files, each with any number of checkpoints.
    pub fn read(paths: &[PathBuf], keys: &Keys) -> Result<Self, VerifyError> {
        let mut claims = Self::default();
        for path in paths {
            let shown = path.display().to_string();
            let failed = |reason| VerifyError::File {
                path: shown.clone(),
                reason,
            };
            let number = u32::try_from(claims.files.len()).unwrap_or(u32::MAX);
            claims.files.push(shown.clone());
            let reader = BufReader::new(File::open(path).map_err(failed)?);
            let mut any = false;
            for split in checkpoint::notes(reader) {
                let split = split.map_err(failed)?;
                any = true;
                claims.result.read += 1;
                match believed(&split.bytes, keys) {
                    Ok((instance, checkpoint)) => {
                        claims.by_instance.entry(instance).or_default().push(Claim {
                            size: checkpoint.size,
                            root: checkpoint.root,
                            file: number,
                            line: split.line,
                            fits: None,
                        });
                    }
                    Err(why) => claims.refuse(number, split.line, why),
                }
            }
            if !any {
                let why = "the file holds no checkpoint".to_owned();
                claims.refuse(number, 1, (Problem::Malformed, why, None));
            }
        }
        for of_one in claims.by_instance.values_mut() {
            of_one.sort_by_key(|claim| claim.size);
        }
        Ok(claims)
    }

    fn refuse(&mut self, file: u32, line: u64, (problem, words, log): NotCounted) {
        let (instance, size) = log.unzip();
        let file = usize::try_from(file).unwrap_or(usize::MAX);
        self.result.refuse(Refused {
            file: self.files.get(file).cloned().unwrap_or_default(),
            line,
            instance,
            size,
            problem,
            words,
        });
    }

    /// The sizes from `from` to `to` at which a root is claimed of an instance.
    pub fn sizes(&self, instance: &str, from: i64, to: i64) -> Vec<u64> {
        let number = |seq: i64| u64::try_from(seq).unwrap_or(0);
        let (from, to) = (number(from), number(to));
        let claims = self
            .by_instance
            .get(instance)
            .map_or(&[][..], Vec::as_slice);
        let first = claims.partition_point(|claim| claim.size < from);
        let mut sizes: Vec<u64> = claims
            .iter()
            .skip(first)
            .map(|claim| claim.size)
            .take_while(|size| *size <= to)
            .collect();
        sizes.dedup();
        sizes
    }

    /// The entries give this root at this size; none where they can give none.
    pub fn found(&mut self, instance: &str, size: u64, root: Option<Hash>) {
        let Some(claims) = self.by_instance.get_mut(instance) else {
            return;
        };
        let first = claims.partition_point(|claim| claim.size < size);
        for claim in claims.iter_mut().skip(first) {
            if claim.size != size {
                break;
            }
            claim.fits = Some(root == Some(claim.root));
        }
    }

    /// Holds what was found against what is claimed, and names what it shows of the entries. `gone` is what was dropped.
    pub fn settle(
        mut self,
        checked: &mut BTreeMap<String, Checked>,
        gone: &BTreeMap<String, Gone>,
    ) -> CheckpointsChecked {
        for (instance, gone) in gone {
            for (size, root) in &gone.roots {
                self.found(instance, *size, Some(*root));
            }
        }
        for (instance, claims) in std::mem::take(&mut self.by_instance) {
            let gone = gone.get(&instance).map_or(0, |gone| gone.last);
            let one = checked.get(&instance).filter(|one| one.entries > 0);
            // The number of the last entry that is known.
            let last = one.map_or(gone, |one| one.last);
            let mut vouched = None;
            // How far checkpoints fit, before the first that does not.
            let (mut fit, mut accused) = (0, false);
            for claim in &claims {
                let at = format!(
                    "the checkpoint in {}, line {}",
                    self.file(claim.file),
                    claim.line
                );
                if claim.fits.is_none() && i64::try_from(claim.size).is_ok_and(|size| size <= gone)
                {
                    self.result.dropped += 1;
                    continue;
                }
                let Some((problem, wrong)) = judge(last, gone, claim, fit, &at) else {
                    self.result.fit += 1;
                    fit = claim.size;
                    vouched = Some(fit);
                    continue;
                };
                let log = Some((instance.clone(), claim.size));
                self.refuse(claim.file, claim.line, (problem, wrong.words.clone(), log));
                // The ones behind it say the same again.
                if !accused {
                    let one = checked
                        .entry(instance.clone())
                        .or_insert_with(|| Checked::new(&instance, 0));
                    one.accuse(wrong);
                    accused = true;
                }
            }
            if let Some(one) = checked.get_mut(&instance) {
                one.checkpointed = vouched;
            }
        }
        self.result
    }

    fn file(&self, number: u32) -> &str {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        self.files.get(number).map_or("", String::as_str)
    }
}

/// What a checkpoint shows of its instance; none where it fits. `last` is the number of its last entry, 0 where nothing is known of
/// it, and `gone` that of the last which was dropped; `fit` is the size of the last checkpoint before it that fits.
fn judge(last: i64, gone: i64, claim: &Claim, fit: u64, at: &str) -> Option<(Problem, Wrong)> {
    let size = i64::try_from(claim.size).unwrap_or(i64::MAX);
    if last == 0 {
        let words = format!("all {size} of its entries are gone; {at} knows of them");
        return Some((
            Problem::UnknownInstance,
            Wrong::new(1, Fault::Unlinked, words),
        ));
    }
    if size > last {
        let words = format!("cut off here; {at} knows {size} entries");
        return Some((
            Problem::BeyondEnd,
            Wrong::new(last + 1, Fault::TailCut, words),
        ));
    }
    if claim.fits == Some(true) {
        return None;
    }
    let from = i64::try_from(fit).unwrap_or(i64::MAX).saturating_add(1);
    let mut words = format!("one of the entries {from} to {size} is not the one that {at} covers");
    if fit > 0 {
        words.push_str(&format!(", and the one that covers {fit} fits"));
    }
    if from <= gone {
        words.push_str(&format!(
            ", or the tree over the {gone} that were dropped is not the one that their record tells"
        ));
    }
    let mut wrong = Wrong::new(from, Fault::Rewritten, words);
    wrong.until = Some(size);
    Some((Problem::RootDiffers, wrong))
}

/// A checkpoint that counts, with its instance: of this form, signed by a key that is trusted, and that was in force.
fn believed(bytes: &[u8], keys: &Keys) -> Result<(String, Checkpoint), NotCounted> {
    use checkpoint::Refused::{Forged, Malformed, UnknownKey};
    let refused = |refused: checkpoint::Refused, log| {
        let problem = match refused {
            Malformed(_) => Problem::Malformed,
            UnknownKey => Problem::UnknownKey,
            Forged => Problem::ForgedSignature,
        };
        (problem, refused.to_string(), log)
    };
    let note = Note::parse(bytes).map_err(|error| refused(error, None))?;
    let checkpoint = Checkpoint::parse(note.text()).map_err(|error| refused(error, None))?;
    let signer = note.signers(keys.known.iter());
    let unread = || -> NotCounted {
        let words = "its origin is not an installation and one of its starts".to_owned();
        (Problem::UnknownInstance, words, None)
    };
    let (installation, instance) = checkpoint.log().ok_or_else(unread)?;
    let (installation, instance) = (installation.to_owned(), instance.to_owned());
    if instance.parse::<InstanceId>().is_err() {
        return Err(unread());
    }
    let log = Some((instance.clone(), checkpoint.size));
    let signers = signer.map_err(|error| refused(error, log.clone()))?;
    let trusted: Vec<&VerifierKey> = signers
        .into_iter()
        .filter(|key| keys.trusted.contains(*key))
        .collect();
    if trusted.is_empty() {
        let words = "the records name its key, and nothing proves that it is the installation's";
        return Err((Problem::UntrustedKey, words.to_owned(), log));
    }
    if trusted.iter().all(|key| key.name() != installation) {
        let words = "its origin is of another installation than its key".to_owned();
        return Err((Problem::UnknownInstance, words, log));
    }
    if checkpoint.size == 0 {
        let words = "it covers no entry".to_owned();
        return Err((Problem::Malformed, words, log));
    }
    match keys.in_force(&instance, checkpoint.size) {
        Some(key) if !trusted.contains(&key) => {
            let words = format!("at its size the key was {key}");
            Err((Problem::RetiredKey, words, log))
        }
        _ => Ok((instance, checkpoint)),
    }
}
