//! ganger over the types of its own protocol crate: a producer pushes, a worker fetches, and the acks
//! of one fetch ride in the next, which is what its clients do.
//!
//! Varied, jobs are spread over queues and priorities, workers fetch from all queues by equal
//! weights, hold leases and answer a random one, and fail some jobs once.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use ganger_protocol::{
    JobSpec, Kind, QueueName, QueuePattern, Timestamp, VERSION,
    frame::HEADER_BYTES,
    job::GrantedJob,
    request::{AckItem, FailItem, Fetch, Hello, Operation, Push, Request, SessionHello},
    response::{Body, FetchReply, HelloReply, Message, Notice, PushReply},
    time::DurationMs,
};

use crate::{
    load::{Driver, Gauge, PAYLOAD_BYTES, Producer, Tally, Worker},
    wire::Wire,
};

const WAIT_MS: DurationMs = DurationMs(1000);
const PATIENT_WAIT_MS: DurationMs = DurationMs(60_000);
const QUEUE_COUNT: usize = 16;
const PRIORITIES: [u8; 3] = [3, 5, 7];
/// Leases held by all workers together, and thus by how much acks come out of order.
const HELD_COUNT: usize = 600;
const FAIL_SHARE: f64 = 0.01;
const RETRY_MS_MAX: u64 = 1000;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Ganger {
    pub(crate) address: SocketAddr,
    /// Leases that each worker holds, of the varied form.
    held: Option<usize>,
    wait_ms: DurationMs,
    /// Where the jobs go when they are not spread.
    queue: &'static str,
    keys: Option<Keys>,
}

/// The keys of jobs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Keys {
    /// This one.
    Own(&'static str),
    /// One of so many, at random.
    OneOf(usize),
}

impl Keys {
    fn draw(self) -> String {
        match self {
            Self::Own(key) => key.to_owned(),
            Self::OneOf(count) => key_name(fastrand::usize(..count)),
        }
    }
}

/// The name of a numbered key.
pub(crate) fn key_name(number: usize) -> String {
    format!("key-{number}")
}

impl Ganger {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self {
            address,
            held: None,
            wait_ms: WAIT_MS,
            queue: "default",
            keys: None,
        }
    }

    /// The form whose jobs are in this queue.
    pub(crate) fn in_queue(&self, queue: &'static str) -> Self {
        Self { queue, ..*self }
    }

    /// The form whose jobs have these keys.
    pub(crate) fn with_keys(&self, keys: Keys) -> Self {
        Self {
            keys: Some(keys),
            ..*self
        }
    }
}

impl Driver for Ganger {
    type Producer = GangerProducer;
    type Worker = GangerWorker;

    fn at(&self, address: SocketAddr) -> Self {
        Self { address, ..*self }
    }

    fn varied(&self, workers: usize) -> Self {
        Self {
            held: Some(HELD_COUNT / workers),
            ..*self
        }
    }

    fn patient(&self) -> Self {
        Self {
            wait_ms: PATIENT_WAIT_MS,
            ..*self
        }
    }

    async fn producer(&self) -> Result<GangerProducer> {
        let connection = Connection::open(self.address, None).await?;
        let queues = match self.held {
            None => vec![self.queue.parse()?],
            Some(_) => queue_names()
                .map(|name| name.parse())
                .collect::<Result<_, _>>()?,
        };
        Ok(GangerProducer {
            connection,
            kind: "bench".parse()?,
            queues,
            keys: self.keys,
            is_varied: self.held.is_some(),
            next: 0,
        })
    }

    async fn worker(&self, index: usize) -> Result<GangerWorker> {
        let session = SessionHello {
            name: format!("bench-{index}"),
            ..SessionHello::default()
        };
        let (queues, weights) = match self.held {
            None => (vec![self.queue.parse()?], Vec::new()),
            Some(_) => {
                let queues = queue_names().map(|name| name.parse());
                (queues.collect::<Result<_, _>>()?, vec![1; QUEUE_COUNT])
            }
        };
        Ok(GangerWorker {
            connection: Connection::open(self.address, Some(session)).await?,
            queues,
            weights,
            held: self.held,
            wait_ms: self.wait_ms,
            leased: Vec::new(),
        })
    }
}

