//! The clients: producers that send again what was not answered, workers that answer, hang, die
//! and lie, administrators. What a reply means to the history is in [`crate::replies`].

use ganger_engine::{
    command::{ConnectionId, Producer},
    records::ProducerNumber,
};
use ganger_protocol::{
    DurationMs, JobId, JobSpec, LeaseId, NamespaceName, QueuePattern, RetryPolicy, SessionId,
    Timestamp, WireError,
    request::{
        Ack, AckItem, DeadSelect, Extend, ExtendItem, Fail, FailItem, Fetch, Goodbye, Heartbeat,
        JobGet, LeaseRef, Operation, Push, QueueNames, Release, ReleaseItem, Resume, SessionHello,
        Stats,
    },
    response::ReplyBody,
};

use crate::{
    history::{Answer, Answered, Checked, Delay, Job, Presence, payload},
    plan::Plan,
    world::{From, World},
};

/// What a request was about, to judge its reply by.
#[derive(Debug)]
pub enum Asked {
    Push {
        producer: usize,
        push: usize,
        order: u64,
        must_expire: bool,
    },
    Fetch {
        worker: Option<usize>,
        fetch: Fetched,
    },
    Answers(Vec<Answered>),
    Heartbeat {
        worker: usize,
        was_live: bool,
    },
    Goodbye {
        was_live: bool,
    },
    Get {
        job: usize,
        presence: Presence,
    },
    Dead {
        jobs: Vec<(usize, bool)>,
        operation: u64,
        is_purge: bool,
        is_named: bool,
    },
    Pause {
        queue: usize,
        operation: u64,
    },
    Anything,
    /// Kept for whoever asked.
    Audit,
}

impl Asked {
    pub fn is_fetch(&self) -> bool {
        matches!(self, Self::Fetch { .. })
    }
}

/// A fetch.
#[derive(Debug)]
pub struct Fetched {
    /// Its queues, in the order of the request.
    pub queues: Vec<usize>,
    pub is_strict: bool,
    pub max: usize,
    pub acks: Vec<Answered>,
    pub fails: Vec<Answered>,
    pub was_live: bool,
}

/// All clients.
#[derive(Debug)]
pub struct Clients {
    pub producers: Vec<ProducerClient>,
    pub workers: Vec<Worker>,
    /// Connections that are gone and of which the server does not know it yet.
    pub dangling: Vec<(ConnectionId, Option<SessionId>)>,
    /// The answer to an [`Asked::Audit`].
    pub audited: Option<Result<ReplyBody, WireError>>,
    next_producer: u64,
}

#[derive(Debug)]
pub struct ProducerClient {
    producer: Option<Producer>,
    pub connection: Option<ConnectionId>,
    namespace: NamespaceName,
    next_seq: u64,
    /// Pushes without an answer.
    pub unanswered: Vec<usize>,
    /// Numbered pushes of this producer.
    numbered: Vec<usize>,
}

#[derive(Debug)]
pub struct Worker {
    pub connection: Option<ConnectionId>,
    pub session: Option<SessionId>,
    pub namespace: NamespaceName,
    ttl: u64,
    pub held: Vec<Held>,
    /// Leases that were answered or forgotten.
    pub stale: Vec<Held>,
    pub is_fetching: bool,
}

/// A lease in the hands of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub job: usize,
    pub id: JobId,
    pub lease: LeaseId,
}

/// Stale leases that a worker remembers.
const STALE_MAX: usize = 12;

impl Clients {
    pub fn new(plan: &Plan) -> Self {
        let namespace = |nth: usize| plan.queues[nth % plan.queues.len()].namespace.clone();
        Self {
            producers: (0..plan.producers)
                .map(|nth| ProducerClient {
                    producer: None,
                    connection: None,
                    namespace: namespace(nth * 2 + 1),
                    next_seq: 1,
                    unanswered: Vec::new(),
                    numbered: Vec::new(),
                })
                .collect(),
            workers: (0..plan.workers)
                .map(|nth| Worker::new(namespace(nth)))
                .collect(),
            dangling: Vec::new(),
            audited: None,
            next_producer: 100,
        }
    }

