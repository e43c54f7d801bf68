//! Batches: producers open, fill and commit them in a namespace of their own, a worker does whatever
//! workers do with their jobs, administrators revive and purge the dead ones. The members of each
//! batch have a queue of their own, so that the counters of that queue, kept by other code, are what
//! the counters of the batch must be; its callbacks have one, too, whose counters say how often the
//! batch has called.
//!
//! What a crash left is looked at in [`World::audit_batches`].

use std::collections::HashMap;

use ganger_engine::command::ConnectionId;
use ganger_protocol::{
    BatchId, DurationMs, ErrorCode, JobId, JobSpec, NamespaceName, RetryPolicy, SessionId,
    Timestamp, WireError,
    batch::{
        BATCH_HEADER, BatchCounters, BatchEvent, BatchOpen, BatchState, BatchView, EVENT_HEADER,
    },
    job::GrantedJob,
    request::{
        Ack, AckItem, BatchList, BatchName, DeadSelect, Fail, FailItem, Fetch, LeaseRef, Operation,
        Push, QueueList, Release, ReleaseItem, Resume, SessionHello,
    },
    response::{Counters, ReplyBody},
};

use crate::{
    clients::Asked,
    history::Checked,
    world::{From, World},
};

/// Batches of a run at most.
const BATCHES_MAX: usize = 10;

/// What a request about batches was.
#[derive(Debug)]
pub enum AskedBatch {
    Open(usize),
    /// Which batch, and whether it was open and nobody had asked to commit it.
    Push(usize, bool),
    Commit(usize),
    Fetch,
    Answer,
    Dead,
}

/// What is known of batches.
#[derive(Debug, Default)]
pub struct Batches {
    all: Vec<Known>,
    /// Which job an event of a batch has pushed.
    calls: HashMap<(BatchId, BatchEvent), JobId>,
    worker: Option<(ConnectionId, SessionId)>,
    /// The session that the worker goes on with once it has another connection.
    session: Option<SessionId>,
    held: Vec<GrantedJob>,
    is_fetching: bool,
}

#[derive(Debug, Default)]
struct Known {
    id: Option<BatchId>,
    /// A commit was sent; whether it was told.
    is_closing: bool,
    is_committed: bool,
}

impl Batches {
    /// All connections are gone.
    pub fn server_ended(&mut self) {
        self.session = self
            .worker
            .take()
            .map(|(_, session)| session)
            .or(self.session);
        self.is_fetching = false;
    }

    /// Whether a connection is that of the worker here.
    pub fn is_own(&self, connection: ConnectionId) -> bool {
        self.worker.is_some_and(|(own, _)| own == connection)
    }

    fn forget_worker(&mut self) {
        self.worker = None;
        self.session = None;
        self.held.clear();
        self.is_fetching = false;
    }
}

fn namespace() -> NamespaceName {
    "batch".parse().expect("a legal name")
}

/// The queue of the members or the callbacks of a batch.
fn queue<T: std::str::FromStr<Err: std::fmt::Debug>>(prefix: char, nth: usize) -> T {
    format!("{prefix}{nth}").parse().expect("a legal name")
}

fn lease(job: &GrantedJob) -> LeaseRef {
    LeaseRef {
        job: job.id,
        lease: job.lease,
    }
}

impl World {
    pub fn step_batch(&mut self) -> Checked {
        if !self.is_up() {
            return Ok(());
        }
        match self.rng.u32(..24) {
            0 | 1 => self.open_batch(),
            2..8 => self.fill_batch(None),
            8 | 9 => {
                let count = self.batches.all.len();
                match (count > 0).then(|| self.rng.usize(..count)) {
                    Some(nth) => self.commit_batch(nth),
                    None => Ok(()),
                }
            }
            10 => self.change_dead_members(),
            11 if self.rng.u32(..4) == 0 => {
                self.trace
                    .note(self.elapsed(), "the worker of batches dies", &[]);
                self.batches.forget_worker();
                Ok(())
            }
            _ => self.work_batch(false),
        }
    }

    fn take_batches_from(&mut self) -> From {
        From {
            connection: self.connect(),
            namespace: namespace(),
            session: None,
            producer: None,
        }
    }

