//! One connection: reads frames, decodes, authorises, and hands commands to the driver; replies
//! leave through the connection's [`Outbox`].
//!
//! A session task never waits for the disk. It stops reading its socket while too much is not
//! durable, or while its client does not read its replies. What is agreed on in `hello` is
//! [`handshake`]'s, which request is legal when, [`state`]'s, both without IO.

pub mod handshake;
pub mod state;
mod subscriptions;

use std::{
    net::SocketAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use ganger_engine::{
    command::{Caller, Command, ConnectionId, Mono, Origin, Producer},
    records::ProducerNumber,
};
use ganger_protocol::{
    DurationMs, ErrorCode, NamespaceName, SessionId, WireError, frame,
    request::{Backup, Hello, Operation, Request},
    response::{BackupReply, HelloReply, Notice, Reply, ReplyBody, SessionReply},
    task::OneTask,
};
use tokio::{io::AsyncReadExt as _, net::TcpStream, net::tcp::OwnedReadHalf};
use tokio_util::sync::CancellationToken;

use self::{
    handshake::{Accepted, Nonce, Terms},
    state::{Open, State},
    subscriptions::Subscriptions,
};
use crate::{
    auth::{self, Identity, Tokens},
    driver::{Outbox, Shard},
    server::Shared,
    upkeep::BackupStream,
};

/// A session stops reading while its client has not read so many bytes of replies.
const UNSENT_BYTES_MAX: usize = 8 << 20;

/// Room for one read of a socket whose requests are small: a connection that waits keeps it.
const READ_BYTES_MIN: usize = 1 << 10;

/// Room for one read of a socket once a read has filled what there was.
const READ_BYTES_MAX: usize = 16 << 10;

/// Bytes that are still read of a connection that is ending, and how long.
const PARTING_BYTES_MAX: usize = 1 << 20;
const PARTING_TIME_MAX: Duration = Duration::from_secs(1);

/// What others may know of a connection: the listener's sweeper ends those that overstay.
#[derive(Debug)]
pub struct Presence {
    /// Where its replies go.
    pub outbox: Arc<Outbox>,
    /// Ends the connection.
    pub close: CancellationToken,
    /// When it was accepted.
    opened_at: Mono,
    /// When its last frame came, in ms of the monotonic clock.
    seen_at: AtomicU64,
    /// When the frame began that is not complete yet; 0: there is none.
    begun_at: AtomicU64,
    is_open: AtomicBool,
    has_session: AtomicBool,
    /// Whether it follows events: then it waits for them, however long.
    has_subscription: AtomicBool,
    /// Whom `hello` was accepted from.
    identity: OnceLock<Identity>,
}

/// How long a connection may do what; see the configuration.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// From connecting to an accepted `hello`.
    pub hello: DurationMs,
    /// For a frame that has begun.
    pub frame: DurationMs,
    /// Without session and request.
    pub idle: DurationMs,
    /// Without reading its replies.
    pub write_stall: DurationMs,
}

impl Presence {
    /// A connection that was just accepted.
    pub fn new(outbox: Arc<Outbox>, now: Mono) -> Self {
        Self {
            outbox,
            close: CancellationToken::new(),
            opened_at: now,
            seen_at: AtomicU64::new(now.0),
            begun_at: AtomicU64::new(0),
            is_open: AtomicBool::new(false),
            has_session: AtomicBool::new(false),
            has_subscription: AtomicBool::new(false),
            identity: OnceLock::new(),
        }
    }

    /// Ends the connection when its token is gone or is another now.
    pub fn end_stranger(&self, tokens: &Tokens) {
        if let Some(identity) = self.identity.get()
            && !tokens.know(identity)
        {
            tracing::info!(
                token = identity.name(),
                "a connection of a changed token is closed"
            );
            self.close.cancel();
        }
    }

