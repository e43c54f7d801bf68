//! What is kept: the shapes of everything that the store persists, without a byte of how.
//!
//! The engine reads and writes these; `store/keys.rs` and `store/records.rs` of the server give
//! them keys and bytes. Fields that only later features use are here too, since the record of a
//! job is fixed from the first release on.

use std::sync::Arc;

use ganger_protocol::{
    BatchId, Bytes, CronName, DurationMs, JobId, Kind, LeaseId, NamespaceName, QueueName,
    RetryPolicy, SessionId, Timestamp,
    batch::BatchCounters,
    cron::{Misfire, Overlap},
    ids::{Birth, Tag},
    job::{DeadReason, Headers, JobSpec, JobState, Unique},
    limit::{LimitTarget, Rate},
    response::Counters,
    workflow::{Condition, OnDead},
};

/// No value of the store may be larger: a page of larger ones would leak files.
pub const VALUE_BYTES_MAX: usize = 6 << 10;

/// A run takes entries while the sum of their [bounds](Entry::bound_bytes) stays within this.
pub const RUN_BYTES_MAX: usize = VALUE_BYTES_MAX - 256;

/// Entries of a run at most, so that an index is one byte and bits fit in [`Bits`].
pub const RUN_ENTRIES_MAX: usize = 255;

/// A content whose bound passes this is spilled into blobs of its own.
pub const INLINE_BYTES_MAX: usize = 5 << 10;

/// Bytes of one part of a blob.
pub const BLOB_PART_BYTES: usize = 5 << 10;

/// Positions of runs are multiples of this: between two of them each job of the first has its own, so
/// that it can stand alone in another lane and keep its place in the order of arrival.
pub const POSITION_STEP: u64 = 256;

/// The number of a queue. A purge gives a queue a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueNumber(pub u32);

/// The number of a producer of numbered pushes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProducerNumber(pub u64);

/// The number of a cron entry; never given twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CronNumber(pub u64);

/// The number of a group, from 1, without gaps. 0 stands for "nothing": always durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GroupNumber(pub u64);

/// The jobs of one fairness key (0: shared) within queue and priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// The queue.
    pub queue: QueueNumber,
    /// 0…9, 9 first.
    pub priority: u8,
    /// 0 for the shared lane, else the hash of the key.
    pub lane: u64,
}

impl Lane {
    /// The number of the lane in which jobs that are pushed for later are born. Nothing is granted
    /// from it: its runs lie apart, and their jobs leave them in no order.
    pub const SCHEDULED: u64 = u64::MAX;

    /// Whether it is the lane of jobs that were pushed for later.
    pub const fn is_scheduled(&self) -> bool {
        self.lane == Self::SCHEDULED
    }
}

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunKey {
    /// Its lane.
    pub lane: Lane,
    /// Its position: grows at the tail, shrinks at the head.
    pub position: u64,
}

/// One entry of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The run.
    pub run: RunKey,
    /// The entry in it.
    pub index: u8,
}

impl Place {
    /// The id of a job that was born here.
    pub fn job_id(&self, shard: u16) -> JobId {
        JobId::born(Birth {
            shard,
            queue: self.run.lane.queue.0,
            priority: self.run.lane.priority,
            lane: self.run.lane.lane,
            position: self.run.position,
            index: self.index,
        })
    }

    /// Where this job was born.
    pub fn of_birth(job: &JobId) -> Self {
        let birth = job.birth();
        let lane = Lane {
            queue: QueueNumber(birth.queue),
            priority: birth.priority,
            lane: birth.lane,
        };
        Self {
            run: RunKey {
                lane,
                position: birth.position,
            },
            index: birth.index,
        }
    }
}

/// Jobs of one lane packed into one record, immutable once it is sealed.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Run {
    /// 1…255 entries in order.
    pub entries: Vec<Entry>,
}

impl Run {
    /// The entries of a scheduled run that wait for a time.
    pub fn due_at(&self, due: Timestamp) -> impl Iterator<Item = (u8, &PackedJob)> {
        let entries = (0_u8..).zip(&self.entries);
        entries.filter_map(move |(index, entry)| match entry {
            Entry::Scheduled(at, job) if *at == due => Some((index, job)),
            Entry::Scheduled(..) | Entry::Job(_) | Entry::Reference(_) => None,
        })
    }
}

