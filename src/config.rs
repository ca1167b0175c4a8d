//! The gateway's configuration: `toolgate.yaml` as a person writes it, checked and resolved into
//! [`Config`]. Secrets come from `${env:NAME}` and `${file:PATH}`, never from the file itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use crate::{
    call::ClassRules,
    diagnostics::{Finding, SourceFile},
    entry::Caps,
    quorum::Member,
    secrets::{Keyring, Secret, SecretError},
    yaml::{self, Spanned},
};

mod checkpoints;
mod destinations;
mod file;
mod interpolate;
mod limits;
mod links;
mod people;
mod read;
mod records;
mod secrets;
mod tiers;
mod work_list;

pub use checkpoints::Checkpoints;
pub use destinations::{Channel, Destination, EVENTS, Email, Encryption, Endpoint};
pub use interpolate::Variables;
pub use limits::Limits;
pub use links::{Link, Links};
pub use read::{read_directory, read_file};
pub use records::Records;
pub use tiers::{Escalation, Tier};
pub use work_list::{ListFormat, WorkListCopy};

/// Everything that `serve` needs to know before it opens contracts and policies.
#[derive(Debug)]
pub struct Config {
    /// Where agents connect.
    pub agents_address: SocketAddr,
    /// Where operators connect.
    pub operators_address: SocketAddr,
    /// Where the records are.
    pub database: Database,
    /// Protects API keys, digests and parked calls.
    pub master_secret: Secret,
    /// Those before it, newest first: what they made is still recognised and opened.
    pub previous_master_secrets: Vec<Secret>,
    /// Directory of contracts (`*.yaml`, not recursive).
    pub tools: PathBuf,
    /// Directory of policies (`*.cedar`, not recursive).
    pub policies: PathBuf,
    /// Bounds that hold for every call.
    pub limits: Limits,
    /// How what is recorded is signed, and who keeps that.
    pub checkpoints: Checkpoints,
    /// What agents get of sensitive values in answers.
    pub answers: ClassRules,
    /// How long what happened is kept.
    pub records: Records,
    /// The APIs behind the gateway, by the first segment of their path.
    pub apis: BTreeMap<Arc<str>, Api>,
    /// The agents that may call.
    pub agents: BTreeMap<Arc<str>, Arc<Agent>>,
    /// The people who may approve, halt and read.
    pub operators: BTreeMap<Arc<str>, Operator>,
    /// Where halts are kept that the database does not have yet; nowhere if there is none.
    pub state_directory: Option<PathBuf>,
    /// What it takes to approve what is parked in which tier.
    pub tiers: BTreeMap<Arc<str>, Tier>,
    /// Where messages to people lead.
    pub links: Links,
    /// Whom to tell of what waits.
    pub destinations: BTreeMap<Arc<str>, Destination>,
    /// Where the work list is copied to; nowhere if there is none.
    pub work_list_copy: Option<WorkListCopy>,
}

impl Config {
    /// The keys of all master secrets.
    ///
    /// # Errors
    /// When one is too short, which loading has refused.
    pub fn keyring(&self) -> Result<Keyring, SecretError> {
        Keyring::rotated(&self.master_secret, &self.previous_master_secrets)
    }
}

/// Where PostgreSQL is.
#[derive(Debug, Clone)]
pub enum Database {
    /// A private server that this process starts and stops, with its data below this directory.
    BuiltIn {
        /// The directory.
        home: PathBuf,
    },
    /// A server that somebody else runs.
    External {
        /// For the gateway's role `toolgate_gateway`.
        url: Secret,
        /// For the role that owns the tables; runs the migrations at start when given.
        owner_url: Option<Secret>,
    },
}

/// One API behind the gateway.
#[derive(Debug, Clone)]
pub struct Api {
    /// Scheme, host, port and base path; no query.
    pub base_url: String,
    /// What the gateway adds so that the API lets the call in.
    pub credential: Option<Credential>,
    /// Certificates trusted for this API besides the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a new connection may take.
    pub connect_timeout: Duration,
    /// How long an unused connection is kept; must be below the API's own.
    pub idle_timeout: Duration,
    /// Connections to this API at the same time.
    pub max_connections: usize,
}

/// How the gateway shows itself to an API.
#[derive(Debug, Clone)]
pub enum Credential {
    /// A request header with its whole value.
    Header {
        /// For instance `authorization`.
        name: http::HeaderName,
        /// Marked sensitive.
        value: http::HeaderValue,
    },
    /// A query parameter.
    Query {
        /// The parameter's name.
        name: String,
        /// Its value.
        value: Secret,
    },
}

/// A principal that calls tools.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Its name in policies and records.
    pub name: Arc<str>,
    /// The operator who answers for it, and who therefore never approves its calls.
    pub owner: Arc<str>,
    /// Cedar groups it is a member of.
    pub groups: Vec<String>,
    /// The rights it holds.
    pub scopes: BTreeSet<Arc<str>>,
    /// Parked calls it may have waiting at the same time; one more is 429.
    pub max_pending_approvals: u32,
}

