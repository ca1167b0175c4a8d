//! The one place that reads the clock, so that everything else is handed the time it works with.

use chrono::{DateTime, Utc};

/// A moment in UTC. PostgreSQL keeps microseconds, so every moment made here is cut to them: what is
/// held in memory equals what a later query returns.
pub type Timestamp = DateTime<Utc>;

/// What time it is now, to the microsecond.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the place that the ban points to"
)]
pub fn now() -> Timestamp {
    let now = Utc::now();
    DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now)
}