    /// Whether `hello` was accepted.
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    /// Why the connection has overstayed; `None`: it has not.
    pub fn overstays(&self, now: Mono, patience: &Patience) -> Option<&'static str> {
        let passed = |since: Mono, max: DurationMs| now.since(since) > max;
        if !self.is_open() {
            return passed(self.opened_at, patience.hello).then_some("no hello in time");
        }
        if self
            .outbox
            .blocked_since()
            .is_some_and(|since| passed(since, patience.write_stall))
        {
            return Some("its replies are not read");
        }
        let begun = Mono(self.begun_at.load(Ordering::Acquire));
        if begun != Mono(0) && passed(begun, patience.frame) {
            return Some("a frame is not completed");
        }
        let seen = Mono(self.seen_at.load(Ordering::Acquire));
        let is_idle = !self.has_session.load(Ordering::Acquire)
            && !self.has_subscription.load(Ordering::Acquire)
            && self.outbox.unanswered() == 0;
        (is_idle && passed(seen, patience.idle)).then_some("it is idle")
    }
}

/// Serves a connection until it ends.
pub async fn serve(shared: Arc<Shared>, stream: TcpStream, peer: SocketAddr, id: ConnectionId) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%peer, %error, "a socket is gone");
        return;
    }
    let (reader, writer) = stream.into_split();
    let outbox = Arc::new(Outbox::new(id, writer));
    let presence = Arc::new(Presence::new(outbox, shared.clock.now().mono));
    shared.connections.enter(id, Arc::clone(&presence));
    let Ok(nonce) = auth::random() else {
        tracing::error!("the system gives no random bytes; a connection is refused");
        shared.connections.leave(id);
        return;
    };
    let mut session = Session {
        shared,
        presence,
        peer,
        nonce,
        stage: Stage::Greeted,
        held_bytes: 0,
        backup: None,
        subscriptions: Subscriptions::default(),
    };
    session.run(reader).await;
    session.end();
}

/// One connection's state.
#[derive(Debug)]
struct Session {
    shared: Arc<Shared>,
    presence: Arc<Presence>,
    peer: SocketAddr,
    nonce: Nonce,
    stage: Stage,
    /// Bytes of an unfinished frame, as they are counted over all connections.
    held_bytes: usize,
    /// The backup that this connection reads.
    backup: Option<BackupStream>,
    /// The events that this connection follows.
    subscriptions: Subscriptions,
}

#[derive(Debug)]
enum Stage {
    /// `welcome` was sent.
    Greeted,
    /// `hello` was accepted.
    Open(Box<Opened>),
}

/// What `hello` agreed on.
#[derive(Debug)]
struct Opened {
    shard: Arc<Shard>,
    identity: Identity,
    namespace: NamespaceName,
    session: Option<SessionId>,
    producer: Option<Producer>,
    /// Whether the producer was made on this connection: then it is known that it never pushed
    /// before, however old it is.
    is_producer_new: bool,
}

/// Whether the connection goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    GoOn,
    Close,
    /// Its last answer leaves after this time.
    CloseAfter(Duration),
}

