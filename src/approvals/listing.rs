//! Approvals as people are shown them: a whole page in a fixed number of queries, and the page of what one may approve.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;
use serde_json::Value;
use sqlx::PgConnection;
use utoipa::ToSchema;

use super::{
    permissions::{self, Next},
    shown::opened,
};
use crate::{
    app::App,
    clock::Timestamp as DateTime,
    composition::{Case, holds, is_maker},
    policy::OperatorAction,
    quorum::{Member, Requirement},
    store::{
        self, StoreError,
        approvals::{ApprovalRow, Filter, Listed},
        composition::BehindRow,
        recent::{PolicyText, RecentRow},
    },
};

/// So many of the agent's last calls are shown beside one that waits.
const LAST_CALLS: i64 = 10;
/// Rows looked at in one query when listing what somebody may approve …
const CHUNK: i64 = 250;
/// … and so many queries for one page. What is left is behind the cursor.
const CHUNKS: usize = 4;

/// What a tier asks for, and when it is opened to whom.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Need {
    /// Its name.
    pub tier: String,
    /// So many people of each kind, all of them different.
    pub requires: Vec<Requirement>,
    /// How many denials end the call.
    pub denials: i32,
    /// Whose people may take its seats as well, and from when on.
    pub escalations: Vec<EscalationStep>,
}

/// A tier whose people are added once a call has waited long enough.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct EscalationStep {
    /// Its name.
    pub to: String,
    /// What it asks for.
    pub requires: Vec<Requirement>,
    /// When.
    pub escalates_at: DateTime,
    /// When it has happened.
    #[schema(required)]
    pub escalated_at: Option<DateTime>,
}

/// A vote as it was cast.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CastVote {
    /// Who.
    pub operator: String,
    /// Whose right was used, where it was lent.
    #[schema(required)]
    pub r#for: Option<String>,
    /// `approve` or `deny`.
    pub vote: String,
    /// Why.
    pub reason: String,
    /// For which identical calls to come it is too.
    #[schema(required)]
    pub next: Option<Next>,
    /// When.
    pub voted_at: DateTime,
}

/// A call that is identical to the one that waits, and is decided with it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Attached {
    /// Its approval.
    pub approval: String,
    /// Itself.
    pub call: String,
}

/// What the agent did before in the same run, without anything that was in it.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LastCall {
    /// Its id.
    pub call: String,
    /// What it called.
    #[schema(required)]
    pub tool: Option<String>,
    /// `permit`, `park` or `deny`.
    #[schema(required)]
    pub decision: Option<String>,
    /// How it ended, if it has.
    #[schema(required)]
    pub outcome: Option<String>,
    /// The status with which the API answered.
    #[schema(required)]
    pub status: Option<i16>,
    /// Problem codes, where there were any.
    #[schema(required)]
    pub reasons: Option<Vec<String>>,
    /// When it came.
    #[schema(required)]
    pub received_at: Option<DateTime>,
}

impl From<RecentRow> for LastCall {
    fn from(row: RecentRow) -> Self {
        Self {
            call: row.call_id,
            tool: row.tool,
            decision: row.decision,
            outcome: row.outcome,
            status: row.status,
            reasons: row.reasons,
            received_at: row.received_at,
        }
    }
}

/// An approval with everything an approver is shown.
#[derive(Debug)]
pub struct Shown {
    /// As it is kept.
    pub row: ApprovalRow,
    /// What each tier it waits in asks for, and when it is opened to whom.
    pub needs: Vec<Need>,
    /// The tiers it waits in.
    pub tiers: Vec<String>,
    /// Who has voted, and for whom.
    pub votes: Vec<CastVote>,
    /// The real arguments; gone once the call has ended.
    pub arguments: Option<Value>,
    /// The money that it is about, in words.
    pub amount: Option<String>,
    /// What it will touch, as it was read when it was parked, where its contract wants that; gone once the call has ended.
    pub preview: Option<Value>,
    /// The agent's justification: the agent's words, not a fact.
    pub words: Option<String>,
    /// The policies that parked it, by id, as they stood then.
    pub policy_texts: BTreeMap<String, String>,
    /// What the agent did last in the same run; read for one approval alone.
    pub last_calls: Option<Vec<LastCall>>,
    /// What the run is for.
    pub purpose: Option<String>,
    /// Why the call ended without being sent, if it did.
    pub explanation: Option<String>,
    /// The classes of sensitive values among them that are seen in clear.
    pub seen: BTreeSet<String>,
    /// It waits, and what was sealed of it does not open: nobody can see what it is.
    pub unreadable: bool,
    /// The identical calls that are decided with it, in the order in which they came.
    pub attached: Vec<Attached>,
    /// How far an approval may reach beyond it; none where its tiers do not allow that.
    pub next_at_most: Option<Next>,
}

