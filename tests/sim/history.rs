//! What clients were told, and what must follow from it.
//!
//! Independent of the engine: it knows the requests in the order in which they were applied, the
//! group that each one's changes went into, the replies that left, and which groups a crash left.
//! From that it knows what is certain; where an answer is missing, it knows that it does not know.
//! [`crate::audit`] resolves that after each restart by looking.

mod administration;
mod crashes;
mod leases;
mod sessions;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use ganger_protocol::{
    Bytes, JobId, LeaseId, SessionId,
    job::{JobState, JobView, UniqueUntil},
    response::PushResult,
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
    /// When it expires, by the wall clock.
    pub expires_at: Option<u64>,
    /// Its unique key: number, and how long it is held.
    pub unique: Option<(u8, UniqueUntil)>,
    /// It was never made: another job held its key.
    pub is_void: bool,
    /// Since when it certainly does not hold its key, as [`History::order`] counts.
    keyless: Option<u64>,
    pub id: Option<JobId>,
    /// Not to be granted before this wall time, as it was known in this stretch.
    not_before: Option<(u64, Stretch)>,
    /// Whether it had to wait for its time when it was pushed.
    was_delayed: bool,
    /// The last request that may have given it another time.
    changed: u64,
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
    /// The same by the wall clock.
    pub asked_wall: u64,
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
    /// The latest that the wall clock ever showed.
    pub wall_max: u64,
    /// Whether the wall clock never steps.
    pub is_steady: bool,
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
    pub fn push_told(&mut self, push: usize, results: &[PushResult]) -> Checked {
        let jobs = self.pushes[push].jobs.clone();
        if results.len() != jobs.len() {
            return Err(format!(
                "push {push}: {} results for {} jobs",
                results.len(),
                jobs.len()
            ));
        }
        if !self.makes_something(push) {
            return match results.iter().all(|result| result.id.is_none()) {
                true => Ok(()),
                false => Err(format!("push {push} has only bad jobs, one was accepted")),
            };
        }
        let Some(applied) = self.pushes[push].applied.first().copied() else {
            return Err(format!("push {push} was answered ok and never applied"));
        };
        // One that made nothing and has no number changed nothing.
        let is_change = |result: &PushResult| result.id.is_some() && !result.existing;
        let is_changed = self.pushes[push].seq.is_some() || results.iter().any(is_change);
        if is_changed && applied.group > self.durable {
            return Err(format!(
                "I1: push {push} was answered in group {}, durable is {}",
                applied.group, self.durable
            ));
        }
        let is_first = !std::mem::replace(&mut self.pushes[push].is_told, true);
        for (job, result) in jobs.zip(results) {
            let is_refused = self.jobs[job].is_refused;
            if let (Some(holder), true) = (result.id, result.existing) {
                self.key_was_held(job, holder, applied.order)?;
                continue;
            }
            match result.id {
                None if is_refused => {}
                None => return Err(format!("job {job} was refused")),
                Some(_) if is_refused => return Err(format!("bad job {job} was accepted")),
                Some(id) => self.learn(job, id)?,
            }
            if is_first && !is_refused {
                self.freshen(job, applied.order);
            }
        }
        Ok(())
    }

    /// A push made no job, since another one holds the key.
    fn key_was_held(&mut self, token: usize, holder: JobId, order: u64) -> Checked {
        let unique = self.jobs[token].unique;
        if unique.is_none() || self.jobs[token].id.is_some() {
            return Err(format!(
                "I11: job {token} was made and was not, or has no key"
            ));
        }
        // Of one that nobody was told of nothing is known.
        if let Some(known) = self.job_of(holder).map(|holder| &self.jobs[holder]) {
            let is_over = known.keyless.is_some_and(|since| since < order);
            if is_over || known.unique.map(|(key, _)| key) != unique.map(|(key, _)| key) {
                return Err(format!(
                    "I11: job {token} met {known:?}, which does not hold its key"
                ));
            }
        }
        self.jobs[token].is_void = true;
        self.live.remove(&token);
        Ok(())
    }

    /// Of the jobs that were seen in some state at one moment, no two hold one key.
    pub fn check_keys<'a>(
        &self,
        seen: impl Iterator<Item = (usize, &'a str, &'a JobView)>,
    ) -> Checked {
        let mut holders = BTreeMap::new();
        for (token, namespace, view) in seen {
            let Some((key, until)) = self.jobs[token].unique else {
                continue;
            };
            let waits = matches!(view.state, JobState::Scheduled | JobState::Ready);
            let is_held = match until {
                UniqueUntil::Start => waits && view.attempt == 0,
                UniqueUntil::Settled => waits || view.state == JobState::Leased,
                UniqueUntil::Success => view.state != JobState::Done,
                UniqueUntil::Ttl => false,
            };
            if is_held && let Some(other) = holders.insert((namespace, key), token) {
                return Err(format!("I11: jobs {token} and {other} hold key {key}"));
            }
        }
        Ok(())
    }

    /// Whether the time of a job has come by now.
    pub fn may_have_expired(&self, token: usize) -> bool {
        self.jobs[token]
            .expires_at
            .is_some_and(|at| at <= self.wall_max)
    }

    /// Jobs of a queue of which nobody knows whether they were made: their push was not answered,
    /// and another job may have held their key.
    pub fn perhaps_void(&self, queue: usize) -> u64 {
        let jobs = self.live.iter().map(|job| &self.jobs[*job]);
        let jobs = jobs.filter(|job| job.queue == queue && job.unique.is_some());
        jobs.filter(|job| job.id.is_none()).count() as u64
    }

    fn freshen(&mut self, token: usize, order: u64) {
        let job = &self.jobs[token];
        let is_ready = job.expires_at.is_none() && !job.was_delayed && job.last == Last::Nothing;
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
        let is_there = |job: &&Job| {
            job.queue == queue && !job.is_refused && !job.is_void && self.is_in_effect(job.push)
        };
        let all = self.jobs.iter().filter(is_there);
        let (mut pushed, mut live) = (0, 0);
        for job in all {
            pushed += 1;
            live += u64::from(job.over.is_none());
        }
        (pushed, live)
    }

    /// The job of this id.
    pub fn job_of(&self, id: JobId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// Jobs of a queue that may have been purged and cannot be looked at: nobody knows their ids.
    pub fn perhaps_gone(&self, queue: usize) -> u64 {
        let jobs = self.live.iter().filter(|job| {
            let job = &self.jobs[**job];
            job.queue == queue && job.id.is_none()
        });
        jobs.filter(|token| {
            let job = &self.jobs[**token];
            job.doubts.iter().any(|doubt| doubt.may_end)
                || job.unique.is_some()
                || self.may_have_expired(**token)
        })
        .count() as u64
    }

    /// Jobs of a queue that were acked, as told.
    pub fn acked(&self, queue: usize) -> u64 {
        let acked = |job: &&Job| job.queue == queue && matches!(job.over, Some(Over::Acked { .. }));
        self.jobs.iter().filter(acked).count() as u64
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
            expires_at: None,
            unique: None,
            is_void: false,
            keyless: None,
            id: None,
            not_before: None,
            was_delayed: false,
            changed: 0,
            last: Last::Nothing,
            doubts: Vec::new(),
            over: None,
            reset_attempt: 0,
            leases: Vec::new(),
        }
    }
}
