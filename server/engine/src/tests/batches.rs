//! Batches: what is counted, when callbacks are pushed, who may join, what lasts over crashes.

use ganger_protocol::{
    BatchId, DurationMs, ErrorCode, JobId, JobSpec, SessionId, WireError,
    batch::{
        BATCH_HEADER, BatchCounters, BatchEvent, BatchOpen, BatchState, BatchView, EVENT_HEADER,
    },
    job::{GrantedJob, JobState, Unique},
    limits,
    request::{BatchList, BatchName, DeadSelect, FailItem, LeaseRef, Operation, Push},
    response::{PushResult, ReplyBody},
};
use proptest::prelude::*;

use crate::{
    Options,
    queue::DEAD_MAX_DEFAULT,
    records::GroupNumber,
    testing::{World, fail_item, fetch_of, job, lease_ref, small, tiny},
};

const DAY: DurationMs = DurationMs::from_hours(24);

fn shown(result: Result<ReplyBody, WireError>) -> BatchView {
    match result {
        Ok(ReplyBody::Batch(view)) => *view,
        other => panic!("{other:?}"),
    }
}

impl World {
    fn ask_batch(&mut self, operation: Operation) -> Result<ReplyBody, WireError> {
        self.ask(None, operation)
    }

    fn open_batch(&mut self, open: BatchOpen) -> BatchId {
        shown(self.ask_batch(Operation::BatchOpen(Box::new(open)))).id
    }

    fn commit_batch(&mut self, batch: BatchId) -> BatchView {
        shown(self.ask_batch(Operation::BatchCommit(BatchName { batch })))
    }

    fn batch(&mut self, batch: BatchId) -> BatchView {
        shown(self.ask_batch(Operation::BatchShow(BatchName { batch })))
    }

    fn counted(&mut self, batch: BatchId) -> BatchCounters {
        self.batch(batch).counters
    }

    fn add(&mut self, batch: BatchId, by: Option<LeaseRef>) -> PushResult {
        let push = Push {
            by,
            ..Push::of(vec![member(batch)])
        };
        self.push_as(None, push).unwrap().remove(0)
    }

    /// A batch of so many jobs in the queue `work` with all callbacks, committed.
    fn batch_of(&mut self, members: usize) -> BatchId {
        let batch = self.open_batch(with_callbacks());
        self.push_all(vec![member(batch); members]);
        self.commit_batch(batch);
        batch
    }

    fn take(&mut self, worker: SessionId) -> GrantedJob {
        self.fetch(worker, "work", 1).remove(0)
    }

    /// The events whose callbacks wait in their queue, in their order.
    fn called(&mut self, worker: SessionId) -> Vec<String> {
        let jobs = self.fetch(worker, "calls", 100);
        for job in &jobs {
            self.ack(worker, job);
        }
        jobs.iter()
            .map(|job| job.headers[EVENT_HEADER].clone())
            .collect()
    }

    fn discard(&mut self, worker: SessionId, job: &GrantedJob) {
        let item = FailItem {
            discard: true,
            ..fail_item(job.id, job.lease)
        };
        self.fail_with(worker, item);
    }

    fn kill_with(&mut self, worker: SessionId, job: &GrantedJob) {
        let item = FailItem {
            dead: true,
            ..fail_item(job.id, job.lease)
        };
        self.fail_with(worker, item);
    }

    fn listed(&mut self, settled: bool, limit: u32) -> Vec<BatchId> {
        let (mut ids, mut cursor) = (Vec::new(), None);
        loop {
            let list = BatchList {
                settled,
                cursor,
                limit,
            };
            match self.ask_batch(Operation::BatchList(list)) {
                Ok(ReplyBody::Batches(reply)) => {
                    ids.extend(reply.batches.iter().map(|view| view.id));
                    cursor = reply.cursor;
                }
                other => panic!("{other:?}"),
            }
            if cursor.is_none() {
                return ids;
            }
        }
    }
}

fn member(batch: BatchId) -> JobSpec {
    JobSpec {
        batch: Some(batch),
        ..job("work")
    }
}

