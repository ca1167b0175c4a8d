//! The matching of votes and seats, held against trying every way.

use proptest::prelude::*;
use sqlx::types::Json;

use super::*;
use crate::clock;

fn case(tiers: Vec<TierRow>, escalations: Vec<EscalationRow>, votes: Vec<VoteRow>) -> Case {
    let text = String::new;
    Case {
        row: ApprovalRow {
            approval_id: text(),
            call_id: text(),
            run_id: text(),
            agent: text(),
            owner: text(),
            triggered_by: text(),
            api: text(),
            tool: text(),
            consequence: text(),
            digest: text(),
            policies: Vec::new(),
            state: "pending".to_owned(),
            created_at: clock::now(),
            expires_at: clock::now(),
            frozen_at: None,
            decided_at: None,
            attached_to: None,
            permission_id: None,
            overdue: false,
        },
        tiers,
        escalations,
        votes,
    }
}

fn role(name: impl Into<String>) -> Member {
    Member::Role(name.into())
}

fn tier(name: &str, requires: &[(Member, u32)], denials: i32) -> TierRow {
    let requires: Vec<Requirement> = requires
        .iter()
        .map(|(member, approvals)| Requirement {
            member: member.clone(),
            approvals: *approvals,
        })
        .collect();
    TierRow {
        approval_id: String::new(),
        tier: name.to_owned(),
        needed: i32::try_from(quorum::seats(&requires)).unwrap(),
        requires: Json(requires),
        denials,
    }
}

fn seat(tier: &str, member: Member) -> Seat {
    Seat {
        tier: tier.to_owned(),
        member,
        delegation: None,
    }
}

fn vote(operator: &str, authority: &str, vote: &str, tiers: &[&str], seats: Vec<Seat>) -> VoteRow {
    VoteRow {
        approval_id: String::new(),
        operator: operator.to_owned(),
        authority: authority.to_owned(),
        vote: vote.to_owned(),
        tiers: tiers.iter().map(|&tier| tier.to_owned()).collect(),
        seats: Json(seats),
        revoked: Vec::new(),
        reason: String::new(),
        next_calls: None,
        next_seconds: None,
        voted_at: clock::now(),
    }
}

fn escalation(tier: &str, step: i32, to_tier: &str, member: Member, done: bool) -> EscalationRow {
    EscalationRow {
        approval_id: String::new(),
        tier: tier.to_owned(),
        step,
        to_tier: to_tier.to_owned(),
        requires: Json(vec![Requirement {
            member,
            approvals: 1,
        }]),
        escalates_at: clock::now(),
        escalated_at: done.then(clock::now),
    }
}

/// As if every seat stood.
fn fulfilled(case: &Case) -> bool {
    let mut people: BTreeMap<&str, Vec<&Seat>> = BTreeMap::new();
    for vote in case.votes.iter().filter(|vote| vote.vote == "approve") {
        people
            .entry(&vote.authority)
            .or_default()
            .extend(&vote.seats.0);
    }
    case.fills_every_seat(people)
}

#[test]
fn one_person_takes_one_seat_in_however_many_tiers_roles_and_groups() {
    let group = Member::Group("treasury".to_owned());
    let tiers = || {
        vec![
            tier("finance", &[(role("finance"), 1), (group.clone(), 1)], 1),
            tier("security", &[(role("security"), 1)], 1),
        ]
    };
    let everything = || {
        vec![
            seat("finance", role("finance")),
            seat("finance", group.clone()),
            seat("security", role("security")),
        ]
    };
    let votes = |names: &[&str]| -> Vec<VoteRow> {
        names
            .iter()
            .map(|name| vote(name, name, "approve", &[], everything()))
            .collect()
    };
    assert!(!fulfilled(&case(tiers(), vec![], votes(&["ada"]))));
    assert!(!fulfilled(&case(tiers(), vec![], votes(&["ada", "bob"]))));
    assert!(fulfilled(&case(
        tiers(),
        vec![],
        votes(&["ada", "bob", "cyd"])
    )));
}

#[test]
fn an_authority_counts_once_through_however_many_mouths() {
    let tiers = || vec![tier("finance", &[(role("finance"), 2)], 1)];
    let held = || vec![seat("finance", role("finance"))];
    let both = vec![
        vote("ada", "ada", "approve", &[], held()),
        vote("bob", "ada", "approve", &[], held()),
    ];
    assert!(!fulfilled(&case(tiers(), vec![], both)));
    let with_own = vec![
        vote("ada", "ada", "approve", &[], held()),
        vote("bob", "cyd", "approve", &[], held()),
    ];
    assert!(fulfilled(&case(tiers(), vec![], with_own)));
    let contradiction = vec![
        vote("ada", "ada", "deny", &[], held()),
        vote("bob", "ada", "approve", &[], held()),
        vote("cyd", "cyd", "approve", &[], held()),
    ];
    assert!(!fulfilled(&case(tiers(), vec![], contradiction)));
}

