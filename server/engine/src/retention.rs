//! Retention: how long a job that is over stays visible, and how many of them a queue keeps.
//!
//! A job is over at the moment it ends, whether it is kept or not: its key is free, its batch and its
//! queue have counted it. What is kept is its record, a row of the index of closed jobs and a timer.
//! Dead jobs are kept by their queue's own rules, and are the only ones that come back (`dead.rs`).

use std::collections::BTreeSet;

use ganger_protocol::{DurationMs, event::EventName, job::JobState, request::AckItem};

use crate::{
    Engine,
    command::Now,
    facts::{Fact, Facts, Need},
    lease::{Lease, LeaseKey},
    move_job::{closed_row, retention_timer},
    records::{BlobKind, Closed, JobRecord, QueueNumber, bytes_parts},
};

/// Closed jobs that one tick removes from a queue that has too many of a state.
const OVERFULL_SLICE: usize = 64;

/// Queues that have too many and that one tick looks at.
const OVERFULL_QUEUES: usize = 4;

/// States in which a queue keeps jobs.
const CLOSED: [JobState; 4] = [
    JobState::Done,
    JobState::Dead,
    JobState::Cancelled,
    JobState::Expired,
];

/// Whether a job in this state is counted by its outcome and only looked at any more.
pub(crate) const fn is_retained(state: JobState) -> bool {
    matches!(
        state,
        JobState::Done | JobState::Cancelled | JobState::Expired
    )
}

/// Whether an acked job may have to be kept: then it must be read.
pub(crate) fn may_be_kept(item: &AckItem, lease: &Lease) -> bool {
    lease.key == LeaseKey::Unread
        || match item.retain_ms {
            Some(retention) => retention > DurationMs::ZERO,
            None => lease.retains,
        }
}

impl Engine {
    /// How long a job is kept that ends now and is not dead: as its push says, else its queue.
    pub(crate) fn retention_of(&self, record: &JobRecord) -> DurationMs {
        let own = record.content.as_ref().and_then(|it| it.retain_ms);
        let queue = self.queues.find(record.queue);
        let retention = own.or_else(|| queue?.record.retain_ms);
        retention.unwrap_or_default()
    }

    /// A job was acked that may have to be kept: its record is, or everything of it is deleted.
    pub(crate) fn keep_done(&mut self, now: Now, item: &AckItem, lease: &Lease, facts: &Facts) {
        let Some(mut record) = self.ended(item.job, facts) else {
            return;
        };
        let retention = item.retain_ms;
        let retention = retention.unwrap_or_else(|| self.retention_of(&record));
        if record.holds_key {
            self.end_hold_of(now, lease.lane);
        }
        record.attempt = lease.attempt;
        record.settled_lease = lease.number;
        if let Some(result) = &item.result
            && retention > DurationMs::ZERO
        {
            record.result_parts = bytes_parts(result);
            let result = result.clone();
            self.group.put_bytes(item.job, BlobKind::Result, result, 0);
        }
        self.retain(now, &record, JobState::Done, retention);
    }

    /// A job has ended in a state: it is kept for a time, or everything of it is deleted.
    pub(crate) fn retain(
        &mut self,
        now: Now,
        record: &JobRecord,
        state: JobState,
        retention: DurationMs,
    ) {
        if retention == DurationMs::ZERO {
            return self.group.delete_job(record);
        }
        let mut record = Box::new(record.clone());
        record.close(state, now.wall, now.wall.plus(retention));
        if let Some(progress) = &mut record.progress {
            // Nobody goes on from there.
            let parts = std::mem::take(&mut progress.cursor_parts);
            progress.cursor = None;
            self.group.delete_blob(record.id, BlobKind::Cursor, parts);
        }
        self.group.set_closed(closed_row(&record), true);
        self.set_timer(retention_timer(&record));
        let queue = self.queues.find_mut(record.queue);
        if let Some(count) = queue.and_then(|queue| queue.retained_mut(state)) {
            *count += 1;
        }
        self.group.queues.insert(record.queue);
        self.watch_closed(record.queue, state);
        self.group.put_job(record);
    }

