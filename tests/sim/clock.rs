//! The two clocks of the simulated machine. Time moves when the simulation says so.

use ganger_engine::command::{Mono, Now};
use ganger_protocol::Timestamp;

/// The wall clock when a run begins.
const EPOCH: i64 = 1_800_000_000_000;

/// The clocks.
#[derive(Debug)]
pub struct Clock {
    /// ms since the run began.
    elapsed: u64,
    /// When the process started.
    booted: u64,
    /// How wrong the wall clock is.
    offset: i64,
    /// The latest wall time between two steps backwards, one after the other.
    peaks: Vec<u64>,
}

/// A stretch of time in which the wall clock did not step backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stretch(usize);

impl Clock {
    pub fn new() -> Self {
        Self {
            elapsed: 0,
            booted: 0,
            offset: 0,
            peaks: vec![0],
        }
    }

    pub fn elapsed(&self) -> u64 {
        self.elapsed
    }

    pub fn now(&self) -> Now {
        Now {
            wall: Timestamp(self.wall()),
            mono: Mono(self.elapsed - self.booted),
        }
    }

    fn wall(&self) -> u64 {
        u64::try_from(EPOCH + self.offset).unwrap_or_default() + self.elapsed
    }

    pub fn advance(&mut self, ms: u64) {
        self.elapsed += ms;
        self.touch();
    }

    /// Steps the wall clock.
    pub fn jump(&mut self, ms: i64) {
        self.offset += ms;
        if ms < 0 {
            self.peaks.push(0);
        }
        self.touch();
    }

    /// The process starts anew.
    pub fn boot(&mut self) {
        self.booted = self.elapsed;
    }

    fn touch(&mut self) {
        let wall = self.wall();
        if let Some(peak) = self.peaks.last_mut() {
            *peak = wall.max(*peak);
        }
    }

    pub fn stretch(&self) -> Stretch {
        Stretch(self.peaks.len() - 1)
    }

    /// The latest wall time that was ever seen.
    pub fn latest(&self) -> u64 {
        self.latest_since(Stretch(0))
    }

    /// The latest wall time that was ever seen since a stretch began.
    pub fn latest_since(&self, stretch: Stretch) -> u64 {
        self.peaks[stretch.0..]
            .iter()
            .copied()
            .max()
            .unwrap_or_default()
            .max(self.wall())
    }
}
