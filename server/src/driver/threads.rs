//! What drives a shard besides its sessions: the sync thread, the checkpoint thread, the timer.

use std::{
    sync::{Arc, MutexGuard, OnceLock, PoisonError, atomic::Ordering},
    time::Duration,
};

use ganger_engine::command::Command;
use ganger_protocol::DurationMs;

use super::{Core, Delivery, Inner, Part, Released, Shard, Sleep, UNDURABLE_BYTES_MAX};
use crate::{
    clock::Stopwatch,
    store::{CheckpointProgress, StoreError, ahead::Ahead},
    tasks::Tasks,
};

/// How long the checkpoint thread sleeps between two looks at a store that has something to carry.
const CHECKPOINT_LOOK_EVERY: Duration = Duration::from_millis(100);

/// How long it sleeps where there is nothing, unless it is woken.
const CHECKPOINT_REST: Duration = Duration::from_secs(1);

/// How long before its time what a timer asks for is read.
const READ_AHEAD: DurationMs = DurationMs(2_000);

/// How long the thread that reads ahead sleeps between two looks.
const AHEAD_REST_MIN: Duration = Duration::from_millis(100);
const AHEAD_REST_MAX: Duration = Duration::from_secs(1);

/// How long the timer waits for room.
const BREATH: Duration = Duration::from_millis(2);

/// What came of a turn of the timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Something was due.
    Done,
    /// Nothing is for so long, or for ever, unless it is woken.
    Rest(Option<Duration>),
}

impl Shard {
    /// Starts the threads.
    ///
    /// # Errors
    /// When the system has no thread to give.
    pub fn start(self: &Arc<Self>, tasks: &Tasks) -> std::io::Result<()> {
        for (name, part) in [("sync", Part::First), ("sync-2", Part::Second)] {
            let shard = Arc::clone(self);
            tasks.thread(name, move || shard.run_sync(part))?;
        }
        let shard = Arc::clone(self);
        tasks.thread("checkpoint", move || shard.run_checkpoint())?;
        let shard = Arc::clone(self);
        tasks.thread("read-ahead", move || shard.run_read_ahead())?;
        let shard = Arc::clone(self);
        tasks.thread("timer", move || shard.run_timer())
    }

    /// Asks the sync thread to end once everything is durable.
    pub fn stop(&self) {
        self.lock().is_stopping = true;
        self.dirty.notify_all();
        self.needed.notify_all();
        let resting = [&self.checkpointer, &self.reader, &self.timer];
        for thread in resting.into_iter().filter_map(OnceLock::get) {
            thread.unpark();
        }
    }

    fn is_stopping(&self) -> bool {
        self.lock().is_stopping || self.has_failed()
    }

