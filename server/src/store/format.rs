//! The directory of a shard: which format it has, who has it open, and where in it the data lies.
//!
//! Foreign and other formats are refused before anything is written. What lies inside of the data
//! directory is the business of `log.rs` and `sled.rs`.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::StoreError;

/// The format of everything in a shard's directory. Another one is refused.
pub const FORMAT: u32 = 3;

const LOCK: &str = "LOCK";
const CURRENT: &str = "CURRENT";
const CURRENT_NEW: &str = "CURRENT.tmp";
const FIRST_DATA: &str = "data-000001";

/// A shard's directory, locked as long as this lives.
#[derive(Debug)]
pub struct ShardDirectory {
    /// Where its data lies.
    pub data: DataDirectory,
    path: PathBuf,
    /// The lock goes with the file.
    _lock: File,
}

/// Where the data of a shard lies in its directory.
#[derive(Debug, Clone)]
pub struct DataDirectory {
    /// Its name, as `CURRENT` says it.
    name: String,
    /// Where the table lies.
    pub table: PathBuf,
    /// Where the log lies.
    pub log: PathBuf,
}

impl ShardDirectory {
    /// Locks a directory and finds its data, or makes it.
    ///
    /// # Errors
    /// [`StoreError::Foreign`], [`StoreError::Format`], [`StoreError::Locked`] or
    /// [`StoreError::Directory`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let failed = |doing| {
            move |source| StoreError::Directory {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("made"))?;
        let names = names(path).map_err(failed("listed"))?;
        refuse_foreign(path, &names)?;
        let lock = lock(path)?;
        let data = match fs::read_to_string(path.join(CURRENT)) {
            Ok(text) => parse_current(path, &text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                write_current(path, FIRST_DATA).map_err(failed("written"))?;
                FIRST_DATA.to_owned()
            }
            Err(error) => return Err(failed("read")(error)),
        };
        Ok(Self {
            data: DataDirectory::make(path, data).map_err(failed("made"))?,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// Locks a directory that is there and has data. Nothing is made.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_existing(path: &Path) -> Result<Self, StoreError> {
        match path.join(CURRENT).metadata() {
            Ok(_) => Self::open(path),
            Err(source) => Err(StoreError::Directory {
                doing: "read",
                path: path.join(CURRENT),
                source,
            }),
        }
    }

    /// Makes and locks a directory that has nothing yet. It is no shard's before
    /// [`point_at`](Self::point_at).
    ///
    /// # Errors
    /// [`StoreError::Foreign`] when it has something.
    pub fn make(path: &Path) -> Result<Self, StoreError> {
        let failed = |doing| {
            move |source| StoreError::Directory {
                doing,
                path: path.to_owned(),
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(failed("made"))?;
        if let Some(found) = names(path).map_err(failed("listed"))?.pop() {
            return Err(StoreError::Foreign {
                path: path.to_owned(),
                found,
            });
        }
        let lock = lock(path)?;
        let data = DataDirectory::make(path, FIRST_DATA.to_owned()).map_err(failed("made"))?;
        Ok(Self {
            data,
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// A new data directory beside the present one. What an earlier try left behind is removed.
    ///
    /// # Errors
    /// [`StoreError::Directory`].
    pub fn make_next(&self) -> Result<DataDirectory, StoreError> {
        let number = self.data.name.rsplit('-').next();
        let number: u64 = number.and_then(|text| text.parse().ok()).unwrap_or(0);
        let name = format!("data-{:06}", number + 1);
        let failed = |doing| {
            let path = self.path.join(&name);
            move |source| StoreError::Directory {
                doing,
                path,
                source,
            }
        };
        match fs::remove_dir_all(self.path.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("removed")(error));
            }
            Ok(()) | Err(_) => {}
        }
        DataDirectory::make(&self.path, name.clone()).map_err(failed("made"))
    }

    /// Makes `data` the shard's, durable, from here on.
    ///
    /// # Errors
    /// [`StoreError::Directory`].
    pub fn point_at(&mut self, data: DataDirectory) -> Result<(), StoreError> {
        write_current(&self.path, &data.name).map_err(|source| StoreError::Directory {
            doing: "written",
            path: self.path.join(CURRENT),
            source,
        })?;
        self.data = data;
        Ok(())
    }

    /// Removes a data directory that is the shard's no more.
    ///
    /// # Errors
    /// [`StoreError::Directory`].
    pub fn remove(&self, data: &DataDirectory) -> Result<(), StoreError> {
        let path = self.path.join(&data.name);
        fs::remove_dir_all(&path)
            .and_then(|()| sync_directory(&self.path))
            .map_err(|source| StoreError::Directory {
                doing: "removed",
                path,
                source,
            })
    }
}

impl DataDirectory {
    fn make(shard: &Path, name: String) -> io::Result<Self> {
        let data = shard.join(&name);
        let (table, log) = (data.join("table"), data.join("log"));
        for directory in [&table, &log] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)?;
        }
        sync_directory(&data)?;
        sync_directory(shard)?;
        shard.parent().map_or(Ok(()), sync_parent)?;
        Ok(Self { name, table, log })
    }

    /// Its name in the directory of the shard.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the table's file is there.
    pub fn has_table(&self) -> bool {
        self.table.join("db").is_file()
    }

    /// Bytes of the table on disk.
    pub fn table_bytes(&self) -> u64 {
        fs::metadata(self.table.join("db")).map_or(0, |file| file.len())
    }
}

/// The parent of a relative path of one part is the working directory.
fn sync_parent(parent: &Path) -> io::Result<()> {
    if parent.as_os_str().is_empty() {
        sync_directory(Path::new("."))
    } else {
        sync_directory(parent)
    }
}

/// Makes the names in a directory durable.
///
/// # Errors
/// That of the operating system.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Random bytes of the operating system.
///
/// # Errors
/// That of the operating system.
pub(super) fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn names(path: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(path)?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect()
}

/// A directory without `CURRENT` is ours only when it has nothing that is not.
fn refuse_foreign(path: &Path, names: &[String]) -> Result<(), StoreError> {
    let is_ours = |name: &String| {
        [LOCK, CURRENT, CURRENT_NEW, FIRST_DATA, "lost+found"].contains(&name.as_str())
    };
    if names.iter().any(|name| name == CURRENT) {
        return Ok(());
    }
    match names.iter().find(|name| !is_ours(name)) {
        None => Ok(()),
        Some(found) => Err(StoreError::Foreign {
            path: path.to_owned(),
            found: found.clone(),
        }),
    }
}

/// Locks the directory and leaves the pid for whoever comes second.
fn lock(path: &Path) -> Result<File, StoreError> {
    let path = path.join(LOCK);
    let failed = |doing| {
        let path = path.clone();
        move |source| StoreError::Directory {
            doing,
            path,
            source,
        }
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("opened"))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            file.read_to_string(&mut holder).map_err(failed("read"))?;
            return Err(StoreError::Locked {
                path,
                pid: holder.trim().parse().ok(),
            });
        }
        Err(TryLockError::Error(error)) => return Err(failed("locked")(error)),
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .map_err(failed("written"))?;
    Ok(file)
}

/// `CURRENT` is two lines: `ganger <format>` and the name of the data directory.
fn parse_current(path: &Path, text: &str) -> Result<String, StoreError> {
    let foreign = || StoreError::Foreign {
        path: path.to_owned(),
        found: CURRENT.to_owned(),
    };
    let mut lines = text.lines();
    let format = lines
        .next()
        .and_then(|line| line.strip_prefix("ganger "))
        .and_then(|format| format.parse::<u32>().ok())
        .ok_or_else(foreign)?;
    if format != FORMAT {
        return Err(StoreError::Format {
            found: format,
            known: FORMAT,
        });
    }
    let data = lines.next().ok_or_else(foreign)?;
    let number = data.strip_prefix("data-").ok_or_else(foreign)?;
    if number.is_empty() || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(foreign());
    }
    Ok(data.to_owned())
}

/// Points `CURRENT` at a data directory: write, sync, rename, sync the directory.
///
/// # Errors
/// That of the operating system.
pub fn write_current(path: &Path, data: &str) -> io::Result<()> {
    let new = path.join(CURRENT_NEW);
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)?;
    file.write_all(format!("ganger {FORMAT}\n{data}\n").as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path.join(CURRENT))?;
    sync_directory(path)
}
