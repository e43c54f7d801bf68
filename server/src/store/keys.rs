//! The key map: every kind of key, its first byte, and how its parts lie in it.
//!
//! Keys are big-endian, so that their order is the order of what they name. A prefix is one byte
//! and never changes its meaning. What stands behind a key is in `records.rs`; nothing here reads
//! or writes. The prefixes of later features are fixed here as well.

use std::fmt;

use ganger_engine::{
    facts::Side,
    records::{
        BlobKind, Closed, CronNumber, Lane, PartKey, ProducerNumber, QueueNumber, RunKey, Timer,
        TimerKind, UniqueKey,
    },
};
use ganger_protocol::{BatchId, JobId, SessionId, Timestamp, job::JobState};

use super::records::{state_from_number, state_number};

/// The first byte of a key. The numbers are stored and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Prefix {
    /// What the shard itself remembers: see [`Meta`].
    Meta = 0x01,
    /// queue u32 · 255 − priority u8 · lane u64 · position u64.
    Run = 0x10,
    /// group u64 · part u16.
    Acks = 0x11,
    /// job id.
    Job = 0x12,
    /// at u64 · what u8 · id of 24 bytes.
    Timer = 0x13,
    /// queue u32 · state u8 · at u64 · job id.
    Closed = 0x14,
    /// group u64 · part u16.
    Leases = 0x15,
    /// session u64 · part u16.
    Session = 0x16,
    /// producer u64 · part u16 · slot u8: the first parts of all slots lie together.
    Outcome = 0x17,
    /// queue u32.
    Queue = 0x18,
    /// job id · what u8 · part u16.
    Blob = 0x19,
    /// digest of namespace and unique key.
    Unique = 0x20,
    /// whether it is settled u8 · batch u64: a start reads only the others.
    Batch = 0x21,
    /// batch u64 · job id · what u8 · part u16: a member that was named or waits, and its end.
    Node = 0x22,
    /// Job id that is waited for · job id that waits.
    Edge = 0x23,
    /// cron u64.
    Cron = 0x24,
    /// digest of namespace and what the limit is for.
    Limit = 0x25,
    /// For later: queue u32 · lane u64; its name and weight.
    Lane = 0x26,
    /// Job id that waits · job id that is waited for: the same edges again.
    Wait = 0x28,
    /// As of [`Run`](Self::Run): a run of jobs that were pushed for later.
    ScheduledRun = 0x29,
    /// As of [`ScheduledRun`](Self::ScheduledRun): what left it.
    Left = 0x2a,
}

impl Prefix {
    /// Every prefix, in the order of the keys.
    pub const ALL: [Self; 21] = [
        Self::Meta,
        Self::Run,
        Self::Acks,
        Self::Job,
        Self::Timer,
        Self::Closed,
        Self::Leases,
        Self::Session,
        Self::Outcome,
        Self::Queue,
        Self::Blob,
        Self::Unique,
        Self::Batch,
        Self::Node,
        Self::Edge,
        Self::Cron,
        Self::Limit,
        Self::Lane,
        Self::Wait,
        Self::ScheduledRun,
        Self::Left,
    ];

    /// The prefix with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|prefix| *prefix as u8 == number)
    }

    /// Whether the table keeps a digest of the rows of this kind: no other record would miss one
    /// that is gone.
    pub const fn is_digested(self) -> bool {
        match self {
            Self::Session
            | Self::Outcome
            | Self::Queue
            | Self::Batch
            | Self::Cron
            | Self::Limit
            | Self::Lane => true,
            Self::Meta
            | Self::Run
            | Self::Acks
            | Self::Job
            | Self::Timer
            | Self::Closed
            | Self::Leases
            | Self::Blob
            | Self::Unique
            | Self::Node
            | Self::Edge
            | Self::Wait
            | Self::ScheduledRun
            | Self::Left => false,
        }
    }

    /// Whether a key of this kind is put once in its life: then a put that is deleted before it
    /// reached the table leaves nothing to do there.
    pub const fn is_written_once(self) -> bool {
        matches!(
            self,
            Self::Run | Self::ScheduledRun | Self::Acks | Self::Leases
        )
    }
}

/// The second byte of a key of [`Prefix::Meta`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Meta {
    /// The shard's own record, part of every group.
    Head = 1,
    /// Format version and secret, written when the store is made.
    Made = 2,
    /// The group up to which the table holds everything; written by checkpoints only.
    Applied = 3,
    /// The digest of the rows that nothing else vouches for; written by checkpoints only.
    Digest = 4,
}