impl Session {
    async fn run(&mut self, mut reader: OwnedReadHalf) {
        let live = self.shared.live();
        let welcome = handshake::welcome(&self.nonce, &live.tokens, &self.shared.limits);
        drop(live);
        self.presence.outbox.notice(&Notice::Welcome(welcome));
        self.flush();
        let mut buffer = BytesMut::new();
        let mut room_bytes = READ_BYTES_MIN;
        let presence = Arc::clone(&self.presence);
        let clock = self.shared.clock.clone();
        loop {
            self.wait_for_room().await;
            buffer.reserve(room_bytes);
            // Cancel-safe: `read_buf` takes nothing unless it completes, `drain` keeps what it has
            // not sent in the outbox, and events stay in their ring until they are read. While the
            // socket takes no more they are not: `drain` ends when it does again.
            let takes_more = !presence.outbox.is_blocked();
            let read = tokio::select! {
                () = presence.close.cancelled() => return,
                sent = presence.outbox.drain(|| clock.now().mono) => match sent {
                    Ok(()) => continue,
                    Err(_gone) => return,
                },
                () = self.subscriptions.have_news(), if takes_more => {
                    self.subscriptions.tell(&presence.outbox);
                    self.flush();
                    continue;
                }
                read = reader.read_buf(&mut buffer) => read,
            };
            match read {
                Ok(0) => {
                    if !buffer.is_empty() {
                        tracing::debug!(peer = %self.peer, "closed inside of a frame");
                    }
                    return;
                }
                Ok(_) if buffer.len() == buffer.capacity() => room_bytes = READ_BYTES_MAX,
                Ok(count) if count < READ_BYTES_MIN => room_bytes = READ_BYTES_MIN,
                Ok(_) => {}
                Err(error) => {
                    tracing::debug!(peer = %self.peer, %error, "a socket is gone");
                    return;
                }
            }
            let then = self.take_frames(&mut buffer);
            if let Then::CloseAfter(delay) = then {
                self.delay(delay).await;
            }
            self.flush();
            if then != Then::GoOn {
                self.part(&mut reader).await;
                return;
            }
            if !self.hold(buffer.len()) {
                // What it held is others' from here on.
                drop(buffer);
                self.hold(0);
                let message = "too many bytes of unfinished requests are in flight overall";
                self.answer(
                    0,
                    Err(WireError::overloaded(message, DurationMs::from_secs(1))),
                );
                self.flush();
                self.part(&mut reader).await;
                return;
            }
        }
    }

    /// Says that nothing follows, and takes what the client still sends: a socket that is closed
    /// over unread bytes would destroy the last answer on its way.
    async fn part(&self, reader: &mut OwnedReadHalf) {
        let outbox = &self.presence.outbox;
        let unread = async {
            while outbox.unsent_bytes() > 0 {
                if outbox.drain(|| self.shared.clock.now().mono).await.is_err() {
                    return;
                }
            }
            let socket = socket2::SockRef::from(reader.as_ref());
            if socket.shutdown(std::net::Shutdown::Write).is_err() {
                return;
            }
            let mut scrap = vec![0; READ_BYTES_MIN];
            let mut left = PARTING_BYTES_MAX;
            while let Ok(count) = reader.read(&mut scrap).await {
                left = left.saturating_sub(count);
                if count == 0 || left == 0 {
                    return;
                }
            }
        };
        tokio::select! {
            () = unread => {}
            () = self.presence.close.cancelled() => {}
            () = tokio::time::sleep(PARTING_TIME_MAX) => {}
        }
    }

    /// Counts the bytes of an unfinished frame; whether the server has room for them. A small one
    /// always has it.
    fn hold(&mut self, bytes: usize) -> bool {
        let in_flight = &self.shared.in_flight_bytes;
        let before = in_flight.fetch_add(bytes, Ordering::AcqRel);
        in_flight.fetch_sub(self.held_bytes, Ordering::AcqRel);
        self.held_bytes = bytes;
        bytes <= READ_BYTES_MAX || before <= self.shared.live().in_flight_bytes_max
    }

    /// Waits while too much is not durable, or not read by the client.
    async fn wait_for_room(&self) {
        let presence = &self.presence;
        if let Stage::Open(opened) = &self.stage {
            tokio::select! {
                () = opened.shard.has_room() => {}
                () = presence.close.cancelled() => {}
            }
        }
        while presence.outbox.unsent_bytes() > UNSENT_BYTES_MAX {
            tokio::select! {
                sent = presence.outbox.drain(|| self.shared.clock.now().mono) => {
                    if sent.is_err() {
                        return;
                    }
                }
                () = presence.close.cancelled() => return,
            }
        }
    }

