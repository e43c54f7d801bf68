//! What a closed store says, without how it lies there: queues, jobs with everything that is known
//! of them, outcomes. What is damaged is told to whoever asks, and left out.
//!
//! A leased job is told as a ready one: a store that is made out of this has no workers.
//! `build.rs` makes a store out of it again.

use std::collections::BTreeSet;

use bytes::Bytes;
use foldhash::{HashMap, HashMapExt as _};
use ganger_engine::{
    facts::NodeRow,
    records::{
        BatchRecord, BlobKind, CronRecord, Entry, HeadRecord, JobRecord, LeftRun, LimitRecord,
        OutcomeRecord, PackedJob, Place, QueueNumber, QueueRecord, RunKey,
    },
    workflow::timer,
};
use ganger_protocol::{
    JobId, Timestamp,
    job::{JobError, JobState},
};

use super::{
    Store, StoreError, bad_key, batch, cron, damaged, describe,
    keys::{Key, Meta, Prefix},
    limit,
    rebuild::RESTORE_STEP,
    records,
};

/// Something that a store says.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    /// A queue.
    Queue(Box<QueueRecord>),
    /// A job: the ready ones of a lane in their order.
    Job(Box<WholeJob>),
    /// The outcome of a numbered push.
    Outcome(Box<OutcomeRecord>),
    /// A batch, before its jobs and the batches in it.
    Batch(Box<BatchRecord>),
    /// A node of the graph of a batch, after its batch.
    Node(Box<NodeRow>),
    /// A limit.
    Limit(Box<LimitRecord>),
    /// A cron entry.
    Cron(Box<CronRecord>),
}

/// A job with everything that is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeJob {
    /// The job; its content is there, its place means nothing.
    pub record: JobRecord,
    /// The last errors, oldest first.
    pub errors: Vec<JobError>,
    /// `blocked`: the jobs that it waits for and that may still come.
    pub after: Vec<JobId>,
    /// The result, when it has one.
    pub result: Option<Bytes>,
}

/// Where what a store says goes, and what cannot be said.
pub trait Listener {
    /// Something whole.
    ///
    /// # Errors
    /// When the listener cannot go on.
    fn told(&mut self, told: Told) -> Result<(), StoreError>;

    /// Something that is damaged, and why.
    fn lost(&mut self, what: String);
}

/// The numbers behind which a store that is made out of this one has to begin. When the head is
/// gone, they are behind everything that can be seen.
///
/// # Errors
/// When the table cannot be read.
pub fn head(store: &Store) -> Result<HeadRecord, StoreError> {
    let key = Key::meta(Meta::Head);
    if let Some(value) = store.read_value(&key)?
        && let Ok((_, body)) = store.open_record(&key, &value)
        && let Ok(head) = records::head(body)
    {
        return Ok(head);
    }
    let mut head = HeadRecord {
        wall: Timestamp(0),
        position_high: ganger_engine::POSITION_START,
        position_low: ganger_engine::POSITION_START,
        reserved: 1,
        next_queue: 1,
    };
    let mut seen = |place: &Place| {
        let (position, queue) = (place.run.position, place.run.lane.queue.0);
        head.position_high = head.position_high.max(position);
        head.position_low = head.position_low.min(position);
        head.next_queue = head.next_queue.max(queue.saturating_add(1));
    };
    for prefix in [Prefix::Run, Prefix::ScheduledRun] {
        store.scan_all(prefix, |key, _| {
            if let Some(run) = key.to_run() {
                seen(&Place { run, index: 0 });
            }
            Ok(())
        })?;
    }
    store.scan_all(Prefix::Job, |key, _| {
        if let Some(job) = key.to_job() {
            seen(&Place::of_birth(&job));
        }
        Ok(())
    })?;
    store.scan_all(Prefix::Queue, |key, _| {
        let number = key.to_queue().map_or(0, |queue| queue.0);
        head.next_queue = head.next_queue.max(number.saturating_add(1));
        Ok(())
    })?;
    store.scan_all(Prefix::Leases, |key, value| {
        let body = store.open_record(key, value).map(|(_, body)| body);
        let rows = body.ok().and_then(|body| records::leases(body).ok());
        for row in rows.unwrap_or_default() {
            head.reserved = head.reserved.max(row.lease.0.saturating_add(1));
        }
        Ok(())
    })?;
    store.scan_all(Prefix::Cron, |key, _| {
        let number = key.to_cron().map_or(0, |cron| cron.0);
        head.reserved = head.reserved.max(number.saturating_add(1));
        Ok(())
    })?;
    store.scan_all(Prefix::Batch, |key, _| {
        let number = key.to_batch().map_or(0, |(_, batch)| batch.0);
        head.reserved = head.reserved.max(number.saturating_add(1));
        Ok(())
    })?;
    // Numbers that were given and left no trace.
    head.position_high = head.position_high.saturating_add(RESTORE_STEP);
    head.position_low = head.position_low.saturating_sub(RESTORE_STEP);
    head.reserved = head.reserved.saturating_add(RESTORE_STEP);
    Ok(head)
}

