//! What most groups leave alone: the changes of all that is not a job on its way through a run. A group
//! has room for them from the first of them on.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::{Deref, DerefMut},
};

use ganger_protocol::{
    BatchId, JobId, NamespaceName, SessionId, limit::LimitTarget, workflow::NodeState,
};

use super::{BlobChange, NodeChange};
use crate::{
    change::Change,
    facts::Side,
    records::{
        BatchRecord, BlobKind, Closed, CronNumber, ProducerNumber, SessionRecord, Timer, UniqueKey,
        UniqueRecord,
    },
};

/// Changes that few groups have.
#[derive(Debug, Default)]
pub(crate) struct Seldom(Option<Box<Maps>>);

#[derive(Debug)]
pub(crate) struct Maps {
    pub(crate) timers: BTreeMap<Timer, bool>,
    pub(crate) closed: BTreeMap<Closed, bool>,
    pub(crate) sessions: BTreeMap<SessionId, Option<Box<SessionRecord>>>,
    pub(crate) forgotten: Vec<ProducerNumber>,
    pub(crate) locks: BTreeMap<UniqueKey, Option<UniqueRecord>>,
    /// Entries that changed, or are gone.
    pub(crate) crons: BTreeSet<CronNumber>,
    /// Batches that are not settled and changed, or are no longer such.
    pub(crate) batches: BTreeSet<BatchId>,
    pub(crate) settled_batches: BTreeMap<BatchId, Option<Box<BatchRecord>>>,
    /// Each edge twice: by the job that is waited for, and by the one that waits.
    pub(crate) edges: BTreeMap<(Side, JobId, JobId), bool>,
    pub(crate) nodes: BTreeMap<(BatchId, JobId), NodeChange>,
    pub(crate) node_ends: BTreeMap<(BatchId, JobId), Option<NodeState>>,
    /// Limits that changed, or are gone.
    pub(crate) limits: BTreeSet<(NamespaceName, LimitTarget)>,
    pub(crate) blobs: BTreeMap<(JobId, BlobKind), BlobChange>,
}

static NONE: Maps = Maps::new();

impl Maps {
    const fn new() -> Self {
        Self {
            timers: BTreeMap::new(),
            closed: BTreeMap::new(),
            sessions: BTreeMap::new(),
            forgotten: Vec::new(),
            locks: BTreeMap::new(),
            crons: BTreeSet::new(),
            batches: BTreeSet::new(),
            settled_batches: BTreeMap::new(),
            edges: BTreeMap::new(),
            nodes: BTreeMap::new(),
            node_ends: BTreeMap::new(),
            limits: BTreeSet::new(),
            blobs: BTreeMap::new(),
        }
    }
}

impl Deref for Seldom {
    type Target = Maps;

    fn deref(&self) -> &Maps {
        self.0.as_deref().unwrap_or(&NONE)
    }
}

impl DerefMut for Seldom {
    fn deref_mut(&mut self) -> &mut Maps {
        self.0.get_or_insert_with(|| Box::new(Maps::new()))
    }
}

impl Seldom {
    /// Everything but cron entries, live batches and limits, whose records are the engine's.
    pub(super) fn add_changes(self, changes: &mut Vec<Change>) {
        let Some(maps) = self.0 else {
            return;
        };
        changes.extend(maps.timers.into_iter().map(|(timer, is_set)| match is_set {
            true => Change::PutTimer(timer),
            false => Change::DeleteTimer(timer),
        }));
        changes.extend(maps.closed.into_iter().map(|(row, is_set)| match is_set {
            true => Change::PutClosed(row),
            false => Change::DeleteClosed(row),
        }));
        changes.extend(maps.sessions.into_iter().map(|(id, record)| match record {
            Some(record) => Change::PutSession(record),
            None => Change::DeleteSession(id),
        }));
        changes.extend(maps.locks.into_iter().map(|(key, lock)| match lock {
            Some(lock) => Change::PutUnique(key, lock),
            None => Change::DeleteUnique(key),
        }));
        let settled = maps.settled_batches.into_iter();
        changes.extend(settled.map(|(id, record)| match record {
            Some(record) => Change::PutBatch(record),
            None => Change::DeleteSettledBatch(id),
        }));
        let edges = maps.edges.into_iter();
        let edges = edges.filter(|((side, ..), _)| *side == Side::Dependents);
        changes.extend(edges.map(|((_, awaited, waiting), is_set)| match is_set {
            true => Change::PutEdge(awaited, waiting),
            false => Change::DeleteEdge(awaited, waiting),
        }));
        let nodes = maps.nodes.into_iter();
        changes.extend(nodes.map(|((batch, job), node)| match node {
            NodeChange::Put(node) => Change::PutNode(node),
            NodeChange::Delete(parts) => Change::DeleteNode(batch, job, parts),
        }));
        let ends = maps.node_ends.into_iter();
        changes.extend(ends.map(|((batch, job), end)| match end {
            Some(end) => Change::PutNodeEnd(batch, job, end),
            None => Change::DeleteNodeEnd(batch, job),
        }));
        changes.extend(maps.forgotten.into_iter().map(Change::DeleteOutcomes));
        for ((job, kind), blob) in maps.blobs {
            match (kind, blob) {
                (BlobKind::Error(slot), BlobChange::Error(error, earlier)) => {
                    // The parts of a longer error in this slot would stay for ever.
                    if earlier > 0 {
                        changes.push(Change::DeleteBlob(job, kind, earlier));
                    }
                    changes.push(Change::PutError(job, slot, error));
                }
                (_, BlobChange::Content(content, earlier)) => {
                    if earlier > 0 {
                        changes.push(Change::DeleteBlob(job, kind, earlier));
                    }
                    changes.push(Change::PutContent(job, content));
                }
                (_, BlobChange::Bytes(bytes, earlier)) => {
                    if earlier > 0 {
                        changes.push(Change::DeleteBlob(job, kind, earlier));
                    }
                    changes.push(Change::PutBytes(job, kind, bytes));
                }
                (_, BlobChange::Delete(parts)) => {
                    changes.push(Change::DeleteBlob(job, kind, parts));
                }
                (
                    BlobKind::Content | BlobKind::Result | BlobKind::Cursor,
                    BlobChange::Error(..),
                ) => {}
            }
        }
    }
}
