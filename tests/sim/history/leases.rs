//! Leases: what a grant may look like, and what must come of an answer.

use ganger_protocol::{
    LeaseId, SessionId,
    job::{GrantedJob, JobState, UniqueUntil},
    response::LeaseResult,
};

use super::{
    Answer, Answered, Checked, Doubt, Expected, Granting, History, Last, Lease, Over, payload,
};
use crate::clock::Clock;

impl History {
    /// The highest lease that this session knows of a job.
    pub fn lives(&self, lease: LeaseId, mono: u64) -> bool {
        let Some(lease) = self.leases.get(&lease.0) else {
            return false;
        };
        let lives = self
            .sessions
            .get(&lease.session)
            .is_some_and(|it| it.lives(mono));
        lives
            && lease.ended.is_none()
            && !lease.is_doubtful
            && lease.doubts.is_empty()
            && mono < lease.deadline
    }

    /// Whether a lease lives and belongs to this session.
    pub fn lives_in(&self, lease: LeaseId, session: SessionId, mono: u64) -> bool {
        let is_own = self
            .leases
            .get(&lease.0)
            .is_some_and(|lease| lease.session == session.0);
        is_own && self.lives(lease, mono)
    }

    /// The server does not know a lease as one of this session.
    pub fn lease_gone(&mut self, lease: LeaseId, session: SessionId, group: u64) {
        if let Some(lease) = self.leases.get_mut(&lease.0)
            && lease.session == session.0
        {
            lease.ended.get_or_insert(group);
        }
    }

    /// A lease was granted.
    pub fn granted(&mut self, job: &GrantedJob, fetch: &Granting, clock: &Clock) -> Checked<usize> {
        let token = self.token_of(job)?;
        self.learn(token, job.id)?;
        let facts = &self.jobs[token];
        let applied = self.pushes[facts.push].applied.first();
        match applied {
            None => {
                return Err(format!(
                    "I2: job {token} was granted and no push is in effect"
                ));
            }
            Some(applied) if applied.group > self.durable => {
                return Err(format!(
                    "I2: job {token} of group {} was granted, durable is {}",
                    applied.group, self.durable
                ));
            }
            Some(_) => {}
        }
        if facts.is_refused {
            return Err(format!("I2: job {token} was refused and is granted"));
        }
        if let Some(over) = facts.over {
            return Err(format!(
                "I4: job {token} is {over:?} and granted by lease {}",
                job.lease
            ));
        }
        let expires_at = facts.expires_at.filter(|_| self.is_steady);
        if expires_at.is_some_and(|at| at <= fetch.asked_wall) {
            return Err(format!("expired job {token} was granted: {facts:?}"));
        }
        if job.timeout_ms.0 != facts.timeout_ms {
            return Err(format!("job {token} has timeout {}", job.timeout_ms));
        }
        self.check_number(job.lease)?;
        let mono = clock.now().mono.0;
        for lease in &facts.leases {
            let lease = LeaseId(*lease);
            if self.lives(lease, mono) && lease < job.lease {
                return Err(format!(
                    "I7: job {token} is leased by {lease} and granted by {}",
                    job.lease
                ));
            }
        }
        self.check_counts(token, job)?;
        if let Some((due, stretch)) = self.jobs[token].not_before
            && self.jobs[token].doubts.is_empty()
            && clock.latest_since(stretch) < due
        {
            return Err(format!(
                "I10: job {token} was due at {due} and granted early"
            ));
        }
        if self.is_paused_as_told(self.jobs[token].queue) {
            return Err(format!("I18: job {token} was granted from a paused queue"));
        }
        self.add_lease(token, job, fetch);
        Ok(token)
    }

    fn token_of(&self, job: &GrantedJob) -> Checked<usize> {
        let head = job.payload.get(..8).and_then(|head| head.try_into().ok());
        let token = head.map(u64::from_be_bytes).unwrap_or(u64::MAX) as usize;
        match self.jobs.get(token) {
            Some(facts) if payload(token, facts.bytes) == job.payload => Ok(token),
            Some(_) => Err(format!("I2: job {token} has another payload")),
            None => Err(format!("I2: {:?} has a payload that nobody pushed", job.id)),
        }
    }

