//! What is said of a job on its way to its end: how far a worker has come with it, and the wait of
//! somebody for what comes out of it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::{
    error::WireError,
    ids::{JobId, LeaseId},
    job::{DeadReason, JobError, JobState},
    limits::{self, Limits},
    request::{check_count, check_items},
    time::{DurationMs, Timestamp},
};

/// Says how far attempts have come. A deadline does not move by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// 1…1000 leases.
    pub leases: Vec<ProgressItem>,
}

impl Progress {
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), WireError> {
        check_count("leases", 1, limits.items_max, self.leases.len())?;
        check_items("leases", &self.leases, ProgressItem::check)
    }
}

/// How far an attempt has come. What is absent stays as it was said before, by an earlier attempt
/// too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressItem {
    /// The job.
    pub job: JobId,
    /// The lease.
    pub lease: LeaseId,
    /// 0…100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// For a person, ≤ 1 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Opaque bytes, ≤ 64 KiB, which the next attempt receives with its lease, so that it goes on
    /// where this one stops. An empty one takes the earlier one back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<Bytes>,
}

impl ProgressItem {
    /// Nothing but that the attempt goes on, which ends a row of losses.
    pub fn of(job: JobId, lease: LeaseId) -> Self {
        Self {
            job,
            lease,
            percent: None,
            note: None,
            cursor: None,
        }
    }

    fn check(&self) -> Result<(), WireError> {
        if let Some(percent) = self.percent.filter(|percent| *percent > 100) {
            return Err(WireError::out_of_range("percent", 0, 100, percent.into()));
        }
        let sizes = [
            (
                "note",
                limits::NOTE_BYTES_MAX,
                self.note.as_ref().map(String::len),
            ),
            (
                "cursor",
                limits::CURSOR_BYTES_MAX,
                self.cursor.as_ref().map(Bytes::len),
            ),
        ];
        for (field, max, actual) in sizes {
            if let Some(actual) = actual.filter(|actual| *actual > max) {
                return Err(WireError::too_large(field, max, actual));
            }
        }
        Ok(())
    }
}

/// Waits until a job is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wait {
    /// The job.
    pub job: JobId,
    /// How long, in ms, 0…60 000, default 0: the reply says how it stands now.
    #[serde(default)]
    pub wait_ms: DurationMs,
}

impl Wait {
    pub(crate) fn check(&self) -> Result<(), WireError> {
        let (max, actual) = (limits::FETCH_WAIT_MAX.0, self.wait_ms.0);
        match actual <= max {
            true => Ok(()),
            false => Err(WireError::out_of_range("wait_ms", 0, max, actual)),
        }
    }
}

/// Answers `wait`: what came out of the job, or how it stands when the wait has passed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitReply {
    /// Where the job stands. Unless this is terminal, ask again.
    pub state: JobState,
    /// How far its worker had come, 0…100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// What its worker said of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Terminal states: since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
    /// `done`: the result of its ack, when that had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Bytes>,
    /// `dead`: why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<DeadReason>,
    /// `dead`: its last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<JobError>,
}
