//! Producers: numbered pushes, sent again until they are answered, and sometimes after that.

use ganger_engine::{command::Producer, records::ProducerNumber};
use ganger_protocol::{
    DurationMs, JobSpec, RetryPolicy, Timestamp,
    job::{Unique, UniqueUntil},
    request::{Operation, Push},
};

use crate::{
    clients::Asked,
    history::{Checked, Delay, Job, payload},
    world::{From, World},
};

impl World {
    pub fn step_producer(&mut self) -> Checked {
        self.detach_some()?;
        let nth = self.rng.usize(..self.clients.producers.len());
        let (has_connection, unanswered) = {
            let producer = &self.clients.producers[nth];
            (producer.connection.is_some(), producer.unanswered.len())
        };
        if !has_connection {
            self.connect_producer(nth);
            return self.send_again(nth);
        }
        if self.rng.u32(..60) == 0 {
            let producer = &mut self.clients.producers[nth];
            if let Some(connection) = producer.connection.take() {
                self.break_connection(connection, None);
            }
            return Ok(());
        }
        if self.rng.u32(..12) == 0 {
            // It comes twice, whether it was answered or not.
            let numbered = &self.clients.producers[nth].numbered;
            if !numbered.is_empty() {
                let from = numbered.len().saturating_sub(12);
                let push = numbered[self.rng.usize(from..numbered.len())];
                return self.send_push(nth, push);
            }
        }
        let is_full = self.history.live.len() >= self.plan.live_max;
        if unanswered < 200 && (!is_full || self.rng.u32(..12) == 0) {
            let push = self.new_push(nth);
            return self.send_push(nth, push);
        }
        Ok(())
    }

    pub fn connect_producer(&mut self, nth: usize) {
        let connection = self.connect();
        let is_new = self.clients.producers[nth].producer.is_none();
        if is_new || self.rng.u32(..40) == 0 && self.clients.producers[nth].unanswered.is_empty() {
            self.clients.next_producer += 1;
            let producer = Producer {
                number: ProducerNumber(self.clients.next_producer),
                made_at: self.clock.now().wall,
            };
            let client = &mut self.clients.producers[nth];
            client.producer = Some(producer);
            client.next_seq = 1;
            client.numbered.clear();
        }
        self.clients.producers[nth].connection = Some(connection);
    }

    /// Sends everything again that was not answered.
    pub fn send_again(&mut self, nth: usize) -> Checked {
        let pushes = self.clients.producers[nth].unanswered.clone();
        for push in pushes {
            if self.history.pushes[push].seq.is_none() {
                // Whoever gives no number cannot know.
                self.clients.producers[nth]
                    .unanswered
                    .retain(|other| *other != push);
                continue;
            }
            self.send_push(nth, push)?;
        }
        Ok(())
    }

    fn new_push(&mut self, nth: usize) -> usize {
        let count = match self.rng.u32(..20) {
            0 => self.rng.usize(17..40),
            1..6 => self.rng.usize(2..6),
            _ => 1,
        };
        let is_atomic = self.rng.u32(..8) == 0;
        let is_numbered = self.rng.u32(..10) > 0;
        let push = self.history.pushes.len();
        let first = self.history.jobs.len();
        let namespace = self.clients.producers[nth].namespace.clone();
        let queues: Vec<usize> = (0..self.plan.queues.len())
            .filter(|queue| self.plan.queues[*queue].namespace == namespace)
            .collect();
        let queue = queues[self.rng.usize(..queues.len())];
        let priority = self.plan.priorities[self.rng.usize(..self.plan.priorities.len())];
        for _ in 0..count {
            let is_mixed = self.rng.u32(..6) == 0;
            let (queue, priority) = match is_mixed {
                true => (
                    queues[self.rng.usize(..queues.len())],
                    self.plan.priorities[0],
                ),
                false => (queue, priority),
            };
            let job = self.new_job(queue, priority, push);
            self.history.add_job(job);
        }
        let producer = &mut self.clients.producers[nth];
        let seq = is_numbered.then(|| {
            let seq = producer.next_seq;
            producer.next_seq += if self.rng.u32(..60) == 0 {
                self.rng.u64(90..400)
            } else {
                1
            };
            seq
        });
        self.history.add_push(first..first + count, seq, is_atomic);
        if seq.is_some() {
            producer.numbered.push(push);
        }
        producer.unanswered.push(push);
        push
    }

