//! Checking a value against a compiled schema, and saying what is wrong with it.
//!
//! The value may be secret, so messages are made of the schema alone: the keyword, its limit, and the
//! names of properties, never a value.

use jsonschema::{
    Draft, PatternOptions, ValidationError, ValidationOptions, Validator,
    error::{TypeKind, ValidationErrorKind as Kind},
};
use serde::Serialize;
use serde_json::Value;

use super::schema::token;
use crate::json::shown;

/// One thing that is wrong with arguments or with an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// JSON pointer to the value; for a missing property, to the object that lacks it.
    pub pointer: String,
    /// What is expected there.
    pub message: String,
}

impl Violation {
    pub(super) fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            message: message.into(),
        }
    }
}

/// At most this many violations are told of one value.
pub const MAX_VIOLATIONS: usize = 20;

/// Longest key that is quoted whole in a pointer, and longest pointer, in characters.
const MAX_KEY: usize = 64;
const MAX_POINTER: usize = 512;

/// The one configuration of the `jsonschema` crate in use.
pub(super) fn options() -> ValidationOptions<'static> {
    const REGEX_BYTES: usize = 1 << 20;
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .offline()
        .should_validate_formats(true)
        .should_ignore_unknown_formats(false)
        // Matching time is linear in the text with this engine, and only with this engine.
        .with_pattern_options(
            PatternOptions::regex()
                .size_limit(REGEX_BYTES)
                .dfa_size_limit(REGEX_BYTES),
        )
}

/// What is wrong with `value`, in at most [`MAX_VIOLATIONS`] findings.
pub(super) fn check(validator: &Validator, value: &Value) -> Result<(), Vec<Violation>> {
    if validator.is_valid(value) {
        return Ok(());
    }
    let mut violations = Vec::new();
    for error in validator.iter_errors(value).take(MAX_VIOLATIONS) {
        describe(&error, &mut violations);
    }
    violations.truncate(MAX_VIOLATIONS);
    if violations.is_empty() {
        // INVARIANT: a value that is not valid is never let through for want of words about it.
        violations.push(Violation::new("", "does not match the contract's schema"));
    }
    Err(violations)
}

fn describe(error: &ValidationError<'_>, violations: &mut Vec<Violation>) {
    let pointer = bounded(error.instance_path().as_str());
    match error.kind() {
        Kind::AdditionalProperties { unexpected } | Kind::UnevaluatedProperties { unexpected } => {
            violations.extend(unexpected.iter().take(MAX_VIOLATIONS).map(|name| {
                Violation::new(
                    pointer_to(&pointer, name),
                    format!(
                        "the contract has no property `{}` here: leave it out",
                        shown(name)
                    ),
                )
            }));
        }
        Kind::PropertyNames { error } => {
            let message = format!(
                "the name of a property is not allowed: it {}",
                rule(error.kind())
            );
            violations.push(Violation::new(pointer, message));
        }
        kind => violations.push(Violation::new(pointer, rule(kind))),
    }
}

