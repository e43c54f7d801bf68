//! Makes a store out of what another one says: every index, counter and lane is made anew, so that
//! they agree by construction.
//!
//! Each job gets a record of its own under its old id; the ready ones stand in their lanes in the
//! order in which they come. It is what import and repair have in common.

mod batches;
mod workflows;

use std::{collections::BTreeMap, sync::Arc};

use bytes::Bytes;
use foldhash::{HashSet, HashSetExt as _};
use ganger_engine::{
    PRODUCER_IDLE_MAX, batch,
    change::{Change, Group},
    keys::{LaneNumbers, hold_lock},
    queue::DEAD_RETENTION_DEFAULT,
    records::{
        BatchRecord, BlobKind, Closed, CronRecord, Entry, GroupNumber, HeadRecord, JobRecord, Lane,
        OutcomeRecord, Place, ProducerNumber, QueueNumber, QueueRecord, Run, RunKey, Timer,
        TimerKind, UniqueKey, UniqueRecord, blob_parts, bytes_parts,
    },
    settings::pause_timer,
    unique::{Named, is_held},
};
use ganger_protocol::{JobId, NamespaceName, Timestamp, job::JobState, response::Counters};

use super::{
    StoreError, checkpoint, doctor,
    format::{DataDirectory, FORMAT},
    group::{Effect, Physical},
    keys::{Key, Meta},
    log::{FileLog, Log, LogOptions},
    rebuild::add_up,
    records::{self, MadeRecord},
    salvage::{Told, WholeJob},
    sled::SledTable,
    table::{Table, apply_with_room},
};

/// The one group that all of it was written in.
const GROUP: GroupNumber = GroupNumber(1);

/// Changes of one batch of the table.
const BATCH_CHANGES: usize = 500;

/// References of one run: they fit into a value.
const RUN_REFERENCES: usize = 120;

/// What was built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Built {
    /// Queues.
    pub queues: u64,
    /// Jobs.
    pub jobs: u64,
    /// Cron entries.
    pub crons: u64,
    /// Limits.
    pub limits: u64,
    /// Batches.
    pub batches: u64,
}

/// A store in the making.
#[derive(Debug)]
pub struct Builder {
    table: SledTable,
    log: std::path::PathBuf,
    head: HeadRecord,
    secret: [u8; 32],
    lanes: LaneNumbers,
    /// Unique keys that are held and not written yet.
    unwritten_locks: HashSet<UniqueKey>,
    changes: Vec<Change>,
    queues: BTreeMap<QueueNumber, QueueRecord>,
    /// The run of a lane that takes references.
    open: BTreeMap<Lane, (RunKey, Run)>,
    /// Jobs of the changes that are not in the table yet.
    unwritten: HashSet<JobId>,
    /// The newest outcome of each producer.
    producers: BTreeMap<ProducerNumber, Timestamp>,
    batches: batches::Batches,
    built: Built,
}

impl Builder {
    /// Begins in an empty data directory, behind the numbers of `head`.
    ///
    /// # Errors
    /// [`StoreError::Table`] when it cannot be written.
    pub fn begin(
        directory: &DataDirectory,
        head: HeadRecord,
        secret: [u8; 32],
        cache_bytes: u64,
    ) -> Result<Self, StoreError> {
        Ok(Self {
            table: SledTable::open(&directory.table, cache_bytes)?,
            log: directory.log.clone(),
            head,
            secret,
            lanes: LaneNumbers::new(&secret),
            unwritten_locks: HashSet::new(),
            changes: Vec::new(),
            queues: BTreeMap::new(),
            open: BTreeMap::new(),
            unwritten: HashSet::new(),
            producers: BTreeMap::new(),
            batches: batches::Batches::default(),
            built: Built::default(),
        })
    }

    /// Takes something that a store says. Queues and batches come before their jobs.
    ///
    /// # Errors
    /// [`StoreError`] when the table cannot be written.
    pub fn take(&mut self, told: Told) -> Result<(), StoreError> {
        match told {
            Told::Queue(queue) => self.queue(*queue),
            Told::Job(job) => {
                let id = job.record.id;
                let is_known = self.table.read(&Key::job(&id))?.is_some();
                if is_known || !self.unwritten.insert(id) {
                    return Err(StoreError::Incomplete {
                        what: "a job comes a second time",
                    });
                }
                self.job(*job)?;
            }
            Told::Outcome(outcome) => self.outcome(outcome),
            Told::Cron(cron) => self.cron(cron),
            Told::Limit(limit) => {
                self.built.limits += 1;
                self.changes.push(Change::PutLimit(limit));
            }
            Told::Batch(batch) => self.batch(*batch),
            Told::Node(node) => self.node(*node)?,
        }
        if self.changes.len() >= BATCH_CHANGES {
            self.write()?;
        }
        Ok(())
    }

