//! From an address to an open connection: the socket, `welcome`, the proof of the token, `hello`
//! and its answer. What was asked before and is to be sent again is
//! [`crate::connection`]'s.

use bytes::{Bytes, BytesMut};
use ganger_protocol::{
    VERSION, VERSION_MIN, frame,
    limits::FRAME_BYTES_MAX,
    request::{Auth, Hello, Operation, ProducerHello, Request, SessionHello},
    response::{HelloReply, Message, Notice, Welcome},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use crate::{
    error::ConnectError,
    in_flight::HELLO_ID,
    options::{Address, ClientOptions},
};

/// What this connection asks for beyond the options.
#[derive(Debug)]
pub(crate) struct Greeting {
    pub(crate) producer: Option<ProducerHello>,
    pub(crate) session: Option<SessionHello>,
}

/// An open connection.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) stream: TcpStream,
    /// What came behind the answer to `hello`.
    pub(crate) inbox: BytesMut,
    pub(crate) hello: HelloReply,
}

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum Unopened {
    /// The server names another address.
    Redirect(String),
    /// It failed.
    Failed(ConnectError),
}

impl<E: Into<ConnectError>> From<E> for Unopened {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Connects to `address` and says hello.
pub(crate) async fn open(
    options: &ClientOptions,
    address: &Address,
    greeting: Greeting,
) -> Result<Opened, Unopened> {
    let after = options.connect_timeout;
    match timeout(after, shake_hands(options, address, greeting)).await {
        Ok(opened) => opened,
        Err(_elapsed) => Err(ConnectError::TimedOut { after }.into()),
    }
}

async fn shake_hands(
    options: &ClientOptions,
    address: &Address,
    greeting: Greeting,
) -> Result<Opened, Unopened> {
    let mut stream = TcpStream::connect((address.host.as_str(), address.port))
        .await
        .map_err(ConnectError::from)?;
    stream.set_nodelay(true).map_err(ConnectError::from)?;
    let mut inbox = BytesMut::with_capacity(4 << 10);
    let welcome = match next_message(&mut stream, &mut inbox).await? {
        Message::Notice(Notice::Welcome(welcome)) => welcome,
        Message::Notice(Notice::Redirect { address }) => return Err(Unopened::Redirect(address)),
        Message::Reply { result, .. } => {
            return Err(result.err().map_or(ConnectError::Closed, Into::into).into());
        }
        Message::Notice(_) | Message::Unknown { .. } => return Err(ConnectError::Closed.into()),
    };
    let request = Request {
        id: HELLO_ID,
        operation: Operation::Hello(Box::new(hello(options, &welcome, greeting)?)),
    };
    let mut out = BytesMut::new();
    if let Err(error) = request.encode(&mut out) {
        return Err(ConnectError::from(std::io::Error::other(error)).into());
    }
    stream.write_all(&out).await.map_err(ConnectError::from)?;
    loop {
        match next_message(&mut stream, &mut inbox).await? {
            Message::Reply { result, .. } => {
                let hello = result?.read().map_err(ConnectError::from)?;
                return Ok(Opened {
                    stream,
                    inbox,
                    hello,
                });
            }
            Message::Notice(Notice::Redirect { address }) => {
                return Err(Unopened::Redirect(address));
            }
            Message::Notice(_) | Message::Unknown { .. } => {}
        }
    }
}

fn hello(
    options: &ClientOptions,
    welcome: &Welcome,
    greeting: Greeting,
) -> Result<Hello, ConnectError> {
    if welcome.min_v > VERSION || welcome.v < VERSION_MIN {
        return Err(ConnectError::Version {
            min: welcome.min_v,
            max: welcome.v,
            ours: VERSION,
        });
    }
    let auth = options.token.as_ref().map(|token| Auth {
        id: token.id.clone(),
        mac: Bytes::from(token.proof(&welcome.nonce)),
    });
    if welcome.auth_required && auth.is_none() {
        return Err(ConnectError::TokenMissing);
    }
    Ok(Hello {
        v: VERSION,
        client: options.name.clone(),
        features: Vec::new(),
        namespace: options.namespace.clone(),
        auth,
        session: greeting.session,
        producer: greeting.producer,
    })
}

async fn next_message(
    stream: &mut TcpStream,
    inbox: &mut BytesMut,
) -> Result<Message, ConnectError> {
    loop {
        if let Some(map) = frame::decode(inbox, FRAME_BYTES_MAX)? {
            return Ok(Message::decode(&map)?);
        }
        if stream.read_buf(inbox).await? == 0 {
            return Err(ConnectError::Closed);
        }
    }
}
