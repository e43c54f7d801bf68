//! A log and a table in memory, on one simulated disk that fails when it is told to.
//!
//! The disk knows what was synced and what was not; a crash keeps the former and as much of the
//! latter as the caller says. Everything is deterministic. The real ones are in `log.rs` and
//! `sled.rs`; one suite holds them to the same behaviour.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use ganger_engine::{facts::Recovered, records::GroupNumber};

use super::{
    Store, StoreError, StoreOptions,
    keys::Key,
    log::{GroupWrite, Log, LogCursor, LogError, LogState},
    table::{Order, Span, Table, TableError},
};

/// A disk in memory with a log and a table on it. Clones are the same disk.
#[derive(Debug, Clone, Default)]
pub struct MemoryDisk(Arc<Mutex<Disk>>);

/// What a failing call says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// EIO.
    Io,
    /// ENOSPC.
    NoSpace,
    /// Someone else took the log over; for the table, EIO.
    Fenced,
}

/// What a crash leaves of what was not synced. A group that is torn is one that is not kept: no
/// log gives it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Crash {
    /// Groups that were written and not synced, from the oldest, that are there nevertheless.
    pub groups_kept: usize,
    /// Batches of the table that were not flushed, from the oldest, that are there nevertheless.
    pub batches_kept: usize,
}

#[derive(Debug, Clone, Default)]
struct Disk {
    /// Which life of the process the disk serves; handles of earlier ones are dead.
    life: u64,
    calls: u64,
    fault: Option<(u64, Fault)>,
    log: LogDisk,
    table: TableDisk,
}

#[derive(Debug, Clone, Default)]
struct LogDisk {
    is_made: bool,
    was_used: bool,
    epoch: u64,
    /// Durable groups.
    groups: VecDeque<(u64, Bytes)>,
    /// Under way to be durable, or behind what is, oldest first; and whether each is written.
    written: VecDeque<(Vec<(u64, Bytes)>, bool)>,
    /// The last group that is durable with all before it.
    durable: u64,
    /// Appended and not written.
    queue: Vec<(u64, Bytes)>,
    /// The last group that was appended.
    last: u64,
    /// The last group that was trimmed.
    trimmed: u64,
}

type Batch = Vec<(Key, Option<Bytes>)>;

#[derive(Debug, Clone, Default)]
struct TableDisk {
    current: BTreeMap<Key, Bytes>,
    durable: BTreeMap<Key, Bytes>,
    /// Applied and not flushed.
    pending: Vec<Batch>,
}

impl MemoryDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    /// Opens a store on this disk; every earlier one on it is dead.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(&self, options: &StoreOptions) -> Result<(Store, Recovered), StoreError> {
        let (log, table) = self.handles();
        Store::open(Box::new(log), Arc::new(table), options)
    }

    /// A log and a table on this disk; every earlier one on it is dead.
    pub fn handles(&self) -> (MemoryLog, MemoryTable) {
        let mut disk = self.lock();
        disk.life += 1;
        let handle = Handle {
            disk: self.clone(),
            life: disk.life,
        };
        (MemoryLog(handle.clone()), MemoryTable(handle))
    }

    /// Ends the process: what was not synced is lost but for what `crash` keeps.
    pub fn crash(&self, crash: &Crash) {
        let mut disk = self.lock();
        disk.life += 1;
        disk.fault = None;
        let log = &mut disk.log;
        log.keep(crash.groups_kept);
        log.queue.clear();
        let table = &mut disk.table;
        for batch in std::mem::take(&mut table.pending)
            .into_iter()
            .take(crash.batches_kept)
        {
            apply(&mut table.durable, &batch);
        }
        table.current = table.durable.clone();
    }

    /// Another disk with the same content.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().clone())))
    }

    /// Lets the `nth` call from now (0: the next one) fail, and all behind it.
    pub fn fail_at(&self, nth: u64, fault: Fault) {
        let mut disk = self.lock();
        disk.fault = Some((disk.calls + nth, fault));
    }

    /// Calls so far that could have failed.
    pub fn calls(&self) -> u64 {
        self.lock().calls
    }

    /// Groups and batches that are written and not durable: the bounds of a [`Crash`].
    pub fn unsynced(&self) -> (usize, usize) {
        let disk = self.lock();
        let written = disk.log.written.iter().map(|(groups, _)| groups.len());
        (written.sum(), disk.table.pending.len())
    }

    /// Flips one bit of a value of the table, durable or not; whether it has the key.
    pub fn flip(&self, key: &Key, bit: usize) -> bool {
        let mut disk = self.lock();
        let table = &mut disk.table;
        let maps = [&mut table.current, &mut table.durable];
        let mut found = false;
        for value in maps.into_iter().filter_map(|map| map.get_mut(key)) {
            let mut bytes = value.to_vec();
            if let Some(byte) = bytes.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
                found = true;
            }
            *value = Bytes::from(bytes);
        }
        found
    }

    fn lock(&self) -> MutexGuard<'_, Disk> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk {
    /// Counts a call, and lets it fail when its time has come.
    fn call(&mut self) -> Result<(), Fault> {
        let call = self.calls;
        self.calls += 1;
        match self.fault {
            Some((at, fault)) if call >= at => Err(fault),
            Some(_) | None => Ok(()),
        }
    }
}

