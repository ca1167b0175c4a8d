//! What is reported about the money of a call.

use super::{contract, loading::one};

fn with(amount: &str) -> String {
    format!(
        "method: POST\npath: /things\namount: {amount}\ninput: {{type: object, $defs: {{n: {{type: integer}}}}, properties: {{\
         cents: {{type: integer}}, price: {{type: number}}, money: {{type: object, properties: {{n: {{$ref: '#/$defs/n'}}}}}}, \
         lines: {{type: array, items: {{$ref: '#/$defs/n'}}}}, text: {{type: string}}, any: {{}}, \
         maybe: {{type: [integer, 'null']}}, currency: {{type: string}}}}}}"
    )
}

#[test]
fn an_amount_leads_to_a_number_and_says_of_which_currency_and_in_which_unit() {
    for good in [
        "{value: /cents, currency: USD, unit: minor}",
        "{value: /price, currency: /currency, unit: major}",
        "{value: /money/n, currency: JPY, unit: minor}",
        "{value: /lines/0, currency: JPY, unit: minor}",
    ] {
        let (without, with) = (
            contract(&with(good).replace(&format!("amount: {good}\n"), "")),
            contract(&with(good)),
        );
        assert!(with.amount.is_some(), "{good}");
        assert_ne!(
            without.digest, with.digest,
            "what people are shown is part of the contract"
        );
    }
    for (bad, says) in [
        (
            "{value: /nowhere, currency: USD, unit: minor}",
            "leads to nothing in the input schema",
        ),
        (
            "{value: /cents/n, currency: USD, unit: minor}",
            "leads to nothing in the input schema",
        ),
        (
            "{value: /text, currency: USD, unit: minor}",
            "must lead to an integer or a number",
        ),
        (
            "{value: /any, currency: USD, unit: minor}",
            "must lead to an integer or a number",
        ),
        (
            "{value: /maybe, currency: USD, unit: minor}",
            "must lead to an integer or a number",
        ),
        (
            "{value: cents, currency: USD, unit: minor}",
            "is no JSON pointer",
        ),
        (
            "{value: /cents, currency: usd, unit: minor}",
            "is no currency of ISO 4217",
        ),
        (
            "{value: /cents, currency: ZZZ, unit: minor}",
            "is no currency of ISO 4217",
        ),
        (
            "{value: /cents, currency: XAU, unit: minor}",
            "is no currency of ISO 4217",
        ),
        (
            "{value: /cents, currency: /nowhere, unit: minor}",
            "leads to nothing in the input schema",
        ),
        (
            "{value: /cents, currency: /price, unit: minor}",
            "must lead to text",
        ),
        (
            "{value: /cents, currency: USD, unit: cents}",
            "is no unit of an amount",
        ),
        (
            "{value: /cents, currency: USD}",
            "the field `unit` is missing",
        ),
        (
            "{value: /cents, unit: minor}",
            "the field `currency` is missing",
        ),
        (
            "{value: /cents, currency: USD, unit: minor, digits: 2}",
            "has no field `digits`",
        ),
        ("/cents", "`amount` must be a mapping"),
    ] {
        let found = one(&with(bad));
        assert!(found.contains(says), "{bad}: {found}");
        assert!(found.starts_with("9:"), "{bad}: {found}");
    }
}
