//! The work list: calls whose answer was lost, which people must look into, and calls that people do by hand. Each
//! transition is one statement that names the state it starts from, so that of two that race one finds nothing to change.

use sqlx::PgConnection;

use super::StoreError;
use crate::{clock::Timestamp, ids::CallId};

/// An item of the work list, with what the history and the run say of its call.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct WorkRow {
    pub call_id: String,
    pub kind: String,
    pub because: String,
    pub state: String,
    pub run_id: Option<String>,
    pub agent: Option<String>,
    pub api: Option<String>,
    pub tool: Option<String>,
    pub kill_switch_id: Option<String>,
    pub listed_at: Timestamp,
    pub claimed_by: Option<String>,
    pub claimed_at: Option<Timestamp>,
    pub lease_until: Option<Timestamp>,
    pub lease_over: bool,
    pub found: Option<String>,
    pub status: Option<i16>,
    pub evidence: Option<String>,
    pub note: Option<String>,
    pub resolved_by: Option<String>,
    pub resolved_at: Option<Timestamp>,
    /// From the entry that opened the call.
    pub consequence: Option<String>,
    pub received_at: Option<Timestamp>,
    /// The arguments without sensitive values, as JSON text.
    pub arguments: Option<String>,
    pub agent_words: Option<String>,
    pub contract_digest: Option<String>,
    pub digest: Option<String>,
    /// Of the last outcome: what is known of how it went, as JSON text.
    pub outcome_detail: Option<String>,
    pub triggered_by: Option<String>,
    pub purpose: Option<String>,
    pub approval_id: Option<String>,
    /// Who answered for the agent when the call was parked, if it was.
    pub owner: Option<String>,
}

/// What a list shows.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each narrows the list to rows with that value")]
pub struct Filter<'a> {
    pub kind: Option<&'a str>,
    /// `waiting` for what is open or claimed.
    pub state: Option<&'a str>,
    pub agent: Option<&'a str>,
    pub tool: Option<&'a str>,
    /// The item of just this call.
    pub call: Option<&'a str>,
    /// Rows behind this call.
    pub after: Option<&'a str>,
}

/// Items in the order in which their calls were made.
///
/// # Errors
/// When the database is away.
pub async fn list(
    connection: &mut PgConnection,
    filter: &Filter<'_>,
    limit: i64,
) -> Result<Vec<WorkRow>, StoreError> {
    let rows = sqlx::query_as!(
        WorkRow,
        r#"SELECT w.call_id, w.kind, w.because, w.state, w.run_id, w.agent, w.api, w.tool, w.kill_switch_id, w.listed_at,
                  w.claimed_by, w.claimed_at, w.lease_until, COALESCE(w.lease_until <= now(), false) AS "lease_over!",
                  w.found, w.status, w.evidence, w.note, w.resolved_by, w.resolved_at,
                  opening.consequence AS "consequence?", opening.received_at AS "received_at?",
                  opening.arguments::text AS "arguments?", opening.words AS "agent_words?",
                  opening.contract_digest AS "contract_digest?", opening.arguments_digest AS "digest?",
                  lost.detail::text AS "outcome_detail?",
                  run.triggered_by AS "triggered_by?", run.purpose AS "purpose?", parked.approval_id AS "approval_id?",
                  parked.owner AS "owner?"
           FROM toolgate.work AS w
           LEFT JOIN LATERAL (
               SELECT * FROM audit.entries WHERE call_id = w.call_id AND opens_call LIMIT 1) AS opening ON true
           LEFT JOIN LATERAL (
               SELECT detail FROM audit.entries WHERE call_id = w.call_id AND outcome = 'indeterminate'
               ORDER BY recorded_at DESC, seq DESC LIMIT 1) AS lost ON w.kind = 'reconcile'
           LEFT JOIN toolgate.runs AS run ON run.run_id = w.run_id
           LEFT JOIN toolgate.approvals AS parked ON parked.call_id = w.call_id
           WHERE ($1::text IS NULL OR w.kind = $1)
             AND ($2::text IS NULL OR w.state = $2 OR ($2 = 'waiting' AND w.state IN ('open', 'claimed')))
             AND ($3::text IS NULL OR w.agent = $3) AND ($4::text IS NULL OR w.tool = $4)
             AND ($5::text IS NULL OR w.call_id = $5) AND ($6::text IS NULL OR w.call_id > $6)
           ORDER BY w.call_id LIMIT $7"#,
        filter.kind,
        filter.state,
        filter.agent,
        filter.tool,
        filter.call,
        filter.after,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// The tiers in which a call waited for its approval, if it did.
///
/// # Errors
/// When the database is away.
pub async fn tiers_of(
    connection: &mut PgConnection,
    call: &str,
) -> Result<Vec<String>, StoreError> {
    let tiers = sqlx::query_scalar!(
        "SELECT t.tier FROM toolgate.approval_tiers AS t JOIN toolgate.approvals AS a USING (approval_id)
         WHERE a.call_id = $1 ORDER BY t.tier",
        call
    )
    .fetch_all(connection)
    .await?;
    Ok(tiers)
}

/// A call for the work list.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct NewWork<'a> {
    pub call_id: &'a CallId,
    pub because: &'static str,
    pub run_id: &'a str,
    pub agent: &'a str,
    pub api: &'a str,
    pub tool: &'a str,
    pub kill_switch_id: Option<&'a str>,
}

/// Puts a call that may be executed (`approved`) on the list, to be done by hand. False when it is there already, or when
/// somebody has taken the call meanwhile.
///
/// # Errors
/// When the database is away.
pub async fn add(connection: &mut PgConnection, new: &NewWork<'_>) -> Result<bool, StoreError> {
    let added = sqlx::query!(
        "INSERT INTO toolgate.work (call_id, kind, because, state, run_id, agent, api, tool, kill_switch_id)
         SELECT $1, 'manual', $2, 'open', $3, $4, $5, $6, $7
         FROM toolgate.calls WHERE call_id = $1 AND state = 'approved'
         ON CONFLICT (call_id) DO UPDATE
             SET state = 'open', because = excluded.because, kill_switch_id = excluded.kill_switch_id, listed_at = now()
             WHERE work.kind = 'manual' AND work.state = 'withdrawn'",
        new.call_id.as_str(),
        new.because,
        new.run_id,
        new.agent,
        new.api,
        new.tool,
        new.kill_switch_id
    )
    .execute(connection)
    .await?;
    Ok(added.rows_affected() == 1)
}

/// Whether a call is on the list, waiting for somebody to do it by hand.
///
/// # Errors
/// When the database is away.
pub async fn is_listed(connection: &mut PgConnection, id: &CallId) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar!(
        r#"SELECT EXISTS (SELECT FROM toolgate.work
                          WHERE call_id = $1 AND kind = 'manual' AND state IN ('open', 'claimed')) AS "listed!""#,
        id.as_str()
    )
    .fetch_one(connection)
    .await?;
    Ok(found)
}

