//! Jobs that wait are started, delayed and moved; jobs that are over are deleted.

mod random;

use ganger_protocol::{
    DurationMs, ErrorCode, JobId, JobSpec, Timestamp,
    change::{ChangeResult, ChangeTo, JobChange, JobDelete},
    job::{JobState, Unique},
    queue::{OneQueue, QueueSet, Setting},
    request::{BatchName, DeadSelect, Operation},
    response::ReplyBody,
};

use crate::testing::{World, fail_item, ids, job, numbered};

/// Checks the same in one group, over groups, and over restarts; at the end nothing is left.
fn everywhere(check: impl Fn(&mut World, fn(&mut World))) {
    for pause in [|_: &mut World| {}, World::commit, World::reopen] {
        let mut world = World::new();
        check(&mut world, pause);
        world.commit();
        for session in world.sessions() {
            world.goodbye(session);
        }
        world.live(DurationMs(1_000));
        world.store.check_empty();
        world.engine.check_drained().unwrap();
    }
}

fn change_all(world: &mut World, jobs: &[JobId], to: &ChangeTo) -> Vec<ChangeResult> {
    let change = JobChange {
        jobs: jobs.to_vec(),
        to: to.clone(),
    };
    match world.ask(None, Operation::JobChange(change)) {
        Ok(ReplyBody::Change(reply)) => reply.results,
        other => panic!("{other:?}"),
    }
}

fn change(world: &mut World, job: JobId, to: &ChangeTo) -> ChangeResult {
    change_all(world, &[job], to).remove(0)
}

fn delete(world: &mut World, job: JobId) -> ChangeResult {
    let delete = JobDelete { jobs: vec![job] };
    match world.ask(None, Operation::JobDelete(delete)) {
        Ok(ReplyBody::Change(mut reply)) => reply.results.remove(0),
        other => panic!("{other:?}"),
    }
}

fn later(queue: &str, minutes: u64) -> JobSpec {
    JobSpec {
        delay_ms: Some(DurationMs::from_mins(minutes)),
        ..job(queue)
    }
}

fn to_queue(queue: &str) -> ChangeTo {
    ChangeTo::queue(queue.parse().unwrap())
}

fn ready() -> ChangeResult {
    ChangeResult {
        state: Some(JobState::Ready),
        ..ChangeResult::default()
    }
}

fn drain(world: &mut World, queue: &str) -> Vec<JobId> {
    let worker = world.worker();
    let granted = world.fetch(worker, queue, 100);
    for job in &granted {
        assert_eq!(world.ack(worker, job).err, None);
    }
    ids(&granted)
}

#[test]
fn a_scheduled_job_is_started_now_behind_those_that_wait_and_wakes_who_waits() {
    everywhere(|world, pause| {
        let (first, second) = (world.push(later("q", 1)), world.push(later("q", 1)));
        let waiting = world.push(job("q"));
        pause(world);
        assert_eq!(change(world, first, &ChangeTo::now()), ready());
        pause(world);
        assert_eq!(world.state(first), Some(JobState::Ready));
        let again = change(world, first, &ChangeTo::now());
        assert!(again.already, "{again:?}");
        assert_eq!(drain(world, "q"), [waiting, first]);

        let worker = world.worker();
        let fetch = world.wait(worker, &["q"]);
        assert_eq!(change(world, second, &ChangeTo::now()), ready());
        let granted = world.waited(fetch).expect("it was woken");
        assert_eq!(ids(&granted), [second]);
        world.ack(worker, &granted[0]);
        // Nothing fires at the times that were.
        world.live(DurationMs::from_mins(2));
        let counters = world.counters("q");
        assert_eq!((counters.pushed, counters.done), (3, 3));
    });
}

#[test]
fn a_waiting_job_is_delayed_and_a_retry_keeps_what_happened_to_it() {
    everywhere(|world, pause| {
        let jobs = world.push_all(numbered("q", 0..3));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        world.fail(worker, &granted);
        pause(world);
        let at = world.now.wall.plus(DurationMs::from_mins(5));
        let to = ChangeTo {
            run_at: Some(at),
            ..ChangeTo::default()
        };
        for result in change_all(world, &[jobs[0], jobs[1]], &to) {
            assert_eq!(result.state, Some(JobState::Scheduled));
            assert_eq!(result.run_at, Some(at));
        }
        pause(world);
        assert_eq!(drain(world, "q"), [jobs[2]]);
        let view = world.look(jobs[0]).unwrap();
        assert_eq!((view.failures, view.attempt, view.run_at), (1, 1, Some(at)));
        world.live(DurationMs::from_mins(4));
        assert_eq!(drain(world, "q"), []);
        world.live(DurationMs::from_mins(2));
        let mut both = drain(world, "q");
        both.sort_unstable();
        assert_eq!(both, [jobs[0], jobs[1]]);
    });
}

