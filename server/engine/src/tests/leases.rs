//! May this attempt take so long? Numbers, deadlines, late and repeated answers, forged ones.

use ganger_protocol::{DurationMs, ErrorCode, JobSpec, LeaseId, job::JobState};

use crate::testing::{World, fail_item, job, numbered};

#[test]
fn lease_numbers_grow_over_restarts_and_crashes() {
    let mut world = World::new();
    world.push_all(numbered("a", 0..20));
    world.commit();
    let mut last = LeaseId(0);
    for round in 0..6 {
        let worker = world.worker();
        for job in world.fetch(worker, "a", 2) {
            assert!(job.lease > last, "round {round}");
            last = job.lease;
        }
        match round % 2 {
            0 => world.reopen(),
            _ => {
                // The grants are not durable: the jobs are granted again, under other numbers.
                world.crash_after(world.durable);
                world.commit();
            }
        }
    }
}

#[test]
fn a_lease_that_passes_its_deadline_is_a_failure_of_kind_timeout() {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        timeout_ms: Some(DurationMs(5_000)),
        ..job("a")
    };
    let id = world.push(spec);
    assert_eq!(world.fetch(worker, "a", 1)[0].timeout_ms, DurationMs(5_000));
    world.live(DurationMs(4_999));
    assert_eq!(world.state(id), Some(JobState::Leased));
    world.live(DurationMs(1));
    let view = world.look(id).unwrap();
    assert_eq!((view.state, view.failures), (JobState::Scheduled, 1));
    assert_eq!((view.errors.len(), &*view.errors[0].kind), (1, "timeout"));
    assert_eq!(world.counters("a").failed, 1);
}

#[test]
fn an_attempt_takes_thirty_minutes_unless_it_says_otherwise() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("a"));
    assert_eq!(
        world.fetch(worker, "a", 1)[0].timeout_ms,
        DurationMs::from_mins(30)
    );
}

#[test]
fn an_extension_moves_a_deadline_later_and_never_earlier() {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        timeout_ms: Some(DurationMs(10_000)),
        ..job("a")
    };
    let id = world.push(spec);
    let leased = world.fetch(worker, "a", 1).remove(0);
    let extended = world.extend(worker, &leased, DurationMs(2_000));
    assert_eq!(extended.timeout_ms, Some(DurationMs(10_000)));
    let extended = world.extend(worker, &leased, DurationMs(12_000));
    assert_eq!(extended.timeout_ms, Some(DurationMs(12_000)));
    world.live(DurationMs(11_999));
    assert_eq!(world.state(id), Some(JobState::Leased));
    world.live(DurationMs(1));
    assert_eq!(world.state(id), Some(JobState::Scheduled));
}

#[test]
fn an_extension_outlives_a_restart() {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        timeout_ms: Some(DurationMs(60_000)),
        ..job("a")
    };
    let id = world.push(spec);
    let leased = world.fetch(worker, "a", 1).remove(0);
    world.commit();
    world.extend(worker, &leased, DurationMs(90_000));
    world.reopen();
    world.resume(worker, &[crate::testing::lease_ref(&leased)]);
    for _ in 0..8 {
        world.live(DurationMs(10_000));
        world.heartbeat(worker).unwrap();
    }
    assert_eq!(world.state(id), Some(JobState::Leased));
    world.live(DurationMs(10_000));
    assert_eq!(world.state(id), Some(JobState::Scheduled));
}

#[test]
fn a_repeated_answer_is_told_that_it_was_applied_already() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..3));
    let jobs = world.fetch(worker, "a", 3);
    world.ack(worker, &jobs[0]);
    world.fail(worker, &jobs[1]);
    world.release(worker, &jobs[2], None);
    assert!(world.ack(worker, &jobs[0]).already);
    assert!(world.fail(worker, &jobs[1]).already);
    assert!(world.release(worker, &jobs[2], None).already);
    let counters = world.counters("a");
    assert_eq!(
        (counters.done, counters.failed, counters.released),
        (1, 1, 1)
    );
}

#[test]
fn another_answer_than_the_first_is_refused_with_the_state() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..2));
    world.commit();
    let jobs = world.fetch(worker, "a", 2);
    world.ack(worker, &jobs[0]);
    world.fail(worker, &jobs[1]);
    world.commit();
    let state = |error: Option<ganger_protocol::WireError>| {
        let error = error.unwrap();
        assert_eq!(error.code, ErrorCode::LeaseLost);
        error.state.unwrap()
    };
    assert_eq!(state(world.fail(worker, &jobs[0]).err), "gone");
    assert_eq!(state(world.ack(worker, &jobs[1]).err), "scheduled");
    assert_eq!(
        state(world.release(worker, &jobs[1], None).err),
        "scheduled"
    );
    assert_eq!(
        state(world.extend(worker, &jobs[1], DurationMs(9_000)).err),
        "scheduled"
    );
}

/// An old lease is refused by every answer, whoever sends it, and changes nothing.
#[track_caller]
fn check_stale(
    world: &mut World,
    worker: ganger_protocol::SessionId,
    job: &ganger_protocol::job::GrantedJob,
    state: &str,
) {
    let before = world.counters("a");
    let errors = [
        world.ack(worker, job).err,
        world.fail(worker, job).err,
        world.release(worker, job, None).err,
        world.extend(worker, job, DurationMs(9_000)).err,
    ];
    for error in errors {
        let error = error.expect("never ok");
        assert_eq!(error.code, ErrorCode::LeaseLost);
        assert_eq!(error.state.as_deref(), Some(state));
    }
    assert_eq!(world.counters("a"), before);
}

