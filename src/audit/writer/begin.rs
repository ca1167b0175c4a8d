//! How an instance begins: what must stand before the first call.

use std::time::Instant;

use sqlx::{Connection as _, PgConnection};

use super::Writer;
use crate::{
    audit::{Checkpoints, opening, orphaned, publishing::Publisher, signing_keys},
    clock,
    store::{self, StoreError},
    tenure::{TENURE, process},
};

impl Writer {
    /// This instance is known, partitions stand, the records name the key that signs their checkpoints, and whatever an earlier
    /// gateway left without an outcome is told to be indeterminate.
    pub(in crate::audit) async fn begin(
        mut self,
        checkpoints: Checkpoints,
    ) -> Result<Self, StoreError> {
        let connection = self
            .connection
            .as_mut()
            .ok_or_else(|| StoreError::Unavailable("not connected".to_owned()))?;
        wait_for_predecessors(connection).await?;
        let (now, asked_at) = (clock::now(), Instant::now());
        store::audit::ensure_partitions(connection).await?;
        let this = process::this();
        store::instances::add(connection, self.chain.instance(), this.as_deref(), now).await?;
        store::instances::end_others(connection, self.chain.instance()).await?;
        let recorded = signing_keys::recorded(connection).await?;
        let steps = checkpoints.held.steps_from(recorded.as_ref());
        let mut transaction = connection.begin().await?;
        let mut entries = vec![opening(&mut transaction, self.chain.instance()).await?];
        entries.extend(steps.iter().map(signing_keys::entry));
        entries.extend(orphaned(&mut transaction, self.chain.instance(), now).await?);
        let (rows, hashes) = self.chain.linked(now, entries.iter());
        store::audit::insert(&mut transaction, &rows, &hashes).await?;
        store::calls::close_executing(&mut transaction).await?;
        transaction.commit().await?;
        self.tenure.confirm(asked_at);
        self.chain.advance(&hashes);
        self.latest = now;
        let publisher = Publisher::new(checkpoints, self.chain.instance());
        self.publisher = Some(publisher);
        self.grown();
        Ok(self)
    }
}

/// Returns once no earlier gateway can be sending. They have all lost the lock, which is here; but one that is cut off from the
/// database does not know that until its tenure is over.
async fn wait_for_predecessors(connection: &mut PgConnection) -> Result<(), StoreError> {
    let unended = store::instances::unended(connection).await?;
    let is_dead = |process: &Option<String>| process.as_deref().is_some_and(process::is_dead);
    if unended.iter().all(is_dead) {
        return Ok(());
    }
    tracing::warn!(
        seconds = TENURE.as_secs(),
        "another gateway served this database and did not say that it stopped; waiting until it certainly sends nothing more"
    );
    tokio::time::sleep(TENURE).await;
    store::ping(connection).await
}
