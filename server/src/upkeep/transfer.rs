//! Export and import: what a data directory holds as lines of JSON, which outlive the format of
//! the store.
//!
//! A line `{"export": …}` begins a shard, its queues follow, then its jobs, the ready ones in their
//! order, then its limits and cron entries. Batches and the nodes of their graphs come before the
//! jobs, which are their members. Workers, leases, producers and the server's secret stay behind: a leased job is exported
//! as a ready one.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{self, BufRead, Write},
    path::Path,
    sync::Arc,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use ganger_engine::records::{
    Content, CronNumber, HeadRecord, JobProgress, JobRecord, Place, QueueNumber, QueueRecord,
};
use ganger_protocol::{
    BatchId, CronName, DurationMs, JobId, JobSpec, LeaseId, NamespaceName, QueueName, RetryPolicy,
    Timestamp,
    job::{DeadReason, JobError, JobState},
    limit::LimitTarget,
    response::Counters,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{
    CACHE_BYTES, UpkeepError,
    batches::{BatchLine, NodeLine, batch_of},
    crons::{CronLine, cron_of},
    empty_dir,
    limits::{LimitLine, limit_of},
    shards_of,
};
use crate::{
    data_dir::shard_dir,
    store::{
        Store, StoreError, StoreOptions,
        build::Builder,
        format::ShardDirectory,
        rebuild::RESTORE_STEP,
        salvage::{self, Listener, Told, WholeJob},
    },
};

/// The version of the lines.
const EXPORT_VERSION: u32 = 1;

/// What was carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Transferred {
    /// Shards.
    pub shards: usize,
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

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Export(Begin),
    Queue(Box<QueueLine>),
    Job(Box<JobLine>),
    Cron(Box<CronLine>),
    Batch(Box<BatchLine>),
    Node(Box<NodeLine>),
    Limit(Box<LimitLine>),
}

#[derive(Debug, Serialize, Deserialize)]
struct Begin {
    version: u32,
    shard: u16,
    wall: Timestamp,
    position_high: u64,
    position_low: u64,
    reserved: u64,
    next_queue: u32,
}

#[derive(Debug, Serialize, Deserialize)]
struct QueueLine {
    number: u32,
    namespace: NamespaceName,
    name: QueueName,
    #[serde(default)]
    paused: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paused_until: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    jobs_max: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<DurationMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    backoff: Option<Box<RetryPolicy>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dead_max: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    dead_retention_ms: Option<DurationMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retain_ms: Option<DurationMs>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retained_max: Option<u64>,
    #[serde(default)]
    counters: Counters,
}

#[derive(Debug, Serialize, Deserialize)]
struct JobLine {
    id: JobId,
    state: JobState,
    namespace: NamespaceName,
    pushed_at: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    closed_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    reason: Option<DeadReason>,
    #[serde(default)]
    attempt: u32,
    #[serde(default)]
    failures: u32,
    #[serde(default)]
    losses: u32,
    #[serde(default)]
    losses_in_row: u32,
    #[serde(default)]
    releases: u32,
    #[serde(default)]
    lane: u64,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    holds_key: bool,
    #[serde(default = "no_lease")]
    settled_lease: LeaseId,
    #[serde(default, skip_serializing_if = "is_zero")]
    waits_for: u32,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    after: Vec<JobId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    errors: Vec<JobError>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    percent: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cursor_base64: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    result_base64: Option<String>,
    /// A payload that is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    /// Any other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    /// What was pushed, but for the payload; its `run_at` is the job's.
    spec: Value,
}

fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn no_lease() -> LeaseId {
    LeaseId(0)
}

