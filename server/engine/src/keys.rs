//! Keys: what is in memory of those whose jobs run, stand at a limit, or have lanes of their own.
//!
//! A slot of a key is a live lease of one of its jobs, so what runs is counted where leases begin and
//! end, and no slot can leak. A key of which nothing is running, waiting in a lane of its own or owed
//! to a rate has no state here. Which jobs a key lets through is decided by `Engine::gate`; lanes
//! and turns are in [`crate::lanes`].

use std::collections::{BTreeMap, BTreeSet};

use foldhash::HashMap;
use ganger_protocol::{JobId, NamespaceName, ids::Tag};
use hmac::{Hmac, Mac};
use sha2::Sha256;

use crate::{
    Engine,
    command::{Mono, Now},
    facts::{Facts, Need},
    limits::{Limit, Nanos, Opened, Used, mono, nanos},
    records::{Content, JobRecord, Lane, QueueNumber, UniqueKey, UniqueRecord},
};

/// Keys of which it is known how many of their jobs wait in shared lanes.
const COUNTED_MAX: usize = 1 << 16;

/// Keys whose debt to a rate is looked at by one grant.
const DEBTS_SLICE: usize = 4;

/// Holders of keys that one command reads.
const HOLDS_SLICE: usize = 64;

/// The number of a key's lanes: a keyed hash, so that nobody can make two keys meet.
#[derive(Debug, Clone)]
pub struct LaneNumbers(Hmac<Sha256>);

impl LaneNumbers {
    /// Under the secret of the store.
    pub fn new(secret: &[u8; 32]) -> Self {
        // A key of an HMAC is filled up with zeroes to a block.
        let mut key = [0; 64];
        key[..32].copy_from_slice(secret);
        Self(Hmac::new(&key.into()))
    }

    /// The number of a key of a namespace, which is not 0.
    pub fn of(&self, namespace: &NamespaceName, key: &Tag) -> u64 {
        let mut mac = self.0.clone();
        // No unique key is hashed from a part of this name.
        mac.update(&[5]);
        mac.update(namespace.as_str().as_bytes());
        // No name has such a byte.
        mac.update(&[0]);
        mac.update(key.as_str().as_bytes());
        let digest: [u8; 32] = mac.finalize().into_bytes().into();
        let number = digest
            .first_chunk::<8>()
            .map_or(0, |bytes| u64::from_be_bytes(*bytes));
        // Others have these two.
        number.clamp(1, Lane::SCHEDULED - 1)
    }
}

/// The lock by which a job keeps the others of its key back. Keys of jobs are digests and end in
/// eight zero bytes only by an accident that does not happen.
pub fn hold_lock(lane: u64) -> UniqueKey {
    let mut key = [0; 16];
    key[..8].copy_from_slice(&lane.to_be_bytes());
    UniqueKey(key)
}

/// The lane whose jobs such a lock keeps back.
fn held_lane(lock: &UniqueKey) -> Option<u64> {
    let [lane @ .., 0, 0, 0, 0, 0, 0, 0, 0] = lock.0 else {
        return None;
    };
    Some(u64::from_be_bytes(lane))
}

/// Who keeps the jobs of a key back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Hold {
    /// It was not read since the key came to memory.
    #[default]
    Unread,
    /// Nobody.
    Free,
    /// This job, which was granted and is not over.
    By(JobId),
}

/// What is known of a key.
#[derive(Debug, Default)]
struct KeyState {
    /// Live leases of its jobs.
    running: u32,
    /// Lanes of its own that are in memory.
    lanes: u32,
    /// What its rate has granted; `None`: nothing since the start.
    rate_used: Option<Used>,
    hold: Hold,
    /// Its lanes that have no turn until something changes, by queue and priority.
    parked: BTreeSet<(QueueNumber, u8)>,
    /// When its rate lets the next job through, while a lane waits for that.
    free_at: Option<Mono>,
}

/// All keys of the shard that something is known of.
#[derive(Debug)]
pub(crate) struct Keys {
    numbers: LaneNumbers,
    /// The job whose key was hashed last, since a job is looked at before it is taken.
    last: Option<(JobId, u64)>,
    states: HashMap<u64, KeyState>,
    /// Keys that wait for their rate.
    at_rate: BTreeSet<(Mono, u64)>,
    /// Keys that have used their rate, by when that is made up for.
    debts: BTreeSet<(Nanos, u64)>,
    /// Keys with parked lanes of which it must be read who holds them.
    unread: BTreeSet<u64>,
    /// Keys of which it was read in this command who holds them.
    learned: Vec<u64>,
    /// Jobs in shared lanes by key, of the keys that have most.
    counted: HashMap<(QueueNumber, u8, u64), u32>,
    pub(crate) opened: Opened,
}

