//! What a worker has done, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a worker has done since it was built.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Tally {
    /// Attempts started.
    pub granted_count: u64,
    /// Attempts that succeeded.
    pub acked_count: u64,
    /// Attempts that failed, those that panicked among them.
    pub failed_count: u64,
    /// Attempts that panicked.
    pub panicked_count: u64,
    /// Leases given back.
    pub released_count: u64,
    /// Leases that ended before their attempt was over, or before the server heard of it.
    pub lost_count: u64,
    /// Answers that the server had heard before, because its reply was lost.
    pub already_count: u64,
}

/// A [`Tally`] that is being kept.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) granted: Counter,
    pub(super) acked: Counter,
    pub(super) failed: Counter,
    pub(super) panicked: Counter,
    pub(super) released: Counter,
    pub(super) lost: Counter,
    pub(super) already: Counter,
}

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        // Nothing else is read in the light of a counter.
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Counters {
    pub(super) fn tally(&self) -> Tally {
        Tally {
            granted_count: self.granted.count(),
            acked_count: self.acked.count(),
            failed_count: self.failed.count(),
            panicked_count: self.panicked.count(),
            released_count: self.released.count(),
            lost_count: self.lost.count(),
            already_count: self.already.count(),
        }
    }
}
