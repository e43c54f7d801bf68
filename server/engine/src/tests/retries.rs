//! Failures and losses: what they count, when the next attempt comes, when there is none.

use ganger_protocol::{
    DurationMs, JobId, JobSpec, RetryPolicy, SessionId,
    job::{DeadReason, JobState},
    limits::{BACKTRACE_BYTES_MAX, ERROR_MESSAGE_BYTES_MAX},
    request::FailItem,
    retry::Curve,
};

use crate::{
    Options,
    testing::{World, fail_item, job, small},
};

fn fixed(ms: u64) -> Option<Box<RetryPolicy>> {
    Some(Box::new(RetryPolicy::fixed(DurationMs(ms))))
}

/// Fails a job again and again; the delays that its replies named.
fn delays(policy: RetryPolicy, failures: usize) -> Vec<u64> {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        backoff: Some(Box::new(policy)),
        ..job("a")
    };
    world.push(spec);
    let mut delays = Vec::new();
    for _ in 0..failures {
        let leased = world.fetch(worker, "a", 1).remove(0);
        let result = world.fail(worker, &leased);
        assert_eq!(result.state, Some(JobState::Scheduled));
        let delay = result.run_at.unwrap().since(world.now.wall);
        delays.push(delay.0);
        world.now.wall = world.now.wall.plus(DurationMs(delay.0 - 1));
        world.tick();
        assert_eq!(world.fetch(worker, "a", 1).len(), 0, "never early");
        world.now.wall = world.now.wall.plus(DurationMs(1));
        world.tick();
    }
    delays
}

#[test]
fn each_curve_gives_its_delays() {
    let plain = RetryPolicy::fixed(DurationMs(2_000));
    assert_eq!(delays(plain.clone(), 3), [2_000, 2_000, 2_000]);
    let exponential = RetryPolicy {
        curve: Curve::Exponential,
        factor: 3,
        cap_ms: DurationMs(20_000),
        ..plain.clone()
    };
    assert_eq!(delays(exponential, 4), [2_000, 6_000, 18_000, 20_000]);
    let poly = RetryPolicy {
        curve: Curve::Poly,
        factor: 2,
        ..plain.clone()
    };
    assert_eq!(delays(poly, 4), [2_000, 3_000, 6_000, 11_000]);
    let table = RetryPolicy {
        curve: Curve::Table,
        table_ms: vec![DurationMs(10), DurationMs(500)],
        ..plain
    };
    assert_eq!(delays(table, 3), [10, 500, 500]);
}

#[test]
fn the_default_curve_has_jitter_within_its_range() {
    for (nth, delay) in delays(RetryPolicy::default(), 5).into_iter().enumerate() {
        let n = nth as u64;
        let base = 15_000 + n.pow(4) * 1_000;
        let jitter = (30_000 * (n + 1)).max(base / 10);
        assert!((base..=base + jitter).contains(&delay), "{n}: {delay}");
    }
}

#[test]
fn a_worker_may_say_when_the_next_attempt_comes() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("a"));
    let leased = world.fetch(worker, "a", 1).remove(0);
    let item = FailItem {
        retry_in_ms: Some(DurationMs(123)),
        ..fail_item(leased.id, leased.lease)
    };
    let result = world.fail_with(worker, item);
    assert_eq!(result.run_at, Some(world.now.wall.plus(DurationMs(123))));
}

#[test]
fn a_worker_may_declare_a_job_dead() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("a"));
    let id = world.kill(worker, "a");
    let view = world.look(id).unwrap();
    assert_eq!(
        (view.state, view.reason),
        (JobState::Dead, Some(DeadReason::Worker))
    );
    assert_eq!(view.closed_at, Some(world.now.wall));
}

#[test]
fn a_discarded_job_is_deleted_with_all_that_was_kept_of_it() {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        backoff: fixed(10),
        ..job("a")
    };
    world.push(spec);
    let leased = world.fetch(worker, "a", 1).remove(0);
    world.fail(worker, &leased);
    world.live(DurationMs(10));
    world.commit();
    let leased = world.fetch(worker, "a", 1).remove(0);
    let item = FailItem {
        discard: true,
        ..fail_item(leased.id, leased.lease)
    };
    let result = world.fail_with(worker, item);
    assert_eq!((result.state, result.err), (None, None));
    assert_eq!(world.state(leased.id), None);
    assert_eq!(world.counters("a").deleted, 1);
    world.commit();
    world.store.check_empty();
}

#[track_caller]
fn check_max_attempts(max: u32) {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        max_attempts: Some(max),
        backoff: fixed(1),
        ..job("a")
    };
    let id = world.push(spec);
    for failure in 1..=max {
        let leased = world.fetch(worker, "a", 1).remove(0);
        let expected = match failure == max {
            true => JobState::Dead,
            false => JobState::Scheduled,
        };
        assert_eq!(
            world.fail(worker, &leased).state,
            Some(expected),
            "{failure} of {max}"
        );
        world.live(DurationMs(1));
    }
    let view = world.look(id).unwrap();
    assert_eq!(
        (view.failures, view.reason),
        (max, Some(DeadReason::Attempts))
    );
}

