//! Partitions for the months to come, values that ended runs knew by reference, connections to APIs that nobody uses, and
//! attempts without a key that were counted.

use std::sync::Arc;

use chrono::{Datelike as _, Months};

use crate::{
    app::App,
    clock::{self, Timestamp},
    store::{self, StoreError, keeping::Partition},
};

/// Fewer months ahead than this and somebody is told: there is a month left to mend it.
const MONTHS_AHEAD: usize = 2;

pub(super) async fn ensure_partitions(app: Arc<App>) -> Result<(), StoreError> {
    let mut connection = app.pool.acquire().await?;
    let made = store::audit::ensure_partitions(&mut connection).await;
    let partitions = store::keeping::partitions(&mut connection).await?;
    let ahead = months_ahead(&partitions, clock::now());
    if ahead < MONTHS_AHEAD {
        tracing::error!(
            months_ahead = ahead,
            "the partitions of audit.entries run out: when the last month is over, calls are refused. Let the tables' owner try SELECT audit.ensure_partitions(3)"
        );
    }
    made
}

/// How many months after this one have a partition, without a gap.
fn months_ahead(partitions: &[Partition], now: Timestamp) -> usize {
    (1..=24)
        .take_while(|ahead| {
            let month = now
                .date_naive()
                .with_day(1)
                .and_then(|day| day.checked_add_months(Months::new(*ahead)));
            let name = month.map(|month| format!("entries_{}", month.format("%Y_%m")));
            partitions.iter().any(|partition| {
                partition.attached && !partition.pending && Some(&partition.name) == name.as_ref()
            })
        })
        .count()
}

/// The values of runs that ended by themselves; an agent's own ending erases them at once.
pub(super) async fn erase_references(app: Arc<App>) -> Result<(), StoreError> {
    let mut connection = app.pool.acquire().await?;
    let erased = store::references::erase(&mut connection).await?;
    if erased > 0 {
        tracing::info!(erased, "values of ended runs are erased");
    }
    Ok(())
}

pub(super) async fn close_stale(app: Arc<App>) -> Result<(), StoreError> {
    for client in app.apis.values() {
        client.upstream.close_stale();
    }
    Ok(())
}

pub(super) async fn tell_of_strangers(app: Arc<App>) -> Result<(), StoreError> {
    for entry in app.strangers.turn() {
        if app.recorder.note(entry).await.is_err() {
            tracing::error!("attempts without a key could not be recorded");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn months_are_counted_over_new_year_and_up_to_the_first_gap() {
        let named = |name: &str| Partition {
            name: name.to_owned(),
            attached: true,
            pending: false,
        };
        let now = "2026-11-30T23:59:59.999999Z".parse().unwrap();
        let mut all = [
            "entries_2026_11",
            "entries_2026_12",
            "entries_2027_01",
            "entries_2027_03",
        ]
        .map(named);
        assert_eq!(months_ahead(&all, now), 2);
        all[2].pending = true;
        assert_eq!(months_ahead(&all, now), 1);
        all[1].attached = false;
        assert_eq!(months_ahead(&all, now), 0);
        assert_eq!(months_ahead(&[], now), 0);
    }
}
