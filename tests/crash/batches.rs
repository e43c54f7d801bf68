//! Batches: opened, filled by two pushes and committed one after the other, over every end of the
//! server; and what the history says of their members and callbacks.

use std::{collections::HashMap, net::SocketAddr};

use ganger_protocol::{
    BatchId, ErrorCode,
    batch::{BatchEvent, BatchOpen, BatchState, BatchView},
    request::{BatchList, BatchName, Operation, ProducerHello, Push},
    response::{BatchesReply, PushReply},
};
use serde::de::DeserializeOwned;

use crate::{
    check::{Job, Jobs},
    history::{Event, Shared},
    link::{Gone, Link},
    plan::{CALLBACKS, Identity, MEMBERS, Part, Plan},
    producer::{answered, jobs},
};

/// Pushes of a batch: the nth batch has the pushes 2n − 1 and 2n.
const PUSHES: u64 = 2;

pub(crate) struct Batcher<'a> {
    plan: Plan,
    shared: &'a Shared,
    producer: Option<String>,
    /// Of the batch that is under way, from 1.
    number: u64,
    is_asked: bool,
    /// It, once it is known.
    batch: Option<BatchId>,
    /// Its latest push that was sent, and that was answered.
    sent: u64,
    answered: u64,
}

impl<'a> Batcher<'a> {
    pub(crate) fn new(plan: Plan, shared: &'a Shared) -> Self {
        Self {
            plan,
            shared,
            producer: None,
            number: 1,
            is_asked: false,
            batch: None,
            sent: 0,
            answered: 0,
        }
    }

    pub(crate) fn run(mut self) {
        let (mut life, mut address, _) = self.shared.server();
        while let Err(Gone) = self.serve(address) {
            let Some(next) = self.shared.server_after(life) else {
                self.shared.violation("the batcher is stuck".to_owned());
                return;
            };
            (life, address, _) = next;
        }
    }

    /// Goes on over one connection until it ends, or until no batch is under way and none is wanted.
    fn serve(&mut self, address: SocketAddr) -> Result<(), Gone> {
        let hello = ProducerHello {
            id: self.producer.clone(),
        };
        let (mut link, reply) = Link::open(address, None, Some(hello))?;
        match reply {
            Ok(reply) => self.producer = reply.producer,
            Err(error) => {
                self.shared
                    .violation(format!("the batcher is refused: {error}"));
                return Err(Gone);
            }
        }
        loop {
            let Some(batch) = self.batch else {
                if !self.is_asked && !self.shared.may_push(Part::Member) {
                    return Ok(());
                }
                self.batch = Some(self.open(&mut link)?);
                continue;
            };
            if self.answered < PUSHES * self.number {
                self.fill(&mut link, batch)?;
                continue;
            }
            let commit = Operation::BatchCommit(BatchName { batch });
            let _: BatchView = self.ask(&mut link, commit)?;
            self.number += 1;
            (self.is_asked, self.batch) = (false, None);
        }
    }

    /// The next batch: one whose opening was asked for and not answered is in the list, or is not.
    fn open(&mut self, link: &mut Link) -> Result<BatchId, Gone> {
        let description = self.number.to_string();
        if std::mem::replace(&mut self.is_asked, true) {
            let list = Operation::BatchList(BatchList {
                settled: false,
                cursor: None,
                limit: 1_000,
            });
            let reply: BatchesReply = self.ask(link, list)?;
            let mut batches = reply.batches.iter();
            if let Some(batch) = batches.find(|batch| batch.description == description) {
                return Ok(batch.id);
            }
        }
        let job = |event| Some(Box::new(self.plan.spec(callback(self.number, event))));
        let open = BatchOpen {
            description,
            on_complete: job(BatchEvent::Complete),
            on_success: job(BatchEvent::Success),
            on_settled: job(BatchEvent::Settled),
            ..BatchOpen::default()
        };
        let opened: BatchView = self.ask(link, Operation::BatchOpen(Box::new(open)))?;
        Ok(opened.id)
    }

