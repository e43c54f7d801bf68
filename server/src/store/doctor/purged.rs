//! What is left of purged queues: a sweep erases it in no order that would keep it whole, so it is
//! counted only where somebody still does, by the batches of its jobs.

use std::sync::Arc;

use ganger_engine::{
    batch::Standing,
    records::{Entry, JobRecord, LeftRun, Place, QueueNumber, Run, RunKey},
};
use ganger_protocol::job::JobState;

use super::Examiner;
use crate::store::{StoreError, keys::Key};

impl Examiner<'_> {
    /// Whether this is the old number of a queue.
    pub(super) fn is_purged(&self, queue: QueueNumber) -> bool {
        self.queues.get(&queue).is_some_and(|it| it.is_purged)
    }

    /// A run of a purged queue.
    pub(super) fn purged_run(
        &mut self,
        run: RunKey,
        record: Run,
        left: Option<&LeftRun>,
    ) -> Result<(), StoreError> {
        for (entry, index) in record.entries.into_iter().zip(0_u8..) {
            let has_left = left.is_some_and(|left| left.left.contains(index));
            let (packed, state) = match entry {
                Entry::Job(packed) => (packed, JobState::Ready),
                Entry::Scheduled(_, packed) => (packed, JobState::Scheduled),
                Entry::Reference(_) => continue,
            };
            if has_left {
                continue;
            }
            let job = Place { run, index }.job_id(self.store.shard());
            let content = match packed.content {
                Some(content) => Some(content),
                None => self.store.spilled(&job)?,
            };
            if let Some(content) = content {
                self.member(content.batch, Standing::of_job(state, 0, 0));
            }
        }
        Ok(())
    }

    /// The record of a job of a purged queue.
    pub(super) fn purged_job(&mut self, key: &Key, job: &JobRecord) -> Result<(), StoreError> {
        let content = match &job.content {
            Some(content) => Some(Arc::clone(content)),
            None => self.store.spilled(&job.id)?,
        };
        self.member_of_record(key, job, content.as_deref());
        Ok(())
    }
}
