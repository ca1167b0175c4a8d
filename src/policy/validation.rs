//! Validates the drafts against the generated schema, with Cedar's validator in its strict mode.
//!
//! A policy that can never apply is an error, although Cedar only warns of it: a `forbid` that never
//! applies is a hole that looks like a rule. The one exception are policies for groups of tools that have
//! no tool yet, such as the shipped rule for `consequence:destructive`: they are noted, and take hold with
//! the first such tool. So that what a person reads is what is evaluated, invisible direction marks are
//! errors too; look-alike letters are notes, because names in several scripts can be meant.

use std::collections::{BTreeMap, BTreeSet, HashMap, hash_map::Entry};

use cedar_policy::{
    ActionConstraint, PolicyId, PolicySet, Schema, ValidationError, ValidationMode,
    ValidationResult, ValidationWarning, Validator,
};

use super::draft::{Draft, from_cedar};
use super::schema::{API_GROUP, CONSEQUENCE_GROUP, GeneratedSchema};
use super::world::World;
use crate::diagnostics::Finding;

/// Validates all drafts, whose ids are unique.
pub(super) fn validate(
    drafts: &[Draft<'_>],
    schema: &Schema,
    generated: &GeneratedSchema,
    world: &World<'_>,
    findings: &mut Vec<Finding>,
) {
    let by_id: BTreeMap<&PolicyId, &Draft<'_>> = drafts
        .iter()
        .map(|draft| (draft.policy.id(), draft))
        .collect();
    let mut results = Vec::new();
    let mut invalid = BTreeSet::new();
    for (schema, drafts) in parts(drafts, schema, generated, world) {
        let policies = drafts.iter().map(|draft| draft.policy.clone());
        match PolicySet::from_policies(policies) {
            Ok(set) => results.push(Validator::new(schema).validate(&set, ValidationMode::Strict)),
            Err(error) => {
                let at = drafts.first();
                findings.extend(at.map(|draft| draft.error(&[], error.to_string())));
            }
        }
    }
    for result in &results {
        invalid.extend(report_errors(result, &by_id, findings));
    }
    let tools_of = tools_by_group(world);
    let mut never_applies: BTreeMap<&PolicyId, Finding> = BTreeMap::new();
    let warnings = results
        .iter()
        .flat_map(ValidationResult::validation_warnings);
    for warning in warnings {
        let Some((id, draft)) = by_id.get_key_value(warning.policy_id()) else {
            continue;
        };
        let mut finding = from_cedar(draft.file, warning, draft.start..draft.start);
        match warning {
            // Cedar may warn of both, and the second says more.
            ValidationWarning::ImpossiblePolicy(_) => {
                let never = || never(draft, warning, &tools_of);
                never_applies.entry(id).or_insert_with(never);
            }
            ValidationWarning::InvalidActionApplication(_) => {
                never_applies.insert(id, never(draft, warning, &tools_of));
            }
            ValidationWarning::BidiCharsInString(_)
            | ValidationWarning::BidiCharsInIdentifier(_) => {
                findings.push(finding);
            }
            _ => {
                finding.note = true;
                findings.push(finding);
            }
        }
    }
    never_applies.retain(|id, _| !invalid.contains(id));
    findings.extend(never_applies.into_values());
}

/// Puts drafts together that name the same actions, each part with a schema of only the actions that they
/// can be about: Cedar checks every policy against every action of the schema, which for thousands of
/// tools would take minutes. A draft that is for all actions, or that names one that does not exist,
/// goes with the whole schema.
fn parts<'d, 'f>(
    drafts: &'d [Draft<'f>],
    schema: &Schema,
    generated: &GeneratedSchema,
    world: &World<'_>,
) -> Vec<(Schema, Vec<&'d Draft<'f>>)> {
    let tools_of = tools_by_group(world);
    let mut parts: BTreeMap<Option<BTreeSet<String>>, Vec<&Draft<'f>>> = BTreeMap::new();
    for draft in drafts {
        let actions = actions_of(draft, &tools_of);
        parts.entry(actions).or_default().push(draft);
    }
    let with_schema = parts.into_iter().map(|(actions, drafts)| {
        let part = actions.and_then(|actions| generated.only(&actions));
        (part.unwrap_or_else(|| schema.clone()), drafts)
    });
    with_schema.collect()
}

