//! Building a job to push, field by field. What the fields mean is told by
//! [`JobSpec`]; ranges are checked by the server, so that a client need not be as new.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use ganger_protocol::{
    DurationMs, JobSpec, RetryPolicy, Timestamp,
    ids::IdError,
    job::{OnConflict, UniqueOf, UniqueUntil},
    workflow::{Condition, OnDead},
};
use serde::Serialize;

use crate::error::JobError;

/// The content type of a payload made by [`Job::json`].
pub const CONTENT_TYPE_JSON: &str = "application/json";

/// A job that is being built.
///
/// ```
/// use std::time::Duration;
/// use ganger_client::Job;
///
/// let job = Job::new("welcome_mail")
///     .queue("mail")
///     .json(&serde_json::json!({ "user": 42 }))?
///     .delay(Duration::from_secs(60))
///     .max_attempts(5)
///     .build()?;
/// assert_eq!(job.queue.as_str(), "mail");
/// # Ok::<(), ganger_client::JobError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Job {
    /// The first name that was none stands in for the job.
    spec: Result<JobSpec, JobError>,
}

impl Job {
    /// A job of this kind without payload, for the queue `default`.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("cleanup");
    /// ```
    pub fn new(kind: &str) -> Self {
        let kind = kind.parse().map_err(name("kind"));
        Self {
            spec: kind.map(|kind| JobSpec::new(kind, Bytes::new())),
        }
    }

    /// The queue; default `default`.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("cleanup").queue("nightly");
    /// ```
    #[must_use]
    pub fn queue(self, queue: &str) -> Self {
        self.try_with(|spec| {
            spec.queue = queue.parse().map_err(name("queue"))?;
            Ok(())
        })
    }

    /// The payload, written as MessagePack, which is the default everywhere.
    ///
    /// # Errors
    /// When the value cannot be written so.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("resize").payload(&("cat.png", 640))?;
    /// # Ok::<(), ganger_client::JobError>(())
    /// ```
    pub fn payload<T: Serialize + ?Sized>(self, value: &T) -> Result<Self, JobError> {
        let bytes = rmp_serde::to_vec_named(value)
            .map_err(|error| JobError::MessagePack(Arc::new(error)))?;
        Ok(self.with(|spec| {
            spec.payload = bytes.into();
            spec.content_type = None;
        }))
    }

    /// The payload, written as JSON, with the content type `application/json`.
    ///
    /// # Errors
    /// When the value cannot be written so.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("resize").json(&serde_json::json!({ "width": 640 }))?;
    /// # Ok::<(), ganger_client::JobError>(())
    /// ```
    pub fn json<T: Serialize + ?Sized>(self, value: &T) -> Result<Self, JobError> {
        let bytes = serde_json::to_vec(value).map_err(|error| JobError::Json(Arc::new(error)))?;
        Ok(self.bytes(bytes, CONTENT_TYPE_JSON))
    }

    /// The payload as it is, with its content type.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("print").bytes(&b"hello"[..], "text/plain");
    /// ```
    #[must_use]
    pub fn bytes(self, payload: impl Into<Bytes>, content_type: &str) -> Self {
        self.with(|spec| {
            spec.payload = payload.into();
            spec.content_type = Some(content_type.into());
        })
    }

    /// A header, such as `traceparent`, that travels with the job untouched.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("cleanup").header("requested-by", "ann");
    /// ```
    #[must_use]
    pub fn header(self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.with(|spec| {
            spec.headers.insert(name.into(), value.into());
        })
    }

    /// 0…9, 9 first; default 5.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("page_the_doctor").priority(9);
    /// ```
    #[must_use]
    pub fn priority(self, priority: u8) -> Self {
        self.with(|spec| spec.priority = Some(priority))
    }

    /// Not before this long from now, by the server's clock; replaces an earlier
    /// [`run_at`](Job::run_at).
    ///
    /// ```
    /// # use ganger_client::Job;
    /// # use std::time::Duration;
    /// let job = Job::new("remind").delay(Duration::from_secs(3600));
    /// ```
    #[must_use]
    pub fn delay(self, delay: Duration) -> Self {
        self.with(|spec| {
            spec.delay_ms = Some(millis(delay));
            spec.run_at = None;
        })
    }

    /// Not before this wall time, to the millisecond; replaces an earlier [`delay`](Job::delay).
    ///
    /// ```
    /// # use ganger_client::Job;
    /// # use std::time::{Duration, UNIX_EPOCH};
    /// let job = Job::new("greet").run_at(UNIX_EPOCH + Duration::from_secs(4_102_444_800));
    /// ```
    #[must_use]
    pub fn run_at(self, time: SystemTime) -> Self {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.with(|spec| {
            spec.run_at = Some(Timestamp(millis(since_epoch).0));
            spec.delay_ms = None;
        })
    }