    /// All connections are gone.
    pub fn server_ended(&mut self) {
        for producer in &mut self.producers {
            producer.connection = None;
        }
        for worker in &mut self.workers {
            worker.connection = None;
            worker.is_fetching = false;
        }
        self.dangling.clear();
    }
}

impl Worker {
    fn new(namespace: NamespaceName) -> Self {
        Self {
            connection: None,
            session: None,
            namespace,
            ttl: 0,
            held: Vec::new(),
            stale: Vec::new(),
            is_fetching: false,
        }
    }

    pub fn forget(&mut self, held: Held) {
        if self.stale.len() >= STALE_MAX {
            self.stale.remove(0);
        }
        self.stale.push(held);
    }
}

impl World {
    fn elapsed(&self) -> u64 {
        self.clock.elapsed()
    }

    /// A connection breaks: the client knows, the server will hear of it later.
    pub fn break_connection(&mut self, connection: ConnectionId, session: Option<SessionId>) {
        self.trace.note(
            self.clock.elapsed(),
            "connection {} breaks",
            &[connection.0],
        );
        self.clients.dangling.push((connection, session));
    }

    fn detach_some(&mut self) -> Checked {
        if !self.clients.dangling.is_empty() && self.rng.u32(..4) == 0 {
            let (connection, session) = self.clients.dangling.remove(0);
            self.detach(connection, session)?;
        }
        Ok(())
    }

