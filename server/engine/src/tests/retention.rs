//! Retention: a job that is over is counted at once, and visible as long as it was to be.

use ganger_protocol::{
    Bytes, DurationMs, ErrorCode, JobId, JobSpec,
    job::{GrantedJob, JobState, Unique},
    queue::{OneQueue, QueueSet, Setting},
    request::{Ack, AckItem, Fetch, JobCancel, Operation},
    response::ReplyBody,
};

use super::{everywhere, progress};
use crate::testing::{World, fail_item, fetch_of, job, numbered};

const HOUR: DurationMs = DurationMs::from_hours(1);

fn kept(queue: &str) -> JobSpec {
    JobSpec {
        retain_ms: Some(HOUR),
        ..job(queue)
    }
}

fn ack_with(job: &GrantedJob, result: &[u8]) -> AckItem {
    AckItem {
        result: Some(Bytes::copy_from_slice(result)),
        ..AckItem::of(job.id, job.lease)
    }
}

pub(super) fn ack_item(world: &mut World, item: AckItem) {
    let leases = vec![item];
    match world.ask(None, Operation::Ack(Ack { leases })) {
        Ok(ReplyBody::Lease(reply)) => assert_eq!(reply.results[0].err, None),
        other => panic!("{other:?}"),
    }
}

fn cancel(world: &mut World, job: JobId) {
    let cancel = JobCancel::new(vec![job]);
    world.ask(None, Operation::JobCancel(cancel)).unwrap();
}

pub(super) fn set(world: &mut World, change: impl FnOnce(&mut QueueSet)) {
    let mut set = QueueSet::of("q".parse().unwrap());
    change(&mut set);
    world.ask(None, Operation::QueueSet(Box::new(set))).unwrap();
}

/// The time passes after which nothing of this is kept.
fn let_go(world: &mut World, job: JobId) {
    world.live(DurationMs(HOUR.0 - 1_000));
    assert!(world.look(job).is_some(), "it is kept for an hour");
    world.live(DurationMs(1_000));
    assert_eq!(world.look(job), None);
}

#[test]
fn a_done_job_is_visible_with_its_result_for_its_time_and_counted_at_once() {
    for size in [0, 3, 200_000] {
        everywhere(|world, pause| {
            let id = world.push(kept("q"));
            pause(world);
            let worker = world.worker();
            let granted = world.fetch(worker, "q", 1).remove(0);
            pause(world);
            ack_item(world, ack_with(&granted, &vec![7; size]));
            let counters = world.counters("q");
            assert_eq!(
                (counters.done, counters.done_kept, counters.leased),
                (1, 1, 0)
            );
            pause(world);
            let view = world.look(id).unwrap();
            assert_eq!((view.state, view.attempt), (JobState::Done, 1));
            assert_eq!(view.closed_at, Some(world.now.wall));
            assert_eq!(view.kept_until, Some(world.now.wall.plus(HOUR)));
            assert_eq!(view.result.unwrap().len(), size);
            assert_eq!(&view.payload[..], b"payload");
            world.goodbye(worker);
            pause(world);
            let_go(world, id);
            let counters = world.counters("q");
            assert_eq!((counters.done, counters.done_kept), (1, 0));
            assert_eq!(counters.deleted, 0, "it was done");
        });
    }
}

#[test]
fn without_retention_nothing_is_left_of_a_job_and_its_result() {
    everywhere(|world, pause| {
        world.push(job("q"));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        pause(world);
        ack_item(world, ack_with(&granted, &[1; 9_000]));
        assert_eq!(world.look(granted.id), None);
    });
}

