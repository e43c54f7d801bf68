//! A job as it is pushed ([`JobSpec`]), as it is granted ([`GrantedJob`]) and as it is shown
//! ([`JobView`]). Shapes are checked when bytes become these types; ranges and sizes by
//! [`JobSpec::check`], job by job, so that one bad job does not refuse its neighbours.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    error::WireError,
    ids::{BatchId, JobId, Kind, LeaseId, QueueName, Tag},
    limits::{self, Limits},
    request::check_delay,
    retry::RetryPolicy,
    time::{DurationMs, INTEGER_MAX, Timestamp},
    workflow::{Condition, OnDead},
};

/// String pairs that travel with a job untouched, such as `traceparent`.
pub type Headers = BTreeMap<String, String>;

/// A job to push. Everything but `kind` has a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// The queue; default `default`.
    #[serde(default)]
    pub queue: QueueName,
    /// The name by which a worker picks a handler.
    pub kind: Kind,
    /// Opaque bytes, 0…1 MiB; never read by the server.
    #[serde(default)]
    pub payload: Bytes,
    /// How to show the payload; absent means MessagePack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<Arc<str>>,
    /// String pairs, together ≤ 4 KiB.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: Headers,
    /// 0…9, 9 first; default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Not before this wall time; one in the past means at once. Not together with `delay_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    /// Not before so many ms from now. Not together with `run_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<DurationMs>,
    /// Failures after which the job is dead, 1…10 000; default 26.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// The delay before each further attempt; absent means the default curve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Box<RetryPolicy>>,
    /// The longest attempt in ms, 1 s…24 h; default the queue's, else 30 min.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<DurationMs>,
    /// Up to 8 names to find the job by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
    /// Not granted from this wall time on: a job that still waits then is `expired`. Behind
    /// `run_at`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// The unique key, and what happens when another job holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<Box<Unique>>,
    /// The key that shares with the other keys of its queue, and that limits of keys are for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Tag>,
    /// The batch that it joins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    /// By which other jobs of the same push wait for it; in a batch, by its id, later ones too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Tag>,
    /// The jobs that it waits for, ≤ 1000: names in the same push, which must be atomic, or ids of
    /// jobs of its own batch.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Tag>,
    /// With `after`: which end of those jobs lets it go on; default `success`.
    #[serde(rename = "if", default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
    /// With `after` and `if` success: what becomes of it when one of those jobs ends otherwise;
    /// default `cancel`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_dead: Option<OnDead>,
    /// How long the job stays visible once it is done, cancelled or expired, in ms, 0…ten years;
    /// default the queue's, else 0: not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retain_ms: Option<DurationMs>,
}

/// A unique key: while it is held, a second push with it finds the first job. The key is named or
/// derived, one of the two, and belongs to its namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unique {
    /// The key itself. Not together with `of`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Tag>,
    /// The key is derived from these fields of the job, byte by byte. Not together with `key`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<UniqueOf>,
    /// How long it is held.
    #[serde(default)]
    pub until: UniqueUntil,
    /// `ttl` only, and needed there: for so many ms from the push, 1 ms…ten years.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<DurationMs>,
    /// What a second push with it does.
    #[serde(default)]
    pub on_conflict: OnConflict,
}

/// A field of a job that a unique key is derived from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UniqueOf {
    /// Its queue.
    Queue,
    /// Its kind.
    Kind,
    /// Its payload.
    Payload,
}

/// How long a unique key is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UniqueUntil {
    /// Until the first grant; never taken again.
    Start,
    /// As `settled`, and by a dead job too, until it is removed.
    Success,
    /// While the job waits or is with a worker.
    #[default]
    Settled,
    /// For a time, whatever becomes of the job.
    Ttl,
}

/// What a push does when its unique key is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnConflict {
    /// It is refused with `conflict`.
    Reject,
    /// It answers with the id of the holder.
    #[default]
    Existing,
    /// It changes payload and time of a holder of the same kind that waits, else it answers as
    /// `existing`.
    Replace,
}

impl JobSpec {
    /// A job of this kind with this payload, for the queue `default`.
    pub fn new(kind: Kind, payload: impl Into<Bytes>) -> Self {
        Self {
            queue: QueueName::default(),
            kind,
            payload: payload.into(),
            content_type: None,
            headers: Headers::new(),
            priority: None,
            run_at: None,
            delay_ms: None,
            max_attempts: None,
            backoff: None,
            timeout_ms: None,
            tags: Vec::new(),
            expires_at: None,
            unique: None,
            key: None,
            batch: None,
            name: None,
            after: Vec::new(),
            condition: None,
            on_dead: None,
            retain_ms: None,
        }
    }

