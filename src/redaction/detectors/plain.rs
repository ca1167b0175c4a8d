//! The plain reading of a text, in which the detectors search: compatibility forms (NFKC), digits of every script and JSON's
//! escapes as the ASCII that they stand for, and nothing that cannot be seen. What is found leads back to where it stands in the
//! text as it came. A text in ASCII without escapes is its own plain reading and is not copied.

use std::{borrow::Cow, ops::Range};

use unicode_normalization::UnicodeNormalization as _;

/// In the place of each byte of a letter without a case, such as those of Chinese or Arabic: it stands in an address, but where
/// such letters run into an address in ASCII, they are the text around.
pub(super) const CASELESS: char = '\u{1}';

/// The zero of each script's decimal digits (Unicode 16, general category Nd), but for those that NFKC makes ASCII.
const ZEROS: [u32; 67] = [
    0x0660, 0x06f0, 0x07c0, 0x0966, 0x09e6, 0x0a66, 0x0ae6, 0x0b66, 0x0be6, 0x0c66, 0x0ce6, 0x0d66,
    0x0de6, 0x0e50, 0x0ed0, 0x0f20, 0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90,
    0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0, 0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0,
    0x104a0, 0x10d30, 0x10d40, 0x11066, 0x110f0, 0x11136, 0x111d0, 0x112f0, 0x11450, 0x114d0,
    0x11650, 0x116c0, 0x116d0, 0x116da, 0x11730, 0x118e0, 0x11950, 0x11bf0, 0x11c50, 0x11d50,
    0x11da0, 0x11f50, 0x16130, 0x16a60, 0x16ac0, 0x16b50, 0x16d70, 0x1e140, 0x1e2f0, 0x1e4f0,
    0x1e5f1, 0x1e950,
];

/// The plain reading of a text that is not its own.
pub(super) struct Plain {
    pub text: String,
    stretches: Vec<Stretch>,
}

/// Where a part of the plain reading stands in the text, up to where the next one begins. One that is as long in both is the same
/// byte for byte.
struct Stretch {
    plain: usize,
    from: usize,
    to: usize,
}

impl Plain {
    /// The plain reading, where the text is not its own.
    pub fn of(text: &str) -> Option<Self> {
        if text.is_ascii() && !has_escape(text) {
            return None;
        }
        let mut plain = Self {
            text: String::with_capacity(text.len()),
            stretches: Vec::new(),
        };
        let mut at = 0;
        while let Some((character, length)) = next(text, at) {
            plain.add(character, at, at + length);
            at += length;
        }
        Some(plain)
    }

    /// Adds what a character reads as that stands from `from` to `to`.
    fn add(&mut self, character: char, from: usize, to: usize) {
        let plain = self.text.len();
        each(character, |character| {
            let (stands_for, times) = placeholder(character);
            self.text.extend(std::iter::repeat_n(stands_for, times));
        });
        let length = self.text.len() - plain;
        match self.stretches.last_mut() {
            Some(last)
                if last.to == from
                    && last.to - last.from == plain - last.plain
                    && length == to - from =>
            {
                last.to = to;
            }
            _ if length > 0 => self.stretches.push(Stretch { plain, from, to }),
            _ => {}
        }
    }

    /// Where a part of the plain reading stands in the text: whole characters of `text`, of which this is the reading.
    pub fn place(&self, text: &str, part: &Range<usize>) -> Range<usize> {
        let (start, _) = self.within(part.start);
        let (_, end) = self.within(part.end.saturating_sub(1));
        text.floor_char_boundary(start)..text.ceil_char_boundary(end)
    }

    /// The bytes of the text that a byte of the plain reading stands for.
    fn within(&self, at: usize) -> (usize, usize) {
        let behind = self
            .stretches
            .partition_point(|stretch| stretch.plain <= at);
        let Some(stretch) = self.stretches.get(behind.saturating_sub(1)) else {
            return (0, 0);
        };
        let plain_end = self
            .stretches
            .get(behind)
            .map_or(self.text.len(), |next| next.plain);
        if plain_end - stretch.plain == stretch.to - stretch.from {
            let byte = stretch.from + (at - stretch.plain);
            (byte, byte + 1)
        } else {
            (stretch.from, stretch.to)
        }
    }
}