fn with_callbacks() -> BatchOpen {
    let call = || Some(Box::new(job("calls")));
    BatchOpen {
        on_complete: call(),
        on_success: call(),
        on_settled: call(),
        ..BatchOpen::default()
    }
}

fn within(parent: BatchId) -> BatchOpen {
    BatchOpen {
        parent: Some(parent),
        ..BatchOpen::default()
    }
}

fn only(job: JobId) -> DeadSelect {
    DeadSelect {
        jobs: vec![job],
        ..DeadSelect::default()
    }
}

#[track_caller]
fn check_refused(error: Option<&WireError>, code: ErrorCode, field: &str) {
    let error = error.expect("refused");
    assert_eq!((error.code, error.field.as_deref()), (code, Some(field)));
}

fn settled(counters: BatchCounters) -> BatchCounters {
    BatchCounters {
        untried: 0,
        pending: 0,
        ..counters
    }
}

const ALL: [&str; 3] = ["complete", "success", "settled"];

#[test]
fn callbacks_come_once_all_members_are_done_and_in_their_order() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.batch_of(2);
    let (first, second) = (world.take(worker), world.take(worker));
    assert_eq!(first.batch, Some(batch));
    world.ack(worker, &first);
    assert!(world.called(worker).is_empty());
    world.ack(worker, &second);
    assert_eq!(world.called(worker), ALL);
    let view = world.batch(batch);
    assert_eq!(view.state, BatchState::Settled);
    let done = BatchCounters {
        total: 2,
        done: 2,
        ..BatchCounters::default()
    };
    assert_eq!(view.counters, done);
}

#[test]
fn a_callback_tells_of_which_batch_and_event_it_is() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.batch_of(0);
    let call = world.fetch(worker, "calls", 1).remove(0);
    assert_eq!(call.headers[BATCH_HEADER], batch.to_string());
    assert_eq!(call.headers[EVENT_HEADER], "complete");
    assert_eq!(call.batch, None);
    let view = world.batch(batch);
    assert_eq!(
        view.callback(BatchEvent::Complete).unwrap().job,
        Some(call.id)
    );
}

#[test]
fn an_empty_batch_calls_back_on_its_commit_and_a_second_commit_changes_nothing() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.open_batch(with_callbacks());
    assert!(world.called(worker).is_empty());
    let view = world.commit_batch(batch);
    assert_eq!(view.state, BatchState::Settled);
    assert_eq!(world.called(worker), ALL);
    assert_eq!(world.commit_batch(batch), world.batch(batch));
    assert!(world.called(worker).is_empty());
}

#[test]
fn nothing_is_called_before_the_commit() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.open_batch(with_callbacks());
    world.push(member(batch));
    let job = world.take(worker);
    world.ack(worker, &job);
    assert!(world.called(worker).is_empty());
    world.commit_batch(batch);
    assert_eq!(world.called(worker), ALL);
}

#[test]
fn the_first_outcome_of_an_attempt_counts_as_a_try_and_a_release_does_not() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.batch_of(2);
    let job = world.take(worker);
    world.release(worker, &job, None);
    assert_eq!(world.counted(batch).untried, 2);
    let job = world.take(worker);
    world.fail(worker, &job);
    let counters = world.counted(batch);
    assert_eq!((counters.untried, counters.pending), (1, 2));
    let job = world.take(worker);
    world.ack(worker, &job);
    assert_eq!(world.called(worker), ["complete"]);
    world.live(DAY);
    let worker = world.worker();
    let retry = world.take(worker);
    world.ack(worker, &retry);
    assert_eq!(world.called(worker), ["success", "settled"]);
}

#[test]
fn a_time_out_and_a_loss_count_as_tries() {
    let mut world = World::new();
    let batch = world.batch_of(2);
    let worker = world.worker();
    let late = JobSpec {
        timeout_ms: Some(DurationMs::from_secs(1)),
        priority: Some(9),
        ..member(batch)
    };
    let other = world.open_batch(with_callbacks());
    world.push(JobSpec {
        batch: Some(other),
        ..late
    });
    world.take(worker);
    world.live(DurationMs::from_secs(2));
    assert_eq!(world.counted(other).untried, 0);
    world.take(worker);
    // The session is not heard of any more.
    world.live(DurationMs::from_secs(20));
    assert_eq!(world.counted(batch).untried, 1);
}