    /// Checks ranges and sizes.
    ///
    /// # Errors
    /// `too_large` or `bad_request` naming the field, the limit and the actual figure.
    pub fn check(&self, limits: &Limits) -> Result<(), WireError> {
        let payload = self.payload.len();
        if payload > limits.payload_bytes_max {
            return Err(WireError::too_large(
                "payload",
                limits.payload_bytes_max,
                payload,
            ));
        }
        if let Some(priority) = self.priority
            && priority > limits::PRIORITY_MAX
        {
            let (max, actual) = (u64::from(limits::PRIORITY_MAX), u64::from(priority));
            return Err(WireError::out_of_range("priority", 0, max, actual));
        }
        if let Some(attempts) = self.max_attempts
            && !(1..=limits::MAX_ATTEMPTS_MAX).contains(&attempts)
        {
            let (max, actual) = (u64::from(limits::MAX_ATTEMPTS_MAX), u64::from(attempts));
            return Err(WireError::out_of_range("max_attempts", 1, max, actual));
        }
        if let Some(timeout) = self.timeout_ms
            && !(limits::LEASE_MIN..=limits::LEASE_MAX).contains(&timeout)
        {
            let (min, max) = (limits::LEASE_MIN.0, limits::LEASE_MAX.0);
            return Err(WireError::out_of_range("timeout_ms", min, max, timeout.0));
        }
        if let Some(backoff) = &self.backoff {
            backoff.check()?;
        }
        self.check_time()?;
        self.check_labels()?;
        if let Some(unique) = &self.unique {
            unique.check().map_err(|error| error.within("unique"))?;
        }
        self.check_after()
    }

    fn check_time(&self) -> Result<(), WireError> {
        if self.run_at.is_some() && self.delay_ms.is_some() {
            return Err(WireError::bad_request(
                "delay_ms",
                "either run_at or delay_ms, not both",
            ));
        }
        if let Some(run_at) = self.run_at
            && run_at.0 > INTEGER_MAX
        {
            return Err(WireError::out_of_range("run_at", 0, INTEGER_MAX, run_at.0));
        }
        if let Some(expires_at) = self.expires_at {
            self.check_expiry(expires_at)?;
        }
        check_delay("delay_ms", self.delay_ms)?;
        check_delay("retain_ms", self.retain_ms)
    }

    fn check_expiry(&self, expires_at: Timestamp) -> Result<(), WireError> {
        if expires_at.0 > INTEGER_MAX {
            let actual = expires_at.0;
            return Err(WireError::out_of_range(
                "expires_at",
                0,
                INTEGER_MAX,
                actual,
            ));
        }
        match self.run_at {
            Some(run_at) if run_at >= expires_at => Err(WireError::bad_request(
                "expires_at",
                "expires_at must be after run_at, or the job would never run",
            )),
            Some(_) | None => Ok(()),
        }
    }

    fn check_labels(&self) -> Result<(), WireError> {
        let headers: usize = self
            .headers
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        if headers > limits::HEADERS_BYTES_MAX {
            return Err(WireError::too_large(
                "headers",
                limits::HEADERS_BYTES_MAX,
                headers,
            ));
        }
        let content_type = self.content_type.as_ref().map_or(0, |text| text.len());
        if content_type > limits::CONTENT_TYPE_BYTES_MAX {
            let max = limits::CONTENT_TYPE_BYTES_MAX;
            return Err(WireError::too_large("content_type", max, content_type));
        }
        if self.tags.len() > limits::TAGS_MAX {
            return Err(WireError::too_large(
                "tags",
                limits::TAGS_MAX,
                self.tags.len(),
            ));
        }
        Ok(())
    }
}

impl Unique {
    /// This key, held until the job is settled; a push that finds it held answers with its holder.
    pub fn named(key: Tag) -> Self {
        Self {
            key: Some(key),
            ..Self::default()
        }
    }

    /// A key derived from these fields; the rest as by [`Unique::named`].
    pub fn derived(of: impl Into<Vec<UniqueOf>>) -> Self {
        Self {
            of: of.into(),
            ..Self::default()
        }
    }

    fn check(&self) -> Result<(), WireError> {
        match (&self.key, self.of.is_empty()) {
            (None, true) => return Err(WireError::bad_request("key", "name a key, or of")),
            (Some(_), false) => {
                return Err(WireError::bad_request("of", "either key or of, not both"));
            }
            (Some(_), true) | (None, false) => {}
        }
        let is_repeated =
            |(nth, field): (usize, &UniqueOf)| self.of.iter().skip(nth + 1).any(|it| it == field);
        if self.of.iter().enumerate().any(is_repeated) {
            return Err(WireError::bad_request("of", "each field at most once"));
        }
        let max = limits::DELAY_MAX.0;
        match (self.until, self.ttl_ms) {
            (UniqueUntil::Ttl, None) => {
                Err(WireError::bad_request("ttl_ms", "until ttl needs ttl_ms"))
            }
            (UniqueUntil::Ttl, Some(ttl)) if !(1..=max).contains(&ttl.0) => {
                Err(WireError::out_of_range("ttl_ms", 1, max, ttl.0))
            }
            (UniqueUntil::Start | UniqueUntil::Success | UniqueUntil::Settled, Some(_)) => Err(
                WireError::bad_request("ttl_ms", "ttl_ms goes with until ttl only"),
            ),
            (UniqueUntil::Ttl, Some(_))
            | (UniqueUntil::Start | UniqueUntil::Success | UniqueUntil::Settled, None) => Ok(()),
        }
    }
}