#[test]
fn denials_count_by_tier_and_authority() {
    let tiers = || {
        vec![
            tier("finance", &[(role("finance"), 1)], 2),
            tier("security", &[(role("security"), 1)], 3),
        ]
    };
    let says =
        |operator, authority, tiers: &[&str]| vote(operator, authority, "deny", tiers, vec![]);
    let one = vec![says("ada", "ada", &["finance", "security"])];
    assert!(!case(tiers(), vec![], one).is_denied());
    let same_authority = vec![
        says("ada", "ada", &["finance"]),
        says("bob", "ada", &["finance"]),
    ];
    assert!(!case(tiers(), vec![], same_authority).is_denied());
    let across = vec![
        says("ada", "ada", &["finance"]),
        says("bob", "bob", &["security"]),
    ];
    assert!(!case(tiers(), vec![], across).is_denied());
    let two = vec![
        says("ada", "ada", &["finance"]),
        says("bob", "bob", &["finance"]),
    ];
    assert!(case(tiers(), vec![], two).is_denied());
}

#[test]
fn the_next_tiers_people_fill_seats_only_after_the_escalation() {
    let votes = || {
        vec![vote(
            "eve",
            "eve",
            "approve",
            &[],
            vec![seat("chiefs", role("chief"))],
        )]
    };
    let at = |done| vec![escalation("finance", 1, "chiefs", role("chief"), done)];
    let tiers = |count| vec![tier("finance", &[(role("finance"), count)], 1)];
    assert!(!fulfilled(&case(tiers(1), at(false), votes())));
    assert!(fulfilled(&case(tiers(1), at(true), votes())));
    assert!(
        !fulfilled(&case(tiers(2), at(true), votes())),
        "as many people as before"
    );
}

#[test]
fn a_tier_that_cannot_be_read_is_never_fulfilled() {
    let votes = || {
        vec![vote(
            "ada",
            "ada",
            "approve",
            &[],
            vec![seat("finance", role("finance"))],
        )]
    };
    assert!(!fulfilled(&case(vec![], vec![], votes())));
    let mut old = tier("finance", &[], 1);
    assert!(!fulfilled(&case(vec![old.clone()], vec![], votes())));
    old.needed = 1;
    assert!(!fulfilled(&case(vec![old], vec![], votes())));
}

#[test]
fn what_nobody_can_fulfil_takes_no_room() {
    let most = u32::try_from(i32::MAX).unwrap();
    let votes = vec![vote(
        "ada",
        "ada",
        "approve",
        &[],
        vec![seat("finance", role("finance"))],
    )];
    let tiers = vec![tier("finance", &[(role("finance"), most)], 1)];
    assert!(!fulfilled(&case(tiers, vec![], votes)));
}

const TIERS: [&str; 3] = ["a", "b", "c"];

/// Deals people out seat by seat, in every way there is.
fn by_trying_all(
    seats: &[(usize, usize)],
    people: &[Vec<(usize, usize)>],
    taken: u32,
    to: Option<usize>,
) -> bool {
    let Some(((tier, member), rest)) = seats.split_first() else {
        return true;
    };
    people.iter().enumerate().any(|(person, may)| {
        let own = may.contains(&(*tier, *member));
        // Tier a escalates to tier c, which asks for role 0.
        let added = *tier == 0 && to.is_some_and(|to| may.contains(&(to, 0)));
        taken & (1 << person) == 0
            && (own || added)
            && by_trying_all(rest, people, taken | (1 << person), to)
    })
}

proptest! {
    #[test]
    fn votes_fulfil_tiers_exactly_when_some_way_of_dealing_them_out_exists(
        asked in prop::collection::vec(prop::collection::vec(0_u32..3, 2), 1..3),
        held in prop::collection::vec(prop::collection::btree_set((0_usize..3, 0_usize..2), 0..4), 0..6),
        mouths in prop::collection::vec(0_usize..6, 0..6),
        escalated in any::<bool>(),
    ) {
        let tiers: Vec<TierRow> = asked.iter().zip(TIERS).map(|(counts, name)| {
            let requires: Vec<_> = counts.iter().enumerate()
                .filter(|(_, count)| **count > 0)
                .map(|(member, count)| (role(member.to_string()), *count))
                .collect();
            tier(name, &requires, 1)
        }).collect();
        let seats: Vec<(usize, usize)> = asked.iter().enumerate().flat_map(|(tier, counts)| {
            counts.iter().enumerate().flat_map(move |(member, count)| {
                std::iter::repeat_n((tier, member), usize::try_from(*count).unwrap())
            })
        }).collect();
        let people: Vec<Vec<(usize, usize)>> = held.iter().map(|set| set.iter().copied().collect()).collect();
        let say = |operator: String, authority: usize| {
            let seats = people[authority].iter().map(|(tier, member)| seat(TIERS[*tier], role(member.to_string()))).collect();
            vote(&operator, &authority.to_string(), "approve", &[], seats)
        };
        let mut votes: Vec<VoteRow> = (0..people.len()).map(|person| say(person.to_string(), person)).collect();
        // More mouths for the same authorities change nothing.
        votes.extend(mouths.iter().filter(|of| **of < people.len()).enumerate().map(|(at, of)| say(format!("mouth {at}"), *of)));
        let steps = vec![escalation("a", 1, "c", role("0"), escalated)];
        let readable = asked.iter().all(|counts| counts.iter().sum::<u32>() > 0);
        let expected = readable && by_trying_all(&seats, &people, 0, escalated.then_some(2));
        prop_assert_eq!(fulfilled(&case(tiers, steps, votes)), expected);
    }
}
