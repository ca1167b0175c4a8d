//! Calls that outlive their request: parked ones and those with an Idempotency-Key. Each transition is one
//! statement that names the state it starts from, so that of two that race one finds nothing to change.

use sqlx::PgConnection;

use super::StoreError;
use crate::{
    clock::Timestamp,
    entry::Outcome,
    ids::{CallId, RunId},
};

/// A call as it is kept.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct CallRow {
    pub call_id: String,
    pub run_id: String,
    pub agent: String,
    pub tool: String,
    pub digest: String,
    pub contract_digest: String,
    pub secret_id: Option<String>,
    pub sealed: Option<Vec<u8>>,
    pub state: String,
    pub executed: Option<bool>,
    pub status: Option<i16>,
    pub answer: Option<Vec<u8>>,
    pub code: Option<String>,
    pub explanation: Option<String>,
    pub resolved_as: Option<String>,
    pub received_at: Timestamp,
    pub approval_id: Option<String>,
    pub expires_at: Option<Timestamp>,
}

/// A call to be kept.
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct NewCall<'a> {
    pub call_id: &'a CallId,
    pub run_id: &'a RunId,
    pub agent: &'a str,
    pub tool: &'a str,
    pub digest: &'a str,
    pub contract_digest: &'a str,
    /// The id of the master secret under which the digest was made.
    pub secret_id: &'a str,
    pub idempotency_key: Option<&'a str>,
    pub sealed: Option<&'a [u8]>,
    /// `parked`, `executing` for a call that is sent at once, or `approved` for one that nobody has to approve and that may not
    /// be sent now.
    pub state: &'static str,
    pub received_at: Timestamp,
}

/// Adds a call. False when the agent has used the idempotency key before.
///
/// # Errors
/// When the database is away.
pub async fn add(connection: &mut PgConnection, call: &NewCall<'_>) -> Result<bool, StoreError> {
    let added = sqlx::query!(
        "INSERT INTO toolgate.calls (call_id, run_id, agent, tool, digest, contract_digest, idempotency_key, sealed,
                                     state, received_at, secret_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
         ON CONFLICT (agent, idempotency_key) DO NOTHING",
        call.call_id.as_str(),
        call.run_id.as_str(),
        call.agent,
        call.tool,
        call.digest,
        call.contract_digest,
        call.idempotency_key,
        call.sealed,
        call.state,
        call.received_at,
        call.secret_id
    )
    .execute(connection)
    .await?;
    Ok(added.rows_affected() == 1)
}

