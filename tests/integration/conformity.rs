//! Holds every request and answer of the gateway's own routes that a test sees against the document that the listener itself
//! publishes: the operation, its status, the media type, the body. What is not documented fails the test, whatever it was about.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, LazyLock, OnceLock},
};

use parking_lot::Mutex;
use reqwest::{Method, Url, header::HeaderMap};
use serde_json::{Map, Value, json};

/// Whose document holds for an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Agents,
    Operators,
}

impl Side {
    pub const fn path(self) -> &'static str {
        match self {
            Self::Agents => "/v1/openapi.json",
            Self::Operators => "/openapi.json",
        }
    }

    fn document(self) -> &'static OnceLock<Value> {
        static DOCUMENTS: [OnceLock<Value>; 2] = [OnceLock::new(), OnceLock::new()];
        &DOCUMENTS[usize::from(self == Self::Operators)]
    }
}

static LISTENERS: LazyLock<Mutex<HashMap<u16, Side>>> = LazyLock::new(Mutex::default);

/// From now on what goes to this listener is held against its document.
pub async fn know(http: &reqwest::Client, address: SocketAddr, side: Side) {
    if side.document().get().is_none() {
        let url = format!("http://{address}{}", side.path());
        let answer = http.get(url).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let text = answer.text().await.unwrap();
        let _ = side.document().set(serde_json::from_str(&text).unwrap());
    }
    LISTENERS.lock().insert(address.port(), side);
}

/// What was sent.
pub struct Sent {
    pub method: Method,
    pub url: Url,
    pub body: Option<Vec<u8>>,
}

impl Sent {
    pub fn of(request: &reqwest::Request) -> Self {
        let body = request.body().and_then(reqwest::Body::as_bytes);
        Self {
            method: request.method().clone(),
            url: request.url().clone(),
            body: body.map(<[u8]>::to_vec),
        }
    }
}

/// Holds an exchange against the document.
pub fn hold(sent: &Sent, status: u16, headers: &HeaderMap, body: &[u8]) {
    let side = LISTENERS
        .lock()
        .get(&sent.url.port().unwrap_or_default())
        .copied();
    let Some(document) = side.and_then(|side| side.document().get()) else {
        return;
    };
    let Some((template, item)) = item(document, sent.url.path()) else {
        return;
    };
    let what = format!("{} {template} answered {status}", sent.method);
    let method = sent.method.as_str().to_ascii_lowercase();
    let Some(operation) = item.get(&method) else {
        assert_eq!(status, 405, "{what}: no such operation is documented");
        return;
    };
    let responses = &operation["responses"];
    let response = resolved(document, &responses[status.to_string()]);
    assert!(response.is_object(), "{what}, which is not documented");
    let kind = headers
        .get("content-type")
        .map_or("", |kind| kind.to_str().unwrap());
    let kind = kind.split(';').next().unwrap();
    let content = &response["content"][kind];
    if response.get("content").is_some() || !body.is_empty() {
        assert!(
            content.is_object(),
            "{what} with {kind:?}, which is not documented"
        );
    }
    if kind == "application/json" || kind.ends_with("+json") {
        let body: Value = serde_json::from_slice(body).unwrap();
        fits(document, &content["schema"], &body, &what);
    }
    for name in [
        "retry-after",
        "location",
        "link",
        "www-authenticate",
        "toolgate-call",
        "toolgate-executed-by",
        "idempotency-replayed",
        "preference-applied",
    ] {
        let mut documented = response["headers"].as_object().into_iter().flatten();
        let is_documented = documented.any(|(known, _)| known.eq_ignore_ascii_case(name));
        assert!(
            is_documented || !headers.contains_key(name),
            "{what} with {name}, which is not documented"
        );
    }
    if (200..300).contains(&status) {
        was_allowed(document, operation, sent, &what);
    }
}

/// What was taken must be what the document says can be sent.
fn was_allowed(document: &Value, operation: &Value, sent: &Sent, what: &str) {
    for (name, _) in sent.url.query_pairs() {
        let mut parameters = operation["parameters"].as_array().into_iter().flatten();
        let is_known = parameters.any(|known| known["in"] == "query" && known["name"] == *name);
        assert!(
            is_known,
            "{what} to the parameter {name}, which is not documented"
        );
    }
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    if let (Some(body), true) = (&sent.body, schema.is_object()) {
        let body: Value = serde_json::from_slice(body).unwrap();
        fits(document, schema, &body, &format!("what {what} to"));
    }
}

/// The path of the document that a path is, literal segments before others.
fn item<'a>(document: &'a Value, path: &str) -> Option<(&'a str, &'a Value)> {
    let segments: Vec<&str> = path.split('/').collect();
    let mut found: Vec<(usize, &str, &Value)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .filter_map(|(template, item)| {
            let known: Vec<&str> = template.split('/').collect();
            let fits = known.len() == segments.len()
                && known.iter().zip(&segments).all(|(known, given)| {
                    known == given || (known.starts_with('{') && !given.is_empty())
                });
            let open = known.iter().filter(|known| known.starts_with('{')).count();
            fits.then_some((open, template.as_str(), item))
        })
        .collect();
    found.sort_by_key(|(open, _, _)| *open);
    found.first().map(|(_, template, item)| (*template, *item))
}

pub fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    match value["$ref"].as_str() {
        Some(place) => document.pointer(place.strip_prefix('#').unwrap()).unwrap(),
        None => value,
    }
}

/// Fails where a value does not fit a schema of the document.
pub fn fits(document: &Value, schema: &Value, value: &Value, what: &str) {
    static MADE: LazyLock<Mutex<HashMap<String, Arc<jsonschema::Validator>>>> =
        LazyLock::new(Mutex::default);
    let mut made = MADE.lock();
    let validator = made.entry(schema.to_string()).or_insert_with(|| {
        let mut used = Map::new();
        refer(document, schema, &mut used);
        let mut whole = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "components": {"schemas": used},
        });
        let own = schema.as_object().unwrap().clone();
        whole.as_object_mut().unwrap().extend(own);
        let options = jsonschema::options().offline();
        Arc::new(options.should_validate_formats(true).build(&whole).unwrap())
    });
    let validator = Arc::clone(validator);
    drop(made);
    let errors: Vec<String> = validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(
        errors.is_empty(),
        "{what}: {}\n{value:#}",
        errors.join("\n")
    );
}

/// The schemas that one refers to, by name.
fn refer(document: &Value, schema: &Value, used: &mut Map<String, Value>) {
    match schema {
        Value::Object(members) => {
            let name = members.get("$ref").and_then(Value::as_str);
            if let Some(name) = name.and_then(|place| place.strip_prefix("#/components/schemas/"))
                && !used.contains_key(name)
            {
                let named = &document["components"]["schemas"][name];
                used.insert(name.to_owned(), named.clone());
                refer(document, named, used);
            }
            members
                .values()
                .for_each(|member| refer(document, member, used));
        }
        Value::Array(items) => items.iter().for_each(|item| refer(document, item, used)),
        _ => {}
    }
}
