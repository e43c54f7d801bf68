//! What clients are, and what is remembered of a request until its reply comes. What they do is in
//! [`crate::producers`], [`crate::workers`] and [`crate::administrators`], what a reply means in
//! [`crate::replies`].

use ganger_engine::command::{ConnectionId, Producer};
use ganger_protocol::{JobId, LeaseId, NamespaceName, SessionId, WireError, response::ReplyBody};

use crate::{
    batches::AskedBatch,
    clock::Stretch,
    crons::AskedCron,
    history::{Answered, Checked, Presence},
    limits::AskedLimit,
    outcomes::AskedOutcome,
    plan::Plan,
    world::World,
};

/// What a request was about, to judge its reply by.
#[derive(Debug)]
pub enum Asked {
    Push {
        producer: usize,
        push: usize,
        must_expire: bool,
    },
    Fetch {
        worker: Option<usize>,
        fetch: Fetched,
    },
    Answers(Vec<Answered>),
    Heartbeat {
        worker: usize,
        was_live: bool,
    },
    Goodbye {
        was_live: bool,
    },
    Get {
        job: usize,
        presence: Presence,
    },
    Dead {
        jobs: Vec<(usize, bool)>,
        operation: u64,
        is_purge: bool,
        is_named: bool,
    },
    Pause {
        queue: usize,
        operation: u64,
    },
    /// A job is started or delayed.
    Change {
        job: usize,
        operation: u64,
        presence: Presence,
        /// That of the request: the wall clock may have stepped since.
        stretch: Stretch,
    },
    Cron(AskedCron),
    Batch(AskedBatch),
    Outcome(AskedOutcome),
    Limit(AskedLimit),
    Anything,
    /// Kept for whoever asked.
    Audit,
}

impl Asked {
    pub fn is_fetch(&self) -> bool {
        matches!(self, Self::Fetch { .. })
    }
}

/// A fetch.
#[derive(Debug)]
pub struct Fetched {
    /// Its queues, in the order of the request.
    pub queues: Vec<usize>,
    pub is_strict: bool,
    pub max: usize,
    pub acks: Vec<Answered>,
    pub fails: Vec<Answered>,
    pub was_live: bool,
}

/// All clients.
#[derive(Debug)]
pub struct Clients {
    pub producers: Vec<ProducerClient>,
    pub workers: Vec<Worker>,
    /// Connections that are gone and of which the server does not know it yet.
    pub dangling: Vec<(ConnectionId, Option<SessionId>)>,
    /// The answer to an [`Asked::Audit`].
    pub audited: Option<Result<ReplyBody, WireError>>,
    pub next_producer: u64,
}

#[derive(Debug)]
pub struct ProducerClient {
    pub producer: Option<Producer>,
    pub connection: Option<ConnectionId>,
    pub namespace: NamespaceName,
    pub next_seq: u64,
    /// Pushes without an answer.
    pub unanswered: Vec<usize>,
    /// Numbered pushes of this producer.
    pub numbered: Vec<usize>,
}

#[derive(Debug)]
pub struct Worker {
    pub connection: Option<ConnectionId>,
    pub session: Option<SessionId>,
    pub namespace: NamespaceName,
    pub ttl: u64,
    pub held: Vec<Held>,
    /// Leases that were answered or forgotten.
    pub stale: Vec<Held>,
    pub is_fetching: bool,
}

/// A lease in the hands of a worker.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub job: usize,
    pub id: JobId,
    pub lease: LeaseId,
}

/// Stale leases that a worker remembers.
const STALE_MAX: usize = 12;

impl Clients {
    pub fn new(plan: &Plan) -> Self {
        let namespace = |nth: usize| plan.queues[nth % plan.queues.len()].namespace.clone();
        Self {
            producers: (0..plan.producers)
                .map(|nth| ProducerClient {
                    producer: None,
                    connection: None,
                    namespace: namespace(nth * 2 + 1),
                    next_seq: 1,
                    unanswered: Vec::new(),
                    numbered: Vec::new(),
                })
                .collect(),
            workers: (0..plan.workers)
                .map(|nth| Worker::new(namespace(nth)))
                .collect(),
            dangling: Vec::new(),
            audited: None,
            next_producer: 100,
        }
    }

    /// All connections are gone.
    pub fn server_ended(&mut self) {
        for producer in &mut self.producers {
            producer.connection = None;
        }
        for worker in &mut self.workers {
            worker.connection = None;
            worker.is_fetching = false;
        }
        self.dangling.clear();
    }
}

impl Worker {
    fn new(namespace: NamespaceName) -> Self {
        Self {
            connection: None,
            session: None,
            namespace,
            ttl: 0,
            held: Vec::new(),
            stale: Vec::new(),
            is_fetching: false,
        }
    }

    pub fn forget(&mut self, held: Held) {
        if self.stale.len() >= STALE_MAX {
            self.stale.remove(0);
        }
        self.stale.push(held);
    }
}

impl World {
    pub fn elapsed(&self) -> u64 {
        self.clock.elapsed()
    }

    /// A connection breaks: the client knows, the server will hear of it later.
    pub fn break_connection(&mut self, connection: ConnectionId, session: Option<SessionId>) {
        self.trace.note(
            self.clock.elapsed(),
            "connection {} breaks",
            &[connection.0],
        );
        self.clients.dangling.push((connection, session));
    }

    pub fn detach_some(&mut self) -> Checked {
        if !self.clients.dangling.is_empty() && self.rng.u32(..4) == 0 {
            let (connection, session) = self.clients.dangling.remove(0);
            self.detach(connection, session)?;
        }
        Ok(())
    }
}
