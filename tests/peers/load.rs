//! The load itself, the same for every peer: producers and workers with one connection each, a
//! bounded backlog, and the proof that what was delivered is what was pushed. It measures phases and
//! returns figures; which phases are run, and how often, is `plan.rs`'s.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail, ensure};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::probe::{Sample, Span};

pub(crate) const PAYLOAD_BYTES: usize = 256;
/// Producers stop while more jobs than this are pushed and not yet acked.
const BACKLOG_COUNT_MAX: usize = 10_000;
/// How long a backlog may take to drain before a run counts as failed.
const DRAIN_SECONDS_MAX: u64 = 600;
/// Rate marks of a long phase are taken at every so many jobs.
const MARK_COUNT: usize = 1_000_000;

/// How to open connections to one server.
pub(crate) trait Driver: Clone + Send + Sync + 'static {
    type Producer: Producer;
    type Worker: Worker;

    /// The same driver for a server that moved.
    fn at(&self, address: SocketAddr) -> Self;

    /// The form that drains a backlog fastest, for phases where that is not what is measured.
    fn fastest(&self) -> Self {
        self.clone()
    }

    /// The form with several queues and priorities, leases held and jobs failed, spread over so many
    /// workers; the same driver where there is none.
    fn varied(&self, _workers: usize) -> Self {
        self.clone()
    }

    /// The form whose workers wait for a minute at a time.
    fn patient(&self) -> Self;

    /// Moves delayed jobs to where workers find them, for ever, where the server does not.
    fn promote(&self) -> impl Future<Output = Result<()>> + Send {
        std::future::pending()
    }

    fn producer(&self) -> impl Future<Output = Result<Self::Producer>> + Send;
    fn worker(&self, index: usize) -> impl Future<Output = Result<Self::Worker>> + Send;
}

pub(crate) trait Producer: Send + 'static {
    /// Pushes payloads that lie one behind the other in one request; returns once it is answered.
    fn push(&mut self, payloads: &[u8]) -> impl Future<Output = Result<()>> + Send;

    /// The same for jobs that may not run before `due_ms` (since the epoch).
    fn push_delayed(
        &mut self,
        payloads: &[u8],
        due_ms: u64,
    ) -> impl Future<Output = Result<()>> + Send;
}

pub(crate) trait Worker: Send + 'static {
    /// Acks what the last turn leased, then leases up to `max` jobs, waiting at most a second (a
    /// patient one: a minute) for the first. Tells the gauge about both, each as soon as the server has answered for it.
    /// A varied worker keeps some leases for later turns, until the gauge is closed.
    fn turn(&mut self, max: usize, gauge: &Gauge) -> impl Future<Output = Result<usize>> + Send;

    /// Acks all that is leased.
    fn settle(&mut self, gauge: &Gauge) -> impl Future<Output = Result<()>> + Send;
}

/// Count and checksums of payloads; equal for the same set of payloads in any order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) count: usize,
    sum: u64,
    xor: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, payload: &[u8]) -> Result<()> {
        ensure!(
            payload.len() == PAYLOAD_BYTES,
            "payload of {} bytes",
            payload.len()
        );
        let digest = digest(payload);
        self.count += 1;
        self.sum = self.sum.wrapping_add(digest);
        self.xor ^= digest;
        Ok(())
    }
}

#[derive(Debug, Default)]
struct SharedTally {
    count: AtomicUsize,
    sum: AtomicU64,
    xor: AtomicU64,
}

impl SharedTally {
    fn merge(&self, tally: Tally) {
        self.count.fetch_add(tally.count, Relaxed);
        self.sum.fetch_add(tally.sum, Relaxed);
        self.xor.fetch_xor(tally.xor, Relaxed);
    }

    fn load(&self) -> Tally {
        Tally {
            count: self.count.load(Relaxed),
            sum: self.sum.load(Relaxed),
            xor: self.xor.load(Relaxed),
        }
    }
}

