//! A worker: fetches, and answers in every way there is; resumes its session with what it holds,
//! and sends again what was not answered.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use ganger_protocol::{
    DurationMs, ErrorCode, JobId, LeaseId, SessionId, Timestamp, WireError,
    cron::AT_HEADER,
    job::GrantedJob,
    request::{
        Ack, AckItem, Extend, ExtendItem, Fail, FailItem, Fetch, Goodbye, LeaseRef, Operation,
        Release, ReleaseItem, Resume, SessionHello,
    },
    response::{Body, FetchReply, LeaseReply, LeaseResult},
};
use ganger_server::clock::Stopwatch;

use crate::{
    history::{Answer, End, Event, Phase, Shared, Verdict},
    link::{Gone, Link},
    plan::{Identity, Part, Plan, QUEUES},
};

/// Long enough that no session is lost while a server starts again.
const TTL: DurationMs = DurationMs::from_mins(5);

/// A grant may be forgotten by a kill for 20 ms; a slow machine gets some more.
const FORGETTABLE: Duration = Duration::from_secs(2);

#[derive(Debug)]
struct Held {
    identity: Identity,
    since: Stopwatch,
    /// An answer made the grant durable.
    is_durable: bool,
}

/// An answer that was sent and not answered.
#[derive(Debug, Clone)]
struct Unanswered {
    sent: usize,
    job: JobId,
    lease: LeaseId,
    answer: Answer,
    is_again: bool,
}

/// What a request in flight will be answered with.
#[derive(Debug)]
enum Awaited {
    Answers(Vec<usize>),
    /// Acks first, then fails; and when it was sent.
    Fetch(Vec<usize>, Vec<usize>, Duration),
}

pub(crate) struct Worker<'a> {
    number: u16,
    plan: Plan,
    shared: &'a Shared,
    random: fastrand::Rng,
    session: Option<(SessionId, String, Stopwatch)>,
    held: BTreeMap<(JobId, LeaseId), Held>,
    /// By the place of their event.
    unanswered: BTreeMap<usize, Unanswered>,
    life: u64,
    last_end: End,
}

impl<'a> Worker<'a> {
    pub(crate) fn new(number: u16, plan: Plan, shared: &'a Shared) -> Self {
        Self {
            number,
            plan,
            shared,
            random: fastrand::Rng::with_seed(plan.seed ^ u64::from(number) << 24),
            session: None,
            held: BTreeMap::new(),
            unanswered: BTreeMap::new(),
            life: 0,
            last_end: End::Killed,
        }
    }

    pub(crate) fn run(mut self) {
        let (life, mut address, _) = self.shared.server();
        self.life = life;
        loop {
            if let Ok(()) = self.serve(address) {
                return;
            }
            let Some(next) = self.shared.server_after(self.life) else {
                if self.shared.phase() != Phase::Over {
                    self.shared
                        .violation(format!("worker {} is stuck", self.number));
                }
                return;
            };
            (self.life, address, self.last_end) = next;
        }
    }

    fn serve(&mut self, address: SocketAddr) -> Result<(), Gone> {
        let mut link = self.open(address)?;
        let again: Vec<usize> = self.unanswered.keys().copied().collect();
        for sent in &again {
            if let Some(unanswered) = self.unanswered.get_mut(sent) {
                unanswered.is_again = true;
            }
        }
        let mut awaited = BTreeMap::new();
        for sent in again {
            let operation = self.answers(&[sent]);
            awaited.insert(link.send(operation)?, Awaited::Answers(vec![sent]));
        }
        loop {
            while !awaited.is_empty() {
                let (id, result) = link.reply()?;
                let request = awaited.remove(&id).expect("a reply to a request");
                self.take(request, result)?;
            }
            if self.shared.phase() == Phase::Over && self.held.is_empty() {
                link.send(Operation::Goodbye(Goodbye {}))?;
                let (_, said) = link.reply()?;
                said.expect("goodbye is never refused");
                return Ok(());
            }
            self.round(&mut link, &mut awaited)?;
        }
    }

    fn open(&mut self, address: SocketAddr) -> Result<Link, Gone> {
        let held = self.held.keys().map(|(job, lease)| LeaseRef {
            job: *job,
            lease: *lease,
        });
        let resume = self.session.as_ref().map(|(id, secret, _)| Resume {
            id: *id,
            secret: secret.clone(),
            held: held.collect(),
        });
        let hello = SessionHello {
            name: format!("worker-{}", self.number),
            ttl_ms: Some(TTL),
            resume,
            ..SessionHello::default()
        };
        let (link, reply) = Link::open(address, Some(hello), None)?;
        let reply = match reply {
            Ok(reply) => reply.session.expect("a session"),
            Err(error) => {
                self.shared
                    .violation(format!("a session is refused: {error}"));
                return Err(Gone);
            }
        };
        match &self.session {
            Some((id, _, since)) if *id != reply.id => {
                let is_young = since.elapsed() < FORGETTABLE;
                if self.last_end == End::Terminated || !is_young {
                    self.shared
                        .violation(format!("session {id} is lost after {:?}", self.last_end));
                }
                self.session = Some((reply.id, reply.secret, Stopwatch::start()));
            }
            Some(_) => {}
            None => self.session = Some((reply.id, reply.secret, Stopwatch::start())),
        }
        for LeaseRef { job, lease } in reply.lost {
            self.disowned(job, lease);
        }
        Ok(link)
    }