/// How many calls of this agent wait to be done by hand.
///
/// # Errors
/// When the database is away.
pub async fn waiting_of(connection: &mut PgConnection, agent: &str) -> Result<i64, StoreError> {
    let count = sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM toolgate.work
           WHERE agent = $1 AND kind = 'manual' AND state IN ('open', 'claimed')"#,
        agent
    )
    .fetch_one(connection)
    .await?;
    Ok(count)
}

/// Takes a call off the list that the gateway sends itself, or that ended.
///
/// # Errors
/// When the database is away.
pub async fn withdraw(connection: &mut PgConnection, id: &CallId) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE toolgate.work SET state = 'withdrawn'
         WHERE call_id = $1 AND kind = 'manual' AND state IN ('open', 'claimed')",
        id.as_str()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives an item to an operator: for `lease_seconds` nobody else can claim it. Of a call to be done by hand it turns the call's
/// own row from `approved` to `by_hand` in the same statement, and only the one that turns it has it: the gateway, which turns the
/// same row to `executing`, finds nothing to change then. False when somebody else has it.
///
/// INVARIANT: nothing turns `by_hand` back into a state that the gateway sends from, not even the end of the lease: the operator
/// may have done it and be late to say so.
///
/// # Errors
/// When the database is away.
pub async fn claim(
    connection: &mut PgConnection,
    id: &CallId,
    operator: &str,
    lease_seconds: f64,
) -> Result<bool, StoreError> {
    let claimed = sqlx::query!(
        "WITH item AS (
             SELECT call_id, kind FROM toolgate.work
             WHERE call_id = $1 AND (state = 'open' OR (state = 'claimed' AND (lease_until <= now() OR claimed_by = $2)))
             FOR UPDATE
         ), taken AS (
             UPDATE toolgate.calls AS c SET state = 'by_hand', updated_at = now()
             FROM item WHERE c.call_id = item.call_id AND item.kind = 'manual' AND c.state IN ('approved', 'by_hand')
             RETURNING c.call_id
         )
         UPDATE toolgate.work AS w
         SET state = 'claimed', claimed_by = $2, claimed_at = now(), lease_until = now() + make_interval(secs => $3)
         FROM item
         WHERE w.call_id = item.call_id AND (item.kind = 'reconcile' OR EXISTS (SELECT FROM taken))",
        id.as_str(),
        operator,
        lease_seconds
    )
    .execute(connection)
    .await?;
    Ok(claimed.rows_affected() == 1)
}