/// Tells everything that a store says.
///
/// # Errors
/// When the table cannot be read any further, or the listener cannot go on.
pub fn tell(store: &Store, listener: &mut dyn Listener) -> Result<(), StoreError> {
    let mut teller = Teller {
        store,
        listener,
        left: HashMap::new(),
        purged: BTreeSet::new(),
    };
    teller.each(Prefix::Queue, Teller::queue)?;
    teller.each(Prefix::Batch, Teller::batch)?;
    teller.each(Prefix::Node, Teller::node)?;
    teller.each(Prefix::Acks, Teller::acks)?;
    teller.each(Prefix::Run, Teller::run)?;
    teller.each(Prefix::ScheduledRun, Teller::run)?;
    teller.each(Prefix::Job, Teller::job)?;
    teller.each(Prefix::Outcome, Teller::outcome)?;
    teller.each(Prefix::Limit, Teller::limit)?;
    teller.each(Prefix::Cron, Teller::cron)
}

struct Teller<'a> {
    store: &'a Store,
    listener: &'a mut dyn Listener,
    /// Entries that left their runs.
    left: HashMap<RunKey, LeftRun>,
    /// Old numbers of purged queues, of which nothing is told.
    purged: BTreeSet<QueueNumber>,
}

impl Teller<'_> {
    fn each(
        &mut self,
        prefix: Prefix,
        tell: fn(&mut Self, &Key, &[u8]) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let store = self.store;
        store.scan_all(prefix, |key, value| {
            let told = match store.open_record(key, value) {
                Ok((_, body)) => tell(self, key, body),
                Err(error) => Err(error),
            };
            match told {
                Err(error @ StoreError::Damaged { .. }) => {
                    self.listener.lost(describe(&error));
                    Ok(())
                }
                told => told,
            }
        })
    }

    fn queue(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let number = key.to_queue().ok_or_else(|| bad_key(key))?;
        let queue = records::queue(number, body).map_err(damaged(key))?;
        if queue.is_purged {
            self.purged.insert(number);
            return Ok(());
        }
        self.listener.told(Told::Queue(Box::new(queue)))
    }

    fn acks(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        for row in records::acks(body).map_err(damaged(key))? {
            let left = self.left.entry(row.run).or_insert(row);
            left.left.extend(&row.left);
        }
        Ok(())
    }

    fn run(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let run_key = key.to_run().ok_or_else(|| bad_key(key))?;
        if self.purged.contains(&run_key.lane.queue) {
            return Ok(());
        }
        let run = records::run(body).map_err(damaged(key))?;
        let left = match run_key.lane.is_scheduled() {
            true => self.left_of(&run_key)?,
            false => self.left.get(&run_key).copied(),
        };
        let left = left.map(|left| left.left);
        for (entry, index) in run.entries.into_iter().zip(0_u8..) {
            if left.is_some_and(|left| left.contains(index)) {
                continue;
            }
            let place = Place {
                run: run_key,
                index,
            };
            let told = match entry {
                Entry::Job(packed) => self.packed(place, None, packed),
                Entry::Scheduled(at, packed) => self.packed(place, Some(at), packed),
                Entry::Reference(job) => self.referenced(place, &job),
            };
            match told {
                Err(error @ StoreError::Damaged { .. }) => self.listener.lost(describe(&error)),
                told => told?,
            }
        }
        Ok(())
    }

    /// What left a scheduled run; when that is damaged, all that has no record is still in it.
    fn left_of(&mut self, run: &RunKey) -> Result<Option<LeftRun>, StoreError> {
        match self.store.left_of(run) {
            Err(error @ StoreError::Damaged { .. }) => {
                self.listener.lost(describe(&error));
                Ok(None)
            }
            left => left,
        }
    }

    fn packed(
        &mut self,
        place: Place,
        at: Option<Timestamp>,
        mut packed: PackedJob,
    ) -> Result<(), StoreError> {
        let id = place.job_id(self.store.shard());
        if self.store.read_value(&Key::job(&id))?.is_some() {
            // Its record says more.
            return Ok(());
        }
        if packed.spilled_parts > 0 {
            packed.content = self.store.spilled(&id)?;
        }
        if packed.content.is_none() {
            self.listener.lost(format!("job {id}: its content is gone"));
            return Ok(());
        }
        let record = match at {
            Some(at) => JobRecord {
                place: None,
                ..JobRecord::scheduled(id, place, at, packed)
            },
            None => JobRecord::fresh(id, place, packed),
        };
        self.listener.told(Told::Job(Box::new(WholeJob {
            record,
            errors: Vec::new(),
            after: Vec::new(),
            result: None,
        })))
    }

    fn referenced(&mut self, place: Place, id: &JobId) -> Result<(), StoreError> {
        match self.store.job_record(id, true) {
            Ok(Some(record)) if record.place == Some(place) => self.whole(record),
            // One that stands elsewhere or is damaged is told with the other records.
            Ok(Some(_)) | Err(StoreError::Damaged { .. }) => Ok(()),
            Ok(None) => {
                self.listener.lost(format!("job {id}: its record is gone"));
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Jobs that are in no lane, and those whose lane does not know them.
    fn job(&mut self, key: &Key, _: &[u8]) -> Result<(), StoreError> {
        let id = key.to_job().ok_or_else(|| bad_key(key))?;
        let Some(record) = self.store.job_record(&id, true)? else {
            return Ok(());
        };
        if self.purged.contains(&record.queue) {
            return Ok(());
        }
        if record.state == JobState::Ready
            && let Some(place) = record.place
            && self.stands_at(&id, &place)?
        {
            return Ok(());
        }
        self.whole(record)
    }

    fn stands_at(&self, id: &JobId, place: &Place) -> Result<bool, StoreError> {
        let key = Key::run(&place.run);
        let Some(value) = self.store.read_value(&key)? else {
            return Ok(false);
        };
        let Ok((_, body)) = self.store.open_record(&key, &value) else {
            return Ok(false);
        };
        let left = self.left.get(&place.run);
        let has_left = left.is_some_and(|left| left.left.contains(place.index));
        let entry = records::run_entry(body, place.index).ok();
        let entry = entry.and_then(|(_, entry)| entry);
        Ok(!has_left && entry == Some(Entry::Reference(*id)))
    }

    fn whole(&mut self, mut record: JobRecord) -> Result<(), StoreError> {
        let id = record.id;
        if record.content.is_none() {
            self.listener.lost(format!("job {id}: its content is gone"));
            return Ok(());
        }
        let mut errors = Vec::new();
        let slots = (0..10_u8).map(|at| (record.error_first + at) % 10);
        for (slot, _) in slots.zip(&record.error_parts) {
            let parts = |part| Key::blob(&id, BlobKind::Error(slot), part);
            let error = self.store.read_parts(parts).and_then(|body| {
                body.map(|(_, body)| records::error(&body).map_err(damaged(&parts(0))))
                    .transpose()
            });
            match error {
                Ok(Some(error)) => errors.push(error),
                Ok(None) => self
                    .listener
                    .lost(format!("job {id}: one of its errors is gone")),
                Err(error @ StoreError::Damaged { .. }) => self.listener.lost(describe(&error)),
                Err(error) => return Err(error),
            }
        }
        let result = match record.result_parts {
            0 => None,
            _ => self.bytes(&id, BlobKind::Result, "its result is gone")?,
        };
        if record.state == JobState::Leased {
            record.state = JobState::Ready;
        }
        let after = self.awaited_by(&mut record)?;
        self.listener.told(Told::Job(Box::new(WholeJob {
            record,
            errors,
            result,
            after,
        })))
    }

    /// The jobs that a blocked one waits for. One that is done counts as looked at.
    fn awaited_by(&mut self, record: &mut JobRecord) -> Result<Vec<JobId>, StoreError> {
        let mut after = Vec::new();
        if record.state != JobState::Blocked {
            return Ok(after);
        }
        let dependencies = match self.store.dependencies(record.id) {
            Err(error @ StoreError::Damaged { .. }) => {
                self.listener.lost(describe(&error));
                return Ok(after);
            }
            dependencies => dependencies?,
        };
        for job in dependencies {
            let done = Key::timer(&timer(job, true));
            match self.store.read_value(&done)? {
                Some(_) => record.waits_for = record.waits_for.saturating_sub(1),
                None => after.push(job),
            }
        }
        if record.waits_for == 0 {
            record.state = match record.run_at {
                Some(_) => JobState::Scheduled,
                None => JobState::Ready,
            };
        }
        Ok(after)
    }

    fn node(&mut self, key: &Key, _: &[u8]) -> Result<(), StoreError> {
        let (batch, job, part) = key.to_node().ok_or_else(|| bad_key(key))?;
        if part != Some(0) {
            return Ok(());
        }
        match self.store.node_row(batch, job)? {
            Some(row) => self.listener.told(Told::Node(Box::new(row))),
            None => Ok(()),
        }
    }

    /// The bytes of a blob; what is damaged or gone is told.
    fn bytes(
        &mut self,
        id: &JobId,
        kind: BlobKind,
        gone: &str,
    ) -> Result<Option<Bytes>, StoreError> {
        match self.store.bytes_of(id, kind) {
            Ok(Some(bytes)) => return Ok(Some(bytes)),
            Ok(None) => self.listener.lost(format!("job {id}: {gone}")),
            Err(error @ StoreError::Damaged { .. }) => self.listener.lost(describe(&error)),
            Err(error) => return Err(error),
        }
        Ok(None)
    }

    fn cron(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let number = key.to_cron().ok_or_else(|| bad_key(key))?;
        let cron = cron::cron(number, body).map_err(damaged(key))?;
        self.listener.told(Told::Cron(Box::new(cron)))
    }

    fn limit(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let limit = limit::limit(body).map_err(damaged(key))?;
        self.listener.told(Told::Limit(Box::new(limit)))
    }

    fn batch(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let (_, id) = key.to_batch().ok_or_else(|| bad_key(key))?;
        let batch = batch::batch(id, body).map_err(damaged(key))?;
        self.listener.told(Told::Batch(Box::new(batch)))
    }

    fn outcome(&mut self, key: &Key, _: &[u8]) -> Result<(), StoreError> {
        let (producer, part, slot) = key.to_outcome().ok_or_else(|| bad_key(key))?;
        if part > 0 {
            return Ok(());
        }
        let parts = |part| Key::outcome(producer, slot, part);
        match self.store.read_parts(parts)? {
            None => Ok(()),
            Some((_, body)) => {
                let outcome = records::outcome(producer, &body).map_err(damaged(key))?;
                self.listener.told(Told::Outcome(Box::new(outcome)))
            }
        }
    }
}