    fn check_number(&self, lease: LeaseId) -> Checked {
        if self.leases.contains_key(&lease.0) {
            return Err(format!("I6: lease {lease} was granted twice"));
        }
        if lease.0 <= self.floor {
            return Err(format!(
                "I6: lease {lease}, and {} before the restart",
                self.floor
            ));
        }
        Ok(())
    }

    /// I9, and attempts that grow by one.
    fn check_counts(&self, token: usize, job: &GrantedJob) -> Checked {
        let facts = &self.jobs[token];
        let (attempt, failures) = (job.attempt, job.failures);
        if failures >= facts.max_attempts {
            return Err(format!(
                "I9: job {token} has {failures} failures and is granted"
            ));
        }
        let is_certain = facts.doubts.is_empty();
        let is_right = match facts.last {
            Last::Nothing => attempt == 1 && failures == 0 || !is_certain,
            Last::Granted {
                attempt: a,
                failures: f,
            } => attempt == a + 1 && (failures == f || failures == f + 1),
            Last::Idle {
                attempt: a,
                failures: f,
            } => attempt == a + 1 && failures == f,
            Last::Dead { .. } => false,
            Last::Unknown => true,
        };
        match is_right || !is_certain {
            true => Ok(()),
            false => Err(format!(
                "job {token}: attempt {attempt} with {failures} failures after {:?}",
                facts.last
            )),
        }
    }

    fn add_lease(&mut self, token: usize, job: &GrantedJob, fetch: &Granting) {
        let facts = &mut self.jobs[token];
        let session = self.sessions.get_mut(&fetch.session.0);
        // The session was resumed in between, without this lease, which it did not know.
        let resumed = session.as_ref().map(|session| session.resumed);
        let mut ended = resumed
            .filter(|(at, _)| fetch.asked < *at)
            .map(|(_, group)| group);
        for number in &facts.leases {
            if *number > job.lease.0 {
                ended.get_or_insert(fetch.groups.1);
            } else if let Some(lease) = self.leases.get_mut(number) {
                lease.ended.get_or_insert(fetch.groups.1);
            }
        }
        if facts.leases.last().is_none_or(|last| *last < job.lease.0) {
            facts.last = Last::Granted {
                attempt: job.attempt,
                failures: job.failures,
            };
            facts.not_before = None;
            if matches!(facts.unique, Some((_, UniqueUntil::Start))) {
                facts.keyless.get_or_insert(self.order);
            }
        }
        facts.leases.push(job.lease.0);
        facts.leases.sort_unstable();
        let order = self.pushes[facts.push]
            .applied
            .first()
            .map_or(0, |it| it.order);
        self.fresh[facts.queue].remove(&(9 - facts.priority, order, token));
        self.highest = self.highest.max(job.lease.0);
        self.open_leases.insert(job.lease.0);
        self.leases.insert(
            job.lease.0,
            Lease {
                job: token,
                session: fetch.session.0,
                groups: fetch.groups,
                attempt: job.attempt,
                failures: job.failures,
                deadline: fetch.since + job.timeout_ms.0,
                ended,
                doubts: Vec::new(),
                is_doubtful: false,
            },
        );
        if let Some(session) = session {
            session.leases.push(job.lease.0);
        }
    }

    /// Whether a job that was never granted stands before this one in its queue, or at all when
    /// there is none.
    pub fn fresh_before(&self, queue: usize, token: Option<usize>) -> Option<usize> {
        let (priority, _, first) = *self.fresh[queue].first()?;
        let Some(token) = token else {
            return Some(first);
        };
        let job = &self.jobs[token];
        let own = 9 - job.priority;
        let order = self.pushes[job.push]
            .applied
            .first()
            .map_or(0, |it| it.order);
        let is_fresh = self.fresh[queue].contains(&(own, order, token));
        match priority < own || is_fresh && first != token {
            true => Some(first),
            false => None,
        }
    }

