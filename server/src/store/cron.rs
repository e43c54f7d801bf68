//! The bytes of a cron entry's record. Everything around it is as in `records.rs`, which also has the
//! content of its job; keys and parts are in `keys.rs` and `group.rs`.

use std::sync::Arc;

use ganger_engine::records::{CronNumber, CronRecord, CronTimes};
use ganger_protocol::{
    DurationMs, Timestamp,
    cron::{Misfire, Overlap},
};

use super::{
    coding::{Malformed, Reader, put_bytes, put_varint},
    records::{content, job_id, optional, put_content, put_optional},
};

/// Appends a cron entry; its number stands in its key.
pub(super) fn put_cron(out: &mut Vec<u8>, cron: &CronRecord) {
    put_bytes(out, cron.namespace.as_str().as_bytes());
    put_bytes(out, cron.name.as_str().as_bytes());
    match &cron.times {
        CronTimes::Every(distance) => {
            out.push(1);
            put_varint(out, distance.0);
        }
        CronTimes::Expression {
            expression,
            timezone,
        } => {
            out.push(2);
            put_bytes(out, expression.as_bytes());
            put_bytes(out, timezone.as_bytes());
        }
    }
    out.push(match cron.misfire {
        Misfire::Skip => 1,
        Misfire::Once => 2,
        Misfire::All => 3,
    });
    put_varint(out, u64::from(cron.misfire_max));
    out.push(match cron.overlap {
        Overlap::Allow => 1,
        Overlap::Skip => 2,
        Overlap::QueueOne => 3,
    });
    put_varint(out, cron.jitter_ms.0);
    out.push(u8::from(cron.paused));
    out.push(u8::from(cron.from_file));
    for at in [cron.next_at, cron.last_at, cron.queued_at] {
        put_optional(out, at.map(|at| at.0));
    }
    match &cron.last_job {
        None => out.push(0),
        Some(job) => {
            out.push(1);
            out.extend_from_slice(job.as_bytes());
        }
    }
    put_varint(out, cron.pushed);
    put_varint(out, cron.skipped);
    put_bytes(out, cron.refused.as_bytes());
    put_bytes(out, cron.queue.as_str().as_bytes());
    put_optional(out, cron.priority.map(u64::from));
    put_content(out, &cron.content);
}

/// Reads a cron entry.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub(super) fn cron(number: CronNumber, body: &[u8]) -> Result<CronRecord, Malformed> {
    let mut reader = Reader(body);
    let reader = &mut reader;
    let (namespace, name) = (reader.parsed()?, reader.parsed()?);
    let times = match reader.u8()? {
        1 => CronTimes::Every(DurationMs(reader.varint()?)),
        2 => CronTimes::Expression {
            expression: reader.text()?.to_owned(),
            timezone: reader.text()?.to_owned(),
        },
        _ => return Err(Malformed("the times of a cron entry are of no known form")),
    };
    let misfire = match reader.u8()? {
        1 => Misfire::Skip,
        2 => Misfire::Once,
        3 => Misfire::All,
        _ => return Err(Malformed("a cron entry has no known way with missed times")),
    };
    let misfire_max = reader.narrow()?;
    let overlap = match reader.u8()? {
        1 => Overlap::Allow,
        2 => Overlap::Skip,
        3 => Overlap::QueueOne,
        _ => return Err(Malformed("a cron entry has no known way with overlaps")),
    };
    let record = CronRecord {
        number,
        namespace,
        name,
        times,
        misfire,
        misfire_max,
        overlap,
        jitter_ms: DurationMs(reader.varint()?),
        paused: flag(reader, "a cron entry is neither paused nor not")?,
        from_file: flag(reader, "a cron entry neither stands in a file nor not")?,
        next_at: optional(reader)?.map(Timestamp),
        last_at: optional(reader)?.map(Timestamp),
        queued_at: optional(reader)?.map(Timestamp),
        last_job: match reader.u8()? {
            0 => None,
            1 => Some(job_id(reader)?),
            _ => return Err(Malformed("a job is neither there nor absent")),
        },
        pushed: reader.varint()?,
        skipped: reader.varint()?,
        refused: reader.text()?.to_owned(),
        queue: reader.parsed()?,
        priority: match optional(reader)?.map(u8::try_from).transpose() {
            Ok(priority) => priority,
            Err(_too_large) => return Err(Malformed("a priority is too large")),
        },
        content: Arc::new(content(reader)?),
    };
    reader.end()?;
    Ok(record)
}

fn flag(reader: &mut Reader<'_>, neither: &'static str) -> Result<bool, Malformed> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed(neither)),
    }
}
