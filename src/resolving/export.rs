//! The work list as JSON and as CSV (RFC 4180), for when even the gateway is down. One form for the listener, the command and the
//! copies on disk.

use serde::Serialize;
use serde_json::{Map, Value, json};
use sqlx::{Connection as _, PgConnection};
use utoipa::ToSchema;

use super::shown;
use crate::{
    app::{Rules, Setting},
    audit::{self, CommandError},
    clock::{self, Timestamp as DateTime},
    config::ListFormat,
    entry::{Entry, Kind},
    redaction::Marks,
    secrets::Keyring,
    signing::Held,
    store::{
        self, StoreError,
        work::{Filter, WorkRow},
    },
    visible,
};

/// Rows read at a time, and pages at most: a list of half a million items is no list that people work off.
const PAGE: i64 = 500;
const PAGES: usize = 1_000;

/// Every item that waits, straight from the database, a page at a time.
#[derive(Debug)]
pub struct Pages<'a> {
    kind: Option<&'a str>,
    after: Option<String>,
    read: usize,
    is_over: bool,
}

impl<'a> Pages<'a> {
    /// All of them, or those of one kind.
    pub fn of(kind: Option<&'a str>) -> Self {
        Self {
            kind,
            after: None,
            read: 0,
            is_over: false,
        }
    }

    /// The next page; none behind the last.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn next(
        &mut self,
        connection: &mut PgConnection,
    ) -> Result<Option<Vec<WorkRow>>, StoreError> {
        if self.is_over || self.read == PAGES {
            return Ok(None);
        }
        let filter = Filter {
            kind: self.kind,
            state: Some("waiting"),
            after: self.after.as_deref(),
            ..Filter::default()
        };
        let page = store::work::list(connection, &filter, PAGE).await?;
        self.read += 1;
        self.is_over = page.len() < usize::try_from(PAGE).unwrap_or(usize::MAX);
        self.after = page.last().map(|row| row.call_id.clone());
        Ok(Some(page))
    }

    /// Whether nothing was left out when there was no further page.
    pub fn are_all(&self) -> bool {
        self.is_over
    }
}

/// Items one after the other as one text.
#[derive(Debug)]
pub struct Printer {
    format: ListFormat,
    is_first: bool,
}

impl Printer {
    /// Begins a text.
    pub fn new(format: ListFormat) -> Self {
        Self {
            format,
            is_first: true,
        }
    }

    /// The text of rows, without real arguments.
    pub fn page(&mut self, rows: &[WorkRow]) -> String {
        self.items(&rows.iter().map(WorkItem::of).collect::<Vec<_>>())
    }

    /// The text of items.
    pub fn items(&mut self, items: &[WorkItem]) -> String {
        let items: Vec<Value> = items.iter().map(WorkItem::to_json).collect();
        let mut text = String::new();
        match self.format {
            ListFormat::Csv => {
                if self.is_first {
                    text.push_str(&heading());
                }
                text.extend(items.iter().map(line));
                self.is_first = false;
            }
            ListFormat::Json => {
                for item in &items {
                    text.push_str(if self.is_first { "[\n" } else { ",\n" });
                    text.push_str(&item.to_string());
                    self.is_first = false;
                }
            }
        }
        text
    }

    /// What stands at the end.
    pub fn end(&self) -> String {
        match self.format {
            ListFormat::Csv if self.is_first => heading(),
            ListFormat::Csv => String::new(),
            ListFormat::Json if self.is_first => "[]\n".to_owned(),
            ListFormat::Json => "\n]\n".to_owned(),
        }
    }
}

