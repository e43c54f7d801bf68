//! Purge: what is gone with the answer, and what a sweep leaves behind it.

use ganger_protocol::{
    DurationMs, ErrorCode, JobId, JobSpec, WireError,
    job::{JobState, Unique, UniqueUntil},
    queue::OneQueue,
    request::{DeadSelect, Operation, Push},
    response::ReplyBody,
};

use crate::testing::{World, fail_item, job, numbered, tiny};

fn one(queue: &str) -> OneQueue {
    OneQueue {
        queue: queue.parse().unwrap(),
    }
}

fn try_delete(world: &mut World, queue: &str) -> Result<ReplyBody, WireError> {
    world.ask(None, Operation::QueueDelete(one(queue)))
}

/// Purges a queue; how many jobs that removed.
fn purge(world: &mut World, queue: &str) -> u64 {
    match world.ask(None, Operation::QueuePurge(one(queue))) {
        Ok(ReplyBody::Purged(reply)) => reply.removed,
        other => panic!("{other:?}"),
    }
}

/// Lets the sweep come to its end.
fn sweep(world: &mut World) {
    for _ in 0..50 {
        world.commit();
        world.pass(DurationMs(1));
    }
    world.commit();
}

fn keyed(key: &str, until: UniqueUntil) -> JobSpec {
    JobSpec {
        unique: Some(Box::new(Unique {
            until,
            ..Unique::named(key.parse().unwrap())
        })),
        ..job("q")
    }
}

fn later(spec: JobSpec) -> JobSpec {
    JobSpec {
        delay_ms: Some(DurationMs::from_mins(1)),
        ..spec
    }
}

/// A job in every state that a queue can have, with everything that hangs on one.
fn fill(world: &mut World) -> Vec<JobId> {
    let worker = world.worker();
    world.push(job("q"));
    let mut jobs = vec![world.kill(worker, "q")];
    jobs.push(world.push(keyed("leased", UniqueUntil::Settled)));
    assert_eq!(world.fetch(worker, "q", 1).len(), 1);
    jobs.push(world.push(keyed("ready", UniqueUntil::Settled)));
    jobs.push(world.push(later(keyed("scheduled", UniqueUntil::Success))));
    jobs.push(world.push(JobSpec {
        expires_at: Some(world.now.wall.plus(DurationMs::from_mins(2))),
        payload: vec![7; 20_000].into(),
        ..job("q")
    }));
    jobs.extend(world.push_all(numbered("q", 0..100)));
    jobs
}

#[test]
fn with_the_answer_no_job_of_the_queue_is_kept_and_all_are_counted_as_deleted() {
    for commits in [false, true] {
        let mut world = World::new();
        let jobs = fill(&mut world);
        if commits {
            world.commit();
        }
        assert_eq!(purge(&mut world, "q"), jobs.len() as u64);
        let counters = world.counters("q");
        assert_eq!((counters.kept(), counters.deleted), (0, jobs.len() as u64));
        assert_eq!(counters.pushed, jobs.len() as u64, "I12");
        for id in jobs {
            assert_eq!(world.state(id), None, "{id:?}");
        }
        let worker = world.worker();
        assert_eq!(world.fetch(worker, "q", 10), []);
        let select = DeadSelect {
            queue: Some("q".parse().unwrap()),
            ..DeadSelect::default()
        };
        assert_eq!(world.revive(select).count, 0);
    }
}

#[test]
fn a_sweep_leaves_nothing_of_the_old_number() {
    for options in [crate::testing::small(), tiny()] {
        let mut world = World::with(options);
        fill(&mut world);
        purge(&mut world, "q");
        sweep(&mut world);
        world.store.check_empty();
        assert_eq!(world.store.recovered().queues.len(), 1);
        assert_eq!(world.engine.sweeps_count(), 0);
    }
}

#[test]
fn a_sweep_goes_on_after_a_restart_wherever_it_stood() {
    for slices in 0..4 {
        let mut world = World::new();
        world.push_all(numbered("q", 0..900));
        fill(&mut world);
        purge(&mut world, "q");
        world.commit();
        for _ in 0..slices {
            world.pass(DurationMs(1));
        }
        world.reopen();
        assert_eq!(world.counters("q").kept(), 0);
        let worker = world.worker();
        assert_eq!(world.fetch(worker, "q", 10), []);
        sweep(&mut world);
        world.store.check_empty();
        assert_eq!(world.engine.sweeps_count(), 0);
    }
}

