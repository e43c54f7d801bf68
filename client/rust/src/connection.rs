//! The task that owns the socket of a client: it sends what [`crate::in_flight`] lets it send,
//! many requests in one write, hands answers back, keeps the session alive, and connects again by
//! itself. It decides nothing about requests; the handle in front of it is [`crate::client`].

use std::{pin::Pin, time::Duration};

use bytes::{Buf, BytesMut};
use ganger_protocol::{
    ErrorCode, SessionId, WireError, frame,
    limits::{FRAME_BYTES_MAX, REDIRECTS_MAX},
    request::{Heartbeat, LeaseRef, Operation, ProducerHello, Resume, SessionHello},
    response::{HeartbeatReply, HelloReply, Message, Notice},
};
use tokio::{
    io::AsyncReadExt,
    net::tcp::WriteHalf,
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender},
        oneshot,
    },
    time::{Instant, Sleep, sleep_until},
};

use crate::{
    error::{ConnectError, Error},
    handshake::{self, Greeting, Opened, Unopened},
    in_flight::{Ask, InFlight, Silence},
    options::{Address, ClientOptions},
};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Requests taken from the channel before they are written.
const TAKEN_MAX: usize = 256;

/// Bytes that wait for a slow server before no further request is taken.
const OUT_BYTES_MAX: usize = 1 << 20;

/// Free bytes that each read of the socket has at least.
const READ_BYTES: usize = 16 << 10;

/// How far away a timer stands that has nothing to do.
const FAR: Duration = Duration::from_secs(24 * 3600);

/// What the handle tells the task.
#[derive(Debug)]
pub(crate) enum Command {
    /// A request.
    Ask(Box<Ask>),
    /// Tell how the next try to connect ends.
    Connect(oneshot::Sender<Result<(), Error>>),
    /// End, once what may be written was written.
    Close,
}

/// What the task tells the owner of a session.
#[derive(Debug)]
pub(crate) enum Event {
    /// A connection is open.
    Connected,
    /// These leases ended without an answer of the worker.
    Lost(Vec<LeaseRef>),
    /// These jobs are to be cancelled.
    Cancel(Vec<LeaseRef>),
    /// Take no more jobs.
    Quiet,
    /// Stop.
    Terminate,
    /// The server refuses this client, and will do so again.
    Refused(ConnectError),
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Connection {
    options: ClientOptions,
    commands: UnboundedReceiver<Command>,
    events: Option<UnboundedSender<Event>>,
    table: InFlight,
    /// Who wants to know how the next try ends.
    connecting: Vec<oneshot::Sender<Result<(), Error>>>,
    /// The address to try next, and how many redirects led there.
    address: Address,
    redirects: usize,
    session: Option<Session>,
    backoff: Backoff,
    /// Where and why the last connection failed.
    failure: (String, ConnectError),
}

#[derive(Debug)]
struct Session {
    id: SessionId,
    secret: String,
    ttl: Duration,
    quiet: bool,
    terminate: bool,
}

/// Why a connection has ended.
#[derive(Debug)]
enum Ended {
    /// The client is closed.
    Closed,
    /// It failed.
    Lost(ConnectError),
    /// The server names another address.
    Redirect(String),
    /// Pushes need a new producer, which only a new connection gives.
    Producer,
    /// The session has ended, and only a new connection opens another.
    Session,
}

impl<E: Into<ConnectError>> From<E> for Ended {
    fn from(error: E) -> Self {
        Self::Lost(error.into())
    }
}

impl Connection {
    pub(crate) fn new(
        options: ClientOptions,
        commands: UnboundedReceiver<Command>,
        events: Option<UnboundedSender<Event>>,
    ) -> Self {
        let failure = (options.address(), ConnectError::Closed);
        Self {
            table: InFlight::new(options.window),
            address: options.address.clone(),
            options,
            commands,
            events,
            connecting: Vec::new(),
            redirects: 0,
            session: None,
            backoff: Backoff::default(),
            failure,
        }
    }

    /// Runs until the client is closed or its last handle is gone.
    pub(crate) async fn run(mut self) {
        while let Some(opened) = self.connect().await {
            let ended = match self.serve(opened).await {
                Ok(never) => match never {},
                Err(ended) => ended,
            };
            self.table.disconnected();
            match ended {
                Ended::Closed => break,
                Ended::Producer => {}
                Ended::Session => {
                    self.forget_session();
                    if !self.pause().await {
                        break;
                    }
                }
                Ended::Redirect(address) => self.redirect(&address),
                Ended::Lost(error) => {
                    self.failed(error);
                    if !self.pause().await {
                        break;
                    }
                }
            }
        }
        // Whoever asked in the meantime hears of it through the dropped channel.
        self.commands.close();
        self.table.close();
    }