/// One entry of a run: a job, or a reference to the record of one.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A job that lives here.
    Job(PackedJob),
    /// A job that lives here until then, in a scheduled run.
    Scheduled(Timestamp, PackedJob),
    /// A job that has a record of its own.
    Reference(JobId),
}

impl Entry {
    /// An upper bound of the bytes this entry takes in its run.
    pub fn bound_bytes(&self) -> usize {
        match self {
            Self::Job(job) => job.bound_bytes(),
            Self::Scheduled(_, job) => 10 + job.bound_bytes(),
            Self::Reference(_) => 8 + JobId::BYTES,
        }
    }

    /// The job, when it lives here.
    pub fn job(&self) -> Option<&PackedJob> {
        match self {
            Self::Job(job) | Self::Scheduled(_, job) => Some(job),
            Self::Reference(_) => None,
        }
    }

    /// The job, when it lives here.
    pub fn job_mut(&mut self) -> Option<&mut PackedJob> {
        match self {
            Self::Job(job) | Self::Scheduled(_, job) => Some(job),
            Self::Reference(_) => None,
        }
    }
}

/// A job as it lives in a run: nothing has happened to it since its push.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedJob {
    /// When it was pushed.
    pub pushed_at: Timestamp,
    /// Parts of the blob that holds the content; 0 when it is inline. A spilled content is not
    /// written into the run, and read from there only where the need says so.
    pub spilled_parts: u16,
    /// What was pushed.
    pub content: Option<Arc<Content>>,
}

impl PackedJob {
    /// An upper bound of the bytes that it takes in its run.
    fn bound_bytes(&self) -> usize {
        let inline = self.content.as_ref().filter(|_| self.spilled_parts == 0);
        24 + inline.map_or(0, |content| content.bound_bytes())
    }
}

/// What was pushed, without where and when.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the fields are those of `JobSpec`, with the same meaning"
)]
pub struct Content {
    pub kind: Kind,
    pub payload: Bytes,
    pub content_type: Option<Arc<str>>,
    pub headers: Headers,
    pub max_attempts: Option<u32>,
    pub backoff: Option<Box<RetryPolicy>>,
    pub timeout_ms: Option<DurationMs>,
    pub expires_at: Option<Timestamp>,
    pub unique: Option<Box<Unique>>,
    pub key: Option<Tag>,
    pub tags: Vec<Tag>,
    pub batch: Option<BatchId>,
    pub node: Option<Box<Node>>,
    pub retain_ms: Option<DurationMs>,
}

/// What a job that was named, or waits, says of the others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[expect(
    missing_docs,
    reason = "the fields are those of `JobSpec`, with the same meaning"
)]
pub struct Node {
    pub name: Option<Tag>,
    pub condition: Condition,
    pub on_dead: OnDead,
}

impl Node {
    /// What a job says of the others, when it does. One that waits says which end it waits for.
    fn of(spec: &mut JobSpec) -> Option<Box<Self>> {
        let is_node = spec.is_node() || spec.condition.is_some();
        is_node.then(|| {
            Box::new(Self {
                name: spec.name.take(),
                condition: spec.condition.unwrap_or_default(),
                on_dead: spec.on_dead.unwrap_or_default(),
            })
        })
    }
}

impl From<JobSpec> for Content {
    fn from(mut spec: JobSpec) -> Self {
        Self::take_from(&mut spec)
    }
}

impl Content {
    /// Takes the content out of a spec, which is of no use afterwards: as large as specs are, each
    /// function that handed one on would copy it.
    pub fn take_from(spec: &mut JobSpec) -> Self {
        Self {
            node: Node::of(spec),
            kind: spec.kind.clone(),
            payload: std::mem::take(&mut spec.payload),
            content_type: spec.content_type.take(),
            headers: std::mem::take(&mut spec.headers),
            max_attempts: spec.max_attempts,
            backoff: spec.backoff.take(),
            timeout_ms: spec.timeout_ms,
            expires_at: spec.expires_at,
            unique: spec.unique.take(),
            key: spec.key.take(),
            tags: std::mem::take(&mut spec.tags),
            batch: spec.batch,
            retain_ms: spec.retain_ms,
        }
    }

