//! Live leases, their deadlines, and the answers of the last ones that ended.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::{Bound, RangeBounds},
};

use foldhash::HashMap;
use ganger_protocol::{BatchId, JobId, LeaseId, SessionId, Timestamp};

use crate::{
    by_number::ByNumber,
    command::Mono,
    kinds::KindNumber,
    records::{PartKey, Place, QueueNumber, UniqueKey},
};

/// A live lease.
#[derive(Debug, Clone)]
pub(crate) struct Lease {
    pub(crate) number: LeaseId,
    pub(crate) queue: QueueNumber,
    pub(crate) session: SessionId,
    pub(crate) deadline: Mono,
    /// The entry that was granted; `None` once the job was moved out of its run.
    pub(crate) place: Option<Place>,
    /// Whether the job has a record of its own.
    pub(crate) has_record: bool,
    /// Parts of its spilled content.
    pub(crate) spilled_parts: u16,
    /// Its kind, in the table of those that are counted.
    pub(crate) kind: KindNumber,
    /// Which grant of the job it is.
    pub(crate) attempt: u32,
    /// The lane of the key of its job; 0: it has none.
    pub(crate) lane: u64,
    /// The unique key that goes with an ack.
    pub(crate) key: LeaseKey,
    /// The batch that its job is a member of; `None` too while `key` is unread.
    pub(crate) batch: Option<BatchId>,
    /// Whether other jobs may wait for its job; `false` too while `key` is unread.
    pub(crate) is_node: bool,
    /// Whether its job may have to be kept once it is acked, as its push or its queue said.
    pub(crate) retains: bool,
    /// Its job is cancelled, and it is revoked then.
    pub(crate) cancel_at: Option<Timestamp>,
    /// Where its latest record stands; `None` while that is in the open group.
    pub(crate) part: Option<PartKey>,
}

/// What is known of the unique key that a leased job holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseKey {
    /// It holds none.
    None,
    /// It holds this one.
    Held(UniqueKey),
    /// Its content was not read since the start.
    Unread,
}

/// How a worker answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Ack = 1,
    Fail = 2,
    Release = 3,
}

/// All live leases of the shard.
#[derive(Debug)]
pub(crate) struct Leases {
    by_job: HashMap<JobId, Lease>,
    deadlines: Deadlines,
    settled: Settled,
}

impl Leases {
    pub(crate) fn remembering(settled_max: usize) -> Self {
        Self {
            by_job: HashMap::default(),
            deadlines: Deadlines::default(),
            settled: Settled::with_room_for(settled_max),
        }
    }

    pub(crate) fn insert(&mut self, job: JobId, lease: Lease) {
        self.deadlines.insert(lease.deadline, lease.number, job);
        self.settled.open(lease.number);
        self.by_job.insert(job, lease);
    }

    pub(crate) fn remove(&mut self, job: &JobId) -> Option<Lease> {
        let lease = self.by_job.remove(job)?;
        self.deadlines.remove(lease.deadline, lease.number);
        Some(lease)
    }

    /// Moves a deadline to a later one; the deadline then in force.
    pub(crate) fn extend(&mut self, job: &JobId, deadline: Mono) -> Option<Mono> {
        let lease = self.by_job.get_mut(job)?;
        if deadline > lease.deadline {
            self.deadlines.remove(lease.deadline, lease.number);
            lease.deadline = deadline;
            self.deadlines.insert(deadline, lease.number, *job);
        }
        Some(lease.deadline)
    }

    pub(crate) fn remember(&mut self, job: &JobId, lease: LeaseId, answer: Answer) {
        self.settled.insert(job, lease, answer);
    }

    pub(crate) fn find(&self, job: &JobId) -> Option<&Lease> {
        self.by_job.get(job)
    }

    pub(crate) fn find_mut(&mut self, job: &JobId) -> Option<&mut Lease> {
        self.by_job.get_mut(job)
    }

    /// The lease of this job, when it is live under this number.
    pub(crate) fn live(&self, job: &JobId, number: LeaseId) -> Option<&Lease> {
        self.by_job.get(job).filter(|lease| lease.number == number)
    }

    /// How a lease was answered a short while ago.
    pub(crate) fn answered(&self, job: &JobId, lease: LeaseId) -> Option<Answer> {
        self.settled.find(job, lease)
    }

    pub(crate) fn first_deadline(&self) -> Option<Mono> {
        self.deadlines.by_time.keys().next().copied()
    }

    /// Jobs whose leases have passed their deadline, the earliest first.
    pub(crate) fn timed_out(&self, now: Mono, max: usize) -> Vec<JobId> {
        let due = self.deadlines.iter().take_while(|(at, ..)| *at <= now);
        due.take(max).map(|(.., job)| job).collect()
    }

    /// Those between two, by their deadlines and numbers.
    pub(crate) fn between(
        &self,
        from: Bound<(Mono, LeaseId)>,
        to: Bound<(Mono, LeaseId)>,
    ) -> impl DoubleEndedIterator<Item = (Mono, LeaseId, JobId)> {
        self.deadlines.between(from, to)
    }

    pub(crate) fn count(&self) -> usize {
        self.by_job.len()
    }

