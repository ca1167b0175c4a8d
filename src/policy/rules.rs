//! The rules that Cedar does not know: what annotations a policy carries, and that every entity and tier
//! it names exists. A name that does not exist makes a `forbid` that never forbids, in silence.

use std::collections::{BTreeMap, BTreeSet};

use cedar_policy::{Effect, PolicyId};

use super::draft::Draft;
use super::reads::approvals_read;
use crate::diagnostics::Finding;

const ANNOTATIONS: [&str; 4] = ["id", "approval", "description", "reason"];

/// Gives every draft the id of its `@id`, which must be there and unique across all files. Drafts without
/// a usable one get an id of their own, so that the other checks can go on.
pub(super) fn identify(drafts: &mut [Draft<'_>], findings: &mut Vec<Finding>) {
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for (number, draft) in drafts.iter_mut().enumerate() {
        let id = draft
            .policy
            .annotation("id")
            .unwrap_or_default()
            .trim()
            .to_owned();
        if id.is_empty() {
            let finding = draft.error(&["@id"], "the policy has no id");
            let help = "write @id(\"…\") before it: decisions and audit entries name it by this id";
            findings.push(finding.with_help(help));
        } else if let Some(place) = taken.get(&id) {
            let message = format!("the id `{id}` is taken by the policy at {place}");
            findings.push(draft.error(&["@id"], message));
        } else {
            let (line, column) = draft.file.position_of(draft.start);
            taken.insert(
                id.clone(),
                format!("{}:{line}:{column}", draft.file.path.display()),
            );
            draft.policy = draft.policy.new_id(PolicyId::new(id));
            continue;
        }
        // Should another policy really be called this, the two clash and neither is loaded.
        let stand_in = format!("(policy {} without a usable id)", number + 1);
        draft.policy = draft.policy.new_id(PolicyId::new(stand_in));
    }
}

/// Checks one draft against the names that exist, by entity type.
pub(super) fn check(
    draft: &Draft<'_>,
    names: &BTreeMap<&str, BTreeSet<&str>>,
    findings: &mut Vec<Finding>,
) {
    for (annotation, _) in draft.policy.annotations() {
        if !ANNOTATIONS.contains(&annotation) {
            let place = format!("@{annotation}");
            let finding = draft.error(&[&place], format!("unknown annotation `@{annotation}`"));
            findings.push(finding.with_help("known are @id, @approval, @description and @reason"));
        }
    }
    check_entities(draft, names, findings);
    let tiers = names.get("Tier").cloned().unwrap_or_default();
    check_approval(draft, &tiers, findings);
    let read: BTreeSet<&str> = approvals_read(&draft.json, false).into_iter().collect();
    for tier in read {
        if !tiers.contains(tier) && draft.policy.annotation("approval") != Some(tier) {
            let message = format!("there is no tier `{tier}`, so that it can never approve");
            findings.push(
                draft
                    .error(&[&format!("\"{tier}\"")], message)
                    .with_help(listing("tiers", &tiers)),
            );
        }
    }
}

fn check_entities(
    draft: &Draft<'_>,
    names: &BTreeMap<&str, BTreeSet<&str>>,
    findings: &mut Vec<Finding>,
) {
    let mut unknown = BTreeSet::new();
    for uid in draft.policy.entity_literals() {
        let kind = uid.type_name().to_string();
        let id = uid.id().unescaped().to_owned();
        // Types and actions that do not exist are found by Cedar's validator.
        if names
            .get(kind.as_str())
            .is_some_and(|ids| !ids.contains(id.as_str()))
        {
            unknown.insert((uid.to_string(), kind));
        }
    }
    for (uid, kind) in unknown {
        let ids = names.get(kind.as_str()).cloned().unwrap_or_default();
        let finding = draft.error(&[&uid], format!("{uid} does not exist"));
        findings.push(finding.with_help(listing(&format!("ids of type {kind}"), &ids)));
    }
}

fn check_approval(draft: &Draft<'_>, tiers: &BTreeSet<&str>, findings: &mut Vec<Finding>) {
    let at = ["@approval"];
    let waits_for = approvals_read(&draft.json, true);
    let forbids = draft.policy.effect() == Effect::Forbid;
    let Some(tier) = draft.policy.annotation("approval") else {
        if forbids && !waits_for.is_empty() {
            findings.push(draft.note(
                "this forbid ends with an approval but has no @approval, so that calls are denied and not parked",
            ));
        }
        return;
    };
    if !forbids {
        let finding = draft.error(
            &at,
            "@approval stands on a permit, which holds nothing back",
        );
        findings.push(finding.with_help(
            "write a forbid with @approval that ends `unless { context.approvals.contains(\"…\") }`",
        ));
        return;
    }
    if !tiers.contains(tier) {
        let finding = draft.error(&at, format!("there is no tier `{tier}`"));
        findings.push(finding.with_help(listing("tiers", tiers)));
    }
    if !waits_for.contains(&tier) {
        let message = format!(
            "the policy never asks for the approval of `{tier}`, so that it would deny for ever"
        );
        let help = format!("add `unless {{ context.approvals.contains(\"{tier}\") }}`");
        findings.push(draft.error(&at, message).with_help(help));
    }
}

/// The names that exist, as many as fit a line.
fn listing(what: &str, names: &BTreeSet<&str>) -> String {
    if names.is_empty() {
        return format!("there are no {what}");
    }
    let shown: Vec<&str> = names.iter().take(12).copied().collect();
    let more = if names.len() > shown.len() {
        ", …"
    } else {
        ""
    };
    format!("{what} that exist: {}{more}", shown.join(", "))
}