/// A person (or service) on the operators' side.
#[derive(Debug, Clone)]
pub struct Operator {
    /// Cedar roles that the operator holds.
    pub roles: Vec<String>,
    /// Cedar groups (`OperatorGroup`) that the operator is in.
    pub groups: Vec<String>,
}

impl Operator {
    /// Whether the operator is what a requirement asks for.
    pub fn is(&self, member: &Member) -> bool {
        match member {
            Member::Role(role) => self.roles.contains(role),
            Member::Group(group) => self.groups.contains(group),
        }
    }
}

/// Who executes an approved call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Execution {
    /// The gateway sends it.
    #[default]
    Gateway,
    /// It goes to the work list, and an operator does it by hand.
    WorkList,
}

/// Reads, resolves and checks a config file. Every problem found is reported, and a config comes back only
/// when there is none; notes are no problems.
pub fn load(file: &SourceFile, variables: &Variables) -> (Option<Config>, Vec<Finding>) {
    let (config, findings) = load_for_check(file, variables);
    let usable = findings.iter().all(|finding| finding.note);
    (config.filter(|_| usable), findings)
}

/// The same, but a config comes back whenever the file can be read at all, with empty places where something is wrong: good
/// enough to hold contracts and policies against it, so that all problems are told at once, and for nothing else.
pub fn load_for_check(file: &SourceFile, variables: &Variables) -> (Option<Config>, Vec<Finding>) {
    let written: file::Config = match yaml::read(file) {
        Ok(written) => written,
        Err(finding) => return (None, vec![*finding]),
    };
    let base = file.path.parent().unwrap_or(Path::new("."));
    let mut resolver = Resolver {
        file,
        base,
        variables,
        findings: Vec::new(),
    };
    let config = resolver.config(written);
    (Some(config), resolver.findings)
}

struct Resolver<'a> {
    file: &'a SourceFile,
    base: &'a Path,
    variables: &'a Variables,
    findings: Vec<Finding>,
}

