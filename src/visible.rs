//! Text as people are shown it, so that nothing in it is hidden and nothing passes for something else. Every page, message and
//! command that shows people what an agent or an API has written shows it through here; digests are over the real values.
//!
//! One notation: `\u{…}` in what is shown always stands for the one character of that number (hexadecimal, as in Rust and
//! JavaScript). A backslash that really stood before `u{` is itself written `\u{5C}`, so that what is shown can be read in one
//! way only.
//!
//! Written so are characters that do not show or turn others around (controls, format characters, default ignorables, whatever
//! Unicode has not assigned, private use), spaces that are not U+0020, and letters of another script within a word, which may look
//! like its own: UTS #39 calls such words mixed-script.

use std::{borrow::Cow, fmt::Write as _};

use icu_properties::{
    CodePointMapData, CodePointMapDataBorrowed, CodePointSetData, CodePointSetDataBorrowed,
    props::{DefaultIgnorableCodePoint, GeneralCategory, Script},
};
use serde::{Serialize, Serializer, ser::Error as _};
use serde_json::{Map, Value};

const CATEGORIES: CodePointMapDataBorrowed<'static, GeneralCategory> =
    CodePointMapData::<GeneralCategory>::new();
const SCRIPTS: CodePointMapDataBorrowed<'static, Script> = CodePointMapData::<Script>::new();
const IGNORABLE: CodePointSetDataBorrowed<'static> =
    CodePointSetData::new::<DefaultIgnorableCodePoint>();

/// A text of any length, with its line breaks and tabs.
pub fn text(text: &str) -> Cow<'_, str> {
    shown(text, &['\n', '\t'])
}

/// A text on one line.
pub fn line(text: &str) -> Cow<'_, str> {
    shown(text, &[])
}

/// Every text in a document, and every name of a member. No two names become one.
pub fn document(value: &mut Value) {
    match value {
        Value::String(own) => {
            if let Cow::Owned(seen) = text(own) {
                *own = seen;
            }
        }
        Value::Array(items) => items.iter_mut().for_each(document),
        Value::Object(members) => {
            let has_hidden = members
                .keys()
                .any(|name| matches!(line(name), Cow::Owned(_)));
            if has_hidden {
                *members = std::mem::take(members)
                    .into_iter()
                    .map(|(name, member)| (line(&name).into_owned(), member))
                    .collect::<Map<_, _>>();
            }
            members.values_mut().for_each(document);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// What it holds, serialized as people are shown it: every text and every name of a member through [`document`].
#[derive(Debug)]
pub struct Document<T>(pub T);

impl<T: Serialize> Serialize for Document<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut value = serde_json::to_value(&self.0).map_err(S::Error::custom)?;
        document(&mut value);
        value.serialize(serializer)
    }
}

fn shown<'a>(text: &'a str, kept: &[char]) -> Cow<'a, str> {
    let is_plain =
        |byte: u8| byte == b' ' || byte.is_ascii_graphic() || kept.contains(&char::from(byte));
    if text.bytes().all(is_plain) && !text.contains("\\u{") {
        return Cow::Borrowed(text);
    }
    let mut seen = String::with_capacity(text.len() + 16);
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest
            .find(|letter| !is_of_word(letter))
            .unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let own = script_of(word);
        for letter in word.chars() {
            if is_hidden(letter) || own.is_some_and(|own| is_foreign(letter, own)) {
                write_number(&mut seen, letter);
            } else {
                seen.push(letter);
            }
        }
        rest = after;
        if let Some(letter) = after.chars().next() {
            let is_escape = letter == '\\' && after.starts_with("\\u{");
            if is_escape || (is_hidden(letter) && !kept.contains(&letter)) {
                write_number(&mut seen, letter);
            } else {
                seen.push(letter);
            }
            rest = after.get(letter.len_utf8()..).unwrap_or_default();
        }
    }
    if seen == text {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(seen)
    }
}

fn write_number(seen: &mut String, letter: char) {
    // Writing to a String cannot fail.
    let _ = write!(seen, "\\u{{{:X}}}", u32::from(letter));
}

/// Letters, digits and marks, and what is hidden between them, which parts no word that people see.
fn is_of_word(letter: char) -> bool {
    use GeneralCategory as Is;
    letter.is_alphanumeric()
        || matches!(
            CATEGORIES.get(letter),
            Is::NonspacingMark | Is::SpacingMark | Is::EnclosingMark | Is::Format
        )
}

fn is_hidden(letter: char) -> bool {
    use GeneralCategory as Is;
    match CATEGORIES.get(letter) {
        Is::Control
        | Is::Format
        | Is::Unassigned
        | Is::PrivateUse
        | Is::Surrogate
        | Is::LineSeparator
        | Is::ParagraphSeparator => true,
        Is::SpaceSeparator => letter != ' ',
        // A pattern of Braille without a dot is as blank as a space.
        _ => IGNORABLE.contains(letter) || letter == '\u{2800}',
    }
}

