//! Loads for what ganger has and its peers have not: keys with limits, a burst of due jobs beside
//! other work, one tenant's backlog beside another's few jobs, the purge of a long queue.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicUsize, atomic::Ordering::Relaxed},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use ganger_protocol::{
    DurationMs,
    limit::LimitSet,
    queue::{OneQueue, QueuePurgeReply},
    request::{Ack, AckItem, Fetch, Operation, QueueList, SessionHello},
    response::{FetchReply, QueuesReply},
};
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    ganger::{Connection, Ganger, Keys, key_name},
    load::{self, Bound, Delayed, Driver, Due, Gauge, PAYLOAD_BYTES, Producer, Shape, Worker},
    probe::Span,
};

/// Connections that set limits side by side.
const SETTERS_COUNT: usize = 32;
/// More than are ever leased at once.
const RUNNING_MAX: u32 = 1_000_000;
/// Other work before the burst, and between two of its jobs.
const CALM: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(5);
/// Workers of both tenants, key of the small one, its jobs in a turn, and its turns.
const TENANT_WORKERS: usize = 8;
const SMALL: &str = "small";
const FEW_JOBS: usize = 10;
const TURNS: usize = 100;

/// Gives each numbered key a limit of its own, which it never meets.
pub(crate) async fn limit_keys(address: SocketAddr, keys: usize) -> Result<()> {
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..SETTERS_COUNT {
        let next = Arc::clone(&next);
        tasks.spawn(async move {
            let mut connection = Connection::open(address, None).await?;
            loop {
                let number = next.fetch_add(1, Relaxed);
                if number >= keys {
                    return anyhow::Ok(());
                }
                let set = LimitSet {
                    key: Some(key_name(number).parse()?),
                    max_running: Some(RUNNING_MAX),
                    ..LimitSet::default()
                };
                connection.call(Operation::LimitSet(Box::new(set))).await?;
            }
        });
    }
    while let Some(set) = tasks.join_next().await {
        set??;
    }
    Ok(())
}

/// What a burst of due jobs did.
#[derive(Debug)]
pub(crate) struct Burst {
    /// Push → ack of other work before it and during it, sorted.
    pub(crate) before: Vec<Duration>,
    pub(crate) during: Vec<Duration>,
    /// Of the burst's jobs, in µs, sorted.
    pub(crate) lateness_us: Vec<i64>,
    pub(crate) span: Span,
}

/// Jobs that are due together, while other work goes on in another queue.
pub(crate) async fn burst(ganger: &Ganger, delayed: Delayed, server_pid: u32) -> Result<Burst> {
    let mut other = Other::open(&ganger.in_queue("other")).await?;
    let mut before = other.until(sleep(CALM)).await?.1;
    let burst = ganger.in_queue("burst");
    let first_due = Instant::now() + delayed.after;
    let all = load::due(&burst, delayed, server_pid);
    let (came, during) = other.until(all).await?;
    let (lateness_us, span) = came?;
    let mut during: Vec<_> = during.into_iter().filter(|it| it.0 >= first_due).collect();
    before.sort_unstable_by_key(|it| it.1);
    during.sort_unstable_by_key(|it| it.1);
    Ok(Burst {
        before: before.into_iter().map(|it| it.1).collect(),
        during: during.into_iter().map(|it| it.1).collect(),
        lateness_us,
        span,
    })
}

/// Other work: one job at a time, pushed, leased and acked.
struct Other<P, W> {
    producer: P,
    worker: W,
    gauge: Arc<Gauge>,
}

impl Other<(), ()> {
    async fn open<D: Driver>(driver: &D) -> Result<Other<D::Producer, D::Worker>> {
        Ok(Other {
            producer: driver.producer().await?,
            worker: driver.worker(0).await?,
            gauge: Gauge::new(),
        })
    }
}

impl<P: Producer, W: Worker> Other<P, W> {
    /// Works until something has come to its end: when each job was acked, and how long it took.
    async fn until<T>(
        &mut self,
        end: impl Future<Output = T>,
    ) -> Result<(T, Vec<(Instant, Duration)>)> {
        let mut took = Vec::new();
        let mut end = std::pin::pin!(end);
        loop {
            let pushed = Instant::now();
            self.producer.push(&[0; PAYLOAD_BYTES]).await?;
            let count = self.worker.turn(1, &self.gauge).await?;
            ensure!(count == 1, "{count} jobs instead of one");
            self.worker.settle(&self.gauge).await?;
            let acked = Instant::now();
            took.push((acked, acked - pushed));
            tokio::select! {
                end = &mut end => return Ok((end, took)),
                () = sleep(PAUSE) => {}
            }
        }
    }
}

