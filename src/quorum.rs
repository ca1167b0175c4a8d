//! Requirements on people, and whether given people can fill the seats they make: each person in one seat at the most. The
//! config is checked with it and votes are counted with it, so that both mean the same.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What makes somebody fit for a seat.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Member {
    /// They hold this role.
    Role(String),
    /// They are in this group.
    Group(String),
}

impl fmt::Display for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Role(name) => write!(f, "role {name}"),
            Self::Group(name) => write!(f, "group {name}"),
        }
    }
}

/// So many different people of one kind. `{"role": "finance", "approvals": 2}` in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Requirement {
    /// Who.
    #[serde(flatten)]
    pub member: Member,
    /// How many.
    pub approvals: u32,
}

/// For how many identical calls of the same run an approver may approve ahead, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandingLimits {
    /// Calls, from 1 to 1,000.
    pub max_calls: u32,
    /// Seconds from the approval on, from 1 to 86,400.
    pub max_seconds: u32,
}

impl StandingLimits {
    /// The widest that a config may write.
    pub const MOST: Self = Self {
        max_calls: 1_000,
        max_seconds: 86_400,
    };

    /// What two tiers both allow.
    pub fn and(self, other: Self) -> Self {
        Self {
            max_calls: self.max_calls.min(other.max_calls),
            max_seconds: self.max_seconds.min(other.max_seconds),
        }
    }
}

/// How many seats requirements make together; saturates.
pub fn seats(requirements: &[Requirement]) -> usize {
    requirements.iter().fold(0, |sum, requirement| {
        sum.saturating_add(usize::try_from(requirement.approvals).unwrap_or(usize::MAX))
    })
}

/// Whether `people` can be dealt out over `seats` so that every seat has somebody who may take it and nobody sits twice.
/// Augmenting paths (Kuhn): at most `seats × people × seats` questions.
pub fn all_seated(seats: usize, people: usize, may: &dyn Fn(usize, usize) -> bool) -> bool {
    if people < seats {
        return false;
    }
    let mut seat_of: Vec<Option<usize>> = vec![None; people];
    (0..seats).all(|seat| {
        let mut tried = vec![false; people];
        seat_somebody(seat, may, &mut tried, &mut seat_of)
    })
}

/// Finds somebody for a seat, moving others to seats that they may also take. No deeper than there are people.
fn seat_somebody(
    seat: usize,
    may: &dyn Fn(usize, usize) -> bool,
    tried: &mut [bool],
    seat_of: &mut [Option<usize>],
) -> bool {
    for person in 0..seat_of.len() {
        let first_time = tried.get(person) == Some(&false);
        if !first_time || !may(person, seat) {
            continue;
        }
        if let Some(flag) = tried.get_mut(person) {
            *flag = true;
        }
        let moves = match seat_of.get(person).copied().flatten() {
            None => true,
            Some(other) => seat_somebody(other, may, tried, seat_of),
        };
        if moves {
            if let Some(place) = seat_of.get_mut(person) {
                *place = Some(seat);
            }
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every way of dealing people out, one seat after the other.
    fn by_trying_all(seat: usize, seats: usize, taken: u32, fits: &[Vec<bool>]) -> bool {
        seat == seats
            || fits.iter().enumerate().any(|(person, may)| {
                may[seat]
                    && taken & (1 << person) == 0
                    && by_trying_all(seat + 1, seats, taken | (1 << person), fits)
            })
    }

    proptest! {
        #[test]
        fn people_are_seated_exactly_when_some_way_of_seating_them_exists(
            seats in 0_usize..6,
            fits in prop::collection::vec(prop::collection::vec(prop::bool::weighted(0.4), 6), 0..7),
        ) {
            let may = |person: usize, seat: usize| fits[person][seat];
            prop_assert_eq!(
                all_seated(seats, fits.len(), &may),
                by_trying_all(0, seats, 0, &fits)
            );
        }
    }

    #[test]
    fn a_requirement_reads_as_it_is_written() {
        let text = r#"{"role":"finance","approvals":2}"#;
        let requirement: Requirement = serde_json::from_str(text).unwrap();
        assert_eq!(requirement.member, Member::Role("finance".to_owned()));
        assert_eq!(serde_json::to_string(&requirement).unwrap(), text);
    }
}
