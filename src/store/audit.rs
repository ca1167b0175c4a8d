//! The append-only history: many entries in one statement, and what a restart must look for.

use sqlx::PgConnection;

use super::StoreError;
use crate::{
    clock::Timestamp,
    entry::{Entry, Redacted},
    ids::InstanceId,
};

/// Separates the items of a text list inside one array element; a control character that no code, id or policy
/// name can hold.
const SEPARATOR: &str = "\u{1f}";

/// The columns of a batch, each as one array, so that any number of rows is one statement with one plan.
#[derive(Default)]
struct Columns<'a> {
    seq: Vec<i64>,
    kind: Vec<&'static str>,
    opens_call: Vec<bool>,
    call_id: Vec<Option<&'a str>>,
    run_id: Vec<Option<&'a str>>,
    approval_id: Vec<Option<&'a str>>,
    kill_switch_id: Vec<Option<&'a str>>,
    agent: Vec<Option<&'a str>>,
    operator: Vec<Option<&'a str>>,
    surface: Vec<Option<&'a str>>,
    api: Vec<Option<&'a str>>,
    tool: Vec<Option<&'a str>>,
    consequence: Vec<Option<&'a str>>,
    contract_digest: Vec<Option<&'a str>>,
    policy_digest: Vec<Option<&'a str>>,
    arguments: Vec<Option<&'a str>>,
    arguments_digest: Vec<Option<&'a str>>,
    decision: Vec<Option<&'a str>>,
    reasons: Vec<Option<String>>,
    policies: Vec<Option<String>>,
    received_at: Vec<Option<Timestamp>>,
    decided_at: Vec<Option<Timestamp>>,
    forwarded_at: Vec<Option<Timestamp>>,
    finished_at: Vec<Option<Timestamp>>,
    status: Vec<Option<i16>>,
    executed: Vec<Option<bool>>,
    outcome: Vec<Option<&'a str>>,
    words: Vec<Option<&'a str>>,
    detail: Vec<Option<String>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, seq: i64, entry: &'a Entry) {
        let list = |items: Vec<&str>| (!items.is_empty()).then(|| items.join(SEPARATOR));
        self.seq.push(seq);
        self.kind
            .push(entry.kind.map_or("", crate::entry::Kind::as_str));
        self.opens_call.push(entry.opens_call);
        self.call_id
            .push(entry.call_id.as_ref().map(|id| id.as_str()));
        self.run_id
            .push(entry.run_id.as_ref().map(|id| id.as_str()));
        self.approval_id
            .push(entry.approval_id.as_ref().map(|id| id.as_str()));
        self.kill_switch_id
            .push(entry.kill_switch_id.as_ref().map(|id| id.as_str()));
        self.agent.push(entry.agent.as_deref());
        self.operator.push(entry.operator.as_deref());
        self.surface.push(entry.surface);
        self.api.push(entry.api.as_deref());
        self.tool.push(entry.tool.as_deref());
        self.consequence
            .push(entry.consequence.map(crate::call::Consequence::as_str));
        self.contract_digest.push(entry.contract_digest.as_deref());
        self.policy_digest.push(entry.policy_digest.as_deref());
        self.arguments
            .push(entry.arguments.as_ref().map(Redacted::as_json));
        self.arguments_digest
            .push(entry.arguments_digest.as_deref());
        self.decision
            .push(entry.decision.map(crate::entry::Decision::as_str));
        self.reasons.push(list(entry.reasons.clone()));
        self.policies
            .push(list(entry.policies.iter().map(String::as_str).collect()));
        self.received_at.push(entry.received_at);
        self.decided_at.push(entry.decided_at);
        self.forwarded_at.push(entry.forwarded_at);
        self.finished_at.push(entry.finished_at);
        self.status
            .push(entry.status.and_then(|status| i16::try_from(status).ok()));
        self.executed.push(entry.executed);
        self.outcome
            .push(entry.outcome.map(crate::entry::Outcome::as_str));
        self.words.push(entry.words.as_deref());
        self.detail
            .push(entry.detail.as_ref().map(ToString::to_string));
    }
}

