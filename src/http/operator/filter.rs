//! What a list of the records is asked for, held against what there can be: ids are ids, codes are known codes, and a value is
//! only ever named by its keyed digest, so that no list of requests holds it in clear.

use std::str::FromStr;

use chrono::DateTime;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, openapi::Object};

use crate::{
    call::Consequence,
    clock::Timestamp,
    entry::{Decision, Kind},
    http::openapi::{dictionary::made_of, schemas},
    ids::{ApprovalId, CallId, KillSwitchId, RunId},
    reason::{Reason, Refusal},
    store::entries::{Filter, Order},
};

/// The longest name of an agent, an operator, an API or a tool.
const NAME_BYTES: usize = 200;
/// Digests of values in one question: more than a value has forms.
const VALUES: usize = 16;

/// The query string as it comes.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Asked {
    /// Only entries recorded at this time or later.
    #[param(inline, value_type = Option<schemas::Time>)]
    from: Option<String>,
    /// Only entries recorded before this time.
    #[param(inline, value_type = Option<schemas::Time>)]
    to: Option<String>,
    /// Only entries of this agent.
    #[param(inline, value_type = Option<schemas::Name>)]
    agent: Option<String>,
    /// Only entries of this run.
    #[param(inline, value_type = Option<schemas::Run>)]
    run: Option<String>,
    /// Only entries of this call.
    #[param(inline, value_type = Option<schemas::Call>)]
    call: Option<String>,
    /// Only entries of this approval.
    #[param(inline, value_type = Option<schemas::Approval>)]
    approval: Option<String>,
    /// Only entries of this kill switch.
    #[param(inline, value_type = Option<schemas::KillSwitch>)]
    kill_switch: Option<String>,
    /// Only entries of this tool.
    #[param(inline, value_type = Option<schemas::Name>)]
    tool: Option<String>,
    /// Only entries of this API's tools.
    #[param(inline, value_type = Option<schemas::Name>)]
    api: Option<String>,
    /// Only entries of tools with this consequence.
    #[param(inline, value_type = Option<schemas::ConsequenceName>)]
    consequence: Option<String>,
    /// Only entries of this kind.
    #[param(inline, value_type = Option<schemas::EntryKind>)]
    kind: Option<String>,
    /// Only entries with this decision.
    #[param(inline, value_type = Option<schemas::DecisionName>)]
    decision: Option<String>,
    /// Only entries with this problem code among their reasons.
    #[param(inline, value_type = Option<schemas::Code>)]
    reason: Option<String>,
    /// Only entries of this operator.
    #[param(inline, value_type = Option<schemas::Name>)]
    operator: Option<String>,
    /// Only entries of calls with this keyed digest: `hmac-sha256:` and 64 hexadecimal digits.
    digest: Option<String>,
    /// Only entries in which a sensitive value stood: up to 16 of its keyed digests, with commas between them. `POST /v1/audit/hash` gives them; the value itself is never sent.
    value: Option<String>,
    /// `newest` first, where nothing is said, or `oldest`.
    #[param(inline, value_type = Option<Orders>)]
    order: Option<String>,
    /// Rows of the page.
    #[param(inline, value_type = Option<schemas::Limit>)]
    pub limit: Option<i64>,
    /// Where the page before ended: its `cursor`.
    #[param(inline, value_type = Option<schemas::Cursor>)]
    pub cursor: Option<String>,
}

fn orders() -> Object {
    schemas::one_of(["newest", "oldest"])
}

struct Orders;
made_of!(Orders, orders().into());

/// The same, understood.
pub(super) struct Question {
    pub filter: Filter,
    pub order: Order,
    /// What was asked for, as it is recorded: an object of the filters that were given.
    pub told: Value,
}

impl Asked {
    /// Reads the filters.
    ///
    /// # Errors
    /// `malformed_body` that names the filter.
    pub(super) fn question(&self) -> Result<Question, Refusal> {
        let order = match self.order.as_deref() {
            None | Some("newest") => Order::NewestFirst,
            Some("oldest") => Order::OldestFirst,
            Some(_) => return Err(wrong("order", "newest or oldest")),
        };
        let filter = Filter {
            from: time("from", self.from.as_deref())?,
            to: time("to", self.to.as_deref())?,
            agent: name("agent", self.agent.as_deref())?,
            run: id::<RunId>("run", self.run.as_deref())?,
            call: id::<CallId>("call", self.call.as_deref())?,
            approval: id::<ApprovalId>("approval", self.approval.as_deref())?,
            kill_switch: id::<KillSwitchId>("kill_switch", self.kill_switch.as_deref())?,
            tool: name("tool", self.tool.as_deref())?,
            api: name("api", self.api.as_deref())?,
            consequence: one_of(
                "consequence",
                self.consequence.as_deref(),
                &Consequence::ALL,
                |known| known.as_str(),
            )?
            .map(Consequence::as_str),
            kind: one_of("kind", self.kind.as_deref(), &Kind::ALL, |known| {
                known.as_str()
            })?,
            decision: one_of(
                "decision",
                self.decision.as_deref(),
                &Decision::ALL,
                |known| known.as_str(),
            )?,
            reason: match self.reason.as_deref() {
                None => None,
                Some(code) => Some(
                    Reason::from_code(code)
                        .ok_or_else(|| wrong("reason", "a problem code"))?
                        .code(),
                ),
            },
            operator: name("operator", self.operator.as_deref())?,
            digest: digest(self.digest.as_deref())?,
            values: values(self.value.as_deref())?,
        };
        if let (Some(from), Some(to)) = (filter.from, filter.to)
            && from >= to
        {
            return Err(wrong("to", "later than \"from\""));
        }
        let told = told(&filter);
        Ok(Question {
            filter,
            order,
            told,
        })
    }
}

