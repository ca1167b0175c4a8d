//! Reading audit entries by filter and in pages. Only what is asked for stands in the statement, so that each filter gets the
//! plan that its index allows; `query!` checks fixed texts only, so the columns are held against the table by the tests.

use futures::TryStreamExt as _;
use sqlx::{PgConnection, PgPool, Postgres, QueryBuilder, Row as _, Transaction, postgres::PgRow};

use super::StoreError;
use crate::{
    clock::Timestamp,
    entry::{Decision, Kind},
};

/// Which entries. Every part narrows it.
#[derive(Debug, Clone, Default)]
#[expect(
    missing_docs,
    reason = "each narrows the list to entries with that value; the columns are described in migrations/"
)]
pub struct Filter {
    /// Recorded at this time or later.
    pub from: Option<Timestamp>,
    /// Recorded before this time.
    pub to: Option<Timestamp>,
    pub agent: Option<String>,
    pub run: Option<String>,
    pub call: Option<String>,
    pub approval: Option<String>,
    pub kill_switch: Option<String>,
    pub tool: Option<String>,
    pub api: Option<String>,
    pub consequence: Option<&'static str>,
    pub kind: Option<Kind>,
    pub decision: Option<Decision>,
    /// One of its problem codes.
    pub reason: Option<&'static str>,
    pub operator: Option<String>,
    /// The digest over a call's real arguments.
    pub digest: Option<String>,
    /// Keyed digests of values, any of which stood in it.
    pub values: Vec<String>,
}

/// In which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// From now into the past.
    NewestFirst,
    /// From the past to now.
    OldestFirst,
}

/// Where an entry stands in the order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Its time.
    pub recorded_at: Timestamp,
    /// Its instance.
    pub instance_id: String,
    /// Its number there.
    pub seq: i64,
}

/// One entry.
#[derive(Debug)]
pub struct Found {
    /// Where it stands.
    pub position: Position,
    /// Its columns that are not null, as a JSON object.
    pub json: String,
}

/// What fits into one page.
#[derive(Debug, Clone, Copy)]
pub struct Room {
    /// Entries at the most.
    pub entries: i64,
    /// Bytes after which no further entry is taken.
    pub bytes: usize,
}

/// A page of entries, and whether more follow it.
///
/// # Errors
/// When the database is away, or the statement takes longer than the connection allows.
pub async fn page(
    connection: &mut PgConnection,
    filter: &Filter,
    order: Order,
    after: Option<&Position>,
    room: Room,
) -> Result<(Vec<Found>, bool), StoreError> {
    let mut query = statement("", filter, order, after);
    query.push(" LIMIT ").push_bind(room.entries + 1);
    let mut rows = query.build().fetch(connection);
    let mut page = Vec::new();
    let mut bytes = 0;
    let most = usize::try_from(room.entries).unwrap_or(usize::MAX);
    while let Some(row) = rows.try_next().await? {
        if page.len() >= most || bytes >= room.bytes {
            return Ok((page, true));
        }
        let found = found(&row)?;
        bytes += found.json.len();
        page.push(found);
    }
    Ok((page, false))
}

fn found(row: &PgRow) -> Result<Found, sqlx::Error> {
    Ok(Found {
        position: Position {
            recorded_at: row.try_get("recorded_at")?,
            instance_id: row.try_get("instance_id")?,
            seq: row.try_get("seq")?,
        },
        json: row.try_get("json")?,
    })
}

/// All entries of a filter as they stood at one moment, read stretch by stretch through a cursor of the database: it is one
/// statement, however many there are, and neither side holds more than a stretch.
pub struct Walk {
    transaction: Transaction<'static, Postgres>,
}

