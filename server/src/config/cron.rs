//! Cron entries in the configuration: `[[cron]]`, with the fields of the operation `cron_set`, but
//! durations such as `5m` and the payload as a value of the file.

use std::collections::BTreeMap;

use ganger_engine::cron::file::FileCron;
use ganger_protocol::{
    CronName, Kind, NamespaceName, QueueName, WireError,
    cron::{CronSet, Misfire, Overlap},
    ids::Tag,
    job::JobSpec,
    limits::Limits,
};
use serde::{Deserialize, Serialize};

use super::units::Span;

/// A definition that pushes a job over and over, for as long as it stands in the file. Nothing else
/// changes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CronConfig {
    /// The name, unique in its namespace.
    pub name: CronName,
    /// The namespace of its jobs. Default `default`.
    #[serde(default)]
    pub namespace: NamespaceName,
    /// Minute, hour, day of month, month, day of week. This or `every`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
    /// The time zone of `expression`, as the IANA database names it. Default `UTC`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// At the multiples of this distance since the epoch, 1s…366d. This or `expression`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Span>,
    /// The kind of its jobs.
    pub kind: Kind,
    /// The queue of its jobs. Default `default`.
    #[serde(default)]
    pub queue: QueueName,
    /// The payload of its jobs, which travels as JSON. Default none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<serde_json::Value>,
    /// Headers of its jobs. Default none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
    /// 0…9, 9 first. Default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u8>,
    /// Failures after which a job is dead. Default 26.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// The longest attempt. Default the queue's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Span>,
    /// Names to find its jobs by, at most 8. Default none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tags: Vec<Tag>,
    /// Times missed while the server was down: `skip`, `once` or `all`. Default `once`.
    #[serde(default)]
    pub misfire: Misfire,
    /// `all` only: for how many of them a job is pushed, 1…100. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub misfire_max: Option<u32>,
    /// A time at which the last job is not over: `allow`, `skip` or `queue_one`. Default `allow`.
    #[serde(default)]
    pub overlap: Overlap,
    /// Each job runs up to so much later, 0…24h and `every`. Default `0s`.
    #[serde(default)]
    pub jitter: Span,
    /// Whether it pushes nothing for now. Default false.
    #[serde(default)]
    pub paused: bool,
}

impl CronConfig {
    /// The entry as the engine takes it.
    ///
    /// # Errors
    /// What is wrong with it, naming the field.
    pub fn checked(&self, limits: &Limits) -> Result<FileCron, WireError> {
        let mut job = JobSpec {
            queue: self.queue.clone(),
            headers: self.headers.clone(),
            priority: self.priority,
            max_attempts: self.max_attempts,
            timeout_ms: self.timeout.map(|timeout| timeout.0),
            tags: self.tags.clone(),
            ..JobSpec::new(self.kind.clone(), Vec::new())
        };
        if let Some(payload) = &self.payload {
            job.payload = payload.to_string().into();
            job.content_type = Some("application/json".into());
        }
        let entry = CronSet {
            expression: self.expression.clone(),
            every_ms: self.every.map(|every| every.0),
            timezone: self.timezone.clone(),
            misfire: self.misfire,
            misfire_max: self.misfire_max,
            overlap: self.overlap,
            jitter_ms: self.jitter.0,
            paused: Some(self.paused),
            ..CronSet::new(self.name.clone(), job)
        };
        FileCron::new(self.namespace.clone(), entry, limits)
    }
}
