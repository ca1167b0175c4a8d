//! Values that are written in another way than usual, and what only looks like them.

use serde_json::{Value, json};

use super::*;

#[test]
fn no_spelling_hides_a_value() {
    let cases = [
        ("ada\\u0040example.org", "email", "ada\\u0040example.org"),
        (
            "x ada\\\\u0040example.org",
            "email",
            "ada\\\\u0040example.org",
        ),
        ("ada＠example.org", "email", "ada＠example.org"),
        (
            "a\u{200b}da@exam\u{2060}ple.org!",
            "email",
            "a\u{200b}da@exam\u{2060}ple.org",
        ),
        ("mail ada@exämple.de now", "email", "ada@exämple.de"),
        ("jörg@example.org", "email", "jörg@example.org"),
        ("почта@пример.рф", "email", "почта@пример.рф"),
        ("用户@例え.jp", "email", "用户@例え.jp"),
        ("请联系ada@example.org谢谢", "email", "ada@example.org"),
        ("ada@例え。jp", "email", "ada@例え。jp"),
        (
            "ada@xn--exmple-cua.xn--p1ai",
            "email",
            "ada@xn--exmple-cua.xn--p1ai",
        ),
        (
            "4111\\u0031111111\\u00311111",
            "card",
            "4111\\u0031111111\\u00311111",
        ),
        ("4111.1111.1111.1111", "card", "4111.1111.1111.1111"),
        ("4111/1111/1111/1111", "card", "4111/1111/1111/1111"),
        ("4111_1111_1111_1111", "card", "4111_1111_1111_1111"),
        ("4111\t1111\t1111\t1111", "card", "4111\t1111\t1111\t1111"),
        (
            "4111\r\n1111\r\n1111\r\n1111",
            "card",
            "4111\r\n1111\r\n1111\r\n1111",
        ),
        ("3782.822463.10005", "card", "3782.822463.10005"),
        ("4111–1111–1111–1111", "card", "4111–1111–1111–1111"),
        ("card4111111111111111", "card", "4111111111111111"),
        ("x 4111111111111111visa", "card", "4111111111111111"),
        ("٤١١١١١١١١١١١١١١١", "card", "٤١١١١١١١١١١١١١١١"),
        ("-4111111111111111", "card", "4111111111111111"),
        ("4111111111111111.5", "card", "4111111111111111"),
        (
            "AKIA\u{200d}IOSFODNN7EXAMPLE",
            "credential",
            "AKIA\u{200d}IOSFODNN7EXAMPLE",
        ),
        (
            "Basic dXNlcjpodW50ZXIyISE=",
            "credential",
            "dXNlcjpodW50ZXIyISE=",
        ),
        (
            "Basic dXNlcjpodW50ZXIyIQ==",
            "credential",
            "dXNlcjpodW50ZXIyIQ==",
        ),
        (
            "Basic dXNlcjpodW50ZXIyISEh",
            "credential",
            "dXNlcjpodW50ZXIyISEh",
        ),
        ("basic YTpi", "credential", "YTpi"),
        (
            "Bearer abcdefghijklmnopqrs=",
            "credential",
            "abcdefghijklmnopqrs=",
        ),
        (
            "Authorization:\\u0020Bearer\\u0020abcdef0123456789ABCD",
            "credential",
            "abcdef0123456789ABCD",
        ),
        ("redis://:pw@host", "credential", "redis://:pw@"),
        ("HTTPS://u:pw@host", "credential", "HTTPS://u:pw@"),
        (
            "postgres://u:p/w@host/db",
            "credential",
            "postgres://u:p/w@",
        ),
        ("amqp://u:p@ss@host", "credential", "amqp://u:p@ss@"),
        ("https:\\/\\/u:pw@host", "credential", "https:\\/\\/u:pw@"),
        ("password＝hunter", "password", "hunter"),
        ("password: swordfish", "password", "swordfish"),
        ("passcode=8374", "password", "8374"),
        ("{\"password\":\"aB3!x\"}", "password", "aB3!x"),
        (
            "{\"client_secret\": \"plainword\"}",
            "password",
            "plainword",
        ),
        (
            "{\"passphrase\":\"correct horse battery staple\"}",
            "password",
            "correct horse battery staple",
        ),
        (
            "{\\\"password\\\":\\\"swordfish\\\"}",
            "password",
            "swordfish",
        ),
        (
            "eyJhbGciOiJkaXIifQ..48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX.XFBoMYUZodetZdvTiFvSkQ",
            "jwt",
            "eyJhbGciOiJkaXIifQ..48V1_ALb6US04U3b.5eym8TW_c8SuK0ltJ3rpYIzOeDQz7TALvtu6UG9oMo4vpzs9tX.XFBoMYUZodetZdvTiFvSkQ",
        ),
    ];
    for (text, kind, part) in cases {
        assert_eq!(kinds(text), [(kind, part)], "{text:?}");
    }
    let block = "-----BEGIN PGP PRIVATE KEY BLOCK-----\nVersion: 1\n\nlQOYBF\n=abcd\n-----END PGP PRIVATE KEY BLOCK-----";
    assert_eq!(kinds(&format!("x {block} y")), [("private_key", block)]);
}

