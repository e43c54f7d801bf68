//! `ganger demo`: a server, producers and workers in one process, to watch before anything is set
//! up.
//!
//! It is the real thing: a store on disk that syncs before each answer, and clients over a socket.
//! The store goes when the demo ends. Here the parts are put together and the jobs are run;
//! `ledger` knows what became of each of them, `figures` how it looks. Next on the path of a
//! request is `client.rs` of the Rust client.

mod figures;
mod ledger;

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ganger_client::{Client, ClientOptions, Failure, shutdown_on_signals};
use ganger_protocol::{
    DurationMs, JobSpec, QueueName, QueuePattern,
    ids::Kind,
    job::GrantedJob,
    request::{AckItem, FailItem, Fetch, SessionHello},
    response::FetchReply,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use self::{
    figures::{Figures, Screen},
    ledger::{Ledger, Plan, Verdict},
};
use super::{
    error::CliError,
    load::{Head, Quantiles},
    output,
};
use crate::{
    Server, auth,
    clock::Stopwatch,
    config::Config,
    tasks::{OnPanic, Tasks},
    telemetry::{LogFormat, Telemetry},
};

/// Connections that push.
const PRODUCERS: usize = 2;

/// How often a producer looks whether jobs are due.
const PUSH_EVERY: Duration = Duration::from_millis(10);

/// Jobs in one fetch at most.
const FETCH_MAX: u32 = 32;

/// How long a fetch waits, and so how late a worker hears that the demo ends.
const FETCH_WAIT: DurationMs = DurationMs(100);

/// Failures after which a job is dead.
const ATTEMPTS_MAX: u32 = 3;

/// From a failure to the next attempt.
const RETRY_IN: Duration = Duration::from_millis(500);

/// How long producers and workers may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// End once so many jobs are done or dead
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    jobs: Option<u64>,
    /// Push for so long, and end once all jobs are done or dead
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    seconds: Option<u64>,
    /// Jobs pushed each second
    #[arg(long, value_name = "COUNT", default_value_t = 1_000,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// Connections that work
    #[arg(long, value_name = "COUNT", default_value_t = 4,
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    workers: u16,
    /// Attempts that fail; after the third failure a job is dead
    #[arg(long, value_name = "PERCENT", default_value_t = 5,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    failing: u8,
}

