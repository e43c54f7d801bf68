//! A group as it is written: the puts and deletes that its changes come to, in order. The same
//! bytes go into the log and, sliced, into the overlay.
//!
//! An operation is kind u8 (1 put, 2 delete, 3 delete all that begin so) · bytes of the key u8 ·
//! bytes of the value u16 · key · value. A later one of the same key wins.

use std::ops::Range;

use bytes::Bytes;
use ganger_engine::{
    change::{Change, Group},
    facts::Side,
    records::{BlobKind, GroupNumber, OutcomeRecord, VALUE_BYTES_MAX},
};
use ganger_protocol::{JobId, SessionId};

use super::{
    StoreError, batch,
    coding::{Malformed, Reader, put_bytes, put_varint},
    cron,
    keys::{Key, Meta},
    limit,
    records::{self, PART_BYTES},
    workflow,
};

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_PREFIX: u8 = 3;

/// Bytes before the key of an operation.
const OP_HEADER_BYTES: usize = 4;

/// Parts of the largest session: 16 labels of twice 256 bytes, and two names.
const SESSION_PARTS_MAX: u16 = 2;

/// A group in its written form.
#[derive(Debug)]
pub(super) struct Physical {
    /// The bytes of all operations.
    pub(super) body: Bytes,
    /// Where they stand in it.
    pub(super) ops: Vec<Op>,
}

/// One operation.
#[derive(Debug)]
pub(super) struct Op {
    pub(super) key: Key,
    pub(super) effect: Effect,
}

/// What an operation does to its key.
#[derive(Debug)]
pub(super) enum Effect {
    /// The value that stands there in the body.
    Put(Range<usize>),
    Delete,
    DeletePrefix,
}

impl Physical {
    /// Encodes a group of about so many bytes.
    pub(super) fn encode(group: &Group, bytes_hint: usize) -> Result<Self, StoreError> {
        let mut encoder = Encoder {
            group: group.number,
            body: Vec::with_capacity(bytes_hint),
            ops: Vec::with_capacity(group.changes.len() + 4),
            scratch: Vec::new(),
        };
        for change in &group.changes {
            encoder.change(change)?;
        }
        // The overlay may keep the whole body for one small value of it.
        if encoder.body.capacity() / 2 > encoder.body.len() {
            encoder.body.shrink_to_fit();
        }
        Ok(Self {
            body: Bytes::from(encoder.body),
            ops: encoder.ops,
        })
    }

    /// Finds the operations of a group that was read back.
    pub(super) fn decode(body: Bytes) -> Result<Self, Malformed> {
        let mut ops = Vec::new();
        let mut reader = Reader(&body);
        while !reader.0.is_empty() {
            let kind = reader.u8()?;
            let key_bytes = reader.u8()?;
            let value_bytes = usize::from(u16::from_be_bytes(reader.array()?));
            let key = Key::from_slice(reader.raw(usize::from(key_bytes))?)
                .ok_or(Malformed("a key has a length that none has"))?;
            reader.raw(value_bytes)?;
            let end = body.len() - reader.0.len();
            let effect = match kind {
                PUT => Effect::Put(end - value_bytes..end),
                DELETE => Effect::Delete,
                DELETE_PREFIX => Effect::DeletePrefix,
                _ => return Err(Malformed("an operation is of no known kind")),
            };
            ops.push(Op { key, effect });
        }
        Ok(Self { body, ops })
    }
}

/// The two keys of an edge.
fn edge(awaited: &JobId, waiting: &JobId) -> [Key; 2] {
    [
        Key::edge(Side::Dependents, awaited, waiting),
        Key::edge(Side::Dependencies, waiting, awaited),
    ]
}

struct Encoder {
    group: GroupNumber,
    body: Vec<u8>,
    ops: Vec<Op>,
    scratch: Vec<u8>,
}

