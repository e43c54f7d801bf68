//! What clients were told, and what must follow from it.
//!
//! Independent of the engine: it knows the requests in the order in which they were applied, the
//! group that each one's changes went into, the replies that left, and which groups a crash left.
//! From that it knows what is certain; where an answer is missing, it knows that it does not know.
//! [`crate::audit`] resolves that after each restart by looking.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ganger_protocol::{
    Bytes, JobId, LeaseId, SessionId,
    job::{DeadReason, GrantedJob, JobState, JobView},
    response::LeaseResult,
};

use crate::clock::{Clock, Stretch};

/// What a check says when it fails.
pub type Checked<T = ()> = Result<T, String>;

/// A job as it was pushed.
#[derive(Debug)]
pub struct Job {
    /// Number of its queue in the world.
    pub queue: usize,
    pub priority: u8,
    pub max_attempts: u32,
    pub timeout_ms: u64,
    /// The fixed backoff.
    pub backoff_ms: u64,
    pub bytes: usize,
    /// Which push it came with.
    pub push: usize,
    /// Whether it was made so that the server must refuse it.
    pub is_refused: bool,
    pub delay: Delay,
    pub id: Option<JobId>,
    /// Not to be granted before this wall time, as it was known in this stretch.
    not_before: Option<(u64, Stretch)>,
    /// Whether it had to wait for its time when it was pushed.
    was_delayed: bool,
    last: Last,
    doubts: Vec<Doubt>,
    pub over: Option<Over>,
    /// Attempts granted when it was last failed or released, as told.
    reset_attempt: u32,
    leases: Vec<u64>,
}

/// When a job may run first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delay {
    None,
    For(u64),
    Until(u64),
}

/// The last that is known of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    /// A grant, which a crash may take back.
    Granted {
        attempt: u32,
        failures: u32,
    },
    /// Its lease ended so, as told or seen.
    Idle {
        attempt: u32,
        failures: u32,
    },
    Dead {
        attempt: u32,
    },
    /// A crash took a grant back, or nobody knows.
    Unknown,
}

/// A change whose answer is missing.
#[derive(Debug, Clone, Copy)]
struct Doubt {
    operation: u64,
    group: u64,
    may_end: bool,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    Acked {
        lease: u64,
    },
    Deleted,
    /// It was gone when somebody looked, and an unanswered request explains it.
    Gone,
}

/// A request that pushes.
#[derive(Debug)]
pub struct Push {
    pub jobs: std::ops::Range<usize>,
    /// Its number, when it has one.
    pub seq: Option<u64>,
    pub is_atomic: bool,
    /// Each time it was applied: group, order, wall time.
    pub applied: Vec<Applied>,
    pub is_told: bool,
    /// Whether the server said that it no longer knows.
    pub has_expired: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct Applied {
    pub group: u64,
    pub order: u64,
    pub wall: u64,
    pub stretch: Stretch,
}

/// A grant.
#[derive(Debug)]
struct Lease {
    job: usize,
    session: u64,
    /// The group of the grant lies between these.
    groups: (u64, u64),
    attempt: u32,
    failures: u32,
    /// It cannot time out before this, by the monotonic clock.
    deadline: u64,
    /// Certainly over, by something in this group.
    ended: Option<u64>,
    /// Perhaps over: an unanswered request, or time.
    doubts: Vec<(u64, u64)>,
    is_doubtful: bool,
}

/// The fetch that got a job.
#[derive(Debug, Clone, Copy)]
pub struct Granting {
    pub session: SessionId,
    /// The grant was decided between these groups.
    pub groups: (u64, u64),
    /// The monotonic time from which the timeout counts at the earliest.
    pub since: u64,
    /// When it was asked for, as [`History::operation`] counts.
    pub asked: u64,
}

#[derive(Debug)]
struct Session {
    ttl: u64,
    seen: u64,
    group: u64,
    ending: Option<u64>,
    is_gone: bool,
    is_doubtful: bool,
    /// The last time that it was resumed: operation and group.
    resumed: (u64, u64),
    leases: Vec<u64>,
}

/// How a lease is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Ack,
    Fail {
        dead: bool,
        discard: bool,
        retry_in: Option<u64>,
    },
    Release {
        delay: u64,
    },
    Extend {
        ms: u64,
    },
}

