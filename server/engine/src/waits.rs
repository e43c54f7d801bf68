//! Waits for the end of jobs: whoever asks is answered in the moment in which a job ends, with what
//! came out of it, whether the job is kept or not; or when its time has passed.
//!
//! A wait holds nothing and is of its connection alone. Every transition that ends a job says so by
//! [`Engine::tell_waits`], which costs nothing while nobody waits.

use std::collections::{BTreeMap, BTreeSet};

use ganger_protocol::{
    Bytes, DurationMs, ErrorCode, JobId, Timestamp, WireError,
    job::{JobError, JobState},
    limits::CONNECTION_WAITS_MAX,
    progress::{Wait, WaitReply},
    response::ReplyBody,
};

use crate::{
    Engine,
    command::{Caller, ConnectionId, Mono, Now, Origin, Outcome},
    facts::{Fact, Facts, Need},
    records::JobRecord,
};

/// Who waits for which job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Waiting {
    pub(crate) job: JobId,
    pub(crate) caller: Caller,
}

/// All waits of the shard.
#[derive(Debug, Default)]
pub(crate) struct Waits {
    /// Until when.
    ends: BTreeMap<Waiting, Mono>,
    deadlines: BTreeSet<(Mono, Waiting)>,
    by_connection: BTreeMap<ConnectionId, BTreeSet<Waiting>>,
    /// What those are told whose jobs ended by the command that is applied.
    told: Vec<(Caller, Result<WaitReply, WireError>)>,
}

impl Waits {
    fn insert(&mut self, waiting: Waiting, end: Mono) {
        self.remove(&waiting);
        self.ends.insert(waiting, end);
        self.deadlines.insert((end, waiting));
        let of_connection = self.by_connection.entry(waiting.caller.connection);
        of_connection.or_default().insert(waiting);
    }

    fn remove(&mut self, waiting: &Waiting) {
        let Some(end) = self.ends.remove(waiting) else {
            return;
        };
        self.deadlines.remove(&(end, *waiting));
        let connection = waiting.caller.connection;
        if let Some(own) = self.by_connection.get_mut(&connection) {
            own.remove(waiting);
            if own.is_empty() {
                self.by_connection.remove(&connection);
            }
        }
    }

    /// Takes those out who wait for a job.
    fn take(&mut self, job: JobId) -> Vec<Caller> {
        let caller = |number| Caller {
            connection: ConnectionId(number),
            request: number,
        };
        let of_job = |number| Waiting {
            job,
            caller: caller(number),
        };
        let waiting = self.ends.range(of_job(0)..=of_job(u64::MAX));
        let waiting: Vec<Waiting> = waiting.map(|(waiting, _)| *waiting).collect();
        for waiting in &waiting {
            self.remove(waiting);
        }
        waiting.iter().map(|waiting| waiting.caller).collect()
    }

    /// A connection is gone: nobody reads what its waits would get.
    pub(crate) fn forget_connection(&mut self, connection: ConnectionId) {
        for waiting in self.by_connection.remove(&connection).unwrap_or_default() {
            self.remove(&waiting);
        }
    }

    /// Waits whose time has passed, the earliest first.
    pub(crate) fn timed_out(&self, now: Mono, max: usize) -> Vec<Waiting> {
        let due = self.deadlines.iter().take_while(|(at, _)| *at <= now);
        due.take(max).map(|(_, waiting)| *waiting).collect()
    }

    pub(crate) fn first_deadline(&self) -> Option<Mono> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    pub(crate) fn count(&self) -> usize {
        self.ends.len()
    }

    fn count_of(&self, connection: ConnectionId) -> usize {
        self.by_connection.get(&connection).map_or(0, BTreeSet::len)
    }
}

impl Engine {
    /// What must be read to wait for a job: the job, and what came out of one that is over.
    pub(crate) fn needs_to_wait(&self, job: JobId, facts: &Facts) -> Vec<Need> {
        if let Some(need) = self.need_of_job(job, false)
            && !facts.contains(&need)
        {
            return vec![need];
        }
        let state = self.lookup(job, facts).map(|record| record.state);
        let errors = (state == Some(JobState::Dead)).then_some(Need::Errors(job));
        let result = self.need_of_result(job, facts);
        errors.into_iter().chain(result).collect()
    }

    /// Answers with what came out of a job that is over, else when it is.
    pub(crate) fn wait(
        &mut self,
        now: Now,
        origin: &Origin,
        wait: Wait,
        facts: &Facts,
    ) -> Result<Option<ReplyBody>, WireError> {
        let record = self.lookup(wait.job, facts);
        let record = record.filter(|record| self.is_in_namespace(record.queue, origin));
        let record = record.ok_or_else(|| not_kept(wait.job))?;
        let reply = self.wait_reply(&record, facts);
        if reply.state.is_terminal() || wait.wait_ms == DurationMs::ZERO {
            return Ok(Some(ReplyBody::Wait(Box::new(reply))));
        }
        let connection = origin.caller.connection;
        let (own, own_max) = (self.waits.count_of(connection), CONNECTION_WAITS_MAX);
        let (all, all_max) = (self.waits.count(), self.options.waits_max);
        if own >= own_max {
            return Err(too_many("a connection", own_max));
        }
        if all >= all_max {
            return Err(too_many("a shard", all_max));
        }
        let waiting = Waiting {
            job: wait.job,
            caller: origin.caller,
        };
        self.waits.insert(waiting, now.mono.plus(wait.wait_ms));
        Ok(None)
    }

