//! What the needs of the engine are answered with.

use bytes::Bytes;
use ganger_engine::{
    change::Change,
    facts::{Fact, HeadEntry, Heads, Need, Remain, Stage},
    records::{
        Bits, BlobKind, Closed, Entry, GroupNumber, JobProgress, JobRecord, LeaseRecord, LeftRun,
        OutcomeRange, OutcomeRecord, PackedJob, PartKey, Place, ProducerNumber, Run, SessionRecord,
        StoredJob, Timer, TimerKind, VALUE_BYTES_MAX, blob_parts, bytes_parts,
    },
};
use ganger_protocol::{
    DurationMs, LeaseId, SessionId, Timestamp,
    job::{JobError, JobState},
};

use super::{
    checkpoint, commit, each, find, job_id,
    samples::{content, lane, packed, place, run_key, run_of, scheduled_run_key, scheduled_run_of},
};
use crate::store::{Store, StoreError, memory::MemoryDisk};

fn record(position: u64, state: JobState) -> JobRecord {
    let id = job_id(position, 0);
    JobRecord {
        id,
        group: GroupNumber(0),
        state,
        queue: lane().queue,
        priority: 5,
        lane: 0,
        pushed_at: Timestamp(1),
        run_at: None,
        place: None,
        closed_at: None,
        reason: None,
        attempt: 1,
        failures: 1,
        losses: 0,
        losses_in_row: 0,
        releases: 0,
        settled_lease: LeaseId(3),
        error_parts: Vec::new(),
        error_first: 0,
        spilled_parts: 0,
        content: Some(content(vec![4])),
        cancel_at: None,
        batch: None,
        waits_for: 0,
        is_node: false,
        holds_unique: false,
        holds_key: false,
        progress: None,
        result_parts: 0,
    }
}

fn put_job(record: &JobRecord) -> Change {
    Change::PutJob(Box::new(record.clone()))
}

fn heads(store: &Store, after: Option<(u64, u8)>, entries_max: u32, bytes_max: u32) -> Heads {
    let need = Need::Heads {
        lane: lane(),
        after,
        entries_max,
        bytes_max,
    };
    match store.read(&need).unwrap() {
        Fact::Heads(heads) => heads,
        other => panic!("{other:?}"),
    }
}

/// Half in the table, half in the overlay, some gone in each.
fn twenty_runs(store: &Store) {
    let runs = |range: std::ops::Range<u64>| {
        range
            .map(|at| Change::PutRun(run_key(at), run_of(1, 3)))
            .collect()
    };
    commit(store, 1, runs(0..10));
    checkpoint(store);
    commit(store, 2, runs(10..20));
    commit(
        store,
        3,
        vec![
            Change::DeleteRun(run_key(4)),
            Change::DeleteRun(run_key(14)),
        ],
    );
}

#[test]
fn heads_come_in_order_from_table_and_overlay() {
    each(|on| {
        let (store, _) = on.open();
        twenty_runs(&store);
        let all = heads(&store, None, 1000, u32::MAX);
        assert!(all.at_end);
        let places: Vec<_> = all.rows.iter().map(|row| row.place).collect();
        let expected = (0..20).filter(|at| at % 10 != 4);
        let expected = expected.flat_map(|at| (0..3).map(move |index| place(at, index)));
        assert_eq!(places, expected.collect::<Vec<_>>());
        assert_eq!(all.rows[0].group, GroupNumber(1));
        assert_eq!(all.rows[53].group, GroupNumber(2));
        assert_eq!(all.rows[53].run_entries, 3);
    });
}

#[test]
fn heads_stop_at_whole_runs_and_go_on_behind_an_entry() {
    each(|on| {
        let (store, _) = on.open();
        twenty_runs(&store);
        let first = heads(&store, None, 4, u32::MAX);
        assert!(!first.at_end);
        assert_eq!(first.rows.len(), 6);
        let rest = heads(&store, Some((0, 1)), 1000, u32::MAX);
        assert_eq!(rest.rows[0].place, place(0, 2));
        assert_eq!(rest.rows.len(), 52);
        let few_bytes = heads(&store, None, 1000, 1);
        assert_eq!(few_bytes.rows.len(), 3);
        let end = heads(&store, Some((19, 2)), 10, u32::MAX);
        assert!(end.at_end && end.rows.is_empty());
    });
}

