//! Where a contract's schema marks values as sensitive, prepared at load.

use std::collections::HashMap;

use serde_json::{Map, Value};

use crate::call::{ByClass, ClassRule};

/// How deep references may lead into each other before a schema counts as recursive.
const MAX_REFERENCES: usize = 16;

/// Where sensitive values stand in one contract's arguments, prepared at load.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    pub(super) root: Mark,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Mark {
    /// `secret`, `pii` or `confidential`: the whole value is replaced.
    pub class: Option<String>,
    pub properties: HashMap<String, Mark>,
    pub additional: Option<Box<Mark>>,
    pub items: Option<Box<Mark>>,
    /// Marks from combinators (`allOf` and its kin): each holds, whichever branch applied.
    pub also: Vec<Mark>,
}

impl Mark {
    pub fn is_empty(&self) -> bool {
        self.class.is_none()
            && self.properties.is_empty()
            && self.additional.is_none()
            && self.items.is_none()
            && self.also.is_empty()
    }
}

impl Marks {
    /// Reads the marks of a JSON Schema. A reference that leads nowhere or around in a circle counts as `secret`:
    /// what is not understood is not recorded.
    pub fn of(schema: &Value) -> Self {
        Self {
            root: mark(schema, schema, 0),
        }
    }

    /// Whether nothing is marked.
    pub fn is_empty(&self) -> bool {
        self.root.is_empty()
    }

    /// Whether any place is marked with a class that has a rule other than `pass`.
    pub fn has_rule(&self, rules: &ByClass) -> bool {
        fn any(mark: &Mark, rules: &ByClass) -> bool {
            let below = mark
                .properties
                .values()
                .chain(mark.additional.as_deref())
                .chain(mark.items.as_deref())
                .chain(&mark.also);
            mark.class
                .as_deref()
                .is_some_and(|class| rules.of(class) != ClassRule::Pass)
                || below.into_iter().any(|mark| any(mark, rules))
        }
        any(&self.root, rules)
    }

    /// The marks of each name, wherever it stands.
    pub(super) fn by_name(&self) -> HashMap<&str, Vec<&Mark>> {
        fn gather<'a>(mark: &'a Mark, named: &mut HashMap<&'a str, Vec<&'a Mark>>) {
            for (name, child) in &mark.properties {
                named.entry(name).or_default().push(child);
                gather(child, named);
            }
            let below = mark.additional.as_deref().into_iter();
            for child in below.chain(mark.items.as_deref()).chain(&mark.also) {
                gather(child, named);
            }
        }
        let mut named = HashMap::new();
        gather(&self.root, &mut named);
        named
    }

    /// The pointer to the value, marked as a whole, inside of which a pointer leads, if it leads into one.
    pub fn cover(&self, pointer: &str) -> Option<String> {
        let mut here = vec![&self.root];
        let mut so_far = String::new();
        for token in pointer.split('/').skip(1) {
            if here.iter().any(|mark| !classes(mark).is_empty()) {
                return Some(so_far);
            }
            let name = token.replace("~1", "/").replace("~0", "~");
            here = here
                .into_iter()
                .flat_map(|mark| below(mark, &name))
                .collect();
            so_far.push('/');
            so_far.push_str(token);
        }
        None
    }

    /// These marks, and for each of some properties those of the place to which a pointer leads in other marks: what was taken
    /// from there is as sensitive as it was there.
    #[must_use]
    pub fn with_those_of<'a>(
        &self,
        other: &Self,
        taken: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut all = self.clone();
        for (property, pointer) in taken {
            let also: Vec<Mark> = other
                .at(pointer)
                .into_iter()
                .filter(|mark| !mark.is_empty())
                .cloned()
                .collect();
            if also.is_empty() {
                continue;
            }
            let mark = Mark {
                properties: HashMap::from([(
                    property.to_owned(),
                    Mark {
                        also,
                        ..Mark::default()
                    },
                )]),
                ..Mark::default()
            };
            all.root.also.push(mark);
        }
        all
    }

    /// The marks that hold for the place to which a JSON pointer into a value leads.
    fn at(&self, pointer: &str) -> Vec<&Mark> {
        let mut here = vec![&self.root];
        for token in pointer.split('/').skip(1) {
            let name = token.replace("~1", "/").replace("~0", "~");
            here = here
                .into_iter()
                .flat_map(|mark| below(mark, &name))
                .collect();
        }
        here
    }

    /// The classes with which the place is marked to which a JSON pointer into a value leads.
    pub fn classes_at(&self, pointer: &str) -> Vec<&str> {
        self.at(pointer).into_iter().flat_map(classes).collect()
    }
}

