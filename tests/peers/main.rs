//! Measures ganger beside Redis and beanstalkd in the same interleaved runs, each in its durable
//! setting, over loopback, with one load generator. Run it with `tests/bench`.
//!
//! `plan.rs` says what is run, `process.rs` starts the servers, `load.rs` loads them through the
//! drivers (`redis.rs`, `beanstalkd.rs`, `ganger.rs`, all over `wire.rs`; what only ganger has:
//! `features.rs`), `probe.rs` reads what it
//! cost, `report.rs` prints it. It is no test: nothing here fails because something was slow, only
//! because a job was lost, delivered twice or altered.

mod beanstalkd;
mod features;
mod ganger;
mod load;
mod plan;
mod probe;
mod process;
mod redis;
mod report;
mod wire;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    load::Window,
    plan::{Peer, Settings, Workload},
    report::Report,
};

/// Measures ganger beside Redis and beanstalkd
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Arguments {
    /// Workloads to run; without it all but the long ones
    #[arg(long, value_delimiter = ',', value_name = "WORKLOAD")]
    only: Vec<Workload>,
    /// Peers to run; without it all that are installed
    #[arg(long, value_delimiter = ',', value_name = "PEER")]
    peers: Vec<Peer>,
    /// Undisturbed runs of each [default: 3, of the long workloads 1]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=50))]
    rounds: Option<u16>,
    /// Disturbed runs that are repeated, of each workload and peer
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(0..=50))]
    retries: u16,
    /// Length of the measured window; also the longest a fill may take
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=300))]
    seconds: u16,
    /// Load before the measured window
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=60))]
    warm_up_seconds: u16,
    /// Jobs of the workloads that end by count (fill, restart, delayed) or keep a backlog (steady)
    #[arg(long, value_parser = clap::value_parser!(u32).range(100..=20_000_000))]
    jobs: Option<u32>,
    /// Runs with more CPU time than this stolen by the hypervisor do not count
    #[arg(long, default_value_t = 2.0)]
    steal_percent_max: f64,
    /// Runs with more CPU time than this used by other processes do not count
    #[arg(long, default_value_t = 100.0)]
    foreign_percent_max: f64,
    /// Threads of the load generator
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    threads: u16,
    /// Writes every run with all its figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The ganger executable [default: beside this one]
    #[arg(long, value_name = "FILE")]
    ganger: Option<PathBuf>,
    /// Where the servers' directories are made [default: beside this executable]
    #[arg(long)]
    dir: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let mut builder = if arguments.threads == 1 {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let threads = usize::from(arguments.threads);
    raise_open_files();
    builder
        .worker_threads(threads)
        .enable_all()
        .build()?
        .block_on(bench(arguments))
}

/// Takes as many files as the system lets us have, for us and the servers.
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    // Where it cannot be raised, the workload with many connections fails and says why.
    let _ = setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            ..limit
        },
    );
}

async fn bench(arguments: Arguments) -> Result<ExitCode> {
    let json = arguments.json.clone();
    let settings = settings(arguments)?;
    let mut report = Report {
        machine: probe::machine()?,
        sync_us_before: probe::sync_us(&settings.dir)?,
        sync_us_after: f64::NAN,
        runs: Vec::new(),
    };
    let mut terminated = signal(SignalKind::terminate())?;
    // Either signal drops the running servers, which kills them, and what is known is reported.
    tokio::select! {
        () = plan::run(&settings, &mut report.runs) => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
        _ = terminated.recv() => {}
    }
    report.sync_us_after = probe::sync_us(&settings.dir)?;
    println!("{}", report.tables());
    if let Some(path) = json {
        report.write_json(&path)?;
    }
    Ok(if report.failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn settings(arguments: Arguments) -> Result<Settings> {
    let executable = std::env::current_exe()?;
    let beside = executable.parent().context("the executable lies nowhere")?;
    let ganger = arguments.ganger.unwrap_or_else(|| beside.join("ganger"));
    let mut peers = arguments.peers;
    if peers.is_empty() {
        let known = Peer::value_variants().iter().copied();
        peers = known
            .filter(|peer| peer.program(&ganger).is_installed())
            .collect();
    }
    let workloads = if arguments.only.is_empty() {
        Workload::SHORT.to_vec()
    } else {
        arguments.only
    };
    Ok(Settings {
        workloads,
        peers,
        rounds: arguments.rounds.map(usize::from),
        retries: usize::from(arguments.retries),
        window: Window {
            warm_up: Duration::from_secs(u64::from(arguments.warm_up_seconds)),
            length: Duration::from_secs(u64::from(arguments.seconds)),
        },
        jobs: arguments.jobs.map(usize::try_from).transpose()?,
        steal_percent_max: arguments.steal_percent_max,
        foreign_percent_max: arguments.foreign_percent_max,
        ganger,
        dir: arguments.dir.unwrap_or_else(|| beside.to_path_buf()),
    })
}
