//! What is wrong with a file that a person wrote (config, contract, policy): the message, and the
//! place in the file, so that `toolgate check` can show all problems at once with line and column.

use std::{path::PathBuf, sync::Arc};

use miette::{LabeledSpan, NamedSource, Severity, SourceSpan};

/// A text file as it was read, with the path by which a person knows it.
#[derive(Clone)]
pub struct SourceFile {
    /// The path as given on the command line or found below it.
    pub path: PathBuf,
    /// The whole text.
    pub text: Arc<str>,
}

impl std::fmt::Debug for SourceFile {
    /// The path alone: texts are long, and every finding holds one.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SourceFile({})", self.path.display())
    }
}

impl SourceFile {
    /// Pairs a path with the text that stands there.
    pub fn new(path: impl Into<PathBuf>, text: impl Into<Arc<str>>) -> Self {
        Self {
            path: path.into(),
            text: text.into(),
        }
    }

    /// Byte offset of a 1-based line and 1-based column (counted in characters). A position behind the
    /// end gives the end.
    pub fn offset_of(&self, line: usize, column: usize) -> usize {
        let mut offset = 0;
        for (index, text) in self.text.split_inclusive('\n').enumerate() {
            if index + 1 == line {
                let within: usize = text
                    .chars()
                    .take(column.saturating_sub(1))
                    .map(char::len_utf8)
                    .sum();
                return offset + within;
            }
            offset += text.len();
        }
        self.text.len()
    }

    /// 1-based line and column (in characters) of a byte offset.
    pub fn position_of(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(&self.text);
        let line = before.matches('\n').count() + 1;
        let column = before
            .rsplit('\n')
            .next()
            .map_or(0, |rest| rest.chars().count())
            + 1;
        (line, column)
    }
}

/// One thing that is wrong (or, as a note, worth knowing) in a [`SourceFile`].
#[derive(Debug, Clone)]
pub struct Finding {
    /// What is wrong, as one sentence without the place.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    /// True for something that does not stop `serve` from starting.
    pub note: bool,
    file: SourceFile,
    span: SourceSpan,
}

impl Finding {
    /// An error at a byte range of a file.
    pub fn error(
        file: &SourceFile,
        range: std::ops::Range<usize>,
        message: impl Into<String>,
    ) -> Self {
        let end = file.text.len();
        let start = range.start.min(end);
        let length = range.end.min(end).saturating_sub(start);
        Self {
            message: message.into(),
            help: None,
            note: false,
            file: file.clone(),
            span: SourceSpan::new(start.into(), length),
        }
    }

    /// The same, but only worth knowing.
    pub fn note(
        file: &SourceFile,
        range: std::ops::Range<usize>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            note: true,
            ..Self::error(file, range, message)
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The path of the file, and the 1-based line and column where the finding starts.
    pub fn place(&self) -> (String, usize, usize) {
        let (line, column) = self.file.position_of(self.span.offset());
        (self.file.path.display().to_string(), line, column)
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (path, line, column) = self.place();
        write!(f, "{path}:{line}:{column}: {}", self.message)
    }
}

impl std::error::Error for Finding {}

impl miette::Diagnostic for Finding {
    fn severity(&self) -> Option<Severity> {
        Some(if self.note {
            Severity::Advice
        } else {
            Severity::Error
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn std::fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<_>)
    }

    fn source_code(&self) -> Option<&dyn miette::SourceCode> {
        None
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        Some(Box::new(std::iter::once(LabeledSpan::new_with_span(
            None, self.span,
        ))))
    }
}

/// A finding together with its file's text, which is what miette's report handler can draw.
pub fn report(finding: &Finding) -> miette::Report {
    miette::Report::new(finding.clone()).with_source_code(NamedSource::new(
        finding.file.path.display().to_string(),
        finding.file.text.to_string(),
    ))
}
