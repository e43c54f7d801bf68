//! Batches: what is counted, when callbacks are pushed, who may join, what lasts over crashes.

mod joining;
mod purged;
mod random;

use crate::{
    Engine, Options,
    queue::DEAD_MAX_DEFAULT,
    records::GroupNumber,
    testing::{World, fail_item, fetch_of, job, lease_ref, small, tiny},
};
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

    pub(super) fn open_batch(&mut self, open: BatchOpen) -> BatchId {
        shown(self.ask_batch(Operation::BatchOpen(Box::new(open)))).id
    }

    pub(super) fn commit_batch(&mut self, batch: BatchId) -> BatchView {
        shown(self.ask_batch(Operation::BatchCommit(BatchName { batch })))
    }

    pub(super) fn batch(&mut self, batch: BatchId) -> BatchView {
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

    pub(super) fn discard(&mut self, worker: SessionId, job: &GrantedJob) {
        let item = FailItem {
            discard: true,
            ..fail_item(job.id, job.lease)
        };
        self.fail_with(worker, item);
    }

    pub(super) fn kill_with(&mut self, worker: SessionId, job: &GrantedJob) {
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
fn a_member_that_runs_over_a_restart_is_counted() {
    let mut world = World::new();
    let worker = world.worker();
    let batch = world.batch_of(1);
    let job = world.take(worker);
    world.reopen();
    world.resume(worker, &[lease_ref(&job)]);
    world.ack(worker, &job);
    assert_eq!(world.called(worker), ALL);
    assert_eq!(world.counted(batch).done, 1);
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
fn a_start_goes_on_with_batches_whose_members_a_repair_could_not_save() {
    let mut world = World::new();
    let above = world.open_batch(with_callbacks());
    let lost = world.open_batch(BatchOpen {
        parent: Some(above),
        ..with_callbacks()
    });
    world.push(member(lost));
    world.commit_batch(lost);
    world.commit_batch(above);
    world.commit();
    let mut recovered = world.store.recovered();
    for batch in recovered.batches.iter_mut().filter(|it| it.id == lost) {
        let counters = &mut batch.counters;
        (counters.pending, counters.untried, counters.deleted) = (0, 0, 1);
    }
    world.engine = Engine::open(world.now, small(), recovered);
    world.commit();
    let worker = world.worker();
    let events = ["complete", "settled"];
    assert_eq!(world.called(worker), [events, events].concat());
    assert_eq!(world.counted(above).deleted, 1);
}
