//! Support for tests: a store in memory that applies sealed groups and answers needs from them, as
//! the real one does, and a [`World`] that drives an engine over it.
//!
//! The store keeps blobs in parts, so that a part which nobody deletes is found at the end.

mod follow;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ganger_protocol::{
    BatchId, Bytes, DurationMs, JobId, JobSpec, Kind, LeaseId, NamespaceName, SessionId, Timestamp,
    WireError,
    job::{GrantedJob, JobError, JobState, JobView},
    limit::LimitTarget,
    queue::QueuePause,
    request::{
        Ack, AckItem, DeadSelect, Extend, ExtendItem, Fail, FailItem, Fetch, Goodbye, Heartbeat,
        JobGet, LeaseRef, Operation, Push, QueueList, QueueNames, Release, ReleaseItem, Resume,
        SessionHello,
    },
    response::{
        CountReply, Counters, FetchReply, HeartbeatReply, LeaseResult, Notice, PushResult,
        ReplyBody,
    },
    workflow::NodeState,
};

use self::follow::Follower;
use crate::{
    Engine, HeadBudget, Options,
    change::{Change, Group},
    command::{
        Caller, Command, ConnectionId, Happened, Mono, Now, Origin, Outcome, Producer, Reply,
        SessionOpened,
    },
    facts::{
        Fact, Facts, HeadEntry, HeadRow, Heads, Need, NodeRow, Recovered, RecoveredLease, Remain,
        RunDue, Side, Stage,
    },
    records::{
        BatchRecord, Bits, BlobKind, Closed, Content, CronNumber, CronRecord, Entry, GroupNumber,
        HeadRecord, JobRecord, Lane, LeaseRecord, LeftRun, LimitRecord, NodeRecord, OutcomeRecord,
        PackedJob, PartKey, Place, ProducerNumber, QueueNumber, QueueRecord, RUN_BYTES_MAX,
        RUN_ENTRIES_MAX, Run, RunKey, SessionRecord, StoredJob, Timer, TimerKind, UniqueKey,
        UniqueRecord, blob_parts, bytes_parts,
    },
};

/// What a part of a blob holds; all but the first only take up room.
#[derive(Debug, Clone, PartialEq)]
enum Part {
    Content(Arc<Content>),
    Error(Box<JobError>),
    Bytes(Bytes),
    Rest,
}

/// What the store has after some groups.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    group: GroupNumber,
    head: Option<HeadRecord>,
    runs: BTreeMap<RunKey, (GroupNumber, Run)>,
    /// Entries that left scheduled runs.
    left: BTreeMap<RunKey, LeftRun>,
    acks: BTreeMap<PartKey, Vec<LeftRun>>,
    leases: BTreeMap<PartKey, Vec<LeaseRecord>>,
    pub(crate) jobs: BTreeMap<JobId, JobRecord>,
    pub(crate) timers: BTreeSet<Timer>,
    closed: BTreeSet<Closed>,
    sessions: BTreeMap<SessionId, SessionRecord>,
    outcomes: BTreeMap<(ProducerNumber, u8), OutcomeRecord>,
    queues: BTreeMap<QueueNumber, QueueRecord>,
    pub(crate) locks: BTreeMap<UniqueKey, UniqueRecord>,
    crons: BTreeMap<CronNumber, CronRecord>,
    limits: BTreeMap<(NamespaceName, LimitTarget), LimitRecord>,
    batches: BTreeMap<BatchId, BatchRecord>,
    settled_batches: BTreeMap<BatchId, BatchRecord>,
    /// Who is waited for, and who waits.
    pub(crate) edges: BTreeSet<(JobId, JobId)>,
    pub(crate) nodes: BTreeMap<(BatchId, JobId), NodeRecord>,
    pub(crate) node_ends: BTreeMap<(BatchId, JobId), NodeState>,
    blobs: BTreeMap<(JobId, BlobKind, u16), Part>,
}

impl Store {
    /// What is there after these groups.
    pub(crate) fn after(groups: &[Group]) -> Self {
        let mut store = Self::default();
        for group in groups {
            store.apply(group);
        }
        store
    }

    pub(crate) fn apply(&mut self, group: &Group) {
        assert_eq!(group.number.0, self.group.0 + 1, "groups follow each other");
        self.group = group.number;
        for change in group.changes.iter().cloned() {
            self.change(change);
        }
    }

