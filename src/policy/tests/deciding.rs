//! Decisions on agents' calls.

use super::*;

/// What the documentation shows: reads permitted, refunds up to 5000 unattended, up to 100000 after
/// finance has approved, and no dangerous tool without security.
pub(super) const EXAMPLE: &str = r#"
// Everybody may look.
@id("reads")
permit (principal is Agent, action in Action::"consequence:read", resource);

@id("refunds")
@description("Support refunds customers.")
permit (
  principal in AgentGroup::"support",
  action == Action::"desk.refunds.create",
  resource == Api::"desk"
) when { context.input.amount > 0 && context.input.amount <= 100000 };

@id("refunds-above-5000")
@approval("finance")
forbid (principal, action == Action::"desk.refunds.create", resource)
when { context.input.amount > 5000 }
unless { context.approvals.contains("finance") };

@id("purge")
permit (principal in AgentGroup::"support", action == Action::"desk.tickets.purge", resource);

@id("dangerous-tools")
@approval("security")
forbid (
  principal is Agent,
  action in [Action::"consequence:destructive", Action::"consequence:permission_change"],
  resource
) unless { context.approvals.contains("security") };

@id("tier-members")
permit (
  principal is Operator,
  action in [Action::"approve", Action::"deny"],
  resource is Tier
) when { principal in resource.roles || principal in resource.groups };

@id("on-call")
permit (principal in Role::"on-call", action in [Action::"halt", Action::"resume"], resource == Gateway::"toolgate");
"#;

fn example() -> Policies {
    loaded(&Contracts::desk(), EXAMPLE)
}

fn get() -> Call {
    Call::new("desk.tickets.get", json!({"id": "t1"}))
}

#[test]
fn what_no_policy_permits_is_denied() {
    let close = Call::new("desk.tickets.close", json!({"id": "t1"}));
    assert_eq!(close.decide(&example()), deny(&[]));
    assert_eq!(Call::refund(1).by("lone-bot").decide(&example()), deny(&[]));
}

#[test]
fn the_example_parks_between_its_two_limits() {
    let policies = example();
    assert_eq!(get().decide(&policies), permit(&["reads"]));
    assert_eq!(Call::refund(5000).decide(&policies), permit(&["refunds"]));
    let parked = park(&["finance"], &["refunds-above-5000"]);
    assert_eq!(Call::refund(5001).decide(&policies), parked);
    assert_eq!(Call::refund(100_000).decide(&policies), parked);
    assert_eq!(
        Call::refund(100_001).decide(&policies),
        deny(&["refunds-above-5000"])
    );
    assert_eq!(Call::refund(0).decide(&policies), deny(&[]));
}

#[test]
fn earned_approvals_permit_and_only_the_right_ones() {
    let policies = example();
    assert_eq!(
        Call::refund(5001).earned(&["finance"]).decide(&policies),
        permit(&["refunds"])
    );
    let wrong = Call::refund(5001).earned(&["security"]).decide(&policies);
    assert_eq!(wrong, park(&["finance"], &["refunds-above-5000"]));
    let above = Call::refund(100_001).earned(&["finance"]).decide(&policies);
    assert_eq!(above, deny(&[]));
}

#[test]
fn a_group_rule_parks_every_tool_of_its_consequence() {
    let purge = Call::new("desk.tickets.purge", json!({"id": "t1"}));
    assert_eq!(
        purge.decide(&example()),
        park(&["security"], &["dangerous-tools"])
    );
    assert_eq!(
        purge.earned(&["security"]).decide(&example()),
        permit(&["purge"])
    );
}

#[test]
fn forbid_wins() {
    let text = r#"@id("all") permit (principal is Agent, action, resource);
@id("never") forbid (principal == Agent::"support-bot", action == Action::"desk.tickets.get", resource);"#;
    let policies = loaded(&Contracts::desk(), text);
    assert_eq!(get().decide(&policies), deny(&["never"]));
    assert_eq!(get().by("report-bot").decide(&policies), permit(&["all"]));
}

#[test]
fn an_error_in_any_policy_denies() {
    let overflow = r#"when { context.input.amount + 1 > 0 }"#;
    for effect in ["permit", "forbid"] {
        let text = format!(
            r#"@id("all") permit (principal is Agent, action, resource);
@id("sum") {effect} (principal, action == Action::"desk.refunds.create", resource) {overflow} unless {{ context.input.amount < 1 || context.input.amount == 7 }};"#
        );
        let policies = loaded(&Contracts::desk(), &text);
        let (deciding, detail) = failed(Call::refund(i64::MAX).decide(&policies));
        assert!(deciding.contains(&"sum".to_owned()), "{deciding:?}");
        assert!(
            detail.contains("sum") && !detail.contains(&i64::MAX.to_string()),
            "{detail}"
        );
        assert_eq!(Call::refund(7).decide(&policies), permit(&["all"]));
    }
}

