//! What is found, and what must not be.

use proptest::prelude::*;

use super::*;

fn kinds(text: &str) -> Vec<(&'static str, &str)> {
    find(None, text)
        .into_iter()
        .map(|finding| (finding.kind, &text[finding.range]))
        .collect()
}

#[test]
fn the_automaton_can_be_built() {
    assert!(ready());
}

#[test]
fn what_is_sensitive_is_found_where_it_stands() {
    let cases = [
        (
            "mail ada.l+x@example.co.uk now",
            "email",
            "ada.l+x@example.co.uk",
        ),
        ("?to=ada%40example.org&x=1", "email", "ada%40example.org"),
        (
            "card 4111 1111 1111 1111, thanks",
            "card",
            "4111 1111 1111 1111",
        ),
        ("4111-1111-1111-1111", "card", "4111-1111-1111-1111"),
        ("12345678 4111111111111111", "card", "4111111111111111"),
        ("378282246310005", "card", "378282246310005"),
        (
            "４１１１ １１１１ １１１１ １１１１",
            "card",
            "４１１１ １１１１ １１１１ １１１１",
        ),
        (
            "4111\u{a0}1111\u{a0}1111\u{a0}1111",
            "card",
            "4111\u{a0}1111\u{a0}1111\u{a0}1111",
        ),
        (
            "to DE89 3704 0044 0532 0130 00 please",
            "iban",
            "DE89 3704 0044 0532 0130 00",
        ),
        ("GB82WEST12345698765432", "iban", "GB82WEST12345698765432"),
        ("ssn 078-05-1120.", "us_ssn", "078-05-1120"),
        ("call +49 30 901820 today", "phone", "+49 30 901820"),
        ("call (212) 555-0187 today", "phone", "(212) 555-0187"),
        (
            "key AKIAIOSFODNN7EXAMPLE",
            "credential",
            "AKIAIOSFODNN7EXAMPLE",
        ),
        (
            "sk_live_51Hplanted4242424242424242",
            "credential",
            "sk_live_51Hplanted4242424242424242",
        ),
        (
            "ghp_0123456789abcdefghijABCDEFGHIJ012345",
            "credential",
            "ghp_0123456789abcdefghijABCDEFGHIJ012345",
        ),
        (
            "Authorization: Bearer abcdef0123456789ABCD",
            "credential",
            "abcdef0123456789ABCD",
        ),
        (
            "postgres://me:pa55word@db/x",
            "credential",
            "postgres://me:pa55word@",
        ),
        ("my password is hunter2!", "password", "hunter2!"),
        ("{\"password\": \"Tr0ub4dor\"}", "password", "Tr0ub4dor"),
        ("a=1&api_key=ab12cd34&b=2", "password", "ab12cd34"),
        (
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
            "jwt",
            "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln",
        ),
    ];
    for (text, kind, part) in cases {
        assert_eq!(kinds(text), [(kind, part)], "{text}");
    }
    let key = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc=\n-----END RSA PRIVATE KEY-----";
    assert_eq!(kinds(&format!("x {key} y")), [("private_key", key)]);
    assert_eq!(kinds(&key[..40])[0].0, "private_key");
    assert_eq!(find(Some("db_password"), "abc123")[0].kind, "password");
    assert_eq!(find(Some("apiKey"), "abc123")[0].kind, "password");
}

#[test]
fn what_only_looks_like_it_is_left_alone() {
    for text in [
        "2026-11-24T13:19:14.123456Z",
        "call_01J5Z3NDEKTSV4RRFFQ69G5FAV",
        "123e4567-e89b-12d3-a456-426614174000",
        "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "order 4111111111111112 of 2026",
        "41111111111111111111111111",
        "invoice 1234-56-7890-12",
        "the token expired and the password is required",
        "token: expired",
        "amount 1200 EUR",
        "DE00 1234 5678",
        "10.0.0.1:8080",
        "version 1.2.3-rc.1",
        "0000000000000000",
        "1732450000000",
        "https://example.org/a/b?c=d",
        "me@localhost",
    ] {
        assert_eq!(kinds(text), [], "{text}");
    }
    assert!(find(Some("token_type"), "bearer_1").is_empty());
}

#[test]
fn only_what_the_gateway_itself_wrote_counts_as_a_token() {
    let digits = "0123456789abcdef0123456789abcdef";
    for token in [
        format!("secret:{digits}"),
        format!("secret:password:{digits}"),
        format!("asked by pii:email:{digits} today"),
    ] {
        assert_eq!(kinds(&token), [], "{token}");
    }
    let with_kind = format!("secret:password:{digits}");
    assert!(find(Some("password"), &with_kind).is_empty());
    // Without a kind only whoever made it can tell it from a secret.
    assert_eq!(find(Some("password"), &format!("secret:{digits}")).len(), 1);
    for secret in [
        format!("the secret:{digits} is new"),
        format!("x secret:token:{digits}"),
    ] {
        assert_eq!(kinds(&secret).len(), 1, "{secret}");
    }
}

#[test]
fn one_value_has_one_normal_form() {
    assert_eq!(normal_form("email", "Ada%40Example.org"), "ada@example.org");
    assert_eq!(
        normal_form("card", "4111 1111-1111１１１１"),
        "4111111111111111"
    );
    assert_eq!(normal_form("iban", "de89 3704"), "DE893704");
}

mod spellings;

proptest! {
    #[test]
    fn a_planted_value_is_found_whatever_stands_around(
        before in "[ -~]{0,40}[ ,;(]",
        behind in "[ ,;)][ -~]{0,40}",
        planted in prop_oneof![
            Just("planted@example.org"),
            Just("4111111111111111"),
            Just("AKIAIOSFODNN7EXAMPLE"),
            Just("DE89370400440532013000"),
        ],
    ) {
        let text = format!("{before}{planted}{behind}");
        let found = find(None, &text);
        let start = before.len();
        prop_assert!(
            found.iter().any(|finding| finding.range.start <= start && finding.range.end >= start + planted.len()),
            "{text:?} {found:?}"
        );
    }

    #[test]
    fn findings_are_in_order_and_on_character_borders(text in ".{0,200}") {
        let mut end = 0;
        for finding in find(None, &text) {
            prop_assert!(finding.range.start >= end && text.get(finding.range.clone()).is_some());
            end = finding.range.end;
        }
    }
}