/// A text as its compatibility forms read, without what cannot be seen: one spelling of one value.
pub(super) fn folded(text: &str) -> Cow<'_, str> {
    if text.is_ascii() && !has_escape(text) {
        return Cow::Borrowed(text);
    }
    let mut folded = String::with_capacity(text.len());
    let mut at = 0;
    while let Some((character, length)) = next(text, at) {
        each(character, |character| folded.push(character));
        at += length;
    }
    Cow::Owned(folded)
}

fn has_escape(text: &str) -> bool {
    text.contains('\\') && (text.contains("\\u") || text.contains("\\/"))
}

/// The character at a place, and how many bytes it takes there. `\u0040` and `\/` are the characters that JSON reads, also where
/// the backslash has been escaped again.
fn next(text: &str, at: usize) -> Option<(char, usize)> {
    let rest = text.get(at..)?;
    let first = rest.chars().next()?;
    let escaped = if first == '\\' { escape(rest) } else { None };
    Some(escaped.unwrap_or((first, first.len_utf8())))
}

fn escape(rest: &str) -> Option<(char, usize)> {
    let behind = rest.trim_start_matches('\\');
    let slashes = rest.len() - behind.len();
    if behind.starts_with('/') {
        return Some(('/', slashes + 1));
    }
    let unit = |text: &str| {
        let digits = text.strip_prefix('u')?.get(..4)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_hexdigit())
            .then(|| u16::from_str_radix(digits, 16).ok())?
    };
    let first = unit(behind)?;
    if let Some(character) = char::from_u32(u32::from(first)) {
        return Some((character, slashes + 5));
    }
    let more = behind.get(5..)?;
    let low = more.trim_start_matches('\\');
    let second = unit(low)?;
    let character = char::decode_utf16([first, second]).next()?.ok()?;
    Some((character, slashes + 5 + (more.len() - low.len()) + 5))
}

/// What a character reads as, if it can be seen.
fn each(character: char, mut give: impl FnMut(char)) {
    if character.is_ascii() {
        give(character);
    } else if !is_unseen(character) {
        for part in std::iter::once(character).nfkc() {
            if !is_unseen(part) {
                give(in_ascii(part));
            }
        }
    }
}

/// Digits, dashes, spaces, quotation marks and the full stops of domain names (UTS #46) in ASCII; others as they are.
fn in_ascii(character: char) -> char {
    match character {
        _ if character.is_ascii() => character,
        '\u{2010}'..='\u{2015}' | '\u{2212}' => '-',
        '\u{2018}'..='\u{201b}' => '\'',
        '\u{201c}'..='\u{201f}' => '"',
        '\u{3002}' => '.',
        _ if character.is_whitespace() => ' ',
        _ => digit(character).map_or(character, |digit| char::from(b'0' + digit)),
    }
}

/// The value of a decimal digit of any script.
pub(super) fn digit(character: char) -> Option<u8> {
    if character.is_ascii() {
        return u8::try_from(character.to_digit(10)?).ok();
    }
    let code = u32::from(character);
    let behind = ZEROS.partition_point(|zero| *zero <= code);
    let zero = ZEROS.get(behind.checked_sub(1)?)?;
    u8::try_from(code - zero).ok().filter(|digit| *digit < 10)
}

/// What stands for a character that is not ASCII, so that the patterns need know no other, and how often: as many bytes as it has.
fn placeholder(character: char) -> (char, usize) {
    let length = character.len_utf8();
    match character {
        _ if character.is_ascii() => (character, 1),
        // A mark that is set upon a letter is part of it.
        '\u{300}'..='\u{36f}' => ('x', length),
        _ if character.is_lowercase() || character.is_uppercase() => ('x', length),
        _ if character.is_alphanumeric() => (CASELESS, length),
        _ => (character, 1),
    }
}

/// Characters that are not seen (Default_Ignorable_Code_Point) and others that set direction or join.
const fn is_unseen(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fff8}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}
