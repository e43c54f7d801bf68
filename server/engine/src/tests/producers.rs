//! A push that is sent again never duplicates, and the server never guesses.

use ganger_protocol::{DurationMs, ErrorCode, JobSpec, request::Push, response::PushResult};

use crate::{
    Options,
    command::Producer,
    records::ProducerNumber,
    testing::{BEGIN, World, job, numbered, small},
};

const PRODUCER: Producer = Producer {
    number: ProducerNumber(77),
    made_at: BEGIN,
};

fn push(world: &mut World, seq: u64, jobs: Vec<JobSpec>) -> Result<Vec<PushResult>, ErrorCode> {
    let push = Push {
        jobs,
        atomic: false,
        spread_ms: None,
        by: None,
        seq: Some(seq),
    };
    let results = world.push_as(Some(PRODUCER), push);
    results.map_err(|error| error.code)
}

fn refused(queue: &str) -> JobSpec {
    JobSpec {
        priority: Some(10),
        ..job(queue)
    }
}

/// Some pushed, some refused, in two queues.
fn mixed() -> Vec<JobSpec> {
    vec![
        job("a"),
        job("a"),
        refused("a"),
        job("b"),
        refused("b"),
        job("a"),
    ]
}

#[test]
fn a_push_that_is_sent_again_has_its_first_outcome_refused_items_included() {
    let mut world = World::new();
    let first = push(&mut world, 1, mixed()).unwrap();
    let check = |world: &mut World, when: &str| {
        let again = push(world, 1, mixed()).unwrap();
        assert_eq!(again.len(), first.len());
        for (again, first) in again.iter().zip(&first) {
            assert_eq!(again.id, first.id, "{when}");
            let brief = |result: &PushResult| {
                let error = result.err.clone();
                error.map(|error| (error.code, error.message, error.field))
            };
            assert_eq!(brief(again), brief(first), "{when}");
        }
        assert_eq!(world.counters("a").pushed + world.counters("b").pushed, 4);
    };
    check(&mut world, "in the same group");
    world.seal();
    check(&mut world, "in the next group");
    world.reopen();
    check(&mut world, "after a restart");
}

#[test]
fn a_push_that_was_lost_with_its_group_is_applied_when_it_is_sent_again() {
    let mut world = World::new();
    push(&mut world, 1, vec![job("a")]).unwrap();
    world.crash_after(world.durable);
    push(&mut world, 1, vec![job("a")]).unwrap();
    assert_eq!(world.counters("a").pushed, 1);
}

#[test]
fn pushes_may_be_sent_again_out_of_order_after_a_restart() {
    let mut world = World::new();
    // The third was answered; the first two never arrived.
    let third = push(&mut world, 3, numbered("a", 3..4)).unwrap();
    world.reopen();
    let second = push(&mut world, 2, numbered("a", 2..3)).unwrap();
    assert_eq!(push(&mut world, 3, numbered("a", 3..4)).unwrap(), third);
    let first = push(&mut world, 1, numbered("a", 1..2)).unwrap();
    assert_eq!(push(&mut world, 1, numbered("a", 1..2)).unwrap(), first);
    assert_eq!(push(&mut world, 2, numbered("a", 2..3)).unwrap(), second);
    assert_eq!(world.counters("a").pushed, 3);
}

#[test]
fn a_push_older_than_its_slot_has_expired_and_is_not_applied() {
    let mut world = World::new();
    push(&mut world, 1, vec![job("a")]).unwrap();
    push(&mut world, 257, vec![job("a")]).unwrap();
    for _ in 0..2 {
        assert_eq!(
            push(&mut world, 1, vec![job("a")]),
            Err(ErrorCode::SequenceExpired)
        );
        world.commit();
    }
    // Exactly 256 behind, into a slot that nobody used: still nothing is known of it.
    push(&mut world, 300, vec![job("a")]).unwrap();
    assert_eq!(
        push(&mut world, 44, vec![job("a")]),
        Err(ErrorCode::SequenceExpired)
    );
    push(&mut world, 45, vec![job("a")]).unwrap();
    assert_eq!(world.counters("a").pushed, 4);
}