impl Answer {
    /// Which answers count as the same when they come again.
    fn kind(self) -> u8 {
        match self {
            Self::Ack => 1,
            Self::Fail { .. } => 2,
            Self::Release { .. } => 3,
            Self::Extend { .. } => 4,
        }
    }
}

/// What must come of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Applied,
    Refused,
    Either,
}

/// An answer that was applied, until its result is told.
#[derive(Debug, Clone, Copy)]
pub struct Answered {
    pub job: usize,
    pub lease: LeaseId,
    pub answer: Answer,
    pub expected: Expected,
    pub operation: u64,
    pub group: u64,
    pub wall: u64,
    pub mono: u64,
    pub stretch: Stretch,
}

/// What somebody who looks at a job must find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    There,
    Gone,
    Either,
}

/// A pause or its end.
#[derive(Debug, Clone, Copy)]
struct Pause {
    group: u64,
    is_paused: bool,
    operation: u64,
    is_told: bool,
}

/// The history of one run.
#[derive(Debug, Default)]
pub struct History {
    pub jobs: Vec<Job>,
    pub pushes: Vec<Push>,
    /// Jobs that are not over.
    pub live: BTreeSet<usize>,
    by_id: HashMap<JobId, usize>,
    leases: HashMap<u64, Lease>,
    open_leases: BTreeSet<u64>,
    sessions: BTreeMap<u64, Session>,
    /// Answers that took effect, as told.
    settled: HashMap<(u64, u8), u64>,
    /// Answers that were applied in this life of the server: what may be `already`.
    tried: HashMap<(u64, u8), u64>,
    /// Jobs that are ready since their push, told, and were never granted, a set a queue.
    fresh: Vec<BTreeSet<(u8, u64, usize)>>,
    pauses: Vec<Vec<Pause>>,
    order: u64,
    operation: u64,
    /// The highest lease number that was ever told.
    highest: u64,
    /// The same of earlier lives.
    floor: u64,
    pub poison_losses: u32,
    /// The group that is really durable.
    pub durable: u64,
}

/// The payload of a job: its number, and bytes that follow from it.
pub fn payload(job: usize, bytes: usize) -> Bytes {
    let mut payload = (job as u64).to_be_bytes().to_vec();
    let mut state = job as u64 ^ 0x9e37_79b9_7f4a_7c15;
    while payload.len() < bytes {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        payload.extend((state >> 8).to_be_bytes());
    }
    payload.truncate(bytes.max(8));
    payload.into()
}

impl History {
    pub fn new(queues: usize, poison_losses: u32) -> Self {
        Self {
            fresh: vec![BTreeSet::new(); queues],
            pauses: (0..queues).map(|_| Vec::new()).collect(),
            poison_losses,
            ..Self::default()
        }
    }

    pub fn operation(&mut self) -> u64 {
        self.operation += 1;
        self.operation
    }

    // Pushes.

    /// A push comes into being; its jobs were added by [`Self::add_job`].
    pub fn add_push(
        &mut self,
        jobs: std::ops::Range<usize>,
        seq: Option<u64>,
        is_atomic: bool,
    ) -> usize {
        self.pushes.push(Push {
            jobs,
            seq,
            is_atomic,
            applied: Vec::new(),
            is_told: false,
            has_expired: false,
        });
        self.pushes.len() - 1
    }

    pub fn add_job(&mut self, job: Job) -> usize {
        self.jobs.push(job);
        self.jobs.len() - 1
    }

