//! What the tiers of an approval ask for, as it stood when the call was parked; the votes on it; and when it is opened to more
//! people. Rows of many approvals come in one query, because lists need them.

use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::Json};

use super::StoreError;
use crate::{
    clock::Timestamp,
    ids::{ApprovalId, CallId},
    quorum::{self, Member, Requirement},
};

/// A tier in which a call is to wait.
#[derive(Debug, Clone)]
pub struct NewTier {
    /// Its name.
    pub tier: String,
    /// What it asks for.
    pub requires: Vec<Requirement>,
    /// How many denials end the call.
    pub denials: u32,
    /// Who is added after which time, in seconds from now.
    pub escalations: Vec<NewEscalation>,
}

/// A tier whose people are added later.
#[derive(Debug, Clone)]
pub struct NewEscalation {
    /// Its name.
    pub to_tier: String,
    /// What it asks for.
    pub requires: Vec<Requirement>,
    /// Seconds from now.
    pub after_seconds: f64,
}

/// Adds the tiers of a new approval.
///
/// # Errors
/// When the database is away.
pub(super) async fn add(
    connection: &mut PgConnection,
    approval: &ApprovalId,
    tiers: &[NewTier],
) -> Result<(), StoreError> {
    for tier in tiers {
        sqlx::query!(
            "INSERT INTO toolgate.approval_tiers (approval_id, tier, needed, requires, denials)
             VALUES ($1, $2, $3, $4, $5)",
            approval.as_str(),
            tier.tier,
            i32::try_from(quorum::seats(&tier.requires)).unwrap_or(i32::MAX),
            Json(&tier.requires) as _,
            i32::try_from(tier.denials).unwrap_or(i32::MAX)
        )
        .execute(&mut *connection)
        .await?;
        for (escalation, step) in tier.escalations.iter().zip(1_i32..) {
            sqlx::query!(
                "INSERT INTO toolgate.approval_escalations (approval_id, tier, step, to_tier, requires, escalates_at)
                 SELECT $1, $2, $3, $4, $5, created_at + make_interval(secs => $6)
                 FROM toolgate.approvals WHERE approval_id = $1",
                approval.as_str(),
                tier.tier,
                step,
                escalation.to_tier,
                Json(&escalation.requires) as _,
                escalation.after_seconds
            )
            .execute(&mut *connection)
            .await?;
        }
    }
    Ok(())
}

/// One tier of an approval.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct TierRow {
    pub approval_id: String,
    pub tier: String,
    pub needed: i32,
    pub requires: Json<Vec<Requirement>>,
    pub denials: i32,
}

