//! Is the worker alive? Sessions, how they end, and what becomes of their leases.

use ganger_protocol::{
    DurationMs, ErrorCode,
    job::JobState,
    limits::SESSION_TTL_DEFAULT,
    request::{Operation, Release, ReleaseItem, SessionHello},
    response::Notice,
};

use crate::{
    command::{Command, ConnectionId},
    testing::{World, ids, job, lease_ref, numbered},
};

#[test]
fn a_session_without_a_frame_is_lost_after_its_ttl_and_its_job_is_ready_at_once() {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(job("a"));
    world.fetch(worker, "a", 1);
    world.live(DurationMs(14_999));
    assert_eq!(world.state(id), Some(JobState::Leased));
    world.live(DurationMs(1));
    assert_eq!(world.state(id), Some(JobState::Ready));
    assert_eq!(
        world.heartbeat(worker).unwrap_err().code,
        ErrorCode::NotFound
    );
}

#[test]
fn any_frame_keeps_a_session_alive() {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(job("a"));
    world.fetch(worker, "a", 1);
    for _ in 0..5 {
        world.live(DurationMs(14_000));
        world.heartbeat(worker).unwrap();
    }
    world.live(DurationMs(14_000));
    world.fetch(worker, "b", 1);
    world.live(DurationMs(14_000));
    assert_eq!(world.state(id), Some(JobState::Leased));
}

#[test]
fn a_ttl_of_its_own_is_kept() {
    let mut world = World::new();
    let hello = SessionHello {
        ttl_ms: Some(DurationMs(60_000)),
        ..SessionHello::default()
    };
    let opened = world.open(hello, 7);
    assert_eq!(opened.ttl, DurationMs(60_000));
    world.live(DurationMs(59_999));
    assert_eq!(world.store.sessions() + world.engine.sessions.count(), 1);
    world.live(DurationMs(1));
    assert_eq!(world.engine.sessions.count(), 0);
}

#[test]
fn a_session_without_leases_whose_fetch_waits_needs_no_heartbeat() {
    let mut world = World::new();
    let worker = world.worker();
    for _ in 0..10 {
        let wait = world.wait(worker, &["a"]);
        world.live(DurationMs(10_000));
        assert_eq!(world.waited(wait), Some(vec![]));
    }
    assert!(world.heartbeat(worker).is_ok());
}

#[test]
fn a_session_with_a_lease_needs_heartbeats_though_its_fetch_waits() {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(job("a"));
    world.fetch(worker, "a", 1);
    world.live(DurationMs(8_000));
    let wait = world.wait(worker, &["b"]);
    world.live(DurationMs(9_000));
    world.wait(worker, &["b"]);
    world.live(DurationMs(15_000));
    assert_eq!(world.state(id), Some(JobState::Ready));
    assert_eq!(world.waited(wait), Some(vec![]));
}

#[test]
fn a_server_that_has_stalled_gives_each_session_one_fresh_ttl() {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(job("a"));
    world.fetch(worker, "a", 1);
    world.pass(DurationMs(60_000));
    assert_eq!(world.state(id), Some(JobState::Leased));
    world.live(DurationMs(14_999));
    assert_eq!(world.state(id), Some(JobState::Leased));
    world.live(DurationMs(1));
    assert_eq!(world.state(id), Some(JobState::Ready), "one, not two");
}

#[test]
fn a_server_that_is_a_little_late_forgives_nothing() {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(job("a"));
    world.fetch(worker, "a", 1);
    world.pass(SESSION_TTL_DEFAULT.plus(DurationMs(5_000)));
    assert_eq!(world.state(id), Some(JobState::Ready));
}

#[test]
fn a_lost_session_gives_its_jobs_back_in_their_old_order() {
    let mut world = World::new();
    let (worker, other) = (world.worker(), world.worker());
    let pushed = world.push_all(numbered("a", 0..5));
    world.fetch(worker, "a", 3);
    world.live(DurationMs(14_000));
    world.heartbeat(other).unwrap();
    world.live(DurationMs(1_000));
    assert_eq!(ids(&world.fetch(other, "a", 9)), pushed);
}

#[test]
fn a_resumed_session_keeps_what_it_names_and_releases_the_rest_at_once() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..3));
    let jobs = world.fetch(worker, "a", 3);
    let opened = world.resume(worker, &[lease_ref(&jobs[1])]);
    assert_eq!((opened.id, opened.lost), (worker, vec![]));
    let states = [0, 1, 2].map(|nth: usize| world.state(jobs[nth].id).unwrap());
    assert_eq!(states, [JobState::Ready, JobState::Leased, JobState::Ready]);
    assert_eq!(world.look(jobs[0].id).unwrap().releases, 1);
    assert_eq!(ids(&world.fetch(worker, "a", 3)), [jobs[0].id, jobs[2].id]);
}

#[test]
fn a_resumed_session_is_told_which_of_its_leases_are_lost() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..2));
    let jobs = world.fetch(worker, "a", 2);
    world.ack(worker, &jobs[0]);
    let held = [lease_ref(&jobs[0]), lease_ref(&jobs[1])];
    assert_eq!(world.resume(worker, &held).lost, [held[0]]);
}

