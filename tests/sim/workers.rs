//! Workers: they fetch, answer, hang, die, come back, and lie.

use ganger_protocol::{
    DurationMs, LeaseId, NamespaceName, QueuePattern,
    request::{
        Ack, AckItem, Extend, ExtendItem, Fail, FailItem, Fetch, Goodbye, Heartbeat, LeaseRef,
        Operation, Release, ReleaseItem, Resume, SessionHello,
    },
};

use crate::{
    clients::{Asked, Fetched, Held},
    history::{Answer, Answered, Checked},
    world::{From, World},
};

impl World {
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
            ttl_ms: Some(DurationMs(match self.rng.u32(..6) {
                0 => self.rng.u64(30_000..120_000),
                _ => self.rng.u64(1_000..6_000),
            })),
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

    pub fn worker_origin(&self, nth: usize) -> Option<From> {
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
        let Some(from) = self.worker_origin(nth) else {
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
        match self.worker_origin(nth) {
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
        match self.worker_origin(nth) {
            Some(from) => self.send_answers(&from, &[held], answer),
            None => Ok(()),
        }
    }

    /// Answers with what was never given: a wrong lease, or from the wrong namespace.
    fn forge(&mut self, nth: usize) -> Checked {
        let Some(mut from) = self.worker_origin(nth) else {
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
        let Some(from) = self.worker_origin(nth) else {
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
        let Some(from) = self.worker_origin(nth) else {
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
}

fn ack_item(held: &Held) -> AckItem {
    AckItem::of(held.id, held.lease)
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
