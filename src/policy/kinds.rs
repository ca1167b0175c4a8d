//! Which single Cedar type, if any, a JSON Schema node without structure of its own stands for.

use std::collections::BTreeSet;

use serde_json::{Map, Number, Value};

use super::plan::Plan;

/// `anyOf`/`oneOf` of one schema and `null`, as many generators write an optional value: the schema, and
/// its place below the node.
pub(super) fn optional_union(schema: &Map<String, Value>) -> Option<(&Value, String)> {
    if schema.contains_key("type") || schema.contains_key("enum") || schema.contains_key("const") {
        return None;
    }
    let (keyword, branches) = match (schema.get("anyOf"), schema.get("oneOf")) {
        (Some(Value::Array(branches)), None) => ("anyOf", branches),
        (None, Some(Value::Array(branches))) => ("oneOf", branches),
        _ => return None,
    };
    let is_null = |branch: &Value| branch.get("type").is_some_and(|kind| kind == "null");
    match branches.as_slice() {
        [branch, null] if is_null(null) && !is_null(branch) => {
            Some((branch, format!("{keyword}/0")))
        }
        [null, branch] if is_null(null) && !is_null(branch) => {
            Some((branch, format!("{keyword}/1")))
        }
        _ => None,
    }
}

/// The one JSON type a schema allows beside `null`, and whether it allows `null`.
pub(super) fn kind_of(schema: &Map<String, Value>) -> Result<(&str, bool), String> {
    let names: Vec<&str> = match schema.get("type") {
        Some(Value::String(name)) => vec![name],
        Some(Value::Array(names)) => names.iter().filter_map(Value::as_str).collect(),
        Some(_) => return Err("has a `type` that is not a name".to_owned()),
        None => kinds_of_values(schema)?,
    };
    let nullable = names.contains(&"null");
    let mut kinds = names.into_iter().filter(|name| *name != "null");
    match (kinds.next(), kinds.next()) {
        (Some(kind), None) => Ok((kind, nullable)),
        (None, _) => Err("is always null".to_owned()),
        (Some(_), Some(_)) => Err("may have several types, and Cedar has no unions".to_owned()),
    }
}

/// The JSON types of the values that `enum` or `const` lists.
fn kinds_of_values(schema: &Map<String, Value>) -> Result<Vec<&'static str>, String> {
    let values = match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => std::slice::from_ref(value),
        (None, Some(Value::Array(values))) => values.as_slice(),
        _ if ["anyOf", "oneOf", "allOf"]
            .iter()
            .any(|keyword| schema.contains_key(*keyword)) =>
        {
            return Err("has no `type` of its own, and Cedar has no unions".to_owned());
        }
        _ => return Err("has no `type`".to_owned()),
    };
    let kinds: BTreeSet<&'static str> = values
        .iter()
        .map(|value| match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::String(_) => "string",
            Value::Number(number) if number.is_f64() => "number",
            Value::Number(_) => "integer",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        })
        .collect();
    Ok(kinds.into_iter().collect())
}

fn numbers<'s>(
    schema: &'s Map<String, Value>,
    keywords: &[&str],
) -> impl Iterator<Item = &'s Number> {
    let found: Vec<_> = keywords
        .iter()
        .filter_map(|keyword| schema.get(*keyword))
        .collect();
    found.into_iter().filter_map(Value::as_number)
}

const BOUNDS: [&str; 4] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"];

/// `Long`, if the bounds that the schema states fit into 64 bits.
pub(super) fn long(schema: &Map<String, Value>) -> Result<Plan, String> {
    // 2^63, the first float that is too large.
    let fits = |bound: &Number| {
        bound.as_i64().is_some()
            || bound
                .as_f64()
                .is_some_and(|bound| bound.is_finite() && bound.abs() < 9.223_372_036_854_776e18)
    };
    if numbers(schema, &BOUNDS).all(fits) {
        Ok(Plan::Long)
    } else {
        Err("has bounds beyond 64-bit integers".to_owned())
    }
}

/// `decimal`, if the schema guarantees at most 4 decimals.
pub(super) fn decimal(schema: &Map<String, Value>) -> Result<Plan, String> {
    // Cedar's decimal is a 64-bit integer of ten-thousandths.
    const LARGEST: f64 = 922_337_203_685_477.0;
    let exact = |number: &Number| super::context::decimal_text(number).is_some();
    let listed = match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => Some(std::slice::from_ref(value)),
        (None, Some(Value::Array(values))) => Some(values.as_slice()),
        _ => None,
    };
    let by_values =
        listed.is_some_and(|values| values.iter().filter_map(Value::as_number).all(exact));
    let by_multiple = numbers(schema, &["multipleOf"]).any(exact);
    if !by_values && !by_multiple {
        return Err(
            "is a floating-point number: only a `multipleOf` of at most 4 decimals can be read, as a decimal"
                .to_owned(),
        );
    }
    let fits = |bound: &Number| bound.as_f64().is_some_and(|bound| bound.abs() <= LARGEST);
    if numbers(schema, &BOUNDS).all(fits) {
        Ok(Plan::Decimal)
    } else {
        Err("has bounds beyond those of Cedar's decimal (922337203685477.5807)".to_owned())
    }
}