#[test]
fn a_priority_and_a_queue_are_changed_alone_or_together_and_counted() {
    everywhere(|world, pause| {
        let jobs = world.push_all(numbered("q", 0..4));
        let scheduled = world.push(later("q", 1));
        pause(world);
        let first = ChangeTo {
            priority: Some(9),
            ..ChangeTo::default()
        };
        assert_eq!(change(world, jobs[3], &first), ready());
        assert_eq!(change(world, jobs[2], &to_queue("other")), ready());
        let moved = change(world, scheduled, &to_queue("other"));
        assert_eq!(moved.state, Some(JobState::Scheduled));
        pause(world);
        assert!(change(world, jobs[2], &to_queue("other")).already);
        let (from, to) = (world.counters("q"), world.counters("other"));
        assert_eq!((from.moved_out, from.ready, from.scheduled), (2, 3, 0));
        assert_eq!(
            (to.moved_in, to.ready, to.scheduled, to.pushed),
            (2, 1, 1, 0)
        );
        assert_eq!(drain(world, "q"), [jobs[3], jobs[0], jobs[1]]);
        assert_eq!(world.look(jobs[2]).unwrap().queue.as_str(), "other");
        world.live(DurationMs::from_mins(2));
        assert_eq!(drain(world, "other"), [jobs[2], scheduled]);
        assert_eq!(world.counters("other").done, 2);
    });
}

#[test]
fn what_a_moved_job_is_answered_wakes_the_queue_that_it_is_in() {
    everywhere(|world, pause| {
        let moved = world.push(job("q"));
        change(world, moved, &to_queue("other"));
        pause(world);
        let worker = world.worker();
        let granted = world.fetch(worker, "other", 1).remove(0);
        pause(world);
        let waiting = world.wait(worker, &["other"]);
        assert_eq!(world.waited(waiting), None);
        world.release(worker, &granted, None);
        let again = world.waited(waiting).expect("it was woken");
        assert_eq!(ids(&again), [moved]);
        world.ack(worker, &again[0]);
    });
}

#[test]
fn the_quota_of_the_other_queue_holds_and_that_of_its_own_does_not_matter() {
    everywhere(|world, pause| {
        let jobs = world.push_all(numbered("q", 0..2));
        world.push(job("full"));
        for queue in ["q", "full"] {
            let set = QueueSet {
                jobs_max: Setting::To(1),
                ..QueueSet::of(queue.parse().unwrap())
            };
            world.ask(None, Operation::QueueSet(Box::new(set))).unwrap();
        }
        pause(world);
        let refused = change(world, jobs[0], &to_queue("full")).err.unwrap();
        assert_eq!(refused.code, ErrorCode::QuotaExceeded);
        assert_eq!((refused.limit, refused.actual), (Some(1), Some(2)));
        let delayed = change(world, jobs[0], &ChangeTo::after(DurationMs(100)));
        assert_eq!(delayed.err, None);
        pause(world);
        world.live(DurationMs(200));
        assert_eq!(drain(world, "q"), [jobs[1], jobs[0]]);
        drain(world, "full");
    });
}

#[test]
fn a_job_that_does_not_wait_or_would_expire_is_refused_with_its_state() {
    everywhere(|world, pause| {
        let worker = world.worker();
        world.push(job("q"));
        let granted = world.fetch(worker, "q", 1).remove(0);
        world.push(job("d"));
        let dead = world.kill(worker, "d");
        let expires_at = world.now.wall.plus(DurationMs::from_mins(10));
        let mortal = world.push(JobSpec {
            expires_at: Some(expires_at),
            ..job("e")
        });
        pause(world);
        for (job, state) in [(granted.id, "leased"), (dead, "dead")] {
            let refused = change(world, job, &ChangeTo::now()).err.unwrap();
            assert_eq!(refused.code, ErrorCode::Conflict);
            assert_eq!(refused.state.as_deref(), Some(state));
        }
        let gone = change(world, JobId::from_bytes([9; 24]), &ChangeTo::now());
        assert_eq!(gone.err.unwrap().code, ErrorCode::NotFound);
        let to = |at: Timestamp| ChangeTo {
            run_at: Some(at),
            ..ChangeTo::default()
        };
        let refused = change(world, mortal, &to(expires_at)).err.unwrap();
        assert_eq!(refused.code, ErrorCode::Conflict);
        let last = Timestamp(expires_at.0 - 1);
        assert_eq!(change(world, mortal, &to(last)).run_at, Some(last));
        pause(world);
        // It still expires: the timer of it goes with it.
        assert_eq!(change(world, mortal, &to_queue("f")).err, None);
        pause(world);
        world.pass(DurationMs::from_mins(10));
        world.live(DurationMs(1_000));
        assert_eq!(world.counters("f").expired, 1);
        // Its lease has timed out meanwhile, or has not; nothing of it is asked here.
        world.purge(DeadSelect {
            jobs: vec![dead],
            ..DeadSelect::default()
        });
        purge(world, "q");
    });
}

fn one(queue: &str) -> OneQueue {
    OneQueue {
        queue: queue.parse().unwrap(),
    }
}

