//! Progress: kept with the job, handed to its next attempt, and a sign of life of the attempt.

use ganger_protocol::{
    Bytes, DurationMs, ErrorCode, JobId,
    job::{GrantedJob, JobState},
    progress::{Progress, ProgressItem},
    request::{DeadSelect, LeaseRef, Operation},
    response::{LeaseResult, ReplyBody},
};

use super::everywhere;
use crate::testing::{World, fail_item, job};

pub(super) fn report(world: &mut World, item: ProgressItem) -> LeaseResult {
    let leases = vec![item];
    match world.ask(None, Operation::Progress(Progress { leases })) {
        Ok(ReplyBody::Lease(mut reply)) => reply.results.remove(0),
        other => panic!("{other:?}"),
    }
}

pub(super) fn at(job: &GrantedJob, cursor: &[u8]) -> ProgressItem {
    ProgressItem {
        cursor: Some(Bytes::copy_from_slice(cursor)),
        ..ProgressItem::of(job.id, job.lease)
    }
}

/// What is shown of how far a job has come.
fn shown(world: &mut World, id: JobId) -> (Option<u8>, Option<String>, Option<Bytes>) {
    let view = world.look(id).unwrap();
    (view.percent, view.note, view.cursor)
}

#[test]
fn the_next_attempt_receives_the_cursor_however_this_one_ends() {
    for end in ["fail", "release", "loss", "timeout"] {
        everywhere(|world, pause| {
            world.push(job("q"));
            let worker = world.worker();
            let granted = world.fetch(worker, "q", 1).remove(0);
            assert_eq!(granted.cursor, None);
            pause(world);
            assert_eq!(
                report(world, at(&granted, b"row 7")),
                LeaseResult::default()
            );
            pause(world);
            match end {
                "fail" => {
                    world.fail_with(worker, fail_item(granted.id, granted.lease));
                }
                "release" => {
                    world.release(worker, &granted, None);
                }
                "loss" => world.live(DurationMs::from_secs(60)),
                _ => {
                    for _ in 0..400 {
                        world.live(DurationMs::from_secs(5));
                        world.heartbeat(worker).unwrap();
                    }
                }
            }
            pause(world);
            world.live(DurationMs::from_mins(10));
            let worker = world.worker();
            let again = world.fetch(worker, "q", 1).remove(0);
            assert_eq!(again.attempt, 2, "{end}");
            assert_eq!(again.cursor.as_deref(), Some(&b"row 7"[..]), "{end}");
            assert_eq!(world.ack(worker, &again).err, None);
        });
    }
}

#[test]
fn a_waiting_fetch_gets_the_cursor_in_the_moment_of_the_release() {
    everywhere(|world, pause| {
        world.push(job("q"));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        report(world, at(&granted, &[7; 20_000]));
        pause(world);
        let waiter = world.worker();
        let fetch = world.wait(waiter, &["q"]);
        world.release(worker, &granted, None);
        let again = world.waited(fetch).unwrap().remove(0);
        assert_eq!(again.cursor.as_ref().map(Bytes::len), Some(20_000));
        world.ack(waiter, &again);
    });
}

#[test]
fn what_is_not_said_stays_and_an_empty_cursor_takes_it_back() {
    everywhere(|world, pause| {
        let id = world.push(job("q"));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        let first = ProgressItem {
            percent: Some(10),
            note: Some("begun".to_owned()),
            ..at(&granted, &[1; 30_000])
        };
        report(world, first);
        pause(world);
        let second = ProgressItem {
            percent: Some(20),
            ..at(&granted, b"2")
        };
        report(world, second);
        pause(world);
        let cursor = Some(Bytes::from_static(b"2"));
        let note = Some("begun".to_owned());
        assert_eq!(shown(world, id), (Some(20), note.clone(), cursor));
        report(world, at(&granted, b""));
        pause(world);
        assert_eq!(shown(world, id), (Some(20), note, None));
        world.ack(worker, &granted);
    });
}

#[test]
fn a_lease_that_is_over_says_nothing_of_its_job() {
    everywhere(|world, pause| {
        world.push(job("q"));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        world.release(worker, &granted, None);
        let again = world.fetch(worker, "q", 1).remove(0);
        pause(world);
        let late = report(world, at(&granted, b"old")).err.unwrap();
        assert_eq!(
            (late.code, late.state.as_deref()),
            (ErrorCode::LeaseLost, Some("leased"))
        );
        assert_eq!(shown(world, granted.id), (None, None, None));
        let elsewhere = world.within("other", |world| report(world, at(&again, b"new")));
        assert_eq!(elsewhere.err.unwrap().state.as_deref(), Some("gone"));
        world.ack(worker, &again);
        let gone = report(world, at(&again, b"new")).err.unwrap();
        assert_eq!(gone.state.as_deref(), Some("gone"));
    });
}

#[test]
fn progress_ends_a_row_of_losses() {
    everywhere(|world, pause| {
        let id = world.push(job("q"));
        for round in 1..=9 {
            let worker = world.worker();
            let granted = world.fetch(worker, "q", 1).remove(0);
            report(world, ProgressItem::of(granted.id, granted.lease));
            pause(world);
            world.live(DurationMs::from_secs(60));
            assert_eq!(
                world.state(id),
                Some(JobState::Ready),
                "the first loss, {round}"
            );
        }
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        assert_eq!(world.look(id).unwrap().losses, 9);
        world.ack(worker, &granted);
    });
}

#[test]
fn progress_keeps_the_lease_as_it_is() {
    everywhere(|world, pause| {
        let id = world.push(job("q"));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        report(world, at(&granted, b"1"));
        pause(world);
        let view = world.look(id).unwrap();
        assert_eq!(
            (view.state, view.lease),
            (JobState::Leased, Some(granted.lease))
        );
        let held = LeaseRef {
            job: granted.id,
            lease: granted.lease,
        };
        let resumed = world.resume(worker, &[held]);
        assert_eq!(resumed.lost, []);
        assert_eq!(world.ack(worker, &granted).err, None);
        assert_eq!(world.counters("q").done, 1);
    });
}

#[test]
fn a_dead_job_keeps_its_cursor_for_its_revival() {
    everywhere(|world, pause| {
        let id = world.push(job("q"));
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 1).remove(0);
        report(world, at(&granted, b"far"));
        pause(world);
        let mut fail = fail_item(granted.id, granted.lease);
        fail.dead = true;
        world.fail_with(worker, fail);
        pause(world);
        let select = DeadSelect {
            jobs: vec![id],
            ..DeadSelect::default()
        };
        assert_eq!(world.revive(select).count, 1);
        pause(world);
        let worker = world.worker();
        let again = world.fetch(worker, "q", 1).remove(0);
        assert_eq!((again.id, again.cursor.as_deref()), (id, Some(&b"far"[..])));
        world.ack(worker, &again);
    });
}
