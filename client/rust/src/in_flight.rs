//! The requests that were accepted and not answered, and what follows from them: which may be sent
//! now, which are sent again on the next connection, which are given up, which leases are held.
//! No IO and no clock here; [`crate::connection`] owns the one table of a client and its socket.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::BytesMut;
use ganger_protocol::{
    ErrorCode, JobId, LeaseId, WireError,
    frame::HEADER_BYTES,
    limits::FRAME_BYTES_MAX,
    request::{LeaseRef, Operation, Push, Release, ReleaseItem, Request},
    response::{Body, FetchReply, HeartbeatReply, HelloReply, LeaseReply, LeaseResult},
};
use tokio::{
    sync::{OwnedSemaphorePermit, oneshot},
    time::Instant,
};

use crate::error::{ConnectError, Error, Unknown};

/// The id of the `hello` of every connection.
pub(crate) const HELLO_ID: u64 = 1;

/// How long a producer without unanswered pushes is gone on with. The server forgets one after a day
/// and could then not tell a first push from a repeated one.
const PRODUCER_IDLE_MAX: Duration = Duration::from_secs(3600);

/// A request on its way to the table.
#[derive(Debug)]
pub(crate) struct Ask {
    pub(crate) operation: Operation,
    /// Who waits for the answer; nobody for the client's own heartbeats and releases.
    pub(crate) reply: Option<oneshot::Sender<Result<Answer, Error>>>,
    /// How long the answer may take.
    pub(crate) allowance: Duration,
    /// Whether it is kept for as long as the client lives, over every reconnect.
    pub(crate) patient: bool,
    /// Its share of the bound on all requests, given back with the answer.
    pub(crate) permit: Option<OwnedSemaphorePermit>,
}

/// A positive answer. What the table must know about is decoded here, the rest by who asked.
#[derive(Debug)]
pub(crate) enum Answer {
    Body(Body),
    Fetch(FetchReply),
    Lease(LeaseReply),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// By id, which is the order of acceptance and of every re-sending.
    entries: BTreeMap<u64, Entry>,
    next_id: u64,
    connected: bool,
    /// Ids to be sent on this connection.
    outbox: VecDeque<u64>,
    /// Ids of pushes that wait until the server has room to remember them.
    waiting: VecDeque<u64>,
    producer: Producer,
    /// Leases that were granted and whose end is not known.
    held: BTreeMap<LeaseId, JobId>,
    /// No entry is late before this time.
    check_at: Option<Instant>,
    /// Whether there is a session, and the server has said that it does not know it.
    has_session: bool,
    session_unknown: bool,
    frame_bytes_max: usize,
}

#[derive(Debug)]
struct Entry {
    request: Request,
    reply: Option<oneshot::Sender<Result<Answer, Error>>>,
    accepted_at: Instant,
    /// When it was sent on this connection.
    sent_at: Option<Instant>,
    /// Whether it was sent on a connection that ended without an answer.
    uncertain: bool,
    allowance: Duration,
    patient: bool,
    /// Given back when the entry goes.
    _permit: Option<OwnedSemaphorePermit>,
}

/// The numbering of pushes.
#[derive(Debug)]
struct Producer {
    id: Option<String>,
    next_seq: u64,
    unanswered: BTreeSet<u64>,
    /// How many numbers the server remembers, counted from the oldest unanswered one.
    window: u64,
    /// When it was last given a number, or made.
    used_at: Option<Instant>,
    /// Whether the server has said that it does not know the id.
    unknown: bool,
}

/// What a look at the clock has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Silence {
    /// Nothing, or the answers are on time.
    Normal,
    /// A request is late and nothing else came in the meantime: the connection is dead.
    Dead,
}

impl InFlight {
    pub(crate) fn new(window: u64) -> Self {
        Self {
            entries: BTreeMap::new(),
            next_id: HELLO_ID + 1,
            connected: false,
            outbox: VecDeque::new(),
            waiting: VecDeque::new(),
            producer: Producer {
                id: None,
                next_seq: 1,
                unanswered: BTreeSet::new(),
                window,
                used_at: None,
                unknown: false,
            },
            held: BTreeMap::new(),
            check_at: None,
            has_session: false,
            session_unknown: false,
            frame_bytes_max: FRAME_BYTES_MAX,
        }
    }

