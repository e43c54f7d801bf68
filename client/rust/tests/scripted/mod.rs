//! A scripted server: the test says what each connection reads and what it answers.

use std::{collections::VecDeque, fmt::Debug, time::Duration};

use bytes::{Bytes, BytesMut};
use ganger_client::{
    Client, ClientOptions, ErrorCode, JobId, WireError,
    protocol::{
        DurationMs, LeaseId, SessionId, Timestamp, frame,
        ids::Birth,
        job::GrantedJob,
        limits::{FRAME_BYTES_MAX, Limits},
        request::{Fetch, Hello, LeaseRef, Operation, Push, Request},
        response::{
            Done, FetchReply, HeartbeatReply, HelloReply, LeaseReply, LeaseResult, Notice,
            PushReply, Reply, ReplyBody, SessionReply, Welcome,
        },
    },
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// The ttl of the sessions that the server opens.
pub const TTL: Duration = Duration::from_secs(15);

/// The nonce of every connection.
pub const NONCE: [u8; 32] = [7; 32];

/// A time in which nothing that is real passes.
const LONG: Duration = Duration::from_secs(100_000);

pub struct Server {
    listener: TcpListener,
    pub auth_required: bool,
}

/// One connection, seen by the server.
#[derive(Debug)]
pub struct Peer {
    stream: TcpStream,
    inbox: BytesMut,
    /// Requests that were read while the test looked for another one.
    seen: VecDeque<Request>,
}

impl Server {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let auth_required = false;
        Self {
            listener,
            auth_required,
        }
    }

    pub fn address(&self) -> String {
        self.listener.local_addr().unwrap().to_string()
    }

    /// Options whose time-outs never pass by themselves.
    pub fn options(&self) -> ClientOptions {
        ClientOptions::from_url(&format!("ganger://{}", self.address()))
            .unwrap()
            .connect_timeout(LONG)
            .request_timeout(LONG)
    }

    pub fn client(&self) -> Client {
        Client::lazy(self.options())
    }

    /// Accepts a connection and welcomes it.
    pub async fn accept(&self) -> Peer {
        let (stream, _) = self.listener.accept().await.unwrap();
        let mut peer = Peer {
            stream,
            inbox: BytesMut::new(),
            seen: VecDeque::new(),
        };
        let welcome = Welcome {
            v: 1,
            min_v: 1,
            nonce: Bytes::from_static(&NONCE),
            auth_required: self.auth_required,
            limits: Limits::default(),
        };
        peer.notice(&Notice::Welcome(welcome)).await;
        peer
    }

    /// Accepts a connection up to and with `hello`.
    pub async fn open(&self) -> (Peer, Hello) {
        self.open_as(hello_reply()).await
    }

    /// As [`Server::open`], with this answer; it says nothing of what was not asked for.
    pub async fn open_as(&self, mut reply: HelloReply) -> (Peer, Hello) {
        let mut peer = self.accept().await;
        let (id, hello) = peer.hello().await;
        if hello.producer.is_none() {
            reply.producer = None;
        }
        if hello.session.is_none() {
            reply.session = None;
        }
        peer.answer(id, ReplyBody::Hello(Box::new(reply))).await;
        (peer, hello)
    }
}

