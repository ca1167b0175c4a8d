//! Operators, and what those who decide in a tier are shown.

use std::{collections::BTreeMap, sync::Arc};

use super::{NAME_HELP, Operator, Resolver, file, is_name};
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
                    groups: spanned.value.groups.clone(),
                },
            );
        }
        operators
    }

    /// Everything, unless the tier says otherwise: whoever decides must see on what.
    pub(super) fn shows(&mut self, tier: &file::Tier) -> Vec<String> {
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
}
