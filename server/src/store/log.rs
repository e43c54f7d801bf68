//! The group log: what it promises, and the file that keeps it.
//!
//! A log takes groups in order, makes them durable with one sync, gives them back after a crash
//! up to the last whole one, and forgets those that the table has. The file log writes into
//! segments that were filled with zeroes beforehand, so that a sync carries no metadata, and past the
//! page cache, so that two writes are under way at once and neither waits for the other. What a group
//! says is not its business. `docs/STORAGE.md` has the format byte by byte; the double is in
//! `memory.rs`, the buffers are in `pages.rs`.

use std::{
    collections::VecDeque,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write as _},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use ganger_engine::records::GroupNumber;
use rustix::fs::{Advice, OFlags, fadvise};

use super::{
    coding::Reader,
    format::sync_directory,
    pages::{PAGE_BYTES, Pages},
};

/// The version of segments and group records.
pub const LOG_VERSION: u32 = 2;

/// Bytes of the header of a segment.
const SEGMENT_HEADER_BYTES: usize = 64;

/// Bytes of the header of a group record.
const RECORD_HEADER_BYTES: usize = 48;

/// Where the epoch stands in a record.
const RECORD_EPOCH_AT: usize = 24;

/// Group records begin at multiples of this.
const ALIGNMENT: usize = 8;

/// Bytes of a group at most: the largest request many times over.
pub const GROUP_BYTES_MAX: usize = 64 << 20;

const MAGIC: [u8; 8] = *b"gangrlog";

/// How much larger each next segment is.
const GROWTH: u64 = 4;

/// Bytes of zeroes between two syncs of a new file. A sync of groups waits behind one of zeroes: for
/// 9 ms where that has 4 MiB, for 2 ms where it has this.
const ZEROES_PER_SYNC: usize = 256 << 10;

/// Segments kept for reuse.
const SPARES_MAX: usize = 2;

/// Groups in order, durable up to the last sync.
pub trait Log: fmt::Debug + Send + Sync {
    /// Gives every group behind `applied` to `visit`, in order, and answers with the last one.
    ///
    /// A group that was not synced and is not whole is the normal end.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when a group that must be there is not, or not whole; the error of
    /// `visit`, when it fails.
    fn read_from(
        &self,
        applied: GroupNumber,
        visit: &mut dyn FnMut(GroupNumber, Bytes) -> Result<(), LogError>,
    ) -> Result<GroupNumber, LogError>;

    /// Gives the groups from where `cursor` stands up to `through`, which is durable, until about
    /// `bytes_max` are together; the cursor stands behind the last of them then.
    ///
    /// # Errors
    /// [`LogError::Damaged`] when one of them is not there, or not whole.
    fn read_on(
        &self,
        cursor: &mut LogCursor,
        through: GroupNumber,
        bytes_max: usize,
    ) -> Result<Vec<(GroupNumber, Bytes)>, LogError>;

    /// Takes the log over behind `last` and answers with the new epoch. A handle of an earlier
    /// epoch is fenced from here on.
    ///
    /// # Errors
    /// [`LogError::Io`] when that cannot be made durable.
    fn acquire(&self, last: GroupNumber) -> Result<u64, LogError>;

    /// Queues the next group. Cheap, no IO.
    ///
    /// # Errors
    /// [`LogError::Fenced`], [`LogError::OutOfOrder`], [`LogError::TooLarge`].
    fn append(&self, epoch: u64, number: GroupNumber, body: Bytes) -> Result<(), LogError>;

    /// Takes what is queued, for [`write`](Self::write). Cheap but when a segment is full.
    ///
    /// # Errors
    /// [`LogError`]; what was queued may or may not be there afterwards.
    fn gather(&self) -> Result<GroupWrite, LogError>;

    /// Writes what was gathered and makes it durable; answers with the last group that is durable
    /// with all before it, which may be an earlier one than was gathered while another write is
    /// under way, or a later one.
    ///
    /// # Errors
    /// [`LogError`]; what was gathered may or may not be there afterwards.
    fn write(&self, write: GroupWrite) -> Result<GroupNumber, LogError>;

    /// Makes all that was appended durable, also what others are writing; answers with the last
    /// durable group.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    fn sync(&self) -> Result<GroupNumber, LogError>;

    /// Forgets groups up to this one, as far as that is convenient.
    ///
    /// # Errors
    /// [`LogError::Io`].
    fn trim(&self, applied: GroupNumber) -> Result<(), LogError>;

    /// Whether [`prepare`](Self::prepare) has something to do. Waits for nothing.
    fn wants_room(&self) -> bool;

    /// Makes room ahead of need. Takes long, and holds up nothing.
    ///
    /// # Errors
    /// [`LogError::Io`].
    fn prepare(&self) -> Result<(), LogError>;

