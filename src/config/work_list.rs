//! A copy of the work list on disk, for when even the gateway is down.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::Resolver;
use crate::yaml::Spanned;

const EVERY_SECONDS: u64 = 60;
/// A day: an older list is none.
const EVERY_SECONDS_MOST: u64 = 86_400;

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    file: Spanned<String>,
    #[serde(default = "every_seconds")]
    every_seconds: u64,
}

const fn every_seconds() -> u64 {
    EVERY_SECONDS
}

/// Where the work list is copied to, and how often.
#[derive(Debug, Clone)]
pub struct WorkListCopy {
    /// The file; its directory must be there.
    pub file: PathBuf,
    /// In which form, by the end of its name.
    pub format: ListFormat,
    /// The time between two copies.
    pub every: Duration,
}

/// How a list is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    /// An array of objects.
    Json,
    /// RFC 4180, with a heading line.
    Csv,
}

impl Resolver<'_> {
    pub(super) fn work_list_copy(
        &mut self,
        written: Option<&Spanned<Written>>,
    ) -> Option<WorkListCopy> {
        let spanned = written?;
        let seconds = spanned.value.every_seconds;
        if !(1..=EVERY_SECONDS_MOST).contains(&seconds) {
            self.wrong(
                spanned,
                format!("the work list cannot be copied every {seconds} seconds"),
                "every_seconds must be from 1 to 86400, which is a day",
            );
        }
        let file = PathBuf::from(self.text(&spanned.value.file)?);
        let format = match file.extension().and_then(|end| end.to_str()) {
            Some("json") => ListFormat::Json,
            Some("csv") => ListFormat::Csv,
            _ => {
                self.wrong(
                    &spanned.value.file,
                    "the end of the name says in which form the work list is copied, and it is neither .json nor .csv",
                    "write it like /var/lib/toolgate/work.csv",
                );
                return None;
            }
        };
        Some(WorkListCopy {
            file,
            format,
            every: Duration::from_secs(seconds),
        })
    }
}
