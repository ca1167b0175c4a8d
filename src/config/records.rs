//! How long the records are kept: for ever unless somebody says otherwise, and never so briefly that nobody could look.

use super::{Resolver, file};

/// How long what happened is kept.
#[derive(Debug, Clone, Default)]
pub struct Records {
    /// Days from the end of a month until it may be dropped; at least [`KEPT_AT_LEAST`]. Without it records are kept for ever.
    pub keep_for_days: Option<u32>,
}

/// The shortest time for which records are kept, in days.
const KEPT_AT_LEAST: u32 = 90;

impl Resolver<'_> {
    pub(super) fn records(&mut self, written: &file::Records) -> Records {
        if let Some(days) = &written.keep_for_days
            && days.value < KEPT_AT_LEAST
        {
            self.wrong(
                days,
                format!("records are kept for at least {KEPT_AT_LEAST} days"),
                "leave it out to keep them for ever",
            );
        }
        Records {
            keep_for_days: written.keep_for_days.as_ref().map(|days| days.value),
        }
    }
}