    fn queue(&mut self, mut queue: QueueRecord) {
        let counters = &mut queue.counters;
        *counters = Counters {
            scheduled: 0,
            blocked: 0,
            ready: 0,
            leased: 0,
            dead: 0,
            done_kept: 0,
            cancelled_kept: 0,
            expired_kept: 0,
            ..*counters
        };
        if let Some(at) = queue.paused_until {
            let timer = pause_timer(queue.number, at);
            self.changes.push(Change::PutTimer(timer));
        }
        self.head.next_queue = self.head.next_queue.max(queue.number.0.saturating_add(1));
        self.queues.insert(queue.number, queue);
        self.built.queues += 1;
    }

    fn job(&mut self, job: WholeJob) -> Result<(), StoreError> {
        let WholeJob {
            mut record,
            errors,
            after,
            result,
        } = job;
        let (id, queue) = (record.id, self.queue_of(&record));
        self.batches.member(&mut record);
        record.spilled_parts = record.content.as_ref().map_or(0, |it| it.spilled_parts());
        if record.spilled_parts > 0
            && let Some(content) = &record.content
        {
            self.changes
                .push(Change::PutContent(id, Arc::clone(content)));
        }
        record.error_first = 0;
        record.error_parts.clear();
        for (slot, error) in (0..10_u8).zip(errors) {
            let bytes = 64 + error.kind.len() + error.message.len() + error.backtrace.len();
            record.error_parts.push(blob_parts(bytes));
            self.changes
                .push(Change::PutError(id, slot, Box::new(error)));
        }
        self.bytes(&mut record, result);
        record.place = None;
        record.cancel_at = None;
        self.wait(&mut record, after);
        let counters = self.queues.get_mut(&queue).map(|queue| &mut queue.counters);
        if let Some(counters) = counters {
            match record.state {
                JobState::Scheduled => counters.scheduled += 1,
                JobState::Blocked => counters.blocked += 1,
                JobState::Ready | JobState::Leased => counters.ready += 1,
                JobState::Dead => counters.dead += 1,
                JobState::Done => counters.done_kept += 1,
                JobState::Cancelled => counters.cancelled_kept += 1,
                JobState::Expired => counters.expired_kept += 1,
            }
        }
        self.lock(&mut record)?;
        self.lane(&mut record)?;
        let waits = matches!(
            record.state,
            JobState::Scheduled | JobState::Blocked | JobState::Ready | JobState::Leased
        );
        if let Some(at) = record.content.as_ref().and_then(|it| it.expires_at)
            && waits
        {
            self.set_timer(TimerKind::Expire, at, *id.as_bytes());
        }
        match record.state {
            JobState::Scheduled => {
                let at = record.run_at.unwrap_or_default();
                self.set_timer(TimerKind::Due, at, *id.as_bytes());
            }
            JobState::Blocked => {}
            JobState::Ready | JobState::Leased => {
                record.state = JobState::Ready;
                record.place = Some(self.stand(&record));
            }
            JobState::Done | JobState::Dead | JobState::Cancelled | JobState::Expired => {
                let at = record.closed_at.unwrap_or_default();
                record.closed_at = Some(at);
                self.changes.push(Change::PutClosed(Closed {
                    queue,
                    state: record.state,
                    at,
                    job: id,
                }));
                let retention = self.queues.get(&queue).and_then(|it| it.dead_retention_ms);
                let end = at.plus(retention.unwrap_or(DEAD_RETENTION_DEFAULT));
                let end = record.run_at.unwrap_or(end);
                record.run_at = Some(end);
                self.set_timer(TimerKind::Retention, end, *id.as_bytes());
            }
        }
        self.built.jobs += 1;
        self.changes.push(Change::PutJob(Box::new(record)));
        Ok(())
    }

