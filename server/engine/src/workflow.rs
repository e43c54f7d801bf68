//! Workflows: jobs that wait for others.
//!
//! An edge is one small record for each end of it, written with the job that waits and erased with
//! what becomes of that. A job that others may wait for sets a timer in the transition that ends it,
//! due at once (`Engine::node_is_over`): so no end is overlooked, whatever happens in between, and
//! nothing must be read where a job ends. The tick that fires it reads the edges, a slice at a time,
//! and lets those that wait go on, cancels them, or leaves them for a person. What requests say of
//! workflows is in `requests`.

mod requests;

use std::collections::{BTreeMap, BTreeSet};

use ganger_protocol::{
    BatchId, JobId, Timestamp,
    event::EventName,
    job::JobState,
    workflow::{Condition, NodeState, OnDead},
};

pub(crate) use self::requests::node;
use crate::{
    Engine,
    command::Now,
    expiry::expiry_of,
    facts::{Fact, Facts, Need, Side},
    group::NodeChange,
    lease::{Lease, LeaseKey},
    records::{JobRecord, Timer, TimerKind},
};

/// Jobs that are over and whose edges one tick looks at.
pub(crate) const NODES_SLICE: usize = 16;

/// Edges of one of them, or nodes of a batch, that one tick looks at.
const EDGES_SLICE: u32 = 16;

/// How far the timers have come that one tick was not enough for. After a restart they begin anew
/// and find what is left.
#[derive(Debug, Default)]
pub(crate) struct Workflows {
    cursors: BTreeMap<Timer, Cursor>,
}

/// What a timer looks at, and behind which job.
#[derive(Debug, Clone, Copy)]
enum Cursor {
    /// The jobs that wait for the one that is over, or the nodes of a batch.
    First(Option<JobId>),
    /// The jobs that it waited for itself.
    Second(Option<JobId>),
}

/// Rows of the store with those of the open group, and behind which there may be more.
#[derive(Debug)]
struct Page<T> {
    rows: T,
    next: Option<JobId>,
}

/// A job as those see it that may wait for it: its batch, and whether it is known to be a node.
pub(crate) fn node_of(record: &JobRecord) -> (JobId, Option<BatchId>, bool) {
    (record.id, record.batch, record.is_node)
}

impl Engine {
    /// A job is over. Every transition into a terminal state, and out of all, says so here: what
    /// waits for it is looked at by the next tick.
    pub(crate) fn node_is_over(
        &mut self,
        (job, batch, is_node): (JobId, Option<BatchId>, bool),
        end: NodeState,
    ) {
        if !is_node && batch.is_none() {
            return;
        }
        let known = batch.and_then(|id| self.batch_at_hand(id));
        if !is_node && !known.is_some_and(|batch| batch.has_edges) {
            return;
        }
        if let Some(batch) = known.filter(|_| is_node).map(|batch| batch.id) {
            self.group.set_node_end(batch, job, Some(end));
        }
        let timer = timer(job, end == NodeState::Done);
        self.workflows.cursors.remove(&timer);
        self.set_timer(timer);
    }

    /// A dead job is ready again, and so not over: who was not told of its end goes on waiting.
    pub(crate) fn node_is_revived(&mut self, record: &JobRecord) {
        if let Some(batch) = record.batch.filter(|_| record.is_node) {
            self.group.set_node_end(batch, record.id, None);
        }
        if record.is_node || record.batch.is_some() {
            let timer = timer(record.id, false);
            self.workflows.cursors.remove(&timer);
            self.unset_timer(timer);
        }
    }

    /// Whether other jobs may wait for a leased one.
    pub(crate) fn is_node_of_lease(&self, job: JobId, lease: &Lease, facts: &Facts) -> bool {
        match lease.key {
            LeaseKey::Unread => self
                .content_of(job, facts)
                .is_some_and(|content| content.node.is_some()),
            LeaseKey::None | LeaseKey::Held(_) => lease.is_node,
        }
    }

    fn cursor(&self, timer: &Timer) -> Cursor {
        let cursor = self.workflows.cursors.get(timer);
        cursor.copied().unwrap_or(Cursor::First(None))
    }

