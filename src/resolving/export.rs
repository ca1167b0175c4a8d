//! The work list as JSON and as CSV (RFC 4180), for when even the gateway is down. One form for the listener, the command and the
//! copies on disk.

use serde_json::{Map, Value, json};
use sqlx::{Connection as _, PgConnection};

use super::shown;
use crate::{
    app::{Rules, Setting},
    clock,
    entry::{Entry, Kind, chain},
    ids::InstanceId,
    redaction::Marks,
    secrets::Keyring,
    store::{
        self, StoreError,
        work::{Filter, WorkRow},
    },
    visible,
};

/// Rows read at a time, and pages at most: a list of half a million items is no list that people work off.
const PAGE: i64 = 500;
const PAGES: usize = 1_000;

/// Every item that waits, straight from the database. `kind` narrows it.
///
/// # Errors
/// When the database is away.
pub async fn waiting(
    connection: &mut PgConnection,
    kind: Option<&str>,
) -> Result<Vec<WorkRow>, StoreError> {
    let mut all: Vec<WorkRow> = Vec::new();
    for _ in 0..PAGES {
        let after = all.last().map(|row| row.call_id.clone());
        let filter = Filter {
            kind,
            state: Some("waiting"),
            after: after.as_deref(),
            ..Filter::default()
        };
        let page = store::work::list(connection, &filter, PAGE).await?;
        let is_last = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
        all.extend(page);
        if is_last {
            break;
        }
    }
    Ok(all)
}

/// The real arguments of calls that are to be done by hand, by call, as the tiers that held them show them to this operator, once
/// it is recorded that they saw them. Calls whose arguments are not kept, do not open with a master secret of the config, or have
/// no contract any more, are left out.
///
/// # Errors
/// When the database is away, or refuses the record: then nothing is shown.
pub async fn real_arguments(
    connection: &mut PgConnection,
    (setting, rules): (Setting<'_>, &Rules),
    keyring: &Keyring,
    operator: &str,
    rows: &[&WorkRow],
) -> Result<Vec<(String, Value)>, StoreError> {
    let mut found = Vec::new();
    let mut classes = Map::new();
    for row in rows {
        let contract = row
            .tool
            .as_deref()
            .and_then(|name| rules.catalog.tool(name));
        let kept = store::calls::find(connection, &row.call_id).await?;
        let (Some(contract), Some(sealed)) = (contract, kept.and_then(|kept| kept.sealed)) else {
            continue;
        };
        let tiers = store::work::tiers_of(connection, &row.call_id).await?;
        let marks = Marks::of(&contract.input);
        let kept = (row.call_id.as_str(), sealed.as_slice());
        let marks = (&marks, None);
        let Some(opened) = shown::opened((setting, keyring), marks, operator, kept, &tiers) else {
            continue;
        };
        if !opened.seen.is_empty() {
            classes.insert(row.call_id.clone(), json!(opened.seen));
        }
        found.push((row.call_id.clone(), opened.arguments));
    }
    let calls: Vec<&str> = found.iter().map(|(call, _)| call.as_str()).collect();
    let (instance, now) = (InstanceId::generate(), clock::now());
    let entry = Entry {
        operator: Some(operator.into()),
        decided_at: Some(now),
        detail: Some(
            json!({ "arguments": true, "work": calls, "seen": classes, "exported": true }),
        ),
        ..Entry::new(Kind::WorkViewed)
    };
    let mut transaction = connection.begin().await?;
    // A chain of its own with one entry; the next gateway to start names it in its first.
    let row = entry.row(instance.as_str(), 1, now);
    let hash = chain::hash(&chain::START, &row);
    store::audit::insert(&mut transaction, &[row], &[hash]).await?;
    transaction.commit().await?;
    Ok(found)
}

/// One item as people read it, without real arguments: what stands in `recorded_arguments` is what the records have.
pub fn to_json(row: &WorkRow) -> Value {
    let parsed = |text: &Option<String>| -> Value {
        text.as_deref()
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or(Value::Null)
    };
    let mut item = json!({
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
    });
    visible::document(&mut item);
    item
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
