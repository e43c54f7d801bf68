//! A data directory rewritten into fresh tables: the space of what is gone is given back.
//!
//! A shard's new data lies beside the old until `CURRENT` names it; a compaction that is cut short
//! changes nothing, and the next one clears what it left.

use std::{path::Path, sync::Arc};

use serde::Serialize;

use super::{CACHE_BYTES, UpkeepError, shards_of};
use crate::{
    data_dir::shard_dir,
    store::{
        Store, StoreError, StoreOptions,
        backup::Backup,
        format::ShardDirectory,
        rebuild::{Rebuild, Relation},
    },
};

/// Rows that are written at once: the more, the fewer pages are written more than once.
const BATCH_ROWS: usize = 1_000;

/// What a compaction came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Compacted {
    /// Shards.
    pub shards: usize,
    /// Records that were taken over.
    pub records: u64,
    /// Bytes of the tables before.
    pub before_bytes: u64,
    /// Bytes of the tables now.
    pub after_bytes: u64,
}

/// Rewrites the shards of a directory that no server has open; `progress` hears of records.
///
/// # Errors
/// [`UpkeepError`]; every shard is as it was, or rewritten whole.
pub fn compact(data_dir: &Path, mut progress: impl FnMut(u64)) -> Result<Compacted, UpkeepError> {
    let mut compacted = Compacted::default();
    for shard in shards_of(data_dir)? {
        let path = shard_dir(data_dir, shard);
        compact_shard(&path, shard, &mut compacted, &mut progress).map_err(|source| {
            UpkeepError::Store {
                doing: "compacted",
                shard,
                source,
            }
        })?;
        compacted.shards += 1;
    }
    Ok(compacted)
}

fn compact_shard(
    path: &Path,
    shard: u16,
    compacted: &mut Compacted,
    progress: &mut impl FnMut(u64),
) -> Result<(), StoreError> {
    let mut directory = ShardDirectory::open_existing(path)?;
    let old = directory.data.clone();
    let options = StoreOptions {
        shard,
        slice_operations_max: BATCH_ROWS,
        ..StoreOptions::default()
    };
    let store = Arc::new(Store::open_locked(&old, &options)?.0);
    store.settle()?;
    compacted.before_bytes += store.usage().table_disk_bytes;
    let new = directory.make_next()?;
    let mut rebuild = Rebuild::begin(&new, CACHE_BYTES)?;
    let mut backup = Backup::begin(&store)?;
    let rebuilt = loop {
        let piece = backup.next_piece()?;
        if let Some(group) = rebuild.take(piece)? {
            break rebuild.finish(group, Relation::Successor)?;
        }
        progress(compacted.records + rebuild.done().rows);
    };
    drop(backup);
    drop(store);
    directory.point_at(new.clone())?;
    directory.remove(&old)?;
    compacted.records += rebuilt.rows;
    compacted.after_bytes += new.table_bytes();
    Ok(())
}
