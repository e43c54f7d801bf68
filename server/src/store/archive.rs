//! The bytes of a backup: a header, blocks that are chained by their checksums, and an end, so
//! that a backup that was cut off or changed is refused with the reason and the place.
//!
//! Written and read as a stream, since a backup may be a pipe. `docs/STORAGE.md` has it byte by
//! byte. What the blocks of a shard come to is `rebuild.rs`'s business.

use std::io::{self, Read};

use bytes::Bytes;
use ganger_engine::records::GroupNumber;

use super::{
    backup::Piece,
    coding::{Malformed, Reader},
    keys::Key,
    log::GROUP_BYTES_MAX,
};

/// The version of the format.
pub const ARCHIVE_VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"gangrbak";

/// Bytes of the header: magic, version, store format, shards, time, checksum.
const HEADER_BYTES: usize = 8 + 4 + 4 + 2 + 8 + 4;

/// Bytes before the body of a block: kind, shard, number, length.
const BLOCK_HEADER_BYTES: usize = 1 + 2 + 8 + 4;

/// Bytes of the body of a block at most: one group, with the lengths of its records.
const BODY_BYTES_MAX: usize = GROUP_BYTES_MAX + (1 << 20);

const ROWS: u8 = 1;
const GROUP: u8 = 2;
const SHARD_END: u8 = 3;
const END: u8 = 4;

/// What the header of a backup says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArchiveHeader {
    /// The format of the store that it is of.
    pub store_format: u32,
    /// Shards that follow.
    pub shards: u16,
    /// When it was begun, by the wall clock, in ms since the epoch.
    pub made_at: u64,
}

/// A block of a backup.
#[derive(Debug, PartialEq, Eq)]
pub enum Block {
    /// A piece of a shard.
    Piece(u16, Piece),
    /// Nothing follows.
    End,
}

/// Why a backup is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It cannot be read.
    #[error("the backup cannot be read at byte {at}")]
    Io {
        /// Bytes before the failure.
        at: u64,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("this is no backup of ganger: it does not begin like one")]
    Foreign,
    /// Another version wrote it.
    #[error("the backup has version {found}, this program knows {ARCHIVE_VERSION}")]
    Version {
        /// Its version.
        found: u32,
    },
    /// It ends too early.
    #[error("the backup is cut off: it ends at byte {at}, before its end")]
    CutOff {
        /// Its bytes.
        at: u64,
    },
    /// Some byte is not what was written.
    #[error("the backup was changed: {what} in the block at byte {at}")]
    Changed {
        /// Where the block begins.
        at: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// Something follows its end.
    #[error("the backup has more behind its end at byte {at}")]
    TooLong {
        /// Where it ends.
        at: u64,
    },
}

/// Writes a backup.
#[derive(Debug)]
pub struct ArchiveWriter {
    /// The checksum of the last block, part of the next.
    chain: u32,
    bytes: u64,
}

impl ArchiveWriter {
    /// Appends the header.
    pub fn begin(out: &mut Vec<u8>, header: &ArchiveHeader) -> Self {
        let start = out.len();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&ARCHIVE_VERSION.to_be_bytes());
        out.extend_from_slice(&header.store_format.to_be_bytes());
        out.extend_from_slice(&header.shards.to_be_bytes());
        out.extend_from_slice(&header.made_at.to_be_bytes());
        let chain = crc32fast::hash(out.get(start..).unwrap_or_default());
        out.extend_from_slice(&chain.to_be_bytes());
        Self {
            chain,
            bytes: HEADER_BYTES as u64,
        }
    }

    /// Appends a piece of a shard.
    pub fn piece(&mut self, out: &mut Vec<u8>, shard: u16, piece: &Piece) {
        match piece {
            Piece::Rows(rows) if rows.is_empty() => {}
            Piece::Rows(rows) => self.block(out, (ROWS, shard, 0), |out| {
                for (key, value) in rows {
                    let (key, value) = (key.as_slice(), &value[..]);
                    out.push(u8::try_from(key.len()).unwrap_or(u8::MAX));
                    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
                    out.extend_from_slice(&length.to_be_bytes());
                    out.extend_from_slice(key);
                    out.extend_from_slice(value);
                }
            }),
            Piece::Groups(groups) => {
                for (number, body) in groups {
                    self.block(out, (GROUP, shard, number.0), |out| {
                        out.extend_from_slice(body);
                    });
                }
            }
            Piece::End(group) => self.block(out, (SHARD_END, shard, group.0), |_| {}),
        }
    }

    /// Appends the end.
    pub fn end(&mut self, out: &mut Vec<u8>) {
        let bytes = self.bytes;
        self.block(out, (END, 0, bytes), |_| {});
    }

    fn block(
        &mut self,
        out: &mut Vec<u8>,
        (kind, shard, number): (u8, u16, u64),
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        let start = out.len();
        out.push(kind);
        out.extend_from_slice(&shard.to_be_bytes());
        out.extend_from_slice(&number.to_be_bytes());
        out.extend_from_slice(&[0; 4]);
        let body = out.len();
        write(out);
        let length = u32::try_from(out.len() - body).unwrap_or(u32::MAX);
        if let Some(slot) = out.get_mut(body - 4..body) {
            slot.copy_from_slice(&length.to_be_bytes());
        }
        self.chain = chained(self.chain, out.get(start..).unwrap_or_default());
        out.extend_from_slice(&self.chain.to_be_bytes());
        self.bytes += (out.len() - start) as u64;
    }
}

