//! What batches and their members say of each other: members that are kept are counted anew, those
//! that are gone have only the sum to vouch for them.

use ganger_engine::{
    batch::{Standing, batch_of, timer},
    records::{BatchRecord, Content, JobRecord, Timer},
};
use ganger_protocol::{BatchId, batch::BatchEvent, job::JobState};

use super::Examiner;
use crate::store::{StoreError, bad_key, batch, damaged, keys::Key};

impl Examiner<'_> {
    /// A member of a batch stands so.
    pub(super) fn member(&mut self, batch: Option<BatchId>, standing: Standing) {
        if let Some(batch) = batch {
            let counted = self.members.entry(batch).or_default();
            standing.count(counted, |count| *count += 1);
        }
    }

    /// The same of a job that has a record.
    pub(super) fn member_of_record(
        &mut self,
        key: &Key,
        job: &JobRecord,
        content: Option<&Content>,
    ) {
        if content.is_some_and(|content| content.batch != job.batch) {
            self.find(key, "it is a member of another batch than was pushed");
        }
        let is_running = job.state == JobState::Leased;
        let grants_over = job.attempt.saturating_sub(u32::from(is_running));
        let standing = Standing::of_job(job.state, grants_over, job.releases);
        self.member(job.batch, standing);
    }

    /// Looks at a batch. Its jobs were looked at already; batches in it may follow.
    pub(super) fn batch(&mut self, key: &Key, body: &[u8]) -> Result<(), StoreError> {
        let (is_settled, id) = key.to_batch().ok_or_else(|| bad_key(key))?;
        let batch = batch::batch(id, body).map_err(damaged(key))?;
        if id.0 >= self.head.reserved {
            self.find(key, "its number was never given");
        }
        if is_settled != batch.settled_at.is_some() {
            self.find(key, "it is settled and among the others, or the reverse");
        }
        if is_settled != batch.has_come_to(BatchEvent::Settled) {
            self.find(key, "it is settled with pending members, or the reverse");
        }
        let counters = &batch.counters;
        if counters.total != counters.pending + counters.settled() {
            self.find(key, "its members do not add up to their total");
        }
        for event in BatchEvent::ALL {
            let callback = batch.callback(event);
            let is_missing = callback.is_some_and(|callback| callback.pushed.is_none());
            if is_missing && batch.has_come_to(event) {
                self.find(key, format!("{} was never pushed", event.field()));
            }
        }
        if let Some(at) = batch.deadline() {
            self.vouched(key, &Key::timer(&timer(id, at)), "its timer")?;
        }
        if batch.parent.is_some() {
            self.member(batch.parent, batch.standing());
        }
        let is_bare = is_settled && counters.dead == 0 && !self.members.contains_key(&id);
        if !is_bare {
            self.batches.insert(id, batch);
        }
        Ok(())
    }

    /// Compares what was counted with what the batches say. A batch that is forgotten leaves its
    /// dead members behind, and how it stood in its parent.
    pub(super) fn compare_batches(&mut self) {
        let members = std::mem::take(&mut self.members);
        let batches = std::mem::take(&mut self.batches);
        for (id, counted) in &members {
            if counted.pending > 0 && !batches.contains_key(id) {
                let what = format!("it is missing, and has {} members", counted.pending);
                self.find(&Key::batch(false, *id), what);
            }
        }
        for (id, batch) in batches {
            let (key, kept) = (Key::batch(batch.settled_at.is_some(), id), batch.counters);
            let counted = members.get(&id).copied().unwrap_or_default();
            for (what, is_right, kept, counted) in [
                (
                    "pending",
                    kept.pending == counted.pending,
                    kept.pending,
                    counted.pending,
                ),
                (
                    "untried",
                    kept.untried == counted.untried,
                    kept.untried,
                    counted.untried,
                ),
                ("dead", kept.dead >= counted.dead, kept.dead, counted.dead),
            ] {
                if !is_right {
                    self.find(&key, format!("it has {counted} {what} members, not {kept}"));
                }
            }
        }
    }

    /// Whether a batch waits for this timer. One that is damaged was found where it lies.
    pub(super) fn is_awaited_by_batch(&self, timer: &Timer) -> Result<bool, StoreError> {
        let id = batch_of(timer);
        for is_settled in [false, true] {
            let is_due = |batch: &BatchRecord| batch.deadline() == Some(timer.at);
            match self.store.batch_of(&Key::batch(is_settled, id)) {
                Ok(None) => {}
                Ok(Some(batch)) if !is_due(&batch) => {}
                Ok(Some(_)) | Err(StoreError::Damaged { .. }) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        Ok(false)
    }
}