    /// The server does not know a lease: an answer settled it, or its grant was not durable.
    fn disowned(&mut self, job: JobId, lease: LeaseId) {
        self.shared.record(Event::Disowned { job, lease });
        let Some(held) = self.held.remove(&(job, lease)) else {
            self.shared
                .violation(format!("{job}/{lease} is lost and was not held"));
            return;
        };
        let is_answered = self
            .unanswered
            .values()
            .any(|sent| sent.job == job && sent.lease == lease && sent.answer != Answer::Extend);
        if is_answered {
            return;
        }
        let end = self.last_end;
        let is_forgettable =
            end == End::Killed && !held.is_durable && held.since.elapsed() < FORGETTABLE;
        if !is_forgettable {
            let age = held.since.elapsed();
            self.shared
                .violation(format!("{job}/{lease} of {age:?} is lost after {end:?}"));
        }
    }

    /// Answers some of what is held, fetches more, all at once.
    fn round(&mut self, link: &mut Link, awaited: &mut BTreeMap<u64, Awaited>) -> Result<(), Gone> {
        let is_load = self.shared.phase() == Phase::Load;
        let mut by_answer: [Vec<usize>; 5] = Default::default();
        let leases = self.held.iter();
        let leases: Vec<_> = leases.map(|(key, held)| (*key, held.identity)).collect();
        for ((job, lease), identity) in leases {
            let answer = match self.random.u8(..100) {
                _ if !is_load => Answer::Ack,
                0..62 => Answer::Ack,
                62..76 => Answer::Fail,
                76..78 => Answer::Discard,
                78..85 => Answer::Release,
                85..92 => Answer::Extend,
                _ => continue,
            };
            by_answer[answer as usize].push(self.sent(job, lease, answer, identity));
        }
        let [acks, fails, discards, releases, extends] = by_answer;
        let fails = [fails, discards].concat();
        let ride = self.random.bool();
        let (riding_acks, acks) = if ride {
            (acks, Vec::new())
        } else {
            (Vec::new(), acks)
        };
        let (riding_fails, fails) = if ride {
            (fails, Vec::new())
        } else {
            (Vec::new(), fails)
        };
        for group in [acks, fails, releases, extends] {
            if !group.is_empty() {
                let operation = self.answers(&group);
                awaited.insert(link.send(operation)?, Awaited::Answers(group));
            }
        }
        let max = match self.shared.phase() {
            Phase::Over => 0,
            _ => self.random.u32(0..20),
        };
        let mut queues = QUEUES;
        self.random.shuffle(&mut queues);
        let fetch = Fetch {
            queues: queues.map(|name| name.parse().expect("a name")).into(),
            max,
            wait_ms: DurationMs(self.random.u64(0..100)),
            acks: riding_acks.iter().map(|sent| self.ack(*sent)).collect(),
            fails: riding_fails.iter().map(|sent| self.fail(*sent)).collect(),
            ..Fetch::default()
        };
        let asked = self.shared.elapsed();
        let id = link.send(Operation::Fetch(fetch))?;
        awaited.insert(id, Awaited::Fetch(riding_acks, riding_fails, asked));
        Ok(())
    }

    fn sent(&mut self, job: JobId, lease: LeaseId, answer: Answer, identity: Identity) -> usize {
        let sent = self.shared.record(Event::AnswerSent {
            job,
            lease,
            answer,
            identity,
        });
        let unanswered = Unanswered {
            sent,
            job,
            lease,
            answer,
            is_again: false,
        };
        self.unanswered.insert(sent, unanswered);
        sent
    }

    /// One request with these answers, which are of one operation.
    fn answers(&self, sent: &[usize]) -> Operation {
        let first = &self.unanswered[&sent[0]];
        match first.answer {
            Answer::Ack => Operation::Ack(Ack {
                leases: sent.iter().map(|sent| self.ack(*sent)).collect(),
            }),
            Answer::Fail | Answer::Discard => Operation::Fail(Fail {
                leases: sent.iter().map(|sent| self.fail(*sent)).collect(),
            }),
            Answer::Release => {
                let item = |sent: &usize| {
                    let Unanswered { job, lease, .. } = self.unanswered[sent];
                    ReleaseItem {
                        job,
                        lease,
                        delay_ms: (lease.0 % 3 == 0).then_some(DurationMs(20)),
                    }
                };
                Operation::Release(Release {
                    leases: sent.iter().map(item).collect(),
                })
            }
            Answer::Extend => {
                let item = |sent: &usize| {
                    let Unanswered { job, lease, .. } = self.unanswered[sent];
                    let ms = DurationMs::from_hours(1);
                    ExtendItem { job, lease, ms }
                };
                Operation::Extend(Extend {
                    leases: sent.iter().map(item).collect(),
                })
            }
        }
    }