/// What a keyword demands, as the end of a sentence.
pub(super) fn rule(kind: &Kind) -> String {
    match kind {
        Kind::Required { property } => {
            format!(
                "must have the property `{}`",
                shown(property.as_str().unwrap_or_default())
            )
        }
        Kind::Type { kind } => format!("must be of type {}", type_names(kind)),
        Kind::Enum { options } => format!("must be one of {}", listed(options)),
        Kind::Constant { expected_value } => format!("must be {}", quoted(expected_value)),
        Kind::Minimum { limit } => format!("must be at least {limit}"),
        Kind::Maximum { limit } => format!("must be at most {limit}"),
        Kind::ExclusiveMinimum { limit } => format!("must be more than {limit}"),
        Kind::ExclusiveMaximum { limit } => format!("must be less than {limit}"),
        Kind::MultipleOf { multiple_of } => format!("must be a multiple of {multiple_of}"),
        Kind::MinLength { limit } => format!("must have at least {limit} characters"),
        Kind::MaxLength { limit } => format!("must have at most {limit} characters"),
        Kind::MinItems { limit } => format!("must have at least {limit} items"),
        Kind::MaxItems { limit } => format!("must have at most {limit} items"),
        Kind::MinProperties { limit } => format!("must have at least {limit} properties"),
        Kind::MaxProperties { limit } => format!("must have at most {limit} properties"),
        Kind::Pattern { pattern } => format!("must match the pattern {}", cut(pattern)),
        Kind::Format { format } => format!("must be a valid {format}"),
        Kind::UniqueItems => "must not have equal items".to_owned(),
        Kind::Contains => {
            "must contain items as the contract's `contains` describes them".to_owned()
        }
        Kind::AnyOf { .. } => "must match at least one of the shapes under `anyOf`".to_owned(),
        Kind::OneOfNotValid { .. } => {
            "must match one of the shapes under `oneOf`, and matches none".to_owned()
        }
        Kind::OneOfMultipleValid { .. } => {
            "must match exactly one of the shapes under `oneOf`, and matches several".to_owned()
        }
        Kind::Not { .. } => "must not match the shape under `not`".to_owned(),
        Kind::FalseSchema => "must not be given".to_owned(),
        Kind::UnevaluatedItems { .. } | Kind::AdditionalItems { .. } => {
            "has more items than the contract describes".to_owned()
        }
        other => format!(
            "breaks the rule `{}` of the contract's schema",
            other.keyword()
        ),
    }
}

fn type_names(kind: &TypeKind) -> String {
    match kind {
        TypeKind::Single(single) => single.to_string(),
        TypeKind::Multiple(several) => several
            .into_iter()
            .map(|single| single.to_string())
            .collect::<Vec<_>>()
            .join(" or "),
    }
}

/// The values that a contract allows are the contract's own words, and help whoever has to choose one.
fn listed(options: &Value) -> String {
    const SHOWN: usize = 12;
    let Some(values) = options.as_array() else {
        return quoted(options);
    };
    let mut text = values
        .iter()
        .take(SHOWN)
        .map(quoted)
        .collect::<Vec<_>>()
        .join(", ");
    if values.len() > SHOWN {
        text.push_str(", …");
    }
    text
}

fn quoted(value: &Value) -> String {
    cut(&value.to_string())
}

fn cut(text: &str) -> String {
    const LIMIT: usize = 120;
    if text.chars().count() <= LIMIT {
        return text.to_owned();
    }
    text.chars().take(LIMIT).chain(['…']).collect()
}

/// Points at a property, or at the object when the name is too long or too strange to repeat.
pub(super) fn pointer_to(parent: &str, name: &str) -> String {
    if name.chars().count() > MAX_KEY || shown(name) != name {
        return parent.to_owned();
    }
    format!("{parent}/{}", token(name))
}

