//! Proves that deciding over slices is deciding over all policies.

use proptest::prelude::*;

use super::*;
use crate::policy::reads::Reads;
use crate::policy::slices::Slice;

const CONDITIONS: [&str; 12] = [
    "",
    "when { context.input has amount && context.input.amount > 50 }",
    "when { context.input has amount && context.input.amount + 1 > 0 }",
    "unless { context.input has amount && context.input.amount * 2 == 4 }",
    "unless { context.approvals.contains(\"finance\") }",
    "unless { context.approvals.contains(\"security\") }",
    "when { context.run.implicit }",
    "when { context.now < datetime(\"2026-02-02\") }",
    "unless { context.run.scopes.contains(\"desk:read\") }",
    "when { context has now && context has run && [context].contains(context) }",
    "when { principal in AgentGroup::\"support\" }",
    "when { action in Action::\"consequence:read\" || context.input has id }",
];
const PRINCIPALS: [&str; 7] = [
    "principal is Agent",
    "principal == Agent::\"support-bot\"",
    "principal in Agent::\"lone-bot\"",
    "principal in AgentGroup::\"support\"",
    "principal is Agent in AgentGroup::\"reporting\"",
    "principal is Agent in AgentGroup::\"support\"",
    "principal == Agent::\"report-bot\"",
];
const ACTIONS: [&str; 7] = [
    "action",
    "action == Action::\"desk.refunds.create\"",
    "action in Action::\"desk.tickets.get\"",
    "action in Action::\"api:desk\"",
    "action in [Action::\"consequence:read\", Action::\"consequence:money_movement\"]",
    "action in [Action::\"api:desk\", Action::\"consequence:destructive\", Action::\"api:desk\"]",
    "action in [Action::\"desk.tickets.close\", Action::\"desk.tickets.purge\", Action::\"consequence:read\"]",
];
const RESOURCES: [&str; 3] = ["resource", "resource == Api::\"desk\"", "resource is Api"];

fn policy() -> impl Strategy<Value = String> {
    let approvals = "unless { context.approvals.contains(\"finance\") }";
    (
        any::<bool>(),
        0..PRINCIPALS.len(),
        0..ACTIONS.len(),
        0..RESOURCES.len(),
        0..CONDITIONS.len(),
    )
        .prop_map(move |(permit, principal, action, resource, condition)| {
            let condition = CONDITIONS[condition];
            let annotation = match (permit, condition) {
                (false, _) if condition == approvals => "@approval(\"finance\") ",
                (false, "unless { context.approvals.contains(\"security\") }") => {
                    "@approval(\"security\") "
                }
                _ => "",
            };
            let effect = if permit { "permit" } else { "forbid" };
            let (principal, action, resource) =
                (PRINCIPALS[principal], ACTIONS[action], RESOURCES[resource]);
            format!("{annotation}{effect} ({principal}, {action}, {resource}) {condition};")
        })
}

fn call() -> impl Strategy<Value = Call> {
    let agents = prop::sample::select(vec!["support-bot", "report-bot", "lone-bot"]);
    let tickets = prop::sample::select(vec![
        "desk.tickets.get",
        "desk.tickets.close",
        "desk.tickets.purge",
    ])
    .prop_map(|tool| Call::new(tool, json!({"id": "t"})));
    let amounts = prop::sample::select(vec![i64::MIN, -1, 2, 51, i64::MAX - 1, i64::MAX]);
    let called = prop_oneof![tickets, amounts.prop_map(Call::refund)];
    let earned = prop::sample::subsequence(vec!["finance", "security"], 0..=2);
    let days = prop::sample::select(vec![-400_i64, -1, 0, 400]);
    (agents, called, earned, days, any::<bool>(), any::<bool>()).prop_map(
        |(agent, call, earned, days, implicit, scoped)| {
            let mut call = call.by(agent).earned(&earned);
            call.now_millis += days * 86_400_000;
            call.implicit = implicit;
            if !scoped {
                call.scopes.clear();
            }
            call
        },
    )
}