/// Writes what a directory that no server has open holds.
///
/// # Errors
/// [`UpkeepError`]; a damaged store is not exported.
pub fn export(
    data_dir: &Path,
    to: &mut dyn Write,
    mut progress: impl FnMut(u64),
) -> Result<Transferred, UpkeepError> {
    let mut done = Transferred::default();
    for shard in shards_of(data_dir)? {
        let failed = |source| UpkeepError::Store {
            doing: "exported",
            shard,
            source,
        };
        let path = shard_dir(data_dir, shard);
        let directory = ShardDirectory::open_existing(&path).map_err(failed)?;
        let options = StoreOptions {
            shard,
            ..StoreOptions::default()
        };
        let (store, problems) = Store::inspect(&directory.data, &options).map_err(failed)?;
        if let Some(problem) = problems.into_iter().next() {
            return Err(failed(problem));
        }
        let head = salvage::head(&store).map_err(failed)?;
        let mut exporter = Exporter {
            to: &mut *to,
            queues: BTreeMap::new(),
            done,
            failure: None,
            lost: None,
            progress: &mut progress,
        };
        exporter.line(&Line::Export(begin_line(shard, &head)));
        let told = salvage::tell(&store, &mut exporter);
        if let Some(source) = exporter.failure {
            return Err(UpkeepError::Lines { line: 0, source });
        }
        told.map_err(failed)?;
        if let Some(what) = exporter.lost {
            tracing::error!(what, "a damaged store is not exported");
            return Err(failed(StoreError::Incomplete {
                what: "something in it is damaged",
            }));
        }
        done = exporter.done;
        done.shards += 1;
    }
    Ok(done)
}

fn begin_line(shard: u16, head: &HeadRecord) -> Begin {
    Begin {
        version: EXPORT_VERSION,
        shard,
        wall: head.wall,
        position_high: head.position_high,
        position_low: head.position_low,
        reserved: head.reserved,
        next_queue: head.next_queue,
    }
}

struct Exporter<'a> {
    to: &'a mut dyn Write,
    queues: BTreeMap<QueueNumber, (NamespaceName, QueueName)>,
    done: Transferred,
    failure: Option<io::Error>,
    lost: Option<String>,
    progress: &'a mut dyn FnMut(u64),
}

impl Exporter<'_> {
    fn line(&mut self, line: &Line) {
        let written = serde_json::to_writer(&mut *self.to, line).map_err(io::Error::from);
        let written = written.and_then(|()| self.to.write_all(b"\n"));
        if let Err(error) = written {
            self.failure.get_or_insert(error);
        }
    }
}

impl Listener for Exporter<'_> {
    fn told(&mut self, told: Told) -> Result<(), StoreError> {
        match told {
            Told::Queue(queue) => {
                let names = (queue.namespace.clone(), queue.name.clone());
                self.queues.insert(queue.number, names);
                self.done.queues += 1;
                self.line(&Line::Queue(Box::new(queue_line(*queue))));
            }
            Told::Job(job) => {
                let Some(names) = self.queues.get(&job.record.queue).cloned() else {
                    self.lost(format!("job {}: its queue is gone", job.record.id));
                    return Ok(());
                };
                self.done.jobs += 1;
                (self.progress)(self.done.jobs);
                match job_line(*job, names) {
                    Ok(line) => self.line(&Line::Job(Box::new(line))),
                    Err(error) => {
                        self.failure.get_or_insert_with(|| error.into());
                    }
                }
            }
            Told::Cron(cron) => {
                self.done.crons += 1;
                match CronLine::of(&cron) {
                    Ok(line) => self.line(&Line::Cron(Box::new(line))),
                    Err(error) => {
                        self.failure.get_or_insert_with(|| error.into());
                    }
                }
            }
            Told::Limit(limit) => {
                self.done.limits += 1;
                self.line(&Line::Limit(Box::new(LimitLine::of(*limit))));
            }
            Told::Batch(batch) => {
                self.done.batches += 1;
                match BatchLine::of(&batch) {
                    Ok(line) => self.line(&Line::Batch(Box::new(line))),
                    Err(error) => {
                        self.failure.get_or_insert_with(|| error.into());
                    }
                }
            }
            Told::Node(node) => self.line(&Line::Node(Box::new(NodeLine::of(*node)))),
            Told::Outcome(_) => {}
        }
        match self.failure {
            None => Ok(()),
            Some(_) => Err(StoreError::Backup {
                what: "the export cannot be written",
            }),
        }
    }

    fn lost(&mut self, what: String) {
        self.lost.get_or_insert(what);
    }
}

