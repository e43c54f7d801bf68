//! A campaign against the real process: producers and workers load a server, which is killed with
//! SIGKILL again and again, now and then ended with SIGTERM, and started over what it left. Plain
//! jobs, limits, batches, a cron entry and unique keys are played at once. In the end everything is
//! settled, and the whole history is checked against the rules of a queue.
//!
//! `GANGER_CRASH_KILLS` says how often (default 5), `GANGER_CRASH_SEED` repeats what is pushed and
//! answered; the threads race as they like. `GANGER_CRASH_DIR` keeps the data directory there.

mod batches;
mod check;
mod history;
mod limits;
mod link;
mod plan;
mod producer;
mod ticks;
mod unique;
mod worker;

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    thread,
};

use ganger_protocol::{
    JobId,
    request::{DeadSelect, Operation},
    response::{CountReply, Counters, QueueView},
};
use ganger_server::{clock::Stopwatch, upkeep::examine};
use support::Process;

use self::{
    batches::Batcher,
    check::Remains,
    history::{End, Event, Phase, Shared},
    link::Asker,
    plan::{LIMITED, Plan},
    producer::Producer,
    worker::Worker,
};

const EXECUTABLE: &str = env!("CARGO_BIN_EXE_ganger-under-test");

const WORKERS: u16 = 4;

/// Acknowledged operations between two ends, at least.
const OPERATIONS_MIN: u64 = 1_000;

/// One end in so many is a SIGTERM.
const TERMINATED_EVERY: u64 = 6;

/// The dead are taken away every so many kills, long before a queue keeps no more of them.
const PURGED_EVERY: u64 = 100;

#[derive(Debug, Default)]
struct Tally {
    kills: u64,
    /// Dead jobs that were taken away.
    purged: BTreeSet<JobId>,
    terminations: u64,
    recovery_ms: Vec<u64>,
}

fn main() -> ExitCode {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse().ok());
    let kills: u64 = number("GANGER_CRASH_KILLS").unwrap_or(5);
    let seed = number("GANGER_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    println!("GANGER_CRASH_SEED={seed} GANGER_CRASH_KILLS={kills}");
    let place = tempfile::tempdir().expect("a directory");
    let data =
        env::var_os("GANGER_CRASH_DIR").map_or_else(|| place.path().join("data"), PathBuf::from);
    let watch = Stopwatch::start();
    let server = start(&data);
    let shared = Shared::new(server.address);
    let plan = Plan { seed };
    let mut tally = Tally::default();
    let mut asker = Asker::to(server.address);
    limits::set(&mut asker);
    ticks::set(&mut asker, plan);
    let mut remains = thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|number| {
                scope.spawn({
                    let shared = &shared;
                    move || Worker::new(number, plan, shared).run()
                })
            })
            .collect();
        let batcher = scope.spawn(|| Batcher::new(plan, &shared).run());
        let producers: Vec<_> = (0..=LIMITED)
            .map(|number| {
                scope.spawn({
                    let shared = &shared;
                    move || Producer::new(number, plan, shared).run()
                })
            })
            .collect();
        let server = torment(server, &data, kills, &shared, &mut tally, seed);
        shared.enter(Phase::Drain);
        for producer in producers {
            producer.join().expect("a producer panicked");
        }
        batcher.join().expect("the batcher panicked");
        let mut asker = Asker::to(server.address);
        limits::lift_rate(&mut asker, &shared);
        ticks::pause(&mut asker);
        let is_settled = settle(&server, &shared);
        shared.enter(Phase::Over);
        for worker in workers {
            worker.join().expect("a worker panicked");
        }
        if !is_settled {
            shared.violation("I17: not everything was settled".to_owned());
        }
        // Once more, so that what is checked is what is durable.
        end(server, End::Terminated, &data, &shared);
        let server = start(&data);
        let remains = look(&server);
        end(server, End::Terminated, &data, &shared);
        remains
    });
    remains.purged = std::mem::take(&mut tally.purged);
    let state = shared.lock();
    let mut violations = state.violations.clone();
    violations.extend(check::check(plan, &state.events, &remains));
    for violation in violations.iter().take(20) {
        println!("violation: {violation}");
    }
    tally.recovery_ms.sort_unstable();
    let median = tally.recovery_ms.get(tally.recovery_ms.len() / 2);
    for queue in &remains.queues {
        print!("{} {} ", queue.name, queue.counters.pushed);
    }
    let met = check::met(&state.events);
    println!("batches {} unique_met {met}", remains.batches.len());
    println!(
        "kills {} terminations {} operations {} jobs {} dead {} violations {} \
         median_recovery_ms {} max_recovery_ms {} seconds {}",
        tally.kills,
        tally.terminations,
        state.operations,
        remains.counters.pushed,
        remains.dead.len() + remains.purged.len(),
        violations.len(),
        median.copied().unwrap_or_default(),
        tally.recovery_ms.last().copied().unwrap_or_default(),
        watch.elapsed().as_secs(),
    );
    match violations.len() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn start(data: &Path) -> Process {
    Process::start(EXECUTABLE, data, &[])
        .unwrap_or_else(|ended| panic!("no start: {}\n{}", ended.status, ended.stderr))
}