impl Peer {
    /// The next request; none when the client has closed the connection.
    pub async fn next(&mut self) -> Option<Request> {
        if let Some(request) = self.seen.pop_front() {
            return Some(request);
        }
        loop {
            if let Some(map) = frame::decode(&mut self.inbox, FRAME_BYTES_MAX).unwrap() {
                return Some(Request::decode(&map).unwrap());
            }
            match self.stream.read_buf(&mut self.inbox).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub async fn request(&mut self) -> Request {
        self.next().await.expect("the client closed the connection")
    }

    pub async fn hello(&mut self) -> (u64, Hello) {
        let request = self.request().await;
        let Operation::Hello(hello) = request.operation else {
            panic!("not hello but {request:?}");
        };
        (request.id, *hello)
    }

    pub async fn push(&mut self) -> (u64, Push) {
        let request = self.request().await;
        let Operation::Push(push) = request.operation else {
            panic!("not push but {request:?}");
        };
        (request.id, push)
    }

    pub async fn fetch(&mut self) -> (u64, Fetch) {
        let request = self.request().await;
        let Operation::Fetch(fetch) = request.operation else {
            panic!("not fetch but {request:?}");
        };
        (request.id, fetch)
    }

    /// The next request of the operation `op`; those in front of it stay to be read. Heartbeats are
    /// answered and dropped, unless they are what is looked for.
    pub async fn find(&mut self, op: &str) -> Request {
        let mut passed = VecDeque::new();
        let found = loop {
            let request = self.request().await;
            match &request.operation {
                operation if operation.op() == op => break request,
                Operation::Heartbeat(_) => self.pulse(request.id).await,
                _ => passed.push_back(request),
            }
        };
        passed.append(&mut self.seen);
        self.seen = passed;
        found
    }

    /// Whether nothing more was sent in front of the next request, which is to be this one.
    pub async fn expect(&mut self, op: &str) -> Request {
        let request = self.request().await;
        assert_eq!(request.operation.op(), op, "{request:?}");
        request
    }

    pub async fn answer(&mut self, id: u64, body: ReplyBody) {
        let result = Ok(body);
        self.reply(&Reply { id, result }).await;
    }

    pub async fn refuse(&mut self, id: u64, code: ErrorCode) {
        let result = Err(WireError::new(code, "as the test says"));
        self.reply(&Reply { id, result }).await;
    }

    pub async fn pushed(&mut self, id: u64, jobs: &[JobId]) {
        let results = jobs.iter().map(|job| Ok(*job).into()).collect();
        self.answer(id, ReplyBody::Push(PushReply { results }))
            .await;
    }

    pub async fn granted(&mut self, id: u64, fetch: &Fetch, jobs: Vec<GrantedJob>) {
        let reply = FetchReply {
            jobs,
            acks: vec![LeaseResult::default(); fetch.acks.len()],
            fails: vec![LeaseResult::default(); fetch.fails.len()],
        };
        self.answer(id, ReplyBody::Fetch(reply)).await;
    }

    /// Applies an ack, fail, release or extend of `count` leases.
    pub async fn applied(&mut self, id: u64, count: usize) {
        let results = vec![LeaseResult::default(); count];
        self.answer(id, ReplyBody::Lease(LeaseReply { results }))
            .await;
    }

    pub async fn done(&mut self, id: u64) {
        self.answer(id, ReplyBody::Done(Done {})).await;
    }

    pub async fn pulse(&mut self, id: u64) {
        let reply = HeartbeatReply::default();
        self.answer(id, ReplyBody::Heartbeat(reply)).await;
    }

    pub async fn notice(&mut self, notice: &Notice) {
        let mut buffer = BytesMut::new();
        notice.encode(&mut buffer).unwrap();
        self.stream.write_all(&buffer).await.unwrap();
    }

    async fn reply(&mut self, reply: &Reply) {
        let mut buffer = BytesMut::new();
        reply.encode(&mut buffer).unwrap();
        self.stream.write_all(&buffer).await.unwrap();
    }
}

/// The answer to `hello` of a server that has just met the client.
pub fn hello_reply() -> HelloReply {
    HelloReply {
        v: 1,
        features: Vec::new(),
        limits: Limits::default(),
        server_time: Timestamp(1),
        session: Some(SessionReply {
            id: SessionId(1),
            secret: "s".to_owned(),
            ttl_ms: DurationMs(u64::try_from(TTL.as_millis()).unwrap()),
            lost: Vec::new(),
        }),
        producer: Some("p1".to_owned()),
    }
}

pub fn job_id(number: u8) -> JobId {
    JobId::born(Birth {
        shard: 0,
        queue: 1,
        priority: 5,
        lane: 0,
        position: 1 << 63,
        index: number,
    })
}

pub fn lease(number: u8) -> LeaseRef {
    LeaseRef {
        job: job_id(number),
        lease: LeaseId(u64::from(number)),
    }
}

/// A job of this kind whose lease has its number.
pub fn granted(number: u8, kind: &str) -> GrantedJob {
    GrantedJob {
        id: job_id(number),
        lease: LeaseId(u64::from(number)),
        queue: "mail".parse().unwrap(),
        kind: kind.parse().unwrap(),
        payload: Bytes::new(),
        content_type: None,
        headers: std::collections::BTreeMap::new(),
        attempt: 1,
        failures: 0,
        timeout_ms: DurationMs::from_mins(30),
        pushed_at: Timestamp(1),
        tags: Vec::new(),
        batch: None,
        key: None,
        cursor: None,
    }
}

/// What a spawned task returned.
pub async fn join<T>(task: tokio::task::JoinHandle<T>) -> T {
    task.await.unwrap()
}

#[track_caller]
pub fn expect_err<T: Debug, E>(result: Result<T, E>) -> E {
    match result {
        Ok(value) => panic!("no error but {value:?}"),
        Err(error) => error,
    }
}