/// The tiers of approvals, by approval and name.
///
/// # Errors
/// When the database is away.
pub async fn tiers(
    connection: &mut PgConnection,
    approvals: &[String],
) -> Result<Vec<TierRow>, StoreError> {
    let rows = sqlx::query_as!(
        TierRow,
        r#"SELECT approval_id, tier, needed, requires AS "requires: Json<Vec<Requirement>>", denials
           FROM toolgate.approval_tiers WHERE approval_id = ANY ($1) ORDER BY approval_id, tier"#,
        approvals
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// One step of an escalation.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct EscalationRow {
    pub approval_id: String,
    pub tier: String,
    pub step: i32,
    pub to_tier: String,
    pub requires: Json<Vec<Requirement>>,
    pub escalates_at: Timestamp,
    pub escalated_at: Option<Timestamp>,
}

/// The escalations of approvals, by approval, tier and step.
///
/// # Errors
/// When the database is away.
pub async fn escalations(
    connection: &mut PgConnection,
    approvals: &[String],
) -> Result<Vec<EscalationRow>, StoreError> {
    let rows = sqlx::query_as!(
        EscalationRow,
        r#"SELECT approval_id, tier, step, to_tier, requires AS "requires: Json<Vec<Requirement>>", escalates_at,
                  escalated_at
           FROM toolgate.approval_escalations WHERE approval_id = ANY ($1) ORDER BY approval_id, tier, step"#,
        approvals
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// An escalation that has just happened, with the call it is about.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct Escalated {
    pub approval_id: String,
    pub call_id: String,
    pub run_id: String,
    pub agent: String,
    pub api: String,
    pub tool: String,
    pub tier: String,
    pub to_tier: String,
    pub escalates_at: Timestamp,
}

/// Carries out the escalations whose time has come, of one approval or of any, at most 500: for each exactly one caller.
/// Not those whose clock a kill switch stops, nor of what is decided or has run out of time.
///
/// # Errors
/// When the database is away.
pub async fn escalate(
    connection: &mut PgConnection,
    approval: Option<&str>,
) -> Result<Vec<Escalated>, StoreError> {
    let rows = sqlx::query_as!(
        Escalated,
        r#"WITH due AS (
               SELECT e.approval_id, e.tier, e.step
               FROM toolgate.approval_escalations AS e JOIN toolgate.approvals AS a USING (approval_id)
               WHERE e.open AND e.escalates_at <= now() AND ($1::text IS NULL OR e.approval_id = $1)
                 AND a.state = 'pending' AND a.frozen_at IS NULL AND a.expires_at > now()
               ORDER BY e.escalates_at LIMIT 500)
           UPDATE toolgate.approval_escalations AS e SET escalated_at = now(), open = false
           FROM due JOIN toolgate.approvals AS a USING (approval_id)
           WHERE e.approval_id = due.approval_id AND e.tier = due.tier AND e.step = due.step AND e.open
           RETURNING e.approval_id, a.call_id, a.run_id, a.agent, a.api, a.tool, e.tier, e.to_tier, e.escalates_at"#,
        approval
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// A seat that a vote can take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seat {
    /// The tier whose requirement it is.
    pub tier: String,
    /// What the authority is there.
    #[serde(flatten)]
    pub member: Member,
    /// Through which delegation, where the authority is somebody else's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub delegation: Option<String>,
}

/// One vote.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct VoteRow {
    pub approval_id: String,
    pub operator: String,
    /// On whose right.
    pub authority: String,
    pub vote: String,
    pub tiers: Vec<String>,
    pub seats: Json<Vec<Seat>>,
    /// Those of the delegations it rests on that were revoked.
    pub revoked: Vec<String>,
    pub reason: String,
    /// For how many identical calls more it was given …
    pub next_calls: Option<i32>,
    /// … and for how many seconds.
    pub next_seconds: Option<i32>,
    pub voted_at: Timestamp,
}

/// The votes on approvals, by approval, oldest first: of one that a standing permission approved, the votes that gave that.
///
/// # Errors
/// When the database is away.
pub async fn votes(
    connection: &mut PgConnection,
    approvals: &[String],
) -> Result<Vec<VoteRow>, StoreError> {
    let rows = sqlx::query_as!(
        VoteRow,
        r#"SELECT a.approval_id, v.operator, COALESCE(v.authority, v.operator) AS "authority!", v.vote, v.tiers,
                  v.seats AS "seats: Json<Vec<Seat>>", v.reason, v.next_calls, v.next_seconds, v.voted_at,
                  ARRAY(SELECT d.delegation_id FROM toolgate.delegations AS d
                        WHERE d.delegation_id = ANY (v.delegations) AND d.revoked_at IS NOT NULL) AS "revoked!"
           FROM toolgate.approvals AS a
           LEFT JOIN toolgate.standing_permissions AS p ON p.permission_id = a.permission_id
           JOIN toolgate.votes AS v ON v.approval_id = COALESCE(p.approval_id, a.approval_id)
           WHERE a.approval_id = ANY ($1) ORDER BY a.approval_id, v.voted_at, v.operator"#,
        approvals
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// A vote to be kept.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct NewVote<'a> {
    pub approval_id: &'a str,
    pub operator: &'a str,
    pub authority: &'a str,
    pub vote: &'a str,
    pub tiers: &'a [String],
    pub seats: &'a [Seat],
    pub delegations: &'a [String],
    pub digest: &'a str,
    pub reason: &'a str,
    pub calls: i32,
    pub next_calls: Option<i32>,
    pub next_seconds: Option<i32>,
}

/// Adds a vote. False when this person has voted already.
///
/// # Errors
/// When the database is away.
pub async fn add_vote(
    connection: &mut PgConnection,
    vote: &NewVote<'_>,
) -> Result<bool, StoreError> {
    let added = sqlx::query!(
        "INSERT INTO toolgate.votes (approval_id, operator, authority, vote, tiers, seats, delegations, digest, reason,
                                     calls, next_calls, next_seconds)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (approval_id, operator) DO NOTHING",
        vote.approval_id,
        vote.operator,
        vote.authority,
        vote.vote,
        vote.tiers,
        Json(vote.seats) as _,
        vote.delegations,
        vote.digest,
        vote.reason,
        vote.calls,
        vote.next_calls,
        vote.next_seconds
    )
    .execute(connection)
    .await?;
    Ok(added.rows_affected() == 1)
}

/// What else a list shows of a call and its run.
#[derive(Debug)]
#[expect(
    missing_docs,
    reason = "the columns are described where they are made, in migrations/"
)]
pub struct BehindRow {
    pub call_id: String,
    pub sealed: Option<Vec<u8>>,
    pub explanation: Option<String>,
    pub purpose: String,
    /// The digest of the policies that parked it.
    pub policy_digest: Option<String>,
}

/// The calls behind approvals, with what their runs are for.
///
/// # Errors
/// When the database is away.
pub async fn behind(
    connection: &mut PgConnection,
    calls: &[String],
) -> Result<Vec<BehindRow>, StoreError> {
    let rows = sqlx::query_as!(
        BehindRow,
        r#"SELECT c.call_id, c.sealed, c.explanation, r.purpose,
                  (SELECT policy_digest FROM audit.entries AS e
                   WHERE e.call_id = c.call_id AND e.kind = 'parked' AND e.recorded_at >= c.received_at LIMIT 1) AS policy_digest
           FROM toolgate.calls AS c JOIN toolgate.runs AS r USING (run_id) WHERE c.call_id = ANY ($1)"#,
        calls
    )
    .fetch_all(connection)
    .await?;
    Ok(rows)
}

