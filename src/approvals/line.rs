//! Deciding on a line of identical calls: a decision is on the head, and on exactly as many calls as its voter was shown.

use super::{Ballot, Vote};
use crate::{
    reason::{Reason, Refusal},
    store::approvals::ApprovalRow,
};

/// What is attached is decided with the head of its line and not by itself.
///
/// # Errors
/// `conflict`, with where to decide.
pub(super) fn is_head(row: &ApprovalRow) -> Result<(), Refusal> {
    match &row.attached_to {
        None => Ok(()),
        Some(head) => Err(Refusal::new(
            Reason::Conflict,
            format!(
                "This call waits in one line with others that are identical to it: decide on {head}, which shows how many there are. Nothing was changed."
            ),
        )),
    }
}

/// Whether a line is as long as its voter saw it. Who denies without a number denies whatever waits there.
pub(super) fn is_as_seen(ballot: &Ballot, calls: usize) -> bool {
    match (ballot.calls, ballot.vote) {
        (Some(seen), _) => usize::try_from(seen) == Ok(calls),
        (None, Vote::Approve) => calls == 1,
        (None, Vote::Deny) => true,
    }
}

/// The refusal of a decision on another number of calls.
pub(super) fn other_count(calls: usize) -> Refusal {
    Refusal::new(
        Reason::StaleDigest,
        format!(
            "This decision is on another number of calls than wait in the line, which are {calls} by now. Nothing was changed: read the approval again, and send the number that it shows as \"calls\"."
        ),
    )
}
