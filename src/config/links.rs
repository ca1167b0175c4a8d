//! Where messages lead: the operators' own REST interface, or whatever page people have for it, with ids in its address.

use serde::Deserialize;

use super::{Resolver, file};
use crate::yaml::Spanned;

/// As they are written.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Written {
    approval: Option<Spanned<String>>,
    halt: Option<Spanned<String>>,
}

impl Written {
    /// Whether messages have links without `public_url` too.
    pub(super) fn are_all_given(&self) -> bool {
        self.approval.is_some() && self.halt.is_some()
    }
}

/// Where messages lead.
#[derive(Debug, Clone, Default)]
pub struct Links {
    /// From what is told of an approval or its call.
    pub approval: Option<Link>,
    /// From what is told of a halt.
    pub halt: Option<Link>,
}

/// A URL with places for ids, written `{name}`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link(String);

const IN_APPROVALS: [&str; 3] = ["approval", "call", "run"];
const IN_HALTS: [&str; 1] = ["kill_switch"];

impl Link {
    /// A URL whose places have these names; or what is wrong with it.
    fn parse(text: &str, places: &[&str]) -> Result<Self, String> {
        let mut filled = text.to_owned();
        for place in places {
            filled = filled.replace(&format!("{{{place}}}"), "x");
        }
        if filled.contains(['{', '}']) {
            let known: Vec<String> = places.iter().map(|place| format!("{{{place}}}")).collect();
            return Err(format!("the ids it can hold are {}", known.join(", ")));
        }
        let uri = http::Uri::try_from(&filled).map_err(|error| error.to_string())?;
        match (uri.scheme_str(), uri.authority()) {
            (Some("http" | "https"), Some(host)) if !host.as_str().contains('@') => {
                Ok(Self(text.to_owned()))
            }
            _ => Err("a link begins with https:// and a host".to_owned()),
        }
    }

    /// The address, with the ids that `id` has by name.
    pub fn to<'a>(&self, id: impl Fn(&str) -> Option<&'a str>) -> String {
        let mut address = self.0.clone();
        for place in IN_APPROVALS.into_iter().chain(IN_HALTS) {
            let written = format!("{{{place}}}");
            if address.contains(&written) {
                address = address.replace(&written, id(place).unwrap_or_default());
            }
        }
        address
    }
}

impl Resolver<'_> {
    /// What is not written leads to the REST interface under `public_url`, if there is one.
    pub(super) fn links(&mut self, written: &file::Config) -> Links {
        let base = self.public_url(written);
        let own = |path: &str| base.as_ref().map(|base| Link(format!("{base}{path}")));
        let (approval, halt) = (own("/v1/approvals/{approval}"), own("/v1/kill-switches"));
        Links {
            approval: self
                .link(written.links.approval.as_ref(), &IN_APPROVALS)
                .or(approval),
            halt: self.link(written.links.halt.as_ref(), &IN_HALTS).or(halt),
        }
    }

    fn link(&mut self, raw: Option<&Spanned<String>>, places: &[&str]) -> Option<Link> {
        let raw = raw?;
        let text = self.text(raw)?;
        match Link::parse(&text, places) {
            Ok(link) => Some(link),
            Err(error) => {
                self.wrong(
                    raw,
                    format!("{text:?} is no link for messages: {error}"),
                    "write it like https://toolgate.example.com/approvals/{approval}",
                );
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_takes_the_ids_of_its_kind_and_is_an_address() {
        let link = Link::parse("https://x.example/a/{approval}?c={call}", &IN_APPROVALS).unwrap();
        let id = |name: &str| Some(if name == "call" { "call_1" } else { "appr_1" });
        assert_eq!(link.to(id), "https://x.example/a/appr_1?c=call_1");
        for wrong in [
            "https://x.example/{kill_switch}",
            "https://x.example/{approval",
            "/approvals/{approval}",
            "javascript:alert(1)",
            "ftp://x.example/",
            "https://user@x.example/",
            "https://{approval}@x.example/",
            "https://x.example/a b",
            "",
        ] {
            assert!(Link::parse(wrong, &IN_APPROVALS).is_err(), "{wrong}");
        }
    }
}
