//! The append-only history: many entries in one statement, and what a restart must look for.

use sqlx::PgConnection;

use super::StoreError;
use crate::{
    clock::Timestamp,
    entry::{Row, chain::Hash},
    ids::InstanceId,
};

/// Separates the items of a text list inside one array element; a control character that no code, id or policy
/// name can hold.
const SEPARATOR: &str = "\u{1f}";

/// The columns of a batch, each as one array, so that any number of rows is one statement with one plan.
#[derive(Default)]
struct Columns<'a> {
    seq: Vec<i64>,
    kind: Vec<&'a str>,
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
    detail: Vec<Option<&'a str>>,
    answer: Vec<Option<&'a str>>,
    answer_digest: Vec<Option<&'a str>>,
    before: Vec<Option<&'a str>>,
    changed: Vec<Option<&'a str>>,
    value_tokens: Vec<Option<String>>,
    hash: Vec<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, row: &'a Row<'_>, hash: &'a Hash) {
        let list = |items: &[&str]| (!items.is_empty()).then(|| items.join(SEPARATOR));
        self.seq.push(row.seq);
        self.kind.push(row.kind);
        self.opens_call.push(row.opens_call);
        self.call_id.push(row.call_id);
        self.run_id.push(row.run_id);
        self.approval_id.push(row.approval_id);
        self.kill_switch_id.push(row.kill_switch_id);
        self.agent.push(row.agent);
        self.operator.push(row.operator);
        self.surface.push(row.surface);
        self.api.push(row.api);
        self.tool.push(row.tool);
        self.consequence.push(row.consequence);
        self.contract_digest.push(row.contract_digest);
        self.policy_digest.push(row.policy_digest);
        self.arguments.push(row.arguments.as_deref());
        self.arguments_digest.push(row.arguments_digest);
        self.decision.push(row.decision);
        self.reasons.push(list(&row.reasons));
        self.policies.push(list(&row.policies));
        self.received_at.push(row.received_at);
        self.decided_at.push(row.decided_at);
        self.forwarded_at.push(row.forwarded_at);
        self.finished_at.push(row.finished_at);
        self.status.push(row.status);
        self.executed.push(row.executed);
        self.outcome.push(row.outcome);
        self.words.push(row.words);
        self.detail.push(row.detail.as_deref());
        self.answer.push(row.answer.as_deref());
        self.answer_digest.push(row.answer_digest);
        self.before.push(row.before.as_deref());
        self.changed.push(row.changed.as_deref());
        self.value_tokens.push(list(&row.value_tokens));
        self.hash.push(hash.as_slice());
    }
}

