//! Step three: may this call go, must it wait, or is it refused? Kill switches first, then scopes, then policies.

use std::collections::BTreeSet;

use super::{ToolCall, record::Trail};
use crate::{
    app::App,
    clock::{self, Timestamp},
    contracts::WhileHalted,
    ids::KillSwitchId,
    policy::{CallRequest, Decision, RunFacts},
    reason::{Reason, Refusal},
};

/// Tiers that have approved this very call.
#[derive(Debug, Default)]
pub(super) struct Earned(BTreeSet<String>);

impl Earned {
    /// A call that nobody has approved.
    pub const fn none() -> Self {
        Self(BTreeSet::new())
    }

    /// A call that these tiers have approved.
    pub fn of(tiers: impl IntoIterator<Item = String>) -> Self {
        Self(tiers.into_iter().collect())
    }
}

/// A call that may be sent. Only [`authorize`] makes one; only `record` takes one.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    call: ToolCall,
    policies: Vec<String>,
    decided_at: Timestamp,
}

impl Permit {
    /// The call.
    pub const fn call(&self) -> &ToolCall {
        &self.call
    }

    /// Ids of the policies that permit it.
    pub fn policies(&self) -> &[String] {
        &self.policies
    }

    /// When that was decided.
    pub const fn decided_at(&self) -> Timestamp {
        self.decided_at
    }

    /// For `record`, which keeps it inside what it makes.
    pub(super) fn into_parts(self) -> (ToolCall, Vec<String>, Timestamp) {
        (self.call, self.policies, self.decided_at)
    }
}

/// A call that must wait.
#[derive(Debug)]
#[must_use]
pub(super) struct Parking {
    pub call: ToolCall,
    pub tiers: Vec<String>,
    pub policies: Vec<String>,
    pub decided_at: Timestamp,
}

/// A call that scopes and policies permit and a kill switch covers, whose contract says that people do it by hand then.
#[derive(Debug)]
#[must_use]
pub(super) struct ByHand {
    pub permit: Permit,
    pub kill_switch: KillSwitchId,
}

/// What was decided, short of a refusal.
#[derive(Debug)]
#[must_use]
pub(super) enum Verdict {
    Permit(Permit),
    Park(Parking),
    /// INVARIANT: its permit goes to the work list and never to `record`.
    ByHand(ByHand),
}

pub(super) fn authorize(
    app: &App,
    call: ToolCall,
    earned: &Earned,
    trail: &mut Trail,
) -> Result<Verdict, Refusal> {
    let kill_switch = app.kill_switches.covering(&call.target());
    if let Some(kill_switch) = &kill_switch
        && (call.tool.contract.while_halted == WhileHalted::Refuse
            || app.kill_switches.stops_caller(&call.target()))
    {
        return Err(halted(kill_switch.clone()));
    }
    let scope = call.tool.contract.scope.as_str();
    let run_has_it = call.caller.run.scopes.iter().any(|held| held == scope);
    if !run_has_it || !call.caller.agent.scopes.contains(scope) {
        let whose = if run_has_it { "agent" } else { "run" };
        return Err(Refusal::new(
            Reason::ScopeMissing,
            format!(
                "This tool needs the scope {scope}, which the {whose} does not have. Nothing was sent."
            ),
        ));
    }
    let Some(arguments) = call.arguments.as_object() else {
        return Err(Refusal::new(
            Reason::Internal,
            "The arguments are no object. Nothing was sent.",
        ));
    };
    let run = &call.caller.run;
    let decision = app.policies.decide(&CallRequest {
        agent: &call.caller.agent.name,
        tool: &call.tool.name,
        api: &call.tool.api,
        arguments,
        run: RunFacts {
            id: run.id.as_str(),
            triggered_by: &run.triggered_by,
            purpose: &run.purpose,
            implicit: run.implicit,
            scopes: &run.scopes,
        },
        earned: &earned.0,
        now_millis: clock::now().timestamp_millis(),
    });
    let decided_at = clock::now();
    trail.decided_at = Some(decided_at);
    match decision {
        Decision::Permit { policies } => {
            let permit = Permit {
                call,
                policies,
                decided_at,
            };
            Ok(match kill_switch {
                None => Verdict::Permit(permit),
                Some(kill_switch) => Verdict::ByHand(ByHand {
                    permit,
                    kill_switch,
                }),
            })
        }
        Decision::Park { tiers, policies } => Ok(Verdict::Park(Parking {
            call,
            tiers,
            policies,
            decided_at,
        })),
        Decision::Deny {
            policies,
            errors,
            detail,
        } => Err(denied(&call, policies, errors, detail)),
    }
}

fn denied(call: &ToolCall, policies: Vec<String>, errors: bool, detail: Option<String>) -> Refusal {
    if errors {
        tracing::error!(
            call = %call.id,
            tool = %call.tool.name,
            detail = detail.as_deref().unwrap_or_default(),
            "a policy could not be evaluated, so the call is denied"
        );
    }
    let words = match (errors, policies.is_empty()) {
        (true, _) => {
            "A policy could not be evaluated, so the call is denied. Nothing was sent; tell an operator."
        }
        (false, true) => {
            "No policy permits this call. Nothing was sent; asking again changes nothing."
        }
        (false, false) => {
            "The policies named in \"policies\" forbid this call. Nothing was sent; asking again changes nothing."
        }
    };
    let mut refusal = Refusal::new(Reason::DeniedByPolicy, words);
    refusal.policies = policies;
    refusal.audit_detail = detail.map(|detail| serde_json::json!({ "why": detail }));
    refusal
}

/// The refusal of a call that a kill switch covers.
pub(super) fn halted(kill_switch: KillSwitchId) -> Refusal {
    let mut refusal = Refusal::new(
        Reason::Halted,
        "An operator has halted this. Nothing was sent; try again after it is resumed.",
    )
    .retry_after(30);
    refusal.kill_switch = Some(kill_switch);
    refusal
}
