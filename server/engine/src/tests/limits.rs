//! Limits of queues and keys, lanes and turns, sequences.

mod lanes;
mod random;
mod sequences;

use ganger_protocol::{
    DurationMs, ErrorCode, JobSpec, WireError,
    job::JobState,
    limit::{LimitList, LimitSet, LimitTarget, LimitView, OneLimit, Rate},
    queue::OneQueue,
    request::{Fetch, Operation},
    response::ReplyBody,
};

use crate::testing::{World, fetch_of, ids, job, numbered, tiny};

impl World {
    /// Sets a limit of the target `queue/…` or `key/…`.
    fn limit(&mut self, target: &str, change: impl FnOnce(&mut LimitSet)) -> LimitView {
        let mut set = LimitSet::of(target_of(target));
        change(&mut set);
        match self.ask(None, Operation::LimitSet(Box::new(set))) {
            Ok(ReplyBody::Limit(view)) => *view,
            other => panic!("{other:?}"),
        }
    }

    fn unlimit(&mut self, target: &str) -> Result<ReplyBody, WireError> {
        let one = OneLimit::of(target_of(target));
        self.ask(None, Operation::LimitDelete(one))
    }

    /// Kinds of the jobs of a fetch.
    fn fetched(&mut self, worker: ganger_protocol::SessionId, max: u32) -> Vec<String> {
        let jobs = self.fetch(worker, "work", max);
        jobs.iter()
            .map(|job| String::from_utf8(job.payload.to_vec()).unwrap())
            .collect()
    }
}

fn target_of(text: &str) -> LimitTarget {
    match text.split_once('/').unwrap() {
        ("queue", queue) => LimitTarget::Queue(queue.parse().unwrap()),
        (_, key) => LimitTarget::Key(key.parse().unwrap()),
    }
}

/// A job of a key in the queue `work`, whose payload says which it is.
fn keyed(key: &str, number: u64) -> JobSpec {
    JobSpec {
        queue: "work".parse().unwrap(),
        key: Some(key.parse().unwrap()),
        ..JobSpec::new("mail".parse().unwrap(), format!("{key}{number}"))
    }
}

fn many(key: &str, numbers: std::ops::Range<u64>) -> Vec<JobSpec> {
    numbers.map(|number| keyed(key, number)).collect()
}

fn named(key: &str, numbers: impl Iterator<Item = u64>) -> Vec<String> {
    numbers.map(|number| format!("{key}{number}")).collect()
}

#[test]
fn a_queue_at_its_limit_gives_nothing_until_a_lease_ends() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("queue/wor*", |set| set.max_running = Some(2));
    world.push_all(numbered("work", 0..3));
    world.push(job("other"));
    let jobs = world.fetch(worker, "work", 10);
    assert_eq!(jobs.len(), 2);
    assert_eq!(world.fetch(worker, "other", 1).len(), 1, "no other queue");
    let waits = world.wait(worker, &["work"]);
    assert_eq!(world.waited(waits), None);
    world.fail(worker, &jobs[0]);
    assert_eq!(world.waited(waits).expect("a slot is free").len(), 1);
}

#[test]
fn a_key_at_its_limit_leaves_the_others_alone_and_goes_on_when_a_lease_ends() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("key/a", |set| set.max_running = Some(2));
    world.push_all([many("a", 0..4), many("b", 0..2)].concat());
    let jobs = world.fetch(worker, "work", 10);
    let payloads: Vec<_> = jobs.iter().map(|job| job.payload.to_vec()).collect();
    assert_eq!(payloads, [b"a0", b"a1", b"b0", b"b1"]);
    let waits = world.wait(worker, &["work"]);
    world.ack(worker, &jobs[0]);
    let next = world.waited(waits).expect("a slot is free");
    assert_eq!(next[0].payload, "a2");
    assert_eq!(next[0].key, Some("a".parse().unwrap()));
    assert!(world.fetch(worker, "work", 10).is_empty());
}

#[test]
fn a_weighted_fetch_takes_no_more_of_a_key_than_its_limit_over_all_queues() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("key/a", |set| set.max_running = Some(1));
    let of = |queue: &str, job: JobSpec| JobSpec {
        queue: queue.parse().unwrap(),
        ..job
    };
    let jobs = [keyed("a", 0), keyed("a", 1), keyed("b", 2), keyed("b", 3)];
    let queues = ["one", "two", "one", "two"];
    world.push_all(
        { queues.iter().zip(jobs) }
            .map(|(queue, job)| of(queue, job))
            .collect(),
    );
    let fetch = Fetch {
        weights: vec![1, 1],
        ..fetch_of(&["one", "two"], 10)
    };
    let granted = world.fetch_reply(worker, fetch).jobs;
    let payloads: Vec<_> = granted.iter().map(|job| job.payload.to_vec()).collect();
    assert_eq!(payloads, [b"a0", b"b3", b"b2"]);
}

