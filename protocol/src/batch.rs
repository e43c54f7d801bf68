//! A batch as it is opened ([`BatchOpen`]) and as it is shown ([`BatchView`]): jobs that are counted
//! together, and the callbacks, jobs themselves, that are pushed when all of them have come so far.
//!
//! Shapes and ranges are checked here. Who may still join a batch, and when a callback is due, is
//! decided by the engine; it goes on in `server/engine/src/batch.rs`.

use serde::{Deserialize, Serialize};

use crate::{
    error::WireError,
    ids::{BatchId, JobId, Kind, QueueName},
    job::JobSpec,
    limits::{self, Limits},
    request::LeaseRef,
    time::Timestamp,
};

/// The header of a callback that names its batch.
pub const BATCH_HEADER: &str = "ganger-batch";

/// The header of a callback with what has happened to its batch: a word of [`BatchEvent`].
pub const EVENT_HEADER: &str = "ganger-batch-event";

/// What happens to a batch, in this order, each at most once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchEvent {
    /// Every member was tried once, or is terminal without a try.
    Complete,
    /// Every member is done.
    Success,
    /// Every member is terminal.
    Settled,
}

impl BatchEvent {
    /// All, in their order.
    pub const ALL: [Self; 3] = [Self::Complete, Self::Success, Self::Settled];

    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::Success => "success",
            Self::Settled => "settled",
        }
    }

    /// The field that has its callback.
    pub const fn field(self) -> &'static str {
        match self {
            Self::Complete => "on_complete",
            Self::Success => "on_success",
            Self::Settled => "on_settled",
        }
    }
}

/// Opens a batch. Jobs join it by a push that names it, until it is committed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BatchOpen {
    /// For a person, ≤ 256 bytes.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// The job to push when every member was tried once. A callback has neither `run_at`,
    /// `delay_ms`, `unique`, `batch`, `name` nor `after`; together they take ≤ 5 KiB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_complete: Option<Box<JobSpec>>,
    /// The job to push when every member is done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_success: Option<Box<JobSpec>>,
    /// The job to push when every member is terminal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_settled: Option<Box<JobSpec>>,
    /// The batch that this one is a member of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<BatchId>,
    /// A lease of a job of `parent`: lets it join after the commit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<LeaseRef>,
}

impl BatchOpen {
    /// The callback of an event.
    pub fn callback(&self, event: BatchEvent) -> Option<&JobSpec> {
        match event {
            BatchEvent::Complete => self.on_complete.as_deref(),
            BatchEvent::Success => self.on_success.as_deref(),
            BatchEvent::Settled => self.on_settled.as_deref(),
        }
    }

    /// Checks ranges and sizes, those of the callbacks too.
    ///
    /// # Errors
    /// `bad_request` or `too_large` naming the field, what is allowed and what came.
    pub fn check(&self, limits: &Limits) -> Result<(), WireError> {
        let (max, actual) = (limits::BATCH_TEXT_BYTES_MAX, self.description.len());
        if actual > max {
            return Err(WireError::too_large("description", max, actual));
        }
        if self.by.is_some() && self.parent.is_none() {
            let message = "by goes with parent: it is a lease of one of its jobs";
            return Err(WireError::bad_request("by", message));
        }
        BatchEvent::ALL
            .into_iter()
            .filter_map(|event| Some((event, self.callback(event)?)))
            .try_for_each(|(event, job)| {
                check_callback(event, job, limits).map_err(|error| error.within(event.field()))
            })
    }
}

fn check_callback(event: BatchEvent, job: &JobSpec, limits: &Limits) -> Result<(), WireError> {
    let times = [
        ("run_at", job.run_at.is_some()),
        ("delay_ms", job.delay_ms.is_some()),
    ];
    if let Some((field, _)) = times.iter().find(|(_, given)| *given) {
        let message = "a callback is pushed when its event happens, and ready at once";
        return Err(WireError::bad_request(*field, message));
    }
    if job.unique.is_some() {
        let message = "a callback is pushed exactly once, whatever a unique key says";
        return Err(WireError::bad_request("unique", message));
    }
    if job.batch.is_some() {
        let message = "a callback is a member of no batch";
        return Err(WireError::bad_request("batch", message));
    }
    job.check_alone("a callback waits for its batch and for no job")?;
    let own = [BATCH_HEADER, EVENT_HEADER];
    if let Some(header) = own.iter().find(|own| job.headers.contains_key(**own)) {
        let message = format!("the header {header} is the server's own");
        return Err(WireError::bad_request("headers", message));
    }
    let mut longest = job.clone();
    longest.headers.extend(headers_of(BatchId(u64::MAX), event));
    longest.check(limits)
}

/// The headers that a callback has beside its own.
pub fn headers_of(batch: BatchId, event: BatchEvent) -> [(String, String); 2] {
    [
        (BATCH_HEADER.to_owned(), batch.to_string()),
        (EVENT_HEADER.to_owned(), event.as_str().to_owned()),
    ]
}

/// How many members of a batch stand where. A batch within a batch is one member.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BatchCounters {
    /// Members that ever joined: the sum of `pending` and all that follow.
    pub total: u64,
    /// Of those that are pending: no attempt of theirs came to an end but by a release.
    pub untried: u64,
    /// Members that are not terminal.
    pub pending: u64,
    /// Acked.
    pub done: u64,
    /// Kept for a person.
    pub dead: u64,
    /// Stopped before they were done.
    pub cancelled: u64,
    /// Not granted in time.
    pub expired: u64,
    /// Discarded by their worker, or dead and removed since.
    pub deleted: u64,
}

impl BatchCounters {
    /// Members that are terminal.
    pub fn settled(&self) -> u64 {
        self.done + self.dead + self.cancelled + self.expired + self.deleted
    }
}

/// How far a batch has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BatchState {
    /// Everybody may add members.
    Open,
    /// Only a member that runs may add some.
    Committed,
    /// Every member is terminal; nobody joins any more.
    Settled,
}

impl BatchState {
    /// The word of the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Committed => "committed",
            Self::Settled => "settled",
        }
    }
}

/// A callback as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CallbackView {
    /// Its queue.
    pub queue: QueueName,
    /// Its kind.
    pub kind: Kind,
    /// The job, once it was pushed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobId>,
}

/// A batch as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BatchView {
    /// The batch.
    pub id: BatchId,
    /// How far it has come.
    pub state: BatchState,
    /// As in [`BatchOpen`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// As in [`BatchOpen`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<BatchId>,
    /// Its members.
    pub counters: BatchCounters,
    /// What is pushed when every member was tried once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_complete: Option<CallbackView>,
    /// What is pushed when every member is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_success: Option<CallbackView>,
    /// What is pushed when every member is terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_settled: Option<CallbackView>,
    /// Since when it is there.
    pub opened_at: Timestamp,
    /// Since when it is committed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub committed_at: Option<Timestamp>,
    /// Nobody committed it; the server did after 24 h.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub lapsed: bool,
    /// When every member was tried once, for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completed_at: Option<Timestamp>,
    /// Since when every member is terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<Timestamp>,
}

impl BatchView {
    /// The callback of an event.
    pub fn callback(&self, event: BatchEvent) -> Option<&CallbackView> {
        match event {
            BatchEvent::Complete => self.on_complete.as_ref(),
            BatchEvent::Success => self.on_success.as_ref(),
            BatchEvent::Settled => self.on_settled.as_ref(),
        }
    }
}
