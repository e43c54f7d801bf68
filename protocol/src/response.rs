//! What a server says: replies, one struct per operation, and notices that nobody asked for.
//!
//! A reply is `{id, ok: {…}}` or `{id, err: {…}}`, a notice `{id: 0, op, …}`. Results of an
//! operation on many stand in the order of the request.

use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    batch::BatchView,
    change::ChangeReply,
    cron::CronView,
    error::WireError,
    event::{Events, SubscribeReply},
    frame,
    ids::{JobId, Kind, QueueName, SessionId},
    job::{GrantedJob, JobState, JobView},
    limit::{LimitView, LimitsReply},
    limits::Limits,
    list::JobListReply,
    progress::WaitReply,
    queue::{QueuePurgeReply, QueueReply},
    read,
    request::{EncodeError, LeaseRef},
    scan::{Head, Walk, scan, scan_value},
    task::{TaskView, TasksReply},
    time::{DurationMs, Timestamp},
    workflow::NodeView,
    write,
};

/// The first frame of a connection, sent by the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The protocol version that the server speaks.
    pub v: u32,
    /// The oldest version that it understands.
    pub min_v: u32,
    /// 32 bytes for the proof of a token; fresh for every connection.
    pub nonce: Bytes,
    /// Whether `hello` needs a token.
    pub auth_required: bool,
    /// The limits in force.
    pub limits: Limits,
}

/// Answers `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HelloReply {
    /// The protocol version of the connection.
    pub v: u32,
    /// Optional features of the server.
    pub features: Vec<String>,
    /// The limits in force.
    pub limits: Limits,
    /// The server's wall time.
    pub server_time: Timestamp,
    /// The session, when one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<SessionReply>,
    /// The producer, when one was asked for: opaque, to be given again after a reconnect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub producer: Option<String>,
}

/// A session as `hello` answers it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionReply {
    /// The session. Another one than was to be resumed when that is no longer known.
    pub id: SessionId,
    /// To resume it.
    pub secret: String,
    /// How long it lives without a frame, in ms.
    pub ttl_ms: DurationMs,
    /// Leases that the worker named and the server does not know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LeaseRef>,
}

/// Answers `push`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushReply {
    /// One result a job.
    pub results: Vec<PushResult>,
}

/// What became of one pushed job: `{id}` or `{err}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushResult {
    /// The id of the job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<JobId>,
    /// No job was made: `id` is the job that holds the unique key, or held it last.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub existing: bool,
    /// With `existing`: that job has now the payload and the time of this push.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replaced: bool,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub err: Option<WireError>,
}

impl From<Result<JobId, WireError>> for PushResult {
    fn from(result: Result<JobId, WireError>) -> Self {
        match result {
            Ok(id) => Self {
                id: Some(id),
                ..Self::default()
            },
            Err(error) => Self {
                err: Some(error),
                ..Self::default()
            },
        }
    }
}

/// Answers `fetch`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FetchReply {
    /// The leases; empty when the wait passed without a job.
    pub jobs: Vec<GrantedJob>,
    /// One result a carried ack.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub acks: Vec<LeaseResult>,
    /// One result a carried fail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fails: Vec<LeaseResult>,
}

/// Answers `ack`, `fail`, `release`, `extend` and `progress`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseReply {
    /// One result a lease.
    pub results: Vec<LeaseResult>,
}

/// What became of one answer to a lease. An empty map: applied.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LeaseResult {
    /// The same answer was applied a short while ago; nothing changed now.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub already: bool,
    /// `fail` and `release`: the state of the job now; absent when it was deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// When a scheduled job becomes ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    /// `extend`: the lease's deadline, in ms from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<DurationMs>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub err: Option<WireError>,
}

/// Answers `job_cancel`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelReply {
    /// What became of each job, in the order of the request.
    pub results: Vec<CancelResult>,
}

/// What became of a job that was to be cancelled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CancelResult {
    /// `cancelled`, or `leased` until its worker answers or the grace has passed; absent when it
    /// was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// `leased`: when its lease is revoked. The earliest of several cancels holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cancel_at: Option<Timestamp>,
    /// Why it was refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub err: Option<WireError>,
}