/// First bytes of an HMAC under the stored secret, where a name is too long for a key.
pub type Digest = [u8; 16];

/// A key. Held in place, since a group has thousands; its order is that of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Padded with zeroes, so that comparing them and then the length is comparing the slices.
    bytes: [u8; Self::BYTES_MAX],
    length: u8,
}

impl Key {
    /// The longest key, an edge, and one byte for the bound behind it.
    const BYTES_MAX: usize = 1 + 2 * JobId::BYTES + 1;

    const fn start(prefix: u8) -> Self {
        let mut bytes = [0; Self::BYTES_MAX];
        bytes[0] = prefix;
        Self { bytes, length: 1 }
    }

    fn with(mut self, part: &[u8]) -> Self {
        let start = usize::from(self.length);
        if let Some(slot) = self.bytes.get_mut(start..start + part.len()) {
            slot.copy_from_slice(part);
            self.length = u8::try_from(start + part.len()).unwrap_or(u8::MAX);
        }
        self
    }

    /// A key from its bytes; `None` when no key is that long, or it is empty.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let (first, rest) = bytes.split_first()?;
        (rest.len() < Self::BYTES_MAX).then(|| Self::start(*first).with(rest))
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.length))
            .unwrap_or_default()
    }

    /// A key that is before every other.
    pub fn lowest() -> Self {
        Self::start(0)
    }

    /// A key that is behind every other.
    pub fn end() -> Self {
        Self::start(u8::MAX)
    }

    /// What kind of key it is; `None` when its first byte is none of ours.
    pub fn prefix(&self) -> Option<Prefix> {
        Prefix::from_number(self.bytes[0])
    }

    /// The first key behind this one.
    #[must_use]
    pub fn after(&self) -> Self {
        self.with(&[0])
    }

    /// The first key behind all that begin like this one.
    #[must_use]
    pub fn after_prefix(&self) -> Self {
        let mut end = *self;
        while let Some(last) = usize::from(end.length).checked_sub(1) {
            let Some(byte) = end.bytes.get_mut(last) else {
                break;
            };
            if *byte < u8::MAX {
                *byte += 1;
                break;
            }
            *byte = 0;
            end.length -= 1;
        }
        end
    }

    /// The begin of all keys of a kind.
    pub fn of(prefix: Prefix) -> Self {
        Self::start(prefix as u8)
    }

    /// A key of the shard itself.
    pub fn meta(meta: Meta) -> Self {
        Self::of(Prefix::Meta).with(&[meta as u8])
    }

    /// The begin of all runs of a lane.
    pub fn lane_runs(lane: &Lane) -> Self {
        let prefix = match lane.is_scheduled() {
            true => Prefix::ScheduledRun,
            false => Prefix::Run,
        };
        Self::of_lane(prefix, lane)
    }

    fn of_lane(prefix: Prefix, lane: &Lane) -> Self {
        Self::of(prefix)
            .with(&lane.queue.0.to_be_bytes())
            .with(&[u8::MAX - lane.priority])
            .with(&lane.lane.to_be_bytes())
    }

    /// A run.
    pub fn run(run: &RunKey) -> Self {
        Self::lane_runs(&run.lane).with(&run.position.to_be_bytes())
    }

    /// What left a scheduled run.
    pub fn left(run: &RunKey) -> Self {
        Self::of_lane(Prefix::Left, &run.lane).with(&run.position.to_be_bytes())
    }

    fn part(prefix: Prefix, part: &PartKey) -> Self {
        Self::of(prefix)
            .with(&part.group.0.to_be_bytes())
            .with(&part.part.to_be_bytes())
    }

    /// A part of the acks of a group.
    pub fn acks(part: &PartKey) -> Self {
        Self::part(Prefix::Acks, part)
    }

    /// A part of the leases of a group.
    pub fn leases(part: &PartKey) -> Self {
        Self::part(Prefix::Leases, part)
    }

    /// The record of a job.
    pub fn job(job: &JobId) -> Self {
        Self::of(Prefix::Job).with(job.as_bytes())
    }

    /// A timer.
    pub fn timer(timer: &Timer) -> Self {
        Self::of(Prefix::Timer)
            .with(&timer.at.0.to_be_bytes())
            .with(&[timer.what as u8])
            .with(&timer.id)
    }

    /// The begin of the closed jobs of a queue in a state.
    pub fn closed_jobs(queue: QueueNumber, state: JobState) -> Self {
        Self::of(Prefix::Closed)
            .with(&queue.0.to_be_bytes())
            .with(&[state_number(state)])
    }

    /// A row of the index of closed jobs.
    pub fn closed(closed: &Closed) -> Self {
        Self::closed_jobs(closed.queue, closed.state)
            .with(&closed.at.0.to_be_bytes())
            .with(closed.job.as_bytes())
    }

    /// A part of a session.
    pub fn session(session: SessionId, part: u16) -> Self {
        Self::of(Prefix::Session)
            .with(&session.0.to_be_bytes())
            .with(&part.to_be_bytes())
    }

    /// The begin of all outcomes of a producer.
    pub fn outcomes(producer: ProducerNumber) -> Self {
        Self::of(Prefix::Outcome).with(&producer.0.to_be_bytes())
    }

    /// A part of an outcome.
    pub fn outcome(producer: ProducerNumber, slot: u8, part: u16) -> Self {
        Self::outcomes(producer)
            .with(&part.to_be_bytes())
            .with(&[slot])
    }

    /// The begin of the first parts of all outcomes of a producer.
    pub fn outcome_firsts(producer: ProducerNumber) -> Self {
        Self::outcomes(producer).with(&0_u16.to_be_bytes())
    }

    /// The beginning of all runs of a queue.
    pub fn queue_runs(queue: QueueNumber) -> Self {
        Self::of(Prefix::Run).with(&queue.0.to_be_bytes())
    }

    /// The beginning of all scheduled runs of a queue.
    pub fn queue_scheduled_runs(queue: QueueNumber) -> Self {
        Self::of(Prefix::ScheduledRun).with(&queue.0.to_be_bytes())
    }

    /// The beginning of all runs of a queue of one priority.
    pub fn priority_runs(queue: QueueNumber, priority: u8) -> Self {
        Self::queue_runs(queue).with(&[u8::MAX - priority])
    }

    /// The beginning of the records of all jobs that were born in a queue.
    pub fn queue_jobs(shard: u16, queue: QueueNumber) -> Self {
        Self::of(Prefix::Job)
            .with(&shard.to_be_bytes())
            .with(&queue.0.to_be_bytes())
    }

    /// The beginning of the rows of all closed jobs of a queue.
    pub fn queue_closed(queue: QueueNumber) -> Self {
        Self::of(Prefix::Closed).with(&queue.0.to_be_bytes())
    }

    /// A queue.
    pub fn queue(queue: QueueNumber) -> Self {
        Self::of(Prefix::Queue).with(&queue.0.to_be_bytes())
    }

    /// A part of a blob.
    pub fn blob(job: &JobId, kind: BlobKind, part: u16) -> Self {
        Self::of(Prefix::Blob)
            .with(job.as_bytes())
            .with(&[blob_number(kind)])
            .with(&part.to_be_bytes())
    }

    /// A unique key.
    pub fn unique(key: &UniqueKey) -> Self {
        Self::of(Prefix::Unique).with(&key.0)
    }

    /// The begin of all batches that are settled, or of all others.
    pub fn batches(is_settled: bool) -> Self {
        Self::of(Prefix::Batch).with(&[u8::from(is_settled)])
    }

    /// A batch, which is settled or not.
    pub fn batch(is_settled: bool, batch: BatchId) -> Self {
        Self::batches(is_settled).with(&batch.0.to_be_bytes())
    }

    /// The begin of all nodes of a batch.
    pub fn nodes(batch: BatchId) -> Self {
        Self::of(Prefix::Node).with(&batch.0.to_be_bytes())
    }

    /// The begin of what is kept of a node.
    pub fn whole_node(batch: BatchId, job: &JobId) -> Self {
        Self::nodes(batch).with(job.as_bytes())
    }

    /// A part of a node.
    pub fn node(batch: BatchId, job: &JobId, part: u16) -> Self {
        Self::whole_node(batch, job)
            .with(&[0])
            .with(&part.to_be_bytes())
    }

    /// The end of a node.
    pub fn node_end(batch: BatchId, job: &JobId) -> Self {
        Self::whole_node(batch, job).with(&[1, 0, 0])
    }

    /// The begin of the edges of a job, by either end.
    pub fn edges(side: Side, job: &JobId) -> Self {
        let prefix = match side {
            Side::Dependents => Prefix::Edge,
            Side::Dependencies => Prefix::Wait,
        };
        Self::of(prefix).with(job.as_bytes())
    }

    /// An edge as it is found from a job at one end of it, to the job at the other.
    pub fn edge(side: Side, job: &JobId, other: &JobId) -> Self {
        Self::edges(side, job).with(other.as_bytes())
    }

    /// A cron entry.
    pub fn cron(cron: CronNumber) -> Self {
        Self::of(Prefix::Cron).with(&cron.0.to_be_bytes())
    }

    /// A limit.
    pub fn limit(digest: &Digest) -> Self {
        Self::of(Prefix::Limit).with(digest)
    }

    /// For later: a lane.
    pub fn lane(queue: QueueNumber, lane: u64) -> Self {
        Self::of(Prefix::Lane)
            .with(&queue.0.to_be_bytes())
            .with(&lane.to_be_bytes())
    }

    /// What a key of a run names, scheduled or not.
    pub fn to_run(&self) -> Option<RunKey> {
        let run = self
            .run_under(Prefix::Run)
            .filter(|run| !run.lane.is_scheduled());
        run.or_else(|| self.run_under(Prefix::ScheduledRun))
    }

    /// The run that a key of what left it names.
    pub fn to_left(&self) -> Option<RunKey> {
        self.run_under(Prefix::Left)
    }

    fn run_under(&self, prefix: Prefix) -> Option<RunKey> {
        let mut rest = self.rest(prefix)?;
        let run = RunKey {
            lane: Lane {
                queue: QueueNumber(take_u32(&mut rest)?),
                priority: u8::MAX - take_u8(&mut rest)?,
                lane: take_u64(&mut rest)?,
            },
            position: take_u64(&mut rest)?,
        };
        rest.is_empty().then_some(run)
    }

    /// What a key of a lock names.
    pub fn to_unique(&self) -> Option<UniqueKey> {
        let mut rest = self.rest(Prefix::Unique)?;
        let key = UniqueKey(take(&mut rest)?);
        rest.is_empty().then_some(key)
    }

    /// What a key of acks or leases names.
    pub fn to_part(&self, prefix: Prefix) -> Option<PartKey> {
        let mut rest = self.rest(prefix)?;
        let part = PartKey {
            group: ganger_engine::records::GroupNumber(take_u64(&mut rest)?),
            part: take_u16(&mut rest)?,
        };
        rest.is_empty().then_some(part)
    }

    /// What a key of a timer names.
    pub fn to_timer(&self) -> Option<Timer> {
        let mut rest = self.rest(Prefix::Timer)?;
        let timer = Timer {
            at: Timestamp(take_u64(&mut rest)?),
            what: TimerKind::from_number(take_u8(&mut rest)?)?,
            id: take(&mut rest)?,
        };
        rest.is_empty().then_some(timer)
    }

    /// What a key of the index of closed jobs names.
    pub fn to_closed(&self) -> Option<Closed> {
        let mut rest = self.rest(Prefix::Closed)?;
        let closed = Closed {
            queue: QueueNumber(take_u32(&mut rest)?),
            state: state_from_number(take_u8(&mut rest)?)?,
            at: Timestamp(take_u64(&mut rest)?),
            job: JobId::from_bytes(take(&mut rest)?),
        };
        rest.is_empty().then_some(closed)
    }

    /// What a key of a session names.
    pub fn to_session(&self) -> Option<(SessionId, u16)> {
        let mut rest = self.rest(Prefix::Session)?;
        let session = (SessionId(take_u64(&mut rest)?), take_u16(&mut rest)?);
        rest.is_empty().then_some(session)
    }

    /// What a key of a queue names.
    pub fn to_queue(&self) -> Option<QueueNumber> {
        let mut rest = self.rest(Prefix::Queue)?;
        let queue = QueueNumber(take_u32(&mut rest)?);
        rest.is_empty().then_some(queue)
    }

    /// What a key of a job's record names.
    pub fn to_job(&self) -> Option<JobId> {
        let mut rest = self.rest(Prefix::Job)?;
        let job = JobId::from_bytes(take(&mut rest)?);
        rest.is_empty().then_some(job)
    }

    /// What a key of a part of a blob names.
    pub fn to_blob(&self) -> Option<(JobId, BlobKind, u16)> {
        let mut rest = self.rest(Prefix::Blob)?;
        let job = JobId::from_bytes(take(&mut rest)?);
        let kind = blob_kind(take_u8(&mut rest)?)?;
        let part = take_u16(&mut rest)?;
        rest.is_empty().then_some((job, kind, part))
    }

    /// What a key of a part of an outcome names: producer, part and slot.
    pub fn to_outcome(&self) -> Option<(ProducerNumber, u16, u8)> {
        let mut rest = self.rest(Prefix::Outcome)?;
        let producer = ProducerNumber(take_u64(&mut rest)?);
        let (part, slot) = (take_u16(&mut rest)?, take_u8(&mut rest)?);
        rest.is_empty().then_some((producer, part, slot))
    }

    /// What a key of a node names: batch, job, and the part, or `None` for its end.
    pub fn to_node(&self) -> Option<(BatchId, JobId, Option<u16>)> {
        let mut rest = self.rest(Prefix::Node)?;
        let batch = BatchId(take_u64(&mut rest)?);
        let job = JobId::from_bytes(take(&mut rest)?);
        let part = match (take_u8(&mut rest)?, take_u16(&mut rest)?) {
            (0, part) => Some(part),
            (1, 0) => None,
            _ => return None,
        };
        rest.is_empty().then_some((batch, job, part))
    }

    /// What a key of an edge names: the job that it is found from, and the one at the other end.
    pub fn to_edge(&self) -> Option<(Side, JobId, JobId)> {
        let side = match self.prefix()? {
            Prefix::Wait => Side::Dependencies,
            _ => Side::Dependents,
        };
        let mut rest = match side {
            Side::Dependents => self.rest(Prefix::Edge)?,
            Side::Dependencies => self.rest(Prefix::Wait)?,
        };
        let job = JobId::from_bytes(take(&mut rest)?);
        let other = JobId::from_bytes(take(&mut rest)?);
        rest.is_empty().then_some((side, job, other))
    }

    /// What a key of a batch names: whether it is settled, and the batch.
    pub fn to_batch(&self) -> Option<(bool, BatchId)> {
        let mut rest = self.rest(Prefix::Batch)?;
        let is_settled = match take_u8(&mut rest)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let batch = BatchId(take_u64(&mut rest)?);
        rest.is_empty().then_some((is_settled, batch))
    }

    /// What a key of a cron entry names.
    pub fn to_cron(&self) -> Option<CronNumber> {
        let mut rest = self.rest(Prefix::Cron)?;
        let cron = CronNumber(take_u64(&mut rest)?);
        rest.is_empty().then_some(cron)
    }

    fn rest(&self, prefix: Prefix) -> Option<&[u8]> {
        let (first, rest) = self.as_slice().split_first()?;
        (*first == prefix as u8).then_some(rest)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.prefix() {
            Some(prefix) => write!(f, "{prefix:?}")?,
            None => f.write_str("unknown")?,
        }
        f.write_str(":")?;
        let rest = self.as_slice().get(1..).unwrap_or_default();
        rest.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The stored number of a kind of blob.
pub fn blob_number(kind: BlobKind) -> u8 {
    match kind {
        BlobKind::Content => 0,
        BlobKind::Result => 1,
        BlobKind::Cursor => 2,
        BlobKind::Error(slot) => 16_u8.saturating_add(slot),
    }
}

/// The kind of blob with this number.
fn blob_kind(number: u8) -> Option<BlobKind> {
    Some(match number {
        0 => BlobKind::Content,
        1 => BlobKind::Result,
        2 => BlobKind::Cursor,
        16..=25 => BlobKind::Error(number - 16),
        _ => return None,
    })
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn take_u8(rest: &mut &[u8]) -> Option<u8> {
    take::<1>(rest).map(u8::from_be_bytes)
}

fn take_u16(rest: &mut &[u8]) -> Option<u16> {
    take(rest).map(u16::from_be_bytes)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    take(rest).map(u32::from_be_bytes)
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    take(rest).map(u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use ganger_engine::records::GroupNumber;
    use proptest::prelude::*;

    use super::*;

    fn run(queue: u32, priority: u8, lane: u64, position: u64) -> RunKey {
        RunKey {
            lane: Lane {
                queue: QueueNumber(queue),
                priority,
                lane,
            },
            position,
        }
    }

    #[test]
    fn runs_lie_by_queue_then_priority_nine_first_then_lane_then_position() {
        let ordered = [
            run(1, 9, 0, 7),
            run(1, 9, 0, 8),
            run(1, 9, 1, 0),
            run(1, 5, 0, 0),
            run(1, 0, 0, 0),
            run(2, 9, 0, 0),
        ];
        let keys: Vec<_> = ordered.iter().map(Key::run).collect();
        assert!(keys.is_sorted(), "{keys:?}");
    }

    #[test]
    fn the_bytes_of_a_key_are_those_of_the_documentation() {
        assert_eq!(
            Key::run(&run(1, 9, 2, 3)).as_slice(),
            [
                0x10, 0, 0, 0, 1, 246, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3
            ]
        );
        let part = PartKey {
            group: GroupNumber(5),
            part: 6,
        };
        assert_eq!(
            Key::acks(&part).as_slice(),
            [0x11, 0, 0, 0, 0, 0, 0, 0, 5, 0, 6]
        );
        assert_eq!(
            Key::outcome(ProducerNumber(1), 7, 2).as_slice(),
            [0x17, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2, 7]
        );
        assert_eq!(
            Key::cron(CronNumber(258)).as_slice(),
            [0x24, 0, 0, 0, 0, 0, 0, 1, 2]
        );
        let batch = Key::batch(true, BatchId(258));
        assert_eq!(batch.as_slice(), [0x21, 1, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(batch.to_batch(), Some((true, BatchId(258))));
        assert_eq!(Key::meta(Meta::Head).as_slice(), [1, 1]);
    }

    #[test]
    fn the_end_of_a_prefix_is_behind_all_of_it() {
        let lane = run(u32::MAX, 0, u64::MAX - 1, 0).lane;
        let begin = Key::lane_runs(&lane);
        let last = Key::run(&RunKey {
            lane,
            position: u64::MAX,
        });
        assert!(begin.after_prefix() > last);
        assert!(begin.after_prefix() <= Key::of(Prefix::Acks));
        assert_eq!(Key::of(Prefix::Run).after_prefix(), Key::of(Prefix::Acks));
    }

    proptest! {
        #[test]
        fn keys_are_ordered_as_their_bytes_are(
            a in prop::collection::vec(any::<u8>(), 1..40),
            b in prop::collection::vec(any::<u8>(), 1..40),
        ) {
            let (x, y) = (Key::from_slice(&a).unwrap(), Key::from_slice(&b).unwrap());
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert_eq!(x.as_slice(), &a[..]);
            prop_assert!(x < x.after());
        }

        #[test]
        fn a_run_reads_back_from_its_key(q: u32, p in 0_u8..10, l: u64, at: u64) {
            let run = run(q, p, l, at);
            prop_assert_eq!(Key::run(&run).to_run(), Some(run));
            let lane = Lane { lane: Lane::SCHEDULED, ..run.lane };
            let run = RunKey { lane, ..run };
            prop_assert_eq!(Key::run(&run).to_run(), Some(run));
            prop_assert_eq!(Key::run(&run).prefix(), Some(Prefix::ScheduledRun));
            prop_assert_eq!(Key::left(&run).to_left(), Some(run));
            prop_assert_eq!(Key::left(&run).to_run(), None);
        }

        #[test]
        fn a_timer_reads_back_from_its_key_and_timers_fire_in_the_order_of_keys(
            a in (0_u64..99, 1_u8..=8, any::<[u8; 24]>()),
            b in (0_u64..99, 1_u8..=8, any::<[u8; 24]>()),
        ) {
            let timer = |(at, what, id)| Timer {
                at: Timestamp(at),
                what: TimerKind::from_number(what).unwrap(),
                id,
            };
            let (a, b) = (timer(a), timer(b));
            prop_assert_eq!(Key::timer(&a).to_timer(), Some(a));
            prop_assert_eq!(Key::timer(&a).cmp(&Key::timer(&b)), a.cmp(&b));
        }

        #[test]
        fn a_closed_row_reads_back_from_its_key(q: u32, state in 0_usize..8, at: u64, id: [u8; 24]) {
            let closed = Closed {
                queue: QueueNumber(q),
                state: JobState::ALL[state],
                at: Timestamp(at),
                job: JobId::from_bytes(id),
            };
            prop_assert_eq!(Key::closed(&closed).to_closed(), Some(closed));
        }
    }
}