    /// All of them in the order of their deadlines.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&JobId, &Lease)> {
        self.deadlines
            .iter()
            .filter_map(|(.., job)| self.by_job.get_key_value(&job))
    }
}

/// The jobs of the leases by the time at which they end, and then by the numbers of the leases: those of
/// one fetch mostly end in the same ms.
#[derive(Debug, Default)]
struct Deadlines {
    by_time: BTreeMap<Mono, ByNumber<JobId>>,
}

impl Deadlines {
    fn insert(&mut self, deadline: Mono, lease: LeaseId, job: JobId) {
        let leases = self.by_time.entry(deadline).or_default();
        leases.insert(lease, job);
    }

    fn remove(&mut self, deadline: Mono, lease: LeaseId) {
        if let Entry::Occupied(mut leases) = self.by_time.entry(deadline) {
            leases.get_mut().remove(lease);
            match leases.get().is_empty() {
                true => drop(leases.remove()),
                // One that lasts would keep the room of all that ended before it.
                false => leases.get_mut().shrink(),
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (Mono, LeaseId, JobId)> {
        self.between(Bound::Unbounded, Bound::Unbounded)
    }

    fn between(
        &self,
        from: Bound<(Mono, LeaseId)>,
        to: Bound<(Mono, LeaseId)>,
    ) -> impl DoubleEndedIterator<Item = (Mono, LeaseId, JobId)> {
        let time = |bound| match bound {
            Bound::Included((at, _)) | Bound::Excluded((at, _)) => Bound::Included(at),
            Bound::Unbounded => Bound::Unbounded,
        };
        let times = self.by_time.range((time(from), time(to)));
        let leases =
            times.flat_map(|(at, leases)| leases.iter().map(|(lease, job)| (*at, lease, *job)));
        leases.filter(move |(at, lease, _)| (from, to).contains(&(*at, *lease)))
    }
}

/// How the last leases were answered: one word a lease number, newer numbers replacing older ones.
/// A word is 30 bits of the job's hash and two of the answer, so that a forged pair of job and
/// lease is not taken for a repeated one.
#[derive(Debug)]
struct Settled {
    words: Vec<u32>,
}

impl Settled {
    fn with_room_for(leases: usize) -> Self {
        Self {
            words: vec![0; leases.max(1)],
        }
    }

    fn word(&mut self, lease: LeaseId) -> Option<&mut u32> {
        let slot = usize::try_from(lease.0).ok()? % self.words.len();
        self.words.get_mut(slot)
    }

    fn open(&mut self, lease: LeaseId) {
        if let Some(word) = self.word(lease) {
            *word = 0;
        }
    }

    fn insert(&mut self, job: &JobId, lease: LeaseId, answer: Answer) {
        if let Some(word) = self.word(lease) {
            *word = fingerprint(job, lease) << 2 | answer as u32;
        }
    }

    fn find(&self, job: &JobId, lease: LeaseId) -> Option<Answer> {
        let slot = usize::try_from(lease.0).ok()? % self.words.len();
        let word = *self.words.get(slot)?;
        if word >> 2 != fingerprint(job, lease) {
            return None;
        }
        match word & 3 {
            1 => Some(Answer::Ack),
            2 => Some(Answer::Fail),
            3 => Some(Answer::Release),
            _ => None,
        }
    }
}

/// Thirty bits of job and lease number.
fn fingerprint(job: &JobId, lease: LeaseId) -> u32 {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = foldhash::fast::FixedState::default().build_hasher();
    hasher.write(job.as_bytes());
    hasher.write_u64(lease.0);
    u32::try_from(hasher.finish() >> 34).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn job(number: u64) -> JobId {
        let mut bytes = [0; JobId::BYTES];
        bytes[..8].copy_from_slice(&number.to_be_bytes());
        JobId::from_bytes(bytes)
    }

    proptest! {
        #[test]
        fn deadlines_are_in_the_order_of_their_times_and_then_of_their_leases(
            steps in prop::collection::vec((prop::bool::weighted(0.6), 0_u64..6, 0_u64..60), 0..300),
            bound in (0_u64..7, 0_u64..60),
        ) {
            let (mut deadlines, mut model) = (Deadlines::default(), BTreeSet::new());
            for (inserts, at, lease) in steps {
                let (at, lease) = (Mono(at), LeaseId(lease));
                if inserts {
                    deadlines.insert(at, lease, job(lease.0));
                    model.insert((at, lease));
                } else {
                    deadlines.remove(at, lease);
                    model.remove(&(at, lease));
                }
                prop_assert!(deadlines.by_time.values().all(|leases| !leases.is_empty()));
            }
            let bound = Bound::Excluded((Mono(bound.0), LeaseId(bound.1)));
            for bounds in [
                (Bound::Unbounded, Bound::Unbounded),
                (bound, Bound::Unbounded),
                (Bound::Unbounded, bound),
            ] {
                let expected = model.range(bounds).map(|(at, lease)| (*at, *lease, job(lease.0)));
                let between = || deadlines.between(bounds.0, bounds.1);
                prop_assert!(between().eq(expected.clone()));
                prop_assert!(between().rev().eq(expected.rev()));
            }
        }
    }
}
