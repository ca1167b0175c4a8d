//! `toolgate check`: everything that is wrong, at once; and the one loading that `serve` uses too.

use std::{io::Write as _, path::Path, process::ExitCode};

use serde_json::json;

use crate::{
    app::{RuleFiles, Rules, load_rules},
    config::{self, Config, Variables},
    diagnostics::{self, Finding, SourceFile},
};

/// What came of reading config, contracts and policies.
pub(super) struct Loaded {
    pub config: Option<Config>,
    pub rules: Option<Rules>,
    pub findings: Vec<Finding>,
}

/// Reads everything and collects every finding.
pub(super) fn load(path: &Path, variables: &Variables) -> Loaded {
    let file = match config::read_file(path.to_owned()) {
        Ok(file) => file,
        Err(message) => return Loaded::failed(path, message),
    };
    let (config, mut findings) = config::load_for_check(&file, variables);
    let usable = findings.iter().all(|finding| finding.note);
    let Some(config) = config else {
        return Loaded {
            config: None,
            rules: None,
            findings,
        };
    };
    let files = match RuleFiles::read(&config) {
        Ok(files) => files,
        Err(message) => {
            findings.extend(Loaded::failed(path, message).findings);
            return Loaded {
                config: None,
                rules: None,
                findings,
            };
        }
    };
    let (rules, more) = load_rules(&config, &files);
    findings.extend(more);
    Loaded {
        config: usable.then_some(config),
        rules,
        findings,
    }
}

impl Loaded {
    fn failed(path: &Path, message: String) -> Self {
        let nowhere = SourceFile::new(path, "");
        Self {
            config: None,
            rules: None,
            findings: vec![Finding::error(&nowhere, 0..0, message)],
        }
    }
}

/// Exit code 0 without problems (notes are no problems), else 2.
pub(super) fn run(path: &Path, as_json: bool) -> ExitCode {
    let variables = Variables::default();
    let loaded = load(path, &variables);
    let problems = loaded
        .findings
        .iter()
        .filter(|finding| !finding.note)
        .count();
    if as_json {
        print_json(&loaded.findings, problems);
    } else {
        print(&loaded.findings);
        let mut out = std::io::stdout().lock();
        let _ = match &loaded.rules {
            Some(rules) if problems == 0 => writeln!(
                out,
                "{}: {} tools, {} policies, {} notes, no problem",
                path.display(),
                rules.catalog.len(),
                rules.policies.ids().count(),
                loaded.findings.len()
            ),
            _ => writeln!(out, "{}: {problems} problems", path.display()),
        };
    }
    if problems == 0 && loaded.config.is_some() && loaded.rules.is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(2)
    }
}

/// Draws each finding with its place in the file, on stderr.
pub(super) fn print(findings: &[Finding]) {
    let mut out = std::io::stderr().lock();
    for finding in findings {
        let _ = writeln!(out, "{:?}", diagnostics::report(finding));
    }
}

fn print_json(findings: &[Finding], problems: usize) {
    let data: Vec<_> = findings
        .iter()
        .map(|finding| {
            let (file, line, column) = finding.place();
            json!({
                "severity": if finding.note { "note" } else { "error" },
                "file": file,
                "line": line,
                "column": column,
                "message": finding.message,
                "help": finding.help,
            })
        })
        .collect();
    let document = json!({"problems": problems, "findings": data});
    let _ = writeln!(std::io::stdout().lock(), "{document}");
}

/// `toolgate policy schema`.
pub(super) fn schema(path: &Path) -> anyhow::Result<ExitCode> {
    let loaded = load(path, &Variables::default());
    let Some(rules) = loaded.rules else {
        print(&loaded.findings);
        anyhow::bail!("the schema is made from contracts that have no problem");
    };
    write!(std::io::stdout().lock(), "{}", rules.policies.schema_text())?;
    Ok(ExitCode::SUCCESS)
}
