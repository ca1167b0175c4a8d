//! Runs: one execution of an agent each. Opening and ending are recorded; what a call needs to know of its run is
//! held in memory, and asked of the database only when it is not there.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use chrono::TimeDelta;
use futures::FutureExt;
use parking_lot::Mutex;
use serde_json::json;
use sqlx::PgPool;

use crate::{
    audit::{ActError, Recorder},
    clock::Timestamp,
    config::Agent,
    entry::{Entry, Kind},
    ids::RunId,
    store::{self, StoreError, runs::RunRow},
};

/// Runs held in memory at the most; more are read again when needed.
const HELD: usize = 16_384;
/// An implicit run ends when its agent has been silent for this long …
const IMPLICIT_IDLE: TimeDelta = TimeDelta::minutes(15);
/// … and after this long in any case.
const IMPLICIT_LIFE: TimeDelta = TimeDelta::hours(12);

/// One run, as calls need it.
#[derive(Debug)]
pub struct Run {
    /// Its id.
    pub id: RunId,
    /// Its agent.
    pub agent: Arc<str>,
    /// Who or what started it.
    pub triggered_by: String,
    /// What for.
    pub purpose: String,
    /// Its scopes: at most the agent's at the time it was opened.
    pub scopes: Vec<String>,
    /// True when the gateway opened it because the agent named none.
    pub implicit: bool,
    /// When it ends by itself.
    pub expires_at: Option<Timestamp>,
    ended: AtomicBool,
}

impl Run {
    /// True while calls may be made in it.
    pub fn is_open(&self, now: Timestamp) -> bool {
        !self.ended.load(Ordering::Acquire) && self.expires_at.is_none_or(|end| now < end)
    }

    fn from_row(id: RunId, row: RunRow) -> Self {
        Self {
            id,
            agent: row.agent.as_str().into(),
            triggered_by: row.triggered_by,
            purpose: row.purpose,
            scopes: row.scopes,
            implicit: row.implicit,
            expires_at: row.expires_at,
            ended: AtomicBool::new(row.ended_at.is_some()),
        }
    }

    fn to_row(&self) -> RunRow {
        RunRow {
            agent: self.agent.to_string(),
            triggered_by: self.triggered_by.clone(),
            purpose: self.purpose.clone(),
            scopes: self.scopes.clone(),
            implicit: self.implicit,
            expires_at: self.expires_at,
            ended_at: None,
        }
    }
}

/// What a new run is to be.
#[derive(Debug)]
pub struct NewRun {
    /// Who or what starts it.
    pub triggered_by: String,
    /// What for.
    pub purpose: String,
    /// Its scopes, already checked to be the agent's.
    pub scopes: Vec<String>,
    /// How long it lasts.
    pub expires_in: Option<TimeDelta>,
}

/// Runs that were not found, or could not be asked for.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is none of that id for this agent, or it is over.
    #[error("no open run of that id for this agent")]
    NotOpen,
    /// The database is away.
    #[error(transparent)]
    Act(#[from] ActError),
}

impl From<StoreError> for RunError {
    fn from(error: StoreError) -> Self {
        Self::Act(ActError::Store(error))
    }
}

struct Implicit {
    run: Arc<Run>,
    last_used: Timestamp,
}

/// The runs of this gateway.
pub struct Runs {
    recorder: Recorder,
    pool: PgPool,
    held: Mutex<HashMap<RunId, Arc<Run>>>,
    implicit: Mutex<HashMap<Arc<str>, Implicit>>,
    /// One opening of an implicit run at a time, so that many first calls at once share one.
    opening: tokio::sync::Mutex<()>,
}

impl Runs {
    /// No run is held yet.
    pub fn new(recorder: Recorder, pool: PgPool) -> Self {
        Self {
            recorder,
            pool,
            held: Mutex::default(),
            implicit: Mutex::default(),
            opening: tokio::sync::Mutex::default(),
        }
    }

    /// The open run of that id of this agent. Unknown, ended, expired and another agent's are one answer.
    ///
    /// # Errors
    /// [`RunError::NotOpen`], or the database is away.
    pub async fn open_run(
        &self,
        id: &RunId,
        agent: &str,
        now: Timestamp,
    ) -> Result<Arc<Run>, RunError> {
        let run = self.find(id).await?.ok_or(RunError::NotOpen)?;
        if *run.agent == *agent && run.is_open(now) {
            Ok(run)
        } else {
            Err(RunError::NotOpen)
        }
    }

