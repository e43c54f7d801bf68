//! Jobs that are pushed for later lie packed in scheduled runs, which they leave in any order.

use ganger_protocol::{
    DurationMs, JobId, JobSpec,
    change::{ChangeTo, JobChange},
    job::{JobState, OnConflict, Unique},
    queue::OneQueue,
    request::{JobCancel, Operation},
};

use super::everywhere;
use crate::change::Change;
use crate::testing::{World, ids, job, numbered};

fn in_minutes(minutes: u64) -> JobSpec {
    JobSpec {
        delay_ms: Some(DurationMs::from_mins(minutes)),
        ..job("q")
    }
}

fn push_at_minutes(world: &mut World, minutes: impl Iterator<Item = u64>) -> Vec<JobId> {
    world.push_all(minutes.map(in_minutes).collect())
}

fn cancel(world: &mut World, job: JobId) {
    let cancel = Operation::JobCancel(JobCancel::new(vec![job]));
    world.ask(None, cancel).unwrap();
}

fn change(world: &mut World, job: JobId, to: ChangeTo) {
    let jobs = vec![job];
    let change = Operation::JobChange(JobChange { jobs, to });
    world.ask(None, change).unwrap();
}

fn work_off(world: &mut World, queue: &str) -> Vec<JobId> {
    let worker = world.worker();
    let granted = world.fetch(worker, queue, 100);
    for job in &granted {
        assert_eq!(world.ack(worker, job).err, None);
    }
    world.goodbye(worker);
    ids(&granted)
}

#[test]
fn jobs_for_later_lie_in_few_runs_and_have_no_records() {
    let mut world = World::new();
    let jobs = push_at_minutes(&mut world, 1..=200);
    world.commit();
    let (runs, acks, leases) = world.store.packed_records();
    assert!((1..=10).contains(&runs), "{runs}");
    assert_eq!((acks, leases), (0, 0));
    assert!(world.store.jobs.is_empty());
    assert_eq!(world.store.timers.len(), jobs.len());
    let together = world.push_all(vec![in_minutes(7); 200]);
    world.commit();
    let timers = world.store.timers.len() - jobs.len();
    assert!((1..=10).contains(&timers), "they share {timers} timers");
    assert_eq!(world.state(together[199]), Some(JobState::Scheduled));
    let shown = world.look(jobs[120]).unwrap();
    assert_eq!(shown.state, JobState::Scheduled);
    assert_eq!(
        shown.run_at,
        Some(world.now.wall.plus(DurationMs::from_mins(121)))
    );
}

#[test]
fn each_is_ready_at_its_time_and_the_run_goes_with_the_last() {
    everywhere(|world, pause| {
        let minutes = [4, 1, 3, 2];
        let jobs = push_at_minutes(world, minutes.into_iter());
        pause(world);
        for minute in 1..=4 {
            world.pass(DurationMs::from_mins(1));
            pause(world);
            let due = minutes.iter().position(|it| *it == minute).unwrap();
            assert_eq!(work_off(world, "q"), [jobs[due]]);
            pause(world);
            for (job, at) in jobs.iter().zip(minutes) {
                let is_left = at > minute;
                assert_eq!(world.state(*job), is_left.then_some(JobState::Scheduled));
            }
        }
    });
}

