//! Lists of jobs: which index is walked for which state, and which of the jobs on it are meant.
//!
//! | state | walked | order |
//! |---|---|---|
//! | `scheduled` | timers, of all queues at once | by time, the next first |
//! | `blocked` | records of jobs, of all queues at once | by id: priority, then birth |
//! | `ready` | runs of a queue | that of being granted |
//! | `leased` | leases in memory, of all queues at once | by deadline, the next first |
//! | the others | index of closed jobs of a queue | by `closed_at`, the oldest first |
//!
//! The driver walks, a slice at a time, and nothing is held between two slices: a [`Position`] says
//! where to go on. What it finds are only hints; [`Engine::meet`] decides by what is known of a job at
//! that moment, so a job that has gone elsewhere since is not shown where it was.

use std::ops::Bound;

use ganger_protocol::{
    JobId, LeaseId, NamespaceName, Timestamp,
    job::{JobState, JobView},
    list::JobFilter,
};

use crate::{
    Engine,
    command::Mono,
    facts::{Facts, Need},
    queue::Queue,
    records::{Closed, JobRecord, Place, QueueNumber, Timer},
};

/// One walk over one index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Walk {
    /// The state that its jobs are in.
    pub state: JobState,
    /// The queue that they are in; `None` when the index is that of all queues.
    pub queue: Option<QueueNumber>,
}

/// Where a walk stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Position {
    /// At a timer.
    Timer(Timer),
    /// At the record of a job.
    Job(JobId),
    /// At an entry of a run.
    Place(Place),
    /// At a lease: its deadline, its number, its job.
    Lease(Mono, LeaseId, JobId),
    /// At a row of the index of closed jobs.
    Closed(Closed),
}

/// A row that a walk has come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spot {
    /// Where it is.
    pub position: Position,
    /// Whom it names; `None` for a row of another kind.
    pub job: Option<JobId>,
}

/// Rows that follow each other on a walk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Spots {
    /// In the order of the walk.
    pub rows: Vec<Spot>,
    /// Whether there is none behind them.
    pub at_end: bool,
}

impl Engine {
    /// The walk behind another one, or the first: state by state, queue by queue. Those that certainly
    /// have no job are left out.
    pub fn next_walk(
        &self,
        namespace: &NamespaceName,
        filter: &JobFilter,
        after: Option<Walk>,
    ) -> Option<Walk> {
        let states = JobState::ALL.into_iter();
        let mut states = states.filter(|state| filter.has_state(*state));
        states.find_map(|state| {
            let behind = match after {
                Some(after) if state < after.state => return None,
                Some(after) if state == after.state => Some(after.queue?),
                Some(_) | None => None,
            };
            let is_meant = |queue: &&Queue| {
                let record = &queue.record;
                let pattern = filter.queue.as_ref();
                record.namespace == *namespace
                    && pattern.is_none_or(|pattern| pattern.matches(&record.name))
                    && queue.count_of(state) > 0
            };
            let queue = self.queues.behind(behind).find(is_meant)?.record.number;
            Some(Walk {
                state,
                queue: (!is_walked_at_once(state)).then_some(queue),
            })
        })
    }

    /// Leases behind a position, in the order of their deadlines or the other way round.
    pub fn leased_spots(&self, after: Option<Position>, newest_first: bool, max: usize) -> Spots {
        let spot = |(at, lease, job): (Mono, LeaseId, JobId)| Spot {
            position: Position::Lease(at, lease, job),
            job: Some(job),
        };
        let bound = match after {
            Some(Position::Lease(at, lease, _)) => Bound::Excluded((at, lease)),
            Some(_) | None => Bound::Unbounded,
        };
        let rows: Vec<Spot> = match newest_first {
            false => {
                let rows = self.leases.between(bound, Bound::Unbounded);
                rows.take(max).map(spot).collect()
            }
            true => {
                let rows = self.leases.between(Bound::Unbounded, bound).rev();
                rows.take(max).map(spot).collect()
            }
        };
        Spots {
            at_end: rows.len() < max,
            rows,
        }
    }