/// Reads a backup and checks it on the way.
#[derive(Debug)]
pub struct ArchiveReader<R> {
    from: R,
    header: ArchiveHeader,
    chain: u32,
    at: u64,
    has_ended: bool,
}

impl<R: Read> ArchiveReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// [`ArchiveError`] when it is no backup, or of another version.
    pub fn begin(mut from: R) -> Result<Self, ArchiveError> {
        let mut bytes = Vec::new();
        read_exactly(&mut from, &mut bytes, HEADER_BYTES, 0)?;
        let foreign = |_: Malformed| ArchiveError::Foreign;
        let (covered, stored) = bytes
            .split_last_chunk::<4>()
            .ok_or(ArchiveError::CutOff { at: 0 })?;
        let mut reader = Reader(covered);
        if reader.array().map_err(foreign)? != MAGIC {
            return Err(ArchiveError::Foreign);
        }
        let version = u32::from_be_bytes(reader.array().map_err(foreign)?);
        if version != ARCHIVE_VERSION {
            return Err(ArchiveError::Version { found: version });
        }
        let chain = crc32fast::hash(covered);
        if chain.to_be_bytes() != *stored {
            return Err(ArchiveError::Changed {
                at: 0,
                what: "its checksum does not match",
            });
        }
        let header = ArchiveHeader {
            store_format: u32::from_be_bytes(reader.array().map_err(foreign)?),
            shards: u16::from_be_bytes(reader.array().map_err(foreign)?),
            made_at: u64::from_be_bytes(reader.array().map_err(foreign)?),
        };
        Ok(Self {
            from,
            header,
            chain,
            at: HEADER_BYTES as u64,
            has_ended: false,
        })
    }

    /// What the header says.
    pub fn header(&self) -> ArchiveHeader {
        self.header
    }

    /// Bytes that were read.
    pub fn bytes(&self) -> u64 {
        self.at
    }

    /// The next block, and [`Block::End`] for ever once it was reached.
    ///
    /// # Errors
    /// [`ArchiveError`]; nothing can be read behind one.
    pub fn next_block(&mut self) -> Result<Block, ArchiveError> {
        if self.has_ended {
            return Ok(Block::End);
        }
        let at = self.at;
        let changed = |what| ArchiveError::Changed { at, what };
        let malformed = |Malformed(what)| ArchiveError::Changed { at, what };
        let mut bytes = Vec::new();
        self.read(&mut bytes, BLOCK_HEADER_BYTES)?;
        let mut reader = Reader(&bytes);
        let kind = reader.u8().map_err(malformed)?;
        let shard = u16::from_be_bytes(reader.array().map_err(malformed)?);
        let number = u64::from_be_bytes(reader.array().map_err(malformed)?);
        let length = u32::from_be_bytes(reader.array().map_err(malformed)?);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > BODY_BYTES_MAX {
            return Err(changed("a length that none has"));
        }
        self.read(&mut bytes, length)?;
        let mut stored = Vec::new();
        self.read(&mut stored, 4)?;
        self.chain = chained(self.chain, &bytes);
        if self.chain.to_be_bytes() != stored[..] {
            return Err(changed("its checksum does not match"));
        }
        let body = Bytes::from(bytes).slice(BLOCK_HEADER_BYTES..);
        if kind != END && shard >= self.header.shards {
            return Err(changed("a shard that it does not have"));
        }
        Ok(match kind {
            ROWS => Block::Piece(shard, Piece::Rows(rows(&body).map_err(malformed)?)),
            GROUP => Block::Piece(shard, Piece::Groups(vec![(GroupNumber(number), body)])),
            SHARD_END => Block::Piece(shard, Piece::End(GroupNumber(number))),
            END if number == at => {
                self.end()?;
                Block::End
            }
            _ => return Err(changed("a kind that is unknown")),
        })
    }

    fn end(&mut self) -> Result<(), ArchiveError> {
        self.has_ended = true;
        let mut more = [0];
        match self.from.read(&mut more) {
            Ok(0) => Ok(()),
            Ok(_) => Err(ArchiveError::TooLong { at: self.at }),
            Err(source) => Err(ArchiveError::Io {
                at: self.at,
                source,
            }),
        }
    }

    fn read(&mut self, bytes: &mut Vec<u8>, count: usize) -> Result<(), ArchiveError> {
        read_exactly(&mut self.from, bytes, count, self.at)?;
        self.at += count as u64;
        Ok(())
    }
}

/// Appends so many bytes, without believing that they come.
fn read_exactly(
    from: &mut impl Read,
    bytes: &mut Vec<u8>,
    count: usize,
    at: u64,
) -> Result<(), ArchiveError> {
    let read = from.take(count as u64).read_to_end(bytes);
    let read = read.map_err(|source| ArchiveError::Io { at, source })?;
    if read < count {
        return Err(ArchiveError::CutOff {
            at: at + read as u64,
        });
    }
    Ok(())
}

fn chained(before: u32, block: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before.to_be_bytes());
    hasher.update(block);
    hasher.finalize()
}

fn rows(body: &Bytes) -> Result<Vec<(Key, Bytes)>, Malformed> {
    let mut rows = Vec::new();
    let mut reader = Reader(body);
    while !reader.0.is_empty() {
        let key_bytes = reader.u8()?;
        let value_bytes = u16::from_be_bytes(reader.array()?);
        let key = Key::from_slice(reader.raw(usize::from(key_bytes))?)
            .ok_or(Malformed("a key has a length that none has"))?;
        let value = Bytes::copy_from_slice(reader.raw(usize::from(value_bytes))?);
        rows.push((key, value));
    }
    Ok(rows)
}