    fn open_batch(&mut self) -> Checked {
        let nth = self.batches.all.len();
        if nth >= BATCHES_MAX {
            return Ok(());
        }
        let parent = match self.rng.u32(..3) {
            0 if nth > 0 => self.batches.all[self.rng.usize(..nth)].id,
            _ => None,
        };
        let callback = || {
            Some(Box::new(JobSpec {
                queue: queue('c', nth),
                ..JobSpec::new("call".parse().expect("a legal name"), &b""[..])
            }))
        };
        let open = BatchOpen {
            on_complete: callback(),
            on_success: callback(),
            on_settled: callback(),
            parent,
            ..BatchOpen::default()
        };
        self.batches.all.push(Known::default());
        self.trace
            .note(self.elapsed(), "batch {} is opened", &[nth as u64]);
        let from = self.take_batches_from();
        let asked = Asked::Batch(AskedBatch::Open(nth));
        self.request(&from, Operation::BatchOpen(Box::new(open)), asked)
    }

    /// Adds jobs to a batch, or to that of a running job.
    fn fill_batch(&mut self, member: Option<&GrantedJob>) -> Checked {
        let of_member = member.and_then(|job| job.batch);
        let nth = match of_member {
            Some(batch) => self.batches.all.iter().position(|it| it.id == Some(batch)),
            None if self.batches.all.is_empty() => None,
            None => Some(self.rng.usize(..self.batches.all.len())),
        };
        let Some((nth, batch)) = nth.and_then(|nth| Some((nth, self.batches.all[nth].id?))) else {
            return Ok(());
        };
        let count = self.rng.usize(1..5);
        let jobs = (0..count).map(|_| self.new_member(nth, batch)).collect();
        let push = Push {
            by: member.map(lease),
            ..Push::of(jobs)
        };
        self.trace.note(
            self.elapsed(),
            "{} jobs are added to batch {}",
            &[count as u64, nth as u64],
        );
        let is_open = member.is_none() && !self.batches.all[nth].is_closing;
        let from = self.take_batches_from();
        let asked = Asked::Batch(AskedBatch::Push(nth, is_open));
        self.request(&from, Operation::Push(push), asked)
    }

    fn new_member(&mut self, nth: usize, batch: BatchId) -> JobSpec {
        let wall = self.clock.now().wall.0;
        let rng = &mut self.rng;
        let bytes = match rng.u32(..12) {
            0 => 9_000,
            _ => rng.usize(..40),
        };
        JobSpec {
            queue: queue('m', nth),
            batch: Some(batch),
            max_attempts: Some(rng.u32(1..4)),
            backoff: Some(Box::new(RetryPolicy::fixed(DurationMs(rng.u64(..3_000))))),
            timeout_ms: Some(DurationMs(rng.u64(1_000..9_000))),
            delay_ms: (rng.u32(..4) == 0).then(|| DurationMs(rng.u64(..4_000))),
            expires_at: (rng.u32(..4) == 0).then(|| Timestamp(wall + rng.u64(..9_000))),
            ..JobSpec::new("member".parse().expect("a legal name"), vec![7; bytes])
        }
    }

    fn commit_batch(&mut self, nth: usize) -> Checked {
        let Some(batch) = self.batches.all[nth].id else {
            return Ok(());
        };
        self.batches.all[nth].is_closing = true;
        self.trace
            .note(self.elapsed(), "batch {} is committed", &[nth as u64]);
        let from = self.take_batches_from();
        let asked = Asked::Batch(AskedBatch::Commit(nth));
        self.request(&from, Operation::BatchCommit(BatchName { batch }), asked)
    }

    /// Revives or purges some dead members of a batch.
    fn change_dead_members(&mut self) -> Checked {
        if self.batches.all.is_empty() {
            return Ok(());
        }
        let nth = self.rng.usize(..self.batches.all.len());
        let select = DeadSelect {
            queue: Some(queue('m', nth)),
            limit: Some(self.rng.u32(1..4)),
            ..DeadSelect::default()
        };
        let operation = match self.rng.bool() {
            true => Operation::DeadRevive(select),
            false => Operation::DeadPurge(select),
        };
        let from = self.take_batches_from();
        self.request(&from, operation, Asked::Batch(AskedBatch::Dead))
    }

