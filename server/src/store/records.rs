//! The bytes of values: a header with version, group and CRC, then a compact body for each kind
//! of record, written by hand because pushes and acks go through here.
//!
//! Nothing here knows keys, the log or the table; `group.rs` puts records together with keys. A
//! value that fails its CRC, version or shape is damage: it is reported by key, never served.

use std::sync::Arc;

use bytes::Bytes;
use ganger_engine::records::{
    Bits, Content, Entry, GroupNumber, HeadRecord, JobProgress, JobRecord, Lane, LeaseRecord,
    LeftRun, Node, OutcomeRange, OutcomeRecord, PackedJob, Place, ProducerNumber, QueueNumber,
    QueueRecord, Run, RunKey, SessionRecord, UniqueRecord,
};
use ganger_protocol::{
    BatchId, DurationMs, JobId, LeaseId, RetryPolicy, SessionId, Timestamp,
    ids::Tag,
    job::{DeadReason, Headers, JobError, JobState, OnConflict, Unique, UniqueOf, UniqueUntil},
    response::Counters,
    retry::Curve,
    workflow::{Condition, OnDead},
};

use super::coding::{Malformed, Reader, put_bytes, put_signed, put_varint};

/// The version of every value of this release.
pub const VALUE_VERSION: u8 = 1;

/// Bytes of the header of a value: version, group, CRC.
pub const HEADER_BYTES: usize = 13;

/// Bytes of one part of a record that lies in several values.
pub const PART_BYTES: usize = ganger_engine::records::BLOB_PART_BYTES;

/// Positions begin in the middle, so that distances from there are short.
const POSITION_ZERO: u64 = 1 << 63;

/// The CRC of a value: over its key, version, group and body.
fn crc(key: &[u8], head: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(head);
    hasher.update(body);
    hasher.finalize()
}

/// Appends a value: the header, and the body that `encode` appends.
pub fn put_value(
    out: &mut Vec<u8>,
    key: &[u8],
    group: GroupNumber,
    encode: impl FnOnce(&mut Vec<u8>),
) {
    let start = out.len();
    out.push(VALUE_VERSION);
    out.extend_from_slice(&group.0.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
    encode(out);
    if let Some((head, body)) = out
        .get_mut(start..)
        .and_then(|value| value.split_at_mut_checked(HEADER_BYTES))
        && let Some((covered, slot)) = head.split_last_chunk_mut::<4>()
    {
        *slot = crc(key, covered, body).to_be_bytes();
    }
}

/// Checks a value and gives the group that wrote it, and its body.
///
/// # Errors
/// [`Malformed`] for a wrong CRC, an unknown version, or a group behind `newest`.
pub fn open_value<'a>(
    key: &[u8],
    value: &'a [u8],
    newest: GroupNumber,
) -> Result<(GroupNumber, &'a [u8]), Malformed> {
    let (head, body) = value
        .split_at_checked(HEADER_BYTES)
        .ok_or(Malformed("it is shorter than its header"))?;
    let (covered, stored) = head
        .split_last_chunk::<4>()
        .ok_or(Malformed("it is shorter than its header"))?;
    if crc(key, covered, body).to_be_bytes() != *stored {
        return Err(Malformed("its checksum does not match"));
    }
    let mut reader = Reader(covered);
    if reader.u8()? != VALUE_VERSION {
        return Err(Malformed("its version is unknown"));
    }
    let group = GroupNumber(u64::from_be_bytes(reader.array()?));
    if group > newest {
        return Err(Malformed("it is of a group that does not exist"));
    }
    Ok((group, body))
}

/// The stored number of a state.
pub(super) const fn state_number(state: JobState) -> u8 {
    match state {
        JobState::Scheduled => 1,
        JobState::Blocked => 2,
        JobState::Ready => 3,
        JobState::Leased => 4,
        JobState::Done => 5,
        JobState::Dead => 6,
        JobState::Cancelled => 7,
        JobState::Expired => 8,
    }
}

/// The state with this number.
pub(super) fn state_from_number(number: u8) -> Option<JobState> {
    JobState::ALL
        .into_iter()
        .find(|state| state_number(*state) == number)
}

fn put_position(out: &mut Vec<u8>, position: u64) {
    put_signed(out, position.wrapping_sub(POSITION_ZERO).cast_signed());
}

fn position(reader: &mut Reader<'_>) -> Result<u64, Malformed> {
    Ok(reader.signed()?.cast_unsigned().wrapping_add(POSITION_ZERO))
}

fn put_run_key(out: &mut Vec<u8>, run: &RunKey) {
    put_varint(out, u64::from(run.lane.queue.0));
    out.push(run.lane.priority);
    put_varint(out, run.lane.lane);
    put_position(out, run.position);
}

fn run_key(reader: &mut Reader<'_>) -> Result<RunKey, Malformed> {
    Ok(RunKey {
        lane: Lane {
            queue: QueueNumber(reader.narrow()?),
            priority: reader.u8()?,
            lane: reader.varint()?,
        },
        position: position(reader)?,
    })
}

/// A place, short when it differs from `usual` in nothing but position and index.
fn put_place(out: &mut Vec<u8>, place: &Place, usual: &Place) {
    if place == usual {
        out.push(0);
    } else if place.run.lane == usual.run.lane {
        out.push(1);
        put_position(out, place.run.position);
        out.push(place.index);
    } else {
        out.push(2);
        put_run_key(out, &place.run);
        out.push(place.index);
    }
}

