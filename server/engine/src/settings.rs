//! Queues as a whole: making and showing them, their settings, their pauses and quotas. Who is
//! granted what while a queue is paused is in `fetch`; how a queue is emptied is in `purge`.

use ganger_protocol::{
    ErrorCode, JobId, Timestamp, WireError,
    event::EventName,
    queue::{OneQueue, QueuePause, QueueReply, QueueSet, QueueSettings},
    request::QueueNames,
    response::{Done, QueueView, ReplyBody},
};

use crate::{
    Engine,
    command::{Now, Origin, Outcome},
    queue::Queue,
    records::{QueueNumber, Timer, TimerKind},
};

impl Engine {
    pub(crate) fn queue_create(
        &mut self,
        origin: &Origin,
        create: &OneQueue,
    ) -> Result<ReplyBody, WireError> {
        self.queue_for_push(&origin.namespace, &create.queue)?;
        Ok(ReplyBody::Done(Done {}))
    }

    pub(crate) fn queue_show(
        &self,
        origin: &Origin,
        show: &OneQueue,
    ) -> Result<ReplyBody, WireError> {
        let number = self.queue_named(origin, &show.queue)?;
        let queue = self.queues.find(number).map(Queue::reply);
        let gone = || WireError::new(ErrorCode::NotFound, "the queue is gone");
        Ok(ReplyBody::Queue(Box::new(queue.ok_or_else(gone)?)))
    }

    pub(crate) fn queue_set(
        &mut self,
        origin: &Origin,
        set: QueueSet,
    ) -> Result<ReplyBody, WireError> {
        let number = self.queue_named(origin, &set.queue)?;
        let show = OneQueue {
            queue: set.queue.clone(),
        };
        if let Some(queue) = self.queues.find_mut(number) {
            let record = &mut queue.record;
            let changes = [
                set.timeout_ms.apply(&mut record.timeout_ms),
                set.backoff.apply(&mut record.backoff),
                set.dead_max.apply(&mut record.dead_max),
                set.dead_retention_ms.apply(&mut record.dead_retention_ms),
                set.retain_ms.apply(&mut record.retain_ms),
                set.retained_max.apply(&mut record.retained_max),
                set.jobs_max.apply(&mut record.jobs_max),
            ];
            if changes.contains(&true) {
                self.group.queues.insert(number);
            }
        }
        // A lower `dead_max` or `retained_max` counts at once.
        self.watch_all_closed(number);
        self.queue_show(origin, &show)
    }

    pub(crate) fn pause(
        &mut self,
        now: Now,
        origin: &Origin,
        pause: &QueuePause,
    ) -> Result<ReplyBody, WireError> {
        let end = pause.for_ms.map(|time| now.wall.plus(time));
        let end = end.or(pause.until);
        let queues = pause.queues.iter();
        let numbers: Result<Vec<_>, _> = queues.map(|it| self.queue_named(origin, it)).collect();
        for number in numbers? {
            self.set_paused(now, number, true, end);
        }
        Ok(ReplyBody::Done(Done {}))
    }

    pub(crate) fn resume(
        &mut self,
        now: Now,
        origin: &Origin,
        names: &QueueNames,
        outcome: &mut Outcome,
    ) -> Result<ReplyBody, WireError> {
        let queues = names.queues.iter();
        let numbers: Result<Vec<_>, _> = queues.map(|it| self.queue_named(origin, it)).collect();
        for number in numbers? {
            self.set_paused(now, number, false, None);
            self.offer(now, number, outcome);
        }
        Ok(ReplyBody::Done(Done {}))
    }

    fn set_paused(&mut self, now: Now, number: QueueNumber, paused: bool, end: Option<Timestamp>) {
        let Some(queue) = self.queues.find_mut(number) else {
            return;
        };
        let record = &mut queue.record;
        let before = (record.paused, record.paused_until);
        if before == (paused, end) {
            return;
        }
        (record.paused, record.paused_until) = (paused, end);
        self.group.queues.insert(number);
        let event = match paused {
            true => EventName::QueuePaused,
            false => EventName::QueueResumed,
        };
        self.tell_queue(now.wall, event, number, None);
        if before.1 == end {
            return;
        }
        if let Some(at) = before.1 {
            self.unset_timer(pause_timer(number, at));
        }
        if let Some(at) = end {
            self.set_timer(pause_timer(number, at));
        }
    }

    /// The timer of a pause is due; the queue that gives leases again by it.
    pub(crate) fn end_pause(&mut self, now: Now, timer: &Timer) -> Option<QueueNumber> {
        let number = queue_of_timer(timer);
        let queue = self.queues.find(number)?;
        if queue.record.paused_until != Some(timer.at) {
            return None;
        }
        self.set_paused(now, number, false, None);
        Some(number)
    }

    /// Whether so many more jobs may wait in a queue.
    ///
    /// # Errors
    /// `quota_exceeded` with the limit and the figure that would pass it.
    pub(crate) fn check_quota(&self, queue: QueueNumber, more: u64) -> Result<(), WireError> {
        let Some(queue) = self.queues.find(queue) else {
            return Ok(());
        };
        let counters = &queue.record.counters;
        match queue.record.jobs_max {
            None => Ok(()),
            Some(max) => {
                let actual = counters.scheduled + counters.blocked + counters.ready + more;
                match actual <= max {
                    true => Ok(()),
                    false => Err(quota_exceeded(queue, max, actual)),
                }
            }
        }
    }
}

impl Queue {
    /// The queue as a list shows it.
    pub(crate) fn view(&self) -> QueueView {
        QueueView {
            name: self.record.name.clone(),
            paused: self.record.paused,
            paused_until: self.record.paused_until,
            counters: self.record.counters,
        }
    }

    fn reply(&self) -> QueueReply {
        QueueReply {
            queue: self.view(),
            settings: QueueSettings {
                timeout_ms: self.record.timeout_ms,
                backoff: self.record.backoff.clone(),
                dead_max: self.record.dead_max,
                dead_retention_ms: self.record.dead_retention_ms,
                retain_ms: self.record.retain_ms,
                retained_max: self.record.retained_max,
                jobs_max: self.record.jobs_max,
            },
        }
    }
}

fn quota_exceeded(queue: &Queue, max: u64, actual: u64) -> WireError {
    WireError {
        field: Some("queue".to_owned()),
        limit: Some(max),
        actual: Some(actual),
        ..WireError::new(
            ErrorCode::QuotaExceeded,
            format!("queue {} may have {max} waiting jobs", queue.record.name),
        )
    }
}

/// The timer that ends a pause.
pub fn pause_timer(queue: QueueNumber, at: Timestamp) -> Timer {
    let mut id = [0; JobId::BYTES];
    id[16..].copy_from_slice(&u64::from(queue.0).to_be_bytes());
    Timer {
        at,
        what: TimerKind::PauseEnd,
        id,
    }
}

/// The queue whose pause a timer ends.
pub fn queue_of_timer(timer: &Timer) -> QueueNumber {
    let [.., a, b, c, d] = timer.id;
    QueueNumber(u32::from_be_bytes([a, b, c, d]))
}
