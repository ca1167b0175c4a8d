//! How much is asked of people: `GET /v1/approvals/statistics` from what is kept, for any time, and `GET /metrics` as counted
//! since the start, for a scraper.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Query, State},
    response::{IntoResponse as _, Response},
};
use http::{HeaderMap, header};
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};

use super::{allow, away, filter, identify, reading};
use crate::{
    app::App,
    clock::{self, Timestamp as DateTime},
    http::{input, openapi::schemas},
    metrics::{self, Gauge},
    policy::{OperatorAction, OperatorContext},
    reason::{Reason, Refusal},
    store::{self, StoreError, provision, statistics::VoterRow},
};

/// The time that is looked at where none is named.
const DAY: chrono::TimeDelta = chrono::TimeDelta::days(1);
/// The longest time that is looked at.
const LONGEST: chrono::TimeDelta = chrono::TimeDelta::days(92);
/// How long a scrape waits for the database before it goes without.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(in crate::http) struct Within {
    /// Votes at this time or later; a day before `to` where nothing is said, and 92 days at the most.
    #[param(inline, value_type = Option<schemas::Time>)]
    from: Option<String>,
    /// Votes before this time; now where nothing is said.
    #[param(inline, value_type = Option<schemas::Time>)]
    to: Option<String>,
}

/// How quickly each operator decided in a time.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Statistics {
    from: DateTime,
    to: DateTime,
    /// Whoever voted in that time.
    operators: Vec<Voter>,
}

/// One operator's votes in a time. A line of identical calls counts once.
#[derive(Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Voter {
    operator: String,
    approvals: i64,
    denials: i64,
    /// Calls that those approvals were on.
    calls_approved: i64,
    /// Half of the votes came sooner than this after the parking.
    median_seconds: f64,
    approvals_under_five_seconds: i64,
}

impl From<VoterRow> for Voter {
    fn from(row: VoterRow) -> Self {
        Self {
            operator: row.operator,
            approvals: row.approvals,
            denials: row.denials,
            calls_approved: row.calls_approved,
            median_seconds: row.median_seconds,
            approvals_under_five_seconds: row.approvals_under_five_seconds,
        }
    }
}

/// Says how quickly people decide
///
/// Each operator's votes in a time, from the records.
#[utoipa::path(get, path = "/v1/approvals/statistics", operation_id = "approval_statistics", tag = "approvals", params(Within),
    responses((status = 200, description = "The votes by operator.", body = Statistics)))]
pub(in crate::http) async fn approvals(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    within: Result<Query<Within>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<Statistics>, Refusal> {
    let operator = identify(&app, &headers)?;
    let action = OperatorAction::ReadApprovals;
    allow(&app, &operator, action, OperatorContext::Empty)?;
    let within = input::query(within)?;
    let to = filter::time("to", within.to.as_deref())?.unwrap_or_else(clock::now);
    let from = filter::time("from", within.from.as_deref())?.unwrap_or(to - DAY);
    if from >= to || to - from > LONGEST {
        return Err(Refusal::new(
            Reason::MalformedBody,
            "\"from\" must be before \"to\", and no more than 92 days.",
        ));
    }
    let rows = async {
        let mut connection = app.reading.pool.acquire().await?;
        store::statistics::voters(&mut connection, from, to).await
    };
    let rows = rows.await.map_err(|error: StoreError| away(&error))?;
    let operators: Vec<Voter> = rows.into_iter().map(Voter::from).collect();
    let what = json!({"rows": operators.len(), "from": from, "to": to});
    reading::told(&app, &operator, "GET /v1/approvals/statistics", what).await?;
    Ok(Json(Statistics {
        from,
        to,
        operators,
    }))
}

/// Counts
///
/// Since the gateway's start, and how things stand now, in the text format of Prometheus. A scrape is no entry of the records; a refused one is.
#[utoipa::path(get, path = "/metrics", operation_id = "metrics", tag = "gateway",
    responses((status = 200, description = "Samples by name and labels.", body = String, content_type = "text/plain")))]
