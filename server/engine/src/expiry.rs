//! Expiry: a job that still waits at its `expires_at` is not granted any more.
//!
//! Every waiting job with an `expires_at` has a timer; a grant takes it away, and whatever brings
//! the job back to waiting sets it again, so a leased job does not expire. A grant that comes
//! before the timer looks by itself (`lanes.rs`). Taking a job out of where it waits is here, too.

use ganger_protocol::{JobId, Timestamp, event::EventName, job::JobState, workflow::NodeState};

use crate::{
    Engine,
    batch::Standing,
    command::Now,
    facts::{Fact, Facts, Need},
    records::{Bits, JobRecord, LeftRun, Place, StoredJob, Timer, TimerKind},
    waits::ended_reply,
    window::{Head, HeadJob},
    workflow::node_of,
};

impl Engine {
    /// What must be read before a waiting job can be taken out of where it waits: the job, and
    /// the size of the run that it stands in.
    pub(crate) fn needs_to_withdraw(&self, job: JobId, facts: &Facts) -> Vec<Need> {
        let Some(need) = self.need_of_job(job, true) else {
            return Vec::new();
        };
        let place = match facts.find(&need) {
            Some(Fact::Job(Some(StoredJob::Record(record)))) => record.place,
            Some(_) | None => None,
        };
        // One that is known by its heads alone may be forgotten with them before this job is reached.
        let is_kept = |run: &crate::RunState| run.left.count() > 0;
        let is_unknown = |place: &Place| {
            !self.runs.get(&place.run).is_some_and(is_kept)
                && !self.group.runs.contains_key(&place.run)
        };
        let run = place.filter(is_unknown).map(|place| Need::Run(place.run));
        [need].into_iter().chain(run).collect()
    }

    /// A job that waits: for others, its time or a worker.
    pub(crate) fn waiting(&self, job: JobId, facts: &Facts) -> Option<Box<JobRecord>> {
        let record = self.lookup(job, facts)?;
        let waits = matches!(
            record.state,
            JobState::Scheduled | JobState::Blocked | JobState::Ready
        ) && self.leases.find(&job).is_none();
        waits.then_some(record)
    }

    /// Takes a waiting job out of where it waits. What becomes of it, the caller says.
    pub(crate) fn withdraw(&mut self, now: Now, record: &JobRecord, facts: &Facts) {
        match (record.state, record.run_at, record.place) {
            (JobState::Scheduled, Some(at), Some(place)) => {
                return self.leave_scheduled(record.id, (place, at), facts);
            }
            (JobState::Scheduled, Some(at), None) => {
                self.unset_timer(crate::group::due(record.id, at));
            }
            (_, _, _) => {}
        }
        let Some(place) = record.place else { return };
        if let Some(entries) = self.unknown_entries(record.id, &place, facts) {
            self.runs.entry(place.run).or_default().entries = entries;
        }
        if self.queues.take(&place).is_some()
            && let Some(run) = self.runs.get_mut(&place.run)
        {
            run.heads -= 1;
        }
        self.leave(place.run, place.index);
        self.watch_straggler(place.run, now.mono);
        let job = (record.id, record.content.as_deref());
        self.has_left_lane(now.mono, place.run.lane, job);
    }

    /// A job leaves the scheduled run in which it was born; with the last one of a time its timer goes.
    fn leave_scheduled(&mut self, job: JobId, (place, at): (Place, Timestamp), facts: &Facts) {
        let run = place.run;
        let (before, peers) = match self.stored(job, facts) {
            Some(StoredJob::Scheduled { left, peers, .. }) => (*left, *peers),
            // It was born in this group.
            Some(StoredJob::Packed { .. } | StoredJob::Record(_)) | None => {
                let peers = self.group.born_for(&run, at).map(|(index, _)| index);
                (LeftRun::whole(run, 0), Bits::of(peers))
            }
        };
        let left = self.group.leave_scheduled(place.index, before);
        if left.covers(&peers) {
            self.unset_timer(self.run_due(run, at));
        }
    }

    /// The entries of the run that a job stands in, when the engine does not know that run yet.
    fn unknown_entries(&self, job: JobId, place: &Place, facts: &Facts) -> Option<u8> {
        if self.runs.contains_key(&place.run) {
            return None;
        }
        if let Some(open) = self.group.runs.get(&place.run) {
            return u8::try_from(open.entries.len()).ok();
        }
        if let Some(Fact::Run(entries)) = facts.find(&Need::Run(place.run)) {
            return *entries;
        }
        match self.stored(job, facts) {
            Some(StoredJob::Packed { run_entries, .. }) => Some(*run_entries),
            Some(StoredJob::Record(_) | StoredJob::Scheduled { .. }) | None => None,
        }
    }

    /// The timer of a job's expiry is due; the job, when it has expired by it.
    pub(crate) fn fire_expiry(&mut self, now: Now, timer: &Timer, facts: &Facts) {
        let Some(record) = self.waiting(JobId::from_bytes(timer.id), facts) else {
            return;
        };
        if expiry_of(&record) == Some(timer.at) {
            self.withdraw(now, &record, facts);
            self.close_as_expired(now, &record);
        }
    }

    /// A head that was taken out of its window has expired.
    pub(crate) fn expire_head(&mut self, now: Now, head: Head) {
        let Head { place, id, job, .. } = head;
        if let Some(run) = self.runs.get_mut(&place.run) {
            run.heads -= 1;
        }
        self.leave(place.run, place.index);
        self.watch_straggler(place.run, now.mono);
        let record = match job {
            HeadJob::Packed(packed) => Box::new(JobRecord::fresh(id, place, packed)),
            HeadJob::Record(record) => record,
        };
        let left = (id, record.content.as_deref());
        self.has_left_lane(now.mono, place.run.lane, left);
        self.close_as_expired(now, &record);
    }

    /// A waiting job, taken out of where it waited, has expired.
    fn close_as_expired(&mut self, now: Now, record: &JobRecord) {
        let stand = (Some(JobState::Expired), None);
        self.tell(now, EventName::Expired, record, stand);
        self.count(record.queue, Some(record.state), Some(JobState::Expired));
        self.pass_key(record, record.state, Some(JobState::Expired));
        let before = Standing::of_job(record.state, record.attempt, record.releases);
        self.move_member(now, record.batch, before, Standing::Expired);
        self.unwatch_expiry(record.id, expiry_of(record));
        self.end_hold(now, record);
        let retention = self.retention_of(record);
        self.retain(now, record, JobState::Expired, retention);
        self.job_is_over(now, record.id);
        self.node_is_over(node_of(record), NodeState::Expired);
        self.tell_waits(record.id, |_| Ok(ended_reply(JobState::Expired, now.wall)));
    }

    /// A job waits: it may expire.
    pub(crate) fn watch_expiry(&mut self, job: JobId, expires_at: Option<Timestamp>) {
        if let Some(at) = expires_at {
            self.set_timer(expiry_timer(job, at));
        }
    }

    /// A job does not wait any more.
    pub(crate) fn unwatch_expiry(&mut self, job: JobId, expires_at: Option<Timestamp>) {
        if let Some(at) = expires_at {
            self.unset_timer(expiry_timer(job, at));
        }
    }
}

/// When a job expires, as far as its content was read.
pub(crate) fn expiry_of(record: &JobRecord) -> Option<Timestamp> {
    record.content.as_ref()?.expires_at
}

fn expiry_timer(job: JobId, at: Timestamp) -> Timer {
    Timer {
        at,
        what: TimerKind::Expire,
        id: *job.as_bytes(),
    }
}
