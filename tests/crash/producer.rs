//! A producer: numbered pushes, many unanswered at a time, sent again under their numbers after
//! every end of the server, until each was answered.

use std::collections::{BTreeMap, VecDeque};

use ganger_protocol::{
    ErrorCode, WireError,
    request::{Operation, ProducerHello, Push},
    response::PushReply,
};

use crate::{
    history::{Event, Shared},
    link::{Gone, Link},
    plan::{Identity, Plan},
};

/// Unanswered pushes at most; the protocol allows 256.
const UNANSWERED_MAX: usize = 200;

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
            let target = self.random.usize(1..UNANSWERED_MAX);
            while in_flight.len() < target && self.shared.may_push() {
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
        let ids: Option<Box<[_]>> = reply.results.iter().map(|result| result.id).collect();
        let producer = self.number;
        match ids {
            Some(ids) => {
                self.shared
                    .record(Event::PushAnswered { producer, seq, ids });
            }
            None => self
                .shared
                .violation(format!("push {producer}/{seq} was refused: {reply:?}")),
        }
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
        let identities = (0..self.plan.jobs_of_push(producer, seq)).map(|index| Identity {
            producer,
            seq,
            index,
        });
        Operation::Push(Push {
            jobs: identities
                .map(|identity| self.plan.spec(identity))
                .collect(),
            atomic: false,
            spread_ms: None,
            by: None,
            seq: Some(seq),
        })
    }
}
