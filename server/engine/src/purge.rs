//! Purge: a queue gets a new number, and what lives under the old one is erased in slices.
//!
//! The answer costs what memory holds of the queue, whatever its size: from then on no job of the
//! old number is found by its id, granted, revived or answered, its leases have ended, and its
//! unique keys are free. A sweep then reads the old number from the store, a slice a tick, and
//! erases what it finds with all that hangs on it; counters were moved by the purge and are not
//! touched again. The record of the old number stays until nothing of it is left, so a sweep goes
//! on after a restart.

use std::collections::BTreeMap;

use ganger_protocol::{
    BatchId, DurationMs, ErrorCode, JobId, WireError,
    event::EventName,
    job::JobState,
    queue::{OneQueue, QueuePurgeReply},
    request::LeaseRef,
    response::{Counters, Done, ReplyBody},
    workflow::NodeState,
};

use crate::{
    Engine,
    command::{Mono, Now, Origin, Outcome},
    expiry::expiry_of,
    facts::{Fact, Facts, HeadEntry, HeadRow, Need, Remain, Stage},
    keys::hold_lock,
    queue::Queue,
    records::{
        BlobKind, Content, GroupNumber, JobRecord, Lane, QueueNumber, QueueRecord, UniqueKey,
    },
    retention::is_retained,
    unique::is_ended_by_time,
    waits::not_kept,
    workflow::node_of,
};

/// Entries or records that one slice erases, about.
const SWEEP_SLICE: u32 = 250;

/// How long a sweep rests between two slices, so that others come first.
const SWEEP_REST: DurationMs = DurationMs(1);

/// An old number of a queue.
#[derive(Debug)]
struct Purged {
    record: QueueRecord,
    /// How far the sweep has come; a restart begins anew, which finds only what is left.
    stage: Stage,
    /// The group of the purge: what came before it can be read once it is sealed.
    sealed_in: GroupNumber,
    /// Whether jobs that were born here live in another queue: their unique keys have its name.
    has_survivors: bool,
    /// Whether nothing is left to erase.
    is_swept: bool,
}

/// All old numbers of the shard that are not swept.
#[derive(Debug, Default)]
pub(crate) struct Sweeps {
    by_number: BTreeMap<QueueNumber, Purged>,
    /// When the next slice is due.
    due_at: Mono,
}

impl Sweeps {
    /// An old number: what it has can be read once this group is sealed.
    pub(crate) fn insert(&mut self, record: QueueRecord, sealed_in: GroupNumber) {
        let purged = Purged {
            stage: Stage::Runs(None),
            sealed_in,
            has_survivors: false,
            is_swept: false,
            record,
        };
        self.by_number.insert(purged.record.number, purged);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_number.is_empty()
    }

    pub(crate) fn find(&self, number: QueueNumber) -> Option<&QueueRecord> {
        self.by_number.get(&number).map(|purged| &purged.record)
    }

    /// When the next slice is due, when there is one.
    pub(crate) fn next(&self) -> Option<Mono> {
        let is_left = self.by_number.values().any(|purged| !purged.is_swept);
        is_left.then_some(self.due_at)
    }

    /// The number that is swept now.
    fn first(&self) -> Option<&Purged> {
        self.by_number.values().find(|purged| !purged.is_swept)
    }
}

impl Engine {
    pub(crate) fn queue_purge(
        &mut self,
        now: Now,
        origin: &Origin,
        purge: &OneQueue,
        outcome: &mut Outcome,
    ) -> Result<ReplyBody, WireError> {
        let old = self.queue_named(origin, &purge.queue)?;
        let Some(mut queue) = self.take_away(now, old, outcome) else {
            return Err(no_longer_there());
        };
        let number = QueueNumber(self.head.next_queue);
        self.head.next_queue += 1;
        let counters = &mut queue.record.counters;
        let removed = counters.kept() + counters.retained();
        // Those that were retained are counted by their outcome.
        counters.deleted += counters.kept();
        empty(counters);
        queue.record.number = number;
        for ticket in &queue.waiters {
            if let Some(waiter) = self.waiters.find_mut(*ticket) {
                waiter.queues.retain(|queue| *queue != old);
                waiter.queues.push(number);
            }
        }
        if let Some(at) = queue.record.paused_until {
            self.set_timer(crate::settings::pause_timer(number, at));
        }
        self.group.queues.insert(number);
        self.queues.put_back(queue);
        self.tell_queue(now.wall, EventName::QueuePurged, number, Some(removed));
        Ok(ReplyBody::Purged(QueuePurgeReply { removed }))
    }