pub(super) fn run(args: &DemoArgs) -> Result<(), CliError> {
    Telemetry::start("warn", LogFormat::Auto)
        .map_err(|error| CliError::failed("cannot start the log").because(&error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| CliError::failed("cannot start").because(&error))?;
    let verdict = runtime.block_on(async {
        let shutdown = shutdown_on_signals()
            .map_err(|error| CliError::failed("cannot listen to signals").because(&error))?;
        demo(args, &shutdown).await
    });
    runtime.shutdown_background();
    judge(&verdict?)
}

fn judge(verdict: &Verdict) -> Result<(), CliError> {
    output::line(&figures::farewell(verdict))?;
    match (verdict.lost, verdict.totals.wrong) {
        (0, 0) => Ok(()),
        (0, wrong) => Err(CliError::failed(format!(
            "{wrong} grants were of jobs that were done, changed, or never pushed"
        ))),
        (lost, _) => Err(CliError::failed(format!("{lost} jobs were lost"))),
    }
}

/// Runs the server for as long as the demo on it.
async fn demo(args: &DemoArgs, shutdown: &CancellationToken) -> Result<Verdict, CliError> {
    let store = TemporaryStore::make()?;
    let config = Config {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        data_dir: store.0.clone(),
        ..Config::default()
    };
    let server = Server::start(&config)?;
    let listen = server.listen();
    output::note(&figures::greeting(listen, &store.0));
    let (played, served) = (CancellationToken::new(), CancellationToken::new());
    let serve = async {
        let _served = served.clone().drop_guard();
        server.run_until_drained(played.clone()).await
    };
    let play = async {
        let _played = played.clone().drop_guard();
        // Without a server its clients would go on trying to reach it.
        served
            .run_until_cancelled(play(args, listen, shutdown))
            .await
    };
    let (server, verdict) = tokio::join!(serve, play);
    server?;
    verdict.unwrap_or_else(|| Err(CliError::failed("the server ended before the demo")))
}

/// A directory of the demo's own in the system's place for such; gone when it is dropped.
#[derive(Debug)]
struct TemporaryStore(PathBuf);

impl TemporaryStore {
    fn make() -> Result<Self, CliError> {
        let refused = |error: &(dyn std::error::Error + 'static)| {
            CliError::failed("cannot make a temporary store")
                .because(error)
                .hint("name a directory for temporary files in TMPDIR")
        };
        let number = u64::from_be_bytes(auth::random().map_err(|error| refused(&error))?);
        let path = std::env::temp_dir().join(format!("ganger-demo-{number:x}"));
        let made = fs::DirBuilder::new().mode(0o700).create(&path);
        made.map_err(|error| refused(&error))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryStore {
    fn drop(&mut self) {
        match fs::remove_dir_all(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                output::note(&format!("{} is left: {error}", self.0.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
}

/// Pushes and runs jobs until all are over, or whoever watches has seen enough.
async fn play(
    args: &DemoArgs,
    listen: SocketAddr,
    shutdown: &CancellationToken,
) -> Result<Verdict, CliError> {
    let options = ClientOptions::new(listen.ip().to_string()).port(listen.port());
    let observer = Client::connect(options.clone().name("ganger-demo")).await?;
    let play = Arc::new(Play::new(args)?);
    let tasks = Tasks::new();
    let (failures, mut failed) = mpsc::unbounded_channel();
    for _ in 0..PRODUCERS {
        let client = Client::connect(options.clone().name("ganger-demo-producer")).await?;
        let (play, failures, stopping) = (Arc::clone(&play), failures.clone(), tasks.stopping());
        tasks.spawn("producer", OnPanic::Stop, async move {
            if let Err(error) = play.produce(&client, &stopping).await {
                // Whoever listens has heard of another failure already.
                let _ = failures.send(error);
            }
        });
    }
    for _ in 0..args.workers {
        let client = Client::connect(options.clone().session(session())).await?;
        let (play, failures, stopping) = (Arc::clone(&play), failures.clone(), tasks.stopping());
        tasks.spawn("worker", OnPanic::Stop, async move {
            if let Err(error) = play.work(&client, &stopping).await {
                let _ = failures.send(error);
            }
        });
    }
    let watched = tokio::select! {
        watched = play.watch(&observer, shutdown) => watched,
        Some(error) = failed.recv() => Err(error),
    };
    let ended = tasks.shutdown(END_TIMEOUT).await;
    watched?;
    ended.map_err(|error| CliError::failed("the demo did not end in time").because(&error))?;
    if let Ok(error) = failed.try_recv() {
        return Err(error);
    }
    let queues = observer.queues(Some(QueuePattern::Name(play.queue.clone())));
    let counters = queues.await?.into_iter().map(|queue| queue.counters);
    let live = counters
        .map(|counters| counters.kept() - counters.dead)
        .sum();
    observer.close().await;
    Ok(play.with_ledger(|ledger| ledger.verdict(live)))
}

fn session() -> SessionHello {
    SessionHello {
        name: "ganger-demo-worker".to_owned(),
        ..SessionHello::default()
    }
}

/// What all parts of a demo share.
#[derive(Debug)]
struct Play {
    queue: QueueName,
    kind: Kind,
    failing: u8,
    watch: Stopwatch,
    ledger: Mutex<Ledger>,
    /// Every job is over, and none follows.
    over: CancellationToken,
}

/// What a worker tells the server with its next fetch, and of which jobs.
#[derive(Debug, Default)]
struct Answers {
    /// With the head of the job and its failures so far; none for a job that is not ours.
    acks: Vec<(AckItem, Option<(Head, u32)>)>,
    fails: Vec<(FailItem, Head)>,
}

impl Play {
    fn new(args: &DemoArgs) -> Result<Self, CliError> {
        let broken = |error: &(dyn std::error::Error + 'static)| {
            CliError::failed("cannot name the queue").because(error)
        };
        let plan = Plan {
            rate: args.rate,
            jobs: args.jobs,
            seconds: args.seconds,
        };
        Ok(Self {
            queue: "demo".parse().map_err(|error| broken(&error))?,
            kind: "demo-job".parse().map_err(|error| broken(&error))?,
            failing: args.failing,
            watch: Stopwatch::start(),
            ledger: Mutex::new(Ledger::new(plan)),
            over: CancellationToken::new(),
        })
    }

    /// Shows figures once a second, until every job is over or whoever watches has seen enough.
    async fn watch(&self, client: &Client, shutdown: &CancellationToken) -> Result<(), CliError> {
        let mut screen = Screen::new(output::data_watched());
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        // The first tick comes at once.
        ticks.tick().await;
        let (mut done, mut second) = (0, Stopwatch::start());
        loop {
            // All branches are cancel-safe: a tick that was not taken comes again.
            tokio::select! {
                () = self.over.cancelled() => return Ok(()),
                () = shutdown.cancelled() => return Ok(()),
                _ = ticks.tick() => {}
            }
            let counters = client.stats().await?.counters;
            let (totals, samples) =
                self.with_ledger(|ledger| (ledger.totals(), ledger.take_samples()));
            let seconds = std::mem::replace(&mut second, Stopwatch::start()).elapsed();
            let acked = totals.done - std::mem::replace(&mut done, totals.done);
            let figures = Figures {
                second: self.watch.elapsed().as_secs(),
                jobs_per_s: acked as f64 / seconds.as_secs_f64().max(1e-6),
                counters,
                totals,
                ack_ms: Quantiles::of(samples),
            };
            output::line(&screen.draw(&figures))?;
        }
    }

    async fn produce(&self, client: &Client, stopping: &CancellationToken) -> Result<(), CliError> {
        let mut ticks = tokio::time::interval(PUSH_EVERY);
        while !stopping.is_cancelled() && !self.with_ledger(|ledger| ledger.is_closed()) {
            ticks.tick().await;
            let pushed_us = self.now_us();
            let numbers = self.with_ledger(|ledger| ledger.reserve(pushed_us));
            if numbers.is_empty() {
                continue;
            }
            let jobs = numbers.map(|number| JobSpec {
                queue: self.queue.clone(),
                max_attempts: Some(ATTEMPTS_MAX),
                ..JobSpec::new(
                    self.kind.clone(),
                    ledger::pushed(Head { number, pushed_us }),
                )
            });
            for result in client.push_many(jobs.collect()).await? {
                result?;
            }
        }
        client.close().await;
        Ok(())
    }

    async fn work(&self, client: &Client, stopping: &CancellationToken) -> Result<(), CliError> {
        let mut answers = Answers::default();
        loop {
            let stops = stopping.is_cancelled();
            let fetch = Fetch {
                queues: vec![QueuePattern::Name(self.queue.clone())],
                max: if stops { 0 } else { FETCH_MAX },
                wait_ms: FETCH_WAIT,
                acks: answers.acks.iter().map(|(ack, _)| ack.clone()).collect(),
                fails: answers.fails.iter().map(|(fail, _)| fail.clone()).collect(),
                ..Fetch::default()
            };
            let reply = client.fetch(fetch).await?;
            self.note(&answers, &reply);
            if stops {
                client.goodbye().await?;
                client.close().await;
                return Ok(());
            }
            answers = self.attempt(reply.jobs);
        }
    }

    /// Notes which answers the server has taken. One that it refused came too late: the job is
    /// granted again.
    fn note(&self, answers: &Answers, reply: &FetchReply) {
        let now_us = self.now_us();
        self.with_ledger(|ledger| {
            for ((_, ours), result) in answers.acks.iter().zip(&reply.acks) {
                if let (Some((head, failures)), None) = (ours, &result.err) {
                    ledger.acked(*head, *failures, now_us);
                }
            }
            for ((_, head), result) in answers.fails.iter().zip(&reply.fails) {
                if result.err.is_none() {
                    ledger.failed(*head, result.state);
                }
            }
        });
    }

    /// Runs jobs: most succeed. A stranger, pushed by whoever watches, does too.
    fn attempt(&self, jobs: Vec<GrantedJob>) -> Answers {
        let mut answers = Answers::default();
        for GrantedJob {
            id: job,
            lease,
            kind,
            payload,
            attempt,
            failures,
            ..
        } in jobs
        {
            let ours = kind == self.kind;
            let head = self.with_ledger(|ledger| ours.then(|| ledger.granted(&payload, failures)));
            match head.flatten() {
                Some(head) if fails(head.number, attempt, self.failing) => {
                    let failure = Failure::new("demo", "this attempt was meant to fail");
                    let item = failure.retry_in(RETRY_IN).into_item(job, lease);
                    answers.fails.push((item, head));
                }
                head => {
                    let ack = AckItem::of(job, lease);
                    answers.acks.push((ack, head.map(|head| (head, failures))));
                }
            }
        }
        answers
    }

    fn with_ledger<T>(&self, look: impl FnOnce(&mut Ledger) -> T) -> T {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        let result = look(&mut ledger);
        if ledger.is_over() {
            self.over.cancel();
        }
        result
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.watch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// Whether this attempt fails: so many in a hundred, the same ones in every demo.
fn fails(number: u64, attempt: u32, percent: u8) -> bool {
    let mut dice = fastrand::Rng::with_seed(number);
    let throws = (0..attempt).map(|_| dice.u32(..100));
    throws
        .last()
        .is_some_and(|throw| throw < u32::from(percent))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{super::error::Exit, *};

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        demo: DemoArgs,
    }

    fn args(flags: &str) -> DemoArgs {
        Line::try_parse_from(format!("demo {flags}").split(' '))
            .unwrap()
            .demo
    }

    async fn verdict(flags: &str) -> Verdict {
        demo(&args(flags), &CancellationToken::new()).await.unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn every_job_of_a_demo_is_done_and_its_store_goes() {
        let verdict = verdict("--jobs 300 --rate 100000 --failing 0").await;
        assert_eq!((verdict.pushed, verdict.totals.done), (300, 300));
        assert_eq!((verdict.waiting, verdict.lost), (0, 0));
        assert_eq!(judge(&verdict), Ok(()));
        let (data, notes) = output::sink::take();
        assert!(data.ends_with("300 pushed = 300 done + 0 dead + 0 waiting + 0 lost; 0 wrong\n"));
        let store = notes.lines().find_map(|line| line.strip_prefix("store in"));
        let store = store
            .and_then(|rest| rest.trim().split(',').next())
            .unwrap();
        assert!(store.contains("ganger-demo-"), "{notes}");
        assert!(!PathBuf::from(store).exists(), "{store}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_job_that_always_fails_is_dead_after_its_attempts() {
        let verdict = verdict("--jobs 10 --rate 1000 --failing 100").await;
        let totals = verdict.totals;
        assert_eq!((totals.done, totals.dead, totals.retries), (0, 10, 20));
        assert_eq!(judge(&verdict), Ok(()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn whoever_has_seen_enough_loses_nothing() {
        let enough = CancellationToken::new();
        enough.cancel();
        let verdict = demo(&args("--rate 100000"), &enough).await.unwrap();
        assert_eq!(judge(&verdict), Ok(()));
    }

    #[test]
    fn a_loss_is_a_failure() {
        let verdict = Ledger::new(Plan {
            rate: 1,
            jobs: None,
            seconds: None,
        })
        .verdict(0);
        assert_eq!(judge(&verdict), Ok(()));
        let lost = Verdict { lost: 2, ..verdict };
        let error = judge(&lost).unwrap_err();
        assert_eq!(
            (error.exit, error.message.as_str()),
            (Exit::Failed, "2 jobs were lost")
        );
        let mut wrong = verdict;
        wrong.totals.wrong = 1;
        assert!(judge(&wrong).is_err());
    }

    #[test]
    fn so_many_attempts_in_a_hundred_fail() {
        let failing = |percent| (0..10_000).filter(|job| fails(*job, 1, percent)).count();
        assert_eq!((failing(0), failing(100)), (0, 10_000));
        assert!((900..1_100).contains(&failing(10)), "{}", failing(10));
        let again = (0..10_000).filter(|job| fails(*job, 1, 50) && fails(*job, 2, 50));
        assert!(
            (2_200..2_800).contains(&again.count()),
            "an attempt is not its predecessor"
        );
    }
}
