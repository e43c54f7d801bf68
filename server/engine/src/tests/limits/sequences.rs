//! Sequences: one job of a key at a time, in order; one that waits again keeps the others back.

use ganger_protocol::{
    DurationMs, JobSpec,
    job::JobState,
    queue::OneQueue,
    request::{FailItem, JobCancel, Operation},
};

use super::{keyed, many};
use crate::testing::{World, fail_item, tiny};

fn world() -> World {
    let mut world = World::new();
    world.limit("key/s*", |set| set.sequence = true);
    world
}

fn retry_in(job: &ganger_protocol::job::GrantedJob, ms: u64) -> FailItem {
    FailItem {
        retry_in_ms: Some(DurationMs(ms)),
        ..fail_item(job.id, job.lease)
    }
}

#[test]
fn one_job_of_a_sequence_runs_at_a_time_in_order() {
    let mut world = world();
    let worker = world.worker();
    world.push_all(many("s", 0..100));
    for number in 0..100 {
        let jobs = world.fetch(worker, "work", 10);
        assert_eq!(jobs.len(), 1);
        assert_eq!(jobs[0].payload, format!("s{number}"));
        world.ack(worker, &jobs[0]);
    }
    assert!(world.engine.keys.is_empty());
}

#[test]
fn a_waiting_fetch_gets_the_first_job_of_a_sequence_in_the_push_itself() {
    let mut world = world();
    let worker = world.worker();
    let waits = world.wait(worker, &["work"]);
    world.push_all(many("s", 0..1));
    world.commit();
    assert_eq!(world.waited(waits).expect("nobody holds it").len(), 1);
}

#[test]
fn a_retrying_job_keeps_the_later_ones_back() {
    let mut world = world();
    let worker = world.worker();
    world.push_all(many("s", 0..3));
    let job = world.fetch(worker, "work", 10).remove(0);
    world.fail_with(worker, retry_in(&job, 5_000));
    assert!(world.fetched(worker, 10).is_empty());
    world.push_all(many("t", 0..1));
    assert_eq!(world.fetched(worker, 10), ["t0"], "no other key");
    let waits = world.wait(worker, &["work"]);
    world.live(DurationMs(4_999));
    assert_eq!(world.waited(waits), None);
    world.live(DurationMs(1));
    let again = world.waited(waits).expect("it is due").remove(0);
    assert_eq!((again.id, again.attempt), (job.id, 2));
    assert!(world.fetched(worker, 10).is_empty());
    world.ack(worker, &again);
    assert_eq!(world.fetched(worker, 10), ["s1"]);
}

#[test]
fn a_retrying_job_keeps_the_later_ones_back_over_a_restart_in_all_queues() {
    for options in [crate::testing::small(), tiny()] {
        let mut world = World::with(options);
        world.limit("key/s*", |set| set.sequence = true);
        let worker = world.worker();
        world.push_all(many("s", 0..70));
        let elsewhere = JobSpec {
            queue: "else".parse().unwrap(),
            ..keyed("s", 99)
        };
        world.push(elsewhere);
        let job = world.fetch(worker, "work", 10).remove(0);
        world.fail_with(worker, retry_in(&job, 60_000));
        world.reopen();
        world.resume(worker, &[]);
        let waits = [world.wait(worker, &["work"]), world.wait(worker, &["else"])];
        world.tick();
        assert!(waits.iter().all(|waits| world.waited(*waits).is_none()));
        world.push_all(many("s", 70..71));
        let cancel = JobCancel::new(vec![job.id]);
        world.ask(None, Operation::JobCancel(cancel)).unwrap();
        world.tick();
        let got: Vec<_> = waits
            .into_iter()
            .filter_map(|waits| world.waited(waits))
            .flatten()
            .collect();
        assert_eq!(got.len(), 1, "one of both queues, when the holder is over");
    }
}

