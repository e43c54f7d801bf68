//! (tests) A scripted server: it shakes hands with whoever comes and answers by a closure.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use ganger_client::ClientOptions;
use ganger_protocol::{
    DurationMs, JobId, SessionId, Timestamp, VERSION, WireError,
    codec::FrameCodec,
    limits::Limits,
    request::{Operation, Request},
    response::{HelloReply, Notice, Reply, ReplyBody, SessionReply},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};
use tokio_util::{bytes::BytesMut, codec::Decoder as _};

use crate::{
    auth::Tokens,
    session::handshake,
    tasks::{OnPanic, Tasks},
};

type Script = Arc<Mutex<dyn FnMut(Operation) -> Result<ReplyBody, WireError> + Send>>;

/// A server whose answers a test decides. It ends with its runtime.
#[derive(Debug)]
pub(super) struct Peer(SocketAddr);

impl Peer {
    pub(super) async fn start<F>(script: F) -> Self
    where
        F: FnMut(Operation) -> Result<ReplyBody, WireError> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tasks, script): (_, Script) = (Tasks::new(), Arc::new(Mutex::new(script)));
        let sessions = tasks.clone();
        tasks.spawn("peer", OnPanic::Stop, async move {
            while let Ok((socket, _)) = listener.accept().await {
                let script = Arc::clone(&script);
                sessions.spawn("session", OnPanic::Stop, async move {
                    serve(socket, &script).await;
                });
            }
        });
        Self(address)
    }

    pub(super) fn url(&self) -> String {
        format!("ganger://{}", self.0)
    }

    pub(super) fn options(&self) -> ClientOptions {
        ClientOptions::from_url(&self.url()).unwrap()
    }
}

/// The id of the n-th job of a test.
pub(super) fn id(number: u16) -> JobId {
    let mut bytes = [0; JobId::BYTES];
    bytes[..2].copy_from_slice(&number.to_be_bytes());
    JobId::from_bytes(bytes)
}

async fn serve(mut socket: TcpStream, script: &Script) {
    let (mut input, mut output) = (BytesMut::new(), BytesMut::new());
    let welcome = handshake::welcome(&[0; 32], &Tokens::new(&[]).unwrap(), &Limits::default());
    Notice::Welcome(welcome).encode(&mut output).unwrap();
    let mut codec = FrameCodec::default();
    loop {
        while let Some(frame) = codec.decode(&mut input).unwrap() {
            let request = Request::decode(&frame).unwrap();
            let result = match request.operation {
                Operation::Hello(hello) => Ok(hello_reply(hello.session.is_some())),
                operation => (script.lock().unwrap())(operation),
            };
            Reply {
                id: request.id,
                result,
            }
            .encode(&mut output)
            .unwrap();
        }
        if socket.write_all(&output.split()).await.is_err() {
            return;
        }
        if !matches!(socket.read_buf(&mut input).await, Ok(1..)) {
            return;
        }
    }
}

fn hello_reply(session: bool) -> ReplyBody {
    let session = session.then(|| SessionReply {
        id: SessionId(1),
        secret: "secret".to_owned(),
        ttl_ms: DurationMs::from_secs(15),
        lost: Vec::new(),
    });
    ReplyBody::Hello(Box::new(HelloReply {
        v: VERSION,
        features: Vec::new(),
        limits: Limits::default(),
        server_time: Timestamp(0),
        session,
        producer: Some("producer".to_owned()),
    }))
}