impl Keys {
    pub(crate) fn new(secret: &[u8; 32], opened: Opened) -> Self {
        Self {
            numbers: LaneNumbers::new(secret),
            last: None,
            states: HashMap::default(),
            at_rate: BTreeSet::new(),
            debts: BTreeSet::new(),
            unread: BTreeSet::new(),
            learned: Vec::new(),
            counted: HashMap::default(),
            opened,
        }
    }

    /// The number of the key of a job that was looked at last.
    pub(crate) fn remembered(&self, job: JobId) -> Option<u64> {
        self.last
            .filter(|(last, _)| *last == job)
            .map(|(_, lane)| lane)
    }

    pub(crate) fn remember(&mut self, job: JobId, lane: u64) {
        self.last = Some((job, lane));
    }

    /// The number of a key's lanes.
    pub(crate) fn lane_of(&self, namespace: &NamespaceName, key: &Tag) -> u64 {
        self.numbers.of(namespace, key)
    }

    /// Live leases of a key.
    pub(crate) fn running(&self, lane: u64) -> u32 {
        self.states.get(&lane).map_or(0, |state| state.running)
    }

    /// Whether nothing is known of any key.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.states.is_empty() && self.counted.is_empty()
    }

    /// Keys that have parked lanes.
    pub(crate) fn parked(&self) -> Vec<u64> {
        let parked = self.states.iter().filter(|(_, it)| !it.parked.is_empty());
        let mut lanes: Vec<u64> = parked.map(|(lane, _)| *lane).collect();
        lanes.sort_unstable();
        lanes
    }

    /// When the first key that waits for its rate may go on.
    pub(crate) fn next(&self) -> Option<Mono> {
        self.at_rate.first().map(|(at, _)| *at)
    }

    /// Keys whose rate lets the next job through.
    pub(crate) fn due(&self, now: Mono, max: usize) -> Vec<u64> {
        let due = self.at_rate.iter().take_while(|(at, _)| *at <= now);
        due.take(max).map(|(_, lane)| *lane).collect()
    }

    /// Whether somebody must be read who may hold a key.
    pub(crate) fn has_unread(&self) -> bool {
        !self.unread.is_empty()
    }

    /// The queues in which jobs wait until it is read who holds their key.
    pub(crate) fn unread_queues(&self) -> BTreeSet<QueueNumber> {
        let states = self.unread.iter().filter_map(|lane| self.states.get(lane));
        let parked = states.flat_map(|state| &state.parked);
        parked.map(|(queue, _)| *queue).collect()
    }

    /// How many jobs of a key wait in the shared lane, as far as they were counted: fewer when more
    /// keys than are counted wait, or when they were pushed before the start.
    pub(crate) fn counted(&self, lane: Lane) -> u32 {
        let key = (lane.queue, lane.priority, lane.lane);
        self.counted.get(&key).copied().unwrap_or_default()
    }

    /// A job of a key waits in the shared lane. When too many keys are counted, each loses one, so
    /// that those with most stay.
    pub(crate) fn count_more(&mut self, lane: Lane) {
        let key = (lane.queue, lane.priority, lane.lane);
        if let Some(count) = self.counted.get_mut(&key) {
            *count += 1;
            return;
        }
        if self.counted.len() >= COUNTED_MAX {
            self.counted.retain(|_, count| {
                *count -= 1;
                *count > 0
            });
            return;
        }
        self.counted.insert(key, 1);
    }

    /// A job of a key has left the shared lane.
    pub(crate) fn count_less(&mut self, lane: Lane) {
        let key = (lane.queue, lane.priority, lane.lane);
        if let Some(count) = self.counted.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.counted.remove(&key);
            }
        }
    }

    /// Nothing of a queue is left.
    pub(crate) fn forget_queue(&mut self, queue: QueueNumber) {
        self.counted.retain(|(of, ..), _| *of != queue);
    }

    /// A key has one more lane of its own in memory.
    pub(crate) fn add_lane(&mut self, lane: u64) {
        self.states.entry(lane).or_default().lanes += 1;
    }

    /// A key has one lane of its own less.
    pub(crate) fn remove_lane(&mut self, lane: Lane, now: Mono) {
        if let Some(state) = self.states.get_mut(&lane.lane) {
            state.lanes -= 1;
            state.parked.remove(&(lane.queue, lane.priority));
        }
        self.forget_unused(lane.lane, now);
    }

    /// A job of a key is leased.
    pub(crate) fn take_slot(&mut self, lane: u64) {
        self.states.entry(lane).or_default().running += 1;
    }

    /// A command is over: forgets keys that it only looked at.
    pub(crate) fn forget_learned(&mut self, now: Mono) {
        for lane in std::mem::take(&mut self.learned) {
            self.forget_unused(lane, now);
        }
    }

    /// Forgets some of the keys that have made up for what they used of their rates.
    pub(crate) fn forgive(&mut self, now: Mono) {
        for _ in 0..DEBTS_SLICE {
            let Some((at, lane)) = self.debts.first().copied() else {
                return;
            };
            if at > nanos(now) {
                return;
            }
            self.debts.remove(&(at, lane));
            self.forget_unused(lane, now);
        }
    }

    /// A grant uses one of a rate.
    fn use_rate(&mut self, lane: u64, limit: &Limit, now: Mono) {
        let opened = self.opened;
        let state = self.states.entry(lane).or_default();
        let earlier = state.rate_used;
        let used = limit.use_one(earlier, opened, now);
        if let Some(used) = used {
            state.rate_used = Some(used);
            if let Some(earlier) = earlier {
                self.debts.remove(&(earlier.until, lane));
            }
            self.debts.insert((used.until, lane));
        }
        self.forgive(now);
    }

    /// Forgets a key of which nothing is to be known.
    fn forget_unused(&mut self, lane: u64, now: Mono) {
        let Some(state) = self.states.get(&lane) else {
            return;
        };
        let is_used = state.running > 0
            || state.lanes > 0
            || matches!(state.hold, Hold::By(_))
            || state.rate_used.is_some_and(|used| {
                // What is forgiven is not looked at again.
                used.until > nanos(now) && self.debts.contains(&(used.until, lane))
            });
        if is_used {
            return;
        }
        if let Some(state) = self.states.remove(&lane) {
            if let Some(used) = state.rate_used {
                self.debts.remove(&(used.until, lane));
            }
            if let Some(at) = state.free_at {
                self.at_rate.remove(&(at, lane));
            }
        }
        self.unread.remove(&lane);
    }
}

