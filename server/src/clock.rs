//! The only reader of clocks. Everybody else is given a [`Now`], or a [`Stopwatch`] to measure with.
//!
//! What the times mean is the engine's: wall time for schedules, monotonic time for sessions and
//! leases. Tests use a [`ManualClock`], which moves only when it is told to.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use ganger_engine::command::{Mono, Now};
use ganger_protocol::{DurationMs, Timestamp};

/// Tells both times. A clone tells the same ones.
#[derive(Debug, Clone)]
pub struct Clock(Source);

#[derive(Debug, Clone)]
enum Source {
    /// The clocks of the machine; monotonic time counts from this instant.
    System(Instant),
    Manual(Arc<Hands>),
}

impl Clock {
    /// The clocks of the machine. Monotonic time begins now, at 0.
    pub fn system() -> Self {
        Self(Source::System(monotonic()))
    }

    /// Both times at this moment. A wall clock before 1970 counts as 1970.
    pub fn now(&self) -> Now {
        match &self.0 {
            Source::System(start) => Now {
                wall: wall(),
                mono: Mono(millis(monotonic().saturating_duration_since(*start))),
            },
            Source::Manual(hands) => Now {
                wall: Timestamp(hands.wall.load(Ordering::Acquire)),
                mono: Mono(hands.mono.load(Ordering::Acquire)),
            },
        }
    }

    /// How long it is until the wall clock shows `wait` more than in `now`, which was a moment ago: finer
    /// than a [`Now`] tells, since up to a ms of `wait` has passed when it is told.
    pub fn until(&self, now: Now, wait: DurationMs) -> Duration {
        let wait_at_most = Duration::from_millis(wait.0);
        match &self.0 {
            Source::System(_) => {
                let at = Duration::from_millis(now.wall.0) + wait_at_most;
                at.saturating_sub(since_epoch()).min(wait_at_most)
            }
            Source::Manual(_) => wait_at_most,
        }
    }
}

/// A clock for tests: it stands still until it is moved.
#[derive(Debug, Clone, Default)]
pub struct ManualClock(Arc<Hands>);

#[derive(Debug, Default)]
struct Hands {
    wall: AtomicU64,
    mono: AtomicU64,
}

impl ManualClock {
    /// A clock whose wall shows `wall` and whose monotonic time is 0.
    pub fn starting_at(wall: Timestamp) -> Self {
        let clock = Self::default();
        clock.step_wall(wall);
        clock
    }

    /// The clock that this one moves.
    pub fn clock(&self) -> Clock {
        Clock(Source::Manual(Arc::clone(&self.0)))
    }

    /// Lets time pass: both clocks move.
    pub fn advance(&self, by: DurationMs) {
        self.0.wall.fetch_add(by.0, Ordering::AcqRel);
        self.0.mono.fetch_add(by.0, Ordering::AcqRel);
    }

    /// Sets the wall clock, in either direction, without any time passing.
    pub fn step_wall(&self, to: Timestamp) {
        self.0.wall.store(to.0, Ordering::Release);
    }
}

/// Measures how long something takes, finer than [`Now`] does.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch(Instant);

impl Stopwatch {
    /// Begins to measure.
    pub fn start() -> Self {
        Self(monotonic())
    }

    /// The time since the start.
    pub fn elapsed(&self) -> Duration {
        monotonic().saturating_duration_since(self.0)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "this file is the one reader of the clocks"
)]
fn monotonic() -> Instant {
    Instant::now()
}

#[expect(
    clippy::disallowed_methods,
    reason = "this file is the one reader of the clocks"
)]
fn since_epoch() -> Duration {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

fn wall() -> Timestamp {
    Timestamp(millis(since_epoch()))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_it_is_told_to() {
        let hands = ManualClock::starting_at(Timestamp(1_000));
        let clock = hands.clock();
        assert_eq!(clock.now(), clock.now());
        hands.advance(DurationMs(250));
        assert_eq!(clock.now().wall, Timestamp(1_250));
        assert_eq!(clock.now().mono, Mono(250));
        let wait = Duration::from_millis(50);
        assert_eq!(clock.until(clock.now(), DurationMs(50)), wait);
    }

    #[test]
    fn a_step_of_the_wall_clock_leaves_the_monotonic_one_alone() {
        let hands = ManualClock::starting_at(Timestamp(5_000));
        hands.step_wall(Timestamp(10));
        assert_eq!(hands.clock().now().wall, Timestamp(10));
        assert_eq!(hands.clock().now().mono, Mono(0));
    }

    #[test]
    fn the_clock_of_the_machine_never_runs_backwards() {
        let clock = Clock::system();
        let earlier = clock.now();
        assert!(clock.now().mono >= earlier.mono);
        assert!(earlier.wall > Timestamp(1_600_000_000_000));
        let wait = clock.until(earlier, DurationMs(50));
        assert!(
            wait < Duration::from_millis(50),
            "part of a ms has passed: {wait:?}"
        );
    }
}
