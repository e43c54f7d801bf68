//! A naive model of the engine: plain maps, no windows, runs or groups. Random commands go to both,
//! and replies, job states and counters must agree, over crashes to any durable prefix too.
//!
//! Ids and numbers are the engine's: the model learns them from replies and checks what they must
//! obey. Jobs are told apart by their payloads.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ganger_protocol::{
    Bytes, DurationMs, ErrorCode, JobId, JobSpec, LeaseId, RetryPolicy, SessionId, Timestamp,
    job::{JobState, OnConflict, Unique, UniqueUntil},
    progress::{Progress, ProgressItem},
    request::{
        Ack, DeadSelect, Extend, ExtendItem, Fail, FailItem, Fetch, Heartbeat, LeaseRef, Operation,
        Push, Release, ReleaseItem,
    },
    response::{Counters, FetchReply, LeaseResult, PushResult, ReplyBody},
};
use proptest::{prelude::*, test_runner::RngSeed};

use crate::{
    HeadBudget, Options,
    command::{Caller, Command, ConnectionId, Mono, Now, Producer},
    records::{GroupNumber, ProducerNumber},
    testing::{BEGIN, World, ack_item, fail_item, kind, small},
};

const TTL: DurationMs = DurationMs::from_secs(15);
const DAY: DurationMs = DurationMs::from_hours(24);
const RETENTION: DurationMs = DurationMs::from_hours(24 * 180);
const NAMESPACES: [&str; 2] = ["one", "two"];
const QUEUES: [&str; 3] = ["a", "b", "c"];

type Place = (usize, usize);

#[derive(Debug, Clone)]
struct Job {
    id: JobId,
    place: Place,
    priority: u8,
    state: JobState,
    run_at: Option<Timestamp>,
    /// Whether it has left the scheduled run in which it was born, or was born elsewhere: of one
    /// millisecond these come first.
    is_moved: bool,
    closed_at: Option<Timestamp>,
    lease: Option<Lease>,
    attempt: u32,
    failures: u32,
    losses: u32,
    in_row: u32,
    releases: u32,
    errors: u32,
    max_attempts: u32,
    backoff: DurationMs,
    timeout: DurationMs,
    expires_at: Option<Timestamp>,
    unique: Option<(u8, UniqueUntil)>,
    /// Where its next attempt goes on; 0: at the start.
    cursor: u8,
}

impl Job {
    fn waits(&self) -> bool {
        matches!(self.state, JobState::Scheduled | JobState::Ready)
    }

    /// Whether it holds its key by itself.
    fn holds_key(&self) -> bool {
        let is_live = self.waits() || self.state == JobState::Leased;
        match self.unique {
            Some((_, UniqueUntil::Start)) => self.waits() && self.attempt == 0,
            Some((_, UniqueUntil::Settled)) => is_live,
            Some((_, UniqueUntil::Success)) => is_live || self.state == JobState::Dead,
            Some((_, UniqueUntil::Ttl)) | None => false,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Lease {
    number: LeaseId,
    session: SessionId,
    deadline: Mono,
    deadline_wall: Timestamp,
}

#[derive(Debug, Clone)]
struct Session {
    namespace: usize,
    is_connected: bool,
    seen: Mono,
    check: Mono,
    is_forgiven: bool,
    lost: Vec<LeaseRef>,
}

#[derive(Debug, Clone, Default)]
struct Outcomes {
    newest: u64,
    at: Timestamp,
    timer: Timestamp,
    slots: BTreeMap<u64, (u64, Vec<PushResult>)>,
}

#[derive(Debug, Clone)]
struct Waiter {
    session: SessionId,
    queues: Vec<Place>,
    deadline: Option<Mono>,
    after: Option<GroupNumber>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Ack,
    Fail,
    Release,
}

/// What would be durable.
#[derive(Debug, Clone, Default)]
struct Model {
    jobs: BTreeMap<u64, Job>,
    ready: BTreeMap<(Place, u8), VecDeque<u64>>,
    paused: BTreeSet<Place>,
    made: BTreeSet<Place>,
    counters: BTreeMap<Place, Counters>,
    sessions: BTreeMap<SessionId, Session>,
    producers: BTreeMap<u64, Outcomes>,
    /// Keys that are held for a time: by whom, until when.
    throttles: BTreeMap<(usize, u8), (JobId, Timestamp)>,
    head_wall: Timestamp,
    // What a restart forgets.
    settled: BTreeMap<(JobId, LeaseId), Answer>,
    waiters: BTreeMap<Caller, Waiter>,
}

impl Model {
    fn job_of(&self, id: JobId) -> Option<u64> {
        let found = self.jobs.iter().find(|(_, job)| job.id == id);
        found.map(|(serial, _)| *serial)
    }

    /// Who holds a key of a namespace.
    fn holder(&self, namespace: usize, key: u8, now: Timestamp) -> Option<JobId> {
        let jobs = self.jobs.values().filter(|job| job.place.0 == namespace);
        let mut holders =
            jobs.filter(|job| job.unique.is_some_and(|(own, _)| own == key) && job.holds_key());
        let holder = holders.next().map(|job| job.id);
        assert!(holders.next().is_none(), "I11: {key} has two holders");
        let throttle = self.throttles.get(&(namespace, key));
        let throttle = throttle.filter(|(_, until)| *until > now);
        holder.or_else(|| throttle.map(|(job, _)| *job))
    }

    /// Jobs that have waited too long are gone.
    fn expire_due(&mut self, now: Timestamp) {
        let is_due = |job: &Job| job.waits() && job.expires_at.is_some_and(|at| at <= now);
        let due = self.jobs.iter().filter(|(_, job)| is_due(job));
        for serial in due.map(|(serial, _)| *serial).collect::<Vec<_>>() {
            let job = self.withdraw(serial);
            self.count(job.place).expired += 1;
        }
    }

    /// Takes a waiting job out of where it waits.
    fn withdraw(&mut self, serial: u64) -> Job {
        let mut job = self.jobs.remove(&serial).unwrap();
        job.is_moved = true;
        match job.state {
            JobState::Scheduled => self.count(job.place).scheduled -= 1,
            _ => {
                let lane = self.ready.get_mut(&(job.place, job.priority)).unwrap();
                lane.retain(|other| *other != serial);
                self.count(job.place).ready -= 1;
            }
        }
        job
    }

    fn count(&mut self, place: Place) -> &mut Counters {
        self.counters.entry(place).or_default()
    }

    fn ready_back(&mut self, serial: u64) {
        let job = self.jobs.get_mut(&serial).unwrap();
        job.state = JobState::Ready;
        job.run_at = None;
        job.is_moved = true;
        let (place, priority) = (job.place, job.priority);
        self.ready
            .entry((place, priority))
            .or_default()
            .push_back(serial);
        self.count(place).ready += 1;
    }

    fn ready_front(&mut self, serial: u64) {
        self.ready_back(serial);
        let job = &self.jobs[&serial];
        let lane = self.ready.get_mut(&(job.place, job.priority)).unwrap();
        lane.rotate_right(1);
    }

    fn schedule(&mut self, serial: u64, at: Timestamp) {
        let job = self.jobs.get_mut(&serial).unwrap();
        job.state = JobState::Scheduled;
        job.run_at = Some(at);
        let place = job.place;
        self.count(place).scheduled += 1;
    }

    fn close_as_dead(&mut self, serial: u64, now: Now) {
        let job = self.jobs.get_mut(&serial).unwrap();
        job.state = JobState::Dead;
        job.closed_at = Some(now.wall);
        let place = job.place;
        self.count(place).dead += 1;
    }

    fn delete(&mut self, serial: u64) {
        let place = self.jobs.remove(&serial).unwrap().place;
        self.count(place).deleted += 1;
    }

    /// The jobs that a fetch gets, in order.
    fn expected(&self, queues: &[Place], max: usize) -> Vec<u64> {
        let mut taken = Vec::new();
        for queue in queues.iter().filter(|queue| !self.paused.contains(queue)) {
            for priority in (0..=9).rev() {
                let lane = self.ready.get(&(*queue, priority));
                taken.extend(lane.into_iter().flatten().copied());
            }
        }
        taken.truncate(max);
        taken
    }

    fn next_of(&self, place: Place) -> Option<u64> {
        let mut lanes = (0..=9)
            .rev()
            .map(|priority| self.ready.get(&(place, priority)));
        lanes.find_map(|lane| lane.and_then(|lane| lane.front().copied()))
    }

    fn end_lease(&mut self, serial: u64) -> Lease {
        let job = self.jobs.get_mut(&serial).unwrap();
        let lease = job.lease.take().unwrap();
        let place = job.place;
        self.count(place).leased -= 1;
        lease
    }

    fn fail(&mut self, serial: u64, now: Now, delay: Option<DurationMs>) {
        let job = self.jobs.get_mut(&serial).unwrap();
        job.failures += 1;
        job.in_row = 0;
        job.errors += 1;
        let (place, is_dead) = (job.place, job.failures >= job.max_attempts);
        let at = now.wall.plus(delay.unwrap_or(job.backoff));
        self.count(place).failed += 1;
        match is_dead {
            true => self.close_as_dead(serial, now),
            false => self.schedule(serial, at),
        }
    }

    fn release(&mut self, serial: u64, run_at: Option<Timestamp>) {
        self.end_lease(serial);
        let job = self.jobs.get_mut(&serial).unwrap();
        job.releases += 1;
        job.in_row = 0;
        let place = job.place;
        self.count(place).released += 1;
        match run_at {
            Some(at) => self.schedule(serial, at),
            None => self.ready_front(serial),
        }
    }

    fn leases_of(&self, session: SessionId) -> Vec<u64> {
        let held = self
            .jobs
            .iter()
            .filter(|(_, job)| job.lease.is_some_and(|lease| lease.session == session));
        let mut held: Vec<_> = held.map(|(serial, job)| (job.id, *serial)).collect();
        held.sort_unstable();
        held.into_iter().map(|(_, serial)| serial).collect()
    }

    fn waits(&self, session: SessionId) -> bool {
        self.waiters
            .values()
            .any(|waiter| waiter.session == session)
    }
}

/// Some of what is known of leases that workers were given.
#[derive(Debug, Clone, Copy)]
struct Known {
    after: GroupNumber,
    job: JobId,
    lease: LeaseId,
}

#[derive(Debug, Clone)]
struct NewJob {
    queue: u8,
    priority: u8,
    delay: u8,
    max_attempts: u8,
    timeout: u8,
    spilled: bool,
    expires: u8,
    unique: u8,
}

/// Picks a lease from those that workers know; or a job of one with the lease of another.
#[derive(Debug, Clone)]
struct Pick {
    nth: u8,
    recent: bool,
    forged: bool,
}

#[derive(Debug, Clone)]
enum Op {
    Push(u8, Vec<NewJob>),
    Numbered(u8, u16, Vec<NewJob>),
    Open(u8),
    Resume(u8, u8),
    Detach(u8),
    Goodbye(u8),
    Heartbeat(u8),
    Fetch {
        worker: u8,
        queues: u8,
        max: u8,
        waits: bool,
        acks: Vec<Pick>,
        fails: Vec<Pick>,
    },
    Ack(u8, Vec<Pick>),
    Fail(u8, Pick, u8),
    Release(u8, Vec<Pick>, bool),
    Extend(u8, Pick),
    Progress(u8, Pick, u8),
    Revive(u8, u8, u8),
    Purge(u8, u8, u8),
    Pause(u8, u8, bool),
    Live(u32),
    Stall(u32),
    Wall(i64),
    Seal,
    Sync,
    Crash(u8),
    Reopen,
}

/// Operations, printed one a line.
struct Ops(Vec<Op>);

impl std::fmt::Debug for Ops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|op| write!(f, "\n  {op:?},"))
    }
}

