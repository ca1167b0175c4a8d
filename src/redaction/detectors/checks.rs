//! Exact checks on what the automaton proposes: checksums, ranges and what stands around.

use std::ops::Range;

/// The lengths of IBANs by country (ISO 13616 registry), for countries with more than a few accounts.
const IBAN_LENGTHS: [(&str, usize); 62] = [
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BR", 29),
    ("BY", 28),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GL", 18),
    ("GR", 27),
    ("GT", 28),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IQ", 23),
    ("IS", 26),
    ("IT", 27),
    ("JO", 30),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("MC", 27),
    ("MD", 24),
    ("ME", 22),
    ("MK", 19),
    ("MT", 31),
    ("NL", 18),
    ("NO", 15),
    ("PL", 28),
    ("PT", 25),
    ("QA", 29),
    ("RO", 24),
    ("RS", 22),
    ("SA", 24),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("TR", 26),
];

/// Words beside which a value is a secret.
const SECRET_NAMES: [&str; 10] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "apikey",
    "credential",
    "privatekey",
    "accesskey",
];

/// The digits of a text, those of full width as well.
pub(super) fn digits(text: &str) -> String {
    text.chars()
        .filter_map(digit)
        .map(|digit| char::from(b'0' + digit))
        .collect()
}

fn digit(character: char) -> Option<u8> {
    match character {
        '0'..='9' => u8::try_from(u32::from(character) - u32::from('0')).ok(),
        '０'..='９' => u8::try_from(u32::from(character) - u32::from('０')).ok(),
        _ => None,
    }
}

/// Nothing that would make it part of something longer stands before or behind.
fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let part_of_more = |character: char| character.is_alphanumeric() || character == '_';
    let before = text
        .get(..range.start)
        .and_then(|text| text.chars().next_back());
    let behind = text.get(range.end..).and_then(|text| text.chars().next());
    !before.is_some_and(part_of_more) && !behind.is_some_and(part_of_more)
}

/// Cards by ISO/IEC 7812: 13 to 19 digits that begin as issuers' numbers do and fit Luhn's checksum. In a longer row of
/// groups, each stretch from one group to another is looked at.
pub(super) fn card(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(range.clone())?;
    let mut places: Vec<(usize, usize, u8)> = Vec::new();
    for (at, character) in candidate.char_indices() {
        if let Some(digit) = digit(character) {
            places.push((
                range.start + at,
                range.start + at + character.len_utf8(),
                digit,
            ));
        }
    }
    for from in 0..places.len() {
        for length in (13..=19).rev() {
            let Some(window) = places.get(from..from + length) else {
                continue;
            };
            let (Some(first), Some(last)) = (window.first(), window.last()) else {
                continue;
            };
            let place = first.0..last.1;
            let digits: Vec<u8> = window.iter().map(|(_, _, digit)| *digit).collect();
            if stands_alone(text, &place) && is_issuer(&digits) && luhn(&digits) {
                return Some(place);
            }
        }
    }
    None
}

fn is_issuer(digits: &[u8]) -> bool {
    matches!(
        digits,
        [4, ..] | [5, 0..=8, ..] | [3, 0 | 4..=9, ..] | [6, 0 | 2..=9, ..] | [2, 2..=7, ..]
    ) && digits.iter().any(|digit| Some(digit) != digits.first())
}

fn luhn(digits: &[u8]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(place, digit)| {
            let digit = u32::from(*digit);
            match (place % 2, digit * 2) {
                (0, _) => digit,
                (_, double) if double > 9 => double - 9,
                (_, double) => double,
            }
        })
        .sum();
    sum.is_multiple_of(10)
}

/// IBANs by ISO 13616: the country's length, and 97 as the remainder's base.
pub(super) fn iban(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(range.clone())?;
    let country = candidate.get(..2)?.to_ascii_uppercase();
    let (_, length) = IBAN_LENGTHS.iter().find(|(known, _)| *known == country)?;
    let mut characters = candidate
        .char_indices()
        .filter(|(_, character)| character.is_ascii_alphanumeric());
    let (last, _) = characters.nth(length - 1)?;
    let place = range.start..range.start + last + 1;
    let compact: String = text
        .get(place.clone())?
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let (head, tail) = compact.split_at_checked(4)?;
    let mut remainder = 0_u32;
    for character in tail.chars().chain(head.chars()) {
        let value = character.to_digit(36)?;
        remainder = (remainder * if value > 9 { 100 } else { 10 } + value) % 97;
    }
    (remainder == 1 && stands_alone(text, &place)).then_some(place)
}

/// Numbers as the Social Security Administration gives them: no area 000, 666 or 9xx, no group 00, no serial 0000.
pub(super) fn ssn(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(range.clone())?;
    let (area, rest) = candidate.split_once('-')?;
    let (group, serial) = rest.split_once('-')?;
    let given = !matches!(area, "000" | "666")
        && !area.starts_with('9')
        && group != "00"
        && serial != "0000";
    (given && stands_alone(text, &range) && !dashed(text, &range)).then_some(range)
}

/// International numbers have 8 to 15 digits (ITU-T E.164); a number that goes on is none.
pub(super) fn phone(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let count = digits(text.get(range.clone())?).len();
    ((8..=17).contains(&count) && stands_alone(text, &range) && !dashed(text, &range))
        .then_some(range)
}

/// Part of a longer text of groups, such as a UUID or a date with a time.
fn dashed(text: &str, range: &Range<usize>) -> bool {
    let joins = |text: &str| {
        let mut characters = text.chars();
        matches!(characters.next(), Some('-' | '.' | ':'))
            && characters.next().is_some_and(char::is_alphanumeric)
    };
    let before: String = text
        .get(..range.start)
        .unwrap_or_default()
        .chars()
        .rev()
        .take(2)
        .collect();
    joins(&before) || joins(text.get(range.end..).unwrap_or_default())
}

/// The value behind `password=` and the like, or behind `Bearer`.
pub(super) fn secret_value(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(range.clone())?;
    let from = candidate
        .find([':', '='])
        .or_else(|| {
            candidate
                .find([' ', '+'])
                .filter(|_| !candidate.contains(" is "))
        })
        .or_else(|| candidate.find(" is ").map(|at| at + 3))?;
    let rest = candidate.get(from + 1..)?;
    let value = rest.trim_start_matches([' ', '\t', '\n', '\r', '"', '\'', '\\', ':', '=']);
    let start = range.end - value.len();
    looks_secret(value).then_some(start..range.end)
}

/// Long enough, and of more than one sort of characters: neither a plain word nor a plain number.
pub(super) fn looks_secret(value: &str) -> bool {
    let sorts = [
        value.bytes().any(|byte| byte.is_ascii_lowercase()),
        value.bytes().any(|byte| byte.is_ascii_uppercase()),
        value.bytes().any(|byte| byte.is_ascii_digit()),
        value.bytes().any(|byte| byte.is_ascii_punctuation()),
    ];
    value.len() >= 6 && sorts.iter().filter(|sort| **sort).count() >= 2 && !value.contains(' ')
}

/// Whether a property of this name holds a secret, however it is written.
pub(super) fn is_secret_name(name: &str) -> bool {
    let plain: String = name
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .map(|character| character.to_ascii_lowercase())
        .collect();
    // The name of a token's kind or a count of tokens is no secret.
    SECRET_NAMES.iter().any(|secret| plain.ends_with(secret))
}
