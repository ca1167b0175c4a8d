//! Builds a call's Cedar context from typed values. Nothing here goes through Cedar's JSON format, whose
//! reserved keys (`__entity`, `__extn`) would let an argument pass for an entity.

use cedar_policy::{Context, RestrictedExpression};
use serde_json::{Map, Number, Value};

use super::plan::{Plan, RecordPlan};
use super::reads::Reads;
use super::{CallRequest, RunFacts};

/// The largest integer up to which every float stands for exactly one integer.
const EXACT_FLOAT: f64 = 9_007_199_254_740_992.0;

/// A value that does not fit the plan: the JSON Pointer into the arguments, and what was wrong. It never
/// holds the value itself, which may be secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("argument `{pointer}` {why}")]
pub(super) struct Misfit {
    pointer: String,
    why: &'static str,
}

impl Misfit {
    const fn new(why: &'static str) -> Self {
        Self {
            pointer: String::new(),
            why,
        }
    }

    /// Puts one more step before the pointer; called on the way out, so that a fitting value costs nothing.
    fn below(mut self, step: &str) -> Self {
        let step = step.replace('~', "~0").replace('/', "~1");
        self.pointer = format!("/{step}{}", self.pointer);
        self
    }
}

/// Why a context could not be built.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContextError {
    #[error(transparent)]
    Misfit(#[from] Misfit),
    #[error("the time is outside the range of dates that can be written")]
    Time,
    #[error("the call's context could not be built")]
    Cedar(#[from] Box<cedar_policy::ContextCreationError>),
    #[error("the call's request could not be built")]
    Request(#[from] Box<cedar_policy::RequestValidationError>),
    #[error("the call's context could not be built")]
    Record(#[from] cedar_policy::ExpressionConstructionError),
}

/// The parts of a context that do not change between the two evaluations of one call.
pub(super) struct Facts {
    input: RestrictedExpression,
    run: Option<RestrictedExpression>,
    now: Option<RestrictedExpression>,
}

impl Facts {
    /// Converts the arguments by their plan, and of the rest what the policies read: Cedar parses a date by
    /// regular expressions, which takes longer than to evaluate several policies.
    pub(super) fn new(
        plan: &RecordPlan,
        request: &CallRequest<'_>,
        reads: Reads,
    ) -> Result<Self, ContextError> {
        let run = reads.run.then(|| run(&request.run)).transpose()?;
        let now = reads
            .now
            .then(|| datetime(request.now_millis).ok_or(ContextError::Time));
        Ok(Self {
            input: record(plan, request.arguments)?,
            run,
            now: now.transpose()?,
        })
    }

    /// The context with these tiers approved.
    pub(super) fn context<'a>(
        &self,
        approvals: impl Iterator<Item = &'a str>,
    ) -> Result<Context, ContextError> {
        let approvals = RestrictedExpression::new_set(approvals.map(text));
        let pairs = [
            ("input", Some(self.input.clone())),
            ("run", self.run.clone()),
            ("now", self.now.clone()),
            ("approvals", Some(approvals)),
        ];
        let pairs = pairs
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)));
        Ok(Context::from_pairs(pairs).map_err(Box::new)?)
    }
}

/// A Cedar string.
pub(super) fn text(value: &str) -> RestrictedExpression {
    RestrictedExpression::new_string(value.to_owned())
}

fn run(run: &RunFacts<'_>) -> Result<RestrictedExpression, ContextError> {
    let scopes = run.scopes.iter().map(|scope| text(scope));
    Ok(RestrictedExpression::new_record([
        ("id".to_owned(), text(run.id)),
        ("triggered_by".to_owned(), text(run.triggered_by)),
        ("purpose".to_owned(), text(run.purpose)),
        (
            "implicit".to_owned(),
            RestrictedExpression::new_bool(run.implicit),
        ),
        ("scopes".to_owned(), RestrictedExpression::new_set(scopes)),
    ])?)
}