    pub(crate) fn queue_delete(
        &mut self,
        now: Now,
        origin: &Origin,
        delete: &OneQueue,
        outcome: &mut Outcome,
    ) -> Result<ReplyBody, WireError> {
        let number = self.queue_named(origin, &delete.queue)?;
        let kept = self.queues.find(number);
        let kept = kept.map(|queue| &queue.record.counters);
        let kept = kept.map_or(0, |counters| counters.kept() + counters.retained());
        if kept > 0 {
            return Err(WireError {
                field: Some("queue".to_owned()),
                actual: Some(kept),
                ..WireError::new(
                    ErrorCode::Conflict,
                    format!("queue {} has {kept} jobs; purge it first", delete.queue),
                )
            });
        }
        self.tell_queue(now.wall, EventName::QueueDeleted, number, None);
        // Fetches go on waiting: a push makes the queue again, and they stand in it by its name.
        if let Some(queue) = self.take_away(now, number, outcome) {
            for ticket in &queue.waiters {
                if let Some(waiter) = self.waiters.find_mut(*ticket) {
                    waiter.queues.retain(|queue| *queue != number);
                }
            }
        }
        Ok(ReplyBody::Done(Done {}))
    }

    /// Takes a queue away and leaves its number to the sweep: its heads leave memory, its leases
    /// end and their workers are told.
    fn take_away(&mut self, now: Now, number: QueueNumber, outcome: &mut Outcome) -> Option<Queue> {
        let own: Vec<Lane> = self
            .queues
            .find(number)
            .into_iter()
            .flat_map(|queue| queue.own_lanes().map(|(lane, _)| lane))
            .collect();
        let (queue, heads) = self.queues.remove(number)?;
        for lane in own {
            self.keys.remove_lane(lane, now.mono);
        }
        self.keys.forget_queue(number);
        self.forget_holds();
        for run in heads {
            self.forget_head(run);
        }
        self.end_leases_of(now, number, outcome);
        if let Some(at) = queue.record.paused_until {
            self.unset_timer(crate::settings::pause_timer(number, at));
        }
        self.overfull.retain(|(of, _)| *of != number);
        self.unserved.remove(&number);
        self.awakened.remove(&number);
        let mut record = queue.record.clone();
        record.is_purged = true;
        record.paused_until = None;
        // Whether jobs of other queues came into it is all that the sweep asks of them.
        let moved = record.counters.moved_in;
        record.counters = Counters {
            moved_in: moved,
            moved_out: moved,
            ..Counters::default()
        };
        self.group.queues.insert(number);
        self.group.operations += 1;
        self.sweeps.insert(record, self.group.number);
        self.sweeps.due_at = now.mono.plus(SWEEP_REST);
        Some(queue)
    }

