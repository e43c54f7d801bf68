//! Batches: jobs that are counted together, and the callbacks that are pushed when all of them have
//! come so far.
//!
//! The counters of a batch change in the transition of the member, and a callback is pushed in the
//! transition that made its event happen, all in one group: so no batch waits for a member that is
//! over, and no callback is pushed twice. Batches that are not settled are in memory, since a member
//! may end where nothing can be read; settled ones are read where a dead member is revived or
//! removed. A batch within a batch is one member of it ([`BatchRecord::standing`]). What requests
//! about batches answer is in `requests`.

mod requests;

use std::collections::BTreeMap;

use ganger_protocol::{
    BatchId, JobId, JobSpec, NamespaceName, Timestamp,
    batch::{self, BatchCounters, BatchEvent},
    event::EventName,
    job::JobState,
    limits,
};

use crate::{
    Engine,
    command::Now,
    facts::{Fact, Facts, Need},
    lease::{Lease, LeaseKey},
    records::{BatchRecord, Callback, JobRecord, QueueNumber, Timer, TimerKind},
};

/// All batches of the shard that are not settled.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    live: BTreeMap<BatchId, BatchRecord>,
    /// Those that were committed by their deadline and not told of yet.
    lapsed: Vec<(NamespaceName, BatchId)>,
}

impl Batches {
    /// Takes a batch in as the store has it.
    pub(crate) fn recover(&mut self, record: BatchRecord) {
        self.live.insert(record.id, record);
    }

    /// One that is not settled.
    pub(crate) fn find(&self, id: BatchId) -> Option<&BatchRecord> {
        self.live.get(&id)
    }

    /// All of them, in the order of their ids.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &BatchRecord> {
        self.live.values()
    }

    /// Batches that were committed by their deadline since this was asked last.
    pub(crate) fn take_lapsed(&mut self) -> Vec<(NamespaceName, BatchId)> {
        std::mem::take(&mut self.lapsed)
    }
}

/// How a member stands in its batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the counters of a batch")]
pub enum Standing {
    /// Not terminal; no attempt of it came to an end but by a release.
    Untried,
    /// Not terminal.
    Tried,
    Done,
    Dead,
    Cancelled,
    Expired,
    Deleted,
}

impl Standing {
    /// How a job stands: its state, the grants of it that are over, and how many of them were
    /// released.
    pub const fn of_job(state: JobState, grants_over: u32, releases: u32) -> Self {
        match state {
            JobState::Scheduled | JobState::Blocked | JobState::Ready | JobState::Leased => {
                match grants_over == releases {
                    true => Self::Untried,
                    false => Self::Tried,
                }
            }
            JobState::Done => Self::Done,
            JobState::Dead => Self::Dead,
            JobState::Cancelled => Self::Cancelled,
            JobState::Expired => Self::Expired,
        }
    }

    /// Changes the counters of the batch by one member that stands so.
    pub fn count(self, counters: &mut BatchCounters, change: impl Fn(&mut u64)) {
        match self {
            Self::Untried => {
                change(&mut counters.untried);
                change(&mut counters.pending);
            }
            Self::Tried => change(&mut counters.pending),
            Self::Done => change(&mut counters.done),
            Self::Dead => change(&mut counters.dead),
            Self::Cancelled => change(&mut counters.cancelled),
            Self::Expired => change(&mut counters.expired),
            Self::Deleted => change(&mut counters.deleted),
        }
    }
}

impl BatchRecord {
    /// How it stands as a member of its parent: untried until all of its own members were tried,
    /// pending until it is settled; then done when all of them are, else what the worst of them is.
    pub const fn standing(&self) -> Standing {
        let counters = &self.counters;
        match (self.settled_at, self.completed_at) {
            (None, None) => Standing::Untried,
            (None, Some(_)) => Standing::Tried,
            (Some(_), _) if counters.dead > 0 => Standing::Dead,
            (Some(_), _) if counters.cancelled > 0 => Standing::Cancelled,
            (Some(_), _) if counters.expired > 0 => Standing::Expired,
            (Some(_), _) if counters.deleted > 0 => Standing::Deleted,
            (Some(_), _) => Standing::Done,
        }
    }

    /// Whether an event has happened, or happens now.
    pub const fn has_come_to(&self, event: BatchEvent) -> bool {
        let counters = &self.counters;
        self.committed_at.is_some()
            && match event {
                BatchEvent::Complete => self.completed_at.is_some() || counters.untried == 0,
                BatchEvent::Success => counters.done == counters.total,
                BatchEvent::Settled => counters.pending == 0,
            }
    }

