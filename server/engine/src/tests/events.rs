//! What is told to those who follow: each transition exactly one event, which says what is needed to
//! understand it. That the events of all other tests agree with the counters is checked by
//! `testing::follow`, after every step.

use ganger_protocol::{
    BatchId, DurationMs, JobId,
    batch::BatchOpen,
    change::{ChangeTo, JobChange, JobDelete},
    cron::CronSet,
    event::{Event, EventName},
    job::{DeadReason, JobState, OnConflict, Unique},
    limits::{BATCH_OPEN_MAX, KINDS_COUNTED_MAX},
    queue::OneQueue,
    request::{BatchName, CronRun, DeadSelect, FailItem, JobCancel, Operation, Push},
    response::ReplyBody,
};

use crate::testing::{BEGIN, World, ack_item, fail_item, job, kind};

fn following() -> World {
    let mut world = World::new();
    world.follow();
    world
}

/// The events since this was asked last.
fn told(world: &mut World) -> Vec<Event> {
    let events = std::mem::take(&mut world.events);
    events.into_iter().map(|happened| happened.event).collect()
}

fn names(events: &[Event]) -> Vec<EventName> {
    events.iter().map(|event| event.event).collect()
}

/// An event of the job of [`job`] in the queue `q` at the beginning.
fn of(event: EventName, id: JobId, state: Option<JobState>) -> Event {
    Event {
        queue: Some("q".parse().unwrap()),
        job: Some(id),
        kind: Some(kind()),
        state,
        ..Event::new(event, BEGIN)
    }
}

fn done(world: &mut World, operation: Operation) -> ReplyBody {
    world.ask(None, operation).unwrap()
}

#[test]
fn nothing_is_told_while_nobody_follows() {
    let mut world = World::new();
    let worker = world.worker();
    world.push(job("q"));
    let granted = world.fetch(worker, "q", 1).remove(0);
    assert_eq!(told(&mut world), []);
    world.watch(true);
    world.fail(worker, &granted);
    assert_eq!(names(&told(&mut world)), [EventName::Failed]);
    world.watch(false);
    world.pass(DurationMs::from_hours(1));
    let granted = world.fetch(worker, "q", 1).remove(0);
    world.ack(worker, &granted);
    assert_eq!(told(&mut world), []);
}

#[test]
fn the_life_of_a_job_is_told_from_push_to_ack() {
    let mut world = following();
    let worker = world.worker();
    let id = world.push(job("q"));
    let granted = world.fetch(worker, "q", 1).remove(0);
    world.ack(worker, &granted);
    let attempt = Some(1);
    let expected = [
        of(EventName::Pushed, id, Some(JobState::Ready)),
        Event {
            attempt,
            ..of(EventName::Granted, id, Some(JobState::Leased))
        },
        Event {
            attempt,
            ..of(EventName::Done, id, Some(JobState::Done))
        },
    ];
    assert_eq!(told(&mut world), expected);
}

#[test]
fn a_job_that_waits_for_its_time_is_told_again_when_that_has_come() {
    let mut world = following();
    let mut later = job("q");
    later.delay_ms = Some(DurationMs(500));
    let id = world.push(later);
    world.pass(DurationMs(500));
    let at = BEGIN.plus(DurationMs(500));
    let pushed = Event {
        run_at: Some(at),
        ..of(EventName::Pushed, id, Some(JobState::Scheduled))
    };
    let ready = Event {
        at,
        ..of(EventName::Ready, id, Some(JobState::Ready))
    };
    assert_eq!(told(&mut world), [pushed, ready]);
}