#[test]
fn a_session_that_is_no_longer_known_is_replaced_and_all_its_leases_are_lost() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("a"));
    let jobs = world.fetch(worker, "a", 1);
    world.live(DurationMs(15_000));
    let opened = world.resume(worker, &[lease_ref(&jobs[0])]);
    assert_ne!(opened.id, worker);
    assert_eq!(opened.lost, [lease_ref(&jobs[0])]);
}

#[test]
fn a_session_of_another_namespace_cannot_be_resumed() {
    let mut world = World::new();
    let worker = world.worker();
    let opened = world.within("other", |world| world.resume(worker, &[]));
    assert_ne!(opened.id, worker);
}

#[test]
fn a_session_and_its_leases_outlive_a_restart() {
    let mut world = World::new();
    let worker = world.worker();
    world.push_all(numbered("a", 0..2));
    let jobs = world.fetch(worker, "a", 2);
    world.reopen();
    let opened = world.resume(worker, &[lease_ref(&jobs[0])]);
    assert_eq!((opened.id, opened.lost), (worker, vec![]));
    assert_eq!(world.ack(worker, &jobs[0]).err, None);
    assert_eq!(world.state(jobs[1].id), Some(JobState::Ready));
}

#[test]
fn a_session_that_does_not_come_back_after_a_restart_is_lost_after_its_ttl() {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(job("a"));
    world.fetch(worker, "a", 1);
    world.reopen();
    world.live(DurationMs(14_999));
    assert_eq!(world.state(id), Some(JobState::Leased));
    world.live(DurationMs(1));
    assert_eq!(world.state(id), Some(JobState::Ready));
}

#[test]
fn goodbye_releases_everything_in_order_and_ends_the_waits() {
    let mut world = World::new();
    let (worker, other) = (world.worker(), world.worker());
    let pushed = world.push_all(numbered("a", 0..4));
    world.fetch(worker, "a", 3);
    let wait = world.wait(worker, &["b"]);
    world.goodbye(worker);
    assert_eq!(world.waited(wait), Some(vec![]));
    assert_eq!(ids(&world.fetch(other, "a", 9)), pushed);
    assert_eq!(world.counters("a").released, 3);
    assert_eq!(world.counters("a").lost, 0);
}

#[test]
fn a_session_is_told_of_lost_leases_at_once_and_with_its_next_heartbeat() {
    let mut world = World::new();
    let worker = world.worker();
    let mut spec = job("a");
    spec.timeout_ms = Some(DurationMs(1_000));
    world.push(spec);
    let jobs = world.fetch(worker, "a", 1);
    world.live(DurationMs(1_000));
    let leases = vec![lease_ref(&jobs[0])];
    let told = Notice::Lost {
        leases: leases.clone(),
    };
    assert_eq!(world.notices, [(ConnectionId(worker.0), told)]);
    assert_eq!(world.heartbeat(worker).unwrap().lost, leases);
    assert_eq!(world.heartbeat(worker).unwrap().lost, []);
}

#[test]
fn what_a_session_was_not_told_of_is_bounded() {
    let mut world = World::new();
    let worker = world.worker();
    for _ in 0..3 {
        let mut specs = numbered("a", 0..900);
        for spec in &mut specs {
            spec.timeout_ms = Some(DurationMs(1_000));
        }
        world.push_all(specs);
        assert_eq!(world.fetch(worker, "a", 900).len(), 900);
        world.live(DurationMs(1_000));
    }
    assert!(world.heartbeat(worker).unwrap().lost.len() <= 1000);
}

#[test]
fn a_connection_that_breaks_leaves_the_session_alive() {
    let mut world = World::new();
    let worker = world.worker();
    let id = world.push(job("a"));
    world.fetch(worker, "a", 1);
    world.step(Command::Detach {
        connection: ConnectionId(worker.0),
        session: Some(worker),
    });
    world.live(DurationMs(14_000));
    assert_eq!(world.state(id), Some(JobState::Leased));
}

#[test]
fn many_sessions_lost_at_once_are_lost_in_bounded_ticks() {
    let mut world = World::new();
    world.push_all(numbered("a", 0..300));
    for _ in 0..300 {
        let worker = world.worker();
        world.fetch(worker, "a", 1);
    }
    world.live(DurationMs(15_000));
    let counters = world.counters("a");
    assert_eq!((counters.ready, counters.lost), (300, 300));
}

#[test]
fn a_release_of_many_keeps_their_order() {
    let mut world = World::new();
    let worker = world.worker();
    let pushed = world.push_all(numbered("a", 0..5));
    let jobs = world.fetch(worker, "a", 5);
    let leases = jobs.iter().map(|job| ReleaseItem {
        job: job.id,
        lease: job.lease,
        delay_ms: None,
    });
    let leases = leases.collect();
    let caller = world.send(Some(worker), Operation::Release(Release { leases }));
    assert!(world.reply(caller).is_some());
    assert_eq!(ids(&world.fetch(worker, "a", 5)), pushed);
}
