//! What is damaged is refused with a report; what is merely torn is the normal end.

use std::{
    fs,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use ganger_engine::{
    change::Change,
    facts::Need,
    records::{BlobKind, GroupNumber},
};

use super::{
    Directory, Place, checkpoint, commit, find, job_id, options,
    samples::{large_run_of, run_key, run_of},
};
use crate::store::{
    CheckpointProgress, LogOptions, Store, StoreError, StoreOptions,
    keys::{Key, Prefix},
    log::LogError,
    memory::{Crash, Fault, MemoryDisk},
    table::TableError,
};

/// Groups `from..=to`, each with a run at the position of its number, each synced.
fn fill(store: &Store, from: u64, to: u64) {
    for number in from..=to {
        commit(
            store,
            number,
            vec![Change::PutRun(run_key(number), run_of(1, 4))],
        );
        store.sync().unwrap();
    }
}

fn log_files(directory: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(directory.join("data-000001/log")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|name| name == "log"));
    files.sort();
    files
}

/// Where the records of a segment are, by the lengths in their headers: behind each other, or at the
/// beginning of the next page.
fn records(path: &Path) -> Vec<Range<usize>> {
    let bytes = fs::read(path).unwrap();
    let length = |at: usize| {
        let length = bytes.get(at + 4..at + 8)?;
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        (length > 0).then_some(48 + length)
    };
    let mut records = Vec::new();
    let mut end: usize = 64;
    let next = |end: usize| {
        let places = [end.next_multiple_of(8), end.next_multiple_of(4096)];
        { places.into_iter() }.find_map(|at| Some(at..at + length(at)?))
    };
    while let Some(record) = next(end) {
        end = record.end;
        records.push(record);
    }
    records
}

fn flip(path: &Path, at: usize) {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at as u64).unwrap();
}

#[track_caller]
fn check_damaged(place: &Directory) -> String {
    let error = Store::open_dir(place.0.path(), &options()).unwrap_err();
    assert!(
        matches!(error, StoreError::Log(LogError::Damaged { .. })),
        "{error:?}"
    );
    error.to_string()
}

#[test]
fn a_torn_group_at_the_end_never_was() {
    for cut in [0, 4, 30, 48, 60] {
        let place = Directory::new();
        let (store, _) = place.open();
        fill(&store, 1, 3);
        place.kill(store);
        let segment = log_files(place.0.path()).pop().unwrap();
        let last = records(&segment).last().unwrap().start;
        let mut bytes = fs::read(&segment).unwrap();
        bytes[last + cut..].fill(0);
        fs::write(&segment, bytes).unwrap();
        let (store, recovered) = place.open();
        assert_eq!(recovered.group, GroupNumber(2), "cut at {cut}");
        assert!(find(&store, 2, 0).is_some() && find(&store, 3, 0).is_none());
        fill(&store, 3, 5);
        place.kill(store);
        let (_, recovered) = place.open();
        assert_eq!(recovered.group, GroupNumber(5));
    }
}

#[test]
fn a_flipped_byte_before_the_end_is_damage() {
    let pristine = Directory::new();
    let (store, _) = pristine.open();
    fill(&store, 1, 4);
    pristine.kill(store);
    let segment = log_files(pristine.0.path()).pop().unwrap();
    let records = records(&segment);
    let bytes = fs::read(&segment).unwrap();
    let before_the_end = records[..3].iter();
    let inside = before_the_end.flat_map(|record| record.clone().step_by(7));
    let between = (64..records[3].start).step_by(397);
    for at in inside.chain(between).chain(0..64) {
        // A flip between records means nothing.
        fs::write(&segment, &bytes).unwrap();
        flip(&segment, at);
        match Store::open_dir(pristine.0.path(), &options()) {
            Err(StoreError::Log(LogError::Damaged { .. })) => {}
            Err(other) => panic!("byte {at}: {other:?}"),
            Ok((store, recovered)) => {
                assert_eq!(recovered.group, GroupNumber(4), "byte {at}");
                assert!(at >= 64 && !records.iter().any(|record| record.contains(&at)));
                drop(store);
                fs::remove_file(log_files(pristine.0.path()).pop().unwrap()).unwrap();
            }
        }
    }
}

#[test]
fn a_damaged_group_is_known_by_one_that_follows_far_behind() {
    let place = Directory::new();
    let options = StoreOptions {
        log: LogOptions {
            segment_bytes_first: 4 << 20,
            segment_bytes_max: 4 << 20,
        },
        ..options()
    };
    let (store, _) = Store::open_dir(place.0.path(), &options).unwrap();
    // Three times as much as is looked at together.
    let runs = (1..=1500).map(|position| Change::PutRun(run_key(position), run_of(1, 120)));
    commit(&store, 1, runs.collect());
    store.sync().unwrap();
    fill(&store, 2, 2);
    place.kill(store);
    let segment = log_files(place.0.path()).pop().unwrap();
    let first = records(&segment)[0].clone();
    assert!(first.len() > 3 << 20, "{}", first.len());
    flip(&segment, first.start + 100);
    let error = check_damaged(&place);
    assert!(error.contains("group 2 says so"), "{error}");
}

