//! The stories: in order, in time, short enough for a terminal.

use serde_json::Value;

use super::words::{
    array, at_pointer, by, in_run, json, labelled, list, milliseconds, name, quoted, safe, text,
    tiers, time,
};
use crate::clock::Timestamp;

/// Lines with a time each, in the order in which they are said.
struct Story {
    text: String,
    day: String,
}

impl Story {
    fn new(title: &str) -> Self {
        Self {
            text: format!("{title}\n"),
            day: String::new(),
        }
    }

    /// A line under the title.
    fn about(&mut self, name: &str, what: &str) {
        if !what.is_empty() {
            self.text.push_str(&format!("  {name:<10} {what}\n"));
        }
    }

    /// Something that happened. The day is said when it is another one than before.
    fn at(&mut self, time: Option<Timestamp>, what: &str) {
        let (day, clock) = time.map_or((self.day.clone(), String::new()), |time| {
            (
                time.format("%A, %Y-%m-%d (UTC)").to_string(),
                time.format("%H:%M:%S%.3f").to_string(),
            )
        });
        if day != self.day {
            self.text.push_str(&format!("\n{day}\n"));
            self.day = day;
        }
        self.text.push_str(&format!("  {clock:<12}  {what}\n"));
    }

    /// More about it.
    fn more(&mut self, what: &str) {
        if !what.is_empty() {
            self.text.push_str(&format!("  {:<12}    {what}\n", ""));
        }
    }
}

/// A call.
pub(super) fn call(document: &Value) -> String {
    let call = &document["call"];
    let mut story = Story::new(&format!(
        "{}: {} {}",
        text(call, "call_id"),
        name(call, "tool", "no known tool"),
        ending(call)
    ));
    story.about("agent", &name(call, "agent", "nobody known"));
    story.about("run", &in_run(call));
    story.about("set off by", &text(call, "triggered_by"));
    story.about("for", &text(call, "purpose"));
    story.about("does", &text(call, "consequence"));
    story.about("arguments", &json(&call["arguments"]));
    story.about("digest", &text(call, "arguments_digest"));
    story.about("words", &quoted(call, "agent_words"));
    story.about("read for", &text(call, "before_of"));
    story.at(time(call, "received_at"), "the request arrived");
    for entry in array(&document["timeline"]) {
        step(&mut story, call, entry);
    }
    story.text.push('\n');
    texts(&mut story, call);
    took(&mut story, call);
    story.text
}

/// One entry of a call.
fn step(story: &mut Story, call: &Value, entry: &Value) {
    let at = time(entry, "recorded_at");
    let who = text(entry, "operator");
    match entry["kind"].as_str().unwrap_or_default() {
        "refusal" => {
            story.at(at, &format!("refused: {}", list(&entry["reasons"])));
            story.more(&by(&entry["policies"]));
            story.more(&json(&entry["detail"]));
            stopped_by(story, call);
        }
        "parked" => {
            story.at(at, &format!("parked {}", by(&entry["policies"])));
            story.more(&format!(
                "until {} as {}",
                tiers(at_pointer(entry, "/detail/tiers")),
                text(call, "approval_id")
            ));
        }
        "approval_viewed" => story.at(at, &format!("{who} was shown it")),
        "approval_vote" => {
            story.at(at, &vote(at_pointer(entry, "/detail/vote").as_str(), entry));
            story.more(&quoted(entry, "words"));
        }
        "intent" => {
            let permitted = format!("permitted {}", by(&entry["policies"]));
            story.at(at, &format!("{permitted}; its intent was recorded"));
            before(story, call);
        }
        "outcome" => {
            if let Some(sent) = time(call, "forwarded_at") {
                story.at(Some(sent), "sent to the API");
            }
            story.at(time(call, "finished_at").or(at), &outcome(entry));
            story.more(&list(&entry["reasons"]));
            story.more(&json(&entry["detail"]));
            story.more(&labelled("changed", &call["changed"]));
            story.more(&labelled("answer", &call["answer"]));
            stopped_by(story, call);
        }
        "ended" => {
            story.at(at, &format!("ended unsent: {}", text(entry, "outcome")));
            story.more(&list(&entry["reasons"]));
            story.more(&json(&entry["detail"]));
        }
        other => story.at(at, &format!("{} {who}", other.replace('_', " "))),
    }
}

fn stopped_by(story: &mut Story, call: &Value) {
    let halt = text(call, "kill_switch_id");
    if !halt.is_empty() {
        story.more(&format!("stopped by {halt}"));
    }
}

fn before(story: &mut Story, call: &Value) {
    let before = &call["before"];
    if before.is_object() {
        story.more(&format!("before: {}", json(&before["state"])));
        story.more(&format!("read by {}", text(before, "call")));
    }
}

