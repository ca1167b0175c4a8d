//! Contracts from the file to the wire and back.

mod amounts;
mod forms;
mod loading;
mod previews;
mod refusals;
mod requests;
mod routing;
mod sending;

use std::{collections::BTreeSet, sync::Arc};

use super::*;
use crate::diagnostics::{Finding, SourceFile};

fn apis() -> BTreeSet<String> {
    ["desk", "bank"].map(str::to_owned).into()
}

fn load_texts(texts: &[&str]) -> (Catalog, Vec<Finding>) {
    let files: Vec<_> = texts
        .iter()
        .enumerate()
        .map(|(index, text)| SourceFile::new(format!("{index}.yaml"), *text))
        .collect();
    load(&files, &apis())
}

/// A tool with these lines beside its name, description, scope and consequence.
fn tool(lines: &str) -> String {
    let lines: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    format!(
        "tools:\n  - name: desk.things.act\n    description: Acts.\n    api: desk\n    \
         scope: desk.things:write\n    consequence: write\n{lines}"
    )
}

fn contract(lines: &str) -> Arc<Contract> {
    let (catalog, findings) = load_texts(&[&tool(lines)]);
    assert!(findings.is_empty(), "{findings:?}");
    Arc::clone(catalog.tool("desk.things.act").expect("the tool is there"))
}
