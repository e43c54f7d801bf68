//! Makes a store out of the pieces of another one: what restore and compact have in common.
//!
//! Pieces go straight into a new table, in the order in which they were given; the log begins
//! anew behind the last group. Nothing is the shard's before `CURRENT` says so, which is the
//! caller's to write.

use bytes::Bytes;
use ganger_engine::records::{GroupNumber, HeadRecord};

use super::{
    StoreError,
    backup::Piece,
    checkpoint,
    coding::Malformed,
    damaged,
    digest::Digest,
    format::DataDirectory,
    group::{Effect, Physical},
    keys::{Key, Meta},
    log::{FileLog, Log, LogOptions},
    read_made, records,
    sled::SledTable,
    table::{Span, Table, apply_with_room},
};

/// Numbers that a restored store steps over: leases, sessions and positions that were given after
/// the backup was made are not given a second time.
pub const RESTORE_STEP: u64 = 1 << 32;

/// Operations of one batch.
const BATCH_OPERATIONS: usize = 1_000;

/// What a store was made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rebuilt {
    /// Rows that were taken over.
    pub rows: u64,
    /// Groups that changed them.
    pub groups: u64,
}

/// A store in the making.
#[derive(Debug)]
pub struct Rebuild {
    directory: DataDirectory,
    table: SledTable,
    done: Rebuilt,
}

/// What the new store is to the old one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relation {
    /// It takes its place.
    Successor,
    /// It was that store once; what happened since then is not known.
    Past,
}

impl Rebuild {
    /// Begins in an empty data directory.
    ///
    /// # Errors
    /// [`StoreError::Table`] when it cannot be written.
    pub fn begin(directory: &DataDirectory, cache_bytes: u64) -> Result<Self, StoreError> {
        Ok(Self {
            directory: directory.clone(),
            table: SledTable::open(&directory.table, cache_bytes)?,
            done: Rebuilt::default(),
        })
    }

    /// What was taken so far.
    pub fn done(&self) -> Rebuilt {
        self.done
    }

    /// Takes a piece; the group at which the store ends, once that is known.
    ///
    /// # Errors
    /// [`StoreError`] when a group is malformed, or the table cannot be written.
    pub fn take(&mut self, piece: Piece) -> Result<Option<GroupNumber>, StoreError> {
        match piece {
            Piece::Rows(rows) => {
                self.done.rows += rows.len() as u64;
                let rows: Vec<_> = rows
                    .into_iter()
                    .map(|(key, value)| (key, Some(value)))
                    .collect();
                apply_with_room(&self.table, &rows)?;
                Ok(None)
            }
            Piece::Groups(groups) => {
                for (number, body) in groups {
                    self.done.groups += 1;
                    self.take_group(number, body)?;
                }
                Ok(None)
            }
            Piece::End(group) => Ok(Some(group)),
        }
    }

    fn take_group(&self, number: GroupNumber, body: Bytes) -> Result<(), StoreError> {
        let group = Physical::decode(body).map_err(|Malformed(what)| {
            tracing::error!(group = number.0, what, "a group of a backup is malformed");
            StoreError::Incomplete {
                what: "a group of the backup is malformed",
            }
        })?;
        let mut batch = Vec::new();
        for op in &group.ops {
            match &op.effect {
                Effect::Put(at) => batch.push((op.key, Some(group.body.slice(at.clone())))),
                Effect::Delete => batch.push((op.key, None)),
                Effect::DeletePrefix => {
                    apply_with_room(&self.table, &std::mem::take(&mut batch))?;
                    self.delete_prefix(op.key)?;
                }
            }
        }
        Ok(apply_with_room(&self.table, &batch)?)
    }

    fn delete_prefix(&self, prefix: Key) -> Result<(), StoreError> {
        loop {
            let rows = self.table.scan(&Span::of(prefix), BATCH_OPERATIONS)?;
            if rows.is_empty() {
                return Ok(());
            }
            let batch: Vec<_> = rows.into_iter().map(|(key, _)| (key, None)).collect();
            self.table.apply(&batch)?;
        }
    }

    /// Ends the store at a group, durable.
    ///
    /// # Errors
    /// [`StoreError::Incomplete`] when the pieces do not make a store.
    pub fn finish(self, group: GroupNumber, relation: Relation) -> Result<Rebuilt, StoreError> {
        if read_made(&self.table)?.is_none() {
            return Err(StoreError::Incomplete {
                what: "it does not say when it was made",
            });
        }
        if relation == Relation::Past {
            self.step_over(group)?;
        }
        let digest = add_up(&self.table)?;
        self.table
            .apply(&[checkpoint::applied_row(group), digest.row(group)])?;
        self.table.flush()?;
        let log = FileLog::open(&self.directory.log, LogOptions::default())?;
        log.acquire(group)?;
        Ok(self.done)
    }

    /// Moves the counters of the head behind everything that the old store may have given since.
    fn step_over(&self, group: GroupNumber) -> Result<(), StoreError> {
        let key = Key::meta(Meta::Head);
        let Some(value) = self.table.read(&key)? else {
            return Ok(());
        };
        let (_, body) =
            records::open_value(key.as_slice(), &value, group).map_err(damaged(&key))?;
        let head = records::head(body).map_err(damaged(&key))?;
        let head = HeadRecord {
            position_high: head.position_high.saturating_add(RESTORE_STEP),
            position_low: head.position_low.saturating_sub(RESTORE_STEP),
            reserved: head.reserved.saturating_add(RESTORE_STEP),
            ..head
        };
        let mut value = Vec::new();
        records::put_value(&mut value, key.as_slice(), group, |out| {
            records::put_head(out, &head);
        });
        Ok(self.table.apply(&[(key, Some(Bytes::from(value)))])?)
    }
}

/// The digest of what a table has.
pub(super) fn add_up(table: &dyn Table) -> Result<Digest, StoreError> {
    let mut digest = Digest::default();
    for prefix in super::keys::Prefix::ALL {
        if !prefix.is_digested() {
            continue;
        }
        let mut span = Span::of(Key::of(prefix));
        loop {
            let rows = table.scan(&span, BATCH_OPERATIONS)?;
            let Some((last, _)) = rows.last() else { break };
            span = span.behind(last);
            for (key, value) in &rows {
                digest.add(key, value);
            }
        }
    }
    Ok(digest)
}
