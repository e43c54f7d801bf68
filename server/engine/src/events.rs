//! What happens, for those who follow it: each transition of a job, batch or queue says so here, in the
//! command in which it happens.
//!
//! Nothing is kept or written of it, and nothing depends on it. While nobody follows, one branch is all
//! that it costs. Who follows what, and when an event may be told, is the driver's.

use ganger_protocol::{
    BatchId, JobId, Kind, Timestamp,
    event::{Event, EventName},
    job::{DeadReason, JobState},
};

use crate::{
    Engine,
    command::{Happened, Now},
    facts::{Facts, Need},
    lease::Lease,
    move_job::Next,
    records::{Content, JobRecord, QueueNumber},
};

/// The kind of the error of a lost attempt.
pub(crate) const LOST: &str = "lost";

/// What has happened in the command under way.
#[derive(Debug, Default)]
pub(crate) struct Happenings {
    is_watched: bool,
    events: Vec<Happened>,
}

/// A job to which something happens, as far as it is known.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) queue: QueueNumber,
    pub(crate) job: JobId,
    pub(crate) kind: Option<&'a Kind>,
    pub(crate) batch: Option<BatchId>,
    /// Grants so far.
    pub(crate) attempt: u32,
}

impl<'a> Subject<'a> {
    /// A job whose content is at hand.
    pub(crate) fn of_content(queue: QueueNumber, job: JobId, content: &'a Content) -> Self {
        Self {
            queue,
            job,
            kind: Some(&content.kind),
            batch: content.batch,
            attempt: 0,
        }
    }
}

impl<'a> From<&'a JobRecord> for Subject<'a> {
    fn from(record: &'a JobRecord) -> Self {
        Self {
            queue: record.queue,
            job: record.id,
            kind: record.content.as_ref().map(|content| &content.kind),
            batch: record.batch,
            attempt: record.attempt,
        }
    }
}

/// Where a job stands by what has happened, and since when or until when.
pub(crate) type Stand = (Option<JobState>, Option<Timestamp>);

impl Engine {
    /// Whether anybody follows what happens.
    pub(crate) fn is_watched(&self) -> bool {
        self.happenings.is_watched
    }

    pub(crate) fn watch(&mut self, is_watched: bool) {
        self.happenings.is_watched = is_watched;
    }

    /// What has happened since this was asked last.
    pub(crate) fn take_events(&mut self) -> Vec<Happened> {
        std::mem::take(&mut self.happenings.events)
    }

