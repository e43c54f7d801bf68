//! Which workflows are pushed, which are refused as a whole, and for which field.

use ganger_protocol::{
    ErrorCode, Timestamp,
    job::{OnConflict, Unique},
    limits::{AFTER_MAX, EDGES_MAX},
    queue::{QueueSet, Setting},
};

use super::*;
use crate::{command::Producer, records::ProducerNumber};

fn refused(world: &mut World, jobs: Vec<JobSpec>) -> (ErrorCode, String) {
    let error = world.push_results(jobs).unwrap_err();
    (error.code, error.field.unwrap())
}

fn check(jobs: Vec<JobSpec>, code: ErrorCode, field: &str) {
    let mut world = World::new();
    assert_eq!(refused(&mut world, jobs), (code, field.to_owned()));
    world.commit();
    assert!(world.store.jobs.is_empty() && world.store.edges.is_empty());
}

#[test]
fn a_graph_that_is_none_is_refused_with_its_field() {
    let bad = ErrorCode::BadRequest;
    check(vec![node("a", &[]), node("a", &[])], bad, "jobs[1].name");
    check(
        vec![node("a", &[]), node("b", &["a", "c"])],
        bad,
        "jobs[1].after[1]",
    );
    check(vec![node("a", &["a"])], bad, "jobs[0].after[0]");
    check(
        vec![node("a", &[]), node("b", &["a", "a"])],
        bad,
        "jobs[1].after[1]",
    );
    let circle = vec![
        node("a", &[]),
        node("b", &["a", "d"]),
        node("c", &["b"]),
        node("d", &["c"]),
        node("e", &["d"]),
    ];
    let mut world = World::new();
    let (code, field) = refused(&mut world, circle);
    assert_eq!(code, bad);
    assert!(
        ["jobs[1].after[1]", "jobs[2].after[0]", "jobs[3].after[0]"].contains(&&*field),
        "{field}"
    );
    let mut lonely = node("a", &[]);
    lonely.condition = Some(Condition::Settled);
    check(vec![lonely], bad, "jobs[0].if");
    let mut lonely = node("a", &[]);
    lonely.on_dead = Some(OnDead::Hold);
    check(vec![lonely], bad, "jobs[0].on_dead");
    check(
        vec![node("a", &[]), held(settled(node("b", &["a"])))],
        bad,
        "jobs[1].on_dead",
    );
}

#[test]
fn without_atomic_a_job_that_waits_is_refused_and_the_others_are_taken() {
    let mut world = World::new();
    let push = Push::of(vec![node("a", &[]), node("b", &["a"])]);
    let results = world.push_as(None, push).unwrap();
    assert!(results[0].id.is_some());
    let error = results[1].err.as_ref().unwrap();
    assert_eq!(
        (error.code, error.field.as_deref()),
        (ErrorCode::BadRequest, Some("after"))
    );
}

#[test]
fn a_job_waits_for_as_many_as_the_limits_say_and_not_for_one_more() {
    let name = |nth: usize| format!("n{nth}");
    let names: Vec<String> = (0..=AFTER_MAX).map(name).collect();
    let wide = |count: usize| {
        let mut jobs: Vec<JobSpec> = names[..count].iter().map(|name| node(name, &[])).collect();
        for job in &mut jobs {
            job.queue = "wide".parse().unwrap();
        }
        let all: Vec<&str> = names[..count].iter().map(String::as_str).collect();
        jobs.push(node("end", &all));
        jobs
    };
    let mut world = World::new();
    let ids = world.push_graph(wide(AFTER_MAX));
    assert_eq!(world.seen(ids[AFTER_MAX]).waits_for, 1_000);
    assert_eq!(world.seen(ids[AFTER_MAX]).after.len(), 100);
    check(wide(AFTER_MAX + 1), ErrorCode::TooLarge, "jobs[1001].after");
    let full = |edges: usize| {
        let mut jobs = wide(500);
        jobs.pop();
        let mut left = edges;
        for nth in 0.. {
            let count = left.min(500);
            let all: Vec<&str> = names[..count].iter().map(String::as_str).collect();
            jobs.push(node(&format!("e{nth}"), &all));
            left -= count;
            if left == 0 {
                return jobs;
            }
        }
        jobs
    };
    world.push_graph(full(EDGES_MAX));
    check(full(EDGES_MAX + 1), ErrorCode::TooLarge, "jobs[510].after");
}

