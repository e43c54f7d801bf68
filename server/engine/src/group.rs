//! The open group: what the commands since the last seal have changed. A later change of a thing
//! replaces an earlier one, runs grow while they are open, and answers and grants are packed into
//! parts when the group is sealed.
//!
//! It decides nothing; [`crate::Engine::seal`] turns it into a [`Group`].

pub(crate) mod seldom;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound::{Excluded, Included},
    sync::Arc,
};

use ganger_protocol::{
    BatchId, Bytes, JobId, NamespaceName, SessionId, Timestamp,
    batch::BatchEvent,
    job::{JobError, JobState},
    limit::LimitTarget,
    workflow::NodeState,
};

use self::seldom::Seldom;
use crate::{
    by_number::ByNumber,
    change::Change,
    facts::Side,
    records::{
        BatchRecord, Bits, BlobKind, Closed, Content, CronNumber, Entry, GroupNumber, JobRecord,
        Lane, LeaseRecord, LeftRun, NodeRecord, OutcomeRecord, PackedJob, PartKey, Place,
        ProducerNumber, QueueNumber, RUN_BYTES_MAX, RUN_ENTRIES_MAX, Run, RunKey, SessionRecord,
        Timer, UniqueKey, UniqueRecord, bytes_parts,
    },
};

/// What becomes of a blob.
#[derive(Debug)]
pub(crate) enum BlobChange {
    /// A content, and the parts of an earlier one in its place.
    Content(Arc<Content>, u16),
    /// A result or a cursor, and the parts of an earlier one in its place.
    Bytes(Bytes, u16),
    /// An error, and the parts of an earlier one in its slot.
    Error(Box<JobError>, u16),
    Delete(u16),
}

/// What becomes of a node.
#[derive(Debug)]
pub(crate) enum NodeChange {
    Put(Box<NodeRecord>),
    /// So many parts.
    Delete(u16),
}

/// The changes since the last seal.
#[derive(Debug, Default)]
pub(crate) struct OpenGroup {
    pub(crate) number: GroupNumber,
    /// Whether anybody waits for it: a reply may leave only once it is durable.
    pub(crate) is_awaited: bool,
    /// Operations so far, about.
    pub(crate) operations: usize,
    /// About how many bytes they take.
    pub(crate) bytes: usize,
    pub(crate) runs: BTreeMap<RunKey, Run>,
    /// The run at the tail of a lane that still takes entries, and the bytes it has.
    tails: BTreeMap<Lane, (u64, usize)>,
    /// Where the jobs of a lane that do not live in a run are born: position and next index.
    births: BTreeMap<Lane, (u64, u8)>,
    pub(crate) left: BTreeMap<RunKey, Bits>,
    /// Scheduled runs that a job has left, with all that left them, and whether some had before.
    left_scheduled: BTreeMap<RunKey, (LeftRun, bool)>,
    /// Sealed runs of which nothing is left. The store has them until this group is sealed.
    dropped: BTreeSet<RunKey>,
    pub(crate) grants: ByNumber<LeaseRecord>,
    pub(crate) jobs: BTreeMap<JobId, Option<Box<JobRecord>>>,
    pub(crate) outcomes: BTreeMap<(ProducerNumber, u8), Box<OutcomeRecord>>,
    pub(crate) queues: BTreeSet<QueueNumber>,
    pub(crate) seldom: Seldom,
    /// Deletions of what was written once.
    deleted: Vec<Change>,
    /// Whether the head record changed by itself.
    pub(crate) is_head_touched: bool,
}

