//! The kill switch: what is halted now, in memory, where it works without the database. Nothing is sent to an API
//! but through [`Sending`], which looks at it in the same moment.

use std::sync::Arc;

use parking_lot::RwLock;
use serde_json::{Value, json};

use crate::{
    call::Consequence,
    clock::Timestamp,
    ids::KillSwitchId,
    store::kill_switches::KillSwitchRow,
    tenure::Tenure,
    upstream::{Gate, Halted},
};

pub mod journal;

/// What a kill switch stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Every call.
    Everything,
    /// Calls of one API's tools.
    Api(Arc<str>),
    /// Calls of one tool.
    Tool(Arc<str>),
    /// Calls of every tool of one consequence.
    Consequence(Consequence),
    /// Calls of one agent.
    Agent(Arc<str>),
    /// Calls in one run.
    Run(Arc<str>),
}

impl Scope {
    /// The scope of a `kind` and an `id`, as the REST interface and the table have them.
    ///
    /// # Errors
    /// A sentence that says what is missing or too much.
    pub fn parse(kind: &str, id: Option<&str>) -> Result<Self, String> {
        if kind == "everything" {
            return match id {
                None => Ok(Self::Everything),
                Some(_) => Err("a halt of everything takes no id".to_owned()),
            };
        }
        let named = || {
            id.filter(|id| !id.is_empty())
                .ok_or_else(|| format!("a halt of kind {kind} needs an id"))
        };
        match kind {
            "api" => Ok(Self::Api(named()?.into())),
            "tool" => Ok(Self::Tool(named()?.into())),
            "agent" => Ok(Self::Agent(named()?.into())),
            "run" => Ok(Self::Run(named()?.into())),
            "consequence" => {
                let name = named()?;
                Consequence::ALL
                    .into_iter()
                    .find(|consequence| consequence.as_str() == name)
                    .map(Self::Consequence)
                    .ok_or_else(|| format!("{name:?} is no consequence"))
            }
            _ => {
                Err("kind must be one of everything, api, tool, consequence, agent, run".to_owned())
            }
        }
    }

    /// The kind, as the REST interface and the table have it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Everything => "everything",
            Self::Api(_) => "api",
            Self::Tool(_) => "tool",
            Self::Consequence(_) => "consequence",
            Self::Agent(_) => "agent",
            Self::Run(_) => "run",
        }
    }

    /// Which one; `None` for everything.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Everything => None,
            Self::Api(id) | Self::Tool(id) | Self::Agent(id) | Self::Run(id) => Some(id),
            Self::Consequence(consequence) => Some(consequence.as_str()),
        }
    }

    /// `{"kind": …, "id": …}`.
    pub fn to_json(&self) -> Value {
        match self.id() {
            None => json!({"kind": self.kind()}),
            Some(id) => json!({"kind": self.kind(), "id": id}),
        }
    }

    fn covers(&self, target: &Target<'_>) -> bool {
        match self {
            Self::Everything => true,
            Self::Api(id) => **id == *target.api,
            Self::Tool(id) => **id == *target.tool,
            Self::Consequence(consequence) => *consequence == target.consequence,
            Self::Agent(id) => **id == *target.agent,
            Self::Run(id) => **id == *target.run,
        }
    }
}

/// What a call is, as far as kill switches care.
#[derive(Debug, Clone, Copy)]
#[expect(missing_docs, reason = "the words of DESIGN section 1")]
pub struct Target<'a> {
    pub api: &'a str,
    pub tool: &'a str,
    pub consequence: Consequence,
    pub agent: &'a str,
    pub run: &'a str,
}

/// One pulled kill switch.
#[derive(Debug, Clone)]
pub struct KillSwitch {
    /// Its id.
    pub id: KillSwitchId,
    /// What it stops.
    pub scope: Scope,
    /// Why.
    pub reason: String,
    /// Who pulled it.
    pub operator: Arc<str>,
    /// Since when it holds.
    pub pulled_at: Timestamp,
}