    /// A push is applied, in the open group.
    pub fn push_applied(&mut self, push: usize, group: u64, clock: &Clock) {
        self.order += 1;
        let order = self.order;
        let is_whole = self.makes_something(push);
        let entry = &mut self.pushes[push];
        entry.applied.push(Applied {
            group,
            order,
            wall: clock.now().wall.0,
            stretch: clock.stretch(),
        });
        if entry.applied.len() == 1 && is_whole {
            for job in entry.jobs.clone() {
                if !self.jobs[job].is_refused {
                    self.live.insert(job);
                }
            }
            self.set_due(push);
        }
    }

    fn set_due(&mut self, push: usize) {
        let Some(applied) = self.pushes[push].applied.first().copied() else {
            return;
        };
        for job in self.pushes[push].jobs.clone() {
            let job = &mut self.jobs[job];
            let due = match job.delay {
                Delay::None => None,
                Delay::For(ms) => Some(applied.wall + ms),
                Delay::Until(at) => Some(at),
            };
            job.not_before = due
                .filter(|due| *due > applied.wall)
                .map(|due| (due, applied.stretch));
            job.was_delayed = job.not_before.is_some();
        }
    }

    /// Whether a push makes at least one job.
    pub fn makes_something(&self, push: usize) -> bool {
        let push = &self.pushes[push];
        let mut jobs = push.jobs.clone();
        match push.is_atomic {
            true => jobs.all(|job| !self.jobs[job].is_refused),
            false => jobs.any(|job| !self.jobs[job].is_refused),
        }
    }

    /// Whether a push is in effect: applied, and not lost since.
    pub fn is_in_effect(&self, push: usize) -> bool {
        self.makes_something(push) && !self.pushes[push].applied.is_empty()
    }

    /// A push was answered, job by job.
    pub fn push_told(&mut self, push: usize, results: &[Option<JobId>]) -> Checked {
        let jobs = self.pushes[push].jobs.clone();
        if results.len() != jobs.len() {
            return Err(format!(
                "push {push}: {} results for {} jobs",
                results.len(),
                jobs.len()
            ));
        }
        if !self.makes_something(push) {
            return match results.iter().all(Option::is_none) {
                true => Ok(()),
                false => Err(format!("push {push} has only bad jobs, one was accepted")),
            };
        }
        let Some(applied) = self.pushes[push].applied.first().copied() else {
            return Err(format!("push {push} was answered ok and never applied"));
        };
        if applied.group > self.durable {
            return Err(format!(
                "I1: push {push} was answered in group {}, durable is {}",
                applied.group, self.durable
            ));
        }
        let is_first = !std::mem::replace(&mut self.pushes[push].is_told, true);
        for (job, id) in jobs.zip(results) {
            let is_refused = self.jobs[job].is_refused;
            match id {
                None if is_refused => {}
                None => return Err(format!("job {job} was refused")),
                Some(_) if is_refused => return Err(format!("bad job {job} was accepted")),
                Some(id) => self.learn(job, *id)?,
            }
            if is_first && !is_refused {
                self.freshen(job, applied.order);
            }
        }
        Ok(())
    }

    fn freshen(&mut self, token: usize, order: u64) {
        let job = &self.jobs[token];
        let is_ready = !job.was_delayed && job.last == Last::Nothing;
        if is_ready && job.over.is_none() && job.leases.is_empty() {
            self.fresh[job.queue].insert((9 - job.priority, order, token));
        }
    }

    fn learn(&mut self, token: usize, id: JobId) -> Checked {
        match self.jobs[token].id {
            Some(known) if known != id => Err(format!("I3: job {token} is {known:?} and {id:?}")),
            Some(_) => Ok(()),
            None => {
                self.jobs[token].id = Some(id);
                match self.by_id.insert(id, token) {
                    None => Ok(()),
                    Some(other) => Err(format!("{id:?} is job {token} and job {other}")),
                }
            }
        }
    }