    /// An upper bound of the encoded bytes: what texts and bytes take, eight bytes for each of
    /// their lengths, and the rest at its widest.
    pub fn bound_bytes(&self) -> usize {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| 16 + name.len() + value.len())
            .sum();
        let tags = |tags: &[Tag]| tags.iter().map(|tag| 8 + tag.as_str().len()).sum::<usize>();
        let named = |tag: &Option<Tag>| tag.as_ref().map_or(0, |tag| 8 + tag.as_str().len());
        96 + self.kind.as_str().len()
            + self.payload.len()
            + self.content_type.as_ref().map_or(0, |text| 8 + text.len())
            + headers
            + self
                .backoff
                .as_ref()
                .map_or(0, |backoff| 64 + 10 * backoff.table_ms.len())
            + self.unique.as_ref().map_or(0, |unique| {
                32 + unique.key.as_ref().map_or(0, |key| key.as_str().len())
            })
            + named(&self.key)
            + self.batch.map_or(0, |_| 16)
            + tags(&self.tags)
            + self.node.as_ref().map_or(0, |node| 8 + named(&node.name))
    }

    /// The job to push that has this content.
    pub fn to_spec(&self, queue: QueueName, priority: Option<u8>) -> JobSpec {
        let content = self.clone();
        JobSpec {
            queue,
            kind: content.kind,
            payload: content.payload,
            content_type: content.content_type,
            headers: content.headers,
            priority,
            run_at: None,
            delay_ms: None,
            max_attempts: content.max_attempts,
            backoff: content.backoff,
            timeout_ms: content.timeout_ms,
            tags: content.tags,
            expires_at: content.expires_at,
            unique: content.unique,
            key: content.key,
            batch: content.batch,
            name: content.node.as_ref().and_then(|node| node.name.clone()),
            after: Vec::new(),
            condition: content.node.as_ref().map(|node| node.condition),
            on_dead: content.node.as_ref().map(|node| node.on_dead),
            retain_ms: content.retain_ms,
        }
    }

    /// How many parts its blob may have; 0 when it stays inline.
    pub fn spilled_parts(&self) -> u16 {
        match self.bound_bytes() {
            bytes if bytes <= INLINE_BYTES_MAX => 0,
            bytes => blob_parts(bytes),
        }
    }
}

/// Parts of a blob that holds a result or a cursor, of which the length is written too.
pub fn bytes_parts(bytes: &[u8]) -> u16 {
    blob_parts(bytes.len() + 8)
}

/// Parts of a blob of so many bytes.
pub fn blob_parts(bytes: usize) -> u16 {
    u16::try_from(bytes.div_ceil(BLOB_PART_BYTES)).unwrap_or(u16::MAX)
}

/// A job that is outside of a run, or was: changed, retrying, blocked, released, closed.
#[derive(Debug, Clone, PartialEq)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// The group in which the record was last written; filled in when it is read.
    pub group: GroupNumber,
    /// Where it stands.
    pub state: JobState,
    /// The queue that it is in now.
    pub queue: QueueNumber,
    /// Its priority now.
    pub priority: u8,
    /// The lane that it stands in, or stood in last.
    pub lane: u64,
    /// When it was pushed.
    pub pushed_at: Timestamp,
    /// `scheduled`: when it becomes ready. Terminal states: until when it is kept.
    pub run_at: Option<Timestamp>,
    /// `ready` and `leased`: its reference. `scheduled`: its entry, when this is made up for one that
    /// lives in its scheduled run.
    pub place: Option<Place>,
    /// Terminal states: since when.
    pub closed_at: Option<Timestamp>,
    /// `dead`: why.
    pub reason: Option<DeadReason>,
    /// Grants so far.
    pub attempt: u32,
    /// Fails and time-outs so far.
    pub failures: u32,
    /// Sessions lost while they had it.
    pub losses: u32,
    /// The last losses in a row.
    pub losses_in_row: u32,
    /// Times it was given back.
    pub releases: u32,
    /// The highest lease that is settled: a lease up to this one is over.
    pub settled_lease: LeaseId,
    /// Parts of each of the last ten errors, oldest first.
    pub error_parts: Vec<u16>,
    /// Slot (0…9) of the oldest of them.
    pub error_first: u8,
    /// As in [`PackedJob`].
    pub spilled_parts: u16,
    /// As in [`PackedJob`].
    pub content: Option<Arc<Content>>,
    /// `leased`: it is cancelled, and its lease revoked then.
    pub cancel_at: Option<Timestamp>,
    /// The batch that it is a member of.
    pub batch: Option<BatchId>,
    /// `blocked`: jobs that it still waits for, among them those that will not come any more.
    pub waits_for: u32,
    /// Whether it was named or has waited: other jobs may wait for it.
    pub is_node: bool,
    /// `dead`: whether it still holds its unique key, so that whoever removes it reads that.
    pub holds_unique: bool,
    /// Not terminal: whether it keeps the later jobs of its key back, which is a sequence.
    pub holds_key: bool,
    /// How far its workers have come, once one of them said so.
    pub progress: Option<Box<JobProgress>>,
    /// `done`: parts of the blob that holds its result; 0 without one.
    pub result_parts: u16,
}