    /// Handles every whole frame of the buffer; their commands are applied together. It awaits
    /// nothing, so that no request is part of the connection's task. Nothing is sent.
    fn take_frames(&mut self, buffer: &mut BytesMut) -> Then {
        let now = self.shared.clock.now().mono;
        self.presence.seen_at.store(now.0, Ordering::Release);
        // Most reads bring one request.
        let mut commands = Vec::with_capacity(1);
        let mut is_another = false;
        let then = loop {
            let limit = match &self.stage {
                Stage::Greeted => self.shared.live().hello_bytes_max,
                Stage::Open(_) => self.shared.limits.frame_bytes_max,
            };
            match frame::decode(buffer, limit) {
                Ok(None) => break Then::GoOn,
                Ok(Some(map)) => {
                    is_another = true;
                    let then = self.take_frame(&map, &mut commands);
                    if then != Then::GoOn {
                        break then;
                    }
                }
                Err(error) => {
                    self.answer(0, Err(WireError::from(error)));
                    break Then::Close;
                }
            }
        };
        let begun = if buffer.is_empty() { 0 } else { now.0.max(1) };
        let earlier = self.presence.begun_at.load(Ordering::Acquire);
        // A client that pipelines is always inside of a frame; its clock begins with each.
        if begun == 0 || earlier == 0 || is_another {
            self.presence.begun_at.store(begun, Ordering::Release);
        }
        self.submit(&mut commands);
        then
    }

    fn take_frame(&mut self, map: &Bytes, commands: &mut Vec<Command>) -> Then {
        let request = match Request::decode(map) {
            Ok(request) => request,
            Err(refusal) => {
                self.answer(refusal.id, Err(refusal.error));
                return match self.stage {
                    Stage::Greeted => Then::Close,
                    Stage::Open(_) => Then::GoOn,
                };
            }
        };
        let Request { id, operation } = request;
        match self.admit(&operation) {
            Ok(()) => self.perform(id, operation, commands),
            Err(error) => {
                self.answer(id, Err(error));
                match self.stage {
                    Stage::Greeted => Then::Close,
                    Stage::Open(_) => Then::GoOn,
                }
            }
        }
    }

    /// Whether a request may be served: its ranges, the state of the connection, the token, the
    /// state of the server. In this order.
    fn admit(&self, operation: &Operation) -> Result<(), WireError> {
        operation.check(&self.shared.limits)?;
        self.state().check(operation)?;
        if let Stage::Open(opened) = &self.stage {
            auth::authorise(&opened.identity, operation, &opened.namespace)?;
        }
        if self.shared.is_draining() {
            state::check_draining(operation)?;
        }
        let pushes = matches!(
            operation,
            Operation::Push(_) | Operation::CronRun(_) | Operation::BatchOpen(_)
        );
        if pushes && self.shared.is_short_of_space() {
            return Err(WireError::overloaded(
                "the disk is nearly full; pushes are refused, answers are taken",
                DurationMs::from_secs(5),
            ));
        }
        Ok(())
    }