    /// Takes a request over. It is sent by the next [`InFlight::write`] that can.
    pub(crate) fn accept(&mut self, ask: Ask, now: Instant) {
        let id = self.next_id;
        self.next_id += 1;
        self.check_by(now + ask.allowance);
        let entry = Entry {
            request: Request {
                id,
                operation: ask.operation,
            },
            reply: ask.reply,
            accepted_at: now,
            sent_at: None,
            uncertain: false,
            allowance: ask.allowance,
            patient: ask.patient,
            _permit: ask.permit,
        };
        self.entries.insert(id, entry);
        if self.connected {
            self.outbox.push_back(id);
        }
    }

    /// Appends the frames of everything that may be sent now.
    pub(crate) fn write(&mut self, buffer: &mut BytesMut, now: Instant) {
        while let Some(id) = self.next_to_send() {
            self.send(id, buffer, now);
        }
    }

    /// Takes the answer to a request. That to a heartbeat is returned, since it concerns the session.
    pub(crate) fn answer(
        &mut self,
        id: u64,
        result: Result<Body, WireError>,
        now: Instant,
    ) -> Option<HeartbeatReply> {
        // The answer to what was given up is nobody's.
        let entry = self.entries.remove(&id)?;
        let body = match result {
            Ok(body) => body,
            Err(error) => {
                self.refused(entry, error);
                return None;
            }
        };
        self.producer.answered(&entry);
        match &entry.request.operation {
            Operation::Fetch(fetch) => match body.read::<FetchReply>() {
                Ok(reply) => {
                    let acks = fetch.acks.iter().map(|item| item.lease);
                    self.settled(acks.zip(&reply.acks));
                    let fails = fetch.fails.iter().map(|item| item.lease);
                    self.settled(fails.zip(&reply.fails));
                    self.granted(entry, reply, now);
                }
                Err(error) => entry.finish(Err(error.into())),
            },
            operation @ (Operation::Ack(_) | Operation::Fail(_) | Operation::Release(_)) => {
                match body.read::<LeaseReply>() {
                    Ok(reply) => {
                        self.settled(answered_leases(operation).zip(&reply.results));
                        entry.finish(Ok(Answer::Lease(reply)));
                    }
                    Err(error) => entry.finish(Err(error.into())),
                }
            }
            Operation::Extend(_) | Operation::Progress(_) => {
                entry.finish(body.read().map(Answer::Lease).map_err(Error::from));
            }
            Operation::Heartbeat(_) => {
                let reply = body.read().ok();
                entry.finish(Ok(Answer::Body(body)));
                return reply;
            }
            Operation::Goodbye(_) => {
                self.held.clear();
                entry.finish(Ok(Answer::Body(body)));
            }
            Operation::Hello(_)
            | Operation::Push(_)
            | Operation::JobGet(_)
            | Operation::Wait(_)
            | Operation::JobCancel(_)
            | Operation::JobChange(_)
            | Operation::JobDelete(_)
            | Operation::JobList(_)
            | Operation::DeadList(_)
            | Operation::DeadRevive(_)
            | Operation::DeadPurge(_)
            | Operation::QueueList(_)
            | Operation::QueuePause(_)
            | Operation::QueueResume(_)
            | Operation::QueueShow(_)
            | Operation::QueueSet(_)
            | Operation::QueueCreate(_)
            | Operation::QueuePurge(_)
            | Operation::QueueDelete(_)
            | Operation::CronSet(_)
            | Operation::CronDelete(_)
            | Operation::CronList(_)
            | Operation::CronShow(_)
            | Operation::CronPause(_)
            | Operation::CronResume(_)
            | Operation::CronRun(_)
            | Operation::BatchOpen(_)
            | Operation::BatchCommit(_)
            | Operation::BatchShow(_)
            | Operation::BatchGraph(_)
            | Operation::BatchList(_)
            | Operation::LimitSet(_)
            | Operation::LimitDelete(_)
            | Operation::LimitShow(_)
            | Operation::LimitList(_)
            | Operation::TaskStart(_)
            | Operation::TaskGet(_)
            | Operation::TaskList(_)
            | Operation::TaskCancel(_)
            | Operation::Subscribe(_)
            | Operation::Unsubscribe(_)
            | Operation::Stats(_)
            | Operation::Backup(_) => entry.finish(Ok(Answer::Body(body))),
        }
        None
    }

