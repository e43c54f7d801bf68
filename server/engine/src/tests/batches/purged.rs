//! Members of a queue that is purged, and callbacks into a queue that is full.

use ganger_protocol::queue::{OneQueue, QueueSet, Setting};

use super::*;

fn purge(world: &mut World) {
    let queue = "work".parse().unwrap();
    world
        .ask(None, Operation::QueuePurge(OneQueue { queue }))
        .unwrap();
    for _ in 0..10 {
        world.commit();
        world.pass(DurationMs(1));
    }
}

fn kill(world: &mut World, worker: SessionId) {
    let dead = world.take(worker);
    let item = FailItem {
        dead: true,
        ..fail_item(dead.id, dead.lease)
    };
    world.fail_with(worker, item);
}

#[test]
fn a_sweep_counts_members_as_deleted_and_settles_their_batch() {
    for restarts in [false, true] {
        let mut world = World::new();
        let batch = world.batch_of(5);
        let worker = world.worker();
        let done = world.take(worker);
        world.ack(worker, &done);
        kill(&mut world, worker);
        let failed = world.take(worker);
        world.fail(worker, &failed);
        world.take(worker);
        if restarts {
            world.reopen();
        }
        purge(&mut world);
        let counters = world.counted(batch);
        assert_eq!((counters.total, counters.pending), (5, 0));
        assert_eq!((counters.done, counters.dead, counters.deleted), (1, 0, 4));
        let worker = world.worker();
        assert_eq!(world.called(worker).len(), 2, "complete and settled");
    }
}

#[test]
fn a_settled_batch_counts_a_dead_member_that_is_purged() {
    let mut world = World::new();
    let batch = world.batch_of(1);
    let worker = world.worker();
    kill(&mut world, worker);
    world.reopen();
    assert_eq!(world.batch(batch).state, BatchState::Settled);
    purge(&mut world);
    let counters = world.counted(batch);
    assert_eq!((counters.dead, counters.deleted), (0, 1));
}

#[test]
fn callbacks_ignore_the_quota_of_their_queue() {
    let mut world = World::new();
    world.push(job("calls"));
    let set = QueueSet {
        jobs_max: Setting::To(1),
        ..QueueSet::of("calls".parse().unwrap())
    };
    world.ask(None, Operation::QueueSet(Box::new(set))).unwrap();
    world.batch_of(0);
    assert!(world.counters("calls").ready > 1);
}
