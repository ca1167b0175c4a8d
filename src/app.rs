//! What the gateway is while it serves: config, contracts, policies and clients, checked and joined at start. Holds no
//! behaviour of its own but the joining.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, atomic::AtomicBool},
};

use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use sqlx::PgPool;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::{
    audit::Recorder,
    call::ClassRules,
    config::{self, Config, Credential},
    contracts::{self, Catalog, Contract},
    delivery::Delivery,
    diagnostics::{Finding, SourceFile},
    ids::{KeyId, KillSwitchId},
    keys::{KnownKey, KnownKeys},
    killswitch::{KillSwitch, KillSwitches, journal::Journal},
    metrics::{Metrics, People},
    parked::{Resuming, Waiters},
    policy::{self, Policies},
    redaction::{Cut, Marks, Redactor, shown_schema},
    runs::Runs,
    secrets::Keyring,
    store::{self, StoreError},
    strangers::Strangers,
    upstream::{self, Upstream},
};

/// One tool as calls need it: names as shared texts, and what may be recorded of its arguments.
#[derive(Debug)]
pub struct Tool {
    /// The contract.
    pub contract: Arc<Contract>,
    /// Its name.
    pub name: Arc<str>,
    /// Its API.
    pub api: Arc<str>,
    /// The contract's digest.
    pub digest: Arc<str>,
    /// Which of its arguments are sensitive.
    pub marks: Marks,
    /// What of its answers is sensitive.
    pub output_marks: Marks,
    /// What of its answers the contract names; nothing where it has no output schema.
    pub output_names: Option<Cut>,
    /// What agents get of sensitive values in its answers; nothing where all of it passes.
    pub answer_rules: Option<ClassRules>,
    /// The output schema as it describes what agents get.
    pub shown_output: Option<Value>,
}

/// An API's client and what the gateway adds to every request.
pub struct ApiClient {
    /// The connections.
    pub upstream: Upstream,
    /// What lets the call in.
    pub credential: Option<Credential>,
}

/// Contracts and policies as they were found to fit the config and each other.
pub struct Rules {
    /// The contracts.
    pub catalog: Catalog,
    /// The policies.
    pub policies: Policies,
}

/// What a gateway runs with and a command without one can look at too.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// The config.
    pub config: &'a Config,
    /// The policies.
    pub policies: &'a Policies,
}

/// Everything a call needs.
pub struct App {
    /// The config.
    pub config: Config,
    /// Routes from requests to contracts.
    pub catalog: Catalog,
    /// Tools by name.
    pub tools: HashMap<String, Arc<Tool>>,
    /// The policies.
    pub policies: Policies,
    /// The policies' digest.
    pub policy_digest: Arc<str>,
    /// The clients of the APIs.
    pub apis: HashMap<Arc<str>, ApiClient>,
    /// Derived keys.
    pub keyring: Arc<Keyring>,
    /// Makes what may be recorded.
    pub redactor: Arc<Redactor>,
    /// API keys in force.
    pub keys: RwLock<Arc<KnownKeys>>,
    /// Keys whose hash is being made anew.
    pub rehashing: Arc<Mutex<HashSet<KeyId>>>,
    /// What is halted.
    pub kill_switches: KillSwitches,
    /// Where halts are kept until they are recorded.
    pub journal: Option<Journal>,
    /// Halts in the journal that an earlier gateway left there.
    pub unrecorded: Mutex<HashSet<KillSwitchId>>,
    /// Open runs.
    pub runs: Runs,
    /// The way to the records.
    pub recorder: Recorder,
    /// For reading.
    pub pool: PgPool,
    /// For operators who read the records: connections of their own, so that no question to the records holds up a call.
    pub reading: Reading,
    /// Whoever knocks without a key.
    pub strangers: Strangers,
    /// Whoever waits for a parked call.
    pub waiters: Arc<Waiters>,
    /// Approved calls that are being taken up.
    pub resuming: Resuming,
    /// Getting to people what waits for them.
    pub delivery: Arc<Delivery>,
    /// Everything under way, which shutdown waits for.
    pub tasks: TaskTracker,
    /// True once no new call is taken.
    pub stopping: AtomicBool,
    /// What the gateway counts of itself.
    pub metrics: Arc<Metrics>,
    /// How much is asked of people.
    pub people: Arc<People>,
}

/// How the records are read.
pub struct Reading {
    /// Connections that only read, and for which each statement is planned anew with what it asks for.
    pub pool: PgPool,
    /// One place for each export at a time.
    pub exports: Arc<Semaphore>,
}