    fn change(&mut self, change: Change) {
        match change {
            Change::PutRun(key, mut run) => {
                let bytes: usize = run.entries.iter().map(Entry::bound_bytes).sum();
                assert!(!run.entries.is_empty() && run.entries.len() <= RUN_ENTRIES_MAX);
                assert!(bytes <= RUN_BYTES_MAX || run.entries.len() == 1, "{bytes}");
                for entry in &mut run.entries {
                    let is_scheduled = matches!(entry, Entry::Scheduled(..));
                    assert_eq!(is_scheduled, key.lane.is_scheduled(), "{key:?}");
                    if let Some(job) = entry.job_mut().filter(|job| job.spilled_parts > 0) {
                        job.content = None;
                    }
                }
                let before = self.runs.insert(key, (self.group, run));
                assert!(before.is_none(), "a run is immutable");
            }
            Change::DeleteRun(key) => {
                assert!(self.runs.remove(&key).is_some(), "{key:?} is not there");
            }
            Change::PutLeft(left) => {
                let mut all = left.left;
                all.extend(&self.left_of(&left.run).left);
                assert_eq!(all, left.left, "some of {:?} came back", left.run);
                self.left.insert(left.run, left);
            }
            Change::DeleteLeft(key) => {
                assert!(!self.runs.contains_key(&key), "{key:?} is still there");
                self.left.remove(&key);
            }
            Change::PutAcks(key, rows) => {
                assert!(!rows.is_empty());
                self.acks.insert(key, rows);
            }
            Change::DeleteAcks(key) => assert!(self.acks.remove(&key).is_some(), "{key:?}"),
            Change::PutLeases(key, rows) => {
                assert!(!rows.is_empty());
                self.leases.insert(key, rows);
            }
            Change::DeleteLeases(key) => assert!(self.leases.remove(&key).is_some(), "{key:?}"),
            Change::PutJob(mut record) => {
                if record.spilled_parts > 0 {
                    record.content = None;
                } else {
                    assert!(record.content.is_some(), "a content is lost");
                }
                if let Some(progress) = &mut record.progress {
                    assert_eq!(progress.cursor.is_some(), progress.cursor_parts > 0);
                    progress.cursor = None;
                }
                record.group = self.group;
                self.jobs.insert(record.id, *record);
            }
            Change::DeleteJob(id) => {
                self.jobs.remove(&id);
            }
            Change::PutTimer(timer) => {
                self.timers.insert(timer);
            }
            Change::DeleteTimer(timer) => {
                self.timers.remove(&timer);
            }
            Change::PutClosed(row) => {
                self.closed.insert(row);
            }
            Change::DeleteClosed(row) => {
                self.closed.remove(&row);
            }
            Change::PutSession(record) => {
                self.sessions.insert(record.id, *record);
            }
            Change::DeleteSession(id) => {
                self.sessions.remove(&id);
            }
            Change::PutOutcome(outcome) => {
                let slot = u8::try_from(outcome.seq % 256).unwrap();
                self.outcomes.insert((outcome.producer, slot), *outcome);
            }
            Change::DeleteOutcomes(producer) => {
                self.outcomes.retain(|(of, _), _| *of != producer);
            }
            Change::PutUnique(key, lock) => {
                self.locks.insert(key, lock);
            }
            Change::DeleteUnique(key) => {
                self.locks.remove(&key);
            }
            Change::PutQueue(record) => {
                self.queues.insert(record.number, *record);
            }
            Change::DeleteQueue(number) => {
                assert!(self.queues.remove(&number).is_some(), "{number:?}");
            }
            Change::PutCron(record) => {
                self.crons.insert(record.number, *record);
            }
            Change::DeleteCron(number) => {
                self.crons.remove(&number);
            }
            Change::PutBatch(record) => {
                let batches = match record.settled_at {
                    None => &mut self.batches,
                    Some(_) => &mut self.settled_batches,
                };
                batches.insert(record.id, *record);
            }
            Change::DeleteLiveBatch(id) => {
                self.batches.remove(&id);
            }
            Change::DeleteSettledBatch(id) => {
                self.settled_batches.remove(&id);
            }
            Change::PutEdge(awaited, waiting) => {
                self.edges.insert((awaited, waiting));
            }
            Change::DeleteEdge(awaited, waiting) => {
                self.edges.remove(&(awaited, waiting));
            }
            Change::PutNode(node) => {
                self.nodes.insert((node.batch, node.job), *node);
            }
            Change::DeleteNode(batch, job, parts) => {
                let node = self.nodes.remove(&(batch, job));
                assert_eq!(node.map(|node| node.parts()), Some(parts));
                self.node_ends.remove(&(batch, job));
            }
            Change::PutNodeEnd(batch, job, end) => {
                self.node_ends.insert((batch, job), end);
            }
            Change::DeleteNodeEnd(batch, job) => {
                self.node_ends.remove(&(batch, job));
            }
            Change::PutLimit(record) => {
                let key = (record.namespace.clone(), record.target.clone());
                self.limits.insert(key, *record);
            }
            Change::DeleteLimit(namespace, target) => {
                self.limits.remove(&(namespace, target));
            }
            Change::PutContent(job, content) => {
                let parts = blob_parts(content.bound_bytes());
                self.put_blob(job, BlobKind::Content, parts, Part::Content(content));
            }
            Change::PutError(job, slot, error) => {
                let bytes = 64 + error.kind.len() + error.message.len() + error.backtrace.len();
                let kind = BlobKind::Error(slot);
                self.put_blob(job, kind, blob_parts(bytes), Part::Error(error));
            }
            Change::PutBytes(job, kind, bytes) => {
                self.put_blob(job, kind, bytes_parts(&bytes), Part::Bytes(bytes));
            }
            Change::DeleteBlob(job, kind, parts) => {
                for part in 0..parts {
                    self.blobs.remove(&(job, kind, part));
                }
            }
            Change::PutHead(head) => self.head = Some(head),
        }
    }

    fn put_blob(&mut self, job: JobId, kind: BlobKind, parts: u16, first: Part) {
        self.blobs.insert((job, kind, 0), first);
        for part in 1..parts {
            self.blobs.insert((job, kind, part), Part::Rest);
        }
    }