/// One slice that holds every policy and is given the whole context.
fn whole(policies: &Policies) -> Slice {
    let mut whole = Slice::default();
    for id in policies.ids() {
        let parsed = cedar_policy::Policy::parse(
            Some(cedar_policy::PolicyId::new(id)),
            policies.text_of(id).unwrap(),
        )
        .unwrap();
        whole.add(&parsed, Reads::EVERYTHING).unwrap();
    }
    whole
}

fn text_of(rules: &[String]) -> String {
    let base = "@id(\"base\") permit (principal is Agent, action in Action::\"consequence:read\", resource);";
    let rules = rules
        .iter()
        .enumerate()
        .map(|(number, rule)| format!("@id(\"p{number}\") {rule}"));
    std::iter::once(base.to_owned())
        .chain(rules)
        .collect::<Vec<_>>()
        .join("\n")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn slices_decide_as_the_whole_set_does(rules in prop::collection::vec(policy(), 0..12), calls in prop::collection::vec(call(), 24)) {
        let text = text_of(&rules);
        // Some combinations can never apply, which is an error at load: those are left out. Each rule
        // has a line of its own, after the base rule's.
        let (_, findings) = load_in(&Contracts::desk(), &text);
        let refused: BTreeSet<usize> = findings.iter().filter(|finding| !finding.note).map(|finding| finding.place().1 - 2).collect();
        let rules: Vec<String> = rules.into_iter().enumerate().filter(|(line, _)| !refused.contains(line)).map(|(_, rule)| rule).collect();
        let text = text_of(&rules);
        let policies = loaded(&Contracts::desk(), &text);
        let whole = whole(&policies);
        for call in calls {
            let request = call.request();
            let (agent, tool) = (&policies.agents[call.agent], &policies.tools[&call.tool]);
            let expected = policies.decide_over(&request, agent, tool, std::iter::once(&whole)).unwrap();
            prop_assert_eq!(policies.decide(&request), expected, "{}\n{} {}", text, call.agent, call.tool);
        }
    }
}

#[test]
fn a_decision_evaluates_only_what_can_apply() {
    let mut text = r#"@id("mine") permit (principal == Agent::"support-bot", action == Action::"desk.tickets.get", resource);"#.to_owned();
    for number in 0..50 {
        text.push_str(&format!(r#"@id("other{number}") permit (principal == Agent::"lone-bot", action == Action::"desk.tickets.get", resource);"#));
        text.push_str(&format!(r#"@id("close{number}") permit (principal is Agent, action == Action::"desk.tickets.close", resource);"#));
    }
    let policies = loaded(&Contracts::desk(), &text);
    let (agent, tool) = (
        &policies.agents["support-bot"],
        &policies.tools["desk.tickets.get"],
    );
    assert_eq!(
        policies
            .slices
            .applying(&agent.rows, &tool.columns)
            .map(Slice::len)
            .sum::<usize>(),
        1
    );
}

#[test]
fn policies_are_validated_against_their_own_actions_as_against_all() {
    let contracts = Contracts::desk();
    let schema = GeneratedSchema::of(&contracts.world()).json;
    let schema = cedar_policy::Schema::from_json_value(schema).unwrap();
    let validator = cedar_policy::Validator::new(schema);
    let others = [
        "when { context.input.amount > 1 }",
        "when { context.input.id == \"x\" }",
        "when { action == Action::\"desk.tickets.purge\" }",
        "when { action in Action::\"api:mail\" }",
        "when { action == Action::\"nothing\" }",
    ];
    let base = "@id(\"base\") permit (principal is Agent, action, resource);";
    let (mut right, mut wrong) = (0, 0);
    for action in ACTIONS {
        for condition in CONDITIONS.iter().chain(&others) {
            let rule =
                format!("@id(\"x\") permit (principal is Agent, {action}, resource) {condition};");
            let set: cedar_policy::PolicySet = rule.parse().unwrap();
            let whole = validator.validate(&set, cedar_policy::ValidationMode::Strict);
            let expected = whole.validation_passed_without_warnings();
            let (policies, findings) = load_in(&contracts, &format!("{base}\n{rule}"));
            assert_eq!(policies.is_some(), expected, "{rule} {findings:?} {whole}");
            *(if expected { &mut right } else { &mut wrong }) += 1;
        }
    }
    assert!(right > 30 && wrong > 20, "{right} {wrong}");
}