    /// Something has happened to a job.
    pub(crate) fn tell<'a>(
        &mut self,
        now: Now,
        event: EventName,
        subject: impl Into<Subject<'a>>,
        stand: Stand,
    ) {
        self.tell_more(now, event, subject, stand, |_| {});
    }

    /// As [`Self::tell`], with more to be said of it.
    pub(crate) fn tell_more<'a>(
        &mut self,
        now: Now,
        event: EventName,
        subject: impl Into<Subject<'a>>,
        (state, run_at): Stand,
        more: impl FnOnce(&mut Event),
    ) {
        if !self.happenings.is_watched {
            return;
        }
        let subject = subject.into();
        let attempt = Some(subject.attempt).filter(|attempt| *attempt > 0);
        let mut event = Event {
            job: Some(subject.job),
            kind: subject.kind.cloned(),
            batch: subject.batch,
            state,
            attempt,
            run_at,
            ..Event::new(event, now.wall)
        };
        more(&mut event);
        self.tell_in(subject.queue, event);
    }

    /// Something has happened to a queue.
    pub(crate) fn tell_queue(
        &mut self,
        at: Timestamp,
        event: EventName,
        queue: QueueNumber,
        removed: Option<u64>,
    ) {
        if self.happenings.is_watched {
            let event = Event {
                removed,
                ..Event::new(event, at)
            };
            self.tell_in(queue, event);
        }
    }

    /// Something has happened to a batch.
    pub(crate) fn tell_batch(&mut self, now: Now, event: EventName, batch: BatchId) {
        if !self.happenings.is_watched {
            return;
        }
        let Some(record) = self.batch_at_hand(batch) else {
            return;
        };
        let namespace = record.namespace.clone();
        let event = Event {
            batch: Some(batch),
            ..Event::new(event, now.wall)
        };
        self.happenings.events.push(Happened { namespace, event });
    }

    /// A lease has failed. When the job is over by it, that is told too, unless it is by whoever ends
    /// it.
    pub(crate) fn tell_failed(
        &mut self,
        now: Now,
        record: &JobRecord,
        error_kind: &str,
        next: Next,
    ) {
        if !self.happenings.is_watched {
            return;
        }
        let error_kind = Some(error_kind.to_owned()).filter(|kind| !kind.is_empty());
        let with_error = |event: &mut Event| event.error_kind = error_kind.clone();
        self.tell_more(now, EventName::Failed, record, next.stand(), with_error);
        match next {
            Next::Dead(reason) => self.tell_dead(now, record, reason, error_kind),
            Next::Deleted => self.tell(now, EventName::Deleted, record, next.stand()),
            Next::Scheduled(_) | Next::ReadyAtHead | Next::Cancelled => {}
        }
    }

    /// A lease was lost with its session.
    pub(crate) fn tell_lost_job(&mut self, now: Now, record: &JobRecord, next: Next) {
        self.tell(now, EventName::Lost, record, next.stand());
        if let Next::Dead(reason) = next {
            self.tell_dead(now, record, reason, Some(LOST.to_owned()));
        }
    }

    fn tell_dead(
        &mut self,
        now: Now,
        record: &JobRecord,
        reason: DeadReason,
        error_kind: Option<String>,
    ) {
        let stand = (Some(JobState::Dead), None);
        self.tell_more(now, EventName::Dead, record, stand, |event| {
            event.error_kind = error_kind;
            event.reason = Some(reason);
        });
    }

    /// A lease was acked, and its job is over.
    pub(crate) fn tell_done(
        &mut self,
        now: Now,
        (job, lease): (JobId, &Lease),
        batch: Option<BatchId>,
        facts: &Facts,
    ) {
        if !self.happenings.is_watched {
            return;
        }
        let known = self.kinds.name(lease.kind).cloned();
        let kind = known.or_else(|| Some(self.content_of(job, facts)?.kind.clone()));
        let subject = Subject {
            queue: lease.queue,
            job,
            kind: kind.as_ref(),
            batch,
            attempt: lease.attempt,
        };
        let stand = (Some(JobState::Done), None);
        self.tell(now, EventName::Done, subject, stand);
    }

    /// What must be read to tell that a lease was acked: its job, when only that knows the kind.
    pub(crate) fn need_to_tell_done(&self, job: JobId, lease: &Lease) -> Option<Need> {
        let is_unknown = self.is_watched() && self.kinds.name(lease.kind).is_none();
        is_unknown.then(|| self.need_of_job(job, true)).flatten()
    }

    fn tell_in(&mut self, queue: QueueNumber, mut event: Event) {
        let Some(queue) = self.queues.find(queue) else {
            return;
        };
        let namespace = queue.record.namespace.clone();
        event.queue = Some(queue.record.name.clone());
        self.happenings.events.push(Happened { namespace, event });
    }
}

impl Next {
    /// Where a job stands that goes there.
    pub(crate) fn stand(self) -> Stand {
        match self {
            Self::Scheduled(at) => (Some(JobState::Scheduled), Some(at)),
            Self::ReadyAtHead => (Some(JobState::Ready), None),
            Self::Dead(_) => (Some(JobState::Dead), None),
            Self::Cancelled => (Some(JobState::Cancelled), None),
            Self::Deleted => (None, None),
        }
    }
}
