//! Decisions on operators' acts.

use super::deciding::EXAMPLE;
use super::*;

const FACTS: ApprovalFacts<'static> = ApprovalFacts {
    agent: "support-bot",
    owner: "carol",
    triggered_by: "alice",
    tool: "desk.refunds.create",
    api: "desk",
    consequence: "money_movement",
    run: "run_1",
};

const HALT: OperatorContext<'static> = OperatorContext::KillSwitch {
    kind: "tool",
    id: "desk.refunds.create",
};

const DELEGATION: OperatorContext<'static> = OperatorContext::Delegation {
    from: "olga",
    to: "sam",
};

fn on_tier(policies: &Policies, operator: &str, action: OperatorAction, tier: &str) -> bool {
    let context = OperatorContext::Approval(FACTS);
    let decision =
        policies.decide_operator(operator, action, OperatorResource::Tier(tier), context);
    assert!(!decision.errors);
    assert_eq!(decision.permitted, !decision.policies.is_empty());
    decision.permitted
}

#[test]
fn only_members_of_the_tiers_roles_and_groups_approve() {
    let policies = loaded(&Contracts::desk(), EXAMPLE);
    assert!(on_tier(
        &policies,
        "sam",
        OperatorAction::Approve,
        "treasury"
    ));
    assert!(!on_tier(
        &policies,
        "olga",
        OperatorAction::Approve,
        "treasury"
    ));
    assert!(on_tier(
        &policies,
        "olga",
        OperatorAction::Approve,
        "finance"
    ));
    assert!(on_tier(&policies, "olga", OperatorAction::Deny, "finance"));
    assert!(on_tier(
        &policies,
        "sam",
        OperatorAction::Approve,
        "security"
    ));
    assert!(!on_tier(
        &policies,
        "sam",
        OperatorAction::Approve,
        "finance"
    ));
    assert!(!on_tier(
        &policies,
        "nobody",
        OperatorAction::Approve,
        "finance"
    ));
    assert!(!on_tier(
        &policies,
        "olga",
        OperatorAction::Resolve,
        "finance"
    ));
    assert!(!on_tier(
        &policies,
        "olga",
        OperatorAction::Approve,
        "no-such-tier"
    ));
    assert!(!on_tier(
        &policies,
        "no-such-operator",
        OperatorAction::Approve,
        "finance"
    ));
}

#[test]
fn halting_is_a_right_of_its_own_and_the_default_is_no() {
    let policies = loaded(&Contracts::desk(), EXAMPLE);
    let ask = |operator, action, context| {
        policies.decide_operator(operator, action, OperatorResource::Gateway, context)
    };
    let halted = ask("sam", OperatorAction::Halt, HALT);
    assert!(halted.permitted);
    assert_eq!(halted.policies, ["on-call"]);
    assert!(ask("sam", OperatorAction::Resume, HALT).permitted);
    assert_eq!(
        ask("olga", OperatorAction::Halt, HALT),
        OperatorDecision::default()
    );
    assert_eq!(
        ask("sam", OperatorAction::ReadAudit, OperatorContext::Empty),
        OperatorDecision::default()
    );
}

#[test]
fn an_action_with_another_resource_or_context_is_not_permitted() {
    let text = format!(
        r#"{EXAMPLE} @id("admin") permit (principal == Operator::"nobody", action, resource);"#
    );
    let policies = loaded(&Contracts::desk(), &text);
    let ask = |action, resource, context| {
        policies
            .decide_operator("nobody", action, resource, context)
            .permitted
    };
    let (tier, facts) = (
        OperatorResource::Tier("finance"),
        OperatorContext::Approval(FACTS),
    );
    for action in OperatorAction::ALL {
        let (right, resource) = match action.as_str() {
            "approve" | "deny" => (facts, tier),
            "resolve" | "take_over" | "revoke_permission" => (facts, OperatorResource::Gateway),
            "halt" | "resume" => (HALT, OperatorResource::Gateway),
            "delegate" | "revoke_delegation" => (DELEGATION, OperatorResource::Gateway),
            _ => (OperatorContext::Empty, OperatorResource::Gateway),
        };
        for context in [facts, HALT, DELEGATION, OperatorContext::Empty] {
            for at in [tier, OperatorResource::Gateway] {
                let fits = at == resource
                    && std::mem::discriminant(&context) == std::mem::discriminant(&right);
                assert_eq!(
                    ask(action, at, context),
                    fits,
                    "{action:?} {at:?} {context:?}"
                );
            }
        }
    }
}

#[test]
fn forbid_wins_over_an_operator_and_reads_the_call() {
    let text = format!(
        r#"{EXAMPLE} @id("not-your-own") forbid (principal == Operator::"olga", action == Action::"approve", resource)
when {{ context.owner == "olga" || context.triggered_by == "olga" }};"#
    );
    let policies = loaded(&Contracts::desk(), &text);
    let ask = |facts| {
        let context = OperatorContext::Approval(facts);
        policies.decide_operator(
            "olga",
            OperatorAction::Approve,
            OperatorResource::Tier("finance"),
            context,
        )
    };
    assert!(ask(FACTS).permitted);
    let own = ask(ApprovalFacts {
        triggered_by: "olga",
        ..FACTS
    });
    assert_eq!(
        own,
        OperatorDecision {
            permitted: false,
            policies: vec!["not-your-own".to_owned()],
            errors: false
        }
    );
}

#[test]
fn an_evaluation_error_denies_an_operator() {
    let text = format!(
        r#"{EXAMPLE} @id("broken") forbid (principal is Operator, action == Action::"approve", resource)
when {{ context.run like "overflow" && 9223372036854775807 + (if context.agent == "x" then 2 else 1) == 3 }};"#
    );
    let policies = loaded(&Contracts::desk(), &text);
    let ask = |run| {
        let context = OperatorContext::Approval(ApprovalFacts { run, ..FACTS });
        policies.decide_operator(
            "olga",
            OperatorAction::Approve,
            OperatorResource::Tier("finance"),
            context,
        )
    };
    assert!(ask("run_1").permitted);
    let decision = ask("overflow");
    assert!(!decision.permitted && decision.errors);
    assert!(decision.policies.contains(&"broken".to_owned()));
}