#[test]
fn a_graph_that_is_sent_again_is_one_graph() {
    let mut world = World::new();
    let producer = Some(Producer {
        number: ProducerNumber(7),
        made_at: Timestamp(0),
    });
    let producer = producer.map(|it| Producer {
        made_at: world.now.wall,
        ..it
    });
    let push = Push {
        atomic: true,
        seq: Some(1),
        ..Push::of(vec![
            node("b", &["a"]),
            node("a", &[]),
            node("c", &["b", "a"]),
        ])
    };
    let first = world.push_as(producer, push.clone()).unwrap();
    assert_eq!(world.push_as(producer, push.clone()).unwrap(), first);
    world.reopen();
    assert_eq!(world.push_as(producer, push).unwrap(), first);
    assert_eq!(world.store.edges.len(), 3);
    let counters = world.counters("b");
    assert_eq!((counters.pushed, counters.blocked), (1, 1));
}

#[test]
fn members_of_the_same_live_batch_are_waited_for_by_their_ids() {
    let mut world = World::new();
    let batch = world.open_batch(BatchOpen::default());
    let first = world.push_graph(in_batch(batch, vec![node("a", &[])]))[0];
    let plain = world.push_graph(in_batch(batch, vec![job("plain")]))[0];
    world.commit();
    let worker = world.worker();
    world.commit();
    let leased = world.take_of(worker, "plain");
    let mut then = behind(first, node("b", &[]));
    then.after.push(tag(&plain.to_string()));
    let then = world.push_graph(in_batch(batch, vec![then]))[0];
    assert_eq!(world.seen(then).waits_for, 2);
    world.ack(worker, &leased);
    world.tick();
    assert_eq!(world.seen(then).waits_for, 1);
    world.run(worker, "a");
    assert_eq!(world.state(then), Some(JobState::Ready));
    // One with a name is known to be done when it is over.
    let last = world.push_graph(in_batch(batch, vec![behind(first, node("c", &[]))]))[0];
    assert_eq!(world.state(last), Some(JobState::Ready));
}

#[test]
fn a_plain_member_that_runs_over_a_restart_lets_go_on_who_waits_for_it() {
    let mut world = World::new();
    let batch = world.open_batch(BatchOpen::default());
    let mut large = job("plain");
    large.payload = vec![7; 20_000].into();
    let plain = world.push_graph(in_batch(batch, vec![large]))[0];
    let worker = world.worker();
    world.commit();
    let leased = world.take_of(worker, "plain");
    let then = world.push_graph(in_batch(batch, vec![behind(plain, node("b", &[]))]))[0];
    world.reopen();
    world.ack(worker, &leased);
    world.tick();
    assert_eq!(world.state(then), Some(JobState::Ready));
}

