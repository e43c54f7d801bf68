//! What comes out of jobs, in a namespace of its own: they are cancelled while they wait and while
//! they run, say how far they have come, are acked with results, kept for a time, and waited for.
//!
//! What was told of a job is remembered: an end is told once and for all, a cancelled job is not
//! granted again, the next attempt gets the cursor that was told last, what is to be kept is there
//! for its time and not longer. Crashes take back only what was not told.

use std::collections::BTreeSet;

use ganger_engine::command::ConnectionId;
use ganger_protocol::{
    Bytes, DurationMs, ErrorCode, JobId, JobSpec, LeaseId, NamespaceName, RetryPolicy, SessionId,
    Timestamp, WireError,
    job::{GrantedJob, JobState, JobView, Unique},
    progress::{Progress, ProgressItem, Wait, WaitReply},
    queue::{QueueSet, Setting},
    request::{
        Ack, AckItem, Fail, FailItem, Fetch, Heartbeat, JobCancel, JobGet, LeaseRef, Operation,
        Push, QueueList, Release, ReleaseItem, Resume, SessionHello,
    },
    response::{Counters, Notice, PushResult, QueueView, ReplyBody},
};

use crate::{
    clients::Asked,
    history::Checked,
    world::{From, Server, World},
};

/// Jobs of a run at most.
const JOBS_MAX: usize = 120;

/// The queue that keeps but so many jobs of a state, and how many.
const BOUNDED: &str = "few";
const BOUND: u64 = 3;

/// What a request was; the numbers are those of [`crate::history::History::operation`].
#[derive(Debug)]
pub enum AskedOutcome {
    Push(std::ops::Range<usize>),
    /// When, and by which connection: what a dead worker is granted nobody hears of.
    Fetch(u64, ConnectionId),
    /// By which lease, and when by the wall clock.
    Ack(usize, LeaseRef, u64),
    /// The same, and whether the job was told to be cancelled before.
    End(usize, LeaseRef, u64, bool),
    /// The cursor.
    Progress(usize, u64),
    /// An answer of a lease that is over.
    Stale,
    /// When by the wall clock, and whether the worker was there to be told.
    Cancel(usize, u64, bool),
    /// Whether its end had been told, and until when by the monotonic clock it may wait.
    Wait(usize, bool, u64),
    /// When by the wall clock, where all that was due then was done.
    Get(usize, Option<u64>),
    Heartbeat(Vec<LeaseRef>),
    Set,
}

/// What is known of these jobs.
#[derive(Debug, Default)]
pub struct Outcomes {
    all: Vec<Known>,
    worker: Option<(ConnectionId, SessionId)>,
    session: Option<SessionId>,
    held: Vec<(usize, LeaseRef)>,
    /// Leases that are over, as told: a crash does not bring them back.
    stale: Vec<LeaseRef>,
    /// Leases of which the worker heard that their jobs are cancelled.
    heard: BTreeSet<LeaseId>,
    /// Leases that the worker was told to have lost, which may be before it was told to have them.
    lost: BTreeSet<LeaseId>,
    is_fetching: bool,
    is_bound: bool,
}

#[derive(Debug, Clone, Default)]
struct Known {
    id: Option<JobId>,
    is_void: bool,
    is_bounded: bool,
    key: Option<u8>,
    /// As its push and as its ack say.
    retain: Option<u64>,
    ack_retain: Option<u64>,
    expires: bool,
    /// How it ended, as told, and when that was told.
    over: Option<(JobState, u64)>,
    /// When it ended, where that is known.
    ended_at: Option<u64>,
    /// Something was asked that may have ended it.
    may_be_over: bool,
    /// It was told that it is cancelled and runs on.
    flagged: Option<u64>,
    /// The cursor that was told last, and those behind it without an answer.
    cursor: u64,
    unanswered: BTreeSet<u64>,
    last_cursor: u64,
}

impl Known {
    /// How long it is kept from its end on.
    fn retention(&self, state: JobState) -> u64 {
        let own = match state {
            JobState::Done => self.ack_retain.or(self.retain),
            _ => self.retain,
        };
        own.unwrap_or(0)
    }
}

