//! Looking at jobs and queues.

use ganger_protocol::{
    DurationMs, ErrorCode, JobId, QueueName, WireError,
    job::{JobState, JobView},
    limits::ERRORS_KEPT,
    request::QueueList,
    response::{Counters, HeartbeatReply, QueuesReply, ReplyBody, StatsReply},
};

use crate::{
    Engine,
    command::{Now, Origin},
    facts::{Fact, Facts, Need},
    queue::Queue,
    records::{JobRecord, QueueNumber},
};

impl Engine {
    pub(crate) fn job_view(
        &self,
        origin: &Origin,
        job: JobId,
        facts: &Facts,
    ) -> Result<ReplyBody, WireError> {
        let gone = || WireError::new(ErrorCode::NotFound, format!("no job {job} is kept"));
        let record = self.lookup(job, facts).ok_or_else(gone)?;
        let queue = self.queues.find(record.queue).ok_or_else(gone)?;
        if queue.record.namespace != origin.namespace {
            return Err(gone());
        }
        let mut view = self.shown(&record, facts).ok_or_else(gone)?;
        view.payload = record
            .content
            .as_ref()
            .map(|it| it.payload.clone())
            .unwrap_or_default();
        (view.after, view.awaited_by) = self.edges_shown(job, facts);
        view.cursor = record.cursor().cloned();
        view.result = self.result_of(&record, facts);
        Ok(ReplyBody::Job(Box::new(view)))
    }

    /// A job as a person sees it, without its payload; with its errors, when they were read.
    pub(crate) fn shown(&self, record: &JobRecord, facts: &Facts) -> Option<JobView> {
        let queue = self.queues.find(record.queue)?;
        let mut view = record.view(queue.record.name.clone())?;
        if let Some(lease) = self.leases.find(&record.id) {
            view.state = JobState::Leased;
            view.lease = Some(lease.number);
            view.attempt = lease.attempt;
        }
        if let Some(Fact::Errors(errors)) = facts.find(&Need::Errors(record.id)) {
            view.errors.clone_from(errors);
            let open = record
                .error_slots()
                .filter_map(|(slot, _)| self.group.error(record.id, slot));
            view.errors.extend(open.cloned());
            let surplus = view.errors.len().saturating_sub(ERRORS_KEPT);
            view.errors.drain(..surplus);
        }
        Some(view)
    }

    pub(crate) fn queue_list(&self, origin: &Origin, list: &QueueList) -> ReplyBody {
        let is_meant = |queue: &&Queue| {
            list.pattern
                .as_ref()
                .is_none_or(|pattern| pattern.matches(&queue.record.name))
        };
        let queues = self
            .queues
            .of(&origin.namespace)
            .filter(is_meant)
            .map(Queue::view);
        ReplyBody::Queues(QueuesReply {
            queues: queues.collect(),
        })
    }

    pub(crate) fn stats(&self, now: Now, origin: &Origin) -> ReplyBody {
        let mut counters = Counters::default();
        let mut queues = 0;
        for queue in self.queues.of(&origin.namespace) {
            queues += 1;
            counters.add(&queue.record.counters);
        }
        ReplyBody::Stats(Box::new(StatsReply {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: DurationMs(now.mono.0),
            queues,
            sessions: self.sessions.count() as u64,
            waiting: self.waiting_fetches() as u64,
            counters,
            kinds: self.kinds.of(&origin.namespace),
        }))
    }

    pub(crate) fn heartbeat(&mut self, origin: &Origin) -> Result<ReplyBody, WireError> {
        let id = self.known_session(origin.session)?;
        let cancel = self.cancels_of(id);
        let lost = self
            .sessions
            .find_mut(id)
            .map(|session| std::mem::take(&mut session.lost));
        Ok(ReplyBody::Heartbeat(HeartbeatReply {
            cancel,
            lost: lost.unwrap_or_default(),
            ..HeartbeatReply::default()
        }))
    }

    /// The queue of this name.
    ///
    /// # Errors
    /// `not_found` when no queue of this name has been made in the namespace.
    pub fn queue_named(&self, origin: &Origin, name: &QueueName) -> Result<QueueNumber, WireError> {
        match self.queues.named(&origin.namespace, name) {
            Some(queue) => Ok(queue.record.number),
            None => Err(WireError {
                field: Some("queue".to_owned()),
                ..WireError::new(
                    ErrorCode::NotFound,
                    format!("no queue {name} has been made"),
                )
            }),
        }
    }

    /// The name of a queue.
    pub fn queue_name(&self, number: QueueNumber) -> Option<&QueueName> {
        self.queues.find(number).map(|queue| &queue.record.name)
    }
}