#[test]
fn an_id_that_cannot_be_waited_for_is_refused() {
    let mut world = World::new();
    let (batch, other) = (
        world.open_batch(BatchOpen::default()),
        world.open_batch(BatchOpen::default()),
    );
    let member = world.push_graph(in_batch(batch, vec![node("a", &[])]))[0];
    let foreign = world.push_graph(in_batch(other, vec![node("a", &[])]))[0];
    let alone = world.push_graph(vec![node("alone", &[])])[0];
    let gone = world.push_graph(vec![job("gone")])[0];
    world.cancel_one(gone);
    world.commit();
    let field = |at: &str| at.to_owned();
    let mut ask = |jobs| refused(&mut world, jobs);
    let at = || field("jobs[0].after[0]");
    assert_eq!(
        ask(vec![behind(member, job("x"))]),
        (ErrorCode::BadRequest, at())
    );
    for (id, code) in [
        (foreign, ErrorCode::BadRequest),
        (alone, ErrorCode::BadRequest),
        (gone, ErrorCode::NotFound),
    ] {
        assert_eq!(
            ask(in_batch(batch, vec![behind(id, job("x"))])),
            (code, at())
        );
    }
    // One that ended otherwise is waited for only by who takes any end.
    world.cancel_one(member);
    let in_vain = in_batch(batch, vec![behind(member, job("x"))]);
    assert_eq!(refused(&mut world, in_vain), (ErrorCode::Conflict, at()));
    let any = in_batch(batch, vec![settled(behind(member, job("x")))]);
    let id = world.push_graph(any)[0];
    assert_eq!(world.state(id), Some(JobState::Ready));
    // A settled batch takes nobody.
    world.cancel_one(id);
    world.commit_batch(batch);
    let late = in_batch(batch, vec![settled(behind(member, job("x")))]);
    let (code, field) = refused(&mut world, late);
    assert_eq!((code, &*field), (ErrorCode::Conflict, "jobs[0].batch"));
}

#[test]
fn a_dead_member_is_waited_for_by_who_is_held() {
    let mut world = World::new();
    let batch = world.open_batch(BatchOpen::default());
    let first = world.push_graph(in_batch(batch, vec![node("a", &[])]))[0];
    let worker = world.worker();
    world.commit();
    world.kill(worker, "a");
    world.tick();
    world.commit();
    let in_vain = in_batch(batch, vec![behind(first, job("x"))]);
    assert_eq!(refused(&mut world, in_vain).0, ErrorCode::Conflict);
    let hold = in_batch(batch, vec![held(behind(first, node("b", &[])))]);
    let then = world.push_graph(hold)[0];
    assert_eq!(world.state(then), Some(JobState::Blocked));
    world.revive(only(first));
    world.run(worker, "a");
    assert_eq!(world.state(then), Some(JobState::Ready));
}

#[test]
fn a_blocked_job_holds_its_unique_key_and_lets_it_go_when_it_is_cancelled() {
    let mut world = World::new();
    let unique = |node: JobSpec| JobSpec {
        unique: Some(Box::new(Unique::named(tag("only")))),
        ..node
    };
    let jobs = || vec![node("a", &[]), unique(node("b", &["a"]))];
    let ids = world.push_graph(jobs());
    world.commit();
    // A second graph is refused as a whole, whatever is said of conflicts.
    let (code, field) = refused(&mut world, jobs());
    assert_eq!((code, &*field), (ErrorCode::Conflict, "jobs[1].unique"));
    assert_eq!(world.counters("a").pushed, 1);
    // A plain one finds the blocked job, and gives it another payload.
    let mut other = unique(job("b"));
    other.payload = b"changed"[..].into();
    if let Some(unique) = &mut other.unique {
        unique.on_conflict = OnConflict::Replace;
    }
    let result = world
        .push_as(None, Push::of(vec![other]))
        .unwrap()
        .remove(0);
    assert_eq!((result.id, result.replaced), (Some(ids[1]), true));
    let view = world.seen(ids[1]);
    assert_eq!(
        (view.state, &*view.payload),
        (JobState::Blocked, &b"changed"[..])
    );
    world.cancel_one(ids[0]);
    world.tick();
    assert_eq!(world.state(ids[1]), None);
    world.push_graph(jobs());
}

#[test]
fn a_quota_counts_those_that_are_blocked() {
    let mut world = World::new();
    let mut set = QueueSet::of("b".parse().unwrap());
    set.jobs_max = Setting::To(1);
    world.push_graph(vec![node("a", &[]), node("b", &["a"])]);
    world.ask(None, Operation::QueueSet(Box::new(set))).unwrap();
    let (code, field) = refused(&mut world, vec![node("a", &[]), node("b", &["a"])]);
    assert_eq!((code, &*field), (ErrorCode::QuotaExceeded, "jobs[1].queue"));
    assert_eq!(world.counters("a").pushed, 1);
}