    pub(crate) fn answer(&self, need: &Need) -> Fact {
        match need {
            Need::Job { job, content } => Fact::Job(self.job(*job, *content)),
            Need::Errors(job) => Fact::Errors(self.errors(*job)),
            Need::Result(job) => Fact::Bytes(self.bytes(*job, BlobKind::Result)),
            Need::Heads {
                lane,
                after,
                entries_max,
                bytes_max,
            } => Fact::Heads(self.heads(*lane, *after, *entries_max, *bytes_max)),
            Need::Lanes {
                queue,
                priority,
                after,
                max,
            } => {
                let runs = self.runs.keys().map(|run| run.lane);
                let lanes = runs.filter(|lane| {
                    (lane.queue, lane.priority) == (*queue, *priority) && lane.lane > *after
                });
                let lanes: BTreeSet<u64> = lanes.map(|lane| lane.lane).collect();
                let max = *max as usize;
                Fact::Lanes {
                    lanes: lanes.iter().take(max).copied().collect(),
                    at_end: lanes.len() <= max,
                }
            }
            Need::Timers { after, max } => {
                let behind = self.timers.iter().filter(|timer| Some(**timer) > *after);
                let max = *max as usize;
                let timers: Vec<Timer> = behind.clone().take(max).copied().collect();
                let at_end = behind.count() <= max;
                Fact::Timers { timers, at_end }
            }
            Need::Producer(producer) => {
                let slots = (*producer, 0)..=(*producer, u8::MAX);
                let newest = self.outcomes.range(slots).map(|(_, outcome)| outcome);
                let newest = newest.max_by_key(|outcome| outcome.seq);
                Fact::Producer(newest.map(|outcome| (outcome.seq, outcome.at)))
            }
            Need::Outcome { producer, slot } => {
                Fact::Outcome(self.outcomes.get(&(*producer, *slot)).cloned())
            }
            Need::Unique(key) => Fact::Unique(self.locks.get(key).copied()),
            Need::Batch(id) => Fact::Batch(self.settled_batches.get(id).cloned().map(Box::new)),
            Need::Batches { after, max } => {
                let behind = self.settled_batches.values();
                let behind = behind.filter(|record| Some(record.id) > *after);
                let max = *max as usize;
                let batches: Vec<_> = behind.clone().take(max).cloned().collect();
                let at_end = behind.count() <= max;
                Fact::Batches { batches, at_end }
            }
            Need::Edges {
                side,
                job,
                after,
                max,
            } => {
                let others: BTreeSet<JobId> = match side {
                    Side::Dependents => {
                        let own = self.edges.iter().filter(|(awaited, _)| awaited == job);
                        own.map(|(_, waiting)| *waiting).collect()
                    }
                    Side::Dependencies => {
                        let own = self.edges.iter().filter(|(_, waiting)| waiting == job);
                        own.map(|(awaited, _)| *awaited).collect()
                    }
                };
                let mut jobs: Vec<JobId> = others.into_iter().collect();
                jobs.retain(|job| Some(*job) > *after);
                let at_end = jobs.len() <= *max as usize;
                jobs.truncate(*max as usize);
                Fact::Edges { jobs, at_end }
            }
            Need::Node(batch, job) => {
                let node = self.nodes.get(&(*batch, *job));
                Fact::Node(node.map(|node| Box::new(self.node_row(node))))
            }
            Need::Nodes { batch, after, max } => {
                let own = self.nodes.values().filter(|node| node.batch == *batch);
                let own = own.filter(|node| Some(node.job) > *after);
                let max = *max as usize;
                let nodes = own.clone().take(max).map(|node| self.node_row(node));
                let nodes = nodes.collect();
                let at_end = own.count() <= max;
                Fact::Nodes { nodes, at_end }
            }
            Need::Run(run) => {
                let run = self.runs.get(run);
                Fact::Run(run.map(|(_, run)| u8::try_from(run.entries.len()).unwrap()))
            }
            Need::OldestClosed { queue, state, max } => {
                let rows = self.closed.iter();
                let rows = rows.filter(|row| (row.queue, row.state) == (*queue, *state));
                Fact::Closed(rows.take(*max as usize).copied().collect())
            }
            Need::Remains { queue, stage, max } => self.remains(*queue, *stage, *max as usize),
            Need::RunDue {
                run,
                at,
                passed,
                jobs_max,
                bytes_max,
            } => Fact::RunDue(self.runs.get(run).map(|(_, record)| {
                let left = self.left_of(run);
                let due = record.due_at(*at);
                let has_gone = |index| left.left.contains(index) || passed.contains(index);
                let due = due.filter(|(index, _)| !has_gone(*index));
                let (mut jobs, mut bytes) = (Vec::new(), 0);
                for (index, job) in due {
                    if jobs.len() >= *jobs_max as usize || bytes >= *bytes_max as usize {
                        let at_end = false;
                        return RunDue { left, jobs, at_end };
                    }
                    let id = Place { run: *run, index }.job_id(0);
                    let job = self.packed(id, job, true);
                    bytes += job.content.as_ref().unwrap().bound_bytes();
                    jobs.push((index, job));
                }
                let at_end = true;
                RunDue { left, jobs, at_end }
            })),
        }
    }

    fn node_row(&self, node: &NodeRecord) -> NodeRow {
        NodeRow {
            record: node.clone(),
            end: self.node_ends.get(&(node.batch, node.job)).copied(),
        }
    }

    fn remains(&self, queue: QueueNumber, stage: Stage, max: usize) -> Fact {
        let record = |job: &JobId| self.record(*job, true).map(Box::new);
        let mut rows: Vec<Remain> = match stage {
            Stage::Runs(after) => {
                let runs = self.runs.keys().filter(|run| run.lane.queue == queue);
                let runs = runs.filter(|run| !run.lane.is_scheduled() && Some(**run) > after);
                runs.map(|run| Remain::Run(*run, self.rows_of(run)))
                    .collect()
            }
            Stage::Scheduled(after) => {
                let runs = self.runs.keys().filter(|run| run.lane.queue == queue);
                let runs = runs.filter(|run| run.lane.is_scheduled() && Some(**run) > after);
                runs.map(|run| Remain::Run(*run, self.rows_of(run)))
                    .collect()
            }
            Stage::Jobs(after) => {
                let jobs = self.jobs.keys();
                let jobs = jobs.filter(|job| job.birth().queue == queue.0 && after < Some(**job));
                jobs.map(|job| Remain::Job(record(job).unwrap())).collect()
            }
            Stage::Guests(after) => {
                let jobs = self.jobs.iter().filter(|(job, _)| after < Some(**job));
                let is_guest =
                    |job: &JobId, it: &JobRecord| it.queue == queue && job.birth().queue != queue.0;
                jobs.map(|(job, it)| Remain::Guest(*job, record(job).filter(|_| is_guest(job, it))))
                    .collect()
            }
            Stage::Closed(after) => {
                let rows = self.closed.iter();
                let rows = rows.filter(|row| row.queue == queue && after < Some(**row));
                rows.map(|row| Remain::Closed(*row, record(&row.job)))
                    .collect()
            }
        };
        let at_end = rows.len() <= max;
        rows.truncate(max);
        Fact::Remains { rows, at_end }
    }

