//! Who counts for what on a parked call. A vote rests on one *authority*: the voter, or the operator who lent them the right. An
//! authority takes one seat of one requirement of one tier at the most, through however many people it speaks. The same question
//! is asked at every vote and again before the call is sent, of the operators, roles and policies of that moment.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;

use crate::{
    app::App,
    policy::{ApprovalFacts, OperatorAction, OperatorContext, OperatorDecision, OperatorResource},
    quorum::{self, Member, Requirement},
    store::{
        self, StoreError,
        approvals::ApprovalRow,
        composition::{EscalationRow, Seat, TierRow, VoteRow},
        delegations::DelegationRow,
    },
};

mod makers;

pub use makers::{Origin, asked_for, is_maker};

/// An approval with what it asks for and what was said.
#[derive(Debug)]
pub struct Case {
    /// The approval.
    pub row: ApprovalRow,
    /// Its tiers.
    pub tiers: Vec<TierRow>,
    /// When it is opened to more people.
    pub escalations: Vec<EscalationRow>,
    /// The votes.
    pub votes: Vec<VoteRow>,
}

/// The right to speak on an approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Voice {
    /// Whose right it is.
    pub authority: String,
    /// The tiers for which it speaks, those among them to which the approval has not escalated yet.
    pub tiers: Vec<String>,
    /// The seats it could take there.
    pub seats: Vec<Seat>,
}

