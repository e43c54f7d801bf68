//! What a client says: one struct per operation, fields with units, ranges and defaults.
//!
//! A request is read in two steps: [`scan`] checks the frame as a whole and finds `id` and `op`,
//! then the flat struct of that operation reads its fields. Unknown keys are ignored, so that a
//! newer client can talk to this server. Ranges that need the server's limits are checked by
//! [`Operation::check`]. What comes back is in [`crate::response`].

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    batch::BatchOpen,
    change::{JobChange, JobDelete},
    cron::CronSet,
    error::{ErrorCode, WireError},
    event::{Subscribe, Unsubscribe},
    frame,
    ids::{BatchId, CronName, JobId, LeaseId, NamespaceName, QueueName, QueuePattern, SessionId},
    job::JobSpec,
    limit::{LimitList, LimitSet, OneLimit},
    limits::{self, Limits},
    list::JobList,
    progress::{Progress, Wait},
    queue::{OneQueue, QueuePause, QueueSet},
    read,
    scan::{Head, ScanError, Walk, scan},
    task::{OneTask, TaskList, TaskStart},
    time::{DurationMs, INTEGER_MAX, Timestamp},
    write,
};

/// One request: `{id, op, …}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Chosen by the client, 1 … 2⁵³ − 1, unique among its unanswered requests.
    pub id: u64,
    /// What is asked for.
    pub operation: Operation,
}

/// Declares the operations: a variant, its word on the wire and its struct, in one table.
macro_rules! operations {
    ($($(#[$doc:meta])* $variant:ident($body:ty) = $op:literal,)*) => {
        /// What a client can ask for.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Operation {
            $($(#[$doc])* $variant($body),)*
        }

        impl Operation {
            /// The words of all operations, in the order of the documentation.
            pub const ALL: &'static [&'static str] = &[$($op),*];

            /// The word of this operation on the wire.
            pub fn op(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => $op,)*
                }
            }

            /// See [`read::plainly`].
            fn decode_plainly(op: &[u8], rest: &[u8], entries: usize) -> Option<Self> {
                $(if op == $op.as_bytes() {
                    return read::plainly(rest, entries).map(Self::$variant);
                })*
                None
            }

            fn decode(op: &str, map: &[u8]) -> Result<Self, WireError> {
                match op {
                    $($op => decode_fields(map).map(Self::$variant),)*
                    unknown => Err(WireError::new(
                        ErrorCode::UnsupportedOp,
                        format!("no operation {unknown:?}; there are {}", Self::ALL.join(", ")),
                    )),
                }
            }

            fn encode(&self, id: u64, buffer: &mut BytesMut) -> Result<(), EncodeError> {
                let op = self.op();
                match self {
                    $(Self::$variant(fields) => write::maps(buffer, &Envelope { id, op }, fields),)*
                }
            }
        }
    };
}