    /// Tries until there is a connection; none when the client is closed.
    async fn connect(&mut self) -> Option<Opened> {
        loop {
            let is_wanted = self.table.len() > 0 || !self.connecting.is_empty();
            if self.options.session.is_none() && !is_wanted {
                // Nobody wants anything: an idle connection that was closed stays closed.
                let command = self.commands.recv().await?;
                self.take_offline(command)?;
            }
            match self.open().await? {
                Ok(opened) => return Some(opened),
                Err(Unopened::Redirect(address)) if self.redirects < REDIRECTS_MAX => {
                    self.redirect(&address);
                    continue;
                }
                Err(Unopened::Redirect(_)) => self.failed(ConnectError::Redirects),
                Err(Unopened::Failed(error)) => {
                    if self.forget(&error) {
                        continue;
                    }
                    self.failed(error);
                }
            }
            if !self.pause().await {
                return None;
            }
        }
    }

    /// One try, during which requests are accepted and given up as ever.
    async fn open(&mut self) -> Option<Result<Opened, Unopened>> {
        let greeting = self.greeting();
        let (options, address) = (self.options.clone(), self.address.clone());
        let mut opening = Box::pin(handshake::open(&options, &address, greeting));
        loop {
            let check_at = self.check_at();
            tokio::select! {
                opened = &mut opening => return Some(opened),
                command = self.commands.recv() => self.take_offline(command?)?,
                () = sleep_until(check_at) => self.check_offline(),
            }
        }
    }

    /// Waits before the next try; false when the client is closed.
    async fn pause(&mut self) -> bool {
        let until = Instant::now() + self.backoff.next();
        loop {
            let check_at = self.check_at();
            tokio::select! {
                () = sleep_until(until) => return true,
                command = self.commands.recv() => {
                    if command.and_then(|command| self.take_offline(command)).is_none() {
                        return false;
                    }
                }
                () = sleep_until(check_at) => self.check_offline(),
            }
        }
    }

    /// Serves one connection to its end. Each branch of the `select!` is cancel-safe: the channel's
    /// and the reading of a socket into a buffer are, and readiness and timers hold nothing.
    async fn serve(&mut self, mut opened: Opened) -> Result<std::convert::Infallible, Ended> {
        let now = Instant::now();
        let silence_max = self.opened(&opened.hello, now);
        let limit = opened.hello.limits.frame_bytes_max.max(FRAME_BYTES_MAX);
        let (mut reader, writer) = opened.stream.split();
        let mut inbox = opened.inbox;
        let mut taken = Vec::with_capacity(TAKEN_MAX);
        let mut line = Line {
            writer,
            out: BytesMut::with_capacity(READ_BYTES),
            sent_at: now,
            received_at: now,
            heartbeat_at: silence_max.map(|silence| now + silence),
            answered_count: 0,
        };
        let mut timer = std::pin::pin!(sleep_until(now + FAR));
        loop {
            while let Some(map) = frame::decode(&mut inbox, limit)? {
                self.message(Message::decode(&map)?, line.received_at)?;
                line.answered_count += 1;
            }
            if self.table.is_producer_unknown() {
                return Err(Ended::Producer);
            }
            if self.table.is_session_unknown() {
                return Err(Ended::Session);
            }
            line.write(&mut self.table)?;
            let wake_at = [self.table.check_at(), line.heartbeat_at];
            wake_by(timer.as_mut(), wake_at.into_iter().flatten().min());
            if inbox.capacity() - inbox.len() < READ_BYTES / 4 {
                inbox.reserve(READ_BYTES);
            }
            let out_bytes = line.out.len();
            tokio::select! {
                count = self.commands.recv_many(&mut taken, TAKEN_MAX), if out_bytes < OUT_BYTES_MAX => {
                    if count < line.answered_count {
                        // Those who were answered just now are likely to ask again at once.
                        tokio::task::yield_now().await;
                        while taken.len() < TAKEN_MAX && let Ok(command) = self.commands.try_recv() {
                            taken.push(command);
                        }
                    }
                    line.answered_count = 0;
                    self.take(&mut taken, &mut line)?;
                    if count == 0 {
                        return Err(Ended::Closed);
                    }
                }
                count = reader.read_buf(&mut inbox) => {
                    if count? == 0 {
                        return Err(ConnectError::Closed.into());
                    }
                    line.received_at = Instant::now();
                }
                ready = line.writer.writable(), if out_bytes > 0 => ready?,
                () = &mut timer => {
                    timer.as_mut().reset(Instant::now() + FAR);
                    self.look_at_clock(&mut line, silence_max)?;
                }
            }
        }
    }

