//! Waiting for the end of a job: answered in its moment, whether the job is kept or not.

use ganger_protocol::{
    Bytes, DurationMs, ErrorCode, JobId, JobSpec, WireError,
    job::{DeadReason, JobState},
    limits::CONNECTION_WAITS_MAX,
    progress::{ProgressItem, Wait, WaitReply},
    queue::OneQueue,
    request::{AckItem, DeadSelect, JobCancel, Operation},
    response::ReplyBody,
};

use super::{everywhere, progress::report, retention};
use crate::{
    Options,
    command::{Caller, Command, ConnectionId},
    testing::{PRODUCER, World, fail_item, job, small},
};

fn wait(world: &mut World, job: JobId, wait_ms: u64) -> Caller {
    let wait_ms = DurationMs(wait_ms);
    world.send(None, Operation::Wait(Wait { job, wait_ms }))
}

/// What somebody who waits was told, when that has happened.
fn told(world: &mut World, caller: Caller) -> Option<Result<WaitReply, WireError>> {
    let reply = world.reply(caller)?;
    Some(reply.result.map(|body| match body {
        ReplyBody::Wait(reply) => *reply,
        other => panic!("{other:?}"),
    }))
}

fn outcome(world: &mut World, caller: Caller) -> WaitReply {
    told(world, caller).expect("it is over").unwrap()
}

#[test]
fn whoever_waits_is_told_the_result_when_the_job_is_acked_kept_or_not() {
    for retain_ms in [None, Some(DurationMs(5_000))] {
        everywhere(|world, _| {
            let id = world.push(JobSpec {
                retain_ms,
                ..job("q")
            });
            let callers = [wait(world, id, 60_000), wait(world, id, 60_000)];
            let worker = world.worker();
            let granted = world.fetch(worker, "q", 1).remove(0);
            assert_eq!(told(world, callers[0]), None);
            retention::ack_item(
                world,
                AckItem {
                    result: Some(Bytes::from_static(b"42")),
                    ..AckItem::of(granted.id, granted.lease)
                },
            );
            for caller in callers {
                let reply = outcome(world, caller);
                assert_eq!(reply.state, JobState::Done);
                assert_eq!(reply.result.as_deref(), Some(&b"42"[..]));
                assert_eq!(reply.closed_at, Some(world.now.wall));
            }
            world.live(DurationMs(5_000));
        });
    }
}

#[test]
fn the_end_is_told_only_when_it_is_durable() {
    let mut world = World::new();
    let id = world.push(job("q"));
    let worker = world.worker();
    let granted = world.fetch(worker, "q", 1).remove(0);
    world.commit();
    let caller = wait(&mut world, id, 60_000);
    world.ack(worker, &granted);
    let open = world.engine.open_group();
    let reply = world.reply(caller).unwrap();
    assert_eq!(reply.after, open);
}

#[test]
fn every_end_ends_the_wait_with_its_state() {
    everywhere(|world, _| {
        let expires = JobSpec {
            expires_at: Some(world.now.wall.plus(DurationMs(500))),
            ..job("expiring")
        };
        let expired = world.push(expires);
        let waiting = world.push(job("q"));
        let waits = [wait(world, expired, 60_000), wait(world, waiting, 60_000)];
        world.live(DurationMs(500));
        assert_eq!(outcome(world, waits[0]).state, JobState::Expired);
        world
            .ask(None, Operation::JobCancel(JobCancel::new(vec![waiting])))
            .unwrap();
        assert_eq!(outcome(world, waits[1]).state, JobState::Cancelled);

        let worker = world.worker();
        let dead = world.push(job("q"));
        let caller = wait(world, dead, 60_000);
        world.kill(worker, "q");
        let reply = outcome(world, caller);
        assert_eq!(
            (reply.state, reply.reason),
            (JobState::Dead, Some(DeadReason::Worker))
        );
        assert_eq!(reply.error.unwrap().message, "it broke");

        let discarded = world.push(job("q"));
        let caller = wait(world, discarded, 60_000);
        let granted = world.fetch(worker, "q", 1).remove(0);
        let mut fail = fail_item(granted.id, granted.lease);
        fail.discard = true;
        world.fail_with(worker, fail);
        assert_eq!(
            told(world, caller).unwrap().unwrap_err().code,
            ErrorCode::NotFound
        );
        let select = DeadSelect {
            jobs: vec![dead],
            ..DeadSelect::default()
        };
        world.purge(select);
    });
}

