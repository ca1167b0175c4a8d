//! Operators, and the tiers in which calls wait for them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use super::{NAME_HELP, Operator, Resolver, Tier, file, is_name};
use crate::call::ByClass;

impl Resolver<'_> {
    pub(super) fn operators(&mut self, written: &file::Config) -> BTreeMap<Arc<str>, Operator> {
        let mut operators = BTreeMap::new();
        for (name, spanned) in &written.operators {
            if !is_name(name) {
                self.wrong(
                    spanned,
                    format!("{name:?} cannot be an operator's name"),
                    NAME_HELP,
                );
            }
            operators.insert(
                name.as_str().into(),
                Operator {
                    roles: spanned.value.roles.clone(),
                },
            );
        }
        operators
    }

    /// Everything, unless the tier says otherwise: whoever decides must see on what.
    fn shows(&mut self, tier: &file::Tier) -> Vec<String> {
        let Some(written) = &tier.shows else {
            return ByClass::CLASSES.map(str::to_owned).to_vec();
        };
        for class in written {
            if !ByClass::CLASSES.contains(&class.value.as_str()) {
                self.wrong(
                    class,
                    format!("{:?} is no class of sensitive values", class.value),
                    "one of secret, pii and confidential",
                );
            }
        }
        written.iter().map(|class| class.value.clone()).collect()
    }

    pub(super) fn tiers(&mut self, written: &file::Config) -> BTreeMap<Arc<str>, Tier> {
        let mut tiers = BTreeMap::new();
        for (name, spanned) in &written.tiers {
            let tier = &spanned.value;
            let members = written
                .operators
                .values()
                .filter(|operator| operator.value.roles.contains(&tier.role))
                .count();
            if tier.approvals == 0 {
                self.wrong(
                    spanned,
                    format!("tier {name} needs no approval at all"),
                    "approvals must be 1 or more",
                );
            } else if members < usize::try_from(tier.approvals).unwrap_or(usize::MAX) {
                self.wrong(
                    spanned,
                    format!(
                        "tier {name} needs {} people, but role {} has {members}",
                        tier.approvals, tier.role
                    ),
                    "nothing parked there could ever be approved: give the role to more operators",
                );
            }
            if tier.expires_in_seconds == 0 {
                self.wrong(
                    spanned,
                    format!("tier {name} expires at once"),
                    "expires_in_seconds must be 1 or more",
                );
            }
            tiers.insert(
                name.as_str().into(),
                Tier {
                    role: tier.role.clone(),
                    approvals: tier.approvals,
                    expires_in: Duration::from_secs(tier.expires_in_seconds),
                    shows: self.shows(tier),
                },
            );
        }
        tiers
    }
}
