//! Timers by the wall clock: the next ones in memory, the rest in the store.
//!
//! Like a lane's window: everything up to `end` is here, behind it there may be more.

use std::collections::BTreeSet;

use ganger_protocol::{DurationMs, JobId, Timestamp};

use crate::records::{Timer, TimerKind};

/// Timers in memory at most.
const TIMERS_MAX: usize = 16 << 10;

/// Timers that one refill brings.
pub(crate) const REFILL: u32 = 1024;

/// Timers in memory below which the next are read, before they are missed.
const TIMERS_LOW: usize = 512;

/// How many timers fire together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DueMax {
    /// Of those with the time 0: they were set to be due at once.
    pub(crate) at_once: usize,
    /// Of the others.
    pub(crate) timed: usize,
}

/// The next timers.
#[derive(Debug)]
pub(crate) struct Schedule {
    timers: BTreeSet<Timer>,
    is_behind: bool,
    end: Option<Timer>,
}

impl Schedule {
    /// A schedule of which nothing is known yet.
    pub(crate) fn unknown() -> Self {
        Self {
            timers: BTreeSet::new(),
            is_behind: true,
            end: None,
        }
    }

    /// Whether a timer ought to be in memory and is not.
    pub(crate) fn misses(&self, timer: &Timer) -> bool {
        let is_known = !self.is_behind || self.end.is_some_and(|end| *timer <= end);
        is_known && !self.timers.contains(timer)
    }

    /// A timer was written to the open group.
    pub(crate) fn insert(&mut self, timer: Timer) {
        if self.is_behind && self.end.is_none_or(|end| timer > end) {
            return;
        }
        self.timers.insert(timer);
        if self.timers.len() > TIMERS_MAX {
            self.timers.pop_last();
            self.is_behind = true;
            self.end = self.timers.last().copied();
        }
    }

    pub(crate) fn remove(&mut self, timer: &Timer) {
        self.timers.remove(timer);
    }

    /// Takes in what was read behind the end, and how far that was.
    pub(crate) fn refill(&mut self, timers: &[Timer], end: Option<Timer>, at_end: bool) {
        self.timers.extend(timers);
        self.end = end.or(self.end);
        self.is_behind = !at_end;
    }

    /// Where to read on, when few timers are left in memory.
    pub(crate) fn refill_after(&self) -> Option<Option<Timer>> {
        (self.is_behind && self.timers.len() < TIMERS_LOW).then_some(self.end)
    }

    /// Timers that are due, the earliest first: a slice of those that are due at once, whatever the
    /// time, and one of the others, so that neither keeps the other from firing.
    pub(crate) fn due(&self, now: Timestamp, max: DueMax) -> Vec<Timer> {
        let others = Timer {
            at: Timestamp(1),
            what: TimerKind::Due,
            id: [0; JobId::BYTES],
        };
        let at_once = self.timers.range(..others).take(max.at_once);
        let timed = self.timers.range(others..);
        let timed = timed.take_while(|timer| timer.at <= now).take(max.timed);
        at_once.chain(timed).copied().collect()
    }

    /// How long until the next one is due or must be read.
    pub(crate) fn next(&self, now: Timestamp) -> Option<DurationMs> {
        match self.timers.first() {
            Some(timer) => Some(timer.at.since(now)),
            None => self.is_behind.then_some(DurationMs::ZERO),
        }
    }

    pub(crate) fn count(&self) -> usize {
        self.timers.len()
    }
}
