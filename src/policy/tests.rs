//! Tests of the policies through their public interface: load files for a small world, then decide.

mod deciding;
mod loading;
mod mapping;
mod operating;
mod reading;
mod slicing;

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::call::Consequence;
use crate::diagnostics::{Finding, SourceFile};
use crate::quorum::Member;

/// The contracts of a help desk: their input schemas outlive the world made of them.
pub(super) struct Contracts(Vec<(&'static str, &'static str, Consequence, Value)>);

impl Contracts {
    pub(super) fn desk() -> Self {
        let tickets = json!({
            "type": "object", "additionalProperties": false, "required": ["id"],
            "properties": {"id": {"type": "string"}, "verbose": {"type": "boolean"}},
        });
        let refund = json!({
            "type": "object", "additionalProperties": false, "required": ["amount", "customer"],
            "properties": {
                "amount": {"type": "integer"},
                "customer": {"type": "string"},
                "note": {"type": "string"},
                "fee": {"type": "integer"},
            },
        });
        Self(vec![
            (
                "desk.tickets.get",
                "desk",
                Consequence::Read,
                tickets.clone(),
            ),
            (
                "desk.tickets.close",
                "desk",
                Consequence::Write,
                tickets.clone(),
            ),
            (
                "desk.tickets.purge",
                "desk",
                Consequence::Destructive,
                tickets,
            ),
            (
                "desk.refunds.create",
                "desk",
                Consequence::MoneyMovement,
                refund,
            ),
        ])
    }

    /// One tool `lab.probe` with these arguments.
    pub(super) fn probe(input: Value) -> Self {
        Self(vec![("lab.probe", "lab", Consequence::Read, input)])
    }

    pub(super) fn world(&self) -> World<'_> {
        let tools = self
            .0
            .iter()
            .map(|(name, api, consequence, input)| ToolShape {
                name,
                api,
                consequence: *consequence,
                input,
            });
        let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let agent = |name: &str, groups: &[&str]| AgentShape {
            name: name.to_owned(),
            groups: names(groups),
        };
        let operator = |name: &str, roles: &[&str]| OperatorShape {
            name: name.to_owned(),
            roles: names(roles),
            groups: if name == "sam" {
                names(&["treasury"])
            } else {
                Vec::new()
            },
        };
        let tier = |name: &str, member: Member| TierShape {
            name: name.to_owned(),
            members: vec![member],
        };
        let role = |name: &str| Member::Role(name.to_owned());
        World {
            tools: tools.collect(),
            agents: vec![
                agent("support-bot", &["support"]),
                agent("report-bot", &["reporting", "support"]),
                agent("lone-bot", &[]),
            ],
            operators: vec![
                operator("olga", &["finance"]),
                operator("sam", &["security", "on-call"]),
                operator("nobody", &[]),
            ],
            tiers: vec![
                tier("finance", role("finance")),
                tier("security", role("security")),
                tier("treasury", Member::Group("treasury".to_owned())),
            ],
            apis: names(&["desk", "mail"]),
        }
    }
}

pub(super) fn load_in(contracts: &Contracts, text: &str) -> (Option<Policies>, Vec<Finding>) {
    load(&[SourceFile::new("rules.cedar", text)], &contracts.world())
}

/// Loads policies that must be right.
pub(super) fn loaded(contracts: &Contracts, text: &str) -> Policies {
    let (policies, findings) = load_in(contracts, text);
    let errors: Vec<_> = findings
        .iter()
        .filter(|finding| !finding.note)
        .map(ToString::to_string)
        .collect();
    policies.unwrap_or_else(|| panic!("{errors:#?}"))
}

/// The errors of policies for the help desk, which must be refused.
pub(super) fn errors(text: &str) -> Vec<String> {
    let (policies, findings) = load_in(&Contracts::desk(), text);
    let errors: Vec<_> = findings
        .iter()
        .filter(|finding| !finding.note)
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        policies.is_none(),
        !errors.is_empty(),
        "policies are there exactly without errors: {errors:?}"
    );
    errors
}

/// A call by `support-bot`, to be changed where a test differs.
#[derive(Debug, Clone)]
pub(super) struct Call {
    pub(super) agent: &'static str,
    pub(super) tool: String,
    pub(super) api: &'static str,
    pub(super) arguments: Value,
    pub(super) earned: BTreeSet<String>,
    pub(super) now_millis: i64,
    pub(super) implicit: bool,
    pub(super) scopes: Vec<String>,
}

impl Call {
    pub(super) fn new(tool: &str, arguments: Value) -> Self {
        Self {
            agent: "support-bot",
            tool: tool.to_owned(),
            api: if tool.starts_with("lab.") {
                "lab"
            } else {
                "desk"
            },
            arguments,
            earned: BTreeSet::new(),
            now_millis: 1_770_000_000_000,
            implicit: false,
            scopes: vec!["desk:read".to_owned()],
        }
    }

    pub(super) fn refund(amount: i64) -> Self {
        Self::new(
            "desk.refunds.create",
            json!({"amount": amount, "customer": "c1"}),
        )
    }

    pub(super) fn earned(mut self, tiers: &[&str]) -> Self {
        self.earned = tiers.iter().map(ToString::to_string).collect();
        self
    }

    pub(super) fn by(mut self, agent: &'static str) -> Self {
        self.agent = agent;
        self
    }

    pub(super) fn request(&self) -> CallRequest<'_> {
        CallRequest {
            agent: self.agent,
            tool: &self.tool,
            api: self.api,
            arguments: self.arguments.as_object().unwrap(),
            run: RunFacts {
                id: "run_1",
                triggered_by: "alice",
                purpose: "ticket 7",
                implicit: self.implicit,
                scopes: &self.scopes,
            },
            earned: &self.earned,
            now_millis: self.now_millis,
        }
    }

    pub(super) fn decide(&self, policies: &Policies) -> Decision {
        policies.decide(&self.request())
    }
}

pub(super) fn permit(policies: &[&str]) -> Decision {
    Decision::Permit {
        policies: policies.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn park(tiers: &[&str], policies: &[&str]) -> Decision {
    Decision::Park {
        tiers: tiers.iter().map(ToString::to_string).collect(),
        policies: policies.iter().map(ToString::to_string).collect(),
    }
}

/// A denial without errors.
pub(super) fn deny(policies: &[&str]) -> Decision {
    Decision::Deny {
        policies: policies.iter().map(ToString::to_string).collect(),
        errors: false,
        detail: None,
    }
}

/// The policies of a denial because of an error, and what is said about it.
pub(super) fn failed(decision: Decision) -> (Vec<String>, String) {
    match decision {
        Decision::Deny {
            policies,
            errors: true,
            detail: Some(detail),
        } => (policies, detail),
        other => panic!("not a denial because of an error: {other:?}"),
    }
}
