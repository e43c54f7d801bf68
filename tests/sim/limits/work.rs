//! What the workers under limits do: they fetch, waiting and not, with acks that ride along, answer in
//! every way, break their connections and come back with some of their leases.

use ganger_protocol::{
    DurationMs, QueuePattern,
    request::{
        Ack, AckItem, Fail, FailItem, Fetch, Heartbeat, LeaseRef, Operation, Release, ReleaseItem,
        Resume, SessionHello,
    },
};

use super::{
    AskedFetch, AskedLimit,
    known::{QUEUES, queue_name},
    namespace,
};
use crate::{
    clients::Asked,
    history::Checked,
    world::{From, World},
};

impl World {
    /// A worker opens its session, answers for what it has, or fetches.
    pub fn work_under_limits(&mut self, nth: usize, is_calm: bool) -> Checked {
        let Some(from) = self.limits_worker(nth) else {
            return self.open_limits(nth, is_calm);
        };
        let worker = &self.limits.workers[nth];
        let (count, is_fetching) = (worker.held.len(), worker.is_fetching);
        if count > 0 && (is_calm || self.rng.u32(..3) > 0) {
            let which = self.rng.usize(..count);
            return self.answer_limited(nth, &from, which, is_calm);
        }
        if is_fetching || !is_calm && self.rng.u32(..8) == 0 {
            let heartbeat = Operation::Heartbeat(Heartbeat {});
            return self.ask_as_worker(
                &from,
                heartbeat,
                AskedLimit::Heartbeat(nth, from.connection),
            );
        }
        self.fetch_under_limits(nth, &from, is_calm)
    }

    pub(super) fn limits_worker(&self, nth: usize) -> Option<From> {
        let worker = &self.limits.workers[nth];
        Some(From {
            connection: worker.connection?,
            namespace: namespace(),
            session: Some(worker.session?),
            producer: None,
        })
    }

    /// Every request of a worker keeps its session alive.
    fn ask_as_worker(&mut self, from: &From, operation: Operation, asked: AskedLimit) -> Checked {
        let now = self.elapsed();
        let seen = from
            .session
            .and_then(|it| self.limits.known.seen.get_mut(&it));
        if let Some((at, ttl)) = seen
            && now < *at + *ttl
        {
            *at = now;
        }
        self.request(from, operation, Asked::Limit(asked))
    }

    /// Opens a session or resumes it, with the leases that the worker names.
    pub(super) fn open_limits(&mut self, nth: usize, is_calm: bool) -> Checked {
        let from = self.limits_from();
        let ttl = match is_calm {
            true => DurationMs::from_hours(1),
            false => DurationMs([4_000, 20_000][self.rng.usize(..2)]),
        };
        if !is_calm && self.rng.u32(..3) == 0 {
            // One is dropped on the way.
            self.limits.workers[nth].held.pop();
        }
        let worker = &self.limits.workers[nth];
        let held: Vec<LeaseRef> = worker.held.iter().map(|(_, lease)| *lease).collect();
        let earlier = worker.session;
        let resume = earlier.map(|id| Resume {
            id,
            secret: String::new(),
            held: held.clone(),
        });
        let hello = SessionHello {
            ttl_ms: Some(ttl),
            resume,
            ..SessionHello::default()
        };
        // What is not named is released, and what was granted on the way is, too.
        let mut own = earlier.map_or(Vec::new(), |it| self.limits.known.end_session(it));
        let suspended = std::mem::take(&mut self.limits.suspended);
        let (again, others) = suspended
            .into_iter()
            .partition(|it| Some(it.session) == earlier);
        self.limits.suspended = others;
        own.extend::<Vec<_>>(again);
        let boots = self.limits.boots;
        let Some(opened) = self.open_session(&from, hello)? else {
            return Ok(());
        };
        if self.limits.boots != boots {
            return Ok(());
        }
        self.limits.lose(&opened.lost);
        if Some(opened.id) == earlier {
            own.retain(|live| held.contains(&live.lease) && !opened.lost.contains(&live.lease));
            self.limits.known.confirm(own);
        }
        let now = self.elapsed();
        self.limits
            .known
            .seen
            .insert(opened.id, (now, opened.ttl.0));
        let worker = &mut self.limits.workers[nth];
        worker.connection = Some(from.connection);
        worker.session = Some(opened.id);
        Ok(())
    }

