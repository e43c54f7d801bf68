//! Dead jobs: bounded by count and age, revived, purged.

use ganger_protocol::{
    DurationMs, JobId, JobSpec, SessionId, Timestamp, job::JobState, request::DeadSelect,
};

use crate::{
    queue::{DEAD_MAX_DEFAULT, DEAD_RETENTION_DEFAULT},
    testing::{World, ids, job, numbered},
};

fn world_with_dead(count: u64) -> (World, SessionId, Vec<JobId>) {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..count));
    let mut dead = Vec::new();
    for _ in 0..count {
        world.now.wall = world.now.wall.plus(DurationMs(10));
        dead.push(world.kill(worker, "a"));
    }
    (world, worker, dead)
}

fn of_queue(limit: u32) -> DeadSelect {
    DeadSelect {
        queue: Some("a".parse().unwrap()),
        limit: Some(limit),
        ..DeadSelect::default()
    }
}

fn of_ids(jobs: &[JobId]) -> DeadSelect {
    DeadSelect {
        jobs: jobs.to_vec(),
        ..DeadSelect::default()
    }
}

#[test]
fn dead_jobs_are_kept_for_half_a_year() {
    let (mut world, _, dead) = world_with_dead(1);
    world.commit();
    let rest = DEAD_RETENTION_DEFAULT.0 - 1;
    world.now.wall = world.now.wall.plus(DurationMs(rest));
    world.tick();
    assert_eq!(world.state(dead[0]), Some(JobState::Dead));
    world.now.wall = world.now.wall.plus(DurationMs(1));
    world.tick();
    assert_eq!(world.state(dead[0]), None);
    assert_eq!(world.counters("a").deleted, 1);
    world.commit();
    world.store.check_empty();
}

#[test]
fn a_queue_keeps_only_its_youngest_dead_jobs() {
    let mut world = World::new();
    let worker = world.worker();
    let extra = 300;
    let count = DEAD_MAX_DEFAULT + extra;
    let mut first = None;
    for from in (0..count).step_by(100) {
        world.push_all(numbered("a", from..from + 100));
        for granted in world.fetch(worker, "a", 100) {
            let item = ganger_protocol::request::FailItem {
                dead: true,
                ..crate::testing::fail_item(granted.id, granted.lease)
            };
            first.get_or_insert(granted.id);
            // Straight to the engine: checking ten thousand times what holds takes too long.
            let leases = vec![item];
            let fail = ganger_protocol::request::Fail { leases };
            world.send_unchecked(worker, ganger_protocol::request::Operation::Fail(fail));
        }
        world.now.wall = world.now.wall.plus(DurationMs(1));
        if from % 1000 == 0 {
            world.seal();
        }
    }
    assert_eq!(world.counters("a").dead, count);
    world.tick();
    assert_eq!(world.counters("a").dead, DEAD_MAX_DEFAULT);
    assert_eq!(world.state(first.unwrap()), None);
    assert_eq!(world.counters("a").deleted, extra);
    world.reopen();
    world.tick();
    assert_eq!(world.counters("a").dead, DEAD_MAX_DEFAULT);
}

#[test]
fn a_revived_job_is_ready_at_the_tail_without_failures_and_with_its_history() {
    let (mut world, worker, dead) = world_with_dead(1);
    let behind = world.push(job("a"));
    let reply = world.revive(of_ids(&dead));
    assert_eq!(
        (reply.count, reply.more, reply.not_found),
        (1, false, vec![])
    );
    let view = world.look(dead[0]).unwrap();
    assert_eq!(
        (view.state, view.failures, view.attempt),
        (JobState::Ready, 0, 1)
    );
    assert_eq!(
        (view.reason, view.closed_at, view.errors.len()),
        (None, None, 1)
    );
    assert_eq!(ids(&world.fetch(worker, "a", 2)), [behind, dead[0]]);
}

#[test]
fn a_revived_job_that_dies_again_is_kept_for_half_a_year_from_then() {
    let (mut world, worker, dead) = world_with_dead(1);
    let half = DurationMs(DEAD_RETENTION_DEFAULT.0 / 2);
    world.now.wall = world.now.wall.plus(half);
    world.revive(of_ids(&dead));
    world.kill(worker, "a");
    world.now.wall = world.now.wall.plus(half).plus(DurationMs(1_000));
    world.tick();
    assert_eq!(world.state(dead[0]), Some(JobState::Dead));
}

#[test]
fn ids_that_are_not_dead_are_told() {
    let (mut world, _, dead) = world_with_dead(1);
    let ready = world.push(job("b"));
    let reply = world.purge(of_ids(&[ready, dead[0], dead[0]]));
    assert_eq!((reply.count, reply.not_found), (1, vec![ready]));
    let reply = world.purge(of_ids(&dead));
    assert_eq!((reply.count, reply.not_found), (0, dead));
}

#[track_caller]
fn check_pages(sealed: bool) {
    let (mut world, _, dead) = world_with_dead(5);
    let mut gone = Vec::new();
    for (count, more) in [(2, true), (2, true), (1, false), (0, false)] {
        if sealed {
            world.commit();
        }
        let reply = world.purge(of_queue(2));
        assert_eq!((reply.count, reply.more), (count, more), "sealed: {sealed}");
        gone.push(count);
        let left: Vec<_> = dead.iter().map(|id| world.state(*id).is_some()).collect();
        let removed = usize::try_from(gone.iter().sum::<u64>()).unwrap();
        assert!(
            left[..removed].iter().all(|is_left| !is_left),
            "the oldest first"
        );
    }
}

#[test]
fn the_oldest_dead_jobs_of_a_queue_go_in_pages() {
    check_pages(true);
    check_pages(false);
}

#[test]
fn only_jobs_that_died_before_a_time_are_meant() {
    let (mut world, _, dead) = world_with_dead(4);
    let closed_at = world.look(dead[2]).unwrap().closed_at.unwrap();
    let select = DeadSelect {
        before: Some(closed_at),
        ..of_queue(10)
    };
    let reply = world.revive(select.clone());
    assert_eq!((reply.count, reply.more), (2, false));
    let none = DeadSelect {
        before: Some(Timestamp(1)),
        ..select
    };
    assert_eq!(world.purge(none).count, 0);
}

#[test]
fn dead_jobs_of_another_namespace_are_out_of_reach() {
    let (mut world, _, dead) = world_with_dead(1);
    let reply = world.within("other", |world| world.purge(of_ids(&dead)));
    assert_eq!((reply.count, reply.not_found), (0, dead));
}

#[test]
fn a_dead_job_outlives_a_restart_and_can_be_revived_then() {
    let (mut world, _, dead) = world_with_dead(3);
    world.reopen();
    assert_eq!(world.revive(of_queue(1000)).count, 3);
    let worker = world.worker();
    assert_eq!(ids(&world.fetch(worker, "a", 9)), dead);
}

#[test]
fn a_dead_job_with_a_large_payload_comes_back_whole() {
    let mut world = World::new();
    let worker = world.worker();
    let payload = vec![3; 1 << 20];
    let spec = JobSpec {
        payload: payload.clone().into(),
        ..job("a")
    };
    let id = world.push(spec);
    world.commit();
    world.kill(worker, "a");
    world.reopen();
    world.revive(of_ids(&[id]));
    let worker = world.worker();
    let leased = world.fetch(worker, "a", 1).remove(0);
    assert_eq!(leased.payload, payload);
    world.ack(worker, &leased);
    world.commit();
    world.store.check_empty();
}