    fn new_job(&mut self, queue: usize, priority: u8, push: usize) -> Job {
        let rng = &mut self.rng;
        let bytes = match rng.u32(..60) {
            0 => rng.usize(4_000..14_000),
            1..6 => rng.usize(200..1_500),
            _ => rng.usize(8..90),
        };
        let mut job = Job::new(queue, priority, push, bytes);
        job.max_attempts = [1, 2, 3, 26][rng.usize(..4)];
        job.timeout_ms = match rng.u32(..8) {
            0 => rng.u64(60_000..300_000),
            _ => rng.u64(1_000..8_000),
        };
        job.backoff_ms = [0, 5, 700, 4_000][rng.usize(..4)];
        job.is_refused = rng.u32(..80) == 0;
        if rng.u32(..100) < self.plan.delayed_percent {
            let ms = rng.u64(..5_000);
            job.delay = match rng.bool() {
                true => Delay::For(ms),
                false => Delay::Until(self.clock.now().wall.0 + ms),
            };
        }
        if rng.u32(..100) < self.plan.expiring_percent {
            let from = match job.delay {
                Delay::Until(at) => at + 1,
                Delay::None | Delay::For(_) => self.clock.now().wall.0,
            };
            job.expires_at = Some(from + rng.u64(..8_000));
        }
        if rng.u32(..100) < self.plan.unique_percent {
            let until = [
                UniqueUntil::Start,
                UniqueUntil::Success,
                UniqueUntil::Settled,
            ][rng.usize(..3)];
            job.unique = Some((rng.u8(..3), until));
        }
        job
    }

    fn spec(&self, token: usize) -> JobSpec {
        let job = &self.history.jobs[token];
        let mut spec = JobSpec::new("kind".parse().expect("legal"), payload(token, job.bytes));
        spec.queue = self.plan.queues[job.queue].name.clone();
        spec.priority = Some(if job.is_refused { 10 } else { job.priority });
        spec.max_attempts = Some(job.max_attempts);
        spec.timeout_ms = Some(DurationMs(job.timeout_ms));
        spec.backoff = Some(Box::new(RetryPolicy::fixed(DurationMs(job.backoff_ms))));
        spec.expires_at = job.expires_at.map(Timestamp);
        spec.unique = job.unique.map(|(key, until)| {
            let key = format!("key:{key}").parse().expect("a legal name");
            Box::new(Unique {
                until,
                ..Unique::named(key)
            })
        });
        match job.delay {
            Delay::None => {}
            Delay::For(ms) => spec.delay_ms = Some(DurationMs(ms)),
            Delay::Until(at) => spec.run_at = Some(Timestamp(at)),
        }
        spec
    }

    /// Whether the server must say that it no longer knows what became of this push.
    fn must_expire(&self, nth: usize, push: usize) -> bool {
        let Some(seq) = self.history.pushes[push].seq else {
            return false;
        };
        let numbered = self.clients.producers[nth].numbered.iter();
        let mut newer = numbered
            .map(|other| &self.history.pushes[*other])
            .zip(&self.clients.producers[nth].numbered)
            .filter(|(_, other)| self.history.is_in_effect(**other))
            .filter_map(|(other, _)| other.seq)
            .filter(|other| *other >= seq + 256);
        match self.history.is_in_effect(push) {
            true => newer.any(|other| other % 256 == seq % 256),
            false => newer.next().is_some(),
        }
    }

    fn send_push(&mut self, nth: usize, push: usize) -> Checked {
        let producer = &self.clients.producers[nth];
        let Some(connection) = producer.connection.filter(|_| self.is_up()) else {
            return Ok(());
        };
        let from = From {
            connection,
            namespace: producer.namespace.clone(),
            session: None,
            producer: producer.producer,
        };
        let must_expire = self.must_expire(nth, push);
        let entry = &self.history.pushes[push];
        let operation = Operation::Push(Push {
            jobs: entry.jobs.clone().map(|job| self.spec(job)).collect(),
            atomic: entry.is_atomic,
            spread_ms: None,
            by: None,
            seq: entry.seq,
        });
        let (seq, count) = (entry.seq.unwrap_or_default(), entry.jobs.len() as u64);
        self.trace.note(
            self.clock.elapsed(),
            "producer {} pushes {} as number {}: {} jobs from {}",
            &[
                nth as u64,
                push as u64,
                seq,
                count,
                self.history.pushes[push].jobs.start as u64,
            ],
        );
        if !must_expire {
            let group = self.open_group();
            self.history.push_applied(push, group, &self.clock);
        }
        let asked = Asked::Push {
            producer: nth,
            push,
            must_expire,
        };
        self.request(&from, operation, asked)
    }
}
