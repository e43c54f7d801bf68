//! Which workload is run on which peer: the shapes, the interleaved rounds, and which runs count.
//! The load comes from `load.rs`, the servers from `process.rs`; `report.rs` prints the outcome.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    beanstalkd::Beanstalkd,
    features,
    ganger::{Ganger, Keys},
    load::{self, Bound, Delayed, Driver, Due, Gauge, Phase, Shape, Window},
    probe,
    process::{Program, Server},
    redis::{Form, Redis},
};

const FILL_COUNT: usize = 1_000_000;
/// Jobs of backlog under the steady workloads.
const KEPT_COUNT: usize = 1_000_000;
/// Connections that wait in `idle`.
const WAITERS_COUNT: usize = 10_000;
/// Jobs of `due`, and how many of them are due at each ms.
const DUE_COUNT: usize = 200_000;
const DUE_JOBS_PER_MS: u64 = 10;
const DUE_AFTER: Duration = Duration::from_secs(15);
/// Jobs of `due-burst`, all due within a second.
const BURST_COUNT: usize = 1_000_000;
const BURST_JOBS_PER_MS: u64 = 1_000;
const BURST_AFTER: Duration = Duration::from_secs(90);
/// Keys of `many-keys`.
const KEY_COUNT: usize = 100_000;
/// Ends a phase that is bounded by its count of jobs, should the peer be very slow.
const LONG_PHASE: Duration = Duration::from_secs(1800);
const RESTART_WITHIN: Duration = Duration::from_secs(300);
/// Far enough that no delayed job becomes ready within a run.
const DELAY_MS: u64 = 24 * 3600 * 1000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    /// Acks, waits, then fetches
    Redis,
    /// Acks and fetch in one write
    RedisPipelined,
    /// Only by 100: a script moves 100 at once, one DEL acks them
    RedisScript,
    /// Deletes, waits, then reserves
    Beanstalkd,
    /// Delete and reserve in one write
    BeanstalkdPipelined,
    /// Acks ride in the next fetch
    Ganger,
}