/// Whether a key lets a job through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    Open,
    /// Not before this time, or not before one of its jobs is over.
    Shut(Option<Mono>),
    /// Who holds the key must be read first.
    Unread,
}

impl Engine {
    /// Whether a key at its limit lets a job through.
    pub(crate) fn gate(&self, now: Now, lane: u64, limit: &Limit, job: (JobId, u32)) -> Gate {
        let state = self.keys.states.get(&lane);
        let running = state.map_or(0, |state| state.running);
        let hold = state.map(|state| state.hold).unwrap_or_default();
        if limit.sequence {
            match hold {
                _ if running > 0 => return Gate::Shut(None),
                Hold::Unread => return Gate::Unread,
                // Jobs that were granted before a key became a sequence come first, too.
                Hold::By(holder) if holder != job.0 && job.1 == 0 => return Gate::Shut(None),
                Hold::Free | Hold::By(_) => {}
            }
        }
        if limit.max_running.is_some_and(|max| running >= max) {
            return Gate::Shut(None);
        }
        let used = state.and_then(|state| state.rate_used);
        let free_at = limit.free_at(used, self.keys.opened);
        match free_at <= nanos(now.mono) {
            true => Gate::Open,
            false => Gate::Shut(Some(mono(free_at))),
        }
    }

    /// A lane has no turn until its key lets a job through again.
    pub(crate) fn park(&mut self, lane: Lane, gate: Gate) {
        self.queues.park(lane);
        let state = self.keys.states.entry(lane.lane).or_default();
        state.parked.insert((lane.queue, lane.priority));
        match gate {
            Gate::Open | Gate::Shut(None) => {}
            Gate::Shut(Some(at)) => {
                if let Some(earlier) = state.free_at.replace(at) {
                    self.keys.at_rate.remove(&(earlier, lane.lane));
                }
                self.keys.at_rate.insert((at, lane.lane));
            }
            Gate::Unread => {
                self.keys.unread.insert(lane.lane);
            }
        }
    }

    /// Something has changed for a key: its parked lanes have turns again.
    pub(crate) fn wake_key(&mut self, lane: u64) {
        let Some(state) = self.keys.states.get_mut(&lane) else {
            return;
        };
        if let Some(at) = state.free_at.take() {
            self.keys.at_rate.remove(&(at, lane));
        }
        self.keys.unread.remove(&lane);
        for (queue, priority) in std::mem::take(&mut state.parked) {
            self.queues.unpark(Lane {
                queue,
                priority,
                lane,
            });
            self.awakened.insert(queue);
        }
    }

