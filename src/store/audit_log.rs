//! The history read back whole, for whoever checks it: where each instance's entries begin and end, and their rows in order.

use std::borrow::Cow;

use futures::stream::BoxStream;
use futures::{StreamExt as _, TryStreamExt as _};
use sqlx::PgConnection;

use super::StoreError;
use crate::{clock::Timestamp, entry::Row, json};

/// Where the entries of one instance begin and end.
#[derive(Debug, Clone)]
pub struct Extent {
    /// The instance.
    pub instance_id: String,
    /// Its lowest number.
    pub first: i64,
    /// Its highest number.
    pub last: i64,
}

/// Every instance that has entries, oldest first.
///
/// # Errors
/// When the database is away.
pub async fn extents(connection: &mut PgConnection) -> Result<Vec<Extent>, StoreError> {
    // From one instance to the next along the primary key, however many entries each has.
    let found = sqlx::query_as!(
        Extent,
        r#"WITH RECURSIVE instance AS (
               SELECT (SELECT min(instance_id) FROM audit.entries) AS id
               UNION ALL
               SELECT (SELECT min(instance_id) FROM audit.entries WHERE instance_id > instance.id)
               FROM instance WHERE instance.id IS NOT NULL
           )
           SELECT id AS "instance_id!",
                  (SELECT min(seq) FROM audit.entries WHERE instance_id = id) AS "first!",
                  (SELECT max(seq) FROM audit.entries WHERE instance_id = id) AS "last!"
           FROM instance WHERE id IS NOT NULL ORDER BY 1"#
    )
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// One row with its hash, as it stands in the table; JSON columns as PostgreSQL writes them.
pub struct Stored {
    /// Its instance.
    pub instance_id: String,
    /// Its number.
    pub seq: i64,
    /// Its time.
    pub recorded_at: Timestamp,
    /// Its kind.
    pub kind: String,
    opens_call: bool,
    call_id: Option<String>,
    run_id: Option<String>,
    approval_id: Option<String>,
    kill_switch_id: Option<String>,
    agent: Option<String>,
    operator: Option<String>,
    surface: Option<String>,
    api: Option<String>,
    tool: Option<String>,
    consequence: Option<String>,
    /// The contract that was applied.
    pub contract_digest: Option<String>,
    /// The policies that decided.
    pub policy_digest: Option<String>,
    arguments: Option<String>,
    arguments_digest: Option<String>,
    decision: Option<String>,
    reasons: Option<Vec<String>>,
    policies: Option<Vec<String>>,
    received_at: Option<Timestamp>,
    decided_at: Option<Timestamp>,
    forwarded_at: Option<Timestamp>,
    finished_at: Option<Timestamp>,
    status: Option<i16>,
    executed: Option<bool>,
    outcome: Option<String>,
    words: Option<String>,
    /// Its detail, as JSON text.
    pub detail: Option<String>,
    answer: Option<String>,
    answer_digest: Option<String>,
    before: Option<String>,
    changed: Option<String>,
    value_tokens: Option<Vec<String>>,
    /// Its hash; none in entries that are older than the chain.
    pub hash: Option<Vec<u8>>,
}

impl Stored {
    /// The row as it is hashed.
    pub fn row(&self) -> Row<'_> {
        fn list(items: &Option<Vec<String>>) -> Vec<&str> {
            items.iter().flatten().map(String::as_str).collect()
        }
        Row {
            instance_id: &self.instance_id,
            seq: self.seq,
            recorded_at: self.recorded_at,
            kind: &self.kind,
            opens_call: self.opens_call,
            call_id: self.call_id.as_deref(),
            run_id: self.run_id.as_deref(),
            approval_id: self.approval_id.as_deref(),
            kill_switch_id: self.kill_switch_id.as_deref(),
            agent: self.agent.as_deref(),
            operator: self.operator.as_deref(),
            surface: self.surface.as_deref(),
            api: self.api.as_deref(),
            tool: self.tool.as_deref(),
            consequence: self.consequence.as_deref(),
            contract_digest: self.contract_digest.as_deref(),
            policy_digest: self.policy_digest.as_deref(),
            arguments: canonical(&self.arguments),
            arguments_digest: self.arguments_digest.as_deref(),
            decision: self.decision.as_deref(),
            reasons: list(&self.reasons),
            policies: list(&self.policies),
            received_at: self.received_at,
            decided_at: self.decided_at,
            forwarded_at: self.forwarded_at,
            finished_at: self.finished_at,
            status: self.status,
            executed: self.executed,
            outcome: self.outcome.as_deref(),
            words: self.words.as_deref(),
            detail: canonical(&self.detail),
            answer: canonical(&self.answer),
            answer_digest: self.answer_digest.as_deref(),
            before: canonical(&self.before),
            changed: canonical(&self.changed),
            value_tokens: list(&self.value_tokens),
        }
    }
}