impl OpenGroup {
    pub(crate) fn numbered(number: GroupNumber) -> Self {
        Self {
            number,
            ..Self::default()
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.operations == 0 && self.queues.is_empty() && !self.is_head_touched
    }

    /// Appends an entry at the tail of a lane. `next_position` is asked only for a new run.
    pub(crate) fn append(
        &mut self,
        lane: Lane,
        entry: Entry,
        next_position: impl FnOnce() -> u64,
    ) -> Place {
        let bytes = entry.bound_bytes();
        self.bytes += bytes;
        self.operations += 1;
        if let Some((position, used)) = self.tails.get_mut(&lane)
            && *used + bytes <= RUN_BYTES_MAX
        {
            let run = RunKey {
                lane,
                position: *position,
            };
            let entries = &mut self.runs.entry(run).or_default().entries;
            if let Ok(index) = u8::try_from(entries.len())
                && entries.len() < RUN_ENTRIES_MAX
            {
                *used += bytes;
                entries.push(entry);
                return Place { run, index };
            }
        }
        let position = next_position();
        self.tails.insert(lane, (position, bytes));
        let run = RunKey { lane, position };
        self.runs.insert(
            run,
            Run {
                entries: vec![entry],
            },
        );
        Place { run, index: 0 }
    }

    /// Puts a run of one reference at the head of a lane.
    pub(crate) fn prepend(&mut self, lane: Lane, job: JobId, position: u64) -> Place {
        let run = RunKey { lane, position };
        self.runs.insert(
            run,
            Run {
                entries: vec![Entry::Reference(job)],
            },
        );
        self.operations += 1;
        self.bytes += 64;
        Place { run, index: 0 }
    }

    /// A place of birth for a job that does not live in a run.
    pub(crate) fn birth(&mut self, lane: Lane, next_position: impl FnOnce() -> u64) -> Place {
        let (position, index) = match self.births.get_mut(&lane) {
            Some((position, index)) if usize::from(*index) + 1 < RUN_ENTRIES_MAX => {
                *index += 1;
                (*position, *index)
            }
            Some(_) | None => {
                let position = next_position();
                self.births.insert(lane, (position, 0));
                (position, 0)
            }
        };
        Place {
            run: RunKey { lane, position },
            index,
        }
    }

    /// The job that was born at this place in this group, when one was.
    pub(crate) fn born(&self, place: &Place) -> Option<&Entry> {
        let run = self.runs.get(&place.run)?;
        let entry = run.entries.get(usize::from(place.index))?;
        entry.job().map(|_| entry)
    }

    /// A job leaves the scheduled run in which it was born, and which others had left before this
    /// group; all that have left it now.
    pub(crate) fn leave_scheduled(&mut self, index: u8, before: LeftRun) -> Bits {
        self.operations += 1;
        self.bytes += 64;
        let had_left = before.left != Bits::default();
        let run = self.left_scheduled.entry(before.run);
        let (run, _) = run.or_insert((before, had_left));
        run.left.insert(index);
        run.left
    }

    /// What has left a scheduled run, when something did in this group; else nothing.
    pub(crate) fn left_of_scheduled(&self, run: &RunKey) -> Bits {
        let run = self.left_scheduled.get(run);
        run.map(|(run, _)| run.left).unwrap_or_default()
    }

    /// The entries of a scheduled run of this group that wait for a time, whether they have left it or
    /// not; none when the run is not of this group.
    pub(crate) fn born_for(
        &self,
        run: &RunKey,
        due: Timestamp,
    ) -> impl Iterator<Item = (u8, &PackedJob)> {
        let run = self.runs.get(run);
        run.into_iter().flat_map(move |run| run.due_at(due))
    }

    /// Erases a scheduled run, whatever is left in it.
    pub(crate) fn erase_scheduled(&mut self, run: RunKey) {
        self.left_scheduled.remove(&run);
        self.drop_run(run);
        self.delete(Change::DeleteLeft(run));
    }

    /// Drops the scheduled runs that are used up, and writes what left the others.
    fn seal_scheduled(&mut self, changes: &mut Vec<Change>) {
        for (key, (mut left, had_left)) in std::mem::take(&mut self.left_scheduled) {
            let open = self.runs.get(&key).map(|run| run.entries.len());
            if let Some(entries) = open {
                left.entries = u8::try_from(entries).unwrap_or(u8::MAX);
            }
            match (left.is_used_up(), open) {
                (false, _) => changes.push(Change::PutLeft(left)),
                // The store never hears of it.
                (true, Some(_)) => {
                    self.runs.remove(&key);
                }
                (true, None) => {
                    changes.push(Change::DeleteRun(key));
                    changes.extend(had_left.then_some(Change::DeleteLeft(key)));
                }
            }
        }
    }

    pub(crate) fn put_job(&mut self, record: Box<JobRecord>) {
        self.operations += 1;
        self.bytes += 256
            + record
                .content
                .as_ref()
                .map_or(0, |content| content.bound_bytes());
        self.jobs.insert(record.id, Some(record));
    }

    pub(crate) fn delete_job(&mut self, record: &JobRecord) {
        self.operations += 1;
        self.jobs.insert(record.id, None);
        self.delete_blob(record.id, BlobKind::Content, record.spilled_parts);
        self.delete_blob(record.id, BlobKind::Result, record.result_parts);
        self.delete_blob(record.id, BlobKind::Cursor, record.cursor_parts());
        let slots = (record.error_first..).map(|slot| slot % 10);
        for (slot, parts) in slots.zip(&record.error_parts) {
            self.delete_blob(record.id, BlobKind::Error(slot), *parts);
        }
    }

    pub(crate) fn set_timer(&mut self, timer: Timer, is_set: bool) {
        self.operations += 1;
        self.bytes += 48;
        self.seldom.timers.insert(timer, is_set);
    }

    /// Timers that this group sets behind another.
    pub(crate) fn timers_behind(&self, after: Option<Timer>) -> impl Iterator<Item = Timer> {
        let set = self
            .seldom
            .timers
            .iter()
            .filter(|(_, is_set)| **is_set)
            .map(|(timer, _)| *timer);
        set.filter(move |timer| after.is_none_or(|after| *timer > after))
    }

    /// Whether this group unsets a timer.
    pub(crate) fn unsets(&self, timer: &Timer) -> bool {
        self.seldom.timers.get(timer).is_some_and(|is_set| !is_set)
    }

    pub(crate) fn set_closed(&mut self, row: Closed, is_set: bool) {
        self.operations += 1;
        self.bytes += 48;
        self.seldom.closed.insert(row, is_set);
    }

    /// Rows of closed jobs of a queue that this group sets or unsets, the oldest first.
    pub(crate) fn closed_rows(
        &self,
        queue: QueueNumber,
        state: JobState,
    ) -> impl Iterator<Item = (Closed, bool)> {
        let row = |at, id| Closed {
            queue,
            state,
            at: Timestamp(at),
            job: JobId::from_bytes([id; JobId::BYTES]),
        };
        let rows = self.seldom.closed.range(row(0, 0)..=row(u64::MAX, u8::MAX));
        rows.map(|(row, is_set)| (*row, *is_set))
    }

    pub(crate) fn set_session(&mut self, id: SessionId, record: Option<Box<SessionRecord>>) {
        self.operations += 1;
        self.bytes += 256;
        self.seldom.sessions.insert(id, record);
    }

    pub(crate) fn put_outcome(&mut self, slot: u8, outcome: Box<OutcomeRecord>) {
        self.operations += 1;
        self.bytes += 32 + 32 * outcome.results.len();
        self.outcomes.insert((outcome.producer, slot), outcome);
    }

    pub(crate) fn forget_producer(&mut self, producer: ProducerNumber) {
        self.operations += 1;
        self.outcomes.retain(|(of, _), _| *of != producer);
        self.seldom.forgotten.push(producer);
    }

    /// Whether this group forgets what the store has of a producer.
    pub(crate) fn forgets(&self, producer: ProducerNumber) -> bool {
        self.seldom.forgotten.contains(&producer)
    }

    pub(crate) fn set_lock(&mut self, key: UniqueKey, lock: Option<UniqueRecord>) {
        self.operations += 1;
        self.bytes += 64;
        self.seldom.locks.insert(key, lock);
    }

    /// What this group makes of the lock of a key, when it changes it.
    #[expect(
        clippy::option_option,
        reason = "untouched, and known to be free, differ"
    )]
    pub(crate) fn lock(&self, key: &UniqueKey) -> Option<Option<UniqueRecord>> {
        self.seldom.locks.get(key).copied()
    }

    /// The locks that this group sets.
    pub(crate) fn locks(&self) -> impl Iterator<Item = &UniqueRecord> {
        self.seldom.locks.values().flatten()
    }

    /// The record of a batch is to be written among the live ones, or deleted there.
    pub(crate) fn touch_batch(&mut self, batch: &BatchRecord) {
        if self.seldom.batches.insert(batch.id) {
            let callbacks = BatchEvent::ALL.into_iter();
            let callbacks = callbacks.filter_map(|event| batch.callback(event));
            self.operations += 1;
            self.bytes += 512 + batch.description.len();
            self.bytes += callbacks.map(|it| it.content.bound_bytes()).sum::<usize>();
        }
    }

    pub(crate) fn set_settled_batch(&mut self, id: BatchId, record: Option<Box<BatchRecord>>) {
        self.operations += 1;
        self.bytes += 512;
        self.seldom.settled_batches.insert(id, record);
    }

    /// What this group makes of a settled batch, when it changes it.
    #[expect(
        clippy::option_option,
        reason = "untouched, and known to be gone, differ"
    )]
    pub(crate) fn settled_batch(&self, id: BatchId) -> Option<Option<&BatchRecord>> {
        self.seldom.settled_batches.get(&id).map(Option::as_deref)
    }

    /// What this group makes of settled batches, in the order of their ids.
    pub(crate) fn settled_batches(&self) -> impl Iterator<Item = (BatchId, Option<&BatchRecord>)> {
        let changed = self.seldom.settled_batches.iter();
        changed.map(|(id, record)| (*id, record.as_deref()))
    }

    /// `waiting` waits for `awaited`, or does not any more.
    pub(crate) fn set_edge(&mut self, awaited: JobId, waiting: JobId, is_set: bool) {
        self.operations += 2;
        self.bytes += 128;
        self.seldom
            .edges
            .insert((Side::Dependents, awaited, waiting), is_set);
        self.seldom
            .edges
            .insert((Side::Dependencies, waiting, awaited), is_set);
    }

    /// What this group makes of the edges of a job behind another one, in order.
    pub(crate) fn edges(
        &self,
        side: Side,
        job: JobId,
        after: Option<JobId>,
    ) -> impl Iterator<Item = (JobId, bool)> {
        let from = match after {
            Some(after) => Excluded((side, job, after)),
            None => Included((side, job, JobId::from_bytes([0; JobId::BYTES]))),
        };
        let to = Included((side, job, JobId::from_bytes([u8::MAX; JobId::BYTES])));
        let edges = self.seldom.edges.range((from, to));
        edges.map(|((_, _, other), is_set)| (*other, *is_set))
    }

    pub(crate) fn put_node(&mut self, node: Box<NodeRecord>) {
        self.operations += usize::from(node.parts());
        self.bytes += 512 + JobId::BYTES * node.after.len();
        self.seldom
            .nodes
            .insert((node.batch, node.job), NodeChange::Put(node));
    }

    pub(crate) fn delete_node(&mut self, node: &NodeRecord) {
        let key = (node.batch, node.job);
        self.operations += 1 + usize::from(node.parts());
        self.seldom
            .nodes
            .insert(key, NodeChange::Delete(node.parts()));
        self.seldom.node_ends.remove(&key);
    }

    pub(crate) fn set_node_end(&mut self, batch: BatchId, job: JobId, end: Option<NodeState>) {
        self.operations += 1;
        self.bytes += 64;
        self.seldom.node_ends.insert((batch, job), end);
    }

    /// What this group makes of a node, when it changes it.
    pub(crate) fn node(&self, batch: BatchId, job: JobId) -> Option<&NodeChange> {
        self.seldom.nodes.get(&(batch, job))
    }

    /// What this group makes of the end of a node, when it changes that.
    #[expect(
        clippy::option_option,
        reason = "untouched, and known to be none, differ"
    )]
    pub(crate) fn node_end(&self, batch: BatchId, job: JobId) -> Option<Option<NodeState>> {
        self.seldom.node_ends.get(&(batch, job)).copied()
    }

    /// What this group makes of the nodes of a batch behind another one, in order.
    pub(crate) fn nodes(
        &self,
        batch: BatchId,
        after: Option<JobId>,
    ) -> impl Iterator<Item = (JobId, &NodeChange)> {
        let from = match after {
            Some(after) => Excluded((batch, after)),
            None => Included((batch, JobId::from_bytes([0; JobId::BYTES]))),
        };
        let to = Included((batch, JobId::from_bytes([u8::MAX; JobId::BYTES])));
        let nodes = self.seldom.nodes.range((from, to));
        nodes.map(|((_, job), change)| (*job, change))
    }

    /// The record of a limit is to be written, or deleted.
    pub(crate) fn touch_limit(&mut self, namespace: NamespaceName, target: LimitTarget) {
        if self.seldom.limits.insert((namespace, target)) {
            self.operations += 1;
            self.bytes += 512;
        }
    }

    /// The record of a cron entry of about so many bytes is to be written, or deleted.
    pub(crate) fn touch_cron(&mut self, cron: CronNumber, bytes: usize) {
        if self.seldom.crons.insert(cron) {
            self.operations += 1;
            self.bytes += 512 + bytes;
        }
    }

    pub(crate) fn put_content(&mut self, job: JobId, content: Arc<Content>) {
        self.operations += usize::from(content.spilled_parts());
        self.bytes += content.bound_bytes();
        let kind = BlobKind::Content;
        let earlier = self.parts_before(job, kind);
        self.seldom
            .blobs
            .insert((job, kind), BlobChange::Content(content, earlier));
    }

    /// Writes a result or a cursor over one that has so many parts in the store, 0 when there is none.
    pub(crate) fn put_bytes(&mut self, job: JobId, kind: BlobKind, bytes: Bytes, earlier: u16) {
        self.operations += usize::from(bytes_parts(&bytes) + earlier);
        self.bytes += 64 + bytes.len();
        let earlier = earlier.max(self.parts_before(job, kind));
        self.seldom
            .blobs
            .insert((job, kind), BlobChange::Bytes(bytes, earlier));
    }

    /// The result that this group wrote, when it did.
    pub(crate) fn result(&self, job: JobId) -> Option<&Bytes> {
        match self.seldom.blobs.get(&(job, BlobKind::Result))? {
            BlobChange::Bytes(bytes, _) => Some(bytes),
            BlobChange::Content(..) | BlobChange::Error(..) | BlobChange::Delete(_) => None,
        }
    }

    /// Writes an error into a slot that had one of so many parts before, 0 when it is free.
    pub(crate) fn put_error(&mut self, job: JobId, slot: u8, error: Box<JobError>, earlier: u16) {
        self.operations += 1 + usize::from(earlier);
        self.bytes += 64 + error.message.len() + error.backtrace.len();
        let kind = BlobKind::Error(slot);
        let earlier = earlier.max(self.parts_before(job, kind));
        self.seldom
            .blobs
            .insert((job, kind), BlobChange::Error(error, earlier));
    }

    pub(crate) fn delete_blob(&mut self, job: JobId, kind: BlobKind, parts: u16) {
        if parts > 0 {
            self.operations += usize::from(parts);
            let parts = parts.max(self.parts_before(job, kind));
            self.seldom
                .blobs
                .insert((job, kind), BlobChange::Delete(parts));
        }
    }

    /// Parts that the store may have of a blob which this group changes already.
    fn parts_before(&self, job: JobId, kind: BlobKind) -> u16 {
        match self.seldom.blobs.get(&(job, kind)) {
            Some(
                BlobChange::Content(_, parts)
                | BlobChange::Bytes(_, parts)
                | BlobChange::Error(_, parts)
                | BlobChange::Delete(parts),
            ) => *parts,
            None => 0,
        }
    }

    pub(crate) fn drop_run(&mut self, run: RunKey) {
        self.operations += 1;
        self.left.remove(&run);
        self.dropped.insert(run);
    }

    /// Whether a sealed run is gone with this group.
    pub(crate) fn drops(&self, run: &RunKey) -> bool {
        self.dropped.contains(run)
    }

    pub(crate) fn delete(&mut self, key: Change) {
        self.operations += 1;
        self.deleted.push(key);
    }

    /// The error that this group wrote into a slot, when it did.
    pub(crate) fn error(&self, job: JobId, slot: u8) -> Option<&JobError> {
        match self.seldom.blobs.get(&(job, BlobKind::Error(slot)))? {
            BlobChange::Error(error, _) => Some(error),
            BlobChange::Content(..) | BlobChange::Bytes(..) | BlobChange::Delete(_) => None,
        }
    }

    /// Everything but acks, leases, queues, the head and what [`Seldom`] leaves, which need the engine.
    pub(crate) fn add_changes(
        mut self,
        acks: &[(PartKey, Vec<LeftRun>)],
        changes: &mut Vec<Change>,
    ) {
        self.seal_scheduled(changes);
        // First, since a producer that is forgotten may have pushed again.
        self.seldom.add_changes(changes);
        changes.extend(
            self.runs
                .into_iter()
                .map(|(key, run)| Change::PutRun(key, run)),
        );
        changes.extend(
            acks.iter()
                .map(|(key, left)| Change::PutAcks(*key, left.clone())),
        );
        changes.extend(self.jobs.into_iter().map(|(id, record)| match record {
            Some(record) => Change::PutJob(record),
            None => Change::DeleteJob(id),
        }));
        changes.extend(self.outcomes.into_values().map(Change::PutOutcome));
        changes.extend(self.dropped.into_iter().map(Change::DeleteRun));
        changes.extend(self.deleted);
    }
}

/// The timer that makes a job ready that has a record.
pub(crate) fn due(job: JobId, at: Timestamp) -> Timer {
    Timer {
        at,
        what: crate::records::TimerKind::Due,
        id: *job.as_bytes(),
    }
}
