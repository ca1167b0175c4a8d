//! Exact checks on what the automaton proposes: checksums, ranges and what stands around.

use std::ops::Range;

use base64::{Engine as _, engine::general_purpose::STANDARD_NO_PAD};

use super::{names::is_number, plain::CASELESS};

/// The countries of the IBAN registry (ISO 13616, release 100) by the length of their IBANs.
const IBAN_LENGTHS: [(usize, &[&str]); 18] = [
    (15, &["NO"]),
    (16, &["BE"]),
    (18, &["DK", "FI", "FK", "FO", "GL", "NL", "SD"]),
    (19, &["MK", "SI"]),
    (20, &["AT", "BA", "EE", "KZ", "LT", "LU", "MN", "XK"]),
    (21, &["CH", "HR", "LI", "LV"]),
    (
        22,
        &["BG", "BH", "CR", "DE", "GB", "GE", "IE", "ME", "RS", "VA"],
    ),
    (23, &["AE", "GI", "IL", "IQ", "OM", "SO", "TL"]),
    (
        24,
        &[
            "AD", "CZ", "ES", "MD", "PK", "RO", "SA", "SE", "SK", "TN", "VG",
        ],
    ),
    (25, &["LY", "PT", "ST"]),
    (26, &["IS", "TR"]),
    (27, &["BI", "DJ", "FR", "GR", "IT", "MC", "MR", "SM"]),
    (
        28,
        &[
            "AL", "AZ", "BY", "CY", "DO", "GT", "HN", "HU", "LB", "NI", "PL", "SV",
        ],
    ),
    (29, &["BR", "EG", "PS", "QA", "UA"]),
    (30, &["JO", "KW", "MU", "YE"]),
    (31, &["MT", "SC"]),
    (32, &["LC"]),
    (33, &["RU"]),
];

