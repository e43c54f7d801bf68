//! In which order jobs are granted, and never early.

use ganger_protocol::{DurationMs, JobSpec, Timestamp, job::JobState, request::Fetch};

use crate::testing::{BEGIN, World, fetch_of, ids, job, numbered};

#[test]
fn jobs_of_a_queue_come_in_the_order_of_their_pushes() {
    let mut world = World::new();
    let worker = world.worker();
    let mut pushed = world.push_all(numbered("a", 0..5));
    world.commit();
    pushed.extend(world.push_all(numbered("a", 5..9)));
    assert_eq!(ids(&world.fetch(worker, "a", 100)), pushed);
}

#[test]
fn a_higher_priority_goes_first_over_the_whole_queue() {
    let mut world = World::new();
    let worker = world.worker();
    let with = |priority| JobSpec {
        priority: Some(priority),
        ..job("a")
    };
    let pushed = world.push_all([0, 5, 9, 5, 9].map(with).to_vec());
    let expected = [2, 4, 1, 3, 0].map(|nth: usize| pushed[nth]);
    assert_eq!(ids(&world.fetch(worker, "a", 10)), expected);
}

#[test]
fn a_job_without_a_priority_has_priority_five() {
    let mut world = World::new();
    let id = world.push(job("a"));
    assert_eq!(world.look(id).unwrap().priority, 5);
}

#[test]
fn a_strict_fetch_empties_the_first_queue_before_the_second() {
    let mut world = World::new();
    let worker = world.worker();
    let first = world.push_all(numbered("a", 0..3));
    let second = world.push_all(numbered("b", 0..3));
    let reply = world.fetch_reply(worker, fetch_of(&["b", "a"], 4));
    let expected = [&second[..], &first[..1]].concat();
    assert_eq!(ids(&reply.jobs), expected);
}

#[test]
fn a_pattern_means_all_queues_with_its_prefix_in_the_order_of_their_names() {
    let mut world = World::new();
    let worker = world.worker();
    for queue in ["mail.z", "sms", "mail.a"] {
        world.push(job(queue));
    }
    let reply = world.fetch_reply(worker, fetch_of(&["mail.*"], 10));
    let queues: Vec<_> = reply.jobs.iter().map(|job| job.queue.as_str()).collect();
    assert_eq!(queues, ["mail.a", "mail.z"]);
}

#[test]
fn a_queue_that_is_named_and_matched_gives_each_job_once() {
    let mut world = World::new();
    let worker = world.worker();
    let pushed = world.push_all(numbered("a", 0..3));
    let reply = world.fetch_reply(worker, fetch_of(&["a", "*", "a*"], 10));
    assert_eq!(ids(&reply.jobs), pushed);
}

#[track_caller]
fn check_shares(weights: &[u32], max: u32, fetches: usize, expected: &[usize]) {
    let mut world = World::new();
    let worker = world.worker();
    let queues = ["a", "b", "c"];
    for queue in &queues[..weights.len()] {
        world.push_all(numbered(queue, 0..1000));
    }
    let mut shares = vec![0; weights.len()];
    for _ in 0..fetches {
        let fetch = Fetch {
            weights: weights.to_vec(),
            ..fetch_of(&queues[..weights.len()], max)
        };
        for job in world.fetch_reply(worker, fetch).jobs {
            let nth = queues.iter().position(|queue| *queue == job.queue.as_str());
            shares[nth.unwrap()] += 1;
        }
    }
    assert_eq!(shares, expected, "{weights:?} by {max}");
}

#[test]
fn shares_follow_weights_whatever_the_length_of_a_request() {
    check_shares(&[1, 1], 1, 100, &[50, 50]);
    check_shares(&[3, 1], 1, 100, &[75, 25]);
    check_shares(&[3, 1], 7, 40, &[210, 70]);
    check_shares(&[98, 1, 1], 1, 100, &[98, 1, 1]);
    check_shares(&[1, 1000], 100, 10, &[1, 999]);
}

#[test]
fn a_weighted_fetch_takes_from_the_others_when_one_is_empty() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("b", 0..10));
    let fetch = Fetch {
        weights: vec![1000, 1],
        ..fetch_of(&["a", "b"], 10)
    };
    assert_eq!(world.fetch_reply(worker, fetch).jobs.len(), 10);
}