    /// What must be read before it is known whether the job of a row is meant, given what was read
    /// already.
    pub fn need_to_meet(
        &self,
        seen: (&NamespaceName, &JobFilter),
        walk: &Walk,
        spot: &Spot,
        facts: &Facts,
    ) -> Option<Need> {
        let job = spot.job?;
        let need = self.need_of_job(job, true);
        if let Some(need) = need.filter(|need| !facts.contains(need)) {
            return Some(need);
        }
        let errors = Need::Errors(job);
        let asks = seen.1.asks_for_errors() && !facts.contains(&errors);
        (asks && self.met(seen, walk, spot, facts).is_some()).then_some(errors)
    }

    /// The job of a row, when it stands there now and is meant.
    pub fn meet(
        &self,
        seen: (&NamespaceName, &JobFilter),
        walk: &Walk,
        spot: &Spot,
        facts: &Facts,
    ) -> Option<JobView> {
        let record = self.met(seen, walk, spot, facts)?;
        let (_, filter) = seen;
        let mut view = self.shown(&record, facts)?;
        if filter.asks_for_errors() {
            let mut last = view.errors.pop()?;
            let is_meant = filter
                .error_kind
                .as_ref()
                .is_none_or(|kind| *kind == last.kind)
                && filter
                    .error_text
                    .as_ref()
                    .is_none_or(|text| last.message.contains(&**text));
            last.backtrace.clear();
            view.errors = vec![last];
            return is_meant.then_some(view);
        }
        Some(view)
    }

    /// The record of the job of a row, when it is meant as far as the record shows it.
    fn met(
        &self,
        (namespace, filter): (&NamespaceName, &JobFilter),
        walk: &Walk,
        spot: &Spot,
        facts: &Facts,
    ) -> Option<Box<JobRecord>> {
        let record = self.lookup(spot.job?, facts)?;
        let queue = &self.queues.find(record.queue)?.record;
        let lease = self.leases.find(&record.id);
        let state = lease.map_or(record.state, |_| JobState::Leased);
        let stands = state == walk.state
            && walk.queue.is_none_or(|number| number == record.queue)
            && match spot.position {
                Position::Timer(timer) => record.run_at == Some(timer.at),
                Position::Place(place) => record.place == Some(place),
                Position::Lease(_, number, _) => lease.is_some_and(|it| it.number == number),
                Position::Closed(row) => record.closed_at == Some(row.at),
                Position::Job(_) => true,
            };
        let is_meant = stands
            && queue.namespace == *namespace
            && filter
                .queue
                .as_ref()
                .is_none_or(|pattern| pattern.matches(&queue.name))
            && is_meant(filter, &record, time_of(&record, state));
        is_meant.then_some(record)
    }
}

/// Whether the index of a state is that of all queues.
const fn is_walked_at_once(state: JobState) -> bool {
    match state {
        JobState::Scheduled | JobState::Blocked | JobState::Leased => true,
        JobState::Ready
        | JobState::Done
        | JobState::Dead
        | JobState::Cancelled
        | JobState::Expired => false,
    }
}

/// The time of a job that a filter asks about.
fn time_of(record: &JobRecord, state: JobState) -> Timestamp {
    let of_state = match state {
        JobState::Scheduled => record.run_at,
        JobState::Done | JobState::Dead | JobState::Cancelled | JobState::Expired => {
            record.closed_at
        }
        JobState::Blocked | JobState::Ready | JobState::Leased => None,
    };
    of_state.unwrap_or(record.pushed_at)
}

/// Whether a filter means a job by what its record shows, besides queue and state.
fn is_meant(filter: &JobFilter, record: &JobRecord, time: Timestamp) -> bool {
    let JobFilter {
        queue: _,
        states: _,
        kind,
        tag,
        key,
        batch,
        priority,
        error_kind: _,
        error_text: _,
        since,
        before,
    } = filter;
    let Some(content) = record.content.as_deref() else {
        return false;
    };
    kind.as_ref().is_none_or(|kind| *kind == content.kind)
        && tag.as_ref().is_none_or(|tag| content.tags.contains(tag))
        && (key.is_none() || *key == content.key)
        && (batch.is_none() || *batch == record.batch)
        && priority.is_none_or(|priority| priority == record.priority)
        && since.is_none_or(|since| time >= since)
        && before.is_none_or(|before| time < before)
}