    // Producers.

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
        job.timeout_ms = rng.u64(1_000..8_000);
        job.backoff_ms = [0, 5, 700, 4_000][rng.usize(..4)];
        job.is_refused = rng.u32(..80) == 0;
        if rng.u32(..100) < self.plan.delayed_percent {
            let ms = rng.u64(..5_000);
            job.delay = match rng.bool() {
                true => Delay::For(ms),
                false => Delay::Until(self.clock.now().wall.0 + ms),
            };
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
            order: 0,
            must_expire,
        };
        self.request(&from, operation, asked)
    }

    // Workers.

    pub fn step_worker(&mut self) -> Checked {
        self.detach_some()?;
        let nth = self.rng.usize(..self.clients.workers.len());
        if !self.is_up() {
            return Ok(());
        }
        if self.clients.workers[nth].connection.is_none() {
            return self.connect_worker(nth);
        }
        let (held, is_fetching) = {
            let worker = &self.clients.workers[nth];
            (worker.held.len(), worker.is_fetching)
        };
        match self.rng.u32(..100) {
            0..40 if held > 0 => self.answer(nth),
            0..70 if !is_fetching && held < 30 => self.fetch(nth),
            70..78 => self.heartbeat(nth),
            78..86 => self.answer_again(nth),
            86..89 => self.forge(nth),
            89..92 => {
                self.drop_worker(nth);
                Ok(())
            }
            92 => {
                self.die(nth);
                Ok(())
            }
            93 => self.goodbye(nth),
            _ => Ok(()),
        }
    }

    fn drop_worker(&mut self, nth: usize) {
        let worker = &mut self.clients.workers[nth];
        worker.is_fetching = false;
        let session = worker.session;
        if let Some(connection) = worker.connection.take() {
            self.break_connection(connection, session);
        }
    }

    /// The worker's process dies; another one takes its place, which knows nothing.
    fn die(&mut self, nth: usize) {
        self.trace
            .note(self.clock.elapsed(), "worker {} dies", &[nth as u64]);
        self.drop_worker(nth);
        let worker = &mut self.clients.workers[nth];
        worker.session = None;
        for held in std::mem::take(&mut worker.held) {
            worker.forget(held);
        }
    }

    fn connect_worker(&mut self, nth: usize) -> Checked {
        let connection = self.connect();
        let worker = &self.clients.workers[nth];
        let mut from = From {
            connection,
            namespace: worker.namespace.clone(),
            session: None,
            producer: None,
        };
        let mut hello = SessionHello {
            ttl_ms: Some(DurationMs(self.rng.u64(1_000..6_000))),
            ..SessionHello::default()
        };
        let mono = self.clock.now().mono.0;
        let group = self.open_group();
        let Some(session) = worker.session else {
            let opened = self.open_session(&from, hello)?;
            if let Some(opened) = opened {
                self.trace.note(
                    self.clock.elapsed(),
                    "worker {} opens session {} on connection {}",
                    &[nth as u64, opened.id.0, connection.0],
                );
                self.history
                    .session_opened(opened.id, opened.ttl.0, mono, group);
                let worker = &mut self.clients.workers[nth];
                worker.session = Some(opened.id);
                worker.ttl = opened.ttl.0;
                worker.connection = Some(connection);
            }
            return Ok(());
        };
        let mut named = worker.held.clone();
        match self.rng.u32(..8) {
            0 => named.clear(),
            1 => named.retain(|_| self.rng.bool()),
            2 => named.extend(worker.stale.last().copied()),
            _ => {}
        }
        let held: Vec<LeaseRef> = named
            .iter()
            .map(|held| LeaseRef {
                job: held.id,
                lease: held.lease,
            })
            .collect();
        hello.resume = Some(Resume {
            id: session,
            secret: String::new(),
            held: held.clone(),
        });
        let was_live = self.history.is_session_live(session, mono);
        let lives: Vec<bool> = named
            .iter()
            .map(|held| self.history.lives_in(held.lease, session, mono))
            .collect();
        let Some(opened) = self.open_session(&from, hello)? else {
            return Ok(());
        };
        from.session = Some(opened.id);
        self.trace.note(
            self.clock.elapsed(),
            "worker {} resumes session {} as {}, holding {}, lost {}",
            &[
                nth as u64,
                session.0,
                opened.id.0,
                held.len() as u64,
                opened.lost.len() as u64,
            ],
        );
        if opened.id == session {
            self.history.session_proven(session, mono)?;
            let leases: Vec<LeaseId> = held.iter().map(|held| held.lease).collect();
            for (held, lived) in held.iter().zip(lives) {
                if lived && opened.lost.contains(held) {
                    return Err(format!(
                        "lease {} lives and was lost by a resume",
                        held.lease
                    ));
                }
            }
            self.history.session_resumed(session, &leases, mono, group);
        } else {
            self.history.session_over(session, was_live)?;
            self.history
                .session_opened(opened.id, opened.ttl.0, mono, group);
        }
        for lost in &opened.lost {
            self.history.lease_gone(lost.lease, session, group);
        }
        let worker = &mut self.clients.workers[nth];
        worker.session = Some(opened.id);
        worker.ttl = opened.ttl.0;
        worker.connection = Some(connection);
        let (kept, dropped): (Vec<Held>, Vec<Held>) = std::mem::take(&mut worker.held)
            .into_iter()
            .partition(|own| {
                let own = LeaseRef {
                    job: own.id,
                    lease: own.lease,
                };
                held.contains(&own) && !opened.lost.contains(&own)
            });
        worker.held = kept;
        for held in dropped {
            worker.forget(held);
        }
        Ok(())
    }

    pub fn from_worker(&self, nth: usize) -> Option<From> {
        let worker = &self.clients.workers[nth];
        Some(From {
            connection: worker.connection?,
            namespace: worker.namespace.clone(),
            session: worker.session,
            producer: None,
        })
    }

    /// What a worker asks for: patterns, and the queues that they mean, in order.
    fn draw_queues(&mut self, namespace: &NamespaceName) -> (Vec<QueuePattern>, Vec<usize>) {
        let mut own: Vec<usize> = (0..self.plan.queues.len())
            .filter(|queue| self.plan.queues[*queue].namespace == *namespace)
            .collect();
        own.sort_by_key(|queue| self.plan.queues[*queue].name.clone());
        let texts: Vec<String> = match self.rng.u32(..6) {
            0 | 1 => vec!["*".to_owned()],
            2 => vec!["sms".to_owned(), "mail*".to_owned()],
            3 => vec!["mail*".to_owned(), "*".to_owned()],
            _ => {
                let queue = own[self.rng.usize(..own.len())];
                vec![self.plan.queues[queue].name.to_string()]
            }
        };
        let patterns: Vec<QueuePattern> = texts
            .iter()
            .map(|text| text.parse().expect("a legal pattern"))
            .collect();
        let mut queues = Vec::new();
        for pattern in &patterns {
            for queue in &own {
                if pattern.matches(&self.plan.queues[*queue].name) && !queues.contains(queue) {
                    queues.push(*queue);
                }
            }
        }
        (patterns, queues)
    }

    fn fetch(&mut self, nth: usize) -> Checked {
        let Some(from) = self.from_worker(nth) else {
            return Ok(());
        };
        let (patterns, queues) = self.draw_queues(&from.namespace);
        let is_strict = self.rng.u32(..3) > 0;
        let max = match self.rng.u32(..10) {
            0 => 0,
            1..6 => 1,
            6..9 => self.rng.u32(2..6),
            _ => self.rng.u32(10..40),
        };
        let wait = if self.rng.bool() {
            self.rng.u64(1..4_000)
        } else {
            0
        };
        let weights = match is_strict {
            true => Vec::new(),
            false => patterns.iter().map(|_| self.rng.u32(1..10)).collect(),
        };
        let (mut acks, mut fails) = (Vec::new(), Vec::new());
        if self.rng.u32(..3) == 0 {
            for _ in 0..self.rng.usize(..3) {
                if let Some(held) = self.take_held(nth) {
                    match self.rng.u32(..4) {
                        0 => fails.push((held, self.draw_fail())),
                        _ => acks.push(held),
                    }
                }
            }
        }
        let fetch = Fetch {
            queues: patterns,
            weights,
            max,
            wait_ms: DurationMs(wait),
            acks: acks.iter().map(ack_item).collect(),
            fails: fails
                .iter()
                .map(|(held, fail)| fail_item(held, *fail))
                .collect(),
        };
        self.send_fetch(Some(nth), &from, fetch, (queues, is_strict), &acks, &fails)
    }

    pub fn send_fetch(
        &mut self,
        nth: Option<usize>,
        from: &From,
        fetch: Fetch,
        (queues, is_strict): (Vec<usize>, bool),
        acks: &[Held],
        fails: &[(Held, Answer)],
    ) -> Checked {
        let mono = self.clock.now().mono.0;
        let was_live = from
            .session
            .is_some_and(|it| self.history.is_session_live(it, mono));
        let namespace = from.namespace.clone();
        let acks = acks
            .iter()
            .map(|held| self.answered(held, Answer::Ack, &namespace))
            .collect();
        let fails = fails
            .iter()
            .map(|(held, fail)| self.answered(held, *fail, &namespace))
            .collect();
        let asked = Asked::Fetch {
            worker: nth,
            fetch: Fetched {
                queues: queues.clone(),
                is_strict,
                max: fetch.max as usize,
                acks,
                fails,
                was_live,
            },
        };
        self.trace.note(
            self.elapsed(),
            "worker {} fetches {} and waits {} ms, {} acks, {} fails ride along",
            &[
                nth.unwrap_or(99) as u64,
                u64::from(fetch.max),
                fetch.wait_ms.0,
                fetch.acks.len() as u64,
                fetch.fails.len() as u64,
            ],
        );
        if let Some(nth) = nth {
            self.clients.workers[nth].is_fetching = true;
        }
        let (had_withheld, had_answers) = (self.has_withheld, self.pending.len());
        let is_plain = fetch.acks.is_empty() && fetch.fails.is_empty() && fetch.max > 0;
        let had_leases = self.live_leases();
        self.request(from, Operation::Fetch(fetch), asked)?;
        // It waits, and not for a job that it got to be durable: there must have been nothing.
        let is_waiting = self.pending.len() > had_answers && self.live_leases() == had_leases;
        if is_waiting && is_plain && !had_withheld && was_live && self.is_up() {
            self.check_nothing_is_fresh(&queues)?;
        }
        Ok(())
    }

    /// No job that is certainly ready is in these queues.
    pub fn check_nothing_is_fresh(&self, queues: &[usize]) -> Checked {
        for queue in queues {
            if let Some(job) = self.history.fresh_before(*queue, None)
                && !self.history.is_paused(*queue)
            {
                let facts = &self.history.jobs[job];
                return Err(format!(
                    "job {job} is ready, and a fetch of {queues:?} did not get it: {facts:?}"
                ));
            }
        }
        Ok(())
    }

    fn answered(&mut self, held: &Held, answer: Answer, namespace: &NamespaceName) -> Answered {
        let queue = self.history.jobs[held.job].queue;
        let is_own = self.plan.queues[queue].namespace == *namespace;
        let group = self.open_group();
        self.trace.note(
            self.clock.elapsed(),
            "job {} of lease {} is answered ({}: 0 ack, 1 fail, 2 dead, 3 discard, 4 release, 5 extend)",
            &[
                held.job as u64,
                held.lease.0,
                match answer {
                    Answer::Ack => 0,
                    Answer::Fail { dead: true, .. } => 2,
                    Answer::Fail { discard: true, .. } => 3,
                    Answer::Fail { .. } => 1,
                    Answer::Release { .. } => 4,
                    Answer::Extend { .. } => 5,
                },
            ],
        );
        self.history
            .answer_applied((held.job, held.lease), answer, is_own, group, &self.clock)
    }

    fn take_held(&mut self, nth: usize) -> Option<Held> {
        let worker = &mut self.clients.workers[nth];
        if worker.held.is_empty() {
            return None;
        }
        let held = worker.held.swap_remove(self.rng.usize(..worker.held.len()));
        worker.forget(held);
        Some(held)
    }

    fn draw_fail(&mut self) -> Answer {
        let (dead, discard) = match self.rng.u32(..12) {
            0 => (true, false),
            1 => (false, true),
            _ => (false, false),
        };
        let retry_in = match self.rng.u32(..3) {
            0 => Some(self.rng.u64(..3_000)),
            _ => None,
        };
        Answer::Fail {
            dead,
            discard,
            retry_in,
        }
    }

    fn answer(&mut self, nth: usize) -> Checked {
        let count = if self.rng.u32(..4) == 0 { 4 } else { 1 };
        let answer = match self.rng.u32(..20) {
            0..11 => Answer::Ack,
            11..15 => self.draw_fail(),
            15..18 => Answer::Release {
                delay: if self.rng.bool() {
                    0
                } else {
                    self.rng.u64(1..2_000)
                },
            },
            _ => Answer::Extend {
                ms: self.rng.u64(1_000..6_000),
            },
        };
        let mut leases = Vec::new();
        for _ in 0..count {
            if let Answer::Extend { .. } = answer {
                let held = &self.clients.workers[nth].held;
                leases.push(held[self.rng.usize(..held.len())]);
            } else {
                leases.extend(self.take_held(nth));
            }
        }
        match self.from_worker(nth) {
            Some(from) => self.send_answers(&from, &leases, answer),
            None => Ok(()),
        }
    }

    pub fn send_answers(&mut self, from: &From, leases: &[Held], answer: Answer) -> Checked {
        if leases.is_empty() || !self.is_up() {
            return Ok(());
        }
        let operation = match answer {
            Answer::Ack => Operation::Ack(Ack {
                leases: leases.iter().map(ack_item).collect(),
            }),
            Answer::Fail { .. } => Operation::Fail(Fail {
                leases: leases.iter().map(|held| fail_item(held, answer)).collect(),
            }),
            Answer::Release { delay } => Operation::Release(Release {
                leases: leases
                    .iter()
                    .map(|held| ReleaseItem {
                        job: held.id,
                        lease: held.lease,
                        delay_ms: (delay > 0).then_some(DurationMs(delay)),
                    })
                    .collect(),
            }),
            Answer::Extend { ms } => Operation::Extend(Extend {
                leases: leases
                    .iter()
                    .map(|held| ExtendItem {
                        job: held.id,
                        lease: held.lease,
                        ms: DurationMs(ms),
                    })
                    .collect(),
            }),
        };
        // The frame itself shows that the session lives; the answers are applied after that.
        let items = leases.iter();
        let items = items
            .map(|held| self.answered(held, answer, &from.namespace))
            .collect();
        self.request(from, operation, Asked::Answers(items))
    }

    /// Sends an answer to a lease that is over, most likely.
    fn answer_again(&mut self, nth: usize) -> Checked {
        let stale = &self.clients.workers[nth].stale;
        if stale.is_empty() {
            return Ok(());
        }
        let held = stale[self.rng.usize(..stale.len())];
        let answer = match self.rng.u32(..5) {
            0 | 1 => Answer::Ack,
            2 => self.draw_fail(),
            3 => Answer::Release { delay: 0 },
            _ => Answer::Extend { ms: 5_000 },
        };
        match self.from_worker(nth) {
            Some(from) => self.send_answers(&from, &[held], answer),
            None => Ok(()),
        }
    }

    /// Answers with what was never given: a wrong lease, or from the wrong namespace.
    fn forge(&mut self, nth: usize) -> Checked {
        let Some(mut from) = self.from_worker(nth) else {
            return Ok(());
        };
        let worker = &self.clients.workers[nth];
        let Some(mut held) = worker.held.iter().chain(&worker.stale).next().copied() else {
            return Ok(());
        };
        match self.rng.u32(..3) {
            0 => held.lease = LeaseId((1 << 52) + self.rng.u64(..9)),
            1 => {
                let other = self.rng.usize(..self.clients.workers.len());
                let worker = &self.clients.workers[other];
                if let Some(other) = worker.held.last().filter(|it| it.job != held.job) {
                    held.lease = other.lease;
                } else {
                    held.lease = LeaseId(held.lease.0 + (1 << 40));
                }
            }
            _ => {
                from.namespace = "elsewhere".parse().expect("a legal name");
                from.session = None;
                from.connection = self.connect();
            }
        }
        let answer = [
            Answer::Ack,
            Answer::Release { delay: 0 },
            Answer::Extend { ms: 2_000 },
        ][self.rng.usize(..3)];
        self.send_answers(&from, &[held], answer)
    }

    fn heartbeat(&mut self, nth: usize) -> Checked {
        let Some(from) = self.from_worker(nth) else {
            return Ok(());
        };
        let mono = self.clock.now().mono.0;
        let was_live = from
            .session
            .is_some_and(|it| self.history.is_session_live(it, mono));
        let asked = Asked::Heartbeat {
            worker: nth,
            was_live,
        };
        self.trace
            .note(self.elapsed(), "worker {} is alive", &[nth as u64]);
        self.request(&from, Operation::Heartbeat(Heartbeat {}), asked)
    }

    fn goodbye(&mut self, nth: usize) -> Checked {
        let Some(from) = self.from_worker(nth) else {
            return Ok(());
        };
        let Some(session) = from.session else {
            return Ok(());
        };
        let mono = self.clock.now().mono.0;
        let was_live = self.history.is_session_live(session, mono);
        self.trace
            .note(self.elapsed(), "worker {} says goodbye", &[nth as u64]);
        let group = self.open_group();
        let goodbye = Operation::Goodbye(Goodbye {});
        self.request(&from, goodbye, Asked::Goodbye { was_live })?;
        self.history.session_ending(session, group);
        self.die(nth);
        Ok(())
    }

    // Administrators.

    pub fn step_admin(&mut self) -> Checked {
        if !self.is_up() {
            return Ok(());
        }
        let queue = self.rng.usize(..self.plan.queues.len());
        let from = self.administrator(queue);
        match self.rng.u32(..10) {
            0..3 => self.pause(queue, true),
            3..6 => self.pause(queue, false),
            6 | 7 => self.change_dead(queue, &from),
            8 => {
                let known: Vec<usize> = self
                    .history
                    .jobs
                    .iter()
                    .enumerate()
                    .filter(|(_, job)| job.queue == queue && job.id.is_some())
                    .map(|(job, _)| job)
                    .collect();
                if known.is_empty() {
                    return Ok(());
                }
                let job = known[self.rng.usize(known.len().saturating_sub(40)..known.len())];
                self.look_at(job, &from)
            }
            _ => self.request(&from, Operation::Stats(Stats {}), Asked::Anything),
        }
    }

    /// A connection without a session.
    pub fn administrator(&mut self, queue: usize) -> From {
        From {
            connection: self.connect(),
            namespace: self.plan.queues[queue].namespace.clone(),
            session: None,
            producer: None,
        }
    }

    pub fn pause(&mut self, queue: usize, is_paused: bool) -> Checked {
        if self.history.pushed(queue).0 == 0 {
            return Ok(());
        }
        let from = self.administrator(queue);
        let group = self.open_group();
        let operation = self.history.pause_applied(queue, is_paused, group);
        let names = QueueNames {
            queues: vec![self.plan.queues[queue].name.clone()],
        };
        let request = match is_paused {
            true => Operation::QueuePause(names),
            false => Operation::QueueResume(names),
        };
        self.trace.note(
            self.elapsed(),
            "queue {} is paused: {}",
            &[queue as u64, u64::from(is_paused)],
        );
        self.request(&from, request, Asked::Pause { queue, operation })
    }

    fn look_at(&mut self, job: usize, from: &From) -> Checked {
        let Some(id) = self.history.jobs[job].id else {
            return Ok(());
        };
        let asked = Asked::Get {
            job,
            presence: self.history.presence(job),
        };
        self.request(from, Operation::JobGet(JobGet { job: id }), asked)
    }

    /// Revives or purges dead jobs, by their ids or the oldest of a queue.
    fn change_dead(&mut self, queue: usize, from: &From) -> Checked {
        let is_purge = self.rng.u32(..3) == 0;
        let is_named = self.rng.u32(..3) > 0;
        let jobs = self.history.live.iter().copied();
        let mut jobs: Vec<(usize, bool)> = jobs
            .filter(|job| self.history.jobs[*job].queue == queue)
            .filter(|job| self.history.jobs[*job].id.is_some() || !is_named)
            .map(|job| (job, self.history.is_dead(job)))
            .collect();
        let mut select = DeadSelect::default();
        if is_named {
            jobs.retain(|(_, is_dead)| *is_dead || self.rng.u32(..8) == 0);
            jobs.truncate(4);
            let ids = jobs
                .iter()
                .filter_map(|(job, _)| self.history.jobs[*job].id);
            select.jobs = ids.collect();
        } else {
            select.queue = Some(self.plan.queues[queue].name.clone());
            select.limit = Some(self.rng.u32(1..4));
        }
        if jobs.is_empty() {
            return Ok(());
        }
        let group = self.open_group();
        let tokens: Vec<usize> = jobs.iter().map(|(job, _)| *job).collect();
        let operation = self.history.dead_applied(&tokens, is_purge, group);
        self.trace.note(
            self.elapsed(),
            "dead jobs of queue {} are changed: {} named, purge: {}",
            &[queue as u64, select.jobs.len() as u64, u64::from(is_purge)],
        );
        let request = match is_purge {
            true => Operation::DeadPurge(select),
            false => Operation::DeadRevive(select),
        };
        let asked = Asked::Dead {
            jobs,
            operation,
            is_purge,
            is_named,
        };
        self.request(from, request, asked)
    }
}

fn ack_item(held: &Held) -> AckItem {
    AckItem {
        job: held.id,
        lease: held.lease,
        result: None,
    }
}

fn fail_item(held: &Held, answer: Answer) -> FailItem {
    let (dead, discard, retry_in) = match answer {
        Answer::Fail {
            dead,
            discard,
            retry_in,
        } => (dead, discard, retry_in),
        Answer::Ack | Answer::Release { .. } | Answer::Extend { .. } => (false, false, None),
    };
    FailItem {
        job: held.id,
        lease: held.lease,
        kind: "error".to_owned(),
        message: "it broke".to_owned(),
        backtrace: String::new(),
        retry_in_ms: retry_in.map(DurationMs),
        dead,
        discard,
    }
}