impl CancelResult {
    /// The job is over.
    pub fn cancelled() -> Self {
        Self {
            state: Some(JobState::Cancelled),
            ..Self::default()
        }
    }
}

/// Answers `heartbeat`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HeartbeatReply {
    /// The worker shall take no more jobs.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub quiet: bool,
    /// The worker shall stop.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub terminate: bool,
    /// Leases to cancel.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cancel: Vec<LeaseRef>,
    /// Leases that ended since the last heartbeat without an answer of the worker.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lost: Vec<LeaseRef>,
}

/// Answers what has nothing to say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {}

/// Answers `backup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupReply {
    /// The next bytes of the backup.
    pub chunk: Bytes,
    /// Whether these are the last.
    pub end: bool,
    /// About how many bytes the whole will have; rather more than fewer.
    pub estimate_bytes: u64,
}

/// Answers `dead_list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobsReply {
    /// The rows, without payload and errors.
    pub jobs: Vec<JobView>,
    /// Where the next page begins; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Answers `dead_revive` and `dead_purge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CountReply {
    /// How many jobs were changed.
    pub count: u64,
    /// With a queue: whether there are more.
    #[serde(default)]
    pub more: bool,
    /// With ids: those that were not dead.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_found: Vec<JobId>,
    /// `dead_revive`: those that stay dead, since another job holds their unique key or their
    /// `expires_at` has passed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conflicts: Vec<JobId>,
}

/// Answers `queue_list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuesReply {
    /// In the order of their names.
    pub queues: Vec<QueueView>,
}

/// Counters by state now, and by outcome since the queue was made. All exact, none counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Counters {
    /// Jobs that wait for a time.
    pub scheduled: u64,
    /// Jobs that wait for other jobs.
    pub blocked: u64,
    /// Jobs that may be granted.
    pub ready: u64,
    /// Jobs that workers have.
    pub leased: u64,
    /// Jobs kept for a person.
    pub dead: u64,
    /// Done jobs that are still visible.
    pub done_kept: u64,
    /// Cancelled jobs that are still visible.
    pub cancelled_kept: u64,
    /// Expired jobs that are still visible.
    pub expired_kept: u64,
    /// Pushed so far.
    pub pushed: u64,
    /// Acked so far.
    pub done: u64,
    /// Cancelled so far.
    pub cancelled: u64,
    /// Expired so far.
    pub expired: u64,
    /// Removed for good so far.
    pub deleted: u64,
    /// Grants so far.
    pub granted: u64,
    /// Fails and time-outs so far.
    pub failed: u64,
    /// Leases that ended with their session so far.
    pub lost: u64,
    /// Leases given back so far.
    pub released: u64,
    /// Jobs that came from other queues so far.
    pub moved_in: u64,
    /// Jobs that went to other queues so far.
    pub moved_out: u64,
}

impl Counters {
    /// Jobs that are kept and not counted by their outcome: those that are not over, and dead ones.
    pub fn kept(&self) -> u64 {
        self.scheduled + self.blocked + self.ready + self.leased + self.dead
    }

    /// Jobs that are counted by their outcome already and are still visible.
    pub fn retained(&self) -> u64 {
        self.done_kept + self.cancelled_kept + self.expired_kept
    }

    /// Adds the counters of another queue.
    pub fn add(&mut self, other: &Self) {
        self.scheduled += other.scheduled;
        self.blocked += other.blocked;
        self.ready += other.ready;
        self.leased += other.leased;
        self.dead += other.dead;
        self.done_kept += other.done_kept;
        self.cancelled_kept += other.cancelled_kept;
        self.expired_kept += other.expired_kept;
        self.pushed += other.pushed;
        self.done += other.done;
        self.cancelled += other.cancelled;
        self.expired += other.expired;
        self.deleted += other.deleted;
        self.granted += other.granted;
        self.failed += other.failed;
        self.lost += other.lost;
        self.released += other.released;
        self.moved_in += other.moved_in;
        self.moved_out += other.moved_out;
    }
}