fn queue_names() -> impl Iterator<Item = String> {
    (0..QUEUE_COUNT).map(|index| format!("bench-{index}"))
}

#[derive(Debug)]
pub(crate) struct Connection {
    wire: Wire,
    buffer: BytesMut,
    last_id: u64,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr, session: Option<SessionHello>) -> Result<Self> {
        let mut wire = Wire::connect(address).await?;
        let welcome = Message::decode(&frame(&mut wire).await?)?;
        ensure!(
            matches!(welcome, Message::Notice(Notice::Welcome(_))),
            "no welcome: {welcome:?}"
        );
        let mut connection = Self {
            wire,
            buffer: BytesMut::new(),
            last_id: 0,
        };
        let hello = Hello {
            v: VERSION,
            client: "peers".to_owned(),
            features: Vec::new(),
            namespace: Default::default(),
            auth: None,
            session,
            producer: None,
        };
        connection
            .call(Operation::Hello(Box::new(hello)))
            .await?
            .read::<HelloReply>()?;
        Ok(connection)
    }

    pub(crate) async fn call(&mut self, operation: Operation) -> Result<Body> {
        self.last_id += 1;
        Request {
            id: self.last_id,
            operation,
        }
        .encode(&mut self.buffer)?;
        self.wire.outbox.extend_from_slice(&self.buffer);
        self.buffer.clear();
        self.wire.flush().await?;
        match Message::decode(&frame(&mut self.wire).await?)? {
            Message::Reply { id, result } if id == self.last_id => Ok(result?),
            // No lease is lost and no session ended in a run: any notice is a finding.
            unexpected => bail!("expected a reply to {}, got {unexpected:?}", self.last_id),
        }
    }
}

async fn frame(wire: &mut Wire) -> Result<Bytes> {
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(wire.exact(HEADER_BYTES).await?);
    let length = usize::try_from(u32::from_be_bytes(header))?;
    Ok(Bytes::copy_from_slice(wire.exact(length).await?))
}

#[derive(Debug)]
pub(crate) struct GangerProducer {
    connection: Connection,
    kind: Kind,
    /// Each takes the next job in turn.
    queues: Vec<QueueName>,
    keys: Option<Keys>,
    is_varied: bool,
    next: usize,
}

impl GangerProducer {
    async fn push_at(&mut self, payloads: &[u8], run_at: Option<Timestamp>) -> Result<()> {
        let payloads = Bytes::copy_from_slice(payloads);
        let job = |begin: usize| -> Result<JobSpec> {
            let payload = payloads.slice(begin..begin + PAYLOAD_BYTES);
            let number = self.next + begin / PAYLOAD_BYTES;
            let key = self.keys.map(|keys| keys.draw().parse());
            Ok(JobSpec {
                queue: self.queues[number % self.queues.len()].clone(),
                priority: self
                    .is_varied
                    .then(|| PRIORITIES[number % PRIORITIES.len()]),
                run_at,
                key: key.transpose()?,
                ..JobSpec::new(self.kind.clone(), payload)
            })
        };
        let begins = (0..payloads.len()).step_by(PAYLOAD_BYTES);
        let jobs: Vec<JobSpec> = begins.map(job).collect::<Result<_>>()?;
        let count = jobs.len();
        self.next += count;
        let push = Push {
            jobs,
            atomic: false,
            spread_ms: None,
            by: None,
            seq: None,
        };
        let reply: PushReply = self.connection.call(Operation::Push(push)).await?.read()?;
        ensure!(
            reply.results.len() == count,
            "{} results for {count}",
            reply.results.len()
        );
        match reply.results.into_iter().find(|result| result.id.is_none()) {
            None => Ok(()),
            Some(refused) => bail!("push refused: {:?}", refused.err),
        }
    }
}

