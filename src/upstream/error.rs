//! What can go wrong, sorted by the one question that matters: was it sent?

use std::borrow::Cow;

use http::StatusCode;
use thiserror::Error;

/// Why settings make no [`Upstream`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// An https base URL without TLS settings.
    #[error("an https API needs TLS settings")]
    TlsMissing,
    /// The host cannot be verified in a certificate.
    #[error("the host {0} is not a name that a certificate could be issued for")]
    ServerName(String),
    /// The host cannot be a header.
    #[error("the host {0} cannot be sent in a Host header")]
    HostHeader(String),
}

/// Why there is no answer. The messages hold no argument and no credential.
#[derive(Debug, Clone, Error)]
pub enum SendError {
    /// The gate refused. Never sent.
    #[error("halted before the request was sent")]
    Halted,
    /// Certainly not sent: not one byte of it left.
    #[error("not sent: {reason}")]
    NotSent {
        /// What stood in the way.
        reason: Cow<'static, str>,
    },
    /// Sent, wholly or in part, and no whole answer came.
    #[error("the answer is lost: {reason}")]
    Lost {
        /// What happened to it.
        reason: Cow<'static, str>,
        /// Whether it was the time limit.
        timeout: bool,
    },
    /// Sent, and answered at more length than allowed.
    #[error("the answer (status {status}) is larger than allowed")]
    AnswerTooLarge {
        /// The status of the answer that was not read.
        status: StatusCode,
    },
    /// Sent, and answered with what cannot be passed on.
    #[error("the answer is invalid: {reason}")]
    AnswerInvalid {
        /// Its status, if it had a readable one.
        status: Option<StatusCode>,
        /// What is wrong with it.
        reason: Cow<'static, str>,
    },
}

impl SendError {
    /// Whether it is certain that nothing was sent. If not, the call may have been carried out.
    pub fn certainly_not_sent(&self) -> bool {
        matches!(self, Self::Halted | Self::NotSent { .. })
    }
}

pub(super) fn not_sent(reason: &'static str) -> SendError {
    SendError::NotSent {
        reason: reason.into(),
    }
}
