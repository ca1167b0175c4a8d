//! From an HTTP request to arguments.

use http::{HeaderMap, HeaderName, HeaderValue};
use serde_json::{Map, json};

use super::*;

pub(super) const FULL: &str = "method: POST
path: /refunds/{id}
query: [limit, expand, live]
headers: { If-Match: version }
body: { formats: [json, form] }
input:
  type: object
  required: [id]
  properties:
    id: { type: integer }
    limit: { type: integer }
    live: { type: boolean }
    expand: { type: array, items: { type: string } }
    version: { type: string }
    amount: { type: integer }
    note: { type: string }
    metadata: { type: object, additionalProperties: { type: string } }
    tags: { type: array, items: { type: string } }
limits: { body_bytes: 500 }";

pub(super) struct Request<'a> {
    pub(super) path: &'a str,
    pub(super) query: Option<&'a str>,
    pub(super) headers: Vec<(&'a str, &'a [u8])>,
    pub(super) body: &'a [u8],
}

pub(super) const PLAIN: Request<'static> = Request {
    path: "7",
    query: None,
    headers: Vec::new(),
    body: b"",
};

pub(super) fn read(
    contract: &Contract,
    request: &Request<'_>,
) -> Result<(Map<String, Value>, Option<BodyFormat>), RequestError> {
    let mut headers = HeaderMap::new();
    for (name, value) in &request.headers {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_bytes(value).unwrap(),
        );
    }
    let params = [("id".to_owned(), request.path.to_owned())];
    contract.arguments_from_http(&params, request.query, &headers, request.body)
}

pub(super) fn json_body(body: &str) -> Request<'_> {
    Request {
        headers: vec![("content-type", b"application/json")],
        body: body.as_bytes(),
        ..PLAIN
    }
}

fn messages(error: RequestError) -> Vec<(String, String)> {
    match error {
        RequestError::Invalid(violations) => violations
            .into_iter()
            .map(|violation| (violation.pointer, violation.message))
            .collect(),
        other => panic!("{other:?}"),
    }
}

pub(super) fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

#[test]
fn arguments_come_from_all_places_with_their_types() {
    let contract = contract(FULL);
    let request = Request {
        query: Some("limit=5&expand=a+b&expand[]=c&live=true"),
        headers: vec![
            ("content-type", b"application/json; charset=UTF-8"),
            ("if-match", "ä".as_bytes()),
        ],
        body: br#"{"amount":3.0,"metadata":{"k":"v"}}"#,
        ..PLAIN
    };
    let (arguments, format) = read(&contract, &request).unwrap();
    assert_eq!(format, Some(BodyFormat::Json));
    let expected = json!({
        "id": 7, "limit": 5, "expand": ["a b", "c"], "live": true, "version": "ä",
        "amount": 3, "metadata": {"k": "v"},
    });
    assert_eq!(Value::Object(arguments.clone()), expected);
    contract.validate(&expected).unwrap();
    let sent = contract.request(&arguments, format).unwrap();
    assert_eq!(sent.method, Method::POST);
    assert_eq!(
        sent.path_and_query,
        "/refunds/7?limit=5&expand=a%20b&expand=c&live=true"
    );
    assert_eq!(
        sent.headers,
        [(
            HeaderName::from_static("if-match"),
            HeaderValue::from_bytes("ä".as_bytes()).unwrap()
        )]
    );
    assert_eq!(sent.content_type.unwrap(), "application/json");
    assert_eq!(
        crate::json::parse(&sent.body).unwrap(),
        json!({"amount": 3, "metadata": {"k": "v"}})
    );
}

