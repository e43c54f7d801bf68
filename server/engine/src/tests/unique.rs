//! Unique keys: when they are taken, what a second push finds, when they are free again.

use ganger_protocol::{
    DurationMs, ErrorCode, JobSpec, Timestamp,
    job::{JobState, OnConflict, Unique, UniqueOf, UniqueUntil},
    request::{DeadSelect, Push},
    response::PushResult,
};

use crate::{
    command::Producer,
    records::ProducerNumber,
    testing::{BEGIN, World, fail_item, job},
};

fn named(key: &str) -> Unique {
    Unique::named(key.parse().unwrap())
}

fn until(until: UniqueUntil) -> JobSpec {
    JobSpec {
        unique: Some(Box::new(Unique {
            until,
            ..named("k")
        })),
        ..job("q")
    }
}

fn on_conflict(on_conflict: OnConflict, payload: &str) -> JobSpec {
    JobSpec {
        unique: Some(Box::new(Unique {
            on_conflict,
            ..named("k")
        })),
        payload: payload.to_owned().into(),
        ..job("q")
    }
}

fn result(world: &mut World, job: JobSpec) -> PushResult {
    world.push_as(None, Push::of(vec![job])).unwrap().remove(0)
}

fn is_new(world: &mut World, job: JobSpec) -> bool {
    !result(world, job).existing
}

fn seal(world: &mut World) {
    world.commit();
}

fn go_on(_: &mut World) {}

fn restart(world: &mut World) {
    world.reopen();
}

/// Checks the same in one group, over groups, and over restarts.
fn everywhere(check: impl Fn(&mut World, fn(&mut World))) {
    for pause in [go_on, seal, restart] {
        let mut world = World::new();
        check(&mut world, pause);
        world.commit();
    }
}

#[test]
fn a_key_is_held_while_its_job_waits_or_is_leased_and_free_when_it_is_done() {
    everywhere(|world, pause| {
        for kind in [UniqueUntil::Settled, UniqueUntil::Success] {
            let worker = world.worker();
            let first = result(world, until(kind)).id;
            pause(world);
            let again = result(world, until(kind));
            assert_eq!((again.id, again.existing), (first, true));
            let granted = world.fetch(worker, "q", 1).remove(0);
            pause(world);
            assert!(!is_new(world, until(kind)));
            world.ack(worker, &granted);
            pause(world);
            assert!(is_new(world, until(kind)));
            let granted = world.fetch(worker, "q", 1).remove(0);
            world.ack(worker, &granted);
        }
    });
}

#[test]
fn a_spilled_job_lets_its_key_go_as_well() {
    everywhere(|world, pause| {
        let worker = world.worker();
        let large = || JobSpec {
            payload: vec![b'x'; 20_000].into(),
            ..until(UniqueUntil::Settled)
        };
        assert!(is_new(world, large()));
        pause(world);
        let granted = world.fetch(worker, "q", 1).remove(0);
        pause(world);
        world.ack(worker, &granted);
        pause(world);
        assert!(is_new(world, large()));
        world.kill(worker, "q");
        pause(world);
        assert!(is_new(world, large()));
    });
}

#[test]
fn a_key_until_start_is_free_from_the_first_grant_on() {
    everywhere(|world, pause| {
        let worker = world.worker();
        assert!(is_new(world, until(UniqueUntil::Start)));
        pause(world);
        let granted = world.fetch(worker, "q", 1).remove(0);
        pause(world);
        let second = result(world, until(UniqueUntil::Start));
        assert!(!second.existing);
        pause(world);
        // It comes back and does not take the key again, nor away from the second.
        world.release(worker, &granted, None);
        pause(world);
        assert_eq!(result(world, until(UniqueUntil::Start)).id, second.id);
        let first = world.fetch(worker, "q", 1).remove(0);
        assert_eq!(first.id, granted.id);
        world.ack(worker, &first);
        pause(world);
        assert_eq!(result(world, until(UniqueUntil::Start)).id, second.id);
    });
}