fn queue_line(queue: QueueRecord) -> QueueLine {
    QueueLine {
        number: queue.number.0,
        namespace: queue.namespace,
        name: queue.name,
        paused: queue.paused,
        paused_until: queue.paused_until,
        jobs_max: queue.jobs_max,
        timeout_ms: queue.timeout_ms,
        backoff: queue.backoff,
        dead_max: queue.dead_max,
        dead_retention_ms: queue.dead_retention_ms,
        retain_ms: queue.retain_ms,
        retained_max: queue.retained_max,
        counters: queue.counters,
    }
}

fn job_line(
    job: WholeJob,
    (namespace, queue): (NamespaceName, QueueName),
) -> Result<JobLine, serde_json::Error> {
    let WholeJob {
        record,
        errors,
        after,
        result,
    } = job;
    let progress = record.progress.as_deref();
    let content = record.content.as_deref();
    let payload = content
        .map(|content| content.payload.clone())
        .unwrap_or_default();
    let spec = content.map(|content| spec_of(&record, content, queue));
    let mut spec = serde_json::to_value(spec)?;
    if let Some(fields) = spec.as_object_mut() {
        fields.remove("payload");
    }
    let (text, base64) = payload_out(&payload);
    Ok(JobLine {
        id: record.id,
        state: record.state,
        namespace,
        pushed_at: record.pushed_at,
        closed_at: record.closed_at,
        reason: record.reason,
        attempt: record.attempt,
        failures: record.failures,
        losses: record.losses,
        losses_in_row: record.losses_in_row,
        releases: record.releases,
        lane: record.lane,
        holds_key: record.holds_key,
        settled_lease: record.settled_lease,
        waits_for: record.waits_for,
        after,
        errors,
        percent: progress.and_then(|it| it.percent),
        note: progress.and_then(|it| it.note.clone()),
        cursor_base64: record.cursor().map(|cursor| STANDARD.encode(cursor)),
        result_base64: result.map(|result| STANDARD.encode(result)),
        payload: text,
        payload_base64: base64,
        spec,
    })
}

/// A payload as text, or as base64 when it is none.
pub(super) fn payload_out(payload: &[u8]) -> (Option<String>, Option<String>) {
    match std::str::from_utf8(payload) {
        Ok(text) => (Some(text.to_owned()), None),
        Err(_binary) => (None, Some(STANDARD.encode(payload))),
    }
}

/// A payload from either.
pub(super) fn payload_in(text: Option<String>, base64: Option<String>) -> Result<Vec<u8>, String> {
    match (text, base64) {
        (Some(_), Some(_)) => Err("payload or payload_base64, not both".to_owned()),
        (Some(text), None) => Ok(text.into_bytes()),
        (None, Some(text)) => STANDARD
            .decode(text)
            .map_err(|error| format!("payload_base64: {error}")),
        (None, None) => Ok(Vec::new()),
    }
}

fn spec_of(record: &JobRecord, content: &Content, queue: QueueName) -> JobSpec {
    JobSpec {
        queue,
        content_type: content.content_type.clone(),
        headers: content.headers.clone(),
        priority: Some(record.priority),
        run_at: record.run_at,
        max_attempts: content.max_attempts,
        backoff: content.backoff.clone(),
        timeout_ms: content.timeout_ms,
        tags: content.tags.clone(),
        expires_at: content.expires_at,
        unique: content.unique.clone(),
        key: content.key.clone(),
        batch: content.batch,
        name: content.node.as_ref().and_then(|node| node.name.clone()),
        condition: content.node.as_ref().map(|node| node.condition),
        on_dead: content.node.as_ref().map(|node| node.on_dead),
        retain_ms: content.retain_ms,
        ..JobSpec::new(content.kind.clone(), Bytes::new())
    }
}