impl Walk {
    /// Opens the cursor.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn begin(pool: &PgPool, filter: &Filter, order: Order) -> Result<Self, StoreError> {
        let mut transaction = pool.begin().await?;
        statement("DECLARE walk NO SCROLL CURSOR FOR ", filter, order, None)
            .build()
            .execute(&mut *transaction)
            .await?;
        Ok(Self { transaction })
    }

    /// The next hundred entries; none at the end.
    ///
    /// # Errors
    /// When the database is away, or has closed the cursor because nobody asked for so long.
    pub async fn next(&mut self) -> Result<Vec<Found>, StoreError> {
        let rows = sqlx::query("FETCH 100 FROM walk")
            .fetch_all(&mut *self.transaction)
            .await?;
        Ok(rows.iter().map(found).collect::<Result<_, _>>()?)
    }
}

/// The statement of a list, but for its limit. Kinds and decisions stand in it as constants, because PostgreSQL uses a partial index only where it
/// can see that the condition implies the index's own.
fn statement(
    before: &str,
    filter: &Filter,
    order: Order,
    after: Option<&Position>,
) -> QueryBuilder<Postgres> {
    let mut query = QueryBuilder::new(before);
    query.push(
        "SELECT e.recorded_at, e.instance_id, e.seq,
                (SELECT jsonb_object_agg(column_of.key, column_of.value)::text
                 FROM jsonb_each(to_jsonb(e) || jsonb_build_object('hash', encode(e.hash, 'hex'))) AS column_of
                 WHERE column_of.value <> 'null'::jsonb) AS json
         FROM audit.entries AS e WHERE true",
    );
    let texts = [
        (" AND e.agent = ", &filter.agent),
        (" AND e.run_id = ", &filter.run),
        (" AND e.call_id = ", &filter.call),
        (" AND e.approval_id = ", &filter.approval),
        (" AND e.kill_switch_id = ", &filter.kill_switch),
        (" AND e.tool = ", &filter.tool),
        (" AND e.api = ", &filter.api),
        (" AND e.operator = ", &filter.operator),
        (" AND e.arguments_digest = ", &filter.digest),
    ];
    for (condition, value) in texts {
        if let Some(value) = value {
            query.push(condition).push_bind(value);
        }
    }
    if let Some(consequence) = filter.consequence {
        query.push(" AND e.consequence = ").push_bind(consequence);
    }
    if let Some(kind) = filter.kind {
        query.push(" AND e.kind = '").push(kind.as_str()).push("'");
        // So it is by the table's own rules, and it names an index.
        if kind == Kind::Refusal {
            query.push(" AND e.decision = 'deny'");
        }
    }
    if let Some(decision) = filter.decision {
        query
            .push(" AND e.decision = '")
            .push(decision.as_str())
            .push("'");
    }
    if let Some(reason) = filter.reason {
        query
            .push(" AND e.reasons @> ARRAY[")
            .push_bind(reason)
            .push("]");
    }
    if !filter.values.is_empty() {
        query
            .push(" AND e.value_tokens && ")
            .push_bind(&filter.values);
    }
    if let Some(from) = filter.from {
        query.push(" AND e.recorded_at >= ").push_bind(from);
    }
    if let Some(to) = filter.to {
        query.push(" AND e.recorded_at < ").push_bind(to);
    }
    let (beyond, direction) = match order {
        Order::NewestFirst => ("<", " DESC"),
        Order::OldestFirst => (">", ""),
    };
    if let Some(after) = after {
        // The time alone too, which the indexes over something and the time can use.
        query
            .push(format_args!(" AND e.recorded_at {beyond}= "))
            .push_bind(after.recorded_at)
            .push(format_args!(
                " AND (e.recorded_at, e.instance_id, e.seq) {beyond} ("
            ))
            .push_bind(after.recorded_at)
            .push(", ")
            .push_bind(&after.instance_id)
            .push(", ")
            .push_bind(after.seq)
            .push(")");
    }
    query.push(format_args!(
        " ORDER BY e.recorded_at{direction}, e.instance_id{direction}, e.seq{direction}"
    ));
    query
}
