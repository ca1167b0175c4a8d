//! Finds credentials and personal data in text that no contract marks: one automaton proposes, exact checks decide. It leans
//! towards few false alarms for numbers (checksums, plausible ranges) and towards many for credentials. It reads a text plainly
//! (`plain`), so that no spelling hides a value.

use std::{borrow::Cow, ops::Range, sync::LazyLock};

use regex_automata::{Input, meta::Regex};

mod checks;
mod names;
mod plain;

use checks::{basic, bearer, card, email, iban, phone, secret_value, ssn, userinfo};
use plain::{Plain, folded};

/// A sensitive part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The bytes at which it stands.
    pub range: Range<usize>,
    /// `secret` or `pii`.
    pub class: &'static str,
    /// What it is: `email`, `card`, `credential`, …
    pub kind: &'static str,
}

/// Narrows a candidate to what is sensitive in it; `None` if it is no such thing.
type Check = fn(&str, Range<usize>) -> Option<Range<usize>>;

/// How our own tokens begin.
const CLASSES: [&str; 3] = ["secret:", "pii:", "confidential:"];

struct Detector {
    class: &'static str,
    kind: &'static str,
    pattern: &'static str,
    check: Check,
}

fn whole(_: &str, range: Range<usize>) -> Option<Range<usize>> {
    Some(range)
}

const fn secret(kind: &'static str, pattern: &'static str, check: Check) -> Detector {
    Detector {
        class: "secret",
        kind,
        pattern,
        check,
    }
}

const fn pii(kind: &'static str, pattern: &'static str, check: Check) -> Detector {
    Detector {
        class: "pii",
        kind,
        pattern,
        check,
    }
}

/// In the order in which they win where two begin at the same place.
const DETECTORS: [Detector; 14] = [
    secret(
        "private_key",
        r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----(?:[^-]|-[^-])*(?:-----END [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----)?",
        whole,
    ),
    // Signed (RFC 7515) and encrypted (RFC 7516).
    secret(
        "jwt",
        concat!(
            r"eyJ[A-Za-z0-9_-]{8,}\.(?:eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*",
            r"|[A-Za-z0-9_-]*\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*\.[A-Za-z0-9_-]{16,})",
        ),
        whole,
    ),
    // The forms that the providers give their keys, so that such a key is known when it is seen.
    secret(
        "credential",
        concat!(
            r"(?:AKIA|ASIA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20,}",
            r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[A-Za-z0-9-]{20,}|hooks\.slack\.com/services/[A-Za-z0-9/]{20,}",
            r"|[sr]k_(?:live|test)_[A-Za-z0-9]{10,}|whsec_[A-Za-z0-9+/=]{16,}|sk-[A-Za-z0-9_-]{20,}",
            r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}|GOCSPX-[A-Za-z0-9_-]{20,}|npm_[A-Za-z0-9]{36}",
            r"|pypi-[A-Za-z0-9_-]{16,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|dop_v1_[a-f0-9]{64}|hf_[A-Za-z0-9]{30,}",
            r"|AccountKey=[A-Za-z0-9+/=]{40,}|tg_(?:agent|operator)_[A-Za-z0-9_]{20,}",
        ),
        whole,
    ),
    secret(
        "credential",
        r"(?i:bearer)[ +][A-Za-z0-9._~+/=-]{16,}",
        bearer,
    ),
    secret(
        "credential",
        r"(?i:basic)[ +][A-Za-z0-9+/_-]{4,}={0,2}",
        basic,
    ),
    // The user's name, which may be empty, and password in a URL. Both may hold what should have been escaped.
    secret(
        "credential",
        r#"[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/:@"'<>]{0,100}:[^\s@"'<>]{1,200}@(?:[^\s/@?#"'<>]{1,200}@)?"#,
        userinfo,
    ),
    secret(
        "password",
        concat!(
            r"(?i:passw(?:or)?ds?|passphrases?|passcodes?|pwd|secrets?|tokens?|credentials?|(?:api|access|secret|private)[_-]?keys?)",
            r#"(?:["'\\]{0,3}\s{0,3}[:=]\s{0,3}|\s+is\s+)["'\\]{0,3}[^\s"',;&}\\]{1,200}"#,
        ),
        secret_value,
    ),
    pii(
        "email",
        concat!(
            r"[A-Za-z0-9._+\x01-]{1,64}(?:@|%40)[A-Za-z0-9\x01-]{1,63}(?:\.[A-Za-z0-9\x01-]{1,63}){0,5}",
            r"\.(?:xn--[A-Za-z0-9-]{2,59}|[A-Za-z\x01]{2,63})",
        ),
        email,
    ),
    pii(
        "iban",
        r"[A-Za-z]{2}[0-9]{2}(?:[ -]?[A-Za-z0-9]){11,30}",
        iban,
    ),
    pii("us_ssn", r"[0-9]{3}-[0-9]{2}-[0-9]{4}", ssn),
    pii("phone", r"(?:\+|00)[1-9](?:[ ().-]{0,2}[0-9]){6,14}", phone),
    pii("phone", r"\([0-9]{3}\) ?[0-9]{3}[ .-][0-9]{4}", phone),
    pii("phone", r"[0-9]{3}[.-][0-9]{3}[.-][0-9]{4}", phone),
    pii("card", r"[0-9](?:[ \t\r\n./_-]{0,3}[0-9]){12,30}", card),
];

