//! What people are told of an event: names, times and a link, never the arguments. What the agent says of itself is kept apart
//! and marked as its words, with characters that do not show made visible.

use std::fmt::Write as _;

use chrono::{DateTime, SecondsFormat};
use serde_json::{Value, json};

use crate::{clock::Timestamp, config::Links, redaction::Redactor, store::outbox::DueRow, visible};

/// The most that is quoted of an agent, in characters.
const WORDS: usize = 500;

/// One event in words.
#[derive(Debug)]
pub(super) struct Message {
    /// The same in every repetition.
    pub event_id: String,
    /// For instance `approval.created`.
    pub kind: String,
    pub occurred_at: Timestamp,
    /// The approval or kill switch.
    pub subject: String,
    /// One sentence of the gateway's own, without a word of the agent's.
    pub title: String,
    /// Label and value: the gateway's facts, and an operator's reason. Never an amount: that is an argument.
    pub facts: Vec<(&'static str, String)>,
    /// Label and value: what the agent says of itself.
    pub agent_words: Vec<(&'static str, String)>,
    /// Where to decide.
    pub link: Option<String>,
    data: Value,
}

impl Message {
    pub(super) fn of(row: &DueRow, links: &Links, redactor: &Redactor) -> Self {
        let clean = |text: &Option<String>| {
            text.as_deref()
                .map(|text| short(&redactor.text(text), WORDS))
        };
        let text = |name: &str| row.data.get(name).and_then(Value::as_str);
        let is_halt = row.kind.starts_with("halt.");
        let (title, facts) = if is_halt {
            (halt_title(&row.kind, &text), halt_facts(&text))
        } else {
            (approval_title(row, &text), approval_facts(row, &text))
        };
        let agent_words = [
            ("purpose", clean(&row.purpose)),
            ("triggered by", clean(&row.triggered_by)),
        ];
        let link = if is_halt {
            &links.halt
        } else {
            &links.approval
        };
        let link = link.as_ref().map(|link| link.to(text));
        Self {
            event_id: row.event_id.clone(),
            kind: row.kind.clone(),
            occurred_at: row.occurred_at,
            subject: row.subject.clone(),
            title: visible::line(&title).into_owned(),
            facts: facts
                .into_iter()
                .filter_map(|(label, value)| Some((label, short(&value?, WORDS))))
                .collect(),
            agent_words: agent_words
                .into_iter()
                .filter_map(|(label, value)| Some((label, value?)))
                .collect(),
            link,
            data: row.data.clone(),
        }
    }

    /// The payload of a webhook: the same bytes in every repetition.
    pub(super) fn to_json(&self) -> Value {
        let mut data = self.data.clone();
        visible::document(&mut data);
        if let Some(data) = data.as_object_mut() {
            if !self.agent_words.is_empty() {
                let words: serde_json::Map<String, Value> = self
                    .agent_words
                    .iter()
                    .map(|(label, value)| (label.replace(' ', "_"), json!(value)))
                    .collect();
                data.insert("agent_words".to_owned(), Value::Object(words));
            }
            if let Some(link) = &self.link {
                data.insert("link".to_owned(), json!(link));
            }
        }
        json!({
            "type": self.kind,
            "timestamp": self.occurred_at.to_rfc3339_opts(SecondsFormat::Micros, true),
            "data": data,
        })
    }
}

fn approval_title<'a>(row: &DueRow, text: &impl Fn(&str) -> Option<&'a str>) -> String {
    let tool = text("tool").unwrap_or("?");
    let agent = text("agent").unwrap_or("?");
    match row.kind.as_str() {
        "approval.created" => format!("{agent} asks for {tool}: it waits for a decision"),
        "approval.approved" => format!("{tool} of {agent} was approved"),
        "approval.denied" => format!("{tool} of {agent} was denied: not executed"),
        "approval.expired" => format!("{tool} of {agent} expired undecided: not executed"),
        "approval.voided" => format!("the approval of {tool} of {agent} was voided: not executed"),
        "call.completed" => format!("{tool} of {agent} was executed"),
        "call.failed" => format!("{tool} of {agent} failed"),
        _ => format!("{tool} of {agent}: nobody knows whether it was executed"),
    }
}

fn halt_title<'a>(kind: &str, text: &impl Fn(&str) -> Option<&'a str>) -> String {
    let what = halted(text);
    match kind {
        "halt.pulled" => format!("HALTED: {what}"),
        _ => format!("The halt was released: {what}"),
    }
}

fn halted<'a>(text: &impl Fn(&str) -> Option<&'a str>) -> String {
    match (text("kind"), text("target")) {
        (Some(kind), Some(target)) => format!("{kind} {target}"),
        _ => "everything".to_owned(),
    }
}

type Facts = Vec<(&'static str, Option<String>)>;

fn approval_facts<'a>(row: &DueRow, text: &impl Fn(&str) -> Option<&'a str>) -> Facts {
    let own = |name: &str| text(name).map(str::to_owned);
    let tiers = row.tiers.join(", ");
    let deciders: Vec<&str> = row
        .data
        .get("decided_by")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    vec![
        ("Agent", own("agent")),
        ("Tool", own("tool")),
        ("Consequence", own("consequence")),
        ("Tier", Some(tiers).filter(|tiers| !tiers.is_empty())),
        (
            "Decided by",
            Some(deciders.join(", ")).filter(|names| !names.is_empty()),
        ),
        // Of what people did instead of the gateway.
        ("Executed by", own("executed_by")),
        (
            "Expires",
            text("expires_at")
                .filter(|_| row.kind == "approval.created")
                .map(minutes),
        ),
        ("Approval", own("approval")),
        ("Call", own("call")),
        ("Run", own("run")),
    ]
}

fn halt_facts<'a>(text: &impl Fn(&str) -> Option<&'a str>) -> Facts {
    let own = |name: &str| text(name).map(str::to_owned);
    vec![
        ("Scope", Some(halted(text))),
        ("By", own("operator")),
        ("Reason", own("reason")),
        ("Kill switch", own("kill_switch")),
    ]
}

/// `2026-03-01 12:30 UTC`.
fn minutes(rfc3339: &str) -> String {
    DateTime::parse_from_rfc3339(rfc3339).map_or_else(
        |_unreadable| rfc3339.to_owned(),
        |time| time.to_utc().format("%Y-%m-%d %H:%M UTC").to_string(),
    )
}

/// A text on one line, with nothing hidden in it, and cut to so many characters with the number of those that are missing.
fn short(text: &str, most: usize) -> String {
    let end = text
        .char_indices()
        .nth(most)
        .map_or(text.len(), |(at, _)| at);
    let (kept, missing) = text.split_at(end);
    let mut shown = visible::line(kept).into_owned();
    if !missing.is_empty() {
        let _ = write!(shown, " … ({} more characters)", missing.chars().count());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_show_is_written_out_and_long_words_are_cut() {
        assert_eq!(
            short("pay\u{202E}001\r\nBcc: x\u{200B}", 100),
            "pay\\u{202E}001\\u{D}\\u{A}Bcc: x\\u{200B}"
        );
        assert_eq!(short("abcdef", 4), "abcd … (2 more characters)");
    }
}