fn place(reader: &mut Reader<'_>, usual: &Place) -> Result<Place, Malformed> {
    let run = match reader.u8()? {
        0 => return Ok(*usual),
        1 => RunKey {
            lane: usual.run.lane,
            position: position(reader)?,
        },
        2 => run_key(reader)?,
        _ => return Err(Malformed("a place is of no known form")),
    };
    Ok(Place {
        run,
        index: reader.u8()?,
    })
}

pub(super) fn job_id(reader: &mut Reader<'_>) -> Result<JobId, Malformed> {
    reader.array().map(JobId::from_bytes)
}

// Content: which of the optional fields follow.
const MAX_ATTEMPTS: u64 = 1;
const BACKOFF: u64 = 1 << 1;
const TIMEOUT: u64 = 1 << 2;
const EXPIRES_AT: u64 = 1 << 3;
const UNIQUE: u64 = 1 << 4;
const FAIRNESS_KEY: u64 = 1 << 5;
const TAGS: u64 = 1 << 6;
const BATCH: u64 = 1 << 7;
const NODE: u64 = 1 << 8;
const RETAIN: u64 = 1 << 9;
const CONTENT_TYPE: u64 = 1 << 10;
const HEADERS: u64 = 1 << 11;

/// Appends a content; its bytes stay within [`Content::bound_bytes`].
pub fn put_content(out: &mut Vec<u8>, content: &Content) {
    let flags = [
        (MAX_ATTEMPTS, content.max_attempts.is_some()),
        (BACKOFF, content.backoff.is_some()),
        (TIMEOUT, content.timeout_ms.is_some()),
        (EXPIRES_AT, content.expires_at.is_some()),
        (UNIQUE, content.unique.is_some()),
        (FAIRNESS_KEY, content.key.is_some()),
        (TAGS, !content.tags.is_empty()),
        (BATCH, content.batch.is_some()),
        (NODE, content.node.is_some()),
        (RETAIN, content.retain_ms.is_some()),
        (CONTENT_TYPE, content.content_type.is_some()),
        (HEADERS, !content.headers.is_empty()),
    ];
    let flags = flags
        .iter()
        .filter(|(_, present)| *present)
        .fold(0, |sum, (flag, _)| sum | flag);
    put_varint(out, flags);
    put_bytes(out, content.kind.as_str().as_bytes());
    if flags != 0 {
        put_options(out, content);
    }
    put_bytes(out, &content.payload);
}

fn put_options(out: &mut Vec<u8>, content: &Content) {
    if let Some(attempts) = content.max_attempts {
        put_varint(out, u64::from(attempts));
    }
    if let Some(backoff) = &content.backoff {
        put_policy(out, backoff);
    }
    if let Some(timeout) = content.timeout_ms {
        put_varint(out, timeout.0);
    }
    if let Some(at) = content.expires_at {
        put_varint(out, at.0);
    }
    if let Some(unique) = &content.unique {
        put_unique(out, unique);
    }
    if let Some(key) = &content.key {
        put_bytes(out, key.as_str().as_bytes());
    }
    if !content.tags.is_empty() {
        put_tags(out, &content.tags);
    }
    if let Some(batch) = &content.batch {
        put_varint(out, batch.0);
    }
    if let Some(node) = &content.node {
        put_node(out, node);
    }
    if let Some(retain) = content.retain_ms {
        put_varint(out, retain.0);
    }
    if let Some(content_type) = &content.content_type {
        put_bytes(out, content_type.as_bytes());
    }
    if !content.headers.is_empty() {
        put_varint(out, content.headers.len() as u64);
        for (name, value) in &content.headers {
            put_bytes(out, name.as_bytes());
            put_bytes(out, value.as_bytes());
        }
    }
}

/// Reads a content. Its payload is a copy, so that it pins nothing larger than itself.
pub(super) fn content(reader: &mut Reader<'_>) -> Result<Content, Malformed> {
    let flags = reader.varint()?;
    let has = |flag| flags & flag != 0;
    let mut content = Content {
        kind: reader.parsed()?,
        payload: Bytes::new(),
        content_type: None,
        headers: Headers::new(),
        max_attempts: None,
        backoff: None,
        timeout_ms: None,
        expires_at: None,
        unique: None,
        key: None,
        tags: Vec::new(),
        batch: None,
        node: None,
        retain_ms: None,
    };
    if has(MAX_ATTEMPTS) {
        content.max_attempts = Some(reader.narrow()?);
    }
    if has(BACKOFF) {
        content.backoff = Some(Box::new(policy(reader)?));
    }
    if has(TIMEOUT) {
        content.timeout_ms = Some(DurationMs(reader.varint()?));
    }
    if has(EXPIRES_AT) {
        content.expires_at = Some(Timestamp(reader.varint()?));
    }
    if has(UNIQUE) {
        content.unique = Some(Box::new(unique(reader)?));
    }
    if has(FAIRNESS_KEY) {
        content.key = Some(reader.parsed()?);
    }
    if has(TAGS) {
        content.tags = tags(reader)?;
    }
    if has(BATCH) {
        content.batch = Some(BatchId(reader.varint()?));
    }
    if has(NODE) {
        content.node = Some(Box::new(node(reader)?));
    }
    if has(RETAIN) {
        content.retain_ms = Some(DurationMs(reader.varint()?));
    }
    if has(CONTENT_TYPE) {
        content.content_type = Some(Arc::from(reader.text()?));
    }
    if has(HEADERS) {
        for _ in 0..reader.count()? {
            let name = reader.text()?.to_owned();
            content.headers.insert(name, reader.text()?.to_owned());
        }
    }
    content.payload = Bytes::copy_from_slice(reader.bytes()?);
    Ok(content)
}

