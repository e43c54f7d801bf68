//! `ganger bench`: pushes jobs to a running server, runs them, and checks that each came once and
//! whole. Figures are of this machine and this run.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ganger_client::Client;
use ganger_protocol::{
    DurationMs, JobSpec, QueueName, QueuePattern,
    ids::Kind,
    job::GrantedJob,
    request::{AckItem, Fetch, SessionHello},
};
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    connect::ConnectArgs,
    error::CliError,
    load::{HEAD_BYTES, Head, Quantiles},
    output::{Format, pairs},
};
use crate::{
    auth,
    clock::Stopwatch,
    config::units::Size,
    tasks::{OnPanic, Tasks},
};

#[derive(Debug, clap::Args)]
pub(super) struct BenchArgs {
    /// How many jobs
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u64).range(1..))]
    jobs: u64,
    /// The payload of a job, at least 16 bytes
    #[arg(long, default_value = "100B")]
    payload: Size,
    /// Connections that push
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    producers: u16,
    /// Connections that work
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    workers: u16,
    /// Jobs in one push, and at most in one fetch
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000))]
    per_request: u16,
    #[command(flatten)]
    connect: ConnectArgs,
    #[command(flatten)]
    format: Format,
}

/// What came out.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Report {
    jobs: u64,
    payload_bytes: u64,
    producers: u16,
    workers: u16,
    per_request: u16,
    elapsed_ms: f64,
    /// Pushed, run and acked.
    jobs_per_s: f64,
    /// The answer to a push.
    push_ms: Quantiles,
    /// From the call of push to the arrival at a worker.
    arrival_ms: Quantiles,
    /// Each job came once, with its own payload.
    verified: bool,
}

pub(super) fn run(args: &BenchArgs) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| CliError::failed("cannot start").because(&error))?;
    let report = runtime.block_on(measure(args))?;
    args.format.print(&report, text)?;
    if report.verified {
        return Ok(());
    }
    Err(CliError::failed(
        "jobs were lost, came twice, or changed on their way",
    ))
}

async fn measure(args: &BenchArgs) -> Result<Report, CliError> {
    let options = args.connect.options()?;
    let mut producers = Vec::new();
    for _ in 0..args.producers {
        producers.push(Client::connect(options.clone()).await?);
    }
    let mut workers = Vec::new();
    for _ in 0..args.workers {
        let session = SessionHello {
            name: "ganger-bench".to_owned(),
            ..SessionHello::default()
        };
        workers.push(Client::connect(options.clone().session(session)).await?);
    }
    let run = Arc::new(Run::new(args)?);
    let tasks = Tasks::new();
    let (sender, mut results) = mpsc::unbounded_channel();
    for client in producers {
        let (run, sender) = (Arc::clone(&run), sender.clone());
        tasks.spawn("producer", OnPanic::Stop, async move {
            // The receiver is gone only when another one has failed.
            let _ = sender.send(run.produce(client).await.map(Samples::Push));
        });
    }
    for client in workers {
        let (run, sender) = (Arc::clone(&run), sender.clone());
        tasks.spawn("worker", OnPanic::Stop, async move {
            let _ = sender.send(run.work(client).await.map(Samples::Arrival));
        });
    }
    drop(sender);
    let (mut pushes, mut arrivals) = (Vec::new(), Vec::new());
    while let Some(samples) = results.recv().await {
        match samples? {
            Samples::Push(samples) => pushes.extend(samples),
            Samples::Arrival(samples) => arrivals.extend(samples),
        }
    }
    let elapsed = Duration::from_micros(run.finished_us.load(Ordering::Acquire));
    Ok(Report {
        jobs: args.jobs,
        payload_bytes: run.payload_bytes as u64,
        producers: args.producers,
        workers: args.workers,
        per_request: args.per_request,
        elapsed_ms: elapsed.as_secs_f64() * 1e3,
        jobs_per_s: args.jobs as f64 / elapsed.as_secs_f64().max(1e-6),
        push_ms: Quantiles::of(pushes),
        arrival_ms: Quantiles::of(arrivals),
        verified: run.verified(),
    })
}

/// Durations in µs.
enum Samples {
    Push(Vec<u64>),
    Arrival(Vec<u64>),
}

/// What all connections of a run share.
#[derive(Debug)]
struct Run {
    jobs: u64,
    payload_bytes: usize,
    per_request: u64,
    queue: QueueName,
    kind: Kind,
    watch: Stopwatch,
    /// The next job to push.
    next: AtomicU64,
    acked: AtomicU64,
    finished_us: AtomicU64,
    finished: CancellationToken,
    tally: Mutex<Tally>,
}

/// What arrived: each number once, and the sum of the checksums.
#[derive(Debug)]
struct Tally {
    seen: Vec<bool>,
    strangers: u64,
    pushed_sum: u64,
    arrived_sum: u64,
}

