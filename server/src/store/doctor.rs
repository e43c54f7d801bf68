//! Looks at every record of a closed store, and at whatever it says of another one.
//!
//! Jobs, runs, timers, indexes, leases and counters vouch for each other, the digest for the rest:
//! what is damaged, missing or left over shows in at least one of them. Nothing is changed here,
//! and nothing is held in memory that grows with the backlog. What can be saved of a damaged
//! store is `salvage.rs`'s business.

mod batches;
mod purged;
mod workflows;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};
use ganger_engine::{
    batch,
    keys::{LaneNumbers, hold_lock},
    records::{
        BatchRecord, Bits, BlobKind, Content, CronNumber, Entry, HeadRecord, JobRecord,
        LeaseRecord, LeftRun, POSITION_STEP, PartKey, Place, ProducerNumber, QueueNumber,
        QueueRecord, RunKey, StoredJob, Timer, TimerKind, UniqueKey, UniqueRecord,
    },
    settings::{pause_timer, queue_of_timer},
    unique::{Named, is_held, key_of_timer, ttl_timer},
};
use ganger_protocol::{
    BatchId, JobId, SessionId, Timestamp, batch::BatchCounters, job::JobState, response::Counters,
};

use super::{
    Store, StoreError, bad_key,
    coding::Malformed,
    cron, damaged, describe,
    digest::{self, Digest},
    keys::{Key, Meta, Prefix},
    limit, lock, rebuild, records,
};

/// Findings that are told one by one; the others are only counted.
const FINDINGS_TOLD: usize = 1_000;

/// Rows between two reports of progress.
const PROGRESS_ROWS: u64 = 4_096;

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// With which record; `None`: with the store as a whole.
    pub key: Option<Key>,
    /// What.
    pub what: String,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// Records that were looked at.
    pub records: u64,
    /// Jobs that are kept, by state, as they were counted.
    pub jobs: Counters,
    /// A sum over all records but those of the shard itself: equal for equal contents, wherever
    /// they lie.
    pub digest: u128,
    /// What is wrong, in the order in which it was found; not more than a thousand.
    pub findings: Vec<Finding>,
    /// How much is wrong.
    pub findings_count: u64,
}

impl Health {
    /// Whether nothing is wrong.
    pub fn is_sound(&self) -> bool {
        self.findings_count == 0
    }

    pub(super) fn find(&mut self, key: Option<Key>, what: impl Into<String>) {
        self.findings_count += 1;
        if self.findings.len() < FINDINGS_TOLD {
            self.findings.push(Finding {
                key,
                what: what.into(),
            });
        }
    }
}

/// Looks at a store. `problems` is what opening it has shown already.
pub fn examine(store: &Store, problems: Vec<StoreError>, progress: &mut dyn FnMut(u64)) -> Health {
    let mut examiner = Examiner {
        store,
        lanes: LaneNumbers::new(&store.secret()),
        progress,
        health: Health::default(),
        head: HeadRecord::default(),
        queues: BTreeMap::new(),
        counted: BTreeMap::new(),
        left: HashMap::new(),
        leases: HashMap::new(),
        sessions: HashSet::new(),
        producers: HashSet::new(),
        watched: HashSet::new(),
        members: BTreeMap::new(),
        batches: BTreeMap::new(),
    };
    for problem in problems {
        examiner.health.find(None, describe(&problem));
    }
    // A table that cannot be read any further is the last finding.
    if let Err(error) = examiner.run() {
        examiner.health.find(None, describe(&error));
    }
    examiner.health
}

/// A job as it stands.
struct Standing {
    content: Arc<Content>,
    state: JobState,
    attempt: u32,
    /// The queue that it is in, when it keeps others of its key back.
    holds_key: Option<QueueNumber>,
}

impl Standing {
    /// When it expires, while it waits.
    fn waits_until(&self) -> Option<Timestamp> {
        let waits = matches!(
            self.state,
            JobState::Scheduled | JobState::Blocked | JobState::Ready
        );
        self.content.expires_at.filter(|_| waits)
    }

    /// Its unique key, while it holds it.
    fn held_key(&self, key_of: impl Fn(&Content) -> Option<UniqueKey>) -> Option<UniqueKey> {
        let until = self.content.unique.as_deref()?.until;
        let is_held = is_held(until, self.state, self.attempt);
        is_held.then(|| key_of(&self.content)).flatten()
    }
}