/// Reads a content that lies in a blob of its own.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub fn content_of(body: &[u8]) -> Result<Content, Malformed> {
    let mut reader = Reader(body);
    let content = content(&mut reader)?;
    reader.end()?;
    Ok(content)
}

fn put_tags(out: &mut Vec<u8>, tags: &[Tag]) {
    put_varint(out, tags.len() as u64);
    for tag in tags {
        put_bytes(out, tag.as_str().as_bytes());
    }
}

fn tags(reader: &mut Reader<'_>) -> Result<Vec<Tag>, Malformed> {
    (0..reader.count()?).map(|_| reader.parsed()).collect()
}

/// The fields that a unique key is derived from; none: it is named.
const OF: [(UniqueOf, u8); 3] = [
    (UniqueOf::Queue, 1),
    (UniqueOf::Kind, 1 << 1),
    (UniqueOf::Payload, 1 << 2),
];

fn put_unique(out: &mut Vec<u8>, unique: &Unique) {
    let of = OF
        .iter()
        .filter(|(field, _)| unique.of.contains(field))
        .fold(0, |sum, (_, bit)| sum | bit);
    out.push(of);
    if of == 0 {
        let key = unique.key.as_ref().map_or("", Tag::as_str);
        put_bytes(out, key.as_bytes());
    }
    out.push(match unique.until {
        UniqueUntil::Start => 1,
        UniqueUntil::Success => 2,
        UniqueUntil::Settled => 3,
        UniqueUntil::Ttl => 4,
    });
    out.push(match unique.on_conflict {
        OnConflict::Reject => 1,
        OnConflict::Existing => 2,
        OnConflict::Replace => 3,
    });
    put_optional(out, unique.ttl_ms.map(|ttl| ttl.0));
}

fn unique(reader: &mut Reader<'_>) -> Result<Unique, Malformed> {
    let bits = reader.u8()?;
    let of = OF.iter().filter(|(_, bit)| bits & bit != 0);
    Ok(Unique {
        of: of.map(|(field, _)| *field).collect(),
        key: match bits {
            0 => Some(reader.parsed()?),
            _ => None,
        },
        until: match reader.u8()? {
            1 => UniqueUntil::Start,
            2 => UniqueUntil::Success,
            3 => UniqueUntil::Settled,
            4 => UniqueUntil::Ttl,
            _ => return Err(Malformed("a unique key is held until no known event")),
        },
        on_conflict: match reader.u8()? {
            1 => OnConflict::Reject,
            2 => OnConflict::Existing,
            3 => OnConflict::Replace,
            _ => return Err(Malformed("a unique key has no known way of conflict")),
        },
        ttl_ms: optional(reader)?.map(DurationMs),
    })
}

fn put_node(out: &mut Vec<u8>, node: &Node) {
    let name = node.name.as_ref().map_or("", Tag::as_str);
    put_bytes(out, name.as_bytes());
    out.push(match node.condition {
        Condition::Success => 1,
        Condition::Settled => 2,
    });
    out.push(match node.on_dead {
        OnDead::Cancel => 1,
        OnDead::Hold => 2,
    });
}

fn node(reader: &mut Reader<'_>) -> Result<Node, Malformed> {
    Ok(Node {
        name: match reader.text()? {
            "" => None,
            name => Some(
                name.parse()
                    .map_err(|_illegal| Malformed("a name is none"))?,
            ),
        },
        condition: match reader.u8()? {
            1 => Condition::Success,
            2 => Condition::Settled,
            _ => return Err(Malformed("a job waits for no known end")),
        },
        on_dead: match reader.u8()? {
            1 => OnDead::Cancel,
            2 => OnDead::Hold,
            _ => return Err(Malformed("a job that waits has no known way of ending")),
        },
    })
}

fn put_policy(out: &mut Vec<u8>, policy: &RetryPolicy) {
    out.push(match policy.curve {
        Curve::Poly => 1,
        Curve::Exponential => 2,
        Curve::Fixed => 3,
        Curve::Table => 4,
    });
    put_varint(out, policy.base_ms.0);
    put_varint(out, u64::from(policy.factor));
    put_varint(out, policy.cap_ms.0);
    put_varint(out, policy.jitter_ms.0);
    put_varint(out, u64::from(policy.jitter_percent));
    put_varint(out, policy.table_ms.len() as u64);
    for delay in &policy.table_ms {
        put_varint(out, delay.0);
    }
}

