//! Cron entries: a job for each of their times, once, over crashes and steps of the clock.

use std::collections::BTreeMap;

use ganger_protocol::{
    CronName, DurationMs, ErrorCode, JobSpec, NamespaceName, Timestamp, WireError,
    cron::{AT_HEADER, CronSet, CronView, Misfire, NAME_HEADER, Overlap},
    job::{GrantedJob, JobState},
    limits::Limits,
    request::{CronList, CronNames, CronRun, CronShow, Operation},
    response::ReplyBody,
};
use proptest::prelude::*;

use crate::{
    Options,
    command::Command,
    cron::file::FileCron,
    records::{GroupNumber, INLINE_BYTES_MAX},
    testing::{BEGIN, World, job, small},
};

const MINUTE: u64 = 60_000;

/// The first whole minute of every world: 22:14.
const FIRST: u64 = BEGIN.0 + 40_000;

fn name(text: &str) -> CronName {
    text.parse().unwrap()
}

/// An entry that pushes into `a` at every minute.
fn minutely() -> CronSet {
    CronSet {
        expression: Some("* * * * *".to_owned()),
        ..CronSet::new(name("tick"), job("a"))
    }
}

fn every(ms: u64) -> CronSet {
    CronSet {
        every_ms: Some(DurationMs(ms)),
        ..CronSet::new(name("tick"), job("a"))
    }
}

fn try_set(world: &mut World, set: CronSet) -> Result<CronView, WireError> {
    match world.ask(None, Operation::CronSet(Box::new(set)))? {
        ReplyBody::Cron(view) => Ok(*view),
        other => panic!("{other:?}"),
    }
}

fn set(world: &mut World, entry: CronSet) -> CronView {
    try_set(world, entry).unwrap()
}

fn view(world: &mut World, next: u32) -> CronView {
    let show = CronShow {
        name: name("tick"),
        next,
    };
    match world.ask(None, Operation::CronShow(show)) {
        Ok(ReplyBody::Cron(view)) => *view,
        other => panic!("{other:?}"),
    }
}

fn names(texts: &[&str]) -> CronNames {
    CronNames {
        names: texts.iter().map(|text| name(text)).collect(),
    }
}

fn pause(world: &mut World) {
    let pause = Operation::CronPause(names(&["tick"]));
    world.ask(None, pause).unwrap();
}

fn resume(world: &mut World) {
    let resume = Operation::CronResume(names(&["tick"]));
    world.ask(None, resume).unwrap();
}

/// The server is down for so long.
fn be_down(world: &mut World, time: DurationMs) {
    world.commit();
    world.now.wall = world.now.wall.plus(time);
    world.crash_after(world.durable);
    world.tick();
}

/// The nominal time of a job.
fn nominal(job: &GrantedJob) -> u64 {
    job.headers[AT_HEADER].parse().unwrap()
}

/// The nominal times of all jobs that are ready, in the order of their lane. Each is acked.
fn take(world: &mut World) -> Vec<u64> {
    let worker = world.worker();
    let jobs = world.fetch(worker, "a", 1000);
    for job in &jobs {
        world.ack(worker, job);
    }
    world.goodbye(worker);
    jobs.iter().map(nominal).collect()
}

#[test]
fn an_entry_pushes_at_each_of_its_times_and_never_before() {
    let mut world = World::new();
    let shown = set(&mut world, minutely());
    let next = [0, 1, 2, 3, 4].map(|nth| Timestamp(FIRST + nth * MINUTE));
    assert_eq!(shown.next_at, next);
    world.live(DurationMs(39_999));
    assert_eq!(take(&mut world), [], "never early");
    world.live(DurationMs(1 + 2 * MINUTE));
    assert_eq!(
        take(&mut world),
        [FIRST, FIRST + MINUTE, FIRST + 2 * MINUTE]
    );
}

#[test]
fn a_job_names_its_entry_and_its_time_beside_its_own_headers() {
    let mut world = World::new();
    let mut entry = minutely();
    entry
        .job
        .headers
        .insert("own".to_owned(), "kept".to_owned());
    entry.job.priority = Some(7);
    set(&mut world, entry);
    world.live(DurationMs(MINUTE));
    let worker = world.worker();
    let job = world.fetch(worker, "a", 1).remove(0);
    assert_eq!(job.headers[NAME_HEADER], "tick");
    assert_eq!(job.headers["own"], "kept");
    assert_eq!(nominal(&job), FIRST);
    let shown = world.look(job.id).unwrap();
    assert_eq!((shown.priority, shown.pushed_at), (7, Timestamp(FIRST)));
    assert_eq!(&job.payload[..], b"payload");
}