/// The real arguments of calls that are to be done by hand, by call, as the tiers that held them show them to this operator, once
/// it is recorded that they saw them. Calls whose arguments are not kept, do not open with a master secret of the config, or have
/// no contract any more, are left out.
///
/// # Errors
/// When the database is away, or refuses the record, or the key in the file is not the one that signs the records: then nothing is
/// shown.
pub async fn real_arguments(
    connection: &mut PgConnection,
    (setting, rules): (Setting<'_>, &Rules),
    (held, keyring): (&Held, &Keyring),
    operator: &str,
    rows: &[&WorkRow],
) -> Result<Vec<(String, Value)>, CommandError> {
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
    let entry = Entry {
        operator: Some(operator.into()),
        decided_at: Some(clock::now()),
        detail: Some(
            json!({ "arguments": true, "work": calls, "seen": classes, "exported": true }),
        ),
        ..Entry::new(Kind::WorkViewed)
    };
    let mut transaction = connection.begin().await.map_err(StoreError::from)?;
    audit::record_command(&mut transaction, held, entry).await?;
    transaction.commit().await.map_err(StoreError::from)?;
    Ok(found)
}

/// An item of the work list, as people read it: a call whose answer was lost, or one that people do by hand.
#[derive(Debug, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct WorkItem {
    /// The call that it is about, which is its id.
    pub work: String,
    /// The same.
    pub call: String,
    /// `reconcile`: the answer was lost; `manual`: to be done by hand.
    pub kind: String,
    /// Why it is on the list.
    pub because: String,
    /// `open`, `claimed`, `resolved` or `withdrawn`.
    pub state: String,
    #[schema(required)]
    pub run: Option<String>,
    #[schema(required)]
    pub agent: Option<String>,
    #[schema(required)]
    pub api: Option<String>,
    #[schema(required)]
    pub tool: Option<String>,
    #[schema(required)]
    pub consequence: Option<String>,
    /// The halt for which it is done by hand.
    #[schema(required)]
    pub kill_switch: Option<String>,
    /// Who or what started the run, as the agent says.
    #[schema(required)]
    pub triggered_by: Option<String>,
    /// What the run is for, as the agent says.
    #[schema(required)]
    pub purpose: Option<String>,
    /// Why the agent makes the call: its words, not a fact.
    #[schema(required)]
    pub agent_words: Option<String>,
    /// The arguments as the records have them, without sensitive values.
    pub recorded_arguments: Value,
    /// The keyed digest over exactly this call.
    #[schema(required)]
    pub digest: Option<String>,
    /// What is known of how the answer was lost.
    pub outcome_detail: Value,
    #[schema(required)]
    pub received_at: Option<DateTime>,
    pub listed_at: DateTime,
    #[schema(required)]
    pub claimed_by: Option<String>,
    #[schema(required)]
    pub claimed_at: Option<DateTime>,
    /// Until then nobody else can claim it.
    #[schema(required)]
    pub lease_until: Option<DateTime>,
    /// `executed` or `not_executed`, once it is resolved.
    #[schema(required)]
    pub found: Option<String>,
    /// The status that was found.
    #[schema(required)]
    pub status: Option<i16>,
    #[schema(required)]
    pub evidence: Option<String>,
    #[schema(required)]
    pub note: Option<String>,
    #[schema(required)]
    pub resolved_by: Option<String>,
    #[schema(required)]
    pub resolved_at: Option<DateTime>,
    /// The real arguments, for who has claimed it, as the tiers that approved the call show them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub arguments: Option<Value>,
    /// What the call will touch, as those saw it who approved it; beside the arguments, where there was a preview.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub preview: Option<Value>,
}

impl WorkItem {
    /// Without real arguments. Nothing in it hides, whatever an agent, an API or an operator wrote.
    pub fn of(row: &WorkRow) -> Self {
        let parsed = |text: &Option<String>| -> Value {
            let parsed = text
                .as_deref()
                .and_then(|text| serde_json::from_str(text).ok());
            let mut value = parsed.unwrap_or(Value::Null);
            visible::document(&mut value);
            value
        };
        let text = |text: String| visible::text(&text).into_owned();
        let words = |words: Option<String>| words.map(text);
        let row = row.clone();
        Self {
            recorded_arguments: parsed(&row.arguments),
            outcome_detail: parsed(&row.outcome_detail),
            work: row.call_id.clone(),
            call: row.call_id,
            kind: row.kind,
            because: text(row.because),
            state: row.state,
            run: row.run_id,
            agent: words(row.agent),
            api: words(row.api),
            tool: words(row.tool),
            consequence: row.consequence,
            kill_switch: row.kill_switch_id,
            triggered_by: words(row.triggered_by),
            purpose: words(row.purpose),
            agent_words: words(row.agent_words),
            digest: row.digest,
            received_at: row.received_at,
            listed_at: row.listed_at,
            claimed_by: words(row.claimed_by),
            claimed_at: row.claimed_at,
            lease_until: row.lease_until,
            found: row.found,
            status: row.status,
            evidence: words(row.evidence),
            note: words(row.note),
            resolved_by: words(row.resolved_by),
            resolved_at: row.resolved_at,
            arguments: None,
            preview: None,
        }
    }

    fn to_json(&self) -> Value {
        serde_json::to_value(self).unwrap_or_default()
    }
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

/// Items as CSV with a heading line.
pub fn csv(items: &[WorkItem]) -> String {
    let mut printer = Printer::new(ListFormat::Csv);
    printer.items(items)
}

fn heading() -> String {
    COLUMNS.join(",") + "\r\n"
}

fn line(item: &Value) -> String {
    let fields: Vec<String> = COLUMNS
        .iter()
        .map(|column| match item.get(*column) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(value)) => field(value),
            Some(value) => field(&value.to_string()),
        })
        .collect();
    fields.join(",") + "\r\n"
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
        let item = json!({"work": "call_1", "note": "=1+1", "recorded_arguments": {"a": 1}});
        let text = line(&item);
        assert_eq!(text.lines().count(), 1);
        assert!(
            text.contains("\"'=1+1\"") && text.contains("\"{\"\"a\"\":1}\""),
            "{text}"
        );
    }
}
