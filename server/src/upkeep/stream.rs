//! A backup of all shards as a stream of bytes, made as fast as it is read.
//!
//! Each shard is of one moment: the last of its groups when its table was through. Nothing crosses
//! shards, so the moments need not be the same. `../store/backup.rs` says how one shard is read.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;
use ganger_protocol::{ErrorCode, Timestamp, WireError, response::BackupReply};

use crate::store::{
    Store, StoreError,
    archive::{ArchiveHeader, ArchiveWriter},
    backup::{Backup, Piece},
    format::FORMAT,
};

/// Bytes of a reply, but for the last.
const REPLY_BYTES: usize = 256 << 10;

/// A backup that is being read.
#[derive(Debug)]
pub struct BackupStream {
    waiting: VecDeque<Arc<Store>>,
    current: Option<(u16, Backup)>,
    writer: ArchiveWriter,
    /// What was made and not yet read.
    ready: Vec<u8>,
    /// Bytes that were read.
    offset: u64,
    has_ended: bool,
    estimate_bytes: u64,
}

impl BackupStream {
    /// A backup of these stores.
    pub fn begin(stores: impl IntoIterator<Item = Arc<Store>>, now: Timestamp) -> Self {
        let waiting: VecDeque<_> = stores.into_iter().collect();
        let usages = waiting.iter().map(|store| store.usage());
        let estimate_bytes = usages.map(|it| it.table_disk_bytes + it.log_bytes).sum();
        let header = ArchiveHeader {
            store_format: FORMAT,
            shards: waiting
                .iter()
                .map(|store| store.shard() + 1)
                .max()
                .unwrap_or(0),
            made_at: now.0,
        };
        let mut ready = Vec::new();
        let writer = ArchiveWriter::begin(&mut ready, &header);
        Self {
            waiting,
            current: None,
            writer,
            ready,
            offset: 0,
            has_ended: false,
            estimate_bytes,
        }
    }

    /// Bytes that were read so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// About how many bytes there will be; rather more than fewer.
    pub fn estimate_bytes(&self) -> u64 {
        self.estimate_bytes
    }

    /// The next bytes: as many as are wanted, and fewer only at the end.
    ///
    /// # Errors
    /// [`StoreError`]; the backup is of no use then.
    pub fn next_chunk(&mut self, bytes: usize) -> Result<Vec<u8>, StoreError> {
        while self.ready.len() < bytes && !self.has_ended {
            self.advance()?;
        }
        let rest = self.ready.split_off(bytes.min(self.ready.len()));
        let chunk = std::mem::replace(&mut self.ready, rest);
        self.offset += chunk.len() as u64;
        Ok(chunk)
    }

    /// Answers a client that has so many bytes.
    ///
    /// # Errors
    /// `bad_request` when it has more or fewer; else the backup is of no use any more.
    pub fn reply(&mut self, offset: u64) -> Result<BackupReply, WireError> {
        if offset != self.offset {
            return Err(Self::elsewhere());
        }
        let chunk = self.next_chunk(REPLY_BYTES).map_err(|error| {
            tracing::warn!(%error, "a backup ended early");
            let code = match error {
                StoreError::Backup { .. } => ErrorCode::Conflict,
                _ => ErrorCode::Unavailable,
            };
            WireError::new(code, error.to_string())
        })?;
        Ok(BackupReply {
            end: chunk.len() < REPLY_BYTES,
            chunk: Bytes::from(chunk),
            estimate_bytes: self.estimate_bytes,
        })
    }

    /// Says that no backup stands where the client thinks.
    pub fn elsewhere() -> WireError {
        let message = "this connection has no backup that stands there; begin with offset 0";
        WireError::bad_request("offset", message)
    }

    fn advance(&mut self) -> Result<(), StoreError> {
        let Some((shard, backup)) = &mut self.current else {
            match self.waiting.pop_front() {
                Some(store) => self.current = Some((store.shard(), Backup::begin(&store)?)),
                None => {
                    self.writer.end(&mut self.ready);
                    self.has_ended = true;
                }
            }
            return Ok(());
        };
        let piece = backup.next_piece()?;
        self.writer.piece(&mut self.ready, *shard, &piece);
        if matches!(piece, Piece::End(_)) {
            self.current = None;
        }
        Ok(())
    }
}