#[test]
fn a_sequence_goes_on_however_its_holder_ends() {
    let endings: [fn(&mut FailItem); 2] = [|item| item.dead = true, |item| item.discard = true];
    for ending in endings {
        let mut world = world();
        let worker = world.worker();
        world.push_all(many("s", 0..2));
        let job = world.fetch(worker, "work", 10).remove(0);
        world.fail_with(worker, retry_in(&job, 1));
        world.live(DurationMs(1));
        let again = world.fetch(worker, "work", 10).remove(0);
        let mut item = fail_item(again.id, again.lease);
        ending(&mut item);
        world.fail_with(worker, item);
        assert_eq!(world.fetched(worker, 10), ["s1"]);
        world.commit();
        assert!(world.store.locks.is_empty());
    }
}

#[test]
fn a_holder_that_expires_lets_the_others_go() {
    let mut world = world();
    let worker = world.worker();
    let first = JobSpec {
        expires_at: Some(world.now.wall.plus(DurationMs(5_000))),
        ..keyed("s", 0)
    };
    world.push_all(vec![first, keyed("s", 1)]);
    let job = world.fetch(worker, "work", 10).remove(0);
    world.fail_with(worker, retry_in(&job, 60_000));
    let waits = world.wait(worker, &["work"]);
    world.live(DurationMs(5_000));
    assert_eq!(
        world.waited(waits).expect("it has expired")[0].payload,
        "s1"
    );
    assert!(world.store.locks.is_empty() || world.state(job.id).is_none());
}

#[test]
fn a_purged_holder_lets_the_others_of_its_key_go_at_once() {
    let mut world = world();
    let worker = world.worker();
    let first = JobSpec {
        queue: "else".parse().unwrap(),
        ..keyed("s", 0)
    };
    world.push_all(vec![first, keyed("s", 1)]);
    let job = world.fetch(worker, "else", 10).remove(0);
    world.fail_with(worker, retry_in(&job, 60_000));
    world.commit();
    let waits = world.wait(worker, &["work"]);
    assert_eq!(world.waited(waits), None);
    let purge = OneQueue {
        queue: "else".parse().unwrap(),
    };
    world.ask(None, Operation::QueuePurge(purge)).unwrap();
    world.tick();
    let jobs = world.waited(waits).expect("nobody holds the key");
    assert_eq!(jobs[0].payload, "s1");
    world.commit();
    world.live(DurationMs(100));
    world.commit();
    assert!(world.store.locks.is_empty());
}

#[test]
fn a_lost_worker_does_not_break_the_order() {
    let mut world = world();
    let lost = world.worker();
    world.push_all(many("s", 0..3));
    assert_eq!(world.fetched(lost, 10), ["s0"]);
    world.live(DurationMs::from_secs(16));
    let worker = world.worker();
    for name in ["s0", "s1", "s2"] {
        let jobs = world.fetch(worker, "work", 10);
        assert_eq!(jobs[0].payload, name);
        world.ack(worker, &jobs[0]);
    }
}

#[test]
fn a_key_that_becomes_a_sequence_with_jobs_running_deals_with_them_first() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(many("s", 0..4));
    let jobs = world.fetch(worker, "work", 3);
    world.limit("key/s", |set| set.sequence = true);
    world.fail_with(worker, retry_in(&jobs[0], 1));
    world.live(DurationMs(1));
    world.release(worker, &jobs[1], None);
    assert!(world.fetched(worker, 10).is_empty(), "one is running");
    world.ack(worker, &jobs[2]);
    let mut seen = Vec::new();
    for _ in 0..3 {
        let job = world.fetch(worker, "work", 10).remove(0);
        seen.push(String::from_utf8(job.payload.to_vec()).unwrap());
        world.ack(worker, &job);
    }
    assert_eq!(seen[2], "s3");
    assert_eq!(world.state(jobs[0].id), None);
}

#[test]
fn a_sequence_is_no_longer_one_when_the_limit_goes() {
    let mut world = world();
    let worker = world.worker();
    world.push_all(many("s", 0..3));
    let job = world.fetch(worker, "work", 10).remove(0);
    world.fail_with(worker, retry_in(&job, 60_000));
    let waits = world.wait(worker, &["work"]);
    world.unlimit("key/s*").unwrap();
    assert!(world.waited(waits).is_some());
    assert_eq!(world.fetched(worker, 10), ["s2"]);
    assert_eq!(world.state(job.id), Some(JobState::Scheduled));
}
