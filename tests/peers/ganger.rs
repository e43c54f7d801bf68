//! ganger over the types of its own protocol crate: a producer pushes, a worker fetches, and the acks
//! of one fetch ride in the next, which is what its clients do.

use std::{mem, net::SocketAddr};

use anyhow::{Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use ganger_protocol::{
    JobSpec, Kind, QueuePattern, Timestamp, VERSION,
    frame::HEADER_BYTES,
    request::{AckItem, Fetch, Hello, Operation, Push, Request, SessionHello},
    response::{Body, FetchReply, HelloReply, Message, Notice, PushReply},
    time::DurationMs,
};

use crate::{
    load::{Driver, Gauge, PAYLOAD_BYTES, Producer, Tally, Worker},
    wire::Wire,
};

const WAIT_MS: DurationMs = DurationMs(1000);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Ganger {
    pub(crate) address: SocketAddr,
}

impl Driver for Ganger {
    type Producer = GangerProducer;
    type Worker = GangerWorker;

    fn at(&self, address: SocketAddr) -> Self {
        Self { address }
    }

    async fn producer(&self) -> Result<GangerProducer> {
        let connection = Connection::open(self.address, None).await?;
        Ok(GangerProducer {
            connection,
            kind: "bench".parse()?,
        })
    }

    async fn worker(&self, index: usize) -> Result<GangerWorker> {
        let session = SessionHello {
            name: format!("bench-{index}"),
            ..SessionHello::default()
        };
        Ok(GangerWorker {
            connection: Connection::open(self.address, Some(session)).await?,
            queues: vec!["default".parse()?],
            leased: Vec::new(),
        })
    }
}

#[derive(Debug)]
struct Connection {
    wire: Wire,
    buffer: BytesMut,
    last_id: u64,
}

impl Connection {
    async fn open(address: SocketAddr, session: Option<SessionHello>) -> Result<Self> {
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
            .call(Operation::Hello(hello))
            .await?
            .read::<HelloReply>()?;
        Ok(connection)
    }

    async fn call(&mut self, operation: Operation) -> Result<Body> {
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
}

impl GangerProducer {
    async fn push_at(&mut self, payloads: &[u8], run_at: Option<Timestamp>) -> Result<()> {
        let payloads = Bytes::copy_from_slice(payloads);
        let job = |begin| {
            let payload = payloads.slice(begin..begin + PAYLOAD_BYTES);
            JobSpec {
                run_at,
                ..JobSpec::new(self.kind.clone(), payload)
            }
        };
        let jobs: Vec<JobSpec> = (0..payloads.len())
            .step_by(PAYLOAD_BYTES)
            .map(job)
            .collect();
        let count = jobs.len();
        let push = Push {
            jobs,
            atomic: false,
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
    /// Acks of what the last turn leased.
    leased: Vec<AckItem>,
}

impl GangerWorker {
    async fn fetch(&mut self, max: u32, gauge: &Gauge) -> Result<usize> {
        let acks = mem::take(&mut self.leased);
        let count = acks.len();
        let fetch = Fetch {
            queues: self.queues.clone(),
            max,
            wait_ms: WAIT_MS,
            acks,
            ..Fetch::default()
        };
        let reply: FetchReply = self
            .connection
            .call(Operation::Fetch(fetch))
            .await?
            .read()?;
        ensure!(
            reply.acks.len() == count,
            "{} results for {count} acks",
            reply.acks.len()
        );
        if let Some(refused) = reply.acks.into_iter().find(|result| result.err.is_some()) {
            bail!("ack refused: {:?}", refused.err);
        }
        gauge.acked(count);
        let mut tally = Tally::default();
        for job in reply.jobs {
            tally.add(&job.payload)?;
            self.leased.push(AckItem {
                job: job.id,
                lease: job.lease,
                result: None,
            });
        }
        gauge.delivered(tally);
        Ok(tally.count)
    }
}

impl Worker for GangerWorker {
    async fn turn(&mut self, max: usize, gauge: &Gauge) -> Result<usize> {
        self.fetch(u32::try_from(max)?, gauge).await
    }

    async fn settle(&mut self, gauge: &Gauge) -> Result<()> {
        self.fetch(0, gauge).await?;
        Ok(())
    }
}
