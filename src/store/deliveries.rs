//! What operators and streams read of the outbox: lists of deliveries, how destinations stand, events after a place.

use sqlx::PgConnection;

use super::{StoreError, outbox::EventRow};
use crate::clock::{Timestamp, Timestamp as DateTime};

/// A message on its way to one destination.
#[derive(Debug, Clone, serde::Serialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = Delivery)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct DeliveryRow {
    #[serde(rename = "delivery")]
    pub delivery_id: String,
    pub destination: String,
    #[serde(rename = "event")]
    pub event_id: String,
    #[serde(rename = "type")]
    pub kind: String,
    pub subject: String,
    pub state: String,
    pub attempts: i32,
    pub occurred_at: DateTime,
    pub queued_at: DateTime,
    pub next_try_at: DateTime,
    #[schema(required)]
    pub last_try_at: Option<DateTime>,
    #[schema(required)]
    pub last_error: Option<String>,
    #[schema(required)]
    pub ended_at: Option<DateTime>,
}

/// Deliveries in the order in which they were made.
///
/// # Errors
/// When the database is away.
pub async fn list(
    connection: &mut PgConnection,
    state: Option<&str>,
    destination: Option<&str>,
    after: Option<&str>,
    limit: i64,
) -> Result<Vec<DeliveryRow>, StoreError> {
    let rows = sqlx::query_as!(
        DeliveryRow,
        "SELECT d.delivery_id, d.destination, o.event_id, o.type AS kind, d.subject, d.state, d.attempts,
                o.occurred_at, d.queued_at, d.next_try_at, d.last_try_at, d.last_error, d.ended_at
         FROM toolgate.deliveries AS d JOIN toolgate.outbox AS o USING (seq)
         WHERE ($1::text IS NULL OR d.state = $1) AND ($2::text IS NULL OR d.destination = $2)
           AND ($3::text IS NULL OR d.delivery_id > $3)
         ORDER BY d.delivery_id LIMIT $4",
        state,
        destination,
        after,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// The delivery of that id.
///
/// # Errors
/// When the database is away.
pub async fn find(
    connection: &mut PgConnection,
    id: &str,
) -> Result<Option<DeliveryRow>, StoreError> {
    let row = sqlx::query_as!(
        DeliveryRow,
        "SELECT d.delivery_id, d.destination, o.event_id, o.type AS kind, d.subject, d.state, d.attempts,
                o.occurred_at, d.queued_at, d.next_try_at, d.last_try_at, d.last_error, d.ended_at
         FROM toolgate.deliveries AS d JOIN toolgate.outbox AS o USING (seq) WHERE d.delivery_id = $1",
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(row)
}

/// How a destination stands.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct DestinationRow {
    pub name: String,
    pub disabled_at: Option<Timestamp>,
    pub disabled_because: Option<String>,
    pub pending: i64,
    pub dead: i64,
}

/// Every destination that the config has or had.
///
/// # Errors
/// When the database is away.
pub async fn destinations(
    connection: &mut PgConnection,
) -> Result<Vec<DestinationRow>, StoreError> {
    let rows = sqlx::query_as!(
        DestinationRow,
        r#"SELECT n.name, n.disabled_at, n.disabled_because,
                  count(d.seq) FILTER (WHERE d.state = 'pending') AS "pending!",
                  count(d.seq) FILTER (WHERE d.state = 'dead') AS "dead!"
           FROM toolgate.destinations AS n
           LEFT JOIN toolgate.deliveries AS d ON d.destination = n.name AND d.state <> 'delivered'
           GROUP BY n.name ORDER BY n.name"#
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// The numbers of the oldest and the newest event that are kept.
///
/// # Errors
/// When the database is away.
pub async fn bounds(connection: &mut PgConnection) -> Result<Option<(i64, i64)>, StoreError> {
    let row = sqlx::query!("SELECT min(seq) AS oldest, max(seq) AS newest FROM toolgate.outbox")
        .fetch_one(connection)
        .await?;
    Ok(row.oldest.zip(row.newest))
}

/// Events behind a number, in order.
///
/// # Errors
/// When the database is away.
pub async fn events_after(
    connection: &mut PgConnection,
    seq: i64,
    limit: i64,
) -> Result<Vec<EventRow>, StoreError> {
    let rows = sqlx::query_as!(
        EventRow,
        "SELECT seq, event_id, type AS kind, occurred_at, subject, tiers, data FROM toolgate.outbox
         WHERE seq > $1 ORDER BY seq LIMIT $2",
        seq,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// Removes up to 1,000 events that are older than so many days, with their deliveries. The newest event stays, so that the
/// numbers go on from it, and so does what has begun to wait since.
///
/// # Errors
/// When the database is away.
pub async fn prune(connection: &mut PgConnection, days: i32) -> Result<u64, StoreError> {
    let cleared = sqlx::query_scalar!(r#"SELECT toolgate.clear_outbox($1) AS "cleared!""#, days)
        .fetch_one(connection)
        .await?;
    Ok(u64::try_from(cleared).unwrap_or(0))
}