impl Peer {
    pub(crate) fn program(self, ganger: &Path) -> Program {
        match self {
            Self::Redis | Self::RedisPipelined | Self::RedisScript => Program::Redis,
            Self::Beanstalkd | Self::BeanstalkdPipelined => Program::Beanstalkd,
            Self::Ganger => Program::Ganger(ganger.to_path_buf()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Workload {
    /// 64 producers and 64 workers, one job a request
    #[value(name = "single-64")]
    #[serde(rename = "single-64")]
    Single64,
    /// 8 and 8, one job a request
    #[value(name = "single-8")]
    #[serde(rename = "single-8")]
    Single8,
    /// 1 and 1, one job a request
    #[value(name = "single-1")]
    #[serde(rename = "single-1")]
    Single1,
    /// 8 and 8, requests of 100 jobs
    #[value(name = "by-100")]
    #[serde(rename = "by-100")]
    By100,
    /// 8 producers, requests of 100 jobs, no worker until all is pushed
    Fill,
    /// One waiting worker, one push at a time: push sent to job received
    Wake,
    /// 10 000 waiting connections: memory of each, CPU while nothing happens, and a wake-up among
    /// them against one with a single waiter
    Idle,
    /// 200 k delayed jobs, 10 due in each of 20 000 ms: how late they come, and none early
    Due,
    /// Memory a job, and time to the first lease after SIGKILL and after SIGTERM, 1 M jobs
    #[value(name = "restart-1m")]
    #[serde(rename = "restart-1m")]
    Restart1m,
    /// The same with 10 M jobs, and the last million against the first
    #[value(name = "restart-10m")]
    #[serde(rename = "restart-10m")]
    Restart10m,
    /// `single-64` over a backlog of 1 M jobs, also in many queues and priorities, acks in any order
    #[value(name = "steady-64")]
    #[serde(rename = "steady-64")]
    Steady64,
    /// The same for `single-8`
    #[value(name = "steady-8")]
    #[serde(rename = "steady-8")]
    Steady8,
    /// The same for `by-100`
    #[value(name = "by-100-steady")]
    #[serde(rename = "by-100-steady")]
    By100Steady,
    /// Memory of 10 M delayed jobs
    #[value(name = "delayed-10m")]
    #[serde(rename = "delayed-10m")]
    Delayed10m,
    /// 1 M jobs due within a second: what that does to push → ack of other work
    DueBurst,
    /// `by-100`, all jobs of one key that has a limit
    OneKey,
    /// The same with 100 000 keys that have a limit each
    ManyKeys,
    /// Ten jobs of one key while another key of the queue has 1 M waiting, against an idle server
    Tenant,
    /// How long the purge of a queue of 10 M jobs takes to be answered
    #[value(name = "purge-10m")]
    #[serde(rename = "purge-10m")]
    Purge10m,
}

impl Workload {
    /// What is run when nothing is asked for: everything that takes seconds, not minutes.
    pub(crate) const SHORT: [Self; 8] = [
        Self::Single64,
        Self::Single8,
        Self::Single1,
        Self::By100,
        Self::Fill,
        Self::Wake,
        Self::Idle,
        Self::Due,
    ];

    pub(crate) fn is_long(self) -> bool {
        matches!(
            self,
            Self::Steady64
                | Self::Steady8
                | Self::By100Steady
                | Self::Restart1m
                | Self::Restart10m
                | Self::Delayed10m
                | Self::DueBurst
                | Self::OneKey
                | Self::ManyKeys
                | Self::Tenant
                | Self::Purge10m
        )
    }

    fn shape(self) -> Shape {
        let (connections, per_request) = match self {
            Self::Single64 | Self::Steady64 => (64, 1),
            Self::Single8 | Self::Steady8 => (8, 1),
            Self::Single1 | Self::Wake | Self::Idle => (1, 1),
            Self::By100
            | Self::By100Steady
            | Self::Fill
            | Self::Due
            | Self::Restart1m
            | Self::Restart10m
            | Self::Delayed10m
            | Self::DueBurst
            | Self::OneKey
            | Self::ManyKeys
            | Self::Tenant
            | Self::Purge10m => (8, 100),
        };
        Shape {
            producers: connections,
            workers: connections,
            per_request,
        }
    }

    /// Whether running it on this peer says anything: forms that differ only in the worker are left
    /// out where no worker is measured, and beanstalkd where it would push for an hour.
    fn suits(self, peer: Peer) -> bool {
        match self {
            Self::Single64 | Self::Single8 | Self::Single1 => peer != Peer::RedisScript,
            Self::By100 => true,
            // Redis over the plain backlog: it has no equal of the rest.
            Self::Steady64 | Self::Steady8 => {
                matches!(peer, Peer::Redis | Peer::RedisPipelined | Peer::Ganger)
            }
            Self::By100Steady => !matches!(peer, Peer::Beanstalkd | Peer::BeanstalkdPipelined),
            Self::Fill | Self::Wake | Self::Idle => {
                matches!(peer, Peer::Redis | Peer::Beanstalkd | Peer::Ganger)
            }
            // beanstalkd delays by whole seconds.
            Self::Due | Self::Restart1m | Self::Delayed10m => {
                matches!(peer, Peer::Redis | Peer::Ganger)
            }
            Self::Restart10m
            | Self::DueBurst
            | Self::OneKey
            | Self::ManyKeys
            | Self::Tenant
            | Self::Purge10m => peer == Peer::Ganger,
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) workloads: Vec<Workload>,
    pub(crate) peers: Vec<Peer>,
    /// Undisturbed runs wanted of each; `None`: three of the short workloads, one of the long.
    pub(crate) rounds: Option<usize>,
    /// Disturbed runs that are repeated, of each workload and peer.
    pub(crate) retries: usize,
    pub(crate) window: Window,
    /// Jobs of the workloads that end by count; `None`: each its own.
    pub(crate) jobs: Option<usize>,
    pub(crate) steal_percent_max: f64,
    pub(crate) foreign_percent_max: f64,
    pub(crate) ganger: PathBuf,
    /// Where the servers' directories are made.
    pub(crate) dir: PathBuf,
}

/// One run of one workload on one peer.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    pub(crate) workload: Workload,
    pub(crate) peer: Peer,
    pub(crate) round: usize,
    /// Too much steal or foreign load: the medians leave it out.
    pub(crate) disturbed: bool,
    /// By name, with the unit in the name.
    pub(crate) figures: BTreeMap<&'static str, f64>,
    pub(crate) failure: Option<String>,
}

/// Runs everything, peers interleaved within each round.
pub(crate) async fn run(settings: &Settings, runs: &mut Vec<Run>) {
    for workload in &settings.workloads {
        let peers: Vec<Peer> = settings
            .peers
            .iter()
            .copied()
            .filter(|peer| workload.suits(*peer))
            .collect();
        let mut retries = vec![settings.retries; peers.len()];
        let rounds = settings
            .rounds
            .unwrap_or(if workload.is_long() { 1 } else { 3 });
        for round in 0..rounds {
            for turn in 0..peers.len() {
                // Another one first in each round: a wave of load should not hit always the same.
                let index = (round + turn) % peers.len();
                loop {
                    let run = run_once(settings, *workload, peers[index], round).await;
                    let again = run.disturbed && run.failure.is_none() && retries[index] > 0;
                    eprintln!("{}", crate::report::progress(&run));
                    runs.push(run);
                    if !again {
                        break;
                    }
                    retries[index] -= 1;
                }
            }
        }
    }
}

async fn run_once(settings: &Settings, workload: Workload, peer: Peer, round: usize) -> Run {
    let mut run = Run {
        workload,
        peer,
        round,
        disturbed: false,
        figures: BTreeMap::new(),
        failure: None,
    };
    if let Err(error) = serve_and_measure(settings, &mut run).await {
        run.failure = Some(format!("{error:#}"));
    }
    let over = |name, max| run.figures.get(name).is_some_and(|percent| *percent > max);
    run.disturbed = over("steal_percent", settings.steal_percent_max)
        || over("foreign_percent", settings.foreign_percent_max);
    run
}

async fn serve_and_measure(settings: &Settings, run: &mut Run) -> Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("peers-")
        .tempdir_in(&settings.dir)?;
    // Lets what the last run left dirty go to disk before anything is timed.
    rustix::fs::sync();
    sleep(Duration::from_millis(200)).await;
    run.figures
        .insert("sync_us_before", probe::sync_us(dir.path())?);
    let program = run.peer.program(&settings.ganger);
    let mut server = Server::start(program, dir.path()).await?;
    let address = server.address;
    match run.peer {
        Peer::Redis => {
            measure(Redis::new(address, Form::Plain), settings, &mut server, run).await?;
        }
        Peer::RedisPipelined => {
            measure(
                Redis::new(address, Form::Pipelined),
                settings,
                &mut server,
                run,
            )
            .await?;
        }
        Peer::RedisScript => {
            measure(
                Redis::new(address, Form::Script),
                settings,
                &mut server,
                run,
            )
            .await?;
        }
        Peer::Beanstalkd => {
            measure(Beanstalkd::new(address, false), settings, &mut server, run).await?;
        }
        Peer::BeanstalkdPipelined => {
            measure(Beanstalkd::new(address, true), settings, &mut server, run).await?;
        }
        Peer::Ganger => measure(Ganger::new(address), settings, &mut server, run).await?,
    }
    server.kill().await?;
    run.figures
        .insert("sync_us_after", probe::sync_us(dir.path())?);
    Ok(())
}

async fn measure<D: Driver>(
    driver: D,
    settings: &Settings,
    server: &mut Server,
    run: &mut Run,
) -> Result<()> {
    let shape = run.workload.shape();
    let figures = &mut run.figures;
    ready(&driver).await?;
    match run.workload {
        Workload::Single64 | Workload::Single8 | Workload::Single1 | Workload::By100 => {
            let phase =
                load::steady(&driver, shape, settings.window, &Gauge::new(), server.pid).await?;
            record(figures, &phase);
            figures.insert("peak_mib", mib(probe::memory(server.pid)?.peak_bytes));
        }
        Workload::Steady64 | Workload::Steady8 | Workload::By100Steady => {
            steady_over_backlog(&driver, shape, settings, server, figures).await?;
        }
        Workload::Fill => {
            let jobs = settings.jobs.unwrap_or(FILL_COUNT);
            let bound = Bound {
                jobs,
                length: settings.window.length,
            };
            let gauge = Gauge::new();
            let phase = load::fill(&driver, shape, bound, Due::Now, &gauge, server.pid).await?;
            record(figures, &phase);
            figures.insert("peak_mib", mib(probe::memory(server.pid)?.peak_bytes));
            let phase = load::drain(&driver.fastest(), load::DRAIN, &gauge, server.pid).await?;
            figures.insert("drain_jobs_per_s", rate(&phase));
        }
        Workload::Wake => {
            let before = probe::Sample::take(server.pid)?;
            let latencies = load::wake(&driver, settings.window.length).await?;
            let after = probe::Sample::take(server.pid)?;
            record_span(figures, &probe::Span::between(&before, &after));
            record_wake(figures, ["wake_p50_us", "wake_p99_us"], &latencies)?;
        }
        Workload::Idle => {
            let waiters = settings.jobs.unwrap_or(WAITERS_COUNT);
            let idle = load::idle(&driver, waiters, settings.window.length, server.pid).await?;
            record_span(figures, &idle.span);
            figures.insert("idle_server_cpu_s", idle.span.server_cpu_seconds);
            figures.insert(
                "idle_kib_per_connection",
                idle.bytes_per_connection / 1024.0,
            );
            record_wake(figures, ["alone_p50_us", "alone_p99_us"], &idle.alone)?;
            record_wake(figures, ["wake_p50_us", "wake_p99_us"], &idle.among_all)?;
        }
        Workload::Due => {
            let jobs = settings.jobs.unwrap_or(DUE_COUNT);
            let delayed = Delayed {
                jobs,
                jobs_per_ms: DUE_JOBS_PER_MS,
                after: DUE_AFTER,
            };
            let (lateness_us, span) = load::due(&driver, delayed, server.pid).await?;
            record_span(figures, &span);
            let at = |share: usize| lateness_us.get((lateness_us.len() - 1) * share / 100);
            for (name, share) in [
                ("late_p50_ms", 50),
                ("late_p99_ms", 99),
                ("late_max_ms", 100),
            ] {
                figures.insert(name, *at(share).context("no job came")? as f64 / 1e3);
            }
            let early = lateness_us.iter().filter(|late| **late < 0).count();
            figures.insert("early_jobs", early as f64);
        }
        Workload::Restart1m => {
            let jobs = settings.jobs.unwrap_or(1_000_000);
            restart(driver, shape, jobs, server, figures).await?;
        }
        Workload::Restart10m => {
            let jobs = settings.jobs.unwrap_or(10_000_000);
            restart(driver, shape, jobs, server, figures).await?;
        }
        Workload::Delayed10m => {
            let bound = Bound {
                jobs: settings.jobs.unwrap_or(10_000_000),
                length: LONG_PHASE,
            };
            let empty_bytes = probe::memory(server.pid)?.resident_bytes;
            let due = Due::AtMs(load::now_ms()? + DELAY_MS);
            let gauge = Gauge::new();
            let phase = load::fill(&driver, shape, bound, due, &gauge, server.pid).await?;
            record(figures, &phase);
            record_millions(figures, &phase, ["first_million_push", "last_million_push"]);
            record_memory(figures, server, phase.jobs, empty_bytes)?;
        }
        Workload::DueBurst
        | Workload::OneKey
        | Workload::ManyKeys
        | Workload::Tenant
        | Workload::Purge10m => {
            features(settings, server, run).await?;
        }
    }
    Ok(())
}

/// What only ganger has.
async fn features(settings: &Settings, server: &Server, run: &mut Run) -> Result<()> {
    let ganger = Ganger::new(server.address);
    let figures = &mut run.figures;
    match run.workload {
        Workload::OneKey | Workload::ManyKeys => {
            let keys = match run.workload {
                Workload::OneKey => 1,
                _ => settings.jobs.unwrap_or(KEY_COUNT),
            };
            features::limit_keys(server.address, keys).await?;
            let driver = ganger.with_keys(Keys::OneOf(keys));
            let (shape, gauge) = (run.workload.shape(), Gauge::new());
            let phase = load::steady(&driver, shape, settings.window, &gauge, server.pid).await?;
            record(figures, &phase);
            figures.insert("peak_mib", mib(probe::memory(server.pid)?.peak_bytes));
        }
        Workload::DueBurst => {
            let delayed = Delayed {
                jobs: settings.jobs.unwrap_or(BURST_COUNT),
                jobs_per_ms: BURST_JOBS_PER_MS,
                after: BURST_AFTER,
            };
            let burst = features::burst(&ganger, delayed, server.pid).await?;
            record_span(figures, &burst.span);
            record_wake(figures, ["before_p50_us", "before_p99_us"], &burst.before)?;
            record_wake(figures, ["during_p50_us", "during_p99_us"], &burst.during)?;
            let last = burst.lateness_us.last().context("no job came")?;
            figures.insert("late_max_ms", *last as f64 / 1e3);
        }
        Workload::Tenant => {
            let jobs = settings.jobs.unwrap_or(KEPT_COUNT);
            let tenant = features::tenant(&ganger, jobs, server.pid).await?;
            record_wake(figures, ["idle_p50_us", "idle_p99_us"], &tenant.idle)?;
            record_wake(figures, ["beside_p50_us", "beside_p99_us"], &tenant.beside)?;
        }
        _ => {
            let bound = Bound {
                jobs: settings.jobs.unwrap_or(10_000_000),
                length: LONG_PHASE,
            };
            let (shape, gauge) = (run.workload.shape(), Gauge::new());
            load::fill(&ganger, shape, bound, Due::Now, &gauge, server.pid).await?;
            let (removed, elapsed) = features::purge(server.address).await?;
            figures.insert("removed_jobs", removed as f64);
            figures.insert("purge_ms", elapsed.as_secs_f64() * 1e3);
        }
    }
    Ok(())
}

/// The plain load first, for the ratio; then fills, loads on top of that, and drains.
async fn steady_over_backlog<D: Driver>(
    driver: &D,
    shape: Shape,
    settings: &Settings,
    server: &Server,
    figures: &mut BTreeMap<&'static str, f64>,
) -> Result<()> {
    let window = settings.window;
    let plain = load::steady(driver, shape, window, &Gauge::new(), server.pid).await?;
    let plain_peak_bytes = probe::memory(server.pid)?.peak_bytes;

    let driver = driver.varied(shape.workers);
    let bound = Bound {
        jobs: settings.jobs.unwrap_or(KEPT_COUNT),
        length: LONG_PHASE,
    };
    let gauge = Gauge::keeping(bound.jobs);
    let fill = Workload::Fill.shape();
    load::fill(&driver, fill, bound, Due::Now, &gauge, server.pid).await?;
    let phase = load::steady(&driver, shape, window, &gauge, server.pid).await?;
    record(figures, &phase);
    figures.insert("plain_jobs_per_s", rate(&plain));
    figures.insert("plain_server_cpu_s_per_million", cpu_per_million(&plain));
    figures.insert("plain_peak_mib", mib(plain_peak_bytes));
    figures.insert("ratio_to_plain", rate(&phase) / rate(&plain));
    // The ratio counts only if both of its parts were undisturbed.
    let steal = phase.span.steal_percent.max(plain.span.steal_percent);
    figures.insert("steal_percent", steal);
    let foreign = phase.span.foreign_percent.max(plain.span.foreign_percent);
    figures.insert("foreign_percent", foreign);
    figures.insert("peak_mib", mib(probe::memory(server.pid)?.peak_bytes));
    figures.insert("backlog_jobs", gauge.backlog() as f64);

    let phase = load::drain(&driver.fastest(), load::DRAIN, &gauge, server.pid).await?;
    figures.insert("drain_jobs_per_s", rate(&phase));
    figures.insert("failed_jobs", gauge.failing_count() as f64);
    Ok(())
}

/// Fills, then restarts twice over the backlog, then drains it.
async fn restart<D: Driver>(
    driver: D,
    shape: Shape,
    jobs: usize,
    server: &mut Server,
    figures: &mut BTreeMap<&'static str, f64>,
) -> Result<()> {
    let gauge = Gauge::new();
    let empty_bytes = probe::memory(server.pid)?.resident_bytes;
    let bound = Bound {
        jobs,
        length: LONG_PHASE,
    };
    let phase = load::fill(&driver, shape, bound, Due::Now, &gauge, server.pid).await?;
    record(figures, &phase);
    record_millions(figures, &phase, ["first_million_push", "last_million_push"]);
    record_memory(figures, server, phase.jobs, empty_bytes)?;

    server.kill().await?;
    let elapsed = lease_after_restart(&driver, server, &gauge).await?;
    figures.insert("first_lease_after_kill_ms", elapsed.as_secs_f64() * 1e3);
    let begun = Instant::now();
    server.terminate().await?;
    figures.insert("terminate_ms", begun.elapsed().as_secs_f64() * 1e3);
    let elapsed = lease_after_restart(&driver, server, &gauge).await?;
    figures.insert("first_lease_after_term_ms", elapsed.as_secs_f64() * 1e3);

    let driver = driver.at(server.address).fastest();
    let phase = load::drain(&driver, load::DRAIN, &gauge, server.pid).await?;
    figures.insert("drain_jobs_per_s", rate(&phase));
    record_millions(
        figures,
        &phase,
        ["first_million_drain", "last_million_drain"],
    );
    figures.insert("drain_peak_mib", mib(probe::memory(server.pid)?.peak_bytes));
    Ok(())
}

async fn lease_after_restart<D: Driver>(
    driver: &D,
    server: &mut Server,
    gauge: &Gauge,
) -> Result<Duration> {
    let begun = Instant::now();
    server.restart()?;
    server.listening().await?;
    let leased_at = load::first_lease(&driver.at(server.address), gauge, RESTART_WITHIN).await?;
    Ok(leased_at - begun)
}

/// Waits until the server answers, not only listens.
async fn ready<D: Driver>(driver: &D) -> Result<()> {
    let answers = async {
        while driver.producer().await.is_err() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), answers)
        .await
        .context("no answer")
}

fn record(figures: &mut BTreeMap<&'static str, f64>, phase: &Phase) {
    let per_million = 1e6 / phase.jobs.max(1) as f64;
    figures.insert("jobs", phase.jobs as f64);
    figures.insert("jobs_per_s", rate(phase));
    figures.insert("server_cpu_s_per_million", cpu_per_million(phase));
    figures.insert(
        "generator_cpu_s_per_million",
        phase.span.generator_cpu_seconds * per_million,
    );
    record_span(figures, &phase.span);
}

fn record_span(figures: &mut BTreeMap<&'static str, f64>, span: &probe::Span) {
    figures.insert("seconds", span.seconds);
    figures.insert(
        "server_cpu_percent",
        100.0 * span.server_cpu_seconds / span.seconds,
    );
    figures.insert(
        "generator_cpu_percent",
        100.0 * span.generator_cpu_seconds / span.seconds,
    );
    figures.insert("steal_percent", span.steal_percent);
    figures.insert("foreign_percent", span.foreign_percent);
}

fn record_wake(
    figures: &mut BTreeMap<&'static str, f64>,
    [p50, p99]: [&'static str; 2],
    latencies: &[Duration],
) -> Result<()> {
    for (name, share) in [(p50, 50), (p99, 99)] {
        let latency = latencies.get(latencies.len() * share / 100);
        let latency = latency.context("no push was measured")?;
        figures.insert(name, latency.as_secs_f64() * 1e6);
    }
    Ok(())
}

fn record_millions(
    figures: &mut BTreeMap<&'static str, f64>,
    phase: &Phase,
    [first, last]: [&'static str; 2],
) {
    if let [head, .., tail] = phase.million_rates[..] {
        figures.insert(first, head);
        figures.insert(last, tail);
    }
}

fn record_memory(
    figures: &mut BTreeMap<&'static str, f64>,
    server: &Server,
    jobs: usize,
    empty_bytes: u64,
) -> Result<()> {
    let memory = probe::memory(server.pid)?;
    let grown = memory.resident_bytes.saturating_sub(empty_bytes);
    figures.insert("resident_mib", mib(memory.resident_bytes));
    figures.insert("peak_mib", mib(memory.peak_bytes));
    figures.insert("memory_bytes_per_job", grown as f64 / jobs.max(1) as f64);
    let disk_bytes = probe::disk_bytes(&server.data_dir())?;
    figures.insert("disk_bytes_per_job", disk_bytes as f64 / jobs.max(1) as f64);
    Ok(())
}

fn cpu_per_million(phase: &Phase) -> f64 {
    phase.span.server_cpu_seconds * 1e6 / phase.jobs.max(1) as f64
}

fn rate(phase: &Phase) -> f64 {
    phase.jobs as f64 / phase.span.seconds
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