    fn content(&self, job: JobId) -> Option<Arc<Content>> {
        match self.blobs.get(&(job, BlobKind::Content, 0))? {
            Part::Content(content) => Some(Arc::clone(content)),
            Part::Error(_) | Part::Bytes(_) | Part::Rest => None,
        }
    }

    fn bytes(&self, job: JobId, kind: BlobKind) -> Option<Bytes> {
        match self.blobs.get(&(job, kind, 0))? {
            Part::Bytes(bytes) => Some(bytes.clone()),
            Part::Error(_) | Part::Content(_) | Part::Rest => None,
        }
    }

    fn job(&self, job: JobId, content: bool) -> Option<StoredJob> {
        if let Some(record) = self.record(job, content) {
            return Some(StoredJob::Record(Box::new(record)));
        }
        let place = Place::of_birth(&job);
        let (group, run) = self.runs.get(&place.run)?;
        let run_entries = u8::try_from(run.entries.len()).unwrap();
        match run.entries.get(usize::from(place.index))? {
            Entry::Job(packed) => Some(StoredJob::Packed {
                group: *group,
                run_entries,
                job: self.packed(job, packed, content),
            }),
            Entry::Scheduled(..) if self.left_of(&place.run).left.contains(place.index) => None,
            Entry::Scheduled(at, packed) => Some(StoredJob::Scheduled {
                at: *at,
                job: self.packed(job, packed, content),
                left: self.left_of(&place.run),
                peers: Bits::of(run.due_at(*at).map(|(index, _)| index)),
            }),
            Entry::Reference(_) => None,
        }
    }

    /// What left a scheduled run.
    fn left_of(&self, run: &RunKey) -> LeftRun {
        let entries = self.runs.get(run).map_or(0, |(_, run)| run.entries.len());
        let whole = LeftRun::whole(*run, u8::try_from(entries).unwrap());
        self.left.get(run).copied().unwrap_or(whole)
    }

    fn record(&self, job: JobId, content: bool) -> Option<JobRecord> {
        let mut record = self.jobs.get(&job)?.clone();
        if record.spilled_parts > 0 && content {
            record.content = self.content(job);
        }
        if let Some(progress) = &mut record.progress
            && progress.cursor_parts > 0
            && content
        {
            progress.cursor = self.bytes(job, BlobKind::Cursor);
        }
        Some(record)
    }

    fn packed(&self, job: JobId, packed: &PackedJob, content: bool) -> PackedJob {
        let mut packed = packed.clone();
        if packed.spilled_parts > 0 && content {
            packed.content = self.content(job);
        }
        packed
    }

    fn errors(&self, job: JobId) -> Vec<JobError> {
        let slots = self
            .jobs
            .get(&job)
            .into_iter()
            .flat_map(JobRecord::error_slots);
        let parts = slots.map(|(slot, _)| self.blobs.get(&(job, BlobKind::Error(slot), 0)));
        let errors = parts.map(|part| match part {
            Some(Part::Error(error)) => (**error).clone(),
            other => panic!("{job:?} misses an error: {other:?}"),
        });
        errors.collect()
    }

    /// The entries of a run.
    fn rows_of(&self, run: &RunKey) -> Vec<HeadRow> {
        let before = run.position.checked_sub(1).map(|before| (before, u8::MAX));
        self.heads(run.lane, before, 1, 1).rows
    }

    fn heads(
        &self,
        lane: Lane,
        after: Option<(u64, u8)>,
        entries_max: u32,
        bytes_max: u32,
    ) -> Heads {
        let key = |position| RunKey { lane, position };
        let first = after.map_or(0, |(position, _)| position);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for (run, (group, record)) in self.runs.range(key(first)..=key(u64::MAX)) {
            let mut here = Vec::new();
            for (entry, index) in record.entries.iter().zip(0_u8..) {
                if after.is_some_and(|after| (run.position, index) <= after) {
                    continue;
                }
                let place = Place { run: *run, index };
                let entry = match entry {
                    Entry::Job(packed) => {
                        HeadEntry::Packed(self.packed(place.job_id(0), packed, true))
                    }
                    Entry::Scheduled(..) if self.left_of(run).left.contains(index) => continue,
                    Entry::Scheduled(at, packed) => {
                        HeadEntry::Scheduled(*at, self.packed(place.job_id(0), packed, true))
                    }
                    Entry::Reference(id) => {
                        HeadEntry::Reference(*id, self.record(*id, true).map(Box::new))
                    }
                };
                let content = match &entry {
                    HeadEntry::Packed(packed) | HeadEntry::Scheduled(_, packed) => {
                        packed.content.as_ref()
                    }
                    HeadEntry::Reference(_, record) => {
                        record.as_ref().and_then(|record| record.content.as_ref())
                    }
                };
                bytes += content.map_or(0, |content| content.bound_bytes());
                here.push(HeadRow {
                    place,
                    run_entries: u8::try_from(record.entries.len()).unwrap(),
                    group: *group,
                    entry,
                });
            }
            if here.is_empty() {
                continue;
            }
            if !rows.is_empty()
                && (rows.len() >= entries_max as usize || bytes > bytes_max as usize)
            {
                return Heads {
                    rows,
                    at_end: false,
                };
            }
            rows.extend(here);
        }
        Heads { rows, at_end: true }
    }

