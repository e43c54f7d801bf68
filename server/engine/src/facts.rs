//! What the engine does not hold and asks for. Before a command is applied the engine names its
//! [`Need`]s, the driver reads them from the store, and hands them in as [`Facts`]. A fact is an
//! input like any other, so a trace of (now, command, facts) replays exactly.
//!
//! The store answers from every sealed group, durable or not. What is in the open group the
//! engine knows by itself.

use std::collections::BTreeMap;

use ganger_protocol::{
    BatchId, Bytes, JobId, Timestamp,
    job::{JobError, JobState},
    workflow::NodeState,
};

use crate::records::{
    BatchRecord, Bits, Closed, CronRecord, GroupNumber, HeadRecord, JobRecord, Lane, LeaseRecord,
    LeftRun, LimitRecord, NodeRecord, OutcomeRecord, PackedJob, PartKey, Place, ProducerNumber,
    QueueNumber, QueueRecord, RunKey, SessionRecord, StoredJob, Timer, UniqueKey, UniqueRecord,
};

/// Something to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// A job: its record, else its entry in its run of birth, unless it is a scheduled one that the
    /// job has left. Answered by [`Fact::Job`].
    Job {
        /// Which.
        job: JobId,
        /// Whether a spilled content and the cursor are to be read too.
        content: bool,
    },
    /// The errors that are kept of a job, oldest first. Answered by [`Fact::Errors`].
    Errors(JobId),
    /// The result that is kept of a job. Answered by [`Fact::Bytes`].
    Result(JobId),
    /// The next entries of a lane. Answered by [`Fact::Heads`].
    Heads {
        /// The lane.
        lane: Lane,
        /// Entries behind this one: position, index; `None` from the start.
        after: Option<(u64, u8)>,
        /// At most so many entries (whole runs: the last one may pass it).
        entries_max: u32,
        /// No further run once the contents have so many bytes.
        bytes_max: u32,
    },
    /// The lanes of keys that have runs. Answered by [`Fact::Lanes`].
    Lanes {
        /// The queue.
        queue: QueueNumber,
        /// The priority.
        priority: u8,
        /// Lanes with higher numbers than this one.
        after: u64,
        /// At most so many.
        max: u32,
    },
    /// The next timers. Answered by [`Fact::Timers`].
    Timers {
        /// Behind this one.
        after: Option<Timer>,
        /// At most so many.
        max: u32,
    },
    /// The jobs of a scheduled run that wait for a time. Answered by [`Fact::RunDue`].
    RunDue {
        /// The run.
        run: RunKey,
        /// The time.
        at: Timestamp,
        /// Entries that are passed over, since they leave with the open group.
        passed: Bits,
        /// At most so many of them.
        jobs_max: u32,
        /// No further one once the contents have so many bytes.
        bytes_max: u32,
    },
    /// What is known of a producer. Answered by [`Fact::Producer`].
    Producer(ProducerNumber),
    /// One outcome slot. Answered by [`Fact::Outcome`].
    Outcome {
        /// The producer.
        producer: ProducerNumber,
        /// `seq mod 256`.
        slot: u8,
    },
    /// Who holds a unique key. Answered by [`Fact::Unique`].
    Unique(UniqueKey),
    /// A settled batch. Those that are not settled the engine has. Answered by [`Fact::Batch`].
    Batch(BatchId),
    /// The settled batches, in the order of their ids. Answered by [`Fact::Batches`].
    Batches {
        /// Behind this one.
        after: Option<BatchId>,
        /// At most so many.
        max: u32,
    },
    /// The jobs at the other end of a job's edges, in the order of their ids. Answered by
    /// [`Fact::Edges`].
    Edges {
        /// Which edges.
        side: Side,
        /// The job.
        job: JobId,
        /// Behind this one.
        after: Option<JobId>,
        /// At most so many.
        max: u32,
    },
    /// One node of a batch's graph. Answered by [`Fact::Node`].
    Node(BatchId, JobId),
    /// The nodes of a batch's graph, in the order of their ids. Answered by [`Fact::Nodes`].
    Nodes {
        /// The batch.
        batch: BatchId,
        /// Behind this one.
        after: Option<JobId>,
        /// At most so many.
        max: u32,
    },
    /// How many entries a run was written with. Answered by [`Fact::Run`].
    Run(RunKey),
    /// The oldest jobs of a queue that ended in a state. Answered by [`Fact::Closed`].
    OldestClosed {
        /// The queue.
        queue: QueueNumber,
        /// The state.
        state: JobState,
        /// At most so many.
        max: u32,
    },
    /// What is left of a purged queue. Answered by [`Fact::Remains`].
    Remains {
        /// Its old number.
        queue: QueueNumber,
        /// What kind, and behind which.
        stage: Stage,
        /// Rows of about so many entries.
        max: u32,
    },
}

