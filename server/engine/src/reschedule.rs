//! Changing jobs that wait: started now, delayed, moved to another queue or priority. And deleting
//! those that are over.
//!
//! A job keeps its id, its history, its unique key and its batch wherever it goes; its queues count it
//! as `moved_out` and `moved_in`. Its key goes on being named by the queue that it was pushed to, so
//! the record of that queue outlives its purge (`purge.rs`).

use ganger_protocol::{
    ErrorCode, JobId, Timestamp, WireError,
    change::{ChangeReply, ChangeResult, ChangeTo, JobChange, JobDelete},
    event::EventName,
    job::JobState,
    response::ReplyBody,
};

use crate::{
    Engine,
    command::{Now, Origin, Outcome},
    expiry::expiry_of,
    facts::Facts,
    records::{JobRecord, QueueNumber},
};

impl Engine {
    pub(crate) fn job_change(
        &mut self,
        now: Now,
        origin: &Origin,
        change: &JobChange,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> ReplyBody {
        let mut touched = Vec::new();
        let jobs = change.jobs.iter();
        let results = jobs.map(|job| {
            let changed = self.change_job(now, origin, (*job, &change.to), facts, &mut touched);
            ChangeResult::from(changed)
        });
        let results = results.collect();
        self.offer_all(now, touched.into_iter(), outcome);
        ReplyBody::Change(ChangeReply { results })
    }

    /// Changes one job; a queue in which it became ready is added to those that are touched.
    fn change_job(
        &mut self,
        now: Now,
        origin: &Origin,
        (job, to): (JobId, &ChangeTo),
        facts: &Facts,
        touched: &mut Vec<QueueNumber>,
    ) -> Result<ChangeResult, WireError> {
        let mut record = self.kept(origin, job, facts)?;
        let state = match self.leases.find(&job) {
            Some(_) => JobState::Leased,
            None => record.state,
        };
        let due = to.run_at.or_else(|| Some(now.wall.plus(to.delay_ms?)));
        let due = check_time(&record, state, due)?;
        let next = match (state, due) {
            (JobState::Blocked, _) => JobState::Blocked,
            (_, Some(due)) if due > now.wall => JobState::Scheduled,
            (_, _) => JobState::Ready,
        };
        let run_at = due.filter(|_| next == JobState::Scheduled);
        let result = ChangeResult {
            state: Some(next),
            run_at,
            ..ChangeResult::default()
        };
        let place = (
            state,
            record.run_at.filter(|_| state == JobState::Scheduled),
        );
        let is_moved = to
            .queue
            .as_ref()
            .is_some_and(|name| !self.is_named(record.queue, name));
        let priority = to.priority.unwrap_or(record.priority);
        if place == (next, run_at) && !is_moved && priority == record.priority {
            return Ok(ChangeResult {
                already: true,
                ..result
            });
        }
        let mut queue = record.queue;
        if let Some(name) = to.queue.as_ref().filter(|_| is_moved) {
            queue = self.queue_for_push(&origin.namespace, name)?;
            self.check_quota(queue, 1)?;
        }
        self.withdraw(now, &record, facts);
        self.count_moved((record.queue, state), (queue, next));
        (record.queue, record.priority) = (queue, priority);
        self.tell(now, EventName::Changed, &*record, (Some(next), run_at));
        match (next, run_at) {
            (JobState::Scheduled, Some(at)) => self.put_scheduled(record, at),
            (JobState::Ready, _) => {
                self.make_ready_at_tail(record);
                touched.push(queue);
            }
            (_, _) => self.group.put_job(record),
        }
        Ok(result)
    }

    /// The record of a job that the caller may know.
    fn kept(
        &self,
        origin: &Origin,
        job: JobId,
        facts: &Facts,
    ) -> Result<Box<JobRecord>, WireError> {
        let record = self.lookup(job, facts);
        let record = record.filter(|record| self.is_in_namespace(record.queue, origin));
        let gone = || WireError::new(ErrorCode::NotFound, format!("no job {job} is kept"));
        record.ok_or_else(gone)
    }

    fn is_named(&self, queue: QueueNumber, name: &ganger_protocol::QueueName) -> bool {
        self.queue_name(queue).is_some_and(|own| own == name)
    }

    /// Counts a job that waits, and waits elsewhere or otherwise from now on.
    fn count_moved(
        &mut self,
        (from, before): (QueueNumber, JobState),
        (to, after): (QueueNumber, JobState),
    ) {
        if from == to {
            if before != after {
                self.count(from, Some(before), Some(after));
            }
            return;
        }
        if let Some(queue) = self.queues.find_mut(from) {
            if let Some(count) = queue.count_mut(before) {
                *count -= 1;
            }
            queue.record.counters.moved_out += 1;
        }
        if let Some(queue) = self.queues.find_mut(to) {
            if let Some(count) = queue.count_mut(after) {
                *count += 1;
            }
            queue.record.counters.moved_in += 1;
        }
        self.group.queues.extend([from, to]);
    }

    pub(crate) fn job_delete(
        &mut self,
        now: Now,
        origin: &Origin,
        delete: &JobDelete,
        facts: &Facts,
    ) -> ReplyBody {
        let jobs = delete.jobs.iter();
        let results = jobs.map(|job| {
            let deleted = self.kept(origin, *job, facts);
            let deleted = deleted.and_then(|record| self.delete_job(now, &record, facts));
            ChangeResult::from(deleted)
        });
        let results = results.collect();
        ReplyBody::Change(ChangeReply { results })
    }

    fn delete_job(
        &mut self,
        now: Now,
        record: &JobRecord,
        facts: &Facts,
    ) -> Result<ChangeResult, WireError> {
        match record.state {
            JobState::Done | JobState::Dead | JobState::Cancelled | JobState::Expired => {
                self.delete_closed(now, record, facts);
            }
            JobState::Scheduled | JobState::Blocked | JobState::Ready | JobState::Leased => {
                let state = match self.leases.find(&record.id) {
                    Some(_) => JobState::Leased,
                    None => record.state,
                };
                let message = format!("the job is {state}: only what is over can be deleted");
                let error = WireError::new(ErrorCode::Conflict, message);
                return Err(error.with_state(state.as_str()));
            }
        }
        Ok(ChangeResult::default())
    }
}

/// When a waiting job that is to be changed becomes ready; `None` when it does not wait for a time.
///
/// # Errors
/// `conflict` when the job does not wait, or not for a time, or would expire before.
fn check_time(
    record: &JobRecord,
    state: JobState,
    due: Option<Timestamp>,
) -> Result<Option<Timestamp>, WireError> {
    let conflict = |message: &str| {
        let message = format!("the job is {state}: {message}");
        WireError::new(ErrorCode::Conflict, message).with_state(state.as_str())
    };
    match (state, due) {
        (JobState::Scheduled | JobState::Ready, Some(due)) => match expiry_of(record) {
            Some(at) if due >= at => Err(WireError {
                field: Some("to".to_owned()),
                ..conflict(&format!("it expires at {at}, before it would be ready"))
            }),
            Some(_) | None => Ok(Some(due)),
        },
        (JobState::Scheduled, None) => Ok(record.run_at),
        (JobState::Ready | JobState::Blocked, None) => Ok(None),
        (JobState::Blocked, Some(_)) => Err(conflict("it waits for other jobs, not for a time")),
        (JobState::Leased, _) => Err(conflict("a worker has it; it can be cancelled")),
        (JobState::Dead, _) => Err(conflict("what is dead can be revived or deleted")),
        (JobState::Done | JobState::Cancelled | JobState::Expired, _) => {
            Err(conflict("what is over cannot be changed"))
        }
    }
}
