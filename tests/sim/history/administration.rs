//! Pauses, and what is done to dead jobs.

use ganger_protocol::{
    ErrorCode,
    change::ChangeResult,
    job::{DeadReason, JobState, JobView},
    response::CountReply,
};

use super::{Checked, Doubt, History, Last, Over, Pause, Presence, payload};
use crate::clock::Stretch;

impl History {
    pub fn pause_applied(&mut self, queue: usize, is_paused: bool, group: u64) -> u64 {
        let operation = self.operation();
        self.pauses[queue].push(Pause {
            group,
            is_paused,
            operation,
            is_told: false,
        });
        operation
    }

    pub fn pause_told(&mut self, queue: usize, operation: u64) -> Checked {
        let pauses = &mut self.pauses[queue];
        // One that changed nothing rests on the one that did.
        let mut state = (false, 0);
        for pause in pauses.iter_mut() {
            if pause.is_paused != state.0 {
                state = (pause.is_paused, pause.group);
            }
            if pause.operation == operation {
                pause.is_told = true;
                break;
            }
        }
        match state.1 > self.durable {
            true => Err("a pause was answered before it was durable".to_owned()),
            false => Ok(()),
        }
    }

    /// Whether a pause is the last that happened to a queue, and was told.
    pub(super) fn is_paused_as_told(&self, queue: usize) -> bool {
        self.pauses[queue]
            .last()
            .is_some_and(|pause| pause.is_paused && pause.is_told)
    }

    /// Whether a queue is paused.
    pub fn is_paused(&self, queue: usize) -> bool {
        self.pauses[queue]
            .last()
            .is_some_and(|pause| pause.is_paused)
    }

    /// A request that revives or purges jobs is applied.
    pub fn dead_applied(&mut self, jobs: &[usize], is_purge: bool, group: u64) -> u64 {
        let operation = self.operation();
        for job in jobs {
            // A revival takes the key again.
            self.jobs[*job].keyless = None;
            self.jobs[*job].doubts.push(Doubt {
                operation,
                group,
                may_end: is_purge,
            });
        }
        operation
    }

    /// Jobs may be given another time, or be cancelled: which, only an answer says.
    pub fn may_change(&mut self, jobs: &[usize], may_end: bool, group: u64) -> u64 {
        let operation = self.operation();
        for token in jobs {
            let job = &mut self.jobs[*token];
            job.not_before = None;
            // It no longer stands where its push put it.
            job.was_delayed = true;
            job.changed = operation;
            if may_end {
                job.keyless = None;
                job.doubts.push(Doubt {
                    operation,
                    group,
                    may_end,
                });
            }
            let queue = job.queue;
            self.fresh[queue].retain(|(_, _, other)| other != token);
        }
        operation
    }

    /// What became of a job that was started or delayed.
    pub fn change_told(
        &mut self,
        (token, presence): (usize, Presence),
        result: &ChangeResult,
        operation: u64,
        (group, stretch): (u64, Stretch),
    ) -> Checked {
        if let Some(error) = &result.err {
            let is_right = match error.code {
                ErrorCode::NotFound => presence != Presence::There,
                ErrorCode::Conflict => true,
                _ => false,
            };
            return match is_right {
                true => Ok(()),
                false => Err(format!("job {token} was {presence:?}: {error:?}")),
            };
        }
        if presence == Presence::Gone {
            return Err(format!("I4: job {token} is over and was changed"));
        }
        if !result.already && group > self.durable {
            return Err("a change was answered before it was durable".to_owned());
        }
        let job = &mut self.jobs[token];
        if job.changed == operation {
            job.not_before = result.run_at.map(|at| (at.0, stretch));
        }
        Ok(())
    }

    /// Whether a job is dead for certain.
    pub fn is_dead(&self, job: usize) -> bool {
        let job = &self.jobs[job];
        job.over.is_none() && job.doubts.is_empty() && matches!(job.last, Last::Dead { .. })
    }

    /// A request about dead jobs by their ids was answered.
    pub fn dead_told(
        &mut self,
        jobs: &[(usize, bool)],
        reply: &CountReply,
        is_purge: bool,
        operation: u64,
        group: u64,
    ) -> Checked {
        let mut is_any = false;
        for (token, was_dead) in jobs {
            let job = &mut self.jobs[*token];
            job.doubts.retain(|doubt| doubt.operation != operation);
            let is_found = job.id.is_some_and(|id| !reply.not_found.contains(&id));
            let is_kept = job.id.is_some_and(|id| reply.conflicts.contains(&id));
            if is_kept && job.unique.is_none() && job.expires_at.is_none() {
                return Err(format!("dead job {token} was not revived for nothing"));
            }
            if *was_dead && !is_found {
                return Err(format!("I1: job {token} is dead and was not found"));
            }
            if !is_found || is_kept {
                continue;
            }
            is_any = true;
            if job.over.is_some() {
                return Err(format!("job {token} is {:?} and was dead", job.over));
            }
            if is_purge {
                self.end(*token, Over::Deleted);
                continue;
            }
            // It may have been granted since.
            job.last = match job.last {
                Last::Dead { attempt } => Last::Idle {
                    attempt,
                    failures: 0,
                },
                Last::Nothing | Last::Granted { .. } | Last::Idle { .. } | Last::Unknown => {
                    Last::Unknown
                }
            };
            job.not_before = None;
        }
        match is_any && group > self.durable {
            true => Err("a revival or purge was answered before it was durable".to_owned()),
            false => Ok(()),
        }
    }

    /// What somebody who looks at a job now must find.
    pub fn presence(&self, job: usize) -> Presence {
        let facts = &self.jobs[job];
        match facts.over {
            Some(_) => Presence::Gone,
            None if facts.doubts.iter().any(|doubt| doubt.may_end) => Presence::Either,
            None if !self.is_in_effect(facts.push) => Presence::Either,
            None if self.may_have_expired(job) => Presence::Either,
            None => Presence::There,
        }
    }

    /// Checks what is true of a job at any time.
    pub fn check_view(&self, token: usize, view: &JobView) -> Checked {
        let job = &self.jobs[token];
        if view.payload != payload(token, job.bytes) || view.priority != job.priority {
            return Err(format!(
                "I2: job {token} is shown with another payload or priority"
            ));
        }
        let is_dead = view.state == JobState::Dead;
        if view.failures > job.max_attempts || view.failures == job.max_attempts && !is_dead {
            return Err(format!(
                "I9: job {token} is {} with {} of {} failures",
                view.state, view.failures, job.max_attempts
            ));
        }
        let is_right = match view.reason {
            None => !is_dead,
            Some(DeadReason::Attempts) => is_dead && view.failures == job.max_attempts,
            Some(DeadReason::Worker) => is_dead && view.failures > 0,
            Some(DeadReason::Poison) => {
                // Each attempt since the row began was a loss.
                let row = view.attempt.saturating_sub(job.reset_attempt);
                is_dead && row >= self.poison_losses && view.losses >= self.poison_losses
            }
        };
        match is_right {
            true => Ok(()),
            false => Err(format!("I9: job {token} is {view:?}")),
        }
    }
}
