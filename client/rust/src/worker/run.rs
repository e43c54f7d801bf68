//! The run loop of a worker: fetch as many jobs as there are free slots, run their handlers, and let
//! acks and fails ride in the next fetch, so that a job costs one round trip. The connection, its
//! session and heartbeats are [`crate::connection`]'s.

use std::{any::Any, collections::HashMap, time::Duration};

use ganger_protocol::{
    LeaseId, WireError,
    job::GrantedJob,
    request::{
        Ack, AckItem, Extend, ExtendItem, Fail, FailItem, Fetch, LeaseRef, Operation, Release,
    },
    response::{FetchReply, LeaseResult},
};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    task::{Id, JoinError, JoinSet},
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    Worker,
    asked::{Asked, Ended, OfLease, Outstanding, next_answer},
    context::{CancelReason, Context, LeasedJob, is_lost},
    shutdown::{ABORT_TIMEOUT, Phase, SETTLE_TIMEOUT},
};
use crate::{
    client::Client,
    connection::Event,
    error::{ConnectError, Error},
    failure::{Failure, Then},
    in_flight::Answer,
    job::millis,
    progress::JobResult,
};

/// How long a worker waits after a refusal that does not say.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// How far away the timer stands that has nothing to do.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// One run of a worker.
pub(super) struct Run<'a> {
    worker: &'a Worker,
    client: Client,
    events: UnboundedReceiver<Event>,
    /// Whether the server has ever accepted this worker.
    connected: bool,
    phase: Phase,
    handlers: JoinSet<Result<JobResult, Failure>>,
    /// Which lease a task works on.
    leases: HashMap<Id, LeaseId>,
    running: HashMap<LeaseId, Running>,
    /// What is to be told to the server.
    ended: Ended,
    outstanding: Vec<Outstanding>,
    /// No lease is to be extended before this time.
    extend_at: Option<Instant>,
    /// No fetch before this time.
    fetch_after: Option<Instant>,
    /// Nothing about leases that have ended before this time.
    settle_after: Option<Instant>,
    /// Why the worker stops by itself.
    refusal: Option<Error>,
}

