//! Everything that was said and answered, in one order: an event is recorded before its request is
//! sent, or after its reply was read, so that "recorded before" implies "happened before" whenever
//! a request was recorded after another's reply.

use std::{
    net::SocketAddr,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ganger_protocol::{JobId, LeaseId, job::JobState};

use ganger_server::clock::Stopwatch;

use crate::plan::{Identity, Part};

/// Answers to a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Ack,
    Fail,
    Discard,
    Release,
    Extend,
}

impl Answer {
    /// Whether the job is over with it.
    pub(crate) fn ends(self) -> bool {
        matches!(self, Self::Ack | Self::Discard)
    }
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
    /// Its outcomes, in the order of its jobs.
    PushAnswered {
        producer: u16,
        seq: u64,
        outcomes: Box<[Outcome]>,
    },
    /// A lease was read from a reply to a fetch that was sent at `asked`; times of the campaign.
    Granted {
        life: u64,
        job: JobId,
        lease: LeaseId,
        failures: u32,
        identity: Identity,
        asked: Duration,
        told: Duration,
    },
    /// An answer is sent for the first time.
    AnswerSent {
        job: JobId,
        lease: LeaseId,
        answer: Answer,
        identity: Identity,
    },
    /// The answer that was recorded at `sent` was answered; `again`: it had been sent again.
    Answered {
        sent: usize,
        verdict: Verdict,
        again: bool,
    },
    /// A resumed session was told that it does not hold this lease.
    Disowned { job: JobId, lease: LeaseId },
    /// So many limited jobs may run from now on: it was answered, and its server ended at once.
    LimitSet { max_running: u32 },
    /// From now on rates may be faster.
    RateLifted,
    /// A server has ended.
    LifeEnded,
}

/// What became of one pushed job.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    pub(crate) id: JobId,
    /// It is the job that holds the unique key; none was made.
    pub(crate) is_existing: bool,
}

/// What all threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    watch: Stopwatch,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) events: Vec<Event>,
    pub(crate) violations: Vec<String>,
    /// Acknowledged operations: jobs pushed, leases granted, leases answered.
    pub(crate) operations: u64,
    /// Jobs of answered pushes that are not settled, about; by part.
    pub(crate) backlog: [i64; 5],
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

/// Producers wait while so many jobs of their part are not settled.
fn backlog_max(part: Part) -> i64 {
    match part {
        Part::Plain => 3_000,
        // Those that wait for a key wait long.
        Part::Limited => 150,
        Part::Member | Part::Callback | Part::Tick => 100,
    }
}

impl Shared {
    pub(crate) fn new(address: SocketAddr) -> Self {
        let state = State {
            events: Vec::new(),
            violations: Vec::new(),
            operations: 0,
            backlog: [0; 5],
            life: 1,
            address,
            phase: Phase::Load,
            last_end: End::Killed,
        };
        Self {
            state: Mutex::new(state),
            changed: Condvar::new(),
            watch: Stopwatch::start(),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time since the campaign began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.watch.elapsed()
    }

    /// Records an event and answers with its place.
    pub(crate) fn record(&self, event: Event) -> usize {
        let mut state = self.lock();
        let (operations, part, backlog) = match &event {
            Event::PushAnswered {
                producer, outcomes, ..
            } => {
                let made = outcomes.iter().filter(|outcome| !outcome.is_existing);
                let made = i64::try_from(made.count()).unwrap_or(0);
                (outcomes.len(), Part::of(*producer), made)
            }
            Event::Granted { identity, .. } => (1, identity.part(), 0),
            Event::Answered { sent, verdict, .. } => {
                let Some(Event::AnswerSent {
                    answer, identity, ..
                }) = state.events.get(*sent)
                else {
                    unreachable!("an answer that was not sent");
                };
                let settled = match verdict {
                    Verdict::Applied(state) => answer.ends() || *state == Some(JobState::Dead),
                    // Settled before its server ended, which nobody was told.
                    Verdict::Lost(state) => state == "gone" || state == "dead",
                    Verdict::Already => false,
                };
                (1, identity.part(), -i64::from(settled))
            }
            _ => (0, Part::Plain, 0),
        };
        state.operations += operations as u64;
        state.backlog[part as usize] += backlog;
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
    pub(crate) fn may_push(&self, part: Part) -> bool {
        let is_met = |state: &State| state.backlog[part as usize] < backlog_max(part);
        let state = self.wait(|state| is_met(state) || state.phase != Phase::Load);
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