    /// What somebody is told of a job that is kept.
    pub(crate) fn wait_reply(&self, record: &JobRecord, facts: &Facts) -> WaitReply {
        let state = match self.leases.find(&record.id) {
            Some(_) => JobState::Leased,
            None => record.state,
        };
        if state.is_terminal() {
            return WaitReply {
                closed_at: record.closed_at,
                result: self.result_of(record, facts),
                reason: record.reason,
                error: self.last_error(record, facts),
                ..standing_reply(state)
            };
        }
        let progress = record.progress.as_deref();
        WaitReply {
            percent: progress.and_then(|it| it.percent),
            note: progress.and_then(|it| it.note.clone()),
            ..standing_reply(state)
        }
    }

    /// The last error of a job that is dead.
    fn last_error(&self, record: &JobRecord, facts: &Facts) -> Option<JobError> {
        let (slot, _) = record.error_slots().last()?;
        if record.state != JobState::Dead {
            return None;
        }
        if let Some(error) = self.group.error(record.id, slot) {
            return Some(error.clone());
        }
        match facts.find(&Need::Errors(record.id)) {
            Some(Fact::Errors(errors)) => errors.last().cloned(),
            Some(_) | None => None,
        }
    }

    /// What must be read to know the result of a job, once the job is known.
    pub(crate) fn need_of_result(&self, job: JobId, facts: &Facts) -> Option<Need> {
        let record = self.lookup(job, facts)?;
        let is_open = self.group.result(job).is_some();
        (record.result_parts > 0 && !is_open).then_some(Need::Result(job))
    }

    /// The result of a job.
    pub(crate) fn result_of(&self, record: &JobRecord, facts: &Facts) -> Option<Bytes> {
        if record.result_parts == 0 {
            return None;
        }
        if let Some(result) = self.group.result(record.id) {
            return Some(result.clone());
        }
        match facts.find(&Need::Result(record.id)) {
            Some(Fact::Bytes(result)) => result.clone(),
            Some(_) | None => None,
        }
    }

    /// A job has ended: those who wait for it are told, when the command is through.
    pub(crate) fn tell_waits(
        &mut self,
        job: JobId,
        reply: impl FnOnce(&Self) -> Result<WaitReply, WireError>,
    ) {
        if self.waits.count() == 0 {
            return;
        }
        let callers = self.waits.take(job);
        if callers.is_empty() {
            return;
        }
        let reply = reply(self);
        let told = callers.into_iter().map(|caller| (caller, reply.clone()));
        self.waits.told.extend(told);
    }

    /// Answers those whose jobs have ended: when that is durable.
    pub(crate) fn answer_waits(&mut self, outcome: &mut Outcome) {
        if self.waits.told.is_empty() {
            return;
        }
        for (caller, reply) in std::mem::take(&mut self.waits.told) {
            let reply = reply.map(|reply| ReplyBody::Wait(Box::new(reply)));
            self.reply(caller, reply, outcome);
        }
    }

    /// The time of a wait has passed.
    pub(crate) fn end_wait_for(&mut self, waiting: Waiting, facts: &Facts) {
        if !self.waits.ends.contains_key(&waiting) {
            return;
        }
        self.waits.remove(&waiting);
        let record = self.lookup(waiting.job, facts);
        let reply = record.ok_or_else(|| not_kept(waiting.job));
        let reply = reply.map(|record| self.wait_reply(&record, facts));
        self.waits.told.push((waiting.caller, reply));
    }
}

/// What those are told who wait for a job that was acked.
pub(crate) fn done_reply(at: Timestamp, result: Option<Bytes>) -> WaitReply {
    WaitReply {
        result,
        ..ended_reply(JobState::Done, at)
    }
}

/// What those are told who wait for a job of which nothing is left but this.
pub(crate) fn ended_reply(state: JobState, at: Timestamp) -> WaitReply {
    WaitReply {
        closed_at: Some(at),
        ..standing_reply(state)
    }
}

fn standing_reply(state: JobState) -> WaitReply {
    WaitReply {
        state,
        percent: None,
        note: None,
        closed_at: None,
        result: None,
        reason: None,
        error: None,
    }
}

/// What those are told who ask for a job that is not kept.
pub(crate) fn not_kept(job: JobId) -> WireError {
    WireError::new(ErrorCode::NotFound, format!("no job {job} is kept"))
}

fn too_many(whose: &str, max: usize) -> WireError {
    WireError {
        limit: Some(max as u64),
        actual: Some(max as u64 + 1),
        ..WireError::overloaded(
            format!("{whose} may wait for the end of {max} jobs at a time"),
            DurationMs::from_secs(1),
        )
    }
}