/// How long a tenant's few jobs take, sorted.
#[derive(Debug)]
pub(crate) struct Tenant {
    /// With nothing else on the server.
    pub(crate) idle: Vec<Duration>,
    /// Beside another tenant's backlog.
    pub(crate) beside: Vec<Duration>,
}

/// Few jobs of a key, on an idle server and beside another key's backlog in the same queue.
pub(crate) async fn tenant(ganger: &Ganger, jobs: usize, server_pid: u32) -> Result<Tenant> {
    let (leave, left) = mpsc::unbounded_channel();
    let mut workers = JoinSet::new();
    for _ in 0..TENANT_WORKERS {
        workers.spawn(work_for_tenants(ganger.address, leave.clone()));
    }
    let mut few = Few {
        producer: ganger.with_keys(Keys::Own(SMALL)).producer().await?,
        acked: left,
    };
    let idle = few.turns().await?;
    let shape = Shape {
        producers: 8,
        workers: 0,
        per_request: 100,
    };
    let bound = Bound {
        jobs,
        length: Duration::from_secs(600),
    };
    let (big, gauge) = (ganger.with_keys(Keys::Own("big")), Gauge::new());
    load::fill(&big, shape, bound, Due::Now, &gauge, server_pid).await?;
    let beside = few.turns().await?;
    let list = Operation::QueueList(QueueList { pattern: None });
    let mut connection = Connection::open(ganger.address, None).await?;
    let queues: QueuesReply = connection.call(list).await?.read()?;
    let ready = queues.queues.iter().map(|queue| queue.counters.ready);
    let ready = ready.sum::<u64>();
    ensure!(ready > 0, "the backlog was gone before the few were done");
    workers.abort_all();
    Ok(Tenant { idle, beside })
}

/// Pushes few jobs at a time and hears when each is acked.
struct Few<P> {
    producer: P,
    acked: mpsc::UnboundedReceiver<Instant>,
}

impl<P: Producer> Few<P> {
    /// Times from the push of a few jobs until the last of them is acked, sorted.
    async fn turns(&mut self) -> Result<Vec<Duration>> {
        let mut took = Vec::new();
        for _ in 0..TURNS {
            sleep(PAUSE).await;
            let pushed = Instant::now();
            self.producer.push(&[0; FEW_JOBS * PAYLOAD_BYTES]).await?;
            let mut last = pushed;
            for _ in 0..FEW_JOBS {
                let acked = timeout(Duration::from_secs(60), self.acked.recv()).await?;
                last = acked.context("the workers ended early")?.max(last);
            }
            took.push(last - pushed);
        }
        took.sort_unstable();
        Ok(took)
    }
}

/// Takes one job after the other, whosever it is, and tells of the small tenant's.
async fn work_for_tenants(
    address: SocketAddr,
    acked: mpsc::UnboundedSender<Instant>,
) -> Result<()> {
    let mut connection = Connection::open(address, Some(SessionHello::default())).await?;
    loop {
        let fetch = Fetch {
            queues: vec!["default".parse()?],
            max: 1,
            wait_ms: DurationMs(1_000),
            ..Fetch::default()
        };
        let fetched: FetchReply = connection.call(Operation::Fetch(fetch)).await?.read()?;
        for job in fetched.jobs {
            let leases = vec![AckItem::of(job.id, job.lease)];
            connection.call(Operation::Ack(Ack { leases })).await?;
            if job.key.is_some_and(|key| key.as_str() == SMALL) {
                acked.send(Instant::now())?;
            }
        }
    }
}

/// Purges the default queue: how many jobs that removed, and how long the answer took.
pub(crate) async fn purge(address: SocketAddr) -> Result<(u64, Duration)> {
    let mut connection = Connection::open(address, None).await?;
    let begun = Instant::now();
    let purge = OneQueue {
        queue: "default".parse()?,
    };
    let reply = connection.call(Operation::QueuePurge(purge)).await?;
    let reply: QueuePurgeReply = reply.read()?;
    Ok((reply.removed, begun.elapsed()))
}
