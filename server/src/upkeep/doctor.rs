//! What is wrong with a closed data directory, and a repair: the damaged shard's data is made anew
//! out of everything in it that is whole.
//!
//! The damaged data stays beside the new until somebody removes it, and what could not be saved is
//! told one by one: nothing is lost without a word.

use std::path::Path;

use serde::Serialize;

use super::{CACHE_BYTES, UpkeepError, shards_of};
use crate::{
    data_dir::shard_dir,
    store::{
        Store, StoreError, StoreOptions,
        build::Builder,
        doctor,
        format::ShardDirectory,
        salvage::{self, Listener, Told},
    },
};

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ailment {
    /// The shard.
    pub shard: u16,
    /// The record, as kind and hexadecimal key; absent: the shard as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// What is wrong.
    pub what: String,
}

/// What the doctor found, and did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Diagnosis {
    /// Shards.
    pub shards: usize,
    /// Records that were looked at.
    pub records: u64,
    /// Jobs that are kept.
    pub jobs: u64,
    /// A digest of all that the directory holds, workers and leases included: equal for a
    /// directory and a backup of it that was restored.
    pub digest: String,
    /// How much is wrong.
    pub ailments_count: u64,
    /// What is wrong, not more than a thousand a shard.
    pub ailments: Vec<Ailment>,
    /// What was repaired, shard by shard.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repairs: Vec<Repair>,
}

/// A shard that was made anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repair {
    /// The shard.
    pub shard: u16,
    /// Queues that were saved.
    pub queues: u64,
    /// Jobs that were saved.
    pub jobs: u64,
    /// Cron entries that were saved.
    pub crons: u64,
    /// Limits that were saved.
    pub limits: u64,
    /// Batches that were saved.
    pub batches: u64,
    /// What could not be saved.
    pub lost: Vec<String>,
    /// Where the damaged data is kept.
    pub kept_in: String,
}

/// Looks at a directory that no server has open, and repairs it if that is wanted; `progress`
/// hears of records.
///
/// # Errors
/// [`UpkeepError`] when a shard cannot be opened at all; a backup is the only help then.
pub fn examine(
    data_dir: &Path,
    repair: bool,
    mut progress: impl FnMut(u64),
) -> Result<Diagnosis, UpkeepError> {
    let mut diagnosis = Diagnosis::default();
    let mut digest = 0_u128;
    for shard in shards_of(data_dir)? {
        let failed = |source| UpkeepError::Store {
            doing: "opened",
            shard,
            source,
        };
        let path = shard_dir(data_dir, shard);
        let mut directory = ShardDirectory::open_existing(&path).map_err(failed)?;
        let options = StoreOptions {
            shard,
            ..StoreOptions::default()
        };
        let (store, problems) = Store::inspect(&directory.data, &options).map_err(failed)?;
        let before = diagnosis.records;
        let health = doctor::examine(&store, problems, &mut |records| progress(before + records));
        diagnosis.shards += 1;
        diagnosis.records += health.records;
        diagnosis.jobs += health.jobs.kept();
        digest = digest.wrapping_add(health.digest);
        diagnosis.ailments_count += health.findings_count;
        let is_sound = health.is_sound();
        let ailments = health.findings.into_iter().map(|finding| Ailment {
            shard,
            record: finding.key.map(|key| key.to_string()),
            what: finding.what,
        });
        diagnosis.ailments.extend(ailments);
        if repair && !is_sound {
            let repaired =
                rebuild(&mut directory, &store).map_err(|source| UpkeepError::Store {
                    doing: "repaired",
                    shard,
                    source,
                })?;
            diagnosis.repairs.push(Repair { shard, ..repaired });
        }
    }
    diagnosis.digest = format!("{digest:032x}");
    Ok(diagnosis)
}

fn rebuild(directory: &mut ShardDirectory, store: &Store) -> Result<Repair, StoreError> {
    let old = directory.data.clone();
    let new = directory.make_next()?;
    let head = salvage::head(store)?;
    let secret = match store.secret() {
        [0, ..] if store.secret() == [0; 32] => StoreOptions::random_secret()?,
        secret => secret,
    };
    let mut patient = Patient {
        builder: Builder::begin(&new, head, secret, CACHE_BYTES)?,
        lost: Vec::new(),
    };
    salvage::tell(store, &mut patient)?;
    let built = patient.builder.finish()?;
    directory.point_at(new)?;
    Ok(Repair {
        shard: 0,
        queues: built.queues,
        jobs: built.jobs,
        crons: built.crons,
        limits: built.limits,
        batches: built.batches,
        lost: patient.lost,
        kept_in: old.name().to_owned(),
    })
}

/// What is being made whole.
struct Patient {
    builder: Builder,
    lost: Vec<String>,
}

impl Listener for Patient {
    fn told(&mut self, told: Told) -> Result<(), StoreError> {
        self.builder.take(told)
    }

    fn lost(&mut self, what: String) {
        self.lost.push(what);
    }
}
