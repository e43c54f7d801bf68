//! A backup that is taken while the store changes is the store as it was at its last group.

use std::sync::Arc;

use ganger_engine::{change::Change, records::GroupNumber};
use proptest::prelude::*;

use super::{
    Directory, Memory, Place, checkpoint, commit,
    model::{Model, change, once},
    options,
    samples::{head, run_key, run_of},
};
use crate::store::{
    Store, StoreError,
    archive::{ArchiveError, ArchiveHeader, ArchiveReader, ArchiveWriter, Block},
    backup::{Backup, Piece},
    format::ShardDirectory,
    memory::MemoryDisk,
    rebuild::{RESTORE_STEP, Rebuild, Relation},
};

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<Change>),
    Sync,
    Slice,
    Checkpoint,
    Piece,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => prop::collection::vec(change(), 0..8).prop_map(Step::Commit),
        2 => Just(Step::Sync),
        3 => Just(Step::Slice),
        1 => Just(Step::Checkpoint),
        4 => Just(Step::Piece),
    ];
    prop::collection::vec(step, 1..60)
}

const HEADER: ArchiveHeader = ArchiveHeader {
    store_format: 1,
    shards: 1,
    made_at: 7,
};

/// The bytes of pieces.
fn archive(pieces: &[Piece]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = ArchiveWriter::begin(&mut bytes, &HEADER);
    for piece in pieces {
        writer.piece(&mut bytes, 0, piece);
    }
    writer.end(&mut bytes);
    bytes
}

/// The store that a backup comes to, and its last group.
fn rebuilt(bytes: &[u8], relation: Relation) -> (tempfile::TempDir, Store, u64) {
    let place = tempfile::tempdir().unwrap();
    let mut directory = ShardDirectory::make(&place.path().join("shard")).unwrap();
    let mut rebuild = Rebuild::begin(&directory.data, 1 << 20).unwrap();
    let mut reader = ArchiveReader::begin(bytes).unwrap();
    let mut end = None;
    while let Block::Piece(_, piece) = reader.next_block().unwrap() {
        end = rebuild.take(piece).unwrap();
    }
    let end = end.expect("the last piece is the end");
    rebuild.finish(end, relation).unwrap();
    directory.point_at(directory.data.clone()).unwrap();
    drop(directory);
    let path = place.path().join("shard");
    let (store, recovered) = Store::open_dir(&path, &options()).unwrap();
    assert_eq!(recovered.group, end);
    (place, store, end.0)
}

fn rest(backup: &mut Backup) -> Vec<Piece> {
    let mut pieces = Vec::new();
    loop {
        let piece = backup.next_piece().unwrap();
        let is_end = matches!(piece, Piece::End(_));
        pieces.push(piece);
        if is_end {
            return pieces;
        }
    }
}

fn check_steps(place: &dyn Place, before: Vec<Vec<Change>>, steps: Vec<Step>) {
    let mut model = Model::new();
    let mut written = std::collections::BTreeSet::new();
    let (store, _) = place.open();
    let store = Arc::new(store);
    let mut change = |model: &mut Model, changes| {
        let changes = once(changes, &mut written);
        let number = model.next(&changes);
        commit(&store, number, changes);
    };
    for changes in before {
        change(&mut model, changes);
    }
    checkpoint(&store);
    let begun = model.sealed();
    let mut backup = Backup::begin(&store).unwrap();
    let mut pieces = Vec::new();
    for step in steps {
        match step {
            Step::Commit(changes) => change(&mut model, changes),
            Step::Sync => {
                store.sync().unwrap();
            }
            Step::Slice => {
                store.checkpoint_slice().unwrap();
            }
            Step::Checkpoint => checkpoint(&store),
            Step::Piece if matches!(pieces.last(), Some(Piece::End(_))) => {}
            Step::Piece => pieces.push(backup.next_piece().unwrap()),
        }
    }
    if !matches!(pieces.last(), Some(Piece::End(_))) {
        pieces.extend(rest(&mut backup));
    }
    let (_place, copy, end) = rebuilt(&archive(&pieces), Relation::Successor);
    assert!(begun <= end && end <= model.sealed());
    model.check(&copy, end);
    assert_eq!(copy.secret(), store.secret());
}

