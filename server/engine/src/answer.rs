//! Answers to leases: ack, fail, release, extend; late and repeated ones.

use ganger_protocol::{
    DurationMs, JobId, LeaseId, Timestamp, WireError,
    event::EventName,
    job::{DeadReason, JobError, JobState},
    limits::{BACKTRACE_BYTES_MAX, ERROR_MESSAGE_BYTES_MAX},
    request::{Ack, AckItem, Extend, ExtendItem, Fail, FailItem, Release, ReleaseItem},
    response::{LeaseReply, LeaseResult, ReplyBody},
    workflow::NodeState,
};

use crate::{
    Engine, backoff,
    batch::Standing,
    command::{Now, Origin, Outcome},
    events::LOST,
    facts::{Facts, Need},
    fetch::lease_lost,
    lease::{Answer, Lease},
    move_job::Next,
    records::{BlobKind, JobRecord, LeaseRecord, Place, QueueNumber},
    retention::may_be_kept,
    waits::done_reply,
};

impl Engine {
    /// What must be read to ack leases: the job of a live one that has a record, or is to be kept.
    pub(crate) fn needs_of_acks(&self, acks: &[AckItem]) -> Vec<Need> {
        let need = |item: &AckItem| match self.leases.live(&item.job, item.lease) {
            Some(lease) if may_be_kept(item, lease) => self.need_of_job(item.job, true),
            Some(lease) if !lease.has_record => self.need_to_tell_done(item.job, lease),
            Some(lease) => {
                let told = self.need_to_tell_done(item.job, lease);
                told.or_else(|| self.need_of_job(item.job, false))
            }
            None => self.need_of_job(item.job, false),
        };
        acks.iter().filter_map(need).collect()
    }

    /// What must be read to answer leases otherwise: the job of a live one that is to be rewritten,
    /// and of one that is not live, to say what became of it, even when its answer is remembered:
    /// another one of the request may take that place. No answer: an extension.
    pub(crate) fn needs_of_answers(
        &self,
        leases: impl Iterator<Item = (JobId, LeaseId)>,
        answer: Option<Answer>,
    ) -> Vec<Need> {
        let mut needs = Vec::new();
        for (job, number) in leases {
            let need = match (self.leases.live(&job, number), answer) {
                (Some(_), None) => None,
                (Some(_), Some(_)) => self.need_of_job(job, true),
                (None, _) => self.need_of_job(job, false),
            };
            needs.extend(need);
            if let (Some(lease), Some(Answer::Fail | Answer::Release)) =
                (self.leases.find(&job), answer)
            {
                needs.extend(self.need_of_hold(lease.lane));
            }
        }
        needs
    }

    pub(crate) fn ack(&mut self, now: Now, origin: &Origin, ack: &Ack, facts: &Facts) -> ReplyBody {
        let results = ack
            .leases
            .iter()
            .map(|item| self.ack_one(now, origin, item, facts))
            .collect();
        ReplyBody::Lease(LeaseReply { results })
    }

    pub(crate) fn fail(
        &mut self,
        now: Now,
        origin: &Origin,
        fail: Fail,
        facts: &Facts,
    ) -> ReplyBody {
        let items = fail.leases.into_iter();
        let results = items
            .map(|item| self.fail_one(now, origin, item, facts))
            .collect();
        ReplyBody::Lease(LeaseReply { results })
    }