    /// Whether it was ever made, and written to.
    fn state(&self) -> LogState;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;
}

/// Groups that are to be written together.
#[derive(Debug, Default)]
pub struct GroupWrite {
    /// The last of them; 0: there are none.
    pub(super) last: u64,
    /// Where they go; `None` in memory.
    place: Option<WritePlace>,
}

#[derive(Debug)]
struct WritePlace {
    file: Arc<File>,
    path: PathBuf,
    at: u64,
    pages: Pages,
}

impl GroupWrite {
    /// Groups of a log without files, up to this one.
    pub(super) fn without_place(last: u64) -> Self {
        Self { last, place: None }
    }
}

/// Where somebody who reads a log stands.
#[derive(Debug, Clone, Copy)]
pub struct LogCursor {
    /// The group that comes next.
    next: GroupNumber,
    /// The segment that was read last; 0: none.
    sequence: u64,
    /// Where in it the next record is, and its number.
    at: u64,
    expected: u64,
}

impl LogCursor {
    /// Behind this group.
    pub fn behind(group: GroupNumber) -> Self {
        Self {
            next: GroupNumber(group.0 + 1),
            sequence: 0,
            at: 0,
            expected: 0,
        }
    }

    /// The group that comes next.
    pub fn next(&self) -> GroupNumber {
        self.next
    }

    /// Steps over a group.
    pub(super) fn step(&mut self) {
        self.next.0 += 1;
    }
}

/// How far a log came before it was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogState {
    /// There is none.
    Absent,
    /// It was made, and no group was ever written to it.
    Unused,
    /// It has or had groups.
    Used,
}

/// Why a log failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A call of the operating system failed.
    #[error("the log at {} cannot be {doing}", path.display())]
    Io {
        /// What was being done: `read`, `written`, `synced`, …
        doing: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Something that must be there is not, or not whole.
    #[error("the log is damaged: {what}")]
    Damaged {
        /// What was found, and where.
        what: String,
    },
    /// Someone else took the log over.
    #[error("the log was taken over: this epoch is {own}, the log's is {newest}")]
    Fenced {
        /// The epoch of the caller.
        own: u64,
        /// The epoch of the log.
        newest: u64,
    },
    /// The groups do not follow each other.
    #[error("group {actual} was appended where {expected} belongs")]
    OutOfOrder {
        /// The number that follows.
        expected: u64,
        /// The number that came.
        actual: u64,
    },
    /// An earlier write failed, so that nothing can be durable behind it.
    #[error("an earlier write of the log failed")]
    Broken,
    /// A group is larger than any request makes it.
    #[error("a group of {actual} bytes is over the limit of {GROUP_BYTES_MAX}")]
    TooLarge {
        /// Its bytes.
        actual: usize,
    },
}

/// How the file log cuts its segments.
#[derive(Debug, Clone, Copy)]
pub struct LogOptions {
    /// Bytes of the first segment; each next one is four times as large.
    pub segment_bytes_first: u64,
    /// Bytes of a segment at most, but for a larger group.
    pub segment_bytes_max: u64,
}

impl Default for LogOptions {
    fn default() -> Self {
        Self {
            segment_bytes_first: 4 << 20,
            segment_bytes_max: 64 << 20,
        }
    }
}

/// A log in a directory of segments.
#[derive(Debug)]
pub struct FileLog {
    directory: PathBuf,
    options: LogOptions,
    queue: Mutex<Queue>,
    /// Held by whoever gathers: groups get their places in order.
    gathering: Mutex<()>,
    writer: Mutex<Writer>,
    /// Told when a write is over.
    written: Condvar,
    /// Whether the current segment is half full and none waits behind it.
    wants_room: AtomicBool,
}

/// Groups that wait for the next sync.
#[derive(Debug, Default)]
struct Queue {
    epoch: u64,
    last: u64,
    groups: Vec<(u64, Bytes)>,
}

#[derive(Debug, Default)]
struct Writer {
    /// Every segment, oldest first; the last one is written to.
    segments: Vec<Segment>,
    spares: Vec<Spare>,
    current: Option<Current>,
    durable: u64,
    /// Writes that are not over, or wait for an earlier one, oldest first.
    under_way: VecDeque<UnderWay>,
    /// Threads that wait for a write to be over.
    waiting: usize,
    /// A write failed; no later one can count.
    is_broken: bool,
    /// Of writes that are over, for the next ones.
    pages: Vec<Pages>,
    /// The next number of a spare's file.
    spare_number: u64,
}

/// The segment that is written to.
#[derive(Debug)]
struct Current {
    file: Arc<File>,
    segment: Segment,
    /// Where the next write goes: at the beginning of a page, for no two writes share one.
    at: u64,
}

