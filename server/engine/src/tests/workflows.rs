//! Workflows: who waits for whom, what lets them go on, what ends them, and what lasts over crashes.

mod pushing;
mod random;

use ganger_protocol::{
    BatchId, DurationMs, JobId, JobSpec, SessionId, WireError,
    batch::{BatchOpen, BatchState},
    ids::Tag,
    job::{GrantedJob, JobState, JobView},
    queue::OneQueue,
    request::{BatchGraph, DeadSelect, JobCancel, Operation, Push},
    response::{PushResult, ReplyBody},
    workflow::{Condition, NodeState, NodeView, OnDead},
};

use crate::{
    command::Command,
    testing::{World, job},
};

const DAY: DurationMs = DurationMs::from_hours(24);

fn tag(text: &str) -> Tag {
    text.parse().unwrap()
}

/// A job of this name in a queue of the same name, behind these.
fn node(name: &str, after: &[&str]) -> JobSpec {
    JobSpec {
        name: Some(tag(name)),
        after: after.iter().map(|after| tag(after)).collect(),
        ..job(name)
    }
}

fn settled(mut node: JobSpec) -> JobSpec {
    node.condition = Some(Condition::Settled);
    node
}

fn held(mut node: JobSpec) -> JobSpec {
    node.on_dead = Some(OnDead::Hold);
    node
}

fn in_batch(batch: BatchId, nodes: Vec<JobSpec>) -> Vec<JobSpec> {
    let member = |node| JobSpec {
        batch: Some(batch),
        ..node
    };
    nodes.into_iter().map(member).collect()
}

/// A job that waits for one that was pushed before.
fn behind(job: JobId, node: JobSpec) -> JobSpec {
    JobSpec {
        after: vec![tag(&job.to_string())],
        ..node
    }
}

fn only(job: JobId) -> DeadSelect {
    DeadSelect {
        jobs: vec![job],
        ..DeadSelect::default()
    }
}

impl World {
    fn push_results(&mut self, jobs: Vec<JobSpec>) -> Result<Vec<PushResult>, WireError> {
        let push = Push {
            atomic: true,
            ..Push::of(jobs)
        };
        self.push_as(None, push)
    }

    fn push_graph(&mut self, jobs: Vec<JobSpec>) -> Vec<JobId> {
        let results = self.push_results(jobs).unwrap().into_iter();
        results.map(|result| result.id.unwrap()).collect()
    }

    fn take_of(&mut self, worker: SessionId, queue: &str) -> GrantedJob {
        self.fetch(worker, queue, 1).remove(0)
    }

    fn run(&mut self, worker: SessionId, queue: &str) {
        let job = self.take_of(worker, queue);
        self.ack(worker, &job);
        self.tick();
    }

    fn cancel_one(&mut self, job: JobId) {
        let cancel = JobCancel::new(vec![job]);
        self.ask(None, Operation::JobCancel(cancel)).unwrap();
    }

    fn graph(&mut self, batch: BatchId, limit: u32) -> Vec<NodeView> {
        let (mut nodes, mut cursor) = (Vec::new(), None);
        loop {
            let graph = BatchGraph {
                batch,
                cursor,
                limit,
            };
            match self.ask(None, Operation::BatchGraph(graph)) {
                Ok(ReplyBody::Graph(reply)) => {
                    assert!(reply.nodes.len() <= limit as usize);
                    nodes.extend(reply.nodes);
                    cursor = reply.cursor;
                }
                other => panic!("{other:?}"),
            }
            if cursor.is_none() {
                return nodes;
            }
        }
    }

    fn states_of(&mut self, batch: BatchId) -> Vec<(String, NodeState)> {
        let nodes = self.graph(batch, 2).into_iter();
        let mut states: Vec<_> = nodes
            .map(|node| {
                (
                    node.name.map_or(String::new(), |it| it.to_string()),
                    node.state,
                )
            })
            .collect();
        states.sort();
        states
    }

