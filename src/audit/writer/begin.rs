//! How an instance begins: what must stand before the first call.

use sqlx::Connection as _;

use super::Writer;
use crate::{
    audit::{Checkpoints, opening, orphaned, publishing::Publisher, signed, signing_keys},
    entry::chain::START,
    store::{self, StoreError},
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
        let now = signed::beginning_of(self.chain.instance());
        store::audit::ensure_partitions(connection).await?;
        let recorded = signing_keys::recorded(connection).await?;
        let steps = checkpoints.held.steps_from(recorded.as_ref());
        let mut transaction = connection.begin().await?;
        // With the entries: a start that recorded nothing must not count as one when the next looks for the ends before it.
        store::instances::add(&mut transaction, self.chain.instance(), now).await?;
        let mut entries = vec![opening(&mut transaction, self.chain.instance()).await?];
        let (_, first) = self.chain.linked(now, entries.iter());
        let first = first.first().copied().unwrap_or(START);
        entries.push(signed::entry(
            &checkpoints.held.key,
            self.chain.instance(),
            &first,
        ));
        entries.extend(steps.iter().map(signing_keys::entry));
        entries.extend(orphaned(&mut transaction, self.chain.instance(), now).await?);
        let (rows, hashes) = self.chain.linked(now, entries.iter());
        store::audit::insert(&mut transaction, &rows, &hashes).await?;
        store::calls::close_executing(&mut transaction).await?;
        transaction.commit().await?;
        self.chain.advance(&hashes);
        self.latest = now;
        let publisher = Publisher::new(checkpoints, self.chain.instance());
        self.publisher = Some(publisher);
        self.grown();
        Ok(self)
    }
}
