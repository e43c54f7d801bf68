//! What a group changes, in the engine's own words. The driver hands a sealed group to the store,
//! which turns it into puts and deletes. A later change of the same thing in one group replaces
//! the earlier one, so a group holds each key once.

use std::sync::Arc;

use ganger_protocol::{
    BatchId, Bytes, JobId, NamespaceName, SessionId, job::JobError, limit::LimitTarget,
    workflow::NodeState,
};

use crate::records::{
    BatchRecord, BlobKind, Closed, Content, CronNumber, CronRecord, GroupNumber, HeadRecord,
    JobRecord, LeaseRecord, LeftRun, LimitRecord, NodeRecord, OutcomeRecord, PartKey,
    ProducerNumber, QueueNumber, QueueRecord, Run, RunKey, SessionRecord, Timer, UniqueKey,
    UniqueRecord,
};

/// Everything that is written together and becomes durable together.
#[derive(Debug, Clone, PartialEq)]
pub struct Group {
    /// Its number.
    pub number: GroupNumber,
    /// What it changes.
    pub changes: Vec<Change>,
}

/// One change.
#[derive(Debug, Clone, PartialEq)]
#[expect(
    missing_docs,
    reason = "each names the record or key that it puts or deletes"
)]
pub enum Change {
    PutRun(RunKey, Run),
    DeleteRun(RunKey),
    /// All entries that left a scheduled run.
    PutLeft(LeftRun),
    DeleteLeft(RunKey),
    PutAcks(PartKey, Vec<LeftRun>),
    DeleteAcks(PartKey),
    PutLeases(PartKey, Vec<LeaseRecord>),
    DeleteLeases(PartKey),
    PutJob(Box<JobRecord>),
    DeleteJob(JobId),
    PutTimer(Timer),
    DeleteTimer(Timer),
    PutClosed(Closed),
    DeleteClosed(Closed),
    PutSession(Box<SessionRecord>),
    DeleteSession(SessionId),
    PutOutcome(Box<OutcomeRecord>),
    /// All slots of a producer.
    DeleteOutcomes(ProducerNumber),
    PutUnique(UniqueKey, UniqueRecord),
    DeleteUnique(UniqueKey),
    PutQueue(Box<QueueRecord>),
    DeleteQueue(QueueNumber),
    PutCron(Box<CronRecord>),
    DeleteCron(CronNumber),
    /// Among the live ones, or the settled ones, as it says.
    PutBatch(Box<BatchRecord>),
    /// A record among the live ones, whether it is there or not.
    DeleteLiveBatch(BatchId),
    /// A record among the settled ones, whether it is there or not.
    DeleteSettledBatch(BatchId),
    /// The second job waits for the first.
    PutEdge(JobId, JobId),
    DeleteEdge(JobId, JobId),
    PutNode(Box<NodeRecord>),
    /// So many parts of a node, and its end.
    DeleteNode(BatchId, JobId, u16),
    PutNodeEnd(BatchId, JobId, NodeState),
    DeleteNodeEnd(BatchId, JobId),
    PutLimit(Box<LimitRecord>),
    DeleteLimit(NamespaceName, LimitTarget),
    PutContent(JobId, Arc<Content>),
    PutError(JobId, u8, Box<JobError>),
    /// A result or a cursor.
    PutBytes(JobId, BlobKind, Bytes),
    /// So many parts of a blob, whether they exist or not.
    DeleteBlob(JobId, BlobKind, u16),
    PutHead(HeadRecord),
}