    fn seen(&mut self, job: JobId) -> JobView {
        self.look(job).unwrap()
    }

    /// Nothing is left of any job, and no edge either.
    fn check_over(&mut self) {
        self.live(DAY);
        self.commit();
        self.store.check_empty();
        self.commit();
    }
}

#[test]
fn a_job_is_ready_once_all_that_it_waits_for_are_done() {
    let mut world = World::new();
    let ids = world.push_graph(vec![
        node("load", &["left", "right"]),
        node("left", &[]),
        node("right", &[]),
    ]);
    assert_eq!(world.state(ids[0]), Some(JobState::Blocked));
    let view = world.seen(ids[0]);
    assert_eq!((view.waits_for, view.after), (2, vec![ids[1], ids[2]]));
    assert_eq!(world.seen(ids[1]).awaited_by, [ids[0]]);
    assert_eq!(world.counters("load").blocked, 1);
    let worker = world.worker();
    world.commit();
    world.run(worker, "left");
    assert_eq!(world.state(ids[0]), Some(JobState::Blocked));
    assert_eq!(world.seen(ids[0]).after, [ids[2]]);
    world.run(worker, "right");
    assert_eq!(world.state(ids[0]), Some(JobState::Ready));
    world.run(worker, "load");
    assert_eq!(world.counters("load").done, 1);
    world.check_over();
}

#[test]
fn a_fetch_that_waits_gets_what_is_let_go() {
    let mut world = World::new();
    world.push_graph(vec![node("first", &[]), node("then", &["first"])]);
    let (worker, other) = (world.worker(), world.worker());
    world.commit();
    let waiting = world.wait(other, &["then"]);
    world.run(worker, "first");
    world.commit();
    assert_eq!(world.waited(waiting).unwrap().len(), 1);
}

#[test]
fn a_failed_attempt_or_a_release_lets_nobody_go_on() {
    let mut world = World::new();
    let ids = world.push_graph(vec![node("first", &[]), node("then", &["first"])]);
    let worker = world.worker();
    world.commit();
    let job = world.take_of(worker, "first");
    world.release(worker, &job, None);
    let job = world.take_of(worker, "first");
    world.fail(worker, &job);
    world.tick();
    assert_eq!(world.state(ids[1]), Some(JobState::Blocked));
}

#[test]
fn an_end_that_is_no_success_cancels_all_behind_it() {
    type End = fn(&mut World, SessionId, JobId);
    let ends: [(&str, End); 5] = [
        ("dead", |world, worker, _| {
            let job = world.take_of(worker, "first");
            world.kill_with(worker, &job);
        }),
        ("deleted", |world, worker, _| {
            let job = world.take_of(worker, "first");
            world.discard(worker, &job);
        }),
        ("cancelled", |world, _, job| world.cancel_one(job)),
        ("expired", |world, _, _| world.pass(DurationMs(5_000))),
        ("purged", |world, _, _| {
            let queue = "first".parse().unwrap();
            let purge = Operation::QueuePurge(OneQueue { queue });
            world.ask(None, purge).unwrap();
        }),
    ];
    for (end, bring_about) in ends {
        let mut world = World::new();
        let mut first = node("first", &[]);
        first.expires_at = Some(world.now.wall.plus(DurationMs(5_000)));
        let ids = world.push_graph(vec![
            first,
            node("then", &["first"]),
            node("last", &["then"]),
        ]);
        let worker = world.worker();
        world.commit();
        bring_about(&mut world, worker, ids[0]);
        for _ in 0..4 {
            world.commit();
            world.live(DurationMs(10));
        }
        assert_eq!(world.state(ids[1]), None, "{end}");
        assert_eq!(world.state(ids[2]), None, "{end}");
        for queue in ["then", "last"] {
            let counters = world.counters(queue);
            assert_eq!((counters.cancelled, counters.blocked), (1, 0), "{end}");
        }
        world.commit();
        world.store.check_edges();
        assert!(world.store.edges.is_empty(), "{end}");
    }
}

