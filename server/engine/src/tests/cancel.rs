//! Cancelling: what waits is over at once; what is leased has a grace, in which an ack wins.

use ganger_protocol::{
    DurationMs, ErrorCode, JobId, JobSpec,
    job::{JobState, Unique},
    request::{JobCancel, Operation},
    response::{CancelResult, ReplyBody},
};

use super::everywhere;
use crate::testing::{World, fail_item, job, numbered};

fn cancel_within(world: &mut World, jobs: &[JobId], grace_ms: u64) -> Vec<CancelResult> {
    let cancel = JobCancel {
        grace_ms: DurationMs(grace_ms),
        ..JobCancel::new(jobs.to_vec())
    };
    match world.ask(None, Operation::JobCancel(cancel)) {
        Ok(ReplyBody::Cancel(reply)) => reply.results,
        other => panic!("{other:?}"),
    }
}

fn cancel(world: &mut World, job: JobId) -> CancelResult {
    cancel_within(world, &[job], 30_000).remove(0)
}

#[test]
fn a_waiting_job_is_over_at_once() {
    everywhere(|world, pause| {
        let jobs = world.push_all(numbered("q", 0..3));
        let later = world.push(JobSpec {
            delay_ms: Some(DurationMs(5_000)),
            ..job("q")
        });
        pause(world);
        for id in [jobs[1], later] {
            assert_eq!(cancel(world, id), CancelResult::cancelled());
            assert_eq!(world.state(id), None);
        }
        pause(world);
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 10);
        assert_eq!(granted.len(), 2, "the one between them is not granted");
        for job in &granted {
            world.ack(worker, job);
        }
        world.live(DurationMs(10_000));
        assert_eq!(world.counters("q").cancelled, 2);
    });
}

#[test]
fn an_ack_within_the_grace_wins() {
    everywhere(|world, pause| {
        world.push(job("q"));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        pause(world);
        let flagged = cancel(world, granted.id);
        assert_eq!(flagged.state, Some(JobState::Leased));
        pause(world);
        let told = world.heartbeat(worker).unwrap().cancel;
        assert_eq!(
            told.iter().map(|told| told.job).collect::<Vec<_>>(),
            [granted.id]
        );
        assert_eq!(world.ack(worker, &granted).err, None);
        assert_eq!(world.heartbeat(worker).unwrap().cancel, []);
        pause(world);
        world.live(DurationMs(31_000));
        let counters = world.counters("q");
        assert_eq!((counters.done, counters.cancelled), (1, 0));
    });
}

#[test]
fn whatever_else_ends_the_lease_ends_the_job() {
    everywhere(|world, pause| {
        world.push_all(numbered("q", 0..3));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 3);
        pause(world);
        for job in &granted {
            cancel(world, job.id);
        }
        pause(world);
        let failed = world.fail_with(worker, fail_item(granted[0].id, granted[0].lease));
        assert_eq!(failed.state, Some(JobState::Cancelled));
        let released = world.release(worker, &granted[1], None);
        assert_eq!(released.state, Some(JobState::Cancelled));
        world.goodbye(worker);
        for job in &granted {
            assert_eq!(world.state(job.id), None);
        }
        assert_eq!(world.counters("q").cancelled, 3);
    });
}

#[test]
fn after_the_grace_the_lease_is_revoked() {
    everywhere(|world, pause| {
        world.push(job("q"));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        cancel_within(world, &[granted.id], 10_000);
        pause(world);
        world.live(DurationMs(9_000));
        assert_eq!(world.state(granted.id), Some(JobState::Leased));
        pause(world);
        world.live(DurationMs(1_000));
        assert_eq!(world.state(granted.id), None);
        let late = world.ack(worker, &granted).err.unwrap();
        assert_eq!(late.code, ErrorCode::LeaseLost);
    });
}

#[test]
fn without_a_grace_a_lease_is_revoked_at_once_and_the_earliest_of_two_graces_holds() {
    everywhere(|world, pause| {
        world.push_all(numbered("q", 0..2));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 2);
        let first = cancel_within(world, &[granted[0].id], 5_000).remove(0);
        pause(world);
        assert_eq!(cancel(world, granted[0].id).cancel_at, first.cancel_at);
        let sooner = cancel_within(world, &[granted[0].id], 1_000).remove(0);
        assert!(sooner.cancel_at < first.cancel_at);
        pause(world);
        for job in &granted {
            let revoked = cancel_within(world, &[job.id], 0).remove(0);
            assert_eq!(revoked, CancelResult::cancelled());
            assert!(world.ack(worker, job).err.is_some());
        }
    });
}

#[test]
fn a_cancelled_job_lets_go_of_its_unique_key() {
    everywhere(|world, pause| {
        let spec = || JobSpec {
            unique: Some(Box::new(Unique {
                key: Some("k".parse().unwrap()),
                ..Unique::default()
            })),
            ..job("q")
        };
        let first = world.push(spec());
        pause(world);
        cancel(world, first);
        pause(world);
        let second = world.push(spec());
        assert_ne!(first, second);
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        cancel_within(world, &[granted.id], 0);
        assert_ne!(world.push(spec()), second);
        let granted = world.fetch(worker, "q", 1).remove(0);
        world.ack(worker, &granted);
    });
}

#[test]
fn what_is_over_or_not_there_is_refused_by_itself() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(JobSpec {
        max_attempts: Some(1),
        ..job("q")
    });
    let dead = world.kill(worker, "q");
    let gone = world.push(job("q"));
    cancel(&mut world, gone);
    let waiting = world.push(job("q"));
    let results = cancel_within(&mut world, &[dead, gone, waiting], 0);
    let codes: Vec<_> = results
        .iter()
        .map(|result| Some(result.err.as_ref()?.code))
        .collect();
    assert_eq!(
        codes,
        [Some(ErrorCode::Conflict), Some(ErrorCode::NotFound), None]
    );
    let foreign = world.within("other", |world| cancel(world, dead));
    assert_eq!(foreign.err.unwrap().code, ErrorCode::NotFound);
}
