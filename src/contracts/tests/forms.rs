//! The form codec: nesting, refusals, and that what is written reads back the same.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    contracts::form::{FormError, parse, serialise},
    json,
};

fn schema() -> Value {
    json!({
        "$defs": {"money": {"type": "object", "properties": {"amount": {"type": "integer"}, "ratio": {"type": "number"}}}},
        "properties": {
            "id": {"type": "string"},
            "live": {"type": "boolean"},
            "price": {"$ref": "#/$defs/money"},
            "items": {"type": "array", "items": {"$ref": "#/$defs/money"}},
            "expand": {"type": "array", "items": {"type": "string"}},
            "counts": {"type": "array", "items": {"type": "integer"}},
            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
            "nested": {"type": "object", "properties": {"again": {"$ref": "#"}}},
        }
    })
}

fn read(text: &str) -> Result<Value, FormError> {
    let schema = schema();
    parse(text.as_bytes(), &schema, &[&schema]).map(Value::Object)
}

#[test]
fn nesting_is_read_by_the_schema() {
    assert_eq!(
        read("metadata[order]=1&items[0][amount]=5&items[1][amount]=6&expand[]=a&expand[]=b+c&live=true&id=42").unwrap(),
        json!({
            "metadata": {"order": "1"}, "items": [{"amount": 5}, {"amount": 6}],
            "expand": ["a", "b c"], "live": true, "id": "42",
        })
    );
    assert_eq!(
        read("expand%5B0%5D=a%26b").unwrap(),
        json!({"expand": ["a&b"]})
    );
    assert_eq!(
        read("counts[1]=2&counts[0]=1").unwrap(),
        json!({"counts": [1, 2]})
    );
    // A number is a key where the schema wants an object, an index where it wants a list.
    assert_eq!(
        read("metadata[0]=x").unwrap(),
        json!({"metadata": {"0": "x"}})
    );
    assert_eq!(
        read("nested[again][live]=false").unwrap(),
        json!({"nested": {"again": {"live": false}}})
    );
    // What cannot be read as its type stays text, and validation says so.
    assert_eq!(
        read("price[amount]=1e999").unwrap(),
        json!({"price": {"amount": "1e999"}})
    );
    assert_eq!(read("").unwrap(), json!({}));
    assert_eq!(read("id").unwrap(), json!({"id": ""}));
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    for text in [
        "id=1&id=2",
        "id=1&%69d=2",
        "id=1&id[b]=2",
        "id[b]=2&id=1",
        "expand[]=a&expand[0]=b",
        "expand[0]=b&expand[]=a",
        "expand=a&expand[]=b",
        "expand[1]=a",
        "expand[0]=a&expand[2]=b",
        "expand[99999999999999999999]=a",
        "expand[00]=a",
        "items[][amount]=1",
        "metadata[a]=1&metadata[A]=2",
        "ID=1&id=2",
        "a[b=1",
        "a]b=1",
        "[a]=1",
        "=1",
        "a[[b]]=1",
        "a[b]c=1",
        "a[b]]=1",
        "id=%",
        "id=%zz",
        "id=%ff",
        "id=%00",
        "a[b][c][d][e][f][g][h][i]=1",
    ] {
        assert!(read(text).is_err(), "{text}");
    }
    let many = |count: usize| {
        (0..count)
            .map(|index| format!("metadata[k{index}]=v&"))
            .collect::<String>()
    };
    assert!(read(&many(1000)).is_ok());
    assert!(read(&many(1001)).is_err());
    assert!(parse(b"id=\xff", &json!({}), &[]).is_err());
}

#[test]
fn what_a_form_cannot_carry_is_refused_with_its_place() {
    for (value, pointer) in [
        (json!({"a": {"b": null}}), "/a/b"),
        (json!({"a": []}), "/a"),
        (json!({"a": [{}]}), "/a/0"),
        (json!({"a": {"x[y]": 1}}), "/a/x[y]"),
        (json!({"": 1}), "/"),
    ] {
        let object = value.as_object().unwrap();
        assert_eq!(serialise(object).unwrap_err().pointer, pointer);
    }
    let object = json!({"b": [true, 1.5], "a": {"k&": "x y\n"}});
    assert_eq!(
        serialise(object.as_object().unwrap()).unwrap(),
        "a%5Bk%26%5D=x%20y%0A&b%5B0%5D=true&b%5B1%5D=1.5"
    );
}

fn money() -> impl Strategy<Value = Value> {
    (-json::MAX_INTEGER..=json::MAX_INTEGER, any::<f32>()).prop_map(|(amount, ratio)| {
        let mut money = json!({"amount": amount});
        if let Ok(ratio) = json::float(ratio.into()) {
            money["ratio"] = Value::Number(ratio);
        }
        money
    })
}

fn forms() -> impl Strategy<Value = Value> {
    let text = || "[^\0]{0,8}";
    (
        prop::option::of(text().prop_map(Value::String)),
        prop::option::of(any::<bool>().prop_map(Value::Bool)),
        prop::option::of(money()),
        prop::collection::vec(money(), 0..12).prop_map(Value::Array),
        prop::collection::vec(text(), 0..12).prop_map(|items| json!(items)),
        prop::collection::btree_map("[a-z0-9 .=&%+]{1,5}", text(), 0..5).prop_map(|map| json!(map)),
    )
        .prop_map(|(id, live, price, items, expand, metadata)| {
            [
                ("id", id),
                ("live", live),
                ("price", price),
                ("items", Some(items)),
                ("expand", Some(expand)),
                ("metadata", Some(metadata)),
            ]
            .into_iter()
            .filter_map(|(name, value)| value.map(|value| (name.to_owned(), value)))
            .filter(|(_, value)| *value != json!([]) && *value != json!({}))
            .collect()
        })
}

proptest! {
    #[test]
    fn what_is_written_reads_back_the_same(form in forms()) {
        let text = serialise(form.as_object().unwrap()).unwrap();
        prop_assert_eq!(read(&text).unwrap(), form, "{}", text);
    }

    #[test]
    fn no_text_makes_it_panic(text in "[ab0\\[\\]=&%2e]{0,40}") {
        let _ = read(&text);
    }
}