    /// Takes requests over; a request to close ends the connection after them.
    fn take(&mut self, taken: &mut Vec<Command>, line: &mut Line<'_>) -> Result<(), Ended> {
        let now = Instant::now();
        for command in taken.drain(..) {
            match command {
                Command::Ask(ask) => self.table.accept(*ask, now),
                Command::Connect(reply) => {
                    let _ = reply.send(Ok(()));
                }
                Command::Close => {
                    line.write(&mut self.table)?;
                    return Err(Ended::Closed);
                }
            }
        }
        Ok(())
    }

    fn message(&mut self, message: Message, now: Instant) -> Result<(), Ended> {
        match message {
            Message::Reply { id, result } => {
                self.backoff = Backoff::default();
                if let Err(error) = &result
                    && id == 0
                {
                    tracing::warn!(%error, "the server could not read a request");
                }
                if let Some(reply) = self.table.answer(id, result, now) {
                    self.heartbeat_answered(reply);
                }
            }
            Message::Notice(Notice::Lost { leases }) => self.lost(leases),
            Message::Notice(Notice::Cancel { leases }) => self.tell(Event::Cancel(leases)),
            Message::Notice(Notice::Quiet {}) => self.quiet(),
            Message::Notice(Notice::Terminate {}) => self.terminate(),
            Message::Notice(Notice::Redirect { address }) => return Err(Ended::Redirect(address)),
            // Whoever subscribes has a connection of its own.
            Message::Notice(Notice::Welcome(_) | Notice::Events(_)) | Message::Unknown { .. } => {}
        }
        Ok(())
    }

    /// A connection is open: what the session and the producer became, and what to send again.
    /// Returns how long the session may be silent.
    fn opened(&mut self, hello: &HelloReply, now: Instant) -> Option<Duration> {
        self.redirects = 0;
        self.table.connected(hello, now);
        if let Some(reply) = &hello.session {
            let resumed = self.session.as_ref().map(|session| session.id) == Some(reply.id);
            let lost = if resumed {
                reply.lost.clone()
            } else {
                self.table.held()
            };
            let (quiet, terminate) = match self.session.take() {
                Some(old) if resumed => (old.quiet, old.terminate),
                Some(_) | None => (false, false),
            };
            self.session = Some(Session {
                id: reply.id,
                secret: reply.secret.clone(),
                ttl: Duration::from_millis(reply.ttl_ms.0),
                quiet,
                terminate,
            });
            self.lost(lost);
        }
        self.tell(Event::Connected);
        for connecting in self.connecting.drain(..) {
            let _ = connecting.send(Ok(()));
        }
        let session = self.session.as_ref();
        session.map(|session| session.ttl / 3)
    }

    fn greeting(&self) -> Greeting {
        let producer = self.options.producer.then(|| ProducerHello {
            id: self.table.producer(Instant::now()).map(str::to_owned),
        });
        let session = self.options.session.as_ref().map(|asked| SessionHello {
            resume: self.session.as_ref().map(|session| Resume {
                id: session.id,
                secret: session.secret.clone(),
                held: self.table.held(),
            }),
            ..asked.clone()
        });
        Greeting { producer, session }
    }

    /// Whether a refused `hello` may be accepted without what the server does not know any more.
    fn forget(&mut self, error: &ConnectError) -> bool {
        let ConnectError::Refused(error) = error else {
            return false;
        };
        if error.code == ErrorCode::UnknownProducer && !self.table.is_producer_unknown() {
            self.table.producer_unknown();
            return true;
        }
        if error.code == ErrorCode::NotFound && self.session.is_some() {
            self.forget_session();
            return true;
        }
        false
    }

    fn forget_session(&mut self) {
        self.session = None;
        let lost = self.table.held();
        self.lost(lost);
    }

    fn failed(&mut self, error: ConnectError) {
        tracing::info!(address = %self.address, %error, "no connection");
        if error.is_permanent() {
            let refusal = match &error {
                ConnectError::Refused(refusal) => refusal.clone(),
                other => WireError::new(ErrorCode::Unauthorized, other.to_string()),
            };
            self.table.refuse_all(&refusal);
            self.tell(Event::Refused(error.clone()));
        }
        let address = self.address.to_string();
        for connecting in self.connecting.drain(..) {
            let _ = connecting.send(Err(match &error {
                ConnectError::Refused(refusal) => Error::Refused(refusal.clone()),
                cause => Error::Unreachable {
                    address: address.clone(),
                    cause: cause.clone(),
                },
            }));
        }
        self.failure = (address, error);
        // A server that was named by another may be gone: the next try begins where the user said.
        self.address = self.options.address.clone();
        self.redirects = 0;
    }

