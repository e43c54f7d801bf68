//! Who comes next: the shared lane, lanes of keys, turns and weights.

use ganger_protocol::{DurationMs, JobSpec};

use super::{keyed, many, named};
use crate::testing::{World, numbered, tiny};

/// Rounds until all of these jobs were granted one by one and acked.
fn order(world: &mut World, count: usize) -> Vec<String> {
    let worker = world.worker();
    let mut order = Vec::new();
    while order.len() < count {
        let jobs = world.fetch(worker, "work", 1);
        assert!(!jobs.is_empty(), "{} of {count} were granted", order.len());
        for job in &jobs {
            order.push(String::from_utf8(job.payload.to_vec()).unwrap());
            world.ack(worker, job);
        }
    }
    order
}

#[test]
fn few_jobs_of_many_keys_come_in_the_order_of_their_pushes() {
    let mut world = World::new();
    let jobs: Vec<JobSpec> = (0..200)
        .map(|n| keyed(&format!("k{}-", n % 7), n))
        .collect();
    world.push_all(jobs);
    let order = order(&mut world, 200);
    assert!(
        order.is_sorted_by_key(|name| { name.split_once('-').unwrap().1.parse::<u64>().unwrap() })
    );
}

#[test]
fn a_key_with_many_jobs_delays_no_others() {
    let mut world = World::new();
    world.push_all(many("big", 0..500));
    world.push_all(many("small", 0..10));
    let order = order(&mut world, 510);
    let last = order
        .iter()
        .rposition(|name| name.starts_with("small"))
        .unwrap();
    assert!(last <= 64 + 2 * 10, "{last}");
    let big: Vec<_> = order
        .iter()
        .filter(|name| name.starts_with("big"))
        .cloned()
        .collect();
    assert_eq!(big, named("big", 0..500), "each key in its order");
}

#[test]
fn keys_with_many_jobs_share_by_weight() {
    let mut world = World::new();
    world.limit("key/a", |set| set.weight = Some(3));
    world.push_all(many("a", 0..400));
    world.push_all(many("b", 0..400));
    let order = order(&mut world, 400);
    let share = order[150..350]
        .iter()
        .filter(|name| name.starts_with('a'))
        .count();
    assert!((145..=155).contains(&share), "{share}");
}

#[test]
fn a_higher_priority_comes_before_lanes_of_keys_and_a_parked_one_lets_lower_ones_through() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("key/a", |set| set.max_running = Some(1));
    let urgent = |key: &str, number| JobSpec {
        priority: Some(9),
        ..keyed(key, number)
    };
    world.push_all(many("b", 0..100));
    world.push_all((0..3).map(|n| urgent("a", n)).collect());
    assert_eq!(world.fetched(worker, 2), ["a0", "b0"]);
}

#[test]
fn lanes_are_found_again_after_a_restart_and_keep_their_order() {
    for options in [crate::testing::small(), tiny()] {
        let mut world = World::with(options);
        world.limit("key/b", |set| set.max_running = Some(1));
        world.push_all(many("a", 0..100));
        world.push_all(many("b", 0..5));
        let worker = world.worker();
        // b stands at its limit and has a lane by that.
        while !world.fetched(worker, 1).is_empty() {}
        world.push_all(many("b", 5..8));
        world.goodbye(worker);
        world.reopen();
        let order = order(&mut world, 108);
        for (key, count) in [("a", 100), ("b", 8)] {
            let own: Vec<_> = order
                .iter()
                .filter(|it| it.starts_with(key))
                .cloned()
                .collect();
            let mut sorted = named(key, 0..count);
            if key == "a" {
                sorted = own.clone();
                sorted.sort_by_key(|name| name[1..].parse::<u64>().unwrap());
            }
            assert_eq!(own, sorted);
        }
    }
}

#[test]
fn a_fetch_that_does_not_wait_finds_what_is_there_while_lanes_are_read_after_a_restart() {
    let mut world = World::new();
    world.limit("key/*", |set| set.sequence = true);
    let jobs = (0..600).map(|n| keyed(&format!("k{n}-"), n));
    world.push_all(jobs.collect());
    world.reopen();
    let worker = world.worker();
    let mut count = 0;
    while count < 600 {
        let granted = world.fetch(worker, "work", 600).len();
        assert!(granted > 0, "{count} were granted");
        count += granted;
    }
    assert!(world.fetch(worker, "work", 1).is_empty());
}

#[test]
fn beyond_the_budget_lanes_of_keys_are_read_when_it_is_their_turn() {
    let mut world = World::with(tiny());
    for key in ["a", "b", "c"] {
        world.push_all(many(key, 0..200));
    }
    world.commit();
    let order = order(&mut world, 600);
    for key in ["a", "b", "c"] {
        let own: Vec<_> = order
            .iter()
            .filter(|it| it.starts_with(key))
            .cloned()
            .collect();
        assert_eq!(own, named(key, 0..200));
    }
}

#[test]
fn jobs_without_a_key_are_served_beside_lanes_of_keys() {
    let mut world = World::new();
    world.push_all(many("a", 0..200));
    world.push_all(numbered("work", 0..50));
    let order = order(&mut world, 250);
    let last = order
        .iter()
        .rposition(|name| !name.starts_with('a'))
        .unwrap();
    assert!(last <= 64 + 100, "{last}");
}

#[test]
fn a_job_of_a_lane_that_is_released_comes_first_again() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(many("a", 0..100));
    world.fetch(worker, "work", 64);
    let job = world.fetch(worker, "work", 1).remove(0);
    assert_eq!(job.payload, "a64");
    world.release(worker, &job, None);
    assert_eq!(world.fetched(worker, 1), ["a64"]);
}

#[test]
fn a_job_of_a_lane_that_fails_joins_its_tail() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(many("a", 0..100));
    let jobs = world.fetch(worker, "work", 70);
    let item = ganger_protocol::request::FailItem {
        retry_in_ms: Some(DurationMs(10)),
        ..crate::testing::fail_item(jobs[69].id, jobs[69].lease)
    };
    world.fail_with(worker, item);
    world.live(DurationMs(10));
    assert_eq!(world.fetched(worker, 100).last().unwrap(), "a69");
}

#[test]
fn more_keys_at_their_limits_than_one_command_moves_hide_nobody() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("key/k*", |set| set.max_running = Some(1));
    let keys: Vec<JobSpec> = (0..300).map(|n| keyed(&format!("k{n}-"), 0)).collect();
    world.push_all(keys.clone());
    while !world.fetched(worker, 100).is_empty() {}
    world.push_all(keys);
    world.push_all(many("free", 0..1));
    let waits = world.wait(worker, &["work"]);
    world.tick();
    assert_eq!(world.waited(waits).expect("there is one").len(), 1);
}

#[test]
fn a_job_of_a_lane_that_is_cancelled_beyond_the_budget_does_not_come_back() {
    let mut world = World::with(tiny());
    world.limit("key/a", |set| set.sequence = true);
    let pushed = world.push_all(many("a", 0..70));
    world.commit();
    let cancel = ganger_protocol::request::JobCancel::new(vec![pushed[5]]);
    world
        .ask(None, ganger_protocol::request::Operation::JobCancel(cancel))
        .unwrap();
    world.commit();
    let mut expected = named("a", 0..70);
    expected.remove(5);
    assert_eq!(order(&mut world, 69), expected);
}