    /// A job of a key is granted; whether the key has a rate.
    pub(crate) fn take_slot(&mut self, now: Now, lane: u64, queue: QueueNumber, key: &Tag) -> bool {
        self.keys.take_slot(lane);
        let Some(queue) = self.queues.find(queue) else {
            return false;
        };
        let limit = self.limits.of_key(&queue.record.namespace, key);
        let Some(limit) = limit.filter(|limit| limit.rate.is_some()) else {
            return false;
        };
        self.keys.use_rate(lane, limit, now.mono);
        true
    }

    /// A lease of a job of a key has ended.
    pub(crate) fn free_slot(&mut self, now: Mono, lane: u64) {
        if lane == 0 {
            return;
        }
        if let Some(state) = self.keys.states.get_mut(&lane) {
            state.running -= 1;
            if !state.parked.is_empty() {
                self.wake_key(lane);
            }
        }
        self.keys.forget_unused(lane, now);
    }

    /// The lane of a job's key; 0 when it has none.
    pub(crate) fn lane_of_job(&self, queue: QueueNumber, content: Option<&Content>) -> u64 {
        let key = content.and_then(|content| content.key.as_ref());
        let queue = key.and_then(|_| self.queue_record(queue));
        match (key, queue) {
            (Some(key), Some(queue)) => self.keys.lane_of(&queue.namespace, key),
            (Some(_), None) | (None, _) => 0,
        }
    }

    /// Whether the key of a job is a sequence.
    pub(crate) fn is_in_sequence(&self, queue: QueueNumber, content: Option<&Content>) -> bool {
        if !self.limits.has_sequences() {
            return false;
        }
        let key = content.and_then(|content| content.key.as_ref());
        let queue = self.queue_record(queue);
        let limit = key
            .zip(queue)
            .and_then(|(key, queue)| self.limits.of_key(&queue.namespace, key));
        limit.is_some_and(|limit| limit.sequence)
    }

    /// A job whose lease has ended waits again: in a sequence it keeps the others back.
    pub(crate) fn hold_key(&mut self, record: &mut JobRecord) {
        let content = record.content.as_deref();
        if record.holds_key || !self.is_in_sequence(record.queue, content) {
            return;
        }
        let lane = self.lane_of_job(record.queue, content);
        let state = self.keys.states.entry(lane).or_default();
        if let Hold::By(_) = state.hold {
            return;
        }
        state.hold = Hold::By(record.id);
        record.holds_key = true;
        let lock = UniqueRecord {
            job: record.id,
            ends_at: None,
        };
        self.group.set_lock(hold_lock(lane), Some(lock));
    }

    /// A job is over: it keeps no others back.
    pub(crate) fn end_hold(&mut self, now: Now, record: &JobRecord) {
        if record.holds_key {
            let lane = self.lane_of_job(record.queue, record.content.as_deref());
            self.end_hold_of(now, lane);
        }
    }

    /// The job that kept the others of a key back is over.
    pub(crate) fn end_hold_of(&mut self, now: Now, lane: u64) {
        self.group.set_lock(hold_lock(lane), None);
        if let Some(state) = self.keys.states.get_mut(&lane) {
            state.hold = Hold::Free;
            self.wake_key(lane);
            self.keys.forget_unused(lane, now.mono);
        }
    }

    /// What must be read to know who holds a key, when that is not known.
    pub(crate) fn need_of_hold(&self, lane: u64) -> Option<Need> {
        let state = self.keys.states.get(&lane);
        let is_unread = state.is_none_or(|state| state.hold == Hold::Unread);
        let is_needed = lane != 0 && is_unread && self.limits.has_sequences();
        is_needed.then(|| Need::Unique(hold_lock(lane)))
    }

    /// The same for a job that is to be pushed.
    pub(crate) fn need_of_sequence(&self, namespace: &NamespaceName, key: &Tag) -> Option<Need> {
        if !self.limits.has_sequences() {
            return None;
        }
        let limit = self.limits.of_key(namespace, key)?;
        limit
            .sequence
            .then(|| self.need_of_hold(self.keys.lane_of(namespace, key)))?
    }

