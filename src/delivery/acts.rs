//! What is done to deliveries and destinations and must be on record: giving up, disabling, and an operator's word that it is to
//! be tried again. Each is one transaction with its entry.

use std::sync::Arc;

use futures::FutureExt as _;
use serde_json::json;

use super::{Delivery, Destination};
use crate::{
    audit::ActError,
    entry::{Entry, Kind},
    store::{
        self, StoreError,
        outbox::{DueRow, OverdueRow},
    },
};

const TOO_OLD: &str = "it waited for longer than max_age_seconds";
const TOO_MANY: &str = "more than max_pending waited, and it was among the oldest";

/// Why an operator's act did not happen.
#[derive(Debug, thiserror::Error)]
pub enum ActRefused {
    /// No such thing.
    #[error("there is no such thing")]
    Unknown,
    /// It is not in a state for it.
    #[error("it is in no state for this")]
    Conflict,
    /// The database is away.
    #[error(transparent)]
    Away(#[from] StoreError),
}

fn away(error: ActError) -> StoreError {
    match error {
        ActError::Store(error) => error,
        ActError::Unrecorded => StoreError::Unavailable(error.to_string()),
    }
}

fn dead(destination: &str, delivery: &str, event: &str, kind: &str, error: &str) -> Entry {
    Entry {
        detail: Some(json!({
            "delivery": delivery, "destination": destination, "event": event, "type": kind, "error": error,
        })),
        ..Entry::new(Kind::DeliveryDead)
    }
}

impl Delivery {
    /// Makes a destination known, enabled if its config has changed since it was disabled.
    pub(super) async fn register(&self, destination: &Destination) -> Result<(), StoreError> {
        let (name, fingerprint) = (
            Arc::clone(&destination.name),
            destination.fingerprint.clone(),
        );
        self.recorder
            .act(move |connection| {
                async move {
                    let enabled = store::outbox::register(connection, &name, &fingerprint).await?;
                    let entry = Entry {
                        detail: Some(
                            json!({ "destination": name, "why": "its config has changed" }),
                        ),
                        ..Entry::new(Kind::DestinationEnabled)
                    };
                    Ok((if enabled { vec![entry] } else { Vec::new() }, ()))
                }
                .boxed()
            })
            .await
            .map_err(away)
    }

    /// The last try has failed.
    pub(super) async fn give_up(
        &self,
        destination: &Destination,
        row: &DueRow,
        error: &str,
    ) -> Result<(), StoreError> {
        tracing::error!(destination = %destination.name, delivery = row.delivery_id, event = row.kind, "a message was given up");
        let entry = dead(
            &destination.name,
            &row.delivery_id,
            &row.event_id,
            &row.kind,
            error,
        );
        let (id, error) = (row.delivery_id.clone(), error.to_owned());
        self.recorder
            .act(move |connection| {
                async move {
                    let done = store::outbox::give_up(connection, &id, &error, true).await?;
                    Ok((if done { vec![entry] } else { Vec::new() }, ()))
                }
                .boxed()
            })
            .await
            .map_err(away)
    }

    /// What waited too long, or too many waited behind.
    pub(super) async fn give_up_overdue(
        &self,
        destination: &Destination,
        overdue: Vec<OverdueRow>,
    ) -> Result<(), StoreError> {
        tracing::error!(destination = %destination.name, count = overdue.len(), "messages were given up that had waited too long");
        let name = Arc::clone(&destination.name);
        self.recorder
            .act(move |connection| {
                async move {
                    let mut entries = Vec::with_capacity(overdue.len());
                    for row in overdue {
                        let error = if row.too_old { TOO_OLD } else { TOO_MANY };
                        let id = &row.delivery_id;
                        if store::outbox::give_up(connection, id, error, false).await? {
                            entries.push(dead(&name, id, &row.event_id, &row.kind, error));
                        }
                    }
                    Ok((entries, ()))
                }
                .boxed()
            })
            .await
            .map_err(away)
    }

    /// The receiver wants nothing more: nothing is sent there until an operator says so, or its config changes.
    pub(super) async fn disable(
        &self,
        destination: &Destination,
        row: &DueRow,
        because: &str,
    ) -> Result<(), StoreError> {
        tracing::error!(destination = %destination.name, because, "a destination is disabled");
        let (name, because) = (Arc::clone(&destination.name), because.to_owned());
        let delivery = row.delivery_id.clone();
        self.recorder
            .act(move |connection| {
                async move {
                    let done = store::outbox::disable(connection, &name, &because).await?;
                    let entry = Entry {
                        detail: Some(
                            json!({ "destination": name, "why": because, "delivery": delivery }),
                        ),
                        ..Entry::new(Kind::DestinationDisabled)
                    };
                    Ok((if done { vec![entry] } else { Vec::new() }, ()))
                }
                .boxed()
            })
            .await
            .map_err(away)
    }

    /// An operator wants a given-up delivery tried again.
    ///
    /// # Errors
    /// When there is none of that id to a destination of this config, or it is not given up.
    pub async fn redeliver(
        &self,
        id: &str,
        operator: &Arc<str>,
        reason: String,
    ) -> Result<(), ActRefused> {
        let mut connection = self.pool.acquire().await.map_err(StoreError::from)?;
        let row = store::deliveries::find(&mut connection, id)
            .await?
            .ok_or(ActRefused::Unknown)?;
        drop(connection);
        let destination = self
            .destination(&row.destination)
            .ok_or(ActRefused::Unknown)?;
        let entry = Entry {
            operator: Some(Arc::clone(operator)),
            words: Some(reason),
            detail: Some(json!({
                "delivery": row.delivery_id, "destination": row.destination, "event": row.event_id, "type": row.kind,
            })),
            ..Entry::new(Kind::DeliveryRedelivered)
        };
        let done = self
            .recorder
            .act(move |connection| {
                async move {
                    let done = store::outbox::redeliver(connection, &row.delivery_id).await?;
                    Ok((if done { vec![entry] } else { Vec::new() }, done))
                }
                .boxed()
            })
            .await
            .map_err(away)?;
        if !done {
            return Err(ActRefused::Conflict);
        }
        destination.wake.notify_one();
        Ok(())
    }

    /// An operator wants a disabled destination sent to again.
    ///
    /// # Errors
    /// When the config has none of that name, or it is not disabled.
    pub async fn enable(
        &self,
        name: &str,
        operator: &Arc<str>,
        reason: String,
    ) -> Result<(), ActRefused> {
        let destination = self.destination(name).ok_or(ActRefused::Unknown)?;
        let name = Arc::clone(&destination.name);
        let entry = Entry {
            operator: Some(Arc::clone(operator)),
            words: Some(reason),
            detail: Some(json!({ "destination": name })),
            ..Entry::new(Kind::DestinationEnabled)
        };
        let done = self
            .recorder
            .act(move |connection| {
                async move {
                    let done = store::outbox::enable(connection, &name).await?;
                    Ok((if done { vec![entry] } else { Vec::new() }, done))
                }
                .boxed()
            })
            .await
            .map_err(away)?;
        if !done {
            return Err(ActRefused::Conflict);
        }
        destination.wake.notify_one();
        Ok(())
    }
}