#[test]
fn a_fetch_that_waits_gets_the_job_of_a_time() {
    let mut world = World::new();
    let worker = world.worker();
    set(&mut world, every(1_000));
    let waiting = world.wait(worker, &["a"]);
    world.live(DurationMs(1_000));
    world.commit();
    assert_eq!(world.waited(waiting).unwrap().len(), 1);
}

#[test]
fn jitter_delays_each_job_of_an_entry_by_the_same_time() {
    let mut world = World::new();
    let entry = CronSet {
        jitter_ms: DurationMs(30_000),
        ..minutely()
    };
    set(&mut world, entry);
    let late = [0, 1].map(|nth| {
        let at = Timestamp(FIRST + nth * MINUTE);
        world.live(at.since(world.now.wall));
        let shown = view(&mut world, 1);
        assert_eq!(shown.last_at, Some(at), "pushed at its time");
        let job = world.look(shown.last_job.unwrap()).unwrap();
        assert_eq!(job.state, JobState::Scheduled);
        job.run_at.unwrap().since(at)
    });
    assert!(late[0] <= DurationMs(30_000), "{late:?}");
    assert_eq!(late[0], late[1]);
    world.live(late[0]);
    assert_eq!(take(&mut world), [FIRST, FIRST + MINUTE]);
}

#[test]
fn different_names_are_spread_over_the_jitter() {
    let mut world = World::new();
    for nth in 0..50 {
        let entry = CronSet {
            name: name(&format!("e{nth}")),
            jitter_ms: DurationMs(50_000),
            ..minutely()
        };
        set(&mut world, entry);
    }
    world.live(DurationMs(40_000));
    assert_eq!(world.counters("a").pushed, 50);
    world.live(DurationMs(25_000));
    let ready = world.counters("a").ready;
    assert!((10..=40).contains(&ready), "{ready} of 50 after half of it");
    world.live(DurationMs(25_000));
    assert_eq!(world.counters("a").ready, 50, "and all after all of it");
}

#[test]
fn a_clock_that_is_set_back_is_waited_for() {
    let mut world = World::new();
    set(&mut world, minutely());
    world.live(DurationMs(40_000 + 5 * MINUTE));
    assert_eq!(take(&mut world).len(), 6);
    world.now.wall = Timestamp(world.now.wall.0 - 60 * MINUTE);
    world.live(DurationMs(60 * MINUTE));
    assert_eq!(take(&mut world), []);
    world.live(DurationMs(MINUTE));
    assert_eq!(take(&mut world), [FIRST + 6 * MINUTE]);
}

#[test]
fn a_new_expression_does_not_go_back_either() {
    let mut world = World::new();
    set(&mut world, minutely());
    world.live(DurationMs(40_000));
    world.now.wall = Timestamp(BEGIN.0 - 60 * MINUTE);
    let shown = set(&mut world, every(1_000));
    assert_eq!(shown.next_at[0], Timestamp(FIRST + 1_000));
}

#[test]
fn times_that_were_missed_are_treated_as_the_entry_says() {
    let check = |misfire, misfire_max, down: u64, expected: &[u64]| {
        let mut world = World::new();
        let entry = CronSet {
            misfire,
            misfire_max,
            ..minutely()
        };
        set(&mut world, entry);
        be_down(&mut world, DurationMs(down));
        let expected: Vec<_> = expected.iter().map(|nth| FIRST + nth * MINUTE).collect();
        assert_eq!(take(&mut world), expected, "{misfire:?} after {down} ms");
        world.live(DurationMs(MINUTE));
        assert_eq!(take(&mut world).len(), 1, "and then goes on");
    };
    let ten_minutes = 40_000 + 10 * MINUTE;
    check(Misfire::Once, None, ten_minutes, &[10]);
    check(Misfire::Skip, None, ten_minutes, &[10]);
    check(
        Misfire::All,
        Some(100),
        ten_minutes,
        &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10],
    );
    check(Misfire::All, Some(3), ten_minutes, &[8, 9, 10]);
    check(
        Misfire::All,
        None,
        40_000 + 99 * MINUTE,
        &(90..100).collect::<Vec<_>>(),
    );
}