/// Why the gateway could not be put together.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The master secret.
    #[error(transparent)]
    Secret(#[from] crate::secrets::SecretError),
    /// An API's client.
    #[error("the client of API {api}: {reason}")]
    Upstream {
        /// The API.
        api: String,
        /// What is wrong.
        reason: String,
    },
    /// A destination's client.
    #[error("{0}")]
    Destination(String),
    /// A kill switch that is kept cannot be understood, and must not be ignored.
    #[error("a kill switch that is kept cannot be read: {0}")]
    KillSwitch(String),
    /// The tables are older or newer than this program.
    #[error(
        "the database is at migration {found}, this program needs {needed}: give database.external.owner_url so that it can migrate, or run the matching version"
    )]
    Migrations {
        /// What stands there.
        found: i32,
        /// What is needed.
        needed: i32,
    },
}

/// Reads contracts and policies and holds them against the config and each other. The findings hold every problem and
/// every note; the rules come back only when there is no problem.
pub fn load_rules(config: &Config, files: &RuleFiles) -> (Option<Rules>, Vec<Finding>) {
    let apis = config.apis.keys().map(ToString::to_string).collect();
    let (catalog, mut findings) = contracts::load(&files.tools, &apis);
    let world = policy::World {
        tools: catalog
            .iter()
            .map(|contract| policy::ToolShape {
                name: &contract.name,
                api: &contract.api,
                consequence: contract.consequence,
                input: &contract.input,
            })
            .collect(),
        agents: config
            .agents
            .values()
            .map(|agent| policy::AgentShape {
                name: agent.name.to_string(),
                groups: agent.groups.clone(),
            })
            .collect(),
        operators: config
            .operators
            .iter()
            .map(|(name, operator)| policy::OperatorShape {
                name: name.to_string(),
                roles: operator.roles.clone(),
                groups: operator.groups.clone(),
            })
            .collect(),
        tiers: config
            .tiers
            .iter()
            .map(|(name, tier)| policy::TierShape {
                name: name.to_string(),
                members: tier
                    .requires
                    .iter()
                    .map(|requirement| requirement.member.clone())
                    .collect(),
            })
            .collect(),
        apis: config.apis.keys().map(ToString::to_string).collect(),
    };
    let (policies, more) = policy::load(&files.policies, &world);
    findings.extend(more);
    let wrong = findings.iter().any(|finding| !finding.note);
    let rules = match policies {
        Some(policies) if !wrong => Some(Rules { catalog, policies }),
        _ => None,
    };
    (rules, findings)
}

/// The texts of contracts and policies.
pub struct RuleFiles {
    /// `*.yaml`.
    pub tools: Vec<SourceFile>,
    /// `*.cedar`.
    pub policies: Vec<SourceFile>,
}

impl RuleFiles {
    /// Reads the directories that the config names.
    ///
    /// # Errors
    /// When one cannot be read or is empty.
    pub fn read(config: &Config) -> Result<Self, String> {
        Ok(Self {
            tools: config::read_directory(&config.tools, "yaml")?,
            policies: config::read_directory(&config.policies, "cedar")?,
        })
    }
}

