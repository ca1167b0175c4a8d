//! Files with many notes, one behind the other, taken apart note by note in bounded memory, whatever stands in them.

use std::io::{self, BufRead, Read as _};

use super::note::SIGNATURE;

/// The longest note that is read.
pub const MAX_NOTE_BYTES: usize = 64 * 1024;

/// One note of a file, not yet looked at. Where it is too long, what is kept is a byte too long as well.
#[derive(Debug)]
pub struct Split {
    /// The number of its first line.
    pub line: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// The notes of a file. A checkpoint's text has no blank line, so the first one begins its signatures, and the first line behind
/// that is no signature begins the next note. Blank lines between notes are allowed.
pub fn notes(reader: impl BufRead) -> impl Iterator<Item = io::Result<Split>> {
    Notes {
        reader,
        line: 0,
        held: None,
    }
}

struct Notes<R> {
    reader: R,
    line: u64,
    /// The line that ended the note before.
    held: Option<Vec<u8>>,
}

impl<R: BufRead> Notes<R> {
    /// The next line with its newline; shortened when it is longer than any note. None at the end.
    fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(line) = self.held.take() {
            return Ok(Some(line));
        }
        let mut line = Vec::new();
        let limit = u64::try_from(MAX_NOTE_BYTES).unwrap_or(u64::MAX) + 1;
        self.reader
            .by_ref()
            .take(limit)
            .read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        if line.len() > MAX_NOTE_BYTES && line.last() != Some(&b'\n') {
            self.reader.skip_until(b'\n')?;
        }
        Ok(Some(line))
    }
}

impl<R: BufRead> Iterator for Notes<R> {
    type Item = io::Result<Split>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes: Vec<u8> = Vec::new();
        let (mut first, mut signatures) = (0, false);
        loop {
            let line = match self.line() {
                Ok(Some(line)) => line,
                Ok(None) => break,
                Err(error) => return Some(Err(error)),
            };
            let blank = line == b"\n";
            if bytes.is_empty() {
                if blank {
                    continue;
                }
                first = self.line;
            } else if signatures && !line.starts_with(SIGNATURE.as_bytes()) {
                if !blank {
                    self.held = Some(line);
                }
                break;
            }
            signatures |= blank;
            let room = (MAX_NOTE_BYTES + 1).saturating_sub(bytes.len());
            bytes.extend(line.into_iter().take(room));
        }
        (!bytes.is_empty()).then_some(Ok(Split { line: first, bytes }))
    }
}