#[test]
fn a_time_that_is_a_minute_late_is_missed_and_one_within_is_not() {
    let check = |late: u64, expected: &[u64]| {
        let mut world = World::new();
        let entry = CronSet {
            expression: Some("14 * * * *".to_owned()),
            misfire: Misfire::Skip,
            ..minutely()
        };
        set(&mut world, entry);
        be_down(&mut world, DurationMs(40_000 + late));
        assert_eq!(take(&mut world), expected, "{late} ms late");
        let next = view(&mut world, 1).next_at;
        assert_eq!(next, [Timestamp(FIRST + 60 * MINUTE)]);
    };
    check(MINUTE, &[FIRST]);
    check(MINUTE + 1, &[]);
}

#[test]
fn a_year_of_missed_seconds_takes_no_longer_than_one() {
    let mut world = World::new();
    set(&mut world, every(1_000));
    let year = 366 * 24 * 60 * MINUTE;
    be_down(&mut world, DurationMs(year));
    assert_eq!(take(&mut world), [(BEGIN.0 + year) / 1_000 * 1_000]);
}

#[test]
fn many_entries_that_missed_much_are_served_in_slices() {
    let mut world = World::new();
    for nth in 0..40 {
        let entry = CronSet {
            name: name(&format!("e{nth}")),
            misfire: Misfire::All,
            misfire_max: Some(100),
            ..minutely()
        };
        set(&mut world, entry);
    }
    world.commit();
    world.now.wall = world.now.wall.plus(DurationMs(200 * MINUTE));
    world.step(Command::Tick);
    let (operations, _) = world.engine.open_size();
    assert!((400..1_000).contains(&operations), "{operations} at once");
    world.tick();
    assert_eq!(world.counters("a").pushed, 40 * 100);
}

fn overlapping(overlap: Overlap) -> World {
    let mut world = World::new();
    let entry = CronSet {
        overlap,
        ..minutely()
    };
    set(&mut world, entry);
    world.live(DurationMs(40_000 + 3 * MINUTE));
    world
}

#[test]
fn jobs_may_overlap_unless_the_entry_forbids_it() {
    let mut world = overlapping(Overlap::Allow);
    assert_eq!(take(&mut world).len(), 4);
    let mut world = overlapping(Overlap::Skip);
    assert_eq!(take(&mut world), [FIRST]);
    assert_eq!(view(&mut world, 0).skipped, 3);
    world.live(DurationMs(MINUTE));
    assert_eq!(
        take(&mut world),
        [FIRST + 4 * MINUTE],
        "the last one is over"
    );
}

#[test]
fn of_the_times_that_overlap_the_latest_is_pushed_once_the_last_job_is_over() {
    let mut world = overlapping(Overlap::QueueOne);
    let shown = view(&mut world, 0);
    assert_eq!(shown.queued_at, Some(Timestamp(FIRST + 3 * MINUTE)));
    assert_eq!((shown.pushed, shown.skipped), (1, 2));
    assert_eq!(take(&mut world), [FIRST]);
    world.tick();
    assert_eq!(take(&mut world), [FIRST + 3 * MINUTE]);
    assert_eq!(view(&mut world, 0).queued_at, None);
    assert_eq!(take(&mut world), []);
}

#[test]
fn what_is_queued_is_pushed_in_the_group_that_ends_the_last_job() {
    let mut world = overlapping(Overlap::QueueOne);
    let worker = world.worker();
    let job = world.fetch(worker, "a", 1).remove(0);
    world.reopen();
    let waiting = world.resume(worker, &[crate::testing::lease_ref(&job)]).id;
    assert_eq!(world.ack(waiting, &job), Default::default());
    let before = world.groups.len();
    world.seal();
    let end = GroupNumber(before as u64 + 1);
    world.crash_after(end);
    world.tick();
    assert_eq!(take(&mut world), [FIRST + 3 * MINUTE]);
}

#[test]
fn a_dead_job_is_over() {
    let mut world = overlapping(Overlap::QueueOne);
    let worker = world.worker();
    let waiting = world.worker();
    world.kill(worker, "a");
    let waiting = world.wait(waiting, &["a"]);
    world.tick();
    world.commit();
    assert_eq!(
        nominal(&world.waited(waiting).unwrap()[0]),
        FIRST + 3 * MINUTE
    );
}