    /// The worker opens its session, answers for what it has, or fetches.
    fn work_batch(&mut self, is_calm: bool) -> Checked {
        let Some((connection, session)) = self.batches.worker else {
            let from = self.take_batches_from();
            let ttl = match is_calm {
                true => DurationMs::from_hours(1),
                false => DurationMs(20_000),
            };
            let held: Vec<LeaseRef> = self.batches.held.iter().map(lease).collect();
            let resume = self.batches.session.map(|id| Resume {
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
                let is_kept = |job: &GrantedJob| !opened.lost.contains(&lease(job));
                self.batches.held.retain(is_kept);
                self.batches.worker = Some((from.connection, opened.id));
            }
            return Ok(());
        };
        let from = From {
            connection,
            namespace: namespace(),
            session: Some(session),
            producer: None,
        };
        if let Some(job) = self.batches.held.pop() {
            let asked = Asked::Batch(AskedBatch::Answer);
            let operation = match is_calm {
                true => ack(&job),
                false => self.draw_answer(&job)?,
            };
            return self.request(&from, operation, asked);
        }
        if std::mem::replace(&mut self.batches.is_fetching, true) {
            return Ok(());
        }
        let fetch = Fetch {
            queues: vec!["*".parse().expect("a legal pattern")],
            max: 8,
            ..Fetch::default()
        };
        let asked = Asked::Batch(AskedBatch::Fetch);
        self.request(&from, Operation::Fetch(fetch), asked)
    }

    fn draw_answer(&mut self, job: &GrantedJob) -> Checked<Operation> {
        let drawn = self.rng.u32(..20);
        let fail = FailItem {
            job: job.id,
            lease: job.lease,
            kind: "error".to_owned(),
            message: String::new(),
            backtrace: String::new(),
            retry_in_ms: None,
            dead: drawn == 0,
            discard: drawn == 1,
        };
        Ok(match drawn {
            0..6 => Operation::Fail(Fail { leases: vec![fail] }),
            6 | 7 => Operation::Release(Release {
                leases: vec![ReleaseItem {
                    job: job.id,
                    lease: job.lease,
                    delay_ms: None,
                }],
            }),
            8 if job.batch.is_some() => {
                self.fill_batch(Some(job))?;
                ack(job)
            }
            _ => ack(job),
        })
    }

    /// A request about batches was answered.
    pub fn batch_reply(
        &mut self,
        asked: AskedBatch,
        result: Result<ReplyBody, WireError>,
    ) -> Checked {
        let is_refusal = |error: &WireError| {
            matches!(
                error.code,
                ErrorCode::NotFound | ErrorCode::Conflict | ErrorCode::LeaseLost
            )
        };
        match (asked, result) {
            (AskedBatch::Open(nth), Ok(ReplyBody::Batch(view))) => {
                self.batches.all[nth].id = Some(view.id);
                Ok(())
            }
            // Its parent took no more members.
            (AskedBatch::Open(_), Err(error)) if is_refusal(&error) => Ok(()),
            (AskedBatch::Push(nth, was_open), Ok(ReplyBody::Push(reply))) => {
                let mut refused = reply
                    .results
                    .iter()
                    .filter_map(|result| result.err.as_ref());
                match refused.find(|error| was_open || !is_refusal(error)) {
                    None => Ok(()),
                    Some(error) => Err(format!("batch {nth} is open and refuses: {error}")),
                }
            }
            (AskedBatch::Commit(nth), Ok(ReplyBody::Batch(view))) => {
                self.batches.all[nth].is_committed = true;
                match view.state {
                    BatchState::Open => Err(format!("batch {nth} was committed and is open")),
                    BatchState::Committed | BatchState::Settled => Ok(()),
                }
            }
            (AskedBatch::Fetch, Ok(ReplyBody::Fetch(reply))) => {
                self.batches.is_fetching = false;
                for job in reply.jobs {
                    self.batch_job(&job)?;
                    self.batches.held.push(job);
                }
                Ok(())
            }
            (AskedBatch::Answer, Ok(ReplyBody::Lease(_)))
            | (AskedBatch::Dead, Ok(ReplyBody::Count(_))) => Ok(()),
            // No job was pushed into that queue so far.
            (AskedBatch::Dead, Err(error)) if error.code == ErrorCode::NotFound => Ok(()),
            (AskedBatch::Fetch | AskedBatch::Answer, Err(error)) if is_refusal(&error) => {
                self.batches.forget_worker();
                Ok(())
            }
            (asked, other) => Err(format!("{asked:?} was answered by {other:?}")),
        }
    }

    /// I14: a callback stands for one event of its batch, and no other job does.
    fn batch_job(&mut self, job: &GrantedJob) -> Checked {
        let Some(event) = job.headers.get(EVENT_HEADER) else {
            return match job.batch {
                Some(_) => Ok(()),
                None => Err(format!("{:?} is neither a member nor a callback", job.id)),
            };
        };
        let batch: Option<BatchId> = job.headers.get(BATCH_HEADER).and_then(|id| id.parse().ok());
        let event = BatchEvent::ALL.into_iter().find(|it| it.as_str() == event);
        let (Some(batch), Some(event)) = (batch, event) else {
            return Err(format!(
                "I14: {:?} calls for nothing: {:?}",
                job.id, job.headers
            ));
        };
        let known = *self.batches.calls.entry((batch, event)).or_insert(job.id);
        match known == job.id {
            true => Ok(()),
            false => Err(format!(
                "I14: {known:?} and {:?} both are {} of batch {batch}",
                job.id,
                event.field()
            )),
        }
    }

    /// Looks at every batch after a restart and at the end: its counters are those of its members,
    /// and it has called as often as its events have happened.
    pub fn audit_batches(&mut self) -> Checked {
        let Some(views) = self.all_batches()? else {
            return Ok(());
        };
        let Some(queues) = self.batch_counters()? else {
            return Ok(());
        };
        for view in &views {
            let nth = nth_of(view)?;
            let members = queues.get(&format!("m{nth}")).copied().unwrap_or_default();
            let children = views.iter().filter(|other| other.parent == Some(view.id));
            self.audit_batch(view, &members, children)?;
            let called = queues.get(&format!("c{nth}")).map_or(0, |it| it.pushed);
            self.audit_callbacks(view, called)?;
        }
        for (nth, known) in self.batches.all.iter().enumerate() {
            let view = views.iter().find(|view| Some(view.id) == known.id);
            let is_right = match view {
                None => known.id.is_none(),
                Some(view) => !known.is_committed || view.state != BatchState::Open,
            };
            if !is_right {
                return Err(format!("I14: batch {nth}, {known:?}, is {view:?}"));
            }
        }
        Ok(())
    }

    fn audit_batch<'a>(
        &self,
        view: &BatchView,
        members: &Counters,
        children: impl Iterator<Item = &'a BatchView>,
    ) -> Checked {
        let mut expected = BatchCounters {
            total: members.pushed,
            untried: view.counters.untried,
            pending: members.kept() - members.dead,
            done: members.done,
            dead: members.dead,
            cancelled: members.cancelled,
            expired: members.expired,
            deleted: members.deleted,
        };
        for child in children {
            let counters = &child.counters;
            expected.total += 1;
            *match child.state {
                BatchState::Open | BatchState::Committed => &mut expected.pending,
                BatchState::Settled if counters.dead > 0 => &mut expected.dead,
                BatchState::Settled if counters.cancelled > 0 => &mut expected.cancelled,
                BatchState::Settled if counters.expired > 0 => &mut expected.expired,
                BatchState::Settled if counters.deleted > 0 => &mut expected.deleted,
                BatchState::Settled => &mut expected.done,
            } += 1;
        }
        match expected == view.counters && expected.untried <= expected.pending {
            true => Ok(()),
            false => Err(format!(
                "I14: batch {} counts {:?}, its members come to {expected:?}",
                view.id, view.counters
            )),
        }
    }