operations! {
    /// Opens the connection; nothing else is accepted before it.
    Hello(Box<Hello>) = "hello",
    /// Adds jobs.
    Push(Push) = "push",
    /// Asks for leases, and may carry acks and fails.
    Fetch(Fetch) = "fetch",
    /// Attempts succeeded.
    Ack(Ack) = "ack",
    /// Attempts failed.
    Fail(Fail) = "fail",
    /// Gives leases back.
    Release(Release) = "release",
    /// Moves deadlines of leases.
    Extend(Extend) = "extend",
    /// Says how far attempts have come.
    Progress(Progress) = "progress",
    /// Says that the session is alive.
    Heartbeat(Heartbeat) = "heartbeat",
    /// Ends the session: all its leases are released.
    Goodbye(Goodbye) = "goodbye",
    /// Shows one job.
    JobGet(JobGet) = "job_get",
    /// Lists jobs.
    JobList(Box<JobList>) = "job_list",
    /// Waits until a job is over.
    Wait(Wait) = "wait",
    /// Cancels jobs.
    JobCancel(JobCancel) = "job_cancel",
    /// Changes time, queue or priority of jobs that wait.
    JobChange(JobChange) = "job_change",
    /// Removes jobs that are over for good.
    JobDelete(JobDelete) = "job_delete",
    /// Lists dead jobs.
    DeadList(DeadList) = "dead_list",
    /// Makes dead jobs ready again.
    DeadRevive(DeadSelect) = "dead_revive",
    /// Removes dead jobs for good.
    DeadPurge(DeadSelect) = "dead_purge",
    /// Lists queues with their counters.
    QueueList(QueueList) = "queue_list",
    /// Stops grants from queues.
    QueuePause(QueuePause) = "queue_pause",
    /// Starts them again.
    QueueResume(QueueNames) = "queue_resume",
    /// Shows a queue with its settings.
    QueueShow(OneQueue) = "queue_show",
    /// Changes settings of a queue.
    QueueSet(Box<QueueSet>) = "queue_set",
    /// Makes a queue; one that there is already stays as it is.
    QueueCreate(OneQueue) = "queue_create",
    /// Removes all jobs of a queue for good, at once.
    QueuePurge(OneQueue) = "queue_purge",
    /// Removes a queue that has no jobs.
    QueueDelete(OneQueue) = "queue_delete",
    /// Makes or changes a cron entry.
    CronSet(Box<CronSet>) = "cron_set",
    /// Deletes cron entries.
    CronDelete(CronNames) = "cron_delete",
    /// Lists cron entries.
    CronList(CronList) = "cron_list",
    /// Shows a cron entry with its next times.
    CronShow(CronShow) = "cron_show",
    /// Stops cron entries from pushing.
    CronPause(CronNames) = "cron_pause",
    /// Lets them push again.
    CronResume(CronNames) = "cron_resume",
    /// Pushes the job of a cron entry now.
    CronRun(CronRun) = "cron_run",
    /// Opens a batch.
    BatchOpen(Box<BatchOpen>) = "batch_open",
    /// Closes a batch for members from outside.
    BatchCommit(BatchName) = "batch_commit",
    /// Shows a batch.
    BatchShow(BatchName) = "batch_show",
    /// Shows the graph of a batch.
    BatchGraph(BatchGraph) = "batch_graph",
    /// Lists batches.
    BatchList(BatchList) = "batch_list",
    /// Makes a limit of queues or keys, or replaces it.
    LimitSet(Box<LimitSet>) = "limit_set",
    /// Deletes a limit.
    LimitDelete(OneLimit) = "limit_delete",
    /// Shows a limit.
    LimitShow(OneLimit) = "limit_show",
    /// Lists limits.
    LimitList(LimitList) = "limit_list",
    /// Starts a task: does something to all jobs of a filter.
    TaskStart(Box<TaskStart>) = "task_start",
    /// Shows a task.
    TaskGet(OneTask) = "task_get",
    /// Lists tasks.
    TaskList(TaskList) = "task_list",
    /// Asks a task to end.
    TaskCancel(OneTask) = "task_cancel",
    /// Asks for the events of the namespace.
    Subscribe(Box<Subscribe>) = "subscribe",
    /// Ends a subscription.
    Unsubscribe(Unsubscribe) = "unsubscribe",
    /// Shows totals of the namespace and the server.
    Stats(Stats) = "stats",
    /// Reads a backup of the whole server, chunk by chunk.
    Backup(Backup) = "backup",
}

/// Opens the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol version that the client speaks.
    pub v: u32,
    /// Name and version of the client, for the log.
    #[serde(default)]
    pub client: String,
    /// Optional features that the client understands; unknown ones are ignored.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub features: Vec<String>,
    /// The namespace of everything that follows; default `default`.
    #[serde(default)]
    pub namespace: NamespaceName,
    /// Proof of a token; absent on a server without tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Opens or resumes a worker's session; without one there are no leases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionHello>,
    /// Opens or resumes a producer, for numbered pushes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<ProducerHello>,
}

/// Proof of a token without the token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Auth {
    /// The public part of the token.
    pub id: String,
    /// HMAC-SHA256 over the nonce of `welcome`, its key SHA-256 of the token's secret.
    pub mac: Bytes,
}