fn groups() -> impl Strategy<Value = Vec<Vec<Change>>> {
    prop::collection::vec(prop::collection::vec(change(), 0..8), 0..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_backup_is_of_one_moment_over_the_double(before in groups(), steps in steps()) {
        check_steps(&Memory(MemoryDisk::new()), before, steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_backup_is_of_one_moment_over_a_directory(before in groups(), steps in steps()) {
        check_steps(&Directory::new(), before, steps);
    }
}

/// A store with three groups in its table and one in its log.
fn small() -> (Memory, Arc<Store>) {
    let place = Memory(MemoryDisk::new());
    let store = Arc::new(place.open().0);
    for number in 1..=3 {
        let run = Change::PutRun(run_key(number), run_of(3, 3));
        commit(&store, number, vec![run, Change::PutHead(head(number))]);
    }
    checkpoint(&store);
    commit(&store, 4, vec![Change::DeleteRun(run_key(2))]);
    store.sync().unwrap();
    (place, store)
}

#[test]
fn a_backup_that_is_cut_off_anywhere_is_refused() {
    let (_place, store) = small();
    let bytes = archive(&rest(&mut Backup::begin(&store).unwrap()));
    for end in 0..bytes.len() {
        let (cut, _) = bytes.split_at(end);
        let error = read_all(cut).unwrap_err();
        assert!(
            matches!(error, ArchiveError::CutOff { at } if at == end as u64),
            "{end}: {error}"
        );
    }
    read_all(&bytes).unwrap();
    let longer = [&bytes[..], b"x"].concat();
    let error = read_all(&longer).unwrap_err();
    assert!(matches!(error, ArchiveError::TooLong { .. }), "{error}");
}

#[test]
fn a_backup_with_any_bit_changed_is_refused() {
    let (_place, store) = small();
    let bytes = archive(&rest(&mut Backup::begin(&store).unwrap()));
    for bit in 0..bytes.len() * 8 {
        let mut changed = bytes.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let error = read_all(&changed).unwrap_err();
        assert!(!matches!(error, ArchiveError::Io { .. }), "{bit}: {error}");
    }
}

#[test]
fn blocks_that_change_places_are_refused() {
    let (_place, store) = small();
    let mut pieces = rest(&mut Backup::begin(&store).unwrap());
    let whole = archive(&pieces);
    pieces.pop();
    let shorter = archive(&pieces);
    let tail = whole.len() - 40;
    let mixed = [&shorter[..shorter.len() - 19], &whole[tail..]].concat();
    assert!(read_all(&mixed).is_err());
}

fn read_all(bytes: &[u8]) -> Result<(), ArchiveError> {
    let mut reader = ArchiveReader::begin(bytes)?;
    while reader.next_block()? != Block::End {}
    Ok(())
}

#[test]
fn there_is_one_backup_of_a_store_at_a_time() {
    let (_place, store) = small();
    let first = Backup::begin(&store).unwrap();
    assert!(matches!(
        Backup::begin(&store).unwrap_err(),
        StoreError::Backup { .. }
    ));
    drop(first);
    Backup::begin(&store).unwrap();
}

#[test]
fn a_restored_store_steps_over_every_number_that_may_have_been_given_since() {
    let (_place, store) = small();
    let bytes = archive(&rest(&mut Backup::begin(&store).unwrap()));
    let (_place, past, end) = rebuilt(&bytes, Relation::Past);
    assert_eq!(end, 4);
    let recovered = past.recover().unwrap().head.unwrap();
    let before = head(3);
    assert_eq!(recovered.reserved, before.reserved + RESTORE_STEP);
    assert_eq!(recovered.position_high, before.position_high + RESTORE_STEP);
    assert_eq!(recovered.position_low, before.position_low - RESTORE_STEP);
}

#[test]
fn a_backup_of_a_store_that_was_never_used_is_one() {
    let store = Arc::new(Memory(MemoryDisk::new()).open().0);
    let pieces = rest(&mut Backup::begin(&store).unwrap());
    let (_place, _copy, end) = rebuilt(&archive(&pieces), Relation::Past);
    assert_eq!(GroupNumber(end), GroupNumber(0));
}