#[test]
fn a_segment_that_is_missing_is_damage() {
    let place = Directory::new();
    let (store, _) = place.open();
    fill(&store, 1, 400);
    place.kill(store);
    let segments = log_files(place.0.path());
    assert!(segments.len() > 2);
    for segment in &segments[..segments.len() - 1] {
        let aside = segment.with_extension("aside");
        fs::rename(segment, &aside).unwrap();
        check_damaged(&place);
        fs::rename(&aside, segment).unwrap();
    }
    let (_, recovered) = place.open();
    assert_eq!(recovered.group, GroupNumber(400));
}

#[test]
fn a_log_that_ends_before_the_table_is_damage() {
    let place = Directory::new();
    let (store, _) = place.open();
    fill(&store, 1, 5);
    store.close().unwrap();
    let segment = log_files(place.0.path()).pop().unwrap();
    let last = records(&segment).last().unwrap().start;
    flip(&segment, last + 50);
    let report = check_damaged(&place);
    assert!(report.contains("ends with group 4"), "{report}");
}

#[test]
fn a_log_or_a_table_alone_is_damage() {
    for part in ["log", "table"] {
        let place = Directory::new();
        let (store, _) = place.open();
        fill(&store, 1, 1);
        place.kill(store);
        fs::remove_dir_all(place.0.path().join("data-000001").join(part)).unwrap();
        let error = Store::open_dir(place.0.path(), &options()).unwrap_err();
        assert!(matches!(error, StoreError::Incomplete { .. }), "{error:?}");
    }
}

#[test]
fn a_segment_that_is_used_again_shows_nothing_of_its_first_use() {
    let place = Directory::new();
    let (mut store, _) = place.open();
    for round in 0..12_u64 {
        fill(&store, round * 20 + 1, round * 20 + 20);
        checkpoint(&store);
        if round % 3 == 2 {
            place.kill(store);
            let (opened, recovered) = place.open();
            assert_eq!(recovered.group, GroupNumber(round * 20 + 20));
            store = opened;
        }
    }
    let usage = store.usage();
    assert!(usage.log_disk_bytes <= 5 * (32 << 10), "{usage:?}");
    assert_eq!(usage.table_stray_files, 0);
    assert!(usage.free_bytes < u64::MAX);
}

#[test]
fn a_damaged_snapshot_of_the_table_is_moved_aside() {
    let place = Directory::new();
    let (store, _) = place.open();
    fill(&store, 1, 30);
    store.close().unwrap();
    let table = place.0.path().join("data-000001/table");
    fs::write(table.join("snap.0000000000000010"), b"broken").unwrap();
    let (store, _) = place.open();
    for position in 1..=30 {
        assert!(find(&store, position, 3).is_some());
    }
    assert!(table.join("broken-snap.0000000000000010").exists());
}

#[test]
fn a_damaged_record_is_reported_by_key_and_the_others_are_served() {
    let disk = MemoryDisk::new();
    let (store, _) = disk.open(&options()).unwrap();
    fill(&store, 1, 2);
    checkpoint(&store);
    let key = Key::run(&run_key(1));
    for bit in [0, 8, 80, 110, 200] {
        assert!(disk.flip(&key, bit));
        let need = Need::Job {
            job: job_id(1, 0),
            content: false,
        };
        match store.read(&need).unwrap_err() {
            StoreError::Damaged { key: damaged, .. } => assert_eq!(damaged, key),
            other => panic!("{other:?}"),
        }
        assert!(find(&store, 2, 0).is_some());
        disk.flip(&key, bit);
    }
    assert!(find(&store, 1, 0).is_some());
}

#[test]
fn nothing_is_served_after_an_error() {
    let disk = MemoryDisk::new();
    let (store, _) = disk.open(&options()).unwrap();
    fill(&store, 1, 1);
    commit(&store, 2, Vec::new());
    disk.fail_at(1, Fault::Io);
    let error = store.sync().unwrap_err();
    assert!(matches!(error, StoreError::Log(LogError::Io { .. })));
    let need = Need::Errors(job_id(1, 0));
    assert!(matches!(
        store.read(&need),
        Err(StoreError::Poisoned { .. })
    ));
    assert!(matches!(store.sync(), Err(StoreError::Poisoned { .. })));
    assert!(matches!(
        store.checkpoint_slice(),
        Err(StoreError::Poisoned { .. })
    ));
    assert!(matches!(store.close(), Err(StoreError::Poisoned { .. })));
}

