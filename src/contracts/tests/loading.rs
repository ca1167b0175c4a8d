//! What is reported about contract files, and where.

use serde_json::json;

use super::*;

const GOOD: &str = r"
tools:
  - name: desk.refunds.create
    description: Pay money back to a customer.
    api: desk
    method: POST
    path: /refunds/{id}
    scope: desk.refunds:write
    consequence: money_movement
    query: [limit]
    headers: { If-Match: version }
    body: { formats: [json, form] }
    input:
      type: object
      required: [id, amount]
      properties:
        id: { type: string, pattern: '^re_[a-z0-9]+$' }
        limit: { type: integer }
        version: { type: string }
        amount: { type: integer, minimum: 1 }
        customer: { type: object, properties: { email: { type: string, format: email, x-sensitivity: pii } } }
    output: { type: object, required: [ok] }
    on_output_violation: report
    idempotent: true
    limits: { body_bytes: 1000, timeout_ms: 2500 }
";

pub(super) fn found(lines: &str) -> Vec<String> {
    let (catalog, findings) = load_texts(&[&tool(lines)]);
    assert!(
        findings.is_empty() || catalog.is_empty() || findings.iter().all(|finding| finding.note)
    );
    findings
        .iter()
        .map(|finding| {
            format!(
                "{}:{} {}",
                finding.place().1,
                finding.place().2,
                finding.message
            )
        })
        .collect()
}

pub(super) fn lines(findings: &[Finding]) -> String {
    findings
        .iter()
        .map(|finding| format!("{finding}\n"))
        .collect()
}

/// The one finding about a tool with these lines (the first of them is line 7 of the file).
pub(super) fn one(lines: &str) -> String {
    let found = found(lines);
    assert_eq!(found.len(), 1, "{lines}\n{found:#?}");
    found.into_iter().next().unwrap()
}

#[test]
fn a_good_contract_is_read_whole() {
    let (catalog, findings) = load_texts(&[GOOD]);
    assert!(findings.is_empty(), "{findings:?}");
    let contract = catalog.tool("desk.refunds.create").unwrap();
    assert_eq!(contract.method, Method::POST);
    assert_eq!(contract.consequence, Consequence::MoneyMovement);
    assert_eq!(contract.on_output_violation, OnOutputViolation::Report);
    assert!(contract.idempotent && !contract.stream);
    assert_eq!(contract.limits.body_bytes, 1000);
    assert_eq!(contract.limits.answer_bytes, 1_048_576);
    assert_eq!(contract.limits.timeout(), Duration::from_millis(2500));
    assert_eq!(
        contract.body_formats(),
        [BodyFormat::Json, BodyFormat::Form]
    );
    assert_eq!(contract.input["additionalProperties"], json!(false));
    assert_eq!(
        contract.input["properties"]["customer"]["additionalProperties"],
        json!(false)
    );
    assert_eq!(
        contract.output,
        Some(json!({"type": "object", "required": ["ok"]}))
    );
    assert!(format!("{contract:?}").contains("sha256:"));
}

#[test]
fn the_digest_is_of_the_meaning_and_not_of_the_spelling() {
    let digest = |text: &str| {
        load_texts(&[text])
            .0
            .tool("desk.refunds.create")
            .unwrap()
            .digest
            .clone()
    };
    let base = digest(GOOD);
    assert_eq!(base.len(), "sha256:".len() + 64);
    // Order, quotes and a default that is written out change nothing.
    let same = GOOD
        .replace(
            "api: desk\n    method: POST\n",
            "method: 'POST'\n    api: \"desk\"\n    stream: false\n",
        )
        .replace("minimum: 1 }", "minimum: 1.0 }");
    assert_ne!(same, GOOD);
    assert_eq!(digest(&same), base);
    for (from, to) in [
        ("minimum: 1", "minimum: 2"),
        ("limit]", "limit, version]\n    stream: false # "),
        ("idempotent: true", "idempotent: false"),
        ("timeout_ms: 2500", "timeout_ms: 2501"),
        ("[json, form]", "[form, json]"),
        ("If-Match", "If-None-Match"),
        ("a customer", "somebody"),
        ("refunds:write", "refunds:admin"),
        (
            "type: object, properties: { email",
            "type: object, additionalProperties: true, properties: { email",
        ),
    ] {
        let changed = GOOD.replace(from, to).replace(
            "    headers: { If-Match: version }\n",
            if to.contains("version]") {
                ""
            } else {
                "    headers: { If-Match: version }\n"
            },
        );
        assert_ne!(digest(&changed), base, "{from} -> {to}");
    }
    let canonical = load_texts(&[GOOD])
        .0
        .tool("desk.refunds.create")
        .unwrap()
        .canonical
        .clone();
    assert_eq!(
        format!("sha256:{}", crate::json::sha256_hex(canonical)),
        base
    );
}

