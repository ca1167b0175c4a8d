//! What an operator is shown of a parked call: the arguments as the tiers let its people see them, the rest masked.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    app::App,
    call::{ByClass, ClassRule, ClassRules},
    composition::{Case, holds},
    parked::Sealed,
    redaction::View,
    store::approvals::ApprovalRow,
};

/// What was sealed of a call, as one operator sees it.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// The arguments; gone once the call has ended.
    pub arguments: Option<Value>,
    /// The money that it is about, in words, as far as the operator sees it.
    pub amount: Option<String>,
    /// What it will touch, as it was read when it was parked.
    pub preview: Option<Value>,
    /// The agent's words.
    pub words: Option<String>,
    /// The classes of sensitive values among them that are seen in clear.
    pub seen: BTreeSet<String>,
    /// It waits, and what was sealed of it does not open: nobody can see what it is.
    pub unreadable: bool,
}

/// Opens what was sealed for an operator who decides by their own right and by that of others: `people` are all of them.
pub(super) fn opened(app: &App, people: &[&str], case: &Case, kept: Option<&[u8]>) -> Opened {
    let sealed = kept.and_then(|sealed| unsealed(app, &case.row, sealed));
    let unreadable = kept.is_some() && sealed.is_none();
    let mut view = View::new(rules_for(app, people, case));
    let mut opened = Opened {
        unreadable,
        ..Opened::default()
    };
    // Without its contract nobody can say what in it is sensitive, and it cannot be executed either.
    if let (Some(sealed), Some(tool)) = (sealed, app.tools.get(&case.row.tool)) {
        let mut arguments = Value::Object(sealed.arguments);
        view.apply(&tool.marks, &mut arguments);
        // Of what is seen, so that nothing masked is told in other words.
        let amount = &tool.contract.amount;
        opened.amount = amount.as_ref().and_then(|amount| amount.of(&arguments));
        opened.arguments = Some(arguments);
        opened.words = sealed.words.map(|words| view.text(&words));
        opened.preview = sealed.preview.map(|preview| {
            let reading = app.tools.get(&preview.tool);
            preview.shown(reading.map(|tool| &tool.output_marks), &mut view)
        });
    }
    opened.seen = view.passed;
    opened
}

/// What people see of what waits in some tiers: what those show of which they could take a seat, escalations included once
/// they are due.
fn rules_for(app: &App, people: &[&str], case: &Case) -> ClassRules {
    let own = case.tiers.iter().map(|tier| tier.tier.as_str());
    let escalated = case
        .escalations
        .iter()
        .filter(|step| step.escalated_at.is_some())
        .map(|step| step.to_tier.as_str());
    let tiers: Vec<_> = own
        .chain(escalated)
        .filter_map(|name| app.config.tiers.get(name))
        .filter(|tier| {
            tier.requires.iter().any(|requirement| {
                people
                    .iter()
                    .any(|person| holds(app, person, &requirement.member))
            })
        })
        .collect();
    let mut rules = ByClass::default();
    for class in ByClass::CLASSES {
        if !tiers
            .iter()
            .any(|tier| tier.shows.iter().any(|shown| shown == class))
        {
            rules.set(class, ClassRule::Mask);
        }
    }
    ClassRules {
        marked: rules,
        detected: rules,
    }
}

fn unsealed(app: &App, row: &ApprovalRow, sealed: &[u8]) -> Option<Sealed> {
    let plain = app.keyring.open(&row.call_id, sealed).ok()?;
    serde_json::from_slice(&plain).ok()
}

/// What an approver reads in the place of arguments that do not open.
pub const UNREADABLE: &str = "What was sealed of this call does not open with any master secret of the config, so it cannot be executed: approved, it is voided. Add the secret that was in force when it was parked to previous_master_secrets, or deny the call; the agent can make it again.";