#[test]
fn a_retrying_job_holds_its_key() {
    everywhere(|world, pause| {
        let worker = world.worker();
        let first = result(world, until(UniqueUntil::Settled)).id;
        let granted = world.fetch(worker, "q", 1).remove(0);
        world.fail(worker, &granted);
        pause(world);
        assert_eq!(world.state(granted.id), Some(JobState::Scheduled));
        assert_eq!(result(world, until(UniqueUntil::Settled)).id, first);
    });
}

#[test]
fn a_dead_job_holds_its_key_only_until_success() {
    everywhere(|world, pause| {
        let worker = world.worker();
        let mut dead = Vec::new();
        for (kind, is_free) in [(UniqueUntil::Settled, true), (UniqueUntil::Success, false)] {
            assert!(is_new(world, until(kind)));
            pause(world);
            dead.push(world.kill(worker, "q"));
            pause(world);
            if is_free {
                let second = result(world, until(kind));
                assert!(!second.existing);
                let granted = world.fetch(worker, "q", 1).remove(0);
                world.ack(worker, &granted);
            } else {
                assert_eq!(result(world, until(kind)).id, dead.last().copied());
            }
            pause(world);
        }
        let jobs = dead;
        world.purge(DeadSelect {
            jobs,
            ..DeadSelect::default()
        });
        pause(world);
        assert!(is_new(world, until(UniqueUntil::Success)));
    });
}

#[test]
fn a_discarded_job_lets_its_key_go() {
    for kind in [UniqueUntil::Settled, UniqueUntil::Success] {
        let mut world = World::new();
        let worker = world.worker();
        world.push(until(kind));
        let granted = world.fetch(worker, "q", 1).remove(0);
        let item = ganger_protocol::request::FailItem {
            discard: true,
            ..fail_item(granted.id, granted.lease)
        };
        world.fail_with(worker, item);
        assert!(is_new(&mut world, until(kind)));
    }
}

#[test]
fn a_revival_takes_the_key_again_or_leaves_the_job_dead() {
    everywhere(|world, pause| {
        let worker = world.worker();
        world.push(until(UniqueUntil::Settled));
        let dead = world.kill(worker, "q");
        let second = world.push(until(UniqueUntil::Settled));
        pause(world);
        let select = || DeadSelect {
            jobs: vec![dead],
            ..DeadSelect::default()
        };
        let reply = world.revive(select());
        assert_eq!((reply.count, reply.conflicts), (0, vec![dead]));
        assert_eq!(world.state(dead), Some(JobState::Dead));
        pause(world);
        let granted = world.fetch(worker, "q", 1).remove(0);
        assert_eq!(granted.id, second);
        world.ack(worker, &granted);
        pause(world);
        let reply = world.revive(select());
        assert_eq!((reply.count, reply.conflicts), (1, vec![]));
        pause(world);
        assert_eq!(result(world, until(UniqueUntil::Settled)).id, Some(dead));
    });
}

#[test]
fn of_two_dead_jobs_with_one_key_one_revival_takes_it() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(until(UniqueUntil::Settled));
    let first = world.kill(worker, "q");
    world.push(until(UniqueUntil::Settled));
    let second = world.kill(worker, "q");
    let reply = world.revive(DeadSelect {
        jobs: vec![first, second],
        ..DeadSelect::default()
    });
    assert_eq!((reply.count, reply.conflicts), (1, vec![second]));
}

