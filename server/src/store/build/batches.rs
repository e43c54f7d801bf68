//! Batches in a store that is made anew: their pending members are those that came over. The others
//! are counted as deleted, so that no batch waits for what is gone.

use std::collections::BTreeMap;

use ganger_engine::{
    batch::Standing,
    records::{BatchRecord, JobRecord},
};
use ganger_protocol::{BatchId, batch::BatchCounters, job::JobState};

/// Batches that are not settled, and the members of each that came.
#[derive(Debug, Default)]
pub(super) struct Batches {
    live: BTreeMap<BatchId, (BatchRecord, BatchCounters)>,
}

impl Batches {
    /// Takes a batch that is not settled. A parent comes before it.
    pub(super) fn take(&mut self, mut batch: BatchRecord) {
        batch.parent = batch.parent.filter(|parent| self.live.contains_key(parent));
        self.live
            .insert(batch.id, (batch, BatchCounters::default()));
    }

    /// Takes a member. One that is not over and whose batch is gone becomes a job of no batch.
    pub(super) fn member(&mut self, job: &mut JobRecord) {
        let (Some(batch), false) = (job.batch, job.state.is_terminal()) else {
            return;
        };
        let Some((_, counted)) = self.live.get_mut(&batch) else {
            job.batch = None;
            if let Some(content) = &mut job.content {
                std::sync::Arc::make_mut(content).batch = None;
            }
            return;
        };
        Standing::of_job(JobState::Ready, job.attempt, job.releases)
            .count(counted, |count| *count += 1);
    }

    /// All of them with what came; the engine goes on with those that are over by it.
    pub(super) fn finish(mut self) -> Vec<BatchRecord> {
        let mut finished = Vec::new();
        // What was opened later is not above what was opened earlier.
        while let Some((_, (mut batch, counted))) = self.live.pop_last() {
            let counters = &mut batch.counters;
            counters.deleted += counters.pending.saturating_sub(counted.pending);
            counters.pending = counted.pending;
            counters.untried = counted.untried;
            counters.total = counters.pending + counters.settled();
            if let Some((_, above)) = batch.parent.and_then(|id| self.live.get_mut(&id)) {
                batch.standing().count(above, |count| *count += 1);
            }
            finished.push(batch);
        }
        finished
    }
}
