//! What a handler is given: the job with its lease, and a context to extend the lease, to see its
//! deadline, and to hear that the attempt is pointless.

use std::{
    ops::Deref,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use ganger_protocol::{
    BatchId, LeaseId, WireError,
    job::GrantedJob,
    limits::{LEASE_MAX, LEASE_MIN},
    request::{ExtendItem, LeaseRef},
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    batch::Batch,
    client::Client,
    error::Error,
    job::{CONTENT_TYPE_JSON, millis},
    progress::Progress,
};

/// A job with the lease under which this attempt runs. Its fields are those of [`GrantedJob`].
///
/// ```no_run
/// # fn example(job: ganger_client::LeasedJob) -> Result<(), ganger_client::Failure> {
/// let (path, width): (String, u32) = job.read()?;
/// println!("attempt {} at {path}, {width}", job.attempt);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct LeasedJob(GrantedJob);

/// Why a payload, a cursor or a result could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PayloadError {
    /// It is not the JSON that was expected, or cannot be written as JSON.
    #[error("not the expected JSON")]
    Json(#[from] serde_json::Error),
    /// It is not the MessagePack that was expected.
    #[error("not the expected MessagePack")]
    MessagePack(#[from] rmp_serde::decode::Error),
    /// It cannot be written as MessagePack.
    #[error("cannot be written as MessagePack")]
    Write(#[from] rmp_serde::encode::Error),
}

impl LeasedJob {
    pub(super) fn new(job: GrantedJob) -> Self {
        Self(job)
    }

    /// The payload as a value: JSON if the content type says so, MessagePack otherwise.
    ///
    /// # Errors
    /// When the payload has another shape.
    ///
    /// ```no_run
    /// # fn example(job: ganger_client::LeasedJob) -> Result<(), ganger_client::PayloadError> {
    /// let user: u64 = job.read()?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, PayloadError> {
        if self.0.content_type.as_deref() == Some(CONTENT_TYPE_JSON) {
            return Ok(serde_json::from_slice(&self.0.payload)?);
        }
        Ok(rmp_serde::from_slice(&self.0.payload)?)
    }

    /// The cursor that an earlier attempt left by [`Progress::cursor`], to go on there; `None` for a
    /// job that begins.
    ///
    /// # Errors
    /// When the cursor has another shape.
    ///
    /// ```no_run
    /// # fn example(job: ganger_client::LeasedJob) -> Result<(), ganger_client::PayloadError> {
    /// let first_row: u64 = job.read_cursor()?.unwrap_or(0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn read_cursor<T: DeserializeOwned>(&self) -> Result<Option<T>, PayloadError> {
        let cursor = self.0.cursor.as_deref().map(rmp_serde::from_slice);
        Ok(cursor.transpose()?)
    }

    /// The job as the server sent it.
    ///
    /// ```no_run
    /// # fn example(job: ganger_client::LeasedJob) {
    /// let payload = job.into_inner().payload;
    /// # }
    /// ```
    pub fn into_inner(self) -> GrantedJob {
        self.0
    }
}

impl Deref for LeasedJob {
    type Target = GrantedJob;

    fn deref(&self) -> &GrantedJob {
        &self.0
    }
}

/// The attempt as its handler sees it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Context {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    client: Client,
    lease: LeaseRef,
    batch: Option<BatchId>,
    deadline: Mutex<Instant>,
    cancelled: CancellationToken,
    reason: OnceLock<CancelReason>,
}

/// Why an attempt is pointless.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// Somebody cancelled the job. What the handler returns still counts.
    Cancelled,
    /// The lease is lost, and another worker may have the job. What the handler returns is dropped.
    Lost,
    /// The worker has waited long enough for this attempt and stops now.
    Shutdown,
}

