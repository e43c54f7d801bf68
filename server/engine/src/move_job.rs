//! Moving a job from one place to another: found by its id, taken out of its run, and put where
//! it goes next. Only an ack leaves a job where it is; everything else rewrites it into a record.

use ganger_protocol::{
    JobId, SessionId, Timestamp,
    event::EventName,
    job::{DeadReason, JobError, JobState},
    workflow::NodeState,
};

use crate::{
    Engine,
    batch::Standing,
    command::{Mono, Now},
    expiry::expiry_of,
    facts::{Fact, Facts, HeadEntry, HeadRow, Heads, Need},
    group,
    lease::Lease,
    records::{
        Closed, Entry, JobRecord, Lane, Place, RunKey, StoredJob, Timer, TimerKind, blob_parts,
    },
    waits,
    window::{Head, HeadJob},
    workflow::node_of,
};

/// How long the last leased job of a run may hold it.
const STRAGGLER_AFTER: ganger_protocol::DurationMs = ganger_protocol::DurationMs::from_mins(1);

/// Where a job goes from a lease.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Next {
    /// It waits until then.
    Scheduled(Timestamp),
    /// It is ready again, before all others of its lane.
    ReadyAtHead,
    /// It is kept for a person.
    Dead(DeadReason),
    /// Nothing is kept.
    Deleted,
    /// It was cancelled while it was leased; nothing is kept.
    Cancelled,
}

impl Engine {
    /// What must be read to know this job, unless the open group knows it.
    pub(crate) fn need_of_job(&self, job: JobId, content: bool) -> Option<Need> {
        let place = Place::of_birth(&job);
        let is_open = self.group.jobs.contains_key(&job) || self.group.born(&place).is_some();
        (!is_open).then_some(Need::Job { job, content })
    }

    /// What must be read to remove a dead job: its content too, when it holds a unique key, and its
    /// batch.
    pub(crate) fn need_of_removal(&self, job: JobId, facts: &Facts) -> Option<Need> {
        if let Some(need) = self.need_of_membership(job, facts) {
            return Some(need);
        }
        // Whoever follows is told of which kind it was.
        let need = self.need_of_job(job, self.is_watched())?;
        let holds_unread = match facts.find(&need) {
            Some(Fact::Job(Some(StoredJob::Record(record)))) => {
                record.holds_unique && record.content.is_none()
            }
            Some(_) | None => false,
        };
        match holds_unread {
            true => self.need_of_job(job, true),
            false => Some(need),
        }
    }

    /// The record of a job that is kept, made up for one that lives in its run. A purged job is not
    /// kept, swept or not.
    pub(crate) fn lookup(&self, job: JobId, facts: &Facts) -> Option<Box<JobRecord>> {
        let record = self.written(job, facts)?;
        self.queues.find(record.queue).is_some().then_some(record)
    }

    /// The record of a job that is written, purged or not.
    fn written(&self, job: JobId, facts: &Facts) -> Option<Box<JobRecord>> {
        let has_left = self.has_left(&Place::of_birth(&job));
        self.own_record(job, facts)
            .unwrap_or_else(|| self.packed(job, facts).filter(|_| !has_left))
    }

    /// The record of a job whose lease has just ended, made up for one that lived in its run until
    /// then.
    pub(crate) fn ended(&self, job: JobId, facts: &Facts) -> Option<Box<JobRecord>> {
        self.own_record(job, facts)
            .unwrap_or_else(|| self.packed(job, facts))
    }