    /// I14: each callback was pushed when its event has happened, and only then.
    fn audit_callbacks(&self, view: &BatchView, called: u64) -> Checked {
        let counters = &view.counters;
        let is_closed = view.state != BatchState::Open;
        let mut told = 0;
        let mut earlier = None;
        for event in BatchEvent::ALL {
            let job = view.callback(event).and_then(|callback| callback.job);
            let must = is_closed
                && match event {
                    BatchEvent::Complete => counters.untried == 0,
                    BatchEvent::Success => counters.done == counters.total,
                    BatchEvent::Settled => counters.pending == 0,
                };
            let seen = self.batches.calls.get(&(view.id, event)).copied();
            // An event that has happened may be undone by a revival, but for the first.
            let may = match event {
                BatchEvent::Complete => view.completed_at.is_some(),
                BatchEvent::Success | BatchEvent::Settled => earlier.is_some(),
            };
            if job.is_none() && (must || seen.is_some())
                || job.is_some() && !may
                || job.is_some() && seen.is_some_and(|seen| Some(seen) != job)
            {
                return Err(format!(
                    "I14: {} of batch {} is {job:?}, seen {seen:?}: {view:?}",
                    event.field(),
                    view.id
                ));
            }
            told += u64::from(job.is_some());
            earlier = earlier.or(job);
        }
        match told == called {
            true => Ok(()),
            false => Err(format!(
                "I14: batch {} has called {told} times, its queue counts {called}",
                view.id
            )),
        }
    }