/// A worker's presence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionHello {
    /// Name of the worker, ≤ 256 bytes.
    pub name: String,
    /// Host of the worker, ≤ 256 bytes.
    pub host: String,
    /// Process id of the worker; 0 when it has none.
    pub pid: u32,
    /// Up to 16 pairs of ≤ 256 bytes.
    pub labels: std::collections::BTreeMap<String, String>,
    /// How many jobs it runs at once; 0 when it does not say.
    pub capacity: u32,
    /// How long the session lives without a frame, in ms, 1 s…1 h; default 15 s.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<DurationMs>,
    /// The session to go on with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume: Option<Resume>,
}

/// A session to go on with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resume {
    /// The session.
    pub id: SessionId,
    /// Its secret, as `hello` gave it.
    pub secret: String,
    /// The leases that the worker still works on. What it does not name is released at once.
    #[serde(default)]
    pub held: Vec<LeaseRef>,
}

/// A producer to open or to go on with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProducerHello {
    /// As an earlier `hello` gave it; absent asks for a new one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
}

/// A job and the number of its lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeaseRef {
    /// The job.
    pub job: JobId,
    /// The lease.
    pub lease: LeaseId,
}

/// Adds jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Push {
    /// 1…1000 jobs.
    pub jobs: Vec<JobSpec>,
    /// Whether one refused job refuses all; default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub atomic: bool,
    /// Spreads the jobs evenly over so many ms, in their order: the first at its time, the nth of
    /// N later by `spread_ms · n / N`. At most ten years; absent means all at their times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread_ms: Option<DurationMs>,
    /// A lease of a job of the batch that these jobs name: lets them join it after its commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<LeaseRef>,
    /// The producer's number of this push, from 1; absent gives up exactly-once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
}

impl Push {
    /// These jobs, each taken or refused by itself, without a number.
    pub fn of(jobs: Vec<JobSpec>) -> Self {
        Self {
            jobs,
            atomic: false,
            spread_ms: None,
            by: None,
            seq: None,
        }
    }
}

/// Asks for leases.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Fetch {
    /// 1…64 names or patterns; strict in this order unless there are weights.
    pub queues: Vec<QueuePattern>,
    /// One weight 1…1000 a name or pattern; empty means strict order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub weights: Vec<u32>,
    /// How many jobs at most, 0…1000, default 1. With 0 only the carried answers count.
    #[serde(default = "one")]
    pub max: u32,
    /// How long to wait for the first job, in ms, 0…60 000, default 0: until it is known whether there
    /// is one.
    pub wait_ms: DurationMs,
    /// Acks that ride along.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub acks: Vec<AckItem>,
    /// Fails that ride along.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fails: Vec<FailItem>,
}

fn one() -> u32 {
    1
}

/// Attempts succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ack {
    /// 1…1000 leases.
    pub leases: Vec<AckItem>,
}

/// An attempt that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckItem {
    /// The job.
    pub job: JobId,
    /// The lease.
    pub lease: LeaseId,
    /// What came out of it, ≤ 256 KiB: for whoever waits, and kept as long as the job is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Bytes>,
    /// How long the job stays visible, in ms, 0…ten years; absent: as its push says, else its queue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_ms: Option<DurationMs>,
}

impl AckItem {
    /// An ack without a result.
    pub fn of(job: JobId, lease: LeaseId) -> Self {
        Self {
            job,
            lease,
            result: None,
            retain_ms: None,
        }
    }
}

/// Attempts failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fail {
    /// 1…1000 leases.
    pub leases: Vec<FailItem>,
}

/// An attempt that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailItem {
    /// The job.
    pub job: JobId,
    /// The lease.
    pub lease: LeaseId,
    /// The worker's name for the kind of error, ≤ 100 bytes; default `error`.
    #[serde(default = "error_kind")]
    pub kind: String,
    /// For a person; cut at 4 KiB.
    #[serde(default)]
    pub message: String,
    /// Where; cut at 16 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub backtrace: String,
    /// The next attempt after so many ms, instead of the backoff.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_in_ms: Option<DurationMs>,
    /// No further attempt: the job is dead.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dead: bool,
    /// No further attempt, and nothing is kept: the job is deleted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub discard: bool,
}

fn error_kind() -> String {
    "error".to_owned()
}

/// Gives leases back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Release {
    /// 1…1000 leases.
    pub leases: Vec<ReleaseItem>,
}