/// A queue as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueView {
    /// Its name.
    pub name: QueueName,
    /// Whether it gives no leases.
    pub paused: bool,
    /// Until when; absent while it is not paused, or is until it is resumed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<Timestamp>,
    /// Its counters.
    pub counters: Counters,
}

/// Answers `cron_list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronsReply {
    /// In the order of their names.
    pub entries: Vec<CronView>,
    /// Where the next page begins; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Answers `cron_run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CronRunReply {
    /// The job that was pushed.
    pub id: JobId,
}

/// Answers `batch_graph`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphReply {
    /// The page. It ends early where it has 5000 jobs that others were to wait for.
    pub nodes: Vec<NodeView>,
    /// Where the next page goes on; absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<JobId>,
}

/// Answers `batch_list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchesReply {
    /// In the order in which they were opened; of the settled ones a page may have fewer than were
    /// asked for.
    pub batches: Vec<BatchView>,
    /// Where the next page begins; absent at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

/// Answers `stats`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatsReply {
    /// Version of the server.
    pub version: String,
    /// ms since the server started.
    pub uptime_ms: DurationMs,
    /// Queues of the namespace.
    pub queues: u64,
    /// Sessions of workers, of the shard.
    pub sessions: u64,
    /// Fetches that wait, of the shard.
    pub waiting: u64,
    /// Sums over the queues of the namespace.
    pub counters: Counters,
    /// What became of the leases of each kind since the start of the server, in the order of their
    /// names; of the first thousand kinds of a shard.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<KindView>,
}

/// What became of the leases of a kind since the start of the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KindView {
    /// The kind.
    pub kind: Kind,
    /// Grants.
    pub granted: u64,
    /// Acks.
    pub done: u64,
    /// Fails and time-outs.
    pub failed: u64,
    /// Of those: after which the job was dead.
    pub dead: u64,
}

impl KindView {
    /// A kind of which nothing was granted.
    pub fn of(kind: Kind) -> Self {
        Self {
            kind,
            granted: 0,
            done: 0,
            failed: 0,
            dead: 0,
        }
    }
}