#[test]
fn a_spilled_content_is_read_where_it_is_asked_for() {
    each(|on| {
        let (store, _) = on.open();
        let large = content(vec![7; 100_000]);
        let job = PackedJob {
            pushed_at: Timestamp(1),
            spilled_parts: large.spilled_parts(),
            content: Some(large.clone()),
        };
        let id = job_id(1, 0);
        let run = Run {
            entries: vec![Entry::Job(job.clone()), Entry::Job(packed(vec![1]))],
        };
        commit(
            &store,
            1,
            vec![
                Change::PutRun(run_key(1), run),
                Change::PutContent(id, large),
            ],
        );
        for _ in 0..2 {
            let Some(StoredJob::Packed { job: found, .. }) = find(&store, 1, 0) else {
                panic!()
            };
            assert_eq!(found, job);
            let rows = heads(&store, None, 9, u32::MAX).rows;
            assert_eq!(rows[0].entry, HeadEntry::Packed(job.clone()));
            let need = Need::Job {
                job: id,
                content: false,
            };
            let Fact::Job(Some(StoredJob::Packed { job: bare, .. })) = store.read(&need).unwrap()
            else {
                panic!()
            };
            assert_eq!(bare.content, None);
            checkpoint(&store);
        }
        let gone = Change::DeleteBlob(id, BlobKind::Content, job.spilled_parts);
        commit(&store, 2, vec![gone]);
        let rows = heads(&store, None, 9, u32::MAX).rows;
        let HeadEntry::Packed(left) = &rows[0].entry else {
            panic!()
        };
        assert_eq!(left.content, None);
        assert_eq!(store.usage().table_stray_files, 0);
    });
}

#[test]
fn a_cursor_comes_with_the_content_and_a_result_by_itself() {
    each(|on| {
        let (store, _) = on.open();
        for (group, length) in [(1, 20_000), (2, 3)] {
            let bytes = Bytes::from(vec![group; length]);
            let mut job = record(1, JobState::Leased);
            job.result_parts = bytes_parts(&bytes);
            job.progress = Some(Box::new(JobProgress {
                cursor_parts: bytes_parts(&bytes),
                cursor: Some(bytes.clone()),
                ..JobProgress::default()
            }));
            let blobs = [BlobKind::Result, BlobKind::Cursor];
            let mut changes = vec![put_job(&job)];
            changes.extend(blobs.map(|kind| Change::DeleteBlob(job.id, kind, 4)));
            changes.extend(blobs.map(|kind| Change::PutBytes(job.id, kind, bytes.clone())));
            commit(&store, u64::from(group), changes);
            for content in [true, false] {
                let need = Need::Job {
                    job: job.id,
                    content,
                };
                let Fact::Job(Some(StoredJob::Record(found))) = store.read(&need).unwrap() else {
                    panic!()
                };
                assert_eq!(found.cursor(), content.then_some(&bytes));
                assert_eq!(found.cursor_parts(), bytes_parts(&bytes));
            }
            let result = store.read(&Need::Result(job.id)).unwrap();
            assert_eq!(result, Fact::Bytes(Some(bytes)));
            checkpoint(&store);
        }
        let nothing = store.read(&Need::Result(job_id(2, 0))).unwrap();
        assert_eq!(nothing, Fact::Bytes(None));
    });
}

#[test]
fn a_record_comes_before_the_run_of_birth_and_a_reference_brings_it() {
    each(|on| {
        let (store, _) = on.open();
        let ready = record(1, JobState::Ready);
        let reference = Run {
            entries: vec![Entry::Reference(ready.id)],
        };
        commit(
            &store,
            1,
            vec![
                Change::PutRun(run_key(1), run_of(1, 1)),
                put_job(&ready),
                Change::PutRun(run_key(2), reference),
            ],
        );
        let expected = JobRecord {
            group: GroupNumber(1),
            ..ready.clone()
        };
        let stored = StoredJob::Record(Box::new(expected.clone()));
        assert_eq!(find(&store, 1, 0), Some(stored));
        let entry = heads(&store, Some((1, 0)), 9, u32::MAX)
            .rows
            .remove(0)
            .entry;
        let referred = HeadEntry::Reference(ready.id, Some(Box::new(expected)));
        assert_eq!(entry, referred);
        commit(&store, 2, vec![Change::DeleteJob(ready.id)]);
        assert!(matches!(find(&store, 1, 0), Some(StoredJob::Packed { .. })));
        let entry = heads(&store, Some((1, 0)), 9, u32::MAX)
            .rows
            .remove(0)
            .entry;
        assert_eq!(entry, HeadEntry::Reference(ready.id, None));
    });
}

