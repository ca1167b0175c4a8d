//! From arguments to the request that is sent, and back.

use http::HeaderMap;
use proptest::prelude::*;
use serde_json::{Map, json};

use super::{
    requests::{FULL, PLAIN, Request, json_body, object, read},
    *,
};

#[test]
fn path_values_are_one_segment_each() {
    let contract = contract(
        "method: DELETE\npath: /x/{id}\ninput: {type: object, required: [id], properties: {id: {type: string}}}",
    );
    for bad in [
        "", ".", "..", "a/b", "../admin", "a\\b", "a;b", "a\r\nb", "a\0", "\u{85}",
    ] {
        let arguments = object(json!({ "id": bad }));
        assert!(contract.request(&arguments, None).is_err(), "{bad:?}");
        let violations = contract.validate(&Value::Object(arguments)).unwrap_err();
        assert_eq!(violations[0].pointer, "/id");
    }
    for (good, path) in [
        ("a b?c#d%2F", "/x/a%20b%3Fc%23d%252F"),
        ("...", "/x/..."),
        ("ä:@", "/x/%C3%A4%3A%40"),
    ] {
        assert_eq!(
            contract
                .request(&object(json!({ "id": good })), None)
                .unwrap()
                .path_and_query,
            path
        );
    }
    let missing = contract.request(&Map::new(), None).unwrap_err();
    assert_eq!(missing.violation().pointer, "/id");
}

#[test]
fn header_values_cannot_break_out() {
    let contract = contract(
        "method: GET\npath: /x\nheaders: {If-Match: v}\ninput: {type: object, properties: {v: {type: string}}}",
    );
    for bad in ["a\r\nX: y", "a\nb", "a\0", "\u{7f}", " a", "a\t"] {
        let arguments = object(json!({ "v": bad }));
        assert!(contract.request(&arguments, None).is_err(), "{bad:?}");
        let violations = contract.validate(&Value::Object(arguments)).unwrap_err();
        assert_eq!(violations[0].pointer, "/v");
        assert!(!violations[0].message.contains(bad));
    }
}

#[test]
fn query_values_cannot_add_parameters() {
    let contract = contract(
        "method: GET\npath: /x\nquery: [q]\ninput: {type: object, properties: {q: {type: string}}}",
    );
    let sent = contract
        .request(&object(json!({"q": "a&admin=1#x+y=\r\n"})), None)
        .unwrap();
    assert_eq!(sent.path_and_query, "/x?q=a%26admin%3D1%23x%2By%3D%0D%0A");
}

#[test]
fn a_whole_body_argument_goes_both_ways() {
    let contract = contract(
        "method: POST\npath: /x\nquery: [q]\nbody: {formats: [json], argument: rows}\n\
         input: {type: object, properties: {q: {type: string}, rows: {type: array, items: {type: integer}}}}",
    );
    let request = Request {
        query: Some("q=a"),
        ..json_body("[1,2]")
    };
    let (arguments, format) = read(&contract, &request).unwrap();
    assert_eq!(
        Value::Object(arguments.clone()),
        json!({"q": "a", "rows": [1, 2]})
    );
    let sent = contract.request(&arguments, format).unwrap();
    assert_eq!(
        (&sent.body[..], sent.path_and_query.as_str()),
        (&b"[1,2]"[..], "/x?q=a")
    );
    assert!(contract.request(&Map::new(), None).unwrap().body.is_empty());
}

#[test]
fn opaque_bodies_go_both_ways() {
    let text = contract(
        "method: POST\npath: /x\nbody: {formats: [opaque], argument: t, media_types: [text/plain, text/csv]}\n\
         input: {type: object, properties: {t: {type: string}}}",
    );
    let send = |contract: &Contract, kind: &'static [u8], body: &'static [u8]| {
        read(
            contract,
            &Request {
                headers: vec![("content-type", kind)],
                body,
                ..PLAIN
            },
        )
    };
    let (arguments, format) = send(&text, b"text/csv; charset=utf-8", "ä,b".as_bytes()).unwrap();
    assert_eq!(format, Some(BodyFormat::Opaque(1)));
    let sent = text.request(&arguments, format).unwrap();
    assert_eq!(
        (&sent.body[..], sent.content_type.unwrap().to_str().unwrap()),
        ("ä,b".as_bytes(), "text/csv; charset=utf-8")
    );
    assert!(matches!(
        send(&text, b"text/html", b"x"),
        Err(RequestError::UnsupportedMediaType(_))
    ));
    assert!(matches!(
        send(&text, b"text/csv", b"\xff"),
        Err(RequestError::Malformed(_))
    ));
    assert!(matches!(
        send(&text, b"text/csv", b"\0"),
        Err(RequestError::Malformed(_))
    ));
    assert!(matches!(
        text.request(&arguments, Some(BodyFormat::Opaque(2))),
        Err(BuildError::Format(_))
    ));

    let bytes = contract(
        "method: POST\npath: /x\nbody: {formats: [opaque], argument: t, media_types: [image/png]}\n\
         input: {type: object, properties: {t: {type: string, contentEncoding: base64}}}",
    );
    let (arguments, format) = send(&bytes, b"image/png", b"\x89PNG\0\xff").unwrap();
    assert_eq!(
        &bytes.request(&arguments, format).unwrap().body[..],
        b"\x89PNG\0\xff"
    );
    let violations = bytes.validate(&json!({"t": "no base64!"})).unwrap_err();
    assert_eq!(violations[0].pointer, "/t");
}