/// A run.
pub(super) fn run(document: &Value) -> String {
    let run = &document["run"];
    let mut story = Story::new(&format!(
        "{}: {} for {}",
        text(run, "run_id"),
        text(run, "agent"),
        text(run, "triggered_by")
    ));
    story.about("for", &text(run, "purpose"));
    story.about("scopes", &list(&run["scopes"]));
    story.about(
        "calls",
        &format!(
            "{}, of which {} refused and {} parked",
            run["calls"], run["refused"], run["parked"]
        ),
    );
    if run["implicit"] == Value::Bool(true) {
        story.about("opened by", "the gateway: the agent opened no run");
    }
    for event in array(&document["timeline"]) {
        let at = time(event, "at");
        match event["event"].as_str().unwrap_or_default() {
            "call" => {
                story.at(at, &call_line(event));
                story.more(&json(&event["arguments"]));
                why(&mut story, event);
            }
            "approval_vote" => {
                story.at(at, &vote(event["vote"].as_str(), event));
                story.more(&quoted(event, "reason"));
            }
            "halt" => story.at(at, &pulled(event)),
            "resume" => story.at(at, &released(event)),
            "run_opened" => story.at(at, "the run was opened"),
            "run_ended" => story.at(at, "the run was ended"),
            other => story.at(at, other),
        }
    }
    if document["has_more"] == Value::Bool(true) {
        story.text.push_str("\n  There are more calls: SELECT * FROM audit.calls WHERE run_id = '…' ORDER BY received_at\n");
    }
    story.text
}

/// Why a call did not go through. That it had to be approved is told in words.
fn reasons(call: &Value) -> String {
    let codes: Vec<String> = array(&call["reasons"])
        .iter()
        .filter_map(Value::as_str)
        .filter(|code| *code != "approval_required")
        .map(safe)
        .collect();
    codes.join(", ")
}

fn call_line(call: &Value) -> String {
    let parked = if call["decision"] == "park" {
        "parked, then "
    } else {
        ""
    };
    format!(
        "{} {parked}{}  {}{}",
        name(call, "tool", "no known tool"),
        ending(call),
        text(call, "call_id"),
        milliseconds(&call["api_took"]).map_or_else(String::new, |took| format!("  {took}"))
    )
}

fn why(story: &mut Story, call: &Value) {
    let because = if call["decision"] == "park" {
        let permitted = by(&call["permitted_by"]);
        let then = if permitted.is_empty() {
            permitted
        } else {
            format!("then permitted {permitted}")
        };
        [
            format!("parked {}", by(&call["policies"])),
            then,
            reasons(call),
        ]
    } else {
        let decided = by(&call["policies"]);
        [reasons(call), decided, text(call, "kill_switch_id")]
    };
    let because: Vec<&str> = because
        .iter()
        .map(String::as_str)
        .filter(|part| !part.is_empty())
        .collect();
    story.more(&because.join(", "));
    story.more(&labelled("before", at_pointer(call, "/before/state")));
    story.more(&labelled("changed", &call["changed"]));
}

/// An approval.
pub(super) fn approval(document: &Value) -> String {
    let approval = &document["approval"];
    let call = &document["call"];
    let mut story = Story::new(&format!(
        "{}: {} of {} {}",
        text(approval, "approval_id"),
        text(approval, "tool"),
        text(approval, "agent"),
        approval["outcome"].as_str().unwrap_or("waits")
    ));
    story.about("call", &text(approval, "call_id"));
    story.about("run", &in_run(approval));
    story.about("set off by", &text(call, "triggered_by"));
    story.about("for", &text(call, "purpose"));
    story.about("arguments", &json(&approval["arguments"]));
    story.about("preview", &json(&approval["preview"]));
    story.about("digest", &text(approval, "digest"));
    story.about("words", &quoted(call, "agent_words"));
    story.about("needs", &tiers(&approval["tiers"]));
    let mut events: Vec<(Option<Timestamp>, String, String)> = Vec::new();
    events.push((
        time(approval, "parked_at"),
        format!("parked {}", by(&approval["policies"])),
        String::new(),
    ));
    for shown in array(&document["shown_to"]) {
        let who = text(shown, "operator");
        events.push((
            time(shown, "at"),
            format!("{who} was shown it"),
            String::new(),
        ));
    }
    for refused in array(&document["refused"]) {
        let line = format!(
            "{} was refused to {}: {}",
            text(refused, "operator"),
            text(refused, "action"),
            list(&refused["reasons"])
        );
        events.push((time(refused, "at"), line, String::new()));
    }
    for one in array(&approval["votes"]) {
        let line = vote(one["vote"].as_str(), one);
        events.push((time(one, "at"), line, quoted(one, "reason")));
    }
    if let Some(ended) = time(approval, "ended_at") {
        let line = match approval["executed"].as_bool() {
            Some(true) => format!("executed: {}", ending(call)),
            Some(false) => format!("not executed: {}", text(approval, "outcome")),
            None => text(approval, "outcome"),
        };
        events.push((Some(ended), line, reasons(call)));
    }
    events.sort_by_key(|(at, _, _)| *at);
    for (at, line, more) in events {
        story.at(at, &line);
        story.more(&more);
    }
    story.text.push('\n');
    texts(&mut story, call);
    story.text
}

