//! The hash chain over one instance's entries: what each entry's hash is, and nothing of where it is kept.
//!
//! The hash of an entry is SHA-256 over the 32 bytes of the hash before it (zeros before the first) followed by the RFC 8785
//! JSON of an object with one member for each column that is not null, named like the column; `hash` itself is left out.
//! Times are texts of the form `2026-01-31T08:15:30.000001Z`, always with six digits; enums are texts; lists are arrays of
//! texts, null when empty; JSON columns stand in it as the values they are.

use std::fmt::Write as _;

use aws_lc_rs::digest;
use chrono::{Datelike as _, Timelike as _};

use super::Row;
use crate::clock::Timestamp;

/// The hash of one entry.
pub type Hash = [u8; 32];

/// What stands before the first entry.
pub const START: Hash = [0; 32];

/// The hash of the entry in `row`, which follows the one with hash `previous`.
pub fn hash(previous: &Hash, row: &Row<'_>) -> Hash {
    let mut text = Vec::with_capacity(1_024);
    hash_with(previous, row, &mut text)
}

/// The same with a buffer to use again, for many rows in a row.
pub fn hash_with(previous: &Hash, row: &Row<'_>, buffer: &mut Vec<u8>) -> Hash {
    buffer.clear();
    buffer.extend_from_slice(previous);
    canonical(row, buffer);
    copied(&digest::digest(&digest::SHA256, buffer))
}

/// The hash of the entry whose RFC 8785 text is `text`, which follows the one with hash `previous`.
pub fn hash_of_text(previous: &Hash, text: &[u8]) -> Hash {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(previous);
    context.update(text);
    copied(&context.finish())
}

/// The hash of a row, and its RFC 8785 text at the end of `buffer`.
pub fn hash_and_text<'b>(
    previous: &Hash,
    row: &Row<'_>,
    buffer: &'b mut Vec<u8>,
) -> (Hash, &'b [u8]) {
    let hash = hash_with(previous, row, buffer);
    (hash, buffer.get(previous.len()..).unwrap_or_default())
}

fn copied(digest: &digest::Digest) -> Hash {
    let mut hash = START;
    for (to, from) in hash.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    hash
}

/// The RFC 8785 text of a row. Members stand in the order of their names, which is checked by a test.
fn canonical(row: &Row<'_>, out: &mut Vec<u8>) {
    let mut object = Object { out, begun: false };
    object.text("agent", row.agent);
    object.json("answer", row.answer.as_deref());
    object.text("answer_digest", row.answer_digest);
    object.text("api", row.api);
    object.text("approval_id", row.approval_id);
    object.json("arguments", row.arguments.as_deref());
    object.text("arguments_digest", row.arguments_digest);
    object.json("before", row.before.as_deref());
    object.text("call_id", row.call_id);
    object.json("changed", row.changed.as_deref());
    object.text("consequence", row.consequence);
    object.text("contract_digest", row.contract_digest);
    object.time("decided_at", row.decided_at);
    object.text("decision", row.decision);
    object.json("detail", row.detail.as_deref());
    object.truth("executed", row.executed);
    object.time("finished_at", row.finished_at);
    object.time("forwarded_at", row.forwarded_at);
    object.text("instance_id", Some(row.instance_id));
    object.text("kill_switch_id", row.kill_switch_id);
    object.text("kind", Some(row.kind));
    object.truth("opens_call", Some(row.opens_call));
    object.text("operator", row.operator);
    object.text("outcome", row.outcome);
    object.list("policies", &row.policies);
    object.text("policy_digest", row.policy_digest);
    object.list("reasons", &row.reasons);
    object.time("received_at", row.received_at);
    object.time("recorded_at", Some(row.recorded_at));
    object.text("run_id", row.run_id);
    object.number("seq", Some(row.seq));
    object.number("status", row.status.map(i64::from));
    object.text("surface", row.surface);
    object.text("tool", row.tool);
    object.list("value_tokens", &row.value_tokens);
    object.text("words", row.words);
    object.end();
}

struct Object<'a> {
    out: &'a mut Vec<u8>,
    begun: bool,
}

