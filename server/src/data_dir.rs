//! The data directory of a server: which shards it has, and where they lie.
//!
//! What lies in the directory of a shard is `store/format.rs`'s business.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

/// The directory of a shard.
pub(crate) fn shard_dir(data_dir: &Path, shard: u16) -> PathBuf {
    data_dir.join(format!("shard-{shard}"))
}

/// The numbers of the shards that are there, in order.
pub(crate) fn existing_shards(data_dir: &Path) -> io::Result<Vec<u16>> {
    let mut shards = Vec::new();
    for entry in fs::read_dir(data_dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("shard-"));
        shards.extend(number.and_then(|number| number.parse::<u16>().ok()));
    }
    shards.sort_unstable();
    Ok(shards)
}

/// Makes the directory, for its owner alone.
pub(crate) fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}
