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

    /// Whether a batch was taken that is not settled.
    pub(super) fn contains(&self, batch: BatchId) -> bool {
        self.live.contains_key(&batch)
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use ganger_engine::records::{Content, Lane, PackedJob, Place, QueueNumber, RunKey};
    use ganger_protocol::{JobSpec, Timestamp};

    use super::*;

    fn batch(id: u64, parent: Option<u64>, pending: u64) -> BatchRecord {
        BatchRecord {
            id: BatchId(id),
            namespace: "default".parse().unwrap(),
            description: String::new(),
            parent: parent.map(BatchId),
            counters: BatchCounters {
                total: pending,
                untried: pending,
                pending,
                ..BatchCounters::default()
            },
            on_complete: None,
            on_success: None,
            on_settled: None,
            opened_at: Timestamp(0),
            committed_at: Some(Timestamp(0)),
            lapsed: false,
            has_edges: false,
            completed_at: None,
            settled_at: None,
        }
    }

    fn job(position: u64, batch: u64) -> JobRecord {
        let lane = Lane {
            queue: QueueNumber(1),
            priority: 5,
            lane: 0,
        };
        let place = Place {
            run: RunKey { lane, position },
            index: 0,
        };
        let content = Content::from(JobSpec {
            batch: Some(BatchId(batch)),
            ..JobSpec::new("k".parse().unwrap(), Vec::new())
        });
        let packed = PackedJob {
            pushed_at: Timestamp(0),
            spilled_parts: 0,
            content: Some(Arc::new(content)),
        };
        JobRecord::fresh(place.job_id(0), place, packed)
    }

    #[test]
    fn members_that_did_not_come_are_deleted() {
        let mut batches = Batches::default();
        batches.take(batch(1, None, 2));
        batches.take(batch(2, Some(1), 3));
        let (mut first, mut tried) = (job(1, 2), job(2, 2));
        tried.attempt = 1;
        batches.member(&mut first);
        batches.member(&mut tried);
        let finished = batches.finish();
        let of = |id| {
            finished
                .iter()
                .find(|it| it.id == BatchId(id))
                .unwrap()
                .counters
        };
        let inner = BatchCounters {
            total: 3,
            untried: 1,
            pending: 2,
            deleted: 1,
            ..BatchCounters::default()
        };
        assert_eq!(of(2), inner);
        // Of its two members the batch within it has come, and a job has not.
        let outer = BatchCounters {
            total: 2,
            untried: 1,
            pending: 1,
            deleted: 1,
            ..BatchCounters::default()
        };
        assert_eq!(of(1), outer);
    }

    #[test]
    fn a_job_whose_batch_is_gone_is_of_none() {
        let mut batches = Batches::default();
        let mut job = job(1, 7);
        batches.member(&mut job);
        assert_eq!(job.batch, None);
        assert_eq!(job.content.unwrap().batch, None);
    }
}
