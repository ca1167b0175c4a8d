//! Tiers as a config writes them, and whether enough different people exist for each: the same matching that counts votes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use super::{Agent, Config, Execution, Operator, Resolver, Spanned, file};
use crate::{
    diagnostics::Finding,
    quorum::{self, Member, Requirement, StandingLimits},
    yaml,
};

/// The longest chain of escalations from one tier.
const STEPS_MOST: usize = 4;

/// What it takes to approve a parked call.
#[derive(Debug, Clone)]
pub struct Tier {
    /// All of them must be met, by different people.
    pub requires: Vec<Requirement>,
    /// So many different people with a say in this tier end the call.
    pub denials: u32,
    /// After this time a pending approval becomes *not executed*.
    pub expires_in: Duration,
    /// Whose people may take this tier's seats as well, and after which time.
    pub escalates: Option<Escalation>,
    /// The classes of sensitive values that its people see in what waits here. The others are masked.
    pub shows: Vec<String>,
    /// Who executes what is approved here.
    pub execution: Execution,
    /// How far an approval may reach beyond its own call; not at all where this is none.
    pub standing_permissions: Option<StandingLimits>,
}

/// One step of an escalation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Escalation {
    /// The tier whose people those are.
    pub to: Arc<str>,
    /// From the parking, or from the step before in a chain.
    pub after: Duration,
}

impl Tier {
    /// The steps from this tier on, each with the time from the parking. Ends at a loop, which a checked config does not have.
    pub fn escalations(&self, tiers: &BTreeMap<Arc<str>, Self>) -> Vec<Escalation> {
        let mut steps: Vec<Escalation> = Vec::new();
        let mut after = Duration::ZERO;
        let mut tier = Some(self);
        while let Some(next) = tier.and_then(|tier| tier.escalates.as_ref()) {
            if steps.len() == STEPS_MOST || steps.iter().any(|step| step.to == next.to) {
                break;
            }
            after = after.saturating_add(next.after);
            steps.push(Escalation {
                to: Arc::clone(&next.to),
                after,
            });
            tier = tiers.get(&next.to);
        }
        steps
    }
}

impl Config {
    /// How far an approval in all of these tiers may reach beyond its own call: no further than each of them allows, and not at
    /// all where one does not.
    pub fn standing_limits<'a>(
        &self,
        tiers: impl IntoIterator<Item = &'a str>,
    ) -> Option<StandingLimits> {
        let mut limits: Option<StandingLimits> = None;
        for tier in tiers {
            let allowed = self.tiers.get(tier)?.standing_permissions?;
            limits = Some(limits.map_or(allowed, |so_far| so_far.and(allowed)));
        }
        limits
    }
}