    /// What must be read before lanes that wait for that have turns: who holds their keys, and whether
    /// that job is still kept.
    pub(crate) fn needs_of_holds(&self, facts: &Facts) -> Vec<Need> {
        let mut needs = Vec::new();
        for lane in self.keys.unread.iter().take(HOLDS_SLICE) {
            let lock = hold_lock(*lane);
            match self.lock(lock, facts) {
                None => needs.push(Need::Unique(lock)),
                Some(Some(holder)) => needs.extend(self.need_of_holder(&holder)),
                Some(None) => {}
            }
        }
        needs
    }

    /// Takes in who holds keys, as far as it was read or stands in the open group.
    pub(crate) fn learn_holds(&mut self, now: Now, facts: &Facts) {
        if !self.limits.has_sequences() && !self.keys.has_unread() {
            return;
        }
        let read = facts.iter().filter_map(|(need, _)| match need {
            Need::Unique(lock) => held_lane(lock),
            _ => None,
        });
        let unread = self.keys.unread.iter().take(HOLDS_SLICE).copied();
        let lanes: BTreeSet<u64> = read.chain(unread).collect();
        for lane in lanes {
            let lock = hold_lock(lane);
            let Some(holder) = self.lock(lock, facts) else {
                continue;
            };
            let need = holder.and_then(|holder| self.need_of_holder(&holder));
            if need.is_some_and(|need| !facts.contains(&need)) {
                continue;
            }
            let hold = match self.holder(now, lock, facts) {
                Some(holder) => Hold::By(holder.job),
                None => Hold::Free,
            };
            let state = self.keys.states.entry(lane).or_default();
            if state.hold == Hold::Unread {
                state.hold = hold;
            }
            self.keys.learned.push(lane);
            if self.keys.unread.contains(&lane) {
                self.wake_key(lane);
            }
        }
    }

    /// A queue is gone with its jobs: who holds keys must be read again.
    pub(crate) fn forget_holds(&mut self) {
        for (lane, state) in &mut self.keys.states {
            if let Hold::By(_) = state.hold {
                state.hold = Hold::Unread;
                if !state.parked.is_empty() {
                    self.keys.unread.insert(*lane);
                }
            }
        }
    }

    /// Checks what is known of keys against the leases and lanes that there are.
    ///
    /// # Errors
    /// A sentence for the first rule that does not hold.
    pub(crate) fn check_limits_of_keys(&self) -> Result<(), String> {
        let mut running: BTreeMap<u64, u32> = BTreeMap::new();
        for (_, lease) in self.leases.iter().filter(|(_, lease)| lease.lane != 0) {
            *running.entry(lease.lane).or_default() += 1;
        }
        let mut lanes: BTreeMap<u64, u32> = BTreeMap::new();
        for (lane, has_turns) in self.queues.iter().flat_map(|queue| queue.own_lanes()) {
            *lanes.entry(lane.lane).or_default() += 1;
            let state = self.keys.states.get(&lane.lane);
            let is_parked =
                state.is_some_and(|it| it.parked.contains(&(lane.queue, lane.priority)));
            if is_parked == has_turns {
                return Err(format!(
                    "{lane:?} has turns: {has_turns}, and is parked: {is_parked}"
                ));
            }
        }
        for (lane, state) in &self.keys.states {
            let known = running.remove(lane).unwrap_or_default();
            if state.running != known {
                return Err(format!(
                    "key {lane:x} runs {known}, counted {}",
                    state.running
                ));
            }
            let known = lanes.remove(lane).unwrap_or_default();
            if state.lanes != known {
                return Err(format!(
                    "key {lane:x} has {known} lanes, counted {}",
                    state.lanes
                ));
            }
            if state
                .free_at
                .is_some_and(|at| !self.keys.at_rate.contains(&(at, *lane)))
            {
                return Err(format!(
                    "key {lane:x} waits for its rate, and nothing wakes it"
                ));
            }
            let is_unread = self.keys.unread.contains(lane);
            let can_wake = state.running > 0
                || state.free_at.is_some()
                || is_unread
                || matches!(state.hold, Hold::By(_));
            if !state.parked.is_empty() && !can_wake {
                return Err(format!("I17: key {lane:x} is parked for ever"));
            }
            let is_owed = |used: Used| self.keys.debts.contains(&(used.until, *lane));
            let is_used = state.running > 0
                || state.lanes > 0
                || matches!(state.hold, Hold::By(_))
                || state.rate_used.is_some_and(is_owed);
            if !is_used {
                return Err(format!("key {lane:x} is kept for nothing"));
            }
        }
        match running.is_empty() && lanes.is_empty() {
            true => Ok(()),
            false => Err(format!("keys are not known: {running:?} {lanes:?}")),
        }
    }
}