#[test]
fn a_failed_attempt_says_its_error_and_when_the_next_one_is() {
    let mut world = following();
    let worker = world.worker();
    let mut spec = job("q");
    spec.max_attempts = Some(2);
    let id = world.push(spec);
    let granted = world.fetch(worker, "q", 1).remove(0);
    told(&mut world);
    let item = |lease| FailItem {
        kind: "smtp".to_owned(),
        retry_in_ms: Some(DurationMs(10)),
        ..fail_item(id, lease)
    };
    world.fail_with(worker, item(granted.lease));
    let failed = Event {
        attempt: Some(1),
        run_at: Some(BEGIN.plus(DurationMs(10))),
        error_kind: Some("smtp".to_owned()),
        ..of(EventName::Failed, id, Some(JobState::Scheduled))
    };
    assert_eq!(told(&mut world), [failed]);
    world.pass(DurationMs(10));
    let granted = world.fetch(worker, "q", 1).remove(0);
    told(&mut world);
    world.fail_with(worker, item(granted.lease));
    let at = BEGIN.plus(DurationMs(10));
    let failed = Event {
        at,
        attempt: Some(2),
        error_kind: Some("smtp".to_owned()),
        ..of(EventName::Failed, id, Some(JobState::Dead))
    };
    let dead = Event {
        event: EventName::Dead,
        reason: Some(DeadReason::Attempts),
        ..failed.clone()
    };
    assert_eq!(told(&mut world), [failed, dead]);
}

#[test]
fn a_fail_that_discards_its_job_is_told_as_both() {
    let mut world = following();
    let worker = world.worker();
    world.push(job("q"));
    let granted = world.fetch(worker, "q", 1).remove(0);
    told(&mut world);
    let item = FailItem {
        discard: true,
        ..fail_item(granted.id, granted.lease)
    };
    world.fail_with(worker, item);
    let events = told(&mut world);
    assert_eq!(names(&events), [EventName::Failed, EventName::Deleted]);
    assert_eq!((events[0].state, events[1].state), (None, None));
}

#[test]
fn a_lease_that_ends_without_an_answer_says_how() {
    let mut world = following();
    let worker = world.worker();
    world.push(job("q"));
    let granted = world.fetch(worker, "q", 1).remove(0);
    told(&mut world);
    world.release(worker, &granted, None);
    let events = told(&mut world);
    assert_eq!(names(&events), [EventName::Released]);
    assert_eq!(events[0].state, Some(JobState::Ready));

    world.fetch(worker, "q", 1);
    told(&mut world);
    world.live(DurationMs::from_secs(20));
    let events = told(&mut world);
    assert_eq!(names(&events), [EventName::Lost]);
    assert_eq!(events[0].state, Some(JobState::Ready));
    assert_eq!(events[0].attempt, Some(2));

    let mut brief = job("brief");
    brief.timeout_ms = Some(DurationMs::from_secs(1));
    world.push(brief);
    let worker = world.worker();
    world.fetch(worker, "brief", 1);
    told(&mut world);
    world.live(DurationMs::from_secs(1));
    let events = told(&mut world);
    assert_eq!(names(&events), [EventName::Failed]);
    assert_eq!(events[0].error_kind.as_deref(), Some("timeout"));
}

#[test]
fn poison_is_told_as_lost_and_dead() {
    let mut world = following();
    world.push(job("q"));
    let mut events = Vec::new();
    while !names(&events).contains(&EventName::Dead) {
        let worker = world.worker();
        world.fetch(worker, "q", 1);
        told(&mut world);
        world.live(DurationMs::from_mins(10));
        events = told(&mut world);
        let expected = [EventName::Lost, EventName::Ready];
        assert!(names(&events).starts_with(&expected[..1]), "{events:?}");
    }
    assert_eq!(names(&events), [EventName::Lost, EventName::Dead]);
    assert_eq!(events[1].reason, Some(DeadReason::Poison));
    assert_eq!(events[1].error_kind.as_deref(), Some("lost"));
}