#[test]
fn a_job_that_waits_for_its_next_attempt_is_not_over() {
    let mut world = overlapping(Overlap::Skip);
    let worker = world.worker();
    let job = world.fetch(worker, "a", 1).remove(0);
    assert_eq!(world.fail(worker, &job).state, Some(JobState::Scheduled));
    let skipped = view(&mut world, 0).skipped;
    world.pass(DurationMs(1));
    world.now.wall = Timestamp(FIRST + 4 * MINUTE);
    world.tick();
    assert_eq!(view(&mut world, 0).skipped, skipped + 1);
}

#[test]
fn a_paused_entry_pushes_nothing_and_makes_up_for_nothing() {
    let mut world = World::new();
    set(&mut world, minutely());
    pause(&mut world);
    assert_eq!(view(&mut world, 5).next_at, []);
    world.live(DurationMs(10 * MINUTE));
    world.reopen();
    resume(&mut world);
    world.tick();
    assert_eq!(take(&mut world), []);
    world.live(DurationMs(MINUTE));
    assert_eq!(take(&mut world), [FIRST + 10 * MINUTE]);
}

#[test]
fn setting_an_entry_again_changes_neither_its_times_nor_its_pause() {
    let mut world = World::new();
    let first = set(&mut world, minutely());
    world.pass(DurationMs(1));
    assert_eq!(set(&mut world, minutely()), first);
    pause(&mut world);
    assert!(set(&mut world, minutely()).paused);
    let unpaused = CronSet {
        paused: Some(false),
        ..minutely()
    };
    assert_eq!(set(&mut world, unpaused), first);
    world.live(DurationMs(MINUTE));
    assert_eq!(take(&mut world), [FIRST]);
}

#[test]
fn a_missed_time_is_not_forgotten_when_the_entry_is_set_again_at_a_start() {
    let mut world = World::new();
    set(&mut world, minutely());
    world.commit();
    world.now.wall = Timestamp(FIRST + 5);
    world.crash_after(world.durable);
    set(&mut world, minutely());
    world.tick();
    assert_eq!(take(&mut world), [FIRST]);
}

#[test]
fn a_deleted_entry_pushes_nothing_and_leaves_its_jobs() {
    let mut world = World::new();
    set(&mut world, minutely());
    world.live(DurationMs(40_000));
    let delete = Operation::CronDelete(names(&["tick"]));
    world.ask(None, delete).unwrap();
    world.reopen();
    world.live(DurationMs(10 * MINUTE));
    assert_eq!(take(&mut world), [FIRST]);
    world.commit();
    assert_eq!(world.store.timers.len(), 0);
}

#[test]
fn an_entry_can_be_run_by_hand_whatever_else_it_says() {
    let mut world = overlapping(Overlap::Skip);
    let before = view(&mut world, 5);
    let run = Operation::CronRun(CronRun { name: name("tick") });
    let Ok(ReplyBody::CronRun(reply)) = world.ask(None, run) else {
        panic!("no job");
    };
    assert_eq!(view(&mut world, 5), before);
    let job = world.look(reply.id).unwrap();
    assert_eq!(job.headers[AT_HEADER], world.now.wall.to_string());
    assert_eq!(world.counters("a").pushed, 2);
}

#[test]
fn a_namespace_has_its_own_entries_and_they_push_into_it() {
    let mut world = World::new();
    set(&mut world, minutely());
    world.within("other", |world| {
        let missing = world.ask(None, Operation::CronDelete(names(&["tick"])));
        assert_eq!(missing.unwrap_err().code, ErrorCode::NotFound);
        set(world, every(1_000));
    });
    world.live(DurationMs(40_000));
    assert_eq!(world.counters("a").pushed, 1);
    world.within("other", |world| {
        assert_eq!(world.counters("a").pushed, 40);
    });
}