#[test]
fn a_discarded_member_is_deleted_and_a_dead_one_dead() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.batch_of(2);
    let (first, second) = (world.take(worker), world.take(worker));
    world.discard(worker, &first);
    world.kill_with(worker, &second);
    let counters = BatchCounters {
        total: 2,
        dead: 1,
        deleted: 1,
        ..BatchCounters::default()
    };
    assert_eq!(world.counted(batch), counters);
    assert_eq!(world.called(worker), ["complete", "settled"]);
}

#[test]
fn an_expired_member_is_counted_wherever_it_expires() {
    let mut world = World::with(tiny());
    let worker = world.worker();
    let batch = world.open_batch(with_callbacks());
    let expiring = JobSpec {
        expires_at: Some(world.now.wall.plus(DurationMs(10))),
        ..member(batch)
    };
    world.push_all(vec![expiring; 2]);
    world.commit_batch(batch);
    world.commit();
    // At a grant that comes before the timer, and by the timer.
    world.now.wall = world.now.wall.plus(DurationMs(10));
    assert!(world.fetch(worker, "work", 1).is_empty());
    world.tick();
    let counters = world.counted(batch);
    assert_eq!(
        (counters.expired, counters.pending, counters.untried),
        (2, 0, 0)
    );
    assert_eq!(world.called(worker), ["complete", "settled"]);
}

#[test]
fn a_poisonous_member_is_dead() {
    let mut world = World::new();
    let batch = world.batch_of(1);
    for _ in 0..5 {
        let worker = world.worker();
        world.take(worker);
        world.live(DurationMs::from_mins(10));
    }
    assert_eq!(world.counted(batch).dead, 1);
}

#[test]
fn a_revived_member_makes_its_batch_go_on_and_succeed_later() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.batch_of(1);
    let job = world.take(worker);
    world.kill_with(worker, &job);
    assert_eq!(world.called(worker), ["complete", "settled"]);
    // The settled batch has to be read.
    world.reopen();
    let worker = world.worker();
    world.revive(only(job.id));
    let view = world.batch(batch);
    assert_eq!((view.state, view.settled_at), (BatchState::Committed, None));
    let again = BatchCounters {
        total: 1,
        pending: 1,
        ..BatchCounters::default()
    };
    assert_eq!(view.counters, again);
    let job = world.take(worker);
    world.ack(worker, &job);
    assert_eq!(world.called(worker), ["success"]);
    assert_eq!(world.batch(batch).state, BatchState::Settled);
}

#[test]
fn a_dead_member_that_is_removed_is_deleted() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.batch_of(1);
    let job = world.take(worker);
    world.kill_with(worker, &job);
    let before = world.batch(batch);
    world.reopen();
    world.purge(only(job.id));
    let view = world.batch(batch);
    assert_eq!((view.counters.dead, view.counters.deleted), (0, 1));
    assert_eq!(view.settled_at, before.settled_at);
}

#[test]
fn dead_members_that_a_queue_has_too_many_of_are_deleted() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.batch_of(1);
    let first = world.take(worker);
    world.kill_with(worker, &first);
    world.reopen();
    let worker = world.worker();
    for _ in 0..DEAD_MAX_DEFAULT {
        world.push_unchecked(vec![job("work")]);
        world.kill(worker, "work");
    }
    world.tick();
    assert_eq!(world.counted(batch).deleted, 1);
}

#[test]
fn a_large_member_is_counted_after_a_restart() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.open_batch(with_callbacks());
    world.push(JobSpec {
        payload: vec![7; 20_000].into(),
        ..member(batch)
    });
    world.commit_batch(batch);
    let job = world.take(worker);
    world.reopen();
    world.resume(worker, &[lease_ref(&job)]);
    // By its lease, whose job was not read, it may add one, too.
    assert!(world.add(batch, Some(lease_ref(&job))).id.is_some());
    world.ack(worker, &job);
    assert_eq!(world.counted(batch).done, 1);
    let other = world.take(worker);
    world.ack(worker, &other);
    assert_eq!(world.called(worker), ALL);
}

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
