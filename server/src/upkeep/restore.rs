//! A data directory out of a backup. Nothing of it is a server's before all of the backup was
//! read and found whole; a failure leaves the directory as empty as it was.

use std::{
    collections::BTreeMap,
    fs,
    io::{self, Read},
    path::Path,
};

use serde::Serialize;

use super::{CACHE_BYTES, UpkeepError, empty_dir};
use crate::{
    data_dir::shard_dir,
    store::{
        StoreError,
        archive::{ArchiveError, ArchiveReader, Block},
        backup::Piece,
        format::{FORMAT, ShardDirectory},
        rebuild::{Rebuild, Relation},
    },
};

/// What a backup held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Restored {
    /// Shards.
    pub shards: usize,
    /// Records that were copied.
    pub records: u64,
    /// Groups that changed them while the backup was made.
    pub groups: u64,
    /// Bytes of the backup.
    pub bytes: u64,
    /// When it was begun, in ms since the epoch.
    pub made_at: u64,
}

/// Makes a data directory, which is empty or not there, out of a backup.
///
/// # Errors
/// [`UpkeepError`]; the directory is as empty as before.
pub fn restore(
    from: impl Read,
    data_dir: &Path,
    progress: impl FnMut(u64),
) -> Result<Restored, UpkeepError> {
    empty_dir(data_dir)?;
    let mut shards = BTreeMap::new();
    let result = fill(from, data_dir, &mut shards, progress);
    if result.is_err() {
        for shard in shards.keys() {
            let path = shard_dir(data_dir, *shard);
            remove(&path).map_err(|source| UpkeepError::DataDir {
                doing: "emptied",
                path,
                source,
            })?;
        }
    }
    result
}

/// A shard of a backup on its way into its directory.
struct Shard {
    directory: ShardDirectory,
    rebuild: Option<Rebuild>,
}

fn fill(
    from: impl Read,
    data_dir: &Path,
    shards: &mut BTreeMap<u16, Shard>,
    mut progress: impl FnMut(u64),
) -> Result<Restored, UpkeepError> {
    let mut reader = ArchiveReader::begin(from)?;
    check_format(&reader)?;
    let mut restored = Restored {
        made_at: reader.header().made_at,
        ..Restored::default()
    };
    while let Block::Piece(number, piece) = next_block(&mut reader, &mut progress)? {
        let failed = |source| UpkeepError::Store {
            doing: "made",
            shard: number,
            source,
        };
        let shard = match shards.entry(number) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => {
                let directory =
                    ShardDirectory::make(&shard_dir(data_dir, number)).map_err(failed)?;
                let rebuild = Rebuild::begin(&directory.data, CACHE_BYTES).map_err(failed)?;
                entry.insert(Shard {
                    directory,
                    rebuild: Some(rebuild),
                })
            }
        };
        let mut rebuild = shard.rebuild.take().ok_or_else(|| failed(TWICE))?;
        match rebuild.take(piece).map_err(failed)? {
            None => shard.rebuild = Some(rebuild),
            Some(group) => {
                let rebuilt = rebuild.finish(group, Relation::Past).map_err(failed)?;
                restored.records += rebuilt.rows;
                restored.groups += rebuilt.groups;
            }
        }
    }
    restored.shards = shards.len();
    restored.bytes = reader.bytes();
    for (number, shard) in shards.iter_mut() {
        let failed = |source| UpkeepError::Store {
            doing: "made",
            shard: *number,
            source,
        };
        if shard.rebuild.is_some() {
            return Err(failed(UNFINISHED));
        }
        let data = shard.directory.data.clone();
        shard.directory.point_at(data).map_err(failed)?;
    }
    if shards.is_empty() {
        return Err(failed_empty());
    }
    Ok(restored)
}

const TWICE: StoreError = StoreError::Incomplete {
    what: "the backup goes on with a shard that it had ended",
};

const UNFINISHED: StoreError = StoreError::Incomplete {
    what: "the backup does not end this shard",
};

fn failed_empty() -> UpkeepError {
    UpkeepError::Store {
        doing: "found",
        shard: 0,
        source: StoreError::Incomplete {
            what: "the backup has no shard",
        },
    }
}

/// Reads a backup to its end and makes nothing of it.
///
/// # Errors
/// [`UpkeepError::Archive`] when it is not whole; what a whole one holds is not looked into.
pub fn verify(from: impl Read, mut progress: impl FnMut(u64)) -> Result<Restored, UpkeepError> {
    let mut reader = ArchiveReader::begin(from)?;
    check_format(&reader)?;
    let mut found = Restored {
        made_at: reader.header().made_at,
        ..Restored::default()
    };
    while let Block::Piece(_, piece) = next_block(&mut reader, &mut progress)? {
        match piece {
            Piece::Rows(rows) => found.records += rows.len() as u64,
            Piece::Groups(groups) => found.groups += groups.len() as u64,
            Piece::End(_) => found.shards += 1,
        }
    }
    found.bytes = reader.bytes();
    Ok(found)
}

fn next_block<R: Read>(
    reader: &mut ArchiveReader<R>,
    progress: &mut impl FnMut(u64),
) -> Result<Block, ArchiveError> {
    let block = reader.next_block()?;
    progress(reader.bytes());
    Ok(block)
}

fn check_format<R: Read>(reader: &ArchiveReader<R>) -> Result<(), UpkeepError> {
    let found = reader.header().store_format;
    if found == FORMAT {
        return Ok(());
    }
    Err(UpkeepError::Store {
        doing: "restored",
        shard: 0,
        source: StoreError::Format {
            found,
            known: FORMAT,
        },
    })
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}