#[test]
fn a_weighted_fetch_takes_no_more_of_a_queue_than_its_limit() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("queue/one", |set| set.max_running = Some(2));
    world.push_all([numbered("one", 0..4), numbered("two", 0..2)].concat());
    let fetch = Fetch {
        weights: vec![1000, 1],
        ..fetch_of(&["one", "two"], 10)
    };
    let granted = world.fetch_reply(worker, fetch).jobs;
    let queues: Vec<_> = granted.iter().map(|job| job.queue.as_str()).collect();
    assert_eq!(queues, ["one", "one", "two", "two"]);
}

#[test]
fn a_slot_is_a_lease_however_it_ends() {
    let mut world = World::new();
    world.limit("key/a", |set| set.max_running = Some(1));
    world.push_all(many("a", 0..2));
    let lost = world.worker();
    assert_eq!(world.fetched(lost, 2), ["a0"]);
    world.live(DurationMs::from_secs(16));
    let worker = world.worker();
    let jobs = world.fetch(worker, "work", 2);
    assert_eq!(jobs[0].payload, "a0", "the lost one is at the head");
    world.release(worker, &jobs[0], Some(DurationMs::from_secs(60)));
    assert_eq!(world.fetched(worker, 2), ["a1"]);
    world.goodbye(worker);
    let worker = world.worker();
    assert_eq!(world.fetched(worker, 2), ["a1"]);
}

#[test]
fn slots_are_counted_again_after_a_restart() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("key/a", |set| set.max_running = Some(2));
    world.limit("queue/work", |set| set.max_running = Some(3));
    // A payload that is not read at the start.
    let large = JobSpec {
        payload: vec![b'x'; 8 << 10].into(),
        ..keyed("a", 0)
    };
    world.push_all(vec![large]);
    world.push_all([many("a", 1..4), many("b", 0..3)].concat());
    let jobs = world.fetch(worker, "work", 2);
    assert_eq!(jobs.len(), 2);
    world.reopen();
    world.resume(
        worker,
        &jobs
            .iter()
            .map(crate::testing::lease_ref)
            .collect::<Vec<_>>(),
    );
    assert_eq!(world.fetched(worker, 10), ["b0"]);
    world.ack(worker, &jobs[0]);
    assert_eq!(world.fetched(worker, 10), ["a2"]);
}

#[test]
fn a_rate_gives_its_burst_at_once_and_then_one_at_a_time() {
    let mut world = World::new();
    let worker = world.worker();
    let rate = Rate {
        n: 10,
        per_ms: DurationMs::from_secs(1),
        burst: Some(3),
    };
    world.limit("key/a", |set| set.rate = Some(rate));
    world.push_all(many("a", 0..10));
    assert_eq!(world.fetched(worker, 10), named("a", 0..3));
    let waits = world.wait(worker, &["work"]);
    world.live(DurationMs(99));
    assert_eq!(world.waited(waits), None, "not before its time");
    world.live(DurationMs(1));
    assert_eq!(world.waited(waits).expect("a token is free").len(), 1);
    world.live(DurationMs(1_000));
    assert_eq!(
        world.fetched(worker, 10),
        named("a", 4..7),
        "no more than the burst"
    );
}

#[test]
fn a_rate_of_a_queue_wakes_who_waits() {
    let mut world = World::new();
    let worker = world.worker();
    let rate = Rate {
        n: 1,
        per_ms: DurationMs::from_secs(5),
        burst: None,
    };
    world.limit("queue/work", |set| set.rate = Some(rate));
    world.push_all(numbered("work", 0..2));
    assert_eq!(world.fetched(worker, 10), ["0"]);
    let waits = world.wait(worker, &["work"]);
    world.tick();
    assert_eq!(
        world.engine.next_wakeup(world.now),
        Some(DurationMs::from_secs(5))
    );
    world.live(DurationMs::from_secs(5));
    assert_eq!(world.waited(waits).expect("a token is free").len(), 1);
}