/// An attempt whose handler has not returned.
struct Running {
    context: Context,
    lease: LeaseRef,
    timeout: Duration,
    extend_at: Instant,
    /// Whether the lease has ended, so that nothing is to be told about it.
    lost: bool,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        worker: &'a Worker,
        client: Client,
        events: UnboundedReceiver<Event>,
    ) -> Self {
        Self {
            worker,
            client,
            events,
            connected: false,
            phase: Phase::Fetching,
            handlers: JoinSet::new(),
            leases: HashMap::new(),
            running: HashMap::new(),
            ended: Ended::default(),
            outstanding: Vec::new(),
            extend_at: None,
            fetch_after: None,
            settle_after: None,
            refusal: None,
        }
    }

    /// Each branch of the `select!` is cancel-safe: a set of tasks, a list of receivers and a channel
    /// lose nothing, and the token and the timer hold nothing.
    pub(super) async fn until_stopped(mut self, shutdown: &CancellationToken) -> Result<(), Error> {
        loop {
            let now = Instant::now();
            self.ask(now)?;
            if self.is_over() {
                break;
            }
            let wake_at = self.wake_at(now);
            let is_asked_to_stop = matches!(self.phase, Phase::Fetching | Phase::Quiet);
            tokio::select! {
                Some(ended) = self.handlers.join_next_with_id() => {
                    self.ended(ended);
                    self.ended_by_now().await;
                }
                (outstanding, answer) = next_answer(&mut self.outstanding) => {
                    let handlers = self.handlers.len();
                    self.answered(outstanding, answer);
                    if self.handlers.len() > handlers {
                        self.ended_by_now().await;
                    }
                }
                Some(event) = self.events.recv() => self.told(event),
                () = shutdown.cancelled(), if is_asked_to_stop => self.drain(),
                () = sleep_until(wake_at) => self.look_at_clock().await,
            }
        }
        if self.connected {
            // Should this fail, the session ends with its ttl.
            let _ = timeout(SETTLE_TIMEOUT, self.client.goodbye()).await;
        }
        self.refusal.map_or(Ok(()), Err)
    }

    /// Sends what is to be sent: a fetch if there are free slots, with everything that has ended; all
    /// of that by itself while a fetch waits, or when there is none to ride in.
    fn ask(&mut self, now: Instant) -> Result<(), Error> {
        let mut fetches = self.outstanding.iter().filter_map(Outstanding::carries);
        let fetching = fetches.next();
        let is_time = |after: Option<Instant>| after.is_none_or(|after| after <= now);
        let fetches = self.phase == Phase::Fetching;
        let free = (self.worker.settings.concurrency).saturating_sub(self.running.len());
        match fetching {
            None if fetches && free > 0 && is_time(self.fetch_after) => self.fetch(free, now)?,
            // It will be back as soon as what it carries is durable; what ends now rides in the next.
            Some(true) if fetches => {}
            Some(_) | None if is_time(self.settle_after) => self.settle(now)?,
            Some(_) | None => {}
        }
        if is_time(self.settle_after) {
            self.release(now)?;
        }
        Ok(())
    }

    fn fetch(&mut self, free: usize, now: Instant) -> Result<(), Error> {
        let settings = &self.worker.settings;
        let acks = std::mem::take(&mut self.ended.acks);
        let fails = std::mem::take(&mut self.ended.fails);
        let carries = !acks.is_empty() || !fails.is_empty();
        let wait = if carries {
            Duration::ZERO
        } else {
            settings.wait
        };
        let operation = Operation::Fetch(Fetch {
            queues: settings.queues.clone(),
            weights: settings.weights.clone(),
            max: u32::try_from(free).unwrap_or(u32::MAX),
            wait_ms: millis(wait),
            acks: acks.clone(),
            fails: fails.clone(),
        });
        self.send(operation, Asked::Fetch { acks, fails }, now)
    }

    fn settle(&mut self, now: Instant) -> Result<(), Error> {
        let leases = std::mem::take(&mut self.ended.acks);
        if !leases.is_empty() {
            let operation = Operation::Ack(Ack {
                leases: leases.clone(),
            });
            self.send(operation, Asked::Ack(leases), now)?;
        }
        let leases = std::mem::take(&mut self.ended.fails);
        if !leases.is_empty() {
            let operation = Operation::Fail(Fail {
                leases: leases.clone(),
            });
            self.send(operation, Asked::Fail(leases), now)?;
        }
        Ok(())
    }

    fn release(&mut self, now: Instant) -> Result<(), Error> {
        let leases = std::mem::take(&mut self.ended.releases);
        if !leases.is_empty() {
            let operation = Operation::Release(Release {
                leases: leases.clone(),
            });
            self.send(operation, Asked::Release(leases), now)?;
        }
        Ok(())
    }

    fn send(&mut self, operation: Operation, asked: Asked, now: Instant) -> Result<(), Error> {
        let pending = self.client.ask(operation)?;
        self.outstanding.push(Outstanding {
            asked,
            sent_at: now,
            pending,
        });
        Ok(())
    }

    fn answered(&mut self, outstanding: Outstanding, answer: Result<Answer, Error>) {
        let Outstanding { asked, sent_at, .. } = outstanding;
        match (asked, answer) {
            (Asked::Fetch { acks, fails }, Ok(Answer::Fetch(reply))) => {
                let FetchReply {
                    jobs,
                    acks: acked,
                    fails: failed,
                } = reply;
                self.applied(acks.iter().map(AckItem::lease_ref).zip(&acked));
                self.applied(fails.iter().map(FailItem::lease_ref).zip(&failed));
                for job in jobs {
                    self.start(job);
                }
            }
            (Asked::Extend(items), Ok(Answer::Lease(reply))) => {
                for (item, result) in items.iter().zip(&reply.results) {
                    self.extended(item, result, sent_at);
                }
            }
            (asked, Ok(Answer::Lease(reply))) => {
                self.applied(asked.leases().into_iter().zip(&reply.results));
            }
            (asked, Ok(_)) => tracing::error!(op = asked.op(), "an answer of another shape"),
            (asked, Err(Error::Refused(refusal))) => self.refused(asked, refusal),
            (asked, Err(error)) => tracing::warn!(op = asked.op(), %error, "no answer"),
        }
    }

    /// What may succeed later is tried again later. A fetch that will never succeed ends the worker.
    fn refused(&mut self, asked: Asked, refusal: WireError) {
        let op = asked.op();
        tracing::warn!(op, error = %refusal, "the server refused");
        let is_fetch = matches!(asked, Asked::Fetch { .. });
        let carried = !asked.leases().is_empty();
        let pause = refusal.retry_after_ms;
        let pause = pause.map_or(REFUSED_PAUSE, |ms| Duration::from_millis(ms.0));
        let again_at = Some(Instant::now() + pause);
        if is_fetch {
            // What it carried may still be taken, and is sent by itself at once.
            self.fetch_after = again_at;
        } else {
            self.settle_after = again_at;
        }
        if refusal.retryable || (is_fetch && carried) {
            self.ended.take_back(asked);
        } else if is_fetch {
            self.refusal = Some(Error::Refused(refusal));
            self.drain();
        }
    }

    fn applied<'r>(&self, results: impl Iterator<Item = (LeaseRef, &'r LeaseResult)>) {
        let counters = &self.worker.counters;
        for (LeaseRef { job, lease }, result) in results {
            match &result.err {
                None if result.already => {
                    counters.already.add(1);
                    tracing::debug!(%job, %lease, "applied already");
                }
                None => {}
                Some(error) if is_lost(error) => {
                    counters.lost.add(1);
                    tracing::warn!(%job, %lease, %error, "the lease was lost before its end");
                }
                Some(error) => tracing::error!(%job, %lease, %error, "the server refused"),
            }
        }
    }

    fn start(&mut self, job: GrantedJob) {
        let lease = LeaseRef {
            job: job.id,
            lease: job.lease,
        };
        if !matches!(self.phase, Phase::Fetching) {
            self.ended.release(lease, None);
            return;
        }
        self.worker.counters.granted.add(1);
        let timeout = Duration::from_millis(job.timeout_ms.0);
        let now = Instant::now();
        let context = Context::new(self.client.clone(), (lease, job.batch), now + timeout);
        let extend_at = now + timeout / 2;
        self.running.insert(
            lease.lease,
            Running {
                context: context.clone(),
                lease,
                timeout,
                extend_at,
                lost: false,
            },
        );
        self.extend_by(extend_at);
        let handler = self.worker.handler.clone();
        let task = self.handlers.spawn(async move {
            // Called in here, so that a panic of the call itself is the task's as well.
            handler.call(LeasedJob::new(job), context).0.await
        });
        self.leases.insert(task.id(), lease.lease);
    }

    /// Takes over everything that has ended, so that it travels together.
    async fn ended_by_now(&mut self) {
        // Short handlers that were started together end together, and at once.
        tokio::task::yield_now().await;
        while let Some(next) = self.handlers.try_join_next_with_id() {
            self.ended(next);
        }
    }

    fn ended(&mut self, ended: Result<(Id, Result<JobResult, Failure>), JoinError>) {
        let counters = &self.worker.counters;
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => {
                let id = error.id();
                let Ok(panic) = error.try_into_panic() else {
                    // Aborted, as the worker stops.
                    let lease = self.leases.remove(&id);
                    if let Some(running) = lease.and_then(|lease| self.running.remove(&lease)) {
                        self.give_back(&running);
                    }
                    return;
                };
                counters.panicked.add(1);
                (id, Err(Failure::new("panic", panic_message(&*panic))))
            }
        };
        let running = self.leases.remove(&id);
        let Some(running) = running.and_then(|lease| self.running.remove(&lease)) else {
            return;
        };
        let LeaseRef { job, lease } = running.lease;
        if running.lost {
            tracing::warn!(%job, %lease, "an attempt ended after its lease");
            return;
        }
        match result {
            Ok(JobResult { bytes, retain_ms }) => {
                counters.acked.add(1);
                self.ended.acks.push(AckItem {
                    result: bytes,
                    retain_ms,
                    ..AckItem::of(job, lease)
                });
            }
            Err(Failure {
                then: Then::Release(delay),
                ..
            }) => {
                counters.released.add(1);
                self.ended.release(running.lease, delay);
            }
            Err(failure) => {
                counters.failed.add(1);
                tracing::info!(%job, %lease, %failure, "an attempt failed");
                self.ended.fails.push(failure.into_item(job, lease));
            }
        }
    }

    fn told(&mut self, event: Event) {
        match event {
            Event::Connected => {
                self.connected = true;
                self.fetch_after = None;
                self.settle_after = None;
            }
            Event::Lost(leases) => {
                for LeaseRef { lease, .. } in leases {
                    self.lost(lease);
                }
            }
            Event::Cancel(leases) => {
                for LeaseRef { lease, .. } in leases {
                    if let Some(running) = self.running.get(&lease) {
                        running.context.cancel(CancelReason::Cancelled);
                    }
                }
            }
            Event::Quiet => {
                if self.phase == Phase::Fetching {
                    tracing::info!("the server asked the worker to take no more jobs");
                    self.phase = Phase::Quiet;
                    self.stop_waiting();
                }
            }
            Event::Terminate => {
                tracing::info!("the server asked the worker to stop");
                self.drain();
            }
            Event::Refused(error) if !self.connected => {
                self.refusal = Some(match error {
                    ConnectError::Refused(refusal) => Error::Refused(refusal),
                    cause => Error::Unreachable {
                        address: self.worker.options.address(),
                        cause,
                    },
                });
                self.outstanding.clear();
                self.drain();
            }
            Event::Refused(error) => tracing::error!(%error, "the server refuses the worker"),
        }
    }

    fn lost(&mut self, lease: LeaseId) {
        if let Some(running) = self.running.get_mut(&lease)
            && !std::mem::replace(&mut running.lost, true)
        {
            self.worker.counters.lost.add(1);
            let job = running.lease.job;
            tracing::warn!(%job, %lease, "the lease was lost");
            running.context.cancel(CancelReason::Lost);
        }
    }

    fn drain(&mut self) {
        if matches!(self.phase, Phase::Fetching | Phase::Quiet) {
            let until = Instant::now() + self.worker.settings.drain_timeout;
            self.phase = Phase::Draining { until };
            self.stop_waiting();
        }
    }

    /// Gives up fetches that only wait; jobs that come for them are released by the client.
    fn stop_waiting(&mut self) {
        self.outstanding
            .retain(|outstanding| outstanding.carries() != Some(false));
    }

    async fn look_at_clock(&mut self) {
        let now = Instant::now();
        match self.phase {
            Phase::Draining { until } if until <= now => self.abort().await,
            Phase::Settling { until } if until <= now => self.outstanding.clear(),
            Phase::Fetching | Phase::Quiet | Phase::Draining { .. } | Phase::Settling { .. } => {}
        }
        for after in [&mut self.fetch_after, &mut self.settle_after] {
            if after.is_some_and(|after| after <= now) {
                *after = None;
            }
        }
        if self.extend_at.is_some_and(|at| at <= now) {
            self.extend(now);
        }
    }

    /// Stops what still runs and gives its leases back.
    async fn abort(&mut self) {
        for running in self.running.values() {
            running.context.cancel(CancelReason::Shutdown);
        }
        self.handlers.abort_all();
        let abort_until = Instant::now() + ABORT_TIMEOUT;
        while let Ok(Some(ended)) = timeout_at(abort_until, self.handlers.join_next_with_id()).await
        {
            self.ended(ended);
        }
        self.handlers.detach_all();
        for (_, running) in std::mem::take(&mut self.running) {
            tracing::warn!(job = %running.lease.job, "a handler that blocks its thread is left behind");
            self.give_back(&running);
        }
    }

    fn give_back(&mut self, running: &Running) {
        if !running.lost {
            self.worker.counters.released.add(1);
            self.ended.release(running.lease, None);
        }
    }

    /// Moves every deadline of which half the time has passed.
    fn extend(&mut self, now: Instant) {
        self.extend_at = None;
        let mut items = Vec::new();
        let mut next: Option<Instant> = None;
        for running in self.running.values_mut().filter(|running| !running.lost) {
            if running.extend_at <= now {
                running.extend_at = now + running.timeout / 2;
                items.push(running.context.extend_item(running.timeout));
            }
            next = Some(next.map_or(running.extend_at, |next| next.min(running.extend_at)));
        }
        self.extend_at = next.filter(|_| self.worker.settings.extends);
        if items.is_empty() {
            return;
        }
        let operation = Operation::Extend(Extend {
            leases: items.clone(),
        });
        if self.send(operation, Asked::Extend(items), now).is_err() {
            tracing::debug!("the client is closed");
        }
    }

    fn extended(&mut self, item: &ExtendItem, result: &LeaseResult, sent_at: Instant) {
        match &result.err {
            Some(error) if is_lost(error) => self.lost(item.lease),
            Some(error) => {
                tracing::warn!(job = %item.job, lease = %item.lease, %error, "not extended");
            }
            None => {
                if let Some(running) = self.running.get(&item.lease) {
                    let left = result.timeout_ms.unwrap_or(item.ms);
                    running.context.extended(sent_at, left);
                }
            }
        }
    }

    fn extend_by(&mut self, at: Instant) {
        if self.worker.settings.extends {
            self.extend_at = Some(self.extend_at.map_or(at, |extend_at| extend_at.min(at)));
        }
    }

    /// Whether nothing is left to wait for.
    fn is_over(&mut self) -> bool {
        if let Phase::Draining { .. } = self.phase
            && self.running.is_empty()
        {
            let until = Instant::now() + SETTLE_TIMEOUT;
            self.phase = Phase::Settling { until };
        }
        matches!(self.phase, Phase::Settling { .. })
            && self.outstanding.is_empty()
            && self.ended.is_empty()
    }

    fn wake_at(&self, now: Instant) -> Instant {
        let phase_ends = match self.phase {
            Phase::Fetching | Phase::Quiet => None,
            Phase::Draining { until } | Phase::Settling { until } => Some(until),
        };
        let times = [
            phase_ends,
            self.extend_at,
            self.fetch_after,
            self.settle_after,
        ];
        times.into_iter().flatten().min().unwrap_or(now + FAR)
    }
}

/// What a panic said.
fn panic_message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("the handler panicked")
}