/// How far the workers of a job have come.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct JobProgress {
    /// 0…100.
    pub percent: Option<u8>,
    /// For a person.
    pub note: Option<String>,
    /// Parts of the blob that holds the cursor; 0 without one.
    pub cursor_parts: u16,
    /// Where the next attempt goes on; read only where a spilled content is read too.
    pub cursor: Option<Bytes>,
}

/// What the store knows of a job.
#[derive(Debug, Clone, PartialEq)]
pub enum StoredJob {
    /// It has a record.
    Record(Box<JobRecord>),
    /// It lives in its run of birth, unless the engine knows that it left.
    Packed {
        /// The group in which its run was written.
        group: GroupNumber,
        /// Entries of that run.
        run_entries: u8,
        /// The job.
        job: PackedJob,
    },
    /// It lives in its scheduled run of birth, which it has not left.
    Scheduled {
        /// When it becomes ready.
        at: Timestamp,
        /// The job.
        job: PackedJob,
        /// What left that run.
        left: LeftRun,
        /// All its entries of that time.
        peers: Bits,
    },
}

/// A timer: what happens to whom, and when. Their order is the order of firing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timer {
    /// When, by the wall clock.
    pub at: Timestamp,
    /// What.
    pub what: TimerKind,
    /// To whom: a job id, or a number in its last eight bytes.
    pub id: [u8; JobId::BYTES],
}

impl Timer {
    /// The timer that makes the jobs of a scheduled run ready that wait for this time. Many a push has
    /// one time for all its jobs: they share it.
    pub fn run_due(shard: u16, run: RunKey, at: Timestamp) -> Self {
        let first = Place { run, index: 0 };
        Self {
            at,
            what: TimerKind::RunDue,
            id: *first.job_id(shard).as_bytes(),
        }
    }
}

/// What a timer does. The numbers are stored and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum TimerKind {
    /// A scheduled job that has a record becomes ready.
    Due = 1,
    /// A waiting job expires.
    Expire = 2,
    /// The retention of a closed job ends.
    Retention = 3,
    /// The time of a unique key is over.
    UniqueTtl = 4,
    /// An open batch closes, or a settled one is forgotten.
    BatchDeadline = 5,
    /// A pause ends.
    PauseEnd = 6,
    /// A producer may be idle for too long.
    ProducerIdle = 7,
    /// A nominal time of a cron entry.
    Cron = 8,
    /// The grace of a leased job that was cancelled ends.
    Cancel = 9,
    /// Jobs of a scheduled run become ready: all that wait for this time. The id is that of its first
    /// entry.
    RunDue = 10,
    /// A job that others may wait for is done; due at once.
    NodeDone = 16,
    /// A job that others may wait for has ended otherwise; due at once.
    NodeEnded = 17,
}