#[test]
fn one_value_has_one_token_however_it_is_written() {
    for text in [
        "ADA@example.org",
        "ada＠example.org",
        "a\u{200b}da\\u0040example.org",
    ] {
        assert_eq!(normal_form("email", text), "ada@example.org", "{text:?}");
    }
    for text in [
        "4111.1111/1111_1111",
        "٤١١١١١١١١١١١١١١١",
        "4111\\u0031111111\\u00311111",
    ] {
        assert_eq!(normal_form("card", text), "4111111111111111", "{text:?}");
    }
}

#[test]
fn what_is_no_other_spelling_is_left_alone() {
    for text in [
        "2026.11.24 13.19.14 2026.11.25 13.19",
        "192.168.10.1/24 10.10.20.30/16",
        "1732450000000.25",
        "lat 51.5073509 lon 0.1277583",
        "a1b2c4111111111111111f9",
        "id_4111111111111111_2",
        "https://example.org:8443/@scope/package",
        "https://example.org:80?to=@ada",
        "C:\\users\\new\\u12",
        "basic understanding of misunderstandings",
        "bearer of responsibilities",
        "{\"max_tokens\": 512, \"tokens\": 17, \"secret\": false, \"password\": null}",
        "the secret is out; his password was changed, the credentials were sent",
        "письмо пришло вчера",
        "请联系我们",
    ] {
        assert_eq!(kinds(text), [], "{text:?}");
    }
}

#[test]
fn what_stands_under_the_name_of_a_secret_is_one() {
    let long = "correct horse battery staple";
    for name in [
        "password",
        "passwords",
        "db_password",
        "dbPassword",
        "DB-PASSWORD",
        "password2",
        "passwd",
        "passphrase",
        "passcode",
        "secret",
        "secret_key",
        "secretKey",
        "client_secret",
        "clientSecrets",
        "api_key",
        "apiKeys",
        "API-KEY",
        "token",
        "access_token",
        "tokens",
        "credentials",
        "credential",
        "private_key",
        "ｐａｓｓｗｏｒｄ",
    ] {
        for value in ["correcthorsebattery", "aB3!x", "a", long, "83749201x"] {
            assert_eq!(
                find(Some(name), value),
                [Finding {
                    range: 0..value.len(),
                    class: "secret",
                    kind: "password"
                }],
                "{name} {value}"
            );
        }
        assert!(find(Some(name), " ").is_empty(), "{name}");
    }
    for name in ["password", "token", "secret"] {
        assert_eq!(find(Some(name), "83749201").len(), 1, "{name}");
    }
    for (name, value) in [
        ("token_count", "17"),
        ("max_tokens", "4096"),
        ("total_tokens", "9"),
        ("promptTokens", "12"),
        ("tokens", "512"),
        ("max_token", "4096"),
        ("token_type", "bearer"),
        ("password_changed_at", "2026-11-24"),
        ("secretary", "Ada"),
        ("password_policy", "strict"),
        ("name", "swordfish"),
        ("note", "aB3!x"),
        ("tokenized", "yes"),
    ] {
        assert!(find(Some(name), value).is_empty(), "{name} {value}");
    }
}

/// An IBAN of that country and length that fits its checksum.
fn iban_of(country: &str, length: usize) -> String {
    (2..99)
        .map(|check| format!("{country}{check:02}{}", "7".repeat(length - 4)))
        .find(|iban| checks::iban(iban, 0..iban.len()) == Some(0..iban.len()))
        .unwrap_or_default()
}

#[test]
fn every_country_of_the_registry_has_ibans() {
    // Examples of the registry itself.
    for example in [
        "UA213223130000026007233566001",
        "PK36SCBL0000001123456702",
        "TN5910006035183598478831",
        "SM86U0322509800000000270100",
        "BI4210000100010000332045181",
        "DJ2100010000000154000100186",
        "EG380019000500000000263180002",
        "FK88SC123456789012",
        "HN88CABF00000000000250005469",
        "LC55HEMM000100010012001200023015",
        "LY83002048000020100120361",
        "MN121234123456789123",
        "MR1300020001010000123456753",
        "MT84MALT011000012345MTLCAST001S",
        "MU17BOMM0101101030300200000MUR",
        "NI45BAPR00000013000003558124",
        "NO9386011117947",
        "OM810180000001299123456",
        "PS92PALS000000000400123456702",
        "RU0304452522540817810538091310419",
        "SC18SSCB11010000000000001497USD",
        "SD8811123456789012",
        "SO211000001001000100141",
        "ST68000100010051845310112",
        "SV62CENR00000000000000700025",
        "TL380080012345678910157",
        "VA59001123000012345678",
        "VG96VPVG0000012345678901",
        "XK051212012345678906",
        "YE15CBYE0001018861234567891234",
    ] {
        assert_eq!(kinds(example), [("iban", example)], "{example}");
        let mut grouped = String::new();
        for (place, character) in example.chars().enumerate() {
            if place > 0 && place % 4 == 0 {
                grouped.push(' ');
            }
            grouped.push(character);
        }
        assert_eq!(kinds(&grouped), [("iban", grouped.as_str())], "{grouped}");
    }
    for (country, length) in [("DE", 22), ("FR", 27), ("GB", 22), ("BY", 28)] {
        assert_eq!(iban_of(country, length).len(), length, "{country}");
    }
    assert_eq!(iban_of("US", 22), "", "no country of the registry");
}

