//! How JSON Schema types become Cedar types and values.

use super::*;

pub(super) fn object(properties: Value) -> Value {
    json!({"type": "object", "additionalProperties": false, "properties": properties})
}

/// Whether a call of `lab.probe` is permitted when this condition holds.
pub(super) fn holds(input: &Value, condition: &str, arguments: Value) -> Decision {
    let text = format!(
        r#"@id("p") permit (principal is Agent, action == Action::"lab.probe", resource) when {{ {condition} }};"#
    );
    Call::new("lab.probe", arguments).decide(&loaded(&Contracts::probe(input.clone()), &text))
}

fn notes(input: Value) -> Vec<(String, String)> {
    let notes = GeneratedSchema::of(&Contracts::probe(input).world()).notes;
    notes
        .into_iter()
        .map(|note| (note.pointer, note.why))
        .collect()
}

/// Asserts that the only thing said is about this place.
fn assert_note(input: Value, pointer: &str, why: &str) {
    let found = notes(input);
    assert!(
        found.len() == 1 && found[0].0 == pointer && found[0].1.contains(why),
        "{pointer}: {found:?}"
    );
}

fn attribute(input: Value, name: &str) -> Value {
    let schema = GeneratedSchema::of(&Contracts::probe(input).world()).json;
    schema[""]["actions"]["lab.probe"]["appliesTo"]["context"]["attributes"]["input"]["attributes"]
        [name]
        .clone()
}