#[test]
fn whoever_waits_for_any_end_goes_on_at_each() {
    for end in ["done", "dead", "cancelled"] {
        let mut world = World::new();
        let ids = world.push_graph(vec![node("first", &[]), settled(node("then", &["first"]))]);
        let worker = world.worker();
        world.commit();
        match end {
            "done" => world.run(worker, "first"),
            "dead" => {
                let job = world.take_of(worker, "first");
                world.kill_with(worker, &job);
            }
            _ => world.cancel_one(ids[0]),
        }
        world.tick();
        assert_eq!(world.state(ids[1]), Some(JobState::Ready), "{end}");
    }
}

#[test]
fn a_held_job_is_released_by_a_dead_one_that_is_revived_and_done() {
    let mut world = World::new();
    let ids = world.push_graph(vec![node("first", &[]), held(node("then", &["first"]))]);
    let worker = world.worker();
    world.commit();
    world.kill(worker, "first");
    world.tick();
    world.reopen();
    assert_eq!(world.state(ids[1]), Some(JobState::Blocked));
    assert_eq!(world.seen(ids[1]).after, [ids[0]]);
    assert_eq!(world.revive(only(ids[0])).count, 1);
    let worker = world.worker();
    world.commit();
    world.run(worker, "first");
    assert_eq!(world.state(ids[1]), Some(JobState::Ready));
}

#[test]
fn a_job_held_by_one_that_is_gone_stays_for_a_person() {
    let mut world = World::new();
    let ids = world.push_graph(vec![
        node("first", &[]),
        held(node("then", &["first"])),
        node("last", &["then"]),
    ]);
    let worker = world.worker();
    world.commit();
    world.kill(worker, "first");
    world.tick();
    assert_eq!(world.purge(only(ids[0])).count, 1);
    world.tick();
    world.commit();
    let view = world.seen(ids[1]);
    assert_eq!((view.state, view.waits_for), (JobState::Blocked, 1));
    assert_eq!(view.after, []);
    world.store.check_edges();
    world.cancel_one(ids[1]);
    world.tick();
    assert_eq!(world.state(ids[2]), None);
    world.check_over();
}

#[test]
fn a_job_revived_at_once_is_not_over() {
    let mut world = World::new();
    let ids = world.push_graph(vec![node("first", &[]), node("then", &["first"])]);
    let worker = world.worker();
    world.commit();
    world.kill(worker, "first");
    world.revive(only(ids[0]));
    world.tick();
    assert_eq!(world.state(ids[1]), Some(JobState::Blocked));
    world.run(worker, "first");
    assert_eq!(world.state(ids[1]), Some(JobState::Ready));
}

#[test]
fn a_job_with_a_delay_is_ready_when_both_hold() {
    let later = |delay| JobSpec {
        delay_ms: Some(DurationMs(delay)),
        ..node("then", &["first"])
    };
    let mut world = World::new();
    let worker = world.worker();
    let ids = world.push_graph(vec![node("first", &[]), later(5_000)]);
    world.commit();
    world.run(worker, "first");
    assert_eq!(world.state(ids[1]), Some(JobState::Scheduled));
    world.pass(DurationMs(4_999));
    assert_eq!(world.state(ids[1]), Some(JobState::Scheduled));
    world.pass(DurationMs(1));
    assert_eq!(world.state(ids[1]), Some(JobState::Ready));
    // The delay counts from the push.
    let ids = world.push_graph(vec![node("first", &[]), later(5_000)]);
    world.pass(DurationMs(6_000));
    world.commit();
    let worker = world.worker();
    world.run(worker, "first");
    assert_eq!(world.state(ids[1]), Some(JobState::Ready));
}

