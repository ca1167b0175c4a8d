//! What operators may do: approve, deny, halt, read. The same engine and the same policies decide it,
//! denied by default, and an evaluation error denies.

use cedar_policy::{Context, EntityUid, Request, RestrictedExpression};

use super::Policies;
use super::context::{ContextError, text};

/// Something an operator can ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OperatorAction {
    /// Approve a parked call in a tier.
    Approve,
    /// Deny a parked call in a tier.
    Deny,
    /// Take an item of the work list, and say what became of its call.
    Resolve,
    /// Release or resolve what somebody else has claimed.
    TakeOver,
    /// Pull a kill switch.
    Halt,
    /// Release a kill switch.
    Resume,
    /// Lend one's right to vote to somebody else for a time.
    Delegate,
    /// End what two others agreed on; one's own delegations everybody may end.
    RevokeDelegation,
    /// Take back a standing permission; those who gave it may always.
    RevokePermission,
    /// See the parked calls.
    ReadApprovals,
    /// See the audit entries.
    ReadAudit,
    /// See which kill switches are pulled.
    ReadKillSwitches,
    /// See what was told to whom, and what did not get through.
    ReadDeliveries,
    /// Have tried again what was given up, and send to a disabled destination again.
    Redeliver,
    /// See the work list.
    ReadWork,
    /// Read the metrics.
    ReadMetrics,
}

impl OperatorAction {
    /// Every action.
    pub const ALL: [Self; 16] = [
        Self::Approve,
        Self::Deny,
        Self::Resolve,
        Self::TakeOver,
        Self::Halt,
        Self::Resume,
        Self::Delegate,
        Self::RevokeDelegation,
        Self::RevokePermission,
        Self::ReadApprovals,
        Self::ReadAudit,
        Self::ReadKillSwitches,
        Self::ReadDeliveries,
        Self::Redeliver,
        Self::ReadWork,
        Self::ReadMetrics,
    ];

    /// The id of the Cedar action. None contains a dot, which every tool's name does.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Approve => "approve",
            Self::Deny => "deny",
            Self::Resolve => "resolve",
            Self::TakeOver => "take_over",
            Self::Halt => "halt",
            Self::Resume => "resume",
            Self::Delegate => "delegate",
            Self::RevokeDelegation => "revoke_delegation",
            Self::RevokePermission => "revoke_permission",
            Self::ReadApprovals => "read_approvals",
            Self::ReadAudit => "read_audit",
            Self::ReadKillSwitches => "read_kill_switches",
            Self::ReadDeliveries => "read_deliveries",
            Self::Redeliver => "redeliver",
            Self::ReadWork => "read_work",
            Self::ReadMetrics => "read_metrics",
        }
    }
}

/// What an operator acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OperatorResource<'a> {
    /// The tier in which a call is parked, by name.
    Tier(&'a str),
    /// The gateway as a whole.
    Gateway,
}

/// The `context` of an operator's action.
#[derive(Debug, Clone, Copy)]
pub enum OperatorContext<'a> {
    /// For `approve`, `deny`, `resolve`, `take_over` and `revoke_permission`: the call.
    Approval(ApprovalFacts<'a>),
    /// For `halt` and `resume`: the scope of the kill switch.
    KillSwitch {
        /// What kind of thing is halted: `tool`, `agent`, …
        kind: &'a str,
        /// Which one.
        id: &'a str,
    },
    /// For `delegate` and `revoke_delegation`: between whom.
    Delegation {
        /// Whose right it is.
        from: &'a str,
        /// Who may use it.
        to: &'a str,
    },
    /// For the other actions.
    Empty,
}

/// A parked call, as policies on approving see it.
#[derive(Debug, Clone, Copy)]
pub struct ApprovalFacts<'a> {
    /// The agent that asked.
    pub agent: &'a str,
    /// The person the agent belongs to.
    pub owner: &'a str,
    /// Who or what triggered the run.
    pub triggered_by: &'a str,
    /// The tool's name.
    pub tool: &'a str,
    /// The tool's API.
    pub api: &'a str,
    /// The tool's consequence, by its name.
    pub consequence: &'a str,
    /// The run's id.
    pub run: &'a str,
}