#[test]
fn every_problem_of_every_file_is_reported_at_once() {
    let first = "tools:\n  - name: Desk\n    description: 5\n    api: nowhere\n    method: FETCH\n    path: x\n    \
                 scope: s\n    consequence: fun\n    stream: yes\n    limits: {timeout: 5, body_bytes: 0}\n    \
                 input: {type: object, properties: {a: {typ: string}}}\n    extra: 1\n";
    let second = "tools:\n  - {}\n";
    let third = "tools: [\n";
    let (catalog, findings) = load_texts(&[first, second, third]);
    assert!(catalog.is_empty());
    let places: Vec<_> = findings
        .iter()
        .map(|finding| {
            let (path, line, column) = finding.place();
            format!("{path}:{line}:{column}")
        })
        .collect();
    for place in [
        "0.yaml:2:11",
        "0.yaml:3:18",
        "0.yaml:4:10",
        "0.yaml:5:13",
        "0.yaml:6:11",
        "0.yaml:7:12",
        "0.yaml:8:18",
        "0.yaml:9:13",
        "0.yaml:10:14",
        "0.yaml:10:38",
        "0.yaml:11:44",
        "0.yaml:12:5",
        "1.yaml:2:5",
        "2.yaml:1:8",
    ] {
        assert!(
            places.contains(&place.to_owned()),
            "{place} is not among\n{}",
            lines(&findings)
        );
    }
    let missing = findings
        .iter()
        .filter(|finding| finding.message.contains("is missing"))
        .count();
    assert_eq!(missing, 8, "{}", lines(&findings));
}

#[test]
fn no_tools_is_an_error() {
    for texts in [
        &[][..],
        &[""],
        &["tools: []\n"],
        &["# nothing\n", "tools: []"],
    ] {
        let (_, findings) = load_texts(texts);
        assert!(
            findings.len() == 1 && findings[0].message.contains("no tool"),
            "{texts:?}"
        );
    }
    assert!(
        load_texts(&["tools:\n"]).1[0]
            .message
            .contains("must be a list")
    );
    assert!(
        load_texts(&["- a\n"]).1[0]
            .message
            .contains("must be a mapping")
    );
}

#[test]
fn names_are_unique_across_files() {
    let other = GOOD.replace("/refunds/{id}", "/other/{id}");
    let (_, findings) = load_texts(&[GOOD, &other]);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].place(), ("1.yaml".into(), 3, 11));
    assert!(findings[0].message.contains("0.yaml:3:11"));
}

#[test]
fn two_templates_for_one_request_are_an_error_that_names_both() {
    let other = GOOD
        .replace("refunds.create", "refunds.latest")
        .replace("/{id}", "/latest")
        .replace("required: [id,", "required: [");
    let (_, findings) = load_texts(&[GOOD, &other]);
    assert_eq!(findings.len(), 1, "{findings:?}");
    assert_eq!(findings[0].place().0, "1.yaml");
    assert!(
        findings[0].message.contains("0.yaml:7:11")
            && findings[0].message.contains("desk.refunds.latest")
    );
    let other_method = other.replace("method: POST", "method: PATCH");
    assert!(load_texts(&[GOOD, &other_method]).1.is_empty());
}

#[test]
fn a_read_that_posts_is_worth_a_note() {
    let text = tool("method: POST\npath: /x\ninput: {type: object}")
        .replace("consequence: write", "consequence: read");
    let (catalog, findings) = load_texts(&[&text]);
    assert!(findings.len() == 1 && findings[0].note);
    assert_eq!(catalog.len(), 1);
}

#[test]
fn a_read_before_must_be_one_and_pointers_must_be_pointers() {
    let tool = |more: &str| {
        format!(
            "tools:
  - {{name: shop.things.get, description: d, api: shop, method: GET, path: '/things/{{id}}', scope: 'shop.things:read', consequence: read,
     input: {{type: object, required: [id], properties: {{id: {{type: string}}}}}}}}
  - {{name: shop.things.put, description: d, api: shop, method: PUT, path: '/things/{{id}}', scope: 'shop.things:write', consequence: write,
     input: {{type: object, required: [id], properties: {{id: {{type: string}}}}}}, {more}}}
"
        )
    };
    let findings = |more: &str| {
        let apis = ["shop".to_owned()].into();
        let file = crate::diagnostics::SourceFile::new("tools.yaml", tool(more));
        let (_, findings) = crate::contracts::load(&[file], &apis);
        findings
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("\n")
    };
    let good = "before: {tool: shop.things.get, arguments: {id: /id}}, changed: [/id, '/a~1b']";
    assert_eq!(findings(good), "");
    for (more, expected) in [
        ("before: {tool: shop.nothing}", "there is no tool"),
        (
            "before: {tool: shop.things.put}",
            "only a read can come before",
        ),
        (
            "before: {tool: shop.things.get, arguments: {other: /id}}",
            "takes no argument",
        ),
        (
            "before: {tool: shop.things.get, arguments: {id: id}}",
            "is no JSON pointer",
        ),
        (
            "before: {tool: shop.things.get, on_failure: maybe}",
            "maybe",
        ),
        ("changed: [id]", "is no JSON pointer"),
        ("changed: ['/a~2']", "is no JSON pointer"),
        ("changed: ['/a', '/a']", "stands twice"),
    ] {
        let found = findings(more);
        assert!(found.contains(expected), "{more}: {found}");
    }
}
