//! The store of a shard: the only place that knows keys and bytes on disk.
//!
//! Groups go into the [`log`], which is what makes them durable, and into an overlay in memory; a
//! checkpoint carries the net effect of many groups into the [`table`], behind which the log is
//! trimmed. Reads merge the overlay with the table.
//! What a group means is the engine's business; when to seal, sync and checkpoint, the driver's.
//!
//! `docs/STORAGE.md` has everything byte by byte. Next on the path of a group: `group.rs`.

pub mod ahead;
pub mod archive;
pub mod backup;
mod batch;
pub mod build;
mod checkpoint;
mod coding;
mod cron;
mod digest;
pub mod doctor;
pub mod format;
mod group;
pub mod keys;
mod limit;
pub mod log;
pub mod memory;
mod overlay;
mod pages;
mod read;
pub mod rebuild;
pub mod records;
mod remains;
pub mod salvage;
pub mod sled;
pub mod spots;
#[cfg(test)]
mod suite;
pub mod table;
mod workflow;

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use ganger_engine::{
    change::Group,
    facts::{Recovered, RecoveredLease},
    records::{GroupNumber, PartKey},
};

pub use self::log::GroupWrite;
use self::{
    backup::Hold,
    checkpoint::Checkpoint,
    digest::Digest,
    format::{DataDirectory, FORMAT, ShardDirectory},
    group::Physical,
    keys::{Key, Meta, Prefix},
    log::{FileLog, Log, LogError, LogOptions, LogState},
    overlay::Overlay,
    records::MadeRecord,
    sled::SledTable,
    table::{Table, TableError},
};
pub use self::{checkpoint::CheckpointProgress, coding::Malformed};

/// How a store is cut.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The shard, which is part of the ids of its jobs. Default 0.
    pub shard: u16,
    /// Bytes that the table may cache; it may take twice as much. Default 32 MiB.
    pub cache_bytes: u64,
    /// How the log cuts its segments.
    pub log: LogOptions,
    /// Bytes of committed changes in memory at which the store is full. A checkpoint is due at
    /// half of it. Default 32 MiB.
    pub overlay_bytes_max: usize,
    /// Bytes of log after which a checkpoint is due. Default 16 MiB.
    pub checkpoint_bytes: u64,
    /// Operations of one slice of a checkpoint at most, at least 4. Default 1 000.
    pub slice_operations_max: usize,
    /// Bytes of log behind the last checkpoint at which the store is full. Default 256 MiB.
    pub log_bytes_max: u64,
    /// The secret of a new store; absent means a random one.
    pub secret: Option<[u8; 32]>,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            shard: 0,
            cache_bytes: 32 << 20,
            log: LogOptions::default(),
            overlay_bytes_max: 32 << 20,
            checkpoint_bytes: 16 << 20,
            slice_operations_max: 100,
            log_bytes_max: 256 << 20,
            secret: None,
        }
    }
}

impl StoreOptions {
    /// A secret for a store that is made.
    ///
    /// # Errors
    /// [`StoreError::Directory`] when the system gives no random bytes.
    pub fn random_secret() -> Result<[u8; 32], StoreError> {
        format::random().map_err(|source| StoreError::Directory {
            doing: "read",
            path: PathBuf::from("/dev/urandom"),
            source,
        })
    }
}

/// What a store takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes of log behind the last checkpoint.
    pub log_bytes: u64,
    /// Bytes of the log's files, spare ones included.
    pub log_disk_bytes: u64,
    /// Bytes of committed changes in memory.
    pub overlay_bytes: u64,
    /// Bytes of the table on disk.
    pub table_disk_bytes: u64,
    /// Files that the table leaks. There must be none.
    pub table_stray_files: u64,
    /// Bytes that the file system still has; `u64::MAX` when nobody knows.
    pub free_bytes: u64,
}

