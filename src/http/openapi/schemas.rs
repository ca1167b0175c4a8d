//! Schemas that stand in many operations: ids, names, times, and the closed sets of words, each from where the code has it.

use serde_json::Value;
use utoipa::{
    PartialSchema as _,
    openapi::{
        Object, ObjectBuilder,
        schema::{KnownFormat, SchemaFormat, Type},
    },
};

use super::dictionary::made_of;
use crate::{
    call::Consequence,
    entry::{Decision, Kind},
    problem::Problem,
    reason::{FieldError, Reason},
};

/// What a refusal says.
pub(super) fn problem() -> Value {
    serde_json::to_value(Problem::schema()).unwrap_or_default()
}

/// One argument that does not fit.
pub(super) fn field_error() -> Value {
    serde_json::to_value(FieldError::schema()).unwrap_or_default()
}

fn text() -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String)
}

/// One of these words.
pub(in crate::http) fn one_of<'a>(words: impl IntoIterator<Item = &'a str>) -> Object {
    text().enum_values(Some(words)).build()
}

fn id(prefix: &str) -> Object {
    // UUIDv7 in Crockford base32.
    text()
        .pattern(Some(format!("^{prefix}_[0-7][0-9A-HJKMNP-TV-Z]{{25}}$")))
        .build()
}

pub(in crate::http) fn call() -> Object {
    id("call")
}

pub(in crate::http) fn run() -> Object {
    id("run")
}

pub(in crate::http) fn approval() -> Object {
    id("appr")
}

pub(in crate::http) fn kill_switch() -> Object {
    id("halt")
}

/// The name of something in the config or in a contract.
pub(in crate::http) fn name() -> Object {
    text().min_length(Some(1)).max_length(Some(200)).build()
}

pub(in crate::http) fn time() -> Object {
    text()
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .build()
}

pub(in crate::http) fn limit() -> Object {
    let (default, most) = crate::http::operator::LIMITS;
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .minimum(Some(1))
        .maximum(Some(most))
        .default(Some(default.into()))
        .build()
}

pub(in crate::http) fn cursor() -> Object {
    text().max_length(Some(512)).build()
}

pub(in crate::http) fn consequence() -> Object {
    one_of(Consequence::ALL.map(Consequence::as_str))
}

pub(in crate::http) fn kind() -> Object {
    one_of(Kind::ALL.map(Kind::as_str))
}

pub(in crate::http) fn decision() -> Object {
    one_of(Decision::ALL.map(Decision::as_str))
}

pub(in crate::http) fn code() -> Object {
    one_of(Reason::ALL.map(Reason::code))
}

/// Types that stand for these schemas where utoipa wants a type: a parameter's description is kept only so.
pub(in crate::http) struct Call;
made_of!(Call, call().into());
pub(in crate::http) struct Run;
made_of!(Run, run().into());
pub(in crate::http) struct Approval;
made_of!(Approval, approval().into());
pub(in crate::http) struct KillSwitch;
made_of!(KillSwitch, kill_switch().into());
pub(in crate::http) struct Name;
made_of!(Name, name().into());
pub(in crate::http) struct Time;
made_of!(Time, time().into());
pub(in crate::http) struct Limit;
made_of!(Limit, limit().into());
pub(in crate::http) struct Cursor;
made_of!(Cursor, cursor().into());
pub(in crate::http) struct ConsequenceName;
made_of!(ConsequenceName, consequence().into());
pub(in crate::http) struct EntryKind;
made_of!(EntryKind, kind().into());
pub(in crate::http) struct DecisionName;
made_of!(DecisionName, decision().into());
pub(in crate::http) struct Code;
made_of!(Code, code().into());