impl App {
    /// The config and the policies.
    pub const fn setting(&self) -> Setting<'_> {
        Setting {
            config: &self.config,
            policies: &self.policies,
        }
    }

    /// Joins everything. The recorder must have been started on the same database.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn new(
        config: Config,
        rules: Rules,
        pool: PgPool,
        reading: Reading,
        recorder: Recorder,
        keyring: Arc<Keyring>,
        redactor: Arc<Redactor>,
    ) -> Result<Self, StartError> {
        let apis = clients(&config)?;
        let mut connection = pool.acquire().await.map_err(StoreError::from)?;
        let found = store::provision::schema_version(&mut connection).await?;
        let needed = store::provision::newest_version();
        if found != needed {
            return Err(StartError::Migrations { found, needed });
        }
        let policy_digest: Arc<str> = rules.policies.digest().into();
        store::audit::keep_version(
            &mut connection,
            "policies",
            "policies",
            &policy_digest,
            rules.policies.canonical(),
        )
        .await?;
        let mut tools = HashMap::new();
        for contract in rules.catalog.iter() {
            let answer_rules = answer_rules(&config, contract);
            store::audit::keep_version(
                &mut connection,
                "contract",
                &contract.name,
                &contract.digest,
                &contract.canonical,
            )
            .await?;
            tools.insert(
                contract.name.clone(),
                Arc::new(Tool {
                    name: contract.name.as_str().into(),
                    api: contract.api.as_str().into(),
                    digest: contract.digest.as_str().into(),
                    marks: Marks::of(&contract.input),
                    output_marks: contract.output.as_ref().map(Marks::of).unwrap_or_default(),
                    output_names: contract.output.as_ref().map(Cut::of),
                    shown_output: contract
                        .output
                        .as_ref()
                        .map(|schema| shown_schema(schema, &answer_rules.marked)),
                    answer_rules: (answer_rules != ClassRules::default()).then_some(answer_rules),
                    contract: Arc::clone(contract),
                }),
            );
        }
        let mut held = store::kill_switches::active(&mut connection)
            .await?
            .iter()
            .map(KillSwitch::from_row)
            .collect::<Result<Vec<_>, _>>()
            .map_err(StartError::KillSwitch)?;
        let journal = config
            .state_directory
            .as_deref()
            .map(Journal::open)
            .transpose()
            .map_err(|error| {
                StartError::KillSwitch(format!("the state directory cannot be used: {error}"))
            })?;
        let mut unrecorded = HashSet::new();
        if let Some(journal) = &journal {
            for kill_switch in journal.all().map_err(StartError::KillSwitch)? {
                // Recorded after all: held already if it still holds.
                if !store::kill_switches::is_known(&mut connection, &kill_switch.id).await? {
                    tracing::warn!(kill_switch = %kill_switch.id, "a halt that was not recorded before the last stop holds again");
                    unrecorded.insert(kill_switch.id.clone());
                    held.push(kill_switch);
                }
            }
        }
        let keys = KnownKeys::new(store::keys::all(&mut connection).await?);
        drop(connection);
        let lost = keys.lost(&keyring.secret_ids());
        if lost > 0 {
            tracing::warn!(
                lost,
                "API keys open nothing: they were hashed under a master secret that the config no longer has"
            );
        }
        let delivery = Delivery::new(
            &config,
            Arc::clone(&keyring),
            Arc::clone(&redactor),
            recorder.clone(),
            &pool,
        )
        .map_err(StartError::Destination)?;
        Ok(Self {
            catalog: rules.catalog,
            tools,
            policies: rules.policies,
            policy_digest,
            apis,
            keyring,
            redactor,
            keys: RwLock::new(Arc::new(keys)),
            rehashing: Arc::default(),
            kill_switches: KillSwitches::new(held, Arc::clone(recorder.tenure())),
            journal,
            unrecorded: Mutex::new(unrecorded),
            runs: Runs::new(recorder.clone(), pool.clone()),
            metrics: Arc::clone(recorder.metrics()),
            people: Arc::new(People::new(
                config.tiers.keys().cloned(),
                config.operators.keys().cloned(),
            )),
            recorder,
            pool,
            reading,
            strangers: Strangers::default(),
            waiters: Arc::new(Waiters::new(config.limits.max_waits_per_agent)),
            resuming: Resuming::default(),
            delivery: Arc::new(delivery),
            tasks: TaskTracker::new(),
            stopping: AtomicBool::new(false),
            config,
        })
    }
}

impl App {
    /// Hashes a key anew under the newest master secret, beside the request that brought it. Once for each key, so the tasks are
    /// no more than the keys; the gateway takes the new hash up with the next reading of the keys.
    pub fn rehash(&self, known: &KnownKey, key: &str) {
        if !self.rehashing.lock().insert(known.id.clone()) {
            return;
        }
        let (id, from) = (known.id.clone(), known.hash);
        let to = self.keyring.api_key_hash(key);
        let secret_id = self.keyring.secret_id();
        let (pool, rehashing) = (self.pool.clone(), Arc::clone(&self.rehashing));
        self.tasks.spawn(async move {
            let work = async {
                let mut connection = pool.acquire().await?;
                store::keys::rehash(&mut connection, &id, &from, &to, &secret_id).await
            };
            match work.await {
                Ok(_changed) => {
                    tracing::info!(key = %id, "a key is hashed under the newest master secret");
                }
                Err(error) => {
                    tracing::warn!(%error, key = %id, "a key could not be hashed anew; its next use tries again");
                    rehashing.lock().remove(&id);
                }
            }
        });
    }
}

/// The config's rules, and for the classes that the contract names its own.
fn answer_rules(config: &Config, contract: &Contract) -> ClassRules {
    let mut rules = config.answers;
    for (class, rule) in &contract.answers {
        rules.marked.set(class, *rule);
        rules.detected.set(class, *rule);
    }
    rules
}

fn clients(config: &Config) -> Result<HashMap<Arc<str>, ApiClient>, StartError> {
    let mut clients = HashMap::new();
    for (name, api) in &config.apis {
        let wrong = |reason: String| StartError::Upstream {
            api: name.to_string(),
            reason,
        };
        let base =
            upstream::Base::parse(&api.base_url).map_err(|error| wrong(error.to_string()))?;
        let tls = if base.https {
            Some(
                upstream::tls_config(api.ca_file.as_deref())
                    .map_err(|error| wrong(error.to_string()))?,
            )
        } else {
            None
        };
        let upstream = Upstream::new(upstream::UpstreamSettings {
            addresses: upstream::Addresses::Any,
            base,
            connect_timeout: api.connect_timeout,
            idle_timeout: api.idle_timeout,
            max_idle: api.max_connections,
            max_connections: api.max_connections,
            tls,
        })
        .map_err(|error| wrong(error.to_string()))?;
        clients.insert(
            Arc::clone(name),
            ApiClient {
                upstream,
                credential: api.credential.clone(),
            },
        );
    }
    Ok(clients)
}
