//! Queues by namespace and name, their counters, their waiting fetches, and the windows of their
//! lanes within one budget of heads.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use ganger_protocol::{DurationMs, NamespaceName, QueueName, QueuePattern, job::JobState};

use crate::{
    lanes::{Choice, Front, Ring, Rings},
    limits::{Limit, Used},
    records::{Lane, Place, QueueNumber, QueueRecord, RunKey},
    waiters::Ticket,
    window::{Head, Window},
};

/// Dead jobs that a queue keeps unless it says otherwise.
pub const DEAD_MAX_DEFAULT: u64 = 10_000;

/// How long a queue keeps dead jobs unless it says otherwise.
pub const DEAD_RETENTION_DEFAULT: DurationMs = DurationMs::from_hours(24 * 180);

/// Done, cancelled and expired jobs, of each, that a queue keeps unless it says otherwise.
pub const RETAINED_MAX_DEFAULT: u64 = 10_000;

/// Heads that a lane in use may always have, whatever the budget.
pub(crate) const LANE_HEADS_MIN: usize = 16;

/// Heads that a lane may have by demand.
pub(crate) const LANE_HEADS_MAX: usize = 4096;

/// A queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) record: QueueRecord,
    /// Fetches that wait for it, the oldest first.
    pub(crate) waiters: BTreeSet<Ticket>,
    /// The shared lane of each priority.
    windows: [Window; 10],
    /// The lanes of keys; `None`: there are none.
    pub(crate) rings: Option<Box<Rings>>,
    /// The limit that counts for it.
    pub(crate) limit: Option<Box<Limit>>,
    /// What the rate of its limit has granted; `None`: nothing since the start.
    pub(crate) rate_used: Option<Used>,
}

impl Queue {
    pub(crate) fn window(&self, priority: u8) -> Option<&Window> {
        self.windows.get(usize::from(priority))
    }

    fn window_mut(&mut self, priority: u8) -> Option<&mut Window> {
        self.windows.get_mut(usize::from(priority))
    }

    /// The windows of the shared lanes with their priorities, the highest first.
    pub(crate) fn windows(&self) -> impl Iterator<Item = (u8, &Window)> {
        (0..=9).rev().zip(self.windows.iter().rev())
    }

    /// The lanes of keys of a priority, when there are any.
    pub(crate) fn ring(&self, priority: u8) -> Option<&Ring> {
        self.rings.as_deref()?.get(usize::from(priority))
    }

    pub(crate) fn ring_mut(&mut self, priority: u8) -> Option<&mut Ring> {
        self.rings.as_deref_mut()?.get_mut(usize::from(priority))
    }

    /// The window of a lane.
    pub(crate) fn lane_window(&self, lane: Lane) -> Option<&Window> {
        match lane.lane {
            0 => self.window(lane.priority),
            own => self.ring(lane.priority)?.window(own),
        }
    }

    /// All windows of its lanes.
    pub(crate) fn all_windows(&self) -> impl Iterator<Item = (u8, &Window)> {
        let own = (0..=9).flat_map(|priority| {
            let windows = self.ring(priority).into_iter().flat_map(Ring::windows);
            windows.map(move |window| (priority, window))
        });
        self.windows().chain(own)
    }

    /// The lanes of keys, and whether they have turns.
    pub(crate) fn own_lanes(&self) -> impl Iterator<Item = (Lane, bool)> {
        let queue = self.record.number;
        (0..=9).flat_map(move |priority| {
            let lanes = self.ring(priority).into_iter().flat_map(Ring::lanes);
            lanes.map(move |(lane, has_turns)| {
                let lane = Lane {
                    queue,
                    priority,
                    lane,
                };
                (lane, has_turns)
            })
        })
    }

    /// Whether all lanes of keys that there are are here.
    pub(crate) fn knows_lanes(&self) -> bool {
        let mut rings = self.rings.iter().flat_map(|rings| rings.iter());
        rings.all(Ring::is_known)
    }

    /// Whether a head is at hand that has a turn.
    pub(crate) fn has_turns(&self) -> bool {
        let mut shared = self.windows.iter();
        let mut rings = self.rings.iter().flat_map(|rings| rings.iter());
        shared.any(|window| !window.heads.is_empty()) || rings.any(Ring::has_turns)
    }

    /// Whether jobs that could be granted may be where they must be read first.
    pub(crate) fn may_be_unread(&self) -> bool {
        self.windows.iter().any(|window| window.is_behind)
            || self
                .rings
                .iter()
                .flat_map(|rings| rings.iter())
                .any(Ring::may_be_unread)
    }

