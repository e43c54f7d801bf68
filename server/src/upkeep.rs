//! Work on whole data directories: backup, restore, compact and doctor, over all their shards.
//!
//! A backup is read from open stores, while they are used; the others have a closed directory for
//! themselves. What happens inside of a shard is the store's business; how progress and results
//! look, the command line's.

mod batches;
mod compact;
mod crons;
mod doctor;
mod limits;
mod restore;
mod stream;
mod transfer;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use self::{
    compact::{Compacted, compact},
    doctor::{Ailment, Diagnosis, Repair, examine},
    restore::{Restored, restore, verify},
    stream::BackupStream,
    transfer::{Transferred, export, import},
};
use crate::{
    data_dir::{existing_shards, make_private_dir, shard_dir},
    store::{Store, StoreError, StoreOptions, archive::ArchiveError},
};

/// Bytes of a table in the making that may be cached.
const CACHE_BYTES: u64 = 64 << 20;

/// Why the work was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpkeepError {
    /// The directory cannot be used.
    #[error("the data directory {} cannot be {doing}", path.display())]
    DataDir {
        /// What was being done: `read`, `made`, …
        doing: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// There is no shard in it.
    #[error("{} is no data directory: it has no shard", path.display())]
    NoShards {
        /// The directory.
        path: PathBuf,
    },
    /// A restore needs a directory of its own.
    #[error("{} is not empty: it has {found:?}", path.display())]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// What is in it.
        found: String,
    },
    /// The backup is not whole, or no backup.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// A line of an export is wrong, or cannot be read or written.
    #[error("line {line} of the export is refused")]
    Lines {
        /// The number of the line, from 1; 0 while writing.
        line: u64,
        /// Why.
        source: io::Error,
    },
    /// A shard cannot be read or written.
    #[error("shard {shard} cannot be {doing}")]
    Store {
        /// What was being done: `opened`, `read`, `made`, …
        doing: &'static str,
        /// The number of the shard.
        shard: u16,
        /// Why.
        source: StoreError,
    },
}

/// Opens every shard of a directory that no server has open.
///
/// # Errors
/// [`UpkeepError`] when there is none, or one cannot be opened.
pub fn open_stores(data_dir: &Path) -> Result<Vec<Store>, UpkeepError> {
    let mut stores = Vec::new();
    for shard in shards_of(data_dir)? {
        let options = StoreOptions {
            shard,
            ..StoreOptions::default()
        };
        let opened = Store::open_dir(&shard_dir(data_dir, shard), &options);
        let (store, _) = opened.map_err(|source| UpkeepError::Store {
            doing: "opened",
            shard,
            source,
        })?;
        stores.push(store);
    }
    Ok(stores)
}

/// Makes a directory for its owner alone, unless it is there, and sees that it is empty.
fn empty_dir(data_dir: &Path) -> Result<(), UpkeepError> {
    let failed = |doing| {
        move |source| UpkeepError::DataDir {
            doing,
            path: data_dir.to_owned(),
            source,
        }
    };
    make_private_dir(data_dir).map_err(failed("made"))?;
    for entry in fs::read_dir(data_dir).map_err(failed("read"))? {
        let found = entry.map_err(failed("read"))?.file_name();
        if found != "lost+found" {
            return Err(UpkeepError::NotEmpty {
                path: data_dir.to_owned(),
                found: found.to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

/// The shards of a directory: at least one.
fn shards_of(data_dir: &Path) -> Result<Vec<u16>, UpkeepError> {
    let shards = existing_shards(data_dir).map_err(|source| UpkeepError::DataDir {
        doing: "read",
        path: data_dir.to_owned(),
        source,
    })?;
    if shards.is_empty() {
        return Err(UpkeepError::NoShards {
            path: data_dir.to_owned(),
        });
    }
    Ok(shards)
}
