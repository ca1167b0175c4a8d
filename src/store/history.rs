//! One call, one run, one approval, one halt: each a single query that answers what happened, as one JSON document. For the
//! auditor's role as for the gateway's.

use serde_json::Value;
use sqlx::PgConnection;

use super::StoreError;
use crate::clock::Timestamp;

/// A call with its approval, the halt that stopped it, and its entries in order.
///
/// # Errors
/// When the database is away.
pub async fn call(connection: &mut PgConnection, id: &str) -> Result<Option<Value>, StoreError> {
    let found = sqlx::query_scalar!(
        r#"SELECT jsonb_build_object(
               'call', to_jsonb(c),
               'approval', (SELECT to_jsonb(a) FROM audit.approvals AS a WHERE a.approval_id = c.approval_id),
               'halt', (SELECT to_jsonb(h) FROM audit.halts AS h WHERE h.kill_switch_id = c.kill_switch_id),
               'timeline', (SELECT jsonb_agg(to_jsonb(t) ORDER BY t.recorded_at, t.instance_id, t.seq) FROM (
                   SELECT recorded_at, instance_id, seq, kind, operator, decision, reasons, policies, status, executed, outcome,
                          words, detail, arguments_digest AS digest
                   FROM audit.entries WHERE call_id = c.call_id AND kind <> 'audit_read'
                   UNION ALL
                   SELECT recorded_at, instance_id, seq, kind, operator, decision, reasons, policies, status, executed, outcome,
                          words, detail, arguments_digest AS digest
                   FROM audit.entries
                   WHERE c.approval_id IS NOT NULL AND kind = 'approval_viewed' AND recorded_at >= c.received_at
                     AND (c.outcome_at IS NULL OR recorded_at <= c.outcome_at)
                     AND detail -> 'approvals' ? c.approval_id
               ) AS t)) AS "document!"
           FROM audit.calls AS c WHERE c.call_id = $1"#,
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(found)
}

/// A run with its calls, the votes on them and the halts that touched it, in order; at most `limit` calls, the first ones.
///
/// # Errors
/// When the database is away.
pub async fn run(
    connection: &mut PgConnection,
    id: &str,
    limit: i64,
) -> Result<Option<Value>, StoreError> {
    let found = sqlx::query_scalar!(
        r#"SELECT jsonb_build_object(
               'run', to_jsonb(r),
               'has_more', r.calls > $2,
               'timeline', (SELECT jsonb_agg(t.event || jsonb_build_object('at', t.at, 'event', t.what) ORDER BY t.at, t.place)
                            FROM (
                   SELECT r.opened_at AS at, 1 AS place, 'run_opened' AS what, '{}'::jsonb AS event
                   UNION ALL
                   SELECT r.ended_at, 9, 'run_ended', '{}' WHERE r.ended_at IS NOT NULL
                   UNION ALL
                   SELECT c.received_at, 3, 'call', to_jsonb(c) FROM (
                       SELECT call_id, tool, consequence, surface, decision, reasons, policies, permitted_by, received_at,
                              forwarded_at, finished_at, status, outcome, executed, approval_id, kill_switch_id, arguments,
                              arguments_digest, agent_words, before, changed, before_of, deciding_took, waiting_took,
                              recording_took, api_took
                       FROM audit.calls WHERE run_id = $1 ORDER BY received_at, call_id LIMIT $2) AS c
                   UNION ALL
                   SELECT v.recorded_at, 4, 'approval_vote', jsonb_build_object(
                              'call_id', v.call_id, 'approval_id', v.approval_id, 'tool', v.tool, 'operator', v.operator,
                              'on_authority_of', COALESCE(v.detail ->> 'for', v.operator), 'vote', v.detail ->> 'vote',
                              'reason', v.words, 'digest', v.arguments_digest)
                   FROM audit.entries AS v WHERE v.run_id = $1 AND v.kind = 'approval_vote'
                   UNION ALL
                   SELECT happened.at, happened.place, happened.what, to_jsonb(h)
                   FROM audit.halts AS h
                   CROSS JOIN LATERAL (VALUES (h.pulled_at, 2, 'halt'), (h.released_at, 5, 'resume')) AS happened(at, place, what)
                   WHERE happened.at IS NOT NULL
                     AND (h.kill_switch_id IN (SELECT kill_switch_id FROM audit.entries
                                               WHERE run_id = $1 AND kill_switch_id IS NOT NULL)
                          OR (h.pulled_at <= COALESCE(r.ended_at, r.expires_at, now())
                              AND COALESCE(h.released_at, now()) >= r.opened_at
                              AND (h.kind = 'everything' OR (h.kind = 'run' AND h.target = $1)
                                   OR (h.kind = 'agent' AND h.target = r.agent))))
               ) AS t)) AS "document!"
           FROM audit.runs AS r WHERE r.run_id = $1"#,
        id,
        limit
    )
    .fetch_optional(connection)
    .await?;
    Ok(found)
}