#[test]
fn a_blocked_job_expires() {
    let mut world = World::new();
    let mut then = node("then", &["first"]);
    then.expires_at = Some(world.now.wall.plus(DurationMs(1_000)));
    let ids = world.push_graph(vec![node("first", &[]), then, node("last", &["then"])]);
    world.commit();
    world.pass(DurationMs(1_000));
    world.tick();
    assert_eq!(world.state(ids[1]), None);
    assert_eq!(world.state(ids[2]), None);
    assert_eq!(world.counters("then").expired, 1);
    assert_eq!(world.counters("last").cancelled, 1);
    // Who was waited for goes on, and finds nobody.
    let worker = world.worker();
    world.commit();
    world.run(worker, "first");
    world.check_over();
}

#[test]
fn a_job_that_is_kept_for_a_time_is_over_all_the_same() {
    let kept = |node: JobSpec| JobSpec {
        retain_ms: Some(DAY),
        ..node
    };
    let mut world = World::new();
    let ids = world.push_graph(vec![
        kept(node("first", &[])),
        kept(node("then", &["first"])),
        kept(node("last", &["then"])),
    ]);
    let worker = world.worker();
    world.commit();
    world.run(worker, "first");
    assert_eq!(world.state(ids[0]), Some(JobState::Done));
    assert_eq!(world.state(ids[1]), Some(JobState::Ready));
    world.cancel_one(ids[1]);
    world.tick();
    assert_eq!(world.state(ids[1]), Some(JobState::Cancelled));
    assert_eq!(world.state(ids[2]), Some(JobState::Cancelled));
    assert_eq!(world.seen(ids[2]).waits_for, 0);
    world.commit();
    world.store.check_edges();
    assert!(world.store.edges.is_empty());
    world.check_over();
}

#[test]
fn the_clock_set_back_delays_nobody() {
    let mut world = World::new();
    let ids = world.push_graph(vec![node("first", &[]), node("then", &["first"])]);
    let worker = world.worker();
    world.commit();
    let job = world.take_of(worker, "first");
    world.now.wall.0 -= 3_600_000;
    world.ack(worker, &job);
    world.tick();
    assert_eq!(world.state(ids[1]), Some(JobState::Ready));
}

#[test]
fn what_was_not_looked_at_before_a_crash_is_looked_at_after_it() {
    let mut world = World::new();
    let mut jobs = vec![node("first", &[])];
    let names: Vec<String> = (0..50).map(|nth| format!("n{nth}")).collect();
    for name in &names {
        let mut job = node(name, &["first"]);
        job.queue = "then".parse().unwrap();
        jobs.push(job);
    }
    let ids = world.push_graph(jobs);
    let worker = world.worker();
    world.commit();
    let job = world.take_of(worker, "first");
    world.ack(worker, &job);
    // One slice of fifty, and then the server is gone.
    world.step(Command::Tick);
    world.reopen();
    assert!(world.counters("then").blocked > 0);
    world.tick();
    assert_eq!(world.counters("then").ready, 50);
    assert_eq!(world.state(ids[50]), Some(JobState::Ready));
    world.commit();
    world.store.check_edges();
    assert!(world.store.edges.is_empty());
}

#[test]
fn a_job_that_runs_over_a_restart_lets_go_on_who_waits_for_it() {
    for bytes in [7, 20_000] {
        let mut world = World::new();
        let mut first = node("first", &[]);
        first.payload = vec![7; bytes].into();
        let ids = world.push_graph(vec![first, node("then", &["first"])]);
        let worker = world.worker();
        world.commit();
        let job = world.take_of(worker, "first");
        world.reopen();
        world.ack(worker, &job);
        world.tick();
        assert_eq!(world.state(ids[1]), Some(JobState::Ready), "{bytes}");
    }
}

#[test]
fn many_are_cancelled_in_slices() {
    let mut world = World::new();
    let names: Vec<String> = (0..200).map(|nth| format!("n{nth}")).collect();
    let mut jobs = vec![node("n0", &[])];
    for pair in names.windows(2) {
        jobs.push(node(&pair[1], &[&pair[0]]));
    }
    let ids = world.push_graph(jobs);
    world.commit();
    world.cancel_one(ids[0]);
    world.step(Command::Tick);
    world.reopen();
    world.tick();
    assert!(ids.iter().all(|job| world.state(*job).is_none()));
    world.check_over();
}