/// A lease given back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseItem {
    /// The job.
    pub job: JobId,
    /// The lease.
    pub lease: LeaseId,
    /// Ready again only after so many ms; absent or 0 means at once, at the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<DurationMs>,
}

/// Moves deadlines of leases.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extend {
    /// 1…1000 leases.
    pub leases: Vec<ExtendItem>,
}

/// A lease whose deadline moves to max(old, now + ms).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExtendItem {
    /// The job.
    pub job: JobId,
    /// The lease.
    pub lease: LeaseId,
    /// The attempt may take so many ms from now, 1 s…24 h.
    pub ms: DurationMs,
}

/// Says that the session is alive.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {}

/// Ends the session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goodbye {}

/// Shows one job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobGet {
    /// The job.
    pub job: JobId,
}

/// Lists dead jobs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadList {
    /// The queue; default `default`.
    #[serde(default)]
    pub queue: QueueName,
    /// Newest first instead of oldest first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub newest_first: bool,
    /// Where the last page ended, as it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Rows of the page, 1…1000; default 100.
    #[serde(default = "page")]
    pub limit: u32,
}

pub(crate) fn page() -> u32 {
    100
}

/// Cancels jobs, each by itself. One that waits is over at once; the worker of one that is leased is
/// told, and has the grace to answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCancel {
    /// 1…1000 jobs.
    pub jobs: Vec<JobId>,
    /// After this time the lease of a leased job is revoked, 0…24 h; 0: at once. Default 30 s.
    #[serde(default = "cancel_grace")]
    pub grace_ms: DurationMs,
}

fn cancel_grace() -> DurationMs {
    limits::CANCEL_GRACE_DEFAULT
}

impl JobCancel {
    /// Cancels these jobs with the usual grace.
    pub fn new(jobs: Vec<JobId>) -> Self {
        Self {
            jobs,
            grace_ms: limits::CANCEL_GRACE_DEFAULT,
        }
    }

    fn check(&self, limits: &Limits) -> Result<(), WireError> {
        check_count("jobs", 1, limits.items_max, self.jobs.len())?;
        let (max, actual) = (limits::CANCEL_GRACE_MAX.0, self.grace_ms.0);
        if actual > max {
            return Err(WireError::out_of_range("grace_ms", 0, max, actual));
        }
        Ok(())
    }
}

/// Names dead jobs: by id, or the oldest of a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeadSelect {
    /// Up to 1000 ids. Not together with `queue`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub jobs: Vec<JobId>,
    /// The oldest dead jobs of this queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueName>,
    /// With `queue`: how many, 1…1000; default 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// With `queue`: only those that died before this wall time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub before: Option<Timestamp>,
}

/// Lists queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueList {
    /// Only those whose name matches; absent means all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pattern: Option<QueuePattern>,
}

/// Names queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueNames {
    /// 1…1000 queues.
    pub queues: Vec<QueueName>,
}

/// Names cron entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronNames {
    /// 1…1000 entries; when one does not exist, nothing is changed.
    pub names: Vec<CronName>,
}

/// Lists cron entries in the order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronList {
    /// Where the last page ended, as it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Rows of the page, 1…1000; default 100.
    #[serde(default = "page")]
    pub limit: u32,
}

/// Shows a cron entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronShow {
    /// The entry.
    pub name: CronName,
    /// How many of its next times, 0…100; default 5.
    #[serde(default = "next_times")]
    pub next: u32,
}

fn next_times() -> u32 {
    5
}

/// Pushes the job of a cron entry now, whatever its times, pause and overlap say; none of them
/// changes by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronRun {
    /// The entry.
    pub name: CronName,
}

/// Names a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchName {
    /// The batch.
    pub batch: BatchId,
}

/// Shows the jobs of a batch that were named or wait, in the order of their ids.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchGraph {
    /// The batch.
    pub batch: BatchId,
    /// Where the last page ended, as it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<JobId>,
    /// Jobs of the page, 1…1000; default 100.
    #[serde(default = "page")]
    pub limit: u32,
}

/// Lists batches in the order in which they were opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchList {
    /// Those that are settled instead of those that are not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub settled: bool,
    /// Where the last page ended, as it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Rows of the page, 1…1000; default 100.
    #[serde(default = "page")]
    pub limit: u32,
}