#[derive(Debug)]
struct UnderWay {
    last: u64,
    is_over: bool,
}

#[derive(Debug, Clone)]
struct Spare {
    path: PathBuf,
    bytes: u64,
}

/// What the header of a segment says.
#[derive(Debug, Clone)]
struct Segment {
    path: PathBuf,
    sequence: u64,
    /// The number of its first group, present or not.
    first: u64,
    epoch: u64,
    /// Part of each CRC in it, so that what an earlier use left behind means nothing.
    salt: u64,
    bytes: u64,
}

/// What the header of a group record says.
struct RecordHeader {
    crc: u32,
    length: u32,
    number: u64,
    previous: u64,
    epoch: u64,
    durable: u64,
    version: u32,
}

impl FileLog {
    /// Opens the segments of a directory, which exists.
    ///
    /// # Errors
    /// [`LogError`] when one cannot be read, or its header is damaged.
    pub fn open(directory: &Path, options: LogOptions) -> Result<Self, LogError> {
        let mut writer = Writer::default();
        let listing = fs::read_dir(directory).map_err(io_error("listed", directory))?;
        for file in listing {
            let path = file.map_err(io_error("listed", directory))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(".tmp") {
                fs::remove_file(&path).map_err(io_error("removed", &path))?;
            } else if let Some(number) = name.strip_prefix("spare-") {
                let number = number.parse::<u64>().unwrap_or_default();
                writer.spare_number = writer.spare_number.max(number + 1);
                let bytes = fs::metadata(&path).map_err(io_error("read", &path))?.len();
                writer.spares.push(Spare { path, bytes });
            } else if name.ends_with(".log") {
                writer.segments.push(Segment::read(&path)?);
            }
        }
        writer.segments.sort_by_key(|segment| segment.sequence);
        writer.spares.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(Self {
            directory: directory.to_owned(),
            options,
            queue: Mutex::default(),
            gathering: Mutex::default(),
            writer: Mutex::new(writer),
            written: Condvar::new(),
            wants_room: AtomicBool::new(false),
        })
    }

    /// Begins a segment whose first group is behind `last`.
    fn begin_segment(&self, writer: &mut Writer, begin: &Begin) -> Result<(), LogError> {
        let newest = writer.segments.last();
        let sequence = newest.map_or(1, |segment| segment.sequence + 1);
        let wanted = newest.map_or(self.options.segment_bytes_first, |segment| {
            segment.bytes * begin.growth
        });
        let wanted = wanted
            .min(self.options.segment_bytes_max)
            .max(begin.bytes_min);
        let fitting = writer.spares.iter().position(|spare| spare.bytes >= wanted);
        let spare = match fitting {
            Some(at) => writer.spares.remove(at),
            None => {
                let number = writer.spare_number;
                writer.spare_number += 1;
                self.make_spare(number, wanted)?
            }
        };
        let path = self.directory.join(format!("{sequence:020}.log"));
        let segment = Segment {
            path,
            sequence,
            first: begin.last + 1,
            epoch: begin.epoch,
            salt: random_u64()?,
            bytes: spare.bytes,
        };
        // The header is durable before the name: a segment with a bad header is damage.
        let file = open_for_writes(&spare.path, &segment.header())
            .map_err(io_error("begun", &spare.path))?;
        fs::rename(&spare.path, &segment.path).map_err(io_error("named", &segment.path))?;
        sync_directory(&self.directory).map_err(io_error("synced", &self.directory))?;
        writer.segments.push(segment.clone());
        writer.current = Some(Current {
            file: Arc::new(file),
            segment,
            at: PAGE_BYTES as u64,
        });
        Ok(())
    }

    /// Waits until some write is over.
    fn wait_for_write<'a>(
        &'a self,
        mut writer: MutexGuard<'a, Writer>,
    ) -> Result<MutexGuard<'a, Writer>, LogError> {
        if writer.is_broken {
            return Err(LogError::Broken);
        }
        writer.waiting += 1;
        let waited = self.written.wait(writer);
        let mut writer = waited.unwrap_or_else(PoisonError::into_inner);
        writer.waiting -= 1;
        Ok(writer)
    }

    /// Makes a file of so many zeroes, durable, for a later segment.
    fn make_spare(&self, number: u64, bytes: u64) -> Result<Spare, LogError> {
        let path = self.directory.join(format!("spare-{number}"));
        let new = self.directory.join(format!("spare-{number}.tmp"));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(io_error("made", &new))?;
        let zeroes = vec![0; ZEROES_PER_SYNC];
        let mut left = bytes;
        while left > 0 {
            let chunk = usize::try_from(left).map_or(zeroes.len(), |left| left.min(zeroes.len()));
            file.write_all(zeroes.get(..chunk).unwrap_or_default())
                .map_err(io_error("filled", &new))?;
            file.sync_data().map_err(io_error("synced", &new))?;
            left -= chunk as u64;
        }
        file.sync_all().map_err(io_error("synced", &new))?;
        // What the cache has of it only stands in the way of writes that pass it by.
        fadvise(&file, 0, None, Advice::DontNeed)
            .map_err(|error| io_error("synced", &new)(error.into()))?;
        fs::rename(&new, &path).map_err(io_error("named", &path))?;
        Ok(Spare { path, bytes })
    }
}

