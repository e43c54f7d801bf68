//! What is asked of a queue as a whole: settings, pauses, purges, its making and its end.
//!
//! A setting is changed by itself: what a request leaves out stays as it is, and nil goes back to
//! the server's default. What an operation does with it is the engine's; replies are in
//! [`crate::response`].

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    error::WireError,
    ids::QueueName,
    limits::{DELAY_MAX, LEASE_MAX, LEASE_MIN, Limits},
    response::QueueView,
    retry::RetryPolicy,
    time::{DurationMs, INTEGER_MAX, Timestamp},
};

/// What becomes of one setting.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Setting<T> {
    /// It stays as it is: the field is absent.
    #[default]
    Keep,
    /// It goes back to the server's default: the field is nil.
    Default,
    /// It becomes this.
    To(T),
}

impl<T> Setting<T> {
    /// Whether the setting stays as it is.
    pub fn is_kept(&self) -> bool {
        matches!(self, Self::Keep)
    }

    /// Changes a value that is absent when it is the server's default; whether it was another.
    pub fn apply(self, to: &mut Option<T>) -> bool
    where
        T: PartialEq,
    {
        let value = match self {
            Self::Keep => return false,
            Self::Default => None,
            Self::To(value) => Some(value),
        };
        let is_new = *to != value;
        *to = value;
        is_new
    }
}

impl<T: Serialize> Serialize for Setting<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Keep | Self::Default => serializer.serialize_none(),
            Self::To(value) => serializer.serialize_some(value),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Setting<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Option::deserialize(deserializer)?;
        Ok(value.map_or(Self::Default, Self::To))
    }
}

/// Changes settings of a queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueSet {
    /// The queue; it must have been made.
    pub queue: QueueName,
    /// The longest attempt of its jobs that name no other, 1 s…24 h; default 30 min.
    #[serde(default, skip_serializing_if = "Setting::is_kept")]
    pub timeout_ms: Setting<DurationMs>,
    /// The backoff of its jobs that name no other; default as [`RetryPolicy`].
    #[serde(default, skip_serializing_if = "Setting::is_kept")]
    pub backoff: Setting<Box<RetryPolicy>>,
    /// How many dead jobs it keeps, 0…2⁵³ − 1; default 10 000.
    #[serde(default, skip_serializing_if = "Setting::is_kept")]
    pub dead_max: Setting<u64>,
    /// How long it keeps jobs that die from now on, 0…ten years; default 180 days.
    #[serde(default, skip_serializing_if = "Setting::is_kept")]
    pub dead_retention_ms: Setting<DurationMs>,
    /// How long its jobs that end from now on and name no time stay visible once they are done,
    /// cancelled or expired, 0…ten years; default 0: not at all.
    #[serde(default, skip_serializing_if = "Setting::is_kept")]
    pub retain_ms: Setting<DurationMs>,
    /// How many jobs of each of these states it keeps, whatever their times, 0…2⁵³ − 1; default
    /// 10 000. The oldest go first.
    #[serde(default, skip_serializing_if = "Setting::is_kept")]
    pub retained_max: Setting<u64>,
    /// Jobs that may wait in it at most, scheduled, blocked and ready ones together, 0…2⁵³ − 1;
    /// a push behind that is refused. Default: as many as the disk takes.
    #[serde(default, skip_serializing_if = "Setting::is_kept")]
    pub jobs_max: Setting<u64>,
}

impl QueueSet {
    /// A change that leaves all settings as they are.
    pub fn of(queue: QueueName) -> Self {
        Self {
            queue,
            timeout_ms: Setting::Keep,
            backoff: Setting::Keep,
            dead_max: Setting::Keep,
            dead_retention_ms: Setting::Keep,
            retain_ms: Setting::Keep,
            retained_max: Setting::Keep,
            jobs_max: Setting::Keep,
        }
    }

    pub(crate) fn check(&self) -> Result<(), WireError> {
        if let Setting::To(timeout) = self.timeout_ms
            && !(LEASE_MIN..=LEASE_MAX).contains(&timeout)
        {
            let (min, max) = (LEASE_MIN.0, LEASE_MAX.0);
            return Err(WireError::out_of_range("timeout_ms", min, max, timeout.0));
        }
        if let Setting::To(backoff) = &self.backoff {
            backoff.check().map_err(|error| error.within("backoff"))?;
        }
        for (field, time) in [
            ("dead_retention_ms", &self.dead_retention_ms),
            ("retain_ms", &self.retain_ms),
        ] {
            if let Setting::To(time) = time
                && *time > DELAY_MAX
            {
                return Err(WireError::out_of_range(field, 0, DELAY_MAX.0, time.0));
            }
        }
        for (field, count) in [
            ("dead_max", &self.dead_max),
            ("retained_max", &self.retained_max),
            ("jobs_max", &self.jobs_max),
        ] {
            if let Setting::To(count) = count
                && *count > INTEGER_MAX
            {
                return Err(WireError::out_of_range(field, 0, INTEGER_MAX, *count));
            }
        }
        Ok(())
    }
}

/// Stops grants from queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePause {
    /// 1…1000 queues.
    pub queues: Vec<QueueName>,
    /// Resumes them by itself after so many ms, 1…ten years. Not together with `until`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_ms: Option<DurationMs>,
    /// Resumes them by itself at this wall time. Absent both: only `queue_resume` does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Timestamp>,
}

impl QueuePause {
    pub(crate) fn check(&self, limits: &Limits) -> Result<(), WireError> {
        crate::request::check_count("queues", 1, limits.items_max, self.queues.len())?;
        match (self.for_ms, self.until) {
            (Some(_), Some(_)) => Err(WireError::bad_request(
                "until",
                "a pause has for_ms or until, not both",
            )),
            (Some(time), None) if time == DurationMs::ZERO || time > DELAY_MAX => {
                Err(WireError::out_of_range("for_ms", 1, DELAY_MAX.0, time.0))
            }
            (None, Some(at)) if at.0 > INTEGER_MAX => {
                Err(WireError::out_of_range("until", 0, INTEGER_MAX, at.0))
            }
            (Some(_) | None, None) | (None, Some(_)) => Ok(()),
        }
    }
}

/// Names one queue: to show, make, purge or delete it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OneQueue {
    /// The queue.
    pub queue: QueueName,
}

/// Settings of a queue; what is absent is the server's default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are those of `QueueSet`, with the same meaning"
)]
pub struct QueueSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<DurationMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Box<RetryPolicy>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_retention_ms: Option<DurationMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retain_ms: Option<DurationMs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retained_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jobs_max: Option<u64>,
}

/// Answers `queue_show` and `queue_set`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueReply {
    /// The queue as `queue_list` shows it.
    pub queue: QueueView,
    /// Its settings.
    pub settings: QueueSettings,
}

/// Answers `queue_purge`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueuePurgeReply {
    /// How many jobs were removed.
    pub removed: u64,
}
