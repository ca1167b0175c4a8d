//! Documents with more than one reading are refused, and the rest reads back the same.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn reason(text: &str) -> String {
    parse(text.as_bytes()).unwrap_err().to_string()
}

#[test]
fn equal_and_look_alike_keys_are_refused_at_any_depth() {
    for text in [
        r#"{"a":1,"a":1}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"[{"x":{"b":1,"c":2,"b":3}}]"#,
    ] {
        assert!(reason(text).contains("stands twice"), "{text}");
    }
    for text in [
        r#"{"amount":1,"Amount":2}"#,
        r#"{"k":1,"K":2}"#,
        r#"{"x":[{"straße":1,"STRASSE":2}]}"#,
        r#"{"us":1,"uſ":2}"#,
    ] {
        assert!(reason(text).contains("differs only in case"), "{text}");
    }
    assert!(parse(br#"{"a":{"a":{"a":1}},"b":[{"a":1},{"a":1}]}"#).is_ok());
}

#[test]
fn numbers_are_exact_or_refused() {
    for text in [
        "9007199254740992",
        "-9007199254740992",
        "18446744073709551616",
        "1e16",
        "[1e300]",
    ] {
        assert!(reason(text).contains("is not exact"), "{text}");
    }
    for text in ["-0", "-0.0", "[-0e5]"] {
        assert!(reason(text).contains("negative zero"), "{text}");
    }
    for text in [
        "1e400", "-1e400", "NaN", "Infinity", "01", "+1", "1.", ".5", "0x10",
    ] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
    assert_eq!(
        parse(b"9007199254740991").unwrap(),
        json!(9_007_199_254_740_991_i64)
    );
    assert_eq!(parse(b"1.0").unwrap(), json!(1));
    assert_eq!(parse(b"1e3").unwrap(), json!(1000));
    assert_eq!(parse(b"-2.50").unwrap(), json!(-2.5));
    assert_eq!(number("1e3"), Some(Number::from(1000)));
    for text in [
        "",
        " 1",
        "1 ",
        "1\n",
        "+1",
        "007",
        "-0",
        "1e400",
        "0x1",
        "1,0",
        "\"1\"",
        "9007199254740993",
    ] {
        assert_eq!(number(text), None, "{text:?}");
    }
}

#[test]
fn text_that_cannot_be_kept_is_refused() {
    assert!(reason("\"a\\u0000b\"").contains("U+0000"));
    assert!(reason("{\"a\\u0000\":1}").contains("U+0000"));
    for text in [
        "\"\\ud800\"",
        "\"\\udc00\\ud800\"",
        "\"a\tb\"",
        "{\"a\":1}{}",
        "[1],",
        "1 2",
        "",
        "{'a':1}",
    ] {
        assert!(parse(text.as_bytes()).is_err(), "{text}");
    }
    assert!(
        parse(b"\xef\xbb\xbf{}")
            .unwrap_err()
            .reason
            .contains("byte order mark")
    );
    let error = parse(b"{\"a\":\n\"x\xff\"}").unwrap_err();
    assert_eq!((error.line, error.column), (2, 3));
    assert!(parse(b"\"\xed\xa0\x80\"").is_err());
    assert_eq!(parse("\"\\ud83d\\ude00\"".as_bytes()).unwrap(), json!("😀"));
}

#[test]
fn nesting_is_bounded() {
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    assert!(parse(nested(MAX_DEPTH).as_bytes()).is_ok());
    assert!(reason(&nested(MAX_DEPTH + 1)).contains("deeper"));
    assert!(parse(nested(100_000).as_bytes()).is_err());
}

#[test]
fn messages_quote_no_value_and_bound_the_key() {
    let key = "k".repeat(500);
    let text = format!("{{\"{key}\":\"s3cret-value\",\"{key}\":\"s3cret-value\"}}");
    let message = reason(&text);
    assert!(!message.contains("s3cret"), "{message}");
    assert!(message.len() < 250, "{message}");
    assert!(!reason("[\"s3cret\" s3cret]").contains("s3cret"));
    assert_eq!(shown("a\u{202e}b\n"), "a\\u{202e}b\\u{a}");
}

#[test]
fn canonical_text_is_rfc_8785() {
    let value = parse(
        "{\"\\u20ac\":1,\"\\r\":2,\"1\":0.000001,\"b\":1e20e}"
            .replace("1e20e", "[1.0,true]")
            .as_bytes(),
    );
    assert_eq!(
        String::from_utf8(canonical(&value.unwrap())).unwrap(),
        "{\"\\r\":2,\"1\":0.000001,\"b\":[1,true],\"€\":1}"
    );
    assert_eq!(
        canonical(&json!({"b": 1, "a": 2})),
        canonical(&json!({"a": 2, "b": 1}))
    );
    assert_eq!(
        sha256_hex("abc"),
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    );
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        (-MAX_INTEGER..=MAX_INTEGER).prop_map(|integer| json!(integer)),
        (-1000i32..1000).prop_map(|halves| json!(f64::from(halves) + 0.5)),
        "[^\0]{0,12}".prop_map(Value::String),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::Array),
            prop::collection::btree_map("[a-z]{1,5}", inner, 0..5)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

/// JSON text in which the `at`-th object that is not empty repeats its first key.
fn with_duplicate(value: &Value, at: &mut i64) -> String {
    match value {
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(|item| with_duplicate(item, at)).collect();
            format!("[{}]", items.join(","))
        }
        Value::Object(entries) => {
            let repeat = !entries.is_empty() && *at == 0;
            *at -= i64::from(!entries.is_empty());
            let mut parts: Vec<_> = entries
                .iter()
                .map(|(key, value)| format!("{}:{}", json!(key), with_duplicate(value, at)))
                .collect();
            if let (true, Some(key)) = (repeat, entries.keys().next()) {
                parts.push(format!("{}:null", json!(key)));
            }
            format!("{{{}}}", parts.join(","))
        }
        leaf => leaf.to_string(),
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_back_the_same(value in values()) {
        prop_assert_eq!(&parse(value.to_string().as_bytes()).unwrap(), &value);
        prop_assert_eq!(&parse(&canonical(&value)).unwrap(), &value);
    }

    #[test]
    fn a_duplicate_is_refused_wherever_it_stands(value in values(), chosen in 0i64..6) {
        let mut at = chosen;
        let text = with_duplicate(&value, &mut at);
        prop_assert_eq!(parse(text.as_bytes()).is_err(), at < 0, "{}", text);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = parse(&bytes);
    }
}