impl Outcomes {
    /// All connections are gone.
    pub fn server_ended(&mut self) {
        let session = self.worker.take().map(|(_, session)| session);
        self.session = session.or(self.session);
        self.is_fetching = false;
        self.heard.clear();
        self.lost.clear();
    }

    /// Whether a connection is that of the worker here.
    pub fn is_own(&self, connection: ConnectionId) -> bool {
        self.worker.is_some_and(|(own, _)| own == connection)
    }

    /// The worker is told something.
    pub fn heard(&mut self, notice: &Notice) {
        match notice {
            Notice::Cancel { leases } => self.heard.extend(leases.iter().map(|it| it.lease)),
            Notice::Lost { leases } => {
                self.lost.extend(leases.iter().map(|it| it.lease));
                self.held.retain(|(_, held)| !leases.contains(held));
            }
            _ => {}
        }
    }

    fn forget_worker(&mut self) {
        self.worker = None;
        self.session = None;
        self.held.clear();
        self.is_fetching = false;
    }
}

fn namespace() -> NamespaceName {
    "outcome".parse().expect("a legal name")
}

/// The result of a job, which follows from its number.
fn result(token: usize) -> Bytes {
    let bytes = if token.is_multiple_of(7) { 11_000 } else { 9 };
    vec![token.to_le_bytes()[0]; bytes].into()
}

impl World {
    pub fn step_outcome(&mut self) -> Checked {
        if !self.is_up() {
            return Ok(());
        }
        match self.rng.u32(..30) {
            0..5 => self.push_outcomes(),
            5..8 => self.cancel_outcome(),
            8..12 => self.wait_for_outcome(),
            12 | 13 => self.look_at_outcome(),
            15 => self.look_at_waits(),
            14 if self.rng.u32(..4) == 0 => {
                self.trace
                    .note(self.elapsed(), "the worker of outcomes dies", &[]);
                self.outcomes.forget_worker();
                Ok(())
            }
            _ => self.work_on_outcomes(false),
        }
    }

    fn outcomes_from(&mut self) -> From {
        From {
            connection: self.connect(),
            namespace: namespace(),
            session: None,
            producer: None,
        }
    }

    fn ask_outcome(&mut self, operation: Operation, asked: AskedOutcome) -> Checked {
        let from = self.outcomes_from();
        self.request(&from, operation, Asked::Outcome(asked))
    }

    fn push_outcomes(&mut self) -> Checked {
        let first = self.outcomes.all.len();
        if first >= JOBS_MAX {
            return Ok(());
        }
        let count = self.rng.usize(1..5);
        let jobs = (first..first + count).map(|token| self.new_outcome(token));
        let push = Push::of(jobs.collect());
        self.trace.note(
            self.elapsed(),
            "{} jobs are pushed from outcome {}",
            &[count as u64, first as u64],
        );
        let asked = AskedOutcome::Push(first..first + count);
        self.ask_outcome(Operation::Push(push), asked)?;
        if !self.outcomes.is_bound {
            let set = QueueSet {
                retained_max: Setting::To(BOUND),
                ..QueueSet::of(BOUNDED.parse().expect("a legal name"))
            };
            let set = Operation::QueueSet(Box::new(set));
            self.ask_outcome(set, AskedOutcome::Set)?;
        }
        Ok(())
    }

    fn new_outcome(&mut self, token: usize) -> JobSpec {
        let wall = self.clock.now().wall.0;
        let rng = &mut self.rng;
        let times = [None, None, Some(0), Some(2_000), Some(3_600_000)];
        let known = Known {
            is_bounded: rng.u32(..4) == 0,
            key: (rng.u32(..4) == 0).then(|| rng.u8(..2)),
            retain: times[rng.usize(..times.len())],
            ack_retain: times[rng.usize(..times.len())],
            expires: rng.u32(..5) == 0,
            ..Known::default()
        };
        let name = if known.is_bounded { BOUNDED } else { "many" };
        let mut payload = (token as u64).to_be_bytes().to_vec();
        payload.resize(if rng.u32(..10) == 0 { 9_000 } else { 8 }, 7);
        let spec = JobSpec {
            queue: name.parse().expect("a legal name"),
            max_attempts: Some(rng.u32(1..5)),
            backoff: Some(Box::new(RetryPolicy::fixed(DurationMs(rng.u64(..2_000))))),
            timeout_ms: Some(DurationMs(rng.u64(2_000..20_000))),
            delay_ms: (rng.u32(..4) == 0).then(|| DurationMs(rng.u64(..4_000))),
            expires_at: known.expires.then(|| Timestamp(wall + rng.u64(..9_000))),
            retain_ms: known.retain.map(DurationMs),
            unique: known.key.map(|key| {
                let key = format!("key:{key}").parse().expect("a legal name");
                Box::new(Unique::named(key))
            }),
            ..JobSpec::new("outcome".parse().expect("a legal name"), payload)
        };
        self.outcomes.all.push(known);
        spec
    }