/// Shows totals.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {}

/// Reads a backup of the whole server, all namespaces, while it is used. It belongs to the
/// connection: it begins with the offset 0 and ends with the connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Backup {
    /// Bytes of it that the client has: 0 begins a new one.
    pub offset: u64,
}

/// A request that cannot be served, with the id to answer it under (0 when none was read).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The id of the request.
    pub id: u64,
    /// What was wrong.
    pub error: WireError,
}

/// Why a message of ours could not be written. Only a bug or a lack of memory does that.
#[derive(Debug, thiserror::Error)]
#[error("a message could not be encoded")]
pub struct EncodeError(#[from] write::WriteError);

impl Request {
    /// Reads a request from the map of a frame.
    ///
    /// # Errors
    /// `bad_request` or `unsupported_op`; the connection can go on, since the framing is intact.
    pub fn decode(map: &[u8]) -> Result<Self, Refusal> {
        Self::decode_plainly(map).map_or_else(|| Self::decode_scanned(map), Ok)
    }

    /// Reads what nearly all requests are, in one go: `id`, `op`, and fields that are known. `None` for
    /// all others, be they right or wrong.
    fn decode_plainly(map: &[u8]) -> Option<Self> {
        let mut walk = Walk { rest: map };
        let Head::Map(entries) = walk.head().ok()? else {
            return None;
        };
        let id = walk.value_of(b"id")?;
        let op = walk.value_of(b"op")?;
        let (Head::Unsigned(id @ 1..=INTEGER_MAX), Head::Str(op)) = (id, op) else {
            return None;
        };
        let entries = entries.checked_sub(2)?;
        let operation = Operation::decode_plainly(op, walk.rest, entries)?;
        Some(Self { id, operation })
    }

    /// Looks the whole map over before any of it is read.
    pub(crate) fn decode_scanned(map: &[u8]) -> Result<Self, Refusal> {
        let (mut id, mut op) = (&[][..], &[][..]);
        let scanned = scan(map, |(key, value)| match key {
            b"id" => id = value,
            b"op" => op = value,
            _ => {}
        });
        let id = match read::from_slice::<u64>(id) {
            Ok(id) if (1..=INTEGER_MAX).contains(&id) => id,
            Ok(_) | Err(_) => 0,
        };
        let refuse = |error| Refusal { id, error };
        scanned.map_err(|error| refuse(malformed(error)))?;
        if id == 0 {
            let message = format!("id must be an integer of 1 to {INTEGER_MAX}");
            return Err(refuse(WireError::bad_request("id", message)));
        }
        let op = read::from_slice::<&str>(op)
            .map_err(|_not_text| refuse(WireError::bad_request("op", "op must be a string")))?;
        let operation = Operation::decode(op, map).map_err(refuse)?;
        Ok(Self { id, operation })
    }

    /// Appends this request as a frame.
    ///
    /// # Errors
    /// [`EncodeError`]; the buffer is as it was.
    pub fn encode(&self, buffer: &mut BytesMut) -> Result<(), EncodeError> {
        frame::encode(buffer, |buffer| self.operation.encode(self.id, buffer))
    }
}

impl Operation {
    /// Checks counts and ranges of the request as a whole. Jobs of a push are checked one by one,
    /// by [`JobSpec::check`].
    ///
    /// # Errors
    /// `bad_request` or `too_large` with the field, the limit and the actual figure.
    pub fn check(&self, limits: &Limits) -> Result<(), WireError> {
        match self {
            Self::Hello(hello) => hello.check(),
            Self::Push(push) => {
                if let Some(seq) = push.seq
                    && !(1..=INTEGER_MAX).contains(&seq)
                {
                    return Err(WireError::out_of_range("seq", 1, INTEGER_MAX, seq));
                }
                if push.by.is_some() && push.jobs.iter().all(|job| job.batch.is_none()) {
                    let message = "by goes with jobs that name the batch of its job";
                    return Err(WireError::bad_request("by", message));
                }
                check_delay("spread_ms", push.spread_ms)?;
                check_count("jobs", 1, limits.items_max, push.jobs.len())
            }
            Self::Fetch(fetch) => fetch.check(limits),
            Self::Ack(ack) => {
                check_count("leases", 1, limits.items_max, ack.leases.len())?;
                check_items("leases", &ack.leases, |item| item.check(limits))
            }
            Self::Fail(fail) => {
                check_count("leases", 1, limits.items_max, fail.leases.len())?;
                check_items("leases", &fail.leases, FailItem::check)
            }
            Self::Release(release) => {
                check_count("leases", 1, limits.items_max, release.leases.len())?;
                check_items("leases", &release.leases, ReleaseItem::check)
            }
            Self::Extend(extend) => {
                check_count("leases", 1, limits.items_max, extend.leases.len())?;
                check_items("leases", &extend.leases, ExtendItem::check)
            }
            Self::JobList(list) => list.check(),
            Self::Progress(progress) => progress.check(limits),
            Self::Wait(wait) => wait.check(),
            Self::JobCancel(cancel) => cancel.check(limits),
            Self::TaskStart(start) => start.check(),
            Self::Subscribe(subscribe) => subscribe.check(),
            Self::JobChange(change) => change.check(limits),
            Self::JobDelete(delete) => check_count("jobs", 1, limits.items_max, delete.jobs.len()),
            Self::DeadList(list) => check_range("limit", 1, limits::PAGE_MAX, list.limit),
            Self::DeadRevive(select) | Self::DeadPurge(select) => select.check(limits),
            Self::QueuePause(pause) => pause.check(limits),
            Self::QueueResume(names) => {
                check_count("queues", 1, limits.items_max, names.queues.len())
            }
            Self::QueueSet(set) => set.check(),
            Self::CronSet(set) => set.check(limits),
            Self::CronDelete(names) | Self::CronPause(names) | Self::CronResume(names) => {
                check_count("names", 1, limits.items_max, names.names.len())
            }
            Self::CronList(list) => check_range("limit", 1, limits::PAGE_MAX, list.limit),
            Self::CronShow(show) => check_range("next", 0, limits::CRON_NEXT_MAX, show.next),
            Self::BatchOpen(open) => open.check(limits),
            Self::BatchList(list) => check_range("limit", 1, limits::PAGE_MAX, list.limit),
            Self::BatchGraph(graph) => check_range("limit", 1, limits::PAGE_MAX, graph.limit),
            Self::LimitSet(set) => set.check(),
            Self::LimitDelete(one) | Self::LimitShow(one) => one.check(),
            Self::LimitList(list) => list.check(),
            Self::BatchCommit(BatchName { .. })
            | Self::BatchShow(BatchName { .. })
            | Self::CronRun(CronRun { .. })
            | Self::Heartbeat(Heartbeat {})
            | Self::Goodbye(Goodbye {})
            | Self::JobGet(JobGet { .. })
            | Self::QueueList(QueueList { .. })
            | Self::QueueShow(OneQueue { .. })
            | Self::QueueCreate(OneQueue { .. })
            | Self::QueuePurge(OneQueue { .. })
            | Self::QueueDelete(OneQueue { .. })
            | Self::TaskGet(OneTask { .. })
            | Self::TaskList(TaskList {})
            | Self::TaskCancel(OneTask { .. })
            | Self::Unsubscribe(Unsubscribe { .. })
            | Self::Stats(Stats {})
            | Self::Backup(Backup { .. }) => Ok(()),
        }
    }
}

impl Hello {
    fn check(&self) -> Result<(), WireError> {
        let Some(session) = &self.session else {
            return Ok(());
        };
        let max = limits::LABEL_BYTES_MAX;
        let texts = [
            ("session.name", session.name.len()),
            ("session.host", session.host.len()),
        ];
        let labels = session.labels.iter();
        let labels = labels.map(|(name, value)| ("session.labels", name.len().max(value.len())));
        for (field, actual) in texts.into_iter().chain(labels) {
            if actual > max {
                return Err(WireError::too_large(field, max, actual));
            }
        }
        check_count(
            "session.labels",
            0,
            limits::LABELS_MAX,
            session.labels.len(),
        )?;
        if let Some(ttl) = session.ttl_ms
            && !(limits::SESSION_TTL_MIN..=limits::SESSION_TTL_MAX).contains(&ttl)
        {
            let (min, max) = (limits::SESSION_TTL_MIN.0, limits::SESSION_TTL_MAX.0);
            return Err(WireError::out_of_range("session.ttl_ms", min, max, ttl.0));
        }
        let held = session
            .resume
            .as_ref()
            .map_or(0, |resume| resume.held.len());
        check_count("session.resume.held", 0, limits::SESSION_LEASES_MAX, held)
    }
}

impl Fetch {
    fn check(&self, limits: &Limits) -> Result<(), WireError> {
        check_count("queues", 1, limits::FETCH_QUEUES_MAX, self.queues.len())?;
        check_count("acks", 0, limits.items_max, self.acks.len())?;
        check_count("fails", 0, limits.items_max, self.fails.len())?;
        check_range("max", 0, limits.items_max, self.max)?;
        if self.wait_ms > limits::FETCH_WAIT_MAX {
            let max = limits::FETCH_WAIT_MAX.0;
            return Err(WireError::out_of_range("wait_ms", 0, max, self.wait_ms.0));
        }
        if !self.weights.is_empty() && self.weights.len() != self.queues.len() {
            return Err(WireError::bad_request(
                "weights",
                "one weight a queue, or none at all",
            ));
        }
        for (index, weight) in self.weights.iter().enumerate() {
            let field = format!("weights[{index}]");
            check_range(&field, 1, limits::WEIGHT_MAX as usize, *weight)?;
        }
        check_items("acks", &self.acks, |item| item.check(limits))?;
        check_items("fails", &self.fails, FailItem::check)
    }
}

impl AckItem {
    fn check(&self, limits: &Limits) -> Result<(), WireError> {
        let (max, actual) = (
            limits.result_bytes_max,
            self.result.as_ref().map(Bytes::len),
        );
        if let Some(actual) = actual.filter(|actual| *actual > max) {
            return Err(WireError::too_large("result", max, actual));
        }
        check_delay("retain_ms", self.retain_ms)
    }
}

impl FailItem {
    fn check(&self) -> Result<(), WireError> {
        let (max, actual) = (limits::ERROR_KIND_BYTES_MAX, self.kind.len());
        if actual > max {
            return Err(WireError::too_large("kind", max, actual));
        }
        let endings = [
            ("dead", self.dead),
            ("discard", self.discard),
            ("retry_in_ms", self.retry_in_ms.is_some()),
        ];
        if let Some((second, _)) = endings.iter().filter(|(_, given)| *given).nth(1) {
            let message = "at most one of dead, discard and retry_in_ms";
            return Err(WireError::bad_request(*second, message));
        }
        check_delay("retry_in_ms", self.retry_in_ms)
    }
}

impl ReleaseItem {
    fn check(&self) -> Result<(), WireError> {
        check_delay("delay_ms", self.delay_ms)
    }
}

impl ExtendItem {
    fn check(&self) -> Result<(), WireError> {
        let (min, max) = (limits::LEASE_MIN, limits::LEASE_MAX);
        if (min..=max).contains(&self.ms) {
            return Ok(());
        }
        Err(WireError::out_of_range("ms", min.0, max.0, self.ms.0))
    }
}

impl DeadSelect {
    fn check(&self, limits: &Limits) -> Result<(), WireError> {
        match (&self.queue, self.jobs.is_empty()) {
            (None, true) => Err(WireError::bad_request("jobs", "name jobs or a queue")),
            (Some(_), false) => Err(WireError::bad_request("queue", "jobs or a queue, not both")),
            (None, false) if self.limit.is_some() || self.before.is_some() => Err(
                WireError::bad_request("queue", "limit and before go with a queue"),
            ),
            (None, false) => check_count("jobs", 1, limits.items_max, self.jobs.len()),
            (Some(_), true) => self.limit.map_or(Ok(()), |limit| {
                check_range("limit", 1, limits.items_max, limit)
            }),
        }
    }
}

pub(crate) fn check_count(
    field: &str,
    min: usize,
    max: usize,
    actual: usize,
) -> Result<(), WireError> {
    if actual > max {
        return Err(WireError::too_large(field, max, actual));
    }
    if actual < min {
        return Err(WireError::out_of_range(
            field,
            min as u64,
            max as u64,
            actual as u64,
        ));
    }
    Ok(())
}

pub(crate) fn check_range(
    field: &str,
    min: usize,
    max: usize,
    actual: u32,
) -> Result<(), WireError> {
    let (min, max, actual) = (min as u64, max as u64, u64::from(actual));
    if (min..=max).contains(&actual) {
        return Ok(());
    }
    Err(WireError::out_of_range(field, min, max, actual))
}

/// Checks the items of a list; an error names its place, such as `leases[3].kind`.
pub(crate) fn check_items<T>(
    list: &str,
    items: &[T],
    check: impl Fn(&T) -> Result<(), WireError>,
) -> Result<(), WireError> {
    items.iter().enumerate().try_for_each(|(index, item)| {
        check(item).map_err(|error| error.within(&format!("{list}[{index}]")))
    })
}

pub(crate) fn check_delay(field: &str, delay: Option<DurationMs>) -> Result<(), WireError> {
    match delay {
        Some(delay) if delay > limits::DELAY_MAX => {
            let max = limits::DELAY_MAX.0;
            Err(WireError::out_of_range(field, 0, max, delay.0))
        }
        Some(_) | None => Ok(()),
    }
}

fn malformed(error: ScanError) -> WireError {
    WireError::new(ErrorCode::BadRequest, error.to_string())
}

/// Reads the fields of an operation. The path to a refused field is looked for only once the
/// plain reading has failed.
fn decode_fields<T: DeserializeOwned>(map: &[u8]) -> Result<T, WireError> {
    if let Ok(fields) = read::from_slice(map) {
        return Ok(fields);
    }
    serde_path_to_error::deserialize(&mut read::Reader::with_path(map)).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        let missing = message
            .strip_prefix("missing field `")
            .and_then(|rest| rest.split('`').next());
        let field = match (path.as_str(), missing) {
            (".", Some(missing)) => missing.to_owned(),
            (parent, Some(missing)) => format!("{parent}.{missing}"),
            (path, None) => path.to_owned(),
        };
        WireError::bad_request(&field, format!("{field}: {message}"))
    })
}