/// How a segment begins.
struct Begin {
    last: u64,
    epoch: u64,
    /// How much larger than the one before it should be.
    growth: u64,
    bytes_min: u64,
}

impl Log for FileLog {
    fn read_from(
        &self,
        applied: GroupNumber,
        visit: &mut dyn FnMut(GroupNumber, Bytes) -> Result<(), LogError>,
    ) -> Result<GroupNumber, LogError> {
        let segments = lock(&self.writer).segments.clone();
        let mut expected = None;
        for (at, segment) in segments.iter().enumerate() {
            let next_first = segments.get(at + 1).map(|next| next.first);
            if next_first.is_some_and(|first| first <= applied.0 + 1) {
                continue;
            }
            match expected {
                None if segment.first > applied.0 + 1 => {
                    return Err(LogError::Damaged {
                        what: format!(
                            "it begins with group {}, and the table ends with {}",
                            segment.first, applied.0
                        ),
                    });
                }
                Some(expected) if segment.first != expected => {
                    return Err(LogError::Damaged {
                        what: format!(
                            "{} begins with group {}, not with {expected}",
                            segment.path.display(),
                            segment.first
                        ),
                    });
                }
                None | Some(_) => {}
            }
            let mut scan = SegmentScan {
                segment,
                next_first,
                expected: segment.first,
            };
            scan.run(&mut |number, body| {
                if number > applied {
                    visit(number, body)
                } else {
                    Ok(())
                }
            })?;
            expected = Some(scan.expected);
        }
        let last = expected.map_or(0, |expected| expected - 1);
        if last < applied.0 {
            return Err(LogError::Damaged {
                what: format!(
                    "it ends with group {last}, and the table already has {}",
                    applied.0
                ),
            });
        }
        Ok(GroupNumber(last))
    }

    fn read_on(
        &self,
        cursor: &mut LogCursor,
        through: GroupNumber,
        bytes_max: usize,
    ) -> Result<Vec<(GroupNumber, Bytes)>, LogError> {
        let segments = lock(&self.writer).segments.clone();
        let mut groups = Vec::new();
        let mut bytes = 0;
        let mut open: Option<(&Segment, File)> = None;
        while cursor.next <= through && bytes < bytes_max {
            let missing = || LogError::Damaged {
                what: format!("group {} is not in it any more", cursor.next.0),
            };
            let holder = segments.iter().rev();
            let segment = { holder }
                .find(|segment| segment.first <= cursor.next.0)
                .ok_or_else(missing)?;
            if cursor.sequence != segment.sequence {
                cursor.sequence = segment.sequence;
                cursor.at = SEGMENT_HEADER_BYTES as u64;
                cursor.expected = segment.first;
            }
            let (_, file) = match open.take() {
                Some((opened, file)) if opened.sequence == segment.sequence => {
                    open.insert((opened, file))
                }
                Some(_) | None => {
                    let path = &segment.path;
                    let file = File::open(path).map_err(io_error("opened", path))?;
                    // No page is read ahead: it may be one that is being written.
                    fadvise(&file, 0, None, Advice::Random)
                        .map_err(|error| io_error("read", path)(error.into()))?;
                    open.insert((segment, file))
                }
            };
            let scan = SegmentScan {
                segment,
                next_first: None,
                expected: cursor.expected,
            };
            let found = scan.read_expected(file, cursor.at)?;
            let (header, body, next) = found.ok_or_else(missing)?;
            cursor.at = next;
            cursor.expected += 1;
            if header.number == cursor.next.0 {
                bytes += body.len();
                groups.push((cursor.next, body));
                cursor.step();
            }
        }
        Ok(groups)
    }

    fn acquire(&self, last: GroupNumber) -> Result<u64, LogError> {
        let mut writer = lock(&self.writer);
        let newest = writer.segments.iter().map(|segment| segment.epoch).max();
        let epoch = newest.unwrap_or(0) + 1;
        let begin = Begin {
            last: last.0,
            epoch,
            growth: 1,
            bytes_min: 0,
        };
        self.begin_segment(&mut writer, &begin)?;
        writer.durable = last.0;
        *lock(&self.queue) = Queue {
            epoch,
            last: last.0,
            groups: Vec::new(),
        };
        Ok(epoch)
    }

