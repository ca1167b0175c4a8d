//! Where people are told what waits for them: webhooks, Slack, mail. Written, checked and resolved here.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use base64::Engine as _;
use serde::Deserialize;

use super::{NAME_HELP, Resolver, file, is_name};
use crate::{secrets::Secret, upstream, yaml::Spanned};

mod written;

use written::Mail;
pub(super) use written::Written;

/// Everything that can be told.
pub const EVENTS: [&str; 10] = [
    "approval.created",
    "approval.approved",
    "approval.denied",
    "approval.expired",
    "approval.voided",
    "call.completed",
    "call.failed",
    "call.indeterminate",
    "halt.pulled",
    "halt.released",
];

/// Tries after the first, as Standard Webhooks 1.0.0 proposes them: over three days.
const RETRY_SECONDS: [u64; 9] = [5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400];
/// Seven days: events are kept for twice as long.
const MAX_AGE_SECONDS_MOST: u64 = 604_800;
const MAX_TRIES: usize = 20;

/// One destination.
#[derive(Debug, Clone)]
pub struct Destination {
    /// How it is reached.
    pub channel: Channel,
    /// The events it gets.
    pub events: BTreeSet<String>,
    /// The tiers whose approvals it gets; all where there are none. Halts have no tier.
    pub tiers: BTreeSet<String>,
    /// How long one try may take.
    pub timeout: Duration,
    /// Pauses between the tries.
    pub retries: Vec<Duration>,
    /// After this long a delivery is given up.
    pub max_age: Duration,
    /// Deliveries that may wait at the same time; beyond it the oldest are given up.
    pub max_pending: u32,
}

/// How a destination is reached.
#[derive(Debug, Clone)]
pub enum Channel {
    /// A request signed as Standard Webhooks wants it.
    Webhook {
        /// Where.
        endpoint: Endpoint,
        /// Keys that sign, all of them: two while one takes the other's place.
        secrets: Vec<Secret>,
    },
    /// An incoming webhook as Slack has them. Whoever knows its URL may write, so the URL is a secret.
    Slack {
        /// Where.
        endpoint: Endpoint,
    },
    /// A mail.
    Email(Box<Email>),
}

/// A URL with what a connection to it may be.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Scheme, host and port.
    pub base: upstream::Base,
    /// Path and query.
    pub path: Secret,
    /// Certificates trusted besides the system's.
    pub ca_file: Option<PathBuf>,
    /// Where the host may be.
    pub addresses: upstream::Addresses,
}

/// How mail is handed over.
#[derive(Debug, Clone)]
pub struct Email {
    /// The mail server.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// What protects the connection.
    pub encryption: Encryption,
    /// User name and password.
    pub login: Option<(String, Secret)>,
    /// The sender.
    pub from: Option<lettre::message::Mailbox>,
    /// The recipients.
    pub to: Vec<lettre::message::Mailbox>,
    /// Certificates trusted besides the system's.
    pub ca_file: Option<PathBuf>,
}

/// What protects a connection to a mail server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// TLS from the first byte (RFC 8314).
    Tls,
    /// TLS after STARTTLS (RFC 3207), and nothing without it.
    Starttls,
    /// Nothing.
    None,
}

const SECRET_HELP: &str = "make one with: echo whsec_$(openssl rand -base64 32)";
const FROM_ELSEWHERE: &str = "take it from ${env:NAME} or ${file:PATH}";