#[test]
fn a_purged_queue_settles_those_that_wait_in_it() {
    let mut world = World::new();
    let ids = world.push_graph(vec![
        node("first", &[]),
        node("then", &["first"]),
        settled(node("last", &["then"])),
    ]);
    world.commit();
    let queue = "then".parse().unwrap();
    let purge = Operation::QueuePurge(OneQueue { queue });
    world.ask(None, purge).unwrap();
    assert_eq!(world.state(ids[1]), None);
    // Who is waited for may end before the sweep comes by.
    let worker = world.worker();
    world.run(worker, "first");
    for _ in 0..6 {
        world.commit();
        world.live(DurationMs(10));
    }
    assert_eq!(world.state(ids[2]), Some(JobState::Ready));
    world.run(worker, "last");
    world.check_over();
}

#[test]
fn members_that_are_blocked_are_pending_and_the_graph_tells_of_all() {
    let mut world = World::new();
    let batch = world.open_batch(BatchOpen::default());
    let ids = world.push_graph(in_batch(
        batch,
        vec![
            node("a", &[]),
            node("b", &["a"]),
            node("c", &["a"]),
            node("d", &["b", "c"]),
        ],
    ));
    world.commit_batch(batch);
    let counters = world.batch(batch).counters;
    assert_eq!((counters.pending, counters.untried), (4, 4));
    let worker = world.worker();
    world.commit();
    world.run(worker, "a");
    let job = world.take_of(worker, "b");
    world.commit();
    let named = |name: &str, state| (name.to_owned(), state);
    let states = [
        named("a", NodeState::Done),
        named("b", NodeState::Leased),
        named("c", NodeState::Ready),
        named("d", NodeState::Blocked),
    ];
    assert_eq!(world.states_of(batch), states);
    let graph = world.graph(batch, 100);
    let last = graph.iter().find(|node| node.job == ids[3]).unwrap();
    assert_eq!(last.after, [ids[1], ids[2]]);
    world.kill_with(worker, &job);
    world.tick();
    assert_eq!(world.batch(batch).state, BatchState::Committed);
    world.run(worker, "c");
    let view = world.batch(batch);
    assert_eq!(view.state, BatchState::Settled);
    assert_eq!((view.counters.done, view.counters.dead), (2, 1));
    assert_eq!(view.counters.cancelled, 1);
    world.reopen();
    let states = [
        named("a", NodeState::Done),
        named("b", NodeState::Dead),
        named("c", NodeState::Done),
        named("d", NodeState::Cancelled),
    ];
    assert_eq!(world.states_of(batch), states);
    assert_eq!(world.purge(only(ids[1])).count, 1);
    assert_eq!(world.states_of(batch)[1].1, NodeState::Deleted);
    // With the batch its graph is forgotten.
    world.live(DurationMs::from_hours(24 * 8));
    world.commit();
    assert!(world.store.nodes.is_empty() && world.store.node_ends.is_empty());
}

#[test]
fn a_large_graph_is_forgotten_in_slices() {
    let mut world = World::new();
    let batch = world.open_batch(BatchOpen::default());
    let names: Vec<String> = (0..100).map(|nth| format!("n{nth}")).collect();
    let jobs = names.iter().map(|name| node(name, &[])).collect();
    let ids = world.push_graph(in_batch(batch, jobs));
    world.commit_batch(batch);
    for job in ids {
        world.cancel_one(job);
    }
    world.commit();
    assert_eq!(world.store.nodes.len(), 100);
    world.live(DurationMs::from_hours(24 * 8));
    world.commit();
    assert!(world.store.nodes.is_empty() && world.store.node_ends.is_empty());
    let gone = BatchGraph {
        batch,
        cursor: None,
        limit: 10,
    };
    assert!(world.ask(None, Operation::BatchGraph(gone)).is_err());
}