    /// An answer comes to the server, in the open group.
    pub fn answer_applied(
        &mut self,
        (job, lease): (usize, LeaseId),
        answer: Answer,
        is_own_namespace: bool,
        group: u64,
        clock: &Clock,
    ) -> Answered {
        let now = clock.now();
        let operation = self.operation();
        let expected = self.expected(job, lease, is_own_namespace, now.mono.0);
        if expected != Expected::Refused && !matches!(answer, Answer::Extend { .. }) {
            if let Some(lease) = self.leases.get_mut(&lease.0) {
                lease.doubts.push((operation, group));
            }
            let key = (lease.0, answer.kind());
            self.tried.entry(key).or_insert(group);
            let may_end = matches!(answer, Answer::Ack | Answer::Fail { discard: true, .. });
            self.jobs[job].doubts.push(Doubt {
                operation,
                group,
                may_end,
            });
        }
        Answered {
            job,
            lease,
            answer,
            expected,
            operation,
            group,
            wall: now.wall.0,
            mono: now.mono.0,
            stretch: clock.stretch(),
        }
    }

    fn expected(&self, job: usize, lease: LeaseId, is_own_namespace: bool, mono: u64) -> Expected {
        let Some(facts) = self.leases.get(&lease.0).filter(|it| it.job == job) else {
            return Expected::Refused;
        };
        if !is_own_namespace || facts.ended.is_some() {
            return Expected::Refused;
        }
        match self.lives(lease, mono) {
            true => Expected::Applied,
            false => Expected::Either,
        }
    }

    /// The result of an answer was told.
    pub fn answer_told(&mut self, asked: &Answered, result: &LeaseResult) -> Checked {
        let Answered {
            job, lease, answer, ..
        } = *asked;
        let key = (lease.0, answer.kind());
        self.jobs[job]
            .doubts
            .retain(|doubt| doubt.operation != asked.operation);
        if let Some(lease) = self.leases.get_mut(&lease.0) {
            lease
                .doubts
                .retain(|(operation, _)| *operation != asked.operation);
        }
        if let Some(error) = &result.err {
            return match asked.expected {
                Expected::Applied => Err(format!(
                    "lease {lease} of job {job} lives, {answer:?} was refused: {}",
                    error.message
                )),
                Expected::Refused | Expected::Either => Ok(()),
            };
        }
        if result.already {
            return self.already_told(asked, key);
        }
        if asked.expected == Expected::Refused {
            return Err(format!(
                "I8: {answer:?} of lease {lease} of job {job} was accepted"
            ));
        }
        if let Answer::Extend { ms } = answer {
            return self.extended(asked, ms, result);
        }
        if asked.group > self.durable {
            return Err(format!(
                "{answer:?} of lease {lease} was answered before it was durable"
            ));
        }
        if self.settled.insert(key, asked.group).is_some() {
            return Err(format!(
                "I5: {answer:?} of lease {lease} was accepted twice"
            ));
        }
        if let Some(over) = self.jobs[job].over {
            return Err(format!(
                "I5: job {job} is {over:?} and took {answer:?} of lease {lease}"
            ));
        }
        let (attempt, failures) = match self.leases.get_mut(&lease.0) {
            Some(facts) => {
                facts.ended.get_or_insert(asked.group);
                (facts.attempt, facts.failures)
            }
            None => return Err(format!("lease {lease} was never granted")),
        };
        self.settle(asked, attempt, failures, result)
    }

    /// An answer was not applied.
    pub fn answer_void(&mut self, asked: &Answered) {
        self.jobs[asked.job]
            .doubts
            .retain(|doubt| doubt.operation != asked.operation);
        if let Some(lease) = self.leases.get_mut(&asked.lease.0) {
            lease
                .doubts
                .retain(|(operation, _)| *operation != asked.operation);
        }
    }