    /// Writes what a job has of blobs that hold bytes.
    fn bytes(&mut self, record: &mut JobRecord, result: Option<Bytes>) {
        record.result_parts = result.as_deref().map_or(0, bytes_parts);
        if let Some(result) = result {
            let change = Change::PutBytes(record.id, BlobKind::Result, result);
            self.changes.push(change);
        }
        if let Some(progress) = &mut record.progress {
            progress.cursor_parts = progress.cursor.as_deref().map_or(0, bytes_parts);
            if let Some(cursor) = &progress.cursor {
                let change = Change::PutBytes(record.id, BlobKind::Cursor, cursor.clone());
                self.changes.push(change);
            }
        }
    }

    /// A job takes the unique key that it held. One that was leased is made to wait again: if its
    /// key until `start` has gone to another job since, its grant is what it is known by. Keys until
    /// `ttl` are not told of and begin free.
    fn lock(&mut self, record: &mut JobRecord) -> Result<(), StoreError> {
        record.holds_unique = false;
        let Some(content) = record.content.clone() else {
            return Ok(());
        };
        let birth = QueueNumber(record.id.birth().queue);
        let (Some(unique), Some(queue)) = (content.unique.as_deref(), self.queues.get(&birth))
        else {
            return Ok(());
        };
        let state = match record.state {
            JobState::Leased => JobState::Ready,
            state => state,
        };
        if !is_held(unique.until, state, record.attempt) {
            return Ok(());
        }
        let named = Named {
            namespace: &queue.namespace,
            queue: &queue.name,
            kind: &content.kind,
            payload: &content.payload,
        };
        let key = UniqueKey::of(&self.secret, &named, unique);
        let is_known = self.table.read(&Key::unique(&key))?.is_some();
        if is_known || !self.unwritten_locks.insert(key) {
            record.attempt = record.attempt.max(1);
            return Ok(());
        }
        record.holds_unique = state == JobState::Dead;
        let lock = UniqueRecord {
            job: record.id,
            ends_at: None,
        };
        self.changes.push(Change::PutUnique(key, lock));
        Ok(())
    }

    /// A job that stood in the lane of its key does so again, and one that kept others of its key
    /// back.
    fn lane(&mut self, record: &mut JobRecord) -> Result<(), StoreError> {
        let queue = self.queues.get(&record.queue);
        let key = record.content.as_ref().and_then(|it| it.key.as_ref());
        let lane = key.zip(queue);
        let lane = lane.map_or(0, |(key, queue)| self.lanes.of(&queue.namespace, key));
        let is_over = record.state.is_terminal();
        let lock = hold_lock(lane);
        record.holds_key = record.holds_key
            && !is_over
            && lane != 0
            && self.table.read(&Key::unique(&lock))?.is_none()
            && self.unwritten_locks.insert(lock);
        if record.holds_key {
            let held = UniqueRecord {
                job: record.id,
                ends_at: None,
            };
            self.changes.push(Change::PutUnique(lock, held));
        }
        record.lane = match record.lane {
            0 if !record.holds_key => 0,
            _ => lane,
        };
        Ok(())
    }

    /// The queue of a job; one whose record is gone gets a name that says so.
    fn queue_of(&mut self, record: &JobRecord) -> QueueNumber {
        let number = record.queue;
        if !self.queues.contains_key(&number) {
            let name = format!("recovered-{}", number.0)
                .parse()
                .unwrap_or_default();
            self.queue(QueueRecord {
                number,
                namespace: NamespaceName::default(),
                name,
                paused: true,
                paused_until: None,
                is_purged: false,
                jobs_max: None,
                timeout_ms: None,
                backoff: None,
                dead_max: None,
                dead_retention_ms: None,
                retain_ms: None,
                retained_max: None,
                counters: Counters::default(),
            });
        }
        number
    }

    /// A place at the tail of a job's lane; at the head, for one that keeps the others back.
    fn stand(&mut self, record: &JobRecord) -> Place {
        let lane = Lane {
            queue: record.queue,
            priority: record.priority,
            lane: record.lane,
        };
        if record.holds_key {
            let key = RunKey {
                lane,
                position: self.head.position_at_head(),
            };
            let entries = vec![Entry::Reference(record.id)];
            self.changes.push(Change::PutRun(key, Run { entries }));
            return Place { run: key, index: 0 };
        }
        if let Some((_, run)) = self.open.get(&lane)
            && run.entries.len() >= RUN_REFERENCES
            && let Some((key, run)) = self.open.remove(&lane)
        {
            self.changes.push(Change::PutRun(key, run));
        }
        let head = &mut self.head;
        let (key, run) = self.open.entry(lane).or_insert_with(|| {
            let position = head.position_at_tail();
            (RunKey { lane, position }, Run::default())
        });
        run.entries.push(Entry::Reference(record.id));
        Place {
            run: *key,
            index: u8::try_from(run.entries.len() - 1).unwrap_or(u8::MAX),
        }
    }