    /// One of the jobs whose ids are known, rather a late one.
    fn some_outcome(&mut self) -> Option<(usize, JobId)> {
        let all = self.outcomes.all.iter().enumerate();
        let known: Vec<_> = all.filter_map(|(nth, it)| Some((nth, it.id?))).collect();
        let from = match self.rng.bool() {
            true => known.len().saturating_sub(8),
            false => 0,
        };
        (!known.is_empty()).then(|| known[self.rng.usize(from..known.len())])
    }

    fn cancel_outcome(&mut self) -> Checked {
        let Some((token, id)) = self.some_outcome() else {
            return Ok(());
        };
        let grace_ms = [0, 1_000, 10_000, 30_000][self.rng.usize(..4)];
        self.trace.note(
            self.elapsed(),
            "outcome {} is cancelled, with a grace of {} ms",
            &[token as u64, grace_ms],
        );
        self.outcomes.all[token].may_be_over = true;
        let cancel = JobCancel {
            grace_ms: DurationMs(grace_ms),
            ..JobCancel::new(vec![id])
        };
        let is_connected = self.outcomes.worker.is_some();
        let asked = AskedOutcome::Cancel(token, self.clock.now().wall.0, is_connected);
        self.ask_outcome(Operation::JobCancel(cancel), asked)
    }

    fn wait_for_outcome(&mut self) -> Checked {
        let Some((token, job)) = self.some_outcome() else {
            return Ok(());
        };
        let ms = [0, 500, 8_000, 60_000][self.rng.usize(..4)];
        let was_over = self.outcomes.all[token].over.is_some();
        let until = self.clock.now().mono.0 + ms;
        let wait_ms = DurationMs(ms);
        let asked = AskedOutcome::Wait(token, was_over, until);
        self.ask_outcome(Operation::Wait(Wait { job, wait_ms }), asked)
    }

    fn look_at_outcome(&mut self) -> Checked {
        let Some((token, job)) = self.some_outcome() else {
            return Ok(());
        };
        let get = Operation::JobGet(JobGet { job });
        let settled_at = self.settled_at();
        self.ask_outcome(get, AskedOutcome::Get(token, settled_at))
    }

    /// The time by the wall clock, where the server has nothing to do.
    fn settled_at(&self) -> Option<u64> {
        let wall = self.clock.now().wall.0;
        self.is_idle().then_some(wall)
    }

    /// Nobody waits for a job that is over, when the server has nothing to do and nothing to write.
    fn look_at_waits(&mut self) -> Checked {
        let is_dirty = |server: &Server| server.core.is_dirty();
        if !self.is_idle() || self.server.as_ref().is_none_or(is_dirty) {
            return Ok(());
        }
        let waits = self.pending.values().filter(|it| !it.is_detached);
        let waits = waits.filter_map(|pending| match pending.asked {
            Asked::Outcome(AskedOutcome::Wait(token, ..)) => Some(token),
            _ => None,
        });
        for token in waits.collect::<Vec<_>>() {
            let Some(job) = self.outcomes.all[token].id else {
                continue;
            };
            let from = self.outcomes_from();
            self.request(&from, Operation::JobGet(JobGet { job }), Asked::Audit)?;
            let is_over = match self.clients.audited.take() {
                None => return Ok(()),
                Some(Ok(ReplyBody::Job(view))) => view.state.is_terminal(),
                Some(answer) => answer.is_err(),
            };
            if is_over {
                return Err(format!("outcome {token} is over, and somebody waits"));
            }
        }
        Ok(())
    }