impl Resolver<'_> {
    fn wrong<T>(&mut self, at: &Spanned<T>, message: impl Into<String>, help: &str) {
        self.findings
            .push(Finding::error(self.file, yaml::range(self.file, at), message).with_help(help));
    }

    fn text(&mut self, raw: &Spanned<String>) -> Option<String> {
        match self.variables.resolve(&raw.value, self.base) {
            Ok(text) => Some(text),
            Err(message) => {
                self.wrong(raw, message, "set it, or name another source");
                None
            }
        }
    }

    fn config(&mut self, written: file::Config) -> Config {
        let apis = self.apis(&written.apis);
        let operators = self.operators(&written);
        let agents = self.agents(&written);
        let tiers = self.tiers(&written, &operators, &agents);
        let master_secret = self.master_secret(&written.master_secret);
        let previous_master_secrets = self.previous(&written, master_secret.as_ref());
        let database = self.database(&written.database);
        let checkpoints = self.checkpoints(&written.checkpoints, database.as_ref());
        let recorded = self.recorded(&written.limits);
        let records = self.records(&written.records);
        let state_directory = match (&written.state_directory, &database) {
            (Some(raw), _) => self.text(raw).map(PathBuf::from),
            (None, Some(Database::BuiltIn { home })) => Some(home.join("state")),
            (None, _) => None,
        };
        Config {
            state_directory,
            agents_address: written.listeners.agents,
            operators_address: written.listeners.operators,
            database: database.unwrap_or(Database::BuiltIn {
                home: PathBuf::new(),
            }),
            master_secret: master_secret.unwrap_or(Secret::new("")),
            previous_master_secrets,
            tools: self.base.join(&written.tools),
            policies: self.base.join(&written.policies),
            checkpoints,
            answers: written.answers,
            records,
            limits: Limits::new(&written.limits, recorded),
            apis,
            agents,
            operators,
            tiers,
            links: self.links(&written),
            destinations: self.destinations(&written),
            work_list_copy: self.work_list_copy(written.work_list_copy.as_ref()),
        }
    }

    fn recorded(&mut self, written: &file::Limits) -> Caps {
        let mut caps = Caps::default();
        let most = Caps::MOST_BYTES;
        for (name, wanted, cap) in [
            (
                "max_recorded_text_bytes",
                &written.max_recorded_text_bytes,
                &mut caps.text_bytes,
            ),
            (
                "max_recorded_document_bytes",
                &written.max_recorded_document_bytes,
                &mut caps.document_bytes,
            ),
        ] {
            let Some(wanted) = wanted else { continue };
            if (Caps::LEAST_BYTES..=most).contains(&wanted.value) {
                *cap = wanted.value;
            } else {
                self.wrong(
                    wanted,
                    format!("{name} is {}", wanted.value),
                    "it must be 256 to 1048576",
                );
            }
        }
        caps
    }

    fn database(&mut self, written: &file::Database) -> Option<Database> {
        match written {
            file::Database::BuiltIn { home } => Some(Database::BuiltIn {
                home: PathBuf::from(self.text(home)?),
            }),
            file::Database::External { url, owner_url } => {
                let url = self.text(url);
                let owner_url = owner_url.as_ref().map(|raw| self.text(raw));
                Some(Database::External {
                    url: Secret::new(url?),
                    owner_url: match owner_url {
                        Some(found) => Some(Secret::new(found?)),
                        None => None,
                    },
                })
            }
        }
    }

    fn apis(&mut self, written: &BTreeMap<String, Spanned<file::Api>>) -> BTreeMap<Arc<str>, Api> {
        let mut apis = BTreeMap::new();
        for (name, spanned) in written {
            if !is_name(name) || matches!(name.as_str(), "v1" | "mcp" | "console") {
                self.wrong(
                    spanned,
                    format!("{name:?} cannot be an API's name"),
                    "use lower-case letters, digits, '-' and '_'; v1, mcp and console are the gateway's own paths",
                );
            }
            let api = self.api(&spanned.value);
            apis.insert(name.as_str().into(), api);
        }
        apis
    }

    fn api(&mut self, written: &file::Api) -> Api {
        let base_url = self.text(&written.base_url);
        let wrong = base_url
            .as_deref()
            .and_then(|url| crate::upstream::Base::parse(url).err());
        if let Some(error) = wrong {
            self.wrong(
                &written.base_url,
                error.to_string(),
                "write it as https://host[:port][/path]",
            );
        }
        Api {
            base_url: base_url.unwrap_or_default(),
            credential: written
                .credential
                .as_ref()
                .and_then(|raw| self.credential(raw)),
            ca_file: written.ca_file.as_ref().map(|path| self.base.join(path)),
            connect_timeout: Duration::from_millis(written.connect_timeout_ms),
            idle_timeout: Duration::from_millis(written.idle_timeout_ms),
            max_connections: written.max_connections,
        }
    }

    fn credential(&mut self, written: &file::Credential) -> Option<Credential> {
        match written {
            file::Credential::Header { name, value } => {
                let text = self.text(value)?;
                let header =
                    http::HeaderName::from_bytes(name.value.to_ascii_lowercase().as_bytes());
                let content = http::HeaderValue::from_str(&text);
                match (header, content) {
                    (Ok(name), Ok(mut value)) => {
                        value.set_sensitive(true);
                        Some(Credential::Header { name, value })
                    }
                    (Err(_), _) => {
                        self.wrong(name, "not a header name", "for instance: authorization");
                        None
                    }
                    (_, Err(_)) => {
                        self.wrong(
                            value,
                            "the value cannot stand in a header",
                            "it may hold visible ASCII only",
                        );
                        None
                    }
                }
            }
            file::Credential::Query { name, value } => Some(Credential::Query {
                name: name.clone(),
                value: Secret::new(self.text(value)?),
            }),
        }
    }

    fn agents(&mut self, written: &file::Config) -> BTreeMap<Arc<str>, Arc<Agent>> {
        let mut agents = BTreeMap::new();
        for (name, spanned) in &written.agents {
            let agent = &spanned.value;
            if !is_name(name) {
                self.wrong(
                    spanned,
                    format!("{name:?} cannot be an agent's name"),
                    NAME_HELP,
                );
            }
            if !written.operators.contains_key(&agent.owner.value) {
                self.wrong(
                    &agent.owner,
                    format!(
                        "agent {name} is owned by {:?}, who is no operator",
                        agent.owner.value
                    ),
                    "name one of the operators below",
                );
            }
            for scope in &agent.scopes {
                if !is_scope(&scope.value) {
                    self.wrong(
                        scope,
                        format!("{:?} is no scope", scope.value),
                        "scopes look like payments.refunds:write",
                    );
                }
            }
            let name: Arc<str> = name.as_str().into();
            agents.insert(
                Arc::clone(&name),
                Arc::new(Agent {
                    name,
                    owner: agent.owner.value.as_str().into(),
                    groups: agent.groups.clone(),
                    scopes: agent
                        .scopes
                        .iter()
                        .map(|scope| scope.value.as_str().into())
                        .collect(),
                    max_pending_approvals: agent.max_pending_approvals,
                }),
            );
        }
        agents
    }
}

const NAME_HELP: &str = "use lower-case letters, digits, '-' and '_'";

/// Names of APIs, agents and operators: one path segment, one Cedar entity id, one label.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 64
        && name
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

/// `resource.parts:verb`, as DESIGN section 1 writes scopes.
pub fn is_scope(scope: &str) -> bool {
    let part = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    scope.len() <= 128
        && scope
            .split_once(':')
            .is_some_and(|(resource, verb)| resource.split('.').all(part) && part(verb))
}

#[cfg(test)]
mod tests;
