//! What a single contract cannot say: bindings, bodies and schemas that are refused.

use super::{loading::one, *};

#[test]
fn the_path_needs_required_scalars() {
    let path = |schema: &str| one(&format!("method: DELETE\npath: /x/{{id}}\ninput: {schema}"));
    assert!(path("{type: object, properties: {id: {type: string}}}").contains("is not required"));
    assert!(path("{type: object, properties: {}}").contains("no property `id`"));
    for kind in ["object", "array", "'null'", "[string, 'null']"] {
        let schema =
            format!("{{type: object, required: [id], properties: {{id: {{type: {kind}}}}}}}");
        assert!(
            path(&schema).contains("8:11 `id` cannot be carried in the path"),
            "{kind}"
        );
    }
    assert!(
        path("{type: object, required: [id], properties: {id: {}}}").contains("cannot be carried")
    );
    assert!(
        one("method: GET\npath: /x/{id}.json\ninput: {type: object}")
            .contains("8:11 `{id}.json` mixes")
    );
    for kind in ["string", "integer", "boolean", "number"] {
        contract(&format!(
            "method: DELETE\npath: /x/{{id}}\ninput: {{type: object, required: [id], properties: {{id: {{type: {kind}}}}}}}"
        ));
    }
}

#[test]
fn every_property_is_bound_exactly_once() {
    let input = "input: {type: object, required: [id], properties: {id: {type: string}, a: {type: string}}}";
    let tool = |lines: &str| format!("method: GET\npath: /x/{{id}}\n{input}\n{lines}");
    let nowhere = one(&tool(""));
    assert!(
        nowhere.contains("`a` is bound nowhere") && nowhere.starts_with("9:"),
        "{nowhere}"
    );
    assert!(one(&tool("query: [id, a]")).contains("10:13 `id` is bound twice"));
    assert!(one(&tool("query: [a, a]")).contains("stands twice"));
    assert!(one(&tool("query: [a]\nheaders: {If-Match: a}")).contains("bound twice"));
    assert!(one(&tool("query: [a, b]")).contains("no property `b`"));
    assert!(one(&tool("query: [a]\nbody: {formats: [json]}")).contains("GET request has no body"));
    assert!(
        one(&tool("query: [a]\nheaders: {Host: a}"))
            .contains("`Host`: this header is set by the gateway alone")
    );
    assert!(
        one("method: GET\npath: /x\ninput: {type: object, additionalProperties: {type: string}}")
            .contains("does not name")
    );
    assert!(one("method: GET\npath: /x\nquery: [a]\ninput: {type: object, properties: {a: {type: array, items: {type: object}}}}").contains("cannot be carried"));
    assert!(one("method: GET\npath: /x\nheaders: {If-Match: a}\ninput: {type: object, properties: {a: {type: array, items: {type: string}}}}").contains("cannot be carried in a header"));
    // A header is compared without its case.
    assert!(one("method: GET\npath: /x\nheaders: {If-Match: a, if-match: b}\ninput: {type: object, properties: {a: {type: string}, b: {type: string}}}").contains("bound twice"));
}

#[test]
fn a_property_that_only_a_condition_names_is_a_property() {
    let text =
        one("method: GET\npath: /x\ninput: {type: object, if: {properties: {x: {const: 1}}}}");
    assert!(text.contains("`x` is bound nowhere"), "{text}");
    let text = one(
        "method: GET\npath: /x\ninput: {type: object, if: {additionalProperties: {type: string}}}",
    );
    assert!(text.contains("does not name"), "{text}");
}

