//! What is done to many jobs at once: a task of the server ([`TaskStart`], [`TaskView`]) walks the jobs
//! of a filter and does to each what the operation on single jobs would do.
//!
//! Shapes and ranges are checked here. How a task goes on is the driver's, in
//! `server/src/driver/bulk.rs`.

use serde::{Deserialize, Serialize};

use crate::{
    change::ChangeTo,
    error::WireError,
    ids::{JobId, TaskId},
    job::JobState,
    limits,
    list::JobFilter,
    time::{DurationMs, Timestamp},
};

/// What a task does to each job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskAction {
    /// Cancels it, as `job_cancel`.
    Cancel,
    /// Changes its time, queue or priority, as `job_change`.
    Change,
    /// Makes it ready again, as `dead_revive`.
    Revive,
    /// Removes it for good, as `job_delete`.
    Delete,
}

impl TaskAction {
    /// Every action.
    pub const ALL: [Self; 4] = [Self::Cancel, Self::Change, Self::Revive, Self::Delete];

    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cancel => "cancel",
            Self::Change => "change",
            Self::Revive => "revive",
            Self::Delete => "delete",
        }
    }

    /// The states of the jobs that it can be done to.
    pub const fn states(self) -> &'static [JobState] {
        use JobState::{Blocked, Cancelled, Dead, Done, Expired, Leased, Ready, Scheduled};
        match self {
            Self::Cancel => &[Scheduled, Blocked, Ready, Leased],
            Self::Change => &[Scheduled, Blocked, Ready],
            Self::Revive => &[Dead],
            Self::Delete => &[Done, Dead, Cancelled, Expired],
        }
    }
}

/// Starts a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStart {
    /// Which jobs. It names queues, `*` for all; states that it does not name are those that the
    /// action can be done to. Jobs that are pushed, or end, after the start are not meant.
    pub filter: JobFilter,
    /// What is done to them.
    pub action: TaskAction,
    /// `change`: where they go; needed there. A delay is counted from the start of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<ChangeTo>,
    /// `cancel`: as in `job_cancel`; default 30 s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<DurationMs>,
    /// Whether the jobs are only counted; default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

impl TaskStart {
    /// Does this to the jobs of a filter.
    pub fn new(action: TaskAction, filter: JobFilter) -> Self {
        Self {
            filter,
            action,
            to: None,
            grace_ms: None,
            dry_run: false,
        }
    }

    pub(crate) fn check(&self) -> Result<(), WireError> {
        if self.filter.queue.is_none() {
            let message = "name a queue, a prefix and a final *, or * for all";
            return Err(WireError::bad_request("filter.queue", message));
        }
        self.filter
            .check()
            .map_err(|error| error.within("filter"))?;
        let allowed = self.action.states();
        let mut states = self.filter.states.iter();
        if let Some(nth) = states.position(|state| !allowed.contains(state)) {
            let words: Vec<&str> = allowed.iter().map(|state| state.as_str()).collect();
            let action = self.action.as_str();
            let message = format!("{action} is for jobs that are {}", words.join(", "));
            return Err(WireError::bad_request(
                format!("filter.states[{nth}]"),
                message,
            ));
        }
        match (self.action, &self.to) {
            (TaskAction::Change, Some(to)) => to.check()?,
            (TaskAction::Change, None) => {
                return Err(WireError::bad_request("to", "change needs to"));
            }
            (_, Some(_)) => return Err(WireError::bad_request("to", "to goes with change")),
            (_, None) => {}
        }
        match (self.action, self.grace_ms) {
            (TaskAction::Cancel, Some(grace)) if grace > limits::CANCEL_GRACE_MAX => {
                let max = limits::CANCEL_GRACE_MAX.0;
                Err(WireError::out_of_range("grace_ms", 0, max, grace.0))
            }
            (TaskAction::Cancel, _) | (_, None) => Ok(()),
            (_, Some(_)) => Err(WireError::bad_request(
                "grace_ms",
                "grace_ms goes with cancel",
            )),
        }
    }
}

/// Names a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneTask {
    /// The task.
    pub task: TaskId,
}

/// Lists the tasks of the namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskList {}

/// How far a task has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    /// It goes on.
    Running,
    /// It is through.
    Finished,
    /// It was cancelled before it was through. What it has done stays.
    Cancelled,
}

impl TaskState {
    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Finished => "finished",
            Self::Cancelled => "cancelled",
        }
    }
}

/// A job that a task could not do its action to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskRefusal {
    /// The job.
    pub job: JobId,
    /// Why.
    pub err: WireError,
}

/// A task as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskView {
    /// The task.
    pub id: TaskId,
    /// How far it has come.
    pub state: TaskState,
    /// What was asked for.
    pub start: TaskStart,
    /// The token of whoever started it; empty on a server without tokens.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub by: String,
    /// When it was started.
    pub started_at: Timestamp,
    /// When it was through or cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Rows of indexes that it has looked at.
    pub scanned: u64,
    /// Jobs that its filter means, of those rows.
    pub matched: u64,
    /// Of those: jobs that it has changed; 0 in a dry run.
    pub changed: u64,
    /// Of those: jobs that it could not change.
    pub refused: u64,
    /// The first ten of those, with the reason.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refusals: Vec<TaskRefusal>,
}

/// Answers `task_list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TasksReply {
    /// The newest first: those that run, and the last hundred that ended.
    pub tasks: Vec<TaskView>,
}