impl TimerKind {
    /// The kind with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Due,
            2 => Self::Expire,
            3 => Self::Retention,
            4 => Self::UniqueTtl,
            5 => Self::BatchDeadline,
            6 => Self::PauseEnd,
            7 => Self::ProducerIdle,
            8 => Self::Cron,
            9 => Self::Cancel,
            10 => Self::RunDue,
            16 => Self::NodeDone,
            17 => Self::NodeEnded,
            _ => return None,
        })
    }
}

/// The digest of a namespace and a unique key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UniqueKey(pub [u8; 16]);

/// The lock of a unique key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UniqueRecord {
    /// Who holds it. One with an end may be gone.
    pub job: JobId,
    /// `ttl`: until when, whatever becomes of the job.
    pub ends_at: Option<Timestamp>,
}

/// A row of the index of closed jobs, ordered by time within queue and state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Closed {
    /// The queue.
    pub queue: QueueNumber,
    /// `done`, `dead`, `cancelled` or `expired`.
    pub state: JobState,
    /// Since when.
    pub at: Timestamp,
    /// Who.
    pub job: JobId,
}

/// One part of what a group says of acks or leases, so that no value grows too large.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartKey {
    /// The group that wrote it.
    pub group: GroupNumber,
    /// From 0.
    pub part: u16,
}

/// Rows of one [`PartKey`] of acks at most.
pub const ACKS_PER_PART: usize = 80;

/// Rows of one [`PartKey`] of leases at most.
pub const LEASES_PER_PART: usize = 60;

/// A set of entries of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Bits(pub [u64; 4]);

impl Bits {
    /// Adds an entry; whether it was not in the set before.
    pub fn insert(&mut self, index: u8) -> bool {
        let Some(word) = self.0.get_mut(usize::from(index / 64)) else {
            return false;
        };
        let bit = 1_u64 << (index % 64);
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    /// Whether an entry is in the set.
    pub fn contains(&self, index: u8) -> bool {
        self.0
            .get(usize::from(index / 64))
            .is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    /// The set of these entries.
    pub fn of(entries: impl IntoIterator<Item = u8>) -> Self {
        let mut set = Self::default();
        for index in entries {
            set.insert(index);
        }
        set
    }

    /// Adds all of another set.
    pub fn extend(&mut self, other: &Self) {
        for (word, more) in self.0.iter_mut().zip(other.0) {
            *word |= more;
        }
    }

    /// Takes all of another set out.
    pub fn remove(&mut self, other: &Self) {
        for (word, less) in self.0.iter_mut().zip(other.0) {
            *word &= !less;
        }
    }

    /// Whether every entry of another set is in this one.
    pub fn covers(&self, other: &Self) -> bool {
        let words = self.0.iter().zip(other.0);
        words.into_iter().all(|(word, other)| other & !word == 0)
    }

    /// Entries in the set.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }

    /// The lowest entry below `entries` that is not in the set.
    pub fn first_missing(&self, entries: u8) -> Option<u8> {
        (0..entries).find(|index| !self.contains(*index))
    }
}

/// Entries that left a run: of a scheduled one all so far, else those of one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftRun {
    /// The run.
    pub run: RunKey,
    /// Entries that it has.
    pub entries: u8,
    /// Those that left.
    pub left: Bits,
}

impl LeftRun {
    /// A run of so many entries that none has left.
    pub fn whole(run: RunKey, entries: u8) -> Self {
        Self {
            run,
            entries,
            left: Bits::default(),
        }
    }

    /// Whether every entry has left.
    pub fn is_used_up(&self) -> bool {
        self.left.count() == u32::from(self.entries)
    }
}

/// A grant or its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRecord {
    /// The job.
    pub job: JobId,
    /// The number of the grant.
    pub lease: LeaseId,
    /// Who has it.
    pub session: SessionId,
    /// Until when, by the wall clock.
    pub deadline: Timestamp,
    /// Which entry of which run was granted.
    pub place: Place,
    /// Which grant of the job it is.
    pub attempt: u32,
    /// The lane of its key; 0: it has none.
    pub key: u64,
}

/// A worker's session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id.
    pub id: SessionId,
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Name of the worker.
    pub name: String,
    /// Host of the worker.
    pub host: String,
    /// Process id of the worker.
    pub pid: u32,
    /// Labels of the worker.
    pub labels: Vec<(String, String)>,
    /// Jobs that the worker runs at once.
    pub capacity: u32,
    /// How long it lives without a frame.
    pub ttl: DurationMs,
}

