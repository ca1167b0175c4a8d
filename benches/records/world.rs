//! What the records of a busy organisation look like: agents, tools, runs, calls that pass, wait, fail and are refused.

use std::sync::Arc;

use serde_json::{Value, json};
use sqlx::PgConnection;
use toolgate::{
    call::Consequence,
    clock,
    entry::{Caps, Decision, Entry, Kind, Outcome},
    ids::{ApprovalId, CallId, RunId},
    json::sha256_hex,
    redaction::{Marks, Redactor},
    secrets::{Keyring, Secret},
    store::audit::keep_version,
};

/// A tool: its name and what it does to the world.
struct Tool {
    name: Arc<str>,
    api: Arc<str>,
    consequence: Consequence,
    digest: Arc<str>,
}

pub struct World {
    keys: Arc<Keyring>,
    redactor: Arc<Redactor>,
    marks: Marks,
    tools: Vec<Tool>,
    policy_digest: Arc<str>,
}

/// How a call is recorded, in the order in which its entries are committed.
pub enum Step {
    /// Committed before anything goes on: intents and whatever opens a call.
    Commit(Entry),
    /// Told, whatever happens: outcomes and refusals.
    Note(Entry),
    /// A transaction of its own: parking, votes, runs.
    Act(Entry),
}

const AGENTS: u64 = 12;
const CONSEQUENCES: [Consequence; 6] = [
    Consequence::Read,
    Consequence::Write,
    Consequence::MoneyMovement,
    Consequence::ExternalCommunication,
    Consequence::Destructive,
    Consequence::PermissionChange,
];

const TOOLS: usize = 24;
const POLICIES: &str =
    r#"{"policies":[["support-refunds","permit (principal, action, resource);"]]}"#;

/// The text of a tool's contract.
fn contract(number: usize) -> String {
    json!({"name": format!("api{}.things{number}.act", number % 4)}).to_string()
}

fn digest_of(text: &str) -> String {
    format!("sha256:{}", sha256_hex(text))
}

impl World {
    /// Keeps the texts that the entries name, as a gateway does at start.
    pub async fn keep_versions(&self, connection: &mut PgConnection) -> anyhow::Result<()> {
        for (number, tool) in self.tools.iter().enumerate() {
            let text = contract(number);
            keep_version(connection, "contract", &tool.name, &tool.digest, &text).await?;
        }
        keep_version(
            connection,
            "policies",
            "policies",
            &self.policy_digest,
            POLICIES,
        )
        .await?;
        Ok(())
    }

    pub fn new() -> anyhow::Result<Self> {
        let keys = Arc::new(Keyring::new(&Secret::new(
            "a master secret for this benchmark only",
        ))?);
        let tools = (0..TOOLS)
            .map(|number: usize| Tool {
                name: format!("api{}.things{number}.act", number % 4).into(),
                api: format!("api{}", number % 4).into(),
                consequence: CONSEQUENCES
                    .get(number % 6)
                    .copied()
                    .unwrap_or(Consequence::Read),
                digest: digest_of(&contract(number)).into(),
            })
            .collect();
        let caps = Caps {
            text_bytes: 4_096,
            document_bytes: 32_768,
        };
        Ok(Self {
            redactor: Arc::new(Redactor::new(Arc::clone(&keys), caps)),
            keys,
            marks: Marks::of(&json!({
                "type": "object",
                "properties": {"email": {"type": "string", "x-sensitivity": "pii"}},
            })),
            tools,
            policy_digest: digest_of(POLICIES).into(),
        })
    }

    pub fn redactor(&self) -> Arc<Redactor> {
        Arc::clone(&self.redactor)
    }

    /// The token of one of the values that stand in the arguments.
    pub fn token(&self, customer: u64) -> String {
        let email = json!({"email": email(customer)});
        let redacted = self.redactor.redact(&self.marks, &email);
        redacted.tokens().first().cloned().unwrap_or_default()
    }

    /// A run begins.
    pub fn run(&self, number: u64) -> (RunId, Step) {
        let run = RunId::generate();
        let entry = Entry {
            run_id: Some(run.clone()),
            agent: Some(agent(number)),
            detail: Some(json!({
                "triggered_by": format!("ticket:{number}"), "purpose": "answer a customer's question",
                "implicit": false, "scopes": ["api0.things:read", "api1.things:write"],
            })),
            ..Entry::new(Kind::RunOpened)
        };
        (run, Step::Act(entry))
    }

    /// The entries of a call. Of a hundred: 80 pass, 10 are refused, 7 wait for a person, 3 fail.
    pub fn call(&self, number: u64, run: &RunId) -> Vec<Step> {
        // Tools differ in how often they are called: the low ones most.
        let skew = spread(number) % 1_000;
        let index = usize::try_from(skew * skew / 1_000 * 24 / 1_000).unwrap_or(0);
        let Some(tool) = self.tools.get(index.min(self.tools.len() - 1)) else {
            return Vec::new();
        };
        let opening = self.opening(number, run, tool);
        match spread(number ^ 0x5eed) % 100 {
            0..80 => self.permitted(number, opening),
            80..90 => vec![Step::Note(Entry {
                decision: Some(Decision::Deny),
                reasons: vec![if number.is_multiple_of(211) {
                    "halted"
                } else {
                    "denied_by_policy"
                }],
                finished_at: Some(clock::now()),
                executed: Some(false),
                kind: Some(Kind::Refusal),
                ..opening
            })],
            90..97 => self.approved(number, opening),
            _ => vec![
                Step::Commit(intent(&opening, true)),
                Step::Note(Entry {
                    outcome: Some(Outcome::Indeterminate),
                    reasons: vec!["indeterminate"],
                    detail: Some(json!({"why": "the API's answer was lost"})),
                    ..outcome(&opening)
                }),
            ],
        }
    }