#[test]
fn a_job_is_dead_in_the_transition_in_which_failures_reach_max_attempts() {
    for max in [1, 2, 5] {
        check_max_attempts(max);
    }
}

#[test]
fn only_failures_use_up_max_attempts() {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        max_attempts: Some(1),
        ..job("a")
    };
    let id = world.push(spec);
    for _ in 0..5 {
        let leased = world.fetch(worker, "a", 1).remove(0);
        world.release(worker, &leased, None);
    }
    let view = world.look(id).unwrap();
    assert_eq!(
        (view.state, view.attempt, view.failures),
        (JobState::Ready, 5, 0)
    );
}

#[test]
fn the_last_ten_errors_are_kept_the_oldest_first() {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        backoff: fixed(1),
        ..job("a")
    };
    let id = world.push(spec);
    for nth in 1..=13 {
        let leased = world.fetch(worker, "a", 1).remove(0);
        let item = FailItem {
            message: nth.to_string(),
            // Long ones and short ones share slots.
            backtrace: "x".repeat(if nth <= 5 { 16_000 } else { 0 }),
            ..fail_item(leased.id, leased.lease)
        };
        world.fail_with(worker, item);
        if nth % 3 == 0 {
            world.commit();
        }
        world.live(DurationMs(1));
        world.heartbeat(worker).unwrap();
    }
    let errors = world.look(id).unwrap().errors;
    let messages: Vec<_> = errors.iter().map(|error| error.message.as_str()).collect();
    assert_eq!(
        messages,
        ["4", "5", "6", "7", "8", "9", "10", "11", "12", "13"]
    );
    assert_eq!(errors[9].attempt, 13);
    let leased = world.fetch(worker, "a", 1).remove(0);
    world.ack(worker, &leased);
    world.commit();
    world.store.check_empty();
}

#[test]
fn long_errors_are_cut() {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(job("a"));
    let leased = world.fetch(worker, "a", 1).remove(0);
    let item = FailItem {
        message: "é".repeat(ERROR_MESSAGE_BYTES_MAX),
        backtrace: "b".repeat(BACKTRACE_BYTES_MAX + 1),
        ..fail_item(leased.id, leased.lease)
    };
    world.fail_with(worker, item);
    let error = world.look(id).unwrap().errors.remove(0);
    assert_eq!(error.message.len(), ERROR_MESSAGE_BYTES_MAX);
    assert_eq!(error.backtrace.len(), BACKTRACE_BYTES_MAX);
}

/// A worker takes the job and is lost with it.
fn lose(world: &mut World) -> SessionId {
    let worker = world.worker();
    assert_eq!(world.fetch(worker, "a", 1).len(), 1);
    world.live(DurationMs(15_000));
    worker
}

#[test]
fn a_first_loss_costs_nothing_later_ones_wait_and_the_fifth_is_poison() {
    let mut world = World::new();
    let id = world.push(job("a"));
    lose(&mut world);
    assert_eq!(world.state(id), Some(JobState::Ready));
    for in_row in 2..5_u32 {
        lose(&mut world);
        let view = world.look(id).unwrap();
        assert_eq!((view.state, view.losses), (JobState::Scheduled, in_row));
        let delay = view.run_at.unwrap().since(world.now.wall);
        let base = 10_000 << (in_row - 2);
        assert!(
            (base / 2..=base * 3 / 2).contains(&delay.0),
            "{in_row}: {delay}"
        );
        world.live(delay);
    }
    lose(&mut world);
    let view = world.look(id).unwrap();
    assert_eq!(
        (view.state, view.reason),
        (JobState::Dead, Some(DeadReason::Poison))
    );
    assert_eq!((view.losses, view.failures, view.attempt), (5, 0, 5));
    assert_eq!(world.counters("a").lost, 5);
}

#[test]
fn poison_can_be_turned_off() {
    let mut world = World::with(Options {
        poison_losses: 0,
        ..small()
    });
    let id = world.push(job("a"));
    for _ in 0..8 {
        lose(&mut world);
        world.live(DurationMs(1_500_000));
        assert_eq!(world.state(id), Some(JobState::Ready));
    }
}

#[track_caller]
fn check_ends_row(answer: impl Fn(&mut World, SessionId, &ganger_protocol::job::GrantedJob)) {
    let mut world = World::new();
    let spec = JobSpec {
        backoff: fixed(1),
        ..job("a")
    };
    let id: JobId = world.push(spec);
    lose(&mut world);
    let worker = world.worker();
    let leased = world.fetch(worker, "a", 1).remove(0);
    answer(&mut world, worker, &leased);
    world.live(DurationMs(1));
    lose(&mut world);
    assert_eq!(world.state(id), Some(JobState::Ready), "a first loss again");
    assert_eq!(world.look(id).unwrap().losses, 2);
}

#[test]
fn any_answer_ends_a_row_of_losses() {
    check_ends_row(|world, worker, job| {
        world.fail(worker, job);
    });
    check_ends_row(|world, worker, job| {
        world.release(worker, job, None);
    });
}