struct Both {
    world: World,
    model: Model,
    /// The model as it was when each group was sealed.
    sealed: BTreeMap<u64, Model>,
    known: Vec<Known>,
    serials: u64,
    highest_lease: LeaseId,
}

impl Both {
    fn new(options: Options) -> Self {
        let mut world = World::with(options);
        world.follow();
        let mut both = Self {
            model: Model {
                head_wall: world.now.wall,
                ..Model::default()
            },
            world,
            sealed: BTreeMap::new(),
            known: Vec::new(),
            serials: 0,
            highest_lease: LeaseId(0),
        };
        both.sealed.insert(1, both.model.clone());
        both
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Push(namespace, jobs) => {
                self.push(usize::from(*namespace) % 2, jobs, None);
            }
            Op::Numbered(producer, back, jobs) => self.push_numbered(*producer % 2, *back, jobs),
            Op::Open(namespace) => self.open(usize::from(*namespace) % 2),
            Op::Resume(worker, mask) => self.resume(*worker, *mask),
            Op::Detach(worker) => {
                if let Some(id) = self.worker(*worker) {
                    self.world.step(Command::Detach {
                        connection: ConnectionId(id.0),
                        session: Some(id),
                    });
                    self.model.waiters.retain(|_, waiter| waiter.session != id);
                    self.model.sessions.get_mut(&id).unwrap().is_connected = false;
                }
            }
            Op::Goodbye(worker) => self.goodbye(*worker),
            Op::Heartbeat(worker) => self.heartbeat(*worker),
            Op::Fetch {
                worker,
                queues,
                max,
                waits,
                acks,
                fails,
            } => self.fetch(*worker, *queues, u32::from(*max % 6), *waits, acks, fails),
            Op::Ack(worker, picks) => self.ack(*worker, picks),
            Op::Fail(worker, pick, how) => self.fail(*worker, pick, *how),
            Op::Release(worker, picks, delayed) => self.release(*worker, picks, *delayed),
            Op::Extend(worker, pick) => self.extend(*worker, pick),
            Op::Progress(worker, pick, cursor) => self.progress(*worker, pick, *cursor),
            Op::Revive(namespace, queue, limit) => {
                self.change_dead(*namespace, *queue, *limit, true);
            }
            Op::Purge(namespace, queue, limit) => {
                self.change_dead(*namespace, *queue, *limit, false);
            }
            Op::Pause(namespace, queue, is_pause) => self.pause(*namespace, *queue, *is_pause),
            Op::Live(ms) => self.live(DurationMs(u64::from(*ms))),
            Op::Stall(ms) => {
                let time = DurationMs(u64::from(*ms));
                self.world.now.wall = self.world.now.wall.plus(time);
                self.world.now.mono = self.world.now.mono.plus(time);
            }
            Op::Wall(ms) => {
                let wall = self.world.now.wall.0;
                self.world.now.wall = Timestamp(wall.saturating_add_signed(*ms).max(BEGIN.0 / 2));
            }
            Op::Seal => self.seal(),
            Op::Sync => self.sync(),
            Op::Crash(more) => self.crash(*more),
            Op::Reopen => {
                self.seal();
                self.sync();
                self.crash(0);
            }
        }
        self.take_replies();
        self.tick();
        self.compare_counters();
    }

    // What happens to the store.

    fn seal(&mut self) {
        let before = self.world.groups.len();
        self.world.seal();
        if self.world.groups.len() > before {
            self.model.head_wall = self.model.head_wall.max(self.world.now.wall);
            self.sealed
                .insert(self.world.groups.len() as u64, self.model.clone());
        }
    }

    fn sync(&mut self) {
        self.world.sync();
        self.take_replies();
        let durable = self.world.durable;
        let is_over = |waiter: &Waiter| waiter.after.is_some_and(|after| after <= durable);
        assert!(
            !self.model.waiters.values().any(is_over),
            "an answer is due"
        );
    }

    fn crash(&mut self, more: u8) {
        let (durable, sealed) = (self.world.durable.0, self.world.groups.len() as u64);
        let kept = durable + u64::from(more) % (sealed - durable + 1);
        self.known.retain(|known| known.after.0 <= durable);
        self.world.crash_after(GroupNumber(kept));
        self.model = self.sealed[&kept].clone();
        self.sealed.retain(|group, _| *group <= kept);
        self.model.settled.clear();
        self.model.waiters.clear();
        let now = self.world.now;
        for session in self.model.sessions.values_mut() {
            session.is_connected = false;
            session.seen = now.mono;
            session.check = now.mono.plus(TTL);
            session.is_forgiven = false;
            session.lost.clear();
        }
        for job in self.model.jobs.values_mut() {
            if let Some(lease) = &mut job.lease {
                let rest = lease.deadline_wall.since(self.model.head_wall);
                lease.deadline = now.mono.plus(rest.max(TTL.times(2)));
            }
        }
        self.seal();
        self.sync();
    }

    // What time does.

    fn live(&mut self, time: DurationMs) {
        let end = self.world.now.mono.plus(time);
        for round in 0.. {
            assert!(round < 100_000, "busy without progress");
            self.tick();
            let now = self.world.now;
            let rest = end.since(now.mono);
            if rest == DurationMs::ZERO {
                return;
            }
            let step = self.world.engine.next_wakeup(now).unwrap_or(rest).min(rest);
            self.world.now.wall = now.wall.plus(step);
            self.world.now.mono = now.mono.plus(step);
        }
    }

    fn tick(&mut self) {
        for round in 0.. {
            assert!(round < 1000, "busy without progress");
            let delayed = self.tick_model();
            self.world.step(Command::Tick);
            self.take_replies();
            for serial in delayed {
                self.learn_delay(serial);
            }
            if self.world.engine.next_wakeup(self.world.now) != Some(DurationMs::ZERO) {
                break;
            }
        }
        for place in self.model.made.clone() {
            let is_idle = self.model.paused.contains(&place) || self.model.next_of(place).is_none();
            let mut waiters = self.model.waiters.values();
            assert!(
                is_idle || !waiters.any(|waiter| waiter.queues.contains(&place)),
                "{place:?} has jobs and waiting fetches"
            );
        }
    }

    /// One tick of the model; the jobs whose delay only the engine knows.
    fn tick_model(&mut self) -> Vec<u64> {
        let now = self.world.now;
        let model = &mut self.model;
        let mut due: Vec<_> = model
            .jobs
            .iter()
            .filter(|(_, job)| job.state == JobState::Scheduled)
            .filter(|(_, job)| job.run_at.is_some_and(|at| at <= now.wall))
            .map(|(serial, job)| (job.run_at, !job.is_moved, job.id, *serial))
            .collect();
        due.sort_unstable();
        for (_, _, _, serial) in due {
            let place = model.jobs[&serial].place;
            model.count(place).scheduled -= 1;
            model.ready_back(serial);
        }
        model.expire_due(now.wall);
        model.throttles.retain(|_, (_, until)| *until > now.wall);
        let kept = |job: &Job| job.closed_at.is_none_or(|at| at.plus(RETENTION) > now.wall);
        let old: Vec<u64> = model
            .jobs
            .iter()
            .filter(|(_, job)| job.state == JobState::Dead && !kept(job))
            .map(|(serial, _)| *serial)
            .collect();
        for serial in old {
            let place = model.jobs[&serial].place;
            model.count(place).dead -= 1;
            model.delete(serial);
        }
        model.producers.retain(|_, producer| {
            if producer.timer > now.wall {
                return true;
            }
            producer.timer = producer.at.plus(DAY);
            producer.timer > now.wall
        });
        let mut late: Vec<_> = model
            .jobs
            .iter()
            .filter_map(|(serial, job)| Some((job.lease?, *serial)))
            .filter(|(lease, _)| lease.deadline <= now.mono)
            .collect();
        late.sort_unstable_by_key(|(lease, _)| (lease.deadline, lease.number));
        for (lease, serial) in late {
            let job = model.jobs[&serial].id;
            model.end_lease(serial);
            model.fail(serial, now, None);
            let session = model.sessions.get_mut(&lease.session).unwrap();
            session.lost.push(LeaseRef {
                job,
                lease: lease.number,
            });
        }
        self.lose_first(now)
    }

    fn lose_first(&mut self, now: Now) -> Vec<u64> {
        loop {
            let model = &mut self.model;
            let mut checks: Vec<_> = model
                .sessions
                .iter()
                .filter(|(_, session)| session.check <= now.mono)
                .map(|(id, session)| (session.check, *id))
                .collect();
            checks.sort_unstable();
            let Some((_, id)) = checks.first().copied() else {
                return Vec::new();
            };
            let (waits, held) = (model.waits(id), model.leases_of(id));
            let session = model.sessions.get_mut(&id).unwrap();
            let end = session.seen.plus(TTL);
            if end > now.mono {
                session.check = end;
                continue;
            }
            let waits = waits && session.is_connected && held.is_empty();
            let is_stalled = !session.is_forgiven && now.mono.since(end).0 > TTL.0 / 3;
            if waits || is_stalled {
                session.is_forgiven = is_stalled;
                session.seen = now.mono;
                session.check = now.mono.plus(TTL);
                continue;
            }
            model.sessions.remove(&id);
            let mut delayed = Vec::new();
            for serial in held.into_iter().rev() {
                model.end_lease(serial);
                let job = model.jobs.get_mut(&serial).unwrap();
                job.losses += 1;
                job.in_row += 1;
                job.errors += 1;
                let (place, in_row) = (job.place, job.in_row);
                model.count(place).lost += 1;
                match in_row {
                    1 => model.ready_front(serial),
                    2..5 => {
                        model.schedule(serial, now.wall);
                        delayed.push(serial);
                    }
                    _ => model.close_as_dead(serial, now),
                }
            }
            return delayed;
        }
    }

    /// Takes the engine's random delay of a lost job, when it is within its range.
    fn learn_delay(&mut self, serial: u64) {
        let now = self.world.now.wall;
        let Some(job) = self.model.jobs.get(&serial).cloned() else {
            return;
        };
        let view = self
            .world
            .within(NAMESPACES[job.place.0], |world| world.look(job.id))
            .unwrap();
        let delay = view.run_at.unwrap().since(now).0;
        let base = 10_000 << (job.in_row - 2);
        assert!(
            (base / 2..=base * 3 / 2).contains(&delay),
            "{delay} of {base}"
        );
        self.model.jobs.get_mut(&serial).unwrap().run_at = view.run_at;
    }

    // What clients do.

    fn specs(&mut self, jobs: &[NewJob]) -> Vec<JobSpec> {
        let now = self.world.now.wall;
        let specs = jobs.iter().map(|new| {
            self.serials += 1;
            let mut payload = self.serials.to_string().into_bytes();
            if new.spilled {
                payload.resize(12_000, b' ');
            }
            JobSpec {
                queue: QUEUES[usize::from(new.queue) % 3].parse().unwrap(),
                priority: Some([5, 5, 9, 0, 10][usize::from(new.priority) % 5]),
                delay_ms: [0, 0, 1, 30_000]
                    .get(usize::from(new.delay) % 4)
                    .map(|ms| DurationMs(*ms)),
                max_attempts: Some(u32::from(new.max_attempts) % 4 + 1),
                timeout_ms: Some(DurationMs(
                    [20_000, 5_000_000][usize::from(new.timeout) % 2],
                )),
                backoff: Some(Box::new(RetryPolicy::fixed(DurationMs(1_000)))),
                expires_at: [None, None, None, None, Some(1), Some(700), Some(21_000)]
                    [usize::from(new.expires) % 7]
                    .map(|ms| now.plus(DurationMs(ms))),
                unique: unique(new.unique).map(Box::new),
                ..JobSpec::new(kind(), Bytes::from(payload))
            }
        });
        specs.collect()
    }

    fn push(&mut self, namespace: usize, jobs: &[NewJob], as_producer: Option<(Producer, u64)>) {
        let specs = self.specs(jobs);
        let push = Push {
            jobs: specs.clone(),
            atomic: false,
            spread_ms: None,
            by: None,
            seq: as_producer.map(|(_, seq)| seq),
        };
        let producer = as_producer.map(|(producer, _)| producer);
        let results = self.world.within(NAMESPACES[namespace], |world| {
            world.push_as(producer, push).unwrap()
        });
        self.take_in(namespace, &specs, &results);
        if let Some((producer, seq)) = as_producer {
            self.keep(producer.number.0, seq, &results);
        }
    }

    fn take_in(&mut self, namespace: usize, specs: &[JobSpec], results: &[PushResult]) {
        assert_eq!(specs.len(), results.len());
        let now = self.world.now.wall;
        for (spec, result) in specs.iter().zip(results) {
            if spec.priority == Some(10) {
                assert!(result.id.is_none(), "{result:?}");
                continue;
            }
            let unique = spec.unique.as_deref();
            let key = unique.map(|unique| (key_number(unique), unique.until));
            let holder = key.and_then(|(key, _)| self.model.holder(namespace, key, now));
            if let (Some(unique), Some(holder)) = (unique, holder) {
                self.meet_holder(holder, spec, unique, result);
                continue;
            }
            assert!(!result.existing, "nobody holds the key: {result:?}");
            let id = result.id.unwrap_or_else(|| panic!("{result:?}"));
            assert_eq!(self.model.job_of(id), None, "I6: an id is given twice");
            let queue = QUEUES.iter().position(|name| *name == spec.queue.as_str());
            let place = (namespace, queue.unwrap());
            let serial = serial_of(&spec.payload);
            let delay = spec.delay_ms.unwrap();
            self.model.made.insert(place);
            self.model.count(place).pushed += 1;
            let job = Job {
                id,
                place,
                priority: spec.priority.unwrap(),
                state: JobState::Ready,
                run_at: None,
                is_moved: false,
                closed_at: None,
                lease: None,
                attempt: 0,
                failures: 0,
                losses: 0,
                in_row: 0,
                releases: 0,
                errors: 0,
                max_attempts: spec.max_attempts.unwrap(),
                backoff: spec.backoff.as_ref().unwrap().base_ms,
                timeout: spec.timeout_ms.unwrap(),
                expires_at: spec.expires_at,
                unique: key,
                cursor: 0,
            };
            if let (Some((key, _)), Some(ttl)) = (key, unique.and_then(|it| it.ttl_ms)) {
                let throttle = (id, now.plus(ttl));
                self.model.throttles.insert((namespace, key), throttle);
            }
            self.model.jobs.insert(serial, job);
            match delay {
                DurationMs::ZERO => self.model.ready_back(serial),
                delay => self.model.schedule(serial, now.plus(delay)),
            }
        }
        // A queue that was made lets older fetches stand in it.
        let made: Vec<Place> = self.model.made.iter().copied().collect();
        for waiter in self.model.waiters.values_mut() {
            let namespace = self.model.sessions[&waiter.session].namespace;
            if waiter.queues.first() == Some(&(9, 9)) {
                let all = made.iter().filter(|place| place.0 == namespace);
                waiter.queues = [(9, 9)].into_iter().chain(all.copied()).collect();
            }
        }
    }

    /// A push found its key held.
    fn meet_holder(&mut self, holder: JobId, spec: &JobSpec, unique: &Unique, result: &PushResult) {
        let now = self.world.now.wall;
        if unique.on_conflict == OnConflict::Reject {
            let error = result.err.as_ref().unwrap_or_else(|| panic!("{result:?}"));
            assert_eq!(error.code, ErrorCode::Conflict);
            return;
        }
        assert_eq!((result.id, result.existing), (Some(holder), true), "I11");
        let serial = self.model.job_of(holder);
        let waiting = serial.filter(|serial| self.model.jobs[serial].waits());
        let is_replaced = unique.on_conflict == OnConflict::Replace && waiting.is_some();
        assert_eq!(result.replaced, is_replaced, "{result:?}");
        if let Some(serial) = waiting.filter(|_| is_replaced) {
            let mut job = self.model.withdraw(serial);
            job.cursor = 0;
            let serial = serial_of(&spec.payload);
            self.model.jobs.insert(serial, job);
            match spec.delay_ms.unwrap() {
                DurationMs::ZERO => self.model.ready_back(serial),
                delay => self.model.schedule(serial, now.plus(delay)),
            }
        }
    }

    fn push_numbered(&mut self, number: u8, back: u16, jobs: &[NewJob]) {
        let number = u64::from(number);
        let producer = Producer {
            number: ProducerNumber(number),
            made_at: BEGIN,
        };
        let namespace = usize::try_from(number).unwrap();
        let outcomes = self.model.producers.get(&number);
        let newest = outcomes.map_or(0, |outcomes| outcomes.newest);
        // 0…3 is a new one, with a gap perhaps; the rest is sent again.
        let seq = match back {
            0..4 => newest + 1 + u64::from(back) * 100,
            back => newest.saturating_sub(u64::from(back) - 4).max(1),
        };
        let expected = match outcomes {
            None if self.world.now.wall.since(BEGIN) >= DAY => Err(ErrorCode::UnknownProducer),
            None => Ok(None),
            Some(_) if seq > newest => Ok(None),
            Some(outcomes) => match outcomes.slots.get(&(seq % 256)) {
                Some((kept, results)) if *kept == seq => Ok(Some(results.clone())),
                Some((kept, _)) if *kept > seq => Err(ErrorCode::SequenceExpired),
                Some(_) | None if seq + 256 <= newest => Err(ErrorCode::SequenceExpired),
                Some(_) | None => Ok(None),
            },
        };
        if expected == Ok(None) {
            self.push(namespace, jobs, Some((producer, seq)));
            return;
        }
        let push = Push {
            jobs: self.specs(jobs),
            atomic: false,
            spread_ms: None,
            by: None,
            seq: Some(seq),
        };
        let answered = self.world.within(NAMESPACES[namespace], |world| {
            world.push_as(Some(producer), push)
        });
        match (answered, expected) {
            (Ok(results), Ok(Some(kept))) => {
                let brief = |results: &[PushResult]| -> Vec<_> {
                    let results = results.iter();
                    results
                        .map(|result| {
                            let code = result.err.as_ref().map(|error| error.code);
                            (result.id, result.existing, result.replaced, code)
                        })
                        .collect()
                };
                assert_eq!(brief(&results), brief(&kept), "I3");
            }
            (Err(error), Err(code)) => assert_eq!(error.code, code),
            (answered, expected) => panic!("{answered:?}, not {expected:?}"),
        }
    }

    fn keep(&mut self, producer: u64, seq: u64, results: &[PushResult]) {
        if results.iter().all(|result| result.id.is_none()) {
            return;
        }
        let now = self.world.now.wall;
        let fresh = Outcomes {
            timer: now.plus(DAY),
            ..Outcomes::default()
        };
        let outcomes = self.model.producers.entry(producer).or_insert(fresh);
        outcomes.newest = outcomes.newest.max(seq);
        outcomes.at = now;
        outcomes.slots.insert(seq % 256, (seq, results.to_vec()));
    }

    fn worker(&self, nth: u8) -> Option<SessionId> {
        let ids: Vec<_> = self.model.sessions.keys().copied().collect();
        let nth = usize::from(nth).checked_rem(ids.len())?;
        ids.get(nth).copied()
    }

    /// A worker that says something, and so lives.
    fn speaker(&mut self, nth: u8) -> Option<(SessionId, usize)> {
        let id = self.worker(nth)?;
        let now = self.world.now.mono;
        let session = self.model.sessions.get_mut(&id)?;
        session.seen = now;
        session.is_forgiven = false;
        Some((id, session.namespace))
    }

    /// The same, when there is something to answer.
    fn answerer(&mut self, nth: u8, pairs: &[(JobId, LeaseId)]) -> Option<(SessionId, usize)> {
        pairs.first()?;
        self.speaker(nth)
    }

    fn send(&mut self, id: SessionId, namespace: usize, operation: Operation) -> Caller {
        self.world.within(NAMESPACES[namespace], |world| {
            world.send(Some(id), operation)
        })
    }

    fn open(&mut self, namespace: usize) {
        let id = self.world.within(NAMESPACES[namespace], World::worker);
        let now = self.world.now.mono;
        let session = Session {
            namespace,
            is_connected: true,
            seen: now,
            check: now.plus(TTL),
            is_forgiven: false,
            lost: Vec::new(),
        };
        let before = self.model.sessions.insert(id, session);
        assert!(before.is_none(), "I6: a session is given twice");
    }

    fn resume(&mut self, nth: u8, mask: u8) {
        let Some((id, namespace)) = self.speaker(nth) else {
            return;
        };
        let mut held = Vec::new();
        let mut dropped = Vec::new();
        for (nth, serial) in self.model.leases_of(id).into_iter().enumerate() {
            let job = &self.model.jobs[&serial];
            match mask & (1 << (nth % 8)) {
                0 => dropped.push(serial),
                _ => held.push(LeaseRef {
                    job: job.id,
                    lease: job.lease.unwrap().number,
                }),
            }
        }
        let unknown: Vec<LeaseRef> = self
            .known
            .iter()
            .map(|known| LeaseRef {
                job: known.job,
                lease: known.lease,
            })
            .filter(|lease| {
                let live = self
                    .model
                    .job_of(lease.job)
                    .and_then(|it| self.model.jobs[&it].lease);
                live.is_none_or(|live| live.number != lease.lease || live.session != id)
            })
            .take(2)
            .collect();
        let all: Vec<_> = held.iter().chain(&unknown).copied().collect();
        let opened = self
            .world
            .within(NAMESPACES[namespace], |world| world.resume(id, &all));
        assert_eq!((opened.id, &opened.lost), (id, &unknown));
        for serial in dropped.into_iter().rev() {
            self.model.release(serial, None);
        }
        let session = self.model.sessions.get_mut(&id).unwrap();
        session.is_connected = true;
        session.lost.clear();
    }

    fn goodbye(&mut self, nth: u8) {
        let Some((id, namespace)) = self.speaker(nth) else {
            return;
        };
        self.world
            .within(NAMESPACES[namespace], |world| world.goodbye(id));
        for serial in self.model.leases_of(id).into_iter().rev() {
            self.model.release(serial, None);
        }
        self.model.sessions.remove(&id);
    }

    fn heartbeat(&mut self, nth: u8) {
        let Some((id, namespace)) = self.speaker(nth) else {
            return;
        };
        let caller = self.send(id, namespace, Operation::Heartbeat(Heartbeat {}));
        let lost = std::mem::take(&mut self.model.sessions.get_mut(&id).unwrap().lost);
        match self.world.reply(caller).unwrap().result {
            Ok(ReplyBody::Heartbeat(reply)) => assert_eq!(reply.lost, lost),
            other => panic!("{other:?}"),
        }
    }

    fn fetch(&mut self, nth: u8, queues: u8, max: u32, waits: bool, acks: &[Pick], fails: &[Pick]) {
        let Some((id, namespace)) = self.speaker(nth) else {
            return;
        };
        let names: &[&str] =
            [&["a", "b"][..], &["c", "a"], &["*"], &["b", "*"]][usize::from(queues) % 4];
        let places: Vec<Place> = match names {
            ["*"] | ["b", "*"] => {
                let mut all: Vec<Place> = self.model.made.iter().copied().collect();
                all.retain(|place| place.0 == namespace);
                all.sort_by_key(|place| (names.len() == 1 || place.1 != 1, place.1));
                [(9, 9)].into_iter().chain(all).collect()
            }
            names => {
                let queue = |name: &&str| QUEUES.iter().position(|queue| queue == name).unwrap();
                names.iter().map(|name| (namespace, queue(name))).collect()
            }
        };
        let acks = self.picked(acks);
        let fails = self.picked(fails);
        let fetch = Fetch {
            queues: names.iter().map(|name| name.parse().unwrap()).collect(),
            max,
            wait_ms: DurationMs(if waits { 10_000 } else { 0 }),
            acks: acks
                .iter()
                .map(|(job, lease)| ack_item(*job, *lease))
                .collect(),
            fails: fails
                .iter()
                .map(|(job, lease)| fail_item(*job, *lease))
                .collect(),
            ..Fetch::default()
        };
        let carries = !acks.is_empty() || !fails.is_empty();
        let caller = self.send(id, namespace, Operation::Fetch(fetch));
        let acked: Vec<_> = acks
            .iter()
            .map(|pair| self.expect_ack(namespace, *pair))
            .collect();
        let failed: Vec<_> = fails
            .iter()
            .map(|pair| self.expect_fail(namespace, *pair, 0))
            .collect();
        self.model.expire_due(self.world.now.wall);
        let expected = self.model.expected(&places, max as usize);
        let Some(reply) = self.world.reply(caller) else {
            assert!(expected.is_empty() && max > 0 && (waits || carries));
            let waiter = Waiter {
                session: id,
                queues: places,
                deadline: (!carries).then(|| self.world.now.mono.plus(DurationMs(10_000))),
                after: carries.then(|| self.own_group()),
            };
            self.model.waiters.insert(caller, waiter);
            return;
        };
        let after = reply.after;
        match reply.result {
            Ok(ReplyBody::Fetch(reply)) => {
                check_results(&reply.acks, &acked);
                check_results(&reply.fails, &failed);
                let got: Vec<u64> = reply
                    .jobs
                    .iter()
                    .map(|job| serial_of(&job.payload))
                    .collect();
                assert_eq!(got, expected, "I16");
                self.grant(id, &reply, after);
            }
            Err(error) => assert_eq!(error.code, ErrorCode::Overloaded),
            other => panic!("{other:?}"),
        }
    }

    /// The group with which everything so far is durable.
    fn own_group(&self) -> GroupNumber {
        let engine = &self.world.engine;
        GroupNumber(engine.open_group().0 - u64::from(!engine.has_changes()))
    }

    fn grant(&mut self, session: SessionId, reply: &FetchReply, after: GroupNumber) {
        let now = self.world.now;
        for job in &reply.jobs {
            let serial = serial_of(&job.payload);
            let place = self.model.jobs[&serial].place;
            assert_eq!(self.model.next_of(place), Some(serial), "I16: {job:?}");
            assert!(!self.model.paused.contains(&place), "I18");
            assert!(job.lease > self.highest_lease, "I6: {job:?}");
            self.highest_lease = job.lease;
            let of_model = self.model.jobs.get_mut(&serial).unwrap();
            assert_eq!(of_model.id, job.id, "I2");
            assert_eq!(job.cursor, cursor(of_model.cursor), "{of_model:?}");
            of_model.state = JobState::Leased;
            of_model.attempt += 1;
            assert_eq!(
                (job.attempt, job.failures),
                (of_model.attempt, of_model.failures)
            );
            of_model.lease = Some(Lease {
                number: job.lease,
                session,
                deadline: now.mono.plus(of_model.timeout),
                deadline_wall: now.wall.plus(of_model.timeout),
            });
            let lane = self
                .model
                .ready
                .get_mut(&(place, of_model.priority))
                .unwrap();
            lane.pop_front();
            let counters = self.model.count(place);
            counters.ready -= 1;
            counters.leased += 1;
            counters.granted += 1;
            self.known.push(Known {
                after,
                job: job.id,
                lease: job.lease,
            });
        }
    }

    /// Replies to fetches that have waited.
    fn take_replies(&mut self) {
        for reply in std::mem::take(&mut self.world.replies) {
            self.model.expire_due(self.world.now.wall);
            let waiter = self.model.waiters.remove(&reply.caller);
            let waiter = waiter.unwrap_or_else(|| panic!("nobody asked for {reply:?}"));
            // Nobody needs to say anything while it waits without leases.
            let is_idle = self.model.leases_of(waiter.session).is_empty();
            if waiter.deadline.is_some()
                && is_idle
                && let Some(session) = self.model.sessions.get_mut(&waiter.session)
                && session.is_connected
            {
                session.seen = self.world.now.mono;
            }
            let Ok(ReplyBody::Fetch(body)) = reply.result else {
                panic!("{:?}", reply.result);
            };
            if let Some(first) = body.jobs.first() {
                let place = self.model.jobs[&serial_of(&first.payload)].place;
                assert!(waiter.queues.contains(&place));
                let mut older = self.model.waiters.range(..);
                let is_older = |(caller, other): (&Caller, &Waiter)| {
                    caller.request < reply.caller.request && other.queues.contains(&place)
                };
                assert!(!older.any(is_older), "an older fetch waits for {place:?}");
                self.grant(waiter.session, &body, reply.after);
                continue;
            }
            let is_over = waiter.deadline.is_some_and(|at| at <= self.world.now.mono)
                || waiter
                    .after
                    .is_some_and(|after| after <= self.world.durable);
            let is_ended = self.is_ended(waiter.session, reply.caller);
            assert!(is_over || is_ended, "a wait ends early: {waiter:?}");
        }
    }

    /// Whether the session is gone, or speaks on another connection: its waits end.
    fn is_ended(&self, session: SessionId, caller: Caller) -> bool {
        let known = self.model.sessions.get(&session);
        known.is_none_or(|known| known.seen == self.world.now.mono && caller.request > 0)
    }

    fn picked(&self, picks: &[Pick]) -> Vec<(JobId, LeaseId)> {
        let durable = self.world.durable;
        let known: Vec<_> = self
            .known
            .iter()
            .filter(|known| known.after <= durable)
            .collect();
        let nth = |nth: usize| known.get(nth.checked_rem(known.len())?).copied();
        let pairs = picks.iter().filter_map(|pick| {
            let at = usize::from(pick.nth);
            let at = match pick.recent {
                true => known.len().checked_sub(at % 4 + 1)?,
                false => at,
            };
            let one = nth(at)?;
            let other = nth(at + 1)?;
            let lease = if pick.forged { other.lease } else { one.lease };
            Some((one.job, lease))
        });
        pairs.collect()
    }

    /// What an answer to a lease leads to: the live job, or what its sender is told.
    fn claim(
        &mut self,
        namespace: usize,
        (job, lease): (JobId, LeaseId),
        answer: Answer,
    ) -> Result<u64, LeaseResultBrief> {
        let serial = self.model.job_of(job);
        let of_namespace = serial.filter(|serial| self.model.jobs[serial].place.0 == namespace);
        let live = of_namespace.filter(|serial| {
            let live = self.model.jobs[serial].lease;
            live.is_some_and(|live| live.number == lease)
        });
        if let Some(serial) = live {
            self.model.settled.insert((job, lease), answer);
            return Ok(serial);
        }
        // A pair of another namespace is never known here.
        let is_ours = self.queue_is_in(job.birth().queue, namespace);
        let is_settled = self.model.settled.get(&(job, lease)) == Some(&answer) && is_ours;
        // Restarts skip numbers, so that answers of old leases and new ones share a slot.
        let is_recent = self.highest_lease.0 < small().settled_max as u64;
        let state = of_namespace.map_or_else(
            || "gone".to_owned(),
            |serial| self.model.jobs[&serial].state.to_string(),
        );
        Err(match (is_settled, is_recent) {
            (true, true) => LeaseResultBrief::Already,
            (true, false) => LeaseResultBrief::AlreadyOrLost(state),
            (false, _) => LeaseResultBrief::Lost(state),
        })
    }

    fn queue_is_in(&self, queue: u32, namespace: usize) -> bool {
        let queue = self
            .world
            .engine
            .queues
            .find(crate::records::QueueNumber(queue));
        queue.is_some_and(|queue| queue.record.namespace.as_str() == NAMESPACES[namespace])
    }

    fn expect_ack(&mut self, namespace: usize, pair: (JobId, LeaseId)) -> LeaseResultBrief {
        match self.claim(namespace, pair, Answer::Ack) {
            Err(brief) => brief,
            Ok(serial) => {
                self.model.end_lease(serial);
                let place = self.model.jobs.remove(&serial).unwrap().place;
                self.model.count(place).done += 1;
                LeaseResultBrief::Applied(None)
            }
        }
    }

    fn expect_fail(
        &mut self,
        namespace: usize,
        pair: (JobId, LeaseId),
        how: u8,
    ) -> LeaseResultBrief {
        let now = self.world.now;
        match self.claim(namespace, pair, Answer::Fail) {
            Err(brief) => brief,
            Ok(serial) => {
                self.model.end_lease(serial);
                match how % 4 {
                    0 => self.model.fail(serial, now, None),
                    1 => self.model.fail(serial, now, Some(DurationMs(500))),
                    2 => {
                        let job = self.model.jobs.get_mut(&serial).unwrap();
                        (job.max_attempts, job.in_row) = (job.max_attempts, 0);
                        job.failures += 1;
                        job.errors += 1;
                        let place = job.place;
                        self.model.count(place).failed += 1;
                        self.model.close_as_dead(serial, now);
                    }
                    _ => {
                        let place = self.model.jobs[&serial].place;
                        self.model.count(place).failed += 1;
                        self.model.delete(serial);
                        return LeaseResultBrief::Applied(None);
                    }
                }
                LeaseResultBrief::Applied(Some(self.model.jobs[&serial].state))
            }
        }
    }

    fn results(&mut self, caller: Caller) -> Vec<LeaseResult> {
        match self.world.reply(caller).unwrap().result {
            Ok(ReplyBody::Lease(reply)) => reply.results,
            other => panic!("{other:?}"),
        }
    }

    fn ack(&mut self, nth: u8, picks: &[Pick]) {
        let pairs = self.picked(picks);
        let Some((id, namespace)) = self.answerer(nth, &pairs) else {
            return;
        };
        let leases = pairs.iter().map(|(job, lease)| ack_item(*job, *lease));
        let leases = leases.collect();
        let caller = self.send(id, namespace, Operation::Ack(Ack { leases }));
        let expected: Vec<_> = pairs
            .into_iter()
            .map(|pair| self.expect_ack(namespace, pair))
            .collect();
        check_results(&self.results(caller), &expected);
    }

    fn fail(&mut self, nth: u8, pick: &Pick, how: u8) {
        let pairs = self.picked(std::slice::from_ref(pick));
        let Some((id, namespace)) = self.answerer(nth, &pairs) else {
            return;
        };
        let item = FailItem {
            retry_in_ms: (how % 4 == 1).then_some(DurationMs(500)),
            dead: how % 4 == 2,
            discard: how % 4 == 3,
            backtrace: "x".repeat(if how > 128 { 9_000 } else { 0 }),
            ..fail_item(pairs[0].0, pairs[0].1)
        };
        let leases = vec![item];
        let caller = self.send(id, namespace, Operation::Fail(Fail { leases }));
        let expected = self.expect_fail(namespace, pairs[0], how);
        check_results(&self.results(caller), &[expected]);
    }

    fn release(&mut self, nth: u8, picks: &[Pick], is_delayed: bool) {
        let mut pairs = self.picked(picks);
        pairs.sort_unstable();
        pairs.dedup();
        let Some((id, namespace)) = self.answerer(nth, &pairs) else {
            return;
        };
        let delay_ms = is_delayed.then_some(DurationMs(700));
        let leases = pairs.iter().map(|(job, lease)| ReleaseItem {
            job: *job,
            lease: *lease,
            delay_ms,
        });
        let leases = leases.collect();
        let caller = self.send(id, namespace, Operation::Release(Release { leases }));
        let run_at = delay_ms.map(|delay| self.world.now.wall.plus(delay));
        let mut expected = Vec::new();
        for pair in pairs.into_iter().rev() {
            expected.push(match self.claim(namespace, pair, Answer::Release) {
                Err(brief) => brief,
                Ok(serial) => {
                    self.model.release(serial, run_at);
                    LeaseResultBrief::Applied(Some(self.model.jobs[&serial].state))
                }
            });
        }
        expected.reverse();
        check_results(&self.results(caller), &expected);
    }

    fn extend(&mut self, nth: u8, pick: &Pick) {
        let pairs = self.picked(std::slice::from_ref(pick));
        let Some((id, namespace)) = self.answerer(nth, &pairs) else {
            return;
        };
        let (job, lease) = pairs[0];
        let ms = DurationMs(60_000);
        let leases = vec![ExtendItem { job, lease, ms }];
        let caller = self.send(id, namespace, Operation::Extend(Extend { leases }));
        let result = self.results(caller).remove(0);
        let now = self.world.now;
        let serial = self.model.job_of(job);
        let live = serial.and_then(|serial| {
            let job = self.model.jobs.get_mut(&serial)?;
            let place = job.place;
            let live = job.lease.as_mut()?;
            (live.number == lease && place.0 == namespace).then_some(live)
        });
        let Some(live) = live else {
            let state = serial
                .map(|serial| &self.model.jobs[&serial])
                .filter(|job| job.place.0 == namespace)
                .map_or_else(|| "gone".to_owned(), |job| job.state.to_string());
            check_results(&[result], &[LeaseResultBrief::Lost(state)]);
            return;
        };
        if now.mono.plus(ms) > live.deadline {
            live.deadline = now.mono.plus(ms);
            live.deadline_wall = now.wall.plus(ms);
        }
        assert_eq!(result.timeout_ms, Some(live.deadline.since(now.mono)));
    }

    fn progress(&mut self, nth: u8, pick: &Pick, at: u8) {
        let pairs = self.picked(std::slice::from_ref(pick));
        let Some((id, namespace)) = self.answerer(nth, &pairs) else {
            return;
        };
        let (job, lease) = pairs[0];
        let leases = vec![ProgressItem {
            cursor: cursor(at).or(Some(Bytes::new())),
            ..ProgressItem::of(job, lease)
        }];
        let caller = self.send(id, namespace, Operation::Progress(Progress { leases }));
        let result = self.results(caller).remove(0);
        let serial = self.model.job_of(job);
        let known = serial.and_then(|serial| self.model.jobs.get_mut(&serial));
        let known = known.filter(|known| known.place.0 == namespace);
        let brief = match known {
            Some(known) if known.lease.is_some_and(|live| live.number == lease) => {
                known.cursor = at;
                known.in_row = 0;
                LeaseResultBrief::Applied(None)
            }
            Some(known) => LeaseResultBrief::Lost(known.state.to_string()),
            None => LeaseResultBrief::Lost("gone".to_owned()),
        };
        check_results(&[result], &[brief]);
    }

    fn change_dead(&mut self, namespace: u8, queue: u8, limit: u8, is_revival: bool) {
        let place = (usize::from(namespace) % 2, usize::from(queue) % 3);
        if !self.model.made.contains(&place) {
            return;
        }
        let mut dead: Vec<_> = self
            .model
            .jobs
            .iter()
            .filter(|(_, job)| job.place == place && job.state == JobState::Dead)
            .map(|(serial, job)| (job.closed_at, job.id, *serial))
            .collect();
        dead.sort_unstable();
        let select = match limit % 4 {
            0 if !dead.is_empty() => DeadSelect {
                jobs: dead.iter().take(3).map(|(_, id, _)| *id).collect(),
                ..DeadSelect::default()
            },
            limit => DeadSelect {
                queue: Some(QUEUES[place.1].parse().unwrap()),
                limit: Some(u32::from(limit) + 1),
                ..DeadSelect::default()
            },
        };
        let limit = select.limit.unwrap_or(3) as usize;
        let selected = dead.len().min(limit) as u64;
        let has_more = select.queue.is_some() && dead.len() > limit;
        let reply = self
            .world
            .within(NAMESPACES[place.0], |world| match is_revival {
                true => world.revive(select),
                false => world.purge(select),
            });
        assert_eq!(reply.count + reply.conflicts.len() as u64, selected);
        assert_eq!(reply.more, has_more);
        for (_, id, serial) in dead.into_iter().take(limit) {
            let is_kept = is_revival && self.stays_dead(serial);
            assert_eq!(reply.conflicts.contains(&id), is_kept, "I11");
            if is_kept {
                continue;
            }
            self.model.count(place).dead -= 1;
            if is_revival {
                let job = self.model.jobs.get_mut(&serial).unwrap();
                job.failures = 0;
                job.in_row = 0;
                job.closed_at = None;
                self.model.ready_back(serial);
            } else {
                self.model.delete(serial);
            }
        }
    }

    /// Whether a dead job cannot be revived: its key is another's, or its time has passed.
    fn stays_dead(&self, serial: u64) -> bool {
        let (job, now) = (&self.model.jobs[&serial], self.world.now.wall);
        let is_taken = match job.unique {
            Some((key, UniqueUntil::Settled)) => self.model.holder(job.place.0, key, now).is_some(),
            Some(_) | None => false,
        };
        is_taken || job.expires_at.is_some_and(|at| at <= now)
    }

    fn pause(&mut self, namespace: u8, queue: u8, is_pause: bool) {
        let place = (usize::from(namespace) % 2, usize::from(queue) % 3);
        if !self.model.made.contains(&place) {
            return;
        }
        let name = QUEUES[place.1];
        self.world
            .within(NAMESPACES[place.0], |world| match is_pause {
                true => world.pause(name),
                false => world.unpause(name),
            });
        match is_pause {
            true => self.model.paused.insert(place),
            false => self.model.paused.remove(&place),
        };
    }

    // What must agree.

    fn compare_counters(&mut self) {
        for place in self.model.made.clone() {
            let counters = self
                .world
                .within(NAMESPACES[place.0], |world| world.counters(QUEUES[place.1]));
            assert_eq!(counters, *self.model.count(place), "{place:?}");
        }
    }

    fn compare_jobs(&mut self) {
        for (serial, job) in self.model.jobs.clone() {
            let view = self
                .world
                .within(NAMESPACES[job.place.0], |world| world.look(job.id));
            let view = view.unwrap_or_else(|| panic!("I1: {job:?} is gone"));
            assert_eq!(serial_of(&view.payload), serial, "I2");
            assert_eq!(view.state, job.state, "{job:?}");
            assert_eq!((view.run_at, view.closed_at), (job.run_at, job.closed_at));
            assert_eq!(view.expires_at, job.expires_at);
            assert_eq!(view.cursor, cursor(job.cursor));
            assert_eq!(view.lease, job.lease.map(|lease| lease.number));
            assert_eq!((view.attempt, view.failures), (job.attempt, job.failures));
            assert_eq!((view.losses, view.releases), (job.losses, job.releases));
            assert_eq!(view.errors.len(), job.errors.min(10) as usize, "{job:?}");
        }
    }

    /// Whatever there is gets done; nothing is left.
    fn drain(&mut self) {
        for (namespace, queue) in self.model.made.clone() {
            self.pause(byte(namespace), byte(queue), false);
        }
        self.take_replies();
        for namespace in [0, 1] {
            self.open(namespace);
        }
        for round in 0.. {
            assert!(round < 2000, "I17: {:?}", self.model.jobs);
            self.world.now.wall = self.world.now.wall.max(self.model.head_wall);
            self.tick();
            for nth in 0..byte(self.model.sessions.len()) {
                self.fetch(nth, 2, 5, false, &[], &[]);
                self.take_replies();
            }
            self.seal();
            self.sync();
            for known in std::mem::take(&mut self.known) {
                let pair = (known.job, known.lease);
                let Some(serial) = self.model.job_of(known.job) else {
                    continue;
                };
                let namespace = self.model.jobs[&serial].place.0;
                let sessions = self.model.sessions.iter();
                let mut ours = sessions.filter(|(_, session)| session.namespace == namespace);
                let id = *ours.next().unwrap().0;
                let leases = vec![ack_item(pair.0, pair.1)];
                let caller = self.send(id, namespace, Operation::Ack(Ack { leases }));
                let expected = self.expect_ack(namespace, pair);
                check_results(&self.results(caller), &[expected]);
            }
            for (namespace, queue) in self.model.made.clone() {
                self.change_dead(byte(namespace), byte(queue), 3, false);
            }
            for session in 0..byte(self.model.sessions.len()) {
                self.heartbeat(session);
            }
            self.compare_counters();
            if self.model.jobs.is_empty() {
                break;
            }
            self.live(DurationMs(5_000));
        }
        while !self.model.sessions.is_empty() {
            self.goodbye(0);
            self.take_replies();
        }
        self.seal();
        self.sync();
        self.tick();
        self.seal();
        self.world.store.check_empty();
        assert_eq!(self.world.store.sessions(), 0);
        self.sync();
        // Nothing stays in memory either.
        self.world.engine.check_drained().unwrap();
        let now = &mut self.world.now.wall;
        *now = now.plus(DAY.times(2));
        self.tick();
        self.seal();
        assert_eq!(self.world.store.outcomes(), 0);
        assert_eq!(self.world.store.timers.len(), 0);
        assert_eq!(self.world.store.locks.len(), 0, "I11");
    }
}