#[test]
fn a_job_is_in_its_scheduled_run_until_it_has_left() {
    each(|on| {
        let (store, _) = on.open();
        let run = scheduled_run_key(1);
        let whole = LeftRun::whole(run, 3);
        let place = |index| Place { run, index };
        let find = |index| {
            let need = Need::Job {
                job: place(index).job_id(0),
                content: true,
            };
            match store.read(&need).unwrap() {
                Fact::Job(job) => job,
                other => panic!("{other:?}"),
            }
        };
        let remaining = || {
            let need = Need::Remains {
                queue: run.lane.queue,
                stage: Stage::Scheduled(None),
                max: 100,
            };
            match store.read(&need).unwrap() {
                Fact::Remains { rows, at_end: true } => rows,
                other => panic!("{other:?}"),
            }
        };
        let put = Change::PutRun(run, scheduled_run_of(7, 3));
        commit(&store, 1, vec![put]);
        let lanes = Need::Lanes {
            queue: run.lane.queue,
            priority: run.lane.priority,
            after: 0,
            max: 9,
        };
        let none = Fact::Lanes {
            lanes: Vec::new(),
            at_end: true,
        };
        assert_eq!(store.read(&lanes).unwrap(), none);
        let mut left = whole;
        left.left.insert(1);
        for (group, left) in [(1, whole), (2, left)] {
            if group > 1 {
                commit(&store, group, vec![Change::PutLeft(left)]);
            }
            for _ in 0..2 {
                let at = Timestamp(3);
                let job = packed(vec![7, 2]);
                let there = StoredJob::Scheduled {
                    at,
                    job: job.clone(),
                    left,
                    peers: Bits::of([2]),
                };
                assert_eq!(find(2), Some(there));
                let due = |at, passed| {
                    let need = Need::RunDue {
                        run,
                        at: Timestamp(at),
                        passed,
                        jobs_max: 9,
                        bytes_max: 1 << 20,
                    };
                    match store.read(&need).unwrap() {
                        Fact::RunDue(Some(due)) => {
                            assert_eq!((due.left, due.at_end), (left, true));
                            due.jobs
                        }
                        other => panic!("{other:?}"),
                    }
                };
                assert_eq!(due(3, Bits::default()), vec![(2, job)]);
                assert_eq!(due(3, Bits::of([2])), Vec::new());
                let jobs = match group {
                    1 => vec![(1, packed(vec![7, 1]))],
                    _ => Vec::new(),
                };
                assert_eq!(due(2, Bits::default()), jobs);
                assert_eq!(find(1).is_some(), group == 1);
                assert_eq!(find(3), None);
                let rows = remaining();
                let [Remain::Run(key, entries)] = rows.as_slice() else {
                    panic!("{rows:?}");
                };
                assert_eq!(*key, run);
                let places: Vec<_> = entries.iter().map(|row| row.place.index).collect();
                assert_eq!(
                    places,
                    if group == 1 {
                        vec![0, 1, 2]
                    } else {
                        vec![0, 2]
                    }
                );
                checkpoint(&store);
            }
        }
        let mut moved = record(9, JobState::Leased);
        moved.id = place(1).job_id(0);
        commit(&store, 3, vec![put_job(&moved)]);
        assert!(matches!(find(1), Some(StoredJob::Record(_))));
        let gone = vec![Change::DeleteRun(run), Change::DeleteLeft(run)];
        commit(&store, 4, gone);
        assert!(matches!(find(1), Some(StoredJob::Record(_))));
        assert_eq!(find(2), None);
        assert_eq!(remaining(), []);
    });
}

#[test]
fn a_record_without_its_content_is_damage() {
    let disk = MemoryDisk::new();
    let (store, _) = disk.open(&super::options()).unwrap();
    let job = JobRecord {
        spilled_parts: 3,
        content: None,
        ..record(1, JobState::Dead)
    };
    commit(&store, 1, vec![put_job(&job)]);
    let need = Need::Job {
        job: job.id,
        content: true,
    };
    assert!(matches!(store.read(&need), Err(StoreError::Damaged { .. })));
}