#[test]
fn a_grant_under_a_rate_is_told_when_it_is_durable() {
    for (target, is_awaited) in [("key/a", true), ("queue/work", true), ("key/b", false)] {
        let mut world = World::new();
        world.limit(target, |set| set.rate = Some(one_in(5)));
        world.push_all(many("a", 0..3));
        world.commit();
        let worker = world.worker();
        world.commit();
        let caller = world.send(Some(worker), Operation::Fetch(fetch_of(&["work"], 1)));
        let reply = world.reply(caller).expect("it is answered");
        assert_eq!(reply.after > world.durable, is_awaited, "{target}");
        assert_eq!(world.engine.is_awaited(), is_awaited, "{target}");
    }
}

#[test]
fn a_rate_is_not_passed_over_a_restart_and_a_rest_counts() {
    let mut world = World::new();
    let rate = Rate {
        n: 2,
        per_ms: DurationMs::from_secs(10),
        burst: None,
    };
    world.limit("key/a", |set| set.rate = Some(rate));
    world.push_all(many("a", 0..6));
    let worker = world.worker();
    assert_eq!(world.fetched(worker, 10), named("a", 0..2));
    world.reopen();
    world.resume(worker, &[]);
    world.live(DurationMs(4_999));
    let worker = world.worker();
    assert!(world.fetched(worker, 10).is_empty());
    world.live(DurationMs(1));
    assert_eq!(world.fetched(worker, 10).len(), 1);
    world.commit();
    // Nothing runs while the server is down.
    world.now.wall = world.now.wall.plus(DurationMs::from_secs(100));
    world.crash_after(world.durable);
    world.commit();
    let worker = world.worker();
    assert_eq!(world.fetched(worker, 10).len(), 2);
}

#[test]
fn of_several_limits_the_exact_one_counts_else_the_longest_prefix() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("key/*", |set| set.max_running = Some(1));
    world.limit("key/team:*", |set| set.max_running = Some(2));
    world.limit("key/team:a", |set| set.max_running = Some(3));
    let jobs = ["team:a", "team:b", "other"].map(|key| many(key, 0..5));
    world.push_all(jobs.concat());
    let granted = world.fetch(worker, "work", 100);
    let count = |key: &str| {
        let key = key.parse().unwrap();
        granted
            .iter()
            .filter(|job| job.key.as_ref() == Some(&key))
            .count()
    };
    assert_eq!(["team:a", "team:b", "other"].map(count), [3, 2, 1]);
}

#[test]
fn a_limit_counts_at_once_when_it_is_set_raised_or_deleted() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(many("a", 0..10));
    assert_eq!(world.fetched(worker, 3).len(), 3);
    let view = world.limit("key/a", |set| set.max_running = Some(2));
    assert_eq!(view.running, Some(3));
    let waits = world.wait(worker, &["work"]);
    assert_eq!(world.waited(waits), None);
    world.limit("key/a", |set| set.max_running = Some(4));
    assert_eq!(world.waited(waits).expect("there is room").len(), 1);
    let waits = world.wait(worker, &["work"]);
    world.unlimit("key/a").unwrap();
    assert_eq!(world.waited(waits).expect("there is no limit").len(), 1);
    let error = world.unlimit("key/a").unwrap_err();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (ErrorCode::NotFound, Some("key"))
    );
}

/// One job in so many seconds.
fn one_in(secs: u64) -> Rate {
    Rate {
        n: 1,
        per_ms: DurationMs::from_secs(secs),
        burst: None,
    }
}

#[test]
fn what_a_slow_rate_used_up_counts_for_a_burst_of_the_next() {
    for target in ["key/a", "key/*", "queue/work", "queue/w*"] {
        let mut world = World::new();
        let worker = world.worker();
        world.limit(target, |set| set.rate = Some(one_in(3600)));
        world.push_all(many("a", 0..9));
        assert_eq!(world.fetched(worker, 9).len(), 1, "{target}");
        world.live(DurationMs(2_000));
        world.limit(target, |set| set.rate = Some(one_in(5)));
        world.live(DurationMs(2_999));
        assert!(world.fetched(worker, 9).is_empty(), "{target}: it is used");
        world.live(DurationMs(1));
        assert_eq!(world.fetched(worker, 9).len(), 1, "{target}");
        world.live(DurationMs(4_999));
        // Whatever else is changed, nobody waits anew.
        world.limit(target, |set| {
            set.rate = Some(one_in(5));
            set.max_running = Some(50);
        });
        world.limit("key/abc", |set| set.weight = Some(2));
        world.live(DurationMs(1));
        assert_eq!(world.fetched(worker, 9).len(), 1, "{target}");
    }
}

