//! Reads: what the engine needs, answered from the overlay merged with the table.
//!
//! Each read of one key or one scan is of one moment; a need that takes several of them may see
//! groups that were committed in between, unless the caller holds commits off. Nothing here writes.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use ganger_engine::{
    facts::{Fact, HeadEntry, HeadRow, Heads, Need, RunDue},
    records::{
        BatchRecord, Bits, BlobKind, Closed, Content, Entry, GroupNumber, JobRecord, Lane, LeftRun,
        Place, ProducerNumber, QueueNumber, RunKey, StoredJob, Timer, UniqueKey, UniqueRecord,
    },
};
use ganger_protocol::{
    BatchId, JobId, Timestamp,
    job::{JobError, JobState},
};

use super::{
    Store, StoreError, batch,
    coding::{Malformed, Reader},
    damaged,
    keys::{Key, Prefix},
    overlay::Known,
    records,
    table::{Order, Span},
};

/// Rows that a scan reads at once.
const PAGE_ROWS: usize = 256;

/// Runs that are read at once for the heads of a lane.
const HEAD_RUNS: usize = 16;

/// Contents of a page of closed jobs take no more than this, but for the last one.
const CLOSED_PAGE_BYTES_MAX: usize = 4 << 20;

/// Times that a record in parts is read again when a commit changed it between two of them.
const PART_TRIES: usize = 16;

/// A slot of a job's errors is one of so many.
const ERROR_SLOTS: u8 = 10;

impl Store {
    /// Answers a need of the engine from every committed group, durable or not.
    ///
    /// A spilled content of a packed job is absent when its blob is: the job may have left its
    /// run, which only the engine knows.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]; [`StoreError::Damaged`] naming the record; or the table's error,
    /// which poisons the store.
    pub fn read(&self, need: &Need) -> Result<Fact, StoreError> {
        self.guarded(|| match *need {
            Need::Job { job, content } => self.stored_job(&job, content).map(Fact::Job),
            Need::Errors(job) => self.errors(&job).map(Fact::Errors),
            Need::Result(job) => self.bytes_of(&job, BlobKind::Result).map(Fact::Bytes),
            Need::Heads {
                lane,
                after,
                entries_max,
                bytes_max,
            } => {
                let bounds = Bounds::new(entries_max, bytes_max);
                self.heads(&lane, after, &bounds).map(Fact::Heads)
            }
            Need::Lanes {
                queue,
                priority,
                after,
                max,
            } => self.lanes(queue, priority, after, max),
            Need::RunDue {
                run,
                at,
                passed,
                jobs_max,
                bytes_max,
            } => {
                let bounds = Bounds::new(jobs_max, bytes_max);
                self.run_due((&run, at), &passed, &bounds).map(Fact::RunDue)
            }
            Need::Timers { after, max } => self.timers(after.as_ref(), max),
            Need::Producer(producer) => self.producer(producer).map(Fact::Producer),
            Need::Outcome { producer, slot } => {
                let key = |part| Key::outcome(producer, slot, part);
                let outcome = self
                    .read_parts(key)?
                    .map(|(_, body)| records::outcome(producer, &body).map_err(damaged(&key(0))));
                outcome.transpose().map(Fact::Outcome)
            }
            Need::Unique(key) => self.lock_of(&key).map(Fact::Unique),
            Need::Batch(id) => {
                let batch = self.batch_of(&Key::batch(true, id))?;
                Ok(Fact::Batch(batch.map(Box::new)))
            }
            Need::Batches { after, max } => self.settled_batches(after, max),
            Need::Edges {
                side,
                job,
                after,
                max,
            } => self.edges(side, job, after, max),
            Need::Node(batch, job) => {
                let row = self.node_row(batch, job)?;
                Ok(Fact::Node(row.map(Box::new)))
            }
            Need::Nodes { batch, after, max } => self.nodes(batch, after, max),
            Need::Run(run) => self.run_entries(&run).map(Fact::Run),
            Need::OldestClosed { queue, state, max } => {
                let span = Span::of(Key::closed_jobs(queue, state));
                let max = usize::try_from(max).unwrap_or(usize::MAX);
                self.closed_rows(&span, max).map(Fact::Closed)
            }
            Need::Remains { queue, stage, max } => self.remains(queue, stage, max),
        })
    }

