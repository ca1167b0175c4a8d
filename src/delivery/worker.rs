//! The loop of one destination: what is due goes out, a few at a time; what failed comes back later; what waited too long is
//! given up with a record.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;

use super::{AT_A_TIME, Delivery, Destination, Failed, Message, schedule};
use crate::{
    clock,
    store::{self, StoreError, outbox::DueRow},
};

/// How often a destination is looked at without being woken.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often what waits is held against its bounds.
const BOUNDS_EVERY: Duration = Duration::from_secs(1);
/// Before a result that could not be written down is written again.
const PAUSE: Duration = Duration::from_millis(500);

pub(super) struct Worker {
    delivery: Arc<Delivery>,
    destination: Arc<Destination>,
    /// What is under way, by its task.
    sending: JoinSet<()>,
    busy: HashMap<Id, String>,
}

impl Worker {
    pub(super) fn new(delivery: Arc<Delivery>, destination: Arc<Destination>) -> Self {
        Self {
            delivery,
            destination,
            sending: JoinSet::new(),
            busy: HashMap::new(),
        }
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        while let Err(error) = self.register().await {
            tracing::warn!(%error, destination = %self.destination.name, "a destination waits for the database");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut bounds = tokio::time::interval(BOUNDS_EVERY);
        bounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let turn = tokio::select! {
                () = stop.cancelled() => return,
                Some(ended) = self.sending.join_next_with_id() => {
                    let id = match ended {
                        Ok((id, ())) => id,
                        Err(error) => error.id(),
                    };
                    self.busy.remove(&id);
                    self.send_due().await
                }
                () = self.destination.wake.notified() => self.send_due().await,
                _ = looks.tick() => self.send_due().await,
                _ = bounds.tick() => self.give_up_overdue().await,
            };
            if let Err(error) = turn {
                tracing::debug!(%error, destination = %self.destination.name, "a turn could not be finished");
            }
        }
    }

    async fn register(&self) -> Result<(), StoreError> {
        self.delivery.register(&self.destination).await
    }

    fn busy(&self) -> Vec<String> {
        self.busy.values().cloned().collect()
    }

    async fn send_due(&mut self) -> Result<(), StoreError> {
        let room = AT_A_TIME.saturating_sub(self.busy.len());
        if room == 0 {
            return Ok(());
        }
        let mut connection = self.delivery.pool.acquire().await?;
        let due = store::outbox::due(
            &mut connection,
            &self.destination.name,
            &self.busy(),
            i64::try_from(room).unwrap_or(1),
        )
        .await?;
        drop(connection);
        for row in due {
            let id = row.delivery_id.clone();
            let (delivery, destination) =
                (Arc::clone(&self.delivery), Arc::clone(&self.destination));
            let task = self
                .sending
                .spawn(async move { one(&delivery, &destination, row).await });
            self.busy.insert(task.id(), id);
        }
        Ok(())
    }

    async fn give_up_overdue(&self) -> Result<(), StoreError> {
        let config = &self.destination.config;
        let mut connection = self.delivery.pool.acquire().await?;
        let overdue = store::outbox::overdue(
            &mut connection,
            &self.destination.name,
            config.max_age.as_secs_f64(),
            i64::from(config.max_pending),
            &self.busy(),
        )
        .await?;
        drop(connection);
        if overdue.is_empty() {
            return Ok(());
        }
        self.delivery
            .give_up_overdue(&self.destination, overdue)
            .await
    }
}

/// One try, and what came of it written down, however long that takes: until then nobody tries it again.
async fn one(delivery: &Delivery, destination: &Destination, row: DueRow) {
    let message = Message::of(&row, &delivery.links, &delivery.redactor);
    let sent = destination.send(&message, clock::now()).await;
    let tries = usize::try_from(row.attempts).unwrap_or(0) + 1;
    loop {
        match settle(delivery, destination, &row, &sent, tries).await {
            Ok(()) => return,
            Err(StoreError::Unavailable(_)) => tokio::time::sleep(PAUSE).await,
            Err(error) => {
                tracing::error!(%error, delivery = row.delivery_id, "a delivery's result was refused");
                return;
            }
        }
    }
}

async fn settle(
    delivery: &Delivery,
    destination: &Destination,
    row: &DueRow,
    sent: &Result<(), Failed>,
    tries: usize,
) -> Result<(), StoreError> {
    let failed = match sent {
        Ok(()) => {
            let mut connection = delivery.pool.acquire().await?;
            return store::outbox::delivered(&mut connection, &row.delivery_id).await;
        }
        Err(failed) => failed,
    };
    tracing::info!(
        destination = %destination.name,
        delivery = row.delivery_id,
        event = row.kind,
        tries,
        error = failed.error,
        "a message did not get through"
    );
    if failed.is_gone {
        delivery.disable(destination, row, &failed.error).await?;
    }
    // What a receiver that is gone has refused is kept for when the destination is enabled again.
    let again = schedule::next(&destination.config.retries, tries, failed.retry_after)
        .or(failed.is_gone.then_some(PAUSE));
    match again {
        Some(pause) => {
            let mut connection = delivery.pool.acquire().await?;
            store::outbox::failed(
                &mut connection,
                &row.delivery_id,
                &failed.error,
                pause.as_secs_f64(),
            )
            .await
        }
        None => delivery.give_up(destination, row, &failed.error).await,
    }
}