    /// A connection is open. Everything unanswered is sent again in its order, the pushes under
    /// their old numbers if this is still the same producer; else nobody knows what became of them.
    pub(crate) fn connected(&mut self, hello: &HelloReply, now: Instant) {
        self.frame_bytes_max = hello.limits.frame_bytes_max;
        self.has_session = hello.session.is_some();
        self.session_unknown = false;
        if self.producer.unknown || self.producer.id != hello.producer {
            self.producer.replace(hello.producer.clone(), now);
            self.forget_numbers();
        }
        self.connected = true;
        self.outbox = self.entries.keys().copied().collect();
        self.waiting.clear();
    }

    /// The connection is gone: what cannot be repeated ends here.
    pub(crate) fn disconnected(&mut self) {
        self.connected = false;
        self.outbox.clear();
        self.waiting.clear();
        let mut given_up = Vec::new();
        for (id, entry) in &mut self.entries {
            entry.uncertain |= entry.sent_at.take().is_some();
            if entry.uncertain && !entry.prepare_to_repeat() {
                given_up.push(*id);
            }
        }
        for id in given_up {
            self.give_up(id, |_| Error::OutcomeUnknown(Unknown::ConnectionLost));
        }
    }

    /// The server does not know the producer: the next connection asks for a new one.
    pub(crate) fn producer_unknown(&mut self) {
        self.producer.unknown = true;
    }

    /// The producer to go on with; none asks for a new one.
    pub(crate) fn producer(&self, now: Instant) -> Option<&str> {
        let producer = &self.producer;
        let is_recent = |used_at| now.duration_since(used_at) < PRODUCER_IDLE_MAX;
        let is_needed = !producer.unanswered.is_empty() || producer.used_at.is_some_and(is_recent);
        let id = producer.id.as_deref();
        id.filter(|_| is_needed && !producer.unknown)
    }

    /// Whether this connection cannot number pushes any more.
    pub(crate) fn is_producer_unknown(&self) -> bool {
        self.producer.unknown
    }

    /// Whether the server has ended the session while the connection lived.
    pub(crate) fn is_session_unknown(&self) -> bool {
        self.session_unknown
    }

    /// Ends everything that waits: the server will not serve this client.
    pub(crate) fn refuse_all(&mut self, error: &WireError) {
        for (_, entry) in std::mem::take(&mut self.entries) {
            self.producer.answered(&entry);
            let error = if entry.uncertain && !is_repeatable(&entry.request.operation) {
                Error::OutcomeUnknown(Unknown::ConnectionLost)
            } else {
                Error::Refused(error.clone())
            };
            entry.finish(Err(error));
        }
    }

    /// Ends everything that waits: the client is being closed.
    pub(crate) fn close(&mut self) {
        for (_, entry) in std::mem::take(&mut self.entries) {
            let uncertain = entry.may_be_applied() && !is_repeatable(&entry.request.operation);
            entry.finish(Err(if uncertain {
                Error::OutcomeUnknown(Unknown::Closed)
            } else {
                Error::Closed
            }));
        }
    }