#[test]
fn what_people_do_to_jobs_is_told() {
    let mut world = following();
    let mut later = job("q");
    later.delay_ms = Some(DurationMs::from_hours(1));
    later.retain_ms = Some(DurationMs::from_hours(1));
    let id = world.push(later);
    told(&mut world);
    let to = ChangeTo {
        queue: Some("other".parse().unwrap()),
        ..ChangeTo::now()
    };
    done(
        &mut world,
        Operation::JobChange(JobChange { jobs: vec![id], to }),
    );
    let events = told(&mut world);
    assert_eq!(names(&events), [EventName::Changed]);
    assert_eq!(events[0].queue, Some("other".parse().unwrap()));
    assert_eq!(events[0].state, Some(JobState::Ready));
    done(&mut world, Operation::JobCancel(JobCancel::new(vec![id])));
    done(
        &mut world,
        Operation::JobDelete(JobDelete { jobs: vec![id] }),
    );
    let events = told(&mut world);
    assert_eq!(names(&events), [EventName::Cancelled, EventName::Deleted]);
    assert_eq!(
        (events[0].state, events[1].state),
        (Some(JobState::Cancelled), None)
    );

    let worker = world.worker();
    world.push(job("q"));
    let dead = world.kill(worker, "q");
    told(&mut world);
    let select = DeadSelect {
        jobs: vec![dead],
        ..DeadSelect::default()
    };
    world.revive(select.clone());
    assert_eq!(names(&told(&mut world)), [EventName::Revived]);
    world.kill(worker, "q");
    told(&mut world);
    world.purge(select);
    assert_eq!(names(&told(&mut world)), [EventName::Deleted]);
}

#[test]
fn a_cancelled_lease_is_told_when_it_is_over() {
    let mut world = following();
    let worker = world.worker();
    let id = world.push(job("q"));
    world.fetch(worker, "q", 1);
    told(&mut world);
    done(&mut world, Operation::JobCancel(JobCancel::new(vec![id])));
    assert_eq!(told(&mut world), []);
    for _ in 0..3 {
        world.live(DurationMs::from_secs(10));
        world.heartbeat(worker).unwrap();
    }
    assert_eq!(names(&told(&mut world)), [EventName::Cancelled]);
}

#[test]
fn a_job_that_expires_and_one_that_is_replaced_are_told() {
    let mut world = following();
    let mut short = job("q");
    short.expires_at = Some(BEGIN.plus(DurationMs(100)));
    world.push(short);
    told(&mut world);
    world.pass(DurationMs(100));
    assert_eq!(names(&told(&mut world)), [EventName::Expired]);

    let unique = |delay| {
        let mut spec = job("q");
        spec.delay_ms = Some(DurationMs(delay));
        spec.unique = Some(Box::new(Unique {
            on_conflict: OnConflict::Replace,
            ..Unique::named("u".parse().unwrap())
        }));
        spec
    };
    world.push(unique(1_000));
    told(&mut world);
    world.push_all(vec![unique(2_000)]);
    let events = told(&mut world);
    assert_eq!(names(&events), [EventName::Changed]);
    assert_eq!(
        events[0].run_at,
        Some(world.now.wall.plus(DurationMs(2_000)))
    );
}

#[test]
fn who_waits_for_others_is_told_when_they_are_over() {
    let mut world = following();
    let worker = world.worker();
    let mut first = job("q");
    first.name = Some("first".parse().unwrap());
    let mut second = job("q");
    second.after = vec!["first".parse().unwrap()];
    second.delay_ms = Some(DurationMs::from_hours(1));
    let push = Push {
        atomic: true,
        ..Push::of(vec![first, second])
    };
    done(&mut world, Operation::Push(push));
    let events = told(&mut world);
    assert_eq!(events.last().unwrap().state, Some(JobState::Blocked));
    let granted = world.fetch(worker, "q", 1).remove(0);
    world.ack(worker, &granted);
    told(&mut world);
    world.commit();
    world.tick();
    let events = told(&mut world);
    assert_eq!(names(&events), [EventName::Scheduled]);
    assert!(events[0].run_at.is_some());
}

