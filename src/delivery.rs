//! Getting to people what waits for them. Events stand in the outbox, written in the transaction that made them true; here they
//! are spread over the destinations, sent until each has them or they are given up, and handed to whoever follows the approvals.
//!
//! At least once, in order for each approval or kill switch and destination. Each destination has a loop, connections and tries of
//! its own, and all of them have database connections of their own, so that a slow or dead receiver holds up neither another one
//! nor a call. Never touches the request path.

use std::{sync::Arc, time::Duration};

use sqlx::{PgPool, postgres::PgPoolOptions};
use tokio::sync::{Notify, broadcast};
use tokio_util::sync::CancellationToken;

use crate::{
    audit::Recorder,
    clock::Timestamp,
    config::{self, Channel},
    ids::DeliveryId,
    redaction::Redactor,
    secrets::Keyring,
    store::{
        self, StoreError,
        outbox::{EventRow, NewDelivery},
    },
};

mod acts;
mod email;
mod message;
mod post;
mod schedule;
mod slack;
mod stream;
mod webhook;
mod worker;

pub use acts::ActRefused;
pub use stream::{Filter, Following, Opening, Shown};

use message::Message;

/// How often the outbox is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Events spread in one turn.
const SPREAD: i64 = 200;
/// How long events are kept, in days.
const KEEP_DAYS: i32 = 14;
const PRUNE_EVERY: Duration = Duration::from_secs(600);
/// Database connections for all of this.
const CONNECTIONS: u32 = 4;
/// Messages under way to one destination at the same time.
const AT_A_TIME: usize = 4;
/// Events that a follower may lie behind; one that lies further behind is told so and dropped.
const BEHIND: usize = 1_024;

/// Why a try did not get through.
#[derive(Debug)]
struct Failed {
    /// A sentence without secrets and without what the receiver said.
    error: String,
    retry_after: Option<Duration>,
    /// The receiver wants nothing more, ever.
    is_gone: bool,
}

impl Failed {
    const fn because(error: String) -> Self {
        Self {
            error,
            retry_after: None,
            is_gone: false,
        }
    }
}

enum Sender {
    Webhook(webhook::Webhook),
    Slack(slack::Slack),
    Email(Box<email::Email>),
}

/// A destination with what it takes to send there.
struct Destination {
    name: Arc<str>,
    config: config::Destination,
    sender: Sender,
    fingerprint: String,
    /// Something may be due.
    wake: Notify,
}

impl Destination {
    fn wants(&self, event: &EventRow) -> bool {
        let has_its_tier = self.config.tiers.is_empty()
            || event.kind.starts_with("halt.")
            || event
                .tiers
                .iter()
                .any(|tier| self.config.tiers.contains(tier));
        self.config.events.contains(&event.kind) && has_its_tier
    }

    async fn send(&self, message: &Message, now: Timestamp) -> Result<(), Failed> {
        match &self.sender {
            Sender::Webhook(webhook) => webhook.send(message, now).await,
            Sender::Slack(slack) => slack.send(message).await,
            Sender::Email(email) => email.send(message).await,
        }
    }
}

/// A destination as operators are shown it: nothing of where it is or what opens it.
#[derive(Debug, Clone)]
pub struct Described {
    /// Its name.
    pub name: Arc<str>,
    /// `webhook`, `slack` or `email`.
    pub channel: &'static str,
    /// The events it gets.
    pub events: Vec<String>,
    /// The tiers it is limited to.
    pub tiers: Vec<String>,
}

/// Everything that gets events to people.
pub struct Delivery {
    destinations: Vec<Arc<Destination>>,
    links: config::Links,
    keys: Arc<Keyring>,
    redactor: Arc<Redactor>,
    recorder: Recorder,
    pool: PgPool,
    followers: broadcast::Sender<Arc<EventRow>>,
    places: stream::Places,
}

impl Delivery {
    /// Makes the clients. Connects to nothing yet.
    ///
    /// # Errors
    /// A sentence that names the destination, for instance for a CA file that cannot be read.
    pub fn new(
        config: &config::Config,
        keys: Arc<Keyring>,
        redactor: Arc<Redactor>,
        recorder: Recorder,
        readers: &PgPool,
    ) -> Result<Self, String> {
        let destinations = config
            .destinations
            .iter()
            .map(|(name, destination)| {
                let sender = sender(destination)
                    .map_err(|error| format!("the client of destination {name}: {error}"))?;
                Ok(Arc::new(Destination {
                    name: Arc::clone(name),
                    config: destination.clone(),
                    sender,
                    fingerprint: fingerprint(&destination.channel, &keys),
                    wake: Notify::new(),
                }))
            })
            .collect::<Result<_, String>>()?;
        let options = readers.connect_options();
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(Duration::from_secs(5))
            .connect_lazy_with((*options).clone().application_name("toolgate delivery"));
        Ok(Self {
            destinations,
            links: config.links.clone(),
            keys,
            redactor,
            recorder,
            pool,
            followers: broadcast::Sender::new(BEHIND),
            places: stream::Places::default(),
        })
    }