    fn perform(&mut self, id: u64, operation: Operation, commands: &mut Vec<Command>) -> Then {
        let opened = match &mut self.stage {
            Stage::Open(opened) => opened,
            Stage::Greeted => {
                return match operation {
                    Operation::Hello(hello) => self.hello(id, *hello),
                    _ => Then::Close,
                };
            }
        };
        if let Operation::Backup(Backup { offset }) = operation {
            let result = self.backup_chunk(offset);
            self.answer(id, result.map(ReplyBody::Backup));
            return Then::GoOn;
        }
        let caller = Caller {
            connection: self.presence.outbox.connection(),
            request: id,
        };
        let origin = opened.origin(caller, &self.shared);
        match operation {
            operation @ (Operation::Subscribe(_) | Operation::Unsubscribe(_)) => {
                let (shard, namespace) = (Arc::clone(&opened.shard), origin.namespace);
                // What came before it on this connection has happened before.
                self.submit(commands);
                let result = self.subscriptions.serve(&shard, namespace, operation);
                let has_any = !self.subscriptions.is_empty();
                let presence = &self.presence;
                presence.has_subscription.store(has_any, Ordering::Release);
                self.answer(id, result);
            }
            Operation::DeadList(list) => {
                let shard = Arc::clone(&opened.shard);
                self.submit(commands);
                self.presence.outbox.expect_reply();
                shard.list_dead(&origin, &list);
            }
            Operation::TaskStart(start) => {
                let (shard, by) = (Arc::clone(&opened.shard), opened.identity.name().to_owned());
                self.submit(commands);
                self.presence.outbox.expect_reply();
                shard.start_task(&self.shared.tasks, origin, *start, by);
            }
            Operation::TaskList(_) => {
                let (shard, identity) = (Arc::clone(&opened.shard), opened.identity.clone());
                self.submit(commands);
                self.presence.outbox.expect_reply();
                shard.list_tasks(&origin, |start| auth::may_see_task(&identity, start));
            }
            operation @ (Operation::TaskGet(OneTask { task })
            | Operation::TaskCancel(OneTask { task })) => {
                let shard = Arc::clone(&opened.shard);
                let start = shard.task_start(&origin.namespace, task);
                let is_seen = start.is_some_and(|it| auth::may_see_task(&opened.identity, &it));
                self.submit(commands);
                self.presence.outbox.expect_reply();
                match (is_seen, operation) {
                    (false, _) => shard.refuse_task(&origin, task),
                    (true, Operation::TaskCancel(_)) => shard.cancel_task(&origin, task),
                    (true, _) => shard.answer_task(&origin, task),
                }
            }
            Operation::JobList(list) => {
                let shard = Arc::clone(&opened.shard);
                self.submit(commands);
                self.presence.outbox.expect_reply();
                shard.list_jobs(&self.shared.tasks, origin, *list);
            }
            operation => {
                if matches!(operation, Operation::Goodbye(_)) {
                    opened.session = None;
                    self.presence.has_session.store(false, Ordering::Release);
                }
                self.presence.outbox.expect_reply();
                let operation = match operation {
                    Operation::Fetch(mut fetch) if self.shared.is_draining() => {
                        fetch.max = 0;
                        Operation::Fetch(fetch)
                    }
                    operation => operation,
                };
                commands.push(Command::Request(origin, operation));
            }
        }
        Then::GoOn
    }

    /// The next chunk of this connection's backup.
    fn backup_chunk(&mut self, offset: u64) -> Result<BackupReply, WireError> {
        if offset == 0 {
            // First the old one ends: there is one of a store at a time.
            self.backup = None;
            let stores = self.shared.shards.iter().map(|shard| shard.store());
            let now = self.shared.clock.now().wall;
            self.backup = Some(BackupStream::begin(stores.map(Arc::clone), now));
        }
        let backup = self.backup.as_mut().ok_or_else(BackupStream::elsewhere)?;
        let reply = backup.reply(offset);
        if reply.as_ref().map_or(true, |reply| reply.end) {
            self.backup = None;
        }
        reply
    }

    fn hello(&mut self, id: u64, hello: Hello) -> Then {
        let address = self.peer.ip();
        let now = self.shared.clock.now();
        if let Err(error) = self.shared.failures().check(address, now.mono) {
            self.answer(id, Err(error));
            return Then::Close;
        }
        let is_producer_new = hello
            .producer
            .as_ref()
            .is_some_and(|producer| producer.id.is_none());
        let client = hello.client.clone();
        let Ok(fresh) = auth::random() else {
            return Then::Close;
        };
        let live = self.shared.live();
        let terms = Terms {
            tokens: &live.tokens,
            secret: &self.shared.secret,
            nonce: &self.nonce,
            fresh: ProducerNumber(u64::from_be_bytes(fresh)),
            now: now.wall,
        };
        match handshake::accept(hello, &terms) {
            Ok(accepted) => {
                tracing::debug!(peer = %self.peer, client, token = accepted.identity.name(), "hello");
                self.open(id, accepted, is_producer_new)
            }
            Err(error) => {
                let is_stranger = error.code == ErrorCode::Unauthorized;
                self.answer(id, Err(error));
                if is_stranger {
                    tracing::warn!(peer = %self.peer, "a login was refused");
                    Then::CloseAfter(self.shared.failures().record(address, now.mono))
                } else {
                    Then::Close
                }
            }
        }
    }

