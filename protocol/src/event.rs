//! What happens to jobs, batches and queues, as it is told to whoever follows it: [`Subscribe`] with an
//! [`EventFilter`], and [`Events`], which come without being asked for.
//!
//! Shapes and ranges are checked here. What happens is the engine's, in `server/engine/src/events.rs`;
//! how much of it is kept for those who come late is the driver's, in `server/src/driver/ring.rs`.

use serde::{Deserialize, Serialize};

use crate::{
    error::WireError,
    ids::{BatchId, CronName, JobId, Kind, QueueName, QueuePattern},
    job::{DeadReason, JobState},
    limits,
    request::check_count,
    time::{INTEGER_MAX, Timestamp},
};

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventName {
    /// A job was added.
    Pushed,
    /// A job that waited for others waits for its time now.
    Scheduled,
    /// The time of a job has come, or the last one that it waited for is over.
    Ready,
    /// A worker got the lease of a job.
    Granted,
    /// An attempt succeeded, and its job is over.
    Done,
    /// An attempt failed, or passed its deadline. When the job is over by it, that is told next.
    Failed,
    /// A worker gave the lease of a job back.
    Released,
    /// The session of a worker was lost, and the lease of a job with it.
    Lost,
    /// A job is out of attempts, or poison, or its worker gave it up.
    Dead,
    /// A job was cancelled, and is over.
    Cancelled,
    /// A job that waited passed its `expires_at`.
    Expired,
    /// A dead job is ready again.
    Revived,
    /// A job that waits was given another time, queue, priority or payload.
    Changed,
    /// Nothing is kept of a job any more that was kept until then.
    Deleted,
    /// A batch was opened.
    BatchOpened,
    /// A batch was closed for members from outside.
    BatchCommitted,
    /// Nobody committed a batch, and the server closed it.
    BatchLapsed,
    /// Every member of a batch is over.
    BatchSettled,
    /// A cron entry pushed its job; that job was told before.
    CronPushed,
    /// A queue gives no leases any more.
    QueuePaused,
    /// A queue gives leases again.
    QueueResumed,
    /// All jobs of a queue were removed. They are not told one by one.
    QueuePurged,
    /// A queue was deleted.
    QueueDeleted,
}

impl EventName {
    /// Every one, in the order of the documentation.
    pub const ALL: [Self; 23] = [
        Self::Pushed,
        Self::Scheduled,
        Self::Ready,
        Self::Granted,
        Self::Done,
        Self::Failed,
        Self::Released,
        Self::Lost,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
        Self::Revived,
        Self::Changed,
        Self::Deleted,
        Self::BatchOpened,
        Self::BatchCommitted,
        Self::BatchLapsed,
        Self::BatchSettled,
        Self::CronPushed,
        Self::QueuePaused,
        Self::QueueResumed,
        Self::QueuePurged,
        Self::QueueDeleted,
    ];

    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pushed => "pushed",
            Self::Scheduled => "scheduled",
            Self::Ready => "ready",
            Self::Granted => "granted",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Released => "released",
            Self::Lost => "lost",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Revived => "revived",
            Self::Changed => "changed",
            Self::Deleted => "deleted",
            Self::BatchOpened => "batch_opened",
            Self::BatchCommitted => "batch_committed",
            Self::BatchLapsed => "batch_lapsed",
            Self::BatchSettled => "batch_settled",
            Self::CronPushed => "cron_pushed",
            Self::QueuePaused => "queue_paused",
            Self::QueueResumed => "queue_resumed",
            Self::QueuePurged => "queue_purged",
            Self::QueueDeleted => "queue_deleted",
        }
    }
}

/// Something that happened, and was durable before it was told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its place among the events of the namespace: each has one more than the one before.
    pub offset: u64,
    /// When, by the server's wall clock.
    pub at: Timestamp,
    /// What.
    pub event: EventName,
    /// In which queue; absent for batches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueueName>,
    /// To which job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// The kind of that job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// The batch, or the batch of that job.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    /// Where the job stands by it; absent when it is not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<JobState>,
    /// Which grant of the job it is, or was the last one; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<u32>,
    /// `scheduled`: when the job becomes ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    /// Of `failed` and `dead`: the kind of the error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_kind: Option<String>,
    /// Of `dead`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<DeadReason>,
    /// Of `cron_pushed`: the entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cron: Option<CronName>,
    /// Of `queue_purged`: how many jobs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<u64>,
}

impl Event {
    /// Something that happened at this time, and nothing else known of it.
    pub fn new(event: EventName, at: Timestamp) -> Self {
        Self {
            offset: 0,
            at,
            event,
            queue: None,
            job: None,
            kind: None,
            batch: None,
            state: None,
            attempt: None,
            run_at: None,
            error_kind: None,
            reason: None,
            cron: None,
            removed: None,
        }
    }

    /// At most so many bytes it takes on the wire, and about as many in memory.
    pub fn bound_bytes(&self) -> usize {
        let names = [
            self.queue.as_ref().map(QueueName::as_str),
            self.kind.as_ref().map(Kind::as_str),
            self.error_kind.as_deref(),
            self.cron.as_ref().map(CronName::as_str),
        ];
        256 + names.into_iter().flatten().map(str::len).sum::<usize>()
    }
}

/// Which events are meant: those for which everything holds that is given. An empty one means all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventFilter {
    /// One of these, each at most once; empty means any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<EventName>,
    /// In one of these queues, ≤ 64 names or patterns; empty means any, and what is in no queue.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub queues: Vec<QueuePattern>,
    /// Of jobs of one of these kinds, ≤ 64; empty means any, and what is about no job.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub kinds: Vec<Kind>,
    /// About this job.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
    /// About this batch or one of its members.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
}

