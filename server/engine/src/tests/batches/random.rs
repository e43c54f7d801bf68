//! Batches under random requests.

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
enum Act {
    Open(Option<u8>),
    Push(u8),
    Commit(u8),
    Ack,
    Fail,
    Release,
    Dead,
    Discard,
    Revive,
    Purge,
    Add,
    Reopen,
    Seal,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => prop::option::of(any::<u8>()).prop_map(Act::Open),
        6 => any::<u8>().prop_map(Act::Push),
        2 => any::<u8>().prop_map(Act::Commit),
        5 => Just(Act::Ack),
        2 => Just(Act::Fail),
        1 => Just(Act::Release),
        2 => Just(Act::Dead),
        1 => Just(Act::Discard),
        2 => Just(Act::Revive),
        1 => Just(Act::Purge),
        2 => Just(Act::Add),
        1 => Just(Act::Reopen),
        1 => Just(Act::Seal),
    ]
}

proptest! {
    /// Whatever is done, a batch is told what became of its members, calls back once each, and at
    /// the end all are settled.
    #[test]
    fn counters_are_what_became_of_the_members(acts in prop::collection::vec(act(), 1..80)) {
        let mut world = World::new();
        world.follow();
        let mut batches: Vec<BatchId> = Vec::new();
        let mut dead: Vec<JobId> = Vec::new();
        let mut worker = world.worker();
        let pick = |batches: &[BatchId], nth: u8| {
            (!batches.is_empty()).then(|| batches[usize::from(nth) % batches.len()])
        };
        for act in acts {
            match act {
                Act::Open(parent) => {
                    let parent = parent.and_then(|nth| pick(&batches, nth));
                    let open = BatchOpen { parent, ..with_callbacks() };
                    let opened = world.ask_batch(Operation::BatchOpen(Box::new(open)));
                    batches.extend(opened.ok().map(|body| shown(Ok(body)).id));
                }
                Act::Push(nth) => if let Some(batch) = pick(&batches, nth) {
                    world.add(batch, None);
                },
                Act::Commit(nth) => if let Some(batch) = pick(&batches, nth) {
                    world.commit_batch(batch);
                },
                Act::Revive => if let Some(job) = dead.pop() {
                    world.revive(only(job));
                },
                Act::Purge => if let Some(job) = dead.pop() {
                    world.purge(only(job));
                },
                Act::Reopen => {
                    world.reopen();
                    worker = world.worker();
                }
                Act::Seal => world.commit(),
                Act::Ack | Act::Fail | Act::Release | Act::Dead | Act::Discard | Act::Add => {
                    let Some(job) = world.fetch(worker, "work", 1).pop() else { continue };
                    match act {
                        Act::Fail => { world.fail(worker, &job); }
                        Act::Release => { world.release(worker, &job, None); }
                        Act::Dead => {
                            world.kill_with(worker, &job);
                            dead.push(job.id);
                        }
                        Act::Discard => world.discard(worker, &job),
                        Act::Add => {
                            let batch = job.batch.unwrap();
                            prop_assert!(world.add(batch, Some(lease_ref(&job))).id.is_some());
                            world.ack(worker, &job);
                        }
                        _ => { world.ack(worker, &job); }
                    }
                }
            }
        }
        for batch in &batches {
            world.commit_batch(*batch);
        }
        for _ in 0..200 {
            world.live(DurationMs::from_mins(30));
            worker = world.worker();
            let jobs = world.fetch_reply(worker, fetch_of(&["work"], 100)).jobs;
            if jobs.is_empty() && world.listed(false, 100).is_empty() {
                break;
            }
            for job in &jobs {
                world.ack(worker, job);
            }
        }
        prop_assert!(world.listed(false, 100).is_empty(), "all are settled");
        let calls = world.fetch_reply(worker, fetch_of(&["calls"], 1_000)).jobs;
        for batch in &batches {
            let view = world.batch(*batch);
            prop_assert_eq!(view.counters, settled(view.counters));
            prop_assert_eq!(view.counters.total, view.counters.settled());
            for event in BatchEvent::ALL {
                let of_event = calls.iter().filter(|call| {
                    call.headers[BATCH_HEADER] == batch.to_string()
                        && call.headers[EVENT_HEADER] == event.as_str()
                });
                let is_all_done = view.counters.done == view.counters.total;
                let expected = event != BatchEvent::Success || is_all_done;
                let ids: Vec<_> = of_event.map(|call| call.id).collect();
                let told: Vec<_> = view.callback(event).unwrap().job.into_iter().collect();
                prop_assert_eq!(&ids, &told);
                prop_assert_eq!(ids.len(), usize::from(expected));
            }
        }
    }
}