    /// Waits, unless the connection is closed meanwhile.
    async fn delay(&self, delay: Duration) {
        tokio::select! {
            () = tokio::time::sleep(delay) => {}
            () = self.presence.close.cancelled() => {}
        }
    }

    fn open(&mut self, id: u64, accepted: Accepted, is_producer_new: bool) -> Then {
        let Accepted {
            v,
            identity,
            namespace,
            session,
            mut lost,
            producer,
        } = accepted;
        let Some(shard) = self.shared.shards.home(&namespace) else {
            return Then::Close;
        };
        // Known before it is looked at once more, so that no reload passes it by.
        let _ = self.presence.identity.set(identity.clone());
        self.presence.end_stranger(&self.shared.live().tokens);
        shard.attach(&self.presence.outbox);
        let mut opened = Opened {
            shard: Arc::clone(&shard),
            identity,
            namespace,
            session: None,
            producer,
            is_producer_new,
        };
        let connection = self.presence.outbox.connection();
        let mut reply = None;
        if let Some(hello) = session {
            let origin = opened.origin(
                Caller {
                    connection,
                    request: id,
                },
                &self.shared,
            );
            let Some(session) = shard.submit([Command::OpenSession { origin, hello }]) else {
                return Then::Close;
            };
            opened.session = Some(session.id);
            self.presence.has_session.store(true, Ordering::Release);
            lost.extend(session.lost);
            reply = Some(SessionReply {
                id: session.id,
                secret: self.shared.secret.session_secret(session.id),
                ttl_ms: session.ttl,
                lost,
            });
        }
        let body = HelloReply {
            v,
            features: Vec::new(),
            limits: self.shared.limits,
            server_time: self.shared.clock.now().wall,
            session: reply,
            producer: opened
                .producer
                .map(|producer| self.shared.secret.producer_text(producer)),
        };
        self.stage = Stage::Open(Box::new(opened));
        self.presence.is_open.store(true, Ordering::Release);
        self.answer(id, Ok(ReplyBody::Hello(Box::new(body))));
        Then::GoOn
    }

    fn submit(&self, commands: &mut Vec<Command>) {
        if let Stage::Open(opened) = &self.stage
            && !commands.is_empty()
        {
            opened.shard.submit(commands.drain(..));
        }
    }

    fn state(&self) -> State {
        match &self.stage {
            Stage::Greeted => State::BeforeHello,
            Stage::Open(opened) => State::Open(Open {
                session: opened.session.is_some(),
                producer: opened.producer.is_some(),
            }),
        }
    }

    /// Answers a request that never reached the driver.
    fn answer(&self, id: u64, result: Result<ReplyBody, WireError>) {
        self.presence.outbox.refuse(&Reply { id, result });
    }

    fn flush(&self) {
        self.presence.outbox.flush(|| self.shared.clock.now().mono);
    }

    fn end(mut self) {
        self.hold(0);
        let connection = self.presence.outbox.connection();
        self.flush();
        if let Stage::Open(opened) = &self.stage {
            opened.shard.detach(connection, opened.session);
        }
        self.shared.connections.leave(connection);
    }
}

impl Opened {
    fn origin(&self, caller: Caller, shared: &Shared) -> Origin {
        let producer = self.producer.map(|producer| match self.is_producer_new {
            true => Producer {
                made_at: shared.clock.now().wall,
                ..producer
            },
            false => producer,
        });
        Origin {
            caller,
            namespace: self.namespace.clone(),
            session: self.session,
            producer,
        }
    }
}