impl EventFilter {
    /// Whether an event is meant.
    pub fn matches(&self, event: &Event) -> bool {
        let queue = event.queue.as_ref();
        let kind = event.kind.as_ref();
        (self.events.is_empty() || self.events.contains(&event.event))
            && (self.job.is_none() || self.job == event.job)
            && (self.batch.is_none() || self.batch == event.batch)
            && (self.kinds.is_empty() || kind.is_some_and(|kind| self.kinds.contains(kind)))
            && (self.queues.is_empty()
                || queue.is_some_and(|queue| self.queues.iter().any(|it| it.matches(queue))))
    }

    fn check(&self) -> Result<(), WireError> {
        let mut events = self.events.iter().enumerate();
        let is_repeated = |(nth, event): (usize, &EventName)| {
            let mut before = self.events.iter().take(nth);
            before.any(|other| other == event)
        };
        if let Some((nth, event)) = events.find(|row| is_repeated(*row)) {
            let event = event.as_str();
            let message = format!("each event at most once; {event} stands there twice");
            return Err(WireError::bad_request(format!("events[{nth}]"), message));
        }
        check_count("queues", 0, limits::EVENT_NAMES_MAX, self.queues.len())?;
        check_count("kinds", 0, limits::EVENT_NAMES_MAX, self.kinds.len())
    }
}

/// A place in the events of a namespace: the next one has this offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EventsFrom {
    /// The count that it belongs to: the server began it then, in ms since the epoch of the wall clock.
    pub epoch: u64,
    /// The offset of the next event.
    pub offset: u64,
}

/// Names a subscription of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SubscriptionId(pub u64);

/// Asks for the events of the namespace from now on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Subscribe {
    /// Which events; absent means all of the namespace.
    pub filter: EventFilter,
    /// Goes on there, where another subscription has ended; absent begins with what happens next.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<EventsFrom>,
}

impl Subscribe {
    /// The events of a filter from now on.
    pub fn to(filter: EventFilter) -> Self {
        Self { filter, from: None }
    }

    pub(crate) fn check(&self) -> Result<(), WireError> {
        let checked = self.filter.check();
        checked.map_err(|error| error.within("filter"))?;
        let Some(from) = self.from else {
            return Ok(());
        };
        for (field, actual) in [("from.epoch", from.epoch), ("from.offset", from.offset)] {
            if actual > INTEGER_MAX {
                return Err(WireError::out_of_range(field, 0, INTEGER_MAX, actual));
            }
        }
        Ok(())
    }
}

/// Answers `subscribe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubscribeReply {
    /// The subscription, a number of the connection.
    pub subscription: SubscriptionId,
    /// The count of the offsets, by the time at which the server began it.
    pub epoch: u64,
    /// The offset at which the stream begins.
    pub offset: u64,
}

/// Ends a subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsubscribe {
    /// Which.
    pub subscription: SubscriptionId,
}

/// Events that were passed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    /// How many events of the namespace, whether the filter means them or not; absent when nobody
    /// knows: they were counted in another epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<u64>,
}

/// Some events of a subscription.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Which subscription.
    pub subscription: SubscriptionId,
    /// What was passed over before the first of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<Gap>,
    /// The events in the order in which they happened; perhaps none, to say only how far the stream
    /// has come.
    pub events: Vec<Event>,
    /// The offset at which the stream goes on, beyond events that the filter does not mean.
    pub next: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_event_is_written_as_its_word() {
        for event in EventName::ALL {
            let word = serde_json::to_string(&event).unwrap();
            assert_eq!(word, format!("\"{}\"", event.as_str()));
        }
    }

    #[test]
    fn a_filter_means_what_fulfils_all_of_it() {
        let job = JobId::from_bytes([7; JobId::BYTES]);
        let event = Event {
            queue: Some("mail".parse().unwrap()),
            job: Some(job),
            kind: Some("welcome".parse().unwrap()),
            batch: Some(BatchId(3)),
            ..Event::new(EventName::Done, Timestamp(1))
        };
        let batch = Event {
            batch: Some(BatchId(3)),
            ..Event::new(EventName::BatchSettled, Timestamp(1))
        };
        let check = |filter: EventFilter, expected: (bool, bool)| {
            let met = (filter.matches(&event), filter.matches(&batch));
            assert_eq!(met, expected, "{filter:?}");
        };
        let filter = EventFilter::default;
        check(filter(), (true, true));
        let events = vec![EventName::Dead, EventName::Done];
        check(EventFilter { events, ..filter() }, (true, false));
        for (pattern, is_met) in [("mail", true), ("m*", true), ("*", true), ("x*", false)] {
            let queues = vec!["other".parse().unwrap(), pattern.parse().unwrap()];
            check(EventFilter { queues, ..filter() }, (is_met, false));
        }
        for (kind, is_met) in [("welcome", true), ("wel", false)] {
            let kinds = vec![kind.parse().unwrap()];
            check(EventFilter { kinds, ..filter() }, (is_met, false));
        }
        let other = Some(JobId::from_bytes([8; JobId::BYTES]));
        let of_job = |job| EventFilter { job, ..filter() };
        check(of_job(Some(job)), (true, false));
        check(of_job(other), (false, false));
        for (id, is_met) in [(3, true), (4, false)] {
            let batch = Some(BatchId(id));
            check(EventFilter { batch, ..filter() }, (is_met, is_met));
        }
        let events = vec![EventName::Failed];
        let both = EventFilter {
            events,
            ..of_job(Some(job))
        };
        check(both, (false, false));
    }
}