    fn append(&self, epoch: u64, number: GroupNumber, body: Bytes) -> Result<(), LogError> {
        let mut queue = lock(&self.queue);
        if epoch != queue.epoch {
            return Err(LogError::Fenced {
                own: epoch,
                newest: queue.epoch,
            });
        }
        if number.0 != queue.last + 1 {
            return Err(LogError::OutOfOrder {
                expected: queue.last + 1,
                actual: number.0,
            });
        }
        if body.len() > GROUP_BYTES_MAX {
            return Err(LogError::TooLarge { actual: body.len() });
        }
        queue.last = number.0;
        queue.groups.push((number.0, body));
        Ok(())
    }

    fn gather(&self) -> Result<GroupWrite, LogError> {
        let _turn = lock(&self.gathering);
        let (epoch, groups) = {
            let mut queue = lock(&self.queue);
            (queue.epoch, std::mem::take(&mut queue.groups))
        };
        let mut writer = lock(&self.writer);
        let mut rest = groups.as_slice();
        loop {
            let fitting = writer.fitting(rest);
            let (now, later) = rest.split_at(fitting);
            let write = writer.place(now);
            let Some((number, body)) = later.first() else {
                let wants_room = writer.wanted_spare(&self.options).is_some();
                self.wants_room.store(wants_room, Ordering::Release);
                return Ok(write);
            };
            // A segment begins when every group before it is durable.
            drop(writer);
            self.write(write)?;
            writer = lock(&self.writer);
            while !writer.under_way.is_empty() {
                writer = self.wait_for_write(writer)?;
            }
            let begin = Begin {
                last: number - 1,
                epoch,
                growth: GROWTH,
                bytes_min: (PAGE_BYTES + record_bytes(body.len()).next_multiple_of(PAGE_BYTES))
                    as u64,
            };
            self.begin_segment(&mut writer, &begin)?;
            rest = later;
        }
    }

    fn write(&self, write: GroupWrite) -> Result<GroupNumber, LogError> {
        let mut result = Ok(());
        if let Some(WritePlace {
            file,
            path,
            at,
            pages,
        }) = &write.place
        {
            let written = file.write_all_at(pages.as_slice(), *at);
            result = written.map_err(io_error("written", path));
        }
        let mut writer = lock(&self.writer);
        match &result {
            Ok(()) => writer.is_over(write),
            Err(_) => writer.is_broken = true,
        }
        let durable = writer.durable;
        let is_waited_for = writer.waiting > 0;
        drop(writer);
        if is_waited_for {
            self.written.notify_all();
        }
        result.map(|()| GroupNumber(durable))
    }

    fn sync(&self) -> Result<GroupNumber, LogError> {
        let last = lock(&self.queue).last;
        let write = self.gather()?;
        self.write(write)?;
        let mut writer = lock(&self.writer);
        while writer.durable < last {
            writer = self.wait_for_write(writer)?;
        }
        Ok(GroupNumber(writer.durable))
    }

    fn trim(&self, applied: GroupNumber) -> Result<(), LogError> {
        let mut writer = lock(&self.writer);
        let behind = writer.segments.iter().skip(1);
        let done = behind
            .take_while(|next| next.first <= applied.0 + 1)
            .count();
        let newest_bytes = writer.segments.last().map_or(0, |segment| segment.bytes);
        let trimmed: Vec<_> = writer.segments.drain(..done).collect();
        for segment in trimmed {
            let keeps = segment.bytes >= newest_bytes && writer.spares.len() < SPARES_MAX;
            if !keeps {
                fs::remove_file(&segment.path).map_err(io_error("removed", &segment.path))?;
                continue;
            }
            let path = self
                .directory
                .join(format!("spare-{}", writer.spare_number));
            writer.spare_number += 1;
            fs::rename(&segment.path, &path).map_err(io_error("named", &path))?;
            writer.spares.push(Spare {
                path,
                bytes: segment.bytes,
            });
        }
        if done > 0 {
            sync_directory(&self.directory).map_err(io_error("synced", &self.directory))?;
        }
        Ok(())
    }

    fn wants_room(&self) -> bool {
        self.wants_room.load(Ordering::Acquire)
    }

    fn prepare(&self) -> Result<(), LogError> {
        let (number, bytes) = {
            let mut writer = lock(&self.writer);
            let wanted = writer.wanted_spare(&self.options);
            self.wants_room.store(false, Ordering::Release);
            let Some(bytes) = wanted else {
                return Ok(());
            };
            writer.spare_number += 1;
            (writer.spare_number - 1, bytes)
        };
        let spare = self.make_spare(number, bytes)?;
        lock(&self.writer).spares.push(spare);
        Ok(())
    }

