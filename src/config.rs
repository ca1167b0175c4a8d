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
    diagnostics::{Finding, SourceFile},
    secrets::{Keyring, Secret},
    yaml::{self, Spanned},
};

mod file;
mod interpolate;
mod limits;
mod read;

pub use interpolate::Variables;
pub use limits::Limits;
pub use read::{read_directory, read_file};

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
    /// Directory of contracts (`*.yaml`, not recursive).
    pub tools: PathBuf,
    /// Directory of policies (`*.cedar`, not recursive).
    pub policies: PathBuf,
    /// Bounds that hold for every call.
    pub limits: Limits,
    /// The APIs behind the gateway, by the first segment of their path.
    pub apis: BTreeMap<Arc<str>, Api>,
    /// The agents that may call.
    pub agents: BTreeMap<Arc<str>, Arc<Agent>>,
    /// The people who may approve, halt and read.
    pub operators: BTreeMap<Arc<str>, Operator>,
    /// Who may approve what is parked in which tier.
    pub tiers: BTreeMap<Arc<str>, Tier>,
    /// Where halts are kept that the database does not have yet; nowhere if there is none.
    pub state_directory: Option<PathBuf>,
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
}

/// What it takes to approve a parked call.
#[derive(Debug, Clone)]
pub struct Tier {
    /// The role whose members may approve.
    pub role: String,
    /// How many different people must.
    pub approvals: u32,
    /// After this time a pending approval becomes *not executed*.
    pub expires_in: Duration,
    /// Who executes what is approved here.
    pub execution: Execution,
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
/// when there is none.
pub fn load(file: &SourceFile, variables: &Variables) -> (Option<Config>, Vec<Finding>) {
    let (config, findings) = load_for_check(file, variables);
    (config.filter(|_| findings.is_empty()), findings)
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
        let tiers = self.tiers(&written);
        let master_secret = self.master_secret(&written.master_secret);
        let database = self.database(&written.database);
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
            tools: self.base.join(&written.tools),
            policies: self.base.join(&written.policies),
            limits: Limits::from(&written.limits),
            apis,
            agents,
            operators,
            tiers,
        }
    }

    fn master_secret(&mut self, raw: &Spanned<String>) -> Option<Secret> {
        let secret = Secret::new(self.text(raw)?);
        if let Err(error) = Keyring::new(&secret) {
            self.wrong(
                raw,
                error.to_string(),
                "make one with: openssl rand -hex 32",
            );
            return None;
        }
        if !raw.value.contains("${") {
            self.wrong(
                raw,
                "the master secret stands in the config file itself",
                "take it from ${env:NAME} or ${file:PATH}",
            );
        }
        Some(secret)
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

    fn operators(&mut self, written: &file::Config) -> BTreeMap<Arc<str>, Operator> {
        let mut operators = BTreeMap::new();
        for (name, spanned) in &written.operators {
            if !is_name(name) {
                self.wrong(
                    spanned,
                    format!("{name:?} cannot be an operator's name"),
                    NAME_HELP,
                );
            }
            operators.insert(
                name.as_str().into(),
                Operator {
                    roles: spanned.value.roles.clone(),
                },
            );
        }
        operators
    }

    fn tiers(&mut self, written: &file::Config) -> BTreeMap<Arc<str>, Tier> {
        let mut tiers = BTreeMap::new();
        for (name, spanned) in &written.tiers {
            let tier = &spanned.value;
            let members = written
                .operators
                .values()
                .filter(|operator| operator.value.roles.contains(&tier.role))
                .count();
            if tier.approvals == 0 {
                self.wrong(
                    spanned,
                    format!("tier {name} needs no approval at all"),
                    "approvals must be 1 or more",
                );
            } else if members < usize::try_from(tier.approvals).unwrap_or(usize::MAX) {
                self.wrong(
                    spanned,
                    format!(
                        "tier {name} needs {} people, but role {} has {members}",
                        tier.approvals, tier.role
                    ),
                    "nothing parked there could ever be approved: give the role to more operators",
                );
            }
            if tier.expires_in_seconds == 0 {
                self.wrong(
                    spanned,
                    format!("tier {name} expires at once"),
                    "expires_in_seconds must be 1 or more",
                );
            }
            tiers.insert(
                name.as_str().into(),
                Tier {
                    role: tier.role.clone(),
                    approvals: tier.approvals,
                    expires_in: Duration::from_secs(tier.expires_in_seconds),
                    execution: tier.execution,
                },
            );
        }
        tiers
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