/// Reads an approval as an operator is shown it, with what its agent did last in the same run.
///
/// # Errors
/// When the database is away.
pub async fn shown(app: &App, operator: &str, row: ApprovalRow) -> Result<Shown, StoreError> {
    let shown = shown_all(app, operator, vec![row]).await?.pop();
    let mut shown = shown.ok_or_else(|| StoreError::Conflict("the approval is gone".to_owned()))?;
    let mut connection = app.reading.pool.acquire().await?;
    let (run, call) = (&shown.row.run_id, &shown.row.call_id);
    let calls = store::recent::calls_of_run(&mut connection, run, call, LAST_CALLS).await?;
    shown.last_calls = Some(calls.into_iter().map(LastCall::from).collect());
    Ok(shown)
}

/// Reads a page of approvals, in its order: what the operator's rights, their own and lent ones, let them see of the arguments,
/// and the rest masked.
///
/// # Errors
/// When the database is away.
pub async fn shown_all(
    app: &App,
    operator: &str,
    rows: Vec<ApprovalRow>,
) -> Result<Vec<Shown>, StoreError> {
    let calls: Vec<String> = rows.iter().map(|row| row.call_id.clone()).collect();
    let mut connection = app.pool.acquire().await?;
    let cases = Case::load(&mut connection, rows).await?;
    let behind = store::composition::behind(&mut connection, &calls).await?;
    let ids: Vec<String> = cases
        .iter()
        .map(|case| case.row.approval_id.clone())
        .collect();
    let mut attached: HashMap<String, Vec<Attached>> = HashMap::new();
    for row in store::lines::attached(&mut connection, &ids).await? {
        let other = Attached {
            approval: row.approval_id,
            call: row.call_id,
        };
        attached.entry(row.head).or_default().push(other);
    }
    let lent = store::delegations::to(&mut connection, operator).await?;
    let former = former_texts(&mut connection, app, &cases, &behind).await?;
    drop(connection);
    let mut people: Vec<&str> = lent
        .iter()
        .map(|lent| lent.from_operator.as_str())
        .collect();
    people.push(operator);
    let mut behind: HashMap<String, BehindRow> = behind
        .into_iter()
        .map(|row| (row.call_id.clone(), row))
        .collect();
    let cases = cases.into_iter();
    Ok(cases
        .map(|case| {
            let behind = behind.remove(&case.row.call_id);
            let attached = attached.remove(&case.row.approval_id);
            assemble(
                app,
                &people,
                case,
                behind,
                &former,
                attached.unwrap_or_default(),
            )
        })
        .collect())
}

/// The texts of policies that parked some of the cases and have been replaced since.
async fn former_texts(
    connection: &mut PgConnection,
    app: &App,
    cases: &[Case],
    behind: &[BehindRow],
) -> Result<Vec<PolicyText>, StoreError> {
    let digests: BTreeSet<&String> = behind
        .iter()
        .filter_map(|row| row.policy_digest.as_ref())
        .filter(|digest| **digest != *app.policy_digest)
        .collect();
    if digests.is_empty() {
        return Ok(Vec::new());
    }
    let digests: Vec<String> = digests.into_iter().cloned().collect();
    let ids: BTreeSet<&String> = cases.iter().flat_map(|case| &case.row.policies).collect();
    let ids: Vec<String> = ids.into_iter().cloned().collect();
    store::recent::policy_texts(connection, &digests, &ids).await
}

/// The policies that parked a call, by id: as they stood then, not as they stand now.
fn policy_texts(
    app: &App,
    row: &ApprovalRow,
    digest: &str,
    former: &[PolicyText],
) -> BTreeMap<String, String> {
    let text = |id: &str| {
        if *digest == *app.policy_digest {
            return app.policies.text_of(id);
        }
        let found = former
            .iter()
            .find(|text| text.digest == digest && text.id == id);
        found.map(|found| found.text.as_str())
    };
    let ids = row.policies.iter();
    ids.filter_map(|id| Some((id.clone(), text(id)?.to_owned())))
        .collect()
}

fn assemble(
    app: &App,
    people: &[&str],
    case: Case,
    behind: Option<BehindRow>,
    former: &[PolicyText],
    attached: Vec<Attached>,
) -> Shown {
    let kept = behind.as_ref().and_then(|behind| behind.sealed.as_deref());
    let opened = opened(app, people, &case, kept);
    let digest = behind.as_ref().and_then(|row| row.policy_digest.as_deref());
    let policy_texts = digest
        .map(|digest| policy_texts(app, &case.row, digest, former))
        .unwrap_or_default();
    let (purpose, explanation) = match behind {
        Some(behind) => (Some(behind.purpose), behind.explanation),
        None => (None, None),
    };
    let limits = permissions::limits(app, &case).filter(|_| case.row.state == "pending");
    Shown {
        attached,
        next_at_most: limits.map(Next::at_most),
        needs: needs(&case),
        tiers: case.tiers.iter().map(|tier| tier.tier.clone()).collect(),
        votes: votes(&case),
        row: case.row,
        arguments: opened.arguments,
        amount: opened.amount,
        preview: opened.preview,
        words: opened.words,
        policy_texts,
        last_calls: None,
        purpose,
        explanation,
        seen: opened.seen,
        unreadable: opened.unreadable,
    }
}

