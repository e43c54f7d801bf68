//! Limits and keys, in a namespace of their own: limits of queues, keys and prefixes are set, changed
//! and deleted while jobs with keys run, wait, move, fail, are cancelled and come to their ends, and
//! while queues are paused and workers die, hang and come back.
//!
//! What must hold follows from what was told alone, see [`known`]. What workers do is in [`work`], what
//! a reply means in [`replies`], who has which turn in [`fair`], and what there must be in the end in
//! [`audit`].

mod audit;
mod fair;
mod known;
mod replies;
mod work;

use std::{collections::BTreeSet, ops::Range};

use ganger_engine::command::ConnectionId;
use ganger_protocol::{
    DurationMs, JobSpec, LeaseId, NamespaceName, RetryPolicy, SessionId, Timestamp,
    change::{ChangeTo, JobChange},
    limit::{LimitSet, LimitTarget, OneLimit, Rate},
    queue::QueuePause,
    request::{JobCancel, LeaseRef, Operation, Push, QueueNames},
    response::Notice,
};

use crate::{
    clients::Asked,
    history::Checked,
    limits::known::{Job, Known, Live, key_name, queue_name},
    world::{From, World},
};

/// Jobs of a run, above which no more are pushed before the end.
const JOBS_MAX: usize = 160;

/// Targets of limits that are set now and then.
const TARGETS: [&str; 6] = [
    "queue/l0", "queue/l*", "key/a:1", "key/a:*", "key/b:1", "key/*",
];

/// Those that are sequences from the first job on.
const SEQUENCES: &str = "key/s:*";

/// What a request was.
#[derive(Debug)]
pub enum AskedLimit {
    Push(Range<usize>),
    Fetch(AskedFetch),
    /// Which job, and how often it had been granted.
    Answer(usize, u32),
    Set(LimitSet),
    /// Whether there was one.
    Delete(bool),
    Pause,
    Cancel(usize),
    /// Which job, which of its moves, and where it goes.
    Change(usize, u32, (usize, u8)),
    Heartbeat(usize, ConnectionId),
}

#[derive(Debug)]
pub struct AskedFetch {
    worker: usize,
    connection: ConnectionId,
    session: SessionId,
    queues: Vec<usize>,
    max: usize,
    /// It is decided at once, but for what must be read: it carries no answers and does not wait.
    is_direct: bool,
    /// It was not decided at once.
    pub stands: bool,
    acks: Vec<(usize, LeaseRef)>,
    at: u64,
    /// Changes of limits before it.
    changes: u64,
}

/// All of this part.
#[derive(Debug, Default)]
pub struct Limits {
    known: Known,
    workers: [Worker; 2],
    /// Leases that a worker was told to have lost, which may be before it was told to have them.
    lost: BTreeSet<LeaseId>,
    /// Leases that lived when the server ended.
    suspended: Vec<Live>,
    /// How often it has ended.
    boots: u32,
    has_sequences: bool,
    was_fair: bool,
    /// The order of grants, while it is looked at.
    granted: Vec<usize>,
}

#[derive(Debug, Default)]
struct Worker {
    connection: Option<ConnectionId>,
    session: Option<SessionId>,
    held: Vec<(usize, LeaseRef)>,
    is_fetching: bool,
}

impl Limits {
    /// Whether a connection is that of a worker here.
    pub fn is_own(&self, connection: ConnectionId) -> bool {
        let mut workers = self.workers.iter();
        workers.any(|worker| worker.connection == Some(connection))
    }

    /// A worker is told something.
    pub fn heard(&mut self, notice: &Notice, now: u64) -> Checked {
        match notice {
            Notice::Lost { leases } => self.lost(leases, now),
            _ => Ok(()),
        }
    }

    /// Leases were told to be lost.
    fn lost(&mut self, leases: &[LeaseRef], now: u64) -> Checked {
        if let Some(lease) = leases.iter().find(|it| self.known.is_live(**it, now)) {
            return Err(format!("{lease:?} is lost, and lives for certain"));
        }
        self.lose(leases);
        Ok(())
    }