    /// Deletes a job that is over and everything that is kept of it.
    pub(crate) fn delete_closed(&mut self, now: Now, record: &JobRecord, facts: &Facts) {
        if record.state == JobState::Dead {
            return self.delete_dead(now, record, facts);
        }
        self.tell(now, EventName::Deleted, record, (None, None));
        self.unclose(record);
        let queue = self.queues.find_mut(record.queue);
        if let Some(count) = queue.and_then(|queue| queue.retained_mut(record.state)) {
            *count -= 1;
        }
        self.group.queues.insert(record.queue);
        self.group.delete_job(record);
    }

    /// The oldest jobs of a queue that ended in a state, one more than are wanted when there is one:
    /// those of the store and those of the open group. Else what must be read to know them.
    pub(crate) fn oldest_closed(
        &self,
        (queue, state): (QueueNumber, JobState),
        wanted: usize,
        facts: &Facts,
    ) -> Result<Vec<Closed>, Need> {
        let open = || self.group.closed_rows(queue, state);
        let unset = open().filter(|(_, is_set)| !is_set).count();
        let need = Need::OldestClosed {
            queue,
            state,
            max: u32::try_from(wanted + 1 + unset).unwrap_or(u32::MAX),
        };
        let Some(Fact::Closed(stored)) = facts.find(&need) else {
            return Err(need);
        };
        let mut rows: BTreeSet<Closed> = stored.iter().copied().collect();
        for (row, is_set) in open() {
            match is_set {
                true => rows.insert(row),
                false => rows.remove(&row),
            };
        }
        Ok(rows.into_iter().take(wanted + 1).collect())
    }

    /// A queue has one more job that ended in a state, or keeps fewer; when it has too many, the
    /// oldest go with the next tick.
    pub(crate) fn watch_closed(&mut self, number: QueueNumber, state: JobState) {
        let Some(queue) = self.queues.find(number) else {
            return;
        };
        if queue.closed_count(state) > queue.closed_max(state) {
            self.overfull.insert((number, state));
        }
    }

    /// The same for all states.
    pub(crate) fn watch_all_closed(&mut self, number: QueueNumber) {
        for state in CLOSED {
            self.watch_closed(number, state);
        }
    }

    /// The jobs of a state that a queue has too many of, a slice of them.
    fn surplus(
        &self,
        (number, state): (QueueNumber, JobState),
        facts: &Facts,
    ) -> Result<Vec<Closed>, Need> {
        let surplus = self.queues.find(number).map_or(0, |queue| {
            queue
                .closed_count(state)
                .saturating_sub(queue.closed_max(state))
        });
        let mut rows = self.oldest_closed((number, state), OVERFULL_SLICE, facts)?;
        let surplus = usize::try_from(surplus).unwrap_or(OVERFULL_SLICE);
        rows.truncate(surplus.min(OVERFULL_SLICE));
        Ok(rows)
    }

    pub(crate) fn needs_of_overfull(&self, facts: &Facts) -> Vec<Need> {
        let mut needs = Vec::new();
        for overfull in self.overfull.iter().take(OVERFULL_QUEUES) {
            match self.surplus(*overfull, facts) {
                Ok(rows) => {
                    let rows = rows.iter();
                    needs.extend(rows.filter_map(|row| self.need_of_removal(row.job, facts)));
                }
                Err(need) => needs.push(need),
            }
        }
        needs
    }

    /// The oldest closed jobs of some of the queues that have too many.
    pub(crate) fn all_surplus(&self, facts: &Facts) -> Vec<(QueueNumber, JobState, Vec<Closed>)> {
        let overfull = self.overfull.iter().take(OVERFULL_QUEUES);
        let surplus = overfull.map(|(queue, state)| {
            let rows = self.surplus((*queue, *state), facts);
            (*queue, *state, rows.unwrap_or_default())
        });
        surplus.collect()
    }

    /// Deletes closed jobs that a queue has too many of.
    pub(crate) fn trim_closed(
        &mut self,
        now: Now,
        (number, state): (QueueNumber, JobState),
        rows: &[Closed],
        facts: &Facts,
    ) {
        for row in rows {
            if let Some(record) = self.lookup(row.job, facts)
                && record.state == state
            {
                self.delete_closed(now, &record, facts);
            }
        }
        self.overfull.remove(&(number, state));
        self.watch_closed(number, state);
    }
}
