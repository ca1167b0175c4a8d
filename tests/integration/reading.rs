//! Reading what a world holds: its approvals as an operator sees them, its records as the auditor does.

use std::time::Duration;

use reqwest::Method;
use serde_json::Value;
use sqlx::Row as _;

use crate::support::{World, send};

impl World {
    /// Approvals in a state, as `ada` sees them (the first 200).
    pub async fn approvals(&self, state: &str) -> Vec<Value> {
        let path = format!("/v1/approvals?state={state}&limit=200");
        let answer = send(self.operator("ada", Method::GET, &path))
            .await
            .expect(200);
        answer.body["data"].as_array().unwrap().clone()
    }

    /// The one pending approval, once there is one.
    pub async fn only_pending(&self) -> String {
        for _ in 0..300 {
            if let [only] = self.approvals("pending").await.as_slice() {
                return only["approval"].as_str().unwrap().to_owned();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("there is not exactly one pending approval");
    }

    /// How many audit entries fulfil a condition.
    pub async fn entries(&self, condition: &str) -> i64 {
        let query = format!("SELECT count(*) FROM audit.entries WHERE {condition}");
        self.audit(&query).await[0].get(0)
    }
}