#[test]
fn errors_come_oldest_first_and_one_in_a_used_slot_replaces_the_former() {
    each(|on| {
        let (store, _) = on.open();
        let error = |at: u64, bytes| JobError {
            at: Timestamp(at),
            attempt: 1,
            kind: "io".to_owned(),
            message: "m".to_owned(),
            backtrace: "b".repeat(bytes),
        };
        let job = JobRecord {
            error_parts: vec![4, 1],
            error_first: 9,
            ..record(1, JobState::Scheduled)
        };
        let put = |slot, error| Change::PutError(job.id, slot, Box::new(error));
        commit(
            &store,
            1,
            vec![put(9, error(0, 16_000)), put(0, error(2, 0))],
        );
        checkpoint(&store);
        commit(&store, 2, vec![put_job(&job), put(9, error(1, 6_000))]);
        checkpoint(&store);
        assert_eq!(
            store.read(&Need::Errors(job.id)).unwrap(),
            Fact::Errors(vec![error(1, 6_000), error(2, 0)])
        );
    });
}

#[test]
fn timers_come_in_pages_that_say_whether_they_are_the_last() {
    each(|on| {
        let (store, _) = on.open();
        let timer = |at| Timer {
            at: Timestamp(at),
            what: TimerKind::Due,
            id: [1; 24],
        };
        commit(
            &store,
            1,
            (0..6).map(|at| Change::PutTimer(timer(at))).collect(),
        );
        checkpoint(&store);
        commit(&store, 2, vec![Change::DeleteTimer(timer(2))]);
        let read = |after, max| store.read(&Need::Timers { after, max }).unwrap();
        let page = |timers: &[u64], at_end| Fact::Timers {
            timers: timers.iter().map(|at| timer(*at)).collect(),
            at_end,
        };
        assert_eq!(read(None, 3), page(&[0, 1, 3], false));
        assert_eq!(read(Some(timer(3)), 2), page(&[4, 5], true));
        assert_eq!(read(Some(timer(5)), 2), page(&[], true));
    });
}

#[test]
fn outcomes_are_found_by_slot_and_go_all_at_once() {
    each(|on| {
        let (store, _) = on.open();
        let producer = ProducerNumber(9);
        let outcome = |seq, refusals| OutcomeRecord {
            producer,
            seq,
            at: Timestamp(seq),
            results: vec![
                OutcomeRange::Refused {
                    code: 1,
                    field: "jobs[0].queue".to_owned(),
                    message: "x".repeat(256),
                };
                refusals
            ],
        };
        let put = |outcome| Change::PutOutcome(Box::new(outcome));
        assert_eq!(
            store.read(&Need::Producer(producer)).unwrap(),
            Fact::Producer(None)
        );
        commit(&store, 1, vec![put(outcome(3, 1)), put(outcome(255, 900))]);
        checkpoint(&store);
        commit(&store, 2, vec![put(outcome(259, 2))]);
        let read = |slot| store.read(&Need::Outcome { producer, slot }).unwrap();
        assert_eq!(read(3), Fact::Outcome(Some(outcome(259, 2))));
        assert_eq!(read(255), Fact::Outcome(Some(outcome(255, 900))));
        assert_eq!(read(4), Fact::Outcome(None));
        let newest = Fact::Producer(Some((259, Timestamp(259))));
        assert_eq!(store.read(&Need::Producer(producer)).unwrap(), newest);
        commit(&store, 3, vec![Change::DeleteOutcomes(producer)]);
        for _ in 0..2 {
            assert_eq!(read(255), Fact::Outcome(None));
            assert_eq!(
                store.read(&Need::Producer(producer)).unwrap(),
                Fact::Producer(None)
            );
            checkpoint(&store);
        }
    });
}

#[test]
fn closed_jobs_come_in_pages_from_either_end() {
    each(|on| {
        let (store, _) = on.open();
        let row = |at| Closed {
            queue: lane().queue,
            state: JobState::Dead,
            at: Timestamp(at),
            job: job_id(at, 0),
        };
        for at in 0..6 {
            let changes = vec![
                put_job(&record(at, JobState::Dead)),
                Change::PutClosed(row(at)),
            ];
            commit(&store, at + 1, changes);
            if at == 2 {
                checkpoint(&store);
            }
        }
        let page = |after: Option<u64>, newest_first, max| {
            let after = after.map(row);
            let page = store
                .closed_page(lane().queue, JobState::Dead, after, newest_first, max)
                .unwrap();
            let positions = page.iter().map(|job| job.id.birth().position);
            positions.collect::<Vec<_>>()
        };
        assert_eq!(page(None, false, 4), [0, 1, 2, 3]);
        assert_eq!(page(Some(3), false, 4), [4, 5]);
        assert_eq!(page(None, true, 4), [5, 4, 3, 2]);
        assert_eq!(page(Some(2), true, 4), [1, 0]);
        let need = Need::OldestClosed {
            queue: lane().queue,
            state: JobState::Dead,
            max: 2,
        };
        let oldest = Fact::Closed(vec![row(0), row(1)]);
        assert_eq!(store.read(&need).unwrap(), oldest);
    });
}

