//! Taking fields out of a file's tree, with a finding for each thing that is not as it should be.

use std::ops::Range;

use super::source::{Node, Yaml};
use crate::diagnostics::{Finding, SourceFile};

/// A value from a file and its place.
#[derive(Debug, Clone)]
pub(super) struct Spot<T> {
    pub(super) value: T,
    pub(super) at: Range<usize>,
}

/// Reads one file and collects what is wrong with it.
pub(super) struct Reader<'a> {
    pub(super) file: &'a SourceFile,
    pub(super) findings: Vec<Finding>,
}

impl<'a> Reader<'a> {
    pub(super) const fn new(file: &'a SourceFile) -> Self {
        Self {
            file,
            findings: Vec::new(),
        }
    }

    /// A place in words, for findings that speak of a second one.
    pub(super) fn place(&self, at: &Range<usize>) -> String {
        let (line, column) = self.file.position_of(at.start);
        format!("{}:{line}:{column}", self.file.path.display())
    }

    pub(super) fn error(&mut self, at: &Range<usize>, message: impl Into<String>) {
        self.findings
            .push(Finding::error(self.file, at.clone(), message));
    }

    pub(super) fn error_with_help(
        &mut self,
        at: &Range<usize>,
        message: impl Into<String>,
        help: impl Into<String>,
    ) {
        self.findings
            .push(Finding::error(self.file, at.clone(), message).with_help(help));
    }

    /// Whether anything but notes was found since there were `before` findings.
    pub(super) fn failed_since(&self, before: usize) -> bool {
        self.findings
            .iter()
            .skip(before)
            .any(|finding| !finding.note)
    }

    /// Whether this is a mapping; its keys are held against the known ones.
    pub(super) fn mapping(&mut self, node: &Node, what: &str, known: &[&str]) -> bool {
        let Yaml::Map(entries) = &node.value else {
            self.error(
                &node.at,
                format!("{what} must be a mapping, and is {}", node.kind()),
            );
            return false;
        };
        for (key, _) in entries {
            if !known.contains(&key.name.as_str()) {
                self.error_with_help(
                    &key.at,
                    format!("{what} has no field `{}`", key.name),
                    format!("known are: {}", known.join(", ")),
                );
            }
        }
        true
    }

    /// A field that must be there; `at` is where its absence is reported.
    pub(super) fn required<'n>(
        &mut self,
        node: &'n Node,
        field: &str,
        at: &Range<usize>,
    ) -> Option<&'n Node> {
        let found = node.get(field).map(|(_, value)| value);
        if found.is_none() {
            self.error(at, format!("the field `{field}` is missing"));
        }
        found
    }

    /// A node that must be text and not empty.
    pub(super) fn text(&mut self, node: &Node, what: &str) -> Option<Spot<String>> {
        match node.text() {
            Some(text) if text.trim().is_empty() => {
                self.error(&node.at, format!("{what} is empty"));
                None
            }
            Some(text) if text.contains('\0') => {
                self.error(&node.at, format!("{what} contains U+0000"));
                None
            }
            Some(text) => Some(Spot {
                value: text.to_owned(),
                at: node.at.clone(),
            }),
            None => {
                self.error_with_help(
                    &node.at,
                    format!("{what} must be text, and is {}", node.kind()),
                    "put it in quotes if it is meant as text",
                );
                None
            }
        }
    }

    /// A required text field.
    pub(super) fn required_text(
        &mut self,
        node: &Node,
        field: &str,
        at: &Range<usize>,
    ) -> Option<Spot<String>> {
        let value = self.required(node, field, at)?;
        self.text(value, &format!("`{field}`"))
    }

    /// An optional boolean, false when left out.
    pub(super) fn flag(&mut self, node: &Node, field: &str) -> bool {
        match node.get(field).map(|(_, value)| value) {
            None => false,
            Some(Node {
                value: Yaml::Bool(flag),
                ..
            }) => *flag,
            Some(other) => {
                self.error(
                    &other.at,
                    format!("`{field}` must be true or false, and is {}", other.kind()),
                );
                false
            }
        }
    }

    /// An optional whole number within bounds.
    pub(super) fn bounded(&mut self, node: &Node, field: &str, default: u64, largest: u64) -> u64 {
        let Some((_, value)) = node.get(field) else {
            return default;
        };
        let number = match &value.value {
            Yaml::Number(number) => number.as_u64(),
            _ => None,
        };
        match number {
            Some(number) if (1..=largest).contains(&number) => number,
            _ => {
                self.error(
                    &value.at,
                    format!("`{field}` must be a whole number from 1 to {largest}"),
                );
                default
            }
        }
    }

    /// A list of texts without repeats; none when left out.
    pub(super) fn texts(&mut self, node: &Node, field: &str) -> Vec<Spot<String>> {
        let Some((_, value)) = node.get(field) else {
            return Vec::new();
        };
        if !matches!(value.value, Yaml::List(_)) {
            self.error(
                &value.at,
                format!("`{field}` must be a list, and is {}", value.kind()),
            );
            return Vec::new();
        }
        let mut found: Vec<Spot<String>> = Vec::new();
        for item in value.items() {
            let Some(text) = self.text(item, &format!("an item of `{field}`")) else {
                continue;
            };
            if found.iter().any(|known| known.value == text.value) {
                self.error(
                    &text.at,
                    format!("`{}` stands twice in `{field}`", text.value),
                );
            } else {
                found.push(text);
            }
        }
        found
    }

    /// One of several words.
    pub(super) fn choice<T: Copy>(
        &mut self,
        text: &Spot<String>,
        field: &str,
        choices: &[(&str, T)],
    ) -> Option<T> {
        let found = choices.iter().find(|(name, _)| *name == text.value);
        if found.is_none() {
            let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
            self.error_with_help(
                &text.at,
                format!("`{}` is no {field}", text.value),
                format!("one of: {}", names.join(", ")),
            );
        }
        found.map(|(_, choice)| *choice)
    }
}
