//! The engine's own vocabulary: what comes in ([`Command`] at a [`Now`]) and what goes out
//! ([`Outcome`]). Listeners of every protocol translate into it; the engine cannot tell them apart.

use ganger_protocol::{
    BatchId, DurationMs, NamespaceName, SessionId, Timestamp, WireError,
    event::Event,
    request::{LeaseRef, Operation, SessionHello},
    response::{Notice, ReplyBody},
};

use crate::{
    cron::file::FileCron,
    records::{GroupNumber, ProducerNumber},
};

/// Both clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Now {
    /// The wall clock, for schedules. It may step.
    pub wall: Timestamp,
    /// The monotonic clock, for sessions and leases: ms since the server started.
    pub mono: Mono,
}

/// Milliseconds of the monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub u64);

impl Mono {
    /// This instant, `duration` later.
    pub fn plus(self, duration: DurationMs) -> Self {
        Self(self.0.saturating_add(duration.0))
    }

    /// How long after `earlier` this instant is; zero when it is not after it.
    pub fn since(self, earlier: Self) -> DurationMs {
        DurationMs(self.0.saturating_sub(earlier.0))
    }
}

/// A connection of a listener; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// To whom a reply goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Caller {
    /// The connection.
    pub connection: ConnectionId,
    /// The id of its request.
    pub request: u64,
}

/// A producer of numbered pushes, as the listener verified it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Producer {
    /// Its number, drawn at random by the listener that made it.
    pub number: ProducerNumber,
    /// When it was made. One that is younger than the idle time and has no records has never
    /// pushed; of an older one nothing can be said.
    pub made_at: Timestamp,
}

/// Who asks, as the listener knows it. The engine trusts it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// To whom the reply goes.
    pub caller: Caller,
    /// The namespace of the connection.
    pub namespace: NamespaceName,
    /// The session of the connection, when it has one.
    pub session: Option<SessionId>,
    /// The producer of the connection, when it has one.
    pub producer: Option<Producer>,
}

/// Something that happens to a shard.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// A request, its counts and ranges checked by
    /// [`Operation::check`](ganger_protocol::request::Operation::check). `hello` is the listener's
    /// and never comes here.
    Request(Origin, Operation),
    /// What a task does to some jobs by their ids. Answered in [`Outcome::answer`].
    Bulk(Origin, Operation),
    /// Opens or resumes a session; the secret was verified. Answered in [`Outcome::session`].
    OpenSession {
        /// Who asks.
        origin: Origin,
        /// What it says of itself.
        hello: SessionHello,
    },
    /// A connection is gone: what waits on it ends. Its session lives on until its ttl.
    Detach {
        /// The connection.
        connection: ConnectionId,
        /// Its session, when it had one.
        session: Option<SessionId>,
    },
    /// Groups up to this one are durable: fetches that carried answers in them are answered.
    Durable(GroupNumber),
    /// The configuration has exactly these cron entries, all of namespaces of this shard.
    FileCrons(Vec<FileCron>),
    /// Whether anybody follows what happens: then, and only then, it comes out in
    /// [`Outcome::events`].
    Watch(bool),
    /// Time has passed: fire what is due, a bounded slice of it.
    Tick,
}

/// What a command led to, besides the changes in the open group.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Replies, to this caller and to others.
    pub replies: Vec<Reply>,
    /// What a connection is to be told without having asked.
    pub notices: Vec<(ConnectionId, Notice)>,
    /// Batches that nobody committed, closed by their deadline.
    pub lapsed: Vec<(NamespaceName, BatchId)>,
    /// What has happened, in order, while somebody follows it. It may be told once the group that is
    /// open now is durable.
    pub events: Vec<Happened>,
    /// Answers [`Command::Bulk`].
    pub answer: Option<Result<ReplyBody, WireError>>,
    /// Answers [`Command::OpenSession`].
    pub session: Option<SessionOpened>,
}

/// Something that has happened, and where. Its offset is the teller's to give.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// In which namespace.
    pub namespace: NamespaceName,
    /// What.
    pub event: Event,
}

/// A reply and when it may leave.
#[derive(Debug)]
pub struct Reply {
    /// To whom.
    pub caller: Caller,
    /// The group that must be durable before it leaves; 0: it waits for nothing.
    pub after: GroupNumber,
    /// What it says.
    pub result: Result<ReplyBody, WireError>,
}

/// A session as it was opened or resumed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOpened {
    /// The session; another one than was to be resumed when that is no longer known.
    pub id: SessionId,
    /// How long it lives without a frame.
    pub ttl: DurationMs,
    /// Leases that the worker named and the engine does not know.
    pub lost: Vec<LeaseRef>,
}