    fn redirect(&mut self, address: &str) {
        self.redirects += 1;
        match address.parse() {
            Ok(address) => self.address = address,
            Err(error) => tracing::warn!(%error, address, "redirected to what is no address"),
        }
    }

    fn check_at(&self) -> Instant {
        let check_at = self.table.check_at();
        check_at.unwrap_or_else(|| Instant::now() + FAR)
    }

    fn take_offline(&mut self, command: Command) -> Option<()> {
        match command {
            Command::Ask(ask) => self.table.accept(*ask, Instant::now()),
            Command::Connect(reply) => self.connecting.push(reply),
            Command::Close => return None,
        }
        Some(())
    }

    fn check_offline(&mut self) {
        let now = Instant::now();
        // Nothing is sent, so that no silence counts.
        let _ = self.table.check(now, now, &self.failure);
    }

    fn look_at_clock(&mut self, line: &mut Line<'_>, max: Option<Duration>) -> Result<(), Ended> {
        let now = Instant::now();
        if self.table.check(now, line.received_at, &self.failure) == Silence::Dead {
            let after = now.duration_since(line.received_at);
            return Err(ConnectError::TimedOut { after }.into());
        }
        let Some(max) = max else {
            return Ok(());
        };
        if line.sent_at + max > now {
            line.heartbeat_at = Some(line.sent_at + max);
            return Ok(());
        }
        line.heartbeat_at = Some(now + max);
        if !self.table.is_waiting_only() && line.out.is_empty() {
            let heartbeat = Operation::Heartbeat(Heartbeat {});
            self.table.accept(Ask::unattended(heartbeat, max * 3), now);
        }
        Ok(())
    }

    fn heartbeat_answered(&mut self, reply: HeartbeatReply) {
        if reply.quiet {
            self.quiet();
        }
        if reply.terminate {
            self.terminate();
        }
        if !reply.cancel.is_empty() {
            self.tell(Event::Cancel(reply.cancel));
        }
        self.lost(reply.lost);
    }

    fn quiet(&mut self) {
        if let Some(session) = &mut self.session
            && !std::mem::replace(&mut session.quiet, true)
        {
            self.tell(Event::Quiet);
        }
    }

    fn terminate(&mut self) {
        if let Some(session) = &mut self.session
            && !std::mem::replace(&mut session.terminate, true)
        {
            self.tell(Event::Terminate);
        }
    }

    fn lost(&mut self, leases: Vec<LeaseRef>) {
        let lost = self.table.lost(leases);
        if !lost.is_empty() {
            self.tell(Event::Lost(lost));
        }
    }

    fn tell(&self, event: Event) {
        if let Some(events) = &self.events {
            // The worker may have ended already.
            let _ = events.send(event);
        }
    }
}

/// The sending half of a connection.
struct Line<'a> {
    writer: WriteHalf<'a>,
    out: BytesMut,
    sent_at: Instant,
    received_at: Instant,
    /// When to see whether the session needs a heartbeat.
    heartbeat_at: Option<Instant>,
    /// Frames read since requests were last taken.
    answered_count: usize,
}

impl Line<'_> {
    /// Encodes what may be sent and writes as much as the socket takes now.
    fn write(&mut self, table: &mut InFlight) -> Result<(), Ended> {
        if table.has_unsent() {
            let now = Instant::now();
            let before = self.out.len();
            table.write(&mut self.out, now);
            if self.out.len() > before {
                self.sent_at = now;
            }
        }
        while !self.out.is_empty() {
            match self.writer.try_write(&self.out) {
                Ok(count) => self.out.advance(count),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn wake_by(timer: Pin<&mut Sleep>, at: Option<Instant>) {
    // A timer that rings too early only looks at the clock, so it is never moved back.
    if let Some(at) = at
        && at < timer.deadline()
    {
        timer.reset(at);
    }
}

/// Doubling delays with jitter between two tries.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    failures: u32,
}

impl Backoff {
    pub(crate) fn next(&mut self) -> Duration {
        let delay = BACKOFF_MIN.saturating_mul(1 << self.failures.min(16));
        self.failures += 1;
        let delay = delay.min(BACKOFF_MAX);
        delay / 2 + delay.mul_f64(fastrand::f64() / 2.0)
    }
}
