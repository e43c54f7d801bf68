//! One suite for every log, table and store: the same tests over the real ones and the doubles.

mod backups;
mod damage;
mod directories;
mod lists;
mod model;
mod parts;
mod reads;
mod roundtrip;
mod samples;

use ganger_engine::{
    change::{Change, Group},
    facts::{Fact, Need, Recovered},
    records::{GroupNumber, StoredJob},
};
use tempfile::TempDir;

use self::samples::{head, job_id, run_key, run_of};
use super::{
    CheckpointProgress, Store, StoreOptions,
    log::LogOptions,
    memory::{Crash, MemoryDisk},
};

/// Something a store can be opened on again and again.
trait Place {
    fn open(&self) -> (Store, Recovered);

    /// Ends the process that has the store: what was not synced is lost.
    fn kill(&self, store: Store);
}

struct Directory(TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
}

impl Place for Directory {
    fn open(&self) -> (Store, Recovered) {
        Store::open_dir(self.0.path(), &options()).unwrap()
    }

    fn kill(&self, store: Store) {
        drop(store);
    }
}

struct Memory(MemoryDisk);

impl Place for Memory {
    fn open(&self) -> (Store, Recovered) {
        self.0.open(&options()).unwrap()
    }

    fn kill(&self, store: Store) {
        drop(store);
        // What a checkpoint that was cut short wrote may be there.
        self.0.crash(&Crash {
            batches_kept: usize::MAX,
            ..Crash::default()
        });
    }
}

/// Small segments, so that a test sees several.
fn options() -> StoreOptions {
    StoreOptions {
        log: LogOptions {
            segment_bytes_first: 24 << 10,
            segment_bytes_max: 32 << 10,
        },
        // Checkpoints of several slices, so that a kill can fall between them.
        slice_operations_max: 5,
        cache_bytes: 4 << 20,
        secret: Some([7; 32]),
        ..StoreOptions::default()
    }
}

fn each(check: impl Fn(&dyn Place)) {
    check(&Memory(MemoryDisk::new()));
    check(&Directory::new());
}

fn commit(store: &Store, number: u64, changes: Vec<Change>) {
    let group = Group {
        number: GroupNumber(number),
        changes,
    };
    store.commit(&group).unwrap();
}

fn checkpoint(store: &Store) {
    while store.checkpoint_slice().unwrap() == CheckpointProgress::More {}
}

fn find(store: &Store, position: u64, index: u8) -> Option<StoredJob> {
    let need = Need::Job {
        job: job_id(position, index),
        content: true,
    };
    match store.read(&need).unwrap() {
        Fact::Job(job) => job,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_group_is_read_at_once_and_survives_a_kill_once_it_is_synced() {
    each(|place| {
        let (store, recovered) = place.open();
        assert_eq!(recovered, Recovered::default());
        commit(
            &store,
            1,
            vec![
                Change::PutRun(run_key(1), run_of(1, 3)),
                Change::PutHead(head(1)),
            ],
        );
        assert!(matches!(
            find(&store, 1, 2),
            Some(StoredJob::Packed { run_entries: 3, .. })
        ));
        assert_eq!(find(&store, 1, 3), None);
        assert_eq!(store.durable(), GroupNumber(0));
        assert_eq!(store.sync().unwrap(), GroupNumber(1));
        commit(&store, 2, vec![Change::DeleteRun(run_key(1))]);
        assert_eq!(find(&store, 1, 2), None);
        place.kill(store);
        let (store, recovered) = place.open();
        assert_eq!(recovered.group, GroupNumber(1));
        assert_eq!(recovered.head, Some(head(1)));
        assert!(find(&store, 1, 2).is_some());
        assert_eq!(store.epoch(), 2);
        assert_eq!(store.secret(), [7; 32]);
        commit(&store, 2, vec![Change::PutRun(run_key(2), run_of(2, 1))]);
        store.close().unwrap();
        let (store, recovered) = place.open();
        assert_eq!(recovered.group, GroupNumber(2));
        assert!(find(&store, 2, 0).is_some() && find(&store, 1, 0).is_some());
    });
}