    /// What comes next: the highest priority that has anything with a turn.
    pub(crate) fn choose(&mut self) -> Choice {
        let mut rings = self
            .rings
            .as_deref_mut()
            .map(|rings| rings.iter_mut().rev());
        for (priority, window) in (0..=9).rev().zip(self.windows.iter().rev()) {
            let front = Front::of(window);
            let ring = rings.as_mut().and_then(Iterator::next);
            let choice = match (ring, front) {
                (Some(ring), front) => ring.choose(priority, front),
                (None, Front::At(_)) => Choice::Head { priority, lane: 0 },
                (None, Front::Unread(_)) => Choice::Unread,
                (None, Front::Nothing) => continue,
            };
            if choice != Choice::Nothing {
                return choice;
            }
        }
        Choice::Nothing
    }

    /// How many jobs that ended in a state it keeps at most.
    pub(crate) fn closed_max(&self, state: JobState) -> u64 {
        match state == JobState::Dead {
            true => self.record.dead_max.unwrap_or(DEAD_MAX_DEFAULT),
            false => self.record.retained_max.unwrap_or(RETAINED_MAX_DEFAULT),
        }
    }

    /// How many jobs that ended in a state it keeps now.
    pub(crate) fn closed_count(&self, state: JobState) -> u64 {
        let counters = &self.record.counters;
        match state {
            JobState::Done => counters.done_kept,
            JobState::Dead => counters.dead,
            JobState::Cancelled => counters.cancelled_kept,
            JobState::Expired => counters.expired_kept,
            JobState::Scheduled | JobState::Blocked | JobState::Ready | JobState::Leased => 0,
        }
    }

    /// The counter of the done, cancelled or expired jobs that it keeps now.
    pub(crate) fn retained_mut(&mut self, state: JobState) -> Option<&mut u64> {
        let counters = &mut self.record.counters;
        match state {
            JobState::Done => Some(&mut counters.done_kept),
            JobState::Cancelled => Some(&mut counters.cancelled_kept),
            JobState::Expired => Some(&mut counters.expired_kept),
            JobState::Scheduled
            | JobState::Blocked
            | JobState::Ready
            | JobState::Leased
            | JobState::Dead => None,
        }
    }

    pub(crate) fn dead_retention(&self) -> DurationMs {
        self.record
            .dead_retention_ms
            .unwrap_or(DEAD_RETENTION_DEFAULT)
    }

    /// How many of its jobs are in a state now.
    pub(crate) fn count_of(&self, state: JobState) -> u64 {
        let counters = &self.record.counters;
        match state {
            JobState::Scheduled => counters.scheduled,
            JobState::Blocked => counters.blocked,
            JobState::Ready => counters.ready,
            JobState::Leased => counters.leased,
            JobState::Done | JobState::Dead | JobState::Cancelled | JobState::Expired => {
                self.closed_count(state)
            }
        }
    }

    /// The counter of the jobs in a state now. Terminal states but `dead` keep none.
    pub(crate) fn count_mut(&mut self, state: JobState) -> Option<&mut u64> {
        let counters = &mut self.record.counters;
        match state {
            JobState::Scheduled => Some(&mut counters.scheduled),
            JobState::Blocked => Some(&mut counters.blocked),
            JobState::Ready => Some(&mut counters.ready),
            JobState::Leased => Some(&mut counters.leased),
            JobState::Dead => Some(&mut counters.dead),
            JobState::Done | JobState::Cancelled | JobState::Expired => None,
        }
    }
}

/// Bounds of the heads in memory.
#[derive(Debug, Clone, Copy)]
pub struct HeadBudget {
    /// Heads of the shard; default 256 k.
    pub heads_max: usize,
    /// Bytes of their contents; default 32 MiB.
    pub bytes_max: usize,
}

impl Default for HeadBudget {
    fn default() -> Self {
        Self {
            heads_max: 256 << 10,
            bytes_max: 32 << 20,
        }
    }
}

/// All queues of the shard.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    by_number: BTreeMap<QueueNumber, Queue>,
    by_name: BTreeMap<NamespaceName, BTreeMap<QueueName, QueueNumber>>,
    budget: HeadBudget,
    heads: usize,
    bytes: usize,
}

impl Queues {
    pub(crate) fn within(budget: HeadBudget) -> Self {
        Self {
            budget,
            ..Self::default()
        }
    }

    /// Adds a queue. One that was recovered may have ready jobs in every lane.
    pub(crate) fn insert(&mut self, record: QueueRecord) {
        let rings = match record.counters.ready {
            0 => None,
            _ => Some(Box::new(Rings::default().map(|_| Ring::unknown()))),
        };
        let windows = std::array::from_fn(|_| match record.counters.ready {
            0 => Window::default(),
            _ => Window::unknown(),
        });
        let names = self.by_name.entry(record.namespace.clone()).or_default();
        names.insert(record.name.clone(), record.number);
        let queue = Queue {
            waiters: BTreeSet::new(),
            windows,
            rings,
            limit: None,
            rate_used: None,
            record,
        };
        self.by_number.insert(queue.record.number, queue);
    }

