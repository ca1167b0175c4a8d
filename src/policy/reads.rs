//! What a policy reads, found in its JSON form: which parts of the context, and which tiers of approval.

use serde_json::{Map, Value};

/// Parts of a call's context that cost something to build and that most policies do not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Reads {
    pub(super) run: bool,
    pub(super) now: bool,
}

impl Reads {
    pub(super) const EVERYTHING: Self = Self {
        run: true,
        now: true,
    };

    /// What a policy, in Cedar's JSON format, may read. When in doubt, everything.
    pub(super) fn of(policy: &Value) -> Self {
        let mut reads = Self::default();
        reads.collect(policy);
        reads
    }

    fn collect(&mut self, node: &Value) {
        if is_context(node) {
            // The context as a whole, in a comparison or a set.
            *self = Self::EVERYTHING;
        }
        for (key, below) in children(node) {
            let attribute = matches!(key, Some("." | "has"))
                .then(|| below.as_object())
                .flatten()
                .filter(|access| access.get("left").is_some_and(is_context))
                .and_then(|access| access.get("attr"));
            match attribute {
                Some(Value::String(name)) => {
                    self.run |= name == "run";
                    self.now |= name == "now";
                }
                // An attribute path, or a form that this code does not know.
                Some(_) => *self = Self::EVERYTHING,
                None => self.collect(below),
            }
        }
    }
}

impl std::ops::BitOr for Reads {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            run: self.run || other.run,
            now: self.now || other.now,
        }
    }
}

/// The tiers that a policy, in Cedar's JSON format, asks `context.approvals` for by a literal name.
/// `contains_only` leaves out those in `containsAll` and `containsAny`.
pub(super) fn approvals_read(policy: &Value, contains_only: bool) -> Vec<&str> {
    let mut found = Vec::new();
    collect_approvals(policy, contains_only, &mut found);
    found
}

fn collect_approvals<'p>(node: &'p Value, contains_only: bool, found: &mut Vec<&'p str>) {
    for (key, below) in children(node) {
        if let (Some(key), Some(call)) = (key, below.as_object())
            && call.get("left").is_some_and(is_approvals)
        {
            let right = call.get("right");
            match key {
                "contains" => found.extend(right.and_then(literal)),
                "containsAll" | "containsAny" if !contains_only => {
                    let set = right
                        .and_then(|right| right.get("Set"))
                        .and_then(Value::as_array);
                    found.extend(set.into_iter().flatten().filter_map(literal));
                }
                _ => {}
            }
        }
        collect_approvals(below, contains_only, found);
    }
}

fn children(node: &Value) -> Box<dyn Iterator<Item = (Option<&str>, &Value)> + '_> {
    match node {
        Value::Object(map) => Box::new(map.iter().map(|(key, below)| (Some(key.as_str()), below))),
        Value::Array(list) => Box::new(list.iter().map(|below| (None, below))),
        _ => Box::new(std::iter::empty()),
    }
}

fn only_entry<'p>(node: &'p Value, key: &str) -> Option<&'p Value> {
    let map: &Map<String, Value> = node.as_object().filter(|map| map.len() == 1)?;
    map.get(key)
}

fn is_context(node: &Value) -> bool {
    only_entry(node, "Var").is_some_and(|variable| variable == "context")
}

fn is_approvals(node: &Value) -> bool {
    only_entry(node, ".").is_some_and(|access| {
        access.get("attr").is_some_and(|name| name == "approvals")
            && access.get("left").is_some_and(is_context)
    })
}

fn literal(node: &Value) -> Option<&str> {
    only_entry(node, "Value").and_then(Value::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json_of(condition: &str) -> Value {
        let text = format!("permit (principal, action, resource) when {{ {condition} }};");
        text.parse::<cedar_policy::Policy>()
            .unwrap()
            .to_json()
            .unwrap()
    }

    #[test]
    fn reads_are_found_wherever_they_stand() {
        let (run, now) = (
            Reads {
                run: true,
                now: false,
            },
            Reads {
                run: false,
                now: true,
            },
        );
        for (condition, reads) in [
            ("context.input.now == context.input.run", Reads::default()),
            (
                "principal.context.run == 1 || resource has now",
                Reads::default(),
            ),
            (
                "if context.input.a then [context.run.id].contains(\"x\") else true",
                run,
            ),
            ("context has run.id", Reads::EVERYTHING),
            (
                "{\"a\": context[\"now\"]}.a < datetime(\"2026-01-01\")",
                now,
            ),
            ("context has now", now),
            ("[context].contains(context)", Reads::EVERYTHING),
            (
                "(if true then context else context).input.a == 1",
                Reads::EVERYTHING,
            ),
        ] {
            assert_eq!(Reads::of(&json_of(condition)), reads, "{condition}");
        }
    }

    #[test]
    fn only_literals_asked_of_the_approvals_count() {
        for (condition, contains, all) in [
            (
                "context.approvals.contains(\"a\") || !context.approvals.contains(\"b\")",
                vec!["a", "b"],
                vec!["a", "b"],
            ),
            (
                "context[\"approvals\"].containsAny([\"a\", \"b\"])",
                vec![],
                vec!["a", "b"],
            ),
            ("context.input.approvals.contains(\"a\")", vec![], vec![]),
            ("principal.approvals.contains(\"a\")", vec![], vec![]),
            ("context.tags.contains(\"a\")", vec![], vec![]),
            (
                "[\"a\"].contains(\"a\") && context.approvals.contains(context.run.id)",
                vec![],
                vec![],
            ),
        ] {
            let json = json_of(condition);
            assert_eq!(approvals_read(&json, true), contains, "{condition}");
            assert_eq!(approvals_read(&json, false), all, "{condition}");
        }
    }
}