impl Run {
    fn new(args: &BenchArgs) -> Result<Self, CliError> {
        let broken = |error: &(dyn std::error::Error + 'static)| {
            CliError::failed("cannot name a queue of its own").because(error)
        };
        let number = u64::from_be_bytes(auth::random().map_err(|error| broken(&error))?);
        let jobs = usize::try_from(args.jobs).unwrap_or(usize::MAX);
        Ok(Self {
            jobs: args.jobs,
            payload_bytes: args.payload.bytes().max(HEAD_BYTES),
            per_request: u64::from(args.per_request),
            queue: format!("bench-{number:x}")
                .parse()
                .map_err(|error| broken(&error))?,
            kind: "bench".parse().map_err(|error| broken(&error))?,
            watch: Stopwatch::start(),
            next: AtomicU64::new(0),
            acked: AtomicU64::new(0),
            finished_us: AtomicU64::new(0),
            finished: CancellationToken::new(),
            tally: Mutex::new(Tally {
                seen: vec![false; jobs],
                strangers: 0,
                pushed_sum: 0,
                arrived_sum: 0,
            }),
        })
    }

    async fn produce(&self, client: Client) -> Result<Vec<u64>, CliError> {
        let mut samples = Vec::new();
        loop {
            let first = self.next.fetch_add(self.per_request, Ordering::AcqRel);
            let count = self.per_request.min(self.jobs.saturating_sub(first));
            if count == 0 {
                client.close().await;
                return Ok(samples);
            }
            let (pushed_us, mut sum, mut jobs) = (self.now_us(), 0_u64, Vec::new());
            for number in first..first + count {
                let payload = Head { number, pushed_us }.payload(self.payload_bytes);
                sum = sum.wrapping_add(u64::from(crc32fast::hash(&payload)));
                let queue = self.queue.clone();
                jobs.push(JobSpec {
                    queue,
                    ..JobSpec::new(self.kind.clone(), payload)
                });
            }
            self.with_tally(|tally| tally.pushed_sum = tally.pushed_sum.wrapping_add(sum));
            for result in client.push_many(jobs).await? {
                result?;
            }
            samples.push(self.now_us() - pushed_us);
        }
    }

    async fn work(&self, client: Client) -> Result<Vec<u64>, CliError> {
        let (mut samples, mut acks) = (Vec::new(), Vec::new());
        loop {
            let carried = acks.len() as u64;
            let fetch = Fetch {
                queues: vec![QueuePattern::Name(self.queue.clone())],
                max: u32::try_from(self.per_request).unwrap_or(u32::MAX),
                wait_ms: DurationMs::from_secs(10),
                acks: std::mem::take(&mut acks),
                ..Fetch::default()
            };
            let Some(reply) = self.finished.run_until_cancelled(client.fetch(fetch)).await else {
                client.close().await;
                return Ok(samples);
            };
            let reply = reply?;
            if let Some(error) = reply.acks.into_iter().find_map(|ack| ack.err) {
                return Err(error.into());
            }
            let now = self.now_us();
            let acked = self.acked.fetch_add(carried, Ordering::AcqRel) + carried;
            if acked >= self.jobs && carried > 0 {
                self.finished_us.store(now, Ordering::Release);
                self.finished.cancel();
            }
            self.with_tally(|tally| {
                for job in &reply.jobs {
                    if let Some(pushed) = tally.take(job) {
                        samples.push(now.saturating_sub(pushed));
                    }
                }
            });
            acks = reply
                .jobs
                .iter()
                .map(|job| AckItem::of(job.id, job.lease))
                .collect();
        }
    }

    fn verified(&self) -> bool {
        self.with_tally(|tally| {
            tally.seen.iter().all(|seen| *seen)
                && tally.strangers == 0
                && tally.pushed_sum == tally.arrived_sum
        })
    }