/// Makes a data directory, which is empty or not there, out of an export.
///
/// # Errors
/// [`UpkeepError::Lines`] with the line that is wrong; the directory is as empty as before.
pub fn import(
    from: impl BufRead,
    data_dir: &Path,
    progress: impl FnMut(u64),
) -> Result<Transferred, UpkeepError> {
    empty_dir(data_dir)?;
    let mut importer = Importer {
        data_dir,
        done: Transferred::default(),
        finished: Vec::new(),
        current: None,
    };
    let result = importer.run(from, progress);
    if result.is_err() {
        let shards = importer.finished.iter().chain(&importer.current);
        let shards: Vec<_> = shards.map(|shard| shard.number).collect();
        drop(importer);
        for shard in shards {
            let path = shard_dir(data_dir, shard);
            fs::remove_dir_all(&path).map_err(|source| UpkeepError::DataDir {
                doing: "emptied",
                path,
                source,
            })?;
        }
    }
    result
}

struct Importer<'a> {
    data_dir: &'a Path,
    done: Transferred,
    finished: Vec<Shard>,
    current: Option<Shard>,
}

struct Shard {
    number: u16,
    directory: ShardDirectory,
    builder: Option<Builder>,
    queues: BTreeMap<(NamespaceName, QueueName), QueueNumber>,
    crons: BTreeSet<(NamespaceName, CronName)>,
    cron_numbers: BTreeSet<CronNumber>,
    batches: BTreeSet<BatchId>,
    limits: BTreeSet<(NamespaceName, LimitTarget)>,
}