impl Case {
    /// Reads what belongs to these approvals, in their order, in three queries.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn load(
        connection: &mut PgConnection,
        rows: Vec<ApprovalRow>,
    ) -> Result<Vec<Self>, StoreError> {
        let ids: Vec<String> = rows.iter().map(|row| row.approval_id.clone()).collect();
        let tiers = store::composition::tiers(connection, &ids).await?;
        let escalations = store::composition::escalations(connection, &ids).await?;
        let votes = store::composition::votes(connection, &ids).await?;
        let mut tiers = by_approval(tiers, |row| &row.approval_id);
        let mut escalations = by_approval(escalations, |row| &row.approval_id);
        let mut votes = by_approval(votes, |row| &row.approval_id);
        Ok(rows
            .into_iter()
            .map(|row| Self {
                tiers: tiers.remove(&row.approval_id).unwrap_or_default(),
                escalations: escalations.remove(&row.approval_id).unwrap_or_default(),
                votes: votes.remove(&row.approval_id).unwrap_or_default(),
                row,
            })
            .collect())
    }

    /// The tiers whose people may speak now: those in which the call waits, and those to which it has escalated.
    pub fn open_tiers(&self) -> BTreeSet<&str> {
        let escalated = self
            .escalations
            .iter()
            .filter(|escalation| escalation.escalated_at.is_some())
            .map(|escalation| escalation.to_tier.as_str());
        self.tiers
            .iter()
            .map(|tier| tier.tier.as_str())
            .chain(escalated)
            .collect()
    }

    /// Every tier whose people may speak now or later, with what each asks for.
    fn all_tiers(&self) -> BTreeMap<&str, &[Requirement]> {
        let later = self.escalations.iter().map(|escalation| {
            (
                escalation.to_tier.as_str(),
                escalation.requires.0.as_slice(),
            )
        });
        later
            .chain(
                self.tiers
                    .iter()
                    .map(|tier| (tier.tier.as_str(), tier.requires.0.as_slice())),
            )
            .collect()
    }

    /// What an operator may say by their own right.
    pub fn own_voice(&self, app: &App, action: OperatorAction, operator: &str) -> Voice {
        let mut voice = Voice {
            authority: operator.to_owned(),
            tiers: Vec::new(),
            seats: Vec::new(),
        };
        for (tier, requires) in self.all_tiers() {
            if !may_speak(app, &self.row, action, (operator, operator), tier) {
                continue;
            }
            voice.tiers.push(tier.to_owned());
            for requirement in requires {
                if holds(app, operator, &requirement.member) {
                    voice.seats.push(Seat {
                        tier: tier.to_owned(),
                        member: requirement.member.clone(),
                        delegation: None,
                    });
                }
            }
        }
        voice
    }

    /// What an operator may say for another, by what that other holds themself and has lent them. Nothing that was lent to
    /// that other in turn.
    pub fn lent_voice(
        &self,
        app: &App,
        action: OperatorAction,
        (operator, authority): (&str, &str),
        delegations: &[DelegationRow],
    ) -> Voice {
        let mut voice = Voice {
            authority: authority.to_owned(),
            tiers: Vec::new(),
            seats: Vec::new(),
        };
        for (tier, requires) in self.all_tiers() {
            if !may_speak(app, &self.row, action, (operator, authority), tier) {
                continue;
            }
            let before = voice.seats.len();
            for requirement in requires {
                if !holds(app, authority, &requirement.member) {
                    continue;
                }
                let lent = delegations
                    .iter()
                    .filter(|delegation| delegation.from_operator == authority)
                    .filter(|delegation| covers(delegation, tier, &requirement.member));
                voice.seats.extend(lent.map(|delegation| Seat {
                    tier: tier.to_owned(),
                    member: requirement.member.clone(),
                    delegation: Some(delegation.delegation_id.clone()),
                }));
            }
            if voice.seats.len() > before {
                voice.tiers.push(tier.to_owned());
            }
        }
        voice
    }

    /// Ids of the policies that forbid an operator to speak, over all tiers.
    pub fn forbidding(&self, app: &App, action: OperatorAction, operator: &str) -> Vec<String> {
        let mut policies: Vec<String> = self
            .all_tiers()
            .into_keys()
            .map(|tier| decide(app, &self.row, action, operator, tier))
            .filter(|decision| !decision.permitted)
            .flat_map(|decision| decision.policies)
            .collect();
        policies.sort();
        policies.dedup();
        policies
    }

    /// Whether enough different people with a say in one of the tiers have denied. A denial counts as it was cast.
    pub fn is_denied(&self) -> bool {
        self.tiers.iter().any(|tier| {
            let denying: BTreeSet<&str> = self
                .votes
                .iter()
                .filter(|vote| vote.vote == "deny")
                .filter(|vote| {
                    vote.tiers
                        .iter()
                        .any(|spoken| self.is_open_to(&tier.tier, spoken))
                })
                .map(|vote| vote.authority.as_str())
                .collect();
            denying.len() >= usize::try_from(tier.denials).unwrap_or(usize::MAX)
        })
    }

    /// Whether the people of `other` have a say in `tier`: it is that tier, or one to which that tier has escalated.
    fn is_open_to(&self, tier: &str, other: &str) -> bool {
        tier == other || self.escalated(tier).any(|step| step.to_tier == other)
    }

    fn escalated(&self, tier: &str) -> impl Iterator<Item = &EscalationRow> {
        let steps = self.escalations.iter();
        steps.filter(move |step| step.tier == tier && step.escalated_at.is_some())
    }

    /// Whether the votes fulfil every tier as it stood when the call was parked, by what voters and authorities are now.
    pub fn is_fulfilled(&self, app: &App) -> bool {
        let mut people: BTreeMap<&str, Vec<&Seat>> = BTreeMap::new();
        for vote in self.votes.iter().filter(|vote| vote.vote == "approve") {
            let seats = self.standing_seats(app, vote);
            people.entry(&vote.authority).or_default().extend(seats);
        }
        self.fills_every_seat(people)
    }

    /// The matching. `people` are authorities with the seats they could take.
    fn fills_every_seat(&self, mut people: BTreeMap<&str, Vec<&Seat>>) -> bool {
        // Who denies through one mouth does not approve through another.
        for vote in self.votes.iter().filter(|vote| vote.vote == "deny") {
            people.remove(vote.authority.as_str());
        }
        // INVARIANT: a tier without readable requirements has no seats and is never fulfilled.
        let readable = self.tiers.iter().all(|tier| {
            tier.needed > 0 && usize::try_from(tier.needed) == Ok(quorum::seats(&tier.requires.0))
        });
        let needed = self.tiers.iter().fold(0_usize, |sum, tier| {
            sum.saturating_add(quorum::seats(&tier.requires.0))
        });
        if self.tiers.is_empty() || !readable || needed > people.len() {
            return false;
        }
        let seats: Vec<(&str, &Member)> = self
            .tiers
            .iter()
            .flat_map(|tier| {
                tier.requires
                    .0
                    .iter()
                    .map(|needs| (tier.tier.as_str(), needs))
            })
            .flat_map(|(tier, needs)| {
                let count = usize::try_from(needs.approvals).unwrap_or(0);
                std::iter::repeat_n((tier, &needs.member), count)
            })
            .collect();
        let people: Vec<Vec<&Seat>> = people.into_values().collect();
        quorum::all_seated(seats.len(), people.len(), &|person, seat| match (
            people.get(person),
            seats.get(seat),
        ) {
            (Some(person), Some((tier, member))) => {
                person.iter().any(|may| self.fits(may, tier, member))
            }
            _ => false,
        })
    }

    /// A seat is taken by who is what it asks for, or by who is what the tiers ask for to which it has escalated.
    fn fits(&self, may: &Seat, tier: &str, member: &Member) -> bool {
        let own = may.tier == tier && may.member == *member;
        own || self.escalated(tier).any(|step| {
            may.tier == step.to_tier
                && step
                    .requires
                    .0
                    .iter()
                    .any(|needs| needs.member == may.member)
        })
    }

    /// The seats of a vote that still stand: voter and authority are operators who did not ask for the call, the authority is
    /// what the seat asks for, the policies let both speak, and what was lent was not taken back. A delegation that has only
    /// run out since the vote was in force when it was used.
    fn standing_seats<'v>(&self, app: &App, vote: &'v VoteRow) -> Vec<&'v Seat> {
        let known = app.config.operators.contains_key(vote.operator.as_str());
        if !known
            || is_maker(app, &self.row, &vote.operator)
            || is_maker(app, &self.row, &vote.authority)
        {
            return Vec::new();
        }
        let lent = vote.operator != vote.authority;
        vote.seats
            .0
            .iter()
            .filter(|seat| seat.delegation.is_some() == lent)
            .filter(|seat| {
                !seat
                    .delegation
                    .as_ref()
                    .is_some_and(|id| vote.revoked.contains(id))
            })
            .filter(|seat| holds(app, &vote.authority, &seat.member))
            .filter(|seat| {
                let who = (vote.operator.as_str(), vote.authority.as_str());
                may_speak(app, &self.row, OperatorAction::Approve, who, &seat.tier)
            })
            .collect()
    }
}