#[test]
fn a_lease_that_timed_out_is_lost_whatever_becomes_of_its_job() {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        timeout_ms: Some(DurationMs(1_000)),
        backoff: Some(Box::new(ganger_protocol::RetryPolicy::fixed(DurationMs(
            1_000,
        )))),
        ..job("a")
    };
    world.push(spec);
    let old = world.fetch(worker, "a", 1).remove(0);
    world.live(DurationMs(1_000));
    check_stale(&mut world, worker, &old, "scheduled");
    world.live(DurationMs(1_000));
    check_stale(&mut world, worker, &old, "ready");
    let new = world.fetch(worker, "a", 1).remove(0);
    check_stale(&mut world, worker, &old, "leased");
    world.ack(worker, &new);
    check_stale(&mut world, worker, &old, "gone");
    world.commit();
    check_stale(&mut world, worker, &old, "gone");
}

#[test]
fn a_repeated_ack_after_a_restart_is_lost_and_never_ok() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..2));
    world.commit();
    let jobs = world.fetch(worker, "a", 2);
    world.ack(worker, &jobs[0]);
    world.reopen();
    let error = world.ack(worker, &jobs[0]).err.unwrap();
    assert_eq!(
        (error.code, error.state.as_deref()),
        (ErrorCode::LeaseLost, Some("gone"))
    );
}

#[test]
fn a_pair_of_one_job_and_the_lease_of_another_is_refused() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..2));
    let jobs = world.fetch(worker, "a", 2);
    let error = world
        .ack_pair(worker, jobs[0].id, jobs[1].lease)
        .err
        .unwrap();
    assert_eq!(error.state.as_deref(), Some("leased"));
    world.ack(worker, &jobs[1]);
    let error = world
        .ack_pair(worker, jobs[0].id, jobs[1].lease)
        .err
        .unwrap();
    assert_eq!(error.state.as_deref(), Some("leased"));
    assert_eq!(world.counters("a").done, 1);
}

#[test]
fn nothing_crosses_namespaces() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..2));
    let jobs = world.fetch(worker, "a", 2);
    world.ack(worker, &jobs[1]);
    world.within("other", |world| {
        let spy = world.worker();
        assert_eq!(world.look(jobs[0].id), None);
        assert_eq!(world.fetch(spy, "*", 9).len(), 0);
        for job in &jobs {
            for error in [
                world.ack(spy, job).err,
                world.fail(spy, job).err,
                world.release(spy, job, None).err,
                world.extend(spy, job, DurationMs(9_000)).err,
            ] {
                assert_eq!(error.expect("refused").state.as_deref(), Some("gone"));
            }
        }
    });
    assert_eq!(world.state(jobs[0].id), Some(JobState::Leased));
}

#[test]
fn queues_of_the_same_name_in_two_namespaces_are_two_queues() {
    let mut world = World::new();
    let mine = world.push(job("a"));
    let theirs = world.within("other", |world| world.push(job("a")));
    assert_ne!(mine, theirs);
    assert_eq!(world.counters("a").pushed, 1);
}

#[test]
fn an_ack_in_the_group_of_its_push_leaves_nothing_behind() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("a"));
    let leased = world.fetch(worker, "a", 1).remove(0);
    world.ack(worker, &leased);
    world.commit();
    world.store.check_empty();
}

#[test]
fn an_acked_job_is_gone_at_once_and_not_only_when_it_is_sealed() {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(job("a"));
    world.commit();
    let leased = world.fetch(worker, "a", 1).remove(0);
    world.ack(worker, &leased);
    assert_eq!(world.state(id), None);
}

#[test]
fn after_an_ack_there_is_no_grant_of_that_job_ever() {
    // A lease that was granted from another run than the job's own is not taken up again.
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..3));
    world.commit();
    let jobs = world.fetch(worker, "a", 2);
    world.release(worker, &jobs[0], None);
    world.commit();
    let again = world.fetch(worker, "a", 2);
    assert_eq!(again[0].id, jobs[0].id);
    world.commit();
    world.ack(worker, &again[0]);
    world.reopen();
    assert_eq!(world.state(jobs[0].id), None);
    assert_eq!(world.engine.leases(), 2);
    assert!(world.ack(worker, &again[0]).err.is_some());
}

#[test]
fn one_request_may_fail_one_lease_twice() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("a"));
    world.commit();
    let leased = world.fetch(worker, "a", 1).remove(0);
    let item = fail_item(leased.id, leased.lease);
    let fail = ganger_protocol::request::Fail {
        leases: vec![item.clone(), item],
    };
    let caller = world.send(
        Some(worker),
        ganger_protocol::request::Operation::Fail(fail),
    );
    let ganger_protocol::response::ReplyBody::Lease(reply) =
        world.reply(caller).unwrap().result.unwrap()
    else {
        panic!("a lease reply");
    };
    assert_eq!(
        (reply.results[0].already, reply.results[1].already),
        (false, true)
    );
    assert_eq!(world.look(leased.id).unwrap().failures, 1);
}

#[test]
fn a_release_with_a_delay_waits_and_costs_nothing() {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(job("a"));
    let leased = world.fetch(worker, "a", 1).remove(0);
    let result = world.release(worker, &leased, Some(DurationMs(3_000)));
    assert_eq!(result.state, Some(JobState::Scheduled));
    assert_eq!(result.run_at, Some(world.now.wall.plus(DurationMs(3_000))));
    let view = world.look(id).unwrap();
    assert_eq!((view.attempt, view.failures, view.releases), (1, 0, 1));
    world.live(DurationMs(2_999));
    assert_eq!(world.state(id), Some(JobState::Scheduled));
    world.live(DurationMs(1));
    let again = world.fetch(worker, "a", 1).remove(0);
    assert_eq!((again.attempt, again.failures), (2, 0));
}