#[test]
fn entries_are_listed_by_name_in_pages() {
    let mut world = World::new();
    for text in ["c", "a", "d", "b", "e"] {
        let entry = CronSet {
            name: name(text),
            ..minutely()
        };
        set(&mut world, entry);
    }
    let mut cursor = None;
    let mut pages = Vec::new();
    loop {
        let list = CronList { cursor, limit: 2 };
        let Ok(ReplyBody::Crons(page)) = world.ask(None, Operation::CronList(list)) else {
            panic!("no page");
        };
        let names = page.entries.iter().map(|entry| entry.name.to_string());
        pages.push(names.collect::<String>());
        assert!(page.entries.iter().all(|entry| entry.next_at.len() == 1));
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(pages, ["ab", "cd", "e"]);
    let list = CronList {
        cursor: Some("no name".to_owned()),
        limit: 2,
    };
    let refused = world.ask(None, Operation::CronList(list)).unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("cursor"));
}

/// The configuration has exactly these entries.
fn configure(world: &mut World, entries: &[CronSet]) {
    let of = |entry: &CronSet| {
        FileCron::new(NamespaceName::default(), entry.clone(), &Limits::default())
    };
    let crons = entries.iter().map(of).collect::<Result<_, _>>().unwrap();
    world.step(Command::FileCrons(crons));
}

#[test]
fn an_entry_of_the_configuration_pushes_and_goes_with_it() {
    let mut world = World::new();
    configure(&mut world, &[minutely()]);
    assert!(view(&mut world, 1).from_file);
    world.live(DurationMs(40_000));
    assert_eq!(view(&mut world, 1).pushed, 1);
    configure(&mut world, &[]);
    let show = CronShow {
        name: name("tick"),
        next: 1,
    };
    let gone = world.ask(None, Operation::CronShow(show)).unwrap_err();
    assert_eq!(gone.code, ErrorCode::NotFound);
}

#[test]
fn only_the_configuration_changes_its_entries() {
    let mut world = World::new();
    configure(&mut world, &[minutely()]);
    for operation in [
        Operation::CronSet(Box::new(every(60_000))),
        Operation::CronDelete(names(&["tick"])),
        Operation::CronPause(names(&["tick"])),
        Operation::CronResume(names(&["tick"])),
    ] {
        let refused = world.ask(None, operation).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Conflict);
        assert_eq!(refused.field.as_deref(), Some("name"));
    }
    world
        .ask(None, Operation::CronRun(CronRun { name: name("tick") }))
        .unwrap();
}

#[test]
fn an_entry_that_stays_in_the_configuration_pushes_no_time_twice_over_restarts() {
    let mut world = World::new();
    configure(&mut world, &[minutely()]);
    world.live(DurationMs(40_000));
    world.reopen();
    configure(&mut world, &[minutely()]);
    assert_eq!(view(&mut world, 1).pushed, 1);
    world.live(DurationMs(MINUTE));
    assert_eq!(view(&mut world, 1).pushed, 2);
}

#[test]
fn the_configuration_takes_an_entry_over_with_how_far_it_has_come() {
    let mut world = World::new();
    set(&mut world, minutely());
    world
        .ask(None, Operation::CronPause(names(&["tick"])))
        .unwrap();
    configure(&mut world, &[minutely()]);
    let taken = view(&mut world, 1);
    assert!(taken.from_file && !taken.paused);
    assert_eq!(taken.next_at, [Timestamp(FIRST)]);
    let paused = CronSet {
        paused: Some(true),
        ..minutely()
    };
    configure(&mut world, &[paused]);
    assert!(view(&mut world, 1).paused);
}

#[test]
fn an_unknown_name_is_named_and_nothing_is_changed() {
    let mut world = World::new();
    set(&mut world, minutely());
    let both = || names(&["tick", "nightly"]);
    for operation in [
        Operation::CronDelete(both()),
        Operation::CronPause(both()),
        Operation::CronResume(both()),
    ] {
        let error = world.ask(None, operation).unwrap_err();
        assert_eq!(
            (error.code, error.field.as_deref()),
            (ErrorCode::NotFound, Some("name"))
        );
        assert_eq!(error.message, "there is no cron entry nightly");
    }
    assert_eq!(view(&mut world, 1).next_at.len(), 1);
}

