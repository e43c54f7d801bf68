//! A connection that speaks the protocol's types, and says when it is gone.

use std::{io, net::SocketAddr};

use bytes::{Bytes, BytesMut};
use ganger_protocol::{
    NamespaceName, VERSION, WireError,
    request::{Hello, Operation, ProducerHello, Request, SessionHello},
    response::{Body, HelloReply, Message},
};
use support::Connection;

/// The connection has ended, or the server says that it is about to.
#[derive(Debug)]
pub(crate) struct Gone;

impl From<io::Error> for Gone {
    fn from(_: io::Error) -> Self {
        Self
    }
}

#[derive(Debug)]
pub(crate) struct Link {
    connection: Connection,
    next_id: u64,
}

/// A reply and the id of its request.
pub(crate) type Reply = (u64, Result<Body, WireError>);

impl Link {
    /// Connects and says hello.
    pub(crate) fn open(
        address: SocketAddr,
        session: Option<SessionHello>,
        producer: Option<ProducerHello>,
    ) -> Result<(Self, Result<HelloReply, WireError>), Gone> {
        let mut link = Self {
            connection: Connection::try_connect(address)?,
            next_id: 1,
        };
        let id = link.send(Operation::Hello(Hello {
            v: VERSION,
            client: "crash".to_owned(),
            features: Vec::new(),
            namespace: NamespaceName::default(),
            auth: None,
            session,
            producer,
        }))?;
        let (answered, result) = link.reply()?;
        assert_eq!(answered, id, "the first reply is that of hello");
        let reply = result.map(|body| body.read::<HelloReply>().expect("a reply to hello"));
        Ok((link, reply))
    }

    pub(crate) fn send(&mut self, operation: Operation) -> Result<u64, Gone> {
        let id = self.next_id;
        self.next_id += 1;
        let mut buffer = BytesMut::new();
        let request = Request { id, operation };
        request.encode(&mut buffer).expect("encoded");
        self.connection.try_send_bytes(&buffer)?;
        Ok(id)
    }

    /// The next reply; notices are passed over, since every lease that ends says so when it is
    /// answered.
    pub(crate) fn reply(&mut self) -> Result<Reply, Gone> {
        loop {
            let frame = self.connection.try_frame()?.ok_or(Gone)?;
            match Message::decode(&Bytes::from(frame)).expect("a message of a server") {
                Message::Reply { id, result } => return Ok((id, result)),
                Message::Notice(_) | Message::Unknown { .. } => {}
            }
        }
    }
}