    fn opening(&self, number: u64, run: &RunId, tool: &Tool) -> Entry {
        // One customer in fifty calls is the same; the others are one of many.
        let customer = if number.is_multiple_of(50) {
            0
        } else {
            spread(number) % 100_000
        };
        let arguments = json!({
            "customer": format!("c_{customer}"), "email": email(customer), "amount_cents": spread(number) % 10_000,
            "currency": "EUR", "note": "the parcel was late, the customer asks for a part of the price",
        });
        Entry {
            opens_call: true,
            call_id: Some(CallId::generate()),
            run_id: Some(run.clone()),
            agent: Some(agent(number)),
            surface: Some("transparent"),
            api: Some(Arc::clone(&tool.api)),
            tool: Some(Arc::clone(&tool.name)),
            consequence: Some(tool.consequence),
            contract_digest: Some(Arc::clone(&tool.digest)),
            policy_digest: Some(Arc::clone(&self.policy_digest)),
            arguments_digest: Some(
                self.keys
                    .call_digest(arguments.to_string().as_bytes())
                    .into(),
            ),
            arguments: Some(self.redactor.redact(&self.marks, &arguments)),
            policies: vec!["support-refunds".to_owned()],
            received_at: Some(clock::now()),
            decided_at: Some(clock::now()),
            ..Entry::default()
        }
    }

    fn permitted(&self, number: u64, opening: Entry) -> Vec<Step> {
        let answer = json!({"id": format!("r_{number}"), "status": "done", "amount_cents": spread(number) % 10_000});
        let outcome = Entry {
            answer: Some(self.redactor.redact(&self.marks, &answer)),
            changed: Some(
                self.redactor
                    .redact(&self.marks, &json!({"/status": "done"})),
            ),
            ..outcome(&opening)
        };
        vec![Step::Commit(intent(&opening, true)), Step::Note(outcome)]
    }

    fn approved(&self, number: u64, opening: Entry) -> Vec<Step> {
        let opening = Entry {
            approval_id: Some(ApprovalId::generate()),
            ..opening
        };
        let parked = Entry {
            decision: Some(Decision::Park),
            reasons: vec!["approval_required"],
            detail: Some(
                json!({"tiers": [{"tier": "finance", "needed": 1}], "expires_at": clock::now()}),
            ),
            kind: Some(Kind::Parked),
            ..opening.clone()
        };
        let by = |kind| Entry {
            kind: Some(kind),
            call_id: opening.call_id.clone(),
            run_id: opening.run_id.clone(),
            approval_id: opening.approval_id.clone(),
            operator: Some(
                if number.is_multiple_of(997) {
                    "zoe"
                } else {
                    "ada"
                }
                .into(),
            ),
            arguments_digest: opening.arguments_digest.clone(),
            words: Some("looked at the order, it is right".to_owned()),
            detail: Some(json!({"vote": "approve", "tiers": ["finance"]})),
            ..Entry::default()
        };
        let mut steps = vec![
            Step::Act(parked),
            Step::Act(by(Kind::ApprovalViewed)),
            Step::Act(by(Kind::ApprovalVote)),
        ];
        let going = Entry {
            opens_call: false,
            ..opening
        };
        steps.push(Step::Act(intent(&going, false)));
        steps.push(Step::Note(outcome(&going)));
        steps
    }
}

fn intent(opening: &Entry, opens_call: bool) -> Entry {
    Entry {
        kind: Some(Kind::Intent),
        decision: Some(Decision::Permit),
        opens_call,
        ..opening.clone()
    }
}

fn outcome(opening: &Entry) -> Entry {
    Entry {
        call_id: opening.call_id.clone(),
        run_id: opening.run_id.clone(),
        approval_id: opening.approval_id.clone(),
        agent: opening.agent.clone(),
        api: opening.api.clone(),
        tool: opening.tool.clone(),
        forwarded_at: Some(clock::now()),
        finished_at: Some(clock::now()),
        status: Some(201),
        executed: Some(true),
        outcome: Some(Outcome::Completed),
        answer_digest: opening.arguments_digest.clone(),
        ..Entry::new(Kind::Outcome)
    }
}

fn agent(number: u64) -> Arc<str> {
    // One call in a thousand is of an agent that seldom calls.
    if number.is_multiple_of(1_009) {
        return "rare-bot".into();
    }
    format!("agent-{}", spread(number) % AGENTS).into()
}

fn email(customer: u64) -> Value {
    format!("customer{customer}@example.com").into()
}

/// The same number for the same number, and no order in them (SplitMix64).
pub const fn spread(number: u64) -> u64 {
    let mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
