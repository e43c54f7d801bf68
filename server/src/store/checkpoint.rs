//! Carries the net effect of durable groups from the overlay into the table, in slices, and then
//! lets the log be trimmed.
//!
//! The last slice carries the number of the applied group. A checkpoint that is cut short before
//! it leaves a table with some later or empty values in it, over which the replay of the log writes
//! the same again. When to run is the driver's decision.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use ganger_engine::records::GroupNumber;

use super::{
    Store, StoreError,
    coding::{Malformed, Reader, put_varint},
    damaged,
    keys::{Key, Meta},
    lock,
    overlay::Layer,
    records,
    table::{Span, Table},
};

/// Slices that are written before the table is flushed: whoever reads a page that is not flushed
/// waits until it is, so that the engine would wait for as long as all of a checkpoint takes.
const SLICES_PER_FLUSH: u32 = 4;

/// Whether a checkpoint is through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckpointProgress {
    /// Call again.
    More,
    /// The table has everything up to some group, durable, and the log behind it was trimmed.
    Done,
}

/// A checkpoint on its way.
#[derive(Debug)]
pub(super) struct Checkpoint {
    layer: Arc<Layer>,
    /// Prefixes of which the table must lose everything, before anything is written.
    dropped: Vec<Key>,
    /// Whether the table has room for every large value; then the entries are written.
    has_room: bool,
    /// The last entry that the table has room for, or, of those that are written, has.
    after: Option<Key>,
    /// Slices since the last flush.
    unflushed: u32,
    /// Bytes of log that it makes superfluous.
    log_bytes: u64,
}

impl Store {
    /// Whether a checkpoint should run: one is on its way, enough was written since the last, the
    /// log wants room, or anything at all and the caller's clock says that it is time.
    pub fn checkpoint_due(&self, idle_clock_passed: bool) -> bool {
        let durable = self.durable.load(Ordering::Acquire);
        let has_some = self.applied.load(Ordering::Acquire) < durable;
        self.has_checkpoint.load(Ordering::Acquire)
            || self.log.wants_room()
            || (has_some && idle_clock_passed)
            || self.log_bytes.load(Ordering::Relaxed) >= self.options.checkpoint_bytes
            || self.overlay().bytes() >= self.options.overlay_bytes_max / 2
    }

    /// Whether the table has everything that is durable, and nothing else is to be done.
    pub fn is_settled(&self) -> bool {
        let durable = self.durable.load(Ordering::Acquire);
        self.applied.load(Ordering::Acquire) >= durable && !self.checkpoint_due(false)
    }

    /// Does at most [`StoreOptions::slice_operations_max`](super::StoreOptions) operations of a
    /// checkpoint, and begins one when none
    /// is on its way. Called by one thread.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`], or the error that poisons the store.
    pub fn checkpoint_slice(&self) -> Result<CheckpointProgress, StoreError> {
        self.guarded(|| {
            let mut slot = self.checkpoint();
            if self.log.wants_room() {
                self.log.prepare()?;
            }
            if slot.is_none() {
                *slot = self.begin_checkpoint()?;
            }
            let Some(checkpoint) = &mut *slot else {
                return Ok(CheckpointProgress::Done);
            };
            if !self.write_slice(checkpoint)? {
                return Ok(CheckpointProgress::More);
            }
            let (last, log_bytes) = (checkpoint.layer.last(), checkpoint.log_bytes);
            *slot = None;
            self.finish_checkpoint(last, log_bytes)?;
            Ok(CheckpointProgress::Done)
        })
    }

    /// Freezes what was committed and makes it durable: only durable groups go into the table.
    fn begin_checkpoint(&self) -> Result<Option<Checkpoint>, StoreError> {
        let sealed = self.sealed.load(Ordering::Acquire);
        if self.applied.load(Ordering::Acquire) == sealed {
            return Ok(None);
        }
        let (layer, log_bytes) = {
            let mut overlay = self.overlay_mut();
            (overlay.freeze(), self.log_bytes.load(Ordering::Relaxed))
        };
        self.has_checkpoint.store(true, Ordering::Release);
        if self.durable() < layer.last() {
            let last = self.log.sync()?;
            self.durable.fetch_max(last.0, Ordering::AcqRel);
        }
        Ok(Some(Checkpoint {
            dropped: layer.dropped().copied().collect(),
            layer,
            has_room: false,
            after: None,
            unflushed: 0,
            log_bytes,
        }))
    }

