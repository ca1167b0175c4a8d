//! What is reported about the read that shows what a call will touch.

use crate::diagnostics::SourceFile;

fn findings(more: &str) -> String {
    let text = format!(
        "tools:
  - {{name: shop.things.get, description: d, api: shop, method: GET, path: '/things/{{id}}', scope: 'shop.things:read', consequence: read, query: [view],
     input: {{type: object, required: [id], properties: {{id: {{type: string}}, view: {{type: string}}}}}},
     output: {{type: object, properties: {{name: {{type: string}}, owner: {{type: object, properties: {{id: {{type: string}}}}}}}}}}}}
  - {{name: shop.things.peek, description: d, api: shop, method: GET, path: '/peek/{{id}}', scope: 'shop.things:read', consequence: read,
     input: {{type: object, required: [id], properties: {{id: {{type: string}}}}}}}}
  - {{name: shop.things.look, description: d, api: shop, method: GET, path: '/look/{{id}}', scope: 'shop.things:read', consequence: read,
     preview: {{tool: shop.things.get, arguments: {{id: /id}}}},
     input: {{type: object, required: [id], properties: {{id: {{type: string}}}}}}, output: {{type: object}}}}
  - {{name: shop.things.drop, description: d, api: shop, method: DELETE, path: '/things/{{id}}', scope: 'shop.things:write', consequence: destructive,
     input: {{type: object, required: [id], properties: {{id: {{type: string}}}}}}, {more}}}
"
    );
    let apis = ["shop".to_owned()].into();
    let (_, findings) = crate::contracts::load(&[SourceFile::new("tools.yaml", text)], &apis);
    let found: Vec<String> = findings.iter().map(ToString::to_string).collect();
    found.join("\n")
}

#[test]
fn a_preview_names_a_read_that_can_be_made_and_shown_and_parts_that_it_has() {
    for good in [
        "preview: {tool: shop.things.get, arguments: {id: /id}}",
        "preview: {tool: shop.things.get, arguments: {id: /id, view: /id}, compare: [/name, /owner/id]}",
    ] {
        assert_eq!(findings(good), "", "{good}");
    }
    for (bad, says) in [
        (
            "{tool: shop.nothing, arguments: {id: /id}}",
            "there is no tool `shop.nothing`",
        ),
        (
            "{tool: shop.things.drop, arguments: {id: /id}}",
            "only a read can come before",
        ),
        (
            "{tool: shop.things.look, arguments: {id: /id}}",
            "a `preview` of its own",
        ),
        ("{tool: shop.things.get}", "needs the argument `id`"),
        (
            "{tool: shop.things.get, arguments: {id: /id, more: /id}}",
            "takes no argument `more`",
        ),
        (
            "{tool: shop.things.get, arguments: {id: /nowhere}}",
            "`/nowhere` leads to nothing in the input schema",
        ),
        (
            "{tool: shop.things.get, arguments: {id: id}}",
            "is no JSON pointer",
        ),
        (
            "{tool: shop.things.peek, arguments: {id: /id}}",
            "has no `output`",
        ),
        (
            "{tool: shop.things.get, arguments: {id: /id}, compare: [/owner/name]}",
            "`/owner/name` leads to nothing in the output schema",
        ),
        (
            "{tool: shop.things.get, arguments: {id: /id}, compare: [name]}",
            "is no JSON pointer",
        ),
        (
            "{tool: shop.things.get, arguments: {id: /id}, on_failure: proceed}",
            "has no field `on_failure`",
        ),
    ] {
        let found = findings(&format!("preview: {bad}"));
        assert!(found.contains(says), "{bad}: {found}");
    }
}