    fn fetch_under_limits(&mut self, nth: usize, from: &From, is_calm: bool) -> Checked {
        let (Some(session), rng) = (from.session, &mut self.rng) else {
            return Ok(());
        };
        let shapes: [&[usize]; 4] = [&[0], &[1], &[1, 0], &[2, 0, 1]];
        let mut queues = shapes[if is_calm { 3 } else { rng.usize(..4) }].to_vec();
        let is_weighted = queues.len() == 2 && rng.bool();
        let is_all = queues.len() == QUEUES.len();
        let max = if is_calm { 8 } else { rng.u32(1..6) };
        let wait = [0, 0, 0, 500, 3_000][if is_calm { 0 } else { rng.usize(..5) }];
        let patterns = match is_all {
            true => vec!["*".parse().expect("a legal pattern")],
            false => {
                let names = queues
                    .iter()
                    .map(|queue| QueuePattern::Name(queue_name(*queue)));
                names.collect()
            }
        };
        queues.sort_unstable();
        let mut acks = Vec::new();
        if !is_calm && rng.u32(..4) == 0 {
            acks.extend(self.limits.workers[nth].held.pop());
        }
        for (_, lease) in &acks {
            self.limits.known.end(*lease);
        }
        let fetch = Fetch {
            queues: patterns,
            weights: if is_weighted { vec![1, 2] } else { Vec::new() },
            max,
            wait_ms: DurationMs(wait),
            acks: acks
                .iter()
                .map(|(_, it)| AckItem::of(it.job, it.lease))
                .collect(),
            ..Fetch::default()
        };
        let asked = AskedFetch {
            worker: nth,
            connection: from.connection,
            session,
            queues,
            max: max as usize,
            is_direct: wait == 0 && acks.is_empty(),
            stands: false,
            acks,
            at: self.elapsed(),
            changes: self.limits.known.changes,
        };
        self.limits.workers[nth].is_fetching = true;
        self.trace.note(
            self.elapsed(),
            "worker {} of limits fetches {} of {} queues and waits {} ms, {} acks ride along",
            &[
                nth as u64,
                u64::from(max),
                asked.queues.len() as u64,
                wait,
                asked.acks.len() as u64,
            ],
        );
        let asked = AskedLimit::Fetch(asked);
        self.ask_as_worker(from, Operation::Fetch(fetch), asked)
    }

    fn answer_limited(&mut self, nth: usize, from: &From, which: usize, is_calm: bool) -> Checked {
        let (token, lease) = self.limits.workers[nth].held.swap_remove(which);
        let drawn = if is_calm { 9 } else { self.rng.u32(..10) };
        self.trace.note(
            self.elapsed(),
            "limited {} of lease {} is answered ({}: 0 to 2 fail, 3, 4 release, else ack)",
            &[token as u64, lease.lease.0, u64::from(drawn)],
        );
        self.limits.known.end(lease);
        let grants = self.limits.known.jobs[token].grants;
        let operation = match drawn {
            0..3 => {
                let fail = FailItem {
                    job: lease.job,
                    lease: lease.lease,
                    kind: "error".to_owned(),
                    message: String::new(),
                    backtrace: String::new(),
                    retry_in_ms: None,
                    dead: drawn == 2 && self.rng.bool(),
                    discard: false,
                };
                Operation::Fail(Fail { leases: vec![fail] })
            }
            3 | 4 => {
                let release = ReleaseItem {
                    job: lease.job,
                    lease: lease.lease,
                    delay_ms: (drawn == 4).then(|| DurationMs(self.rng.u64(..3_000))),
                };
                let leases = vec![release];
                Operation::Release(Release { leases })
            }
            _ => {
                let leases = vec![AckItem::of(lease.job, lease.lease)];
                Operation::Ack(Ack { leases })
            }
        };
        self.ask_as_worker(from, operation, AskedLimit::Answer(token, grants))
    }

    /// A worker dies, or its connection breaks.
    pub(super) fn disturb_limited(&mut self) -> Checked {
        let nth = self.rng.usize(..2);
        if self.rng.bool() {
            return self.end_limits_worker(nth);
        }
        let now = self.elapsed();
        let worker = &mut self.limits.workers[nth];
        let (connection, session) = (worker.connection.take(), worker.session);
        if std::mem::take(&mut worker.is_fetching) {
            self.limits.known.abandon(now);
        }
        match connection {
            Some(connection) => self.detach(connection, session),
            None => Ok(()),
        }
    }

    /// A worker dies.
    pub(super) fn end_limits_worker(&mut self, nth: usize) -> Checked {
        let now = self.elapsed();
        let worker = &self.limits.workers[nth];
        let (connection, session) = (worker.connection, worker.session);
        self.trace
            .note(now, "worker {} of limits dies", &[nth as u64]);
        self.limits.forget_worker(nth, now);
        match connection {
            Some(connection) => self.detach(connection, session),
            None => Ok(()),
        }
    }
}
