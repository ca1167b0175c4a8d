//! The work list as JSON and as CSV (RFC 4180), for when even the gateway is down. One form for the listener, the command and the
//! copies on disk.

use serde_json::{Value, json};

use crate::store::work::WorkRow;

/// One item, without real arguments: what stands in `arguments` is what the records have.
pub fn to_json(row: &WorkRow) -> Value {
    let parsed = |text: &Option<String>| -> Value {
        text.as_deref()
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or(Value::Null)
    };
    json!({
        "work": row.call_id,
        "call": row.call_id,
        "kind": row.kind,
        "because": row.because,
        "state": row.state,
        "run": row.run_id,
        "agent": row.agent,
        "api": row.api,
        "tool": row.tool,
        "consequence": row.consequence,
        "kill_switch": row.kill_switch_id,
        "triggered_by": row.triggered_by,
        "purpose": row.purpose,
        "agent_words": row.agent_words,
        "recorded_arguments": parsed(&row.arguments),
        "digest": row.digest,
        "outcome_detail": parsed(&row.outcome_detail),
        "received_at": row.received_at,
        "listed_at": row.listed_at,
        "claimed_by": row.claimed_by,
        "claimed_at": row.claimed_at,
        "lease_until": row.lease_until,
        "found": row.found,
        "status": row.status,
        "evidence": row.evidence,
        "note": row.note,
        "resolved_by": row.resolved_by,
        "resolved_at": row.resolved_at,
    })
}

/// The columns of the CSV, which are members of the JSON.
const COLUMNS: [&str; 22] = [
    "work",
    "kind",
    "because",
    "state",
    "run",
    "agent",
    "tool",
    "consequence",
    "kill_switch",
    "triggered_by",
    "purpose",
    "agent_words",
    "recorded_arguments",
    "arguments",
    "received_at",
    "listed_at",
    "claimed_by",
    "lease_until",
    "found",
    "evidence",
    "note",
    "resolved_by",
];

/// Items (as [`to_json`] makes them) as CSV with a heading line.
pub fn csv(items: &[Value]) -> String {
    let mut text = COLUMNS.join(",");
    text.push_str("\r\n");
    for item in items {
        let fields: Vec<String> = COLUMNS
            .iter()
            .map(|column| match item.get(*column) {
                None | Some(Value::Null) => String::new(),
                Some(Value::String(value)) => field(value),
                Some(value) => field(&value.to_string()),
            })
            .collect();
        text.push_str(&fields.join(","));
        text.push_str("\r\n");
    }
    text
}

/// One field: always in quotes, and never one that a spreadsheet takes for a formula. An apostrophe before what could begin one is
/// what OWASP advises against CSV injection; the quotes are RFC 4180's.
fn field(value: &str) -> String {
    let is_formula = value
        .trim_start_matches(|letter: char| letter.is_whitespace() || letter.is_control())
        .starts_with([
            '=', '+', '-', '@', '\u{ff1d}', '\u{ff0b}', '\u{ff0d}', '\u{ff20}',
        ])
        || value.starts_with(['\t', '\r', '\n']);
    let guard = if is_formula { "'" } else { "" };
    format!("\"{guard}{}\"", value.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_field_is_a_formula_and_none_leaves_its_quotes() {
        for hostile in [
            "=HYPERLINK(\"http://x\")",
            "+1",
            "-2+3",
            "@SUM(A1)",
            "\t=1",
            "\r=1",
            " \n =1",
            "\u{ff1d}1",
        ] {
            assert!(field(hostile).starts_with("\"'"), "{hostile:?}");
        }
        assert_eq!(field("a \"b\", c\r\nd"), "\"a \"\"b\"\", c\r\nd\"");
        assert_eq!(field("plain"), "\"plain\"");
        let text =
            csv(&[json!({"work": "call_1", "note": "=1+1", "recorded_arguments": {"a": 1}})]);
        assert_eq!(text.lines().count(), 2);
        assert!(
            text.contains("\"'=1+1\"") && text.contains("\"{\"\"a\"\":1}\""),
            "{text}"
        );
    }
}