#[test]
fn an_ack_has_the_last_word_and_the_push_the_one_before_the_queue() {
    // Queue, push and ack each say for how long, or nothing.
    for (queue, push, ack, expected) in [
        (None, None, None, 0),
        (Some(5_000), None, None, 5_000),
        (Some(5_000), Some(3_000), None, 3_000),
        (Some(5_000), Some(0), None, 0),
        (None, Some(3_000), Some(1_000), 1_000),
        (Some(5_000), Some(3_000), Some(0), 0),
        (None, None, Some(1_000), 1_000),
    ] {
        everywhere(|world, pause| {
            world
                .ask(
                    None,
                    Operation::QueueCreate(OneQueue {
                        queue: "q".parse().unwrap(),
                    }),
                )
                .unwrap();
            set(world, |set| {
                set.retain_ms = queue.map_or(Setting::Default, |ms| Setting::To(DurationMs(ms)));
            });
            let id = world.push(JobSpec {
                retain_ms: push.map(DurationMs),
                ..job("q")
            });
            let worker = world.worker();
            let granted = world.fetch(worker, "q", 1).remove(0);
            pause(world);
            ack_item(
                world,
                AckItem {
                    retain_ms: ack.map(DurationMs),
                    ..ack_with(&granted, b"r")
                },
            );
            pause(world);
            let until = world.look(id).and_then(|view| view.kept_until);
            let left = until.map_or(0, |until| until.since(world.now.wall).0);
            assert_eq!(left, expected, "{queue:?} {push:?} {ack:?}");
            world.live(HOUR);
        });
    }
}

#[test]
fn acks_that_ride_in_a_fetch_carry_results_too() {
    everywhere(|world, pause| {
        world.push(kept("q"));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        pause(world);
        let fetch = Fetch {
            acks: vec![ack_with(&granted, b"ridden")],
            max: 0,
            ..fetch_of(&["q"], 0)
        };
        let reply = world.fetch_reply(worker, fetch);
        assert_eq!(reply.acks[0].err, None);
        pause(world);
        let view = world.look(granted.id).unwrap();
        assert_eq!(view.result.as_deref(), Some(&b"ridden"[..]));
        world.live(HOUR);
    });
}

#[test]
fn a_cancelled_job_stays_visible_wherever_it_was_cancelled() {
    everywhere(|world, pause| {
        let later = world.push(JobSpec {
            delay_ms: Some(DurationMs(5_000)),
            ..kept("q")
        });
        let ready = world.push(kept("q"));
        pause(world);
        cancel(world, later);
        cancel(world, ready);
        let leased = world.push(kept("q"));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        assert_eq!(granted.id, leased);
        cancel(world, leased);
        pause(world);
        world.fail_with(worker, fail_item(granted.id, granted.lease));
        pause(world);
        for id in [later, ready, leased] {
            let view = world.look(id).unwrap();
            assert_eq!(
                (view.state, view.cancel_at, view.lease),
                (JobState::Cancelled, None, None)
            );
        }
        assert_eq!(world.look(leased).unwrap().errors.len(), 1);
        let counters = world.counters("q");
        assert_eq!((counters.cancelled, counters.cancelled_kept), (3, 3));
        let_go(world, leased);
        assert_eq!(world.counters("q").cancelled_kept, 0);
    });
}

#[test]
fn an_expired_job_stays_visible_whether_a_timer_or_a_fetch_found_it() {
    for by_fetch in [false, true] {
        everywhere(|world, pause| {
            let id = world.push(JobSpec {
                expires_at: Some(world.now.wall.plus(DurationMs(1_000))),
                ..kept("q")
            });
            pause(world);
            let worker = world.worker();
            if by_fetch {
                world.now.wall = world.now.wall.plus(DurationMs(1_000));
                assert_eq!(world.fetch(worker, "q", 1), []);
            } else {
                world.live(DurationMs(1_000));
            }
            pause(world);
            assert_eq!(world.state(id), Some(JobState::Expired));
            assert_eq!(world.counters("q").expired_kept, 1);
            let_go(world, id);
        });
    }
}

