//! What may be recorded of arguments, answers and words: values that the contract marks with `x-sensitivity`, and whatever the
//! detectors know as a credential or as personal data, are replaced by their class and a keyed digest, so that an auditor can
//! look for a known value and see no other. And what others than the records may see of them.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    entry::{Caps, Entry, Redacted},
    secrets::Keyring,
};

mod cut;
pub mod detectors;
mod marks;
mod pass;
mod shown;

pub use cut::Cut;
pub use marks::Marks;
pub use shown::{View, shown_schema};

use marks::below;
use pass::{Tokens, is_clean, replaced, scan};

/// Makes what may be recorded.
#[derive(Debug, Clone)]
pub struct Redactor {
    keys: Arc<Keyring>,
    caps: Caps,
}

impl Redactor {
    /// Tokens are made with these keys, and nothing is recorded beyond these caps.
    pub const fn new(keys: Arc<Keyring>, caps: Caps) -> Self {
        Self { keys, caps }
    }

    /// The value without anything sensitive.
    pub fn redact(&self, marks: &Marks, value: &Value) -> Redacted {
        // Nearly every value is clean, and is not copied then.
        if marks.is_empty() && is_clean(None, value, self.caps.text_bytes) {
            let whole = Redacted::vouched(value, Vec::new());
            if whole.as_json().len() <= self.caps.document_bytes {
                return whole;
            }
        }
        let mut tokens = Tokens::default();
        let mut copy = pass::cleaned(marks, value, self, &mut tokens);
        self.vouched(&mut copy, value, tokens)
    }

    /// Parts of a value, each under the JSON pointer that leads to it, without anything sensitive.
    pub fn redact_parts(&self, marks: &Marks, parts: &Map<String, Value>) -> Redacted {
        let mut copy = parts.clone();
        let mut tokens = Tokens::default();
        for (pointer, part) in &mut copy {
            let mut here = vec![&marks.root];
            let mut name = String::new();
            for token in pointer.split('/').skip(1) {
                name = token.replace("~1", "/").replace("~0", "~");
                here = here
                    .into_iter()
                    .flat_map(|mark| below(mark, &name))
                    .collect();
            }
            for mark in here {
                pass::apply(mark, part, self, &mut tokens);
            }
            scan(Some(&name), part, self, &mut tokens);
        }
        let whole = Value::Object(parts.clone());
        self.vouched(&mut Value::Object(copy), &whole, tokens)
    }

    /// Cuts what is clean to the cap.
    fn vouched(&self, copy: &mut Value, whole: &Value, mut tokens: Tokens) -> Redacted {
        let clean = Redacted::vouched(copy, tokens.0.clone());
        if clean.as_json().len() <= self.caps.document_bytes {
            return clean;
        }
        pass::bound(copy, whole, self, &mut tokens);
        Redacted::vouched(copy, tokens.0)
    }

    /// A text without what the detectors know.
    pub fn text(&self, text: &str) -> String {
        let (mut tokens, longest) = (Tokens::default(), self.caps.text_bytes);
        replaced(None, text, self, &mut tokens, longest).unwrap_or_else(|| text.to_owned())
    }

    /// Who somebody is: an address is a name by which people look for them and stays, anything else that the detectors know does not.
    pub fn identity(&self, text: &str) -> String {
        let found = detectors::find(None, text);
        if found.iter().all(|finding| finding.kind == "email") {
            text.to_owned()
        } else {
            self.text(text)
        }
    }

    /// Takes what the detectors know out of an entry's free text. Every entry goes through here on its way to the table.
    pub fn scrub(&self, entry: &mut Entry) {
        let mut tokens = Tokens(std::mem::take(&mut entry.value_tokens));
        let longest = self.caps.text_bytes;
        if let Some(words) = &mut entry.words
            && let Some(clean) = replaced(None, words, self, &mut tokens, longest)
        {
            *words = clean;
        }
        if let Some(detail) = &mut entry.detail {
            self.scrub_detail(detail, &mut tokens);
        }
        entry.value_tokens = tokens.0;
    }

    fn scrub_detail(&self, detail: &mut Value, tokens: &mut Tokens) {
        if !is_clean(None, detail, self.caps.text_bytes) {
            let identity = detail
                .get("triggered_by")
                .and_then(Value::as_str)
                .map(|text| Value::String(self.identity(text)));
            scan(None, detail, self, tokens);
            if let (Some(identity), Some(detail)) = (identity, detail.as_object_mut()) {
                detail.insert("triggered_by".to_owned(), identity);
            }
        }
        // Whatever goes into a detail is bounded where it is made, but for what an API says.
        if crate::json::canonical(detail).len() > self.caps.document_bytes {
            let whole = detail.clone();
            pass::bound(detail, &whole, self, tokens);
        }
    }
}

/// Every form in which `value` can stand in the records, with its keyed digest: as it is, and as each kind of thing that the
/// detectors take it for. Under every master secret, newest first.
pub fn tokens_of(value: &str, keys: &Keyring) -> Vec<(&'static str, String)> {
    tokens_by_secret(value, keys)
        .into_iter()
        .flatten()
        .collect()
}

