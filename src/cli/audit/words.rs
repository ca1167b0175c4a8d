//! The words of the stories: one value each, as it may be shown on a terminal. Whatever an agent or an API has written is shown
//! with nothing hidden in it, so that no record can draw on the terminal of whoever reads it.

use chrono::DateTime;
use serde_json::Value;

use crate::{clock::Timestamp, visible};

/// The longest text of one value in a line; the JSON document has it whole.
const WIDTH: usize = 160;

/// PostgreSQL's `HH:MM:SS.ffffff` as people say it.
pub(super) fn milliseconds(interval: &Value) -> Option<String> {
    let text = interval.as_str()?;
    let Some(rest) = text.strip_prefix("00:00:") else {
        return Some(safe(text));
    };
    let seconds: f64 = rest.parse().ok()?;
    Some(if seconds < 1.0 {
        format!("{:.1} ms", seconds * 1_000.0)
    } else {
        format!("{seconds:.1} s")
    })
}

pub(super) fn tiers(tiers: &Value) -> String {
    let said: Vec<String> = match tiers {
        Value::Array(tiers) => tiers
            .iter()
            .map(|tier| match tier {
                Value::String(tier) => safe(tier),
                other => {
                    let needed = other["approvals"].as_i64().or(other["needed"].as_i64());
                    format!("{} ({})", text(other, "tier"), needed.unwrap_or(1))
                }
            })
            .collect(),
        Value::Object(tiers) => tiers
            .iter()
            .map(|(tier, needed)| format!("{} ({needed})", safe(tier)))
            .collect(),
        _ => Vec::new(),
    };
    if said.is_empty() {
        "people approve".to_owned()
    } else {
        format!("approved by {}", said.join(" and "))
    }
}

pub(super) fn in_run(of: &Value) -> String {
    name(of, "run_id", "none")
}

pub(super) fn by(policies: &Value) -> String {
    let policies = list(policies);
    if policies.is_empty() {
        String::new()
    } else {
        format!("by {policies}")
    }
}

pub(super) fn at_pointer<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

pub(super) fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn list(value: &Value) -> String {
    let items: Vec<String> = array(value)
        .iter()
        .map(|item| item.as_str().map_or_else(|| json(item), safe))
        .collect();
    items.join(", ")
}

pub(super) fn text(of: &Value, key: &str) -> String {
    of[key].as_str().map(safe).unwrap_or_default()
}

pub(super) fn name(of: &Value, key: &str, otherwise: &str) -> String {
    of[key].as_str().map_or_else(|| otherwise.to_owned(), safe)
}

pub(super) fn quoted(of: &Value, key: &str) -> String {
    of[key]
        .as_str()
        .map(|text| format!("\u{201c}{}\u{201d}", safe(text)))
        .unwrap_or_default()
}

pub(super) fn labelled(label: &str, value: &Value) -> String {
    if value.is_null() {
        String::new()
    } else {
        format!("{label}: {}", json(value))
    }
}

pub(super) fn json(value: &Value) -> String {
    if value.is_null() {
        return String::new();
    }
    let whole = safe(&value.to_string());
    if whole.chars().count() <= WIDTH {
        return whole;
    }
    let short: String = whole.chars().take(WIDTH).collect();
    format!("{short}… (--json has it whole)")
}

pub(super) fn time(of: &Value, key: &str) -> Option<Timestamp> {
    DateTime::parse_from_rfc3339(of[key].as_str()?)
        .ok()
        .map(|time| time.to_utc())
}

/// On one line, with nothing hidden in it.
pub(super) fn safe(text: &str) -> String {
    visible::line(text).into_owned()
}
