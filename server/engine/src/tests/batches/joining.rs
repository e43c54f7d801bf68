//! Who may join a batch, batches within batches, and what bounds them.

use super::*;

#[test]
fn only_a_running_member_adds_to_a_committed_batch() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.batch_of(1);
    let refused = world.add(batch, None);
    check_refused(refused.err.as_ref(), ErrorCode::Conflict, "batch");
    let job = world.take(worker);
    let stranger = world.open_batch(BatchOpen::default());
    let refused = world.add(stranger, Some(lease_ref(&job)));
    check_refused(refused.err.as_ref(), ErrorCode::LeaseLost, "by");
    assert!(world.add(batch, Some(lease_ref(&job))).id.is_some());
    assert_eq!(world.counted(batch).total, 2);
    world.ack(worker, &job);
    assert!(world.called(worker).is_empty());
    let refused = world.add(batch, Some(lease_ref(&job)));
    check_refused(refused.err.as_ref(), ErrorCode::LeaseLost, "by");
    let added = world.take(worker);
    world.ack(worker, &added);
    assert_eq!(world.called(worker), ALL);
    world.reopen();
    let refused = world.add(batch, None);
    check_refused(refused.err.as_ref(), ErrorCode::Conflict, "batch");
}

#[test]
fn a_batch_is_its_namespaces_own() {
    let mut world = World::new();
    let batch = world.open_batch(with_callbacks());
    world.within("other", |world| {
        let refused = world.add(batch, None);
        check_refused(refused.err.as_ref(), ErrorCode::NotFound, "batch");
        let show = Operation::BatchShow(BatchName { batch });
        let refused = world.ask_batch(show).err();
        check_refused(refused.as_ref(), ErrorCode::NotFound, "batch");
        let open = Operation::BatchOpen(Box::new(within(batch)));
        let refused = world.ask_batch(open).err();
        check_refused(refused.as_ref(), ErrorCode::NotFound, "parent");
        assert!(world.listed(false, 10).is_empty());
    });
    assert_eq!(world.listed(false, 10), [batch]);
    let refused = world.add(BatchId(batch.0 + 1), None);
    check_refused(refused.err.as_ref(), ErrorCode::NotFound, "batch");
}

#[test]
fn an_atomic_push_is_refused_as_a_whole_when_a_batch_takes_no_member() {
    let mut world = World::new();
    let (open, closed) = (world.open_batch(BatchOpen::default()), world.batch_of(1));
    let push = Push {
        atomic: true,
        ..Push::of(vec![member(open), member(closed)])
    };
    let error = world.push_as(None, push).err();
    check_refused(error.as_ref(), ErrorCode::Conflict, "jobs[1].batch");
    assert_eq!(world.counted(open).total, 0);
}

#[test]
fn a_job_that_finds_the_holder_of_its_key_is_no_member() {
    let mut world = World::new();
    let batch = world.open_batch(with_callbacks());
    let job = JobSpec {
        unique: Some(Box::new(Unique::named("one".parse().unwrap()))),
        ..member(batch)
    };
    world.push_all(vec![job; 2]);
    assert_eq!(world.counted(batch).total, 1);
}

#[test]
fn a_batch_within_a_batch_is_one_member_of_it() {
    let mut world = World::new();
    let worker = world.worker();
    let outer = world.open_batch(with_callbacks());
    let inner = world.open_batch(BatchOpen {
        parent: Some(outer),
        ..with_callbacks()
    });
    world.push_all(vec![member(inner); 2]);
    world.commit_batch(outer);
    let counters = world.counted(outer);
    assert_eq!((counters.total, counters.untried), (1, 1));
    let (first, second) = (world.take(worker), world.take(worker));
    world.ack(worker, &first);
    world.kill_with(worker, &second);
    assert!(world.called(worker).is_empty(), "it is not committed");
    world.commit_batch(inner);
    assert_eq!(
        world.called(worker),
        ["complete", "settled", "complete", "settled"]
    );
    assert_eq!(world.counted(outer).dead, 1);
    // Both are settled and lie in the store.
    world.reopen();
    let worker = world.worker();
    world.revive(only(second.id));
    let counters = world.counted(outer);
    assert_eq!(
        (counters.dead, counters.pending, counters.untried),
        (0, 1, 0)
    );
    let second = world.take(worker);
    world.ack(worker, &second);
    assert_eq!(world.called(worker), ["success", "success"]);
    assert_eq!(world.counted(outer).done, 1);
}

#[test]
fn a_dead_member_that_is_removed_moves_the_batches_above() {
    let mut world = World::new();
    let worker = world.worker();
    let outer = world.open_batch(BatchOpen::default());
    let inner = world.open_batch(within(outer));
    world.push(member(inner));
    world.commit_batch(inner);
    world.commit_batch(outer);
    let job = world.take(worker);
    world.kill_with(worker, &job);
    world.reopen();
    world.purge(only(job.id));
    let counters = world.counted(outer);
    assert_eq!((counters.dead, counters.deleted), (0, 1));
}

#[test]
fn a_running_member_opens_a_batch_within_its_own() {
    let mut world = World::new();
    let worker = world.worker();
    let outer = world.batch_of(1);
    let job = world.take(worker);
    let open = Operation::BatchOpen(Box::new(within(outer)));
    let refused = world.ask_batch(open).err();
    check_refused(refused.as_ref(), ErrorCode::Conflict, "parent");
    let inner = world.open_batch(BatchOpen {
        by: Some(lease_ref(&job)),
        ..within(outer)
    });
    world.ack(worker, &job);
    assert!(world.called(worker).is_empty());
    world.commit_batch(inner);
    assert_eq!(world.called(worker), ALL);
}