    /// When something happens to it by itself: an open one is committed, a settled one forgotten.
    pub fn deadline(&self) -> Option<Timestamp> {
        match (self.committed_at, self.settled_at) {
            (None, _) => Some(self.opened_at.plus(limits::BATCH_OPEN_MAX)),
            (Some(_), Some(at)) => Some(at.plus(limits::BATCH_RETENTION)),
            (Some(_), None) => None,
        }
    }

    /// The callback of an event.
    pub const fn callback(&self, event: BatchEvent) -> Option<&Callback> {
        match event {
            BatchEvent::Complete => self.on_complete.as_ref(),
            BatchEvent::Success => self.on_success.as_ref(),
            BatchEvent::Settled => self.on_settled.as_ref(),
        }
    }

    fn callback_mut(&mut self, event: BatchEvent) -> &mut Option<Callback> {
        match event {
            BatchEvent::Complete => &mut self.on_complete,
            BatchEvent::Success => &mut self.on_success,
            BatchEvent::Settled => &mut self.on_settled,
        }
    }

    /// The job to push for an event that has happened, unless it was pushed already.
    fn due_callback(&self, event: BatchEvent) -> Option<JobSpec> {
        let callback = self.callback(event)?;
        let is_due = callback.pushed.is_none() && self.has_come_to(event);
        is_due.then(|| {
            let mut job = callback
                .content
                .to_spec(callback.queue.clone(), callback.priority);
            job.headers.extend(batch::headers_of(self.id, event));
            job
        })
    }
}

/// A member of a batch changes how it stands; one that joins stood nowhere.
type Move = (BatchId, Option<Standing>, Standing);

impl Engine {
    /// A member of a batch that is not settled stands elsewhere from now on. Every transition of a
    /// job that has a batch says so here, when it changes how the job stands.
    pub(crate) fn move_member(
        &mut self,
        now: Now,
        batch: Option<BatchId>,
        from: Standing,
        to: Standing,
    ) {
        if let Some(batch) = batch {
            self.make_move(now, (batch, Some(from), to), &Facts::default());
        }
    }

    /// A lease of a job has ended, and not by a release.
    pub(crate) fn member_was_tried(&mut self, now: Now, record: &JobRecord, attempt: u32) {
        let before = Standing::of_job(JobState::Leased, attempt - 1, record.releases);
        if before == Standing::Untried {
            self.move_member(now, record.batch, before, Standing::Tried);
        }
    }

    /// A job that is dead is revived or removed; its batch may be settled, and then was read.
    pub(crate) fn move_dead_member(
        &mut self,
        now: Now,
        record: &JobRecord,
        to: Standing,
        facts: &Facts,
    ) {
        if let Some(batch) = record.batch {
            self.make_move(now, (batch, Some(Standing::Dead), to), facts);
        }
    }

    /// A purged job is erased: its batch counts it as deleted from now on.
    pub(crate) fn member_is_swept(&mut self, now: Now, record: &JobRecord, facts: &Facts) {
        let is_running = record.state == JobState::Leased;
        let grants_over = record.attempt.saturating_sub(u32::from(is_running));
        let before = Standing::of_job(record.state, grants_over, record.releases);
        if let Some(batch) = record.batch {
            self.make_move(now, (batch, Some(before), Standing::Deleted), facts);
        }
    }

    /// The batch of a leased job and how it stands there.
    pub(crate) fn membership(
        &self,
        job: JobId,
        lease: &Lease,
        facts: &Facts,
    ) -> Option<(BatchId, Standing)> {
        let batch = self.batch_of_lease(job, lease, facts)?;
        let releases = match lease.has_record {
            true => self.lookup(job, facts).map_or(0, |record| record.releases),
            false => 0,
        };
        let standing = Standing::of_job(JobState::Leased, lease.attempt - 1, releases);
        Some((batch, standing))
    }

    fn batch_of_lease(&self, job: JobId, lease: &Lease, facts: &Facts) -> Option<BatchId> {
        match lease.key {
            LeaseKey::Unread => self.content_of(job, facts)?.batch,
            LeaseKey::None | LeaseKey::Held(_) => lease.batch,
        }
    }