    /// What the store finds when it is opened.
    pub(crate) fn recovered(&self) -> Recovered {
        let acks = self.acks.iter().map(|(key, rows)| {
            let rows = rows.iter().filter(|row| self.runs.contains_key(&row.run));
            (*key, rows.copied().collect())
        });
        let leases = self.leases.iter().map(|(key, rows)| {
            let rows = rows.iter().map(|record| RecoveredLease {
                record: *record,
                job: self.job(record.job, false),
                run_entries: self
                    .runs
                    .get(&record.place.run)
                    .map_or(0, |(_, run)| u8::try_from(run.entries.len()).unwrap()),
            });
            (*key, rows.collect())
        });
        Recovered {
            group: self.group,
            head: self.head,
            queues: self.queues.values().cloned().collect(),
            crons: self.crons.values().cloned().collect(),
            limits: self.limits.values().cloned().collect(),
            batches: self.batches.values().cloned().collect(),
            sessions: self.sessions.values().cloned().collect(),
            acks: acks.collect(),
            leases: leases.collect(),
        }
    }

    /// What is left when no job is kept any more: nothing but queues, producers and sessions.
    pub(crate) fn check_empty(&self) {
        assert_eq!(self.runs.len(), 0, "runs: {:?}", self.runs);
        assert_eq!(self.left.len(), 0, "left: {:?}", self.left);
        assert_eq!(self.acks.len(), 0, "acks: {:?}", self.acks);
        assert_eq!(self.leases.len(), 0, "leases: {:?}", self.leases);
        assert_eq!(self.jobs.len(), 0, "jobs: {:?}", self.jobs);
        assert_eq!(self.closed.len(), 0, "closed: {:?}", self.closed);
        let held = self.locks.values().filter(|lock| lock.ends_at.is_none());
        assert_eq!(held.count(), 0, "locks: {:?}", self.locks);
        assert_eq!(self.blobs.len(), 0, "blobs: {:?}", self.blobs.keys());
        assert!(self.edges.is_empty(), "edges: {:?}", self.edges);
        let timers = self.timers.iter();
        let of_jobs: Vec<_> = timers
            .filter(|timer| !matches!(timer.what, TimerKind::ProducerIdle | TimerKind::UniqueTtl))
            .collect();
        assert!(of_jobs.is_empty(), "{of_jobs:?}");
    }

    /// No edge outlives its jobs: who waits is blocked, and counts it, unless its own end is about to
    /// be looked at; who is waited for is kept, unless its end is.
    pub(crate) fn check_edges(&self) {
        let ends = |job: JobId| {
            let timers = [true, false].map(|is_done| crate::workflow::timer(job, is_done));
            timers.iter().any(|timer| self.timers.contains(timer))
        };
        let mut counted: BTreeMap<JobId, u32> = BTreeMap::new();
        for (awaited, waiting) in &self.edges {
            let record = self.jobs.get(waiting);
            let is_blocked = record.is_some_and(|record| record.state == JobState::Blocked);
            assert!(is_blocked || ends(*waiting), "{waiting:?} does not wait");
            let is_kept = self.job(*awaited, false).is_some();
            assert!(is_kept || ends(*awaited), "{awaited:?} is gone");
            *counted.entry(*waiting).or_default() += 1;
        }
        for record in self.jobs.values() {
            let edges = counted.remove(&record.id).unwrap_or_default();
            match record.state {
                JobState::Blocked => assert!(edges <= record.waits_for, "{record:?}"),
                _ => assert_eq!(record.waits_for, 0, "{record:?}"),
            }
        }
    }

    pub(crate) fn outcomes(&self) -> usize {
        self.outcomes.len()
    }

    pub(crate) fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// Runs, records of acks, records of leases.
    pub(crate) fn packed_records(&self) -> (usize, usize, usize) {
        (self.runs.len(), self.acks.len(), self.leases.len())
    }
}

/// An engine, its store, and clocks that stand still until they are moved.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) engine: Engine,
    pub(crate) store: Store,
    pub(crate) groups: Vec<Group>,
    /// The last durable group.
    pub(crate) durable: GroupNumber,
    pub(crate) now: Now,
    options: Options,
    namespace: NamespaceName,
    requests: u64,
    /// Replies that were not taken yet.
    pub(crate) replies: Vec<Reply>,
    pub(crate) notices: Vec<(ConnectionId, Notice)>,
    /// Batches that were closed by their deadline.
    pub(crate) lapsed: Vec<BatchId>,
    /// What was told to those who follow.
    pub(crate) events: Vec<Happened>,
    /// Whoever has followed from the beginning.
    follower: Option<Follower>,
    /// What that knew when each group was sealed.
    followers: BTreeMap<GroupNumber, Follower>,
}

/// Wall time at which every world begins.
pub(crate) const BEGIN: Timestamp = Timestamp(1_700_000_000_000);

/// The connection of a producer in tests; sessions have the connection of their own number.
pub(crate) const PRODUCER: ConnectionId = ConnectionId(0);

impl World {
    pub(crate) fn new() -> Self {
        Self::with(small())
    }

    pub(crate) fn with(options: Options) -> Self {
        let now = Now {
            wall: BEGIN,
            mono: Mono(1_000),
        };
        let mut world = Self {
            engine: Engine::open(now, options.clone(), Recovered::default()),
            store: Store::default(),
            groups: Vec::new(),
            durable: GroupNumber(0),
            now,
            options,
            namespace: NamespaceName::default(),
            requests: 0,
            replies: Vec::new(),
            notices: Vec::new(),
            lapsed: Vec::new(),
            events: Vec::new(),
            follower: None,
            followers: BTreeMap::new(),
        };
        world.commit();
        world
    }

    /// Runs something as another namespace.
    pub(crate) fn within<T>(&mut self, namespace: &str, act: impl FnOnce(&mut Self) -> T) -> T {
        let other = namespace.parse().unwrap();
        let before = std::mem::replace(&mut self.namespace, other);
        let result = act(self);
        self.namespace = before;
        result
    }

