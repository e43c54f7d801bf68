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
pub const FORMAT: u32 = 1;

const LOCK: &str = "LOCK";
const CURRENT: &str = "CURRENT";
const CURRENT_NEW: &str = "CURRENT.tmp";
const FIRST_DATA: &str = "data-000001";

/// A shard's directory, locked as long as this lives.
#[derive(Debug)]
pub struct ShardDirectory {
    /// Where the table lies.
    pub table: PathBuf,
    /// Where the log lies.
    pub log: PathBuf,
    /// The lock goes with the file.
    _lock: File,
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
        let data = path.join(data);
        let (table, log) = (data.join("table"), data.join("log"));
        for directory in [&table, &log] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(directory)
                .map_err(failed("made"))?;
        }
        sync_directory(&data)
            .and_then(|()| sync_directory(path))
            .and_then(|()| path.parent().map_or(Ok(()), sync_parent))
            .map_err(failed("synced"))?;
        Ok(Self {
            table,
            log,
            _lock: lock,
        })
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