    /// Gives up what is late, and says whether the connection is dead. `unreachable` is why there is
    /// no connection.
    pub(crate) fn check(
        &mut self,
        now: Instant,
        received_at: Instant,
        unreachable: &(String, ConnectError),
    ) -> Silence {
        let mut silence = Silence::Normal;
        let mut late = Vec::new();
        self.check_at = None;
        let mut next: Option<Instant> = None;
        for (id, entry) in &self.entries {
            let answer_by = entry
                .sent_at
                .map(|sent| sent.max(received_at) + entry.allowance);
            let keep_until = (!entry.patient).then(|| entry.accepted_at + entry.allowance);
            if answer_by.is_some_and(|by| by <= now) {
                silence = Silence::Dead;
            }
            if keep_until.is_some_and(|until| until <= now) && entry.reply.is_some() {
                late.push(*id);
                continue;
            }
            let keep_until = keep_until.filter(|_| entry.reply.is_some());
            for at in [answer_by, keep_until].into_iter().flatten() {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        self.check_at = next;
        let connected = self.connected;
        for id in late {
            self.give_up(id, |entry| entry.too_late(connected, unreachable));
        }
        silence
    }

    /// When [`InFlight::check`] may have something to do.
    pub(crate) fn check_at(&self) -> Option<Instant> {
        self.check_at
    }

    /// Whether [`InFlight::write`] would write something.
    pub(crate) fn has_unsent(&self) -> bool {
        !self.outbox.is_empty() || (!self.waiting.is_empty() && self.producer.has_room())
    }

    /// How many requests are unanswered.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the session lives without a word: it holds nothing, and a fetch waits on the server.
    pub(crate) fn is_waiting_only(&self) -> bool {
        let mut entries = self.entries.values();
        self.held.is_empty()
            && entries.any(|entry| matches!(entry.request.operation, Operation::Fetch(_)))
    }

    /// The leases to name when the session is resumed, those with an unanswered ack among them: were
    /// they left out, the server would release them and the job would run twice.
    pub(crate) fn held(&self) -> Vec<LeaseRef> {
        let held = self.held.iter();
        held.map(|(&lease, &job)| LeaseRef { job, lease }).collect()
    }

    /// Leases have ended on the server. Returns those that the worker does not expect to end: an
    /// unanswered ack of one may well be what ended it.
    pub(crate) fn lost(&mut self, leases: Vec<LeaseRef>) -> Vec<LeaseRef> {
        let entries = self.entries.values();
        let answering: BTreeSet<LeaseId> = entries
            .flat_map(|entry| answered_leases(&entry.request.operation))
            .collect();
        let mut lost = leases;
        lost.retain(|lost| self.held.remove(&lost.lease).is_some());
        lost.retain(|lost| !answering.contains(&lost.lease));
        lost
    }

    fn check_by(&mut self, at: Instant) {
        self.check_at = Some(self.check_at.map_or(at, |check_at| check_at.min(at)));
    }

    fn next_to_send(&mut self) -> Option<u64> {
        let open = self.producer.has_room();
        if open && let Some(id) = self.waiting.pop_front() {
            return Some(id);
        }
        while let Some(id) = self.outbox.pop_front() {
            let Some(entry) = self.entries.get(&id) else {
                continue;
            };
            if self.producer.id.is_some() && entry.is_unnumbered_push() && !open {
                self.waiting.push_back(id);
                continue;
            }
            return Some(id);
        }
        None
    }

    fn send(&mut self, id: u64, buffer: &mut BytesMut, now: Instant) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        if !entry.uncertain && entry.is_abandoned() {
            self.entries.remove(&id);
            return;
        }
        self.producer.number(&mut entry.request.operation, now);
        let start = buffer.len();
        let encoded = entry.request.encode(buffer);
        let bytes = (buffer.len() - start).saturating_sub(HEADER_BYTES);
        let error = match encoded {
            Err(error) => Error::Encode(Arc::new(error)),
            Ok(()) if bytes > self.frame_bytes_max => {
                buffer.truncate(start);
                let limit = self.frame_bytes_max;
                Error::Refused(WireError::too_large("frame", limit, bytes))
            }
            Ok(()) => {
                entry.sent_at = Some(now);
                let answer_by = now + entry.allowance;
                self.check_by(answer_by);
                return;
            }
        };
        self.give_up(id, |_| error);
    }

    fn give_up(&mut self, id: u64, error: impl FnOnce(&Entry) -> Error) {
        let Some(mut entry) = self.entries.remove(&id) else {
            return;
        };
        self.producer.answered(&entry);
        let error = error(&entry);
        // The leases of a late answer must go back to the server, so it is still waited for.
        if let (Operation::Fetch(_), true) = (&entry.request.operation, entry.sent_at.is_some()) {
            if let Some(reply) = entry.reply.take() {
                let _ = reply.send(Err(error));
            }
            self.entries.insert(id, entry);
            return;
        }
        entry.finish(Err(error));
    }

    fn refused(&mut self, mut entry: Entry, error: WireError) {
        if let Operation::Fetch(_) | Operation::Heartbeat(_) = &entry.request.operation
            && self.has_session
            && error.code == ErrorCode::NotFound
        {
            // The session has ended: the request is for the next one.
            self.session_unknown = true;
            entry.sent_at = None;
            self.entries.insert(entry.request.id, entry);
            return;
        }
        let Operation::Push(_) = &entry.request.operation else {
            let unknown = !error.code.is_definite() && !is_repeatable(&entry.request.operation);
            entry.finish(Err(if unknown {
                Error::OutcomeUnknown(Unknown::Unavailable(error))
            } else {
                Error::Refused(error)
            }));
            return;
        };
        if error.code == ErrorCode::Draining {
            // Nothing was applied and the server is about to go: it is for the next connection.
            entry.sent_at = None;
            self.entries.insert(entry.request.id, entry);
            return;
        }
        self.producer.answered(&entry);
        entry.finish(Err(match error.code {
            ErrorCode::UnknownProducer => {
                self.producer.unknown = true;
                Error::OutcomeUnknown(Unknown::Forgotten(error))
            }
            ErrorCode::SequenceExpired => Error::OutcomeUnknown(Unknown::Forgotten(error)),
            ErrorCode::Unavailable => Error::OutcomeUnknown(Unknown::Unavailable(error)),
            ErrorCode::BadRequest
            | ErrorCode::UnsupportedOp
            | ErrorCode::TooLarge
            | ErrorCode::Unauthorized
            | ErrorCode::Forbidden
            | ErrorCode::NotFound
            | ErrorCode::Conflict
            | ErrorCode::QuotaExceeded
            | ErrorCode::LeaseLost
            | ErrorCode::Overloaded
            | ErrorCode::Draining => Error::Refused(error),
        }));
    }

    /// Every push that another producer has sent ends; the others lose their number.
    fn forget_numbers(&mut self) {
        let mut forgotten = Vec::new();
        for (id, entry) in &mut self.entries {
            if let Operation::Push(push) = &mut entry.request.operation
                && push.seq.take().is_some()
                && entry.uncertain
            {
                forgotten.push(*id);
            }
        }
        for id in forgotten {
            self.give_up(id, |_| {
                let message = "the server no longer knows the producer of this push";
                let error = WireError::new(ErrorCode::UnknownProducer, message);
                Error::OutcomeUnknown(Unknown::Forgotten(error))
            });
        }
    }

    fn settled<'a>(&mut self, leases: impl Iterator<Item = (LeaseId, &'a LeaseResult)>) {
        for (lease, result) in leases {
            match &result.err {
                None => {
                    self.held.remove(&lease);
                }
                Some(error) if error.code == ErrorCode::LeaseLost => {
                    self.held.remove(&lease);
                }
                Some(_) => {}
            }
        }
    }

    /// Hands leases to who asked; nobody's go back at once.
    fn granted(&mut self, entry: Entry, reply: FetchReply, now: Instant) {
        for job in &reply.jobs {
            self.held.insert(job.lease, job.id);
        }
        let allowance = entry.allowance;
        let unclaimed = match entry.reply {
            None => Some(reply),
            Some(sender) => match sender.send(Ok(Answer::Fetch(reply))) {
                Err(Ok(Answer::Fetch(reply))) => Some(reply),
                Ok(()) | Err(_) => None,
            },
        };
        if let Some(release) = unclaimed.and_then(|reply| release_all(&reply)) {
            self.accept(Ask::unattended(release, allowance), now);
        }
    }
}