fn policy(reader: &mut Reader<'_>) -> Result<RetryPolicy, Malformed> {
    Ok(RetryPolicy {
        curve: match reader.u8()? {
            1 => Curve::Poly,
            2 => Curve::Exponential,
            3 => Curve::Fixed,
            4 => Curve::Table,
            _ => return Err(Malformed("a backoff has no known curve")),
        },
        base_ms: DurationMs(reader.varint()?),
        factor: reader.narrow()?,
        cap_ms: DurationMs(reader.varint()?),
        jitter_ms: DurationMs(reader.varint()?),
        jitter_percent: reader.narrow()?,
        table_ms: (0..reader.count()?)
            .map(|_| reader.varint().map(DurationMs))
            .collect::<Result<_, _>>()?,
    })
}

/// An integer or none: 1 and the integer, or 0.
pub(super) fn put_optional(out: &mut Vec<u8>, value: Option<u64>) {
    match value {
        None => out.push(0),
        Some(value) => {
            out.push(1);
            put_varint(out, value);
        }
    }
}

pub(super) fn optional(reader: &mut Reader<'_>) -> Result<Option<u64>, Malformed> {
    match reader.u8()? {
        0 => Ok(None),
        1 => reader.varint().map(Some),
        _ => Err(Malformed("an optional field is neither there nor absent")),
    }
}

// The forms of an entry of a run.
const ENTRY_REFERENCE: u8 = 0;
const ENTRY_INLINE: u8 = 1;
const ENTRY_BARE: u8 = 2;
const ENTRY_SCHEDULED_INLINE: u8 = 3;
const ENTRY_SCHEDULED_BARE: u8 = 4;