#[test]
fn answers_are_checked_when_they_succeed() {
    let contract = contract(
        "method: GET\npath: /x\ninput: {type: object}\noutput: {type: object, required: [ok], properties: {ok: {type: boolean}}}",
    );
    assert!(
        contract
            .validate_output(200, &json!({"ok": true, "more": 1}))
            .is_ok()
    );
    assert_eq!(
        contract
            .validate_output(201, &json!({"ok": "s3cret"}))
            .unwrap_err()[0]
            .pointer,
        "/ok"
    );
    assert!(contract.validate_output(500, &json!("anything")).is_ok());
    assert!(contract.validate_output(302, &json!(1)).is_ok());
}

#[test]
fn an_argument_without_a_place_is_refused_and_not_dropped() {
    let contract = contract("method: GET\npath: /x\ninput: {type: object}");
    let error = contract
        .request(&object(json!({"x": 1})), None)
        .unwrap_err();
    assert_eq!(error.violation().pointer, "/x");
}

#[test]
fn debug_output_shows_no_arguments() {
    let contract = contract(FULL);
    let sent = contract.request(
        &object(json!({"id": 424_242, "note": "s3cret", "version": "s3cret"})),
        None,
    );
    let text = format!("{sent:?}");
    assert!(
        !text.contains("s3cret") && !text.contains("424242"),
        "{text}"
    );
}

fn arguments() -> impl Strategy<Value = Map<String, Value>> {
    let text = || "[^\0]{0,8}";
    (
        -1_000_000_i64..1_000_000,
        prop::option::of(any::<i32>()),
        prop::option::of(any::<bool>()),
        prop::collection::vec(text(), 1..4),
        "[!-~ä]{1,8}",
        prop::option::of(text()),
        prop::collection::btree_map("[a-z0-9 .=&%+]{1,5}", text(), 1..4),
        prop::collection::vec(text(), 1..4),
    )
        .prop_map(|(id, limit, live, expand, version, note, metadata, tags)| {
            let mut arguments = object(json!({
                "id": id, "expand": expand, "version": version, "metadata": metadata, "tags": tags,
            }));
            arguments.extend(limit.map(|limit| ("limit".to_owned(), json!(limit))));
            arguments.extend(live.map(|live| ("live".to_owned(), json!(live))));
            arguments.extend(note.map(|note| ("note".to_owned(), json!(note))));
            arguments
        })
}

proptest! {
    /// Whatever is sent reads back, by the same contract, as the arguments that were decided on.
    #[test]
    fn what_is_sent_means_the_arguments_and_nothing_else(arguments in arguments(), as_form in any::<bool>()) {
        let (catalog, findings) = load_texts(&[&tool(&FULL.replace("body_bytes: 500", "body_bytes: 50000"))]);
        prop_assert!(findings.is_empty());
        let contract = catalog.tool("desk.things.act").unwrap();
        contract.validate(&Value::Object(arguments.clone())).unwrap();
        let format = if as_form { BodyFormat::Form } else { BodyFormat::Json };
        let sent = contract.request(&arguments, Some(format)).unwrap();
        let (path, query) = sent.path_and_query.split_once('?').unwrap();
        let matched = catalog.match_request("desk", &sent.method, path).unwrap();
        let mut headers: HeaderMap = sent.headers.into_iter().collect();
        headers.extend(sent.content_type.map(|value| (http::header::CONTENT_TYPE, value)));
        let (read, read_format) = contract
            .arguments_from_http(&matched.params, Some(query), &headers, &sent.body)
            .unwrap();
        prop_assert_eq!(read_format, Some(format));
        prop_assert_eq!(Value::Object(read), Value::Object(arguments));
    }
}