#[test]
fn refusals_alone_are_not_stored() {
    let mut world = World::new();
    let results = push(&mut world, 1, vec![refused("a")]).unwrap();
    assert_eq!(results[0].err.as_ref().unwrap().code, ErrorCode::BadRequest);
    world.commit();
    assert_eq!(world.store.outcomes(), 0);
    // The same number with a job that can be pushed is another attempt at the same push.
    assert!(push(&mut world, 1, vec![job("a")]).unwrap()[0].id.is_some());
}

#[test]
fn an_idle_producer_is_forgotten_and_told_so() {
    let mut world = World::new();
    push(&mut world, 1, vec![job("a")]).unwrap();
    world.commit();
    let day = DurationMs::from_hours(24);
    world.now.wall = world.now.wall.plus(DurationMs(day.0 - 1));
    world.tick();
    push(&mut world, 2, vec![job("a")]).unwrap();
    world.now.wall = world.now.wall.plus(DurationMs(day.0 - 1));
    world.tick();
    push(&mut world, 2, vec![job("a")]).unwrap();
    world.now.wall = world.now.wall.plus(day);
    world.tick();
    for seq in [1, 2, 3] {
        let answer = push(&mut world, seq, vec![job("a")]);
        assert_eq!(answer, Err(ErrorCode::UnknownProducer), "{seq}");
    }
    world.commit();
    assert_eq!((world.store.outcomes(), world.store.timers.len()), (0, 0));
    assert_eq!(world.counters("a").pushed, 2);
}

#[test]
fn an_atomic_push_is_all_or_nothing() {
    let mut world = World::new();
    let mut atomic = |jobs| {
        let push = Push {
            jobs,
            atomic: true,
            spread_ms: None,
            by: None,
            seq: None,
        };
        world.push_as(None, push)
    };
    let error = atomic(mixed()).unwrap_err();
    assert_eq!(error.field.as_deref(), Some("jobs[2].priority"));
    assert_eq!(atomic(vec![job("a"), job("b")]).unwrap().len(), 2);
    assert_eq!(world.counters("a").pushed, 1);
}

#[test]
fn one_refused_job_refuses_no_neighbour() {
    let mut world = World::new();
    let push = Push {
        jobs: mixed(),
        atomic: false,
        spread_ms: None,
        by: None,
        seq: None,
    };
    let results = world.push_as(None, push).unwrap();
    let pushed = results.iter().map(|result| result.id.is_some());
    assert!(pushed.eq([true, true, false, true, false, true]));
}

#[test]
fn queues_and_namespaces_are_made_up_to_their_limits() {
    let mut world = World::with(Options {
        queues_max: 2,
        namespaces_max: 2,
        ..small()
    });
    let results = |world: &mut World, queue: &str| {
        let push = Push {
            jobs: vec![job(queue)],
            atomic: false,
            spread_ms: None,
            by: None,
            seq: None,
        };
        let result = world.push_as(None, push).unwrap().remove(0);
        result
            .err
            .map(|error| (error.code, error.limit, error.actual))
    };
    assert_eq!(results(&mut world, "a"), None);
    world.within("two", |world| assert_eq!(results(world, "a"), None));
    let over = Some((ErrorCode::TooLarge, Some(2), Some(3)));
    assert_eq!(results(&mut world, "b"), over);
    world.within("three", |world| assert_eq!(results(world, "a"), over));
    assert_eq!(results(&mut world, "a"), None, "those that are there go on");
}

#[test]
fn a_push_is_answered_only_by_its_own_group() {
    let mut world = World::new();
    let caller = world.send(
        None,
        ganger_protocol::request::Operation::Push(Push {
            jobs: vec![job("a")],
            atomic: false,
            spread_ms: None,
            by: None,
            seq: None,
        }),
    );
    assert_eq!(
        world.reply(caller).unwrap().after,
        world.engine.open_group()
    );
}