    /// Begins to send; ends when `stop` is cancelled. What is under way then is sent again after the next start.
    pub fn start(self: &Arc<Self>, stop: &CancellationToken) {
        tokio::spawn(Arc::clone(self).spread(stop.clone()));
        for destination in &self.destinations {
            let worker = worker::Worker::new(Arc::clone(self), Arc::clone(destination));
            tokio::spawn(worker.run(stop.clone()));
        }
    }

    /// Closes its connections to the database.
    pub async fn close(&self) {
        self.pool.close().await;
    }

    /// The destinations of the config.
    pub fn described(&self) -> Vec<Described> {
        self.destinations
            .iter()
            .map(|destination| Described {
                name: Arc::clone(&destination.name),
                channel: match destination.sender {
                    Sender::Webhook(_) => "webhook",
                    Sender::Slack(_) => "slack",
                    Sender::Email(_) => "email",
                },
                events: destination.config.events.iter().cloned().collect(),
                tiers: destination.config.tiers.iter().cloned().collect(),
            })
            .collect()
    }

    fn destination(&self, name: &str) -> Option<&Arc<Destination>> {
        self.destinations
            .iter()
            .find(|destination| *destination.name == *name)
    }

    /// Gives every new event to the destinations that want it and to whoever follows.
    async fn spread(self: Arc<Self>, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut prunes = tokio::time::interval(PRUNE_EVERY);
        prunes.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut was_away = false;
        loop {
            let turn = tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => self.spread_some().await,
                _ = prunes.tick() => self.prune().await,
            };
            match turn {
                Ok(()) => was_away = false,
                Err(error) if !was_away => {
                    tracing::warn!(%error, "the outbox cannot be read; messages wait until it can");
                    was_away = true;
                }
                Err(_still) => {}
            }
        }
    }

    async fn spread_some(&self) -> Result<(), StoreError> {
        let mut transaction = self.pool.begin().await?;
        let events = store::outbox::not_spread(&mut transaction, SPREAD).await?;
        if events.is_empty() {
            return Ok(());
        }
        let deliveries: Vec<NewDelivery<'_>> = events
            .iter()
            .flat_map(|event| {
                self.destinations
                    .iter()
                    .filter(|destination| destination.wants(event))
                    .map(move |destination| NewDelivery {
                        id: DeliveryId::generate(),
                        destination: &destination.name,
                        event,
                    })
            })
            .collect();
        store::outbox::spread(&mut transaction, &events, &deliveries).await?;
        drop(deliveries);
        transaction.commit().await?;
        for destination in &self.destinations {
            destination.wake.notify_one();
        }
        for event in events {
            // Nobody may be listening.
            let _ = self.followers.send(Arc::new(event));
        }
        Ok(())
    }

    async fn prune(&self) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await?;
        store::deliveries::prune(&mut connection, KEEP_DAYS).await?;
        Ok(())
    }
}

fn sender(destination: &config::Destination) -> Result<Sender, String> {
    let timeout = destination.timeout;
    Ok(match &destination.channel {
        Channel::Webhook { endpoint, secrets } => Sender::Webhook(webhook::Webhook::new(
            endpoint, secrets, timeout, AT_A_TIME,
        )?),
        Channel::Slack { endpoint } => {
            Sender::Slack(slack::Slack::new(endpoint, timeout, AT_A_TIME)?)
        }
        Channel::Email(config) => Sender::Email(Box::new(email::Email::new(config, timeout)?)),
    })
}

/// Tells whether a destination leads elsewhere than before. Keyed, because what it is made of holds secrets.
fn fingerprint(channel: &Channel, keys: &Keyring) -> String {
    let endpoint =
        |endpoint: &config::Endpoint| format!("{:?} {}", endpoint.base, endpoint.path.expose());
    let text = match channel {
        Channel::Webhook {
            endpoint: to,
            secrets,
        } => {
            let secrets: Vec<&str> = secrets.iter().map(crate::secrets::Secret::expose).collect();
            format!("webhook {} {}", endpoint(to), secrets.join(" "))
        }
        Channel::Slack { endpoint: to } => format!("slack {}", endpoint(to)),
        Channel::Email(email) => {
            let login = email
                .login
                .as_ref()
                .map(|(username, password)| (username, password.expose()));
            format!(
                "email {}:{} {:?} {login:?} {:?} {:?}",
                email.host, email.port, email.encryption, email.from, email.to
            )
        }
    };
    keys.value_token(text.as_bytes())
}