#[test]
fn whatever_takes_a_job_out_of_its_run_leaves_the_others_in_it() {
    everywhere(|world, pause| {
        let key = Unique {
            on_conflict: OnConflict::Replace,
            ..Unique::named("k".parse().unwrap())
        };
        let unique = || JobSpec {
            unique: Some(Box::new(key.clone())),
            ..in_minutes(60)
        };
        let mortal = JobSpec {
            expires_at: Some(world.now.wall.plus(DurationMs::from_mins(50))),
            ..in_minutes(40)
        };
        let mut specs = vec![mortal, unique()];
        specs.extend((0..6).map(|_| in_minutes(60)));
        let jobs = world.push_all(specs);
        pause(world);
        cancel(world, jobs[2]);
        pause(world);
        change(world, jobs[3], ChangeTo::now());
        pause(world);
        change(world, jobs[4], ChangeTo::queue("other".parse().unwrap()));
        pause(world);
        change(world, jobs[5], ChangeTo::after(DurationMs::from_mins(90)));
        pause(world);
        assert_eq!(world.push(unique()), jobs[1], "its payload was replaced");
        pause(world);
        assert_eq!(work_off(world, "q"), [jobs[3]]);
        world.pause("q");
        world.live(DurationMs::from_mins(50));
        pause(world);
        assert_eq!(world.state(jobs[0]), None, "it was due, and has expired");
        for gone in [2, 3] {
            assert_eq!(world.state(jobs[gone]), None);
        }
        for waiting in [1, 4, 5, 6, 7] {
            assert_eq!(world.state(jobs[waiting]), Some(JobState::Scheduled));
        }
        world.unpause("q");
        world.live(DurationMs::from_mins(10));
        pause(world);
        let mut due = work_off(world, "q");
        due.sort();
        assert_eq!(due, [jobs[1], jobs[6], jobs[7]]);
        assert_eq!(work_off(world, "other"), [jobs[4]]);
        world.live(DurationMs::from_mins(30));
        assert_eq!(work_off(world, "q"), [jobs[5]]);
    });
}

#[test]
fn those_of_one_time_come_together_but_for_those_that_went_before() {
    everywhere(|world, pause| {
        let mut jobs = push_at_minutes(world, [1, 2, 1, 1, 2].into_iter());
        pause(world);
        cancel(world, jobs[2]);
        cancel(world, jobs[1]);
        pause(world);
        world.pass(DurationMs::from_mins(1));
        pause(world);
        assert_eq!(work_off(world, "q"), [jobs[0], jobs[3]]);
        cancel(world, jobs[4]);
        pause(world);
        jobs.retain(|job| world.state(*job).is_some());
        assert_eq!(jobs, []);
        world.commit();
        world.store.check_empty();
    });
}

#[test]
fn many_runs_that_are_due_at_once_come_in_slices() {
    let mut world = World::new();
    let jobs = push_at_minutes(&mut world, std::iter::repeat_n(1, 3000));
    world.commit();
    let groups = world.groups.len();
    world.pass(DurationMs::from_mins(1));
    world.commit();
    assert_eq!(world.counters("q").ready, 3000);
    let ready = world.groups[groups..]
        .iter()
        .map(|group| group.changes.len());
    assert!(ready.max() < Some(20_000));
    let mut done = Vec::new();
    while done.len() < jobs.len() {
        done.extend(work_off(&mut world, "q"));
    }
    assert_eq!(done, jobs, "in the order of their push");
    world.commit();
    world.store.check_empty();
}

#[test]
fn runs_and_jobs_beyond_a_slice_come_in_the_order_of_their_times() {
    let mut world = World::new();
    let large = |minute: u64| JobSpec {
        payload: vec![7; 40_000].into(),
        ..in_minutes(minute)
    };
    // Large ones take little of their run: many wait in it for one time.
    let together = world.push_all((0..100).map(|_| large(2)).collect());
    let apart = push_at_minutes(&mut world, (0..100).map(|nth| 3 + nth % 40));
    let mut expected: Vec<_> = (0..)
        .zip(&apart)
        .map(|(nth, job)| (nth % 40, *job))
        .collect();
    expected.sort();
    world.commit();
    world.now.wall = world.now.wall.plus(DurationMs::from_mins(60));
    let group = world.groups.len();
    world.tick();
    assert_eq!(world.groups.len(), group, "no seal was needed");
    world.commit();
    let worker = world.worker();
    let mut granted = ids(&world.fetch(worker, "q", 150));
    granted.extend(ids(&world.fetch(worker, "q", 150)));
    let expected = expected.into_iter().map(|(_, job)| job);
    assert_eq!(
        granted,
        together.into_iter().chain(expected).collect::<Vec<_>>()
    );
}

