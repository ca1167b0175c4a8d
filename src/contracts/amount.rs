//! The money that a call is about: where in its arguments the amount stands, in which unit, and of which currency, so that people
//! read `19.99 USD` and not `1999`. Exact: digits are moved, nothing is calculated.

use iso_currency::Currency;
use serde::{Serialize, Serializer};
use serde_json::{Number, Value};

use super::{
    effects::pointer,
    reader::{Reader, Spot},
    schema::{self, Types},
    source::Node,
};

/// Where the money stands in a call's arguments.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Amount {
    /// JSON pointer (RFC 6901) to the number.
    pub value: String,
    /// The currency.
    pub currency: CurrencyOf,
    /// What the number counts.
    pub unit: Unit,
}

/// Of which currency an amount is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CurrencyOf {
    /// JSON pointer to its code among the arguments.
    Argument(String),
    /// Always this one.
    Fixed(String),
}

impl Serialize for CurrencyOf {
    /// As it is written: pointers begin with a slash, codes do not.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Argument(text) | Self::Fixed(text) => serializer.serialize_str(text),
        }
    }
}

/// What the number of an amount counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// The currency's smallest unit, as ISO 4217 divides it: cents, yen, fils.
    Minor,
    /// The currency itself.
    Major,
}

impl Amount {
    /// The amount of a call in words, such as `19.99 USD`. None where there is no number.
    pub fn of(&self, arguments: &Value) -> Option<String> {
        let Value::Number(number) = arguments.pointer(&self.value)? else {
            return None;
        };
        let code = match &self.currency {
            CurrencyOf::Fixed(code) => Some(code.clone()),
            CurrencyOf::Argument(pointer) => arguments
                .pointer(pointer)
                .and_then(Value::as_str)
                .map(str::to_ascii_uppercase),
        };
        let places = code.as_deref().and_then(decimal_places);
        Some(match (code, places, self.unit) {
            (Some(code), Some(places), Unit::Minor) => {
                format!("{} {code}", Decimal::of(number).shown(places, places))
            }
            (Some(code), Some(places), Unit::Major) => {
                format!("{} {code}", Decimal::of(number).shown(0, places))
            }
            (code, _, unit) => {
                let unit = match unit {
                    Unit::Minor => "in minor units of",
                    Unit::Major => "of",
                };
                let currency = code.map_or_else(
                    || "a currency that the call does not name".to_owned(),
                    |code| format!("{code}, which ISO 4217 does not divide"),
                );
                format!("{} {unit} {currency}", Decimal::of(number).shown(0, 0))
            }
        })
    }
}

/// How many decimal places a currency's minor unit is, by its code in capital letters. None for what ISO 4217 does not know or
/// does not divide.
fn decimal_places(code: &str) -> Option<i64> {
    Currency::from_code(code)?.exponent().map(i64::from)
}

/// A number of JSON as its digits, exactly as it is sent.
struct Decimal {
    is_negative: bool,
    /// Without a point.
    digits: String,
    /// How many of them stand behind the point; below zero, so many zeros follow.
    places: i64,
}

impl Decimal {
    fn of(number: &Number) -> Self {
        let text = number.to_string();
        let (is_negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.as_str()),
        };
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let behind = i64::try_from(fraction.len()).unwrap_or(i64::MAX);
        Self {
            is_negative,
            digits: format!("{whole}{fraction}"),
            // The exponents of JSON's numbers are small: what overflows a double is refused.
            places: behind.saturating_sub(exponent.parse().unwrap_or(0)),
        }
    }

    /// Divided by ten to the power of `shift`, with at least so many places behind the point and no needless ones beyond them.
    fn shown(&self, shift: i64, least: i64) -> String {
        let size = |places: i64| usize::try_from(places).unwrap_or(0);
        let places = self.places.saturating_add(shift);
        let mut digits = self.digits.clone();
        digits.push_str(&"0".repeat(size(-places)));
        let places = size(places);
        if digits.len() <= places {
            digits.insert_str(0, &"0".repeat(places + 1 - digits.len()));
        }
        let (whole, fraction) = digits.split_at(digits.len() - places);
        let whole = whole.trim_start_matches('0');
        let mut fraction = fraction.trim_end_matches('0').to_owned();
        fraction.push_str(&"0".repeat(size(least).saturating_sub(fraction.len())));
        format!(
            "{}{}{}{fraction}",
            if self.is_negative { "-" } else { "" },
            if whole.is_empty() { "0" } else { whole },
            if fraction.is_empty() { "" } else { "." },
        )
    }
}

