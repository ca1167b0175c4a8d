//! The master secret and those before it.

use super::{Resolver, file};
use crate::{
    secrets::{Keyring, Secret},
    yaml::Spanned,
};

impl Resolver<'_> {
    pub(super) fn master_secret(&mut self, raw: &Spanned<String>) -> Option<Secret> {
        let secret = Secret::new(self.text(raw)?);
        if let Err(error) = Keyring::new(&secret) {
            self.wrong(
                raw,
                error.to_string(),
                "make one with: openssl rand -hex 32",
            );
            return None;
        }
        if !raw.value.contains("${") {
            self.wrong(
                raw,
                "the master secret stands in the config file itself",
                "take it from ${env:NAME} or ${file:PATH}",
            );
        }
        Some(secret)
    }

    pub(super) fn previous(
        &mut self,
        written: &file::Config,
        newest: Option<&Secret>,
    ) -> Vec<Secret> {
        let mut found: Vec<Secret> = Vec::new();
        for raw in &written.previous_master_secrets {
            let Some(secret) = self.master_secret(raw) else {
                continue;
            };
            // White space around a secret is no part of it.
            let same = |other: &Secret| other.expose().trim() == secret.expose().trim();
            if newest.is_some_and(same) || found.iter().any(same) {
                self.wrong(
                    raw,
                    "the same master secret stands twice",
                    "name each once: the one in use as master_secret, those before it in previous_master_secrets",
                );
                continue;
            }
            found.push(secret);
        }
        found
    }
}