/// What is known of the jobs of one run, shared by its producers and workers.
#[derive(Debug)]
pub(crate) struct Gauge {
    pushed: SharedTally,
    /// Without those that come again after they failed.
    delivered: SharedTally,
    failing: SharedTally,
    returned: SharedTally,
    acked: AtomicUsize,
    /// Jobs of backlog under the load; 0: none but the bounded one.
    kept: usize,
    /// One permit for each job that may still be added to the backlog.
    room: Semaphore,
    /// No producer starts another request.
    closed: AtomicBool,
    /// Numbers of the payloads, so that no two of a run are alike.
    next_number: AtomicU64,
    timetable: Option<Timetable>,
}

/// When each job of a run is due, and how late it came.
#[derive(Debug)]
struct Timetable {
    /// Due time of the first job, in ms since the epoch.
    first_ms: u64,
    /// Jobs due at each further ms.
    jobs_per_ms: u64,
    /// In µs; negative: too early.
    lateness_us: Mutex<Vec<i64>>,
}

impl Gauge {
    pub(crate) fn new() -> Arc<Self> {
        Self::keeping(0)
    }

    /// For a load on top of so many jobs, to be filled first and drained afterwards.
    pub(crate) fn keeping(kept: usize) -> Arc<Self> {
        Arc::new(Self {
            pushed: SharedTally::default(),
            delivered: SharedTally::default(),
            failing: SharedTally::default(),
            returned: SharedTally::default(),
            acked: AtomicUsize::new(0),
            kept,
            room: Semaphore::new(BACKLOG_COUNT_MAX),
            closed: AtomicBool::new(false),
            next_number: AtomicU64::new(0),
            timetable: None,
        })
    }

    /// For jobs that are due at so many a ms from `first_ms` on, in the order of their numbers.
    fn timed(first_ms: u64, jobs_per_ms: u64) -> Arc<Self> {
        let mut gauge = Self::new();
        if let Some(gauge) = Arc::get_mut(&mut gauge) {
            gauge.timetable = Some(Timetable {
                first_ms,
                jobs_per_ms,
                lateness_us: Mutex::default(),
            });
        }
        gauge
    }

    /// Counts a payload that a worker was given, and how late it was.
    pub(crate) fn receive(&self, tally: &mut Tally, payload: &[u8]) -> Result<()> {
        tally.add(payload)?;
        if let (Some(timetable), Some(word)) = (&self.timetable, payload.first_chunk()) {
            let number = number_of(u64::from_le_bytes(*word));
            let due_ms = timetable.first_ms + number / timetable.jobs_per_ms;
            let now_us = i64::try_from(UNIX_EPOCH.elapsed()?.as_micros())?;
            let late_us = now_us - i64::try_from(due_ms * 1000)?;
            let mut all = timetable.lateness_us.lock();
            if let Ok(all) = &mut all {
                all.push(late_us);
            }
        }
        Ok(())
    }

    pub(crate) fn acked(&self, count: usize) {
        self.acked.fetch_add(count, Relaxed);
        // Phases without a bounded backlog take no permits: do not let them pile up.
        if self.room.available_permits() < BACKLOG_COUNT_MAX {
            self.room.add_permits(count);
        }
    }

    pub(crate) fn delivered(&self, tally: Tally) {
        self.delivered.merge(tally);
    }

    /// First deliveries of jobs that will be failed: each has to come again.
    pub(crate) fn failing(&self, tally: Tally) {
        self.failing.merge(tally);
    }

    /// Deliveries of jobs that had failed.
    pub(crate) fn returned(&self, tally: Tally) {
        self.returned.merge(tally);
    }