#[test]
fn a_form_gives_the_same_arguments_as_json() {
    let contract = contract(FULL);
    let request = Request {
        headers: vec![("content-type", b"application/x-www-form-urlencoded")],
        body: b"amount=3&metadata[k]=v&tags[]=x&tags[]=y",
        ..PLAIN
    };
    let (arguments, format) = read(&contract, &request).unwrap();
    assert_eq!(format, Some(BodyFormat::Form));
    let body = r#"{"amount":3,"metadata":{"k":"v"},"tags":["x","y"]}"#;
    assert_eq!(arguments, read(&contract, &json_body(body)).unwrap().0);
    let sent = contract.request(&arguments, format).unwrap();
    assert_eq!(
        &sent.body[..],
        b"amount=3&metadata%5Bk%5D=v&tags%5B0%5D=x&tags%5B1%5D=y"
    );
    assert_eq!(
        sent.content_type.unwrap(),
        "application/x-www-form-urlencoded"
    );
}

#[test]
fn content_types_are_exact() {
    let contract = contract(FULL);
    let with = |types: &[&'static [u8]]| {
        let headers = types.iter().map(|value| ("content-type", *value)).collect();
        read(
            &contract,
            &Request {
                headers,
                body: br#"{"amount":1}"#,
                ..PLAIN
            },
        )
    };
    for good in [
        &b"application/json"[..],
        b"Application/JSON",
        b"application/json;charset=utf-8",
        b"application/json ; charset=\"UTF-8\"",
    ] {
        assert!(with(&[good]).is_ok(), "{}", String::from_utf8_lossy(good));
    }
    for bad in [
        &b""[..],
        b"text/plain",
        b"application/json;charset=utf-16",
        b"application/json;charset=utf-7",
        b"application/json, text/plain",
        b"application/json;charset=utf-8;charset=utf-16",
        b"application/json;x=y",
        b"application/json;",
        b"application/jsonx",
        b"application/vnd.api+json",
        b"*/*",
        b"application/json\xff",
        b"application/json;charset =utf-8",
        b"multipart/form-data; boundary=x",
    ] {
        let result = with(&[bad]);
        assert!(
            matches!(result, Err(RequestError::UnsupportedMediaType(_))),
            "{} {result:?}",
            String::from_utf8_lossy(bad)
        );
    }
    assert!(matches!(
        with(&[]),
        Err(RequestError::UnsupportedMediaType(_))
    ));
    let twice = with(&[b"application/json", b"application/json"]);
    assert!(matches!(twice, Err(RequestError::UnsupportedMediaType(_))));
}

#[test]
fn compressed_and_large_bodies_are_refused() {
    let contract = contract(FULL);
    for encoding in [
        &b"gzip"[..],
        b"br",
        b"deflate",
        b"identity, gzip",
        b"x",
        b"",
    ] {
        let mut request = json_body("{}");
        request.headers.push(("content-encoding", encoding));
        assert!(matches!(
            read(&contract, &request),
            Err(RequestError::UnsupportedMediaType(_))
        ));
    }
    let mut request = json_body("{}");
    request.headers.push(("content-encoding", b"identity"));
    assert!(read(&contract, &request).is_ok());
    let large = format!("{{\"note\":\"{}\"}}", "x".repeat(500));
    assert_eq!(
        read(&contract, &json_body(&large)),
        Err(RequestError::TooLarge { limit_bytes: 500 })
    );
}

#[test]
fn bodies_with_two_readings_are_malformed() {
    let contract = contract(FULL);
    for body in [
        r#"{"amount":1,"amount":2}"#,
        r#"{"amount":1,"Amount":2}"#,
        r#"{"amount":9007199254740993}"#,
        "{",
        r#"{"note":"\u0000"}"#,
    ] {
        assert!(
            matches!(
                read(&contract, &json_body(body)),
                Err(RequestError::Malformed(_))
            ),
            "{body}"
        );
    }
    let form = Request {
        headers: vec![("content-type", b"application/x-www-form-urlencoded")],
        body: b"a=1&a=2",
        ..PLAIN
    };
    assert!(matches!(
        read(&contract, &form),
        Err(RequestError::Malformed(_))
    ));
    for query in ["limit=%", "limit=%ff", "limit=%00"] {
        let request = Request {
            query: Some(query),
            ..PLAIN
        };
        assert!(
            matches!(read(&contract, &request), Err(RequestError::Malformed(_))),
            "{query}"
        );
    }
}