/// Why the store failed, or refused to open.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// An earlier call failed: nothing is written or read any more.
    #[error("the store stopped after an error: {cause}")]
    Poisoned {
        /// The first error.
        cause: String,
    },
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The table failed.
    #[error(transparent)]
    Table(#[from] TableError),
    /// A record is not what was written.
    #[error("the record {key} is damaged: {what}")]
    Damaged {
        /// Its key.
        key: Key,
        /// What is wrong.
        what: &'static str,
    },
    /// Log and table do not belong together, or one of them is gone.
    #[error("the store is damaged: {what}")]
    Incomplete {
        /// What is missing.
        what: &'static str,
    },
    /// A value is over the limit; a bug of whoever made the group.
    #[error("the record {key} has {bytes} bytes, more than a value may have")]
    ValueTooLarge {
        /// Its key.
        key: Key,
        /// Its bytes.
        bytes: usize,
    },
    /// A backup could not go on.
    #[error("the backup cannot go on: {what}")]
    Backup {
        /// Why.
        what: &'static str,
    },
    /// A group does not follow the one before it; a bug of whoever made it.
    #[error("group {actual} was committed where {expected} belongs")]
    OutOfOrder {
        /// The number that follows.
        expected: u64,
        /// The number that came.
        actual: u64,
    },
    /// Another server has the directory.
    #[error("{} is locked by {}", path.display(), pid.map_or_else(
        || "another process".to_owned(), |pid| format!("process {pid}")))]
    Locked {
        /// The lock.
        path: PathBuf,
        /// Who holds it, when it says so.
        pid: Option<u32>,
    },
    /// The directory has something that is not a store's.
    #[error("{} is not a directory of ganger: it has {found:?}", path.display())]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The store is of another format.
    #[error("the store has format {found}, this server knows {known}; export it with its own")]
    Format {
        /// What it has.
        found: u32,
        /// What this server has.
        known: u32,
    },
    /// The directory cannot be used.
    #[error("{} cannot be {doing}", path.display())]
    Directory {
        /// What was being done: `made`, `read`, …
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

/// The store of a shard. Reads may run beside a commit, a sync and a checkpoint.
#[derive(Debug)]
pub struct Store {
    log: Box<dyn Log>,
    table: Arc<dyn Table>,
    options: StoreOptions,
    epoch: u64,
    secret: [u8; 32],
    overlay: RwLock<Overlay>,
    checkpoint: Mutex<Option<Checkpoint>>,
    /// The digest of what the table has.
    digest: Mutex<Digest>,
    /// What a backup still has to read of the log.
    hold: Mutex<Hold>,
    /// The last group that was committed. Raised under the overlay's lock.
    sealed: AtomicU64,
    durable: AtomicU64,
    /// The group up to which the table has everything.
    applied: AtomicU64,
    /// Bytes of groups behind the applied one.
    log_bytes: AtomicU64,
    has_checkpoint: AtomicBool,
    /// Bytes of the last group.
    body_bytes: AtomicUsize,
    poison: OnceLock<String>,
    /// Of a store that lies in a directory; dropped last, since it holds the lock.
    directory: Option<(PathBuf, ShardDirectory)>,
}

impl Store {
    /// Opens a shard's directory, or makes it.
    ///
    /// # Errors
    /// [`StoreError`] when the directory is locked, foreign, of another format, damaged, or cannot
    /// be written.
    pub fn open_dir(path: &Path, options: &StoreOptions) -> Result<(Self, Recovered), StoreError> {
        let directory = ShardDirectory::open(path)?;
        let (mut store, recovered) = Self::open_locked(&directory.data, options)?;
        store.directory = Some((path.to_owned(), directory));
        Ok((store, recovered))
    }

    /// The same for the data of a directory that the caller has locked.
    ///
    /// # Errors
    /// [`StoreError`] when it is damaged or cannot be written.
    pub fn open_locked(
        data: &DataDirectory,
        options: &StoreOptions,
    ) -> Result<(Self, Recovered), StoreError> {
        let log = FileLog::open(&data.log, options.log)?;
        let table = SledTable::open(&data.table, options.cache_bytes)?;
        Self::open(Box::new(log), Arc::new(table), options)
    }

    /// The same over any log and table.
    ///
    /// # Errors
    /// [`StoreError`] when they are damaged or cannot be written.
    pub fn open(
        log: Box<dyn Log>,
        table: Arc<dyn Table>,
        options: &StoreOptions,
    ) -> Result<(Self, Recovered), StoreError> {
        let made = read_made(&*table)?;
        let applied = match (made, log.state()) {
            (None, LogState::Used) => {
                return Err(StoreError::Incomplete {
                    what: "the log has groups, and there is no table for them",
                });
            }
            (Some(_), LogState::Absent) => {
                return Err(StoreError::Incomplete {
                    what: "the table has no log",
                });
            }
            (None, LogState::Absent | LogState::Unused) => GroupNumber(0),
            (Some(_), LogState::Unused | LogState::Used) => checkpoint::read_applied(&*table)?,
        };
        let mut overlay = Overlay::replaying();
        let mut log_bytes = 0;
        let last = log.read_from(applied, &mut |number, body| {
            log_bytes += body.len() as u64;
            let physical = Physical::decode(body).map_err(|Malformed(what)| LogError::Damaged {
                what: format!("group {}: {what}", number.0),
            })?;
            overlay.apply(number, &physical);
            Ok(())
        })?;
        overlay.end_replay();
        let epoch = log.acquire(last)?;
        let secret = match made {
            Some(made) => made.secret,
            None => make(&*table, options)?,
        };
        let digest = Digest::read(&*table)?;
        let store = Self {
            log,
            table,
            options: options.clone(),
            epoch,
            secret,
            overlay: RwLock::new(overlay),
            checkpoint: Mutex::default(),
            digest: Mutex::new(digest),
            hold: Mutex::default(),
            sealed: AtomicU64::new(last.0),
            durable: AtomicU64::new(last.0),
            applied: AtomicU64::new(applied.0),
            log_bytes: AtomicU64::new(log_bytes),
            has_checkpoint: AtomicBool::new(false),
            body_bytes: AtomicUsize::new(0),
            poison: OnceLock::new(),
            directory: None,
        };
        let recovered = store.recover()?;
        Ok((store, recovered))
    }

    /// A store as it lies in a directory, to look at and not to write to: as much as can be read,
    /// and what cannot.
    ///
    /// # Errors
    /// [`StoreError`] when the table cannot be opened at all.
    pub fn inspect(
        data: &DataDirectory,
        options: &StoreOptions,
    ) -> Result<(Self, Vec<StoreError>), StoreError> {
        if !data.has_table() {
            return Err(StoreError::Incomplete {
                what: "its table is gone",
            });
        }
        let table: Arc<dyn Table> = Arc::new(SledTable::open(&data.table, options.cache_bytes)?);
        let mut problems = Vec::new();
        let mut secret = [0; 32];
        match read_made(&*table) {
            Ok(Some(made)) => secret = made.secret,
            Ok(None) => problems.push(StoreError::Incomplete {
                what: "it does not say when it was made",
            }),
            Err(error) => problems.push(error),
        }
        // A table that does not know where it stands may have any of the log's groups.
        let applied = checkpoint::read_applied(&*table).unwrap_or_else(|error| {
            problems.push(error);
            GroupNumber(0)
        });
        let digest = Digest::read(&*table).unwrap_or_else(|error| {
            problems.push(error);
            Digest::default()
        });
        let mut overlay = Overlay::replaying();
        let mut last = applied;
        let log = FileLog::open(&data.log, options.log).and_then(|log| {
            let mut visit = |number: GroupNumber, body| {
                let physical =
                    Physical::decode(body).map_err(|Malformed(what)| LogError::Damaged {
                        what: format!("group {}: {what}", number.0),
                    })?;
                overlay.apply(number, &physical);
                last = number;
                Ok(())
            };
            log.read_from(applied, &mut visit)?;
            Ok(log)
        });
        let log: Box<dyn Log> = match log {
            Ok(log) => {
                if log.state() == LogState::Absent {
                    problems.push(StoreError::Incomplete {
                        what: "the table has no log",
                    });
                }
                Box::new(log)
            }
            Err(error) => {
                problems.push(error.into());
                Box::new(memory::MemoryDisk::new().handles().0)
            }
        };
        let store = Self {
            log,
            table,
            options: options.clone(),
            epoch: 0,
            secret,
            overlay: RwLock::new(overlay),
            checkpoint: Mutex::default(),
            digest: Mutex::new(digest),
            hold: Mutex::default(),
            sealed: AtomicU64::new(last.0),
            durable: AtomicU64::new(last.0),
            applied: AtomicU64::new(applied.0),
            log_bytes: AtomicU64::new(0),
            has_checkpoint: AtomicBool::new(false),
            body_bytes: AtomicUsize::new(0),
            poison: OnceLock::new(),
            directory: None,
        };
        Ok((store, problems))
    }

    /// Stages a group: it is visible to reads from here on, and waits for the next
    /// [`sync`](Self::sync). No IO. Of one key that a group changes twice, the later change wins.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`]; or the store is poisoned by a group that is out of order or has a
    /// value that is too large.
    pub fn commit(&self, group: &Group) -> Result<(), StoreError> {
        self.guarded(|| {
            let expected = self.sealed.load(Ordering::Acquire) + 1;
            if group.number.0 != expected {
                return Err(StoreError::OutOfOrder {
                    expected,
                    actual: group.number.0,
                });
            }
            // Groups of a busy server resemble each other, or take turns.
            let hint = self.body_bytes.load(Ordering::Relaxed).min(2 << 20);
            let physical = Physical::encode(group, hint)?;
            let hint = (physical.body.len() + 64).max(hint - hint / 8);
            self.body_bytes.store(hint, Ordering::Relaxed);
            self.log_bytes
                .fetch_add(physical.body.len() as u64, Ordering::Relaxed);
            // First the log, so that whatever the overlay has can be made durable.
            self.log
                .append(self.epoch, group.number, physical.body.clone())?;
            let mut overlay = self.overlay_mut();
            overlay.apply(group.number, &physical);
            self.sealed.store(group.number.0, Ordering::Release);
            Ok(())
        })
    }

    /// Takes all staged groups, for [`write`](Self::write). What is gathered first becomes durable
    /// first.
    ///
    /// # Errors
    /// [`StoreError::Poisoned`], or the error that poisons the store: never try again.
    pub fn gather(&self) -> Result<GroupWrite, StoreError> {
        self.guarded(|| Ok(self.log.gather()?))
    }

    /// Writes groups to the log and makes them durable; answers with the last group that is durable
    /// with all before it. That may be one before them, while another write is under way.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub fn write(&self, write: GroupWrite) -> Result<GroupNumber, StoreError> {
        self.guarded(|| {
            let last = self.log.write(write)?;
            self.durable.fetch_max(last.0, Ordering::AcqRel);
            Ok(last)
        })
    }

    /// Makes all staged groups durable, also what another thread is writing; answers with the last
    /// durable group.
    ///
    /// # Errors
    /// As [`gather`](Self::gather).
    pub fn sync(&self) -> Result<GroupNumber, StoreError> {
        self.guarded(|| {
            let last = self.log.sync()?;
            self.durable.fetch_max(last.0, Ordering::AcqRel);
            Ok(last)
        })
    }

    /// The last durable group.
    pub fn durable(&self) -> GroupNumber {
        GroupNumber(self.durable.load(Ordering::Acquire))
    }

    /// Whether no group may be sealed before a checkpoint has made room.
    pub fn is_full(&self) -> bool {
        self.has_used_quarters(4)
    }

    /// Whether only the last quarter of that room is left: what can wait leaves it to the rest.
    pub fn is_filling(&self) -> bool {
        self.has_used_quarters(3)
    }

    fn has_used_quarters(&self, quarters: usize) -> bool {
        let log_bytes = self.log_bytes.load(Ordering::Relaxed);
        log_bytes >= self.options.log_bytes_max / 4 * quarters as u64
            || self.overlay().bytes() >= self.options.overlay_bytes_max / 4 * quarters
    }

    /// What the store takes.
    pub fn usage(&self) -> Usage {
        Usage {
            log_bytes: self.log_bytes.load(Ordering::Relaxed),
            log_disk_bytes: self.log.disk_bytes(),
            overlay_bytes: self.overlay().bytes() as u64,
            table_disk_bytes: self.table.disk_bytes(),
            table_stray_files: self.table.stray_files(),
            free_bytes: self.free_bytes(),
        }
    }

    /// The key of the server's HMACs: made when the store was, and never changed.
    pub fn secret(&self) -> [u8; 32] {
        self.secret
    }

    /// The number of the shard.
    pub fn shard(&self) -> u16 {
        self.options.shard
    }

    /// The generation of this owner, raised at each open.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Makes everything durable and carries it into the table, so that the next open is quick.
    /// Nothing may be committed after that.
    ///
    /// # Errors
    /// [`StoreError`]; what was durable before is durable still.
    pub fn settle(&self) -> Result<(), StoreError> {
        self.sync()?;
        while self.applied.load(Ordering::Acquire) < self.sealed.load(Ordering::Acquire) {
            self.checkpoint_slice()?;
        }
        Ok(())
    }

    /// [Settles](Self::settle) the store and unlocks its directory.
    ///
    /// # Errors
    /// As `settle`.
    pub fn close(self) -> Result<(), StoreError> {
        self.settle()
    }

    fn free_bytes(&self) -> u64 {
        let Some((path, _)) = &self.directory else {
            return u64::MAX;
        };
        rustix::fs::statvfs(path).map_or(u64::MAX, |fs| fs.f_bavail.saturating_mul(fs.f_frsize))
    }

    /// Runs a call unless an earlier one failed, and remembers when it fails. A damaged record is
    /// refused each time it is read; the others are still served.
    fn guarded<T>(&self, call: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
        if let Some(cause) = self.poison.get() {
            return Err(StoreError::Poisoned {
                cause: cause.clone(),
            });
        }
        call().inspect_err(|error| {
            if matches!(
                error,
                StoreError::Damaged { .. } | StoreError::Backup { .. }
            ) {
                return;
            }
            // Another thread may have failed first; then its error is the cause.
            let _ = self.poison.set(describe(error));
        })
    }

    fn overlay(&self) -> RwLockReadGuard<'_, Overlay> {
        self.overlay.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn overlay_mut(&self) -> RwLockWriteGuard<'_, Overlay> {
        self.overlay.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn checkpoint(&self) -> MutexGuard<'_, Option<Checkpoint>> {
        lock(&self.checkpoint)
    }

    /// Reads what an engine needs to go on: nothing here grows with the backlog.
    fn recover(&self) -> Result<Recovered, StoreError> {
        let mut recovered = Recovered {
            group: GroupNumber(self.sealed.load(Ordering::Acquire)),
            ..Recovered::default()
        };
        let head = Key::meta(Meta::Head);
        if let Some(value) = self.read_value(&head)? {
            let (_, body) = self.open_record(&head, &value)?;
            recovered.head = Some(records::head(body).map_err(damaged(&head))?);
        }
        self.scan_all(Prefix::Queue, |key, value| {
            let (_, body) = self.open_record(key, value)?;
            let number = key.to_queue().ok_or_else(|| bad_key(key))?;
            let queue = records::queue(number, body).map_err(damaged(key))?;
            recovered.queues.push(queue);
            Ok(())
        })?;
        self.scan_all(Prefix::Cron, |key, value| {
            let (_, body) = self.open_record(key, value)?;
            let number = key.to_cron().ok_or_else(|| bad_key(key))?;
            recovered
                .crons
                .push(cron::cron(number, body).map_err(damaged(key))?);
            Ok(())
        })?;
        self.scan_all(Prefix::Limit, |key, value| {
            let (_, body) = self.open_record(key, value)?;
            recovered
                .limits
                .push(limit::limit(body).map_err(damaged(key))?);
            Ok(())
        })?;
        self.scan_begin(Key::batches(false), |key, value| {
            let (_, body) = self.open_record(key, value)?;
            let (_, id) = key.to_batch().ok_or_else(|| bad_key(key))?;
            let batch = batch::batch(id, body).map_err(damaged(key))?;
            recovered.batches.push(batch);
            Ok(())
        })?;
        self.scan_all(Prefix::Session, |key, _| {
            let (id, part) = key.to_session().ok_or_else(|| bad_key(key))?;
            if part == 0
                && let Some((_, body)) = self.read_parts(|part| Key::session(id, part))?
            {
                let session = records::session(id, &body).map_err(damaged(key))?;
                recovered.sessions.push(session);
            }
            Ok(())
        })?;
        self.scan_all(Prefix::Acks, |key, value| {
            let (_, body) = self.open_record(key, value)?;
            let part = part_of(key, Prefix::Acks)?;
            let mut live = Vec::new();
            for row in records::acks(body).map_err(damaged(key))? {
                if self.run_entries(&row.run)?.is_some() {
                    live.push(row);
                }
            }
            recovered.acks.push((part, live));
            Ok(())
        })?;
        self.scan_all(Prefix::Leases, |key, value| {
            let (_, body) = self.open_record(key, value)?;
            let part = part_of(key, Prefix::Leases)?;
            let rows = records::leases(body).map_err(damaged(key))?;
            let rows = rows.into_iter().map(|record| {
                let job = self.stored_job(&record.job, false)?;
                let run_entries = self.run_entries(&record.place.run)?.unwrap_or_default();
                Ok(RecoveredLease {
                    record,
                    job,
                    run_entries,
                })
            });
            let rows = rows.collect::<Result<_, StoreError>>()?;
            recovered.leases.push((part, rows));
            Ok(())
        })?;
        Ok(recovered)
    }
}