    pub(crate) fn failing_count(&self) -> usize {
        self.failing.load().count
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    /// Jobs pushed and not yet acked.
    pub(crate) fn backlog(&self) -> usize {
        self.pushed_count().saturating_sub(self.acked_count())
    }

    /// Workers stop until producers have caught up: the backlog falls below what is to be kept.
    fn is_short(&self) -> bool {
        self.backlog() + BACKLOG_COUNT_MAX < self.kept
    }

    fn payloads(&self, count: usize, out: &mut Vec<u8>) -> Result<Tally> {
        out.clear();
        let first = self.next_number.fetch_add(u64::try_from(count)?, Relaxed);
        let mut tally = Tally::default();
        for number in first.. {
            if tally.count == count {
                break;
            }
            let begin = out.len();
            write_payload(number, out);
            tally.add(&out[begin..])?;
        }
        Ok(tally)
    }

    fn pushed_count(&self) -> usize {
        self.pushed.count.load(Relaxed)
    }

    fn delivered_count(&self) -> usize {
        self.delivered.count.load(Relaxed)
    }

    fn acked_count(&self) -> usize {
        self.acked.load(Relaxed)
    }

    fn drained(&self) -> bool {
        self.is_closed() && self.acked_count() >= self.pushed_count()
    }

    /// Everything that was pushed was delivered once and acked once, and nothing else was; what
    /// failed came again once.
    fn verify(&self) -> Result<()> {
        let (pushed, delivered, acked) = (
            self.pushed.load(),
            self.delivered.load(),
            self.acked_count(),
        );
        ensure!(
            pushed == delivered && acked == pushed.count,
            "verification failed: pushed {pushed:x?}, delivered {delivered:x?}, acked {acked:#x}"
        );
        let (failing, returned) = (self.failing.load(), self.returned.load());
        ensure!(
            failing == returned,
            "verification failed: failed {failing:x?}, came again {returned:x?}"
        );
        Ok(())
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) producers: usize,
    pub(crate) workers: usize,
    pub(crate) per_request: usize,
}

/// The shape in which a backlog is drained, whatever was measured before.
pub(crate) const DRAIN: Shape = Shape {
    producers: 0,
    workers: 8,
    per_request: 100,
};

/// One measured phase: its jobs and what they cost.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    pub(crate) jobs: usize,
    pub(crate) span: Span,
    /// Jobs a second of each whole million, in order.
    pub(crate) million_rates: Vec<f64>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) warm_up: Duration,
    pub(crate) length: Duration,
}

/// Producers and workers at once over a bounded backlog; counts the jobs acked within the window.
/// Verifies, unless the gauge keeps a backlog: that is left for `drain`.
pub(crate) async fn steady<D: Driver>(
    driver: &D,
    shape: Shape,
    window: Window,
    gauge: &Arc<Gauge>,
    server_pid: u32,
) -> Result<Phase> {
    let mut tasks = JoinSet::new();
    for index in 0..shape.workers {
        let worker = driver.worker(index).await?;
        tasks.spawn(work(worker, shape.per_request, Arc::clone(gauge)));
    }
    for _ in 0..shape.producers {
        let producer = driver.producer().await?;
        tasks.spawn(produce(producer, shape.per_request, Arc::clone(gauge)));
    }
    let measure = async {
        sleep(window.warm_up).await;
        let (before, acked_before) = (Sample::take(server_pid)?, gauge.acked_count());
        sleep(window.length).await;
        let (after, acked_after) = (Sample::take(server_pid)?, gauge.acked_count());
        gauge.closed.store(true, Relaxed);
        gauge.room.close();
        anyhow::Ok((acked_after - acked_before, Span::between(&before, &after)))
    };
    // A producer or worker that fails ends the run at once; they do not end well before `measure`.
    let (jobs, span) = tokio::select! {
        measured = measure => measured?,
        early = tasks.join_next() => {
            early.context("no producers and no workers")???;
            bail!("a producer or worker ended before the window did");
        }
    };
    join_all(tasks).await?;
    if gauge.kept == 0 {
        gauge.verify()?;
    }
    Ok(Phase {
        jobs,
        span,
        million_rates: Vec::new(),
    })
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) jobs: usize,
    pub(crate) length: Duration,
}