#[test]
fn a_job_that_is_over_holds_nothing() {
    everywhere(|world, pause| {
        let unique = || JobSpec {
            unique: Some(Box::new(Unique::named("u".parse().unwrap()))),
            ..kept("q")
        };
        let first = world.push(unique());
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        ack_item(world, ack_with(&granted, b"r"));
        pause(world);
        let second = world.push(unique());
        assert_ne!(first, second);
        let late = world.ack_pair(worker, granted.id, ganger_protocol::LeaseId(1 << 40));
        let error = late.err.unwrap();
        assert_eq!(
            (error.code, error.state.as_deref()),
            (ErrorCode::LeaseLost, Some("done"))
        );
        let granted = world.fetch(worker, "q", 1).remove(0);
        assert_eq!(granted.id, second, "a done job is not granted");
        world.ack(worker, &granted);
        world.live(HOUR);
    });
}

#[test]
fn a_retained_job_keeps_what_was_said_of_it_but_no_cursor() {
    everywhere(|world, pause| {
        let id = world.push(JobSpec {
            payload: Bytes::from(vec![3; 20_000]),
            ..kept("q")
        });
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        let mut item = progress::at(&granted, &[1; 9_000]);
        item.percent = Some(100);
        progress::report(world, item);
        pause(world);
        ack_item(world, ack_with(&granted, b"r"));
        pause(world);
        let view = world.look(id).unwrap();
        assert_eq!((view.percent, view.cursor), (Some(100), None));
        assert_eq!(view.payload.len(), 20_000);
        world.live(HOUR);
    });
}

#[test]
fn of_each_state_a_queue_keeps_the_newest_up_to_its_bound() {
    everywhere(|world, pause| {
        world.push(kept("q"));
        set(world, |set| set.retained_max = Setting::To(3));
        let mut jobs = numbered("q", 0..7);
        for job in &mut jobs {
            job.retain_ms = Some(HOUR);
        }
        let ids = world.push_all(jobs);
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 5);
        for job in &granted {
            world.now.wall = world.now.wall.plus(DurationMs(1));
            ack_item(world, ack_with(job, b"r"));
            pause(world);
        }
        for id in ids[4..].iter().take(2) {
            cancel(world, *id);
        }
        world.tick();
        let visible: Vec<bool> = granted
            .iter()
            .map(|job| world.look(job.id).is_some())
            .collect();
        assert_eq!(visible, [false, false, true, true, true]);
        let counters = world.counters("q");
        assert_eq!((counters.done_kept, counters.cancelled_kept), (3, 2));
        assert_eq!((counters.done, counters.cancelled), (5, 2));
        pause(world);
        set(world, |set| set.retained_max = Setting::To(0));
        world.tick();
        pause(world);
        let counters = world.counters("q");
        assert_eq!(counters.retained(), 0);
        let worker = world.worker();
        for job in world.fetch(worker, "q", 10) {
            ack_item(world, ack_with(&job, b"r"));
        }
        world.tick();
    });
}

#[test]
fn a_purge_removes_retained_jobs_and_leaves_what_was_counted() {
    everywhere(|world, pause| {
        let id = world.push(kept("q"));
        let batch = world.push(job("q"));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        ack_item(world, ack_with(&granted, &[1; 30_000]));
        pause(world);
        let queue = || OneQueue {
            queue: "q".parse().unwrap(),
        };
        let refused = world
            .ask(None, Operation::QueueDelete(queue()))
            .unwrap_err();
        assert_eq!(
            (refused.code, refused.actual),
            (ErrorCode::Conflict, Some(2))
        );
        match world.ask(None, Operation::QueuePurge(queue())).unwrap() {
            ReplyBody::Purged(reply) => assert_eq!(reply.removed, 2),
            other => panic!("{other:?}"),
        }
        assert_eq!((world.look(id), world.look(batch)), (None, None));
        let counters = world.counters("q");
        assert_eq!(
            (counters.done, counters.deleted, counters.done_kept),
            (1, 1, 0)
        );
        pause(world);
        world.commit();
        world.live(DurationMs(1_000));
    });
}