#[test]
fn batches_are_told_from_open_to_settled() {
    let mut world = following();
    let worker = world.worker();
    let ReplyBody::Batch(batch) = done(
        &mut world,
        Operation::BatchOpen(Box::<BatchOpen>::default()),
    ) else {
        panic!("no batch");
    };
    let id: BatchId = batch.id;
    let mut member = job("q");
    member.batch = Some(id);
    world.push(member);
    done(&mut world, Operation::BatchCommit(BatchName { batch: id }));
    let granted = world.fetch(worker, "q", 1).remove(0);
    world.ack(worker, &granted);
    let events = told(&mut world);
    let expected = [
        EventName::BatchOpened,
        EventName::Pushed,
        EventName::BatchCommitted,
        EventName::Granted,
        EventName::Done,
        EventName::BatchSettled,
    ];
    assert_eq!(names(&events), expected);
    assert!(events.iter().all(|event| event.batch == Some(id)));

    done(
        &mut world,
        Operation::BatchOpen(Box::<BatchOpen>::default()),
    );
    told(&mut world);
    world.pass(BATCH_OPEN_MAX);
    let events = told(&mut world);
    let of_batch =
        |event: &EventName| matches!(event, EventName::BatchLapsed | EventName::BatchSettled);
    let names: Vec<_> = names(&events).into_iter().filter(of_batch).collect();
    assert_eq!(names, [EventName::BatchLapsed, EventName::BatchSettled]);
}

#[test]
fn queues_and_cron_entries_are_told() {
    let mut world = following();
    world.push(job("q"));
    told(&mut world);
    world.pause("q");
    world.pause("q");
    world.unpause("q");
    let queue = OneQueue {
        queue: "q".parse().unwrap(),
    };
    done(&mut world, Operation::QueuePurge(queue.clone()));
    done(&mut world, Operation::QueueDelete(queue));
    let events = told(&mut world);
    let expected = [
        EventName::QueuePaused,
        EventName::QueueResumed,
        EventName::QueuePurged,
        EventName::QueueDeleted,
    ];
    assert_eq!(names(&events), expected);
    assert_eq!(events[2].removed, Some(1));
    assert!(events.iter().all(|event| event.queue.is_some()));

    let mut entry = CronSet::new("nightly".parse().unwrap(), job("q"));
    entry.every_ms = Some(DurationMs::from_hours(1));
    done(&mut world, Operation::CronSet(Box::new(entry)));
    let run = CronRun {
        name: "nightly".parse().unwrap(),
    };
    done(&mut world, Operation::CronRun(run));
    let events = told(&mut world);
    assert_eq!(names(&events), [EventName::Pushed, EventName::CronPushed]);
    assert_eq!(events[1].cron, Some("nightly".parse().unwrap()));
    assert_eq!(events[0].job, events[1].job);
    world.pass(DurationMs::from_hours(1));
    let events = told(&mut world);
    assert_eq!(names(&events), [EventName::Pushed, EventName::CronPushed]);
}

#[test]
fn each_event_is_told_with_its_namespace() {
    let mut world = following();
    world.push(job("q"));
    world.within("other", |world| world.push(job("q")));
    let namespaces = world.events.iter().map(|it| it.namespace.to_string());
    assert_eq!(namespaces.collect::<Vec<_>>(), ["default", "other"]);
}

#[test]
fn the_kind_of_an_acked_job_is_known_behind_a_restart_and_where_no_kind_is_counted_any_more() {
    let mut world = following();
    let worker = world.worker();
    world.push(job("q"));
    let granted = world.fetch(worker, "q", 1).remove(0);
    world.reopen();
    told(&mut world);
    world.ack_pair(worker, granted.id, granted.lease);
    assert_eq!(told(&mut world)[0].kind, Some(kind()));

    let worker = world.worker();
    for nth in 0..=KINDS_COUNTED_MAX {
        let mut spec = job("many");
        spec.kind = format!("k{nth}").parse().unwrap();
        world.push_unchecked(vec![spec]);
    }
    world.commit();
    while let Some(granted) = world.fetch(worker, "many", 1).pop() {
        told(&mut world);
        let leases = vec![ack_item(granted.id, granted.lease)];
        let ack = ganger_protocol::request::Ack { leases };
        world.ask(Some(worker), Operation::Ack(ack)).unwrap();
        assert_eq!(told(&mut world)[0].kind, Some(granted.kind));
    }
}

#[test]
fn what_is_told_belongs_to_the_group_that_is_open() {
    let mut world = following();
    world.commit();
    let before = world.engine.open_group();
    world.push(job("q"));
    assert_eq!(names(&told(&mut world)), [EventName::Pushed]);
    assert!(
        world.engine.has_changes(),
        "it would be told before its group"
    );
    assert_eq!(world.engine.open_group(), before);
}