/// The envelope's keys, in front of the fields of an operation.
#[derive(Serialize)]
struct Envelope {
    id: u64,
    op: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The map of a push whose job has a header.
    fn push() -> (Request, Vec<u8>) {
        let mut job = JobSpec::new("mail".parse().unwrap(), "x");
        job.headers.insert("trace".to_owned(), "1".to_owned());
        let operation = Operation::Push(Push::of(vec![job]));
        let request = Request { id: 7, operation };
        let mut frame = BytesMut::new();
        request.encode(&mut frame).unwrap();
        (request, frame[frame::HEADER_BYTES..].to_vec())
    }

    /// A map with one entry more.
    fn with_entry(mut map: Vec<u8>, entry: &[u8]) -> Vec<u8> {
        map[0] += 1;
        map.extend(entry);
        map
    }

    #[test]
    fn a_request_of_known_fields_is_read_in_one_go() {
        let (request, map) = push();
        assert_eq!(Request::decode_plainly(&map), Some(request));
    }

    #[test]
    fn a_request_with_an_unknown_field_is_scanned_first() {
        let (request, map) = push();
        let map = with_entry(map, b"\xa3new\xc0");
        assert_eq!(Request::decode_plainly(&map), None);
        assert_eq!(Request::decode(&map), Ok(request));
    }

    #[test]
    fn a_field_or_a_header_that_stands_twice_is_refused() {
        let (_, map) = push();
        let once = with_entry(map.clone(), b"\xa6atomic\xc2");
        let twice = with_entry(once, b"\xa6atomic\xc2");
        let place = map.windows(6).position(|it| it == b"\xa5trace").unwrap();
        let mut headers = map;
        headers[place - 1] += 1;
        headers.splice(place..place, *b"\xa5trace\xa1\x30");
        for map in [twice, headers] {
            assert_eq!(Request::decode_plainly(&map), None);
            let refusal = Request::decode(&map).unwrap_err();
            assert_eq!(refusal.error.code, ErrorCode::BadRequest);
            assert!(refusal.error.message.contains("twice"), "{refusal:?}");
        }
    }
}
