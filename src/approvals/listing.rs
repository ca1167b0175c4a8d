//! Approvals as people are shown them: a whole page in a fixed number of queries, and the page of what one may approve.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use super::shown::opened;
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
    },
};

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
    /// When.
    pub voted_at: DateTime,
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
    /// The agent's justification: the agent's words, not a fact.
    pub words: Option<String>,
    /// What the run is for.
    pub purpose: Option<String>,
    /// Why the call ended without being sent, if it did.
    pub explanation: Option<String>,
    /// The classes of sensitive values among them that are seen in clear.
    pub seen: BTreeSet<String>,
    /// It waits, and what was sealed of it does not open: nobody can see what it is.
    pub unreadable: bool,
}

/// Reads an approval as an operator is shown it.
///
/// # Errors
/// When the database is away.
pub async fn shown(app: &App, operator: &str, row: ApprovalRow) -> Result<Shown, StoreError> {
    let shown = shown_all(app, operator, vec![row]).await?.pop();
    shown.ok_or_else(|| StoreError::Conflict("the approval is gone".to_owned()))
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
    let lent = store::delegations::to(&mut connection, operator).await?;
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
            assemble(app, &people, case, behind)
        })
        .collect())
}

fn assemble(app: &App, people: &[&str], case: Case, behind: Option<BehindRow>) -> Shown {
    let kept = behind.as_ref().and_then(|behind| behind.sealed.as_deref());
    let opened = opened(app, people, &case, kept);
    let (purpose, explanation) = match behind {
        Some(behind) => (Some(behind.purpose), behind.explanation),
        None => (None, None),
    };
    Shown {
        needs: needs(&case),
        tiers: case.tiers.iter().map(|tier| tier.tier.clone()).collect(),
        votes: votes(&case),
        row: case.row,
        arguments: opened.arguments,
        words: opened.words,
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
