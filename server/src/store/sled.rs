//! The table over sled: the only file that names it.
//!
//! sled's own flush is not durable on Linux, so each flush is followed by a sync of its file
//! through a handle of our own. Every call into it is shielded: a panic inside is an error like
//! any other. What is written, and when, is decided in `checkpoint.rs`.

use std::{
    fs::{self, File},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    format::sync_directory,
    keys::Key,
    table::{Order, Span, Table, TableError},
};

/// A table in a directory of sled.
#[derive(Debug)]
pub struct SledTable {
    /// `None` only while it is dropped.
    db: Option<sled::Db>,
    /// The file that sled writes to, to sync it.
    file: File,
    directory: PathBuf,
}

impl SledTable {
    /// Opens or makes the table of a directory. A damaged snapshot is moved aside, and rebuilt by
    /// sled from its log.
    ///
    /// # Errors
    /// [`TableError`] when it cannot be opened.
    pub fn open(directory: &Path, cache_bytes: u64) -> Result<Self, TableError> {
        await_former(directory)?;
        let db = match open_sled(directory, cache_bytes) {
            Err(TableError::Damaged { .. }) if move_snapshots_aside(directory)? > 0 => {
                await_former(directory)?;
                open_sled(directory, cache_bytes)?
            }
            opened => opened?,
        };
        let path = directory.join("db");
        let file = File::open(&path).map_err(io_error("opened"))?;
        file.sync_all()
            .and_then(|()| sync_directory(directory))
            .map_err(io_error("synced"))?;
        Ok(Self {
            db: Some(db),
            file,
            directory: directory.to_owned(),
        })
    }

    fn with<T>(
        &self,
        doing: &'static str,
        call: impl FnOnce(&sled::Db) -> Result<T, sled::Error>,
    ) -> Result<T, TableError> {
        let Some(db) = &self.db else {
            return Err(TableError::Damaged {
                what: "it is closed".to_owned(),
            });
        };
        shielded(doing, || call(db))
    }
}

impl Table for SledTable {
    fn read(&self, key: &Key) -> Result<Option<Bytes>, TableError> {
        let value = self.with("read", |db| db.get(key.as_slice()))?;
        Ok(value.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn scan(&self, span: &Span, max: usize) -> Result<Vec<(Key, Bytes)>, TableError> {
        if span.is_empty() || max == 0 {
            return Ok(Vec::new());
        }
        let rows = self.with("read", |db| {
            let range = db.range(span.from.as_slice()..span.to.as_slice());
            match span.order {
                Order::Ascending => range.take(max).collect::<Result<Vec<_>, _>>(),
                Order::Descending => range.rev().take(max).collect(),
            }
        })?;
        rows.into_iter()
            .map(|(key, value)| {
                let key = Key::from_slice(&key).ok_or_else(|| TableError::Damaged {
                    what: format!("it has a key of {} bytes, and none is so long", key.len()),
                })?;
                Ok((key, Bytes::copy_from_slice(&value)))
            })
            .collect()
    }

    fn make_room(&self, keys: &[Key]) -> Result<(), TableError> {
        // One by one: a batch of sled has no order.
        self.with("written", |db| {
            for key in keys {
                db.insert(key.as_slice(), &[])?;
            }
            Ok(())
        })
    }

    fn apply(&self, batch: &[(Key, Option<Bytes>)]) -> Result<(), TableError> {
        let mut puts = sled::Batch::default();
        for (key, value) in batch {
            match value {
                Some(value) => puts.insert(key.as_slice(), &value[..]),
                None => puts.remove(key.as_slice()),
            }
        }
        self.with("written", |db| db.apply_batch(puts))
    }

    fn flush(&self) -> Result<(), TableError> {
        self.with("flushed", |db| db.flush())?;
        self.file.sync_data().map_err(io_error("synced"))
    }

    fn disk_bytes(&self) -> u64 {
        fs::metadata(self.directory.join("db")).map_or(0, |file| file.len())
    }

    fn stray_files(&self) -> u64 {
        fs::read_dir(self.directory.join("blobs")).map_or(0, |files| files.count() as u64)
    }
}

impl Drop for SledTable {
    fn drop(&mut self) {
        let db = self.db.take();
        // Closing writes; what fails here was never promised.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(db)));
    }
}

fn open_sled(directory: &Path, cache_bytes: u64) -> Result<sled::Db, TableError> {
    shielded("opened", || {
        sled::Config::new()
            .path(directory)
            .mode(sled::Mode::HighThroughput)
            .cache_capacity(cache_bytes)
            .flush_every_ms(None)
            .use_compression(false)
            .segment_size(512 << 10)
            .open()
    })
}

/// Waits until the threads of a table that this process had open here have let go of its file,
/// which they do shortly after it was dropped. sled itself would fail. No other process can have
/// it: the shard's own lock is held.
fn await_former(directory: &Path) -> Result<(), TableError> {
    match File::open(directory.join("db")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        file => file
            .and_then(|file| file.lock())
            .map_err(io_error("locked")),
    }
}

/// Renames what sled calls snapshots; it reads its log again without them.
fn move_snapshots_aside(directory: &Path) -> Result<usize, TableError> {
    let files = fs::read_dir(directory).map_err(io_error("listed"))?;
    let mut moved = 0;
    for file in files {
        let path = file.map_err(io_error("listed"))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("snap.") {
            let aside = directory.join(format!("broken-{name}"));
            fs::rename(&path, aside).map_err(io_error("moved"))?;
            moved += 1;
        }
    }
    Ok(moved)
}

fn shielded<T>(
    doing: &'static str,
    call: impl FnOnce() -> Result<T, sled::Error>,
) -> Result<T, TableError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(sled::Error::Io(source))) => Err(TableError::Io { doing, source }),
        Ok(Err(error)) => Err(TableError::Damaged {
            what: error.to_string(),
        }),
        Err(panic) => Err(TableError::Panicked {
            doing,
            what: said(panic.as_ref()),
        }),
    }
}

/// The text of a panic, when it has one.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").to_owned()
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> TableError {
    move |source| TableError::Io { doing, source }
}