#[derive(Debug, Clone, PartialEq)]
enum LeaseResultBrief {
    Applied(Option<JobState>),
    Already,
    /// It may be forgotten already.
    AlreadyOrLost(String),
    Lost(String),
}

#[track_caller]
fn check_results(results: &[LeaseResult], expected: &[LeaseResultBrief]) {
    let brief = |result: &LeaseResult| match (&result.err, result.already) {
        (Some(error), _) => {
            assert_eq!(error.code, ErrorCode::LeaseLost);
            LeaseResultBrief::Lost(error.state.clone().unwrap())
        }
        (None, true) => LeaseResultBrief::Already,
        (None, false) => LeaseResultBrief::Applied(result.state),
    };
    assert_eq!(results.len(), expected.len());
    for (result, expected) in results.iter().map(brief).zip(expected) {
        let is_forgotten = match expected {
            LeaseResultBrief::AlreadyOrLost(state) => {
                result == LeaseResultBrief::Already
                    || result == LeaseResultBrief::Lost(state.clone())
            }
            _ => false,
        };
        assert!(
            is_forgotten || result == *expected,
            "{result:?}, not {expected:?}"
        );
    }
}

fn byte(small: usize) -> u8 {
    u8::try_from(small).unwrap()
}

/// Where an attempt stands; every fourth is long.
fn cursor(at: u8) -> Option<Bytes> {
    let bytes = if at.is_multiple_of(4) { 11_000 } else { 1 };
    (at > 0).then(|| vec![at; bytes].into())
}