    /// What the timer of a job that is over reads: a slice of its edges, and the jobs that wait for
    /// it.
    pub(crate) fn needs_of_node_timer(&self, timer: &Timer, facts: &Facts) -> Vec<Need> {
        let job = JobId::from_bytes(timer.id);
        let need = need_of_slice(job, self.cursor(timer));
        let mut needs = vec![need];
        if let (Cursor::First(_), Some(Fact::Edges { jobs, .. })) =
            (self.cursor(timer), facts.find(&need))
        {
            needs.extend(self.need_of_job(job, false));
            needs.extend(jobs.iter().filter_map(|job| self.need_of_job(*job, true)));
        }
        needs
    }

    /// A job that others may wait for is over: looks at a slice of them.
    pub(crate) fn fire_node(&mut self, now: Now, timer: &Timer, facts: &Facts) {
        let job = JobId::from_bytes(timer.id);
        let cursor = self.cursor(timer);
        self.workflows.cursors.remove(timer);
        let Some(page) = self.edges_page(&need_of_slice(job, cursor), facts) else {
            return self.set_timer(*timer);
        };
        let is_done = timer.what == TimerKind::NodeDone;
        let next = match cursor {
            Cursor::First(_) => {
                for waiting in page.rows {
                    self.dependency_is_over(now, (job, is_done), waiting, facts);
                }
                match page.next {
                    None if is_done => None,
                    None => Some(Cursor::Second(None)),
                    next => Some(Cursor::First(next)),
                }
            }
            Cursor::Second(_) => {
                for awaited in page.rows {
                    self.group.set_edge(awaited, job, false);
                }
                page.next.map(|next| Cursor::Second(Some(next)))
            }
        };
        if let Some(next) = next {
            self.workflows.cursors.insert(*timer, next);
            self.set_timer(*timer);
        }
    }

    /// A job that another one waits for is over.
    fn dependency_is_over(
        &mut self,
        now: Now,
        (job, is_done): (JobId, bool),
        waiting: JobId,
        facts: &Facts,
    ) {
        let record = self.lookup(waiting, facts);
        let Some(record) = record.filter(|record| record.state == JobState::Blocked) else {
            return self.group.set_edge(job, waiting, false);
        };
        let (condition, on_dead) = terms_of(&record);
        if is_done || condition == Condition::Settled {
            self.group.set_edge(job, waiting, false);
            return self.let_go_on(now, record, 1);
        }
        match on_dead {
            OnDead::Cancel => {
                self.group.set_edge(job, waiting, false);
                self.unwatch_expiry(waiting, expiry_of(&record));
                self.close_as_cancelled(now, &record);
            }
            // Only a job that is kept can be done one day.
            OnDead::Hold if self.may_be_done(job, facts) => {}
            OnDead::Hold => self.group.set_edge(job, waiting, false),
        }
    }

    /// Whether a job that ended otherwise may still be done: it is dead, and may be revived.
    fn may_be_done(&self, job: JobId, facts: &Facts) -> bool {
        let record = self.lookup(job, facts);
        record.is_some_and(|record| record.state == JobState::Dead)
    }

    /// A blocked job waits for so many fewer; when it was the last, it waits for its time or a
    /// worker.
    fn let_go_on(&mut self, now: Now, mut record: Box<JobRecord>, fewer: u32) {
        record.waits_for = record.waits_for.saturating_sub(fewer);
        if record.waits_for > 0 {
            return self.group.put_job(record);
        }
        let queue = record.queue;
        match record.run_at.filter(|at| *at > now.wall) {
            Some(at) => {
                self.count(queue, Some(JobState::Blocked), Some(JobState::Scheduled));
                let stand = (Some(JobState::Scheduled), Some(at));
                self.tell(now, EventName::Scheduled, &*record, stand);
                self.put_scheduled(record, at);
            }
            None => {
                self.count(queue, Some(JobState::Blocked), Some(JobState::Ready));
                let stand = (Some(JobState::Ready), None);
                self.tell(now, EventName::Ready, &*record, stand);
                self.make_ready_at_tail(record);
                // It is offered to whoever waits by this tick, or the next one, due at once.
                self.unserved.insert(queue);
            }
        }
    }