/// The actions that a policy can be about and those that it names, or `None` for all.
fn actions_of(
    draft: &Draft<'_>,
    tools_of: &BTreeMap<String, Vec<&str>>,
) -> Option<BTreeSet<String>> {
    let scope = match draft.policy.action_constraint() {
        ActionConstraint::Any => return None,
        ActionConstraint::Eq(action) => vec![action],
        ActionConstraint::In(actions) => actions,
    };
    let members = scope
        .iter()
        .filter_map(|action| tools_of.get(action.id().unescaped()))
        .flatten()
        .map(ToString::to_string);
    let named = draft.policy.entity_literals().into_iter();
    let named = named
        .filter(|uid| uid.type_name().basename() == "Action")
        .map(|uid| uid.id().unescaped().to_owned());
    Some(members.chain(named).collect())
}

/// Reports the errors, and returns the ids of the policies that have any.
fn report_errors<'d>(
    result: &ValidationResult,
    by_id: &BTreeMap<&'d PolicyId, &'d Draft<'d>>,
    findings: &mut Vec<Finding>,
) -> BTreeSet<&'d PolicyId> {
    let mut invalid = BTreeSet::new();
    let mut told: HashMap<_, (Finding, usize)> = HashMap::new();
    for error in result.validation_errors() {
        let Some(draft) = by_id.get(error.policy_id()) else {
            continue;
        };
        invalid.insert(draft.policy.id());
        let finding = invalid_policy(draft, error);
        let (_, line, column) = finding.place();
        // Cedar says the same of every tool that a policy applies to; one of them is told.
        let kind = std::mem::discriminant(error);
        let place = (error.policy_id(), line, column, kind);
        match told.entry(place) {
            Entry::Vacant(new) => {
                new.insert((finding, 0));
            }
            Entry::Occupied(mut old) => {
                let (first, more) = old.get_mut();
                *more += 1;
                if finding.message < first.message {
                    *first = finding;
                }
            }
        }
    }
    findings.extend(told.into_values().map(|(mut finding, more)| {
        if more > 0 {
            finding.message = format!("{} (and {more} more of this kind here)", finding.message);
        }
        finding
    }));
    invalid
}

fn invalid_policy(draft: &Draft<'_>, error: &ValidationError) -> Finding {
    let finding = from_cedar(draft.file, error, draft.start..draft.start);
    match (&finding.help, error) {
        (None, ValidationError::UnsafeAttributeAccess(_)) => finding.with_help(
            "`toolgate policy schema` prints what policies can read; \
             what they cannot read of a tool's arguments, `toolgate check` lists",
        ),
        _ => finding,
    }
}

fn never(
    draft: &Draft<'_>,
    warning: &ValidationWarning,
    tools_of: &BTreeMap<String, Vec<&str>>,
) -> Finding {
    if waits_for_tools(draft, tools_of) {
        return draft.note("no tool belongs to the groups that this policy is for, so that it applies to nothing yet");
    }
    let message = "this policy can never apply";
    let help = match warning {
        ValidationWarning::InvalidActionApplication(_) => {
            "none of its actions goes with its kind of principal and resource: agents call tools on an Api, operators act on a Tier or a Gateway"
        }
        _ => {
            "its conditions are false for every tool: is an argument misspelt, or not one of these tools?"
        }
    };
    draft
        .error(&["permit (", "permit(", "forbid (", "forbid("], message)
        .with_help(help)
}

/// Whether the policy is for groups of tools only, and all of them are empty.
fn waits_for_tools(draft: &Draft<'_>, tools_of: &BTreeMap<String, Vec<&str>>) -> bool {
    let actions = match draft.policy.action_constraint() {
        ActionConstraint::Any => return false,
        ActionConstraint::Eq(action) => vec![action],
        ActionConstraint::In(actions) => actions,
    };
    actions.iter().all(|action| {
        let id = action.id().unescaped();
        let is_group = id.starts_with(API_GROUP) || id.starts_with(CONSEQUENCE_GROUP);
        is_group && !tools_of.contains_key(id)
    })
}

fn tools_by_group<'w>(world: &World<'w>) -> BTreeMap<String, Vec<&'w str>> {
    let mut tools: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for tool in &world.tools {
        let groups = [
            format!("{API_GROUP}{}", tool.api),
            format!("{CONSEQUENCE_GROUP}{}", tool.consequence),
        ];
        for group in groups {
            tools.entry(group).or_default().push(tool.name);
        }
    }
    tools
}