impl Importer<'_> {
    fn run(
        &mut self,
        from: impl BufRead,
        mut progress: impl FnMut(u64),
    ) -> Result<Transferred, UpkeepError> {
        let mut number = 0;
        for text in from.lines() {
            number += 1;
            let wrong = |source| UpkeepError::Lines {
                line: number,
                source,
            };
            let text = text.map_err(wrong)?;
            if text.trim().is_empty() {
                continue;
            }
            let line = serde_json::from_str(&text).map_err(|error| wrong(error.into()))?;
            match line {
                Line::Export(begin) => self.begin(&begin, number)?,
                Line::Queue(queue) => self.queue(*queue, number)?,
                Line::Job(job) => self.job(*job, number)?,
                Line::Cron(cron) => self.cron(*cron, number)?,
                Line::Batch(batch) => self.batch(*batch, number)?,
                Line::Node(node) => self
                    .shard(number)?
                    .take(Told::Node(Box::new((*node).row())))?,
                Line::Limit(limit) => self.limit(*limit, number)?,
            }
            progress(self.done.jobs);
        }
        self.finish()?;
        if self.finished.is_empty() {
            return Err(invalid(
                number,
                "an export begins with a line {\"export\": …}",
            ));
        }
        for shard in &mut self.finished {
            let failed = shard.failed();
            let data = shard.directory.data.clone();
            shard.directory.point_at(data).map_err(failed)?;
        }
        Ok(self.done)
    }

    fn begin(&mut self, begin: &Begin, line: u64) -> Result<(), UpkeepError> {
        if begin.version != EXPORT_VERSION {
            let known = format!(
                "version {}; this program knows {EXPORT_VERSION}",
                begin.version
            );
            return Err(invalid(line, &known));
        }
        self.finish()?;
        let shard = begin.shard;
        if self
            .finished
            .iter()
            .any(|finished| finished.number == shard)
        {
            return Err(invalid(
                line,
                &format!("shard {shard} begins a second time"),
            ));
        }
        let failed = |source| UpkeepError::Store {
            doing: "made",
            shard,
            source,
        };
        // What was given since the export was made is not given a second time.
        let head = HeadRecord {
            wall: begin.wall,
            position_high: begin.position_high.saturating_add(RESTORE_STEP),
            position_low: begin.position_low.saturating_sub(RESTORE_STEP),
            reserved: begin.reserved.saturating_add(RESTORE_STEP),
            next_queue: begin.next_queue,
        };
        let directory = ShardDirectory::make(&shard_dir(self.data_dir, shard)).map_err(failed)?;
        let secret = StoreOptions::random_secret().map_err(failed)?;
        let builder = Builder::begin(&directory.data, head, secret, CACHE_BYTES).map_err(failed)?;
        self.done.shards += 1;
        self.current = Some(Shard {
            number: shard,
            directory,
            builder: Some(builder),
            queues: BTreeMap::new(),
            crons: BTreeSet::new(),
            cron_numbers: BTreeSet::new(),
            batches: BTreeSet::new(),
            limits: BTreeSet::new(),
        });
        Ok(())
    }

    fn queue(&mut self, line: QueueLine, at: u64) -> Result<(), UpkeepError> {
        let shard = self.shard(at)?;
        let number = QueueNumber(line.number);
        let names = (line.namespace.clone(), line.name.clone());
        if shard.queues.values().any(|known| *known == number)
            || shard.queues.insert(names, number).is_some()
        {
            return Err(invalid(at, "a queue with this name or number came before"));
        }
        shard.take(Told::Queue(Box::new(QueueRecord {
            number,
            namespace: line.namespace,
            name: line.name,
            paused: line.paused,
            paused_until: line.paused_until,
            is_purged: false,
            jobs_max: line.jobs_max,
            timeout_ms: line.timeout_ms,
            backoff: line.backoff,
            dead_max: line.dead_max,
            dead_retention_ms: line.dead_retention_ms,
            retain_ms: line.retain_ms,
            retained_max: line.retained_max,
            counters: line.counters,
        })))?;
        self.done.queues += 1;
        Ok(())
    }

    fn job(&mut self, line: JobLine, at: u64) -> Result<(), UpkeepError> {
        let shard = self.shard(at)?;
        let whole = whole_job(line, &shard.queues).map_err(|what| invalid(at, &what))?;
        if let Some(batch) = whole.record.batch
            && !whole.record.state.is_terminal()
            && !shard.batches.contains(&batch)
        {
            return Err(invalid(
                at,
                &format!("the batch {batch} did not come before"),
            ));
        }
        shard.take(Told::Job(Box::new(whole)))?;
        self.done.jobs += 1;
        Ok(())
    }

    fn cron(&mut self, line: CronLine, at: u64) -> Result<(), UpkeepError> {
        let shard = self.shard(at)?;
        let cron = cron_of(line).map_err(|what| invalid(at, &what))?;
        let names = (cron.namespace.clone(), cron.name.clone());
        if !shard.crons.insert(names) || !shard.cron_numbers.insert(cron.number) {
            return Err(invalid(
                at,
                "a cron entry with this name or number comes a second time",
            ));
        }
        shard.take(Told::Cron(Box::new(cron)))?;
        self.done.crons += 1;
        Ok(())
    }

    fn batch(&mut self, line: BatchLine, at: u64) -> Result<(), UpkeepError> {
        let shard = self.shard(at)?;
        let batch = batch_of(line).map_err(|what| invalid(at, &what))?;
        if !shard.batches.insert(batch.id) {
            return Err(invalid(at, "a batch with this id comes a second time"));
        }
        shard.take(Told::Batch(Box::new(batch)))?;
        self.done.batches += 1;
        Ok(())
    }

    fn limit(&mut self, line: LimitLine, at: u64) -> Result<(), UpkeepError> {
        let shard = self.shard(at)?;
        let limit = limit_of(line).map_err(|what| invalid(at, &what))?;
        let named = (limit.namespace.clone(), limit.target.clone());
        if !shard.limits.insert(named) {
            return Err(invalid(at, "a limit of this target comes a second time"));
        }
        shard.take(Told::Limit(Box::new(limit)))?;
        self.done.limits += 1;
        Ok(())
    }

    fn shard(&mut self, at: u64) -> Result<&mut Shard, UpkeepError> {
        let missing = || invalid(at, "an export begins with a line {\"export\": …}");
        self.current.as_mut().ok_or_else(missing)
    }

    fn finish(&mut self) -> Result<(), UpkeepError> {
        if let Some(mut shard) = self.current.take() {
            let failed = shard.failed();
            if let Some(builder) = shard.builder.take() {
                builder.finish().map_err(failed)?;
            }
            self.finished.push(shard);
        }
        Ok(())
    }
}