#[test]
fn a_job_that_is_over_is_answered_for_at_once_as_long_as_it_is_kept() {
    everywhere(|world, pause| {
        let id = world.push(JobSpec {
            retain_ms: Some(DurationMs(5_000)),
            ..job("q")
        });
        let dead = world.push(JobSpec {
            priority: Some(9),
            ..job("q")
        });
        let worker = world.worker();
        world.kill(worker, "q");
        let granted = world.fetch(worker, "q", 1).remove(0);
        let result = Some(Bytes::from(vec![5; 40_000]));
        retention::ack_item(
            world,
            AckItem {
                result: result.clone(),
                ..AckItem::of(granted.id, granted.lease)
            },
        );
        pause(world);
        let caller = wait(world, id, 60_000);
        assert_eq!(outcome(world, caller).result, result);
        let caller = wait(world, dead, 60_000);
        let reply = outcome(world, caller);
        assert_eq!(
            (reply.state, reply.error.unwrap().kind.as_str()),
            (JobState::Dead, "error")
        );
        world.live(DurationMs(5_000));
        let caller = wait(world, id, 60_000);
        assert_eq!(
            told(world, caller).unwrap().unwrap_err().code,
            ErrorCode::NotFound
        );
        let select = DeadSelect {
            jobs: vec![dead],
            ..DeadSelect::default()
        };
        world.purge(select);
    });
}

#[test]
fn a_wait_that_passes_says_how_the_job_stands() {
    everywhere(|world, pause| {
        let id = world.push(job("q"));
        let caller = wait(world, id, 0);
        assert_eq!(outcome(world, caller).state, JobState::Ready);
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        let item = ProgressItem {
            percent: Some(30),
            note: Some("on its way".to_owned()),
            ..ProgressItem::of(granted.id, granted.lease)
        };
        report(world, item);
        pause(world);
        let caller = wait(world, id, 2_000);
        world.live(DurationMs(1_999));
        assert_eq!(told(world, caller), None);
        world.live(DurationMs(1));
        let reply = outcome(world, caller);
        assert_eq!((reply.state, reply.percent), (JobState::Leased, Some(30)));
        assert_eq!(reply.note.as_deref(), Some("on its way"));
        world.ack(worker, &granted);
    });
}

#[test]
fn a_wait_is_of_its_namespace_and_of_its_connection() {
    everywhere(|world, _| {
        let id = world.push(job("q"));
        let elsewhere = world.within("other", |world| wait(world, id, 60_000));
        assert_eq!(
            told(world, elsewhere).unwrap().unwrap_err().code,
            ErrorCode::NotFound
        );
        let gone = wait(world, id, 60_000);
        world.step(Command::Detach {
            connection: PRODUCER,
            session: None,
        });
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        world.ack(worker, &granted);
        assert_eq!(told(world, gone), None);
    });
}

#[test]
fn a_purge_ends_waits_for_what_it_removes() {
    everywhere(|world, _| {
        let id = world.push(job("q"));
        world.commit();
        let caller = wait(world, id, 60_000);
        let queue = OneQueue {
            queue: "q".parse().unwrap(),
        };
        world.ask(None, Operation::QueuePurge(queue)).unwrap();
        world.commit();
        world.live(DurationMs(100));
        assert_eq!(
            told(world, caller).unwrap().unwrap_err().code,
            ErrorCode::NotFound
        );
    });
}

#[test]
fn waits_are_bounded_for_a_connection_and_for_a_shard() {
    let mut world = World::new();
    let id = world.push(job("q"));
    for _ in 0..CONNECTION_WAITS_MAX {
        let caller = wait(&mut world, id, 60_000);
        assert_eq!(told(&mut world, caller), None);
    }
    let one_more = wait(&mut world, id, 60_000);
    let error = told(&mut world, one_more).unwrap().unwrap_err();
    assert_eq!(
        (error.code, error.limit, error.actual),
        (ErrorCode::Overloaded, Some(1_000), Some(1_001))
    );

    let mut world = World::with(Options {
        waits_max: 2,
        ..small()
    });
    let id = world.push(job("q"));
    let worker = world.worker();
    let wait_ms = DurationMs(60_000);
    let ask = Operation::Wait(Wait { job: id, wait_ms });
    for connection in [None, Some(worker)] {
        let caller = world.send(connection, ask.clone());
        assert_eq!(told(&mut world, caller), None);
    }
    let caller = wait(&mut world, id, 60_000);
    let error = told(&mut world, caller).unwrap().unwrap_err();
    assert_eq!((error.code, error.limit), (ErrorCode::Overloaded, Some(2)));
    world.step(Command::Detach {
        connection: ConnectionId(worker.0),
        session: Some(worker),
    });
    let caller = wait(&mut world, id, 60_000);
    assert_eq!(told(&mut world, caller), None, "there is room again");
}
