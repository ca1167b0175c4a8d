//! A YAML file as a tree in which every key and value knows its place.
//!
//! Deserializing into structs stops at the first mistake. A contract file is written by a person who
//! wants to see all of them at once, each with line and column, down to one keyword of a schema.

use std::{collections::HashMap, fmt, ops::Range};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Number, Value};
use serde_saphyr::{Location, Spanned};

use crate::{
    diagnostics::{Finding, SourceFile},
    json, yaml,
};

/// One value of the file and the bytes at which it stands.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Yaml,
    pub(super) at: Range<usize>,
}

/// A name or key and the bytes at which it stands.
#[derive(Debug, Clone)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) at: Range<usize>,
}

#[derive(Debug, Clone)]
pub(super) enum Yaml {
    Null,
    Bool(bool),
    Number(Number),
    /// A number that JSON cannot hold exactly, with the reason.
    Unusable(&'static str),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

impl Node {
    /// Reads a whole file.
    pub(super) fn read(file: &SourceFile) -> Result<Self, Box<Finding>> {
        yaml::read(file)
    }

    /// What kind of value this is, for messages.
    pub(super) const fn kind(&self) -> &'static str {
        match self.value {
            Yaml::Null => "nothing",
            Yaml::Bool(_) => "a boolean",
            Yaml::Number(_) | Yaml::Unusable(_) => "a number",
            Yaml::Text(_) => "text",
            Yaml::List(_) => "a list",
            Yaml::Map(_) => "a mapping",
        }
    }

    /// The entry of a mapping.
    pub(super) fn get(&self, name: &str) -> Option<(&Key, &Self)> {
        match &self.value {
            Yaml::Map(entries) => entries
                .iter()
                .find(|(key, _)| key.name == name)
                .map(|(key, node)| (key, node)),
            _ => None,
        }
    }

    /// The entries of a mapping, or none.
    pub(super) fn entries(&self) -> &[(Key, Self)] {
        match &self.value {
            Yaml::Map(entries) => entries,
            _ => &[],
        }
    }

    /// The items of a list, or none.
    pub(super) fn items(&self) -> &[Self] {
        match &self.value {
            Yaml::List(items) => items,
            _ => &[],
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Yaml::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Where a JSON pointer leads: the value's place, or the place of the nearest value above it.
    pub(super) fn place_of(&self, pointer: &str) -> Range<usize> {
        let mut node = self;
        let mut at = self.at.clone();
        for token in pointer.split('/').skip(1) {
            let token = token.replace("~1", "/").replace("~0", "~");
            let next = match &node.value {
                Yaml::Map(_) => node.get(&token).map(|(key, value)| (value, key.at.clone())),
                Yaml::List(items) => token
                    .parse::<usize>()
                    .ok()
                    .and_then(|index| items.get(index))
                    .map(|item| (item, item.at.clone())),
                _ => None,
            };
            let Some((next, place)) = next else { break };
            // A mapping's own place is its first key, so the key that leads to it says more.
            at = if matches!(next.value, Yaml::Map(_) | Yaml::List(_)) {
                place
            } else {
                next.at.clone()
            };
            node = next;
        }
        at
    }

    /// The same as JSON, under the rules of [`json::parse`]; what breaks them is reported.
    pub(super) fn to_json(&self, file: &SourceFile, findings: &mut Vec<Finding>) -> Value {
        match &self.value {
            Yaml::Null => Value::Null,
            Yaml::Bool(value) => Value::Bool(*value),
            Yaml::Number(number) => Value::Number(number.clone()),
            Yaml::Unusable(reason) => {
                findings.push(Finding::error(file, self.at.clone(), *reason));
                Value::Null
            }
            Yaml::Text(text) => {
                refuse_nul(text, &self.at, file, findings);
                Value::String(text.clone())
            }
            Yaml::List(items) => items
                .iter()
                .map(|item| item.to_json(file, findings))
                .collect(),
            Yaml::Map(entries) => {
                let mut seen: HashMap<String, &str> = HashMap::new();
                for (key, _) in entries {
                    refuse_nul(&key.name, &key.at, file, findings);
                    if let Some(other) =
                        seen.insert(json::folded(&key.name).into_owned(), &key.name)
                    {
                        findings.push(
                            Finding::error(
                                file,
                                key.at.clone(),
                                format!("`{}` differs only in case from `{other}` in the same mapping", key.name),
                            )
                            .with_help("requests with such a pair of keys are refused, so rename one of them"),
                        );
                    }
                }
                entries
                    .iter()
                    .map(|(key, node)| (key.name.clone(), node.to_json(file, findings)))
                    .collect()
            }
        }
    }
}

fn refuse_nul(text: &str, at: &Range<usize>, file: &SourceFile, findings: &mut Vec<Finding>) {
    if text.contains('\0') {
        findings.push(Finding::error(
            file,
            at.clone(),
            "the character U+0000 cannot be stored: leave it out",
        ));
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Yaml>::deserialize(deserializer)?;
        let at = bytes(spanned.referenced);
        Ok(Self {
            value: spanned.value,
            at,
        })
    }
}

/// Byte offsets are always there, because files are read as text and not from a stream.
fn bytes(location: Location) -> Range<usize> {
    let span = location.span();
    let convert = |number: Option<u64>| usize::try_from(number.unwrap_or(0)).unwrap_or(usize::MAX);
    let start = convert(span.byte_offset());
    start..start.saturating_add(convert(span.byte_len()))
}

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

fn number(result: Result<Number, &'static str>) -> Yaml {
    result.map_or_else(Yaml::Unusable, Yaml::Number)
}

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Yaml;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value that JSON can hold")
    }

    fn visit_unit<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_none<E>(self) -> Result<Yaml, E> {
        Ok(Yaml::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Yaml, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Yaml, E> {
        Ok(Yaml::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Yaml, E> {
        Ok(number(json::integer(value.into())))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Yaml, E> {
        Ok(number(json::integer(value.into())))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Yaml, E> {
        Ok(number(json::integer(value)))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Yaml, E> {
        Ok(number(json::integer(
            i128::try_from(value).unwrap_or(i128::MAX),
        )))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Yaml, E> {
        Ok(number(json::float(value)))
    }

    fn visit_str<E>(self, value: &str) -> Result<Yaml, E> {
        Ok(Yaml::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Yaml, E> {
        Ok(Yaml::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Yaml, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Yaml::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Yaml, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key::<Spanned<String>>()? {
            let at = bytes(key.referenced);
            map.push((
                Key {
                    name: key.value,
                    at,
                },
                entries.next_value()?,
            ));
        }
        Ok(Yaml::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Node, SourceFile) {
        let file = SourceFile::new("tools.yaml", text);
        (Node::read(&file).unwrap(), file)
    }

    #[test]
    fn every_key_and_value_knows_its_place() {
        let (node, file) = read("a:\n  - näme: x\n    b: [1, {c: yes}]\n");
        let list = node.get("a").unwrap().1;
        let (key, value) = list.items()[0].get("b").unwrap();
        assert_eq!(file.position_of(key.at.start), (3, 5));
        assert_eq!(file.position_of(value.at.start), (3, 8));
        assert_eq!(file.position_of(node.place_of("/a/0/b/1/c").start), (3, 16));
        assert_eq!(file.position_of(node.place_of("/a/0/b/7").start), (3, 5));
        // `yes` is text and not a boolean.
        let mut findings = Vec::new();
        let json = node.to_json(&file, &mut findings);
        assert_eq!(json["a"][0]["b"][1]["c"], "yes");
        assert!(findings.is_empty());
    }

    #[test]
    fn yaml_mistakes_have_a_place() {
        for (text, line) in [
            ("a: 1\nb: 2\na: 3\n", 3),
            ("a: [1,\nb: 2\n", 2),
            ("a: *nothing\n", 1),
            ("a: 1\n---\nb: 2\n", 2),
            ("a: .nan\n", 1),
            ("a: !!python/object x\n", 1),
        ] {
            let file = SourceFile::new("tools.yaml", text);
            let finding = Node::read(&file).unwrap_err();
            println!("{finding}");
            assert!(finding.place().1.abs_diff(line) <= 1, "{text}: {finding}");
            assert!(!finding.message.contains('\n'));
        }
    }

    #[test]
    fn what_json_cannot_hold_is_reported() {
        let (node, file) = read(
            "a: 9007199254740993\nb: -0.0\nc: \"x\\0\"\nd: 1e3\nAmount: 1\namount: 2\ne: 0755\nf: 1_000\n",
        );
        let mut findings = Vec::new();
        let json = node.to_json(&file, &mut findings);
        let lines: Vec<_> = findings.iter().map(|finding| finding.place().1).collect();
        assert_eq!(lines, [6, 1, 2, 3], "{findings:?}");
        assert_eq!(json["d"], 1000);
        assert_eq!((&json["e"], &json["f"]), (&"0755".into(), &"1_000".into()));
    }

    #[test]
    fn deep_files_are_refused() {
        let file = SourceFile::new(
            "deep.yaml",
            format!("a: {}{}", "[".repeat(5000), "]".repeat(5000)),
        );
        assert!(Node::read(&file).is_err());
    }
}