fn needs(case: &Case) -> Vec<Need> {
    let tiers = case.tiers.iter();
    tiers
        .map(|tier| {
            let steps = case.escalations.iter();
            let steps = steps.filter(|step| step.tier == tier.tier);
            Need {
                tier: tier.tier.clone(),
                requires: tier.requires.0.clone(),
                denials: tier.denials,
                escalations: steps
                    .map(|step| EscalationStep {
                        to: step.to_tier.clone(),
                        requires: step.requires.0.clone(),
                        escalates_at: step.escalates_at,
                        escalated_at: step.escalated_at,
                    })
                    .collect(),
            }
        })
        .collect()
}

fn votes(case: &Case) -> Vec<CastVote> {
    let votes = case.votes.iter();
    votes
        .map(|vote| CastVote {
            operator: vote.operator.clone(),
            r#for: (vote.authority != vote.operator).then(|| vote.authority.clone()),
            vote: vote.vote.clone(),
            reason: vote.reason.clone(),
            next: Next::given(vote.next_calls, vote.next_seconds),
            voted_at: vote.voted_at,
        })
        .collect()
}

/// The pending approvals on which this operator may vote `approve` now, by their own right or a lent one, and has not voted yet.
/// Looks at a bounded number of rows: a page may be short, or empty, and still not be the last.
///
/// # Errors
/// When the database is away.
pub async fn decidable(
    app: &App,
    operator: &str,
    filter: &Filter<'_>,
    limit: i64,
) -> Result<Listed, StoreError> {
    let mut connection = app.pool.acquire().await?;
    let lent = store::delegations::to(&mut connection, operator).await?;
    let mut people: Vec<&str> = lent
        .iter()
        .map(|lent| lent.from_operator.as_str())
        .collect();
    people.push(operator);
    let tiers: Vec<String> = match filter.tiers {
        Some(tiers) => tiers.to_vec(),
        None => tiers_of(app, &people),
    };
    let states = ["pending".to_owned()];
    let mut rows: Vec<ApprovalRow> = Vec::new();
    let mut after = filter.after.map(str::to_owned);
    for _ in 0..CHUNKS {
        let page = Filter {
            states: &states,
            tiers: Some(&tiers),
            after: after.as_deref(),
            agent: filter.agent,
            run: filter.run,
            tool: filter.tool,
            consequence: filter.consequence,
        };
        let found = store::approvals::list(&mut connection, &page, CHUNK).await?;
        for case in Case::load(&mut connection, found.rows).await? {
            after = Some(case.row.approval_id.clone());
            if may_approve(app, &case, operator, &people, &lent) {
                rows.push(case.row);
            }
            if i64::try_from(rows.len()).unwrap_or(i64::MAX) >= limit {
                return Ok(Listed { rows, after });
            }
        }
        after = found.after;
        if after.is_none() {
            break;
        }
    }
    Ok(Listed { rows, after })
}

/// The tiers in which one of these people could take a seat, as the config stands.
fn tiers_of(app: &App, people: &[&str]) -> Vec<String> {
    let tiers = &app.config.tiers;
    let asks_one = |member: &Member| people.iter().any(|person| holds(app, person, member));
    tiers
        .iter()
        .filter(|(_, tier)| {
            let steps = tier.escalations(tiers);
            let later = steps.iter().filter_map(|step| tiers.get(&step.to));
            std::iter::once(*tier)
                .chain(later)
                .flat_map(|tier| &tier.requires)
                .any(|requirement| asks_one(&requirement.member))
        })
        .map(|(name, _)| name.to_string())
        .collect()
}

fn may_approve(
    app: &App,
    case: &Case,
    operator: &str,
    people: &[&str],
    lent: &[store::delegations::DelegationRow],
) -> bool {
    if case.row.overdue
        || is_maker(app, &case.row, operator)
        || case.votes.iter().any(|vote| vote.operator == operator)
    {
        return false;
    }
    let open = case.open_tiers();
    let mut people = people.iter();
    people.any(|person| {
        let voice = if *person == operator {
            case.own_voice(app, OperatorAction::Approve, operator)
        } else if is_maker(app, &case.row, person) {
            return false;
        } else {
            case.lent_voice(app, OperatorAction::Approve, (operator, person), lent)
        };
        voice
            .seats
            .iter()
            .any(|seat| open.contains(seat.tier.as_str()))
    })
}