/// Inserts entries in order, numbered from `first_seq`, in one statement.
///
/// # Errors
/// When the database is away or refuses a row; then no row of the batch stands.
pub async fn insert(
    connection: &mut PgConnection,
    instance: &InstanceId,
    first_seq: i64,
    recorded_at: Timestamp,
    entries: impl Iterator<Item = &Entry>,
) -> Result<(), StoreError> {
    let mut columns = Columns::default();
    for (seq, entry) in (first_seq..).zip(entries) {
        columns.push(seq, entry);
    }
    sqlx::query!(
        r#"INSERT INTO audit.entries (
               instance_id, seq, recorded_at, kind, opens_call, call_id, run_id, approval_id, kill_switch_id,
               agent, operator, surface, api, tool, consequence, contract_digest, policy_digest,
               arguments, arguments_digest, decision, reasons, policies,
               received_at, decided_at, forwarded_at, finished_at, status, executed, outcome, words, detail)
           SELECT $1, b.seq, $2, b.kind::audit.entry_kind, b.opens_call, b.call_id, b.run_id, b.approval_id, b.kill_switch_id,
               b.agent, b.operator, b.surface, b.api, b.tool, b.consequence, b.contract_digest, b.policy_digest,
               b.arguments::jsonb, b.arguments_digest, b.decision::audit.decision,
               string_to_array(b.reasons, E'\x1f'), string_to_array(b.policies, E'\x1f'),
               b.received_at, b.decided_at, b.forwarded_at, b.finished_at, b.status, b.executed, b.outcome::audit.outcome,
               b.words, b.detail::jsonb
           FROM unnest(
               $3::bigint[], $4::text[], $5::boolean[], $6::text[], $7::text[], $8::text[], $9::text[],
               $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[],
               $17::text[], $18::text[], $19::text[], $20::text[], $21::text[], $22::text[],
               $23::timestamptz[], $24::timestamptz[], $25::timestamptz[], $26::timestamptz[],
               $27::smallint[], $28::boolean[], $29::text[], $30::text[], $31::text[])
           AS b(seq, kind, opens_call, call_id, run_id, approval_id, kill_switch_id,
                agent, operator, surface, api, tool, consequence,
                contract_digest, policy_digest, arguments, arguments_digest, decision, reasons, policies,
                received_at, decided_at, forwarded_at, finished_at,
                status, executed, outcome, words, detail)"#,
        instance.as_str(),
        recorded_at,
        &columns.seq,
        &columns.kind as _,
        &columns.opens_call,
        &columns.call_id as _,
        &columns.run_id as _,
        &columns.approval_id as _,
        &columns.kill_switch_id as _,
        &columns.agent as _,
        &columns.operator as _,
        &columns.surface as _,
        &columns.api as _,
        &columns.tool as _,
        &columns.consequence as _,
        &columns.contract_digest as _,
        &columns.policy_digest as _,
        &columns.arguments as _,
        &columns.arguments_digest as _,
        &columns.decision as _,
        &columns.reasons as _,
        &columns.policies as _,
        &columns.received_at as _,
        &columns.decided_at as _,
        &columns.forwarded_at as _,
        &columns.finished_at as _,
        &columns.status as _,
        &columns.executed as _,
        &columns.outcome as _,
        &columns.words as _,
        &columns.detail as _,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The highest number that this instance has in the table: after a broken connection it tells whether the
/// last batch was committed.
///
/// # Errors
/// When the database is away.
pub async fn last_seq(
    connection: &mut PgConnection,
    instance: &InstanceId,
) -> Result<i64, StoreError> {
    let found = sqlx::query_scalar!(
        r#"SELECT COALESCE(max(seq), 0) AS "seq!" FROM audit.entries WHERE instance_id = $1"#,
        instance.as_str()
    )
    .fetch_one(connection)
    .await?;
    Ok(found)
}

/// Makes the partitions of this month and the next three.
///
/// # Errors
/// When the database is away.
pub async fn ensure_partitions(connection: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query!(r#"SELECT audit.ensure_partitions(3) AS "made!""#)
        .fetch_one(connection)
        .await?;
    Ok(())
}

/// Keeps the text of a contract or of the policies under its digest, once.
///
/// # Errors
/// When the database is away.
pub async fn keep_version(
    connection: &mut PgConnection,
    kind: &str,
    name: &str,
    digest: &str,
    content: &str,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO audit.versions (digest, kind, name, content) VALUES ($1, $2, $3, $4)
         ON CONFLICT (digest) DO NOTHING",
        digest,
        kind,
        name,
        content
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// An intent that has no outcome, left by a gateway that is gone.
pub struct Orphan {
    /// The call.
    pub call_id: String,
    /// Its run.
    pub run_id: Option<String>,
    /// Its agent.
    pub agent: Option<String>,
    /// Its API.
    pub api: Option<String>,
    /// Its tool.
    pub tool: Option<String>,
    /// Its approval, if it was parked.
    pub approval_id: Option<String>,
}

/// Intents without an outcome of every instance but this one: from where each was last known to be settled, and those of
/// kept calls that stand in `executing`, whenever they began.
///
/// # Errors
/// When the database is away.
pub async fn orphans(
    connection: &mut PgConnection,
    this: &InstanceId,
) -> Result<Vec<Orphan>, StoreError> {
    let found = sqlx::query_as!(
        Orphan,
        r#"SELECT intent.call_id AS "call_id!", intent.run_id, intent.agent, intent.api, intent.tool,
                  intent.approval_id
           FROM toolgate.instances AS gone
           JOIN audit.entries AS intent
             ON intent.instance_id = gone.instance_id AND intent.recorded_at >= gone.settled_until
            AND intent.kind = 'intent'
           WHERE gone.instance_id <> $1
             AND NOT EXISTS (
                 SELECT FROM audit.entries AS ending
                 WHERE ending.call_id = intent.call_id AND ending.kind IN ('outcome', 'ended'))
           UNION
           SELECT intent.call_id, intent.run_id, intent.agent, intent.api, intent.tool, intent.approval_id
           FROM toolgate.calls AS kept
           JOIN audit.entries AS intent
             ON intent.call_id = kept.call_id AND intent.kind = 'intent' AND intent.instance_id <> $1
           WHERE kept.state = 'executing'
             AND NOT EXISTS (
                 SELECT FROM audit.entries AS ending
                 WHERE ending.call_id = intent.call_id AND ending.kind IN ('outcome', 'ended'))
           ORDER BY 1"#,
        this.as_str()
    )
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// One call as the view `audit.calls` tells it, for its own agent.
pub struct CallRow {
    /// The decision on arrival.
    pub decision: Option<String>,
    /// How it ended, if it has.
    pub outcome: Option<String>,
    /// Whether the API executed it.
    pub executed: Option<bool>,
    /// The API's status.
    pub status: Option<i16>,
    /// Problem codes.
    pub reasons: Option<Vec<String>>,
}

/// A call of this agent, from the history.
///
/// # Errors
/// When the database is away.
pub async fn call(
    connection: &mut PgConnection,
    call_id: &str,
    agent: &str,
) -> Result<Option<CallRow>, StoreError> {
    let found = sqlx::query_as!(
        CallRow,
        "SELECT decision, outcome, executed, status, reasons FROM audit.calls WHERE call_id = $1 AND agent = $2",
        call_id,
        agent
    )
    .fetch_optional(connection)
    .await?;
    Ok(found)
}
