//! The refusals of every operation: which statuses there can be follows from what the operation takes, and which codes each status
//! has from the one enum of reasons.

use std::collections::BTreeSet;

use http::StatusCode;
use serde_json::{Map, Value, json};

use crate::{problem::status_and_title, reason::Reason};

/// Adds the refusals that an operation can give to those that it names itself.
pub(super) fn add(operation: &mut Map<String, Value>, is_call: bool) {
    let is_open = operation.contains_key("security");
    let parameters = operation.get("parameters").and_then(Value::as_array);
    let takes = |place: &str| {
        let mut parameters = parameters.into_iter().flatten();
        parameters.any(|parameter| parameter.get("in").and_then(Value::as_str) == Some(place))
    };
    let mut statuses: BTreeSet<u16> = BTreeSet::new();
    if !is_open {
        statuses.extend([401, 403, 500, 503]);
    }
    if takes("query") {
        statuses.insert(400);
    }
    if takes("path") {
        statuses.insert(404);
    }
    if operation.contains_key("requestBody") {
        statuses.extend([400, 413, 415]);
    }
    if is_call {
        statuses.extend(Reason::ALL.map(|reason| status_and_title(reason).0.as_u16()));
    }
    let named = operation.entry("responses").or_insert_with(|| json!({}));
    let Some(named) = named.as_object_mut() else {
        return;
    };
    // What an operation names without a body of its own is such a refusal too.
    let has_body = |response: &Value| response.get("content").is_some();
    let bare = named.iter().filter(|(_, response)| !has_body(response));
    statuses.extend(bare.filter_map(|(status, _)| status.parse::<u16>().ok()));
    for status in statuses {
        let place = format!("#/components/responses/Problem{status}");
        named.insert(status.to_string(), json!({ "$ref": place }));
    }
}

/// A refusal for each status, with the codes that it can have.
pub(super) fn responses() -> Map<String, Value> {
    let statuses: BTreeSet<StatusCode> = Reason::ALL
        .into_iter()
        .map(|reason| status_and_title(reason).0)
        .collect();
    statuses
        .into_iter()
        .map(|status| (format!("Problem{}", status.as_u16()), response(status)))
        .collect()
}

fn response(status: StatusCode) -> Value {
    let codes: Vec<String> = Reason::ALL
        .into_iter()
        .filter_map(|reason| {
            let (own, title) = status_and_title(reason);
            (own == status).then(|| format!("`{}` ({title})", reason.code()))
        })
        .collect();
    let text = json!({"type": "string"});
    let mut headers = Map::new();
    if status == StatusCode::UNAUTHORIZED {
        let about = "How to authenticate (RFC 6750).";
        headers.insert(
            "WWW-Authenticate".to_owned(),
            json!({"description": about, "schema": text}),
        );
    }
    if matches!(
        status,
        StatusCode::FORBIDDEN
            | StatusCode::CONFLICT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::SERVICE_UNAVAILABLE
    ) {
        let about = "Seconds after which trying again makes sense, where it does.";
        headers.insert(
            "Retry-After".to_owned(),
            json!({"description": about, "schema": {"type": "integer", "minimum": 0}}),
        );
    }
    for (name, about) in [
        (
            "Toolgate-Call",
            "The call that this is about, where it is about one.",
        ),
        (
            "Idempotency-Replayed",
            "`true` where this is how an earlier call for the same request stands.",
        ),
        (
            "Toolgate-Executed-By",
            "Who does it, or did it, instead of the gateway, where somebody does.",
        ),
    ] {
        headers.insert(
            name.to_owned(),
            json!({"description": about, "schema": text}),
        );
    }
    json!({
        "description": format!("Refused: {}.", codes.join(", ")),
        "headers": headers,
        "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}},
    })
}