/// The digits of a text.
pub(super) fn digits(text: &str) -> String {
    text.chars().filter(char::is_ascii_digit).collect()
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

/// The same, but for a word before or behind without any digit, such as `card4111…`: ids and digests are not told from it by
/// their letters alone.
fn has_only_words_around(text: &str, range: &Range<usize>) -> bool {
    const LONGEST_WORD: usize = 24;
    let part_of_more = |character: &char| character.is_alphanumeric() || *character == '_';
    let is_word = |joined: &mut dyn Iterator<Item = char>| {
        joined
            .take(LONGEST_WORD + 1)
            .zip(1..)
            .all(|(character, place)| !character.is_numeric() && place <= LONGEST_WORD)
    };
    let (before, behind) = (text.get(..range.start), text.get(range.end..));
    let mut before = before
        .unwrap_or_default()
        .chars()
        .rev()
        .take_while(part_of_more);
    let mut behind = behind.unwrap_or_default().chars().take_while(part_of_more);
    is_word(&mut before) && is_word(&mut behind)
}

/// Cards by ISO/IEC 7812: 13 to 19 digits that begin as issuers' numbers do and fit Luhn's checksum. In a longer row of
/// groups, each stretch from one group to another is looked at.
pub(super) fn card(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(range.clone())?;
    let places: Vec<(usize, u8)> = candidate
        .bytes()
        .enumerate()
        .filter(|(_, byte)| byte.is_ascii_digit())
        .map(|(at, byte)| (range.start + at, byte - b'0'))
        .collect();
    for from in 0..places.len() {
        for length in (13..=19).rev() {
            let Some(window) = places.get(from..from + length) else {
                continue;
            };
            let (Some(first), Some(last)) = (window.first(), window.last()) else {
                continue;
            };
            let place = first.0..last.0 + 1;
            let digits: Vec<u8> = window.iter().map(|(_, digit)| *digit).collect();
            if is_issuer(&digits)
                && luhn(&digits)
                && has_only_words_around(text, &place)
                && text.get(place.clone()).is_some_and(is_grouped)
            {
                return Some(place);
            }
        }
    }
    None
}

/// Whether a number is set apart as one number is: by single spaces and dashes anywhere, or by one other separator between groups of
/// three digits and more, of which the first has four. Dates, versions and addresses have shorter groups.
fn is_grouped(number: &str) -> bool {
    let separators = || {
        number
            .split(|character: char| character.is_ascii_digit())
            .filter(|part| !part.is_empty())
    };
    if separators().all(|separator| matches!(separator, " " | "-")) {
        return true;
    }
    let first = separators().next();
    let groups = || {
        number
            .split(|character: char| !character.is_ascii_digit())
            .filter(|part| !part.is_empty())
    };
    separators().all(|separator| Some(separator) == first)
        && groups().all(|group| group.len() >= 3)
        && groups().next().is_some_and(|group| group.len() >= 4)
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
    let (length, _) = IBAN_LENGTHS
        .iter()
        .find(|(_, countries)| countries.contains(&country.as_str()))?;
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

/// The value behind `Bearer`.
pub(super) fn bearer(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let place = range.start + "bearer ".len()..range.end;
    looks_secret(text.get(place.clone())?).then_some(place)
}

/// The value behind `Basic` (RFC 7617): a name, a colon and a password in base64, or whatever looks like a secret.
pub(super) fn basic(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    const LOOKS_LONG: usize = 16;
    let place = range.start + "basic ".len()..range.end;
    let value = text.get(place.clone())?;
    let standard = value
        .trim_end_matches('=')
        .replace('-', "+")
        .replace('_', "/");
    let is_pair = STANDARD_NO_PAD
        .decode(standard)
        .is_ok_and(|pair| pair.contains(&b':'));
    (is_pair || value.len() >= LOOKS_LONG && looks_secret(value)).then_some(place)
}

/// A URL's user information, unless it is a port and an `@` further on.
pub(super) fn userinfo(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let (_, authority) = text.get(range.clone())?.split_once("://")?;
    let (_, password) = authority.split_once(':')?;
    let behind = password.trim_start_matches(|digit: char| digit.is_ascii_digit());
    let is_port = behind.len() < password.len() && behind.starts_with(['/', '?', '#']);
    (!is_port).then_some(range)
}

/// An address. Letters without a case belong to it only where it is none without them.
pub(super) fn email(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    let candidate = text.get(range.clone())?;
    if !candidate.contains(CASELESS) {
        return Some(range);
    }
    let (local, domain) = candidate
        .split_once('@')
        .or_else(|| candidate.split_once("%40"))?;
    let own = local.rsplit(CASELESS).next().filter(|own| !own.is_empty());
    let start = range.end - candidate.len() + local.len() - own.unwrap_or(local).len();
    let ascii = domain.split(CASELESS).next().unwrap_or_default();
    let is_whole = ascii.rsplit_once('.').is_some_and(|(_, last)| {
        last.len() >= 2 && last.bytes().all(|byte| byte.is_ascii_alphabetic())
    });
    let end = if is_whole {
        range.end - (domain.len() - ascii.len())
    } else {
        range.end
    };
    Some(start..end)
}

/// The value behind `password=` and the like. What stands behind a word for a password, or behind any such word as a member's name
/// in JSON, is secret whatever it looks like; elsewhere it must look like it, because people write about tokens.
pub(super) fn secret_value(text: &str, range: Range<usize>) -> Option<Range<usize>> {
    const QUOTES: [char; 3] = ['"', '\'', '\\'];
    let candidate = text.get(range.clone())?;
    let separator = candidate.find([':', '=']).unwrap_or(candidate.len());
    let is = candidate.find(char::is_whitespace).filter(|at| {
        let words = candidate.get(*at..separator).unwrap_or_default();
        words.trim_start().starts_with("is")
            && words.trim() != ""
            && words
                .trim_start()
                .get(2..)
                .is_some_and(|rest| rest.starts_with(char::is_whitespace))
    });
    let (name, behind) = match is {
        Some(at) => {
            let words = candidate.get(at..)?.trim_start();
            (candidate.get(..at)?, words.get(2..)?)
        }
        None => (candidate.get(..separator)?, candidate.get(separator + 1..)?),
    };
    let value = behind.trim_start_matches(|before: char| {
        before.is_whitespace() || QUOTES.contains(&before) || matches!(before, ':' | '=')
    });
    let mut place = range.end - value.len()..range.end;
    if value.is_empty() {
        return None;
    }
    let lead = behind.get(..behind.len() - value.len())?;
    let is_quoted = lead.ends_with(['"', '\'']);
    let is_member = is.is_none() && name.ends_with(QUOTES);
    let is_password = is.is_none()
        && !lead.contains('\n')
        && ["pass", "pwd"].iter().any(|word| {
            name.get(..word.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(word))
        });
    let is_no_text = !is_quoted && matches!(value, "null" | "true" | "false");
    let is_count = name.trim_start().to_ascii_lowercase().starts_with("token") && is_number(value);
    let is_secret = looks_secret(value) || (is_password || is_member) && !is_no_text && !is_count;
    if !is_secret {
        return None;
    }
    if let Some(quote) = lead.chars().next_back().filter(|_| is_quoted) {
        place.end = end_of_quoted(text, place.end, quote);
    }
    Some(place)
}

/// Where a quoted text ends that has no end before `from`: at its quotation mark, if that is near.
fn end_of_quoted(text: &str, from: usize, quote: char) -> usize {
    const LONGEST: usize = 256;
    let rest = text.get(from..).unwrap_or_default();
    let near = rest
        .get(..rest.floor_char_boundary(LONGEST))
        .unwrap_or_default();
    let end = near
        .char_indices()
        .scan(false, |escaped, (at, character)| {
            let ends = character == quote && !*escaped;
            *escaped = character == '\\' && !*escaped;
            Some((at, ends))
        })
        .find_map(|(at, ends)| ends.then_some(at));
    end.map_or(from, |end| from + end)
}

/// Long enough, and of more than one sort of characters: neither a plain word nor a plain number.
fn looks_secret(value: &str) -> bool {
    let sorts = [
        value.bytes().any(|byte| byte.is_ascii_lowercase()),
        value.bytes().any(|byte| byte.is_ascii_uppercase()),
        value.bytes().any(|byte| byte.is_ascii_digit()),
        value.bytes().any(|byte| byte.is_ascii_punctuation()),
    ];
    value.len() >= 6 && sorts.iter().filter(|sort| **sort).count() >= 2 && !value.contains(' ')
}