impl KillSwitch {
    /// As it is kept.
    pub fn to_row(&self) -> KillSwitchRow {
        KillSwitchRow {
            kill_switch_id: self.id.to_string(),
            kind: self.scope.kind().to_owned(),
            target: self.scope.id().map(str::to_owned),
            reason: self.reason.clone(),
            operator: self.operator.to_string(),
            pulled_at: self.pulled_at,
        }
    }

    /// As it was kept.
    ///
    /// # Errors
    /// For a row that no gateway wrote: what cannot be understood must not be taken for *not halted*.
    pub fn from_row(row: &KillSwitchRow) -> Result<Self, String> {
        Ok(Self {
            id: row
                .kill_switch_id
                .parse()
                .map_err(|_not_an_id| format!("{:?} is no kill switch id", row.kill_switch_id))?,
            scope: Scope::parse(&row.kind, row.target.as_deref())?,
            reason: row.reason.clone(),
            operator: row.operator.as_str().into(),
            pulled_at: row.pulled_at,
        })
    }
}

/// Every kill switch that holds. A call that is about to be sent holds the read lock while its bytes go to the
/// socket; pulling takes the write lock. So when [`KillSwitches::pull`] returns, whatever it covers has either begun to
/// be sent before, or never will be. Beside it stands whether this gateway may send at all.
#[derive(Debug)]
pub struct KillSwitches {
    held: RwLock<Vec<KillSwitch>>,
    tenure: Arc<Tenure>,
}

impl KillSwitches {
    /// Those that were kept, at start.
    pub const fn new(held: Vec<KillSwitch>, tenure: Arc<Tenure>) -> Self {
        Self {
            held: RwLock::new(held),
            tenure,
        }
    }

    /// Nothing is sent any more once this returns, for good: whoever comes next may say that it is halted.
    pub fn close(&self) {
        let held = self.held.write();
        self.tenure.end();
        drop(held);
    }

    /// Whether this gateway may send what no kill switch stops.
    pub fn may_send(&self) -> bool {
        self.tenure.holds()
    }

    /// Holds from the moment this returns.
    pub fn pull(&self, kill_switch: KillSwitch) {
        self.held.write().push(kill_switch);
    }

    /// Lets go. False when it is not held.
    pub fn release(&self, id: &KillSwitchId) -> bool {
        let mut held = self.held.write();
        let before = held.len();
        held.retain(|kill_switch| kill_switch.id != *id);
        held.len() < before
    }

    /// The first kill switch that covers a call.
    pub fn covering(&self, target: &Target<'_>) -> Option<KillSwitchId> {
        self.held
            .read()
            .iter()
            .find(|kill_switch| kill_switch.scope.covers(target))
            .map(|kill_switch| kill_switch.id.clone())
    }

    /// Whether a kill switch stops the caller itself, its agent or its run, and not only the way to the API: then nobody does
    /// its calls by hand either.
    pub fn stops_caller(&self, target: &Target<'_>) -> bool {
        self.held.read().iter().any(|kill_switch| {
            matches!(kill_switch.scope, Scope::Agent(_) | Scope::Run(_))
                && kill_switch.scope.covers(target)
        })
    }

    /// All that hold, oldest first.
    pub fn all(&self) -> Vec<KillSwitch> {
        self.held.read().clone()
    }
}

/// The right to send one call, asked for at the very moment of sending.
pub struct Sending<'a> {
    switches: &'a KillSwitches,
    target: Target<'a>,
}

impl<'a> Sending<'a> {
    /// Sends nothing yet.
    pub const fn new(switches: &'a KillSwitches, target: Target<'a>) -> Self {
        Self { switches, target }
    }
}