/// Declares the bodies of replies: a variant, its struct and the operations it answers, in one
/// table.
macro_rules! replies {
    ($($(#[$doc:meta])* $variant:ident($body:ty) = $($op:literal)|+,)*) => {
        /// Every body of a reply.
        #[derive(Debug, Clone, PartialEq, Serialize)]
        #[serde(untagged)]
        pub enum ReplyBody {
            $($(#[$doc])* $variant($body),)*
        }

        impl ReplyBody {
            /// The operations that each body answers, body by body.
            pub const ANSWERS: &'static [&'static [&'static str]] = &[$(&[$($op),+]),*];

            /// Reads the body of the reply to this operation; `None` for a word that is none.
            ///
            /// # Errors
            /// When the server answered with another shape.
            pub fn read(op: &str, body: &Body) -> Option<Result<Self, MessageError>> {
                match op {
                    $($($op)|+ => Some(body.read().map(Self::$variant)),)*
                    _ => None,
                }
            }
        }
    };
}

replies! {
    /// To `hello`.
    Hello(Box<HelloReply>) = "hello",
    /// To `push`.
    Push(PushReply) = "push",
    /// To `fetch`.
    Fetch(FetchReply) = "fetch",
    /// To `ack`, `fail`, `release`, `extend`, `progress`.
    Lease(LeaseReply) = "ack" | "fail" | "release" | "extend" | "progress",
    /// To `heartbeat`.
    Heartbeat(HeartbeatReply) = "heartbeat",
    /// To `goodbye`, `queue_pause`, `queue_resume`, `queue_create`, `queue_delete`, `cron_delete`,
    /// `cron_pause`, `cron_resume`, `limit_delete`, `unsubscribe`.
    Done(Done) = "goodbye" | "queue_pause" | "queue_resume" | "queue_create" | "queue_delete"
        | "cron_delete" | "cron_pause" | "cron_resume" | "limit_delete" | "unsubscribe",
    /// To `job_get`.
    Job(Box<JobView>) = "job_get",
    /// To `job_list`.
    JobList(JobListReply) = "job_list",
    /// To `wait`.
    Wait(Box<WaitReply>) = "wait",
    /// To `job_cancel`.
    Cancel(CancelReply) = "job_cancel",
    /// To `job_change` and `job_delete`.
    Change(ChangeReply) = "job_change" | "job_delete",
    /// To `dead_list`.
    Jobs(JobsReply) = "dead_list",
    /// To `dead_revive` and `dead_purge`.
    Count(CountReply) = "dead_revive" | "dead_purge",
    /// To `queue_list`.
    Queues(QueuesReply) = "queue_list",
    /// To `queue_show` and `queue_set`.
    Queue(Box<QueueReply>) = "queue_show" | "queue_set",
    /// To `queue_purge`.
    Purged(QueuePurgeReply) = "queue_purge",
    /// To `cron_set` and `cron_show`.
    Cron(Box<CronView>) = "cron_set" | "cron_show",
    /// To `cron_list`.
    Crons(CronsReply) = "cron_list",
    /// To `cron_run`.
    CronRun(CronRunReply) = "cron_run",
    /// To `batch_open`, `batch_commit` and `batch_show`.
    Batch(Box<BatchView>) = "batch_open" | "batch_commit" | "batch_show",
    /// To `batch_graph`.
    Graph(GraphReply) = "batch_graph",
    /// To `batch_list`.
    Batches(BatchesReply) = "batch_list",
    /// To `limit_set` and `limit_show`.
    Limit(Box<LimitView>) = "limit_set" | "limit_show",
    /// To `limit_list`.
    Limits(LimitsReply) = "limit_list",
    /// To `task_start`, `task_get` and `task_cancel`.
    Task(Box<TaskView>) = "task_start" | "task_get" | "task_cancel",
    /// To `task_list`.
    Tasks(TasksReply) = "task_list",
    /// To `subscribe`.
    Subscribed(SubscribeReply) = "subscribe",
    /// To `stats`.
    Stats(Box<StatsReply>) = "stats",
    /// To `backup`.
    Backup(BackupReply) = "backup",
}

/// A reply to the request `id`.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    /// The id of the request; 0 when it could not be read.
    pub id: u64,
    /// What is answered.
    pub result: Result<ReplyBody, WireError>,
}

/// What a server says without being asked: `{id: 0, op, …}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Notice {
    /// The first frame.
    Welcome(Welcome),
    /// Leases that ended without an answer of the worker.
    Lost {
        /// Which.
        leases: Vec<LeaseRef>,
    },
    /// Leases to cancel.
    Cancel {
        /// Which.
        leases: Vec<LeaseRef>,
    },
    /// The worker shall take no more jobs.
    Quiet {},
    /// The worker shall stop.
    Terminate {},
    /// Go to another address.
    Redirect {
        /// `host:port`.
        address: String,
    },
    /// Events of a subscription.
    Events(Box<Events>),
}

impl Notice {
    /// The words of all notices, in the order of the documentation.
    pub const ALL: &'static [&'static str] = &[
        "welcome",
        "lost",
        "cancel",
        "quiet",
        "terminate",
        "redirect",
        "events",
    ];
}

impl Reply {
    /// Appends this reply as a frame.
    ///
    /// # Errors
    /// [`EncodeError`]; the buffer is as it was.
    pub fn encode(&self, buffer: &mut BytesMut) -> Result<(), EncodeError> {
        #[derive(Serialize)]
        struct Refused<'a> {
            id: u64,
            err: &'a WireError,
        }
        #[derive(Serialize)]
        struct Answered<'a> {
            id: u64,
            ok: &'a ReplyBody,
        }
        let id = self.id;
        frame::encode(buffer, |buffer| match &self.result {
            Ok(ok) => write::map(buffer, &Answered { id, ok }),
            Err(err) => write::map(buffer, &Refused { id, err }),
        })
    }
}

