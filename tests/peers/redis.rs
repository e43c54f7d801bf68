//! Redis as a durable job queue, spoken by hand: LPUSH to add, BLMOVE into a list of the worker's
//! own to lease, LREM from it to ack. Every job survives the loss of the worker or the server.
//!
//! Three forms of the worker, since the choice decides the comparison:
//! - plain: acks, waits for the replies, then fetches (what most libraries on Redis do);
//! - pipelined: acks and fetch in one write;
//! - script: acks and fetch in one write, where a script moves up to `max` jobs at once and one DEL
//!   acks them all. It can neither wait nor ack a single job, so it is only run by 100; there it is
//!   the fastest durable form of a reliable queue that Redis has.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    load::{self, Driver, Gauge, PAYLOAD_BYTES, Producer, Tally, Worker},
    wire::Wire,
};

const QUEUE: &[u8] = b"jobs";
const DELAYED: &[u8] = b"delayed";
/// Moves up to `ARGV[1]` jobs from the queue to the worker's own list, which is what BLMOVE does to
/// one. Redis writes the effects to its log as one transaction.
const MOVE_MANY: &[u8] = b"local jobs = redis.call('RPOP', KEYS[1], ARGV[1]) \
    if not jobs then return {} end \
    redis.call('RPUSH', KEYS[2], unpack(jobs)) return jobs";

/// Moves jobs that are due to the queue.
const PROMOTE: &[u8] = b"local jobs = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], \
    'LIMIT', 0, 1000) if #jobs == 0 then return 0 end \
    redis.call('ZREM', KEYS[1], unpack(jobs)) redis.call('LPUSH', KEYS[2], unpack(jobs)) \
    return #jobs";