impl LogDisk {
    /// Moves what is durable with all before it.
    fn take_durable(&mut self) {
        while let Some((_, true)) = self.written.front()
            && let Some((groups, _)) = self.written.pop_front()
        {
            self.durable = groups.last().map_or(self.durable, |(last, _)| *last);
            self.groups.extend(groups);
        }
    }

    /// Writes that others have not done yet.
    fn under_way(&self) -> Vec<GroupWrite> {
        let open = self.written.iter().filter(|(_, is_written)| !is_written);
        let last = |(groups, _): &(Vec<(u64, Bytes)>, bool)| groups.last().map(|(last, _)| *last);
        open.filter_map(last)
            .map(GroupWrite::without_place)
            .collect()
    }

    /// What a crash leaves: so many groups of what was not written, and those behind them that were,
    /// up to the first one that is missing.
    fn keep(&mut self, mut left: usize) {
        for (groups, is_written) in std::mem::take(&mut self.written) {
            let kept = match is_written {
                true => groups.len(),
                false => groups.len().min(left),
            };
            left -= kept.min(left);
            let is_whole = kept == groups.len();
            self.groups.extend(groups.into_iter().take(kept));
            if !is_whole {
                return;
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Handle {
    disk: MemoryDisk,
    life: u64,
}

impl Handle {
    /// The disk, unless it serves another life by now.
    fn lock(&self) -> Result<MutexGuard<'_, Disk>, Fault> {
        let disk = self.disk.lock();
        if disk.life == self.life {
            Ok(disk)
        } else {
            Err(Fault::Fenced)
        }
    }
}

/// The log of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryLog(Handle);

impl MemoryLog {
    fn lock(&self) -> Result<MutexGuard<'_, Disk>, LogError> {
        self.0.lock().map_err(|fault| self.error(fault))
    }

    fn error(&self, fault: Fault) -> LogError {
        if fault == Fault::Fenced {
            return LogError::Fenced {
                own: self.0.life,
                newest: self.0.life + 1,
            };
        }
        LogError::Io {
            doing: "reached",
            path: PathBuf::from("memory"),
            source: io_error(fault),
        }
    }
}

impl Log for MemoryLog {
    fn read_from(
        &self,
        applied: GroupNumber,
        visit: &mut dyn FnMut(GroupNumber, Bytes) -> Result<(), LogError>,
    ) -> Result<GroupNumber, LogError> {
        let (groups, last) = {
            let mut disk = self.lock()?;
            disk.call().map_err(|fault| self.error(fault))?;
            let last = disk.log.groups.back().map(|(number, _)| *number);
            // A trimmed log remembers where it stands.
            let last = last.unwrap_or(disk.log.trimmed);
            (disk.log.groups.clone(), last)
        };
        let first = groups.front().map(|(number, _)| *number);
        if last < applied.0 || first.is_some_and(|first| first > applied.0 + 1) {
            return Err(LogError::Damaged {
                what: format!("it has groups {first:?} to {last}, the table {}", applied.0),
            });
        }
        for (number, body) in groups {
            if number > applied.0 {
                visit(GroupNumber(number), body)?;
            }
        }
        Ok(GroupNumber(last))
    }

    fn read_on(
        &self,
        cursor: &mut LogCursor,
        through: GroupNumber,
        bytes_max: usize,
    ) -> Result<Vec<(GroupNumber, Bytes)>, LogError> {
        let mut disk = self.lock()?;
        disk.call().map_err(|fault| self.error(fault))?;
        let mut groups = Vec::new();
        let mut bytes = 0;
        while cursor.next() <= through && bytes < bytes_max {
            let next = cursor.next();
            let found = disk.log.groups.iter().find(|(number, _)| *number == next.0);
            let (_, body) = found.ok_or_else(|| LogError::Damaged {
                what: format!("group {} is not in it any more", next.0),
            })?;
            bytes += body.len();
            groups.push((next, body.clone()));
            cursor.step();
        }
        Ok(groups)
    }

    fn acquire(&self, last: GroupNumber) -> Result<u64, LogError> {
        let mut disk = self.lock()?;
        disk.call().map_err(|fault| self.error(fault))?;
        let log = &mut disk.log;
        log.is_made = true;
        log.epoch += 1;
        log.last = last.0;
        log.durable = last.0;
        log.queue.clear();
        log.written.clear();
        Ok(log.epoch)
    }

    fn append(&self, epoch: u64, number: GroupNumber, body: Bytes) -> Result<(), LogError> {
        let mut disk = self.lock()?;
        let log = &mut disk.log;
        if epoch != log.epoch {
            return Err(LogError::Fenced {
                own: epoch,
                newest: log.epoch,
            });
        }
        if number.0 != log.last + 1 {
            return Err(LogError::OutOfOrder {
                expected: log.last + 1,
                actual: number.0,
            });
        }
        log.last = number.0;
        log.queue.push((number.0, body));
        Ok(())
    }

    fn gather(&self) -> Result<GroupWrite, LogError> {
        let mut disk = self.lock()?;
        let log = &mut disk.log;
        let queue = std::mem::take(&mut log.queue);
        let Some((last, _)) = queue.last() else {
            return Ok(GroupWrite::default());
        };
        let write = GroupWrite::without_place(*last);
        log.written.push_back((queue, false));
        Ok(write)
    }

    fn write(&self, write: GroupWrite) -> Result<GroupNumber, LogError> {
        let mut disk = self.lock()?;
        if write.last != 0 {
            // A write that fails may have happened nevertheless, and so may a sync.
            disk.call().map_err(|fault| self.error(fault))?;
            disk.call().map_err(|fault| self.error(fault))?;
            let log = &mut disk.log;
            log.was_used = true;
            let mut written = log.written.iter_mut();
            let own = written
                .find(|(groups, _)| groups.last().is_some_and(|(last, _)| *last == write.last));
            if let Some((_, is_over)) = own {
                *is_over = true;
            }
            log.take_durable();
        }
        Ok(GroupNumber(disk.log.durable))
    }

    fn sync(&self) -> Result<GroupNumber, LogError> {
        let write = self.gather()?;
        self.write(write)?;
        let others = self.lock()?.log.under_way();
        for write in others {
            self.write(write)?;
        }
        Ok(GroupNumber(self.lock()?.log.durable))
    }

    fn trim(&self, applied: GroupNumber) -> Result<(), LogError> {
        let mut disk = self.lock()?;
        disk.call().map_err(|fault| self.error(fault))?;
        let log = &mut disk.log;
        let done = log
            .groups
            .partition_point(|(number, _)| *number <= applied.0);
        if let Some((last, _)) = log.groups.drain(..done).next_back() {
            log.trimmed = last;
        }
        Ok(())
    }

    fn wants_room(&self) -> bool {
        false
    }

    fn prepare(&self) -> Result<(), LogError> {
        let mut disk = self.lock()?;
        disk.call().map_err(|fault| self.error(fault))
    }

    fn state(&self) -> LogState {
        let disk = self.0.disk.lock();
        match (disk.log.is_made, disk.log.was_used) {
            (false, _) => LogState::Absent,
            (true, false) if disk.log.groups.is_empty() => LogState::Unused,
            (true, _) => LogState::Used,
        }
    }

    fn disk_bytes(&self) -> u64 {
        let disk = self.0.disk.lock();
        disk.log
            .groups
            .iter()
            .map(|(_, body)| body.len() as u64)
            .sum()
    }
}

/// The table of a [`MemoryDisk`].
#[derive(Debug)]
pub struct MemoryTable(Handle);

impl MemoryTable {
    fn lock(&self, doing: &'static str) -> Result<MutexGuard<'_, Disk>, TableError> {
        let failed = |fault| TableError::Io {
            doing,
            source: io_error(fault),
        };
        let mut disk = self.0.lock().map_err(failed)?;
        disk.call().map_err(failed)?;
        Ok(disk)
    }
}

impl Table for MemoryTable {
    fn read(&self, key: &Key) -> Result<Option<Bytes>, TableError> {
        Ok(self.lock("read")?.table.current.get(key).cloned())
    }

    fn scan(&self, span: &Span, max: usize) -> Result<Vec<(Key, Bytes)>, TableError> {
        let disk = self.lock("read")?;
        if span.is_empty() {
            return Ok(Vec::new());
        }
        let range = disk.table.current.range(span.from..span.to);
        let row = |(key, value): (&Key, &Bytes)| (*key, value.clone());
        Ok(match span.order {
            Order::Ascending => range.take(max).map(row).collect(),
            Order::Descending => range.rev().take(max).map(row).collect(),
        })
    }

    fn make_room(&self, keys: &[Key]) -> Result<(), TableError> {
        let rooms = keys.iter().map(|key| (*key, Some(Bytes::new())));
        self.apply(&rooms.collect::<Vec<_>>())
    }

    fn apply(&self, batch: &[(Key, Option<Bytes>)]) -> Result<(), TableError> {
        let mut disk = self.lock("written")?;
        // A copy: a small value must not keep the whole group that it came with.
        let copy = |value: &Bytes| Bytes::copy_from_slice(value);
        let batch: Batch = batch
            .iter()
            .map(|(key, value)| (*key, value.as_ref().map(copy)))
            .collect();
        apply(&mut disk.table.current, &batch);
        disk.table.pending.push(batch);
        Ok(())
    }

    fn flush(&self) -> Result<(), TableError> {
        let mut disk = self.lock("flushed")?;
        let table = &mut disk.table;
        for batch in std::mem::take(&mut table.pending) {
            apply(&mut table.durable, &batch);
        }
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        let disk = self.0.disk.lock();
        let rows = disk.table.current.iter();
        rows.map(|(key, value)| (key.as_slice().len() + value.len()) as u64)
            .sum()
    }
}

fn apply(rows: &mut BTreeMap<Key, Bytes>, batch: &[(Key, Option<Bytes>)]) {
    for (key, value) in batch {
        match value {
            Some(value) => rows.insert(*key, value.clone()),
            None => rows.remove(key),
        };
    }
}

fn io_error(fault: Fault) -> io::Error {
    match fault {
        Fault::Io | Fault::Fenced => io::Error::from_raw_os_error(5),
        Fault::NoSpace => io::Error::from_raw_os_error(28),
    }
}
