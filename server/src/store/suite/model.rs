//! Random groups, checkpoints, faults and restarts against an ordered map.

use std::collections::BTreeMap;

use bytes::Bytes;
use ganger_engine::{
    change::{Change, Group},
    records::{BlobKind, Closed, GroupNumber, LeftRun, PartKey, ProducerNumber, Timer, TimerKind},
};
use ganger_protocol::{SessionId, Timestamp, job::JobState};
use proptest::{prelude::*, sample::Index};

use super::{
    Directory, Memory, Place, commit,
    samples::{
        any_acks, any_error, any_head, any_job_record, any_leases, any_left, any_outcome,
        any_queue, any_session, content, job_id, large_run_of, run_key, run_of, scheduled_run_key,
        scheduled_run_of,
    },
};
use crate::store::{
    Store,
    group::{Effect, Physical},
    keys::{Key, Prefix},
    memory::{Crash, Fault, MemoryDisk},
    table::{Order, Span},
};

/// Where jobs and runs are.
const POSITIONS: u64 = 40;

pub(super) type Rows = BTreeMap<Key, Bytes>;

/// What the store must have after each group, from 0 on.
#[derive(Debug)]
pub(super) struct Model(Vec<Rows>);

impl Model {
    pub(super) fn new() -> Self {
        Self(vec![Rows::new()])
    }

    pub(super) fn sealed(&self) -> u64 {
        self.0.len() as u64 - 1
    }

    pub(super) fn next(&mut self, changes: &[Change]) -> u64 {
        let number = self.sealed() + 1;
        let group = Group {
            number: GroupNumber(number),
            changes: changes.to_vec(),
        };
        let physical = Physical::encode(&group, 0).unwrap();
        let mut rows = self.0.last().unwrap().clone();
        for op in physical.ops {
            match op.effect {
                Effect::Put(at) => {
                    rows.insert(op.key, physical.body.slice(at));
                }
                Effect::Delete => {
                    rows.remove(&op.key);
                }
                Effect::DeletePrefix => {
                    rows.retain(|key, _| !key.as_slice().starts_with(op.key.as_slice()));
                }
            }
        }
        self.0.push(rows);
        number
    }