/// Whether an operator may act.
#[must_use]
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OperatorDecision {
    /// True only if a policy permits, none forbids and none failed.
    pub permitted: bool,
    /// Ids of the policies that decided, sorted; empty when nothing applied.
    pub policies: Vec<String>,
    /// True when a policy could not be evaluated.
    pub errors: bool,
}

impl Policies {
    /// Decides whether an operator may act. An operator, a tier or a combination of action, resource and
    /// context that does not exist is not permitted.
    pub fn decide_operator(
        &self,
        operator: &str,
        action: OperatorAction,
        resource: OperatorResource<'_>,
        context: OperatorContext<'_>,
    ) -> OperatorDecision {
        let (Some(operator), Some(acting)) = (
            self.operators.get(operator),
            self.operator_actions.get(&action),
        ) else {
            return OperatorDecision::default();
        };
        let Some(resource) = self.operator_resource(action, resource) else {
            return OperatorDecision::default();
        };
        let Ok(Some(context)) = operator_context(action, context) else {
            return OperatorDecision::default();
        };
        let request = Request::new(
            operator.uid.clone(),
            acting.uid.clone(),
            resource.clone(),
            context,
            None,
        );
        let Ok(request) = request else {
            return OperatorDecision::default();
        };
        let slices = self.slices.applying(&operator.rows, &acting.columns);
        let verdict = self.evaluate(&request, slices);
        let errors = verdict.has_errors();
        OperatorDecision {
            permitted: verdict.permitted && !errors,
            errors,
            policies: verdict.into_policies(),
        }
    }

    fn operator_resource(
        &self,
        action: OperatorAction,
        resource: OperatorResource<'_>,
    ) -> Option<&EntityUid> {
        use OperatorAction::{Approve, Deny};
        match (action, resource) {
            (Approve | Deny, OperatorResource::Tier(tier)) => self.tiers.get(tier),
            (Approve | Deny, OperatorResource::Gateway) | (_, OperatorResource::Tier(_)) => None,
            (_, OperatorResource::Gateway) => Some(&self.gateway),
        }
    }
}

/// `None` when the action has another context.
fn operator_context(
    action: OperatorAction,
    context: OperatorContext<'_>,
) -> Result<Option<Context>, ContextError> {
    use OperatorAction::{
        Approve, Delegate, Deny, Halt, ReadApprovals, ReadAudit, ReadDeliveries, ReadKillSwitches,
        ReadMetrics, ReadWork, Redeliver, Resolve, Resume, RevokeDelegation, RevokePermission,
        TakeOver,
    };
    let pairs: Vec<(&str, RestrictedExpression)> = match (action, context) {
        (
            Approve | Deny | Resolve | TakeOver | RevokePermission,
            OperatorContext::Approval(facts),
        ) => vec![
            ("agent", text(facts.agent)),
            ("owner", text(facts.owner)),
            ("triggered_by", text(facts.triggered_by)),
            ("tool", text(facts.tool)),
            ("api", text(facts.api)),
            ("consequence", text(facts.consequence)),
            ("run", text(facts.run)),
        ],
        (Halt | Resume, OperatorContext::KillSwitch { kind, id }) => {
            vec![("kind", text(kind)), ("id", text(id))]
        }
        (Delegate | RevokeDelegation, OperatorContext::Delegation { from, to }) => {
            vec![("from", text(from)), ("to", text(to))]
        }
        (
            ReadApprovals | ReadAudit | ReadKillSwitches | ReadDeliveries | Redeliver | ReadWork
            | ReadMetrics,
            OperatorContext::Empty,
        ) => Vec::new(),
        _ => return Ok(None),
    };
    let pairs = pairs
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value));
    Ok(Some(Context::from_pairs(pairs).map_err(Box::new)?))
}
