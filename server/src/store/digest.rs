//! The digest of a table: a sum over the rows whose loss no other record would show.
//!
//! Jobs, runs, timers and indexes vouch for each other; a queue without jobs, a session, an
//! outcome, a cron entry or a batch stands alone. Each batch of a checkpoint carries the digest behind it, so that the two
//! never differ but by damage. The checkpoint keeps it, `doctor.rs` adds it up again.

use bytes::Bytes;
use ganger_engine::records::GroupNumber;
use sha2::{Digest as _, Sha256};

use super::{
    StoreError,
    coding::Reader,
    damaged,
    keys::{Key, Meta},
    records,
    table::Table,
};

/// The count of rows, and the sum of their hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Digest {
    rows: u64,
    sum: u128,
}

impl Digest {
    /// Whether a row counts.
    pub(super) fn covers(key: &Key) -> bool {
        key.prefix().is_some_and(|prefix| prefix.is_digested())
    }

    pub(super) fn add(&mut self, key: &Key, value: &[u8]) {
        self.rows = self.rows.wrapping_add(1);
        self.sum = self.sum.wrapping_add(hash(key, value));
    }

    pub(super) fn remove(&mut self, key: &Key, value: &[u8]) {
        self.rows = self.rows.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(hash(key, value));
    }

    /// The digest behind a batch; `None` when the batch has nothing that counts.
    pub(super) fn behind(
        mut self,
        table: &dyn Table,
        batch: &[(Key, Option<Bytes>)],
    ) -> Result<Option<Self>, StoreError> {
        let mut is_touched = false;
        for (key, value) in batch.iter().filter(|(key, _)| Self::covers(key)) {
            is_touched = true;
            if let Some(before) = table.read(key)? {
                self.remove(key, &before);
            }
            if let Some(value) = value {
                self.add(key, value);
            }
        }
        Ok(is_touched.then_some(self))
    }

    /// The row that says it.
    pub(super) fn row(&self, group: GroupNumber) -> (Key, Option<Bytes>) {
        let key = Key::meta(Meta::Digest);
        let mut value = Vec::new();
        records::put_value(&mut value, key.as_slice(), group, |out| {
            out.extend_from_slice(&self.rows.to_be_bytes());
            out.extend_from_slice(&self.sum.to_be_bytes());
        });
        (key, Some(Bytes::from(value)))
    }

    /// What a table says.
    pub(super) fn read(table: &dyn Table) -> Result<Self, StoreError> {
        let key = Key::meta(Meta::Digest);
        let value = table.read(&key)?.ok_or(StoreError::Incomplete {
            what: "the table does not say which rows it has",
        })?;
        let newest = GroupNumber(u64::MAX);
        let (_, body) =
            records::open_value(key.as_slice(), &value, newest).map_err(damaged(&key))?;
        let mut reader = Reader(body);
        let mut fields = || {
            let digest = Self {
                rows: u64::from_be_bytes(reader.array()?),
                sum: u128::from_be_bytes(reader.array()?),
            };
            reader.end()?;
            Ok(digest)
        };
        fields().map_err(damaged(&key))
    }
}

/// The first sixteen bytes of SHA-256 over key and value. A key's kind gives its length.
pub(super) fn hash(key: &Key, value: &[u8]) -> u128 {
    let hash = Sha256::new()
        .chain_update(key.as_slice())
        .chain_update(value)
        .finalize();
    let first = hash.first_chunk::<16>().copied().unwrap_or_default();
    u128::from_be_bytes(first)
}