/// Ends the server and starts it again, until it was killed often enough.
fn torment(
    mut server: Process,
    data: &Path,
    kills: u64,
    shared: &Shared,
    tally: &mut Tally,
    seed: u64,
) -> Process {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x6b69_6c6c);
    while tally.kills < kills {
        let more = OPERATIONS_MIN + random.u64(0..2_000);
        let target = shared.lock().operations + more;
        if shared.wait_operations(target).is_none() {
            shared.violation("I17: nothing happens any more".to_owned());
            return server;
        }
        let how = match random.u64(..TERMINATED_EVERY) {
            0 => End::Terminated,
            _ => End::Killed,
        };
        match how {
            End::Killed => tally.kills += 1,
            End::Terminated => tally.terminations += 1,
        }
        if random.bool() {
            limits::change(&mut Asker::to(server.address), shared, &mut random);
        }
        end(server, how, data, shared);
        server = start(data);
        let recovery = server.ready["recovery_ms"].as_u64();
        tally.recovery_ms.extend(recovery);
        shared.began(server.address, how);
        if tally.kills.is_multiple_of(PURGED_EVERY) && how == End::Killed {
            tally.purged.extend(purge(&server, shared));
            println!(
                "killed {} times, {} operations",
                tally.kills,
                shared.lock().operations
            );
        }
    }
    server
}

/// Ends the server; what it leaves is sound.
fn end(server: Process, how: End, data: &Path, shared: &Shared) {
    let ended = match how {
        End::Killed => server.kill(),
        End::Terminated => server.terminate(),
    };
    shared.record(Event::LifeEnded);
    let is_clean = how == End::Killed || ended.status.code() == Some(0);
    if !is_clean || ended.stderr.contains("panicked") || ended.stderr.contains("\"ERROR\"") {
        shared.violation(format!(
            "the server ended with {}: {}",
            ended.status, ended.stderr
        ));
    }
    let diagnosis = examine(data, false, |_| {}).expect("the directory can be opened");
    for ailment in diagnosis.ailments {
        shared.violation(format!("I13: {ailment:?}"));
    }
}

/// Waits until no job is live any more; whether that came to pass.
fn settle(server: &Process, shared: &Shared) -> bool {
    loop {
        let operations = shared.lock().operations;
        let counters = sum(&Asker::to(server.address).queues());
        if counters.kept() == counters.dead {
            return true;
        }
        // Something must happen before it is worth another look.
        if shared.wait_operations(operations + 1).is_none() {
            return false;
        }
    }
}

/// Purges every dead job, and answers with their ids.
fn purge(server: &Process, shared: &Shared) -> BTreeSet<JobId> {
    let mut asker = Asker::to(server.address);
    let dead = asker.dead();
    let ids: Vec<JobId> = dead.iter().copied().collect();
    for ids in ids.chunks(1_000) {
        let select = DeadSelect {
            jobs: ids.to_vec(),
            ..DeadSelect::default()
        };
        let reply: CountReply = asker.ask(Operation::DeadPurge(select));
        if reply.count != ids.len() as u64 {
            shared.violation(format!("I1: {reply:?} for {} dead jobs", ids.len()));
        }
    }
    dead
}

fn look(server: &Process) -> Remains {
    let mut asker = Asker::to(server.address);
    let queues = asker.queues();
    Remains {
        counters: sum(&queues),
        dead: asker.dead(),
        purged: BTreeSet::new(),
        limit: limits::show(&mut asker),
        batches: [false, true].map(|settled| asker.batches(settled)).concat(),
        cron: ticks::show(&mut asker),
        queues,
    }
}

/// Of all queues together.
fn sum(queues: &[QueueView]) -> Counters {
    let mut counters = Counters::default();
    for queue in queues {
        counters.add(&queue.counters);
    }
    counters
}
