//! What an approver is shown beside a parked call: what its agent did last in the same run, and the policies as they stood.

use sqlx::PgConnection;

use super::StoreError;
use crate::clock::Timestamp;

/// A call of a run, without anything that was in it.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct RecentRow {
    pub call_id: String,
    pub tool: Option<String>,
    pub decision: Option<String>,
    pub reasons: Option<Vec<String>>,
    pub outcome: Option<String>,
    pub status: Option<i16>,
    pub received_at: Option<Timestamp>,
}

/// The last calls that an agent made in a run, newest first, but for one of them. What the gateway read by itself is none. Along
/// the index on run and time, so that a run of any length costs the same.
///
/// # Errors
/// When the database is away.
pub async fn calls_of_run(
    connection: &mut PgConnection,
    run: &str,
    but: &str,
    limit: i64,
) -> Result<Vec<RecentRow>, StoreError> {
    let rows = sqlx::query_as!(
        RecentRow,
        r#"SELECT o.call_id AS "call_id!", o.tool, o.decision::text AS decision,
                  CASE WHEN e.reasons IS NULL THEN o.reasons ELSE COALESCE(o.reasons, '{}') || e.reasons END AS reasons,
                  COALESCE(e.outcome::text, CASE o.kind WHEN 'refusal' THEN 'denied' END) AS outcome,
                  e.status AS "status?", o.received_at
           FROM (SELECT call_id, tool, kind, decision, reasons, received_at, recorded_at
                 FROM audit.entries
                 WHERE run_id = $1 AND opens_call AND call_id <> $2
                   AND surface IS DISTINCT FROM 'before' AND surface IS DISTINCT FROM 'preview'
                 ORDER BY recorded_at DESC LIMIT $3) AS o
           LEFT JOIN LATERAL (
               SELECT outcome, status, reasons FROM audit.entries AS later
               WHERE later.call_id = o.call_id AND later.kind IN ('outcome', 'ended') AND later.recorded_at >= o.recorded_at
               ORDER BY later.recorded_at DESC, later.seq DESC LIMIT 1) AS e ON o.kind <> 'refusal'
           ORDER BY o.recorded_at DESC"#,
        run,
        but,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// The text of a policy as it stood under a digest.
#[derive(Debug)]
pub struct PolicyText {
    /// The digest of all policies together.
    pub digest: String,
    /// The policy's id.
    pub id: String,
    /// Its text.
    pub text: String,
}

/// The texts of policies as they stood under these digests.
///
/// # Errors
/// When the database is away.
pub async fn policy_texts(
    connection: &mut PgConnection,
    digests: &[String],
    ids: &[String],
) -> Result<Vec<PolicyText>, StoreError> {
    let rows = sqlx::query_as!(
        PolicyText,
        r#"SELECT v.digest, policy ->> 0 AS "id!", policy ->> 1 AS "text!"
           FROM audit.versions AS v, jsonb_array_elements(v.content::jsonb -> 'policies') AS policy
           WHERE v.kind = 'policies' AND v.digest = ANY ($1) AND policy ->> 0 = ANY ($2)"#,
        digests,
        ids
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
