//! Decides on an agent's call. A call is parked exactly when it is denied now and would be permitted once
//! the tiers of the policies that deny it have approved, so the policies are evaluated at most twice.

use std::collections::{BTreeSet, HashMap};

use cedar_policy::Request;
use serde_json::{Map, Value};

use super::context::{ContextError, Facts};
use super::reads::Reads;
use super::slices::{Slice, Verdict};
use super::{Callable, Party, Policies};

/// The run a call belongs to, as policies see it in `context.run`.
#[derive(Debug, Clone, Copy)]
pub struct RunFacts<'a> {
    /// The run's id.
    pub id: &'a str,
    /// Who or what triggered it.
    pub triggered_by: &'a str,
    /// What for.
    pub purpose: &'a str,
    /// True when the agent opened no run and the gateway made one up.
    pub implicit: bool,
    /// The scopes the run has.
    pub scopes: &'a [String],
}

/// One call to decide on. The arguments have been checked against the tool's contract.
#[derive(Debug, Clone, Copy)]
pub struct CallRequest<'a> {
    /// The agent's name.
    pub agent: &'a str,
    /// The tool's name.
    pub tool: &'a str,
    /// The tool's API, which must be the one it was loaded with.
    pub api: &'a str,
    /// The arguments.
    pub arguments: &'a Map<String, Value>,
    /// The run.
    pub run: RunFacts<'a>,
    /// The tiers that have approved this call already.
    pub earned: &'a BTreeSet<String>,
    /// Milliseconds since 1970-01-01T00:00:00Z.
    pub now_millis: i64,
}

/// What becomes of a call.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// It may be forwarded.
    Permit {
        /// Ids of the policies that permit it, sorted.
        policies: Vec<String>,
    },
    /// It waits until every one of these tiers has approved.
    Park {
        /// Names of the tiers, sorted, each once.
        tiers: Vec<String>,
        /// Ids of the `@approval` policies that hold it back, sorted.
        policies: Vec<String>,
    },
    /// It is refused.
    Deny {
        /// Ids of the policies that forbid it or could not be evaluated, sorted. Empty when no policy
        /// permits it.
        policies: Vec<String>,
        /// True when a policy could not be evaluated, or the call did not fit what the policies were
        /// loaded for.
        errors: bool,
        /// For the log and the operators: why `errors` is true. Holds no argument's value.
        detail: Option<String>,
    },
}

impl Decision {
    fn unfit(detail: impl Into<String>) -> Self {
        Self::Deny {
            policies: Vec::new(),
            errors: true,
            detail: Some(detail.into()),
        }
    }

    fn deny(verdict: Verdict) -> Self {
        let errors = verdict.has_errors();
        let detail = errors.then(|| {
            format!(
                "policies that could not be evaluated: {}",
                verdict.erring.join(", ")
            )
        });
        Self::Deny {
            policies: verdict.into_policies(),
            errors,
            detail,
        }
    }
}

impl Policies {
    /// Decides on an agent's call. Everything unexpected is a denial: an unknown agent or tool, arguments
    /// that do not fit, and a policy that cannot be evaluated, whatever the others say.
    pub fn decide(&self, request: &CallRequest<'_>) -> Decision {
        let Some(agent) = self.agents.get(request.agent) else {
            return Decision::unfit("the agent is unknown to the policies");
        };
        let Some(tool) = self.tools.get(request.tool) else {
            return Decision::unfit("the tool is unknown to the policies");
        };
        if tool.api != request.api {
            return Decision::unfit("the tool belongs to another API");
        }
        let slices = self.slices.applying(&agent.rows, &tool.columns);
        self.decide_over(request, agent, tool, slices)
            .unwrap_or_else(|error| Decision::unfit(error.to_string()))
    }

    pub(super) fn decide_over<'s>(
        &self,
        request: &CallRequest<'_>,
        agent: &Party,
        tool: &Callable,
        slices: impl Iterator<Item = &'s Slice> + Clone,
    ) -> Result<Decision, ContextError> {
        let reads = slices
            .clone()
            .fold(Reads::default(), |reads, slice| reads | slice.reads);
        let facts = Facts::new(&tool.plan, request, reads)?;
        let evaluate = |approvals: &BTreeSet<&str>| -> Result<Verdict, ContextError> {
            let context = facts.context(approvals.iter().copied())?;
            let request = Request::new(
                agent.uid.clone(),
                tool.uid.clone(),
                tool.resource.clone(),
                context,
                None,
            );
            let request = request.map_err(|error| ContextError::Request(Box::new(error)))?;
            Ok(self.evaluate(&request, slices.clone()))
        };

        let mut approvals: BTreeSet<&str> = request.earned.iter().map(String::as_str).collect();
        let first = evaluate(&approvals)?;
        if first.has_errors() {
            return Ok(Decision::deny(first));
        }
        if first.permitted {
            return Ok(Decision::Permit {
                policies: first.determining,
            });
        }
        let Some(tiers) = tiers_behind(&first, &self.approvals) else {
            return Ok(Decision::deny(first));
        };
        approvals.extend(&tiers);
        let second = evaluate(&approvals)?;
        if second.permitted && !second.has_errors() {
            return Ok(Decision::Park {
                tiers: tiers.into_iter().map(str::to_owned).collect(),
                policies: first.determining,
            });
        }
        // The first verdict says what stood in the way; an error of the second one decided as well.
        Ok(Decision::deny(Verdict {
            erring: second.erring,
            ..first
        }))
    }
}

/// The tiers of the policies that deny a call, if there are such policies and every one has a tier.
fn tiers_behind<'p>(
    verdict: &Verdict,
    approvals: &'p HashMap<String, String>,
) -> Option<BTreeSet<&'p str>> {
    if verdict.determining.is_empty() {
        return None;
    }
    let tiers = verdict
        .determining
        .iter()
        .map(|policy| approvals.get(policy).map(String::as_str));
    tiers.collect()
}