impl Resolver<'_> {
    pub(super) fn tiers(
        &mut self,
        written: &file::Config,
        operators: &BTreeMap<Arc<str>, Operator>,
        agents: &BTreeMap<Arc<str>, Arc<Agent>>,
    ) -> BTreeMap<Arc<str>, Tier> {
        let mut tiers = BTreeMap::new();
        for (name, spanned) in &written.tiers {
            let requires = self.requirements(name, spanned);
            if spanned.value.expires_in_seconds == 0 {
                self.wrong(
                    spanned,
                    format!("tier {name} expires at once"),
                    "expires_in_seconds must be 1 or more",
                );
            }
            let shows = self.shows(&spanned.value);
            let tier = Tier {
                shows,
                execution: spanned.value.execution,
                requires,
                denials: spanned.value.denials,
                expires_in: Duration::from_secs(spanned.value.expires_in_seconds),
                escalates: spanned
                    .value
                    .escalates
                    .as_ref()
                    .map(|escalates| Escalation {
                        to: escalates.value.to.as_str().into(),
                        after: Duration::from_secs(escalates.value.after_seconds),
                    }),
                standing_permissions: self.standing(name, &spanned.value),
            };
            if self.enough_people(name, spanned, &tier, operators) {
                self.makers(name, spanned, &tier, operators, agents);
            }
            tiers.insert(name.as_str().into(), tier);
        }
        for (name, spanned) in &written.tiers {
            self.escalation(name, &spanned.value, &tiers);
        }
        tiers
    }

    fn standing(&mut self, name: &str, tier: &file::Tier) -> Option<StandingLimits> {
        let written = tier.standing_permissions.as_ref()?;
        let limits = StandingLimits {
            max_calls: written.value.max_calls,
            max_seconds: written.value.max_seconds,
        };
        let StandingLimits {
            max_calls,
            max_seconds,
        } = StandingLimits::MOST;
        if !(1..=max_calls).contains(&limits.max_calls)
            || !(1..=max_seconds).contains(&limits.max_seconds)
        {
            self.wrong(
                written,
                format!("the standing permissions of tier {name} have no sensible bounds"),
                "max_calls must be from 1 to 1000, max_seconds from 1 to 86400; leave standing_permissions out where there are to be none",
            );
        }
        Some(limits)
    }

    fn requirements(&mut self, name: &str, tier: &Spanned<file::Tier>) -> Vec<Requirement> {
        let mut requires: Vec<Requirement> = Vec::new();
        for written in &tier.value.requires {
            let member = match (&written.value.role, &written.value.group) {
                (Some(role), None) => Member::Role(role.clone()),
                (None, Some(group)) => Member::Group(group.clone()),
                _ => {
                    self.wrong(
                        written,
                        format!(
                            "a requirement of tier {name} names not exactly one of role and group"
                        ),
                        "for instance: { role: finance, approvals: 1 }",
                    );
                    continue;
                }
            };
            if written.value.approvals == 0 {
                self.wrong(
                    written,
                    format!("tier {name} needs no approval at all of {member}"),
                    "approvals must be 1 or more",
                );
            }
            if requires.iter().any(|other| other.member == member) {
                self.wrong(
                    written,
                    format!("tier {name} names {member} twice"),
                    "write one requirement with the sum of both",
                );
            }
            requires.push(Requirement {
                member,
                approvals: written.value.approvals,
            });
        }
        if tier.value.requires.is_empty() {
            self.wrong(
                tier,
                format!("tier {name} needs no approval at all"),
                "requires must name a role or group and how many of it",
            );
        }
        requires
    }

    /// Whether the tier could ever be approved, and ever be denied.
    fn enough_people(
        &mut self,
        name: &str,
        at: &Spanned<file::Tier>,
        tier: &Tier,
        operators: &BTreeMap<Arc<str>, Operator>,
    ) -> bool {
        let members = operators
            .values()
            .filter(|operator| {
                let mut members = tier.requires.iter().map(|requirement| &requirement.member);
                members.any(|member| operator.is(member))
            })
            .count();
        if tier.denials == 0 || members < usize::try_from(tier.denials).unwrap_or(usize::MAX) {
            self.wrong(
                at,
                format!(
                    "tier {name} needs {} people to deny, and {members} hold what it asks for",
                    tier.denials
                ),
                "denials must be 1 or more, and at most as many as there are people",
            );
        }
        if can_be_filled(&tier.requires, operators, &BTreeSet::new()) {
            return true;
        }
        let held: Vec<String> = tier
            .requires
            .iter()
            .map(|requirement| {
                let count = operators
                    .values()
                    .filter(|operator| operator.is(&requirement.member))
                    .count();
                format!("{} has {count}", requirement.member)
            })
            .collect();
        self.wrong(
            at,
            format!(
                "tier {name} needs {} people, each counted once, and there are not enough: {}",
                quorum::seats(&tier.requires),
                held.join(", ")
            ),
            "nothing parked there could ever be approved: give its roles and groups to more operators",
        );
        false
    }

    /// Notes whose calls nobody could approve, because whoever asked for a call has no say in it.
    fn makers(
        &mut self,
        name: &str,
        at: &Spanned<file::Tier>,
        tier: &Tier,
        operators: &BTreeMap<Arc<str>, Operator>,
        agents: &BTreeMap<Arc<str>, Arc<Agent>>,
    ) {
        let mut never = BTreeSet::new();
        let mut sometimes = BTreeSet::new();
        for agent in agents.values() {
            let owner = BTreeSet::from([&*agent.owner]);
            if !can_be_filled(&tier.requires, operators, &owner) {
                never.insert(&*agent.name);
                continue;
            }
            let left_alone = operators.keys().any(|trigger| {
                let makers = BTreeSet::from([&*agent.owner, &**trigger]);
                !can_be_filled(&tier.requires, operators, &makers)
            });
            if left_alone {
                sometimes.insert(&*agent.name);
            }
        }
        let list = |names: &BTreeSet<&str>| names.iter().copied().collect::<Vec<_>>().join(", ");
        let range = yaml::range(self.file, at);
        if !never.is_empty() {
            let message = format!(
                "tier {name} has nobody for calls of {}: their owner has no say, and without the owner there are not enough people",
                list(&never)
            );
            self.findings.push(
                Finding::note(self.file, range.clone(), message)
                    .with_help("such a call can only be denied or expire: add an operator"),
            );
        }
        if !sometimes.is_empty() {
            let message = format!(
                "tier {name} can be left without enough people for calls of {}: who triggered a run has no say in it",
                list(&sometimes)
            );
            self.findings.push(
                Finding::note(self.file, range, message)
                    .with_help("such a call can only be denied or expire: add an operator"),
            );
        }
    }

    fn escalation(&mut self, name: &str, written: &file::Tier, tiers: &BTreeMap<Arc<str>, Tier>) {
        let (Some(at), Some(tier)) = (&written.escalates, tiers.get(name)) else {
            return;
        };
        if !tiers.contains_key(at.value.to.as_str()) {
            self.wrong(
                at,
                format!(
                    "tier {name} escalates to {:?}, which is no tier",
                    at.value.to
                ),
                "name one of the tiers",
            );
            return;
        }
        if at.value.after_seconds == 0 || at.value.after_seconds >= written.expires_in_seconds {
            self.wrong(
                at,
                format!("tier {name} escalates at a time at which nothing waits in it"),
                "after_seconds must be 1 or more, and less than expires_in_seconds",
            );
        }
        let mut seen = BTreeSet::from([name]);
        let mut next = tier.escalates.as_ref();
        while let Some(step) = next {
            if !seen.insert(&step.to) {
                self.wrong(
                    at,
                    format!(
                        "the escalation of tier {name} comes back to tier {}",
                        step.to
                    ),
                    "an escalation must end",
                );
                return;
            }
            if seen.len() > STEPS_MOST + 1 {
                self.wrong(
                    at,
                    format!("tier {name} escalates over more than {STEPS_MOST} steps"),
                    "shorten the chain",
                );
                return;
            }
            next = tiers.get(&step.to).and_then(|tier| tier.escalates.as_ref());
        }
    }
}

/// Whether all seats can be taken by different operators, without some of them.
fn can_be_filled(
    requires: &[Requirement],
    operators: &BTreeMap<Arc<str>, Operator>,
    without: &BTreeSet<&str>,
) -> bool {
    let people: Vec<&Operator> = operators
        .iter()
        .filter(|(name, _)| !without.contains(&***name))
        .map(|(_, operator)| operator)
        .collect();
    // Before the seats are laid out: a config may ask for any number.
    if quorum::seats(requires) > people.len() {
        return false;
    }
    let seats: Vec<&Member> = requires
        .iter()
        .flat_map(|requirement| {
            let count = usize::try_from(requirement.approvals).unwrap_or(0);
            std::iter::repeat_n(&requirement.member, count)
        })
        .collect();
    quorum::all_seated(seats.len(), people.len(), &|person, seat| match (
        people.get(person),
        seats.get(seat),
    ) {
        (Some(person), Some(member)) => person.is(member),
        _ => false,
    })
}
