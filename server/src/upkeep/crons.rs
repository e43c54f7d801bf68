//! A cron entry as a line of an export, and back. What goes around it is in `transfer.rs`.

use std::sync::Arc;

use ganger_engine::records::{Content, CronNumber, CronRecord, CronTimes, INLINE_BYTES_MAX};
use ganger_protocol::{
    Bytes, CronName, DurationMs, JobId, JobSpec, NamespaceName, Timestamp,
    cron::{Misfire, Overlap},
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::transfer::{payload_in, payload_out};

/// An entry: what was set, and how far it has come.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct CronLine {
    number: u64,
    namespace: NamespaceName,
    name: CronName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expression: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    timezone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    every_ms: Option<DurationMs>,
    misfire: Misfire,
    misfire_max: u32,
    overlap: Overlap,
    #[serde(default)]
    jitter_ms: DurationMs,
    #[serde(default)]
    paused: bool,
    #[serde(default)]
    from_file: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    next_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_at: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_job: Option<JobId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    queued_at: Option<Timestamp>,
    #[serde(default)]
    pushed: u64,
    #[serde(default)]
    skipped: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    refused: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    /// The job to push, but for the payload.
    spec: Value,
}

impl CronLine {
    /// The line of an entry.
    pub(super) fn of(cron: &CronRecord) -> Result<Self, serde_json::Error> {
        let (expression, timezone, every_ms) = match &cron.times {
            CronTimes::Every(distance) => (None, None, Some(*distance)),
            CronTimes::Expression {
                expression,
                timezone,
            } => (Some(expression.clone()), Some(timezone.clone()), None),
        };
        let spec = JobSpec {
            payload: Bytes::new(),
            ..cron.content.to_spec(cron.queue.clone(), cron.priority)
        };
        let mut spec = serde_json::to_value(spec)?;
        if let Some(fields) = spec.as_object_mut() {
            fields.remove("payload");
        }
        let (payload, payload_base64) = payload_out(&cron.content.payload);
        Ok(Self {
            number: cron.number.0,
            namespace: cron.namespace.clone(),
            name: cron.name.clone(),
            expression,
            timezone,
            every_ms,
            misfire: cron.misfire,
            misfire_max: cron.misfire_max,
            overlap: cron.overlap,
            jitter_ms: cron.jitter_ms,
            paused: cron.paused,
            from_file: cron.from_file,
            next_at: cron.next_at,
            last_at: cron.last_at,
            last_job: cron.last_job,
            queued_at: cron.queued_at,
            pushed: cron.pushed,
            skipped: cron.skipped,
            refused: cron.refused.clone(),
            payload,
            payload_base64,
            spec,
        })
    }
}

/// The entry of a line.
///
/// # Errors
/// What is wrong with it.
pub(super) fn cron_of(line: CronLine) -> Result<CronRecord, String> {
    let times = match (line.expression, line.timezone, line.every_ms) {
        (Some(expression), Some(timezone), None) => CronTimes::Expression {
            expression,
            timezone,
        },
        (None, None, Some(distance)) if distance > DurationMs::ZERO => CronTimes::Every(distance),
        _ => return Err("expression and timezone, or every_ms".to_owned()),
    };
    let spec: JobSpec = serde_json::from_value(line.spec).map_err(|error| error.to_string())?;
    let (queue, priority) = (spec.queue.clone(), spec.priority);
    let content = Content::from(JobSpec {
        payload: payload_in(line.payload, line.payload_base64)?.into(),
        ..spec
    });
    let bytes = content.bound_bytes();
    if bytes > INLINE_BYTES_MAX {
        return Err(format!(
            "the job may have {INLINE_BYTES_MAX} bytes, this one has {bytes}"
        ));
    }
    Ok(CronRecord {
        number: CronNumber(line.number),
        namespace: line.namespace,
        name: line.name,
        times,
        misfire: line.misfire,
        misfire_max: line.misfire_max,
        overlap: line.overlap,
        jitter_ms: line.jitter_ms,
        paused: line.paused,
        from_file: line.from_file,
        queue,
        priority,
        content: Arc::new(content),
        next_at: line.next_at,
        last_at: line.last_at,
        last_job: line.last_job,
        queued_at: line.queued_at,
        pushed: line.pushed,
        skipped: line.skipped,
        refused: line.refused,
    })
}