    /// Changes the counters of a batch, and of those above it as far as that changes how they stand.
    fn make_move(&mut self, now: Now, first: Move, facts: &Facts) {
        let mut next = Some(first);
        while let Some((id, from, to)) = next {
            self.recall(id, facts);
            let Some(record) = self.batches.live.get_mut(&id) else {
                return;
            };
            let before = record.standing();
            match from {
                // An import may have counted less than it brought.
                Some(from) => from.count(&mut record.counters, |count| {
                    *count = count.saturating_sub(1);
                }),
                None => record.counters.total += 1,
            }
            to.count(&mut record.counters, |count| *count += 1);
            next = self.advance(now, id, before);
        }
    }

    /// A batch has changed: pushes the callbacks that are due by it, and puts it where it belongs;
    /// how that moves it in its parent.
    fn advance(&mut self, now: Now, id: BatchId, before: Standing) -> Option<Move> {
        let record = self.batches.live.get_mut(&id)?;
        self.group.touch_batch(record);
        if record.has_come_to(BatchEvent::Complete) {
            record.completed_at.get_or_insert(now.wall);
        }
        for event in BatchEvent::ALL {
            self.push_callback(now, id, event);
        }
        let deadline = self.batches.live.get(&id)?.deadline();
        let record = self.batches.live.get_mut(&id)?;
        match record.has_come_to(BatchEvent::Settled) {
            true if record.settled_at.is_none() => {
                record.settled_at = Some(now.wall);
                self.tell_batch(now, EventName::BatchSettled, id);
            }
            true => {}
            false => record.settled_at = None,
        }
        let record = self.batches.live.get_mut(&id)?;
        let (parent, after, end) = (record.parent, record.standing(), record.deadline());
        let is_settled = record.settled_at.is_some();
        self.set_batch_deadline(id, deadline, end);
        if is_settled && let Some(record) = self.batches.live.remove(&id) {
            self.group.set_settled_batch(id, Some(Box::new(record)));
        }
        (before != after).then_some((parent?, Some(before), after))
    }

    fn set_batch_deadline(
        &mut self,
        id: BatchId,
        before: Option<Timestamp>,
        after: Option<Timestamp>,
    ) {
        if before == after {
            return;
        }
        if let Some(at) = before {
            self.unset_timer(timer(id, at));
        }
        if let Some(at) = after {
            self.set_timer(timer(id, at));
        }
    }

    /// Pushes the callback of an event, when it is due. Its queue was made with the batch, and no
    /// limit that was reached since then holds it back.
    fn push_callback(&mut self, now: Now, id: BatchId, event: BatchEvent) {
        let Some(record) = self.batches.live.get(&id) else {
            return;
        };
        let Some(job) = record.due_callback(event) else {
            return;
        };
        let namespace = record.namespace.clone();
        if self.queues.named(&namespace, &job.queue).is_none() {
            self.make_queue(&namespace, &job.queue);
        }
        let pushed = self.add_job(now, &namespace, job, now.wall);
        debug_assert!(pushed.is_ok(), "{id} cannot push: {pushed:?}");
        let Ok(job) = pushed else { return };
        // The next tick, which is due at once, offers it to whoever waits.
        self.unserved.insert(QueueNumber(job.birth().queue));
        let record = self.batches.live.get_mut(&id);
        if let Some(callback) = record.and_then(|record| record.callback_mut(event).as_mut()) {
            callback.pushed = Some(job);
        }
    }

    /// Takes a settled batch back among the others, until [`Self::advance`] puts it where it belongs.
    fn recall(&mut self, id: BatchId, facts: &Facts) {
        if self.batches.live.contains_key(&id) {
            return;
        }
        if let Some(record) = self.settled_batch(id, facts).cloned() {
            self.group.set_settled_batch(id, None);
            self.batches.live.insert(id, record);
        }
    }

    fn settled_batch<'a>(&'a self, id: BatchId, facts: &'a Facts) -> Option<&'a BatchRecord> {
        if let Some(open) = self.group.settled_batch(id) {
            return open;
        }
        match facts.find(&Need::Batch(id)) {
            Some(Fact::Batch(stored)) => stored.as_deref(),
            Some(_) | None => None,
        }
    }

    /// Goes on with batches that are over by what became of their members while nobody looked, as in
    /// a store that was repaired.
    pub(crate) fn go_on_with_batches(&mut self, now: Now) {
        let is_over = |record: &&BatchRecord| {
            record.has_come_to(BatchEvent::Settled)
                || record.completed_at.is_none() && record.has_come_to(BatchEvent::Complete)
        };
        let over: Vec<BatchId> = self
            .batches
            .iter()
            .filter(is_over)
            .map(|it| it.id)
            .collect();
        for id in over {
            let before = self.batches.find(id).map(BatchRecord::standing);
            if let Some(next) = before.and_then(|before| self.advance(now, id, before)) {
                self.make_move(now, next, &Facts::default());
            }
        }
    }