    /// The answer that was told `already` must have been applied before.
    fn already_told(&mut self, asked: &Answered, key: (u64, u8)) -> Checked {
        let group = self
            .settled
            .get(&key)
            .or_else(|| self.tried.get(&key))
            .copied();
        let (lease, answer) = (asked.lease, asked.answer);
        match group {
            None => Err(format!(
                "{answer:?} of lease {lease} was never sent, and is `already`"
            )),
            Some(_) if asked.expected == Expected::Applied => {
                Err(format!("lease {lease} lives and {answer:?} is `already`"))
            }
            Some(group) if group > self.durable => Err(format!(
                "{answer:?} of lease {lease} is `already` and not durable"
            )),
            Some(_) => Ok(()),
        }
    }

    fn extended(&mut self, asked: &Answered, ms: u64, result: &LeaseResult) -> Checked {
        let rest = result.timeout_ms.map_or(0, |rest| rest.0);
        if rest < ms {
            return Err(format!(
                "lease {} was extended by {ms} ms and got {rest}",
                asked.lease
            ));
        }
        if let Some(lease) = self.leases.get_mut(&asked.lease.0) {
            lease.deadline = lease.deadline.max(asked.mono + rest);
        }
        Ok(())
    }

    /// What an answer that took effect did to its job.
    fn settle(
        &mut self,
        asked: &Answered,
        attempt: u32,
        failures: u32,
        result: &LeaseResult,
    ) -> Checked {
        let Answered {
            job: token,
            answer,
            lease,
            ..
        } = *asked;
        let job = &mut self.jobs[token];
        // It may have been granted again, which was told before this was.
        let is_latest = job.leases.last() == Some(&lease.0);
        let mut last = job.last;
        let mut expected_at = None;
        match answer {
            Answer::Ack => {
                self.end(token, Over::Acked { lease: lease.0 });
                return Ok(());
            }
            Answer::Fail {
                discard: true,
                dead: false,
                ..
            } => {
                self.end(token, Over::Deleted);
                return Ok(());
            }
            Answer::Fail { dead, retry_in, .. } => {
                job.reset_attempt = job.reset_attempt.max(attempt);
                let is_dead = dead || failures + 1 >= job.max_attempts;
                if is_dead != (result.state == Some(JobState::Dead)) {
                    return Err(format!(
                        "I9: job {token} failed {} of {} times, dead: {dead}, is {:?}",
                        failures + 1,
                        job.max_attempts,
                        result.state
                    ));
                }
                last = match is_dead {
                    true => Last::Dead { attempt },
                    false => Last::Idle {
                        attempt,
                        failures: failures + 1,
                    },
                };
                if !is_dead {
                    expected_at = Some(asked.wall + retry_in.unwrap_or(job.backoff_ms));
                }
            }
            Answer::Release { delay } => {
                job.reset_attempt = job.reset_attempt.max(attempt);
                last = Last::Idle { attempt, failures };
                expected_at = (delay > 0).then_some(asked.wall + delay);
            }
            Answer::Extend { .. } => {}
        }
        if result.run_at.map(|at| at.0) != expected_at {
            return Err(format!(
                "job {token}: {answer:?} leads to {:?}, expected {expected_at:?}",
                result.run_at
            ));
        }
        if is_latest {
            job.last = last;
            let is_dead = matches!(last, Last::Dead { .. });
            if is_dead
                && job.doubts.is_empty()
                && !matches!(job.unique, Some((_, UniqueUntil::Success)))
            {
                job.keyless = Some(self.order);
            }
            // A change that was applied behind it has put the job elsewhere.
            if job.changed < asked.operation {
                job.not_before = expected_at.map(|at| (at, asked.stretch));
            }
        }
        Ok(())
    }

    pub(super) fn end(&mut self, token: usize, over: Over) {
        self.jobs[token].over = Some(over);
        self.jobs[token].keyless.get_or_insert(self.order);
        self.live.remove(&token);
    }

    /// The server said that a lease ended by itself.
    pub fn lease_lost(&mut self, lease: LeaseId, mono: u64, group: u64) -> Checked {
        if self.lives(lease, mono) {
            return Err(format!("lease {lease} was lost before its time"));
        }
        if let Some(lease) = self.leases.get_mut(&lease.0) {
            lease.ended.get_or_insert(group);
        }
        Ok(())
    }
}
