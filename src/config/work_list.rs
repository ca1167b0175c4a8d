//! How lists are written down outside of the gateway.

/// How a list is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFormat {
    /// An array of objects.
    Json,
    /// RFC 4180, with a heading line.
    Csv,
}