#[test]
fn an_error_that_only_the_second_evaluation_meets_denies_too() {
    let text = r#"@id("all") permit (principal is Agent, action, resource);
@id("wait") @approval("finance") forbid (principal is Agent, action, resource) unless { context.approvals.contains("finance") };
@id("sum") forbid (principal, action == Action::"desk.refunds.create", resource)
when { context.approvals.contains("finance") && context.input.amount + 1 < 0 };"#;
    let policies = loaded(&Contracts::desk(), text);
    assert_eq!(
        Call::refund(1).decide(&policies),
        park(&["finance"], &["wait"])
    );
    let (deciding, _) = failed(Call::refund(i64::MAX).decide(&policies));
    assert_eq!(deciding, ["sum", "wait"]);
}

#[test]
fn two_tiers_add_up() {
    let text = r#"@id("all") permit (principal is Agent, action, resource);
@id("a") @approval("security") forbid (principal is Agent, action, resource) unless { context.approvals.contains("security") };
@id("b") @approval("finance") forbid (principal is Agent, action in Action::"api:desk", resource) unless { context.approvals.contains("finance") };
@id("c") @approval("finance") forbid (principal is Agent, action in Action::"consequence:read", resource) unless { context.approvals.contains("finance") };"#;
    let policies = loaded(&Contracts::desk(), text);
    assert_eq!(
        get().decide(&policies),
        park(&["finance", "security"], &["a", "b", "c"])
    );
    assert_eq!(
        get().earned(&["security"]).decide(&policies),
        park(&["finance"], &["b", "c"])
    );
    assert_eq!(
        get().earned(&["security", "finance"]).decide(&policies),
        permit(&["all"])
    );
}

#[test]
fn a_plain_forbid_beside_an_approval_denies() {
    let text = r#"@id("all") permit (principal is Agent, action, resource);
@id("wait") @approval("finance") forbid (principal is Agent, action, resource) unless { context.approvals.contains("finance") };
@id("never") forbid (principal is Agent, action == Action::"desk.tickets.get", resource);"#;
    let policies = loaded(&Contracts::desk(), text);
    assert_eq!(get().decide(&policies), deny(&["never", "wait"]));
    assert_eq!(
        Call::refund(1).decide(&policies),
        park(&["finance"], &["wait"])
    );
}

#[test]
fn a_forbid_without_annotation_denies_even_if_the_approval_would_end_it() {
    let waits = r#"forbid (principal is Agent, action, resource) unless { context.approvals.contains("finance") };"#;
    let text = format!(
        r#"@id("all") permit (principal is Agent, action, resource);
@id("a") @approval("finance") {waits} @id("b") {waits}"#
    );
    let policies = loaded(&Contracts::desk(), &text);
    assert_eq!(get().decide(&policies), deny(&["a", "b"]));
    assert_eq!(
        get().earned(&["finance"]).decide(&policies),
        permit(&["all"])
    );
}

#[test]
fn what_approval_would_not_permit_is_not_parked() {
    // No policy permits the call, approved or not.
    let text = r#"@id("reads") permit (principal is Agent, action in Action::"consequence:read", resource);
@id("wait") @approval("finance") forbid (principal is Agent, action, resource) unless { context.approvals.contains("finance") };
@id("both") @approval("security") forbid (principal is Agent, action == Action::"desk.tickets.get", resource)
unless { context.approvals.contains("security") && context.run.implicit };"#;
    let policies = loaded(&Contracts::desk(), text);
    assert_eq!(Call::refund(1).decide(&policies), deny(&["wait"]));
    assert_eq!(get().decide(&policies), deny(&["both", "wait"]));
}