    fn lose(&mut self, leases: &[LeaseRef]) {
        for lease in leases {
            self.lost.insert(lease.lease);
            self.known.end(*lease);
            for worker in &mut self.workers {
                worker.held.retain(|(_, held)| held != lease);
            }
        }
    }

    /// All connections are gone.
    pub fn server_ended(&mut self, now: u64) {
        if self.workers.iter().any(|worker| worker.is_fetching) {
            self.known.abandon(now);
        }
        for worker in &mut self.workers {
            worker.connection = None;
            worker.is_fetching = false;
        }
        self.suspended = std::mem::take(&mut self.known.live);
        self.boots += 1;
        self.lost.clear();
    }

    /// The server starts again behind a group.
    pub fn restarted(&mut self, group: u64, now: u64, has_jumps: bool) -> Checked {
        if has_jumps {
            self.suspended.clear();
        }
        self.known.restart(group, now, has_jumps)
    }

    /// A worker is gone for good.
    fn forget_worker(&mut self, nth: usize, now: u64) {
        let worker = std::mem::take(&mut self.workers[nth]);
        if worker.is_fetching {
            self.known.abandon(now);
        }
    }

    fn is_fetching(&self) -> bool {
        self.workers.iter().any(|worker| worker.is_fetching)
    }
}

fn namespace() -> NamespaceName {
    "limit".parse().expect("a legal name")
}

fn target_of(text: &str) -> LimitTarget {
    match text.split_once('/') {
        Some(("queue", queue)) => LimitTarget::Queue(queue.parse().expect("a legal pattern")),
        Some((_, key)) => LimitTarget::Key(key.parse().expect("a legal pattern")),
        None => panic!("{text} is no target"),
    }
}

impl World {
    pub fn step_limit(&mut self) -> Checked {
        if !self.is_up() {
            return Ok(());
        }
        match self.rng.u32(..32) {
            0..5 => self.push_limited(),
            5..8 => self.change_limit(),
            8 => self.delete_limit(),
            9 => self.pause_limited(),
            10 | 11 => self.cancel_limited(),
            12 | 13 => self.move_limited(),
            14 => self.disturb_limited(),
            15 if self.rng.u32(..6) == 0 => self.look_at_turns(),
            _ => {
                let nth = self.rng.usize(..2);
                self.work_under_limits(nth, false)
            }
        }
    }

    fn limits_from(&mut self) -> From {
        From {
            connection: self.connect(),
            namespace: namespace(),
            session: None,
            producer: None,
        }
    }

    fn ask_limit(&mut self, operation: Operation, asked: AskedLimit) -> Checked {
        let from = self.limits_from();
        self.request(&from, operation, Asked::Limit(asked))
    }

    // Jobs.

    fn push_limited(&mut self) -> Checked {
        if self.limits.known.jobs.len() >= JOBS_MAX {
            return Ok(());
        }
        if !std::mem::replace(&mut self.limits.has_sequences, true) {
            let mut set = LimitSet::of(target_of(SEQUENCES));
            set.sequence = true;
            self.set_limit(set)?;
        }
        // Now and then so many of a key that it gets a lane of its own.
        let (count, one) = match self.rng.u32(..40) {
            0 => (70, Some(self.rng.usize(..5))),
            _ => (self.rng.usize(1..5), None),
        };
        let jobs = (0..count).map(|_| self.new_limited(one));
        let jobs = jobs.collect();
        self.push_limited_jobs(jobs)
    }

    fn push_limited_jobs(&mut self, jobs: Vec<JobSpec>) -> Checked {
        let (first, count) = (self.limits.known.jobs.len() - jobs.len(), jobs.len());
        self.trace.note(
            self.elapsed(),
            "{} jobs are pushed from limited {}",
            &[count as u64, first as u64],
        );
        let asked = AskedLimit::Push(first..first + count);
        self.ask_limit(Operation::Push(Push::of(jobs)), asked)
    }

