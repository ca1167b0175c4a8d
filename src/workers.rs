//! What happens without anybody asking: approvals escalate and expire, approved calls go on, keys are read again, a new signing key is taken
//! up, partitions are made ahead, connections nobody uses are closed. Every loop is bounded in what it does in one turn, and ends with the gateway.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use crate::app::App;

mod close_abandoned;
mod copy_work;
mod escalate_approvals;
mod expire_approvals;
mod forget;
pub(crate) mod journal;
mod refresh_keys;
pub(crate) mod resume_approved;
mod take_up_key;
mod upkeep;

/// Starts all of them; they end when `stop` is cancelled.
pub fn start(app: &Arc<App>, stop: &CancellationToken) {
    every(
        app,
        stop,
        Duration::from_secs(60),
        "close_abandoned",
        close_abandoned::turn,
    );
    every(
        app,
        stop,
        Duration::from_secs(1),
        "escalate_approvals",
        escalate_approvals::turn,
    );
    every(
        app,
        stop,
        Duration::from_secs(1),
        "expire_approvals",
        expire_approvals::turn,
    );
    every(
        app,
        stop,
        Duration::from_secs(1),
        "refresh_keys",
        refresh_keys::turn,
    );
    every(
        app,
        stop,
        Duration::from_secs(1),
        "take_up_key",
        take_up_key::turn,
    );
    every(
        app,
        stop,
        Duration::from_secs(2),
        "resume_approved",
        resume_approved::turn,
    );
    every(
        app,
        stop,
        Duration::from_secs(5),
        "close_stale_connections",
        upkeep::close_stale,
    );
    every(app, stop, Duration::from_secs(2), "journal", journal::turn);
    every(app, stop, Duration::from_secs(60), "forget", forget::turn);
    every(
        app,
        stop,
        Duration::from_secs(60),
        "erase_references",
        upkeep::erase_references,
    );
    every(
        app,
        stop,
        Duration::from_secs(3_600),
        "ensure_partitions",
        upkeep::ensure_partitions,
    );
    every(
        app,
        stop,
        Duration::from_secs(60),
        "tell_of_strangers",
        upkeep::tell_of_strangers,
    );
    if let Some(copy) = &app.config.work_list_copy {
        every(app, stop, copy.every, "copy_work", copy_work::turn);
    }
}

fn every<F, R>(
    app: &Arc<App>,
    stop: &CancellationToken,
    period: Duration,
    name: &'static str,
    turn: F,
) where
    F: Fn(Arc<App>) -> R + Send + 'static,
    R: Future<Output = Result<(), crate::store::StoreError>> + Send,
{
    let (app, stop) = (Arc::clone(app), stop.clone());
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = ticks.tick() => {}
            }
            if let Err(error) = turn(Arc::clone(&app)).await {
                tracing::warn!(worker = name, %error, "a turn could not be finished; the next one goes on");
            }
        }
    });
}