    fn run_sync(&self, part: Part) {
        loop {
            match self.sync_once(part) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => {
                    self.fail(error);
                    return;
                }
            }
        }
    }

    /// Waits for something to do, seals it, syncs it, and releases what waited for it; `false`
    /// when there is nothing left and the shard stops.
    pub(super) fn sync_once(&self, part: Part) -> Result<bool, StoreError> {
        let waited = match part {
            Part::First => self.wait_for_changes(),
            Part::Second => self.wait_for_need(),
        };
        let Some(mut inner) = waited else {
            return Ok(false);
        };
        // Its own one: what wakes the other thread must not be lost on this one.
        let woken = match part {
            Part::First => &self.dirty,
            Part::Second => &self.needed,
        };
        while self.store.is_full() && !self.has_failed() {
            // The checkpoint thread makes room; meanwhile nothing is sealed and sessions stop
            // reading.
            let waited = woken.wait_timeout(inner, Duration::from_millis(1));
            (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        let sealed = inner.core.seal_for_sync(self.clock.now())?;
        drop(inner);
        let mut durable = self.store.write(self.store.gather()?)?;
        if durable < sealed {
            // Another has gathered some of it and is still writing: the other sync thread, or a
            // checkpoint or a backup, which tell nobody when they are done.
            durable = self.store.sync()?;
        }
        self.wake_checkpoint();
        let mut delivery = Delivery::default();
        let mut inner = self.lock();
        let released: Released = inner.core.synced(durable);
        inner.route(released, &mut delivery);
        let is_relieved = inner.core.undurable_bytes() <= UNDURABLE_BYTES_MAX / 2;
        let replies = delivery.replies.len();
        self.sending.fetch_add(replies, Ordering::AcqRel);
        drop(inner);
        delivery.send(self.clock.now().mono);
        self.sending.fetch_sub(replies, Ordering::AcqRel);
        if is_relieved && self.is_congested.swap(false, Ordering::AcqRel) {
            self.room.notify_waiters();
        }
        Ok(true)
    }

    /// Waits for changes that somebody waits for, or that are old enough; `None` when there are none
    /// and the shard stops.
    fn wait_for_changes(&self) -> Option<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        let mut dirty_since = None;
        while !inner.core.is_awaited() {
            if self.has_failed() {
                return None;
            }
            let is_unsynced = inner.core.is_unsynced();
            if inner.is_stopping {
                if is_unsynced {
                    break;
                }
                return None;
            }
            if !is_unsynced {
                inner.sync_sleeps = Sleep::UntilDirty;
                let waited = self.dirty.wait(inner);
                inner = waited.unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            // Counted from the first change: a further one does not begin it anew.
            inner.sync_sleeps = Sleep::UntilAwaited;
            let waited = dirty_since.get_or_insert_with(Stopwatch::start).elapsed();
            let Some(rest) = self.unawaited_sync_after.checked_sub(waited) else {
                break;
            };
            let waited = self.dirty.wait_timeout(inner, rest);
            (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        inner.sync_sleeps = Sleep::Not;
        (!self.has_failed()).then_some(inner)
    }

    /// Waits for changes that somebody waits for while the first thread is at work; `None` when the
    /// shard stops.
    fn wait_for_need(&self) -> Option<MutexGuard<'_, Inner>> {
        let mut inner = self.lock();
        loop {
            if inner.is_stopping || self.has_failed() {
                return None;
            }
            if self.wants_second(&inner) {
                return Some(inner);
            }
            inner.second_sleeps = true;
            let waited = self.needed.wait(inner);
            inner = waited.unwrap_or_else(PoisonError::into_inner);
            inner.second_sleeps = false;
        }
    }

    fn run_checkpoint(&self) {
        let _ = self.checkpointer.set(std::thread::current());
        let mut since = Stopwatch::start();
        // The last group may wait for room.
        while !self.is_stopping() || self.store.is_full() {
            if !self
                .store
                .checkpoint_due(since.elapsed() >= self.checkpoint_every)
            {
                self.rest_before_checkpoint();
                continue;
            }
            match self.store.checkpoint_slice() {
                Ok(CheckpointProgress::More) => {}
                Ok(CheckpointProgress::Done) => since = Stopwatch::start(),
                Err(error) => {
                    self.fail(error);
                    return;
                }
            }
        }
    }

    /// Sleeps until another look at the store is worth it.
    fn rest_before_checkpoint(&self) {
        if !self.store.is_settled() {
            std::thread::park_timeout(CHECKPOINT_LOOK_EVERY);
            return;
        }
        self.checkpoint_rests.store(true, Ordering::SeqCst);
        // What became durable before that found nobody to wake.
        if self.store.is_settled() {
            std::thread::park_timeout(CHECKPOINT_REST);
        }
    }

    /// Something is durable that a checkpoint has to carry.
    fn wake_checkpoint(&self) {
        if self.checkpoint_rests.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.checkpointer.get()
        {
            thread.unpark();
        }
    }

    fn run_read_ahead(&self) {
        let _ = self.reader.set(std::thread::current());
        let mut last = None;
        while !self.is_stopping() {
            let until = self.clock.now().wall.plus(READ_AHEAD);
            match self.store.read_ahead(last, until) {
                Ok(Ahead::To(timer)) => last = Some(timer),
                Ok(Ahead::Done(next)) => {
                    let wait = next.map_or(READ_AHEAD, |next| next.since(until));
                    let wait = Duration::from_millis(wait.0);
                    std::thread::park_timeout(wait.clamp(AHEAD_REST_MIN, AHEAD_REST_MAX));
                }
                Err(error) => {
                    self.fail(error);
                    return;
                }
            }
        }
    }

    /// Whether what is due may go on: a burst of it stops before others would have to wait for
    /// syncs and checkpoints.
    fn has_room_for_due(&self) -> bool {
        let undurable_bytes = self.look(Core::undurable_bytes);
        undurable_bytes <= UNDURABLE_BYTES_MAX / 8 && !self.store.is_filling()
    }

    /// Sleeps until the next thing is due, does a bounded slice of it, and so on.
    fn run_timer(&self) {
        let _ = self.timer.set(std::thread::current());
        while !self.is_stopping() {
            match self.timer_turn() {
                Turn::Done => self.give_way(),
                Turn::Rest(Some(rest)) => std::thread::park_timeout(rest),
                Turn::Rest(None) => std::thread::park(),
            }
        }
    }

    /// Does a slice of what is due, when anything is.
    pub(super) fn timer_turn(&self) -> Turn {
        let (now, wait) = {
            let mut inner = self.lock();
            let now = self.clock.now();
            let wait = inner.core.next_wakeup(now);
            inner.timer_at = wait.map(|wait| now.mono.plus(wait));
            (now, wait)
        };
        match wait {
            None => Turn::Rest(None),
            Some(DurationMs(0)) if self.has_room_for_due() => {
                self.submit([Command::Tick]);
                Turn::Done
            }
            Some(DurationMs(0)) => Turn::Rest(Some(BREATH)),
            Some(wait) => Turn::Rest(Some(self.clock.until(now, wait))),
        }
    }
}
