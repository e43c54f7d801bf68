//! Workflows: jobs that wait for other jobs. What a push says of that ([`Condition`], [`OnDead`]),
//! what its names come to ([`awaited`]), and a batch shown as one graph ([`NodeView`]).
//!
//! Names hold within one push. Whether a job that is named by its id may be waited for only the
//! server knows.

use std::{collections::BTreeMap, fmt};

use serde::{Deserialize, Serialize};

use crate::{
    error::{ErrorCode, WireError},
    ids::{JobId, Kind, QueueName, Tag},
    job::{JobSpec, JobState},
    limits,
};

/// Which end of a job lets those that wait for it go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// It is done.
    #[default]
    Success,
    /// It is over, whatever became of it.
    Settled,
}

/// What becomes of a job that waits for the success of one that ends otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnDead {
    /// It is cancelled.
    #[default]
    Cancel,
    /// It stays blocked for a person: a dead job that is revived and then done releases it.
    Hold,
}

/// A job that another one of a push waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Awaited {
    /// The nth of the same push.
    Nth(usize),
    /// One that was pushed before.
    Job(JobId),
}

/// What each job of a push waits for, in the order of its `after`. A word is the name of a job of
/// the same push, else the id of one that was pushed before.
///
/// # Errors
/// `bad_request` or `too_large` naming the field: a name that two jobs have, one that none has, a
/// job that waits for itself or twice for another one, jobs that wait for each other, and more
/// than may be waited for.
pub fn awaited(jobs: &[JobSpec]) -> Result<Vec<Vec<Awaited>>, WireError> {
    let names = names_of(jobs)?;
    let mut all = Vec::with_capacity(jobs.len());
    let mut edges = 0;
    for (nth, job) in jobs.iter().enumerate() {
        edges += job.after.len();
        let max = limits::EDGES_MAX;
        if edges > max {
            return Err(WireError::too_large(&field(nth, "after"), max, edges));
        }
        let mut own = Vec::with_capacity(job.after.len());
        for (at, word) in job.after.iter().enumerate() {
            let wrong = |message: String| {
                WireError::bad_request(field(nth, &format!("after[{at}]")), message)
            };
            let awaited = match (names.get(word), word.as_str().parse()) {
                (Some(other), _) if *other == nth => {
                    return Err(wrong(format!("{word} cannot wait for itself")));
                }
                (Some(other), _) => Awaited::Nth(*other),
                (None, Ok(id)) => Awaited::Job(id),
                (None, Err(_no_id)) => {
                    return Err(wrong(format!(
                        "no job of this push has the name {word}, and it is no id of a job"
                    )));
                }
            };
            own.push(awaited);
        }
        if let Some(at) = repeated(&own) {
            let path = field(nth, &format!("after[{at}]"));
            return Err(WireError::bad_request(path, "each job at most once"));
        }
        all.push(own);
    }
    match circle(&all) {
        None => Ok(all),
        Some((nth, at)) => {
            let path = field(nth, &format!("after[{at}]"));
            let message = format!("jobs[{nth}] would wait for itself by way of this job");
            Err(WireError::bad_request(path, message))
        }
    }
}

fn field(nth: usize, rest: &str) -> String {
    format!("jobs[{nth}].{rest}")
}

fn names_of(jobs: &[JobSpec]) -> Result<BTreeMap<&Tag, usize>, WireError> {
    let mut names = BTreeMap::new();
    for (nth, job) in jobs.iter().enumerate() {
        let Some(name) = &job.name else { continue };
        if let Some(other) = names.insert(name, nth) {
            let message = format!("jobs[{other}] has the name {name} already");
            return Err(WireError::bad_request(field(nth, "name"), message));
        }
    }
    Ok(names)
}

/// Where a list names something that it has named before.
fn repeated(list: &[Awaited]) -> Option<usize> {
    let mut seen = std::collections::BTreeSet::new();
    list.iter().position(|awaited| !seen.insert(*awaited))
}