    fn state(&self) -> LogState {
        let writer = lock(&self.writer);
        if writer.segments.is_empty() {
            return LogState::Absent;
        }
        let mut segments = writer.segments.iter();
        if segments.all(|segment| segment.first == 1 && segment.is_unused()) {
            LogState::Unused
        } else {
            LogState::Used
        }
    }

    fn disk_bytes(&self) -> u64 {
        let writer = lock(&self.writer);
        let segments: u64 = writer.segments.iter().map(|segment| segment.bytes).sum();
        let spares: u64 = writer.spares.iter().map(|spare| spare.bytes).sum();
        segments + spares
    }
}

impl Writer {
    /// The size of the spare segment that is missing.
    fn wanted_spare(&self, options: &LogOptions) -> Option<u64> {
        let current = self.current.as_ref()?;
        let wanted = (current.segment.bytes * GROWTH).min(options.segment_bytes_max);
        let is_half_full = current.at * 2 > current.segment.bytes;
        let has_spare = self.spares.iter().any(|spare| spare.bytes >= wanted);
        (is_half_full && !has_spare).then_some(wanted)
    }

    /// How many of these groups the current segment has room for.
    fn fitting(&self, groups: &[(u64, Bytes)]) -> usize {
        let Some(current) = &self.current else {
            return 0;
        };
        let mut at = current.at;
        groups
            .iter()
            .take_while(|(_, body)| {
                at += record_bytes(body.len()) as u64;
                at <= current.segment.bytes
            })
            .count()
    }

    /// Gives groups that fit their place.
    fn place(&mut self, groups: &[(u64, Bytes)]) -> GroupWrite {
        let (Some(current), Some((last, _))) = (&mut self.current, groups.last()) else {
            return GroupWrite::default();
        };
        let bytes = { groups.iter() }.map(|(_, body)| record_bytes(body.len()));
        let mut pages = self.pages.pop().unwrap_or_default();
        pages.begin(bytes.sum());
        for (number, body) in groups {
            current
                .segment
                .put_record(*number, self.durable, body, &mut pages);
        }
        pages.finish();
        let at = current.at;
        current.at += pages.as_slice().len() as u64;
        self.under_way.push_back(UnderWay {
            last: *last,
            is_over: false,
        });
        GroupWrite {
            last: *last,
            place: Some(WritePlace {
                file: Arc::clone(&current.file),
                path: current.segment.path.clone(),
                at,
                pages,
            }),
        }
    }

    /// A write is on the disk: what is durable grows by it, once everything before it is.
    fn is_over(&mut self, write: GroupWrite) {
        let own = self.under_way.iter_mut();
        if let Some(own) = { own }.find(|own| own.last == write.last) {
            own.is_over = true;
        }
        while let Some(first) = self.under_way.front()
            && first.is_over
        {
            self.durable = first.last;
            self.under_way.pop_front();
        }
        if let Some(place) = write.place {
            self.pages.push(place.pages.empty());
        }
    }
}

/// Opens a segment for writes that are durable when they return, and writes its header. They pass the
/// page cache by where the file system can do that.
fn open_for_writes(path: &Path, header: &[u8]) -> io::Result<File> {
    let mut page = Pages::default();
    page.begin(header.len());
    page.extend(header);
    page.finish();
    let open = |flags: OFlags| -> io::Result<File> {
        let flags = i32::try_from(flags.bits()).unwrap_or_default();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(path)?;
        file.write_all_at(page.as_slice(), 0)?;
        Ok(file)
    };
    match open(OFlags::DIRECT | OFlags::DSYNC) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
            tracing::info!(path = %path.display(), "the file system takes no direct writes; the log goes through its cache");
            open(OFlags::DSYNC)
        }
        opened => opened,
    }
}

