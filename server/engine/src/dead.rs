//! Dead jobs: kept for a person, bounded by count, revived or purged.

use ganger_protocol::{
    JobId, WireError,
    job::JobState,
    limits::ITEMS_MAX,
    request::DeadSelect,
    response::{CountReply, ReplyBody},
};

use crate::{
    Engine,
    command::{Now, Origin, Outcome},
    facts::{Fact, Facts, Need},
    records::{JobRecord, QueueNumber},
};

/// Dead jobs that one tick removes from a queue that has too many.
const OVERFULL_SLICE: u32 = 64;

/// The dead jobs that a request names.
#[derive(Debug, Default)]
struct Selected {
    records: Vec<JobRecord>,
    not_found: Vec<JobId>,
    queue: Option<QueueNumber>,
}

impl Engine {
    pub(crate) fn needs_of_dead(
        &self,
        origin: &Origin,
        select: &DeadSelect,
        facts: &Facts,
    ) -> Vec<Need> {
        let ids = match self.need_of_oldest(origin, select) {
            None => select.jobs.clone(),
            Some(need) => match facts.find(&need) {
                Some(Fact::Closed(rows)) => rows.iter().map(|row| row.job).collect(),
                Some(_) | None => return vec![need],
            },
        };
        ids.into_iter()
            .filter_map(|job| self.need_of_job(job, true))
            .collect()
    }

    fn need_of_oldest(&self, origin: &Origin, select: &DeadSelect) -> Option<Need> {
        let queue = self
            .queues
            .named(&origin.namespace, select.queue.as_ref()?)?;
        let max = select.limit.map_or(ITEMS_MAX, |limit| limit as usize);
        let max = u32::try_from(max).unwrap_or(u32::MAX);
        Some(Need::OldestDead {
            queue: queue.record.number,
            max,
        })
    }

    fn selected(&self, origin: &Origin, select: &DeadSelect, facts: &Facts) -> Selected {
        let mut selected = Selected::default();
        let ids = match self.need_of_oldest(origin, select) {
            None => select.jobs.clone(),
            Some(need) => match facts.find(&need) {
                Some(Fact::Closed(rows)) => {
                    selected.queue = rows.first().map(|row| row.queue);
                    let before = select
                        .before
                        .unwrap_or(ganger_protocol::Timestamp(u64::MAX));
                    rows.iter()
                        .filter(|row| row.at < before)
                        .map(|row| row.job)
                        .collect()
                }
                Some(_) | None => Vec::new(),
            },
        };
        for job in ids {
            match self.lookup(job, facts) {
                Some(record)
                    if record.state == JobState::Dead
                        && self.is_in_namespace(record.queue, origin) =>
                {
                    selected.records.push(*record);
                }
                Some(_) | None => selected.not_found.push(job),
            }
        }
        selected
            .records
            .sort_by_key(|record| (record.closed_at, record.id));
        selected.records.dedup_by_key(|record| record.id);
        selected
    }

    fn counted(&self, select: &DeadSelect, selected: &Selected, count: usize) -> ReplyBody {
        let dead = selected.queue.and_then(|queue| self.queues.find(queue));
        ReplyBody::Count(CountReply {
            count: count as u64,
            more: count > 0 && dead.is_some_and(|queue| queue.record.counters.dead > 0),
            not_found: if select.queue.is_some() {
                Vec::new()
            } else {
                selected.not_found.clone()
            },
        })
    }

    pub(crate) fn revive(
        &mut self,
        now: Now,
        origin: &Origin,
        select: &DeadSelect,
        facts: &Facts,
        outcome: &mut Outcome,
    ) -> Result<ReplyBody, WireError> {
        self.check_queue(origin, select)?;
        let mut selected = self.selected(origin, select, facts);
        let records = std::mem::take(&mut selected.records);
        let count = records.len();
        let queues: Vec<QueueNumber> = records.iter().map(|record| record.queue).collect();
        for mut record in records {
            self.unclose(&record);
            self.count(record.queue, Some(JobState::Dead), Some(JobState::Ready));
            record.failures = 0;
            record.losses_in_row = 0;
            record.closed_at = None;
            record.reason = None;
            self.make_ready_at_tail(Box::new(record));
        }
        let reply = self.counted(select, &selected, count);
        self.offer_all(now, queues.into_iter(), outcome);
        Ok(reply)
    }

    pub(crate) fn purge_dead(
        &mut self,
        _now: Now,
        origin: &Origin,
        select: &DeadSelect,
        facts: &Facts,
    ) -> Result<ReplyBody, WireError> {
        self.check_queue(origin, select)?;
        let mut selected = self.selected(origin, select, facts);
        let records = std::mem::take(&mut selected.records);
        for record in &records {
            self.delete_dead(record);
        }
        Ok(self.counted(select, &selected, records.len()))
    }

    fn check_queue(&self, origin: &Origin, select: &DeadSelect) -> Result<(), WireError> {
        let Some(name) = &select.queue else {
            return Ok(());
        };
        self.queue_named(origin, name).map(|_| ())
    }

    /// A queue has one more dead job; when it has too many, the oldest go with the next tick.
    pub(crate) fn watch_dead(&mut self, number: QueueNumber) {
        let Some(queue) = self.queues.find(number) else {
            return;
        };
        if queue.record.counters.dead > queue.dead_max() {
            self.overfull.insert(number);
        }
    }

    fn need_of_overfull(&self, number: QueueNumber) -> Option<Need> {
        let queue = self.queues.find(number)?;
        let excess = queue.record.counters.dead.saturating_sub(queue.dead_max());
        let max = u32::try_from(excess)
            .unwrap_or(u32::MAX)
            .min(OVERFULL_SLICE);
        (max > 0).then_some(Need::OldestDead { queue: number, max })
    }

    pub(crate) fn needs_of_overfull(&self, facts: &Facts) -> Vec<Need> {
        let mut needs = Vec::new();
        for need in self
            .overfull
            .iter()
            .filter_map(|queue| self.need_of_overfull(*queue))
        {
            match facts.find(&need) {
                Some(Fact::Closed(rows)) => {
                    needs.extend(
                        rows.iter()
                            .filter_map(|row| self.need_of_job(row.job, false)),
                    );
                }
                Some(_) | None => needs.push(need),
            }
        }
        needs
    }

    /// Deletes the oldest dead jobs of the queues that have too many.
    pub(crate) fn trim_dead(&mut self, facts: &Facts) {
        for number in std::mem::take(&mut self.overfull) {
            let Some(need) = self.need_of_overfull(number) else {
                continue;
            };
            let Some(Fact::Closed(rows)) = facts.find(&need) else {
                self.overfull.insert(number);
                continue;
            };
            for row in rows {
                if let Some(record) = self.lookup(row.job, facts)
                    && record.state == JobState::Dead
                {
                    self.delete_dead(&record);
                }
            }
            // What died in the open group is not in the index yet: it is found once that is sealed.
            if self.need_of_overfull(number).is_some() {
                self.overfull.insert(number);
            }
        }
    }
}