/// A halt.
pub(super) fn halt(document: &Value) -> String {
    let halt = &document["halt"];
    let mut story = Story::new(&format!(
        "{}: {}",
        text(halt, "kill_switch_id"),
        scope(halt)
    ));
    story.about(
        "stopped",
        &match halt["calls_stopped"].as_i64() {
            Some(1) => "1 call".to_owned(),
            calls => format!("{} calls", calls.unwrap_or_default()),
        },
    );
    story.at(time(halt, "pulled_at"), &pulled(halt));
    if time(halt, "recorded_at")
        .zip(time(halt, "pulled_at"))
        .is_some_and(|(recorded, pulled)| (recorded - pulled).num_seconds() > 1)
    {
        story.more("recorded later: the database was away");
    }
    for call in array(&document["stopped"]) {
        let line = format!(
            "{} of {} not sent  {}",
            name(call, "tool", "a call"),
            name(call, "agent", "nobody known"),
            text(call, "call_id")
        );
        story.at(time(call, "received_at"), &line);
        story.more(&json(&call["arguments"]));
    }
    match time(halt, "released_at") {
        Some(at) => story.at(Some(at), &released(halt)),
        None => story.text.push_str("\n  It still holds.\n"),
    }
    story.text
}

fn scope(halt: &Value) -> String {
    match halt["target"].as_str() {
        Some(target) => format!("halt of {} {}", text(halt, "kind"), safe(target)),
        None => format!("halt of {}", text(halt, "kind")),
    }
}

fn pulled(halt: &Value) -> String {
    format!(
        "{} pulled the kill switch, {}: {}",
        text(halt, "pulled_by"),
        scope(halt),
        quoted(halt, "reason")
    )
}

fn released(halt: &Value) -> String {
    format!(
        "{} released it: {}",
        text(halt, "released_by"),
        quoted(halt, "release_reason")
    )
}

fn vote(vote: Option<&str>, of: &Value) -> String {
    let mut who = text(of, "operator");
    let authority = of["on_authority_of"]
        .as_str()
        .or_else(|| at_pointer(of, "/detail/for").as_str());
    if let Some(authority) = authority.map(safe).filter(|authority| *authority != who) {
        who.push_str(&format!(", on the right of {authority},"));
    }
    let verb = match vote {
        Some("approve") => "approved",
        Some("deny") => "denied",
        _ => "voted on",
    };
    match of["digest"].as_str() {
        Some(digest) => format!("{who} {verb} what has the digest {}", safe(digest)),
        None => format!("{who} {verb} it"),
    }
}

/// How a call stands, in a few words.
fn ending(call: &Value) -> String {
    match call["outcome"].as_str() {
        Some("completed") => format!("completed {}", call["status"]),
        Some(outcome) => safe(outcome),
        None => match call["decision"].as_str() {
            Some("park") => "waits or is under way".to_owned(),
            _ => "is under way".to_owned(),
        },
    }
}

fn outcome(entry: &Value) -> String {
    let status = entry["status"]
        .as_i64()
        .map_or_else(String::new, |status| format!(", status {status}"));
    let executed = match entry["executed"].as_bool() {
        Some(true) => "the API executed it",
        Some(false) => "certainly not executed",
        None => "nobody knows whether it was executed",
    };
    format!("{}{status}: {executed}", text(entry, "outcome"))
}

fn texts(story: &mut Story, call: &Value) {
    let Some(policies) = call["policy_texts"].as_object() else {
        return;
    };
    for (id, policy) in policies {
        story
            .text
            .push_str(&format!("  The policy {}:\n", safe(id)));
        for line in policy.as_str().unwrap_or_default().lines() {
            story.text.push_str(&format!("    {}\n", safe(line)));
        }
    }
}

fn took(story: &mut Story, call: &Value) {
    let steps = [
        ("deciding", "deciding_took"),
        ("waiting", "waiting_took"),
        ("recording", "recording_took"),
        ("the API", "api_took"),
    ];
    let said: Vec<String> = steps
        .into_iter()
        .filter_map(|(step, column)| Some(format!("{step} {}", milliseconds(&call[column])?)))
        .collect();
    if !said.is_empty() {
        story
            .text
            .push_str(&format!("  Took: {}\n", said.join(", ")));
    }
}