    /// Writes one slice; whether it was the last, which is durable then.
    fn write_slice(&self, checkpoint: &mut Checkpoint) -> Result<bool, StoreError> {
        let operations_max = self.options.slice_operations_max.max(4);
        if let Some(prefix) = checkpoint.dropped.last() {
            let rows = self.table.scan(&Span::of(*prefix), operations_max)?;
            let is_last = rows.len() < operations_max;
            let batch: Vec<_> = rows.into_iter().map(|(key, _)| (key, None)).collect();
            if !batch.is_empty() {
                self.apply_with_digest(batch, checkpoint.layer.last())?;
            }
            if is_last {
                checkpoint.dropped.pop();
            }
            return Ok(false);
        }
        let layer = &checkpoint.layer;
        if !checkpoint.has_room {
            let large = layer.large(checkpoint.after.as_ref(), operations_max);
            checkpoint.has_room = large.len() < operations_max;
            checkpoint.after = large.last().copied().filter(|_| !checkpoint.has_room);
            if !large.is_empty() {
                self.table.make_room(&large)?;
                self.flush_now_and_then(checkpoint, false)?;
                return Ok(false);
            }
        }
        // Two operations are kept: for the digest and the number of the applied group.
        let mut batch = layer.slice(checkpoint.after.as_ref(), operations_max - 2);
        let is_last = batch.len() < operations_max - 2;
        checkpoint.after = batch.last().map(|(key, _)| *key).or(checkpoint.after);
        if is_last {
            batch.push(applied_row(layer.last()));
        }
        self.apply_with_digest(batch, layer.last())?;
        self.flush_now_and_then(checkpoint, is_last)?;
        Ok(is_last)
    }

    /// A slice was written, perhaps the last one.
    fn flush_now_and_then(
        &self,
        checkpoint: &mut Checkpoint,
        is_last: bool,
    ) -> Result<(), StoreError> {
        checkpoint.unflushed += 1;
        if is_last || checkpoint.unflushed >= SLICES_PER_FLUSH {
            checkpoint.unflushed = 0;
            self.table.flush()?;
        }
        Ok(())
    }

    /// Writes a batch and the digest behind it as one.
    fn apply_with_digest(
        &self,
        mut batch: Vec<(Key, Option<Bytes>)>,
        group: GroupNumber,
    ) -> Result<(), StoreError> {
        let mut digest = lock(&self.digest);
        let behind = digest.behind(&*self.table, &batch)?;
        batch.extend(behind.map(|behind| behind.row(group)));
        self.table.apply(&batch)?;
        self.overlay_mut().forget_ahead(&batch);
        *digest = behind.unwrap_or(*digest);
        Ok(())
    }

    /// The table has everything up to `last`, durable.
    fn finish_checkpoint(&self, last: GroupNumber, log_bytes: u64) -> Result<(), StoreError> {
        let layer = self.overlay_mut().drop_frozen();
        drop(layer);
        self.applied.store(last.0, Ordering::Release);
        self.log_bytes.fetch_sub(log_bytes, Ordering::Relaxed);
        self.has_checkpoint.store(false, Ordering::Release);
        self.log.trim(self.trimmable(last))?;
        Ok(())
    }
}

/// The row that says up to which group a table has everything.
pub(super) fn applied_row(group: GroupNumber) -> (Key, Option<Bytes>) {
    let key = Key::meta(Meta::Applied);
    let mut value = Vec::new();
    records::put_value(&mut value, key.as_slice(), group, |out| {
        put_varint(out, group.0);
    });
    (key, Some(Bytes::from(value)))
}

/// The group up to which a table has everything.
pub(super) fn read_applied(table: &dyn Table) -> Result<GroupNumber, StoreError> {
    let key = Key::meta(Meta::Applied);
    let value = table.read(&key)?.ok_or(StoreError::Incomplete {
        what: "the table does not say which groups it has",
    })?;
    let newest = GroupNumber(u64::MAX);
    let (group, body) =
        records::open_value(key.as_slice(), &value, newest).map_err(damaged(&key))?;
    let mut reader = Reader(body);
    let applied = reader.varint().map_err(damaged(&key))?;
    if applied != group.0 {
        return Err(damaged(&key)(Malformed("its two numbers differ")));
    }
    Ok(group)
}
