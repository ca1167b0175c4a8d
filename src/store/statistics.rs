//! How much is asked of people, from what is kept: how long calls waited for each operator's vote, and what waits now.

use sqlx::PgConnection;

use super::StoreError;
use crate::clock::Timestamp;

/// One operator's votes in a time. A line of identical calls counts once.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct VoterRow {
    pub operator: String,
    pub approvals: i64,
    pub denials: i64,
    /// Calls that those approvals were on.
    pub calls_approved: i64,
    /// Half of the votes came sooner than this after the parking.
    pub median_seconds: f64,
    pub approvals_under_five_seconds: i64,
}

/// The votes from one moment up to before another, by operator. Reads the votes of that time along their index.
///
/// # Errors
/// When the database is away.
pub async fn voters(
    connection: &mut PgConnection,
    from: Timestamp,
    to: Timestamp,
) -> Result<Vec<VoterRow>, StoreError> {
    let rows = sqlx::query_as!(
        VoterRow,
        r#"SELECT v.operator,
                  count(*) FILTER (WHERE v.vote = 'approve') AS "approvals!",
                  count(*) FILTER (WHERE v.vote = 'deny') AS "denials!",
                  coalesce(sum(v.calls) FILTER (WHERE v.vote = 'approve'), 0)::bigint AS "calls_approved!",
                  (percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM v.voted_at - a.created_at)::float8)) AS "median_seconds!",
                  count(*) FILTER (WHERE v.vote = 'approve' AND v.voted_at - a.created_at < interval '5 seconds')
                      AS "approvals_under_five_seconds!"
           FROM toolgate.votes AS v JOIN toolgate.approvals AS a USING (approval_id)
           WHERE v.voted_at >= $1 AND v.voted_at < $2 AND a.attached_to IS NULL
           GROUP BY v.operator ORDER BY v.operator"#,
        from,
        to
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// What waits in one tier.
#[derive(Debug)]
#[expect(missing_docs, reason = "each is what its name says")]
pub struct WaitingRow {
    pub tier: String,
    pub calls: i64,
    /// How long the first of them has waited, in seconds.
    pub oldest_seconds: Option<f64>,
}

/// What waits in each of these tiers now. Counts along the index of the tiers' queues.
///
/// # Errors
/// When the database is away.
pub async fn waiting(
    connection: &mut PgConnection,
    tiers: &[String],
) -> Result<Vec<WaitingRow>, StoreError> {
    let rows = sqlx::query_as!(
        WaitingRow,
        r#"SELECT w.tier AS "tier!", counted.calls AS "calls!",
                  (SELECT extract(epoch FROM now() - a.created_at)::float8
                   FROM toolgate.approval_tiers AS t JOIN toolgate.approvals AS a USING (approval_id)
                   WHERE t.tier = w.tier AND t.state = 'pending' ORDER BY t.approval_id LIMIT 1) AS oldest_seconds
           FROM unnest($1::text[]) AS w (tier)
           CROSS JOIN LATERAL (
               SELECT count(*) AS calls FROM toolgate.approval_tiers AS t
               WHERE t.tier = w.tier AND t.state = 'pending') AS counted"#,
        tiers
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}