    fn fill(&mut self, link: &mut Link, batch: BatchId) -> Result<(), Gone> {
        let seq = self.answered + 1;
        let mut jobs = jobs(self.plan, MEMBERS, seq);
        for job in &mut jobs {
            job.batch = Some(batch);
        }
        if self.sent < seq {
            self.sent = seq;
            self.shared.record(Event::PushSent {
                producer: MEMBERS,
                seq,
                count: self.plan.jobs_of_push(MEMBERS, seq),
            });
        }
        let push = Push {
            seq: Some(seq),
            ..Push::of(jobs)
        };
        let reply: PushReply = self.ask(link, Operation::Push(push))?;
        answered(self.shared, MEMBERS, seq, &reply);
        self.answered = seq;
        Ok(())
    }

    fn ask<T: DeserializeOwned>(&self, link: &mut Link, operation: Operation) -> Result<T, Gone> {
        let op = operation.op();
        link.send(operation)?;
        match link.reply()?.1 {
            Ok(body) => Ok(body.read().expect("a reply to this request")),
            Err(error) => {
                if !matches!(error.code, ErrorCode::Draining | ErrorCode::Unavailable) {
                    let number = self.number;
                    self.shared
                        .violation(format!("{op} of batch {number} was refused: {error}"));
                }
                Err(Gone)
            }
        }
    }
}

fn callback(number: u64, event: BatchEvent) -> Identity {
    Identity {
        producer: CALLBACKS,
        seq: number,
        index: event as u16,
    }
}

/// Each batch is settled, its members are those that were pushed, and each of its events has pushed
/// one job, not before it happened. That none has two is seen where a job is told by its identity.
pub(crate) fn check(plan: Plan, jobs: &Jobs, views: &[BatchView], broken: &mut Vec<String>) {
    let mut members: HashMap<u64, Vec<(Identity, &Job)>> = HashMap::new();
    for (identity, job) in &jobs.known {
        if identity.producer == MEMBERS {
            let number = identity.seq.div_ceil(PUSHES);
            members.entry(number).or_default().push((*identity, job));
        }
    }
    for view in views {
        let number = view.description.parse().unwrap_or(0);
        let members = members.remove(&number).unwrap_or_default();
        if let Err(rule) = one_batch(plan, jobs, number, &members, view) {
            broken.push(format!("I14: {rule}: {view:?}"));
        }
    }
    for (number, members) in members {
        broken.push(format!("I14: batch {number} is gone: {members:?}"));
    }
}

fn one_batch(
    plan: Plan,
    jobs: &Jobs,
    number: u64,
    members: &[(Identity, &Job)],
    view: &BatchView,
) -> Result<(), String> {
    let counters = &view.counters;
    if view.state != BatchState::Settled || counters.pending > 0 {
        return Err("it is not settled".to_owned());
    }
    let (least, most) = members.iter().fold((0, 0), |(least, most), (_, job)| {
        let (certain, possible) = job.acks();
        (least + u64::from(certain), most + u64::from(possible))
    });
    if counters.total != members.len() as u64 || !(least..=most).contains(&counters.done) {
        let count = members.len();
        return Err(format!("{count} members, {least} to {most} done"));
    }
    for event in BatchEvent::ALL {
        let word = event.as_str();
        let called = jobs.known.get(&callback(number, event));
        let shown = view.callback(event).and_then(|callback| callback.job);
        let is_due = event != BatchEvent::Success || counters.done == counters.total;
        if called.is_some() != is_due || called.and_then(|job| job.id) != shown {
            return Err(format!("{word} is due: {is_due}, and pushed {called:?}"));
        }
        let Some(told) = called.and_then(|job| job.is_there) else {
            continue;
        };
        let is_early = |(identity, job): &&(Identity, &Job)| match event {
            BatchEvent::Complete => job.may_be_tried() > told,
            _ => job.may_be_over(plan.max_attempts(*identity)) > told,
        };
        if let Some(member) = members.iter().find(is_early) {
            return Err(format!("{word} came before its time: {member:?}"));
        }
    }
    Ok(())
}
