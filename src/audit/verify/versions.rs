//! The texts of contracts and policies, held against the digests by which entries name them.

use std::collections::BTreeSet;

use serde::Serialize;
use sqlx::PgConnection;

use crate::{
    json,
    store::{StoreError, audit_log::Stored, keeping},
};

/// A contract or policies whose text is not the one that an entry names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WrongVersion {
    /// The digest that entries name.
    pub digest: String,
    /// `contract` or `policies`, where there is anything under this digest.
    pub kind: Option<String>,
    /// The tool, or `policies`.
    pub name: Option<String>,
    /// In words.
    pub words: String,
}

/// Digests that entries name at the most: far more than versions ever come into force.
const NAMED: usize = 10_000;

/// Digests that entries name, each once.
#[derive(Default)]
pub(super) struct Named {
    digests: BTreeSet<String>,
    /// Whether there were more than are kept.
    is_full: bool,
}

impl Named {
    pub fn take(&mut self, stored: &Stored) {
        let digests = [&stored.contract_digest, &stored.policy_digest];
        for digest in digests.into_iter().flatten() {
            if !self.digests.contains(digest) {
                self.keep(digest.clone());
            }
        }
    }

    pub fn join(&mut self, other: Self) {
        self.is_full |= other.is_full;
        for digest in other.digests {
            self.keep(digest);
        }
    }

    fn keep(&mut self, digest: String) {
        if self.digests.len() < NAMED {
            self.digests.insert(digest);
        } else if !self.digests.contains(&digest) {
            self.is_full = true;
        }
    }
}

/// Those whose texts are missing, or do not give their digests.
pub(super) async fn wrong(
    connection: &mut PgConnection,
    named: &Named,
) -> Result<Vec<WrongVersion>, StoreError> {
    let mut wrong = Vec::new();
    if named.is_full {
        wrong.push(WrongVersion {
            digest: String::new(),
            kind: None,
            name: None,
            words: format!("entries name more than {NAMED}; the others were not looked at"),
        });
    }
    for digest in &named.digests {
        let Some(version) = keeping::version(connection, digest).await? else {
            wrong.push(WrongVersion {
                digest: digest.clone(),
                kind: None,
                name: None,
                words: "entries name it, and audit.versions does not have it".to_owned(),
            });
            continue;
        };
        if format!("sha256:{}", json::sha256_hex(&version.content)) != *digest {
            wrong.push(WrongVersion {
                digest: version.digest,
                kind: Some(version.kind),
                name: Some(version.name),
                words: "its text in audit.versions does not give it".to_owned(),
            });
        }
    }
    Ok(wrong)
}