/// The outcome of a numbered push, in the slot `seq mod 256` of its producer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutcomeRecord {
    /// The producer.
    pub producer: ProducerNumber,
    /// The number of the push.
    pub seq: u64,
    /// When it was applied.
    pub at: Timestamp,
    /// What became of its jobs, in order.
    pub results: Vec<OutcomeRange>,
}

/// What became of some jobs of a push that follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutcomeRange {
    /// They were pushed: ids that differ in nothing but their index, which counts up.
    Pushed {
        /// The id of the first.
        first: JobId,
        /// How many.
        count: u8,
    },
    /// None was made: another job holds the unique key.
    Existing {
        /// Who holds it.
        holder: JobId,
        /// Whether it got payload and time of this push.
        is_replaced: bool,
    },
    /// One was refused.
    Refused {
        /// Ordinal of the [`ErrorCode`](ganger_protocol::ErrorCode) in its list.
        code: u8,
        /// The refused field.
        field: String,
        /// What was wrong, cut at 256 bytes.
        message: String,
    },
}

/// A queue: its name, settings and counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueRecord {
    /// Its number.
    pub number: QueueNumber,
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its name.
    pub name: QueueName,
    /// Whether it gives no leases.
    pub paused: bool,
    /// Until when; absent when nothing but a request ends the pause.
    pub paused_until: Option<Timestamp>,
    /// Whether this is the old number of a queue that was purged: nothing of it is shown, and a
    /// sweep erases what is left.
    pub is_purged: bool,
    /// Jobs that may wait in it at most; absent means as many as the disk takes.
    pub jobs_max: Option<u64>,
    /// The longest attempt of its jobs that name no other.
    pub timeout_ms: Option<DurationMs>,
    /// The backoff of its jobs that name no other.
    pub backoff: Option<Box<RetryPolicy>>,
    /// How many dead jobs it keeps; absent means 10 000.
    pub dead_max: Option<u64>,
    /// How long it keeps them; absent means 180 days.
    pub dead_retention_ms: Option<DurationMs>,
    /// How long it keeps done, cancelled and expired jobs that name no time; absent means not at all.
    pub retain_ms: Option<DurationMs>,
    /// How many jobs of each of these states it keeps; absent means 10 000.
    pub retained_max: Option<u64>,
    /// Counters by state and outcome.
    pub counters: Counters,
}

/// A cron entry: when it pushes, which job, and how far it has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CronRecord {
    /// Its number.
    pub number: CronNumber,
    /// Its namespace.
    pub namespace: NamespaceName,
    /// Its name.
    pub name: CronName,
    /// When it pushes.
    pub times: CronTimes,
    /// What becomes of times that were missed.
    pub misfire: Misfire,
    /// [`Misfire::All`]: for how many of them.
    pub misfire_max: u32,
    /// What becomes of times at which the last job is not over.
    pub overlap: Overlap,
    /// The longest time by which its jobs run later.
    pub jitter_ms: DurationMs,
    /// Whether it pushes nothing for now.
    pub paused: bool,
    /// Whether it stands in the configuration, and nobody else may change it.
    pub from_file: bool,
    /// The queue of its jobs.
    pub queue: QueueName,
    /// The priority of its jobs.
    pub priority: Option<u8>,
    /// The rest of its jobs, at most [`INLINE_BYTES_MAX`].
    pub content: Arc<Content>,
    /// The next nominal time, which has a timer; none while it is paused or when none will come.
    pub next_at: Option<Timestamp>,
    /// The latest nominal time that is over.
    pub last_at: Option<Timestamp>,
    /// The job that was pushed last by its time.
    pub last_job: Option<JobId>,
    /// [`Overlap::QueueOne`]: the time whose job is pushed when `last_job` is over.
    pub queued_at: Option<Timestamp>,
    /// Jobs pushed by their times so far.
    pub pushed: u64,
    /// Times left out so far because of `overlap` or a refusal.
    pub skipped: u64,
    /// Why the latest time pushed nothing, cut at 256 bytes; empty when it did.
    pub refused: String,
}