    /// Applies a command as the driver does: reads what it needs until it needs nothing.
    pub(crate) fn step(&mut self, command: Command) -> Option<SessionOpened> {
        let facts = self.read(&command);
        let told = match &command {
            Command::Request(_, operation) | Command::Bulk(_, operation) => operation.op(),
            Command::OpenSession { .. } => "hello",
            Command::Detach { .. } => "detach",
            Command::Durable(_) => "durable",
            Command::FileCrons(_) => "file crons",
            Command::Watch(_) => "watch",
            Command::Tick => "tick",
        };
        let outcome = self.engine.apply(self.now, command, &facts);
        if let Err(broken) = self.engine.check_invariants() {
            panic!("{broken}\nafter {told}");
        }
        self.take_in(outcome)
    }

    /// Reads what a command needs until it needs nothing more.
    fn read(&mut self, command: &Command) -> Facts {
        let mut facts = Facts::default();
        for round in 0.. {
            assert!(round < 10_000, "{command:?} never stops asking");
            let needs = self.engine.needs(self.now, command, &facts);
            if needs.is_empty() {
                break;
            }
            for need in needs {
                let fact = self.store.answer(&need);
                match need {
                    Need::Heads { .. } | Need::Timers { .. } | Need::Lanes { .. } => {
                        self.engine.inform(&need, &fact);
                    }
                    _ => {}
                }
                facts.insert(need, fact);
            }
        }
        facts
    }

    fn take_in(&mut self, outcome: Outcome) -> Option<SessionOpened> {
        for reply in outcome.replies {
            let open = self.engine.open_group();
            assert!(reply.after <= open, "a reply waits for what is not yet");
            assert!(
                reply.after < open || self.engine.is_awaited(),
                "nobody would sync the group of {reply:?}"
            );
            let is_new = self.replies.iter().all(|it| it.caller != reply.caller);
            assert!(is_new, "answered twice: {reply:?}");
            self.replies.push(reply);
        }
        self.notices.extend(outcome.notices);
        if let Some(follower) = &mut self.follower {
            follower.hear(&outcome.events);
            follower.check(&self.engine);
        }
        self.events.extend(outcome.events);
        self.lapsed.extend(outcome.lapsed.iter().map(|(_, id)| *id));
        outcome.session
    }

    /// Seals the open group into the store, without making it durable.
    pub(crate) fn seal(&mut self) {
        if let Some(group) = self.engine.seal(self.now) {
            self.store.apply(&group);
            self.groups.push(group);
            if let Some(follower) = self.follower.as_ref().filter(|it| it.is_small()) {
                let number = GroupNumber(self.groups.len() as u64);
                self.followers.insert(number, follower.clone());
            }
        }
        if let Err(broken) = self.engine.check_invariants() {
            panic!("{broken}\nafter a seal");
        }
    }

    /// Makes everything sealed durable and says so.
    pub(crate) fn sync(&mut self) {
        self.durable = GroupNumber(self.groups.len() as u64);
        self.step(Command::Durable(self.durable));
    }

    pub(crate) fn commit(&mut self) {
        self.seal();
        self.sync();
    }

    /// Stops after a group and opens again; what came behind it is lost.
    pub(crate) fn crash_after(&mut self, group: GroupNumber) {
        assert!(group >= self.durable, "what is durable stays");
        self.follower = None;
        self.followers.split_off(&GroupNumber(group.0 + 1));
        self.groups.truncate(usize::try_from(group.0).unwrap());
        self.store = Store::after(&self.groups);
        self.now.mono = Mono(1_000);
        self.engine = Engine::open(self.now, self.options.clone(), self.store.recovered());
        self.durable = group;
        self.replies.clear();
        self.notices.clear();
        self.engine.check_invariants().unwrap();
        if let Some(follower) = self.followers.get(&group) {
            self.follower = Some(follower.clone());
            self.watch(true);
        }
    }

    /// Follows all events from now on, as a world has none yet; holds them against the counters after
    /// each step.
    pub(crate) fn follow(&mut self) {
        self.follower = Some(Follower::default());
        self.watch(true);
    }

    /// Somebody follows, or nobody any more.
    pub(crate) fn watch(&mut self, is_watched: bool) {
        self.step(Command::Watch(is_watched));
    }

    /// Stops in order and opens again.
    pub(crate) fn reopen(&mut self) {
        self.commit();
        self.crash_after(self.durable);
        self.commit();
    }

    /// Moves both clocks, and ticks once when the time is over.
    pub(crate) fn pass(&mut self, time: DurationMs) {
        self.now.wall = self.now.wall.plus(time);
        self.now.mono = self.now.mono.plus(time);
        self.tick();
    }

    /// Moves both clocks from deadline to deadline, as a driver that is never late.
    pub(crate) fn live(&mut self, time: DurationMs) {
        let end = self.now.mono.plus(time);
        for round in 0.. {
            assert!(round < 100_000, "busy without progress");
            self.tick();
            let rest = end.since(self.now.mono);
            let step = self.engine.next_wakeup(self.now).unwrap_or(rest).min(rest);
            self.now.wall = self.now.wall.plus(step);
            self.now.mono = self.now.mono.plus(step);
            if rest == DurationMs::ZERO {
                return;
            }
        }
    }

    /// Ticks until nothing more is due now.
    pub(crate) fn tick(&mut self) {
        for round in 0.. {
            assert!(round < 100_000, "busy without progress");
            self.step(Command::Tick);
            if self.engine.next_wakeup(self.now) != Some(DurationMs::ZERO) {
                return;
            }
        }
    }

    fn origin(&mut self, connection: ConnectionId, session: Option<SessionId>) -> Origin {
        self.requests += 1;
        Origin {
            caller: Caller {
                connection,
                request: self.requests,
            },
            namespace: self.namespace.clone(),
            session,
            producer: None,
        }
    }

