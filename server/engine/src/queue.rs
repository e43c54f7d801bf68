//! Queues by namespace and name, their counters, their waiting fetches, and the windows of their
//! lanes within one budget of heads.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use ganger_protocol::{DurationMs, NamespaceName, QueueName, QueuePattern, job::JobState};

use crate::{
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
}

impl Queue {
    pub(crate) fn window(&self, priority: u8) -> Option<&Window> {
        self.windows.get(usize::from(priority))
    }

    fn window_mut(&mut self, priority: u8) -> Option<&mut Window> {
        self.windows.get_mut(usize::from(priority))
    }

    /// The windows with their priorities, the highest first.
    pub(crate) fn windows(&self) -> impl Iterator<Item = (u8, &Window)> {
        (0..=9).rev().zip(self.windows.iter().rev())
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
        let windows = std::array::from_fn(|_| match record.counters.ready {
            0 => Window::default(),
            _ => Window::unknown(),
        });
        let names = self.by_name.entry(record.namespace.clone()).or_default();
        names.insert(record.name.clone(), record.number);
        let queue = Queue {
            waiters: BTreeSet::new(),
            windows,
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
        let heads: Vec<Head> = windows
            .into_iter()
            .flat_map(|window| window.heads)
            .collect();
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
        let room = if has_room {
            LANE_HEADS_MAX
        } else {
            LANE_HEADS_MIN
        };
        if window.is_behind || window.heads.len() >= room {
            window.is_behind = true;
            return false;
        }
        window.end = Some(end);
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
        window.heads.push_front(head);
        let mut evicted = Vec::new();
        while window.heads.len() > LANE_HEADS_MAX
            && let Some(last) = window.heads.pop_back()
        {
            window.is_behind = true;
            window.end = window
                .heads
                .back()
                .map(|head| (head.place.run.position, head.place.index));
            evicted.push(last);
        }
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
            window.heads.extend(heads);
            window.end = end.or(window.end);
            window.is_behind = is_behind;
        }
    }

    /// Takes the next head of a priority.
    pub(crate) fn pop(&mut self, queue: QueueNumber, priority: u8) -> Option<Head> {
        let window = self.by_number.get_mut(&queue)?.window_mut(priority)?;
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
        self.by_number
            .get_mut(&lane.queue)?
            .window_mut(lane.priority)
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