    fn with_tally<T>(&self, change: impl FnOnce(&mut Tally) -> T) -> T {
        change(&mut self.tally.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.watch.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

impl Tally {
    /// Notes an arrival; returns when it was pushed, in µs.
    fn take(&mut self, job: &GrantedJob) -> Option<u64> {
        let checksum = u64::from(crc32fast::hash(&job.payload));
        self.arrived_sum = self.arrived_sum.wrapping_add(checksum);
        let Some(head) = Head::of(&job.payload) else {
            self.strangers += 1;
            return None;
        };
        let number = usize::try_from(head.number).unwrap_or(usize::MAX);
        match self.seen.get_mut(number) {
            Some(seen) if !*seen => *seen = true,
            Some(_) | None => self.strangers += 1,
        }
        Some(head.pushed_us)
    }
}

fn text(report: &Report) -> String {
    let ms =
        |quantiles: Quantiles| format!("p50 {:.2} ms, p99 {:.2} ms", quantiles.p50, quantiles.p99);
    let connections = format!(
        "{} producers, {} workers, {} per request",
        report.producers, report.workers, report.per_request
    );
    pairs(&[
        (
            "jobs",
            format!("{} of {} bytes", report.jobs, report.payload_bytes),
        ),
        ("connections", connections),
        ("elapsed", format!("{:.0} ms", report.elapsed_ms)),
        (
            "rate",
            format!("{:.0} jobs/s pushed, run and acked", report.jobs_per_s),
        ),
        ("push", ms(report.push_ms)),
        ("arrival", ms(report.arrival_ms)),
        (
            "verified",
            if report.verified { "yes" } else { "NO" }.to_owned(),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use ganger_protocol::{
        JobId, LeaseId, Timestamp,
        request::Operation,
        response::{FetchReply, LeaseResult, PushReply, PushResult, ReplyBody},
    };

    use super::{super::peer::Peer, *};

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        bench: BenchArgs,
    }

    fn granted(payload: Vec<u8>) -> GrantedJob {
        GrantedJob {
            id: JobId::from_bytes([0; 24]),
            lease: LeaseId(1),
            queue: QueueName::default(),
            kind: "bench".parse().unwrap(),
            payload: payload.into(),
            content_type: None,
            headers: Default::default(),
            attempt: 1,
            failures: 0,
            timeout_ms: DurationMs(1_000),
            pushed_at: Timestamp(0),
            tags: Vec::new(),
            batch: None,
            key: None,
            cursor: None,
        }
    }

    fn payload(number: u64) -> Vec<u8> {
        let pushed_us = 7;
        Head { number, pushed_us }.payload(100)
    }

    #[test]
    fn a_job_that_is_missing_or_came_twice_is_noticed() {
        let mut tally = Tally {
            seen: vec![false; 2],
            strangers: 0,
            pushed_sum: 0,
            arrived_sum: 0,
        };
        assert_eq!(tally.take(&granted(payload(0))), Some(7));
        assert_eq!(
            (tally.seen.as_slice(), tally.strangers),
            ([true, false].as_slice(), 0)
        );
        tally.take(&granted(payload(0)));
        assert_eq!(tally.strangers, 1);
        tally.take(&granted(payload(2)));
        assert_eq!(tally.strangers, 2);
        assert_eq!(tally.take(&granted(vec![1])), None);
        assert_eq!(tally.strangers, 3);
    }

    #[test]
    fn the_report_is_one_table() {
        let report = Report {
            jobs: 1_000,
            payload_bytes: 100,
            producers: 8,
            workers: 4,
            per_request: 1,
            elapsed_ms: 50.4,
            jobs_per_s: 19_841.3,
            push_ms: Quantiles {
                p50: 0.3,
                p99: 1.25,
            },
            arrival_ms: Quantiles { p50: 0.5, p99: 2.0 },
            verified: true,
        };
        assert_eq!(
            text(&report),
            "jobs         1000 of 100 bytes\n\
             connections  8 producers, 4 workers, 1 per request\n\
             elapsed      50 ms\n\
             rate         19841 jobs/s pushed, run and acked\n\
             push         p50 0.30 ms, p99 1.25 ms\n\
             arrival      p50 0.50 ms, p99 2.00 ms\n\
             verified     yes\n"
        );
    }

    /// Measures a server that hands out what was pushed, and now and then something else instead.
    async fn measured(change: fn(&mut Vec<u8>)) -> Report {
        let mut queue = Vec::new();
        let peer = Peer::start(move |operation| match operation {
            Operation::Push(push) => {
                let results = push.jobs.into_iter().map(|job| {
                    queue.push(job.payload.to_vec());
                    PushResult::from(Ok(JobId::from_bytes([0; 24])))
                });
                Ok(ReplyBody::Push(PushReply {
                    results: results.collect(),
                }))
            }
            Operation::Fetch(fetch) => {
                let count = queue.len().min(fetch.max as usize);
                let jobs = queue.drain(..count).map(|mut payload| {
                    change(&mut payload);
                    granted(payload)
                });
                let jobs = jobs.collect();
                let acks = fetch
                    .acks
                    .iter()
                    .map(|_ack| LeaseResult::default())
                    .collect();
                Ok(ReplyBody::Fetch(FetchReply {
                    jobs,
                    acks,
                    fails: Vec::new(),
                }))
            }
            other => panic!("{other:?}"),
        })
        .await;
        let line = format!(
            "bench --url {} --jobs 25 --producers 2 --workers 2 --per-request 4",
            peer.url()
        );
        measure(&Line::try_parse_from(line.split(' ')).unwrap().bench)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_run_counts_and_compares_what_arrives() {
        let report = measured(|_payload| {}).await;
        assert!(report.verified);
        assert_eq!((report.jobs, report.payload_bytes), (25, 100));
        assert!(report.jobs_per_s > 0.0);
        let changed = measured(|payload| *payload.last_mut().unwrap() ^= 1).await;
        assert!(!changed.verified);
    }
}