    /// The jobs that pushes in effect have made of a queue, and those that are not over.
    pub fn pushed(&self, queue: usize) -> (u64, u64) {
        let is_there =
            |job: &&Job| job.queue == queue && !job.is_refused && self.is_in_effect(job.push);
        let all = self.jobs.iter().filter(is_there);
        let (mut pushed, mut live) = (0, 0);
        for job in all {
            pushed += 1;
            live += u64::from(job.over.is_none());
        }
        (pushed, live)
    }

    // Sessions.

    pub fn session_opened(&mut self, id: SessionId, ttl: u64, mono: u64, group: u64) {
        let session = self.sessions.entry(id.0).or_insert_with(|| Session {
            ttl,
            seen: mono,
            group,
            ending: None,
            is_gone: false,
            is_doubtful: false,
            resumed: (0, 0),
            leases: Vec::new(),
        });
        session.seen = mono;
        session.is_doubtful = false;
    }

    pub fn is_session_live(&self, id: SessionId, mono: u64) -> bool {
        self.sessions
            .get(&id.0)
            .is_some_and(|session| session.lives(mono))
    }

    pub fn is_session_gone(&self, id: SessionId) -> bool {
        self.sessions
            .get(&id.0)
            .is_some_and(|session| session.is_gone)
    }

    /// A frame of a session has come.
    pub fn session_seen(&mut self, id: SessionId, mono: u64) {
        if let Some(session) = self.sessions.get_mut(&id.0) {
            if session.lives(mono) {
                session.seen = mono;
            } else {
                session.is_doubtful = true;
            }
        }
    }

    /// The server knew the session when it applied a frame of then.
    pub fn session_proven(&mut self, id: SessionId, mono: u64) -> Checked {
        let Some(session) = self.sessions.get_mut(&id.0) else {
            return Err(format!("session {id} was never opened"));
        };
        if session.is_gone {
            return Err(format!("session {id} is over and serves still"));
        }
        session.is_doubtful = false;
        session.seen = session.seen.max(mono);
        Ok(())
    }

    pub fn session_ending(&mut self, id: SessionId, group: u64) {
        if let Some(session) = self.sessions.get_mut(&id.0) {
            session.ending.get_or_insert(group);
        }
    }

    /// The server said that a session is over.
    pub fn session_over(&mut self, id: SessionId, was_live: bool) -> Checked {
        if was_live {
            return Err(format!("session {id} was lost before its ttl"));
        }
        if let Some(session) = self.sessions.get_mut(&id.0) {
            // Perhaps not durably, so that it is only doubtful after a crash.
            session.is_doubtful = true;
        }
        Ok(())
    }

    /// Goodbye was answered.
    pub fn goodbye_told(&mut self, id: SessionId, group: u64) -> Checked {
        if group > self.durable {
            return Err(format!(
                "goodbye of {id} was answered before it was durable"
            ));
        }
        if let Some(session) = self.sessions.get_mut(&id.0) {
            session.is_gone = true;
            for lease in &session.leases {
                if let Some(lease) = self.leases.get_mut(lease) {
                    lease.ended.get_or_insert(group);
                }
            }
        }
        Ok(())
    }

    /// A session goes on with the leases that it names: the others end at once.
    pub fn session_resumed(&mut self, id: SessionId, held: &[LeaseId], mono: u64, group: u64) {
        let Some(session) = self.sessions.get_mut(&id.0) else {
            return;
        };
        session.is_doubtful = false;
        session.seen = mono;
        self.operation += 1;
        session.resumed = (self.operation, group);
        for number in &session.leases {
            if let Some(lease) = self.leases.get_mut(number)
                && !held.contains(&LeaseId(*number))
            {
                lease.ended.get_or_insert(group);
            }
        }
    }

    // Leases.

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