    pub(crate) fn release(
        &mut self,
        now: Now,
        origin: &Origin,
        release: &Release,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> ReplyBody {
        let queues = release.leases.iter();
        let queues = queues.filter_map(|item| Some(self.leases.find(&item.job)?.queue));
        let queues: Vec<QueueNumber> = queues.collect();
        // The last one is put at the head first, so that the first one ends up before it.
        let items = release.leases.iter().rev();
        let mut results: Vec<LeaseResult> = items
            .map(|item| self.release_one(now, origin, item, facts))
            .collect();
        results.reverse();
        self.offer_all(now, queues.into_iter(), outcome);
        ReplyBody::Lease(LeaseReply { results })
    }

    pub(crate) fn extend(
        &mut self,
        now: Now,
        origin: &Origin,
        extend: &Extend,
        facts: &Facts,
    ) -> ReplyBody {
        let items = extend.leases.iter();
        let results = items
            .map(|item| self.extend_one(now, origin, item, facts))
            .collect();
        ReplyBody::Lease(LeaseReply { results })
    }

    pub(crate) fn ack_one(
        &mut self,
        now: Now,
        origin: &Origin,
        item: &AckItem,
        facts: &Facts,
    ) -> LeaseResult {
        let lease = match self.claim(now, origin, (item.job, item.lease), Answer::Ack, facts) {
            Ok(lease) => lease,
            Err(result) => return result,
        };
        self.release_key_of_lease(item.job, &lease, facts);
        let membership = self.membership(item.job, &lease, facts);
        let is_node = self.is_node_of_lease(item.job, &lease, facts);
        let batch = membership.map(|(batch, _)| batch);
        self.tell_done(now, (item.job, &lease), batch, facts);
        if may_be_kept(item, &lease) {
            self.keep_done(now, item, &lease, facts);
        } else if lease.has_record {
            if let Some(record) = self.lookup(item.job, facts) {
                if record.holds_key {
                    self.end_hold_of(now, lease.lane);
                }
                self.group.delete_job(&record);
            }
        } else {
            self.group
                .delete_blob(item.job, BlobKind::Content, lease.spilled_parts);
        }
        self.count(lease.queue, Some(JobState::Leased), Some(JobState::Done));
        self.kinds.count(lease.kind, |kind| kind.done += 1);
        if let Some((batch, before)) = membership {
            self.move_member(now, Some(batch), before, Standing::Done);
        }
        self.job_is_over(now, item.job);
        self.node_is_over((item.job, batch, is_node), NodeState::Done);
        self.tell_waits(item.job, |_| Ok(done_reply(now.wall, item.result.clone())));
        LeaseResult::default()
    }

    pub(crate) fn fail_one(
        &mut self,
        now: Now,
        origin: &Origin,
        item: FailItem,
        facts: &Facts,
    ) -> LeaseResult {
        let record = self.lookup(item.job, facts);
        let lease = match self.claim(now, origin, (item.job, item.lease), Answer::Fail, facts) {
            Ok(lease) => lease,
            Err(result) => return result,
        };
        let Some(record) = record else {
            return LeaseResult::default();
        };
        let verdict = match (item.dead, item.discard, item.retry_in_ms) {
            (true, _, _) => Verdict::Dead,
            (_, true, _) => Verdict::Discard,
            (_, _, Some(delay)) => Verdict::RetryIn(delay),
            (false, false, None) => Verdict::Backoff,
        };
        let error = JobError {
            at: now.wall,
            attempt: lease.attempt,
            kind: item.kind,
            message: cut(item.message, ERROR_MESSAGE_BYTES_MAX),
            backtrace: cut(item.backtrace, BACKTRACE_BYTES_MAX),
        };
        match self.fail_lease(now, &lease, record, error, verdict) {
            Next::Scheduled(at) => LeaseResult {
                state: Some(JobState::Scheduled),
                run_at: Some(at),
                ..LeaseResult::default()
            },
            Next::Dead(_) => LeaseResult {
                state: Some(JobState::Dead),
                ..LeaseResult::default()
            },
            Next::Cancelled => cancelled(),
            Next::ReadyAtHead | Next::Deleted => LeaseResult::default(),
        }
    }

    /// A lease has failed: counts it and sends the job where it goes.
    pub(crate) fn fail_lease(
        &mut self,
        now: Now,
        lease: &Lease,
        mut record: Box<JobRecord>,
        error: JobError,
        verdict: Verdict,
    ) -> Next {
        let earlier = record.failures;
        self.member_was_tried(now, &record, lease.attempt);
        record.failures += 1;
        record.losses_in_row = 0;
        record.attempt = lease.attempt;
        record.settled_lease = lease.number;
        if let Some(queue) = self.queues.find_mut(record.queue) {
            queue.record.counters.failed += 1;
        }
        let next = match verdict {
            _ if record.cancel_at.is_some() => Next::Cancelled,
            Verdict::Dead => Next::Dead(DeadReason::Worker),
            Verdict::Discard => Next::Deleted,
            Verdict::RetryIn(_) | Verdict::Backoff if record.failures >= record.max_attempts() => {
                Next::Dead(DeadReason::Attempts)
            }
            Verdict::RetryIn(delay) => Next::Scheduled(now.wall.plus(delay)),
            Verdict::Backoff => {
                Next::Scheduled(now.wall.plus(self.backoff_delay(&record, earlier)))
            }
        };
        self.kinds.count(lease.kind, |kind| {
            kind.failed += 1;
            kind.dead += u64::from(matches!(next, Next::Dead(_)));
        });
        self.tell_failed(now, &record, &error.kind, next);
        let is_kept = match next {
            Next::Deleted => false,
            Next::Cancelled => self.retention_of(&record) > DurationMs::ZERO,
            Next::Scheduled(_) | Next::ReadyAtHead | Next::Dead(_) => true,
        };
        if is_kept {
            self.keep_error(&mut record, error);
        }
        self.settle(now, record, next);
        next
    }

    fn backoff_delay(&mut self, record: &JobRecord, earlier: u32) -> DurationMs {
        let own = record
            .content
            .as_ref()
            .and_then(|content| content.backoff.as_deref());
        let queue = self.queues.find(record.queue);
        let queues = queue.and_then(|queue| queue.record.backoff.as_deref());
        match own.or(queues) {
            Some(policy) => backoff::delay(policy, earlier, &mut self.random),
            None => backoff::delay(&Default::default(), earlier, &mut self.random),
        }
    }

    fn release_one(
        &mut self,
        now: Now,
        origin: &Origin,
        item: &ReleaseItem,
        facts: &Facts,
    ) -> LeaseResult {
        let record = self.lookup(item.job, facts);
        let lease = match self.claim(now, origin, (item.job, item.lease), Answer::Release, facts) {
            Ok(lease) => lease,
            Err(result) => return result,
        };
        let Some(record) = record else {
            return LeaseResult::default();
        };
        let delay = item.delay_ms.filter(|delay| *delay > DurationMs::ZERO);
        let run_at = delay.map(|delay| now.wall.plus(delay));
        if let Next::Cancelled = self.release_lease(now, &lease, record, run_at) {
            return cancelled();
        }
        let state = if run_at.is_some() {
            JobState::Scheduled
        } else {
            JobState::Ready
        };
        LeaseResult {
            state: Some(state),
            run_at,
            ..LeaseResult::default()
        }
    }

    /// A lease was given back: it costs nothing.
    pub(crate) fn release_lease(
        &mut self,
        now: Now,
        lease: &Lease,
        mut record: Box<JobRecord>,
        run_at: Option<Timestamp>,
    ) -> Next {
        record.releases += 1;
        record.losses_in_row = 0;
        record.attempt = lease.attempt;
        record.settled_lease = lease.number;
        if let Some(queue) = self.queues.find_mut(record.queue) {
            queue.record.counters.released += 1;
        }
        let next = match record.cancel_at {
            Some(_) => Next::Cancelled,
            None => run_at.map_or(Next::ReadyAtHead, Next::Scheduled),
        };
        self.tell(now, EventName::Released, &*record, next.stand());
        self.settle(now, record, next);
        next
    }

    /// A lease ended with its session. The first loss returns the job to the head at once; from
    /// the second in a row on it waits; too many make it poison.
    pub(crate) fn lose_lease(&mut self, now: Now, lease: &Lease, mut record: Box<JobRecord>) {
        self.member_was_tried(now, &record, lease.attempt);
        record.losses += 1;
        record.losses_in_row += 1;
        record.attempt = lease.attempt;
        record.settled_lease = lease.number;
        if let Some(queue) = self.queues.find_mut(record.queue) {
            queue.record.counters.lost += 1;
        }
        if record.cancel_at.is_some() {
            self.tell_lost_job(now, &record, Next::Cancelled);
            return self.settle(now, record, Next::Cancelled);
        }
        let (in_row, limit) = (record.losses_in_row, self.options.poison_losses);
        let next = match in_row {
            _ if limit > 0 && in_row >= limit => Next::Dead(DeadReason::Poison),
            0 | 1 => Next::ReadyAtHead,
            _ => Next::Scheduled(now.wall.plus(backoff::loss_delay(in_row, &mut self.random))),
        };
        self.tell_lost_job(now, &record, next);
        let error = JobError {
            at: now.wall,
            attempt: lease.attempt,
            kind: LOST.to_owned(),
            message: format!("the worker was lost while it had the job, {in_row} in a row"),
            backtrace: String::new(),
        };
        self.keep_error(&mut record, error);
        self.settle(now, record, next);
    }

    fn extend_one(
        &mut self,
        now: Now,
        origin: &Origin,
        item: &ExtendItem,
        facts: &Facts,
    ) -> LeaseResult {
        let live = self.leases.live(&item.job, item.lease);
        let Some(lease) = live
            .filter(|lease| self.is_in_namespace(lease.queue, origin))
            .cloned()
        else {
            return refused(lease_lost(&self.state_for(origin, item.job, facts)));
        };
        let deadline = self.leases.extend(&item.job, now.mono.plus(item.ms));
        let rest = deadline.unwrap_or_default().since(now.mono);
        let result = LeaseResult {
            timeout_ms: Some(rest),
            ..LeaseResult::default()
        };
        if deadline == Some(lease.deadline) {
            return result;
        }
        self.leave_lease_part(lease.number, lease.part);
        if let Some(lease) = self.leases.find_mut(&item.job) {
            lease.part = None;
        }
        let record = LeaseRecord {
            job: item.job,
            lease: lease.number,
            session: lease.session,
            deadline: now.wall.plus(rest),
            place: lease.place.unwrap_or_else(|| Place::of_birth(&item.job)),
            attempt: lease.attempt,
            key: lease.lane,
        };
        self.group.grants.insert(lease.number, record);
        self.group.operations += 1;
        result
    }

    /// Ends a live lease with an answer. For one that is not live: the result that says so.
    fn claim(
        &mut self,
        now: Now,
        origin: &Origin,
        (job, number): (JobId, LeaseId),
        answer: Answer,
        facts: &Facts,
    ) -> Result<Lease, LeaseResult> {
        let live = self.leases.live(&job, number).map(|lease| lease.queue);
        if live.is_some_and(|queue| self.is_in_namespace(queue, origin))
            && let Some(lease) = self.end_lease(job, now.mono)
        {
            self.leases.remember(&job, number, answer);
            return Ok(lease);
        }
        let is_ours = self.is_in_namespace(QueueNumber(job.birth().queue), origin);
        if live.is_none() && is_ours && self.leases.answered(&job, number) == Some(answer) {
            return Err(LeaseResult {
                already: true,
                ..LeaseResult::default()
            });
        }
        Err(refused(lease_lost(&self.state_for(origin, job, facts))))
    }

    /// The state of a job as this caller may know it.
    pub(crate) fn state_for(&self, origin: &Origin, job: JobId, facts: &Facts) -> String {
        let record = self.lookup(job, facts);
        match record.filter(|record| self.is_in_namespace(record.queue, origin)) {
            Some(_) if self.leases.find(&job).is_some() => JobState::Leased.to_string(),
            Some(record) => record.state.to_string(),
            None => "gone".to_owned(),
        }
    }

    pub(crate) fn is_in_namespace(&self, queue: QueueNumber, origin: &Origin) -> bool {
        self.queues
            .find(queue)
            .is_some_and(|queue| queue.record.namespace == origin.namespace)
    }
}

/// What a failure leads to.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Verdict {
    /// Another attempt after the backoff.
    Backoff,
    /// Another attempt after this delay.
    RetryIn(DurationMs),
    /// No further attempt.
    Dead,
    /// No further attempt, and nothing is kept.
    Discard,
}

fn cancelled() -> LeaseResult {
    LeaseResult {
        state: Some(JobState::Cancelled),
        ..LeaseResult::default()
    }
}

pub(crate) fn refused(error: WireError) -> LeaseResult {
    LeaseResult {
        err: Some(error),
        ..LeaseResult::default()
    }
}

fn cut(mut text: String, bytes_max: usize) -> String {
    text.truncate(text.floor_char_boundary(bytes_max));
    text
}