#[test]
fn every_call_may_fail_and_no_acknowledged_group_is_lost() {
    for batches_kept in 0..3 {
        for groups_kept in 0..2 {
            let crash = Crash {
                groups_kept,
                batches_kept,
            };
            let failed = (0..).take_while(|nth| fails_at(*nth, &crash)).count();
            assert!(failed > 20, "{failed}");
        }
    }
}

/// A fixed history in which the nth call fails; whether there was one.
fn fails_at(nth: u64, crash: &Crash) -> bool {
    let disk = MemoryDisk::new();
    let (store, _) = disk.open(&options()).unwrap();
    disk.fail_at(nth, Fault::Io);
    let mut acknowledged = 0;
    let mut history = || -> Result<(), StoreError> {
        for number in 1..=9 {
            let group = ganger_engine::change::Group {
                number: GroupNumber(number),
                changes: vec![
                    Change::PutRun(run_key(number), run_of(2, 2)),
                    // Enough for a checkpoint of several slices.
                    Change::DeleteBlob(job_id(number, 9), BlobKind::Content, 5),
                    Change::DeleteRun(run_key(number - 1)),
                ],
            };
            store.commit(&group)?;
            acknowledged = store.sync()?.0;
            if number % 2 == 0 {
                store.checkpoint_slice()?;
            }
        }
        Ok(())
    };
    let result = history();
    drop(store);
    disk.crash(crash);
    let (store, recovered) = disk.open(&options()).unwrap();
    assert!(recovered.group.0 >= acknowledged);
    for number in 1..=9 {
        let exists = number == recovered.group.0;
        assert_eq!(find(&store, number, 1).is_some(), exists);
    }
    result.is_err()
}

#[test]
fn the_log_keeps_what_the_table_has_not_made_durable() {
    let disk = MemoryDisk::new();
    let (store, _) = disk.open(&options()).unwrap();
    fill(&store, 1, 4);
    // Applied, and then the flush fails.
    disk.fail_at(2, Fault::Io);
    assert_eq!(store.checkpoint_slice().unwrap(), CheckpointProgress::More);
    let error = store.checkpoint_slice().unwrap_err();
    assert!(matches!(error, StoreError::Table(TableError::Io { .. })));
    disk.crash(&Crash::default());
    let (store, recovered) = disk.open(&options()).unwrap();
    assert_eq!(recovered.group, GroupNumber(4));
    assert!((1..=4).all(|position| find(&store, position, 0).is_some()));
}

#[test]
fn a_deletion_behind_a_checkpoint_that_was_cut_short_is_not_forgotten() {
    super::each(|place| {
        let (store, _) = place.open();
        let runs = (1..20).map(|at| Change::PutRun(run_key(at), run_of(1, 1)));
        commit(&store, 1, runs.collect());
        // The first slice has some of the runs, and does not say so.
        assert_eq!(store.checkpoint_slice().unwrap(), CheckpointProgress::More);
        let gone = (1..20).map(|at| Change::DeleteRun(run_key(at)));
        commit(&store, 2, gone.collect());
        store.sync().unwrap();
        place.kill(store);
        let (store, _) = place.open();
        assert!((1..20).all(|at| find(&store, at, 0).is_none()));
        checkpoint(&store);
        assert!((1..20).all(|at| find(&store, at, 0).is_none()));
    });
}

#[test]
fn room_that_the_table_made_is_seen_by_nobody_whenever_the_server_ends() {
    super::each(|place| {
        let whole = |store: &Store| {
            assert!((1..20).all(|at| find(store, at, 0).is_some()));
            let mut rows = 0;
            let visit = |_: &Key, value: &Bytes| {
                rows += usize::from(!value.is_empty());
                Ok(())
            };
            store.scan_all(Prefix::Run, visit).unwrap();
            assert_eq!(rows, 19);
        };
        let stored = |store: &Store, at| store.table.read(&Key::run(&run_key(at))).unwrap();
        let (store, _) = place.open();
        let runs = (1..20).map(|at| Change::PutRun(run_key(at), large_run_of(1, 2)));
        commit(&store, 1, runs.collect());
        // The first slice makes room for the first of the runs.
        assert_eq!(store.checkpoint_slice().unwrap(), CheckpointProgress::More);
        assert_eq!(stored(&store, 1), Some(Bytes::new()));
        assert_eq!(stored(&store, 19), None);
        whole(&store);
        place.kill(store);
        for slices in 1..8 {
            let (store, _) = place.open();
            whole(&store);
            for _ in 0..slices {
                store.checkpoint_slice().unwrap();
            }
            whole(&store);
            place.kill(store);
        }
        let (store, _) = place.open();
        checkpoint(&store);
        whole(&store);
        assert!((1..20).all(|at| stored(&store, at).is_some_and(|it| !it.is_empty())));
    });
}