impl Gate for Sending<'_> {
    fn with_permission<R>(&self, send: impl FnOnce() -> R) -> Result<R, Halted> {
        let held = self.switches.held.read();
        let stops = |kill_switch: &KillSwitch| kill_switch.scope.covers(&self.target);
        if held.iter().any(stops) || !self.switches.may_send() {
            return Err(Halted);
        }
        // INVARIANT: the read lock is held while the bytes are written, so no halt is acknowledged in between.
        let sent = send();
        drop(held);
        Ok(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    const REFUND: Target<'static> = Target {
        api: "desk",
        tool: "desk.refunds.create",
        consequence: Consequence::MoneyMovement,
        agent: "support-bot",
        run: "run_1",
    };

    fn switches() -> KillSwitches {
        let tenure = Tenure::default();
        tenure.confirm(std::time::Instant::now());
        KillSwitches::new(Vec::new(), Arc::new(tenure))
    }

    fn pulled(scope: Scope) -> KillSwitch {
        KillSwitch {
            id: KillSwitchId::generate(),
            scope,
            reason: "test".to_owned(),
            operator: "ada".into(),
            pulled_at: clock::now(),
        }
    }

    #[test]
    fn each_scope_stops_what_it_names_and_nothing_else() {
        let cases = [
            ("everything", None, true),
            ("api", Some("desk"), true),
            ("api", Some("etcd"), false),
            ("tool", Some("desk.refunds.create"), true),
            ("tool", Some("desk.refunds"), false),
            ("consequence", Some("money_movement"), true),
            ("consequence", Some("read"), false),
            ("agent", Some("support-bot"), true),
            ("agent", Some("support"), false),
            ("run", Some("run_1"), true),
            ("run", Some("run_2"), false),
        ];
        for (kind, id, stops) in cases {
            let switches = switches();
            let kill_switch = pulled(Scope::parse(kind, id).unwrap());
            let id_of = kill_switch.id.clone();
            switches.pull(kill_switch);
            assert_eq!(switches.covering(&REFUND).is_some(), stops, "{kind} {id:?}");
            let mut sent = false;
            let result = Sending::new(&switches, REFUND).with_permission(|| sent = true);
            assert_eq!(result.is_err(), stops, "{kind} {id:?}");
            assert_eq!(sent, !stops, "{kind} {id:?}");
            assert!(switches.release(&id_of));
            assert!(switches.covering(&REFUND).is_none());
        }
    }

    #[test]
    fn a_scope_that_says_nothing_clear_is_refused() {
        for (kind, id) in [
            ("everything", Some("x")),
            ("tool", None),
            ("tool", Some("")),
            ("consequence", Some("money")),
            ("planet", Some("earth")),
        ] {
            assert!(Scope::parse(kind, id).is_err(), "{kind} {id:?}");
        }
    }

    #[test]
    fn a_halt_waits_for_whoever_is_sending_and_stops_the_next() {
        let switches = Arc::new(switches());
        let (entered, has_entered) = std::sync::mpsc::channel();
        let (finish, may_finish) = std::sync::mpsc::channel::<()>();
        let sender = std::thread::spawn({
            let switches = Arc::clone(&switches);
            move || {
                Sending::new(&switches, REFUND)
                    .with_permission(|| {
                        entered.send(()).unwrap();
                        may_finish.recv().unwrap();
                        clock::now()
                    })
                    .unwrap()
            }
        });
        has_entered.recv().unwrap();
        let halter = std::thread::spawn({
            let switches = Arc::clone(&switches);
            move || {
                switches.pull(pulled(Scope::Everything));
                clock::now()
            }
        });
        std::thread::sleep(std::time::Duration::from_millis(50));
        assert!(
            !halter.is_finished(),
            "acknowledged while a call was being sent"
        );
        finish.send(()).unwrap();
        let sent_at = sender.join().unwrap();
        let acknowledged_at = halter.join().unwrap();
        assert!(sent_at <= acknowledged_at);
        assert!(
            Sending::new(&switches, REFUND)
                .with_permission(|| ())
                .is_err()
        );
    }

    #[test]
    fn a_gateway_that_may_not_send_sends_nothing_though_nothing_is_halted() {
        let switches = KillSwitches::new(Vec::new(), Arc::default());
        let send = |switches: &KillSwitches| Sending::new(switches, REFUND).with_permission(|| ());
        assert!(send(&switches).is_err(), "before its tenure began");
        switches.tenure.confirm(std::time::Instant::now());
        assert!(send(&switches).is_ok());
        switches.close();
        assert!(send(&switches).is_err(), "after it was closed");
    }
}