/// Gives a claimed item back to the list. A call that was to be done by hand stays so. False when this operator does not have it.
///
/// # Errors
/// When the database is away.
pub async fn release(
    connection: &mut PgConnection,
    id: &CallId,
    operator: &str,
    takes_over: bool,
) -> Result<bool, StoreError> {
    let released = sqlx::query!(
        "UPDATE toolgate.work SET state = 'open', claimed_by = NULL, claimed_at = NULL, lease_until = NULL
         WHERE call_id = $1 AND state = 'claimed' AND (claimed_by = $2 OR $3)",
        id.as_str(),
        operator,
        takes_over
    )
    .execute(connection)
    .await?;
    Ok(released.rows_affected() == 1)
}

/// What an operator says became of a call.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct Resolution<'a> {
    pub call_id: &'a CallId,
    pub operator: &'a str,
    pub takes_over: bool,
    pub executed: bool,
    pub status: Option<i16>,
    pub evidence: &'a str,
    pub note: &'a str,
}

/// Resolves an item, once. One that was to be done by hand only by who has claimed it; a lost one also by who finds it open or its
/// lease over. False when it is resolved, or somebody else's.
///
/// # Errors
/// When the database is away.
pub async fn resolve(
    connection: &mut PgConnection,
    resolution: &Resolution<'_>,
) -> Result<bool, StoreError> {
    let resolved = sqlx::query!(
        "UPDATE toolgate.work
         SET state = 'resolved', found = CASE WHEN $4 THEN 'executed' ELSE 'not_executed' END, status = $5, evidence = $6,
             note = $7, resolved_by = $2, resolved_at = now()
         WHERE call_id = $1
           AND CASE state WHEN 'claimed' THEN claimed_by = $2 OR $3 OR (kind = 'reconcile' AND lease_until <= now())
                          WHEN 'open' THEN kind = 'reconcile' ELSE false END",
        resolution.call_id.as_str(),
        resolution.operator,
        resolution.takes_over,
        resolution.executed,
        resolution.status,
        resolution.evidence,
        resolution.note
    )
    .execute(connection)
    .await?;
    Ok(resolved.rows_affected() == 1)
}

/// The answer that the agent gets of a resolved call.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct Answer<'a> {
    pub call_id: &'a CallId,
    pub executed: bool,
    pub status: Option<i16>,
    pub answer: Option<&'a [u8]>,
    pub code: Option<&'a str>,
    pub explanation: &'a str,
}

/// Ends the call of an item that has just been resolved, in the same transaction. A call that had no row of its own gets one from
/// the history, so that its agent finds the answer. It keeps its idempotency key: the same request is never sent again.
///
/// # Errors
/// When the database is away, or the call stands in a state that no resolved item's call can be in: then nothing of the
/// transaction may stand.
pub async fn answer(connection: &mut PgConnection, answer: &Answer<'_>) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO toolgate.calls (call_id, run_id, agent, tool, digest, contract_digest, state, received_at, key_forgotten)
         SELECT call_id, run_id, agent, tool, arguments_digest, contract_digest, 'indeterminate',
                COALESCE(received_at, recorded_at), true
         FROM audit.entries WHERE call_id = $1 AND opens_call AND kind = 'intent'
         LIMIT 1
         ON CONFLICT (call_id) DO NOTHING",
        answer.call_id.as_str()
    )
    .execute(&mut *connection)
    .await?;
    let ended = sqlx::query!(
        "UPDATE toolgate.calls
         SET state = CASE WHEN $2 THEN 'completed' ELSE 'failed' END, executed = $2, status = $3, answer = $4, code = $5,
             explanation = $6, sealed = NULL, updated_at = now(),
             resolved_as = CASE state WHEN 'by_hand' THEN 'by_hand' ELSE 'found' END
         WHERE call_id = $1 AND state IN ('by_hand', 'indeterminate')",
        answer.call_id.as_str(),
        answer.executed,
        answer.status,
        answer.answer,
        answer.code,
        answer.explanation
    )
    .execute(connection)
    .await?;
    if ended.rows_affected() == 1 {
        Ok(())
    } else {
        Err(StoreError::Conflict(
            "the call of this item is neither indeterminate nor done by hand".to_owned(),
        ))
    }
}