/// Reads `amount`, and holds it against the input schema where that is known.
pub(super) fn read(reader: &mut Reader<'_>, tool: &Node, input: Option<&Value>) -> Option<Amount> {
    let (_, node) = tool.get("amount")?;
    if !reader.mapping(node, "`amount`", &["value", "currency", "unit"]) {
        return None;
    }
    let value = reader.required_text(node, "value", &node.at);
    let currency = reader.required_text(node, "currency", &node.at);
    let unit = reader.required_text(node, "unit", &node.at);
    let value = value.filter(|value| pointer(reader, value));
    if let (Some(value), Some(input)) = (&value, input) {
        leads_to(
            reader,
            input,
            value,
            Types::NUMBER,
            "an integer or a number",
        );
    }
    let choices = [("minor", Unit::Minor), ("major", Unit::Major)];
    let unit = unit.and_then(|unit| reader.choice(&unit, "unit of an amount", &choices));
    Some(Amount {
        value: value?.value,
        currency: currency_of(reader, currency?, input)?,
        unit: unit?,
    })
}

fn currency_of(
    reader: &mut Reader<'_>,
    text: Spot<String>,
    input: Option<&Value>,
) -> Option<CurrencyOf> {
    if text.value.starts_with('/') {
        if !pointer(reader, &text) {
            return None;
        }
        if let Some(input) = input {
            leads_to(reader, input, &text, Types::STRING, "text");
        }
        return Some(CurrencyOf::Argument(text.value));
    }
    if decimal_places(&text.value).is_none() {
        reader.error_with_help(
            &text.at,
            format!("`{}` is no currency of ISO 4217 with a minor unit", text.value),
            "write its code in capital letters, such as EUR, or a JSON pointer to the argument that holds it, such as /currency",
        );
        return None;
    }
    Some(CurrencyOf::Fixed(text.value))
}

/// Reports a pointer that leads to no such value in arguments that fit.
fn leads_to(reader: &mut Reader<'_>, input: &Value, at: &Spot<String>, wanted: Types, what: &str) {
    let found = schema::at(input, &at.value);
    if found.is_empty() {
        reader.error(
            &at.at,
            format!("`{}` leads to nothing in the input schema", at.value),
        );
    } else if !schema::types_of_any(input, &found).within(wanted) {
        reader.error(
            &at.at,
            format!(
                "`{}` must lead to {what}, and its schema allows something else",
                at.value
            ),
        );
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn amount(unit: Unit, value: Value, currency: &str) -> Option<String> {
        Amount {
            value: "/value".to_owned(),
            currency: CurrencyOf::Argument("/currency".to_owned()),
            unit,
        }
        .of(&json!({"value": value, "currency": currency}))
    }

    #[test]
    fn amounts_are_shown_in_their_unit_and_to_the_last_digit() {
        for (unit, value, currency, shown) in [
            (Unit::Minor, json!(1999), "USD", "19.99 USD"),
            (Unit::Minor, json!(1999), "usd", "19.99 USD"),
            (Unit::Minor, json!(1999), "JPY", "1999 JPY"),
            (Unit::Minor, json!(1999), "KWD", "1.999 KWD"),
            (Unit::Minor, json!(1999), "CLF", "0.1999 CLF"),
            (Unit::Minor, json!(5), "EUR", "0.05 EUR"),
            (Unit::Minor, json!(0), "EUR", "0.00 EUR"),
            (Unit::Minor, json!(100), "EUR", "1.00 EUR"),
            (Unit::Minor, json!(-1999), "EUR", "-19.99 EUR"),
            (
                Unit::Minor,
                json!(9_007_199_254_740_991_u64),
                "EUR",
                "90071992547409.91 EUR",
            ),
            (Unit::Minor, json!(19.5), "EUR", "0.195 EUR"),
            (Unit::Major, json!(19.99), "EUR", "19.99 EUR"),
            (Unit::Major, json!(19.9), "EUR", "19.90 EUR"),
            (Unit::Major, json!(19.999), "EUR", "19.999 EUR"),
            (Unit::Major, json!(20), "EUR", "20.00 EUR"),
            (Unit::Major, json!(20), "JPY", "20 JPY"),
            (Unit::Major, json!(0.1), "EUR", "0.10 EUR"),
            (Unit::Major, json!(1.5e-7), "EUR", "0.00000015 EUR"),
            (
                Unit::Major,
                json!(1e21),
                "EUR",
                "1000000000000000000000.00 EUR",
            ),
            (
                Unit::Minor,
                json!(1999),
                "XYZ",
                "1999 in minor units of XYZ, which ISO 4217 does not divide",
            ),
            (
                Unit::Major,
                json!(1.5),
                "XAU",
                "1.5 of XAU, which ISO 4217 does not divide",
            ),
        ] {
            assert_eq!(amount(unit, value, currency).as_deref(), Some(shown));
        }
        assert_eq!(amount(Unit::Minor, json!("****"), "EUR"), None);
        let without = Amount {
            value: "/value".to_owned(),
            currency: CurrencyOf::Argument("/nowhere".to_owned()),
            unit: Unit::Minor,
        };
        assert_eq!(
            without.of(&json!({"value": 5})).as_deref(),
            Some("5 in minor units of a currency that the call does not name")
        );
    }
}