    /// A page of a job's edges: those of the store, and as far as they reach those of the open group.
    fn edges_page(&self, need: &Need, facts: &Facts) -> Option<Page<BTreeSet<JobId>>> {
        let Need::Edges {
            side,
            job,
            after,
            max,
        } = *need
        else {
            return None;
        };
        let Some(Fact::Edges { jobs, at_end }) = facts.find(need) else {
            return None;
        };
        let last = jobs.last().copied();
        let mut rows: BTreeSet<JobId> = jobs.iter().copied().collect();
        for (other, is_set) in self.group.edges(side, job, after) {
            match is_set {
                true if *at_end || Some(other) <= last => {
                    rows.insert(other);
                }
                true => {}
                false => {
                    rows.remove(&other);
                }
            }
        }
        let mut next = last.filter(|_| !at_end);
        while rows.len() > max as usize {
            rows.pop_last();
            next = rows.last().copied();
        }
        Some(Page { rows, next })
    }

    /// What must be read to forget the nodes of a batch, a slice of them.
    pub(crate) fn need_to_forget_nodes(&self, batch: BatchId, timer: &Timer) -> Need {
        let after = match self.cursor(timer) {
            Cursor::First(after) | Cursor::Second(after) => after,
        };
        Need::Nodes {
            batch,
            after,
            max: EDGES_SLICE,
        }
    }

    /// Forgets a slice of the nodes of a batch; whether none is left. Else its timer goes on.
    pub(crate) fn forget_nodes(&mut self, batch: BatchId, timer: &Timer, facts: &Facts) -> bool {
        let need = self.need_to_forget_nodes(batch, timer);
        self.workflows.cursors.remove(timer);
        let Some(Fact::Nodes { nodes, at_end }) = facts.find(&need) else {
            return true;
        };
        for node in nodes {
            self.group.delete_node(&node.record);
        }
        let next = nodes.last().map(|node| node.record.job);
        if *at_end {
            return true;
        }
        self.workflows.cursors.insert(*timer, Cursor::First(next));
        self.set_timer(*timer);
        false
    }

    /// I13, as far as memory shows it: whoever is blocked waits for somebody, and nobody else does.
    pub(crate) fn check_workflows(&self) -> Result<(), String> {
        let mut records = self.group.jobs.values().flatten();
        let wrong =
            records.find(|record| (record.state == JobState::Blocked) != (record.waits_for > 0));
        if let Some(record) = wrong {
            let (id, state, waits_for) = (record.id, record.state, record.waits_for);
            return Err(format!("I13: {id} is {state} and waits for {waits_for}"));
        }
        let unset = |timer: &&Timer| self.schedule.misses(timer);
        match self.workflows.cursors.keys().find(unset) {
            Some(timer) => Err(format!("I13: {timer:?} has come so far and is gone")),
            None => Ok(()),
        }
    }
}

/// Whether a job that stands so may be done one day, or is.
const fn may_come(state: NodeState) -> bool {
    match state {
        NodeState::Scheduled
        | NodeState::Blocked
        | NodeState::Ready
        | NodeState::Leased
        | NodeState::Done
        | NodeState::Dead => true,
        NodeState::Cancelled | NodeState::Expired | NodeState::Deleted => false,
    }
}

/// Which end a blocked job waits for, and what becomes of it else.
fn terms_of(record: &JobRecord) -> (Condition, OnDead) {
    let content = record.content.as_ref();
    let node = content.and_then(|content| content.node.as_deref());
    node.map(|node| (node.condition, node.on_dead))
        .unwrap_or_default()
}

fn need_of_slice(job: JobId, cursor: Cursor) -> Need {
    let (side, after) = match cursor {
        Cursor::First(after) => (Side::Dependents, after),
        Cursor::Second(after) => (Side::Dependencies, after),
    };
    Need::Edges {
        side,
        job,
        after,
        max: EDGES_SLICE,
    }
}

/// The timer by which a job that is over is looked at: due at once, whatever the clock says.
pub fn timer(job: JobId, is_done: bool) -> Timer {
    Timer {
        at: Timestamp(0),
        what: match is_done {
            true => TimerKind::NodeDone,
            false => TimerKind::NodeEnded,
        },
        id: *job.as_bytes(),
    }
}