    /// Failures after which the job is dead, 1…10 000; default 26.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("charge").max_attempts(3);
    /// ```
    #[must_use]
    pub fn max_attempts(self, count: u32) -> Self {
        self.with(|spec| spec.max_attempts = Some(count))
    }

    /// The delay before each further attempt; default the server's curve, from 15 s to a day.
    ///
    /// ```
    /// # use ganger_client::{Job, protocol::{DurationMs, RetryPolicy}};
    /// let job = Job::new("charge").backoff(RetryPolicy::fixed(DurationMs::from_secs(10)));
    /// ```
    #[must_use]
    pub fn backoff(self, policy: RetryPolicy) -> Self {
        self.with(|spec| spec.backoff = Some(Box::new(policy)))
    }

    /// The longest attempt, 1 s…24 h; default the queue's, else 30 min.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// # use std::time::Duration;
    /// let job = Job::new("transcode").timeout(Duration::from_secs(2 * 3600));
    /// ```
    #[must_use]
    pub fn timeout(self, timeout: Duration) -> Self {
        self.with(|spec| spec.timeout_ms = Some(millis(timeout)))
    }

    /// A name to find the job by; up to 8 of them.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("charge").tag("order:1234");
    /// ```
    #[must_use]
    pub fn tag(self, tag: &str) -> Self {
        self.try_with(|spec| {
            spec.tags.push(tag.parse().map_err(name("tags"))?);
            Ok(())
        })
    }

    /// The key, such as a tenant: keys share their queue, however many jobs each has, and limits of
    /// keys count for it.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("report").key("tenant:42");
    /// ```
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.try_with(|spec| {
            spec.key = Some(key.parse().map_err(name("key"))?);
            Ok(())
        })
    }

    /// Not granted from this wall time on: a job that still waits then is `expired`.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// # use std::time::{Duration, SystemTime};
    /// let job = Job::new("push_score").expires_at(SystemTime::now() + Duration::from_secs(60));
    /// ```
    #[must_use]
    pub fn expires_at(self, time: SystemTime) -> Self {
        let since_epoch = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.with(|spec| spec.expires_at = Some(Timestamp(millis(since_epoch).0)))
    }

    /// The unique key: while a job holds it, another push with it makes none. Held until the job is
    /// done, dead, cancelled or expired, unless told otherwise.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("report").unique("report:42");
    /// ```
    #[must_use]
    pub fn unique(self, key: &str) -> Self {
        self.try_with(|spec| {
            let key = key.parse().map_err(name("unique key"))?;
            let unique = spec.unique.get_or_insert_default();
            (unique.key, unique.of) = (Some(key), Vec::new());
            Ok(())
        })
    }

    /// The same with a key that is derived from fields of the job, byte by byte.
    ///
    /// ```
    /// # use ganger_client::{Job, protocol::job::UniqueOf};
    /// let job = Job::new("report").unique_of([UniqueOf::Kind, UniqueOf::Payload]);
    /// ```
    #[must_use]
    pub fn unique_of(self, fields: impl Into<Vec<UniqueOf>>) -> Self {
        self.with(|spec| {
            let unique = spec.unique.get_or_insert_default();
            (unique.key, unique.of) = (None, fields.into());
        })
    }

    /// How long the unique key is held: `Start`, `Success` or `Settled`. For a time:
    /// [`unique_ttl`](Job::unique_ttl).
    ///
    /// ```
    /// # use ganger_client::{Job, protocol::job::UniqueUntil};
    /// let job = Job::new("sync").unique("sync:42").unique_until(UniqueUntil::Start);
    /// ```
    #[must_use]
    pub fn unique_until(self, until: UniqueUntil) -> Self {
        self.with(|spec| {
            let unique = spec.unique.get_or_insert_default();
            (unique.until, unique.ttl_ms) = (until, None);
        })
    }

    /// The unique key is held for so long from the push, whatever becomes of the job.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// # use std::time::Duration;
    /// let job = Job::new("sync").unique("sync:42").unique_ttl(Duration::from_secs(60));
    /// ```
    #[must_use]
    pub fn unique_ttl(self, ttl: Duration) -> Self {
        self.with(|spec| {
            let unique = spec.unique.get_or_insert_default();
            (unique.until, unique.ttl_ms) = (UniqueUntil::Ttl, Some(millis(ttl)));
        })
    }

    /// What happens when another job holds the unique key; default `Existing`, which answers with
    /// the id of that job.
    ///
    /// ```
    /// # use ganger_client::{Job, protocol::job::OnConflict};
    /// let job = Job::new("index").unique("index:42").on_conflict(OnConflict::Replace);
    /// ```
    #[must_use]
    pub fn on_conflict(self, on_conflict: OnConflict) -> Self {
        self.with(|spec| spec.unique.get_or_insert_default().on_conflict = on_conflict)
    }

    /// The name by which other jobs of the same push wait for it: see
    /// [`Client::workflow`](crate::Client::workflow), which names its jobs by itself.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("fetch").name("source");
    /// ```
    #[must_use]
    pub fn name(self, text: &str) -> Self {
        self.try_with(|spec| {
            spec.name = Some(text.parse().map_err(name("name"))?);
            Ok(())
        })
    }

    /// Not before these jobs are done: names of jobs of the same push, or ids of jobs of the same
    /// batch. Called again it adds more. A time that it is given as well counts from the push.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("bind").after(["cover", "pages"]);
    /// ```
    #[must_use]
    pub fn after<T: AsRef<str>>(self, jobs: impl IntoIterator<Item = T>) -> Self {
        self.try_with(|spec| {
            for job in jobs {
                spec.after
                    .push(job.as_ref().parse().map_err(name("after"))?);
            }
            Ok(())
        })
    }

    /// Not before the jobs that it waits for are over, whatever became of them.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("sweep").after(["import"]).if_settled();
    /// ```
    #[must_use]
    pub fn if_settled(self) -> Self {
        self.with(|spec| spec.condition = Some(Condition::Settled))
    }

    /// When a job that it waits for is not done, it stays blocked for a person instead of being
    /// cancelled: a dead job that is revived and then done lets it go on.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// let job = Job::new("publish").after(["review"]).hold();
    /// ```
    #[must_use]
    pub fn hold(self) -> Self {
        self.with(|spec| spec.on_dead = Some(OnDead::Hold))
    }

    /// How long the job stays visible once it is done, cancelled or expired, at most ten years;
    /// default the queue's, else not at all.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// # use std::time::Duration;
    /// let job = Job::new("report").retain(Duration::from_secs(24 * 3600));
    /// ```
    #[must_use]
    pub fn retain(self, time: Duration) -> Self {
        self.with(|spec| spec.retain_ms = Some(millis(time)))
    }

    /// The job as it is pushed. [`Client::push`](crate::Client::push) calls this by itself.
    ///
    /// # Errors
    /// When the kind, the queue, a tag, the key or the unique key is no legal name.
    ///
    /// ```
    /// # use ganger_client::Job;
    /// assert!(Job::new("a kind with spaces").build().is_err());
    /// ```
    pub fn build(self) -> Result<JobSpec, JobError> {
        self.spec
    }

    fn with(mut self, change: impl FnOnce(&mut JobSpec)) -> Self {
        if let Ok(spec) = &mut self.spec {
            change(spec);
        }
        self
    }

    fn try_with(mut self, change: impl FnOnce(&mut JobSpec) -> Result<(), JobError>) -> Self {
        if let Ok(spec) = &mut self.spec
            && let Err(error) = change(spec)
        {
            self.spec = Err(error);
        }
        self
    }
}