    /// Takes a queue out with its waiting fetches; the runs that its heads stood in, one a head.
    pub(crate) fn remove(&mut self, number: QueueNumber) -> Option<(Queue, Vec<RunKey>)> {
        let mut queue = self.by_number.remove(&number)?;
        if let Some(names) = self.by_name.get_mut(&queue.record.namespace) {
            names.remove(&queue.record.name);
            if names.is_empty() {
                self.by_name.remove(&queue.record.namespace);
            }
        }
        let windows = std::mem::take(&mut queue.windows);
        let rings = queue.rings.take().map(|rings| *rings).unwrap_or_default();
        let own = rings.into_iter().flat_map(Ring::into_windows);
        let windows = windows.into_iter().chain(own);
        let heads: Vec<Head> = windows.flat_map(|window| window.heads).collect();
        for head in &heads {
            self.forget(head);
        }
        let runs = heads.iter().map(|head| head.place.run).collect();
        Some((queue, runs))
    }

    /// Puts a queue that was taken out back under its number, with no jobs.
    pub(crate) fn put_back(&mut self, queue: Queue) {
        let names = self.by_name.entry(queue.record.namespace.clone());
        names
            .or_default()
            .insert(queue.record.name.clone(), queue.record.number);
        self.by_number.insert(queue.record.number, queue);
    }

    /// Appends a head at the tail, when the window reaches so far and has room; whether it did.
    pub(crate) fn push_back(&mut self, head: Head) -> bool {
        let (lane, end) = (
            head.place.run.lane,
            (head.place.run.position, head.place.index),
        );
        let bytes = head.job.bytes();
        let has_room = self.heads < self.budget.heads_max && self.bytes < self.budget.bytes_max;
        let Some(window) = self.window_mut(lane) else {
            return false;
        };
        let room = match (has_room, lane.lane) {
            (true, _) => LANE_HEADS_MAX,
            (false, 0) => LANE_HEADS_MIN,
            (false, _) => 0,
        };
        if window.is_behind || window.heads.len() >= room {
            window.is_behind = true;
            return false;
        }
        window.end = Some(end);
        window.note_expiry([&head]);
        window.heads.push_back(head);
        self.heads += 1;
        self.bytes += bytes;
        true
    }

    /// Puts a head at the front, and lets go of the last ones when there are too many. What comes
    /// back is in no window: it will be read again.
    pub(crate) fn push_front(&mut self, head: Head) -> Vec<Head> {
        let bytes = head.job.bytes();
        let Some(window) = self.window_mut(head.place.run.lane) else {
            return vec![head];
        };
        if !window.takes_front() {
            return vec![head];
        }
        if window.end.is_none() {
            window.end = Some((head.place.run.position, head.place.index));
        }
        window.note_expiry([&head]);
        window.heads.push_front(head);
        let evicted = window.evict(LANE_HEADS_MAX);
        self.heads += 1;
        self.bytes += bytes;
        for head in &evicted {
            self.forget(head);
        }
        evicted
    }

    /// Puts a head where it belongs in its lane, which it did not stand in. What comes back is in no
    /// window: it will be read again.
    pub(crate) fn insert_head(&mut self, head: Head) -> Vec<Head> {
        let bytes = head.job.bytes();
        let has_room = self.heads < self.budget.heads_max && self.bytes < self.budget.bytes_max;
        let place = (head.place.run.position, head.place.index);
        let Some(window) = self.window_mut(head.place.run.lane) else {
            return vec![head];
        };
        if window.is_behind && window.end.is_none_or(|end| end < place) {
            return vec![head];
        }
        let at = window.heads.partition_point(|it| it.place < head.place);
        window.note_expiry([&head]);
        window.heads.insert(at, head);
        window.end = window.end.max(Some(place));
        let room = if has_room { LANE_HEADS_MAX } else { 0 };
        let evicted = window.evict(room);
        self.heads += 1;
        self.bytes += bytes;
        for head in &evicted {
            self.forget(head);
        }
        evicted
    }

    /// Takes in what was read behind the end of a window: its heads in order, how far was read,
    /// and whether there is more.
    pub(crate) fn refill(
        &mut self,
        lane: Lane,
        heads: Vec<Head>,
        end: Option<(u64, u8)>,
        is_behind: bool,
    ) {
        self.heads += heads.len();
        self.bytes += heads.iter().map(|head| head.job.bytes()).sum::<usize>();
        if let Some(window) = self.window_mut(lane) {
            window.note_expiry(&heads);
            window.heads.extend(heads);
            window.end = end.or(window.end);
            window.is_behind = is_behind;
        }
    }

