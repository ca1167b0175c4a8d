//! Approvals that waited long enough are opened to the people of the next tier.

use std::sync::Arc;

use crate::{app::App, approvals::escalation, store::StoreError};

pub(super) async fn turn(app: Arc<App>) -> Result<(), StoreError> {
    escalation::escalate_due(&app).await
}