/// The script that a word is in: Latin where any of it is, else that of its first letter.
fn script_of(word: &str) -> Option<Script> {
    let mut scripts = word
        .chars()
        .map(|letter| SCRIPTS.get(letter))
        .filter(|script| !matches!(*script, Script::Common | Script::Inherited));
    let first = scripts.next()?;
    let is_latin = first == Script::Latin || scripts.any(|script| script == Script::Latin);
    Some(if is_latin { Script::Latin } else { first })
}

/// Whether a letter is of another script than its word. Those in which Japanese, Chinese and Korean are written together, with
/// Latin too, look like no other.
fn is_foreign(letter: char, own: Script) -> bool {
    let is_eastern = |script| {
        matches!(
            script,
            Script::Han | Script::Hiragana | Script::Katakana | Script::Hangul | Script::Bopomofo
        )
    };
    let script = SCRIPTS.get(letter);
    !matches!(script, Script::Common | Script::Inherited)
        && script != own
        && !(is_eastern(script) && (is_eastern(own) || own == Script::Latin))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// What a person who knows the notation reads.
    fn read_back(shown: &str) -> String {
        let mut parts = shown.split("\\u{");
        let mut text = parts.next().unwrap().to_owned();
        for part in parts {
            let (number, rest) = part.split_once('}').unwrap();
            text.push(char::from_u32(u32::from_str_radix(number, 16).unwrap()).unwrap());
            text.push_str(rest);
        }
        text
    }

    #[test]
    fn what_hides_or_turns_is_written_as_its_number() {
        for (text, seen) in [
            ("pay\u{202E}001", "pay\\u{202E}001"),
            (
                "a\u{200B}b\u{2060}c\u{FEFF}",
                "a\\u{200B}b\\u{2060}c\\u{FEFF}",
            ),
            ("\u{2066}x\u{2069}", "\\u{2066}x\\u{2069}"),
            ("c_1001\u{A0}", "c_1001\\u{A0}"),
            ("\u{3164}\u{115F}\u{2800}", "\\u{3164}\\u{115F}\\u{2800}"),
            ("soft\u{AD}", "soft\\u{AD}"),
            ("\u{E0041}\u{E000}\u{FFFF}", "\\u{E0041}\\u{E000}\\u{FFFF}"),
            ("\u{1B}[2Jgone\r\u{7F}", "\\u{1B}[2Jgone\\u{D}\\u{7F}"),
            ("\u{2028}\u{2029}", "\\u{2028}\\u{2029}"),
            ("C:\\users\\u", "C:\\users\\u"),
            ("\\u{202E}", "\\u{5C}u{202E}"),
            ("\\\\u{41}", "\\\\u{5C}u{41}"),
            (
                "M\u{fc}ller, \u{41f}\u{440}\u{438}\u{432}\u{435}\u{442}",
                "Müller, Привет",
            ),
        ] {
            assert_eq!(line(text), seen);
            assert_eq!(read_back(seen), text);
        }
        assert_eq!(text("a\n\tb\r\n"), "a\n\tb\\u{D}\n");
        assert_eq!(line("a\n\tb"), "a\\u{A}\\u{9}b");
    }

    #[test]
    fn a_letter_that_passes_for_another_is_written_as_its_number() {
        for (text, seen) in [
            ("p\u{430}ypal.com", "p\\u{430}ypal.com"),
            ("\u{440}\u{430}y", "\\u{440}\\u{430}y"),
            // What is hidden does not part a word.
            ("\u{430}\u{200B}ccount", "\\u{430}\\u{200B}ccount"),
            ("\u{430}\u{3BF}", "а\\u{3BF}"),
            ("API\u{30ad}\u{30fc}", "APIキー"),
            ("\u{6f22}\u{5b57}\u{304b}\u{306a}", "漢字かな"),
            ("10\u{20ac} \u{41f}-1", "10€ П-1"),
        ] {
            assert_eq!(line(text), seen);
        }
    }

    #[test]
    fn names_and_texts_of_a_whole_document_are_shown() {
        let mut value = json!({"a\u{202E}": ["x\u{200B}", {"b\n": "c\n"}], "a": 1, "plain": true});
        document(&mut value);
        assert_eq!(
            value,
            json!({"a\\u{202E}": ["x\\u{200B}", {"b\\u{A}": "c\n"}], "a": 1, "plain": true})
        );
    }

    proptest! {
        #[test]
        fn whatever_is_shown_can_be_read_in_one_way_only(original in "(\\PC|\\\\u\\{|[a\u{430}\u{202e}\\}41\\\\])*") {
            for seen in [text(&original), line(&original)] {
                prop_assert_eq!(read_back(&seen), &*original);
                prop_assert!(!seen.chars().any(|letter| is_hidden(letter) && !"\n\t".contains(letter)));
            }
        }
    }
}