    /// What must be read to know a batch.
    pub(crate) fn need_of_batch(&self, id: BatchId) -> Option<Need> {
        let is_known =
            self.batches.live.contains_key(&id) || self.group.settled_batch(id).is_some();
        (!is_known).then_some(Need::Batch(id))
    }

    /// What must be read before a dead job can be moved in its batch, which moves that in its
    /// parent.
    pub(crate) fn need_of_membership(&self, job: JobId, facts: &Facts) -> Option<Need> {
        let batch = self.lookup(job, facts)?.batch;
        self.need_of_batches(batch, facts)
    }

    /// What must be read to move a member of a batch that may be settled.
    pub(crate) fn need_of_batches(&self, batch: Option<BatchId>, facts: &Facts) -> Option<Need> {
        let mut next = batch;
        while let Some(id) = next {
            if self.batches.live.contains_key(&id) {
                return None;
            }
            match self.settled_batch(id, facts) {
                Some(record) => next = record.parent,
                None => return self.need_of_batch(id).filter(|need| !facts.contains(need)),
            }
        }
        None
    }

    /// Nobody but its own members adds to a batch any more.
    fn close_batch(&mut self, now: Now, id: BatchId, lapsed: bool) {
        let event = match lapsed {
            true => EventName::BatchLapsed,
            false => EventName::BatchCommitted,
        };
        self.tell_batch(now, event, id);
        let Some(record) = self.batches.live.get_mut(&id) else {
            return;
        };
        let (before, deadline) = (record.standing(), record.deadline());
        record.committed_at = Some(now.wall);
        record.lapsed = lapsed;
        if lapsed && record.counters.total == 0 {
            // Whoever opened it never got to use it: nothing has succeeded.
            (record.on_complete, record.on_success, record.on_settled) = (None, None, None);
        }
        self.set_batch_deadline(id, deadline, None);
        if let Some(next) = self.advance(now, id, before) {
            self.make_move(now, next, &Facts::default());
        }
    }

    /// A job waits for a member that has no name: from now on each that ends says so.
    pub(crate) fn has_edges_from_now(&mut self, id: BatchId) {
        if let Some(record) = self.batches.live.get_mut(&id) {
            record.has_edges = true;
            self.group.touch_batch(record);
        }
    }

    /// A batch that is not settled, or was when this group settled it.
    pub(crate) fn batch_at_hand(&self, id: BatchId) -> Option<&BatchRecord> {
        let settled = || self.group.settled_batch(id).flatten();
        self.batches.find(id).or_else(settled)
    }

    pub(crate) fn needs_of_batch_timer(&self, timer: &Timer, facts: &Facts) -> Vec<Need> {
        let id = batch_of(timer);
        let settled = self.settled_batch(id, facts);
        let is_over = settled.is_some_and(|record| record.deadline() == Some(timer.at));
        let nodes = is_over.then(|| self.need_to_forget_nodes(id, timer));
        self.need_of_batch(id).into_iter().chain(nodes).collect()
    }

    /// The deadline of a batch is there: one that is still open is committed, a settled one is
    /// forgotten.
    pub(crate) fn fire_batch(&mut self, now: Now, timer: &Timer, facts: &Facts) {
        let id = batch_of(timer);
        let is_due = |record: &BatchRecord| record.deadline() == Some(timer.at);
        if let Some(record) = self.batches.live.get(&id) {
            if is_due(record) {
                self.batches.lapsed.push((record.namespace.clone(), id));
                self.close_batch(now, id, true);
            }
        } else if self.settled_batch(id, facts).is_some_and(is_due)
            && self.forget_nodes(id, timer, facts)
        {
            self.group.set_settled_batch(id, None);
        }
    }
}

/// The timer of a batch's deadline.
pub fn timer(id: BatchId, at: Timestamp) -> Timer {
    let mut bytes = [0; JobId::BYTES];
    bytes[16..].copy_from_slice(&id.0.to_be_bytes());
    Timer {
        at,
        what: TimerKind::BatchDeadline,
        id: bytes,
    }
}

/// The batch whose deadline a timer is.
pub fn batch_of(timer: &Timer) -> BatchId {
    let [.., a, b, c, d, e, f, g, h] = timer.id;
    BatchId(u64::from_be_bytes([a, b, c, d, e, f, g, h]))
}
