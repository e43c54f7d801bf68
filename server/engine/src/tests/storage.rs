//! What is in memory and what is not: windows, large payloads, timers, records that are used up.

use ganger_protocol::{DurationMs, JobSpec, job::JobState};

use crate::{
    queue::{LANE_HEADS_MAX, LANE_HEADS_MIN},
    testing::{World, ids, job, numbered, tiny},
};

#[test]
fn a_lane_has_at_most_so_many_heads_in_memory() {
    let mut world = World::new();
    let count = LANE_HEADS_MAX as u64 + 500;
    let pushed = world.push_all(numbered("a", 0..count));
    assert_eq!(world.engine.heads().0, LANE_HEADS_MAX);
    world.commit();
    let mut granted = Vec::new();
    for _ in 0..10 {
        let worker = world.worker();
        granted.extend(ids(&world.fetch(worker, "a", 500)));
    }
    assert_eq!(granted, pushed, "refilled in order");
}

#[test]
fn beyond_the_budget_a_lane_has_few_heads_and_loses_no_order() {
    let mut world = World::with(tiny());
    let worker = world.worker();
    let mut pushed = Vec::new();
    for round in 0..10 {
        pushed.extend(world.push_all(numbered("a", round * 30..round * 30 + 30)));
        if round % 3 == 0 {
            world.commit();
        }
    }
    assert_eq!(world.engine.heads().0, LANE_HEADS_MIN);
    let granted: Vec<_> = (0..300)
        .flat_map(|_| ids(&world.fetch(worker, "a", 1)))
        .collect();
    assert_eq!(granted, pushed);
}

#[test]
fn a_release_goes_to_the_head_while_the_tail_is_on_disk() {
    let mut world = World::with(tiny());
    let worker = world.worker();
    let pushed = world.push_all(numbered("a", 0..100));
    world.commit();
    let jobs = world.fetch(worker, "a", 40);
    world.release(worker, &jobs[7], None);
    assert_eq!(ids(&world.fetch(worker, "a", 2)), [pushed[7], pushed[40]]);
}

#[test]
fn a_release_before_anything_was_read_goes_to_the_head_too() {
    let mut world = World::new();
    let worker = world.worker();
    let pushed = world.push_all(numbered("a", 0..10));
    let jobs = world.fetch(worker, "a", 3);
    world.reopen();
    world.release(worker, &jobs[1], None);
    assert_eq!(ids(&world.fetch(worker, "a", 2)), [pushed[1], pushed[3]]);
}

#[test]
fn a_refill_takes_in_what_the_open_group_has() {
    let mut world = World::with(tiny());
    let worker = world.worker();
    let mut pushed = world.push_all(numbered("a", 0..50));
    world.commit();
    pushed.extend(world.push_all(numbered("a", 50..100)));
    assert_eq!(ids(&world.fetch(worker, "a", 1000)), pushed);
}

#[test]
fn more_releases_than_a_window_holds_stay_in_order() {
    let mut world = World::new();
    let count = LANE_HEADS_MAX as u64 + 200;
    let pushed = world.push_all(numbered("a", 0..count));
    world.commit();
    let workers = [(); 5].map(|()| world.worker());
    for worker in workers {
        world.fetch(worker, "a", 1000);
    }
    for worker in workers.into_iter().rev() {
        world.goodbye(worker);
    }
    assert!(world.engine.heads().0 <= LANE_HEADS_MAX);
    let mut granted = Vec::new();
    for _ in 0..5 {
        let worker = world.worker();
        granted.extend(ids(&world.fetch(worker, "a", 1000)));
    }
    assert_eq!(granted, pushed);
}

#[test]
fn a_backlog_is_read_again_after_a_restart_in_its_order() {
    let mut world = World::new();
    let mut pushed = Vec::new();
    for round in 0..20 {
        pushed.extend(world.push_all(numbered("a", round * 10..round * 10 + 10)));
        world.commit();
    }
    world.reopen();
    assert_eq!(
        world.engine.heads().0,
        0,
        "nothing is read before it is needed"
    );
    let worker = world.worker();
    assert_eq!(ids(&world.fetch(worker, "a", 1000)), pushed);
}

#[test]
fn a_waiting_fetch_is_served_from_the_disk_by_the_next_tick() {
    let mut world = World::with(tiny());
    let worker = world.worker();
    let pushed = world.push_all(numbered("a", 0..40));
    world.pause("a");
    world.reopen();
    let wait = world.wait(worker, &["a"]);
    world.unpause("a");
    assert_eq!(world.waited(wait), None);
    assert_eq!(world.engine.next_wakeup(world.now), Some(DurationMs::ZERO));
    world.tick();
    assert_eq!(ids(&world.waited(wait).unwrap()), pushed[..1]);
    assert_ne!(world.engine.next_wakeup(world.now), Some(DurationMs::ZERO));
}

#[track_caller]
fn check_large(restarts: bool, delayed: bool) {
    let mut world = World::new();
    let mut worker = world.worker();
    let payload: Vec<u8> = (0..1 << 20)
        .map(|byte: u32| byte.to_le_bytes()[1])
        .collect();
    let spec = JobSpec {
        payload: payload.clone().into(),
        delay_ms: delayed.then_some(DurationMs(1_000)),
        max_attempts: Some(2),
        ..job("a")
    };
    let id = world.push(spec);
    for _ in 0..2 {
        if restarts {
            world.reopen();
            worker = world.worker();
        } else {
            world.commit();
        }
        world.live(DurationMs(1_000));
        let leased = world.fetch(worker, "a", 1).remove(0);
        assert_eq!(leased.payload, payload);
        world.release(worker, &leased, None);
    }
    assert_eq!(world.look(id).unwrap().payload, payload);
    let leased = world.fetch(worker, "a", 1).remove(0);
    assert_eq!(world.fail(worker, &leased).state, Some(JobState::Scheduled));
    assert_eq!(world.look(id).unwrap().max_attempts, 2);
    world.commit();
    world.now.wall = world.now.wall.plus(DurationMs(60_000));
    world.tick();
    let leased = world.fetch(worker, "a", 1).remove(0);
    world.ack(worker, &leased);
    world.commit();
    world.store.check_empty();
}

