//! The bytes of a batch's record. Everything around it is as in `records.rs`, which also has the
//! content of its callbacks; its keys are in `keys.rs`.

use std::sync::Arc;

use ganger_engine::records::{BatchRecord, Callback};
use ganger_protocol::{BatchId, Timestamp, batch::BatchCounters};

use super::{
    coding::{Malformed, Reader, put_bytes, put_varint},
    records::{content, job_id, optional, put_content, put_optional},
};

/// Appends a batch; its id stands in its key.
pub(super) fn put_batch(out: &mut Vec<u8>, batch: &BatchRecord) {
    put_bytes(out, batch.namespace.as_str().as_bytes());
    put_bytes(out, batch.description.as_bytes());
    put_optional(out, batch.parent.map(|parent| parent.0));
    let counters = &batch.counters;
    for count in [
        counters.total,
        counters.untried,
        counters.pending,
        counters.done,
        counters.dead,
        counters.cancelled,
        counters.expired,
        counters.deleted,
        batch.opened_at.0,
    ] {
        put_varint(out, count);
    }
    for at in [batch.committed_at, batch.completed_at, batch.settled_at] {
        put_optional(out, at.map(|at| at.0));
    }
    out.push(u8::from(batch.lapsed) | u8::from(batch.has_edges) << 1);
    for callback in [&batch.on_complete, &batch.on_success, &batch.on_settled] {
        put_callback(out, callback.as_ref());
    }
}

fn put_callback(out: &mut Vec<u8>, callback: Option<&Callback>) {
    let Some(callback) = callback else {
        out.push(0);
        return;
    };
    match &callback.pushed {
        None => out.push(1),
        Some(job) => {
            out.push(2);
            out.extend_from_slice(job.as_bytes());
        }
    }
    put_bytes(out, callback.queue.as_str().as_bytes());
    put_optional(out, callback.priority.map(u64::from));
    put_content(out, &callback.content);
}

/// Reads a batch.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub(super) fn batch(id: BatchId, body: &[u8]) -> Result<BatchRecord, Malformed> {
    let mut reader = Reader(body);
    let reader = &mut reader;
    let mut record = BatchRecord {
        id,
        namespace: reader.parsed()?,
        description: reader.text()?.to_owned(),
        parent: optional(reader)?.map(BatchId),
        counters: BatchCounters {
            total: reader.varint()?,
            untried: reader.varint()?,
            pending: reader.varint()?,
            done: reader.varint()?,
            dead: reader.varint()?,
            cancelled: reader.varint()?,
            expired: reader.varint()?,
            deleted: reader.varint()?,
        },
        opened_at: Timestamp(reader.varint()?),
        committed_at: optional(reader)?.map(Timestamp),
        completed_at: optional(reader)?.map(Timestamp),
        settled_at: optional(reader)?.map(Timestamp),
        lapsed: false,
        has_edges: false,
        on_complete: None,
        on_success: None,
        on_settled: None,
    };
    (record.lapsed, record.has_edges) = match reader.u8()? {
        bits @ 0..4 => (bits & 1 != 0, bits & 2 != 0),
        _ => return Err(Malformed("a batch has neither lapsed nor not")),
    };
    record.on_complete = callback(reader)?;
    record.on_success = callback(reader)?;
    record.on_settled = callback(reader)?;
    reader.end()?;
    Ok(record)
}

fn callback(reader: &mut Reader<'_>) -> Result<Option<Callback>, Malformed> {
    let pushed = match reader.u8()? {
        0 => return Ok(None),
        1 => None,
        2 => Some(job_id(reader)?),
        _ => return Err(Malformed("a callback is of no known form")),
    };
    Ok(Some(Callback {
        queue: reader.parsed()?,
        priority: match optional(reader)?.map(u8::try_from).transpose() {
            Ok(priority) => priority,
            Err(_too_large) => return Err(Malformed("a priority is too large")),
        },
        content: Arc::new(content(reader)?),
        pushed,
    }))
}
