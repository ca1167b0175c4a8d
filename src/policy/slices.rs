//! Cuts the policy set by the scope of each policy, so that a decision evaluates only the policies that
//! can apply to this principal and this action, however many there are.
//!
//! A slice holds the policies with one principal constraint and one action constraint. Putting policies
//! next to each other this way takes memory in proportion to their number, where a set per agent and tool
//! would multiply them. Because groups do not contain groups, the slices of a request are found by
//! looking up a principal's own groups and an action's own groups.

use std::collections::HashMap;

use cedar_policy::{
    ActionConstraint, Authorizer, Decision as Answer, Entities, EntityTypeName, EntityUid, Policy,
    PolicySet, PolicySetError, PrincipalConstraint, Request,
};

use super::reads::Reads;

/// Which principals a policy's scope admits, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Row {
    Anyone,
    Type(EntityTypeName),
    /// This entity and its members.
    Within(EntityUid),
}

/// Policies of one scope.
#[derive(Debug, Clone, Default)]
pub(super) struct Slice {
    policies: PolicySet,
    /// What any of them reads of the context.
    pub(super) reads: Reads,
    /// Whether any of them holds calls back for an approval.
    parks: bool,
}

impl Slice {
    pub(super) fn add(&mut self, policy: &Policy, reads: Reads) -> Result<(), Box<PolicySetError>> {
        self.reads = self.reads | reads;
        self.parks |= policy.annotation("approval").is_some();
        self.policies.add(policy.clone()).map_err(Box::new)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.policies.num_of_policies()
    }
}

/// All policies, by principal (rows) and action (columns). A policy whose scope lists several actions
/// stands in several columns.
#[derive(Debug, Default)]
pub(super) struct Slices {
    row_numbers: HashMap<Row, usize>,
    /// `None` is the column of policies that hold for every action.
    column_numbers: HashMap<Option<EntityUid>, usize>,
    cells: HashMap<(usize, usize), Slice>,
}

impl Slices {
    /// Adds a policy to every slice its scope belongs to. Its id must be new.
    pub(super) fn add(&mut self, policy: &Policy, reads: Reads) -> Result<(), Box<PolicySetError>> {
        let row = match policy.principal_constraint() {
            PrincipalConstraint::Any => Row::Anyone,
            PrincipalConstraint::Is(kind) => Row::Type(kind),
            PrincipalConstraint::Eq(uid)
            | PrincipalConstraint::In(uid)
            | PrincipalConstraint::IsIn(_, uid) => Row::Within(uid),
        };
        let mut columns = match policy.action_constraint() {
            ActionConstraint::Any => vec![None],
            ActionConstraint::Eq(uid) => vec![Some(uid)],
            ActionConstraint::In(uids) => uids.into_iter().map(Some).collect(),
        };
        columns.sort();
        columns.dedup();
        let next_row = self.row_numbers.len();
        let row = *self.row_numbers.entry(row).or_insert(next_row);
        for column in columns {
            let next_column = self.column_numbers.len();
            let column = *self.column_numbers.entry(column).or_insert(next_column);
            self.cells
                .entry((row, column))
                .or_default()
                .add(policy, reads)?;
        }
        Ok(())
    }

    /// The rows of policies that can apply to a principal with these parents.
    pub(super) fn rows_of<'a>(
        &self,
        uid: &'a EntityUid,
        parents: impl Iterator<Item = &'a EntityUid>,
    ) -> Vec<usize> {
        let within = std::iter::once(uid)
            .chain(parents)
            .cloned()
            .map(Row::Within);
        [Row::Anyone, Row::Type(uid.type_name().clone())]
            .into_iter()
            .chain(within)
            .filter_map(|row| self.row_numbers.get(&row).copied())
            .collect()
    }

    /// The columns of policies that can apply to an action with these groups.
    pub(super) fn columns_of<'a>(
        &self,
        uid: &'a EntityUid,
        groups: impl Iterator<Item = &'a EntityUid>,
    ) -> Vec<usize> {
        let named = std::iter::once(uid).chain(groups).cloned().map(Some);
        std::iter::once(None)
            .chain(named)
            .filter_map(|column| self.column_numbers.get(&column).copied())
            .collect()
    }

    /// Whether any slice of these columns holds calls back for an approval.
    pub(super) fn park(&self, columns: &[usize]) -> bool {
        self.cells
            .iter()
            .any(|((_, column), slice)| slice.parks && columns.contains(column))
    }

    /// The slices at the crossings of these rows and columns.
    pub(super) fn applying<'s>(
        &'s self,
        rows: &[usize],
        columns: &[usize],
    ) -> impl Iterator<Item = &'s Slice> + Clone {
        let places = rows
            .iter()
            .flat_map(|row| columns.iter().map(move |column| (*row, *column)));
        let found: Vec<_> = places.filter_map(|place| self.cells.get(&place)).collect();
        found.into_iter()
    }
}

/// What the policies say about one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// At least one policy permits and none forbids. Only worth something without errors.
    pub(super) permitted: bool,
    /// Ids of the determining policies: those that forbid, or else those that permit. Sorted.
    pub(super) determining: Vec<String>,
    /// Ids of the policies that could not be evaluated. Sorted.
    pub(super) erring: Vec<String>,
}

impl Verdict {
    pub(super) const fn has_errors(&self) -> bool {
        !self.erring.is_empty()
    }

    /// The policies that decided: a policy that could not be evaluated decides too, because it denies.
    pub(super) fn into_policies(self) -> Vec<String> {
        let mut policies = self.determining;
        policies.extend(self.erring);
        policies.sort();
        policies.dedup();
        policies
    }
}

/// Evaluates slice by slice and puts the answers together as if they were one policy set.
///
/// INVARIANT: this is exact, because Cedar names the satisfied `forbid` policies of a set if there are
/// any, and otherwise the satisfied `permit` policies.
pub(super) fn evaluate<'s>(
    authorizer: &Authorizer,
    entities: &Entities,
    request: &Request,
    slices: impl Iterator<Item = &'s Slice>,
) -> Verdict {
    let mut permitting = Vec::new();
    let mut forbidding = Vec::new();
    let mut erring = Vec::new();
    for slice in slices {
        let response = authorizer.is_authorized(request, &slice.policies, entities);
        let determining = response.diagnostics().reason().map(ToString::to_string);
        match response.decision() {
            Answer::Allow => permitting.extend(determining),
            Answer::Deny => forbidding.extend(determining),
        }
        for error in response.diagnostics().errors() {
            let cedar_policy::AuthorizationError::PolicyEvaluationError(error) = error;
            erring.push(error.policy_id().to_string());
        }
    }
    let permitted = forbidding.is_empty() && !permitting.is_empty();
    let mut determining = if permitted { permitting } else { forbidding };
    determining.sort();
    determining.dedup();
    erring.sort();
    erring.dedup();
    Verdict {
        permitted,
        determining,
        erring,
    }
}