impl Encoder {
    fn change(&mut self, change: &Change) -> Result<(), StoreError> {
        match change {
            Change::PutRun(key, run) => {
                self.put(Key::run(key), |out| records::put_run(out, run))?;
            }
            Change::DeleteRun(key) => self.delete(Key::run(key)),
            Change::PutLeft(left) => {
                self.put(Key::left(&left.run), |out| records::put_left(out, left))?;
            }
            Change::DeleteLeft(run) => self.delete(Key::left(run)),
            Change::PutAcks(part, rows) => {
                self.put(Key::acks(part), |out| records::put_acks(out, rows))?;
            }
            Change::DeleteAcks(part) => self.delete(Key::acks(part)),
            Change::PutLeases(part, rows) => {
                self.put(Key::leases(part), |out| records::put_leases(out, rows))?;
            }
            Change::DeleteLeases(part) => self.delete(Key::leases(part)),
            Change::PutJob(job) => {
                self.put(Key::job(&job.id), |out| records::put_job(out, job))?;
            }
            Change::DeleteJob(job) => self.delete(Key::job(job)),
            Change::PutTimer(timer) => self.put(Key::timer(timer), |_| {})?,
            Change::DeleteTimer(timer) => self.delete(Key::timer(timer)),
            Change::PutClosed(closed) => self.put(Key::closed(closed), |_| {})?,
            Change::DeleteClosed(closed) => self.delete(Key::closed(closed)),
            Change::PutSession(session) => self.put_parts(
                |part| Key::session(session.id, part),
                |out| records::put_session(out, session),
            )?,
            Change::DeleteSession(session) => self.delete_session(*session),
            Change::PutOutcome(outcome) => self.put_outcome(outcome)?,
            Change::DeleteOutcomes(producer) => {
                self.mark(
                    DELETE_PREFIX,
                    Key::outcomes(*producer),
                    Effect::DeletePrefix,
                );
            }
            Change::PutUnique(key, lock) => {
                self.put(Key::unique(key), |out| records::put_lock(out, lock))?;
            }
            Change::DeleteUnique(key) => self.delete(Key::unique(key)),
            Change::PutQueue(queue) => {
                self.put(Key::queue(queue.number), |out| {
                    records::put_queue(out, queue);
                })?;
            }
            Change::DeleteQueue(number) => self.delete(Key::queue(*number)),
            Change::PutCron(cron) => {
                self.put(Key::cron(cron.number), |out| cron::put_cron(out, cron))?;
            }
            Change::DeleteCron(number) => self.delete(Key::cron(*number)),
            Change::PutLimit(record) => {
                let key = limit::limit_key(&record.namespace, &record.target);
                self.put(key, |out| limit::put_limit(out, record))?;
            }
            Change::DeleteLimit(namespace, target) => {
                self.delete(limit::limit_key(namespace, target));
            }
            Change::PutBatch(batch) => {
                let key = Key::batch(batch.settled_at.is_some(), batch.id);
                self.put(key, |out| batch::put_batch(out, batch))?;
            }
            Change::DeleteLiveBatch(id) => self.delete(Key::batch(false, *id)),
            Change::DeleteSettledBatch(id) => self.delete(Key::batch(true, *id)),
            Change::PutEdge(awaited, waiting) => {
                for key in edge(awaited, waiting) {
                    self.put(key, |_| {})?;
                }
            }
            Change::DeleteEdge(awaited, waiting) => {
                for key in edge(awaited, waiting) {
                    self.delete(key);
                }
            }
            Change::PutNode(node) => self.put_parts(
                |part| Key::node(node.batch, &node.job, part),
                |out| workflow::put_node(out, node),
            )?,
            Change::DeleteNode(batch, job, parts) => {
                for part in 0..*parts {
                    self.delete(Key::node(*batch, job, part));
                }
                self.delete(Key::node_end(*batch, job));
            }
            Change::PutNodeEnd(batch, job, end) => {
                let key = Key::node_end(*batch, job);
                self.put(key, |out| workflow::put_end(out, *end))?;
            }
            Change::DeleteNodeEnd(batch, job) => self.delete(Key::node_end(*batch, job)),
            Change::PutContent(job, content) => self.put_parts(
                |part| Key::blob(job, BlobKind::Content, part),
                |out| records::put_content(out, content),
            )?,
            Change::PutError(job, slot, error) => self.put_parts(
                |part| Key::blob(job, BlobKind::Error(*slot), part),
                |out| records::put_error(out, error),
            )?,
            Change::PutBytes(job, kind, bytes) => self.put_parts(
                |part| Key::blob(job, *kind, part),
                |out| put_bytes(out, bytes),
            )?,
            Change::DeleteBlob(job, kind, parts) => {
                for part in 0..*parts {
                    self.delete(Key::blob(job, *kind, part));
                }
            }
            Change::PutHead(head) => {
                self.put(Key::meta(Meta::Head), |out| records::put_head(out, head))?;
            }
        }
        Ok(())
    }