impl Ask {
    /// A request whose answer nobody waits for.
    pub(crate) fn unattended(operation: Operation, allowance: Duration) -> Self {
        Self {
            operation,
            reply: None,
            allowance,
            patient: true,
            permit: None,
        }
    }
}

/// The request that gives back every lease of `reply`; none if it has none.
pub(crate) fn release_all(reply: &FetchReply) -> Option<Operation> {
    let leases: Vec<ReleaseItem> = reply
        .jobs
        .iter()
        .map(|job| ReleaseItem {
            job: job.id,
            lease: job.lease,
            delay_ms: None,
        })
        .collect();
    (!leases.is_empty()).then_some(Operation::Release(Release { leases }))
}

impl Entry {
    fn finish(self, result: Result<Answer, Error>) {
        if let Some(reply) = self.reply {
            // Who asked may have gone; then the answer is nobody's.
            let _ = reply.send(result);
        }
    }

    fn may_be_applied(&self) -> bool {
        self.uncertain || self.sent_at.is_some()
    }

    fn is_unnumbered_push(&self) -> bool {
        matches!(
            &self.request.operation,
            Operation::Push(Push { seq: None, .. })
        )
    }

    /// Whether nobody waits for the answer any more, although somebody did.
    fn is_abandoned(&self) -> bool {
        self.reply.as_ref().is_some_and(oneshot::Sender::is_closed)
    }