/// The query string of the list of runs.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct RunsAsked {
    /// Only runs of this agent.
    #[param(inline, value_type = Option<schemas::Name>)]
    agent: Option<String>,
    /// Only runs opened at this time or later.
    #[param(inline, value_type = Option<schemas::Time>)]
    from: Option<String>,
    /// Only runs opened before this time.
    #[param(inline, value_type = Option<schemas::Time>)]
    to: Option<String>,
    /// Rows of the page.
    #[param(inline, value_type = Option<schemas::Limit>)]
    pub limit: Option<i64>,
    /// Where the page before ended: its `cursor`.
    #[param(inline, value_type = Option<schemas::Cursor>)]
    pub cursor: Option<String>,
}

/// The same, understood.
pub(super) struct RunsQuestion {
    pub agent: Option<String>,
    pub from: Option<Timestamp>,
    pub to: Option<Timestamp>,
    /// What was asked for, as it is recorded.
    pub told: Value,
}

impl RunsAsked {
    /// Reads the filters.
    ///
    /// # Errors
    /// `malformed_body` that names the filter.
    pub(super) fn question(&self) -> Result<RunsQuestion, Refusal> {
        let filter = Filter {
            agent: name("agent", self.agent.as_deref())?,
            from: time("from", self.from.as_deref())?,
            to: time("to", self.to.as_deref())?,
            ..Filter::default()
        };
        Ok(RunsQuestion {
            told: told(&filter),
            agent: filter.agent,
            from: filter.from,
            to: filter.to,
        })
    }
}

/// Never with the value that was given: it may be anything.
pub(super) fn wrong(name: &str, what: &str) -> Refusal {
    Refusal::new(
        Reason::MalformedBody,
        format!("\"{name}\" must be {what}. Nothing was read."),
    )
}

pub(super) fn time(name: &str, text: Option<&str>) -> Result<Option<Timestamp>, Refusal> {
    text.map(|text| {
        DateTime::parse_from_rfc3339(text)
            .map(|time| time.to_utc())
            .map_err(|_no_time| wrong(name, "a time such as 2026-11-24T21:30:00Z"))
    })
    .transpose()
}

/// The name of something in the config or the contracts.
pub(super) fn name(name: &str, text: Option<&str>) -> Result<Option<String>, Refusal> {
    text.map(|text| {
        let is_name = !text.is_empty()
            && text.len() <= NAME_BYTES
            && text
                .chars()
                .all(|letter| letter.is_alphanumeric() || "._-".contains(letter));
        is_name
            .then(|| text.to_owned())
            .ok_or_else(|| wrong(name, "a name: letters, digits, dots, dashes, underscores"))
    })
    .transpose()
}

pub(super) fn id<T: FromStr<Err = crate::ids::NotAnId>>(
    name: &str,
    text: Option<&str>,
) -> Result<Option<String>, Refusal> {
    text.map(|text| match text.parse::<T>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(wrong(name, &format!("an id that begins {}_", error.prefix))),
    })
    .transpose()
}

pub(super) fn one_of<T: Copy>(
    name: &str,
    text: Option<&str>,
    all: &[T],
    spelling: impl Fn(T) -> &'static str,
) -> Result<Option<T>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    match all.iter().find(|known| spelling(**known) == text) {
        Some(known) => Ok(Some(*known)),
        None => {
            let known: Vec<&str> = all.iter().map(|known| spelling(*known)).collect();
            Err(wrong(name, &format!("one of {}", known.join(", "))))
        }
    }
}

fn digest(text: Option<&str>) -> Result<Option<String>, Refusal> {
    text.map(|text| {
        let is_digest = text
            .strip_prefix("hmac-sha256:")
            .is_some_and(|rest| is_hex(rest, 64));
        is_digest
            .then(|| text.to_owned())
            .ok_or_else(|| wrong("digest", "a call's digest: hmac-sha256:…"))
    })
    .transpose()
}

fn values(text: Option<&str>) -> Result<Vec<String>, Refusal> {
    let Some(text) = text else {
        return Ok(Vec::new());
    };
    let values: Vec<String> = text.split(',').map(str::to_owned).collect();
    if values.len() > VALUES || !values.iter().all(|value| is_hex(value, 32)) {
        return Err(wrong(
            "value",
            &format!(
                "at most {VALUES} keyed digests with commas between them, never the value itself: POST /v1/audit/hash gives its digests"
            ),
        ));
    }
    Ok(values)
}

fn is_hex(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
}

/// The filters that were given, by name: what is recorded of a question.
pub(super) fn given(filters: &[(&str, Option<&str>)]) -> Map<String, Value> {
    filters
        .iter()
        .filter_map(|(name, text)| Some(((*name).to_owned(), json!((*text)?))))
        .collect()
}

fn told(filter: &Filter) -> Value {
    let mut told = given(&[
        ("agent", filter.agent.as_deref()),
        ("run", filter.run.as_deref()),
        ("call", filter.call.as_deref()),
        ("approval", filter.approval.as_deref()),
        ("kill_switch", filter.kill_switch.as_deref()),
        ("tool", filter.tool.as_deref()),
        ("api", filter.api.as_deref()),
        ("consequence", filter.consequence),
        ("kind", filter.kind.map(Kind::as_str)),
        ("decision", filter.decision.map(Decision::as_str)),
        ("reason", filter.reason),
        ("operator", filter.operator.as_deref()),
        ("digest", filter.digest.as_deref()),
    ]);
    for (name, time) in [("from", filter.from), ("to", filter.to)] {
        if let Some(time) = time {
            told.insert(name.to_owned(), json!(time));
        }
    }
    if !filter.values.is_empty() {
        told.insert("value".to_owned(), json!(filter.values));
    }
    Value::Object(told)
}