#[test]
fn a_push_behind_a_purge_is_a_job_of_the_new_number_and_stays() {
    let mut world = World::new();
    fill(&mut world);
    purge(&mut world, "q");
    let new = world.push(job("q"));
    sweep(&mut world);
    assert_eq!(world.state(new), Some(JobState::Ready));
    let worker = world.worker();
    assert_eq!(world.fetch(worker, "q", 10)[0].id, new);
    let counters = world.counters("q");
    assert_eq!((counters.leased, counters.ready), (1, 0));
}

#[test]
fn a_worker_is_told_that_its_lease_is_lost_and_its_ack_finds_no_job() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("q"));
    let granted = world.fetch(worker, "q", 1).remove(0);
    purge(&mut world, "q");
    let lost = world.heartbeat(worker).unwrap().lost;
    assert_eq!(lost, [crate::testing::lease_ref(&granted)]);
    let error = world.ack(worker, &granted).err.unwrap();
    assert_eq!(error.code, ErrorCode::LeaseLost);
    assert_eq!(error.state.as_deref(), Some("gone"));
    let item = fail_item(granted.id, granted.lease);
    let error = world.fail_with(worker, item).err.unwrap();
    assert_eq!(error.code, ErrorCode::LeaseLost);
    sweep(&mut world);
    world.store.check_empty();
}

#[test]
fn a_fetch_that_waits_on_a_purged_queue_gets_the_next_job() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(later(job("q")));
    let waiting = world.wait(worker, &["q"]);
    purge(&mut world, "q");
    let id = world.push(job("q"));
    world.commit();
    assert_eq!(world.waited(waiting).unwrap()[0].id, id);
}

#[test]
fn keys_of_purged_jobs_are_free_at_once_and_a_new_holder_keeps_its_own() {
    for key in ["leased", "ready", "scheduled"] {
        for commits in [false, true] {
            let mut world = World::new();
            fill(&mut world);
            if commits {
                world.commit();
            }
            purge(&mut world, "q");
            let spec = || keyed(key, UniqueUntil::Settled);
            let new = world.push_as(None, Push::of(vec![spec()])).unwrap();
            assert!(!new[0].existing, "{key} is free");
            sweep(&mut world);
            let second = world.push_as(None, Push::of(vec![spec()])).unwrap();
            assert_eq!(second[0].id, new[0].id, "{key} is held by the new one");
        }
    }
}

#[test]
fn a_key_until_ttl_outlives_a_purge_as_it_outlives_its_job() {
    let mut world = World::new();
    let mut spec = keyed("t", UniqueUntil::Ttl);
    if let Some(unique) = spec.unique.as_mut() {
        unique.ttl_ms = Some(DurationMs::from_mins(5));
    }
    world.push(spec.clone());
    purge(&mut world, "q");
    sweep(&mut world);
    let second = world.push_as(None, Push::of(vec![spec])).unwrap();
    assert!(second[0].existing);
}

#[test]
fn timers_of_purged_jobs_do_nothing() {
    let mut world = World::new();
    fill(&mut world);
    purge(&mut world, "q");
    world.commit();
    world.now.wall = world.now.wall.plus(DurationMs::from_mins(10));
    world.tick();
    world.commit();
    assert_eq!(world.counters("q").kept(), 0);
    sweep(&mut world);
    world.store.check_empty();
}

#[test]
fn a_purge_of_a_purge_removes_only_what_came_between() {
    let mut world = World::new();
    fill(&mut world);
    purge(&mut world, "q");
    world.push(job("q"));
    assert_eq!(purge(&mut world, "q"), 1);
    assert_eq!(purge(&mut world, "q"), 0);
    sweep(&mut world);
    world.store.check_empty();
    assert_eq!(world.engine.sweeps_count(), 0);
}

#[test]
fn a_queue_with_jobs_is_not_deleted_and_an_empty_one_is_and_can_be_made_again() {
    let mut world = World::new();
    world.push(job("q"));
    let error = try_delete(&mut world, "q").unwrap_err();
    assert_eq!((error.code, error.actual), (ErrorCode::Conflict, Some(1)));
    purge(&mut world, "q");
    let worker = world.worker();
    let waiting = world.wait(worker, &["q"]);
    try_delete(&mut world, "q").unwrap();
    let error = try_delete(&mut world, "q").unwrap_err();
    assert_eq!(error.code, ErrorCode::NotFound);
    sweep(&mut world);
    assert_eq!(world.store.recovered().queues.len(), 0);
    let id = world.push(job("q"));
    world.commit();
    assert_eq!(world.waited(waiting).unwrap()[0].id, id);
    assert_eq!(world.counters("q").pushed, 1);
}