#[test]
fn what_cannot_be_an_entry_is_refused_and_leaves_nothing() {
    let mut world = World::with(Options {
        crons_max: 1,
        ..small()
    });
    let check = |world: &mut World, entry: CronSet, code, field: &str| {
        let error = try_set(world, entry).unwrap_err();
        assert_eq!(
            (error.code, error.field.as_deref()),
            (code, Some(field)),
            "{error}"
        );
    };
    let expression = |text: &str| CronSet {
        expression: Some(text.to_owned()),
        ..minutely()
    };
    let bad = ErrorCode::BadRequest;
    check(&mut world, expression("never"), bad, "expression");
    check(&mut world, expression("0 0 30 2 *"), bad, "expression");
    let zone = CronSet {
        timezone: Some("Mars/Base".to_owned()),
        ..minutely()
    };
    check(&mut world, zone, bad, "timezone");
    let large = CronSet {
        job: JobSpec::new("k".parse().unwrap(), vec![0; INLINE_BYTES_MAX]),
        ..minutely()
    };
    check(&mut world, large, ErrorCode::TooLarge, "job");
    set(&mut world, minutely());
    let second = CronSet {
        name: name("second"),
        ..minutely()
    };
    check(&mut world, second, ErrorCode::TooLarge, "name");
    assert_eq!(
        world
            .ask(
                None,
                Operation::CronShow(CronShow {
                    name: name("second"),
                    next: 1
                })
            )
            .unwrap_err()
            .code,
        ErrorCode::NotFound
    );
}

/// The distance of the entry to which everything happens.
const DISTANCE: u64 = 20_000;

/// One thing that happens to a server with an entry.
#[derive(Debug, Clone)]
enum Event {
    Pass(u64),
    StepBack(u64),
    Seal,
    Sync,
    /// What was not synced is lost, but for a share of the sealed groups.
    Crash(usize),
    Work,
    SetAgain,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        5 => (0_u64..40_000).prop_map(Event::Pass),
        1 => (0_u64..400_000).prop_map(Event::StepBack),
        4 => Just(Event::Seal),
        3 => Just(Event::Sync),
        2 => (0_usize..9).prop_map(Event::Crash),
        3 => Just(Event::Work),
        1 => Just(Event::SetAgain),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// The naive model: a set of times for which a job was seen. It must hold each time of the rule
    /// at most once, and with `all` each one that the clock has passed exactly once.
    #[test]
    fn over_crashes_and_steps_of_the_clock_each_time_has_one_job(
        events in prop::collection::vec(event(), 1..120),
        overlap in prop::sample::select(vec![Overlap::Allow, Overlap::Skip, Overlap::QueueOne]),
        misfire in prop::sample::select(vec![Misfire::All, Misfire::Once, Misfire::Skip]),
    ) {
        let mut world = World::new();
        let misfire_max = (misfire == Misfire::All).then_some(100);
        let entry = CronSet { overlap, misfire, misfire_max, ..every(DISTANCE) };
        set(&mut world, entry.clone());
        world.commit();
        let mut latest = world.now.wall;
        let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
        for event in events {
            match event {
                Event::Pass(time) => world.live(DurationMs(time)),
                Event::StepBack(time) => world.now.wall.0 -= time,
                Event::Seal => world.seal(),
                Event::Sync => world.commit(),
                Event::Crash(kept) => {
                    let last = world.groups.len() as u64;
                    let group = (world.durable.0 + kept as u64).min(last);
                    world.crash_after(GroupNumber(group));
                    world.commit();
                }
                Event::Work => {
                    world.commit();
                    for at in take(&mut world) {
                        *seen.entry(at).or_default() += 1;
                    }
                    world.commit();
                }
                Event::SetAgain => {
                    set(&mut world, entry.clone());
                }
            }
            latest = latest.max(world.now.wall);
        }
        world.now.wall = latest;
        world.commit();
        for _ in 0..3 {
            world.tick();
            world.commit();
            for at in take(&mut world) {
                *seen.entry(at).or_default() += 1;
            }
            world.commit();
        }
        for (at, count) in &seen {
            prop_assert_eq!(*count, 1, "{} has {} jobs", at, count);
            prop_assert!(at % DISTANCE == 0 && *at > BEGIN.0 && *at <= latest.0);
        }
        if (overlap, misfire) == (Overlap::Allow, Misfire::All) {
            // Even if nothing was synced before a crash, no more than a hundred times are missed.
            let all = BEGIN.0 / DISTANCE + 1..=latest.0 / DISTANCE;
            let expected: Vec<_> = all.map(|nth| nth * DISTANCE).collect();
            prop_assert_eq!(seen.into_keys().collect::<Vec<_>>(), expected);
        }
    }
}