impl Segment {
    fn read(path: &Path) -> Result<Self, LogError> {
        let mut file = File::open(path).map_err(io_error("opened", path))?;
        let damaged = |what: &str| LogError::Damaged {
            what: format!("the header of {} {what}", path.display()),
        };
        let mut header = [0; SEGMENT_HEADER_BYTES];
        match file.read_exact(&mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged("is cut off"));
            }
            read => read.map_err(io_error("read", path))?,
        }
        let Some((covered, crc)) = header.split_last_chunk::<4>() else {
            return Err(damaged("is cut off"));
        };
        if crc32fast::hash(covered).to_be_bytes() != *crc {
            return Err(damaged("does not match its checksum"));
        }
        let segment = Self::parse(path, covered).ok_or_else(|| damaged("is of another format"))?;
        let bytes = file.metadata().map_err(io_error("read", path))?.len();
        if bytes != segment.bytes {
            let expected = segment.bytes;
            return Err(damaged(&format!("promises {expected} bytes, not {bytes}")));
        }
        Ok(segment)
    }

    fn parse(path: &Path, covered: &[u8]) -> Option<Self> {
        let mut reader = Reader(covered);
        let mut field = |_name: &str| reader.array().ok().map(u64::from_be_bytes);
        let magic = field("magic")?;
        let version = field("version")?;
        if magic.to_be_bytes() != MAGIC || version != u64::from(LOG_VERSION) {
            return None;
        }
        Some(Self {
            path: path.to_owned(),
            sequence: field("sequence")?,
            first: field("first")?,
            epoch: field("epoch")?,
            salt: field("salt")?,
            bytes: field("bytes")?,
        })
    }

    /// Appends a record of this segment.
    fn put_record(&self, number: u64, durable: u64, body: &[u8], pages: &mut Pages) {
        let mut header = [0; RECORD_HEADER_BYTES];
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        let fields = [number, number - 1, self.epoch, durable];
        let fields = fields.iter().flat_map(|field| field.to_be_bytes());
        let rest = { length.to_be_bytes().into_iter() }
            .chain(fields)
            .chain(LOG_VERSION.to_be_bytes());
        let (crc, covered) = header.split_at_mut(4);
        for (slot, byte) in covered.iter_mut().zip(rest) {
            *slot = byte;
        }
        crc.copy_from_slice(&record_crc(self.salt, covered, body).to_be_bytes());
        pages.extend(&header);
        pages.extend(body);
        pages.align(ALIGNMENT);
    }

    fn header(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut header = Vec::with_capacity(SEGMENT_HEADER_BYTES);
        header.extend_from_slice(&MAGIC);
        for field in [
            u64::from(LOG_VERSION),
            self.sequence,
            self.first,
            self.epoch,
            self.salt,
            self.bytes,
        ] {
            header.extend_from_slice(&field.to_be_bytes());
        }
        header.resize(SEGMENT_HEADER_BYTES - 4, 0);
        let crc = crc32fast::hash(&header);
        header.extend_from_slice(&crc.to_be_bytes());
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes.copy_from_slice(&header);
        bytes
    }

    /// Whether no group was ever written to it.
    fn is_unused(&self) -> bool {
        let mut scan = SegmentScan {
            segment: self,
            next_first: None,
            expected: self.first,
        };
        let result = scan.run(&mut |_, _| Ok(()));
        result.is_ok() && scan.expected == self.first
    }
}

/// Reads the records of a segment in order.
struct SegmentScan<'a> {
    segment: &'a Segment,
    /// The first group of the next segment. It was begun when every group before it was durable.
    next_first: Option<u64>,
    /// The number of the next record.
    expected: u64,
}

