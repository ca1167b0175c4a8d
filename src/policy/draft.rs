//! Reads policy files into drafts: policies that parsed but that nobody has checked, each with the place
//! where it stands.

use std::ops::Range;

use cedar_policy::{Policy, PolicyId, PolicySet};
use miette::Diagnostic;
use serde_json::Value;

use super::reads::Reads;
use crate::diagnostics::{Finding, SourceFile};

/// A policy as it stands in a file.
#[derive(Debug)]
pub(super) struct Draft<'f> {
    pub(super) file: &'f SourceFile,
    /// With an id that is unique among all drafts, and is the one in `@id` if that is usable.
    pub(super) policy: Policy,
    /// The policy's own text, annotations included.
    pub(super) text: String,
    /// Byte offset of `text` in the file.
    pub(super) start: usize,
    /// The policy in Cedar's JSON format.
    pub(super) json: Value,
}

impl Draft<'_> {
    /// What the policy reads of a call's context.
    pub(super) fn reads(&self) -> Reads {
        Reads::of(&self.json)
    }

    /// An error at the first of these texts that stands in the policy, or else at its first line.
    pub(super) fn error(&self, at: &[&str], message: impl Into<String>) -> Finding {
        Finding::error(self.file, self.range(at), message)
    }

    /// A note at the policy's first line.
    pub(super) fn note(&self, message: impl Into<String>) -> Finding {
        Finding::note(self.file, self.range(&[]), message)
    }

    fn range(&self, at: &[&str]) -> Range<usize> {
        let found = at
            .iter()
            .find_map(|needle| Some((self.text.find(needle)?, needle.len())));
        let first_line = self.text.lines().next().map_or(0, str::len);
        let (offset, length) = found.unwrap_or((0, first_line));
        self.start + offset..self.start + offset + length
    }
}

/// The policies of a file, or why it cannot be read.
pub(super) fn read<'f>(file: &'f SourceFile, findings: &mut Vec<Finding>) -> Vec<Draft<'f>> {
    let set: PolicySet = match file.text.parse() {
        Ok(set) => set,
        Err(errors) => {
            findings.extend(errors.iter().map(|error| from_cedar(file, error, 0..0)));
            return Vec::new();
        }
    };
    let mut drafts = Vec::new();
    let mut end = 0;
    // Cedar numbers the policies and templates of a file in their order.
    for number in 0..set.num_of_policies() + set.num_of_templates() {
        let id = PolicyId::new(format!("policy{number}"));
        let policy = set.policy(&id);
        let text = match policy {
            Some(policy) => policy.to_cedar(),
            None => set.template(&id).map(cedar_policy::Template::to_cedar),
        };
        let Some(text) = text else { continue };
        let start = start_of(&file.text, &text, end);
        end = start + text.len();
        let json = policy.map(Policy::to_json);
        let (Some(policy), Some(Ok(json))) = (policy, json) else {
            let message =
                "templates are not supported: nothing links them, so that this would never apply";
            findings.push(
                Finding::error(file, start..end, message)
                    .with_help("write a policy for each principal or resource, or use a group"),
            );
            continue;
        };
        drafts.push(Draft {
            file,
            policy: policy.clone(),
            text,
            start,
            json,
        });
    }
    drafts
}

/// Where a policy's text starts, after the blanks and comments behind the policy before it.
fn start_of(file: &str, text: &str, after: usize) -> usize {
    let mut rest = file.get(after..).unwrap_or_default();
    loop {
        rest = rest.trim_start();
        match rest.strip_prefix("//") {
            Some(comment) => rest = comment.trim_start_matches(|c| c != '\n' && c != '\r'),
            None => break,
        }
    }
    if rest.starts_with(text) {
        file.len() - rest.len()
    } else {
        file.get(after..)
            .and_then(|rest| rest.find(text))
            .map_or(after, |found| after + found)
    }
}

/// Takes over what Cedar found, at the place that Cedar names, or else at `fallback`.
pub(super) fn from_cedar(
    file: &SourceFile,
    error: &(impl Diagnostic + ?Sized),
    fallback: Range<usize>,
) -> Finding {
    let span = error.labels().and_then(|mut labels| labels.next());
    let range = span.map_or(fallback, |span| {
        span.offset()..span.offset() + span.len().max(1)
    });
    let finding = Finding::error(file, range, error.to_string());
    match error.help() {
        Some(help) => finding.with_help(help.to_string()),
        None => finding,
    }
}