/// Where a job stands. A job is always in exactly one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// Waits for a time; a retry is one with failures.
    Scheduled,
    /// Waits for other jobs.
    Blocked,
    /// May be granted.
    Ready,
    /// A worker has it.
    Leased,
    /// Acked.
    Done,
    /// Out of attempts, or poison; kept for a person.
    Dead,
    /// Stopped before it was done.
    Cancelled,
    /// Its time had passed before it was granted.
    Expired,
}

impl JobState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Scheduled,
        Self::Blocked,
        Self::Ready,
        Self::Leased,
        Self::Done,
        Self::Dead,
        Self::Cancelled,
        Self::Expired,
    ];

    /// The word of the wire, the documentation and the metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Scheduled => "scheduled",
            Self::Blocked => "blocked",
            Self::Ready => "ready",
            Self::Leased => "leased",
            Self::Done => "done",
            Self::Dead => "dead",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

impl JobState {
    /// Whether nothing more happens to the job by itself.
    pub const fn is_terminal(self) -> bool {
        match self {
            Self::Done | Self::Dead | Self::Cancelled | Self::Expired => true,
            Self::Scheduled | Self::Blocked | Self::Ready | Self::Leased => false,
        }
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A job with the lease that a fetch gives for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedJob {
    /// The job.
    pub id: JobId,
    /// The number to answer with.
    pub lease: LeaseId,
    /// Its queue.
    pub queue: QueueName,
    /// By which the worker picks a handler.
    pub kind: Kind,
    /// As it was pushed.
    #[serde(default)]
    pub payload: Bytes,
    /// How to show the payload; absent means MessagePack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<Arc<str>>,
    /// As they were pushed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: Headers,
    /// Which grant this is, from 1.
    pub attempt: u32,
    /// Failures before this attempt; absent means 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub failures: u32,
    /// The lease's deadline, in ms from now.
    pub timeout_ms: DurationMs,
    /// When the job was pushed.
    pub pushed_at: Timestamp,
    /// As they were pushed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
    /// The batch that it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Tag>,
    /// Where an earlier attempt stopped, as its worker said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Bytes>,
}

/// A job as it is shown to a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobView {
    /// The job.
    pub id: JobId,
    /// Where it stands.
    pub state: JobState,
    /// Its queue.
    pub queue: QueueName,
    /// Its kind.
    pub kind: Kind,
    /// As it was pushed; empty in lists.
    #[serde(default)]
    pub payload: Bytes,
    /// Bytes of the payload.
    pub payload_bytes: u64,
    /// How to show the payload; absent means MessagePack.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content_type: Option<Arc<str>>,
    /// As they were pushed.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: Headers,
    /// 0…9.
    pub priority: u8,
    /// As they were pushed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
    /// When it was pushed.
    pub pushed_at: Timestamp,
    /// `scheduled`: when it becomes ready. `blocked`: not before that time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_at: Option<Timestamp>,
    /// When it expires unless a worker has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Its unique key, held or not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique: Option<Box<Unique>>,
    /// The batch that it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch: Option<BatchId>,
    /// Its name in its push.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Tag>,
    /// `blocked`: jobs that it waits for, among them those that will not come any more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub waits_for: u32,
    /// `blocked`: the first hundred of them that are kept; left out of lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<JobId>,
    /// `blocked`: which end of theirs lets it go on.
    #[serde(rename = "if", default, skip_serializing_if = "Option::is_none")]
    pub condition: Option<Condition>,
    /// `blocked`: what becomes of it when one of them ends otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_dead: Option<OnDead>,
    /// The first hundred jobs that wait for it; left out of lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub awaited_by: Vec<JobId>,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<Tag>,
    /// `leased`: the number of its live lease.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<LeaseId>,
    /// `leased`: it was cancelled, and its lease is revoked then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_at: Option<Timestamp>,
    /// Terminal states: since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
    /// Terminal states: until when it is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept_until: Option<Timestamp>,
    /// `dead`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<DeadReason>,
    /// How far a worker has come, 0…100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// What it said of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Where its next attempt goes on; left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Bytes>,
    /// `done`: the result of its ack; left out of lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Bytes>,
    /// Grants so far; may exceed `max_attempts`.
    pub attempt: u32,
    /// Fails and time-outs so far.
    pub failures: u32,
    /// Workers lost while they had it.
    pub losses: u32,
    /// Times it was given back.
    pub releases: u32,
    /// Failures after which it is dead.
    pub max_attempts: u32,
    /// The last ten errors, oldest first; left out of lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<JobError>,
}

/// Why a job is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// `failures` reached `max_attempts`.
    Attempts,
    /// The worker forbade further attempts.
    Worker,
    /// Workers were lost five times in a row while they had it.
    Poison,
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobError {
    /// When.
    pub at: Timestamp,
    /// Which grant.
    pub attempt: u32,
    /// The worker's name for the kind of error; `timeout` and `lost` are the server's own.
    pub kind: String,
    /// For a person; ≤ 4 KiB.
    #[serde(default)]
    pub message: String,
    /// Where; ≤ 16 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub backtrace: String,
}

/// Whether a count may be left out.
fn is_zero(count: &u32) -> bool {
    *count == 0
}