impl SegmentScan<'_> {
    fn run(
        &mut self,
        visit: &mut dyn FnMut(GroupNumber, Bytes) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let path = &self.segment.path;
        let file = File::open(path).map_err(io_error("opened", path))?;
        let mut at = SEGMENT_HEADER_BYTES as u64;
        while self.next_first != Some(self.expected) {
            let Some((header, body, next)) = self.read_expected(&file, at)? else {
                return self.end_at(&file, at);
            };
            if header.version != LOG_VERSION {
                return Err(LogError::Damaged {
                    what: format!(
                        "group {} in {} has format {}, this server knows {LOG_VERSION}",
                        header.number,
                        path.display(),
                        header.version
                    ),
                });
            }
            at = next;
            visit(GroupNumber(self.expected), body)?;
            self.expected += 1;
        }
        Ok(())
    }

    /// The expected record, which is at this offset, or, where a write ended before it, at the beginning
    /// of the next page; and where it ends.
    fn read_expected(
        &self,
        file: &File,
        at: u64,
    ) -> Result<Option<(RecordHeader, Bytes, u64)>, LogError> {
        let page = at.next_multiple_of(PAGE_BYTES as u64);
        for at in (at..=page).step_by(usize::try_from(page - at).unwrap_or_default().max(1)) {
            if let Some((header, body)) = self.read_record(file, at)?
                && header.number == self.expected
                && header.previous + 1 == self.expected
                && header.epoch == self.segment.epoch
            {
                let next = at + record_bytes(body.len()) as u64;
                return Ok(Some((header, body, next)));
            }
        }
        Ok(None)
    }

    /// A whole record at this offset, whatever its number.
    fn read_record(&self, file: &File, at: u64) -> Result<Option<(RecordHeader, Bytes)>, LogError> {
        let path = &self.segment.path;
        let mut bytes = [0; RECORD_HEADER_BYTES];
        if at + RECORD_HEADER_BYTES as u64 > self.segment.bytes {
            return Ok(None);
        }
        file.read_exact_at(&mut bytes, at)
            .map_err(io_error("read", path))?;
        let Some(header) = RecordHeader::parse(&bytes) else {
            return Ok(None);
        };
        let end = at + RECORD_HEADER_BYTES as u64 + u64::from(header.length);
        if header.number == 0 || end > self.segment.bytes {
            return Ok(None);
        }
        let mut body = vec![0; usize::try_from(header.length).unwrap_or(usize::MAX)];
        file.read_exact_at(&mut body, at + RECORD_HEADER_BYTES as u64)
            .map_err(io_error("read", path))?;
        let covered = bytes.get(4..).unwrap_or_default();
        if record_crc(self.segment.salt, covered, &body) != header.crc {
            return Ok(None);
        }
        Ok(Some((header, Bytes::from(body))))
    }

    /// Decides what the first offset without the expected record is: the normal end, when nothing
    /// says that the record was durable; else damage.
    fn end_at(&self, file: &File, at: u64) -> Result<(), LogError> {
        let proof = match self.next_first {
            Some(first) => Some(format!("the next segment begins with group {first}")),
            None => self.find_proof(file, at)?,
        };
        match proof {
            None => Ok(()),
            Some(proof) => Err(LogError::Damaged {
                what: format!(
                    "group {} is not whole in {} at byte {at}, but was durable: {proof}",
                    self.expected,
                    self.segment.path.display()
                ),
            }),
        }
    }

    /// Looks behind `at` for a whole record that was written when the expected one was durable.
    fn find_proof(&self, file: &File, at: u64) -> Result<Option<String>, LogError> {
        const CHUNK: usize = 1 << 20;
        let path = &self.segment.path;
        let epoch = self.segment.epoch.to_be_bytes();
        let mut chunk = vec![0; CHUNK];
        let mut start = at;
        while start + RECORD_HEADER_BYTES as u64 <= self.segment.bytes {
            let left = usize::try_from(self.segment.bytes - start).unwrap_or(CHUNK);
            let chunk = chunk.get_mut(..left.min(CHUNK)).unwrap_or_default();
            file.read_exact_at(chunk, start)
                .map_err(io_error("read", path))?;
            // What follows is zeroes, or of an earlier use: a header is looked for by its epoch.
            let (words, _) = chunk.as_chunks::<ALIGNMENT>();
            let marks = words.iter().zip((0..).step_by(ALIGNMENT));
            for (_, mark) in marks.filter(|(word, _)| **word == epoch) {
                let Some(offset) = usize::checked_sub(mark, RECORD_EPOCH_AT) else {
                    continue;
                };
                let header = chunk.get(offset..).and_then(<[u8]>::first_chunk);
                let Some(header) = header.and_then(RecordHeader::parse) else {
                    continue;
                };
                let is_candidate = header.version == LOG_VERSION
                    && header.number > self.expected
                    && header.durable >= self.expected;
                if !is_candidate {
                    continue;
                }
                let whole = self.read_record(file, start + offset as u64)?;
                if whole.is_some() {
                    return Ok(Some(format!("group {} says so", header.number)));
                }
            }
            // A header that this chunk cuts off begins in the next one.
            start += (chunk.len() + ALIGNMENT - RECORD_HEADER_BYTES) as u64;
        }
        Ok(None)
    }
}

impl RecordHeader {
    fn parse(bytes: &[u8; RECORD_HEADER_BYTES]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let mut wide = [0_u64; 4];
        let crc = u32::from_be_bytes(reader.array().ok()?);
        let length = u32::from_be_bytes(reader.array().ok()?);
        for field in &mut wide {
            *field = u64::from_be_bytes(reader.array().ok()?);
        }
        let [number, previous, epoch, durable] = wide;
        let version = u32::from_be_bytes(reader.array().ok()?);
        Some(Self {
            crc,
            length,
            number,
            previous,
            epoch,
            durable,
            version,
        })
    }
}

/// Bytes of a record with its padding.
fn record_bytes(body: usize) -> usize {
    (RECORD_HEADER_BYTES + body).next_multiple_of(ALIGNMENT)
}

/// Of the header behind its CRC, and the body; padding is not covered.
fn record_crc(salt: u64, header: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&salt.to_be_bytes());
    hasher.update(header);
    hasher.update(body);
    hasher.finalize()
}

/// A number that nobody can foresee, so that no payload looks like a record of its segment.
fn random_u64() -> Result<u64, LogError> {
    super::format::random::<8>()
        .map(u64::from_be_bytes)
        .map_err(io_error("read", Path::new("/dev/urandom")))
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LogError {
    move |source| LogError::Io {
        doing,
        path: path.to_owned(),
        source,
    }
}

/// A lock whose holder panicked still guards whole values: every error here poisons the store.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