/// Appends a run: the count, then each entry with the two bytes of its length before it, so that
/// one can be found without reading the others.
pub fn put_run(out: &mut Vec<u8>, run: &Run) {
    out.push(u8::try_from(run.entries.len()).unwrap_or(u8::MAX));
    for entry in &run.entries {
        let start = out.len();
        out.extend_from_slice(&[0; 2]);
        put_entry(out, entry);
        let length = out.len() - start - 2;
        if let Some(slot) = out.get_mut(start..start + 2) {
            // A longer one makes the run larger than a value may be, which is refused.
            slot.copy_from_slice(&u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    let (job, at) = match entry {
        Entry::Reference(job) => {
            out.push(ENTRY_REFERENCE);
            out.extend_from_slice(job.as_bytes());
            return;
        }
        Entry::Job(job) => (job, None),
        Entry::Scheduled(at, job) => (job, Some(at)),
    };
    let inline = job.content.as_ref().filter(|_| job.spilled_parts == 0);
    out.push(match (at, inline) {
        (None, Some(_)) => ENTRY_INLINE,
        (None, None) => ENTRY_BARE,
        (Some(_), Some(_)) => ENTRY_SCHEDULED_INLINE,
        (Some(_), None) => ENTRY_SCHEDULED_BARE,
    });
    if let Some(at) = at {
        put_varint(out, at.0);
    }
    put_varint(out, job.pushed_at.0);
    match inline {
        Some(content) => put_content(out, content),
        None => put_varint(out, u64::from(job.spilled_parts)),
    }
}

fn entry(body: &[u8]) -> Result<Entry, Malformed> {
    let mut reader = Reader(body);
    let fields = &mut reader;
    let entry = match fields.u8()? {
        ENTRY_REFERENCE => Entry::Reference(job_id(fields)?),
        ENTRY_INLINE => Entry::Job(inline_job(fields)?),
        ENTRY_BARE => Entry::Job(bare_job(fields)?),
        ENTRY_SCHEDULED_INLINE => {
            let at = Timestamp(fields.varint()?);
            Entry::Scheduled(at, inline_job(fields)?)
        }
        ENTRY_SCHEDULED_BARE => {
            let at = Timestamp(fields.varint()?);
            Entry::Scheduled(at, bare_job(fields)?)
        }
        _ => return Err(Malformed("an entry is of no known form")),
    };
    reader.end()?;
    Ok(entry)
}

fn inline_job(reader: &mut Reader<'_>) -> Result<PackedJob, Malformed> {
    Ok(PackedJob {
        pushed_at: Timestamp(reader.varint()?),
        spilled_parts: 0,
        content: Some(Arc::new(content(reader)?)),
    })
}

fn bare_job(reader: &mut Reader<'_>) -> Result<PackedJob, Malformed> {
    Ok(PackedJob {
        pushed_at: Timestamp(reader.varint()?),
        spilled_parts: reader.narrow()?,
        content: None,
    })
}

fn entry_body<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Malformed> {
    let length = u16::from_be_bytes(reader.array()?);
    reader.raw(usize::from(length))
}

/// Reads a run.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub fn run(body: &[u8]) -> Result<Run, Malformed> {
    let mut reader = Reader(body);
    let count = reader.u8()?;
    let entries = (0..count)
        .map(|_| entry(entry_body(&mut reader)?))
        .collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(Run { entries })
}

/// Reads how many entries a run has, and one of them: `None` behind its last.
///
/// # Errors
/// [`Malformed`] when it is not a run.
pub fn run_entry(body: &[u8], index: u8) -> Result<(u8, Option<Entry>), Malformed> {
    let mut reader = Reader(body);
    let count = reader.u8()?;
    if index >= count {
        return Ok((count, None));
    }
    for _ in 0..index {
        entry_body(&mut reader)?;
    }
    Ok((count, Some(entry(entry_body(&mut reader)?)?)))
}

/// Reads how many entries a scheduled run has, and which of them wait for a time.
///
/// # Errors
/// [`Malformed`] when it is not a run.
pub fn due_at(body: &[u8], due: Timestamp) -> Result<(u8, Bits), Malformed> {
    let mut reader = Reader(body);
    let count = reader.u8()?;
    let mut entries = Bits::default();
    for index in 0..count {
        let mut fields = Reader(entry_body(&mut reader)?);
        let is_scheduled = matches!(fields.u8()?, ENTRY_SCHEDULED_INLINE | ENTRY_SCHEDULED_BARE);
        if is_scheduled && fields.varint()? == due.0 {
            entries.insert(index);
        }
    }
    Ok((count, entries))
}

// Job record: which of the optional fields follow.
const RUN_AT: u64 = 1;
const PLACE: u64 = 1 << 1;
const CLOSED_AT: u64 = 1 << 2;
const REASON: u64 = 1 << 3;
const CONTENT: u64 = 1 << 4;
const CANCEL_AT: u64 = 1 << 5;
const IN_BATCH: u64 = 1 << 6;
const HOLDS_UNIQUE: u64 = 1 << 7;
const PERCENT: u64 = 1 << 8;
const NOTE: u64 = 1 << 9;
const IS_NODE: u64 = 1 << 12;
const HOLDS_KEY: u64 = 1 << 16;

/// Appends the record of a job; its id stands in its key, its group in its header.
pub fn put_job(out: &mut Vec<u8>, job: &JobRecord) {
    let inline = job.content.as_ref().filter(|_| job.spilled_parts == 0);
    let progress = job.progress.as_deref();
    let percent = progress.and_then(|progress| progress.percent);
    let note = progress.and_then(|progress| progress.note.as_ref());
    let flags = [
        (RUN_AT, job.run_at.is_some()),
        (PLACE, job.place.is_some()),
        (CLOSED_AT, job.closed_at.is_some()),
        (REASON, job.reason.is_some()),
        (CONTENT, inline.is_some()),
        (CANCEL_AT, job.cancel_at.is_some()),
        (IN_BATCH, job.batch.is_some()),
        (HOLDS_UNIQUE, job.holds_unique),
        (PERCENT, percent.is_some()),
        (NOTE, note.is_some()),
        (IS_NODE, job.is_node),
        (HOLDS_KEY, job.holds_key),
    ];
    let flags = flags
        .iter()
        .filter(|(_, present)| *present)
        .fold(0, |sum, (flag, _)| sum | flag);
    put_varint(out, flags);
    out.push(state_number(job.state));
    put_varint(out, u64::from(job.queue.0));
    out.push(job.priority);
    put_varint(out, job.lane);
    put_varint(out, job.pushed_at.0);
    for count in [
        job.attempt,
        job.failures,
        job.losses,
        job.losses_in_row,
        job.releases,
        job.waits_for,
    ] {
        put_varint(out, u64::from(count));
    }
    put_varint(out, job.settled_lease.0);
    put_varint(out, job.error_parts.len() as u64);
    for parts in &job.error_parts {
        put_varint(out, u64::from(*parts));
    }
    out.push(job.error_first);
    for parts in [job.spilled_parts, job.cursor_parts(), job.result_parts] {
        put_varint(out, u64::from(parts));
    }
    let times = [
        job.run_at,
        job.closed_at,
        job.cancel_at,
        job.batch.map(|batch| Timestamp(batch.0)),
    ];
    for number in times.into_iter().flatten() {
        put_varint(out, number.0);
    }
    if let Some(place) = &job.place {
        put_place(out, place, &Place::of_birth(&job.id));
    }
    if let Some(reason) = job.reason {
        out.push(match reason {
            DeadReason::Attempts => 1,
            DeadReason::Worker => 2,
            DeadReason::Poison => 3,
        });
    }
    if let Some(percent) = percent {
        out.push(percent);
    }
    if let Some(note) = note {
        put_bytes(out, note.as_bytes());
    }
    if let Some(content) = inline {
        put_content(out, content);
    }
}

/// Reads the record of a job.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub fn job(id: JobId, group: GroupNumber, body: &[u8]) -> Result<JobRecord, Malformed> {
    let mut reader = Reader(body);
    let reader = &mut reader;
    let flags = reader.varint()?;
    let has = |flag| flags & flag != 0;
    let mut job = JobRecord {
        id,
        group,
        state: state_from_number(reader.u8()?).ok_or(Malformed("a state is unknown"))?,
        queue: QueueNumber(reader.narrow()?),
        priority: reader.u8()?,
        lane: reader.varint()?,
        pushed_at: Timestamp(reader.varint()?),
        run_at: None,
        place: None,
        closed_at: None,
        reason: None,
        attempt: reader.narrow()?,
        failures: reader.narrow()?,
        losses: reader.narrow()?,
        losses_in_row: reader.narrow()?,
        releases: reader.narrow()?,
        waits_for: reader.narrow()?,
        settled_lease: LeaseId(reader.varint()?),
        error_parts: (0..reader.count()?)
            .map(|_| reader.narrow())
            .collect::<Result<_, _>>()?,
        error_first: reader.u8()?,
        spilled_parts: reader.narrow()?,
        progress: Some(reader.narrow()?)
            .filter(|parts| *parts > 0)
            .map(|cursor_parts| {
                Box::new(JobProgress {
                    cursor_parts,
                    ..JobProgress::default()
                })
            }),
        result_parts: reader.narrow()?,
        content: None,
        cancel_at: None,
        batch: None,
        holds_unique: has(HOLDS_UNIQUE),
        is_node: has(IS_NODE),
        holds_key: has(HOLDS_KEY),
    };
    if has(RUN_AT) {
        job.run_at = Some(Timestamp(reader.varint()?));
    }
    if has(CLOSED_AT) {
        job.closed_at = Some(Timestamp(reader.varint()?));
    }
    if has(CANCEL_AT) {
        job.cancel_at = Some(Timestamp(reader.varint()?));
    }
    if has(IN_BATCH) {
        job.batch = Some(BatchId(reader.varint()?));
    }
    if has(PLACE) {
        job.place = Some(place(reader, &Place::of_birth(&id))?);
    }
    if has(REASON) {
        job.reason = Some(match reader.u8()? {
            1 => DeadReason::Attempts,
            2 => DeadReason::Worker,
            3 => DeadReason::Poison,
            _ => return Err(Malformed("a job is dead for no known reason")),
        });
    }
    if has(PERCENT) {
        job.progress.get_or_insert_default().percent = Some(reader.u8()?);
    }
    if has(NOTE) {
        job.progress.get_or_insert_default().note = Some(reader.text()?.to_owned());
    }
    if has(CONTENT) {
        job.content = Some(Arc::new(content(reader)?));
    }
    reader.end()?;
    Ok(job)
}

/// Appends the lock of a unique key.
pub fn put_lock(out: &mut Vec<u8>, lock: &UniqueRecord) {
    out.extend_from_slice(lock.job.as_bytes());
    put_optional(out, lock.ends_at.map(|at| at.0));
}

/// Reads the lock of a unique key.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub fn lock(body: &[u8]) -> Result<UniqueRecord, Malformed> {
    let mut reader = Reader(body);
    let lock = UniqueRecord {
        job: job_id(&mut reader)?,
        ends_at: optional(&mut reader)?.map(Timestamp),
    };
    reader.end()?;
    Ok(lock)
}