/// Which edges of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// Those to the jobs that wait for it.
    Dependents,
    /// Those to the jobs that it waits for.
    Dependencies,
}

/// A node of a batch's graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeRow {
    /// What was pushed.
    pub record: NodeRecord,
    /// What became of it, once it is over.
    pub end: Option<NodeState>,
}

/// How far a sweep has come: what it reads, and behind which row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Stage {
    /// Runs of the queue.
    Runs(Option<RunKey>),
    /// Scheduled runs of the queue.
    Scheduled(Option<RunKey>),
    /// Records of jobs that were born in the queue.
    Jobs(Option<JobId>),
    /// Records of all jobs: some that were born elsewhere may have been moved into the queue.
    Guests(Option<JobId>),
    /// Rows of closed jobs of the queue.
    Closed(Option<Closed>),
}

/// A row that is left of a purged queue, with the jobs that it names, their contents read.
#[derive(Debug, Clone, PartialEq)]
pub enum Remain {
    /// A run. Of a scheduled one, only what has not left it.
    Run(RunKey, Vec<HeadRow>),
    /// The record of a job that was born there; it may live elsewhere.
    Job(Box<JobRecord>),
    /// The record of any job, when it is in the queue and was born elsewhere.
    Guest(JobId, Option<Box<JobRecord>>),
    /// A row of a closed job; no record when that is gone.
    Closed(Closed, Option<Box<JobRecord>>),
}

impl Remain {
    /// The stage behind this row.
    pub fn stage(&self) -> Stage {
        match self {
            Self::Run(run, _) if run.lane.is_scheduled() => Stage::Scheduled(Some(*run)),
            Self::Run(run, _) => Stage::Runs(Some(*run)),
            Self::Job(record) => Stage::Jobs(Some(record.id)),
            Self::Guest(job, _) => Stage::Guests(Some(*job)),
            Self::Closed(row, _) => Stage::Closed(Some(*row)),
        }
    }
}

/// What was read.
#[derive(Debug, Clone, PartialEq)]
pub enum Fact {
    /// The job, when the store has it.
    Job(Option<StoredJob>),
    /// The errors.
    Errors(Vec<JobError>),
    /// The bytes; `None`: there are none.
    Bytes(Option<Bytes>),
    /// Entries in order.
    Heads(Heads),
    /// Lanes in order, and whether these are all.
    Lanes {
        /// The lanes.
        lanes: Vec<u64>,
        /// Whether there is none behind them.
        at_end: bool,
    },
    /// Timers in order, and whether these are all.
    Timers {
        /// The timers.
        timers: Vec<Timer>,
        /// Whether there is none behind them.
        at_end: bool,
    },
    /// The jobs; `None`: there is no such run.
    RunDue(Option<RunDue>),
    /// The highest sequence and the time of the latest outcome; `None`: no records.
    Producer(Option<(u64, Timestamp)>),
    /// The slot.
    Outcome(Option<OutcomeRecord>),
    /// The lock; `None`: nobody holds the key.
    Unique(Option<UniqueRecord>),
    /// The batch; `None`: there is no such one that is settled.
    Batch(Option<Box<BatchRecord>>),
    /// The batches in order, and whether these are all.
    Batches {
        /// The batches.
        batches: Vec<BatchRecord>,
        /// Whether there is none behind them.
        at_end: bool,
    },
    /// The jobs, and whether these are all.
    Edges {
        /// The jobs.
        jobs: Vec<JobId>,
        /// Whether there is none behind them.
        at_end: bool,
    },
    /// The node, when it is kept.
    Node(Option<Box<NodeRow>>),
    /// The nodes in order, and whether these are all.
    Nodes {
        /// The nodes.
        nodes: Vec<NodeRow>,
        /// Whether there is none behind them.
        at_end: bool,
    },
    /// The entries; `None`: there is no such run.
    Run(Option<u8>),
    /// The rows, oldest first.
    Closed(Vec<Closed>),
    /// The rows in order, and whether these are all of the stage.
    Remains {
        /// The rows.
        rows: Vec<Remain>,
        /// Whether there is none behind them.
        at_end: bool,
    },
}