    /// Sends a request; its reply is in [`World::replies`] once it is there.
    pub(crate) fn send(&mut self, session: Option<SessionId>, operation: Operation) -> Caller {
        let connection = session.map_or(PRODUCER, |id| ConnectionId(id.0));
        let origin = self.origin(connection, session);
        let caller = origin.caller;
        self.step(Command::Request(origin, operation));
        caller
    }

    /// The reply to a request, when there is one.
    pub(crate) fn reply(&mut self, caller: Caller) -> Option<Reply> {
        let nth = self.replies.iter().position(|it| it.caller == caller)?;
        Some(self.replies.remove(nth))
    }

    /// Sends a request without checking every rule after it; its reply is dropped.
    pub(crate) fn send_unchecked(&mut self, worker: SessionId, operation: Operation) {
        let origin = self.origin(ConnectionId(worker.0), Some(worker));
        self.apply_unchecked(Command::Request(origin, operation));
    }

    /// Pushes without checking every rule after it.
    pub(crate) fn push_unchecked(&mut self, jobs: Vec<JobSpec>) {
        let origin = self.origin(PRODUCER, None);
        let push = Push {
            jobs,
            atomic: false,
            spread_ms: None,
            by: None,
            seq: None,
        };
        self.apply_unchecked(Command::Request(origin, Operation::Push(push)));
    }

    fn apply_unchecked(&mut self, command: Command) {
        let facts = self.read(&command);
        let outcome = self.engine.apply(self.now, command, &facts);
        if let Some(follower) = &mut self.follower {
            follower.hear(&outcome.events);
        }
    }

    pub(crate) fn ask(
        &mut self,
        session: Option<SessionId>,
        operation: Operation,
    ) -> Result<ReplyBody, WireError> {
        // A fetch may have to read more, which the next ticks do.
        let ticks = if matches!(operation, Operation::Fetch(_)) {
            1_000
        } else {
            0
        };
        let caller = self.send(session, operation);
        for _ in 0..ticks {
            if self.replies.iter().any(|it| it.caller == caller) {
                break;
            }
            let wakeup = self.engine.next_wakeup(self.now);
            assert_eq!(wakeup, Some(DurationMs::ZERO), "answered at once");
            self.tick();
        }
        self.reply(caller).expect("answered at once").result
    }

