//! Cancelling jobs: one that waits ends at once; one that is leased is flagged, its worker told, and
//! its lease revoked when the grace has passed.
//!
//! Until then the lease is as good as any: an ack wins, and whatever else ends it ends the job as
//! cancelled. The flag is in the job's record and the end of the grace is a timer, so that both
//! outlive the server. Taking a waiting job out of where it waits is `expiry.rs`'s.

use ganger_protocol::{
    DurationMs, ErrorCode, JobId, SessionId, Timestamp, WireError,
    event::EventName,
    job::JobState,
    request::{JobCancel, LeaseRef},
    response::{CancelReply, CancelResult, Notice, ReplyBody},
    workflow::NodeState,
};

use crate::{
    Engine,
    batch::Standing,
    command::{Now, Origin, Outcome},
    expiry::expiry_of,
    facts::{Facts, Need},
    lease::Lease,
    move_job::Next,
    records::{JobRecord, Timer, TimerKind},
    waits::ended_reply,
    workflow::node_of,
};

impl Engine {
    /// What must be read before a job can be cancelled.
    pub(crate) fn needs_to_cancel(&self, job: JobId, facts: &Facts) -> Vec<Need> {
        match self.leases.find(&job) {
            Some(_) => self.need_of_job(job, true).into_iter().collect(),
            None => self.needs_to_withdraw(job, facts),
        }
    }