pub(in crate::http) async fn metrics(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let operator = identify(&app, &headers)?;
    let action = OperatorAction::ReadMetrics;
    allow(&app, &operator, action, OperatorContext::Empty)?;
    let mut gauges = of_process(&app);
    gauges.extend(waiting(&app).await);
    let text = metrics::exposition(&app.metrics, &app.people, gauges).map_err(|error| {
        tracing::error!(%error, "the metrics could not be written");
        Refusal::new(Reason::Internal, "The metrics could not be written.")
    })?;
    Ok(([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float, and nothing here comes near 2^53"
)]
fn count(number: usize) -> f64 {
    number as f64
}

fn of_process(app: &App) -> Vec<Gauge> {
    let plain = |name, help, value| Gauge {
        name,
        help,
        values: vec![(Vec::new(), value)],
    };
    let halts = app.kill_switches.all();
    let kinds = ["everything", "api", "tool", "consequence", "agent", "run"];
    let by_api = |name, help, value: &dyn Fn(&crate::upstream::Upstream) -> usize| Gauge {
        name,
        help,
        values: app
            .apis
            .iter()
            .map(|(api, client)| {
                let labels = vec![("api", api.to_string())];
                (labels, count(value(&client.upstream)))
            })
            .collect(),
    };
    vec![
        Gauge {
            name: "build_info",
            help: "The version that runs and the migration it needs",
            values: vec![(
                vec![
                    ("version", env!("CARGO_PKG_VERSION").to_owned()),
                    ("schema", provision::newest_version().to_string()),
                ],
                1.0,
            )],
        },
        Gauge {
            name: "halts",
            help: "Kill switches that are pulled, by what they cover",
            values: kinds
                .into_iter()
                .map(|kind| {
                    let held = halts.iter().filter(|halt| halt.scope.kind() == kind);
                    (vec![("kind", kind.to_owned())], count(held.count()))
                })
                .collect(),
        },
        plain(
            "records_available",
            "1 while audit entries can be committed",
            f64::from(u8::from(app.recorder.is_healthy())),
        ),
        plain(
            "writer_queue",
            "Entries and transactions that wait for the writer",
            count(app.recorder.waiting()),
        ),
        Gauge {
            name: "database_connections",
            help: "Connections to the database, beside the writer's",
            values: [("calls", &app.pool), ("reading", &app.reading.pool)]
                .into_iter()
                .flat_map(|(pool, connections)| {
                    let idle = connections.num_idle();
                    let size = usize::try_from(connections.size()).unwrap_or(usize::MAX);
                    [("idle", idle), ("used", size.saturating_sub(idle))].map(|(state, number)| {
                        let labels = vec![("pool", pool.to_owned()), ("state", state.to_owned())];
                        (labels, count(number))
                    })
                })
                .collect(),
        },
        by_api(
            "upstream_connections_idle",
            "Connections to an API that wait for use",
            &crate::upstream::Upstream::idle_connections,
        ),
        by_api(
            "upstream_connections_used",
            "Connections to an API that are in use or being opened",
            &crate::upstream::Upstream::used_connections,
        ),
        plain(
            "approved_under_way",
            "Approved calls that a task is taking up",
            count(app.resuming.count()),
        ),
    ]
}

/// What waits for people. Left out where the database does not say in time.
async fn waiting(app: &App) -> Vec<Gauge> {
    let tiers: Vec<String> = app.config.tiers.keys().map(ToString::to_string).collect();
    let read = async {
        let mut connection = app.reading.pool.acquire().await?;
        store::statistics::waiting(&mut connection, &tiers).await
    };
    let rows = match tokio::time::timeout(PATIENCE, read).await {
        Ok(Ok(rows)) => rows,
        Ok(Err(error)) => {
            let error: StoreError = error;
            tracing::debug!(%error, "metrics are given without what waits");
            return Vec::new();
        }
        Err(_elapsed) => return Vec::new(),
    };
    #[expect(
        clippy::cast_precision_loss,
        reason = "a gauge is a float, and no queue comes near 2^53"
    )]
    let calls = |row: &store::statistics::WaitingRow| row.calls as f64;
    let labels = |row: &store::statistics::WaitingRow| vec![("tier", row.tier.clone())];
    vec![
        Gauge {
            name: "pending_calls",
            help: "Calls that wait for people in a tier",
            values: rows.iter().map(|row| (labels(row), calls(row))).collect(),
        },
        Gauge {
            name: "oldest_pending_seconds",
            help: "How long the first of them has waited; 0 where none waits",
            values: rows
                .iter()
                .map(|row| (labels(row), row.oldest_seconds.unwrap_or(0.0)))
                .collect(),
        },
    ]
}