    fn put_outcome(&mut self, outcome: &OutcomeRecord) -> Result<(), StoreError> {
        let [slot, ..] = outcome.seq.to_le_bytes();
        self.put_parts(
            |part| Key::outcome(outcome.producer, slot, part),
            |out| records::put_outcome(out, outcome),
        )
    }

    fn delete_session(&mut self, session: SessionId) {
        for part in 0..SESSION_PARTS_MAX {
            self.delete(Key::session(session, part));
        }
    }

    fn put(&mut self, key: Key, encode: impl FnOnce(&mut Vec<u8>)) -> Result<(), StoreError> {
        let start = self.begin(PUT, &key);
        records::put_value(&mut self.body, key.as_slice(), self.group, encode);
        let bytes = self.body.len() - start;
        let short = u16::try_from(bytes)
            .ok()
            .filter(|_| bytes <= VALUE_BYTES_MAX);
        let Some(short) = short else {
            return Err(StoreError::ValueTooLarge { key, bytes });
        };
        let at = start - key.as_slice().len() - 2;
        if let Some(slot) = self.body.get_mut(at..at + 2) {
            slot.copy_from_slice(&short.to_be_bytes());
        }
        let effect = Effect::Put(start..start + bytes);
        self.ops.push(Op { key, effect });
        Ok(())
    }

    /// A record that may be larger than a value: the first part begins with how many there are.
    fn put_parts(
        &mut self,
        key: impl Fn(u16) -> Key,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), StoreError> {
        let mut whole = std::mem::take(&mut self.scratch);
        whole.clear();
        encode(&mut whole);
        let count = whole.len().div_ceil(PART_BYTES).max(1);
        if u16::try_from(count).is_err() {
            let bytes = whole.len();
            return Err(StoreError::ValueTooLarge { key: key(0), bytes });
        }
        for (part, chunk) in (0_u16..).zip(whole.chunks(PART_BYTES)) {
            self.put(key(part), |out| {
                if part == 0 {
                    put_varint(out, count as u64);
                }
                out.extend_from_slice(chunk);
            })?;
        }
        self.scratch = whole;
        Ok(())
    }

    fn delete(&mut self, key: Key) {
        self.mark(DELETE, key, Effect::Delete);
    }

    fn mark(&mut self, kind: u8, key: Key, effect: Effect) {
        self.begin(kind, &key);
        self.ops.push(Op { key, effect });
    }

    /// Appends the header of an operation, without a length of its value, and its key.
    fn begin(&mut self, kind: u8, key: &Key) -> usize {
        let bytes = key.as_slice();
        self.body.reserve(OP_HEADER_BYTES + bytes.len());
        self.body.push(kind);
        self.body.push(u8::try_from(bytes.len()).unwrap_or(u8::MAX));
        self.body.extend_from_slice(&[0; 2]);
        self.body.extend_from_slice(bytes);
        self.body.len()
    }
}
