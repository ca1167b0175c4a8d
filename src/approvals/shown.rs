//! What an operator is shown of a parked call: the arguments as their roles let them see them, the rest masked.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    app::App,
    call::{ByClass, ClassRule, ClassRules},
    parked::Sealed,
    redaction::View,
    store::{
        self, StoreError,
        approvals::{ApprovalRow, TierRow, VoteRow},
    },
};

/// An approval with everything an approver is shown.
#[derive(Debug)]
pub struct Shown {
    /// As it is kept.
    pub row: ApprovalRow,
    /// The tiers it waits in.
    pub tiers: Vec<TierRow>,
    /// Who has voted.
    pub votes: Vec<VoteRow>,
    /// The real arguments; gone once the call has ended.
    pub arguments: Option<Value>,
    /// The agent's justification: the agent's words, not a fact.
    pub words: Option<String>,
    /// What the run is for.
    pub purpose: Option<String>,
    /// The classes of sensitive values among them that are seen in clear.
    pub seen: BTreeSet<String>,
    /// It waits, and what was sealed of it does not open: nobody can see what it is.
    pub unreadable: bool,
}

/// Reads an approval as an operator is shown it: what their roles let them see of its arguments, and the rest masked.
///
/// # Errors
/// When the database is away.
pub async fn shown(app: &App, operator: &str, row: ApprovalRow) -> Result<Shown, StoreError> {
    let mut connection = app.pool.acquire().await?;
    let tiers = store::approvals::tiers(&mut connection, &row.approval_id).await?;
    let votes = store::approvals::votes(&mut connection, &row.approval_id).await?;
    let call = store::calls::find(&mut connection, &row.call_id).await?;
    drop(connection);
    let kept = call.and_then(|call| call.sealed);
    let sealed = kept.as_deref().and_then(|sealed| opened(app, &row, sealed));
    let unreadable = kept.is_some() && sealed.is_none();
    let purpose = match row.run_id.parse() {
        Ok(run) => app
            .runs
            .find(&run)
            .await
            .ok()
            .flatten()
            .map(|run| run.purpose.clone()),
        Err(_) => None,
    };
    let mut view = View::new(rules_for(app, operator, &tiers));
    let (arguments, words) = match (sealed, app.tools.get(&row.tool)) {
        (Some(sealed), Some(tool)) => {
            let mut arguments = Value::Object(sealed.arguments);
            view.apply(&tool.marks, &mut arguments);
            let words = sealed.words.map(|words| view.text(&words));
            (Some(arguments), words)
        }
        // Without its contract nobody can say what in it is sensitive, and it cannot be executed either.
        _ => (None, None),
    };
    let seen = view.passed;
    Ok(Shown {
        row,
        tiers,
        votes,
        arguments,
        words,
        purpose,
        seen,
        unreadable,
    })
}

/// What an operator sees of what waits in some tiers: what those show of whose role they have.
fn rules_for(app: &App, operator: &str, tiers: &[TierRow]) -> ClassRules {
    let roles = app
        .config
        .operators
        .get(operator)
        .map(|operator| operator.roles.as_slice())
        .unwrap_or_default();
    let mut rules = ByClass::default();
    for class in ByClass::CLASSES {
        let shown = tiers
            .iter()
            .filter_map(|row| app.config.tiers.get(row.tier.as_str()))
            .any(|tier| {
                roles.contains(&tier.role) && tier.shows.iter().any(|shown| shown == class)
            });
        if !shown {
            rules.set(class, ClassRule::Mask);
        }
    }
    ClassRules {
        marked: rules,
        detected: rules,
    }
}

fn opened(app: &App, row: &ApprovalRow, sealed: &[u8]) -> Option<Sealed> {
    let plain = app.keyring.open(&row.call_id, sealed).ok()?;
    serde_json::from_slice(&plain).ok()
}

/// What an approver reads in the place of arguments that do not open.
pub const UNREADABLE: &str = "What was sealed of this call does not open with any master secret of the config, so it cannot be executed: approved, it is voided. Add the secret that was in force when it was parked to previous_master_secrets, or deny the call; the agent can make it again.";
