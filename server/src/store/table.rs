//! What the store asks of the ordered table behind the log: reads, batches, and one flush that is
//! durable. `sled.rs` is the real one, `memory.rs` the double.

use std::fmt;

use bytes::Bytes;

use super::keys::{Key, Prefix};

/// An ordered map of keys to values on disk. Only a checkpoint writes to it.
///
/// What a table keeps of batches and rooms that were not flushed is a prefix of them.
pub trait Table: fmt::Debug + Send + Sync {
    /// The value of a key.
    ///
    /// # Errors
    /// [`TableError`] when the table cannot be read.
    fn read(&self, key: &Key) -> Result<Option<Bytes>, TableError>;

    /// At most `max` rows of `span` in its order.
    ///
    /// # Errors
    /// [`TableError`] when the table cannot be read.
    fn scan(&self, span: &Span, max: usize) -> Result<Vec<(Key, Bytes)>, TableError>;

    /// Makes room for the values that later batches put at these keys, in their order: until then an
    /// empty one stands at each. Whoever writes many large ones one after the other does so first, since
    /// a page splits by the count of its rows and is written anew when it does: so it is while they are
    /// small.
    ///
    /// # Errors
    /// As of [`apply`](Self::apply).
    fn make_room(&self, keys: &[Key]) -> Result<(), TableError>;

    /// Puts and deletes, all or nothing.
    ///
    /// # Errors
    /// [`TableError`]; nothing may be written after one.
    fn apply(&self, batch: &[(Key, Option<Bytes>)]) -> Result<(), TableError>;

    /// Makes everything that was applied durable.
    ///
    /// # Errors
    /// [`TableError`]; what was applied may or may not be there afterwards.
    fn flush(&self) -> Result<(), TableError>;

    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;

    /// Files of values that were too large for a page. They are never given back, so there must
    /// be none.
    fn stray_files(&self) -> u64 {
        0
    }
}

/// Bytes of a value from which on room is made for it.
const LARGE_BYTES: usize = 1 << 10;

/// Whether [room](Table::make_room) is made for a row that is put: it is large, and put once, so that
/// nothing stands there that may not be lost.
pub fn wants_room(key: &Key, value: Option<&Bytes>) -> bool {
    let is_run = matches!(key.prefix(), Some(Prefix::Run | Prefix::ScheduledRun));
    is_run && value.is_some_and(|value| value.len() >= LARGE_BYTES)
}

/// Applies a batch, with room for what is large in it.
///
/// # Errors
/// As of [`Table::apply`].
pub fn apply_with_room(
    table: &dyn Table,
    batch: &[(Key, Option<Bytes>)],
) -> Result<(), TableError> {
    let large = batch.iter();
    let large = large.filter(|(key, value)| wants_room(key, value.as_ref()));
    table.make_room(&large.map(|(key, _)| *key).collect::<Vec<_>>())?;
    table.apply(batch)
}

/// Keys between two bounds, in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// From this key on.
    pub from: Key,
    /// Up to the one before this key.
    pub to: Key,
    /// In which direction.
    pub order: Order,
}

impl Span {
    /// All keys that begin so, in their order.
    pub fn of(prefix: Key) -> Self {
        Self {
            from: prefix,
            to: prefix.after_prefix(),
            order: Order::Ascending,
        }
    }

    /// The rest of this span behind a key of it.
    #[must_use]
    pub fn behind(self, key: &Key) -> Self {
        match self.order {
            Order::Ascending => Self {
                from: key.after(),
                ..self
            },
            Order::Descending => Self { to: *key, ..self },
        }
    }

    /// The part of this span up to a key of it and with it.
    #[must_use]
    pub fn through(self, key: &Key) -> Self {
        match self.order {
            Order::Ascending => Self {
                to: key.after(),
                ..self
            },
            Order::Descending => Self { from: *key, ..self },
        }
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        self.from >= self.to
    }
}

/// The direction of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// The smallest key first.
    Ascending,
    /// The largest key first.
    Descending,
}

/// Why a table failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// A call of the operating system failed.
    #[error("the table cannot be {doing}")]
    Io {
        /// What was being done: `read`, `written`, …
        doing: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Its files do not hold together.
    #[error("the table is damaged: {what}")]
    Damaged {
        /// What was found.
        what: String,
    },
    /// Its code gave up.
    #[error("the table's code panicked while it was {doing}: {what}")]
    Panicked {
        /// What was being done.
        doing: &'static str,
        /// What it said.
        what: String,
    },
}