fn by_approval<T>(rows: Vec<T>, id: impl Fn(&T) -> &String) -> BTreeMap<String, Vec<T>> {
    let mut sorted: BTreeMap<String, Vec<T>> = BTreeMap::new();
    for row in rows {
        sorted.entry(id(&row).clone()).or_default().push(row);
    }
    sorted
}

/// Whether an operator holds a role or is in a group themself.
pub fn holds(app: &App, operator: &str, member: &Member) -> bool {
    app.config
        .operators
        .get(operator)
        .is_some_and(|operator| operator.is(member))
}

fn covers(delegation: &DelegationRow, tier: &str, member: &Member) -> bool {
    let by_kind = match member {
        Member::Role(role) => delegation.roles.contains(role),
        Member::Group(group) => delegation.groups.contains(group),
    };
    by_kind || delegation.tiers.iter().any(|lent| lent == tier)
}

/// Whether the policies let an operator speak in a tier on an authority: the authority is permitted, and nothing forbids the
/// operator, who without a right of their own need not be permitted.
fn may_speak(
    app: &App,
    row: &ApprovalRow,
    action: OperatorAction,
    (operator, authority): (&str, &str),
    tier: &str,
) -> bool {
    if !decide(app, row, action, authority, tier).permitted {
        return false;
    }
    if operator == authority {
        return true;
    }
    let own = decide(app, row, action, operator, tier);
    own.permitted || (own.policies.is_empty() && !own.errors)
}

fn decide(
    app: &App,
    row: &ApprovalRow,
    action: OperatorAction,
    operator: &str,
    tier: &str,
) -> OperatorDecision {
    app.policies.decide_operator(
        operator,
        action,
        OperatorResource::Tier(tier),
        OperatorContext::Approval(facts(row)),
    )
}

/// A parked call, as policies on approving see it.
fn facts(row: &ApprovalRow) -> ApprovalFacts<'_> {
    ApprovalFacts {
        agent: &row.agent,
        owner: &row.owner,
        triggered_by: &row.triggered_by,
        tool: &row.tool,
        api: &row.api,
        consequence: &row.consequence,
        run: &row.run_id,
    }
}

#[cfg(test)]
mod tests;