    pub(crate) fn push_as(
        &mut self,
        producer: Option<Producer>,
        push: Push,
    ) -> Result<Vec<PushResult>, WireError> {
        let origin = Origin {
            producer,
            ..self.origin(PRODUCER, None)
        };
        let caller = origin.caller;
        self.step(Command::Request(origin, Operation::Push(push)));
        match self.reply(caller).expect("a push is answered").result? {
            ReplyBody::Push(reply) => Ok(reply.results),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn push_all(&mut self, jobs: Vec<JobSpec>) -> Vec<JobId> {
        let push = Push {
            jobs,
            atomic: false,
            spread_ms: None,
            by: None,
            seq: None,
        };
        let results = self.push_as(None, push).unwrap();
        results
            .into_iter()
            .map(|result| result.id.unwrap())
            .collect()
    }

    pub(crate) fn push(&mut self, job: JobSpec) -> JobId {
        self.push_all(vec![job])[0]
    }

    pub(crate) fn open(&mut self, hello: SessionHello, connection: u64) -> SessionOpened {
        let origin = self.origin(ConnectionId(connection), None);
        self.step(Command::OpenSession { origin, hello }).unwrap()
    }

    /// A worker's session, its connection of the same number.
    pub(crate) fn worker(&mut self) -> SessionId {
        let opened = self.open(SessionHello::default(), u64::MAX);
        self.resume(opened.id, &[]).id
    }

    pub(crate) fn resume(&mut self, id: SessionId, held: &[LeaseRef]) -> SessionOpened {
        let hello = SessionHello {
            resume: Some(Resume {
                id,
                secret: String::new(),
                held: held.to_vec(),
            }),
            ..SessionHello::default()
        };
        self.open(hello, id.0)
    }

    pub(crate) fn fetch_reply(&mut self, worker: SessionId, fetch: Fetch) -> FetchReply {
        fetched(self.ask(Some(worker), Operation::Fetch(fetch)))
    }

    /// Fetches up to so many jobs without waiting.
    pub(crate) fn fetch(&mut self, worker: SessionId, queue: &str, max: u32) -> Vec<GrantedJob> {
        self.fetch_reply(worker, fetch_of(&[queue], max)).jobs
    }

    /// Stands in line.
    pub(crate) fn wait(&mut self, worker: SessionId, queues: &[&str]) -> Caller {
        let fetch = Fetch {
            wait_ms: DurationMs(10_000),
            ..fetch_of(queues, 1)
        };
        self.send(Some(worker), Operation::Fetch(fetch))
    }

    /// The jobs of a fetch that has waited, when it was answered.
    pub(crate) fn waited(&mut self, caller: Caller) -> Option<Vec<GrantedJob>> {
        let reply = self.reply(caller)?;
        Some(fetched(reply.result).jobs)
    }

    fn lease_result(&mut self, worker: SessionId, operation: Operation) -> LeaseResult {
        match self.ask(Some(worker), operation) {
            Ok(ReplyBody::Lease(reply)) => reply.results[0].clone(),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn ack(&mut self, worker: SessionId, job: &GrantedJob) -> LeaseResult {
        self.ack_pair(worker, job.id, job.lease)
    }

    pub(crate) fn ack_pair(
        &mut self,
        worker: SessionId,
        job: JobId,
        lease: LeaseId,
    ) -> LeaseResult {
        let leases = vec![ack_item(job, lease)];
        self.lease_result(worker, Operation::Ack(Ack { leases }))
    }

    pub(crate) fn fail(&mut self, worker: SessionId, job: &GrantedJob) -> LeaseResult {
        self.fail_with(worker, fail_item(job.id, job.lease))
    }

    pub(crate) fn fail_with(&mut self, worker: SessionId, item: FailItem) -> LeaseResult {
        self.lease_result(worker, Operation::Fail(Fail { leases: vec![item] }))
    }

    pub(crate) fn release(
        &mut self,
        worker: SessionId,
        job: &GrantedJob,
        delay_ms: Option<DurationMs>,
    ) -> LeaseResult {
        let leases = vec![ReleaseItem {
            job: job.id,
            lease: job.lease,
            delay_ms,
        }];
        self.lease_result(worker, Operation::Release(Release { leases }))
    }

    pub(crate) fn extend(
        &mut self,
        worker: SessionId,
        job: &GrantedJob,
        ms: DurationMs,
    ) -> LeaseResult {
        let leases = vec![ExtendItem {
            job: job.id,
            lease: job.lease,
            ms,
        }];
        self.lease_result(worker, Operation::Extend(Extend { leases }))
    }

    pub(crate) fn heartbeat(&mut self, worker: SessionId) -> Result<HeartbeatReply, WireError> {
        match self.ask(Some(worker), Operation::Heartbeat(Heartbeat {}))? {
            ReplyBody::Heartbeat(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    /// The sessions that the store has.
    pub(crate) fn sessions(&self) -> Vec<SessionId> {
        self.store.sessions.keys().copied().collect()
    }

    pub(crate) fn goodbye(&mut self, worker: SessionId) {
        self.ask(Some(worker), Operation::Goodbye(Goodbye {}))
            .unwrap();
    }

    pub(crate) fn look(&mut self, job: JobId) -> Option<JobView> {
        match self.ask(None, Operation::JobGet(JobGet { job })) {
            Ok(ReplyBody::Job(view)) => Some(*view),
            Ok(other) => panic!("{other:?}"),
            Err(_not_found) => None,
        }
    }

    pub(crate) fn state(&mut self, job: JobId) -> Option<JobState> {
        self.look(job).map(|view| view.state)
    }

    pub(crate) fn revive(&mut self, select: DeadSelect) -> CountReply {
        match self.ask(None, Operation::DeadRevive(select)) {
            Ok(ReplyBody::Count(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn purge(&mut self, select: DeadSelect) -> CountReply {
        match self.ask(None, Operation::DeadPurge(select)) {
            Ok(ReplyBody::Count(reply)) => reply,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn pause(&mut self, queue: &str) {
        let queues = vec![queue.parse().unwrap()];
        let pause = QueuePause {
            queues,
            ..QueuePause::default()
        };
        self.ask(None, Operation::QueuePause(pause)).unwrap();
    }

    pub(crate) fn unpause(&mut self, queue: &str) {
        let queues = vec![queue.parse().unwrap()];
        self.ask(None, Operation::QueueResume(QueueNames { queues }))
            .unwrap();
    }

    pub(crate) fn counters(&mut self, queue: &str) -> Counters {
        let pattern = Some(queue.parse().unwrap());
        match self.ask(None, Operation::QueueList(QueueList { pattern })) {
            Ok(ReplyBody::Queues(reply)) => reply.queues[0].counters,
            other => panic!("{other:?}"),
        }
    }

    /// A worker fails a job once with an order that leaves it dead.
    pub(crate) fn kill(&mut self, worker: SessionId, queue: &str) -> JobId {
        let job = self.fetch(worker, queue, 1).remove(0);
        let item = FailItem {
            dead: true,
            ..fail_item(job.id, job.lease)
        };
        assert_eq!(self.fail_with(worker, item).state, Some(JobState::Dead));
        job.id
    }
}

/// Options with little memory for settled leases, so that tests start fast.
pub(crate) fn small() -> Options {
    Options {
        settled_max: 4096,
        ..Options::default()
    }
}

/// Options with so few heads that windows hold but sixteen.
pub(crate) fn tiny() -> Options {
    Options {
        heads: HeadBudget {
            heads_max: 0,
            bytes_max: 0,
        },
        ..small()
    }
}

pub(crate) fn kind() -> Kind {
    "mail".parse().unwrap()
}

/// A job for a queue.
pub(crate) fn job(queue: &str) -> JobSpec {
    JobSpec {
        queue: queue.parse().unwrap(),
        ..JobSpec::new(kind(), &b"payload"[..])
    }
}

/// Jobs for a queue whose payloads are their numbers.
pub(crate) fn numbered(queue: &str, numbers: std::ops::Range<u64>) -> Vec<JobSpec> {
    let jobs = numbers.map(|number| JobSpec {
        queue: queue.parse().unwrap(),
        ..JobSpec::new(kind(), number.to_string())
    });
    jobs.collect()
}

pub(crate) fn fetch_of(queues: &[&str], max: u32) -> Fetch {
    Fetch {
        queues: queues.iter().map(|queue| queue.parse().unwrap()).collect(),
        max,
        ..Fetch::default()
    }
}

pub(crate) fn ack_item(job: JobId, lease: LeaseId) -> AckItem {
    AckItem::of(job, lease)
}

pub(crate) fn fail_item(job: JobId, lease: LeaseId) -> FailItem {
    FailItem {
        job,
        lease,
        kind: "error".to_owned(),
        message: "it broke".to_owned(),
        backtrace: String::new(),
        retry_in_ms: None,
        dead: false,
        discard: false,
    }
}

pub(crate) fn lease_ref(job: &GrantedJob) -> LeaseRef {
    LeaseRef {
        job: job.id,
        lease: job.lease,
    }
}

pub(crate) fn ids(jobs: &[GrantedJob]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

fn fetched(result: Result<ReplyBody, WireError>) -> FetchReply {
    match result {
        Ok(ReplyBody::Fetch(reply)) => reply,
        other => panic!("{other:?}"),
    }
}
