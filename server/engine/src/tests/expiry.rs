//! Expiry: what waits too long is not granted; what is leased does not expire. And spreading.

use ganger_protocol::{
    DurationMs, JobSpec,
    job::{JobState, Unique},
    request::{DeadSelect, Push},
};

use crate::testing::{BEGIN, World, fail_item, ids, job, numbered, tiny};

fn expiring(ms: u64) -> JobSpec {
    JobSpec {
        expires_at: Some(BEGIN.plus(DurationMs(ms))),
        ..job("q")
    }
}

/// Checks the same in one group, over groups, and over restarts.
fn everywhere(check: impl Fn(&mut World, fn(&mut World))) {
    for pause in [|_: &mut World| {}, World::commit, World::reopen] {
        let mut world = World::new();
        check(&mut world, pause);
        world.commit();
        for session in world.sessions() {
            world.goodbye(session);
        }
        world.commit();
        world.store.check_empty();
        world.engine.check_drained().unwrap();
    }
}

#[test]
fn a_waiting_job_expires_at_its_time_and_not_before() {
    everywhere(|world, pause| {
        let ready = world.push(expiring(1_000));
        let later = world.push(JobSpec {
            delay_ms: Some(DurationMs(5_000)),
            ..expiring(1_000)
        });
        let spilled = world.push(JobSpec {
            payload: vec![1; 20_000].into(),
            ..expiring(1_000)
        });
        pause(world);
        world.live(DurationMs(999));
        assert_eq!(world.state(ready), Some(JobState::Ready));
        assert_eq!(world.state(later), Some(JobState::Scheduled));
        pause(world);
        world.live(DurationMs(1));
        for id in [ready, later, spilled] {
            assert_eq!(world.state(id), None);
        }
        let counters = world.counters("q");
        assert_eq!((counters.expired, counters.kept()), (3, 0));
    });
}

#[test]
fn a_grant_looks_by_itself_and_takes_the_next_job() {
    everywhere(|world, pause| {
        let worker = world.worker();
        world.push_all(vec![expiring(1_000), expiring(2_000), expiring(1_000)]);
        let last = world.push(job("q"));
        pause(world);
        // The clock moves and no timer fires.
        world.now.wall = world.now.wall.plus(DurationMs(1_500));
        let granted = world.fetch(worker, "q", 5);
        assert_eq!(granted.len(), 2);
        assert_eq!(granted[1].id, last);
        assert_eq!(world.counters("q").expired, 2);
        for job in granted {
            world.ack(worker, &job);
        }
    });
}

#[test]
fn expired_heads_do_not_hide_the_jobs_behind_them() {
    let mut world = World::with(tiny());
    let worker = world.worker();
    for _ in 0..100 {
        world.push(expiring(1_000));
        world.commit();
    }
    let last = world.push(job("q"));
    world.commit();
    world.now.wall = world.now.wall.plus(DurationMs(1_500));
    let granted = world.fetch(worker, "q", 1);
    assert_eq!(ids(&granted), [last]);
    world.ack(worker, &granted[0]);
    world.tick();
    assert_eq!(world.counters("q").expired, 100);
}

#[test]
fn a_waiting_fetch_goes_on_waiting_when_all_that_is_there_has_expired() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(expiring(1_000));
    world.pause("q");
    let waiting = world.wait(worker, &["q"]);
    world.now.wall = world.now.wall.plus(DurationMs(1_500));
    world.unpause("q");
    assert!(world.waited(waiting).is_none());
    let id = world.push(job("q"));
    world.commit();
    let granted = world.waited(waiting).unwrap();
    assert_eq!(ids(&granted), [id]);
}

#[test]
fn a_leased_job_does_not_expire() {
    everywhere(|world, pause| {
        let worker = world.worker();
        let id = world.push(expiring(1_000));
        pause(world);
        let granted = world.fetch(worker, "q", 1).remove(0);
        pause(world);
        world.live(DurationMs(5_000));
        assert_eq!(world.state(id), Some(JobState::Leased));
        world.ack(worker, &granted);
        assert_eq!(world.counters("q").done, 1);
    });
}