    fn new_limited(&mut self, one: Option<usize>) -> JobSpec {
        let wall = self.clock.now().wall.0;
        let rng = &mut self.rng;
        let key = one.or_else(|| (rng.u32(..5) > 0).then(|| rng.usize(..5)));
        let is_plain = one.is_some() || rng.u32(..4) > 0;
        let spec = JobSpec {
            max_attempts: Some(rng.u32(1..5)),
            backoff: Some(Box::new(RetryPolicy::fixed(DurationMs(rng.u64(..2_000))))),
            timeout_ms: Some(DurationMs(rng.u64(2_000..20_000))),
            delay_ms: (!is_plain && rng.bool()).then(|| DurationMs(rng.u64(..4_000))),
            expires_at: (!is_plain && rng.bool()).then(|| Timestamp(wall + rng.u64(..9_000))),
            priority: Some([5, 5, 5, 9][rng.usize(..4)]),
            ..JobSpec::new("limited".parse().expect("a legal name"), "")
        };
        let queue = rng.usize(..2);
        self.add_limited(spec, queue, key)
    }

    /// A job comes into being, of which the last bytes say which it is.
    fn add_limited(&mut self, spec: JobSpec, queue: usize, key: Option<usize>) -> JobSpec {
        let token = self.limits.known.jobs.len() as u64;
        let mut payload = token.to_be_bytes().to_vec();
        // One that is not read at a start.
        let is_large = self.rng.u32(..16) == 0;
        payload.resize(if is_large { 9_000 } else { 8 }, 7);
        self.limits.known.jobs.push(Job {
            queue,
            priority: spec.priority.unwrap_or(5),
            key,
            group: self.open_group(),
            may_expire: spec.expires_at.is_some(),
            is_fresh: spec.delay_ms.is_none() && spec.expires_at.is_none(),
            ..Job::default()
        });
        JobSpec {
            queue: queue_name(queue),
            key: key.map(key_name),
            payload: payload.into(),
            ..spec
        }
    }

    /// One of the jobs that are not over, as far as is known.
    fn some_limited(&mut self) -> Option<usize> {
        let jobs = self.limits.known.jobs.iter().enumerate();
        let live = jobs.filter(|(_, job)| job.id.is_some() && job.over.is_none());
        let live: Vec<usize> = live.map(|(nth, _)| nth).collect();
        (!live.is_empty()).then(|| live[self.rng.usize(..live.len())])
    }

    /// Somebody else does something to a job: it is not certain any more how it waits.
    fn touch_limited(&mut self, token: usize) {
        let known = &mut self.limits.known;
        known.jobs[token].is_fresh = false;
        known.jobs[token].waits_again = None;
    }

    fn cancel_limited(&mut self) -> Checked {
        let Some(token) = self.some_limited() else {
            return Ok(());
        };
        let Some(id) = self.limits.known.jobs[token].id else {
            return Ok(());
        };
        let grace_ms = [0, 0, 2_000, 30_000][self.rng.usize(..4)];
        self.trace.note(
            self.elapsed(),
            "limited {} is cancelled, with a grace of {} ms",
            &[token as u64, grace_ms],
        );
        self.touch_limited(token);
        self.limits.known.jobs[token].may_be_cancelled = true;
        self.limits.known.live.retain(|live| live.job != token);
        self.limits.suspended.retain(|live| live.job != token);
        let cancel = JobCancel {
            grace_ms: DurationMs(grace_ms),
            ..JobCancel::new(vec![id])
        };
        self.ask_limit(Operation::JobCancel(cancel), AskedLimit::Cancel(token))
    }

