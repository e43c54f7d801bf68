//! Queues as a whole: pauses with an end, quotas, defaults of their jobs.

use ganger_protocol::{
    DurationMs, ErrorCode, RetryPolicy,
    job::JobState,
    queue::{OneQueue, QueuePause, QueueReply, QueueSet, Setting},
    request::{Operation, Push},
    response::ReplyBody,
    retry::Curve,
};

use crate::testing::{World, job, numbered};

const MINUTE: DurationMs = DurationMs::from_mins(1);

fn pause_for(world: &mut World, time: DurationMs) {
    let pause = QueuePause {
        queues: vec!["q".parse().unwrap()],
        for_ms: Some(time),
        until: None,
    };
    world.ask(None, Operation::QueuePause(pause)).unwrap();
}

fn shown(body: ReplyBody) -> QueueReply {
    match body {
        ReplyBody::Queue(reply) => *reply,
        other => panic!("{other:?}"),
    }
}

fn show(world: &mut World) -> QueueReply {
    let queue = "q".parse().unwrap();
    shown(
        world
            .ask(None, Operation::QueueShow(OneQueue { queue }))
            .unwrap(),
    )
}

fn set(world: &mut World, change: impl FnOnce(&mut QueueSet)) -> QueueReply {
    let mut set = QueueSet::of("q".parse().unwrap());
    change(&mut set);
    shown(world.ask(None, Operation::QueueSet(Box::new(set))).unwrap())
}

#[test]
fn a_pause_with_an_end_gives_nothing_before_it_and_wakes_who_waits_at_it() {
    for restarts in [false, true] {
        let mut world = World::new();
        world.push(job("q"));
        pause_for(&mut world, MINUTE);
        if restarts {
            world.reopen();
        }
        assert_eq!(
            show(&mut world).queue.paused_until,
            Some(world.now.wall.plus(MINUTE))
        );
        let worker = world.worker();
        let waiting = world.wait(worker, &["q"]);
        world.pass(DurationMs(5_000));
        world.commit();
        assert!(world.waited(waiting).is_none(), "I18");
        assert_eq!(world.fetch(worker, "q", 1), []);
        world.pass(DurationMs(50_000));
        let waiting = world.wait(worker, &["q"]);
        world.pass(DurationMs(5_000));
        world.tick();
        world.commit();
        assert_eq!(world.waited(waiting).unwrap().len(), 1);
        let queue = show(&mut world).queue;
        assert_eq!((queue.paused, queue.paused_until), (false, None));
    }
}

#[test]
fn the_last_pause_counts_and_a_resume_takes_its_end_away() {
    let mut world = World::new();
    world.push(job("q"));
    pause_for(&mut world, MINUTE);
    pause_for(&mut world, DurationMs::from_mins(5));
    world.live(DurationMs::from_mins(2));
    assert!(show(&mut world).queue.paused);
    world.pause("q");
    world.live(DurationMs::from_mins(20));
    assert!(show(&mut world).queue.paused, "a pause without an end");
    pause_for(&mut world, MINUTE);
    world.unpause("q");
    world.pause("q");
    world.live(DurationMs::from_mins(2));
    assert!(show(&mut world).queue.paused, "not ended by an earlier one");
}

#[test]
fn a_pause_goes_over_a_purge_and_ends_at_its_time() {
    let mut world = World::new();
    world.push(job("q"));
    pause_for(&mut world, MINUTE);
    let queue = "q".parse().unwrap();
    world
        .ask(None, Operation::QueuePurge(OneQueue { queue }))
        .unwrap();
    assert!(show(&mut world).queue.paused);
    world.commit();
    world.live(DurationMs::from_mins(2));
    assert!(!show(&mut world).queue.paused);
}

#[test]
fn a_push_that_passes_the_quota_is_refused_with_limit_and_figure() {
    let mut world = World::new();
    world.push_all(numbered("q", 0..2));
    set(&mut world, |set| set.jobs_max = Setting::To(3));
    world.reopen();
    world.push(job("q"));
    let refused = world.push_as(None, Push::of(vec![job("q")])).unwrap();
    let error = refused[0].err.clone().unwrap();
    assert_eq!(error.code, ErrorCode::QuotaExceeded);
    assert_eq!((error.limit, error.actual), (Some(3), Some(4)));
    assert!(error.retryable);
    let worker = world.worker();
    assert_eq!(
        world.fetch(worker, "q", 1).len(),
        1,
        "a leased one does not wait"
    );
    world.push(job("q"));
    set(&mut world, |set| set.jobs_max = Setting::Default);
    world.push(job("q"));
}

#[test]
fn an_atomic_push_that_would_pass_the_quota_makes_nothing() {
    let mut world = World::new();
    world.push(job("q"));
    set(&mut world, |set| set.jobs_max = Setting::To(3));
    let push = Push {
        atomic: true,
        ..Push::of(numbered("q", 0..3))
    };
    let error = world.push_as(None, push).unwrap_err();
    assert_eq!(error.code, ErrorCode::QuotaExceeded);
    assert_eq!(error.field.as_deref(), Some("jobs[2].queue"));
    assert_eq!(world.counters("q").pushed, 1);
}

#[test]
fn a_change_leaves_other_settings_and_nil_goes_back_to_the_default() {
    let mut world = World::new();
    world.push(job("q"));
    set(&mut world, |set| {
        set.timeout_ms = Setting::To(MINUTE);
        set.dead_max = Setting::To(7);
    });
    let settings = set(&mut world, |set| set.dead_max = Setting::Default).settings;
    assert_eq!(
        (settings.timeout_ms, settings.dead_max),
        (Some(MINUTE), None)
    );
    world.reopen();
    assert_eq!(show(&mut world).settings, settings);
    let worker = world.worker();
    assert_eq!(world.fetch(worker, "q", 1)[0].timeout_ms, MINUTE);
}

#[test]
fn the_backoff_of_a_queue_is_that_of_its_jobs() {
    let mut world = World::new();
    world.push(job("q"));
    let policy = RetryPolicy {
        curve: Curve::Fixed,
        base_ms: DurationMs(1_234),
        jitter_ms: DurationMs(0),
        jitter_percent: 0,
        ..RetryPolicy::default()
    };
    set(&mut world, |set| {
        set.backoff = Setting::To(Box::new(policy));
    });
    let worker = world.worker();
    let granted = world.fetch(worker, "q", 1).remove(0);
    let run_at = world.fail(worker, &granted).run_at.unwrap();
    assert_eq!(run_at, world.now.wall.plus(DurationMs(1_234)));
}

#[test]
fn a_lower_bound_of_dead_jobs_counts_at_once_and_retention_from_the_next_death_on() {
    let mut world = World::new();
    let worker = world.worker();
    let old: Vec<_> = (0..3)
        .map(|_| {
            world.push(job("q"));
            world.kill(worker, "q")
        })
        .collect();
    set(&mut world, |set| {
        set.dead_max = Setting::To(2);
        set.dead_retention_ms = Setting::To(MINUTE);
    });
    world.tick();
    assert_eq!(world.state(old[0]), None);
    world.push(job("q"));
    let new = world.kill(worker, "q");
    world.live(DurationMs::from_mins(2));
    assert_eq!(world.state(new), None);
    assert_eq!(world.state(old[2]), Some(JobState::Dead));
}