/// When a cron entry pushes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CronTimes {
    /// At the multiples of a distance since the epoch.
    Every(DurationMs),
    /// By the wall clock of a zone.
    Expression {
        /// Five fields.
        expression: String,
        /// As the IANA database spells it.
        timezone: String,
    },
}

/// A limit of queues or keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitRecord {
    /// Its namespace.
    pub namespace: NamespaceName,
    /// What it is for.
    pub target: LimitTarget,
    /// Jobs that are leased at once at most.
    pub max_running: Option<u32>,
    /// How fast jobs are granted.
    pub rate: Option<Rate>,
    /// Jobs of a key in its turn.
    pub weight: Option<u32>,
    /// Whether jobs of a key run one at a time, in order.
    pub sequence: bool,
}

/// A batch: its members as counted, and its callbacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchRecord {
    /// Its id.
    pub id: BatchId,
    /// Its namespace.
    pub namespace: NamespaceName,
    /// For a person.
    pub description: String,
    /// The batch that it is a member of.
    pub parent: Option<BatchId>,
    /// Its members.
    pub counters: BatchCounters,
    /// What is pushed when every member was tried once.
    pub on_complete: Option<Callback>,
    /// What is pushed when every member is done.
    pub on_success: Option<Callback>,
    /// What is pushed when every member is terminal.
    pub on_settled: Option<Callback>,
    /// Since when it is there.
    pub opened_at: Timestamp,
    /// Since when only its own members add to it.
    pub committed_at: Option<Timestamp>,
    /// Whether it was its deadline that committed it.
    pub lapsed: bool,
    /// Whether some job waits, or has waited, for a member that has no name.
    pub has_edges: bool,
    /// When every member was tried once, for the first time.
    pub completed_at: Option<Timestamp>,
    /// Since when every member is terminal, with nobody left to add one. A record with it lies among
    /// the settled ones.
    pub settled_at: Option<Timestamp>,
}

/// A member of a batch that was named, or waits: what is kept of it as long as the batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRecord {
    /// Its batch.
    pub batch: BatchId,
    /// Its id.
    pub job: JobId,
    /// Its queue.
    pub queue: QueueName,
    /// Its kind.
    pub kind: Kind,
    /// Its name in its push.
    pub name: Option<Tag>,
    /// All jobs that it was to wait for.
    pub after: Vec<JobId>,
}

impl NodeRecord {
    /// An upper bound of the parts that it lies in.
    pub fn parts(&self) -> u16 {
        let name = self.name.as_ref().map_or(0, |name| name.as_str().len());
        let names = self.queue.as_str().len() + self.kind.as_str().len() + name;
        blob_parts(32 + names + JobId::BYTES * self.after.len())
    }
}

/// A job that a batch pushes once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Callback {
    /// Its queue.
    pub queue: QueueName,
    /// Its priority.
    pub priority: Option<u8>,
    /// The rest of it.
    pub content: Arc<Content>,
    /// The job, once it was pushed.
    pub pushed: Option<JobId>,
}

/// What the shard itself must remember; part of every group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeadRecord {
    /// Wall time of the group.
    pub wall: Timestamp,
    /// The highest position given at a tail.
    pub position_high: u64,
    /// The lowest position given at a head.
    pub position_low: u64,
    /// Numbers of leases, sessions and producers below this one may have been given.
    pub reserved: u64,
    /// The next queue gets this number.
    pub next_queue: u32,
}

impl HeadRecord {
    /// A position behind all that were given.
    pub fn position_at_tail(&mut self) -> u64 {
        let last = self.position_high - self.position_high % POSITION_STEP;
        self.position_high = last + POSITION_STEP;
        self.position_high
    }

    /// A position before all that were given.
    pub fn position_at_head(&mut self) -> u64 {
        let below = self.position_low - 1;
        self.position_low = below - below % POSITION_STEP;
        self.position_low
    }
}

/// Which blob of a job. The numbers are stored and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BlobKind {
    /// 0: the content.
    Content,
    /// 1: the result.
    Result,
    /// 2: the cursor.
    Cursor,
    /// 16 + slot: one of the last ten errors.
    Error(u8),
}