    /// The job of this id.
    pub fn job_of(&self, id: JobId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// Jobs of a queue that may have been purged and cannot be looked at: nobody knows their ids.
    pub fn perhaps_gone(&self, queue: usize) -> u64 {
        let jobs = self.live.iter().map(|job| &self.jobs[*job]);
        let gone = jobs.filter(|job| job.queue == queue && job.id.is_none());
        gone.filter(|job| job.doubts.iter().any(|doubt| doubt.may_end))
            .count() as u64
    }

    /// Jobs of a queue that were acked, as told.
    pub fn acked(&self, queue: usize) -> u64 {
        let acked = |job: &&Job| job.queue == queue && matches!(job.over, Some(Over::Acked { .. }));
        self.jobs.iter().filter(acked).count() as u64
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
            job.not_before = expected_at.map(|at| (at, asked.stretch));
        }
        Ok(())
    }

    fn end(&mut self, token: usize, over: Over) {
        self.jobs[token].over = Some(over);
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

    // Administrators.

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
    fn is_paused_as_told(&self, queue: usize) -> bool {
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
            self.jobs[*job].doubts.push(Doubt {
                operation,
                group,
                may_end: is_purge,
            });
        }
        operation
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
        not_found: &[JobId],
        is_purge: bool,
        operation: u64,
        group: u64,
    ) -> Checked {
        let mut is_any = false;
        for (token, was_dead) in jobs {
            let job = &mut self.jobs[*token];
            job.doubts.retain(|doubt| doubt.operation != operation);
            let is_found = job.id.is_some_and(|id| !not_found.contains(&id));
            if *was_dead && !is_found {
                return Err(format!("I1: job {token} is dead and was not found"));
            }
            if !is_found {
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

    // Crashes.

    /// The server stops, whatever the reason.
    pub fn stopped(&mut self, mono: u64) {
        let sessions = &mut self.sessions;
        for session in sessions.values_mut() {
            session.is_doubtful |= !session.lives(mono) && !session.is_gone;
        }
        for number in &self.open_leases {
            let Some(lease) = self.leases.get_mut(number) else {
                continue;
            };
            let session = self.sessions.get(&lease.session);
            let lives = session.is_some_and(|it| it.lives(mono)) && mono < lease.deadline;
            lease.is_doubtful |= !lives;
        }
    }

    /// The server starts again with everything up to this group.
    pub fn restarted(&mut self, group: u64) -> Checked {
        self.floor = self.highest;
        self.tried.clear();
        self.restart_pushes(group)?;
        for pauses in &mut self.pauses {
            // One that was told and is in no group has changed nothing.
            pauses.retain(|pause| pause.group <= group || pause.is_told);
        }
        for session in self.sessions.values_mut() {
            session.is_gone |= session.group > group;
            session.ending = session.ending.filter(|ending| *ending <= group);
            session.seen = 0;
        }
        self.restart_leases(group);
        for token in &self.live {
            let job = &mut self.jobs[*token];
            job.doubts.retain(|doubt| doubt.group <= group);
            job.last = match job.last {
                Last::Granted { .. } => Last::Unknown,
                // Its push was not answered, perhaps nor was a fetch that got it.
                Last::Nothing if job.id.is_none() => Last::Unknown,
                last => last,
            };
        }
        for fresh in &mut self.fresh {
            fresh.clear();
        }
        Ok(())
    }

    fn restart_pushes(&mut self, group: u64) -> Checked {
        let pushes: BTreeSet<usize> = self.live.iter().map(|job| self.jobs[*job].push).collect();
        for push in pushes {
            let entry = &mut self.pushes[push];
            entry.applied.retain(|applied| applied.group <= group);
            if entry.applied.is_empty() {
                if entry.is_told {
                    return Err(format!("I1: push {push} was answered ok and is lost"));
                }
                for job in entry.jobs.clone() {
                    self.live.remove(&job);
                }
            }
        }
        Ok(())
    }

    fn restart_leases(&mut self, group: u64) {
        let mut over = Vec::new();
        for number in &self.open_leases {
            let Some(lease) = self.leases.get_mut(number) else {
                continue;
            };
            lease.doubts.retain(|(_, doubt)| *doubt <= group);
            match lease.ended {
                Some(ended) if ended > group => {
                    lease.ended = None;
                    lease.is_doubtful = true;
                }
                Some(_) => {
                    over.push(*number);
                    continue;
                }
                None => {}
            }
            if lease.groups.0 > group {
                lease.ended = Some(0);
                over.push(*number);
                continue;
            }
            lease.is_doubtful |= lease.groups.1 > group;
            let ttl = self
                .sessions
                .get(&lease.session)
                .map_or(0, |session| session.ttl);
            lease.deadline = 2 * ttl;
        }
        for number in over {
            self.open_leases.remove(&number);
        }
    }

    // What an audit saw.

    /// A job was looked at when nothing was in flight.
    pub fn audited(&mut self, token: usize, view: Option<&JobView>, mono: u64) -> Checked {
        let Some(view) = view else {
            if self.presence(token) == Presence::There {
                return Err(format!("I1: job {token} is lost"));
            }
            if self.jobs[token].over.is_none() {
                self.end(token, Over::Gone);
            }
            return Ok(());
        };
        if self.presence(token) == Presence::Gone {
            return Err(format!(
                "I4: job {token} is {:?} and there",
                self.jobs[token].over
            ));
        }
        self.check_view(token, view)?;
        self.check_known(token, view)?;
        for number in &self.jobs[token].leases {
            let is_it = view.lease == Some(LeaseId(*number));
            if self.lives(LeaseId(*number), mono) && !is_it {
                return Err(format!(
                    "lease {number} of job {token} lives; the job is {view:?}"
                ));
            }
        }
        let job = &mut self.jobs[token];
        for number in &job.leases {
            let is_it = view.lease == Some(LeaseId(*number));
            if let Some(lease) = self.leases.get_mut(number) {
                lease.doubts.clear();
                match is_it {
                    true if lease.ended.is_some() => {
                        return Err(format!(
                            "I8: lease {number} of job {token} is over and lives"
                        ));
                    }
                    true => {}
                    false => {
                        lease.ended.get_or_insert(0);
                    }
                }
            }
        }
        job.doubts.clear();
        let (attempt, failures) = (view.attempt, view.failures);
        job.last = match view.state {
            JobState::Dead => Last::Dead { attempt },
            JobState::Leased => Last::Granted { attempt, failures },
            _ if attempt == 0 => Last::Nothing,
            _ => Last::Idle { attempt, failures },
        };
        if view.state == JobState::Ready && attempt == 0 && !job.was_delayed {
            let order = self.pushes[job.push]
                .applied
                .first()
                .map_or(0, |it| it.order);
            self.fresh[job.queue].insert((9 - job.priority, order, token));
        }
        Ok(())
    }

    fn check_known(&self, token: usize, view: &JobView) -> Checked {
        let job = &self.jobs[token];
        if !job.doubts.is_empty() {
            return Ok(());
        }
        let is_right = match job.last {
            Last::Dead { .. } => view.state == JobState::Dead,
            Last::Idle { attempt, failures } => {
                view.attempt >= attempt && view.failures >= failures
            }
            Last::Nothing | Last::Granted { .. } | Last::Unknown => true,
        };
        match is_right {
            true => Ok(()),
            false => Err(format!(
                "job {token} is known as {:?} and seen as {view:?}",
                job.last
            )),
        }
    }
}

impl Session {
    fn lives(&self, mono: u64) -> bool {
        !self.is_gone && !self.is_doubtful && self.ending.is_none() && mono < self.seen + self.ttl
    }
}

impl Job {
    pub fn new(queue: usize, priority: u8, push: usize, bytes: usize) -> Self {
        Self {
            queue,
            priority,
            max_attempts: 26,
            timeout_ms: 30 * 60_000,
            backoff_ms: 0,
            bytes,
            push,
            is_refused: false,
            delay: Delay::None,
            id: None,
            not_before: None,
            was_delayed: false,
            last: Last::Nothing,
            doubts: Vec::new(),
            over: None,
            reset_attempt: 0,
            leases: Vec::new(),
        }
    }
}