#[test]
fn a_job_that_comes_back_too_late_expires_and_is_not_granted_again() {
    everywhere(|world, pause| {
        let worker = world.worker();
        let id = world.push(expiring(1_000));
        let granted = world.fetch(worker, "q", 1).remove(0);
        pause(world);
        world.now.wall = world.now.wall.plus(DurationMs(5_000));
        world.release(worker, &granted, None);
        pause(world);
        assert_eq!(world.fetch(worker, "q", 1), []);
        world.tick();
        assert_eq!(world.state(id), None);
        assert_eq!(world.counters("q").expired, 1);
    });
}

#[test]
fn a_retrying_job_expires_while_it_waits_for_its_next_attempt() {
    everywhere(|world, pause| {
        let worker = world.worker();
        let id = world.push(expiring(5_000));
        let granted = world.fetch(worker, "q", 1).remove(0);
        let item = ganger_protocol::request::FailItem {
            retry_in_ms: Some(DurationMs(60_000)),
            ..fail_item(granted.id, granted.lease)
        };
        world.fail_with(worker, item);
        pause(world);
        world.live(DurationMs(4_999));
        assert_eq!(world.state(id), Some(JobState::Scheduled));
        world.live(DurationMs(1));
        assert_eq!(world.state(id), None);
    });
}

#[test]
fn an_expired_job_lets_its_unique_key_go() {
    everywhere(|world, pause| {
        let unique = || JobSpec {
            unique: Some(Box::new(Unique::named("k".parse().unwrap()))),
            ..expiring(1_000)
        };
        world.push(unique());
        pause(world);
        world.live(DurationMs(1_000));
        pause(world);
        let again = JobSpec {
            expires_at: Some(BEGIN.plus(DurationMs(2_000))),
            ..unique()
        };
        let result = world
            .push_as(None, Push::of(vec![again]))
            .unwrap()
            .remove(0);
        assert!(!result.existing);
        world.live(DurationMs(1_000));
    });
}

#[test]
fn a_dead_job_whose_time_has_passed_stays_dead() {
    everywhere(|world, pause| {
        let worker = world.worker();
        world.push(expiring(1_000));
        let dead = world.kill(worker, "q");
        pause(world);
        let select = || DeadSelect {
            jobs: vec![dead],
            ..DeadSelect::default()
        };
        world.live(DurationMs(1_000));
        let reply = world.revive(select());
        assert_eq!((reply.count, reply.conflicts), (0, vec![dead]));
        assert_eq!(world.state(dead), Some(JobState::Dead));
        world.purge(select());
    });
}

#[test]
fn a_revived_job_expires_at_its_time() {
    everywhere(|world, pause| {
        let worker = world.worker();
        world.push(expiring(1_000));
        let dead = world.kill(worker, "q");
        pause(world);
        let jobs = vec![dead];
        world.revive(DeadSelect {
            jobs,
            ..DeadSelect::default()
        });
        pause(world);
        world.live(DurationMs(1_000));
        assert_eq!(world.state(dead), None);
    });
}

#[test]
fn a_spread_push_runs_evenly_over_its_time() {
    let mut world = World::new();
    let worker = world.worker();
    let push = Push {
        spread_ms: Some(DurationMs(1_000)),
        ..Push::of(numbered("q", 0..4))
    };
    world.push_as(None, push).unwrap();
    let mut seen = Vec::new();
    for _ in 0..4 {
        let granted = world.fetch(worker, "q", 9);
        let payloads = granted.iter().map(|job| job.payload[0] - b'0');
        seen.push(payloads.collect::<Vec<_>>());
        world.live(DurationMs(250));
    }
    assert_eq!(seen, [[0], [1], [2], [3]]);
}

#[test]
fn a_spread_adds_to_the_delay_of_each_job() {
    let mut world = World::new();
    let delayed = || JobSpec {
        delay_ms: Some(DurationMs(100)),
        ..job("q")
    };
    let push = Push {
        spread_ms: Some(DurationMs(10)),
        ..Push::of(vec![delayed(), delayed(), delayed()])
    };
    let results = world.push_as(None, push).unwrap();
    let times = results.into_iter().map(|result| {
        let view = world.look(result.id.unwrap()).unwrap();
        view.run_at.unwrap().since(BEGIN).0
    });
    assert_eq!(times.collect::<Vec<_>>(), [100, 103, 106]);
}