impl Object<'_> {
    fn name(&mut self, name: &str) {
        self.out.push(if self.begun { b',' } else { b'{' });
        self.begun = true;
        self.out.push(b'"');
        self.out.extend_from_slice(name.as_bytes());
        self.out.extend_from_slice(b"\":");
    }

    /// `value` is RFC 8785 JSON already.
    fn json(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.name(name);
            self.out.extend_from_slice(value.as_bytes());
        }
    }

    fn text(&mut self, name: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.name(name);
            string(self.out, value);
        }
    }

    fn list(&mut self, name: &str, values: &[&str]) {
        let mut values = values.iter();
        let Some(first) = values.next() else { return };
        self.name(name);
        self.out.push(b'[');
        string(self.out, first);
        for value in values {
            self.out.push(b',');
            string(self.out, value);
        }
        self.out.push(b']');
    }

    fn truth(&mut self, name: &str, value: Option<bool>) {
        if let Some(value) = value {
            self.json(name, Some(if value { "true" } else { "false" }));
        }
    }

    fn number(&mut self, name: &str, value: Option<i64>) {
        if let Some(value) = value {
            self.name(name);
            let mut text = String::new();
            // Writing to a String cannot fail.
            let _ = write!(text, "{value}");
            self.out.extend_from_slice(text.as_bytes());
        }
    }

    fn time(&mut self, name: &str, value: Option<Timestamp>) {
        if let Some(at) = value {
            self.name(name);
            let mut text = String::with_capacity(30);
            // Writing to a String cannot fail.
            let _ = write!(
                text,
                "\"{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z\"",
                at.year(),
                at.month(),
                at.day(),
                at.hour(),
                at.minute(),
                at.second(),
                at.nanosecond() / 1_000
            );
            self.out.extend_from_slice(text.as_bytes());
        }
    }

    fn end(&mut self) {
        if !self.begun {
            self.out.push(b'{');
        }
        self.out.push(b'}');
    }
}

/// serde_json escapes exactly what RFC 8785 (section 3.2.2.2) wants escaped, in the same way.
fn string(out: &mut Vec<u8>, text: &str) {
    // Writing a text to a Vec cannot fail.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use serde_json::json;

    use super::*;
    use crate::{
        clock,
        entry::{Entry, Kind},
        json,
    };

    fn full() -> Entry {
        Entry {
            agent: Some("a \"quoted\"\n\u{1}\u{7f} é".into()),
            words: Some("why".to_owned()),
            detail: Some(json!({"b": 1.50, "a": [1e21, null]})),
            reasons: vec!["one", "two"],
            policies: vec!["p".to_owned()],
            value_tokens: vec!["00".to_owned()],
            status: Some(204),
            executed: Some(true),
            received_at: Some(clock::now()),
            ..Entry::new(Kind::Intent)
        }
    }

    #[test]
    fn the_text_is_canonical_and_names_every_column_that_is_set() {
        let entry = full();
        let text = "text";
        let value = || Some(Cow::Borrowed("{\"x\":1}"));
        let row = Row {
            call_id: Some(text),
            run_id: Some(text),
            approval_id: Some(text),
            kill_switch_id: Some(text),
            operator: Some(text),
            surface: Some(text),
            api: Some(text),
            tool: Some(text),
            consequence: Some(text),
            contract_digest: Some(text),
            policy_digest: Some(text),
            arguments: value(),
            arguments_digest: Some(text),
            decision: Some(text),
            decided_at: entry.received_at,
            forwarded_at: entry.received_at,
            finished_at: entry.received_at,
            outcome: Some(text),
            answer: value(),
            answer_digest: Some(text),
            before: value(),
            changed: value(),
            ..entry.row("inst_1", 7, clock::now())
        };
        let mut bytes = Vec::new();
        canonical(&row, &mut bytes);
        let read: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            String::from_utf8(bytes).unwrap(),
            json::canonical_text(&read)
        );
        assert_eq!(read.as_object().unwrap().len(), 36, "a column is missing");
    }

    #[test]
    fn every_column_and_the_hash_before_count() {
        let (one, mut other) = (full(), full());
        let at = clock::now();
        let same = hash(&START, &one.row("inst_1", 1, at));
        assert_ne!(same, hash(&[1; 32], &one.row("inst_1", 1, at)));
        assert_ne!(same, hash(&START, &one.row("inst_1", 2, at)));
        assert_ne!(same, hash(&START, &one.row("inst_2", 1, at)));
        other.executed = None;
        assert_ne!(same, hash(&START, &other.row("inst_1", 1, at)));
    }
}
