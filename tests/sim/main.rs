//! The seeded simulator: one thread, one seed, no real clock and no real IO. The driver's core over
//! a store on a disk in memory that fails, power cuts between any two parts of a commit, clients
//! that die, lie and send again; after every step what `docs/TESTING.md` calls the invariants is
//! checked by a history of what clients were told, which knows nothing of the engine.
//!
//! `GANGER_SIM_SEED=n` replays one seed and says what happens, `GANGER_SIM_SEEDS` (default 200) and
//! `GANGER_SIM_STEPS` (default 1 000) say how much is run, `GANGER_SIM_FIRST` with which seed it
//! begins.

mod administrators;
mod audit;
mod batches;
mod clients;
mod clock;
mod crons;
mod history;
mod limits;
mod outcomes;
mod plan;
mod producers;
mod replies;
mod trace;
mod trouble;
mod workers;
mod workflows;
mod world;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use ganger_server::clock::Stopwatch;
use world::World;

/// What went wrong in a run.
struct Failure {
    seed: u64,
    step: u64,
    what: String,
    tail: String,
}

#[test]
fn every_seed_keeps_the_invariants() {
    let steps = number("GANGER_SIM_STEPS", 1_000);
    if let Some(seed) = given("GANGER_SIM_SEED") {
        match run(seed, steps, true) {
            Ok(hash) => eprintln!("seed {seed}: {steps} steps, trace {hash:016x}"),
            Err(failure) => panic!("{}", failure.text()),
        }
        return;
    }
    let first = number("GANGER_SIM_FIRST", 1);
    let seeds = number("GANGER_SIM_SEEDS", 200);
    let next = AtomicU64::new(first);
    let has_failed = AtomicBool::new(false);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let started = Stopwatch::start();
    let failures: Vec<Failure> = std::thread::scope(|scope| {
        let work = || {
            while !has_failed.load(Ordering::Relaxed) {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + seeds {
                    break;
                }
                if let Err(failure) = run(seed, steps, false) {
                    has_failed.store(true, Ordering::Relaxed);
                    return Some(failure);
                }
            }
            None
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let threads = threads.into_iter();
        threads
            .filter_map(|thread| thread.join().expect("a run does not panic"))
            .collect()
    });
    let done = next.load(Ordering::Relaxed).min(first + seeds) - first;
    let seconds = started.elapsed().as_secs_f64();
    eprintln!(
        "{done} seeds of {steps} steps in {seconds:.1} s: {:.0} seeds/s, {:.1} µs a step and thread",
        done as f64 / seconds,
        seconds * 1e6 * threads as f64 / (done * steps) as f64
    );
    if let Some(failure) = failures.into_iter().min_by_key(|failure| failure.seed) {
        panic!("{}", failure.text());
    }
}

#[test]
fn equal_seeds_give_equal_traces() {
    for seed in 1..=8 {
        let steps = 400;
        let hashes = [0, 1].map(|_| run(seed, steps, false).map_err(|failure| failure.text()));
        let [first, second] = hashes;
        assert_eq!(first, second, "seed {seed}");
    }
}

/// Runs one seed; the hash of its trace.
fn run(seed: u64, steps: u64, is_verbose: bool) -> Result<u64, Failure> {
    let failed = |what: String| Failure {
        seed,
        step: 0,
        what,
        tail: String::new(),
    };
    let mut world = World::new(seed, is_verbose).map_err(failed)?;
    let run = AssertUnwindSafe(|| {
        for _ in 0..steps {
            world.step()?;
        }
        world.drain()
    });
    let what = match catch_unwind(run) {
        Ok(Ok(())) => return Ok(world.trace.hash()),
        Ok(Err(what)) => what,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            format!("panic: {}", text.unwrap_or_default())
        }
    };
    if is_verbose {
        world.show();
    }
    Err(Failure {
        seed,
        step: world.trace.current(),
        what,
        tail: world.trace.tail(),
    })
}

impl Failure {
    fn text(&self) -> String {
        let Self {
            seed,
            step,
            what,
            tail,
        } = self;
        format!(
            "seed {seed}, step {step}: {what}\nthe last lines:\n{tail}replay: GANGER_SIM_SEED={seed}"
        )
    }
}

fn given(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name} must be a number")),
    )
}

fn number(name: &str, default: u64) -> u64 {
    given(name).unwrap_or(default)
}
