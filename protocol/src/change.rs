//! What is done to jobs one by one besides cancelling them: one that waits goes to another time, queue
//! or priority ([`JobChange`]), one that is over is deleted ([`JobDelete`]).
//!
//! Shapes and ranges are checked here; which state allows what is the engine's, in
//! `server/engine/src/reschedule.rs`.

use serde::{Deserialize, Serialize};

use crate::{
    error::WireError,
    ids::{JobId, QueueName},
    job::JobState,
    limits::{self, Limits},
    request::{check_count, check_delay, check_range},
    time::{DurationMs, INTEGER_MAX, Timestamp},
};

/// Where a waiting job goes. What is absent stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangeTo {
    /// Ready after so many ms from now, 0…ten years; 0: now. Not together with `run_at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<DurationMs>,
    /// Ready at this wall time; one in the past means now. Not together with `delay_ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    /// In this queue, which is made when there is none of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueName>,
    /// With this priority, 0…9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
}

impl ChangeTo {
    /// Ready now.
    pub fn now() -> Self {
        Self::after(DurationMs::ZERO)
    }

    /// Ready after so long.
    pub fn after(delay: DurationMs) -> Self {
        Self {
            delay_ms: Some(delay),
            ..Self::default()
        }
    }

    /// In another queue.
    pub fn queue(queue: QueueName) -> Self {
        Self {
            queue: Some(queue),
            ..Self::default()
        }
    }

    pub(crate) fn check(&self) -> Result<(), WireError> {
        if *self == Self::default() {
            let message = "name delay_ms, run_at, queue or priority";
            return Err(WireError::bad_request("to", message));
        }
        self.check_fields().map_err(|error| error.within("to"))
    }

    fn check_fields(&self) -> Result<(), WireError> {
        check_delay("delay_ms", self.delay_ms)?;
        if self.delay_ms.is_some() && self.run_at.is_some() {
            let message = "either run_at or delay_ms, not both";
            return Err(WireError::bad_request("delay_ms", message));
        }
        if let Some(at) = self.run_at.filter(|at| at.0 > INTEGER_MAX) {
            return Err(WireError::out_of_range("run_at", 0, INTEGER_MAX, at.0));
        }
        match self.priority {
            Some(priority) => {
                let max = usize::from(limits::PRIORITY_MAX);
                check_range("priority", 0, max, u32::from(priority))
            }
            None => Ok(()),
        }
    }
}

/// Changes jobs that wait, each by itself: when they are ready, in which queue, with which priority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobChange {
    /// 1…1000 jobs.
    pub jobs: Vec<JobId>,
    /// Where they go.
    pub to: ChangeTo,
}

impl JobChange {
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), WireError> {
        check_count("jobs", 1, limits.items_max, self.jobs.len())?;
        self.to.check()
    }
}

/// Removes jobs that are over for good, each by itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobDelete {
    /// 1…1000 jobs.
    pub jobs: Vec<JobId>,
}

/// Answers `job_change` and `job_delete`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeReply {
    /// What became of each job, in the order of the request.
    pub results: Vec<ChangeResult>,
}

/// What became of one job.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ChangeResult {
    /// `job_change`: the state of the job now; absent when it was refused, and when it was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// When a scheduled job becomes ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    /// It was there already; nothing changed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub already: bool,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub err: Option<WireError>,
}

impl From<Result<Self, WireError>> for ChangeResult {
    fn from(result: Result<Self, WireError>) -> Self {
        result.unwrap_or_else(|error| Self {
            err: Some(error),
            ..Self::default()
        })
    }
}