/// One of few keys, with one of all ways to hold it and to meet its holder; mostly none.
fn unique(number: u8) -> Option<Unique> {
    let (key, rest) = (number % 8, number / 8);
    let until = [
        UniqueUntil::Start,
        UniqueUntil::Success,
        UniqueUntil::Settled,
        UniqueUntil::Ttl,
    ][usize::from(rest) % 4];
    let on_conflict = [
        OnConflict::Reject,
        OnConflict::Existing,
        OnConflict::Replace,
    ];
    (key < 4).then(|| Unique {
        until,
        ttl_ms: (until == UniqueUntil::Ttl).then_some(DurationMs(15_000)),
        on_conflict: on_conflict[usize::from(rest / 4) % 3],
        ..Unique::named(key.to_string().parse().unwrap())
    })
}

fn key_number(unique: &Unique) -> u8 {
    unique.key.as_ref().unwrap().as_str().parse().unwrap()
}

fn serial_of(payload: &[u8]) -> u64 {
    std::str::from_utf8(payload)
        .unwrap()
        .trim()
        .parse()
        .unwrap()
}

fn new_jobs() -> impl Strategy<Value = Vec<NewJob>> {
    let job = (any::<[u8; 6]>(), any::<u8>(), prop::bool::weighted(0.1)).prop_map(
        |([queue, priority, delay, max_attempts, expires, unique], timeout, spilled)| NewJob {
            queue,
            priority,
            delay,
            max_attempts,
            timeout,
            spilled,
            expires,
            unique,
        },
    );
    prop_oneof![
        4 => prop::collection::vec(job.clone(), 1..4),
        1 => prop::collection::vec(job, 20..60),
    ]
}

