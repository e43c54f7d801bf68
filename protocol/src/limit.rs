//! Limits: how many jobs of a queue, or of a key, may run at once and how fast they may begin.
//!
//! A limit names queues or keys, one of the two, by name or by prefix. One of a prefix holds for each
//! name by itself; of several that match a name, the exact one counts, else the longest prefix. What a
//! limit does is the engine's; replies are in [`crate::response`].

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{
    error::WireError,
    ids::{KeyPattern, QueuePattern},
    limits::{LIMIT_RATE_MAX, LIMIT_RATE_PER_MAX, LIMIT_RUNNING_MAX, LIMIT_WEIGHT_MAX, PAGE_MAX},
    time::DurationMs,
};

/// What a limit is for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LimitTarget {
    /// Each queue that matches.
    Queue(QueuePattern),
    /// Each key that matches, in all queues together.
    Key(KeyPattern),
}

impl fmt::Display for LimitTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(queue) => write!(f, "queue {queue}"),
            Self::Key(key) => write!(f, "key {key}"),
        }
    }
}

/// How fast jobs may begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rate {
    /// So many jobs, 1…1 000 000,
    pub n: u32,
    /// in so many ms, 1…one year.
    pub per_ms: DurationMs,
    /// How many may begin at once after a rest, 1…1 000 000; default `n`. With 1 they are spaced
    /// evenly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

impl Rate {
    fn check(&self) -> Result<(), WireError> {
        in_range("n", LIMIT_RATE_MAX, self.n)?;
        if let Some(burst) = self.burst {
            in_range("burst", LIMIT_RATE_MAX, burst)?;
        }
        let (max, actual) = (LIMIT_RATE_PER_MAX.0, self.per_ms.0);
        match (1..=max).contains(&actual) {
            true => Ok(()),
            false => Err(WireError::out_of_range("per_ms", 1, max, actual)),
        }
    }
}

/// Makes a limit, or replaces the one of the same queues or keys.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitSet {
    /// The queues that it is for. Not together with `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueuePattern>,
    /// The keys that it is for. Not together with `queue`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyPattern>,
    /// Jobs that are leased at once at most, 1…1 000 000; absent means any number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u32>,
    /// How fast jobs are granted; absent means at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Keys only: jobs that a key with many waiting gets in its turn, 1…1000; default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Keys only: one job at a time, in order; one that waits for another attempt keeps the later
    /// ones back. Not together with `max_running`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sequence: bool,
}

impl LimitSet {
    /// A limit that limits nothing yet.
    pub fn of(target: LimitTarget) -> Self {
        let (queue, key) = fields(target);
        Self {
            queue,
            key,
            ..Self::default()
        }
    }

    /// What it is for, when the request is well formed.
    pub fn target(&self) -> Option<LimitTarget> {
        target(self.queue.as_ref(), self.key.as_ref()).ok()
    }

    pub(crate) fn check(&self) -> Result<(), WireError> {
        let target = target(self.queue.as_ref(), self.key.as_ref())?;
        let parts = [
            self.max_running.is_some(),
            self.rate.is_some(),
            self.weight.is_some(),
            self.sequence,
        ];
        if !parts.contains(&true) {
            let message = "a limit has max_running, rate, weight or sequence";
            return Err(WireError::bad_request("max_running", message));
        }
        if matches!(target, LimitTarget::Queue(_)) {
            let of_keys = [
                ("weight", self.weight.is_some()),
                ("sequence", self.sequence),
            ];
            if let Some((field, _)) = of_keys.into_iter().find(|(_, given)| *given) {
                let message = format!("{field} goes with keys, not with queues");
                return Err(WireError::bad_request(field, message));
            }
        }
        if self.sequence && self.max_running.is_some() {
            let message = "a sequence runs one job at a time: leave max_running out";
            return Err(WireError::bad_request("max_running", message));
        }
        if let Some(max) = self.max_running {
            in_range("max_running", LIMIT_RUNNING_MAX, max)?;
        }
        if let Some(weight) = self.weight {
            in_range("weight", LIMIT_WEIGHT_MAX, weight)?;
        }
        let rate = self.rate.as_ref();
        rate.map_or(Ok(()), |rate| {
            rate.check().map_err(|error| error.within("rate"))
        })
    }
}

/// Names a limit: by its queues or its keys, as it was set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OneLimit {
    /// The queues that it is for. Not together with `key`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueuePattern>,
    /// The keys that it is for. Not together with `queue`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyPattern>,
}

impl OneLimit {
    /// The limit of this target.
    pub fn of(target: LimitTarget) -> Self {
        let (queue, key) = fields(target);
        Self { queue, key }
    }

    /// What it is for, when the request is well formed.
    pub fn target(&self) -> Option<LimitTarget> {
        target(self.queue.as_ref(), self.key.as_ref()).ok()
    }

    pub(crate) fn check(&self) -> Result<(), WireError> {
        target(self.queue.as_ref(), self.key.as_ref()).map(|_| ())
    }
}

/// Lists limits: those of queues, then those of keys, each in the order of their patterns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitList {
    /// Where the last page ended, as it said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Rows of the page, 1…1000; default 100.
    #[serde(default = "page")]
    pub limit: u32,
}

fn page() -> u32 {
    100
}

impl LimitList {
    pub(crate) fn check(&self) -> Result<(), WireError> {
        in_range(
            "limit",
            u32::try_from(PAGE_MAX).unwrap_or(u32::MAX),
            self.limit,
        )
    }
}

/// A limit as it is shown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[expect(
    missing_docs,
    reason = "the fields are those of `LimitSet`, with the same meaning"
)]
pub struct LimitView {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<QueuePattern>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyPattern>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_running: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub sequence: bool,
    /// Jobs that are leased under it now; absent for a prefix, which holds for each name by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<u64>,
}

impl LimitView {
    /// What it is for.
    pub fn target(&self) -> Option<LimitTarget> {
        target(self.queue.as_ref(), self.key.as_ref()).ok()
    }
}

/// Answers `limit_list`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LimitsReply {
    /// The limits of the page.
    pub limits: Vec<LimitView>,
    /// Where the next page begins; absent when this was the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
}

fn fields(target: LimitTarget) -> (Option<QueuePattern>, Option<KeyPattern>) {
    match target {
        LimitTarget::Queue(queue) => (Some(queue), None),
        LimitTarget::Key(key) => (None, Some(key)),
    }
}

fn target(
    queue: Option<&QueuePattern>,
    key: Option<&KeyPattern>,
) -> Result<LimitTarget, WireError> {
    match (queue, key) {
        (Some(queue), None) => Ok(LimitTarget::Queue(queue.clone())),
        (None, Some(key)) => Ok(LimitTarget::Key(key.clone())),
        (None, None) => Err(WireError::bad_request("queue", "name a queue or a key")),
        (Some(_), Some(_)) => Err(WireError::bad_request(
            "key",
            "a limit is for queues or for keys, not for both",
        )),
    }
}

fn in_range(field: &str, max: u32, actual: u32) -> Result<(), WireError> {
    match (1..=max).contains(&actual) {
        true => Ok(()),
        false => Err(WireError::out_of_range(
            field,
            1,
            u64::from(max),
            u64::from(actual),
        )),
    }
}