#[test]
fn what_stands_in_the_wrong_place_is_a_violation() {
    let contract = contract(FULL);
    for (request, pointer) in [
        (json_body(r#"{"id":8}"#), "/id"),
        (json_body(r#"{"limit":8}"#), "/limit"),
        (json_body(r#"{"version":"x"}"#), "/version"),
        (json_body("[1]"), ""),
        (
            Request {
                query: Some("amount=1"),
                ..PLAIN
            },
            "/amount",
        ),
        (
            Request {
                query: Some("unknown=1"),
                ..PLAIN
            },
            "/unknown",
        ),
        (
            Request {
                query: Some("limit=1&limit=2"),
                ..PLAIN
            },
            "/limit",
        ),
        (
            Request {
                query: Some("limit[]=1"),
                ..PLAIN
            },
            "/limit[]",
        ),
        (
            Request {
                headers: vec![("if-match", b"a"), ("if-match", b"b")],
                ..PLAIN
            },
            "/version",
        ),
        (
            Request {
                headers: vec![("if-match", b"\xff")],
                ..PLAIN
            },
            "/version",
        ),
    ] {
        let violations = messages(read(&contract, &request).unwrap_err());
        assert_eq!(violations.len(), 1, "{violations:?}");
        assert_eq!(violations[0].0, pointer, "{violations:?}");
    }
    // An unknown property of the body is found by the closed schema.
    let (arguments, _) = read(&contract, &json_body(r#"{"extra":1}"#)).unwrap();
    assert_eq!(
        contract.validate(&Value::Object(arguments)).unwrap_err()[0].pointer,
        "/extra"
    );
}

#[test]
fn text_that_is_not_the_type_stays_text_and_fails_there() {
    let contract = contract(FULL);
    for (path, query, pointer) in [
        ("07", "", "/id"),
        ("7x", "", "/id"),
        ("7", "limit=1e99", "/limit"),
        ("7", "live=1", "/live"),
    ] {
        let (arguments, _) = read(
            &contract,
            &Request {
                path,
                query: Some(query),
                ..PLAIN
            },
        )
        .unwrap();
        let violations = contract.validate(&Value::Object(arguments)).unwrap_err();
        assert_eq!(violations[0].pointer, pointer);
        assert!(violations[0].message.contains("must be of type"));
    }
}

#[test]
fn no_body_is_no_properties_and_a_tool_without_body_takes_none() {
    let full = contract(FULL);
    let (arguments, format) = read(&full, &PLAIN).unwrap();
    assert_eq!(
        (Value::Object(arguments.clone()), format),
        (json!({"id": 7}), None)
    );
    let sent = full.request(&arguments, None).unwrap();
    assert_eq!(&sent.body[..], b"{}");
    let sent = full.request(&arguments, Some(BodyFormat::Form)).unwrap();
    assert!(sent.body.is_empty() && sent.content_type.is_none());

    let get = contract("method: GET\npath: /x\ninput: {type: object}");
    assert!(matches!(
        read(&get, &json_body("{}")),
        Err(RequestError::Malformed(_))
    ));
    let sent = get.request(&Map::new(), None).unwrap();
    assert_eq!(
        (
            sent.path_and_query.as_str(),
            sent.body.len(),
            sent.content_type
        ),
        ("/x", 0, None)
    );
    assert!(matches!(
        get.request(&Map::new(), Some(BodyFormat::Json)),
        Err(BuildError::Format(_))
    ));

    let delete = contract(
        "method: DELETE\npath: /x\nbody: {formats: [json]}\ninput: {type: object, properties: {a: {type: string}}}",
    );
    assert!(delete.request(&Map::new(), None).unwrap().body.is_empty());
    assert_eq!(
        &delete
            .request(&object(json!({"a": "b"})), None)
            .unwrap()
            .body[..],
        br#"{"a":"b"}"#
    );
}