impl Shard {
    fn take(&mut self, told: Told) -> Result<(), UpkeepError> {
        let failed = self.failed();
        match &mut self.builder {
            Some(builder) => builder.take(told).map_err(failed),
            None => Ok(()),
        }
    }

    fn failed(&self) -> impl Fn(StoreError) -> UpkeepError + use<> {
        let shard = self.number;
        move |source| UpkeepError::Store {
            doing: "made",
            shard,
            source,
        }
    }
}

fn whole_job(
    line: JobLine,
    queues: &BTreeMap<(NamespaceName, QueueName), QueueNumber>,
) -> Result<WholeJob, String> {
    let spec: JobSpec = serde_json::from_value(line.spec).map_err(|error| error.to_string())?;
    let payload = payload_in(line.payload, line.payload_base64)?;
    let names = (line.namespace, spec.queue.clone());
    let queue = queues.get(&names);
    let queue = *queue.ok_or_else(|| format!("the queue {} did not come before", names.1))?;
    let (run_at, priority) = (spec.run_at, spec.priority);
    let content = Content::from(JobSpec {
        payload: payload.into(),
        ..spec
    });
    let result = bytes_in("result_base64", line.result_base64)?;
    let cursor = bytes_in("cursor_base64", line.cursor_base64)?;
    let has_progress = line.percent.is_some() || line.note.is_some() || cursor.is_some();
    let progress = has_progress.then(|| {
        Box::new(JobProgress {
            percent: line.percent,
            note: line.note,
            cursor_parts: 0,
            cursor,
        })
    });
    let place = Place::of_birth(&line.id);
    let packed = ganger_engine::records::PackedJob {
        pushed_at: line.pushed_at,
        spilled_parts: 0,
        content: Some(Arc::new(content)),
    };
    let record = JobRecord {
        state: line.state,
        queue,
        priority: priority.unwrap_or(ganger_protocol::limits::PRIORITY_DEFAULT),
        lane: line.lane,
        waits_for: line.waits_for,
        holds_key: line.holds_key,
        // Of dead jobs the queue says anew how long they are kept.
        run_at: run_at.filter(|_| line.state != JobState::Dead),
        closed_at: line.closed_at,
        reason: line.reason,
        attempt: line.attempt,
        failures: line.failures,
        losses: line.losses,
        losses_in_row: line.losses_in_row,
        releases: line.releases,
        settled_lease: line.settled_lease,
        progress,
        ..JobRecord::fresh(line.id, place, packed)
    };
    Ok(WholeJob {
        record,
        errors: line.errors,
        after: line.after,
        result,
    })
}

/// Bytes from base64.
fn bytes_in(field: &str, base64: Option<String>) -> Result<Option<Bytes>, String> {
    let bytes = base64.map(|text| STANDARD.decode(text).map(Bytes::from));
    bytes
        .transpose()
        .map_err(|error| format!("{field}: {error}"))
}

fn invalid(line: u64, what: &str) -> UpkeepError {
    UpkeepError::Lines {
        line,
        source: io::Error::new(io::ErrorKind::InvalidData, what.to_owned()),
    }
}
