//! Dead jobs: kept for a person, revived or purged. How many are kept is in `retention.rs`.

use ganger_protocol::{
    JobId, WireError,
    event::EventName,
    job::JobState,
    limits::ITEMS_MAX,
    request::DeadSelect,
    response::{CountReply, ReplyBody},
};

use crate::{
    Engine,
    batch::Standing,
    command::{Now, Origin, Outcome},
    expiry::expiry_of,
    facts::{Facts, Need},
    records::{JobRecord, QueueNumber},
};

/// The dead jobs that a request names.
#[derive(Debug, Default)]
struct Selected {
    records: Vec<JobRecord>,
    not_found: Vec<JobId>,
    conflicts: Vec<JobId>,
    has_more: bool,
}

impl Selected {
    fn into_reply(self, count: usize) -> ReplyBody {
        ReplyBody::Count(CountReply {
            count: count as u64,
            more: self.has_more,
            not_found: self.not_found,
            conflicts: self.conflicts,
        })
    }
}

impl Engine {
    pub(crate) fn needs_of_dead(
        &self,
        origin: &Origin,
        select: &DeadSelect,
        is_revival: bool,
        facts: &Facts,
    ) -> Vec<Need> {
        let ids = match self.queue_of(origin, select) {
            None => select.jobs.clone(),
            Some(queue) => {
                match self.oldest_closed((queue, JobState::Dead), limit_of(select), facts) {
                    Ok(rows) => rows.iter().map(|row| row.job).collect(),
                    Err(need) => return vec![need],
                }
            }
        };
        let need = |job: JobId| match is_revival {
            true => [
                self.need_of_job(job, true),
                self.need_to_retake(job, facts),
                self.need_of_membership(job, facts),
            ],
            false => [self.need_of_removal(job, facts), None, None],
        };
        ids.into_iter().flat_map(need).flatten().collect()
    }

    fn queue_of(&self, origin: &Origin, select: &DeadSelect) -> Option<QueueNumber> {
        let named = self
            .queues
            .named(&origin.namespace, select.queue.as_ref()?)?;
        Some(named.record.number)
    }

    fn selected(&self, origin: &Origin, select: &DeadSelect, facts: &Facts) -> Selected {
        let mut selected = Selected::default();
        let ids = match self.queue_of(origin, select) {
            None => select.jobs.clone(),
            Some(queue) => {
                let mut rows = self
                    .oldest_closed((queue, JobState::Dead), limit_of(select), facts)
                    .unwrap_or_default();
                rows.retain(|row| select.before.is_none_or(|before| row.at < before));
                selected.has_more = rows.len() > limit_of(select);
                rows.truncate(limit_of(select));
                rows.iter().map(|row| row.job).collect()
            }
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
        let mut queues: Vec<QueueNumber> = Vec::new();
        for mut record in records {
            if !self.retake(now, &record, facts) {
                selected.conflicts.push(record.id);
                continue;
            }
            queues.push(record.queue);
            self.unclose(&record);
            self.watch_expiry(record.id, expiry_of(&record));
            self.count(record.queue, Some(JobState::Dead), Some(JobState::Ready));
            let stand = (Some(JobState::Ready), None);
            self.tell(now, EventName::Revived, &record, stand);
            self.move_dead_member(now, &record, Standing::Tried, facts);
            self.node_is_revived(&record);
            record.failures = 0;
            record.losses_in_row = 0;
            record.closed_at = None;
            record.reason = None;
            record.holds_unique = false;
            self.make_ready_at_tail(Box::new(record));
        }
        let reply = selected.into_reply(queues.len());
        self.offer_all(now, queues.into_iter(), outcome);
        Ok(reply)
    }

    /// Takes the unique key of a dead job again, when it needs it; whether the job may wait again.
    fn retake(&mut self, now: Now, record: &JobRecord, facts: &Facts) -> bool {
        if expiry_of(record).is_some_and(|at| at <= now.wall) {
            return false;
        }
        let unique = record
            .content
            .as_ref()
            .and_then(|content| content.unique.as_deref());
        let (Some(key), Some(unique)) = (self.key_to_retake(record), unique) else {
            return true;
        };
        if self.holder(now, key, facts).is_some() {
            return false;
        }
        self.take_key(now, key, record.id, unique, facts);
        true
    }

    pub(crate) fn purge_dead(
        &mut self,
        now: Now,
        origin: &Origin,
        select: &DeadSelect,
        facts: &Facts,
    ) -> Result<ReplyBody, WireError> {
        self.check_queue(origin, select)?;
        let mut selected = self.selected(origin, select, facts);
        let records = std::mem::take(&mut selected.records);
        for record in &records {
            self.delete_dead(now, record, facts);
        }
        Ok(selected.into_reply(records.len()))
    }

    fn check_queue(&self, origin: &Origin, select: &DeadSelect) -> Result<(), WireError> {
        let Some(name) = &select.queue else {
            return Ok(());
        };
        self.queue_named(origin, name).map(|_| ())
    }
}

fn limit_of(select: &DeadSelect) -> usize {
    select.limit.map_or(ITEMS_MAX, |limit| limit as usize)
}