impl TryFrom<Job> for JobSpec {
    type Error = JobError;

    fn try_from(job: Job) -> Result<Self, JobError> {
        job.build()
    }
}

/// A duration in whole milliseconds, rounded up so that nothing happens early.
pub(crate) fn millis(duration: Duration) -> DurationMs {
    let millis = duration.as_nanos().div_ceil(1_000_000);
    DurationMs(u64::try_from(millis).unwrap_or(u64::MAX))
}

pub(crate) fn name(field: &'static str) -> impl FnOnce(IdError) -> JobError {
    move |source| JobError::Name { field, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bad_name_is_reported_by_its_field() {
        let built = Job::new("kind").queue("no queue").tag("no tag").build();
        let error = built.unwrap_err().to_string();
        assert_eq!(error, "the queue is no legal name");
    }

    #[test]
    fn json_says_so_and_messagepack_is_silent() {
        let json = Job::new("k").json(&[1]).unwrap().build().unwrap();
        assert_eq!(&json.payload[..], b"[1]");
        assert_eq!(json.content_type.as_deref(), Some(CONTENT_TYPE_JSON));
        let packed = Job::new("k").payload(&[1]).unwrap().build().unwrap();
        assert_eq!(&packed.payload[..], [0x91, 1]);
        assert_eq!(packed.content_type, None);
    }

    #[test]
    fn a_delay_rounds_up_and_replaces_a_time() {
        let job = Job::new("k").run_at(UNIX_EPOCH);
        let job = job.delay(Duration::from_micros(1)).build().unwrap();
        assert_eq!((job.run_at, job.delay_ms), (None, Some(DurationMs(1))));
    }
}