#[test]
fn bodies_are_described_completely() {
    let input = "input: {type: object, properties: {a: {type: string}, b: {type: integer}}}";
    let body = |body: &str| {
        one(&format!(
            "method: POST\npath: /x\nquery: [b]\nbody: {body}\n{input}"
        ))
    };
    assert!(body("{formats: []}").contains("needs `formats`"));
    assert!(body("{formats: [json, xml]}").contains("`xml` is no body format"));
    assert!(body("{formats: [opaque], media_types: [text/plain]}").contains("needs `argument`"));
    assert!(body("{formats: [opaque], argument: a}").contains("needs `media_types`"));
    assert!(
        body("{formats: [opaque, json], argument: a, media_types: [text/plain]}")
            .contains("stands alone")
    );
    assert!(body("{formats: [json], media_types: [text/plain]}").contains("only an opaque body"));
    assert!(body("{formats: [form], argument: a}").contains("must have `type: object`"));
    assert!(body("{formats: [json], argument: b}").contains("`b` is bound twice"));
    assert!(body("{formats: [json], argument: c}").contains("`c` is not in the input schema"));
    for media_type in [
        "text",
        "application/json",
        "application/x+json",
        "multipart/form-data",
        "text/plain;charset=x",
    ] {
        let text = body(&format!(
            "{{formats: [opaque], argument: a, media_types: ['{media_type}']}}"
        ));
        assert!(text.contains(media_type), "{text}");
    }
    assert!(
        one(&format!(
            "method: POST\npath: /x\nbody: {{formats: [json], argument: a}}\n{input}"
        ))
        .contains("`b` is bound nowhere")
    );
    assert!(
        one(&format!("method: DELETE\npath: /x\nquery: [b]\n{input}"))
            .contains("`a` is bound nowhere")
    );
}

#[test]
fn schemas_are_checked_keyword_by_keyword() {
    let schema = |property: &str| {
        one(&format!(
            "method: POST\npath: /x\ninput:\n  type: object\n  properties:\n    a: {property}"
        ))
    };
    for (property, problem) in [
        ("{type: string, maxLenght: 5}", "`maxLenght` is no keyword"),
        ("{type: strin}", "not a type"),
        ("{minimum: a}", "must be of type number"),
        ("{type: string, pattern: '(?=x)y'}", "look-around"),
        ("{type: string, pattern: '(a)\\1'}", "refers back"),
        ("{type: string, pattern: '['}", "no regular expression"),
        ("{type: string, pattern: '((a{999}){999}){9}'}", "too large"),
        (
            "{type: object, patternProperties: {'(?!x)': {}}}",
            "look-around",
        ),
        (
            "{type: string, format: int64}",
            "nothing checks the format `int64`",
        ),
        (
            "{$ref: 'https://example.com/a.json'}",
            "nothing is ever fetched",
        ),
        ("{$ref: 'other.json'}", "nothing is ever fetched"),
        ("{$ref: 'file:///etc/passwd'}", "nothing is ever fetched"),
        ("{$ref: '#/$defs/no'}", "leads nowhere"),
        ("{$ref: '#/properties/a'}", "leads back to itself"),
        (
            "{allOf: [{$ref: '#/properties/a'}]}",
            "leads back to itself",
        ),
        ("{not: {$ref: '#/properties/a'}}", "leads back to itself"),
        ("{$id: 'https://example.com/'}", "`$id` is not supported"),
        ("{$dynamicRef: '#x'}", "`$dynamicRef` is not supported"),
        ("{definitions: {}}", "`definitions` is no keyword"),
        (
            "{type: object, properties: {__entity: {}}}",
            "cannot be called `__entity`",
        ),
        (
            "{anyOf: [{type: object, required: [__extn]}]}",
            "cannot be called `__extn`",
        ),
        (
            "{type: string, x-sensitivity: top-secret}",
            "`x-sensitivity` is one of",
        ),
        ("{maximum: 9007199254740993}", "is not exact"),
        ("{minimum: -0.0}", "negative zero"),
        ("{const: \"a\\0\"}", "U+0000"),
        (
            "{type: object, properties: {b: {}, B: {}}}",
            "differs only in case",
        ),
        ("{type: object, additionalProperties: 5}", "must be of type"),
        ("5", "must be of type"),
    ] {
        let text = schema(property);
        assert!(
            text.contains(problem) && text.starts_with("12:"),
            "{property}: {text}"
        );
    }
    assert!(
        one("method: POST\npath: /x\ninput: {type: string}")
            .contains("9:19 the input schema must have `type: object`")
    );
    assert!(one("method: POST\npath: /x\ninput: true").contains("`type: object`"));
    assert!(
        one("method: POST\npath: /x\ninput: {type: object}\noutput: {typ: object}")
            .starts_with("10:")
    );
    // A recursive schema that goes through a property is fine.
    contract(
        "method: POST\npath: /x\ninput: {type: object, properties: {a: {type: array, items: {$ref: '#'}}}}",
    );
}
