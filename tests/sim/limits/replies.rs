//! What replies say of limits and of the jobs under them.

use ganger_protocol::{
    ErrorCode, WireError,
    job::{GrantedJob, JobState},
    limit::{LimitSet, LimitView},
    request::LeaseRef,
    response::{FetchReply, LeaseResult, ReplyBody},
};

use super::{
    AskedFetch, AskedLimit,
    known::{Decision, QUEUES},
};
use crate::{history::Checked, world::World};

impl World {
    /// A request was answered: it was applied as the operation of this number.
    pub fn limit_reply(
        &mut self,
        asked: AskedLimit,
        operation: u64,
        answer: Result<ReplyBody, WireError>,
    ) -> Checked {
        match (asked, answer) {
            (AskedLimit::Push(tokens), Ok(ReplyBody::Push(reply))) => {
                for (token, result) in tokens.zip(&reply.results) {
                    let job = &mut self.limits.known.jobs[token];
                    job.is_told = true;
                    job.id = job.id.or(result.id);
                    if result.id.is_none() {
                        return Err(format!("limited {token} was refused: {result:?}"));
                    }
                }
                Ok(())
            }
            (AskedLimit::Fetch(fetch), Ok(ReplyBody::Fetch(reply))) => {
                self.limited_fetched(&fetch, reply, operation)
            }
            (AskedLimit::Answer(token, grants), Ok(ReplyBody::Lease(reply))) => {
                self.limited_answered((token, grants), &reply.results[0], operation);
                Ok(())
            }
            (AskedLimit::Set(set), Ok(ReplyBody::Limit(view))) => match shows(&view, &set) {
                true => Ok(()),
                false => Err(format!("{set:?} was set, and is {view:?}")),
            },
            (AskedLimit::Delete(true) | AskedLimit::Pause, Ok(ReplyBody::Done(_))) => Ok(()),
            (AskedLimit::Delete(false), Err(error)) if is_missing(&error) => Ok(()),
            (AskedLimit::Cancel(token), Ok(ReplyBody::Cancel(reply))) => {
                if reply.results[0].state == Some(JobState::Cancelled) {
                    let told = self.history.operation();
                    self.limits.known.jobs[token].over.get_or_insert(told);
                }
                Ok(())
            }
            (AskedLimit::Change(token, moves, (queue, priority)), Ok(ReplyBody::Change(reply))) => {
                let state = reply.results[0].state;
                let told = self.history.operation();
                let job = &mut self.limits.known.jobs[token];
                // A later request may have moved it on, though nobody was told.
                if matches!(state, Some(JobState::Ready | JobState::Scheduled))
                    && job.moves == moves
                {
                    job.moved = Some((queue, priority, told));
                }
                Ok(())
            }
            (AskedLimit::Heartbeat(..), Ok(ReplyBody::Heartbeat(reply))) => {
                let now = self.elapsed();
                self.limits.lost(&reply.lost, now)
            }
            (
                AskedLimit::Fetch(AskedFetch {
                    worker, connection, ..
                })
                | AskedLimit::Heartbeat(worker, connection),
                Err(error),
            ) if is_missing(&error) => {
                let now = self.elapsed();
                if self.limits.workers[worker].connection == Some(connection) {
                    self.limits.forget_worker(worker, now);
                }
                Ok(())
            }
            (AskedLimit::Answer(..), Err(error)) if is_missing(&error) => Ok(()),
            (asked, other) => Err(format!("{asked:?} was answered by {other:?}")),
        }
    }

    fn limited_fetched(
        &mut self,
        fetch: &AskedFetch,
        reply: FetchReply,
        operation: u64,
    ) -> Checked {
        let now = self.elapsed();
        for ((token, _), result) in fetch.acks.iter().zip(&reply.acks) {
            self.limited_answered((*token, u32::MAX), result, operation);
        }
        let worker = &mut self.limits.workers[fetch.worker];
        // Nobody is there any more who is told.
        if worker.connection != Some(fetch.connection) {
            return Ok(());
        }
        worker.is_fetching = false;
        let is_alone = !self.limits.is_fetching();
        // Nothing has to be durable before a fetch is told of nothing.
        let is_settled = fetch.is_direct && is_alone && reply.jobs.is_empty();
        let is_at_once = fetch.is_direct && !fetch.stands;
        let by = Decision {
            session: fetch.session,
            between: (fetch.at, if is_at_once { fetch.at } else { now }),
            asked: operation,
            is_exact: fetch.changes == self.limits.known.changes,
            is_alone,
        };
        let count = reply.jobs.len();
        if count > fetch.max {
            return Err(format!("{count} jobs, {} were asked for", fetch.max));
        }
        for job in &reply.jobs {
            self.limited_granted(fetch, job, by)?;
        }
        if is_alone {
            self.limits.known.confirm_suspicions()?;
        }
        if by.is_exact && is_settled {
            let known = &self.limits.known;
            known.check_nothing_is_missed(&fetch.queues, now)?;
        }
        Ok(())
    }

    fn limited_granted(&mut self, fetch: &AskedFetch, job: &GrantedJob, by: Decision) -> Checked {
        let head = job.payload.get(..8).and_then(|head| head.try_into().ok());
        let token = head.map_or(usize::MAX, |head| u64::from_be_bytes(head) as usize);
        let queue = QUEUES.iter().position(|name| *name == job.queue.as_str());
        let jobs = self.limits.known.jobs.len();
        let Some(queue) = queue.filter(|queue| token < jobs && fetch.queues.contains(queue)) else {
            return Err(format!(
                "I2: {:?} was never pushed to {}",
                job.id, job.queue
            ));
        };
        self.trace.note(
            self.clock.elapsed(),
            "limited {} is granted by lease {} from queue {}, attempt {}",
            &[
                token as u64,
                job.lease.0,
                queue as u64,
                u64::from(job.attempt),
            ],
        );
        self.limits.known.jobs[token].id = Some(job.id);
        let lease = LeaseRef {
            job: job.id,
            lease: job.lease,
        };
        let granted = (lease, queue, job.timeout_ms.0);
        self.limits.known.granted(token, granted, by)?;
        self.limits.granted.push(token);
        match self.limits.lost.contains(&lease.lease) {
            true => self.limits.known.end(lease),
            false => self.limits.workers[fetch.worker].held.push((token, lease)),
        }
        Ok(())
    }

    /// A lease was answered, before its job was granted so and so often.
    fn limited_answered(
        &mut self,
        (token, grants): (usize, u32),
        result: &LeaseResult,
        operation: u64,
    ) {
        let told = self.history.operation();
        let job = &mut self.limits.known.jobs[token];
        if result.err.is_some() || result.already {
            return;
        }
        match result.state {
            Some(JobState::Ready | JobState::Scheduled) => {
                job.waits_again = (job.grants == grants).then_some(operation);
            }
            Some(_) | None => {
                job.over.get_or_insert(told);
            }
        }
    }
}

fn is_missing(error: &WireError) -> bool {
    error.code == ErrorCode::NotFound
}

/// Whether a limit is shown as it was set.
pub(super) fn shows(view: &LimitView, set: &LimitSet) -> bool {
    view.target() == set.target()
        && view.max_running == set.max_running
        && view.rate == set.rate
        && view.weight == set.weight
        && view.sequence == set.sequence
}