/// An approval with its call and everybody who was shown it.
///
/// # Errors
/// When the database is away.
pub async fn approval(
    connection: &mut PgConnection,
    id: &str,
) -> Result<Option<Value>, StoreError> {
    let found = sqlx::query_scalar!(
        r#"SELECT jsonb_build_object(
               'approval', to_jsonb(a),
               'call', (SELECT to_jsonb(c) FROM audit.calls AS c WHERE c.call_id = a.call_id),
               'shown_to', (SELECT jsonb_agg(jsonb_build_object('operator', operator, 'at', recorded_at)
                                             ORDER BY recorded_at, instance_id, seq)
                            FROM audit.entries
                            WHERE kind = 'approval_viewed' AND recorded_at >= a.parked_at
                              AND detail -> 'approvals' ? a.approval_id),
               'refused', (SELECT jsonb_agg(jsonb_build_object('operator', operator, 'at', recorded_at, 'reasons', reasons,
                                                               'action', COALESCE(detail ->> 'action', detail ->> 'request'))
                                            ORDER BY recorded_at, instance_id, seq)
                           FROM audit.entries
                           WHERE kind = 'operator_refused' AND recorded_at >= a.parked_at AND approval_id = a.approval_id)
           ) AS "document!"
           FROM audit.approvals AS a WHERE a.approval_id = $1"#,
        id
    )
    .fetch_optional(connection)
    .await?;
    Ok(found)
}

/// A halt with the calls that it stopped; at most `limit` of them, the first ones.
///
/// # Errors
/// When the database is away.
pub async fn halt(
    connection: &mut PgConnection,
    id: &str,
    limit: i64,
) -> Result<Option<Value>, StoreError> {
    let found = sqlx::query_scalar!(
        r#"SELECT jsonb_build_object(
               'halt', to_jsonb(h),
               'has_more', h.calls_stopped > $2,
               'stopped', (SELECT jsonb_agg(to_jsonb(s) ORDER BY s.received_at, s.call_id) FROM (
                   SELECT c.call_id, c.run_id, c.agent, c.tool, c.arguments, c.received_at, c.decision, c.outcome
                   FROM audit.calls AS c
                   WHERE c.call_id IN (SELECT call_id FROM audit.entries
                                       WHERE kill_switch_id = $1 AND call_id IS NOT NULL
                                       ORDER BY recorded_at, seq LIMIT $2)) AS s)
           ) AS "document!"
           FROM audit.halts AS h WHERE h.kill_switch_id = $1"#,
        id,
        limit
    )
    .fetch_optional(connection)
    .await?;
    Ok(found)
}

/// Which runs.
#[derive(Debug, Default)]
#[expect(missing_docs, reason = "each narrows the list to runs with that value")]
pub struct RunFilter<'a> {
    pub agent: Option<&'a str>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// Runs that stand behind this one: when it was opened, and its id.
    pub after: Option<(Timestamp, &'a str)>,
}

/// A run in a list.
pub struct RunFound {
    /// When it was opened.
    pub opened_at: Timestamp,
    /// Its id.
    pub run_id: String,
    /// Its row of `audit.runs`.
    pub row: Value,
}

/// Runs, newest first.
///
/// # Errors
/// When the database is away.
pub async fn runs(
    connection: &mut PgConnection,
    filter: &RunFilter<'_>,
    limit: i64,
) -> Result<Vec<RunFound>, StoreError> {
    let (after_at, after_id) = filter
        .after
        .map_or((None, None), |(at, id)| (Some(at), Some(id)));
    let found = sqlx::query_as!(
        RunFound,
        r#"SELECT r.opened_at AS "opened_at!", r.run_id AS "run_id!", to_jsonb(r) AS "row!"
           FROM audit.runs AS r
           WHERE ($1::text IS NULL OR r.agent = $1)
             AND ($2::timestamptz IS NULL OR r.opened_at >= $2)
             AND ($3::timestamptz IS NULL OR r.opened_at < $3)
             AND ($4::timestamptz IS NULL OR r.opened_at <= $4)
             AND ($4::timestamptz IS NULL OR (r.opened_at, r.run_id) < ($4, $5))
           ORDER BY r.opened_at DESC, r.run_id DESC LIMIT $6"#,
        filter.agent,
        filter.from,
        filter.to,
        after_at,
        after_id,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(found)
}
