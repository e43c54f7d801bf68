//! A producer: numbered pushes, many unanswered at a time, sent again under their numbers after
//! every end of the server, until each was answered.

use std::collections::{BTreeMap, VecDeque};

use ganger_protocol::{
    ErrorCode, JobSpec, WireError,
    request::{Operation, ProducerHello, Push},
    response::PushReply,
};

use crate::{
    history::{Event, Outcome, Shared},
    link::{Gone, Link},
    plan::{Identity, Part, Plan},
};

/// Unanswered pushes at most; the protocol allows 256.
fn unanswered_max(part: Part) -> usize {
    match part {
        // They count as waiting when they are answered, and few may wait.
        Part::Limited => 20,
        _ => 200,
    }
}

pub(crate) struct Producer<'a> {
    pub(crate) number: u16,
    pub(crate) plan: Plan,
    pub(crate) shared: &'a Shared,
    random: fastrand::Rng,
    id: Option<String>,
    next_seq: u64,
    /// Pushes that were sent and not answered, oldest first.
    unanswered: VecDeque<u64>,
}

impl<'a> Producer<'a> {
    pub(crate) fn new(number: u16, plan: Plan, shared: &'a Shared) -> Self {
        Self {
            number,
            plan,
            shared,
            random: fastrand::Rng::with_seed(plan.seed ^ u64::from(number) << 8),
            id: None,
            next_seq: 1,
            unanswered: VecDeque::new(),
        }
    }

    pub(crate) fn run(mut self) {
        let (mut life, mut address, _) = self.shared.server();
        loop {
            if let Ok(()) = self.serve(address) {
                return;
            }
            let Some(next) = self.shared.server_after(life) else {
                self.shared
                    .violation(format!("producer {} is stuck", self.number));
                return;
            };
            (life, address, _) = next;
        }
    }

    /// Pushes over one connection until it ends, or until there is nothing left to push.
    fn serve(&mut self, address: std::net::SocketAddr) -> Result<(), Gone> {
        let hello = ProducerHello {
            id: self.id.clone(),
        };
        let (mut link, reply) = Link::open(address, None, Some(hello))?;
        match reply {
            Ok(reply) => self.id = reply.producer,
            Err(error) => {
                let number = self.number;
                self.shared
                    .violation(format!("producer {number} is refused: {error}"));
                return Ok(());
            }
        }
        let mut in_flight = BTreeMap::new();
        for seq in self.unanswered.clone() {
            in_flight.insert(link.send(self.push(seq))?, seq);
        }
        loop {
            let part = Part::of(self.number);
            let target = self.random.usize(1..unanswered_max(part));
            while in_flight.len() < target && self.shared.may_push(part) {
                let seq = self.next_seq;
                // Number n is not sent before n − 256 was answered.
                if self
                    .unanswered
                    .front()
                    .is_some_and(|oldest| seq - oldest >= 256)
                {
                    break;
                }
                self.next_seq += 1;
                let (producer, count) = (self.number, self.plan.jobs_of_push(self.number, seq));
                self.shared.record(Event::PushSent {
                    producer,
                    seq,
                    count,
                });
                self.unanswered.push_back(seq);
                in_flight.insert(link.send(self.push(seq))?, seq);
            }
            if in_flight.is_empty() {
                return Ok(());
            }
            for _ in 0..self.random.usize(1..=in_flight.len()) {
                let (id, result) = link.reply()?;
                let seq = in_flight.remove(&id).expect("a reply to a push");
                match result {
                    Ok(body) => self.answered(seq, &body.read().expect("a reply to push")),
                    Err(error) => self.refused(seq, &error)?,
                }
            }
        }
    }

    fn answered(&mut self, seq: u64, reply: &PushReply) {
        answered(self.shared, self.number, seq, reply);
        self.unanswered.retain(|unanswered| *unanswered != seq);
    }

    fn refused(&self, seq: u64, error: &WireError) -> Result<(), Gone> {
        if error.code != ErrorCode::Draining && error.code != ErrorCode::Unavailable {
            let producer = self.number;
            self.shared
                .violation(format!("push {producer}/{seq} was refused: {error}"));
        }
        // It stays unanswered and is sent again to the next server.
        Err(Gone)
    }

    fn push(&self, seq: u64) -> Operation {
        let producer = self.number;
        Operation::Push(Push {
            seq: Some(seq),
            ..Push::of(jobs(self.plan, producer, seq))
        })
    }
}

/// The jobs of a push.
pub(crate) fn jobs(plan: Plan, producer: u16, seq: u64) -> Vec<JobSpec> {
    let spec = |index| {
        plan.spec(Identity {
            producer,
            seq,
            index,
        })
    };
    (0..plan.jobs_of_push(producer, seq)).map(spec).collect()
}

/// Records what became of a push.
pub(crate) fn answered(shared: &Shared, producer: u16, seq: u64, reply: &PushReply) {
    let outcomes = reply.results.iter().map(|result| {
        Some(Outcome {
            id: result.id?,
            is_existing: result.existing,
        })
    });
    match outcomes.collect() {
        Some(outcomes) => {
            shared.record(Event::PushAnswered {
                producer,
                seq,
                outcomes,
            });
        }
        None => shared.violation(format!("push {producer}/{seq} was refused: {reply:?}")),
    }
}