#[test]
fn a_weighted_fetch_goes_on_with_the_others_when_one_runs_dry() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..2));
    world.push_all(numbered("b", 0..3));
    let fetch = Fetch {
        weights: vec![1000, 1],
        ..fetch_of(&["a", "b"], 10)
    };
    let jobs = world.fetch_reply(worker, fetch).jobs;
    let queues: Vec<_> = jobs.iter().map(|job| job.queue.as_str()).collect();
    assert_eq!(queues, ["a", "a", "b", "b", "b"]);
}

#[track_caller]
fn check_due(spec: JobSpec, at: u64) {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(spec);
    world.commit();
    world.pass(DurationMs(at - 1));
    assert_eq!(world.fetch(worker, "a", 1).len(), 0, "never early");
    assert_eq!(world.state(id), Some(JobState::Scheduled));
    world.pass(DurationMs(1));
    assert_eq!(ids(&world.fetch(worker, "a", 1)), [id]);
}

#[test]
fn a_delayed_job_is_ready_at_its_millisecond_and_never_before() {
    let delayed = |delay| JobSpec {
        delay_ms: Some(DurationMs(delay)),
        ..job("a")
    };
    for delay in [1, 999, 10_000] {
        check_due(delayed(delay), delay);
    }
    let run_at = JobSpec {
        run_at: Some(Timestamp(BEGIN.0 + 77)),
        ..job("a")
    };
    check_due(run_at, 77);
}

#[test]
fn a_wall_clock_that_is_set_back_makes_no_job_early() {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        delay_ms: Some(DurationMs(5_000)),
        ..job("a")
    };
    world.push(spec);
    world.now.wall = Timestamp(BEGIN.0 - 3_600_000);
    world.pass(DurationMs(6_000));
    assert_eq!(world.fetch(worker, "a", 1).len(), 0);
    world.now.wall = Timestamp(BEGIN.0 + 4_999);
    world.tick();
    assert_eq!(world.fetch(worker, "a", 1).len(), 0);
    world.now.wall = Timestamp(BEGIN.0 + 5_000);
    world.tick();
    assert_eq!(world.fetch(worker, "a", 1).len(), 1);
}

#[test]
fn a_time_that_is_past_means_now() {
    let mut world = World::new();
    let spec = JobSpec {
        run_at: Some(Timestamp(1)),
        ..job("a")
    };
    let id = world.push(spec);
    assert_eq!(world.state(id), Some(JobState::Ready));
}

#[test]
fn a_job_that_becomes_due_stands_behind_those_that_were_ready() {
    let mut world = World::new();
    let worker = world.worker();
    let spec = JobSpec {
        delay_ms: Some(DurationMs(10)),
        ..job("a")
    };
    let later = world.push(spec);
    let now = world.push(job("a"));
    world.pass(DurationMs(10));
    assert_eq!(ids(&world.fetch(worker, "a", 2)), [now, later]);
}

#[test]
fn released_jobs_stand_at_the_head_in_their_old_order() {
    let mut world = World::new();
    let worker = world.worker();
    let pushed = world.push_all(numbered("a", 0..6));
    let jobs = world.fetch(worker, "a", 3);
    for job in jobs.iter().rev() {
        world.release(worker, job, None);
    }
    assert_eq!(ids(&world.fetch(worker, "a", 10)), pushed);
}

#[test]
fn a_paused_queue_gives_nothing_and_takes_pushes() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("a"));
    world.pause("a");
    let second = world.push(job("a"));
    assert_eq!(world.fetch(worker, "a", 10).len(), 0);
    assert_eq!(world.fetch(worker, "*", 10).len(), 0);
    assert_eq!(world.state(second), Some(JobState::Ready));
    world.unpause("a");
    assert_eq!(world.fetch(worker, "a", 10).len(), 2);
}

#[test]
fn a_pause_outlives_a_restart() {
    let mut world = World::new();
    world.push(job("a"));
    world.pause("a");
    world.reopen();
    let worker = world.worker();
    assert_eq!(world.fetch(worker, "a", 1).len(), 0);
    world.unpause("a");
    assert_eq!(world.fetch(worker, "a", 1).len(), 1);
}