#[test]
fn a_wider_limit_counts_at_once_where_a_slow_one_was_deleted() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("key/*", |set| set.rate = Some(one_in(5)));
    world.limit("key/a", |set| set.rate = Some(one_in(3600)));
    world.push_all(many("a", 0..9));
    assert_eq!(world.fetched(worker, 9).len(), 1);
    world.unlimit("key/a").unwrap();
    world.live(DurationMs(4_999));
    assert!(world.fetched(worker, 9).is_empty());
    world.live(DurationMs(1));
    assert_eq!(world.fetched(worker, 9).len(), 1);
}

#[test]
fn a_queue_without_a_rate_meanwhile_has_used_what_it_had() {
    let mut world = World::new();
    let worker = world.worker();
    let rate = |set: &mut LimitSet| set.rate = Some(one_in(20));
    world.limit("queue/work", rate);
    world.push_all(many("a", 0..9));
    assert_eq!(world.fetched(worker, 9).len(), 1);
    world.limit("queue/work", |set| set.max_running = Some(2));
    assert_eq!(world.fetched(worker, 9).len(), 1);
    world.limit("queue/work", rate);
    world.live(DurationMs(9_000));
    assert!(world.fetched(worker, 9).is_empty());
}

#[test]
fn a_rate_that_is_set_again_gives_no_more() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(many("a", 0..9));
    for max_running in [50, 60, 70] {
        world.limit("key/a", |set| {
            set.rate = Some(one_in(5));
            set.max_running = Some(max_running);
        });
        let granted = world.fetched(worker, 9).len();
        assert_eq!(granted, usize::from(max_running == 50));
        world.live(DurationMs(1_000));
    }
}

#[test]
fn limits_belong_to_their_namespace_and_outlive_a_restart() {
    let mut world = World::new();
    world.limit("key/a", |set| set.max_running = Some(1));
    world.limit("queue/w*", |set| set.max_running = Some(2));
    world.limit("key/gone", |set| set.weight = Some(2));
    world.unlimit("key/gone").unwrap();
    world.within("other", |world| {
        world.limit("key/a", |set| set.max_running = Some(5));
    });
    world.reopen();
    let list = |cursor: Option<String>| LimitList { cursor, limit: 1 };
    let mut seen = Vec::new();
    let mut cursor = None;
    loop {
        let page = match world.ask(None, Operation::LimitList(list(cursor))) {
            Ok(ReplyBody::Limits(page)) => page,
            other => panic!("{other:?}"),
        };
        seen.extend(
            page.limits
                .iter()
                .map(|view| (view.target(), view.max_running)),
        );
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    let known = [("queue/w*", 2), ("key/a", 1)];
    assert_eq!(
        seen,
        known.map(|(target, max)| (Some(target_of(target)), Some(max)))
    );
    let worker = world.worker();
    world.push_all(many("a", 0..2));
    assert_eq!(world.fetched(worker, 2).len(), 1);
}

#[test]
fn a_cursor_that_is_none_is_refused() {
    let mut world = World::new();
    for cursor in ["", "a", "key/a b", "lane/a"] {
        let list = LimitList {
            cursor: Some(cursor.to_owned()),
            limit: 1,
        };
        let error = world.ask(None, Operation::LimitList(list)).unwrap_err();
        assert_eq!(error.field.as_deref(), Some("cursor"), "{cursor}");
    }
}

#[test]
fn a_shard_has_only_so_many_limits() {
    let mut world = World::with(crate::Options {
        limits_max: 2,
        ..crate::testing::small()
    });
    world.limit("key/a", |set| set.weight = Some(1));
    world.limit("key/b", |set| set.weight = Some(1));
    world.limit("key/b", |set| set.weight = Some(2));
    let set = LimitSet {
        weight: Some(1),
        ..LimitSet::of(target_of("key/c"))
    };
    let error = world
        .ask(None, Operation::LimitSet(Box::new(set)))
        .unwrap_err();
    assert_eq!((error.limit, error.actual), (Some(2), Some(3)));
}

#[test]
fn a_purge_frees_the_slots_of_its_jobs() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("key/a", |set| set.max_running = Some(1));
    world.push_all(many("a", 0..70));
    assert_eq!(world.fetched(worker, 10), ["a0"]);
    let purge = OneQueue {
        queue: "work".parse().unwrap(),
    };
    world.ask(None, Operation::QueuePurge(purge)).unwrap();
    world.push_all(many("a", 70..72));
    assert_eq!(world.fetched(worker, 10), ["a70"]);
    world.live(DurationMs::from_secs(1));
}

