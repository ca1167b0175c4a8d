//! What policies can and cannot read of the arguments.

use super::mapping::{holds, object};
use super::*;

#[test]
fn a_policy_that_reads_what_is_not_mapped_is_an_error() {
    let mut input = object(json!({"free": {"type": "object"}, "x": {"type": "number"}}));
    input["required"] = json!(["free", "x"]);
    for name in ["free", "x"] {
        let text = format!(
            r#"@id("p") permit (principal is Agent, action, resource) when {{ context.input.{name} == context.run.id }};"#
        );
        let (policies, findings) = load_in(&Contracts::probe(input.clone()), &text);
        assert!(policies.is_none());
        assert!(
            findings[0].message.contains(&format!("`input.{name}`")),
            "{findings:?}"
        );
        assert!(findings[0].help.is_some());
    }
    let all = r#"@id("p") permit (principal is Agent, action, resource);"#;
    let policies = loaded(&Contracts::probe(input), all);
    let call = Call::new(
        "lab.probe",
        json!({"free": {"__entity": {"type": "Agent", "id": "x"}}, "x": 1.23456}),
    );
    assert_eq!(call.decide(&policies), permit(&["p"]));
    assert_eq!(policies.notes().len(), 2);
}

#[test]
fn reserved_keys_of_cedars_json_are_ordinary_names() {
    let escape = json!({"type": "object", "additionalProperties": false, "properties": {"type": {"type": "string"}, "id": {"type": "string"}}});
    let input = object(
        json!({"x": object(json!({"__entity": escape, "__extn": {"type": "string"}})), "s": {"type": "string"}}),
    );
    let group = r#"context.input has x.__entity.id && context.input.x.__entity.id == "finance""#;
    let arguments = json!({"x": {"__entity": {"type": "Role", "id": "finance"}, "__extn": "decimal"}, "s": "Role::\"finance\""});
    // The argument is a record that holds strings, and nothing else.
    assert_eq!(holds(&input, group, arguments.clone()), permit(&["p"]));
    let string = r#"context.input has s && context.input.s == "Role::\"finance\"""#;
    assert_eq!(holds(&input, string, arguments), permit(&["p"]));
    let smuggled = json!({"s": {"__entity": {"type": "Role", "id": "finance"}}});
    failed(holds(&input, string, smuggled));
    let smuggled = json!({"s": {"__extn": {"fn": "decimal", "arg": "1.0"}}});
    failed(holds(&input, string, smuggled));
}

#[test]
fn the_schema_is_printed_in_cedars_syntax() {
    let policies = loaded(
        &Contracts::desk(),
        r#"@id("p") permit (principal is Agent, action, resource);"#,
    );
    let text = policies.schema_text();
    for part in [
        "action \"desk.refunds.create\" in [Action::\"api:desk\", Action::\"consequence:money_movement\"]",
        "fee?: Long",
        "entity Operator in [Role, OperatorGroup]",
        "action \"read_audit\"",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert_eq!(text, GeneratedSchema::of(&Contracts::desk().world()).text());
    assert!(policies.schema_json()[""]["actions"]["approve"].is_object());
}

#[test]
fn policies_can_be_shared_between_threads() {
    const fn shared<T: Send + Sync + 'static>() {}
    shared::<Policies>();
}