    /// A job that waits goes to another queue, another priority, or both; one that runs does not.
    fn move_limited(&mut self) -> Checked {
        let Some(token) = self.some_limited() else {
            return Ok(());
        };
        let Some(id) = self.limits.known.jobs[token].id else {
            return Ok(());
        };
        let (queue, priority) = (self.rng.usize(..2), [5, 9][self.rng.usize(..2)]);
        self.trace.note(
            self.elapsed(),
            "limited {} is moved to queue {}, priority {}",
            &[token as u64, queue as u64, u64::from(priority)],
        );
        self.touch_limited(token);
        let job = &mut self.limits.known.jobs[token];
        job.may_have_moved = true;
        job.moved = None;
        job.moves += 1;
        let moves = job.moves;
        let to = ChangeTo {
            queue: Some(queue_name(queue)),
            priority: Some(priority),
            delay_ms: [None, Some(DurationMs(0)), Some(DurationMs(3_000))][self.rng.usize(..3)],
            ..ChangeTo::default()
        };
        let change = JobChange { jobs: vec![id], to };
        let asked = AskedLimit::Change(token, moves, (queue, priority));
        self.ask_limit(Operation::JobChange(change), asked)
    }

    // Limits.

    fn change_limit(&mut self) -> Checked {
        let target = target_of(TARGETS[self.rng.usize(..TARGETS.len())]);
        let is_key = matches!(target, LimitTarget::Key(_));
        let rng = &mut self.rng;
        let rate = Rate {
            n: rng.u32(1..4),
            per_ms: DurationMs([200, 1_000, 5_000][rng.usize(..3)]),
            burst: [None, Some(1), Some(3)][rng.usize(..3)],
        };
        let mut set = LimitSet::of(target);
        let kind = rng.u32(..12);
        if kind < 8 {
            set.max_running = Some(rng.u32(1..4));
        }
        if kind > 6 && kind < 11 {
            set.rate = Some(rate);
        }
        if is_key {
            set.sequence = kind == 11;
            set.weight = rng.bool().then(|| rng.u32(1..4));
        } else if kind == 11 {
            set.rate = Some(rate);
        }
        self.set_limit(set)
    }

    fn set_limit(&mut self, set: LimitSet) -> Checked {
        let Some(target) = set.target() else {
            return Err(format!("{set:?} has no target"));
        };
        self.trace.note(
            self.elapsed(),
            "a limit is set: {} running, rate {}, sequence {}, weight {}",
            &[
                u64::from(set.max_running.unwrap_or_default()),
                u64::from(set.rate.is_some()),
                u64::from(set.sequence),
                u64::from(set.weight.unwrap_or_default()),
            ],
        );
        let group = self.open_group();
        let known = &mut self.limits.known;
        known.set_limit(group, target, Some(set.clone()));
        let operation = Operation::LimitSet(Box::new(set.clone()));
        self.ask_limit(operation, AskedLimit::Set(set))
    }

    fn delete_limit(&mut self) -> Checked {
        let target = target_of(TARGETS[self.rng.usize(..TARGETS.len())]);
        self.delete_limit_of(target)
    }

    fn delete_limit_of(&mut self, target: LimitTarget) -> Checked {
        let group = self.open_group();
        let was_there = self.limits.known.limit(&target).is_some();
        self.trace.note(
            self.elapsed(),
            "a limit is deleted, and was there: {}",
            &[u64::from(was_there)],
        );
        self.limits.known.set_limit(group, target.clone(), None);
        let one = OneLimit::of(target);
        let asked = AskedLimit::Delete(was_there);
        self.ask_limit(Operation::LimitDelete(one), asked)
    }

    fn pause_limited(&mut self) -> Checked {
        let queue = self.rng.usize(..2);
        let is_paused = self.rng.bool();
        self.pause_limited_queue(queue, is_paused)
    }

    fn pause_limited_queue(&mut self, queue: usize, is_paused: bool) -> Checked {
        if !self.limits.known.has_queue(queue) {
            return Ok(());
        }
        let group = self.open_group();
        self.trace.note(
            self.elapsed(),
            "limited queue {} is paused: {}",
            &[queue as u64, u64::from(is_paused)],
        );
        self.limits.known.pause(group, queue, is_paused);
        let queues = vec![queue_name(queue)];
        let operation = match is_paused {
            true => Operation::QueuePause(QueuePause {
                queues,
                ..QueuePause::default()
            }),
            false => Operation::QueueResume(QueueNames { queues }),
        };
        self.ask_limit(operation, AskedLimit::Pause)
    }
}