    /// The worker opens its session, answers for what it has, or fetches.
    fn work_on_outcomes(&mut self, is_calm: bool) -> Checked {
        let Some((connection, session)) = self.outcomes.worker else {
            return self.open_outcomes(is_calm);
        };
        let from = From {
            connection,
            namespace: namespace(),
            session: Some(session),
            producer: None,
        };
        let count = self.outcomes.held.len();
        if count > 0 && (is_calm || self.rng.u32(..4) > 0) {
            let nth = self.rng.usize(..count);
            return self.answer_outcome(&from, nth, is_calm);
        }
        if self.rng.u32(..4) == 0 {
            let held = self.outcomes.held.iter();
            // What it holds now and was told to be cancelled, it is told again.
            let flagged = held.filter(|(token, _)| self.outcomes.all[*token].flagged.is_some());
            let flagged = flagged.map(|(_, lease)| *lease).collect();
            let asked = Asked::Outcome(AskedOutcome::Heartbeat(flagged));
            return self.request(&from, Operation::Heartbeat(Heartbeat {}), asked);
        }
        if let Some(lease) = self.outcomes.stale.last().copied()
            && self.rng.u32(..4) == 0
        {
            let leases = vec![ProgressItem {
                cursor: Some(Bytes::from_static(b"stale")),
                ..ProgressItem::of(lease.job, lease.lease)
            }];
            let asked = Asked::Outcome(AskedOutcome::Stale);
            return self.request(&from, Operation::Progress(Progress { leases }), asked);
        }
        if std::mem::replace(&mut self.outcomes.is_fetching, true) {
            return Ok(());
        }
        let fetch = Fetch {
            queues: vec!["*".parse().expect("a legal pattern")],
            max: 4,
            ..Fetch::default()
        };
        let operation = self.history.operation();
        let asked = Asked::Outcome(AskedOutcome::Fetch(operation, connection));
        self.request(&from, Operation::Fetch(fetch), asked)
    }

    fn open_outcomes(&mut self, is_calm: bool) -> Checked {
        let from = self.outcomes_from();
        let ttl = match is_calm {
            true => DurationMs::from_hours(1),
            false => DurationMs(20_000),
        };
        let held = self.outcomes.held.iter().map(|(_, lease)| *lease).collect();
        let resume = self.outcomes.session.map(|id| Resume {
            id,
            secret: String::new(),
            held,
        });
        let hello = SessionHello {
            ttl_ms: Some(ttl),
            resume,
            ..SessionHello::default()
        };
        if let Some(opened) = self.open_session(&from, hello)? {
            self.outcomes
                .held
                .retain(|(_, lease)| !opened.lost.contains(lease));
            self.outcomes.worker = Some((from.connection, opened.id));
        }
        Ok(())
    }

    fn answer_outcome(&mut self, from: &From, nth: usize, is_calm: bool) -> Checked {
        let (token, lease) = self.outcomes.held[nth];
        let drawn = if is_calm { 9 } else { self.rng.u32(..10) };
        let wall = self.clock.now().wall.0;
        if drawn < 4 {
            return self.report_outcome(from, token, lease);
        }
        self.outcomes.held.swap_remove(nth);
        let known = &mut self.outcomes.all[token];
        known.may_be_over = true;
        let is_flagged = known.flagged.is_some();
        self.trace.note(
            self.clock.elapsed(),
            "outcome {} of lease {} is answered ({}: 4, 5 fail, 6 release, else ack)",
            &[token as u64, lease.lease.0, u64::from(drawn)],
        );
        let end = AskedOutcome::End(token, lease, wall, is_flagged);
        let (operation, asked) = match drawn {
            4 | 5 => {
                let fail = FailItem {
                    job: lease.job,
                    lease: lease.lease,
                    kind: "error".to_owned(),
                    message: String::new(),
                    backtrace: String::new(),
                    retry_in_ms: None,
                    dead: false,
                    discard: false,
                };
                (Operation::Fail(Fail { leases: vec![fail] }), end)
            }
            6 => {
                let release = ReleaseItem {
                    job: lease.job,
                    lease: lease.lease,
                    delay_ms: None,
                };
                let leases = vec![release];
                (Operation::Release(Release { leases }), end)
            }
            _ => {
                let ack = AckItem {
                    result: Some(result(token)),
                    retain_ms: known.ack_retain.map(DurationMs),
                    ..AckItem::of(lease.job, lease.lease)
                };
                let operation = Operation::Ack(Ack { leases: vec![ack] });
                (operation, AskedOutcome::Ack(token, lease, wall))
            }
        };
        self.request(from, operation, Asked::Outcome(asked))
    }