    fn outcome(&mut self, outcome: Box<OutcomeRecord>) {
        let newest = self.producers.entry(outcome.producer).or_default();
        *newest = outcome.at.max(*newest);
        self.changes.push(Change::PutOutcome(outcome));
    }

    fn cron(&mut self, cron: Box<CronRecord>) {
        if let Some(at) = cron.next_at {
            let timer = doctor::cron_timer(cron.number, at);
            self.changes.push(Change::PutTimer(timer));
        }
        self.built.crons += 1;
        self.changes.push(Change::PutCron(cron));
    }

    fn batch(&mut self, batch: BatchRecord) {
        self.built.batches += 1;
        match batch.settled_at {
            None => self.batches.take(batch),
            Some(_) => self.put_batch(batch),
        }
    }

    fn put_batch(&mut self, batch: BatchRecord) {
        if let Some(at) = batch.deadline() {
            let timer = batch::timer(batch.id, at);
            self.changes.push(Change::PutTimer(timer));
        }
        self.changes.push(Change::PutBatch(Box::new(batch)));
    }

    fn set_timer(&mut self, what: TimerKind, at: Timestamp, id: [u8; JobId::BYTES]) {
        self.changes.push(Change::PutTimer(Timer { at, what, id }));
    }

    fn write(&mut self) -> Result<(), StoreError> {
        self.unwritten.clear();
        self.unwritten_locks.clear();
        let group = Group {
            number: GROUP,
            changes: std::mem::take(&mut self.changes),
        };
        let physical = Physical::encode(&group, 0)?;
        let rows = physical.ops.iter().map(|op| match &op.effect {
            Effect::Put(at) => (op.key, Some(physical.body.slice(at.clone()))),
            Effect::Delete | Effect::DeletePrefix => (op.key, None),
        });
        let rows: Vec<_> = rows.collect();
        Ok(apply_with_room(&self.table, &rows)?)
    }

    /// Ends the store, durable.
    ///
    /// # Errors
    /// [`StoreError`] when it cannot be written.
    pub fn finish(mut self) -> Result<Built, StoreError> {
        for (key, run) in std::mem::take(&mut self.open).into_values() {
            self.changes.push(Change::PutRun(key, run));
        }
        for batch in std::mem::take(&mut self.batches).finish() {
            self.put_batch(batch);
        }
        for (producer, newest) in std::mem::take(&mut self.producers) {
            let mut id = [0; JobId::BYTES];
            if let Some(slot) = id.last_chunk_mut() {
                *slot = producer.0.to_be_bytes();
            }
            let idle = newest.plus(PRODUCER_IDLE_MAX);
            self.set_timer(TimerKind::ProducerIdle, idle, id);
        }
        for (_, mut queue) in std::mem::take(&mut self.queues) {
            balance(&mut queue.counters);
            self.changes.push(Change::PutQueue(Box::new(queue)));
        }
        self.changes.push(Change::PutHead(self.head));
        self.write()?;
        self.look_at_missed()?;
        let key = Key::meta(Meta::Made);
        let made = MadeRecord {
            format: FORMAT,
            secret: self.secret,
        };
        let mut value = Vec::new();
        records::put_value(&mut value, key.as_slice(), GroupNumber(0), |out| {
            records::put_made(out, &made);
        });
        let digest = add_up(&self.table)?;
        self.table.apply(&[
            (key, Some(Bytes::from(value))),
            checkpoint::applied_row(GROUP),
            digest.row(GROUP),
        ])?;
        self.table.flush()?;
        FileLog::open(&self.log, LogOptions::default())?.acquire(GROUP)?;
        Ok(self.built)
    }
}

/// Every job that was pushed came to something: what is missing was deleted.
fn balance(counters: &mut Counters) {
    // What is retained is a part of what came to its end.
    counters.done = counters.done.max(counters.done_kept);
    counters.cancelled = counters.cancelled.max(counters.cancelled_kept);
    counters.expired = counters.expired.max(counters.expired_kept);
    let known = counters.done + counters.cancelled + counters.expired + counters.kept();
    let known = known + counters.moved_out;
    counters.pushed = counters.pushed.max(known.saturating_sub(counters.moved_in));
    counters.deleted = counters.pushed + counters.moved_in - known;
}