#[test]
fn a_key_until_ttl_is_held_for_its_time_whatever_becomes_of_the_job() {
    everywhere(|world, pause| {
        let worker = world.worker();
        let throttled = || JobSpec {
            unique: Some(Box::new(Unique {
                until: UniqueUntil::Ttl,
                ttl_ms: Some(DurationMs(10_000)),
                ..named("k")
            })),
            ..job("q")
        };
        let first = result(world, throttled()).id;
        pause(world);
        let granted = world.fetch(worker, "q", 1).remove(0);
        world.ack(worker, &granted);
        world.live(DurationMs(9_999));
        pause(world);
        let again = result(world, throttled());
        assert_eq!(
            (again.id, again.existing),
            (first, true),
            "its holder is gone"
        );
        // By the clock, whether the timer has fired or not.
        world.now.wall = world.now.wall.plus(DurationMs(1));
        assert!(is_new(world, throttled()));
        pause(world);
        world.live(DurationMs(9_999));
        assert!(!is_new(world, throttled()));
        world.live(DurationMs(1));
        world.commit();
        assert!(world.store.locks.is_empty());
    });
}

#[test]
fn reject_refuses_and_names_the_holder() {
    let mut world = World::new();
    let holder = world.push(on_conflict(OnConflict::Existing, "1"));
    let error = result(&mut world, on_conflict(OnConflict::Reject, "2"));
    let error = error.err.unwrap();
    assert_eq!(error.code, ErrorCode::Conflict);
    assert_eq!(error.field.as_deref(), Some("unique"));
    assert!(error.message.contains(&holder.to_string()), "{error:?}");
    assert_eq!(world.counters("q").pushed, 1);
}

#[test]
fn replace_gives_a_waiting_holder_payload_and_time() {
    everywhere(|world, pause| {
        let delayed = |payload: &str, delay| JobSpec {
            delay_ms: Some(DurationMs(delay)),
            ..on_conflict(OnConflict::Replace, payload)
        };
        let worker = world.worker();
        let id = world.push(delayed("first", 1_000));
        pause(world);
        world.live(DurationMs(900));
        let again = result(world, delayed(&"second".repeat(3_000), 1_000));
        assert_eq!(
            (again.id, again.existing, again.replaced),
            (Some(id), true, true)
        );
        pause(world);
        world.live(DurationMs(999));
        assert_eq!(world.state(id), Some(JobState::Scheduled));
        assert!(result(world, delayed("third", 0)).replaced);
        pause(world);
        assert_eq!(world.state(id), Some(JobState::Ready));
        assert!(result(world, delayed("fourth", 0)).replaced);
        pause(world);
        let granted = world.fetch(worker, "q", 5);
        assert_eq!(granted.len(), 1);
        assert_eq!(&granted[0].payload[..], b"fourth");
        pause(world);
        let late = result(world, delayed("fifth", 0));
        assert_eq!(
            (late.id, late.existing, late.replaced),
            (Some(id), true, false)
        );
        world.ack(worker, &granted[0]);
        world.commit();
        world.store.check_empty();
        assert_eq!(world.counters("q").pushed, 1);
    });
}

#[test]
fn replace_moves_a_ready_job_of_a_full_run_to_its_new_time() {
    everywhere(|world, pause| {
        let worker = world.worker();
        for serial in 0..40 {
            world.push(JobSpec {
                unique: Some(Box::new(named(&format!("k{serial}")))),
                ..job("q")
            });
        }
        pause(world);
        for serial in (0..40).step_by(2) {
            let replaced = result(
                world,
                JobSpec {
                    unique: Some(Box::new(Unique {
                        on_conflict: OnConflict::Replace,
                        ..named(&format!("k{serial}"))
                    })),
                    delay_ms: Some(DurationMs(1_000)),
                    ..job("q")
                },
            );
            assert!(replaced.replaced);
        }
        pause(world);
        assert_eq!(world.counters("q").scheduled, 20);
        let granted = world.fetch(worker, "q", 100);
        assert_eq!(granted.len(), 20);
        world.live(DurationMs(1_000));
        let late = world.fetch(worker, "q", 100);
        assert_eq!(late.len(), 20);
        for job in granted.iter().chain(&late) {
            world.ack(worker, job);
        }
        world.goodbye(worker);
        world.commit();
        world.store.check_empty();
        world.engine.check_drained().unwrap();
    });
}