/// The jobs of a scheduled run that wait for the same time.
#[derive(Debug, Clone, PartialEq)]
pub struct RunDue {
    /// What left the run.
    pub left: LeftRun,
    /// Those that have not, with their contents, in order.
    pub jobs: Vec<(u8, PackedJob)>,
    /// Whether these are all.
    pub at_end: bool,
}

/// Entries of a lane.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Heads {
    /// In order.
    pub rows: Vec<HeadRow>,
    /// Whether there is none behind them.
    pub at_end: bool,
}

/// One entry of a lane with the job it stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadRow {
    /// Where.
    pub place: Place,
    /// Entries of that run.
    pub run_entries: u8,
    /// The group in which the run was written.
    pub group: GroupNumber,
    /// What stands there, its content read.
    pub entry: HeadEntry,
}

/// The job of a [`HeadRow`].
#[derive(Debug, Clone, PartialEq)]
pub enum HeadEntry {
    /// It lives in the run.
    Packed(PackedJob),
    /// It lives in the run, which is a scheduled one, until then.
    Scheduled(Timestamp, PackedJob),
    /// The run refers to it; `None` when its record is gone.
    Reference(JobId, Option<Box<JobRecord>>),
}

/// The facts of one command.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Facts(BTreeMap<Need, Fact>);

impl Facts {
    /// Adds the answer to a need.
    pub fn insert(&mut self, need: Need, fact: Fact) {
        self.0.insert(need, fact);
    }

    /// The answer to a need, when it was given.
    pub fn find(&self, need: &Need) -> Option<&Fact> {
        self.0.get(need)
    }

    /// Everything that was answered.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Need, &Fact)> {
        self.0.iter()
    }

    /// About how many bytes the contents of its jobs take.
    pub fn content_bytes(&self) -> usize {
        let contents = self.0.values().filter_map(|fact| match fact {
            Fact::Job(Some(StoredJob::Record(record))) => record.content.as_ref(),
            Fact::Job(Some(StoredJob::Packed { job, .. } | StoredJob::Scheduled { job, .. })) => {
                job.content.as_ref()
            }
            _ => None,
        });
        contents.map(|content| content.bound_bytes()).sum()
    }

    /// Whether a need is answered.
    pub fn contains(&self, need: &Need) -> bool {
        self.0.contains_key(need)
    }
}

/// What the store finds when it is opened: nothing here grows with the backlog.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Recovered {
    /// The last group of the store.
    pub group: GroupNumber,
    /// The shard's own record; absent in a new store.
    pub head: Option<HeadRecord>,
    /// Every queue.
    pub queues: Vec<QueueRecord>,
    /// Every cron entry.
    pub crons: Vec<CronRecord>,
    /// Every limit.
    pub limits: Vec<LimitRecord>,
    /// Every batch that is not settled.
    pub batches: Vec<BatchRecord>,
    /// Every session.
    pub sessions: Vec<SessionRecord>,
    /// Entries that left runs, by the group that said so; only rows of runs that still exist. A
    /// record without such a row is here too, so that it can be deleted.
    pub acks: Vec<(PartKey, Vec<LeftRun>)>,
    /// Grants and extensions, by the group that said so, each with what the store has of its job.
    pub leases: Vec<(PartKey, Vec<RecoveredLease>)>,
}

/// A grant that was found, with what the store has of its job.
#[derive(Debug, Clone, PartialEq)]
pub struct RecoveredLease {
    /// The grant or its extension.
    pub record: LeaseRecord,
    /// Its job, content not read.
    pub job: Option<StoredJob>,
    /// Entries of the run that it was granted from; 0 when that is gone.
    pub run_entries: u8,
}