/// Appends rows of acks.
pub fn put_acks(out: &mut Vec<u8>, rows: &[LeftRun]) {
    put_varint(out, rows.len() as u64);
    for row in rows {
        put_run_key(out, &row.run);
        out.push(row.entries);
        put_bits(out, &row.left);
    }
}

/// Reads rows of acks.
///
/// # Errors
/// [`Malformed`] when they are none.
pub fn acks(body: &[u8]) -> Result<Vec<LeftRun>, Malformed> {
    let mut reader = Reader(body);
    let rows = (0..reader.count()?)
        .map(|_| {
            Ok(LeftRun {
                run: run_key(&mut reader)?,
                entries: reader.u8()?,
                left: bits(&mut reader)?,
            })
        })
        .collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(rows)
}

/// Appends what left a scheduled run, which stands in the key.
pub fn put_left(out: &mut Vec<u8>, left: &LeftRun) {
    out.push(left.entries);
    put_bits(out, &left.left);
}

/// Reads what left a scheduled run.
///
/// # Errors
/// [`Malformed`] when it is not that.
pub fn left(run: RunKey, body: &[u8]) -> Result<LeftRun, Malformed> {
    let mut reader = Reader(body);
    let left = LeftRun {
        run,
        entries: reader.u8()?,
        left: bits(&mut reader)?,
    };
    reader.end()?;
    Ok(left)
}

/// The bytes of a set, lowest entry first, without the empty ones at its end.
fn put_bits(out: &mut Vec<u8>, set: &Bits) {
    let bytes = set.0.iter().flat_map(|word| word.to_le_bytes());
    let mut used = 0_u8;
    for (at, byte) in (1_u8..).zip(bytes.clone()) {
        if byte != 0 {
            used = at;
        }
    }
    out.push(used);
    out.extend(bytes.take(usize::from(used)));
}

fn bits(reader: &mut Reader<'_>) -> Result<Bits, Malformed> {
    let used = usize::from(reader.u8()?);
    let mut bytes = [0_u8; 32];
    let slot = bytes
        .get_mut(..used)
        .ok_or(Malformed("a set has too many entries"))?;
    slot.copy_from_slice(reader.raw(used)?);
    let mut set = Bits::default();
    for (word, chunk) in set.0.iter_mut().zip(bytes.as_chunks::<8>().0) {
        *word = u64::from_le_bytes(*chunk);
    }
    Ok(set)
}

/// Appends rows of leases. Numbers are distances from those of the row before.
pub fn put_leases(out: &mut Vec<u8>, rows: &[LeaseRecord]) {
    put_varint(out, rows.len() as u64);
    let (mut lease, mut session, mut deadline) = (0_u64, 0_u64, 0_u64);
    let distance = |value: u64, before: &mut u64| {
        let distance = value.wrapping_sub(*before).cast_signed();
        *before = value;
        distance
    };
    for row in rows {
        out.extend_from_slice(row.job.as_bytes());
        put_signed(out, distance(row.lease.0, &mut lease));
        put_signed(out, distance(row.session.0, &mut session));
        put_signed(out, distance(row.deadline.0, &mut deadline));
        put_place(out, &row.place, &Place::of_birth(&row.job));
        put_varint(out, u64::from(row.attempt));
        put_varint(out, row.key);
    }
}

