//! Names under which a value is a secret, whatever it looks like.

/// How such names end, however they are written: `dbPassword`, `DB-PASSWORD`, `db_passwords2`.
const SECRET_NAMES: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "pwd",
    "secret",
    "token",
    "apikey",
    "credential",
    "privatekey",
    "accesskey",
    "secretkey",
    "authkey",
];

/// How names of numbers of tokens begin.
const QUANTITIES: [&str; 10] = [
    "max",
    "min",
    "total",
    "num",
    "used",
    "prompt",
    "completion",
    "input",
    "output",
    "cached",
];

/// Whether what stands under this name is a secret. A number of tokens is none.
pub(super) fn is_secret(name: &str, value: &str) -> bool {
    if value.trim().is_empty() {
        return false;
    }
    let Some(word) = secret_word(name) else {
        return false;
    };
    !(word == "token" && is_number(value) && is_quantity(name))
}

/// Whether a number under this name may be a secret.
pub(super) fn may_be_secret(name: &str) -> bool {
    secret_word(name).is_some()
}

pub(super) fn is_number(value: &str) -> bool {
    !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit())
}

/// The word for a secret with which a name ends, in the plural and numbered, too.
fn secret_word(name: &str) -> Option<&'static str> {
    let folded = super::plain::folded(name);
    let name = folded.trim_end_matches(|last: char| !last.is_ascii_alphabetic());
    let one = name.strip_suffix(['s', 'S']);
    // Most names end with another letter than any of these words.
    let last = one
        .unwrap_or(name)
        .bytes()
        .next_back()?
        .to_ascii_lowercase();
    if !matches!(last, b'd' | b'e' | b'l' | b'n' | b't' | b'y') && !name.ends_with(['s', 'S']) {
        return None;
    }
    SECRET_NAMES
        .into_iter()
        .find(|word| ends_with(name, word) || one.is_some_and(|one| ends_with(one, word)))
}

/// Whether the letters and digits of a name end with a word.
fn ends_with(name: &str, word: &str) -> bool {
    let mut letters = name
        .bytes()
        .rev()
        .filter(u8::is_ascii_alphanumeric)
        .map(|byte| byte.to_ascii_lowercase());
    word.bytes().rev().all(|byte| letters.next() == Some(byte))
}

/// `tokens`, `max_token`, `promptTokens`, …
fn is_quantity(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.ends_with('s') || QUANTITIES.iter().any(|word| name.starts_with(word))
}