    /// Makes a request whose answer was lost fit to be sent again; false if it is not.
    fn prepare_to_repeat(&mut self) -> bool {
        let unclaimed = self.reply.as_ref().is_none_or(oneshot::Sender::is_closed);
        match &mut self.request.operation {
            Operation::Push(push) => push.seq.is_some() && !unclaimed,
            Operation::Fetch(fetch) => {
                // Its leases would be nobody's, but the acks that it carries still count.
                if unclaimed {
                    fetch.max = 0;
                }
                !unclaimed || !fetch.acks.is_empty() || !fetch.fails.is_empty()
            }
            Operation::Heartbeat(_) => !unclaimed,
            operation => is_repeatable(operation),
        }
    }

    fn too_late(&self, connected: bool, unreachable: &(String, ConnectError)) -> Error {
        let after = self.allowance;
        if !connected && !self.may_be_applied() {
            let (address, cause) = unreachable.clone();
            return Error::Unreachable { address, cause };
        }
        if self.may_be_applied() && !is_repeatable(&self.request.operation) {
            return Error::OutcomeUnknown(Unknown::TimedOut { after });
        }
        let sent = self.may_be_applied();
        Error::TimedOut { after, sent }
    }
}

impl Producer {
    fn has_room(&self) -> bool {
        let oldest = self.unanswered.first().unwrap_or(&self.next_seq);
        self.next_seq - oldest < self.window
    }

    /// Gives a push its number, once.
    fn number(&mut self, operation: &mut Operation, now: Instant) {
        if let Operation::Push(push) = operation
            && self.id.is_some()
            && push.seq.is_none()
        {
            push.seq = Some(self.next_seq);
            self.unanswered.insert(self.next_seq);
            self.next_seq += 1;
            self.used_at = Some(now);
        }
    }

    fn answered(&mut self, entry: &Entry) {
        if let Operation::Push(Push { seq: Some(seq), .. }) = &entry.request.operation {
            self.unanswered.remove(seq);
        }
    }

    fn replace(&mut self, id: Option<String>, now: Instant) {
        self.id = id;
        self.used_at = Some(now);
        self.next_seq = 1;
        self.unanswered.clear();
        self.unknown = false;
    }
}