impl Notice {
    /// Appends this notice as a frame.
    ///
    /// # Errors
    /// [`EncodeError`]; the buffer is as it was.
    pub fn encode(&self, buffer: &mut BytesMut) -> Result<(), EncodeError> {
        #[derive(Serialize)]
        struct Envelope {
            id: u64,
        }
        frame::encode(buffer, |buffer| {
            write::maps(buffer, &Envelope { id: 0 }, self)
        })
    }
}

/// A message of the server as a client reads it.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// An answer. The body is read by whoever knows what was asked, with [`Body::read`].
    Reply {
        /// The id of the request.
        id: u64,
        /// What was answered.
        result: Result<Body, WireError>,
    },
    /// Something that nobody asked for.
    Notice(Notice),
    /// A notice that this version does not know; to be ignored.
    Unknown {
        /// Its word.
        op: String,
    },
}

/// The undecoded body of a reply.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    map: Bytes,
    /// Whether it is known to be well formed.
    is_scanned: bool,
}

/// A message that a client cannot read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server sent what is no message: {0}")]
pub struct MessageError(String);

impl Body {
    /// The body as the type of its operation's reply.
    ///
    /// # Errors
    /// When the server answered with another shape, or with what is no MessagePack.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, MessageError> {
        if !self.is_scanned {
            if let Some(body) = self.read_plainly() {
                return Ok(body);
            }
            scan_value(&self.map).map_err(|error| MessageError(error.to_string()))?;
        }
        read::from_slice(&self.map).map_err(|error| MessageError(error.to_string()))
    }
}

impl Body {
    fn read_plainly<T: DeserializeOwned>(&self) -> Option<T> {
        let mut walk = Walk { rest: &self.map };
        match walk.head().ok()? {
            Head::Map(entries) => read::plainly(walk.rest, entries),
            _ => None,
        }
    }
}

impl Message {
    /// Reads a message from the map of a frame. The body of a positive answer is looked at once it
    /// is read.
    ///
    /// # Errors
    /// When the bytes are no message of a server.
    pub fn decode(map: &Bytes) -> Result<Self, MessageError> {
        Self::decode_plainly(map).map_or_else(|| Self::decode_scanned(map), Ok)
    }

    /// Reads what nearly all messages are: `id` and `ok`. `None` for all others, be they right or wrong.
    fn decode_plainly(map: &Bytes) -> Option<Self> {
        let mut walk = Walk { rest: map };
        let (Head::Map(2), Head::Unsigned(id), Some(b"ok")) =
            (walk.head().ok()?, walk.value_of(b"id")?, walk.short_str())
        else {
            return None;
        };
        let body = Body {
            map: map.slice_ref(walk.rest),
            is_scanned: false,
        };
        Some(Self::Reply {
            id,
            result: Ok(body),
        })
    }

    /// Looks the whole map over before any of it is read.
    pub(crate) fn decode_scanned(map: &Bytes) -> Result<Self, MessageError> {
        let (mut id, mut op, mut ok, mut err) = (None, None, None, None);
        scan(map, |(key, value)| match key {
            b"id" => id = Some(value),
            b"op" => op = Some(value),
            b"ok" => ok = Some(value),
            b"err" => err = Some(value),
            _ => {}
        })
        .map_err(|error| MessageError(error.to_string()))?;
        let id: u64 = read_type(id.ok_or_else(|| MessageError("no id".to_owned()))?)?;
        match (ok, err, op) {
            (Some(body), None, _) => Ok(Self::Reply {
                id,
                result: Ok(Body {
                    map: map.slice_ref(body),
                    is_scanned: true,
                }),
            }),
            (None, Some(error), _) => Ok(Self::Reply {
                id,
                result: Err(read_type(error)?),
            }),
            (None, None, Some(op)) => {
                let op: String = read_type(op)?;
                if !Notice::ALL.contains(&op.as_str()) {
                    return Ok(Self::Unknown { op });
                }
                read_type(map).map(Self::Notice)
            }
            (None, None, None) | (Some(_), Some(_), _) => {
                Err(MessageError("neither ok nor err nor op".to_owned()))
            }
        }
    }
}

fn read_type<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, MessageError> {
    read::from_slice(bytes).map_err(|error| MessageError(error.to_string()))
}