/// When the jobs of a filling phase may run.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Due {
    Now,
    AtMs(u64),
}

/// Producers only, until either bound is met.
pub(crate) async fn fill<D: Driver>(
    driver: &D,
    shape: Shape,
    bound: Bound,
    due: Due,
    gauge: &Arc<Gauge>,
    server_pid: u32,
) -> Result<Phase> {
    let begun = gauge.pushed_count();
    let mut producers = Vec::new();
    for _ in 0..shape.producers {
        producers.push(driver.producer().await?);
    }
    let (marks, mut marked) = mpsc::unbounded_channel();
    let before = Sample::take(server_pid)?;
    let until = Instant::now() + bound.length;
    let started = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for mut producer in producers {
        let (gauge, started, marks) = (Arc::clone(gauge), Arc::clone(&started), marks.clone());
        tasks.spawn(async move {
            let mut payloads = Vec::new();
            while Instant::now() < until {
                let earlier = started.fetch_add(shape.per_request, Relaxed);
                let count = bound.jobs.saturating_sub(earlier).min(shape.per_request);
                if count == 0 {
                    break;
                }
                let tally = gauge.payloads(count, &mut payloads)?;
                match due {
                    Due::Now => producer.push(&payloads).await?,
                    Due::AtMs(due_ms) => producer.push_delayed(&payloads, due_ms).await?,
                }
                gauge.pushed.merge(tally);
                mark(&marks, gauge.pushed_count() - begun, count);
            }
            Ok(())
        });
    }
    drop(marks);
    join_all(tasks).await?;
    let after = Sample::take(server_pid)?;
    let mut instants = vec![before.at];
    while let Some(instant) = marked.recv().await {
        instants.push(instant);
    }
    Ok(Phase {
        jobs: gauge.pushed_count() - begun,
        span: Span::between(&before, &after),
        million_rates: rates(&instants),
    })
}

/// Workers only, until everything that was pushed is acked; then verifies. The phase ends when the
/// last job is received: its ack may ride in a request that waits for more jobs.
pub(crate) async fn drain<D: Driver>(
    driver: &D,
    shape: Shape,
    gauge: &Arc<Gauge>,
    server_pid: u32,
) -> Result<Phase> {
    gauge.closed.store(true, Relaxed);
    let begun = gauge.delivered_count();
    let mut workers = Vec::new();
    for index in 0..shape.workers {
        workers.push(driver.worker(index).await?);
    }
    let (marks, mut marked) = mpsc::unbounded_channel();
    let before = Sample::take(server_pid)?;
    let mut tasks = JoinSet::new();
    for mut worker in workers {
        let (gauge, marks) = (Arc::clone(gauge), marks.clone());
        tasks.spawn(async move {
            while !gauge.drained() {
                let leased = worker.turn(shape.per_request, &gauge).await?;
                mark(&marks, gauge.delivered_count() - begun, leased);
            }
            Ok(())
        });
    }
    drop(marks);
    let last_received = async {
        while gauge.delivered_count() < gauge.pushed_count() {
            sleep(Duration::from_millis(1)).await;
        }
        Sample::take(server_pid)
    };
    let (joined, after) = tokio::join!(join_all(tasks), async {
        timeout(Duration::from_secs(DRAIN_SECONDS_MAX), last_received).await
    });
    joined?;
    let after = after.context("the backlog did not drain")??;
    gauge.verify()?;
    let mut instants = vec![before.at];
    while let Some(instant) = marked.recv().await {
        instants.push(instant);
    }
    Ok(Phase {
        jobs: gauge.delivered_count() - begun,
        span: Span::between(&before, &after),
        million_rates: rates(&instants),
    })
}