#[test]
fn an_omitted_argument_does_not_slip_past_a_rule_on_it() {
    let text = r#"@id("refunds") permit (principal is Agent, action == Action::"desk.refunds.create", resource)
when { context.input has fee && context.input.fee < 10 };"#;
    let policies = loaded(&Contracts::desk(), text);
    assert_eq!(Call::refund(1).decide(&policies), deny(&[]));
    let with_fee = Call::new(
        "desk.refunds.create",
        json!({"amount": 1, "customer": "c", "fee": 3}),
    );
    assert_eq!(with_fee.decide(&policies), permit(&["refunds"]));
    let without_amount = Call::new("desk.refunds.create", json!({"customer": "c", "fee": 3}));
    let (_, detail) = failed(without_amount.decide(&policies));
    assert_eq!(detail, "argument `/amount` is missing");
}

#[test]
fn what_does_not_exist_or_does_not_fit_is_denied() {
    let policies = loaded(
        &Contracts::desk(),
        r#"@id("all") permit (principal is Agent, action, resource);"#,
    );
    assert_eq!(get().decide(&policies), permit(&["all"]));
    let mut elsewhere = get();
    elsewhere.api = "mail";
    let calls = [
        get().by("unknown-bot"),
        Call::new("desk.tickets.shred", json!({})),
        Call::new("api:desk", json!({})),
        Call::new("approve", json!({})),
        elsewhere,
        Call::new("desk.tickets.get", json!({"id": 7})),
        Call::new("desk.tickets.get", json!({"id": null})),
        Call::new("desk.tickets.get", json!({"id": "t", "extra": 1})),
    ];
    for call in calls {
        assert_eq!(
            failed(call.decide(&policies)).0,
            Vec::<String>::new(),
            "{} {}",
            call.tool,
            call.arguments
        );
    }
}

#[test]
fn run_and_time_are_in_the_context() {
    let text = r#"@id("scoped") permit (principal is Agent, action == Action::"desk.tickets.get", resource)
when { context.run.scopes.contains("desk:read") && !context.run.implicit && context.run.triggered_by == "alice"
  && context.run.id == "run_1" && context.run.purpose like "ticket*" };
@id("early") permit (principal is Agent, action == Action::"desk.tickets.close", resource)
when { context.now < datetime("2026-02-02T02:40:00.001Z") };"#;
    let policies = loaded(&Contracts::desk(), text);
    assert_eq!(get().decide(&policies), permit(&["scoped"]));
    let (mut unscoped, mut implicit) = (get(), get());
    unscoped.scopes.clear();
    implicit.implicit = true;
    assert_eq!(unscoped.decide(&policies), deny(&[]));
    assert_eq!(implicit.decide(&policies), deny(&[]));

    // 1770000000000 is 2026-02-02T02:40:00.000Z.
    let mut close = Call::new("desk.tickets.close", json!({"id": "t1"}));
    assert_eq!(close.decide(&policies), permit(&["early"]));
    close.now_millis += 1;
    assert_eq!(close.decide(&policies), deny(&[]));
    close.now_millis = i64::MAX;
    assert_eq!(
        failed(close.decide(&policies)).1,
        "the time is outside the range of dates that can be written"
    );
}

#[test]
fn the_digest_changes_with_the_policies_and_the_contracts_only() {
    let contracts = Contracts::desk();
    let files = |a: &str, b: &str| [SourceFile::new("a.cedar", a), SourceFile::new("b.cedar", b)];
    let (reads, never) = (
        r#"@id("reads") permit (principal is Agent, action, resource);"#,
        r#"@id("never") forbid (principal == Agent::"lone-bot", action, resource);"#,
    );
    let digest = |files: &[SourceFile]| {
        load(files, &contracts.world())
            .0
            .unwrap()
            .digest()
            .to_owned()
    };
    let original = digest(&files(reads, never));
    assert!(
        original.starts_with("sha256:") && original.len() == 71,
        "{original}"
    );
    assert_eq!(
        digest(&files(never, &format!("// moved\n{reads}"))),
        original
    );
    assert_ne!(
        digest(&files(reads, &never.replace("lone", "report"))),
        original
    );
    let mut other = Contracts::desk();
    other.0.pop();
    assert_ne!(
        load(&files(reads, never), &other.world())
            .0
            .unwrap()
            .digest(),
        original
    );
}

#[test]
fn policies_give_their_own_text_and_ids() {
    let policies = example();
    let text = policies.text_of("refunds-above-5000").unwrap();
    assert!(
        text.starts_with("@id(\"refunds-above-5000\")\n@approval")
            && text.ends_with("contains(\"finance\") };"),
        "{text}"
    );
    assert_eq!(policies.text_of("Everybody"), None);
    assert_eq!(policies.ids().next(), Some("dangerous-tools"));
    assert_eq!(policies.ids().count(), 7);
}
