//! beanstalkd, spoken by hand: put, reserve-with-timeout, delete. With `-b DIR -f0` it syncs its log
//! at every write. It has no request for several jobs; by 100 the commands are pipelined.
//!
//! Two forms of the worker: plain deletes, waits for the replies, then reserves; pipelined sends both
//! in one write.

use std::{io::Write as _, net::SocketAddr};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    load::{self, Driver, Gauge, PAYLOAD_BYTES, Producer, Tally, Worker},
    wire::Wire,
};

/// Long enough that no lease of a run passes its deadline.
const LEASE_SECONDS: u64 = 3600;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Beanstalkd {
    address: SocketAddr,
    pipelined: bool,
    wait_seconds: u64,
}

impl Beanstalkd {
    pub(crate) fn new(address: SocketAddr, pipelined: bool) -> Self {
        Self {
            address,
            pipelined,
            wait_seconds: 1,
        }
    }
}

impl Driver for Beanstalkd {
    type Producer = BeanstalkdProducer;
    type Worker = BeanstalkdWorker;

    fn at(&self, address: SocketAddr) -> Self {
        Self { address, ..*self }
    }

    fn patient(&self) -> Self {
        Self {
            wait_seconds: 60,
            ..*self
        }
    }

    async fn producer(&self) -> Result<BeanstalkdProducer> {
        Ok(BeanstalkdProducer {
            wire: Wire::connect(self.address).await?,
        })
    }

    async fn worker(&self, _index: usize) -> Result<BeanstalkdWorker> {
        let wire = Wire::connect(self.address).await?;
        Ok(BeanstalkdWorker {
            wire,
            pipelined: self.pipelined,
            wait_seconds: self.wait_seconds,
            leased: Vec::new(),
        })
    }
}

#[derive(Debug)]
pub(crate) struct BeanstalkdProducer {
    wire: Wire,
}

impl BeanstalkdProducer {
    async fn put(&mut self, payloads: &[u8], delay_seconds: u64) -> Result<()> {
        for payload in payloads.chunks_exact(PAYLOAD_BYTES) {
            let length = payload.len();
            write!(
                self.wire.outbox,
                "put 0 {delay_seconds} {LEASE_SECONDS} {length}\r\n"
            )?;
            self.wire.outbox.extend_from_slice(payload);
            self.wire.outbox.extend_from_slice(b"\r\n");
        }
        self.wire.flush().await?;
        for _ in 0..payloads.len() / PAYLOAD_BYTES {
            let line = self.wire.line().await?;
            ensure!(
                line.starts_with(b"INSERTED "),
                "put refused: {}",
                line.escape_ascii()
            );
        }
        Ok(())
    }
}

impl Producer for BeanstalkdProducer {
    async fn push(&mut self, payloads: &[u8]) -> Result<()> {
        self.put(payloads, 0).await
    }

    async fn push_delayed(&mut self, payloads: &[u8], due_ms: u64) -> Result<()> {
        let delay_ms = due_ms.saturating_sub(load::now_ms()?);
        self.put(payloads, delay_ms / 1000).await
    }
}

#[derive(Debug)]
pub(crate) struct BeanstalkdWorker {
    wire: Wire,
    pipelined: bool,
    wait_seconds: u64,
    /// Ids leased by the last turn.
    leased: Vec<u64>,
}

impl Worker for BeanstalkdWorker {
    async fn turn(&mut self, max: usize, gauge: &Gauge) -> Result<usize> {
        let mut acks = self.write_acks();
        if !self.pipelined && acks > 0 {
            self.wire.flush().await?;
            self.read_acks(acks, gauge).await?;
            acks = 0;
        }
        if max > 1 {
            let leased = self.reserve(max, 0, acks, gauge).await?;
            if leased > 0 {
                return Ok(leased);
            }
            acks = 0;
        }
        // One job a request, or nothing was there: wait in the server for the next one.
        self.reserve(1, self.wait_seconds, acks, gauge).await
    }

    async fn settle(&mut self, gauge: &Gauge) -> Result<()> {
        let acks = self.write_acks();
        self.wire.flush().await?;
        self.read_acks(acks, gauge).await
    }
}

impl BeanstalkdWorker {
    fn write_acks(&mut self) -> usize {
        let count = self.leased.len();
        for id in self.leased.drain(..) {
            let _ = write!(self.wire.outbox, "delete {id}\r\n");
        }
        count
    }

    async fn read_acks(&mut self, count: usize, gauge: &Gauge) -> Result<()> {
        for _ in 0..count {
            let line = self.wire.line().await?;
            ensure!(
                line == b"DELETED",
                "delete refused: {}",
                line.escape_ascii()
            );
        }
        gauge.acked(count);
        Ok(())
    }

    async fn reserve(
        &mut self,
        count: usize,
        wait_seconds: u64,
        acks: usize,
        gauge: &Gauge,
    ) -> Result<usize> {
        for _ in 0..count {
            write!(self.wire.outbox, "reserve-with-timeout {wait_seconds}\r\n")?;
        }
        self.wire.flush().await?;
        if acks > 0 {
            self.read_acks(acks, gauge).await?;
        }
        let mut tally = Tally::default();
        for _ in 0..count {
            self.read_job(&mut tally).await?;
        }
        gauge.delivered(tally);
        Ok(tally.count)
    }

    async fn read_job(&mut self, tally: &mut Tally) -> Result<()> {
        let line = self.wire.line().await?;
        if line == b"TIMED_OUT" {
            return Ok(());
        }
        let Some(rest) = line.strip_prefix(b"RESERVED ") else {
            bail!("reserve refused: {}", line.escape_ascii());
        };
        let rest = std::str::from_utf8(rest)?;
        let (id, length) = rest.split_once(' ').context("RESERVED without a length")?;
        let (id, length): (u64, usize) = (id.parse()?, length.parse()?);
        let payload = self.wire.exact(length + 2).await?;
        tally.add(&payload[..length])?;
        self.leased.push(id);
        Ok(())
    }
}