    /// The store has exactly the rows of its last group; groups behind it never were.
    pub(super) fn check(&mut self, store: &Store, group: u64) {
        self.0.truncate(usize::try_from(group).unwrap() + 1);
        let rows = self.0.last().unwrap();
        for prefix in Prefix::ALL {
            if prefix == Prefix::Meta {
                continue;
            }
            let mut found = Vec::new();
            store
                .scan_all(prefix, |key, value| {
                    found.push((*key, value.clone()));
                    Ok(())
                })
                .unwrap();
            let span = Span::of(Key::of(prefix));
            let expected = rows.range(span.from..span.to);
            let mut expected: Vec<_> = expected.map(|(key, value)| (*key, value.clone())).collect();
            assert_eq!(found, expected, "{prefix:?}");
            for (key, value) in &found {
                assert_eq!(store.read_value(key).unwrap().as_ref(), Some(value));
            }
            let descending = Span {
                order: Order::Descending,
                ..span
            };
            expected.reverse();
            expected.truncate(3);
            assert_eq!(store.scan(descending, 3).unwrap(), expected);
        }
        for at in 0..POSITIONS {
            let key = Key::job(&job_id(at, 0));
            let value = store.read_value(&key).unwrap();
            assert_eq!(value.as_ref(), rows.get(&key), "job {at}");
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Commit(Vec<Change>),
    Sync,
    Slice,
    Checkpoint,
    ReadAhead,
    Kill,
    Close,
}

/// A change within a small world, so that keys meet again.
pub(super) fn change() -> impl Strategy<Value = Change> {
    let position = || 0..POSITIONS;
    let timer = (0_u64..9, position()).prop_map(|(at, job)| Timer {
        at: Timestamp(at),
        what: TimerKind::Due,
        id: *job_id(job, 0).as_bytes(),
    });
    let closed = (0_u64..9, 0_u8..3).prop_map(|(at, index)| Closed {
        queue: run_key(0).lane.queue,
        state: JobState::Dead,
        at: Timestamp(at),
        job: job_id(at, index),
    });
    let part = |group| PartKey {
        group: GroupNumber(group),
        part: 0,
    };
    let queue = (any_queue(), 0_u32..3).prop_map(|(mut queue, number)| {
        queue.number.0 = number;
        Change::PutQueue(Box::new(queue))
    });
    let outcome = (any_outcome(), 0_u64..3, 0_u64..600).prop_map(|(mut outcome, producer, seq)| {
        outcome.producer = ProducerNumber(producer);
        outcome.seq = seq;
        Change::PutOutcome(Box::new(outcome))
    });
    let session = (any_session(), 0_u64..3).prop_map(|(mut session, id)| {
        session.id = SessionId(id);
        Change::PutSession(Box::new(session))
    });
    let job = (any_job_record(), position()).prop_map(|(mut job, at)| {
        job.id = job_id(at, 0);
        job.content = None;
        Change::PutJob(Box::new(job))
    });
    prop_oneof![
        4 => (position(), 1_u8..9).prop_map(|(at, n)| Change::PutRun(run_key(at), run_of(n, n))),
        4 => (position(), 1_u8..5).prop_map(|(at, n)| {
            Change::PutRun(run_key(at), large_run_of(n, n))
        }),
        4 => position().prop_map(|at| Change::DeleteRun(run_key(at))),
        2 => (position(), 1_u8..9).prop_map(|(at, n)| {
            Change::PutRun(scheduled_run_key(at), scheduled_run_of(n, n))
        }),
        2 => position().prop_map(|at| Change::DeleteRun(scheduled_run_key(at))),
        2 => (position(), any_left()).prop_map(|(at, left)| {
            Change::PutLeft(LeftRun { run: scheduled_run_key(at), ..left })
        }),
        2 => position().prop_map(|at| Change::DeleteLeft(scheduled_run_key(at))),
        1 => (position(), any_acks()).prop_map(move |(at, rows)| Change::PutAcks(part(at), rows)),
        1 => position().prop_map(move |at| Change::DeleteAcks(part(at))),
        1 => (position(), any_leases()).prop_map(move |(at, r)| Change::PutLeases(part(at), r)),
        1 => position().prop_map(move |at| Change::DeleteLeases(part(at))),
        2 => job,
        2 => position().prop_map(|at| Change::DeleteJob(job_id(at, 0))),
        1 => timer.clone().prop_map(Change::PutTimer),
        1 => timer.prop_map(Change::DeleteTimer),
        1 => closed.clone().prop_map(Change::PutClosed),
        1 => closed.prop_map(Change::DeleteClosed),
        1 => session,
        1 => (0_u64..3).prop_map(|id| Change::DeleteSession(SessionId(id))),
        2 => outcome,
        1 => (0_u64..3).prop_map(|id| Change::DeleteOutcomes(ProducerNumber(id))),
        1 => queue,
        1 => (position(), 0_usize..12_000).prop_map(|(at, bytes)| {
            Change::PutContent(job_id(at, 0), content(vec![1; bytes]))
        }),
        1 => (position(), 0_usize..12_000).prop_map(|(at, bytes)| {
            Change::PutBytes(job_id(at, 0), BlobKind::Result, vec![2; bytes].into())
        }),
        1 => (position(), any_error())
            .prop_map(|(at, error)| Change::PutError(job_id(at, 0), 0, Box::new(error))),
        1 => position()
            .prop_map(|at| Change::DeleteBlob(job_id(at, 0), BlobKind::Content, 3)),
        1 => any_head().prop_map(Change::PutHead),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => prop::collection::vec(change(), 0..8).prop_map(Step::Commit),
        3 => Just(Step::Sync),
        2 => Just(Step::Slice),
        1 => Just(Step::Checkpoint),
        2 => Just(Step::ReadAhead),
        2 => Just(Step::Kill),
        1 => Just(Step::Close),
    ];
    prop::collection::vec(step, 1..40)
}

/// Runs the steps on a place. What runs are written once is the caller's promise, so a run that
/// is there is not written again, nor acks or leases.
fn check_steps(place: &dyn Place, steps: Vec<Step>) {
    let mut model = Model::new();
    let mut durable = 0;
    let (mut store, _) = place.open();
    let mut written = std::collections::BTreeSet::new();
    for step in steps {
        match step {
            Step::Commit(changes) => {
                let changes = once(changes, &mut written);
                let number = model.next(&changes);
                commit(&store, number, changes);
            }
            Step::Sync => {
                durable = store.sync().unwrap().0;
                assert_eq!(durable, model.sealed());
            }
            Step::Slice => {
                store.checkpoint_slice().unwrap();
                durable = store.durable().0;
            }
            Step::Checkpoint => {
                super::checkpoint(&store);
                durable = store.durable().0;
            }
            Step::ReadAhead => {
                store.read_ahead(None, Timestamp(6)).unwrap();
            }
            Step::Kill | Step::Close => {
                if matches!(step, Step::Kill) {
                    place.kill(store);
                } else {
                    store.close().unwrap();
                    durable = model.sealed();
                }
                let (opened, recovered) = place.open();
                store = opened;
                assert_eq!(recovered.group.0, durable);
            }
        }
        let sealed = match store.durable().0 {
            last if last == durable => model.sealed().max(last),
            last => panic!("{last} is durable, {durable} was said to be"),
        };
        let sealed = sealed.min(store.sealed.load(std::sync::atomic::Ordering::Relaxed));
        model.check(&store, sealed);
    }
}

/// Drops second puts of keys that are written once.
pub(super) fn once(
    changes: Vec<Change>,
    written: &mut std::collections::BTreeSet<Key>,
) -> Vec<Change> {
    let is_first = |change: &Change| match change {
        Change::PutRun(key, _) => written.insert(Key::run(key)),
        Change::PutAcks(part, _) => written.insert(Key::acks(part)),
        Change::PutLeases(part, _) => written.insert(Key::leases(part)),
        _ => true,
    };
    changes.into_iter().filter(is_first).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_double_has_what_an_ordered_map_has(steps in steps()) {
        check_steps(&Memory(MemoryDisk::new()), steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_directory_has_what_an_ordered_map_has(steps in steps()) {
        check_steps(&Directory::new(), steps);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn after_any_fault_and_crash_the_store_has_a_prefix_with_every_durable_group(
        groups in prop::collection::vec(prop::collection::vec(change(), 0..6), 1..20),
        failing: Index,
        fault in prop::sample::select(vec![Fault::Io, Fault::NoSpace, Fault::Fenced]),
        groups_kept in 0_usize..3,
        batches_kept in 0_usize..4,
    ) {
        let disk = MemoryDisk::new();
        let place = Memory(disk.clone());
        let mut model = Model::new();
        let (store, _) = place.open();
        disk.fail_at(failing.index(40) as u64, fault);
        let mut written = std::collections::BTreeSet::new();
        let mut durable = 0;
        for (at, changes) in groups.into_iter().enumerate() {
            let changes = once(changes, &mut written);
            let number = model.next(&changes);
            let group = Group { number: GroupNumber(number), changes };
            let done = store.commit(&group).and_then(|()| store.sync()).and_then(|last| {
                durable = last.0;
                if at % 3 == 2 { store.checkpoint_slice().map(|_| ()) } else { Ok(()) }
            });
            if done.is_err() {
                prop_assert!(store.sync().is_err() && store.commit(&group).is_err());
                prop_assert!(store.checkpoint_slice().is_err());
                break;
            }
        }
        drop(store);
        disk.crash(&Crash { groups_kept, batches_kept });
        let (store, recovered) = place.open();
        prop_assert!(recovered.group.0 >= durable);
        model.check(&store, recovered.group.0);
    }
}