/// Whether doing it twice is the same as doing it once.
fn is_repeatable(operation: &Operation) -> bool {
    match operation {
        // A backup and a subscription are the connection's. A second deletion finds nothing, and would look like a name
        // that never was; a second purge would remove what was pushed since.
        Operation::Push(_)
        | Operation::Backup(_)
        | Operation::Subscribe(_)
        | Operation::Unsubscribe(_)
        | Operation::BatchOpen(_)
        | Operation::CronRun(_)
        | Operation::TaskStart(_)
        | Operation::QueuePurge(_)
        | Operation::QueueDelete(_)
        | Operation::LimitDelete(_)
        | Operation::CronDelete(_) => false,
        // A delay would be counted from the second time.
        Operation::JobChange(change) => change.to.delay_ms.is_none_or(|delay| delay.0 == 0),
        // By id it is the same jobs again; of a queue it would be the next ones.
        Operation::DeadRevive(select) | Operation::DeadPurge(select) => select.queue.is_none(),
        Operation::Hello(_)
        | Operation::Fetch(_)
        | Operation::Ack(_)
        | Operation::Fail(_)
        | Operation::Release(_)
        | Operation::Extend(_)
        | Operation::Progress(_)
        | Operation::Heartbeat(_)
        | Operation::Goodbye(_)
        | Operation::JobGet(_)
        | Operation::Wait(_)
        | Operation::JobCancel(_)
        | Operation::JobDelete(_)
        | Operation::JobList(_)
        | Operation::DeadList(_)
        | Operation::QueueList(_)
        | Operation::QueuePause(_)
        | Operation::QueueResume(_)
        | Operation::QueueShow(_)
        | Operation::QueueSet(_)
        | Operation::QueueCreate(_)
        | Operation::CronSet(_)
        | Operation::CronList(_)
        | Operation::CronShow(_)
        | Operation::CronPause(_)
        | Operation::CronResume(_)
        | Operation::BatchCommit(_)
        | Operation::BatchShow(_)
        | Operation::BatchGraph(_)
        | Operation::BatchList(_)
        | Operation::LimitSet(_)
        | Operation::LimitShow(_)
        | Operation::LimitList(_)
        | Operation::TaskGet(_)
        | Operation::TaskList(_)
        | Operation::TaskCancel(_)
        | Operation::Stats(_) => true,
    }
}

/// The leases that an operation ends, in the order of its results.
fn answered_leases(operation: &Operation) -> Box<dyn Iterator<Item = LeaseId> + '_> {
    match operation {
        Operation::Ack(ack) => Box::new(ack.leases.iter().map(|item| item.lease)),
        Operation::Fail(fail) => Box::new(fail.leases.iter().map(|item| item.lease)),
        Operation::Release(release) => Box::new(release.leases.iter().map(|item| item.lease)),
        Operation::Fetch(fetch) => Box::new(
            (fetch.acks.iter().map(|item| item.lease))
                .chain(fetch.fails.iter().map(|item| item.lease)),
        ),
        Operation::Hello(_)
        | Operation::Push(_)
        | Operation::Extend(_)
        | Operation::Progress(_)
        | Operation::Heartbeat(_)
        | Operation::Goodbye(_)
        | Operation::JobGet(_)
        | Operation::Wait(_)
        | Operation::JobCancel(_)
        | Operation::JobChange(_)
        | Operation::JobDelete(_)
        | Operation::JobList(_)
        | Operation::DeadList(_)
        | Operation::DeadRevive(_)
        | Operation::DeadPurge(_)
        | Operation::QueueList(_)
        | Operation::QueuePause(_)
        | Operation::QueueResume(_)
        | Operation::QueueShow(_)
        | Operation::QueueSet(_)
        | Operation::QueueCreate(_)
        | Operation::QueuePurge(_)
        | Operation::QueueDelete(_)
        | Operation::CronSet(_)
        | Operation::CronDelete(_)
        | Operation::CronList(_)
        | Operation::CronShow(_)
        | Operation::CronPause(_)
        | Operation::CronResume(_)
        | Operation::CronRun(_)
        | Operation::BatchOpen(_)
        | Operation::BatchCommit(_)
        | Operation::BatchShow(_)
        | Operation::BatchGraph(_)
        | Operation::BatchList(_)
        | Operation::LimitSet(_)
        | Operation::LimitDelete(_)
        | Operation::LimitShow(_)
        | Operation::LimitList(_)
        | Operation::TaskStart(_)
        | Operation::TaskGet(_)
        | Operation::TaskList(_)
        | Operation::TaskCancel(_)
        | Operation::Subscribe(_)
        | Operation::Unsubscribe(_)
        | Operation::Stats(_)
        | Operation::Backup(_) => Box::new(std::iter::empty()),
    }
}