#[test]
fn large_jobs_come_with_their_payload_and_leave_nothing() {
    everywhere(|world, pause| {
        let large = |minute: u64| JobSpec {
            payload: vec![7; 20_000].into(),
            ..in_minutes(minute)
        };
        let jobs = world.push_all(vec![large(1), large(1), large(2), large(2)]);
        pause(world);
        cancel(world, jobs[1]);
        pause(world);
        world.pass(DurationMs::from_mins(1));
        pause(world);
        let worker = world.worker();
        let granted = world.fetch(worker, "q", 9);
        assert_eq!(ids(&granted), [jobs[0]]);
        assert_eq!(granted[0].payload.len(), 20_000);
        world.ack(worker, &granted[0]);
        cancel(world, jobs[2]);
        pause(world);
        world.pass(DurationMs::from_mins(1));
        pause(world);
        assert_eq!(work_off(world, "q"), [jobs[3]]);
    });
}

#[test]
fn one_that_is_named_twice_leaves_once() {
    everywhere(|world, pause| {
        let jobs = push_at_minutes(world, [1, 1].into_iter());
        pause(world);
        let twice = JobCancel::new(vec![jobs[0], jobs[0]]);
        world.ask(None, Operation::JobCancel(twice)).unwrap();
        pause(world);
        world.pass(DurationMs::from_mins(1));
        assert_eq!(work_off(world, "q"), [jobs[1]]);
        assert_eq!(world.counters("q").cancelled, 1);
    });
}

#[test]
fn a_time_that_nobody_waits_for_any_more_is_waited_for_again() {
    everywhere(|world, pause| {
        let jobs = push_at_minutes(world, [1, 2].into_iter());
        cancel(world, jobs[0]);
        let again = push_at_minutes(world, [1].into_iter());
        pause(world);
        world.pass(DurationMs::from_mins(1));
        assert_eq!(work_off(world, "q"), again);
        world.pass(DurationMs::from_mins(1));
        assert_eq!(work_off(world, "q"), [jobs[1]]);
    });
}

#[test]
fn what_left_in_a_group_that_is_lost_is_in_its_run_again() {
    let mut world = World::new();
    let jobs = push_at_minutes(&mut world, [1, 2].into_iter());
    world.commit();
    let before = world.durable;
    world.pass(DurationMs::from_mins(1));
    world.seal();
    cancel(&mut world, jobs[1]);
    world.seal();
    world.crash_after(before);
    assert_eq!(world.state(jobs[1]), Some(JobState::Scheduled));
    world.live(DurationMs::from_mins(1));
    let mut done = work_off(&mut world, "q");
    done.sort();
    assert_eq!(done, jobs);
    world.commit();
    world.store.check_empty();
}

#[test]
fn a_run_that_is_used_up_within_its_group_is_never_written() {
    let mut world = World::new();
    let group = world.groups.len();
    for job in push_at_minutes(&mut world, 1..=3) {
        cancel(&mut world, job);
    }
    world.commit();
    let changes = world.groups[group..]
        .iter()
        .flat_map(|group| &group.changes);
    let of_runs = changes.filter(|it| matches!(it, Change::PutRun(..) | Change::PutLeft(_)));
    assert_eq!(of_runs.count(), 0);
    world.store.check_empty();
}

#[test]
fn a_purge_erases_what_is_left_in_scheduled_runs() {
    everywhere(|world, pause| {
        let jobs = push_at_minutes(world, 1..=50);
        world.push_all(numbered("q", 0..5));
        pause(world);
        world.pass(DurationMs::from_mins(1));
        pause(world);
        cancel(world, jobs[7]);
        change(world, jobs[8], ChangeTo::queue("other".parse().unwrap()));
        pause(world);
        let queue = OneQueue {
            queue: "q".parse().unwrap(),
        };
        world.ask(None, Operation::QueuePurge(queue)).unwrap();
        for _ in 0..50 {
            world.commit();
            world.pass(DurationMs(1));
        }
        assert_eq!(world.state(jobs[20]), None);
        world.live(DurationMs::from_mins(60));
        assert_eq!(work_off(world, "q"), []);
        assert_eq!(work_off(world, "other"), [jobs[8]]);
    });
}