fn pick() -> impl Strategy<Value = Pick> {
    (
        any::<u8>(),
        prop::bool::weighted(0.7),
        prop::bool::weighted(0.1),
    )
        .prop_map(|(nth, recent, forged)| Pick {
            nth,
            recent,
            forged,
        })
}

fn op() -> impl Strategy<Value = Op> {
    let picks = || prop::collection::vec(pick(), 1..4);
    let few = || prop::collection::vec(pick(), 0..2);
    prop_oneof![
        8 => (any::<u8>(), new_jobs()).prop_map(|(namespace, jobs)| Op::Push(namespace, jobs)),
        3 => (any::<u8>(), prop_oneof![0..6_u16, 0..300_u16], new_jobs())
            .prop_map(|(producer, back, jobs)| Op::Numbered(producer, back, jobs)),
        3 => any::<u8>().prop_map(Op::Open),
        2 => any::<(u8, u8)>().prop_map(|(worker, mask)| Op::Resume(worker, mask)),
        1 => any::<u8>().prop_map(Op::Detach),
        1 => any::<u8>().prop_map(Op::Goodbye),
        3 => any::<u8>().prop_map(Op::Heartbeat),
        16 => (any::<[u8; 3]>(), prop::bool::weighted(0.4), few(), few()).prop_map(
            |([worker, queues, max], waits, acks, fails)| Op::Fetch {
                worker,
                queues,
                max,
                waits,
                acks,
                fails,
            }
        ),
        6 => (any::<u8>(), picks()).prop_map(|(worker, picks)| Op::Ack(worker, picks)),
        5 => (any::<u8>(), pick(), any::<u8>())
            .prop_map(|(worker, pick, how)| Op::Fail(worker, pick, how)),
        4 => (any::<u8>(), picks(), any::<bool>())
            .prop_map(|(worker, picks, delayed)| Op::Release(worker, picks, delayed)),
        2 => (any::<u8>(), pick()).prop_map(|(worker, pick)| Op::Extend(worker, pick)),
        3 => (any::<u8>(), pick(), 0_u8..9)
            .prop_map(|(worker, pick, cursor)| Op::Progress(worker, pick, cursor)),
        2 => any::<[u8; 3]>().prop_map(|[namespace, queue, limit]| {
            Op::Revive(namespace, queue, limit)
        }),
        1 => any::<[u8; 3]>().prop_map(|[namespace, queue, limit]| {
            Op::Purge(namespace, queue, limit)
        }),
        2 => any::<(u8, u8, bool)>().prop_map(|(namespace, queue, is_pause)| {
            Op::Pause(namespace, queue, is_pause)
        }),
        4 => prop_oneof![Just(1), Just(999), 1..40_000_u32, Just(130_000)].prop_map(Op::Live),
        1 => (1..60_000_u32).prop_map(Op::Stall),
        1 => prop_oneof![
            Just(-3_600_000),
            Just(3_600_000),
            Just(90_000_000),
            Just(16_000_000_000),
        ]
        .prop_map(Op::Wall),
        8 => Just(Op::Seal),
        8 => Just(Op::Sync),
        2 => any::<u8>().prop_map(Op::Crash),
        1 => Just(Op::Reopen),
    ]
}

/// `PROPTEST_CASES` random cases; `PROPTEST_RNG_SEED` repeats those of a seed that was printed.
fn cases() -> ProptestConfig {
    let number = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seed = number("PROPTEST_RNG_SEED").unwrap_or_else(|| {
        use std::hash::{BuildHasher, Hasher};
        std::hash::RandomState::new().build_hasher().finish()
    });
    println!("PROPTEST_RNG_SEED={seed}");
    ProptestConfig {
        cases: u32::try_from(number("PROPTEST_CASES").unwrap_or(64)).unwrap(),
        rng_seed: RngSeed::Fixed(seed),
        max_shrink_iters: 4_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn the_engine_does_what_the_model_says(
        ops in prop::collection::vec(op(), 1..120).prop_map(Ops),
        is_tiny in any::<bool>(),
    ) {
        let heads = match is_tiny {
            true => HeadBudget { heads_max: 0, bytes_max: 0 },
            false => HeadBudget::default(),
        };
        let mut both = Both::new(Options { heads, ..small() });
        for op in &ops.0 {
            both.run(op);
        }
        both.compare_jobs();
        both.drain();
    }
}