#[test]
fn recovery_finds_sessions_acks_and_leases_with_their_jobs() {
    each(|on| {
        let (store, _) = on.open();
        let session = SessionRecord {
            id: SessionId(3),
            namespace: Default::default(),
            name: "w".repeat(256),
            host: "h".to_owned(),
            pid: 4,
            labels: vec![("l".repeat(256), "v".repeat(256)); 16],
            capacity: 5,
            ttl: DurationMs(6),
        };
        let lease = |position| LeaseRecord {
            job: job_id(position, 0),
            lease: LeaseId(position),
            session: SessionId(3),
            deadline: Timestamp(5),
            place: place(position, 0),
            attempt: 1,
            key: 0,
        };
        let part = PartKey {
            group: GroupNumber(1),
            part: 0,
        };
        commit(
            &store,
            1,
            vec![
                Change::PutSession(Box::new(session.clone())),
                Change::PutRun(run_key(1), run_of(1, 1)),
                Change::PutLeases(part, vec![lease(1), lease(2)]),
                Change::PutAcks(part, Vec::new()),
            ],
        );
        store.close().unwrap();
        let (store, recovered) = on.open();
        assert_eq!(recovered.sessions, [session]);
        assert_eq!(recovered.acks, [(part, Vec::new())]);
        let [(key, rows)] = &recovered.leases[..] else {
            panic!()
        };
        assert_eq!((*key, rows.len()), (part, 2));
        assert_eq!((rows[0].record, rows[1].record), (lease(1), lease(2)));
        assert!(matches!(rows[0].job, Some(StoredJob::Packed { .. })));
        assert_eq!(rows[1].job, None);
        commit(&store, 2, vec![Change::DeleteSession(SessionId(3))]);
        store.close().unwrap();
        assert_eq!(on.open().1.sessions, []);
    });
}

#[test]
fn a_value_that_is_too_large_is_refused_as_a_bug() {
    let disk = MemoryDisk::new();
    let (store, _) = disk.open(&super::options()).unwrap();
    let fill = |bytes| {
        let run = Run {
            entries: vec![Entry::Job(PackedJob {
                spilled_parts: 0,
                ..packed(vec![0; bytes])
            })],
        };
        ganger_engine::change::Group {
            number: GroupNumber(store.durable().0 + 1),
            changes: vec![Change::PutRun(run_key(1), run)],
        }
    };
    // 6 144 less header 13, count 1, entry 2, form 1, time 6, flags 1, kind 5, length 2.
    let most = VALUE_BYTES_MAX - 31;
    store.commit(&fill(most)).unwrap();
    store.sync().unwrap();
    let error = store.commit(&fill(most + 1)).unwrap_err();
    assert!(matches!(
        error,
        StoreError::ValueTooLarge { bytes: 6145, .. }
    ));
    assert!(matches!(store.sync(), Err(StoreError::Poisoned { .. })));
    assert_eq!(blob_parts(1 << 20), 205);
}

#[test]
fn a_job_that_comes_and_goes_between_checkpoints_never_touches_the_table() {
    let disk = MemoryDisk::new();
    let (store, _) = disk.open(&super::options()).unwrap();
    let empty = store.usage().table_disk_bytes;
    commit(&store, 1, vec![Change::PutRun(run_key(1), run_of(1, 9))]);
    commit(&store, 2, vec![Change::DeleteRun(run_key(1))]);
    assert_eq!(store.usage().overlay_bytes, 0);
    assert!(!store.checkpoint_due(false));
    store.sync().unwrap();
    assert!(store.checkpoint_due(true));
    checkpoint(&store);
    assert!(!store.checkpoint_due(true));
    assert_eq!(store.usage().table_disk_bytes, empty);
}