/// What was written when the table was made; `None` when it is new.
fn read_made(table: &dyn Table) -> Result<Option<MadeRecord>, StoreError> {
    let key = Key::meta(Meta::Made);
    let Some(value) = table.read(&key)? else {
        return Ok(None);
    };
    let (_, body) =
        records::open_value(key.as_slice(), &value, GroupNumber(0)).map_err(damaged(&key))?;
    let made = records::made(body).map_err(damaged(&key))?;
    if made.format != FORMAT {
        return Err(StoreError::Format {
            found: made.format,
            known: FORMAT,
        });
    }
    Ok(Some(made))
}

/// Makes a table, durable; answers with its secret.
fn make(table: &dyn Table, options: &StoreOptions) -> Result<[u8; 32], StoreError> {
    let secret = match options.secret {
        Some(secret) => secret,
        None => StoreOptions::random_secret()?,
    };
    let key = Key::meta(Meta::Made);
    let made = MadeRecord {
        format: FORMAT,
        secret,
    };
    let mut value = Vec::new();
    records::put_value(&mut value, key.as_slice(), GroupNumber(0), |out| {
        records::put_made(out, &made);
    });
    table.apply(&[
        (key, Some(Bytes::from(value))),
        checkpoint::applied_row(GroupNumber(0)),
        Digest::default().row(GroupNumber(0)),
    ])?;
    table.flush()?;
    Ok(secret)
}

fn part_of(key: &Key, prefix: Prefix) -> Result<PartKey, StoreError> {
    key.to_part(prefix).ok_or_else(|| bad_key(key))
}

/// Turns what is wrong with the bytes of a record into an error that names it.
fn damaged(key: &Key) -> impl Fn(Malformed) -> StoreError {
    let key = *key;
    move |Malformed(what)| StoreError::Damaged { key, what }
}

fn bad_key(key: &Key) -> StoreError {
    StoreError::Damaged {
        key: *key,
        what: "its key is not one of its kind",
    }
}

/// A lock whose holder panicked still guards whole values: every error here poisons the store.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An error with its causes, on one line.
fn describe(error: &StoreError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