/// Leases and acks one job as soon as a server that was just started gives it; returns when the
/// lease was received.
pub(crate) async fn first_lease<D: Driver>(
    driver: &D,
    gauge: &Gauge,
    within: Duration,
) -> Result<Instant> {
    let attempts = async {
        loop {
            // Refused connections and "still loading" are errors here; asking again is the answer.
            if let Ok(mut worker) = driver.worker(0).await
                && let Ok(leased) = worker.turn(1, gauge).await
            {
                let at = Instant::now();
                ensure!(leased == 1, "the restarted server had no job to give");
                worker.settle(gauge).await?;
                return Ok(at);
            }
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(within, attempts)
        .await
        .context("no lease after the restart")?
}

/// Latencies from sending a push to its delivery to a worker that was waiting, sorted.
pub(crate) async fn wake<D: Driver>(driver: &D, length: Duration) -> Result<Vec<Duration>> {
    let gauge = Gauge::new();
    let mut producer = driver.producer().await?;
    let mut worker = driver.worker(0).await?;
    let (received, mut receipts) = mpsc::unbounded_channel();
    let mut tasks = JoinSet::new();
    let shared = Arc::clone(&gauge);
    tasks.spawn(async move {
        while !shared.drained() {
            if worker.turn(1, &shared).await? > 0 && received.send(Instant::now()).is_err() {
                break;
            }
        }
        worker.settle(&shared).await
    });
    let mut latencies = Vec::new();
    let mut payload = Vec::new();
    let until = Instant::now() + length;
    while Instant::now() < until {
        // Time enough for the worker to have acked and to wait again.
        sleep(Duration::from_millis(5)).await;
        let tally = gauge.payloads(1, &mut payload)?;
        let sent = Instant::now();
        producer.push(&payload).await?;
        gauge.pushed.merge(tally);
        let received = timeout(Duration::from_secs(5), receipts.recv()).await?;
        latencies.push(
            received
                .context("the worker ended early")?
                .duration_since(sent),
        );
    }
    gauge.closed.store(true, Relaxed);
    join_all(tasks).await?;
    gauge.verify()?;
    latencies.sort_unstable();
    Ok(latencies)
}

/// So many connections that wait, and what they cost.
#[derive(Debug)]
pub(crate) struct Idle {
    pub(crate) bytes_per_connection: f64,
    /// The server's CPU while nothing happens.
    pub(crate) span: Span,
    /// From a push to its delivery, with one waiter and with all, sorted.
    pub(crate) alone: Vec<Duration>,
    pub(crate) among_all: Vec<Duration>,
}

/// Opens so many waiting connections, lets them wait, then wakes one after the other.
pub(crate) async fn idle<D: Driver>(
    driver: &D,
    waiters: usize,
    length: Duration,
    server_pid: u32,
) -> Result<Idle> {
    let driver = driver.patient();
    let alone = wake(&driver, length).await?;
    let gauge = Gauge::new();
    let mut producer = driver.producer().await?;
    let empty_bytes = crate::probe::memory(server_pid)?.resident_bytes;
    let (received, mut receipts) = mpsc::unbounded_channel();
    let mut tasks: JoinSet<Result<()>> = JoinSet::new();
    for index in 0..waiters {
        let mut worker = driver.worker(index).await?;
        let (gauge, received) = (Arc::clone(&gauge), received.clone());
        tasks.spawn(async move {
            loop {
                if worker.turn(1, &gauge).await? > 0 && received.send(Instant::now()).is_err() {
                    return Ok(());
                }
            }
        });
    }
    // Until the last of them waits.
    sleep(Duration::from_secs(2)).await;
    let full_bytes = crate::probe::memory(server_pid)?.resident_bytes;
    let before = Sample::take(server_pid)?;
    sleep(length).await;
    let span = Span::between(&before, &Sample::take(server_pid)?);
    let mut among_all = Vec::new();
    let mut payload = Vec::new();
    let until = Instant::now() + length;
    while Instant::now() < until {
        sleep(Duration::from_millis(5)).await;
        let tally = gauge.payloads(1, &mut payload)?;
        let sent = Instant::now();
        producer.push(&payload).await?;
        gauge.pushed.merge(tally);
        let received = timeout(Duration::from_secs(5), receipts.recv()).await?;
        let received = received.context("the workers ended early")?;
        among_all.push(received.duration_since(sent));
    }
    tasks.abort_all();
    among_all.sort_unstable();
    let grown = full_bytes.saturating_sub(empty_bytes);
    Ok(Idle {
        bytes_per_connection: grown as f64 / waiters as f64,
        span,
        alone,
        among_all,
    })
}

/// Delayed jobs, and when they are due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delayed {
    pub(crate) jobs: usize,
    /// How many are due at each ms.
    pub(crate) jobs_per_ms: u64,
    /// The first is due so long after the first is pushed: all must be pushed by then.
    pub(crate) after: Duration,
}

/// How late delayed jobs come, in µs, sorted; and the span in which they came.
pub(crate) async fn due<D: Driver>(
    driver: &D,
    delayed: Delayed,
    server_pid: u32,
) -> Result<(Vec<i64>, Span)> {
    let Delayed {
        jobs, jobs_per_ms, ..
    } = delayed;
    let per_request = usize::try_from(jobs_per_ms)?;
    let first_ms = now_ms()? + u64::try_from(delayed.after.as_millis())?;
    let gauge = Gauge::timed(first_ms, jobs_per_ms);
    let mut tasks = JoinSet::new();
    for _ in 0..DRAIN.workers {
        let mut producer = driver.producer().await?;
        let gauge = Arc::clone(&gauge);
        tasks.spawn(async move {
            let mut payloads = Vec::new();
            loop {
                let tally = gauge.payloads(per_request, &mut payloads)?;
                let word = payloads.first_chunk().context("no payload")?;
                let number = number_of(u64::from_le_bytes(*word));
                if usize::try_from(number)? >= jobs {
                    return Ok(());
                }
                gauge.pushed.merge(tally);
                let due_ms = first_ms + number / jobs_per_ms;
                producer.push_delayed(&payloads, due_ms).await?;
            }
        });
    }
    join_all(tasks).await?;
    ensure!(
        now_ms()? < first_ms,
        "the pushes took longer than the first delay"
    );
    gauge.closed.store(true, Relaxed);
    let before = Sample::take(server_pid)?;
    let mut tasks = JoinSet::new();
    for index in 0..DRAIN.workers {
        let mut worker = driver.worker(index).await?;
        let gauge = Arc::clone(&gauge);
        tasks.spawn(async move {
            while !gauge.drained() {
                worker.turn(DRAIN.per_request, &gauge).await?;
            }
            Ok(())
        });
    }
    tokio::select! {
        joined = join_all(tasks) => joined?,
        failed = driver.promote() => failed?,
    }
    let span = Span::between(&before, &Sample::take(server_pid)?);
    gauge.verify()?;
    let timetable = gauge.timetable.as_ref().context("no timetable")?;
    let mut lateness_us = match timetable.lateness_us.lock() {
        Ok(mut all) => std::mem::take(&mut *all),
        Err(_panicked) => bail!("a worker panicked"),
    };
    lateness_us.sort_unstable();
    Ok((lateness_us, span))
}

pub(crate) fn now_ms() -> Result<u64> {
    Ok(u64::try_from(UNIX_EPOCH.elapsed()?.as_millis())?)
}

async fn produce<P: Producer>(
    mut producer: P,
    per_request: usize,
    gauge: Arc<Gauge>,
) -> Result<()> {
    let mut payloads = Vec::new();
    while !gauge.is_closed() {
        // Closed at the end of the window.
        let Ok(room) = gauge.room.acquire_many(u32::try_from(per_request)?).await else {
            break;
        };
        room.forget();
        let tally = gauge.payloads(per_request, &mut payloads)?;
        // Counted first: a worker may have the jobs before the reply is here.
        gauge.pushed.merge(tally);
        producer.push(&payloads).await?;
    }
    Ok(())
}

async fn work<W: Worker>(mut worker: W, max: usize, gauge: Arc<Gauge>) -> Result<()> {
    while !gauge.drained() && (gauge.kept == 0 || !gauge.is_closed()) {
        if gauge.is_short() {
            sleep(Duration::from_millis(1)).await;
        } else {
            worker.turn(max, &gauge).await?;
        }
    }
    if gauge.kept > 0 {
        worker.settle(&gauge).await?;
    }
    Ok(())
}

async fn join_all(mut tasks: JoinSet<Result<()>>) -> Result<()> {
    let all = async {
        while let Some(joined) = tasks.join_next().await {
            joined??;
        }
        Ok(())
    };
    timeout(Duration::from_secs(DRAIN_SECONDS_MAX), all)
        .await
        .context("the run did not end")?
}

/// Notes the time if these `count` jobs completed another million.
fn mark(marks: &mpsc::UnboundedSender<Instant>, total: usize, count: usize) {
    if total / MARK_COUNT > total.saturating_sub(count) / MARK_COUNT {
        let _ = marks.send(Instant::now());
    }
}

fn rates(instants: &[Instant]) -> Vec<f64> {
    let seconds = instants
        .windows(2)
        .map(|pair| (pair[1] - pair[0]).as_secs_f64());
    seconds.map(|seconds| MARK_COUNT as f64 / seconds).collect()
}

/// What the number of a payload is multiplied by, for its first word, and the inverse of that.
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
const GATHER: u64 = {
    // Newton's iteration doubles the right bits each time.
    let mut inverse = SPREAD;
    let mut round = 0;
    while round < 5 {
        inverse = inverse.wrapping_mul(2_u64.wrapping_sub(SPREAD.wrapping_mul(inverse)));
        round += 1;
    }
    inverse
};

/// The number of the payload that begins with this word.
fn number_of(word: u64) -> u64 {
    word.wrapping_mul(GATHER).wrapping_sub(1)
}

/// 32 words that depend on the number and on their place, so that no part repeats.
fn write_payload(number: u64, out: &mut Vec<u8>) {
    let mut word = number.wrapping_add(1).wrapping_mul(SPREAD);
    for _ in 0..PAYLOAD_BYTES / 8 {
        out.extend_from_slice(&word.to_le_bytes());
        word = word
            .rotate_left(29)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9)
            .wrapping_add(number);
    }
}