    /// A page of the closed jobs of a queue behind a row, with their contents. It may be shorter
    /// than `max`; an empty one is the end.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn closed_page(
        &self,
        queue: QueueNumber,
        state: JobState,
        after: Option<Closed>,
        newest_first: bool,
        max: usize,
    ) -> Result<Vec<JobRecord>, StoreError> {
        self.guarded(|| {
            let mut span = Span::of(Key::closed_jobs(queue, state));
            if newest_first {
                span.order = Order::Descending;
            }
            if let Some(after) = after {
                span = span.behind(&Key::closed(&after));
            }
            let mut page = Vec::new();
            let mut bytes = 0;
            while page.len() < max && bytes < CLOSED_PAGE_BYTES_MAX {
                let rows = self.closed_rows(&span, (max - page.len()).min(PAGE_ROWS))?;
                let Some(last) = rows.last() else { break };
                span = span.behind(&Key::closed(last));
                for row in rows {
                    if bytes >= CLOSED_PAGE_BYTES_MAX {
                        break;
                    }
                    // A record that is gone by now was closed when the row was read.
                    if let Some(record) = self.job_record(&row.job, true)? {
                        bytes += record.content.as_ref().map_or(0, |it| it.bound_bytes());
                        page.push(record);
                    }
                }
            }
            Ok(page)
        })
    }

    /// The value of a key.
    pub(super) fn read_value(&self, key: &Key) -> Result<Option<Bytes>, StoreError> {
        let known = self.overlay().find(key);
        match known {
            Known::Value(value) => Ok(Some(value)),
            Known::Gone => Ok(None),
            Known::Nothing => Ok(self.table.read(key)?),
        }
    }

    /// Checks a value: its group and its body.
    pub(super) fn open_record<'a>(
        &self,
        key: &Key,
        value: &'a [u8],
    ) -> Result<(GroupNumber, &'a [u8]), StoreError> {
        let newest = GroupNumber(self.sealed.load(Ordering::Acquire));
        records::open_value(key.as_slice(), value, newest).map_err(damaged(key))
    }

    /// At most `max` rows of a span, as they are at one moment a page.
    pub(super) fn scan(&self, mut span: Span, max: usize) -> Result<Vec<(Key, Bytes)>, StoreError> {
        let mut rows = Vec::new();
        while rows.len() < max && !span.is_empty() {
            let wanted = (max - rows.len()).min(PAGE_ROWS);
            let generation = self.overlay().generation();
            let stored = self.table.scan(&span, wanted)?;
            let last = stored.last().filter(|_| stored.len() == wanted);
            let last = last.map(|(key, _)| *key);
            // What the table may have behind a full page is not known yet.
            let covered = last.map_or(span, |last| span.through(&last));
            let overlay = self.overlay();
            if overlay.generation() != generation {
                continue;
            }
            let merged = overlay.merge(&covered, stored, wanted);
            drop(overlay);
            let behind = if merged.len() == wanted {
                merged.last().map(|(key, _)| *key)
            } else {
                last
            };
            rows.extend(merged);
            match behind {
                Some(key) => span = span.behind(&key),
                None => break,
            }
        }
        Ok(rows)
    }

    /// Visits every row of a kind.
    pub(super) fn scan_all(
        &self,
        prefix: Prefix,
        visit: impl FnMut(&Key, &Bytes) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.scan_begin(Key::of(prefix), visit)
    }

    /// Visits every row whose key begins so.
    pub(super) fn scan_begin(
        &self,
        begin: Key,
        mut visit: impl FnMut(&Key, &Bytes) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut span = Span::of(begin);
        loop {
            let rows = self.scan(span, PAGE_ROWS)?;
            let Some((last, _)) = rows.last() else {
                return Ok(());
            };
            span = span.behind(last);
            for (key, value) in &rows {
                visit(key, value)?;
            }
        }
    }

    /// A record that lies in several values, put together; `None` when its first part is gone.
    pub(super) fn read_parts(
        &self,
        key: impl Fn(u16) -> Key,
    ) -> Result<Option<(GroupNumber, Vec<u8>)>, StoreError> {
        for _ in 0..PART_TRIES {
            let first_key = key(0);
            let Some(value) = self.read_value(&first_key)? else {
                return Ok(None);
            };
            let (group, body) = self.open_record(&first_key, &value)?;
            let mut reader = Reader(body);
            let count: u16 = reader.narrow().map_err(damaged(&first_key))?;
            let mut whole = reader.0.to_vec();
            let mut is_whole = true;
            for part in 1..count {
                let key = key(part);
                let Some(value) = self.read_value(&key)? else {
                    is_whole = false;
                    break;
                };
                let (part_group, chunk) = self.open_record(&key, &value)?;
                if part_group != group {
                    is_whole = false;
                    break;
                }
                whole.extend_from_slice(chunk);
            }
            if is_whole {
                return Ok(Some((group, whole)));
            }
        }
        Err(damaged(&key(0))(Malformed("one of its parts is missing")))
    }

    /// The content that was spilled; `None` when it is gone.
    pub(super) fn spilled(&self, job: &JobId) -> Result<Option<Arc<Content>>, StoreError> {
        let key = |part| Key::blob(job, BlobKind::Content, part);
        let content = self.read_parts(key)?.map(|(_, body)| {
            let content = records::content_of(&body).map_err(damaged(&key(0)))?;
            Ok(Arc::new(content))
        });
        content.transpose()
    }

    /// The lock of a unique key.
    pub(super) fn lock_of(&self, key: &UniqueKey) -> Result<Option<UniqueRecord>, StoreError> {
        let key = Key::unique(key);
        let Some(value) = self.read_value(&key)? else {
            return Ok(None);
        };
        let (_, body) = self.open_record(&key, &value)?;
        records::lock(body).map(Some).map_err(damaged(&key))
    }

    /// The record of a job.
    pub(super) fn job_record(
        &self,
        job: &JobId,
        content: bool,
    ) -> Result<Option<JobRecord>, StoreError> {
        let key = Key::job(job);
        let Some(value) = self.read_value(&key)? else {
            return Ok(None);
        };
        let (group, body) = self.open_record(&key, &value)?;
        let mut record = records::job(*job, group, body).map_err(damaged(&key))?;
        if content && record.spilled_parts > 0 {
            record.content = self.spilled(job)?;
            if record.content.is_none() && self.read_value(&key)?.as_ref() == Some(&value) {
                return Err(damaged(&key)(Malformed("its content is missing")));
            }
        }
        if let Some(progress) = &mut record.progress
            && content
            && progress.cursor_parts > 0
        {
            progress.cursor = self.bytes_of(job, BlobKind::Cursor)?;
            if progress.cursor.is_none() && self.read_value(&key)? == Some(value) {
                return Err(damaged(&key)(Malformed("its cursor is missing")));
            }
        }
        Ok(Some(record))
    }

    /// The result or the cursor of a job; `None` when it is gone.
    pub(super) fn bytes_of(
        &self,
        job: &JobId,
        kind: BlobKind,
    ) -> Result<Option<Bytes>, StoreError> {
        let key = |part| Key::blob(job, kind, part);
        let bytes = self.read_parts(key)?.map(|(_, body)| {
            let mut reader = Reader(&body);
            let bytes = reader.bytes().map_err(damaged(&key(0)))?;
            let bytes = Bytes::copy_from_slice(bytes);
            reader.end().map_err(damaged(&key(0)))?;
            Ok(bytes)
        });
        bytes.transpose()
    }

    /// A job: its record, else its entry in its run of birth.
    pub(super) fn stored_job(
        &self,
        job: &JobId,
        content: bool,
    ) -> Result<Option<StoredJob>, StoreError> {
        let record = || {
            let record = self.job_record(job, content)?;
            Ok(record.map(|record| StoredJob::Record(Box::new(record))))
        };
        let stored = match record()? {
            None => self.born(job, content)?,
            record => record,
        };
        match stored {
            // It may have left its scheduled run for a record in between.
            None if Place::of_birth(job).run.lane.is_scheduled() => record(),
            stored => Ok(stored),
        }
    }

    /// A job as it was born in its run; `None` when that is gone, or a scheduled one that it has left.
    fn born(&self, job: &JobId, content: bool) -> Result<Option<StoredJob>, StoreError> {
        let Place { run, index } = Place::of_birth(job);
        if run.lane.priority > ganger_protocol::limits::PRIORITY_MAX {
            return Ok(None);
        }
        let left = match run.lane.is_scheduled() {
            true => self.left_of(&run)?,
            false => None,
        };
        let key = Key::run(&run);
        let Some(value) = self.read_value(&key)? else {
            return Ok(None);
        };
        let (group, body) = self.open_record(&key, &value)?;
        let (run_entries, entry) = records::run_entry(body, index).map_err(damaged(&key))?;
        let mut entry = match entry {
            Some(entry) if left.is_none_or(|left| !left.left.contains(index)) => entry,
            Some(_) | None => return Ok(None),
        };
        if let Some(packed) = entry.job_mut()
            && content
            && packed.spilled_parts > 0
        {
            packed.content = self.spilled(job)?;
            if packed.content.is_none() && run.lane.is_scheduled() && self.left_of(&run)? == left {
                return Err(damaged(&key)(Malformed("the content of a job is missing")));
            }
        }
        Ok(match entry {
            Entry::Job(job) => Some(StoredJob::Packed {
                group,
                run_entries,
                job,
            }),
            Entry::Scheduled(at, job) => Some(StoredJob::Scheduled {
                at,
                job,
                left: left.unwrap_or_else(|| LeftRun::whole(run, run_entries)),
                peers: records::due_at(body, at).map_err(damaged(&key))?.1,
            }),
            Entry::Reference(_) => None,
        })
    }

    /// The jobs of a scheduled run that wait for a time, and have not left it.
    fn run_due(
        &self,
        (run, at): (&RunKey, Timestamp),
        passed: &Bits,
        bounds: &Bounds,
    ) -> Result<Option<RunDue>, StoreError> {
        let key = Key::run(run);
        let Some((left, mut entries)) = self.due_entries(run, at)? else {
            return Ok(None);
        };
        let Some(value) = self.read_value(&key)? else {
            return Ok(None);
        };
        let (_, body) = self.open_record(&key, &value)?;
        entries.remove(passed);
        let (mut jobs, mut bytes) = (Vec::new(), 0);
        for index in (0..left.entries).filter(|index| entries.contains(*index)) {
            if jobs.len() >= bounds.entries || bytes >= bounds.bytes {
                let at_end = false;
                return Ok(Some(RunDue { left, jobs, at_end }));
            }
            let (_, entry) = records::run_entry(body, index).map_err(damaged(&key))?;
            let Some(Entry::Scheduled(_, mut job)) = entry else {
                continue;
            };
            if job.spilled_parts > 0 {
                let id = Place { run: *run, index }.job_id(self.options.shard);
                job.content = self.spilled(&id)?;
            }
            let content = job.content.as_ref();
            let content = content
                .ok_or_else(|| damaged(&key)(Malformed("the content of a job is missing")))?;
            bytes += content.bound_bytes();
            jobs.push((index, job));
        }
        let at_end = true;
        Ok(Some(RunDue { left, jobs, at_end }))
    }

    /// What left a scheduled run, and which of the others wait for a time; `None` when it is gone.
    pub(super) fn due_entries(
        &self,
        run: &RunKey,
        at: Timestamp,
    ) -> Result<Option<(LeftRun, Bits)>, StoreError> {
        let left = self.left_of(run)?;
        let key = Key::run(run);
        let Some(value) = self.read_value(&key)? else {
            return Ok(None);
        };
        let (_, body) = self.open_record(&key, &value)?;
        let (count, mut entries) = records::due_at(body, at).map_err(damaged(&key))?;
        let left = left.unwrap_or_else(|| LeftRun::whole(*run, count));
        entries.remove(&left.left);
        Ok(Some((left, entries)))
    }

    /// What left a scheduled run, when anything did.
    pub(super) fn left_of(&self, run: &RunKey) -> Result<Option<LeftRun>, StoreError> {
        let key = Key::left(run);
        let Some(value) = self.read_value(&key)? else {
            return Ok(None);
        };
        let (_, body) = self.open_record(&key, &value)?;
        records::left(*run, body).map(Some).map_err(damaged(&key))
    }

    /// Entries of a run; `None` when there is no such run.
    pub(super) fn run_entries(&self, run: &RunKey) -> Result<Option<u8>, StoreError> {
        let key = Key::run(run);
        let Some(value) = self.read_value(&key)? else {
            return Ok(None);
        };
        let (_, body) = self.open_record(&key, &value)?;
        let (entries, _) = records::run_entry(body, 0).map_err(damaged(&key))?;
        Ok(Some(entries))
    }

    fn errors(&self, job: &JobId) -> Result<Vec<JobError>, StoreError> {
        let Some(record) = self.job_record(job, false)? else {
            return Ok(Vec::new());
        };
        let mut errors = Vec::new();
        let mut slot = record.error_first % ERROR_SLOTS;
        for _ in &record.error_parts {
            let key = |part| Key::blob(job, BlobKind::Error(slot), part);
            if let Some((_, body)) = self.read_parts(key)? {
                errors.push(records::error(&body).map_err(damaged(&key(0)))?);
            }
            slot = (slot + 1) % ERROR_SLOTS;
        }
        Ok(errors)
    }

    fn heads(
        &self,
        lane: &Lane,
        after: Option<(u64, u8)>,
        bounds: &Bounds,
    ) -> Result<Heads, StoreError> {
        let mut span = Span::of(Key::lane_runs(lane));
        if let Some((position, _)) = after {
            span.from = Key::run(&RunKey {
                lane: *lane,
                position,
            });
        }
        let mut heads = Heads::default();
        let mut bytes = 0;
        loop {
            let runs = self.scan(span, HEAD_RUNS)?;
            let is_last_page = runs.len() < HEAD_RUNS;
            for (key, value) in &runs {
                if heads.rows.len() >= bounds.entries || bytes >= bounds.bytes {
                    return Ok(heads);
                }
                bytes += self.push_run(&mut heads, key, value, after)?;
                span = span.behind(key);
            }
            if is_last_page {
                heads.at_end = true;
                return Ok(heads);
            }
        }
    }

    /// Adds the entries of a run behind `after`; answers with the bytes that were read.
    pub(super) fn push_run(
        &self,
        heads: &mut Heads,
        key: &Key,
        value: &[u8],
        after: Option<(u64, u8)>,
    ) -> Result<usize, StoreError> {
        let run_key = key.to_run().ok_or_else(|| super::bad_key(key))?;
        let (group, body) = self.open_record(key, value)?;
        let run = records::run(body).map_err(damaged(key))?;
        let run_entries = u8::try_from(run.entries.len()).unwrap_or(u8::MAX);
        let left = match run_key.lane.is_scheduled() {
            true => self.left_of(&run_key)?,
            false => None,
        };
        let mut bytes = body.len();
        for (index, mut entry) in (0_u8..).zip(run.entries) {
            if after.is_some_and(|after| (run_key.position, index) <= after) {
                continue;
            }
            let place = Place {
                run: run_key,
                index,
            };
            if left.is_some_and(|left| left.left.contains(index)) {
                continue;
            }
            if let Some(job) = entry.job_mut().filter(|job| job.spilled_parts > 0) {
                job.content = self.spilled(&place.job_id(self.options.shard))?;
                bytes += job.content.as_ref().map_or(0, |it| it.bound_bytes());
            }
            let entry = match entry {
                Entry::Job(job) => HeadEntry::Packed(job),
                Entry::Scheduled(at, job) => HeadEntry::Scheduled(at, job),
                Entry::Reference(job) => {
                    let record = self.job_record(&job, true)?;
                    let content = record.as_ref().and_then(|record| record.content.as_ref());
                    bytes += content.map_or(64, |content| content.bound_bytes());
                    HeadEntry::Reference(job, record.map(Box::new))
                }
            };
            heads.rows.push(HeadRow {
                place,
                run_entries,
                group,
                entry,
            });
        }
        Ok(bytes)
    }

    /// The lanes of keys that have runs, found one by one, however many runs each has.
    fn lanes(
        &self,
        queue: QueueNumber,
        priority: u8,
        after: u64,
        max: u32,
    ) -> Result<Fact, StoreError> {
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let mut span = Span::of(Key::priority_runs(queue, priority));
        let mut lanes = Vec::new();
        let mut last = after;
        while let Some(lane) = last.checked_add(1) {
            span.from = Key::lane_runs(&Lane {
                queue,
                priority,
                lane,
            });
            let Some((key, _)) = self.scan(span, 1)?.pop() else {
                break;
            };
            if lanes.len() >= max {
                return Ok(Fact::Lanes {
                    lanes,
                    at_end: false,
                });
            }
            last = key.to_run().ok_or_else(|| super::bad_key(&key))?.lane.lane;
            lanes.push(last);
        }
        Ok(Fact::Lanes {
            lanes,
            at_end: true,
        })
    }

    fn timers(&self, after: Option<&Timer>, max: u32) -> Result<Fact, StoreError> {
        let mut span = Span::of(Key::of(Prefix::Timer));
        if let Some(after) = after {
            span = span.behind(&Key::timer(after));
        }
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let mut rows = self.scan(span, max.saturating_add(1))?;
        let at_end = rows.len() <= max;
        rows.truncate(max);
        let timers = rows.iter().map(|(key, value)| {
            self.open_record(key, value)?;
            key.to_timer().ok_or_else(|| super::bad_key(key))
        });
        Ok(Fact::Timers {
            timers: timers.collect::<Result<_, _>>()?,
            at_end,
        })
    }

    /// The batch behind a key.
    pub(super) fn batch_of(&self, key: &Key) -> Result<Option<BatchRecord>, StoreError> {
        let (Some(value), Some((_, id))) = (self.read_value(key)?, key.to_batch()) else {
            return Ok(None);
        };
        let (_, body) = self.open_record(key, &value)?;
        batch::batch(id, body).map(Some).map_err(damaged(key))
    }

    fn settled_batches(&self, after: Option<BatchId>, max: u32) -> Result<Fact, StoreError> {
        let mut span = Span::of(Key::batches(true));
        if let Some(after) = after {
            span = span.behind(&Key::batch(true, after));
        }
        let max = usize::try_from(max).unwrap_or(usize::MAX);
        let mut rows = self.scan(span, max.saturating_add(1))?;
        let at_end = rows.len() <= max;
        rows.truncate(max);
        let batches = rows.iter().map(|(key, value)| {
            let (_, body) = self.open_record(key, value)?;
            let (_, id) = key.to_batch().ok_or_else(|| super::bad_key(key))?;
            batch::batch(id, body).map_err(damaged(key))
        });
        Ok(Fact::Batches {
            batches: batches.collect::<Result<_, _>>()?,
            at_end,
        })
    }

    fn producer(&self, producer: ProducerNumber) -> Result<Option<(u64, Timestamp)>, StoreError> {
        let span = Span::of(Key::outcome_firsts(producer));
        let mut newest = None;
        for (key, value) in self.scan(span, usize::from(u8::MAX) + 1)? {
            let (_, body) = self.open_record(&key, &value)?;
            let mut reader = Reader(body);
            reader.varint().map_err(damaged(&key))?;
            let outcome = records::outcome_seq(reader.0).map_err(damaged(&key))?;
            newest = newest.max(Some(outcome));
        }
        Ok(newest)
    }

    pub(super) fn closed_rows(&self, span: &Span, max: usize) -> Result<Vec<Closed>, StoreError> {
        let rows = self.scan(*span, max)?;
        let rows = rows.iter().map(|(key, value)| {
            self.open_record(key, value)?;
            key.to_closed().ok_or_else(|| super::bad_key(key))
        });
        rows.collect()
    }
}

/// How much is read at once: no further entry once there are so many, or contents of so many bytes.
struct Bounds {
    entries: usize,
    bytes: usize,
}

impl Bounds {
    fn new(entries: u32, bytes: u32) -> Self {
        Self {
            entries: usize::try_from(entries).unwrap_or(usize::MAX),
            bytes: usize::try_from(bytes).unwrap_or(usize::MAX),
        }
    }
}