impl Context {
    pub(super) fn new(
        client: Client,
        (lease, batch): (LeaseRef, Option<BatchId>),
        deadline: Instant,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                client,
                lease,
                batch,
                deadline: Mutex::new(deadline),
                cancelled: CancellationToken::new(),
                reason: OnceLock::new(),
            }),
        }
    }

    /// The number of the lease, which only ever grows: of two attempts at a job the later has the
    /// larger one, so that another system can refuse what an older attempt still does.
    ///
    /// ```no_run
    /// # fn example(context: ganger_client::Context) {
    /// println!("fencing token {}", context.lease());
    /// # }
    /// ```
    pub fn lease(&self) -> LeaseId {
        self.shared.lease.lease
    }

    /// The batch of the job, to add members to it, also once it is committed: they are counted
    /// before this job is over.
    ///
    /// ```no_run
    /// # async fn example(context: ganger_client::Context) -> Result<(), ganger_client::Error> {
    /// if let Some(batch) = context.batch() {
    ///     batch.push(ganger_client::Job::new("render")).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn batch(&self) -> Option<Batch> {
        let Shared { client, lease, .. } = &*self.shared;
        let batch = self.shared.batch?;
        Some(Batch::of_member(client.clone(), batch, *lease))
    }

    /// When the lease ends unless it is extended, as this process measures time.
    ///
    /// ```no_run
    /// # fn example(context: ganger_client::Context) {
    /// let left = context.deadline().duration_since(tokio::time::Instant::now());
    /// # }
    /// ```
    pub fn deadline(&self) -> Instant {
        *self.deadline_guard()
    }

    /// Moves the deadline to at least `by` from now, 1 s…24 h; never to an earlier time. Returns the
    /// new deadline.
    ///
    /// # Errors
    /// [`Error::Refused`] with `lease_lost` when the lease has ended.
    ///
    /// ```no_run
    /// # async fn example(context: ganger_client::Context) -> Result<(), ganger_client::Error> {
    /// # use std::time::Duration;
    /// context.extend(Duration::from_secs(600)).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn extend(&self, by: Duration) -> Result<Instant, Error> {
        let item = self.extend_item(by);
        let sent_at = Instant::now();
        let mut results = self.shared.client.extend(vec![item]).await?;
        let Some(result) = results.pop() else {
            return Err(Error::ReplyShape { op: "extend" });
        };
        if let Some(error) = result.err {
            return Err(Error::Refused(error));
        }
        let left = result.timeout_ms.unwrap_or_else(|| item_ms(by));
        Ok(self.extended(sent_at, left))
    }

    /// Says how far this attempt has come; it is durable when this returns. The deadline does not
    /// move by it.
    ///
    /// # Errors
    /// [`Error::Refused`] with `lease_lost` when the lease has ended.
    ///
    /// ```no_run
    /// # async fn example(context: ganger_client::Context) -> Result<(), ganger_client::Error> {
    /// use ganger_client::Progress;
    ///
    /// context.progress(Progress::new().percent(25).note("downloaded")).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn progress(&self, progress: Progress) -> Result<(), Error> {
        let item = progress.into_item(self.shared.lease);
        let mut results = self.shared.client.progress(vec![item]).await?;
        match results.pop() {
            None => Err(Error::ReplyShape { op: "progress" }),
            Some(result) => result
                .err
                .map_or(Ok(()), |error| Err(Error::Refused(error))),
        }
    }

    /// Whether the attempt is pointless by now.
    ///
    /// ```no_run
    /// # fn example(context: ganger_client::Context) -> Result<(), ganger_client::Failure> {
    /// for chunk in 0..1000 {
    ///     if context.is_cancelled() {
    ///         return Err(ganger_client::Failure::release());
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.is_cancelled()
    }

    /// Waits until the attempt is pointless, and says why.
    ///
    /// ```no_run
    /// # async fn work() {}
    /// # async fn example(context: ganger_client::Context) -> Result<(), ganger_client::Failure> {
    /// tokio::select! {
    ///     () = work() => Ok(()),
    ///     reason = context.cancelled() => Err(ganger_client::Failure::new("stopped", format!("{reason:?}"))),
    /// }
    /// # }
    /// ```
    pub async fn cancelled(&self) -> CancelReason {
        self.shared.cancelled.cancelled().await;
        let reason = self.shared.reason.get().copied();
        reason.unwrap_or(CancelReason::Cancelled)
    }

    /// The token behind [`Context::cancelled`], for what takes one.
    ///
    /// ```no_run
    /// # fn example(context: ganger_client::Context) {
    /// let token = context.cancellation_token().child_token();
    /// # }
    /// ```
    pub fn cancellation_token(&self) -> &CancellationToken {
        &self.shared.cancelled
    }

    pub(super) fn cancel(&self, reason: CancelReason) {
        // The first reason stands.
        let _ = self.shared.reason.set(reason);
        self.shared.cancelled.cancel();
    }

    pub(super) fn extend_item(&self, by: Duration) -> ExtendItem {
        let LeaseRef { job, lease } = self.shared.lease;
        let ms = item_ms(by);
        ExtendItem { job, lease, ms }
    }

    /// The server has moved the deadline to `left` after `sent_at` or a little later.
    pub(super) fn extended(&self, sent_at: Instant, left: ganger_protocol::DurationMs) -> Instant {
        let mut deadline = self.deadline_guard();
        *deadline = (*deadline).max(sent_at + Duration::from_millis(left.0));
        *deadline
    }

    fn deadline_guard(&self) -> MutexGuard<'_, Instant> {
        let deadline = self.shared.deadline.lock();
        deadline.unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a refusal says that the lease has ended.
pub(super) fn is_lost(error: &WireError) -> bool {
    error.code == ganger_protocol::ErrorCode::LeaseLost
}

fn item_ms(by: Duration) -> ganger_protocol::DurationMs {
    millis(by).clamp(LEASE_MIN, LEASE_MAX)
}