    /// The run of that id, open or not: for a call that was accepted while it was.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn find(&self, id: &RunId) -> Result<Option<Arc<Run>>, RunError> {
        if let Some(run) = self.held.lock().get(id) {
            return Ok(Some(Arc::clone(run)));
        }
        let mut connection = self.pool.acquire().await.map_err(StoreError::from)?;
        let Some(row) = store::runs::find(&mut connection, id).await? else {
            return Ok(None);
        };
        let read = Arc::new(Run::from_row(id.clone(), row));
        // Somebody else may have read it meanwhile: then theirs is the one that an ending marks.
        Ok(Some(self.hold(read)))
    }

    fn hold(&self, run: Arc<Run>) -> Arc<Run> {
        let mut held = self.held.lock();
        if held.len() >= HELD {
            held.clear();
        }
        Arc::clone(held.entry(run.id.clone()).or_insert(run))
    }

    /// Opens a run and records it.
    ///
    /// # Errors
    /// When the database is away.
    pub async fn open(
        &self,
        agent: &Agent,
        new: NewRun,
        now: Timestamp,
    ) -> Result<Arc<Run>, RunError> {
        self.add(agent, new, false, now).await
    }

    async fn add(
        &self,
        agent: &Agent,
        new: NewRun,
        implicit: bool,
        now: Timestamp,
    ) -> Result<Arc<Run>, RunError> {
        let run = Arc::new(Run {
            id: RunId::generate(),
            agent: Arc::clone(&agent.name),
            triggered_by: new.triggered_by,
            purpose: new.purpose,
            scopes: new.scopes,
            implicit,
            expires_at: new.expires_in.and_then(|life| now.checked_add_signed(life)),
            ended: AtomicBool::new(false),
        });
        let entry = Entry {
            run_id: Some(run.id.clone()),
            agent: Some(Arc::clone(&run.agent)),
            detail: Some(json!({
                "triggered_by": run.triggered_by,
                "purpose": run.purpose,
                "scopes": run.scopes,
                "implicit": run.implicit,
                "expires_at": run.expires_at,
            })),
            ..Entry::new(Kind::RunOpened)
        };
        let kept = Arc::clone(&run);
        self.recorder
            .act(move |connection| {
                async move {
                    store::runs::add(connection, &kept.id, &kept.to_row(), now).await?;
                    Ok((vec![entry], ()))
                }
                .boxed()
            })
            .await?;
        Ok(self.hold(run))
    }

    /// The run for calls that name none: one for each agent, opened with the first such call, that says of itself
    /// that nobody opened it. `keep` is asked whether a run that would be over must stay (a halted one must: silence
    /// is no way out of a halt).
    ///
    /// # Errors
    /// When the database is away.
    pub async fn implicit_run(
        &self,
        agent: &Agent,
        now: Timestamp,
        keep: impl Fn(&Run) -> bool,
    ) -> Result<Arc<Run>, RunError> {
        if let Some(run) = self.current_implicit(agent, now, &keep) {
            return Ok(run);
        }
        let _one_at_a_time = self.opening.lock().await;
        if let Some(run) = self.current_implicit(agent, now, &keep) {
            return Ok(run);
        }
        let new = NewRun {
            triggered_by: format!("agent:{}", agent.name),
            purpose: "not stated: the agent opened no run".to_owned(),
            scopes: agent.scopes.iter().map(ToString::to_string).collect(),
            expires_in: Some(IMPLICIT_LIFE),
        };
        let run = self.add(agent, new, true, now).await?;
        self.implicit.lock().insert(
            Arc::clone(&agent.name),
            Implicit {
                run: Arc::clone(&run),
                last_used: now,
            },
        );
        Ok(run)
    }

    fn current_implicit(
        &self,
        agent: &Agent,
        now: Timestamp,
        keep: &impl Fn(&Run) -> bool,
    ) -> Option<Arc<Run>> {
        let mut implicit = self.implicit.lock();
        let current = implicit.get_mut(&agent.name)?;
        let fresh = current.run.is_open(now) && now - current.last_used < IMPLICIT_IDLE;
        if !fresh && !keep(&current.run) {
            return None;
        }
        current.last_used = now;
        Some(Arc::clone(&current.run))
    }

    /// Ends a run of this agent and records it.
    ///
    /// # Errors
    /// [`RunError::NotOpen`] when there is none or it is over.
    pub async fn end(&self, id: &RunId, agent: &Agent, now: Timestamp) -> Result<(), RunError> {
        let run = self.open_run(id, &agent.name, now).await?;
        // No call begins in it from here on, whatever becomes of the record.
        run.ended.store(true, Ordering::Release);
        let kept = Arc::clone(&run);
        let ended = self
            .recorder
            .act(move |connection| {
                async move {
                    let ended = store::runs::end(connection, &kept.id, &kept.agent, now).await?;
                    store::references::erase(connection).await?;
                    let entry = Entry {
                        run_id: Some(kept.id.clone()),
                        agent: Some(Arc::clone(&kept.agent)),
                        ..Entry::new(Kind::RunEnded)
                    };
                    Ok((if ended { vec![entry] } else { Vec::new() }, ended))
                }
                .boxed()
            })
            .await?;
        if ended {
            Ok(())
        } else {
            Err(RunError::NotOpen)
        }
    }
}