/// The same, a list for each of [`Keyring::secret_ids`].
pub fn tokens_by_secret(value: &str, keys: &Keyring) -> Vec<Vec<(&'static str, String)>> {
    let mut forms = vec![("as it is", keys.value_tokens(value.as_bytes()))];
    for finding in detectors::find(None, value) {
        if finding.range == (0..value.len()) {
            let form = detectors::normal_form(finding.kind, value);
            forms.push((finding.kind, keys.value_tokens(form.as_bytes())));
        }
    }
    (0..keys.secret_ids().len())
        .map(|secret| {
            forms
                .iter()
                .filter_map(|(form, tokens)| Some((*form, tokens.get(secret)?.clone())))
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::secrets::Secret;

    fn redactor(caps: Caps) -> Redactor {
        let keys = Keyring::new(&Secret::new("0123456789abcdef0123456789abcdef")).unwrap();
        Redactor::new(Arc::new(keys), caps)
    }

    fn redact(schema: &Value, arguments: &Value) -> String {
        redactor(Caps::default())
            .redact(&Marks::of(schema), arguments)
            .as_json()
            .to_owned()
    }

    #[test]
    fn marked_values_leave_a_searchable_token_and_nothing_else() {
        let schema = json!({
            "$defs": {"address": {"type": "string", "x-sensitivity": "pii"}},
            "properties": {
                "to": {"items": {"$ref": "#/$defs/address"}},
                "card": {"properties": {"number": {"x-sensitivity": "secret"}, "brand": {}}},
                "notes": {"additionalProperties": {"x-sensitivity": "confidential"}},
                "choice": {"oneOf": [{"properties": {"pin": {"x-sensitivity": "secret"}}}, {"type": "string"}]},
                "plain": {"type": "string"}
            }
        });
        let arguments = json!({
            "to": ["planted-1@example.org"],
            "card": {"number": 4_111_111_111_111_111_u64, "brand": "visa"},
            "notes": {"any": "planted-2"},
            "choice": {"pin": "planted-3"},
            "plain": "stays"
        });
        let text = redact(&schema, &arguments);
        assert!(
            !text.contains("planted") && !text.contains("4111"),
            "{text}"
        );
        assert!(text.contains("stays") && text.contains("visa"), "{text}");
        assert!(text.contains("\"pii:"), "{text}");
        let again = redact(&schema, &arguments);
        assert_eq!(text, again, "the same value must give the same token");
    }

    const SMALL: Caps = Caps {
        text_bytes: 256,
        document_bytes: 1_024,
    };

    #[test]
    fn a_long_text_is_cut_behind_what_is_sensitive_and_says_what_it_was() {
        let redactor = redactor(SMALL);
        // Wherever the cut falls: in the address, in the token that stands for it, in a letter of several bytes.
        for filler in 180..300 {
            let text = format!(
                "{}ü planted@example.org {}",
                "x".repeat(filler),
                "é".repeat(400)
            );
            let clean = redactor.redact(&Marks::default(), &json!({ "note": text }));
            let value: Value = serde_json::from_str(clean.as_json()).unwrap();
            let note = value["note"].as_str().unwrap();
            assert!(
                !note.contains("planted") && !note.contains("example.org"),
                "{note}"
            );
            let (kept, marker) = note.split_once('…').unwrap();
            assert!(kept.len() <= SMALL.text_bytes, "{filler}");
            let whole = redactor.keys.value_token(text.as_bytes());
            assert_eq!(marker, format!("[cut: {} bytes, {whole}]", text.len()));
            // A token stands whole or not at all.
            match kept.split_once("pii:") {
                Some((_, token)) => {
                    assert!(token.starts_with("email:") && token.len() >= 38, "{kept}")
                }
                None => assert!(!kept.contains("pii"), "{kept}"),
            }
            let email = redactor.keys.value_token(b"planted@example.org");
            assert!(clean.tokens().contains(&whole) && clean.tokens().contains(&email));
        }
        let fits = "x".repeat(256);
        assert_eq!(redactor.text(&fits), fits);
        assert_ne!(redactor.text(&format!("{fits}x")), format!("{fits}x"));
    }

    #[test]
    fn a_large_document_is_cut_to_a_bounded_one_that_names_the_whole() {
        let redactor = redactor(SMALL);
        let deep = |levels: usize| {
            (0..levels).fold(
                json!({"planted": "x".repeat(900)}),
                |inside, _| json!({"a": [inside, 1, 2, 3], "b": "y".repeat(100)}),
            )
        };
        let names: Map<String, Value> = (0..500)
            .map(|n| (format!("name-{n}-{}", "z".repeat(n)), json!(n)))
            .collect();
        for value in [
            json!((0..10_000).collect::<Vec<_>>()),
            json!(vec!["x".repeat(200); 200]),
            Value::Object(names),
            deep(15),
            json!({"list": vec![json!({"to": "someone@example.org"}); 300], "after": 1}),
            json!(
                (0..2_000)
                    .map(|n| format!("person{n}@example.org"))
                    .collect::<Vec<_>>()
            ),
        ] {
            let clean = redactor.redact(&Marks::default(), &value);
            let text = clean.as_json();
            // The cap, one text that went over it, and a marker for each array and object around.
            assert!(text.len() < 1_024 + 400 + 32 * 140, "{}", text.len());
            let parsed: Value = serde_json::from_str(text).unwrap();
            assert_eq!(
                crate::json::canonical_text(&parsed),
                text,
                "it is RFC 8785 JSON"
            );
            let canonical = crate::json::canonical(&value);
            let whole = redactor.keys.value_token(&canonical);
            assert!(
                text.contains(&format!("the whole: {} bytes, {whole}", canonical.len())),
                "{text}"
            );
            assert!(!text.contains("@example.org"));
            assert!(clean.tokens().len() <= 257 && clean.tokens().contains(&whole));
        }
        let fits = json!({"a": [1, 2, {"b": "c"}]});
        assert_eq!(
            redactor.redact(&Marks::default(), &fits).as_json(),
            fits.to_string()
        );
    }

    #[test]
    fn an_entry_is_bounded_whatever_its_words_and_details_hold() {
        let redactor = redactor(SMALL);
        let long = "password: hunter2!x ".repeat(1_000);
        let mut entry = Entry {
            words: Some(long.clone()),
            detail: Some(json!({"why": long, "list": vec![long.clone(); 50]})),
            ..Entry::default()
        };
        redactor.scrub(&mut entry);
        let (words, detail) = (entry.words.unwrap(), entry.detail.unwrap().to_string());
        assert!(
            words.len() < 400 && detail.len() < 3_000,
            "{words} {detail}"
        );
        assert!(!words.contains("hunter2") && !detail.contains("hunter2"));
    }

    #[test]
    fn what_is_taken_from_a_marked_place_stays_marked() {
        let call = Marks::of(&json!({"properties": {
            "to": {"x-sensitivity": "pii"}, "all": {"properties": {"pin": {"x-sensitivity": "secret"}}}, "plain": {}
        }}));
        let taken = [("id", "/to"), ("object", "/all"), ("free", "/plain")];
        let marks = Marks::of(&json!({"properties": {"id": {}, "object": {}, "free": {}}}))
            .with_those_of(&call, taken.into_iter());
        let arguments = json!({"id": "planted-1", "object": {"pin": "planted-2"}, "free": "stays"});
        let clean = redactor(Caps::default()).redact(&marks, &arguments);
        let text = clean.as_json();
        assert!(
            !text.contains("planted") && text.contains("stays"),
            "{text}"
        );
        assert!(text.contains("pii:") && text.contains("secret:"), "{text}");
    }

    #[test]
    fn names_within_a_value_that_is_marked_as_a_whole_are_covered() {
        let marks = Marks::of(&json!({"properties": {
            "card": {"x-sensitivity": "secret", "properties": {"number": {}}},
            "list": {"items": {"allOf": [{"x-sensitivity": "pii"}]}}
        }}));
        for (pointer, cover) in [
            ("/card", None),
            ("/card/planted", Some("/card")),
            ("/card/number/x", Some("/card")),
            ("/list/0", None),
            ("/list/0/planted", Some("/list/0")),
            ("/other/planted", None),
        ] {
            assert_eq!(marks.cover(pointer).as_deref(), cover, "{pointer}");
        }
    }

    /// Prints what the pass costs: `cargo nextest run --release --run-ignored only --no-capture what_the_pass_costs`.
    #[test]
    #[ignore = "a measurement"]
    fn what_the_pass_costs() {
        let redactor = redactor(Caps::default());
        let word = "the parcel was late and the customer wrote about it on Tuesday; ";
        let texts = json!({"note": word.repeat(16), "amount": 1200, "lines": vec![word; 16]});
        let dirty =
            json!({"note": format!("{} ada@example.org {}", word.repeat(8), word.repeat(8))});
        let marks = Marks::of(&json!({"properties": {"note": {"x-sensitivity": "confidential"}}}));
        for (what, marks, value) in [
            ("clean", &Marks::default(), &texts),
            ("with an address", &Marks::default(), &dirty),
            ("with a marked text", &marks, &texts),
        ] {
            let size = value.to_string().len();
            const ROUNDS: u32 = 2_000;
            let mut best = f64::MAX;
            for _ in 0..5 {
                let start = std::time::Instant::now();
                for _ in 0..ROUNDS {
                    std::hint::black_box(redactor.redact(marks, std::hint::black_box(value)));
                }
                best = best.min(start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUNDS));
            }
            println!(
                "{what}: {best:.1} µs for {size} bytes, {:.2} µs per KB",
                best * 1024.0 / size as f64
            );
        }
    }

    #[test]
    fn what_is_not_understood_is_not_recorded() {
        let schema = json!({"properties": {
            "lost": {"$ref": "#/$defs/nowhere"},
            "far": {"$ref": "https://example.org/schema"},
            "round": {"$ref": "#/properties/round"}
        }});
        let text = redact(
            &schema,
            &json!({"lost": "planted-1", "far": "planted-2", "round": "planted-3"}),
        );
        assert!(!text.contains("planted"), "{text}");
    }
}