impl Producer for GangerProducer {
    async fn push(&mut self, payloads: &[u8]) -> Result<()> {
        self.push_at(payloads, None).await
    }

    async fn push_delayed(&mut self, payloads: &[u8], due_ms: u64) -> Result<()> {
        self.push_at(payloads, Some(Timestamp(due_ms))).await
    }
}

#[derive(Debug)]
pub(crate) struct GangerWorker {
    connection: Connection,
    queues: Vec<QueuePattern>,
    weights: Vec<u32>,
    /// Leases kept for later turns, of the varied form.
    held: Option<usize>,
    wait_ms: DurationMs,
    leased: Vec<Leased>,
}

/// A lease and its answer, which is known from the start.
#[derive(Debug)]
enum Leased {
    Acks(AckItem),
    Fails(FailItem),
}

impl GangerWorker {
    /// Takes all leases but so many held ones, picked at random.
    fn answers(&mut self, held: usize) -> (Vec<AckItem>, Vec<FailItem>) {
        let count = self.leased.len().saturating_sub(held);
        if held > 0 {
            for index in 0..count {
                let other = fastrand::usize(index..self.leased.len());
                self.leased.swap(index, other);
            }
        }
        let (mut acks, mut fails) = (Vec::with_capacity(count), Vec::new());
        for leased in self.leased.drain(..count) {
            match leased {
                Leased::Acks(item) => acks.push(item),
                Leased::Fails(item) => fails.push(item),
            }
        }
        (acks, fails)
    }

    async fn fetch(&mut self, max: u32, held: usize, gauge: &Gauge) -> Result<usize> {
        let (acks, fails) = self.answers(held);
        let (count, fail_count) = (acks.len(), fails.len());
        let fetch = Fetch {
            queues: self.queues.clone(),
            weights: self.weights.clone(),
            max,
            wait_ms: self.wait_ms,
            acks,
            fails,
        };
        let reply: FetchReply = self
            .connection
            .call(Operation::Fetch(fetch))
            .await?
            .read()?;
        ensure!(
            reply.acks.len() == count && reply.fails.len() == fail_count,
            "{} and {} results for {count} acks and {fail_count} fails",
            reply.acks.len(),
            reply.fails.len()
        );
        let mut results = reply.acks.into_iter().chain(reply.fails);
        if let Some(refused) = results.find(|result| result.err.is_some()) {
            bail!("ack or fail refused: {:?}", refused.err);
        }
        gauge.acked(count);
        let [mut first, mut failing, mut again] = [Tally::default(); 3];
        for job in reply.jobs {
            if job.failures > 0 {
                again.add(&job.payload)?;
            } else {
                gauge.receive(&mut first, &job.payload)?;
            }
            let fails = self.held.is_some() && job.failures == 0 && fastrand::f64() < FAIL_SHARE;
            self.leased.push(if fails {
                failing.add(&job.payload)?;
                Leased::Fails(fail(&job))
            } else {
                Leased::Acks(AckItem::of(job.id, job.lease))
            });
        }
        gauge.failing(failing);
        gauge.returned(again);
        gauge.delivered(first);
        Ok(first.count + again.count)
    }
}

impl Worker for GangerWorker {
    async fn turn(&mut self, max: usize, gauge: &Gauge) -> Result<usize> {
        let held = match self.held {
            Some(held) if !gauge.is_closed() => held,
            Some(_) | None => 0,
        };
        self.fetch(u32::try_from(max)?, held, gauge).await
    }

    async fn settle(&mut self, gauge: &Gauge) -> Result<()> {
        self.fetch(0, 0, gauge).await?;
        Ok(())
    }
}

/// The answer that has a job come again within a second.
fn fail(job: &GrantedJob) -> FailItem {
    FailItem {
        job: job.id,
        lease: job.lease,
        kind: "bench".to_owned(),
        message: String::new(),
        backtrace: String::new(),
        retry_in_ms: Some(DurationMs(fastrand::u64(0..=RETRY_MS_MAX))),
        dead: false,
        discard: false,
    }
}