#[test]
fn replace_leaves_a_job_of_another_kind_alone() {
    let mut world = World::new();
    world.push(on_conflict(OnConflict::Existing, "1"));
    let other = JobSpec {
        kind: "other".parse().unwrap(),
        ..on_conflict(OnConflict::Replace, "2")
    };
    let result = result(&mut world, other);
    assert_eq!((result.existing, result.replaced), (true, false));
}

#[test]
fn a_derived_key_is_made_of_the_bytes_of_its_fields() {
    let mut world = World::new();
    let of = |of: &[UniqueOf], queue, payload: &str| JobSpec {
        unique: Some(Box::new(Unique::derived(of))),
        payload: payload.to_owned().into(),
        ..job(queue)
    };
    let all = [UniqueOf::Queue, UniqueOf::Kind, UniqueOf::Payload];
    assert!(is_new(&mut world, of(&all, "a", "1")));
    assert!(!is_new(&mut world, of(&all, "a", "1")));
    assert!(is_new(&mut world, of(&all, "b", "1")));
    assert!(is_new(&mut world, of(&all, "a", "2")));
    assert!(is_new(&mut world, of(&[UniqueOf::Payload], "a", "1")));
    assert!(!is_new(&mut world, of(&[UniqueOf::Payload], "b", "1")));
    // A name is never what a derived key is.
    let spec = JobSpec {
        unique: Some(Box::new(named("1"))),
        ..job("a")
    };
    assert!(is_new(&mut world, spec));
}

#[test]
fn keys_belong_to_their_namespace() {
    let mut world = World::new();
    assert!(is_new(&mut world, until(UniqueUntil::Settled)));
    let is_new = world.within("other", |world| is_new(world, until(UniqueUntil::Settled)));
    assert!(is_new);
}

#[test]
fn an_atomic_push_with_one_conflict_makes_nothing() {
    let mut world = World::new();
    let push = Push {
        atomic: true,
        ..Push::of(vec![
            job("q"),
            on_conflict(OnConflict::Existing, "1"),
            on_conflict(OnConflict::Reject, "2"),
        ])
    };
    let error = world.push_as(None, push).unwrap_err();
    assert_eq!(error.code, ErrorCode::Conflict);
    assert_eq!(error.field.as_deref(), Some("jobs[2].unique"));
    world.push(on_conflict(OnConflict::Existing, "1"));
    let push = Push {
        atomic: true,
        ..Push::of(vec![job("q"), on_conflict(OnConflict::Reject, "2")])
    };
    let error = world.push_as(None, push).unwrap_err();
    assert_eq!(error.field.as_deref(), Some("jobs[1].unique"));
    assert_eq!(world.counters("q").pushed, 1);
}

#[test]
fn a_push_sent_again_has_its_first_outcome_though_the_holder_is_gone() {
    everywhere(|world, pause| {
        let worker = world.worker();
        let producer = Some(Producer {
            number: ProducerNumber(7),
            made_at: Timestamp(BEGIN.0),
        });
        world.push(on_conflict(OnConflict::Existing, "1"));
        let push = || Push {
            seq: Some(1),
            ..Push::of(vec![on_conflict(OnConflict::Replace, "2"), job("q")])
        };
        let first = world.push_as(producer, push()).unwrap();
        assert!(first[0].replaced && !first[1].existing);
        pause(world);
        for job in world.fetch(worker, "q", 5) {
            world.ack(worker, &job);
        }
        pause(world);
        assert_eq!(world.push_as(producer, push()).unwrap(), first);
        assert_eq!(world.counters("q").pushed, 2);
    });
}

#[test]
fn what_a_crash_takes_back_takes_its_key_along() {
    let mut world = World::new();
    world.commit();
    let before = world.durable;
    world.push(until(UniqueUntil::Settled));
    world.seal();
    world.crash_after(before);
    assert!(is_new(&mut world, until(UniqueUntil::Settled)));
}
