//! The bytes of a limit's record and its key. Everything around it is as in `records.rs`.

use ganger_engine::records::LimitRecord;
use ganger_protocol::{
    DurationMs, NamespaceName,
    limit::{LimitTarget, Rate},
};
use sha2::{Digest as _, Sha256};

use super::{
    coding::{Malformed, Reader, put_bytes, put_varint},
    keys::{Digest, Key},
    records::{optional, put_optional},
};

const OF_QUEUE: u8 = 1;
const OF_KEY: u8 = 2;

/// The key of the limit of this target.
pub(super) fn limit_key(namespace: &NamespaceName, target: &LimitTarget) -> Key {
    let mut named = Vec::new();
    put_named(&mut named, namespace, target);
    let digest: [u8; 32] = Sha256::digest(named).into();
    let mut short = Digest::default();
    short.copy_from_slice(&digest[..16]);
    Key::limit(&short)
}

fn put_named(out: &mut Vec<u8>, namespace: &NamespaceName, target: &LimitTarget) {
    put_bytes(out, namespace.as_str().as_bytes());
    let (kind, pattern) = match target {
        LimitTarget::Queue(queue) => (OF_QUEUE, queue.to_string()),
        LimitTarget::Key(key) => (OF_KEY, key.to_string()),
    };
    out.push(kind);
    put_bytes(out, pattern.as_bytes());
}

/// Appends a limit.
pub(super) fn put_limit(out: &mut Vec<u8>, limit: &LimitRecord) {
    put_named(out, &limit.namespace, &limit.target);
    put_optional(out, limit.max_running.map(u64::from));
    put_optional(out, limit.weight.map(u64::from));
    out.push(u8::from(limit.sequence));
    out.push(u8::from(limit.rate.is_some()));
    if let Some(rate) = &limit.rate {
        put_varint(out, u64::from(rate.n));
        put_varint(out, rate.per_ms.0);
        put_optional(out, rate.burst.map(u64::from));
    }
}

/// Reads a limit.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub(super) fn limit(body: &[u8]) -> Result<LimitRecord, Malformed> {
    let mut reader = Reader(body);
    let reader = &mut reader;
    let namespace = reader.parsed()?;
    let target = match reader.u8()? {
        OF_QUEUE => LimitTarget::Queue(reader.parsed()?),
        OF_KEY => LimitTarget::Key(reader.parsed()?),
        _ => return Err(Malformed("a limit is neither of queues nor of keys")),
    };
    let record = LimitRecord {
        namespace,
        target,
        max_running: narrow(optional(reader)?)?,
        weight: narrow(optional(reader)?)?,
        sequence: flag(reader, "a limit is neither a sequence nor not")?,
        rate: match flag(reader, "a limit neither has a rate nor not")? {
            false => None,
            true => Some(Rate {
                n: reader.narrow()?,
                per_ms: DurationMs(reader.varint()?),
                burst: narrow(optional(reader)?)?,
            }),
        },
    };
    reader.end()?;
    Ok(record)
}

fn narrow(number: Option<u64>) -> Result<Option<u32>, Malformed> {
    match number.map(u32::try_from).transpose() {
        Ok(number) => Ok(number),
        Err(_too_large) => Err(Malformed("a figure of a limit is too large")),
    }
}

fn flag(reader: &mut Reader<'_>, neither: &'static str) -> Result<bool, Malformed> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(Malformed(neither)),
    }
}
