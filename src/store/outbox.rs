//! The outbox and the deliveries made of it. Events are written by the database's own triggers, in the transaction that made
//! them true; here they are read, spread over the destinations and told to be done.

use sqlx::PgConnection;

use super::StoreError;
use crate::{clock::Timestamp, ids::DeliveryId};

/// An event as it is kept.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct EventRow {
    pub seq: i64,
    pub event_id: String,
    pub kind: String,
    pub occurred_at: Timestamp,
    pub subject: String,
    pub tiers: Vec<String>,
    pub data: serde_json::Value,
}

/// Events that have no deliveries yet, oldest first; locked until the transaction ends.
///
/// # Errors
/// When the database is away.
pub async fn not_spread(
    connection: &mut PgConnection,
    limit: i64,
) -> Result<Vec<EventRow>, StoreError> {
    let rows = sqlx::query_as!(
        EventRow,
        "SELECT seq, event_id, type AS kind, occurred_at, subject, tiers, data FROM toolgate.outbox
         WHERE spread_at IS NULL ORDER BY seq LIMIT $1 FOR UPDATE",
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// A delivery to be made.
#[derive(Debug)]
pub struct NewDelivery<'a> {
    /// Its id.
    pub id: DeliveryId,
    /// To whom.
    pub destination: &'a str,
    /// Of what.
    pub event: &'a EventRow,
}

/// Makes the deliveries of these events, and marks the events as spread.
///
/// # Errors
/// When the database is away.
pub async fn spread(
    connection: &mut PgConnection,
    events: &[EventRow],
    deliveries: &[NewDelivery<'_>],
) -> Result<(), StoreError> {
    let ids: Vec<String> = deliveries.iter().map(|new| new.id.to_string()).collect();
    let destinations: Vec<String> = deliveries
        .iter()
        .map(|new| new.destination.to_owned())
        .collect();
    let events_of: Vec<i64> = deliveries.iter().map(|new| new.event.seq).collect();
    let subjects: Vec<String> = deliveries
        .iter()
        .map(|new| new.event.subject.clone())
        .collect();
    sqlx::query!(
        "INSERT INTO toolgate.deliveries (delivery_id, destination, seq, subject, state)
         SELECT d.id, d.destination, d.seq, d.subject, 'pending'
         FROM unnest($1::text[], $2::text[], $3::bigint[], $4::text[]) AS d(id, destination, seq, subject)
         ON CONFLICT (destination, seq) DO NOTHING",
        &ids,
        &destinations,
        &events_of,
        &subjects
    )
    .execute(&mut *connection)
    .await?;
    let all: Vec<i64> = events.iter().map(|event| event.seq).collect();
    sqlx::query!(
        "UPDATE toolgate.outbox SET spread_at = now() WHERE seq = ANY($1)",
        &all
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A delivery whose time has come, with its event and what the run of it says of itself.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct DueRow {
    pub delivery_id: String,
    pub attempts: i32,
    pub event_id: String,
    pub kind: String,
    pub occurred_at: Timestamp,
    pub subject: String,
    pub tiers: Vec<String>,
    pub data: serde_json::Value,
    pub purpose: Option<String>,
    pub triggered_by: Option<String>,
}

/// Deliveries of an enabled destination whose time has come, oldest first, but for those that are under way (`busy`) and those
/// whose subject has an earlier one that still waits.
///
/// # Errors
/// When the database is away.
pub async fn due(
    connection: &mut PgConnection,
    destination: &str,
    busy: &[String],
    limit: i64,
) -> Result<Vec<DueRow>, StoreError> {
    let rows = sqlx::query_as!(
        DueRow,
        r#"SELECT d.delivery_id, d.attempts, o.event_id, o.type AS kind, o.occurred_at, o.subject, o.tiers, o.data,
                  r.purpose AS "purpose?", r.triggered_by AS "triggered_by?"
           FROM toolgate.deliveries AS d
           JOIN toolgate.outbox AS o USING (seq)
           JOIN toolgate.destinations AS n ON n.name = d.destination
           LEFT JOIN toolgate.runs AS r ON r.run_id = o.data ->> 'run'
           WHERE d.destination = $1 AND d.state = 'pending' AND d.next_try_at <= now() AND n.disabled_at IS NULL
             AND d.delivery_id <> ALL ($2)
             AND NOT EXISTS (SELECT FROM toolgate.deliveries AS earlier
                             WHERE earlier.destination = d.destination AND earlier.subject = d.subject
                               AND earlier.state = 'pending' AND earlier.seq < d.seq)
           ORDER BY d.seq LIMIT $3"#,
        destination,
        busy,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// A delivery that has waited too long, or that too many younger ones wait behind.
#[derive(Debug, Clone)]
pub struct OverdueRow {
    /// Which.
    pub delivery_id: String,
    /// Its event.
    pub event_id: String,
    /// What it would have told.
    pub kind: String,
    /// True for too long a wait, false for too long a queue.
    pub too_old: bool,
}

/// Deliveries that are given up: waiting for longer than `max_age_seconds`, or older than the newest `max_pending`.
///
/// # Errors
/// When the database is away.
pub async fn overdue(
    connection: &mut PgConnection,
    destination: &str,
    max_age_seconds: f64,
    max_pending: i64,
    busy: &[String],
) -> Result<Vec<OverdueRow>, StoreError> {
    let rows = sqlx::query_as!(
        OverdueRow,
        r#"SELECT d.delivery_id, o.event_id, o.type AS kind,
                  (d.queued_at <= now() - make_interval(secs => $2)) AS "too_old!"
           FROM toolgate.deliveries AS d JOIN toolgate.outbox AS o USING (seq)
           WHERE d.destination = $1 AND d.state = 'pending' AND d.delivery_id <> ALL ($4)
             AND (d.queued_at <= now() - make_interval(secs => $2)
                  OR d.seq <= (SELECT p.seq FROM toolgate.deliveries AS p
                               WHERE p.destination = $1 AND p.state = 'pending'
                               ORDER BY p.seq DESC OFFSET $3 LIMIT 1))
           ORDER BY d.seq LIMIT 100"#,
        destination,
        max_age_seconds,
        max_pending,
        busy
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// The receiver has it.
///
/// # Errors
/// When the database is away.
pub async fn delivered(connection: &mut PgConnection, id: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE toolgate.deliveries
         SET state = 'delivered', attempts = attempts + 1, last_try_at = now(), last_error = NULL, ended_at = now()
         WHERE delivery_id = $1 AND state = 'pending'",
        id
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// It did not get through, and is tried again after so many seconds.
///
/// # Errors
/// When the database is away.
pub async fn failed(
    connection: &mut PgConnection,
    id: &str,
    error: &str,
    again_in_seconds: f64,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE toolgate.deliveries
         SET attempts = attempts + 1, last_try_at = now(), last_error = $2,
             next_try_at = now() + make_interval(secs => $3)
         WHERE delivery_id = $1 AND state = 'pending'",
        id,
        error,
        again_in_seconds
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// It is given up. False when it does not wait (any more).
///
/// # Errors
/// When the database is away.
pub async fn give_up(
    connection: &mut PgConnection,
    id: &str,
    error: &str,
    was_tried: bool,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE toolgate.deliveries
         SET state = 'dead', last_error = $2, ended_at = now(),
             attempts = attempts + CASE WHEN $3 THEN 1 ELSE 0 END,
             last_try_at = CASE WHEN $3 THEN now() ELSE last_try_at END
         WHERE delivery_id = $1 AND state = 'pending'",
        id,
        error,
        was_tried
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A given-up delivery waits again, with all its tries before it. False when it is not given up.
///
/// # Errors
/// When the database is away.
pub async fn redeliver(connection: &mut PgConnection, id: &str) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE toolgate.deliveries
         SET state = 'pending', attempts = 0, queued_at = now(), next_try_at = now(), ended_at = NULL
         WHERE delivery_id = $1 AND state = 'dead'",
        id
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A destination of the config is there. One whose config has changed is enabled again: true then.
///
/// # Errors
/// When the database is away.
pub async fn register(
    connection: &mut PgConnection,
    name: &str,
    fingerprint: &str,
) -> Result<bool, StoreError> {
    sqlx::query!(
        "INSERT INTO toolgate.destinations (name, fingerprint) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        name,
        fingerprint
    )
    .execute(&mut *connection)
    .await?;
    let was_disabled = sqlx::query_scalar!(
        r#"UPDATE toolgate.destinations AS now
           SET fingerprint = $2, disabled_at = NULL, disabled_because = NULL
           FROM toolgate.destinations AS before
           WHERE now.name = $1 AND before.name = now.name AND now.fingerprint <> $2
           RETURNING before.disabled_at IS NOT NULL AS "was_disabled!""#,
        name,
        fingerprint
    )
    .fetch_optional(&mut *connection)
    .await?;
    if was_disabled == Some(true) {
        try_now(connection, name).await?;
        return Ok(true);
    }
    Ok(false)
}

async fn try_now(connection: &mut PgConnection, destination: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE toolgate.deliveries SET next_try_at = now() WHERE destination = $1 AND state = 'pending'",
        destination
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Nothing is sent there until it is enabled. False when it is disabled already.
///
/// # Errors
/// When the database is away.
pub async fn disable(
    connection: &mut PgConnection,
    name: &str,
    because: &str,
) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE toolgate.destinations SET disabled_at = now(), disabled_because = $2
         WHERE name = $1 AND disabled_at IS NULL",
        name,
        because
    )
    .execute(connection)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// It gets everything again, what waited first. False when it is not disabled.
///
/// # Errors
/// When the database is away.
pub async fn enable(connection: &mut PgConnection, name: &str) -> Result<bool, StoreError> {
    let done = sqlx::query!(
        "UPDATE toolgate.destinations SET disabled_at = NULL, disabled_because = NULL
         WHERE name = $1 AND disabled_at IS NOT NULL",
        name
    )
    .execute(&mut *connection)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(false);
    }
    try_now(connection, name).await?;
    Ok(true)
}