static AUTOMATON: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let patterns: Vec<&str> = DETECTORS.iter().map(|detector| detector.pattern).collect();
    Regex::new_many(&patterns)
        .map_err(|error| tracing::error!(%error, "the detectors cannot be built"))
        .ok()
});

/// Whether the detectors work; a gateway without them must not start.
pub fn ready() -> bool {
    AUTOMATON.is_some()
}

/// The sensitive parts of a text, in order and without overlap. `field` is the name under which it stood, if it had one.
pub fn find(field: Option<&str>, text: &str) -> Vec<Finding> {
    let is_secret = field.is_some_and(|name| names::is_secret(name, text));
    if is_secret && with_kind(text) != Some(text.len()) {
        return vec![Finding {
            range: 0..text.len(),
            class: "secret",
            kind: "password",
        }];
    }
    let Some(plain) = Plain::of(text) else {
        return search(text);
    };
    let mut found = search(&plain.text);
    let mut end = 0;
    for finding in &mut found {
        let place = plain.place(text, &finding.range);
        finding.range = place.start.max(end)..place.end.max(end);
        end = finding.range.end;
    }
    found.retain(|finding| !finding.range.is_empty());
    found
}

/// Whether a number under this name may be a secret, whatever it is.
pub fn is_secret_name(name: &str) -> bool {
    names::may_be_secret(name)
}

/// The digest in a whole value that is a token, with or without a kind. Whether the gateway wrote it only its digests tell.
pub fn digest_of_token(text: &str) -> Option<&str> {
    is_token(text)
        .then(|| text.get(text.len().checked_sub(32)?..))
        .flatten()
}

/// What the automaton and the checks find in a plain text.
fn search(text: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some(automaton) = AUTOMATON.as_ref().filter(|_| text.len() >= 5) else {
        return found;
    };
    let mut at = 0;
    if is_token(text) {
        return found;
    }
    while let Some(candidate) = automaton.search(&Input::new(text).range(at..)) {
        let detector = DETECTORS.get(candidate.pattern().as_usize());
        let narrowed = detector
            .filter(|_| !is_own(text, &candidate.range()))
            .and_then(|detector| Some((detector, (detector.check)(text, candidate.range())?)));
        match narrowed {
            Some((detector, range)) => {
                at = range.end.max(at + 1);
                found.push(Finding {
                    range,
                    class: detector.class,
                    kind: detector.kind,
                });
            }
            // Something else may begin inside of what was no such thing. Candidates are short, so this stays linear.
            None => at = next_start(text, candidate.start()),
        }
        if at >= text.len() {
            break;
        }
    }
    found
}

/// A text in which the class and kind of each finding stand in its place: for problem documents, which need no digest.
pub fn named(text: &str) -> Cow<'_, str> {
    let found = find(None, text);
    if found.is_empty() {
        return Cow::Borrowed(text);
    }
    let (mut clean, mut at) = (String::with_capacity(text.len()), 0);
    for finding in found {
        clean.push_str(text.get(at..finding.range.start).unwrap_or_default());
        clean.push_str(&format!("[{} {}]", finding.class, finding.kind));
        at = finding.range.end;
    }
    clean.push_str(text.get(at..).unwrap_or_default());
    Cow::Owned(clean)
}

/// Behind the first character, or behind a whole token of our own.
fn next_start(text: &str, at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    if let Some(token) = with_kind(rest) {
        return at + token;
    }
    at + rest.chars().next().map_or(1, char::len_utf8)
}

/// A candidate that is one of our own tokens is not redacted again. Without a kind it would have to be the whole text.
fn is_own(text: &str, range: &Range<usize>) -> bool {
    with_kind(text.get(range.start..).unwrap_or_default()).is_some()
}

/// A whole value that is a token, with or without a kind.
fn is_token(text: &str) -> bool {
    with_kind(text) == Some(text.len())
        || CLASSES.iter().any(|class| {
            text.strip_prefix(class)
                .is_some_and(|rest| digest(rest) && rest.len() == 32)
        })
}

/// The length of a token such as `pii:email:` and 32 hexadecimal digits at the beginning of a text. One without a kind stands
/// only for a whole value: within a text, `secret:` and such digits may well be a secret.
fn with_kind(text: &str) -> Option<usize> {
    let class = CLASSES.iter().find(|class| text.starts_with(**class))?;
    let (kind, digits) = text.get(class.len()..)?.split_once(':')?;
    let known = DETECTORS.iter().any(|detector| detector.kind == kind);
    (known && digest(digits)).then_some(class.len() + kind.len() + 1 + 32)
}

/// Whether a text begins with 32 hexadecimal digits.
fn digest(text: &str) -> bool {
    text.get(..32).is_some_and(|digits| {
        digits
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// One spelling for one value, so that it has one token however it was written.
pub fn normal_form<'a>(kind: &str, text: &'a str) -> Cow<'a, str> {
    match kind {
        "email" => Cow::Owned(folded(text).replace("%40", "@").to_lowercase()),
        "card" | "us_ssn" | "phone" => Cow::Owned(checks::digits(&folded(text))),
        "iban" => Cow::Owned(
            folded(text)
                .chars()
                .filter(char::is_ascii_alphanumeric)
                .collect::<String>()
                .to_ascii_uppercase(),
        ),
        _ => Cow::Borrowed(text),
    }
}

#[cfg(test)]
mod tests;
