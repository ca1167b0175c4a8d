//! What somebody other than the records gets to see of a value: a rule for each class of what is marked or detected. Agents see
//! answers through it, approvers the arguments of parked calls.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::{
    detectors::{self, Finding},
    marks::{Mark, Marks, below, classes, classes_of, items},
    pass::may_be_card,
};
use crate::call::{ByClass, ClassRule, ClassRules};

/// Makes a reference for a value of a class; nothing where there can be none, and the value is masked then.
type Refer<'a> = dyn FnMut(&str, &Value) -> Option<String> + Send + 'a;

/// One look at a value under rules.
pub struct View<'a> {
    rules: ClassRules,
    refer: Option<&'a mut Refer<'a>>,
    /// Whether anything looks other than it is.
    pub changed: bool,
    /// The classes of which a value was there and passed.
    pub passed: BTreeSet<String>,
}

impl<'a> View<'a> {
    /// Under rules, with masks in the place of references.
    pub fn new(rules: ClassRules) -> Self {
        Self {
            rules,
            refer: None,
            changed: false,
            passed: BTreeSet::new(),
        }
    }

    /// Under rules, with references.
    pub fn referring(rules: ClassRules, refer: &'a mut Refer<'a>) -> Self {
        Self {
            refer: Some(refer),
            ..Self::new(rules)
        }
    }

    /// Makes the value what is seen of it.
    pub fn apply(&mut self, marks: &Marks, value: &mut Value) {
        if !self.keeps(&[&marks.root], None, value) {
            *value = Value::Null;
        }
    }

    /// What is seen of a text that is no JSON.
    pub fn text(&mut self, text: &str) -> String {
        let found = detectors::find(None, text);
        if found.is_empty() {
            return text.to_owned();
        }
        self.replaced(text, found)
    }