impl Resolver<'_> {
    /// The operators' base URL as people reach it, without a slash at its end.
    pub(super) fn public_url(&mut self, written: &file::Config) -> Option<String> {
        let raw = written.public_url.as_ref()?;
        let url = self.text(raw)?;
        if let Err(error) = upstream::Base::parse(&url) {
            self.wrong(raw, error.to_string(), "write it as https://host[:port]");
        }
        Some(url.trim_end_matches('/').to_owned())
    }

    pub(super) fn destinations(
        &mut self,
        written: &file::Config,
    ) -> BTreeMap<Arc<str>, Destination> {
        let mut destinations = BTreeMap::new();
        for (name, spanned) in &written.destinations {
            if !is_name(name) {
                self.wrong(
                    spanned,
                    format!("{name:?} cannot be a destination's name"),
                    NAME_HELP,
                );
            }
            let is_for_people = spanned.value.slack.is_some() || spanned.value.email.is_some();
            if is_for_people && written.public_url.is_none() && !written.links.are_all_given() {
                self.wrong(
                    spanned,
                    format!("the messages of {name} would have no link"),
                    "set public_url, the base URL under which people reach the operators' listener, or both links",
                );
            }
            if let Some(destination) = self.destination(name, spanned, written) {
                destinations.insert(name.as_str().into(), destination);
            }
        }
        destinations
    }

    fn destination(
        &mut self,
        name: &str,
        spanned: &Spanned<Written>,
        config: &file::Config,
    ) -> Option<Destination> {
        let written = &spanned.value;
        for event in &written.events {
            if !EVENTS.contains(&event.value.as_str()) {
                let message = format!("there is no event {:?}", event.value);
                self.wrong(event, message, &format!("events are {}", EVENTS.join(", ")));
            }
        }
        for tier in &written.tiers {
            if !config.tiers.contains_key(&tier.value) {
                let message = format!("there is no tier {:?}", tier.value);
                self.wrong(tier, message, "name one of the tiers of this config");
            }
        }
        let retries = written
            .retry_seconds
            .clone()
            .unwrap_or_else(|| RETRY_SECONDS.to_vec());
        let bounds = [
            (
                (1..=60).contains(&written.timeout_seconds),
                "timeout_seconds must be from 1 to 60",
            ),
            (
                retries.len() <= MAX_TRIES && retries.iter().all(|pause| *pause > 0),
                "retry_seconds takes up to 20 pauses of 1 second or more",
            ),
            (
                (1..=MAX_AGE_SECONDS_MOST).contains(&written.max_age_seconds),
                "max_age_seconds must be from 1 to 604800, which is seven days",
            ),
            (
                (1..=1_000_000).contains(&written.max_pending),
                "max_pending must be from 1 to 1000000",
            ),
        ];
        for (_, message) in bounds.into_iter().filter(|(holds, _)| !holds) {
            self.wrong(spanned, format!("destination {name}: {message}"), message);
        }
        let text = |list: &[Spanned<String>]| list.iter().map(|one| one.value.clone()).collect();
        Some(Destination {
            channel: self.channel(name, spanned)?,
            events: if written.events.is_empty() {
                EVENTS.map(str::to_owned).into()
            } else {
                text(&written.events)
            },
            tiers: text(&written.tiers),
            timeout: Duration::from_secs(written.timeout_seconds),
            retries: retries.into_iter().map(Duration::from_secs).collect(),
            max_age: Duration::from_secs(written.max_age_seconds),
            max_pending: written.max_pending,
        })
    }

    fn channel(&mut self, name: &str, spanned: &Spanned<Written>) -> Option<Channel> {
        let written = &spanned.value;
        match (&written.webhook, &written.slack, &written.email) {
            (Some(webhook), None, None) => {
                if webhook.secrets.is_empty() {
                    self.wrong(
                        &webhook.url,
                        format!("the requests of {name} would not be signed"),
                        SECRET_HELP,
                    );
                }
                let secrets = webhook
                    .secrets
                    .iter()
                    .filter_map(|raw| self.signing_secret(raw))
                    .collect();
                Some(Channel::Webhook {
                    endpoint: self.endpoint(
                        &webhook.url,
                        webhook.ca_file.as_ref(),
                        webhook.allow_private_addresses,
                        webhook.allow_unencrypted,
                    )?,
                    secrets,
                })
            }
            (None, Some(slack), None) => {
                if !slack.url.value.contains("${") {
                    self.wrong(
                        &slack.url,
                        "whoever knows a Slack webhook's URL can write to its channel, and it stands in the config file itself",
                        FROM_ELSEWHERE,
                    );
                }
                Some(Channel::Slack {
                    endpoint: self.endpoint(
                        &slack.url,
                        slack.ca_file.as_ref(),
                        slack.allow_private_addresses,
                        slack.allow_unencrypted,
                    )?,
                })
            }
            (None, None, Some(mail)) => Some(Channel::Email(Box::new(self.email(mail)?))),
            _ => {
                self.wrong(
                    spanned,
                    format!("destination {name} must have one of webhook, slack and email"),
                    "write a destination for each",
                );
                None
            }
        }
    }

    fn signing_secret(&mut self, raw: &Spanned<String>) -> Option<Secret> {
        let text = self.text(raw)?;
        if !raw.value.contains("${") {
            self.wrong(
                raw,
                "a signing secret stands in the config file itself",
                FROM_ELSEWHERE,
            );
        }
        let key = text
            .strip_prefix("whsec_")
            .and_then(|key| base64::engine::general_purpose::STANDARD.decode(key).ok())
            .filter(|key| (24..=64).contains(&key.len()));
        if key.is_none() {
            self.wrong(
                raw,
                "a signing secret must be whsec_ and the base64 of 24 to 64 random bytes",
                SECRET_HELP,
            );
            return None;
        }
        Some(Secret::new(text))
    }

    fn endpoint(
        &mut self,
        raw: &Spanned<String>,
        ca_file: Option<&PathBuf>,
        allow_private_addresses: bool,
        allow_unencrypted: bool,
    ) -> Option<Endpoint> {
        let text = self.text(raw)?;
        let help = "write it as https://host[:port]/path";
        let Ok(uri) = http::Uri::try_from(text.as_str()) else {
            self.wrong(raw, "this is not a URL", help);
            return None;
        };
        let (scheme, authority) = (uri.scheme_str(), uri.authority().map(|part| part.as_str()));
        let origin = format!(
            "{}://{}",
            scheme.unwrap_or_default(),
            authority.unwrap_or_default()
        );
        if text.contains('#') {
            self.wrong(raw, "a fragment is never sent: remove it", help);
        }
        let base = match upstream::Base::parse(&origin) {
            Ok(base) => base,
            Err(error) => {
                self.wrong(raw, error.to_string(), help);
                return None;
            }
        };
        if !base.https && !allow_unencrypted && !is_loopback(&base.host) {
            self.wrong(
                raw,
                "what is sent there could be read on the way",
                "use https, or set allow_unencrypted: true",
            );
        }
        if let Ok(address) = base.host.parse::<IpAddr>()
            && !allow_private_addresses
            && !upstream::is_public(address)
        {
            self.wrong(
                raw,
                format!("{address} is no public address"),
                "set allow_private_addresses: true if it is meant",
            );
        }
        Some(Endpoint {
            base,
            path: Secret::new(uri.path_and_query().map_or("/", |path| path.as_str())),
            ca_file: ca_file.map(|path| self.base.join(path)),
            addresses: if allow_private_addresses {
                upstream::Addresses::Any
            } else {
                upstream::Addresses::Public
            },
        })
    }

    fn email(&mut self, mail: &Mail) -> Option<Email> {
        let host = self.text(&mail.host)?;
        let is_plain = mail.encryption == Encryption::None;
        if is_plain && !mail.allow_unencrypted && !is_loopback(&host) {
            self.wrong(
                &mail.host,
                "mail and password could be read on the way",
                "use starttls or tls, or set allow_unencrypted: true",
            );
        }
        let username = mail.username.as_ref().map(|raw| self.text(raw));
        let password = mail.password.as_ref().map(|raw| {
            if !raw.value.contains("${") {
                self.wrong(
                    raw,
                    "a password stands in the config file itself",
                    FROM_ELSEWHERE,
                );
            }
            self.text(raw)
        });
        let login = match (username, password) {
            (None, None) => None,
            (Some(username), Some(password)) => Some((username?, Secret::new(password?))),
            _ => {
                self.wrong(
                    &mail.host,
                    "a user name without a password, or the other way around",
                    "give both or none",
                );
                None
            }
        };
        if mail.to.is_empty() {
            self.wrong(
                &mail.from,
                "nobody would get these mails",
                "name them in to",
            );
        }
        let from = self.mailbox(&mail.from);
        let to = mail.to.iter().filter_map(|raw| self.mailbox(raw)).collect();
        Some(Email {
            host,
            port: mail.port.unwrap_or(match mail.encryption {
                Encryption::Tls => 465,
                Encryption::Starttls => 587,
                Encryption::None => 25,
            }),
            encryption: mail.encryption,
            login,
            from,
            to,
            ca_file: mail.ca_file.as_ref().map(|path| self.base.join(path)),
        })
    }

    fn mailbox(&mut self, raw: &Spanned<String>) -> Option<lettre::message::Mailbox> {
        let text = self.text(raw)?;
        match text.parse() {
            Ok(mailbox) if !text.contains(['\r', '\n', '\0']) => Some(mailbox),
            _ => {
                self.wrong(
                    raw,
                    "this is no mail address",
                    "write it as name@example.com or Name <name@example.com>",
                );
                None
            }
        }
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}
