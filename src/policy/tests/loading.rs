//! What is refused when policies are loaded, and where the finding points.

use super::*;

const READS: &str =
    r#"@id("reads") permit (principal is Agent, action in Action::"consequence:read", resource);"#;

/// The only error of `READS` and a policy after it.
fn error(policy: &str) -> String {
    let found = errors(&format!("{READS}\n{policy}"));
    assert_eq!(found.len(), 1, "{found:#?}");
    found.into_iter().next().unwrap()
}

fn assert_error(policy: &str, place: &str, message: &str) {
    let error = error(policy);
    assert!(
        error.starts_with(&format!("rules.cedar:{place}: ")) && error.contains(message),
        "{error}"
    );
}

#[test]
fn what_parses_is_accepted_and_notes_are_no_errors() {
    assert_eq!(errors(READS), Vec::<String>::new());
}

#[test]
fn a_missing_context_field_is_an_error_at_its_line_and_column() {
    assert_error(
        "// a comment\n@id(\"x\")\nforbid (principal, action == Action::\"desk.refunds.create\", resource)\n  when { context.input.amuont > 3 };",
        "5:10",
        "amuont",
    );
    assert_error(
        r#"@id("x") forbid (principal, action == Action::"desk.tickets.get", resource) when { context.input.id > 3 };"#,
        "2:84",
        "unexpected type",
    );
    assert_error(
        r#"@id("x") forbid (principal, action == Action::"desk.refunds.create", resource) when { context.input.note == "" };"#,
        "2:87",
        "note",
    );
}

#[test]
fn a_policy_that_does_not_parse_is_an_error_at_its_place() {
    let found = errors("@id(\"x\")\npermit (principal, action resource);");
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].starts_with("rules.cedar:2:27: unexpected token"),
        "{found:?}"
    );
}

#[test]
fn every_problem_of_every_file_is_reported_together() {
    let files = [
        SourceFile::new("z.cedar", "permit (principal, action, resource)"),
        SourceFile::new(
            "a.cedar",
            r#"permit (principal is Agent, action, resource) when { context.nothing };"#,
        ),
        SourceFile::new(
            "b.cedar",
            r#"@id("b") forbid (principal == Agent::"suport-bot", action, resource);"#,
        ),
    ];
    let (policies, findings) = load(&files, &Contracts::desk().world());
    assert!(policies.is_none());
    let found: Vec<_> = findings.iter().map(ToString::to_string).collect();
    let starts = [
        "z.cedar:1:37",
        "a.cedar:1:1: the policy has no id",
        "a.cedar:1:54",
        "b.cedar:1:31",
    ];
    assert_eq!(found.len(), starts.len(), "{found:#?}");
    for (found, start) in found.iter().zip(starts) {
        assert!(found.starts_with(start), "{found} {start}");
    }
}