    /// Makes a part what is seen of it; false where that is nothing.
    fn keeps(&mut self, here: &[&Mark], name: Option<&str>, value: &mut Value) -> bool {
        let strictest = here
            .iter()
            .flat_map(|mark| classes(mark))
            .map(|class| (self.rules.marked.of(class), class))
            .max();
        if let Some((rule, class)) = strictest.filter(|_| !value.is_null()) {
            match rule {
                ClassRule::Pass => {
                    self.passed.insert(class.to_owned());
                }
                ClassRule::Drop => {
                    self.changed = true;
                    return false;
                }
                ClassRule::Mask | ClassRule::Token => {
                    self.changed = true;
                    *value = Value::String(self.instead(rule, class, value));
                    return true;
                }
            }
        }
        match value {
            Value::String(text) => match self.detected(name, text) {
                Some(Some(seen)) => *text = seen,
                Some(None) => return false,
                None => {}
            },
            Value::Number(number) if may_be_card(number) => {
                let text = number.to_string();
                match self.detected(name, &text) {
                    Some(Some(seen)) if seen != text => *value = Value::String(seen),
                    Some(None) => return false,
                    Some(Some(_)) | None => {}
                }
            }
            Value::Array(list) => {
                let below: Vec<&Mark> = here.iter().flat_map(|mark| items(mark)).collect();
                list.retain_mut(|item| self.keeps(&below, name, item));
            }
            Value::Object(object) => {
                object.retain(|name, child| {
                    let below: Vec<&Mark> =
                        here.iter().flat_map(|mark| below(mark, name)).collect();
                    self.keeps(&below, Some(name), child)
                });
                let sensitive: Vec<String> = object
                    .keys()
                    .filter(|name| !detectors::find(None, name).is_empty())
                    .cloned()
                    .collect();
                for name in sensitive {
                    if let Some(child) = object.remove(&name) {
                        object.insert(self.text(&name), child);
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
        true
    }

    /// What is seen of a text: itself (`None`), another one, or nothing (`Some(None)`).
    fn detected(&mut self, name: Option<&str>, text: &str) -> Option<Option<String>> {
        let found = detectors::find(name, text);
        let first = found.first()?;
        if first.range == (0..text.len()) && self.rules.detected.of(first.class) == ClassRule::Drop
        {
            self.changed = true;
            return Some(None);
        }
        Some(Some(self.replaced(text, found)))
    }

    fn replaced(&mut self, text: &str, found: Vec<Finding>) -> String {
        let (mut seen, mut at) = (String::with_capacity(text.len()), 0);
        for finding in found {
            seen.push_str(text.get(at..finding.range.start).unwrap_or_default());
            at = finding.range.end;
            let part = text.get(finding.range).unwrap_or_default();
            match self.rules.detected.of(finding.class) {
                ClassRule::Pass => {
                    self.passed.insert(finding.class.to_owned());
                    seen.push_str(part);
                }
                // Within a longer text there is no member to leave out.
                rule => {
                    self.changed = true;
                    seen.push_str(&self.instead(rule, finding.class, &Value::from(part)));
                }
            }
        }
        seen.push_str(text.get(at..).unwrap_or_default());
        seen
    }

    fn instead(&mut self, rule: ClassRule, class: &str, value: &Value) -> String {
        let reference = match (&mut self.refer, rule) {
            (Some(refer), ClassRule::Token) => refer(class, value),
            _ => None,
        };
        reference.unwrap_or_else(|| masked(class, value))
    }
}

/// What may be seen of a value under its mask: the end of an account's number, the domain of an address, the end of a telephone
/// number. Of secrets and of what is confidential nothing, and of other personal data nothing.
fn masked(class: &str, value: &Value) -> String {
    const HIDDEN: &str = "****";
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let known = detectors::find(None, &text)
        .into_iter()
        .find(|finding| finding.range == (0..text.len()));
    let Some(finding) = known.filter(|finding| class == "pii" && finding.class == "pii") else {
        return HIDDEN.to_owned();
    };
    let form = detectors::normal_form(finding.kind, &text);
    let end = |count: usize| {
        let from = form.len().saturating_sub(count);
        form.get(from..).unwrap_or_default()
    };
    match finding.kind {
        "card" | "iban" => format!("{HIDDEN}{}", end(4)),
        "phone" => format!("{HIDDEN}{}", end(2)),
        "email" => format!(
            "{HIDDEN}{}",
            form.find('@')
                .and_then(|at| form.get(at..))
                .unwrap_or_default()
        ),
        _ => HIDDEN.to_owned(),
    }
}

/// An output schema as it describes what agents get: what is dropped is not in it, what is masked or referred to is text.
pub fn shown_schema(schema: &Value, rules: &ByClass) -> Value {
    let mut copy = schema.clone();
    describe(&mut copy, schema, rules);
    copy
}

fn describe(node: &mut Value, root: &Value, rules: &ByClass) {
    let own = node
        .get("x-sensitivity")
        .and_then(Value::as_str)
        .filter(|class| *class != "none")
        .map(str::to_owned);
    if let Some(class) = own {
        let words = match rules.of(&class) {
            ClassRule::Pass => return,
            ClassRule::Token => {
                "A reference to the value (tg_ref_…): pass it, whole, to an argument of this class in the same run."
            }
            ClassRule::Mask => "Masked by the gateway.",
            ClassRule::Drop => "Left out by the gateway.",
        };
        *node = json!({"type": "string", "description": words, "x-sensitivity": class});
        return;
    }
    let Some(object) = node.as_object_mut() else {
        return;
    };
    let mut dropped = BTreeSet::new();
    if let Some(properties) = object.get_mut("properties").and_then(Value::as_object_mut) {
        properties.retain(|name, child| {
            let gone = classes_of(child, root)
                .iter()
                .any(|class| rules.of(class) == ClassRule::Drop);
            if gone {
                dropped.insert(name.clone());
            }
            !gone
        });
    }
    if let Some(required) = object.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| !name.as_str().is_some_and(|name| dropped.contains(name)));
    }
    for (keyword, child) in object.iter_mut() {
        match (keyword.as_str(), child) {
            ("enum" | "const" | "default" | "examples", _) => {}
            (
                "properties" | "patternProperties" | "$defs" | "dependentSchemas",
                Value::Object(named),
            ) => {
                for child in named.values_mut() {
                    describe(child, root, rules);
                }
            }
            (_, Value::Array(list)) => {
                for child in list {
                    describe(child, root, rules);
                }
            }
            (_, child) => describe(child, root, rules),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(secret: ClassRule, pii: ClassRule, detected: ClassRule) -> ClassRules {
        let by_class = |rule| ByClass {
            secret: rule,
            pii: rule,
            confidential: rule,
        };
        ClassRules {
            marked: ByClass {
                secret,
                pii,
                ..ByClass::default()
            },
            detected: by_class(detected),
        }
    }

    fn schema() -> Value {
        json!({
            "$defs": {"key": {"type": "string", "x-sensitivity": "secret"}},
            "required": ["id", "key", "email"],
            "properties": {
                "id": {"type": "string"},
                "key": {"$ref": "#/$defs/key"},
                "email": {"type": "string", "x-sensitivity": "pii"},
                "people": {"items": {"properties": {"card": {"x-sensitivity": "pii"}}}},
                "keys": {"type": "array", "items": {"$ref": "#/$defs/key"}}
            }
        })
    }

    #[test]
    fn each_rule_does_what_it_says_wherever_a_value_stands() {
        let value = json!({
            "id": "1", "key": "planted-key", "email": "planted@example.org",
            "people": [{"card": "4111 1111 1111 1111"}], "keys": ["planted-a", "planted-b"],
            "note": "call +1 202 555 0143 or planted@example.org", "number": 4_111_111_111_111_111_u64,
            "planted@example.org": 1
        });
        let marks = Marks::of(&schema());
        let mut seen = value.clone();
        let mut view = View::new(rules(ClassRule::Drop, ClassRule::Mask, ClassRule::Mask));
        view.apply(&marks, &mut seen);
        assert!(view.changed && view.passed.is_empty());
        assert_eq!(
            seen,
            json!({
                "id": "1", "email": "****@example.org", "people": [{"card": "****1111"}], "keys": [],
                "note": "call ****43 or ****@example.org", "number": "****1111", "****@example.org": 1
            })
        );
        let mut seen = value.clone();
        let mut view = View::new(ClassRules::default());
        view.apply(&marks, &mut seen);
        assert_eq!((&seen, view.changed), (&value, false));
        assert_eq!(
            view.passed.iter().collect::<Vec<_>>(),
            ["pii", "secret"],
            "what was seen is told"
        );
        let mut seen = json!({"note": "planted@example.org", "list": ["planted@example.org", "x"], "more": "to planted@example.org"});
        View::new(rules(ClassRule::Pass, ClassRule::Pass, ClassRule::Drop))
            .apply(&Marks::default(), &mut seen);
        assert_eq!(
            seen,
            json!({"list": ["x"], "more": "to ****@example.org"}),
            "what is found is left out where it is the whole value"
        );
        let mut given = Vec::new();
        let mut refer = |class: &str, value: &Value| {
            given.push(format!("{class} {value}"));
            Some(format!("ref-{}", given.len()))
        };
        let mut seen = value;
        View::referring(
            rules(ClassRule::Mask, ClassRule::Token, ClassRule::Pass),
            &mut refer,
        )
        .apply(&marks, &mut seen);
        assert_eq!(
            (&seen["email"], &seen["key"], &seen["people"][0]["card"]),
            (&json!("ref-1"), &json!("****"), &json!("ref-2"))
        );
        assert_eq!(
            given,
            ["pii \"planted@example.org\"", "pii \"4111 1111 1111 1111\""]
        );
    }

    #[test]
    fn the_schema_for_agents_describes_what_they_get() {
        let shown = shown_schema(
            &schema(),
            &rules(ClassRule::Drop, ClassRule::Token, ClassRule::Pass).marked,
        );
        assert_eq!(shown["required"], json!(["id", "email"]));
        assert_eq!(shown["properties"].get("key"), None);
        assert_eq!(shown["properties"]["email"]["type"], "string");
        assert!(
            shown["properties"]["email"]["description"]
                .as_str()
                .unwrap()
                .contains("tg_ref_")
        );
        assert_eq!(
            shown_schema(&schema(), &ByClass::default()),
            schema(),
            "what passes is described as it is"
        );
    }
}