struct Examiner<'a> {
    store: &'a Store,
    lanes: LaneNumbers,
    progress: &'a mut dyn FnMut(u64),
    health: Health,
    head: HeadRecord,
    queues: BTreeMap<QueueNumber, QueueRecord>,
    /// Current counters as the jobs come to.
    counted: BTreeMap<QueueNumber, Counters>,
    /// Entries that left their runs.
    left: HashMap<RunKey, LeftRun>,
    /// Of all that was written about a job's leases the latest.
    leases: HashMap<JobId, (PartKey, LeaseRecord)>,
    sessions: HashSet<SessionId>,
    /// Producers with outcomes, and those of them that a timer looks after.
    producers: HashSet<ProducerNumber>,
    watched: HashSet<ProducerNumber>,
    /// Counters of batches, as their members come to.
    members: BTreeMap<BatchId, BatchCounters>,
    /// Batches that ought to have some of them.
    batches: BTreeMap<BatchId, BatchRecord>,
}

impl Examiner<'_> {
    fn run(&mut self) -> Result<(), StoreError> {
        self.meta()?;
        // First what is small and says something of the others.
        self.each(Prefix::Queue, Self::queue)?;
        self.each(Prefix::Session, Self::session)?;
        self.each(Prefix::Acks, Self::acks)?;
        self.each(Prefix::Leases, Self::lease)?;
        self.each(Prefix::Outcome, Self::outcome)?;
        self.each(Prefix::Left, Self::left)?;
        self.each(Prefix::Run, Self::run_row)?;
        self.each(Prefix::ScheduledRun, Self::run_row)?;
        self.each(Prefix::Job, Self::job)?;
        self.each(Prefix::Batch, Self::batch)?;
        self.compare_batches();
        self.each(Prefix::Cron, Self::cron)?;
        self.each(Prefix::Limit, Self::limit)?;
        self.each(Prefix::Timer, Self::timer)?;
        for producer in self.producers.difference(&self.watched) {
            let key = Key::outcomes(*producer);
            self.health
                .find(Some(key), "no timer looks after its producer");
        }
        self.each(Prefix::Closed, Self::closed)?;
        self.each(Prefix::Blob, Self::blob)?;
        self.each(Prefix::Unique, Self::lock)?;
        self.each(Prefix::Node, Self::node)?;
        self.each(Prefix::Edge, Self::edge)?;
        self.each(Prefix::Wait, Self::edge)?;
        for later in Prefix::ALL
            .into_iter()
            .skip_while(|it| *it != Prefix::Batch)
            .filter(|it| {
                !matches!(it, Prefix::Batch | Prefix::Cron | Prefix::Limit)
                    && !matches!(it, Prefix::ScheduledRun | Prefix::Left)
                    && !is_of_workflows(*it)
            })
        {
            self.each(later, Self::unknown)?;
        }
        self.compare_counters();
        self.compare_digest()
    }

    /// Looks at each row of a kind. What is wrong with a row is a finding; only what keeps the
    /// examiner from going on is an error.
    fn each(
        &mut self,
        prefix: Prefix,
        look: fn(&mut Self, &Key, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let store = self.store;
        store.scan_all(prefix, |key, value| {
            self.health.records += 1;
            self.health.digest = self.health.digest.wrapping_add(digest::hash(key, value));
            if self.health.records.is_multiple_of(PROGRESS_ROWS) {
                (self.progress)(self.health.records);
            }
            let looked = match store.open_record(key, value) {
                Ok((_, body)) => look(self, key, body),
                Err(error) => Err(error),
            };
            self.tolerate(looked)
        })
    }

    /// Turns a damaged record into a finding.
    fn tolerate(&mut self, looked: Result<(), StoreError>) -> Result<(), StoreError> {
        match looked {
            Err(StoreError::Damaged { key, what }) => {
                self.health.find(Some(key), what);
                Ok(())
            }
            looked => looked,
        }
    }

    fn find(&mut self, key: &Key, what: impl Into<String>) {
        self.health.find(Some(*key), what);
    }

    fn meta(&mut self) -> Result<(), StoreError> {
        let key = Key::meta(Meta::Head);
        let head = self.store.read_value(&key)?;
        let has_groups = self.store.durable().0 > 0;
        match head {
            None if has_groups => self.find(&key, "it is missing"),
            None => {}
            Some(value) => {
                let opened = self.store.open_record(&key, &value);
                let head = opened.and_then(|(_, body)| records::head(body).map_err(damaged(&key)));
                match head {
                    Ok(head) => self.head = head,
                    Err(error) => self.tolerate(Err(error))?,
                }
            }
        }
        let known = [Meta::Head, Meta::Made, Meta::Applied, Meta::Digest].map(Key::meta);
        let mut unknown = Vec::new();
        self.store.scan_all(Prefix::Meta, |key, _| {
            unknown.extend((!known.contains(key)).then_some(*key));
            Ok(())
        })?;
        for key in unknown {
            self.find(&key, "nobody knows what it is");
        }
        Ok(())
    }

    fn queue(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let number = key.to_queue().ok_or_else(|| bad_key(key))?;
        let queue = records::queue(number, body).map_err(damaged(key))?;
        if number.0 >= self.head.next_queue {
            self.find(key, "its number was never given");
        }
        if let Some(at) = queue.paused_until {
            let timer = Key::timer(&pause_timer(number, at));
            self.vouched(key, &timer, "the timer that ends its pause")?;
        }
        self.queues.insert(number, queue);
        Ok(())
    }

    fn session(&mut self, key: &Key, _: &[u8]) -> Result<(), StoreError> {
        let (id, part) = key.to_session().ok_or_else(|| bad_key(key))?;
        if part > 0 {
            return Ok(());
        }
        self.sessions.insert(id);
        if let Some((_, body)) = self.store.read_parts(|part| Key::session(id, part))? {
            records::session(id, &body).map_err(damaged(key))?;
        }
        Ok(())
    }

    fn acks(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        super::part_of(key, Prefix::Acks)?;
        for row in records::acks(body).map_err(damaged(key))? {
            let left = self.left.entry(row.run).or_insert(row);
            left.left.extend(&row.left);
            if left.entries != row.entries {
                self.find(key, "it differs from others in the length of a run");
            }
        }
        Ok(())
    }

    fn left(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let run = key.to_left().ok_or_else(|| bad_key(key))?;
        records::left(run, body).map_err(damaged(key))?;
        self.vouched(key, &Key::run(&run), "its run")
    }

    fn lease(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let part = super::part_of(key, Prefix::Leases)?;
        for row in records::leases(body).map_err(damaged(key))? {
            if row.lease.0 >= self.head.reserved {
                self.find(key, "it has a lease whose number was never given");
            }
            let known = self.leases.get(&row.job);
            if known.is_none_or(|(at, known)| (row.lease, part) > (known.lease, *at)) {
                self.leases.insert(row.job, (part, row));
            }
        }
        Ok(())
    }

    fn outcome(&mut self, key: &Key, _: &[u8]) -> Result<(), StoreError> {
        let (producer, part, slot) = key.to_outcome().ok_or_else(|| bad_key(key))?;
        self.producers.insert(producer);
        if part > 0 {
            return Ok(());
        }
        let parts = |part| Key::outcome(producer, slot, part);
        if let Some((_, body)) = self.store.read_parts(parts)? {
            let outcome = records::outcome(producer, &body).map_err(damaged(key))?;
            if outcome.seq % 256 != u64::from(slot) {
                self.find(key, "its sequence belongs into another slot");
            }
        }
        Ok(())
    }

    fn run_row(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let run_key = key.to_run().ok_or_else(|| bad_key(key))?;
        let run = records::run(body).map_err(damaged(key))?;
        let entries = u8::try_from(run.entries.len()).unwrap_or(u8::MAX);
        let left = match run_key.lane.is_scheduled() {
            true => self.known_left(&run_key)?,
            false => self.left.get(&run_key).copied(),
        };
        if left.is_some_and(|left| left.entries != entries) {
            self.find(
                key,
                "what is known of the entries that left it is of another length",
            );
        }
        let given = self.head.position_low..self.head.position_high.saturating_add(POSITION_STEP);
        if !given.contains(&run_key.position) {
            self.find(key, "its position was never given");
        }
        if self.is_purged(run_key.lane.queue) {
            return self.purged_run(run_key, run, left.as_ref());
        }
        for (entry, index) in run.entries.into_iter().zip(0_u8..) {
            if left.is_some_and(|left| left.left.contains(index)) {
                continue;
            }
            let place = Place {
                run: run_key,
                index,
            };
            let at = match entry {
                Entry::Scheduled(at, _) => Some(at),
                Entry::Job(_) | Entry::Reference(_) => None,
            };
            match entry {
                Entry::Job(packed) | Entry::Scheduled(_, packed) => {
                    let job = place.job_id(self.store.shard());
                    if self.store.read_value(&Key::job(&job))?.is_some() {
                        self.find(key, format!("job {job} is here, and has a record as well"));
                    }
                    if packed.spilled_parts > 0 && self.store.spilled(&job)?.is_none() {
                        self.find(key, format!("the content of job {job} is missing"));
                    }
                    let state = match at {
                        Some(at) => {
                            let timer = Timer::run_due(self.store.shard(), run_key, at);
                            let what = format!("the timer of job {job}");
                            self.vouched(key, &Key::timer(&timer), &what)?;
                            JobState::Scheduled
                        }
                        None => self.state_by_lease(key, &job, None),
                    };
                    let lane = at.map_or(run_key.lane.lane, |_| 0);
                    let content = match packed.content {
                        Some(content) => Some(content),
                        None => self.store.spilled(&job)?,
                    };
                    if let Some(content) = content {
                        self.member(content.batch, batch::Standing::of_job(state, 0, 0));
                        self.right_lane(key, &content, run_key.lane.queue, lane);
                        let standing = Standing {
                            content,
                            state,
                            attempt: 0,
                            holds_key: None,
                        };
                        self.promises(key, &job, &standing)?;
                    }
                    self.count(run_key.lane.queue, state);
                }
                Entry::Reference(job) => {
                    let record = self.known_record(&job)?;
                    let is_here = |record: &JobRecord| record.place == Some(place);
                    if !record.is_some_and(|record| is_here(&record)) {
                        self.find(key, format!("job {job} is not where it should be"));
                    }
                }
            }
        }
        Ok(())
    }

    /// What left a scheduled run; a damaged row is found where it lies.
    fn known_left(&self, run: &RunKey) -> Result<Option<LeftRun>, StoreError> {
        match self.store.left_of(run) {
            Err(StoreError::Damaged { .. }) => Ok(None),
            left => left,
        }
    }

    /// The record of a job; a damaged one is found where it lies.
    fn known_record(&self, job: &JobId) -> Result<Option<JobRecord>, StoreError> {
        match self.store.job_record(job, false) {
            Err(StoreError::Damaged { .. }) => Ok(None),
            record => record,
        }
    }

    /// Whether a job that may be granted is leased.
    fn state_by_lease(&mut self, key: &Key, job: &JobId, record: Option<&JobRecord>) -> JobState {
        let Some((_, lease)) = self.leases.get(job) else {
            return JobState::Ready;
        };
        if record.is_some_and(|record| record.settled_lease >= lease.lease) {
            return JobState::Ready;
        }
        if !self.sessions.contains(&lease.session) {
            self.find(key, format!("the session that has job {job} is missing"));
        }
        JobState::Leased
    }

    fn job(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let id = key.to_job().ok_or_else(|| bad_key(key))?;
        let (group, _) = self.store.open_record(key, &self.value(key)?)?;
        let job = records::job(id, group, body).map_err(damaged(key))?;
        if self.is_purged(job.queue) {
            return self.purged_job(key, &job);
        }
        let state = match (job.state, job.place) {
            (JobState::Ready, Some(place)) => {
                self.reference(key, &id, &place)?;
                self.state_by_lease(key, &id, Some(&job))
            }
            (JobState::Ready, None) => {
                self.find(key, "it is ready and nowhere");
                JobState::Ready
            }
            (JobState::Leased, None) => self.state_by_lease(key, &id, Some(&job)),
            (JobState::Leased, Some(_)) => {
                self.find(key, "it is leased and in a lane");
                JobState::Leased
            }
            (JobState::Scheduled, _) => {
                let at = job.run_at.unwrap_or_default();
                self.vouched(key, &timer_key(TimerKind::Due, at, &id), "its timer")?;
                JobState::Scheduled
            }
            (JobState::Blocked, _) => {
                self.waits(key, &job)?;
                JobState::Blocked
            }
            (JobState::Done | JobState::Dead | JobState::Cancelled | JobState::Expired, _) => {
                let closed = ganger_engine::records::Closed {
                    queue: job.queue,
                    state: job.state,
                    at: job.closed_at.unwrap_or_default(),
                    job: id,
                };
                self.vouched(key, &Key::closed(&closed), "its row among the closed jobs")?;
                let end = job.run_at.unwrap_or_default();
                self.vouched(
                    key,
                    &timer_key(TimerKind::Retention, end, &id),
                    "its retention",
                )?;
                job.state
            }
        };
        if let Some(at) = job.cancel_at {
            self.vouched(
                key,
                &timer_key(TimerKind::Cancel, at, &id),
                "the end of its grace",
            )?;
        }
        if job.content.is_none() && self.store.spilled(&id)?.is_none() {
            self.find(key, "its content is missing");
        }
        let content = match &job.content {
            Some(content) => Some(Arc::clone(content)),
            None => self.store.spilled(&id)?,
        };
        self.member_of_record(key, &job, content.as_deref());
        if let Some(content) = content {
            let stands_in = job.place.map_or(0, |place| place.run.lane.lane);
            self.right_lane(key, &content, job.queue, stands_in);
            let attempt = job.attempt;
            let holds_key = job.holds_key.then_some(job.queue);
            let standing = Standing {
                content,
                state,
                attempt,
                holds_key,
            };
            self.promises(key, &id, &standing)?;
        }
        let slots = (0..10_u8).map(|at| (job.error_first + at) % 10);
        for (slot, parts) in slots.zip(&job.error_parts) {
            let parts_key = |part| Key::blob(&id, BlobKind::Error(slot), part);
            match self.store.read_parts(parts_key)? {
                Some((_, body)) => {
                    records::error(&body).map_err(damaged(&parts_key(0)))?;
                }
                None => self.find(
                    key,
                    format!("one of its errors, of {parts} parts, is missing"),
                ),
            }
        }
        for (kind, parts, what) in [
            (BlobKind::Result, job.result_parts, "its result"),
            (BlobKind::Cursor, job.cursor_parts(), "its cursor"),
        ] {
            if parts > 0 && self.store.bytes_of(&id, kind)?.is_none() {
                self.find(key, format!("{what} is missing"));
            }
        }
        self.count(job.queue, state);
        Ok(())
    }

    /// A job that holds a unique key has its lock, one that may expire its timer.
    fn promises(&mut self, key: &Key, id: &JobId, job: &Standing) -> Result<(), StoreError> {
        if let Some(at) = job.waits_until() {
            let timer = timer_key(TimerKind::Expire, at, id);
            self.vouched(key, &timer, "the timer of its expiry")?;
        }
        if let Some(unique) = job.held_key(|content| self.key_of(id, content))
            && self.known_lock(&unique)?.map(|lock| lock.job) != Some(*id)
        {
            self.find(key, "it does not hold its unique key");
        }
        if let Some(hold) = self.hold_of(job)
            && self.known_lock(&hold)?.map(|lock| lock.job) != Some(*id)
        {
            self.find(key, "it does not hold its key");
        }
        let lease = self
            .leases
            .get(id)
            .filter(|_| job.state == JobState::Leased);
        let lease = lease.map(|(_, lease)| (lease.place.run.lane.queue, lease.key));
        if let Some((queue, counted)) = lease
            && counted != self.lane_of(queue, &job.content)
        {
            self.find(key, "its lease counts for another key");
        }
        Ok(())
    }

    /// The lock by which a job keeps others of its key back.
    fn hold_of(&self, job: &Standing) -> Option<UniqueKey> {
        let queue = job.holds_key?;
        Some(hold_lock(self.lane_of(queue, &job.content)))
    }

    /// The lane of a job's key; 0 when it has none.
    fn lane_of(&self, queue: QueueNumber, content: &Content) -> u64 {
        let named = content.key.as_ref().zip(self.queues.get(&queue));
        named.map_or(0, |(key, queue)| self.lanes.of(&queue.namespace, key))
    }

    /// A job stands in the shared lane or in that of its key.
    fn right_lane(&mut self, key: &Key, content: &Content, queue: QueueNumber, lane: u64) {
        if lane != 0 && lane != self.lane_of(queue, content) {
            self.find(key, "it stands in the lane of another key");
        }
    }

    fn limit(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let limit = limit::limit(body).map_err(damaged(key))?;
        if *key != limit::limit_key(&limit.namespace, &limit.target) {
            self.find(key, "it is the limit of something else");
        }
        Ok(())
    }

    fn key_of(&self, id: &JobId, content: &Content) -> Option<UniqueKey> {
        let unique = content.unique.as_deref()?;
        let queue = self.queues.get(&QueueNumber(id.birth().queue))?;
        let named = Named {
            namespace: &queue.namespace,
            queue: &queue.name,
            kind: &content.kind,
            payload: &content.payload,
        };
        Some(UniqueKey::of(&self.store.secret(), &named, unique))
    }

    /// The lock of a unique key; a damaged one is found where it lies.
    fn known_lock(&self, key: &UniqueKey) -> Result<Option<UniqueRecord>, StoreError> {
        match self.store.lock_of(key) {
            Err(StoreError::Damaged { .. }) => Ok(None),
            lock => lock,
        }
    }

    fn lock(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let unique = key.to_unique().ok_or_else(|| bad_key(key))?;
        let lock = records::lock(body).map_err(damaged(key))?;
        match lock.ends_at {
            Some(at) => {
                let timer = Key::timer(&ttl_timer(unique, at));
                self.vouched(key, &timer, "the timer of its end")
            }
            None => {
                let job = self.standing(&lock.job)?;
                let hold = job.as_ref().and_then(|job| self.hold_of(job));
                let held =
                    job.and_then(|job| job.held_key(|content| self.key_of(&lock.job, content)));
                if held != Some(unique) && hold != Some(unique) {
                    self.find(key, format!("job {} does not hold this key", lock.job));
                }
                Ok(())
            }
        }
    }

    /// How a job stands that is kept, its content read; damage is found where it lies.
    fn standing(&self, id: &JobId) -> Result<Option<Standing>, StoreError> {
        let lease = self.leases.get(id).map(|(_, lease)| lease.lease);
        let stored = match self.store.stored_job(id, true) {
            Err(StoreError::Damaged { .. }) => None,
            stored => stored?,
        };
        let mut holds_key = None;
        let (content, state, attempt) = match stored {
            Some(StoredJob::Record(job)) => {
                holds_key = job.holds_key.then_some(job.queue);
                let lives = lease.is_some_and(|lease| job.settled_lease < lease);
                let state = match job.state {
                    JobState::Ready if lives => JobState::Leased,
                    state => state,
                };
                (job.content, state, job.attempt)
            }
            Some(StoredJob::Packed { job, .. }) => {
                let place = Place::of_birth(id);
                let left = self.left.get(&place.run);
                if left.is_some_and(|left| left.left.contains(place.index)) {
                    return Ok(None);
                }
                let state = match lease {
                    Some(_) => JobState::Leased,
                    None => JobState::Ready,
                };
                (job.content, state, 0)
            }
            Some(StoredJob::Scheduled { job, .. }) => (job.content, JobState::Scheduled, 0),
            None => return Ok(None),
        };
        Ok(content.map(|content| Standing {
            content,
            state,
            attempt,
            holds_key,
        }))
    }

    /// The value of a row that was seen a moment ago.
    fn value(&self, key: &Key) -> Result<Bytes, StoreError> {
        let value = self.store.read_value(key)?;
        value.ok_or_else(|| damaged(key)(Malformed("it is there and is not")))
    }

    /// A ready job stands in a lane.
    fn reference(&mut self, key: &Key, id: &JobId, place: &Place) -> Result<(), StoreError> {
        let run_key = Key::run(&place.run);
        let entry = match self.store.read_value(&run_key)? {
            None => None,
            Some(value) => match self.store.open_record(&run_key, &value) {
                Ok((_, body)) => {
                    records::run_entry(body, place.index)
                        .map_err(damaged(&run_key))?
                        .1
                }
                // Found where it lies.
                Err(_damaged) => return Ok(()),
            },
        };
        let left = self.left.get(&place.run);
        let has_left = left.is_some_and(|left| left.left.contains(place.index));
        if entry != Some(Entry::Reference(*id)) || has_left {
            self.find(key, "it is ready, and not where it says");
        }
        Ok(())
    }

    /// Another record must be there.
    fn vouched(&mut self, key: &Key, other: &Key, what: &str) -> Result<(), StoreError> {
        if self.store.read_value(other)?.is_none() {
            self.find(key, format!("{what} is missing"));
        }
        Ok(())
    }

    fn cron(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let number = key.to_cron().ok_or_else(|| bad_key(key))?;
        let cron = cron::cron(number, body).map_err(damaged(key))?;
        if number.0 >= self.head.reserved {
            self.find(key, "its number was never given");
        }
        match cron.next_at {
            Some(at) => self.vouched(key, &Key::timer(&cron_timer(number, at)), "its timer"),
            None => Ok(()),
        }
    }

    /// Whether a cron entry waits for this timer. One that is damaged was found where it lies.
    fn is_awaited_by_cron(&self, timer: &Timer) -> Result<bool, StoreError> {
        let number = CronNumber(number_of(timer));
        let key = Key::cron(number);
        let Some(value) = self.store.read_value(&key)? else {
            return Ok(false);
        };
        let opened = self.store.open_record(&key, &value);
        let cron = opened.and_then(|(_, body)| cron::cron(number, body).map_err(damaged(&key)));
        Ok(cron.map_or(true, |cron| cron.next_at == Some(timer.at)))
    }

    fn timer(&mut self, key: &Key, _: &[u8]) -> Result<(), StoreError> {
        let timer = key.to_timer().ok_or_else(|| bad_key(key))?;
        let job = JobId::from_bytes(timer.id);
        let is_right = match timer.what {
            TimerKind::Due => self.known_record(&job)?.is_some_and(|job| {
                job.state == JobState::Scheduled && job.run_at == Some(timer.at)
            }),
            TimerKind::RunDue => {
                let run = Place::of_birth(&job).run;
                let is_of_first = timer == Timer::run_due(self.store.shard(), run, timer.at);
                match self.store.due_entries(&run, timer.at) {
                    Err(StoreError::Damaged { .. }) => false,
                    due => is_of_first && due?.is_some_and(|(_, due)| due != Bits::default()),
                }
            }
            TimerKind::Retention => self
                .known_record(&job)?
                .is_some_and(|job| job.closed_at.is_some() && job.run_at == Some(timer.at)),
            TimerKind::ProducerIdle => {
                let number = number_of(&timer);
                self.watched.insert(ProducerNumber(number));
                self.producers.contains(&ProducerNumber(number))
            }
            TimerKind::Cron => self.is_awaited_by_cron(&timer)?,
            TimerKind::Cancel => self
                .known_record(&job)?
                .is_some_and(|job| job.cancel_at == Some(timer.at)),
            TimerKind::Expire => self
                .standing(&job)?
                .is_some_and(|job| job.waits_until() == Some(timer.at)),
            TimerKind::UniqueTtl => {
                let lock = self.known_lock(&key_of_timer(&timer))?;
                lock.is_some_and(|lock| lock.ends_at == Some(timer.at))
            }
            TimerKind::BatchDeadline => self.is_awaited_by_batch(&timer)?,
            TimerKind::NodeDone | TimerKind::NodeEnded => timer.at == Timestamp(0),
            TimerKind::PauseEnd => self
                .queues
                .get(&queue_of_timer(&timer))
                .is_some_and(|queue| queue.paused_until == Some(timer.at)),
        };
        if !is_right {
            self.find(key, "nothing waits for it");
        }
        Ok(())
    }

    fn closed(&mut self, key: &Key, _: &[u8]) -> Result<(), StoreError> {
        let row = key.to_closed().ok_or_else(|| bad_key(key))?;
        let job = self.known_record(&row.job)?;
        let is_right = job.is_some_and(|job| {
            (job.queue, job.state, job.closed_at) == (row.queue, row.state, Some(row.at))
        });
        if !is_right {
            self.find(key, "its job is not there, or elsewhere");
        }
        Ok(())
    }

    fn blob(&mut self, key: &Key, _: &[u8]) -> Result<(), StoreError> {
        let (id, kind, part) = key.to_blob().ok_or_else(|| bad_key(key))?;
        let stored = match self.store.stored_job(&id, false) {
            Err(StoreError::Damaged { .. }) => return Ok(()),
            stored => stored?,
        };
        let parts = match (&stored, kind) {
            (Some(StoredJob::Record(job)), BlobKind::Content) => job.spilled_parts,
            (Some(StoredJob::Record(job)), BlobKind::Result) => job.result_parts,
            (Some(StoredJob::Record(job)), BlobKind::Cursor) => job.cursor_parts(),
            (Some(StoredJob::Record(job)), BlobKind::Error(slot)) => {
                let at = usize::from((slot + 10 - job.error_first) % 10);
                job.error_parts.get(at).copied().unwrap_or(0)
            }
            (Some(StoredJob::Packed { job, .. }), BlobKind::Content) => {
                let place = Place::of_birth(&id);
                let left = self.left.get(&place.run);
                match left.is_some_and(|left| left.left.contains(place.index)) {
                    true => 0,
                    false => job.spilled_parts,
                }
            }
            (Some(StoredJob::Scheduled { job, .. }), BlobKind::Content) => job.spilled_parts,
            (Some(StoredJob::Packed { .. } | StoredJob::Scheduled { .. }) | None, _) => 0,
        };
        if part >= parts {
            self.find(key, "no job has it");
        }
        Ok(())
    }

    fn unknown(&mut self, key: &Key, _: &[u8]) -> Result<(), StoreError> {
        self.find(key, "this version writes none of its kind");
        Ok(())
    }

    fn count(&mut self, queue: QueueNumber, state: JobState) {
        for counters in [
            self.counted.entry(queue).or_default(),
            &mut self.health.jobs,
        ] {
            match state {
                JobState::Scheduled => counters.scheduled += 1,
                JobState::Blocked => counters.blocked += 1,
                JobState::Ready => counters.ready += 1,
                JobState::Leased => counters.leased += 1,
                JobState::Dead => counters.dead += 1,
                JobState::Done => counters.done_kept += 1,
                JobState::Cancelled => counters.cancelled_kept += 1,
                JobState::Expired => counters.expired_kept += 1,
            }
        }
    }

    fn compare_counters(&mut self) {
        let counted = std::mem::take(&mut self.counted);
        for (number, counted) in &counted {
            if !self.queues.contains_key(number) {
                let jobs = counted.kept() + counted.retained();
                self.find(
                    &Key::queue(*number),
                    format!("it is missing, and has {jobs} jobs"),
                );
            }
        }
        for (number, queue) in std::mem::take(&mut self.queues) {
            let key = Key::queue(number);
            let kept = queue.counters;
            let counted = counted.get(&number).copied().unwrap_or_default();
            for (state, kept, counted) in [
                ("scheduled", kept.scheduled, counted.scheduled),
                ("blocked", kept.blocked, counted.blocked),
                ("ready", kept.ready, counted.ready),
                ("leased", kept.leased, counted.leased),
                ("dead", kept.dead, counted.dead),
                ("kept done", kept.done_kept, counted.done_kept),
                (
                    "kept cancelled",
                    kept.cancelled_kept,
                    counted.cancelled_kept,
                ),
                ("kept expired", kept.expired_kept, counted.expired_kept),
            ] {
                if kept != counted {
                    let name = &queue.name;
                    self.find(
                        &key,
                        format!("{name} has {counted} {state} jobs, not {kept}"),
                    );
                }
            }
            let closed = kept.done + kept.cancelled + kept.expired + kept.deleted;
            let come = kept.pushed + kept.moved_in;
            if come != closed + kept.kept() + kept.moved_out {
                let what = format!(
                    "{come} jobs came into it, and {} came to something",
                    closed + kept.kept() + kept.moved_out
                );
                self.find(&key, what);
            }
        }
    }

    /// The digest is the table's; what the overlay has over it was in the log, which is whole.
    fn compare_digest(&mut self) -> Result<(), StoreError> {
        let kept: Digest = *lock(&self.store.digest);
        if rebuild::add_up(&*self.store.table)? != kept {
            let what = "a queue, session, outcome, cron entry, limit or batch is missing, left over or changed";
            self.find(&Key::meta(Meta::Digest), what);
        }
        Ok(())
    }
}

fn is_of_workflows(prefix: Prefix) -> bool {
    matches!(prefix, Prefix::Node | Prefix::Edge | Prefix::Wait)
}

/// The timer of a cron entry's next time.
pub(super) fn cron_timer(number: CronNumber, at: Timestamp) -> Timer {
    let mut id = [0; JobId::BYTES];
    if let Some(slot) = id.last_chunk_mut() {
        *slot = number.0.to_be_bytes();
    }
    Timer {
        at,
        what: TimerKind::Cron,
        id,
    }
}

/// The number that stands in the id of a timer.
fn number_of(timer: &Timer) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = timer.id;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

fn timer_key(what: TimerKind, at: Timestamp, job: &JobId) -> Key {
    Key::timer(&Timer {
        at,
        what,
        id: *job.as_bytes(),
    })
}