    fn report_outcome(&mut self, from: &From, token: usize, lease: LeaseRef) -> Checked {
        let known = &mut self.outcomes.all[token];
        known.last_cursor += 1;
        let cursor = known.last_cursor;
        known.unanswered.insert(cursor);
        let mut bytes = cursor.to_be_bytes().to_vec();
        bytes.resize(if cursor.is_multiple_of(5) { 12_000 } else { 8 }, 3);
        let leases = vec![ProgressItem {
            cursor: Some(bytes.into()),
            ..ProgressItem::of(lease.job, lease.lease)
        }];
        let asked = Asked::Outcome(AskedOutcome::Progress(token, cursor));
        self.request(from, Operation::Progress(Progress { leases }), asked)
    }

    /// A request about these jobs was answered.
    pub fn outcome_reply(
        &mut self,
        asked: AskedOutcome,
        answer: Result<ReplyBody, WireError>,
    ) -> Checked {
        match (asked, answer) {
            (AskedOutcome::Push(tokens), Ok(ReplyBody::Push(reply))) => {
                for (token, result) in tokens.zip(&reply.results) {
                    self.outcome_pushed(token, result)?;
                }
                Ok(())
            }
            (AskedOutcome::Fetch(_, asker), Ok(_)) if !self.outcomes.is_own(asker) => Ok(()),
            (AskedOutcome::Fetch(operation, _), Ok(ReplyBody::Fetch(reply))) => {
                self.outcomes.is_fetching = false;
                for job in reply.jobs {
                    self.outcome_granted(&job, operation)?;
                }
                Ok(())
            }
            (AskedOutcome::Ack(token, lease, wall), Ok(ReplyBody::Lease(reply))) => {
                self.outcomes.stale.push(lease);
                match &reply.results[0].err {
                    None => self.outcome_over(token, JobState::Done, Some(wall)),
                    Some(_) => Ok(()),
                }
            }
            (AskedOutcome::End(token, lease, wall, is_flagged), Ok(ReplyBody::Lease(reply))) => {
                self.outcomes.stale.push(lease);
                let result = &reply.results[0];
                match (&result.err, result.state) {
                    (Some(_), _) => Ok(()),
                    (None, Some(state @ (JobState::Cancelled | JobState::Dead))) => {
                        self.outcome_over(token, state, Some(wall))
                    }
                    (None, state) if is_flagged => Err(format!(
                        "outcome {token} was told to be cancelled, and is {state:?}"
                    )),
                    (None, _) => Ok(()),
                }
            }
            (AskedOutcome::Progress(token, cursor), Ok(ReplyBody::Lease(reply))) => {
                let known = &mut self.outcomes.all[token];
                known.unanswered.remove(&cursor);
                if reply.results[0].err.is_none() {
                    known.cursor = known.cursor.max(cursor);
                }
                Ok(())
            }
            (AskedOutcome::Stale, Ok(ReplyBody::Lease(reply))) => match reply.results[0].err {
                None => Err("I8: progress of a lease that is over was accepted".to_owned()),
                Some(_) => Ok(()),
            },
            (AskedOutcome::Cancel(token, wall, is_connected), Ok(ReplyBody::Cancel(reply))) => {
                let result = &reply.results[0];
                match result.state {
                    Some(JobState::Cancelled) => {
                        self.outcome_over(token, JobState::Cancelled, Some(wall))
                    }
                    Some(_) => self.outcome_flagged(token, is_connected),
                    None => Ok(()),
                }
            }
            (AskedOutcome::Wait(token, was_over, until), answer) => {
                self.outcome_waited(token, was_over, until, answer)
            }
            (AskedOutcome::Get(token, settled_at), Ok(ReplyBody::Job(view))) => {
                self.outcome_seen(token, Some((&view, settled_at)))
            }
            (AskedOutcome::Get(token, _), Err(error)) if error.code == ErrorCode::NotFound => {
                self.outcome_seen(token, None)
            }
            (AskedOutcome::Heartbeat(flagged), Ok(ReplyBody::Heartbeat(reply))) => {
                self.outcomes
                    .held
                    .retain(|(_, lease)| !reply.lost.contains(lease));
                // One that is held still must have been named.
                let is_held = |lease: &LeaseRef| {
                    let mut held = self.outcomes.held.iter();
                    held.any(|(_, held)| held == lease) && !reply.lost.contains(lease)
                };
                let missing = flagged
                    .iter()
                    .find(|lease| is_held(lease) && !reply.cancel.contains(lease));
                match missing {
                    None => Ok(()),
                    Some(lease) => Err(format!("{lease:?} is cancelled, and nobody says so")),
                }
            }
            (AskedOutcome::Set, Ok(ReplyBody::Queue(_))) => {
                self.outcomes.is_bound = true;
                Ok(())
            }
            // The jobs of the push were not for that queue.
            (AskedOutcome::Set, Err(error)) if error.code == ErrorCode::NotFound => Ok(()),
            (
                AskedOutcome::Fetch(..)
                | AskedOutcome::Ack(..)
                | AskedOutcome::End(..)
                | AskedOutcome::Progress(..)
                | AskedOutcome::Stale
                | AskedOutcome::Heartbeat(_),
                Err(error),
            ) if error.code == ErrorCode::NotFound => {
                self.outcomes.forget_worker();
                Ok(())
            }
            (asked, other) => Err(format!("{asked:?} was answered by {other:?}")),
        }
    }