    fn ack(&self, sent: usize) -> AckItem {
        let Unanswered { job, lease, .. } = self.unanswered[&sent];
        AckItem::of(job, lease)
    }

    fn fail(&self, sent: usize) -> FailItem {
        let Unanswered {
            job, lease, answer, ..
        } = self.unanswered[&sent];
        FailItem {
            job,
            lease,
            kind: "crash".to_owned(),
            message: format!("lease {lease}"),
            backtrace: String::new(),
            retry_in_ms: None,
            dead: false,
            discard: answer == Answer::Discard,
        }
    }

    fn take(&mut self, request: Awaited, result: Result<Body, WireError>) -> Result<(), Gone> {
        let body = match result {
            Ok(body) => body,
            Err(error) => {
                let is_end = matches!(error.code, ErrorCode::Draining | ErrorCode::Unavailable);
                if !is_end {
                    self.shared
                        .violation(format!("{request:?} was refused: {error}"));
                }
                return Err(Gone);
            }
        };
        match request {
            Awaited::Answers(sent) => {
                let reply: LeaseReply = body.read().expect("a reply to an answer");
                self.settle(&sent, reply.results);
            }
            Awaited::Fetch(acks, fails, asked) => {
                let reply: FetchReply = body.read().expect("a reply to fetch");
                self.settle(&acks, reply.acks);
                self.settle(&fails, reply.fails);
                for job in reply.jobs {
                    self.granted(job, asked);
                }
            }
        }
        Ok(())
    }

    fn granted(&mut self, granted: GrantedJob, asked: Duration) {
        let (job, lease) = (granted.id, granted.lease);
        let Some(identity) = self.identify(&granted) else {
            self.shared
                .violation(format!("I2: nobody pushed {job}/{lease}: {granted:?}"));
            return;
        };
        self.shared.record(Event::Granted {
            life: self.life,
            job,
            lease,
            failures: granted.failures,
            identity,
            asked,
            told: self.shared.elapsed(),
        });
        let delayed = self.plan.delay(identity);
        let due = match identity.part() {
            Part::Tick => Some(Timestamp(identity.seq)),
            _ => delayed.map(|delay| granted.pushed_at.plus(delay)),
        };
        let now = ganger_server::clock::Clock::system().now().wall;
        if due.is_some_and(|due| now < due) {
            self.shared
                .violation(format!("I10: {job} was granted before its time"));
        }
        let held = Held {
            identity,
            since: Stopwatch::start(),
            is_durable: false,
        };
        self.held.insert((job, lease), held);
    }

    /// Whose job this is: as its payload says, which must be as it was pushed, with the queue and
    /// the key that it was pushed with. All jobs of a cron entry are pushed alike, and a header
    /// tells them apart.
    fn identify(&self, granted: &GrantedJob) -> Option<Identity> {
        let mut identity = self.plan.identify(&granted.payload)?;
        let spec = (identity.part().queue(), self.plan.key(identity));
        if (granted.queue.as_str(), granted.key.clone()) != spec {
            return None;
        }
        if identity.part() == Part::Tick {
            identity.seq = granted.headers.get(AT_HEADER)?.parse().ok()?;
        }
        Some(identity)
    }

    fn settle(&mut self, sent: &[usize], results: Vec<LeaseResult>) {
        if sent.len() != results.len() {
            let (asked, told) = (sent.len(), results.len());
            self.shared
                .violation(format!("{asked} answers, {told} results"));
            return;
        }
        for (sent, result) in sent.iter().zip(results) {
            let unanswered = self.unanswered.remove(sent).expect("it was sent");
            let key = (unanswered.job, unanswered.lease);
            let verdict = match (result.err, result.already) {
                (None, false) => Verdict::Applied(result.state),
                (None, true) => Verdict::Already,
                (Some(error), _) if error.code == ErrorCode::LeaseLost => {
                    Verdict::Lost(error.state.unwrap_or_default())
                }
                (Some(error), _) => {
                    self.shared
                        .violation(format!("{unanswered:?} was refused: {error}"));
                    continue;
                }
            };
            let is_kept =
                unanswered.answer == Answer::Extend && matches!(verdict, Verdict::Applied(_));
            match self.held.get_mut(&key) {
                Some(held) if is_kept => held.is_durable = true,
                _ => {
                    self.held.remove(&key);
                }
            }
            self.shared.record(Event::Answered {
                sent: unanswered.sent,
                verdict,
                again: unanswered.is_again,
            });
        }
    }
}