    /// The record of a job that has one, or had one until this group; the outer `None`: it never had.
    #[expect(
        clippy::option_option,
        reason = "without a record, and known to be gone, differ"
    )]
    fn own_record(&self, job: JobId, facts: &Facts) -> Option<Option<Box<JobRecord>>> {
        if let Some(record) = self.group.jobs.get(&job) {
            return Some(record.clone());
        }
        match self.stored(job, facts)? {
            StoredJob::Record(record) => Some(Some(record.clone())),
            StoredJob::Packed { .. } | StoredJob::Scheduled { .. } => None,
        }
    }

    /// The record of a job as it was born in its run.
    fn packed(&self, job: JobId, facts: &Facts) -> Option<Box<JobRecord>> {
        let place = Place::of_birth(&job);
        let (at, packed) = match (self.group.born(&place), self.stored(job, facts)) {
            (Some(Entry::Job(packed)), _) | (None, Some(StoredJob::Packed { job: packed, .. })) => {
                (None, packed)
            }
            (Some(Entry::Scheduled(at, packed)), _)
            | (
                None,
                Some(StoredJob::Scheduled {
                    at, job: packed, ..
                }),
            ) => (Some(*at), packed),
            (Some(Entry::Reference(_)), _) | (None, Some(StoredJob::Record(_)) | None) => {
                return None;
            }
        };
        let packed = packed.clone();
        Some(Box::new(match at {
            Some(at) => JobRecord::scheduled(job, place, at, packed),
            None => JobRecord::fresh(job, place, packed),
        }))
    }

    /// Whether an entry that a run was written with is no longer in it. Of scheduled runs that is
    /// known only as far as this group goes; the store tells the rest.
    pub(crate) fn has_left(&self, place: &Place) -> bool {
        let run = self.runs.get(&place.run);
        run.is_some_and(|run| run.left.contains(place.index))
            || self
                .group
                .left_of_scheduled(&place.run)
                .contains(place.index)
            || self.group.drops(&place.run)
    }

    pub(crate) fn stored<'a>(&self, job: JobId, facts: &'a Facts) -> Option<&'a StoredJob> {
        let answers = [true, false].map(|content| facts.find(&Need::Job { job, content }));
        match answers.into_iter().flatten().next()? {
            Fact::Job(stored) => stored.as_ref(),
            _ => None,
        }
    }

    /// Puts a job that has just become ready at the tail into its window, when that reaches so far.
    pub(crate) fn queue_head(&mut self, head: Head) {
        let run = head.place.run;
        if self.queues.push_back(head) {
            self.runs.entry(run).or_default().heads += 1;
        }
    }

    /// Ends a lease: the job leaves its run, the records that speak of the lease may go.
    pub(crate) fn end_lease(&mut self, job: JobId, now: Mono) -> Option<Lease> {
        let lease = self.leases.remove(&job)?;
        if let Some(session) = self.sessions.find_mut(lease.session) {
            session.leases.remove(lease.number);
        }
        self.leave_lease_part(lease.number, lease.part);
        self.free_slot(now, lease.lane);
        self.forget_cancel(job, &lease);
        if let Some(place) = lease.place {
            if let Some(run) = self.runs.get_mut(&place.run) {
                run.leased -= 1;
            }
            self.leave(place.run, place.index);
            self.watch_straggler(place.run, now);
        }
        Some(lease)
    }

    /// When the last entry of a run is leased, it is looked at again after a while.
    pub(crate) fn watch_straggler(&mut self, run: RunKey, now: Mono) {
        let Some(state) = self.runs.get_mut(&run) else {
            return;
        };
        let is_unwatched = state.entries > 1 && state.leased == 1 && state.watched.is_none();
        if is_unwatched && state.left.count() + 1 == u32::from(state.entries) {
            let at = now.plus(STRAGGLER_AFTER);
            state.watched = Some(at);
            self.stragglers.insert((at, run));
        }
    }

    /// Runs whose last entry has been leased for long.
    pub(crate) fn stragglers_due(&self, now: Mono, max: usize) -> Vec<(Mono, RunKey)> {
        let due = self.stragglers.iter().take_while(|(at, _)| *at <= now);
        due.take(max).copied().collect()
    }

    /// The one entry of a run that has not left, when it is leased and lives there.
    pub(crate) fn straggler(&self, run: RunKey) -> Option<JobId> {
        let state = self.runs.get(&run)?;
        let index = state.left.first_missing(state.entries)?;
        let job = Place { run, index }.job_id(self.options.shard);
        let lease = self.leases.find(&job)?;
        let is_last = state.left.count() + 1 == u32::from(state.entries);
        (is_last && !lease.has_record && lease.place.is_some()).then_some(job)
    }

    /// Gives a leased job a record of its own, so that its run can go.
    pub(crate) fn move_straggler(&mut self, job: JobId, facts: &Facts) {
        let Some(mut record) = self.lookup(job, facts) else {
            return;
        };
        let Some(lease) = self.leases.find_mut(&job) else {
            return;
        };
        let Some(place) = lease.place.take() else {
            return;
        };
        lease.has_record = true;
        record.state = JobState::Leased;
        record.place = None;
        record.attempt = lease.attempt;
        if let Some(run) = self.runs.get_mut(&place.run) {
            run.leased -= 1;
        }
        self.leave(place.run, place.index);
        self.group.put_job(record);
    }

    /// Puts a job whose lease has just ended where it goes next.
    pub(crate) fn settle(&mut self, now: Now, mut record: Box<JobRecord>, next: Next) {
        let queue = record.queue;
        match next {
            Next::Scheduled(at) => {
                self.hold_key(&mut record);
                self.watch_expiry(record.id, expiry_of(&record));
                self.count(queue, Some(JobState::Leased), Some(JobState::Scheduled));
                self.put_scheduled(record, at);
            }
            Next::ReadyAtHead => {
                self.hold_key(&mut record);
                self.watch_expiry(record.id, expiry_of(&record));
                self.count(queue, Some(JobState::Leased), Some(JobState::Ready));
                self.make_ready_at_head(record);
            }
            Next::Dead(reason) => {
                self.pass_key(&record, JobState::Leased, Some(JobState::Dead));
                self.end_hold(now, &record);
                record.holds_key = false;
                let retention = self.queues.find(queue);
                let retention = retention.map(crate::queue::Queue::dead_retention);
                record.close_as_dead(reason, now.wall, retention.unwrap_or_default());
                self.group.set_closed(closed_row(&record), true);
                self.set_timer(retention_timer(&record));
                self.count(queue, Some(JobState::Leased), Some(JobState::Dead));
                self.move_member(now, record.batch, Standing::Tried, Standing::Dead);
                self.job_is_over(now, record.id);
                self.node_is_over(node_of(&record), NodeState::Dead);
                self.tell_waits(record.id, |engine| {
                    Ok(engine.wait_reply(&record, &Facts::default()))
                });
                self.group.put_job(record);
                self.watch_closed(queue, JobState::Dead);
            }
            Next::Deleted => {
                self.pass_key(&record, JobState::Leased, None);
                self.end_hold(now, &record);
                self.count(queue, Some(JobState::Leased), None);
                self.move_member(now, record.batch, Standing::Tried, Standing::Deleted);
                self.group.delete_job(&record);
                self.job_is_over(now, record.id);
                self.node_is_over(node_of(&record), NodeState::Deleted);
                self.tell_waits(record.id, |_| Err(waits::not_kept(record.id)));
            }
            Next::Cancelled => {
                record.state = JobState::Leased;
                self.close_as_cancelled(now, &record);
            }
        }
    }

    /// Makes a job wait for its time. Its state was counted by the caller.
    pub(crate) fn put_scheduled(&mut self, mut record: Box<JobRecord>, at: Timestamp) {
        record.state = JobState::Scheduled;
        record.run_at = Some(at);
        record.place = None;
        self.set_timer(group::due(record.id, at));
        self.group.put_job(record);
    }

    /// Makes a job ready at the tail of its lane. Its state was counted by the caller.
    pub(crate) fn make_ready_at_tail(&mut self, mut record: Box<JobRecord>) {
        if record.holds_key {
            return self.make_ready_at_head(record);
        }
        let (queue, priority) = (record.queue, record.priority);
        let key = record.content.as_ref().and_then(|it| it.key.clone());
        record.lane = key.map_or(0, |key| self.lane_to_join(queue, priority, &key));
        let lane = Lane {
            queue,
            priority,
            lane: record.lane,
        };
        let (head, group) = (&mut self.head, &mut self.group);
        let entry = Entry::Reference(record.id);
        let place = group.append(lane, entry, || head.position_at_tail());
        record.state = JobState::Ready;
        record.run_at = None;
        record.place = Some(place);
        self.group.put_job(record.clone());
        let (id, group) = (record.id, self.group.number);
        self.queue_head(Head {
            place,
            id,
            group,
            job: HeadJob::Record(record),
        });
    }

    fn make_ready_at_head(&mut self, mut record: Box<JobRecord>) {
        record.lane = self.lane_to_lead(&record);
        let lane = Lane {
            queue: record.queue,
            priority: record.priority,
            lane: record.lane,
        };
        let position = self.head.position_at_head();
        let place = self.group.prepend(lane, record.id, position);
        record.state = JobState::Ready;
        record.run_at = None;
        record.place = Some(place);
        self.group.put_job(record.clone());
        let (id, group) = (record.id, self.group.number);
        self.runs.entry(place.run).or_default().heads += 1;
        let head = Head {
            place,
            id,
            group,
            job: HeadJob::Record(record),
        };
        for evicted in self.queues.push_front(head) {
            self.forget_head(evicted.place.run);
        }
    }

    /// A head has left a window without a lease.
    pub(crate) fn forget_head(&mut self, run: RunKey) {
        let Some(state) = self.runs.get_mut(&run) else {
            return;
        };
        state.heads -= 1;
        self.forget_unused(run);
    }

    /// A lease has ended, and its entry stays in its run.
    pub(crate) fn forget_lease_of_run(&mut self, run: RunKey) {
        if let Some(state) = self.runs.get_mut(&run) {
            state.leased -= 1;
        }
        self.forget_unused(run);
    }

    /// Forgets a run of which nothing is known beyond its record.
    fn forget_unused(&mut self, run: RunKey) {
        let is_unused = |state: &crate::RunState| {
            state.heads == 0 && state.leased == 0 && state.left.count() == 0
        };
        if self.runs.get(&run).is_some_and(is_unused) {
            self.forget_run(run);
        }
    }

    /// Writes an error into the next slot of a job.
    pub(crate) fn keep_error(&mut self, record: &mut JobRecord, error: JobError) {
        let bytes = 64 + error.kind.len() + error.message.len() + error.backtrace.len();
        let (slot, earlier) = record.next_error_slot(blob_parts(bytes));
        self.group
            .put_error(record.id, slot, Box::new(error), earlier);
    }

    /// Deletes a dead job and everything that is kept of it.
    pub(crate) fn delete_dead(&mut self, now: Now, record: &JobRecord, facts: &Facts) {
        self.tell(now, EventName::Deleted, record, (None, None));
        self.unclose(record);
        self.pass_key(record, JobState::Dead, None);
        self.count(record.queue, Some(JobState::Dead), None);
        self.move_dead_member(now, record, Standing::Deleted, facts);
        self.group.delete_job(record);
        self.node_is_over(node_of(record), NodeState::Deleted);
    }

    /// Takes a closed job out of the index and stops its retention.
    pub(crate) fn unclose(&mut self, record: &JobRecord) {
        self.group.set_closed(closed_row(record), false);
        self.unset_timer(retention_timer(record));
    }

    /// Takes in the next entries of a lane: those of the store and those of the open group.
    pub(crate) fn refill_lane(&mut self, lane: Lane, after: Option<(u64, u8)>, heads: &Heads) {
        let queue = self.queues.find(lane.queue);
        let window = queue.and_then(|queue| queue.lane_window(lane));
        if window.is_none_or(|window| window.end != after || !window.is_behind) {
            return;
        }
        let last_read = heads.rows.last().map(|row| row.place);
        let is_reached =
            |place: &Place| heads.at_end || last_read.is_some_and(|last| *place <= last);
        let mut rows = heads.rows.clone();
        rows.extend(
            self.open_rows(lane, after)
                .into_iter()
                .filter(|row| is_reached(&row.place)),
        );
        rows.sort_by_key(|row| row.place);
        let end = rows
            .last()
            .map(|row| (row.place.run.position, row.place.index));
        let heads_in: Vec<Head> = rows
            .into_iter()
            .filter_map(|row| self.head_of(row))
            .collect();
        self.queues.refill(lane, heads_in, end, !heads.at_end);
        if lane.lane != 0 {
            self.drop_idle_lane(Mono::default(), lane);
        }
    }

    /// The entries of a lane that the open group has.
    fn open_rows(&self, lane: Lane, after: Option<(u64, u8)>) -> Vec<HeadRow> {
        let first = RunKey {
            lane,
            position: after.map_or(0, |(position, _)| position),
        };
        let last = RunKey {
            lane,
            position: u64::MAX,
        };
        let mut rows = Vec::new();
        for (run, open) in self.group.runs.range(first..=last) {
            let run_entries = u8::try_from(open.entries.len()).unwrap_or(u8::MAX);
            for (entry, index) in open.entries.iter().zip(0_u8..) {
                if after.is_some_and(|after| (run.position, index) <= after) {
                    continue;
                }
                let entry = match entry {
                    Entry::Job(job) => HeadEntry::Packed(job.clone()),
                    Entry::Scheduled(at, job) => HeadEntry::Scheduled(*at, job.clone()),
                    Entry::Reference(id) => HeadEntry::Reference(*id, None),
                };
                let place = Place { run: *run, index };
                rows.push(HeadRow {
                    place,
                    run_entries,
                    group: self.group.number,
                    entry,
                });
            }
        }
        rows
    }

    /// The head of a row, unless its job has left, is leased, or stands elsewhere by now.
    fn head_of(&mut self, row: HeadRow) -> Option<Head> {
        let HeadRow {
            place,
            run_entries,
            mut group,
            entry,
        } = row;
        let (id, job) = match entry {
            HeadEntry::Packed(job) => (place.job_id(self.options.shard), HeadJob::Packed(job)),
            HeadEntry::Scheduled(..) => return None,
            HeadEntry::Reference(id, stored) => {
                let record = match self.group.jobs.get(&id) {
                    Some(open) => {
                        group = self.group.number;
                        let mut record = open.clone()?;
                        record.content = record
                            .content
                            .or_else(|| stored.and_then(|stored| stored.content));
                        record
                    }
                    None => stored?,
                };
                if record.state != JobState::Ready || record.place != Some(place) {
                    return None;
                }
                group = group.max(record.group);
                (id, HeadJob::Record(record))
            }
        };
        if self.has_left(&place) || self.leases.find(&id).is_some() {
            return None;
        }
        let state = self.runs.entry(place.run).or_default();
        state.entries = run_entries;
        state.heads += 1;
        Some(Head {
            place,
            id,
            group,
            job,
        })
    }

    /// Takes in the next timers: those of the store and those of the open group.
    pub(crate) fn refill_schedule(&mut self, after: Option<Timer>, timers: &[Timer], at_end: bool) {
        if self.schedule.refill_after() != Some(after) {
            return;
        }
        let last_read = timers.last().copied();
        let open = self.group.timers_behind(after);
        let reached = open.filter(|timer| at_end || last_read.is_some_and(|last| *timer <= last));
        let mut all: Vec<Timer> = timers.iter().copied().chain(reached).collect();
        all.retain(|timer| !self.group.unsets(timer));
        all.sort_unstable();
        all.dedup();
        let end = last_read.max(all.last().copied());
        self.schedule.refill(&all, end, at_end);
    }

    /// What must be read before a lease can end without an ack.
    pub(crate) fn needs_to_end_lease(&self, job: JobId) -> Vec<Need> {
        let lease = self.leases.find(&job);
        let hold = lease.and_then(|lease| self.need_of_hold(lease.lane));
        self.need_of_job(job, true)
            .into_iter()
            .chain(hold)
            .collect()
    }

    /// What must be read before all leases of a session can end.
    pub(crate) fn needs_of_session(&self, session: Option<SessionId>) -> Vec<Need> {
        let session = session.and_then(|id| self.sessions.find(id));
        let leases = session
            .into_iter()
            .flat_map(|session| session.leases.iter());
        leases
            .flat_map(|(_, job)| self.needs_to_end_lease(*job))
            .collect()
    }
}

/// The row of a closed job in its index.
pub(crate) fn closed_row(record: &JobRecord) -> Closed {
    Closed {
        queue: record.queue,
        state: record.state,
        at: record.closed_at.unwrap_or_default(),
        job: record.id,
    }
}

/// The timer that removes a closed job.
pub(crate) fn retention_timer(record: &JobRecord) -> Timer {
    Timer {
        at: record.run_at.unwrap_or_default(),
        what: TimerKind::Retention,
        id: *record.id.as_bytes(),
    }
}
