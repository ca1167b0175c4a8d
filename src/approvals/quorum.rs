//! When enough people have spoken: every tier has its number, and nobody stands in two.

use std::collections::BTreeMap;

use crate::store::approvals::{TierRow, VoteRow};

/// Whether the people who approved can be dealt out over the tiers so that each tier has its number and nobody stands in
/// two. Augmenting paths over one seat per needed approval: people and seats are few.
pub(super) fn enough(needed: &[TierRow], votes: &[VoteRow]) -> bool {
    let seats: Vec<&str> = needed
        .iter()
        .flat_map(|row| {
            std::iter::repeat_n(row.tier.as_str(), usize::try_from(row.needed).unwrap_or(0))
        })
        .collect();
    let people: Vec<&VoteRow> = votes.iter().filter(|vote| vote.vote == "approve").collect();
    if people.len() < seats.len() {
        return false;
    }
    let mut seated: BTreeMap<usize, usize> = BTreeMap::new();
    (0..seats.len()).all(|seat| {
        let mut tried = vec![false; people.len()];
        find_person(seat, &seats, &people, &mut tried, &mut seated)
    })
}

/// Finds somebody for a seat, moving others to seats that they may also take. `seated` is person to seat.
fn find_person(
    seat: usize,
    seats: &[&str],
    people: &[&VoteRow],
    tried: &mut [bool],
    seated: &mut BTreeMap<usize, usize>,
) -> bool {
    let Some(tier) = seats.get(seat) else {
        return false;
    };
    for (person, vote) in people.iter().enumerate() {
        let first_time = tried.get(person) == Some(&false);
        if !first_time || !vote.tiers.iter().any(|may| may == tier) {
            continue;
        }
        if let Some(flag) = tried.get_mut(person) {
            *flag = true;
        }
        let moves = match seated.get(&person).copied() {
            None => true,
            Some(other) => find_person(other, seats, people, tried, seated),
        };
        if moves {
            seated.insert(person, seat);
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn tier(name: &str, needed: i32) -> TierRow {
        TierRow {
            tier: name.to_owned(),
            needed,
        }
    }

    fn says(operator: &str, tiers: &[&str]) -> VoteRow {
        VoteRow {
            operator: operator.to_owned(),
            vote: "approve".to_owned(),
            tiers: tiers.iter().map(|&tier| tier.to_owned()).collect(),
            reason: String::new(),
            voted_at: clock::now(),
        }
    }

    #[test]
    fn one_person_counts_once_whatever_roles_they_hold() {
        let needed = [tier("finance", 1), tier("security", 1)];
        let both = says("ada", &["finance", "security"]);
        assert!(!enough(&needed, std::slice::from_ref(&both)));
        assert!(!enough(&[tier("finance", 2)], std::slice::from_ref(&both)));
        assert!(enough(&needed, &[both, says("bob", &["finance"])]));
    }

    #[test]
    fn people_are_dealt_out_so_that_all_tiers_are_served_if_they_can_be() {
        let needed = [tier("finance", 1), tier("legal", 1), tier("security", 1)];
        let votes = [
            says("ada", &["finance", "legal", "security"]),
            says("bob", &["finance", "legal"]),
            says("cyd", &["finance"]),
        ];
        assert!(enough(&needed, &votes));
        let votes = [
            says("ada", &["finance"]),
            says("bob", &["finance"]),
            says("cyd", &["finance", "legal", "security"]),
        ];
        assert!(!enough(&needed, &votes));
    }

    #[test]
    fn a_denial_is_no_approval() {
        let mut denial = says("ada", &["finance"]);
        denial.vote = "deny".to_owned();
        assert!(!enough(&[tier("finance", 1)], &[denial]));
    }
}