#[test]
fn every_policy_needs_an_id_of_its_own() {
    let forbid = r#"forbid (principal == Agent::"lone-bot", action, resource);"#;
    assert_error(forbid, "2:1", "the policy has no id");
    assert_error(&format!("@id\n{forbid}"), "2:1", "the policy has no id");
    assert_error(
        &format!(r#"@id("reads") {forbid}"#),
        "2:1",
        "taken by the policy at rules.cedar:1:1",
    );
    let files = ["a.cedar", "b.cedar"].map(|path| SourceFile::new(path, READS));
    let (policies, findings) = load(&files, &Contracts::desk().world());
    assert!(policies.is_none());
    assert_eq!(findings[0].place(), ("b.cedar".to_owned(), 1, 1));
}

#[test]
fn unknown_annotations_are_errors() {
    assert_error(
        r#"@id("x") @aproval("finance") forbid (principal == Agent::"lone-bot", action, resource);"#,
        "2:10",
        "@aproval",
    );
    let known = r#"@id("x") @reason("r") @description("d") forbid (principal == Agent::"lone-bot", action, resource);"#;
    assert_eq!(errors(&format!("{READS}{known}")), Vec::<String>::new());
}

#[test]
fn approval_stands_on_forbid_only() {
    assert_error(
        r#"@id("x") @approval("finance") permit (principal is Agent, action, resource) when { context.approvals.contains("finance") };"#,
        "2:10",
        "stands on a permit",
    );
}

#[test]
fn approval_names_a_tier_that_the_policy_waits_for() {
    assert_error(
        r#"@id("x") @approval("fynance") forbid (principal is Agent, action, resource) unless { context.approvals.contains("fynance") };"#,
        "2:10",
        "there is no tier `fynance`",
    );
    for waits in [
        "",
        r#"unless { context.approvals.contains("security") }"#,
        r#"unless { context.approvals.containsAny(["finance"]) }"#,
        r#"unless { context.run.scopes.contains("finance") }"#,
        r#"unless { context.approvals.contains(context.run.id) && context.run.id == "finance" }"#,
    ] {
        let policy = format!(
            r#"@id("x") @approval("finance") forbid (principal is Agent, action, resource) {waits};"#
        );
        assert_error(&policy, "2:10", "would deny for ever");
    }
}

#[test]
fn a_tier_that_does_not_exist_is_an_error_wherever_it_is_asked_for() {
    for asks in [
        r#"contains("nobody")"#,
        r#"containsAll(["finance", "nobody"])"#,
        r#"containsAny(["nobody"])"#,
    ] {
        let policy = format!(
            r#"@id("x") permit (principal is Agent, action, resource) when {{ context.approvals.{asks} }};"#
        );
        assert!(error(&policy).contains("there is no tier `nobody`"));
    }
}

#[test]
fn a_forbid_that_waits_without_annotation_is_noted() {
    let text = format!(
        r#"{READS} @id("x") forbid (principal is Agent, action, resource) unless {{ context.approvals.contains("finance") }};"#
    );
    let (policies, findings) = load_in(&Contracts::desk(), &text);
    assert!(policies.is_some());
    assert!(
        findings.len() == 1 && findings[0].note && findings[0].message.contains("no @approval"),
        "{findings:?}"
    );
}

#[test]
fn entities_that_do_not_exist_are_errors_where_they_stand() {
    let cases = [
        (
            r#"principal == Agent::"suport-bot", action, resource"#,
            "2:31",
            "suport-bot",
        ),
        (
            r#"principal in AgentGroup::"suport", action, resource"#,
            "2:31",
            "suport",
        ),
        (
            r#"principal is Agent, action == Action::"desk.tickets.got", resource"#,
            "2:48",
            "desk.tickets.got",
        ),
        (
            r#"principal is Agent, action in Action::"api:dsk", resource"#,
            "2:48",
            "api:dsk",
        ),
        (
            r#"principal is Agent, action, resource == Api::"dsk""#,
            "2:58",
            "dsk",
        ),
        (
            r#"principal in Role::"finanse", action, resource"#,
            "2:31",
            "finanse",
        ),
        (
            r#"principal == Operator::"olgo", action, resource"#,
            "2:31",
            "olgo",
        ),
        (
            r#"principal is Operator, action, resource == Tier::"finanse""#,
            "2:61",
            "finanse",
        ),
        (
            r#"principal is Operator, action, resource == Gateway::"other""#,
            "2:61",
            "other",
        ),
    ];
    for (scope, place, name) in cases {
        assert_error(&format!(r#"@id("x") forbid ({scope});"#), place, name);
    }
    assert_error(
        r#"@id("x") forbid (principal is Agent, action, resource) when { principal in AgentGroup::"nobody" };"#,
        "2:76",
        "does not exist",
    );
    assert!(
        !errors(&format!(
            r#"{READS} @id("x") forbid (principal is Agnet, action, resource);"#
        ))
        .is_empty()
    );
}

#[test]
fn templates_are_refused() {
    assert_error(
        r#"@id("x") permit (principal == ?principal, action, resource);"#,
        "2:1",
        "templates are not supported",
    );
}

#[test]
fn a_set_that_permits_no_call_is_refused() {
    let refused = "no policy permits any call";
    assert!(
        load(&[], &Contracts::desk().world()).1[0]
            .message
            .contains(refused)
    );
    for text in [
        "",
        "// nothing yet",
        r#"@id("x") forbid (principal is Agent, action, resource);"#,
        r#"@id("x") permit (principal is Operator, action, resource);"#,
        r#"@id("x") permit (principal is Agent, action in Action::"api:mail", resource);"#,
    ] {
        let found = errors(text);
        assert!(
            found.len() == 1 && found[0].contains(refused),
            "{text} {found:?}"
        );
    }
}

#[test]
fn a_policy_that_can_never_apply_is_an_error() {
    assert_error(
        r#"@id("x") forbid (principal is Agent, action == Action::"desk.tickets.get", resource) when { context.input has amuont && context.input.amuont > 3 };"#,
        "2:10",
        "can never apply",
    );
    assert_error(
        r#"@id("x") forbid (principal is Operator, action == Action::"desk.tickets.get", resource);"#,
        "2:10",
        "can never apply",
    );
    assert_error(
        r#"@id("x") forbid (principal is Agent, action in [Action::"api:mail", Action::"approve"], resource);"#,
        "2:10",
        "can never apply",
    );
}

#[test]
fn a_policy_for_groups_without_tools_is_noted() {
    let text = format!(
        r#"{READS} @id("x") @approval("security") forbid (principal is Agent, action in [Action::"api:mail", Action::"consequence:permission_change"], resource) unless {{ context.approvals.contains("security") }};"#
    );
    let (policies, findings) = load_in(&Contracts::desk(), &text);
    assert!(policies.is_some(), "{findings:?}");
    assert!(
        findings.len() == 1
            && findings[0].note
            && findings[0].message.contains("applies to nothing yet"),
        "{findings:?}"
    );
}

#[test]
fn invisible_direction_marks_are_errors() {
    assert!(error("@id(\"x\") forbid (principal == Agent::\"lone-bot\", action, resource) when { context.run.id == \"a\u{202e}b\" };").contains("BIDI"));
}

#[test]
fn tool_names_that_cannot_be_actions_are_errors() {
    for name in [
        "approve",
        "api:desk",
        "consequence:read",
        "desk.tickets.get",
    ] {
        let mut contracts = Contracts::desk();
        let input = json!({"type": "object"});
        contracts.0.push((name, "desk", Consequence::Read, input));
        let (policies, findings) = load_in(&contracts, READS);
        assert!(policies.is_none());
        assert!(
            findings
                .iter()
                .any(|finding| finding.message.contains(name)),
            "{findings:?}"
        );
    }
}

#[test]
fn places_are_right_behind_comments_that_look_like_policies() {
    let policy = r#"forbid (principal == Agent::"lone-bot", action, resource);"#;
    let text = format!("{READS} // {policy}\r\n// {policy}\r\n\r\n{policy}");
    let found = errors(&text);
    assert!(
        found.len() == 1 && found[0].starts_with("rules.cedar:4:1: "),
        "{found:?}"
    );
}