/// Reads rows of leases.
///
/// # Errors
/// [`Malformed`] when they are none.
pub fn leases(body: &[u8]) -> Result<Vec<LeaseRecord>, Malformed> {
    let mut reader = Reader(body);
    let (mut lease, mut session, mut deadline) = (0_u64, 0_u64, 0_u64);
    let advance = |before: &mut u64, distance: i64| {
        *before = before.wrapping_add(distance.cast_unsigned());
        *before
    };
    let rows = (0..reader.count()?)
        .map(|_| {
            let job = job_id(&mut reader)?;
            Ok(LeaseRecord {
                job,
                lease: LeaseId(advance(&mut lease, reader.signed()?)),
                session: SessionId(advance(&mut session, reader.signed()?)),
                deadline: Timestamp(advance(&mut deadline, reader.signed()?)),
                place: place(&mut reader, &Place::of_birth(&job))?,
                attempt: reader.narrow()?,
                key: reader.varint()?,
            })
        })
        .collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(rows)
}

/// Appends a session; its id stands in its key.
pub fn put_session(out: &mut Vec<u8>, session: &SessionRecord) {
    put_bytes(out, session.namespace.as_str().as_bytes());
    put_bytes(out, session.name.as_bytes());
    put_bytes(out, session.host.as_bytes());
    put_varint(out, u64::from(session.pid));
    put_varint(out, u64::from(session.capacity));
    put_varint(out, session.ttl.0);
    put_varint(out, session.labels.len() as u64);
    for (name, value) in &session.labels {
        put_bytes(out, name.as_bytes());
        put_bytes(out, value.as_bytes());
    }
}

/// Reads a session.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub fn session(id: SessionId, body: &[u8]) -> Result<SessionRecord, Malformed> {
    let mut reader = Reader(body);
    let session = SessionRecord {
        id,
        namespace: reader.parsed()?,
        name: reader.text()?.to_owned(),
        host: reader.text()?.to_owned(),
        pid: reader.narrow()?,
        capacity: reader.narrow()?,
        ttl: DurationMs(reader.varint()?),
        labels: (0..reader.count()?)
            .map(|_| Ok((reader.text()?.to_owned(), reader.text()?.to_owned())))
            .collect::<Result<_, _>>()?,
    };
    reader.end()?;
    Ok(session)
}

/// Appends an outcome, sequence and time first; its producer stands in its key.
pub fn put_outcome(out: &mut Vec<u8>, outcome: &OutcomeRecord) {
    put_varint(out, outcome.seq);
    put_varint(out, outcome.at.0);
    put_varint(out, outcome.results.len() as u64);
    for range in &outcome.results {
        match range {
            OutcomeRange::Pushed { first, count } => {
                out.push(1);
                out.extend_from_slice(first.as_bytes());
                out.push(*count);
            }
            OutcomeRange::Existing {
                holder,
                is_replaced,
            } => {
                out.push(if *is_replaced { 4 } else { 3 });
                out.extend_from_slice(holder.as_bytes());
            }
            OutcomeRange::Refused {
                code,
                field,
                message,
            } => {
                out.push(2);
                out.push(*code);
                put_bytes(out, field.as_bytes());
                put_bytes(out, message.as_bytes());
            }
        }
    }
}

/// Reads an outcome.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub fn outcome(producer: ProducerNumber, body: &[u8]) -> Result<OutcomeRecord, Malformed> {
    let mut reader = Reader(body);
    let seq = reader.varint()?;
    let at = Timestamp(reader.varint()?);
    let results = (0..reader.count()?)
        .map(|_| match reader.u8()? {
            1 => Ok(OutcomeRange::Pushed {
                first: job_id(&mut reader)?,
                count: reader.u8()?,
            }),
            2 => Ok(OutcomeRange::Refused {
                code: reader.u8()?,
                field: reader.text()?.to_owned(),
                message: reader.text()?.to_owned(),
            }),
            form @ (3 | 4) => Ok(OutcomeRange::Existing {
                holder: job_id(&mut reader)?,
                is_replaced: form == 4,
            }),
            _ => Err(Malformed("an outcome is of no known form")),
        })
        .collect::<Result<_, _>>()?;
    reader.end()?;
    Ok(OutcomeRecord {
        producer,
        seq,
        at,
        results,
    })
}

/// Reads sequence and time of an outcome from its first part.
///
/// # Errors
/// [`Malformed`] when it has none.
pub fn outcome_seq(part: &[u8]) -> Result<(u64, Timestamp), Malformed> {
    let mut reader = Reader(part);
    Ok((reader.varint()?, Timestamp(reader.varint()?)))
}

/// Appends an error of a job.
pub fn put_error(out: &mut Vec<u8>, error: &JobError) {
    put_varint(out, error.at.0);
    put_varint(out, u64::from(error.attempt));
    put_bytes(out, error.kind.as_bytes());
    put_bytes(out, error.message.as_bytes());
    put_bytes(out, error.backtrace.as_bytes());
}