/// The classes with which this very place is marked.
pub(super) fn classes(mark: &Mark) -> Vec<&str> {
    mark.class
        .as_deref()
        .into_iter()
        .chain(mark.also.iter().flat_map(classes))
        .collect()
}

/// The classes with which a schema marks what it describes, as far as `root` says.
pub(super) fn classes_of(schema: &Value, root: &Value) -> Vec<String> {
    let mark = mark(schema, root, 0);
    classes(&mark).into_iter().map(str::to_owned).collect()
}

/// The marks that hold for the items of an array that `mark` holds for.
pub(super) fn items(mark: &Mark) -> Vec<&Mark> {
    let own = mark.class.is_some().then_some(mark);
    own.into_iter()
        .chain(mark.items.as_deref())
        .chain(mark.also.iter().flat_map(items))
        .collect()
}

/// The marks that hold for a member or item of what `mark` holds for. A marked whole marks each of its parts.
pub(super) fn below<'a>(mark: &'a Mark, token: &str) -> Vec<&'a Mark> {
    let mut found = Vec::new();
    if mark.class.is_some() {
        found.push(mark);
    }
    match mark.properties.get(token) {
        Some(property) => found.push(property),
        None => found.extend(mark.additional.as_deref()),
    }
    found.extend(mark.items.as_deref());
    for also in &mark.also {
        found.extend(below(also, token));
    }
    found
}

fn mark(schema: &Value, root: &Value, references: usize) -> Mark {
    let Some(object) = schema.as_object() else {
        return Mark::default();
    };
    let secret = || Mark {
        class: Some("secret".to_owned()),
        ..Mark::default()
    };
    let mut found = Mark::default();
    if let Some(class) = object.get("x-sensitivity").and_then(Value::as_str)
        && class != "none"
    {
        found.class = Some(class.to_owned());
        return found;
    }
    if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
        let target = reference
            .strip_prefix('#')
            .and_then(|pointer| root.pointer(pointer));
        match target {
            Some(target) if references < MAX_REFERENCES => {
                found.also.push(mark(target, root, references + 1));
            }
            _ => return secret(),
        }
    }
    let keep = |mark: Mark| (!mark.is_empty()).then_some(mark);
    for keyword in ["properties", "patternProperties"] {
        for (name, child) in object
            .get(keyword)
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
        {
            let Some(child) = keep(mark(child, root, references)) else {
                continue;
            };
            if keyword == "properties" {
                found.properties.insert(name.clone(), child);
            } else {
                found.additional = Some(Box::new(merged(found.additional.take(), child)));
            }
        }
    }
    for keyword in ["additionalProperties", "unevaluatedProperties"] {
        if let Some(child) = object
            .get(keyword)
            .and_then(|child| keep(mark(child, root, references)))
        {
            found.additional = Some(Box::new(merged(found.additional.take(), child)));
        }
    }
    for keyword in ["items", "contains", "unevaluatedItems"] {
        if let Some(child) = object
            .get(keyword)
            .and_then(|child| keep(mark(child, root, references)))
        {
            found.items = Some(Box::new(merged(found.items.take(), child)));
        }
    }
    for keyword in ["prefixItems", "allOf", "anyOf", "oneOf"] {
        for child in object
            .get(keyword)
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
        {
            let Some(child) = keep(mark(child, root, references)) else {
                continue;
            };
            if keyword == "prefixItems" {
                found.items = Some(Box::new(merged(found.items.take(), child)));
            } else {
                found.also.push(child);
            }
        }
    }
    for keyword in ["if", "then", "else"] {
        if let Some(child) = object
            .get(keyword)
            .and_then(|child| keep(mark(child, root, references)))
        {
            found.also.push(child);
        }
    }
    for child in object
        .get("dependentSchemas")
        .and_then(Value::as_object)
        .into_iter()
        .flat_map(Map::values)
    {
        if let Some(child) = keep(mark(child, root, references)) {
            found.also.push(child);
        }
    }
    found.also.retain(|also| !also.is_empty());
    found
}

fn merged(existing: Option<Box<Mark>>, more: Mark) -> Mark {
    match existing {
        None => more,
        Some(mut existing) => {
            existing.also.push(more);
            *existing
        }
    }
}