    /// Takes the next head of a lane.
    pub(crate) fn pop(&mut self, lane: Lane) -> Option<Head> {
        let window = self.window_mut(lane)?;
        let head = window.heads.pop_front()?;
        self.forget(&head);
        Some(head)
    }

    /// Takes the head that stands at a place, when it is in a window.
    pub(crate) fn take(&mut self, place: &Place) -> Option<Head> {
        let window = self.window_mut(place.run.lane)?;
        let at = window.heads.binary_search_by_key(place, |head| head.place);
        let head = window.heads.remove(at.ok()?)?;
        self.forget(&head);
        Some(head)
    }

    fn forget(&mut self, head: &Head) {
        self.heads -= 1;
        self.bytes -= head.job.bytes();
    }

    pub(crate) fn find_mut(&mut self, number: QueueNumber) -> Option<&mut Queue> {
        self.by_number.get_mut(&number)
    }

    fn window_mut(&mut self, lane: Lane) -> Option<&mut Window> {
        let queue = self.by_number.get_mut(&lane.queue)?;
        match lane.lane {
            0 => queue.window_mut(lane.priority),
            own => queue.ring_mut(lane.priority)?.window_mut(own),
        }
    }

    /// The heads in memory are more than the budget.
    pub(crate) fn is_over_budget(&self) -> bool {
        self.heads > self.budget.heads_max || self.bytes > self.budget.bytes_max
    }

    /// Lets go of the heads of a lane; they will be read again.
    pub(crate) fn let_go(&mut self, lane: Lane) -> Vec<Head> {
        let window = self.window_mut(lane);
        let evicted = window.map(|window| window.evict(0)).unwrap_or_default();
        for head in &evicted {
            self.forget(head);
        }
        evicted
    }

    pub(crate) fn find(&self, number: QueueNumber) -> Option<&Queue> {
        self.by_number.get(&number)
    }

    pub(crate) fn named(&self, namespace: &NamespaceName, name: &QueueName) -> Option<&Queue> {
        self.find(*self.by_name.get(namespace)?.get(name)?)
    }

    /// The queues that a pattern means, in the order of their names.
    pub(crate) fn matching<'a>(
        &'a self,
        namespace: &NamespaceName,
        pattern: &'a QueuePattern,
    ) -> impl Iterator<Item = &'a Queue> {
        let names = self.by_name.get(namespace);
        let one = match pattern {
            QueuePattern::Name(name) => names.and_then(|names| names.get(name)).copied(),
            QueuePattern::Prefix(_) => None,
        };
        let many = match pattern {
            QueuePattern::Name(_) => None,
            QueuePattern::Prefix(_) => names,
        };
        let many = many
            .into_iter()
            .flatten()
            .filter(|(name, _)| pattern.matches(name));
        let numbers = one.into_iter().chain(many.map(|(_, number)| *number));
        numbers.filter_map(|number| self.find(number))
    }

    /// The queues of a namespace in the order of their names.
    pub(crate) fn of(&self, namespace: &NamespaceName) -> impl Iterator<Item = &Queue> {
        let numbers = self.by_name.get(namespace).into_iter().flatten();
        numbers.filter_map(|(_, number)| self.find(*number))
    }

    /// All queues in the order of their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Queue> {
        self.by_number.values()
    }

    /// All queues behind a number, in the order of their numbers.
    pub(crate) fn behind(&self, number: Option<QueueNumber>) -> impl Iterator<Item = &Queue> {
        let bound = number.map_or(Bound::Unbounded, Bound::Excluded);
        let queues = self.by_number.range((bound, Bound::Unbounded));
        queues.map(|(_, queue)| queue)
    }

    pub(crate) fn count(&self) -> usize {
        self.by_number.len()
    }

    pub(crate) fn namespaces(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn has_namespace(&self, namespace: &NamespaceName) -> bool {
        self.by_name.contains_key(namespace)
    }

    /// How many heads and bytes a refill may bring.
    pub(crate) fn refill_room(&self) -> (usize, usize) {
        let heads = self.budget.heads_max.saturating_sub(self.heads);
        let bytes = self.budget.bytes_max.saturating_sub(self.bytes);
        (
            heads.clamp(LANE_HEADS_MIN, 1024),
            bytes.clamp(64 << 10, 4 << 20),
        )
    }

    /// Heads in memory, and bytes of their contents.
    pub(crate) fn heads(&self) -> (usize, usize) {
        (self.heads, self.bytes)
    }
}
