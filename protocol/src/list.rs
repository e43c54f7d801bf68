//! Which jobs are meant ([`JobFilter`]), and a page of them ([`JobList`], [`JobListReply`]).
//!
//! A filter that names queues and states alone is answered from an index; whatever else it asks is a
//! scan of what the index has, with a budget. What is walked in which order is the engine's; it goes on
//! in `server/engine/src/list.rs`.

use serde::{Deserialize, Serialize};

use crate::{
    error::WireError,
    ids::{BatchId, Kind, QueuePattern, Tag},
    job::{JobState, JobView},
    limits,
    request::check_range,
    time::{INTEGER_MAX, Timestamp},
};

/// Which jobs are meant: those for which everything holds that is given. An empty one means all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct JobFilter {
    /// In this queue, or in those whose names begin so; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueuePattern>,
    /// In one of these states, each at most once; empty means any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub states: Vec<JobState>,
    /// Of this kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// With this tag among its tags.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// With this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Tag>,
    /// A member of this batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    /// With this priority, 0…9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Its last error is of this kind, 1…100 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_kind: Option<String>,
    /// The message of its last error has this in it, 1…256 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_text: Option<String>,
    /// Its time is this wall time or later. The time of a scheduled job is its `run_at`, of a job that
    /// is over its `closed_at`, of every other its `pushed_at`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
    /// Its time is before this wall time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Timestamp>,
}

impl JobFilter {
    /// The jobs of these queues.
    pub fn of(queue: QueuePattern) -> Self {
        Self {
            queue: Some(queue),
            ..Self::default()
        }
    }

    /// Only those in one of these states.
    #[must_use]
    pub fn in_states(mut self, states: impl Into<Vec<JobState>>) -> Self {
        self.states = states.into();
        self
    }

    /// Whether a state is meant.
    pub fn has_state(&self, state: JobState) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }

    /// Whether it asks for what only a job's errors show.
    pub fn asks_for_errors(&self) -> bool {
        self.error_kind.is_some() || self.error_text.is_some()
    }

    pub(crate) fn check(&self) -> Result<(), WireError> {
        let mut states = self.states.iter().enumerate();
        let is_repeated = |(nth, state): (usize, &JobState)| {
            let mut before = self.states.iter().take(nth);
            before.any(|other| other == state)
        };
        if let Some((nth, state)) = states.find(|row| is_repeated(*row)) {
            let message = format!("each state at most once; {state} stands there twice");
            return Err(WireError::bad_request(format!("states[{nth}]"), message));
        }
        if let Some(priority) = self.priority {
            let max = usize::from(limits::PRIORITY_MAX);
            check_range("priority", 0, max, u32::from(priority))?;
        }
        check_text(
            "error_kind",
            self.error_kind.as_deref(),
            limits::ERROR_KIND_BYTES_MAX,
        )?;
        check_text(
            "error_text",
            self.error_text.as_deref(),
            limits::FILTER_TEXT_BYTES_MAX,
        )?;
        for (field, at) in [("since", self.since), ("before", self.before)] {
            if let Some(at) = at.filter(|at| at.0 > INTEGER_MAX) {
                return Err(WireError::out_of_range(field, 0, INTEGER_MAX, at.0));
            }
        }
        match (self.since, self.before) {
            (Some(since), Some(before)) if since >= before => Err(WireError::bad_request(
                "before",
                "before must be after since, or no job is meant",
            )),
            (Some(_) | None, Some(_) | None) => Ok(()),
        }
    }
}

/// A text that something is looked for by: not empty, which would mean everything, and not long.
fn check_text(field: &str, text: Option<&str>, max: usize) -> Result<(), WireError> {
    match text.map(str::len) {
        Some(0) => Err(WireError::out_of_range(field, 1, max as u64, 0)),
        Some(bytes) if bytes > max => Err(WireError::too_large(field, max, bytes)),
        Some(_) | None => Ok(()),
    }
}

/// Lists jobs, a page at a time: state by state as [`JobState::ALL`] has them, in each state queue by
/// queue or over all of them at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobList {
    /// Which jobs; absent means all of the namespace.
    #[serde(default)]
    pub filter: JobFilter,
    /// Each state from its other end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub newest_first: bool,
    /// Where the last page of this list ended, as it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Jobs of the page, 1…1000; default 100.
    #[serde(default = "crate::request::page")]
    pub limit: u32,
}

impl JobList {
    /// The first page of the jobs of a filter.
    pub fn of(filter: JobFilter) -> Self {
        Self {
            filter,
            newest_first: false,
            cursor: None,
            limit: crate::request::page(),
        }
    }

    pub(crate) fn check(&self) -> Result<(), WireError> {
        check_range("limit", 1, limits::PAGE_MAX, self.limit)?;
        let checked = self.filter.check();
        checked.map_err(|error| error.within("filter"))
    }
}

/// Answers `job_list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobListReply {
    /// The jobs, without payload; with their last error, its backtrace left out, when the filter asks
    /// for errors. Fewer than `limit` when the scan has used up its budget or is through.
    pub jobs: Vec<JobView>,
    /// Rows of indexes that were looked at for this page.
    pub scanned: u64,
    /// Whether there is nothing behind this page.
    pub is_complete: bool,
    /// Where to go on; absent when it is complete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}