    pub(crate) fn job_cancel(
        &mut self,
        now: Now,
        origin: &Origin,
        cancel: &JobCancel,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> ReplyBody {
        let jobs = cancel.jobs.iter();
        let results = jobs.map(|job| {
            let record = self.lookup(*job, facts);
            match record.filter(|record| self.is_in_namespace(record.queue, origin)) {
                Some(record) => self.cancel_job(now, record, cancel.grace_ms, facts, outcome),
                None => {
                    let gone = WireError::new(ErrorCode::NotFound, format!("no job {job} is kept"));
                    refused(gone)
                }
            }
        });
        let results = results.collect();
        ReplyBody::Cancel(CancelReply { results })
    }

    /// Cancels a job as it was looked up.
    fn cancel_job(
        &mut self,
        now: Now,
        record: Box<JobRecord>,
        grace: DurationMs,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> CancelResult {
        if self.leases.find(&record.id).is_some() {
            return self.cancel_leased(now, record, grace, facts, outcome);
        }
        match record.state {
            JobState::Scheduled | JobState::Blocked | JobState::Ready => {
                self.withdraw(now, &record, facts);
                self.unwatch_expiry(record.id, expiry_of(&record));
                self.close_as_cancelled(now, &record);
                CancelResult::cancelled()
            }
            // A ready or leased job without a lease is one whose lease has just ended.
            JobState::Leased
            | JobState::Done
            | JobState::Dead
            | JobState::Cancelled
            | JobState::Expired => {
                let state = record.state.as_str();
                let message = format!("the job is {state}: what is over cannot be cancelled");
                refused(WireError::new(ErrorCode::Conflict, message).with_state(state))
            }
        }
    }

    /// Flags a leased job and tells its worker; without a grace it is over at once.
    fn cancel_leased(
        &mut self,
        now: Now,
        record: Box<JobRecord>,
        grace: DurationMs,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> CancelResult {
        let job = record.id;
        if grace == DurationMs::ZERO {
            self.revoke(now, record, outcome);
            return CancelResult::cancelled();
        }
        let at = now.wall.plus(grace);
        let earlier = record.cancel_at.filter(|earlier| *earlier <= at);
        if earlier.is_none() {
            self.flag(record, at, facts);
        }
        self.tell_cancelled(job, outcome);
        CancelResult {
            state: Some(JobState::Leased),
            cancel_at: earlier.or(Some(at)),
            err: None,
        }
    }

    /// The grace of a leased job ends then.
    fn flag(&mut self, record: Box<JobRecord>, at: Timestamp, facts: &Facts) {
        let job = record.id;
        self.unwatch_cancel(job, record.cancel_at);
        self.move_straggler(job, facts);
        let moved = self.group.jobs.get(&job).cloned().flatten();
        let mut record = moved.unwrap_or(record);
        record.cancel_at = Some(at);
        self.group.put_job(record);
        self.set_timer(cancel_timer(job, at));
        if let Some(lease) = self.leases.find_mut(&job) {
            lease.cancel_at = Some(at);
        }
    }

    /// Tells the worker of a job that it shall stop: at once, and with each heartbeat.
    fn tell_cancelled(&mut self, job: JobId, outcome: &mut Outcome) {
        let Some(lease) = self.leases.find(&job) else {
            return;
        };
        let told = LeaseRef {
            job,
            lease: lease.number,
        };
        let Some(session) = self.sessions.find_mut(lease.session) else {
            return;
        };
        session.cancels.insert(job);
        if let Some(connection) = session.connection {
            let leases = vec![told];
            outcome
                .notices
                .push((connection, Notice::Cancel { leases }));
        }
    }

    /// Leases of a session that its worker shall stop.
    pub(crate) fn cancels_of(&self, session: SessionId) -> Vec<LeaseRef> {
        let session = self.sessions.find(session);
        let jobs = session.into_iter().flat_map(|session| &session.cancels);
        let told = jobs.filter_map(|job| {
            let lease = self.leases.find(job)?.number;
            Some(LeaseRef { job: *job, lease })
        });
        told.collect()
    }

    /// A lease has ended: nothing is left to be told or to be waited for.
    pub(crate) fn forget_cancel(&mut self, job: JobId, lease: &Lease) {
        if lease.cancel_at.is_none() {
            return;
        }
        self.unwatch_cancel(job, lease.cancel_at);
        if let Some(session) = self.sessions.find_mut(lease.session) {
            session.cancels.remove(&job);
        }
    }

    fn unwatch_cancel(&mut self, job: JobId, at: Option<Timestamp>) {
        if let Some(at) = at {
            self.unset_timer(cancel_timer(job, at));
        }
    }

    /// The grace of a job has passed.
    pub(crate) fn fire_cancel(
        &mut self,
        now: Now,
        timer: &Timer,
        facts: &Facts,
        outcome: &mut Outcome,
    ) {
        let job = JobId::from_bytes(timer.id);
        let lease = self.leases.find(&job);
        if lease.is_none_or(|lease| lease.cancel_at != Some(timer.at)) {
            return;
        }
        if let Some(record) = self.lookup(job, facts) {
            self.revoke(now, record, outcome);
        }
    }

    /// Ends a lease without its worker, and its job with it.
    fn revoke(&mut self, now: Now, mut record: Box<JobRecord>, outcome: &mut Outcome) {
        let Some(lease) = self.end_lease(record.id, now.mono) else {
            return;
        };
        let told = LeaseRef {
            job: record.id,
            lease: lease.number,
        };
        self.tell_lost(lease.session, vec![told], outcome);
        self.member_was_tried(now, &record, lease.attempt);
        record.attempt = lease.attempt;
        self.settle(now, record, Next::Cancelled);
    }

    /// A job that does not wait any more, and has no lease any more, is cancelled.
    pub(crate) fn close_as_cancelled(&mut self, now: Now, record: &JobRecord) {
        let from = record.state;
        let stand = (Some(JobState::Cancelled), None);
        self.tell(now, EventName::Cancelled, record, stand);
        self.count(record.queue, Some(from), Some(JobState::Cancelled));
        self.pass_key(record, from, Some(JobState::Cancelled));
        let before = Standing::of_job(from, record.attempt, record.releases);
        self.move_member(now, record.batch, before, Standing::Cancelled);
        self.end_hold(now, record);
        let retention = self.retention_of(record);
        self.retain(now, record, JobState::Cancelled, retention);
        self.job_is_over(now, record.id);
        self.node_is_over(node_of(record), NodeState::Cancelled);
        self.tell_waits(record.id, |_| {
            Ok(ended_reply(JobState::Cancelled, now.wall))
        });
    }
}

fn refused(error: WireError) -> CancelResult {
    CancelResult {
        err: Some(error),
        ..CancelResult::default()
    }
}

fn cancel_timer(job: JobId, at: Timestamp) -> Timer {
    Timer {
        at,
        what: TimerKind::Cancel,
        id: *job.as_bytes(),
    }
}
