//! What comes out of a job before it is over and when it is: how far an attempt has come, the result
//! that a handler returns, and what somebody gets who waited for it.

use std::{ops::Deref, time::Duration};

use ganger_protocol::{
    Bytes, DurationMs,
    progress::{ProgressItem, WaitReply},
    request::LeaseRef,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{job::millis, worker::PayloadError};

/// How far an attempt has come, for [`Context::progress`](crate::Context::progress). What is not said stays as it was said
/// before, by an earlier attempt too.
///
/// ```no_run
/// # async fn example(context: ganger_client::Context) -> Result<(), ganger_client::Failure> {
/// use ganger_client::Progress;
///
/// let progress = Progress::new().percent(40).note("row 400 of 1000").cursor(&400_u64)?;
/// context.progress(progress).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    percent: Option<u8>,
    note: Option<String>,
    cursor: Option<Bytes>,
}

impl Progress {
    /// Nothing but that the attempt goes on, which ends a row of losses.
    ///
    /// ```
    /// # use ganger_client::Progress;
    /// let progress = Progress::new();
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// How much is done, 0…100.
    ///
    /// ```
    /// # use ganger_client::Progress;
    /// let progress = Progress::new().percent(50);
    /// ```
    #[must_use]
    pub fn percent(mut self, percent: u8) -> Self {
        self.percent = Some(percent);
        self
    }

    /// A note for a person, ≤ 1 KiB.
    ///
    /// ```
    /// # use ganger_client::Progress;
    /// let progress = Progress::new().note("resizing");
    /// ```
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }

    /// Where the next attempt goes on if this one does not end well, ≤ 64 KiB of MessagePack;
    /// [`LeasedJob::read_cursor`](crate::LeasedJob::read_cursor) reads it there.
    ///
    /// # Errors
    /// When the value cannot be encoded.
    ///
    /// ```
    /// # use ganger_client::Progress;
    /// let progress = Progress::new().cursor(&("part-7", 512))?;
    /// # Ok::<(), ganger_client::PayloadError>(())
    /// ```
    pub fn cursor<T: Serialize + ?Sized>(mut self, cursor: &T) -> Result<Self, PayloadError> {
        self.cursor = Some(rmp_serde::to_vec_named(cursor)?.into());
        Ok(self)
    }

    /// Takes back the cursor that was said before: the next attempt begins anew.
    ///
    /// ```
    /// # use ganger_client::Progress;
    /// let progress = Progress::new().percent(0).no_cursor();
    /// ```
    #[must_use]
    pub fn no_cursor(mut self) -> Self {
        self.cursor = Some(Bytes::new());
        self
    }

    pub(crate) fn into_item(self, LeaseRef { job, lease }: LeaseRef) -> ProgressItem {
        ProgressItem {
            percent: self.percent,
            note: self.note,
            cursor: self.cursor,
            ..ProgressItem::of(job, lease)
        }
    }
}

/// What comes out of an attempt that succeeded: for whoever waits for it, and kept as long as the
/// job is.
///
/// ```
/// # use std::time::Duration;
/// use ganger_client::{Failure, JobResult, LeasedJob};
///
/// async fn count(job: LeasedJob) -> Result<JobResult, Failure> {
///     let text: String = job.read()?;
///     Ok(JobResult::json(&text.len())?.retain(Duration::from_secs(3600)))
/// }
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobResult {
    pub(crate) bytes: Option<Bytes>,
    pub(crate) retain_ms: Option<DurationMs>,
}

impl JobResult {
    /// A value as MessagePack, ≤ 256 KiB; [`JobOutcome::read`] reads it.
    ///
    /// # Errors
    /// When the value cannot be encoded.
    ///
    /// ```
    /// # use ganger_client::JobResult;
    /// let result = JobResult::value(&("cat.png", 640))?;
    /// # Ok::<(), ganger_client::PayloadError>(())
    /// ```
    pub fn value<T: Serialize + ?Sized>(value: &T) -> Result<Self, PayloadError> {
        Ok(Self::bytes(rmp_serde::to_vec_named(value)?))
    }

    /// A value as JSON, ≤ 256 KiB; [`JobOutcome::read_json`] reads it.
    ///
    /// # Errors
    /// When the value cannot be encoded.
    ///
    /// ```
    /// # use ganger_client::JobResult;
    /// let result = JobResult::json(&42)?;
    /// # Ok::<(), ganger_client::PayloadError>(())
    /// ```
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, PayloadError> {
        Ok(Self::bytes(serde_json::to_vec(value)?))
    }

    /// Any bytes, ≤ 256 KiB.
    ///
    /// ```
    /// # use ganger_client::JobResult;
    /// let result = JobResult::bytes(vec![1, 2, 3]);
    /// ```
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self {
            bytes: Some(bytes.into()),
            retain_ms: None,
        }
    }

    /// How long the job stays visible, whatever its push and its queue say.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use ganger_client::JobResult;
    /// let result = JobResult::bytes("done").retain(Duration::from_secs(60));
    /// ```
    #[must_use]
    pub fn retain(mut self, time: Duration) -> Self {
        self.retain_ms = Some(millis(time));
        self
    }
}

/// What a handler may return when its attempt succeeded: nothing, or a [`JobResult`].
pub trait IntoJobResult {
    /// The result.
    fn into_job_result(self) -> JobResult;
}

impl IntoJobResult for () {
    fn into_job_result(self) -> JobResult {
        JobResult::default()
    }
}

impl IntoJobResult for JobResult {
    fn into_job_result(self) -> JobResult {
        self
    }
}

/// What [`Client::wait`](crate::Client::wait) has found; its fields are those of [`WaitReply`].
///
/// ```no_run
/// # async fn example(client: ganger_client::Client, id: ganger_client::JobId) -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
///
/// let outcome = client.wait(id, Duration::from_secs(30)).await?;
/// match outcome.state.is_terminal() {
///     true => println!("{} with {:?}", outcome.state, outcome.read::<u64>()?),
///     false => println!("{} %", outcome.percent.unwrap_or(0)),
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobOutcome(WaitReply);

impl JobOutcome {
    pub(crate) fn new(reply: WaitReply) -> Self {
        Self(reply)
    }

    /// The result, written as MessagePack; `None` when there is none.
    ///
    /// # Errors
    /// When the result has another shape.
    ///
    /// ```no_run
    /// # fn example(outcome: ganger_client::JobOutcome) -> Result<(), ganger_client::PayloadError> {
    /// let width: Option<u32> = outcome.read()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn read<T: DeserializeOwned>(&self) -> Result<Option<T>, PayloadError> {
        let result = self.0.result.as_deref().map(rmp_serde::from_slice);
        Ok(result.transpose()?)
    }

    /// The result, written as JSON; `None` when there is none.
    ///
    /// # Errors
    /// When the result has another shape.
    ///
    /// ```no_run
    /// # fn example(outcome: ganger_client::JobOutcome) -> Result<(), ganger_client::PayloadError> {
    /// let names: Option<Vec<String>> = outcome.read_json()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn read_json<T: DeserializeOwned>(&self) -> Result<Option<T>, PayloadError> {
        let result = self.0.result.as_deref().map(serde_json::from_slice);
        Ok(result.transpose()?)
    }

    /// The outcome as the server sent it.
    ///
    /// ```no_run
    /// # fn example(outcome: ganger_client::JobOutcome) {
    /// let error = outcome.into_inner().error;
    /// # }
    /// ```
    pub fn into_inner(self) -> WaitReply {
        self.0
    }
}

impl Deref for JobOutcome {
    type Target = WaitReply;

    fn deref(&self) -> &WaitReply {
        &self.0
    }
}