/// Inserts rows with their hashes in one statement. All are of one instance and one time.
///
/// # Errors
/// When the database is away or refuses a row; then no row of the batch stands.
pub async fn insert(
    connection: &mut PgConnection,
    rows: &[Row<'_>],
    hashes: &[Hash],
) -> Result<(), StoreError> {
    let Some(first) = rows.first() else {
        return Ok(());
    };
    let mut columns = Columns::default();
    for (row, hash) in rows.iter().zip(hashes) {
        columns.push(row, hash);
    }
    sqlx::query!(
        r#"INSERT INTO audit.entries (
               instance_id, seq, recorded_at, kind, opens_call, call_id, run_id, approval_id, kill_switch_id,
               agent, operator, surface, api, tool, consequence, contract_digest, policy_digest,
               arguments, arguments_digest, decision, reasons, policies,
               received_at, decided_at, forwarded_at, finished_at, status, executed, outcome, words, detail,
               answer, answer_digest, before, changed, value_tokens, hash)
           SELECT $1, b.seq, $2, b.kind::audit.entry_kind, b.opens_call, b.call_id, b.run_id, b.approval_id, b.kill_switch_id,
               b.agent, b.operator, b.surface, b.api, b.tool, b.consequence, b.contract_digest, b.policy_digest,
               b.arguments::jsonb, b.arguments_digest, b.decision::audit.decision,
               string_to_array(b.reasons, E'\x1f'), string_to_array(b.policies, E'\x1f'),
               b.received_at, b.decided_at, b.forwarded_at, b.finished_at, b.status, b.executed, b.outcome::audit.outcome,
               b.words, b.detail::jsonb, b.answer::jsonb, b.answer_digest, b.before::jsonb, b.changed::jsonb,
               string_to_array(b.value_tokens, E'\x1f'), b.hash
           FROM unnest(
               $3::bigint[], $4::text[], $5::boolean[], $6::text[], $7::text[], $8::text[], $9::text[],
               $10::text[], $11::text[], $12::text[], $13::text[], $14::text[], $15::text[], $16::text[],
               $17::text[], $18::text[], $19::text[], $20::text[], $21::text[], $22::text[],
               $23::timestamptz[], $24::timestamptz[], $25::timestamptz[], $26::timestamptz[],
               $27::smallint[], $28::boolean[], $29::text[], $30::text[], $31::text[],
               $32::text[], $33::text[], $34::text[], $35::text[], $36::text[], $37::bytea[])
           AS b(seq, kind, opens_call, call_id, run_id, approval_id, kill_switch_id,
                agent, operator, surface, api, tool, consequence,
                contract_digest, policy_digest, arguments, arguments_digest, decision, reasons, policies,
                received_at, decided_at, forwarded_at, finished_at,
                status, executed, outcome, words, detail,
                answer, answer_digest, before, changed, value_tokens, hash)"#,
        first.instance_id,
        first.recorded_at,
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
        &columns.answer as _,
        &columns.answer_digest as _,
        &columns.before as _,
        &columns.changed as _,
        &columns.value_tokens as _,
        &columns.hash as _,
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

/// Where the chain of one instance ends.
pub struct Head {
    /// The instance.
    pub instance_id: String,
    /// The number of its last entry.
    pub seq: i64,
    /// The hash of that entry; none where it is older than the chain.
    pub hash: Option<Vec<u8>>,
}

/// The latest in order of all instances that have recorded something.
///
/// # Errors
/// When the database is away.
pub async fn newest_instance(connection: &mut PgConnection) -> Result<Option<String>, StoreError> {
    let found = sqlx::query_scalar!("SELECT max(instance_id) FROM audit.entries")
        .fetch_one(connection)
        .await?;
    Ok(found)
}

/// The heads of the last gateway before this one and of everything that has recorded beside and after it: what the first entry
/// of this instance names, so that no instance can be taken out or added to unseen.
///
/// # Errors
/// When the database is away.
pub async fn heads_before(
    connection: &mut PgConnection,
    this: &InstanceId,
) -> Result<Vec<Head>, StoreError> {
    // From one instance to the next along the primary key, however many entries each has. Ids rise with time. It begins two
    // gateways back, because something beside the last one may have committed while that was starting.
    let found = sqlx::query_as!(
        Head,
        r#"WITH RECURSIVE instance AS (
               SELECT (SELECT min(instance_id) FROM audit.entries
                       WHERE instance_id >= COALESCE((SELECT instance_id FROM toolgate.instances
                                                      WHERE instance_id < $1
                                                      ORDER BY instance_id DESC OFFSET 1 LIMIT 1), '')
                         AND instance_id < $1) AS id
               UNION ALL
               SELECT (SELECT min(instance_id) FROM audit.entries
                       WHERE instance_id > instance.id AND instance_id < $1)
               FROM instance WHERE instance.id IS NOT NULL
           )
           SELECT head.instance_id AS "instance_id!", head.seq AS "seq!", head.hash
           FROM instance
           CROSS JOIN LATERAL (
               SELECT instance_id, seq, hash FROM audit.entries
               WHERE instance_id = instance.id ORDER BY seq DESC LIMIT 1
           ) AS head
           WHERE instance.id IS NOT NULL
           ORDER BY 1"#,
        this.as_str()
    )
    .fetch_all(connection)
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

/// Whether an entry of this moment has a partition to go to; makes what is missing first, as far as the database's own clock
/// says that it is needed.
///
/// # Errors
/// When the database is away.
pub async fn has_partition(
    connection: &mut PgConnection,
    at: Timestamp,
) -> Result<bool, StoreError> {
    if let Err(error) = ensure_partitions(connection).await {
        tracing::error!(%error, "the partitions of the months to come cannot be made");
    }
    let name = format!("entries_{}", at.format("%Y_%m"));
    let found = sqlx::query_scalar!(
        r#"SELECT EXISTS (
               SELECT FROM pg_class AS part
               JOIN pg_inherits AS inherits ON inherits.inhrelid = part.oid
               WHERE inherits.inhparent = 'audit.entries'::regclass AND NOT inherits.inhdetachpending
                 AND part.relname = $1::text) AS "found!""#,
        name
    )
    .fetch_one(connection)
    .await?;
    Ok(found)
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
