//! `${env:NAME}`, `${env:NAME:-default}` and `${file:PATH}` in config values.

use std::{collections::BTreeMap, path::Path};

/// Where `${env:NAME}` looks: first in values handed over by the program (the demo's), then in the process's
/// environment.
#[derive(Debug, Clone, Default)]
pub struct Variables {
    given: BTreeMap<String, String>,
}

impl Variables {
    /// Adds or replaces a value that wins over the environment.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.given.insert(name.to_owned(), value.into());
        self
    }

    fn lookup(&self, name: &str) -> Option<String> {
        self.given
            .get(name)
            .cloned()
            .or_else(|| std::env::var(name).ok())
            .filter(|value| !value.is_empty())
    }

    /// Replaces every reference in a text. What a reference yields is not looked at again.
    ///
    /// # Errors
    /// A message that names the reference, never a value.
    pub fn resolve(&self, text: &str, base: &Path) -> Result<String, String> {
        let mut resolved = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("${") {
            resolved.push_str(before);
            let (reference, behind) = after
                .split_once('}')
                .ok_or_else(|| "a ${ without its }".to_owned())?;
            resolved.push_str(&self.one(reference, base)?);
            rest = behind;
        }
        resolved.push_str(rest);
        Ok(resolved)
    }

    fn one(&self, reference: &str, base: &Path) -> Result<String, String> {
        if let Some(name) = reference.strip_prefix("env:") {
            let (name, default) = match name.split_once(":-") {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (name, None),
            };
            return self
                .lookup(name)
                .or(default)
                .ok_or_else(|| format!("environment variable {name} is not set"));
        }
        if let Some(path) = reference.strip_prefix("file:") {
            let path = base.join(path);
            return std::fs::read_to_string(&path)
                .map(|text| text.trim_end_matches(['\r', '\n']).to_owned())
                .map_err(|error| format!("cannot read {}: {error}", path.display()));
        }
        Err(format!(
            "${{{reference}}} is neither ${{env:NAME}} nor ${{file:PATH}}"
        ))
    }
}