#[test]
fn scalars_have_their_types() {
    let cases = [
        (
            json!({"type": "string", "format": "date-time"}),
            "String",
            false,
        ),
        (
            json!({"type": ["string"], "enum": ["a", "b"]}),
            "String",
            false,
        ),
        (json!({"enum": ["a", "b"]}), "String", false),
        (json!({"const": 7}), "Long", false),
        (json!({"enum": [true, null]}), "Boolean", true),
        (json!({"type": ["integer", "null"]}), "Long", true),
        (
            json!({"anyOf": [{"type": "string"}, {"type": "null"}]}),
            "String",
            true,
        ),
        (
            json!({"oneOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}),
            "Long",
            true,
        ),
        (
            json!({"type": "string", "anyOf": [{"pattern": "a"}, {"pattern": "b"}]}),
            "String",
            false,
        ),
    ];
    for (schema, cedar, nullable) in cases {
        let mut input = object(json!({"x": schema}));
        input["required"] = json!(["x"]);
        input["$defs"] = json!({"n": {"type": "integer"}});
        assert_eq!(
            attribute(input.clone(), "x"),
            json!({"type": cedar, "required": !nullable}),
            "{schema}"
        );
        assert_eq!(notes(input), []);
    }
}

#[test]
fn integers_are_exact_up_to_their_bounds() {
    let input = object(json!({"n": {"type": "integer"}}));
    for n in [i64::MAX, i64::MIN, 0, -1, (1 << 53) + 1] {
        let literal = if n == i64::MIN {
            "-9223372036854775808".to_owned()
        } else {
            n.to_string()
        };
        let condition = format!("context.input has n && context.input.n == {literal}");
        assert_eq!(
            holds(&input, &condition, json!({"n": n})),
            permit(&["p"]),
            "{n}"
        );
    }
    let any = "context.input has n";
    assert_eq!(
        holds(
            &input,
            "context.input has n && context.input.n == 5",
            json!({"n": 5.0})
        ),
        permit(&["p"])
    );
    for n in [
        json!(u64::MAX),
        json!(1e300),
        json!(1.5),
        json!("1"),
        json!(9_007_199_254_740_994.0),
    ] {
        failed(holds(&input, any, json!({"n": n})));
    }
    assert_note(
        object(json!({"n": {"type": "integer", "maximum": 1e19}})),
        "/properties/n",
        "64-bit",
    );
}

#[test]
fn numbers_are_decimals_when_their_multiples_are() {
    for multiple in [json!(0.01), json!(0.0001), json!(0.25), json!(1)] {
        let input = object(json!({"x": {"type": "number", "multipleOf": multiple}}));
        assert_eq!(
            attribute(input, "x"),
            json!({"type": "Extension", "name": "decimal", "required": false})
        );
    }
    for schema in [
        json!({"type": "number"}),
        json!({"type": "number", "multipleOf": 0.00001}),
        json!({"type": "number", "multipleOf": 0.01, "maximum": 1e15}),
        json!({"type": "number", "enum": [1.5, 0.12345]}),
    ] {
        assert_eq!(notes(object(json!({"x": schema}))).len(), 1);
    }
    let input = object(json!({"x": {"type": "number", "multipleOf": 0.01}}));
    let is = |literal: &str, value: Value| {
        let condition =
            format!(r#"context.input has x && context.input.x == decimal("{literal}")"#);
        holds(&input, &condition, json!({"x": value}))
    };
    assert_eq!(is("10.1", json!(10.1)), permit(&["p"]));
    assert_eq!(is("-0.07", json!(-0.07)), permit(&["p"]));
    assert_eq!(is("7.0", json!(7)), permit(&["p"]));
    assert_eq!(is("0.0", json!(-0.0)), permit(&["p"]));
    assert_eq!(
        is("92233720368547.75", json!(92_233_720_368_547.75)),
        permit(&["p"])
    );
    for value in [
        json!(0.1 + 0.2),
        json!(1e15),
        json!(-1e300),
        json!(u64::MAX),
        json!("1.0"),
    ] {
        failed(is("1.0", value));
    }
}

#[test]
fn nested_records_and_their_optional_parts() {
    let input = object(json!({"to": {
        "type": "object", "additionalProperties": false, "required": ["country"],
        "properties": {"country": {"type": "string"}, "zip": {"type": ["string", "null"]}, "a b/c~\"": {"type": "boolean"}},
    }}));
    let zip = r#"context.input has to.zip && context.input.to.zip == "1""#;
    assert_eq!(
        holds(&input, zip, json!({"to": {"country": "DE", "zip": "1"}})),
        permit(&["p"])
    );
    assert_eq!(
        holds(&input, zip, json!({"to": {"country": "DE", "zip": null}})),
        deny(&[])
    );
    assert_eq!(
        holds(&input, zip, json!({"to": {"country": "DE"}})),
        deny(&[])
    );
    assert_eq!(holds(&input, zip, json!({})), deny(&[]));
    let odd = r#"context.input has to && context.input.to has "a b/c~\"" && context.input.to["a b/c~\""]"#;
    assert_eq!(
        holds(
            &input,
            odd,
            json!({"to": {"country": "DE", "a b/c~\"": true}})
        ),
        permit(&["p"])
    );
    let (_, detail) = failed(holds(
        &input,
        odd,
        json!({"to": {"country": "DE", "a b/c~\"": 1}}),
    ));
    assert_eq!(
        detail,
        "argument `/to/a b~1c~0\"` has another type than the contract says"
    );
    assert!(
        failed(holds(&input, odd, json!({"to": {}})))
            .1
            .contains("`/to/country` is missing")
    );
}

#[test]
fn arrays_are_sets_and_their_order_is_noted() {
    let input = object(json!({"tags": {"type": "array", "items": {"type": "string"}}}));
    assert_note(input.clone(), "/properties/tags", "without order");
    let vip = r#"context.input has tags && context.input.tags.contains("vip")"#;
    assert_eq!(
        holds(&input, vip, json!({"tags": ["a", "vip", "a"]})),
        permit(&["p"])
    );
    assert_eq!(holds(&input, vip, json!({"tags": []})), deny(&[]));
    assert!(
        failed(holds(&input, vip, json!({"tags": ["a", 1]})))
            .1
            .contains("`/tags/1`")
    );
    for (items, why) in [
        (json!({"type": ["string", "null"]}), "may be null"),
        (json!({"type": "number"}), "floating-point"),
        (json!(true), "anything"),
        (json!({}), "no `type`"),
    ] {
        assert_note(
            object(json!({"x": {"type": "array", "items": items}})),
            "/properties/x",
            why,
        );
    }
    assert_note(
        object(json!({"x": {"type": "array"}})),
        "/properties/x",
        "no type",
    );
    assert_note(
        object(json!({"x": {"type": "array", "prefixItems": [{"type": "string"}]}})),
        "/properties/x",
        "tuples",
    );
}

#[test]
fn what_cedar_has_no_type_for_is_noted() {
    for (schema, why) in [
        (json!({}), "no `type`"),
        (json!(true), "anything"),
        (json!({"type": "object"}), "free map"),
        (
            json!({"type": "object", "additionalProperties": {"type": "string"}}),
            "free map",
        ),
        (json!({"type": ["string", "integer"]}), "unions"),
        (json!({"type": "null"}), "always null"),
        (json!({"enum": ["a", 1]}), "unions"),
        (
            json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
            "unions",
        ),
        (
            json!({"allOf": [{"type": "string"}]}),
            "no `type` of its own",
        ),
        (
            json!({"properties": {"a": {"type": "string"}}}),
            "no `type`",
        ),
        (json!({"$ref": "https://example.com/x.json"}), "same schema"),
        (json!({"$ref": "#/$defs/nowhere"}), "not there"),
        (json!({"$ref": "#"}), "recursive"),
        (json!({"type": "string", "$id": "x"}), "`$id`"),
    ] {
        let input = object(json!({"a~/b": schema}));
        assert_eq!(attribute(input.clone(), "a~/b"), Value::Null);
        assert_note(input, "/properties/a~0~1b", why);
    }
}

#[test]
fn composition_beside_properties_is_noted_and_the_properties_stay() {
    for keyword in [
        "allOf",
        "anyOf",
        "oneOf",
        "then",
        "else",
        "dependentSchemas",
    ] {
        let mut input = object(json!({"a": {"type": "string"}}));
        input[keyword] = json!([{"properties": {"b": {"type": "string"}}}]);
        assert_eq!(attribute(input.clone(), "a")["type"], "String");
        assert_note(input, &format!("/{keyword}"), "not mapped");
    }
    assert_note(
        json!({"type": "object", "properties": {}}),
        "",
        "does not name",
    );
    let by_pattern = json!({"type": "object", "properties": {}, "patternProperties": {"^x": true}, "additionalProperties": false});
    assert_note(by_pattern.clone(), "/patternProperties", "by pattern");
    assert_eq!(holds(&by_pattern, "true", json!({"xy": 1})), permit(&["p"]));
    assert_note(json!({"type": "string"}), "", "is not an object");
}

#[test]
fn references_are_followed_and_recursion_ends() {
    let mut input = object(
        json!({"to": {"$ref": "#/$defs/a%20b"}, "from": {"$ref": "#/$defs/a%20b", "allOf": []}}),
    );
    input["$defs"] = json!({
        "a b": {"type": "object", "additionalProperties": false, "properties": {"zip": {"type": "string"}, "next": {"$ref": "#/$defs/a b"}}},
    });
    let condition =
        r#"context.input has to.zip && context.input.to.zip == "1" && context.input has from.zip"#;
    let places = json!({"to": {"zip": "1", "next": {"zip": "2"}}, "from": {"zip": "3"}});
    assert_eq!(holds(&input, condition, places), permit(&["p"]));
    let found = notes(input);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(
        found[0].0 == "/$defs/a b/properties/next" && found[0].1.contains("recursive"),
        "{found:?}"
    );
    assert!(
        found[1].0 == "/properties/from/allOf" && found[1].1.contains("beside a `$ref`"),
        "{found:?}"
    );
}

#[test]
fn references_that_multiply_are_bounded() {
    let mut definitions = serde_json::Map::new();
    for level in 0..20 {
        let next = json!({"$ref": format!("#/$defs/{}", level + 1)});
        definitions.insert(
            level.to_string(),
            object(json!({"a": next, "b": next, "c": next})),
        );
    }
    definitions.insert("20".to_owned(), json!({"type": "string"}));
    let mut input = object(json!({"x": {"$ref": "#/$defs/0"}}));
    input["$defs"] = Value::Object(definitions);
    assert!(
        notes(input)
            .iter()
            .any(|(_, why)| why.contains("more parts"))
    );
}