/// A job that waits for itself by way of others: which, and by which of those that it waits for.
fn circle(all: &[Vec<Awaited>]) -> Option<(usize, usize)> {
    let within = |awaited: &Awaited| match awaited {
        Awaited::Nth(nth) => Some(*nth),
        Awaited::Job(_) => None,
    };
    let mut waits: Vec<usize> = Vec::with_capacity(all.len());
    let mut dependents: Vec<Vec<usize>> = vec![Vec::new(); all.len()];
    for (nth, own) in all.iter().enumerate() {
        waits.push(own.iter().filter_map(within).count());
        for other in own.iter().filter_map(within) {
            dependents.get_mut(other)?.push(nth);
        }
    }
    let mut free: Vec<usize> = (0..all.len())
        .filter(|nth| waits.get(*nth) == Some(&0))
        .collect();
    while let Some(nth) = free.pop() {
        for other in dependents.get(nth)? {
            let left = waits.get_mut(*other)?;
            *left -= 1;
            if *left == 0 {
                free.push(*other);
            }
        }
    }
    // Whoever is left waits for another one that is left: so many steps end on a circle.
    let step = |nth: usize| {
        let own = all.get(nth)?.iter().enumerate();
        let mut own = own.filter_map(|(at, awaited)| Some((at, within(awaited)?)));
        own.find(|(_, other)| waits.get(*other).is_some_and(|left| *left > 0))
    };
    let mut nth = waits.iter().position(|left| *left > 0)?;
    for _ in 0..all.len() {
        (_, nth) = step(nth)?;
    }
    Some((nth, step(nth)?.0))
}

impl JobSpec {
    /// Whether it may be waited for, or waits.
    pub fn is_node(&self) -> bool {
        self.name.is_some() || !self.after.is_empty()
    }

    /// Checks what it says of other jobs, without them.
    pub(crate) fn check_after(&self) -> Result<(), WireError> {
        let (max, actual) = (limits::AFTER_MAX, self.after.len());
        if actual > max {
            return Err(WireError::too_large("after", max, actual));
        }
        let only_with_after = [
            ("if", self.condition.is_some()),
            ("on_dead", self.on_dead.is_some()),
        ];
        if let Some((field, _)) = only_with_after.iter().find(|(_, given)| *given)
            && self.after.is_empty()
        {
            let message = format!("{field} goes with after");
            return Err(WireError::bad_request(*field, message));
        }
        match (self.condition, self.on_dead) {
            (Some(Condition::Settled), Some(_)) => {
                let message = "with if settled a job goes on whatever became of the others";
                Err(WireError::bad_request("on_dead", message))
            }
            (Some(Condition::Success) | None, _) | (Some(Condition::Settled), None) => Ok(()),
        }
    }

    /// Refuses that a job which is pushed by itself waits, or is waited for.
    pub(crate) fn check_alone(&self, why: &str) -> Result<(), WireError> {
        let fields = [
            ("name", self.name.is_some()),
            ("after", !self.after.is_empty()),
        ];
        match fields.iter().find(|(_, given)| *given) {
            Some((field, _)) => Err(WireError::bad_request(*field, why)),
            None => Ok(()),
        }
    }
}

/// What a non-atomic push is told of a job that waits.
pub fn needs_atomic() -> WireError {
    WireError {
        field: Some("after".to_owned()),
        ..WireError::new(
            ErrorCode::BadRequest,
            "jobs that wait for others are pushed as a whole: set atomic",
        )
    }
}

/// Where a job of a batch stands that was named, or waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Waits for a time; a retry is one with failures.
    Scheduled,
    /// Waits for other jobs.
    Blocked,
    /// May be granted.
    Ready,
    /// A worker has it.
    Leased,
    /// Acked.
    Done,
    /// Out of attempts, or poison; kept for a person.
    Dead,
    /// Stopped before it was done.
    Cancelled,
    /// Its time had passed before it was granted.
    Expired,
    /// Discarded by its worker, purged, or dead and removed since.
    Deleted,
}

impl From<JobState> for NodeState {
    fn from(state: JobState) -> Self {
        match state {
            JobState::Scheduled => Self::Scheduled,
            JobState::Blocked => Self::Blocked,
            JobState::Ready => Self::Ready,
            JobState::Leased => Self::Leased,
            JobState::Done => Self::Done,
            JobState::Dead => Self::Dead,
            JobState::Cancelled => Self::Cancelled,
            JobState::Expired => Self::Expired,
        }
    }
}

impl NodeState {
    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Blocked => "blocked",
            Self::Ready => "ready",
            Self::Leased => "leased",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Deleted => "deleted",
        }
    }
}

impl fmt::Display for NodeState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A job of a batch as a node of its graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeView {
    /// The job.
    pub job: JobId,
    /// Its name in its push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Tag>,
    /// Its queue.
    pub queue: QueueName,
    /// Its kind.
    pub kind: Kind,
    /// Where it stands, or what became of it.
    pub state: NodeState,
    /// All jobs that it was to wait for, over or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<JobId>,
}