    /// Ends the leases of a queue whose jobs are gone. Their entries stay in their runs, for the
    /// sweep to find.
    fn end_leases_of(&mut self, now: Now, number: QueueNumber, outcome: &mut Outcome) {
        let of_queue = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.queue == number);
        let jobs: Vec<JobId> = of_queue.map(|(job, _)| *job).collect();
        let mut told: BTreeMap<_, Vec<LeaseRef>> = BTreeMap::new();
        for job in jobs {
            let Some(lease) = self.leases.remove(&job) else {
                continue;
            };
            if let Some(session) = self.sessions.find_mut(lease.session) {
                session.leases.remove(lease.number);
            }
            self.leave_lease_part(lease.number, lease.part);
            self.free_slot(now.mono, lease.lane);
            if let Some(place) = lease.place {
                self.forget_lease_of_run(place.run);
            }
            told.entry(lease.session).or_default().push(LeaseRef {
                job,
                lease: lease.number,
            });
        }
        for (session, leases) in told {
            self.tell_lost(session, leases, outcome);
        }
    }

    /// The record of a queue, purged or not.
    pub(crate) fn queue_record(&self, number: QueueNumber) -> Option<&QueueRecord> {
        let live = self.queues.find(number).map(|queue| &queue.record);
        live.or_else(|| self.sweeps.find(number))
    }

    /// Old numbers that are not swept.
    pub fn sweeps_count(&self) -> usize {
        self.sweeps.by_number.len()
    }

    /// What the next slice reads, when it is due.
    fn need_of_slice(&self, now: Now) -> Option<(QueueNumber, Need)> {
        let purged = self.sweeps.first()?;
        let is_due = now.mono >= self.sweeps.due_at && self.group.number > purged.sealed_in;
        let queue = purged.record.number;
        let need = Need::Remains {
            queue,
            stage: purged.stage,
            max: SWEEP_SLICE,
        };
        is_due.then_some((queue, need))
    }

    /// What a slice of a sweep reads: what is left, then who holds the keys of its jobs, and their
    /// batches.
    pub(crate) fn needs_of_sweep(&self, now: Now, facts: &Facts) -> Vec<Need> {
        let Some((_, need)) = self.need_of_slice(now) else {
            return Vec::new();
        };
        let Some(Fact::Remains { rows, .. }) = facts.find(&need) else {
            return vec![need];
        };
        let keys = rows.iter().flat_map(|row| self.keys_of(row));
        let unread = keys.filter(|key| self.group.lock(key).is_none());
        let batches = rows.iter().flat_map(batches_of);
        let batches = batches.filter_map(|batch| self.need_of_batches(Some(batch), facts));
        unread.map(Need::Unique).chain(batches).collect()
    }

    /// The unique keys that jobs of a row may hold.
    fn keys_of(&self, row: &Remain) -> Vec<UniqueKey> {
        let own = |job: JobId, content: Option<&Content>| {
            let content = content?;
            let until = content.unique.as_deref()?.until;
            (!is_ended_by_time(until)).then(|| self.key_of(job, content))?
        };
        match row {
            Remain::Run(_, rows) => rows
                .iter()
                .filter_map(|row| match &row.entry {
                    HeadEntry::Packed(packed) | HeadEntry::Scheduled(_, packed) => {
                        let id = row.place.job_id(self.options.shard);
                        own(id, packed.content.as_deref())
                    }
                    HeadEntry::Reference(id, record) => {
                        own(*id, record.as_ref()?.content.as_deref())
                    }
                })
                .chain(rows.iter().filter_map(|row| match &row.entry {
                    HeadEntry::Reference(_, record) => self.hold_of(record.as_ref()?),
                    HeadEntry::Packed(_) | HeadEntry::Scheduled(..) => None,
                }))
                .collect(),
            Remain::Job(record)
            | Remain::Guest(_, Some(record))
            | Remain::Closed(_, Some(record)) => {
                let unique = own(record.id, record.content.as_deref());
                unique.into_iter().chain(self.hold_of(record)).collect()
            }
            Remain::Guest(_, None) | Remain::Closed(_, None) => Vec::new(),
        }
    }

    /// The lock by which a job keeps others of its key back.
    fn hold_of(&self, record: &JobRecord) -> Option<UniqueKey> {
        let lane = || self.lane_of_job(record.queue, record.content.as_deref());
        record.holds_key.then(|| hold_lock(lane()))
    }

    /// Erases a slice of what is left of an old number.
    pub(crate) fn sweep(&mut self, now: Now, facts: &Facts) {
        if self.sweeps.next().is_none_or(|at| at > now.mono) {
            return;
        }
        let slice = self.need_of_slice(now);
        self.sweeps.due_at = now.mono.plus(SWEEP_REST);
        let Some((number, need)) = slice else { return };
        let Some(Fact::Remains { rows, at_end }) = facts.find(&need) else {
            return;
        };
        let last = rows.last().map(Remain::stage);
        for row in rows {
            self.erase_row(now, number, row, facts);
        }
        self.go_on_behind(number, last, *at_end);
    }

    fn erase_row(&mut self, now: Now, number: QueueNumber, row: &Remain, facts: &Facts) {
        match row {
            Remain::Run(run, rows) => {
                for row in rows {
                    self.erase_entry(now, number, row, facts);
                }
                match run.lane.is_scheduled() {
                    true => self.group.erase_scheduled(*run),
                    false => self.drop_run(*run),
                }
            }
            Remain::Job(record) if record.queue == number => {
                self.erase(now, record, true, facts);
            }
            Remain::Job(_) => {
                if let Some(purged) = self.sweeps.by_number.get_mut(&number) {
                    purged.has_survivors = true;
                }
            }
            Remain::Guest(_, Some(record)) => self.erase(now, record, true, facts),
            Remain::Guest(_, None) => {}
            Remain::Closed(row, record) => {
                self.group.set_closed(*row, false);
                if let Some(record) = record.as_ref().filter(|it| it.queue == number) {
                    self.erase(now, record, true, facts);
                }
            }
        }
    }

    fn erase_entry(&mut self, now: Now, number: QueueNumber, row: &HeadRow, facts: &Facts) {
        let id = row.place.job_id(self.options.shard);
        match &row.entry {
            HeadEntry::Packed(_) | HeadEntry::Scheduled(..) if self.has_left(&row.place) => {}
            HeadEntry::Packed(packed) => {
                let record = JobRecord::fresh(id, row.place, packed.clone());
                self.erase(now, &record, false, facts);
            }
            HeadEntry::Scheduled(at, packed) => {
                let record = JobRecord::scheduled(id, row.place, *at, packed.clone());
                self.erase(now, &record, false, facts);
            }
            HeadEntry::Reference(_, Some(record))
                if record.queue == number && record.place == Some(row.place) =>
            {
                self.erase(now, record, true, facts);
            }
            HeadEntry::Reference(..) => {}
        }
    }

    /// Erases a purged job with everything that hangs on it. Its counters were moved by the purge.
    fn erase(&mut self, now: Now, record: &JobRecord, has_record: bool, facts: &Facts) {
        if matches!(self.group.jobs.get(&record.id), Some(None)) {
            return;
        }
        self.free_key(record, facts);
        self.free_hold(record, facts);
        self.unwatch_expiry(record.id, expiry_of(record));
        match (record.state, record.run_at) {
            (JobState::Scheduled, Some(at)) => {
                self.unset_timer(match record.place {
                    Some(place) => self.run_due(place.run, at),
                    None => crate::group::due(record.id, at),
                });
            }
            (JobState::Done | JobState::Dead | JobState::Cancelled | JobState::Expired, _) => {
                self.unclose(record);
            }
            (JobState::Scheduled | JobState::Blocked | JobState::Ready | JobState::Leased, _) => {}
        }
        match has_record {
            true => self.group.delete_job(record),
            false => {
                let parts = record.spilled_parts;
                self.group.delete_blob(record.id, BlobKind::Content, parts);
            }
        }
        if is_retained(record.state) {
            return;
        }
        self.member_is_swept(now, record, facts);
        self.job_is_over(now, record.id);
        self.node_is_over(node_of(record), NodeState::Deleted);
        self.tell_waits(record.id, |_| Err(not_kept(record.id)));
    }

    /// Frees the key of a purged job, unless another job has taken it since.
    fn free_key(&mut self, record: &JobRecord, facts: &Facts) {
        let key = record
            .content
            .as_ref()
            .and_then(|content| self.key_of(record.id, content));
        let Some(key) = key else { return };
        let lock = self.lock(key, facts).flatten();
        if lock.is_some_and(|lock| lock.job == record.id && lock.ends_at.is_none()) {
            self.group.set_lock(key, None);
        }
    }

    /// A purged job keeps no others of its key back, unless another one does since.
    fn free_hold(&mut self, record: &JobRecord, facts: &Facts) {
        if !record.holds_key {
            return;
        }
        let lane = self.lane_of_job(record.queue, record.content.as_deref());
        let lock = self.lock(hold_lock(lane), facts).flatten();
        if lock.is_some_and(|lock| lock.job == record.id) {
            self.group.set_lock(hold_lock(lane), None);
        }
    }

    /// A slice is erased: the sweep goes on behind it, and ends behind the last stage.
    fn go_on_behind(&mut self, number: QueueNumber, last: Option<Stage>, at_end: bool) {
        let Some(purged) = self.sweeps.by_number.get_mut(&number) else {
            return;
        };
        purged.stage = match (at_end, purged.stage) {
            (false, stage) => last.unwrap_or(stage),
            (true, Stage::Runs(_)) => Stage::Scheduled(None),
            (true, Stage::Scheduled(_)) => Stage::Jobs(None),
            (true, Stage::Jobs(_)) if purged.record.counters.moved_in > 0 => Stage::Guests(None),
            (true, Stage::Jobs(_) | Stage::Guests(_)) => Stage::Closed(None),
            (true, stage @ Stage::Closed(_)) => {
                purged.is_swept = true;
                stage
            }
        };
        if purged.is_swept && !purged.has_survivors {
            self.sweeps.by_number.remove(&number);
            self.group.queues.insert(number);
        }
    }
}

/// The batches of the jobs of a row.
fn batches_of(row: &Remain) -> Vec<BatchId> {
    match row {
        Remain::Run(_, rows) => rows
            .iter()
            .filter_map(|row| match &row.entry {
                HeadEntry::Packed(packed) | HeadEntry::Scheduled(_, packed) => {
                    packed.content.as_ref()?.batch
                }
                HeadEntry::Reference(_, record) => record.as_ref()?.batch,
            })
            .collect(),
        Remain::Job(record) | Remain::Guest(_, Some(record)) | Remain::Closed(_, Some(record)) => {
            record.batch.into_iter().collect()
        }
        Remain::Guest(_, None) | Remain::Closed(_, None) => Vec::new(),
    }
}

/// No jobs are left in any state; what was counted since the queue was made stays.
fn empty(counters: &mut Counters) {
    *counters = Counters {
        scheduled: 0,
        blocked: 0,
        ready: 0,
        leased: 0,
        dead: 0,
        done_kept: 0,
        cancelled_kept: 0,
        expired_kept: 0,
        ..*counters
    };
}

fn no_longer_there() -> WireError {
    WireError::new(ErrorCode::NotFound, "the queue is gone")
}