/// Keys of an open object may come from outside: a pointer ends before the first one that is too long
/// or too strange to repeat.
pub(super) fn bounded(pointer: &str) -> String {
    let mut text = String::new();
    for key in pointer.split('/').skip(1) {
        if key.chars().count() > MAX_KEY || shown(key) != key || text.chars().count() > MAX_POINTER
        {
            break;
        }
        text.push('/');
        text.push_str(key);
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(schema: &Value, value: &Value) -> Vec<(String, String)> {
        let validator = options().build(schema).unwrap();
        check(&validator, value)
            .unwrap_err()
            .into_iter()
            .map(|violation| (violation.pointer, violation.message))
            .collect()
    }

    #[test]
    fn no_keyword_quotes_the_value() {
        let secret = "s3cret";
        for (schema, value) in [
            (json!({"type": "integer"}), json!(secret)),
            (json!({"enum": ["a", "b"]}), json!(secret)),
            (json!({"const": {"a": 1}}), json!(secret)),
            (json!({"pattern": "^x"}), json!(secret)),
            (json!({"format": "email"}), json!(secret)),
            (json!({"format": "uuid"}), json!(secret)),
            (json!({"maxLength": 2}), json!(secret)),
            (json!({"minLength": 20}), json!(secret)),
            (json!({"not": {"type": "string"}}), json!(secret)),
            (
                json!({"anyOf": [{"type": "null"}, {"type": "array"}]}),
                json!(secret),
            ),
            (
                json!({"oneOf": [{"type": "null"}, {"type": "array"}]}),
                json!(secret),
            ),
            (json!({"oneOf": [{}, {}]}), json!(secret)),
            (json!({"items": false}), json!([secret])),
            (
                json!({"prefixItems": [{}], "unevaluatedItems": false}),
                json!([1, secret]),
            ),
            (json!({"uniqueItems": true}), json!([secret, secret])),
            (json!({"contains": {"type": "null"}}), json!([secret])),
            (json!({"properties": {"a": false}}), json!({"a": secret})),
            (json!({"required": ["b"]}), json!({"a": secret})),
            (
                json!({"dependentRequired": {"a": ["b"]}}),
                json!({"a": secret}),
            ),
            (
                json!({"propertyNames": {"maxLength": 0}}),
                json!({"a": secret}),
            ),
            (json!({"minimum": 5}), json!(3.25)),
            (json!({"multipleOf": 5}), json!(3.25)),
        ] {
            for (pointer, message) in told(&schema, &value) {
                println!("{schema}: {pointer:?} {message}");
                assert!(
                    !message.contains(secret) && !message.contains("3.25"),
                    "{schema}: {message}"
                );
            }
        }
    }

    #[test]
    fn violations_point_at_what_is_wrong() {
        let schema = json!({
            "type": "object",
            "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b/c": {"type": "null"}},
            "required": ["must"],
            "additionalProperties": false,
        });
        let told = told(
            &schema,
            &json!({"a": [1, "x"], "b/c": 1, "extra": 1, "e\u{202e}": 2}),
        );
        assert!(told.contains(&("/a/1".into(), "must be of type integer".into())));
        assert!(told.contains(&("/b~1c".into(), "must be of type null".into())));
        assert!(told.contains(&(
            "/extra".into(),
            "the contract has no property `extra` here: leave it out".into()
        )));
        assert!(told.contains(&(
            String::new(),
            "the contract has no property `e\\u{202e}` here: leave it out".into()
        )));
        assert!(told.contains(&(String::new(), "must have the property `must`".into())));
    }

    #[test]
    fn there_are_never_more_than_a_page_of_violations() {
        let many: Vec<_> = (0..500).map(|_| json!("x")).collect();
        assert_eq!(
            told(&json!({"items": {"type": "integer"}}), &json!(many)).len(),
            MAX_VIOLATIONS
        );
        let many: Value = (0..500)
            .map(|index| (format!("{index}{}", "k".repeat(900)), json!(1)))
            .collect();
        let told = told(
            &json!({"properties": {"a": true}, "additionalProperties": false}),
            &many,
        );
        assert_eq!(told.len(), MAX_VIOLATIONS);
        assert!(
            told.iter()
                .all(|(pointer, message)| pointer.is_empty() && message.len() < 200)
        );
    }

    #[test]
    fn formats_are_asserted_and_patterns_are_linear() {
        let validator = options().build(&json!({"pattern": "^(a+)+$"})).unwrap();
        let started = std::time::Instant::now();
        assert!(!validator.is_valid(&json!("a".repeat(50_000) + "!")));
        assert!(started.elapsed() < std::time::Duration::from_secs(2));
        assert!(options().build(&json!({"pattern": "(?=x)"})).is_err());
        assert!(
            options()
                .build(&json!({"pattern": "(((a{999}){999}){99})"}))
                .is_err()
        );
        assert!(
            options()
                .build(&json!({"$ref": "https://example.com/x.json"}))
                .is_err()
        );
        assert!(
            !options()
                .build(&json!({"format": "date-time"}))
                .unwrap()
                .is_valid(&json!("yesterday"))
        );
    }
}