/// Reads an error of a job.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub fn error(body: &[u8]) -> Result<JobError, Malformed> {
    let mut reader = Reader(body);
    let error = JobError {
        at: Timestamp(reader.varint()?),
        attempt: reader.narrow()?,
        kind: reader.text()?.to_owned(),
        message: reader.text()?.to_owned(),
        backtrace: reader.text()?.to_owned(),
    };
    reader.end()?;
    Ok(error)
}

/// Appends a queue; its number stands in its key.
pub fn put_queue(out: &mut Vec<u8>, queue: &QueueRecord) {
    put_bytes(out, queue.namespace.as_str().as_bytes());
    put_bytes(out, queue.name.as_str().as_bytes());
    out.push(u8::from(queue.paused));
    out.push(u8::from(queue.is_purged));
    put_optional(out, queue.paused_until.map(|at| at.0));
    put_optional(out, queue.jobs_max);
    put_optional(out, queue.timeout_ms.map(|timeout| timeout.0));
    put_optional(out, queue.dead_max);
    put_optional(out, queue.dead_retention_ms.map(|retention| retention.0));
    put_optional(out, queue.retain_ms.map(|retention| retention.0));
    put_optional(out, queue.retained_max);
    match &queue.backoff {
        None => out.push(0),
        Some(backoff) => {
            out.push(1);
            put_policy(out, backoff);
        }
    }
    let counters = &queue.counters;
    let counts = [
        counters.scheduled,
        counters.blocked,
        counters.ready,
        counters.leased,
        counters.dead,
        counters.done_kept,
        counters.cancelled_kept,
        counters.expired_kept,
        counters.pushed,
        counters.done,
        counters.cancelled,
        counters.expired,
        counters.deleted,
        counters.granted,
        counters.failed,
        counters.lost,
        counters.released,
        counters.moved_in,
        counters.moved_out,
    ];
    for count in counts {
        put_varint(out, count);
    }
}

/// Reads a queue.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub fn queue(number: QueueNumber, body: &[u8]) -> Result<QueueRecord, Malformed> {
    let mut reader = Reader(body);
    let queue = QueueRecord {
        number,
        namespace: reader.parsed()?,
        name: reader.parsed()?,
        paused: match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed("a queue is neither paused nor not")),
        },
        is_purged: match reader.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed("a queue is neither purged nor not")),
        },
        paused_until: optional(&mut reader)?.map(Timestamp),
        jobs_max: optional(&mut reader)?,
        timeout_ms: optional(&mut reader)?.map(DurationMs),
        dead_max: optional(&mut reader)?,
        dead_retention_ms: optional(&mut reader)?.map(DurationMs),
        retain_ms: optional(&mut reader)?.map(DurationMs),
        retained_max: optional(&mut reader)?,
        backoff: match reader.u8()? {
            0 => None,
            1 => Some(Box::new(policy(&mut reader)?)),
            _ => return Err(Malformed("a backoff is neither there nor absent")),
        },
        counters: Counters {
            scheduled: reader.varint()?,
            blocked: reader.varint()?,
            ready: reader.varint()?,
            leased: reader.varint()?,
            dead: reader.varint()?,
            done_kept: reader.varint()?,
            cancelled_kept: reader.varint()?,
            expired_kept: reader.varint()?,
            pushed: reader.varint()?,
            done: reader.varint()?,
            cancelled: reader.varint()?,
            expired: reader.varint()?,
            deleted: reader.varint()?,
            granted: reader.varint()?,
            failed: reader.varint()?,
            lost: reader.varint()?,
            released: reader.varint()?,
            moved_in: reader.varint()?,
            moved_out: reader.varint()?,
        },
    };
    reader.end()?;
    Ok(queue)
}

/// Appends the shard's own record.
pub fn put_head(out: &mut Vec<u8>, head: &HeadRecord) {
    put_varint(out, head.wall.0);
    put_position(out, head.position_high);
    put_position(out, head.position_low);
    put_varint(out, head.reserved);
    put_varint(out, u64::from(head.next_queue));
}

/// Reads the shard's own record.
///
/// # Errors
/// [`Malformed`] when it is not one.
pub fn head(body: &[u8]) -> Result<HeadRecord, Malformed> {
    let mut reader = Reader(body);
    let head = HeadRecord {
        wall: Timestamp(reader.varint()?),
        position_high: position(&mut reader)?,
        position_low: position(&mut reader)?,
        reserved: reader.varint()?,
        next_queue: reader.narrow()?,
    };
    reader.end()?;
    Ok(head)
}

/// What was written when the store was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MadeRecord {
    /// The format of everything in the store.
    pub format: u32,
    /// The key of the server's HMACs.
    pub secret: [u8; 32],
}

/// Appends what is written when a store is made.
pub fn put_made(out: &mut Vec<u8>, made: &MadeRecord) {
    out.extend_from_slice(&made.format.to_be_bytes());
    out.extend_from_slice(&made.secret);
}

/// Reads what was written when the store was made.
///
/// # Errors
/// [`Malformed`] when it is not that.
pub fn made(body: &[u8]) -> Result<MadeRecord, Malformed> {
    let mut reader = Reader(body);
    let made = MadeRecord {
        format: u32::from_be_bytes(reader.array()?),
        secret: reader.array()?,
    };
    reader.end()?;
    Ok(made)
}