#[test]
fn a_payload_of_a_mebibyte_comes_back_whole_and_leaves_nothing() {
    for restarts in [false, true] {
        for delayed in [false, true] {
            check_large(restarts, delayed);
        }
    }
}

#[test]
fn a_large_payload_that_is_acked_at_once_leaves_nothing() {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        payload: vec![1; 100_000].into(),
        ..job("a")
    };
    world.push_all(vec![spec.clone(), spec]);
    for seals in [false, true] {
        let leased = world.fetch(worker, "a", 1).remove(0);
        if seals {
            world.commit();
        }
        world.ack(worker, &leased);
    }
    world.commit();
    world.store.check_empty();
}

#[test]
fn timers_beyond_those_in_memory_fire_all_and_in_order() {
    let mut world = World::new();
    let count = 20_000_u64;
    for from in (0..count).step_by(1000) {
        let mut specs = numbered("a", from..from + 1000);
        for (nth, spec) in specs.iter_mut().enumerate() {
            // The latest first, so that those in memory are pushed out again and again.
            let delay = 2 * (count - from) - nth as u64;
            spec.delay_ms = Some(DurationMs(delay));
        }
        world.push_unchecked(specs);
        world.seal();
    }
    assert_eq!(world.counters("a").scheduled, count);
    assert!(world.engine.schedule.count() <= 16 << 10);
    world.pass(DurationMs(count));
    let half = world.counters("a").ready;
    assert_eq!(world.counters("a").scheduled, count - half);
    world.reopen();
    world.pass(DurationMs(count));
    assert_eq!(world.counters("a").ready, count);
    assert!(half > 0 && half < count);
    world.commit();
    assert!(world.store.timers.is_empty());
}

#[test]
fn the_last_leased_job_of_a_run_is_moved_out_after_a_minute() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..10));
    world.commit();
    let jobs = world.fetch(worker, "a", 10);
    for job in &jobs[1..] {
        world.ack(worker, job);
    }
    world.commit();
    assert_eq!(world.store.packed_records(), (1, 1, 1));
    for _ in 0..6 {
        world.live(DurationMs(10_000));
        world.heartbeat(worker).unwrap();
    }
    world.commit();
    assert_eq!(world.store.packed_records(), (0, 0, 1));
    assert_eq!(world.state(jobs[0].id), Some(JobState::Leased));
    world.reopen();
    assert_eq!(world.state(jobs[0].id), Some(JobState::Leased));
    world.ack(worker, &jobs[0]);
    world.commit();
    world.store.check_empty();
    world.goodbye(worker);
    world.engine.check_drained().unwrap();
}

#[test]
fn a_job_granted_as_the_last_of_its_run_is_moved_out_too() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..3));
    world.commit();
    for granted in world.fetch(worker, "a", 2) {
        world.ack(worker, &granted);
    }
    world.fetch(worker, "a", 1);
    for _ in 0..6 {
        world.live(DurationMs(10_000));
        world.heartbeat(worker).unwrap();
    }
    world.commit();
    assert_eq!(world.store.packed_records().0, 0);
}

#[test]
fn records_go_when_the_last_of_their_jobs_is_settled() {
    let mut world = World::new();
    let worker = world.worker();
    let mut jobs = Vec::new();
    for round in 0..8 {
        world.push_all(numbered("a", round * 100..round * 100 + 100));
        world.commit();
        jobs.extend(world.fetch(worker, "a", 100));
        world.commit();
    }
    // Out of order, over many groups.
    jobs.sort_by_key(|job| job.id.as_bytes()[23]);
    for (nth, job) in jobs.iter().enumerate() {
        world.ack(worker, job);
        if nth % 50 == 0 {
            world.commit();
        }
    }
    world.commit();
    world.store.check_empty();
    world.goodbye(worker);
    world.engine.check_drained().unwrap();
}

#[test]
fn counters_add_up_and_outlive_a_restart() {
    let mut world = World::new();
    let worker = world.worker();
    let mut specs = numbered("a", 0..10);
    specs[9].delay_ms = Some(DurationMs(60_000));
    world.push_all(specs);
    let jobs = world.fetch(worker, "a", 6);
    world.ack(worker, &jobs[0]);
    world.fail(worker, &jobs[1]);
    world.release(worker, &jobs[2], None);
    world.kill(worker, "a");
    let counters = world.counters("a");
    assert_eq!(counters.pushed, 10);
    assert_eq!(
        (counters.scheduled, counters.ready, counters.leased),
        (2, 3, 3)
    );
    assert_eq!((counters.done, counters.dead, counters.deleted), (1, 1, 0));
    assert_eq!(
        (counters.granted, counters.failed, counters.released),
        (7, 2, 1)
    );
    world.reopen();
    assert_eq!(world.counters("a"), counters);
}

#[test]
fn an_engine_with_nothing_to_do_asks_for_no_wakeup() {
    let mut world = World::new();
    world.tick();
    assert_eq!(world.engine.next_wakeup(world.now), None);
    assert!(!world.engine.has_changes());
    assert!(world.engine.seal(world.now).is_none());
}