#[test]
fn batches_nest_no_deeper_than_the_limit() {
    let mut world = World::new();
    let mut deepest = world.open_batch(BatchOpen::default());
    for _ in 1..limits::BATCH_DEPTH_MAX {
        deepest = world.open_batch(within(deepest));
    }
    let open = Operation::BatchOpen(Box::new(within(deepest)));
    let refused = world.ask_batch(open).err();
    check_refused(refused.as_ref(), ErrorCode::TooLarge, "parent");
}

#[test]
fn a_batch_that_nobody_commits_is_closed_after_a_day() {
    let mut world = World::new();
    let batch = world.open_batch(with_callbacks());
    world.push(member(batch));
    world.live(DurationMs(DAY.0 - 1));
    assert_eq!(world.batch(batch).state, BatchState::Open);
    world.live(DurationMs(1));
    let view = world.batch(batch);
    assert_eq!((view.state, view.lapsed), (BatchState::Committed, true));
    assert_eq!(world.lapsed, [batch]);
    let worker = world.worker();
    let job = world.take(worker);
    world.ack(worker, &job);
    assert_eq!(world.called(worker), ALL);
}

#[test]
fn a_batch_that_nobody_used_or_commits_calls_nobody() {
    let mut world = World::new();
    let batch = world.open_batch(with_callbacks());
    world.live(DAY);
    let view = world.batch(batch);
    assert_eq!((view.state, view.lapsed), (BatchState::Settled, true));
    assert_eq!(view.on_success, None);
    let worker = world.worker();
    assert!(world.called(worker).is_empty());
}

#[test]
fn a_settled_batch_is_forgotten_after_seven_days() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.batch_of(1);
    let job = world.take(worker);
    world.kill_with(worker, &job);
    world.called(worker);
    world.commit();
    world.live(DurationMs(7 * DAY.0 - 1));
    assert_eq!(world.listed(true, 10), [batch]);
    world.live(DurationMs(1));
    assert!(world.listed(true, 10).is_empty());
    world.commit();
    assert!(world.listed(true, 10).is_empty());
    let refused = world.add(batch, None);
    check_refused(refused.err.as_ref(), ErrorCode::NotFound, "batch");
    // Its dead member is a job like any other.
    world.revive(only(job.id));
    assert_eq!(world.state(job.id), Some(JobState::Ready));
}

#[test]
fn lists_come_in_pages_in_the_order_of_opening() {
    let mut world = World::new();
    let live: Vec<_> = (0..5)
        .map(|_| world.open_batch(BatchOpen::default()))
        .collect();
    let over: Vec<_> = (0..5).map(|_| world.batch_of(0)).collect();
    world.commit();
    let newer: Vec<_> = (0..3).map(|_| world.batch_of(0)).collect();
    for limit in [1, 2, 5, 100] {
        assert_eq!(world.listed(false, limit), live, "by {limit}");
        assert_eq!(
            world.listed(true, limit),
            [&over[..], &newer].concat(),
            "by {limit}"
        );
    }
}

#[test]
fn open_batches_are_bounded_and_settled_ones_are_not() {
    let mut world = World::with(Options {
        batches_max: 2,
        ..small()
    });
    for _ in 0..3 {
        world.batch_of(0);
    }
    world.open_batch(BatchOpen::default());
    world.batch_of(1);
    let open = Operation::BatchOpen(Box::default());
    let error = world.ask_batch(open).unwrap_err();
    assert_eq!(
        (error.code, error.limit, error.actual),
        (ErrorCode::TooLarge, Some(2), Some(3))
    );
}

#[test]
fn callbacks_are_bounded_together() {
    let mut world = World::new();
    let call = |bytes| {
        Some(Box::new(JobSpec::new(
            "call".parse().unwrap(),
            vec![0; bytes],
        )))
    };
    let open = |bytes| {
        Operation::BatchOpen(Box::new(BatchOpen {
            on_complete: call(2_000),
            on_settled: call(bytes),
            ..BatchOpen::default()
        }))
    };
    shown(world.ask_batch(open(2_500)));
    let error = world.ask_batch(open(3_500)).unwrap_err();
    check_refused(Some(&error), ErrorCode::TooLarge, "on_settled");
    assert_eq!(error.limit, Some(limits::BATCH_CALLBACKS_BYTES_MAX as u64));
}

#[test]
fn a_waiting_fetch_is_given_a_callback() {
    let mut world = World::new();
    let (worker, other) = (world.worker(), world.worker());
    world.batch_of(1);
    let waiting = world.wait(other, &["calls"]);
    let job = world.take(worker);
    world.ack(worker, &job);
    world.tick();
    world.commit();
    assert_eq!(world.waited(waiting).map(|jobs| jobs.len()), Some(1));
}

#[test]
fn an_ack_and_what_it_calls_back_are_one_group() {
    for (is_lost, called) in [(true, 0), (false, 3)] {
        let mut world = World::new();
        let worker = world.worker();
        world.batch_of(1);
        let job = world.take(worker);
        world.commit();
        let before = world.durable;
        world.ack(worker, &job);
        world.seal();
        let kept = before.0 + u64::from(!is_lost);
        world.crash_after(GroupNumber(kept));
        world.commit();
        let worker = world.worker();
        assert_eq!(world.called(worker).len(), called);
    }
}