    /// All batches, the settled ones too.
    fn all_batches(&mut self) -> Checked<Option<Vec<BatchView>>> {
        let mut views = Vec::new();
        for settled in [false, true] {
            let list = BatchList {
                settled,
                cursor: None,
                limit: 100,
            };
            let from = self.take_batches_from();
            self.request(&from, Operation::BatchList(list), Asked::Audit)?;
            match self.clients.audited.take() {
                None => return Ok(None),
                Some(Ok(ReplyBody::Batches(reply))) => views.extend(reply.batches),
                Some(other) => return Err(format!("a list was answered by {other:?}")),
            }
        }
        Ok(Some(views))
    }

    fn batch_counters(&mut self) -> Checked<Option<HashMap<String, Counters>>> {
        let list = Operation::QueueList(QueueList { pattern: None });
        let from = self.take_batches_from();
        self.request(&from, list, Asked::Audit)?;
        match self.clients.audited.take() {
            None => Ok(None),
            Some(Ok(ReplyBody::Queues(reply))) => {
                let queues = reply.queues.into_iter();
                let queues = queues.map(|view| (view.name.to_string(), view.counters));
                Ok(Some(queues.collect()))
            }
            Some(other) => Err(format!("a list was answered by {other:?}")),
        }
    }

    /// Every batch is committed, and what is in it comes to its end: all are settled.
    pub fn drain_batches(&mut self) -> Checked {
        for nth in 0..self.batches.all.len() {
            self.commit_batch(nth)?;
        }
        self.settle()?;
        // Another worker takes over, which may wait for long: the wall clock may have gone back by
        // hours since a job was told when it is due.
        self.batches.forget_worker();
        for _ in 0..3_000 {
            self.tick(100)?;
            self.work_batch(true)?;
            self.settle()?;
            let Some(queues) = self.batch_counters()? else {
                return Ok(());
            };
            let waiting = |counters: &Counters| counters.kept() - counters.dead;
            if queues.values().map(waiting).sum::<u64>() == 0 {
                return self.check_all_settled();
            }
            if self.batches.held.is_empty() {
                self.sleep_until_wakeup(60_000);
            }
        }
        Err("I17: the jobs of batches do not drain".to_owned())
    }

    fn check_all_settled(&mut self) -> Checked {
        let views = self.all_batches()?.unwrap_or_default();
        let known = |view: &&BatchView| self.batches.all.iter().any(|it| it.id == Some(view.id));
        // One whose opening was never answered cannot be committed, nor can what is above it end.
        let is_stuck = |view: &BatchView| {
            view.state != BatchState::Settled
                && !views.iter().any(|child| {
                    child.parent == Some(view.id) && child.state != BatchState::Settled
                })
        };
        match views.iter().filter(known).find(|view| is_stuck(view)) {
            Some(view) => Err(format!("I14: batch {} is stuck: {view:?}", view.id)),
            None => self.audit_batches(),
        }
    }
}

fn ack(job: &GrantedJob) -> Operation {
    Operation::Ack(Ack {
        leases: vec![AckItem::of(job.id, job.lease)],
    })
}

/// Which of ours a batch is, by the queue of its callbacks.
fn nth_of(view: &BatchView) -> Checked<usize> {
    let callback = view.callback(BatchEvent::Settled);
    let nth = callback.and_then(|callback| callback.queue.as_str().get(1..)?.parse().ok());
    nth.ok_or_else(|| format!("batch {} has lost its callbacks", view.id))
}
