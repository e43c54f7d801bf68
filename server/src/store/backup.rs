//! A copy of a store while it is used: the content of the table in slices, and every group that
//! changed it meanwhile. What comes of both, in the order in which they were given, is the store
//! as it was at the last of these groups.
//!
//! A row is given only when every group up to the applied one was given, so whatever changed
//! behind the reader's back is in a group that is still to come. The log keeps those groups until
//! they were read. The bytes of a backup are `archive.rs`'s, what is made of it `rebuild.rs`'s.

use std::sync::{Arc, atomic::Ordering};

use bytes::Bytes;
use ganger_engine::records::GroupNumber;

use super::{
    Store, StoreError,
    keys::{Key, Meta, Prefix},
    lock,
    log::LogCursor,
    table::Span,
};

/// Bytes of groups that are given at once, about.
const SLICE_BYTES: usize = 256 << 10;

/// Bytes of log that may wait for a backup. One that falls further behind is given up.
const HELD_BYTES_MAX: u64 = 2 << 30;

/// What a backup still needs of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Hold {
    /// There is no backup.
    #[default]
    None,
    /// Every group behind this one.
    Behind(GroupNumber),
    /// It fell too far behind, and nothing is kept for it.
    GivenUp,
}

/// A piece of a store.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Rows of the table, in the order of their keys.
    Rows(Vec<(Key, Bytes)>),
    /// Groups in their written form, in their order.
    Groups(Vec<(GroupNumber, Bytes)>),
    /// All pieces together are the store as it was when this group was the last.
    End(GroupNumber),
}

/// A backup on its way. There is one of a store at a time.
#[derive(Debug)]
pub struct Backup {
    store: Arc<Store>,
    cursor: LogCursor,
    /// What is left of the table; `None`: nothing.
    rest: Option<Span>,
    /// The group at which it ends, once the table is through.
    end: Option<GroupNumber>,
}

impl Backup {
    /// Begins a backup.
    ///
    /// # Errors
    /// [`StoreError::Backup`] while another one is under way.
    pub fn begin(store: &Arc<Store>) -> Result<Self, StoreError> {
        // No checkpoint ends while this is held, so the log has everything behind `applied`.
        let _checkpoint = store.checkpoint();
        let applied = GroupNumber(store.applied.load(Ordering::Acquire));
        let mut hold = lock(&store.hold);
        if *hold != Hold::None {
            return Err(StoreError::Backup {
                what: "another one is under way",
            });
        }
        *hold = Hold::Behind(applied);
        drop(hold);
        Ok(Self {
            store: Arc::clone(store),
            cursor: LogCursor::behind(applied),
            rest: Some(Span {
                to: Key::end(),
                ..Span::of(Key::lowest())
            }),
            end: None,
        })
    }

    /// The next piece; the last one is [`Piece::End`].
    ///
    /// # Errors
    /// [`StoreError::Backup`] when it was given up, or the error of the store.
    pub fn next_piece(&mut self) -> Result<Piece, StoreError> {
        let store = Arc::clone(&self.store);
        store.guarded(|| self.read_next(&store))
    }

    fn read_next(&mut self, store: &Store) -> Result<Piece, StoreError> {
        let applied = GroupNumber(store.applied.load(Ordering::Acquire));
        let through = self.end.unwrap_or(applied);
        if self.cursor.next() <= through {
            return self.read_groups(store, through);
        }
        if let Some(end) = self.end {
            return Ok(Piece::End(end));
        }
        if let Some(rest) = self.rest {
            let max = store.options.slice_operations_max;
            let rows = store.table.scan(&rest, max)?;
            let last = rows.last().filter(|_| rows.len() == max);
            self.rest = last.map(|(key, _)| rest.behind(key));
            return Ok(Piece::Rows(
                rows.into_iter()
                    .filter(|(key, _)| is_content(key))
                    .collect(),
            ));
        }
        self.end = Some(store.durable());
        self.read_next(store)
    }

    fn read_groups(&mut self, store: &Store, through: GroupNumber) -> Result<Piece, StoreError> {
        if *lock(&store.hold) == Hold::GivenUp {
            return Err(StoreError::Backup {
                what: "it was read too slowly, and the log could not be kept for it any longer",
            });
        }
        let groups = store.log.read_on(&mut self.cursor, through, SLICE_BYTES)?;
        if let Some((last, _)) = groups.last() {
            store.move_hold(*last);
        }
        Ok(Piece::Groups(groups))
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        *lock(&self.store.hold) = Hold::None;
    }
}

impl Store {
    /// The group up to which the log may be trimmed when the table has everything up to `applied`.
    pub(super) fn trimmable(&self, applied: GroupNumber) -> GroupNumber {
        let mut hold = lock(&self.hold);
        match *hold {
            Hold::Behind(_) if self.log.disk_bytes() > HELD_BYTES_MAX => {
                *hold = Hold::GivenUp;
                applied
            }
            Hold::Behind(group) => applied.min(group),
            Hold::None | Hold::GivenUp => applied,
        }
    }

    fn move_hold(&self, group: GroupNumber) {
        let mut hold = lock(&self.hold);
        if matches!(*hold, Hold::Behind(_)) {
            *hold = Hold::Behind(group);
        }
    }
}

/// Whether a row is content: what the table says of itself is another table's own to say.
fn is_content(key: &Key) -> bool {
    key.prefix() != Some(Prefix::Meta)
        || ![Meta::Applied, Meta::Digest].map(Key::meta).contains(key)
}