fn digest(payload: &[u8]) -> u64 {
    payload
        .as_chunks::<8>()
        .0
        .iter()
        .fold(0x94d0_49bb_1331_11eb, |digest: u64, word| {
            (digest ^ u64::from_le_bytes(*word))
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(31)
        })
}

#[cfg(test)]
mod tests {
    use super::{Gauge, PAYLOAD_BYTES, Tally, number_of, write_payload};

    #[test]
    fn a_payload_tells_its_number() {
        for number in [0, 1, 77, u64::MAX / 3] {
            let mut payload = Vec::new();
            write_payload(number, &mut payload);
            let word = u64::from_le_bytes(*payload.first_chunk().unwrap());
            assert_eq!(number_of(word), number);
        }
    }

    #[test]
    fn tally_is_the_same_in_any_order_and_differs_by_one_bit() {
        let mut payloads = Vec::new();
        let pushed = Gauge::new().payloads(3, &mut payloads).unwrap();
        let tally = |payloads: &[u8], order: [usize; 3]| {
            let mut tally = Tally::default();
            for index in order {
                tally
                    .add(&payloads[index * PAYLOAD_BYTES..(index + 1) * PAYLOAD_BYTES])
                    .unwrap();
            }
            tally
        };
        assert_eq!(tally(&payloads, [2, 0, 1]), pushed);
        assert_ne!(tally(&payloads, [2, 0, 2]), pushed);
        payloads[300] ^= 1;
        assert_ne!(tally(&payloads, [0, 1, 2]), pushed);
    }
}