/// Cedar reads years of four digits only.
fn datetime(millis: i64) -> Option<RestrictedExpression> {
    let at = chrono::DateTime::from_timestamp_millis(millis)?;
    let text = at.format("%Y-%m-%dT%H:%M:%S%.3fZ").to_string();
    (text.len() == 24 && !text.starts_with(['+', '-']))
        .then(|| RestrictedExpression::new_datetime(text))
}

fn record(plan: &RecordPlan, object: &Map<String, Value>) -> Result<RestrictedExpression, Misfit> {
    let mut pairs = Vec::with_capacity(object.len());
    let mut required_seen = 0;
    for (name, value) in object {
        let Some(field) = plan.fields.get(name) else {
            if plan.closed {
                return Err(Misfit::new("is not in the contract").below(name));
            }
            continue;
        };
        required_seen += usize::from(field.required);
        let Some(field_plan) = &field.plan else {
            continue;
        };
        if field.nullable && value.is_null() {
            continue;
        }
        let converted = expression(field_plan, value).map_err(|misfit| misfit.below(name))?;
        pairs.push((name.clone(), converted));
    }
    if required_seen < plan.required {
        let missing = plan
            .fields
            .iter()
            .find(|(name, field)| field.required && !object.contains_key(*name));
        let name = missing.map_or("", |(name, _)| name.as_str());
        return Err(Misfit::new("is missing").below(name));
    }
    // A JSON object has each name once, so that the one error of `new_record` cannot happen.
    RestrictedExpression::new_record(pairs).map_err(|_| Misfit::new("names a property twice"))
}

fn expression(plan: &Plan, value: &Value) -> Result<RestrictedExpression, Misfit> {
    match (plan, value) {
        (Plan::Text, Value::String(value)) => Ok(text(value)),
        (Plan::Bool, Value::Bool(value)) => Ok(RestrictedExpression::new_bool(*value)),
        (Plan::Long, Value::Number(number)) => long(number)
            .map(RestrictedExpression::new_long)
            .ok_or(Misfit::new("is not an integer of 64 bits")),
        (Plan::Decimal, Value::Number(number)) => decimal_text(number)
            .map(RestrictedExpression::new_decimal)
            .ok_or(Misfit::new("has more than 4 decimals or is too large")),
        (Plan::Set(element), Value::Array(values)) => {
            let mut converted = Vec::with_capacity(values.len());
            for (index, value) in values.iter().enumerate() {
                let value = expression(element, value);
                converted.push(value.map_err(|misfit| misfit.below(&index.to_string()))?);
            }
            Ok(RestrictedExpression::new_set(converted))
        }
        (Plan::Record(plan), Value::Object(object)) => record(plan, object),
        _ => Err(Misfit::new("has another type than the contract says")),
    }
}

/// JSON Schema counts `5.0` as an integer, so that a float that is one has to be read as one.
fn long(number: &Number) -> Option<i64> {
    if let Some(integer) = number.as_i64() {
        return Some(integer);
    }
    let float = number
        .as_f64()
        .filter(|float| number.is_f64() && float.fract() == 0.0)?;
    if float.abs() > EXACT_FLOAT {
        return None;
    }
    // `as` is exact here: whole and within 53 bits.
    Some(float as i64)
}

/// The number as Cedar writes a decimal, or `None` if it has more than 4 decimals or does not fit.
pub(super) fn decimal_text(number: &Number) -> Option<String> {
    const LARGEST_WHOLE: u64 = 922_337_203_685_477;
    if let Some(integer) = number.as_i64() {
        return (integer.unsigned_abs() <= LARGEST_WHOLE).then(|| format!("{integer}.0"));
    }
    let float = number
        .as_f64()
        .filter(|float| number.is_f64() && float.abs() < LARGEST_WHOLE as f64)?;
    // The shortest text that reads back as this float, which is also what is forwarded.
    let text = float.to_string();
    match text.split_once('.') {
        None => Some(format!("{text}.0")),
        Some((_, decimals)) => (decimals.len() <= 4).then_some(text),
    }
}