const POLL_EVERY: Duration = Duration::from_millis(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    Plain,
    Pipelined,
    Script,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Redis {
    address: SocketAddr,
    form: Form,
    wait_seconds: u32,
}

impl Redis {
    pub(crate) fn new(address: SocketAddr, form: Form) -> Self {
        Self {
            address,
            form,
            wait_seconds: 1,
        }
    }
}

impl Driver for Redis {
    type Producer = RedisProducer;
    type Worker = RedisWorker;

    fn at(&self, address: SocketAddr) -> Self {
        Self { address, ..*self }
    }

    fn fastest(&self) -> Self {
        Self {
            form: Form::Script,
            ..*self
        }
    }

    fn patient(&self) -> Self {
        Self {
            wait_seconds: 60,
            ..*self
        }
    }

    /// Looks every 10 ms, as libraries on Redis do at best.
    async fn promote(&self) -> Result<()> {
        let mut wire = Wire::connect(self.address).await?;
        loop {
            let now = load::now_ms()?.to_string();
            let words: [&[u8]; 6] = [b"EVAL", PROMOTE, b"2", DELAYED, QUEUE, now.as_bytes()];
            command(&mut wire.outbox, &words);
            wire.flush().await?;
            if integer(&mut wire).await? == 0 {
                tokio::time::sleep(POLL_EVERY).await;
            }
        }
    }

    async fn producer(&self) -> Result<RedisProducer> {
        let mut wire = Wire::connect(self.address).await?;
        // A server that still reads its log accepts connections and refuses every command.
        wire.outbox.extend_from_slice(b"*1\r\n$4\r\nPING\r\n");
        wire.flush().await?;
        let reply = wire.line().await?;
        ensure!(reply == b"+PONG", "not ready: {}", reply.escape_ascii());
        Ok(RedisProducer { wire })
    }

    async fn worker(&self, index: usize) -> Result<RedisWorker> {
        let mut wire = Wire::connect(self.address).await?;
        command(&mut wire.outbox, &[b"SCRIPT", b"LOAD", MOVE_MANY]);
        wire.flush().await?;
        let length = length(&mut wire, b'$')
            .await?
            .context("SCRIPT LOAD answered nil")?;
        let script = wire.exact(length).await?.to_vec();
        wire.line().await?;
        let own_list = format!("jobs:worker:{index}").into_bytes();
        Ok(RedisWorker {
            wire,
            form: self.form,
            own_list,
            wait_seconds: self.wait_seconds.to_string(),
            script,
            leased: Vec::new(),
        })
    }
}

#[derive(Debug)]
pub(crate) struct RedisProducer {
    wire: Wire,
}

impl Producer for RedisProducer {
    async fn push(&mut self, payloads: &[u8]) -> Result<()> {
        let count = payloads.len() / PAYLOAD_BYTES;
        header(&mut self.wire.outbox, count + 2);
        bulk(&mut self.wire.outbox, b"LPUSH");
        bulk(&mut self.wire.outbox, QUEUE);
        for payload in payloads.chunks_exact(PAYLOAD_BYTES) {
            bulk(&mut self.wire.outbox, payload);
        }
        self.wire.flush().await?;
        integer(&mut self.wire).await?;
        Ok(())
    }

    async fn push_delayed(&mut self, payloads: &[u8], due_ms: u64) -> Result<()> {
        let count = payloads.len() / PAYLOAD_BYTES;
        header(&mut self.wire.outbox, count * 2 + 2);
        bulk(&mut self.wire.outbox, b"ZADD");
        bulk(&mut self.wire.outbox, DELAYED);
        let due = due_ms.to_string();
        for payload in payloads.chunks_exact(PAYLOAD_BYTES) {
            bulk(&mut self.wire.outbox, due.as_bytes());
            bulk(&mut self.wire.outbox, payload);
        }
        self.wire.flush().await?;
        let added = integer(&mut self.wire).await?;
        ensure!(
            usize::try_from(added) == Ok(count),
            "{added} of {count} delayed jobs were added"
        );
        Ok(())
    }
}

#[derive(Debug)]
pub(crate) struct RedisWorker {
    wire: Wire,
    form: Form,
    own_list: Vec<u8>,
    wait_seconds: String,
    script: Vec<u8>,
    /// Payloads leased by the last turn, one after the other: Redis acks by value.
    leased: Vec<u8>,
}

impl Worker for RedisWorker {
    async fn turn(&mut self, max: usize, gauge: &Gauge) -> Result<usize> {
        let acks = self.write_acks();
        if self.form == Form::Plain && acks > 0 {
            self.wire.flush().await?;
            self.read_acks(acks, gauge).await?;
        }
        let leased = match (max, self.form) {
            (1, _) => 0,
            (_, Form::Script) => self.move_by_script(max, acks, gauge).await?,
            (_, Form::Plain) => self.move_each(max, 0, gauge).await?,
            (_, Form::Pipelined) => self.move_each(max, acks, gauge).await?,
        };
        if leased > 0 {
            return Ok(leased);
        }
        // One job a request, or nothing was there: wait in the server for the next one.
        command(
            &mut self.wire.outbox,
            &[
                b"BLMOVE",
                QUEUE,
                &self.own_list,
                b"RIGHT",
                b"LEFT",
                self.wait_seconds.as_bytes(),
            ],
        );
        self.wire.flush().await?;
        if max == 1 && self.form != Form::Plain && acks > 0 {
            self.read_acks(acks, gauge).await?;
        }
        let mut tally = Tally::default();
        self.read_job(&mut tally, gauge).await?;
        gauge.delivered(tally);
        Ok(tally.count)
    }

    async fn settle(&mut self, gauge: &Gauge) -> Result<()> {
        let acks = self.write_acks();
        self.wire.flush().await?;
        self.read_acks(acks, gauge).await
    }
}

impl RedisWorker {
    /// Queues the acks of the last turn and says how many jobs they settle.
    fn write_acks(&mut self) -> usize {
        let count = self.leased.len() / PAYLOAD_BYTES;
        if self.form == Form::Script && count > 0 {
            command(&mut self.wire.outbox, &[b"DEL", &self.own_list]);
        } else {
            for payload in self.leased.chunks_exact(PAYLOAD_BYTES) {
                // From the tail, where BLMOVE's oldest job is: LREM finds it at the first look.
                command(
                    &mut self.wire.outbox,
                    &[b"LREM", &self.own_list, b"-1", payload],
                );
            }
        }
        self.leased.clear();
        count
    }

    async fn read_acks(&mut self, count: usize, gauge: &Gauge) -> Result<()> {
        let replies = if self.form == Form::Script {
            count.min(1)
        } else {
            count
        };
        for _ in 0..replies {
            let removed = integer(&mut self.wire).await?;
            ensure!(removed == 1, "a leased job was not in the worker's list");
        }
        gauge.acked(count);
        Ok(())
    }

    async fn move_each(&mut self, max: usize, acks: usize, gauge: &Gauge) -> Result<usize> {
        for _ in 0..max {
            command(
                &mut self.wire.outbox,
                &[b"LMOVE", QUEUE, &self.own_list, b"RIGHT", b"LEFT"],
            );
        }
        self.wire.flush().await?;
        if acks > 0 {
            self.read_acks(acks, gauge).await?;
        }
        let mut tally = Tally::default();
        for _ in 0..max {
            self.read_job(&mut tally, gauge).await?;
        }
        gauge.delivered(tally);
        Ok(tally.count)
    }

    async fn move_by_script(&mut self, max: usize, acks: usize, gauge: &Gauge) -> Result<usize> {
        let max = max.to_string();
        let words: [&[u8]; 6] = [
            b"EVALSHA",
            &self.script,
            b"2",
            QUEUE,
            &self.own_list,
            max.as_bytes(),
        ];
        command(&mut self.wire.outbox, &words);
        self.wire.flush().await?;
        if acks > 0 {
            self.read_acks(acks, gauge).await?;
        }
        let mut tally = Tally::default();
        for _ in 0..length(&mut self.wire, b'*').await?.unwrap_or(0) {
            self.read_job(&mut tally, gauge).await?;
        }
        gauge.delivered(tally);
        Ok(tally.count)
    }

    /// One bulk reply: a payload, or nil when there was no job.
    async fn read_job(&mut self, tally: &mut Tally, gauge: &Gauge) -> Result<()> {
        let Some(length) = reply_length(self.wire.line().await?)? else {
            return Ok(());
        };
        let payload = self.wire.exact(length + 2).await?;
        let payload = &payload[..length];
        gauge.receive(tally, payload)?;
        self.leased.extend_from_slice(payload);
        Ok(())
    }
}

fn header(out: &mut Vec<u8>, words: usize) {
    let _ = write!(out, "*{words}\r\n");
}

fn bulk(out: &mut Vec<u8>, word: &[u8]) {
    let _ = write!(out, "${}\r\n", word.len());
    out.extend_from_slice(word);
    out.extend_from_slice(b"\r\n");
}

fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    header(out, words.len());
    for word in words {
        bulk(out, word);
    }
}

async fn integer(wire: &mut Wire) -> Result<i64> {
    let line = wire.line().await?;
    match line.strip_prefix(b":") {
        Some(digits) => Ok(std::str::from_utf8(digits)?.parse()?),
        None => bail!("expected an integer, got {}", line.escape_ascii()),
    }
}

/// The length that opens a bulk (`$`) or array (`*`) reply; nil is `None`.
async fn length(wire: &mut Wire, mark: u8) -> Result<Option<usize>> {
    let line = wire.line().await?;
    ensure!(
        line.first() == Some(&mark),
        "unexpected reply {}",
        line.escape_ascii()
    );
    reply_length(line)
}

/// BLMOVE answers a time-out with a nil array, LMOVE nothing with a nil bulk.
fn reply_length(line: &[u8]) -> Result<Option<usize>> {
    match line.split_first() {
        Some((b'$' | b'*', b"-1")) => Ok(None),
        Some((b'$' | b'*', digits)) => Ok(Some(std::str::from_utf8(digits)?.parse()?)),
        _ => bail!("unexpected reply {}", line.escape_ascii()),
    }
}
