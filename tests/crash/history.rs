//! Everything that was said and answered, in one order: an event is recorded before its request is
//! sent, or after its reply was read, so that "recorded before" implies "happened before" whenever
//! a request was recorded after another's reply.

use std::{
    net::SocketAddr,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ganger_protocol::{JobId, LeaseId, job::JobState};

use crate::plan::Identity;

/// Answers to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Ack,
    Fail,
    Discard,
    Release,
    Extend,
}

/// What the server says of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Applied(Option<JobState>),
    Already,
    /// `lease_lost` with this state of the job.
    Lost(String),
}

#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// A push is sent for the first time.
    PushSent { producer: u16, seq: u64, count: u16 },
    /// Its ids, in the order of its jobs.
    PushAnswered {
        producer: u16,
        seq: u64,
        ids: Box<[JobId]>,
    },
    /// A lease was read from a reply.
    Granted {
        life: u64,
        job: JobId,
        lease: LeaseId,
        failures: u32,
        identity: Identity,
    },
    /// An answer is sent for the first time.
    AnswerSent {
        job: JobId,
        lease: LeaseId,
        answer: Answer,
    },
    /// The answer that was recorded at `sent` was answered; `again`: it had been sent again.
    Answered {
        sent: usize,
        verdict: Verdict,
        again: bool,
    },
    /// A resumed session was told that it does not hold this lease.
    Disowned { job: JobId, lease: LeaseId },
    /// A server has ended.
    LifeEnded,
}

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) events: Vec<Event>,
    pub(crate) violations: Vec<String>,
    /// Acknowledged operations: jobs pushed, leases granted, leases answered.
    pub(crate) operations: u64,
    /// Jobs of answered pushes that are not settled, about.
    pub(crate) backlog: i64,
    /// Counts the servers; each has its own address.
    pub(crate) life: u64,
    pub(crate) address: SocketAddr,
    pub(crate) phase: Phase,
    /// How the last server ended, for those who come back.
    pub(crate) last_end: End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    /// Push and work.
    Load,
    /// Push nothing new; settle everything.
    Drain,
    /// Go home.
    Over,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Killed,
    Terminated,
}

/// No thread waits longer for a sign of life; then the campaign has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// Producers wait while so many jobs are not settled.
const BACKLOG_MAX: i64 = 3_000;

impl Shared {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let state = State {
            events: Vec::new(),
            violations: Vec::new(),
            operations: 0,
            backlog: 0,
            life: 1,
            address,
            phase: Phase::Load,
            last_end: End::Killed,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an event and answers with its place.
    pub(crate) fn record(&self, event: Event) -> usize {
        let mut state = self.lock();
        let (operations, backlog) = match &event {
            Event::PushAnswered { ids, .. } => (ids.len(), i64::try_from(ids.len()).unwrap_or(0)),
            Event::Granted { .. } => (1, 0),
            Event::Answered { sent, verdict, .. } => match (verdict, state.events.get(*sent)) {
                (
                    Verdict::Applied(_),
                    Some(Event::AnswerSent {
                        answer: Answer::Ack | Answer::Discard,
                        ..
                    }),
                ) => (1, -1),
                (Verdict::Applied(Some(JobState::Dead)), _) => (1, -1),
                // Settled before its server ended, which nobody was told.
                (Verdict::Lost(state), _) if state == "gone" || state == "dead" => (1, -1),
                _ => (1, 0),
            },
            _ => (0, 0),
        };
        state.operations += operations as u64;
        state.backlog += backlog;
        state.events.push(event);
        let place = state.events.len() - 1;
        drop(state);
        self.changed.notify_all();
        place
    }

    pub(crate) fn violation(&self, text: String) {
        eprintln!("violation: {text}");
        self.lock().violations.push(text);
    }

    pub(crate) fn phase(&self) -> Phase {
        self.lock().phase
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.lock().phase = phase;
        self.changed.notify_all();
    }

    /// The server after `life`, or this one while it lives: its number, address, and how the one
    /// before it ended.
    pub(crate) fn server_after(&self, life: u64) -> Option<(u64, SocketAddr, End)> {
        let state = self.wait(|state| state.life > life || state.phase == Phase::Over)?;
        // Whoever slept through a whole server does not know how that one ended.
        let end = match state.life - life {
            0 | 1 => state.last_end,
            _ => End::Killed,
        };
        (state.life > life).then_some((state.life, state.address, end))
    }

    pub(crate) fn server(&self) -> (u64, SocketAddr, End) {
        let state = self.lock();
        (state.life, state.address, state.last_end)
    }

    pub(crate) fn began(&self, address: SocketAddr, last_end: End) {
        let mut state = self.lock();
        state.life += 1;
        state.address = address;
        state.last_end = last_end;
        drop(state);
        self.changed.notify_all();
    }

    /// Waits while there is too much to do already; whether pushing goes on.
    pub(crate) fn may_push(&self) -> bool {
        let state = self.wait(|state| state.backlog < BACKLOG_MAX || state.phase != Phase::Load);
        state.is_some_and(|state| state.phase == Phase::Load)
    }

    /// Waits until so many operations were acknowledged.
    pub(crate) fn wait_operations(&self, count: u64) -> Option<()> {
        self.wait(|state| state.operations >= count)
            .map(|_state| ())
    }

    /// Waits for a condition; `None` when nothing at all has happened for too long.
    fn wait(&self, is_met: impl Fn(&State) -> bool) -> Option<MutexGuard<'_, State>> {
        let mut state = self.lock();
        while !is_met(&state) {
            let seen = (state.events.len(), state.life);
            let (guard, timeout) = self
                .changed
                .wait_timeout(state, PATIENCE)
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
            if timeout.timed_out() && seen == (state.events.len(), state.life) {
                return None;
            }
        }
        Some(state)
    }
}