#[test]
fn everything_is_forgotten_when_the_jobs_of_keys_are_over() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("key/*", |set| set.max_running = Some(1));
    for key in 0..20 {
        world.push_all(many(&format!("k{key}-"), 0..3));
    }
    for _ in 0..3 {
        let jobs = world.fetch(worker, "work", 100);
        assert_eq!(jobs.len(), 20);
        for job in &jobs {
            world.ack(worker, job);
        }
    }
    assert!(world.engine.keys.is_empty());
    world.goodbye(worker);
    world.commit();
    world.engine.check_drained().unwrap();
    world.store.check_empty();
}

#[test]
fn jobs_that_are_cancelled_together_all_leave_their_lane() {
    let mut world = World::with(tiny());
    let worker = world.worker();
    world.limit("key/a", |set| set.max_running = Some(1));
    let pushed = world.push_all(many("a", 0..6));
    let job = world.fetch(worker, "work", 10).remove(0);
    world.commit();
    // The key stands at its limit still: its lane is read, and stays in memory.
    world.limit("key/a", |set| {
        set.max_running = Some(1);
        set.weight = Some(2);
    });
    assert!(world.fetched(worker, 10).is_empty());
    let cancel = ganger_protocol::request::JobCancel::new(pushed[1..].to_vec());
    world.ask(None, Operation::JobCancel(cancel)).unwrap();
    world.ack(worker, &job);
    world.goodbye(worker);
    world.unlimit("key/a").unwrap();
    world.commit();
    world.engine.check_drained().unwrap();
    world.store.check_empty();
}

#[test]
fn a_key_whose_rate_is_forgiven_is_forgotten_with_its_last_lane() {
    let mut world = World::with(tiny());
    let worker = world.worker();
    let rate = Rate {
        n: 1,
        per_ms: DurationMs::from_secs(5),
        burst: None,
    };
    world.limit("key/*", |set| set.rate = Some(rate));
    let pushed = world.push_all(many("a", 0..4));
    let job = world.fetch(worker, "work", 10).remove(0);
    assert!(world.fetched(worker, 10).is_empty());
    world.commit();
    world.ack(worker, &job);
    let cancel = ganger_protocol::request::JobCancel::new(pushed[1..].to_vec());
    world.ask(None, Operation::JobCancel(cancel)).unwrap();
    world.commit();
    world.live(DurationMs::from_secs(6));
    // The grant of another key forgives what this one has used.
    world.push_all(many("b", 0..1));
    let job = world.fetch(worker, "work", 10).remove(0);
    world.ack(worker, &job);
    world.live(DurationMs::from_secs(6));
    world.push_all(many("c", 0..1));
    let job = world.fetch(worker, "work", 10).remove(0);
    world.ack(worker, &job);
    assert!(world.fetched(worker, 10).is_empty());
    world.engine.check_invariants().unwrap();
}

#[test]
fn a_cancelled_job_leaves_its_lane() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("key/a", |set| set.max_running = Some(1));
    let pushed = world.push_all(many("a", 0..3));
    assert_eq!(world.fetched(worker, 10), ["a0"]);
    for id in &pushed[1..] {
        assert_eq!(world.state(*id), Some(JobState::Ready));
    }
    let cancel = ganger_protocol::request::JobCancel::new(pushed[1..].to_vec());
    world.ask(None, Operation::JobCancel(cancel)).unwrap();
    world.push_all(many("a", 3..4));
    let lease = world
        .engine
        .leases
        .iter()
        .next()
        .map(|(_, lease)| lease.number)
        .unwrap();
    world.ack_pair(worker, pushed[0], lease);
    assert_eq!(world.fetched(worker, 10), ["a3"]);
}

#[test]
fn a_fetch_that_carries_the_ack_of_the_last_slot_gets_the_next_job() {
    let mut world = World::new();
    let worker = world.worker();
    world.limit("key/a", |set| set.max_running = Some(1));
    world.push_all(many("a", 0..2));
    world.commit();
    let job = world.fetch(worker, "work", 1).remove(0);
    let fetch = Fetch {
        acks: vec![crate::testing::ack_item(job.id, job.lease)],
        ..fetch_of(&["work"], 1)
    };
    let caller = world.send(Some(worker), Operation::Fetch(fetch));
    world.commit();
    let jobs = world.waited(caller).expect("answered when durable");
    assert_eq!(ids(&jobs).len(), 1);
}