fn purge(world: &mut World, queue: &str) {
    world.ask(None, Operation::QueuePurge(one(queue))).unwrap();
    sweep(world);
}

/// Lets the sweep come to its end.
fn sweep(world: &mut World) {
    for _ in 0..20 {
        world.commit();
        world.pass(DurationMs(1));
    }
    world.commit();
}

fn keyed(queue: &str, key: &str) -> JobSpec {
    JobSpec {
        unique: Some(Box::new(Unique::named(key.parse().unwrap()))),
        ..later(queue, 1)
    }
}

#[test]
fn a_moved_job_keeps_its_unique_key_and_lets_it_go_at_its_end() {
    everywhere(|world, pause| {
        let holder = world.push(keyed("q", "k"));
        pause(world);
        change(world, holder, &to_queue("other"));
        pause(world);
        // The queue that it was pushed to is emptied, and gone but for that key.
        purge(world, "q");
        assert_eq!(world.push(keyed("q", "k")), holder, "it holds the key");
        change(world, holder, &ChangeTo::now());
        assert_eq!(drain(world, "other"), [holder]);
        let next = world.push(keyed("q", "k"));
        assert_ne!(next, holder);
        change(world, next, &ChangeTo::now());
        assert_eq!(drain(world, "q"), [next]);
        // The old number stays until the next start has found that nobody needs it.
        world.reopen();
        sweep(world);
    });
}

#[test]
fn a_purge_finds_jobs_that_came_from_other_queues() {
    everywhere(|world, pause| {
        let scheduled = world.push(keyed("q", "k"));
        let ready = world.push(job("q"));
        let worker = world.worker();
        world.push(job("q"));
        let kept = world.push(later("q", 1));
        change_all(world, &[scheduled, ready], &to_queue("other"));
        pause(world);
        assert_eq!(world.fetch(worker, "other", 1).len(), 1);
        pause(world);
        world
            .ask(None, Operation::QueuePurge(one("other")))
            .unwrap();
        assert_eq!(world.look(scheduled), None);
        let again = world.push(keyed("q", "k"));
        assert_ne!(again, scheduled, "its key is free");
        pause(world);
        sweep(world);
        assert_eq!(world.state(kept), Some(JobState::Scheduled));
        change_all(world, &[kept, again], &ChangeTo::now());
        assert_eq!(drain(world, "q").len(), 3);
        assert_eq!(world.counters("other").deleted, 2);
    });
}

#[test]
fn a_member_of_a_batch_is_counted_wherever_it_goes() {
    everywhere(|world, pause| {
        let open = world.ask(None, Operation::BatchOpen(Box::default()));
        let Ok(ReplyBody::Batch(open)) = open else {
            panic!("{open:?}")
        };
        let member = world.push(JobSpec {
            batch: Some(open.id),
            ..later("q", 1)
        });
        let batch = BatchName { batch: open.id };
        world.ask(None, Operation::BatchCommit(batch)).unwrap();
        pause(world);
        change(world, member, &to_queue("other"));
        change(world, member, &ChangeTo::now());
        pause(world);
        drain(world, "other");
        match world.ask(None, Operation::BatchShow(batch)) {
            Ok(ReplyBody::Batch(view)) => {
                assert_eq!((view.counters.total, view.counters.done), (1, 1));
                assert!(view.settled_at.is_some());
            }
            other => panic!("{other:?}"),
        }
        world.live(DurationMs::from_hours(24 * 8));
    });
}

#[test]
fn what_is_over_is_deleted_and_what_is_not_is_refused() {
    everywhere(|world, pause| {
        let worker = world.worker();
        world.push(job("q"));
        let dead = world.kill(worker, "q");
        let waiting = world.push(job("q"));
        pause(world);
        assert_eq!(delete(world, dead), ChangeResult::default());
        assert_eq!(world.look(dead), None);
        pause(world);
        let gone = delete(world, dead).err.unwrap();
        assert_eq!(gone.code, ErrorCode::NotFound);
        let refused = delete(world, waiting).err.unwrap();
        assert_eq!(refused.code, ErrorCode::Conflict);
        assert_eq!(refused.state.as_deref(), Some("ready"));
        assert_eq!(drain(world, "q"), [waiting]);
        let counters = world.counters("q");
        assert_eq!((counters.dead, counters.deleted), (0, 1));
    });
}

#[test]
fn a_job_whose_payload_is_long_goes_with_it() {
    everywhere(|world, pause| {
        let payload = vec![3; 20_000];
        let long = world.push(JobSpec {
            payload: payload.clone().into(),
            ..job("q")
        });
        pause(world);
        change(world, long, &to_queue("other"));
        pause(world);
        let worker = world.worker();
        let granted = world.fetch(worker, "other", 1).remove(0);
        assert_eq!(granted.payload, payload);
        let mut fail = fail_item(granted.id, granted.lease);
        fail.discard = true;
        world.fail_with(worker, fail);
    });
}