/// What an approved call must still be to be sent, or to be done by hand.
#[derive(Debug)]
pub struct Claim<'a> {
    /// The call.
    pub call: &'a CallId,
    /// The digest over it as it would be sent.
    pub digest: &'a str,
    /// The digest that people approved: the same, but for a call with a preview.
    pub approved_digest: &'a str,
    /// The contract that would be applied.
    pub contract_digest: &'a str,
    /// Its API, by which a kill switch covers it. So do the next four.
    pub api: &'a str,
    /// Its tool.
    pub tool: &'a str,
    /// What it does to the world.
    pub consequence: &'a str,
    /// Its agent.
    pub agent: &'a str,
    /// Its run.
    pub run: &'a str,
}

/// Turns an approved call into one that is being executed: in one statement, only if call, digest and contract are those that
/// were approved, the time is not over, no recorded kill switch covers it, and no operator has it or has said what became of
/// it. A call that nobody had to approve must stand on the work list, unclaimed. True for exactly one caller.
///
/// # Errors
/// When the database is away.
pub async fn claim(connection: &mut PgConnection, claim: &Claim<'_>) -> Result<bool, StoreError> {
    let claimed = sqlx::query!(
        "UPDATE toolgate.calls AS c SET state = 'executing', updated_at = now()
         WHERE c.call_id = $1 AND c.state = 'approved' AND c.digest = $2 AND c.contract_digest = $3
           AND (EXISTS (SELECT FROM toolgate.approvals AS a WHERE a.call_id = c.call_id)
                OR EXISTS (SELECT FROM toolgate.work AS w
                           WHERE w.call_id = c.call_id AND w.kind = 'manual' AND w.state = 'open'))
           AND NOT EXISTS (
               SELECT FROM toolgate.approvals AS a
               WHERE a.call_id = c.call_id
                 AND (a.state <> 'approved' OR a.digest <> $9 OR GREATEST(a.expires_at, a.decided_at + (a.expires_at - a.created_at)) <= now()))
           AND NOT EXISTS (
               SELECT FROM toolgate.work AS w WHERE w.call_id = c.call_id AND w.state IN ('claimed', 'resolved'))
           AND NOT EXISTS (
               SELECT FROM toolgate.kill_switches AS k
               WHERE k.released_at IS NULL
                 AND CASE k.kind WHEN 'everything' THEN true WHEN 'api' THEN k.target = $4
                                 WHEN 'tool' THEN k.target = $5 WHEN 'consequence' THEN k.target = $6
                                 WHEN 'agent' THEN k.target = $7 WHEN 'run' THEN k.target = $8
                                 ELSE false END)",
        claim.call.as_str(),
        claim.digest,
        claim.contract_digest,
        claim.api,
        claim.tool,
        claim.consequence,
        claim.agent,
        claim.run,
        claim.approved_digest
    )
    .execute(&mut *connection)
    .await?;
    if claimed.rows_affected() == 0 {
        return Ok(false);
    }
    super::work::withdraw(connection, claim.call).await?;
    Ok(true)
}

/// Whether an approved call may still be done by hand: the same, but for kill switches, of which only those on its agent and its
/// run count where people do the tool's calls `while_halted`. Nobody changes the call until the transaction ends.
///
/// # Errors
/// When the database is away.
pub async fn may_be_done(
    connection: &mut PgConnection,
    claim: &Claim<'_>,
    while_halted: bool,
) -> Result<bool, StoreError> {
    let found = sqlx::query_scalar!(
        "SELECT c.call_id FROM toolgate.calls AS c
         WHERE c.call_id = $1 AND c.state = 'approved' AND c.digest = $2 AND c.contract_digest = $3
           AND NOT EXISTS (
               SELECT FROM toolgate.approvals AS a
               WHERE a.call_id = c.call_id
                 AND (a.state <> 'approved' OR a.digest <> $10 OR GREATEST(a.expires_at, a.decided_at + (a.expires_at - a.created_at)) <= now()))
           AND NOT EXISTS (
               SELECT FROM toolgate.kill_switches AS k
               WHERE k.released_at IS NULL AND (NOT $9 OR k.kind IN ('agent', 'run'))
                 AND CASE k.kind WHEN 'everything' THEN true WHEN 'api' THEN k.target = $4
                                 WHEN 'tool' THEN k.target = $5 WHEN 'consequence' THEN k.target = $6
                                 WHEN 'agent' THEN k.target = $7 WHEN 'run' THEN k.target = $8
                                 ELSE false END)
         FOR UPDATE OF c",
        claim.call.as_str(),
        claim.digest,
        claim.contract_digest,
        claim.api,
        claim.tool,
        claim.consequence,
        claim.agent,
        claim.run,
        while_halted,
        claim.approved_digest
    )
    .fetch_optional(connection)
    .await?;
    Ok(found.is_some())
}