/// The call of that id.
///
/// # Errors
/// When the database is away.
pub async fn find(connection: &mut PgConnection, id: &str) -> Result<Option<CallRow>, StoreError> {
    let found = sqlx::query_as!(
        CallRow,
        r#"SELECT c.call_id, c.run_id, c.agent, c.tool, c.digest, c.contract_digest, c.secret_id, c.sealed, c.state,
                  c.executed, c.status, c.answer, c.code, c.explanation, c.resolved_as, c.received_at,
                  a.approval_id AS "approval_id?", a.expires_at AS "expires_at?"
           FROM toolgate.calls c LEFT JOIN toolgate.approvals a USING (call_id)
           WHERE c.call_id = $1"#,
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(found)
}

/// The call to which the same request belongs: with the agent's idempotency key, in one of the forms
/// in which it may be kept, if one is given, else the latest
/// with the same digest (under one of the master secrets) in the same run that is not over without having been executed for want of a decision or because
/// it could not be sent.
///
/// # Errors
/// When the database is away.
pub async fn same_request(
    connection: &mut PgConnection,
    agent: &str,
    idempotency_keys: Option<&[String]>,
    run: &RunId,
    digests: &[String],
) -> Result<Option<CallRow>, StoreError> {
    let id = match idempotency_keys {
        Some(keys) => {
            sqlx::query_scalar!(
                "SELECT call_id FROM toolgate.calls WHERE agent = $1 AND idempotency_key = ANY ($2)
                 ORDER BY call_id LIMIT 1",
                agent,
                keys
            )
            .fetch_optional(&mut *connection)
            .await?
        }
        None => {
            sqlx::query_scalar!(
                "SELECT call_id FROM toolgate.calls
                 WHERE run_id = $1 AND digest = ANY ($2) AND state NOT IN ('expired', 'voided')
                   AND NOT (state = 'failed' AND executed IS FALSE AND resolved_as IS NULL)
                   AND idempotency_key IS NULL AND NOT key_forgotten
                 ORDER BY call_id DESC LIMIT 1",
                run.as_str(),
                digests
            )
            .fetch_optional(&mut *connection)
            .await?
        }
    };
    match id {
        Some(id) => find(connection, &id).await,
        None => Ok(None),
    }
}

/// How a kept call ended.
#[derive(Debug, Clone)]
pub struct Ending {
    /// The call.
    pub call_id: CallId,
    /// How.
    pub outcome: Outcome,
    /// Whether the API executed it, if that is known.
    pub executed: Option<bool>,
    /// The API's status.
    pub status: Option<u16>,
    /// The API's answer, sealed.
    pub answer: Option<Vec<u8>>,
    /// A problem code, when there is no answer to give.
    pub code: Option<&'static str>,
    /// A sentence to go with it.
    pub explanation: Option<String>,
}

/// Ends a call and its approval, and erases what was sealed. A call that certainly was not sent gives its idempotency
/// key back, because trying again is what the key is for. From `executing` for what was sent; from `parked` or
/// `approved` for what was not. Calls that are not kept, and calls that have ended, stay as they are: false.
///
/// # Errors
/// When the database is away.
pub async fn finish(connection: &mut PgConnection, ending: &Ending) -> Result<bool, StoreError> {
    let finished = sqlx::query!(
        "UPDATE toolgate.calls
         SET state = $2, executed = $3, status = $4, answer = $5, code = $6, explanation = $7,
             sealed = NULL, updated_at = now(),
             idempotency_key = CASE WHEN $2 = 'failed' AND $3 IS FALSE THEN NULL ELSE idempotency_key END
         WHERE call_id = $1
           AND CASE WHEN $2 IN ('denied', 'expired', 'voided') THEN state IN ('parked', 'approved')
                    ELSE state = 'executing' END",
        ending.call_id.as_str(),
        ending.outcome.as_str(),
        ending.executed,
        ending.status.and_then(|status| i16::try_from(status).ok()),
        ending.answer.as_deref(),
        ending.code,
        ending.explanation,
    )
    .execute(&mut *connection)
    .await?;
    if finished.rows_affected() == 0 {
        return Ok(false);
    }
    if matches!(
        ending.outcome,
        Outcome::Denied | Outcome::Expired | Outcome::Voided
    ) {
        sqlx::query!(
            "UPDATE toolgate.approvals SET state = $2, decided_at = now(), frozen_at = NULL
             WHERE call_id = $1 AND state IN ('pending', 'approved')",
            ending.call_id.as_str(),
            ending.outcome.as_str()
        )
        .execute(&mut *connection)
        .await?;
        super::work::withdraw(connection, &ending.call_id).await?;
    }
    Ok(true)
}

/// Calls that are approved and not yet begun, at most `limit` of them, by their ids after `after`: what a start, a resume or the
/// worker must look at.
///
/// # Errors
/// When the database is away.
pub async fn approved(
    connection: &mut PgConnection,
    after: &str,
    limit: i64,
) -> Result<Vec<String>, StoreError> {
    let found = sqlx::query_scalar!(
        "SELECT call_id FROM toolgate.calls WHERE state = 'approved' AND call_id > $1 ORDER BY call_id LIMIT $2",
        after,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(found)
}

/// Sets calls that a gateway which is gone left in `executing` to `indeterminate`. Only for the start, when the
/// lock says that no other gateway runs and this one has begun nothing.
///
/// # Errors
/// When the database is away.
pub async fn close_executing(connection: &mut PgConnection) -> Result<u64, StoreError> {
    let closed = sqlx::query!(
        "UPDATE toolgate.calls SET state = 'indeterminate', sealed = NULL, executed = NULL, updated_at = now(),
                code = 'indeterminate',
                explanation = 'The gateway stopped while this call was under way; it is not known whether the API executed it.'
         WHERE state = 'executing'"
    )
    .execute(connection)
    .await?;
    Ok(closed.rows_affected())
}

/// Erases the idempotency keys and sealed answers of calls that ended longer ago than `after_seconds`, at most `limit` of them;
/// gives how many. What nobody knows yet (`indeterminate`) keeps its key until somebody has looked.
///
/// # Errors
/// When the database is away.
pub async fn forget(
    connection: &mut PgConnection,
    after_seconds: f64,
    limit: i64,
) -> Result<u64, StoreError> {
    let forgotten = sqlx::query!(
        "UPDATE toolgate.calls
         SET answer = NULL, key_forgotten = key_forgotten OR idempotency_key IS NOT NULL, idempotency_key = NULL
         WHERE call_id IN (
             SELECT call_id FROM toolgate.calls
             WHERE state IN ('completed', 'failed', 'denied', 'expired', 'voided')
               AND (idempotency_key IS NOT NULL OR answer IS NOT NULL)
               AND updated_at < now() - make_interval(secs => $1)
             ORDER BY updated_at LIMIT $2)
           AND state IN ('completed', 'failed', 'denied', 'expired', 'voided')",
        after_seconds,
        limit
    )
    .execute(connection)
    .await?;
    Ok(forgotten.rows_affected())
}