    fn outcome_pushed(&mut self, token: usize, result: &PushResult) -> Checked {
        let Some(id) = result.id else {
            return Err(format!("outcome {token} was refused: {result:?}"));
        };
        if !result.existing {
            self.outcomes.all[token].id = Some(id);
            return Ok(());
        }
        self.outcomes.all[token].is_void = true;
        let holder = self.outcomes.all.iter().find(|it| it.id == Some(id));
        match holder {
            Some(holder)
                if holder
                    .over
                    .is_some_and(|(state, _)| state != JobState::Dead) =>
            {
                Err(format!(
                    "I11: outcome {token} met {holder:?}, which is over"
                ))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn outcome_granted(&mut self, job: &GrantedJob, asked: u64) -> Checked {
        let head = job.payload.get(..8).and_then(|head| head.try_into().ok());
        let token = head.map_or(usize::MAX, |head| u64::from_be_bytes(head) as usize);
        let Some(known) = self.outcomes.all.get_mut(token) else {
            return Err(format!("I2: {:?} was never pushed", job.id));
        };
        known.id = Some(job.id);
        if known.over.is_some_and(|(_, told)| told < asked) {
            return Err(format!(
                "I4: outcome {token} is over and granted: {known:?}"
            ));
        }
        if known.flagged.is_some_and(|told| told < asked) {
            return Err(format!(
                "outcome {token} is cancelled and granted: {known:?}"
            ));
        }
        let cursor = job.cursor.as_ref().and_then(|it| it.get(..8));
        let cursor = cursor.and_then(|head| head.try_into().ok());
        let cursor = cursor.map_or(0, u64::from_be_bytes);
        let is_right = cursor == known.cursor || known.unanswered.contains(&cursor);
        if !is_right || cursor < known.cursor {
            return Err(format!(
                "outcome {token} goes on at {cursor}, and was told {known:?}"
            ));
        }
        known.cursor = cursor;
        known.unanswered = known.unanswered.split_off(&(cursor + 1));
        let lease = LeaseRef {
            job: job.id,
            lease: job.lease,
        };
        if !self.outcomes.lost.contains(&lease.lease) {
            self.outcomes.held.push((token, lease));
        }
        Ok(())
    }

    /// The end of a job was told: once and for all.
    fn outcome_over(&mut self, token: usize, state: JobState, wall: Option<u64>) -> Checked {
        let told = self.history.operation();
        let known = &mut self.outcomes.all[token];
        match known.over {
            Some((earlier, _)) if earlier != state => {
                return Err(format!(
                    "outcome {token} is {state}, and was told {known:?}"
                ));
            }
            Some(_) => {}
            None => known.over = Some((state, told)),
        }
        known.ended_at = known.ended_at.or(wall);
        Ok(())
    }

    /// A running job was told to be cancelled: its worker has heard of it.
    fn outcome_flagged(&mut self, token: usize, is_connected: bool) -> Checked {
        let told = self.history.operation();
        let known = &mut self.outcomes.all[token];
        known.flagged.get_or_insert(told);
        let mut held = self.outcomes.held.iter();
        match held.find(|(held, _)| *held == token) {
            Some((_, lease)) if is_connected && !self.outcomes.heard.contains(&lease.lease) => Err(
                format!("nobody told the worker that {lease:?} is cancelled"),
            ),
            Some(_) | None => Ok(()),
        }
    }

    fn outcome_waited(
        &mut self,
        token: usize,
        was_over: bool,
        until: u64,
        answer: Result<ReplyBody, WireError>,
    ) -> Checked {
        let reply: WaitReply = match answer {
            Ok(ReplyBody::Wait(reply)) => *reply,
            Err(error) if error.code == ErrorCode::NotFound => {
                return self.outcome_seen(token, None);
            }
            other => return Err(format!("a wait was answered by {other:?}")),
        };
        if !reply.state.is_terminal() {
            if was_over {
                return Err(format!("outcome {token} is over and {}", reply.state));
            }
            return match self.clock.now().mono.0 >= until {
                true => Ok(()),
                false => Err(format!("a wait for outcome {token} ended early")),
            };
        }
        let expected = (reply.state == JobState::Done).then(|| result(token));
        if reply.result != expected {
            return Err(format!("outcome {token} has another result"));
        }
        self.outcome_over(token, reply.state, None)
    }

    /// What `job_get` finds of a job, which may be nothing; and when, if all that was due then was done.
    fn outcome_seen(&mut self, token: usize, seen: Option<(&JobView, Option<u64>)>) -> Checked {
        let known = self.outcomes.all[token].clone();
        let Some((view, settled_at)) = seen else {
            let kept = match (known.over, known.ended_at) {
                (Some((JobState::Dead, _)), _) => true,
                (Some((state, _)), Some(at)) => {
                    let until = at + known.retention(state);
                    !known.is_bounded && self.history.wall_max < until
                }
                (Some(_), None) => false,
                (None, _) => !known.may_be_over && !known.expires,
            };
            return match kept {
                true => Err(format!("I1: outcome {token} is gone: {known:?}")),
                false => Ok(()),
            };
        };
        match known.over {
            Some((state, _)) if state != view.state => {
                return Err(format!(
                    "outcome {token} is {view:?}, and was told {known:?}"
                ));
            }
            Some((state, _)) if state != JobState::Dead && known.retention(state) == 0 => {
                return Err(format!("outcome {token} is kept for nothing: {known:?}"));
            }
            Some((state, _)) if state != JobState::Dead => {
                let until = known.ended_at.map(|at| at + known.retention(state));
                let is_late = settled_at.zip(until).is_some_and(|(at, until)| at > until);
                // Where the clock does not step, all of them are of one time.
                if is_late && !self.plan.has_jumps {
                    return Err(format!("outcome {token} is kept for too long: {known:?}"));
                }
            }
            Some(_) | None => {}
        }
        let expected = (view.state == JobState::Done).then(|| result(token));
        if view.result != expected {
            return Err(format!("outcome {token} is shown with another result"));
        }
        match view.state.is_terminal() {
            true => self.outcome_over(token, view.state, None),
            false => Ok(()),
        }
    }

    /// Looks at every job after a restart and at the end.
    pub fn audit_outcomes(&mut self) -> Checked {
        let known: Vec<(usize, JobId)> = {
            let all = self.outcomes.all.iter().enumerate();
            all.filter_map(|(nth, it)| Some((nth, it.id?))).collect()
        };
        for (token, job) in known {
            let from = self.outcomes_from();
            let settled_at = self.settled_at();
            self.request(&from, Operation::JobGet(JobGet { job }), Asked::Audit)?;
            match self.clients.audited.take() {
                None => return Ok(()),
                Some(Ok(ReplyBody::Job(view))) => {
                    self.outcome_seen(token, Some((&view, settled_at)))?;
                }
                Some(Err(error)) if error.code == ErrorCode::NotFound => {
                    self.outcome_seen(token, None)?;
                }
                Some(other) => return Err(format!("outcome {token} was shown as {other:?}")),
            }
        }
        // Whoever waits for a job whose end was told was told it, too.
        let mut waits = self.pending.values().filter(|it| !it.is_detached);
        let late = waits.find_map(|pending| match pending.asked {
            Asked::Outcome(AskedOutcome::Wait(token, ..)) => {
                self.outcomes.all[token].over.map(|over| (token, over))
            }
            _ => None,
        });
        if let Some((token, over)) = late {
            return Err(format!("outcome {token} is {over:?}, and somebody waits"));
        }
        let Some(queues) = self.outcome_queues()? else {
            return Ok(());
        };
        let sum = |count: fn(&Counters) -> u64| -> u64 {
            queues.iter().map(|it| count(&it.counters)).sum()
        };
        for (state, counted) in [
            (JobState::Done, sum(|it| it.done)),
            (JobState::Cancelled, sum(|it| it.cancelled)),
            (JobState::Expired, sum(|it| it.expired)),
            (JobState::Dead, sum(|it| it.dead)),
        ] {
            let told = self.outcomes.all.iter();
            let told = told.filter(|it| it.over.is_some_and(|(over, _)| over == state));
            let told = told.count() as u64;
            if told > counted {
                return Err(format!(
                    "I12: {told} were told {state}, {counted} are counted"
                ));
            }
        }
        Ok(())
    }

    fn outcome_queues(&mut self) -> Checked<Option<Vec<QueueView>>> {
        let list = Operation::QueueList(QueueList { pattern: None });
        let from = self.outcomes_from();
        self.request(&from, list, Asked::Audit)?;
        match self.clients.audited.take() {
            None => Ok(None),
            Some(Ok(ReplyBody::Queues(reply))) => Ok(Some(reply.queues)),
            Some(other) => Err(format!("a list was answered by {other:?}")),
        }
    }

    /// Every job comes to its end, and what is kept goes in its time.
    pub fn drain_outcomes(&mut self) -> Checked {
        // Another worker takes over, which may wait for long.
        self.outcomes.forget_worker();
        for _ in 0..3_000 {
            self.see_time();
            self.tick(100)?;
            self.work_on_outcomes(true)?;
            self.settle()?;
            let Some(queues) = self.outcome_queues()? else {
                return Ok(());
            };
            let mut left = 0;
            for view in &queues {
                let counters = &view.counters;
                let kept = [
                    counters.done_kept,
                    counters.cancelled_kept,
                    counters.expired_kept,
                ];
                let is_bound = self.outcomes.is_bound && view.name.as_str() == BOUNDED;
                let is_idle = left == 0 && self.is_idle();
                if is_bound && is_idle && kept.iter().any(|count| *count > BOUND) {
                    return Err(format!("{BOUNDED} keeps {counters:?}"));
                }
                left += counters.kept() - counters.dead + counters.retained();
            }
            if left == 0 {
                return self.audit_outcomes();
            }
            if self.outcomes.held.is_empty() {
                self.sleep_until_wakeup(60_000);
            }
        }
        Err("I17: outcomes do not drain".to_owned())
    }

    /// Whether the server has nothing to do now.
    fn is_idle(&self) -> bool {
        let now = self.clock.now();
        let server = self.server.as_ref();
        let wait = server.and_then(|server| server.core.next_wakeup(now));
        wait.is_none_or(|wait| wait.0 > 0)
    }
}