#[test]
fn digits_of_every_script_have_their_value() {
    for zero in ['0', '٠', '०', '๐', '０', '𝟎', '\u{1e950}', '\u{1e5f1}'] {
        for value in 0..10_u8 {
            let digit = char::from_u32(u32::from(zero) + u32::from(value)).unwrap();
            let folded = plain::folded(&digit.to_string()).into_owned();
            assert_eq!(folded, value.to_string(), "{digit:?}");
        }
    }
    assert_eq!(plain::digit('x'), None);
    assert_eq!(plain::digit('ж'), None);
}

/// Values that an agent or an API may give, planted under names and in texts: nothing of them is left in what is recorded.
#[test]
fn no_planted_value_is_left_in_a_document() {
    let planted: Vec<(Value, &str)> = vec![
        (json!({"password": "correcthorsebattery"}), "correcthorse"),
        (json!({"password": "83749201"}), "83749201"),
        (json!({"password": 83_749_201}), "83749201"),
        (
            json!({"passphrase": "correct horse battery staple"}),
            "horse",
        ),
        (json!({"password": "aB3!x"}), "aB3!x"),
        (json!({"credentials": "plainword"}), "plainword"),
        (json!({"passwords": ["plainword", 4711]}), "plainword"),
        (json!({"passwords": ["plainword", 4711]}), "4711"),
        (json!({"secret_key": "plainword"}), "plainword"),
        (json!({"passcode": 4711}), "4711"),
        (
            json!({"password": "secret:0123456789abcdef0123456789abcdef"}),
            "0123456789abcdef",
        ),
        (
            json!({"number": -4_111_111_111_111_111_i64}),
            "4111111111111111",
        ),
        (
            json!({"number": 4_111_111_111_111_111.5}),
            "4111111111111111",
        ),
        (json!({"number": "4111111111111111"}), "4111111111111111"),
        (
            json!({"note": "Authorization: Basic dXNlcjpodW50ZXIyISE="}),
            "dXNlcjp",
        ),
        (json!({"note": "\"ada\\u0040example.org\""}), "ada"),
    ];
    let keys = crate::secrets::Keyring::new(&crate::secrets::Secret::new(
        "0123456789abcdef0123456789abcdef",
    ))
    .unwrap();
    let redactor =
        crate::redaction::Redactor::new(std::sync::Arc::new(keys), crate::entry::Caps::default());
    for (value, hidden) in planted {
        let clean = redactor.redact(&crate::redaction::Marks::default(), &value);
        assert!(
            !clean.as_json().contains(hidden),
            "{value} {}",
            clean.as_json()
        );
        // A token that a mark has made is not made a token again.
        let marks = crate::redaction::Marks::of(
            &json!({"properties": {"password": {"x-sensitivity": "secret"}}}),
        );
        let marked = redactor.redact(&marks, &json!({"password": "plainword"}));
        assert!(
            marked.as_json().starts_with("{\"password\":\"secret:"),
            "{}",
            marked.as_json()
        );
        assert!(
            !marked.as_json().contains("secret:password:"),
            "{}",
            marked.as_json()
        );
    }
}

proptest! {
    /// Whatever is put between the characters of a value and cannot be seen, and whatever stands around, the value is found, and
    /// only whole characters are replaced.
    #[test]
    fn unseen_characters_hide_nothing(
        before in "[ а-яé漢]{0,20}[ ,]",
        behind in "[ ,][ а-яé漢]{0,20}",
        planted in prop_oneof![Just("ada@example.org"), Just("4111111111111111"), Just("AKIAIOSFODNN7EXAMPLE")],
        places in proptest::collection::vec(1_usize..14, 0..4),
        unseen in prop_oneof![Just('\u{200b}'), Just('\u{ad}'), Just('\u{feff}'), Just('\u{2066}')],
    ) {
        let mut hidden: Vec<char> = planted.chars().collect();
        for place in places {
            hidden.insert(place, unseen);
        }
        let hidden: String = hidden.into_iter().collect();
        let text = format!("{before}{hidden}{behind}");
        let found = find(None, &text);
        prop_assert_eq!(found.len(), 1, "{:?} {:?}", text, found);
        prop_assert_eq!(&text[found[0].range.clone()], hidden.as_str());
    }
}