/// RFC 8785 text from PostgreSQL's own. What it wrote is JSON; should it ever not be, the text itself makes the hash differ.
fn canonical(text: &Option<String>) -> Option<Cow<'_, str>> {
    let text = text.as_deref()?;
    Some(match serde_json::from_str(text) {
        Ok(value) => Cow::Owned(json::canonical_text(&value)),
        Err(_no_json) => Cow::Borrowed(text),
    })
}

/// The columns of [`Stored`], and which rows.
macro_rules! stored {
    ($which:tt, $($value:expr),+) => {
        sqlx::query_as!(
            Stored,
            r#"SELECT instance_id, seq, recorded_at, kind::text AS "kind!", opens_call, call_id, run_id, approval_id,
                  kill_switch_id, agent, operator, surface, api, tool, consequence, contract_digest, policy_digest,
                  arguments::text AS arguments, arguments_digest, decision::text AS decision, reasons, policies,
                  received_at, decided_at, forwarded_at, finished_at, status, executed, outcome::text AS outcome, words,
                  detail::text AS detail, answer::text AS answer, answer_digest, before::text AS before,
                  changed::text AS changed, value_tokens, hash
               FROM audit.entries WHERE "# + $which,
            $($value),+
        )
    };
}

/// The rows of one instance with numbers from `first` to `last`, in order, as they are read.
pub fn rows<'c>(
    connection: &'c mut PgConnection,
    instance: &'c str,
    first: i64,
    last: i64,
) -> BoxStream<'c, Result<Stored, StoreError>> {
    stored!(
        "instance_id = $1 AND seq BETWEEN $2 AND $3 ORDER BY seq, recorded_at",
        instance,
        first,
        last
    )
    .fetch(connection)
    .map_err(StoreError::from)
    .boxed()
}

/// The first two rows of each of these instances, by instance and number.
///
/// # Errors
/// When the database is away.
pub async fn beginnings(
    connection: &mut PgConnection,
    instances: &[String],
) -> Result<Vec<Stored>, StoreError> {
    let found = stored!(
        "instance_id = ANY($1) AND seq <= 2 ORDER BY instance_id, seq, recorded_at",
        instances
    )
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// An entry of kind `signing_key_changed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyChange {
    /// The instance.
    pub instance_id: String,
    /// Its number.
    pub seq: i64,
    /// When it was recorded; where that is no more known, when its month ended.
    pub recorded_at: Timestamp,
    /// Its detail, as JSON text.
    pub detail: Option<String>,
}

/// Every change of the key that signs checkpoints, in order.
///
/// # Errors
/// When the database is away.
pub async fn signing_keys(connection: &mut PgConnection) -> Result<Vec<KeyChange>, StoreError> {
    let found = sqlx::query_as!(
        KeyChange,
        "SELECT instance_id, seq, recorded_at, detail::text AS detail FROM audit.entries
         WHERE kind = 'signing_key_changed' ORDER BY instance_id, seq"
    )
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// The rows recorded from `from` on and before `to`, by instance and number, as they are read.
pub fn rows_between(
    connection: &mut PgConnection,
    from: Timestamp,
    to: Timestamp,
) -> BoxStream<'_, Result<Stored, StoreError>> {
    stored!(
        "recorded_at >= $1 AND recorded_at < $2 ORDER BY instance_id, seq, recorded_at",
        from,
        to
    )
    .fetch(connection)
    .map_err(StoreError::from)
    .boxed()
}
